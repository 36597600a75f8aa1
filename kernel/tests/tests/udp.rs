//! Streams with UDP legs: what reaches the ring, what stays with the socket, and that nobody else loses
//! anything.

#![allow(unsafe_code)] // Socket options, namespaces, fork.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::books::assert_receive_books as assert_books;
use rtp_mgr_kernel_tests::random::Random;
use rtp_mgr_kernel_tests::sockets::{
    LIMIT, MS, SSRC, attach_filter, bound, drain, in_namespace, local, new_namespace, option,
    ordered, pin, rtp, rtp_of, running, sender, sequences, shared, until,
};
use rtp_mgr_kernel_tests::{Device, Reader, errno};
use rtp_mgr_ring::abi::{self, StreamCounters, flag, ioctl};
use rtp_mgr_ring::header::{self, Kind};

/// What of the counters does not depend on when and how often things were looked at.
fn figures(counters: StreamCounters) -> StreamCounters {
    StreamCounters { updated_ns: 0, wakeups: 0, high_watermark: 0, coalesced: 0, ..counters }
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn tai_ns() -> u64 {
    clock_ns(libc::CLOCK_TAI)
}

/// Sets CLOCK_REALTIME, and CLOCK_TAI with it, so much further.
fn step_clock(by_ns: i64) {
    let to_ns = clock_ns(libc::CLOCK_REALTIME).wrapping_add_signed(by_ns);
    let to = libc::timespec {
        tv_sec: (to_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (to_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: A time that lives as long as the call.
    let result = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &to) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn the_module_says_that_it_has_udp_legs() {
    let mut version = ioctl::Version::default();
    Device::open().unwrap().call(ioctl::VERSION, &mut version).unwrap();
    let wanted = abi::feature::UDP_RECEIVE | abi::feature::ORDERED;
    assert_eq!(version.features & wanted, wanted);
}

#[test]
fn times_are_right_from_the_next_packet_on_when_the_clock_is_set() {
    let socket = local();
    let mut reader = running(ioctl::Create::default(), &socket);
    let from = sender(&socket);
    // Shorter and longer than what the module takes for the present; together nothing.
    let steps = [400_000, -300_000, 5_000_000, -80_000_000, 74_900_000];
    for (number, step_ns) in (0..).zip(steps.into_iter().cycle().take(60)) {
        step_clock(step_ns);
        // Packets that come close together are dated by their stamps alone.
        for sequence in [0, 1, 2].map(|packet| 3 * number + packet) {
            let before = (tai_ns(), clock_ns(libc::CLOCK_MONOTONIC));
            assert!(from.send(&rtp(sequence)).is_ok());
            let items = reader.collect(1, LIMIT);
            let after = (tai_ns(), clock_ns(libc::CLOCK_MONOTONIC));
            let (time_ns, last_ns) = (items[0].descriptor.time_ns, reader.source(0).last_ns);
            assert!((before.0..=after.0).contains(&time_ns), "{sequence}: {before:?} {time_ns}");
            assert!((before.1..=after.1).contains(&last_ns), "{sequence}: {before:?} {last_ns}");
            let updated_ns = reader.counters().updated_ns;
            assert!(updated_ns >= last_ns && updated_ns <= clock_ns(libc::CLOCK_MONOTONIC));
        }
    }
}

#[test]
fn packets_arrive_in_order_with_their_bytes_times_and_addresses() {
    let socket = local();
    let mut reader = running(ioctl::Create::default(), &socket);
    let from = sender(&socket);
    let before = tai_ns();
    (0..500).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
    let items = reader.collect(500, LIMIT);
    let after = tai_ns();
    for (number, item) in (0..).zip(&items) {
        let descriptor = &item.descriptor;
        assert_eq!(item.bytes, rtp(number));
        assert_eq!(descriptor.sequence as u16, number);
        assert_eq!((descriptor.ssrc, descriptor.leg, descriptor.source), (SSRC, 0, 0));
        assert!((before..=after).contains(&descriptor.time_ns), "an arrival time");
    }
    let source = reader.source(0);
    let to = socket.local_addr().unwrap().port();
    let port = from.local_addr().unwrap().port();
    assert_eq!(source.key & 0xff_ffff_ffff_ffff, 4 | u64::from(port) << 16 | u64::from(to) << 32);
    assert_eq!(source.source_address_0, u64::from(u32::from_le_bytes([127, 0, 0, 1])));
    assert_eq!(source.destination_address_0, u64::from(u32::from_le_bytes([127, 0, 0, 1])));
    assert_eq!((source.received, source.unique, source.lost), (500, 500, 0));
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.received, counters.published, counters.sources), (500, 500, 1));
    assert_eq!(counters.bytes, (0..500).sum::<u64>());
    let leg = reader.leg(0);
    assert_eq!((leg.received, leg.first), (500, 500));
    assert!(leg.socket_buffer > 0 && leg.last_ns > 0);
    assert_eq!(drain(&socket), Vec::<Vec<u8>>::new(), "the socket has none of it");
}

#[test]
fn figures_are_never_behind_what_a_reader_has() {
    let socket = local();
    let mut reader = running(ioctl::Create::default(), &socket);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let from = sender(&socket);
            for sequence in 0..20_000_u16 {
                from.send(&rtp_of(SSRC, sequence, 100)).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let mut had = 0;
        loop {
            let over = done.load(Ordering::Acquire);
            let items = reader.take().0;
            had += items.len() as u64;
            let counters = reader.counters();
            assert!(counters.published >= had, "{} of {had}", counters.published);
            assert!(reader.leg(0).received >= had);
            assert!(items.is_empty() || reader.source(0).received >= had);
            assert_books(&counters);
            if over && items.is_empty() && counters.published == had {
                break;
            }
        }
    });
    let counters = reader.counters();
    assert_eq!(counters.received, 20_000);
}

#[test]
fn what_is_not_rtp_stays_with_the_socket() {
    let socket = local();
    let mut reader = running(ioctl::Create::default(), &socket);
    let from = sender(&socket);
    let mut stun = vec![0; 20];
    stun[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    let mut dtls = vec![22, 0xfe, 0xfd];
    dtls.resize(30, 0);
    let other: [Vec<u8>; 5] =
        [vec![0x80, 201, 0, 1, 0, 0, 0, 7], stun, dtls, b"hello".to_vec(), Vec::new()];
    for (sequence, packet) in (0..).zip(&other) {
        from.send(packet).unwrap();
        from.send(&rtp(sequence)).unwrap();
    }
    assert_eq!(sequences(&reader.collect(5, LIMIT)), [0, 1, 2, 3, 4]);
    assert_eq!(drain(&socket), other);
    let counters = reader.counters();
    assert_eq!((counters.passed_rtcp, counters.passed_stun), (1, 1));
    assert_eq!((counters.passed_dtls, counters.passed_other), (1, 2));
    assert_eq!(counters.received, 5);
}

#[test]
fn rtp_of_others_stays_with_the_socket_if_it_is_asked_to() {
    // With UDP_GRO a train may come whole, and is none of one stream's.
    for coalesced in [0, 1] {
        leave_others(coalesced);
    }
    // Of whom, if nobody was named?
    for flags in [ioctl::CREATE_LEAVE_OTHERS, ioctl::CREATE_LEAVE_OTHERS | ioctl::CREATE_ORDERED] {
        let request = ioctl::Create { flags, ..Default::default() };
        assert_eq!(errno(Device::open().unwrap().create_udp(request)), libc::EINVAL);
    }
}

fn leave_others(coalesced: i32) {
    let socket = local();
    option(&socket, libc::SOL_UDP, libc::UDP_GRO, &coalesced).unwrap();
    let named = ioctl::CREATE_SSRC | ioctl::CREATE_PAYLOAD_TYPE;
    let request = ioctl::Create {
        flags: named | ioctl::CREATE_LEAVE_OTHERS,
        ssrc: SSRC,
        payload_type: 96,
        ..Default::default()
    };
    let mut reader = running(request, &socket);
    let from = sender(&socket);
    let other_type = |sequence: u16| {
        let mut bytes = rtp(sequence);
        bytes[1] = 97;
        bytes
    };
    // One by one, and a train that ends with one of another's.
    for sequence in 0..10 {
        from.send(&rtp_of(7, sequence, 100)).unwrap();
        from.send(&rtp(sequence)).unwrap();
        from.send(&other_type(sequence)).unwrap();
    }
    option(&from, libc::SOL_UDP, libc::UDP_SEGMENT, &200_i32).unwrap();
    let train: Vec<_> =
        [SSRC, SSRC, 7, SSRC, 7].into_iter().zip(10..).map(|(s, n)| rtp_of(s, n, 200)).collect();
    from.send(&train.concat()).unwrap();
    let expected: Vec<u16> = (0..12).chain([13]).collect();
    assert_eq!(sequences(&reader.collect(expected.len(), LIMIT)), expected);
    let left: Vec<_> = (0..10).flat_map(|n| [rtp_of(7, n, 100), other_type(n)]).collect();
    until("all of it", || reader.counters().passed_other == 22);
    assert_eq!(drain(&socket), [left, vec![train[2].clone(), train[4].clone()]].concat());
    let counters = reader.device.stats().unwrap().1;
    assert_books(&counters);
    assert_eq!((counters.received, counters.dropped_filtered), (13, 0));
    assert_eq!(counters.sources, 1);

    // Now that there was one, the module looks out for trains.
    let train: Vec<_> =
        [7, 7, SSRC, 7].into_iter().zip(14..).map(|(s, n)| rtp_of(s, n, 200)).collect();
    for round in 0..20 {
        from.send(&train.concat()).unwrap();
        until("the train", || reader.counters().passed_other == 22 + 3 * (round + 1));
        assert_eq!(drain(&socket), [0, 1, 3].map(|at| train[at].clone()));
    }
    let counters = reader.device.stats().unwrap().1;
    assert_books(&counters);
    assert_eq!((counters.unique, counters.duplicate, counters.sources), (14, 19, 1));
}

#[test]
fn what_the_sockets_filter_refuses_or_cuts_is_refused_and_cut_for_the_ring() {
    let step =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    // Odd sequence numbers are refused, the others cut to 80 bytes of payload and UDP header.
    let mut code = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 8 + 2),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 8 + 80),
    ];
    let plain = local();
    attach_filter(&plain, &mut code);
    let adopted = local();
    attach_filter(&adopted, &mut code);
    let mut reader = running(ioctl::Create::default(), &adopted);
    for to in [&plain, &adopted] {
        let from = sender(to);
        (0..200).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
    }
    let expected = drain(&plain);
    assert_eq!(expected.len(), 100, "the filter works");
    let items = reader.collect(100, LIMIT);
    assert_eq!(items.iter().map(|item| item.bytes.clone()).collect::<Vec<_>>(), expected);
    let counters = reader.device.stats().unwrap().1;
    assert_eq!((counters.received, counters.external_drops), (100, 100));
    assert_eq!(reader.leg(0).external_drops, 100);
    assert!(drain(&adopted).is_empty());
}

