// SPDX-License-Identifier: MIT OR GPL-2.0

//! A transmit stream's engine: from the ring into sockets, by a thread of its own and in the calls of its writer.
//!
//! What does not live here: what is believed of the writer ([`crate::ring::transmit`]), when packets
//! are due ([`crate::ring::pace`]), sockets ([`crate::sink`]), who may call what when
//! ([`crate::stream`]).
//!
//! A batch is sent to every leg before the next one begins: a packet counts as sent when at least one
//! leg took it.
//!
//! Whoever sends holds the engine's lock: the thread, or a writer that kicks while the thread sleeps
//! ([`Calls`] says when). A call sends two batches at most and never waits: what is left, not due yet or without
//! space in a socket is the thread's.
//!
//! Small sends are copied, into pages that are used again ([`crate::sink::copies`]) or by the stack, so that a slot is
//! free as soon as its packet was taken. Large ones of a stream with
//! one leg leave from the ring's own pages where the device can read them ([`crate::sink::flight`]): such a
//! slot is released when the network has let go of it, for which STOP does not wait. Since a queue may hold
//! packets for any time, and the ring with them, a leg is first tried with copies ([`Pages`]). A second leg
//! must not be held up by the first one's queue: packets of two legs are copied.
//!
//! Of the writer's memory only the words of its control page and descriptors are read, each once (that of a packet whose
//! neighbours did not leave, for its timestamp, twice); the
//! bytes of slots go to the network as they are at that moment, or until it lets go of them, and nothing
//! here looks at them.

use core::cmp::Ordering;

use kernel::alloc::flags::{__GFP_NOWARN, GFP_KERNEL_ACCOUNT};
use kernel::bindings;
use kernel::cred::Credential;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Arc, Mutex};

use crate::clock::ClockPage;
use crate::compat::EOPNOTSUPP;
use crate::memory::{Memory, SlotCopy, SlotPages};
use crate::primitives::{monotonic_ns, tai_ns, trace};
use crate::ring::abi::{self, ioctl, status, LegFigures, StreamCounters, LEGS_MAX};
use crate::ring::batch::{Batch, Part, Place, Run, BATCH_MAX};
use crate::ring::figures::FigureBlocks;
use crate::ring::pace::{stall_limit_ns, Pacer, Rate, LATE_NS, RETRY_NS};
use crate::ring::transmit::{awake, Calls, Progress, Rest, TransmitCore};
use crate::sink::copies::Copies;
use crate::sink::flight::{Departure, Flights, Outcome, Trip};
use crate::sink::udp::{Gather, UdpSink, DATAGRAM_MAX, SEGMENTS_MAX};
use crate::stream::Shared;
use crate::thread::{self, ActsFor, Bell, Thread, ThreadOwner};

/// How often a launch time that is still to come is looked at again: the clock may be set.
const LAUNCH_CHECK_NS: u64 = 500_000_000;
/// Sends of fewer bytes are left to the stack to copy: buffers of pieces cost more than that.
const COPIES_MIN: usize = 1_200;
/// Sends of fewer bytes are copied, which then costs less than to hear of their end.
const PAGES_MIN: usize = 10_000;
/// So do pieces of pages of fewer bytes, on average: slots with much room between their packets.
const PIECE_MIN: usize = 2_048;
/// A leg whose packets the network copied after all, or held too long, is copied here for this long, and then
/// tried again: its route may be another one.
const COPY_NS: u64 = 1_000_000_000;
/// How long the network may hold what a leg is tried with.
const PROMPT_NS: u64 = 10_000_000;
/// How long it may hold slots before the leg is copied again.
const OVERDUE_NS: u64 = 100_000_000;
/// A thread that wakes sooner than this looks at flights that are over then, and not before.
const SOON_NS: u64 = 1_000_000;
/// What writers are told by poll: that they may write, and as every event file does that there is news
/// (`EPOLLRDNORM` and `EPOLLWRNORM` are with the two).
const WRITABLE: u32 = bindings::POLLOUT | 0x100 | bindings::POLLIN | 0x40;

/// The writer's place among readers: its control page and wait queue.
pub(crate) const WRITER: usize = 0;

/// The engine of a transmit stream, its thread, and what wakes it.
#[pin_data(PinnedDrop)]
pub(crate) struct Transmit {
    /// While the stream runs. Taken before the engine's lock.
    #[pin]
    thread: Mutex<Option<Thread>>,
    /// Held by the thread for one batch at a time.
    #[pin]
    engine: Mutex<Engine>,
    bell: Arc<Bell>,
    shared: Arc<Shared>,
    /// Those who opened the stream's file: sends are theirs.
    opener: ARef<Credential>,
}

