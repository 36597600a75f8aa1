//! Why something could not be done. Every message names the argument, its value and what is
//! accepted, or says what to do.

use std::io;
use std::path::PathBuf;

use crate::leg::LegError;
use crate::socket::SocketError;

/// Why a stream could not be opened, read, written or attached to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or does not go with another.
    #[error("{argument} {value}: {accepted}")]
    Argument {
        /// The setting, as the builder's method is called.
        argument: &'static str,
        /// What it was set to.
        value: String,
        /// What is accepted.
        accepted: String,
    },
    /// The text of a leg cannot be understood.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// The socket of a leg could not be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The ring does not hold what arrives while a gap stays open.
    #[error(
        "ring order {ring_order} is too small: {reorder_ms} ms at {packets_per_second} packets/s \
         need ring order {needed}"
    )]
    RingTooSmall {
        /// What was asked for.
        ring_order: u8,
        /// The least that is large enough.
        needed: u8,
        /// The time that gaps stay open, milliseconds.
        reorder_ms: u128,
        /// The rate to be ready for.
        packets_per_second: f64,
    },
    /// No ring of any size that is allowed holds what arrives while a gap stays open.
    #[error(
        "reordering for {reorder_ms} ms at {packets_per_second} packets/s needs more than the \
         largest ring (order {largest}); accepted: up to {reorder_max_ms} ms at this rate"
    )]
    RingNeverLargeEnough {
        /// The time that gaps stay open, milliseconds.
        reorder_ms: u128,
        /// The rate to be ready for.
        packets_per_second: f64,
        /// The largest ring order.
        largest: u8,
        /// The longest reorder time that it holds, milliseconds.
        reorder_max_ms: u128,
    },
    /// The kernel engine was asked for and cannot be used.
    #[error("the kernel engine cannot be used: {reason}; or use the user engine")]
    KernelEngine {
        /// What is missing, and what to do.
        reason: String,
    },
    /// Memory for a ring could not be had.
    #[error("{bytes} bytes of shared memory for {what} could not be had: {source}")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory of the running streams cannot be used.
    #[error("{}: {reason}", path.display())]
    RuntimeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// Another stream has this name.
    #[error("publish {name}: a running stream of this user has that name; choose another")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No stream of this user has this name or number.
    #[error("no stream {name}: `rtp_app list` shows those that run")]
    NoSuchStream {
        /// The name or number.
        name: String,
    },
    /// The owner of a stream does not let this process attach.
    #[error("stream {name} refuses: {reason}")]
    Refused {
        /// The stream.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// What a stream's memory says about itself cannot be right, or is of another version.
    #[error("stream {name}: {reason}")]
    Layout {
        /// The stream.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// What stands in the ring cannot be right.
    #[error("the ring's content is damaged: {0}")]
    Corrupt(String),
    /// The process that owned the stream has ended without stopping it.
    #[error("the process that owns stream {name} has gone")]
    OwnerGone {
        /// The stream.
        name: String,
    },
    /// The engine has ended.
    #[error("the engine of this stream has ended")]
    EngineGone,
    /// A packet does not fit its slot.
    #[error("packet length {len}: accepted: 12 to {max} bytes (slot_stride)")]
    PacketLength {
        /// Bytes of the packet.
        len: usize,
        /// Bytes of the slot.
        max: usize,
    },
    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Os {
        /// What.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl Error {
    /// A setting that is out of its range.
    pub(crate) fn argument(
        argument: &'static str,
        value: impl ToString,
        accepted: impl Into<String>,
    ) -> Self {
        Self::Argument { argument, value: value.to_string(), accepted: accepted.into() }
    }

    /// For `map_err`: what was being done when the operating system refused.
    pub(crate) fn os<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Os { doing, source: error.into() }
    }

    /// Whether the caller asked for something that is never possible (as against something that is
    /// not possible here and now).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Argument { .. }
                | Self::Leg(_)
                | Self::RingTooSmall { .. }
                | Self::RingNeverLargeEnough { .. }
        )
    }
}

/// Something that limits a stream without stopping it. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(String);

impl Warning {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
