// SPDX-License-Identifier: MIT OR GPL-2.0

//! The packets of a train: of one buffer of the network stack that holds several datagrams.
//!
//! What lives here: finding and copying them. What does not: who takes them ([`crate::receive`]), and
//! when a train comes whole (shim.c).
//!
//! The bytes may lie in pages that their sender can still write (those of sendfile(2) and vmsplice(2)): what
//! was looked at here may have changed when it is copied.

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::bindings;
use kernel::prelude::*;

use crate::engine::{Bytes, Head, HEAD};
use crate::primitives::copy_bytes;
use crate::ring::header::{self, FIXED_LEN};

mod shim {
    use kernel::bindings;

    extern "C" {
        pub(super) fn rtp_mgr_piece(
            skb: *const bindings::sk_buff,
            offset: u32,
            len: *mut u32,
        ) -> *const u8;
    }
}

/// Reads a train from front to back.
pub(crate) struct Train<'a> {
    skb: NonNull<bindings::sk_buff>,
    /// Of the kernel's own reading, once there was a piece that only that can find.
    state: Option<bindings::skb_seq_state>,
    /// Bytes before the first packet.
    offset: u32,
    /// Bytes of all packets.
    len: u32,
    /// Bytes of each packet but the last, which may be shorter.
    size: u32,
    /// Bytes of the packets after the present one.
    rest: u32,
    /// Bytes of the present packet that were neither read nor passed over.
    unread: u32,
    /// What of the buffer is at hand: from the first of these bytes on.
    block: *const u8,
    left: u32,
    _buffer: PhantomData<&'a mut bindings::sk_buff>,
}

