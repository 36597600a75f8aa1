//! Sends from the ring's own pages: which they are, and that no slot is released before the network has
//! let go of it.

#![allow(unsafe_code)] // A tun device, a namespace.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::books::assert_transmit_books as assert_books;
use rtp_mgr_kernel_tests::dummy::{Dummy, LEN, shell};
use rtp_mgr_kernel_tests::random::Random;
use rtp_mgr_kernel_tests::transmit::{
    Writer, collect, numbered, receiver, request, sender, switches, threads,
};
use rtp_mgr_ring::abi::{LegFigures, ioctl};

const LIMIT: Duration = Duration::from_secs(30);
/// Longest time without a packet that is still to come.
const SILENCE: Duration = Duration::from_secs(10);
/// More than a test takes: who waits for what is queued so long waits for its end.
const FOR_LONG: &str = "delay 100s";

/// Commits packets with these numbers, as one train if they are due together, and waits until they count
/// as sent, whether or not their slots are released.
fn send(writer: &mut Writer, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| writer.fill(&numbered(number, LEN)));
    writer.commit();
    sent(writer);
}

/// Waits until all that was committed counts as sent.
fn sent(writer: &Writer) {
    let deadline = Instant::now() + LIMIT;
    let committed = writer.next;
    loop {
        let counters = writer.counters();
        assert_books(&counters);
        assert_eq!(counters.send_failed, 0, "{counters:?}");
        if counters.sent == committed {
            return;
        }
        assert!(Instant::now() < deadline, "{counters:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends `count` packets of `len` bytes and returns the leg's figures when all slots are free again.
fn through(socket: &UdpSocket, (stride, len): (u32, usize), count: u64, flags: u32) -> LegFigures {
    let create = ioctl::Create { ring_order: 8, slot_stride: stride, ..request() };
    let mut writer = Writer::create(create).unwrap();
    writer.add_leg(0, socket.as_raw_fd(), flags).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    let packet = numbered(7, len);
    writer.send_all((0..count).map(|_| packet.as_slice()), LIMIT);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed), (count, 0), "{counters:?}");
    let figures = writer.leg(0);
    assert_eq!((figures.received, figures.lost), (count, 0));
    assert_eq!(figures.bytes, count * len as u64);
    assert!(figures.zerocopy <= count);
    figures
}

/// Whether any of some rounds of [`through`] has a packet that was read from the ring: how prompt a
/// machine is that does other things, too, is not sure at any one time.
fn reads(socket: &UdpSocket, shape: (u32, usize), flags: u32) -> bool {
    (0..10).any(|_| through(socket, shape, 500, flags).zerocopy > 0)
}

#[test]
fn large_sends_are_read_from_the_ring() {
    let dummy = Dummy::new("zc0", "10.88.0");
    let socket = dummy.sender();
    for shape in [(1_400, 1_400), (8_192, 8_000), (8_000, 8_000)] {
        assert!(reads(&socket, shape, 0), "{shape:?}");
        assert_eq!(through(&socket, shape, 200, ioctl::LEG_NO_ZEROCOPY).zerocopy, 0);
    }
    assert!(reads(&dummy.sender_v6(), (1_400, 1_400), 0), "over IPv6");
    // One by one they are too small.
    assert_eq!(through(&socket, (1_400, 1_400), 200, ioctl::LEG_NO_GSO).zerocopy, 0);
}

#[test]
fn what_the_network_copies_is_not_read_from_the_ring() {
    let dummy = Dummy::new("zc1", "10.88.1");
    let shape = (LEN as u32, LEN);
    // It has the trains cut up, and reads their parts.
    dummy.offload("tx-udp-segmentation off");
    assert!(reads(&dummy.sender(), shape, 0));
    let tap = dummy.tap();
    assert_eq!(through(&dummy.sender(), shape, 300, 0).zerocopy, 0, "somebody watches");
    drop(tap);
    dummy.offload("tx off sg off");
    assert_eq!(through(&dummy.sender(), shape, 300, 0).zerocopy, 0, "it cannot");
    let to = receiver();
    let socket = sender(&to);
    let receiving = collect(to, 300, SILENCE);
    assert_eq!(through(&socket, shape, 300, 0).zerocopy, 0, "what stays here is copied");
    assert!(receiving.join().unwrap() == vec![numbered(7, LEN); 300]);
}

#[test]
fn a_slot_is_the_writers_again_only_when_the_network_has_let_go_of_it() {
    let dummy = Dummy::new("zc2", "10.88.2");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 6, ..request() }, LIMIT);
    // What is read so is in the queue for longer than it takes the writer to go around the ring.
    dummy.queue("delay 3s");
    let tap = dummy.tap();
    let (first, total) = (writer.next, 300);
    send(&mut writer, 0..46);
    assert_eq!(writer.tail(), first, "the train is in the queue");
    let packets: Vec<_> = (0..total).map(|number| numbered(number, LEN)).collect();
    // The rest waits for room: the end of the first train wakes the writer.
    writer.send_all(packets[46..].iter().map(Vec::as_slice), LIMIT);
    let left = tap.collect(total as usize, LEN, SILENCE);
    assert_eq!(left.len(), packets.len());
    assert!(left == packets, "what leaves is what was committed");
    sent(&writer);
}

