//! The kernel engine: streams that the module `rtp_mgr` runs.
//!
//! The module does what the embedded engine's threads do. What is left for this process is opening
//! sockets, the door to other processes, and what a stream leaves to its sockets.
//!
//! | module | what lives there |
//! |---|---|
//! | `receive`, `transmit` | a receive stream, a transmit stream |
//! | `usable` | whether the module can run a stream, and why not |
//! | `wake` | how readers of such a stream wait |

pub(crate) mod receive;
pub(crate) mod transmit;
pub(crate) mod usable;
pub(crate) mod wake;

use std::io;

use rtp_mgr_ring::abi::ioctl;
use rustix::io::Errno;

use crate::attach::StreamInfo;
use crate::config::EngineKind;
use crate::device::Device;
use crate::error::Error;
use crate::stats::{Direction, StreamId};

/// A call of the device that failed, as a mistake of the stream.
fn refused(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::NOMEM) => Error::KernelEngine {
            reason: format!(
                "cannot {doing}: no memory, or more than max_ring_mb or max_user_mb of the module \
                 (`modprobe rtp_mgr max_ring_mb=MIB`)"
            ),
        },
        Some(Errno::DQUOT) => {
            let has = match Device::open().and_then(|device| device.version()) {
                Ok(version) => usable::streams(&version),
                Err(_) => "this user has as many streams as max_user_streams allows".into(),
            };
            Error::KernelEngine {
                reason: format!("cannot {doing}: {has}; {}", usable::MORE_STREAMS),
            }
        }
        Some(Errno::NOSPC) => {
            Error::argument("reader", "one more", "accepted: 16 readers at a time")
        }
        _ => Error::Os { doing, source: error },
    }
}

/// The streams that the module runs, of this user (of all users, for root).
pub(crate) fn list() -> Vec<StreamInfo> {
    let Ok(entries) = Device::open().and_then(|device| device.list()) else { return Vec::new() };
    entries
        .iter()
        .filter(|entry| u64::from(entry.state) != rtp_mgr_ring::abi::STATE_STOPPED)
        .map(info)
        .collect()
}

/// A stream of the module's that has no door of its own, by its number, to look at its figures. The text
/// of the mistake says what to do.
pub(crate) fn find(name: &str) -> Option<Result<(StreamInfo, Device), String>> {
    let info = list().into_iter().find(|info| info.id.to_string() == name)?;
    let attach = || {
        let device = Device::open()?;
        let reader = ioctl::READER_NONE;
        let mut request = ioctl::Attach { fd: -1, id: info.id.0, reader, ..Default::default() };
        device.attach(&mut request)?;
        Ok(device)
    };
    Some(match attach() {
        Ok(device) => Ok((info, device)),
        Err(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::PERM) => "its owner does not announce it: only root looks at it".into(),
            _ => error.to_string(),
        }),
    })
}

fn info(entry: &ioctl::ListEntry) -> StreamInfo {
    StreamInfo {
        id: StreamId(entry.id),
        name: None,
        engine: EngineKind::Kernel,
        direction: Direction::of(entry.direction),
        owner_pid: entry.owner_pid,
        owner_uid: entry.owner_uid,
        legs: Vec::new(),
        allow_reliable: false,
    }
}
