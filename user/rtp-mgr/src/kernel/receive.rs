//! A receive stream of the kernel engine: opened, steered, its readers, what it leaves to its sockets.
//!
//! What lives here: what this process does for such a stream. What does not: receiving (the module) and
//! reading ([`crate::reader`]).

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rtp_mgr_ring::abi::{self, READERS_MAX, ioctl};
use rtp_mgr_ring::header::{self, Kind};
use rtp_mgr_ring::receive::Filter;
use rustix::event::epoll::EventFlags;

use super::refused;
use super::wake::DeviceWake;
use crate::attach::StreamInfo;
use crate::clock::{self, Clock};
use crate::config::{Framing, Mode, ReceiveConfig, SimConfig, nanos};
use crate::context::Context;
use crate::device::Device;
use crate::engine::receive::{LegSockets, address_bytes};
use crate::engine::receive_task::{TAG_RTCP, open_legs};
use crate::engine::worker::{NEVER, Registration, Task};
use crate::engine::{ReceiveEngine, open_door};
use crate::error::{Error, Warning};
use crate::handshake;
use crate::net::{RecvBatch, SlotMemory};
use crate::publish::{Files, Host, Server};
use crate::reader::{Access, Copies, Reader, RingReader};
use crate::rtcp::Compound;
use crate::shm::{ControlPage, Region, Use, Window};
use crate::side_channel::{SideChannel, SidePacket};
use crate::socket::ReceiveSocket;

/// Datagrams taken from a socket at a time.
const MESSAGES_MAX: usize = 64;
/// Bytes of one that are received in place; a longer one is put together elsewhere.
const SIDE_LEN: usize = 2_048;

/// A receive stream that the module runs.
#[derive(Debug)]
pub(crate) struct KernelReceive {
    region: Arc<Region>,
    device: Arc<Device>,
    side: SideChannel,
    info: StreamInfo,
    failed: AtomicBool,
    serving: Mutex<Serving>,
}

/// What runs while the stream does.
struct Serving {
    /// Gone once it has stopped.
    sockets: Option<Sockets>,
    registration: Option<Registration>,
    server: Option<Server>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

/// The sockets of the legs, and what is read from them.
struct Sockets {
    legs: Vec<LegSockets>,
    batch: RecvBatch,
    clock: Clock,
    filter: Filter,
}

/// A stream that was opened.
pub(crate) struct Opened {
    pub task: Arc<KernelReceive>,
    pub reader: Reader,
    pub local: Vec<SocketAddr>,
    pub warnings: Vec<Warning>,
}

impl KernelReceive {
    /// Opens sockets and makes the stream. Nothing is received before [`start`](ReceiveEngine::start).
    pub(crate) fn open(
        device: Device,
        config: &ReceiveConfig,
        ring_order: u8,
    ) -> Result<Opened, Error> {
        let mut warnings = Vec::new();
        // Has network devices coalesce packets, and the module take them whole.
        let gro = config.gro && !config.exact_times;
        let legs = open_legs(config, gro, &mut warnings)?;
        let local = legs.iter().map(|leg| leg.rtp.local_addr()).collect();
        let mut request = request(config, ring_order);
        device.create(&mut request).map_err(refused("make a stream"))?;
        configure(&device, config)?;
        hand_over(&device, &legs, config)?;
        let damaged = |reason| Error::Layout { name: "(new)".into(), reason };
        let region = Arc::new(Region::of_device(&device, Use::Owner).map_err(damaged)?);
        let info =
            StreamInfo::of(&region, config.publish.as_ref(), &config.legs, config.allow_reliable);
        let server = open_door(&info, config.announce, &mut warnings)?;
        let sockets = Some(Sockets::new(legs, config.filter()));
        let task = Arc::new(Self {
            device: Arc::new(device),
            side: SideChannel::new()?,
            failed: AtomicBool::new(false),
            serving: Mutex::new(Serving { sockets, registration: None, server }),
            info,
            region,
        });
        let reader = task.reader(
            task.device.clone(),
            request.reader_index,
            Mode::Reliable,
            config.wake_threshold,
        )?;
        Ok(Opened { task, reader, local, warnings })
    }

