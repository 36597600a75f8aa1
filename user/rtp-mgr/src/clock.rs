//! The clocks of a stream and how to get from one to another.
//!
//! What lives here: CLOCK_MONOTONIC (deadlines, jitter, pacing), CLOCK_REALTIME (kernel receive
//! times, captures), CLOCK_TAI (the ABI), their offsets, and noticing when CLOCK_REALTIME is set. What
//! does not: RTP and NTP timestamps ([`crate::rtcp`]).
//!
//! CLOCK_REALTIME is CLOCK_MONOTONIC plus a number that changes only when somebody *sets* the clock
//! (or a leap second passes): NTP and PTP speed both up and down together. So one good sample of the
//! offset serves until the next step, and any change beyond the sampling error is a step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    ClockId, DynamicClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
    clock_gettime, clock_gettime_dynamic, timerfd_create, timerfd_settime,
};

const NANOS: i64 = 1_000_000_000;
/// Samples taken for one offset; the one with the shortest time between its readings counts.
const SAMPLES: usize = 5;
/// Change of an offset that is a step for certain, beyond the errors of both samples, nanoseconds.
const STEP_MIN_NS: i64 = 1_000;
/// Oldest kernel receive time that is believed, nanoseconds before now: no socket buffer holds a
/// packet longer unless its reader was stopped.
const ARRIVAL_AGE_MAX_NS: u64 = 60 * NANOS as u64;

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    now(ClockId::Monotonic)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    now(ClockId::Realtime)
}

/// CLOCK_TAI in nanoseconds since 1970; equals [`realtime_ns`] on machines without a TAI offset.
pub fn tai_ns() -> u64 {
    clock_gettime_dynamic(DynamicClockId::Tai).map_or_else(|_| realtime_ns(), nanos)
}

fn now(clock: ClockId) -> u64 {
    nanos(clock_gettime(clock))
}

fn nanos(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec * NANOS + time.tv_nsec).unwrap_or(0)
}

/// TAI - UTC as the machine has it configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaiOffset {
    /// Seconds; 37 since 2017.
    pub seconds: i32,
    /// Whether it is configured. The kernel starts with 0, which no machine has had since 1972.
    pub valid: bool,
}

impl TaiOffset {
    /// The offset of `seconds`, valid unless 0.
    pub fn new(seconds: i32) -> Self {
        Self { seconds, valid: seconds != 0 }
    }

    /// Reads the kernel's (`adjtimex`).
    pub fn read() -> Self {
        crate::net::clock_discipline()
            .map(|discipline| Self::new(discipline.tai_offset_s))
            .unwrap_or_default()
    }

    fn nanos(self) -> i64 {
        i64::from(self.seconds) * NANOS
    }
}

/// CLOCK_REALTIME - CLOCK_MONOTONIC, measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The difference in nanoseconds.
    pub ns: i64,
    /// It is off by at most this, nanoseconds.
    pub error_ns: u64,
}

impl Offset {
    /// Measures it: CLOCK_REALTIME read between two readings of CLOCK_MONOTONIC, the best of a few.
    pub fn measure() -> Self {
        (0..SAMPLES)
            .map(|_| {
                let before = monotonic_ns();
                let realtime = realtime_ns();
                Self::between(before, realtime, monotonic_ns())
            })
            .min_by_key(|offset| offset.error_ns)
            .expect("at least one sample")
    }

    /// The offset, when `realtime` was read between `before` and `after`.
    pub fn between(before: u64, realtime: u64, after: u64) -> Self {
        let width = after.saturating_sub(before);
        let middle = before + width / 2;
        Self { ns: realtime.wrapping_sub(middle) as i64, error_ns: width.div_ceil(2) }
    }
}

/// A step of CLOCK_REALTIME or of the TAI offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How far CLOCK_REALTIME jumped, nanoseconds; 0 when only the TAI offset changed.
    pub realtime_ns: i64,
    /// The TAI offset from now on.
    pub tai: TaiOffset,
}

/// Converts between the clocks with offsets sampled at [`refresh`](Clock::refresh).
#[derive(Clone, Debug)]
pub struct Clock {
    offset: Offset,
    /// The offset before the last step, for times taken before it.
    former: Option<Offset>,
    tai: TaiOffset,
    generation: u64,
}

/// When a packet arrived, on the two clocks that the ring uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// CLOCK_TAI, nanoseconds.
    pub tai_ns: u64,
}

impl Clock {
    /// Samples the machine's clocks.
    pub fn new() -> Self {
        Self::with(Offset::measure(), TaiOffset::read())
    }

    /// A clock with known offsets.
    pub fn with(offset: Offset, tai: TaiOffset) -> Self {
        Self { offset, former: None, tai, generation: 0 }
    }

    /// Samples again. Returns the step, if there was one since the last time.
    ///
    /// Call it about once a second, and when a [`StepWatch`] says so.
    pub fn refresh(&mut self) -> Option<Step> {
        self.update(Offset::measure(), TaiOffset::read())
    }

