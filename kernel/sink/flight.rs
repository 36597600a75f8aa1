// SPDX-License-Identifier: MIT OR GPL-2.0

//! Sends from the ring's own pages: who tells when the network has let go of them.
//!
//! What does not live here: which packets are sent so ([`crate::transmit`]), and which positions wait for
//! it ([`crate::ring::transmit`]).
//!
//! A [`Flight`] goes with each such send. The network stack takes references to it, one for each buffer
//! that points into the pages, and [`complete`] is called when it drops one: in any order, at any later
//! time (a queue may hold packets for hours), in any context, when the stream may long be gone. So it
//! sets a bit, rings the bell if the stream's thread wants that, and nothing else. The thread looks at
//! the bits ([`Flights::land`]). The pages are not the flight's to keep: each buffer has references to
//! them of its own, so memory that a stream has freed goes page by page when the network is done with it.
//!
//! # Lifetime
//!
//! The flights of a stream are the private data of a file that nobody else sees. The stream has one
//! reference to it and each flight that is out has another, so that
//!
//! - the last reference may be dropped anywhere: the kernel releases files in process context;
//! - the file keeps the module, and the kernel gives that reference back when `release` has returned,
//!   not the module's own text.
//!
//! What is left is the way out of [`complete`], after it has dropped its reference: a few instructions of the
//! module's text. [`wait_for_completions`] waits for whoever is there before the module goes. Most of the
//! callers are softirqs, for which an RCU grace period waits; a task that is preempted there is waited for by
//! one of RCU tasks. A kernel that preempts and has no RCU tasks (built without BPF, kprobes and ftrace) leaves
//! a preempted task out.

use core::ptr::NonNull;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::error::from_err_ptr;
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{ordering, Atomic};
use kernel::sync::{rcu, Arc};
use kernel::types::Opaque;
use kernel::{bindings, c_str};

use crate::device::{owner, Operations};
use crate::memory::SlotPages;
use crate::ring::abi::LEGS_MAX;
use crate::ring::atomic::fence_full;
use crate::thread::Bell;

extern "C" {
    /// The kernel's own, which the bindings leave out: name, `struct file_operations`, private data, flags.
    /// Makes a `struct file`. (The compiler cannot see through the two.)
    fn anon_inode_getfile(
        name: *const c_char,
        operations: *const c_void,
        private_data: *mut c_void,
        flags: c_int,
    ) -> *mut c_void;
}

/// Sends of one leg that may be in flight at once: as many as a word has bits.
const PER_LEG: usize = u64::BITS as usize;
const COUNT: usize = PER_LEG * LEGS_MAX;
/// The buffers point to pages whose owner may write them, and copies of a buffer need none of the pages.
const FLAGS: u8 = (bindings::SKBFL_ZEROCOPY_ENABLE
    | bindings::SKBFL_SHARED_FRAG
    | bindings::SKBFL_DONT_ORPHAN) as u8;

/// What the network stack knows of a send.
#[repr(C)]
#[pin_data]
struct Flight {
    // First: the stack calls with the address of it.
    #[pin]
    info: Opaque<bindings::ubuf_info>,
    /// Which of the pool's flights it is.
    number: usize,
    /// 1: the stack took a reference.
    taken: Atomic<u32>,
    /// 1: a buffer's bytes were copied after all.
    copied: Atomic<u32>,
}

/// The flights of a stream.
#[repr(C)]
#[pin_data]
struct Pool {
    // First: found from a flight by its number.
    #[pin]
    flights: [Flight; COUNT],
    /// A bit for each flight that is over and was not looked at.
    landed: [Atomic<u64>; LEGS_MAX],
    /// 1: the thread sleeps, and wants to know.
    wanted: Atomic<u32>,
    bell: Arc<Bell>,
    /// The file that this is the private data of.
    file: *mut bindings::file,
}