#[test]
fn another_member_of_a_group_and_an_unrelated_socket_lose_nothing() {
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let first = shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, 0).into());
    let port = first.local_addr().unwrap().port();
    let second = shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, port).into());
    for socket in [&first, &second] {
        socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
    }
    let unrelated = local();
    let mut reader = running(ioctl::Create::default(), &first);
    let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let interface = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    option(&from, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &libc::in_addr { s_addr: interface })
        .unwrap();
    for sequence in 0..100 {
        from.send_to(&rtp(sequence), (group, port)).unwrap();
        from.send_to(&rtp(sequence), unrelated.local_addr().unwrap()).unwrap();
    }
    let expected: Vec<_> = (0..100).map(rtp).collect();
    let items = reader.collect(100, LIMIT);
    assert_eq!(items.iter().map(|item| item.bytes.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(drain(&second), expected, "the other member");
    assert_eq!(drain(&unrelated), expected, "the unrelated socket");
    assert!(drain(&first).is_empty());
    let group_bytes = u64::from(u32::from_le_bytes(group.octets()));
    assert_eq!(reader.source(0).destination_address_0, group_bytes);
}

#[test]
fn a_reuseport_sibling_keeps_its_share() {
    let adopted = shared(libc::SO_REUSEPORT, (Ipv4Addr::LOCALHOST, 0).into());
    let sibling = shared(libc::SO_REUSEPORT, adopted.local_addr().unwrap());
    let request = ioctl::Create { sources: 256, ..Default::default() };
    let mut reader = running(request, &adopted);
    for ssrc in 0..200 {
        sender(&adopted).send(&rtp_of(ssrc, 1, 40)).unwrap();
    }
    let theirs: BTreeSet<u32> =
        drain(&sibling).iter().map(|bytes| header::parse(bytes).unwrap().ssrc).collect();
    assert!(theirs.len() > 20 && theirs.len() < 180, "{}: both get some", theirs.len());
    let mut all = theirs.clone();
    let items = reader.collect(200 - theirs.len(), LIMIT);
    all.extend(items.iter().map(|item| item.descriptor.ssrc));
    assert_eq!(all, (0..200).collect());
    assert_eq!(items.len() + theirs.len(), 200, "nobody got what is the other's");
}

#[test]
fn legs_that_are_none_or_taken_are_refused() {
    let device = Device::open().unwrap();
    device.create_udp(ioctl::Create::default()).unwrap();
    assert_eq!(errno(device.plain(ioctl::START)), libc::EINVAL, "a leg is missing");
    // SAFETY: A new socket, owned from here on.
    let unbound =
        unsafe { UdpSocket::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)) };
    let stream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
    assert_eq!(errno(device.add_leg(&unbound, 0)), libc::EINVAL);
    assert_eq!(errno(device.add_leg(&stream, 0)), libc::EINVAL);
    assert_eq!(errno(device.add_leg(&unix, 0)), libc::EINVAL);
    assert_eq!(errno(device.add_leg(&std::io::stdin(), 0)), libc::ENOTSOCK);
    assert_eq!(errno(device.add_leg(&9_999, 0)), libc::EBADF);
    let socket = local();
    assert_eq!(errno(device.add_leg(&socket, 1)), libc::EINVAL, "one leg was asked for");
    let mut flagged =
        ioctl::AddLeg { fd: socket.as_raw_fd(), flags: ioctl::LEG_NO_GSO, ..Default::default() };
    assert_eq!(errno(device.call(ioctl::ADD_LEG, &mut flagged)), libc::EINVAL);
    let tunnel = local();
    option(&tunnel, libc::SOL_UDP, libc::UDP_ENCAP, &3_i32).unwrap();
    assert_eq!(errno(device.add_leg(&tunnel, 0)), libc::EBUSY);
    device.add_leg(&socket, 0).unwrap();
    assert_eq!(errno(device.add_leg(&local(), 0)), libc::EBUSY, "the leg is there");
    let second = Device::open().unwrap();
    second.create_udp(ioctl::Create::default()).unwrap();
    assert_eq!(errno(second.add_leg(&socket, 0)), libc::EBUSY, "the socket is taken");
    device.plain(ioctl::START).unwrap();
    assert_eq!(errno(device.add_leg(&local(), 0)), libc::EBUSY, "it runs");
    let reader = Device::open().unwrap();
    reader.attach(&device, ioctl::READER_LOSSY).unwrap();
    assert_eq!(errno(reader.add_leg(&local(), 0)), libc::EPERM);
    let simulated = Device::open().unwrap();
    simulated.create(ioctl::Create::default()).unwrap();
    assert_eq!(errno(simulated.add_leg(&local(), 0)), libc::EOPNOTSUPP);
    // Stopped, the socket is free for another; the first stream cannot have it back then.
    device.plain(ioctl::STOP).unwrap();
    second.add_leg(&socket, 0).unwrap();
    assert_eq!(errno(device.plain(ioctl::START)), libc::EBUSY);
    drop(second);
    device.plain(ioctl::START).unwrap();
}

