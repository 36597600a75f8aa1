//! Packets that are taken before the UDP code, where nothing is changed by that; and that they are not, where
//! something would be.
//!
//! Whether they were tells the trace event `rtp_mgr_early`.

#![allow(unsafe_code)] // Socket options, raw sockets, BPF.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use rtp_mgr_kernel_tests::books::assert_receive_books as assert_books;
use rtp_mgr_kernel_tests::bpf::{self, step};
use rtp_mgr_kernel_tests::namespace::Namespace;
use rtp_mgr_kernel_tests::sockets::{
    LIMIT, SSRC, attach_filter, bound, drain, in_namespace, option, raw_address, rtp_of, running,
    sender, shared, until,
};
use rtp_mgr_kernel_tests::tracing::Counts;
use rtp_mgr_kernel_tests::{Item, Reader};
use rtp_mgr_ring::abi::ioctl;

const MTU: i32 = 65_536;
const RTCP: [u8; 8] = [0x80, 201, 0, 1, 0, 0, 0, 7];

/// Figures of this thread's network namespace, IPv4 and IPv6 together: packets that IP delivered, datagrams that
/// sockets were given, and those with a wrong checksum.
fn figures() -> [u64; 3] {
    let four = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let six = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let of_four = |protocol: &str, name: &str| -> u64 {
        let mut lines = four.lines().filter(|line| line.starts_with(protocol));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|word| word == name).expect("a figure");
        values.split(' ').nth(at).unwrap().parse().unwrap()
    };
    let of_six = |name: &str| -> u64 {
        let line = six.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    [
        of_four("Ip: ", "InDelivers") + of_six("Ip6InDelivers"),
        of_four("Udp: ", "InDatagrams") + of_six("Udp6InDatagrams"),
        of_four("Udp: ", "InCsumErrors") + of_six("Udp6InCsumErrors"),
    ]
}

fn bytes(items: &[Item]) -> Vec<Vec<u8>> {
    items.iter().map(|item| item.bytes.clone()).collect()
}

fn shell(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A stream in a network namespace that nobody else uses, and who sends to it.
struct Rig {
    socket: UdpSocket,
    from: UdpSocket,
    reader: Reader,
    early: Counts,
    next: u16,
}

impl Rig {
    fn new(socket: UdpSocket, from: UdpSocket) -> Self {
        let early = Counts::of("rtp_mgr_early", "port");
        let reader = running(ioctl::Create::default(), &socket);
        Self { socket, from, reader, early, next: 0 }
    }

    /// On the loopback address, warmed up.
    fn local() -> Self {
        let socket = bound((Ipv4Addr::LOCALHOST, 0).into());
        let from = sender(&socket);
        let mut rig = Self::new(socket, from);
        rig.warm_up();
        rig
    }

    fn port(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }

    /// The next `count` packets.
    fn packets(&mut self, count: u16) -> Vec<Vec<u8>> {
        let first = self.next;
        self.next = self.next.wrapping_add(count);
        (first..first.wrapping_add(count))
            .map(|sequence| rtp_of(SSRC, sequence, 12 + usize::from(sequence % 700)))
            .collect()
    }

    fn expect(&mut self, packets: &[Vec<u8>]) {
        let items = self.reader.collect(packets.len(), LIMIT);
        assert_eq!(bytes(&items), packets);
    }

    /// How many packets `act` has taken early.
    fn early(&mut self, act: impl FnOnce(&mut Self)) -> u64 {
        let before = self.early.get(self.port().into());
        act(self);
        self.early.get(self.port().into()) - before
    }

    /// Sends `count` packets, which arrive. Returns how many of them were early.
    fn send(&mut self, count: u16) -> u64 {
        self.early(|rig| {
            let packets = rig.packets(count);
            packets.iter().for_each(|packet| assert!(rig.from.send(packet).is_ok()));
            rig.expect(&packets);
        })
    }

    /// Sends packets until they are taken early: the first ones bring that about.
    fn warm_up(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.send(1) == 0 {
            assert!(Instant::now() < deadline, "nothing is taken early");
            std::thread::yield_now();
        }
        assert_eq!(self.send(10), 10);
    }
}

/// The unicast addresses that a socket may be bound to, and one that it is reached at.
fn addresses() -> [(SocketAddr, SocketAddr); 4] {
    let (four, six) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    [
        ((four, 0).into(), (four, 0).into()),
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (four, 0).into()),
        ((six, 0).into(), (six, 0).into()),
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (four, 0).into()),
    ]
}

