//! Packets to send and the sockets to send them from.
//!
//! What lives here: RTP packets with a payload that says which packet it is, and sending them no
//! faster than a receive stream takes them out of its sockets, so that nothing is lost there. What
//! does not: reading them ([`crate::heard`]).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rtp_mgr::net::{SendBatch, SendError, SlotMemory};
use rtp_mgr::ring::abi::StreamCounters;
use rtp_mgr::{Receiver, Stats};

use crate::wait;

/// Bytes of an RTP header without CSRCs and extension.
pub(crate) const HEADER: usize = 12;

/// Memory of packets under way that the smallest usual socket buffer (208 KiB) holds.
pub(crate) const UNDER_WAY_MAX: u64 = 100_000;

/// What a packet of `len` bytes takes of a socket buffer, at most.
pub(crate) const fn memory_of(len: usize) -> u64 {
    1_024 + 2 * len as u64
}

/// An RTP packet (RFC 3550 section 5.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtp {
    pub ssrc: u32,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub marker: bool,
    pub payload_len: usize,
}

impl Rtp {
    pub(crate) fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = 2 << 6;
        header[1] = u8::from(self.marker) << 7 | self.payload_type;
        header[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        header[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        header[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        header
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header().to_vec();
        bytes.extend(payload(self.ssrc, self.sequence, self.payload_len));
        bytes
    }
}

/// The payload that belongs to a packet: nothing of it fits another packet.
pub(crate) fn payload(ssrc: u32, sequence: u16, len: usize) -> Vec<u8> {
    let seed = u64::from(ssrc) << 16 | u64::from(sequence);
    let word = |index: u64| (seed << 8 | index & 0xff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len.div_ceil(8) as u64).flat_map(|index| word(index).to_be_bytes()).take(len).collect()
}

/// Sends up to 64 packets, none longer than the first, in one call, coalesced where the kernel does that.
#[track_caller]
pub(crate) fn send_train(socket: &UdpSocket, packets: &[Vec<u8>]) {
    let Some(len) = packets.first().map(Vec::len) else { return };
    let mut memory = SlotMemory::private(packets.len() as u32, len);
    for (slot, packet) in packets.iter().enumerate() {
        memory.write(slot as u32, packet);
    }
    let mut batch = SendBatch::new(memory, packets.len(), true);
    for (slot, packet) in packets.iter().enumerate() {
        assert!(batch.add(slot as u32, packet.len()));
    }
    while batch.pending() > 0 {
        match batch.send(socket).stop {
            None => {}
            Some(SendError::OffloadRefused(_)) => batch.split(),
            Some(error) => panic!("{error:?}"),
        }
    }
}

/// What leads to one receive stream: knows what was sent and what of it the stream has taken.
#[derive(Clone)]
pub(crate) struct Line(Arc<Shared>);

struct Shared {
    stats: Stats,
    addresses: Vec<SocketAddr>,
    /// The ring's first position.
    start: u64,
    sent: AtomicU64,
    under_way: AtomicU64,
}

/// Datagrams that a stream has taken from its sockets.
pub(crate) fn taken(counters: &StreamCounters) -> u64 {
    counters.received
        + counters.passed_rtcp
        + counters.passed_stun
        + counters.passed_dtls
        + counters.passed_other
}

impl Line {
    pub(crate) fn to(rx: &Receiver) -> Self {
        let stats = rx.stats();
        Self(Arc::new(Shared {
            start: stats.snapshot().head,
            stats,
            addresses: (0..2).map_while(|leg| rx.local_addr(leg)).collect(),
            sent: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
        }))
    }

    /// Where `leg` listens.
    pub(crate) fn address(&self, leg: usize) -> SocketAddr {
        self.0.addresses[leg]
    }

    /// A new socket that sends to `leg`.
    pub(crate) fn sender(&self, leg: usize) -> Sender {
        let to = self.address(leg);
        let from = SocketAddr::new(to.ip(), 0);
        self.sender_from(from.ip(), to)
    }

    /// A new socket with an address of its own.
    pub(crate) fn sender_from(&self, from: IpAddr, to: SocketAddr) -> Sender {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        socket.connect(to).expect("an address on this machine");
        Sender::new(Some(self.clone()), socket)
    }

    /// Waits until the stream has taken everything that was sent, and readers see what came of it.
    #[track_caller]
    pub(crate) fn settle(&self) {
        let sent = self.0.sent.load(Ordering::Relaxed);
        if sent == 0 {
            return;
        }
        let settled = || {
            if taken(&self.0.stats.counters()) < sent {
                return false;
            }
            let snapshot = self.0.stats.snapshot();
            let counters = &snapshot.counters;
            let positions = counters.published + counters.gap_positions;
            snapshot.head.wrapping_sub(self.0.start) >= positions
        };
        wait::until(|| format!("{sent} datagrams sent: {:?}", self.0.stats.snapshot()), settled);
        self.0.under_way.store(0, Ordering::Relaxed);
    }

    /// Datagrams sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Waits until there is room for `memory` more bytes.
    #[track_caller]
    fn make_room(&self, memory: u64) {
        if self.0.under_way.fetch_add(memory, Ordering::Relaxed) + memory > UNDER_WAY_MAX {
            self.settle();
            self.0.under_way.store(memory, Ordering::Relaxed);
        }
    }
}

/// A sender of RTP to one leg of a stream.
pub(crate) struct Sender {
    /// `None`: nobody tells what the stream has taken.
    line: Option<Line>,
    socket: UdpSocket,
    pub ssrc: u32,
    pub payload_type: u8,
    pub payload_len: usize,
    /// RTP timestamp units from one packet to the next.
    pub ticks: u32,
}

impl Sender {
    fn new(line: Option<Line>, socket: UdpSocket) -> Self {
        Self { line, socket, ssrc: 7, payload_type: 96, payload_len: 40, ticks: 160 }
    }

    /// A sender to a stream of another process.
    pub(crate) fn unattended(to: SocketAddr) -> Self {
        let socket = UdpSocket::bind((to.ip(), 0)).expect("a socket");
        socket.connect(to).expect("an address on this machine");
        Self::new(None, socket)
    }

    pub(crate) fn ssrc(mut self, ssrc: u32) -> Self {
        self.ssrc = ssrc;
        self
    }

    pub(crate) fn payload_type(mut self, payload_type: u8) -> Self {
        self.payload_type = payload_type;
        self
    }

    pub(crate) fn payload_len(mut self, len: usize) -> Self {
        self.payload_len = len;
        self
    }

    pub(crate) fn ticks(mut self, ticks: u32) -> Self {
        self.ticks = ticks;
        self
    }

    /// Where it sends from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket")
    }

    /// This sender's packet with a sequence number. Its timestamp goes with the number.
    pub(crate) fn packet(&self, sequence: u16) -> Rtp {
        Rtp {
            ssrc: self.ssrc,
            payload_type: self.payload_type,
            sequence,
            timestamp: u32::from(sequence).wrapping_mul(self.ticks),
            marker: false,
            payload_len: self.payload_len,
        }
    }

    #[track_caller]
    pub(crate) fn send(&self, sequence: u16) {
        self.datagram(&self.packet(sequence).bytes());
    }

    #[track_caller]
    pub(crate) fn send_all(&self, sequences: impl IntoIterator<Item = u16>) {
        sequences.into_iter().for_each(|sequence| self.send(sequence));
    }

    /// Waits until there is room for so many packets, and counts them as sent.
    #[track_caller]
    fn note(&self, packets: u64, len: usize) {
        if let Some(line) = &self.line {
            line.make_room(packets * memory_of(len));
            line.0.sent.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Sends bytes, whatever they are.
    #[track_caller]
    pub(crate) fn datagram(&self, bytes: &[u8]) {
        self.note(1, bytes.len());
        self.socket.send(bytes).unwrap_or_else(|error| panic!("{} bytes: {error}", bytes.len()));
    }

    /// Sends up to 64 packets of one length in one call, coalesced where the kernel does that.
    #[track_caller]
    pub(crate) fn train(&self, packets: &[Vec<u8>]) {
        let Some(len) = packets.first().map(Vec::len) else { return };
        self.note(packets.len() as u64, len);
        send_train(&self.socket, packets);
    }

    /// Sends `count` packets from `first` on in as few calls as possible.
    #[track_caller]
    pub(crate) fn trains(&self, first: u16, count: usize) {
        let mut sequences = (0..count).map(|step| first.wrapping_add(step as u16));
        loop {
            let packets: Vec<Vec<u8>> =
                sequences.by_ref().take(64).map(|sequence| self.packet(sequence).bytes()).collect();
            if packets.is_empty() {
                return;
            }
            self.train(&packets);
        }
    }
}
