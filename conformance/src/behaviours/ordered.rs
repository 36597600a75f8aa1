//! Ordered streams: one source, RTP sequence order, gaps after a bounded time.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rtp_mgr::Cause;
use rustix::process::Signal;

use crate::child::Remote;
use crate::dice::Dice;
use crate::harness::{Harness, Need, NotRun, Rig, ms, unique_name};
use crate::heard::{self, Heard, Mark, all, assert_heard};
use crate::wait;
use crate::wire::Sender;

/// Longer than any behaviour takes: gaps are given up for another reason, or not at all.
const FOR_EVER: Duration = Duration::from_secs(60);
/// How long the followed source has to be silent before another takes over (the design's "200 ms").
const SILENCE: Duration = ms(200);
/// How far the clock of arrival times and this program's may be apart.
const CLOCKS: Duration = ms(1);

/// What was done to a run of packets on its way, and what has to become of it.
struct Journey {
    /// In order of arrival.
    arrivals: Vec<u16>,
    marks: Vec<Mark>,
    lost: u64,
    copies: u64,
    reordered: u64,
}

impl Journey {
    /// `count` packets from `first` on: 5 in 100 lost, 5 in 100 twice, each copy up to `shift`
    /// places late.
    fn new(first: u16, count: usize, shift: u64, dice: &mut Dice) -> Self {
        let mut copies: Vec<(u64, usize)> = Vec::new();
        let mut lost = HashSet::new();
        for at in 0..count {
            // The first and the last come, so that it is known what is missing.
            let edge = at == 0 || at == count - 1;
            if !edge && dice.chance(5) {
                lost.insert(at);
                continue;
            }
            let times = if dice.chance(5) { 2 } else { 1 };
            for _ in 0..times {
                let late = if edge { 0 } else { dice.below(shift) };
                copies.push((at as u64 + late, at));
            }
        }
        copies.sort();
        // The very first to arrive is the first: what is before it would not belong to the stream.
        let (mut seen, mut highest, mut reordered) = (HashSet::new(), 0, 0);
        for (_, at) in &copies {
            if seen.insert(*at) {
                reordered += u64::from(*at < highest);
                highest = highest.max(*at);
            }
        }
        let number = |at: usize| first.wrapping_add(at as u16);
        Self {
            arrivals: copies.iter().map(|(_, at)| number(*at)).collect(),
            marks: (0..count)
                .map(
                    |at| {
                        if lost.contains(&at) { Mark::Gap(number(at)) } else { Mark::P(number(at)) }
                    },
                )
                .collect(),
            lost: lost.len() as u64,
            copies: (copies.len() - seen.len()) as u64,
            reordered,
        }
    }
}

pub(crate) fn loss_duplication_and_reordering_against_an_oracle(h: &Harness) {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        // Across the end of the sequence numbers.
        let journey = Journey::new(64_000, 4_000, 60, &mut dice);
        let mut rig = h.rig(|builder| builder.ordered(FOR_EVER));
        let sender = rig.sender();
        let mut heard = rig.relay(&sender, journey.arrivals.iter().copied());
        let (rest, last) = rig.finish();
        heard.extend(rest);
        assert_heard(&heard, journey.marks);
        let counters = last.counters;
        assert_eq!(counters.received, journey.arrivals.len() as u64, "seed {seed}");
        assert_eq!((counters.duplicate, counters.late), (journey.copies, 0), "seed {seed}");
        assert_eq!((counters.expected, counters.lost), (4_000, journey.lost), "seed {seed}");
        assert_eq!(counters.unique, 4_000 - journey.lost, "seed {seed}");
        assert_eq!(counters.gap_positions, journey.lost, "seed {seed}");
        assert_eq!(counters.reordered, journey.reordered, "seed {seed}");
        assert_eq!((counters.restarts, counters.epochs), (0, 1), "seed {seed}");
    }
}

