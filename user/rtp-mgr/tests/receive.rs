//! A receive stream over loopback, by its public API.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr::ring::abi::StreamCounters;
use rtp_mgr::ring::{header, pattern};
use rtp_mgr::{
    Cause, Context, Engine, Framing, Item, Kind, Leg, Mode, Receiver, ReceiverBuilder, SimConfig,
    State,
};

const LONG: Duration = Duration::from_secs(10);

fn leg() -> Leg {
    "127.0.0.1:0".parse().unwrap()
}

fn builder() -> ReceiverBuilder {
    Receiver::builder().engine(Engine::User).leg(leg()).announce(false)
}

fn sender(receiver: &Receiver) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(receiver.local_addr(0).unwrap()).unwrap();
    socket
}

fn packet(sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 12 + payload.len()];
    header::build(&mut packet, false, 96, sequence, u32::from(sequence) * 90, 0x1234).unwrap();
    packet[12..].copy_from_slice(payload);
    packet
}

fn balances(counters: &StreamCounters) -> bool {
    counters.received
        == counters.published
            + counters.dropped_ring_full
            + counters.dropped_oversize
            + counters.dropped_invalid
            + counters.dropped_filtered
            + counters.duplicate
            + counters.late
            + counters.staged
}

/// Waits for a condition with a deadline.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn packets_arrive_with_their_payload_in_order() {
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    for sequence in 0..500_u16 {
        tx.send(&packet(sequence, &sequence.to_be_bytes())).unwrap();
    }
    let mut next = 0_u16;
    while next < 500 {
        let batch = rx.read(LONG).unwrap().expect("running");
        assert!(!batch.is_empty(), "after {next}");
        for item in &batch {
            let Item::Packet(packet) = item else { panic!("{item:?}") };
            assert_eq!(packet.sequence_number(), next);
            assert_eq!(packet.payload(), next.to_be_bytes());
            assert_eq!(packet.ssrc(), 0x1234);
            next += 1;
        }
        batch.release();
    }
    let snapshot = rx.stats().snapshot();
    assert_eq!(snapshot.counters.published, 500);
    assert_eq!(snapshot.sources.len(), 1);
    let source = snapshot.source(0).unwrap();
    assert_eq!(source.from, Some(tx.local_addr().unwrap()));
    assert_eq!(source.to, rx.local_addr(0));
    assert!(balances(&snapshot.counters));
}

/// Packets one by one, from sequence number 0 on, so that the reader does the engine's work. Returns the
/// next number.
fn calm(rx: &mut Receiver, tx: &UdpSocket) -> u16 {
    (0..200).for_each(|sequence| read_one(rx, tx, sequence));
    200
}

/// One packet, read by a reader that waited for it.
fn read_one(rx: &mut Receiver, tx: &UdpSocket, sequence: u16) {
    tx.send(&packet(sequence, b"x")).unwrap();
    let batch = rx.read(LONG).unwrap().expect("running");
    assert_eq!(batch.len(), 1, "packet {sequence}");
}

#[test]
fn what_comes_while_the_reader_is_away_goes_into_the_ring() {
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    let stats = rx.stats();
    let next = calm(&mut rx, &tx);
    // Nobody reads: the engine's thread takes them.
    for sequence in next..next + 10 {
        tx.send(&packet(sequence, b"x")).unwrap();
    }
    wait_for("10 more published", || stats.counters().published == u64::from(next) + 10);
    let mut read = 0;
    while read < 10 {
        read += rx.read(LONG).unwrap().expect("running").len();
    }
    read_one(&mut rx, &tx, next + 10);
    assert!(balances(&stats.counters()));
}

#[test]
fn a_second_reader_gets_what_comes_while_the_first_waits() {
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    let next = calm(&mut rx, &tx);
    let mut second = rx.subscribe(Mode::Lossy).unwrap();
    for sequence in next..next + 50 {
        read_one(&mut rx, &tx, sequence);
        assert_eq!(second.read(LONG).unwrap().expect("running").len(), 1, "packet {sequence}");
    }
    drop(second);
    read_one(&mut rx, &tx, next + 50);
}

