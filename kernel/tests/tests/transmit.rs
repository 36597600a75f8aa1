//! Transmit streams: what leaves, when, and what becomes of what does not.

#![allow(unsafe_code)] // Calls and mappings that are wrong on purpose; fork, kill, namespaces.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::books::assert_transmit_books as assert_books;
use rtp_mgr_kernel_tests::random::Random;
use rtp_mgr_kernel_tests::transmit::{
    Writer, arrivals, clock_ns, collect, numbered, receiver, request, sender, set_option, switches,
    threads,
};
use rtp_mgr_kernel_tests::{Device, errno, list};
use rtp_mgr_ring::abi::{self, Descriptor, PAGE, StreamCounters, feature, flag, ioctl, status};

const LIMIT: Duration = Duration::from_secs(20);
/// Longest time without a packet that is still to come.
const SILENCE: Duration = Duration::from_secs(5);

/// Packets in runs of equal length, as media has them, with shorter and single ones between.
fn mixed(count: u64) -> Vec<Vec<u8>> {
    let mut random = Random(5);
    let mut len = 1_000;
    (0..count)
        .map(|number| {
            if random.below(20) == 0 {
                len = 12 + random.below(1_400) as usize;
            }
            numbered(number, if random.below(15) == 0 { len.min(100) } else { len })
        })
        .collect()
}

/// Sends `packets` and returns what arrived, with the counters.
fn through(
    packets: &[Vec<u8>],
    create: ioctl::Create,
    flags: u32,
) -> (Vec<Vec<u8>>, StreamCounters) {
    let to = receiver();
    let from = sender(&to);
    let mut writer = Writer::create(create).unwrap();
    writer.add_leg(0, from.as_raw_fd(), flags).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    let receiving = collect(to, packets.len(), SILENCE);
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    let arrived = receiving.join().unwrap();
    let counters = writer.counters();
    assert_books(&counters);
    (arrived, counters)
}

#[test]
fn the_module_says_that_it_can() {
    let mut version = ioctl::Version::default();
    Device::open().unwrap().call(ioctl::VERSION, &mut version).unwrap();
    assert_eq!(version.features & feature::UDP_TRANSMIT, feature::UDP_TRANSMIT);
}

#[test]
fn every_packet_arrives_once_in_order_with_its_bytes() {
    let packets = mixed(6_000);
    let create = ioctl::Create { ring_order: 7, start: u64::MAX - 300, ..request() };
    let mut results = Vec::new();
    for flags in [0, ioctl::LEG_NO_GSO] {
        let (arrived, counters) = through(&packets, create, flags);
        assert_eq!(arrived.len(), packets.len(), "{counters:?}");
        assert!(arrived == packets, "the bytes are those of the slots, in order");
        assert_eq!(counters.committed, packets.len() as u64);
        assert_eq!((counters.sent, counters.send_failed), (packets.len() as u64, 0));
        let bytes: usize = packets.iter().map(Vec::len).sum();
        assert_eq!(counters.sent_bytes, bytes as u64);
        results.push(counters);
    }
    assert!(results[0].coalesced > 0 && results[0].socket_calls < results[1].socket_calls);
    assert_eq!((results[1].coalesced, results[1].socket_calls), (0, packets.len() as u64));
}

#[test]
fn slots_that_touch_and_slots_of_odd_sizes_are_sent_alike() {
    for stride in [64, 65, 1_200, 1_316, 4_096] {
        let packets: Vec<_> =
            (0..500).map(|number| numbered(number, (stride as usize).min(1_400))).collect();
        let create = ioctl::Create { ring_order: 6, slot_stride: stride, ..request() };
        let (arrived, counters) = through(&packets, create, 0);
        assert!(arrived == packets, "stride {stride}: {} of 500", arrived.len());
        assert!(counters.coalesced > 0, "stride {stride}");
    }
}

#[test]
fn the_longest_datagram_goes_and_a_longer_one_is_counted() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 4, slot_stride: 65_536, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    for len in [65_536, 65_508, 65_507, 12] {
        writer.fill(&numbered(len as u64, len));
    }
    writer.commit();
    assert!(writer.wait_for(4, LIMIT));
    let arrived = collect(to, 2, SILENCE).join().unwrap();
    assert_eq!(arrived.iter().map(Vec::len).collect::<Vec<_>>(), [65_507, 12]);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed), (2, 2));
    assert_eq!(counters.send_errno, libc::EMSGSIZE as u64);
    assert_eq!(writer.leg(0).lost, 2);
}

#[test]
fn no_commit_is_slept_through() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 5, start: u64::MAX - 100, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    let mut random = Random(11);
    let rounds = 3_000;
    for round in 0..rounds {
        for _ in 0..=random.below(3) {
            writer.fill(&numbered(round, 60));
            writer.commit();
            // About the time that the engine takes to fall asleep, so that some commits meet it there.
            for _ in 0..random.below(4_000) {
                std::hint::spin_loop();
            }
        }
        if random.below(4) == 0 {
            let next = writer.next;
            assert!(writer.wait_for(next, LIMIT), "round {round}: {:?}", writer.counters());
        } else {
            // Without system calls: nothing but the engine itself can end this.
            let deadline = Instant::now() + LIMIT;
            while writer.tail() != writer.next {
                assert!(Instant::now() < deadline, "round {round}: {:?}", writer.counters());
            }
        }
    }
    let commits = writer.next.wrapping_sub(u64::MAX - 100);
    assert_eq!(writer.counters().sent, commits);
    assert!(writer.kicks > 0 && writer.kicks <= commits, "{} kicks", writer.kicks);
}

#[test]
fn a_busy_stream_needs_few_calls() {
    let to = receiver();
    let mut writer = Writer::create(ioctl::Create { ring_order: 10, ..request() }).unwrap();
    // One by one: sending takes much longer than filling.
    writer.add_leg(0, sender(&to).as_raw_fd(), ioctl::LEG_NO_GSO).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    let packet = numbered(0, 1_000);
    let (count, mut commits) = (40_000_u64, 0_u64);
    let deadline = Instant::now() + LIMIT;
    while writer.next < count {
        assert!(Instant::now() < deadline, "{:?}", writer.counters());
        for _ in 0..writer.room().min(16) {
            writer.fill(&packet);
        }
        writer.commit();
        commits += 1;
    }
    let next = writer.next;
    assert!(writer.wait_for(next, LIMIT));
    println!("{commits} commits, {} kicks, {:?}", writer.kicks, writer.counters());
    assert!(writer.kicks * 10 < commits, "{} kicks in {commits} commits", writer.kicks);
}