/// When the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// At once: there is more to do.
    Now,
    /// At this time of CLOCK_MONOTONIC.
    At(u64),
    /// When the writer kicks.
    Kick,
}

impl Transmit {
    /// An engine that has sent nothing, of a stream whose first position is `start`.
    pub(crate) fn new(
        start: u64,
        shared: Arc<Shared>,
        opener: ARef<Credential>,
    ) -> Result<Arc<Self>> {
        let engine = Engine::new(&shared.memory, start)?;
        let bell = Arc::pin_init(Bell::new(), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            pin_init!(Self {
                thread <- new_mutex!(None, "rtp_mgr thread"),
                engine <- new_mutex!(engine, "rtp_mgr transmit"),
                bell,
                shared,
                opener,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Takes the socket of a leg. The stream is not running.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such leg, or a flag that a transmit leg does not have. `EBUSY`: it has a socket.
    /// Those of [`UdpSink::adopt`].
    pub(crate) fn add_leg(&self, request: &ioctl::AddLeg) -> Result {
        let known = ioctl::LEG_NO_GSO | ioctl::LEG_NO_ZEROCOPY;
        if request.flags & !known != 0 || request.source != [0; 16] {
            return Err(EINVAL);
        }
        let mut engine = self.engine.lock();
        let place = engine.legs.get_mut(request.leg as usize).ok_or(EINVAL)?;
        if place.is_some() {
            return Err(EBUSY);
        }
        let sink = UdpSink::adopt(request.fd, self.bell.clone())?;
        let mut leg = Leg::new(sink, request.flags, engine.legs.count == 1);
        if engine.copies.is_none() {
            // Without them the stack copies.
            engine.copies = Copies::new().ok();
        }
        if leg.pages != Pages::Never && engine.flights.is_none() {
            let pages = self.shared.memory.slot_pages();
            match pages.and_then(|pages| Flights::new(self.bell.clone(), pages)) {
                Ok(flights) => engine.flights = Some(flights),
                // Copying is always possible.
                Err(_) => leg.pages = Pages::Never,
            }
        }
        if let Some(place) = engine.legs.get_mut(request.leg as usize) {
            *place = Some(leg);
        }
        engine.publish(&self.shared, monotonic_ns());
        Ok(())
    }

    /// Sends, from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a leg has no socket. Those of [`Thread::start`].
    pub(crate) fn start(&self) -> Result {
        let mut thread = self.thread.lock();
        self.engine.lock().start()?;
        let number = self.shared.memory.header().stream_id;
        // SAFETY: `self` is pinned, and stops the thread before it is dropped.
        *thread = Some(unsafe { Thread::start(self, number)? });
        self.engine.lock().running = true;
        self.shared.memory.live(status::STATE).store(abi::STATE_RUNNING);
        Ok(())
    }

    /// Stops; what was not sent is given up.
    pub(crate) fn stop(&self) {
        self.end_thread();
        self.engine.lock().stop(&self.shared);
        self.wake(bindings::POLLHUP);
    }

    /// Stops, whatever its state, for good: nobody can write any more. The legs' sockets are let go.
    pub(crate) fn close(&self) {
        if self.end_thread() {
            self.stop();
        }
        self.let_go();
        self.shared.memory.live(status::STATE).store(abi::STATE_STOPPED);
    }

    /// Lets the legs' sockets go. The stream is not running.
    pub(crate) fn let_go(&self) {
        let mut engine = self.engine.lock();
        engine.legs.clear();
        if let Some(flights) = &mut engine.flights {
            flights.forget();
        }
    }

    /// Waits for the thread's end. `false`: there was none.
    fn end_thread(&self) -> bool {
        self.thread.lock().take().is_some()
    }

    /// Wakes the writer.
    fn wake(&self, more: u32) {
        let [writer, ..] = &self.shared.waits;
        writer.wake(WRITABLE | more);
    }

    /// The writer has committed something: its own call sends a batch, and one more if there is more to do or a slot
    /// is free again that the first one's send read; or the thread does, which also has what remains.
    pub(crate) fn kick(&self) {
        let left = self.engine.try_lock().is_none_or(|mut engine| {
            if !engine.is_for_calls() {
                return true;
            }
            let _opener = ActsFor::new(&self.opener);
            let mut next = engine.run(&self.shared);
            if next == Next::Now {
                next = engine.run(&self.shared);
            }
            engine.calls.end(monotonic_ns());
            next != Next::Kick
        });
        if left {
            self.bell.ring();
        }
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> StreamCounters {
        let mut engine = self.engine.lock();
        let now_ns = monotonic_ns();
        // Nobody else does while the stream is stopped, and the thread may sleep for long.
        engine.land(now_ns);
        engine.publish(&self.shared, now_ns);
        engine.core.counters(now_ns)
    }

    /// Sets the counters to zero.
    ///
    /// # Errors
    ///
    /// `EBUSY`: packets are pending.
    pub(crate) fn reset_counters(&self) -> Result {
        let mut engine = self.engine.lock();
        let now_ns = monotonic_ns();
        if engine.core.counters(now_ns).pending != 0 {
            return Err(EBUSY);
        }
        *engine.core.counters_mut() = StreamCounters::default();
        engine.publish(&self.shared, now_ns);
        Ok(())
    }

    /// Changes a setting; what that makes due earlier happens earlier.
    pub(crate) fn set(&self, key: u32, value: u64) -> Result {
        if key != ioctl::SETTING_RATE {
            return Err(EOPNOTSUPP);
        }
        self.engine.lock().set_rate(value)?;
        self.bell.ring();
        Ok(())
    }

    /// Reads one.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        match key {
            ioctl::SETTING_RATE => Ok(self.engine.lock().rate),
            _ => Err(EOPNOTSUPP),
        }
    }

    /// What poll says to the writer. Takes no lock.
    pub(crate) fn ready(&self) -> u32 {
        let memory = &self.shared.memory;
        let stopped = memory.live(status::STATE).load() == abi::STATE_STOPPED;
        let hangup = if stopped { bindings::POLLHUP } else { 0 };
        let tail = memory.live(status::TAIL).load_acquire();
        let wake_at = memory.control(WRITER).wake_at.load();
        if stopped || tail.wrapping_sub(wake_at) as i64 >= 0 {
            hangup | WRITABLE
        } else {
            hangup
        }
    }
}

impl ThreadOwner for Transmit {
    fn work(&self) {
        let _opener = ActsFor::new(&self.opener);
        while !thread::should_stop() {
            self.bell.hush();
            let mut engine = self.engine.lock();
            let next = engine.run(&self.shared);
            let (head, rest) = (engine.core.head(), engine.rest(next));
            engine.calls.thread_round(monotonic_ns(), head, rest);
            drop(engine);
            match next {
                Next::Now => thread::pause(),
                Next::At(until_ns) => self.bell.sleep(Some(until_ns)),
                Next::Kick => self.bell.sleep(None),
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Transmit {
    fn drop(self: Pin<&mut Self>) {
        self.end_thread();
    }
}

/// Neighbours that go out in one send.
struct Message {
    /// 0: the next packet is not in the stream's memory.
    packets: usize,
    /// Length of each but the last, if there are several.
    segment: Option<u16>,
    origin: Origin,
}

/// What a message is made of.
enum Origin {
    /// Slots, which are copied.
    Copy,
    /// Slots, which are read until the flight is over: those of so many positions.
    Slots { first: u64, count: u32 },
    /// A copy that is read until the flight is over. The network keeps its pages.
    Trial(#[allow(dead_code, reason = "it lives until it is sent")] SlotCopy),
}

/// Whether the network may read a leg's packets from the ring's own pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Never,
    /// Not before this time; then the next large send is preceded by a trial.
    After(u64),
    /// That is out: one packet, from pages that are not the ring's.
    Trial,
    /// It did and was prompt.
    Granted,
}

/// One network path.
struct Leg {
    sink: UdpSink,
    /// Neighbours of equal length go out together.
    offload: bool,
    pages: Pages,
    /// Until then the stack copies, CLOCK_MONOTONIC.
    plain_until_ns: u64,
    /// What it is done with of the present batch.
    at: Place,
    blocked_since: Option<u64>,
    figures: LegFigures,
}

/// What an error of a send means.
enum Verdict {
    /// There is no space: later.
    Blocked,
    /// Not together: one by one from now on.
    Split,
    /// An ICMP message that an earlier packet caused; this one was not tried.
    Icmp,
    /// Not this one.
    GiveUp,
}

/// What the thread works with.
struct Engine {
    id: u64,
    core: TransmitCore<KVVec<Progress>>,
    /// Of [`ioctl::SETTING_RATE`].
    rate: u64,
    pacer: Option<Pacer>,
    /// Filled from the front.
    legs: Legs,
    /// The present batch.
    batch: Batch<KVVec<Run>>,
    gather: Gather,
    /// When a leg may be sent to from the ring's own pages.
    flights: Option<Flights>,
    /// Where small sends are copied to.
    copies: Option<Copies>,
    clock: ClockPage,
    /// `need_kick` is set.
    asleep: bool,
    /// There is a thread to go on with what a call of the writer leaves.
    running: bool,
    calls: Calls,
}

/// A place for each leg that the stream has.
struct Legs {
    places: [Option<Leg>; LEGS_MAX],
    count: usize,
}

impl Legs {
    fn clear(&mut self) {
        self.places = [const { None }; LEGS_MAX];
    }

    fn get_mut(&mut self, leg: usize) -> Option<&mut Option<Leg>> {
        self.places.get_mut(..self.count)?.get_mut(leg)
    }

    fn iter(&self) -> impl Iterator<Item = &Leg> {
        self.places.iter().flatten()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        self.places.iter_mut().flatten()
    }

    /// Whether each has its socket.
    fn complete(&self) -> bool {
        self.iter().count() == self.count
    }
}

fn bump(counter: &mut u64, amount: u64) {
    *counter = counter.wrapping_add(amount);
}

/// The pacer that a value of [`ioctl::SETTING_RATE`] asks for.
fn pacer(rate: u64) -> Result<Option<Pacer>> {
    if rate == 0 {
        return Ok(None);
    }
    let rate = Rate::new(rate >> 32, rate & 0xffff_ffff).ok_or(EINVAL)?;
    Ok(Some(Pacer::new(rate)))
}

impl Engine {
    fn new(memory: &Memory, start: u64) -> Result<Self> {
        let header = memory.header();
        memory.live(status::TAIL).store(start);
        let control = memory.control(WRITER);
        control.position.store(start);
        control.wake_at.store(start);
        let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        let progress = KVVec::from_elem(Progress::default(), header.slot_count as usize, flags)?;
        Ok(Self {
            id: header.stream_id,
            core: TransmitCore::new(progress, header.slot_stride, start),
            rate: 0,
            pacer: None,
            legs: Legs {
                places: [const { None }; LEGS_MAX],
                count: (header.legs_count as usize).min(LEGS_MAX),
            },
            batch: Batch::new(KVVec::from_elem(Run::default(), BATCH_MAX, flags)?),
            gather: Gather::new()?,
            flights: None,
            copies: None,
            clock: ClockPage::new(),
            asleep: false,
            running: false,
            calls: Calls::default(),
        })
    }

    fn start(&mut self) -> Result {
        if !self.legs.complete() {
            return Err(EINVAL);
        }
        // A new run: what was missed while it stood still is not made up for.
        self.pacer = pacer(self.rate)?;
        self.calls = Calls::default();
        for leg in self.legs.iter_mut() {
            leg.blocked_since = None;
        }
        Ok(())
    }

    fn set_rate(&mut self, rate: u64) -> Result {
        self.pacer = pacer(rate)?;
        self.rate = rate;
        Ok(())
    }

    /// Whether the call of a writer that kicks is to send. Not when there is a rate: then most of it is to be
    /// waited for, and that is the thread's.
    fn is_for_calls(&mut self) -> bool {
        let idle = self.running && self.asleep && self.pacer.is_none();
        idle && self.calls.begin(monotonic_ns())
    }

    /// One round, and whether to sleep after it.
    fn run(&mut self, shared: &Shared) -> Next {
        let memory = &shared.memory;
        let need_kick = memory.live(status::NEED_KICK);
        if self.asleep {
            awake(need_kick);
            self.asleep = false;
        }
        if let Some(flights) = &mut self.flights {
            flights.awake();
        }
        let next = self.round(shared);
        if self.landing(next) {
            return Next::Now;
        }
        if next == Next::Kick {
            if !self.core.prepare_sleep(need_kick, memory.control(WRITER).position) {
                awake(need_kick);
                return Next::Now;
            }
            self.asleep = true;
        }
        next
    }

    /// What the thread does next, as far as the writer's calls are concerned.
    fn rest(&self, next: Next) -> Rest {
        match next {
            Next::Now => Rest::None,
            Next::At(_) if !self.batch.is_empty() => Rest::Space,
            Next::At(_) => Rest::Time,
            Next::Kick => Rest::Kick,
        }
    }

    /// Has the thread woken when a slot is free that was not when it went to sleep, unless it wakes soon
    /// enough. `true`: one is free already.
    fn landing(&mut self, next: Next) -> bool {
        let sleeps = match next {
            Next::Now => false,
            Next::At(until_ns) => until_ns > monotonic_ns().saturating_add(SOON_NS),
            Next::Kick => true,
        };
        sleeps && self.flights.as_mut().is_some_and(Flights::expect)
    }

    /// Releases the slots that the network has let go of.
    fn land(&mut self, now_ns: u64) {
        let Some(flights) = &mut self.flights else { return };
        let (core, legs) = (&mut self.core, &mut self.legs);
        flights.land(|leg, trip, outcome| {
            core.let_go(trip.first, trip.count);
            // A leg that was let go of meanwhile has no figures any more.
            let Some(Some(leg)) = legs.get_mut(leg) else { return };
            let prompt = now_ns.saturating_sub(trip.since_ns) <= PROMPT_NS;
            match outcome {
                _ if trip.packets == 0 => {}
                Outcome::Copied => leg.copy_until(now_ns.saturating_add(COPY_NS)),
                Outcome::Read if trip.count != 0 => {
                    bump(&mut leg.figures.zerocopy, trip.packets.into());
                }
                Outcome::Read if prompt => leg.pages = Pages::Granted,
                Outcome::Read => leg.copy_until(now_ns.saturating_add(COPY_NS)),
            }
        });
        for (number, leg) in legs.places.iter_mut().enumerate() {
            let Some(leg) = leg.as_mut().filter(|leg| leg.pages == Pages::Granted) else { continue };
            let since_ns = flights.oldest_ns(number).unwrap_or(now_ns);
            if now_ns.saturating_sub(since_ns) > OVERDUE_NS {
                leg.copy_until(now_ns.saturating_add(COPY_NS));
            }
        }
    }

    /// Takes the next batch, if there is none, and sends what the legs take of it.
    fn round(&mut self, shared: &Shared) -> Next {
        let memory = &shared.memory;
        // In this order: a launch time is then never believed to have come before it has.
        let (tai_ns, now_ns) = (tai_ns(), monotonic_ns());
        self.land(now_ns);
        self.core.observe_head(memory.control(WRITER).position.load_acquire());
        if self.batch.is_empty() {
            let next = self.take_batch(memory, now_ns, tai_ns);
            if self.batch.is_empty() {
                self.publish(shared, now_ns);
                return next;
            }
        }
        for leg in 0..LEGS_MAX {
            self.send(leg, memory, now_ns);
        }
        self.give_up_stalled(now_ns);
        if self.legs.iter().all(|leg| leg.at.done == self.batch.len()) {
            self.finish_batch(memory, now_ns);
            // A device that is idle has let go of the slots already.
            self.land(now_ns);
            self.publish(shared, now_ns);
            // Whoever sleeps looks at the writer's head once more.
            return if self.core.ready() == 0 { Next::Kick } else { Next::Now };
        }
        self.publish(shared, now_ns);
        Next::At(now_ns.saturating_add(RETRY_NS))
    }

    /// Hands out what is due now.
    fn take_batch(&mut self, memory: &Memory, now_ns: u64, tai_ns: u64) -> Next {
        let ring = memory.ring();
        let ready = self.core.ready().min(BATCH_MAX as u64);
        if ready == 0 {
            return Next::Kick;
        }
        let (due, mut late, mut next) = match &mut self.pacer {
            None => (ready, 0, Next::Now),
            Some(pacer) => {
                let late = pacer.late(now_ns, ready);
                let due = pacer.due(now_ns, ready);
                (due.packets, late, Next::At(due.next_ns))
            }
        };
        while (self.batch.len() as u64) < due {
            let Some(job) = self.core.peek(&ring) else { break };
            if let Some(launch_ns) = job.launch_ns.filter(|_| self.pacer.is_none()) {
                let wait_ns = launch_ns.saturating_sub(tai_ns);
                if wait_ns > 0 {
                    next = Next::At(now_ns.saturating_add(wait_ns.min(LAUNCH_CHECK_NS)));
                    break;
                }
                bump(&mut late, u64::from(tai_ns.saturating_sub(launch_ns) > LATE_NS));
            }
            self.core.take(&job);
            let mut run = Run::of(job);
            let room = due.saturating_sub(self.batch.len() as u64).saturating_sub(1);
            self.core.extend(&mut run, room as usize, &ring);
            // There is room: no more is due than a batch has.
            self.batch.push(&run);
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.sent(self.batch.len() as u64);
            late = late.min(self.batch.len() as u64);
        }
        bump(&mut self.core.counters_mut().sent_late, late);
        next
    }

    /// Sends to one leg what it takes of the batch.
    fn send(&mut self, number: usize, memory: &Memory, now_ns: u64) {
        let Some(leg) = self.legs.get_mut(number).and_then(Option::as_mut) else { return };
        let batch = &mut self.batch;
        let mut copies =
            self.copies.as_mut().filter(|_| now_ns >= leg.plain_until_ns && leg.sink.takes_pieces());
        // An ICMP answer to an earlier packet is told once, instead of sending. A second error in a row
        // is about this packet.
        let mut answered = false;
        loop {
            let flights = self.flights.as_mut().filter(|flights| flights.has_idle(number));
            let own = flights.as_ref().map(|flights| &flights.pages);
            let message = leg.message(batch, memory, &mut self.gather, own, now_ns);
            let Some(message) = message else { break };
            if message.packets == 0 {
                leg.give_up(batch, 1, bindings::EFAULT);
                continue;
            }
            let flight = flights.and_then(|flights| {
                depart(&mut self.core, flights, number, &message.origin, now_ns)
            });
            if flight.is_none() && !matches!(message.origin, Origin::Copy) {
                leg.copy_until(now_ns.saturating_add(COPY_NS));
                continue;
            }
            let lent = matches!(message.origin, Origin::Copy)
                && self.gather.bytes() >= COPIES_MIN
                && copies.as_mut().is_some_and(|copies| copies.copy(&mut self.gather));
            let counters = self.core.counters_mut();
            bump(&mut counters.socket_calls, 1);
            let sent = leg.sink.send(&mut self.gather, message.segment, flight);
            if let (Some(flight), Some(flights)) = (flight, &mut self.flights) {
                flights.away(flight, if sent.is_ok() { message.packets } else { 0 });
            }
            let errno = match sent {
                Ok(()) => {
                    if matches!(message.origin, Origin::Trial(_)) {
                        leg.pages = Pages::Trial;
                    }
                    leg.took(batch, &message, self.gather.bytes(), now_ns);
                    if message.packets > 1 {
                        bump(&mut counters.coalesced, message.packets as u64);
                    }
                    answered = false;
                    continue;
                }
                Err(errno) => errno,
            };
            match judge(errno, &message, answered) {
                Verdict::Blocked if leg.sink.is_waiting() => {
                    leg.blocked_since.get_or_insert(now_ns);
                    return;
                }
                // Once more: space may have come before it waited for some.
                Verdict::Blocked => leg.sink.wait_for_space(),
                Verdict::Icmp => {
                    bump(&mut leg.figures.external_drops, 1);
                    bump(&mut counters.external_drops, 1);
                    counters.send_errno = bindings::ECONNREFUSED.into();
                    answered = true;
                    continue;
                }
                // A buffer takes fewer pieces than this (net.core.max_skb_frags), or the packet is too long.
                _ if lent && errno == bindings::EMSGSIZE => {
                    leg.plain_until_ns = now_ns.saturating_add(COPY_NS);
                    copies = None;
                }
                Verdict::Split => leg.offload = false,
                // The plain way tells whether it has to do with the pages.
                Verdict::GiveUp if flight.is_some() => {
                    leg.copy_until(now_ns.saturating_add(COPY_NS));
                }
                Verdict::GiveUp => leg.give_up(batch, message.packets, errno),
            }
            answered = false;
        }
        leg.sink.wait_no_more();
    }

    /// Ends the waiting for legs that take nothing for too long.
    fn give_up_stalled(&mut self, now_ns: u64) {
        let limit_ns = stall_limit_ns(self.legs.count);
        let batch = &mut self.batch;
        for leg in self.legs.iter_mut() {
            let since_ns = leg.blocked_since.unwrap_or(now_ns);
            if now_ns.saturating_sub(since_ns) >= limit_ns {
                leg.give_up(batch, usize::MAX, bindings::EAGAIN);
                // Still blocked: the next batch is given up at once, until it takes something.
                leg.blocked_since = Some(since_ns);
            }
        }
    }

    /// Releases the batch: every leg is done with it.
    fn finish_batch(&mut self, memory: &Memory, now_ns: u64) {
        self.core.finish_batch(&self.batch, now_ns, &memory.ring());
        self.batch.clear();
        for leg in self.legs.iter_mut() {
            leg.at = Place::default();
        }
    }

    /// Publishes positions and figures, and wakes the writer if it waits for them.
    fn publish(&mut self, shared: &Shared, now_ns: u64) {
        let memory = &shared.memory;
        memory.counters().publish(&self.core.counters(now_ns).to_words());
        for (at, leg) in self.legs.places.iter().enumerate() {
            if let Some(leg) = leg {
                memory.leg(at).publish(&leg.figures.to_words());
            }
        }
        if let Some(sender) = self.core.sender() {
            memory.source(0).publish(&sender.to_words());
        }
        self.clock.publish_at(memory, now_ns);
        memory.live(status::HEAD).store_release(self.core.head());
        self.core.publish_tail(memory.live(status::TAIL));
        if self.core.should_wake(memory.control(WRITER).wake_at.load()) {
            trace::wake(self.id, WRITER as u32, self.core.tail());
            let [writer, ..] = &shared.waits;
            writer.wake(WRITABLE);
        }
    }

    /// Gives up what was not sent.
    ///
    /// What the network still reads has been counted as sent. Its slots are not released before the network
    /// lets go of them, and that is looked at by [`land`](Self::land).
    fn stop(&mut self, shared: &Shared) {
        let memory = &shared.memory;
        self.running = false;
        for leg in self.legs.iter_mut() {
            leg.sink.wait_no_more();
            leg.give_up(&mut self.batch, usize::MAX, bindings::ECANCELED);
        }
        self.finish_batch(memory, monotonic_ns());
        self.core.observe_head(memory.control(WRITER).position.load_acquire());
        let ring = memory.ring();
        while let Some(job) = self.core.peek(&ring) {
            self.core.take(&job);
            self.core.failed(job.position, bindings::ECANCELED);
        }
        awake(memory.live(status::NEED_KICK));
        self.asleep = false;
        memory.live(status::STATE).store(abi::STATE_STOPPED);
        let now_ns = monotonic_ns();
        self.land(now_ns);
        self.publish(shared, now_ns);
    }
}

/// A flight for the send of a message, if it needs one, by which its positions are then held. `None`: it
/// needs none, or cannot have one.
fn depart(
    core: &mut TransmitCore<KVVec<Progress>>,
    flights: &mut Flights,
    leg: usize,
    origin: &Origin,
    since_ns: u64,
) -> Option<Departure> {
    let (first, count) = match origin {
        Origin::Copy => return None,
        Origin::Slots { first, count } => (*first, *count),
        Origin::Trial(_) => (0, 0),
    };
    if count != 0 && !core.hold(first, count) {
        return None;
    }
    let flight = flights.depart(leg, Trip { first, count, packets: 0, since_ns });
    if flight.is_none() {
        core.let_go(first, count);
    }
    flight
}

/// Packets that follow each other.
#[derive(Clone, Copy, Default)]
struct Neighbours {
    packets: usize,
    bytes: usize,
    /// Bytes of the first, and its position and that of the last.
    len: u32,
    first: u64,
    last: u64,
}

impl Leg {
    /// `flags`: those of [`ioctl::AddLeg`]. `alone`: the stream has no other.
    fn new(sink: UdpSink, flags: u32, alone: bool) -> Self {
        let figures = LegFigures { socket_buffer: sink.buffer(), ..LegFigures::default() };
        let may = alone && flags & ioctl::LEG_NO_ZEROCOPY == 0;
        let pages = if may { Pages::After(0) } else { Pages::Never };
        let offload = flags & ioctl::LEG_NO_GSO == 0;
        Self { sink, offload, pages, plain_until_ns: 0, at: Place::default(), blocked_since: None, figures }
    }

    /// Sends nothing from the ring's own pages before `from_ns`.
    fn copy_until(&mut self, from_ns: u64) {
        if self.pages != Pages::Never {
            self.pages = Pages::After(from_ns);
        }
    }

    /// The next send of the batch, with its parts in `gather`; `None` when this leg is done with it.
    fn message(
        &self,
        batch: &Batch<KVVec<Run>>,
        memory: &Memory,
        gather: &mut Gather,
        own: Option<&SlotPages>,
        now_ns: u64,
    ) -> Option<Message> {
        gather.clear();
        let first = batch.parts(&self.at, 1).next()?;
        let together = self.neighbours(batch);
        let parts = batch.parts(&self.at, together.packets);
        let own = own.filter(|_| together.bytes >= PAGES_MIN);
        match (self.pages, own) {
            (Pages::After(from_ns), Some(_)) if now_ns >= from_ns => {
                if let Ok(copy) = memory.slot_copy(first.slot, first.len) {
                    gather.add_pieces(copy.pieces());
                    return Some(Message { packets: 1, segment: None, origin: Origin::Trial(copy) });
                }
            }
            (Pages::Granted, Some(own)) => {
                if add_pages(parts, memory, own, gather) {
                    return Some(together.of_slots());
                }
                gather.clear();
            }
            _ => {}
        }
        let parts = batch.parts(&self.at, together.packets);
        Some(together.of_copies(add_memory(parts, memory, gather)))
    }

    /// Those that may leave in one send, the first of them at least.
    ///
    /// With offload, neighbours of equal length go together. A shorter one may close a message: that is
    /// what a segmented message looks like on the wire, too.
    fn neighbours(&self, batch: &Batch<KVVec<Run>>) -> Neighbours {
        let most = if self.offload { SEGMENTS_MAX } else { 1 };
        let mut together = Neighbours::default();
        for part in batch.parts(&self.at, most) {
            if together.packets == 0 {
                (together.first, together.len) = (part.position, part.len);
            }
            let room = DATAGRAM_MAX.saturating_sub(together.bytes);
            let fit = room.checked_div(part.len as usize).unwrap_or(0).max(usize::from(together.packets == 0));
            let count = match part.len.cmp(&together.len) {
                Ordering::Less => fit.min(1),
                Ordering::Equal => fit.min(part.count),
                Ordering::Greater => 0,
            };
            if count == 0 {
                break;
            }
            together.packets = together.packets.saturating_add(count);
            together.bytes = together.bytes.saturating_add(count.saturating_mul(part.len as usize));
            together.last = part.position.wrapping_add(count as u64).wrapping_sub(1);
            if count < part.count || part.len < together.len {
                break;
            }
        }
        together
    }

    /// The network took a message of so many `bytes`.
    fn took(&mut self, batch: &mut Batch<KVVec<Run>>, message: &Message, bytes: usize, now_ns: u64) {
        batch.take(&mut self.at, message.packets);
        bump(&mut self.figures.received, message.packets as u64);
        bump(&mut self.figures.bytes, bytes as u64);
        self.figures.last_ns = now_ns;
        self.blocked_since = None;
    }

    /// Counts `packets` more of the batch, or what there are, as given up on this leg.
    fn give_up(&mut self, batch: &mut Batch<KVVec<Run>>, packets: usize, errno: u32) {
        let packets = batch.refuse(&mut self.at, packets, errno);
        bump(&mut self.figures.lost, packets as u64);
        self.blocked_since = None;
    }
}

impl Neighbours {
    /// The length of each of `packets`, if they are several.
    fn segment(&self, packets: usize) -> Option<u16> {
        u16::try_from(self.len).ok().filter(|_| packets > 1)
    }

    /// A message of the first `packets` of them, which are copied.
    fn of_copies(&self, packets: usize) -> Message {
        Message { packets, segment: self.segment(packets), origin: Origin::Copy }
    }

    /// A message of them, whose slots are read.
    fn of_slots(&self) -> Message {
        // Positions that were passed over are among them.
        let count = self.last.wrapping_sub(self.first).wrapping_add(1) as u32;
        let origin = Origin::Slots { first: self.first, count };
        Message { packets: self.packets, segment: self.segment(self.packets), origin }
    }
}

/// Adds the memory of packets. Returns of how many: all, unless one is not in the stream's memory.
fn add_memory(parts: impl Iterator<Item = Part>, memory: &Memory, gather: &mut Gather) -> usize {
    let mut packets = 0_usize;
    for part in parts {
        // Full slots are one behind the other.
        let (each, len) = if memory.is_full(part.len) {
            (part.count, (part.len as usize).saturating_mul(part.count))
        } else {
            (1, part.len as usize)
        };
        let mut at = 0;
        while at < part.count {
            // The core has checked slot and length, so there is such memory.
            let address = memory.slots_bytes(part.slot.wrapping_add(at as u32), each, part.len);
            if !address.is_some_and(|address| gather.add(address, len)) {
                return packets;
            }
            at = at.saturating_add(each);
            packets = packets.saturating_add(each);
        }
    }
    packets
}

/// Adds the pages of packets. `false`: copying them costs less. They are in more pieces of pages than one send can have,
/// or the pieces are small.
fn add_pages(
    parts: impl Iterator<Item = Part>,
    memory: &Memory,
    own: &SlotPages,
    gather: &mut Gather,
) -> bool {
    let (mut from, mut to) = (0, 0);
    for part in parts {
        let each = if memory.is_full(part.len) { part.count } else { 1 };
        let len = (part.len as usize).saturating_mul(each);
        let mut at = 0;
        while at < part.count {
            let begin = memory.slot_offset(part.slot.wrapping_add(at as u32));
            if begin != to {
                if !gather.add_pieces(own.pieces(from, to)) {
                    return false;
                }
                from = begin;
            }
            to = begin.saturating_add(len);
            at = at.saturating_add(each);
        }
    }
    gather.add_pieces(own.pieces(from, to))
        && gather.bytes() >= gather.count().saturating_mul(PIECE_MIN)
}

/// What `errno` means for a message. `answered`: the send before had met an ICMP error.
fn judge(errno: u32, message: &Message, answered: bool) -> Verdict {
    match errno {
        bindings::EAGAIN | bindings::ENOBUFS => Verdict::Blocked,
        bindings::EINVAL
        | bindings::EIO
        | bindings::EOPNOTSUPP
        | bindings::ENOPROTOOPT
        | bindings::EMSGSIZE
            if message.packets > 1 =>
        {
            Verdict::Split
        }
        bindings::ECONNREFUSED
        | bindings::EHOSTUNREACH
        | bindings::ENETUNREACH
        | bindings::EHOSTDOWN
            if !answered =>
        {
            Verdict::Icmp
        }
        _ => Verdict::GiveUp,
    }
}
