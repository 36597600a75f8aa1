//! How reading or writing media fails.

use std::io;

/// Why media could not be read or written. Each text begins with the value that is at fault (a file, a format),
/// so that a command can put its option in front of it, and goes on with what is wrong and what is accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// A `--format` (or an SDP's rtpmap) that we cannot read.
    #[error(
        "{value}: {reason}; accepted: TS, L16/RATE/CHANNELS or L24/RATE/CHANNELS, for example L24/48000/2"
    )]
    Format {
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A packet time that does not suit the audio.
    #[error("{value}: {reason}")]
    PacketTime {
        /// What was given, in milliseconds.
        value: String,
        /// What is accepted.
        reason: String,
    },
    /// A file cannot be opened, read or made.
    #[error("{name}: {source}")]
    Io {
        /// The file, or `standard input` or `standard output`.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The input is not what it has to be.
    #[error("{name}: {reason}")]
    Input {
        /// The file, or `standard input`.
        name: String,
        /// What is wrong and what is accepted.
        reason: String,
    },
    /// The input stops in the middle of something or has damaged places; what was whole has been given.
    #[error("{name}: {reason}; what was whole has been sent")]
    Damaged {
        /// The file, or `standard input`.
        name: String,
        /// What is missing or damaged, and where.
        reason: String,
    },
    /// An output that cannot take any more; what is in it is playable but not all that came.
    #[error("{name}: {reason}")]
    Output {
        /// The file.
        name: String,
        /// Why, and what to do instead.
        reason: String,
    },
}

impl MediaError {
    /// Whether the other end of a pipe went away, which ends a command quietly.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
