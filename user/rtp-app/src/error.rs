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

    /// A file that could not be read: `argument` names the option that gave it.
    pub fn reading(argument: &str, path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{argument} {}: {error}", path.display()))
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