/// What is written of a flight by whoever sends it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trip {
    /// First of the positions whose slots are read.
    pub(crate) first: u64,
    /// How many there are.
    pub(crate) count: u32,
    /// Packets that left. 0: the send failed.
    pub(crate) packets: u32,
    /// When it began, CLOCK_MONOTONIC.
    pub(crate) since_ns: u64,
}

/// What became of a send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The network read the pages.
    Read,
    /// It copied them, at once or on the way.
    Copied,
}

/// The flights of a stream, as its engine has them.
pub(crate) struct Flights {
    /// Keeps the pool.
    file: ARef<File>,
    pool: NonNull<Pool>,
    /// A bit for each that is not out.
    idle: [u64; LEGS_MAX],
    trips: KVVec<Trip>,
    /// [`Pool::wanted`] was set.
    expecting: bool,
    /// What is sent so.
    pub(crate) pages: SlotPages,
}

// SAFETY: The pool belongs to no thread: it consists of atomics, a bell, and flights that only their own
// references change.
unsafe impl Send for Flights {}

/// A flight that is out, until its sender has told what became of the send.
#[derive(Clone, Copy)]
pub(crate) struct Departure {
    number: usize,
    /// For `msg_ubuf`.
    pub(crate) info: *mut bindings::ubuf_info,
}

/// A module that never sent so need not wait when it goes.
static USED: Atomic<u32> = Atomic::new(0);

struct CompleteOperations(bindings::ubuf_info_ops);

// SAFETY: Never written, and what it points to is a function.
unsafe impl Sync for CompleteOperations {}

static COMPLETE: CompleteOperations =
    CompleteOperations(bindings::ubuf_info_ops { complete: Some(complete), link_skb: None });

static OPERATIONS: Operations = Operations(bindings::file_operations {
    owner: owner(),
    release: Some(release),
    ..pin_init::zeroed()
});

impl Flight {
    fn new(number: usize) -> impl PinInit<Self> {
        pin_init!(Self {
            info: Opaque::new(bindings::ubuf_info {
                ops: &COMPLETE.0,
                flags: FLAGS,
                ..Default::default()
            }),
            number,
            taken: Atomic::new(0),
            copied: Atomic::new(0),
        })
    }

    fn references(&self) -> *mut bindings::refcount_t {
        // SAFETY: A field of a part of `self`.
        unsafe { &raw mut (*self.info.get()).refcnt }
    }

    /// Drops one of its references; the last one ends it.
    ///
    /// # Safety
    ///
    /// `this` is a flight that is out, in its pool, and the caller has such a reference.
    unsafe fn put(this: *const Self) {
        // SAFETY: It lives while it is out, and does after this, unless this was the last reference.
        let (last, number) = unsafe {
            let number = (*this).number;
            (bindings::refcount_dec_and_test((*this).references()), number)
        };
        if last {
            // SAFETY: The pool begins with its flights, and this is the one with that number.
            let pool = unsafe { this.sub(number) }.cast::<Pool>();
            // SAFETY: The flight has a reference to the file, which keeps the pool.
            let file = unsafe {
                (*pool).land(number);
                (*pool).file
            };
            // SAFETY: The reference that the flight had. From here on the pool may be gone.
            unsafe { bindings::fput(file) };
        }
    }
}

impl Pool {
    /// A flight is over. From here on it may be used again.
    fn land(&self, number: usize) {
        let Some(landed) = self.landed.get(number / PER_LEG) else { return };
        let bit = 1_u64.wrapping_shl(number as u32);
        let mut before = landed.load(ordering::Relaxed);
        // A full barrier when it succeeds: see `Flights::expect`.
        while let Err(now) = landed.cmpxchg(before, before | bit, ordering::Full) {
            before = now;
        }
        if self.wanted.load(ordering::Relaxed) != 0 && self.wanted.xchg(0, ordering::Full) != 0 {
            self.bell.ring();
        }
    }
}

