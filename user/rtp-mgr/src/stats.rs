//! Figures of a stream, read from its status pages without a syscall.

use std::fmt;
use std::net::SocketAddr;

use rtp_mgr_ring::abi::{LegFigures, ReaderStatus, SourceFigures, StreamCounters};

use crate::config::EngineKind;

/// Number of a stream, unique on this machine while the stream lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl fmt::Display for StreamId {
    /// The owner's process and its count of streams: `4711-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0 >> 32, self.0 as u32)
    }
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the network to the readers.
    Receive,
    /// From the writer to the network.
    Transmit,
}

/// What a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Configured, not started.
    Configured,
    /// Running.
    Running,
    /// Stopped: the figures are final.
    Stopped,
}

/// The figures of a stream, to be looked at from any thread.
#[derive(Clone, Debug)]
pub struct Stats {
    id: StreamId,
}

impl Stats {
    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The figures now. The counters are of one moment: their books balance.
    pub fn snapshot(&self) -> StreamSnapshot {
        StreamSnapshot {
            id: self.id,
            engine: EngineKind::User,
            direction: Direction::Receive,
            state: State::Configured,
            ordered: false,
            exact_times: false,
            simulated: false,
            slot_count: 0,
            slot_stride: 0,
            owner_pid: 0,
            owner_uid: 0,
            head: 0,
            counters: StreamCounters::default(),
            legs: Vec::new(),
            sources: Vec::new(),
            readers: Vec::new(),
            tai_offset_s: None,
            clock_steps: 0,
        }
    }

    /// The counters alone: cheaper than a whole [`snapshot`](Self::snapshot).
    pub fn counters(&self) -> StreamCounters {
        StreamCounters::default()
    }
}

/// The figures of a stream at one moment.
#[derive(Clone, Debug)]
pub struct StreamSnapshot {
    /// The stream's number.
    pub id: StreamId,
    /// Who runs the ring.
    pub engine: EngineKind,
    /// Which way packets go.
    pub direction: Direction,
    /// What the stream is doing.
    pub state: State,
    /// Packets are in RTP sequence order.
    pub ordered: bool,
    /// Every packet has an arrival time of its own.
    pub exact_times: bool,
    /// Fed by the simulated DMA engine.
    pub simulated: bool,
    /// Positions of the ring.
    pub slot_count: u32,
    /// Bytes of a slot.
    pub slot_stride: u32,
    /// Process that owns the stream.
    pub owner_pid: u32,
    /// User that owns the stream.
    pub owner_uid: u32,
    /// Next position to be published (receive) or taken from the writer (transmit).
    pub head: u64,
    /// Counters of the stream.
    pub counters: StreamCounters,
    /// Figures of each leg.
    pub legs: Vec<LegFigures>,
    /// The source table.
    pub sources: Vec<SourceSnapshot>,
    /// The readers.
    pub readers: Vec<ReaderStatus>,
    /// TAI - UTC in seconds, when the machine has it configured; otherwise `time_ns` is UTC.
    pub tai_offset_s: Option<i32>,
    /// How often CLOCK_REALTIME was seen to be set.
    pub clock_steps: u64,
}

impl StreamSnapshot {
    /// The source with an index of the source table.
    pub fn source(&self, index: u16) -> Option<&SourceSnapshot> {
        let at = self.sources.binary_search_by_key(&index, |source| source.index).ok()?;
        self.sources.get(at)
    }
}

/// One source: a sender's packets on one leg.
#[derive(Clone, Debug)]
pub struct SourceSnapshot {
    /// Index in the source table.
    pub index: u16,
    /// Leg that it comes on: 0 or 1.
    pub leg: u8,
    /// Who sends. `None`: not from a network.
    pub from: Option<SocketAddr>,
    /// Where it was sent to.
    pub to: Option<SocketAddr>,
    /// RTP synchronisation source.
    pub ssrc: u32,
    /// Payload type of the latest packet.
    pub payload_type: u8,
    /// RTP clock rate in Hz, when known.
    pub clock_rate: Option<u32>,
    /// Its figures.
    pub figures: SourceFigures,
}
