//! The engine's work done in the reader's own call: no hop to another thread and back.
//!
//! What lives here: who does the work when. What does not: the work ([`super::receive`]) and the
//! engine's thread ([`super::worker`]).
//!
//! A reader that waits in `read` and is the stream's only one takes packets from the sockets itself,
//! never more at a time than a call takes. The engine's thread does not listen to them meanwhile. When the
//! reader goes away with what it has, a timer runs: if it is not back in time, the engine's thread takes
//! over, so that a reader that stands still loses no more than before. That time is a quarter of what the
//! sockets' buffers hold of what comes, and never long. The engine's thread takes over at once when there is
//! another reader, when the stream's file is asked for (whoever waits for it is to be woken by the engine),
//! when the buffers hold too little, when the reader does not catch up with the sockets, and
//! for a while when a socket has dropped something: then somebody has to take packets out while the
//! reader is at work. Each such while is twice as long as the last.
//!
//! A reader that was asked to ([`Expect`]) is awake when the next packet comes, and looks at the sockets until then.
//!
//! Everything here happens under the stream's lock, except that the reader waits without it; `inside`
//! says that it does.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::expect::{Expect, Lookout};
use super::receive::{Lent, ReaderPort};
use super::receive_task::{OwnPort, Port, ReceiveTask, Serving, Stream, TAG_AWAY, TAG_RTCP};
use super::worker::{NEVER, Task, drain};
use crate::clock::monotonic_ns;
use crate::poll::wait_events;

/// How long the reader may be away before the engine's thread takes over, at most: the figures wait as
/// long, and what is no RTP. To see whether it is back wakes that thread as often, beside a reader that is to have its
/// packet. No multiple of the times between packets that there are (1 ms, 125 us): a timer that is set
/// with one packet would wake the thread just when another comes ...
const AWAY_MAX_NS: u64 = 94_300_000;
/// ... and at least: in less it gets nothing done.
const AWAY_MIN_NS: u64 = 500_000;
/// It may be away for this part of what the sockets hold.
const AWAY_SHARE: u64 = 4;
/// Times in a row that the sockets had more than was taken, by which the reader does not catch up.
const BEHIND_MAX: u32 = 32;
/// Rings smaller than this are emptied by the reader while the engine's thread fills them.
const SLOTS_MIN: usize = 256;
/// How long the engine's thread does the work when the sockets hold too little, or the reader is behind.
const CROWDED_NS: u64 = 100_000_000;
/// A wait that is over by then was none: packets come faster than it takes ...
const SHORT_NS: u64 = 10_000;
/// ... and for so many times they are not waited for, if they are there: RTCP and all else is only seen when
/// the reader waits.
const EAGER_MAX: u32 = 16;
/// Who waits in a receive call looks at least this often, nanoseconds, at what else there is.
const LOOK_NS: u64 = 5_000_000;
/// A stream is dense when its packets do not let wait for longer.
const DENSE_NS: u64 = 4_000_000;
/// Packets pour when so many come in a second, 10 us apart in the mean, ...
const POURING_RATE: u64 = 100_000;
/// ... and the last came no longer after each other, nor longer ago: ...
const POURING_NS: u64 = 10_000;
/// ... then some are let come before any is asked for, nanoseconds. Threads without a short timer slack (prctl(2))
/// sleep 50 us longer. To wake one for each packet costs more than all that is done with it.
const REST_NS: u64 = 20_000;
/// A thread that once slept for longer than this instead (its timer slack is set to more) does not rest any more.
const RESTED_MAX_NS: u64 = 1_000_000;
/// How long the engine's thread does the work after the first drop.
const PAUSE_NS: u64 = 1_000_000_000;
/// The reader's own event, beside the tags of sockets, ...
const TAG_EVENT: u16 = u16::MAX;
/// ... and the timer that has it look out for a packet.
const TAG_ALARM: u16 = u16::MAX - 1;
/// That timer is not waited for longer than this.
const ALARM_LATE: Duration = Duration::from_millis(3);
/// From one look at the sockets to the next, pauses of the processor.
const PAUSES: u32 = 8;
/// Files of a stream: two legs, their RTCP, the reader's event and its timer.
const EVENTS_MAX: usize = 8;

/// What is known of a reader that does the engine's work.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    /// Who does it; `None`: the engine's thread.
    port: Option<Arc<OwnPort>>,
    /// It waits, without the lock.
    inside: bool,
    /// The sockets may have more than was taken.
    more: bool,
    /// Not before this time, CLOCK_MONOTONIC in nanoseconds.
    not_before_ns: u64,
    /// How often a socket has dropped something while the reader did the work.
    dropped: u32,
    /// Runs while it is away, and may run on when it is back: setting a timer costs more than letting it
    /// run out.
    timer: Option<OwnedFd>,
    /// When that runs out, CLOCK_MONOTONIC in nanoseconds; 0: it does not run.
    timer_ns: u64,
    /// Until when it may be away.
    back_ns: u64,
    /// Times in a row that the sockets had more than was taken.
    behind: u32,
    /// So many times packets are asked for before they are waited for: they are likely to be there already.
    eager: u32,
    /// It waits in a receive call: nobody else can receive.
    lent: bool,
    /// The last packet did not let wait for long.
    dense: bool,
    /// Until when more packets are let come before any is asked for, CLOCK_MONOTONIC in nanoseconds.
    rest_until_ns: u64,
    /// It slept for much longer than it should.
    restless: bool,
    /// When RTCP was looked at last, CLOCK_MONOTONIC in nanoseconds.
    looked_ns: u64,
    /// What the sockets had dropped when it began.
    drops: u64,
    /// When the next packet is expected.
    expect: Expect,
    /// Wakes it before that.
    alarm: Option<OwnedFd>,
    /// Packets that `expect` knows of.
    known: u64,
}

