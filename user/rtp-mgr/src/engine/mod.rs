//! Who runs a stream, and the embedded engine: streams served by threads of this process.
//!
//! | module | what lives there |
//! |---|---|
//! | `worker` | a thread: epoll, timers, whom to call |
//! | `receive`, `receive_task` | a receive stream: its loop body; the stream as a thread serves it |
//! | `simulate` | the simulated DMA engine, in the place of sockets |
//! | `transmit`, `transmit_task` | a transmit stream, likewise |

pub(crate) mod receive;
pub(crate) mod receive_task;
pub(crate) mod simulate;
pub(crate) mod transmit;
pub(crate) mod transmit_task;
pub(crate) mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rtp_mgr_ring::abi::feature;

use crate::attach::StreamInfo;
use crate::config::{Engine, EngineKind, Mode, ReceiveConfig, SimConfig};
use crate::context::Context;
use crate::device::Device;
use crate::error::{Error, Warning};
use crate::kernel::receive::KernelReceive;
use crate::kernel::usable::usable;
use crate::publish::Server;
use crate::reader::Reader;
use crate::shm::Region;
use crate::side_channel::SideChannel;
use crate::stats::StreamId;
use receive_task::ReceiveTask;

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
    pub kind: EngineKind,
    pub reason: String,
    /// The owner's: it misses nothing.
    pub reader: Reader,
    pub local: Vec<SocketAddr>,
    pub warnings: Vec<Warning>,
}

/// Opens a receive stream on the engine that was asked for. With [`Engine::Auto`], what the module
/// cannot do the embedded engine does.
pub(crate) fn open_receive(config: &ReceiveConfig, ring_order: u8) -> Result<Receiving, Error> {
    let needs = match config.simulated {
        Some(_) => feature::SIMULATED,
        None => feature::UDP_RECEIVE,
    };
    let (device, mut reason) = choose(config.engine, needs)?;
    if let Some(device) = device {
        match KernelReceive::open(device, config, ring_order) {
            Ok(opened) => {
                return Ok(Receiving {
                    engine: opened.task,
                    kind: EngineKind::Kernel,
                    reason,
                    reader: opened.reader,
                    local: opened.local,
                    warnings: opened.warnings,
                });
            }
            Err(error) if config.engine == Engine::Kernel || error.is_usage() => return Err(error),
            Err(error) => reason = format!("the kernel engine cannot run it: {error}"),
        }
    }
    let opened = ReceiveTask::open(config, ring_order)?;
    let reader = Reader::new(opened.task.clone(), true, config.wake_threshold)?;
    Ok(Receiving {
        engine: opened.task,
        kind: EngineKind::User,
        reason,
        reader,
        local: opened.local,
        warnings: opened.warnings,
    })
}

/// Which engine is to run a stream that takes `needs` of the module (bits of [`feature`]): the device
/// for the kernel engine, none for the embedded one; and why.
pub(crate) fn choose(engine: Engine, needs: u64) -> Result<(Option<Device>, String), Error> {
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
