//! Which source an ordered stream follows, and what is held of one that may replace it.
//!
//! What lives here: the candidate and the packets held for it. A candidate is either another source,
//! or the followed source in a sequence far from where it was. What does not: placing packets
//! ([`super::staging`]) and the decision to switch ([`super::receive`], which knows the legs).
//!
//! RFC 3550 A.1 drops what arrives before a source is proven. Nothing is dropped here: packets of a
//! candidate are held, and delivered when it takes over or counted when it does not.

use core::ops::DerefMut;

use super::abi::{Descriptor, LEGS_MAX};
use super::table::Flow;

/// A followed source that was silent for this long may be replaced.
pub const SILENCE_NS: u64 = 200_000_000;

/// A packet held back. Its descriptor carries the 16-bit sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What its descriptor will be.
    pub descriptor: Descriptor,
    /// CLOCK_MONOTONIC of its arrival, nanoseconds.
    pub arrival_ns: u64,
}

impl Held {
    /// Filling for new storage.
    pub const EMPTY: Self = Self { descriptor: Descriptor::from_words([0; 8]), arrival_ns: 0 };
}

/// Who may take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its SSRC.
    pub ssrc: u32,
    /// Where it was heard, by leg.
    pub flows: [Option<Flow>; LEGS_MAX],
    /// The followed source itself, elsewhere in its sequence.
    pub restart: bool,
    /// Two sequential packets were heard.
    pub proven: bool,
    /// Arrival of its latest packet.
    pub heard_ns: u64,
    last: u16,
}

impl Candidate {
    /// Someone heard for the first time.
    pub fn new(ssrc: u32, restart: bool, sequence: u16) -> Self {
        Self { ssrc, flows: [None; LEGS_MAX], restart, proven: false, heard_ns: 0, last: sequence }
    }

    /// Whether a packet with this SSRC from `flow` on `leg` is the candidate's.
    pub fn is(&self, ssrc: u32, leg: u8, flow: &Flow) -> bool {
        self.ssrc == ssrc && self.flow(leg).is_none_or(|known| known == flow)
    }

    /// Whether it stays although another was heard: a `restart` of the followed source, or not. A
    /// restart goes before other sources while the followed source is `alive`.
    pub fn stays(&self, restart: bool, alive: bool) -> bool {
        match (self.restart, restart) {
            (false, true) => false,
            (true, false) => self.proven || alive,
            _ => self.proven,
        }
    }

    /// Where it was heard on `leg`.
    pub fn flow(&self, leg: u8) -> Option<&Flow> {
        self.flows.get(usize::from(leg))?.as_ref()
    }

    /// Another of its packets.
    pub fn hear(&mut self, sequence: u16, leg: u8, flow: &Flow, arrival_ns: u64) {
        self.heard_ns = arrival_ns;
        self.proven |= sequence == self.last.wrapping_add(1);
        self.last = sequence;
        if let Some(place) = self.flows.get_mut(usize::from(leg)) {
            *place = Some(*flow);
        }
    }
}

/// First in, first out, in storage of the caller's.
#[derive(Debug)]
pub struct Hold<H> {
    packets: H,
    first: usize,
    len: usize,
}

impl<H: DerefMut<Target = [Held]>> Hold<H> {
    /// Holds up to as many packets as `packets` is long.
    pub fn new(packets: H) -> Self {
        Self { packets, first: 0, len: 0 }
    }

    /// Packets held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Holds one more. Returns the one that has to go for it: the oldest, or `held` itself when
    /// there is no storage at all.
    pub fn push(&mut self, held: Held) -> Option<Held> {
        let out = if self.len >= self.packets.len() { self.pop() } else { None };
        if self.len >= self.packets.len() {
            return Some(held);
        }
        let mut at = self.first.wrapping_add(self.len);
        if at >= self.packets.len() {
            at = at.wrapping_sub(self.packets.len());
        }
        if let Some(place) = self.packets.get_mut(at) {
            *place = held;
            self.len = self.len.wrapping_add(1);
        }
        out
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Held> {
        let left = self.len.checked_sub(1)?;
        let held = self.packets.get(self.first).copied()?;
        self.len = left;
        self.first = self.first.wrapping_add(1);
        if self.first >= self.packets.len() {
            self.first = 0;
        }
        Some(held)
    }
}