#[test]
fn before_start_and_after_stop_or_close_the_socket_is_as_any_other() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = Reader::create_udp(ioctl::Create::default()).unwrap();
    reader.device.add_leg(&socket, 0).unwrap();
    from.send(&rtp(1)).unwrap();
    assert_eq!(drain(&socket), [rtp(1)]);
    for round in 0..3 {
        reader.device.plain(ioctl::START).unwrap();
        from.send(&rtp(10 + round)).unwrap();
        assert_eq!(sequences(&reader.collect(1, LIMIT)), [10 + round]);
        reader.device.plain(ioctl::STOP).unwrap();
        from.send(&rtp(20 + round)).unwrap();
        assert_eq!(drain(&socket), [rtp(20 + round)]);
    }
    assert_eq!(reader.counters().received, 3);
    // Letting the legs go: the next start needs one.
    let mut stop = ioctl::Plain { flags: ioctl::STOP_LEGS, ..Default::default() };
    reader.device.call(ioctl::STOP, &mut stop).unwrap();
    assert_eq!(errno(reader.device.plain(ioctl::START)), libc::EINVAL);
    reader.device.add_leg(&socket, 0).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    drop(reader);
    from.send(&rtp(30)).unwrap();
    assert_eq!(drain(&socket), [rtp(30)]);
}

