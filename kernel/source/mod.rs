// SPDX-License-Identifier: MIT OR GPL-2.0

//! Where a stream's packets come from.
//!
//! [`Source`] is what a device driver implements: one that has its own memory copies into slots, one
//! that can be told where to write ([`Intake::slot`] ahead of time) copies nothing. [`simulated`] is the
//! implementation without hardware, and the example to follow. Legs ([`udp`]) are none: the network stack
//! calls for each packet, on any CPU.

use kernel::prelude::*;

use crate::engine::Intake;

#[cfg(rtp_mgr_example)]
mod example;
pub(crate) mod simulated;
pub(crate) mod train;
pub(crate) mod udp;

/// Times between bursts that may be asked for.
pub(crate) const INTERVALS_NS: core::ops::RangeInclusive<u64> = 100_000..=10_000_000_000;

/// A device that fills a receive ring: `docs/hardware-sources.md` says how.
///
/// All of it is called under the stream's lock, with bottom halves off: it must not sleep.
pub(crate) trait Source: Send {
    /// The stream starts (again) at `now_ns` of CLOCK_MONOTONIC. Returns when [`service`](Self::service)
    /// is to be called first; `None`: the device calls the engine by itself.
    fn start(&mut self, now_ns: u64) -> Option<u64>;

    /// Delivers what has arrived. Returns when it is to be called again.
    fn service(&mut self, intake: &mut Intake<'_>, now_ns: u64) -> Option<u64>;

    /// Changes one of the settings of the ABI that are this source's.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: it has no such setting. `EINVAL`: the value is out of range.
    fn set(&mut self, key: u32, value: u64) -> Result;

    /// Reads one of them.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: it has no such setting.
    fn get(&self, key: u32) -> Result<u64>;
}
