//! Receive streams as their owner sees them.
//!
//! What lives here: the builder and the owner's handle. What does not: reading
//! ([`crate::reader`]), settings and their ranges ([`crate::config`]), the engine.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rtp_mgr_ring::abi::ReaderStatus;

use crate::config::{Engine, EngineKind, Mode, ReceiveConfig, SimConfig};
use crate::context::Context;
use crate::engine::{ReceiveEngine, open_receive};
use crate::error::{Error, Warning};
use crate::leg::Leg;
use crate::reader::{Batch, Reader};
use crate::side_channel::SideChannel;
use crate::stats::{Stats, StreamId};

/// Collects the settings of a receive stream.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing happens before `open`"]
pub struct ReceiverBuilder {
    config: ReceiveConfig,
    context: Option<Context>,
}

impl ReceiverBuilder {
    /// Who shall run the ring (default [`Engine::Auto`]).
    pub fn engine(mut self, engine: Engine) -> Self {
        self.config.engine = engine;
        self
    }

    /// Adds a leg. A second one makes the stream redundant (ST 2022-7) and needs
    /// [`ordered`](Self::ordered). Port 0 lets the kernel choose ([`Receiver::local_addr`]).
    pub fn leg(mut self, leg: Leg) -> Self {
        self.config.legs.push(leg);
        self
    }

    /// Feeds the stream by the simulated DMA engine instead of legs.
    pub fn simulated(mut self, sim: SimConfig) -> Self {
        self.config.simulated = Some(sim);
        self
    }

    /// Follows one source and publishes its packets in RTP sequence order. A missing packet is
    /// waited for as long as `reorder` (0 to 60 s) after the first packet beyond it, then published
    /// as a gap.
    pub fn ordered(mut self, reorder: Duration) -> Self {
        self.config.reorder = Some(reorder);
        self
    }

    /// The ring gets `2^order` positions, 4 to 20 (default 10, more when
    /// [`expected_rate`](Self::expected_rate) and [`ordered`](Self::ordered) need it).
    pub fn ring_order(mut self, order: u8) -> Self {
        self.config.ring_order = Some(order);
        self
    }

    /// Bytes of a slot, 64 to 65,536 (default 2,048). A longer packet is dropped and counted.
    pub fn slot_stride(mut self, bytes: u32) -> Self {
        self.config.slot_stride = bytes;
        self
    }

    /// Entries of the source table, 1 to 65,535 (default 1,024).
    pub fn sources(mut self, sources: u32) -> Self {
        self.config.sources = sources;
        self
    }

    /// Takes only this SSRC.
    pub fn ssrc(mut self, ssrc: u32) -> Self {
        self.config.ssrc = Some(ssrc);
        self
    }

    /// Takes only this payload type, 0 to 63 or 96 to 127.
    pub fn payload_type(mut self, payload_type: u8) -> Self {
        self.config.payload_type = Some(payload_type);
        self
    }

    /// RTP of another SSRC or payload type than was asked for is no packet of the stream: it goes to the side
    /// channel, as [`Kind::Rtp`](crate::Kind::Rtp), and counts as passed; without this it is dropped, and
    /// counts as filtered. With the kernel engine it never leaves the socket's own path.
    pub fn leave_others(mut self, leave: bool) -> Self {
        self.config.leave_others = leave;
        self
    }

    /// Takes only packets from this address.
    pub fn source_address(mut self, address: IpAddr) -> Self {
        self.config.source_address = Some(address);
        self
    }

    /// The RTP clock rate of a payload type, 1 to 10^9 Hz, for the jitter. The static types of
    /// RFC 3551 are known.
    pub fn clock_rate(mut self, payload_type: u8, hz: u32) -> Self {
        self.config.clock_rates.push((payload_type, hz));
        self
    }

    /// Every packet gets an arrival time of its own: turns GRO off.
    pub fn exact_times(mut self, exact: bool) -> Self {
        self.config.exact_times = exact;
        self
    }