    /// The reader that `device` is.
    fn reader(
        self: &Arc<Self>,
        device: Arc<Device>,
        index: u32,
        mode: Mode,
        threshold: u32,
    ) -> Result<Reader, Error> {
        let damaged = |reason| Error::Layout { name: self.info.id.to_string(), reason };
        let page = ControlPage::of_device(&device, self.region.layout()).map_err(damaged)?;
        let access = match mode {
            // The module counts readers of the owner's process as reliable and never demotes them,
            // and forgets this one when its file is closed: after the reader is gone.
            Mode::Reliable => Access::Borrow(Window::new(self.region.clone())),
            Mode::Lossy => Access::Copy(Copies::new(&self.region)),
        };
        let index = (index as usize).min(READERS_MAX - 1);
        let (region, page) = (self.region.clone(), Arc::new(page));
        let ring = RingReader::new(region, index, page, access, DeviceWake(device), threshold);
        Ok(Reader::of_module(ring))
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what one of the sockets has: what the module left there.
    fn hear(&self, sockets: &mut Sockets, leg: usize, rtcp_port: bool) {
        let heard = match sockets.take(leg, rtcp_port, &self.side) {
            Ok(heard) => heard,
            Err(error) => return tracing::warn!(%error, leg, "receive"),
        };
        for heard in heard {
            // A stream that has stopped meanwhile takes no more news.
            let _ = self.device.heard(heard);
        }
    }
}

impl ReceiveEngine for KernelReceive {
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error> {
        let registration = context.serve(self.clone());
        let mut serving = self.serving();
        let Serving { sockets: Some(sockets), server, .. } = &*serving else {
            return Err(Error::EngineGone);
        };
        for (tag, leg) in (0..).zip(&sockets.legs) {
            registration.watch(&leg.rtp, tag, EventFlags::IN)?;
            if let Some(rtcp) = &leg.rtcp {
                registration.watch(rtcp, TAG_RTCP + tag, EventFlags::IN)?;
            }
        }
        if let Some(server) = server {
            server.watch(&registration)?;
        }
        self.device.start().map_err(refused("start the stream"))?;
        // Not before: who did not start is not stopped either, and would hold its worker for ever.
        serving.registration = Some(registration);
        Ok(())
    }

    fn region(&self) -> &Arc<Region> {
        &self.region
    }

    fn side_channel(&self) -> &SideChannel {
        &self.side
    }

    fn subscribe(self: Arc<Self>, mode: Mode) -> Result<Reader, Error> {
        if self.serving().sockets.is_none() {
            let accepted = "accepted: while it runs";
            return Err(Error::argument("reader", "of a stopped stream", accepted));
        }
        let (device, index) =
            attach(&self.device, mode, ioctl::ATTACH_OWN).map_err(refused("add a reader"))?;
        self.reader(Arc::new(device), index, mode, 1)
    }

    fn set_reorder(&self, reorder: Duration) -> Result<(), Error> {
        self.set_all(&[(ioctl::SETTING_REORDER_NS, nanos(reorder))])
    }

    fn set_simulated(&self, sim: SimConfig) -> Result<(), Error> {
        self.set_all(&[
            (ioctl::SETTING_PACKET_LEN, u64::from(packet_len(&sim))),
            (ioctl::SETTING_BURST, u64::from(sim.burst)),
            (ioctl::SETTING_INTERVAL_NS, nanos(sim.interval)),
        ])
    }

    fn stop(&self) -> Result<(), Error> {
        let mut serving = self.serving();
        let registration = serving.registration.take();
        if let Some(mut sockets) = serving.sockets.take() {
            for leg in 0..sockets.legs.len() {
                if let Some(registration) = &registration {
                    sockets.unwatch(leg, registration);
                }
                self.hear(&mut sockets, leg, false);
                self.hear(&mut sockets, leg, true);
            }
            if self.device.stop().is_err() {
                self.failed.store(true, Ordering::Release);
            }
        }
        // Attached readers are to see the end of the stream before that of the connection.
        if let (Some(server), Some(registration)) = (serving.server.take(), &registration) {
            server.close(registration);
        }
        self.side.close();
        if self.failed.load(Ordering::Acquire) { Err(Error::EngineGone) } else { Ok(()) }
    }
}

impl KernelReceive {
    fn set_all(&self, settings: &[(u32, u64)]) -> Result<(), Error> {
        if self.serving().sockets.is_none() {
            return Err(Error::EngineGone);
        }
        let mut settings = settings.iter();
        settings.try_for_each(|(key, value)| {
            self.device.set(*key, *value).map_err(refused("change a setting"))
        })
    }
}

impl Task for KernelReceive {
    fn ready(&self, tag: u16) -> u64 {
        let mut serving = self.serving();
        let Serving { sockets: Some(sockets), registration, server } = &mut *serving else {
            return NEVER;
        };
        if Server::has_tag(tag) {
            if let (Some(server), Some(registration)) = (server, registration) {
                server.ready(tag, registration, &mut Guests { task: self });
            }
        } else {
            let rtcp_port = tag >= TAG_RTCP;
            let leg = if rtcp_port { tag - TAG_RTCP } else { tag };
            self.hear(sockets, leg.into(), rtcp_port);
        }
        NEVER
    }