#[test]
fn what_a_killed_owner_had_adopted_is_free_again_and_the_module_stays_meanwhile() {
    let socket = local();
    let (mut ready, tell) = io::pipe().unwrap();
    // SAFETY: The child makes a stream, says so, and waits to be killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let reader = running(ioctl::Create::default(), &socket);
        io::Write::write_all(&mut &tell, b"x").unwrap();
        loop {
            std::hint::black_box(&reader);
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    io::Read::read_exact(&mut ready, &mut [0]).unwrap();
    let from = sender(&socket);
    from.send(&rtp(1)).unwrap();
    assert!(drain(&socket).is_empty());
    // SAFETY: A text.
    let unloaded =
        unsafe { libc::syscall(libc::SYS_delete_module, c"rtp_mgr".as_ptr(), libc::O_NONBLOCK) };
    assert_eq!(
        (unloaded, io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::EWOULDBLOCK))
    );
    // SAFETY: Our child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    until("the socket gets its packets", || {
        from.send(&rtp(2)).unwrap();
        !drain(&socket).is_empty()
    });
}

#[test]
fn a_socket_that_its_user_closes_goes_on_and_one_made_a_tunnel_is_left_as_it_is() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ioctl::Create::default(), &socket);
    drop(socket);
    from.send(&rtp(1)).unwrap();
    assert_eq!(sequences(&reader.collect(1, LIMIT)), [1]);
    reader.device.plain(ioctl::STOP).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    from.send(&rtp(2)).unwrap();
    assert_eq!(sequences(&reader.collect(1, LIMIT)), [2]);
    drop(reader);
    until("the socket is gone", || from.send(&rtp(3)).is_err());

    let socket = local();
    let reader = running(ioctl::Create::default(), &socket);
    option(&socket, libc::SOL_UDP, libc::UDP_ENCAP, &3_i32).unwrap();
    reader.device.plain(ioctl::STOP).unwrap();
    let (mut value, mut len) = (0_i32, 4);
    // SAFETY: A number and its length.
    unsafe {
        let value = std::ptr::from_mut(&mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_ENCAP, value, &mut len);
    }
    assert_eq!(value, 3, "what its user made of it");
}

#[test]
fn several_cpus_deliver_at_once_and_every_packet_is_counted_once() {
    const EACH: u16 = 15_000;
    let socket = local();
    let request = ioctl::Create { ring_order: 12, slot_stride: 128, ..Default::default() };
    let mut reader = running(request, &socket);
    // SAFETY: A question.
    assert!(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } >= 2, "two CPUs");
    let mut items = Vec::new();
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|cpu| {
                let socket = &socket;
                scope.spawn(move || {
                    pin(cpu);
                    let from = sender(socket);
                    for sequence in 0..EACH {
                        from.send(&rtp_of(cpu as u32, sequence, 100)).unwrap();
                    }
                })
            })
            .collect();
        while !senders.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            items.extend(reader.take().0);
        }
    });
    items.extend(reader.take().0);
    let counters = reader.device.stats().unwrap().1;
    assert_books(&counters);
    assert_eq!(counters.received, 2 * u64::from(EACH));
    assert_eq!(counters.published, items.len() as u64);
    assert_eq!(counters.published + counters.dropped_ring_full, counters.received);
    assert_eq!((counters.duplicate, counters.lost, counters.reordered), (0, 0, 0));
    for ssrc in 0..2 {
        let own: Vec<_> = items.iter().filter(|item| item.descriptor.ssrc == ssrc).collect();
        assert!(own.windows(2).all(|two| two[0].descriptor.sequence < two[1].descriptor.sequence));
        for item in own {
            assert_eq!(item.bytes, rtp_of(ssrc, item.descriptor.sequence as u16, 100));
        }
    }
}

/// Trains of packets of equal length, the last of each RTCP.
fn send_trains(from: &UdpSocket, segmented: bool) {
    let rtcp = [0x80, 201, 0, 1, 0, 0, 0, 7];
    for train in 0..30_u16 {
        let len = 100 + usize::from(train) * 30;
        let mut packets: Vec<Vec<u8>> =
            (0..20).map(|at| rtp_of(SSRC, train * 20 + at, len)).collect();
        packets.push(rtcp.to_vec());
        if segmented {
            option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &(len as i32)).unwrap();
            from.send(&packets.concat()).unwrap();
        } else {
            packets.iter().for_each(|packet| assert!(from.send(packet).is_ok()));
        }
    }
}

#[test]
fn coalesced_packets_are_the_datagrams_they_are() {
    let mut all = Vec::new();
    for (segmented, gro) in [(false, false), (true, false), (false, true), (true, true)] {
        let socket = local();
        if gro {
            option(&socket, libc::SOL_UDP, libc::UDP_GRO, &1_i32).unwrap();
        }
        let mut reader = running(ioctl::Create::default(), &socket);
        send_trains(&sender(&socket), segmented);
        let items = reader.collect(600, LIMIT);
        until("RTCP", || reader.counters().passed_rtcp == 30);
        assert_eq!(drain(&socket).len(), 30, "RTCP, segmented {segmented}, GRO {gro}");
        let counters = reader.counters();
        assert_eq!(counters.coalesced > 0, segmented);
        for (sequence, item) in (0..).zip(&items) {
            assert_eq!(item.bytes, rtp_of(SSRC, sequence, 100 + usize::from(sequence / 20) * 30));
        }
        all.push(figures(counters));
    }
    assert_eq!(all[0].received, 600);
    assert!(all.iter().all(|counters| *counters == all[0]), "{all:?}");
}