    /// Lets the kernel coalesce packets (default on; where it refuses, packets come one by one).
    pub fn gro(mut self, gro: bool) -> Self {
        self.config.gro = gro;
        self
    }

    /// The rate to be ready for, in packets per second of so many bytes: sizes the socket buffer,
    /// and the ring: for what comes within the reorder time, or, in arrival order with the embedded
    /// engine, for a reader that stands still for half a second (unless
    /// [`ring_order`](Self::ring_order) says otherwise).
    pub fn expected_rate(mut self, packets_per_second: f64, packet_len: usize) -> Self {
        self.config.expected = Some((packets_per_second, packet_len));
        self
    }

    /// Bytes to ask for as socket buffer (default: what the expected rate needs).
    pub fn socket_buffer(mut self, bytes: usize) -> Self {
        self.config.socket_buffer = Some(bytes);
        self
    }

    /// Listens for RTCP on the port above each leg's, too (default on; a warning when that port
    /// cannot be bound). RTCP on the leg's own port is always told apart (RFC 5761).
    pub fn rtcp(mut self, rtcp: bool) -> Self {
        self.config.rtcp = rtcp;
        self
    }

    /// Lets other processes of this user attach under this name: 1 to 64 letters, digits, `-`, `_`
    /// and `.`.
    pub fn publish(mut self, name: impl Into<String>) -> Self {
        self.config.publish = Some(name.into());
        self
    }

    /// Lets other processes of this user find the stream's figures (default on).
    pub fn announce(mut self, announce: bool) -> Self {
        self.config.announce = announce;
        self
    }

    /// Attached readers may be reliable, until they stall past the limit (default off).
    pub fn allow_reliable(mut self, allow: bool) -> Self {
        self.config.allow_reliable = allow;
        self
    }

    /// How long a batch smaller than the wake threshold may wait (default 10 ms).
    pub fn max_latency(mut self, latency: Duration) -> Self {
        self.config.max_latency = latency;
        self
    }

    /// Has [`Receiver::read`] be awake when the next packet of a steady stream comes: it sleeps until shortly before, and
    /// looks at the socket again and again from then on, for at most this long for each packet (0 to 10 ms; default
    /// 0: never). That saves the time to wake up, 10 us and more, and costs processor time: what waking up takes,
    /// with each packet, or all of it where packets are that close to each other. 100 us is more than most machines need.
    /// Streams whose packets come at other times than they came before are waited for as always. Packets that come
    /// several at a time (bursts, coalesced trains, two legs) gain nothing by it.
    ///
    /// Takes the embedded engine, and is the owner's while it is the only reader.
    pub fn busy_poll(mut self, longest: Duration) -> Self {
        self.config.busy_poll = longest;
        self
    }

    /// Wakes the owner's reader when this many positions are there (default 1).
    pub fn wake_threshold(mut self, positions: u32) -> Self {
        self.config.wake_threshold = positions;
        self
    }

    /// A reliable reader of another process that holds the ring full for this long is made lossy
    /// (default 2 s).
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.config.stall_limit = limit;
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

    /// Opens the stream; it receives from here on.
    ///
    /// # Errors
    /// A setting out of its range, a leg that cannot be opened, no memory, a name that is taken,
    /// the kernel engine asked for and not there.
    pub fn open(self) -> Result<Receiver, Error> {
        let ring_order = self.config.check()?;
        let (opened, (kind, reason)) = open_receive(&self.config, ring_order)?;
        let context = match self.context {
            Some(context) => context,
            None => Context::own()?,
        };
        opened.engine.clone().start(&context)?;
        Ok(Receiver {
            reader: opened.reader,
            stats: Stats::new(opened.engine.region().clone()),
            local: opened.local,
            warnings: opened.warnings,
            kind,
            reason,
            config: self.config,
            engine: opened.engine,
            _context: context,
        })
    }
}

