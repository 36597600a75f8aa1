//! Legs on real interfaces: groups, sources, interfaces, IPv6, hop limits, permissions.
//!
//! Each test makes two network namespaces of its own, joined by two cables (`v` and `w`), and removes
//! them at the end. Where that is not possible (no root, no `ip`), it says so and checks nothing.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rtp_mgr::leg::Leg;
use rtp_mgr::net::{RecvBatch, SendBatch, SendError, SlotMemory};
use rtp_mgr::socket::{
    ReceiveOptions, ReceiveSocket, SocketError, SocketWarning, TransmitOptions, TransmitSocket,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, Socket, Type};

/// Two namespaces and the cables between them. The far end sends, the near end receives.
struct Lab {
    near: Namespace,
    far: Namespace,
}

/// Addresses of the near end: .1; of the far end: .2 and .3.
const SETUP: &str = "\
link set lo up
link set v up
link set w up
";
const NEAR: &str = "\
address add 10.1.0.1/24 dev v
address add 10.2.0.1/24 dev w
address add fd01::1/64 dev v nodad
address add fd02::1/64 dev w nodad
";
const FAR: &str = "\
address add 10.1.0.2/24 dev v
address add 10.1.0.3/24 dev v
address add 10.2.0.2/24 dev w
address add fd01::2/64 dev v nodad
address add fd01::3/64 dev v nodad
address add fd02::2/64 dev w nodad
";

impl Lab {
    /// `None`, with the reason on standard output, where namespaces cannot be made.
    fn new() -> Option<Self> {
        let lab = Self { near: Namespace::new("a")?, far: Namespace::new("b")? };
        for end in [&lab.near, &lab.far] {
            // Addresses are usable at once, instead of after duplicate detection.
            end.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
        }
        for cable in ["v", "w"] {
            lab.near
                .ip(&format!("link add {cable} type veth peer name {cable} netns {}", lab.far.0));
        }
        lab.near.ip(&format!("{SETUP}{NEAR}"));
        lab.far.ip(&format!("{SETUP}{FAR}"));
        Some(lab)
    }

