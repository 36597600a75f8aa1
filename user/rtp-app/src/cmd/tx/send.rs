//! From a media source into the slots of a transmit stream, in time.

use std::time::{Duration, Instant};

use rtp_mgr::{Slot, Transmitter, clock};

use super::replay::Replay;
use crate::error::Failure;
use crate::media::{Framing, MediaError, MediaPacket, MediaSource};
use crate::signals::LOOK;

/// Packets go to the engine this long before they are due: short enough to stop at once, long enough
/// that a busy machine does not make them late.
const AHEAD: Duration = Duration::from_millis(100);
/// The first packet leaves this long after it was filled in.
const LEAD: Duration = Duration::from_millis(2);
/// Slots filled in one go.
const BATCH: usize = 64;
/// Bytes of an RTP header without CSRC and extension (RFC 3550 section 5.1).
const RTP_HEADER: usize = 12;

/// How timing is told to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pacing {
    /// The engine paces at the stream's rate.
    Rate,
    /// Each packet carries its launch time.
    Launch,
    /// The same, for an input that has a pace of its own: what comes late moves what follows.
    Live,
}

/// Where sending ends if the source does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limit {
    /// Packets.
    pub count: Option<u64>,
    /// Packets that are due in this time.
    pub duration: Option<Duration>,
}

/// What a round of filling came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Nothing is due for so long.
    Wait(Duration),
    /// Packets went to the engine, or there was no free slot.
    Went,
    /// There is no more.
    Ended,
}

/// What became of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    Packet,
    Held,
    Ended,
}

/// Fills slots.
pub struct Sender {
    source: Box<dyn MediaSource>,
    pacing: Pacing,
    limit: Limit,
    repeat: bool,
    replay: Replay,
    timestamp_offset: u32,
    origin: Option<Origin>,
    /// Since the first packet, at the last look at the clock.
    now: Duration,
    /// The next packet, which is not due yet.
    held: Option<MediaPacket>,
    held_bytes: Vec<u8>,
    packets: u64,
    payload_bytes: u64,
    ended: bool,
}

/// The moment of due time zero.
#[derive(Clone, Copy, Debug)]
struct Origin {
    instant: Instant,
    tai_ns: u64,
}

impl Sender {
    /// Sends what `source` gives; `timestamp_offset` is added to its RTP timestamps.
    pub fn new(
        source: Box<dyn MediaSource>,
        pacing: Pacing,
        limit: Limit,
        repeat: bool,
        replay: Replay,
        timestamp_offset: u32,
    ) -> Self {
        Self {
            source,
            pacing,
            limit,
            repeat,
            replay,
            timestamp_offset,
            origin: None,
            now: Duration::ZERO,
            held: None,
            held_bytes: Vec::new(),
            packets: 0,
            payload_bytes: 0,
            ended: false,
        }
    }

    /// Payload bytes given to the engine.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Since the first packet.
    pub fn elapsed(&self) -> Duration {
        self.origin.map_or(Duration::ZERO, |origin| origin.instant.elapsed())
    }

    /// What the source survived.
    pub fn remarks(&self) -> Vec<String> {
        self.source.remarks()
    }

    /// Bytes that one pass of the source gives, when known.
    pub fn total_bytes(&self) -> Option<u64> {
        self.source.total_bytes()
    }

    /// The sources that a capture brought.
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Fills what is due soon.
    ///
    /// # Errors
    /// The source failed (what was whole is with the engine), or the engine has ended.
    pub fn round(&mut self, to: &mut Transmitter) -> Result<Round, Failure> {
        if self.ended {
            return Ok(Round::Ended);
        }
        if let Some(held) = self.held
            && let Some(early) = self.early(&held)
        {
            return Ok(Round::Wait(early));
        }
        // A live input blocks where it has nothing: what it gave must be on its way by then.
        let batch = if self.pacing == Pacing::Live { 1 } else { BATCH };
        let mut slots = to.reserve(batch, LOOK).map_err(Failure::library)?;
        let mut filled = 0;
        let mut stopped = Ok(());
        while let Some(mut slot) = slots.get(filled) {
            match self.fill(&mut slot) {
                Ok(Filled::Packet) => filled += 1,
                Ok(Filled::Held) => break,
                Ok(Filled::Ended) => {
                    self.ended = true;
                    break;
                }
                Err(failure) => {
                    stopped = Err(failure);
                    break;
                }
            }
        }
        slots.commit(filled).map_err(Failure::library)?;
        stopped.map(|()| if self.ended { Round::Ended } else { Round::Went })
    }

