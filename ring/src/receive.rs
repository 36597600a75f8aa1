//! A receive stream, whole: packets go in, descriptors and figures come out.
//!
//! What lives here: the composition of parsing, source table, staging and readers, the path of
//! packets in arrival order, and the counters. The path of ordered packets is in
//! `ordered`. What does not: sockets, clocks, memory; whoever runs the engine brings them.
//!
//! # How an engine uses it
//!
//! ```text
//! take_slots -> the network writes packets into them -> packet() for each -> give_back() what was
//! not kept -> tally() -> publish_figures() -> flush()
//! ```
//!
//! and, when [`ReceiveCore::next_deadline`] has passed, `expire()` and `flush()`. One thread (or lock
//! holder) at a time; everything is private to the producer except what goes through the view.

use core::ops::DerefMut;

use super::abi::{
    flag, Descriptor, LegFigures, SourceFigures, StreamCounters, LEGS_MAX, SOURCE_NONE,
};
use super::figures::{publish_plain_counters, publish_plain_leg, Changed, FigureBlocks};
use super::follow::{Candidate, Held, Hold, SILENCE_NS};
use super::header::{self, Kind, RtpHeader};
use super::producer::Readers;
use super::source::{Seen, Step};
use super::staging::{distance, Entry, Order, Placement, Staging};
use super::steady::Steady;
use super::table::{Flow, Key, Secret, SourceEntry, Table, IDLE_NS};
use super::view::RingView;

/// Storage of a receive stream, allocated by whoever runs the engine.
pub trait Memory {
    /// An [`Entry`] per position.
    type Entries: DerefMut<Target = [Entry]>;
    /// A word per slot.
    type Slots: DerefMut<Target = [u32]>;
    /// The source table.
    type Sources: DerefMut<Target = [SourceEntry]>;
    /// Its index: a power of two, at least twice as many.
    type Index: DerefMut<Target = [u16]>;
    /// Room for packets of a source that is not proven yet.
    type Held: DerefMut<Target = [Held]>;
}

/// The storage itself. Contents do not matter; lengths do.
#[derive(Debug)]
pub struct Storage<M: Memory> {
    /// As long as the ring has positions: a power of two.
    pub entries: M::Entries,
    /// As long as the ring has slots: positions, plus what is held, plus what the network is given.
    pub slots: M::Slots,
    /// As long as the source table in the status pages.
    pub sources: M::Sources,
    /// A power of two, at least twice the source table.
    pub index: M::Index,
    /// Half as long as the ring has positions, or less.
    pub held: M::Held,
}

/// What a stream takes. Everything else is counted as `dropped_filtered`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this SSRC.
    pub ssrc: Option<u32>,
    /// Only this payload type.
    pub payload_type: Option<u8>,
    /// By leg: only from this address, as in [`Flow::source`].
    pub sources: [Option<[u8; 16]>; LEGS_MAX],
    /// What has another SSRC or payload type is no packet of the stream: passed, as what is no RTP.
    pub leave_others: bool,
}

impl Filter {
    /// Whether RTP that begins with these bytes is left to others.
    pub fn leaves(&self, head: &[u8]) -> bool {
        let [_, second, _, _, _, _, _, _, a, b, c, d, ..] = *head else { return false };
        let (ssrc, payload_type) = (u32::from_be_bytes([a, b, c, d]), second & 0x7f);
        self.leave_others && !self.is_wanted(ssrc, payload_type)
    }

    fn is_wanted(&self, ssrc: u32, payload_type: u8) -> bool {
        self.ssrc.is_none_or(|wanted| wanted == ssrc)
            && self.payload_type.is_none_or(|wanted| wanted == payload_type)
    }

    fn takes(&self, header: &RtpHeader, flow: &Flow, leg: u8) -> bool {
        let source = self.sources.get(usize::from(leg)).copied().flatten();
        self.is_wanted(header.ssrc, header.payload_type)
            && source.is_none_or(|source| source == flow.source)
    }
}

