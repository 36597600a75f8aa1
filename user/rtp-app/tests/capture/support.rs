//! Captures made by hand.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};

use rtp_app::capture::{CaptureError, CaptureFile, Datagram, Frame};

/// 2023-11-14 22:13:20 UTC.
pub const START_NS: u64 = 1_700_000_000_000_000_000;
pub const MS: u64 = 1_000_000;

pub const ETHERNET: u32 = 1;
pub const RAW: u32 = 101;
pub const LINUX_COOKED: u32 = 113;
pub const LINUX_COOKED_2: u32 = 276;
pub const NULL: u32 = 0;
pub const LOOP: u32 = 108;

/// One RTP packet with a fixed header only (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug)]
pub struct Rtp {
    pub payload_type: u8,
    pub marker: bool,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    pub payload_len: usize,
}

impl Rtp {
    /// Packet `index` of a 20 ms G.711 sender.
    pub fn pcmu(ssrc: u32, index: u32) -> Self {
        Self {
            payload_type: 0,
            marker: false,
            sequence: 1_000_u16.wrapping_add(index as u16),
            timestamp: 160_u32.wrapping_mul(index),
            ssrc,
            payload_len: 160,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x80, u8::from(self.marker) << 7 | self.payload_type];
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.timestamp.to_be_bytes());
        bytes.extend(self.ssrc.to_be_bytes());
        bytes.extend((0..self.payload_len).map(|index| index as u8));
        bytes
    }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// An IP packet with a UDP datagram; UDP checksum 0.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    ip(source.ip(), destination.ip(), 17, &udp_segment(source.port(), destination.port(), payload))
}

pub fn udp_segment(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend((payload.len() as u16 + 8).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// An IP packet without options (RFC 791 §3.1, RFC 8200 §3).
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((payload.len() as u16 + 20).to_be_bytes());
            bytes.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let checksum = ones_complement(&bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        mixed => panic!("{mixed:?}"),
    }
    bytes.extend(payload);
    bytes
}

/// RFC 1071.
pub fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

/// Frames of each kind around an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    tagged(&[], packet)
}

/// Ethernet with VLAN tags: (ether type of the tag, VLAN id).
pub fn tagged(tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (ether_type, id) in tags {
        frame.extend(ether_type.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend(ether_type(packet).to_be_bytes());
    frame.extend(packet);
    frame
}

pub fn linux_cooked(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0];
    frame.extend(ether_type(packet).to_be_bytes());
    frame.extend(packet);
    frame
}

pub fn linux_cooked_2(packet: &[u8]) -> Vec<u8> {
    let mut frame = ether_type(packet).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0]);
    frame.extend(packet);
    frame
}

pub fn loopback(family: [u8; 4], packet: &[u8]) -> Vec<u8> {
    [&family[..], packet].concat()
}

fn ether_type(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 4 { 0x0800 } else { 0x86DD }
}

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Little,
    Big,
}

impl Order {
    pub const BOTH: [Self; 2] = [Self::Little, Self::Big];

    fn u16(self, value: u16) -> [u8; 2] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    pub fn u32(self, value: u32) -> [u8; 4] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    pub fn u64(self, value: u64) -> [u8; 8] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }
}

/// A pcap file.
pub struct Pcap {
    pub bytes: Vec<u8>,
    order: Order,
    nanoseconds: bool,
}

impl Pcap {
    pub fn new(link: u32) -> Self {
        Self::with(link, Order::Little, true)
    }

    pub fn with(link: u32, order: Order, nanoseconds: bool) -> Self {
        let magic = if nanoseconds { 0xA1B2_3C4D } else { 0xA1B2_C3D4 };
        let mut bytes = order.u32(magic).to_vec();
        bytes.extend(order.u16(2));
        bytes.extend(order.u16(4));
        bytes.extend([0; 8]);
        bytes.extend(order.u32(262_144));
        bytes.extend(order.u32(link));
        Self { bytes, order, nanoseconds }
    }

    pub fn frame(&mut self, time_ns: u64, frame: &[u8]) {
        self.cut_frame(time_ns, frame, frame.len());
    }

    /// A frame of which only the first `captured` bytes are there.
    pub fn cut_frame(&mut self, time_ns: u64, frame: &[u8], captured: usize) {
        let captured = captured.min(frame.len());
        let fraction = time_ns % 1_000_000_000 / if self.nanoseconds { 1 } else { 1_000 };
        let fields = [
            (time_ns / 1_000_000_000) as u32,
            fraction as u32,
            captured as u32,
            frame.len() as u32,
        ];
        for field in fields {
            self.bytes.extend(self.order.u32(field));
        }
        self.bytes.extend(&frame[..captured]);
    }
}

