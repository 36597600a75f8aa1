// SPDX-License-Identifier: MIT OR GPL-2.0

//! A receive stream at work: its engine under the lock, the timer, the legs.
//!
//! What does not live here: what happens under the lock ([`crate::engine`]), the stream's state, and who
//! calls what when ([`crate::stream`], whose comment has the argument for what stands here).

use core::mem::offset_of;
use core::ptr::NonNull;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};

use crate::compat::EOPNOTSUPP;
use crate::engine::{Bytes, Datagram, Engine, Outcome};
use crate::primitives::{monotonic_ns, BhGuard, BhLock, Timer, TimerOwner};
use crate::ring::abi::{self, StreamCounters, LEGS_MAX};
use crate::ring::atomic::Word;
use crate::ring::header::Kind;
use crate::ring::producer::Mode;
use crate::ring::receive::Filter;
use crate::source::train::Train;
use crate::source::udp::{grace_period, Leg};
use crate::stream::Shared;

/// The timer's handler is not called again before this, so that bottom halves are not off for long.
const REST_NS: u64 = 20_000;

/// The engine of a receive stream, and what calls it.
#[pin_data(PinnedDrop)]
pub(crate) struct Receive {
    #[pin]
    engine: BhLock<Engine>,
    #[pin]
    timer: Timer,
    /// Taken with the stream's control lock held, so never waited for.
    #[pin]
    legs: Mutex<[Option<Leg>; LEGS_MAX]>,
    /// Legs that the stream is to have; 0: a source brings its packets.
    leg_count: usize,
    /// As the engine has it, but for the legs' sources.
    filter: Filter,
    shared: Arc<Shared>,
}

impl Receive {
    /// Around an engine with this filter that has received nothing, and is to have `leg_count` legs.
    pub(crate) fn new(
        engine: Engine,
        filter: Filter,
        leg_count: usize,
        shared: Arc<Shared>,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                engine <- BhLock::new(engine),
                timer <- Timer::new::<Self>(),
                legs <- new_mutex!([const { None }; LEGS_MAX], "rtp_mgr legs"),
                leg_count,
                filter,
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

    /// The engine's lock, with nothing placed that is not published: between the packets of a train the
    /// books would not balance.
    fn settled(&self) -> BhGuard<'_, Engine> {
        let mut engine = self.engine.lock();
        if engine.is_pending() {
            let memory = &self.shared.memory;
            let now_ns = engine.now();
            let due_ns = engine.conclude(memory, &self.shared.waits, now_ns);
            self.arm(&mut engine, due_ns);
        }
        engine
    }

    /// Adopts the socket with number `fd` as a leg, taking only packets from `source` if that is given.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: the stream has no legs. `EINVAL`: it does not have that many, or this is no bound UDP
    /// socket. `EBUSY`: leg or socket is taken. `EBADF`, `ENOTSOCK`: this is no socket.
    pub(crate) fn add_leg(&self, fd: c_int, leg: usize, source: Option<[u8; 16]>) -> Result {
        if self.leg_count == 0 {
            return Err(EOPNOTSUPP);
        }
        let mut legs = self.legs.lock();
        let place = legs.get_mut(leg).filter(|_| leg < self.leg_count).ok_or(EINVAL)?;
        if place.is_some() {
            return Err(EBUSY);
        }
        // SAFETY: The legs are dropped before, or with, what they are part of.
        let mut new = unsafe { Leg::new(NonNull::from(self), fd, leg as u8)? };
        new.adopt()?;
        if let Some(source) = source {
            self.engine.lock().set_leg_source(leg, source);
        }
        *place = Some(new);
        Ok(())
    }

    /// Runs, from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a leg is missing. `EBUSY`: someone else has taken a socket while the stream was stopped.
    pub(crate) fn start(&self) -> Result {
        let mut legs = self.legs.lock();
        let wanted = legs.get_mut(..self.leg_count).unwrap_or_default();
        if wanted.iter().any(Option::is_none) {
            return Err(EINVAL);
        }
        let adopted = wanted.iter_mut().flatten().try_for_each(Leg::adopt);
        if adopted.is_err() {
            release(wanted);
            return adopted;
        }
        let mut engine = self.engine.lock();
        for (at, leg) in (0..LEGS_MAX).zip(wanted.iter().flatten()) {
            // SAFETY: Legs are dropped while the stream rests, and `rest` has the engine forget them.
            unsafe { engine.watch(at, Some(leg.view())) };
        }
        let due_ns = engine.start(&self.shared.memory);
        self.arm(&mut engine, due_ns);
        Ok(())
    }

    /// Has the engine take nothing more: when this returns, nothing calls it any more but its user.
    fn rest(&self) {
        self.engine.lock().halt();
        let mut legs = self.legs.lock();
        release(&mut *legs);
        self.timer.cancel();
        let mut engine = self.engine.lock();
        for at in 0..self.leg_count {
            // SAFETY: It looks at nothing any more.
            unsafe { engine.watch(at, None) };
        }
    }

    /// Stops, having published what there is. The sockets get their packets themselves.
    pub(crate) fn stop(&self) {
        self.rest();
        // The lock is given back between the parts of a long gap.
        while self.engine.lock().give_up(&self.shared.memory) {}
        self.engine.lock().stop(&self.shared.memory, &self.shared.waits);
    }

    /// Stops, whatever its state, when nobody looks any more, and lets go of the legs.
    pub(crate) fn end(&self) {
        self.rest();
        self.let_go();
    }

    /// Lets the legs go, of a stream that does not run.
    pub(crate) fn let_go(&self) {
        let mut legs = self.legs.lock();
        release(&mut *legs);
        for leg in legs.iter_mut() {
            *leg = None;
        }
    }