pub(crate) fn a_gap_is_published_at_its_deadline_though_nothing_more_arrives(h: &Harness) {
    let reorder = ms(60);
    let mut rig = h.rig(|builder| builder.ordered(reorder));
    let sender = rig.sender();
    sender.send(1);
    assert_heard(&rig.hear(1), all([1]));
    let before = Instant::now();
    sender.send_all([3, 4, 7]);
    let heard = rig.hear(3);
    let after = before.elapsed();
    assert!(after >= reorder - CLOCKS, "after {after:?} already");
    assert_heard(
        &heard,
        [Mark::Gap(2), Mark::P(3), Mark::P(4), Mark::Gap(5), Mark::Gap(6), Mark::P(7)],
    );
    let counters = rig.counters();
    assert_eq!((counters.gap_positions, counters.lost, counters.staged), (3, 3, 0));
}

pub(crate) fn a_late_packet_is_counted_and_not_delivered(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let sender = rig.sender();
    sender.send_all([1, 3]);
    assert_heard(&rig.hear(2), [Mark::P(1), Mark::Gap(2), Mark::P(3)]);
    // Late, late again, and one from before the stream's first.
    sender.send_all([2, 2, 0]);
    sender.send(4);
    assert_heard(&rig.hear(1), all([4]));
    let counters = rig.counters();
    assert_eq!(counters.received, 6);
    assert_eq!(counters.late + counters.duplicate, 3);
    assert!(counters.late >= 2, "{counters:?}");
    assert_eq!((counters.published, counters.lost), (3, 0), "it came, if late");
}

pub(crate) fn a_second_copy_is_counted_and_not_delivered(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(FOR_EVER));
    // Copies of what is published, of what waits, and of the latest.
    rig.sender().send_all([1, 2, 1, 2, 4, 5, 4, 5, 5, 3, 3, 6]);
    assert_heard(&rig.hear(6), all(1..7));
    let counters = rig.counters();
    assert_eq!((counters.duplicate, counters.late, counters.unique), (6, 0, 6));
}

pub(crate) fn an_outage_wider_than_the_window_is_one_discontinuity(h: &Harness) {
    // 16 positions, of which half is the window.
    let mut rig = h.rig(|builder| builder.ordered(FOR_EVER).ring_order(4));
    let sender = rig.sender();
    sender.send_all([65_530, 65_531]);
    assert_heard(&rig.hear(2), all([65_530, 65_531]));
    sender.send_all([2_000, 2_001]);
    assert_heard(
        &rig.hear(2),
        [Mark::Break(2_004, Cause::Sequence), Mark::P(2_000), Mark::P(2_001)],
    );
    let counters = rig.counters();
    assert_eq!((counters.expected, counters.unique, counters.lost), (2_008, 4, 2_004));
    assert_eq!((counters.gap_positions, counters.restarts, counters.epochs), (0, 0, 2));
}

pub(crate) fn a_restart_begins_an_epoch(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let sender = rig.sender();
    let heard = rig.relay(&sender, 1..20);
    assert_heard(&heard, all(1..20));
    let before = extended(&heard);
    // Elsewhere in the sequence, with timestamps that have nothing to do with the time that passed.
    let sender = sender.ticks(999_999_937);
    sender.send_all(30_000..30_010);
    let heard = rig.hear(10);
    assert!(matches!(heard[0], Heard::Discontinuity { cause: Cause::Sequence, .. }), "{heard:?}");
    assert_heard(&heard[1..], all(30_000..30_010));
    assert!(extended(&heard) > before, "extended numbers never go back");
    let counters = rig.counters();
    assert_eq!((counters.restarts, counters.epochs), (1, 2));
    assert_eq!((counters.expected, counters.unique, counters.lost), (29, 29, 0));
}

/// The highest extended sequence number.
fn extended(heard: &[Heard]) -> u64 {
    heard::packets(heard).map(|packet| packet.sequence).max().expect("packets")
}

pub(crate) fn a_stray_packet_is_no_restart(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let sender = rig.sender();
    sender.send_all(1..10);
    let mut stray = sender.packet(40_000);
    stray.timestamp = 0x8888_8888;
    sender.datagram(&stray.bytes());
    sender.send_all(10..20);
    assert_heard(&rig.hear(19), all(1..20));
    let (rest, last) = rig.finish();
    assert_eq!(rest, []);
    let counters = last.counters;
    assert_eq!((counters.restarts, counters.epochs, counters.dropped_invalid), (0, 1, 1));
    assert_eq!((counters.unique, counters.lost), (19, 0));
}

