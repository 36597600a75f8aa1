//! Transmit streams: what is committed leaves once, in order, when it is due.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rtp_mgr::net::DATAGRAM_MAX;
use rtp_mgr::rtcp::Compound;
use rtp_mgr::{Context, Direction, Error, Kind, Leg, PacketRate, State, Transmitter, clock};

use crate::harness::{Harness, Need, NotRun, ms, wait_for};
use crate::heard::{self, run};
use crate::wait::LONG;
use crate::wire::{HEADER, Rtp, payload};

/// How far clocks that count the same time may be apart over a second: one is disciplined, the other
/// is not.
const CLOCKS: Duration = ms(1);

/// An ordinary socket that catches what is sent to it.
pub(super) struct Catcher(UdpSocket);

impl Catcher {
    pub(super) fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(LONG)).expect("a timeout");
        Self(socket)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket")
    }

    #[track_caller]
    pub(super) fn next(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        match self.0.recv(&mut buffer) {
            Ok(len) => buffer[..len].to_vec(),
            Err(error) => panic!("nothing arrived: {error}"),
        }
    }

    #[track_caller]
    pub(super) fn catch(&self, packets: usize) -> Vec<Vec<u8>> {
        (0..packets).map(|_| self.next()).collect()
    }

    /// Nothing is there. What was sent over the loopback interface before something that has
    /// arrived is there or was lost.
    #[track_caller]
    fn assert_empty(&self) {
        self.0.set_nonblocking(true).expect("a socket option");
        let result = self.0.recv(&mut [0; 16]);
        self.0.set_nonblocking(false).expect("a socket option");
        assert!(result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    }
}

/// The RTP timestamp that [`post`] gives a packet.
pub(super) fn timestamp_of(sequence: u16) -> u32 {
    u32::from(sequence) * 90
}

/// The packet that [`post`] sends with a sequence number.
fn packet(tx: &Transmitter, sequence: u16, payload_len: usize) -> Vec<u8> {
    let timestamp = timestamp_of(sequence);
    let (ssrc, payload_type) = (tx.ssrc(), 96);
    Rtp { ssrc, payload_type, sequence, timestamp, marker: false, payload_len }.bytes()
}

/// Commits a packet for each of these payload lengths, waiting for room as long as it takes.
#[track_caller]
pub(super) fn post(tx: &mut Transmitter, payload_lens: &[usize]) {
    let mut lens = payload_lens;
    let deadline = Instant::now() + LONG;
    while !lens.is_empty() {
        assert!(Instant::now() < deadline, "{} packets find no room", lens.len());
        let posted = post_some(tx, lens, LONG);
        lens = &lens[posted..];
    }
}

/// Commits as many of `count` packets as there is room for.
#[track_caller]
pub(super) fn post_what_fits(tx: &mut Transmitter, count: usize, payload_len: usize) -> usize {
    post_some(tx, &vec![payload_len; count], ms(5))
}

#[track_caller]
fn post_some(tx: &mut Transmitter, lens: &[usize], timeout: Duration) -> usize {
    let (ssrc, first) = (tx.ssrc(), tx.next_sequence());
    let mut slots = tx.reserve(lens.len(), timeout).unwrap_or_else(|error| panic!("{error}"));
    let count = slots.len();
    for (index, sequence) in run(first, count).enumerate() {
        let mut slot = slots.get(index).expect("one of them");
        let bytes = payload(ssrc, sequence, lens[index]);
        slot.rtp(false, timestamp_of(sequence))[..bytes.len()].copy_from_slice(&bytes);
        slot.set_payload_len(bytes.len()).unwrap_or_else(|error| panic!("{error}"));
    }
    slots.commit(count).unwrap_or_else(|error| panic!("{error}"));
    count
}

#[track_caller]
fn flush(tx: &mut Transmitter) {
    let flushed = tx.flush(LONG).unwrap_or_else(|error| panic!("{error}"));
    assert!(flushed, "not within {LONG:?}: {:?}", tx.stats().counters());
}

fn rate(packets: u64, seconds: u64) -> PacketRate {
    PacketRate::new(packets, seconds).expect("a rate")
}

