//! When the next packet of a steady stream is to come, and from when on to look out for it.
//!
//! What lives here: the time from packet to packet, how far it is to be believed, and how long before a packet a
//! reader has to wake up to be awake in time. What does not: sleeping and looking ([`super::inline`]).
//!
//! All times are nanoseconds of CLOCK_MONOTONIC.

/// So many intervals in a row have to be alike before the next is expected to be ...
const STEADY_MIN: u32 = 4;
/// ... and so many count at most: more that are not are needed to forget them.
const STEADY_MAX: u32 = 8;
/// By so many an interval that is not alike counts against those that were.
const ODD_COST: u32 = 2;
/// So many such in a row, and the time from packet to packet is another one now.
const ODD_MAX: u32 = 3;
/// An interval has this part in the time from packet to packet.
const PERIOD_SHARE: i64 = 8;
/// By how much the lead grows when a packet was there first ...
const STEP_NS: u64 = 1_024;
/// ... and shrinks when it was not: about one in 65 is.
const BACK_NS: u64 = STEP_NS / 64;
/// The lead to begin with, at most half of the limit.
const LEAD_NS: u64 = 50_000;
/// A reader that was away for so long between two looks had to give up its processor. So often ...
const STALL_NS: u64 = 500_000;
const STALLS_MAX: u32 = 4;
/// ... within this time, and somebody else wants it too: who never sleeps gets less of it than who does.
const STALLS_NS: u64 = 100_000_000;
/// For so long it looks out only for packets that it sleeps before.
const CROWDED_NS: u64 = 5_000_000_000;
/// Sleeps shorter than this take longer than they last.
const SLEEP_MIN_NS: u64 = 2_000;

/// From when until when to look out for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lookout {
    /// Until then the reader sleeps; `None`: it is time already.
    pub sleep_until_ns: Option<u64>,
    pub until_ns: u64,
}

/// What is known of the times of a stream's packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expect {
    /// Longest time to look out for one packet; 0: never.
    limit_ns: u64,
    /// Arrival of the latest packet; 0: none yet.
    latest_ns: u64,
    /// From packet to packet.
    period_ns: u64,
    steady: u32,
    odd: u32,
    /// The reader wakes up so long before a packet is expected.
    lead_ns: u64,
    /// It slept for the present one ...
    slept: bool,
    /// ... until then.
    woke_ns: Option<u64>,
    /// How often it had to give up its processor ...
    stalls: u32,
    /// ... since then.
    stalls_from_ns: u64,
    crowded_until_ns: u64,
}

impl Expect {
    /// Looks out for each packet for at most `limit_ns`; 0: not at all.
    pub(super) fn new(limit_ns: u64) -> Self {
        Self { limit_ns, lead_ns: (limit_ns / 2).min(LEAD_NS), ..Self::default() }
    }

    /// Whether it is asked for.
    pub(super) fn is_on(&self) -> bool {
        self.limit_ns > 0
    }

    /// `packets` came, the latest at `arrival_ns`.
    pub(super) fn came(&mut self, arrival_ns: u64, packets: u64) {
        if !self.is_on() || packets == 0 {
            return;
        }
        let since_ns = arrival_ns.saturating_sub(self.latest_ns);
        let known = std::mem::replace(&mut self.latest_ns, arrival_ns) != 0;
        let slept = std::mem::take(&mut self.slept);
        let woke_ns = self.woke_ns.take();
        if !known {
            return;
        }
        let interval_ns = since_ns / packets;
        if interval_ns.abs_diff(self.period_ns) > self.limit_ns {
            self.steady = self.steady.saturating_sub(ODD_COST);
            self.odd += 1;
            if self.odd >= ODD_MAX || self.period_ns == 0 {
                (self.period_ns, self.steady, self.odd) = (interval_ns, 0, 0);
            }
            return;
        }
        self.odd = 0;
        self.steady = (self.steady + 1).min(STEADY_MAX);
        let differs_ns = interval_ns as i64 - self.period_ns as i64;
        self.period_ns = self.period_ns.saturating_add_signed(differs_ns / PERIOD_SHARE);
        if slept {
            // Whoever was woken by it, or after it, was late.
            self.lead_ns = match woke_ns.is_some_and(|woke_ns| woke_ns <= arrival_ns) {
                true => self.lead_ns.saturating_sub(BACK_NS),
                // The rest of the limit is for packets that come late.
                false => (self.lead_ns + STEP_NS).min(self.limit_ns / 4 * 3),
            };
        }
    }

    /// When to look out for the next packet; `None`: nobody knows when it comes, or it did not when it should.
    pub(super) fn lookout(&self, now_ns: u64) -> Option<Lookout> {
        if self.steady < STEADY_MIN {
            return None;
        }
        let due_ns = self.latest_ns.saturating_add(self.period_ns);
        let from_ns = due_ns.saturating_sub(self.lead_ns);
        let until_ns = from_ns.saturating_add(self.limit_ns);
        if now_ns >= until_ns {
            return None;
        }
        let sleeps = from_ns.saturating_sub(now_ns) >= SLEEP_MIN_NS;
        if !sleeps && now_ns < self.crowded_until_ns {
            return None;
        }
        Some(Lookout { sleep_until_ns: sleeps.then_some(from_ns), until_ns })
    }

    /// The reader, which looks out, looked at `before_ns` and at `now_ns`.
    pub(super) fn looked(&mut self, before_ns: u64, now_ns: u64) {
        if now_ns.saturating_sub(before_ns) < STALL_NS {
            return;
        }
        if now_ns.saturating_sub(self.stalls_from_ns) > STALLS_NS {
            (self.stalls, self.stalls_from_ns) = (0, now_ns);
        }
        self.stalls += 1;
        if self.stalls >= STALLS_MAX {
            self.crowded_until_ns = now_ns.saturating_add(CROWDED_NS);
        }
    }

