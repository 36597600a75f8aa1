//! Transmit streams as their writer sees them.
//!
//! What lives here: the builder, the writer's handle and the slots it fills. What does not: settings
//! and their ranges ([`crate::config`]), the engine.

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::{Descriptor, SOURCE_NONE, flag, status};
use rtp_mgr_ring::header::{self, FIXED_LEN};
use rtp_mgr_ring::transmit::{commit, prepare_wait};

use crate::config::{Engine, EngineKind, PacketRate, TransmitConfig};
use crate::context::Context;
use crate::engine::{TransmitEngine, open_transmit};
use crate::error::{Error, Warning};
use crate::leg::Leg;
use crate::net::DATAGRAM_MAX;
use crate::poll::wait_readable;
use crate::shm::Room;
use crate::stats::{State, Stats, StreamId, StreamSnapshot};

/// What lies between the last packet and BYE. BYE goes to another port and so may be read before
/// packets that came before it: FFmpeg looks at RTCP first and gives up what is behind it. Seen to be
/// needed: nothing lost at 5 ms, up to two packets at 0.
const BYE_AFTER: Duration = Duration::from_millis(50);

/// How long a writer that finds no room waits for half of the ring before it takes less. Woken for each batch that
/// has left, it would change threads with the engine twice as often or more. What a stream that needs longer for
/// half of its ring still has to send lasts longer, too. It is more than the time between two ticks, so that the
/// timer, which nearly never fires, need not be set in the processor: in a virtual machine that costs microseconds.
const ROOM_WAIT: Duration = Duration::from_millis(20);

/// Collects the settings of a transmit stream.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing happens before `open`"]
pub struct TransmitterBuilder {
    config: TransmitConfig,
    context: Option<Context>,
}

impl TransmitterBuilder {
    /// Who shall run the ring (default [`Engine::Auto`]).
    pub fn engine(mut self, engine: Engine) -> Self {
        self.config.engine = engine;
        self
    }

    /// Adds a leg: where to send. A second one gets the same packets (ST 2022-7). The leg's source,
    /// if named, is the local address to send from.
    pub fn leg(mut self, leg: Leg) -> Self {
        self.config.legs.push(leg);
        self
    }

    /// The ring gets `2^order` positions, 4 to 20 (default 10).
    pub fn ring_order(mut self, order: u8) -> Self {
        self.config.ring_order = order;
        self
    }

    /// Bytes of a slot, 64 to 65,536 (default 2,048): the longest packet.
    pub fn slot_stride(mut self, bytes: u32) -> Self {
        self.config.slot_stride = bytes;
        self
    }

    /// Sends at this rate (default: as fast as the path takes them, or at their launch times).
    pub fn rate(mut self, rate: PacketRate) -> Self {
        self.config.rate = Some(rate);
        self
    }

    /// Lets the kernel cut up messages of many packets (default on; where it refuses, packets go one
    /// by one).
    pub fn gso(mut self, gso: bool) -> Self {
        self.config.gso = gso;
        self
    }

    /// Lets the network read large sends from the ring's own pages where the device can and it pays: such
    /// slots are free when it has let go of them (default on; kernel engine, one leg).
    pub fn zerocopy(mut self, zerocopy: bool) -> Self {
        self.config.zerocopy = zerocopy;
        self
    }

