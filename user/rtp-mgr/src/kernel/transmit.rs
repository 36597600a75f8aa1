//! A transmit stream of the kernel engine: opened, kicked, ended; its RTCP.
//!
//! What lives here: what this process does for such a stream. What does not: sending (the module) and
//! writing ([`crate::transmitter`]).

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtp_mgr_ring::abi::{self, SourceFigures, ioctl};

use super::receive::share;
use super::refused;
use crate::attach::StreamInfo;
use crate::clock;
use crate::config::{Mode, PacketRate, TransmitConfig};
use crate::context::Context;
use crate::device::Device;
use crate::engine::transmit::{LegSockets, Reports};
use crate::engine::transmit_task::open_legs;
use crate::engine::worker::{NEVER, Registration, Task};
use crate::engine::{TransmitEngine, open_door};
use crate::error::{Error, Warning};
use crate::handshake;
use crate::publish::{Files, Host, Server};
use crate::shm::{ControlPage, Region, Use};

/// How often it is looked whether a first packet has left.
const LOOK_NS: u64 = 500_000_000;
/// Looks at a figure that the module is writing.
const SNAPSHOT_TRIES: u32 = 1_000;

/// A transmit stream that the module runs.
pub(crate) struct KernelTransmit {
    region: Arc<Region>,
    control: Arc<ControlPage>,
    device: Device,
    info: StreamInfo,
    warnings: Vec<Warning>,
    failed: AtomicBool,
    serving: Mutex<Serving>,
}

/// What runs while the stream does.
struct Serving {
    /// None once it has stopped.
    legs: Vec<LegSockets>,
    reports: Option<Reports>,
    registration: Option<Registration>,
    server: Option<Server>,
}

/// A stream that was opened.
pub(crate) struct Opened {
    pub task: Arc<KernelTransmit>,
    pub local: Vec<SocketAddr>,
}

impl std::fmt::Debug for KernelTransmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelTransmit").field("region", &self.region).finish_non_exhaustive()
    }
}

/// What legs are asked for.
fn leg_flags(config: &TransmitConfig) -> u32 {
    let gso = if config.gso { 0 } else { ioctl::LEG_NO_GSO };
    let zerocopy = if config.zerocopy { 0 } else { ioctl::LEG_NO_ZEROCOPY };
    gso | zerocopy
}

