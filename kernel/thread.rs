// SPDX-License-Identifier: MIT OR GPL-2.0

//! A kernel thread that belongs to something, and where it sleeps.
//!
//! The kernel's Rust API has neither. What the thread does is its owner's ([`ThreadOwner`]).

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::cred::Credential;
use kernel::error::from_err_ptr;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{ordering, Atomic};
use kernel::{bindings, c_str, current, prelude::*};

use crate::primitives::WaitQueue;

mod shim {
    use kernel::ffi::c_void;

    // The compiler cannot see through credentials.
    extern "C" {
        pub(super) fn rtp_mgr_swap_creds(creds: *const c_void) -> *const c_void;
        pub(super) fn rtp_mgr_cond_resched();
    }
}

/// How much later than asked a sleeper may be woken, so that timers can be taken together.
const SLACK_NS: u64 = 10_000;

/// What a thread belongs to.
pub(crate) trait ThreadOwner: Sync {
    /// All that the thread does. Returns only when [`should_stop`] says so.
    fn work(&self);
}

/// A running kernel thread. Dropping it stops the thread and waits for its end: process context, and
/// no lock that the thread takes.
pub(crate) struct Thread {
    task: NonNull<bindings::task_struct>,
}

// SAFETY: A task belongs to no other; the only thing done with it is to stop it, once.
unsafe impl Send for Thread {}
// SAFETY: Nothing can be done through a shared reference.
unsafe impl Sync for Thread {}

impl Thread {
    /// Starts the thread of `owner`, named after `number`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or `EINTR` when the caller is being killed.
    ///
    /// # Safety
    ///
    /// `owner` lives, and does not move, until the thread is dropped.
    pub(crate) unsafe fn start<T: ThreadOwner>(owner: &T, number: u64) -> Result<Self> {
        let data = core::ptr::from_ref(owner).cast_mut().cast();
        // SAFETY: Function and data fit, and the latter lives as long as the thread (the caller's
        // promise); format and argument agree.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(run::<T>),
                data,
                bindings::NUMA_NO_NODE,
                c_str!("rtp_mgr/%llu").as_char_ptr(),
                number,
            )
        })?;
        // SAFETY: It was just created, and does not end before it is stopped.
        unsafe { bindings::wake_up_process(task) };
        Ok(Self { task: NonNull::new(task).ok_or(ENOMEM)? })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: The thread does not end before it is stopped, so its task is there. What it returns
        // says nothing: a thread that is stopped before it ran does not run.
        unsafe { bindings::kthread_stop(self.task.as_ptr()) };
    }
}

/// # Safety
///
/// Called by the kernel as a thread's function with a `T` that lives until the thread is stopped.
unsafe extern "C" fn run<T: ThreadOwner>(data: *mut c_void) -> c_int {
    // SAFETY: As this function's own requirement.
    unsafe { &*data.cast::<T>() }.work();
    0
}

/// Whether the current thread, made by [`Thread::start`], is to end.
pub(crate) fn should_stop() -> bool {
    // SAFETY: Asks about the current task, which is a kernel thread.
    unsafe { bindings::kthread_should_stop() }
}

/// Lets others run.
pub(crate) fn pause() {
    // SAFETY: Process context without a spin lock.
    unsafe { shim::rtp_mgr_cond_resched() };
}

/// The current thread acts with somebody's credentials while this lives.
pub(crate) struct ActsFor<'a> {
    own: *const c_void,
    _credentials: PhantomData<&'a Credential>,
}

impl<'a> ActsFor<'a> {
    pub(crate) fn new(credentials: &'a ARef<Credential>) -> Self {
        // SAFETY: The credentials live longer than this, which puts the thread's own back.
        let own = unsafe { shim::rtp_mgr_swap_creds(credentials.as_ptr().cast()) };
        Self { own, _credentials: PhantomData }
    }
}

impl Drop for ActsFor<'_> {
    fn drop(&mut self) {
        // SAFETY: They are the thread's own, of which it has kept its reference.
        unsafe { shim::rtp_mgr_swap_creds(self.own) };
    }
}

/// Wakes a thread, now or as soon as it would sleep.
#[pin_data]
pub(crate) struct Bell {
    /// 1: it has been rung since the thread last looked.
    rung: Atomic<u32>,
    #[pin]
    queue: WaitQueue,
}

impl Bell {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { rung: Atomic::new(0), queue <- WaitQueue::new() })
    }

    /// Wakes the thread. Any context.
    pub(crate) fn ring(&self) {
        self.rung.store(1, ordering::Release);
        // Takes the queue's lock, as whoever begins to sleep does: one of the two is first, and either
        // sees what the other did before.
        self.queue.wake(bindings::POLLIN);
    }

    /// Forgets that it was rung. What was done before it was rung is seen after this.
    pub(crate) fn hush(&self) {
        self.rung.xchg(0, ordering::Full);
    }

    /// Sleeps until it is rung, or CLOCK_MONOTONIC has reached `until_ns`. Not at all when it was rung
    /// since [`hush`](Self::hush), or the thread is to end.
    pub(crate) fn sleep(&self, until_ns: Option<u64>) {
        let mut entry = bindings::wait_queue_entry {
            private: current!().as_ptr().cast(),
            func: Some(bindings::default_wake_function),
            ..Default::default()
        };
        let entry: *mut bindings::wait_queue_entry = &mut entry;
        // SAFETY: The entry is ours alone and not in a list: it becomes an empty one.
        unsafe {
            let list = &raw mut (*entry).entry;
            (*list).next = list;
            (*list).prev = list;
        }
        // A state in which nobody is counted as busy, and which signals do not end.
        let idle = bindings::TASK_IDLE as c_int;
        // SAFETY: The queue lives as long as `self`; the entry is taken out below, before it goes.
        unsafe { bindings::prepare_to_wait(self.queue.as_ptr(), entry, idle) };
        if self.rung.load(ordering::Acquire) == 0 && !should_stop() {
            let mut until =
                until_ns.map(|until_ns| until_ns.clamp(1, i64::MAX as u64) as bindings::ktime_t);
            let until = until.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
            // SAFETY: Without a time it sleeps until it is woken. Process context without a spin lock.
            unsafe {
                bindings::schedule_hrtimeout_range(
                    until,
                    SLACK_NS,
                    bindings::hrtimer_mode_HRTIMER_MODE_ABS,
                )
            };
        }
        // SAFETY: As above; from here on nobody knows the entry.
        unsafe { bindings::finish_wait(self.queue.as_ptr(), entry) };
    }
}