#[test]
fn the_books_and_new_readers_are_right_while_the_rest_of_a_train_is_waited_for() {
    let step =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    // What has less than 200 bytes is refused: the last of each train, which would have ended it.
    let mut code = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, 200),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let socket = local();
    attach_filter(&socket, &mut code);
    let mut reader = running(ioctl::Create::default(), &socket);
    let from = sender(&socket);
    option(&from, libc::SOL_UDP, libc::UDP_SEGMENT, &300_i32).unwrap();
    let mut next = 0;
    let mut train = || {
        let mut packets = rtp_of(SSRC, next, 300);
        packets.extend(rtp_of(SSRC, next.wrapping_add(1), 300));
        packets.extend(rtp_of(SSRC, next.wrapping_add(2), 100));
        next = next.wrapping_add(3);
        assert_eq!(from.send(&packets).unwrap(), packets.len());
    };
    for _ in 0..100 {
        train();
        assert_books(&reader.device.stats().unwrap().1);
        train();
        let late = Reader::attach(&reader.device, ioctl::READER_LOSSY).unwrap();
        let head = late.ring().head.load_acquire();
        assert!(late.next() <= head, "begins at {}, published are {head}", late.next());
        drop(late);
        train();
        reader.device.plain(ioctl::RESET_STATS).unwrap();
        reader.collect(6, LIMIT);
        assert_books(&reader.device.stats().unwrap().1);
    }
}

#[test]
fn a_long_gap_is_given_up_in_parts_and_nothing_of_it_is_missing() {
    let socket = local();
    for (stop, reorder_ns) in [(false, 20 * MS), (true, 60_000 * MS)] {
        let request = ioctl::Create { ring_order: 17, slot_stride: 128, ..ordered(reorder_ns) };
        let mut reader = running(request, &socket);
        let from = sender(&socket);
        let sent: Vec<u16> = (0..20).map(|at| at * 2_900).collect();
        for sequence in &sent {
            from.send(&rtp_of(SSRC, *sequence, 24)).unwrap();
        }
        until("everything is taken", || reader.counters().unique == 20);
        if stop {
            assert_eq!((reader.counters().published, reader.counters().staged), (1, 19));
            let mut legs = ioctl::Plain { flags: ioctl::STOP_LEGS, ..Default::default() };
            reader.device.call(ioctl::STOP, &mut legs).unwrap();
        }
        let items = reader.collect(19 * 2_900 + 1, LIMIT);
        let first = items[0].descriptor.sequence;
        for (number, item) in (first..).zip(&items) {
            assert_eq!(item.descriptor.sequence, number);
            assert_eq!(item.descriptor.has(flag::LOST), !(number - first).is_multiple_of(2_900));
        }
        let counters = reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!((counters.published, counters.gap_positions), (20, 19 * 2_899));
    }
}

#[test]
fn ipv6_and_ipv4_on_a_dual_stack_socket() {
    let socket = bound((Ipv6Addr::UNSPECIFIED, 0).into());
    let port = socket.local_addr().unwrap().port();
    let mut reader = running(ioctl::Create::default(), &socket);
    let six = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    six.send_to(&rtp_of(6, 1, 50), (Ipv6Addr::LOCALHOST, port)).unwrap();
    let four = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    four.send_to(&rtp_of(4, 1, 50), (Ipv4Addr::LOCALHOST, port)).unwrap();
    let items = reader.collect(2, LIMIT);
    assert_eq!((items[0].descriptor.ssrc, items[1].descriptor.ssrc), (6, 4));
    let (first, second) = (reader.source(0), reader.source(1));
    assert_eq!(first.key & 0xff, 6);
    assert_eq!((first.source_address_0, first.source_address_1), (0, 1 << 56));
    assert_eq!(first.destination_address_1, 1 << 56);
    assert_eq!(second.key & 0xff, 4);
    assert_eq!(second.source_address_0, u64::from(u32::from_le_bytes([127, 0, 0, 1])));
    assert_eq!(second.source_address_1, 0);
}

#[test]
fn fragments_and_the_longest_datagrams_arrive_whole() {
    for mtu in [1_500, 65_536] {
        in_namespace(mtu, || {
            for six in [false, true] {
                let address: SocketAddr = match six {
                    true => (Ipv6Addr::LOCALHOST, 0).into(),
                    false => (Ipv4Addr::LOCALHOST, 0).into(),
                };
                let socket = bound(address);
                let from = sender(&socket);
                let request =
                    ioctl::Create { slot_stride: 65_536, ring_order: 4, ..Default::default() };
                let mut reader = running(request, &socket);
                let lens = [12, 1_400, 1_473, 5_000, 65_507];
                (0..).zip(lens).for_each(|(sequence, len)| {
                    from.send(&rtp_of(SSRC, sequence, len)).unwrap();
                });
                let items = reader.collect(lens.len(), LIMIT);
                for ((sequence, len), item) in (0..).zip(lens).zip(&items) {
                    assert_eq!(item.bytes, rtp_of(SSRC, sequence, len), "MTU {mtu}");
                }
            }
        });
    }
}

#[test]
fn packets_longer_than_a_slot_are_counted_as_such() {
    let socket = local();
    let from = sender(&socket);
    let request = ioctl::Create { slot_stride: 100, ..Default::default() };
    let mut reader = running(request, &socket);
    for (sequence, len) in (0..).zip([100, 101, 65_507, 99]) {
        from.send(&rtp_of(SSRC, sequence, len)).unwrap();
    }
    assert_eq!(sequences(&reader.collect(2, LIMIT)), [0, 3]);
    let counters = reader.counters();
    assert_eq!((counters.received, counters.dropped_oversize), (4, 2));
    assert_books(&counters);
    assert!(drain(&socket).is_empty());
}