pub(crate) fn every_packet_leaves_once_in_order(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.ring_order(5));
    assert_eq!(tx.engine(), h.kind());
    let lens: Vec<usize> = (0..3_000).map(|number| number * 37 % 1_400).collect();
    let mut sequence = tx.next_sequence();
    for piece in lens.chunks(40) {
        post(&mut tx, piece);
        flush(&mut tx);
        for (caught, len) in catcher.catch(piece.len()).iter().zip(piece) {
            assert_eq!(*caught, packet(&tx, sequence, *len));
            sequence = sequence.wrapping_add(1);
        }
    }
    let from = tx.local_addr(0);
    let snapshot = tx.close(LONG).unwrap_or_else(|error| panic!("{error}"));
    let counters = snapshot.counters;
    assert_eq!((counters.committed, counters.sent, counters.send_failed), (3_000, 3_000, 0));
    assert_eq!((counters.pending, counters.violations), (0, 0));
    assert_eq!(counters.sent_bytes, lens.iter().map(|len| len + HEADER).sum::<usize>() as u64);
    assert_eq!((snapshot.direction, snapshot.state), (Direction::Transmit, State::Stopped));
    assert!(from.is_some_and(|from| from.port() != 0));
    catcher.assert_empty();
    Ok(())
}

pub(crate) fn rtp_headers_continue_the_sequence(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| {
        builder.ssrc(0).payload_type(127).first_sequence(65_533)
    });
    assert_eq!((tx.ssrc(), tx.next_sequence()), (0, 65_533));
    let mut slots = tx.reserve(6, LONG).expect("the engine runs");
    for index in 0..6 {
        let mut slot = slots.get(index).expect("one of six");
        if index == 3 {
            // A packet with a header of its own does not take part in the numbering.
            slot.buffer()[..14].copy_from_slice(&[0x80; 14]);
            slot.set_len(14).expect("it fits");
        } else {
            slot.rtp(index % 2 == 0, u32::MAX - index as u32)[..1].fill(index as u8);
            slot.set_payload_len(1).expect("it fits");
        }
    }
    slots.commit(6).expect("all are filled");
    assert_eq!(tx.next_sequence(), 2);
    let caught = catcher.catch(6);
    let mut sequence = 65_533_u16;
    for (index, bytes) in caught.iter().enumerate() {
        if index == 3 {
            assert_eq!(*bytes, [0x80; 14]);
            continue;
        }
        let header = Rtp {
            ssrc: 0,
            payload_type: 127,
            sequence,
            timestamp: u32::MAX - index as u32,
            marker: index % 2 == 0,
            payload_len: 1,
        }
        .header();
        assert_eq!(*bytes, [&header[..], &[index as u8]].concat());
        sequence = sequence.wrapping_add(1);
    }
    Ok(())
}

pub(crate) fn packets_not_committed_leave_no_hole(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.first_sequence(10));
    let mut slots = tx.reserve(4, LONG).expect("the engine runs");
    for index in 0..4 {
        let mut slot = slots.get(index).expect("one of four");
        slot.rtp(false, 0);
        slot.set_payload_len(0).expect("nothing fits");
    }
    slots.commit(2).expect("two of four");
    {
        // Filled and given up.
        let mut slots = tx.reserve(1, LONG).expect("the engine runs");
        let mut slot = slots.get(0).expect("the only one");
        slot.rtp(false, 0);
        slot.set_payload_len(0).expect("nothing fits");
    }
    assert_eq!(tx.next_sequence(), 12);
    post(&mut tx, &[0, 0]);
    flush(&mut tx);
    let sequences: Vec<u16> =
        catcher.catch(4).iter().map(|bytes| u16::from_be_bytes([bytes[2], bytes[3]])).collect();
    assert_eq!(sequences, [10, 11, 12, 13]);
    assert_eq!(tx.stats().counters().committed, 4);
    Ok(())
}

/// Packet n of a run is due n intervals after the first, which is not due before it is committed.
/// That no packet is early holds on the busiest machine.
pub(crate) fn a_rate_is_never_exceeded(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    for (packets, seconds, count) in [(1_000, 1, 150), (30_000, 1_001, 8), (50_000, 1, 5_000)] {
        let mut rig = h.rig(|builder| builder.exact_times(true).ring_order(13));
        let to = rig.line.address(0);
        let mut tx = h.transmit(to, |builder| builder.rate(rate(packets, seconds)).ring_order(13));
        let start = clock::tai_ns();
        post(&mut tx, &vec![20; count]);
        flush(&mut tx);
        let heard = rig.hear(count);
        for (number, packet) in heard::packets(&heard).enumerate() {
            let due = number as u128 * 1_000_000_000 * u128::from(seconds) / u128::from(packets);
            let after = u128::from(packet.time_ns.saturating_sub(start));
            assert!(
                after + CLOCKS.as_nanos() >= due,
                "{packets}/{seconds} s: packet {number} after {after} ns, due after {due}"
            );
        }
        assert_eq!(tx.stats().counters().sent, count as u64);
    }
    Ok(())
}

