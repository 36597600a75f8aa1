//! What one stream made of its traffic, as plain values, and where two of them differ.
//!
//! What lives here: every figure and descriptor that a user of the API can see, and the list of those that
//! may differ between engines, each with its reason. What does not: making streams and feeding them
//! ([`super::stream`]).

use std::fmt::{self, Debug};

use rtp_mgr::ring::abi::{LegFigures, ReaderStatus, SourceFigures, StreamCounters, flag};
use rtp_mgr::{Cause, Item, Kind, SidePacket, StreamSnapshot};

/// Figures that are not compared, and why. Of a descriptor it is `time_ns`, `slot` (which slot is free depends
/// on how many packets the engine takes at a time) and, with GRO, COALESCED_TIME (as `coalesced`).
pub(crate) const NOT_COMPARED: [(&str, &str); 17] = [
    ("updated_ns", TIME),
    ("first_ns", TIME),
    ("last_ns", TIME),
    ("jitter_q4_ns", TIME),
    ("jitter_max_q4_ns", TIME),
    ("jitter_sum_q4_ns", TIME),
    ("skew_last_ns", TIME),
    ("skew_min_ns", TIME),
    ("skew_max_ns", TIME),
    ("skew_sum_ns", TIME),
    ("wakeups", "readers are woken once for whatever one look at the socket brought"),
    ("high_watermark", "looked at once for whatever one look at the socket brought"),
    ("tail", "of a reader, as the engine last saw it: engines look when they have a reason to"),
    ("socket_calls", "the module makes none"),
    ("coalesced", "the module gets trains that the embedded engine's socket may get in pieces"),
    ("socket_buffer", "asked for differently: RTP does not wait in a socket of the module"),
    ("external_drops", "compared with zero: what one socket lost the other engine may have got"),
];
const TIME: &str = "time";

/// Where the source table has the destination's port, which is each stream's own.
const DESTINATION_PORT: u64 = 0xffff << 32;

/// What stood in a position, or between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Packet(Packet),
    Gap { sequence: u64, count: u32, ring_full: bool },
    Break { count: u64, cause: Cause },
}

/// A packet and its descriptor.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub position: u64,
    pub sequence: u64,
    pub rtp_timestamp: u32,
    pub ssrc: u32,
    pub payload_type: u8,
    pub leg: u8,
    pub source: Option<u16>,
    /// Without COALESCED_TIME where packets may come coalesced.
    pub flags: u16,
    pub payload_offset: usize,
    pub payload_len: usize,
    pub bytes: Vec<u8>,
}

impl Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, sequence, rtp_timestamp, ssrc, payload_type, leg, source, .. } = self;
        write!(
            f,
            "packet at {position}: sequence {sequence} ({}), timestamp {rtp_timestamp}, SSRC {ssrc:#x}, type \
             {payload_type}, leg {leg}, source {source:?}, flags {:#x}, payload {}+{} of {} bytes {}",
            *sequence as u16,
            self.flags,
            self.payload_offset,
            self.payload_len,
            self.bytes.len(),
            hex(&self.bytes),
        )
    }
}

/// The first bytes, for people, and of the rest a digest (FNV-1a).
pub(crate) fn hex(bytes: &[u8]) -> String {
    let (shown, rest) = bytes.split_at(bytes.len().min(24));
    let mut text: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    if !rest.is_empty() {
        let fold = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        text.push_str(&format!("...({:08x})", rest.iter().fold(0x811c_9dc5, fold)));
    }
    text
}

impl Record {
    /// `coalesced`: packets may come coalesced, each engine's in its own way.
    pub(crate) fn new(item: Item<'_>, coalesced: bool) -> Self {
        let ignored = if coalesced { flag::COALESCED_TIME } else { 0 };
        match item {
            Item::Packet(packet) => Self::Packet(Packet {
                position: packet.position(),
                sequence: packet.sequence(),
                rtp_timestamp: packet.rtp_timestamp(),
                ssrc: packet.ssrc(),
                payload_type: packet.payload_type(),
                leg: packet.leg(),
                source: packet.source(),
                flags: packet.flags() & !ignored,
                payload_offset: packet.payload().as_ptr().addr() - packet.bytes().as_ptr().addr(),
                payload_len: packet.payload().len(),
                bytes: packet.bytes().to_vec(),
            }),
            Item::Gap(gap) => Self::Gap {
                sequence: gap.sequence(),
                count: gap.count(),
                ring_full: gap.ring_full(),
            },
            Item::Discontinuity(found) => {
                Self::Break { count: found.count(), cause: found.cause() }
            }
        }
    }
}

/// A datagram that was left to the side channel.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    kind: Kind,
    leg: u8,
    rtcp_port: bool,
    from: std::net::SocketAddr,
    bytes: Box<[u8]>,
}

impl From<SidePacket> for Passed {
    fn from(packet: SidePacket) -> Self {
        let SidePacket { kind, leg, rtcp_port, from, bytes, .. } = packet;
        Self { kind, leg, rtcp_port, from, bytes }
    }
}

