//! A receive stream as an engine thread serves it: sockets opened and watched, readers added, ended.
//!
//! What lives here: what comes from users and from the outside, and who does the engine's work. What
//! does not: the loop body ([`super::receive`]), and waiting in the reader's call
//! ([`super::inline`]).
//!
//! One lock per stream, taken by the engine thread for each event and by users for what they ask
//! for; nothing waits while it is held, except that `stop` takes what the sockets still have.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rtp_mgr_ring::abi::{ENGINE_USER, LEGS_MAX, feature, status};
use rtp_mgr_ring::figures::FigureBlocks;
use rtp_mgr_ring::producer::Mode;
use rtp_mgr_ring::receive::{Config, Filter};
use rtp_mgr_ring::source::static_clock_rate;
use rtp_mgr_ring::staging::Order;
use rtp_mgr_ring::view::{Block, ControlView, RingView};
use rustix::event::epoll::EventFlags;

use super::inline::Inline;
use super::receive::{
    LegSockets, Parts, ReaderPort, ReceiveMemory, ReceiveStream, SideSink, address_bytes,
    slots_needed,
};
use super::simulate::Simulator;
use super::worker::{NEVER, Registration, Task, new_event, signal};
use super::{ReceiveEngine, new_id, open_door};
use crate::attach::StreamInfo;
use crate::clock::monotonic_ns;
use crate::config::{self, ReceiveConfig, SimConfig, nanos};
use crate::context::Context;
use crate::error::{Error, Warning};
use crate::handshake;
use crate::kernel::receive::may_attach;
use crate::layout::Shape;
use crate::leg::Leg;
use crate::publish::{self, Files, Host, Server};
use crate::reader::Reader;
use crate::shm::{ControlPage, Region};
use crate::side_channel::{SideChannel, SidePacket};
use crate::socket::{ReceiveOptions, ReceiveSocket, SocketWarning, buffer_for};
use crate::stats::{Direction, State};

/// How much of the expected rate the socket buffer holds while the engine is kept from running.
const SOCKET_HOLD: Duration = Duration::from_millis(200);
/// How long a reader waits in a receive call: other things than packets wait as long for it.
const PATIENCE: Duration = Duration::from_millis(4);
/// How long a stop waits for a reader that is to be back by then.
const RETURN_MAX: Duration = Duration::from_millis(500);
/// What the socket buffer is made for when nobody says: packets per second, bytes.
const RATE_DEFAULT: (f64, usize) = (10_000.0, 1_400);

/// Tags of the files: the leg's, and the leg's RTCP.
pub(crate) const TAG_RTCP: u16 = 8;
/// The timer of a reader that does the engine's work and is away.
pub(super) const TAG_AWAY: u16 = 12;

impl FigureBlocks for Region {
    fn counters(&self) -> Block<'_> {
        Region::counters(self)
    }

    fn leg(&self, leg: usize) -> Block<'_> {
        Region::leg(self, leg)
    }

    fn source(&self, at: u16) -> Block<'_> {
        Region::source(self, at.into())
    }
}

impl ReceiveMemory for Arc<Region> {
    fn ring(&self) -> RingView<'_> {
        Region::ring(self)
    }

    fn figures(&self) -> &impl FigureBlocks {
        &**self
    }

    fn reader_status(&self, reader: usize) -> Block<'_> {
        Region::reader_status(self, reader)
    }

    fn set_clock(&self, tai_offset_s: i32, valid: bool, generation: u64) {
        self.status_word(status::TAI_OFFSET_S).store(i64::from(tai_offset_s) as u64);
        self.status_word(status::TAI_VALID).store(valid.into());
        self.status_word(status::CLOCK_GENERATION).store_release(generation);
    }

    fn set_stopped(&self) {
        self.set_state(State::Stopped);
    }
}

impl SideSink for SideChannel {
    fn pass(&mut self, packet: SidePacket) {
        self.push(packet);
    }
}

