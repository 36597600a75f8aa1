//! Real datagrams over loopback: what is sent from slots arrives in slots, whatever the kernel
//! coalesces and however wrong the scatter list guessed.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::clock;
use crate::leg::Leg;
use crate::socket::{ReceiveOptions, ReceiveSocket, TransmitOptions, TransmitSocket};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A sender connected to a receiver.
struct Pair {
    from: TransmitSocket,
    to: ReceiveSocket,
}

impl Pair {
    fn open(gro: bool) -> Self {
        Self::open_with(LOCALHOST, LOCALHOST, &ReceiveOptions { gro, ..Default::default() })
    }

    fn open_with(bind: IpAddr, dst: IpAddr, options: &ReceiveOptions) -> Self {
        let to = ReceiveSocket::open(&Leg::new(bind, 0), options).unwrap();
        let leg = Leg::new(dst, to.local_addr().port());
        Self { from: TransmitSocket::open(&leg, &TransmitOptions::default()).unwrap(), to }
    }
}

/// Waits for something to read.
fn wait(socket: impl AsFd) {
    let time = Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 1, "nothing arrived");
}

/// A packet that can be told from every other: its number, then bytes that depend on number and
/// place.
fn pattern(number: u32, len: usize) -> Vec<u8> {
    let body = (0..len).map(|at| (number.wrapping_mul(31) as usize + at * 7) as u8);
    number.to_be_bytes().into_iter().chain(body).take(len).collect()
}

/// A send batch that holds packets of these lengths.
fn batch_of(lens: &[usize], offload: bool) -> SendBatch {
    let stride = lens.iter().copied().max().unwrap_or(0).max(1);
    let mut memory = SlotMemory::private(lens.len() as u32, stride);
    for (slot, len) in lens.iter().enumerate() {
        assert_eq!(memory.write(slot as u32, &pattern(slot as u32, *len)), *len);
    }
    let mut batch = SendBatch::new(memory, lens.len(), offload);
    for (slot, len) in lens.iter().enumerate() {
        assert!(batch.add(slot as u32, *len));
    }
    batch
}

fn send_all(pair: &Pair, lens: &[usize], offload: bool) {
    let sent = batch_of(lens, offload).send(&pair.from);
    assert!(sent.stop.is_none(), "{:?}", sent.stop);
    assert_eq!((sent.packets, sent.icmp_errors), (lens.len(), 0));
}

/// A packet as it came out of a batch.
#[derive(Debug)]
struct Got {
    slot: Option<u32>,
    bytes: Vec<u8>,
    len: usize,
    info: MessageInfo,
}

/// Receives until `count` packets are there, keeping every slot.
fn receive(pair: &Pair, batch: &mut RecvBatch, free: &mut VecDeque<u32>, count: usize) -> Vec<Got> {
    let mut got = Vec::new();
    while got.len() < count {
        batch.fill(|| free.pop_front());
        wait(&pair.to);
        assert!(batch.receive(&pair.to).unwrap() > 0);
        while let Some(packet) = batch.next_packet(|| free.pop_front()) {
            got.push(Got {
                slot: packet.slot,
                bytes: packet.bytes.to_vec(),
                len: packet.len,
                info: packet.info,
            });
            batch.keep();
        }
    }
    got
}

fn assert_patterns(got: &[Got], lens: &[usize], stride: usize) {
    assert_eq!(got.len(), lens.len());
    for (number, (got, len)) in got.iter().zip(lens).enumerate() {
        let mut expected = pattern(number as u32, *len);
        if got.slot.is_some() {
            expected.truncate(stride);
        }
        assert_eq!(got.bytes, expected, "packet {number}");
        assert_eq!(got.len, *len, "packet {number}");
    }
}

