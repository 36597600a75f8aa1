//! Which datagrams of a capture are RTP, and the figures of their sources.
//!
//! What lives here: validation and counting. What does not: reading the file ([`super::file`]) and
//! saying it ([`crate::cmd::inspect`]).
//!
//! Nothing in an RTP packet says that it is one. A (source address, destination address, SSRC) is RTP
//! once several of its packets followed each other in sequence; it is counted from its first packet all
//! the same, so validation costs no packet. What never gets there is counted as something else.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use rtp_mgr_ring::abi::SourceFigures;
use rtp_mgr_ring::header::{self, HeaderError, Kind};
use rtp_mgr_ring::source::{MAX_MISORDER, Seen, Source, Step, static_clock_rate};

use super::Datagram;
use super::file::Frame;
use super::link::{self, Content};
use crate::output::NotRtp;

/// What makes a source valid: three packets in sequence, or more that are nearly so, without a packet
/// far out of sequence in between.
const VALID_SCORE: u8 = 4;
/// Score of a packet that is next in sequence.
const IN_SEQUENCE: u8 = 2;
/// Score of a packet that is near.
const NEAR: u8 = 1;
/// Neighbouring packets of one source are stamped within this many timestamp units: 12 minutes at
/// 90 kHz.
const NEAR_TICKS: u32 = 1 << 26;
/// A packet stamped this much before the highest is late even when its number lags by more than
/// MAX_MISORDER.
const LATE_NS: u64 = 1_000_000_000;
/// How far its number may then lag.
const LATE_PACKETS: u32 = 3_000;
/// Sources that are followed before they are valid. Beyond it the ones silent for longest are given up.
const CANDIDATES_MAX: usize = 65_536;
/// Packets of a source, and any longer than a usual datagram, that are looked through for joined ones.
const LOOKED_THROUGH: u64 = 32;
/// See [`LOOKED_THROUGH`].
const USUAL_LEN: usize = 1_472;
/// IEEE 1588 event and general messages: never RTP, whatever they look like.
const PTP_PORTS: [u16; 2] = [319, 320];

/// Clock rates by payload type: the user's, then those of RFC 3551.
#[derive(Clone, Debug, Default)]
pub struct ClockRates {
    given: HashMap<u8, u32>,
}

impl ClockRates {
    /// Rates by payload type, in Hz; a later one replaces an earlier one.
    pub fn new(rates: impl IntoIterator<Item = (u8, u32)>) -> Self {
        Self { given: rates.into_iter().collect() }
    }

    /// The rate of a payload type in Hz; 0: not known.
    pub fn get(&self, payload_type: u8) -> u32 {
        let given = self.given.get(&payload_type).copied();
        given.or_else(|| static_clock_rate(payload_type)).unwrap_or(0)
    }
}

/// What identifies a source in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where they are sent to.
    pub destination: SocketAddr,
    /// RTP synchronisation source.
    pub ssrc: u32,
}

/// A packet that the snapshot length cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutPacket {
    /// Number of its frame.
    pub frame: u64,
    /// RTP bytes that are there.
    pub captured: usize,
    /// RTP bytes that were sent.
    pub len: usize,
}

/// A source that is RTP.
#[derive(Clone, Copy, Debug)]
pub struct FoundSource {
    /// What identifies it.
    pub key: Key,
    /// Its figures: RFC 3550, times in nanoseconds of UTC.
    pub figures: SourceFigures,
    /// Packets that are not valid RTP or far out of its sequence.
    pub invalid: u64,
    /// Payload type of its latest packet.
    pub payload_type: u8,
    /// Clock rate in Hz, when known.
    pub clock_rate: Option<u32>,
    /// RTP timestamp of its first packet.
    pub first_timestamp: u32,
    /// Longest RTP packet in bytes.
    pub longest: usize,
    /// Its first packet that the snapshot length cut.
    pub cut: Option<CutPacket>,
    /// Frame of its first packet without a time.
    pub untimed: Option<u64>,
    /// Datagrams that offload made of several packets (of those looked through): only the first packet
    /// of each counts.
    pub joined: u64,
}

/// What a capture holds.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The RTP, in order of first packets.
    pub sources: Vec<FoundSource>,
    /// UDP datagrams that are not.
    pub not_rtp: NotRtp,
    /// Of these, pieces of datagrams that IP fragmented (counted as other).
    pub fragments: u64,
    /// Of these, datagrams with impossible or missing headers (counted as other).
    pub broken_udp: u64,
    /// Frames of a link type that is not known.
    pub unknown_link: u64,
    /// All frames.
    pub frames: u64,
}

/// What may be RTP.
#[derive(Clone, Debug)]
struct Candidate {
    state: Source,
    score: u8,
    /// All of its packets.
    packets: u64,
    invalid: u64,
    payload_type: u8,
    latest_timestamp: u32,
    first_timestamp: u32,
    first_frame: u64,
    last_frame: u64,
    longest: usize,
    cut: Option<CutPacket>,
    untimed: Option<u64>,
    joined: u64,
}