#[test]
fn early_packets_are_what_they_are_and_counted_as_ever() {
    for (address, mut to) in addresses() {
        for connected in [false, true] {
            in_namespace(MTU, || {
                let socket = bound(address);
                to.set_port(socket.local_addr().unwrap().port());
                let from = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
                from.connect(to).unwrap();
                if connected && address.ip() == to.ip() {
                    socket.connect(from.local_addr().unwrap()).unwrap();
                }
                let mut rig = Rig::new(socket, from);
                rig.warm_up();
                let before = figures();
                assert_eq!(rig.send(700), 700, "{address}");
                let after = figures();
                assert_eq!([0, 1, 2].map(|at| after[at] - before[at]), [700, 700, 0], "{address}");
                let counters = rig.reader.device.stats().unwrap().1;
                assert_books(&counters);
                assert_eq!((counters.received, counters.lost), (u64::from(rig.next), 0));
                assert!(drain(&rig.socket).is_empty());
            });
        }
    }
}

#[test]
fn what_is_not_rtp_is_the_sockets_once_and_in_order() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        let before = figures();
        for _ in 0..50 {
            rig.from.send(&RTCP).unwrap();
            assert_eq!(rig.send(1), 1);
        }
        // Those of the socket count when they are read.
        assert_eq!(drain(&rig.socket), vec![RTCP.to_vec(); 50]);
        let after = figures();
        assert_eq!([0, 1, 2].map(|at| after[at] - before[at]), [100, 100, 0]);
        let counters = rig.reader.device.stats().unwrap().1;
        assert_books(&counters);
        assert_eq!(counters.passed_rtcp, 50);
    });
}

#[test]
fn trains_are_taken_early_as_well_and_count_as_one() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        option(&rig.socket, libc::SOL_UDP, libc::UDP_GRO, &1_i32).unwrap();
        option(&rig.from, libc::SOL_UDP, libc::UDP_SEGMENT, &500_i32).unwrap();
        let packets: Vec<_> = (0..20).map(|at| rtp_of(SSRC, rig.next + at, 500)).collect();
        let before = figures();
        let early = rig.early(|rig| {
            rig.from.send(&packets.concat()).unwrap();
            rig.expect(&packets);
        });
        let after = figures();
        assert_eq!((early, after[0] - before[0], after[1] - before[1]), (1, 1, 1));
    });
}

#[test]
fn a_socket_that_takes_no_trains_has_them_cut_up_whatever_its_neighbour_does() {
    let [far, near] = [Namespace::new(), Namespace::new()];
    far.join(&near, 1);
    let any = (Ipv4Addr::UNSPECIFIED, 0).into();
    let takes = near.run(|| shared(libc::SO_REUSEADDR, any));
    option(&takes, libc::SOL_UDP, libc::UDP_GRO, &1_i32).unwrap();
    let to = SocketAddr::from(([10, 1, 1, 2], takes.local_addr().unwrap().port()));
    let plain = near.run(|| shared(libc::SO_REUSEADDR, to));
    let senders = [(); 2].map(|()| {
        let from = far.run(|| UdpSocket::bind(any).unwrap());
        from.connect(to).unwrap();
        option(&from, libc::SOL_UDP, libc::UDP_SEGMENT, &500_i32).unwrap();
        from
    });
    // Connected, so that early demultiplexing finds it beside the other.
    plain.connect(senders[0].local_addr().unwrap()).unwrap();
    let sockets = [&plain, &takes];
    let mut readers = sockets.map(|socket| running(ioctl::Create::default(), socket));
    let mut next = 0;
    let mut train = |to: usize| {
        let packets: Vec<_> = (next..next + 20).map(|at| rtp_of(SSRC, at, 500)).collect();
        next += 20;
        let before = near.run(figures);
        senders[to].send(&packets.concat()).unwrap();
        assert_eq!(bytes(&readers[to].collect(packets.len(), LIMIT)), packets);
        near.run(figures)[1] - before[1]
    };
    until("trains are taken whole", || train(1) == 1);
    for _ in 0..5 {
        assert_eq!((train(0), train(1)), (20, 1));
    }
}

