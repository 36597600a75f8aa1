//! A transmit stream over loopback, by its public API.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr::clock;
use rtp_mgr::ring::abi::StreamCounters;
use rtp_mgr::ring::header;
use rtp_mgr::rtcp::Compound;
use rtp_mgr::{
    Engine, Error, Item, Leg, PacketRate, Receiver, State, Transmitter, TransmitterBuilder,
};

const LONG: Duration = Duration::from_secs(10);

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn leg(address: SocketAddr) -> Leg {
    Leg::new(address.ip(), address.port())
}

fn builder(to: &UdpSocket) -> TransmitterBuilder {
    Transmitter::builder()
        .engine(Engine::User)
        .leg(leg(to.local_addr().unwrap()))
        .rtcp(false)
        .announce(false)
}

fn balances(counters: &StreamCounters) -> bool {
    counters.committed == counters.sent + counters.send_failed + counters.pending
}

/// Sends packets with their index as payload.
fn send(tx: &mut Transmitter, count: usize, payload_len: usize) {
    let mut left = 0..count;
    while !left.is_empty() {
        let mut slots = tx.reserve(left.len(), LONG).unwrap();
        assert!(!slots.is_empty());
        let n = slots.len();
        for (mut slot, index) in slots.iter_mut().zip(left.by_ref()) {
            let payload = slot.rtp(false, index as u32 * 90);
            payload[..4].copy_from_slice(&(index as u32).to_be_bytes());
            payload[4..payload_len].fill(index as u8);
            slot.set_payload_len(payload_len).unwrap();
        }
        slots.commit(n).unwrap();
        left = count - left.len()..count;
    }
}

fn receive(from: &UdpSocket) -> Vec<u8> {
    let mut packet = vec![0; 65_536];
    let len = from.recv(&mut packet).unwrap();
    packet.truncate(len);
    packet
}

#[test]
fn packets_leave_in_order_with_consecutive_sequence_numbers() {
    let peer = socket();
    let mut tx = builder(&peer).ssrc(7).payload_type(33).first_sequence(65_500).open().unwrap();
    send(&mut tx, 100, 20);
    for index in 0..100_u32 {
        let packet = receive(&peer);
        let header = header::parse(&packet).unwrap();
        assert_eq!(header.sequence, 65_500_u16.wrapping_add(index as u16));
        assert_eq!((header.ssrc, header.payload_type, header.timestamp), (7, 33, index * 90));
        assert_eq!(packet.len(), 32);
        assert_eq!(packet[12..16], index.to_be_bytes());
    }
    assert!(tx.flush(LONG).unwrap());
    assert_eq!(tx.next_sequence(), 65_500_u16.wrapping_add(100));
    let last = tx.close(LONG).unwrap();
    assert_eq!(last.state, State::Stopped);
    let counters = last.counters;
    assert_eq!((counters.committed, counters.sent, counters.pending), (100, 100, 0));
    assert_eq!(counters.sent_bytes, 3_200);
    assert_eq!(last.legs[0].received, 100);
}

#[test]
fn equal_neighbours_go_together_and_arrive_apart() {
    let peer = socket();
    let mut tx = builder(&peer).open().unwrap();
    send(&mut tx, 64, 1_000);
    (0..64).for_each(|_| assert_eq!(receive(&peer).len(), 1_012));
    let counters = tx.close(LONG).unwrap().counters;
    assert!(counters.coalesced >= 32, "{counters:?}");
    assert!(counters.socket_calls < 32, "{counters:?}");

    let mut tx = builder(&peer).gso(false).open().unwrap();
    send(&mut tx, 64, 1_000);
    (0..64).for_each(|_| assert_eq!(receive(&peer).len(), 1_012));
    assert_eq!(tx.close(LONG).unwrap().counters.coalesced, 0);
}

#[test]
fn a_rate_is_kept_and_what_was_committed_is_counted() {
    let peer = socket();
    let mut tx = builder(&peer).rate(PacketRate::new(1_000, 1).unwrap()).open().unwrap();
    let begun = Instant::now();
    send(&mut tx, 101, 20);
    let mut arrivals = Vec::new();
    for _ in 0..101 {
        receive(&peer);
        arrivals.push(begun.elapsed());
    }
    // The first goes at once, the last 100 intervals of 1 ms after it.
    let took = arrivals[100] - arrivals[0].min(Duration::from_millis(50));
    assert!(arrivals[100] >= Duration::from_millis(100), "{took:?}");
    for (index, arrival) in arrivals.iter().enumerate() {
        assert!(*arrival >= Duration::from_millis(index as u64), "{index} at {arrival:?}");
    }
    let counters = tx.close(LONG).unwrap().counters;
    assert_eq!((counters.committed, counters.sent), (101, 101));
}

#[test]
fn a_packet_does_not_leave_before_its_launch_time() {
    let peer = socket();
    let mut tx = builder(&peer).open().unwrap();
    let launch = clock::tai_ns() + 50_000_000;
    let mut slots = tx.reserve(2, LONG).unwrap();
    for (mut slot, delay) in slots.iter_mut().zip([0, 30_000_000]) {
        slot.rtp(false, 0);
        slot.set_payload_len(8).unwrap();
        slot.launch_at(launch + delay);
    }
    slots.commit(2).unwrap();
    for delay in [0, 30_000_000] {
        receive(&peer);
        assert!(clock::tai_ns() >= launch + delay);
    }
}

