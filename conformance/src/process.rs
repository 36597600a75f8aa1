//! What /proc tells about this process.

use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The device of the kernel engine.
const DEVICE: &str = "/dev/rtp_mgr";

/// Open file descriptors, with what they stand for.
pub(crate) fn descriptors() -> Vec<(RawFd, String)> {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let mut all: Vec<(RawFd, String)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
            Some((path.file_name()?.to_str()?.parse().ok()?, target))
        })
        // Reading the directory takes one, too.
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    all.sort();
    all
}

/// A duplicate of one of [`descriptors`].
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?)
}

/// A mapping that other processes share.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub start: u64,
    pub len: u64,
    pub writable: bool,
    /// Device and inode: the same for all mappings of one memory.
    pub inode: String,
    pub name: String,
    range: String,
}

impl Mapping {
    /// Whether it is of the kernel engine's device.
    pub(crate) fn is_device(&self) -> bool {
        self.name.starts_with(DEVICE)
    }

    /// The file behind it.
    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from("/proc/self/map_files").join(&self.range)
    }
}

/// Shared mappings of streams: memory files of the embedded engine, the device of the kernel engine.
pub(crate) fn stream_mappings() -> Vec<Mapping> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    maps.lines().filter_map(parse).collect()
}

/// A line such as
/// `7f12a000-7f12b000 rw-s 00000000 00:01 2053    /memfd:rtp_mgr control (deleted)`.
fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let permissions = fields.next()?;
    let _offset = fields.next()?;
    let inode = format!("{} {}", fields.next()?, fields.next()?);
    let name = fields.collect::<Vec<_>>().join(" ");
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let stream = name.starts_with("/memfd:") || name.starts_with(DEVICE);
    (stream && permissions.ends_with('s')).then(|| Mapping {
        start,
        len: end - start,
        writable: permissions.contains('w'),
        inode,
        name,
        range: range.to_owned(),
    })
}
