//! The JSON that the program prints: one serde struct per object, and nothing else.
//!
//! What lives here: names, units and which values can be absent (`null`). What does not: where the
//! figures come from (each command fills these structs from one snapshot of the library) and the
//! text for people ([`super::live`]).
//!
//! Every object has `"schema": 1`. A field is never removed or given another meaning under the same
//! schema number; fields may be added.

use std::io::{self, Write};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Value of every `schema` field.
pub const SCHEMA: u32 = 1;

/// Which engine ran the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Embedded in the process.
    #[default]
    User,
    /// The kernel module.
    Kernel,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Kernel => "kernel",
        })
    }
}

/// What `rx --json` prints per interval and at the end, and `inspect --json` at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The engine that ran the ring; `inspect` runs the figures of the user engine.
    pub engine: Engine,
    /// UTC, RFC 3339.
    pub time: String,
    /// True on the last line only.
    #[serde(rename = "final")]
    pub last: bool,
    /// The streams, in the order in which they were first heard.
    pub streams: Vec<Stream>,
    /// Datagrams that were not RTP.
    pub not_rtp: NotRtp,
    /// Interval lines: what changed since the line before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Things to know that do not stop the command, each with its remedy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Report {
    /// A report of this moment.
    pub fn now(engine: Engine, last: bool, streams: Vec<Stream>, not_rtp: NotRtp) -> Self {
        Self {
            schema: SCHEMA,
            engine,
            time: utc_now(),
            last,
            streams,
            not_rtp,
            interval: None,
            warnings: Vec::new(),
        }
    }
}

/// One RTP stream: an ordered ring as a whole, or one (source, destination, SSRC).
///
/// All counts are packets unless the name says otherwise, cumulative since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stream {
    /// Names the stream among those of this machine (`rx`) or of this file (`inspect`).
    pub id: String,
    /// SSRC of the source; absent before the first packet.
    pub ssrc: Option<u32>,
    /// Payload type of the latest packet.
    pub payload_type: Option<u8>,
    /// Where the packets come from, `ip:port`.
    pub source: Option<String>,
    /// Where they were sent to, `ip:port`.
    pub destination: Option<String>,
    /// Packets taken, copies included.
    pub received: u64,
    /// Different packets.
    pub packets: u64,
    /// Payload bytes of the different packets.
    pub bytes: u64,
    /// RFC 3550 A.3: highest sequence number less the first, plus one, summed over restarts.
    pub expected: u64,
    /// `expected - packets`, never below zero.
    pub lost: u64,
    /// Further copies of packets that had come before.
    pub duplicate: u64,
    /// Came after their position was given up.
    pub late: u64,
    /// Came after a packet with a higher sequence number.
    pub reordered: u64,
    /// Redundant streams: had by one leg alone.
    pub recovered: u64,
    /// Restarts of the sequence.
    pub restarts: u64,
    /// Lost because the ring was full; absent where several sources share a ring (see `ring`).
    pub dropped_ring_full: Option<u64>,
    /// Lost because longer than a slot; absent where several sources share a ring (see `ring`).
    pub dropped_oversize: Option<u64>,
    /// Not valid RTP, or a single packet far out of sequence.
    pub dropped_invalid: u64,
    /// Valid, but not of the source that the stream follows.
    pub dropped_filtered: u64,
    /// Lost in the socket, as far as the kernel tells: the part of `lost` that this machine caused
    /// before the ring. Absent where several sources share a ring (see `ring`).
    pub external_drops: Option<u64>,
    /// RTP clock rate in Hz, when known.
    pub clock_rate: Option<u32>,
    /// RFC 3550 A.8 interarrival jitter in milliseconds: latest. Absent without a clock rate.
    pub jitter_ms: Option<f64>,
    /// Its mean over packets 2 to n.
    pub jitter_mean_ms: Option<f64>,
    /// Its greatest value.
    pub jitter_max_ms: Option<f64>,
    /// Sequence number of the first packet.
    pub first_sequence: Option<u16>,
    /// Highest sequence number, modulo 65,536.
    pub last_sequence: Option<u16>,
    /// First to latest packet, seconds.
    pub duration_s: f64,
    /// Figures of each leg.
    pub legs: Vec<Leg>,
    /// The ring that carried it; absent in `inspect`.
    pub ring: Option<Ring>,
}