#[test]
fn a_full_ring_and_filters_are_counted_and_the_socket_gets_none_of_it() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ioctl::Create { ring_order: 4, ..Default::default() }, &socket);
    (0..40).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
    until("all", || reader.counters().received == 40);
    assert_eq!(sequences(&reader.take().0), (0..16).collect::<Vec<_>>());
    from.send(&rtp(40)).unwrap();
    let item = &reader.collect(1, LIMIT)[0].descriptor;
    assert!(item.has(flag::DISCONTINUITY | flag::RING_FULL));
    assert_eq!(item.count, 24);
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.dropped_ring_full, counters.high_watermark), (24, 16));
    assert!(drain(&socket).is_empty());
    drop(reader);

    let request = ioctl::Create {
        flags: ioctl::CREATE_PAYLOAD_TYPE | ioctl::CREATE_SSRC,
        payload_type: 96,
        ssrc: 7,
        ..Default::default()
    };
    let mut reader = Reader::create_udp(request).unwrap();
    let mut leg =
        ioctl::AddLeg { fd: socket.as_raw_fd(), flags: ioctl::LEG_SOURCE, ..Default::default() };
    leg.source[..4].copy_from_slice(&[127, 0, 0, 1]);
    reader.device.call(ioctl::ADD_LEG, &mut leg).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let mut other_type = rtp_of(7, 1, 50);
    other_type[1] = 97;
    let stranger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    from.send(&other_type).unwrap();
    from.send(&rtp_of(8, 1, 50)).unwrap();
    stranger.send_to(&rtp_of(7, 2, 50), socket.local_addr().unwrap()).unwrap();
    from.send(&rtp_of(7, 3, 50)).unwrap();
    assert_eq!(sequences(&reader.collect(1, LIMIT)), [3]);
    let counters = reader.counters();
    assert_eq!((counters.received, counters.dropped_filtered), (4, 3));
    assert!(drain(&socket).is_empty());
}

#[test]
fn more_sources_than_the_table_has_room_for_are_delivered_all_the_same() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ioctl::Create { sources: 4, ..Default::default() }, &socket);
    (0..50).for_each(|ssrc| assert!(from.send(&rtp_of(ssrc, 1, 20)).is_ok()));
    let items = reader.collect(50, LIMIT);
    assert_eq!(items[4].descriptor.source, abi::SOURCE_NONE);
    let counters = reader.counters();
    assert_eq!((counters.sources, counters.sources_untracked), (4, 46));
    assert_books(&counters);
}

#[test]
fn every_truncation_and_corruption_is_counted_for_what_it_is() {
    // CSRCs, an extension and padding.
    let mut whole = vec![0xb2, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
    whole.extend([1; 8]);
    whole.extend([0xbe, 0xde, 0, 2]);
    whole.extend([0x10, 0xff, 0, 0, 0, 0, 0, 0]);
    whole.extend([9; 20]);
    whole.extend([0, 0, 0, 4]);
    assert!(header::parse(&whole).is_ok());
    let mut packets: Vec<Vec<u8>> = (0..=whole.len()).map(|len| whole[..len].to_vec()).collect();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut corrupt = whole.clone();
            corrupt[at] ^= 1 << bit;
            packets.push(corrupt);
        }
    }
    let mut expected = [0_u64; 6];
    for packet in &packets {
        let kind = match header::classify(packet) {
            Kind::Rtp if header::parse(packet).is_err() => 5,
            Kind::Rtp => 4,
            Kind::Rtcp => 0,
            Kind::Stun => 1,
            Kind::Dtls => 2,
            Kind::Other => 3,
        };
        expected[kind] += 1;
    }
    assert!(expected[4] > 100 && expected[5] > 20, "{expected:?}");
    let socket = local();
    let from = sender(&socket);
    let reader = running(
        ioctl::Create { sources: 512, reader: ioctl::READER_LOSSY, ..Default::default() },
        &socket,
    );
    for packet in &packets {
        from.send(packet).unwrap();
    }
    let c = reader.device.stats().unwrap().1;
    assert_books(&c);
    assert_eq!(c.received, expected[4] + expected[5]);
    assert_eq!(c.dropped_invalid, expected[5]);
    assert_eq!(
        [c.passed_rtcp, c.passed_stun, c.passed_dtls, c.passed_other],
        expected[..4],
        "{expected:?}"
    );
    assert_eq!(drain(&socket).len() as u64, expected[..4].iter().sum::<u64>());
}

#[test]
fn a_gap_is_given_up_in_time_though_nothing_more_arrives() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ordered(50 * MS), &socket);
    let sent = Instant::now();
    for sequence in [1, 2, 5, 4] {
        from.send(&rtp(sequence)).unwrap();
    }
    assert_eq!(sequences(&reader.collect(2, LIMIT)), [1, 2]);
    let items = reader.collect(3, LIMIT);
    assert!(sent.elapsed() >= Duration::from_millis(50), "the gap stays open so long");
    assert_eq!(sequences(&items), [3, 4, 5]);
    assert!(items[0].descriptor.has(flag::LOST));
    assert_eq!(items[0].descriptor.count, 1);
    from.send(&rtp(3)).unwrap();
    from.send(&rtp(4)).unwrap();
    until("both", || reader.counters().received == 6);
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.late, counters.duplicate, counters.gap_positions), (1, 1, 1));
    // A reader that slept is woken by the deadline, too.
    reader.device.set(ioctl::SETTING_REORDER_NS, 20 * MS).unwrap();
    assert_eq!(reader.device.get(ioctl::SETTING_REORDER_NS).unwrap(), 20 * MS);
    from.send(&rtp(7)).unwrap();
    assert_eq!(reader.wait(2, LIMIT).unwrap() & libc::POLLIN, libc::POLLIN);
    assert_eq!(sequences(&reader.take().0), [6, 7]);
}

