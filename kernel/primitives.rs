// SPDX-License-Identifier: MIT OR GPL-2.0

//! Kernel primitives that the kernel's Rust API lacks or has in an unsuitable form: a lock that keeps
//! bottom halves off, a wait queue that costs nothing to drop, a timer whose handler says when it is due
//! again, and clocks as numbers.

use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::ops::{Deref, DerefMut};

use kernel::{bindings, prelude::*, types::Opaque};

mod shim {
    use kernel::{bindings, ffi::c_void};

    // Types that the compiler cannot see through are passed as `c_void`.
    extern "C" {
        pub(super) fn rtp_mgr_lock_init(lock: *mut bindings::spinlock_t);
        pub(super) fn rtp_mgr_lock(lock: *mut bindings::spinlock_t);
        pub(super) fn rtp_mgr_unlock(lock: *mut bindings::spinlock_t);
        pub(super) fn rtp_mgr_wait_init(queue: *mut bindings::wait_queue_head_t);
        pub(super) fn rtp_mgr_wait_register(
            file: *mut c_void,
            queue: *mut bindings::wait_queue_head_t,
            table: *mut c_void,
        );
        pub(super) fn rtp_mgr_wait_wake(queue: *mut bindings::wait_queue_head_t, events: u32);
        pub(super) fn rtp_mgr_trace_publish(stream: u64, head: u64, packets: u64);
        pub(super) fn rtp_mgr_trace_drop(stream: u64, head: u64, packets: u64);
        pub(super) fn rtp_mgr_trace_wake(stream: u64, reader: u32, head: u64);
    }
}

/// A spin lock taken with bottom halves off: for process context, softirq and soft timers.
#[pin_data]
pub(crate) struct BhLock<T> {
    #[pin]
    lock: Opaque<bindings::spinlock_t>,
    value: UnsafeCell<T>,
}

// SAFETY: The value is reached only by whoever holds the lock, so it moves between threads, and that
// `T: Send` allows.
unsafe impl<T: Send> Sync for BhLock<T> {}
// SAFETY: As above; the lock itself belongs to no thread.
unsafe impl<T: Send> Send for BhLock<T> {}

impl<T> BhLock<T> {
    /// A lock over `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for a spin lock, which this makes of it.
            lock <- Opaque::ffi_init(|slot| unsafe { shim::rtp_mgr_lock_init(slot) }),
            value: UnsafeCell::new(value),
        })
    }

    /// Takes the lock.
    pub(crate) fn lock(&self) -> BhGuard<'_, T> {
        // SAFETY: The lock was initialised with `self`.
        unsafe { shim::rtp_mgr_lock(self.lock.get()) };
        BhGuard { lock: self }
    }
}

/// The lock is held while this lives.
pub(crate) struct BhGuard<'a, T> {
    lock: &'a BhLock<T>,
}

impl<T> Deref for BhGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The guard stands for the lock being held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for BhGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The guard stands for the lock being held, and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for BhGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The guard stands for the lock being held by this context.
        unsafe { shim::rtp_mgr_unlock(self.lock.lock.get()) };
    }
}

/// Readers that sleep in poll, select or epoll.
///
/// Whoever waits holds a file, and every file holds what this is part of, so nobody waits any more when
/// it is dropped.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    queue: Opaque<bindings::wait_queue_head_t>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A wait queue has a lock of its own.
unsafe impl Sync for WaitQueue {}
// SAFETY: As above; it belongs to no thread.
unsafe impl Send for WaitQueue {}

impl WaitQueue {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for a wait queue, which this makes of it.
            queue <- Opaque::ffi_init(|slot| unsafe { shim::rtp_mgr_wait_init(slot) }),
            _pin: PhantomPinned,
        })
    }

    /// Has `table` wait here. A full barrier is between this and what the caller looks at next.
    ///
    /// # Safety
    ///
    /// `file` and `table` are what the kernel gave to the poll operation that this is called from, and
    /// `file` keeps `self` alive until it is released.
    pub(crate) unsafe fn register(
        &self,
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: As this function's own requirements; the queue was initialised with `self`.
        unsafe { shim::rtp_mgr_wait_register(file.cast(), self.queue.get(), table.cast()) };
    }

    /// Wakes those who wait for any of `events`. Any context.
    pub(crate) fn wake(&self, events: u32) {
        // SAFETY: The queue was initialised with `self`.
        unsafe { shim::rtp_mgr_wait_wake(self.queue.get(), events) };
    }
}

/// What a timer belongs to.
pub(crate) trait TimerOwner {
    /// The timer in it.
    fn timer(&self) -> &Timer;
    /// Called in softirq when the timer is due. Returns when it is due again.
    fn expired(&self) -> Option<u64>;
}

/// A soft timer on CLOCK_MONOTONIC. Its handler runs in softirq, never on two CPUs at once.
#[pin_data]
#[repr(C)]
pub(crate) struct Timer {
    // First: the handler finds `self` by the address of it.
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    owner: UnsafeCell<*const c_void>,
    run: unsafe fn(*const c_void) -> Option<u64>,
    /// When it is due. Written before the timer starts and by its handler.
    due_ns: UnsafeCell<u64>,
}