/// A pcapng file.
pub struct PcapNg {
    pub bytes: Vec<u8>,
    order: Order,
}

impl PcapNg {
    pub fn new(order: Order) -> Self {
        let mut file = Self { bytes: Vec::new(), order };
        file.section(order);
        file
    }

    /// Begins a section, in a byte order of its own.
    pub fn section(&mut self, order: Order) {
        self.order = order;
        let mut body = order.u32(0x1A2B_3C4D).to_vec();
        body.extend(order.u16(1));
        body.extend(order.u16(0));
        body.extend([0xFF; 8]);
        self.block(0x0A0D_0D0A, &body);
    }

    /// Describes an interface. `options`: code and value.
    pub fn interface(&mut self, link: u16, snap_len: u32, options: &[(u16, Vec<u8>)]) {
        let mut body = self.order.u16(link).to_vec();
        body.extend([0, 0]);
        body.extend(self.order.u32(snap_len));
        self.options(&mut body, options);
        self.block(1, &body);
    }

    /// An Enhanced Packet Block; its time in the interface's units.
    pub fn enhanced(&mut self, interface: u32, units: u64, frame: &[u8], captured: usize) {
        let mut body = self.order.u32(interface).to_vec();
        body.extend(self.order.u32((units >> 32) as u32));
        body.extend(self.order.u32(units as u32));
        body.extend(self.order.u32(captured as u32));
        body.extend(self.order.u32(frame.len() as u32));
        body.extend(&frame[..captured]);
        body.resize(body.len().next_multiple_of(4), 0);
        // opt_comment.
        self.options(&mut body, &[(1, b"made by hand".to_vec())]);
        self.block(6, &body);
    }

    /// A Simple Packet Block.
    pub fn simple(&mut self, frame: &[u8], captured: usize) {
        let mut body = self.order.u32(frame.len() as u32).to_vec();
        body.extend(&frame[..captured]);
        body.resize(body.len().next_multiple_of(4), 0);
        self.block(3, &body);
    }

    pub fn block(&mut self, block_type: u32, body: &[u8]) {
        let len = self.order.u32(body.len() as u32 + 12);
        self.bytes.extend(self.order.u32(block_type));
        self.bytes.extend(len);
        self.bytes.extend(body);
        self.bytes.extend(len);
    }

    fn options(&self, body: &mut Vec<u8>, options: &[(u16, Vec<u8>)]) {
        for (code, value) in options {
            body.extend(self.order.u16(*code));
            body.extend(self.order.u16(value.len() as u16));
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            body.extend([0; 4]);
        }
    }
}

/// What a frame was, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub time_ns: Option<u64>,
    pub link: Result<rtp_app::capture::LinkType, u32>,
    pub data: Vec<u8>,
    pub len: usize,
}

impl From<Frame<'_>> for Kept {
    fn from(frame: Frame<'_>) -> Self {
        let Frame { time_ns, link, data, len, .. } = frame;
        Self { time_ns, link, data: data.to_vec(), len }
    }
}

/// All frames of a file, and the error that ended it.
pub fn read(bytes: &[u8]) -> (Vec<Kept>, Option<CaptureError>) {
    let mut kept = Vec::new();
    let mut file = match CaptureFile::new(std::io::Cursor::new(bytes.to_vec())) {
        Ok(file) => file,
        Err(error) => return (kept, Some(error)),
    };
    loop {
        match file.next() {
            Ok(Some(frame)) => kept.push(frame.into()),
            Ok(None) => return (kept, None),
            Err(error) => return (kept, Some(error)),
        }
    }
}

/// What a datagram was, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDatagram {
    pub time_ns: Option<u64>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
    pub payload_len: usize,
}

impl From<Datagram<'_>> for KeptDatagram {
    fn from(datagram: Datagram<'_>) -> Self {
        Self {
            time_ns: datagram.time_ns,
            source: datagram.source,
            destination: datagram.destination,
            payload: datagram.payload.to_vec(),
            payload_len: datagram.payload_len,
        }
    }
}

/// A directory of its own, and a file in it with this content.
pub fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// Runs `rtp_app`.
pub fn rtp_app(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rtp_app")).args(arguments).output().unwrap()
}

/// Runs `rtp_app inspect PATH --json` and gives its one object, its standard error and exit status.
pub fn inspect(path: &std::path::Path, more: &[&str]) -> (serde_json::Value, String, i32) {
    let path = path.to_str().unwrap();
    let output = rtp_app(&[&["inspect", path, "--json"], more].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
    (json, error, output.status.code().unwrap())
}