    /// How long until the packet should be with the engine; `None`: now. Looks at the clock only if it was
    /// early at the last look.
    fn early(&mut self, packet: &MediaPacket) -> Option<Duration> {
        let from = Duration::from_nanos(packet.due_ns).saturating_sub(AHEAD);
        if from <= self.now {
            return None;
        }
        self.now = self.elapsed();
        from.checked_sub(self.now).filter(|early| !early.is_zero())
    }

    /// Puts the next packet into a slot, or holds it back when it is early.
    fn fill(&mut self, slot: &mut Slot<'_>) -> Result<Filled, Failure> {
        if self.limit.count.is_some_and(|count| self.packets >= count) {
            return Ok(Filled::Ended);
        }
        let framing = self.source.info().framing;
        let start = match framing {
            Framing::Payload => RTP_HEADER,
            Framing::RtpPacket => 0,
        };
        let room = slot.buffer().get_mut(start..).unwrap_or_default();
        let Some(packet) = self.held_or_next(room)? else { return Ok(Filled::Ended) };
        let due = Duration::from_nanos(packet.due_ns);
        if self.limit.duration.is_some_and(|duration| due >= duration) {
            return Ok(Filled::Ended);
        }
        if self.early(&packet).is_some() {
            self.held_bytes.clear();
            self.held_bytes.extend_from_slice(room.get(..packet.len).unwrap_or_default());
            self.held = Some(packet);
            return Ok(Filled::Held);
        }
        match framing {
            Framing::Payload => self.begin(slot, &packet)?,
            Framing::RtpPacket => self.rewrite(slot, packet.len)?,
        }
        self.launch(slot, due);
        self.packets += 1;
        Ok(Filled::Packet)
    }

    fn held_or_next(&mut self, room: &mut [u8]) -> Result<Option<MediaPacket>, Failure> {
        let Some(packet) = self.held.take() else { return self.next(room) };
        for (to, byte) in room.iter_mut().zip(&self.held_bytes) {
            *to = *byte;
        }
        Ok(Some(packet))
    }

    /// Puts the header before a payload.
    fn begin(&mut self, slot: &mut Slot<'_>, packet: &MediaPacket) -> Result<(), Failure> {
        slot.rtp(packet.marker, packet.timestamp.wrapping_add(self.timestamp_offset));
        slot.set_payload_len(packet.len).map_err(Failure::library)?;
        self.payload_bytes += packet.len as u64;
        Ok(())
    }

    /// Takes a packet that has its header.
    fn rewrite(&mut self, slot: &mut Slot<'_>, len: usize) -> Result<(), Failure> {
        self.payload_bytes += self.replay.rewrite(slot.buffer().get_mut(..len).unwrap_or_default());
        slot.set_len(len).map_err(Failure::library)
    }

    /// The source's next, from its beginning again with `--loop`.
    fn next(&mut self, to: &mut [u8]) -> Result<Option<MediaPacket>, Failure> {
        let failed = |error: MediaError| Failure::media("--input", &error);
        let packet = self.source.next(to).map_err(failed)?;
        if packet.is_some() || !self.repeat || self.packets == 0 {
            return Ok(packet);
        }
        self.source.restart().map_err(failed)?;
        self.source.next(to).map_err(failed)
    }

    /// Tells the engine when the packet is due.
    fn launch(&mut self, slot: &mut Slot<'_>, due: Duration) {
        let origin = self.origin.get_or_insert_with(|| Origin {
            instant: Instant::now() + LEAD,
            tai_ns: clock::tai_ns() + LEAD.as_nanos() as u64,
        });
        if self.pacing == Pacing::Live {
            let late = (origin.instant + due).elapsed();
            origin.instant += late;
            origin.tai_ns += late.as_nanos() as u64;
            self.now = self.now.saturating_sub(late);
        }
        if self.pacing != Pacing::Rate {
            slot.launch_at(origin.tai_ns + due.as_nanos() as u64);
        }
    }
}