impl KernelTransmit {
    /// Opens sockets and makes the stream. Nothing is sent before [`start`](TransmitEngine::start).
    pub(crate) fn open(
        device: Device,
        config: &TransmitConfig,
        cname: String,
    ) -> Result<Opened, Error> {
        let mut warnings = Vec::new();
        let legs = open_legs(config, &mut warnings)?;
        let local = legs.iter().map(|leg| leg.rtp.local_addr()).collect();
        device.create(&mut request(config)).map_err(refused("make a stream"))?;
        if let Some(rate) = config.rate {
            device.set(ioctl::SETTING_RATE, setting(rate)).map_err(refused("set the rate"))?;
        }
        for (number, leg) in (0..).zip(&legs) {
            let request = ioctl::AddLeg {
                fd: leg.rtp.as_fd().as_raw_fd(),
                leg: number,
                flags: leg_flags(config),
                ..Default::default()
            };
            device.add_leg(request).map_err(refused("hand a socket over"))?;
        }
        let damaged = |reason| Error::Layout { name: "(new)".into(), reason };
        let region = Arc::new(Region::of_device(&device, Use::Writer).map_err(damaged)?);
        let control = ControlPage::of_device(&device, region.layout()).map_err(damaged)?;
        let info = StreamInfo::of(&region, config.publish.as_ref(), &config.legs, false);
        let server = open_door(&info, config.announce, &mut warnings)?;
        let reports = config.rtcp.then(|| Reports::new(config.clock_rate, cname));
        let serving = Mutex::new(Serving { legs, reports, registration: None, server });
        let failed = AtomicBool::new(false);
        let control = Arc::new(control);
        let task = Arc::new(Self { region, control, device, info, warnings, failed, serving });
        Ok(Opened { task, local })
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sender of the latest packets, once there is one.
    fn sender(&self) -> Option<SourceFigures> {
        let mut words = [0; SourceFigures::WORDS];
        let whole = self.region.source(0).snapshot(&mut words, SNAPSHOT_TRIES);
        Some(SourceFigures::from_words(words)).filter(|sender| whole && sender.received > 0)
    }

    /// Sends a report or BYE, if RTCP is wanted.
    fn report(&self, serving: &mut Serving, bye: bool) {
        let Serving { legs, reports: Some(reports), .. } = serving else { return };
        let sockets = legs.iter().filter_map(|leg| leg.rtcp.as_ref());
        reports.send(self.sender(), sockets, clock::monotonic_ns(), bye);
    }
}

impl TransmitEngine for KernelTransmit {
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error> {
        let registration = context.serve(self.clone());
        let mut serving = self.serving();
        if let Some(server) = &serving.server {
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

    fn control(&self) -> &Arc<ControlPage> {
        &self.control
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn forget(&self) {
        // The file tells by level.
    }

    fn kick(&self) {
        // A stream that has stopped is not in need of it.
        let _ = self.device.kick();
    }

    fn warnings(&self) -> Vec<Warning> {
        self.warnings.clone()
    }

    fn stop(&self) -> Result<(), Error> {
        let mut serving = self.serving();
        let registration = serving.registration.take();
        if !serving.legs.is_empty() {
            if self.device.stop().is_err() {
                self.failed.store(true, Ordering::Release);
            }
            self.report(&mut serving, true);
            serving.legs.clear();
        }
        if let (Some(server), Some(registration)) = (serving.server.take(), &registration) {
            server.close(registration);
        }
        if self.failed.load(Ordering::Acquire) { Err(Error::EngineGone) } else { Ok(()) }
    }
}

impl Task for KernelTransmit {
    fn ready(&self, tag: u16) -> u64 {
        let mut serving = self.serving();
        if let (true, Serving { server: Some(server), registration: Some(registration), .. }) =
            (Server::has_tag(tag), &mut *serving)
        {
            server.ready(tag, registration, &mut Guests { task: self });
        }
        drop(serving);
        self.tick()
    }

    fn tick(&self) -> u64 {
        let mut serving = self.serving();
        let Serving { legs, reports: Some(reports), .. } = &*serving else { return NEVER };
        if legs.is_empty() || !reports.has_clock() {
            return NEVER;
        }
        let now = clock::monotonic_ns();
        if self.sender().is_none() {
            return now.saturating_add(LOOK_NS);
        }
        if reports.due(true) <= now {
            self.report(&mut serving, false);
        }
        serving.reports.as_ref().map_or(NEVER, |reports| reports.due(true))
    }

    /// The module goes on; what this process does for the stream has ended.
    fn failed(&self) {
        self.failed.store(true, Ordering::Release);
        // Its mistake is the same.
        let _ = self.stop();
    }
}

/// The stream as other processes have it: to be looked at.
struct Guests<'a> {
    task: &'a KernelTransmit,
}

impl Host for Guests<'_> {
    fn describe(&self) -> String {
        handshake::describe(&self.task.info)
    }

    fn share(&self) -> std::io::Result<OwnedFd> {
        share(&self.task.device)
    }

    fn attach(&mut self, _: Mode, _: &Arc<OwnedFd>) -> Result<(usize, Files), String> {
        Err("it is a transmit stream: only receive streams have readers".into())
    }

    fn detach(&mut self, _: usize) {}
}

fn request(config: &TransmitConfig) -> ioctl::Create {
    ioctl::Create {
        direction: abi::DIRECTION_TRANSMIT,
        ring_order: config.ring_order.into(),
        slot_stride: config.slot_stride,
        source: ioctl::SOURCE_UDP,
        reader: ioctl::READER_NONE,
        legs: config.legs.len() as u32,
        start: config.start,
        ..Default::default()
    }
}

/// A rate as the ABI has it: packets and seconds of 32 bits each. One that takes more is rounded, by
/// less than one in 10^9.
fn setting(rate: PacketRate) -> u64 {
    let (mut packets, mut seconds) = (rate.packets(), rate.seconds());
    if u32::try_from(packets).is_err() {
        // More than 2^32 packets: many seconds, so that whole packets per second are as good.
        (packets, seconds) = ((packets + seconds / 2) / seconds, 1);
    }
    packets << 32 | seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fit_the_setting() {
        let of = |packets, seconds| {
            let value = setting(PacketRate::new(packets, seconds).unwrap());
            (value >> 32, value & u64::from(u32::MAX))
        };
        assert_eq!(of(50, 1), (50, 1));
        assert_eq!(of(1, 1_000_000), (1, 1_000_000));
        assert_eq!(of(48_000_000, 1_001), (48_000_000, 1_001));
        assert_eq!(of(1_000_000_000, 1), (1_000_000_000, 1));
        assert_eq!(of(5_000_000_000_001, 10_000), (500_000_000, 1));
    }
}