impl Inline {
    /// Nobody does it yet. A reader will look out for each packet for `busy_poll_ns` at most.
    pub(super) fn new(busy_poll_ns: u64) -> Self {
        Self { expect: Expect::new(busy_poll_ns), ..Self::default() }
    }

    /// Whether it waits in a receive call.
    pub(super) fn is_lent(&self) -> bool {
        self.lent
    }

    /// It will find no stream when it is back.
    pub(super) fn forget_lent(&mut self) {
        self.lent = false;
    }

    /// Whether to ask for packets before they are waited for: they are likely to be there.
    fn asks_first(&self, stream: &Stream, wait_ns: u64) -> bool {
        match self.dense && waits_in_call(stream, wait_ns) {
            // That takes at once what is there; and where packets pour, more are let come.
            true => self.eager > 0 && stream.rate() < POURING_RATE,
            false => self.more || self.eager > 0,
        }
    }

    /// Counts, after a look at the sockets, how often in a row they had more.
    fn count_behind(&mut self) {
        self.behind = if self.more { self.behind.saturating_add(1) } else { 0 };
    }
}

/// What a reader's attempt to do the engine's work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driven {
    /// Something was done: there may be something to read.
    Worked,
    /// The time ran out, whatever was done.
    TimedOut,
    /// The engine's thread does the work: the reader waits for its event, and asks again after this time,
    /// CLOCK_MONOTONIC in nanoseconds.
    Elsewhere { until_ns: u64 },
}

impl Driven {
    /// Something was done until `now_ns`. What comes without an end and is no news must not keep the reader.
    fn by(now_ns: u64, until_ns: u64) -> Self {
        if now_ns < until_ns { Self::Worked } else { Self::TimedOut }
    }
}

impl ReceiveTask {
    /// Does what there is to do, or waits until `until_ns` of CLOCK_MONOTONIC for it. `poller` is the
    /// reader's: what it waits with.
    pub(crate) fn drive(
        &self,
        port: &Arc<OwnPort>,
        poller: &mut Option<OwnedFd>,
        until_ns: u64,
    ) -> Driven {
        let driven = catch_unwind(AssertUnwindSafe(|| self.try_drive(port, poller, until_ns)));
        driven.unwrap_or_else(|_| {
            // As when the engine's thread finds it: the stream ends, and says so.
            self.failed();
            Driven::Elsewhere { until_ns: u64::MAX }
        })
    }

    fn try_drive(
        &self,
        port: &Arc<OwnPort>,
        poller: &mut Option<OwnedFd>,
        until_ns: u64,
    ) -> Driven {
        let mut serving = self.serving();
        if !serving.begin_inline(port, poller) {
            return Driven::Elsewhere { until_ns: serving.inline.not_before_ns };
        }
        let now = monotonic_ns();
        let Some(wait_ns) = serving.work_or_wait(now, until_ns) else {
            return serving.away(now, Driven::by(now, until_ns));
        };
        let lookout = serving.lookout(now, wait_ns);
        // Who never sleeps has to look at RTCP and the rest now and then.
        let looks = lookout.is_some_and(|lookout| lookout.sleep_until_ns.is_none())
            && now.saturating_sub(serving.inline.looked_ns) >= LOOK_NS;
        if let Some(lookout) = lookout.filter(|_| !looks) {
            return self.look_out(serving, port, poller, lookout, until_ns);
        }
        if !looks && let Some(mut lent) = serving.lend(wait_ns) {
            let rest = serving.rest(now);
            drop(serving);
            let rested_ns = rest.map(|rest| lent.rest(rest));
            let received = lent.wait().unwrap_or_else(|error| {
                tracing::warn!(%error, "receive");
                0
            });
            let woken_ns = monotonic_ns();
            let mut serving = self.serving();
            serving.inline.restless |= rested_ns.is_some_and(|rested_ns| rested_ns > RESTED_MAX_NS);
            serving.take_back(lent, received, now, woken_ns);
            if serving.registration.is_none() {
                self.returned.notify_all();
            }
            return serving.away(woken_ns, Driven::by(woken_ns, until_ns));
        }
        let Some(poller) = poller.as_ref() else {
            return Driven::Elsewhere { until_ns: u64::MAX };
        };
        serving.inline.inside = true;
        drop(serving);
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS_MAX];
        let wait = Some(Duration::from_nanos(if looks { 0 } else { wait_ns }));
        // An error is a signal: whoever reads looks at the time again.
        let ready = wait_events(poller, &mut events, wait).unwrap_or_default();
        let woken_ns = monotonic_ns();
        let mut serving = self.serving();
        serving.inline.inside = false;
        serving.serve(ready.iter().map(|event| event.data.u64() as u16));
        let waited_ns = woken_ns.saturating_sub(now);
        serving.inline.eager = if waited_ns < SHORT_NS { EAGER_MAX } else { 0 };
        serving.inline.dense = waited_ns < DENSE_NS;
        serving.inline.looked_ns = woken_ns;
        serving.away(woken_ns, Driven::by(woken_ns, until_ns))
    }
}

