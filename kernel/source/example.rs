// SPDX-License-Identifier: MIT OR GPL-2.0

//! A card that writes packets into slots by itself: the example of `docs/hardware-sources.md`.
//!
//! No part of the module: `cargo xtask vm clippy` compiles it, so that it stays true.

#![allow(dead_code)] // Nobody has such a card.

use core::ptr::NonNull;

use kernel::prelude::*;

use super::Source;
use crate::compat::EOPNOTSUPP;
use crate::engine::{Intake, Slot};

/// Slots that the card has for packets to come: what it can fill until it is served again.
const AHEAD: usize = 64;
/// Packets taken in one run, so that the lock is not held for long.
const BUDGET: usize = 64;
/// Until the card is looked at again.
const POLL_NS: u64 = 100_000;

/// What the card's own driver does: registers, DMA mapping, its interrupt.
///
/// # Safety
///
/// The card writes to a place from [`post`](Self::post) until its [`Completion`], never beyond the bytes
/// given, and to none at all after [`quiesce`](Self::quiesce).
pub(crate) unsafe trait Card: Send {
    /// Has the card write a packet to the `len` bytes at `to`, after those posted before.
    ///
    /// A slot is vmalloc memory: contiguous for the CPU only. A real driver maps each page that
    /// it touches (`vmalloc_to_page()`, `dma_map_page()` towards the CPU) and gives the card that list.
    /// Nothing here sleeps. `false`: the card's queue is full.
    fn post(&mut self, to: NonNull<u8>, len: usize) -> bool;

    /// The oldest posted place that has its packet, if it has: from what the interrupt handler queued,
    /// or from the card's memory, made visible to the CPU (`dma_unmap_page()`) before.
    fn completed(&mut self) -> Option<Completion>;

    /// Packets that the card had no place for since it was last asked.
    fn missed(&mut self) -> u32;

    /// Stops the card's writing, and waits until it has stopped.
    fn quiesce(&mut self);
}

/// A packet that is there.
#[derive(Clone, Copy)]
pub(crate) struct Completion {
    /// Bytes that the card says it wrote: a register's word, to be checked.
    pub(crate) len: u32,
}

/// Feeds a stream from a card.
pub(crate) struct CardSource<C: Card> {
    card: C,
    /// Slots that the card may be writing to, the oldest first, from `first` on.
    posted: [Option<Slot>; AHEAD],
    first: usize,
    count: usize,
}

impl<C: Card> CardSource<C> {
    pub(crate) fn new(card: C) -> Self {
        Self { card, posted: [const { None }; AHEAD], first: 0, count: 0 }
    }

    /// Takes in what the card has written.
    fn harvest(&mut self, intake: &mut Intake<'_>) {
        for _ in 0..BUDGET {
            let Some(completion) = self.card.completed() else { return };
            let Some(mut slot) = self.oldest() else { return };
            // The card is not to be believed either: nothing beyond the slot is read.
            if completion.len as usize <= intake.bytes(&mut slot).len() {
                intake.rtp(slot, completion.len, completion.len);
            } else {
                intake.give_back(slot);
                intake.overrun(0);
            }
        }
        intake.burst_done();
    }

    /// Gives the card places for packets to come.
    fn refill(&mut self, intake: &mut Intake<'_>) {
        while self.count < AHEAD {
            // Too few are free while readers are slow: the card drops, and says so.
            let Some(mut slot) = intake.slot() else { return };
            let bytes = intake.bytes(&mut slot);
            let (to, len) = (NonNull::from(&mut *bytes).cast(), bytes.len());
            if !self.card.post(to, len) {
                intake.give_back(slot);
                return;
            }
            let at = self.first.wrapping_add(self.count) % AHEAD;
            if let Some(place) = self.posted.get_mut(at) {
                *place = Some(slot);
                self.count = self.count.wrapping_add(1);
            }
        }
    }

    fn oldest(&mut self) -> Option<Slot> {
        let slot = self.posted.get_mut(self.first)?.take()?;
        self.first = self.first.wrapping_add(1) % AHEAD;
        self.count = self.count.saturating_sub(1);
        Some(slot)
    }
}

impl<C: Card> Source for CardSource<C> {
    fn start(&mut self, now_ns: u64) -> Option<u64> {
        Some(now_ns)
    }

    fn service(&mut self, intake: &mut Intake<'_>, now_ns: u64) -> Option<u64> {
        self.harvest(intake);
        for _ in 0..self.card.missed() {
            intake.overrun(0);
        }
        self.refill(intake);
        Some(now_ns.saturating_add(POLL_NS))
    }

    fn set(&mut self, _key: u32, _value: u64) -> Result {
        Err(EOPNOTSUPP)
    }

    fn get(&self, _key: u32) -> Result<u64> {
        Err(EOPNOTSUPP)
    }
}

impl<C: Card> Drop for CardSource<C> {
    fn drop(&mut self) {
        self.card.quiesce();
    }
}