    fn receive(&self, leg: &str) -> ReceiveSocket {
        self.try_receive(leg).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_receive(&self, leg: &str) -> Result<ReceiveSocket, SocketError> {
        let leg = parse(leg);
        self.near.inside(|| ReceiveSocket::open(&leg, &ReceiveOptions::default()))
    }

    fn transmit(&self, leg: &str, options: &TransmitOptions) -> TransmitSocket {
        let leg = parse(leg);
        self.far
            .inside(|| TransmitSocket::open(&leg, options))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sends one datagram from the far end.
    fn send(&self, leg: &str, text: &str) {
        self.transmit(leg, &TransmitOptions::default()).send(text.as_bytes()).unwrap();
    }
}

/// A network namespace that lives as long as this value.
struct Namespace(String);

impl Namespace {
    fn new(end: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rtp_mgr-{}-{count}{end}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        match made {
            Ok(output) if output.status.success() => Some(Self(name)),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                println!("not run: no network namespace could be made: {}", why.trim());
                None
            }
            Err(error) => {
                println!("not run: the program 'ip' cannot be started: {error}");
                None
            }
        }
    }

    /// Runs lines of `ip` commands here.
    fn ip(&self, lines: &str) {
        let mut ip = Command::new("ip")
            .args(["-n", &self.0, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(ip.stdin.take().unwrap(), "{lines}").unwrap();
        assert!(ip.wait().unwrap().success(), "{lines}");
    }

    /// Writes a kernel setting of this namespace.
    fn write(&self, path: &str, value: &str) {
        self.inside(|| std::fs::write(path, value).unwrap());
    }

    /// Runs `work` on a thread in this namespace. Sockets stay in the namespace they were made in.
    fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
                work()
            });
            worker.join().unwrap()
        })
    }

    /// The same as an ordinary user.
    fn inside_as_nobody<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inside(|| {
            let nobody = rustix::process::Uid::from_raw(65_534);
            // Of this thread alone; its capabilities go with it.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn parse(leg: &str) -> Leg {
    leg.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The next datagram; waits for it.
fn next(socket: impl AsFd) -> String {
    String::from_utf8(next_bytes(socket)).unwrap()
}

fn next_bytes(socket: impl AsFd) -> Vec<u8> {
    let time = Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 1, "nothing arrived");
    let mut buffer = vec![0; 65_536];
    let (len, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
    buffer.truncate(len);
    buffer
}

/// Nothing is waiting. Everything sent so far over the same cable is there or was not for `socket`
/// once something sent later has arrived.
fn assert_empty(socket: impl AsFd) {
    let mut buffer = [0; 64];
    match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN) => {}
        Ok((len, _)) => panic!("unwanted: {:?}", String::from_utf8_lossy(&buffer[..len])),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_group_is_received_on_the_named_interface_alone() {
    let Some(lab) = Lab::new() else { return };
    for group in
        ["239.1.1.1%{}:5004", "[ff35::1%{}]:5004", "[ff3e::1%{}]:5004", "[ff02::99%{}]:5004"]
    {
        let (on_v, on_w) = (group.replace("{}", "v"), group.replace("{}", "w"));
        // Both joined in one namespace: a membership of the other socket must not leak in.
        let v = lab.receive(&on_v);
        let w = lab.receive(&on_w);
        lab.send(&on_v, "through v");
        lab.send(&on_w, "through w");
        assert_eq!(next(&v), "through v", "{group}");
        assert_eq!(next(&w), "through w", "{group}");
        assert_empty(&v);
        assert_empty(&w);
    }
}

#[test]
fn only_the_groups_own_packets_arrive() {
    let Some(lab) = Lab::new() else { return };
    let sets = [
        ["239.1.1.1%v:5004", "239.1.1.2%v:5004", "10.1.0.1:5004", "239.1.1.1%v:5005"],
        ["[ff35::1%v]:5004", "[ff35::2%v]:5004", "[fd01::1]:5004", "[ff35::1%v]:5005"],
    ];
    for [group, other, unicast, port] in sets {
        let receiver = lab.receive(group);
        let neighbour = lab.receive(other);
        for unwanted in [other, unicast, port] {
            lab.send(unwanted, unwanted);
        }
        lab.send(group, "wanted");
        assert_eq!(next(&receiver), "wanted");
        assert_empty(&receiver);
        assert_eq!(next(&neighbour), other);
        assert_empty(&neighbour);
    }
}

#[test]
fn a_wildcard_receives_no_groups_of_others() {
    let Some(lab) = Lab::new() else { return };
    for (wildcard, group, unicast) in [
        ("0.0.0.0:5004", "239.1.1.1%v:{}", "10.1.0.1:5004"),
        ("[::]:5004", "[ff35::1%v]:{}", "[fd01::1]:5004"),
    ] {
        let receiver = lab.receive(wildcard);
        let joined = lab.receive(&group.replace("{}", "5006"));
        lab.send(&group.replace("{}", "5004"), "for the group");
        lab.send(&group.replace("{}", "5006"), "for the member");
        lab.send(unicast, "for the host");
        assert_eq!(next(&receiver), "for the host");
        assert_empty(&receiver);
        assert_eq!(next(&joined), "for the member");
    }
}

#[test]
fn a_source_specific_join_takes_one_source() {
    let Some(lab) = Lab::new() else { return };
    for (good, bad, group) in [
        ("10.1.0.2", "10.1.0.3", "232.1.1.1%v:5004"),
        ("fd01::2", "fd01::3", "[ff3e::8000:1%v]:5004"),
    ] {
        let specific = lab.receive(&format!("{good}@{group}"));
        let any = lab.receive(group);
        lab.send(&format!("{bad}@{group}"), "bad");
        lab.send(&format!("{good}@{group}"), "good");
        assert_eq!(next(&specific), "good");
        assert_empty(&specific);
        assert_eq!([next(&any), next(&any)], ["bad", "good"]);
        assert_eq!(specific.source(), Some(good.parse::<IpAddr>().unwrap()));
    }
}

#[test]
fn several_programs_receive_one_group_each_in_full() {
    let Some(lab) = Lab::new() else { return };
    for group in ["239.1.1.1%v:5004", "[ff35::1%v]:5004"] {
        let receivers: Vec<_> = (0..3).map(|_| lab.receive(group)).collect();
        for number in 0..5 {
            lab.send(group, &format!("packet {number}"));
        }
        for receiver in &receivers {
            for number in 0..5 {
                assert_eq!(next(receiver), format!("packet {number}"));
            }
            assert_empty(receiver);
        }
    }
}

#[test]
fn a_program_that_shares_by_reuseport_does_not_stand_in_the_way() {
    let Some(lab) = Lab::new() else { return };
    let address: SocketAddr = "239.1.1.1:5004".parse().unwrap();
    let bind = |prepare: fn(&Socket)| {
        lab.near.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            prepare(&socket);
            socket.bind(&address.into()).unwrap();
            socket
        })
    };
    let shared = bind(|socket| socket.set_reuse_port(true).unwrap());
    let receiver = lab.receive("239.1.1.1%v:5004");
    lab.send("239.1.1.1%v:5004", "shared");
    assert_eq!(next(&receiver), "shared");
    drop((shared, receiver));

    let _alone = bind(|_| ());
    let error = lab.try_receive("239.1.1.1%v:5004").unwrap_err();
    assert!(matches!(error, SocketError::PortInUse { port: 5004, .. }), "{error}");
}

