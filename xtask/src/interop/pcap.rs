//! Capture files made here: the classic pcap format and a few link types, written by hand so that
//! the reader under test is held against the formats and not against its own library.

use std::net::{IpAddr, SocketAddr};

/// `LINKTYPE_` values of the capture format's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// BSD loopback: the address family in the writer's byte order.
    Null,
    Ethernet,
    /// Ethernet with an IEEE 802.1Q tag.
    EthernetVlan,
    /// IP without a link layer.
    Raw,
    LinuxCooked,
    LinuxCooked2,
}

impl Link {
    pub const ALL: [Self; 6] = [
        Self::Null,
        Self::Ethernet,
        Self::EthernetVlan,
        Self::Raw,
        Self::LinuxCooked,
        Self::LinuxCooked2,
    ];

    fn number(self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Ethernet | Self::EthernetVlan => 1,
            Self::Raw => 101,
            Self::LinuxCooked => 113,
            Self::LinuxCooked2 => 276,
        }
    }

    /// What comes before the IP header.
    fn header(self, ip: IpAddr) -> Vec<u8> {
        let ethertype: [u8; 2] = if ip.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let mut header = Vec::new();
        match self {
            Self::Null => header.extend((if ip.is_ipv4() { 2_u32 } else { 30 }).to_le_bytes()),
            Self::Ethernet => {
                header.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
                header.extend(ethertype);
            }
            Self::EthernetVlan => {
                header.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0x00, 0x60, 0x2a]);
                header.extend(ethertype);
            }
            Self::Raw => {}
            Self::LinuxCooked => {
                header.extend([0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
                header.extend(ethertype);
            }
            Self::LinuxCooked2 => {
                header.extend(ethertype);
                header.extend([0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
            }
        }
        header
    }
}

/// A pcap file with nanosecond times, little-endian.
#[derive(Debug)]
pub struct Capture {
    link: Link,
    snapshot: usize,
    bytes: Vec<u8>,
}

impl Capture {
    /// An empty file. Packets are cut to `snapshot` bytes.
    pub fn new(link: Link, snapshot: usize) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(0xa1b2_3c4d_u32.to_le_bytes());
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(4_u16.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend((snapshot as u32).to_le_bytes());
        bytes.extend(link.number().to_le_bytes());
        Self { link, snapshot, bytes }
    }

    /// Adds a UDP datagram.
    pub fn datagram(&mut self, time_ns: u64, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let mut packet = self.link.header(from.ip());
        packet.extend(ip(from, to, payload));
        let kept = packet.len().min(self.snapshot);
        self.bytes.extend(((time_ns / 1_000_000_000) as u32).to_le_bytes());
        self.bytes.extend(((time_ns % 1_000_000_000) as u32).to_le_bytes());
        self.bytes.extend((kept as u32).to_le_bytes());
        self.bytes.extend((packet.len() as u32).to_le_bytes());
        self.bytes.extend(&packet[..kept]);
    }

    /// The file.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// IP and UDP headers and the payload. Both addresses must be of one family.
fn ip(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let udp_len = (8 + payload.len()) as u16;
    let mut packet = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + udp_len).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(udp_len.to_be_bytes());
            packet.extend([17, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => unreachable!("addresses of two families: {from}, {to}"),
    }
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    // No checksum: neither reader looks at it.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_header_with_its_checksum_is_zero() {
        let packet = ip(
            "192.0.2.1:5004".parse().unwrap(),
            "192.0.2.2:5004".parse().unwrap(),
            &[0x80, 0, 0, 1],
        );
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!(packet.len(), 20 + 8 + 4);
    }

    #[test]
    fn records_keep_the_length_that_was_cut() {
        let mut capture = Capture::new(Link::Raw, 40);
        let (from, to) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        capture.datagram(5_000_000_007, from, to, &[1; 100]);
        let bytes = capture.into_bytes();
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([field(24), field(28), field(32), field(36)], [5, 7, 40, 128]);
        assert_eq!(bytes.len(), 24 + 16 + 40);
    }
}