/// How a receive stream behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// First position; 0 outside tests.
    pub start: u64,
    /// Bytes of a slot: longer packets are dropped.
    pub slot_stride: u32,
    /// RTP sequence order, or arrival order.
    pub order: Option<Order>,
    /// Legs, 1 or 2; two need an order.
    pub legs: u8,
    /// Which packets are the stream's.
    pub filter: Filter,
    /// RTP clock rate by payload type, Hz; 0: not known.
    pub clock_rates: [u32; 128],
    /// A reliable reader of another process that holds the ring full for this long is made lossy.
    pub stall_ns: u64,
    /// Keeps senders from choosing where they stand in the source table: random, outside tests.
    pub secret: Secret,
}

/// A packet in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Where it is.
    pub slot: u32,
    /// Its length in bytes, as it was on the wire.
    pub len: u32,
    /// The slot does not hold all of it.
    pub truncated: bool,
    /// It came coalesced with others: its time is theirs.
    pub coalesced: bool,
    /// Leg it came on.
    pub leg: u8,
    /// CLOCK_MONOTONIC of its arrival, nanoseconds.
    pub arrival_ns: u64,
    /// CLOCK_TAI of its arrival, nanoseconds.
    pub time_ns: u64,
    /// Addresses and ports.
    pub flow: &'a Flow,
}

/// What becomes of a packet's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The ring has it now.
    Kept,
    /// The packet was counted; the slot is free ([`ReceiveCore::give_back`]).
    Free,
    /// Not RTP, or RTP that is left to others: for the side channel. The slot is free after that.
    Passed(Kind),
}

/// Where a leg is with respect to the stream's present sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in it (yet).
    #[default]
    Out,
    /// In it.
    Current,
    /// Was in it, and its source went on elsewhere.
    Astray,
}

/// What the core keeps of a leg.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leg {
    /// Addresses of the followed source on this leg.
    pub(super) flow: Option<Flow>,
    /// Its place in the source table.
    pub(super) source: u16,
    pub(super) place: Place,
    /// Stream's extended sequence less this leg's.
    pub(super) delta: u64,
    /// Latest of its packets in the stream's sequence.
    pub(super) latest: u64,
    /// Last packet of the followed source.
    pub(super) last_ns: u64,
    pub(super) figures: LegFigures,
}

/// The merged sequence of an ordered stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    pub(super) base: u64,
    pub(super) highest: u64,
    /// Expected in earlier runs.
    pub(super) prior: u64,
}

impl Run {
    pub(super) fn expected(&self) -> u64 {
        self.prior.wrapping_add(self.highest.wrapping_sub(self.base)).wrapping_add(1)
    }
}

/// A receive stream.
#[derive(Debug)]
pub struct ReceiveCore<M: Memory> {
    pub(super) config: Config,
    pub(super) slot_count: u32,
    pub(super) staging: Staging<M::Entries, M::Slots>,
    pub(super) table: Table<M::Sources, M::Index>,
    pub(super) readers: Readers,
    pub(super) hold: Hold<M::Held>,
    pub(super) candidate: Option<Candidate>,
    /// SSRC of the followed source, once there is one.
    pub(super) followed: Option<u32>,
    pub(super) run: Run,
    /// When the followed source said BYE.
    pub(super) bye: Option<u64>,
    pub(super) legs: [Leg; LEGS_MAX],
    pub(super) counters: StreamCounters,
    /// First position that may not be written.
    pub(super) limit: Option<u64>,
    /// Packets that one leg alone had, when the counters were set to zero.
    recovered_before: u64,
    /// Not published yet, of the counters and of the legs.
    pub(super) changed: Changes,
    /// The present packet continued its source's sequence, and did nothing else.
    pub(super) plain: bool,
    /// What the next packet is like that goes the short way.
    pub(super) steady: Option<Steady>,
}

/// What is to be published of the figures that are not a source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    counters: Changed,
    legs: Changed,
}

impl Changes {
    const ALL: Self = Self { counters: Changed::Anything, legs: Changed::Anything };
    const NONE: Self = Self { counters: Changed::Nothing, legs: Changed::Nothing };

    /// What there was, and what a plain packet changes.
    #[inline]
    pub(super) fn and_plain(self) -> Self {
        Self { counters: self.counters.max(Changed::Plain), legs: self.legs.max(Changed::Plain) }
    }
}

