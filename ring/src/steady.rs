//! The short way of a packet: the next of the source that the one before was of, when nothing is missing,
//! waits or is held.
//!
//! What lives here: what such a packet has to be like, and all that it does. It is what
//! [`super::receive`] and `ordered` do where there is nothing to find and nothing to decide,
//! and leaves the same behind. It is there for streams with one leg. What does not: everything else. Whatever else may change what the next
//! packet means calls `disturb`, and the packet after goes the long way.

use super::abi::{flag, Descriptor};
use super::figures::{
    publish_next_counters, publish_plain_leg, publish_plain_source, FigureBlocks,
};
use super::header::{self, RtpHeader, FIXED_LEN};
use super::receive::{add, bump, Memory, Packet, ReceiveCore};
use super::source::Seen;
use super::staging::distance;
use super::table::{Flow, Key, SourceEntry};
use super::view::RingView;

/// Version and payload type in the first two bytes of an RTP header (RFC 3550 §5.1).
const VERSION_AND_TYPE: u32 = 0xc07f;
/// Padding, extension and CSRC count there.
const PARTS: u32 = 0x3f00;
/// The marker bit there.
const MARKER: u32 = 0x0080;
/// Version 2 there.
const VERSION_2: u32 = 0x8000;

/// The first twelve bytes of a packet.
struct Fixed {
    /// The first two bytes, then the sequence number.
    front: u32,
    timestamp: u32,
    ssrc: u32,
}

impl Fixed {
    #[inline(always)]
    fn of(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes.first_chunk::<FIXED_LEN>()?;
        Some(Self {
            front: u32::from_be_bytes([a, b, c, d]),
            timestamp: u32::from_be_bytes([e, f, g, h]),
            ssrc: u32::from_be_bytes([i, j, k, l]),
        })
    }

    const fn kind(&self) -> u32 {
        self.front >> 16
    }
}

/// A packet that is the next of its source.
struct Next {
    /// Its source's place in the table.
    source: u16,
    /// The stream's sequence number less the source's; in arrival order 0.
    delta: u64,
    marker: bool,
    payload_type: u8,
    timestamp: u32,
    ssrc: u32,
    payload_offset: u16,
    payload_len: u32,
}

impl Next {
    /// Its descriptor, with this number in the stream.
    #[inline(always)]
    fn describe(&self, packet: &Packet<'_>, sequence: u64) -> Descriptor {
        let marker = if self.marker { flag::MARKER } else { 0 };
        let coalesced = if packet.coalesced { flag::COALESCED_TIME } else { 0 };
        Descriptor {
            sequence,
            time_ns: packet.time_ns,
            slot: packet.slot,
            len: packet.len,
            rtp_timestamp: self.timestamp,
            ssrc: self.ssrc,
            count: 0,
            source: self.source,
            flags: marker | coalesced,
            payload_offset: self.payload_offset,
            payload_type: self.payload_type,
            leg: packet.leg,
            payload_len: self.payload_len,
            reserved: [0; 2],
        }
    }
}

/// Packets that went the short way and do not count yet.
#[derive(Clone, Copy, Debug)]
struct Run {
    count: u64,
    bytes: u64,
    last_ns: u64,
}

impl Run {
    /// One packet.
    #[inline(always)]
    fn of(packet: &Packet<'_>, payload_len: u32) -> Self {
        Self { count: 1, bytes: payload_len.into(), last_ns: packet.arrival_ns }
    }
}

/// Packets that come together, one after the other.
pub trait Packets {
    /// Goes to the next one. Returns its length; `None`: there is no other.
    fn next_len(&mut self) -> Option<u32>;

    /// Copies this one, of `len` bytes, to a slot, which is nobody else's. Returns what is there then; `None`: there
    /// were not as many bytes, or there is no such room.
    fn copy_to(&mut self, slot: u32, len: u32) -> Option<&[u8]>;
}

