//! The calls to the kernel's sockets that no safe crate offers: batched receive and send with
//! scatter and gather lists over the slots of a ring, control messages, and a few socket options.
//!
//! What lives here: how bytes and their particulars cross between sockets and slots, and every
//! `unsafe` that it takes. What does not: which options a stream's sockets get ([`crate::socket`]),
//! when to call, and what the bytes mean (the engine).
//!
//! **Receive.** A coalesced datagram (UDP GRO) is many packets of equal size, the last one possibly
//! shorter, delivered as one. [`RecvBatch`] gives the kernel a scatter list with one slot per packet,
//! each as long as the last packets were, so that the one copy out of the socket puts every packet
//! into a slot of its own. Behind the slots stands overflow memory for a whole datagram: when the
//! guess was wrong nothing is cut off, and the packets are moved to the slots they belong into.
//!
//! **Send.** [`SendBatch`] gathers neighbouring packets of equal size from their slots into one
//! message that the kernel (or the network device) cuts up again (UDP_SEGMENT).
#![allow(unsafe_code)] // The owner of socket calls; every block says why it is sound.

use std::any::Any;
use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Most packets that the kernel coalesces into one datagram or cuts one into: `UDP_MAX_SEGMENTS` is
/// 128 from Linux 6.9 on, 64 before.
pub const RECEIVE_SEGMENTS_MAX: usize = 128;
/// Most packets that [`SendBatch`] puts into one message: what every kernel with UDP_SEGMENT takes.
pub const SEND_SEGMENTS_MAX: usize = 64;
/// Most bytes of one message: a 16-bit IP length less the IPv4 and UDP headers.
pub const DATAGRAM_MAX: usize = 65_535 - 20 - 8;

/// Bytes of overflow memory per message: more than any datagram holds.
const OVERFLOW_LEN: usize = 65_536;
/// Bytes for the control messages of one received datagram: time, drops, segment size and
/// destination take 120 together.
const CONTROL_LEN: usize = 256;

// Not in the `libc` crate for every target it has; the same on all architectures of the 64-bit
// kernels' generic socket numbers (include/uapi/asm-generic/socket.h, linux/udp.h, linux/in6.h).
const SO_RXQ_OVFL: libc::c_int = 40;
const SO_MEMINFO: libc::c_int = 55;
const SO_BINDTOIFINDEX: libc::c_int = 62;
const SO_TIMESTAMPNS_OLD: libc::c_int = 35;
const SO_TIMESTAMPNS_NEW: libc::c_int = 64;
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
const IPV6_MULTICAST_ALL: libc::c_int = 29;
const IPV6_UNICAST_IF: libc::c_int = 76;

/// Memory cut into slots of equal size, as socket calls reach it.
///
/// The one who creates it answers for the memory ([`SlotMemory::new`]); everything built on it is
/// safe to call.
pub struct SlotMemory {
    base: NonNull<u8>,
    len: usize,
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
        Self { base, len, stride, _keep: keep }
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
        u32::try_from(self.len / self.stride).unwrap_or(u32::MAX)
    }

    /// Address of a slot.
    ///
    /// # Panics
    /// When there is no such slot: the caller lost count of its memory.
    fn slot(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.slots(), "slot {slot} of {}", self.slots());
        // SAFETY: slot < len / stride, so the offset is within the `len` bytes of one mapping.
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

/// What the kernel said about one received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// Sender. IPv4 addresses are IPv4 also on a dual-stack socket.
    pub from: SocketAddr,
    /// Address it was sent to, on sockets that were asked to tell (wildcard binds).
    pub destination: Option<IpAddr>,
    /// Kernel receive time, nanoseconds of CLOCK_REALTIME; shared by coalesced packets.
    pub realtime_ns: Option<u64>,
    /// Datagrams this socket had dropped before this one (`SO_RXQ_OVFL`; wraps at 32 bits). A lower
    /// bound: a dropped coalesced datagram counts as one.
    pub drops: u32,
    /// Bytes of the datagram.
    pub len: usize,
    /// Bytes of each packet in it; the last may be shorter. Equal to `len` when not coalesced.
    pub segment_len: usize,
    /// Whether the kernel coalesced packets (or a sender's segmented message arrived whole).
    pub coalesced: bool,
    /// Whether the kernel cut bytes off.
    pub truncated: bool,
}

impl MessageInfo {
    /// Number of packets in the datagram: at least one, an empty datagram is an empty packet.
    pub fn segments(&self) -> usize {
        if self.len == 0 { 1 } else { self.len.div_ceil(self.segment_len.max(1)) }
    }
}

