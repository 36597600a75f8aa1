//! RFC 3550 figures of one source: sequence, loss, duplication, order, jitter.
//!
//! What lives here: the state of one source as one leg hears it. What does not: merging legs and
//! deciding which source a stream follows ([`super::receive`]), where a packet goes
//! ([`super::staging`]).
//!
//! RFC 3550 A.1 taken literally loses packets, so this differs from it where it would:
//! * The first packet of a source counts; there is no probation here.
//! * A jump of [`MAX_DROPOUT`] or more is loss when the RTP timestamp and the arrival time advanced
//!   together ([`Source::observe`] says by how much they may differ), and otherwise begins a
//!   restart, confirmed by a second packet in sequence. The first packet of a confirmed restart
//!   counts after all.
//! * Jitter is RFC 3550 A.8 with its four fractional bits, in nanoseconds instead of timestamp
//!   units.
//!
//! An outage of 65,536 packets or more is ambiguous in 16 bits: whole cycles of it go uncounted. So
//! is a sender that restarts with a random sequence number and timestamps that go on (those of ST
//! 2110 do): after a pause long enough it looks like loss.

use super::abi::SourceFigures;
use super::header::RtpHeader;

/// A jump ahead by fewer than this is loss, whatever the time (RFC 3550 A.1).
pub const MAX_DROPOUT: u16 = 3_000;
/// The least that a packet may lag behind the highest and still count as late (RFC 3550 A.1).
pub const MAX_MISORDER: u32 = 100;
/// Duplicates are told among this many sequence numbers up to the highest. What comes later than
/// that counts as reordered.
pub const DUPLICATE_WINDOW: u64 = 1_024;

/// Half the sequence space: beyond it, behind and ahead change places.
const MISORDER_LIMIT: u32 = 0x8000;
/// One cycle of sequence numbers.
const CYCLE: u64 = 0x1_0000;
const WINDOW_WORDS: usize = (DUPLICATE_WINDOW / 64) as usize;
/// How far timestamp and arrival may differ over an outage: network delay changes by tenths of a
/// second when a route does, a frame's packets share a timestamp ...
const OUTAGE_SLACK_NS: u64 = 500_000_000;
/// ... and pacing of senders is off by some percent. A restart's random timestamp fits by chance in
/// fewer than 1 of 10,000 cases (90 kHz, outages up to 15 s).
const OUTAGE_SLACK_SHARE: u64 = 8;
/// An outage lasts at least this share of what its packets take at the source's own pace ...
const OUTAGE_PACE_SHARE: u64 = 32;
/// ... and this share, and this long, when the packet may be a late one instead.
const LATE_PACE_SHARE: u64 = 2;
/// See [`LATE_PACE_SHARE`].
const LATE_NS: u64 = 10_000_000;
/// Gaps between packets that the source's pace is averaged over.
const PACE_GAPS: u64 = 256;
/// What a clock rate that nobody told is measured over, at least.
const RATE_PACKETS: u64 = 16;
/// See [`RATE_PACKETS`].
const RATE_NS: u64 = 100_000_000;
/// Packets out of range, each within MAX_MISORDER of the one before, that confirm a restart even
/// when no two are in sequence.
const RESTART_RUN: u8 = 3;
const NS_PER_S: u64 = 1_000_000_000;

/// What a [`Source`] needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// RTP sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Arrival in nanoseconds of a clock that does not step.
    pub arrival_ns: u64,
    /// Payload, in bytes, padding not counted.
    pub payload_len: u32,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// The marker bit.
    pub marker: bool,
}

impl Seen {
    /// What `header` says of a packet that arrived at `arrival_ns`.
    #[inline]
    pub fn new(header: &RtpHeader, arrival_ns: u64) -> Self {
        Self {
            sequence: header.sequence,
            timestamp: header.timestamp,
            arrival_ns,
            payload_len: u32::try_from(header.payload_len).unwrap_or(u32::MAX),
            payload_type: header.payload_type,
            marker: header.marker,
        }
    }
}

/// Comfort noise (RFC 3389; 19 before it): sent when there is something to say.
const fn is_comfort_noise(payload_type: u8) -> bool {
    matches!(payload_type, 13 | 19)
}

/// What a packet was, with its extended sequence number: the packet's own 16 bits below, cycles
/// above. Extended numbers start with one cycle, so that packets before the first have one too, and
/// never decrease from one run to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first of the source.
    First {
        /// Its extended sequence number.
        ext: u64,
    },
    /// One more than the highest before.
    Next {
        /// Its extended sequence number.
        ext: u64,
    },
    /// Further ahead: packets are missing before it.
    Gap {
        /// Its extended sequence number.
        ext: u64,
        /// How many are missing, 1 to 65,535.
        missing: u32,
    },
    /// Behind the highest, not known to have come before.
    Reordered {
        /// Its extended sequence number.
        ext: u64,
    },
    /// Has come before.
    Duplicate {
        /// Its extended sequence number.
        ext: u64,
    },
    /// Far out of sequence. It counts nowhere until a later [`Step::Restart`] confirms it; a further
    /// `Stray` takes its place.
    Stray,
    /// Confirms the latest [`Step::Stray`]: the source has begun a new run.
    Restart {
        /// Its extended sequence number.
        ext: u64,
        /// The extended sequence number of that stray: `ext - 1` when the two are in sequence.
        held: u64,
    },
}

/// Where a sequence number is relative to the highest.
enum Place {
    /// Ahead by 1 to 65,535.
    Ahead(u64),
    /// Behind by 0 or more.
    Behind(u64),
    /// Neither: out of range.
    Far,
}

/// A packet far out of sequence that a next one may confirm.
#[derive(Clone, Copy, Debug)]
struct Stray {
    seen: Seen,
    /// Further copies of it.
    copies: u64,
    /// Strays up to this one, each near the one before.
    run: u8,
    /// Packets in sequence since.
    age: u32,
}

/// A point in a source's time: when it arrived, what it was stamped.
#[derive(Clone, Copy, Debug, Default)]
struct Instant {
    arrival_ns: u64,
    timestamp: u32,
}

/// A.8 interarrival jitter.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Jitter {
    /// The packet before, if its clock rate is known.
    reference: Option<Instant>,
    /// Timestamp units from the first packet to the reference.
    since_first: i64,
    after_comfort_noise: bool,
    /// Timestamp units of the latest step, and nanoseconds that they are: most steps are alike.
    step: (i32, i64),
    pub(super) q4_ns: u64,
    pub(super) max_q4_ns: u64,
    pub(super) sum_q4_ns: u64,
    pub(super) count: u64,
}

/// State and figures of one source. Plain data: copying it takes a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Hz of the packets to come; 0: not known.
    clock_rate: u32,
    /// The latest rate that was not 0.
    known_rate: u32,
    started: bool,
    first: u64,
    base: u64,
    highest: u64,
    /// Expected in the runs before this one.
    expected_before: u64,
    /// One bit for each of the [`DUPLICATE_WINDOW`] numbers up to the highest.
    window: [u64; WINDOW_WORDS],
    received: u64,
    unique: u64,
    bytes: u64,
    duplicate: u64,
    reordered: u64,
    restarts: u64,
    strays: u64,
    stray: Option<Stray>,
    first_ns: u64,
    last: Instant,
    /// The packet with the highest number.
    top: Instant,
    /// Arrival of the run's first packet.
    run_ns: u64,
    /// Timestamp units from there to `top`.
    run_ticks: i64,
    /// Mean time between neighbouring numbers, and over how many it was taken so far.
    pace_ns: u64,
    pace_count: u64,
    jitter: Jitter,
}

/// Adds `amount`, at most to what there is room for.
#[inline(always)]
fn sum(before: i64, amount: i64) -> i64 {
    match before.checked_add(amount) {
        Some(sum) => sum,
        None => saturated(amount),
    }
}

