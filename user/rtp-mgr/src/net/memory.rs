//! Memory cut into slots, as socket calls reach it.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Memory cut into slots of equal size, as socket calls reach it.
///
/// The one who creates it answers for the memory ([`SlotMemory::new`]); everything built on it is
/// safe to call.
pub struct SlotMemory {
    base: NonNull<u8>,
    slots: u32,
    stride: usize,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory lives as long as `_keep`, which is Send and Sync, and `new` makes its caller
// promise that nobody else touches the slots in question, from whatever thread.
unsafe impl Send for SlotMemory {}

impl SlotMemory {
    /// The `len` bytes at `base`, cut into slots of `stride` bytes. `keep` owns the mapping.
    ///
    /// # Safety
    /// - The memory stays mapped, readable and (if slots are received into or written) writable,
    ///   while `keep` lives.
    /// - From when a slot is named to this value, or to a batch made of it, until the batch has given
    ///   it back or the borrow that reads it ends, no Rust reference to the slot's bytes exists
    ///   elsewhere. Others may look at it only through atomics, or from another process.
    ///
    /// # Panics
    /// When `stride` is 0.
    pub unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        stride: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        assert!(stride > 0, "slots have a size");
        let slots = u32::try_from(len / stride).unwrap_or(u32::MAX);
        Self { base, slots, stride, _keep: keep }
    }

    /// Private memory of `slots` slots of `stride` bytes, all zero.
    ///
    /// # Panics
    /// When `stride` is 0.
    pub fn private(slots: u32, stride: usize) -> Self {
        let len = slots as usize * stride;
        let words: Arc<[AtomicU64]> = (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        let base = NonNull::new(words.as_ptr().cast_mut().cast()).expect("a slice has an address");
        // SAFETY: `words` is at least `len` bytes of memory that may be written through a shared
        // reference (atomics); only this value ever has its address.
        unsafe { Self::new(base, len, stride, Arc::new(words)) }
    }

    /// Bytes of a slot.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Number of whole slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Address of a slot.
    ///
    /// # Panics
    /// When there is no such slot: the caller lost count of its memory.
    pub(super) fn slot(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        // SAFETY: slot < len / stride, so the offset is within the bytes of one mapping.
        unsafe { self.base.as_ptr().add(slot as usize * self.stride) }
    }

    /// The first bytes of a slot, at most a slot's.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn bytes(&self, slot: u32, len: usize) -> &[u8] {
        let start = self.slot(slot);
        // SAFETY: within the slot, which is within the mapping; `new`'s promise excludes writers.
        unsafe { slice::from_raw_parts(start, len.min(self.stride)) }
    }

    /// Copies `bytes` to the start of a slot, as many as it holds; returns how many.
    ///
    /// Written with atomic stores: a lossy reader may be looking at the slot's former packet, and
    /// finds out afterwards that it was overwritten.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn write(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let start = self.slot(slot);
        let bytes = &bytes[..bytes.len().min(self.stride)];
        let head = start.align_offset(8).min(bytes.len());
        let (first, rest) = bytes.split_at(head);
        let words = rest.chunks_exact(8);
        let last = words.remainder();
        let store = |offset: usize, byte: u8| {
            // SAFETY: offset < bytes.len() <= stride, so within the slot; u8 has no alignment.
            unsafe { AtomicU8::from_ptr(start.add(offset)) }.store(byte, Ordering::Relaxed);
        };
        for (index, byte) in first.iter().enumerate() {
            store(index, *byte);
        }
        for (index, word) in words.enumerate() {
            let word = u64::from_ne_bytes(word.try_into().expect("chunks of eight"));
            // SAFETY: the eight bytes end at or before bytes.len() <= stride, and `head` is the
            // distance to an address aligned for u64.
            unsafe { AtomicU64::from_ptr(start.add(head + index * 8).cast()) }
                .store(word, Ordering::Relaxed);
        }
        for (index, byte) in last.iter().enumerate() {
            store(bytes.len() - last.len() + index, *byte);
        }
        bytes.len()
    }
}

impl fmt::Debug for SlotMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMemory")
            .field("slots", &self.slots())
            .field("stride", &self.stride)
            .finish_non_exhaustive()
    }
}
