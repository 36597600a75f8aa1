//! Trains: packets that the network coalesced, taken whole where nothing is changed by that, and cut up
//! where something would be.
//!
//! Whether they came whole tells the kernel's own count of datagrams: a train that is taken whole is one.

#![allow(unsafe_code)] // Socket options.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rtp_mgr_kernel_tests::books::assert_receive_books as assert_books;
use rtp_mgr_kernel_tests::random::Random;
use rtp_mgr_kernel_tests::sockets::{
    LIMIT, SSRC, attach_filter, bound, drain, in_namespace, local, option, ordered, pin, rtp_of,
    running, sender, shared, until,
};
use rtp_mgr_kernel_tests::{Item, Reader};
use rtp_mgr_ring::abi::{flag, ioctl};
use rtp_mgr_ring::header;

const RTCP: [u8; 8] = [0x80, 201, 0, 1, 0, 0, 0, 7];

/// Room for all that a test leaves there.
fn make_room(socket: &UdpSocket) {
    option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64 << 20)).unwrap();
}

fn take_trains(socket: &UdpSocket) {
    option(socket, libc::SOL_UDP, libc::UDP_GRO, &1_i32).unwrap();
}

/// Sends `packets` as one train: all as long as the first, but for the last, which may be shorter.
fn send_train(from: &UdpSocket, packets: &[Vec<u8>]) {
    let len = packets[0].len() as i32;
    option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &len).unwrap();
    let bytes = packets.concat();
    assert_eq!(from.send(&bytes).unwrap(), bytes.len());
}

/// Sends packets one by one.
fn send_each(from: &UdpSocket, packets: &[Vec<u8>]) {
    option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &0_i32).unwrap();
    packets.iter().for_each(|packet| assert_eq!(from.send(packet).unwrap(), packet.len()));
}

/// Datagrams that sockets of this thread's network namespace were given, IPv4 and IPv6.
fn datagrams() -> u64 {
    let four = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let four = four.lines().filter(|line| line.starts_with("Udp: ")).nth(1).unwrap();
    let six = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let six = six.lines().find(|line| line.starts_with("Udp6InDatagrams")).unwrap();
    let last = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    last(four) + last(six)
}

/// A stream in a network namespace that nobody else uses, and who sends to it.
struct Rig {
    socket: UdpSocket,
    from: UdpSocket,
    reader: Reader,
    next: u16,
}

impl Rig {
    fn new(request: ioctl::Create, address: SocketAddr) -> Self {
        let socket = bound(address);
        take_trains(&socket);
        let from = sender(&socket);
        let reader = running(request, &socket);
        Self { socket, from, reader, next: 0 }
    }

