//! Transmit streams as their writer sees them.
//!
//! What lives here: the builder, the writer's handle and the slots it fills. What does not: settings
//! and their ranges ([`crate::config`]), the engine.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::config::{Engine, EngineKind, PacketRate, TransmitConfig};
use crate::context::Context;
use crate::error::{Error, Warning};
use crate::leg::Leg;
use crate::stats::{Stats, StreamId, StreamSnapshot};

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
        let _ = self.context;
        Err(Error::NotInThisBuild("the transmit engine"))
    }
}

/// A transmit stream and its writer.
///
/// Dropping it stops the stream: what is not sent yet is given up. Send, not Sync.
#[derive(Debug)]
pub struct Transmitter {
    stats: Stats,
    wake: OwnedFd,
}

impl Transmitter {
    /// Settings for a new stream.
    pub fn builder() -> TransmitterBuilder {
        TransmitterBuilder::default()
    }

    /// Borrows up to `n` free slots to fill in place, at least one, waiting up to `timeout` for the
    /// first. None at all: the time ran out.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn reserve(&mut self, n: usize, timeout: Duration) -> Result<Slots<'_>, Error> {
        let _ = (n, timeout);
        Err(Error::NotInThisBuild("reserve"))
    }

    /// Waits up to `timeout` until everything committed was sent or given up. Returns whether it
    /// was.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn flush(&mut self, timeout: Duration) -> Result<bool, Error> {
        let _ = timeout;
        Err(Error::NotInThisBuild("flush"))
    }

    /// Ends the stream: waits up to `timeout` until everything is sent, gives up the rest, sends RTCP
    /// BYE. Returns the final figures.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn close(self, timeout: Duration) -> Result<StreamSnapshot, Error> {
        let _ = timeout;
        Err(Error::NotInThisBuild("close"))
    }

    /// The stream's figures, to be looked at from any thread.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// Address and port that a leg (0 or 1) sends from.
    pub fn local_addr(&self, leg: usize) -> Option<SocketAddr> {
        let _ = leg;
        None
    }

    /// SSRC of the packets that [`Slot::rtp`] begins.
    pub fn ssrc(&self) -> u32 {
        0
    }

    /// Sequence number that the next packet begun with [`Slot::rtp`] will have.
    pub fn next_sequence(&self) -> u16 {
        0
    }

    /// What limits the stream without stopping it.
    pub fn warnings(&self) -> Vec<Warning> {
        Vec::new()
    }

    /// Who runs the ring.
    pub fn engine(&self) -> EngineKind {
        EngineKind::User
    }

    /// Why that engine.
    pub fn engine_reason(&self) -> &str {
        ""
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.stats.id()
    }

    /// Positions of the ring.
    pub fn slot_count(&self) -> u32 {
        0
    }

    /// Bytes of a slot: the longest packet.
    pub fn slot_stride(&self) -> u32 {
        0
    }
}

impl AsFd for Transmitter {
    /// Readable when slots have become free since [`reserve`](Transmitter::reserve) found none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Free slots, lent to be filled.
#[derive(Debug)]
pub struct Slots<'a> {
    _transmitter: PhantomData<&'a mut Transmitter>,
}

impl Slots<'_> {
    /// Number of slots; 0: the time ran out.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether the time ran out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    pub fn get(&mut self, index: usize) -> Option<Slot<'_>> {
        let _ = index;
        None
    }

    /// Gives the first `n` to the engine. The others stay free, as all do when this is dropped.
    ///
    /// # Errors
    /// One of them has no packet, or `n` is more than there are; nothing is committed then.
    pub fn commit(self, n: usize) -> Result<(), Error> {
        let _ = n;
        Err(Error::NotInThisBuild("commit"))
    }
}

/// A slot to fill.
#[derive(Debug)]
pub struct Slot<'s> {
    bytes: &'s mut [u8],
}

impl Slot<'_> {
    /// All of the slot, for a packet with a header of its own. [`set_len`](Self::set_len) follows.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The packet is the first `len` bytes of the slot.
    ///
    /// # Errors
    /// `len` is 0, or more than a slot or a datagram holds.
    pub fn set_len(&mut self, len: usize) -> Result<(), Error> {
        Err(Error::PacketLength { len, max: self.bytes.len() })
    }

    /// Begins an RTP packet: a header with the stream's SSRC, payload type and next sequence
    /// number. Returns the room for the payload. [`set_payload_len`](Self::set_payload_len) follows.
    pub fn rtp(&mut self, marker: bool, timestamp: u32) -> &mut [u8] {
        let _ = (marker, timestamp);
        self.bytes
    }

    /// The payload is the first `len` bytes of the room that [`rtp`](Self::rtp) gave.
    ///
    /// # Errors
    /// `len` is more than there is room for.
    pub fn set_payload_len(&mut self, len: usize) -> Result<(), Error> {
        Err(Error::PacketLength { len, max: self.bytes.len() })
    }

    /// Sends the packet no earlier than this, nanoseconds of CLOCK_TAI ([`crate::clock::tai_ns`]).
    /// Packets leave in the order of their slots; a stream with a rate ignores it.
    pub fn launch_at(&mut self, tai_ns: u64) {
        let _ = tai_ns;
    }
}
