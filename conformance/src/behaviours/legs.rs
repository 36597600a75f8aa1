//! Redundant streams (ST 2022-7): two legs, one sequence.

use std::time::Duration;

use crate::dice::Dice;
use crate::harness::{Harness, Rig, ms};
use crate::heard::{self, Heard, Mark, all, assert_heard, run};
use crate::wire::{Rtp, Sender};

/// Longer than any behaviour takes: what is missing is waited for.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Both legs' senders: one source, as ST 2022-7 has it.
fn senders(rig: &Rig) -> [Sender; 2] {
    [rig.line.sender(0), rig.line.sender(1)]
}

pub(crate) fn the_first_copy_wins_and_the_other_is_counted(h: &Harness) {
    const COUNT: u64 = 100;
    let lag = ms(3);
    let mut rig = h.redundant(|builder| builder.ordered(ms(20)));
    let legs = senders(&rig);
    let mut heard = Vec::new();
    for number in 0..COUNT {
        let first = usize::from(number >= COUNT / 2);
        legs[first].send(number as u16);
        rig.line.settle();
        if number % 10 == 9 {
            // The lag is the stimulus: it has to show as skew.
            std::thread::sleep(lag);
        }
        legs[1 - first].send(number as u16);
        heard.extend(rig.hear_present());
    }
    assert_heard(&heard, all(0..COUNT as u16));
    for (number, packet) in heard::packets(&heard).enumerate() {
        assert_eq!(usize::from(packet.leg), number / (COUNT as usize / 2), "packet {number}");
    }
    let counters = rig.counters();
    assert_eq!((counters.received, counters.duplicate), (2 * COUNT, COUNT));
    assert_eq!((counters.unique, counters.lost, counters.recovered), (COUNT, 0, 0));
    let snapshot = rig.rx.stats().snapshot();
    for leg in &snapshot.legs {
        assert_eq!((leg.received, leg.first, leg.duplicate), (COUNT, COUNT / 2, COUNT / 2));
        assert_eq!((leg.expected, leg.lost, leg.late), (COUNT, 0, 0));
        assert_eq!(leg.skew_count, COUNT / 2);
        let [least, greatest, last, sum] =
            [leg.skew_min_ns, leg.skew_max_ns, leg.skew_last_ns, leg.skew_sum_ns]
                .map(|skew| skew as i64);
        let lag_ns = lag.as_nanos() as i64;
        assert!(greatest >= lag_ns - 1_000_000 && last >= lag_ns - 1_000_000, "{leg:?}");
        assert!(least <= greatest && sum >= 5 * (lag_ns - 1_000_000), "{leg:?}");
    }
}

pub(crate) fn nothing_is_lost_while_either_leg_has_it(h: &Harness) {
    const COUNT: usize = 5_000;
    for seed in 0..3 {
        let mut dice = Dice::new(seed);
        let mut rig = h.redundant(|builder| builder.ordered(FOR_EVER));
        let legs = senders(&rig);
        // What each leg brings: everything is on one of them, the ends on both.
        let mut queues = [Vec::new(), Vec::new()];
        let mut alone = [0, 0];
        for (at, number) in run(65_000, COUNT).enumerate() {
            let both = at == 0 || at == COUNT - 1 || dice.chance(60);
            let leg = dice.below(2) as usize;
            queues[leg].push((at, number));
            if both {
                queues[1 - leg].push((at, number));
            } else {
                alone[leg] += 1;
            }
        }
        let received: [usize; 2] = [queues[0].len(), queues[1].len()];
        // Now one leg is ahead, now the other, by up to 200 packets.
        let mut queues = queues.map(|queue| queue.into_iter().peekable());
        let mut heard = Vec::new();
        let mut goal = 0;
        while queues.iter_mut().any(|queue| queue.peek().is_some()) {
            let leg = dice.below(2) as usize;
            goal += 40;
            for (leg, until) in [(leg, goal + 160), (1 - leg, goal)] {
                while let Some((_, number)) = queues[leg].next_if(|(at, _)| *at < until) {
                    legs[leg].send(number);
                }
            }
            heard.extend(rig.hear_present());
        }
        heard.extend(rig.hear_present());
        assert_heard(&heard, all(run(65_000, COUNT)));
        let counters = rig.counters();
        let copies = (received[0] + received[1] - COUNT) as u64;
        assert_eq!((counters.lost, counters.late, counters.duplicate), (0, 0, copies), "{seed}");
        assert_eq!(counters.recovered, alone[0] + alone[1], "seed {seed}");
        assert_eq!((counters.restarts, counters.epochs), (0, 1), "seed {seed}");
        let snapshot = rig.rx.stats().snapshot();
        for (leg, figures) in snapshot.legs.iter().enumerate() {
            assert_eq!(figures.received, received[leg] as u64, "seed {seed}");
            assert_eq!(figures.recovered, alone[leg], "seed {seed} leg {leg}");
            assert_eq!(figures.lost, alone[1 - leg], "seed {seed} leg {leg}");
            assert_eq!(figures.expected, COUNT as u64, "seed {seed}");
        }
    }
}

