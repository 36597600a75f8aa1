//! The RTP of a capture as a media source: whole packets with their own headers, at the spacing they
//! were captured with.
//!
//! What is sent is all RTP of the capture, as [`super::find`] finds it, in file order: headers, SSRCs
//! and timestamps as they are, copies and gaps included. The capture's addresses are not used, RTCP is
//! left out. A further pass (`--loop`) goes on in sequence number and timestamp, so that receivers hear
//! one stream.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rtp_mgr_ring::header;

use super::file::{CaptureError, CaptureFile};
use super::find::{ClockRates, Finder, Findings, FoundSource, Key};
use super::link::{self, Content};
use crate::media::{Framing, MediaError, MediaInfo, MediaPacket, MediaSource};

/// By how much a source advances from one pass to the next.
#[derive(Clone, Copy, Debug)]
struct Advance {
    sequence: u16,
    timestamp: u32,
    first_timestamp: u32,
}

/// The RTP of a capture file.
pub struct Replay {
    path: PathBuf,
    name: String,
    file: CaptureFile,
    info: MediaInfo,
    sources: HashMap<Key, Advance>,
    remarks: Vec<String>,
    first_ns: u64,
    /// From the first packet of one pass to the first of the next.
    period_ns: u64,
    passes: u32,
    latest_due_ns: u64,
    ended: bool,
}

impl Replay {
    /// Reads the capture through once, to find its RTP and to know that all of it can be sent.
    ///
    /// # Errors
    /// The file cannot be read, is no capture, has no RTP, has packets that the snapshot length cut, or
    /// packets without a time. A truncated or damaged one is told when its whole packets have been sent.
    pub fn open(path: &Path, clock_rates: &ClockRates) -> Result<Self, MediaError> {
        let name = path.display().to_string();
        let found = survey(path, &name, clock_rates)?;
        let Some(first) = found.sources.first() else {
            let reason = "no RTP in it; accepted: a capture with at least three packets of one RTP \
                          source in sequence";
            return Err(MediaError::Input { name, reason: reason.into() });
        };
        for source in &found.sources {
            check_whole(source, &name)?;
        }
        let first_ns = first.figures.first_ns;
        let last_ns = found.sources.iter().map(|source| source.figures.last_ns).max();
        let span_ns = last_ns.unwrap_or(first_ns).saturating_sub(first_ns);
        let packets: u64 = found.sources.iter().map(|source| source.figures.received).sum();
        let period_ns = span_ns + span_ns / packets.saturating_sub(1).max(1);
        let advance = |source: &FoundSource| (source.key, advance(source, period_ns));
        Ok(Self {
            file: open(path, &name)?,
            info: MediaInfo {
                format: None,
                payload_type: first.payload_type,
                clock_rate: first.clock_rate,
                payload_max: found.sources.iter().map(|source| source.longest).max().unwrap_or(0),
                samples_per_packet: None,
                framing: Framing::RtpPacket,
            },
            sources: found.sources.iter().map(advance).collect(),
            remarks: remarks(&found),
            path: path.to_owned(),
            name,
            first_ns,
            period_ns,
            passes: 0,
            latest_due_ns: 0,
            ended: false,
        })
    }
}

impl MediaSource for Replay {
    fn info(&self) -> &MediaInfo {
        &self.info
    }

    fn next(&mut self, payload: &mut [u8]) -> Result<Option<MediaPacket>, MediaError> {
        while !self.ended {
            let frame = match self.file.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.ended = true;
                    break;
                }
                Err(error) => {
                    self.ended = true;
                    return Err(media_error(error, &self.name));
                }
            };
            let Content::Udp(datagram) = link::content(&frame) else { continue };
            let Ok(header) = header::parse(datagram.payload) else { continue };
            let key = Key {
                source: datagram.source,
                destination: datagram.destination,
                ssrc: header.ssrc,
            };
            let (Some(advance), Some(time_ns)) = (self.sources.get(&key), datagram.time_ns) else {
                continue;
            };
            let len = datagram.payload.len();
            let Some(to) = payload.get_mut(..len) else { continue };
            to.copy_from_slice(datagram.payload);
            let sequence =
                header.sequence.wrapping_add(advance.sequence.wrapping_mul(self.passes as u16));
            let shift = advance.timestamp.wrapping_mul(self.passes);
            let timestamp = header.timestamp.wrapping_add(shift);
            write_numbers(to, sequence, timestamp);
            let due_ns =
                time_ns.saturating_sub(self.first_ns) + u64::from(self.passes) * self.period_ns;
            self.latest_due_ns = self.latest_due_ns.max(due_ns);
            return Ok(Some(MediaPacket {
                len,
                due_ns: self.latest_due_ns,
                timestamp: timestamp.wrapping_sub(advance.first_timestamp),
                marker: header.marker,
            }));
        }
        Ok(None)
    }

    fn restart(&mut self) -> Result<(), MediaError> {
        self.file = open(&self.path, &self.name)?;
        self.passes = self.passes.wrapping_add(1);
        self.ended = false;
        Ok(())
    }

    fn total_bytes(&self) -> Option<u64> {
        None
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }
}

