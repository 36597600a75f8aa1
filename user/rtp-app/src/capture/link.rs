//! From a frame to its UDP datagram.
//!
//! What lives here: link-layer headers of the supported link types; IP and UDP by etherparse. Frames
//! cut by a snapshot length are read as far as they go: the UDP header is enough.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, IpNumber, LaxIpPayloadSlice, LaxNetSlice, LaxSlicedPacket, UdpHeaderSlice,
};

use super::Datagram;
use super::file::Frame;

/// For error messages.
pub const ACCEPTED_LINK_TYPES: &str = "Ethernet (1), Linux cooked v1 (113) and v2 (276), raw IP \
                                       (12, 14, 101, 228, 229), BSD loopback (0, 108)";

/// What a frame begins with (a subset of the registry of link types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// An Ethernet header, with any VLAN tags (1).
    Ethernet,
    /// The pseudo header of Linux's "any" interface (113).
    LinuxCooked,
    /// Its second version (276).
    LinuxCooked2,
    /// An IPv4 or IPv6 header (101; 12 and 14 in files of some systems; 228; 229).
    RawIp,
    /// A four-byte address family in either byte order (0; 108 in network byte order).
    Loopback,
}

impl LinkType {
    /// From its number in a capture file.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ethernet),
            113 => Some(Self::LinuxCooked),
            276 => Some(Self::LinuxCooked2),
            12 | 14 | 101 | 228 | 229 => Some(Self::RawIp),
            0 | 108 => Some(Self::Loopback),
            _ => None,
        }
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A UDP datagram.
    Udp(Datagram<'a>),
    /// A piece of a UDP datagram that IP fragmented. Pieces are not put together.
    Fragment,
    /// UDP whose lengths contradict each other, or whose header the snapshot length cut off.
    BrokenUdp,
    /// Another protocol, or no readable header.
    Other,
}

/// Finds the UDP datagram in a frame.
pub fn content<'a>(frame: &Frame<'a>) -> Content<'a> {
    let Some(packet) = slice(frame) else { return Content::Other };
    let (Some((source, destination)), Some(ip)) = (addresses(&packet), packet.ip_payload()) else {
        return Content::Other;
    };
    if ip.ip_number != IpNumber::UDP {
        return Content::Other;
    }
    if ip.fragmented {
        return Content::Fragment;
    }
    let sent_len = sent_len(&packet, ip, frame);
    let Some((header, payload, payload_len)) = split_udp(ip.payload, sent_len) else {
        return Content::BrokenUdp;
    };
    Content::Udp(Datagram {
        frame: frame.number,
        time_ns: frame.time_ns,
        source: SocketAddr::new(source, header.source_port()),
        destination: SocketAddr::new(destination, header.destination_port()),
        payload,
        payload_len,
    })
}

/// The headers of a frame, down to IP.
fn slice<'a>(frame: &Frame<'a>) -> Option<LaxSlicedPacket<'a>> {
    let data = frame.data;
    match frame.link.ok()? {
        LinkType::Ethernet => LaxSlicedPacket::from_ethernet(data).ok(),
        LinkType::LinuxCooked => from_ether_type(data.get(14..16)?, data.get(16..)?),
        LinkType::LinuxCooked2 => from_ether_type(data.get(..2)?, data.get(20..)?),
        LinkType::RawIp => LaxSlicedPacket::from_ip(data).ok(),
        LinkType::Loopback => {
            let (family, packet) = data.split_first_chunk::<4>()?;
            is_ip_family(*family).then(|| LaxSlicedPacket::from_ip(packet).ok())?
        }
    }
}

fn from_ether_type<'a>(protocol: &[u8], data: &'a [u8]) -> Option<LaxSlicedPacket<'a>> {
    let protocol = u16::from_be_bytes(protocol.try_into().ok()?);
    Some(LaxSlicedPacket::from_ether_type(EtherType(protocol), data))
}

/// AF_INET is 2 everywhere; AF_INET6 is 10, 24, 28 or 30. Written in the capturing machine's byte order.
fn is_ip_family(family: [u8; 4]) -> bool {
    let is_ip = |number: u32| matches!(number, 2 | 10 | 24 | 28 | 30);
    is_ip(u32::from_le_bytes(family)) || is_ip(u32::from_be_bytes(family))
}

fn addresses(packet: &LaxSlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let v4 = |octets| IpAddr::V4(Ipv4Addr::from(octets));
            Some((v4(ip.header().source()), v4(ip.header().destination())))
        }
        LaxNetSlice::Ipv6(ip) => {
            let v6 = |octets| IpAddr::V6(Ipv6Addr::from(octets));
            Some((v6(ip.header().source()), v6(ip.header().destination())))
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// Bytes of IP payload that were sent, of which `ip` may hold fewer. A length of 0 in the IP header
/// stands for what the frame holds (segmentation offload, jumbograms).
fn sent_len(packet: &LaxSlicedPacket<'_>, ip: &LaxIpPayloadSlice<'_>, frame: &Frame<'_>) -> usize {
    let (start, stated) = match &packet.net {
        Some(LaxNetSlice::Ipv4(v4)) => (v4.header().slice(), usize::from(v4.header().total_len())),
        Some(LaxNetSlice::Ipv6(v6)) => {
            let payload = usize::from(v6.header().payload_length());
            (v6.header().slice(), if payload == 0 { 0 } else { 40 + payload })
        }
        _ => return ip.payload.len(),
    };
    let headers = ip.payload.as_ptr() as usize - start.as_ptr() as usize;
    let cut = frame.len.saturating_sub(frame.data.len());
    match stated.checked_sub(headers) {
        Some(len) if len >= ip.payload.len() => len,
        _ => ip.payload.len() + cut,
    }
}

/// Splits UDP into its header, the payload bytes at hand and the number of them that were sent.
fn split_udp(data: &[u8], sent_len: usize) -> Option<(UdpHeaderSlice<'_>, &[u8], usize)> {
    let header = UdpHeaderSlice::from_slice(data).ok()?;
    let room = sent_len.checked_sub(8)?;
    let payload_len = match usize::from(header.length()) {
        0 => room,
        len => len.checked_sub(8).filter(|len| *len <= room)?,
    };
    let payload = data.get(8..)?;
    Some((header, &payload[..payload.len().min(payload_len)], payload_len))
}
