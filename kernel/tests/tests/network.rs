//! Streams between two network namespaces: two legs that both lose packets, interfaces that disappear, and every way in
//! which interfaces coalesce packets.

#![allow(unsafe_code)] // Packet sockets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rtp_mgr_kernel_tests::books::assert_receive_books;
use rtp_mgr_kernel_tests::namespace::Namespace;
use rtp_mgr_kernel_tests::sockets::{
    LIMIT, SSRC, bound, drain, option, rtp, rtp_of, running, sequences, until,
};
use rtp_mgr_kernel_tests::transmit::{Writer, request};
use rtp_mgr_ring::abi::{self, ioctl};
use rtp_mgr_ring::header;

/// Of the streams that `rtp_app` sends and receives here.
const PORT: u16 = 5_004;

/// What comes out of an interface of `space`, as frames.
struct Capture(OwnedFd);

impl Capture {
    fn new(space: &Namespace, interface: &str) -> Self {
        space.run(|| {
            let protocol = (libc::ETH_P_IP as u16).to_be();
            // SAFETY: A new socket, owned from here on.
            let socket = unsafe {
                let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
                OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, flags, i32::from(protocol)))
            };
            option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(32 << 20)).unwrap();
            let name = std::ffi::CString::new(interface).unwrap();
            // SAFETY: Plain numbers, and a text that ends with 0.
            let bound = unsafe {
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = protocol;
                address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
                let len = size_of_val(&address) as u32;
                libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), len)
            };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            Self(socket)
        })
    }

    /// Until something comes, or for a moment.
    fn wait(&self) {
        let mut request = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: One request.
        unsafe { libc::poll(&mut request, 1, 100) };
    }

    /// The RTP among what has come since the last call, in the order in which it came.
    fn rtp(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut frame = vec![0; 65_536];
        loop {
            // SAFETY: Memory of that length.
            let len = unsafe {
                libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0)
            };
            let Ok(len) = usize::try_from(len) else { break };
            packets.extend(datagram(&frame[14..len]));
        }
        let mut figures = [0_u32; 2];
        let mut size = size_of_val(&figures) as u32;
        // SAFETY: `struct tpacket_stats` and its length.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                figures.as_mut_ptr().cast(),
                &mut size,
            )
        };
        assert_eq!((result, figures[1]), (0, 0), "the capture lost nothing");
        packets
    }
}

/// What an IPv4 packet without options carries for the streams' port.
fn datagram(packet: &[u8]) -> Option<Vec<u8>> {
    let udp = packet.get(20..)?;
    let is_udp = packet[0] == 0x45 && packet[9] == libc::IPPROTO_UDP as u8;
    let port = u16::from_be_bytes([udp[2], udp[3]]);
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    (is_udp && port == PORT).then(|| udp[8..len].to_vec())
}

/// The packets of a capture file of `rtp_app`.
fn capture_file(path: &str) -> Vec<Vec<u8>> {
    const LINKTYPE_RAW: u32 = 101;
    const LINKTYPE_ETHERNET: u32 = 1;
    let bytes = fs::read(path).unwrap();
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let skipped = match word(20) {
        LINKTYPE_RAW => 0,
        LINKTYPE_ETHERNET => 14,
        other => panic!("link type {other}"),
    };
    let mut packets = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let (included, whole) = (word(at + 8) as usize, word(at + 12) as usize);
        assert_eq!(included, whole);
        packets.extend(datagram(&bytes[at + 16 + skipped..at + 16 + included]));
        at += 16 + included;
    }
    packets
}

/// A program that is ended with whoever started it.
struct Running(Child);

impl Running {
    fn start(space: &Namespace, arguments: &str, out: &str) -> Self {
        space.run(|| {
            let mut command = Command::new("rtp_app");
            command.args(arguments.split_whitespace()).stdin(Stdio::null());
            command.stdout(File::create(format!("{out}.json")).unwrap());
            command.stderr(File::create(format!("{out}.err")).unwrap());
            Self(command.spawn().unwrap())
        })
    }

