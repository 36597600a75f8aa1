// SPDX-License-Identifier: MIT OR GPL-2.0

//! UDP: sending through a connected socket that user space prepared and handed over.
//!
//! The socket stays an ordinary one, and its user may do to it whatever a user may: everything that
//! this shows up as is an error of a send. Its namespace, route, TTL, DSCP and priority are the
//! socket's.

use core::marker::PhantomPinned;
use core::ptr::NonNull;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::Opaque;

use crate::memory::Piece;
use crate::sink::flight::Departure;
use crate::thread::Bell;

mod shim {
    use kernel::bindings;
    use kernel::ffi::{c_int, c_void};

    // The compiler cannot see through a socket.
    extern "C" {
        pub(super) fn rtp_mgr_udp_may_send(socket: *mut c_void) -> c_int;
        pub(super) fn rtp_mgr_udp_send_buffer(socket: *mut c_void) -> c_int;
        pub(super) fn rtp_mgr_udp_takes_pieces(socket: *mut c_void) -> bool;
        pub(super) fn rtp_mgr_udp_is_corked(socket: *mut c_void) -> bool;
        pub(super) fn rtp_mgr_fill(
            buffer: *mut bindings::sk_buff,
            from: *mut bindings::iov_iter,
            len: usize,
        ) -> c_int;
    }
}

/// Packets that one segmented send takes (`UDP_MAX_SEGMENTS` is 128; 64 is what every kernel takes).
pub(crate) const SEGMENTS_MAX: usize = 64;
/// Longest UDP payload over IPv4, bytes.
pub(crate) const DATAGRAM_MAX: usize = 65_507;
/// Option of level `SOL_UDP`, as uapi/linux/udp.h has it.
const UDP_SEGMENT: c_int = 103;
/// Pieces of pages that one buffer of the stack can point to (`MAX_SKB_FRAGS` is 17 or more).
pub(crate) const PIECES_MAX: usize = 17;
/// Direction of what is to be sent, as linux/uio.h has it.
const ITER_SOURCE: c_uint = 1;
/// `EPOLLOUT`, in the key of a wake-up.
const WRITABLE: usize = bindings::POLLOUT as usize;

/// A socket to send through. Dropped in process context.
pub(crate) struct UdpSink {
    /// Holds the socket's file.
    socket: NonNull<bindings::socket>,
    /// Waits for space in the send buffer.
    waiter: Pin<KBox<Waiter>>,
    waiting: bool,
}

// SAFETY: A socket belongs to no thread; it has locks of its own.
unsafe impl Send for UdpSink {}

/// In a socket's wait queue: rings a bell when there is space in the send buffer.
#[pin_data]
#[repr(C)]
struct Waiter {
    // First: the wake-up finds `self` by the address of it.
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    bell: Arc<Bell>,
    #[pin]
    _pin: PhantomPinned,
}

/// The control message that asks for segmentation.
#[repr(C)]
struct SegmentControl {
    header: bindings::cmsghdr,
    len: u16,
    padding: [u8; 6],
}