/// Where a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// There is no other packet.
    Done,
    /// Before this packet, of which nothing was copied.
    Before {
        /// Its length.
        len: u32,
    },
    /// Before this packet, which is in a slot, and the caller's now.
    Copied {
        /// Where it is.
        slot: u32,
        /// Its length.
        len: u32,
    },
    /// Before this packet, of which not all bytes are there.
    Torn,
}

/// What the next packet has to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady {
    /// Version and payload type, as in the first two bytes.
    kind: u32,
    sequence: u16,
    ssrc: u32,
    flow: Flow,
    /// Its source's place in the table.
    source: u16,
    /// The stream's sequence number less the source's; in arrival order 0.
    delta: u64,
}

impl Steady {
    /// Whether a packet came the same way: on leg 0, as all that go the short way.
    #[inline(always)]
    fn is_for(&self, packet: &Packet<'_>) -> bool {
        packet.leg == 0 && *packet.flow == self.flow
    }

    /// Whether such a packet is the one with this sequence number.
    #[inline(always)]
    fn is_number(&self, fixed: &Fixed, sequence: u16) -> bool {
        fixed.kind() & VERSION_AND_TYPE == self.kind
            && fixed.front as u16 == sequence
            && fixed.ssrc == self.ssrc
    }

    /// Whether such a packet is the next one.
    #[inline(always)]
    fn is_next(&self, fixed: &Fixed) -> bool {
        self.is_number(fixed, self.sequence)
    }

    /// What such a packet is.
    #[inline(always)]
    fn describe(&self, fixed: &Fixed, payload_offset: u16, payload_len: u32) -> Next {
        Next {
            source: self.source,
            delta: self.delta,
            marker: fixed.kind() & MARKER != 0,
            payload_type: fixed.kind() as u8 & 0x7f,
            timestamp: fixed.timestamp,
            ssrc: fixed.ssrc,
            payload_offset,
            payload_len,
        }
    }
}

/// Where the payload of an RTP packet begins, and its length.
#[inline(always)]
fn payload(fixed: &Fixed, bytes: &[u8]) -> Option<(u16, u32)> {
    if fixed.kind() & PARTS == 0 {
        return Some((FIXED_LEN as u16, bytes.len().wrapping_sub(FIXED_LEN) as u32));
    }
    let header = header::parse(bytes).ok()?;
    Some((header.payload_offset as u16, header.payload_len as u32))
}

impl<M: Memory> ReceiveCore<M> {
    /// The next packet goes the long way.
    #[inline]
    pub(super) fn disturb(&mut self) {
        self.steady = None;
    }

    /// A plain packet has gone the long way: whether the next one may go the short way.
    pub(super) fn calm(&mut self, packet: &Packet<'_>) {
        self.steady = self.next_steadily(packet);
    }

    fn next_steadily(&self, packet: &Packet<'_>) -> Option<Steady> {
        let (source, entry) = self.table.latest()?;
        let [leg, ..] = &self.legs;
        let own = entry.source.highest();
        let delta = if self.config.order.is_some() {
            let sequence = own.wrapping_add(leg.delta);
            let continues = self.follows(packet, entry.key.ssrc)
                && leg.source == source
                && sequence == self.run.highest
                && self.staging.is_next(sequence.wrapping_add(1));
            continues.then_some(leg.delta)?
        } else {
            0
        };
        let kind = VERSION_2 | u32::from(entry.payload_type);
        // With the marker bit, 64 to 95 are RTCP.
        let distinct = entry.payload_type & 0x60 != 0x40;
        let next = (own as u16).wrapping_add(1);
        let plain = distinct
            && packet.leg == 0
            && self.staging.is_plain()
            && entry.source.is_next(next, entry.payload_type);
        plain.then_some(Steady {
            kind,
            sequence: next,
            ssrc: entry.key.ssrc,
            flow: entry.key.flow,
            source,
            delta,
        })
    }

