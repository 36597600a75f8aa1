//! A transmit stream as an engine thread serves it: sockets opened, kicks and deadlines, its end.
//!
//! What lives here: what comes from the writer and from the outside. What does not: the loop body
//! ([`super::transmit`]).
//!
//! One lock per stream, taken by the engine thread for each event and by the writer only to end the
//! stream; committing takes none.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtp_mgr_ring::abi::{ENGINE_USER, LEGS_MAX};
use rtp_mgr_ring::pace::{Pacer, Rate};
use rustix::event::epoll::EventFlags;

use super::transmit::{LegSockets, Parts, TransmitStream};
use super::worker::{NEVER, Registration, Task, drain, new_event, signal};
use super::{TransmitEngine, new_id, open_door};
use crate::attach::StreamInfo;
use crate::config::{Mode, TransmitConfig};
use crate::context::Context;
use crate::error::{Error, Warning};
use crate::handshake;
use crate::layout::Shape;
use crate::leg::Leg;
use crate::publish::{Files, Host, Server};
use crate::shm::{ControlPage, Region};
use crate::socket::{TransmitOptions, TransmitSocket};
use crate::stats::{Direction, State};

/// Tags of the files: the writer's kick, and the legs from here on.
const TAG_KICK: u16 = 0;
const TAG_LEG: u16 = 1;

/// A transmit stream.
pub(crate) struct TransmitTask {
    region: Arc<Region>,
    control: Arc<ControlPage>,
    /// Tells the writer that positions are free.
    event: Arc<OwnedFd>,
    /// Tells the engine that positions were committed.
    kick: OwnedFd,
    failed: AtomicBool,
    info: StreamInfo,
    serving: Mutex<Serving>,
}

/// What runs while the stream does.
struct Serving {
    stream: Option<TransmitStream>,
    registration: Option<Registration>,
    server: Option<Server>,
    /// Legs whose sockets were waited for before.
    watched: [bool; LEGS_MAX],
    warnings: Vec<Warning>,
}

/// A stream that was opened.
pub(crate) struct Opened {
    pub task: Arc<TransmitTask>,
    pub local: Vec<SocketAddr>,
}

impl std::fmt::Debug for TransmitTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransmitTask").field("region", &self.region).finish_non_exhaustive()
    }
}

impl TransmitTask {
    /// Opens sockets and memory. Nothing is sent before [`start`](Self::start).
    pub(crate) fn open(config: &TransmitConfig, cname: String) -> Result<Opened, Error> {
        let mut warnings = Vec::new();
        let legs = open_legs(config, &mut warnings)?;
        let local = legs.iter().map(|leg| leg.rtp.local_addr()).collect();
        let region = Arc::new(Region::create(&shape(config), config.start)?);
        let (control, _) = ControlPage::create(config.start)?;
        let control = Arc::new(control);
        let event = Arc::new(new_event()?);
        let rate = config.rate.and_then(|rate| Rate::new(rate.packets(), rate.seconds()));
        let stream = TransmitStream::new(Parts {
            region: region.clone(),
            slots: (0..legs.len()).map(|_| region.slot_memory()).collect(),
            legs,
            start: config.start,
            pacer: rate.map(Pacer::new),
            gso: config.gso,
            control: control.clone(),
            event: event.clone(),
            report: config.rtcp.then_some((config.clock_rate, cname)),
        });
        let info = StreamInfo::of(&region, config.publish.as_ref(), &config.legs, false);
        let server = open_door(&info, config.announce, &mut warnings)?;
        let serving = Mutex::new(Serving {
            stream: Some(stream),
            registration: None,
            server,
            watched: [false; LEGS_MAX],
            warnings,
        });
        let failed = AtomicBool::new(false);
        let kick = new_event()?;
        let task = Arc::new(Self { region, control, event, kick, failed, info, serving });
        Ok(Opened { task, local })
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        // A task that panicked is ended by `failed`, which takes the stream away.
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> u64 {
        let mut serving = self.serving();
        let serving = &mut *serving;
        let Some(stream) = &mut serving.stream else { return NEVER };
        let next = stream.run();
        serving.warnings.extend(stream.take_warnings());
        for leg in 0..stream.legs() {
            if stream.is_blocked(leg)
                && let Some(socket) = stream.fd(leg)
                && let Some(registration) = &serving.registration
            {
                // Once: a socket with an error would be ready for ever.
                let flags = EventFlags::OUT | EventFlags::ONESHOT;
                let tag = TAG_LEG + leg as u16;
                let watched = match std::mem::replace(&mut serving.watched[leg], true) {
                    true => registration.change(socket, tag, flags),
                    false => registration.watch(socket, tag, flags),
                };
                if let Err(error) = watched {
                    // The retry timer does it, later.
                    tracing::warn!(%error, leg, "transmit");
                }
            }
        }
        next
    }
}

impl TransmitEngine for TransmitTask {
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error> {
        let registration = context.serve(self.clone());
        registration.watch(&self.kick, TAG_KICK, EventFlags::IN)?;
        let mut serving = self.serving();
        if let Some(server) = &serving.server {
            server.watch(&registration)?;
        }
        self.region.set_state(State::Running);
        serving.registration = Some(registration);
        Ok(())
    }

