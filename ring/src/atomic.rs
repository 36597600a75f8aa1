//! The atomics and fences of the ring, chosen by build: the kernel's own under `cfg(kernel)`, the
//! model checker's under `cfg(loom)`, `core`'s otherwise.
//!
//! Only the operations that the ring protocol needs exist here, with their ordering in their name.
//! There is no sequentially consistent access (the kernel has none): where store-to-load ordering
//! matters, [`fence_full`] stands between the two.

#[cfg(not(any(loom, kernel)))]
use core::sync::atomic;
#[cfg(loom)]
use loom::sync::atomic;

#[cfg(all(kernel, not(target_arch = "x86_64")))]
use ::kernel::sync::atomic::ordering as kernel_order;
#[cfg(all(kernel, not(target_arch = "x86_64")))]
use ::kernel::sync::barrier;
#[cfg(not(kernel))]
use atomic::{fence, Ordering};

/// A 64-bit word of shared memory. Same size and alignment as `u64` (outside the model checker).
#[cfg_attr(not(loom), repr(transparent))]
#[derive(Debug)]
pub struct Word(Inner);

#[cfg(not(kernel))]
type Inner = atomic::AtomicU64;
#[cfg(kernel)]
type Inner = ::kernel::sync::atomic::Atomic<u64>;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Word>() == 8 && align_of::<Word>() == 8);

#[cfg(not(kernel))]
impl Word {
    /// A word that holds `value`.
    #[cfg(not(loom))]
    pub const fn new(value: u64) -> Self {
        Self(Inner::new(value))
    }

    /// A word that holds `value`.
    #[cfg(loom)]
    pub fn new(value: u64) -> Self {
        Self(Inner::new(value))
    }

    /// Reads without ordering anything else.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Reads; what follows is not moved before it.
    #[inline]
    pub fn load_acquire(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Writes without ordering anything else.
    #[inline]
    pub fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Writes; what precedes is not moved after it.
    #[inline]
    pub fn store_release(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
}

/// The kernel's atomics, except that reading and writing without order are done here as the kernel's own
/// `atomic64_read` and `atomic64_set` do them (`READ_ONCE`, `WRITE_ONCE`: one volatile access): its Rust
/// API calls a C function for each, and a packet's figures are a hundred words. So are, on x86, the weaker
/// fences and accesses with an order (`barrier()` beside such an access), each a C function otherwise.
#[cfg(kernel)]
impl Word {
    /// A word that holds `value`.
    pub const fn new(value: u64) -> Self {
        Self(Inner::new(value))
    }

    /// Reads without ordering anything else.
    #[inline]
    pub fn load(&self) -> u64 {
        // SAFETY: The pointer is that of an atomic, valid and aligned; a volatile access of a machine word
        // is atomic in the kernel's memory model.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Reads; what follows is not moved before it.
    #[inline]
    pub fn load_acquire(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        {
            let value = self.load();
            compiler_fence();
            value
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.0.load(kernel_order::Acquire)
    }

    /// Writes without ordering anything else.
    #[inline]
    pub fn store(&self, value: u64) {
        // SAFETY: As in `load`.
        unsafe { self.0.as_ptr().write_volatile(value) };
    }

    /// Writes; what precedes is not moved after it.
    #[inline]
    pub fn store_release(&self, value: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            compiler_fence();
            self.store(value);
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.0.store(value, kernel_order::Release);
    }
}

/// The kernel's `barrier()`: x86 itself moves only loads before earlier stores.
#[cfg(all(kernel, target_arch = "x86_64"))]
#[inline]
fn compiler_fence() {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}

/// Orders earlier stores before later stores (`smp_wmb` and stronger).
#[inline]
pub fn fence_write() {
    #[cfg(not(kernel))]
    fence(Ordering::Release);
    #[cfg(all(kernel, target_arch = "x86_64"))]
    compiler_fence();
    #[cfg(all(kernel, not(target_arch = "x86_64"), kernel_before_7_3))]
    barrier::smp_wmb();
    #[cfg(all(kernel, not(target_arch = "x86_64"), not(kernel_before_7_3)))]
    barrier::smp_mb(barrier::Write);
}

/// Orders earlier loads before later loads (`smp_rmb` and stronger).
#[inline]
pub fn fence_read() {
    #[cfg(not(kernel))]
    fence(Ordering::Acquire);
    #[cfg(all(kernel, target_arch = "x86_64"))]
    compiler_fence();
    #[cfg(all(kernel, not(target_arch = "x86_64"), kernel_before_7_3))]
    barrier::smp_rmb();
    #[cfg(all(kernel, not(target_arch = "x86_64"), not(kernel_before_7_3)))]
    barrier::smp_mb(barrier::Read);
}

/// Orders everything before against everything after, stores against later loads included.
#[inline]
pub fn fence_full() {
    #[cfg(not(kernel))]
    fence(Ordering::SeqCst);
    // The kernel's own `smp_mb()`, which its Rust API calls a C function for.
    // SAFETY: Nothing is written; kernel code has no red zone.
    #[cfg(all(kernel, target_arch = "x86_64"))]
    unsafe {
        core::arch::asm!("lock add dword ptr [rsp - 4], 0", options(nostack));
    }
    #[cfg(all(kernel, not(target_arch = "x86_64"), kernel_before_7_3))]
    barrier::smp_mb();
    #[cfg(all(kernel, not(target_arch = "x86_64"), not(kernel_before_7_3)))]
    barrier::smp_mb(barrier::Full);
}