/// The place of a reader in this process.
#[derive(Debug)]
pub(crate) struct OwnPort {
    page: Arc<ControlPage>,
    event: OwnedFd,
}

impl OwnPort {
    pub(crate) fn page(&self) -> &Arc<ControlPage> {
        &self.page
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The place of a reader in another process.
pub(crate) struct PeerPort {
    page: ControlPage,
    socket: Arc<OwnedFd>,
}

/// Where the engine finds a reader.
pub(crate) enum Port {
    Own(Arc<OwnPort>),
    Peer(PeerPort),
}

impl ReaderPort for Port {
    fn control(&self) -> ControlView<'_> {
        match self {
            Self::Own(port) => port.page.view(),
            Self::Peer(port) => port.page.view(),
        }
    }

    fn wake(&self) {
        match self {
            Self::Own(port) => signal(&port.event),
            Self::Peer(port) => publish::wake(port.socket.as_fd()),
        }
    }
}

pub(super) type Stream = ReceiveStream<Arc<Region>, Port, SideChannel>;

/// A receive stream.
pub(crate) struct ReceiveTask {
    region: Arc<Region>,
    side: SideChannel,
    failed: AtomicBool,
    info: StreamInfo,
    serving: Mutex<Serving>,
    /// Told when a reader has come back from a receive call and somebody waits for that.
    pub(super) returned: Condvar,
}

/// What runs while the stream does.
pub(super) struct Serving {
    pub(super) stream: Option<Stream>,
    /// A simulated stream that was stopped, whose last bytes may not be consumed yet.
    ended: Option<Stream>,
    pub(super) registration: Option<Registration>,
    server: Option<Server>,
    /// Set while the reader does the engine's work.
    pub(super) inline: Inline,
}

/// A stream that was opened.
pub(crate) struct Opened {
    pub task: Arc<ReceiveTask>,
    pub local: Vec<SocketAddr>,
    pub warnings: Vec<Warning>,
}

impl std::fmt::Debug for ReceiveTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveTask").field("region", &self.region).finish_non_exhaustive()
    }
}

impl ReceiveTask {
    /// Opens sockets and memory. Nothing is received before [`start`](Self::start).
    pub(crate) fn open(config: &ReceiveConfig, ring_order: u8) -> Result<Opened, Error> {
        let mut warnings = Vec::new();
        let gro = config.gro && !config.exact_times;
        let legs = open_legs(config, gro, &mut warnings)?;
        let local = legs.iter().map(|leg| leg.rtp.local_addr()).collect();
        let slot_count = 1_usize << ring_order;
        let region = Arc::new(Region::create(&shape(config, &legs, slot_count), config.start)?);
        let side = SideChannel::new()?;
        let mut stream = ReceiveStream::new(Parts {
            memory: region.clone(),
            slots: region.slot_memory(),
            slot_count,
            sources: config.sources as usize,
            config: core_config(config, &legs, slot_count),
            legs,
            side: side.clone(),
            max_latency_ns: nanos(config.max_latency),
        });
        if let Some(sim) = config.simulated {
            let simulator = Simulator::new(sim, region.slot_memory(), monotonic_ns());
            stream.simulate(simulator, slot_count, config.start);
        }
        let info =
            StreamInfo::of(&region, config.publish.as_ref(), &config.legs, config.allow_reliable);
        let server = open_door(&info, config.announce, &mut warnings)?;
        let serving = Mutex::new(Serving {
            stream: Some(stream),
            ended: None,
            registration: None,
            server,
            inline: Inline::new(nanos(config.busy_poll)),
        });
        let failed = AtomicBool::new(false);
        let task = Arc::new(Self { region, side, failed, info, serving, returned: Condvar::new() });
        Ok(Opened { task, local, warnings })
    }

