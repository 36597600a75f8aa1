//! When each byte of a transport stream is due: PCRs in, times of bytes out.
//!
//! ISO/IEC 13818-1 section 2.4.2.2: between two PCRs of one time base the bytes arrive at a constant rate.
//! The first byte of the stream is at time 0. Where PCRs say nothing (before the first, after the last,
//! across a discontinuity), time goes on at the rate that was last known, so the timeline has no jumps
//! and never goes back; only bytes for which no rate was ever known take the fallback rate.

use std::collections::VecDeque;

/// Ticks per second of the system clock.
pub(super) const CLOCK: u64 = 27_000_000;

/// A PCR wraps here: a 33-bit base in 90 kHz and an extension of 300 ticks.
const PCR_WRAP: u64 = (1 << 33) * 300;

/// PCRs are at most 0.1 s apart (section 2.7.2). Up to here we believe them anyway...
const BELIEVED: u64 = CLOCK;

/// ...and up to here when the rate stays within a factor of two, as in files with rare PCRs.
const BELIEVED_AT_THE_SAME_RATE: u64 = 10 * CLOCK;

/// Ticks for a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    ticks: u64,
    bytes: u64,
}

impl Rate {
    fn ticks_for(self, bytes: u64) -> u64 {
        (u128::from(bytes) * u128::from(self.ticks) / u128::from(self.bytes.max(1))) as u64
    }

    /// Whether two rates differ by a factor of two at most.
    fn is_near(self, other: Rate) -> bool {
        let ours = u128::from(self.ticks) * u128::from(other.bytes);
        let theirs = u128::from(other.ticks) * u128::from(self.bytes);
        ours <= 2 * theirs && theirs <= 2 * ours
    }
}

/// A byte whose time is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor {
    byte: u64,
    ticks: u64,
}

/// Bytes of one rate: from an anchor up to the next segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: Anchor,
    rate: Rate,
}

impl Segment {
    fn ticks_at(&self, byte: u64) -> u64 {
        self.from.ticks + self.rate.ticks_for(byte.saturating_sub(self.from.byte))
    }
}

#[derive(Clone, Copy, Debug)]
struct Pcr {
    byte: u64,
    value: u64,
}

/// The timeline of one transport stream.
#[derive(Debug)]
pub(super) struct Timeline {
    fallback: Rate,
    rate: Option<Rate>,
    /// The latest PCR of the running time base.
    base: Option<Pcr>,
    /// Times are decided up to here.
    origin: Anchor,
    /// The decided segments that are still needed, oldest first.
    segments: VecDeque<Segment>,
    jumps: u64,
    fell_back: bool,
}

impl Timeline {
    /// `bitrate` in bits per second is for streams without PCR.
    pub fn new(bitrate: u64) -> Self {
        Self {
            fallback: Rate { ticks: 8 * CLOCK, bytes: bitrate.max(1) },
            rate: None,
            base: None,
            origin: Anchor { byte: 0, ticks: 0 },
            segments: VecDeque::new(),
            jumps: 0,
            fell_back: false,
        }
    }

    /// Bytes before this one have their time.
    pub fn decided(&self) -> u64 {
        self.origin.byte
    }

    /// How often the time base changed or a PCR did not fit the one before.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    /// Whether bytes had to take the fallback rate.
    pub fn fell_back(&self) -> bool {
        self.fell_back
    }

    /// The PCR that refers to `byte`. `new_base`: a discontinuity was indicated.
    pub fn pcr(&mut self, byte: u64, value: u64, new_base: bool) {
        let here = Pcr { byte, value };
        let Some(base) = self.base.replace(here) else {
            return self.extend(byte);
        };
        let interval = Rate { ticks: elapsed(base.value, value), bytes: byte - base.byte };
        if !new_base && self.believes(interval) {
            self.rate = Some(interval);
        } else {
            self.jumps += 1;
        }
        self.extend(byte);
    }

    /// No PCR is to be waited for any longer: times are decided up to `byte`, and the next PCR begins a new base.
    pub fn give_up(&mut self, byte: u64) {
        if self.rate.is_none() && byte > self.origin.byte {
            self.fell_back = true;
            self.decide(byte, self.fallback);
        }
        self.extend(byte);
        self.base = None;
    }

    /// The time of a decided byte, in ticks of 27 MHz since byte 0. Bytes are asked for in order.
    pub fn at(&mut self, byte: u64) -> u64 {
        while self.segments.get(1).is_some_and(|next| next.from.byte <= byte) {
            self.segments.pop_front();
        }
        self.segments.front().map_or(self.origin.ticks, |segment| segment.ticks_at(byte))
    }

    /// The stream begins again at `byte`: whatever is known of later bytes is void.
    pub fn restart(&mut self, byte: u64) {
        let ticks = self.at(byte);
        self.origin = Anchor { byte, ticks };
        self.segments.clear();
        self.base = None;
    }

    fn believes(&self, interval: Rate) -> bool {
        let near = || self.rate.is_none_or(|rate| rate.is_near(interval));
        match interval.ticks {
            0 => false,
            ticks if ticks <= BELIEVED => true,
            ticks => ticks <= BELIEVED_AT_THE_SAME_RATE && near(),
        }
    }

    /// Decides up to `byte` if any rate is known.
    fn extend(&mut self, byte: u64) {
        if let Some(rate) = self.rate {
            self.decide(byte, rate);
        }
    }