#[test]
fn the_writer_sleeps_until_there_is_the_room_it_wants() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 4, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    writer.device.set(ioctl::SETTING_RATE, 200 << 32 | 1).unwrap();
    for number in 0..16 {
        writer.fill(&numbered(number, 50));
    }
    writer.commit();
    assert_eq!(writer.room(), 16 - writer.next + writer.tail());
    assert!(writer.wait_for(8, LIMIT));
    assert!((8..16).contains(&writer.tail()), "{}", writer.tail());
    assert!(writer.wait_for(16, LIMIT));
    assert_eq!(writer.tail(), 16);
    // A wake-up is counted after the figures of its round were published: in those of the next.
    let deadline = Instant::now() + LIMIT;
    while writer.counters().wakeups < 2 {
        assert!(Instant::now() < deadline, "nobody was woken");
        writer.device.plain(ioctl::KICK).unwrap();
    }
    assert!(writer.counters().wakeups <= 3, "at most once for each of positions 0, 8 and 16");
    let ready = writer.device.poll_for(libc::POLLOUT, Duration::ZERO).unwrap();
    assert_eq!(ready & libc::POLLOUT, libc::POLLOUT);
}

#[test]
fn a_rate_is_never_exceeded_and_kept_on_average() {
    const NS: u64 = 1_000_000_000;
    let to = receiver();
    set_option(&to, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    let create = ioctl::Create { ring_order: 11, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    assert_eq!(writer.device.get(ioctl::SETTING_RATE).unwrap(), 0);
    for bad in [1, 5 << 32, 1 << 32 | 1_000_000_001, u64::from(u32::MAX)] {
        assert_eq!(errno(writer.device.set(ioctl::SETTING_RATE, bad)), libc::EINVAL, "{bad:#x}");
    }
    for (packets, seconds, count) in [(1_000, 1, 800), (30_000, 1_001, 20), (4_000, 1, 2_000)] {
        let rate = packets << 32 | seconds;
        let due = |number: u64| number * seconds * NS / packets;
        // A machine that stood still for a while is given another chance to keep up; to be early there
        // is none.
        let kept = (0..10).any(|_| {
            writer.device.set(ioctl::SETTING_RATE, rate).unwrap();
            assert_eq!(writer.device.get(ioctl::SETTING_RATE).unwrap(), rate);
            for number in 0..count {
                writer.fill(&numbered(number, 100));
            }
            let before = clock_ns(libc::CLOCK_REALTIME);
            writer.commit();
            let arrived = arrivals(&to, count as usize, SILENCE);
            assert_eq!(arrived.len(), count as usize);
            for (number, (time, bytes)) in arrived.iter().enumerate() {
                assert_eq!(*bytes, numbered(number as u64, 100));
                let earliest = before + due(number as u64);
                assert!(*time >= earliest, "packet {number} is {} ns early", earliest - time);
            }
            let next = writer.next;
            assert!(writer.wait_for(next, LIMIT));
            let took = arrived[count as usize - 1].0 - before;
            println!("{packets}/{seconds}: {took} ns for {} ns", due(count - 1));
            took < due(count - 1) + due(count - 1) / 20 + NS / 50
        });
        assert!(kept, "{packets}/{seconds} is not kept up with");
    }
    // Faster while packets wait for a slow rate.
    writer.device.set(ioctl::SETTING_RATE, 1 << 32 | 1_000).unwrap();
    for number in 0..50 {
        writer.fill(&numbered(number, 100));
    }
    writer.commit();
    let next = writer.next;
    assert!(!writer.wait_for(next, Duration::from_millis(50)));
    writer.device.set(ioctl::SETTING_RATE, 0).unwrap();
    assert!(writer.wait_for(next, LIMIT), "{:?}", writer.counters());
    assert_books(&writer.counters());
}

/// Sets the difference of TAI and UTC, seconds.
fn set_tai_offset(seconds: i64) {
    // SAFETY: All zero asks for nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_TAI;
    timex.constant = seconds;
    // SAFETY: Room for the answer.
    assert!(unsafe { libc::adjtimex(&mut timex) } >= 0, "{}", io::Error::last_os_error());
}

#[test]
fn no_packet_leaves_before_its_launch_time() {
    const TAI: u64 = 37;
    set_tai_offset(TAI as i64);
    let to = receiver();
    set_option(&to, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    let create = ioctl::Create { ring_order: 9, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    let start = clock_ns(libc::CLOCK_TAI) + 20_000_000;
    let mut random = Random(3);
    let mut launch = start;
    let mut launches = Vec::new();
    for number in 0..300 {
        // Some together, some apart, some in the past.
        launch += [0, 0, 700_000, 3_000_000][random.below(4) as usize];
        launches.push(launch);
        writer.fill_at(&numbered(number, 100), launch);
    }
    writer.commit();
    let arrived = arrivals(&to, 300, SILENCE);
    assert_eq!(arrived.len(), 300);
    let mut late: Vec<u64> = Vec::new();
    for (number, ((time, bytes), launch)) in arrived.iter().zip(&launches).enumerate() {
        assert_eq!(*bytes, numbered(number as u64, 100));
        let tai = time + TAI * 1_000_000_000;
        assert!(tai >= *launch, "packet {number} is {} ns early", launch - tai);
        late.push(tai - launch);
    }
    late.sort_unstable();
    println!("late: median {} ns, most {} ns", late[150], late[299]);
    assert!(late[150] < 5_000_000, "median {} ns late", late[150]);
    assert_eq!(writer.status.word(status::TAI_OFFSET_S).load(), TAI);
    assert_eq!(writer.status.word(status::TAI_VALID).load(), 1);
    set_tai_offset(0);
}

#[test]
fn a_stop_gives_up_what_waits_and_a_start_resumes() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 5, start: u64::MAX - 3, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    assert_eq!(errno(writer.device.plain(ioctl::START)), libc::EBUSY);
    writer.fill(&numbered(0, 40));
    // Years from now, and beyond what a time can be.
    writer.fill_at(&numbered(1, 40), clock_ns(libc::CLOCK_TAI) + (1 << 60));
    writer.fill_at(&numbered(2, 40), u64::MAX);
    for number in 3..10 {
        writer.fill(&numbered(number, 40));
    }
    writer.commit();
    assert!(writer.wait_for(u64::MAX - 2, LIMIT), "the first is not held back");
    assert!(!writer.wait_for(u64::MAX - 1, Duration::from_millis(50)), "the second is");
    assert_eq!(writer.device.stats().unwrap().1.pending, 9);
    writer.device.plain(ioctl::STOP).unwrap();
    let (state, counters) = writer.device.stats().unwrap();
    assert_eq!(u64::from(state), abi::STATE_STOPPED);
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed, counters.pending), (1, 9, 0));
    assert_eq!(counters.send_errno, libc::ECANCELED as u64);
    assert_eq!(writer.tail(), writer.next);
    let ready = writer.device.poll_for(libc::POLLOUT, Duration::ZERO).unwrap();
    assert_eq!(ready & libc::POLLHUP, libc::POLLHUP);
    assert_eq!(errno(writer.device.plain(ioctl::STOP)), libc::EBUSY);
    // What is committed to a stopped stream waits.
    writer.fill(&numbered(10, 40));
    writer.commit();
    writer.device.plain(ioctl::START).unwrap();
    let next = writer.next;
    assert!(writer.wait_for(next, LIMIT));
    let ready = writer.device.poll_for(libc::POLLOUT, Duration::ZERO).unwrap();
    assert_eq!(ready & libc::POLLHUP, 0);
    let arrived = collect(to, 2, SILENCE).join().unwrap();
    assert_eq!(arrived, [numbered(0, 40), numbered(10, 40)]);
    writer.device.plain(ioctl::RESET_STATS).unwrap();
    assert_eq!(writer.counters().committed, 0);
}

#[test]
fn a_stop_lets_the_legs_go_if_it_is_to() {
    let receivers = [receiver(), receiver()];
    let from = sender(&receivers[0]);
    let local = from.local_addr().unwrap();
    let mut writer = Writer::running(request(), &[&from]).unwrap();
    drop(from);
    writer.send_all([numbered(0, 40).as_slice()], LIMIT);
    let mut stop = ioctl::Plain { flags: ioctl::STOP_LEGS | 2, ..Default::default() };
    assert_eq!(errno(writer.device.call(ioctl::STOP, &mut stop)), libc::EINVAL);
    stop.flags = ioctl::STOP_LEGS;
    writer.device.call(ioctl::STOP, &mut stop).unwrap();
    let deadline = Instant::now() + LIMIT;
    while UdpSocket::bind(local).is_err() {
        assert!(Instant::now() < deadline, "nobody has the socket any more");
    }
    assert_eq!(errno(writer.device.plain(ioctl::START)), libc::EINVAL);
    writer.add_leg(0, sender(&receivers[1]).as_raw_fd(), 0).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    writer.send_all([numbered(1, 40).as_slice()], LIMIT);
    for (number, to) in receivers.into_iter().enumerate() {
        let arrived = collect(to, 1, SILENCE).join().unwrap();
        assert_eq!(arrived, [numbered(number as u64, 40)]);
    }
}

#[test]
fn both_legs_get_everything() {
    let receivers = [receiver(), receiver()];
    let senders = [sender(&receivers[0]), sender(&receivers[1])];
    let create = ioctl::Create { ring_order: 6, ..request() };
    let mut writer = Writer::running(create, &[&senders[0], &senders[1]]).unwrap();
    let packets = mixed(2_000);
    let receiving = receivers.map(|to| collect(to, packets.len(), SILENCE));
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    for arrived in receiving {
        assert!(arrived.join().unwrap() == packets);
    }
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!(counters.sent, 2_000, "once, not once per leg");
    for leg in [0, 1] {
        let figures = writer.leg(leg);
        assert_eq!((figures.received, figures.lost), (2_000, 0));
        assert_eq!(figures.bytes, counters.sent_bytes);
        assert!(figures.last_ns > 0 && figures.socket_buffer > 0);
    }
}

/// An interface whose packets wait for an answer that never comes, until it is dropped.
struct Void(&'static str);

impl Void {
    /// `name`, in the network `prefix`.0/24.
    fn new(name: &'static str, prefix: &str) -> Self {
        let run = |line: &str| {
            let done = Command::new("sh").args(["-c", line]).output().unwrap();
            let text = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{line}: {text}");
        };
        run(&format!("ip link add {name} type veth"));
        let void = Self(name);
        // The other end has no address, so nobody answers; and nobody gives up asking.
        let other = fs::read_to_string(format!("/sys/class/net/{name}/iflink")).unwrap();
        let other = fs::read_dir("/sys/class/net")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| fs::read_to_string(path.join("ifindex")).unwrap() == other)
            .expect("the other end");
        let other = other.file_name().unwrap().to_str().unwrap().to_owned();
        run(&format!("ip link set {other} up"));
        run(&format!("ip addr add {prefix}.1/24 dev {name}"));
        fs::write(format!("/proc/sys/net/ipv4/neigh/{name}/mcast_solicit"), "10000").unwrap();
        run(&format!("ip link set {name} up"));
        void
    }

    /// A stream whose only leg is [`Void::sender`], packet by packet: as one, a buffer that is not full
    /// takes many.
    fn writer(prefix: &str, ring_order: u32) -> Writer {
        let writer = Writer::create(ioctl::Create { ring_order, ..request() }).unwrap();
        writer.add_leg(0, Self::sender(prefix).as_raw_fd(), ioctl::LEG_NO_GSO).unwrap();
        writer.device.plain(ioctl::START).unwrap();
        writer
    }

    /// A socket connected to nobody, with the smallest send buffer.
    fn sender(prefix: &str) -> UdpSocket {
        let socket = UdpSocket::bind((format!("{prefix}.1").as_str(), 0)).unwrap();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 1);
        socket.connect((format!("{prefix}.77").as_str(), 5_004)).unwrap();
        socket
    }
}