    /// Whether the engine has ended by a mistake of its own.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn serving(&self) -> MutexGuard<'_, Serving> {
        // A task that panicked is ended by `failed`, which takes the stream away.
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader of this process; it begins at the next position to be published.
    pub(crate) fn add_own_reader(&self, reliable: bool) -> Result<(usize, Arc<OwnPort>), Error> {
        let mode = if reliable { Mode::Reliable } else { Mode::Lossy };
        let (page, _) = ControlPage::create(0)?;
        let port = Arc::new(OwnPort { page: Arc::new(page), event: new_event()? });
        let mut serving = self.serving();
        let Some(stream) = &mut serving.stream else {
            return Err(Error::argument(
                "reader",
                "of a stopped stream",
                "accepted: while it runs",
            ));
        };
        let index = stream.add_reader(mode, false, Port::Own(port.clone())).ok_or_else(|| {
            Error::argument("reader", "one more", "accepted: 16 readers at a time")
        })?;
        serving.check_inline();
        Ok((index, port))
    }

    /// Forgets a reader of this process.
    pub(crate) fn remove_own_reader(&self, index: usize) {
        let mut serving = self.serving();
        // It may be the one that does the engine's work.
        serving.end_inline();
        if let Some(stream) = &mut serving.stream {
            stream.remove_reader(index);
        }
    }

    /// A reader's file is asked for, to be waited for.
    pub(crate) fn file_is_asked_for(&self) {
        self.serving().file_is_asked_for();
    }

    /// A reader of this process has read everything of the stopped stream.
    pub(crate) fn read_to_end(&self) {
        if let Some(stream) = &mut self.serving().ended {
            stream.look_back();
        }
    }
}

impl ReceiveEngine for ReceiveTask {
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error> {
        let registration = context.serve(self.clone());
        let mut serving = self.serving();
        let Some(stream) = &serving.stream else { return Err(Error::EngineGone) };
        for leg in 0..stream.legs() {
            if let Some(socket) = stream.rtp_fd(leg) {
                registration.watch(socket, leg as u16, EventFlags::IN)?;
            }
            if let Some(socket) = stream.rtcp_fd(leg) {
                registration.watch(socket, TAG_RTCP + leg as u16, EventFlags::IN)?;
            }
        }
        if let Some(server) = &serving.server {
            server.watch(&registration)?;
        }
        self.region.set_state(State::Running);
        registration.kick();
        serving.registration = Some(registration);
        Ok(())
    }

    fn region(&self) -> &Arc<Region> {
        &self.region
    }

    fn side_channel(&self) -> &SideChannel {
        &self.side
    }

    fn subscribe(self: Arc<Self>, mode: config::Mode) -> Result<Reader, Error> {
        Reader::new(self, mode == config::Mode::Reliable, 1)
    }

    fn set_reorder(&self, reorder: Duration) -> Result<(), Error> {
        let mut serving = self.serving();
        let Some(stream) = &mut serving.stream else { return Err(Error::EngineGone) };
        stream.core().set_reorder_ns(nanos(reorder));
        serving.kick();
        Ok(())
    }

    fn set_simulated(&self, sim: SimConfig) -> Result<(), Error> {
        let mut serving = self.serving();
        let Some(stream) = &mut serving.stream else { return Err(Error::EngineGone) };
        if let Some(simulator) = stream.simulator() {
            simulator.set(sim, monotonic_ns());
        }
        serving.kick();
        Ok(())
    }

    fn stop(&self) -> Result<(), Error> {
        let mut serving = self.serving();
        let registration = serving.unwatch();
        // What a reader has taken by then is part of the stream. One that does not run (it is throttled, or in the
        // process that this one was forked from) is not waited for for ever.
        (serving, _) = self
            .returned
            .wait_timeout_while(serving, RETURN_MAX, |serving| serving.inline.is_lent())
            .unwrap_or_else(PoisonError::into_inner);
        serving.inline.forget_lent();
        if let Some(mut stream) = serving.stream.take() {
            stream.stop();
            serving.ended = Some(stream).filter(|stream| stream.is_simulated());
        }
        // Attached readers are to see the end of the stream before that of the connection.
        serving.close_door(registration);
        self.side.close();
        if self.has_failed() { Err(Error::EngineGone) } else { Ok(()) }
    }
}

