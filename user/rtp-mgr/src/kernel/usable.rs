//! Whether the module can run a stream, and why not.
//!
//! What lives here: what the device answers, and what that means. What does not: why there is no
//! device ([`crate::probe`] looks for that).

use std::fmt;
use std::io;
use std::path::Path;

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR, feature, ioctl};
use rustix::io::Errno;

use crate::device::{DEVICE, Device};

/// What a module can have: the bit of [`feature`] and what to call it.
pub(crate) const ABILITIES: [(u64, &str); 3] = [
    (feature::UDP_RECEIVE, "receive streams with UDP legs"),
    (feature::UDP_TRANSMIT, "transmit streams"),
    (feature::SIMULATED, "simulated DMA engine"),
];

/// Why the module does not run a stream. Its text says what to do.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// The device does not open.
    Closed(io::Error),
    /// It opens and does not say its version.
    Mute(io::Error),
    /// Its ABI has another major version.
    Version { release: String, major: u16, minor: u16 },
    /// It lacks something that the stream needs.
    Lacks { release: String, what: &'static str },
}

impl Unusable {
    /// Whether there is no device at all.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Closed(error) if errno(error) == Some(Errno::NOENT))
    }

    /// Whether there is a node without a module behind it.
    pub(crate) fn is_stale(&self) -> bool {
        let stale = [Some(Errno::NXIO), Some(Errno::NODEV)];
        matches!(self, Self::Closed(error) if stale.contains(&errno(error)))
    }

    /// What was found.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Closed(error) => match errno(error) {
                Some(Errno::NOENT) => format!("{DEVICE} is not there"),
                Some(Errno::ACCESS | Errno::PERM) => format!("this user may not open {DEVICE}"),
                Some(Errno::NXIO | Errno::NODEV) => {
                    format!("{DEVICE} is left over from a module that is no longer loaded")
                }
                _ => format!("{DEVICE} does not open: {error}"),
            },
            Self::Mute(error) => match errno(error) {
                Some(Errno::NOTTY | Errno::INVAL) => {
                    format!("{DEVICE} is not the module's device")
                }
                _ => format!("{DEVICE} does not say its version: {error}"),
            },
            Self::Version { release, major, minor } => format!(
                "the module rtp_mgr {release} has ABI version {major}.{minor}, this program \
                 {ABI_MAJOR}.{ABI_MINOR}"
            ),
            Self::Lacks { release, what } => format!("the module rtp_mgr {release} has no {what}"),
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        let reload = "`sudo modprobe -r rtp_mgr && sudo modprobe rtp_mgr`";
        match self {
            Self::Closed(error) => match errno(error) {
                Some(Errno::NOENT) => "load the module with `sudo modprobe rtp_mgr` (`rtp_app \
                                       doctor` says what it takes)"
                    .into(),
                Some(Errno::ACCESS | Errno::PERM) => "`sudo scripts/setup.sh USER` gives the \
                                                      device to the group rtp_mgr and adds USER \
                                                      to it, from the next login on"
                    .into(),
                Some(Errno::NXIO | Errno::NODEV) => {
                    format!("`sudo rm {DEVICE}`, then `sudo modprobe rtp_mgr`")
                }
                _ => format!("load the module again: {reload}"),
            },
            Self::Mute(error) => match errno(error) {
                Some(Errno::NOTTY | Errno::INVAL) => {
                    format!("`sudo rm {DEVICE}`, then `sudo modprobe rtp_mgr`")
                }
                _ => format!("load the module again: {reload}"),
            },
            Self::Version { major, .. } if *major < ABI_MAJOR => {
                format!("update the module to the program's release and load it: {reload}")
            }
            Self::Version { .. } => "update the program to the module's release".into(),
            Self::Lacks { .. } => {
                format!("update the module to the program's release and load it: {reload}")
            }
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.detail(), self.remedy())
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// The device, if the module can run a stream that takes `needs` (bits of [`feature`]), and what
/// there is to say of it.
pub(crate) fn usable(needs: u64) -> Result<(Device, String), Unusable> {
    let device = Device::open().map_err(Unusable::Closed)?;
    let version = device.version().map_err(Unusable::Mute)?;
    judge(&version, needs)?;
    Ok((device, loaded(&version)))
}

/// What the device at `path` says of itself.
pub(crate) fn ask(path: &Path) -> Result<ioctl::Version, Unusable> {
    Device::open_at(path).map_err(Unusable::Closed)?.version().map_err(Unusable::Mute)
}

