//! The kernel engine: streams that the module `rtp_mgr` runs.
//!
//! The module does what the embedded engine's threads do. What is left for this process is opening
//! sockets, the door to other processes, and what a stream leaves to its sockets.
//!
//! | module | what lives there |
//! |---|---|
//! | `receive`, `transmit` | a receive stream, a transmit stream |
//! | `wake` | how readers of such a stream wait |

pub(crate) mod receive;
pub(crate) mod transmit;
pub(crate) mod wake;

use std::io;

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR, feature, ioctl};
use rustix::io::Errno;

use crate::attach::StreamInfo;
use crate::config::EngineKind;
use crate::device::{DEVICE, Device};
use crate::error::Error;
use crate::stats::{Direction, StreamId};

/// The device, if the module can run a stream that takes `needs` (bits of [`feature`]), and what
/// there is to say of it. The text of the mistake says what to do.
pub(crate) fn usable(needs: u64) -> Result<(Device, String), String> {
    let device = Device::open().map_err(|error| not_opened(&error))?;
    let version = device.version().map_err(|error| not_ours(&error))?;
    let release = judge(&version, needs)?;
    Ok((device, format!("the module rtp_mgr {release} is loaded")))
}

/// Why the device does not open, and what to do.
fn not_opened(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => format!(
            "{DEVICE} is not there: load the module with `sudo modprobe rtp_mgr` (`rtp_app doctor` \
             says what it takes)"
        ),
        Some(Errno::ACCESS | Errno::PERM) => format!(
            "this user may not open {DEVICE}: `sudo scripts/setup.sh USER` adds one to its group"
        ),
        Some(Errno::NXIO | Errno::NODEV) => format!(
            "{DEVICE} is left over from a module that is no longer loaded: remove it, then `sudo \
             modprobe rtp_mgr`"
        ),
        _ => format!("{DEVICE} does not open: {error}"),
    }
}

fn not_ours(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOTTY | Errno::INVAL) => {
            format!("{DEVICE} is not the module's device: remove it, then `sudo modprobe rtp_mgr`")
        }
        _ => format!("{DEVICE} does not say its version: {error}"),
    }
}

/// The release of a module that fits.
fn judge(version: &ioctl::Version, needs: u64) -> Result<String, String> {
    let end = version.release.iter().position(|byte| *byte == 0).unwrap_or(version.release.len());
    let release = String::from_utf8_lossy(&version.release[..end]).into_owned();
    let (major, minor) = (version.abi_major, version.abi_minor);
    if major != ABI_MAJOR {
        let older = if major < ABI_MAJOR { "module" } else { "program" };
        return Err(format!(
            "the module rtp_mgr {release} has ABI version {major}.{minor}, this program \
             {ABI_MAJOR}.{ABI_MINOR}: update the {older}"
        ));
    }
    let lacks = [
        (feature::SIMULATED, "simulated DMA engine"),
        (feature::UDP_RECEIVE, "receive streams with UDP legs"),
        (feature::UDP_TRANSMIT, "transmit streams"),
    ]
    .into_iter()
    .find(|(bit, _)| needs & !version.features & bit != 0);
    match lacks {
        Some((_, what)) => Err(format!("the module rtp_mgr {release} has no {what}: update it")),
        None => Ok(release),
    }
}

/// A call of the device that failed, as a mistake of the stream.
fn refused(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::NOMEM) => Error::KernelEngine {
            reason: format!(
                "cannot {doing}: no memory, or more than max_ring_mb or max_user_mb of the module \
                 (`modprobe rtp_mgr max_ring_mb=MIB`)"
            ),
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u16, features: u64) -> ioctl::Version {
        let mut release = [0; 32];
        release[..5].copy_from_slice(b"9.8.7");
        ioctl::Version { abi_major: major, abi_minor: 3, features, release, ..Default::default() }
    }

    #[test]
    fn a_module_fits_by_its_major_version_and_features() {
        assert_eq!(
            judge(&version(ABI_MAJOR, feature::SIMULATED), feature::SIMULATED).unwrap(),
            "9.8.7"
        );
        let newer = judge(&version(ABI_MAJOR + 1, !0), 0).unwrap_err();
        assert!(newer.contains("9.8.7") && newer.contains("update the program"), "{newer}");
        let older = judge(&version(ABI_MAJOR - 1, !0), 0).unwrap_err();
        assert!(older.contains("update the module"), "{older}");
        let lacking = judge(&version(ABI_MAJOR, feature::SIMULATED), feature::UDP_RECEIVE);
        assert!(lacking.unwrap_err().contains("UDP legs"));
    }

    #[test]
    fn every_way_in_which_the_device_fails_has_a_remedy() {
        for (errno, remedy) in
            [(Errno::NOENT, "modprobe"), (Errno::ACCESS, "setup.sh"), (Errno::NXIO, "remove it")]
        {
            assert!(not_opened(&errno.into()).contains(remedy));
        }
        assert!(not_ours(&Errno::NOTTY.into()).contains("not the module's"));
    }
}