impl<M: Memory> ReceiveCore<M> {
    /// A stream with nothing received.
    pub fn new(config: Config, storage: Storage<M>) -> Self {
        let slot_count = storage.entries.len() as u32;
        let order = config.order.unwrap_or(Order { reorder_ns: 0, window: 1 });
        let leg = Leg { source: SOURCE_NONE, ..Leg::default() };
        // An ordered stream has use for the source that it follows only.
        let idle_ns = if config.order.is_some() { SILENCE_NS } else { IDLE_NS };
        Self {
            slot_count,
            staging: Staging::new(storage.entries, storage.slots, config.start, order, config.legs),
            table: Table::new(storage.sources, storage.index, idle_ns, config.secret),
            readers: Readers::new(),
            hold: Hold::new(storage.held),
            candidate: None,
            followed: None,
            run: Run::default(),
            bye: None,
            legs: [leg; LEGS_MAX],
            counters: StreamCounters::default(),
            limit: None,
            recovered_before: 0,
            changed: Changes::ALL,
            plain: false,
            steady: None,
            config,
        }
    }

    /// Takes free slots for the network to write into. Returns how many of `slots` were filled.
    pub fn take_slots(&mut self, slots: &mut [u32]) -> usize {
        let mut taken = 0_usize;
        for place in slots {
            let Some(slot) = self.staging.free().pop() else { break };
            *place = slot;
            taken = taken.wrapping_add(1);
        }
        taken
    }

    /// Takes one free slot.
    #[inline]
    pub fn take_slot(&mut self) -> Option<u32> {
        self.staging.free().pop()
    }

    /// Gives back a slot from [`take_slots`](Self::take_slots) that no packet was kept in.
    pub fn give_back(&mut self, slot: u32) {
        self.staging.free().push(slot);
    }

    /// The readers.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// The readers, to be changed. Ends with [`refresh_limit`](Self::refresh_limit).
    pub fn readers_mut(&mut self) -> &mut Readers {
        self.changed.counters = Changed::Anything;
        &mut self.readers
    }

    /// [`Readers::observe_tail`]. [`refresh_limit`](Self::refresh_limit) follows.
    #[inline]
    pub fn observe_tail(&mut self, reader: usize, tail: u64, now_ns: u64) -> bool {
        let head = self.staging.head();
        self.readers.observe_tail(reader, tail, head, now_ns)
    }

    /// [`Readers::should_wake`].
    #[inline]
    pub fn should_wake(&mut self, reader: usize, wake_at: u64) -> bool {
        let head = self.staging.head();
        self.readers.should_wake(reader, wake_at, head)
    }

    /// [`Readers::take_changed`].
    pub fn take_changed_readers(&mut self) -> u32 {
        self.readers.take_changed()
    }

    /// Learns from the readers' accepted tails which positions may be written, and which slots are free.
    pub fn refresh_limit(&mut self) {
        self.readers.refresh();
        self.limit = self.readers.limit(self.slot_count);
        if let Some(tail) = self.readers.slowest() {
            self.staging.release(tail);
        }
    }

    /// Positions that may be taken before the ring is full, as far as the tails that were looked at
    /// tell; `None` when no reader is reliable.
    pub fn room(&self) -> Option<u64> {
        let room = distance(self.limit?, self.staging.claim());
        Some(u64::try_from(room).unwrap_or(0))
    }

    /// One packet. `bytes` is what the slot holds of it.
    pub fn packet(&mut self, view: &RingView<'_>, packet: &Packet<'_>, bytes: &[u8]) -> Verdict {
        if self.take_steadily(view, packet, bytes) {
            return Verdict::Kept;
        }
        self.take_any(view, packet, bytes)
    }

    #[inline(never)]
    fn take_any(&mut self, view: &RingView<'_>, packet: &Packet<'_>, bytes: &[u8]) -> Verdict {
        self.disturb();
        let before = core::mem::replace(&mut self.changed, Changes::ALL);
        self.plain = false;
        let source = self.table.latest_at();
        let verdict = self.take(view, packet, bytes);
        if self.plain {
            self.changed = before.and_plain();
            // Two in a row: more may follow.
            if self.table.latest_at() == source {
                self.calm(packet);
            }
        }
        verdict
    }