    fn region(&self) -> &Arc<Region> {
        &self.region
    }

    fn control(&self) -> &Arc<ControlPage> {
        &self.control
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn forget(&self) {
        drain(&*self.event);
    }

    fn kick(&self) {
        signal(&self.kick);
    }

    fn warnings(&self) -> Vec<Warning> {
        self.serving().warnings.clone()
    }

    fn stop(&self) -> Result<(), Error> {
        let mut serving = self.serving();
        serving.unwatch(&self.kick);
        if let Some(mut stream) = serving.stream.take() {
            stream.stop();
        }
        if self.failed.load(Ordering::Acquire) { Err(Error::EngineGone) } else { Ok(()) }
    }
}

impl Serving {
    /// Has the thread wait for nothing of this stream any more.
    fn unwatch(&mut self, kick: &OwnedFd) {
        let Some(registration) = self.registration.take() else { return };
        registration.unwatch(kick);
        if let Some(server) = self.server.take() {
            server.close(&registration);
        }
        let Some(stream) = &self.stream else { return };
        for leg in (0..stream.legs()).filter(|leg| self.watched[*leg]) {
            stream.fd(leg).into_iter().for_each(|socket| registration.unwatch(socket));
        }
    }
}

impl Task for TransmitTask {
    fn ready(&self, tag: u16) -> u64 {
        if tag == TAG_KICK {
            drain(&self.kick);
        }
        if Server::has_tag(tag) {
            let mut serving = self.serving();
            if let Serving { server: Some(server), registration: Some(registration), .. } =
                &mut *serving
            {
                server.ready(tag, registration, &mut Guests { task: self });
            }
        }
        self.run()
    }

    fn tick(&self) -> u64 {
        self.run()
    }

    /// Packets leave when they are due.
    fn is_exact(&self) -> bool {
        true
    }

    fn failed(&self) {
        self.failed.store(true, Ordering::Release);
        let mut serving = self.serving();
        serving.unwatch(&self.kick);
        self.region.set_state(State::Stopped);
        if let Some(stream) = serving.stream.take() {
            stream.wake();
        }
    }
}

/// The stream as other processes have it: to be looked at.
struct Guests<'a> {
    task: &'a TransmitTask,
}

impl Host for Guests<'_> {
    fn describe(&self) -> String {
        handshake::describe(&self.task.info)
    }

    fn share(&self) -> io::Result<OwnedFd> {
        self.task.region.share()
    }

    fn attach(&mut self, _: Mode, _: &Arc<OwnedFd>) -> Result<(usize, Files), String> {
        Err("it is a transmit stream: only receive streams have readers".into())
    }

    fn detach(&mut self, _: usize) {}
}

/// Opens the sockets of a stream's legs.
pub(crate) fn open_legs(
    config: &TransmitConfig,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<LegSockets>, Error> {
    let options = TransmitOptions {
        buffer: config.socket_buffer,
        ttl: config.ttl.map(u32::from),
        dscp: config.dscp.map(u32::from),
        source_port: config.source_port,
    };
    let mut legs = Vec::with_capacity(config.legs.len());
    for leg in &config.legs {
        let leg = match (&config.interface, leg.interface()) {
            (Some(name), None) => leg.clone().with_interface(name)?,
            _ => leg.clone(),
        };
        let rtp = TransmitSocket::open(&leg, &options)?;
        for warning in rtp.warnings() {
            warnings.push(Warning::new(format!("leg {leg}: {warning}")));
        }
        let rtcp = if config.rtcp { open_rtcp(&leg, &options, warnings) } else { None };
        legs.push(LegSockets { rtp, rtcp });
    }
    Ok(legs)
}

/// The socket to the port above, from the port above.
fn open_rtcp(
    leg: &Leg,
    options: &TransmitOptions,
    warnings: &mut Vec<Warning>,
) -> Option<TransmitSocket> {
    let above = leg.rtcp()?;
    let source_port = match options.source_port {
        0 => 0,
        port => port.checked_add(1)?,
    };
    let options = TransmitOptions { buffer: None, source_port, ..options.clone() };
    TransmitSocket::open(&above, &options)
        .map_err(|error| {
            warnings.push(Warning::new(format!(
                "no RTCP is sent, so receivers are not told of the end: {error}"
            )));
        })
        .ok()
}

fn shape(config: &TransmitConfig) -> Shape {
    let slot_count = 1 << config.ring_order;
    Shape {
        direction: Direction::Transmit.abi(),
        engine: ENGINE_USER,
        features: 0,
        slot_count,
        slot_total: slot_count,
        slot_stride: config.slot_stride,
        legs: config.legs.len() as u32,
        sources: 1,
        stream_id: new_id().0,
        owner_pid: std::process::id(),
        owner_uid: rustix::process::geteuid().as_raw(),
    }
}