#[test]
fn coalesced_packets_of_the_expected_size_land_in_slots_of_their_own() {
    let pair = Pair::open(true);
    let lens = [300, 300, 300, 300, 300, 120];
    send_all(&pair, &lens, true);
    let mut batch = RecvBatch::new(SlotMemory::private(64, 512), 2, 8);
    batch.shape(2, 8, 300);
    let mut free = (0..64).collect();
    let got = receive(&pair, &mut batch, &mut free, lens.len());
    assert_patterns(&got, &lens, 512);
    assert!(got[0].info.coalesced);
    assert_eq!((got[0].info.len, got[0].info.segment_len), (1_620, 300));
    assert_eq!(batch.moved_packets(), 0, "one copy, out of the socket");
    let slots: BTreeSet<_> = got.iter().map(|got| got.slot.unwrap()).collect();
    assert_eq!(slots.len(), lens.len());
    assert_eq!(batch.held(), 2 * 8 - lens.len());
}

#[test]
fn packets_of_another_size_than_expected_are_moved_and_none_is_lost() {
    for expected in [1, 100, 299, 301, 512] {
        let pair = Pair::open(true);
        let lens = [300, 300, 300, 300, 300, 120];
        send_all(&pair, &lens, true);
        let mut batch = RecvBatch::new(SlotMemory::private(64, 512), 1, 8);
        batch.shape(1, 8, expected);
        let mut free = (0..64).collect();
        let got = receive(&pair, &mut batch, &mut free, lens.len());
        assert_patterns(&got, &lens, 512);
        assert_eq!(batch.moved_packets(), lens.len() as u64, "expected {expected}");
    }
}

#[test]
fn the_next_round_expects_what_the_last_one_brought() {
    let pair = Pair::open(true);
    let lens = [300; 6];
    let mut batch = RecvBatch::new(SlotMemory::private(2_000, 512), 8, 128);
    let mut free = (0..2_000).collect();
    assert_eq!(batch.present_shape(), (8, 1, 512));

    send_all(&pair, &lens, true);
    receive(&pair, &mut batch, &mut free, lens.len());
    assert_eq!(batch.moved_packets(), 6);
    batch.adapt(512);
    assert_eq!(batch.present_shape(), (4, 128, 300), "128 at most, and slots for four of them");

    send_all(&pair, &lens, true);
    receive(&pair, &mut batch, &mut free, lens.len());
    assert_eq!(batch.moved_packets(), 6, "nothing moved this time");

    send_all(&pair, &lens, false);
    batch.fill(|| free.pop_front());
    wait(&pair.to);
    assert_eq!(batch.receive(&pair.to).unwrap(), 4);
    while batch.next_packet(|| None).is_some() {}
    batch.adapt(512);
    assert_eq!(batch.present_shape(), (8, 1, 512), "a full round of single packets");
}

#[test]
fn without_slots_the_packets_are_told_all_the_same() {
    let pair = Pair::open(true);
    let lens = [300, 300, 300, 80];
    for offload in [true, false] {
        send_all(&pair, &lens, offload);
        let mut batch = RecvBatch::new(SlotMemory::private(1, 512), 4, 4);
        let got = receive(&pair, &mut batch, &mut VecDeque::new(), lens.len());
        assert_patterns(&got, &lens, 512);
        assert!(got.iter().all(|got| got.slot.is_none()));
    }
}

#[test]
fn packets_longer_than_a_slot_are_cut_and_say_so() {
    let pair = Pair::open(false);
    let lens = [100, 9_000, 0, 60_000, 64, 65];
    send_all(&pair, &lens, false);
    let mut batch = RecvBatch::new(SlotMemory::private(32, 64), 8, 1);
    let mut free = (0..32).collect();
    let got = receive(&pair, &mut batch, &mut free, lens.len());
    assert_patterns(&got, &lens, 64);
    assert!(got.iter().all(|got| !got.info.truncated), "the kernel had room for all of it");
}