    fn take(&mut self, view: &RingView<'_>, packet: &Packet<'_>, bytes: &[u8]) -> Verdict {
        let kind = header::classify(bytes);
        if kind != Kind::Rtp || self.config.filter.leaves(bytes) {
            self.count_passed(kind);
            return Verdict::Passed(kind);
        }
        bump(&mut self.counters.received);
        if packet.truncated || packet.len > self.config.slot_stride {
            bump(&mut self.counters.dropped_oversize);
            return Verdict::Free;
        }
        let Ok(header) = header::parse(bytes) else {
            bump(&mut self.counters.dropped_invalid);
            return Verdict::Free;
        };
        if !self.config.filter.takes(&header, packet.flow, packet.leg) {
            bump(&mut self.counters.dropped_filtered);
            return Verdict::Free;
        }
        if self.take_known(view, packet, &header) {
            self.plain = true;
            return Verdict::Kept;
        }
        let descriptor = describe(packet, &header);
        let key = Key { flow: *packet.flow, ssrc: header.ssrc, leg: packet.leg };
        let held = Held { descriptor, arrival_ns: packet.arrival_ns };
        if self.config.order.is_some() {
            self.ordered(view, &held, &key)
        } else {
            self.unordered(view, &held, &key)
        }
    }

    /// A packet for which there was no slot. `bytes` is where it is instead.
    pub fn without_slot(&mut self, bytes: &[u8]) -> Verdict {
        self.changed_all();
        let kind = header::classify(bytes);
        if kind != Kind::Rtp || self.config.filter.leaves(bytes) {
            self.count_passed(kind);
            return Verdict::Passed(kind);
        }
        bump(&mut self.counters.received);
        bump(&mut self.counters.dropped_ring_full);
        Verdict::Free
    }

    /// A packet of another socket that belongs to the stream's session: RTCP on a port of its own.
    pub fn passed(&mut self, kind: Kind) {
        self.changed.counters = Changed::Anything;
        self.count_passed(kind);
    }

    /// A packet that is no RTP and belongs to the stream all the same: the raw pattern of a device.
    pub fn raw(&mut self, view: &RingView<'_>, packet: &Packet<'_>, sequence: u64) -> Verdict {
        self.disturb();
        self.changed.counters = Changed::Anything;
        bump(&mut self.counters.received);
        let descriptor = Descriptor {
            sequence,
            time_ns: packet.time_ns,
            slot: packet.slot,
            len: packet.len,
            payload_len: packet.len,
            source: SOURCE_NONE,
            flags: flag::RAW,
            ..Descriptor::default()
        };
        match self.staging.append(view, descriptor, packet.arrival_ns, self.limit) {
            Placement::New { .. } => {
                bump(&mut self.counters.unique);
                add(&mut self.counters.bytes, u64::from(packet.len));
                Verdict::Kept
            }
            _ => {
                bump(&mut self.counters.dropped_ring_full);
                Verdict::Free
            }
        }
    }

    fn count_passed(&mut self, kind: Kind) {
        bump(match kind {
            Kind::Rtcp => &mut self.counters.passed_rtcp,
            Kind::Stun => &mut self.counters.passed_stun,
            Kind::Dtls => &mut self.counters.passed_dtls,
            Kind::Rtp | Kind::Other => &mut self.counters.passed_other,
        });
    }

    pub(super) fn clock_rate(&self, payload_type: u8) -> u32 {
        self.config.clock_rates.get(usize::from(payload_type)).copied().unwrap_or(0)
    }

    /// How far a packet may come behind the highest before it counts as a restart.
    pub(super) fn misorder(&self) -> u32 {
        match self.config.order {
            Some(_) => self.staging.window().max(100),
            None => 100,
        }
    }