#[test]
fn a_writer_whose_slots_are_read_goes_on_sending_in_its_own_calls() {
    const TRAINS: u64 = 2_000;
    let dummy = Dummy::new("zc20", "10.88.20");
    let mut writer = dummy.prompt(request(), LIMIT);
    let [thread] = threads()[..] else { panic!("one stream, one thread: {:?}", threads()) };
    let (packet, before) = (numbered(7, LEN), switches(thread));
    for _ in 0..TRAINS {
        (0..8).for_each(|_| writer.fill(&packet));
        writer.commit();
        assert!(writer.wait_for(writer.next, LIMIT));
    }
    // It is faster than its packets are sent, so the thread is woken now and then; but finds nothing more to do.
    let woken = switches(thread) - before;
    assert!(woken < TRAINS / 4, "{woken} times for {TRAINS} trains");
    assert!(writer.leg(0).zerocopy > 0);
}

#[test]
fn the_network_lets_go_in_any_order() {
    let dummy = Dummy::new("zc3", "10.88.3");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 8, ..request() }, LIMIT);
    dummy.queue("delay 2s 1900ms");
    let tap = dummy.tap();
    let mut released = writer.tail();
    for train in 0..32 {
        let first = train * 16;
        let until = writer.next.wrapping_sub(256 - 16);
        assert!(writer.wait_for(until, LIMIT));
        send(&mut writer, first..first + 16);
        let tail = writer.tail();
        assert!(tail >= released && tail <= writer.next, "{released} {tail}");
        released = tail;
    }
    let mut left = tap.collect(512, LEN, SILENCE);
    let in_order = left.is_sorted_by_key(|packet| packet[..8].to_vec());
    println!("in order: {in_order}");
    left.sort_by_key(|packet| u64::from_le_bytes(packet[..8].try_into().unwrap()));
    assert!(left == (0..512).map(|number| numbered(number, LEN)).collect::<Vec<_>>());
    let next = writer.next;
    assert!(writer.wait_for(next, LIMIT));
}

