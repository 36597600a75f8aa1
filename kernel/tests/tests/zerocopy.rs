//! Sends from the ring's own pages: which they are, and that no slot is released before the network has
//! let go of it.

#![allow(unsafe_code)] // Packet sockets, fork, kill.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::books::assert_transmit_books as assert_books;
use rtp_mgr_kernel_tests::transmit::{Writer, numbered, request, set_option};
use rtp_mgr_ring::abi::{LegFigures, ioctl};

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a line of shell, which has to succeed.
fn run(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{line}: {text}");
}

/// A device that drops what it is to send, once it has let go of it. In the network `prefix`.0/24, with
/// room for packets of 9,000 bytes.
struct Dummy {
    name: &'static str,
    prefix: &'static str,
}

impl Dummy {
    fn new(name: &'static str, prefix: &'static str) -> Self {
        run(&format!("ip link add {name} mtu 9000 type dummy"));
        let dummy = Self { name, prefix };
        run(&format!("ip addr add {prefix}.1/24 dev {name} && ip link set {name} up"));
        dummy
    }

    /// Packets wait in its queue as `netem` says.
    fn queue(&self, netem: &str) {
        run(&format!("tc qdisc replace dev {} root netem limit 100000 {netem}", self.name));
    }

    /// A socket connected to nobody, with much room.
    fn sender(&self) -> UdpSocket {
        let socket = UdpSocket::bind((format!("{}.1", self.prefix), 0)).unwrap();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20);
        socket.connect((format!("{}.77", self.prefix), 5_004)).unwrap();
        socket
    }

    /// A running stream.
    fn writer(&self, create: ioctl::Create, flags: u32) -> Writer {
        let writer = Writer::create(create).unwrap();
        writer.add_leg(0, self.sender().as_raw_fd(), flags).unwrap();
        writer.device.plain(ioctl::START).unwrap();
        writer
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        let done = Command::new("ip").args(["link", "del", self.name]).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Sends `count` packets of `len` bytes and returns the leg's figures when all slots are free again.
fn through(dummy: &Dummy, stride: u32, len: usize, count: u64, flags: u32) -> LegFigures {
    let create = ioctl::Create { ring_order: 9, slot_stride: stride, ..request() };
    let mut writer = dummy.writer(create, flags);
    let packets: Vec<_> = (0..count).map(|number| numbered(number, len)).collect();
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    let counters = writer.counters();
    assert_books(&counters);
    assert_eq!((counters.sent, counters.send_failed), (count, 0), "{counters:?}");
    let figures = writer.leg(0);
    assert_eq!((figures.received, figures.lost), (count, 0));
    assert_eq!(figures.bytes, count * len as u64);
    println!(
        "{len} bytes in slots of {stride}: {} of {count}, {} calls",
        figures.zerocopy, counters.socket_calls
    );
    figures
}

#[test]
fn large_sends_are_read_from_the_ring() {
    let dummy = Dummy::new("zc0", "10.88.0");
    for (stride, len) in [(1_400, 1_400), (1_500, 1_400), (8_192, 8_000), (8_000, 8_000)] {
        let figures = through(&dummy, stride, len, 2_000, 0);
        assert!(figures.zerocopy > 1_000, "{len} in {stride}: {figures:?}");
        let figures = through(&dummy, stride, len, 2_000, ioctl::LEG_NO_ZEROCOPY);
        assert_eq!(figures.zerocopy, 0);
    }
    // Single packets are not worth it.
    assert_eq!(through(&dummy, 2_048, 1_400, 500, ioctl::LEG_NO_GSO).zerocopy, 0);
}
