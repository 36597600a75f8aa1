//! When the next packets of a transmit stream are due.
//!
//! What lives here: arithmetic of rates and launch times on CLOCK_MONOTONIC, when a packet is late, how
//! long a leg that takes nothing is waited for. What does not: waiting, clocks, sending.
//!
//! Packet n of a run is due at `start + n * 1 s * seconds / packets`, rounded down, so no rate drifts however long
//! it runs. A sender that comes late catches up, but not for ever: what it is behind by more than
//! [`Pacer::CATCH_UP_NS`] is given up, because sending a second's worth of packets at once helps
//! nobody downstream. The run then starts anew.

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A packet that leaves more than this after it was due is late, nanoseconds.
pub const LATE_NS: u64 = 1_000_000;
/// A leg that takes no packets is tried again after this, whatever it says of itself, nanoseconds.
pub const RETRY_NS: u64 = 10_000_000;

/// How long a leg of a stream with so many `legs` may take no packets, nanoseconds: not for long where
/// another one waits for it.
pub const fn stall_limit_ns(legs: usize) -> u64 {
    if legs > 1 {
        100_000_000
    } else {
        1_000_000_000
    }
}

/// Packets per second as a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    packets: u64,
    /// Nanoseconds from one packet to the next, ...
    whole_ns: u64,
    /// ... and so many parts in `packets` of one more.
    rest: u64,
}

impl Rate {
    /// `packets` in `seconds`; `None` unless both are at least 1 and `seconds` at most 10^9.
    pub const fn new(packets: u64, seconds: u64) -> Option<Self> {
        if seconds == 0 || seconds > SECOND {
            return None;
        }
        let ns = seconds.wrapping_mul(SECOND);
        match (ns.checked_div(packets), ns.checked_rem(packets)) {
            (Some(whole_ns), Some(rest)) => Some(Self { packets, whole_ns, rest }),
            _ => None,
        }
    }
}

/// When a packet is due, with the fraction of a nanosecond that rounding would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    ns: u64,
    parts: u64,
}

impl Moment {
    /// One packet later. No division: the kernel has none for the numbers it would take.
    fn step(&mut self, rate: &Rate) {
        self.ns = self.ns.saturating_add(rate.whole_ns);
        self.parts = self.parts.wrapping_add(rate.rest);
        if self.parts >= rate.packets {
            self.parts = self.parts.wrapping_sub(rate.packets);
            self.ns = self.ns.saturating_add(1);
        }
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
    /// When the next packet is due; `None` before the first.
    next: Option<Moment>,
}

impl Pacer {
    /// How far behind a sender may be and still catch up.
    pub const CATCH_UP_NS: u64 = 100_000_000;

    /// The run begins with the first packet.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, next: None }
    }

    /// Changes the rate. A new run begins with the next packet.
    pub fn set_rate(&mut self, rate: Rate) {
        *self = Self::new(rate);
    }

    /// When the next packet is due; `None` before the first.
    pub fn next_ns(&self) -> Option<u64> {
        self.next.map(|next| next.ns)
    }

    /// How many of `ready` packets may go at `now_ns`. Those that go are told by
    /// [`sent`](Self::sent). With nothing ready the run does not begin.
    pub fn due(&mut self, now_ns: u64, ready: u64) -> Due {
        if ready == 0 {
            return Due { packets: 0, next_ns: self.next_ns().unwrap_or(now_ns) };
        }
        let next = self.next.filter(|next| now_ns.saturating_sub(next.ns) <= Self::CATCH_UP_NS);
        let mut next = *self.next.insert(next.unwrap_or(Moment { ns: now_ns, parts: 0 }));
        let mut packets = 0_u64;
        while packets < ready && next.ns <= now_ns {
            next.step(&self.rate);
            packets = packets.wrapping_add(1);
        }
        Due { packets, next_ns: next.ns }
    }

    /// How many of `ready` packets are late at `now_ns`. The question does not change the schedule.
    pub fn late(&self, now_ns: u64, ready: u64) -> u64 {
        let before = now_ns.saturating_sub(LATE_NS).saturating_sub(1);
        match self.next_ns() {
            Some(next_ns) if next_ns <= before => {
                let mut copy = *self;
                copy.due(before, ready).packets
            }
            _ => 0,
        }
    }

    /// `packets` have gone.
    pub fn sent(&mut self, packets: u64) {
        if let Some(next) = &mut self.next {
            for _ in 0..packets {
                next.step(&self.rate);
            }
        }
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
        let mut pacer = Pacer::new(rate(30_000, 1_001));
        pacer.due(0, 1);
        let day_s = 86_400;
        let packets = 30_000 * day_s / 1_001;
        pacer.sent(packets);
        assert_eq!(
            pacer.next_ns(),
            Some((u128::from(packets) * 1_001 * 1_000_000_000 / 30_000) as u64)
        );
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

    #[test]
    fn what_was_due_more_than_a_millisecond_ago_is_late() {
        let mut pacer = Pacer::new(rate(1_000, 1));
        assert_eq!(pacer.late(50_000_000, 10), 0, "the run has not begun");
        pacer.due(5, 1);
        pacer.sent(1);
        let schedule = pacer.next_ns();
        // Due at 1, 2, 3 ms and so on, and 5 ns.
        assert_eq!(pacer.late(2_000_005, 10), 0, "one is late by exactly a millisecond");
        assert_eq!(pacer.late(2_000_006, 10), 1);
        assert_eq!(pacer.late(4_000_006, 10), 3);
        assert_eq!(pacer.late(4_000_006, 2), 2, "of those that are there");
        assert_eq!(pacer.next_ns(), schedule);
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
                let second = u128::from(SECOND);
                let when = |n: u128| n * u128::from(seconds) * second / u128::from(packets) + 77;
                prop_assert!(when(gone - 1) <= u128::from(now));
                prop_assert!(when(gone) > u128::from(now));
                prop_assert_eq!(u128::from(due.next_ns), when(gone));
                now += step;
            }
        }
    }
}