/// A receive stream and its owner's reader.
///
/// Dropping it stops the stream. Send, not Sync.
#[derive(Debug)]
pub struct Receiver {
    reader: Reader,
    stats: Stats,
    local: Vec<SocketAddr>,
    warnings: Vec<Warning>,
    kind: EngineKind,
    reason: String,
    config: ReceiveConfig,
    engine: Arc<dyn ReceiveEngine>,
    /// Keeps the engine's threads.
    _context: Context,
}

impl Receiver {
    /// Settings for a new stream.
    pub fn builder() -> ReceiverBuilder {
        ReceiverBuilder::default()
    }

    /// The next positions, waiting up to `timeout` for the first. `None`: the stream has stopped and
    /// everything was read. An empty batch: the time ran out.
    ///
    /// The only reader of a stream of the embedded engine takes packets from the sockets itself while it
    /// waits here. To wait for several streams, wait for their files ([`AsFd`]) and call
    /// [`try_read`](Self::try_read).
    ///
    /// # Errors
    /// The engine has ended.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        self.reader.read(timeout)
    }

    /// The next positions, without waiting. After an empty batch [`AsFd`] becomes readable when
    /// there is something new.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        self.reader.try_read()
    }

    /// A further reader in this process, which begins at the present end of the ring. A lossy one
    /// copies what it reads.
    ///
    /// # Errors
    /// There are 16 readers already; the stream has stopped.
    pub fn subscribe(&self, mode: Mode) -> Result<Reader, Error> {
        self.engine.clone().subscribe(mode)
    }

    /// What the engine says about the owner's reader.
    pub fn status(&self) -> ReaderStatus {
        self.reader.status()
    }

    /// The stream's figures, to be looked at from any thread.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// What the stream leaves to its sockets: RTCP, STUN, DTLS and the rest.
    pub fn side_channel(&self) -> SideChannel {
        self.engine.side_channel().clone()
    }

    /// Ends the stream: what is in the sockets is received, what is held back is published, the
    /// figures are final. What is in the ring can still be read. A second call does nothing.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.engine.stop()
    }

    /// Changes how long gaps stay open.
    ///
    /// # Errors
    /// The stream is not ordered, the ring is too small for it at the expected rate, or the stream
    /// has ended.
    pub fn set_reorder(&mut self, reorder: Duration) -> Result<(), Error> {
        if self.config.reorder.is_none() {
            let value = format!("{reorder:?}");
            return Err(Error::argument("reorder", value, "accepted: for an ordered stream"));
        }
        let ring_order = self.slot_count().ilog2() as u8;
        let config = ReceiveConfig {
            reorder: Some(reorder),
            ring_order: Some(ring_order),
            ..self.config.clone()
        };
        config.check()?;
        self.engine.set_reorder(reorder)?;
        self.config = config;
        Ok(())
    }

    /// Changes the simulated source.
    ///
    /// # Errors
    /// The stream is not simulated, a value is out of its range, or the engine has ended.
    pub fn set_simulated(&self, sim: SimConfig) -> Result<(), Error> {
        if self.config.simulated.is_none() {
            let accepted = "accepted: for a simulated stream";
            return Err(Error::argument("simulated", "of a stream with legs", accepted));
        }
        ReceiveConfig { simulated: Some(sim), ..self.config.clone() }.check()?;
        self.engine.set_simulated(sim)
    }

    /// Address and port that a leg (0 or 1) is bound to.
    pub fn local_addr(&self, leg: usize) -> Option<SocketAddr> {
        self.local.get(leg).copied()
    }

    /// What limits the stream without stopping it.
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.clone()
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

    /// Bytes of a slot.
    pub fn slot_stride(&self) -> u32 {
        self.engine.region().layout().header().slot_stride
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Whoever wanted to know has called `stop`.
        let _ = self.engine.stop();
    }
}

impl AsFd for Receiver {
    /// Readable when there is something to read since the last empty [`try_read`](Self::try_read).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
