//! Who may have a packet: source-specific groups, and programs of a control group. What the socket would not have
//! received never reaches the ring.

#![allow(unsafe_code)] // Socket options, BPF.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use rtp_mgr_kernel_tests::bpf::{self, step};
use rtp_mgr_kernel_tests::cgroup::Group;
use rtp_mgr_kernel_tests::namespace::Namespace;
use rtp_mgr_kernel_tests::sockets::{
    LIMIT, bound, drain, local, option, raw_address, rtp, running, sender, sequences, shared, until,
};
use rtp_mgr_kernel_tests::tracing::Counts;
use rtp_mgr_kernel_tests::transmit::{Writer, request};
use rtp_mgr_ring::abi::ioctl;

/// The IPv4 and IPv6 addresses of the senders, the first of which is wanted, and of the group.
const SENDERS: [[&str; 2]; 2] = [["10.9.0.1", "10.9.0.2"], ["fd00::1", "fd00::2"]];
const GROUPS: [&str; 2] = ["232.1.2.3", "ff38::1234"];

fn raw(address: IpAddr) -> libc::sockaddr_storage {
    raw_address(SocketAddr::new(address, 0)).0
}

/// `struct group_req` and `struct group_source_req` of the kernel.
#[repr(C)]
struct Join {
    interface: u32,
    group: libc::sockaddr_storage,
    source: libc::sockaddr_storage,
}

/// Joins the group on an interface: packets of all senders, or of one.
fn join(socket: &UdpSocket, group: IpAddr, source: Option<IpAddr>, interface: u32) {
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let group = raw(group);
    match source {
        Some(source) => {
            let join = Join { interface, group, source: raw(source) };
            option(socket, level, libc::MCAST_JOIN_SOURCE_GROUP, &join).unwrap();
        }
        None => {
            let join = Join { interface, group, source: raw(Ipv4Addr::UNSPECIFIED.into()) };
            option(socket, level, libc::MCAST_JOIN_GROUP, &join).unwrap();
        }
    }
}

#[test]
fn of_a_source_specific_group_only_that_source_arrives_and_other_members_lose_nothing() {
    let space = Namespace::new();
    space.shell("ip link add dummy0 type dummy && ip link set dummy0 up multicast on");
    for [one, other] in SENDERS {
        let (len, more) = if one.contains(':') { (64, "nodad") } else { (24, "") };
        for address in [one, other] {
            space.shell(&format!("ip address add {address}/{len} dev dummy0 {more}"));
        }
    }
    let index: u32 = space
        .shell("ip -o link show dummy0 | cut -d : -f 1")
        .trim()
        .parse()
        .expect("the number of an interface");
    space.run(|| {
        for (senders, group) in SENDERS.iter().zip(GROUPS) {
            let group: IpAddr = group.parse().unwrap();
            let senders = senders.map(|address| address.parse::<IpAddr>().unwrap());
            let any: IpAddr = match group {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let adopted = shared(libc::SO_REUSEADDR, SocketAddr::new(any, 0));
            let port = adopted.local_addr().unwrap().port();
            let same = shared(libc::SO_REUSEADDR, SocketAddr::new(any, port));
            let all = shared(libc::SO_REUSEADDR, SocketAddr::new(any, port));
            join(&adopted, group, Some(senders[0]), index);
            join(&same, group, Some(senders[0]), index);
            join(&all, group, None, index);
            let mut reader = running(ioctl::Create::default(), &adopted);
            let from = senders.map(|address| {
                let socket = UdpSocket::bind((address, 0)).unwrap();
                match group {
                    IpAddr::V4(_) => {
                        let request = libc::ip_mreqn {
                            imr_multiaddr: libc::in_addr { s_addr: 0 },
                            imr_address: libc::in_addr { s_addr: 0 },
                            imr_ifindex: index as i32,
                        };
                        option(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request).unwrap();
                    }
                    IpAddr::V6(_) => {
                        option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &index)
                            .unwrap();
                    }
                }
                socket
            });
            for sequence in 0..100 {
                from[usize::from(sequence % 2)].send_to(&rtp(sequence), (group, port)).unwrap();
            }
            let even: Vec<_> = (0..100).step_by(2).collect();
            let packets = |numbers: &[u16]| numbers.iter().map(|&n| rtp(n)).collect::<Vec<_>>();
            assert_eq!(sequences(&reader.collect(even.len(), LIMIT)), even, "{group}");
            assert_eq!(drain(&same), packets(&even), "{group}: another of this source");
            let everything: Vec<_> = (0..100).collect();
            assert_eq!(drain(&all), packets(&everything), "{group}: a member of all sources");
            assert_eq!(reader.counters().received, 50);
            assert!(drain(&adopted).is_empty());
        }
    });
}