    fn unordered(&mut self, view: &RingView<'_>, held: &Held, key: &Key) -> Verdict {
        let mut descriptor = held.descriptor;
        let clock_rate = self.clock_rate(descriptor.payload_type);
        let misorder = self.misorder();
        match self.table.find_or_insert(key, clock_rate, held.arrival_ns) {
            None => {
                bump(&mut self.counters.sources_untracked);
                bump(&mut self.counters.unique);
                bump(&mut self.counters.expected);
                add(&mut self.counters.bytes, u64::from(descriptor.payload_len));
            }
            Some(at) => {
                descriptor.source = at;
                let Some((entry, changed)) = self.table.touch(at) else { return Verdict::Free };
                let before = Totals::of(entry);
                let (step, plain) = entry.observe(&seen(held), misorder, changed);
                let after = Totals::of(entry);
                self.plain = plain;
                self.count_source(&before, &after);
                match step {
                    Step::Duplicate { .. } => {
                        bump(&mut self.counters.duplicate);
                        self.count_leg(key.leg, held, &Placement::Duplicate { first_ns: None });
                        return Verdict::Free;
                    }
                    Step::Gap { ext, missing } => {
                        descriptor.sequence = ext;
                        descriptor.flags |= flag::DISCONTINUITY;
                        descriptor.count = missing;
                    }
                    Step::First { ext }
                    | Step::Next { ext }
                    | Step::Reordered { ext }
                    | Step::Restart { ext, .. } => descriptor.sequence = ext,
                    Step::Stray => descriptor.flags |= flag::DISCONTINUITY,
                }
            }
        }
        let placement = self.staging.append(view, descriptor, held.arrival_ns, self.limit);
        self.count_leg(key.leg, held, &placement);
        match placement {
            Placement::New { .. } => Verdict::Kept,
            _ => {
                self.plain = false;
                bump(&mut self.counters.dropped_ring_full);
                Verdict::Free
            }
        }
    }

    /// Adds what one packet changed in its source's figures to the stream's.
    fn count_source(&mut self, before: &Totals, after: &Totals) {
        let counters = &mut self.counters;
        add(&mut counters.unique, after.unique.wrapping_sub(before.unique));
        add(&mut counters.bytes, after.bytes.wrapping_sub(before.bytes));
        add(&mut counters.expected, after.expected.wrapping_sub(before.expected));
        add(&mut counters.reordered, after.reordered.wrapping_sub(before.reordered));
        add(&mut counters.restarts, after.restarts.wrapping_sub(before.restarts));
    }

    pub(super) fn count_leg(&mut self, leg: u8, held: &Held, placement: &Placement) {
        let Some(leg) = self.legs.get_mut(usize::from(leg)) else { return };
        let figures = &mut leg.figures;
        bump(&mut figures.received);
        add(&mut figures.bytes, u64::from(held.descriptor.payload_len));
        figures.last_ns = held.arrival_ns;
        match placement {
            Placement::New { .. } => bump(&mut figures.first),
            Placement::Late { .. } => bump(&mut figures.late),
            Placement::RingFull => {}
            Placement::Duplicate { first_ns } => {
                bump(&mut figures.duplicate);
                if let Some(first_ns) = first_ns {
                    sample_skew(figures, distance(held.arrival_ns, *first_ns));
                }
            }
        }
    }

    /// Publishes what is due at `now_ns`: gaps whose time is over, a source that takes over. Of a long gap a
    /// part ([`EXPIRE_MAX`](super::staging::EXPIRE_MAX) positions); the deadline of the rest has then passed.
    pub fn expire(&mut self, view: &RingView<'_>, now_ns: u64) {
        if self.steady.is_some() {
            // Nothing is missing, and nobody waits to take over.
            return;
        }
        self.changed_all();
        self.try_switch(view, now_ns);
        self.staging.expire(view, now_ns);
    }

    /// When [`expire`](Self::expire) has something to do, CLOCK_MONOTONIC in nanoseconds. It may have
    /// nothing to do yet when that time comes; ask again then.
    #[inline]
    pub fn next_deadline(&mut self) -> Option<u64> {
        if self.steady.is_some() {
            return None;
        }
        self.next_due()
    }

    fn next_due(&mut self) -> Option<u64> {
        match (self.staging.next_deadline(), self.switch_due()) {
            (Some(gap), Some(switch)) => Some(gap.min(switch)),
            (gap, switch) => gap.or(switch),
        }
    }

    /// Counts what the next [`flush`](Self::flush) makes visible, so that the figures can be published
    /// before it: a reader then never has more than they tell.
    #[inline]
    pub fn tally(&mut self) {
        self.tally_positions();
        self.tally_use();
    }

    /// The one half of [`tally`](Self::tally): what became of positions.
    #[inline]
    pub fn tally_positions(&mut self) {
        if self.staging.breaks() != (0, 0) {
            self.tally_breaks();
        }
        add(&mut self.counters.published, self.staging.take_published());
    }