    /// The reader sleeps for the next packet.
    pub(super) fn sleeps(&mut self) {
        (self.slept, self.woke_ns) = (true, None);
    }

    /// The sleep is over at `now_ns`, and not because of a packet.
    pub(super) fn woke(&mut self, now_ns: u64) {
        self.woke_ns = Some(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_NS: u64 = 100_000;
    const PERIOD_NS: u64 = 1_000_000;
    const START_NS: u64 = 10_000_000_000;

    /// Packets at `times`, each looked out for by a reader that wakes up `late_ns` after it should.
    fn run(expect: &mut Expect, times: impl IntoIterator<Item = u64>, late_ns: u64) {
        for time in times {
            if let Some(Lookout { sleep_until_ns: Some(until), .. }) =
                expect.lookout(expect.latest_ns)
            {
                expect.sleeps();
                if until + late_ns < time {
                    expect.woke(until + late_ns);
                }
            }
            expect.came(time, 1);
        }
    }

    fn steady(count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(|at| START_NS + at * PERIOD_NS)
    }

    #[test]
    fn nothing_is_expected_unless_asked_for() {
        let mut expect = Expect::new(0);
        run(&mut expect, steady(100), 0);
        assert_eq!(expect.lookout(expect.latest_ns), None);
    }

    #[test]
    fn the_next_of_a_steady_stream_is_expected_where_it_comes() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(50), 0);
        let due = START_NS + 50 * PERIOD_NS;
        let lookout = expect.lookout(due - PERIOD_NS).unwrap();
        let from = lookout.sleep_until_ns.unwrap();
        assert!((due - LIMIT_NS / 2..due).contains(&from), "{}", due - from);
        assert_eq!(lookout.until_ns, from + LIMIT_NS);
        // It did not come: it is waited for as if nothing were known.
        assert_eq!(expect.lookout(lookout.until_ns), None);
    }

    #[test]
    fn who_wakes_up_late_wakes_up_earlier_next_time() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(5_000), 60_000);
        assert!((60_000 - STEP_NS..60_000 + STEP_NS).contains(&expect.lead_ns), "{expect:?}");
        run(&mut expect, (5_000..10_000).map(|at| START_NS + at * PERIOD_NS), 5_000);
        assert!((5_000 - STEP_NS..5_000 + STEP_NS).contains(&expect.lead_ns), "{expect:?}");
        run(&mut expect, (10_000..11_000).map(|at| START_NS + at * PERIOD_NS), 900_000);
        assert!(expect.lead_ns <= LIMIT_NS / 4 * 3, "{expect:?}");
    }

    #[test]
    fn a_lost_packet_and_a_late_one_change_nothing() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(50).filter(|time| *time != START_NS + 48 * PERIOD_NS), 0);
        assert_eq!(expect.period_ns, PERIOD_NS);
        assert!(expect.lookout(expect.latest_ns).is_some());
    }

    #[test]
    fn packets_at_random_are_not_looked_out_for() {
        let mut expect = Expect::new(LIMIT_NS);
        // Differences of a millisecond and more from one interval to the next.
        let times = (0..200_u64).map(|at| START_NS + at * 5_000_000 + at * at % 7 * 600_000);
        let mut looked = 0;
        for time in times {
            looked += u32::from(expect.lookout(expect.latest_ns).is_some());
            expect.came(time, 1);
        }
        assert!(looked < 20, "{looked} of 200");
    }

    #[test]
    fn another_rate_is_learned() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(50), 0);
        let start = expect.latest_ns;
        run(&mut expect, (1..20).map(|at| start + at * 20_000_000), 0);
        assert_eq!(expect.period_ns, 20_000_000);
        assert!(expect.lookout(expect.latest_ns).is_some());
    }

    #[test]
    fn packets_that_come_together_count_each() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(50), 0);
        expect.came(START_NS + 53 * PERIOD_NS, 4);
        assert_eq!(expect.period_ns, PERIOD_NS);
    }

    #[test]
    fn who_is_close_does_not_sleep() {
        let mut expect = Expect::new(LIMIT_NS);
        run(&mut expect, steady(50), 0);
        let due = START_NS + 50 * PERIOD_NS;
        let lookout = expect.lookout(due - expect.lead_ns).unwrap();
        assert_eq!(lookout.sleep_until_ns, None);
    }

    #[test]
    fn who_loses_the_processor_again_and_again_sleeps_before_it_looks() {
        let mut expect = Expect::new(LIMIT_NS);
        let dense = |count: u64| (0..count).map(|at| START_NS + at * 20_000);
        run(&mut expect, dense(50), 0);
        let now = expect.latest_ns;
        // Now and then is the machine's own business.
        for at in 0..10 {
            let looked = now - 2_000_000_000 + at * 200_000_000;
            expect.looked(looked - STALL_NS, looked);
        }
        assert!(expect.lookout(now).is_some_and(|lookout| lookout.sleep_until_ns.is_none()));
        for at in 0..STALLS_MAX.into() {
            let looked = now - 10_000_000 + at * 2_000_000;
            expect.looked(looked - STALL_NS + 1, looked);
            expect.looked(looked - STALL_NS, looked);
        }
        assert_eq!(expect.lookout(now), None);
        // Where it sleeps it goes on.
        run(&mut expect, (1..50).map(|at| now + at * PERIOD_NS), 0);
        let lookout = expect.lookout(expect.latest_ns).unwrap();
        assert!(lookout.sleep_until_ns.is_some());
        // And some time later it tries again.
        let later = now + CROWDED_NS;
        run(&mut expect, (0..50).map(|at| later + at * 20_000), 0);
        assert!(expect.lookout(expect.latest_ns).is_some());
    }
}