impl UdpSink {
    /// Takes a socket from the caller's file descriptors. `bell` is rung when a send that found no
    /// space may be tried again.
    ///
    /// # Errors
    ///
    /// `EBADF`, `ENOTSOCK`: not a socket. `EINVAL`: not UDP. `ENOTCONN`: not connected.
    pub(crate) fn adopt(fd: i32, bell: Arc<Bell>) -> Result<Self> {
        let waiter = KBox::pin_init(
            pin_init!(Waiter { entry: Opaque::uninit(), bell, _pin: PhantomPinned }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut error = 0;
        // SAFETY: Looks in the current task's files, and takes a reference to what it finds.
        let socket = unsafe { bindings::sockfd_lookup(fd, &mut error) };
        let socket = NonNull::new(socket).ok_or_else(|| Error::from_errno(error))?;
        // From here on dropping it gives the reference back.
        let sink = Self { socket, waiter, waiting: false };
        // SAFETY: The socket lives.
        to_result(unsafe { shim::rtp_mgr_udp_may_send(socket.as_ptr().cast()) })?;
        Ok(sink)
    }

    /// The send buffer that was granted, bytes. The kernel doubles it, for its own records (socket(7)).
    pub(crate) fn buffer(&self) -> u64 {
        // SAFETY: The socket lives.
        let doubled = unsafe { shim::rtp_mgr_udp_send_buffer(self.socket.as_ptr().cast()) };
        u64::from(doubled.max(0).unsigned_abs() / 2)
    }

    /// Whether pages that are lent are not copied once more, as far as its latest route tells.
    pub(crate) fn takes_pieces(&self) -> bool {
        // SAFETY: The socket lives.
        unsafe { shim::rtp_mgr_udp_takes_pieces(self.socket.as_ptr().cast()) }
    }

    /// Sends what `gather` holds: one datagram, or with `segment` as many as it takes if each has
    /// that many bytes (the last may have fewer). Does not wait for space. Pages may be read until
    /// `flight` is over; without one, until nobody but their owner has them.
    ///
    /// # Errors
    ///
    /// A positive error number of the path, `EAGAIN` when there is no space.
    pub(crate) fn send(
        &mut self,
        gather: &mut Gather,
        segment: Option<u16>,
        flight: Option<Departure>,
    ) -> core::result::Result<(), u32> {
        let socket = self.socket.as_ptr();
        // A corked socket collects, and is locked while others wait in it.
        // SAFETY: The socket lives.
        if unsafe { shim::rtp_mgr_udp_is_corked(socket.cast()) } {
            return Err(bindings::EBUSY);
        }
        let mut control = SegmentControl {
            header: bindings::cmsghdr {
                cmsg_len: size_of::<bindings::cmsghdr>().saturating_add(size_of::<u16>()),
                cmsg_level: bindings::SOL_UDP as c_int,
                cmsg_type: UDP_SEGMENT,
            },
            len: segment.unwrap_or(0),
            padding: [0; 6],
        };
        let mut message = bindings::msghdr {
            msg_flags: bindings::MSG_DONTWAIT | bindings::MSG_NOSIGNAL,
            ..Default::default()
        };
        if segment.is_some() {
            message.__bindgen_anon_1.msg_control = (&raw mut control).cast();
            message.msg_controllen = size_of::<SegmentControl>();
        }
        let (bytes, parts) = (gather.bytes, gather.parts);
        if !gather.paged {
            // SAFETY: The socket lives; the message's control data and the parts (memory that lives as
            // long as the stream, and is only read) outlive the call, and there are as many as it is
            // told.
            let sent = unsafe {
                bindings::kernel_sendmsg(socket, &mut message, gather.memory.as_mut_ptr(), parts, bytes)
            };
            return outcome(sent);
        }
        // Asks that the buffer be filled by us. It forgets what says nothing of flights, at once.
        let mut nothing = bindings::ubuf_info::default();
        // SAFETY: Ours. The stack takes a reference to it in passing.
        unsafe { bindings::refcount_set(&mut nothing.refcnt, 1) };
        message.msg_flags |= bindings::MSG_ZEROCOPY;
        message.msg_ubuf = flight.map_or(&raw mut nothing, |flight| flight.info);
        message.sg_from_iter = Some(shim::rtp_mgr_fill);
        // SAFETY: As above. The stack takes its own references to the pages and to the flight's
        // information, which lives until they are gone.
        outcome(unsafe {
            let pieces = gather.pieces.as_ptr();
            let all = &raw mut message.msg_iter;
            bindings::iov_iter_bvec(all, ITER_SOURCE, pieces, parts as c_ulong, bytes);
            bindings::sock_sendmsg(socket, &mut message)
        })
    }

    /// From now on the bell is rung when there is space. What was freed before shows in one more send.
    pub(crate) fn wait_for_space(&mut self) {
        if self.waiting {
            return;
        }
        let entry = self.waiter.entry.get();
        // SAFETY: The entry is in no queue, so it is ours to write; it stays where it is, and is taken
        // out before the waiter or the socket goes.
        unsafe {
            entry.write(bindings::wait_queue_entry {
                func: Some(Waiter::woken),
                ..Default::default()
            });
            bindings::add_wait_queue(self.queue(), entry);
        }
        self.waiting = true;
    }

    /// Whether the bell will be rung.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Stops waiting.
    pub(crate) fn wait_no_more(&mut self) {
        if self.waiting {
            // SAFETY: The entry is in this queue. After this nobody is in `woken` any more: it is
            // called with the queue's lock held.
            unsafe { bindings::remove_wait_queue(self.queue(), self.waiter.entry.get()) };
            self.waiting = false;
        }
    }

    /// The socket's wait queue.
    fn queue(&self) -> *mut bindings::wait_queue_head {
        // SAFETY: The socket lives, and the queue is a part of it.
        unsafe { &raw mut (*self.socket.as_ptr()).wq.wait }
    }
}

/// What a send returned.
fn outcome(sent: c_int) -> core::result::Result<(), u32> {
    if sent < 0 {
        return Err(sent.unsigned_abs());
    }
    Ok(())
}

impl Drop for UdpSink {
    fn drop(&mut self) {
        self.wait_no_more();
        // SAFETY: Gives back the reference that `sockfd_lookup` took, which is one to the socket's
        // file: it has one, since it was found through it.
        unsafe { bindings::fput((*self.socket.as_ptr()).file) };
    }
}

impl Waiter {
    /// # Safety
    ///
    /// Called by the kernel, with the queue's lock held, for an entry that is part of a `Waiter`.
    unsafe extern "C" fn woken(
        entry: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        let events = key.addr();
        if events == 0 || events & WRITABLE != 0 {
            // SAFETY: The entry is the first field of a `Waiter` that lives while it is in the queue.
            unsafe { (*entry.cast::<Self>()).bell.ring() };
        }
        0
    }
}

/// The parts of one send: memory, or pieces of pages.
pub(crate) struct Gather {
    memory: KVVec<bindings::kvec>,
    pieces: KVVec<bindings::bio_vec>,
    /// Of the one or the other.
    parts: usize,
    /// It is of the other.
    paged: bool,
    bytes: usize,
}

// SAFETY: The pointers in it are to memory of the stream, and only followed by `UdpSink::send`.
unsafe impl Send for Gather {}

impl Gather {
    /// Room for one send.
    pub(crate) fn new() -> Result<Self> {
        let memory = KVVec::from_elem(bindings::kvec::default(), SEGMENTS_MAX, GFP_KERNEL_ACCOUNT)?;
        let pieces = KVVec::from_elem(bindings::bio_vec::default(), PIECES_MAX, GFP_KERNEL_ACCOUNT)?;
        Ok(Self { memory, pieces, parts: 0, paged: false, bytes: 0 })
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        self.parts = 0;
        self.paged = false;
        self.bytes = 0;
    }

    /// How many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many parts it has.
    pub(crate) fn count(&self) -> usize {
        self.parts
    }

    /// The parts of one that holds memory.
    pub(crate) fn parts(&self) -> &[bindings::kvec] {
        self.memory.get(..self.parts).unwrap_or_default()
    }

    /// Makes it hold as many bytes of blocks of pages instead, of which each has `size`, from `offset` of the first
    /// one on. `false`: they are in too many blocks, and it stays as it is.
    pub(crate) fn replace(
        &mut self,
        mut blocks: impl Iterator<Item = *mut bindings::page>,
        size: usize,
        mut offset: usize,
    ) -> bool {
        let (mut left, mut parts) = (self.bytes, 0_usize);
        while left > 0 {
            let len = left.min(size.saturating_sub(offset));
            let (Some(page), Some(piece)) = (blocks.next(), self.pieces.get_mut(parts)) else {
                return false;
            };
            *piece = bindings::bio_vec {
                bv_page: page,
                bv_len: len as u32,
                bv_offset: offset as u32,
            };
            offset = 0;
            left = left.saturating_sub(len);
            parts = parts.saturating_add(1);
        }
        (self.parts, self.paged) = (parts, true);
        true
    }

    /// Adds memory that lives longer than this. What stands right behind the part before becomes
    /// part of it. `false`: there is no room. Not together with [`add_pieces`](Self::add_pieces).
    pub(crate) fn add(&mut self, address: NonNull<u8>, len: usize) -> bool {
        let address: *mut c_void = address.as_ptr().cast();
        let last = self.parts.checked_sub(1).and_then(|last| self.memory.get_mut(last));
        match last {
            Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == address => {
                last.iov_len = last.iov_len.saturating_add(len);
            }
            _ => {
                let Some(part) = self.memory.get_mut(self.parts) else { return false };
                *part = bindings::kvec { iov_base: address, iov_len: len };
                self.parts = self.parts.saturating_add(1);
            }
        }
        self.bytes = self.bytes.saturating_add(len);
        true
    }

    /// Adds pieces of pages that live longer than this. What stands right behind the one before becomes
    /// part of it. `false`: there is no room. Not together with [`add`](Self::add).
    pub(crate) fn add_pieces(&mut self, pieces: impl Iterator<Item = Piece>) -> bool {
        self.paged = true;
        for Piece { page, offset, len } in pieces {
            let last = self.parts.checked_sub(1).and_then(|last| self.pieces.get_mut(last));
            match last {
                Some(last)
                    if last.bv_page == page
                        && last.bv_offset.wrapping_add(last.bv_len) == offset =>
                {
                    last.bv_len = last.bv_len.saturating_add(len);
                }
                _ => {
                    let Some(piece) = self.pieces.get_mut(self.parts) else { return false };
                    *piece = bindings::bio_vec { bv_page: page, bv_len: len, bv_offset: offset };
                    self.parts = self.parts.saturating_add(1);
                }
            }
            self.bytes = self.bytes.saturating_add(len as usize);
        }
        true
    }
}
