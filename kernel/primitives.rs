// SPDX-License-Identifier: MIT OR GPL-2.0

//! Kernel primitives that the kernel's Rust API lacks or has in an unsuitable form: a lock that keeps
//! bottom halves off, a wait queue that costs nothing to drop, a timer that its handler and other
//! softirqs may start again, and clocks as numbers.

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
        pub(super) fn rtp_mgr_softirq_lock(lock: *mut bindings::spinlock_t);
        pub(super) fn rtp_mgr_softirq_unlock(lock: *mut bindings::spinlock_t);
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
        BhGuard { lock: self, softirq: false }
    }

    /// Takes the lock where bottom halves are off anyway.
    ///
    /// # Safety
    ///
    /// The caller is in softirq, or has bottom halves off, for as long as the guard lives.
    pub(crate) unsafe fn lock_in_softirq(&self) -> BhGuard<'_, T> {
        // SAFETY: The lock was initialised with `self`; nothing interrupts its holder that takes it too.
        unsafe { shim::rtp_mgr_softirq_lock(self.lock.get()) };
        BhGuard { lock: self, softirq: true }
    }
}

/// The lock is held while this lives.
pub(crate) struct BhGuard<'a, T> {
    lock: &'a BhLock<T>,
    /// Taken with bottom halves off already.
    softirq: bool,
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
        let lock = self.lock.lock.get();
        // SAFETY: The guard stands for the lock being held by this context, taken the same way.
        unsafe {
            if self.softirq {
                shim::rtp_mgr_softirq_unlock(lock);
            } else {
                shim::rtp_mgr_unlock(lock);
            }
        }
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

    /// The queue, for those who sleep in it on their own.
    pub(crate) fn as_ptr(&self) -> *mut bindings::wait_queue_head_t {
        self.queue.get()
    }

    /// Wakes those who wait for any of `events`. Any context.
    pub(crate) fn wake(&self, events: u32) {
        // SAFETY: The queue was initialised with `self`.
        unsafe { shim::rtp_mgr_wait_wake(self.queue.get(), events) };
    }
}

/// What a timer belongs to.
///
/// # Safety
///
/// `OFFSET` is where in every `Self` the timer stands that [`Timer::new`] made for it. A `Self` whose
/// timer was started is pinned, and is not dropped before [`Timer::cancel`] has returned after the last
/// start.
pub(crate) unsafe trait TimerOwner {
    /// Bytes from the start of `Self` to its timer.
    const OFFSET: usize;

    /// Called in softirq when the timer is due. It may start the timer again.
    fn expired(&self);
}

/// A soft timer on CLOCK_MONOTONIC. Its handler runs in softirq, never on two CPUs at once.
#[pin_data]
#[repr(C)]
pub(crate) struct Timer {
    // First: the handler finds `self` by the address of it.
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    run: unsafe fn(*const Timer),
}

// SAFETY: The kernel's timer has a lock of its own.
unsafe impl Sync for Timer {}
// SAFETY: As above; it belongs to no thread.
unsafe impl Send for Timer {}