/// One received packet, from [`RecvBatch::next_packet`].
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// The slot that holds it; `None` when there was none to have.
    pub slot: Option<u32>,
    /// The packet, as far as a slot holds it (whole when `slot` is `None`).
    pub bytes: &'a [u8],
    /// Bytes of the packet on the wire; more than `bytes` when a slot is too small.
    pub len: usize,
    /// Its place in its datagram, from 0.
    pub segment: usize,
    /// Particulars of the datagram it came in.
    pub info: MessageInfo,
}

/// A slot that no entry holds.
const NO_SLOT: u32 = u32::MAX;

/// Aligned memory for the control messages of one datagram.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Receives batches of datagrams straight into slots. All memory is allocated once.
///
/// ```text
/// fill(slots) -> receive(socket) -> next_packet() / keep() ... -> fill(slots) -> ...
/// ```
/// Slots that were not kept stay with the batch for the next round.
pub struct RecvBatch {
    memory: SlotMemory,
    messages_max: usize,
    segments_max: usize,
    /// Messages per call, slots per message and bytes per slot at present.
    messages: usize,
    segments: usize,
    segment_len: usize,
    /// `segments_max` entries per message; those in use stand first, then [`NO_SLOT`].
    slots: Box<[u32]>,
    /// Entries in use at the last `fill`, which is what the scatter list says.
    filled: Box<[usize]>,
    /// Messages whose entries have changed, or are not all in use.
    stale: Box<[bool]>,
    /// Slots of the batch that are in no entry.
    spares: Vec<u32>,
    /// `segments_max + 1` per message.
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    names: Box<[libc::sockaddr_in6]>,
    controls: Box<[Control]>,
    overflow: Box<[u8]>,
    /// A datagram whose packets lie in wrong places, put together.
    linear: Box<[u8]>,
    cursor: Cursor,
    moved: u64,
}

// SAFETY: the raw pointers in `iovecs` and `headers` point into the memory and boxes owned by the
// batch; nothing is tied to a thread.
unsafe impl Send for RecvBatch {}

/// Where [`RecvBatch::next_packet`] stands.
#[derive(Debug, Default)]
struct Cursor {
    /// Messages of the last receive.
    received: usize,
    message: usize,
    segment: usize,
    info: Option<MessageInfo>,
    /// Segment size of the last coalesced message looked at.
    coalesced: Option<usize>,
    /// The message's packets are in `linear`, not in the slots of its entries.
    moved: bool,
    current: Current,
}

/// The packet handed out last.
#[derive(Clone, Copy, Debug, Default)]
enum Current {
    #[default]
    None,
    /// In the slot of entry `index`.
    Entry(usize),
    /// In a slot that is in no entry.
    Loose(u32),
}

impl RecvBatch {
    /// A batch of up to `messages_max` datagrams with up to `segments_max` slots each.
    ///
    /// Address space for `messages_max` x 64 KiB of overflow is reserved; only what is used takes
    /// memory. It begins in the shape `(messages_max, 1, stride)`: one whole slot per datagram.
    ///
    /// # Panics
    /// When `messages_max` is not 1 to 1,024 or `segments_max` not 1 to 1,023 (`UIO_MAXIOV`).
    pub fn new(memory: SlotMemory, messages_max: usize, segments_max: usize) -> Self {
        assert!((1..=1024).contains(&messages_max), "messages {messages_max}");
        assert!((1..=1023).contains(&segments_max), "segments {segments_max}");
        let entries = messages_max * segments_max;
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: all-zero bytes are a valid mmsghdr and sockaddr_in6 (integers and null pointers).
        let (header, name) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Self {
            messages: messages_max,
            segments: 1,
            segment_len: memory.stride(),
            slots: vec![NO_SLOT; entries].into(),
            filled: vec![0; messages_max].into(),
            stale: vec![true; messages_max].into(),
            spares: Vec::with_capacity(entries + 1),
            iovecs: vec![none; messages_max * (segments_max + 1)].into(),
            headers: vec![header; messages_max].into(),
            names: vec![name; messages_max].into(),
            controls: vec![Control([0; CONTROL_LEN]); messages_max].into(),
            overflow: vec![0; messages_max * OVERFLOW_LEN].into(),
            linear: vec![0; OVERFLOW_LEN].into(),
            cursor: Cursor::default(),
            moved: 0,
            memory,
            messages_max,
            segments_max,
        }
    }

