//! Streams of other processes of this user: finding them, their figures, reading along.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rtp_mgr_ring::abi::ReaderStatus;

use crate::config::{EngineKind, Mode};
use crate::error::Error;
use crate::reader::Batch;
use crate::stats::{Direction, Stats, StreamId};

/// A stream that runs on this machine.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The stream's number.
    pub id: StreamId,
    /// The name that readers attach under, if it is published.
    pub name: Option<String>,
    /// Who runs the ring.
    pub engine: EngineKind,
    /// Which way packets go.
    pub direction: Direction,
    /// Process that owns the stream.
    pub owner_pid: u32,
    /// User that owns the stream.
    pub owner_uid: u32,
    /// Its legs, as they were given.
    pub legs: Vec<String>,
    /// Attached readers may be reliable.
    pub allow_reliable: bool,
}

/// The streams of this user (of all users, for root) that run on this machine.
///
/// # Errors
/// The directory of the running streams cannot be read.
pub fn list() -> Result<Vec<StreamInfo>, Error> {
    Err(Error::NotInThisBuild("list"))
}

/// A running stream's description and figures, by name or number.
///
/// # Errors
/// There is none, it is another user's, or of another ABI version.
pub fn stat(name: &str) -> Result<(StreamInfo, Stats), Error> {
    let _ = name;
    Err(Error::NotInThisBuild("stat"))
}

/// A reader of another process's receive stream. It copies what it reads.
#[derive(Debug)]
pub struct Attached {
    info: StreamInfo,
    stats: Stats,
    wake: OwnedFd,
}

impl Attached {
    /// Attaches to a published stream, from its present end on.
    ///
    /// # Errors
    /// There is no such stream, it refuses (reliable readers need `allow_reliable`, there are 16
    /// readers), or it is of another ABI version.
    pub fn open(name: &str, mode: Mode) -> Result<Self, Error> {
        let _ = (name, mode);
        Err(Error::NotInThisBuild("attach"))
    }

    /// See [`Receiver::read`](crate::Receiver::read).
    ///
    /// # Errors
    /// The owner's process ended without stopping the stream (what it had published was read), or
    /// the ring's content is damaged.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        let _ = timeout;
        Err(Error::NotInThisBuild("attach"))
    }

    /// See [`Receiver::try_read`](crate::Receiver::try_read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        Err(Error::NotInThisBuild("attach"))
    }

    /// What the engine says about this reader: its accepted tail, positions missed, demotion.
    pub fn status(&self) -> ReaderStatus {
        ReaderStatus::default()
    }

    /// The stream's figures.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// The stream.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }
}

impl AsFd for Attached {
    /// Readable when there is something to read since the last empty [`try_read`](Self::try_read).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