#[test]
fn after_an_empty_batch_the_streams_file_tells_of_the_next_packet() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    let first = calm(&mut rx, &tx);
    for sequence in (0..20).map(|at| first + 2 * at) {
        read_one(&mut rx, &tx, sequence);
        // By turns: its time runs out, or it does not wait at all.
        let empty = match sequence / 2 % 2 {
            0 => rx.read(Duration::from_millis(1)),
            _ => rx.try_read(),
        };
        assert!(empty.unwrap().expect("running").is_empty());
        tx.send(&packet(sequence + 1, b"x")).unwrap();
        let long = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&rx, PollFlags::IN)], Some(&long)).unwrap();
        assert_eq!(ready, 1, "packet {}", sequence + 1);
        assert_eq!(rx.try_read().unwrap().expect("running").len(), 1);
    }
}

#[test]
fn a_gap_is_given_up_in_time_while_the_reader_waits_for_it() {
    let mut rx = builder().ordered(Duration::from_millis(5)).open().unwrap();
    let tx = sender(&rx);
    let next = calm(&mut rx, &tx);
    for sequence in [next + 1, next + 3, next + 5] {
        tx.send(&packet(sequence, b"x")).unwrap();
        let mut positions = 0;
        while positions < 2 {
            positions += rx.read(LONG).unwrap().expect("running").len();
        }
    }
    let counters = rx.stats().counters();
    assert_eq!((counters.unique, counters.gap_positions), (u64::from(next) + 3, 3));
}

#[test]
fn time_runs_out_with_an_empty_batch_and_stop_ends_with_none() {
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    assert!(rx.read(Duration::ZERO).unwrap().expect("running").is_empty());
    tx.send(&packet(1, b"one")).unwrap();
    tx.send(&packet(2, b"two")).unwrap();
    rx.stop().unwrap();
    assert_eq!(rx.stats().state(), State::Stopped);
    let mut read = 0;
    while let Some(batch) = rx.read(LONG).unwrap() {
        assert!(!batch.is_empty());
        read += batch.len();
    }
    assert_eq!(read, 2, "what was in the socket was received");
    assert_eq!(rx.stats().snapshot().counters.published, 2);
    rx.stop().unwrap();
    assert!(rx.read(LONG).unwrap().is_none());
}

#[test]
fn a_missing_packet_becomes_a_gap_in_time_when_nothing_more_arrives() {
    let mut rx = builder().ordered(Duration::from_millis(5)).open().unwrap();
    let tx = sender(&rx);
    for sequence in [10, 11, 13] {
        tx.send(&packet(sequence, b"x")).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        for item in &rx.read(LONG).unwrap().unwrap() {
            seen.push(match item {
                Item::Packet(packet) => (packet.sequence_number(), true),
                Item::Gap(gap) => (gap.sequence() as u16, false),
                other => panic!("{other:?}"),
            });
        }
    }
    assert_eq!(seen, [(10, true), (11, true), (12, false), (13, true)]);
}

#[test]
fn a_full_ring_drops_the_newest_and_marks_the_place() {
    let mut rx = builder().ring_order(4).gro(false).open().unwrap();
    let tx = sender(&rx);
    for sequence in 0..20 {
        tx.send(&packet(sequence, b"x")).unwrap();
    }
    let stats = rx.stats();
    wait_for("20 received", || stats.counters().received == 20);
    let counters = stats.counters();
    assert_eq!((counters.published, counters.dropped_ring_full), (16, 4));
    assert!(balances(&counters));
    assert_eq!(rx.read(LONG).unwrap().unwrap().len(), 16);
    tx.send(&packet(20, b"x")).unwrap();
    let batch = rx.read(LONG).unwrap().unwrap();
    let items: Vec<_> = batch.iter().collect();
    let [Item::Discontinuity(missing), Item::Packet(packet)] = items[..] else {
        panic!("{items:?}")
    };
    assert_eq!((missing.cause(), missing.count()), (Cause::RingFull, 4));
    assert_eq!(packet.sequence_number(), 20);
}

