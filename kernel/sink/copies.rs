// SPDX-License-Identifier: MIT OR GPL-2.0

//! Copies of packets in pages that are used again and again.
//!
//! A send that copies takes new pages from the system, has them zeroed, and the last buffer that points to them
//! gives them back. The pages here are lent to the network stack instead: a buffer holds a reference to each
//! block of pages that it points to, and a block that nobody but us has is free again. So a slot is free as soon as it
//! was copied, whatever becomes of the packet; and what is written to a block is never what a buffer points to.
//!
//! Blocks are of several pages if there are such: then a train is in a few pieces, which is what a buffer costs by,
//! whoever cuts it up, and whoever reads it.

use core::ptr::NonNull;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::prelude::*;

use crate::memory::holders;
use crate::primitives::copy_bytes;
use crate::ring::abi::PAGE;
use crate::sink::udp::Gather;

mod shim {
    use kernel::ffi::{c_uint, c_void};

    // The compiler cannot see through a page.
    extern "C" {
        pub(super) fn rtp_mgr_block_new(order: c_uint) -> *mut c_void;
        pub(super) fn rtp_mgr_block_start(block: *mut c_void) -> *mut c_void;
        pub(super) fn rtp_mgr_block_put(block: *mut c_void);
    }
}

/// Pages of a stream: a few trains. When the network holds them all, it copies as it always did.
const PAGES: usize = 64;
/// Binary logarithm of a block's pages: as many as the stack itself asks for at once, or one.
const ORDERS: [u32; 2] = [3, 0];
/// Copies begin at multiples of this, bytes.
const ALIGN: usize = 64;

/// The pages.
pub(crate) struct Copies {
    blocks: KVVec<Block>,
    /// Bytes of each.
    size: usize,
    /// The block that the latest copy ended in, and where the next one begins if it fits into the rest.
    latest: usize,
    next: usize,
}

/// Pages in a row, which the memory management counts as one.
struct Block {
    page: NonNull<bindings::page>,
    start: NonNull<u8>,
}

// SAFETY: Memory belongs to no thread.
unsafe impl Send for Block {}

impl Block {
    /// `2^order` pages, charged to the caller's memory cgroup.
    fn new(order: u32) -> Option<Self> {
        // SAFETY: Process context. What it returns is null, or the first of so many pages, of which there is one
        // reference.
        let page = NonNull::new(unsafe { shim::rtp_mgr_block_new(order) })?;
        // SAFETY: As said.
        let start = NonNull::new(unsafe { shim::rtp_mgr_block_start(page.as_ptr()) });
        let Some(start) = start else {
            // SAFETY: The one reference, and nobody has used it.
            unsafe { shim::rtp_mgr_block_put(page.as_ptr()) };
            return None;
        };
        Some(Self { page: page.cast(), start: start.cast() })
    }

    /// Whether nobody else has it.
    fn is_free(&self) -> bool {
        // SAFETY: `self` has a reference.
        unsafe { holders(self.page.as_ptr()) == 1 }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: The reference of `new`. Buffers have their own.
        unsafe { shim::rtp_mgr_block_put(self.page.as_ptr().cast()) };
    }
}

impl Copies {
    /// Pages that are charged to the caller's memory cgroup.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        for order in ORDERS {
            let count = PAGES.wrapping_shr(order);
            let mut blocks = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
            while blocks.len() < count {
                let Some(block) = Block::new(order) else { break };
                blocks.push_within_capacity(block).map_err(|_| ENOMEM)?;
            }
            if blocks.len() == count {
                let size = PAGE.wrapping_shl(order);
                return Ok(Self { blocks, size, latest: 0, next: 0 });
            }
        }
        Err(ENOMEM)
    }

    /// Replaces the parts of `gather`, which are memory, by pieces of pages with a copy of them. `false`: there
    /// is no room, and it stays as it is.
    pub(crate) fn copy(&mut self, gather: &mut Gather) -> bool {
        let Some((block, offset)) = self.place(gather.bytes()) else { return false };
        let (mut at, mut to) = (block, offset);
        for part in gather.parts() {
            let (mut from, mut left) = (part.iov_base.cast::<u8>().cast_const(), part.iov_len);
            while left > 0 {
                if to >= self.size {
                    (at, to) = (at.saturating_add(1), 0);
                }
                let Some(block) = self.blocks.get(at) else { return false };
                let len = left.min(self.size.saturating_sub(to));
                // SAFETY: `place` has found these blocks, and `len` bytes are within this one; no buffer points to
                // any of them: only this stream knows them. A part is memory of the stream, which its user
                // may write meanwhile; nobody looks at what is copied.
                unsafe { copy_bytes(from, block.start.as_ptr().add(to), len) };
                from = from.wrapping_add(len);
                to = to.saturating_add(len);
                left = left.saturating_sub(len);
            }
        }
        (self.latest, self.next) = (at, to.div_ceil(ALIGN).saturating_mul(ALIGN));
        let (blocks, size) = (&self.blocks, self.size);
        let pages = blocks.get(block..).unwrap_or_default().iter().map(|block| block.page.as_ptr());
        gather.replace(pages, size, offset)
    }

    /// Room for a copy of `len` bytes: in the rest of the block that the latest one ended in, or in blocks that
    /// nobody else has. When somebody has one of those, the search goes on behind it the next time: it may be had for
    /// good, by a receiver that reads no more.
    fn place(&mut self, len: usize) -> Option<(usize, usize)> {
        if len <= self.size.saturating_sub(self.next) {
            return Some((self.latest, self.next));
        }
        // A power of two.
        let count = len.saturating_add(self.size.wrapping_sub(1)).wrapping_shr(self.size.trailing_zeros());
        let mut first = self.latest.saturating_add(1);
        if first.saturating_add(count) > self.blocks.len() {
            first = 0;
        }
        let blocks = self.blocks.get(first..first.saturating_add(count))?;
        let taken = |at: &usize| blocks.get(*at).is_some_and(|block| !block.is_free());
        match (0..count).rev().find(taken) {
            None => Some((first, 0)),
            Some(last) => {
                // Nothing fits into the rest of that one.
                (self.latest, self.next) = (first.saturating_add(last), self.size);
                None
            }
        }
    }
}