    fn tick(&self) -> u64 {
        NEVER
    }

    /// The module goes on; what this process does for the stream has ended.
    fn failed(&self) {
        self.failed.store(true, Ordering::Release);
        // Its mistake is the same.
        let _ = self.stop();
    }
}

impl Sockets {
    fn new(legs: Vec<LegSockets>, filter: Filter) -> Self {
        let slots = SlotMemory::private(MESSAGES_MAX as u32, SIDE_LEN);
        let mut batch = RecvBatch::new(slots, MESSAGES_MAX, 1);
        let mut next = 0..MESSAGES_MAX as u32;
        batch.fill(|| next.next());
        Self { legs, batch, clock: Clock::new(), filter }
    }

    fn unwatch(&self, leg: usize, registration: &Registration) {
        let Some(leg) = self.legs.get(leg) else { return };
        registration.unwatch(&leg.rtp);
        leg.rtcp.iter().for_each(|socket| registration.unwatch(socket));
    }

    /// Passes on what a socket has. Returns what the module is to know of it.
    fn take(
        &mut self,
        leg: usize,
        rtcp_port: bool,
        side: &SideChannel,
    ) -> std::io::Result<Vec<ioctl::Heard>> {
        let mut heard = Vec::new();
        let socket: Option<&ReceiveSocket> = self
            .legs
            .get(leg)
            .and_then(|leg| if rtcp_port { leg.rtcp.as_ref() } else { Some(&leg.rtp) });
        let Some(socket) = socket else { return Ok(heard) };
        let mut passed = [0; 4];
        self.batch.fill(|| None);
        self.batch.receive(socket)?;
        let now = clock::monotonic_ns();
        while let Some(arrived) = self.batch.next_packet(|| None) {
            // RTP has no business on the RTCP port. On the leg's own it is that of others, or was there
            // before the module took over, which counts what it leaves there.
            let classified = header::classify(arrived.bytes);
            let others = !rtcp_port && self.filter.leaves(arrived.bytes);
            let kind = match classified {
                Kind::Rtp if !others => Kind::Other,
                kind => kind,
            };
            if rtcp_port || (classified == Kind::Rtp && !others) {
                passed[place(kind)] += 1;
            }
            let compound = Compound::parse(arrived.whole).filter(|_| kind == Kind::Rtcp);
            let arrival = self.clock.arrival(arrived.info.realtime_ns.unwrap_or(0), now);
            heard.extend(compound.into_iter().flat_map(|compound| compound.byes).map(|ssrc| {
                let (flags, arrival_ns) = (ioctl::HEARD_BYE, arrival.monotonic_ns);
                ioctl::Heard { leg: leg as u32, flags, ssrc, arrival_ns, ..Default::default() }
            }));
            side.push(SidePacket {
                kind,
                leg: leg as u8,
                rtcp_port,
                from: arrived.info.from,
                time_ns: arrival.tai_ns,
                bytes: arrived.whole.into(),
            });
        }
        if passed != [0; 4] {
            heard.insert(0, ioctl::Heard { leg: leg as u32, passed, ..Default::default() });
        }
        Ok(heard)
    }
}

/// Where a kind is counted in [`ioctl::Heard::passed`].
fn place(kind: Kind) -> usize {
    match kind {
        Kind::Rtcp => 0,
        Kind::Stun => 1,
        Kind::Dtls => 2,
        Kind::Rtp | Kind::Other => 3,
    }
}

/// A new file of the device that is part of the stream of `owner`. Returns it and its place among the
/// readers.
fn attach(owner: &Device, mode: Mode, flags: u32) -> std::io::Result<(Device, u32)> {
    let reader = match mode {
        Mode::Reliable => ioctl::READER_RELIABLE,
        Mode::Lossy => ioctl::READER_LOSSY,
    };
    attach_as(owner, reader, flags)
}

fn attach_as(owner: &Device, reader: u32, flags: u32) -> std::io::Result<(Device, u32)> {
    let device = Device::open()?;
    let fd = owner.as_fd().as_raw_fd();
    let mut request = ioctl::Attach { fd, reader, flags, ..Default::default() };
    device.attach(&mut request)?;
    Ok((device, request.reader_index))
}

/// The stream as readers of other processes have it: each gets a file of the device that was attached
/// for it, never the owner's.
struct Guests<'a> {
    task: &'a KernelReceive,
}

impl Host for Guests<'_> {
    fn describe(&self) -> String {
        handshake::describe(&self.task.info)
    }

    fn share(&self) -> std::io::Result<OwnedFd> {
        share(&self.task.device)
    }