#[test]
fn neither_stop_nor_counters_wait_for_what_is_read() {
    let dummy = Dummy::new("zc4", "10.88.4");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 7, ..request() }, LIMIT);
    dummy.queue(FOR_LONG);
    let first = writer.next;
    send(&mut writer, 0..46);
    writer.device.plain(ioctl::STOP).unwrap();
    let (_, counters) = writer.device.stats().unwrap();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.pending), (first + 46, 0), "it has left");
    assert_eq!(writer.tail(), first, "and its slots are read");
    writer.device.plain(ioctl::RESET_STATS).unwrap();
    // It goes on where it was, with the room that there is.
    writer.device.plain(ioctl::START).unwrap();
    (0..82).for_each(|number| writer.fill(&numbered(number, LEN)));
    assert_eq!(writer.room(), 0);
    writer.commit();
    let next = writer.next;
    assert!(!writer.wait_for(next, Duration::from_millis(50)));
    let deadline = Instant::now() + LIMIT;
    while writer.counters().sent < 82 {
        assert!(Instant::now() < deadline, "{:?}", writer.counters());
    }
    assert_eq!(writer.tail(), first);
    // What is in the queue goes with the device: that is the end of it, too.
    writer.device.plain(ioctl::STOP).unwrap();
    drop(dummy);
    while writer.tail() != next {
        assert!(Instant::now() < deadline, "a stopped stream's tail moves on with its figures");
        assert_eq!(writer.device.stats().unwrap().1.pending, 0);
    }
    writer.device.plain(ioctl::START).unwrap();
}

#[test]
fn a_writer_that_sleeps_is_woken_when_the_network_lets_go() {
    let dummy = Dummy::new("zc5", "10.88.5");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 6, ..request() }, LIMIT);
    dummy.queue(FOR_LONG);
    send(&mut writer, 0..46);
    let next = writer.next;
    assert!(!writer.wait_for(next, Duration::from_millis(200)));
    let looking = writer.device.duplicate().unwrap();
    let waiting = std::thread::spawn(move || writer.wait_for(next, LIMIT));
    std::thread::sleep(Duration::from_millis(100));
    // Who looks meanwhile changes nothing of that.
    looking.stats().unwrap();
    dummy.queue("delay 0");
    drop(dummy);
    assert!(waiting.join().unwrap());
}

#[test]
fn what_is_not_let_go_of_costs_slots_and_holds_up_nothing_else() {
    let dummy = Dummy::new("zc6", "10.88.6");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 11, ..request() }, LIMIT);
    dummy.queue(FOR_LONG);
    // More trains than may be in flight. Those that may not, and all once it takes too long, are copied.
    let first = writer.next;
    for train in 0..100 {
        send(&mut writer, train * 16..train * 16 + 16);
    }
    assert_eq!(writer.tail(), first);
    let figures = writer.leg(0);
    // A new stream there never reads: its trial takes too long.
    let other = through(&dummy.sender(), (LEN as u32, LEN), 300, 0);
    assert_eq!(other.zerocopy, 0);
    drop(dummy);
    let next = writer.next;
    assert!(writer.wait_for(next, LIMIT), "{:?}", writer.counters());
    let read = writer.leg(0).zerocopy - figures.zerocopy;
    println!("{read} of 1600 were read");
    assert!((16..=64 * 16).contains(&read), "{read}");
}

#[test]
fn two_legs_are_copied_so_that_one_holds_up_no_other() {
    let slow = Dummy::new("zc7", "10.88.7");
    let fast = Dummy::new("zc8", "10.88.8");
    slow.queue(FOR_LONG);
    let create = ioctl::Create { ring_order: 6, slot_stride: LEN as u32, ..request() };
    let mut writer = Writer::running(create, &[&slow.sender(), &fast.sender()]).unwrap();
    let packet = numbered(0, LEN);
    writer.send_all([packet.as_slice(); 500], LIMIT);
    for leg in [0, 1] {
        let figures = writer.leg(leg);
        assert_eq!((figures.received, figures.zerocopy), (500, 0));
    }
}

#[test]
fn a_stream_that_waits_for_the_network_costs_nothing() {
    let dummy = Dummy::new("zc10", "10.88.10");
    assert_eq!(threads(), [], "of earlier tests");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 7, ..request() }, LIMIT);
    dummy.queue(FOR_LONG);
    send(&mut writer, 0..46);
    let [thread] = threads()[..] else { panic!("one stream, one thread: {:?}", threads()) };
    // What it was doing when it counted them is over when it next sleeps.
    std::thread::sleep(Duration::from_millis(200));
    let before = switches(thread);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(thread), before, "it was not woken");
    assert_eq!(writer.next - writer.tail(), 46);
}

