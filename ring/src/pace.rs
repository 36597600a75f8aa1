//! When the next packets of a transmit stream are due.
//!
//! What lives here: arithmetic of rates and launch times on CLOCK_MONOTONIC. What does not: waiting,
//! clocks, sending.
//!
//! Packet n of a run is due at `start + n * 1 s * seconds / packets`, so no rate drifts however long
//! it runs. A sender that comes late catches up, but not for ever: what it is behind by more than
//! [`Pacer::CATCH_UP_NS`] is given up, because sending a second's worth of packets at once helps
//! nobody downstream. The run then starts anew.

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// Packets per second as a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    packets: u64,
    seconds: u64,
}

impl Rate {
    /// `packets` in `seconds`; `None` unless both are at least 1.
    pub const fn new(packets: u64, seconds: u64) -> Option<Self> {
        if packets == 0 || seconds == 0 {
            None
        } else {
            Some(Self { packets, seconds })
        }
    }

    /// Time that `packets` take, nanoseconds, rounded down.
    fn time_ns(&self, packets: u64) -> u64 {
        let ns = u128::from(packets)
            .wrapping_mul(self.seconds.into())
            .saturating_mul(SECOND)
            .checked_div(self.packets.into());
        u64::try_from(ns.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Packets due within `ns` of a run's start: those due at 0 and at `ns` included.
    fn due_within(&self, ns: u64) -> u64 {
        // n is due when n * seconds * 10^9 / packets, rounded down, is at most ns.
        let bound = (u128::from(ns).wrapping_add(1)).wrapping_mul(self.packets.into());
        let step = u128::from(self.seconds).wrapping_mul(SECOND);
        let due = bound.wrapping_sub(1).checked_div(step).unwrap_or(0).wrapping_add(1);
        u64::try_from(due).unwrap_or(u64::MAX)
    }
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Packets that may go.
    pub packets: u64,
    /// When the first that may not is due, CLOCK_MONOTONIC in nanoseconds.
    pub next_ns: u64,
}

/// A stream paced at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    rate: Rate,
    start_ns: Option<u64>,
    /// Packets of this run that have gone.
    gone: u64,
}

impl Pacer {
    /// How far behind a sender may be and still catch up.
    pub const CATCH_UP_NS: u64 = 100_000_000;

    /// The run begins with the first packet.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, start_ns: None, gone: 0 }
    }

    /// Changes the rate. A new run begins with the next packet.
    pub fn set_rate(&mut self, rate: Rate) {
        *self = Self::new(rate);
    }

    /// When the next packet is due; `None` before the first.
    pub fn next_ns(&self) -> Option<u64> {
        Some(self.start_ns?.saturating_add(self.rate.time_ns(self.gone)))
    }

    /// How many of `ready` packets may go at `now_ns`. Those that go are told by
    /// [`sent`](Self::sent). With nothing ready the run does not begin.
    pub fn due(&mut self, now_ns: u64, ready: u64) -> Due {
        if ready == 0 {
            return Due { packets: 0, next_ns: now_ns };
        }
        let behind = self.next_ns().map(|next| now_ns.saturating_sub(next));
        let start = match (self.start_ns, behind) {
            (Some(start), Some(behind)) if behind <= Self::CATCH_UP_NS => start,
            _ => {
                self.gone = 0;
                *self.start_ns.insert(now_ns)
            }
        };
        let packets = match now_ns.checked_sub(start) {
            Some(elapsed) => self.rate.due_within(elapsed).saturating_sub(self.gone).min(ready),
            None => 0,
        };
        let after = self.rate.time_ns(self.gone.saturating_add(packets));
        Due { packets, next_ns: start.saturating_add(after) }
    }

    /// `packets` have gone.
    pub fn sent(&mut self, packets: u64) {
        self.gone = self.gone.saturating_add(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(packets: u64, seconds: u64) -> Rate {
        Rate::new(packets, seconds).unwrap()
    }

    #[test]
    fn a_rate_of_nothing_is_no_rate() {
        assert_eq!(Rate::new(0, 1), None);
        assert_eq!(Rate::new(1, 0), None);
    }

    #[test]
    fn a_day_at_an_odd_rate_does_not_drift() {
        // 29.97 packets a second.
        let rate = rate(30_000, 1_001);
        let day = 86_400_000_000_000;
        let packets = 30_000_u64 * 86_400 / 1_001 + 1;
        assert_eq!(rate.due_within(day), packets);
    }

    #[test]
    fn nothing_is_due_before_its_time_and_all_of_it_then() {
        let mut pacer = Pacer::new(rate(1_000, 1));
        assert_eq!(pacer.due(5, 10), Due { packets: 1, next_ns: 1_000_005 });
        pacer.sent(1);
        assert_eq!(pacer.due(1_000_004, 9), Due { packets: 0, next_ns: 1_000_005 });
        assert_eq!(pacer.due(3_000_005, 9), Due { packets: 3, next_ns: 4_000_005 });
    }

    #[test]
    fn a_late_sender_catches_up_and_a_very_late_one_begins_anew() {
        let mut pacer = Pacer::new(rate(1_000, 1));
        pacer.due(0, 1);
        pacer.sent(1);
        assert_eq!(pacer.due(101_000_000, 1_000).packets, 101);
        assert_eq!(pacer.due(101_000_001, 1_000), Due { packets: 1, next_ns: 102_000_001 });
    }

    proptest! {
        /// However often and late it is asked, in the end it has let go what a single question
        /// would have, and never a packet before its time.
        #[test]
        fn pacing_is_exact(
            packets in 1..2_000_000_u64,
            seconds in 1..1_001_u64,
            steps in prop::collection::vec(1..50_000_000_u64, 1..50),
        ) {
            let rate = rate(packets, seconds);
            let mut pacer = Pacer::new(rate);
            let (mut now, mut gone) = (77, 0_u128);
            for step in steps {
                let due = pacer.due(now, u64::MAX);
                pacer.sent(due.packets);
                gone += u128::from(due.packets);
                // n packets gone at t: packet n - 1 was due at or before t, packet n is due after.
                let when = |n: u128| n * u128::from(seconds) * SECOND / u128::from(packets) + 77;
                prop_assert!(when(gone - 1) <= u128::from(now));
                prop_assert!(when(gone) > u128::from(now));
                prop_assert_eq!(u128::from(due.next_ns), when(gone));
                now += step;
            }
        }
    }
}