impl Drop for Void {
    fn drop(&mut self) {
        let done = Command::new("ip").args(["link", "del", self.0]).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_stream_whose_socket_takes_nothing_holds_up_no_other() {
    let void = Void::new("void0", "10.77.1");
    let mut stuck = Void::writer("10.77.1", 8);
    for number in 0..200 {
        stuck.fill(&numbered(number, 1_000));
    }
    stuck.commit();
    let packets = mixed(2_000);
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let packets = packets.clone();
            std::thread::spawn(move || {
                let create = ioctl::Create { ring_order: 6, ..request() };
                let start = Instant::now();
                let (arrived, _) = through(&packets, create, 0);
                assert!(arrived == packets);
                start.elapsed()
            })
        })
        .collect();
    for stream in streams {
        println!("a stream beside it took {:?}", stream.join().unwrap());
    }
    // What it cannot send it gives up in time, and the ring goes on.
    assert!(stuck.wait_for(200, LIMIT), "{:?}", stuck.counters());
    let counters = stuck.counters();
    assert_books(&counters);
    assert!(counters.send_failed > 150, "{counters:?}");
    assert_eq!(counters.send_errno, libc::EAGAIN as u64);
    assert_eq!(stuck.leg(0).lost, counters.send_failed);
    drop(void);
    // The interface is gone: an error of the path, and it goes on.
    stuck.fill(&numbered(200, 100));
    stuck.commit();
    assert!(stuck.wait_for(201, LIMIT), "{:?}", stuck.counters());
    let counters = stuck.counters();
    assert_books(&counters);
    assert_eq!(counters.send_errno, libc::ENETUNREACH as u64, "{counters:?}");
}