    fn local(request: ioctl::Create) -> Self {
        Self::new(request, (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// The next `count` packets of `len` bytes.
    fn packets(&mut self, count: u16, len: usize) -> Vec<Vec<u8>> {
        let first = self.next;
        self.next = self.next.wrapping_add(count);
        (0..count).map(|at| rtp_of(SSRC, first.wrapping_add(at), len)).collect()
    }

    /// Sends a train and expects it in the ring. Returns what it counted as.
    fn train(&mut self, packets: &[Vec<u8>]) -> u64 {
        let before = datagrams();
        send_train(&self.from, packets);
        self.expect(packets);
        datagrams() - before
    }

    fn expect(&mut self, packets: &[Vec<u8>]) {
        let items = self.reader.collect(packets.len(), LIMIT);
        assert_eq!(bytes(&items), packets);
    }

    /// Sends trains until they are taken whole: the first ones bring that about.
    fn warm_up(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let packets = self.packets(3, 200);
            if self.train(&packets) == 1 {
                return;
            }
            assert!(Instant::now() < deadline, "trains are cut up");
            std::thread::yield_now();
        }
    }
}

fn bytes(items: &[Item]) -> Vec<Vec<u8>> {
    items.iter().map(|item| item.bytes.clone()).collect()
}

#[test]
fn trains_are_taken_whole_and_are_the_datagrams_they_are() {
    let addresses: [SocketAddr; 3] = [
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::UNSPECIFIED, 0).into(),
    ];
    for address in addresses {
        in_namespace(65_536, || {
            let mut rig = Rig::new(ioctl::Create::default(), address);
            if address.ip().is_unspecified() {
                // A socket of both families, reached over IPv4.
                let port = rig.socket.local_addr().unwrap().port();
                rig.from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                rig.from.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            }
            rig.warm_up();
            for (count, len) in
                [(2, 12_usize), (3, 13), (64, 20), (17, 1_200), (44, 1_400), (2, 2_048)]
            {
                for tail in [len, 12, len.div_ceil(2).max(12)] {
                    let mut packets = rig.packets(count, len);
                    packets.push(rtp_of(SSRC, rig.next, tail));
                    rig.next = rig.next.wrapping_add(1);
                    let counted = rig.train(&packets);
                    assert_eq!(counted, 1, "{count} of {len} and one of {tail} from {address}");
                }
            }
            let counters = rig.reader.device.stats().unwrap().1;
            assert_books(&counters);
            assert_eq!(counters.unique, u64::from(rig.next));
            assert_eq!((counters.lost, counters.reordered, counters.duplicate), (0, 0, 0));
            assert_eq!(counters.coalesced, counters.received);
            assert!(drain(&rig.socket).is_empty());
        });
    }
}

#[test]
fn packets_of_a_train_share_a_time_unless_each_is_to_have_its_own() {
    for flags in [0, ioctl::CREATE_EXACT_TIMES] {
        in_namespace(65_536, || {
            let mut rig = Rig::local(ioctl::Create { flags, ..Default::default() });
            rig.warm_up();
            let packets = rig.packets(20, 500);
            send_train(&rig.from, &packets);
            let items = rig.reader.collect(20, LIMIT);
            let first = &items[0].descriptor;
            for two in items.windows(2) {
                let (one, next) = (&two[0].descriptor, &two[1].descriptor);
                assert_eq!(one.has(flag::COALESCED_TIME), flags == 0);
                assert!(one.time_ns <= next.time_ns);
                assert_eq!(
                    one.time_ns == first.time_ns && next.time_ns == first.time_ns,
                    flags == 0
                );
            }
        });
    }
}

#[test]
fn what_is_not_rtp_reaches_the_socket_from_within_trains_and_between_them() {
    in_namespace(65_536, || {
        let mut rig = Rig::local(ioctl::Create::default());
        rig.warm_up();
        let mut stun = vec![0; 20];
        stun[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for round in 0..40_usize {
            // As the tail, as one of the middle, alone between two trains.
            let mut train = rig.packets(10, 100 + round);
            let rtp = train.clone();
            let other = [RTCP.to_vec(), stun.clone()][round % 2].clone();
            expected.push(other.clone());
            match round % 4 {
                0 => train.push(other),
                1 => {
                    let mut long = other;
                    long.resize(100 + round, 0);
                    *expected.last_mut().unwrap() = long.clone();
                    train.insert(5, long);
                }
                _ => send_each(&rig.from, &[other]),
            }
            send_train(&rig.from, &train);
            rig.expect(&rtp);
            let packets = rig.packets(5, 300);
            assert_eq!(rig.train(&packets), 1, "the next is whole again");
        }
        assert_eq!(drain(&rig.socket), expected);
        let counters = rig.reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!((counters.passed_rtcp, counters.passed_stun), (20, 20));
        assert_eq!(counters.received, u64::from(rig.next));
        // Nothing but what is not RTP.
        let packets = vec![RTCP.to_vec(); 5];
        send_train(&rig.from, &packets);
        until("RTCP", || rig.reader.device.stats().unwrap().1.passed_rtcp == 25);
        assert_eq!(drain(&rig.socket), packets);
    });
}

#[test]
fn packets_of_a_train_that_find_no_room_are_counted() {
    in_namespace(65_536, || {
        let request = ioctl::Create { ring_order: 4, slot_stride: 300, ..Default::default() };
        let mut rig = Rig::local(request);
        rig.warm_up();
        rig.reader.device.plain(ioctl::RESET_STATS).unwrap();
        let packets = rig.packets(40, 300);
        send_train(&rig.from, &packets);
        assert_eq!(bytes(&rig.reader.take().0), packets[..16]);
        let mut packets = rig.packets(9, 301);
        packets.push(rtp_of(SSRC, rig.next, 300));
        send_train(&rig.from, &packets);
        assert_eq!(bytes(&rig.reader.collect(1, LIMIT)), packets[9..]);
        let counters = rig.reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!((counters.received, counters.published), (50, 17));
        assert_eq!((counters.dropped_ring_full, counters.dropped_oversize), (24, 9));
        assert!(drain(&rig.socket).is_empty());
    });
}

#[test]
fn sockets_that_do_not_take_trains_and_those_with_a_filter_get_each_packet() {
    let step =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    // Odd sequence numbers are refused.
    let mut code = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 8 + 2),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    in_namespace(65_536, || {
        let mut rig = Rig::local(ioctl::Create::default());
        rig.warm_up();
        option(&rig.socket, libc::SOL_UDP, libc::UDP_GRO, &0_i32).unwrap();
        let packets = rig.packets(10, 100);
        assert_eq!(rig.train(&packets), 10, "without UDP_GRO");
        take_trains(&rig.socket);
        let packets = rig.packets(10, 100);
        assert_eq!(rig.train(&packets), 1, "with it again");
        attach_filter(&rig.socket, &mut code);
        rig.next = 1_000;
        let packets = rig.packets(10, 100);
        send_train(&rig.from, &packets);
        let even: Vec<_> = packets.into_iter().step_by(2).collect();
        rig.expect(&even);
        assert_eq!(rig.reader.device.stats().unwrap().1.external_drops, 5);
        assert!(drain(&rig.socket).is_empty());
    });
}

#[test]
fn trains_of_one_stream_are_not_forced_on_another_of_its_port() {
    in_namespace(65_536, || {
        let mut rig = Rig::local(ioctl::Create::default());
        rig.warm_up();
        // Later, at another address: one that leaves the RTP of others to its socket ...
        let port = rig.socket.local_addr().unwrap().port();
        let choosy = bound((Ipv4Addr::new(127, 0, 0, 2), port).into());
        take_trains(&choosy);
        let flags = ioctl::CREATE_SSRC | ioctl::CREATE_LEAVE_OTHERS;
        let request = ioctl::Create { flags, ssrc: SSRC, ..Default::default() };
        let reader = running(request, &choosy);
        let from = sender(&choosy);
        let others: Vec<_> = (0..5).map(|sequence| rtp_of(7, sequence, 300)).collect();
        send_train(&from, &others);
        until("they are left", || reader.counters().passed_other == 5);
        assert_eq!(drain(&choosy), others);
        assert_eq!(reader.device.stats().unwrap().1.received, 0);
        drop(reader);
        // ... and one whose filter refuses packets of more than 300 bytes.
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let (load_len, greater, answer) = (0x80, 0x25, 0x06);
        let mut code = [
            step(load_len, 0, 0, 0),
            step(greater, 1, 0, 308),
            step(answer, 0, 0, u32::MAX),
            step(answer, 0, 0, 0),
        ];
        attach_filter(&choosy, &mut code);
        let mut reader = running(ioctl::Create::default(), &choosy);
        let packets: Vec<_> = (0..5).map(|sequence| rtp_of(8, sequence, 300)).collect();
        send_train(&from, &packets);
        assert_eq!(bytes(&reader.collect(5, LIMIT)), packets);
        // With nobody left who minds, trains are whole again.
        drop((reader, choosy));
        rig.warm_up();
    });
}

#[test]
fn copies_for_others_are_whole_and_theirs() {
    in_namespace(65_536, || {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let first = shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, 0).into());
        let port = first.local_addr().unwrap().port();
        // One that takes packets, one that takes trains, one of another stream.
        let others: Vec<_> = (0..3)
            .map(|_| shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, port).into()))
            .collect();
        for socket in others.iter().chain([&first]) {
            socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        }
        for socket in [&first, &others[1], &others[2]] {
            take_trains(socket);
        }
        // Sees all that comes, in copies that share the packet's bytes.
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: A new socket, owned from here on.
        let tap = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, all);
            assert!(fd >= 0, "a packet socket");
            OwnedFd::from_raw_fd(fd)
        };
        let mut reader = running(ioctl::Create::default(), &first);
        let mut second = running(ioctl::Create::default(), &others[2]);
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let interface = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
        let interface = libc::in_addr { s_addr: interface };
        option(&from, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface).unwrap();
        from.connect((group, port)).unwrap();
        let deadline = Instant::now() + LIMIT;
        let (mut sequence, mut whole, mut sent) = (0_u16, 0, Vec::new());
        while whole < 20 {
            assert!(Instant::now() < deadline, "trains are cut up");
            let packets: Vec<_> = (0..5).map(|at| rtp_of(SSRC, sequence + at, 400)).collect();
            sequence += 5;
            let before = datagrams();
            send_train(&from, &packets);
            assert_eq!(bytes(&reader.collect(5, LIMIT)), packets);
            assert_eq!(bytes(&second.collect(5, LIMIT)), packets);
            assert_eq!(drain(&others[0]), packets, "the member that takes packets");
            assert_eq!(drain(&others[1]), [packets.concat()], "the one that takes trains");
            // The sockets' are counted when they are read.
            whole += u64::from(datagrams() - before == 1 + 1 + 5 + 1);
            sent.extend(packets);
        }
        assert!(drain(&first).is_empty() && drain(&others[2]).is_empty());
        drop(tap);
        let counters = reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!(counters.unique, sent.len() as u64);
    });
}