impl ReceiveTask {
    /// Sleeps until a packet is about to come, unless one comes before, and looks for it from then on.
    fn look_out<'a>(
        &'a self,
        mut serving: MutexGuard<'a, Serving>,
        port: &Arc<OwnPort>,
        poller: &Option<OwnedFd>,
        lookout: Lookout,
        until_ns: u64,
    ) -> Driven {
        serving.inline.inside = true;
        if let (Some(alarm_ns), Some(poller)) = (lookout.sleep_until_ns, poller) {
            serving.inline.expect.sleeps();
            serving.set_alarm(alarm_ns);
            drop(serving);
            let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS_MAX];
            // Whatever becomes of the timer, that is the end of it; it counts in whole milliseconds.
            let most = Duration::from_nanos(alarm_ns.saturating_sub(monotonic_ns())) + ALARM_LATE;
            let ready = wait_events(poller, &mut events, Some(most)).unwrap_or_default();
            let woken_ns = monotonic_ns();
            serving = self.serving();
            let tags = ready.iter().map(|event| event.data.u64() as u16);
            if woken_ns < alarm_ns || tags.clone().any(|tag| tag != TAG_ALARM) {
                serving.inline.inside = false;
                serving.serve(tags);
                return serving.away(woken_ns, Driven::by(woken_ns, until_ns));
            }
            serving.inline.expect.woke(woken_ns);
        }
        let mut looked_ns = monotonic_ns();
        loop {
            let own = serving.inline.port.as_ref().is_some_and(|own| Arc::ptr_eq(own, port));
            let now = monotonic_ns();
            serving.inline.expect.looked(std::mem::replace(&mut looked_ns, now), now);
            let came = own && serving.look();
            if !own || came || now >= lookout.until_ns {
                serving.inline.inside = false;
                return match own {
                    true => serving.away(now, Driven::by(now, until_ns)),
                    false => Driven::Elsewhere { until_ns: serving.inline.not_before_ns },
                };
            }
            drop(serving);
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
            serving = self.serving();
        }
    }
}

impl Serving {
    /// Until when the reader sleeps and looks for the next packet; `None`: it waits, for `wait_ns`.
    fn lookout(&mut self, now: u64, wait_ns: u64) -> Option<Lookout> {
        let mut lookout = self.inline.expect.lookout(now)?;
        // What is to be done before that comes first.
        let end_ns = now.saturating_add(wait_ns);
        lookout.until_ns = lookout.until_ns.min(end_ns);
        let sleeps = |sleep_ns| sleep_ns < end_ns && self.inline.alarm.is_some();
        lookout.sleep_until_ns.is_none_or(sleeps).then_some(lookout)
    }