pub(crate) fn what_one_leg_alone_brings_is_marked(h: &Harness) {
    let mut rig = h.redundant(|builder| builder.ordered(FOR_EVER));
    let legs = senders(&rig);
    for (leg, numbers) in [(0, 1..3), (1, 1..3), (1, 4..6), (0, 3..6), (1, 6..8), (0, 8..9)] {
        legs[leg].send_all(numbers);
        rig.line.settle();
    }
    let heard = rig.hear(6);
    assert_heard(&heard[..5], all(1..6));
    // Leg 1 was past 3 when leg 0 brought it; leg 0 had not been past 6 and 7 when leg 1 did.
    let marked: Vec<u16> = heard::packets(&heard)
        .filter(|packet| packet.recovered)
        .map(heard::Packet::number)
        .collect();
    assert_eq!(marked, [3]);
    let counters = rig.counters();
    assert_eq!((counters.recovered, counters.lost), (3, 0));
    let snapshot = rig.rx.stats().snapshot();
    assert_eq!((snapshot.legs[0].recovered, snapshot.legs[1].recovered), (1, 2));
}

pub(crate) fn another_source_takes_over_on_both_legs(h: &Harness) {
    let mut rig = h.redundant(|builder| builder.ordered(ms(20)));
    let old = senders(&rig).map(|sender| sender.ssrc(1));
    for number in 1..51 {
        old.iter().for_each(|leg| leg.send(number));
    }
    assert_heard(&rig.hear(50), all(1..51));
    let new = senders(&rig).map(|sender| sender.ssrc(2));
    for number in 700..740 {
        new.iter().for_each(|leg| leg.send(number));
    }
    let mut heard = rig.hear(40);
    new[1].send_all(740..750);
    heard.extend(rig.hear(10));
    assert!(matches!(heard[0], Heard::Discontinuity { .. }), "{}", heard::outline_text(&heard));
    assert_heard(&heard[1..], all(700..750));
    assert!(heard::packets(&heard).all(|packet| packet.ssrc == 2));
    let counters = rig.counters();
    assert_eq!((counters.epochs, counters.restarts, counters.dropped_filtered), (2, 0, 0));
    assert_eq!((counters.unique, counters.lost, counters.duplicate), (100, 0, 90));
}

pub(crate) fn failover_in_both_directions_repeatedly(h: &Harness) {
    const PHASE: u16 = 60;
    let mut rig = h.redundant(|builder| builder.ordered(FOR_EVER));
    let legs = senders(&rig);
    let mut next = 65_000_u16;
    let mut heard = Vec::new();
    let phases = [[true, true], [true, false], [true, true], [false, true]];
    let cycles = 12;
    for phase in phases.iter().cycle().take(phases.len() * cycles).chain([&[true, true]]) {
        for number in run(next, PHASE.into()) {
            for (leg, up) in legs.iter().zip(phase) {
                if *up {
                    leg.send(number);
                }
            }
        }
        next = next.wrapping_add(PHASE);
        heard.extend(rig.hear_present());
    }
    let total = (phases.len() * cycles + 1) * usize::from(PHASE);
    assert_heard(&heard, all(run(65_000, total)));
    let counters = rig.counters();
    let alone = (cycles * usize::from(PHASE)) as u64;
    assert_eq!((counters.lost, counters.late), (0, 0));
    assert_eq!(counters.recovered, 2 * alone);
    assert_eq!((counters.restarts, counters.epochs), (0, 1));
    for leg in &rig.rx.stats().snapshot().legs {
        assert_eq!((leg.recovered, leg.lost), (alone, alone));
    }
}

/// One leg is away for longer than the ring, the window and MAX_DROPOUT (RFC 3550 A.1), with the
/// other all the time in sequence.
pub(crate) fn a_leg_comes_back_after_a_long_outage(h: &Harness) {
    let mut rig = h.redundant(|builder| builder.ordered(FOR_EVER).ring_order(8));
    let legs = senders(&rig);
    let mut next = 60_000_u16;
    let mut heard = Vec::new();
    let mut total = 0;
    for (away, packets) in [(None, 50), (Some(1), 4_000), (None, 50), (Some(0), 9_000), (None, 50)]
    {
        let numbers: Vec<u16> = run(next, packets).collect();
        for piece in numbers.chunks(32) {
            for (leg, sender) in legs.iter().enumerate() {
                if away != Some(leg) {
                    sender.send_all(piece.iter().copied());
                }
            }
            heard.extend(rig.hear_present());
        }
        next = next.wrapping_add(packets as u16);
        total += packets;
    }
    assert_heard(&heard, all(run(60_000, total)));
    let counters = rig.counters();
    assert_eq!((counters.lost, counters.unique), (0, total as u64));
    assert_eq!((counters.restarts, counters.epochs), (0, 1));
    assert_eq!(counters.recovered, 13_000);
}