    /// Changes how many datagrams a call takes and how many slots of how many bytes each is spread
    /// over; values beyond the maxima are lowered. Slots now in excess stay with the batch until
    /// [`release`](Self::release). Packets of the last round not yet asked for are lost.
    pub fn shape(&mut self, messages: usize, segments: usize, segment_len: usize) {
        self.finish();
        let shape = (
            messages.clamp(1, self.messages_max),
            segments.clamp(1, self.segments_max),
            segment_len.clamp(1, self.memory.stride()),
        );
        if shape == self.present_shape() {
            return;
        }
        (self.messages, self.segments, self.segment_len) = shape;
        for message in 0..self.messages_max {
            let used = if message < self.messages { self.segments } else { 0 };
            let first = message * self.segments_max;
            for entry in &mut self.slots[first + used..first + self.segments_max] {
                if *entry != NO_SLOT {
                    self.spares.push(mem::replace(entry, NO_SLOT));
                }
            }
        }
        self.stale.fill(true);
    }

    /// Chooses the shape for the next round by what the last one brought, with at most `slots` slots
    /// (at least one per message): coalesced packets get lists of their size; a full round without
    /// any goes back to one whole slot per datagram.
    ///
    /// Packets of the last round not yet asked for are lost.
    pub fn adapt(&mut self, slots: usize) {
        let full = self.cursor.received == self.messages;
        match self.cursor.coalesced {
            Some(segment_len) if segment_len <= self.memory.stride() => {
                let segments = DATAGRAM_MAX.div_ceil(segment_len).min(self.segments_max);
                self.shape(slots / segments, segments, segment_len);
            }
            None if full => self.shape(slots, 1, self.memory.stride()),
            _ => {}
        }
    }

    /// The present shape: messages, segments per message, bytes per segment.
    pub fn present_shape(&self) -> (usize, usize, usize) {
        (self.messages, self.segments, self.segment_len)
    }

    /// Gives every empty entry a slot: the batch's own spares first, then from `next`, until it has
    /// no more. A datagram without slots is received all the same, into overflow memory.
    ///
    /// Packets of the last round not yet asked for are lost.
    pub fn fill(&mut self, mut next: impl FnMut() -> Option<u32>) {
        self.finish();
        for message in 0..self.messages {
            if self.stale[message] {
                self.fill_message(message, &mut next);
            }
        }
    }

    fn fill_message(&mut self, message: usize, mut next: impl FnMut() -> Option<u32>) {
        let first = message * self.segments_max;
        let entries = &mut self.slots[first..first + self.segments];
        let mut filled = 0;
        for index in 0..entries.len() {
            if entries[index] != NO_SLOT {
                entries.swap(filled, index);
                filled += 1;
            }
        }
        while filled < entries.len() {
            let Some(slot) = self.spares.pop().or_else(&mut next) else { break };
            entries[filled] = slot;
            filled += 1;
        }
        let first_iovec = message * (self.segments_max + 1);
        for (iovec, slot) in self.iovecs[first_iovec..].iter_mut().zip(&entries[..filled]) {
            iovec.iov_base = self.memory.slot(*slot).cast();
            iovec.iov_len = self.segment_len;
        }
        self.filled[message] = filled;
        self.stale[message] = filled < self.segments;
    }

    /// Slots that the batch holds at present.
    pub fn held(&self) -> usize {
        self.spares.len() + self.slots.iter().filter(|slot| **slot != NO_SLOT).count()
    }

    /// Gives slots back: all (`everything`, at the end of a stream), or those that the present shape
    /// has no entry for. What was received and not asked for is forgotten.
    pub fn release(&mut self, everything: bool, mut to: impl FnMut(u32)) {
        self.finish();
        if everything {
            for entry in &mut self.slots {
                if *entry != NO_SLOT {
                    to(mem::replace(entry, NO_SLOT));
                }
            }
            self.filled.fill(0);
            self.stale.fill(true);
        }
        self.spares.drain(..).for_each(to);
    }

    /// Receives what is there, without waiting. Returns the number of datagrams, 0 when there is
    /// none. Call [`fill`](Self::fill) before; packets of the last round not yet asked for are lost.
    ///
    /// # Errors
    /// What the socket reports, such as an interface that went down.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.finish();
        for message in 0..self.messages {
            let first_iovec = message * (self.segments_max + 1);
            let filled = self.filled[message];
            let overflow = &mut self.overflow[message * OVERFLOW_LEN..][..OVERFLOW_LEN];
            self.iovecs[first_iovec + filled] =
                libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: OVERFLOW_LEN };
            let header = &mut self.headers[message];
            header.msg_len = 0;
            header.msg_hdr.msg_name = ptr::from_mut(&mut self.names[message]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_hdr.msg_iov = self.iovecs[first_iovec..].as_mut_ptr();
            header.msg_hdr.msg_iovlen = filled + 1;
            header.msg_hdr.msg_control = self.controls[message].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN;
            header.msg_hdr.msg_flags = 0;
        }
        let received = retry(|| {
            // SAFETY: `messages` headers, each with a name, control memory, and a list of `filled`
            // slots (of this memory, segment_len <= stride bytes each) and overflow memory, all
            // owned by this batch and not otherwise borrowed during the call.
            unsafe {
                libc::recvmmsg(
                    socket.as_fd().as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.messages as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            }
        });
        match received {
            Ok(received) => self.cursor.received = received as usize,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.cursor.received)
    }

