//! From frames of every link type to UDP datagrams.

use super::support::*;
use rtp_app::capture::link::content;
use rtp_app::capture::{CaptureFile, Content};

const V4: (&str, &str) = ("192.0.2.1:4000", "239.1.2.3:5004");
const V6: (&str, &str) = ("[2001:db8::1]:4000", "[ff3e::1]:5004");

/// What the only frame of a capture holds.
fn datagram(link: u32, frame: &[u8]) -> Option<KeptDatagram> {
    cut_datagram(link, frame, frame.len())
}

fn cut_datagram(link: u32, frame: &[u8], captured: usize) -> Option<KeptDatagram> {
    match what(link, frame, captured) {
        What::Udp(datagram) => Some(datagram),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Udp(KeptDatagram),
    Fragment,
    BrokenUdp,
    Other,
}

fn what(link: u32, frame: &[u8], captured: usize) -> What {
    let mut pcap = Pcap::new(link);
    pcap.cut_frame(START_NS, frame, captured);
    let mut file = CaptureFile::new(std::io::Cursor::new(pcap.bytes)).unwrap();
    let frame = file.next().unwrap().unwrap();
    match content(&frame) {
        Content::Udp(datagram) => What::Udp(datagram.into()),
        Content::Fragment => What::Fragment,
        Content::BrokenUdp => What::BrokenUdp,
        Content::Other => What::Other,
    }
}

fn payload() -> Vec<u8> {
    Rtp::pcmu(7, 3).bytes()
}

fn packet(ends: (&str, &str)) -> Vec<u8> {
    udp(address(ends.0), address(ends.1), &payload())
}

fn expected(ends: (&str, &str)) -> Option<KeptDatagram> {
    Some(KeptDatagram {
        time_ns: Some(START_NS),
        source: address(ends.0),
        destination: address(ends.1),
        payload: payload(),
        payload_len: payload().len(),
    })
}

#[test]
fn every_link_type_carries_both_ip_versions() {
    for ends in [V4, V6] {
        let packet = packet(ends);
        let expected = expected(ends);
        assert_eq!(datagram(ETHERNET, &ethernet(&packet)), expected);
        assert_eq!(datagram(LINUX_COOKED, &linux_cooked(&packet)), expected);
        assert_eq!(datagram(LINUX_COOKED_2, &linux_cooked_2(&packet)), expected);
        let raw = if ends == V4 { 228 } else { 229 };
        for link in [12, 14, 101, raw] {
            assert_eq!(datagram(link, &packet), expected, "link type {link}");
        }
    }
}

/// IEEE 802.1Q and 802.1ad, and the ether type that QinQ had before it.
#[test]
fn vlan_tags_are_skipped() {
    for tags in [
        &[(0x8100, 100)][..],
        &[(0x88A8, 100), (0x8100, 200)],
        &[(0x9100, 100), (0x8100, 200)],
        &[(0x8100, 1), (0x8100, 2), (0x8100, 3)],
    ] {
        for ends in [V4, V6] {
            let frame = tagged(tags, &packet(ends));
            assert_eq!(datagram(ETHERNET, &frame), expected(ends), "{tags:?}");
        }
    }
    let mut tagged_cooked = linux_cooked(&packet(V4));
    tagged_cooked[14..16].copy_from_slice(&[0x81, 0x00]);
    tagged_cooked.splice(16..16, [0, 100, 0x08, 0x00]);
    assert_eq!(datagram(LINUX_COOKED, &tagged_cooked), expected(V4));
}

/// The address family is in the byte order of the machine that captured (or, LOOP, of the network), and
/// AF_INET6 differs by system.
#[test]
fn loopback_families_of_all_systems() {
    for order in Order::BOTH {
        assert_eq!(datagram(NULL, &loopback(order.u32(2), &packet(V4))), expected(V4));
        for family in [10, 24, 28, 30] {
            assert_eq!(datagram(NULL, &loopback(order.u32(family), &packet(V6))), expected(V6));
        }
        assert_eq!(what(NULL, &loopback(order.u32(7), &packet(V4)), 200), What::Other);
    }
    assert_eq!(datagram(LOOP, &loopback([0, 0, 0, 2], &packet(V4))), expected(V4));
}

/// Short Ethernet frames are padded: the IP header says where the packet ends.
#[test]
fn ethernet_padding_is_not_payload() {
    let mut frame = ethernet(&udp(address(V4.0), address(V4.1), &[1, 2, 3]));
    frame.resize(60, 0xEE);
    let datagram = datagram(ETHERNET, &frame).unwrap();
    assert_eq!((datagram.payload, datagram.payload_len), (vec![1, 2, 3], 3));
}

#[test]
fn ip_options_and_extension_headers_are_skipped() {
    let mut with_options = packet(V4);
    with_options[0] = 0x47;
    let total = with_options.len() as u16 + 8;
    with_options[2..4].copy_from_slice(&total.to_be_bytes());
    with_options.splice(20..20, [1, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(datagram(RAW, &with_options), expected(V4));

    // Hop-by-hop options (router alert, as MLD uses), then destination options.
    let segment = udp_segment(4_000, 5_004, &payload());
    let mut extended = vec![60, 0, 5, 2, 0, 0, 1, 0];
    extended.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend(segment);
    let packet = ip(address(V6.0).ip(), address(V6.1).ip(), 0, &extended);
    assert_eq!(datagram(RAW, &packet), expected(V6));
}

/// The UDP header is enough: lengths come from the headers, not from what was captured.
#[test]
fn a_cut_frame_tells_its_true_length() {
    for (ends, headers) in [(V4, 28), (V6, 48)] {
        let packet = packet(ends);
        for captured in headers..packet.len() {
            let datagram = cut_datagram(RAW, &packet, captured).unwrap();
            assert_eq!(datagram.payload, payload()[..captured - headers]);
            assert_eq!(datagram.payload_len, payload().len());
        }
        assert_eq!(what(RAW, &packet, headers - 1), What::BrokenUdp);
        for captured in 0..20 {
            assert_eq!(what(RAW, &packet, captured), What::Other, "{captured} bytes");
        }
    }
}

#[test]
fn fragments_are_told_apart() {
    let packet = packet(V4);
    for (flags_and_offset, expected) in
        [(0x2000_u16, What::Fragment), (0x2010, What::Fragment), (0x0010, What::Fragment)]
    {
        let mut fragment = packet.clone();
        fragment[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        assert_eq!(what(RAW, &fragment, 1_500), expected, "{flags_and_offset:#x}");
    }
    // "Do not fragment" is no fragment.
    let mut whole = packet;
    whole[6] = 0x40;
    assert_eq!(datagram(RAW, &whole), expected(V4));

    let segment = udp_segment(4_000, 5_004, &payload());
    let v6 = |offset_and_flag: u16| {
        let [o0, o1] = offset_and_flag.to_be_bytes();
        let extended = [&[17, 0, o0, o1, 0, 0, 0, 9][..], &segment].concat();
        ip(address(V6.0).ip(), address(V6.1).ip(), 44, &extended)
    };
    assert_eq!(what(RAW, &v6(1), 1_500), What::Fragment);
    assert_eq!(what(RAW, &v6(0x40), 1_500), What::Fragment);
    // RFC 6946: an atomic fragment is a whole packet.
    assert_eq!(datagram(RAW, &v6(0)), expected(V6));
}

#[test]
fn other_protocols_are_left_alone() {
    let tcp = ip(address(V4.0).ip(), address(V4.1).ip(), 6, &[0; 40]);
    assert_eq!(what(RAW, &tcp, 100), What::Other);
    let mut arp = ethernet(&packet(V4));
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(what(ETHERNET, &arp, 100), What::Other);
    // PTP straight over Ethernet.
    let mut ptp = ethernet(&packet(V4));
    ptp[12..14].copy_from_slice(&[0x88, 0xF7]);
    assert_eq!(what(ETHERNET, &ptp, 100), What::Other);
    assert_eq!(what(RAW, &[], 0), What::Other);
    assert_eq!(what(ETHERNET, &[0; 13], 13), What::Other);
}

#[test]
fn impossible_udp_lengths_are_broken() {
    for len in [1_u16, 7, 9_000] {
        let mut packet = packet(V4);
        packet[24..26].copy_from_slice(&len.to_be_bytes());
        assert_eq!(what(RAW, &packet, 1_500), What::BrokenUdp, "UDP length {len}");
    }
    // RFC 2675 §4: 0 stands for what the IP packet holds.
    let mut packet = packet(V4);
    packet[24..26].copy_from_slice(&[0, 0]);
    assert_eq!(datagram(RAW, &packet), expected(V4));
    // Total length 0, as sending with segmentation offload shows: what the frame holds.
    packet[2..4].copy_from_slice(&[0, 0]);
    assert_eq!(datagram(RAW, &packet), expected(V4));
}