/// A program that refuses packets of RTP over IPv4 with odd sequence numbers, attached to a control group.
fn refuse_odd(group: &str, attach_type: u64) {
    const LOAD_BYTES: i32 = 26;
    const CGROUP_SKB: u32 = 8;
    let code = [
        step(0xb7, 2, 0, 0, 20 + 8 + 2), // r2 = where the sequence number is
        step(0xbf, 3, 10, 0, 0),         // r3 = the stack
        step(0x07, 3, 0, 0, -8),         // r3 -= 8
        step(0xb7, 4, 0, 0, 2),          // r4 = its length
        step(0x85, 0, 0, 0, LOAD_BYTES),
        step(0x55, 0, 0, 4, 0),   // shorter: let it pass
        step(0x71, 0, 10, -7, 0), // r0 = its lower byte
        step(0x57, 0, 0, 0, 1),   // r0 &= 1
        step(0xa7, 0, 0, 0, 1),   // r0 ^= 1: 1 lets it pass
        step(0x95, 0, 0, 0, 0),
        step(0xb7, 0, 0, 0, 1),
        step(0x95, 0, 0, 0, 0),
    ];
    let program = bpf::load(CGROUP_SKB, attach_type as u32, &code);
    let group = File::open(group).unwrap();
    let mut attach = [0; 16];
    attach[0] = group.as_raw_fd() as u64 | (program.as_raw_fd() as u64) << 32;
    attach[1] = attach_type;
    bpf::call(bpf::PROG_ATTACH, &mut attach).expect("attached");
}

const INGRESS: u64 = 0;
const EGRESS: u64 = 1;

#[test]
fn what_a_program_of_the_control_group_refuses_never_reaches_the_ring() {
    let group = Group::new("ingress");
    let (plain, adopted) = (local(), local());
    let from = [sender(&plain), sender(&adopted)];
    refuse_odd(group.path(), INGRESS);
    let early = Counts::of("rtp_mgr_early", "port");
    let port = adopted.local_addr().unwrap().port();
    let mut reader = running(ioctl::Create::default(), &adopted);
    for from in &from {
        (0..200).for_each(|sequence| assert!(from.send(&rtp(sequence)).is_ok()));
    }
    let expected = drain(&plain);
    assert_eq!(expected.len(), 100, "the program works");
    let items = reader.collect(100, LIMIT);
    assert_eq!(items.iter().map(|item| item.bytes.clone()).collect::<Vec<_>>(), expected);
    let counters = reader.device.stats().unwrap().1;
    assert_eq!((counters.received, counters.external_drops), (100, 100));
    // Whether or not they are taken before the UDP code.
    let mut sent = 100;
    until("they are taken early", || {
        from[1].send(&rtp(2 * sent)).unwrap();
        from[1].send(&rtp(2 * sent + 1)).unwrap();
        sent += 1;
        early.get(port.into()) > 20
    });
    let items = reader.collect(usize::from(sent - 100), LIMIT);
    assert_eq!(sequences(&items), (100..sent).map(|number| 2 * number).collect::<Vec<_>>());
    let counters = reader.device.stats().unwrap().1;
    assert_eq!((counters.received, counters.external_drops), (sent.into(), sent.into()));
    assert!(drain(&adopted).is_empty());
}

#[test]
fn what_a_program_of_the_control_group_refuses_to_send_is_counted_and_the_rest_goes() {
    let group = Group::new("egress");
    let to = bound((Ipv4Addr::LOCALHOST, 0).into());
    let socket = sender(&to);
    refuse_odd(group.path(), EGRESS);
    let mut writer = Writer::create(request()).unwrap();
    writer.add_leg(0, socket.as_raw_fd(), ioctl::LEG_NO_GSO).unwrap();
    writer.device.plain(ioctl::START).unwrap();
    let packets: Vec<_> = (0..200).map(rtp).collect();
    writer.send_all(packets.iter().map(Vec::as_slice), LIMIT);
    let even: Vec<_> = packets.iter().step_by(2).cloned().collect();
    assert_eq!(drain(&to), even);
    let counters = writer.counters();
    assert_eq!((counters.committed, counters.sent, counters.send_failed), (200, 100, 100));
    assert_eq!(counters.send_errno, libc::EPERM as u64);
}