    #[inline(never)]
    fn tally_breaks(&mut self) {
        let (lost_positions, epochs) = self.staging.take_breaks();
        self.changed.counters = Changed::Anything;
        add(&mut self.counters.gap_positions, lost_positions);
        add(&mut self.counters.epochs, epochs);
    }

    /// The other half: how many positions are in use. Changes nothing unless [`is_fuller`](Self::is_fuller).
    #[inline]
    pub fn tally_use(&mut self) {
        self.counters.high_watermark = self.counters.high_watermark.max(self.used());
    }

    /// Positions that a reliable reader may still be reading, or are being written; 0 without one.
    #[inline]
    fn used(&self) -> u64 {
        self.room().map_or(0, |room| u64::from(self.slot_count).saturating_sub(room))
    }

    /// Whether more positions are in use than ever before, as far as the tails that were looked at tell.
    #[inline]
    pub fn is_fuller(&self) -> bool {
        self.used() > self.counters.high_watermark
    }

    /// The first position that takes more into use than ever before, as far as the tails that were looked at
    /// tell: from there on [`is_fuller`](Self::is_fuller). `None`: there is none.
    #[inline]
    pub fn fuller_at(&self) -> Option<u64> {
        let filled = self.counters.high_watermark.wrapping_sub(u64::from(self.slot_count));
        Some(self.limit?.wrapping_add(filled))
    }

    /// Makes everything placed so far visible and accounts for readers that were overrun. Returns
    /// whether readers have something new.
    pub fn flush(&mut self, view: &RingView<'_>, now_ns: u64) -> bool {
        self.tally();
        self.show(view, now_ns)
    }

    /// [`flush`](Self::flush) where nothing came since [`tally`](Self::tally).
    #[inline]
    pub fn show(&mut self, view: &RingView<'_>, now_ns: u64) -> bool {
        let news = self.staging.publish(view);
        if self.readers.is_full(self.staging.claim(), self.slot_count) {
            self.account_for_readers(now_ns);
        }
        news
    }

    /// [`show`](Self::show) after [`take_and_tell`](Self::take_and_tell), where no reader is a whole ring behind.
    #[inline(always)]
    pub fn show_next(&mut self, view: &RingView<'_>) {
        self.staging.publish(view);
    }

    /// Readers that were overrun, and those that have kept the ring full for too long.
    #[inline(never)]
    fn account_for_readers(&mut self, now_ns: u64) {
        let claim = self.staging.claim();
        self.readers.lap(claim, self.slot_count);
        let demoted =
            self.readers.demote_stalled(now_ns, self.config.stall_ns, claim, self.slot_count);
        self.readers.refresh();
        if demoted > 0 {
            self.changed.counters = Changed::Anything;
            add(&mut self.counters.readers_demoted, u64::from(demoted));
        }
    }

    /// Gives up a part of the gaps, as [`expire`](Self::expire) does, whatever their deadlines. Returns whether
    /// there is more. Comes before [`finish`](Self::finish) where that must not take long.
    pub fn give_up(&mut self, view: &RingView<'_>) -> bool {
        self.changed_all();
        self.staging.expire(view, u64::MAX);
        self.staging.next_deadline().is_some()
    }

    /// Ends the stream: gaps are given up, held packets counted. `flush` follows.
    pub fn finish(&mut self, view: &RingView<'_>) {
        self.changed_all();
        self.drop_candidate();
        self.staging.settle_all(view);
    }

    /// Next position to publish.
    pub fn head(&self) -> u64 {
        self.staging.head()
    }

    /// One more than the highest position being written.
    pub fn claim(&self) -> u64 {
        self.staging.claim()
    }

    /// The widest run of positions that may wait for a missing one.
    pub fn window(&self) -> u32 {
        self.staging.window()
    }

    /// The stream's counters now.
    pub fn counters(&self, now_ns: u64) -> StreamCounters {
        let expected = self.expected();
        StreamCounters {
            staged: self.staging.staged().wrapping_add(self.hold.len() as u64),
            expected,
            lost: expected.saturating_sub(self.counters.unique),
            recovered: self.alone().saturating_sub(self.recovered_before),
            sources: self.table.used() as u64,
            readers: self.readers.count() as u64,
            updated_ns: now_ns,
            ..self.counters
        }
    }