/// Whether a module fits this program, and a stream that takes `needs`.
pub(crate) fn judge(version: &ioctl::Version, needs: u64) -> Result<(), Unusable> {
    let (major, minor) = (version.abi_major, version.abi_minor);
    if major != ABI_MAJOR {
        return Err(Unusable::Version { release: release(version), major, minor });
    }
    let lacks = ABILITIES.into_iter().find(|(bit, _)| needs & !version.features & bit != 0);
    match lacks {
        Some((_, what)) => Err(Unusable::Lacks { release: release(version), what }),
        None => Ok(()),
    }
}

/// Why streams go to a module.
pub(crate) fn loaded(version: &ioctl::Version) -> String {
    format!("the module rtp_mgr {} is loaded", release(version))
}

/// What to do when a user may have no more streams.
pub(crate) const MORE_STREAMS: &str = "end some (`rtp_app list`), or load the module with more: `sudo modprobe -r rtp_mgr && sudo \
     modprobe rtp_mgr max_user_streams=NUMBER` (0: no limit)";

/// How many streams this user has, and may have.
pub(crate) fn streams(version: &ioctl::Version) -> String {
    let has = version.user_streams;
    match version.max_user_streams {
        0 => format!("streams of the module that this user has: {has}; there is no limit"),
        max => {
            format!("streams of the module that this user has: {has} of {max} (max_user_streams)")
        }
    }
}

/// Whether this user may make another stream.
pub(crate) fn has_room(version: &ioctl::Version) -> bool {
    version.max_user_streams == 0 || version.user_streams < version.max_user_streams
}

fn release(version: &ioctl::Version) -> String {
    let end = version.release.iter().position(|byte| *byte == 0).unwrap_or(version.release.len());
    String::from_utf8_lossy(&version.release[..end]).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a module of release 9.8.7 answers.
    pub(crate) fn version(major: u16, features: u64) -> ioctl::Version {
        let mut release = [0; 32];
        release[..5].copy_from_slice(b"9.8.7");
        ioctl::Version { abi_major: major, abi_minor: 3, features, release, ..Default::default() }
    }

    fn refusal(major: u16, features: u64, needs: u64) -> String {
        judge(&version(major, features), needs).unwrap_err().to_string()
    }

    #[test]
    fn a_module_fits_by_its_major_version_and_features() {
        let simulated = version(ABI_MAJOR, feature::SIMULATED);
        assert!(judge(&simulated, feature::SIMULATED).is_ok());
        assert!(loaded(&simulated).contains("rtp_mgr 9.8.7"));
        let newer = refusal(ABI_MAJOR + 1, !0, 0);
        assert!(newer.contains("9.8.7") && newer.contains("update the program"), "{newer}");
        let older = refusal(ABI_MAJOR - 1, !0, 0);
        assert!(older.contains("update the module"), "{older}");
        let lacking = refusal(ABI_MAJOR, feature::SIMULATED, feature::UDP_RECEIVE);
        assert!(lacking.contains("UDP legs") && lacking.contains("update the module"), "{lacking}");
        let lacking = refusal(ABI_MAJOR, feature::UDP_RECEIVE, feature::UDP_TRANSMIT);
        assert!(lacking.contains("transmit streams"), "{lacking}");
    }

    #[test]
    fn a_user_is_told_how_many_streams_it_has_and_may_have() {
        let with = |user_streams, max_user_streams| ioctl::Version {
            user_streams,
            max_user_streams,
            ..version(ABI_MAJOR, 0)
        };
        assert!(has_room(&with(2, 3)) && !has_room(&with(3, 3)) && has_room(&with(300, 0)));
        let full = streams(&with(3, 3));
        assert!(full.contains("3 of 3 (max_user_streams)"), "{full}");
        assert!(streams(&with(300, 0)).contains("no limit"));
    }

    #[test]
    fn every_way_in_which_the_device_fails_has_a_remedy() {
        for (errno, remedy) in [
            (Errno::NOENT, "modprobe"),
            (Errno::ACCESS, "setup.sh"),
            (Errno::PERM, "setup.sh"),
            (Errno::NXIO, "sudo rm"),
            (Errno::NODEV, "sudo rm"),
            (Errno::IO, "modprobe -r"),
        ] {
            assert!(Unusable::Closed(errno.into()).to_string().contains(remedy), "{errno}");
        }
        for (errno, words) in
            [(Errno::NOTTY, "not the module's"), (Errno::INVAL, "sudo rm"), (Errno::IO, "version")]
        {
            assert!(Unusable::Mute(errno.into()).to_string().contains(words), "{errno}");
        }
    }

    #[test]
    fn a_file_that_is_no_device_of_ours_is_told_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rtp_mgr");
        assert!(ask(&path).unwrap_err().is_absent());
        std::fs::write(&path, "").unwrap();
        let stranger = ask(&path).unwrap_err();
        assert!(!stranger.is_absent() && stranger.detail().contains("not the module's"));
    }
}
