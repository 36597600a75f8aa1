//! Packets that are handed out together, until every leg is done with them.
//!
//! What lives here: which of them belong together ([`Run`]), where a leg is, what became of each. What does not:
//! sending, and the ring that they are from ([`super::transmit`]).
//!
//! Packets that follow each other and are alike but for their bytes are a run, so that most of what is to be
//! done for packets is done once for many of them.

use core::ops::DerefMut;

use super::transmit::Job;

/// Packets of a batch.
pub const BATCH_MAX: usize = 256;
const WORD: usize = u64::BITS as usize;

/// Packets of equal length, payload length, payload type and SSRC, at positions and in slots that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The first of them.
    pub first: Job,
    /// How many they are.
    pub count: u32,
    /// RTP timestamp of the last.
    pub rtp_timestamp: u32,
}

impl Run {
    /// A packet that nothing is known to follow.
    pub fn of(job: Job) -> Self {
        Self { first: job, count: 1, rtp_timestamp: job.rtp_timestamp }
    }

    /// All but the first `skip`, `most` at most.
    fn part(&self, skip: u32, most: usize) -> Part {
        let rest = self.count.saturating_sub(skip) as usize;
        Part {
            position: self.first.position.wrapping_add(skip.into()),
            slot: self.first.slot.wrapping_add(skip),
            len: self.first.len,
            count: rest.min(most),
        }
    }
}

/// Some packets of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Position of the first.
    pub position: u64,
    /// The slot that it is in.
    pub slot: u32,
    /// Bytes of each.
    pub len: u32,
    /// How many they are, at least 1.
    pub count: usize,
}

/// How far a leg is with a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Packets that it is done with.
    pub done: usize,
    /// The run of the next one, and how many of that it is done with.
    run: usize,
    inside: u32,
}

/// A batch. `R` has room for [`BATCH_MAX`] runs.
#[derive(Debug)]
pub struct Batch<R> {
    runs: R,
    used: usize,
    packets: usize,
    /// A bit for each packet that a leg took.
    taken: [u64; BATCH_MAX / WORD],
    /// Why a leg did not take it, for each packet; all 0 unless `refused`.
    errnos: [u16; BATCH_MAX],
    refused: bool,
}

/// The bits of `word`, the `at`th, that stand for the packets from `from` to `to`.
fn mask(at: usize, from: usize, to: usize) -> u64 {
    let base = at.saturating_mul(WORD);
    let below = |end: usize| match end.saturating_sub(base) {
        bits if bits >= WORD => u64::MAX,
        bits => 1_u64.wrapping_shl(bits as u32).wrapping_sub(1),
    };
    below(to) & !below(from)
}

impl<R: DerefMut<Target = [Run]>> Batch<R> {
    /// Without packets.
    pub fn new(runs: R) -> Self {
        let (taken, errnos) = ([0; BATCH_MAX / WORD], [0; BATCH_MAX]);
        Self { runs, used: 0, packets: 0, taken, errnos, refused: false }
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Adds a run of no more packets than there is room for. `false`: it has more, and nothing was added.
    #[inline]
    pub fn push(&mut self, run: &Run) -> bool {
        let packets = self.packets.saturating_add(run.count as usize);
        let Some(place) = self.runs.get_mut(self.used).filter(|_| packets <= BATCH_MAX) else {
            return false;
        };
        *place = *run;
        self.used = self.used.saturating_add(1);
        self.packets = packets;
        true
    }

    /// The runs, with the place where each begins.
    pub fn runs(&self) -> impl Iterator<Item = (usize, &Run)> {
        let mut next = 0_usize;
        self.runs.iter().take(self.used).map(move |run| {
            let begin = next;
            next = next.saturating_add(run.count as usize);
            (begin, run)
        })
    }

    /// The next packets from `place` on, `most` at most, by runs.
    #[inline]
    pub fn parts(&self, place: &Place, most: usize) -> impl Iterator<Item = Part> + '_ {
        let (mut inside, mut left) = (place.inside, most);
        let runs = self.runs.get(place.run..self.used).unwrap_or_default();
        runs.iter().map_while(move |run| {
            let part = run.part(inside, left);
            inside = 0;
            left = left.saturating_sub(part.count);
            (part.count > 0).then_some(part)
        })
    }

    /// A leg at `place` is done with `packets` more, or with what there are. Returns how many.
    fn advance(&self, place: &mut Place, packets: usize) -> usize {
        let packets = packets.min(self.packets.saturating_sub(place.done));
        place.done = place.done.saturating_add(packets);
        let mut left = packets;
        while let Some(run) = self.runs.get(place.run).filter(|_| left > 0) {
            let rest = run.count.saturating_sub(place.inside) as usize;
            if left < rest {
                place.inside = place.inside.saturating_add(left as u32);
                break;
            }
            left = left.saturating_sub(rest);
            (place.run, place.inside) = (place.run.saturating_add(1), 0);
        }
        packets
    }

    /// The leg at `place` took `packets` more.
    #[inline]
    pub fn take(&mut self, place: &mut Place, packets: usize) {
        let from = place.done;
        let to = from.saturating_add(self.advance(place, packets));
        for (at, word) in self.taken.iter_mut().enumerate() {
            *word |= mask(at, from, to);
        }
    }