#[test]
fn stopping_publishes_what_is_staged() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ordered(10_000 * MS), &socket);
    for sequence in [1, 3] {
        from.send(&rtp(sequence)).unwrap();
    }
    until("both", || reader.counters().received == 2);
    assert_eq!(reader.counters().staged, 1);
    assert_eq!(errno(reader.device.plain(ioctl::RESET_STATS)), libc::EBUSY);
    reader.device.plain(ioctl::STOP).unwrap();
    assert_eq!(sequences(&reader.take().0), [1, 2, 3]);
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.published, counters.staged), (2, 0));
    reader.device.plain(ioctl::RESET_STATS).unwrap();
    let counters = reader.counters();
    assert_eq!((counters.received, counters.expected, counters.lost), (0, 0, 0));
}

#[test]
fn two_legs_with_loss_give_everything_that_either_has_once_and_in_order() {
    const COUNT: u16 = 6_000;
    let sockets = [local(), local()];
    let request = ioctl::Create { legs: 2, ring_order: 13, ..ordered(3_000 * MS) };
    let mut reader = Reader::create_udp(request).unwrap();
    for (leg, socket) in (0..).zip(&sockets) {
        reader.device.add_leg(socket, leg).unwrap();
    }
    reader.device.plain(ioctl::START).unwrap();
    let from = [sender(&sockets[0]), sender(&sockets[1])];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut carried = [BTreeSet::new(), BTreeSet::new()];
    // The second leg lags by a few packets; the ends are not lost, so that what is missing is known.
    let mut late: Vec<u16> = Vec::new();
    for sequence in 0..COUNT {
        let edge = sequence == 0 || sequence == COUNT - 1;
        if edge || random.below(10) != 0 {
            from[0].send(&rtp(sequence)).unwrap();
            carried[0].insert(sequence);
        }
        late.push(sequence);
        if late.len() > 5 || sequence == COUNT - 1 {
            for sequence in late.drain(..) {
                if sequence == 0 || random.below(10) != 0 {
                    from[1].send(&rtp(sequence)).unwrap();
                    carried[1].insert(sequence);
                }
            }
        }
    }
    let items = reader.collect(COUNT.into(), LIMIT);
    assert_eq!(sequences(&items), (0..COUNT).collect::<Vec<_>>(), "each position once, in order");
    let either: BTreeSet<u16> = carried[0].union(&carried[1]).copied().collect();
    for item in &items {
        let sequence = item.descriptor.sequence as u16;
        assert_eq!(item.descriptor.has(flag::LOST), !either.contains(&sequence), "{sequence}");
        if !item.descriptor.has(flag::LOST) {
            assert_eq!(item.bytes, rtp(sequence));
        }
    }
    let counters = reader.device.stats().unwrap().1;
    assert_books(&counters);
    let both = carried[0].intersection(&carried[1]).count() as u64;
    assert_eq!(counters.unique, either.len() as u64);
    assert_eq!(counters.duplicate, both);
    assert_eq!(counters.lost, u64::from(COUNT) - either.len() as u64);
    assert_eq!((counters.epochs, counters.late, counters.dropped_ring_full), (1, 0, 0));
    for (leg, carried) in carried.iter().enumerate() {
        let figures = reader.leg(leg);
        assert_eq!(figures.received, carried.len() as u64);
        assert_eq!(figures.lost, figures.expected - carried.len() as u64);
    }
}

#[test]
fn a_leg_that_is_pulled_loses_nothing() {
    let sockets = [local(), local()];
    let request = ioctl::Create { legs: 2, ..ordered(100 * MS) };
    let mut reader = Reader::create_udp(request).unwrap();
    for (leg, socket) in (0..).zip(&sockets) {
        reader.device.add_leg(socket, leg).unwrap();
    }
    reader.device.plain(ioctl::START).unwrap();
    let from = [sender(&sockets[0]), sender(&sockets[1])];
    for sequence in 0..900 {
        for (leg, from) in from.iter().enumerate() {
            let pulled = (300..600).contains(&sequence) && leg == 0 || sequence >= 700 && leg == 1;
            if !pulled {
                from.send(&rtp(sequence)).unwrap();
            }
        }
    }
    let items = reader.collect(900, LIMIT);
    assert_eq!(sequences(&items), (0..900).collect::<Vec<_>>());
    assert!(items.iter().all(|item| !item.descriptor.has(flag::LOST)));
    assert_eq!(reader.counters().lost, 0);
}