    pub(super) fn changed_all(&mut self) {
        self.disturb();
        self.changed = Changes::ALL;
    }

    /// Whether everything is published as it is, but for positions that are in use.
    #[inline(always)]
    pub(super) fn is_published(&self) -> bool {
        self.changed == Changes::NONE && self.table.is_published()
    }

    #[inline]
    pub(super) fn expected(&self) -> u64 {
        if self.followed.is_some() {
            self.run.expected()
        } else {
            self.counters.expected
        }
    }

    /// Publishes the figures as they are now, as far as they changed since the last time.
    #[inline(always)]
    pub fn publish_figures(&mut self, to: &impl FigureBlocks, now_ns: u64) {
        let changed = core::mem::replace(&mut self.changed, Changes::NONE);
        let legs = usize::from(self.config.legs);
        match changed.counters {
            Changed::Anything => self.publish_counters(to, now_ns),
            _ => publish_plain_counters(&to.counters(), &self.counters, self.expected(), now_ns),
        }
        match changed.legs {
            Changed::Nothing => {}
            Changed::Plain if legs == 1 => self.publish_plain_leg(to),
            Changed::Plain => {}
            Changed::Anything => self.publish_legs(to),
        }
        self.table.publish(to);
    }

    #[inline(never)]
    fn publish_counters(&self, to: &impl FigureBlocks, now_ns: u64) {
        to.counters().publish(&self.counters(now_ns).to_words());
    }

    #[inline(never)]
    fn publish_legs(&self, to: &impl FigureBlocks) {
        for leg in 0..usize::from(self.config.legs) {
            to.leg(leg).publish(&self.leg_figures(leg).to_words());
        }
    }

    /// Of a stream with one leg.
    #[inline]
    fn publish_plain_leg(&self, to: &impl FigureBlocks) {
        let [leg, ..] = &self.legs;
        let source = self.table.get(leg.source).filter(|_| self.config.order.is_some());
        let (expected, jitter_q4_ns) = match source {
            Some(entry) => (entry.source.expected(), entry.source.jitter().q4_ns),
            None => (self.counters.expected, leg.figures.jitter_q4_ns),
        };
        publish_plain_leg(&to.leg(0), &leg.figures, expected, jitter_q4_ns);
    }

    fn alone(&self) -> u64 {
        (0..LEGS_MAX).fold(0, |sum: u64, leg| sum.wrapping_add(self.staging.alone(leg)))
    }

    /// Sets the stream's counters to zero; those of legs and sources stay. Returns whether it did: not
    /// while packets are held back, which are in the books already.
    pub fn reset_counters(&mut self) -> bool {
        if self.staging.staged() != 0 || !self.hold.is_empty() {
            return false;
        }
        self.changed_all();
        self.counters = StreamCounters::default();
        self.run.prior = self.run.prior.wrapping_sub(self.run.expected());
        self.recovered_before = self.alone();
        true
    }

    /// The counters that the engine keeps: those of sockets, wake-ups and simulated bursts.
    pub fn counters_mut(&mut self) -> &mut StreamCounters {
        self.changed.counters = Changed::Anything;
        &mut self.counters
    }

    /// So many packets came coalesced with others.
    #[inline]
    pub fn count_coalesced(&mut self, count: u64) {
        add(&mut self.counters.coalesced, count);
        self.changed = self.changed.and_plain();
    }

    /// A reader was woken.
    #[inline]
    pub fn count_wakeup(&mut self) {
        bump(&mut self.counters.wakeups);
        self.changed.counters = self.changed.counters.max(Changed::Plain);
    }

    /// The counters that are kept: of those that [`counters`](Self::counters) derives, nothing.
    #[inline]
    pub fn counted(&self) -> &StreamCounters {
        &self.counters
    }

    /// Figures of `leg`.
    pub fn leg_figures(&self, leg: usize) -> LegFigures {
        let Some(state) = self.legs.get(leg) else { return LegFigures::default() };
        let mut figures = state.figures;
        figures.source = u64::from(state.source);
        figures.recovered = self.staging.alone(leg);
        match self.table.get(state.source).filter(|_| self.config.order.is_some()) {
            Some(entry) => {
                let source = entry.source.figures();
                figures.expected = source.expected;
                figures.lost = source.lost;
                figures.reordered = source.reordered;
                figures.jitter_q4_ns = source.jitter_q4_ns;
            }
            None => {
                figures.expected = self.counters.expected;
                figures.lost = self.counters.expected.saturating_sub(self.counters.unique);
                figures.reordered = self.counters.reordered;
            }
        }
        figures
    }