    fn decide(&mut self, byte: u64, rate: Rate) {
        if byte <= self.origin.byte {
            return;
        }
        let segment = Segment { from: self.origin, rate };
        self.segments.push_back(segment);
        self.origin = Anchor { byte, ticks: segment.ticks_at(byte) };
    }
}

/// Ticks from one PCR to a later one, across the wrap. A step back shows as one of many hours.
fn elapsed(from: u64, to: u64) -> u64 {
    (to + PCR_WRAP - from % PCR_WRAP) % PCR_WRAP
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 Mb/s: 54 ticks a byte.
    const RATE: u64 = 54;

    fn timeline() -> Timeline {
        Timeline::new(8_000_000)
    }

    #[test]
    fn bytes_between_two_pcrs_are_interpolated_and_those_around_extrapolated() {
        let mut line = timeline();
        line.pcr(1_000, 5_000_000, false);
        assert_eq!(line.decided(), 0);
        line.pcr(3_000, 5_000_000 + 2_000 * RATE, false);
        line.pcr(5_000, 5_000_000 + 2_000 * RATE + 1_000 * RATE, false); // twice as fast
        line.give_up(6_000);
        assert_eq!(line.decided(), 6_000);
        assert_eq!(line.at(0), 0);
        assert_eq!(line.at(2_000), 2_000 * RATE);
        assert_eq!(line.at(3_000), 3_000 * RATE);
        assert_eq!(line.at(4_000), 3_500 * RATE);
        assert_eq!(line.at(5_999), 3_000 * RATE + 2_999 * RATE / 2);
    }

    #[test]
    fn the_33_bit_base_wraps() {
        let mut line = timeline();
        line.pcr(0, PCR_WRAP - 300, false);
        line.pcr(100, 100 * RATE - 300, false);
        assert_eq!(line.at(100), 100 * RATE);
        assert_eq!(line.jumps(), 0);
    }

    #[test]
    fn time_goes_on_at_the_last_rate_across_an_indicated_discontinuity() {
        let mut line = timeline();
        line.pcr(0, 0, false);
        line.pcr(1_000, 1_000 * RATE, false);
        // Would be believable, were it not indicated.
        line.pcr(2_000, 1_000 * RATE + 5 * RATE, true);
        line.pcr(3_000, 1_000 * RATE + 5 * RATE + 1_000 * RATE, false);
        assert_eq!(line.at(2_000), 2_000 * RATE);
        assert_eq!(line.at(3_000), 3_000 * RATE);
        assert_eq!(line.jumps(), 1);
    }

    #[test]
    fn a_jump_back_or_far_ahead_is_a_discontinuity_though_not_indicated() {
        for jump in [PCR_WRAP - 30 * CLOCK, 2 * CLOCK, 3_600 * CLOCK, PCR_WRAP - 1_000 * RATE] {
            let mut line = timeline();
            line.pcr(0, 0, false);
            line.pcr(1_000, 1_000 * RATE, false);
            line.pcr(2_000, (2_000 * RATE + jump) % PCR_WRAP, false);
            line.pcr(3_000, (3_000 * RATE + jump) % PCR_WRAP, false);
            assert_eq!(line.at(3_000), 3_000 * RATE, "jump {jump}");
            assert_eq!(line.jumps(), 1, "jump {jump}");
        }
    }

    #[test]
    fn rare_pcrs_are_believed_while_the_rate_stays_alike() {
        let mut line = timeline();
        let five_seconds = 5 * CLOCK / RATE;
        line.pcr(0, 0, false);
        line.pcr(five_seconds, 5 * CLOCK, false);
        line.pcr(2 * five_seconds, 10 * CLOCK + CLOCK / 10, false);
        assert_eq!(line.at(2 * five_seconds), 10 * CLOCK + CLOCK / 10);
        assert_eq!(line.jumps(), 0);
    }

    #[test]
    fn a_discontinuity_before_any_rate_is_known_takes_the_rate_behind_it() {
        let mut line = timeline();
        line.pcr(100, 9_000_000, false);
        line.pcr(200, 77, true);
        assert_eq!(line.decided(), 0);
        line.pcr(300, 77 + 100 * RATE, false);
        assert_eq!(line.decided(), 300);
        assert_eq!(line.at(300), 300 * RATE);
        assert!(!line.fell_back());
    }

    #[test]
    fn without_any_pcr_the_fallback_rate_decides() {
        let mut line = timeline();
        line.give_up(1_000);
        line.give_up(3_000);
        assert_eq!(line.at(1_000), 27_000); // 8 Mb/s: 27 ticks a byte
        assert_eq!(line.at(2_000), 54_000);
        assert!(line.fell_back());
    }

    #[test]
    fn a_restart_goes_on_where_the_last_pass_ended() {
        let mut line = timeline();
        line.pcr(10, 0, false);
        line.pcr(1_000, 990 * RATE, false);
        line.give_up(1_200);
        line.restart(1_200);
        line.pcr(1_210, 0, false);
        line.pcr(2_200, 990 * RATE * 2, false);
        assert_eq!(line.at(1_200), 1_200 * RATE);
        assert_eq!(line.at(1_210), 1_210 * RATE);
        assert_eq!(line.at(2_200), 1_210 * RATE + 990 * RATE * 2);
        assert_eq!(line.jumps(), 0);
    }
}
