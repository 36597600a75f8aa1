//! A thread that serves streams: it waits for their files and their deadlines.
//!
//! What lives here: epoll, timers, and who is called for which event. What does not: what a stream
//! does when it is called ([`Task`]), how early the thread gets up for a deadline ([`super::lead`]).
//!
//! Files are registered level-triggered, from any thread. A task that is removed is not called
//! again once [`Registration`] is dropped, except by a call that had begun before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::lead::Lead;
use crate::clock::monotonic_ns;
use crate::error::Error;
use crate::poll::wait_events;
use crate::schedule::ask_for_short_slice;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;
/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 64;
/// Stays below the tags of tasks.
const TAG_BITS: u32 = 16;
/// The worker's own event.
const WAKE: u64 = u64::MAX;

/// A stream, as its thread sees it. Called by one thread at a time; control calls of other threads
/// may come at any time.
pub(crate) trait Task: Send + Sync {
    /// The file registered under `tag` is ready. Returns the next deadline, CLOCK_MONOTONIC in
    /// nanoseconds, or [`NEVER`].
    fn ready(&self, tag: u16) -> u64;

    /// The deadline has passed, or [`Registration::kick`] was called. Returns the next one.
    fn tick(&self) -> u64;

    /// Whether its deadlines are to be kept to the microsecond, for processor time.
    fn is_exact(&self) -> bool {
        false
    }

    /// A call has panicked: the task ends, and says so to whoever waits for it.
    fn failed(&self);
}

/// A task's place in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    index: u32,
    generation: u16,
}

impl Key {
    fn event(self, tag: u16) -> u64 {
        u64::from(self.index) << (2 * TAG_BITS)
            | u64::from(self.generation) << TAG_BITS
            | u64::from(tag)
    }

    fn of_event(event: u64) -> (Self, u16) {
        let key = Self {
            index: (event >> (2 * TAG_BITS)) as u32,
            generation: (event >> TAG_BITS) as u16,
        };
        (key, event as u16)
    }
}

#[derive(Default)]
struct Place {
    generation: u16,
    task: Option<Arc<dyn Task>>,
}

#[derive(Default)]
struct Tasks {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Tasks to be called without an event.
    kicked: Vec<Key>,
}

impl Tasks {
    fn insert(&mut self, task: Arc<dyn Task>) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.task = Some(task);
        Key { index, generation: place.generation }
    }

    fn get(&self, key: Key) -> Option<&Arc<dyn Task>> {
        let place = self.places.get(key.index as usize)?;
        place.task.as_ref().filter(|_| place.generation == key.generation)
    }

    fn remove(&mut self, key: Key) -> Option<Arc<dyn Task>> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let task = place.task.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(task)
    }
}

/// What the thread and its users share.
struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: AtomicBool,
    tasks: Mutex<Tasks>,
}

impl Shared {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nothing that can panic runs under this lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        signal(&self.wake);
    }
}

/// Adds one to an eventfd. That it is full already is as good.
pub(crate) fn signal(event: impl AsFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Sets an eventfd back to zero.
pub(crate) fn drain(event: impl AsFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}

/// A new eventfd of this process.
pub(crate) fn new_event() -> Result<OwnedFd, Error> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(Error::os("make an event file descriptor"))
}

/// An engine thread. Dropping it ends the thread.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(name: String) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::os("make an epoll file descriptor"))?;
        let wake = new_event()?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)
            .map_err(Error::os("wait for an event file descriptor"))?;
        let shared =
            Arc::new(Shared { epoll, wake, stop: AtomicBool::new(false), tasks: Mutex::default() });
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn({
                let shared = shared.clone();
                move || Loop::new(&shared).run()
            })
            .map_err(Error::os("start an engine thread"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Number of tasks.
    pub(crate) fn load(&self) -> usize {
        let tasks = self.shared.tasks();
        tasks.places.len() - tasks.free.len()
    }

    /// Serves `task` from now on. It is called for the first time soon after.
    pub(crate) fn serve(&self, task: Arc<dyn Task>) -> Registration {
        let key = self.shared.tasks().insert(task);
        let registration = Registration { shared: self.shared.clone(), key };
        registration.kick();
        registration
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the loop itself was printed by its thread; there is nobody to tell.
            let _ = thread.join();
        }
    }
}

/// A task's hold on its worker. Dropping it ends the service.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    key: Key,
}