/// Finds RTP in frames given one by one.
#[derive(Debug, Default)]
pub struct Finder {
    clock_rates: ClockRates,
    candidates: HashMap<Key, Candidate>,
    /// Candidates that are not valid.
    unproven: usize,
    /// Pairs of addresses between which DTLS records were seen.
    dtls: HashSet<(SocketAddr, SocketAddr)>,
    latest_ns: u64,
    found: Findings,
}

impl Finder {
    /// A finder that has seen nothing.
    pub fn new(clock_rates: ClockRates) -> Self {
        Self { clock_rates, ..Self::default() }
    }

    /// Takes the next frame into account.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        self.found.frames += 1;
        self.found.unknown_link += u64::from(frame.link.is_err());
        match link::content(frame) {
            Content::Udp(datagram) => self.datagram(&datagram),
            Content::Fragment => {
                self.found.fragments += 1;
                self.found.not_rtp.other += 1;
            }
            Content::BrokenUdp => {
                self.found.broken_udp += 1;
                self.found.not_rtp.other += 1;
            }
            Content::Other => {}
        }
    }

    /// Takes the next datagram into account.
    pub fn datagram(&mut self, datagram: &Datagram<'_>) {
        match self.kind(datagram) {
            Kind::Rtcp => self.found.not_rtp.rtcp += 1,
            Kind::Stun => self.found.not_rtp.stun += 1,
            Kind::Dtls => self.found.not_rtp.dtls += 1,
            Kind::Rtp if self.candidate(datagram) => {}
            Kind::Rtp | Kind::Other => self.found.not_rtp.other += 1,
        }
    }

    /// What was found, when all has been seen.
    pub fn finish(self) -> Findings {
        let mut found = self.found;
        let mut valid: Vec<(Key, Candidate)> = Vec::new();
        for (key, candidate) in self.candidates {
            if candidate.is_valid() {
                valid.push((key, candidate));
            } else {
                found.not_rtp.other += candidate.packets;
            }
        }
        valid.sort_by_key(|(_, candidate)| candidate.first_frame);
        found.sources = valid.iter().map(|(key, candidate)| candidate.found(*key)).collect();
        found
    }

    /// What the datagram's own bytes and the traffic of its addresses say.
    fn kind(&mut self, datagram: &Datagram<'_>) -> Kind {
        let ports = [datagram.source.port(), datagram.destination.port()];
        if ports.iter().any(|port| PTP_PORTS.contains(port)) {
            return Kind::Other;
        }
        match header::classify(datagram.payload) {
            Kind::Rtcp if !is_rtcp(datagram) => Kind::Other,
            Kind::Dtls => self.dtls_or_other(datagram),
            kind => kind,
        }
    }

    /// DTLS records begin with their type and version (RFC 6347 §4.1). The ciphertext of DTLS 1.3 (RFC
    /// 9147 §4) has no such mark, but comes after records that have.
    fn dtls_or_other(&mut self, datagram: &Datagram<'_>) -> Kind {
        let ends = (datagram.source, datagram.destination);
        match datagram.payload {
            [20..=26, 0xFE, 0xFC..=0xFF, ..] => {
                self.dtls.insert(ends);
                Kind::Dtls
            }
            [32..=63, ..] if self.dtls.contains(&ends) || self.dtls.contains(&(ends.1, ends.0)) => {
                Kind::Dtls
            }
            _ => Kind::Other,
        }
    }

    /// Counts a packet that may be RTP for its source. `false`: it cannot be.
    fn candidate(&mut self, datagram: &Datagram<'_>) -> bool {
        let Ok(fixed) = header::parse_fixed(datagram.payload, datagram.payload_len) else {
            return false;
        };
        self.latest_ns = datagram.time_ns.unwrap_or(self.latest_ns);
        let key =
            Key { source: datagram.source, destination: datagram.destination, ssrc: fixed.ssrc };
        let unproven = &mut self.unproven;
        let candidate = self.candidates.entry(key).or_insert_with(|| {
            *unproven += 1;
            Candidate::new(datagram, fixed.timestamp)
        });
        let was_valid = candidate.is_valid();
        let rate = match datagram.time_ns {
            Some(_) => self.clock_rates.get(fixed.payload_type),
            None => 0,
        };
        candidate.packet(datagram, &fixed, rate, self.latest_ns);
        if candidate.is_valid() && !was_valid {
            self.unproven -= 1;
        }
        if self.unproven > CANDIDATES_MAX {
            self.give_up_oldest();
        }
        true
    }

    /// Gives up the half of the unproven candidates that was silent for longest.
    fn give_up_oldest(&mut self) {
        let mut frames: Vec<u64> = self
            .candidates
            .values()
            .filter(|candidate| !candidate.is_valid())
            .map(|candidate| candidate.last_frame)
            .collect();
        let middle = frames.len() / 2;
        let limit = *frames.select_nth_unstable(middle).1;
        let other = &mut self.found.not_rtp.other;
        let unproven = &mut self.unproven;
        self.candidates.retain(|_, candidate| {
            let keep = candidate.is_valid() || candidate.last_frame >= limit;
            if !keep {
                *other += candidate.packets;
                *unproven -= 1;
            }
            keep
        });
    }
}