#[test]
fn a_unicast_port_belongs_to_one_socket() {
    let Some(lab) = Lab::new() else { return };
    for leg in ["10.1.0.1:5004", "[fd01::1]:5004", "0.0.0.0:5010", "[::]:5010"] {
        let _first = lab.receive(leg);
        let error = lab.try_receive(leg).unwrap_err();
        assert!(matches!(error, SocketError::PortInUse { .. }), "{error}");
        let text = error.to_string();
        let port = parse(leg).port().to_string();
        assert!(
            text.contains(&port) && text.contains("in use") && text.contains("ss -u"),
            "{text}"
        );
    }
}

#[test]
fn link_local_addresses_work_with_their_interface() {
    let Some(lab) = Lab::new() else { return };
    lab.near.ip("address add fe80::aaaa/64 dev v nodad");
    let receiver = lab.receive("[fe80::aaaa%v]:5004");
    lab.send("[fe80::aaaa%v]:5004", "on the link");
    assert_eq!(next(&receiver), "on the link");
    let error = lab.try_receive("[fe80::aaaa]:5005").unwrap_err();
    assert!(matches!(error, SocketError::InterfaceNeeded { .. }), "{error}");
    assert!(
        error.to_string().contains("lo, v, w") || error.to_string().contains("w, v"),
        "{error}"
    );
}

#[test]
fn unicast_on_an_interface_takes_nothing_from_another() {
    let Some(lab) = Lab::new() else { return };
    let receiver = lab.receive("0.0.0.0%v:5004");
    let other = lab.receive("0.0.0.0%w:5004");
    lab.send("10.2.0.1:5004", "through w");
    lab.send("10.1.0.1:5004", "through v");
    assert_eq!(next(&receiver), "through v");
    assert_eq!(next(&other), "through w");
    assert_empty(&receiver);
    assert_empty(&other);
}

#[test]
fn unicast_leaves_through_the_named_interface_against_the_routes() {
    let Some(lab) = Lab::new() else { return };
    lab.near.ip("address add 10.9.0.1/32 dev lo");
    lab.far.ip("route add 10.9.0.1/32 via 10.2.0.1 dev w");
    let on_v = lab.receive("0.0.0.0%v:5004");
    let on_w = lab.receive("0.0.0.0%w:5004");
    lab.send("10.9.0.1:5004", "by the route");
    lab.send("10.9.0.1%v:5004", "by the interface");
    assert_eq!(next(&on_w), "by the route");
    assert_eq!(next(&on_v), "by the interface");
    assert_empty(&on_w);
}

#[test]
fn a_sender_uses_the_source_address_that_the_leg_names() {
    let Some(lab) = Lab::new() else { return };
    for leg in ["10.1.0.3@10.1.0.1:5004", "fd01::3@[fd01::1]:5004", "10.1.0.3@239.1.1.1%v:5004"] {
        let sender =
            lab.transmit(leg, &TransmitOptions { source_port: 7_000, ..Default::default() });
        let expected = SocketAddr::new(parse(leg).source().unwrap(), 7_000);
        assert_eq!((sender.local_addr().ip(), sender.local_addr().port()), (expected.ip(), 7_000));
    }
    let leg = parse("10.77.0.1@10.1.0.1:5004");
    let error =
        lab.far.inside(|| TransmitSocket::open(&leg, &TransmitOptions::default())).unwrap_err();
    assert!(matches!(error, SocketError::NotLocal { .. }), "{error}");
}

/// An IP packet as it came over the cable.
struct OnTheWire {
    traffic_class: u8,
    hops: u8,
}

/// Reads packets from all interfaces of the near end until one to UDP port 5004.
fn on_the_wire(tap: &Socket) -> OnTheWire {
    loop {
        let packet = next_bytes(tap);
        let (traffic_class, hops, protocol, udp) = match packet[0] >> 4 {
            4 => (packet[1], packet[8], packet[9], &packet[usize::from(packet[0] & 15) * 4..]),
            6 => ((packet[0] << 4) | (packet[1] >> 4), packet[7], packet[6], &packet[40..]),
            _ => continue,
        };
        if protocol == 17 && udp[2..4] == 5_004_u16.to_be_bytes() {
            return OnTheWire { traffic_class, hops };
        }
    }
}