#[test]
fn slots_not_kept_are_used_again_and_all_come_back() {
    let pair = Pair::open(true);
    let lens = [200; 5];
    let mut batch = RecvBatch::new(SlotMemory::private(16, 256), 1, 8);
    let mut free: VecDeque<u32> = (0..16).collect();
    for (segments, expected) in [(8, 200), (8, 100), (2, 256), (5, 200)] {
        send_all(&pair, &lens, true);
        batch.shape(1, segments, expected);
        assert_eq!(batch.held() + free.len(), 16);
        batch.fill(|| free.pop_front());
        wait(&pair.to);
        batch.receive(&pair.to).unwrap();
        let mut slots = BTreeSet::new();
        while let Some(packet) = batch.next_packet(|| free.pop_front()) {
            assert_eq!(packet.bytes.len(), 200);
            slots.insert(packet.slot.unwrap());
        }
        assert!(!slots.is_empty());
        assert_eq!(batch.held() + free.len(), 16);
    }
    let mut back: Vec<u32> = free.into();
    batch.release(true, |slot| back.push(slot));
    back.sort_unstable();
    assert_eq!(back, (0..16).collect::<Vec<_>>());
    assert_eq!(batch.held(), 0);
}

#[test]
fn breaking_off_a_round_loses_no_slot() {
    let pair = Pair::open(true);
    let mut batch = RecvBatch::new(SlotMemory::private(16, 256), 1, 8);
    let mut free: VecDeque<u32> = (0..16).collect();
    for expected in [200, 100] {
        send_all(&pair, &[200; 5], true);
        batch.shape(1, 8, expected);
        batch.fill(|| free.pop_front());
        wait(&pair.to);
        batch.receive(&pair.to).unwrap();
        assert!(batch.next_packet(|| free.pop_front()).is_some());
        batch.fill(|| free.pop_front());
        assert_eq!(batch.held() + free.len(), 16);
        assert!(batch.next_packet(|| None).is_none());
    }
}

#[test]
fn nothing_to_receive_is_no_error() {
    let pair = Pair::open(true);
    let mut batch = RecvBatch::new(SlotMemory::private(1, 64), 1, 1);
    assert_eq!(batch.receive(&pair.to).unwrap(), 0);
    assert!(batch.next_packet(|| None).is_none());
}

#[test]
fn the_kernel_stamps_packets_between_sending_and_receiving() {
    let pair = Pair::open(false);
    let before = clock::realtime_ns();
    send_all(&pair, &[100, 100], false);
    let mut batch = RecvBatch::new(SlotMemory::private(2, 128), 2, 1);
    let got = receive(&pair, &mut batch, &mut VecDeque::new(), 2);
    let after = clock::realtime_ns();
    for got in &got {
        let at = got.info.realtime_ns.expect("a kernel time");
        assert!(before <= at && at <= after, "{before} <= {at} <= {after}");
    }
}

#[test]
fn sender_and_destination_are_told_on_the_wildcard() {
    let options = ReceiveOptions { dual_stack: true, ..Default::default() };
    let cases = [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from([127, 0, 0, 2])),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        (Ipv6Addr::UNSPECIFIED.into(), IpAddr::from([127, 0, 0, 3])),
    ];
    for (bind, dst) in cases {
        let pair = Pair::open_with(bind, dst, &options);
        assert_eq!(pair.to.destination(), None);
        send_all(&pair, &[50], false);
        let mut batch = RecvBatch::new(SlotMemory::private(1, 128), 1, 1);
        let got = receive(&pair, &mut batch, &mut VecDeque::new(), 1);
        assert_eq!(got[0].info.destination, Some(dst));
        assert_eq!(got[0].info.from, pair.from.local_addr());
    }
}

#[test]
fn a_bound_address_is_the_destination() {
    let pair = Pair::open(false);
    assert_eq!(pair.to.destination(), Some(LOCALHOST));
    send_all(&pair, &[50], false);
    let mut batch = RecvBatch::new(SlotMemory::private(1, 128), 1, 1);
    let got = receive(&pair, &mut batch, &mut VecDeque::new(), 1);
    assert_eq!(got[0].info.destination, None, "not asked for: it is known");
}