    /// Takes the packet, which is kept then, if it may go the short way and there is room.
    /// [`packet`](Self::packet) does the same and goes the long way otherwise.
    #[inline(always)]
    pub fn take_steadily(
        &mut self,
        view: &RingView<'_>,
        packet: &Packet<'_>,
        bytes: &[u8],
    ) -> bool {
        if packet.truncated || !self.is_steady_for(packet) {
            return false;
        }
        let Some(payload_len) = self.take_like(view, packet, bytes) else { return false };
        bump(&mut self.counters.received);
        self.count_plainly(&Run::of(packet, payload_len));
        true
    }

    /// Takes packets that have everything in common with `like` but their bytes, lengths and slots, as long as each
    /// goes the short way: [`take_steadily`](Self::take_steadily) of one after the other. `len` is the length of the
    /// first; no position from `until` on is taken. Returns how many were taken.
    #[inline(always)]
    pub fn take_run(
        &mut self,
        view: &RingView<'_>,
        like: &Packet<'_>,
        until: u64,
        len: u32,
        packets: &mut impl Packets,
    ) -> (u64, RunEnd) {
        let mut len = len;
        let nothing = (0, RunEnd::Before { len });
        if like.truncated || !self.is_steady_for(like) {
            return nothing;
        }
        let Some(steady) = self.steady.as_mut() else { return nothing };
        let Some(entry) = self.table.touch_plainly(steady.source) else { return nothing };
        let until = match self.limit {
            Some(limit) if distance(limit, until) < 0 => limit,
            _ => until,
        };
        let mut streak = entry.source.streak(like.arrival_ns);
        let mut row = self.staging.row();
        if view.descriptors.is_empty() || row.is_empty() {
            return nothing;
        }
        let like = &Packet { leg: 0, ..*like };
        // At hand, whatever is written between.
        let (stride, expected) = (self.config.slot_stride, *steady);
        let end = loop {
            if len > stride || distance(until, row.next()) <= 0 {
                break RunEnd::Before { len };
            }
            let Some(slot) = row.take_slot() else { break RunEnd::Before { len } };
            let Some(bytes) = packets.copy_to(slot, len) else {
                row.give_back(slot);
                break RunEnd::Torn;
            };
            let sequence = streak.next_sequence();
            let Some(fixed) = Fixed::of(bytes).filter(|it| expected.is_number(it, sequence)) else {
                break RunEnd::Copied { slot, len };
            };
            let Some((payload_offset, payload_len)) = payload(&fixed, bytes) else {
                break RunEnd::Copied { slot, len };
            };
            let next = expected.describe(&fixed, payload_offset, payload_len);
            let own = streak.observe_next(next.timestamp, next.payload_len, next.marker);
            let packet = Packet { slot, len, ..*like };
            let descriptor = next.describe(&packet, own.wrapping_add(next.delta));
            row.append(view, &descriptor, like.arrival_ns);
            match packets.next_len() {
                Some(next_len) => len = next_len,
                None => break RunEnd::Done,
            }
        };
        let (count, bytes, own) = streak.end();
        if count > 0 {
            steady.sequence = (own as u16).wrapping_add(1);
            row.end(like.time_ns);
            let sequence = own.wrapping_add(steady.delta);
            self.follow_plainly(like, sequence);
            add(&mut self.counters.received, count);
            let run = Run { count, bytes, last_ns: like.arrival_ns };
            self.count_plainly(&run);
        }
        (count, end)
    }

    #[inline(always)]
    fn is_steady_for(&self, packet: &Packet<'_>) -> bool {
        self.steady.as_ref().is_some_and(|steady| steady.is_for(packet))
    }

    /// Takes the packet if it is [for](Self::is_steady_for) the short way and has the right bytes. Returns
    /// the length of its payload.
    #[inline(always)]
    fn take_like(&mut self, view: &RingView<'_>, packet: &Packet<'_>, bytes: &[u8]) -> Option<u32> {
        if !self.staging.has_room(self.limit) {
            return None;
        }
        let next = self.next_like(packet, bytes)?;
        self.append_next(view, packet, &next).then_some(next.payload_len)
    }

