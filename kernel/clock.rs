// SPDX-License-Identifier: MIT OR GPL-2.0

//! What a stream's status page says of the machine's clocks.

use crate::memory::Memory;
use crate::primitives::{monotonic_ns, realtime_ns, tai_ns};
use crate::ring::abi::status;

/// A clock step is what CLOCK_REALTIME moves against CLOCK_MONOTONIC by more than this.
const STEP_NS: u64 = 1_000_000;
/// Clocks that were read further apart than this say nothing of each other.
const APART_NS: u64 = 100_000;
/// Whoever publishes all the time looks at the clocks this often.
const EVERY_NS: u64 = 1_000_000;

/// Notices when CLOCK_REALTIME is set.
pub(crate) struct ClockPage {
    /// CLOCK_REALTIME less CLOCK_MONOTONIC.
    realtime_offset_ns: u64,
    /// When they are to be looked at again, CLOCK_MONOTONIC.
    next_ns: u64,
}

impl ClockPage {
    pub(crate) fn new() -> Self {
        Self { realtime_offset_ns: realtime_ns().wrapping_sub(monotonic_ns()), next_ns: 0 }
    }

    /// [`publish`](Self::publish), unless that was done a moment ago.
    pub(crate) fn publish_at(&mut self, memory: &Memory, now_ns: u64) {
        if now_ns >= self.next_ns {
            self.next_ns = now_ns.saturating_add(EVERY_NS);
            self.publish(memory);
        }
    }

    /// Writes the words of the status page, unless it was interrupted: then the next time.
    pub(crate) fn publish(&mut self, memory: &Memory) {
        let (monotonic, realtime, tai) = (monotonic_ns(), realtime_ns(), tai_ns());
        if monotonic_ns().wrapping_sub(monotonic) > APART_NS {
            return;
        }
        // Read one after the other: rounded, so that what passed between does not show.
        let offset_ns = (tai as i64).wrapping_sub(realtime as i64);
        let offset_s = offset_ns.saturating_add(500_000_000).wrapping_div(1_000_000_000);
        memory.live(status::TAI_OFFSET_S).store(offset_s as u64);
        memory.live(status::TAI_VALID).store(u64::from(offset_s != 0));
        let offset = realtime.wrapping_sub(monotonic);
        let moved = (offset.wrapping_sub(self.realtime_offset_ns) as i64).unsigned_abs();
        self.realtime_offset_ns = offset;
        if moved > STEP_NS {
            let generation = memory.live(status::CLOCK_GENERATION);
            generation.store(generation.load().wrapping_add(1));
        }
    }
}