#[test]
fn a_reuseport_sibling_keeps_its_trains() {
    in_namespace(65_536, || {
        let adopted = shared(libc::SO_REUSEPORT, (Ipv4Addr::LOCALHOST, 0).into());
        let sibling = shared(libc::SO_REUSEPORT, adopted.local_addr().unwrap());
        take_trains(&adopted);
        make_room(&sibling);
        let request = ioctl::Create { sources: 256, ring_order: 12, ..Default::default() };
        let mut reader = running(request, &adopted);
        let mut sent: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for ssrc in 0..200 {
            let packets: Vec<_> = (0..5).map(|at| rtp_of(ssrc, at, 100)).collect();
            send_train(&sender(&adopted), &packets);
            sent.insert(ssrc, packets);
        }
        let mut got: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        let theirs = drain(&sibling);
        let left = 200 * 5 - theirs.len();
        assert!(left > 100 && theirs.len() > 100, "{left}: both get some");
        for packet in theirs.into_iter().chain(bytes(&reader.collect(left, LIMIT))) {
            got.entry(header::parse(&packet).unwrap().ssrc).or_default().push(packet);
        }
        assert_eq!(got, sent);
    });
}

/// Sends `count` packets of `ssrc` to `to`: trains of many lengths, packets alone, RTCP at the end and
/// between. Returns how much of that.
fn send_mixture(to: &UdpSocket, ssrc: u32, count: u16) -> u64 {
    let from = sender(to);
    let mut random = Random(u64::from(ssrc) + 77);
    let (mut sequence, mut others) = (0, 0);
    while sequence < count {
        let len = 12 + random.below(500) as usize;
        let number = (1 + random.below(30) as u16).min(count - sequence);
        let mut packets: Vec<_> =
            (0..number).map(|at| rtp_of(ssrc, sequence + at, len.max(20))).collect();
        sequence += number;
        let kind = random.below(8);
        if kind < 2 {
            packets.push(RTCP.to_vec());
            others += 1;
        }
        match kind {
            1 | 3 => send_each(&from, &packets),
            _ => send_train(&from, &packets),
        }
    }
    others
}