    /// The packet as the next of its source, if it is [for](Self::is_steady_for) the short way and has the right
    /// bytes. The one after it is expected then.
    #[inline(always)]
    fn next_like(&mut self, packet: &Packet<'_>, bytes: &[u8]) -> Option<Next> {
        let steady = self.steady.as_mut()?;
        let fixed = Fixed::of(bytes)?;
        let fits = packet.len <= self.config.slot_stride;
        if !steady.is_next(&fixed) || !fits {
            return None;
        }
        let (payload_offset, payload_len) = payload(&fixed, bytes)?;
        steady.sequence = steady.sequence.wrapping_add(1);
        Some(steady.describe(&fixed, payload_offset, payload_len))
    }

    /// [`take_steadily`](Self::take_steadily), [`tally`](Self::tally) and
    /// [`publish_figures`](Self::publish_figures) in one go, for a packet that came by itself, is whole and takes no more
    /// positions into use than were before ([`fuller_at`](Self::fuller_at)): so there is room.
    /// [`show_next`](Self::show_next) follows. `false`: nothing was done; also if there is anything else to publish.
    #[inline(always)]
    pub fn take_and_tell(
        &mut self,
        view: &RingView<'_>,
        to: &impl FigureBlocks,
        packet: &Packet<'_>,
        bytes: &[u8],
        now_ns: u64,
    ) -> bool {
        if !self.is_published() || !self.is_steady_for(packet) {
            return false;
        }
        let packet = &Packet { leg: 0, ..*packet };
        let Some(next) = self.next_like(packet, bytes) else { return false };
        let Some(entry) = self.table.get_mut(next.source) else { return false };
        let own = observe_next(entry, packet, &next);
        let source = &entry.source;
        let (expected, jitter_q4_ns) = (source.expected(), source.jitter().q4_ns);
        publish_plain_source(&to.source(next.source), source, expected);
        let sequence = own.wrapping_add(next.delta);
        let descriptor = next.describe(packet, sequence);
        let mut row = self.staging.row();
        row.append(view, &descriptor, packet.arrival_ns);
        row.end_counted(packet.time_ns);
        self.follow_plainly(packet, sequence);
        bump(&mut self.counters.received);
        bump(&mut self.counters.published);
        self.add_plainly(&Run::of(packet, next.payload_len));
        let stream_expected = self.expected();
        // Of a stream with one leg, as all that go the short way.
        let [leg, ..] = &self.legs;
        let (expected, jitter_q4_ns) = match self.config.order {
            Some(_) => (expected, jitter_q4_ns),
            None => (stream_expected, leg.figures.jitter_q4_ns),
        };
        publish_plain_leg(&to.leg(0), &leg.figures, expected, jitter_q4_ns);
        publish_next_counters(&to.counters(), &self.counters, stream_expected, now_ns);
        true
    }

    /// In arrival order, takes the packet, which is RTP and wanted, if it is the next of a source that is
    /// known, and there is room: there may be thousands that take turns.
    pub(super) fn take_known(
        &mut self,
        view: &RingView<'_>,
        packet: &Packet<'_>,
        header: &RtpHeader,
    ) -> bool {
        let plain = self.staging.is_plain() && self.staging.has_room(self.limit);
        if self.config.order.is_some() || !plain {
            return false;
        }
        let key = Key { flow: *packet.flow, ssrc: header.ssrc, leg: packet.leg };
        let Some(source) = self.table.find_known(&key) else { return false };
        let is_next = self.table.get(source).is_some_and(|entry| {
            entry.payload_type == header.payload_type
                && entry.source.is_next(header.sequence, header.payload_type)
        });
        let next = Next {
            source,
            delta: 0,
            marker: header.marker,
            payload_type: header.payload_type,
            timestamp: header.timestamp,
            ssrc: header.ssrc,
            payload_offset: header.payload_offset as u16,
            payload_len: header.payload_len as u32,
        };
        let took = is_next && self.append_next(view, packet, &next);
        if took {
            self.count_plainly(&Run::of(packet, next.payload_len));
        }
        took
    }