impl Registration {
    /// Calls the task's `ready` with `tag` whenever `file` is readable (or, as `flags` say).
    pub(crate) fn watch(&self, file: impl AsFd, tag: u16, flags: EventFlags) -> Result<(), Error> {
        epoll::add(&self.shared.epoll, file, EventData::new_u64(self.key.event(tag)), flags)
            .map_err(Error::os("wait for a file descriptor"))
    }

    /// Changes what is waited for.
    pub(crate) fn change(&self, file: impl AsFd, tag: u16, flags: EventFlags) -> Result<(), Error> {
        epoll::modify(&self.shared.epoll, file, EventData::new_u64(self.key.event(tag)), flags)
            .map_err(Error::os("wait for a file descriptor"))
    }

    /// Waits for `file` no more. Comes before it is closed.
    pub(crate) fn unwatch(&self, file: impl AsFd) {
        let _ = epoll::delete(&self.shared.epoll, file);
    }

    /// Has the worker call the task's `tick`.
    pub(crate) fn kick(&self) {
        self.shared.tasks().kicked.push(self.key);
        self.shared.wake();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let removed = self.shared.tasks().remove(self.key);
        drop(removed); // after the lock
    }
}

/// When a task wants to be called.
#[derive(Clone, Copy)]
struct Timer {
    generation: u16,
    /// Its deadlines are to be kept exactly.
    exact: bool,
    /// What it said last.
    wanted: u64,
    /// The earliest entry in the heap that is its.
    armed: u64,
}

/// The thread's own state.
struct Loop<'a> {
    shared: &'a Shared,
    timers: Vec<Timer>,
    /// Deadlines; an entry that is not its task's `armed` is out of date.
    heap: BinaryHeap<Reverse<(u64, Key)>>,
    kicked: Vec<Key>,
    due: Vec<Key>,
    lead: Lead,
}