impl Train<'_> {
    /// The `len` bytes from `offset` on, in packets of `size` bytes.
    ///
    /// # Safety
    ///
    /// `skb` lives and is not changed by anybody while this lives; it is no longer than it says.
    pub(crate) unsafe fn new(
        skb: NonNull<bindings::sk_buff>,
        offset: u32,
        len: u32,
        size: u32,
    ) -> Self {
        Self {
            skb,
            state: None,
            offset,
            len,
            size: size.max(1),
            rest: len,
            unread: 0,
            block: core::ptr::null(),
            left: 0,
            _buffer: PhantomData,
        }
    }

    /// Goes to the next packet, whether or not this one was copied. Returns its length; `None`: there is
    /// no other.
    #[inline]
    pub(crate) fn next_packet(&mut self) -> Option<u32> {
        if self.rest == 0 || (self.unread > 0 && !self.pass_by()) {
            return None;
        }
        self.next_of_rest()
    }

    #[inline(always)]
    fn next_of_rest(&mut self) -> Option<u32> {
        let len = self.rest.min(self.size);
        self.rest = self.rest.wrapping_sub(len);
        self.unread = len;
        (len > 0).then_some(len)
    }

    /// [`next_packet`](Self::next_packet) after [`copy_run`](Self::copy_run).
    #[inline(always)]
    pub(crate) fn next_of_run(&mut self) -> Option<u32> {
        self.next_of_rest()
    }

    /// [`copy_next`](Self::copy_next), where `to` is as long as the packet, and [`next_of_run`](Self::next_of_run) or
    /// [`end_run`](Self::end_run) follows.
    #[inline(always)]
    pub(crate) fn copy_run(&mut self, to: &mut [u8]) -> bool {
        let len = to.len();
        // What is empty is no piece either.
        if len.wrapping_sub(1) >= self.left as usize {
            return self.copy_pieces(to);
        }
        // SAFETY: As in `copy_pieces`.
        unsafe { copy_bytes(self.block, to.as_mut_ptr(), len) };
        self.go_on(len as u32);
        true
    }

    /// The present packet is copied.
    pub(crate) fn end_run(&mut self) {
        self.unread = 0;
    }

    /// Passes over what is left of the present packet. Returns whether there was as much.
    #[inline(never)]
    fn pass_by(&mut self) -> bool {
        while self.unread > 0 {
            if !self.has_block() {
                return false;
            }
            self.advance(self.left.min(self.unread));
        }
        true
    }

    /// Bytes that were read or passed over.
    fn at(&self) -> u32 {
        self.len.wrapping_sub(self.rest).wrapping_sub(self.unread)
    }

    /// Copies what comes next, all of the present packet. Returns whether there was as much.
    #[inline]
    pub(crate) fn copy_next(&mut self, to: &mut [u8]) -> bool {
        self.copy_pieces(to)
    }

    /// Copies what may not be in one piece.
    #[inline(never)]
    fn copy_pieces(&mut self, to: &mut [u8]) -> bool {
        let mut done = 0;
        while let Some(left) = to.get_mut(done..).filter(|left| !left.is_empty()) {
            if !self.has_block() {
                return false;
            }
            let len = left.len().min(self.left as usize);
            // SAFETY: `left` bytes are at hand, which nobody but their sender may write and which are
            // copied as they are. `left`, memory of ours, has room for them.
            unsafe { copy_bytes(self.block, left.as_mut_ptr(), len) };
            self.advance(len as u32);
            done = done.wrapping_add(len);
        }
        true
    }

    /// Whether the packets that are left are RTP, all of them.
    pub(crate) fn is_rtp(&mut self) -> bool {
        while let Some(len) = self.next_packet() {
            let is_rtp = if self.has_block() && self.left.min(len) as usize >= FIXED_LEN {
                let first = self.block.cast::<[u8; 2]>();
                // SAFETY: As many bytes are at hand; they are read once. No more of them tell RTP from what
                // it is not.
                header::is_rtp_start(unsafe { first.read_volatile() })
            } else {
                header::is_rtp(self.head().bytes())
            };
            if !is_rtp || !self.is_rtp_at_hand() {
                return false;
            }
        }
        self.rest == 0
    }

    /// Whether the packets after this one are RTP of which the present block has all bytes. Goes past them if so.
    fn is_rtp_at_hand(&mut self) -> bool {
        if self.unread > self.left || (self.size as usize) < FIXED_LEN {
            return true;
        }
        self.advance(self.unread);
        let (size, mut block, mut left) = (self.size, self.block, self.left);
        // What tells RTP is the same in all packets of most trains: begun with what RTP may have.
        let mut rtp_bits = header::start_bits([0x80, 0]);
        while left >= size {
            // SAFETY: `left` bytes are at hand, more than two; they are read once.
            let bits = header::start_bits(unsafe { block.cast::<[u8; 2]>().read_volatile() });
            if bits != rtp_bits {
                if !header::is_rtp_start(bits.to_le_bytes()) {
                    return false;
                }
                rtp_bits = bits;
            }
            // SAFETY: As many bytes are at hand.
            block = unsafe { block.add(size as usize) };
            left = left.wrapping_sub(size);
        }
        self.rest = self.rest.wrapping_sub(self.left.wrapping_sub(left));
        (self.block, self.left) = (block, left);
        true
    }

    /// Whether there are bytes at hand: those of the present block, or of the next.
    #[inline]
    fn has_block(&mut self) -> bool {
        if self.left == 0 {
            self.next_block();
        }
        self.left > 0
    }

    #[inline(never)]
    fn next_block(&mut self) {
        let at = self.at();
        let mut left = 0;
        let offset = self.offset.wrapping_add(at);
        // SAFETY: The buffer lives, and is ours; `left` is written if there is a piece.
        self.block = unsafe { shim::rtp_mgr_piece(self.skb.as_ptr(), offset, &mut left) };
        if self.block.is_null() {
            left = self.seek(at);
        }
        self.left = left.min(self.len.wrapping_sub(at));
    }

    /// Finds the bytes from `at` on in buffers that hang on this one, or that are to be mapped. Returns how many there are.
    #[inline(never)]
    fn seek(&mut self, at: u32) -> u32 {
        let (skb, from) = (self.skb.as_ptr(), self.offset);
        let to = from.wrapping_add(self.len);
        let state = self.state.get_or_insert_with(|| {
            let mut state = bindings::skb_seq_state::default();
            // SAFETY: The buffer lives; the state is written.
            unsafe { bindings::skb_prepare_seq_read(skb, from, to, &mut state) };
            state
        });
        // SAFETY: The state was prepared, and the buffer lives. What was read before is no more used.
        unsafe { bindings::skb_seq_read(at, &mut self.block, state) }
    }

    /// `len` bytes of the present packet, at most `left`, are done with.
    fn advance(&mut self, len: u32) {
        self.unread = self.unread.wrapping_sub(len);
        self.go_on(len);
    }

    /// `len` bytes at hand, at most `left`, are done with.
    fn go_on(&mut self, len: u32) {
        self.left = self.left.wrapping_sub(len);
        // SAFETY: `len` bytes are at hand.
        self.block = unsafe { self.block.add(len as usize) };
    }
}

impl Bytes for Train<'_> {
    /// The first bytes of the packet, of which nothing was copied yet.
    fn head(&mut self) -> Head {
        let mut bytes = [0; HEAD];
        let len = self.unread.min(HEAD as u32);
        let offset = self.offset.wrapping_add(self.at()) as c_int;
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: The buffer lives; `bytes` has room for `len` bytes, which is at most its length.
        let result =
            unsafe { bindings::skb_copy_bits(self.skb.as_ptr(), offset, to, len as c_int) };
        if result == 0 {
            Head::of(bytes.get(..len as usize).unwrap_or_default())
        } else {
            Head::EMPTY
        }
    }

    #[inline]
    fn copy(&mut self, to: &mut [u8]) -> bool {
        self.copy_next(to)
    }

    fn is_still(copy: &[u8]) -> bool {
        header::is_rtp(copy)
    }
}

impl Drop for Train<'_> {
    fn drop(&mut self) {
        if let Some(state) = &mut self.state {
            // SAFETY: The state was prepared; nothing that was read is used any more.
            unsafe { bindings::skb_abort_seq_read(state) };
        }
    }
}