impl Serving {
    fn kick(&self) {
        if let Some(registration) = &self.registration {
            registration.kick();
        }
    }

    /// Has the thread wait for no socket of this stream any more.
    fn unwatch(&mut self) -> Option<Registration> {
        self.end_inline();
        let registration = self.registration.take()?;
        if let Some(stream) = &self.stream {
            for leg in 0..stream.legs() {
                stream.rtp_fd(leg).into_iter().for_each(|socket| registration.unwatch(socket));
                stream.rtcp_fd(leg).into_iter().for_each(|socket| registration.unwatch(socket));
            }
        }
        Some(registration)
    }

    fn close_door(&mut self, registration: Option<Registration>) {
        if let (Some(server), Some(registration)) = (self.server.take(), &registration) {
            server.close(registration);
        }
    }
}

impl Task for ReceiveTask {
    fn ready(&self, tag: u16) -> u64 {
        let mut serving = self.serving();
        let Serving { stream: Some(stream), registration, server, inline, .. } = &mut *serving
        else {
            return NEVER;
        };
        if Server::has_tag(tag) {
            if let (Some(server), Some(registration)) = (server, registration) {
                server.ready(tag, registration, &mut Guests { stream, task: self });
            }
            serving.check_inline();
            return serving.deadline();
        }
        if tag == TAG_AWAY {
            serving.reader_is_away();
            return serving.deadline();
        }
        if inline.is_lent() {
            // An event from before.
            return serving.deadline();
        }
        let result = match tag {
            TAG_RTCP.. => stream.receive_rtcp(usize::from(tag - TAG_RTCP)),
            leg => stream.receive(leg.into()).map(|_| ()),
        };
        if let Err(error) = result {
            tracing::warn!(%error, tag, "receive");
        }
        serving.tell_inline();
        serving.deadline()
    }

    fn tick(&self) -> u64 {
        let mut serving = self.serving();
        let Serving { stream: Some(stream), inline, .. } = &mut *serving else { return NEVER };
        // What a reader has taken and not shown yet may be what is waited for.
        if !inline.is_lent() {
            stream.tick();
        }
        serving.tell_inline();
        serving.deadline()
    }

    fn failed(&self) {
        self.failed.store(true, Ordering::Release);
        let mut serving = self.serving();
        let registration = serving.unwatch();
        self.region.set_state(State::Stopped);
        if let Some(stream) = serving.stream.take() {
            stream.wake_all();
        }
        // There is nothing to come back to.
        serving.inline.forget_lent();
        self.returned.notify_all();
        serving.close_door(registration);
        self.side.close();
    }
}

/// The stream as readers of other processes have it.
struct Guests<'a> {
    stream: &'a mut Stream,
    task: &'a ReceiveTask,
}

impl Host for Guests<'_> {
    fn describe(&self) -> String {
        handshake::describe(&self.task.info)
    }

    fn share(&self) -> io::Result<OwnedFd> {
        self.task.region.share()
    }

    fn attach(
        &mut self,
        mode: config::Mode,
        socket: &Arc<OwnedFd>,
    ) -> Result<(usize, Files), String> {
        may_attach(&self.task.info, mode)?;
        let mode = match mode {
            config::Mode::Lossy => Mode::Lossy,
            config::Mode::Reliable => Mode::Reliable,
        };
        let ring = self.share().map_err(|error| format!("its memory: {error}"))?;
        let (page, file) = ControlPage::create(0).map_err(|error| error.to_string())?;
        let port = Port::Peer(PeerPort { page, socket: socket.clone() });
        let reader = self.stream.add_reader(mode, true, port);
        reader
            .map(|reader| (reader, vec![ring, file]))
            .ok_or_else(|| "it has 16 readers already".into())
    }

    fn detach(&mut self, reader: usize) {
        self.stream.remove_reader(reader);
    }
}