    /// Takes a new sample over: [`refresh`](Self::refresh) without reading the clocks.
    pub fn update(&mut self, offset: Offset, tai: TaiOffset) -> Option<Step> {
        let change = offset.ns.wrapping_sub(self.offset.ns);
        let error = offset.error_ns.saturating_add(self.offset.error_ns);
        let stepped = change.unsigned_abs() > error.saturating_add(STEP_MIN_NS as u64);
        let retold = tai != self.tai;
        if stepped {
            self.former = Some(self.offset);
            self.offset = offset;
        } else if offset.error_ns < self.offset.error_ns {
            self.offset = offset;
        }
        self.tai = tai;
        if !stepped && !retold {
            return None;
        }
        self.generation += 1;
        Some(Step { realtime_ns: if stepped { change } else { 0 }, tai })
    }

    /// Raised at every step.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// TAI - UTC.
    pub fn tai_offset(&self) -> TaiOffset {
        self.tai
    }

    /// When a packet arrived that the kernel stamped with `realtime_ns`, seen at `now_ns`
    /// (CLOCK_MONOTONIC). Never later than now.
    ///
    /// A time stamped before a step and read after it is converted with the offset of its time, as
    /// far as that can be told: from the result being in the future or absurdly old.
    pub fn arrival(&self, realtime_ns: u64, now_ns: u64) -> Arrival {
        let plausible = |offset: &Offset| {
            let monotonic_ns = realtime_ns.checked_add_signed(offset.ns.checked_neg()?)?;
            let early = monotonic_ns.saturating_sub(now_ns);
            let age = now_ns.saturating_sub(monotonic_ns);
            (early <= offset.error_ns + STEP_MIN_NS as u64 && age <= ARRIVAL_AGE_MAX_NS)
                .then_some(monotonic_ns.min(now_ns))
        };
        let monotonic_ns = plausible(&self.offset)
            .or_else(|| self.former.as_ref().and_then(plausible))
            .unwrap_or(now_ns);
        Arrival { monotonic_ns, tai_ns: self.tai_from_monotonic(monotonic_ns) }
    }

    /// CLOCK_REALTIME to CLOCK_MONOTONIC.
    pub fn monotonic_from_realtime(&self, realtime_ns: u64) -> u64 {
        shift(realtime_ns, self.offset.ns.saturating_neg())
    }

    /// CLOCK_MONOTONIC to CLOCK_REALTIME.
    pub fn realtime_from_monotonic(&self, monotonic_ns: u64) -> u64 {
        shift(monotonic_ns, self.offset.ns)
    }

    /// CLOCK_REALTIME to CLOCK_TAI.
    pub fn tai_from_realtime(&self, realtime_ns: u64) -> u64 {
        shift(realtime_ns, self.tai.nanos())
    }

    /// CLOCK_TAI to CLOCK_REALTIME.
    pub fn realtime_from_tai(&self, tai_ns: u64) -> u64 {
        shift(tai_ns, -self.tai.nanos())
    }

    /// CLOCK_MONOTONIC to CLOCK_TAI.
    pub fn tai_from_monotonic(&self, monotonic_ns: u64) -> u64 {
        self.tai_from_realtime(self.realtime_from_monotonic(monotonic_ns))
    }

    /// CLOCK_TAI to CLOCK_MONOTONIC.
    pub fn monotonic_from_tai(&self, tai_ns: u64) -> u64 {
        self.monotonic_from_realtime(self.realtime_from_tai(tai_ns))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// `time + by`, held between 0 and the end of time.
fn shift(time: u64, by: i64) -> u64 {
    time.saturating_add_signed(by)
}

/// A file descriptor that becomes readable when CLOCK_REALTIME or the TAI offset is set: a timer far
/// in the future that the kernel cancels then (`TFD_TIMER_CANCEL_ON_SET`).
#[derive(Debug)]
pub struct StepWatch(OwnedFd);

impl StepWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// No file descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let watch = Self(timerfd_create(TimerfdClockId::Realtime, flags)?);
        watch.arm()?;
        Ok(watch)
    }

    /// Whether the clock was set since the last call; watches on.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn stepped(&self) -> io::Result<bool> {
        let stepped = match rustix::io::read(&self.0, &mut [0; 8]) {
            Err(rustix::io::Errno::CANCELED) | Ok(_) => true,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        if stepped {
            self.arm()?;
        }
        Ok(stepped)
    }