    /// As Ctrl-C does.
    fn end(&self) {
        // SAFETY: The child has not been waited for, so the number is its own.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
    }

    fn succeeds(mut self, out: &str) -> String {
        let status = self.0.wait().unwrap();
        let said = fs::read_to_string(format!("{out}.err")).unwrap();
        assert!(status.success(), "{status}: {said}");
        let report = fs::read_to_string(format!("{out}.json")).unwrap();
        report.lines().last().unwrap().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A figure of the stream: those of the legs come later.
fn figure(report: &str, name: &str) -> u64 {
    let stream = report.split("\"legs\"").next().unwrap();
    let value = stream.split(&format!("\"{name}\":")).nth(1).expect(name);
    value.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn sequence(packet: &[u8]) -> u16 {
    header::parse(packet).expect("RTP").sequence
}

/// Each leg loses a tenth of its packets, each its own, after the first of them: what the legs still carried, as seen
/// behind the loss, is what is delivered.
fn both_legs_lose(from: &str, to: &str) {
    let (near, far) = (Namespace::new(), Namespace::new());
    let legs = [1_u8, 2];
    for leg in legs {
        near.join(&far, leg);
        near.shell(&format!("tc qdisc add dev n{leg} root netem limit 10000"));
    }
    let captures = legs.map(|leg| Capture::new(&far, &format!("f{leg}")));
    let addresses = "--leg 10.1.1.2:5004 --leg 10.1.2.2:5004";
    let rx = format!(
        "rx --engine {to} {addresses} --pcap /tmp/legs.pcap --reorder 2000 --ring-order 13 \
         --idle-timeout 15 --json"
    );
    let receiver = Running::start(&far, &rx, "/tmp/legs-rx");
    until("the receiver receives", || {
        fs::read_to_string("/tmp/legs-rx.err").unwrap().contains("receiving")
    });
    let tx = format!(
        "tx --engine {from} {addresses} --duration 60 --rate 500 --payload 200 --gso off --json"
    );
    let sender = Running::start(&near, &tx, "/tmp/legs-tx");
    let mut carried = captures.each_ref().map(|_| Vec::new());
    until("some packets on both legs", || {
        for (carried, capture) in carried.iter_mut().zip(&captures) {
            carried.extend(capture.rtp());
        }
        captures[1].wait();
        carried.iter().all(|packets| packets.len() > 50)
    });
    near.shell(
        "tc -batch - <<END
         qdisc change dev n1 root netem limit 10000 loss 10%
         qdisc change dev n2 root netem limit 10000 loss 10%
END",
    );
    let before = carried[0].len();
    until("a thousand more", || {
        captures[0].wait();
        carried[0].extend(captures[0].rtp());
        carried[0].len() > before + 1_000
    });
    sender.end();
    sender.succeeds("/tmp/legs-tx");
    let report = receiver.succeeds("/tmp/legs-rx");
    for (carried, capture) in carried.iter_mut().zip(&captures) {
        carried.extend(capture.rtp());
    }

    let first = sequence(&carried[0][0]);
    let by_number = carried.each_ref().map(|packets| {
        let number = |packet: &Vec<u8>| sequence(packet).wrapping_sub(first);
        packets.iter().map(|packet| (number(packet), packet.clone())).collect::<BTreeMap<_, _>>()
    });
    let [one, other] = &by_number;
    assert!(one.keys().any(|number| !other.contains_key(number)), "losses of their own");
    assert!(other.keys().any(|number| !one.contains_key(number)), "losses of their own");
    let mut either = one.clone();
    either.extend(other.clone());
    let expected: Vec<_> = either.values().cloned().collect();
    let delivered = capture_file("/tmp/legs.pcap");
    let numbers = |packets: &[Vec<u8>]| packets.iter().map(|p| sequence(p)).collect::<Vec<_>>();
    assert_eq!(numbers(&delivered), numbers(&expected), "once each, in order");
    assert_eq!(delivered, expected);
    let last = *either.keys().last().unwrap();
    let both = one.keys().filter(|number| other.contains_key(number)).count();
    assert_eq!(figure(&report, "packets"), expected.len() as u64);
    assert_eq!(figure(&report, "lost"), u64::from(last) + 1 - expected.len() as u64);
    assert_eq!(figure(&report, "duplicate"), both as u64);
    assert_eq!(figure(&report, "late"), 0);
    assert_eq!(figure(&report, "received"), (one.len() + other.len()) as u64);
}

#[test]
fn two_legs_that_both_lose_packets_give_what_either_has_kernel() {
    both_legs_lose("kernel", "kernel");
}

#[test]
fn two_legs_that_both_lose_packets_give_what_either_has_user() {
    both_legs_lose("user", "user");
}

#[test]
fn an_interface_that_is_deleted_under_running_streams_is_harmless() {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.join(&far, 1);
    let address: SocketAddr = (Ipv4Addr::new(10, 1, 1, 2), PORT).into();
    let socket = far.run(|| bound(address));
    let name = *b"f1\0";
    option(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &name).unwrap();
    let mut reader = running(ioctl::Create { ring_order: 12, ..Default::default() }, &socket);
    let connected = near.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::new(10, 1, 1, 1), 0)).unwrap();
        socket.connect(address).unwrap();
        socket
    });
    let mut writer = Writer::running(request(), &[&connected]).unwrap();
    // A packet every four milliseconds: the interface goes long before they have.
    writer.device.set(ioctl::SETTING_RATE, 250 << 32 | 1).unwrap();
    for number in 0..800 {
        writer.fill(&rtp(number));
    }
    writer.commit();
    until("some of it", || reader.counters().received >= 60);
    near.shell("ip link delete n1");
    assert!(writer.wait_for(800, LIMIT), "the ring is not stuck: {:?}", writer.counters());
    let sent = writer.counters();
    assert_eq!((sent.committed, sent.pending), (800, 0));
    assert_eq!(sent.sent + sent.send_failed, 800);
    assert!(sent.send_failed > 0, "{sent:?}");
    let unreachable =
        [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ENETDOWN, libc::ENODEV, libc::EINVAL];
    assert!(unreachable.contains(&(sent.send_errno as i32)), "{sent:?}");
    let received = reader.device.stats().unwrap();
    assert_eq!(received.0, abi::STATE_RUNNING as u32);
    assert_receive_books(&received.1);
    assert!(received.1.received <= sent.sent);
    let items = reader.take().0;
    assert_eq!(sequences(&items), (0..items.len() as u16).collect::<Vec<_>>());
    // Another cable: the sender has a way again, and so has a receiver that is not bound to what is gone.
    let socket = far.run(|| bound((Ipv4Addr::UNSPECIFIED, PORT + 1).into()));
    drop(reader);
    near.join(&far, 1);
    let mut reader = running(ioctl::Create::default(), &socket);
    connected.connect((Ipv4Addr::new(10, 1, 1, 2), PORT + 1)).unwrap();
    writer.device.set(ioctl::SETTING_RATE, 0).unwrap();
    let packets: Vec<_> = (0..100).map(rtp).collect();
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    assert_eq!(sequences(&reader.collect(100, LIMIT)), (0..100).collect::<Vec<_>>());
}