/// What a sum is that adding `amount` to was too much for. It takes a lifetime to come to that.
#[cold]
fn saturated(amount: i64) -> i64 {
    if amount < 0 {
        i64::MIN
    } else {
        i64::MAX
    }
}

/// The next packets of a source, which arrived together and are not accounted for before [`end`](Self::end).
#[derive(Debug)]
pub(super) struct Streak<'a> {
    source: &'a mut Source,
    arrival_ns: u64,
    /// Extended sequence number of the latest, and its timestamp.
    latest: u64,
    timestamp: u32,
    /// Timestamp units from the packet before the first to the latest.
    ticks: i64,
    bytes: u64,
    /// Hz; 0: not known.
    clock_rate: u32,
}

impl Streak<'_> {
    /// The sequence number of the next one.
    #[inline(always)]
    pub(super) fn next_sequence(&self) -> u16 {
        (self.latest as u16).wrapping_add(1)
    }

    /// [`observe_next`](Source::observe_next) of one more. There are never as many as would be too much for a sum.
    #[inline(always)]
    pub(super) fn observe_next(&mut self, timestamp: u32, payload_len: u32, marker: bool) -> u64 {
        let ticks = timestamp.wrapping_sub(self.timestamp) as i32;
        self.ticks = self.ticks.wrapping_add(ticks.into());
        self.timestamp = timestamp;
        if self.clock_rate != 0 {
            let seen = Seen {
                // Of no account here.
                sequence: 0,
                timestamp,
                arrival_ns: self.arrival_ns,
                payload_len,
                payload_type: 0,
                marker,
            };
            self.source.jitter.observe_sound(&seen, self.clock_rate);
        }
        self.bytes = self.bytes.wrapping_add(payload_len.into());
        self.latest = self.latest.wrapping_add(1);
        self.latest
    }

    /// Accounts for them. Returns how many they were, their payload in bytes, and the last one's number.
    #[inline]
    pub(super) fn end(self) -> (u64, u64, u64) {
        let Self { source, arrival_ns, latest, timestamp, ticks, bytes, .. } = self;
        let count = latest.wrapping_sub(source.highest);
        if count > 0 {
            source.observe_pace_of(arrival_ns, count);
            source.run_ticks = sum(source.run_ticks, ticks);
            source.top = Instant { arrival_ns, timestamp };
            source.mark_all(source.highest.wrapping_add(1), count);
            source.highest = latest;
            source.received = source.received.wrapping_add(count);
            source.unique = source.unique.wrapping_add(count);
            source.bytes = source.bytes.wrapping_add(bytes);
            source.last = source.top;
            source.jitter.after_comfort_noise = false;
        }
        (count, bytes, latest)
    }
}

impl Source {
    /// A source that nothing has come from. `clock_rate` in Hz, 0 when it is not known.
    pub const fn new(clock_rate: u32) -> Self {
        Self {
            clock_rate,
            known_rate: clock_rate,
            started: false,
            first: 0,
            base: 0,
            highest: 0,
            expected_before: 0,
            window: [0; WINDOW_WORDS],
            received: 0,
            unique: 0,
            bytes: 0,
            duplicate: 0,
            reordered: 0,
            restarts: 0,
            strays: 0,
            stray: None,
            first_ns: 0,
            last: Instant { arrival_ns: 0, timestamp: 0 },
            top: Instant { arrival_ns: 0, timestamp: 0 },
            run_ns: 0,
            run_ticks: 0,
            pace_ns: 0,
            pace_count: 0,
            jitter: Jitter {
                reference: None,
                since_first: 0,
                after_comfort_noise: false,
                step: (0, 0),
                q4_ns: 0,
                max_q4_ns: 0,
                sum_q4_ns: 0,
                count: 0,
            },
        }
    }

    /// Sets the clock rate of the packets to come, in Hz; 0: not known. For a source whose payload
    /// type changes: call it before [`observe`](Self::observe).
    #[inline]
    pub fn set_clock_rate(&mut self, clock_rate: u32) {
        self.clock_rate = clock_rate;
        self.jitter.step = (0, 0);
        if clock_rate != 0 {
            self.known_rate = clock_rate;
        }
    }

    /// The latest known clock rate in Hz, 0: none.
    pub const fn latest_clock_rate(&self) -> u32 {
        self.known_rate
    }

    /// Whether a packet has come.
    pub const fn started(&self) -> bool {
        self.started
    }

    /// The highest extended sequence number of the run; 0 before the first packet.
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// RFC 3550 A.3 expected: highest - base + 1, summed over runs. The base is the run's first
    /// packet (moved back only by its second).
    pub const fn expected(&self) -> u64 {
        if self.started {
            self.expected_before.wrapping_add(self.run_expected())
        } else {
            0
        }
    }

    /// Packets, copies included.
    pub const fn received(&self) -> u64 {
        self.received
    }

    pub(super) const fn jitter(&self) -> &Jitter {
        &self.jitter
    }

    /// Different packets that came.
    pub const fn unique(&self) -> u64 {
        self.unique
    }

    /// Payload bytes of the different packets.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Packets that came after one with a higher number.
    pub const fn reordered(&self) -> u64 {
        self.reordered
    }

    /// Restarts of the sequence.
    pub const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Arrival of the latest packet, nanoseconds.
    pub const fn last_arrival_ns(&self) -> u64 {
        self.last.arrival_ns
    }

    /// RTP timestamp of the latest packet.
    pub const fn last_timestamp(&self) -> u32 {
        self.last.timestamp
    }