/// Opens the sockets of a stream's legs, with coalesced receive if `gro`.
pub(crate) fn open_legs(
    config: &ReceiveConfig,
    gro: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<LegSockets>, Error> {
    let (rate, packet_len) = config.expected.unwrap_or(RATE_DEFAULT);
    let options = ReceiveOptions {
        buffer: Some(config.socket_buffer.unwrap_or(buffer_for(rate, packet_len, SOCKET_HOLD))),
        gro,
        dual_stack: true,
    };
    // Without a rate nobody knows what is needed: what was granted stands in the leg's figures.
    let needed = config.expected.is_some() || config.socket_buffer.is_some();
    let mut legs = Vec::with_capacity(config.legs.len());
    for leg in &config.legs {
        let mut rtp = ReceiveSocket::open(leg, &options)?;
        if let Err(error) = rtp.wait_in_calls(PATIENCE) {
            tracing::debug!(%error, %leg, "waiting in receive calls");
        }
        for warning in rtp.warnings() {
            if needed || !matches!(warning, SocketWarning::ReceiveBuffer(_)) {
                warnings.push(Warning::new(format!("leg {leg}: {warning}")));
            }
        }
        let rtcp = if config.rtcp { open_rtcp(leg, &rtp, warnings) } else { None };
        legs.push(LegSockets { rtp: Arc::new(rtp), rtcp });
    }
    Ok(legs)
}

/// The RTCP socket one port above `rtp`, if it can be had.
fn open_rtcp(leg: &Leg, rtp: &ReceiveSocket, warnings: &mut Vec<Warning>) -> Option<ReceiveSocket> {
    let options = ReceiveOptions { dual_stack: true, ..ReceiveOptions::default() };
    let above = leg.clone().with_port(rtp.local_addr().port()).rtcp()?;
    ReceiveSocket::open(&above, &options)
        .map_err(|error| {
            warnings.push(Warning::new(format!(
                "no RTCP on the port above, so a BYE sent there is not seen: {error}"
            )));
        })
        .ok()
}

fn shape(config: &ReceiveConfig, legs: &[LegSockets], slot_count: usize) -> Shape {
    let mut features = 0;
    if config.reorder.is_some() {
        features |= feature::ORDERED;
    }
    if !legs.iter().any(|leg| leg.rtp.gro()) {
        features |= feature::EXACT_TIMES;
    }
    if config.simulated.is_some() {
        features |= feature::SIMULATED;
    }
    Shape {
        direction: Direction::Receive.abi(),
        engine: ENGINE_USER,
        features,
        slot_count: slot_count as u32,
        slot_total: slots_needed(slot_count) as u32,
        slot_stride: config.slot_stride,
        legs: legs.len() as u32,
        sources: config.sources,
        stream_id: new_id().0,
        owner_pid: std::process::id(),
        owner_uid: rustix::process::geteuid().as_raw(),
    }
}

/// A word that nobody else knows.
fn random_word() -> u64 {
    RandomState::new().hash_one(0)
}

fn core_config(config: &ReceiveConfig, legs: &[LegSockets], slot_count: usize) -> Config {
    let mut clock_rates = [0; 128];
    for (payload_type, rate) in (0..).zip(&mut clock_rates) {
        *rate = static_clock_rate(payload_type).unwrap_or(0);
    }
    for (payload_type, hz) in &config.clock_rates {
        clock_rates[usize::from(*payload_type)] = *hz;
    }
    let mut sources = [config.source_address.map(address_bytes); LEGS_MAX];
    for (source, leg) in sources.iter_mut().zip(legs) {
        *source = source.or(leg.rtp.source().map(address_bytes));
    }
    Config {
        start: config.start,
        slot_stride: config.slot_stride,
        order: config
            .reorder
            .map(|reorder| Order { reorder_ns: nanos(reorder), window: slot_count as u32 / 2 }),
        legs: legs.len().max(1) as u8,
        filter: Filter { sources, ..config.filter() },
        clock_rates,
        stall_ns: nanos(config.stall_limit),
        secret: [random_word(), random_word()],
    }
}