    /// TTL or hop limit, 1 to 255 (default: 1 for groups, the system's otherwise).
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.config.ttl = Some(ttl);
        self
    }

    /// Differentiated services code point, 0 to 63.
    pub fn dscp(mut self, dscp: u8) -> Self {
        self.config.dscp = Some(dscp);
        self
    }

    /// Interface that legs without one of their own leave through.
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.config.interface = Some(name.into());
        self
    }

    /// Port to send from (default 0: the kernel chooses).
    pub fn source_port(mut self, port: u16) -> Self {
        self.config.source_port = port;
        self
    }

    /// Bytes to ask for as socket buffer.
    pub fn socket_buffer(mut self, bytes: usize) -> Self {
        self.config.socket_buffer = Some(bytes);
        self
    }

    /// SSRC of the packets that [`Slot::rtp`] begins (default: random).
    pub fn ssrc(mut self, ssrc: u32) -> Self {
        self.config.ssrc = Some(ssrc);
        self
    }

    /// Payload type of the packets that [`Slot::rtp`] begins, 0 to 63 or 96 to 127 (default 96).
    pub fn payload_type(mut self, payload_type: u8) -> Self {
        self.config.payload_type = payload_type;
        self
    }

    /// Sequence number of the first packet that [`Slot::rtp`] begins (default: random).
    pub fn first_sequence(mut self, sequence: u16) -> Self {
        self.config.first_sequence = Some(sequence);
        self
    }

    /// Clock rate of the RTP timestamps, 1 to 10^9 Hz, for RTCP sender reports.
    pub fn clock_rate(mut self, hz: u32) -> Self {
        self.config.clock_rate = Some(hz);
        self
    }

    /// Canonical name for RTCP (RFC 3550 section 6.5.1), 1 to 255 bytes (default: made from user and
    /// host).
    pub fn cname(mut self, cname: impl Into<String>) -> Self {
        self.config.cname = Some(cname.into());
        self
    }

    /// Sends RTCP to the port above each leg's: sender reports every 5 s (when the clock rate is
    /// known) and BYE at the end (default on).
    pub fn rtcp(mut self, rtcp: bool) -> Self {
        self.config.rtcp = rtcp;
        self
    }

    /// The name under which other processes of this user find the stream's figures: 1 to 64
    /// letters, digits, `-`, `_` and `.`.
    pub fn publish(mut self, name: impl Into<String>) -> Self {
        self.config.publish = Some(name.into());
        self
    }

    /// Lets other processes of this user find the stream's figures (default on).
    pub fn announce(mut self, announce: bool) -> Self {
        self.config.announce = announce;
        self
    }

    /// First position of the ring, for tests of what happens when positions wrap.
    #[doc(hidden)]
    pub fn start_position(mut self, position: u64) -> Self {
        self.config.start = position;
        self
    }

    /// The engine threads to run on (default: one of its own).
    pub fn context(mut self, context: &Context) -> Self {
        self.context = Some(context.clone());
        self
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// A setting out of its range, a leg that cannot be opened, no memory, a name that is taken,
    /// the kernel engine asked for and not there.
    pub fn open(self) -> Result<Transmitter, Error> {
        self.config.check()?;
        let config = self.config;
        let cname = config.cname.clone().unwrap_or_else(cname);
        let (opened, (kind, reason)) = open_transmit(&config, &cname)?;
        let context = match self.context {
            Some(context) => context,
            None => Context::own()?,
        };
        opened.engine.clone().start(&context)?;
        let region = opened.engine.region().clone();
        Ok(Transmitter {
            stats: Stats::new(region.clone()),
            room: Room::new(region),
            head: config.start,
            fills: Vec::new(),
            rtp: RtpState {
                ssrc: config.ssrc.unwrap_or_else(|| random() as u32),
                payload_type: config.payload_type,
                next_sequence: config.first_sequence.unwrap_or_else(|| random() as u16),
            },
            local: opened.local,
            kind,
            reason,
            engine: opened.engine,
            _context: context,
        })
    }
}

/// The canonical name of this user on this host.
fn cname() -> String {
    let user =
        std::env::var("USER").unwrap_or_else(|_| rustix::process::geteuid().as_raw().to_string());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // Both are far from 255 bytes, unless somebody made them so.
    format!("{user}@{host}").chars().take(60).collect()
}

/// A random number. Nothing secret depends on it (RFC 3550 section 8.1: SSRCs are to differ).
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// A transmit stream and its writer.
///
/// Dropping it stops the stream: what is not sent yet is given up. Send, not Sync.
#[derive(Debug)]
pub struct Transmitter {
    stats: Stats,
    room: Room,
    /// Next position to commit.
    head: u64,
    /// What is known of the slots that are lent.
    fills: Vec<Fill>,
    rtp: RtpState,
    local: Vec<SocketAddr>,
    kind: EngineKind,
    reason: String,
    engine: Arc<dyn TransmitEngine>,
    /// Keeps the engine's threads.
    _context: Context,
}