    /// The next packet of the last [`receive`](Self::receive), in order of arrival. `None`: no more.
    ///
    /// Where the scatter list fitted, the packet lies in its slot already. Otherwise the
    /// packets of its datagram are moved, each into a slot of its own: the datagram's slots first,
    /// then the batch's spares, then what `spare` gives.
    ///
    /// The packet's slot stays with the batch and is used again, unless [`keep`](Self::keep) is
    /// called before the next packet is asked for.
    pub fn next_packet(&mut self, spare: impl FnMut() -> Option<u32>) -> Option<Arrived<'_>> {
        self.settle();
        let info = self.message()?;
        let segment = self.cursor.segment;
        self.cursor.segment += 1;
        let start = (segment * info.segment_len).min(info.len);
        let len = info.segment_len.min(info.len - start);
        if self.cursor.moved {
            return Some(self.moved_packet(segment, start..start + len, info, spare));
        }
        let index = self.cursor.message * self.segments_max + segment;
        self.cursor.current = Current::Entry(index);
        let slot = self.slots[index];
        Some(Arrived { slot: Some(slot), bytes: self.memory.bytes(slot, len), len, segment, info })
    }

    /// Takes the slot of the packet handed out last out of the batch: it belongs to the caller now.
    pub fn keep(&mut self) {
        match mem::take(&mut self.cursor.current) {
            Current::Entry(index) => {
                self.slots[index] = NO_SLOT;
                self.stale[index / self.segments_max] = true;
            }
            Current::Loose(_) | Current::None => {}
        }
    }

    /// Packets moved since the batch was made, because the scatter list did not fit them.
    pub fn moved_packets(&self) -> u64 {
        self.moved
    }

    /// Ends the last round.
    fn finish(&mut self) {
        self.settle();
        self.cursor = Cursor::default();
    }

    /// Puts the slot of the last packet back, unless it was kept.
    fn settle(&mut self) {
        if let Current::Loose(slot) = mem::take(&mut self.cursor.current) {
            self.spares.push(slot);
        }
    }

    /// Particulars of the message at the cursor, which moves past finished ones.
    fn message(&mut self) -> Option<MessageInfo> {
        if let Some(info) = self.cursor.info {
            if self.cursor.segment < info.segments() {
                return Some(info);
            }
            self.cursor.message += 1;
        }
        self.cursor.segment = 0;
        self.cursor.info = None;
        if self.cursor.message >= self.cursor.received {
            return None;
        }
        let info = self.decode(self.cursor.message);
        self.cursor.moved = !self.fits(self.cursor.message, &info);
        if self.cursor.moved {
            self.gather(self.cursor.message, info.len);
        }
        if info.coalesced {
            self.cursor.coalesced = Some(info.segment_len);
        }
        self.cursor.info = Some(info);
        Some(info)
    }

    /// Whether every packet of the message lies in a slot of its own.
    fn fits(&self, message: usize, info: &MessageInfo) -> bool {
        let segments = info.segments();
        segments <= self.filled[message]
            && if segments == 1 {
                info.len <= self.segment_len
            } else {
                info.segment_len == self.segment_len
            }
    }

    /// Puts the bytes of a message together in `linear` and its slots with the spares.
    fn gather(&mut self, message: usize, len: usize) {
        let first = message * self.segments_max;
        let entries = &mut self.slots[first..first + self.filled[message]];
        self.stale[message] = true;
        let mut at = 0;
        for entry in entries {
            let slot = mem::replace(entry, NO_SLOT);
            let take = self.segment_len.min(len - at);
            self.linear[at..at + take].copy_from_slice(self.memory.bytes(slot, take));
            at += take;
            self.spares.push(slot);
        }
        let overflow = &self.overflow[message * OVERFLOW_LEN..][..OVERFLOW_LEN];
        self.linear[at..len].copy_from_slice(&overflow[..len - at]);
    }

    /// Moves the packet that lies in `range` of `linear` to a slot.
    fn moved_packet(
        &mut self,
        segment: usize,
        range: Range<usize>,
        info: MessageInfo,
        mut spare: impl FnMut() -> Option<u32>,
    ) -> Arrived<'_> {
        self.moved += 1;
        let len = range.len();
        let bytes = &self.linear[range];
        let Some(slot) = self.spares.pop().or_else(&mut spare) else {
            return Arrived { slot: None, bytes, len, segment, info };
        };
        let held = self.memory.write(slot, bytes);
        self.cursor.current = Current::Loose(slot);
        Arrived { slot: Some(slot), bytes: self.memory.bytes(slot, held), len, segment, info }
    }

    /// Reads what the kernel wrote about a message.
    fn decode(&self, message: usize) -> MessageInfo {
        let header = &self.headers[message];
        let len = (header.msg_len as usize).min(OVERFLOW_LEN);
        let mut info = MessageInfo {
            from: self.sender(message),
            destination: None,
            realtime_ns: None,
            drops: 0,
            len,
            segment_len: len,
            coalesced: false,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        let control = &self.controls[message].0;
        let given = header.msg_hdr.msg_controllen.min(CONTROL_LEN);
        for (level, kind, data) in ControlMessages(&control[..given]) {
            info.learn(level, kind, data);
        }
        info
    }

    /// The address a message came from.
    fn sender(&self, message: usize) -> SocketAddr {
        let name = &self.names[message];
        match libc::c_int::from(name.sin6_family) {
            libc::AF_INET => {
                // SAFETY: sockaddr_in is not larger than sockaddr_in6, has no stricter alignment,
                // every bit pattern is valid, and the kernel wrote one, as the family says.
                let name: libc::sockaddr_in =
                    unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in>().read() };
                SocketAddrV4::new(ipv4(name.sin_addr), u16::from_be(name.sin_port)).into()
            }
            _ => {
                let port = u16::from_be(name.sin6_port);
                match Ipv6Addr::from(name.sin6_addr.s6_addr).to_canonical() {
                    IpAddr::V4(address) => SocketAddrV4::new(address, port).into(),
                    IpAddr::V6(address) => {
                        SocketAddrV6::new(address, port, 0, name.sin6_scope_id).into()
                    }
                }
            }
        }
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBatch")
            .field("memory", &self.memory)
            .field("shape", &self.present_shape())
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl MessageInfo {
    /// Takes over what one control message says.
    fn learn(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_SOCKET, SO_TIMESTAMPNS_NEW | SO_TIMESTAMPNS_OLD) => {
                // struct timespec of two 64-bit words: only 64-bit user space is supported.
                if let (Some(seconds), Some(nanos)) = (word(data, 0), word(data, 8)) {
                    let seconds = u64::from_ne_bytes(seconds);
                    let nanos = u64::from_ne_bytes(nanos);
                    self.realtime_ns =
                        seconds.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(nanos));
                }
            }
            (libc::SOL_SOCKET, SO_RXQ_OVFL) => {
                self.drops = word(data, 0).map_or(0, u32::from_ne_bytes);
            }
            (libc::SOL_UDP, UDP_GRO) => {
                let segment = word(data, 0).map_or(0, i32::from_ne_bytes);
                if let Ok(segment) = usize::try_from(segment)
                    && segment > 0
                {
                    self.segment_len = segment;
                    self.coalesced = segment < self.len;
                }
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // struct in_pktinfo { int ifindex; in_addr spec_dst; in_addr addr; }
                self.destination = word::<4>(data, 8).map(|a| Ipv4Addr::from(a).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // struct in6_pktinfo { in6_addr addr; unsigned ifindex; }
                self.destination = word::<16>(data, 0).map(|a| Ipv6Addr::from(a).to_canonical());
            }
            _ => {}
        }
    }
}