#[test]
fn under_load_from_several_senders_nothing_is_lost_doubled_or_reordered() {
    const EACH: u16 = 4_000;
    let socket = local();
    make_room(&socket);
    take_trains(&socket);
    for request in [ioctl::Create::default(), ordered(1_000_000_000)] {
        let ordered = request.flags & ioctl::CREATE_ORDERED != 0;
        let senders = if ordered { 1 } else { 3 };
        let request = ioctl::Create { ring_order: 16, slot_stride: 520, ..request };
        let mut reader = running(request, &socket);
        let mut items = Vec::new();
        let others: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..senders)
                .map(|ssrc| {
                    let socket = &socket;
                    scope.spawn(move || {
                        pin(ssrc as usize % 2);
                        send_mixture(socket, ssrc, EACH)
                    })
                })
                .collect();
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                items.extend(reader.take().0);
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        items.extend(reader.take().0);
        let counters = reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!(counters.received, u64::from(senders) * u64::from(EACH));
        assert_eq!((counters.lost, counters.duplicate, counters.reordered), (0, 0, 0));
        assert_eq!((counters.dropped_ring_full, counters.external_drops), (0, 0));
        assert_eq!(counters.passed_rtcp, others);
        for ssrc in 0..senders {
            let mut own = items.iter().filter(|item| item.descriptor.ssrc == ssrc);
            for sequence in 0..EACH {
                let item = own.next().expect("a packet");
                let len = item.bytes.len();
                assert_eq!(item.bytes, rtp_of(ssrc, sequence, len), "{ssrc}: {sequence}");
            }
            assert_eq!(own.next(), None);
        }
        drop(reader);
        let left = drain(&socket);
        assert!(left.iter().all(|packet| *packet == RTCP), "only RTCP stays with the socket");
        assert_eq!(left.len() as u64, others);
    }
}