/// Strict alternation: the other source never sends two packets in sequence without one of the
/// followed source between.
pub(crate) fn one_source_is_followed_and_others_are_filtered(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let followed = rig.sender().ssrc(1);
    let other = rig.sender().ssrc(2);
    let same_ssrc = rig.sender().ssrc(1);
    let mut heard = Vec::new();
    for sequence in 0..100 {
        followed.send(2 * sequence);
        other.send(sequence);
        followed.send(2 * sequence + 1);
        same_ssrc.send(sequence);
        heard.extend(rig.hear_present());
    }
    let (rest, last) = rig.finish();
    heard.extend(rest);
    assert_heard(&heard, all(0..200));
    assert_eq!((last.counters.dropped_filtered, last.counters.published), (200, 200));
    assert_eq!((last.counters.unique, last.counters.lost, last.counters.epochs), (200, 0, 1));
}

pub(crate) fn another_source_takes_over_after_silence(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let followed = rig.sender().ssrc(1);
    followed.send_all(1..5);
    assert_heard(&rig.hear(4), all(1..5));
    let last_heard = Instant::now();
    followed.send(5);
    assert_heard(&rig.hear(1), all([5]));
    let successor = rig.sender().ssrc(2);
    successor.send_all(700..710);
    let heard = rig.hear(10);
    let after = last_heard.elapsed();
    assert!(after >= SILENCE - CLOCKS, "after {after:?} already");
    assert_takes_over(&heard, 2, 700..710);
    let counters = rig.counters();
    assert_eq!((counters.epochs, counters.restarts, counters.dropped_filtered), (2, 0, 0));
    assert_eq!((counters.unique, counters.lost), (15, 0));
    // The roles have changed.
    followed.send(6);
    successor.send(710);
    assert_heard(&rig.hear(1), all([710]));
    let counters = rig.counters();
    assert_eq!(counters.dropped_filtered, 1);
}

/// The new source's packets follow a discontinuity, from the first it sent.
#[track_caller]
fn assert_takes_over(heard: &[Heard], ssrc: u32, sequences: impl IntoIterator<Item = u16>) {
    assert!(
        matches!(heard.first(), Some(Heard::Discontinuity { cause: Cause::Sequence, .. })),
        "{}",
        heard::outline_text(heard)
    );
    assert_heard(&heard[1..], all(sequences));
    assert!(heard::packets(heard).all(|packet| packet.ssrc == ssrc));
}

/// RTCP BYE (RFC 3550 section 6.6) behind an empty receiver report.
pub(crate) fn bye(ssrc: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, 201, 0, 1];
    bytes.extend(ssrc.to_be_bytes());
    bytes.extend([0x81, 203, 0, 1]);
    bytes.extend(ssrc.to_be_bytes());
    bytes
}

pub(crate) fn another_source_takes_over_at_once_after_bye_on_the_port_above(h: &Harness) {
    let rig = h.rig_with_rtcp(|builder| builder.ordered(ms(20)));
    let mut rtcp = rig.line.address(0);
    rtcp.set_port(rtcp.port() + 1);
    let rtcp = rig.line.sender_from(rtcp.ip(), rtcp);
    takes_over_at_once(rig, &rtcp);
}

pub(crate) fn another_source_takes_over_at_once_after_bye_on_the_same_port(h: &Harness) {
    let rig = h.rig(|builder| builder.ordered(ms(20)));
    let rtcp = rig.sender();
    takes_over_at_once(rig, &rtcp);
}

/// A single packet of another source is no reason to follow it, however long the silence: that it is
/// delivered is the BYE's doing.
fn takes_over_at_once(mut rig: Rig, rtcp: &Sender) {
    rig.sender().ssrc(1).send_all(1..5);
    assert_heard(&rig.hear(4), all(1..5));
    rtcp.datagram(&bye(9));
    rtcp.datagram(&bye(1));
    rig.line.settle();
    rig.sender().ssrc(2).send(700);
    assert_takes_over(&rig.hear(1), 2, [700]);
    let counters = rig.counters();
    assert_eq!((counters.passed_rtcp, counters.epochs), (2, 2));
    assert_eq!((counters.unique, counters.lost), (5, 0));
}