#[test]
fn a_leg_that_takes_nothing_costs_the_other_nothing() {
    let _void = Void::new("void1", "10.77.2");
    let to = receiver();
    let create = ioctl::Create { ring_order: 6, ..request() };
    let legs = [Void::sender("10.77.2"), sender(&to)];
    let mut writer = Writer::running(create, &[&legs[0], &legs[1]]).unwrap();
    let packets: Vec<_> = (0..1_000).map(|number| numbered(number, 1_000)).collect();
    let receiving = collect(to, packets.len(), SILENCE);
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    assert!(receiving.join().unwrap() == packets);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed), (1_000, 0), "one leg took each");
    assert_eq!(counters.send_errno, libc::EAGAIN as u64);
    let (blocked, other) = (writer.leg(0), writer.leg(1));
    assert_eq!((other.received, other.lost), (1_000, 0));
    assert_eq!(blocked.received + blocked.lost, 1_000);
    assert!(blocked.lost > 900, "{blocked:?}");
}

/// The call in which a thread of this process sleeps.
fn sleeps_in(thread: libc::pid_t) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap();
    text.split(' ').next()?.trim().parse().ok()
}

/// Does something in a thread, and returns when that sleeps in `call`.
fn blocked_in<T: Send + 'static>(
    call: i64,
    act: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        // SAFETY: Asks who this is.
        tell.send(unsafe { libc::gettid() }).unwrap();
        act()
    });
    let number = told.recv().unwrap();
    let deadline = Instant::now() + LIMIT;
    while sleeps_in(number) != Some(call) {
        assert!(Instant::now() < deadline && !thread.is_finished(), "it does not wait");
    }
    thread
}

#[test]
fn who_looks_does_not_wait_for_a_stream_that_waits_for_its_socket() {
    let void = Void::new("void3", "10.77.4");
    // A socket whose lock is held: by a corked send that waits for space.
    let leg = || {
        let socket = Void::sender("10.77.4");
        socket.set_nonblocking(true).unwrap();
        while socket.send(&[0; 1_000]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        let device = Device::open().unwrap();
        let create = ioctl::Create { ring_order: 4, ..Default::default() };
        let id = device.create_udp(create).unwrap().id;
        device.add_leg(&socket, 0).unwrap();
        let sending = blocked_in(libc::SYS_sendto, move || {
            // SAFETY: Bytes and their number.
            unsafe {
                libc::send(socket.as_raw_fd(), [0_u8; 100].as_ptr().cast(), 100, libc::MSG_MORE)
            }
        });
        (device, id, sending)
    };
    let (stopped, stopped_id, sending) = leg();
    let (closed, closed_id, other_sending) = leg();
    let (looking, reading) = (Device::open().unwrap(), Device::open().unwrap());
    looking.attach(&stopped, ioctl::READER_NONE).unwrap();
    reading.attach(&stopped, ioctl::READER_LOSSY).unwrap();
    let stopping = blocked_in(libc::SYS_ioctl, move || {
        let mut legs = ioctl::Plain { flags: ioctl::STOP_LEGS, ..Default::default() };
        stopped.call(ioctl::STOP, &mut legs).map(|()| stopped)
    });
    let closing = blocked_in(libc::SYS_close, move || drop(closed));
    let (tell, told) = mpsc::channel();
    let asking = std::thread::spawn(move || {
        let listed: Vec<_> = list(&looking).iter().map(|entry| entry.id).collect();
        assert!(listed.contains(&stopped_id), "{listed:?}");
        let info = format!("/proc/self/fdinfo/{}", looking.fd());
        assert!(fs::read_to_string(info).unwrap().contains("rtp-state:\tconfigured"));
        looking.stats().unwrap();
        let by_id = |id| {
            let reader = ioctl::READER_LOSSY;
            let mut request = ioctl::Attach { fd: -1, id, reader, ..Default::default() };
            let device = Device::open().unwrap();
            device.call(ioctl::ATTACH, &mut request).map(|()| device)
        };
        by_id(stopped_id).unwrap();
        assert_eq!(errno(by_id(closed_id)), libc::ENOENT, "nobody has it any more");
        drop(reading);
        tell.send(()).unwrap();
    });
    let answered = told.recv_timeout(LIMIT);
    let waits = !stopping.is_finished() && !closing.is_finished();
    // What was waited for goes with the interface.
    drop(void);
    asking.join().unwrap();
    assert_eq!(answered, Ok(()), "whoever looks waits for somebody else's socket");
    assert!(waits, "they were to wait for the sockets' locks meanwhile");
    stopping.join().unwrap().unwrap();
    closing.join().unwrap();
    sending.join().unwrap();
    other_sending.join().unwrap();
}

#[test]
fn the_list_tells_what_was_committed() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 4, start: u64::MAX - 3, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    let packets: Vec<_> = (0..20).map(|number| numbered(number, 100)).collect();
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    let entry = list(&writer.device)
        .into_iter()
        .find(|entry| entry.id == writer.header.stream_id)
        .expect("it is listed");
    assert_eq!((entry.direction, entry.published), (abi::DIRECTION_TRANSMIT, 20));
    assert_eq!((entry.readers, u64::from(entry.state)), (0, abi::STATE_RUNNING));
}