/// `N` bytes of `data` from `offset` on.
fn word<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..)?.first_chunk().copied()
}

fn ipv4(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(address.s_addr))
}

/// Walks over control messages (`cmsg(3)`): length, level, type, data, padding to eight bytes.
struct ControlMessages<'a>(&'a [u8]);

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (libc::c_int, libc::c_int, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let len = usize::from_ne_bytes(word(self.0, mem::offset_of!(libc::cmsghdr, cmsg_len))?);
        let level = i32::from_ne_bytes(word(self.0, mem::offset_of!(libc::cmsghdr, cmsg_level))?);
        let kind = i32::from_ne_bytes(word(self.0, mem::offset_of!(libc::cmsghdr, cmsg_type))?);
        let data = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(8)..).unwrap_or_default();
        Some((level, kind, data))
    }
}

/// Why a send stopped before the end of its batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The socket buffer is full: wait until the socket is writable.
    #[error("the socket buffer is full")]
    WouldBlock,
    /// Kernel or interface refuses to cut up messages: continue one by one
    /// ([`SendBatch::split`]).
    #[error("segmentation offload is refused here ({0}): packets are sent one by one")]
    OffloadRefused(#[source] io::Error),
    /// The packet is longer than the path takes.
    #[error("a packet of {len} bytes is too long for this destination")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// No way to the destination.
    #[error("the destination cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// Anything else.
    #[error("sending failed: {0}")]
    Os(#[source] io::Error),
}

/// What a call to [`SendBatch::send`] did.
#[derive(Debug)]
pub struct Sent {
    /// Packets that the kernel took.
    pub packets: usize,
    /// ICMP errors that earlier packets had caused and this call met, such as "port unreachable".
    pub icmp_errors: usize,
    /// Why there are packets left; `None` when all were taken.
    pub stop: Option<SendError>,
}

/// Sends batches of packets straight from their slots. All memory is allocated once.
///
/// Neighbouring packets of equal length go out as one message where offload is on. A shorter packet
/// may close such a message: that is what a segmented message looks like on the wire, too.
pub struct SendBatch {
    memory: SlotMemory,
    packets_max: usize,
    offload: bool,
    /// Length of each packet.
    lens: Vec<usize>,
    /// One per packet.
    iovecs: Vec<libc::iovec>,
    /// Packets of each message.
    messages: Vec<Message>,
    headers: Box<[libc::mmsghdr]>,
    controls: Box<[SegmentControl]>,
    /// Messages already sent.
    done: usize,
}

// SAFETY: the raw pointers in `iovecs` and `headers` point into the memory and boxes owned by the
// batch; nothing is tied to a thread.
unsafe impl Send for SendBatch {}

/// Neighbouring packets that go out as one message.
#[derive(Clone, Copy, Debug)]
struct Message {
    first: usize,
    packets: usize,
    bytes: usize,
    /// Nothing can be added: a shorter packet came last.
    closed: bool,
}

/// The control message UDP_SEGMENT.
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment_len: u16,
    padding: [u8; 6],
}