/// What [`Slot::rtp`] writes.
#[derive(Debug)]
struct RtpState {
    ssrc: u32,
    payload_type: u8,
    next_sequence: u16,
}

/// What is in a lent slot.
#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    len: usize,
    launch_ns: Option<u64>,
    /// The header is one of [`Slot::rtp`].
    ours: bool,
}

impl Transmitter {
    /// Settings for a new stream.
    pub fn builder() -> TransmitterBuilder {
        TransmitterBuilder::default()
    }

    /// Borrows up to `n` free slots to fill in place, at least one, waiting up to `timeout` for the
    /// first. None at all: the time ran out.
    ///
    /// A full ring is given up to 20 ms of that time to become half empty, so that a writer who is faster than the
    /// stream is not woken for every few packets.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn reserve(&mut self, n: usize, timeout: Duration) -> Result<Slots<'_>, Error> {
        let mut free = self.free();
        if free == 0 && n > 0 {
            self.wait_for_room(timeout)?;
            free = self.free();
        }
        let count = n.min(free);
        self.fills.clear();
        self.fills.resize(count, Fill::default());
        let stride = self.slot_stride() as usize;
        let (first, second) = self.room.slots(self.head, count);
        Ok(Slots {
            first,
            second,
            stride,
            fills: &mut self.fills,
            rtp: &mut self.rtp,
            head: &mut self.head,
            engine: &*self.engine,
        })
    }

    /// Free positions.
    fn free(&self) -> usize {
        let used = self.head.wrapping_sub(self.tail()).min(self.slot_count().into());
        self.slot_count() as usize - used as usize
    }

    /// Next position that the engine releases.
    fn tail(&self) -> u64 {
        self.engine.region().status_word(status::TAIL).load_acquire()
    }

    /// Waits for half of a ring that is full, or, when that takes too long, for one position.
    fn wait_for_room(&self, timeout: Duration) -> Result<(), Error> {
        let now = Instant::now();
        let full = self.head.wrapping_sub(self.slot_count().into());
        if timeout > ROOM_WAIT {
            let half = full.wrapping_add(u64::from(self.slot_count() / 2));
            if self.wait_for_tail(half, Some(now + ROOM_WAIT))? || self.free() > 0 {
                return Ok(());
            }
        }
        // A position is free when tail has passed the one that has its place now.
        self.wait_for_tail(full.wrapping_add(1), now.checked_add(timeout))?;
        Ok(())
    }

    /// Waits until the engine has released everything before `position`. `false`: the time ran out.
    fn wait_for_tail(&self, position: u64, until: Option<Instant>) -> Result<bool, Error> {
        let reached = || self.tail().wrapping_sub(position) as i64 >= 0;
        loop {
            if reached() {
                return Ok(true);
            }
            if self.stats.state() == State::Stopped {
                return Err(Error::EngineGone);
            }
            self.engine.forget();
            let tail = self.engine.region().status_word(status::TAIL);
            let wake_at = self.engine.control().view().wake_at;
            if !prepare_wait(wake_at, tail, position) || self.stats.state() == State::Stopped {
                continue;
            }
            if !wait_readable(self.engine.event(), until) {
                return Ok(reached());
            }
        }
    }

    /// Waits up to `timeout` until everything committed was sent or given up, and the network reads none
    /// of it from the ring any more. Returns whether it was.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn flush(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.wait_for_tail(self.head, Instant::now().checked_add(timeout))
    }

    /// Ends the stream: waits up to `timeout` until everything is sent, gives up the rest, sends RTCP
    /// BYE 50 ms later. Returns the final figures.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn close(mut self, timeout: Duration) -> Result<StreamSnapshot, Error> {
        self.flush(timeout)?;
        std::thread::sleep(BYE_AFTER);
        self.engine.stop()?;
        Ok(self.stats.snapshot())
    }

    /// The stream's figures, to be looked at from any thread.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// Address and port that a leg (0 or 1) sends from.
    pub fn local_addr(&self, leg: usize) -> Option<SocketAddr> {
        self.local.get(leg).copied()
    }

    /// SSRC of the packets that [`Slot::rtp`] begins.
    pub fn ssrc(&self) -> u32 {
        self.rtp.ssrc
    }

    /// Sequence number that the next packet begun with [`Slot::rtp`] will have.
    pub fn next_sequence(&self) -> u16 {
        self.rtp.next_sequence
    }

    /// What limits the stream without stopping it; may grow while it runs.
    pub fn warnings(&self) -> Vec<Warning> {
        self.engine.warnings()
    }

    /// Who runs the ring.
    pub fn engine(&self) -> EngineKind {
        self.kind
    }

    /// Why that engine.
    pub fn engine_reason(&self) -> &str {
        &self.reason
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.stats.id()
    }

    /// Positions of the ring.
    pub fn slot_count(&self) -> u32 {
        self.engine.region().layout().header().slot_count
    }

    /// Bytes of a slot: the longest packet.
    pub fn slot_stride(&self) -> u32 {
        self.engine.region().layout().header().slot_stride
    }
}