/// Trains of packets of equal length, one by one or each as one, and in all the same bytes.
fn send_trains(from: &UdpSocket, segmented: bool) {
    const PACKETS: u16 = 20;
    for train in 0..10_u16 {
        let len = 100 + usize::from(train) * 100;
        let packets: Vec<_> =
            (0..PACKETS).map(|at| rtp_of(SSRC, train * PACKETS + at, len)).collect();
        if segmented {
            option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &(len as i32)).unwrap();
            from.send(&packets.concat()).unwrap();
        } else {
            packets.iter().for_each(|packet| assert!(from.send(packet).is_ok()));
        }
        let rtcp = [0x80, 201, 0, 1, 0, 0, 0, 7];
        option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &0_i32).unwrap();
        from.send(&rtcp).unwrap();
    }
    // Longer than what the interfaces take: fragments.
    from.send(&rtp_of(SSRC, 200, 4_000)).unwrap();
}

/// What an interface does with what leaves and what arrives, by the names that ethtool has for it; and whether what left
/// as a train arrives coalesced, without and with UDP_GRO of the socket. (What has no TSO is offered to the receiver's
/// GRO.)
const OFFLOADS: [(&str, [bool; 2]); 7] = [
    ("gro off tso off tx-udp-segmentation off tx off sg off", [false; 2]),
    ("gro off tso off tx-udp-segmentation off tx on sg on", [false; 2]),
    ("gro off tso on tx-udp-segmentation on", [true; 2]),
    ("gro on tx-udp-segmentation on rx-udp-gro-forwarding on", [true; 2]),
    ("gro on tx-udp-segmentation on rx-udp-gro-forwarding off rx-gro-list on", [true; 2]),
    ("gro on tso off tx-udp-segmentation off rx-gro-list on", [true; 2]),
    (
        "gro on tso off tx-udp-segmentation off rx-gro-list off rx-udp-gro-forwarding on",
        [false, true],
    ),
];