    /// What the next packet of a source does, but for being counted. `false`: nothing, as there is no such
    /// source.
    #[inline(always)]
    fn append_next(&mut self, view: &RingView<'_>, packet: &Packet<'_>, next: &Next) -> bool {
        let Some(entry) = self.table.touch_plainly(next.source) else { return false };
        let own = observe_next(entry, packet, next);
        self.place_next(view, packet, next, own);
        true
    }

    /// Gives the next packet of a source, there number `own`, its place.
    #[inline(always)]
    fn place_next(&mut self, view: &RingView<'_>, packet: &Packet<'_>, next: &Next, own: u64) {
        let sequence = own.wrapping_add(next.delta);
        self.follow_plainly(packet, sequence);
        let descriptor = next.describe(packet, sequence);
        self.staging.append_plainly(view, &descriptor, packet.arrival_ns);
    }

    /// A packet is the latest of an ordered stream, with this number.
    #[inline(always)]
    fn follow_plainly(&mut self, packet: &Packet<'_>, sequence: u64) {
        if self.config.order.is_some() {
            let [leg, ..] = &mut self.legs;
            leg.last_ns = packet.arrival_ns;
            leg.latest = sequence;
            self.run.highest = sequence;
        }
    }

    /// Counts packets that were received, to be published.
    #[inline(always)]
    fn count_plainly(&mut self, run: &Run) {
        self.add_plainly(run);
        self.changed = self.changed.and_plain();
    }

    #[inline(always)]
    fn add_plainly(&mut self, run: &Run) {
        let counters = &mut self.counters;
        add(&mut counters.unique, run.count);
        add(&mut counters.bytes, run.bytes);
        if self.config.order.is_none() {
            add(&mut counters.expected, run.count);
        }
        let [leg, ..] = &mut self.legs;
        let figures = &mut leg.figures;
        add(&mut figures.received, run.count);
        add(&mut figures.first, run.count);
        add(&mut figures.bytes, run.bytes);
        figures.last_ns = run.last_ns;
    }
}

