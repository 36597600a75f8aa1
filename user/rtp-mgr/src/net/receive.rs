//! Batched receive with scatter lists over slots, and what the kernel says beside the bytes.

use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use super::memory::SlotMemory;
use super::option::{SO_RXQ_OVFL, SO_TIMESTAMPNS_NEW, SO_TIMESTAMPNS_OLD, UDP_GRO};
use super::{DATAGRAM_MAX, retry};

/// Bytes of overflow memory per message: more than any datagram holds.
const OVERFLOW_LEN: usize = 65_536;
/// Bytes for the control messages of one received datagram: time, drops, segment size and
/// destination take 120 together.
const CONTROL_LEN: usize = 256;

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
    /// All of the packet, in its slot or elsewhere.
    pub whole: &'a [u8],
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
    /// Messages whose header is as the next call needs it: those that the kernel has not written, and
    /// whose list has not changed.
    ready: Box<[bool]>,
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
            ready: vec![false; messages_max].into(),
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
        self.ready.fill(false);
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
        self.ready[message] = false;
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
            self.ready.fill(false);
        }
        self.spares.drain(..).for_each(to);
    }

    /// Receives what is there, without waiting. Returns the number of datagrams, 0 when there is
    /// none. Call [`fill`](Self::fill) before; packets of the last round not yet asked for are lost.
    ///
    /// # Errors
    /// What the socket reports, such as an interface that went down.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.prepare();
        let received = retry(|| self.call(socket.as_fd(), libc::MSG_DONTWAIT));
        self.take_in(received)
    }

    /// Waits for the first datagram, as long as the socket's time-out says, and takes what is there then.
    /// Returns the number of datagrams; 0: the time ran out, or a signal came. On a socket that is not to
    /// block it does what [`receive`](Self::receive) does.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub(crate) fn wait(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.prepare();
        let received = match self.call(socket.as_fd(), libc::MSG_WAITFORONE) {
            received @ 0.. => Ok(received),
            _ => Err(io::Error::last_os_error()),
        };
        self.take_in(received)
    }

    /// Gives every message the header that the next call needs.
    fn prepare(&mut self) {
        self.finish();
        for message in 0..self.messages {
            if mem::replace(&mut self.ready[message], true) {
                continue;
            }
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
    }

    /// Receives into the messages that are [prepared](Self::prepare).
    fn call(&mut self, socket: BorrowedFd<'_>, flags: libc::c_int) -> libc::c_int {
        // SAFETY: `messages` headers, each with a name, control memory, and a list of `filled`
        // slots (of this memory, segment_len <= stride bytes each) and overflow memory, all
        // owned by this batch and not otherwise borrowed during the call.
        unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.messages as libc::c_uint,
                flags,
                ptr::null_mut(),
            )
        }
    }

    /// Takes over what a call came to.
    fn take_in(&mut self, received: io::Result<libc::c_int>) -> io::Result<usize> {
        use io::ErrorKind::{Interrupted, WouldBlock};
        // Of one that failed nothing is known.
        self.ready[0] = false;
        match received {
            Ok(received) => {
                self.cursor.received = received as usize;
                self.ready[..received as usize].fill(false);
            }
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {}
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
        let bytes = self.memory.bytes(slot, len);
        Some(Arrived { slot: Some(slot), bytes, whole: bytes, len, segment, info })
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
            return Arrived { slot: None, bytes, whole: bytes, len, segment, info };
        };
        let held = self.memory.write(slot, bytes);
        self.cursor.current = Current::Loose(slot);
        let (whole, bytes) = (bytes, self.memory.bytes(slot, held));
        Arrived { slot: Some(slot), bytes, whole, len, segment, info }
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
    pub(super) fn learn(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
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
pub(super) struct ControlMessages<'a>(pub(super) &'a [u8]);

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
