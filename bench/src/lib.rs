//! Measurements of RTP Manager, and of what a user would pick instead, in the same interleaved runs.
//!
//! | module | what lives there |
//! |---|---|
//! | [`rows`] | what is measured: one file per row of the report |
//! | [`receivers`] | everybody who can receive |
//! | [`rtp_loop`] | a plain loop that does the least that RTP takes |
//! | [`load`] | the sender that is the same for all of them |
//! | [`net`], [`lab`] | loopback, and a cable between two network namespaces |
//! | [`cpu`] | processor time of the whole machine |
//! | [`machine`] | the machine that is measured |
//! | [`sys`] | sockets without any library: most of this crate's `unsafe` |
//!
//! How a row reads, and what its figures come to, is in `rtp-mgr-bench-report`.

#![deny(missing_docs)]

pub mod cpu;
pub mod lab;
pub mod load;
pub mod machine;
pub mod net;
pub mod receivers;
pub mod rows;
pub mod rtp_loop;
pub mod sys;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use rtp_mgr_bench_report::Contest;

/// How to measure.
pub struct Settings<'a> {
    /// Repetitions of everything.
    pub runs: usize,
    /// Length of a measurement of ordinary length; others are multiples of it.
    pub time: Duration,
    /// Everything, other programs included; or what a user can wait for, beside plain-socket loops.
    pub all_peers: bool,
    /// The program, for rows about it.
    pub rtp_app: PathBuf,
    /// Whether the user wants the end.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Told what is measured at the moment.
    pub progress: &'a (dyn Fn(&str) + Sync),
}

impl Settings<'_> {
    /// An error when the user wants the end.
    ///
    /// # Errors
    /// As said.
    pub fn check_stop(&self) -> Result<()> {
        if (self.stop)() { bail!("interrupted") } else { Ok(()) }
    }

    /// Measures every candidate once per repetition, each time beginning with another one. One that fails
    /// is reported as not run; our own failure is an error.
    ///
    /// # Errors
    /// Our own, or the user wants the end.
    pub fn interleave<C: Copy>(
        &self,
        what: &str,
        candidates: &[(&str, C)],
        contest: &mut Contest,
        mut measure: impl FnMut(C, &mut Contest) -> Result<f64>,
    ) -> Result<()> {
        for run in 0..self.runs {
            for at in 0..candidates.len() {
                let (name, candidate) = candidates[(run + at) % candidates.len()];
                if contest.not_run.contains_key(name) {
                    continue;
                }
                self.check_stop()?;
                (self.progress)(&format!("{what}: {name}, run {} of {}", run + 1, self.runs));
                match measure(candidate, contest) {
                    Ok(value) => contest.add(name, value),
                    Err(error) if name == rtp_mgr_bench_report::OURS => return Err(error),
                    Err(error) => {
                        contest.samples.remove(name);
                        contest.absent(name, format!("{error:#}"));
                    }
                }
            }
        }
        Ok(())
    }
}