/// The stack is done with a buffer, or with its own reference.
///
/// # Safety
///
/// Called by the kernel, with a reference to a flight that is out.
unsafe extern "C" fn complete(
    _buffer: *mut bindings::sk_buff,
    info: *mut bindings::ubuf_info,
    intact: bool,
) {
    let _until_the_end = rcu::read_lock();
    let flight = info.cast::<Flight>().cast_const();
    // SAFETY: The information is the first field of a flight, which lives while it is out.
    unsafe {
        (*flight).taken.store(1, ordering::Relaxed);
        if !intact {
            (*flight).copied.store(1, ordering::Relaxed);
        }
        Flight::put(flight);
    }
}

/// # Safety
///
/// Called by the kernel, once, when nobody has the file any more.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `Flights::new` put a box there. No flight is out, since each has a reference.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Pool>()) });
    0
}

/// Called when the module goes, and so with no flight out: waits for the last ones' callers.
pub(crate) fn wait_for_completions() {
    if USED.load(ordering::Relaxed) == 0 {
        return;
    }
    // SAFETY: Process context without a lock.
    unsafe {
        bindings::synchronize_rcu();
        #[cfg(CONFIG_TASKS_RCU)]
        bindings::synchronize_rcu_tasks();
    }
}

/// The flight of `leg` that a bit stands for.
fn number(leg: usize, bit: u32) -> usize {
    leg.saturating_mul(PER_LEG).saturating_add(bit as usize)
}