#[cfg(kernel_before_7_3)]
const NO_RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart_HRTIMER_NORESTART;
#[cfg(not(kernel_before_7_3))]
const NO_RESTART: bindings::hrtimer_restart = bindings::hrtimer_restart::HRTIMER_NORESTART;

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
            run: Self::run::<T>,
        })
    }

    /// # Safety
    ///
    /// `timer` is that of a `T`.
    unsafe fn run<T: TimerOwner>(timer: *const Self) {
        // SAFETY: The timer is that of a `T`, and stands there, as `T` promises.
        let owner = unsafe { &*timer.byte_sub(T::OFFSET).cast::<T>() };
        owner.expired();
    }

    /// Starts the timer, due at `due_ns` of CLOCK_MONOTONIC, or moves it there. Any context that may
    /// take a soft timer's locks, the handler among them.
    pub(crate) fn start(&self, due_ns: u64) {
        // SAFETY: The timer was set up with `self`, whose owner promised to live until it is cancelled.
        // The kernel lets a timer be started while its handler runs.
        unsafe {
            bindings::hrtimer_start_range_ns(
                self.timer.get(),
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
        let this = timer.cast_const().cast::<Self>();
        // SAFETY: The kernel calls this with the timer that was set up, the first field of a `Timer`, and
        // `run` is of the type that it was made for.
        unsafe { ((*this).run)(this) };
        NO_RESTART
    }
}

/// Copies `len` bytes, with the processor's own copying of strings where it has one, as copy_to_user() does:
/// memcpy() does so on the newest processors only, and a loop otherwise.
///
/// # Safety
///
/// `from` may be read and `to` written for `len` bytes, and they do not overlap. Others may write `from`
/// meanwhile: then `to` holds what was there at some time.
#[inline]
pub(crate) unsafe fn copy_bytes(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= 64 {
        let last = len.wrapping_sub(8);
        // SAFETY: The first `last` bytes rounded up to words, and the last eight, are all of the `len`
        // bytes, and no others. Kernel code runs with the direction flag clear.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") len / 8 => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
            let word = from.add(last).cast::<u64>().read_unaligned();
            to.add(last).cast::<u64>().write_unaligned(word);
        }
        return;
    }
    // SAFETY: As this function's own requirements.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
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

/// CLOCK_TAI at `monotonic_ns` of CLOCK_MONOTONIC, as the clocks stand to each other now.
pub(crate) fn tai_of(monotonic_ns: u64) -> u64 {
    // SAFETY: May be called in any context but NMI.
    unsafe {
        bindings::ktime_mono_to_any(
            monotonic_ns as bindings::ktime_t,
            bindings::tk_offsets_TK_OFFS_TAI,
        ) as u64
    }
}

/// CLOCK_REALTIME at `monotonic_ns` of CLOCK_MONOTONIC, as the clocks stand to each other now.
pub(crate) fn realtime_of(monotonic_ns: u64) -> u64 {
    // SAFETY: May be called in any context but NMI.
    unsafe {
        bindings::ktime_mono_to_any(
            monotonic_ns as bindings::ktime_t,
            bindings::tk_offsets_TK_OFFS_REAL,
        ) as u64
    }
}

/// A random number, as good as the kernel has.
pub(crate) fn random() -> u64 {
    // SAFETY: May be called in any context.
    unsafe { bindings::get_random_u64() }
}

/// Trace events. One that nobody listens to costs a look at its key: no call.
pub(crate) mod trace {
    use core::ptr::addr_of;

    use kernel::bindings::tracepoint;

    use super::shim;

    // What trace.h defines. A part of it that is not looked at is unknown to the compiler.
    #[allow(improper_ctypes)]
    extern "C" {
        static __tracepoint_rtp_mgr_publish: tracepoint;
        static __tracepoint_rtp_mgr_drop: tracepoint;
        static __tracepoint_rtp_mgr_wake: tracepoint;
    }

    /// Whether somebody listens.
    ///
    /// # Safety
    ///
    /// `point` is one of those above.
    #[inline(always)]
    unsafe fn is_on(point: *const tracepoint) -> bool {
        // Without trace events the kernel has none of them.
        cfg!(CONFIG_TRACEPOINTS)
            // SAFETY: The count lives as long as the module. Others change it at any time: it is read once, as the
            // kernel's static_key_count() does. While the first listener comes it is negative.
            && unsafe { addr_of!((*point).key.key.enabled.counter).read_volatile() != 0 }
    }

    /// Packets became visible.
    #[inline(always)]
    pub(crate) fn publish(stream: u64, head: u64, packets: u64) {
        // SAFETY: That is the event's. Plain numbers.
        unsafe {
            if is_on(addr_of!(__tracepoint_rtp_mgr_publish)) {
                shim::rtp_mgr_trace_publish(stream, head, packets);
            }
        }
    }

    /// Packets were dropped because the ring was full.
    #[inline(always)]
    pub(crate) fn drop(stream: u64, head: u64, packets: u64) {
        // SAFETY: As above.
        unsafe {
            if is_on(addr_of!(__tracepoint_rtp_mgr_drop)) {
                shim::rtp_mgr_trace_drop(stream, head, packets);
            }
        }
    }

    /// A reader was woken.
    #[inline(always)]
    pub(crate) fn wake(stream: u64, reader: u32, head: u64) {
        // SAFETY: As above.
        unsafe {
            if is_on(addr_of!(__tracepoint_rtp_mgr_wake)) {
                shim::rtp_mgr_trace_wake(stream, reader, head);
            }
        }
    }
}