/// `cmsg_len` of [`SegmentControl`]: header and 16-bit value, padding not counted.
const SEGMENT_CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<u16>();

impl SendBatch {
    /// A batch of up to `packets_max` packets.
    ///
    /// # Panics
    /// When `packets_max` is not 1 to 1,024 (`UIO_MAXIOV`).
    pub fn new(memory: SlotMemory, packets_max: usize, offload: bool) -> Self {
        assert!((1..=1024).contains(&packets_max), "packets {packets_max}");
        // SAFETY: all-zero bytes are a valid mmsghdr and SegmentControl (integers, null pointers).
        let (header, control) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Self {
            memory,
            packets_max,
            offload,
            lens: Vec::with_capacity(packets_max),
            iovecs: Vec::with_capacity(packets_max),
            messages: Vec::with_capacity(packets_max),
            headers: vec![header; packets_max].into(),
            controls: vec![control; packets_max].into(),
            done: 0,
        }
    }

    /// Whether neighbours of equal length go out as one message.
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.lens.clear();
        self.iovecs.clear();
        self.messages.clear();
        self.done = 0;
    }

    /// Adds the first `len` bytes of a slot as the next packet. `false` when the batch is full.
    ///
    /// # Panics
    /// When there is no such slot or it is shorter than `len`.
    pub fn add(&mut self, slot: u32, len: usize) -> bool {
        assert!(len <= self.memory.stride(), "{len} bytes of a slot");
        if self.lens.len() == self.packets_max {
            return false;
        }
        let index = self.lens.len();
        self.lens.push(len);
        self.iovecs.push(libc::iovec { iov_base: self.memory.slot(slot).cast(), iov_len: len });
        self.group(index);
        true
    }

    /// Packets added and not yet sent.
    pub fn pending(&self) -> usize {
        self.messages[self.done..].iter().map(|message| message.packets).sum()
    }

    /// From now on packets go out one by one, also those that are pending.
    pub fn split(&mut self) {
        self.offload = false;
        let Some(first) = self.messages.get(self.done).map(|message| message.first) else { return };
        self.messages.truncate(self.done);
        for index in first..self.lens.len() {
            self.group(index);
        }
    }

    /// Gives up on the next pending packet or, with offload, message. Returns its packets.
    pub fn skip(&mut self) -> usize {
        let skipped = self.messages.get(self.done).map_or(0, |message| message.packets);
        self.done = (self.done + 1).min(self.messages.len());
        skipped
    }

    /// Sends the pending packets over a connected socket, without waiting.
    pub fn send(&mut self, socket: impl AsFd) -> Sent {
        self.prepare();
        let mut sent = Sent { packets: 0, icmp_errors: 0, stop: None };
        let mut again = true;
        while self.done < self.messages.len() {
            match self.send_some(socket.as_fd()) {
                Ok(messages) => {
                    let now = &self.messages[self.done..self.done + messages];
                    sent.packets += now.iter().map(|message| message.packets).sum::<usize>();
                    self.done += messages;
                    again = true;
                }
                // An ICMP answer to an earlier packet is told once, instead of sending. A second
                // error in a row is about this packet.
                Err(error) if again && unreachable(&error) => {
                    sent.icmp_errors += 1;
                    again = false;
                }
                Err(error) => {
                    sent.stop = Some(self.judge(error));
                    break;
                }
            }
        }
        sent
    }

    /// Puts packet `index` into the last message if it fits there, else into a new one.
    fn group(&mut self, index: usize) {
        let len = self.lens[index];
        if let Some(message) = self.messages[self.done..].last_mut()
            && self.offload
            && !message.closed
            && message.packets < SEND_SEGMENTS_MAX
            && message.bytes + len <= DATAGRAM_MAX
            && (1..=self.lens[message.first]).contains(&len)
        {
            message.packets += 1;
            message.bytes += len;
            message.closed = len < self.lens[message.first];
            return;
        }
        self.messages.push(Message { first: index, packets: 1, bytes: len, closed: len == 0 });
    }

    /// Writes the headers of the pending messages.
    fn prepare(&mut self) {
        for (index, message) in self.messages.iter().enumerate().skip(self.done) {
            let header = &mut self.headers[index].msg_hdr;
            header.msg_iov = self.iovecs[message.first..].as_mut_ptr();
            header.msg_iovlen = message.packets;
            header.msg_control = ptr::null_mut();
            header.msg_controllen = 0;
            if message.packets > 1 {
                let control = &mut self.controls[index];
                control.header.cmsg_len = SEGMENT_CONTROL_LEN;
                control.header.cmsg_level = libc::SOL_UDP;
                control.header.cmsg_type = UDP_SEGMENT;
                control.segment_len = self.lens[message.first] as u16;
                header.msg_control = ptr::from_mut(control).cast();
                header.msg_controllen = size_of::<SegmentControl>();
            }
        }
    }

    /// One call of sendmmsg. Returns the number of messages sent, at least one.
    fn send_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let pending = self.messages.len() - self.done;
        retry(|| {
            // SAFETY: `prepare` wrote `pending` headers from `done` on; their lists point to slots
            // of this memory (at most stride bytes each), their control messages into `controls`.
            unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers[self.done..].as_mut_ptr(),
                    pending as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        })
        .map(|sent| sent as usize)
    }

    /// What an error about the first pending message means.
    fn judge(&self, error: io::Error) -> SendError {
        let message = &self.messages[self.done];
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS) => SendError::WouldBlock,
            Some(
                libc::EINVAL | libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT | libc::EMSGSIZE,
            ) if message.packets > 1 => SendError::OffloadRefused(error),
            Some(libc::EMSGSIZE) => SendError::TooLong { len: message.bytes },
            _ if unreachable(&error) => SendError::Unreachable(error),
            _ => SendError::Os(error),
        }
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch")
            .field("memory", &self.memory)
            .field("offload", &self.offload)
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

