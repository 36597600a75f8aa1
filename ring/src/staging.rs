//! Which position a packet gets, and when a position is published.
//!
//! What lives here: the producer-private state of every position (present, missing until a deadline,
//! lost), the free slots, epochs, gaps, second copies of redundant legs. What does not: sequence
//! unwrapping ([`super::source`]), which source is followed ([`super::follow`]), counters
//! ([`super::receive`]).
//!
//! # Positions
//!
//! `head..claim` is staged: present packets that wait for a missing one before them. Behind `head`,
//! down to `claim - slot_count`, is history: what was published there decides between a second copy
//! and a late packet, and never the shared ring, which a reader could not change anyway.
//!
//! # Epochs
//!
//! Within an epoch `position = extended sequence + offset`. A gap larger than the window, or packets
//! dropped because the ring was full, change the offset so that the next packet takes the next
//! position, marked DISCONTINUITY with the count of the missing.

use core::ops::DerefMut;

use super::abi::{flag, Descriptor, LEGS_MAX};
use super::producer::Producer;
use super::view::RingView;

/// Signed distance from `b` to `a` on the circle of 64-bit positions.
#[inline]
pub(super) const fn distance(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b) as i64
}

const NO_SLOT: u32 = u32::MAX;

/// Positions that [`Staging::expire`] publishes at a time.
pub const EXPIRE_MAX: u64 = 4_096;

/// What the producer knows about one position. Fill new storage with [`Entry::EMPTY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Arrival of the first copy; of a missing position its deadline. CLOCK_MONOTONIC, nanoseconds.
    time_ns: u64,
    slot: u32,
    state: State,
    /// Bit per leg that brought a copy.
    legs: u8,
    /// Counted as a packet that one leg alone had.
    alone: bool,
}

impl Entry {
    /// A position that was never used.
    pub const EMPTY: Self =
        Self { time_ns: 0, slot: NO_SLOT, state: State::Empty, legs: 0, alone: false };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    /// Staged: nothing here yet.
    Missing,
    /// A packet, staged or published.
    Present,
    /// Published as LOST.
    Lost,
    /// Published as LOST, and the packet came after that.
    Late,
}

/// A stack of slots that hold nothing.
#[derive(Debug)]
pub struct FreeSlots<S> {
    stack: S,
    len: usize,
}

impl<S: DerefMut<Target = [u32]>> FreeSlots<S> {
    /// All slots of a ring are free: as many as `stack` is long.
    pub fn new(mut stack: S) -> Self {
        let len = stack.len();
        // The lowest on top, so that neighbours are handed out in order.
        for (slot, place) in stack.iter_mut().rev().enumerate() {
            *place = slot as u32;
        }
        Self { stack, len }
    }

    /// Number of free slots.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no slot is free.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes one.
    #[inline]
    pub fn pop(&mut self) -> Option<u32> {
        let top = self.len.checked_sub(1)?;
        let slot = self.stack.get(top).copied()?;
        self.len = top;
        Some(slot)
    }

    /// Gives back those that entries have.
    fn take_back(&mut self, entries: &mut [Entry]) {
        let room = self.stack.get_mut(self.len..).unwrap_or_default();
        // Nearly all have one.
        let mut done = 0_usize;
        for (entry, place) in entries.iter_mut().zip(room) {
            if entry.slot == NO_SLOT {
                break;
            }
            *place = core::mem::replace(&mut entry.slot, NO_SLOT);
            done = done.wrapping_add(1);
        }
        self.len = self.len.wrapping_add(done);
        for entry in entries.get_mut(done..).unwrap_or_default() {
            let slot = core::mem::replace(&mut entry.slot, NO_SLOT);
            if slot != NO_SLOT {
                self.push(slot);
            }
        }
    }