/// At this rate 10 ms are 1,300 packets: more than MAX_MISORDER (RFC 3550 A.1), as 3,500 packets are
/// more than MAX_DROPOUT. Timestamps are those of the rate; the packets come as fast as they can,
/// which only makes the legs closer in time and as far apart in sequence. The leg ahead loses
/// packets, which the other has to bring.
pub(crate) fn legs_10_ms_apart_at_130000_packets_per_second(h: &Harness) {
    const RATE: u64 = 130_000;
    const CLOCK: u64 = 90_000;
    for (lag, count) in [(1_300, 80_000), (3_500, 20_000)] {
        let mut rig = h.redundant(|builder| {
            builder.ordered(FOR_EVER).clock_rate(96, CLOCK as u32).ring_order(13)
        });
        let legs = senders(&rig);
        let lost = |number: usize| number % 977 == 500;
        let packets = |sender: &Sender, numbers: std::ops::Range<usize>, all: bool| {
            numbers
                .filter(|number| all || !lost(*number))
                .map(|number| {
                    let timestamp = (number as u64 * CLOCK / RATE) as u32;
                    let sequence = (number as u16).wrapping_add(30_000);
                    Rtp { timestamp, ..sender.packet(sequence) }.bytes()
                })
                .collect::<Vec<_>>()
        };
        let mut heard = Vec::new();
        for start in (0..count + lag).step_by(64) {
            let ahead = start.min(count)..(start + 64).min(count);
            legs[0].train(&packets(&legs[0], ahead, false));
            let behind = start.saturating_sub(lag)..(start + 64).saturating_sub(lag).min(count);
            legs[1].train(&packets(&legs[1], behind, true));
            heard.extend(rig.hear_present());
        }
        heard.extend(rig.hear_present());
        assert_heard(&heard, all(run(30_000, count)));
        let missing = (0..count).filter(|number| lost(*number)).count() as u64;
        let counters = rig.counters();
        assert_eq!((counters.restarts, counters.epochs), (0, 1), "lag {lag}");
        assert_eq!((counters.lost, counters.late), (0, 0), "lag {lag}");
        assert_eq!(counters.duplicate, count as u64 - missing, "lag {lag}");
        assert_eq!(counters.recovered, missing, "lag {lag}");
        let snapshot = rig.rx.stats().snapshot();
        assert_eq!((snapshot.legs[0].lost, snapshot.legs[1].lost), (missing, 0), "lag {lag}");
    }
}

/// The leg ahead restarts while the other still brings the old sequence to its end.
pub(crate) fn a_restart_heard_on_both_legs_is_one(h: &Harness) {
    let mut rig = h.redundant(|builder| builder.ordered(FOR_EVER));
    let legs = senders(&rig).map(|sender| sender.ticks(999_999_937));
    for leg in &legs {
        leg.send_all(1..101);
    }
    assert_heard(&rig.hear_present(), all(1..101));
    legs[0].send_all(30_000..30_010);
    legs[1].send_all(101..111);
    let heard = rig.hear(10);
    assert_heard(&heard, all(101..111));
    assert_eq!(rig.counters().restarts, 0, "one leg is still in the old sequence");
    legs[1].send_all(30_000..30_010);
    legs[0].send_all(30_010..30_020);
    legs[1].send_all(30_010..30_020);
    let heard = rig.hear(20);
    assert!(matches!(heard[0], Heard::Discontinuity { .. }), "{}", heard::outline_text(&heard));
    assert_heard(&heard[1..], all(30_000..30_020));
    let counters = rig.counters();
    assert_eq!((counters.restarts, counters.epochs), (1, 2));
    assert_eq!((counters.unique, counters.lost), (130, 0));
    let (rest, _) = rig.finish();
    assert_heard(&rest, []);
}

pub(crate) fn a_leg_that_never_speaks_costs_nothing(h: &Harness) {
    for silent in [0, 1] {
        let mut rig = h.redundant(|builder| builder.ordered(ms(20)));
        let sender = rig.line.sender(1 - silent);
        sender.send_all([1, 2, 4]);
        assert_heard(&rig.hear(3), [Mark::P(1), Mark::P(2), Mark::Gap(3), Mark::P(4)]);
        let counters = rig.counters();
        assert_eq!((counters.received, counters.lost, counters.duplicate), (3, 1, 0));
        let snapshot = rig.rx.stats().snapshot();
        assert_eq!(snapshot.legs[silent].received, 0);
        assert_eq!(snapshot.legs[1 - silent].first, 3);
    }
}