#[test]
fn what_the_socket_dropped_is_counted() {
    let options = ReceiveOptions { buffer: Some(8_192), ..Default::default() };
    let pair = Pair::open_with(LOCALHOST, LOCALHOST, &options);
    assert_eq!(pair.to.drops(), Some(0));
    const SENT: usize = 200;
    send_all(&pair, &[500; SENT], false);
    let mut batch = RecvBatch::new(SlotMemory::private(1, 512), SENT, 1);
    wait(&pair.to);
    let received = batch.receive(&pair.to).unwrap();
    assert!(0 < received && received < SENT);
    assert_eq!(pair.to.drops(), Some((SENT - received) as u32));
    while batch.next_packet(|| None).is_some() {}

    // The next datagram carries the count.
    send_all(&pair, &[500], false);
    wait(&pair.to);
    assert_eq!(batch.receive(&pair.to).unwrap(), 1);
    let info = batch.next_packet(|| None).unwrap().info;
    assert_eq!(info.drops as usize, SENT - received);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against the plain expectation that every packet comes out whole, once, in order, in a slot of
    /// its own or in none, and that slots are neither lost nor doubled.
    #[test]
    fn every_byte_arrives_whatever_was_guessed(
        segment in 1usize..1_200,
        count in 1usize..=64,
        last in 1usize..1_200,
        shape in (1usize..4, 1usize..70, 1usize..1_600),
        stride in 1usize..1_500,
        slots in 0u32..140,
        offload: bool,
        gro: bool,
        kept in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let count = count.min(DATAGRAM_MAX / segment);
        let mut lens = vec![segment; count];
        lens[count - 1] = last.min(segment);
        let pair = Pair::open(gro);
        send_all(&pair, &lens, offload);

        let mut batch = RecvBatch::new(SlotMemory::private(slots, stride), 4, 64);
        batch.shape(shape.0, shape.1, shape.2);
        let mut free: VecDeque<u32> = (0..slots).collect();
        let mut owned = BTreeSet::new();
        let mut number = 0;
        while number < count {
            batch.fill(|| free.pop_front());
            wait(&pair.to);
            batch.receive(&pair.to).unwrap();
            while let Some(packet) = batch.next_packet(|| free.pop_front()) {
                let mut expected = pattern(number as u32, lens[number]);
                prop_assert_eq!(packet.len, expected.len());
                if packet.slot.is_some() {
                    expected.truncate(stride);
                }
                prop_assert_eq!(packet.bytes, &expected[..], "packet {}", number);
                if let Some(slot) = packet.slot.filter(|_| kept[number]) {
                    prop_assert!(owned.insert(slot), "slot {} given twice", slot);
                    batch.keep();
                }
                number += 1;
            }
        }
        prop_assert_eq!(number, count);
        batch.release(true, |slot| free.push_back(slot));
        let all: BTreeSet<u32> = free.iter().copied().chain(owned).collect();
        prop_assert_eq!(all.len(), slots as usize);
    }

    #[test]
    fn slots_hold_what_is_written_at_any_alignment(
        stride in 1usize..200, slot in 0u32..5, len in 0usize..250, seed: u32,
    ) {
        let mut memory = SlotMemory::private(5, stride);
        let bytes = pattern(seed, len);
        let written = memory.write(slot, &bytes);
        prop_assert_eq!(written, len.min(stride));
        prop_assert_eq!(memory.bytes(slot, len), &bytes[..written]);
        for other in (0..5).filter(|other| *other != slot) {
            prop_assert!(memory.bytes(other, stride).iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
#[should_panic(expected = "slot 5 of 5")]
fn a_slot_outside_the_memory_is_refused() {
    SlotMemory::private(5, 100).bytes(5, 1);
}

#[test]
fn packets_are_sent_in_order_whether_cut_by_the_kernel_or_not() {
    for offload in [true, false] {
        let pair = Pair::open(false);
        let lens = [300, 300, 300, 120, 300, 300, 0, 5, 700, 700, 1];
        send_all(&pair, &lens, offload);
        let mut batch = RecvBatch::new(SlotMemory::private(32, 1_024), 4, 1);
        let mut free = (0..32).collect();
        let got = receive(&pair, &mut batch, &mut free, lens.len());
        assert_patterns(&got, &lens, 1_024);
    }
}

#[test]
fn neighbours_of_equal_length_become_one_message() {
    let sizes =
        |lens: &[usize], offload| batch_of(lens, offload).message_packets().collect::<Vec<_>>();
    assert_eq!(sizes(&[300, 300, 120, 300, 500, 500], true), [3, 1, 2]);
    assert_eq!(sizes(&[300, 300, 120, 120], true), [3, 1], "a shorter packet closes");
    assert_eq!(sizes(&[300, 301], true), [1, 1]);
    assert_eq!(sizes(&[0, 0, 10, 0], true), [1, 1, 1, 1], "empty packets are messages");
    assert_eq!(sizes(&[300, 300], false), [1, 1]);
    assert_eq!(sizes(&[100; 130], true), [64, 64, 2]);
    let fit = DATAGRAM_MAX / 9_000;
    assert_eq!(sizes(&[9_000; 10], true), [fit, 10 - fit]);
    for (len, most) in [(9_000, fit), (100, 64), (0, 64), (DATAGRAM_MAX, 1), (DATAGRAM_MAX + 1, 1)]
    {
        assert_eq!(SendBatch::message_packets_max(len), most);
    }
}

/// Slots that follow each other are the same messages whether they were added together or one by one, also what is left
/// of them when offload was refused halfway.
#[test]
fn a_row_of_slots_is_what_its_slots_are_one_by_one() {
    let rows =
        [(3, 300), (100, 300), (1, 120), (2, 120), (70, 120), (2, 0), (5, 9_000), (9, 9_000)];
    let slots = rows.iter().map(|(packets, _)| *packets as u32).sum();
    let batch = || SendBatch::new(SlotMemory::private(slots, 9_000), slots as usize, true);
    let (mut together, mut each) = (batch(), batch());
    let mut slot = 0;
    for (packets, len) in rows {
        assert!(together.add_row(slot, len, packets));
        (0..packets as u32).for_each(|at| assert!(each.add(slot + at, len)));
        slot += packets as u32;
    }
    assert!(!together.add_row(0, 300, 1), "full");
    let sizes = |batch: &SendBatch| batch.message_packets().collect::<Vec<_>>();
    assert_eq!(sizes(&together), sizes(&each));
    // 64 of the first 103 packets, then what is left of their rows.
    assert_eq!((together.skip(), each.skip()), (64, 64));
    together.split();
    assert_eq!(sizes(&together), vec![1; slots as usize - 64]);
}

#[test]
fn rows_arrive_as_their_packets() {
    for stride in [300, 512] {
        let pair = Pair::open(false);
        let mut memory = SlotMemory::private(100, stride);
        for slot in 0..100 {
            memory.write(slot, &pattern(slot, 300));
        }
        let mut batch = SendBatch::new(memory, 100, true);
        assert!(batch.add_row(0, 300, 97) && batch.add_row(97, 300, 2) && batch.add_row(99, 20, 1));
        let sent = batch.send(&pair.from);
        assert_eq!((sent.packets, sent.coalesced), (100, 100));
        let mut batch = RecvBatch::new(SlotMemory::private(128, 512), 4, 1);
        let got = receive(&pair, &mut batch, &mut (0..128).collect(), 100);
        let lens: Vec<_> = (0..100).map(|at| if at == 99 { 20 } else { 300 }).collect();
        assert_patterns(&got, &lens, 512);
    }
}

#[test]
fn a_full_batch_takes_no_more() {
    let mut batch = SendBatch::new(SlotMemory::private(1, 10), 2, true);
    assert!(batch.add(0, 10) && batch.add(0, 10));
    assert!(!batch.add(0, 10));
    assert_eq!(batch.pending(), 2);
    batch.clear();
    assert_eq!(batch.pending(), 0);
    assert!(batch.add(0, 10));
}

#[test]
fn refused_offload_is_told_and_the_rest_goes_one_by_one() {
    let pair = Pair::open(false);
    // The kernel cuts no messages whose packets carry no checksum.
    option::set_no_checksum(&pair.from).unwrap();
    let lens = [70, 300, 300, 300];
    let mut batch = batch_of(&lens, true);
    let sent = batch.send(&pair.from);
    assert_eq!(sent.packets, 1, "the first is a message of its own");
    assert!(matches!(sent.stop, Some(SendError::OffloadRefused(_))), "{:?}", sent.stop);
    assert_eq!(batch.pending(), 3);
    batch.split();
    assert_eq!(batch.pending(), 3);
    assert!(!batch.offload());
    let sent = batch.send(&pair.from);
    assert_eq!(sent.packets, 3);
    assert!(sent.stop.is_none());
    let mut receiver = RecvBatch::new(SlotMemory::private(8, 512), 4, 1);
    let got = receive(&pair, &mut receiver, &mut (0..8).collect(), lens.len());
    assert_patterns(&got, &lens, 512);
}

#[test]
fn a_packet_too_long_for_udp_is_named_and_can_be_skipped() {
    let pair = Pair::open(false);
    let mut batch = batch_of(&[100, 65_508, 200], true);
    let sent = batch.send(&pair.from);
    assert_eq!(sent.packets, 1);
    assert!(matches!(sent.stop, Some(SendError::TooLong { len: 65_508 })), "{:?}", sent.stop);
    assert_eq!(batch.skip(), 1);
    let sent = batch.send(&pair.from);
    assert_eq!((sent.packets, batch.pending()), (1, 0));
    assert!(sent.stop.is_none());
    assert_eq!(batch.skip(), 0);
}

#[test]
fn a_receiver_that_went_away_stops_no_sender() {
    let pair = Pair::open(false);
    let Pair { from, to } = pair;
    drop(to);
    let mut refusals = 0;
    for _ in 0..5 {
        let sent = batch_of(&[100, 120, 140], false).send(&from);
        assert!(sent.stop.is_none(), "{:?}", sent.stop);
        assert_eq!(sent.packets, 3);
        refusals += sent.icmp_errors;
    }
    assert!(refusals > 0, "loopback answers at once");
    assert!(from.send(b"rtcp").is_ok());
    assert!(from.send(b"rtcp").is_ok());
}

/// Bytes of a control message as the kernel writes it.
fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0xaa);
    bytes
}

#[test]
fn control_messages_are_read_one_after_the_other() {
    let mut bytes = control(1, 2, &[1, 2, 3]);
    bytes.extend(control(3, 4, &[]));
    bytes.extend(control(5, 6, &[9; 16]));
    let read: Vec<_> = receive::ControlMessages(&bytes).collect();
    assert_eq!(read, [(1, 2, &[1, 2, 3][..]), (3, 4, &[]), (5, 6, &[9; 16])]);
}

proptest! {
    #[test]
    fn no_control_bytes_make_the_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        len in 0usize..80,
        level in prop::sample::select(vec![0, 1, 17, 41]),
        kind in prop::sample::select(vec![8, 35, 40, 50, 64, 104]),
    ) {
        let lied = [&len.to_ne_bytes()[..], &i32::to_ne_bytes(level), &i32::to_ne_bytes(kind), &bytes]
            .concat();
        let mut info = MessageInfo {
            from: SocketAddr::from(([0; 4], 0)), destination: None, realtime_ns: None, drops: 0,
            len: 100, segment_len: 100, coalesced: false, truncated: false,
        };
        for (level, kind, data) in receive::ControlMessages(&lied) {
            info.learn(level, kind, data);
            prop_assert!(info.segments() >= 1 && info.segment_len > 0);
        }
        for (_, _, data) in receive::ControlMessages(&bytes) {
            prop_assert!(data.len() <= bytes.len());
        }
    }
}