pub(crate) fn launch_times_are_kept(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let mut rig = h.rig(|builder| builder.exact_times(true));
    let mut tx = h.transmit(rig.line.address(0), |builder| builder.first_sequence(0));
    let start = clock::tai_ns() + 30_000_000;
    // Of each three the first two are due at the same time; the last is not due before the others,
    // and some are due already.
    let due = |index: u64| start + index / 3 * 10_000_000 - (index % 5) / 4 * 40_000_000;
    let mut slots = tx.reserve(20, LONG).expect("the engine runs");
    assert_eq!(slots.len(), 20);
    for index in 0..20 {
        let mut slot = slots.get(index).expect("one of twenty");
        slot.rtp(false, 0);
        slot.set_payload_len(0).expect("nothing fits");
        slot.launch_at(due(index as u64));
    }
    slots.commit(20).expect("all are filled");
    flush(&mut tx);
    let heard = rig.hear(20);
    let times: Vec<u64> = heard::packets(&heard).map(|packet| packet.time_ns).collect();
    for (index, packet) in heard::packets(&heard).enumerate() {
        assert_eq!(packet.number(), index as u16, "they leave in the order of their slots");
        // Not before its own time, nor before that of any packet ahead of it.
        let due = (0..=index as u64).map(due).max().expect("its own");
        let after = times[index] + CLOCKS.as_nanos() as u64;
        assert!(after >= due, "packet {index} is {} ns early", due - after);
    }
    Ok(())
}

pub(crate) fn flush_waits_for_everything_sent(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.rate(rate(100, 1)));
    assert!(tx.flush(ms(0)).expect("the engine runs"), "nothing is to be waited for");
    post(&mut tx, &[10; 10]);
    let before = Instant::now();
    assert!(!tx.flush(ms(1)).expect("the engine runs"), "ten take 90 ms");
    assert!(before.elapsed() >= ms(1));
    flush(&mut tx);
    assert_eq!(tx.stats().counters().sent, 10);
    catcher.catch(10);
    Ok(())
}

pub(crate) fn close_gives_up_what_is_not_sent(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.rate(rate(1, 1_000)));
    post(&mut tx, &[10; 10]);
    // The first is due at once, the others not today.
    catcher.catch(1);
    let before = Instant::now();
    let last = tx.close(ms(20)).unwrap_or_else(|error| panic!("{error}"));
    assert!(before.elapsed() < LONG);
    super::books::assert_transmit_balanced(&last.counters);
    assert_eq!((last.counters.committed, last.counters.sent), (10, 1));
    assert_eq!((last.counters.send_failed, last.counters.pending), (9, 0));
    catcher.assert_empty();
    Ok(())
}

pub(crate) fn a_full_ring_waits_for_room(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.ring_order(4).rate(rate(50, 1)));
    assert_eq!(tx.slot_count(), 16);
    let free = tx.reserve(100, LONG).expect("the engine runs").len();
    assert_eq!(free, 16, "no more than the ring has");
    let mut sequence = tx.next_sequence();
    post(&mut tx, &[10; 16]);
    let before = Instant::now();
    // The next are due 20 ms apart.
    let free = tx.reserve(16, ms(0)).expect("the engine runs").len();
    let took = before.elapsed();
    assert!(free <= 1 + took.as_millis() as usize / 20 + 1, "{free} free slots after {took:?}");
    post(&mut tx, &[10; 16]);
    flush(&mut tx);
    for bytes in catcher.catch(32) {
        assert_eq!(bytes, packet(&tx, sequence, 10));
        sequence = sequence.wrapping_add(1);
    }
    Ok(())
}

pub(crate) fn the_descriptor_tells_of_room(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.ring_order(4).rate(rate(200, 1)));
    let mut sent = 0;
    while sent < 60 {
        let posted = post_some(&mut tx, &[10; 16], ms(0));
        sent += posted;
        if posted == 0 {
            assert!(super::waiting::readable(&tx, LONG), "no room after {sent} packets");
        }
    }
    flush(&mut tx);
    catcher.catch(sent);
    Ok(())
}

