//! Ctrl-C and SIGTERM: a flag that the commands look at, so that each ends with its summary.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// How long a command may wait for anything before it looks at the flag again.
pub const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Whether the user has asked for the end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes SIGINT and SIGTERM over. The first one sets the flag; another one after it ends the
    /// process at once with status 1, for the case that the summary itself cannot be written.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn install() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second handler sees the flag only as an earlier signal left it.
            signal_hook::flag::register_conditional_shutdown(signal, 1, stop.0.clone())?;
            signal_hook::flag::register(signal, stop.0.clone())?;
        }
        Ok(stop)
    }

    /// True after the first signal.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