    /// Expected less the different packets that came, never below zero.
    pub const fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.unique)
    }

    /// Whether the packet `ext` of this run has come; `None` when that is too long ago.
    pub fn has(&self, ext: u64) -> Option<bool> {
        let age = self.highest.wrapping_sub(ext) as i64;
        if age < 0 || !self.started {
            return Some(false);
        }
        let word = self.window.get((ext / 64) as usize % WINDOW_WORDS)?;
        ((age as u64) < DUPLICATE_WINDOW)
            .then_some(*word & 1_u64.wrapping_shl(ext as u32 % 64) != 0)
    }

    /// Whether there is a packet that is neither counted nor given up.
    #[inline]
    pub const fn has_stray(&self) -> bool {
        self.stray.is_some()
    }

    /// Packets that are neither counted nor given up: the latest stray and its copies.
    pub fn pending(&self) -> u64 {
        self.stray.map_or(0, |stray| stray.copies.saturating_add(1))
    }

    /// Whether `seen` was stamped with the highest packet or before it, by at most `limit_ns`: then it
    /// is late rather than of a new run, however far its number lags. `false` while no clock rate is
    /// known and the run is too short to measure one.
    pub fn is_stamped_late(&self, seen: &Seen, limit_ns: u64) -> bool {
        let ticks = u64::try_from(self.top.timestamp.wrapping_sub(seen.timestamp) as i32);
        let (Ok(ticks), Some((rate_ticks, rate_ns))) = (ticks, self.rate()) else { return false };
        self.started && wide(ticks, rate_ns) <= wide(limit_ns, rate_ticks)
    }

    /// Takes a packet into account.
    ///
    /// `misorder`: how far a packet may lag behind the highest and still count as late, in packets;
    /// taken as at least [`MAX_MISORDER`] and at most half the sequence space.
    ///
    /// A jump ahead by [`MAX_DROPOUT`] or more is loss when since the highest packet
    /// * RTP timestamp and arrival time advanced by the same amount, give or take half a second and
    ///   1/8 of it (in the clock rate, or the one measured over the run when none is known and the
    ///   run is long enough), and
    /// * there was time for what is missing: at least 1/32 of what it takes at the source's own
    ///   pace.
    ///
    /// So is, nearly a cycle ahead, what looks late by the number alone, when its timestamp is newer
    /// than the highest packet's and there was half of that time.
    pub fn observe(&mut self, seen: &Seen, misorder: u32) -> Step {
        let misorder = misorder.clamp(MAX_MISORDER, MISORDER_LIMIT);
        if !self.started {
            return self.begin(seen);
        }
        let step = match self.place(seen, misorder) {
            Place::Ahead(ahead) => self.advance(seen, ahead),
            Place::Behind(behind) => self.look_back(behind),
            Place::Far => return self.consider_restart(seen, misorder),
        };
        self.age_stray(misorder);
        self.count(seen, !matches!(step, Step::Duplicate { .. }));
        step
    }

    /// Whether this is the number after the highest, with nothing else to decide: then
    /// [`observe_next`](Self::observe_next) does.
    pub(super) const fn is_next(&self, sequence: u16, payload_type: u8) -> bool {
        self.started
            && !self.has_stray()
            && !is_comfort_noise(payload_type)
            && sequence == (self.highest as u16).wrapping_add(1)
    }

    /// [`observe`](Self::observe) of such a packet. Returns its extended sequence number.
    #[inline(always)]
    pub(super) fn observe_next(&mut self, seen: &Seen) -> u64 {
        let ext = self.highest.wrapping_add(1);
        self.observe_pace(seen.arrival_ns);
        self.highest = ext;
        // The number is new to the window, or that a whole window ago.
        self.mark(ext);
        self.observe_top(seen);
        self.received = self.received.wrapping_add(1);
        self.unique = self.unique.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(seen.payload_len.into());
        self.last = self.top;
        self.jitter.observe_sound(seen, self.clock_rate);
        ext
    }

    /// Shows the source its next packets, which arrived together.
    #[inline(always)]
    pub(super) fn streak(&mut self, arrival_ns: u64) -> Streak<'_> {
        Streak {
            latest: self.highest,
            timestamp: self.top.timestamp,
            clock_rate: self.clock_rate,
            source: self,
            arrival_ns,
            ticks: 0,
            bytes: 0,
        }
    }

    /// The figures, with `clock_rate` in its place and everything that identifies the source zero.
    pub fn figures(&self) -> SourceFigures {
        SourceFigures {
            ssrc_clock_rate: u64::from(self.known_rate) << 32,
            received: self.received,
            unique: self.unique,
            bytes: self.bytes,
            duplicate: self.duplicate,
            reordered: self.reordered,
            expected: self.expected(),
            lost: self.lost(),
            restarts: self.restarts,
            stray: self.strays,
            first_sequence: self.first,
            highest_sequence: self.highest,
            jitter_q4_ns: self.jitter.q4_ns,
            jitter_max_q4_ns: self.jitter.max_q4_ns,
            jitter_sum_q4_ns: self.jitter.sum_q4_ns,
            jitter_count: self.jitter.count,
            first_ns: self.first_ns,
            last_ns: self.last.arrival_ns,
            rtp_timestamp: self.last.timestamp.into(),
            ..SourceFigures::default()
        }
    }

    const fn run_expected(&self) -> u64 {
        self.highest.wrapping_sub(self.base).wrapping_add(1)
    }

    /// The very first packet.
    fn begin(&mut self, seen: &Seen) -> Step {
        self.started = true;
        self.first_ns = seen.arrival_ns;
        let ext = CYCLE.wrapping_add(seen.sequence.into());
        self.first = ext;
        self.begin_run(seen, ext);
        self.count(seen, true);
        Step::First { ext }
    }

    /// Makes `ext` the first of a run. What was before must have been summed up.
    fn begin_run(&mut self, seen: &Seen, ext: u64) {
        self.base = ext;
        self.highest = ext;
        self.window = [0; WINDOW_WORDS];
        self.mark(ext);
        self.top = Instant { arrival_ns: seen.arrival_ns, timestamp: seen.timestamp };
        self.run_ns = seen.arrival_ns;
        self.run_ticks = 0;
        self.jitter.reference = None;
        self.jitter.since_first = 0;
    }

    /// Counts a packet that belongs to the run.
    #[inline]
    fn count(&mut self, seen: &Seen, unique: bool) {
        self.received = self.received.wrapping_add(1);
        if unique {
            self.unique = self.unique.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add(seen.payload_len.into());
        } else {
            self.duplicate = self.duplicate.wrapping_add(1);
        }
        self.last = Instant { arrival_ns: seen.arrival_ns, timestamp: seen.timestamp };
        self.jitter.observe(seen, self.clock_rate);
    }

    /// RFC 3550 A.1, with a look at the clocks where the number alone does not tell.
    fn place(&self, seen: &Seen, misorder: u32) -> Place {
        let ahead = seen.sequence.wrapping_sub(self.highest as u16);
        let behind = 0_u16.wrapping_sub(ahead);
        if (1..MAX_DROPOUT).contains(&ahead) {
            return Place::Ahead(ahead.into());
        }
        // A whole cycle when the number is that of the highest.
        let around = CYCLE.wrapping_sub(behind.into());
        let may_be_late = u32::from(behind) <= misorder;
        if self.is_outage(seen, around, may_be_late) {
            Place::Ahead(around)
        } else if may_be_late {
            Place::Behind(behind.into())
        } else {
            Place::Far
        }
    }

    /// Whether the clocks say that `ahead` packets were sent since the highest.
    fn is_outage(&self, seen: &Seen, ahead: u64, may_be_late: bool) -> bool {
        let passed_ns = seen.arrival_ns.checked_sub(self.top.arrival_ns);
        let ticks = u64::try_from(seen.timestamp.wrapping_sub(self.top.timestamp) as i32);
        let (Some(passed_ns), Ok(ticks)) = (passed_ns, ticks) else { return false };
        let share = if may_be_late {
            // A late packet's timestamp is no newer than the highest packet's.
            if ticks == 0 || passed_ns < LATE_NS || self.pace_count < RATE_PACKETS {
                return false;
            }
            LATE_PACE_SHARE
        } else {
            OUTAGE_PACE_SHARE
        };
        let has_room = passed_ns.saturating_mul(share) >= ahead.saturating_mul(self.pace_ns);
        has_room && self.clocks_agree(ticks, passed_ns)
    }

    /// Whether the highest packet was stamped `ticks` and arrived `passed_ns` ago alike.
    fn clocks_agree(&self, ticks: u64, passed_ns: u64) -> bool {
        let Some((rate_ticks, rate_ns)) = self.rate() else { return false };
        let slack_ns = OUTAGE_SLACK_NS.saturating_add(passed_ns / OUTAGE_SLACK_SHARE);
        // |ticks / rate_ticks * rate_ns - passed_ns| <= slack_ns, without dividing.
        wide(ticks, rate_ns).abs_diff(wide(passed_ns, rate_ticks)) <= wide(slack_ns, rate_ticks)
    }

    /// Timestamp units and the nanoseconds they take.
    fn rate(&self) -> Option<(u64, u64)> {
        if self.clock_rate != 0 {
            return Some((self.clock_rate.into(), NS_PER_S));
        }
        let ns = self.top.arrival_ns.checked_sub(self.run_ns)?;
        let ticks = u64::try_from(self.run_ticks).ok()?;
        let enough = ns >= RATE_NS && ticks > 0 && self.run_expected() >= RATE_PACKETS;
        enough.then_some((ticks, ns))
    }

    /// A packet ahead of the highest.
    #[inline]
    fn advance(&mut self, seen: &Seen, ahead: u64) -> Step {
        let ext = self.highest.wrapping_add(ahead);
        if ahead == 1 {
            self.observe_pace(seen.arrival_ns);
        }
        self.clear_up_to(ext, ahead);
        self.highest = ext;
        self.mark(ext);
        self.observe_top(seen);
        match ahead.wrapping_sub(1) {
            0 => Step::Next { ext },
            missing => Step::Gap { ext, missing: missing as u32 },
        }
    }

    /// The packet with the highest number.
    #[inline]
    fn observe_top(&mut self, seen: &Seen) {
        let ticks = i64::from(seen.timestamp.wrapping_sub(self.top.timestamp) as i32);
        self.run_ticks = sum(self.run_ticks, ticks);
        self.top = Instant { arrival_ns: seen.arrival_ns, timestamp: seen.timestamp };
    }

    /// [`observe_pace`](Self::observe_pace) of `count` packets that came together, which are the highest then.
    #[inline]
    fn observe_pace_of(&mut self, arrival_ns: u64, count: u64) {
        self.observe_pace(arrival_ns);
        self.top.arrival_ns = arrival_ns;
        let mut pace_ns = self.pace_ns;
        for done in 1..count {
            if self.pace_count < PACE_GAPS {
                self.pace_ns = pace_ns;
                (done..count).for_each(|_| self.observe_pace(arrival_ns));
                return;
            }
            pace_ns = pace_ns.wrapping_sub(pace_ns / PACE_GAPS);
        }
        self.pace_ns = pace_ns;
    }

    /// Averages the time from one number to the next: plainly at first, then sliding.
    #[inline(always)]
    fn observe_pace(&mut self, arrival_ns: u64) {
        let gap = arrival_ns.saturating_sub(self.top.arrival_ns);
        if self.pace_count < PACE_GAPS {
            self.pace_count = self.pace_count.wrapping_add(1);
        }
        let count = self.pace_count;
        let gain = |ns: u64| match count {
            PACE_GAPS => ns / PACE_GAPS,
            _ => ns.checked_div(count).unwrap_or(0),
        };
        self.pace_ns = if gap >= self.pace_ns {
            self.pace_ns.saturating_add(gain(gap.saturating_sub(self.pace_ns)))
        } else {
            self.pace_ns.saturating_sub(gain(self.pace_ns.saturating_sub(gap)))
        };
    }

    /// A packet that is not ahead of the highest.
    fn look_back(&mut self, behind: u64) -> Step {
        let ext = self.highest.wrapping_sub(behind);
        if behind < DUPLICATE_WINDOW && !self.mark(ext) {
            return Step::Duplicate { ext };
        }
        if self.base == self.highest {
            // The run's second packet may be the one sent first.
            self.base = ext;
        }
        self.reordered = self.reordered.wrapping_add(1);
        Step::Reordered { ext }
    }

    /// A packet out of range: the second of a new run, or perhaps its first.
    fn consider_restart(&mut self, seen: &Seen, misorder: u32) -> Step {
        let Some(stray) = self.stray.take() else {
            self.stray = Some(Stray { seen: *seen, copies: 0, run: 1, age: 0 });
            return Step::Stray;
        };
        let ahead = seen.sequence.wrapping_sub(stray.seen.sequence) as i16;
        if ahead == 0 {
            let copies = stray.copies.saturating_add(1);
            self.stray = Some(Stray { copies, age: 0, ..stray });
            return Step::Stray;
        }
        let near = u32::from(ahead.unsigned_abs()) <= misorder;
        let run = if near { stray.run.saturating_add(1) } else { 1 };
        if ahead == 1 || run >= RESTART_RUN {
            return self.restart(&stray, seen, ahead);
        }
        self.give_up(&stray);
        self.stray = Some(Stray { seen: *seen, copies: 0, run, age: 0 });
        Step::Stray
    }

    /// Begins a run with `stray` and the packet `ahead` of it.
    fn restart(&mut self, stray: &Stray, seen: &Seen, ahead: i16) -> Step {
        self.restarts = self.restarts.wrapping_add(1);
        self.expected_before = self.expected();
        // Two cycles up, so that packets before the new base stay above the old run.
        let cycle = (self.highest / CYCLE).wrapping_add(2);
        let held = cycle.wrapping_mul(CYCLE).wrapping_add(stray.seen.sequence.into());
        self.begin_run(&stray.seen, held);
        self.count(&stray.seen, true);
        self.received = self.received.wrapping_add(stray.copies);
        self.duplicate = self.duplicate.wrapping_add(stray.copies);
        let distance = u64::from(ahead.unsigned_abs());
        let ext = if ahead > 0 {
            self.advance(seen, distance);
            self.highest
        } else {
            self.look_back(distance);
            self.base
        };
        self.count(seen, true);
        Step::Restart { ext, held }
    }

    /// Forgets a stray that the old sequence has outlived.
    fn age_stray(&mut self, misorder: u32) {
        let Some(stray) = &mut self.stray else { return };
        stray.age = stray.age.saturating_add(1);
        if stray.age > misorder {
            let stray = *stray;
            self.give_up(&stray);
            self.stray = None;
        }
    }

    fn give_up(&mut self, stray: &Stray) {
        self.strays = self.strays.wrapping_add(stray.copies).wrapping_add(1);
    }

    /// Notes that the `count` numbers from `first` on have come, of which none lies behind the window.
    fn mark_all(&mut self, first: u64, count: u64) {
        let (mut next, mut left) = (first, count);
        while left > 0 {
            let bit = next % 64;
            let here = 64_u64.wrapping_sub(bit).min(left);
            let bits = u64::MAX.wrapping_shr(64_u64.wrapping_sub(here) as u32);
            if let Some(word) = self.window.get_mut((next / 64) as usize % WINDOW_WORDS) {
                *word |= bits.wrapping_shl(bit as u32);
            }
            next = next.wrapping_add(here);
            left = left.wrapping_sub(here);
        }
    }

    /// Marks `ext` as come. `false` when it was.
    #[inline]
    fn mark(&mut self, ext: u64) -> bool {
        let bit = 1_u64.wrapping_shl(ext as u32 % 64);
        match self.window.get_mut((ext / 64) as usize % WINDOW_WORDS) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    /// Clears the marks of the `count` numbers up to `ext`.
    fn clear_up_to(&mut self, ext: u64, count: u64) {
        if count >= DUPLICATE_WINDOW {
            self.window = [0; WINDOW_WORDS];
            return;
        }
        for back in 0..count {
            let ext = ext.wrapping_sub(back);
            if let Some(word) = self.window.get_mut((ext / 64) as usize % WINDOW_WORDS) {
                *word &= !1_u64.wrapping_shl(ext as u32 % 64);
            }
        }
    }
}