#[test]
fn space_in_the_socket_wakes_a_stream_that_waited_for_it() {
    let void = Void::new("void2", "10.77.3");
    let mut writer = Void::writer("10.77.3", 4);
    for number in 0..16 {
        writer.fill(&numbered(number, 1_400));
    }
    writer.commit();
    let deadline = Instant::now() + LIMIT;
    while writer.leg(0).received == 0 {
        assert!(Instant::now() < deadline, "{:?}", writer.counters());
    }
    assert!(!writer.wait_for(16, Duration::from_millis(100)), "the socket is full");
    // Somebody answers: what waited leaves, and there is space. The batch is not given up.
    let command = "arp -s 10.77.3.77 02:00:00:00:00:01 -i void2";
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    assert!(writer.wait_for(16, Duration::from_millis(800)), "{:?}", writer.counters());
    let counters = writer.counters();
    assert_eq!((counters.sent, counters.send_failed), (16, 0), "{counters:?}");
    drop(void);
}

#[test]
fn a_port_where_nobody_listens_is_counted_and_sending_goes_on() {
    let gone = receiver();
    let socket = sender(&gone);
    let address = gone.local_addr().unwrap();
    drop(gone);
    let create = ioctl::Create { ring_order: 4, ..request() };
    let mut writer = Writer::running(create, &[&socket]).unwrap();
    let deadline = Instant::now() + LIMIT;
    while writer.counters().external_drops < 10 {
        assert!(Instant::now() < deadline, "{:?}", writer.counters());
        writer.fill(&numbered(writer.next, 100));
        writer.commit();
        let next = writer.next;
        assert!(writer.wait_for(next, LIMIT));
    }
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!(counters.send_errno, libc::ECONNREFUSED as u64);
    assert_eq!(writer.leg(0).external_drops, counters.external_drops);
    let back = UdpSocket::bind(address).unwrap();
    let sent = counters.sent;
    writer.fill(&numbered(1_000, 100));
    writer.commit();
    let arrived = collect(back, 1, SILENCE).join().unwrap();
    assert_eq!(arrived, [numbered(1_000, 100)]);
    // It arrives before it is counted.
    let next = writer.next;
    assert!(writer.wait_for(next, LIMIT));
    assert_eq!(writer.counters().sent, sent + 1);
}

#[test]
fn a_socket_that_was_shut_down_or_disconnected_fails_and_the_ring_goes_on() {
    let to = receiver();
    let socket = sender(&to);
    let create = ioctl::Create { ring_order: 4, ..request() };
    let mut writer = Writer::running(create, &[&socket]).unwrap();
    // SAFETY: A socket.
    assert_eq!(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) }, 0);
    writer.send_all([numbered(0, 100).as_slice()], LIMIT);
    assert_eq!(writer.counters().send_errno, libc::EPIPE as u64);
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: An address without a family.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), &nowhere, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    writer.send_all([numbered(1, 100).as_slice()], LIMIT);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed), (0, 2));
}

#[test]
fn a_corked_socket_is_not_waited_for() {
    let to = receiver();
    let socket = sender(&to);
    let create = ioctl::Create { ring_order: 4, ..request() };
    let mut writer = Writer::running(create, &[&socket]).unwrap();
    set_option(&socket, libc::SOL_UDP, 1, 1);
    writer.send_all([numbered(0, 100).as_slice()], LIMIT);
    assert_eq!(writer.counters().send_errno, libc::EBUSY as u64);
    set_option(&socket, libc::SOL_UDP, 1, 0);
    writer.send_all([numbered(1, 100).as_slice()], LIMIT);
    assert_eq!(collect(to, 1, SILENCE).join().unwrap(), [numbered(1, 100)]);
}

#[test]
fn what_the_socket_is_set_to_is_honoured() {
    let to = receiver();
    let from = sender(&to);
    set_option(&to, libc::IPPROTO_IP, libc::IP_RECVTTL, 1);
    set_option(&to, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
    set_option(&from, libc::IPPROTO_IP, libc::IP_TTL, 7);
    set_option(&from, libc::IPPROTO_IP, libc::IP_TOS, 0xb8);
    let mut writer = Writer::running(request(), &[&from]).unwrap();
    let packets: Vec<_> = (0..10).map(|number| numbered(number, 100)).collect();
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    for _ in 0..10 {
        let mut control = [0_u64; 32];
        // SAFETY: All zero is an empty header.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: The header describes the buffer above, and the kernel fills it.
        unsafe {
            assert!(libc::recvmsg(to.as_raw_fd(), &mut message, 0) >= 0);
            let mut found = Vec::new();
            let mut at = libc::CMSG_FIRSTHDR(&message);
            while !at.is_null() {
                found.push(((*at).cmsg_type, *libc::CMSG_DATA(at)));
                at = libc::CMSG_NXTHDR(&message, at);
            }
            found.sort_unstable();
            assert_eq!(found, [(libc::IP_TOS, 0xb8), (libc::IP_TTL, 7)]);
        }
    }
}

#[test]
fn ipv6_is_sent_alike() {
    let to = UdpSocket::bind("[::1]:0").unwrap();
    set_option(&to, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20);
    let from = UdpSocket::bind("[::1]:0").unwrap();
    from.connect(to.local_addr().unwrap()).unwrap();
    let mut writer = Writer::running(request(), &[&from]).unwrap();
    let packets = mixed(500);
    let receiving = collect(to, packets.len(), SILENCE);
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    assert!(receiving.join().unwrap() == packets);
    assert!(writer.counters().coalesced > 0);
}

#[test]
fn where_segmentation_is_refused_packets_go_one_by_one() {
    let to = receiver();
    let from = sender(&to);
    // Without checksums the kernel does not segment.
    set_option(&from, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    let mut writer = Writer::running(request(), &[&from]).unwrap();
    let packets = mixed(300);
    let receiving = collect(to, packets.len(), SILENCE);
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    assert!(receiving.join().unwrap() == packets);
    let counters = writer.counters();
    assert_eq!((counters.sent, counters.send_failed, counters.coalesced), (300, 0, 0));
    assert_eq!(counters.socket_calls, 301, "one was refused");
}

#[test]
fn descriptors_that_make_no_sense_are_refused_and_the_ring_goes_on() {
    let to = receiver();
    let create = ioctl::Create { ring_order: 5, start: u64::MAX - 1, ..request() };
    let mut writer = Writer::running(create, &[&sender(&to)]).unwrap();
    let mut good = 0;
    let mut bad = 0;
    for round in 0..40 {
        let slot = writer.index(writer.next);
        let wrong = [
            Descriptor { slot: slot ^ 1, len: 100, ..Default::default() },
            Descriptor { slot: u32::MAX, len: 100, ..Default::default() },
            Descriptor { slot: slot + 32, len: 100, ..Default::default() },
            Descriptor { slot, len: 0, ..Default::default() },
            Descriptor { slot, len: 11, ..Default::default() },
            Descriptor { slot, len: 2_049, ..Default::default() },
            Descriptor { slot, len: u32::MAX, ..Default::default() },
            Descriptor { slot, len: 0, time_ns: 1, flags: flag::LAUNCH_TIME, ..Default::default() },
        ];
        writer.describe(wrong[round % wrong.len()]);
        bad += 1;
        writer.fill(&numbered(good, 80));
        good += 1;
        writer.commit();
        let next = writer.next;
        assert!(writer.wait_for(next, LIMIT), "{:?}", writer.counters());
    }
    // Heads that are not true: behind, and more than a ring ahead.
    let head = writer.next;
    for wrong in [head.wrapping_sub(1), head.wrapping_add(33), head ^ 1 << 63] {
        writer.next = wrong;
        writer.commit();
        writer.device.plain(ioctl::KICK).unwrap();
        bad += 1;
        let deadline = Instant::now() + LIMIT;
        while writer.counters().violations < bad {
            assert!(Instant::now() < deadline, "{:?}", writer.counters());
        }
    }
    writer.next = head;
    writer.fill(&numbered(good, 80));
    good += 1;
    writer.commit();
    let arrived = collect(to, good as usize, SILENCE).join().unwrap();
    assert!(arrived.iter().enumerate().all(|(n, bytes)| *bytes == numbered(n as u64, 80)));
    assert_eq!(arrived.len() as u64, good);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.violations, counters.send_failed), (bad, bad - 3));
    assert_eq!(counters.sent, good);
}