#[test]
fn another_socket_of_the_port_has_its_packets_and_ends_the_early_path() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), rig.port()));
        let other = bound(elsewhere);
        let from = sender(&other);
        from.send(&rtp_of(7, 1, 50)).unwrap();
        assert_eq!(rig.send(20), 0, "two sockets of this port");
        assert_eq!(drain(&other), [rtp_of(7, 1, 50)]);
        drop(other);
        assert_eq!(rig.send(20), 20, "one again");
    });
}

#[test]
fn a_member_of_the_group_that_comes_later_loses_nothing() {
    in_namespace(MTU, || {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let first = shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, 0).into());
        let port = first.local_addr().unwrap().port();
        first.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        // Only groups that it joined itself.
        option(&first, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, &0_i32).unwrap();
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let interface = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
        let interface = libc::in_addr { s_addr: interface };
        option(&from, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface).unwrap();
        from.connect((group, port)).unwrap();
        let mut rig = Rig::new(first, from);
        rig.warm_up();
        let second = shared(libc::SO_REUSEADDR, (Ipv4Addr::UNSPECIFIED, port).into());
        option(&second, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, &0_i32).unwrap();
        assert_eq!(rig.send(20), 0, "two sockets of this port");
        assert!(drain(&second).is_empty(), "no member yet");
        second.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let packets = rig.packets(30);
        packets.iter().for_each(|packet| assert!(rig.from.send(packet).is_ok()));
        rig.expect(&packets);
        assert_eq!(drain(&second), packets);
        drop(second);
        assert_eq!(rig.send(20), 20, "alone again");
        rig.socket.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let received = rig.reader.device.stats().unwrap().1.received;
        rig.from.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
        assert_eq!(rig.reader.device.stats().unwrap().1.received, received, "no member any more");
    });
}

#[test]
fn a_list_of_senders_holds_on_either_interface_of_a_vrf() {
    let [far, near] = [Namespace::new(), Namespace::new()];
    far.join(&near, 1);
    near.shell(
        "ip link add vrf0 type vrf table 10 && ip link set vrf0 up
         ip link set f1 down && ip link set f1 master vrf0 && ip link set f1 up",
    );
    let interfaces = near.run(|| {
        [c"vrf0", c"f1"].map(|name| {
            // SAFETY: A name.
            unsafe { libc::if_nametoindex(name.as_ptr()) }
        })
    });
    let (group, peer) = (Ipv4Addr::new(239, 1, 2, 3), Ipv4Addr::new(10, 1, 1, 1));
    let member = |interface: u32| libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from_ne_bytes(group.octets()) },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: interface as i32,
    };
    let socket = near.run(|| bound((Ipv4Addr::UNSPECIFIED, 0).into()));
    let port = socket.local_addr().unwrap().port();
    let device = b"vrf0\0".map(|byte| byte as libc::c_char);
    option(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &device).unwrap();
    option(&socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &member(interfaces[0])).unwrap();
    let sender = |to: Ipv4Addr| {
        let from = far.run(|| UdpSocket::bind((peer, 0)).unwrap());
        let interface = libc::in_addr { s_addr: u32::from_ne_bytes(peer.octets()) };
        option(&from, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface).unwrap();
        from.connect((to, port)).unwrap();
        from
    };
    let mut rig = Rig::new(socket, sender(Ipv4Addr::new(10, 1, 1, 2)));
    until("packets are taken early", || rig.send(1) > 0);
    rig.from = sender(group);
    rig.send(5);
    // The latest membership is the first that the UDP code finds, and refuses the sender.
    option(&rig.socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &member(interfaces[1])).unwrap();
    let refused = [group.octets(), [10, 1, 1, 2], peer.octets()];
    option(&rig.socket, libc::IPPROTO_IP, libc::IP_BLOCK_SOURCE, &refused).unwrap();
    let received = rig.reader.device.stats().unwrap().1.received;
    rig.from.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
    // What comes after it has arrived, and it has not.
    rig.from = sender(Ipv4Addr::new(10, 1, 1, 2));
    rig.send(1);
    assert_eq!(rig.reader.device.stats().unwrap().1.received, received + 1, "a refused sender's");
    // A namespace that ends has the kernel complain of interfaces that it cannot take out of their VRF.
    near.shell("ip link set f1 nomaster");
}

