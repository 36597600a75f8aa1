//! The kernel engine's device: its calls, typed.
//!
//! What lives here: opening `/dev/rtp_mgr` and one function per call of the ABI. What does not: what
//! streams do with them ([`crate::kernel`]) and mapping ([`crate::shm`]).
#![allow(unsafe_code)] // The owner of the device's calls; every block says why it is sound.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rtp_mgr_ring::abi::ioctl;
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Updater};

/// Where the module's device is.
pub const DEVICE: &str = "/dev/rtp_mgr";

/// An argument of a call. Private: implemented for the structs of the ABI alone.
trait Argument: Sized {
    fn set_size(&mut self);
}

macro_rules! arguments {
    ($($name:ident),*) => {
        $(impl Argument for ioctl::$name {
            fn set_size(&mut self) {
                self.size = size_of::<Self>() as u32;
            }
        })*
    };
}

arguments!(Version, Create, Attach, AddLeg, Plain, Stats, Setting, List, Heard);

/// An open file of the device: nothing, a stream's owner, or one of its readers.
#[derive(Debug)]
pub(crate) struct Device {
    file: OwnedFd,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<OwnedFd> for Device {
    /// A file of the device that another process opened.
    fn from(file: OwnedFd) -> Self {
        Self { file }
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.file
    }
}

impl Device {
    /// Opens the device.
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Opens the device under another name.
    pub(crate) fn open_at(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file })
    }

    /// One call. `CALL` and the type of its argument belong together: private, and each public
    /// function names a pair of the ABI.
    fn call<const CALL: Opcode, T: Argument>(&self, argument: &mut T) -> io::Result<()> {
        argument.set_size();
        // SAFETY: the struct is the one that the ABI has for CALL, begins with its own size, and any
        // bytes that the module writes within that size make integers.
        let call = unsafe { Updater::<CALL, T>::new(argument) };
        // SAFETY: as above. A device that is not the module's does not know the number (magic 0xBB),
        // and writes nothing.
        Ok(unsafe { rustix::ioctl::ioctl(&self.file, call) }?)
    }

    /// Which ABI and features the module has.
    pub(crate) fn version(&self) -> io::Result<ioctl::Version> {
        let mut version = ioctl::Version::default();
        self.call::<{ ioctl::VERSION }, _>(&mut version)?;
        Ok(version)
    }

    /// Makes this file a stream. The request is filled in.
    pub(crate) fn create(&self, request: &mut ioctl::Create) -> io::Result<()> {
        self.call::<{ ioctl::CREATE }, _>(request)
    }

    /// Makes this file a part of the stream that the request names. The request is filled in.
    pub(crate) fn attach(&self, request: &mut ioctl::Attach) -> io::Result<()> {
        self.call::<{ ioctl::ATTACH }, _>(request)
    }

    /// Hands a socket over.
    pub(crate) fn add_leg(&self, mut leg: ioctl::AddLeg) -> io::Result<()> {
        self.call::<{ ioctl::ADD_LEG }, _>(&mut leg)
    }

    /// Runs the stream.
    pub(crate) fn start(&self) -> io::Result<()> {
        self.call::<{ ioctl::START }, _>(&mut ioctl::Plain::default())
    }

    /// Stops the stream and gives its sockets back.
    pub(crate) fn stop(&self) -> io::Result<()> {
        let mut request = ioctl::Plain { flags: ioctl::STOP_LEGS, ..Default::default() };
        self.call::<{ ioctl::STOP }, _>(&mut request)
    }

    /// Has the module account for its readers and publish the figures as they are now.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        self.call::<{ ioctl::STATS }, _>(&mut ioctl::Stats::default())
    }

    /// Changes a setting.
    pub(crate) fn set(&self, key: u32, value: u64) -> io::Result<()> {
        let mut setting = ioctl::Setting { key, value, ..Default::default() };
        self.call::<{ ioctl::SET }, _>(&mut setting)
    }

    /// Transmit: there is something to send.
    pub(crate) fn kick(&self) -> io::Result<()> {
        self.call::<{ ioctl::KICK }, _>(&mut ioctl::Plain::default())
    }

    /// Tells the stream what was heard on a socket that the module does not see.
    pub(crate) fn heard(&self, mut heard: ioctl::Heard) -> io::Result<()> {
        self.call::<{ ioctl::HEARD }, _>(&mut heard)
    }

    /// The streams of this user (of all users, for root).
    pub(crate) fn list(&self) -> io::Result<Vec<ioctl::ListEntry>> {
        let mut room = 64;
        loop {
            let mut entries = vec![ioctl::ListEntry::default(); room];
            let mut request = ioctl::List {
                entry_size: size_of::<ioctl::ListEntry>() as u32,
                entries: entries.as_mut_ptr() as u64,
                room: u32::try_from(room).unwrap_or(u32::MAX),
                ..Default::default()
            };
            // The module writes at most `room` entries of `entry_size` bytes at that address: into
            // the vector, which outlives the call and is not looked at meanwhile.
            self.call::<{ ioctl::LIST }, _>(&mut request)?;
            let count = request.count as usize;
            if count <= room {
                entries.truncate(count);
                return Ok(entries);
            }
            room = count.next_power_of_two();
        }
    }
}