impl Drop for Transmitter {
    fn drop(&mut self) {
        // Whoever wanted to know has called `close`.
        let _ = self.engine.stop();
    }
}

impl AsFd for Transmitter {
    /// Readable when slots have become free since [`reserve`](Transmitter::reserve) found none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.engine.event()
    }
}

/// Free slots, lent to be filled.
#[derive(Debug)]
pub struct Slots<'a> {
    /// The slots up to the end of the ring, and from its beginning.
    first: &'a mut [u8],
    second: &'a mut [u8],
    stride: usize,
    fills: &'a mut [Fill],
    rtp: &'a mut RtpState,
    head: &'a mut u64,
    engine: &'a dyn TransmitEngine,
}

impl Slots<'_> {
    /// Number of slots; 0: the time ran out.
    pub fn len(&self) -> usize {
        self.fills.len()
    }

    /// Whether the time ran out.
    pub fn is_empty(&self) -> bool {
        self.fills.is_empty()
    }

    /// One of them.
    pub fn get(&mut self, index: usize) -> Option<Slot<'_>> {
        let fill = self.fills.get_mut(index)?;
        let start = index * self.stride;
        let bytes = match start.checked_sub(self.first.len()) {
            None => &mut self.first[start..start + self.stride],
            Some(start) => &mut self.second[start..start + self.stride],
        };
        Some(Slot { bytes, fill, ssrc: self.rtp.ssrc, payload_type: self.rtp.payload_type })
    }

    /// All of them, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Slot<'_>> {
        let (ssrc, payload_type) = (self.rtp.ssrc, self.rtp.payload_type);
        self.filled().map(move |(bytes, fill)| Slot { bytes, fill, ssrc, payload_type })
    }

    /// Gives the first `n` to the engine. The others stay free, as all do when this is dropped.
    ///
    /// # Errors
    /// One of them has no packet, or `n` is more than there are; nothing is committed then.
    pub fn commit(mut self, n: usize) -> Result<(), Error> {
        if n > self.len() {
            let accepted = format!("accepted: up to the {} that were lent", self.len());
            return Err(Error::argument("commit", n, accepted));
        }
        if let Some(empty) = self.fills[..n].iter().position(|fill| fill.len == 0) {
            let accepted = "accepted: slots that have a packet (set_len or set_payload_len)";
            return Err(Error::argument("commit", format_args!("{n}: slot {empty}"), accepted));
        }
        let engine = self.engine;
        let region = engine.region();
        let ring = region.ring();
        let mask = region.layout().slot_count() as u64 - 1;
        let (mut position, mut sequence) = (*self.head, self.rtp.next_sequence);
        for (bytes, fill) in self.filled().take(n) {
            let mut descriptor = describe(bytes, fill, &mut sequence);
            descriptor.slot = (position & mask) as u32;
            ring.store(position, &descriptor);
            position = position.wrapping_add(1);
        }
        (*self.head, self.rtp.next_sequence) = (position, sequence);
        let need_kick = region.status_word(status::NEED_KICK);
        if commit(engine.control().view().position, need_kick, position) {
            engine.kick();
        }
        Ok(())
    }

    /// Each slot with what is known of it, in order.
    fn filled(&mut self) -> impl Iterator<Item = (&mut [u8], &mut Fill)> {
        let first = self.first.chunks_exact_mut(self.stride);
        let chunks = first.chain(self.second.chunks_exact_mut(self.stride));
        chunks.zip(&mut *self.fills)
    }
}