#[test]
fn a_reuseport_sibling_that_comes_later_gets_its_share() {
    in_namespace(MTU, || {
        let socket = shared(libc::SO_REUSEPORT, (Ipv4Addr::LOCALHOST, 0).into());
        let from = sender(&socket);
        let mut rig = Rig::new(socket, from);
        // The option alone makes a group, of one.
        let early = rig.send(20);
        assert_eq!(early, 0, "a group");
        let sibling = shared(libc::SO_REUSEPORT, (Ipv4Addr::LOCALHOST, rig.port()).into());
        let mut sent = 0;
        let deadline = Instant::now() + LIMIT;
        let mut theirs = Vec::new();
        while theirs.is_empty() {
            assert!(Instant::now() < deadline, "the sibling gets nothing");
            sender(&rig.socket).send(&rtp_of(sent, 1, 40)).unwrap();
            sent += 1;
            theirs.extend(drain(&sibling));
        }
        let items = rig.reader.collect(sent as usize - theirs.len(), LIMIT);
        assert_eq!(items.len() + theirs.len(), sent as usize);
    });
}

#[test]
fn a_raw_socket_has_its_copies() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        // SAFETY: A new socket, owned from here on.
        let raw = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
            UdpSocket::from_raw_fd(libc::socket(libc::AF_INET, kind, libc::IPPROTO_UDP))
        };
        let packets = rig.packets(20);
        let early = rig.early(|rig| {
            packets.iter().for_each(|packet| assert!(rig.from.send(packet).is_ok()));
            rig.expect(&packets);
        });
        assert_eq!(early, 0);
        let copies: Vec<_> = drain(&raw).iter().map(|bytes| bytes[28..].to_vec()).collect();
        assert_eq!(copies, packets);
        drop(raw);
        assert_eq!(rig.send(20), 20);
    });
}

#[test]
fn filters_rules_and_policies_that_come_later_hold() {
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        // Rules that drop packets of more than 300 bytes: before the hook, and at its own, the last, priority.
        for priority in ["filter", "2147483647"] {
            shell(&format!(
                "nft add table inet t
                 nft 'add chain inet t c {{ type filter hook input priority {priority}; }}'
                 nft add rule inet t c udp dport {} udp length gt 308 drop",
                rig.port()
            ));
            let long = rtp_of(SSRC, rig.next, 301);
            rig.next += 1;
            let before = figures();
            rig.from.send(&long).unwrap();
            let short: Vec<_> = (0..5).map(|at| rtp_of(SSRC, rig.next + at, 300)).collect();
            rig.next += 5;
            let early = rig.early(|rig| {
                short.iter().for_each(|packet| assert!(rig.from.send(packet).is_ok()));
                rig.expect(&short);
            });
            assert_eq!((early, figures()[1] - before[1]), (5, 5), "{priority}");
            shell("nft delete table inet t");
            assert_eq!(rig.send(5), 5);
        }

        // IPsec: nothing that does not come by it.
        shell("echo 0 > /proc/sys/net/ipv4/conf/lo/disable_policy");
        shell("ip xfrm policy add src 127.0.0.1/32 dst 127.0.0.1/32 dir in action block");
        let received = rig.reader.device.stats().unwrap().1.received;
        rig.from.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
        let counters = rig.reader.device.stats().unwrap().1;
        assert_eq!((counters.received, counters.external_drops), (received, 1), "blocked");
        shell("ip xfrm policy flush");
        assert_eq!(rig.send(5), 5);

        // The socket's filter refuses packets of more than 300 bytes.
        let mut code = [
            filter(0x80, 0, 0, 0),
            filter(0x25, 1, 0, 308),
            filter(0x06, 0, 0, u32::MAX),
            filter(0x06, 0, 0, 0),
        ];
        attach_filter(&rig.socket, &mut code);
        let early = rig.early(|rig| {
            rig.from.send(&rtp_of(SSRC, rig.next, 301)).unwrap();
            rig.from.send(&rtp_of(SSRC, rig.next + 1, 300)).unwrap();
            rig.expect(&[rtp_of(SSRC, rig.next + 1, 300)]);
        });
        assert_eq!(early, 0);
        rig.next += 2;
        assert_eq!(rig.reader.device.stats().unwrap().1.external_drops, 2);
        option(&rig.socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0_i32).unwrap();
        assert_eq!(rig.send(5), 5);
    });
}