/// Errors that an ICMP message causes, or a missing route.
fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN)
    )
}

/// Calls again while a signal interrupts.
fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets a socket option whose value is a plain C struct or integer.
fn set<T: Copy>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    retry(|| {
        // SAFETY: `value` is readable for size_of::<T>() bytes; the kernel only reads it.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                name,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        }
    })
    .map(|_| ())
}

/// Turns an option on or off.
fn switch(socket: impl AsFd, level: libc::c_int, name: libc::c_int, on: bool) -> io::Result<()> {
    set(socket.as_fd(), level, name, &libc::c_int::from(on))
}

/// Lets the kernel hand over coalesced datagrams whole (UDP GRO).
///
/// # Errors
/// The kernel has no UDP GRO (Linux before 5.0), or refuses it for this socket.
pub fn set_gro(socket: impl AsFd, on: bool) -> io::Result<()> {
    switch(socket, libc::SOL_UDP, UDP_GRO, on)
}

/// Asks for kernel receive times (CLOCK_REALTIME, nanoseconds) with every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_timestamps(socket: impl AsFd) -> io::Result<()> {
    switch(socket.as_fd(), libc::SOL_SOCKET, SO_TIMESTAMPNS_NEW, true)
        .or_else(|_| switch(socket.as_fd(), libc::SOL_SOCKET, SO_TIMESTAMPNS_OLD, true))
}

/// Asks for the socket's drop count with every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_drop_counts(socket: impl AsFd) -> io::Result<()> {
    switch(socket, libc::SOL_SOCKET, SO_RXQ_OVFL, true)
}

