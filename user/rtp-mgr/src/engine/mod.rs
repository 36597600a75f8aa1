//! The embedded engine: streams served by threads of this process.
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

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::attach::StreamInfo;
use crate::config::{Engine, EngineKind};
use crate::error::{Error, Warning};
use crate::probe::DEVICE;
use crate::publish::Server;
use crate::stats::StreamId;

/// Which engine runs a stream, and why.
pub(crate) fn choose(engine: Engine) -> Result<(EngineKind, String), Error> {
    let missing = if Path::new(DEVICE).exists() {
        format!("{DEVICE} is there, but this version of the library has no kernel engine")
    } else {
        format!("{DEVICE} is not there: the module rtp_mgr is not loaded")
    };
    match engine {
        Engine::User => Ok((EngineKind::User, "asked for".into())),
        Engine::Auto => Ok((EngineKind::User, missing)),
        Engine::Kernel => Err(Error::KernelEngine { reason: missing }),
    }
}

/// The door through which other processes find a stream: it must open for one with a name, and is
/// missed but not needed for others.
fn open_door(
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