#[test]
fn stopping_gives_trains_back_and_starting_takes_them_again_without_losing_any() {
    const LEN: usize = 40;
    let socket = local();
    take_trains(&socket);
    make_room(&socket);
    let request = ioctl::Create { ring_order: 14, slot_stride: 64, ..Default::default() };
    let mut reader = Reader::create_udp(request).unwrap();
    reader.device.add_leg(&socket, 0).unwrap();
    let number = |bytes: &[u8]| header::parse(bytes).unwrap().timestamp;
    let (mut ring, mut left): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    let over = AtomicBool::new(false);
    // The socket has trains whole or in packets of which each is one.
    let split = |trains: Vec<Vec<u8>>| -> Vec<u32> {
        trains.iter().flat_map(|train| train.chunks(LEN)).map(number).collect()
    };
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let from = sender(&socket);
            let mut sent = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let packets: Vec<_> = (0..5)
                    .map(|at| {
                        let mut packet = vec![0; LEN];
                        let number = sent + at;
                        header::build(&mut packet, false, 96, number as u16, number, SSRC).unwrap();
                        packet
                    })
                    .collect();
                send_train(&from, &packets);
                sent += 5;
            }
            sent
        });
        let deadline = Instant::now() + LIMIT;
        let mut rounds = 0;
        while rounds < 30 || ring.is_empty() || left.is_empty() {
            assert!(Instant::now() < deadline, "{} and {}", ring.len(), left.len());
            reader.device.plain(ioctl::START).unwrap();
            ring.extend(reader.take().0.iter().map(|item| number(&item.bytes)));
            reader.device.plain(ioctl::STOP).unwrap();
            ring.extend(reader.take().0.iter().map(|item| number(&item.bytes)));
            left.extend(split(drain(&socket)));
            rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    ring.extend(reader.take().0.iter().map(|item| number(&item.bytes)));
    left.extend(split(drain(&socket)));
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.published, counters.external_drops), (ring.len() as u64, 0));
    let mut all = [ring, left].concat();
    all.sort_unstable();
    assert_eq!(all.len() as u64 + counters.dropped_ring_full, u64::from(sent));
    all.dedup();
    assert_eq!(all.len() as u64 + counters.dropped_ring_full, u64::from(sent), "none twice");
}