// SAFETY: Fields in cells are written only while the timer is not started, or by its handler, which
// does not run twice at once.
unsafe impl Sync for Timer {}
// SAFETY: As above; it belongs to no thread.
unsafe impl Send for Timer {}

#[cfg(kernel_before_7_3)]
const NO_RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart_HRTIMER_NORESTART;
#[cfg(kernel_before_7_3)]
const RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart_HRTIMER_RESTART;
#[cfg(not(kernel_before_7_3))]
const NO_RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart::HRTIMER_NORESTART;
#[cfg(not(kernel_before_7_3))]
const RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart::HRTIMER_RESTART;

impl Timer {
    /// A timer, not started, of an owner of type `T`.
    pub(crate) fn new<T: TimerOwner>() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for a timer, which this makes of it.
            timer <- Opaque::ffi_init(|slot| unsafe {
                bindings::hrtimer_setup(
                    slot,
                    Some(Self::handler),
                    bindings::CLOCK_MONOTONIC as bindings::clockid_t,
                    bindings::hrtimer_mode_HRTIMER_MODE_ABS_SOFT,
                )
            }),
            owner: UnsafeCell::new(core::ptr::null()),
            run: Self::run::<T>,
            due_ns: UnsafeCell::new(0),
        })
    }

    /// # Safety
    ///
    /// `owner` points to a `T` that lives.
    unsafe fn run<T: TimerOwner>(owner: *const c_void) -> Option<u64> {
        // SAFETY: As this function's own requirement.
        unsafe { &*owner.cast::<T>() }.expired()
    }

    /// Starts the timer of `owner`, due at `due_ns` of CLOCK_MONOTONIC.
    ///
    /// # Safety
    ///
    /// The timer is not started. `owner` lives, and does not move, until [`cancel`](Self::cancel) has
    /// returned. No two contexts call this or `cancel` at once.
    pub(crate) unsafe fn start<T: TimerOwner>(owner: &T, due_ns: u64) {
        let timer = owner.timer();
        // SAFETY: The timer is not started, so its handler does not run, and nobody else starts it.
        unsafe {
            *timer.owner.get() = core::ptr::from_ref(owner).cast();
            *timer.due_ns.get() = due_ns;
        }
        // SAFETY: The timer was set up with `self`.
        unsafe {
            bindings::hrtimer_start_range_ns(
                timer.timer.get(),
                due_ns as bindings::ktime_t,
                0,
                bindings::hrtimer_mode_HRTIMER_MODE_ABS_SOFT,
            )
        };
    }

    /// Stops the timer and waits for its handler. Process context, without any lock that the handler
    /// takes.
    pub(crate) fn cancel(&self) {
        // SAFETY: The timer was set up with `self`.
        unsafe { bindings::hrtimer_cancel(self.timer.get()) };
    }

    /// # Safety
    ///
    /// Called by the kernel when a timer that [`new`](Self::new) set up is due.
    unsafe extern "C" fn handler(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: The kernel calls this with the timer that was set up: the first field of a `Timer`.
        let this = unsafe { &*timer.cast::<Self>() };
        // SAFETY: Written before the start; the handler's own from then on.
        let (owner, due_ns) = unsafe { (*this.owner.get(), *this.due_ns.get()) };
        // SAFETY: Whoever started the timer promised that the owner lives; `run` is of its type.
        let Some(next_ns) = (unsafe { (this.run)(owner) }) else { return NO_RESTART };
        let step_ns = next_ns.saturating_sub(due_ns).max(1);
        // SAFETY: From its handler a timer may be forwarded. From its expiry on by one step: that makes
        // `next_ns` the new expiry.
        unsafe {
            bindings::hrtimer_forward(
                timer,
                due_ns as bindings::ktime_t,
                step_ns as bindings::ktime_t,
            );
            *this.due_ns.get() = due_ns.saturating_add(step_ns);
        }
        RESTART
    }
}

/// CLOCK_MONOTONIC, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: May be called in any context but NMI.
    unsafe { bindings::ktime_get() as u64 }
}

/// CLOCK_TAI, nanoseconds.
pub(crate) fn tai_ns() -> u64 {
    // SAFETY: May be called in any context but NMI.
    unsafe { bindings::ktime_get_clocktai() as u64 }
}

/// CLOCK_REALTIME, nanoseconds.
pub(crate) fn realtime_ns() -> u64 {
    // SAFETY: May be called in any context but NMI.
    unsafe { bindings::ktime_get_real() as u64 }
}

/// Trace events.
pub(crate) mod trace {
    use super::shim;

    /// Packets became visible.
    pub(crate) fn publish(stream: u64, head: u64, packets: u64) {
        // SAFETY: Plain numbers.
        unsafe { shim::rtp_mgr_trace_publish(stream, head, packets) };
    }

    /// Packets were dropped because the ring was full.
    pub(crate) fn drop(stream: u64, head: u64, packets: u64) {
        // SAFETY: Plain numbers.
        unsafe { shim::rtp_mgr_trace_drop(stream, head, packets) };
    }

    /// A reader was woken.
    pub(crate) fn wake(stream: u64, reader: u32, head: u64) {
        // SAFETY: Plain numbers.
        unsafe { shim::rtp_mgr_trace_wake(stream, reader, head) };
    }
}
