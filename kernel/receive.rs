// SPDX-License-Identifier: MIT OR GPL-2.0

//! A receive stream at work: its engine under the lock, and the timer.
//!
//! What does not live here: what happens under the lock ([`crate::engine`]), the stream's state, and who
//! calls what when ([`crate::stream`], whose comment has the argument for what stands here).

use core::mem::offset_of;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::prelude::*;
use kernel::sync::Arc;

use crate::engine::Engine;
use crate::primitives::{monotonic_ns, BhLock, Timer, TimerOwner};
use crate::ring::abi::StreamCounters;
use crate::ring::producer::Mode;
use crate::stream::Shared;

/// The engine of a receive stream, and what calls it.
#[pin_data(PinnedDrop)]
pub(crate) struct Receive {
    #[pin]
    engine: BhLock<Engine>,
    #[pin]
    timer: Timer,
    shared: Arc<Shared>,
}

impl Receive {
    /// Around an engine that has received nothing.
    pub(crate) fn new(engine: Engine, shared: Arc<Shared>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                engine <- BhLock::new(engine),
                timer <- Timer::new::<Self>(),
                shared,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Starts the timer for what is due first, with the engine's lock held. A stopped engine has nothing
    /// due.
    fn arm(&self, engine: &mut Engine, due_ns: Option<u64>) {
        if let Some(due_ns) = engine.alarm(due_ns) {
            self.timer.start(due_ns);
        }
    }

    /// Runs, from now on.
    pub(crate) fn start(&self) -> Result {
        let mut engine = self.engine.lock();
        let due_ns = engine.start(&self.shared.memory);
        self.arm(&mut engine, due_ns);
        Ok(())
    }

    /// Stops, having published what there is.
    pub(crate) fn stop(&self) {
        self.engine.lock().halt();
        self.timer.cancel();
        self.engine.lock().stop(&self.shared.memory, &self.shared.waits);
    }

    /// Stops, whatever its state, when nobody looks any more.
    pub(crate) fn end(&self) {
        self.engine.lock().halt();
        self.timer.cancel();
    }

    /// A new reader, beginning at the next position. Returns its place and that position.
    pub(crate) fn add_reader(&self, mode: Mode, demotable: bool) -> Result<(usize, u64)> {
        self.engine.lock().add_reader(&self.shared.memory, mode, demotable)
    }

    /// Forgets a reader.
    pub(crate) fn remove_reader(&self, reader: usize) {
        self.engine.lock().remove_reader(&self.shared.memory, reader);
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> StreamCounters {
        self.engine.lock().counters(&self.shared.memory)
    }

    /// Counters back to zero.
    pub(crate) fn reset_counters(&self) -> Result {
        self.engine.lock().reset_counters(&self.shared.memory)
    }

    /// Changes how long an attached reliable reader may hold the ring full.
    pub(crate) fn set_stall_ns(&self, stall_ns: u64) {
        self.engine.lock().set_stall_ns(stall_ns);
    }

    /// Changes a setting; what that makes due earlier happens earlier.
    pub(crate) fn set(&self, key: u32, value: u64) -> Result {
        let mut engine = self.engine.lock();
        engine.set(key, value)?;
        self.arm(&mut engine, Some(monotonic_ns()));
        Ok(())
    }

    /// Reads a setting.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        self.engine.lock().get(key)
    }

    /// What poll says to `reader`.
    pub(crate) fn ready(&self, reader: usize) -> u32 {
        self.engine.lock().ready(&self.shared.memory, reader)
    }
}

// SAFETY: The offset is that of the timer that `new` makes. An `Arc` of pinned content does not move it,
// and dropping it halts the engine, after which nothing starts the timer, and cancels the timer.
unsafe impl TimerOwner for Receive {
    const OFFSET: usize = offset_of!(Self, timer);

    fn expired(&self) {
        let mut engine = self.engine.lock();
        engine.alarm_over();
        let due_ns = engine.service(&self.shared.memory, &self.shared.waits);
        self.arm(&mut engine, due_ns);
    }
}

#[pinned_drop]
impl PinnedDrop for Receive {
    fn drop(self: Pin<&mut Self>) {
        self.end();
    }
}
