//! The producer's side of the ring protocol: publishing, and what it knows of its readers.
//!
//! What lives here: the order in which claim, descriptors and head are written, the readers'
//! accepted tails, overflow, lapping, demotion and waking. What does not: which packet goes where
//! ([`super::staging`]), the reader's side ([`super::reader`]), and shared memory: values that users
//! wrote are loaded once by whoever maps them and passed in.
//!
//! A reader's tail is believed only if it moves forward and not past `head`. Whatever it says, the
//! producer's own positions and what it writes where do not depend on it, except that a reliable
//! reader that does not move makes the ring full.

use super::abi::{Descriptor, ReaderStatus, READERS_MAX};
use super::atomic::{fence_full, fence_write};
use super::view::RingView;

/// The positions that only the producer moves.
#[derive(Debug)]
pub struct Producer {
    head: u64,
    claim: u64,
}

impl Producer {
    /// A ring whose first position is `start`.
    pub const fn new(start: u64) -> Self {
        Self { head: start, claim: start }
    }

    /// Next position to publish.
    #[inline]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// One more than the highest position being written.
    #[inline]
    pub const fn claim(&self) -> u64 {
        self.claim
    }

    /// Tells readers that everything up to and including `position` is being written, which takes
    /// what stands a ring before it from lossy readers. Comes before any write to those positions'
    /// descriptors, and before the slots that held those packets are given to anybody.
    #[inline(always)]
    pub fn claim_up_to(&mut self, view: &RingView<'_>, position: u64) {
        let claim = position.wrapping_add(1);
        if claim.wrapping_sub(self.claim) as i64 > 0 {
            self.claim = claim;
            view.claim.store(claim);
            fence_write();
        }
    }

    /// [`claim_up_to`](Self::claim_up_to) of one position more, which is returned.
    #[inline(always)]
    pub fn claim_next(&mut self, view: &RingView<'_>) -> u64 {
        let position = self.claim;
        self.claim = position.wrapping_add(1);
        view.claim.store(self.claim);
        fence_write();
        position
    }

    /// Writes the descriptor of a claimed position.
    #[inline(always)]
    pub fn write(&self, view: &RingView<'_>, position: u64, descriptor: &Descriptor) {
        view.store(position, descriptor);
    }

    /// Makes everything before `head` visible. Readers' `wake_at` is to be loaded after this.
    #[inline]
    pub fn publish(&mut self, view: &RingView<'_>, head: u64) {
        self.head = head;
        view.head.store_release(head);
        // A reader stores wake_at, then looks at head; we store head, then look at wake_at. With a
        // full fence between, on both sides, one of the two sees the other's store.
        fence_full();
    }
}

/// What a reader may cost the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is overwritten before it has released it: the newest is dropped instead.
    Reliable,
    /// The oldest is overwritten.
    Lossy,
}

#[derive(Clone, Copy, Debug)]
struct Reader {
    active: bool,
    mode: Mode,
    demotable: bool,
    demoted: bool,
    /// What it may still be reading begins here.
    tail: u64,
    /// The last value of its own that was accepted.
    accepted: u64,
    /// The last value that was refused: counted once.
    refused: Option<u64>,
    /// It keeps the ring full.
    full: bool,
    /// Since when it has done so without moving.
    stalled_ns: u64,
    lapped: u64,
    violations: u64,
    /// The wake-up position it was last woken for.
    woken_at: Option<u64>,
    wakeups: u64,
}

const NOBODY: Reader = Reader {
    active: false,
    mode: Mode::Lossy,
    demotable: false,
    demoted: false,
    tail: 0,
    accepted: 0,
    refused: None,
    full: false,
    stalled_ns: 0,
    lapped: 0,
    violations: 0,
    woken_at: None,
    wakeups: 0,
};

/// The first of positions that are less than half the circle apart.
fn slowest(tails: impl Iterator<Item = u64>) -> Option<u64> {
    tails.reduce(
        |slowest, tail| {
            if tail.wrapping_sub(slowest) as i64 >= 0 {
                slowest
            } else {
                tail
            }
        },
    )
}