#[test]
fn nobody_listening_is_counted_and_sending_goes_on() {
    let peer = socket();
    let mut tx = builder(&peer).open().unwrap();
    drop(peer);
    for _ in 0..20 {
        send(&mut tx, 50, 20);
        assert!(tx.flush(LONG).unwrap());
    }
    let counters = tx.close(LONG).unwrap().counters;
    assert_eq!(counters.committed, 1_000);
    assert_eq!(counters.sent + counters.send_failed, 1_000);
    assert!(counters.external_drops > 0, "ICMP: {counters:?}");
    assert_eq!(counters.send_errno, rustix::io::Errno::CONNREFUSED.raw_os_error() as u64);
}

#[test]
fn a_packet_too_long_for_the_path_fails_and_the_others_go() {
    let peer = socket();
    let mut tx = builder(&peer).slot_stride(65_536).ring_order(4).open().unwrap();
    let mut slots = tx.reserve(3, LONG).unwrap();
    assert!(matches!(slots.get(0).unwrap().set_len(65_508), Err(Error::PacketLength { .. })));
    assert!(matches!(slots.get(0).unwrap().set_len(11), Err(Error::PacketLength { .. })));
    for (mut slot, len) in slots.iter_mut().zip([100, 65_507, 200]) {
        slot.rtp(false, 0);
        slot.set_payload_len(len - 12).unwrap();
    }
    slots.commit(3).unwrap();
    for len in [100, 65_507, 200] {
        assert_eq!(receive(&peer).len(), len);
    }
    assert_eq!(tx.close(LONG).unwrap().counters.sent, 3);
}

#[test]
fn what_is_not_filled_is_not_committed() {
    let peer = socket();
    let mut tx = builder(&peer).open().unwrap();
    let mut slots = tx.reserve(2, LONG).unwrap();
    slots.get(0).unwrap().rtp(false, 0);
    slots.get(0).unwrap().set_payload_len(1).unwrap();
    let refused = slots.commit(2).unwrap_err().to_string();
    assert!(refused.contains("slot 1"), "{refused}");
    assert!(tx.reserve(1, LONG).unwrap().commit(2).is_err());
    assert_eq!(tx.close(LONG).unwrap().counters.committed, 0);
}

#[test]
fn a_full_ring_makes_the_writer_wait_and_a_dropped_stream_gives_up_the_rest() {
    let peer = socket();
    let rate = PacketRate::new(1, 1_000).unwrap();
    let mut tx = builder(&peer).ring_order(4).rate(rate).open().unwrap();
    let stats = tx.stats();
    send(&mut tx, 16, 20);
    receive(&peer);
    send(&mut tx, 1, 20);
    assert!(tx.reserve(1, Duration::ZERO).unwrap().is_empty());
    assert!(!tx.flush(Duration::ZERO).unwrap());
    assert!(balances(&stats.counters()));
    drop(tx);
    let counters = stats.counters();
    assert_eq!((counters.committed, counters.sent, counters.send_failed), (17, 1, 16));
    assert_eq!((counters.pending, stats.state()), (0, State::Stopped));
}

#[test]
fn a_writer_that_is_faster_than_the_stream_waits_for_half_of_the_ring() {
    let peer = socket();
    let mut tx = builder(&peer).ring_order(8).open().unwrap();
    let mut waits = 0;
    for _ in 0..1_000 {
        let start = Instant::now();
        let mut slots = tx.reserve(256, LONG).unwrap();
        // Who saw a full ring got half of it, or waited long enough for it.
        let n = slots.len();
        assert!(n > 0);
        if n < 128 && start.elapsed() >= Duration::from_millis(20) {
            waits += 1;
        }
        slots.iter_mut().for_each(|mut slot| slot.set_payload_len(100).unwrap());
        slots.commit(n).unwrap();
    }
    assert!(tx.flush(LONG).unwrap());
    let wakeups = tx.stats().counters().wakeups;
    // Each wake-up was for half of the ring, or came after a wait that was too long, or from `flush`.
    let committed = tx.stats().counters().committed;
    assert!(wakeups <= committed / 128 + waits + 1, "{wakeups} for {committed} in {waits}");
}

