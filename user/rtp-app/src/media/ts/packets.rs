//! Transport stream packets out of a byte stream: the packet size, the sync byte, what to do where it
//! is missing. Knows nothing of what is in a packet.

use super::super::MediaError;
use super::super::input::Input;

/// A transport stream packet, ISO/IEC 13818-1 section 2.4.3.
pub(super) type Packet = [u8; PACKET];

/// Bytes of a packet.
pub(super) const PACKET: usize = 188;

const SYNC: u8 = 0x47;

/// This many packets in a row have to begin with the sync byte before a place counts as a packet's
/// beginning; fewer at the end of a short input.
const SYNC_RUN: usize = 5;

/// How much is looked at to find the packet size: enough for the longest packets, also from the
/// middle of one.
pub(crate) const DETECT_BYTES: usize = (SYNC_RUN + 1) * 204;

/// Without packets for this long, the rest of the input is something else.
const SKIP_MAX: u64 = 1 << 20;

const BUFFER: usize = 64 * 1024;

/// How packets lie in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// From one packet to the next.
    pub stride: usize,
    /// Bytes before the sync byte.
    pub lead: usize,
}

/// Plain packets; with 16 bytes of Reed-Solomon parity after each (DVB, EN 300 429); with a 4-byte
/// arrival time before each (Blu-ray and AVCHD).
const LAYOUTS: [Layout; 3] = [
    Layout { stride: PACKET, lead: 0 },
    Layout { stride: 204, lead: 0 },
    Layout { stride: 192, lead: 4 },
];

impl Layout {
    /// Whether packets begin at `at`: the sync bytes of up to [`SYNC_RUN`] packets, `least` at least.
    fn fits(self, bytes: &[u8], at: usize, least: usize) -> bool {
        let whole = bytes.len().saturating_sub(at) / self.stride;
        let run = whole.min(SYNC_RUN);
        run >= least && (0..run).all(|n| bytes[at + n * self.stride + self.lead] == SYNC)
    }
}

/// Finds the packets in the first bytes of an input: how they lie and where the first whole one begins.
pub(super) fn detect(first: &[u8]) -> Option<(Layout, usize)> {
    let at_start = LAYOUTS.into_iter().find(|layout| layout.fits(first, 0, 1));
    let inside = || {
        LAYOUTS.into_iter().find_map(|layout| {
            let at = (1..layout.stride).find(|&at| layout.fits(first, at, SYNC_RUN))?;
            Some((layout, at))
        })
    };
    at_start.map(|layout| (layout, 0)).or_else(inside)
}

/// What was wrong with an input on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Bytes that belong to no packet, before the last whole one.
    pub skipped: u64,
    /// Where the first of them is, in bytes from the start.
    pub skipped_at: u64,
    /// Bytes of the packet that was cut off at the end.
    pub cut: usize,
    /// Packets without their sync byte between two that have it.
    pub unsynced: u64,
    /// Nothing but other bytes since this place: reading stopped there.
    pub lost_at: Option<u64>,
}

/// Reads packets one after the other.
pub(super) struct PacketReader {
    input: Input,
    layout: Layout,
    damage: Damage,
    /// Bytes read and not yet given: `buffer[start..end]`, of which the first is at `offset`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
    ended: bool,
}

impl PacketReader {
    pub fn open(mut input: Input) -> Result<Self, MediaError> {
        let first = input.peek(DETECT_BYTES)?;
        if first.is_empty() {
            return Err(input.wrong("empty; accepted: an MPEG transport stream"));
        }
        let Some((layout, _)) = detect(first) else {
            return Err(input.wrong(
                "not an MPEG transport stream: no sync byte 0x47 every 188, 192 or 204 bytes",
            ));
        };
        Ok(Self {
            input,
            layout,
            damage: Damage::default(),
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            offset: 0,
            ended: false,
        })
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn input(&self) -> &Input {
        &self.input
    }

    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    pub fn rewind(&mut self) -> Result<(), MediaError> {
        self.input.rewind()?;
        self.damage = Damage::default();
        (self.start, self.end, self.offset, self.ended) = (0, 0, 0, false);
        Ok(())
    }

    /// Gives the next packet; `false` at the end.
    pub fn next(&mut self, packet: &mut Packet) -> Result<bool, MediaError> {
        // In sync: one packet. At the edge of it: also the two behind, to see what is wrong.
        self.want(self.layout.stride)?;
        if !self.synced(0) && !self.bridge()? && !self.search()? {
            return Ok(false);
        }
        if self.available() < self.layout.stride {
            return Ok(self.cut());
        }
        let at = self.start + self.layout.lead;
        packet.copy_from_slice(&self.buffer[at..at + PACKET]);
        self.consume(self.layout.stride);
        Ok(true)
    }

    /// The input ends inside a packet, or between two.
    fn cut(&mut self) -> bool {
        self.damage.cut = self.available();
        self.consume(self.available());
        false
    }

    /// Whether the packet `n` packets ahead begins with a sync byte. True for one that is cut off:
    /// it is told as that.
    fn synced(&self, n: usize) -> bool {
        let at = self.start + n * self.layout.stride + self.layout.lead;
        at >= self.end || self.buffer[at] == SYNC || self.available() < (n + 1) * self.layout.stride
    }

    /// Whether only this packet's sync byte is damaged: it goes out as it is.
    fn bridge(&mut self) -> Result<bool, MediaError> {
        self.want(3 * self.layout.stride)?;
        let bridged =
            self.available() >= 2 * self.layout.stride && self.synced(1) && self.synced(2);
        self.damage.unsynced += u64::from(bridged);
        Ok(bridged)
    }

    /// Skips to where packets begin again; `false` when they do not.
    fn search(&mut self) -> Result<bool, MediaError> {
        let from = self.offset;
        loop {
            self.want((SYNC_RUN + 1) * self.layout.stride)?;
            if self.available() < self.layout.stride {
                self.skip(from, self.available());
                return Ok(false);
            }
            let window = &self.buffer[self.start..self.end];
            // Near the end of the input fewer packets have to do, but not a single one.
            let last = match self.ended {
                true => window.len(),
                false => window.len() - SYNC_RUN * self.layout.stride,
            };
            match (0..last).find(|&at| self.layout.fits(window, at, 2)) {
                Some(at) => {
                    self.skip(from, at);
                    return Ok(true);
                }
                None => self.skip(from, last),
            }
            if self.offset - from > SKIP_MAX {
                self.damage.lost_at = Some(from);
                self.ended = true;
                self.consume(self.available());
                return Ok(false);
            }
        }
    }

    fn skip(&mut self, from: u64, count: usize) {
        if self.damage.skipped == 0 {
            self.damage.skipped_at = from;
        }
        self.damage.skipped += count as u64;
        self.consume(count);
    }

    fn available(&self) -> usize {
        self.end - self.start
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Reads until `count` bytes are available or the input has ended.
    fn want(&mut self, count: usize) -> Result<(), MediaError> {
        while self.available() < count && !self.ended {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match self.input.read(&mut self.buffer[self.end..])? {
                0 => self.ended = true,
                read => self.end += read,
            }
        }
        Ok(())
    }
}