/// A reader's bit.
fn bit(at: usize) -> u32 {
    1_u32.wrapping_shl(at as u32)
}

/// The readers of one ring.
#[derive(Debug)]
pub struct Readers {
    readers: [Reader; READERS_MAX],
    /// No reader stands at this place or beyond: most rings have one or two.
    end: usize,
    /// Bit for each whose status is to be published again.
    changed: u32,
    /// The tail of the slowest, or before it: see [`refresh`](Self::refresh).
    slowest: Option<u64>,
}

impl Readers {
    /// No readers.
    pub const fn new() -> Self {
        Self { readers: [NOBODY; READERS_MAX], end: 0, changed: 0, slowest: None }
    }

    /// Adds a reader that begins at `start`. `demotable`: a reliable one that stalls for too long is
    /// made lossy. `None`: all places are taken.
    pub fn add(&mut self, mode: Mode, demotable: bool, start: u64, now_ns: u64) -> Option<usize> {
        self.add_where(|_| true, mode, demotable, start, now_ns)
    }

    /// As [`add`](Self::add), at the first free place that is `fit`: its control page may still be
    /// somebody else's.
    pub fn add_where(
        &mut self,
        fit: impl Fn(usize) -> bool,
        mode: Mode,
        demotable: bool,
        start: u64,
        now_ns: u64,
    ) -> Option<usize> {
        let mut places = self.readers.iter_mut().enumerate();
        let (at, reader) = places.find(|(at, reader)| !reader.active && fit(*at))?;
        *reader = Reader {
            active: true,
            mode,
            demotable,
            tail: start,
            accepted: start,
            stalled_ns: now_ns,
            ..NOBODY
        };
        self.end = self.end.max(at.wrapping_add(1));
        self.changed |= bit(at);
        Some(at)
    }

    fn active(&self) -> impl Iterator<Item = &Reader> {
        let readers = self.readers.get(..self.end).unwrap_or(&self.readers);
        readers.iter().filter(|reader| reader.active)
    }

    fn active_mut(&mut self) -> impl Iterator<Item = (usize, &mut Reader)> {
        let end = self.end.min(READERS_MAX);
        let readers = self.readers.get_mut(..end).unwrap_or_default();
        (0..READERS_MAX).zip(readers).filter(|(_, reader)| reader.active)
    }

    /// Forgets a reader.
    pub fn remove(&mut self, at: usize) {
        if let Some(reader) = self.readers.get_mut(at) {
            *reader = NOBODY;
            self.changed |= bit(at);
        }
        self.end = self
            .readers
            .iter()
            .rposition(|reader| reader.active)
            .map_or(0, |at| at.wrapping_add(1));
    }

    /// Number of readers.
    pub fn count(&self) -> usize {
        self.active().fold(0, |count: usize, _| count.wrapping_add(1))
    }

    /// The readers whose status changed since this was called last, a bit for each.
    pub fn take_changed(&mut self) -> u32 {
        core::mem::take(&mut self.changed)
    }

    /// Takes a reader's `tail`, loaded once from its control page, if it is true: forward, and not
    /// past `head`. Returns whether it is.
    pub fn observe_tail(&mut self, at: usize, tail: u64, head: u64, now_ns: u64) -> bool {
        let Some(reader) = self.readers.get_mut(at).filter(|reader| reader.active) else {
            return false;
        };
        if tail == reader.accepted {
            return true;
        }
        self.changed |= bit(at);
        let forward = tail.wrapping_sub(reader.accepted);
        if forward > head.wrapping_sub(reader.accepted) {
            if reader.refused != Some(tail) {
                reader.refused = Some(tail);
                reader.violations = reader.violations.wrapping_add(1);
            }
            return false;
        }
        reader.accepted = tail;
        reader.refused = None;
        // A lossy reader that was overrun does not get back what it lost.
        if tail.wrapping_sub(reader.tail) as i64 > 0 {
            reader.tail = tail;
            reader.stalled_ns = now_ns;
            reader.full = false;
        }
        true
    }