#[test]
fn ttl_and_dscp_are_on_the_wire() {
    let Some(lab) = Lab::new() else { return };
    const EVERYTHING: u16 = 3;
    let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
    let tap = lab.near.inside(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap());
    for leg in ["10.1.0.1:5004", "239.1.1.1%v:5004", "[fd01::1]:5004", "[ff35::1%v]:5004"] {
        for (ttl, dscp) in [(1, 0), (17, 46), (255, 63)] {
            let options =
                TransmitOptions { ttl: Some(ttl), dscp: Some(dscp), ..Default::default() };
            lab.transmit(leg, &options).send(b"x").unwrap();
            let packet = on_the_wire(&tap);
            assert_eq!(u32::from(packet.hops), ttl, "{leg}");
            assert_eq!(u32::from(packet.traffic_class), dscp << 2, "{leg}");
        }
    }
    for leg in ["239.1.1.1%v:5004", "[ff35::1%v]:5004"] {
        lab.send(leg, "x");
        assert_eq!(on_the_wire(&tap).hops, 1, "groups stay on the link by default");
    }
    for (argument, options) in [
        ("ttl 0", TransmitOptions { ttl: Some(0), ..Default::default() }),
        ("ttl 256", TransmitOptions { ttl: Some(256), ..Default::default() }),
        ("dscp 64", TransmitOptions { dscp: Some(64), ..Default::default() }),
    ] {
        let error = TransmitSocket::open(&parse("127.0.0.1:5004"), &options).unwrap_err();
        assert!(error.to_string().contains(argument), "{error}");
        assert!(error.to_string().contains("accepted: "), "{error}");
    }
}

#[test]
fn a_group_reaches_receivers_on_the_senders_own_machine() {
    let Some(lab) = Lab::new() else { return };
    for group in ["239.1.1.1%v:5004", "[ff35::1%v]:5004", "239.1.1.1%lo:5004"] {
        let leg = parse(group);
        let receiver =
            lab.far.inside(|| ReceiveSocket::open(&leg, &ReceiveOptions::default())).unwrap();
        lab.send(group, "to myself");
        assert_eq!(next(&receiver), "to myself", "{group}");
    }
}

#[test]
fn without_a_route_the_interface_has_to_be_named() {
    let Some(lab) = Lab::new() else { return };
    let error = lab.try_receive("239.1.1.1:5004").unwrap_err();
    assert!(matches!(error, SocketError::NoRoute { .. }), "{error}");
    assert!(error.to_string().contains("239.1.1.1%eth0"), "{error}");
    for leg in ["239.1.1.1:5004", "192.0.2.1:5004", "[2001:db8::1]:5004"] {
        let leg = parse(leg);
        let error =
            lab.far.inside(|| TransmitSocket::open(&leg, &TransmitOptions::default())).unwrap_err();
        assert!(matches!(error, SocketError::NoRoute { .. }), "{error}");
    }
    for leg in ["239.1.1.1%eth7:5004", "10.1.0.1%eth7:5004", "[ff35::1%eth7]:5004"] {
        let error = lab.try_receive(leg).unwrap_err();
        assert!(matches!(error, SocketError::NoInterface { .. }), "{error}");
        assert!(error.to_string().contains("\"eth7\"; accepted: "), "{error}");
    }
    for leg in ["10.1.0.77:5004", "[fd01::77]:5004"] {
        let error = lab.try_receive(leg).unwrap_err();
        assert!(matches!(error, SocketError::NotLocal { .. }), "{error}");
    }
    for leg in ["10.1.0.255:5004", "255.255.255.255:5004", "0.0.0.0:5004", "10.1.0.1:0"] {
        let leg = parse(leg);
        let error =
            lab.far.inside(|| TransmitSocket::open(&leg, &TransmitOptions::default())).unwrap_err();
        assert!(matches!(error, SocketError::NotADestination { .. }), "{error}");
    }
}

#[test]
fn an_ordinary_user_is_told_what_is_not_permitted() {
    let Some(lab) = Lab::new() else { return };
    let leg = parse("10.1.0.1:504");
    let error = lab
        .near
        .inside_as_nobody(|| ReceiveSocket::open(&leg, &ReceiveOptions::default()))
        .unwrap_err();
    assert!(matches!(error, SocketError::Permission { .. }), "{error}");
    assert!(error.to_string().contains("1024"), "{error}");
}