#[test]
fn connections_are_tracked_as_ever() {
    // Tracking that is there before the hook comes after it in the hook's list, and the other way round.
    for first in [true, false] {
        in_namespace(MTU, || {
            let track = "nft add table inet t
                 nft 'add chain inet t c { type filter hook input priority filter; }'
                 nft add rule inet t c ct state new counter
                 nft add rule inet t c ct state established counter";
            if first {
                shell(track);
            }
            let mut rig = Rig::local();
            if !first {
                shell(track);
            }
            rig.from = sender(&rig.socket);
            let (before, sent) = (rig.next, rig.send(100));
            // The first one is not confirmed before the hook: nor is anything but the list's end.
            assert_eq!(sent, 100, "tracking first: {first}");
            // All of the flow are one connection, confirmed with its first packet.
            let counters =
                Command::new("nft").args(["list", "table", "inet", "t"]).output().unwrap();
            let counters = String::from_utf8(counters.stdout).unwrap();
            let new = counters.lines().find(|line| line.contains("ct state new")).unwrap();
            let flows = if first { before } else { 0 };
            let packets: u16 = new
                .split(' ')
                .skip_while(|word| *word != "packets")
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            // Without an answer a connection of UDP stays new; each packet is of one that is known.
            assert_eq!(packets, flows + 100, "{counters}");
            let known =
                std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            let expected = if first { 2 } else { 1 };
            assert_eq!(known.trim().parse::<u32>().unwrap(), expected, "connections");
        });
    }
}

#[test]
fn what_ipvlan_gives_to_another_namespace_is_that_ones() {
    // Its hook stands in the same place as the stream's, behind it or before it.
    for first in [true, false] {
        let [far, near, inner] = [Namespace::new(), Namespace::new(), Namespace::new()];
        far.join(&near, 1);
        far.shell("ip route add 10.1.1.3/32 via 10.1.1.2");
        let hand_on = || {
            near.shell("ip link add iv0 link f1 type ipvlan mode l3s");
            near.shell(&format!("ip link set iv0 netns {}", inner.path()));
            inner.shell("ip address add 10.1.1.3/24 dev iv0 && ip link set iv0 up");
        };
        if first {
            hand_on();
        }
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = near.run(|| bound(any));
        let port = socket.local_addr().unwrap().port();
        let sender = |to: [u8; 4]| {
            let socket = far.run(|| UdpSocket::bind(any).unwrap());
            socket.connect((Ipv4Addr::from(to), port)).unwrap();
            socket
        };
        let mut rig = Rig::new(socket, sender([10, 1, 1, 2]));
        until("packets are taken early", || rig.send(1) > 0);
        if !first {
            hand_on();
        }
        let other = inner.run(|| bound((Ipv4Addr::UNSPECIFIED, port).into()));
        let from = sender([10, 1, 1, 3]);
        let packets: Vec<_> = (0..20).map(|sequence| rtp_of(7, sequence, 100)).collect();
        packets.iter().for_each(|packet| assert!(from.send(packet).is_ok()));
        let mut got = Vec::new();
        until("all of them", || {
            got.extend(drain(&other));
            got.len() >= packets.len()
        });
        assert_eq!(got, packets);
        rig.send(5);
        assert_eq!(rig.reader.device.stats().unwrap().1.received, u64::from(rig.next));
    }
}

#[test]
fn a_program_that_looks_up_sockets_is_asked() {
    const SK_LOOKUP: (u32, u32) = (30, 36);
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        // Refuses all.
        let code = [step(0xb7, 0, 0, 0, 0), step(0x95, 0, 0, 0, 0)];
        let program = bpf::load(SK_LOOKUP.0, SK_LOOKUP.1, &code);
        let space = File::open("/proc/thread-self/ns/net").unwrap();
        let mut link = [0; 16];
        link[0] = program.as_raw_fd() as u64 | (space.as_raw_fd() as u64) << 32;
        link[1] = SK_LOOKUP.1.into();
        let link = bpf::call(bpf::LINK_CREATE, &mut link).expect("a link");
        // SAFETY: A new descriptor.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        let received = rig.reader.device.stats().unwrap().1.received;
        rig.from.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
        assert_eq!(rig.reader.device.stats().unwrap().1.received, received, "refused");
        drop(link);
        // The refusal comes back as an error of the socket.
        until("the link is gone", || {
            let _ = rig.from.send(&rtp_of(SSRC, rig.next, 50));
            rig.reader.device.stats().unwrap().1.received > received
        });
        rig.reader.take();
        rig.next += 1;
        assert_eq!(rig.send(5), 5);
    });
}

