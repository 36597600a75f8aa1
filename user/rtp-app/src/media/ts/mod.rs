//! MPEG transport streams as RTP payloads, RFC 2250: [`TsSource`].
//!
//! A payload is seven whole packets of 188 bytes; the last one of a stream may have fewer. Extra bytes of
//! the input's packets (the 16 of parity in 204-byte packets, the 4 of arrival time in 192-byte packets) are
//! left out: what arrives is the transport stream itself, bit by bit. The RTP timestamp is the due time of
//! the payload's first byte in 90 kHz; since it never jumps, the marker bit is never set (RFC 2250 section 2).
//!
//! Times come from the PCRs of one PID: the first that carries one, or another when that one has ceased.
//! They are read ahead of the packets that are given: up to [`LOOKAHEAD`] bytes, or 16 PCRs of another PID.

mod packets;
mod timeline;

use std::collections::VecDeque;

use super::input::Input;
use super::{Format, Framing, MediaError, MediaInfo, MediaPacket, MediaSource};
use packets::{PACKET, Packet, PacketReader};
use timeline::Timeline;

pub(super) use packets::DETECT_BYTES;

/// Transport stream packets in a full payload.
pub const PACKETS_PER_PAYLOAD: usize = 7;

/// The rate for a stream without PCR when nobody says one, in bits per second.
pub const DEFAULT_BITRATE: u64 = 4_000_000;

/// How far a PCR is waited for, in bytes: 0.1 s (the longest interval allowed) at 335 Mb/s.
pub const LOOKAHEAD: u64 = 4 << 20;

/// Another PID takes over after this many PCRs on it without one on the chosen PID.
const RIVAL_PCRS: u32 = 16;

/// A PCR is the time of the byte that has the last bit of its base (section 2.4.2.2), the eleventh of the packet.
const PCR_BYTE: u64 = 10;

/// Nanoseconds and RTP clock units per 27 MHz tick, as fractions.
const TICKS_PER_1000_NS: u64 = 27;
const TICKS_PER_RTP_UNIT: u64 = timeline::CLOCK / 90_000;

/// Whether these first bytes of an input ([`DETECT_BYTES`] of them, or all there are) are a transport stream's.
pub(super) fn is_transport_stream(first: &[u8]) -> bool {
    packets::detect(first).is_some()
}

/// What an adaptation field says about time, ISO/IEC 13818-1 section 2.4.3.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimeField {
    pid: u16,
    discontinuity: bool,
    pcr: Option<u64>,
}

impl TimeField {
    fn of(packet: &Packet) -> Option<Self> {
        let usable = packet[0] == 0x47 && packet[1] & 0x80 == 0;
        let adaptation = packet[3] & 0x20 != 0 && (1..=183).contains(&packet[4]);
        if !usable || !adaptation {
            return None;
        }
        let pid = u16::from_be_bytes([packet[1] & 0x1f, packet[2]]);
        let pcr = (packet[5] & 0x10 != 0 && packet[4] >= 7).then(|| pcr_of(packet));
        Some(Self { pid, discontinuity: packet[5] & 0x80 != 0, pcr })
    }
}

/// The program clock reference, section 2.4.3.5: 33 bits in 90 kHz, 6 reserved bits, 9 bits of 27 MHz.
fn pcr_of(packet: &Packet) -> u64 {
    let field = packet[6..12].iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    (field >> 15) * 300 + (field & 0x1ff)
}

/// The PID whose PCRs make the timeline, and the one that may replace it.
#[derive(Debug, Default)]
struct Clock {
    pid: Option<u16>,
    /// A discontinuity was indicated: the next PCR begins a new time base.
    new_base: bool,
    /// Another PID with PCRs since the last one on ours, and how many.
    rival: Option<(u16, u32)>,
    /// How often another PID took over.
    changes: u64,
}

impl Clock {
    /// Takes note of a packet: the PCR if it is ours, and whether it begins a new base.
    fn pcr(&mut self, field: &TimeField) -> Option<(u64, bool)> {
        if self.pid.is_none() && field.pcr.is_some() {
            self.pid = Some(field.pid);
        }
        if self.pid != Some(field.pid) {
            self.note_rival(field);
            return None;
        }
        self.new_base |= field.discontinuity;
        let pcr = field.pcr?;
        self.rival = None;
        Some((pcr, std::mem::take(&mut self.new_base)))
    }

    fn note_rival(&mut self, field: &TimeField) {
        if field.pcr.is_none() {
            return;
        }
        match &mut self.rival {
            None => self.rival = Some((field.pid, 1)),
            Some((pid, pcrs)) if *pid == field.pid => *pcrs += 1,
            Some(_) => {}
        }
    }

    fn is_overruled(&self) -> bool {
        self.rival.is_some_and(|(_, pcrs)| pcrs >= RIVAL_PCRS)
    }

    /// Our PID has ceased: the other one, if there is one, takes over.
    fn give_up(&mut self) {
        if let Some((pid, _)) = self.rival.take() {
            *self = Self { pid: Some(pid), changes: self.changes + 1, ..Self::default() };
        }
    }
}

/// A transport stream as a [`MediaSource`].
pub struct TsSource {
    info: MediaInfo,
    packets: PacketReader,
    timeline: Timeline,
    clock: Clock,
    bitrate: u64,
    /// Read but not given: those of `read_bytes - pending.len() * 188` and on.
    pending: VecDeque<Packet>,
    read_bytes: u64,
    ended: bool,
    /// To be told when `pending` is empty.
    failure: Option<MediaError>,
}