#[test]
fn scribbling_over_everything_writable_hurts_only_the_scribbler() {
    let to = receiver();
    let honest_to = receiver();
    let create = ioctl::Create { ring_order: 6, ..request() };
    let scribbled = Writer::running(create, &[&sender(&to)]).unwrap();
    let packets = mixed(3_000);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            let (writer, over) = (&scribbled, &over);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !over.load(Ordering::Relaxed) {
                    let part = [&writer.control, &writer.descriptors, &writer.slots];
                    let words = part[random.below(3) as usize].words();
                    let at = random.below(words.len() as u64) as usize;
                    let value = match random.below(4) {
                        0 => random.next(),
                        1 => random.below(64) | random.below(2_100) << 32,
                        2 => writer.tail().wrapping_add(random.below(80)),
                        _ => [0, 1, u64::MAX, 1 << 63][random.below(4) as usize],
                    };
                    words[at].store(value);
                    // The head and the descriptors decide most.
                    let tail = writer.tail();
                    writer.control.words()[0].store(tail.wrapping_add(random.below(70)));
                    let slot = random.below(64);
                    let len = 8 + random.below(2_050);
                    writer.descriptors.words()[slot as usize * 8 + 2].store(slot | len << 32);
                    if random.below(8) == 0 {
                        writer.device.plain(ioctl::KICK).unwrap();
                    }
                }
            });
        }
        let (device, over) = (&scribbled.device, &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                device.plain(ioctl::STOP).unwrap();
                assert_books(&device.stats().unwrap().1);
                device.plain(ioctl::START).unwrap();
            }
        });
        let mut honest = Writer::running(create, &[&sender(&honest_to)]).unwrap();
        let receiving = collect(honest_to, packets.len(), SILENCE);
        let deadline = Instant::now() + Duration::from_secs(3);
        honest.send_all(packets.iter().map(Vec::as_slice), LIMIT);
        assert!(receiving.join().unwrap() == packets, "another stream notices nothing");
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
    });
    scribbled.device.plain(ioctl::STOP).unwrap();
    let counters = scribbled.counters();
    println!("{counters:?}");
    assert_books(&counters);
    assert!(counters.sent > 0 && counters.violations > 0, "{counters:?}");
    drop(to);
}