#[test]
fn a_slow_stream_gives_its_writer_the_first_position_that_is_free() {
    let peer = socket();
    // One packet in 300 ms: half of the ring would be 2.4 s.
    let rate = PacketRate::new(10, 3).unwrap();
    let mut tx = builder(&peer).ring_order(4).rate(rate).open().unwrap();
    send(&mut tx, 16, 20);
    receive(&peer);
    send(&mut tx, 1, 20);
    let start = Instant::now();
    let slots = tx.reserve(16, LONG).unwrap();
    assert!((1..8).contains(&slots.len()), "{}", slots.len());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn both_legs_get_every_packet_and_a_dead_one_does_not_hold_the_other() {
    let (one, two) = (socket(), socket());
    let second = leg(two.local_addr().unwrap());
    let mut tx = builder(&one).leg(second.clone()).open().unwrap();
    send(&mut tx, 100, 100);
    for peer in [&one, &two] {
        for index in 0..100_u32 {
            assert_eq!(receive(peer)[12..16], index.to_be_bytes());
        }
    }
    drop(two);
    for _ in 0..10 {
        send(&mut tx, 10, 100);
        assert!(tx.flush(LONG).unwrap());
    }
    (0..100).for_each(|_| drop(receive(&one)));
    let last = tx.close(LONG).unwrap();
    assert_eq!((last.counters.sent, last.counters.send_failed), (200, 0));
    assert_eq!(last.legs[0].received, 200);
    assert!(last.legs[1].external_drops > 0);
}

#[test]
fn reports_and_bye_go_to_the_port_above() {
    let (media, control) = loop {
        let media = socket();
        let mut above = media.local_addr().unwrap();
        above.set_port(above.port().wrapping_add(1));
        if let Ok(control) = UdpSocket::bind(above) {
            break (media, control);
        }
    };
    control.set_read_timeout(Some(LONG)).unwrap();
    let mut tx =
        builder(&media).rtcp(true).ssrc(0xfeed).clock_rate(90_000).cname("me@here").open().unwrap();
    send(&mut tx, 10, 20);
    let report = Compound::parse(&receive(&control)).unwrap();
    let sender = report.senders[0];
    assert_eq!(sender.ssrc, 0xfeed);
    assert!(sender.packets >= 1 && sender.octets == sender.packets * 20, "{sender:?}");
    assert_eq!(report.names, [(0xfeed, "me@here".to_owned())]);
    tx.close(LONG).unwrap();
    let bye = Compound::parse(&receive(&control)).unwrap();
    assert_eq!(bye.byes, [0xfeed]);
    assert_eq!((bye.senders[0].packets, bye.senders[0].octets), (10, 200));
}

#[test]
fn positions_wrap() {
    let peer = socket();
    let mut tx = builder(&peer).start_position(u64::MAX - 20).ring_order(4).open().unwrap();
    send(&mut tx, 100, 20);
    for index in 0..100_u32 {
        assert_eq!(receive(&peer)[12..16], index.to_be_bytes());
    }
    assert_eq!(tx.close(LONG).unwrap().counters.sent, 100);
}

/// Tells another thread of the end, however it comes.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn from_stream_to_stream_at_full_speed_the_books_balance_at_every_look() {
    let mut rx = Receiver::builder()
        .leg("127.0.0.1:0".parse().unwrap())
        .ordered(Duration::from_millis(50))
        .ring_order(14)
        .announce(false)
        .rtcp(false)
        .open()
        .unwrap();
    let to = leg(rx.local_addr(0).unwrap());
    let mut tx = Transmitter::builder().leg(to).rtcp(false).announce(false).open().unwrap();
    let (sent, received) = (tx.stats(), rx.stats());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        let looking = scope.spawn(|| {
            let mut looks = 0_u64;
            while !over.load(Ordering::Relaxed) && received.state() != State::Stopped {
                let r = received.counters();
                let dropped = r.dropped_ring_full
                    + r.dropped_oversize
                    + r.dropped_invalid
                    + r.dropped_filtered;
                let told = r.published + dropped + r.duplicate + r.late + r.staged;
                assert_eq!(r.received, told, "{r:?}");
                assert!(balances(&sent.counters()));
                looks += 1;
            }
            looks
        });
        scope.spawn(move || {
            send(&mut tx, 200_000, 1_000);
            assert_eq!(tx.close(LONG).unwrap().counters.sent, 200_000);
        });
        let mut packets = 0_u64;
        let mut next = Some(0);
        while next != Some(200_000) {
            let batch = rx.read(Duration::from_secs(2)).unwrap().unwrap();
            if batch.is_empty() {
                break;
            }
            for item in &batch {
                match item {
                    Item::Packet(packet) => {
                        let index = u32::from_be_bytes(packet.payload()[..4].try_into().unwrap());
                        // Of a loss of 65,536 and more its sequence numbers tell what is above that.
                        let unseen = index.wrapping_sub(next.unwrap_or(index));
                        assert_eq!(unseen % (1 << 16), 0, "{next:?}, then {index}");
                        assert!(next.is_none_or(|next| next <= index), "{next:?}, then {index}");
                        assert!(packet.payload()[4..].iter().all(|byte| *byte == index as u8));
                        next = Some(index + 1);
                        packets += 1;
                    }
                    Item::Gap(gap) => next = next.map(|next| next + gap.count()),
                    // Nobody knows how many packets a long outage cost.
                    Item::Discontinuity(_) => next = None,
                }
            }
        }
        rx.stop().unwrap();
        // What was in the socket when the time ran out.
        while let Some(batch) = rx.read(LONG).unwrap() {
            packets += batch.iter().filter(|item| matches!(item, Item::Packet(_))).count() as u64;
        }
        let counters = rx.stats().counters();
        assert_eq!(counters.published, packets);
        assert!(looking.join().unwrap() > 100);
    });
}
