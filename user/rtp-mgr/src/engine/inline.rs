//! The engine's work done in the reader's own call: no hop to another thread and back.
//!
//! What lives here: who does the work when. What does not: the work ([`super::receive`]) and the
//! engine's thread ([`super::worker`]).
//!
//! A reader that waits in `read` and is the stream's only one takes packets from the sockets itself,
//! once they have come one by one for a while, and never more at a time than a call takes. A stream at
//! full speed, or of coalesced packets, stays with the engine's thread: there both are to work at once, and
//! a change of hands may cost more packets than a sequence number can tell.
//! The engine's thread does not listen to them meanwhile. When the reader goes away with what it
//! has, a timer runs: if it is not back in time, the engine's thread takes over, so that a reader that
//! stands still loses no more than before. It takes over at once when the reader's time runs out
//! (whoever waits for the stream's file next is woken by it), when there is another reader, when
//! packets are no longer calm in that sense, and for a while when a socket has dropped
//! something: then somebody has to take packets out while the reader is at work. Each such while is
//! twice as long as the last.
//!
//! Everything here happens under the stream's lock, except that the reader waits without it; `inside`
//! says that it does.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::receive::ReaderPort;
use super::receive_task::{OwnPort, Port, ReceiveTask, Serving, Stream, TAG_AWAY, TAG_RTCP};
use super::worker::{NEVER, Task, drain};
use crate::clock::monotonic_ns;
use crate::poll::wait_events;

/// How long the reader may be away before the engine's thread takes over.
const AWAY_NS: u64 = 2_000_000;
/// Rings smaller than this are emptied by the reader while the engine's thread fills them.
const SLOTS_MIN: usize = 256;
/// How long packets must have come calmly.
const CALM_NS: u64 = 100_000_000;
/// How long the engine's thread does the work after the first drop.
const PAUSE_NS: u64 = 1_000_000_000;
/// The reader's own event, beside the tags of sockets.
const TAG_EVENT: u16 = u16::MAX;
/// Files of a stream: two legs, their RTCP, and the reader's event.
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
    /// When the reader went away last.
    away_ns: u64,
    /// What the sockets had dropped when it began.
    drops: u64,
}

/// What a reader's attempt to do the engine's work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driven {
    /// Something was done: there may be something to read.
    Worked,
    /// The time ran out.
    TimedOut,
    /// The engine's thread does the work: the reader waits for its event, and asks again after this time,
    /// CLOCK_MONOTONIC in nanoseconds.
    Elsewhere { until_ns: u64 },
}

impl ReceiveTask {
    /// Does what there is to do, or waits until `until` for it. `poller` is the reader's: what it waits
    /// with.
    pub(crate) fn drive(
        &self,
        port: &Arc<OwnPort>,
        poller: &mut Option<OwnedFd>,
        until: Option<Instant>,
    ) -> Driven {
        let driven = catch_unwind(AssertUnwindSafe(|| self.try_drive(port, poller, until)));
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
        until: Option<Instant>,
    ) -> Driven {
        let mut serving = self.serving();
        let elsewhere = Driven::Elsewhere { until_ns: serving.inline.not_before_ns };
        if !serving.begin_inline(port, poller) {
            return elsewhere;
        }
        let Some(wait) = serving.work_or_wait(until) else { return serving.away(Driven::Worked) };
        let Some(poller) = poller.as_ref() else { return elsewhere };
        serving.inline.inside = true;
        drop(serving);
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS_MAX];
        // An error is a signal: whoever reads looks at the time again.
        let ready = wait_events(poller, &mut events, Some(wait)).unwrap_or_default();
        let mut serving = self.serving();
        serving.inline.inside = false;
        if ready.is_empty() && until.is_some_and(|until| Instant::now() >= until) {
            serving.end_inline();
            return Driven::TimedOut;
        }
        serving.serve(ready.iter().map(|event| event.data.u64() as u16));
        serving.away(Driven::Worked)
    }
}