impl Debug for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, leg, rtcp_port, from, bytes } = self;
        write!(f, "{kind:?} on leg {leg} (RTCP port: {rtcp_port}) from {from}, ")?;
        write!(f, "{} bytes {}", bytes.len(), hex(bytes))
    }
}

/// The figures of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub head: u64,
    pub counters: StreamCounters,
    pub legs: Vec<LegFigures>,
    pub sources: Vec<SourceFigures>,
    pub readers: Vec<ReaderStatus>,
}

impl From<StreamSnapshot> for Figures {
    fn from(snapshot: StreamSnapshot) -> Self {
        let source = |source: rtp_mgr::SourceSnapshot| {
            let key = source.figures.key & !DESTINATION_PORT;
            SourceFigures { key, ..source.figures }
        };
        Self {
            head: snapshot.head,
            counters: snapshot.counters,
            legs: snapshot.legs,
            sources: snapshot.sources.into_iter().map(source).collect(),
            readers: snapshot.readers,
        }
    }
}

/// Everything that a stream has shown so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    /// By the owner's reader.
    pub heard: Vec<Record>,
    /// By a lossy reader, if there is one.
    pub skimmed: Vec<Record>,
    pub passed: Vec<Passed>,
    /// Once it has stopped.
    pub last: Option<Figures>,
}

/// How much of two recordings was found to be equal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Equal {
    heard: usize,
    skimmed: usize,
    passed: usize,
}

/// The first thing in which two streams differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub place: String,
    pub left: String,
    pub right: String,
}

/// The first difference after what is `equal` already, which then covers everything that was looked at.
pub(crate) fn difference(
    left: &Recording,
    right: &Recording,
    equal: &mut Equal,
) -> Option<Difference> {
    let figures = || match (&left.last, &right.last) {
        (Some(left), Some(right)) => in_figures(left, right),
        (None, None) => None,
        (left, right) => Some(Difference {
            place: "whether it has stopped".into(),
            left: left.is_some().to_string(),
            right: right.is_some().to_string(),
        }),
    };
    in_list("what the reader heard, item", &left.heard, &right.heard, &mut equal.heard)
        .or_else(|| {
            let (left, right) = (&left.skimmed, &right.skimmed);
            in_list("what the lossy reader heard, item", left, right, &mut equal.skimmed)
        })
        .or_else(|| {
            let (left, right) = (&left.passed, &right.passed);
            in_list("what was passed on, datagram", left, right, &mut equal.passed)
        })
        .or_else(figures)
}

fn in_list<T: Debug + PartialEq>(
    what: &str,
    left: &[T],
    right: &[T],
    equal: &mut usize,
) -> Option<Difference> {
    let same = |at: &usize| left.get(*at) == right.get(*at);
    let end = left.len().max(right.len());
    let at = (*equal..end).find(|at| !same(at));
    *equal = at.unwrap_or(end);
    let text = |of: &[T], at| of.get(at).map_or("nothing".into(), |one| format!("{one:?}"));
    at.map(|at| Difference {
        place: format!("{what} {at}"),
        left: text(left, at),
        right: text(right, at),
    })
}

fn in_figures(left: &Figures, right: &Figures) -> Option<Difference> {
    let counters = || {
        let words = |figures: &Figures| figures.counters.to_words().to_vec();
        in_words("counter", &StreamCounters::NAMES, &words(left), &words(right))
    };
    let head = || in_words("the stream's", &["head"], &[left.head], &[right.head]);
    let legs = |figures: &Figures| figures.legs.iter().map(|leg| leg.to_words().to_vec()).collect();
    let sources = |figures: &Figures| {
        figures.sources.iter().map(|source| source.to_words().to_vec()).collect()
    };
    let readers = |figures: &Figures| {
        figures.readers.iter().map(|reader| reader.to_words().to_vec()).collect()
    };
    counters()
        .or_else(head)
        .or_else(|| in_tables("leg", &LegFigures::NAMES, legs(left), legs(right)))
        .or_else(|| in_tables("source", &SourceFigures::NAMES, sources(left), sources(right)))
        .or_else(|| in_tables("reader", &ReaderStatus::NAMES, readers(left), readers(right)))
}

fn in_tables(
    what: &str,
    names: &[&'static str],
    left: Vec<Vec<u64>>,
    right: Vec<Vec<u64>>,
) -> Option<Difference> {
    let rows = left.iter().zip(&right).enumerate();
    let in_rows = rows.filter_map(|(at, (left, right))| {
        in_words(&format!("of {what} {at} the figure"), names, left, right)
    });
    let count = |of: &Vec<Vec<u64>>| [of.len() as u64];
    let counts = in_words("of all", &[what], &count(&left), &count(&right));
    counts.into_iter().chain(in_rows).next()
}

fn in_words(what: &str, names: &[&str], left: &[u64], right: &[u64]) -> Option<Difference> {
    let is_compared = |name: &str| NOT_COMPARED.iter().all(|(other, _)| *other != name);
    let mut words = names.iter().zip(left.iter().zip(right));
    let found = words.find(|(name, (left, right))| is_compared(name) && left != right);
    found.map(|(name, (left, right))| Difference {
        place: format!("{what} {name}"),
        left: left.to_string(),
        right: right.to_string(),
    })
}