impl Candidate {
    fn new(datagram: &Datagram<'_>, timestamp: u32) -> Self {
        Self {
            state: Source::new(0),
            score: 0,
            packets: 0,
            invalid: 0,
            payload_type: 0,
            latest_timestamp: timestamp,
            first_timestamp: timestamp,
            first_frame: datagram.frame,
            last_frame: datagram.frame,
            longest: 0,
            cut: None,
            untimed: None,
            joined: 0,
        }
    }

    fn is_valid(&self) -> bool {
        self.score >= VALID_SCORE
    }

    fn packet(
        &mut self,
        datagram: &Datagram<'_>,
        fixed: &header::FixedHeader,
        clock_rate: u32,
        arrival_ns: u64,
    ) {
        self.packets += 1;
        self.last_frame = datagram.frame;
        self.longest = self.longest.max(datagram.payload_len);
        if datagram.is_cut() && self.cut.is_none() {
            let (captured, len) = (datagram.payload.len(), datagram.payload_len);
            self.cut = Some(CutPacket { frame: datagram.frame, captured, len });
        }
        if datagram.time_ns.is_none() && self.untimed.is_none() {
            self.untimed = Some(datagram.frame);
        }
        let look = self.packets <= LOOKED_THROUGH || datagram.payload_len > USUAL_LEN;
        self.joined += u64::from(look && is_joined(datagram.payload, fixed));
        let Some(payload_len) = payload_len(datagram, fixed) else {
            self.invalid += 1;
            return;
        };
        let seen = Seen {
            sequence: fixed.sequence,
            timestamp: fixed.timestamp,
            arrival_ns,
            payload_len: u32::try_from(payload_len).unwrap_or(u32::MAX),
            payload_type: fixed.payload_type,
            marker: fixed.marker,
        };
        self.state.set_clock_rate(clock_rate);
        let is_late = self.state.is_stamped_late(&seen, LATE_NS);
        let step = self.state.observe(&seen, if is_late { LATE_PACKETS } else { 0 });
        self.judge(step, fixed.timestamp);
        self.payload_type = fixed.payload_type;
        self.latest_timestamp = fixed.timestamp;
    }

    /// Scores a packet by how it follows the one before.
    fn judge(&mut self, step: Step, timestamp: u32) {
        if self.is_valid() {
            return;
        }
        let ticks = timestamp.wrapping_sub(self.latest_timestamp) as i32;
        let is_near = ticks.unsigned_abs() < NEAR_TICKS;
        self.score = match step {
            Step::First { .. } | Step::Duplicate { .. } => self.score,
            Step::Next { .. } | Step::Restart { .. } if is_near => self.score + IN_SEQUENCE,
            Step::Gap { missing, .. } if is_near && missing <= MAX_MISORDER => self.score + NEAR,
            Step::Reordered { .. } if is_near => self.score + NEAR,
            _ => 0,
        };
    }

    fn found(&self, key: Key) -> FoundSource {
        let figures = self.state.figures();
        FoundSource {
            key,
            figures,
            invalid: self.invalid + figures.stray + self.state.pending(),
            payload_type: self.payload_type,
            clock_rate: Some(self.state.latest_clock_rate()).filter(|rate| *rate != 0),
            first_timestamp: self.first_timestamp,
            longest: self.longest,
            cut: self.cut,
            untimed: self.untimed,
            joined: self.joined,
        }
    }
}

/// Whether the packet after `fixed` follows it in the same datagram.
fn is_joined(payload: &[u8], fixed: &header::FixedHeader) -> bool {
    let rest = payload.get(header::FIXED_LEN..).unwrap_or_default();
    rest.windows(header::FIXED_LEN).any(|bytes| {
        header::parse_fixed(bytes, bytes.len()).is_ok_and(|next| {
            next.ssrc == fixed.ssrc
                && next.sequence == fixed.sequence.wrapping_add(1)
                && next.payload_type == fixed.payload_type
        })
    })
}

/// Bytes of RTP payload. Where the header itself is cut, its extension and padding count as payload.
/// `None`: lengths in the packet do not fit it.
fn payload_len(datagram: &Datagram<'_>, fixed: &header::FixedHeader) -> Option<usize> {
    let parsed = header::parse_prefix(datagram.payload, datagram.payload_len, datagram.last_byte());
    match parsed {
        Ok(header) => Some(header.payload_len),
        Err(HeaderError::Cut { .. }) => {
            let known = header::FIXED_LEN + 4 * usize::from(fixed.csrc_count);
            Some(datagram.payload_len.saturating_sub(known))
        }
        Err(_) => None,
    }
}

/// Whether a datagram with the type of RTCP fits the length in its header (RFC 3550 §6.4.1, which SRTCP
/// leaves in clear: RFC 3711 §3.4).
fn is_rtcp(datagram: &Datagram<'_>) -> bool {
    match datagram.payload {
        [_, _, l0, l1, ..] => {
            let words = usize::from(u16::from_be_bytes([*l0, *l1])) + 1;
            4 * words <= datagram.payload_len
        }
        _ => false,
    }
}