/// One network path of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Leg {
    /// 1 for the first.
    pub leg: u8,
    /// As given on the command line.
    pub address: String,
    /// Packets on this leg, copies included.
    pub received: u64,
    /// Of these, those that were the first copy.
    pub first: u64,
    /// Of these, further copies.
    pub duplicate: u64,
    /// Of these, those that came too late.
    pub late: u64,
    /// Packets that only this leg had.
    pub recovered: u64,
    /// RFC 3550 A.3 on this leg.
    pub expected: u64,
    /// Lost on this leg.
    pub lost: u64,
    /// Came on this leg after a packet with a higher sequence number.
    pub reordered: u64,
    /// Payload bytes on this leg, copies included.
    pub bytes: u64,
    /// RFC 3550 A.8 jitter on this leg, milliseconds, latest.
    pub jitter_ms: Option<f64>,
    /// Arrival on this leg after the first arrival on the other, measured on second copies.
    pub skew_ms: Option<Skew>,
    /// Lost in this leg's socket, as far as the kernel tells.
    pub external_drops: u64,
    /// Receive buffer that the kernel granted, bytes.
    pub socket_buffer: u64,
}

/// How far a leg is behind the other, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Skew {
    /// Latest.
    pub latest: f64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Greatest.
    pub max: f64,
}

/// The ring as a whole. The books: `received == published + dropped_ring_full + dropped_oversize +
/// dropped_invalid + dropped_filtered + duplicate + late + staged`, in every report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ring {
    /// Positions.
    pub slot_count: u32,
    /// Bytes from one slot to the next.
    pub slot_stride: u32,
    /// Packets taken, of all sources.
    pub received: u64,
    /// Published to the readers.
    pub published: u64,
    /// Lost because no position was free.
    pub dropped_ring_full: u64,
    /// Lost because longer than a slot.
    pub dropped_oversize: u64,
    /// Not valid RTP, or a single packet far out of sequence.
    pub dropped_invalid: u64,
    /// Valid, but not of the source that the stream follows.
    pub dropped_filtered: u64,
    /// Further copies.
    pub duplicate: u64,
    /// Came too late.
    pub late: u64,
    /// Held back for order or probation at this moment.
    pub staged: u64,
    /// Different packets, of all sources.
    pub unique: u64,
    /// Expected, summed over all sources.
    pub expected: u64,
    /// Lost, summed over all sources.
    pub lost: u64,
    /// Lost in the sockets, as far as the kernel tells (a lower bound).
    pub external_drops: u64,
    /// Epochs begun.
    pub epochs: u64,
    /// Positions published as missing.
    pub gap_positions: u64,
    /// Most positions in use at once.
    pub high_watermark: u64,
    /// Sources in the source table.
    pub sources: u64,
    /// Packets of sources that found no room in the source table.
    pub sources_untracked: u64,
    /// Readers at this moment.
    pub readers: u64,
    /// Reliable readers made lossy because they stalled.
    pub readers_demoted: u64,
    /// Positions that this command's own reader missed because they were overwritten.
    pub lapped: u64,
    /// Packets that came coalesced (GRO).
    pub coalesced: u64,
    /// Receive calls to the sockets.
    pub socket_calls: u64,
    /// Wake-ups sent to readers.
    pub wakeups: u64,
}

/// Datagrams that were not RTP, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotRtp {
    /// RTCP (RFC 5761 tells it from RTP).
    pub rtcp: u64,
    /// STUN (RFC 7983).
    pub stun: u64,
    /// DTLS (RFC 7983).
    pub dtls: u64,
    /// Anything else.
    pub other: u64,
}

/// What changed since the line before, over the whole ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// Length of the interval, seconds.
    pub duration_s: f64,
    /// Packets taken.
    pub received: u64,
    /// Different packets.
    pub packets: u64,
    /// Payload bytes of the different packets.
    pub bytes: u64,
    /// Expected.
    pub expected: u64,
    /// Lost; negative when packets thought lost came after all.
    pub lost: i64,
    /// Copies.
    pub duplicate: u64,
    /// Too late.
    pub late: u64,
    /// Out of order.
    pub reordered: u64,
    /// Had by one leg alone.
    pub recovered: u64,
    /// Dropped because the ring was full.
    pub dropped_ring_full: u64,
    /// Dropped in the sockets.
    pub external_drops: u64,
    /// Different packets per second.
    pub packets_per_s: f64,
    /// Payload bits per second.
    pub bits_per_s: f64,
}

