//! How a command ends when it does not end well, and the exit status that says so.

use std::io;
use std::path::Path;

/// Why a command stopped.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something that is not possible. One line: argument, value, what is
    /// accepted. Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The command could not do its work. One line with the remedy. Exit status 1.
    #[error("{0}")]
    Failed(String),
    /// Whoever read standard output has gone. Not an error: exit status 0, nothing is printed.
    #[error("standard output was closed")]
    Closed,
}

impl Failure {
    /// A [`Failure::Usage`].
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// A [`Failure::Failed`].
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// What a failed write to standard output means.
    pub fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(format!("standard output: {error}")),
        }
    }

    /// A file that could not be read or written: `argument` names the option that gave it.
    pub fn file(argument: &str, path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{argument} {}: {error}", path.display()))
    }

    /// The library's mistakes in the words of the command line: `ring_order` is `--ring-order`.
    pub fn library(error: rtp_mgr::Error) -> Self {
        use rtp_mgr::Error;
        match error {
            Error::Argument { argument, value, accepted } => {
                let option = match argument {
                    "ordered" => "reorder".to_owned(),
                    other => other.replace('_', "-"),
                };
                Self::Usage(format!("--{option} {value}: {accepted}"))
            }
            Error::RingTooSmall { ring_order, needed, reorder_ms, packets_per_second } => {
                Self::Usage(format!(
                    "--ring-order {ring_order}: too small for --reorder {reorder_ms} at \
                     {packets_per_second} packets/s; accepted: {needed} to {}",
                    rtp_mgr_ring::abi::RING_ORDER_MAX
                ))
            }
            Error::RingNeverLargeEnough {
                reorder_ms, packets_per_second, reorder_max_ms, ..
            } => Self::Usage(format!(
                "--reorder {reorder_ms}: too long for any ring at {packets_per_second} \
                     packets/s; accepted: up to {reorder_max_ms}"
            )),
            error if error.is_usage() => Self::Usage(format!("--{error}")),
            error => Self::Failed(error.to_string()),
        }
    }

    /// An output that could not be written, or an input that could not be read: `argument` names the
    /// option, unless it is another one that is at fault. A closed standard output ends quietly.
    pub fn media(argument: &str, error: &crate::media::MediaError) -> Self {
        use crate::media::MediaError;
        match error {
            closed if closed.is_closed_pipe() => Self::Closed,
            MediaError::PacketTime { .. } => Self::Usage(format!("--ptime {error}")),
            MediaError::Format { .. } => Self::Usage(format!("--format {error}")),
            _ => Self::Failed(format!("{argument} {error}")),
        }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
            Self::Closed => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_speaks_of_options() {
        let error = rtp_mgr::Receiver::builder()
            .leg("127.0.0.1:5004".parse().unwrap())
            .ring_order(3)
            .open()
            .map(|_| ())
            .unwrap_err();
        let failure = Failure::library(error);
        assert_eq!(failure.status(), 2);
        assert_eq!(failure.to_string(), "--ring-order 3: accepted: 4 to 20");
    }

    #[test]
    fn a_ring_too_small_says_which_order_it_takes() {
        let error = rtp_mgr::Receiver::builder()
            .leg("127.0.0.1:5004".parse().unwrap())
            .ordered(std::time::Duration::from_millis(20))
            .expected_rate(130_000.0, 1_400)
            .ring_order(10)
            .open()
            .map(|_| ())
            .unwrap_err();
        assert_eq!(
            Failure::library(error).to_string(),
            "--ring-order 10: too small for --reorder 20 at 130000 packets/s; accepted: 13 to 20"
        );
    }
}
