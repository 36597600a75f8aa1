//! How readers of a stream of the kernel engine wait: the file of the reader is readable when there
//! is something, by its threshold and the stream's longest wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::device::Device;
use crate::error::Error;
use crate::reader::Wake;

/// A reader of the owner's process.
#[derive(Debug)]
pub(crate) struct DeviceWake(pub Arc<Device>);

impl AsFd for DeviceWake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wake for DeviceWake {
    fn forget(&mut self) -> Result<(), Error> {
        // The file tells by level.
        Ok(())
    }

    fn ended(&self) -> Result<(), Error> {
        // What this reader has released since is consumed, too.
        self.0.refresh().map_err(Error::os("read the final figures"))
    }

    const MAY_VANISH: bool = false;
}

/// A reader of another process. The stream would go on without its owner for as long as somebody
/// reads; the connection over which the reader got its file tells that the owner has gone.
#[derive(Debug)]
pub(crate) struct AttachedWake {
    /// Both, to be waited for at once.
    either: OwnedFd,
    device: Device,
    owner: OwnedFd,
    name: String,
}

impl AttachedWake {
    pub(crate) fn new(device: Device, owner: OwnedFd, name: &str) -> Result<Self, Error> {
        let failed = || Error::os::<Errno>("wait for a stream and its owner");
        let either = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed())?;
        for (number, file) in [device.as_fd(), owner.as_fd()].into_iter().enumerate() {
            epoll::add(&either, file, EventData::new_u64(number as u64), EventFlags::IN)
                .map_err(failed())?;
        }
        Ok(Self { either, device, owner, name: name.to_owned() })
    }
}

impl AsFd for AttachedWake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

impl Wake for AttachedWake {
    fn forget(&mut self) -> Result<(), Error> {
        // Its owner says nothing more: what can be read is the end.
        match recv(&self.owner, &mut [0; 8], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(_) | Err(_) => Err(Error::OwnerGone { name: self.name.clone() }),
        }
    }

    fn ended(&self) -> Result<(), Error> {
        self.device.refresh().map_err(Error::os("read the final figures"))
    }

    const MAY_VANISH: bool = true;
}
