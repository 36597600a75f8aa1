//! The threads that engines run on.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::engine::worker::{Registration, Task, Worker};
use crate::error::Error;

/// Threads of the embedded engine. One thread can serve many streams; clones share the threads,
/// which end with the last clone and stream.
#[derive(Clone)]
pub struct Context {
    workers: Arc<[Worker]>,
}

impl Context {
    /// Starts `threads` engine threads. A new stream goes to the thread with the fewest.
    ///
    /// # Errors
    /// No threads or file descriptors left.
    pub fn new(threads: NonZeroUsize) -> Result<Self, Error> {
        let start = |at| Worker::start(format!("rtp_mgr-{at}"));
        Ok(Self { workers: (0..threads.get()).map(start).collect::<Result<_, _>>()? })
    }

    /// A thread for one stream.
    pub(crate) fn own() -> Result<Self, Error> {
        Self::new(NonZeroUsize::MIN)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Serves a task on the thread with the fewest.
    pub(crate) fn serve(&self, task: Arc<dyn Task>) -> Registration {
        let worker = self.workers.iter().min_by_key(|worker| worker.load());
        worker.expect("at least one").serve(task)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("threads", &self.threads()).finish()
    }
}