    /// Learns who is the slowest. Comes after [`add`](Self::add), [`remove`](Self::remove) and
    /// [`observe_tail`](Self::observe_tail).
    pub fn refresh(&mut self) {
        self.slowest = slowest(self.active().map(|reader| reader.tail));
    }

    /// The tail of the slowest reader, or before it; `None`: there is no reader.
    #[inline]
    pub fn slowest(&self) -> Option<u64> {
        self.slowest
    }

    /// Whether a reader keeps the ring full, or was overrun: whether [`lap`](Self::lap) and
    /// [`demote_stalled`](Self::demote_stalled) have anything to do.
    #[inline]
    pub fn is_full(&self, claim: u64, slot_count: u32) -> bool {
        self.slowest.is_some_and(|tail| claim.wrapping_sub(tail) >= u64::from(slot_count))
    }

    /// Accounts for what the positions up to `claim` have taken from lossy readers.
    pub fn lap(&mut self, claim: u64, slot_count: u32) {
        let oldest = claim.wrapping_sub(slot_count.into());
        let mut changed = 0;
        for (at, reader) in self.active_mut() {
            let behind = oldest.wrapping_sub(reader.tail);
            if reader.mode == Mode::Lossy && behind as i64 > 0 {
                reader.lapped = reader.lapped.wrapping_add(behind);
                reader.tail = oldest;
                changed |= bit(at);
            }
        }
        self.changed |= changed;
    }

    /// The first position that may not be written: a ring after the slowest reliable reader. `None`
    /// when there is no reliable reader.
    pub fn limit(&self, slot_count: u32) -> Option<u64> {
        let reliable = self.active().filter(|reader| reader.mode == Mode::Reliable);
        Some(slowest(reliable.map(|reader| reader.tail))?.wrapping_add(slot_count.into()))
    }

    /// Makes lossy the demotable readers that have kept the ring full for `stall_ns` without moving.
    /// Returns how many.
    pub fn demote_stalled(
        &mut self,
        now_ns: u64,
        stall_ns: u64,
        claim: u64,
        slot_count: u32,
    ) -> u32 {
        let mut demoted = 0_u32;
        let mut changed = 0;
        for (at, reader) in self.active_mut() {
            let full = claim.wrapping_sub(reader.tail) >= u64::from(slot_count);
            if full && !reader.full {
                reader.stalled_ns = now_ns;
            }
            reader.full = full;
            let stalled = now_ns.saturating_sub(reader.stalled_ns) >= stall_ns;
            if reader.mode == Mode::Reliable && reader.demotable && full && stalled {
                reader.mode = Mode::Lossy;
                reader.demoted = true;
                demoted = demoted.wrapping_add(1);
                changed |= bit(at);
            }
        }
        self.changed |= changed;
        demoted
    }

    /// Whether to wake a reader: `head` has reached `wake_at`, loaded once from its control page
    /// after the head was published, and it was not woken for that position before.
    pub fn should_wake(&mut self, at: usize, wake_at: u64, head: u64) -> bool {
        let Some(reader) = self.readers.get_mut(at).filter(|reader| reader.active) else {
            return false;
        };
        let reached = head.wrapping_sub(wake_at) as i64 >= 0;
        if !reached || reader.woken_at == Some(wake_at) {
            return false;
        }
        reader.woken_at = Some(wake_at);
        reader.wakeups = reader.wakeups.wrapping_add(1);
        self.changed |= bit(at);
        true
    }

    /// What a reader's status page says.
    pub fn status(&self, at: usize) -> ReaderStatus {
        let Some(reader) = self.readers.get(at).filter(|reader| reader.active) else {
            return ReaderStatus::default();
        };
        ReaderStatus {
            active: 1,
            reliable: u64::from(reader.mode == Mode::Reliable),
            tail: reader.tail,
            lapped: reader.lapped,
            violations: reader.violations,
            demoted: u64::from(reader.demoted),
            wakeups: reader.wakeups,
        }
    }
}

impl Default for Readers {
    fn default() -> Self {
        Self::new()
    }
}
