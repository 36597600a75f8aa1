//! Figures of a stream, read from its status pages without a syscall.
//!
//! What lives here: consistent copies of what the engine publishes, in terms of addresses and names.
//! What does not: counting.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::{
    DIRECTION_RECEIVE, DIRECTION_TRANSMIT, LegFigures, READERS_MAX, ReaderStatus, SourceFigures,
    StreamCounters, feature, status,
};
use rtp_mgr_ring::view::Block;

use crate::config::EngineKind;
use crate::shm::Region;

/// Looks at a block before its writer, which may have been interrupted, is given time.
const TRIES: u32 = 100;
/// How long a writer is waited for that stopped in the middle of a block.
const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts to see all parts of a snapshot at one moment.
const ROUNDS: usize = 8;

/// Number of a stream, unique on this machine while the stream lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl fmt::Display for StreamId {
    /// The owner's process and its count of streams: `4711-1`. Of the kernel engine: the module's
    /// count of streams: `k-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >> 32 == 0 {
            return write!(f, "k-{}", self.0);
        }
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

impl Direction {
    /// As the ABI names it.
    pub(crate) fn of(direction: u32) -> Self {
        match direction {
            DIRECTION_TRANSMIT => Self::Transmit,
            _ => Self::Receive,
        }
    }

    /// The number that stands for it in the ABI.
    pub(crate) const fn abi(self) -> u32 {
        match self {
            Self::Receive => DIRECTION_RECEIVE,
            Self::Transmit => DIRECTION_TRANSMIT,
        }
    }
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

/// The figures of a stream, to be looked at from any thread, also after its end.
#[derive(Clone, Debug)]
pub struct Stats {
    region: Arc<Region>,
}

impl Stats {
    pub(crate) fn new(region: Arc<Region>) -> Self {
        Self { region }
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        StreamId(self.region.layout().header().stream_id)
    }

    /// What the stream is doing.
    pub fn state(&self) -> State {
        self.region.state()
    }

    /// The counters alone: cheaper than a whole [`snapshot`](Self::snapshot). They are of one
    /// moment: their books balance.
    pub fn counters(&self) -> StreamCounters {
        let mut words = [0; StreamCounters::WORDS];
        copy(&self.region.counters(), &mut words);
        StreamCounters::from_words(words)
    }

    /// The figures now. The counters are of one moment: their books balance. Legs, sources and
    /// readers are of the same moment unless the engine was busier than this look is long.
    pub fn snapshot(&self) -> StreamSnapshot {
        let mut snapshot = self.look();
        for _ in 1..ROUNDS {
            if self.counters().updated_ns == snapshot.counters.updated_ns {
                break;
            }
            snapshot = self.look();
        }
        snapshot
    }

    fn look(&self) -> StreamSnapshot {
        let region = &*self.region;
        let header = region.layout().header();
        let state = region.state();
        let word = |offset| region.status_word(offset).load();
        StreamSnapshot {
            id: self.id(),
            engine: EngineKind::of(header.engine),
            direction: Direction::of(header.direction),
            state,
            ordered: header.features & feature::ORDERED != 0,
            exact_times: header.features & feature::EXACT_TIMES != 0,
            simulated: header.features & feature::SIMULATED != 0,
            slot_count: header.slot_count,
            slot_stride: header.slot_stride,
            owner_pid: header.owner_pid,
            owner_uid: header.owner_uid,
            head: word(status::HEAD),
            counters: self.counters(),
            legs: (0..header.legs_count as usize).map(|leg| self.leg(leg)).collect(),
            sources: self.sources(),
            readers: self.readers(),
            tai_offset_s: (word(status::TAI_VALID) != 0).then(|| word(status::TAI_OFFSET_S) as i32),
            clock_steps: word(status::CLOCK_GENERATION),
        }
    }

    fn leg(&self, leg: usize) -> LegFigures {
        let mut words = [0; LegFigures::WORDS];
        copy(&self.region.leg(leg), &mut words);
        LegFigures::from_words(words)
    }

    /// Entries of the source table that were ever used stand first.
    fn sources(&self) -> Vec<SourceSnapshot> {
        let count = self.region.layout().header().sources_count;
        let mut sources = Vec::new();
        for index in 0..count {
            let mut words = [0; SourceFigures::WORDS];
            copy(&self.region.source(index as usize), &mut words);
            let figures = SourceFigures::from_words(words);
            if figures.key == 0 && figures.received == 0 {
                break;
            }
            sources.push(SourceSnapshot::new(index as u16, figures));
        }
        sources
    }

    fn readers(&self) -> Vec<ReaderStatus> {
        let page = |reader| {
            let mut words = [0; ReaderStatus::WORDS];
            copy(&self.region.reader_status(reader), &mut words);
            ReaderStatus::from_words(words)
        };
        (0..READERS_MAX).map(page).filter(|status| status.active != 0).collect()
    }
}

/// Copies a block, waiting for a writer that is in the middle of it. One that never finishes has
/// died there: what is left of the block is taken then.
fn copy(block: &Block<'_>, words: &mut [u64]) {
    if block.words.len() <= words.len() || block.snapshot(words, TRIES) {
        return;
    }
    let until = Instant::now() + PATIENCE;
    while !block.snapshot(words, TRIES) && Instant::now() < until {
        std::thread::yield_now();
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
        self.sources.get(usize::from(index))
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

impl SourceSnapshot {
    fn new(index: u16, figures: SourceFigures) -> Self {
        let key = figures.key;
        let family = key as u16;
        let from =
            address(family, figures.source_address_0, figures.source_address_1, (key >> 16) as u16);
        let to = address(
            family,
            figures.destination_address_0,
            figures.destination_address_1,
            (key >> 32) as u16,
        );
        let clock_rate = (figures.ssrc_clock_rate >> 32) as u32;
        Self {
            index,
            leg: (key >> 48) as u8,
            from,
            to,
            ssrc: figures.ssrc_clock_rate as u32,
            payload_type: (key >> 56) as u8,
            clock_rate: (clock_rate != 0).then_some(clock_rate),
            figures,
        }
    }
}

/// An address as the source table has it: bytes in memory order, IPv4 in the first four.
fn address(family: u16, first: u64, last: u64, port: u16) -> Option<SocketAddr> {
    let [a, b, c, d, ..] = first.to_le_bytes();
    let ip: IpAddr = match family {
        4 => Ipv4Addr::new(a, b, c, d).into(),
        6 => Ipv6Addr::from((u128::from(last) << 64 | u128::from(first)).to_le_bytes()).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_in_memory_order() {
        let v4 = u64::from_le_bytes([192, 0, 2, 7, 0, 0, 0, 0]);
        assert_eq!(address(4, v4, 0, 5004), Some("192.0.2.7:5004".parse().unwrap()));
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let halves = u128::from_le_bytes(v6.octets());
        let found = address(6, halves as u64, (halves >> 64) as u64, 1);
        assert_eq!(found, Some("[2001:db8::1]:1".parse().unwrap()));
        assert_eq!(address(0, v4, 0, 5004), None);
    }

    #[test]
    fn a_stream_is_named_by_process_and_count() {
        assert_eq!(StreamId(4711 << 32 | 3).to_string(), "4711-3");
        assert_eq!(StreamId(3).to_string(), "k-3");
    }
}