/// The descriptor of a filled slot but for its place; a packet of ours gets its sequence number.
#[inline]
fn describe(bytes: &mut [u8], fill: &Fill, sequence: &mut u16) -> Descriptor {
    if fill.ours {
        bytes[SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
        *sequence = sequence.wrapping_add(1);
    }
    let mut descriptor = Descriptor {
        len: fill.len as u32,
        time_ns: fill.launch_ns.unwrap_or(0),
        flags: if fill.launch_ns.is_some() { flag::LAUNCH_TIME } else { 0 },
        source: SOURCE_NONE,
        ..Descriptor::default()
    };
    let packet = &bytes[..fill.len];
    // Nearly every packet has a fixed header and nothing between it and the payload.
    let (fixed, payload_offset, payload_len) = match header::parse_fixed(packet, fill.len) {
        Ok(fixed) if fixed.is_all() => (fixed, FIXED_LEN, fill.len - FIXED_LEN),
        Ok(fixed) => match header::parse(packet) {
            Ok(header) => (fixed, header.payload_offset, header.payload_len),
            // What is no RTP is sent as it is.
            Err(_) => return descriptor,
        },
        Err(_) => return descriptor,
    };
    descriptor.sequence = fixed.sequence.into();
    descriptor.rtp_timestamp = fixed.timestamp;
    descriptor.ssrc = fixed.ssrc;
    descriptor.payload_type = fixed.payload_type;
    descriptor.payload_offset = payload_offset as u16;
    descriptor.payload_len = payload_len as u32;
    descriptor.flags |= if fixed.marker { flag::MARKER } else { 0 };
    descriptor
}

/// Where the sequence number stands in an RTP header (RFC 3550 section 5.1).
const SEQUENCE: std::ops::Range<usize> = 2..4;

/// A slot to fill.
#[derive(Debug)]
pub struct Slot<'s> {
    bytes: &'s mut [u8],
    fill: &'s mut Fill,
    ssrc: u32,
    payload_type: u8,
}

impl Slot<'_> {
    /// All of the slot, for a packet with a header of its own. [`set_len`](Self::set_len) follows.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The packet is the first `len` bytes of the slot.
    ///
    /// # Errors
    /// `len` is less than an RTP header's 12, or more than a slot or a datagram holds.
    pub fn set_len(&mut self, len: usize) -> Result<(), Error> {
        let max = self.bytes.len().min(DATAGRAM_MAX);
        if !(FIXED_LEN..=max).contains(&len) {
            return Err(Error::PacketLength { len, max });
        }
        self.fill.len = len;
        self.fill.ours = false;
        Ok(())
    }

    /// Begins an RTP packet: a header with the stream's SSRC, payload type and next sequence
    /// number (which is written by `commit`). Returns the room for the payload.
    /// [`set_payload_len`](Self::set_payload_len) follows.
    pub fn rtp(&mut self, marker: bool, timestamp: u32) -> &mut [u8] {
        let built = header::build(self.bytes, marker, self.payload_type, 0, timestamp, self.ssrc);
        debug_assert_eq!(built, Some(FIXED_LEN), "a slot has at least 64 bytes");
        &mut self.bytes[FIXED_LEN..]
    }

    /// The payload is the first `len` bytes of the room that [`rtp`](Self::rtp) gave.
    ///
    /// # Errors
    /// `len` is more than there is room for in the slot or in a datagram.
    pub fn set_payload_len(&mut self, len: usize) -> Result<(), Error> {
        self.set_len(len.saturating_add(FIXED_LEN))?;
        self.fill.ours = true;
        Ok(())
    }

    /// Sends the packet no earlier than this, nanoseconds of CLOCK_TAI ([`crate::clock::tai_ns`]).
    /// Packets leave in the order of their slots; a stream with a rate ignores it.
    pub fn launch_at(&mut self, tai_ns: u64) {
        self.fill.launch_ns = Some(tai_ns);
    }
}