#[test]
fn after_a_bye_the_next_source_takes_over_at_once_and_after_silence_without() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ordered(50 * MS), &socket);
    for sequence in 0..3 {
        from.send(&rtp_of(1, sequence, 50)).unwrap();
    }
    let mut heard = ioctl::Heard {
        flags: ioctl::HEARD_BYE,
        ssrc: 1,
        passed: [2, 1, 0, 3],
        ..Default::default()
    };
    reader.device.call(ioctl::HEARD, &mut heard).unwrap();
    from.send(&rtp_of(2, 500, 50)).unwrap();
    from.send(&rtp_of(2, 501, 50)).unwrap();
    let items = reader.collect(5, LIMIT);
    assert_eq!(sequences(&items), [0, 1, 2, 500, 501]);
    assert!(items[3].descriptor.has(flag::DISCONTINUITY));
    let counters = reader.counters();
    assert_eq!((counters.passed_rtcp, counters.passed_stun), (2, 1));
    assert_eq!((counters.passed_other, counters.epochs), (3, 2));
    // Held until the present source has been silent for 200 ms: by the timer, nothing more arrives.
    let sent = Instant::now();
    from.send(&rtp_of(3, 70, 50)).unwrap();
    from.send(&rtp_of(3, 71, 50)).unwrap();
    until("both", || reader.counters().received == 7);
    assert_eq!(sequences(&reader.collect(2, LIMIT)), [70, 71]);
    assert!(sent.elapsed() >= Duration::from_millis(150));
    assert_books(&reader.counters());

    heard.leg = 1;
    assert_eq!(errno(reader.device.call(ioctl::HEARD, &mut heard)), libc::EINVAL);
    (heard.leg, heard.flags) = (0, 2);
    assert_eq!(errno(reader.device.call(ioctl::HEARD, &mut heard)), libc::EINVAL);
    heard.flags = 0;
    reader.device.plain(ioctl::STOP).unwrap();
    assert_eq!(errno(reader.device.call(ioctl::HEARD, &mut heard)), libc::EBUSY);
    let simulated = Device::open().unwrap();
    simulated.create(ioctl::Create::default()).unwrap();
    assert_eq!(errno(simulated.call(ioctl::HEARD, &mut heard)), libc::EOPNOTSUPP);
}

#[test]
fn a_partly_filled_batch_waits_no_longer_than_it_may() {
    let socket = local();
    let from = sender(&socket);
    let mut reader = running(ioctl::Create::default(), &socket);
    reader.device.set(ioctl::SETTING_MAX_LATENCY_US, 30_000).unwrap();
    let sent = Instant::now();
    from.send(&rtp(1)).unwrap();
    assert_eq!(reader.wait(100, LIMIT).unwrap() & libc::POLLIN, libc::POLLIN);
    assert!(sent.elapsed() >= Duration::from_millis(30) && sent.elapsed() < LIMIT / 2);
    assert_eq!(reader.take().0.len(), 1);
    // The threshold is looked at when the reader sleeps, too: it left something behind.
    from.send(&rtp(2)).unwrap();
    until("it", || reader.counters().received == 2);
    assert_eq!(reader.wait(100, LIMIT).unwrap() & libc::POLLIN, libc::POLLIN);
}

#[test]
fn the_jitter_has_the_clock_rate_that_was_set() {
    let socket = local();
    let device = Device::open().unwrap();
    device.create_udp(ioctl::Create::default()).unwrap();
    device.set(ioctl::SETTING_CLOCK_RATE, 96 << 32 | 48_000).unwrap();
    assert_eq!(errno(device.set(ioctl::SETTING_CLOCK_RATE, 128 << 32 | 1)), libc::EINVAL);
    assert_eq!(errno(device.get(ioctl::SETTING_CLOCK_RATE)), libc::EOPNOTSUPP);
    assert_eq!(errno(device.set(ioctl::SETTING_REORDER_NS, 1)), libc::EOPNOTSUPP);
    device.add_leg(&socket, 0).unwrap();
    device.plain(ioctl::START).unwrap();
    assert_eq!(errno(device.set(ioctl::SETTING_CLOCK_RATE, 96 << 32 | 1)), libc::EBUSY);
    let reader = Reader::attach(&device, ioctl::READER_LOSSY).unwrap();
    let from = sender(&socket);
    (0..50).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
    until("all", || reader.counters().received == 50);
    let source = reader.source(0);
    assert_eq!(source.ssrc_clock_rate >> 32, 48_000);
    assert_eq!(source.jitter_count, 49);
}

#[test]
fn a_namespace_that_goes_away_under_a_running_stream_is_harmless() {
    let mut reader = Reader::create_udp(ioctl::Create::default()).unwrap();
    // SAFETY: The child uses the inherited file in a namespace of its own and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        new_namespace(1_500);
        let socket = local();
        reader.device.add_leg(&socket, 0).unwrap();
        reader.device.plain(ioctl::START).unwrap();
        let from = sender(&socket);
        (0..10).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
        // SAFETY: Ends without anything of the test harness.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: Our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    assert_eq!(sequences(&reader.collect(10, LIMIT)), (0..10).collect::<Vec<_>>());
    assert_eq!(reader.device.stats().unwrap().0, abi::STATE_RUNNING as u32);
    reader.device.plain(ioctl::STOP).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    drop(reader);
}

#[test]
fn starting_and_stopping_under_fire_loses_no_packet_between_ring_and_socket() {
    let socket = local();
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(16 << 20)).unwrap();
    let request = ioctl::Create { ring_order: 12, slot_stride: 64, ..Default::default() };
    let mut reader = Reader::create_udp(request).unwrap();
    reader.device.add_leg(&socket, 0).unwrap();
    let number = |bytes: &[u8]| header::parse(bytes).unwrap().timestamp;
    let (mut ring, mut left) = (Vec::new(), Vec::new());
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let from = sender(&socket);
            let mut sent = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let mut packet = [0; 40];
                header::build(&mut packet, false, 96, sent as u16, sent, SSRC).unwrap();
                from.send(&packet).unwrap();
                sent += 1;
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
            left.extend(drain(&socket).iter().map(|bytes| number(bytes)));
            rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    ring.extend(reader.take().0.iter().map(|item| number(&item.bytes)));
    left.extend(drain(&socket).iter().map(|bytes| number(bytes)));
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.published, counters.external_drops), (ring.len() as u64, 0));
    let mut all = [ring, left].concat();
    all.sort_unstable();
    assert_eq!(all.len() as u64 + counters.dropped_ring_full, u64::from(sent));
    all.dedup();
    assert_eq!(all.len() as u64 + counters.dropped_ring_full, u64::from(sent), "none twice");
}