#[test]
fn only_the_writer_sees_and_writes_what_is_sent() {
    let writer = Writer::create(request()).unwrap();
    let header = writer.header;
    let (read, both) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    let page = PAGE as u64;
    assert_eq!(errno(writer.device.map(header.status_offset, page, both)), libc::EPERM);
    assert_eq!(errno(writer.status.protect(both)), libc::EACCES);
    let observer = Device::open().unwrap();
    for reader in [ioctl::READER_RELIABLE, ioctl::READER_LOSSY] {
        let refused = errno(observer.attach(&writer.device, reader));
        assert!([libc::EINVAL, libc::EPERM].contains(&refused), "{refused}");
    }
    observer.attach(&writer.device, ioctl::READER_NONE).unwrap();
    assert!(observer.map(header.status_offset, header.status_len, read).is_ok());
    for offset in [header.control_offset, header.desc_offset, header.slots_offset] {
        for protection in [read, both] {
            let refused = errno(observer.map(offset, page, protection));
            assert_eq!(refused, libc::EPERM, "{offset:#x}");
        }
    }
    for call in [ioctl::START, ioctl::STOP, ioctl::KICK, ioctl::RESET_STATS] {
        assert_eq!(errno(observer.plain(call)), libc::EPERM);
    }
    assert_eq!(errno(observer.set(ioctl::SETTING_RATE, 0)), libc::EPERM);
    assert!(observer.stats().is_ok());
    // An observer that stays sees the end.
    drop(writer);
    assert_eq!(u64::from(observer.stats().unwrap().0), abi::STATE_STOPPED);
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let refused = |change: fn(&mut ioctl::Create)| {
        let mut request = request();
        change(&mut request);
        errno(Device::open().unwrap().call(ioctl::CREATE, &mut request))
    };
    assert_eq!(refused(|r| r.legs = 3), libc::EINVAL);
    assert_eq!(refused(|r| r.source = ioctl::SOURCE_SIMULATED), libc::EINVAL);
    assert_eq!(refused(|r| r.flags = ioctl::CREATE_ORDERED), libc::EINVAL);
    assert_eq!(refused(|r| r.ring_order = 3), libc::EINVAL);
    assert_eq!(refused(|r| r.slot_stride = 65_537), libc::EINVAL);
    assert_eq!(refused(|r| r.reorder_ns = 1), libc::EINVAL);

    let to = receiver();
    let socket = sender(&to);
    let writer = Writer::create(request()).unwrap();
    let start = |writer: &Writer| errno(writer.device.plain(ioctl::START));
    assert_eq!(start(&writer), libc::EINVAL, "it has no leg yet");
    assert_eq!(errno(writer.add_leg(0, -1, 0)), libc::EBADF);
    assert_eq!(errno(writer.add_leg(0, writer.device.fd(), 0)), libc::ENOTSOCK);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(errno(writer.add_leg(0, tcp.as_raw_fd(), 0)), libc::EINVAL);
    let (unix, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert_eq!(errno(writer.add_leg(0, unix.as_raw_fd(), 0)), libc::EINVAL);
    assert_eq!(errno(writer.add_leg(0, to.as_raw_fd(), 0)), libc::ENOTCONN);
    assert_eq!(errno(writer.add_leg(1, socket.as_raw_fd(), 0)), libc::EINVAL);
    assert_eq!(errno(writer.add_leg(u32::MAX, socket.as_raw_fd(), 0)), libc::EINVAL);
    assert_eq!(errno(writer.add_leg(0, socket.as_raw_fd(), ioctl::LEG_SOURCE)), libc::EINVAL);
    writer.add_leg(0, socket.as_raw_fd(), 0).unwrap();
    assert_eq!(errno(writer.add_leg(0, socket.as_raw_fd(), 0)), libc::EBUSY);
    writer.device.plain(ioctl::START).unwrap();
    assert_eq!(errno(writer.add_leg(0, socket.as_raw_fd(), 0)), libc::EBUSY);
    assert_eq!(errno(writer.device.set(ioctl::SETTING_INTERVAL_NS, 1 << 20)), libc::EOPNOTSUPP);
    assert_eq!(errno(writer.device.get(ioctl::SETTING_BURST)), libc::EOPNOTSUPP);
    assert_eq!(errno(writer.device.set(ioctl::SETTING_STALL_NS, 1 << 30)), libc::EOPNOTSUPP);
    let (state, _) = writer.device.stats().unwrap();
    assert_eq!(u64::from(state), abi::STATE_RUNNING);
}

#[test]
fn a_socket_closed_by_its_user_goes_on_sending_until_the_stream_ends() {
    let to = receiver();
    let from = sender(&to);
    let local = from.local_addr().unwrap();
    let mut writer = Writer::running(request(), &[&from]).unwrap();
    drop(from);
    writer.send_all([numbered(0, 100).as_slice()], LIMIT);
    assert_eq!(collect(to, 1, SILENCE).join().unwrap(), [numbered(0, 100)]);
    assert!(UdpSocket::bind(local).is_err(), "the stream has it");
    drop(writer);
    let deadline = Instant::now() + LIMIT;
    while UdpSocket::bind(local).is_err() {
        assert!(Instant::now() < deadline, "nobody has it any more");
    }
}

#[test]
fn a_namespace_that_nobody_else_has_goes_with_the_stream() {
    let (writer, to) = std::thread::spawn(|| {
        // SAFETY: This thread alone gets a network of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let to = receiver();
        let writer = Writer::running(request(), &[&sender(&to)]).unwrap();
        (writer, to)
    })
    .join()
    .unwrap();
    let mut writer = writer;
    writer.send_all([numbered(0, 100).as_slice()], LIMIT);
    assert_eq!(collect(to, 1, SILENCE).join().unwrap(), [numbered(0, 100)]);
    // Now only the stream's socket keeps it. Nobody listens.
    for number in 1..20 {
        writer.send_all([numbered(number, 100).as_slice()], LIMIT);
    }
    assert_books(&writer.counters());
    assert!(writer.counters().external_drops > 0);
}

/// The thread of the only stream, when it waits to be kicked.
fn asleep(writer: &Writer) -> u32 {
    let deadline = Instant::now() + LIMIT;
    while writer.status.word(status::NEED_KICK).load() == 0 {
        assert!(Instant::now() < deadline);
    }
    let [thread] = threads()[..] else { panic!("one stream, one thread: {:?}", threads()) };
    // What it was doing when it set the word is over when it next sleeps.
    std::thread::sleep(Duration::from_millis(100));
    thread
}

#[test]
fn a_writer_that_waits_is_served_in_its_own_calls() {
    const COMMITS: u64 = 40;
    let to = receiver();
    assert_eq!(threads(), [], "of earlier tests");
    let mut writer = Writer::running(request(), &[&sender(&to)]).unwrap();
    let thread = asleep(&writer);
    let before = switches(thread);
    for number in 0..COMMITS {
        writer.fill(&numbered(number, 1_300));
        writer.commit();
        assert_eq!(writer.tail(), writer.next, "sent when KICK returned");
    }
    assert_eq!(switches(thread), before, "the thread was not woken");
    assert_eq!(writer.kicks, COMMITS);
    let arrived = collect(to, COMMITS as usize, SILENCE).join().unwrap();
    assert!(arrived.iter().enumerate().all(|(n, bytes)| *bytes == numbered(n as u64, 1_300)));
    assert_eq!(arrived.len() as u64, COMMITS);
}

#[test]
fn packets_that_wait_at_their_receiver_stay_as_they_were_sent() {
    // More than the pages hold that are used again and again.
    const COUNT: u64 = 2_000;
    for flags in [0, ioctl::LEG_NO_GSO] {
        let to = receiver();
        let writer = Writer::create(ioctl::Create { ring_order: 6, ..request() });
        let mut writer = writer.unwrap();
        writer.add_leg(0, sender(&to).as_raw_fd(), flags).unwrap();
        writer.device.plain(ioctl::START).unwrap();
        let packets: Vec<_> = (0..COUNT).map(|number| numbered(number, 1_300)).collect();
        writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
        assert_eq!(writer.counters().sent, COUNT);
        // Nothing was read so far.
        let arrived = collect(to, packets.len(), SILENCE).join().unwrap();
        assert_eq!(arrived.len(), packets.len(), "flags {flags}");
        assert!(arrived == packets, "flags {flags}: other bytes");
    }
}

/// How many pieces a buffer of the stack may have, until it is dropped.
struct Pieces(String);

impl Pieces {
    const PATH: &str = "/proc/sys/net/core/max_skb_frags";

    fn limit(count: u32) -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap();
        std::fs::write(Self::PATH, count.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        std::fs::write(Self::PATH, &self.0).unwrap();
    }
}

#[test]
fn trains_leave_where_a_buffer_may_have_one_piece_only() {
    const COUNT: usize = 46;
    let _limit = Pieces::limit(1);
    let to = receiver();
    let mut writer = Writer::create(request()).unwrap();
    writer.add_leg(0, sender(&to).as_raw_fd(), ioctl::LEG_NO_ZEROCOPY).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    let packets: Vec<_> = (0..COUNT as u64).map(|number| numbered(number, 1_400)).collect();
    packets.iter().for_each(|packet| writer.fill(packet));
    writer.commit();
    assert!(writer.wait_for(writer.next, LIMIT));
    let counters = writer.counters();
    assert_eq!((counters.sent, counters.send_failed), (COUNT as u64, 0));
    assert_eq!(counters.coalesced, COUNT as u64, "all in one send: {counters:?}");
    assert_eq!(counters.socket_calls, 2, "the first was refused: {counters:?}");
    assert!(collect(to, COUNT, SILENCE).join().unwrap() == packets);
}

#[test]
fn an_idle_stream_costs_nothing() {
    let to = receiver();
    assert_eq!(threads(), [], "of earlier tests");
    let mut writer = Writer::running(request(), &[&sender(&to)]).unwrap();
    writer.send_all([numbered(0, 100).as_slice()], LIMIT);
    let thread = asleep(&writer);
    let before = switches(thread);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(thread), before, "it was not woken");
    // A launch time far away costs little: the clock may be set meanwhile.
    writer.fill_at(&numbered(1, 100), clock_ns(libc::CLOCK_TAI) + (1 << 50));
    writer.commit();
    std::thread::sleep(Duration::from_secs(2));
    let woken = switches(thread) - before;
    assert!((1..=10).contains(&woken), "{woken} times in two seconds");
    writer.device.plain(ioctl::STOP).unwrap();
    // It has ended; that nobody lists it any more takes a moment.
    let deadline = Instant::now() + LIMIT;
    while !threads().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", threads());
    }
}

