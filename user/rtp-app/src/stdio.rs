//! Standard input and output that a signal can interrupt.
//!
//! A pipe whose other end has stopped blocks a plain read or write for as long as it likes, and
//! then Ctrl-C would bring no summary. Here every wait is a poll that looks at [`Stop`] in between.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::signals::{LOOK, Stop};

/// A write of at most this many bytes does not block on a pipe that poll calls writable (POSIX
/// PIPE_BUF on Linux).
const PIPE_CHUNK: usize = 4096;

/// Standard output.
#[derive(Debug)]
pub struct Stdout {
    file: File,
    stop: Stop,
    bounded: bool,
}

impl Stdout {
    /// Standard output, unbuffered.
    ///
    /// # Errors
    /// It is closed, or no descriptor is left.
    pub fn new(stop: &Stop) -> io::Result<Self> {
        let fd: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        let file = File::from(fd);
        let bounded = !file.metadata()?.is_file();
        Ok(Self { file, stop: stop.clone(), bounded })
    }
}

impl Write for Stdout {
    /// After a signal an other end that takes nothing counts as closed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.bounded {
            return self.file.write(bytes);
        }
        while !ready(&self.file, PollFlags::OUT)? {
            if self.stop.requested() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        self.file.write(bytes.get(..PIPE_CHUNK).unwrap_or(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard input.
#[derive(Debug)]
pub struct Stdin {
    file: File,
    stop: Stop,
}

impl Stdin {
    /// Standard input, unbuffered.
    ///
    /// # Errors
    /// It is closed, or no descriptor is left.
    pub fn new(stop: &Stop) -> io::Result<Self> {
        let fd: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self { file: File::from(fd), stop: stop.clone() })
    }
}

impl Read for Stdin {
    /// After a signal: the end of the file.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while !ready(&self.file, PollFlags::IN)? {
            if self.stop.requested() {
                return Ok(0);
            }
        }
        self.file.read(to)
    }
}

/// Waits a little for `file`; also true when only an error or hang-up is there to be read.
fn ready(file: &File, wanted: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(file, wanted)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    match poll(&mut polled, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