/// A BYE that was somebody else's doing, or overtaken by a source that goes on.
pub(crate) fn a_source_that_goes_on_after_its_bye_stays_followed(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let followed = rig.sender().ssrc(1);
    followed.send_all(1..5);
    rig.sender().datagram(&bye(1));
    assert_heard(&rig.hear(4), all(1..5));
    // The time is the stimulus: for longer than a source may be silent it goes on.
    std::thread::sleep(SILENCE + ms(10));
    followed.send_all(5..10);
    rig.line.settle();
    rig.sender().ssrc(2).send(700);
    followed.send_all(10..15);
    assert_heard(&rig.hear(10), all(5..15));
    let counters = rig.counters();
    assert_eq!((counters.dropped_filtered, counters.epochs), (1, 1));
}

pub(crate) fn ssrc_0_is_followed(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(20)));
    let (followed, other) = (rig.sender().ssrc(0), rig.sender().ssrc(5));
    for sequence in 1..10 {
        followed.send(sequence);
        other.send(sequence);
    }
    let heard = rig.hear(9);
    assert_heard(&heard, all(1..10));
    assert!(heard::packets(&heard).all(|packet| packet.ssrc == 0));
}

pub(crate) fn reordering_time_changes_while_running(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(FOR_EVER));
    let sender = rig.sender();
    rig.rx.set_reorder(ms(20)).unwrap_or_else(|error| panic!("{error}"));
    sender.send_all([1, 3]);
    assert_heard(&rig.hear(2), [Mark::P(1), Mark::Gap(2), Mark::P(3)]);
    let error = rig.rx.set_reorder(Duration::from_secs(61)).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("60 s"), "{error}");
    let mut unordered = h.rig(|builder| builder);
    let error = unordered.rx.set_reorder(ms(20)).unwrap_err();
    assert!(error.is_usage(), "{error}");
}

/// What came in time is delivered, however late the engine comes to look at it: the owner's process
/// is stopped over the deadline, with the missing packet behind more than the engine takes at a time.
pub(crate) fn a_stalled_engine_gives_up_nothing_that_came_in_time(
    h: &Harness,
) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    // Long enough for this process to send within it, on whatever machine.
    let reorder = ms(1_500);
    let (mut owner, address) = Remote::owner(h, &unique_name("stalls"), Some(reorder));
    let sender = Sender::unattended(address).payload_len(4);
    sender.send_all([1, 3]);
    wait::until(
        || "two packets received".to_owned(),
        || owner.ask("counters").get::<u64>("received") == 2,
    );
    let gap_opened = Instant::now();
    owner.signal(Signal::STOP);
    sender.send_all(4..1_500);
    sender.send(2);
    if gap_opened.elapsed() > reorder / 2 {
        owner.signal(Signal::CONT);
        return Err(NotRun::because("this machine is too slow to send within the reorder time"));
    }
    std::thread::sleep((gap_opened + reorder + ms(100)).duration_since(Instant::now()));
    owner.signal(Signal::CONT);
    let heard = owner.ask("read 100");
    let counters = owner.ask("counters");
    if counters.get::<u64>("external_drops") > 0 {
        return Err(NotRun::because("the socket buffer does not hold 1,500 packets"));
    }
    assert_eq!((heard.get::<u64>("gaps"), counters.get::<u64>("late")), (0, 0), "{heard:?}");
    Ok(())
}

pub(crate) fn positions_wrap(h: &Harness) {
    let start = u64::MAX - 500;
    let mut dice = Dice::new(77);
    let journey = Journey::new(65_000, 2_000, 20, &mut dice);
    let mut rig = h.rig(|builder| builder.ordered(FOR_EVER).ring_order(8).start_position(start));
    let sender = rig.sender();
    let mut heard = rig.relay(&sender, journey.arrivals.iter().copied());
    let (rest, last) = rig.finish();
    heard.extend(rest);
    assert_heard(&heard, journey.marks);
    assert_eq!(last.counters.lost, journey.lost);
    assert_eq!(last.head, start.wrapping_add(2_000));
}
