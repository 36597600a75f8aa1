//! The short way of a packet: the next of the source that the one before was of, when nothing is missing,
//! waits or is held.
//!
//! What lives here: what such a packet has to be like, and all that it does. It is what
//! [`super::receive`] and [`super::ordered`] do where there is nothing to find and nothing to decide,
//! and leaves the same behind. What does not: everything else. Whatever else may change what the next
//! packet means calls [`disturb`](ReceiveCore::disturb), and the packet after goes the long way.

use super::abi::{flag, Descriptor};
use super::header::{self, FIXED_LEN};
use super::receive::{add, bump, Memory, Packet, ReceiveCore};
use super::source::Seen;
use super::table::Flow;
use super::view::RingView;

/// Version and payload type in the first two bytes of an RTP header (RFC 3550 §5.1).
const VERSION_AND_TYPE: u32 = 0xc07f;
/// Padding, extension and CSRC count there.
const PARTS: u32 = 0x3f00;
/// The marker bit there.
const MARKER: u32 = 0x0080;
/// Version 2 there.
const VERSION_2: u32 = 0x8000;

/// The first twelve bytes of a packet.
struct Fixed {
    /// The first two bytes, then the sequence number.
    front: u32,
    timestamp: u32,
    ssrc: u32,
}

impl Fixed {
    #[inline]
    fn of(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes.first_chunk::<FIXED_LEN>()?;
        Some(Self {
            front: u32::from_be_bytes([a, b, c, d]),
            timestamp: u32::from_be_bytes([e, f, g, h]),
            ssrc: u32::from_be_bytes([i, j, k, l]),
        })
    }

    const fn kind(&self) -> u32 {
        self.front >> 16
    }
}

/// What the next packet has to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady {
    /// Version, payload type and sequence number, as in the first four bytes.
    front: u32,
    ssrc: u32,
    flow: Flow,
    leg: u8,
    /// Its source's place in the table.
    source: u16,
    /// The stream's sequence number less the source's; in arrival order 0.
    delta: u64,
}

impl Steady {
    #[inline]
    fn is(&self, packet: &Packet, fixed: &Fixed) -> bool {
        fixed.front & (VERSION_AND_TYPE << 16 | 0xffff) == self.front
            && fixed.ssrc == self.ssrc
            && packet.leg == self.leg
            && packet.flow == self.flow
    }

    /// Goes on to the packet after.
    #[inline]
    fn advance(&mut self) {
        let next = (self.front as u16).wrapping_add(1);
        self.front = self.front & 0xffff_0000 | u32::from(next);
    }
}

/// Where the payload of an RTP packet begins, and its length.
#[inline]
fn payload(fixed: &Fixed, bytes: &[u8]) -> Option<(u16, u32)> {
    if fixed.kind() & PARTS == 0 {
        return Some((FIXED_LEN as u16, bytes.len().wrapping_sub(FIXED_LEN) as u32));
    }
    let header = header::parse(bytes).ok()?;
    Some((header.payload_offset as u16, header.payload_len as u32))
}

impl<M: Memory> ReceiveCore<M> {
    /// The next packet goes the long way.
    #[inline]
    pub(super) fn disturb(&mut self) {
        self.steady = None;
    }

    /// A plain packet has gone the long way: whether the next one may go the short way.
    pub(super) fn calm(&mut self, packet: &Packet) {
        self.steady = self.next_steadily(packet);
    }

    fn next_steadily(&self, packet: &Packet) -> Option<Steady> {
        let (source, entry) = self.table.latest()?;
        let leg = self.legs.get(usize::from(packet.leg))?;
        let own = entry.source.highest();
        let delta = if self.config.order.is_some() {
            let sequence = own.wrapping_add(leg.delta);
            let continues = self.follows(packet, entry.key.ssrc)
                && leg.source == source
                && sequence == self.run.highest
                && self.staging.is_next(sequence.wrapping_add(1));
            continues.then_some(leg.delta)?
        } else {
            0
        };
        let kind = VERSION_2 | u32::from(entry.payload_type);
        // With the marker bit, 64 to 95 are RTCP.
        let distinct = entry.payload_type & 0x60 != 0x40;
        let next = (own as u16).wrapping_add(1);
        let plain = distinct && self.staging.is_plain() && entry.source.is_next(next);
        plain.then_some(Steady {
            front: kind << 16 | u32::from(next),
            ssrc: entry.key.ssrc,
            flow: entry.key.flow,
            leg: entry.key.leg,
            source,
            delta,
        })
    }

    /// Takes the packet if it may go the short way, and there is room.
    #[inline]
    pub(super) fn take_steadily(
        &mut self,
        view: &RingView<'_>,
        packet: &Packet,
        bytes: &[u8],
    ) -> bool {
        let Some(steady) = &mut self.steady else { return false };
        let Some(fixed) = Fixed::of(bytes) else { return false };
        let fits = !packet.truncated && packet.len <= self.config.slot_stride;
        if !steady.is(packet, &fixed) || !fits || !self.staging.has_room(self.limit) {
            return false;
        }
        let Some((payload_offset, payload_len)) = payload(&fixed, bytes) else { return false };
        let Some(leg) = self.legs.get_mut(usize::from(packet.leg)) else { return false };
        let Some(entry) = self.table.touch_plainly(steady.source) else { return false };
        let marker = fixed.kind() & MARKER != 0;
        let payload_type = fixed.kind() as u8 & 0x7f;
        let own = entry.source.observe_next(&Seen {
            sequence: fixed.front as u16,
            timestamp: fixed.timestamp,
            arrival_ns: packet.arrival_ns,
            payload_len,
            payload_type,
            marker,
        });
        let sequence = own.wrapping_add(steady.delta);
        let source = steady.source;
        steady.advance();
        if self.config.order.is_some() {
            leg.last_ns = packet.arrival_ns;
            leg.latest = sequence;
            self.run.highest = sequence;
        } else {
            bump(&mut self.counters.expected);
        }
        bump(&mut self.counters.received);
        bump(&mut self.counters.unique);
        add(&mut self.counters.bytes, payload_len.into());
        bump(&mut leg.figures.received);
        bump(&mut leg.figures.first);
        add(&mut leg.figures.bytes, payload_len.into());
        leg.figures.last_ns = packet.arrival_ns;
        let mut flags = if marker { flag::MARKER } else { 0 };
        if packet.coalesced {
            flags |= flag::COALESCED_TIME;
        }
        let descriptor = Descriptor {
            sequence,
            time_ns: packet.time_ns,
            slot: packet.slot,
            len: packet.len,
            rtp_timestamp: fixed.timestamp,
            ssrc: fixed.ssrc,
            count: 0,
            source,
            flags,
            payload_offset,
            payload_type,
            leg: packet.leg,
            payload_len,
            reserved: [0; 2],
        };
        self.staging.append_plainly(view, &descriptor, packet.arrival_ns);
        self.changed = self.changed.and_plain();
        true
    }
}
