// SPDX-License-Identifier: MIT OR GPL-2.0

//! Copies of packets in pages that are used again and again.
//!
//! A send that copies takes new pages from the system, has them zeroed, and the last buffer that points to them
//! gives them back. The pages here are lent to the network stack instead (`MSG_SPLICE_PAGES`): a buffer holds a
//! reference to each of its pages, and a page that nobody but us has is free again. So a slot is free as soon as it
//! was copied, whatever becomes of the packet; and what is written to a page is never what a buffer points to.

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::prelude::*;

use crate::memory::{holders, Pages};
use crate::primitives::copy_bytes;
use crate::ring::abi::PAGE;
use crate::sink::udp::Gather;

/// Pages of a stream: a few trains. When the network holds them all, it copies as it always did.
const COUNT: usize = 64;
/// Copies begin at multiples of this, bytes.
const ALIGN: usize = 64;

/// The pages.
pub(crate) struct Copies {
    pages: Pages,
    /// Each as the memory management knows it.
    known: KVVec<*mut bindings::page>,
    /// Where the next copy begins, if it fits into the rest of that page.
    next: usize,
}

// SAFETY: The pointers are to pages that `pages` keeps, and belong to no thread.
unsafe impl Send for Copies {}

impl Copies {
    /// Pages that are charged to the caller's memory cgroup.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let pages = Pages::new(COUNT)?;
        let mut known = KVVec::from_elem(core::ptr::null_mut(), COUNT, GFP_KERNEL_ACCOUNT)?;
        for (index, page) in known.iter_mut().enumerate() {
            *page = pages.known(index).ok_or(ENOMEM)?;
        }
        Ok(Self { pages, known, next: 0 })
    }

    /// Replaces the parts of `gather`, which are memory, by pieces of pages with a copy of them. `false`: there
    /// is no room, and it stays as it is.
    pub(crate) fn copy(&mut self, gather: &mut Gather) -> bool {
        let Some(first) = self.place(gather.bytes()) else { return false };
        let mut to = first;
        for part in gather.parts() {
            let len = part.iov_len.min((COUNT * PAGE).saturating_sub(to));
            // SAFETY: `place` has found so many bytes within the pages, of which no buffer points to any: only this
            // stream knows them. A part is memory of the stream, which its user may write meanwhile; nobody
            // looks at what is copied.
            unsafe {
                let start = self.pages.start().as_ptr().add(to);
                copy_bytes(part.iov_base.cast::<u8>().cast_const(), start, len);
            }
            to = to.saturating_add(len);
        }
        self.next = to.div_ceil(ALIGN).saturating_mul(ALIGN);
        gather.replace(&self.known, first, to)
    }

    /// Room for a copy of `len` bytes: in the rest of the page that the latest one ended in, or in pages that
    /// nobody else has. When somebody has one of those, the search goes on behind it the next time: it may be had for
    /// good, by a receiver that reads no more.
    fn place(&mut self, len: usize) -> Option<usize> {
        let mut first = self.next.div_ceil(PAGE);
        if len <= first.saturating_mul(PAGE).saturating_sub(self.next) {
            return Some(self.next);
        }
        let count = len.div_ceil(PAGE);
        if first.saturating_add(count) > COUNT {
            first = 0;
        }
        let pages = self.known.get(first..first.saturating_add(count))?;
        // SAFETY: `self` keeps the pages.
        let taken = |page: &*mut bindings::page| unsafe { holders(*page) != 1 };
        match pages.iter().rposition(taken) {
            None => Some(first.saturating_mul(PAGE)),
            Some(last) => {
                self.next = first.saturating_add(last).saturating_add(1).saturating_mul(PAGE);
                None
            }
        }
    }
}