impl Jitter {
    /// RFC 3550 A.8, with the packet before in order of arrival.
    ///
    /// Mean and maximum take no sample from packets whose time says little of the network: those
    /// with the marker bit (the first of a talkspurt, the last of a frame), comfort noise and what
    /// follows it. In the mean they weigh as the mean so far. Packets stamped before the first one
    /// are left out altogether. (These are tshark's rules, so that the figures can be compared.)
    fn observe(&mut self, seen: &Seen, clock_rate: u32) {
        if is_comfort_noise(seen.payload_type) {
            self.after_comfort_noise = true;
            self.sample(seen, clock_rate, true);
        } else {
            self.observe_sound(seen, clock_rate);
        }
    }

    /// A packet that is no comfort noise.
    #[inline(always)]
    fn observe_sound(&mut self, seen: &Seen, clock_rate: u32) {
        let after_comfort_noise = core::mem::take(&mut self.after_comfort_noise);
        self.sample(seen, clock_rate, after_comfort_noise || seen.marker);
    }

    #[inline(always)]
    fn sample(&mut self, seen: &Seen, clock_rate: u32, irregular: bool) {
        if clock_rate == 0 {
            return;
        }
        let now = Instant { arrival_ns: seen.arrival_ns, timestamp: seen.timestamp };
        let Some(reference) = self.reference else {
            self.reference = Some(now);
            return;
        };
        let ticks = now.timestamp.wrapping_sub(reference.timestamp) as i32;
        let since_first = self.since_first.saturating_add(ticks.into());
        if since_first < 0 {
            self.sample_nothing();
            return;
        }
        self.since_first = since_first;
        self.reference = Some(now);
        if ticks != self.step.0 {
            self.step = (ticks, sent_ns(ticks, clock_rate));
        }
        let (_, sent_ns) = self.step;
        let arrived_ns = now.arrival_ns.wrapping_sub(reference.arrival_ns) as i64;
        let difference_ns = arrived_ns.saturating_sub(sent_ns).unsigned_abs();
        let decay = self.q4_ns.saturating_add(8) / 16;
        self.q4_ns = self.q4_ns.saturating_sub(decay).saturating_add(difference_ns);
        if irregular {
            self.sample_nothing();
        } else {
            self.max_q4_ns = self.max_q4_ns.max(self.q4_ns);
            self.sum_q4_ns = self.sum_q4_ns.saturating_add(self.q4_ns);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Lengthens the mean's time without changing the mean.
    fn sample_nothing(&mut self) {
        let mean = self.sum_q4_ns.checked_div(self.count).unwrap_or(0);
        self.sum_q4_ns = self.sum_q4_ns.saturating_add(mean);
        self.count = self.count.saturating_add(1);
    }
}

/// The time that `ticks` timestamp units take.
fn sent_ns(ticks: i32, clock_rate: u32) -> i64 {
    let ns = i64::from(ticks).saturating_mul(NS_PER_S as i64);
    ns.checked_div(clock_rate.into()).unwrap_or(0)
}

/// The product, which 128 bits always hold.
const fn wide(a: u64, b: u64) -> u128 {
    (a as u128).wrapping_mul(b as u128)
}

/// RTP clock rate of a static payload type in Hz (RFC 3551 §6, tables 4 and 5).
///
/// `None`: dynamic, reserved or unassigned, or a rate that is not fixed.
pub const fn static_clock_rate(payload_type: u8) -> Option<u32> {
    match payload_type {
        // PCMU, GSM, G723, DVI4 at 8 kHz, LPC, PCMA, G722 (8 kHz by the errata of RFC 1890).
        0 | 3 | 4 | 5 | 7 | 8 | 9 => Some(8_000),
        // DVI4 at 16 kHz.
        6 => Some(16_000),
        // L16 stereo and mono.
        10 | 11 => Some(44_100),
        // QCELP, CN, G728, G729; 19 was CN before RFC 3389.
        12 | 13 | 15 | 18 | 19 => Some(8_000),
        // MPA.
        14 => Some(90_000),
        // DVI4 at 11.025 and 22.05 kHz.
        16 => Some(11_025),
        17 => Some(22_050),
        // CelB, JPEG, nv, H261, MPV, MP2T, H263.
        25 | 26 | 28 | 31 | 32 | 33 | 34 => Some(90_000),
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashSet};
    use std::vec;
    use std::vec::Vec;

    const MS: u64 = 1_000_000;

    proptest! {
        #[test]
        fn the_short_way_of_the_next_packet_leaves_what_the_long_one_does(
            rate in prop_oneof![Just(0_u32), Just(90_000)],
            packets in prop::collection::vec(
                (prop_oneof![8 => Just(1_u16), 1 => 0..5_u16, 1 => any::<u16>()], 0..900_u32, 0..3 * MS, 0..20_u8),
                1..300,
            ),
        ) {
            let (mut long, mut short) = (Source::new(rate), Source::new(rate));
            let mut seen = Seen {
                sequence: 0,
                timestamp: 0,
                arrival_ns: MS,
                payload_len: 0,
                payload_type: 0,
                marker: false,
            };
            let mut next = 0_u32;
            for (step, ticks, passed_ns, kind) in packets {
                seen.sequence = seen.sequence.wrapping_add(step);
                seen.timestamp = seen.timestamp.wrapping_add(ticks);
                seen.arrival_ns += passed_ns;
                seen.payload_len = 100 + u32::from(kind);
                (seen.payload_type, seen.marker) = (12 + kind % 4, kind == 7);
                let step = long.observe(&seen, 100);
                if short.is_next(seen.sequence, seen.payload_type) {
                    next += 1;
                    let ext = short.observe_next(&seen);
                    prop_assert_eq!(step, Step::Next { ext });
                } else {
                    prop_assert_eq!(step, short.observe(&seen, 100));
                }
                prop_assert_eq!(format!("{short:?}"), format!("{long:?}"));
            }
            prop_assume!(next > 0);
        }
    }

    /// A sender of one packet every `period_ns`: number `index` of its life, counted from a random
    /// start, with the timestamp that its clock rate gives.
    #[derive(Clone, Copy, Debug)]
    struct Sender {
        sequence: u16,
        timestamp: u32,
        clock_rate: u32,
        period_ns: u64,
        start_ns: u64,
    }

    impl Sender {
        /// 20 ms of G.711.
        const PCMU: Self = Self {
            sequence: 1_000,
            timestamp: 77,
            clock_rate: 8_000,
            period_ns: 20 * MS,
            start_ns: 5_000_000_000,
        };

        fn packet(&self, index: u64) -> Seen {
            let elapsed_ns = index * self.period_ns;
            let ticks = u128::from(elapsed_ns) * u128::from(self.clock_rate) / 1_000_000_000;
            Seen {
                sequence: self.sequence.wrapping_add(index as u16),
                timestamp: self.timestamp.wrapping_add(ticks as u32),
                arrival_ns: self.start_ns + elapsed_ns,
                payload_len: 160,
                payload_type: 96,
                marker: false,
            }
        }
    }

    fn feed(source: &mut Source, packets: impl IntoIterator<Item = Seen>) -> Vec<Step> {
        packets.into_iter().map(|seen| source.observe(&seen, 0)).collect()
    }

    /// The books of one source.
    fn check(source: &Source) -> SourceFigures {
        let figures = source.figures();
        assert_eq!(figures.received, figures.unique + figures.duplicate);
        assert_eq!(figures.lost, figures.expected.saturating_sub(figures.unique));
        figures
    }

    /// RFC 3550 A.1 as printed needs two packets before it counts the first.
    #[test]
    fn the_first_packet_counts() {
        let mut source = Source::new(8_000);
        assert_eq!((source.expected(), source.lost(), source.started()), (0, 0, false));
        let steps = feed(&mut source, (0..500).map(|index| Sender::PCMU.packet(index)));
        assert_eq!(steps[0], Step::First { ext: 65_536 + 1_000 });
        assert_eq!(steps[1], Step::Next { ext: 65_536 + 1_001 });
        let figures = check(&source);
        assert_eq!((figures.received, figures.unique, figures.expected), (500, 500, 500));
        assert_eq!((figures.first_sequence, figures.highest_sequence), (66_536, 67_035));
        assert_eq!(figures.bytes, 500 * 160);
        assert_eq!(figures.first_ns, Sender::PCMU.start_ns);
        assert_eq!(figures.last_ns, Sender::PCMU.start_ns + 499 * 20 * MS);
        assert_eq!(figures.rtp_timestamp, 77 + 499 * 160);
        assert_eq!(figures.ssrc_clock_rate, 8_000 << 32);
    }

    /// RFC 3550 A.3 takes the first packet as the base; only the second may move it.
    #[test]
    fn the_base_is_the_first_packet_or_the_second() {
        let feed_order = |order: &[u64]| {
            let mut source = Source::new(8_000);
            feed(&mut source, order.iter().map(|index| Sender::PCMU.packet(*index)));
            let figures = check(&source);
            (figures.expected, figures.unique, figures.reordered)
        };
        assert_eq!(feed_order(&[5, 4, 6, 7]), (4, 4, 1));
        assert_eq!(feed_order(&[5, 5, 4, 6, 7]), (4, 4, 1));
        assert_eq!(feed_order(&[5, 6, 4, 7]), (3, 4, 1));
    }

    #[test]
    fn a_number_comes_before_sequence_0_of_the_first_cycle() {
        let mut source = Source::new(8_000);
        let sender = Sender { sequence: 0, ..Sender::PCMU };
        let early = Seen { sequence: u16::MAX, ..sender.packet(0) };
        assert_eq!(source.observe(&sender.packet(0), 0), Step::First { ext: 65_536 });
        assert_eq!(source.observe(&early, 0), Step::Reordered { ext: 65_535 });
        assert_eq!(source.observe(&early, 0), Step::Duplicate { ext: 65_535 });
    }

    /// What a plain set of the true, unbounded numbers says.
    #[derive(Default)]
    struct Oracle {
        seen: HashSet<u64>,
        first: u64,
        highest: u64,
        received: u64,
        duplicate: u64,
        reordered: u64,
    }

    impl Oracle {
        fn observe(&mut self, number: u64) -> Step {
            let ext = number;
            self.received += 1;
            if self.received == 1 {
                (self.first, self.highest) = (number, number);
                self.seen.insert(number);
                return Step::First { ext };
            }
            if !self.seen.insert(number) {
                self.duplicate += 1;
                return Step::Duplicate { ext };
            }
            if number < self.highest {
                self.reordered += 1;
                return Step::Reordered { ext };
            }
            let missing = (number - self.highest - 1) as u32;
            self.highest = number;
            if missing == 0 {
                Step::Next { ext }
            } else {
                Step::Gap { ext, missing }
            }
        }
    }

    /// Numbers `0..count` after loss, duplication and reordering by up to 100, the first two in
    /// order, each with the time at which it arrives.
    fn network(count: usize) -> impl Strategy<Value = Vec<(u64, u64)>> {
        let fate = prop_oneof![
            6 => Just((1, 0)),
            1 => Just((0, 0)),
            1 => (Just(1), 0..90u64),
            1 => (2..4usize, 0..90u64),
        ];
        proptest::collection::vec(fate, count).prop_map(|fates| {
            let mut arrivals = BTreeMap::<(u64, u64), u64>::new();
            for (number, (copies, delay)) in fates.into_iter().enumerate() {
                let number = number as u64;
                let copies = if number < 2 { 1 } else { copies as u64 };
                for copy in 0..copies {
                    let delay = if number < 2 { 0 } else { delay * copy.max(1) / copies.max(1) };
                    arrivals.insert((number + delay, number * 8 + copy), number);
                }
            }
            arrivals.into_iter().map(|((slot, _), number)| (number, slot)).collect()
        })
    }

    proptest! {
        #[test]
        fn every_step_is_what_unbounded_numbers_say(
            arrivals in network(400),
            to_wrap in 0..500u16,
            timestamp in any::<u32>(),
            clock_rate in prop_oneof![Just(0u32), Just(8_000), Just(90_000)],
        ) {
            let sequence = 0_u16.wrapping_sub(to_wrap);
            let sender = Sender { sequence, timestamp, ..Sender::PCMU };
            let mut source = Source::new(clock_rate);
            let mut oracle = Oracle::default();
            for (number, slot) in arrivals {
                let mut seen = sender.packet(number);
                seen.arrival_ns = sender.start_ns + slot * sender.period_ns;
                let step = source.observe(&seen, 0);
                prop_assert_eq!(step, oracle.observe(65_536 + u64::from(sequence) + number));
                let figures = check(&source);
                prop_assert_eq!(figures.received, oracle.received);
                prop_assert_eq!(figures.unique, oracle.seen.len() as u64);
                prop_assert_eq!(figures.duplicate, oracle.duplicate);
                prop_assert_eq!(figures.reordered, oracle.reordered);
                prop_assert_eq!(figures.expected, oracle.highest - oracle.first + 1);
                prop_assert_eq!(figures.highest_sequence, oracle.highest);
                prop_assert_eq!(figures.first_sequence, oracle.first);
                prop_assert_eq!((figures.restarts, figures.stray), (0, 0));
            }
        }

        /// Loss is what the clocks say it is, however large, with the clock rate or without.
        #[test]
        fn an_outage_is_loss(
            outage in prop_oneof![100..=65_535u64, Just(2_998), Just(2_999), Just(3_000), 65_300..=65_535u64],
            before in 50..300u64,
            sequence in any::<u16>(),
            timestamp in any::<u32>(),
            clock_rate in prop_oneof![Just(8_000u32), Just(48_000), Just(90_000)],
            period_ns in prop_oneof![Just(7_692u64), Just(125_000), Just(MS), Just(20 * MS)],
            known in any::<bool>(),
            jitter_ns in 0..20 * MS,
        ) {
            let sender = Sender { sequence, timestamp, clock_rate, period_ns, start_ns: 1 };
            // Without a clock rate the run must be long enough to measure one.
            let before = if known { before } else { before.max(2 * RATE_NS / period_ns) };
            let mut source = Source::new(if known { clock_rate } else { 0 });
            feed(&mut source, (0..before).map(|index| sender.packet(index)));
            let after = before + outage;
            let late = |mut seen: Seen| { seen.arrival_ns += jitter_ns; seen };
            let steps = feed(&mut source, (after..after + 50).map(|index| late(sender.packet(index))));
            // Numbers that may as well be late need 10 ms and a measured pace to be told.
            prop_assume!(outage < 65_400 || outage * period_ns > LATE_NS);
            let ext = 65_536 + u64::from(sequence) + after;
            prop_assert_eq!(steps[0], Step::Gap { ext, missing: outage as u32 });
            prop_assert_eq!(steps[49], Step::Next { ext: ext + 49 });
            let figures = check(&source);
            prop_assert_eq!((figures.lost, figures.restarts, figures.stray), (outage, 0, 0));
            prop_assert_eq!(figures.received, before + 50);
        }

        /// 65,536 missing packets look like none; the figures stay within whole cycles of the truth.
        #[test]
        fn an_outage_of_more_than_a_cycle_is_ambiguous(outage in 65_536..=70_000u64) {
            let mut source = Source::new(8_000);
            feed(&mut source, (0..100).map(|index| Sender::PCMU.packet(index)));
            feed(&mut source, (100 + outage..200 + outage).map(|index| Sender::PCMU.packet(index)));
            let figures = check(&source);
            prop_assert_eq!((figures.received, figures.unique, figures.restarts), (200, 200, 0));
            prop_assert_eq!(figures.lost, outage - 65_536);
        }

        /// RFC 3550 A.1: two packets in sequence, far from the old one, are a restart. Both count.
        #[test]
        fn a_restart_counts_from_its_first_packet(
            sequence in any::<u16>(),
            jump in 3_200..=65_400u16,
            ticks in 100_000_000..=4_200_000_000u32,
            clock_rate in prop_oneof![Just(0u32), Just(8_000)],
            restarts in 1..4u64,
        ) {
            let mut source = Source::new(clock_rate);
            let mut sender = Sender { sequence, ..Sender::PCMU };
            for life in 0..=restarts {
                let steps = feed(&mut source, (0..100).map(|index| sender.packet(index)));
                if life > 0 {
                    prop_assert_eq!(steps[0], Step::Stray);
                    let Step::Restart { ext, held } = steps[1] else {
                        return Err(TestCaseError::fail(std::format!("{:?}", steps[1])));
                    };
                    prop_assert_eq!(ext, held + 1);
                    prop_assert_eq!(held as u16, sender.sequence);
                    prop_assert_eq!(steps[2], Step::Next { ext: held + 2 });
                }
                let end = sender.packet(100);
                sender = Sender {
                    sequence: end.sequence.wrapping_add(jump),
                    timestamp: end.timestamp.wrapping_add(ticks),
                    start_ns: end.arrival_ns,
                    ..sender
                };
            }
            let figures = check(&source);
            prop_assert_eq!(figures.restarts, restarts);
            prop_assert_eq!(figures.received, 100 * (restarts + 1));
            prop_assert_eq!(figures.unique, figures.received);
            prop_assert_eq!(figures.expected, figures.received);
            prop_assert_eq!((figures.lost, figures.stray, source.pending()), (0, 0, 0));
            prop_assert_eq!(figures.bytes, 160 * figures.received);
        }

        #[test]
        fn extended_numbers_of_a_new_run_are_above_the_old_run(
            sequence in any::<u16>(), jump in 3_200..=65_400u16, early in 1..100u16,
        ) {
            let mut source = Source::new(8_000);
            let old = Sender { sequence, ..Sender::PCMU };
            let new = Sender { sequence: sequence.wrapping_add(jump), timestamp: 1 << 31, ..old };
            feed(&mut source, [old.packet(0), new.packet(0), new.packet(1)]);
            let early = Seen { sequence: new.sequence.wrapping_sub(early), ..new.packet(2) };
            let Step::Reordered { ext } = source.observe(&early, 0) else {
                return Err(TestCaseError::fail("not reordered"));
            };
            prop_assert!(ext > 65_536 + u64::from(sequence));
            prop_assert_eq!(ext as u16, early.sequence);
        }

        #[test]
        fn any_packets_keep_the_books(
            packets in proptest::collection::vec(
                (any::<u16>(), any::<u32>(), any::<u64>(), any::<u32>(), any::<u8>(), any::<bool>()),
                0..300,
            ),
            near in any::<bool>(),
            misorder in any::<u32>(),
            clock_rate in any::<u32>(),
        ) {
            let mut source = Source::new(clock_rate);
            for (index, packet) in packets.iter().enumerate() {
                let (sequence, timestamp, arrival_ns, payload_len, payload_type, marker) = *packet;
                let sequence = if near { sequence % 300 } else { sequence };
                let seen = Seen { sequence, timestamp, arrival_ns, payload_len, payload_type, marker };
                let step = source.observe(&seen, misorder);
                if let Step::First { ext } | Step::Next { ext } | Step::Gap { ext, .. }
                    | Step::Reordered { ext } | Step::Duplicate { ext } | Step::Restart { ext, .. } = step
                {
                    prop_assert_eq!(ext as u16, sequence);
                }
                let figures = check(&source);
                let all = figures.received + figures.stray + source.pending();
                prop_assert_eq!(all, index as u64 + 1);
            }
        }

        /// RFC 3550 A.8 in floating point, with tshark's choice of samples.
        #[test]
        fn jitter_is_a_8(
            packets in proptest::collection::vec(
                (0..40 * MS, prop_oneof![4 => Just(false), 1 => Just(true)], prop_oneof![8 => Just(0u8), 1 => Just(13)]),
                2..200,
            ),
            clock_rate in prop_oneof![Just(8_000u32), Just(44_100), Just(90_000)],
            timestamp in any::<u32>(),
        ) {
            let sender = Sender { clock_rate, timestamp, ..Sender::PCMU };
            let mut source = Source::new(clock_rate);
            let mut before: Option<(f64, f64, bool)> = None;
            let (mut jitter, mut mean, mut max, mut count) = (0.0, 0.0, 0.0_f64, 0.0);
            for (index, (delay_ns, marker, payload_type)) in packets.into_iter().enumerate() {
                let plain = sender.packet(index as u64);
                let arrival_ns = plain.arrival_ns + delay_ns;
                source.observe(&Seen { arrival_ns, marker, payload_type, ..plain }, 0);
                let ticks = plain.timestamp.wrapping_sub(timestamp);
                let sent_ms = f64::from(ticks) * 1e3 / f64::from(clock_rate);
                let arrived_ms = (arrival_ns - sender.start_ns) as f64 / 1e6;
                let noise = payload_type == 13;
                if let Some((last_arrived, last_sent, after_noise)) = before {
                    let difference = (arrived_ms - last_arrived) - (sent_ms - last_sent);
                    jitter += (difference.abs() - jitter) / 16.0;
                    let sample = if marker || noise || after_noise { mean } else { jitter };
                    mean = (mean * count + sample) / (count + 1.0);
                    count += 1.0;
                    if !(marker || noise || after_noise) {
                        max = max.max(jitter);
                    }
                }
                before = Some((arrived_ms, sent_ms, noise));
            }
            let figures = check(&source);
            let ms = |q4_ns: u64| q4_ns as f64 / 16.0 / 1e6;
            prop_assert!((ms(figures.jitter_q4_ns) - jitter).abs() < 1e-5);
            prop_assert!((ms(figures.jitter_max_q4_ns) - max).abs() < 1e-5);
            let measured = ms(figures.jitter_sum_q4_ns) / figures.jitter_count as f64;
            prop_assert!((measured - mean).abs() < 1e-5, "{} for {}", measured, mean);
        }
    }

    /// A jump that no time passed for is not loss: the source could not have sent that much.
    #[test]
    fn a_jump_without_the_time_for_it_is_a_restart() {
        let mut source = Source::new(8_000);
        feed(&mut source, (0..100).map(|index| Sender::PCMU.packet(index)));
        let jumped = Sender { sequence: Sender::PCMU.sequence + 30_000, ..Sender::PCMU };
        let steps = feed(&mut source, (100..200).map(|index| jumped.packet(index)));
        assert_eq!(steps[0], Step::Stray);
        assert!(matches!(steps[1], Step::Restart { .. }));
        assert_eq!((check(&source).lost, check(&source).received), (0, 200));
    }

    /// Timestamps that did not advance with the arrival: a restart even after a long pause.
    #[test]
    fn a_jump_with_other_timestamps_is_a_restart() {
        for clock_rate in [0, 8_000] {
            let mut source = Source::new(clock_rate);
            feed(&mut source, (0..100).map(|index| Sender::PCMU.packet(index)));
            let end = Sender::PCMU.packet(5_000);
            let next = Sender {
                sequence: end.sequence,
                start_ns: end.arrival_ns,
                timestamp: Sender::PCMU.packet(99).timestamp,
                ..Sender::PCMU
            };
            let steps = feed(&mut source, (0..100).map(|index| next.packet(index)));
            assert!(matches!(steps[1], Step::Restart { .. }), "{clock_rate}: {:?}", steps[1]);
            assert_eq!(check(&source).lost, 0);
        }
    }

    #[test]
    fn a_single_stray_counts_nowhere_until_it_is_given_up() {
        let mut source = Source::new(8_000);
        feed(&mut source, (0..50).map(|index| Sender::PCMU.packet(index)));
        let stray = Seen { sequence: 40_000, timestamp: 1 << 30, ..Sender::PCMU.packet(50) };
        assert_eq!(source.observe(&stray, 0), Step::Stray);
        assert_eq!((source.pending(), check(&source).stray), (1, 0));
        let steps = feed(&mut source, (50..250).map(|index| Sender::PCMU.packet(index)));
        assert!(steps.iter().all(|step| matches!(step, Step::Next { .. })));
        let figures = check(&source);
        assert_eq!((figures.stray, source.pending()), (1, 0));
        assert_eq!((figures.received, figures.lost, figures.restarts), (250, 0, 0));
    }

    /// Every packet of the new run comes twice: the copies count as copies, before it is confirmed too.
    #[test]
    fn copies_of_the_first_packet_of_a_restart_count() {
        let mut source = Source::new(8_000);
        feed(&mut source, (0..50).map(|index| Sender::PCMU.packet(index)));
        let new = Sender { sequence: 40_000, timestamp: 1 << 30, ..Sender::PCMU };
        let twice = |index| [new.packet(index), new.packet(index)];
        let steps = feed(&mut source, (50..60).flat_map(twice));
        assert_eq!(steps[..2], [Step::Stray, Step::Stray]);
        assert!(matches!(steps[2], Step::Restart { .. }));
        let figures = check(&source);
        assert_eq!((figures.received, figures.duplicate, figures.unique), (70, 10, 60));
        assert_eq!((figures.expected, figures.restarts), (60, 1));
    }

    /// A network that swaps every pair, or drops every second packet, cannot hide a restart.
    #[test]
    fn a_restart_of_which_no_two_packets_are_in_sequence_is_found() {
        for order in [vec![1u64, 0, 3, 2, 5, 4, 7, 6], vec![0, 2, 4, 6, 8, 10]] {
            let mut source = Source::new(8_000);
            feed(&mut source, (0..50).map(|index| Sender::PCMU.packet(index)));
            let new = Sender { sequence: 40_000, timestamp: 1 << 30, ..Sender::PCMU };
            let steps = feed(&mut source, order.iter().map(|index| new.packet(*index)));
            assert!(matches!(steps[2], Step::Restart { .. }), "{steps:?}");
            let figures = check(&source);
            assert_eq!((figures.restarts, figures.stray), (1, 1));
            assert_eq!(figures.unique, 50 + order.len() as u64 - 1);
        }
    }

    #[test]
    fn the_reorder_window_decides_what_is_late() {
        let late_by = |behind: u64, misorder| {
            let mut source = Source::new(8_000);
            feed(
                &mut source,
                (0..900)
                    .filter(|index| index + behind != 899)
                    .map(|index| Sender::PCMU.packet(index)),
            );
            let late = Seen {
                arrival_ns: Sender::PCMU.packet(899).arrival_ns,
                ..Sender::PCMU.packet(899 - behind)
            };
            source.observe(&late, misorder)
        };
        let reordered = |behind: u64| Step::Reordered { ext: 65_536 + 1_000 + 899 - behind };
        assert_eq!(late_by(100, 0), reordered(100));
        assert_eq!(late_by(101, 0), Step::Stray);
        assert_eq!(late_by(101, 101), reordered(101));
        assert_eq!(late_by(800, 1_000), reordered(800));
    }

    #[test]
    fn a_late_packet_is_told_by_its_timestamp() {
        for clock_rate in [0, 8_000] {
            let mut source = Source::new(clock_rate);
            let late = |index| source.is_stamped_late(&Sender::PCMU.packet(index), 500 * MS);
            assert!(!late(0), "nothing has come");
            feed(&mut source, (0..100).map(|index| Sender::PCMU.packet(index)));
            let late = |index| source.is_stamped_late(&Sender::PCMU.packet(index), 500 * MS);
            assert!(late(99) && late(74));
            assert!(!late(73), "more than 500 ms");
            assert!(!late(100), "newer");
        }
    }

    /// Duplicates are told among the last 1,024 numbers.
    #[test]
    fn copies_older_than_the_window_count_as_reordered() {
        let copy_of = |back: u64| {
            let mut source = Source::new(8_000);
            feed(&mut source, (0..3_000).map(|index| Sender::PCMU.packet(index)));
            let copy = Seen {
                arrival_ns: Sender::PCMU.packet(3_000).arrival_ns,
                ..Sender::PCMU.packet(2_999 - back)
            };
            source.observe(&copy, 2_000)
        };
        assert!(matches!(copy_of(1_023), Step::Duplicate { .. }));
        assert!(matches!(copy_of(1_024), Step::Reordered { .. }));
    }

    /// A copy that comes while nothing of the source's pace is known, at one instant with it.
    #[test]
    fn copies_are_copies_whatever_the_clock_says() {
        for clock_rate in [0, 8_000] {
            let mut source = Source::new(clock_rate);
            let packet = Sender::PCMU.packet(0);
            feed(&mut source, vec![packet; 30]);
            let later = Seen { arrival_ns: packet.arrival_ns + 400 * MS, ..packet };
            source.observe(&later, 0);
            assert_eq!(check(&source).duplicate, 30);
        }
    }

    #[test]
    fn without_a_clock_rate_there_is_no_jitter() {
        let mut source = Source::new(0);
        let late = |index: u64| {
            let seen = Sender::PCMU.packet(index);
            Seen { arrival_ns: seen.arrival_ns + index % 3 * MS, ..seen }
        };
        feed(&mut source, (0..100).map(late));
        let figures = check(&source);
        assert_eq!(
            (figures.jitter_q4_ns, figures.jitter_count, figures.jitter_max_q4_ns),
            (0, 0, 0)
        );
    }

    /// A restart's new timestamps are no jitter; nor is a change to a payload type without a rate.
    #[test]
    fn jitter_compares_within_a_run_and_a_known_rate() {
        let mut source = Source::new(8_000);
        feed(&mut source, (0..50).map(|index| Sender::PCMU.packet(index)));
        let new = Sender { sequence: 40_000, timestamp: 1 << 30, ..Sender::PCMU };
        feed(&mut source, (50..100).map(|index| new.packet(index)));
        source.set_clock_rate(0);
        let event = Seen { timestamp: 5, ..new.packet(100) };
        feed(&mut source, [event, Seen { sequence: event.sequence + 1, ..event }]);
        source.set_clock_rate(8_000);
        feed(&mut source, (102..150).map(|index| new.packet(index)));
        let figures = check(&source);
        assert_eq!((figures.restarts, figures.lost), (1, 0));
        assert_eq!(figures.jitter_max_q4_ns, 0);
        assert_eq!(source.latest_clock_rate(), 8_000);
    }

    /// The example of a spurt of 1 ms: J grows by 1/16 of it and decays by 1/16 of itself.
    #[test]
    fn jitter_by_hand() {
        let mut source = Source::new(8_000);
        let mut packets = [0, 1, 2].map(|index| Sender::PCMU.packet(index));
        packets[1].arrival_ns += MS;
        packets[2].arrival_ns += MS;
        feed(&mut source, packets);
        let figures = check(&source);
        // 1 ms * 16 / 16, then less a sixteenth.
        assert_eq!(figures.jitter_max_q4_ns, MS);
        assert_eq!(figures.jitter_q4_ns, MS - MS / 16);
        assert_eq!((figures.jitter_count, figures.jitter_sum_q4_ns), (2, 2 * MS - MS / 16));
    }

    #[test]
    fn clock_rates_of_rfc_3551() {
        let rates =
            |types: &[u8]| types.iter().map(|pt| static_clock_rate(*pt)).collect::<Vec<_>>();
        assert_eq!(rates(&[0, 8, 9, 18]), vec![Some(8_000); 4]);
        assert_eq!(rates(&[10, 11]), vec![Some(44_100); 2]);
        assert_eq!(rates(&[6, 16, 17]), [Some(16_000), Some(11_025), Some(22_050)]);
        assert_eq!(rates(&[14, 26, 31, 32, 33, 34]), vec![Some(90_000); 6]);
        assert!((35..=255).all(|pt| static_clock_rate(pt).is_none()));
        assert_eq!(rates(&[1, 2, 20, 27, 30]), vec![None; 5]);
    }

    #[test]
    fn the_state_of_a_source_is_small() {
        assert!(size_of::<Source>() <= 512, "{}", size_of::<Source>());
    }
}