    /// Gives one back.
    #[inline]
    pub fn push(&mut self, slot: u32) {
        if let Some(place) = self.stack.get_mut(self.len) {
            *place = slot;
            self.len = self.len.wrapping_add(1);
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It has a position, and the ring its slot.
    New {
        /// The other leg had passed it by: this one alone has it.
        recovered: bool,
    },
    /// A copy of it came before.
    Duplicate {
        /// Arrival of the first copy, when another leg brought that one and this leg none yet.
        first_ns: Option<u64>,
    },
    /// Its position was published as LOST, or lies before this epoch.
    Late {
        /// This is known to be its first copy.
        first: bool,
    },
    /// No position is free.
    RingFull,
}

/// What was published and is not counted yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Packets published.
    published: u64,
    /// Positions published as LOST.
    lost_positions: u64,
    /// Epochs begun.
    epochs: u64,
}

/// How long a gap stays open, and how wide it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// A missing position is given up this long after the first packet beyond it, nanoseconds.
    pub reorder_ns: u64,
    /// Positions that may be staged, at most half of the ring's.
    pub window: u32,
}

/// The numbering of a run of positions.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    offset: u64,
    /// First position.
    start: u64,
}

/// Positions that are taken one after the other, which are not all accounted for before [`end`](Self::end).
#[derive(Debug)]
pub(super) struct Row<'a> {
    start: u64,
    producer: &'a mut Producer,
    entries: &'a mut [Entry],
    free: &'a mut [u32],
    free_len: &'a mut usize,
    head: &'a mut u64,
    tally: &'a mut Tally,
    time_ns: &'a mut u64,
}

impl Row<'_> {
    /// Whether there are no positions at all: asked once, it need not be for each.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The position that comes next.
    #[inline(always)]
    pub(super) fn next(&self) -> u64 {
        self.producer.claim()
    }

    /// Takes a free slot.
    #[inline(always)]
    pub(super) fn take_slot(&mut self) -> Option<u32> {
        // Where none is free there is no such place.
        let top = self.free_len.wrapping_sub(1);
        let slot = self.free.get(top).copied()?;
        *self.free_len = top;
        Some(slot)
    }

    /// Gives one back.
    #[inline(always)]
    pub(super) fn give_back(&mut self, slot: u32) {
        if let Some(place) = self.free.get_mut(*self.free_len) {
            *place = slot;
            *self.free_len = self.free_len.wrapping_add(1);
        }
    }

    /// Takes the next position.
    #[inline(always)]
    pub(super) fn append(&mut self, view: &RingView<'_>, descriptor: &Descriptor, arrival_ns: u64) {
        let mask = self.entries.len().wrapping_sub(1);
        let position = self.producer.claim_next(view);
        let Some(entry) = self.entries.get_mut(position as usize & mask) else { return };
        let present = Entry {
            time_ns: arrival_ns,
            slot: descriptor.slot,
            state: State::Present,
            legs: 1_u8.wrapping_shl(u32::from(descriptor.leg)),
            alone: false,
        };
        let old = core::mem::replace(entry, present);
        if old.slot != NO_SLOT {
            self.give_back(old.slot);
        }
        self.producer.write(view, position, descriptor);
    }

    /// Accounts for them. `time_ns`: CLOCK_TAI of the last one.
    #[inline(always)]
    pub(super) fn end(self, time_ns: u64) {
        let count = self.producer.claim().wrapping_sub(self.start);
        self.tally.published = self.tally.published.wrapping_add(count);
        self.end_counted(time_ns);
    }

    /// The same where somebody else counts them as published.
    #[inline(always)]
    pub(super) fn end_counted(self, time_ns: u64) {
        *self.time_ns = time_ns;
        *self.head = self.producer.claim();
    }
}