#[test]
fn what_a_killed_writer_leaves_goes_with_it() {
    let to = receiver();
    for round in 0..10 {
        let mut pipe = [0; 2];
        // SAFETY: Room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: The child uses its own stream until it is killed.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let done = Writer::running(request(), &[&sender(&to)]).map(|mut writer| {
                for number in 0..500 {
                    let far = clock_ns(libc::CLOCK_TAI) + (1 << 50);
                    let launch = if number < 100 { 0 } else { far };
                    writer.fill_at(&numbered(number, 1_000), launch);
                }
                writer.commit();
                // SAFETY: One byte to the parent.
                unsafe { libc::write(pipe[1], [1_u8].as_ptr().cast(), 1) };
                loop {
                    std::hint::spin_loop();
                }
            });
            drop(done);
            // SAFETY: Ends the child.
            unsafe { libc::_exit(1) };
        }
        let mut started = 0_u8;
        let mut status = 0;
        // SAFETY: Our child and our pipe.
        unsafe {
            libc::close(pipe[1]);
            assert_eq!(libc::read(pipe[0], (&raw mut started).cast(), 1), 1, "round {round}");
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &mut status, 0);
            libc::close(pipe[0]);
        }
    }
    assert_eq!(threads(), []);
    let mut list = ioctl::List { entry_size: 64, ..Default::default() };
    Device::open().unwrap().call(ioctl::LIST, &mut list).unwrap();
    assert_eq!(list.count, 0);
}

#[test]
fn starting_stopping_and_closing_in_a_storm_leaves_nothing() {
    let to = receiver();
    let deadline = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let to = &to;
            scope.spawn(move || {
                let mut random = Random(seed * 99);
                while Instant::now() < deadline {
                    let create = ioctl::Create { ring_order: 5, ..request() };
                    let mut writer = Writer::running(create, &[&sender(to)]).unwrap();
                    for number in 0..random.below(32) {
                        writer.fill(&numbered(number, 200));
                    }
                    writer.commit();
                    if random.below(2) == 0 {
                        writer.device.plain(ioctl::STOP).unwrap();
                        assert_eq!(writer.tail(), writer.next);
                    }
                    let mapping = writer.device.map(0, PAGE as u64, libc::PROT_READ).unwrap();
                    drop(writer);
                    drop(mapping);
                }
            });
        }
    });
    assert_eq!(threads(), []);
}

#[test]
fn the_module_stays_while_a_stream_is_there() {
    let to = receiver();
    let mut writer = Writer::running(request(), &[&sender(&to)]).unwrap();
    writer.fill_at(&numbered(0, 100), clock_ns(libc::CLOCK_TAI) + (1 << 50));
    writer.commit();
    // SAFETY: A text.
    let unloaded =
        unsafe { libc::syscall(libc::SYS_delete_module, c"rtp_mgr".as_ptr(), libc::O_NONBLOCK) };
    assert_eq!(
        (unloaded, io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::EWOULDBLOCK))
    );
}

#[test]
fn a_user_without_rights_sends_with_a_device_that_it_was_given() {
    let to = receiver();
    // SAFETY: A child that changes its own user and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: As above; the device was opened before.
        let status = unsafe {
            let device_open = fs::set_permissions(
                rtp_mgr_kernel_tests::DEVICE,
                std::os::unix::fs::PermissionsExt::from_mode(0o666),
            );
            if device_open.is_err() || libc::setuid(65_534) != 0 {
                libc::_exit(1);
            }
            let sent = Writer::running(request(), &[&sender(&to)]).map(|mut writer| {
                writer.send_all([numbered(0, 100).as_slice()], LIMIT);
                writer.counters().sent
            });
            i32::from(!matches!(sent, Ok(1)))
        };
        // SAFETY: Ends the child.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: Our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(rtp_mgr_kernel_tests::DEVICE, mode).unwrap();
    assert_eq!(status, 0);
    assert_eq!(collect(to, 1, SILENCE).join().unwrap(), [numbered(0, 100)]);
}
