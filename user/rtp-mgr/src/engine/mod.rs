//! Who runs a stream, and the embedded engine: streams served by threads of this process.
//!
//! | module | what lives there |
//! |---|---|
//! | `worker` | a thread: epoll, timers, whom to call |
//! | `lead` | how early that thread gets up for a deadline |
//! | `receive`, `receive_task` | a receive stream: its loop body; the stream as a thread serves it |
//! | `simulate` | the simulated DMA engine, in the place of sockets |
//! | `transmit`, `transmit_task` | a transmit stream, likewise |

mod expect;
pub(crate) mod inline;
mod lead;
mod meter;
pub(crate) mod receive;
pub(crate) mod receive_task;
pub(crate) mod simulate;
pub(crate) mod transmit;
pub(crate) mod transmit_task;
pub(crate) mod worker;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rtp_mgr_ring::abi::feature;

use crate::attach::StreamInfo;
use crate::config::{Engine, EngineKind, Mode, ReceiveConfig, SimConfig, TransmitConfig};
use crate::context::Context;
use crate::device::Device;
use crate::error::{Error, Warning};
use crate::kernel::receive::KernelReceive;
use crate::kernel::transmit::KernelTransmit;
use crate::kernel::usable::usable;
use crate::publish::Server;
use crate::reader::Reader;
use crate::shm::{ControlPage, Region};
use crate::side_channel::SideChannel;
use crate::stats::StreamId;
use receive_task::ReceiveTask;
use transmit_task::TransmitTask;

/// A receive stream, whoever runs it, as its owner's handle steers it.
pub(crate) trait ReceiveEngine: std::fmt::Debug + Send + Sync {
    /// Begins to receive.
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error>;

    fn region(&self) -> &Arc<Region>;

    fn side_channel(&self) -> &SideChannel;

    /// A further reader of this process; it begins at the next position to be published.
    fn subscribe(self: Arc<Self>, mode: Mode) -> Result<Reader, Error>;

    /// Changes how long gaps stay open.
    fn set_reorder(&self, reorder: Duration) -> Result<(), Error>;

    /// Changes the simulated source.
    fn set_simulated(&self, sim: SimConfig) -> Result<(), Error>;

    /// Ends the stream. What is in the ring stays. `Err`: the engine had ended by a mistake of its
    /// own.
    fn stop(&self) -> Result<(), Error>;
}

/// A receive stream that was opened and not started.
pub(crate) struct Receiving {
    pub engine: Arc<dyn ReceiveEngine>,
    /// The owner's: it misses nothing.
    pub reader: Reader,
    pub local: Vec<SocketAddr>,
    pub warnings: Vec<Warning>,
}

/// Opens a receive stream on the engine that was asked for.
pub(crate) fn open_receive(
    config: &ReceiveConfig,
    ring_order: u8,
) -> Result<(Receiving, Ran), Error> {
    let needs = match config.simulated {
        Some(_) => feature::SIMULATED,
        None => feature::UDP_RECEIVE,
    };
    let kernel = |device| {
        let opened = KernelReceive::open(device, config, ring_order)?;
        Ok(Receiving {
            engine: opened.task,
            reader: opened.reader,
            local: opened.local,
            warnings: opened.warnings,
        })
    };
    let (engine, why) = match (config.engine, config.busy_poll.is_zero()) {
        (Engine::Auto, false) => (Engine::User, Some("busy_poll takes the embedded engine")),
        (engine, _) => (engine, None),
    };
    let opened = on_either(engine, needs, kernel, || {
        let opened = ReceiveTask::open(config, config.hold_order(ring_order))?;
        let reader = Reader::new(opened.task.clone(), true, config.wake_threshold)?;
        Ok(Receiving {
            engine: opened.task,
            reader,
            local: opened.local,
            warnings: opened.warnings,
        })
    });
    opened.map(|(stream, (kind, reason))| (stream, (kind, why.map_or(reason, str::to_owned))))
}