/// Asks for the destination address of every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_destinations(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        switch(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, true)
    } else {
        switch(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, true)
    }
}

/// Whether the socket receives datagrams for groups that other sockets joined.
///
/// # Errors
/// The kernel is too old (IPv6: Linux before 4.20).
pub fn set_multicast_all(socket: impl AsFd, ipv6: bool, all: bool) -> io::Result<()> {
    if ipv6 {
        switch(socket, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, all)
    } else {
        switch(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, all)
    }
}

/// Binds the socket to an interface: nothing arrives from or leaves through another.
///
/// # Errors
/// No such interface; no permission (Linux before 5.7 wants CAP_NET_RAW).
pub fn bind_to_interface(socket: impl AsFd, index: u32) -> io::Result<()> {
    set(socket.as_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX, &(index as libc::c_int))
}

/// Sends unicast through an interface without binding to it (`IP_UNICAST_IF`).
///
/// # Errors
/// No such interface.
pub fn set_unicast_interface(socket: impl AsFd, ipv6: bool, index: u32) -> io::Result<()> {
    let value = index.to_be();
    if ipv6 {
        set(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_UNICAST_IF, &value)
    } else {
        set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_UNICAST_IF, &value)
    }
}

/// Joins a group, from any source or from one (RFC 3678), on an interface (0: what the routes say).
///
/// # Errors
/// No such interface or no route to the group (ENODEV), too many memberships (ENOBUFS).
pub fn join_group(
    socket: impl AsFd,
    group: IpAddr,
    source: Option<IpAddr>,
    interface: u32,
) -> io::Result<()> {
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    match source {
        Some(source) => {
            let request = libc::group_source_req {
                gsr_interface: interface,
                gsr_group: storage(group),
                gsr_source: storage(source),
            };
            set(socket.as_fd(), level, libc::MCAST_JOIN_SOURCE_GROUP, &request)
        }
        None => {
            let request = GroupRequest { interface, group: storage(group) };
            set(socket.as_fd(), level, libc::MCAST_JOIN_GROUP, &request)
        }
    }
}

/// `struct group_req` (RFC 3678), which the `libc` crate lacks.
#[derive(Clone, Copy)]
#[repr(C)]
struct GroupRequest {
    interface: u32,
    group: libc::sockaddr_storage,
}

/// An address as the kernel's `sockaddr_storage`, port 0.
fn storage(address: IpAddr) -> libc::sockaddr_storage {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match address {
        IpAddr::V4(address) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every socket address.
            unsafe { ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(name) };
        }
        IpAddr::V6(address) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>().write(name) };
        }
    }
    storage
}

/// Memory of a socket (`SO_MEMINFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes of buffers waiting to be received, the kernel's overhead included.
    pub receive_used: u32,
    /// Most of them that the socket takes (twice what was granted).
    pub receive_limit: u32,
    /// Datagrams dropped since the socket was made, modulo 2^32.
    pub drops: u32,
}

/// Reads a socket's memory figures.
///
/// # Errors
/// Linux before 4.12.
pub fn memory_info(socket: impl AsFd) -> io::Result<MemoryInfo> {
    let mut values = [MaybeUninit::<u32>::zeroed(); libc::SK_MEMINFO_DROPS as usize + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    retry(|| {
        // SAFETY: `values` is writable for `len` bytes.
        unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        }
    })?;
    // SAFETY: zeroed at the start, and any bits are a valid u32.
    let values = values.map(|value| unsafe { value.assume_init() });
    Ok(MemoryInfo {
        receive_used: values[libc::SK_MEMINFO_RMEM_ALLOC as usize],
        receive_limit: values[libc::SK_MEMINFO_RCVBUF as usize],
        drops: values[libc::SK_MEMINFO_DROPS as usize],
    })
}

/// How the machine's clock is kept (`adjtimex`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockDiscipline {
    /// TAI - UTC as configured, seconds; 0 when nobody configured it.
    pub tai_offset_s: i32,
    /// Whether somebody (NTP, PTP) claims to keep the clock.
    pub synchronised: bool,
    /// Their estimate of the error, microseconds.
    pub estimated_error_us: u64,
}

/// Asks how the clock is kept.
///
/// # Errors
/// What the kernel reports.
pub fn clock_discipline() -> io::Result<ClockDiscipline> {
    // SAFETY: all-zero bytes are a valid timex; `modes` 0 changes nothing.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one timex to memory that holds one.
    let state = retry(|| unsafe { libc::adjtimex(&raw mut timex) })?;
    Ok(ClockDiscipline {
        tai_offset_s: timex.tai,
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        estimated_error_us: u64::try_from(timex.esterror).unwrap_or(0),
    })
}