pub(crate) fn streams_of_one_context_do_not_block_one_another(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let context = Context::new(NonZeroUsize::MIN).unwrap_or_else(|error| panic!("{error}"));
    let catcher = Catcher::new();
    let open = |settings: fn(rtp_mgr::TransmitterBuilder) -> rtp_mgr::TransmitterBuilder| {
        h.transmit(catcher.address(), |builder| settings(builder.context(&context)))
    };
    let mut slow = open(|builder| builder.rate(PacketRate::new(1, 1_000).expect("a rate")));
    let mut later = open(|builder| builder);
    let mut fast = open(|builder| builder);
    post(&mut slow, &[10; 100]);
    let mut slots = later.reserve(1, LONG).expect("the engine runs");
    let mut slot = slots.get(0).expect("the only one");
    slot.rtp(false, 0);
    slot.set_payload_len(0).expect("nothing fits");
    slot.launch_at(clock::tai_ns() + 3_600_000_000_000);
    slots.commit(1).expect("it is filled");
    catcher.catch(1);
    for _ in 0..50 {
        post(&mut fast, &[10; 40]);
        flush(&mut fast);
        catcher.catch(40);
    }
    assert_eq!((slow.stats().counters().sent, slow.stats().counters().pending), (1, 99));
    assert_eq!((later.stats().counters().sent, later.stats().counters().pending), (0, 1));
    assert_eq!(fast.stats().counters().sent, 2_000);
    Ok(())
}

pub(crate) fn an_unreachable_destination_is_counted_and_never_in_the_way(
    h: &Harness,
) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    const CONNECTION_REFUSED: u64 = 111;
    let context = Context::new(NonZeroUsize::MIN).unwrap_or_else(|error| panic!("{error}"));
    let nobody = Catcher::new();
    let to = nobody.address();
    drop(nobody);
    let catcher = Catcher::new();
    let mut lost = h.transmit(to, |builder| builder.context(&context).ring_order(5));
    let mut good = h.transmit(catcher.address(), |builder| builder.context(&context));
    for _ in 0..20 {
        post(&mut lost, &[50; 40]);
        flush(&mut lost);
        post(&mut good, &[50; 40]);
        flush(&mut good);
        catcher.catch(40);
    }
    let counters = lost.stats().counters();
    super::books::assert_transmit_balanced(&counters);
    assert_eq!((counters.committed, counters.pending), (800, 0));
    assert_eq!(counters.send_errno, CONNECTION_REFUSED, "{counters:?}");
    assert_eq!((good.stats().counters().sent, good.stats().counters().send_errno), (800, 0));
    let last = lost.close(LONG).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(last.counters.committed, 800);
    Ok(())
}

pub(crate) fn two_legs_send_the_same_packets(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    for gso in [true, false] {
        let catchers = [Catcher::new(), Catcher::new()];
        let mut builder = h.transmitter().gso(gso);
        for catcher in &catchers {
            let to = catcher.address();
            builder = builder.leg(Leg::new(to.ip(), to.port()));
        }
        let mut tx = builder.open().unwrap_or_else(|error| panic!("{error}"));
        assert!(tx.local_addr(0).is_some() && tx.local_addr(1).is_some());
        for round in 0..20 {
            post(&mut tx, &[100 + round; 40]);
            flush(&mut tx);
            let [first, second] = [catchers[0].catch(40), catchers[1].catch(40)];
            assert_eq!(first, second);
        }
        let counters = tx.close(LONG).expect("the engine runs").counters;
        assert_eq!((counters.committed, counters.sent, counters.send_failed), (800, 800, 0));
    }
    Ok(())
}

pub(crate) fn one_leg_down_does_not_stop_the_other(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    for down in [0, 1] {
        let catcher = Catcher::new();
        let nobody = Catcher::new().address();
        let mut legs = [catcher.address(); 2];
        legs[down] = nobody;
        let mut builder = h.transmitter();
        for leg in legs {
            builder = builder.leg(Leg::new(leg.ip(), leg.port()));
        }
        let mut tx = builder.open().unwrap_or_else(|error| panic!("{error}"));
        let mut sequence = tx.next_sequence();
        for _ in 0..20 {
            post(&mut tx, &[100; 40]);
            flush(&mut tx);
            for bytes in catcher.catch(40) {
                assert_eq!(bytes, packet(&tx, sequence, 100));
                sequence = sequence.wrapping_add(1);
            }
        }
        let counters = tx.stats().counters();
        super::books::assert_transmit_balanced(&counters);
        assert_eq!((counters.sent, counters.send_failed), (800, 0), "one leg brings it: {down}");
    }
    Ok(())
}

/// A receive stream with RTCP stands for the other side: it tells what came on which port.
fn session(h: &Harness) -> (crate::harness::Rig, Transmitter) {
    let rig = h.rig_with_rtcp(|builder| builder);
    let tx = h.transmit(rig.line.address(0), |builder| {
        builder.rtcp(true).clock_rate(48_000).ssrc(77).cname("conformance@example")
    });
    (rig, tx)
}