    /// The figures of `leg` that the engine keeps: those of its socket.
    pub fn leg_figures_mut(&mut self, leg: usize) -> Option<&mut LegFigures> {
        self.changed.legs = Changed::Anything;
        self.legs.get_mut(leg).map(|leg| &mut leg.figures)
    }

    /// Figures of the source at `at` of the table; all zero when there is none.
    pub fn source_figures(&self, at: u16) -> SourceFigures {
        self.table.get(at).map_or(SourceFigures::default(), SourceEntry::figures)
    }

    /// Takes on `leg` only packets from `source`, as in [`Flow::source`]. Before the first packet.
    pub fn set_leg_source(&mut self, leg: usize, source: [u8; 16]) {
        self.disturb();
        if let Some(place) = self.config.filter.sources.get_mut(leg) {
            *place = Some(source);
        }
    }

    /// Sets the RTP clock rate of a payload type, Hz; 0: not known. Before the first packet.
    pub fn set_clock_rate(&mut self, payload_type: u8, hz: u32) {
        if let Some(place) = self.config.clock_rates.get_mut(usize::from(payload_type)) {
            *place = hz;
        }
    }

    /// Changes for how long a reliable reader of another process may hold the ring full, nanoseconds.
    pub fn set_stall_ns(&mut self, stall_ns: u64) {
        self.config.stall_ns = stall_ns;
    }

    /// Changes how long gaps stay open, nanoseconds.
    pub fn set_reorder_ns(&mut self, reorder_ns: u64) {
        self.staging.set_reorder_ns(reorder_ns);
    }
}

/// The figures of a source that a stream sums up.
struct Totals {
    unique: u64,
    bytes: u64,
    expected: u64,
    reordered: u64,
    restarts: u64,
}

impl Totals {
    #[inline]
    fn of(entry: &SourceEntry) -> Self {
        let source = &entry.source;
        Self {
            unique: source.unique(),
            bytes: source.bytes(),
            expected: source.expected(),
            reordered: source.reordered(),
            restarts: source.restarts(),
        }
    }
}

#[inline]
pub(super) fn bump(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

#[inline]
pub(super) fn add(counter: &mut u64, amount: u64) {
    *counter = counter.wrapping_add(amount);
}

pub(super) fn seen(held: &Held) -> Seen {
    Seen {
        sequence: held.descriptor.sequence as u16,
        timestamp: held.descriptor.rtp_timestamp,
        arrival_ns: held.arrival_ns,
        payload_len: held.descriptor.payload_len,
        payload_type: held.descriptor.payload_type,
        marker: held.descriptor.has(flag::MARKER),
    }
}

#[inline]
fn describe(packet: &Packet<'_>, header: &RtpHeader) -> Descriptor {
    let mut flags = 0;
    if header.marker {
        flags |= flag::MARKER;
    }
    if packet.coalesced {
        flags |= flag::COALESCED_TIME;
    }
    Descriptor {
        sequence: u64::from(header.sequence),
        time_ns: packet.time_ns,
        slot: packet.slot,
        len: packet.len,
        rtp_timestamp: header.timestamp,
        ssrc: header.ssrc,
        count: 0,
        source: SOURCE_NONE,
        flags,
        payload_offset: header.payload_offset as u16,
        payload_type: header.payload_type,
        leg: packet.leg,
        payload_len: header.payload_len as u32,
        reserved: [0; 2],
    }
}

fn sample_skew(figures: &mut LegFigures, skew_ns: i64) {
    let first = figures.skew_count == 0;
    bump(&mut figures.skew_count);
    figures.skew_last_ns = skew_ns as u64;
    add(&mut figures.skew_sum_ns, skew_ns as u64);
    if first || skew_ns < figures.skew_min_ns as i64 {
        figures.skew_min_ns = skew_ns as u64;
    }
    if first || skew_ns > figures.skew_max_ns as i64 {
        figures.skew_max_ns = skew_ns as u64;
    }
}
