//! Waking up in time for a deadline that is to be kept exactly.
//!
//! What lives here: how long before a deadline the thread stops sleeping. What does not: which deadlines
//! those are, sleeping, looking at the clock ([`super::worker`]).
//!
//! Who sleeps until a deadline wakes up late: by a few microseconds at best, by 20 and more in a virtual
//! machine, and not by the same each time. So the thread sleeps until a little before, and looks at the
//! clock for the rest. The lead follows what waking up takes: it grows while the thread comes late, and
//! shrinks by a little whenever it does not, so that about one wake-up in 17 is late and the others are early
//! by no more than the difference between them.

/// By how much the lead grows when the thread came late, nanoseconds, ...
const STEP_NS: u64 = 512;
/// ... and shrinks when it was in time.
const BACK_NS: u64 = STEP_NS / 16;
/// The longest lead: what is looked at the clock for costs processor time.
const LEAD_MAX_NS: u64 = 50_000;
/// Sleeps shorter than this take longer than they last.
const SLEEP_MIN_NS: u64 = 2_000;

/// How long before a deadline the thread wakes up. All times in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lead {
    ns: u64,
    /// When the present sleep is to end.
    asleep_until: Option<u64>,
}

impl Lead {
    /// For how long to sleep at `now`, if a deadline is to be kept; 0: not at all.
    pub(super) fn sleep(&mut self, deadline: u64, now: u64) -> u64 {
        if self.is_close(deadline, now) {
            return 0;
        }
        let until = deadline.saturating_sub(self.ns);
        self.asleep_until = Some(until);
        until.saturating_sub(now)
    }

    /// The sleep, if there was one, is over at `now`: because of its end or before.
    pub(super) fn woke(&mut self, now: u64) {
        let Some(until) = self.asleep_until.take().filter(|until| *until <= now) else { return };
        self.ns = match now - until > self.ns {
            true => (self.ns + STEP_NS).min(LEAD_MAX_NS),
            false => self.ns.saturating_sub(BACK_NS),
        };
    }

    /// Whether the time that is left until a deadline is not slept.
    pub(super) fn is_close(&self, deadline: u64, now: u64) -> bool {
        deadline.saturating_sub(now) < self.ns + SLEEP_MIN_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD_NS: u64 = 1_000_000;

    /// Sleeps for many deadlines, each time waking up as late as `late` says. Returns the lead in the end.
    fn after(count: u64, mut late: impl FnMut(u64) -> u64) -> u64 {
        let mut lead = Lead::default();
        for at in 0..count {
            let start = at * PERIOD_NS;
            let slept = lead.sleep(start + PERIOD_NS, start);
            assert!(slept > 0);
            lead.woke(start + slept + late(at));
        }
        lead.ns
    }

    #[test]
    fn the_lead_becomes_what_waking_up_takes() {
        let lead = after(1_000, |_| 20_000);
        assert!((20_000 - BACK_NS..=20_000 + STEP_NS).contains(&lead), "{lead}");
    }

    #[test]
    fn a_wake_up_that_is_late_once_does_not_count_for_much() {
        let lead = after(1_000, |at| if at == 998 { 10_000_000 } else { 20_000 });
        assert!(lead <= 20_000 + 2 * STEP_NS, "{lead}");
    }

    #[test]
    fn most_wake_ups_are_early_when_they_differ() {
        let lead = after(100_000, |at| 10_000 + at % 10 * 1_000);
        assert!((17_000..=20_000).contains(&lead), "{lead}");
    }

    #[test]
    fn the_lead_has_a_limit() {
        assert_eq!(after(1_000, |_| 900_000), LEAD_MAX_NS);
    }

    #[test]
    fn it_shrinks_when_the_machine_wakes_up_faster() {
        let lead = after(2_000, |at| if at < 1_000 { 30_000 } else { 3_000 });
        assert!((3_000 - BACK_NS..=3_000 + STEP_NS).contains(&lead), "{lead}");
    }

    #[test]
    fn a_sleep_that_an_event_ends_says_nothing() {
        let mut lead = Lead { ns: 20_000, asleep_until: None };
        let slept = lead.sleep(PERIOD_NS, 0);
        assert_eq!(slept, PERIOD_NS - 20_000);
        lead.woke(slept - 1);
        assert_eq!(lead.ns, 20_000);
        // Nor does what was not slept.
        lead.woke(slept + 1_000_000);
        assert_eq!(lead.ns, 20_000);
    }

    #[test]
    fn who_is_close_does_not_sleep() {
        let mut lead = Lead { ns: 20_000, asleep_until: None };
        assert_eq!(lead.sleep(PERIOD_NS, PERIOD_NS - 20_000 - SLEEP_MIN_NS + 1), 0);
        assert_eq!(lead.sleep(PERIOD_NS, PERIOD_NS + 5), 0);
        assert!(lead.sleep(PERIOD_NS, PERIOD_NS - 20_000 - SLEEP_MIN_NS) > 0);
    }
}