/// A transmit stream, whoever runs it, as its writer's handle uses it.
pub(crate) trait TransmitEngine: std::fmt::Debug + Send + Sync {
    /// Begins to send.
    fn start(self: Arc<Self>, context: &Context) -> Result<(), Error>;

    fn region(&self) -> &Arc<Region>;

    /// The writer's control page.
    fn control(&self) -> &Arc<ControlPage>;

    /// Readable when positions that the writer waits for are free.
    fn event(&self) -> BorrowedFd<'_>;

    /// Forgets what that file told so far.
    fn forget(&self);

    /// Wakes the engine: there is something new.
    fn kick(&self);

    /// What limits the stream.
    fn warnings(&self) -> Vec<Warning>;

    /// Ends the stream: what is not sent is given up. `Err`: the engine had ended by a mistake of its
    /// own.
    fn stop(&self) -> Result<(), Error>;
}

/// A transmit stream that was opened and not started.
pub(crate) struct Transmitting {
    pub engine: Arc<dyn TransmitEngine>,
    pub local: Vec<SocketAddr>,
}

/// Opens a transmit stream on the engine that was asked for.
pub(crate) fn open_transmit(
    config: &TransmitConfig,
    cname: &str,
) -> Result<(Transmitting, Ran), Error> {
    let kernel = |device| {
        let opened = KernelTransmit::open(device, config, cname.to_owned())?;
        Ok(Transmitting { engine: opened.task, local: opened.local })
    };
    on_either(config.engine, feature::UDP_TRANSMIT, kernel, || {
        let opened = TransmitTask::open(config, cname.to_owned())?;
        Ok(Transmitting { engine: opened.task, local: opened.local })
    })
}

/// Who runs a stream, and why.
pub(crate) type Ran = (EngineKind, String);

/// Opens a stream that takes `needs` of the module (bits of [`feature`]) on the engine that was asked
/// for. With [`Engine::Auto`], what the module cannot run the embedded engine does.
fn on_either<T>(
    engine: Engine,
    needs: u64,
    kernel: impl FnOnce(Device) -> Result<T, Error>,
    user: impl FnOnce() -> Result<T, Error>,
) -> Result<(T, Ran), Error> {
    let (device, mut reason) = choose(engine, needs)?;
    if let Some(device) = device {
        match kernel(device) {
            Ok(stream) => return Ok((stream, (EngineKind::Kernel, reason))),
            Err(error) if engine == Engine::Kernel || error.is_usage() => return Err(error),
            Err(error) => reason = format!("the kernel engine cannot run it: {error}"),
        }
    }
    Ok((user()?, (EngineKind::User, reason)))
}

/// Which engine is to run a stream that takes `needs` of the module (bits of [`feature`]): the device
/// for the kernel engine, none for the embedded one; and why.
fn choose(engine: Engine, needs: u64) -> Result<(Option<Device>, String), Error> {
    match engine {
        Engine::User => Ok((None, "asked for".into())),
        Engine::Auto => match usable(needs) {
            Ok((device, reason)) => Ok((Some(device), reason)),
            Err(reason) => Ok((None, reason.to_string())),
        },
        Engine::Kernel => match usable(needs) {
            Ok((device, _)) => Ok((Some(device), "asked for".into())),
            Err(reason) => Err(Error::KernelEngine { reason: reason.to_string() }),
        },
    }
}

/// The door through which other processes find a stream: it must open for one with a name, and is
/// missed but not needed for others.
pub(crate) fn open_door(
    info: &StreamInfo,
    announce: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Server>, Error> {
    match &info.name {
        Some(name) => Server::open(name).map(Some),
        None if announce => Ok(Server::open(&info.id.to_string())
            .map_err(|error| warnings.push(Warning::new(format!("not listed: {error}"))))
            .ok()),
        None => Ok(None),
    }
}

/// A number for a new stream.
pub(crate) fn new_id() -> StreamId {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    StreamId(u64::from(std::process::id()) << 32 | u64::from(count))
}