fn open(path: &Path, name: &str) -> Result<CaptureFile, MediaError> {
    CaptureFile::open(path).map_err(|error| media_error(error, name))
}

/// What the whole file holds. That it is truncated or damaged is told later.
fn survey(path: &Path, name: &str, clock_rates: &ClockRates) -> Result<Findings, MediaError> {
    let mut file = open(path, name)?;
    let mut finder = Finder::new(clock_rates.clone());
    loop {
        match file.next() {
            Ok(Some(frame)) => finder.frame(&frame),
            Ok(None) => break,
            Err(error) if error.is_partial() => break,
            Err(error) => return Err(media_error(error, name)),
        }
    }
    Ok(finder.finish())
}

/// Refuses what cannot be sent as it was.
fn check_whole(source: &FoundSource, name: &str) -> Result<(), MediaError> {
    let refused = |reason| Err(MediaError::Input { name: name.to_owned(), reason });
    if let Some(cut) = source.cut {
        return refused(format!(
            "the snapshot length cut its RTP packets (frame {}: {} of {} bytes are there); accepted: \
             whole packets, as tcpdump -s 0 captures them",
            cut.frame, cut.captured, cut.len
        ));
    }
    if let Some(frame) = source.untimed {
        return refused(format!(
            "frame {frame} has no time; accepted: pcap, or pcapng with Enhanced Packet Blocks"
        ));
    }
    Ok(())
}

/// How far sequence number and timestamp of a source move in one pass of `period_ns`.
fn advance(source: &FoundSource, period_ns: u64) -> Advance {
    let figures = &source.figures;
    let ticks = (figures.rtp_timestamp as u32).wrapping_sub(source.first_timestamp);
    let span_ns = figures.last_ns.saturating_sub(figures.first_ns).max(1);
    let per_pass = u128::from(ticks) * u128::from(period_ns) / u128::from(span_ns);
    let numbers = figures.highest_sequence.wrapping_sub(figures.first_sequence).wrapping_add(1);
    Advance {
        sequence: numbers as u16,
        timestamp: per_pass as u32,
        first_timestamp: source.first_timestamp,
    }
}

fn remarks(found: &Findings) -> Vec<String> {
    let mut remarks = Vec::new();
    if found.sources.len() > 1 {
        let count = found.sources.len();
        remarks.push(format!("{count} RTP sources are sent as one, each with its own SSRC"));
    }
    let joined: u64 = found.sources.iter().map(|source| source.joined).sum();
    if joined > 0 {
        remarks.push(format!(
            "{joined} datagrams hold several RTP packets each, joined by segmentation or receive offload: \
             they are sent as they are"
        ));
    }
    if found.fragments > 0 {
        remarks.push(format!("{} UDP fragments are not sent", found.fragments));
    }
    remarks
}

/// Replaces sequence number and timestamp (RFC 3550 §5.1).
fn write_numbers(packet: &mut [u8], sequence: u16, timestamp: u32) {
    if let Some(numbers) = packet.get_mut(2..8) {
        numbers[..2].copy_from_slice(&sequence.to_be_bytes());
        numbers[2..].copy_from_slice(&timestamp.to_be_bytes());
    }
}

fn media_error(error: CaptureError, name: &str) -> MediaError {
    let name = name.to_owned();
    match error {
        CaptureError::Io(source) => MediaError::Io { name, source },
        error if error.is_partial() => MediaError::Damaged { name, reason: error.to_string() },
        error => MediaError::Input { name, reason: error.to_string() },
    }
}