#[test]
fn a_reader_of_a_tun_device_that_never_reads_holds_nothing_up() {
    const IFF_TUN_NO_PI_VNET_HDR: i16 = 0x1 | 0x1000 | 0x4000;
    const TUN_F_CSUM_USO4_USO6: libc::c_ulong = 0x1 | 0x20 | 0x40;
    shell("modprobe tun");
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: A request of zeros is one.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(b"zctun") {
        *to = *from as libc::c_char;
    }
    interface.ifr_ifru.ifru_flags = IFF_TUN_NO_PI_VNET_HDR;
    // SAFETY: A file of the driver, a request and a number.
    let made = unsafe {
        [
            libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut interface),
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, TUN_F_CSUM_USO4_USO6),
        ]
    };
    assert_eq!(made, [0, 0], "{}", std::io::Error::last_os_error());
    shell("ip addr add 10.88.11.1/24 dev zctun && ip link set zctun up");
    let socket = UdpSocket::bind("10.88.11.1:0").unwrap();
    socket.connect("10.88.11.77:5004").unwrap();
    let create = ioctl::Create { ring_order: 8, slot_stride: LEN as u32, ..request() };
    let mut writer = Writer::running(create, &[&socket]).unwrap();
    let packet = numbered(0, LEN);
    writer.send_all([packet.as_slice(); 3_000], LIMIT);
    let (counters, figures) = (writer.counters(), writer.leg(0));
    assert_books(&counters);
    assert_eq!((counters.pending, figures.zerocopy), (0, 0), "its reader gets copies: {figures:?}");
    // What it has goes with its file, as it does when its reader is killed.
    drop(file);
    writer.send_all([packet.as_slice(); 300], LIMIT);
    assert_books(&writer.counters());
}

#[test]
fn a_namespace_goes_when_its_queue_has_let_go() {
    let held = || fs::read_to_string("/sys/module/rtp_mgr/refcnt").unwrap().trim().to_owned();
    assert_eq!(held(), "0", "by earlier tests");
    std::thread::spawn(|| {
        // SAFETY: This thread alone gets a network of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let dummy = Dummy::new("zc12", "10.88.12");
        let mut writer = dummy.prompt(ioctl::Create { ring_order: 7, ..request() }, LIMIT);
        dummy.queue("delay 2s");
        send(&mut writer, 0..46);
        // Its packets hold the socket, and that holds the network.
        std::mem::forget(dummy);
    })
    .join()
    .unwrap();
    let deadline = Instant::now() + LIMIT;
    while held() != "0" {
        assert!(Instant::now() < deadline, "{} references to the module", held());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn writing_into_slots_that_are_read_hurts_only_the_writer() {
    let dummy = Dummy::new("zc13", "10.88.13");
    // Checksums are made while others write.
    dummy.offload("tx-udp-segmentation off");
    let mut writer = dummy.prompt(ioctl::Create { ring_order: 7, ..request() }, LIMIT);
    dummy.queue("delay 4ms 4ms duplicate 10%");
    let over = AtomicBool::new(false);
    let slots = writer.device.map(
        writer.header.slots_offset,
        writer.header.slots_len,
        libc::PROT_READ | libc::PROT_WRITE,
    );
    let slots = slots.unwrap();
    std::thread::scope(|scope| {
        let (over, slots) = (&over, &slots);
        scope.spawn(move || {
            let mut random = Random(9);
            while !over.load(Ordering::Relaxed) {
                let at = random.below(slots.words().len() as u64) as usize;
                slots.words()[at].store(random.next());
            }
        });
        let packet = numbered(0, LEN);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            writer.send_all([packet.as_slice(); 46], LIMIT);
        }
        over.store(true, Ordering::Relaxed);
    });
    sent(&writer);
    println!("{:?}", writer.leg(0));
}