impl Serving {
    /// Whether the reader of `port` does the engine's work, from now on or as before.
    fn begin_inline(&mut self, port: &Arc<OwnPort>, poller: &mut Option<OwnedFd>) -> bool {
        let (Some(stream), Some(registration)) = (&mut self.stream, &self.registration) else {
            return false;
        };
        if self.inline.port.is_some() {
            return true;
        }
        if !stream.has_one_reader() || stream.slot_count() < SLOTS_MIN {
            return false;
        }
        let now = monotonic_ns();
        if now < self.inline.not_before_ns || !is_calm(stream, now) {
            return false;
        }
        let prepared = prepare(stream, port, poller).and_then(|()| match &self.inline.timer {
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
        // It need not be told of what it does itself.
        port.page().view().wake_at.store(stream.head().wrapping_add(i64::MAX as u64));
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
        if let (Some(stream), Some(registration)) = (&self.stream, &self.registration) {
            listen(stream, registration, EventFlags::IN);
            // It asks for the deadline.
            registration.kick();
        }
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
        let until = self.inline.away_ns.saturating_add(AWAY_NS);
        if until <= now {
            self.end_inline();
        } else if self.inline.port.is_some() {
            self.set_timer(now, until);
        }
    }

    /// When the engine's thread is to look again.
    pub(super) fn deadline(&mut self) -> u64 {
        match &mut self.stream {
            Some(stream) if self.inline.port.is_none() => stream.deadline(),
            _ => NEVER,
        }
    }

    /// Does what is known to be due. If that is nothing: how long to wait.
    fn work_or_wait(&mut self, until: Option<Instant>) -> Option<Duration> {
        let stream = self.stream.as_mut()?;
        let now = monotonic_ns();
        let head = stream.head();
        stream.learn_tails(now);
        if stream.deadline() <= now {
            stream.tick();
        }
        if self.inline.more {
            self.inline.more = false;
            for leg in 0..stream.legs() {
                self.inline.more |= take(stream, leg);
            }
            return None;
        }
        if stream.head() != head {
            return None;
        }
        let left = Duration::from_nanos(stream.deadline().saturating_sub(now));
        let until = until.map(|until| until.saturating_duration_since(Instant::now()));
        Some(until.map_or(left, |until| left.min(until)))
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
        for leg in tags.clone().filter(|tag| *tag < TAG_RTCP) {
            self.inline.more |= take(stream, leg.into());
        }
        if self.inline.more {
            return;
        }
        let rtcp = tags.filter(|tag| *tag != TAG_EVENT).filter_map(|tag| tag.checked_sub(TAG_RTCP));
        for leg in rtcp {
            if let Err(error) = stream.receive_rtcp(leg.into()) {
                tracing::warn!(%error, leg, "receive");
            }
        }
    }

    /// The reader goes away with what it has.
    fn away(&mut self, driven: Driven) -> Driven {
        let drops = self.stream.as_ref().map_or(0, Stream::external_drops);
        let crowded = self.stream.as_ref().is_some_and(|stream| !is_calm(stream, monotonic_ns()));
        if drops == self.inline.drops && crowded {
            self.end_inline();
        } else if drops != self.inline.drops {
            let pause_ns = PAUSE_NS.saturating_mul(1 << self.inline.dropped.min(20));
            self.inline.dropped = self.inline.dropped.saturating_add(1);
            self.inline.not_before_ns = monotonic_ns().saturating_add(pause_ns);
            self.end_inline();
        } else {
            let now = monotonic_ns();
            self.inline.away_ns = now;
            if self.inline.timer_ns <= now {
                self.set_timer(now, now.saturating_add(AWAY_NS));
            }
        }
        driven
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

/// Whether packets have come one by one, and never too many at a time, for a while.
fn is_calm(stream: &Stream, now_ns: u64) -> bool {
    now_ns.saturating_sub(stream.crowded_ns()) >= CALM_NS
}

/// Makes what the reader waits with.
fn prepare(
    stream: &Stream,
    port: &OwnPort,
    poller: &mut Option<OwnedFd>,
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

/// Takes from the RTP socket of `leg`. Returns whether there may be more.
fn take(stream: &mut Stream, leg: usize) -> bool {
    stream.receive_half(leg).unwrap_or_else(|error| {
        tracing::warn!(%error, leg, "receive");
        false
    })
}