    /// Whether RTP that begins with these bytes is no packet of the stream, but the socket's.
    pub(crate) fn leaves(&self, head: &[u8]) -> bool {
        self.filter.leaves(head)
    }

    /// Whether there is any such RTP.
    pub(crate) fn leaves_others(&self) -> bool {
        self.filter.leave_others
    }

    /// The word that says whether packets are taken at present. What happens next is decided under the lock.
    pub(crate) fn state(&self) -> &Word {
        self.shared.memory.state()
    }

    /// Whether that says so.
    pub(crate) fn is_running(&self) -> bool {
        self.state().load() == abi::STATE_RUNNING
    }

    /// A packet of a leg, [not dated](Engine::date) yet.
    ///
    /// # Safety
    ///
    /// The caller is in softirq, or has bottom halves off.
    #[inline(always)]
    pub(crate) unsafe fn datagram(
        &self,
        mut datagram: Datagram<'_>,
        bytes: &mut impl Bytes,
    ) -> Outcome {
        let memory = &self.shared.memory;
        // SAFETY: As this function's own requirement.
        let mut engine = unsafe { self.engine.lock_in_softirq() };
        if !engine.is_running() {
            return Outcome::Left;
        }
        let waits = &self.shared.waits;
        engine.date(&mut datagram);
        let outcome = engine.datagram(memory, &datagram, bytes);
        let due_ns = match outcome {
            None => engine.show_usual(memory, waits, datagram.now_ns),
            Some(_) if datagram.more => Some(engine.postpone(datagram.now_ns)),
            Some(_) => engine.conclude(memory, waits, datagram.now_ns),
        };
        if due_ns.is_some() {
            self.arm(&mut engine, due_ns);
        }
        outcome.unwrap_or(Outcome::Taken)
    }

    /// A train of packets of a leg, all of them RTP when it was taken, published together. `like` tells
    /// what they have in common.
    ///
    /// # Safety
    ///
    /// The caller is in softirq, or has bottom halves off.
    pub(crate) unsafe fn train(&self, train: &mut Train<'_>, mut like: Datagram<'_>) -> Outcome {
        let memory = &self.shared.memory;
        // SAFETY: As this function's own requirement.
        let mut engine = unsafe { self.engine.lock_in_softirq() };
        if !engine.is_running() {
            return Outcome::Left;
        }
        engine.date(&mut like);
        engine.train(memory, &like, train);
        let due_ns = engine.conclude(memory, &self.shared.waits, like.now_ns);
        self.arm(&mut engine, due_ns);
        Outcome::Taken
    }

    /// A packet of a leg that stays with the socket. In softirq.
    pub(crate) fn passed(&self, kind: Kind) {
        let mut engine = self.engine.lock();
        if !engine.is_running() {
            return;
        }
        engine.passed(kind);
        let now_ns = engine.now();
        let due_ns = engine.conclude(&self.shared.memory, &self.shared.waits, now_ns);
        self.arm(&mut engine, due_ns);
    }

    /// What its user heard beside the legs.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: the stream has no legs. `EINVAL`: it has no such leg. `EBUSY`: it does not run.
    pub(crate) fn heard(
        &self,
        leg: usize,
        passed: [u32; 4],
        bye: Option<(u32, u64)>,
    ) -> Result {
        if self.leg_count == 0 {
            return Err(EOPNOTSUPP);
        }
        if leg >= self.leg_count {
            return Err(EINVAL);
        }
        let mut engine = self.engine.lock();
        if !engine.is_running() {
            return Err(EBUSY);
        }
        engine.heard(&self.shared.memory, passed, bye);
        let now_ns = engine.now();
        let due_ns = engine.conclude(&self.shared.memory, &self.shared.waits, now_ns);
        self.arm(&mut engine, due_ns);
        Ok(())
    }

    /// A new reader, beginning at the next position. Returns its place and that position.
    pub(crate) fn add_reader(&self, mode: Mode, demotable: bool) -> Result<(usize, u64)> {
        self.settled().add_reader(&self.shared.memory, mode, demotable)
    }

    /// Forgets a reader.
    pub(crate) fn remove_reader(&self, reader: usize) {
        self.settled().remove_reader(&self.shared.memory, reader);
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> StreamCounters {
        self.settled().counters(&self.shared.memory)
    }

    /// Counters back to zero.
    pub(crate) fn reset_counters(&self) -> Result {
        self.settled().reset_counters(&self.shared.memory)
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

    /// Sets the clock rate of a payload type, before the start.
    pub(crate) fn set_clock_rate(&self, value: u64) -> Result {
        self.engine.lock().set_clock_rate(value)
    }

    /// Reads a setting.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        self.engine.lock().get(key)
    }

    /// What poll says to `reader`.
    pub(crate) fn ready(&self, reader: usize) -> u32 {
        let mut engine = self.engine.lock();
        let (events, due_ns) = engine.ready(&self.shared.memory, reader);
        self.arm(&mut engine, due_ns);
        events
    }
}

/// Gives the sockets back and waits for packets that are on their way.
fn release(legs: &mut [Option<Leg>]) {
    let mut wait = false;
    for leg in legs.iter_mut().flatten() {
        wait |= leg.release();
    }
    if wait {
        grace_period();
    }
    for leg in legs.iter_mut().flatten() {
        leg.forget();
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
        // What is due already is a part of more than one run should do.
        let rested_ns = monotonic_ns().saturating_add(REST_NS);
        self.arm(&mut engine, due_ns.map(|due_ns| due_ns.max(rested_ns)));
    }
}

#[pinned_drop]
impl PinnedDrop for Receive {
    fn drop(self: Pin<&mut Self>) {
        // Again, if the last file has done so: a stream that never had one has nothing to end.
        self.end();
    }
}