    fn attach(&mut self, mode: Mode, _: &Arc<OwnedFd>) -> Result<(usize, Files), String> {
        may_attach(&self.task.info, mode)?;
        let (device, reader) = attach(&self.task.device, mode, 0)
            .map_err(|error| refused("add a reader")(error).to_string())?;
        Ok((reader as usize, vec![device.into()]))
    }

    fn detach(&mut self, _: usize) {
        // Its file is closed: the module knows.
    }
}

/// A file to look at a stream's figures through.
pub(crate) fn share(owner: &Device) -> std::io::Result<OwnedFd> {
    attach_as(owner, ioctl::READER_NONE, 0).map(|(device, _)| device.into())
}

/// Whether readers of other processes may attach so. The text of the mistake says what to do.
pub(crate) fn may_attach(info: &StreamInfo, mode: Mode) -> Result<(), String> {
    if info.name.is_none() {
        return Err("its owner has not published it under a name".into());
    }
    if mode == Mode::Reliable && !info.allow_reliable {
        return Err("its owner does not allow reliable readers (allow_reliable); attach without \
                    asking for it"
            .into());
    }
    Ok(())
}

/// Bytes of a simulated packet, its framing included.
fn packet_len(sim: &SimConfig) -> u32 {
    match sim.framing {
        Framing::Raw => sim.packet_len,
        Framing::Rtp => sim.packet_len.saturating_add(header::FIXED_LEN as u32),
    }
}

fn request(config: &ReceiveConfig, ring_order: u8) -> ioctl::Create {
    let mut flags = 0;
    if config.reorder.is_some() {
        flags |= ioctl::CREATE_ORDERED;
    }
    if config.ssrc.is_some() {
        flags |= ioctl::CREATE_SSRC;
    }
    if config.payload_type.is_some() {
        flags |= ioctl::CREATE_PAYLOAD_TYPE;
    }
    if config.leave_others {
        flags |= ioctl::CREATE_LEAVE_OTHERS;
    }
    if config.simulated.is_none() && (config.exact_times || !config.gro) {
        flags |= ioctl::CREATE_EXACT_TIMES;
    }
    let mut request = ioctl::Create {
        direction: abi::DIRECTION_RECEIVE,
        flags,
        ring_order: ring_order.into(),
        slot_stride: config.slot_stride,
        sources: config.sources,
        source: ioctl::SOURCE_UDP,
        reader: ioctl::READER_RELIABLE,
        legs: config.legs.len() as u32,
        reorder_ns: config.reorder.map_or(0, nanos),
        start: config.start,
        ssrc: config.ssrc.unwrap_or(0),
        payload_type: config.payload_type.unwrap_or(0).into(),
        ..Default::default()
    };
    if let Some(sim) = &config.simulated {
        request.source = ioctl::SOURCE_SIMULATED;
        request.pattern = match sim.framing {
            Framing::Raw => ioctl::PATTERN_RAW,
            Framing::Rtp => ioctl::PATTERN_RTP,
        };
        request.packet_len = packet_len(sim);
        request.burst = sim.burst;
        request.interval_ns = nanos(sim.interval);
    }
    request
}

fn configure(device: &Device, config: &ReceiveConfig) -> Result<(), Error> {
    // Less than a microsecond is no time at all, and 0 would be for ever.
    let max_latency_us = config.max_latency.as_micros().clamp(1, 10_000_000) as u64;
    let settings = [
        (ioctl::SETTING_MAX_LATENCY_US, max_latency_us),
        (ioctl::SETTING_STALL_NS, nanos(config.stall_limit).max(1_000_000)),
        (ioctl::SETTING_ALLOW_RELIABLE, config.allow_reliable.into()),
    ];
    let clock_rates = config.clock_rates.iter().map(|(payload_type, hz)| {
        (ioctl::SETTING_CLOCK_RATE, u64::from(*payload_type) << 32 | u64::from(*hz))
    });
    for (key, value) in settings.into_iter().chain(clock_rates) {
        device.set(key, value).map_err(refused("configure the stream"))?;
    }
    Ok(())
}

/// Gives the sockets of the legs to the module.
fn hand_over(device: &Device, legs: &[LegSockets], config: &ReceiveConfig) -> Result<(), Error> {
    for (number, leg) in (0..).zip(legs) {
        let source = config.source_address.or(leg.rtp.source()).map(address_bytes);
        let request = ioctl::AddLeg {
            fd: leg.rtp.as_fd().as_raw_fd(),
            leg: number,
            flags: if source.is_some() { ioctl::LEG_SOURCE } else { 0 },
            source: source.unwrap_or_default(),
            ..Default::default()
        };
        device.add_leg(request).map_err(refused("hand a socket over"))?;
    }
    Ok(())
}