    fn arm(&self) -> io::Result<()> {
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: i64::from(u32::MAX), tv_nsec: 0 },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.0, flags, &never) {
            // Told once when the clock was set in between: the timer is armed all the same.
            Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for StepWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = NANOS as u64;

    fn clock(offset_ns: i64, error_ns: u64, tai: i32) -> Clock {
        Clock::with(Offset { ns: offset_ns, error_ns }, TaiOffset::new(tai))
    }

    #[test]
    fn the_measured_offset_predicts_a_later_reading() {
        let offset = Offset::measure();
        let before = monotonic_ns();
        let realtime = realtime_ns();
        let after = monotonic_ns();
        let clock = Clock::with(offset, TaiOffset::default());
        let error = offset.error_ns + 1;
        let predicted = clock.monotonic_from_realtime(realtime);
        assert!(before <= predicted + error && predicted <= after + error);
    }

    #[test]
    fn the_tai_offset_is_the_difference_of_the_kernels_clocks() {
        let before = realtime_ns();
        let tai = tai_ns();
        let after = realtime_ns();
        let offset = TaiOffset::read();
        let shifted = shift(tai, -offset.nanos());
        assert!(before <= shifted && shifted <= after);
        assert_eq!(offset.valid, offset.seconds != 0);
    }

    #[test]
    fn noise_within_the_sampling_error_is_no_step_and_the_best_sample_stays() {
        let mut clock = clock(1_000 * NANOS, 40, 37);
        let noisy = Offset { ns: 1_000 * NANOS + 900_000, error_ns: 900_000 };
        assert_eq!(clock.update(noisy, TaiOffset::new(37)), None);
        assert_eq!(clock.generation(), 0);
        assert_eq!(clock.realtime_from_monotonic(0), 1_000 * S);
        let better = Offset { ns: 1_000 * NANOS + 10, error_ns: 20 };
        assert_eq!(clock.update(better, TaiOffset::new(37)), None);
        assert_eq!(clock.realtime_from_monotonic(0), 1_000 * S + 10);
    }

    #[test]
    fn setting_the_clock_is_a_step_of_that_size() {
        for by in [-3_600 * NANOS, -1_500, 1_500, NANOS, 20 * 365 * 86_400 * NANOS] {
            let mut clock = clock(2_000_000 * NANOS, 50, 37);
            let offset = Offset { ns: 2_000_000 * NANOS + by, error_ns: 50 };
            let step = clock.update(offset, TaiOffset::new(37));
            assert_eq!(step, Some(Step { realtime_ns: by, tai: TaiOffset::new(37) }));
            assert_eq!(clock.generation(), 1);
            assert_eq!(clock.update(offset, TaiOffset::new(37)), None, "told once");
        }
    }

    #[test]
    fn a_new_tai_offset_is_a_step_of_the_tai_clock_alone() {
        let mut clock = clock(NANOS, 50, 0);
        assert!(!clock.tai_offset().valid);
        let step = clock.update(Offset { ns: NANOS, error_ns: 50 }, TaiOffset::new(37));
        assert_eq!(step, Some(Step { realtime_ns: 0, tai: TaiOffset::new(37) }));
        assert_eq!(clock.tai_from_realtime(10 * S), 47 * S);
        assert_eq!(clock.generation(), 1);
    }

    #[test]
    fn times_stamped_before_a_step_keep_their_place() {
        let now = 500 * S;
        let stamped = 100_000 * S + now - 2_000_000;
        for by in [-3_600 * NANOS, 3_600 * NANOS] {
            let mut clock = clock(100_000 * NANOS, 50, 37);
            assert_eq!(clock.arrival(stamped, now).monotonic_ns, now - 2_000_000);
            let offset = Offset { ns: 100_000 * NANOS + by, error_ns: 50 };
            clock.update(offset, TaiOffset::new(37)).unwrap();
            assert_eq!(clock.arrival(stamped, now).monotonic_ns, now - 2_000_000, "by {by}");
            let after = stamped.checked_add_signed(by).unwrap();
            assert_eq!(clock.arrival(after, now).monotonic_ns, now - 2_000_000, "by {by}");
        }
    }

    #[test]
    fn an_arrival_is_never_later_than_now_and_absurd_times_count_as_now() {
        let clock = clock(1_000 * NANOS, 50, 37);
        let now = 500 * S;
        for stamped in [0, 1, 1_000 * S, 1_500 * S + 1, 9_999 * S, u64::MAX] {
            let arrival = clock.arrival(stamped, now);
            assert_eq!(arrival.monotonic_ns, now, "stamped {stamped}");
            assert_eq!(arrival.tai_ns, 1_537 * S);
        }
    }

    #[test]
    fn nothing_stepped_while_the_watch_is_new() {
        let watch = StepWatch::new().unwrap();
        assert!(!watch.stepped().unwrap());
    }

    proptest! {
        #[test]
        fn conversions_are_inverse(
            offset in 0..i64::MAX / 4, tai in -1_000..1_000, time in 2_000 * S..u64::MAX / 4,
        ) {
            let clock = clock(offset, 0, tai);
            let realtime = clock.realtime_from_monotonic(time);
            prop_assert_eq!(clock.monotonic_from_realtime(realtime), time);
            prop_assert_eq!(clock.realtime_from_tai(clock.tai_from_realtime(time)), time);
            prop_assert_eq!(clock.monotonic_from_tai(clock.tai_from_monotonic(time)), time);
        }

        #[test]
        fn no_time_makes_it_panic(offset: i64, error: u64, tai: i32, time: u64, now: u64) {
            let clock = clock(offset, error.min(u64::MAX / 2), tai);
            let _ = clock.arrival(time, now);
            let _ = clock.tai_from_monotonic(time);
            let _ = clock.monotonic_from_tai(time);
            let _ = clock.clone().update(Offset { ns: now as i64, error_ns: error }, TaiOffset::new(tai));
        }
    }
}