    /// The leg at `place` gives up `packets` more, or what there are, because of `errno`. Returns how many.
    #[cold]
    pub fn refuse(&mut self, place: &mut Place, packets: usize, errno: u32) -> usize {
        let from = place.done;
        let packets = self.advance(place, packets);
        for place in self.errnos.iter_mut().skip(from).take(packets) {
            *place = u16::try_from(errno).unwrap_or(u16::MAX);
        }
        self.refused |= packets > 0;
        packets
    }

    /// Whether legs took the `count` packets from `from` on, and none gave one of them up.
    #[inline]
    pub fn is_whole(&self, from: usize, count: usize) -> bool {
        let to = from.saturating_add(count);
        let all = |(at, word): (usize, &u64)| {
            let mask = mask(at, from, to);
            word & mask == mask
        };
        !self.refused && self.taken.iter().enumerate().all(all)
    }

    /// Whether a leg took the packet at `index`, and why another one did not, or 0.
    pub fn outcome(&self, index: usize) -> (bool, u32) {
        let word = self.taken.get(index / WORD).copied().unwrap_or(0);
        let taken = word.wrapping_shr((index % WORD) as u32) & 1 != 0;
        (taken, self.errnos.get(index).copied().unwrap_or(0).into())
    }

    /// Empties it.
    pub fn clear(&mut self) {
        (self.used, self.packets) = (0, 0);
        self.taken = [0; BATCH_MAX / WORD];
        if self.refused {
            self.errnos = [0; BATCH_MAX];
            self.refused = false;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn batch(counts: &[u32]) -> (Batch<Box<[Run]>>, Vec<Part>) {
        let mut batch = Batch::new(std::vec![Run::default(); BATCH_MAX].into_boxed_slice());
        let (mut position, mut each) = (u64::MAX - 3, Vec::new());
        for (len, &count) in (100..).zip(counts) {
            let slot = position as u32 & 1_023;
            let run = Run { count, ..Run::of(Job { position, slot, len, ..Job::default() }) };
            assert!(batch.push(&run));
            each.extend((0..count).map(|step| Part {
                position: position.wrapping_add(step.into()),
                slot: slot + step,
                len,
                count: 1,
            }));
            position = position.wrapping_add(u64::from(count) + 1);
        }
        assert_eq!(batch.len(), each.len());
        (batch, each)
    }

    fn one_by_one(parts: impl Iterator<Item = Part>) -> Vec<Part> {
        parts
            .flat_map(|part| {
                (0..part.count).map(move |step| Part {
                    position: part.position.wrapping_add(step as u64),
                    slot: part.slot + step as u32,
                    len: part.len,
                    count: 1,
                })
            })
            .collect()
    }

    #[test]
    fn no_more_than_there_is_room_for() {
        let (mut full, _) = batch(&[200, 56]);
        assert!(!full.push(&Run::of(Job::default())));
        let (mut nearly, _) = batch(&[200]);
        let run = |count| Run { count, ..Run::default() };
        assert!(!nearly.push(&run(57)) && nearly.push(&run(56)));
        full.clear();
        assert!(full.is_empty() && full.push(&run(256)));
    }

    #[test]
    fn what_was_refused_is_forgotten_with_the_batch() {
        let (mut batch, _) = batch(&[3]);
        let mut place = Place::default();
        assert_eq!(batch.refuse(&mut place, usize::MAX, 111), 3);
        assert_eq!(batch.outcome(2), (false, 111));
        batch.clear();
        assert_eq!(batch.outcome(2), (false, 0));
        assert!(batch.push(&Run::of(Job::default())));
        batch.take(&mut Place::default(), 1);
        assert!(batch.is_whole(0, 1));
    }

    proptest! {
        /// Whatever two legs do with a batch, in whatever portions: each sees all packets once and in order, and what
        /// became of a packet is what the legs said of it.
        #[test]
        fn each_packet_has_the_outcome_that_the_legs_gave_it(
            counts in prop::collection::vec(1..20_u32, 1..12),
            legs in prop::collection::vec(prop::collection::vec((1..40_usize, 0..4_u32), 1..40), 1..3),
        ) {
            let (mut batch, each) = batch(&counts);
            let mut outcomes = std::vec![(false, 0); each.len()];
            for steps in &legs {
                let mut place = Place::default();
                for &(portion, errno) in steps {
                    let before = place.done;
                    let seen = one_by_one(batch.parts(&place, portion));
                    let end = (before + portion).min(each.len());
                    prop_assert_eq!(&seen, &each[before..end]);
                    if errno == 0 {
                        batch.take(&mut place, portion);
                    } else {
                        prop_assert_eq!(batch.refuse(&mut place, portion, errno), seen.len());
                    }
                    prop_assert_eq!(place.done, end);
                    for outcome in &mut outcomes[before..end] {
                        *outcome = (outcome.0 || errno == 0, if errno == 0 { outcome.1 } else { errno });
                    }
                }
            }
            for (index, outcome) in outcomes.iter().enumerate() {
                prop_assert_eq!(batch.outcome(index), *outcome);
            }
            for (begin, run) in batch.runs() {
                let end = begin + run.count as usize;
                if batch.is_whole(begin, run.count as usize) {
                    prop_assert!(outcomes[begin..end].iter().all(|outcome| *outcome == (true, 0)));
                } else {
                    prop_assert!(outcomes.iter().any(|outcome| *outcome != (true, 0)));
                }
            }
        }
    }
}