#[test]
fn a_lossy_reader_learns_exactly_how_many_it_missed() {
    let mut rx = builder().ring_order(4).open().unwrap();
    let tx = sender(&rx);
    let mut lossy = rx.subscribe(Mode::Lossy).unwrap();
    for sequence in 0..100 {
        tx.send(&packet(sequence, &[sequence as u8; 200])).unwrap();
        assert_eq!(rx.read(LONG).unwrap().unwrap().len(), 1);
    }
    let batch = lossy.read(LONG).unwrap().unwrap();
    let mut items = batch.iter();
    let Some(Item::Discontinuity(missing)) = items.next() else { panic!() };
    assert_eq!((missing.cause(), missing.count()), (Cause::Lapped, 84));
    for (item, sequence) in items.zip(84..) {
        let Item::Packet(packet) = item else { panic!("{item:?}") };
        assert_eq!(packet.payload(), [sequence; 200]);
    }
    assert_eq!(batch.len(), 16);
    batch.release();
    assert_eq!(lossy.missed(), 84);
    assert!(lossy.read(Duration::ZERO).unwrap().unwrap().is_empty());
    assert_eq!(rx.stats().snapshot().readers.len(), 2);
    drop(lossy);
    assert_eq!(rx.stats().snapshot().readers.len(), 1);
}