#[test]
fn an_ordinary_user_gets_the_limit_and_the_remedy() {
    let Some(lab) = Lab::new() else { return };
    let limit: usize =
        std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    let asked = limit * 2;
    let options = ReceiveOptions { buffer: Some(asked), ..Default::default() };
    let leg = parse("10.1.0.1:5004");
    let socket = lab.near.inside_as_nobody(|| ReceiveSocket::open(&leg, &options)).unwrap();
    assert_eq!((socket.buffer().asked, socket.buffer().granted), (asked, limit));
    let [SocketWarning::ReceiveBuffer(grant)] = socket.warnings() else {
        panic!("{:?}", socket.warnings())
    };
    assert!(grant.is_short());
    let text = socket.warnings()[0].to_string();
    assert!(text.contains(&format!("sysctl -w net.core.rmem_max={asked}")), "{text}");
    drop(socket);

    // With CAP_NET_ADMIN (here: as root) the limit does not count.
    let socket = lab.near.inside(|| ReceiveSocket::open(&leg, &options)).unwrap();
    if socket.warnings().is_empty() {
        assert_eq!(socket.buffer().granted, asked);
    } else {
        println!("not run: this root may not go beyond rmem_max");
    }
}

/// A send batch with `count` packets of `len` bytes, each filled with its number.
fn packets(count: u32, len: usize, offload: bool) -> SendBatch {
    let mut memory = SlotMemory::private(count, len);
    for number in 0..count {
        memory.write(number, &vec![number as u8; len]);
    }
    let mut batch = SendBatch::new(memory, count as usize, offload);
    for number in 0..count {
        assert!(batch.add(number, len));
    }
    batch
}

#[test]
fn packets_longer_than_the_interface_takes_go_without_offload() {
    let Some(lab) = Lab::new() else { return };
    for (leg, longest) in [("10.1.0.1:5004", 1_472), ("[fd01::1]:5004", 1_452)] {
        let receiver = lab.receive(leg);
        let sender = lab.transmit(leg, &TransmitOptions::default());
        assert_eq!(sender.packet_len_max(), Some(longest));
        let mut batch = packets(5, 2_000, true);
        let sent = batch.send(&sender);
        assert!(matches!(sent.stop, Some(SendError::OffloadRefused(_))), "{:?}", sent.stop);
        assert_eq!(sent.packets, 0);
        batch.split();
        assert_eq!(batch.send(&sender).packets, 5);
        for number in 0..5 {
            assert_eq!(next_bytes(&receiver), [number; 2_000]);
        }
    }
}

#[test]
fn a_group_arrives_the_same_with_and_without_coalescing() {
    let Some(lab) = Lab::new() else { return };
    let leg = parse("239.1.1.1%v:5004");
    let open = |gro| {
        let options = ReceiveOptions { gro, ..Default::default() };
        lab.near.inside(|| ReceiveSocket::open(&leg, &options)).unwrap()
    };
    let receivers = [open(true), open(false)];
    let sender = lab.transmit("239.1.1.1%v:5004", &TransmitOptions::default());
    assert_eq!(packets(40, 1_000, true).send(&sender).packets, 40);
    for receiver in &receivers {
        let mut batch = RecvBatch::new(SlotMemory::private(200, 1_200), 4, 64);
        let mut free = 0..200;
        let mut number = 0;
        while number < 40 {
            batch.fill(|| free.next());
            let time = Timespec { tv_sec: 5, tv_nsec: 0 };
            let mut fds = [PollFd::new(receiver, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 1, "nothing arrived");
            batch.receive(receiver).unwrap();
            while let Some(packet) = batch.next_packet(|| free.next()) {
                assert_eq!(packet.bytes, [number; 1_000]);
                number += 1;
            }
        }
        assert_empty(receiver);
    }
}

#[test]
fn a_full_socket_asks_to_wait() {
    let Some(lab) = Lab::new() else { return };
    // Nobody answers there: packets wait for the neighbour's address and fill the socket's buffer.
    let options = TransmitOptions { buffer: Some(16_384), ..Default::default() };
    let sender = lab.transmit("10.1.0.99:5004", &options);
    let mut batch = packets(200, 1_000, false);
    let sent = batch.send(&sender);
    assert!(matches!(sent.stop, Some(SendError::WouldBlock)), "{:?}", sent.stop);
    assert!(sent.packets > 0 && batch.pending() == 200 - sent.packets);
}