    /// Takes what the sockets have. Returns whether there was anything, or the stream has ended.
    fn look(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return true };
        let before = stream.taken();
        self.inline.more = false;
        for leg in 0..stream.legs() {
            self.inline.more |= take(stream, leg);
        }
        let came = stream.taken() != before;
        if came {
            self.inline.dense = true;
            self.inline.eager = 0;
            self.inline.count_behind();
        }
        came
    }

    /// Tells of what has come since the last time.
    fn learn(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| self.inline.expect.is_on()) {
            let taken = stream.taken();
            let new = taken.wrapping_sub(std::mem::replace(&mut self.inline.known, taken));
            self.inline.expect.came(stream.latest_arrival_ns(), new);
        }
    }

    /// Has the reader wake up at `at_ns`.
    fn set_alarm(&self, at_ns: u64) {
        if let (Some(alarm), Ok(it_value)) =
            (&self.inline.alarm, Timespec::try_from(Duration::from_nanos(at_ns)))
        {
            let once = Itimerspec { it_interval: Timespec::default(), it_value };
            // It refuses only times that are none.
            let _ = timerfd_settime(alarm, TimerfdTimerFlags::ABSTIME, &once);
        }
    }

    /// Whether the reader of `port` does the engine's work, from now on or as before.
    fn begin_inline(&mut self, port: &Arc<OwnPort>, poller: &mut Option<OwnedFd>) -> bool {
        let (Some(stream), Some(registration)) = (&mut self.stream, &self.registration) else {
            return false;
        };
        if let Some(own) = &self.inline.port {
            if !Arc::ptr_eq(own, port) {
                return false;
            }
            // Somebody may have asked for the wake-up, to wait for the file.
            not_to_be_woken(port, stream);
            return true;
        }
        if !stream.has_one_reader() || stream.slot_count() < SLOTS_MIN {
            return false;
        }
        let now = monotonic_ns();
        if now < self.inline.not_before_ns {
            return false;
        }
        if away_ns(stream) < AWAY_MIN_NS {
            // To ask each time takes the lock that the engine's thread works under.
            self.inline.not_before_ns = now.saturating_add(CROWDED_NS);
            return false;
        }
        if self.inline.expect.is_on() && self.inline.alarm.is_none() && poller.is_none() {
            // Without one it does not sleep for what it expects: it waits as always.
            self.inline.alarm =
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).ok();
        }
        let alarm = self.inline.alarm.as_ref();
        let prepared =
            prepare(stream, port, poller, alarm).and_then(|()| match &self.inline.timer {
                Some(_) => Ok(()),
                None => {
                    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
                    registration.watch(&timer, TAG_AWAY, EventFlags::IN).map_err(|_| EMFILE)?;
                    self.inline.timer = Some(timer);
                    Ok(())
                }
            });
        if prepared.is_err() || !listen(stream, registration, EventFlags::empty()) {
            // No file descriptor left: the engine's thread does it as well.
            listen(stream, registration, EventFlags::IN);
            self.inline.not_before_ns = u64::MAX;
            return false;
        }
        not_to_be_woken(port, stream);
        self.inline.drops = stream.external_drops();
        self.inline.more = true;
        self.inline.port = Some(port.clone());
        true
    }

    /// Has the engine's thread do the work again.
    pub(super) fn end_inline(&mut self) {
        if self.inline.port.take().is_none() {
            return;
        }
        self.set_timer(0, 0);
        // Until it is back, nobody else can receive.
        if !self.inline.lent {
            self.hand_over();
        }
    }

    /// The engine's thread listens again.
    fn hand_over(&self) {
        if let (Some(stream), Some(registration)) = (&self.stream, &self.registration) {
            listen(stream, registration, EventFlags::IN);
            // It asks for the deadline.
            registration.kick();
        }
    }

    /// What the reader needs to wait `wait_ns` in a receive call. `None`: it waits for all files of the stream: for
    /// more precisely that long, for more than one socket, or where nothing much comes.
    fn lend(&mut self, wait_ns: u64) -> Option<Lent> {
        let stream = self.stream.as_mut().filter(|_| self.inline.dense)?;
        if !waits_in_call(stream, wait_ns) {
            return None;
        }
        let lent = stream.lend(0)?;
        (self.inline.inside, self.inline.lent) = (true, true);
        Some(lent)
    }

    /// The reader is back from a receive call that began at `since_ns`.
    fn take_back(&mut self, lent: Lent, received: usize, since_ns: u64, now_ns: u64) {
        (self.inline.inside, self.inline.lent) = (false, false);
        let waited_ns = now_ns.saturating_sub(since_ns);
        self.inline.dense = received > 0 && waited_ns < 2 * DENSE_NS;
        self.inline.eager = if waited_ns < SHORT_NS { EAGER_MAX } else { 0 };
        let Some(stream) = &mut self.stream else { return };
        self.inline.more = stream.take_back(0, lent, received, now_ns);
        self.inline.count_behind();
        let dense = stream.rate() >= POURING_RATE && !self.inline.more;
        let pouring = dense && !self.inline.restless && stream.is_pouring(POURING_NS, now_ns);
        self.inline.rest_until_ns = if pouring { now_ns.saturating_add(REST_NS) } else { 0 };
        if self.inline.port.is_none() {
            self.hand_over();
        }
    }

    /// How long more packets are let come from now on.
    fn rest(&self, now_ns: u64) -> Option<Duration> {
        let left_ns = self.inline.rest_until_ns.checked_sub(now_ns)?;
        (left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }

    /// Somebody else may read now: then the engine's thread serves both.
    pub(super) fn check_inline(&mut self) {
        let alone = self.stream.as_ref().is_some_and(Stream::has_one_reader);
        if let Some(port) = self.inline.port.clone().filter(|_| !alone) {
            self.end_inline();
            Port::Own(port).wake();
        }
    }

    /// The engine's thread has done something that a waiting reader would want to know.
    pub(super) fn tell_inline(&self) {
        if let Some(port) = self.inline.port.as_ref().filter(|_| self.inline.inside) {
            Port::Own(port.clone()).wake();
        }
    }

    /// Somebody is about to wait for the stream's file: the engine's thread is to wake them.
    pub(super) fn file_is_asked_for(&mut self) {
        if !self.inline.inside {
            self.end_inline();
        }
    }

    /// The timer ran out.
    pub(super) fn reader_is_away(&mut self) {
        if let Some(timer) = &self.inline.timer {
            drain(timer);
        }
        self.inline.timer_ns = 0;
        if self.inline.inside {
            return;
        }
        let now = monotonic_ns();
        let until = self.inline.back_ns;
        if until <= now {
            self.end_inline();
        } else if self.inline.port.is_some() {
            self.set_timer(now, until);
        }
    }

    /// When the engine's thread is to look again.
    pub(super) fn deadline(&mut self) -> u64 {
        match &mut self.stream {
            Some(stream) if self.inline.port.is_none() && !self.inline.lent => stream.deadline(),
            _ => NEVER,
        }
    }

    /// Does what is known to be due at `now`. If that is nothing: how long to wait, nanoseconds.
    fn work_or_wait(&mut self, now: u64, until_ns: u64) -> Option<u64> {
        let stream = self.stream.as_mut()?;
        let tail = self.inline.port.as_ref()?.page().view().position.load();
        stream.learn_tails(now);
        if stream.head() != tail {
            // The engine's thread has published something since the reader looked.
            return None;
        }
        if stream.deadline() <= now {
            stream.tick();
        }
        let wait_ns = stream.deadline().min(until_ns).saturating_sub(now);
        let looks = self.inline.dense && now.saturating_sub(self.inline.looked_ns) >= LOOK_NS;
        if looks && waits_in_call(stream, wait_ns) {
            // RTP first, and no more of it than the reader can give room back for in time.
            let before = stream.taken();
            self.inline.more = take(stream, 0);
            self.inline.count_behind();
            if !self.inline.more {
                self.inline.looked_ns = now;
                take_rtcp(stream, 0);
            }
            if stream.taken() != before {
                return None;
            }
        }
        if self.inline.asks_first(stream, wait_ns) {
            self.inline.more = false;
            let before = stream.taken();
            for leg in 0..stream.legs() {
                self.inline.more |= take(stream, leg);
            }
            self.inline.count_behind();
            if stream.taken() != before {
                self.inline.eager = self.inline.eager.saturating_sub(1);
                return None;
            }
            self.inline.eager = 0;
        }
        if stream.head() != tail {
            return None;
        }
        Some(stream.deadline().min(until_ns).saturating_sub(now))
    }

    /// Files are ready. RTCP comes after the RTP that was there before it: when the sockets have more
    /// than fits, it waits for the next time.
    fn serve(&mut self, tags: impl Iterator<Item = u16> + Clone) {
        if tags.clone().any(|tag| tag == TAG_EVENT)
            && let Some(port) = &self.inline.port
        {
            drain(port.event());
        }
        let Some(stream) = &mut self.stream else { return };
        // Whatever socket has more is among them.
        self.inline.more = false;
        for leg in tags.clone().filter(|tag| *tag < TAG_RTCP) {
            self.inline.more |= take(stream, leg.into());
        }
        self.inline.count_behind();
        if self.inline.more {
            return;
        }
        let rtcp = tags.filter(|tag| *tag < TAG_ALARM).filter_map(|tag| tag.checked_sub(TAG_RTCP));
        for leg in rtcp {
            take_rtcp(stream, leg.into());
        }
    }

    /// The reader goes away with what it has, at `now` or a little later.
    fn away(&mut self, now: u64, driven: Driven) -> Driven {
        self.learn();
        let (Some(stream), Some(_)) = (&self.stream, &self.inline.port) else { return driven };
        let drops = stream.external_drops();
        let may_ns = away_ns(stream);
        if drops != self.inline.drops {
            let pause_ns = PAUSE_NS.saturating_mul(1 << self.inline.dropped.min(20));
            self.inline.dropped = self.inline.dropped.saturating_add(1);
            self.pause(now, pause_ns);
        } else if may_ns < AWAY_MIN_NS || self.inline.behind >= BEHIND_MAX {
            self.pause(now, CROWDED_NS);
        } else {
            self.inline.back_ns = now.saturating_add(may_ns);
            if self.inline.timer_ns <= now || self.inline.timer_ns > self.inline.back_ns {
                self.set_timer(now, self.inline.back_ns);
            }
        }
        driven
    }

    /// Has the engine's thread do the work for so long.
    fn pause(&mut self, now_ns: u64, pause_ns: u64) {
        self.inline.not_before_ns = now_ns.saturating_add(pause_ns);
        self.end_inline();
    }

    /// Has the timer run out at `until_ns`; 0: it stops.
    fn set_timer(&mut self, now_ns: u64, until_ns: u64) {
        let time = Duration::from_nanos(until_ns.saturating_sub(now_ns));
        let (Some(timer), Ok(it_value)) = (&self.inline.timer, Timespec::try_from(time)) else {
            return;
        };
        self.inline.timer_ns = until_ns;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        // It refuses only times that are none.
        let _ = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once);
    }
}