/// Reports come every 5 seconds (or more often: RFC 3550 section 6.2 is met either way).
pub(crate) fn sender_reports_are_sent(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let (mut rig, mut tx) = session(h);
    let side = rig.rx.side_channel();
    post(&mut tx, &[100; 10]);
    flush(&mut tx);
    assert_eq!(heard::count(&rig.hear(10)), 10);
    let packet = side.recv(LONG).expect("a report");
    assert_eq!((packet.kind, packet.rtcp_port), (Kind::Rtcp, true));
    let compound = Compound::parse(&packet.bytes).expect("RTCP");
    let report = compound.senders.first().expect("a sender report");
    assert_eq!((report.ssrc, compound.malformed), (77, 0));
    assert_eq!((report.packets, report.octets), (10, 1_000));
    assert_eq!(compound.names, [(77, "conformance@example".to_owned())]);
    Ok(())
}

pub(crate) fn bye_is_sent_at_the_end(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    for closed in [true, false] {
        let (mut rig, mut tx) = session(h);
        let side = rig.rx.side_channel();
        post(&mut tx, &[100; 10]);
        flush(&mut tx);
        assert_eq!(heard::count(&rig.hear(10)), 10);
        if closed {
            tx.close(LONG).unwrap_or_else(|error| panic!("{error}"));
        } else {
            drop(tx);
        }
        let deadline = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < deadline, "no BYE (closed: {closed})");
            let Some(packet) = side.recv(ms(100)) else { continue };
            assert!(packet.rtcp_port);
            let compound = Compound::parse(&packet.bytes).expect("RTCP");
            if !compound.byes.is_empty() {
                assert_eq!(compound.byes, [77]);
                break;
            }
        }
    }
    Ok(())
}

pub(crate) fn lengths_that_do_not_fit_are_refused(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    for stride in [64, 1_500, 65_536] {
        let mut tx = h.transmit(catcher.address(), |builder| builder.slot_stride(stride));
        let most = (stride as usize).min(DATAGRAM_MAX);
        let mut slots = tx.reserve(3, LONG).expect("the engine runs");
        let mut slot = slots.get(0).expect("one of three");
        for len in [0, most + 1, usize::MAX] {
            let error = slot.set_len(len).unwrap_err();
            assert!(matches!(error, Error::PacketLength { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("length {len}")), "{text}");
            assert!(text.contains(&most.to_string()), "{text}");
        }
        slot.rtp(false, 0);
        for len in [most - HEADER + 1, usize::MAX] {
            let error = slot.set_payload_len(len).unwrap_err();
            assert!(matches!(error, Error::PacketLength { .. }), "{error}");
        }
        slot.set_payload_len(most - HEADER).expect("the longest packet");
        // The second has no packet, and there is no fourth.
        let error = slots.commit(2).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("slot 1"), "{error}");
        let slots = tx.reserve(3, LONG).expect("the engine runs");
        slots.commit(4).unwrap_err();
        let mut slots = tx.reserve(1, LONG).expect("the engine runs");
        slots.get(0).expect("the only one").set_len(most).expect("the longest packet");
        assert!(slots.get(1).is_none());
        slots.commit(1).expect("it is filled");
        flush(&mut tx);
        let counters = tx.stats().counters();
        assert_eq!((counters.committed, counters.sent), (1, 1), "slot stride {stride}");
        assert_eq!(catcher.next().len(), most);
    }
    Ok(())
}

pub(crate) fn positions_wrap(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| {
        builder.ring_order(5).start_position(u64::MAX - 70).first_sequence(0)
    });
    for first in (0..400).step_by(20) {
        post(&mut tx, &[30; 20]);
        flush(&mut tx);
        for (bytes, sequence) in catcher.catch(20).iter().zip(first..) {
            assert_eq!(*bytes, packet(&tx, sequence, 30));
        }
    }
    Ok(())
}

pub(crate) fn a_transmitter_dropped_ends(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Transmit)?;
    let catcher = Catcher::new();
    let mut tx = h.transmit(catcher.address(), |builder| builder.rate(rate(1, 1_000)));
    post(&mut tx, &[10; 10]);
    catcher.catch(1);
    let stats = tx.stats();
    let before = Instant::now();
    drop(tx);
    assert!(before.elapsed() < LONG);
    wait_for(&stats, "the end", |_| stats.snapshot().state == State::Stopped);
    let counters = stats.counters();
    assert_eq!((counters.committed, counters.sent, counters.pending), (10, 1, 0));
    Ok(())
}
