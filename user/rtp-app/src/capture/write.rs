//! Captures of received packets: pcap files with nanosecond times and raw IP frames.
//!
//! The headers that a received packet no longer has are built again from its addresses, with valid
//! lengths and checksums. Time to live, DSCP, VLAN tags and Ethernet addresses are not those of the
//! wire.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::Datagram;

/// Hops left in the headers written.
const HOPS: u8 = 64;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// Writes datagrams to a pcap file that every tool reads.
pub struct CaptureWriter<W: Write> {
    writer: PcapWriter<W>,
    /// The frame being built.
    frame: Vec<u8>,
}

impl CaptureWriter<BufWriter<File>> {
    /// Makes a file, or replaces it.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::new(File::create(path)?))
    }
}

impl<W: Write> CaptureWriter<W> {
    /// Writes a capture to `to`, beginning with the file's header.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(to: W) -> io::Result<Self> {
        let header = PcapHeader {
            snaplen: 0x4_0000,
            datalink: DataLink::RAW,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(to, header).map_err(io_error)?;
        Ok(Self { writer, frame: Vec::with_capacity(2_048) })
    }

    /// Writes one datagram. One that was cut is written as one that a snapshot length cut; then its UDP
    /// checksum is zero, which stands for none.
    ///
    /// # Errors
    /// Those of the writer, and [`io::ErrorKind::InvalidInput`] for a payload longer than a datagram can
    /// be.
    pub fn write(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let (source, destination) = one_family(datagram.source, datagram.destination);
        self.frame.clear();
        build(&mut self.frame, source, destination, datagram.payload, datagram.payload_len)?;
        let missing = datagram.payload_len.saturating_sub(datagram.payload.len());
        let packet = PcapPacket {
            timestamp: Duration::from_nanos(datagram.time_ns.unwrap_or(0)),
            orig_len: u32::try_from(self.frame.len() + missing).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&self.frame),
        };
        self.writer.write_packet(&packet).map_err(io_error)?;
        Ok(())
    }

    /// Writes out what is buffered and gives the writer back.
    ///
    /// # Errors
    /// Those of the writer: the capture is then not complete.
    pub fn finish(self) -> io::Result<W> {
        let mut to = self.writer.into_writer();
        to.flush()?;
        Ok(to)
    }
}

/// Builds IP header, UDP header and payload at the end of `frame`.
fn build(
    frame: &mut Vec<u8>,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    payload_len: usize,
) -> io::Result<()> {
    let too_long = || {
        let text = format!("a payload of {payload_len} bytes does not fit a datagram");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let udp_len = u16::try_from(payload_len + UDP_HEADER).map_err(|_| too_long())?;
    let mut udp = UdpHeader {
        source_port: source.port(),
        destination_port: destination.port(),
        length: udp_len,
        checksum: 0,
    };
    let is_whole = payload.len() == payload_len;
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source.ip(), destination.ip()) {
        let (source, destination) = (source.octets(), destination.octets());
        let mut ip = Ipv4Header::new(udp_len, HOPS, IpNumber::UDP, source, destination)
            .map_err(|_| too_long())?;
        ip.header_checksum = ip.calc_header_checksum();
        if is_whole {
            udp.checksum = udp.calc_checksum_ipv4(&ip, payload).map_err(|_| too_long())?;
        }
        frame.extend_from_slice(&ip.to_bytes());
    } else {
        let ip = Ipv6Header {
            payload_length: udp_len,
            next_header: IpNumber::UDP,
            hop_limit: HOPS,
            source: to_v6(source.ip()),
            destination: to_v6(destination.ip()),
            ..Ipv6Header::default()
        };
        if is_whole {
            udp.checksum = udp.calc_checksum_ipv6(&ip, payload).map_err(|_| too_long())?;
        }
        frame.extend_from_slice(&ip.to_bytes());
    }
    frame.extend_from_slice(&udp.to_bytes());
    frame.extend_from_slice(payload);
    Ok(())
}

fn to_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Addresses of a dual-stack socket: IPv4 when both are.
fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (canonical(source), canonical(destination))
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