impl<'a> Loop<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            timers: Vec::new(),
            heap: BinaryHeap::new(),
            kicked: Vec::new(),
            due: Vec::new(),
            lead: Lead::default(),
        }
    }

    fn run(&mut self) {
        // Pacing wants its timers on time; without permission they come 50 us late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        // Nor is it to wait for whoever computes. Without it, it does as threads do by default.
        if let Err(error) = ask_for_short_slice() {
            tracing::debug!(%error, "short time slice");
        }
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS_MAX];
        while !self.shared.stop.load(Ordering::Acquire) {
            let timeout = self.timeout();
            match wait_events(&self.shared.epoll, &mut events, timeout) {
                Ok(events) => {
                    self.lead.woke(monotonic_ns());
                    events.iter().for_each(|event| self.event(event.data.u64()));
                }
                Err(Errno::INTR) => {}
                // Only a file descriptor that is none of ours could bring this about.
                Err(error) => {
                    tracing::error!(%error, "epoll");
                    return;
                }
            }
            self.stay_awake();
            self.run_timers();
        }
    }

    /// Looks at the clock until a deadline that is near and to be kept exactly.
    fn stay_awake(&mut self) {
        let mut now = monotonic_ns();
        let Some((deadline, true)) = self.first_deadline() else { return };
        if self.lead.is_close(deadline, now) {
            while now < deadline {
                std::hint::spin_loop();
                now = monotonic_ns();
            }
        }
    }

    fn event(&mut self, event: u64) {
        if event == WAKE {
            drain(&self.shared.wake);
            std::mem::swap(&mut self.shared.tasks().kicked, &mut self.kicked);
            let mut kicked = std::mem::take(&mut self.kicked);
            for key in kicked.drain(..) {
                self.call(key, |task| task.tick());
            }
            self.kicked = kicked;
        } else {
            let (key, tag) = Key::of_event(event);
            self.call(key, |task| task.ready(tag));
        }
    }

    fn call(&mut self, key: Key, call: impl FnOnce(&dyn Task) -> u64) {
        let Some(task) = self.shared.tasks().get(key).cloned() else { return };
        // The state of a task that panicked is not looked at again, except to end it.
        match catch_unwind(AssertUnwindSafe(|| call(&*task))) {
            Ok(deadline) => self.want(key, deadline, task.is_exact()),
            Err(_) => {
                drop(self.shared.tasks().remove(key));
                task.failed();
            }
        }
    }

    /// A task wants to be called at `deadline`.
    fn want(&mut self, key: Key, deadline: u64, exact: bool) {
        let index = key.index as usize;
        let fresh = Timer { generation: key.generation, exact, wanted: NEVER, armed: NEVER };
        if index >= self.timers.len() {
            self.timers.resize(index + 1, fresh);
        }
        let timer = &mut self.timers[index];
        if timer.generation != key.generation {
            *timer = fresh;
        }
        timer.exact = exact;
        timer.wanted = deadline;
        if deadline < timer.armed {
            timer.armed = deadline;
            self.heap.push(Reverse((deadline, key)));
        }
    }

    fn run_timers(&mut self) {
        if self.heap.is_empty() {
            return;
        }
        self.take_due();
        // Each once: one that is due again at once waits until the others had their turn.
        let mut due = std::mem::take(&mut self.due);
        for key in due.drain(..) {
            self.call(key, |task| task.tick());
        }
        self.due = due;
    }

    /// Takes from the heap whose time has come.
    fn take_due(&mut self) {
        let now = monotonic_ns();
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if at > now {
                return;
            }
            self.heap.pop();
            let timer = &mut self.timers[key.index as usize];
            if timer.generation != key.generation || timer.armed != at {
                continue;
            }
            timer.armed = NEVER;
            let (wanted, exact) = (timer.wanted, timer.exact);
            if wanted <= now {
                self.due.push(key);
            } else {
                self.want(key, wanted, exact);
            }
        }
    }

    /// How long to wait for the first deadline.
    fn timeout(&mut self) -> Option<Duration> {
        let (deadline, exact) = self.first_deadline()?;
        let now = monotonic_ns();
        let left = match exact {
            true => self.lead.sleep(deadline, now),
            false => deadline.saturating_sub(now),
        };
        Some(Duration::from_nanos(left))
    }

    /// The first deadline, and whether it is to be kept exactly.
    fn first_deadline(&self) -> Option<(u64, bool)> {
        let Reverse((at, key)) = self.heap.peek()?;
        if *at == NEVER {
            return None;
        }
        let exact = self.timers.get(key.index as usize).is_some_and(|timer| timer.exact);
        Some((*at, exact))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::sync::atomic::AtomicU64;

    /// Remembers its calls.
    #[derive(Default)]
    struct Probe {
        calls: Mutex<Vec<Call>>,
        changed: Condvar,
        next: AtomicU64,
        exact: bool,
        /// By how much calls came before their deadlines, nanoseconds.
        early: Mutex<Vec<u64>>,
        event: Mutex<Option<OwnedFd>>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Call {
        Ready(u16),
        Tick,
        Failed,
    }

    impl Probe {
        fn new(next: u64) -> Arc<Self> {
            Arc::new(Self { next: next.into(), ..Self::default() })
        }

        fn note(&self, call: Call) -> u64 {
            self.calls.lock().unwrap().push(call);
            self.changed.notify_all();
            self.next.load(Ordering::Relaxed)
        }

        fn wait_for(&self, wanted: Call) {
            let calls = self.calls.lock().unwrap();
            let (calls, timeout) = self
                .changed
                .wait_timeout_while(calls, Duration::from_secs(10), |calls| {
                    !calls.contains(&wanted)
                })
                .unwrap();
            assert!(!timeout.timed_out(), "{wanted:?} in {calls:?}");
        }
    }

    impl Task for Probe {
        fn ready(&self, tag: u16) -> u64 {
            if let Some(event) = &*self.event.lock().unwrap() {
                drain(event);
            }
            assert_ne!(tag, 13, "unlucky");
            self.note(Call::Ready(tag))
        }

        fn tick(&self) -> u64 {
            if !self.exact {
                return self.note(Call::Tick);
            }
            let (now, next) = (monotonic_ns(), self.next.load(Ordering::Relaxed));
            if now < next {
                self.early.lock().unwrap().push(next - now);
            }
            self.next.store(now + 200_000, Ordering::Relaxed);
            self.note(Call::Tick)
        }

        fn is_exact(&self) -> bool {
            self.exact
        }

        fn failed(&self) {
            self.note(Call::Failed);
        }
    }

    fn worker() -> Worker {
        Worker::start("test".into()).unwrap()
    }

    #[test]
    fn a_ready_file_calls_its_task_with_its_tag() {
        let worker = worker();
        let probe = Probe::new(NEVER);
        let service = worker.serve(probe.clone());
        let event = new_event().unwrap();
        service.watch(&event, 7, EventFlags::IN).unwrap();
        *probe.event.lock().unwrap() = Some(event.try_clone().unwrap());
        signal(&event);
        probe.wait_for(Call::Ready(7));
    }

    #[test]
    fn a_deadline_calls_its_task_and_no_deadline_does_not() {
        let worker = worker();
        let due = Probe::new(1);
        let idle = Probe::new(NEVER);
        let _idle = worker.serve(idle.clone());
        let _due = worker.serve(due.clone());
        let calls = due.calls.lock().unwrap();
        let (calls, _) = due
            .changed
            .wait_timeout_while(calls, Duration::from_secs(10), |calls| calls.len() < 100)
            .unwrap();
        assert!(calls.len() >= 100);
        drop(calls);
        due.next.store(NEVER, Ordering::Relaxed);
        assert_eq!(*idle.calls.lock().unwrap(), [Call::Tick], "the first call only");
    }

    #[test]
    fn an_exact_deadline_is_never_early_and_does_not_keep_the_others_waiting() {
        let worker = worker();
        let exact = Arc::new(Probe { exact: true, ..Probe::default() });
        let other = Probe::new(1);
        let _exact = worker.serve(exact.clone());
        let _other = worker.serve(other.clone());
        for probe in [&exact, &other] {
            let calls = probe.calls.lock().unwrap();
            let (calls, _) = probe
                .changed
                .wait_timeout_while(calls, Duration::from_secs(10), |calls| calls.len() < 200)
                .unwrap();
            assert!(calls.len() >= 200, "{}", calls.len());
        }
        // The first call is not its deadline's.
        assert_eq!(*exact.early.lock().unwrap(), Vec::<u64>::new());
    }

    #[test]
    fn a_task_that_is_always_late_does_not_keep_the_thread_from_the_others() {
        let worker = worker();
        let late = Probe::new(1);
        let other = Probe::new(NEVER);
        let _late = worker.serve(late.clone());
        late.wait_for(Call::Tick);
        let service = worker.serve(other.clone());
        let event = new_event().unwrap();
        *other.event.lock().unwrap() = Some(event.try_clone().unwrap());
        service.watch(&event, 7, EventFlags::IN).unwrap();
        signal(&event);
        let calls = other.calls.lock().unwrap();
        let (calls, _) = other
            .changed
            .wait_timeout_while(calls, Duration::from_secs(2), |calls| {
                !calls.contains(&Call::Ready(7))
            })
            .unwrap();
        let called = calls.contains(&Call::Ready(7));
        drop(calls);
        late.next.store(NEVER, Ordering::Relaxed);
        assert!(called);
    }

    #[test]
    fn a_later_deadline_replaces_an_earlier_one() {
        let soon = monotonic_ns() + 20_000_000;
        let worker = worker();
        let probe = Probe::new(soon);
        let service = worker.serve(probe.clone());
        probe.wait_for(Call::Tick);
        probe.next.store(NEVER, Ordering::Relaxed);
        service.kick();
        let other = Probe::new(soon + 40_000_000);
        let _other = worker.serve(other.clone());
        let calls = other.calls.lock().unwrap();
        let (calls, _) = other
            .changed
            .wait_timeout_while(calls, Duration::from_secs(10), |calls| calls.len() < 2)
            .unwrap();
        assert!(calls.len() >= 2, "called after the deadline that was given up");
        assert_eq!(probe.calls.lock().unwrap().len(), 2, "the first call and the kick");
    }

    #[test]
    fn a_task_that_panics_is_ended_and_the_others_go_on() {
        let worker = worker();
        let bad = Probe::new(NEVER);
        let good = Probe::new(NEVER);
        let bad_service = worker.serve(bad.clone());
        let good_service = worker.serve(good.clone());
        let event = new_event().unwrap();
        bad_service.watch(&event, 13, EventFlags::IN).unwrap();
        signal(&event);
        bad.wait_for(Call::Failed);
        assert_eq!(worker.load(), 1);
        let event = new_event().unwrap();
        *good.event.lock().unwrap() = Some(event.try_clone().unwrap());
        good_service.watch(&event, 1, EventFlags::IN).unwrap();
        signal(&event);
        good.wait_for(Call::Ready(1));
    }

    #[test]
    fn a_place_that_is_used_again_does_not_get_the_former_tasks_events() {
        let worker = worker();
        let first = Probe::new(NEVER);
        let service = worker.serve(first.clone());
        let stale = service.key;
        drop(service);
        let second = Probe::new(NEVER);
        let service = worker.serve(second.clone());
        assert_eq!(service.key.index, stale.index);
        assert!(worker.shared.tasks().get(stale).is_none());
        assert!(worker.shared.tasks().get(service.key).is_some());
        assert_eq!(Key::of_event(service.key.event(9)), (service.key, 9));
    }
}