impl TsSource {
    /// Reads a transport stream. `bitrate` (bits per second, of packets of 188 bytes) is for one without PCR.
    ///
    /// # Errors
    /// The input cannot be read, is empty or is not a transport stream.
    pub fn open(input: Input, bitrate: Option<u64>) -> Result<Self, MediaError> {
        let bitrate = bitrate.unwrap_or(DEFAULT_BITRATE);
        Ok(Self {
            info: MediaInfo {
                format: Some(Format::Mp2t),
                payload_type: Format::Mp2t.payload_type(),
                clock_rate: Some(Format::Mp2t.clock_rate()),
                payload_max: PACKETS_PER_PAYLOAD * PACKET,
                samples_per_packet: None,
                framing: Framing::Payload,
            },
            packets: PacketReader::open(input)?,
            timeline: Timeline::new(bitrate),
            clock: Clock::default(),
            bitrate,
            pending: VecDeque::new(),
            read_bytes: 0,
            ended: false,
            failure: None,
        })
    }

    /// The stream's byte that `pending` begins with.
    fn given_bytes(&self) -> u64 {
        self.read_bytes - (self.pending.len() * PACKET) as u64
    }

    /// Reads until a full payload is there and its time is decided, or the input has ended.
    fn look_ahead(&mut self) {
        while !self.ended
            && (self.pending.len() < PACKETS_PER_PAYLOAD
                || self.timeline.decided() <= self.given_bytes())
        {
            let mut packet = [0; PACKET];
            match self.packets.next(&mut packet) {
                Ok(true) => self.take(packet),
                Ok(false) => self.end(None),
                Err(error) => self.end(Some(error)),
            }
        }
    }

    fn take(&mut self, packet: Packet) {
        let pcr = TimeField::of(&packet).and_then(|field| self.clock.pcr(&field));
        if let Some((value, new_base)) = pcr {
            self.timeline.pcr(self.read_bytes + PCR_BYTE, value, new_base);
        }
        self.pending.push_back(packet);
        self.read_bytes += PACKET as u64;
        let waiting = self.read_bytes - self.timeline.decided().min(self.read_bytes);
        if waiting >= LOOKAHEAD || self.clock.is_overruled() {
            self.timeline.give_up(self.read_bytes);
            self.clock.give_up();
        }
    }

    fn end(&mut self, failure: Option<MediaError>) {
        self.ended = true;
        self.failure = failure.or_else(|| self.damage());
        self.timeline.give_up(self.read_bytes);
    }

    fn damage(&self) -> Option<MediaError> {
        let damage = self.packets.damage();
        let mut faults = Vec::new();
        if let Some(at) = damage.lost_at {
            faults.push(format!("not a transport stream any more from byte {at} on"));
        } else if damage.skipped > 0 {
            faults.push(format!(
                "{} bytes are no transport stream packets and were skipped, the first at byte {}",
                damage.skipped, damage.skipped_at
            ));
        }
        if damage.cut > 0 {
            let stride = self.packets.layout().stride;
            faults.push(format!("truncated: the last packet has {} of {stride} bytes", damage.cut));
        }
        (!faults.is_empty()).then(|| self.packets.input().damaged(faults.join("; ")))
    }
}

impl MediaSource for TsSource {
    fn info(&self) -> &MediaInfo {
        &self.info
    }

    fn next(&mut self, payload: &mut [u8]) -> Result<Option<MediaPacket>, MediaError> {
        self.look_ahead();
        if self.pending.is_empty() {
            return self.failure.take().map_or(Ok(None), Err);
        }
        let ticks = self.timeline.at(self.given_bytes());
        let count = self.pending.len().min(PACKETS_PER_PAYLOAD);
        let len = count * PACKET;
        for (to, packet) in payload[..len].chunks_exact_mut(PACKET).zip(self.pending.drain(..count))
        {
            to.copy_from_slice(&packet);
        }
        Ok(Some(MediaPacket {
            len,
            due_ns: ticks * 1_000 / TICKS_PER_1000_NS,
            timestamp: (ticks / TICKS_PER_RTP_UNIT) as u32,
            marker: false,
        }))
    }

    fn restart(&mut self) -> Result<(), MediaError> {
        self.packets.rewind()?;
        self.timeline.restart(self.given_bytes());
        self.read_bytes = self.given_bytes();
        self.pending.clear();
        self.clock.new_base = false;
        self.clock.rival = None;
        self.ended = false;
        self.failure = None;
        Ok(())
    }

    fn total_bytes(&self) -> Option<u64> {
        let packets = self.packets.input().file_len()? / self.packets.layout().stride as u64;
        Some(packets * PACKET as u64)
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let extra = self.packets.layout().stride - PACKET;
        if extra > 0 {
            remarks.push(format!(
                "the {extra} extra bytes of each {}-byte packet were left out",
                extra + PACKET
            ));
        }
        match (self.timeline.fell_back(), self.clock.pid.is_some()) {
            (true, false) => {
                remarks.push(format!("no PCR: timed at {} bit/s (--bitrate)", self.bitrate))
            }
            (true, true) => remarks
                .push(format!("too few PCRs: timed in part at {} bit/s (--bitrate)", self.bitrate)),
            _ => {}
        }
        if self.timeline.jumps() > 0 {
            remarks.push(format!(
                "PCR discontinuities: {}; time went on at the rate before",
                self.timeline.jumps()
            ));
        }
        if self.clock.changes > 0 {
            remarks.push(format!("the PID that carries PCRs changed {} times", self.clock.changes));
        }
        if self.packets.damage().unsynced > 0 {
            remarks.push(format!(
                "packets sent without a right sync byte: {}",
                self.packets.damage().unsynced
            ));
        }
        remarks
    }
}

#[cfg(test)]
mod tests;