/// What `tx --json` prints per interval and at the end.
#[derive(Clone, Debug, Serialize)]
pub struct TxReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The engine that ran the ring.
    pub engine: Engine,
    /// UTC, RFC 3339.
    pub time: String,
    /// True on the last line only.
    #[serde(rename = "final")]
    pub last: bool,
    /// The one stream.
    pub streams: Vec<TxStream>,
    /// Things to know that do not stop the command, each with its remedy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A transmit stream. The books: `committed == sent + send_failed + pending`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TxStream {
    /// Names the stream among those of this machine.
    pub id: String,
    /// SSRC sent; absent when a capture's own are kept.
    pub ssrc: Option<u32>,
    /// Payload type sent; absent when a capture's own are kept.
    pub payload_type: Option<u8>,
    /// Where the packets go, one address per leg.
    pub destinations: Vec<String>,
    /// Packets given to the engine.
    pub committed: u64,
    /// Packets handed to the network.
    pub sent: u64,
    /// Bytes of UDP payload sent.
    pub sent_bytes: u64,
    /// Packets given up after an error of the path.
    pub send_failed: u64,
    /// Given and not yet sent.
    pub pending: u64,
    /// Sent more than 1 ms after they were due.
    pub sent_late: u64,
    /// Packets that went as part of a segmentation-offload send.
    pub coalesced: u64,
    /// Packets that the network read from the ring's own pages, summed over the legs (kernel engine).
    pub zerocopy: u64,
    /// Send calls to the sockets.
    pub socket_calls: u64,
    /// RTP payload bytes given to the engine.
    pub payload_bytes: u64,
    /// Clock rate of the RTP timestamps in Hz, when one clock rules all packets.
    pub clock_rate: Option<u32>,
    /// Since the first packet, seconds.
    pub duration_s: f64,
}

/// What `demo --json` prints at the end.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The engine that ran the rings.
    pub engine: Engine,
    /// UTC, RFC 3339.
    pub time: String,
    /// Always true: there is one line.
    #[serde(rename = "final")]
    pub last: bool,
    /// What arrived is what was sent, bit by bit.
    pub identical: bool,
    /// SHA-256 of the programme sent.
    pub sha256_sent: String,
    /// SHA-256 of what arrived.
    pub sha256_received: String,
    /// Bytes of the programme.
    pub programme_bytes: u64,
    /// From the first packet to the last, seconds.
    pub duration_s: f64,
    /// The transmit side.
    pub transmit: TxStream,
    /// The receive side.
    pub receive: Stream,
}

/// What `consume --json` prints at the end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConsumeReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The engine that ran the ring.
    pub engine: Engine,
    /// True on the last line only.
    #[serde(rename = "final")]
    pub last: bool,
    /// Bursts that the simulated DMA engine produced.
    pub bursts: u64,
    /// Bytes published.
    pub bytes_produced: u64,
    /// Bytes that every reader has released.
    pub bytes_consumed: u64,
    /// Bytes dropped because the ring was full.
    pub bytes_overflowed: u64,
    /// Packets read.
    pub packets: u64,
    /// Packets whose content was not the pattern.
    pub pattern_errors: u64,
    /// Seconds.
    pub duration_s: f64,
}

/// What `--version --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct VersionReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `rtp_app`.
    pub program: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// Version of the shared-memory layout and ioctls, `major.minor`.
    pub abi: String,
    /// Versions of the engines; absent where an engine is not there.
    pub engines: EngineVersions,
}

/// Versions of the engines.
#[derive(Clone, Debug, Serialize)]
pub struct EngineVersions {
    /// The embedded engine (the version of the library).
    pub user: Option<String>,
    /// The kernel module.
    pub kernel: Option<String>,
}

/// This moment in UTC, RFC 3339.
pub fn utc_now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// Writes one object as one line and flushes it.
///
/// # Errors
/// Those of the writer; a closed pipe is [`io::ErrorKind::BrokenPipe`].
pub fn write_line(to: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// `value` as an absolute number of milliseconds from RFC 3550 A.8's Q4 fixed point in nanoseconds.
pub fn q4_ns_to_ms(value: u64) -> f64 {
    value as f64 / 16.0 / 1e6
}