/// Positions of one receive ring. `E` holds an [`Entry`] per position, `S` a word per slot.
#[derive(Debug)]
pub struct Staging<E, S> {
    producer: Producer,
    entries: E,
    free: FreeSlots<S>,
    /// What was published before this has given its slot back, or lies more than a ring behind.
    freed: u64,
    order: Order,
    head: u64,
    /// Present in `head..claim`.
    staged: u64,
    epoch: Option<Epoch>,
    /// The epoch before, when both number the same sequence (a gap lies between them).
    before: Option<Epoch>,
    /// Packets were dropped for want of room since the last one was placed.
    overflow: bool,
    /// Missing in arrival order since the last one was placed.
    dropped: u32,
    legs: u8,
    /// Per leg: extended sequence up to which its absence has been accounted for.
    swept: [u64; LEGS_MAX],
    /// Per leg: packets it alone had.
    alone: [u64; LEGS_MAX],
    tally: Tally,
    /// CLOCK_TAI of the latest packet: the time that LOST positions carry.
    time_ns: u64,
    /// SSRC that LOST positions carry.
    ssrc: u32,
}

impl<E, S> Staging<E, S>
where
    E: DerefMut<Target = [Entry]>,
    S: DerefMut<Target = [u32]>,
{
    /// A ring whose first position is `start`. `entries` has one element per position (a power of
    /// two), `slots` one per slot; `legs` is 1 or 2.
    pub fn new(mut entries: E, slots: S, start: u64, order: Order, legs: u8) -> Self {
        entries.fill(Entry::EMPTY);
        let half = (entries.len() / 2) as u32;
        Self {
            producer: Producer::new(start),
            free: FreeSlots::new(slots),
            freed: start,
            order: Order { window: order.window.clamp(1, half.max(1)), ..order },
            head: start,
            staged: 0,
            epoch: None,
            before: None,
            overflow: false,
            dropped: 0,
            legs,
            swept: [0; LEGS_MAX],
            alone: [0; LEGS_MAX],
            tally: Tally::default(),
            time_ns: 0,
            ssrc: 0,
            entries,
        }
    }

    /// Next position to publish. What [`publish`](Self::publish) has made visible may be less.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// One more than the highest position being written.
    pub fn claim(&self) -> u64 {
        self.producer.claim()
    }

    /// Packets that wait for a missing one before them.
    pub fn staged(&self) -> u64 {
        self.staged
    }

    /// The free slots.
    pub fn free(&mut self) -> &mut FreeSlots<S> {
        &mut self.free
    }

    /// Every reader has released what was published before `tail`: its slots are free, and the next packets
    /// go to memory that was used just now. Without this, a slot is free a whole ring later.
    pub fn release(&mut self, tail: u64) {
        let oldest = self.claim().wrapping_sub(self.slot_count());
        if distance(oldest, self.freed) > 0 {
            self.freed = oldest;
        }
        // Nobody can have released what is not visible yet.
        let published = self.producer.head();
        let end = if distance(tail, published) > 0 { published } else { tail };
        let count = usize::try_from(distance(end, self.freed)).unwrap_or(0);
        if count == 0 {
            return;
        }
        // No more than all of them (`oldest`), in two pieces at most.
        let start = self.freed as usize & self.entries.len().wrapping_sub(1);
        let (before, from) = self.entries.split_at_mut_checked(start).unwrap_or_default();
        let over = count.saturating_sub(from.len());
        let here = from.len().min(count);
        self.free.take_back(from.get_mut(..here).unwrap_or_default());
        self.free.take_back(before.get_mut(..over).unwrap_or_default());
        self.freed = end;
    }

    /// Packets that `leg` alone had. Falls again when the other leg's copy comes after all.
    pub fn alone(&self, leg: usize) -> u64 {
        self.alone.get(leg).copied().unwrap_or(0)
    }

    /// Changes how long gaps stay open. Gaps already open keep their deadline.
    pub fn set_reorder_ns(&mut self, reorder_ns: u64) {
        self.order.reorder_ns = reorder_ns;
    }

    /// The widest run of positions that may be staged.
    pub fn window(&self) -> u32 {
        self.order.window
    }

    /// LOST positions and epochs since the last call of [`take_breaks`](Self::take_breaks).
    #[inline]
    pub(super) fn breaks(&self) -> (u64, u64) {
        (self.tally.lost_positions, self.tally.epochs)
    }

    /// Whether everything placed is before `head`: nothing is missing, nothing waits.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        self.producer.claim() == self.head
    }

    /// Packets published since the last call.
    #[inline]
    pub fn take_published(&mut self) -> u64 {
        core::mem::take(&mut self.tally.published)
    }

    /// Positions published as LOST, and epochs begun, since the last call.
    pub fn take_breaks(&mut self) -> (u64, u64) {
        let Tally { lost_positions, epochs, .. } = &mut self.tally;
        (core::mem::take(lost_positions), core::mem::take(epochs))
    }

    #[inline]
    fn slot_count(&self) -> u64 {
        self.entries.len() as u64
    }

    #[inline]
    fn entry(&mut self, position: u64) -> Option<&mut Entry> {
        let mask = self.entries.len().wrapping_sub(1);
        self.entries.get_mut(position as usize & mask)
    }

    /// Whether the state of `position` is still known.
    fn remembers(&self, position: u64) -> bool {
        let age = distance(self.claim(), position);
        age > 0 && age as u64 <= self.slot_count()
    }

    /// Claims positions up to and including `position`; those skipped are missing until
    /// `deadline_ns`.
    fn extend(&mut self, view: &RingView<'_>, position: u64, deadline_ns: u64) {
        let mut next = self.claim();
        let redundant = self.legs > 1;
        while distance(position, next) >= 0 {
            let missing = Entry { time_ns: deadline_ns, state: State::Missing, ..Entry::EMPTY };
            let Some(entry) = self.entry(next) else { return };
            let old = core::mem::replace(entry, missing);
            if old.slot != NO_SLOT {
                self.free.push(old.slot);
            }
            // The other leg lags by a whole ring: it will not bring this one any more.
            if redundant && old.state == State::Present && old.legs.is_power_of_two() && !old.alone
            {
                self.count_alone(old.legs);
            }
            next = next.wrapping_add(1);
        }
        self.producer.claim_up_to(view, position);
    }

    fn count_alone(&mut self, legs: u8) {
        if let Some(alone) = self.alone.get_mut(legs.trailing_zeros() as usize) {
            *alone = alone.wrapping_add(1);
        }
    }

    fn fill(&mut self, view: &RingView<'_>, position: u64, descriptor: &Descriptor, arrival: u64) {
        self.producer.write(view, position, descriptor);
        let legs = 1_u8.wrapping_shl(u32::from(descriptor.leg));
        let alone = descriptor.has(flag::RECOVERED);
        if let Some(entry) = self.entry(position) {
            *entry = Entry {
                time_ns: arrival,
                slot: descriptor.slot,
                state: State::Present,
                legs,
                alone,
            };
        }
        if alone {
            self.count_alone(legs);
        }
        self.staged = self.staged.wrapping_add(1);
    }

    /// Publishes the position at `head`, whatever it holds.
    fn pass(&mut self, view: &RingView<'_>) {
        let position = self.head;
        let Some(entry) = self.entry(position) else { return };
        if entry.state == State::Present {
            self.staged = self.staged.wrapping_sub(1);
            self.tally.published = self.tally.published.wrapping_add(1);
        } else {
            entry.state = State::Lost;
            let offset = self.epoch.map_or(0, |epoch| epoch.offset);
            let lost = Descriptor {
                sequence: position.wrapping_sub(offset),
                time_ns: self.time_ns,
                ssrc: self.ssrc,
                count: 1,
                flags: flag::LOST,
                ..Descriptor::default()
            };
            self.producer.write(view, position, &lost);
            self.tally.lost_positions = self.tally.lost_positions.wrapping_add(1);
        }
        self.head = position.wrapping_add(1);
    }

    /// Moves `head` over what is present, or missing with its deadline at or before `now_ns`: at most `most`
    /// positions.
    fn settle(&mut self, view: &RingView<'_>, now_ns: Option<u64>, most: u64) {
        for _ in 0..most {
            if distance(self.claim(), self.head) <= 0 {
                return;
            }
            let head = self.head;
            let Some(entry) = self.entry(head) else { return };
            let due = match entry.state {
                State::Missing => now_ns.is_some_and(|now| entry.time_ns <= now),
                _ => true,
            };
            if !due {
                return;
            }
            self.pass(view);
        }
    }

    /// Gives up every gap and moves `head` to `claim`.
    pub fn settle_all(&mut self, view: &RingView<'_>) {
        while distance(self.claim(), self.head) > 0 {
            self.pass(view);
        }
    }

    /// Publishes what is due at `now_ns`, gaps whose deadline has passed included: [`EXPIRE_MAX`] positions
    /// at a time. If there are more, [`next_deadline`](Self::next_deadline) has passed.
    pub fn expire(&mut self, view: &RingView<'_>, now_ns: u64) {
        self.settle(view, Some(now_ns), EXPIRE_MAX);
    }

    /// When the first gap is to be given up; `None` while there is none.
    pub fn next_deadline(&mut self) -> Option<u64> {
        if distance(self.claim(), self.head) <= 0 {
            return None;
        }
        let head = self.head;
        self.entry(head).map(|entry| entry.time_ns)
    }

    /// Makes everything before `head` visible to readers. Returns whether that is more than before.
    pub fn publish(&mut self, view: &RingView<'_>) -> bool {
        let news = self.producer.head() != self.head;
        if news {
            self.producer.publish(view, self.head);
        }
        news
    }

    /// Whether a packet that takes the next position of a ring of one leg needs nothing but what
    /// [`append_plainly`](Self::append_plainly) does, if there is [room](Self::has_room): nothing waits or was
    /// dropped.
    pub(super) fn is_plain(&self) -> bool {
        self.is_settled() && self.dropped == 0 && !self.overflow && self.legs == 1
    }

    /// Whether the next position may be written.
    #[inline]
    pub(super) fn has_room(&self, limit: Option<u64>) -> bool {
        limit.is_none_or(|limit| distance(limit, self.claim()) > 0)
    }

    /// Whether the next position is that of `sequence`.
    pub(super) fn is_next(&self, sequence: u64) -> bool {
        self.epoch.is_some_and(|epoch| sequence.wrapping_add(epoch.offset) == self.claim())
    }

    /// [`append`](Self::append), or [`place`](Self::place) at the next position, where
    /// [`is_plain`](Self::is_plain).
    #[inline(always)]
    pub(super) fn append_plainly(
        &mut self,
        view: &RingView<'_>,
        descriptor: &Descriptor,
        arrival_ns: u64,
    ) {
        let mut row = self.row();
        row.append(view, descriptor, arrival_ns);
        row.end(descriptor.time_ns);
    }

    /// Positions that are taken one after the other, each as [`append_plainly`](Self::append_plainly) takes one.
    #[inline(always)]
    pub(super) fn row(&mut self) -> Row<'_> {
        Row {
            start: self.producer.claim(),
            producer: &mut self.producer,
            entries: &mut self.entries,
            free: &mut self.free.stack,
            free_len: &mut self.free.len,
            head: &mut self.head,
            tally: &mut self.tally,
            time_ns: &mut self.time_ns,
        }
    }

    /// Places a packet of a ring in arrival order. `limit` is the first position that may not be
    /// written.
    pub fn append(
        &mut self,
        view: &RingView<'_>,
        mut descriptor: Descriptor,
        arrival_ns: u64,
        limit: Option<u64>,
    ) -> Placement {
        let position = self.claim();
        if limit.is_some_and(|limit| distance(limit, position) <= 0) {
            self.dropped = self.dropped.saturating_add(1);
            return Placement::RingFull;
        }
        if self.dropped > 0 {
            descriptor.flags |= flag::DISCONTINUITY | flag::RING_FULL;
            descriptor.count = descriptor.count.saturating_add(self.dropped);
            self.dropped = 0;
        }
        self.extend(view, position, 0);
        self.fill(view, position, &descriptor, arrival_ns);
        self.settle(view, None, u64::MAX);
        Placement::New { recovered: false }
    }

    /// Begins an epoch: the packet with extended sequence `sequence` takes the next position, and
    /// nothing before it is known. What is staged is published first.
    pub fn begin(&mut self, view: &RingView<'_>, sequence: u64, ssrc: u32) {
        self.settle_all(view);
        let start = self.claim();
        self.epoch = Some(Epoch { offset: start.wrapping_sub(sequence), start });
        self.before = None;
        self.ssrc = ssrc;
        self.swept = [sequence.wrapping_sub(1); LEGS_MAX];
        self.tally.epochs = self.tally.epochs.wrapping_add(1);
    }

    /// Places a packet by its extended sequence number. `limit` is the first position that may not
    /// be written; `silent` tells that the other leg brings nothing at present.
    pub fn place(
        &mut self,
        view: &RingView<'_>,
        mut descriptor: Descriptor,
        arrival_ns: u64,
        limit: Option<u64>,
        silent: bool,
    ) -> Placement {
        let sequence = descriptor.sequence;
        let Some(epoch) = self.epoch else { return Placement::Late { first: false } };
        let position = sequence.wrapping_add(epoch.offset);
        self.time_ns = descriptor.time_ns;
        let placement = if distance(position, epoch.start) < 0 {
            self.second_copy(self.position_before(sequence, epoch), descriptor.leg)
        } else if distance(position, self.claim()) < 0 {
            if self.is_missing(position) {
                let recovered = self.other_passed(descriptor.leg, sequence, silent);
                if recovered {
                    descriptor.flags |= flag::RECOVERED;
                }
                self.fill(view, position, &descriptor, arrival_ns);
                Placement::New { recovered }
            } else {
                self.second_copy(Some(position), descriptor.leg)
            }
        } else {
            self.advance(view, descriptor, arrival_ns, limit, silent)
        };
        if self.legs > 1 && placement != Placement::RingFull {
            self.sweep(descriptor.leg, sequence.wrapping_sub(1));
            self.mark_swept(descriptor.leg, sequence);
            if silent {
                self.sweep(descriptor.leg ^ 1, sequence);
            }
        }
        self.settle(view, None, u64::MAX);
        placement
    }

    /// Places a packet at or beyond `claim`.
    fn advance(
        &mut self,
        view: &RingView<'_>,
        mut descriptor: Descriptor,
        arrival_ns: u64,
        limit: Option<u64>,
        silent: bool,
    ) -> Placement {
        let Some(epoch) = self.epoch else { return Placement::RingFull };
        let window = u64::from(self.order.window);
        let next = self.claim();
        let mut position = descriptor.sequence.wrapping_add(epoch.offset);
        let missing = position.wrapping_sub(next);
        let jump = missing > 0 && (self.overflow || missing > window);
        let target = if jump { next } else { position };
        if limit.is_some_and(|limit| distance(limit, target) <= 0) {
            self.overflow = true;
            return Placement::RingFull;
        }
        if jump {
            self.settle_all(view);
            descriptor.flags |= flag::DISCONTINUITY;
            if self.overflow {
                descriptor.flags |= flag::RING_FULL;
            }
            descriptor.count = u32::try_from(missing).unwrap_or(u32::MAX);
            self.before = Some(epoch);
            self.epoch = Some(Epoch { offset: epoch.offset.wrapping_sub(missing), start: next });
            self.tally.epochs = self.tally.epochs.wrapping_add(1);
            position = next;
        }
        self.overflow = false;
        while position.wrapping_sub(self.head) >= window {
            if distance(self.claim(), self.head) <= 0 {
                break;
            }
            self.pass(view);
        }
        let recovered = self.other_passed(descriptor.leg, descriptor.sequence, silent);
        if recovered {
            descriptor.flags |= flag::RECOVERED;
        }
        self.extend(view, position, arrival_ns.saturating_add(self.order.reorder_ns));
        self.fill(view, position, &descriptor, arrival_ns);
        Placement::New { recovered }
    }

    /// The position that `sequence` had in the epoch before, if it had one.
    fn position_before(&self, sequence: u64, epoch: Epoch) -> Option<u64> {
        let before = self.before?;
        let position = sequence.wrapping_add(before.offset);
        let inside = distance(position, before.start) >= 0 && distance(position, epoch.start) < 0;
        inside.then_some(position)
    }

    fn is_missing(&mut self, position: u64) -> bool {
        self.entry(position).is_some_and(|entry| entry.state == State::Missing)
    }

    /// A packet whose position is taken, given up or forgotten.
    fn second_copy(&mut self, position: Option<u64>, leg: u8) -> Placement {
        let forgotten = Placement::Late { first: false };
        let Some(position) = position.filter(|position| self.remembers(*position)) else {
            return forgotten;
        };
        let bit = 1_u8.wrapping_shl(u32::from(leg));
        let Some(entry) = self.entry(position) else { return forgotten };
        match entry.state {
            State::Lost => {
                entry.state = State::Late;
                entry.legs = bit;
                Placement::Late { first: true }
            }
            State::Present | State::Late => {
                let had = entry.legs;
                entry.legs |= bit;
                let first_ns =
                    (entry.state == State::Present && had & bit == 0).then_some(entry.time_ns);
                if first_ns.is_some() && core::mem::take(&mut entry.alone) {
                    if let Some(alone) = self.alone.get_mut(had.trailing_zeros() as usize) {
                        *alone = alone.saturating_sub(1);
                    }
                }
                Placement::Duplicate { first_ns }
            }
            State::Empty | State::Missing => forgotten,
        }
    }

    /// Whether the leg other than `leg` will not bring `sequence`: it is past it, or `silent`.
    fn other_passed(&self, leg: u8, sequence: u64, silent: bool) -> bool {
        self.legs > 1
            && (silent
                || self
                    .swept
                    .get(usize::from(leg ^ 1))
                    .is_some_and(|swept| distance(*swept, sequence) >= 0))
    }

    fn mark_swept(&mut self, leg: u8, sequence: u64) {
        if let Some(swept) = self.swept.get_mut(usize::from(leg)) {
            if distance(sequence, *swept) > 0 {
                *swept = sequence;
            }
        }
    }

    /// Accounts for what `leg` did not bring up to and including `sequence`: what is present of it
    /// the other leg alone had.
    fn sweep(&mut self, leg: u8, sequence: u64) {
        let Some(epoch) = self.epoch else { return };
        let Some(swept) = self.swept.get(usize::from(leg)).copied() else { return };
        let known = self.claim().wrapping_sub(self.slot_count()).wrapping_sub(epoch.offset);
        let start = epoch.start.wrapping_sub(epoch.offset);
        let mut next = swept.wrapping_add(1);
        for bound in [known, start] {
            if distance(bound, next) > 0 {
                next = bound;
            }
        }
        let other = 1_u8.wrapping_shl(u32::from(leg ^ 1));
        while distance(sequence, next) >= 0 {
            let position = next.wrapping_add(epoch.offset);
            if distance(position, self.claim()) >= 0 {
                break;
            }
            let Some(entry) = self.entry(position) else { break };
            if entry.state == State::Present && entry.legs == other && !entry.alone {
                entry.alone = true;
                self.count_alone(other);
            }
            next = next.wrapping_add(1);
        }
        self.mark_swept(leg, sequence);
    }
}