const EMFILE: rustix::io::Errno = rustix::io::Errno::MFILE;

/// For how long the reader may be away.
fn away_ns(stream: &Stream) -> u64 {
    (stream.hold_ns() / AWAY_SHARE).min(AWAY_MAX_NS)
}

/// Whether a reader that waits in a receive call is back within this time.
fn waits_in_call(stream: &Stream, wait_ns: u64) -> bool {
    stream.patience().is_some_and(|most| most.as_nanos() <= wait_ns.into())
}

/// The reader need not be told of what it does itself.
fn not_to_be_woken(port: &OwnPort, stream: &Stream) {
    port.page().view().wake_at.store(stream.head().wrapping_add(i64::MAX as u64));
}

/// Makes what the reader waits with.
fn prepare(
    stream: &Stream,
    port: &OwnPort,
    poller: &mut Option<OwnedFd>,
    alarm: Option<&OwnedFd>,
) -> rustix::io::Result<()> {
    if poller.is_some() {
        return Ok(());
    }
    let new = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let tag = |tag: u16| EventData::new_u64(tag.into());
    for leg in 0..stream.legs() {
        if let Some(socket) = stream.rtp_fd(leg) {
            epoll::add(&new, socket, tag(leg as u16), EventFlags::IN)?;
        }
        if let Some(socket) = stream.rtcp_fd(leg) {
            epoll::add(&new, socket, tag(TAG_RTCP + leg as u16), EventFlags::IN)?;
        }
    }
    epoll::add(&new, port.event(), tag(TAG_EVENT), EventFlags::IN)?;
    if let Some(alarm) = alarm {
        // Each time it runs out is told once: nobody reads it.
        epoll::add(&new, alarm, tag(TAG_ALARM), EventFlags::IN | EventFlags::ET)?;
    }
    *poller = Some(new);
    Ok(())
}

/// What the engine's thread is to be told of the sockets. `false`: not all of them took it.
fn listen(stream: &Stream, registration: &super::worker::Registration, flags: EventFlags) -> bool {
    let mut all = true;
    for leg in 0..stream.legs() {
        if let Some(socket) = stream.rtp_fd(leg) {
            all &= registration.change(socket, leg as u16, flags).is_ok();
        }
        if let Some(socket) = stream.rtcp_fd(leg) {
            all &= registration.change(socket, TAG_RTCP + leg as u16, flags).is_ok();
        }
    }
    all
}

/// Takes from the RTCP socket of `leg`, after all RTP.
fn take_rtcp(stream: &mut Stream, leg: usize) {
    if let Err(error) = stream.receive_rtcp(leg) {
        tracing::warn!(%error, leg, "receive");
    }
}