/// The receiver is behind a router, which coalesces and forwards as its interfaces do.
#[test]
fn results_are_the_same_with_every_offload_of_the_interfaces_on_and_off() {
    let (near, middle, far) = (Namespace::new(), Namespace::new(), Namespace::new());
    near.join(&middle, 1);
    middle.join(&far, 2);
    near.shell("ip route add default via 10.1.1.2");
    far.shell("ip route add default via 10.1.2.1");
    middle.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let interfaces = [(&near, "n1"), (&middle, "f1 n2"), (&far, "f2")];
    let from = near.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let mut port = PORT;
    for (offloads, coalesces) in OFFLOADS {
        for (space, names) in interfaces {
            space.shell(&format!("for name in {names}; do ethtool -K $name {offloads}; done"));
        }
        for (segmented, user_gro) in [(false, false), (true, false), (true, true)] {
            port += 1;
            let socket = far.run(|| bound((Ipv4Addr::UNSPECIFIED, port).into()));
            let gro = i32::from(user_gro);
            option(&socket, libc::SOL_UDP, libc::UDP_GRO, &gro).unwrap();
            let request = ioctl::Create { slot_stride: 4_096, ..Default::default() };
            let mut reader = running(request, &socket);
            near.run(|| from.connect((Ipv4Addr::new(10, 1, 2, 2), port)).unwrap());
            send_trains(&from, segmented);
            let case = format!("{offloads}, segmented {segmented}, UDP_GRO {user_gro}");
            until(&case, || {
                let counters = reader.counters();
                (counters.received, counters.passed_rtcp) == (201, 10)
            });
            let items = reader.collect(201, LIMIT);
            assert_eq!(sequences(&items), (0..201).collect::<Vec<_>>(), "{case}");
            for item in &items {
                let number = item.descriptor.sequence as u16;
                let len = if number == 200 { 4_000 } else { 100 + usize::from(number / 20) * 100 };
                assert_eq!(item.bytes, rtp_of(SSRC, number, len), "{case}");
            }
            assert_eq!(drain(&socket).len(), 10, "{case}: RTCP");
            let counters = reader.device.stats().unwrap().1;
            assert_receive_books(&counters);
            assert_eq!((counters.published, counters.external_drops), (201, 0), "{case}");
            // That the interfaces did as they were told.
            if segmented {
                assert_eq!(counters.coalesced > 0, coalesces[usize::from(user_gro)], "{case}");
            }
        }
    }
}