/// Shows a source its next packet. Returns the packet's extended number.
#[inline(always)]
fn observe_next(entry: &mut SourceEntry, packet: &Packet<'_>, next: &Next) -> u64 {
    entry.source.observe_next(&Seen {
        sequence: (entry.source.highest() as u16).wrapping_add(1),
        timestamp: next.timestamp,
        arrival_ns: packet.arrival_ns,
        payload_len: next.payload_len,
        payload_type: next.payload_type,
        marker: next.marker,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::abi::{
        LegFigures, SourceFigures, StreamCounters, DESC_WORDS, SEQUENCE_WORDS,
    };
    use super::super::atomic::Word;
    use super::super::follow::Held;
    use super::super::header::Kind;
    use super::super::receive::{Config, Filter, Storage, Verdict};
    use super::super::staging::{distance, Entry, Order};
    use super::super::view::Block;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const POSITIONS: usize = 16;
    const SLOTS: usize = 40;
    const SLOT: usize = 256;

    #[derive(Debug)]
    struct Heap;

    impl Memory for Heap {
        type Entries = Vec<Entry>;
        type Slots = Vec<u32>;
        type Sources = Vec<SourceEntry>;
        type Index = Vec<u16>;
        type Held = Vec<Held>;
    }

    /// Where a rig publishes.
    struct Blocks {
        counters: Vec<Word>,
        leg: Vec<Word>,
        sources: Vec<Vec<Word>>,
    }

    impl Blocks {
        fn new() -> Self {
            let words = |count: usize| -> Vec<Word> {
                (0..Block::len_words(count)).map(|_| Word::new(0)).collect()
            };
            Self {
                counters: words(StreamCounters::WORDS),
                leg: words(LegFigures::WORDS),
                sources: (0..4).map(|_| words(SourceFigures::WORDS)).collect(),
            }
        }
    }

    impl FigureBlocks for Blocks {
        fn counters(&self) -> Block<'_> {
            Block { words: &self.counters }
        }

        fn leg(&self, _: usize) -> Block<'_> {
            Block { words: &self.leg }
        }

        fn source(&self, at: u16) -> Block<'_> {
            Block { words: &self.sources[usize::from(at)] }
        }
    }

    /// What a block says.
    fn said<const WORDS: usize>(words: &[Word]) -> [u64; WORDS] {
        assert_eq!(words[0].load() % 2, 0, "it is being written");
        core::array::from_fn(|at| words[SEQUENCE_WORDS + at].load())
    }

    /// What is left of a train, from the packet on that is next, and the slot that was copied to last.
    struct Rest<'a> {
        train: &'a [Vec<u8>],
        slot: Vec<u8>,
    }

    impl Packets for Rest<'_> {
        fn next_len(&mut self) -> Option<u32> {
            if !self.slot.is_empty() {
                self.train = &self.train[1..];
                self.slot.clear();
            }
            self.train.first().map(|bytes| bytes.len() as u32)
        }

        fn copy_to(&mut self, _: u32, len: u32) -> Option<&[u8]> {
            self.slot.clone_from(&self.train[0]);
            self.slot.get(..len as usize)
        }
    }

    /// A stream with a reader that reads everything now and then.
    struct Rig {
        core: ReceiveCore<Heap>,
        blocks: Blocks,
        /// Packets of which everything was published in one go, and those of runs.
        told: u32,
        ran: u64,
        claim: Word,
        head: Word,
        descriptors: Vec<[Word; DESC_WORDS]>,
    }

    /// All that tells two streams apart, but for what they think of the next packet.
    #[derive(Debug, PartialEq)]
    struct State {
        counters: StreamCounters,
        leg: LegFigures,
        sources: Vec<SourceFigures>,
        positions: (u64, u64),
        deadline: Option<u64>,
        descriptors: Vec<Descriptor>,
    }

    impl Rig {
        fn new(ordered: bool) -> Self {
            let config = Config {
                start: u64::MAX - 5,
                slot_stride: SLOT as u32,
                order: ordered.then_some(Order { reorder_ns: 5_000, window: 8 }),
                legs: 1,
                filter: Filter::default(),
                clock_rates: core::array::from_fn(|kind| kind as u32 % 5 * 8_000),
                stall_ns: 1_000_000,
                secret: [1, 2],
            };
            let storage = Storage {
                entries: vec![Entry::EMPTY; POSITIONS],
                slots: vec![0; SLOTS],
                sources: vec![SourceEntry::FREE; 4],
                index: vec![0; 8],
                held: vec![Held::EMPTY; POSITIONS / 2],
            };
            let mut core = ReceiveCore::new(config, storage);
            let start = core.head();
            let reader =
                core.readers_mut().add(super::super::producer::Mode::Reliable, false, start, 0);
            assert_eq!(reader, Some(0));
            core.refresh_limit();
            Self {
                core,
                blocks: Blocks::new(),
                told: 0,
                ran: 0,
                claim: Word::new(start),
                head: Word::new(start),
                descriptors: (0..POSITIONS)
                    .map(|_| core::array::from_fn(|_| Word::new(0)))
                    .collect(),
            }
        }

        /// Publishes what has changed, and checks that then everything is published.
        fn publish(&mut self, told: bool, now_ns: u64) {
            if !told {
                self.core.tally();
                self.core.publish_figures(&self.blocks, now_ns);
            }
            let counters = StreamCounters::from_words(said(&self.blocks.counters));
            assert_eq!(counters, self.core.counters(now_ns));
            assert_eq!(LegFigures::from_words(said(&self.blocks.leg)), self.core.leg_figures(0));
            for (at, words) in (0..counters.sources as u16).zip(&self.blocks.sources) {
                assert_eq!(SourceFigures::from_words(said(words)), self.core.source_figures(at));
            }
        }

        /// Takes a packet as the short way, if that is its way, or else the long one.
        fn place(&mut self, packet: &Packet<'_>, bytes: &[u8]) -> Verdict {
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            let slot = self.core.take_slot().expect("more slots than are ever in use");
            let packet = Packet { slot, ..*packet };
            let verdict = self.core.packet(&view, &packet, bytes);
            if verdict != Verdict::Kept {
                self.core.give_back(slot);
            }
            verdict
        }

        /// Takes a packet that came by itself, with its figures if it is the usual one.
        fn tell(&mut self, packet: &Packet<'_>, bytes: &[u8]) -> bool {
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            let fuller_at = self.core.fuller_at().expect("the reader is reliable");
            if distance(fuller_at, self.core.claim()) <= 0 {
                return false;
            }
            let slot = self.core.take_slot().expect("more slots than are ever in use");
            let packet = Packet { slot, ..*packet };
            let now_ns = packet.arrival_ns;
            let told = self.core.take_and_tell(&view, &self.blocks, &packet, bytes, now_ns);
            if !told {
                self.core.give_back(slot);
            }
            self.told += u32::from(told);
            told
        }

        /// Takes packets that came together, as the short way where that is their way.
        fn take_train(&mut self, like: &Packet<'_>, train: &[Vec<u8>], until: u64) {
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            let mut rest = Rest { train, slot: Vec::new() };
            let mut next = rest.next_len();
            while let Some(len) = next {
                let (taken, end) = self.core.take_run(&view, like, until, len, &mut rest);
                self.ran += taken;
                match end {
                    RunEnd::Done => break,
                    RunEnd::Before { len } => {
                        let packet = Packet { len, truncated: len as usize > SLOT, ..*like };
                        let slot = self.core.take_slot().expect("more slots than are in use");
                        let verdict =
                            self.core.packet(&view, &Packet { slot, ..packet }, &rest.train[0]);
                        if verdict != Verdict::Kept {
                            self.core.give_back(slot);
                        }
                    }
                    RunEnd::Copied { slot, len } => {
                        let packet = Packet { slot, len, ..*like };
                        let verdict = self.core.packet(&view, &packet, &rest.slot);
                        if verdict != Verdict::Kept {
                            self.core.give_back(slot);
                        }
                    }
                    RunEnd::Torn => unreachable!("all bytes are there"),
                }
                rest.train = &rest.train[1..];
                next = rest.train.first().map(|bytes| bytes.len() as u32);
            }
        }

        /// Takes packets that came together, or one that came by itself. `short`: the short way where that is theirs.
        fn take(&mut self, like: &Packet<'_>, train: &[Vec<u8>], short: bool, reads: bool) {
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            self.core.expire(&view, like.arrival_ns);
            let mut told = false;
            if short && like.coalesced {
                let until = self.core.claim().wrapping_add(5);
                self.take_train(like, train, until);
            } else {
                for bytes in train {
                    let len = bytes.len() as u32;
                    let packet = Packet { len, truncated: len as usize > SLOT, ..*like };
                    if !short {
                        self.core.disturb();
                    }
                    told = short && self.tell(&packet, bytes);
                    if !told {
                        self.place(&packet, bytes);
                    }
                }
            }
            self.publish(told, like.arrival_ns);
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            if told {
                self.core.show_next(&view);
            } else {
                self.core.flush(&view, like.arrival_ns);
            }
            assert_eq!(self.head.load(), self.core.head());
            if reads {
                let head = self.core.head();
                self.core.observe_tail(0, head, like.arrival_ns);
                self.core.refresh_limit();
            }
        }

        /// What may come between packets.
        fn meet(&mut self, event: u8, now_ns: u64) {
            let view =
                RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
            match event {
                0 => drop(self.core.reset_counters()),
                1 => self.core.bye(&view, 1, now_ns, now_ns),
                2 => self.core.bye(&view, 2, now_ns, now_ns),
                3 => self.core.passed(Kind::Rtcp),
                4 => self.core.set_reorder_ns(9_000),
                5 => self.core.set_leg_source(0, [0; 16]),
                6 => drop(self.core.without_slot(&rtp(0x80, 96, 0, 0, 1, 20))),
                7 => self.core.finish(&view),
                _ => {}
            }
        }

        fn state(&mut self) -> State {
            State {
                counters: self.core.counters(0),
                leg: self.core.leg_figures(0),
                sources: (0..4).map(|at| self.core.source_figures(at)).collect(),
                positions: (self.core.head(), self.core.claim()),
                deadline: self.core.next_deadline(),
                descriptors: self
                    .descriptors
                    .iter()
                    .map(|words| {
                        Descriptor::from_words(core::array::from_fn(|at| words[at].load()))
                    })
                    .collect(),
            }
        }
    }

    /// An RTP packet of `len` bytes whose first byte and payload type are these.
    fn rtp(first: u8, kind: u8, sequence: u16, timestamp: u32, ssrc: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![1; len];
        header::build(&mut bytes, false, 0, sequence, timestamp, ssrc).expect("room");
        bytes[0] = first;
        bytes[1] = kind;
        bytes
    }

    std::thread_local! {
        /// Packets that were told at once, and of runs, in all cases.
        static SHORT: core::cell::Cell<(u32, u64)> = const { core::cell::Cell::new((0, 0)) };
    }

    #[test]
    fn the_short_way_of_a_packet_leaves_what_the_long_one_does() {
        compare();
        let (told, ran) = SHORT.get();
        assert!(told > 200 && ran > 200, "{told} were told at once, {ran} were of runs");
    }

    proptest! {
        fn compare(
            ordered: bool,
            packets in prop::collection::vec(
                (
                    prop_oneof![12 => Just(1_u16), 2 => 0..4_u16, 1 => any::<u16>()],
                    prop_oneof![12 => Just(0x80_u8), 1 => Just(0x90), 1 => Just(0xa0), 1 => Just(0x83), 1 => any::<u8>()],
                    prop_oneof![12 => Just(96_u8), 2 => Just(96 | 0x80), 1 => Just(72), 1 => Just(72 | 0x80), 1 => Just(13)],
                    prop_oneof![30 => Just(1_u32), 1 => Just(2), 1 => 0..8_u32],
                    prop_oneof![20 => 30..200_usize, 1 => 0..300_usize],
                    (
                        prop_oneof![30 => 0..3_000_u64, 1 => 0..300_000_000_u64, 1 => 0..100_000_000_000_u64],
                        prop_oneof![2 => Just(false), 3 => Just(true)],
                        prop_oneof![3 => Just(true), 1 => Just(false)],
                        prop_oneof![20 => Just(u8::MAX), 1 => 0..8_u8],
                    ),
                ),
                1..120,
            ),
        ) {
            let (mut short, mut long) = (Rig::new(ordered), Rig::new(ordered));
            let (mut sequence, mut now, mut took) = (65_500_u16, 1_000_000_u64, 0);
            let mut packets = packets.into_iter().peekable();
            while let Some((_, _, _, _, len, (passed, coalesced, reads, event))) = packets.peek().copied() {
                now += passed;
                let like = Packet {
                    slot: 0,
                    len: len as u32,
                    truncated: false,
                    coalesced,
                    leg: 0,
                    arrival_ns: now,
                    time_ns: now + 7,
                    flow: &Flow { source_port: if len == 77 { 9 } else { 5 }, ..Flow::NONE },
                };
                let mut train = Vec::new();
                while let Some((step, first, kind, ssrc, len, _)) = packets.next() {
                    sequence = sequence.wrapping_add(step);
                    let bytes = rtp(first, kind, sequence, now as u32 / 100 + train.len() as u32, ssrc, len.max(12));
                    train.push(bytes[..len].to_vec());
                    let more = packets.peek().is_some_and(|(.., (_, together, ..))| *together);
                    if !coalesced || !more {
                        break;
                    }
                }
                short.meet(event, now);
                long.meet(event, now);
                took += u32::from(short.core.steady.is_some());
                short.take(&like, &train, true, reads);
                long.take(&like, &train, false, reads);
                long.core.disturb();
                prop_assert_eq!(short.state(), long.state());
            }
            prop_assert_eq!((long.told, long.ran), (0, 0));
            prop_assume!(took > 0);
            SHORT.with(|sums| sums.set((sums.get().0 + short.told, sums.get().1 + short.ran)));
        }
    }
}
