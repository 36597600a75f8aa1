//! Batched send with gather lists over slots.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use super::memory::SlotMemory;
use super::option::UDP_SEGMENT;
use super::{DATAGRAM_MAX, SEND_SEGMENTS_MAX, retry};

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
    /// Of these, packets that went together with others in one message.
    pub coalesced: usize,
    /// System calls.
    pub calls: usize,
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
    /// Packets added.
    packets: usize,
    /// What they are, those in slots that follow each other together.
    parts: Vec<Part>,
    /// What the pending messages gather: packets, or rows of them where one slot begins at the end of the
    /// packet before. Never more than there are packets.
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

/// Packets of equal length in slots that follow each other.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: u32,
    len: usize,
    packets: usize,
}

/// Where a packet stands: in which part, and behind how many packets of that.
#[derive(Clone, Copy, Debug)]
struct Place {
    part: usize,
    inside: usize,
}

/// Neighbouring packets that go out as one message.
#[derive(Clone, Copy, Debug)]
struct Message {
    first: Place,
    packets: usize,
    /// Bytes of the first packet, and of all but a shorter last one.
    len: usize,
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

impl Message {
    /// How many packets of `len` bytes can be added. A shorter one than those before it is the last.
    fn fit(&self, len: usize) -> usize {
        if self.closed || !(1..=self.len).contains(&len) {
            return 0;
        }
        let most = if len < self.len { 1 } else { SEND_SEGMENTS_MAX - self.packets };
        let room = DATAGRAM_MAX.saturating_sub(self.bytes) / len;
        most.min(room).min(SEND_SEGMENTS_MAX - self.packets)
    }
}

/// Adds the `packets` packets of `part` behind the first `inside` to the pieces of a message, which begin at `first` of
/// `iovecs`. What stands at the end of a piece makes it longer.
fn gather(
    memory: &SlotMemory,
    part: &Part,
    inside: usize,
    packets: usize,
    iovecs: &mut Vec<libc::iovec>,
    first: usize,
) {
    let dense = part.len == memory.stride();
    let (pieces, len) = if dense { (1, packets * part.len) } else { (packets, part.len) };
    for piece in 0..pieces {
        let base = memory.slot(part.slot + (inside + piece) as u32);
        match iovecs[first..].last_mut() {
            Some(row) if row.iov_base.cast::<u8>().wrapping_add(row.iov_len) == base => {
                row.iov_len += len;
            }
            _ => iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len }),
        }
    }
}

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
            packets: 0,
            parts: Vec::with_capacity(packets_max),
            iovecs: Vec::with_capacity(packets_max),
            messages: Vec::with_capacity(packets_max),
            headers: vec![header; packets_max].into(),
            controls: vec![control; packets_max].into(),
            done: 0,
        }
    }

    /// Most packets of `len` bytes that go out as one message.
    pub fn message_packets_max(len: usize) -> usize {
        (DATAGRAM_MAX / len.max(1)).clamp(1, SEND_SEGMENTS_MAX)
    }

    /// Whether neighbours of equal length go out as one message.
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets = 0;
        self.parts.clear();
        self.iovecs.clear();
        self.messages.clear();
        self.done = 0;
    }

    /// Adds the first `len` bytes of a slot as the next packet. `false` when the batch is full.
    ///
    /// # Panics
    /// When there is no such slot or it is shorter than `len`.
    pub fn add(&mut self, slot: u32, len: usize) -> bool {
        self.add_row(slot, len, 1)
    }

    /// As [`add`](Self::add) for each of the `packets` slots from `slot` on. `false`, and nothing is added, when there is
    /// no room for all of them.
    ///
    /// # Panics
    /// When there is no such slot or it is shorter than `len`.
    pub fn add_row(&mut self, slot: u32, len: usize, packets: usize) -> bool {
        assert!(len <= self.memory.stride(), "{len} bytes of a slot");
        let slots = self.memory.slots() as usize;
        let end = (slot as usize).saturating_add(packets);
        assert!(end <= slots, "slot {slot} and those behind it up to {end} of {slots}");
        if packets > self.packets_max - self.packets {
            return false;
        }
        self.packets += packets;
        self.parts.push(Part { slot, len, packets });
        self.group(Place { part: self.parts.len() - 1, inside: 0 });
        true
    }

    /// Packets added and not yet sent.
    pub fn pending(&self) -> usize {
        self.messages[self.done..].iter().map(|message| message.packets).sum()
    }

    /// Number of packets in each pending message.
    #[cfg(test)]
    pub(super) fn message_packets(&self) -> impl Iterator<Item = usize> {
        self.messages[self.done..].iter().map(|message| message.packets)
    }

    /// From now on packets go out one by one, also those that are pending.
    pub fn split(&mut self) {
        self.offload = false;
        let Some(first) = self.messages.get(self.done).map(|message| message.first) else { return };
        self.messages.truncate(self.done);
        self.group(first);
        for part in first.part + 1..self.parts.len() {
            self.group(Place { part, inside: 0 });
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
        let mut sent = Sent { packets: 0, coalesced: 0, calls: 0, icmp_errors: 0, stop: None };
        let mut again = true;
        while self.done < self.messages.len() {
            sent.calls += 1;
            match self.send_some(socket.as_fd()) {
                Ok(messages) => {
                    let now = &self.messages[self.done..self.done + messages];
                    let packets = now.iter().map(|message| message.packets);
                    sent.packets += packets.clone().sum::<usize>();
                    sent.coalesced += packets.filter(|packets| *packets > 1).sum::<usize>();
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

    /// Puts the rest of a part, from `from` on, into the last message as far as it fits there, then into new ones.
    fn group(&mut self, from: Place) {
        let Part { len, packets, .. } = self.parts[from.part];
        let mut inside = from.inside;
        while inside < packets {
            let open = self.messages[self.done..].last_mut();
            let fit = open.as_ref().map_or(0, |message| message.fit(len));
            match open.filter(|_| self.offload && fit > 0) {
                Some(message) => {
                    let more = fit.min(packets - inside);
                    message.packets += more;
                    message.bytes += more * len;
                    message.closed = len < message.len;
                    inside += more;
                }
                None => {
                    let first = Place { inside, ..from };
                    let closed = len == 0;
                    self.messages.push(Message { first, packets: 1, len, bytes: len, closed });
                    inside += 1;
                }
            }
        }
    }

    /// Writes the headers of the pending messages.
    fn prepare(&mut self) {
        self.iovecs.clear();
        for (index, message) in self.messages.iter().enumerate().skip(self.done) {
            let first = self.iovecs.len();
            let (mut left, mut inside) = (message.packets, message.first.inside);
            for part in &self.parts[message.first.part..] {
                let packets = left.min(part.packets - inside);
                gather(&self.memory, part, inside, packets, &mut self.iovecs, first);
                (left, inside) = (left - packets, 0);
                if left == 0 {
                    break;
                }
            }
            let header = &mut self.headers[index].msg_hdr;
            header.msg_iov = self.iovecs[first..].as_mut_ptr();
            header.msg_iovlen = self.iovecs.len() - first;
            header.msg_control = ptr::null_mut();
            header.msg_controllen = 0;
            if message.packets > 1 {
                let control = &mut self.controls[index];
                control.header.cmsg_len = SEGMENT_CONTROL_LEN;
                control.header.cmsg_level = libc::SOL_UDP;
                control.header.cmsg_type = UDP_SEGMENT;
                control.segment_len = message.len as u16;
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
            // of this memory (at most stride bytes of each), their control messages into `controls`.
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