impl Flights {
    /// As many for each leg, none out, of packets in `pages`. `bell` is rung as [`expect`](Self::expect) says.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENFILE`: no memory, no more files.
    pub(crate) fn new(bell: Arc<Bell>, pages: SlotPages) -> Result<Self> {
        let trips = KVVec::from_elem(Trip::default(), COUNT, GFP_KERNEL_ACCOUNT)?;
        let pool = KBox::pin_init(
            pin_init!(Pool {
                flights <- pin_init::pin_init_array_from_fn(Flight::new),
                landed: [const { Atomic::new(0) }; LEGS_MAX],
                wanted: Atomic::new(0),
                bell,
                file: core::ptr::null_mut(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: It is not moved: it stays in its box.
        let pool = KBox::into_raw(unsafe { Pin::into_inner_unchecked(pool) });
        let (name, flags) = (c_str!("[rtp_mgr]"), bindings::O_RDWR as c_int);
        // SAFETY: Name and operations live as long as the module, and the file keeps that.
        let file = from_err_ptr(unsafe {
            let operations = (&raw const OPERATIONS.0).cast();
            anon_inode_getfile(name.as_char_ptr(), operations, pool.cast(), flags)
        });
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                // SAFETY: Made above, and nobody else has it.
                drop(unsafe { KBox::from_raw(pool) });
                return Err(error);
            }
        };
        // SAFETY: Nobody else looks at the pool yet. The file's one reference becomes ours.
        let file = unsafe {
            (*pool).file = file.cast();
            ARef::from_raw(NonNull::new(file.cast::<File>()).ok_or(ENOMEM)?)
        };
        USED.store(1, ordering::Relaxed);
        let pool = NonNull::new(pool).ok_or(ENOMEM)?;
        Ok(Self { file, pool, idle: [u64::MAX; LEGS_MAX], trips, expecting: false, pages })
    }

    fn pool(&self) -> &Pool {
        // SAFETY: The file keeps it.
        unsafe { self.pool.as_ref() }
    }

    /// Whether one more send of `leg` may be in flight.
    pub(crate) fn has_idle(&self, leg: usize) -> bool {
        self.idle.get(leg).is_some_and(|idle| *idle != 0)
    }

    /// A flight for a send of `leg`. Its sender calls [`away`](Self::away) after the send. `None`: all are
    /// out.
    pub(crate) fn depart(&mut self, leg: usize, trip: Trip) -> Option<Departure> {
        let idle = self.idle.get_mut(leg).filter(|idle| **idle != 0)?;
        let bit = idle.trailing_zeros();
        let number = number(leg, bit);
        *self.trips.get_mut(number)? = trip;
        *idle &= !1_u64.wrapping_shl(bit);
        // The flight's own reference to the file: given back by `Flight::put`.
        let _ = ARef::into_raw(self.file.clone());
        let flight = self.pool().flights.get(number)?;
        flight.taken.store(0, ordering::Relaxed);
        flight.copied.store(0, ordering::Relaxed);
        // SAFETY: It is not out: nobody else looks at it.
        unsafe { bindings::refcount_set(flight.references(), 1) };
        Some(Departure { number, info: flight.info.get() })
    }

    /// The send is done, with so many packets; what remains is the stack's.
    pub(crate) fn away(&mut self, departure: Departure, packets: usize) {
        if let Some(trip) = self.trips.get_mut(departure.number) {
            trip.packets = packets as u32;
        }
        // SAFETY: The reference that it departed with.
        unsafe { Flight::put(departure.info.cast::<Flight>().cast_const()) };
    }

    /// The thread is awake, and looks for itself.
    pub(crate) fn awake(&mut self) {
        if self.expecting {
            self.pool().wanted.store(0, ordering::Relaxed);
            self.expecting = false;
        }
    }

    /// Tells of each flight that is over: its leg, its trip, what became of it. Also called while the thread
    /// sleeps, which then still wants to know of the others.
    pub(crate) fn land(&mut self, mut told: impl FnMut(usize, &Trip, Outcome)) {
        for leg in 0..LEGS_MAX {
            // SAFETY: The file keeps it, and nothing here changes which pool it is.
            let pool = unsafe { self.pool.as_ref() };
            let (Some(landed), Some(idle)) = (pool.landed.get(leg), self.idle.get_mut(leg)) else {
                return;
            };
            if *idle == u64::MAX || landed.load(ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = landed.xchg(0, ordering::Full);
            *idle |= bits;
            while bits != 0 {
                let number = number(leg, bits.trailing_zeros());
                bits &= bits.wrapping_sub(1);
                let (Some(flight), Some(trip)) = (pool.flights.get(number), self.trips.get(number))
                else {
                    continue;
                };
                let copied = flight.copied.load(ordering::Relaxed) != 0
                    || flight.taken.load(ordering::Relaxed) == 0;
                told(leg, trip, if copied { Outcome::Copied } else { Outcome::Read });
            }
        }
    }

    /// The legs are no more what they were: what becomes of flights that are out tells nothing of them.
    pub(crate) fn forget(&mut self) {
        for trip in self.trips.iter_mut() {
            trip.packets = 0;
        }
    }

    /// When the oldest flight of `leg` that is out began.
    pub(crate) fn oldest_ns(&self, leg: usize) -> Option<u64> {
        let mut out = !self.idle.get(leg)?;
        let mut oldest_ns = None;
        while out != 0 {
            let number = number(leg, out.trailing_zeros());
            out &= out.wrapping_sub(1);
            let since_ns = self.trips.get(number).map_or(u64::MAX, |trip| trip.since_ns);
            oldest_ns = Some(oldest_ns.map_or(since_ns, |oldest_ns: u64| oldest_ns.min(since_ns)));
        }
        oldest_ns
    }

    /// Has the bell rung when the next flight is over, until [`awake`](Self::awake) is called. `true`: one
    /// is over already.
    pub(crate) fn expect(&mut self) -> bool {
        if self.idle == [u64::MAX; LEGS_MAX] {
            return false;
        }
        self.pool().wanted.store(1, ordering::Relaxed);
        self.expecting = true;
        // A flight sets its bit, then looks at `wanted`; this sets `wanted`, then looks at the bits. With
        // a full fence between, on both sides, one of the two sees the other's store.
        fence_full();
        self.pool().landed.iter().any(|landed| landed.load(ordering::Relaxed) != 0)
    }
}