/// Sends a datagram from port 9 of this host as it is: with this checksum, or the right one.
fn send_raw(to: u16, payload: &[u8], checksum: Option<u16>) {
    // SAFETY: A new socket, owned from here on.
    let raw = unsafe {
        UdpSocket::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW))
    };
    let len = 8 + payload.len() as u16;
    let mut udp = [9_u16.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
    udp.extend(payload);
    let mut sum = 17 + u32::from(len) + 2 * (0x7f00 + 0x0001);
    for word in udp.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let right = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    udp[6..8].copy_from_slice(&checksum.unwrap_or(right).to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
    ip.extend(udp);
    let (address, address_len) = raw_address((Ipv4Addr::LOCALHOST, 0).into());
    // SAFETY: Bytes and an address, and their lengths.
    let sent = unsafe {
        let address = std::ptr::from_ref(&address).cast();
        libc::sendto(raw.as_raw_fd(), ip.as_ptr().cast(), ip.len(), 0, address, address_len)
    };
    assert_eq!(sent, ip.len() as isize);
}

#[test]
fn checksums_are_verified_that_nobody_verified_before() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        for len in [12, 13, 1_000] {
            for checksum in [None, Some(0)] {
                let packet = rtp_of(SSRC, rig.next, len);
                rig.next += 1;
                let before = figures();
                let early = rig.early(|rig| {
                    send_raw(rig.port(), &packet, checksum);
                    rig.expect(std::slice::from_ref(&packet));
                });
                let after = figures();
                assert_eq!((early, after[1] - before[1], after[2] - before[2]), (1, 1, 0));
            }
            let before = figures();
            let received = rig.reader.device.stats().unwrap().1.received;
            send_raw(rig.port(), &rtp_of(SSRC, rig.next, len), Some(1));
            let after = figures();
            assert_eq!((after[1] - before[1], after[2] - before[2]), (0, 1), "a wrong one");
            assert_eq!(rig.reader.device.stats().unwrap().1.received, received);
        }
    });
}

#[test]
fn a_socket_that_is_connected_bound_or_stopped_later_has_no_more_than_it_would_have() {
    in_namespace(MTU, || {
        let mut rig = Rig::local();
        let stranger = sender(&rig.socket);
        rig.socket.connect(rig.from.local_addr().unwrap()).unwrap();
        let received = rig.reader.device.stats().unwrap().1.received;
        stranger.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
        assert_eq!(rig.reader.device.stats().unwrap().1.received, received, "another's socket");
        // The first tells the socket its route.
        assert!(rig.send(1) <= 1);
        assert_eq!(rig.send(10), 10);

        shell("ip link add dummy0 type dummy && ip link set dummy0 up");
        let device = b"dummy0\0".map(|byte| byte as libc::c_char);
        option(&rig.socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &device).unwrap();
        let received = rig.reader.device.stats().unwrap().1.received;
        rig.from.send(&rtp_of(SSRC, rig.next, 50)).unwrap();
        assert_eq!(rig.reader.device.stats().unwrap().1.received, received, "on another interface");
        let device = b"lo\0".map(|byte| byte as libc::c_char);
        option(&rig.socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &device).unwrap();
        let _ = rig.from.take_error();
        assert_eq!(rig.send(10), 10);

        for _ in 0..3 {
            rig.reader.device.plain(ioctl::STOP).unwrap();
            let packets = rig.packets(5);
            let early = rig.early(|rig| {
                packets.iter().for_each(|packet| assert!(rig.from.send(packet).is_ok()));
                assert_eq!(drain(&rig.socket), packets);
            });
            assert_eq!(early, 0);
            rig.reader.device.plain(ioctl::START).unwrap();
            assert_eq!(rig.send(5), 5);
        }
    });
}