/// Takes from the RTP socket of `leg`. Returns whether there may be more.
fn take(stream: &mut Stream, leg: usize) -> bool {
    stream.receive_half(leg).unwrap_or_else(|error| {
        tracing::warn!(%error, leg, "receive");
        false
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;
    use crate::config::ReceiveConfig;
    use crate::context::Context;
    use crate::engine::ReceiveEngine;
    use crate::engine::receive_task::Opened;

    const S: u64 = 1_000_000_000;

    /// A stream, its only reader's place, and a sender.
    struct Rig {
        task: Arc<ReceiveTask>,
        index: usize,
        port: Arc<OwnPort>,
        poller: Option<OwnedFd>,
        tx: UdpSocket,
        _context: Context,
    }

    impl Rig {
        fn new() -> Self {
            Self::with_order(10)
        }

        fn with_order(order: u8) -> Self {
            Self::with(order, Duration::ZERO)
        }

        fn with(order: u8, busy_poll: Duration) -> Self {
            let legs = vec!["127.0.0.1:0".parse().unwrap()];
            let config = ReceiveConfig {
                legs,
                announce: false,
                // Nobody is woken for that.
                max_latency: Duration::from_secs(60),
                busy_poll,
                ..ReceiveConfig::default()
            };
            let Opened { task, local, .. } = ReceiveTask::open(&config, order).unwrap();
            let (index, port) = task.add_own_reader(true).unwrap();
            let context = Context::own().unwrap();
            task.clone().start(&context).unwrap();
            let tx = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            tx.connect(local[0]).unwrap();
            let mut rig = Self { task, index, port, poller: None, tx, _context: context };
            // The engine's thread has been told of the stream, and sleeps.
            while rig.drive(S / 1_000) != Driven::TimedOut {}
            rig
        }

        fn drive(&mut self, wait_ns: u64) -> Driven {
            self.task.drive(&self.port, &mut self.poller, monotonic_ns() + wait_ns)
        }

        fn send(&self, sequence: u16) {
            let mut packet = [0; 20];
            rtp_mgr_ring::header::build(&mut packet, false, 96, sequence, 0, 1).unwrap();
            self.tx.send(&packet).unwrap();
        }

        fn head(&self) -> u64 {
            self.task.serving().stream.as_ref().unwrap().head()
        }

        /// The reader has read everything.
        fn read_all(&self) {
            self.port.page().view().position.store_release(self.head());
        }
    }

    #[test]
    fn what_was_published_since_the_reader_looked_is_not_waited_for() {
        let mut rig = Rig::new();
        let begin = monotonic_ns();
        for sequence in 0..20 {
            rig.send(sequence);
            // As the engine's thread, for an event from before the reader came.
            rig.task.ready(0);
            assert_eq!(rig.head(), u64::from(sequence) + 1);
            assert_eq!(rig.drive(60 * S), Driven::Worked);
            rig.read_all();
        }
        // What wakes it otherwise comes twice a second.
        let took_ns = monotonic_ns() - begin;
        assert!(took_ns < 5 * S, "{took_ns} ns");
    }

    #[test]
    fn a_reader_that_leaves_takes_its_charge_along() {
        let rig = Rig::new();
        assert!(rig.task.serving().inline.port.is_some());
        rig.task.remove_own_reader(rig.index);
        assert!(rig.task.serving().inline.port.is_none());
    }

    #[test]
    fn no_timer_runs_for_a_reader_that_lost_its_charge_while_it_waited() {
        let mut rig = Rig::new();
        let (task, port) = (rig.task.clone(), rig.port.clone());
        let mut poller = rig.poller.take();
        std::thread::scope(|scope| {
            let inside =
                scope.spawn(move || task.drive(&port, &mut poller, monotonic_ns() + 60 * S));
            while !rig.task.serving().inline.inside {
                std::thread::yield_now();
            }
            rig.task.add_own_reader(false).unwrap();
            assert_eq!(inside.join().unwrap(), Driven::Worked);
        });
        assert_eq!(rig.task.serving().inline.timer_ns, 0);
    }

    #[test]
    fn time_runs_out_however_much_comes_that_is_no_news() {
        let mut rig = Rig::new();
        // The same packet again and again.
        rig.send(0);
        assert_eq!(rig.drive(60 * S), Driven::Worked);
        rig.read_all();
        for _ in 0..10 {
            rig.send(0);
            assert_eq!(rig.drive(0), Driven::TimedOut);
        }
    }

    impl Inline {
        /// In a receive call, or looking out.
        fn is_waiting(&self) -> bool {
            self.lent || self.inside && self.expect.is_on()
        }
    }

    impl Rig {
        /// A packet comes while the reader waits: it waits in a receive call next.
        fn make_dense(&mut self) {
            self.send(0);
            assert_eq!(self.drive(60 * S), Driven::Worked);
            self.read_all();
            self.task.serving().inline.dense = true;
        }

        /// Runs `meanwhile` once the reader waits in a receive call, and returns what that came to.
        fn while_it_waits(&mut self, meanwhile: impl FnOnce(&Self)) -> Driven {
            self.make_dense();
            self.while_it_drives(meanwhile)
        }

        /// Runs `meanwhile` once the reader waits, in a receive call or for what it looks out for.
        fn while_it_drives(&mut self, meanwhile: impl FnOnce(&Self)) -> Driven {
            let (task, port) = (self.task.clone(), self.port.clone());
            let mut poller = self.poller.take();
            let (driven, poller) = std::thread::scope(|scope| {
                let waiting = scope.spawn(move || {
                    let driven = task.drive(&port, &mut poller, monotonic_ns() + 60 * S);
                    (driven, poller)
                });
                while !self.task.serving().inline.is_waiting() {
                    // It has not begun, or waited in vain already.
                    self.task.serving().inline.dense = true;
                    if waiting.is_finished() {
                        break;
                    }
                    std::thread::yield_now();
                }
                meanwhile(self);
                waiting.join().unwrap()
            });
            self.poller = poller;
            driven
        }
    }

    #[test]
    fn who_waits_in_a_receive_call_has_what_comes() {
        let mut rig = Rig::new();
        assert_eq!(rig.while_it_waits(|rig| rig.send(1)), Driven::Worked);
        assert!(!rig.task.serving().inline.lent);
        // Nothing may have come the first time: the packet is there now.
        while rig.head() < 2 {
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }
    }

    #[test]
    fn a_stop_waits_for_who_waits_in_a_receive_call_and_no_longer() {
        let mut rig = Rig::new();
        let begin = monotonic_ns();
        rig.while_it_waits(|rig| {
            rig.send(1);
            rig.task.stop().unwrap();
            let serving = rig.task.serving();
            assert!(serving.stream.is_none() && !serving.inline.lent);
        });
        assert!(monotonic_ns() - begin < 30 * S);
        // What came before the stop is in the ring.
        assert_eq!(rig.task.region().ring().head.load_acquire(), 2);
        assert!(matches!(rig.drive(60 * S), Driven::Elsewhere { .. }));
    }

    #[test]
    fn a_stop_does_not_wait_for_ever_for_who_does_not_come_back() {
        let rig = Rig::new();
        let mut serving = rig.task.serving();
        let lent = serving.stream.as_mut().unwrap().lend(0).unwrap();
        (serving.inline.inside, serving.inline.lent) = (true, true);
        drop(serving);
        rig.task.stop().unwrap();
        let now = monotonic_ns();
        let mut serving = rig.task.serving();
        assert!(serving.stream.is_none() && !serving.inline.lent);
        // It comes back after all.
        serving.take_back(lent, 0, now, now);
        assert!(serving.stream.is_none());
    }

    #[test]
    fn a_look_at_rtcp_takes_no_more_packets_than_there_is_room_for() {
        const PACKETS: u16 = 400;
        let mut rig = Rig::with_order(8);
        rig.make_dense();
        for sequence in 1..=PACKETS {
            rig.send(sequence);
        }
        for _ in 0..PACKETS {
            if rig.head() > u64::from(PACKETS) {
                break;
            }
            rig.task.serving().inline.dense = true;
            rig.task.serving().inline.looked_ns = 0;
            rig.drive(S / 10);
            rig.read_all();
        }
        assert_eq!(rig.head(), u64::from(PACKETS) + 1);
    }

    #[test]
    fn a_second_reader_ends_it_and_the_engines_thread_goes_on() {
        let mut rig = Rig::new();
        rig.while_it_waits(|rig| {
            rig.task.add_own_reader(false).unwrap();
            rig.send(1);
        });
        assert!(rig.task.serving().inline.port.is_none());
        assert!(matches!(rig.drive(60 * S), Driven::Elsewhere { .. }));
        rig.send(2);
        while rig.head() < 3 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_wait_that_is_to_be_short_is_none_in_a_receive_call() {
        let mut rig = Rig::new();
        rig.make_dense();
        let mut serving = rig.task.serving();
        let patience = serving.stream.as_ref().unwrap().patience().unwrap().as_nanos() as u64;
        assert!((S / 250..S / 20).contains(&patience), "{patience} ns");
        assert!(serving.lend(patience - 1).is_none());
        let lent = serving.lend(patience).unwrap();
        // Nobody else receives meanwhile, and nothing gets lost.
        rig.send(1);
        let stream = serving.stream.as_mut().unwrap();
        assert!(!stream.receive(0).unwrap() && stream.lend(0).is_none());
        serving.take_back(lent, 0, 0, 0);
        drop(serving);
        assert_eq!(rig.drive(60 * S), Driven::Worked);
        assert_eq!(rig.head(), 2);
        rig.read_all();
        let begin = monotonic_ns();
        // It may have had something else to do first.
        while rig.drive(S / 1_000) != Driven::TimedOut {}
        assert!(monotonic_ns() - begin >= S / 1_000);
    }

    #[test]
    fn rtcp_is_seen_while_packets_never_end() {
        let mut rig = Rig::new();
        rig.make_dense();
        rig.send_rtcp();
        let begin = monotonic_ns();
        for sequence in 1.. {
            rig.send(sequence);
            rig.task.serving().inline.dense = true;
            assert_eq!(rig.drive(60 * S), Driven::Worked);
            rig.read_all();
            if rig.task.side_channel().try_recv().is_some() {
                break;
            }
            assert!(monotonic_ns() - begin < 30 * S);
        }
    }

    #[test]
    fn packets_that_pour_are_let_come_before_any_is_asked_for() {
        let mut rig = Rig::new();
        rig.make_dense();
        let until_ns = monotonic_ns() + S / 20;
        rig.task.serving().inline.rest_until_ns = until_ns;
        rig.task.serving().inline.eager = 0;
        (1..=20).for_each(|sequence| rig.send(sequence));
        while rig.head() < 21 {
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }
        assert!(monotonic_ns() >= until_ns);
        // Once.
        assert!(rig.task.serving().inline.rest_until_ns < until_ns + S);
    }

    /// Far enough apart that nothing else ends a wait.
    const PERIOD_NS: u64 = 2 * S;
    const BUSY_POLL_NS: u64 = S / 5;

    impl Rig {
        /// A reader that looks out for packets, the next of which is expected `in_ns` from now.
        fn expecting(in_ns: u64) -> Self {
            let mut rig = Self::with(10, Duration::from_nanos(BUSY_POLL_NS));
            rig.make_dense();
            let latest_ns = monotonic_ns() + in_ns - PERIOD_NS;
            let mut serving = rig.task.serving();
            let mut expect = Expect::new(BUSY_POLL_NS);
            (0..10).rev().for_each(|before| expect.came(latest_ns - before * PERIOD_NS, 1));
            serving.inline.expect = expect;
            drop(serving);
            rig
        }
    }

    #[test]
    fn a_packet_that_is_looked_out_for_is_seen_and_one_that_does_not_come_is_waited_for() {
        let mut rig = Rig::expecting(S / 10);
        assert_eq!(
            rig.while_it_drives(|rig| {
                // It is awake from shortly before it is due.
                while rig
                    .task
                    .serving()
                    .inline
                    .expect
                    .lookout(monotonic_ns())
                    .is_some_and(|lookout| lookout.sleep_until_ns.is_some())
                {
                    std::thread::yield_now();
                }
                rig.send(1);
            }),
            Driven::Worked
        );
        // It may have had something else to do first.
        while rig.head() < 2 {
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }

        let mut rig = Rig::expecting(S / 10);
        let begin = monotonic_ns();
        while rig.task.serving().inline.expect.lookout(monotonic_ns()).is_some() {
            // It may have other things to do meanwhile.
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }
        let looked_ns = monotonic_ns() - begin;
        assert!(looked_ns >= S / 10, "{looked_ns} ns");
        while rig.drive(S / 100) != Driven::TimedOut {}
        assert_eq!(rig.head(), 1);
    }

    #[test]
    fn time_runs_out_for_who_looks_out() {
        let mut rig = Rig::expecting(0);
        let begin = monotonic_ns();
        while rig.drive(S / 1_000) != Driven::TimedOut {}
        let took_ns = monotonic_ns() - begin;
        assert!((S / 1_000..BUSY_POLL_NS / 2).contains(&took_ns), "{took_ns} ns");
    }

    #[test]
    fn a_packet_that_comes_before_it_is_expected_ends_the_sleep() {
        // Before anything else is due.
        let mut rig = Rig::expecting(S * 2 / 5);
        let begin = monotonic_ns();
        let lookout = rig.task.serving().inline.expect.lookout(begin).unwrap();
        assert!(lookout.sleep_until_ns.is_some());
        assert_eq!(rig.while_it_drives(|rig| rig.send(1)), Driven::Worked);
        while rig.head() < 2 {
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }
        assert!(monotonic_ns() < lookout.sleep_until_ns.unwrap());
    }

    #[test]
    fn who_looks_out_sees_a_stop_and_a_second_reader() {
        let mut rig = Rig::expecting(S / 20);
        let driven = rig.while_it_drives(|rig| rig.task.stop().unwrap());
        assert!(matches!(driven, Driven::Elsewhere { .. } | Driven::Worked), "{driven:?}");
        assert!(matches!(rig.drive(60 * S), Driven::Elsewhere { .. }));
        let mut rig = Rig::expecting(S / 20);
        rig.while_it_drives(|rig| {
            rig.task.add_own_reader(false).unwrap();
        });
        assert!(matches!(rig.drive(60 * S), Driven::Elsewhere { .. }));
        rig.send(1);
        while rig.head() < 2 {
            std::thread::yield_now();
        }
    }

    impl Rig {
        /// Sends RTCP to the port above the stream's.
        fn send_rtcp(&self) {
            let mut to = self.tx.peer_addr().unwrap();
            to.set_port(to.port() + 1);
            let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            other.send_to(&[0x80, 201, 0, 1, 0, 0, 0, 7], to).unwrap();
        }
    }

    #[test]
    fn rtcp_is_seen_by_who_never_sleeps_and_never_waits_in_a_call() {
        let mut rig = Rig::expecting(0);
        rig.send_rtcp();
        rig.task.serving().inline.looked_ns = 0;
        rig.drive(S / 1_000);
        assert!(rig.task.side_channel().try_recv().is_some());
    }

    #[test]
    fn rtcp_is_taken_when_there_is_no_more_rtp_than_was_taken() {
        let rig = Rig::expecting(PERIOD_NS);
        rig.send_rtcp();
        let mut serving = rig.task.serving();
        // As after a look that was filled.
        serving.inline.more = true;
        serving.serve([TAG_RTCP].into_iter());
        assert!(!serving.inline.more);
        drop(serving);
        assert!(rig.task.side_channel().try_recv().is_some());
    }

    #[test]
    fn rtcp_is_seen_by_who_looks_out() {
        let mut rig = Rig::expecting(S * 2 / 5);
        let begin = monotonic_ns();
        rig.while_it_drives(Rig::send_rtcp);
        while rig.task.side_channel().try_recv().is_none() {
            assert_eq!(rig.drive(60 * S), Driven::Worked);
        }
        assert!(monotonic_ns() - begin < PERIOD_NS);
    }
}