#[test]
fn the_file_descriptor_becomes_readable_after_a_read_that_found_nothing() {
    let mut rx = builder().open().unwrap();
    let tx = sender(&rx);
    let readable = |rx: &Receiver, timeout: Duration| {
        let mut polled = [rustix::event::PollFd::new(rx, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(timeout).unwrap();
        rustix::event::poll(&mut polled, Some(&timeout)).unwrap() == 1
    };
    for sequence in 0..10 {
        assert!(rx.try_read().unwrap().unwrap().is_empty());
        assert!(!readable(&rx, Duration::ZERO));
        tx.send(&packet(sequence, b"x")).unwrap();
        assert!(readable(&rx, LONG));
        assert_eq!(rx.try_read().unwrap().unwrap().len(), 1);
    }
    rx.stop().unwrap();
    assert!(readable(&rx, Duration::ZERO));
    assert!(rx.try_read().unwrap().is_none());
    let _ = rx.as_fd();
}

#[test]
fn rtcp_on_both_ports_goes_to_the_side_channel() {
    let rx = builder().open().unwrap();
    let side = rx.side_channel();
    let tx = sender(&rx);
    let bye = [0x81, 203, 0, 1, 0, 0, 0x12, 0x34];
    tx.send(&bye).unwrap();
    let packet = side.recv(LONG).unwrap();
    assert_eq!((packet.kind, packet.rtcp_port, &packet.bytes[..]), (Kind::Rtcp, false, &bye[..]));
    assert_eq!(packet.from, tx.local_addr().unwrap());
    let mut above = rx.local_addr(0).unwrap();
    above.set_port(above.port() + 1);
    if rx.warnings().is_empty() {
        tx.send_to(&bye, above).unwrap();
        let packet = side.recv(LONG).unwrap();
        assert!(packet.rtcp_port);
    }
}

#[test]
fn many_streams_share_one_thread() {
    let context = Context::new(1.try_into().unwrap()).unwrap();
    let mut streams: Vec<Receiver> =
        (0..50).map(|_| builder().rtcp(false).context(&context).open().unwrap()).collect();
    drop(context);
    for (at, rx) in streams.iter().enumerate() {
        sender(rx).send(&packet(at as u16, b"x")).unwrap();
    }
    for (at, rx) in streams.iter_mut().enumerate() {
        let batch = rx.read(LONG).unwrap().unwrap();
        let Some(Item::Packet(packet)) = batch.iter().next() else { panic!() };
        assert_eq!(packet.sequence_number(), at as u16);
    }
}

#[test]
fn a_dropped_stream_gives_its_port_back() {
    let rx = builder().open().unwrap();
    let address = rx.local_addr(0).unwrap();
    let busy: Leg = address.to_string().parse().unwrap();
    assert!(builder().leg(busy.clone()).open().is_err());
    let again = Receiver::builder().engine(Engine::User).leg(busy).announce(false);
    assert!(again.clone().open().is_err(), "a unicast port has one owner");
    drop(rx);
    again.open().unwrap();
}

#[test]
fn positions_wrap() {
    let mut rx = builder().start_position(u64::MAX - 5).ring_order(4).open().unwrap();
    let mut lossy = rx.subscribe(Mode::Lossy).unwrap();
    let tx = sender(&rx);
    for sequence in 0..40 {
        tx.send(&packet(sequence, &[sequence as u8; 9])).unwrap();
        for batch in [rx.read(LONG).unwrap().unwrap(), lossy.read(LONG).unwrap().unwrap()] {
            let items: Vec<_> = batch.iter().collect();
            let [Item::Packet(packet)] = items[..] else { panic!("{sequence}: {items:?}") };
            assert_eq!(packet.payload(), [sequence as u8; 9]);
        }
    }
    assert_eq!(rx.stats().counters().published, 40);
    assert_eq!(lossy.missed(), 0);
}

#[test]
fn the_kernel_engine_is_refused_with_how_to_load_it_and_auto_says_why_not() {
    let refused = builder().engine(Engine::Kernel).open().unwrap_err().to_string();
    assert!(refused.contains("modprobe rtp_mgr"), "{refused}");
    let rx = builder().engine(Engine::Auto).open().unwrap();
    assert!(rx.engine_reason().contains("/dev/rtp_mgr"), "{}", rx.engine_reason());
}

#[test]
fn a_simulated_source_fills_the_ring_with_its_pattern() {
    for framing in [Framing::Raw, Framing::Rtp] {
        let sim =
            SimConfig { interval: Duration::from_millis(1), burst: 10, packet_len: 100, framing };
        let mut rx =
            Receiver::builder().simulated(sim).ring_order(16).announce(false).open().unwrap();
        let mut next = 0;
        while next < 500 {
            for item in &rx.read(LONG).unwrap().unwrap() {
                let Item::Packet(packet) = item else { panic!("{item:?}") };
                assert_eq!(pattern::check(packet.payload()), Some(next));
                assert_eq!(packet.raw(), framing == Framing::Raw);
                next += 1;
            }
        }
        let stats = rx.stats();
        wait_for("the bytes to be consumed", || stats.counters().bytes_consumed >= 50_000);
        wait_for("another burst", || stats.counters().bursts > 50);
        rx.stop().unwrap();
        while rx.read(LONG).unwrap().is_some() {}
        let counters = stats.counters();
        assert_eq!(counters.bytes_produced, counters.bursts * 1_000);
        assert_eq!(counters.bytes_consumed, counters.bytes_produced);
        assert_eq!(counters.bytes_overflowed, 0);
        assert!(balances(&counters));
    }
}

/// Packets one burst after the other, each sent when the one before was read, to a reader that does all that
/// changes who takes them from the socket. Nothing may be missing, out of order, or waited for in vain.
#[test]
fn hands_change_all_the_time_and_nothing_is_lost_or_slept_through() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const BURSTS: u64 = 3_000;
    let ten_seconds = Timespec { tv_sec: 10, tv_nsec: 0 };
    // Nobody is woken because something has waited for so long.
    let mut rx = builder().max_latency(LONG).open().unwrap();
    let tx = sender(&rx);
    let read = AtomicU64::new(0);
    let burst = |number: u64| 1 + number * 7 % 5;
    let total: u64 = (0..BURSTS).map(burst).sum();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0_u64;
            for number in 0..BURSTS {
                for _ in 0..burst(number) {
                    tx.send(&packet(sent as u16, &sent.to_be_bytes())).unwrap();
                    sent += 1;
                }
                wait_for("a burst read", || read.load(Ordering::Acquire) >= sent);
            }
        });
        let mut random = 1_u64;
        let mut next = 0_u64;
        let mut second = None;
        let mut by_file = false;
        while next < total {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let dice = random >> 33;
            if dice.is_multiple_of(64) {
                second = second.take().is_none().then(|| rx.subscribe(Mode::Lossy).unwrap());
            }
            if by_file {
                let mut files = [PollFd::new(&rx, PollFlags::IN)];
                assert_eq!(poll(&mut files, Some(&ten_seconds)).unwrap(), 1, "after {next}");
            }
            let micros = Duration::from_micros(dice / 512 % 1_024);
            let batch = match dice / 64 % 8 {
                0 => {
                    std::thread::sleep(micros);
                    rx.read(LONG)
                }
                1 => rx.read(micros / 8),
                2 | 3 => rx.try_read(),
                _ => rx.read(LONG),
            };
            let batch = batch.unwrap().expect("running");
            by_file = batch.is_empty() && dice.is_multiple_of(2);
            for item in &batch {
                let Item::Packet(packet) = item else { panic!("{item:?} after {next}") };
                assert_eq!(packet.payload(), next.to_be_bytes());
                next += 1;
            }
            batch.release();
            read.store(next, Ordering::Release);
        }
    });
    assert!(balances(&rx.stats().counters()));
    // What is slept through waits for up to half a second.
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
}
