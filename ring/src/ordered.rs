//! The path of a packet through an ordered stream: is it the followed source's, which leg's
//! numbering, and may another source take over.
//!
//! What lives here: the decisions that need legs, candidate and staging together. What does not: the
//! position itself ([`super::staging`]).
//!
//! # Sequences
//!
//! Each leg unwraps on its own ([`super::source`]); `delta` carries its extended sequence to the
//! stream's. A leg joins the stream where its 16-bit sequence number is nearest to the stream's
//! highest. A leg whose source restarts leaves the stream's sequence: its packets are held, and the
//! stream follows only when no live leg is still in the old sequence, so a leg that lags by thousands
//! of packets does not flap.

use super::abi::flag;
use super::follow::{Candidate, Held, SILENCE_NS};
use super::receive::{add, bump, seen, Memory, Packet, Place, ReceiveCore, Run, Verdict};
use super::source::{Step, MAX_DROPOUT};
use super::staging::{distance, Placement};
use super::table::Key;
use super::view::RingView;

/// Half of the sequence numbers that 16 bits tell apart.
const HALF_CYCLE: i64 = 0x8000;

/// The extended sequence number with low bits `sequence` that is nearest to `near`.
fn nearest(near: u64, sequence: u16) -> u64 {
    let step = sequence.wrapping_sub(near as u16) as i16;
    near.wrapping_add(step as u64)
}

/// What a held packet may become the first of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    /// Another source's stream.
    Other,
    /// A new run of the followed source, which its figures know by now or not.
    Restart { proven: bool },
}

impl<M: Memory> ReceiveCore<M> {
    pub(super) fn ordered(&mut self, view: &RingView<'_>, held: &Held, key: &Key) -> Verdict {
        // What was due before this packet came, whether the engine's timer has run or not.
        let switched = self.try_switch(view, held.arrival_ns);
        let verdict = self.sort(view, held, key);
        self.plain &= !switched;
        verdict
    }

    /// Tells the followed source's packets from others.
    fn sort(&mut self, view: &RingView<'_>, held: &Held, key: &Key) -> Verdict {
        let Some(followed) = self.followed else {
            return self.first_ever(view, held, key);
        };
        let Some(leg) = self.legs.get(usize::from(key.leg)) else { return Verdict::Free };
        if key.ssrc == followed && leg.flow.is_none_or(|flow| flow == key.flow) {
            self.own(view, held, key)
        } else {
            self.hold(view, held, key, Hope::Other)
        }
    }

    fn first_ever(&mut self, view: &RingView<'_>, held: &Held, key: &Key) -> Verdict {
        self.followed = Some(key.ssrc);
        for leg in &mut self.legs {
            leg.last_ns = held.arrival_ns;
        }
        let Some((step, _)) = self.observe(held, key) else { return Verdict::Free };
        let sequence = extended(step).unwrap_or(held.descriptor.sequence);
        self.run = Run { base: sequence, highest: sequence, prior: 0 };
        self.staging.begin(view, sequence, key.ssrc);
        self.join(key.leg, sequence, sequence);
        self.place(view, held, key.leg, sequence, false)
    }

    /// Shows a packet of the followed source to the figures of its leg. Also tells whether that changed
    /// them plainly.
    fn observe(&mut self, held: &Held, key: &Key) -> Option<(Step, bool)> {
        let clock_rate = self.clock_rate(held.descriptor.payload_type);
        let misorder = self.misorder();
        let at = self.table.find_or_insert(key, clock_rate, held.arrival_ns)?;
        let leg = self.legs.get_mut(usize::from(key.leg))?;
        leg.flow = Some(key.flow);
        leg.source = at;
        let (entry, changed) = self.table.touch(at)?;
        Some(entry.observe(&seen(held), misorder, changed))
    }

    /// Whether `packet` is of the followed source, on a leg in the stream's sequence, and there is no
    /// other source to think of.
    pub(super) fn follows(&self, packet: &Packet<'_>, ssrc: u32) -> bool {
        let leg = self.legs.get(usize::from(packet.leg));
        self.followed == Some(ssrc)
            && self.candidate.is_none()
            && self.hold.is_empty()
            && self.bye.is_none()
            && leg.is_some_and(|leg| {
                leg.place == Place::Current && leg.flow.as_ref() == Some(packet.flow)
            })
    }

    /// Nothing is missing, waits or is held, and there is no other leg.
    fn is_quiet(&self) -> bool {
        self.config.legs == 1
            && self.staging.is_settled()
            && self.candidate.is_none()
            && self.hold.is_empty()
    }

    /// From here on `leg` is in the stream's sequence: its `own` is the stream's `sequence`.
    fn join(&mut self, leg: u8, own: u64, sequence: u64) {
        if let Some(leg) = self.legs.get_mut(usize::from(leg)) {
            leg.delta = sequence.wrapping_sub(own);
            leg.latest = sequence;
            leg.place = Place::Current;
        }
    }

    /// A leg that was away may have missed whole cycles, which 16 bits do not tell: when it is half a
    /// cycle or more behind the other one, it goes on where that one is.
    fn catch_up(&mut self, leg: u8, own: u64, sequence: u16) {
        let Some(state) = self.legs.get(usize::from(leg)) else { return };
        let behind = distance(self.run.highest, own.wrapping_add(state.delta));
        if behind >= HALF_CYCLE && self.another_is_current(leg) {
            self.join(leg, own, nearest(self.run.highest, sequence));
        }
    }

    fn another_is_current(&self, leg: u8) -> bool {
        let mut legs = self.legs.iter().enumerate();
        legs.any(|(at, other)| at != usize::from(leg) && other.place == Place::Current)
    }

    /// Sequence numbers no further apart than this belong to one sequence.
    fn near_limit(&self) -> u32 {
        self.misorder().max(MAX_DROPOUT.into())
    }

    /// How far a sequence number is from the stream's highest.
    fn away(&self, sequence: u16) -> u32 {
        let step = sequence.wrapping_sub(self.run.highest as u16) as i16;
        u32::from(step.unsigned_abs())
    }

    /// Whether `leg` belongs in the sequence that another leg is in. One that was in it and restarts
    /// comes back only when that brings it closer: otherwise it is leaving.
    fn may_join(&self, leg: u8, sequence: u16) -> bool {
        let away = self.away(sequence);
        let was_away = match self.legs.get(usize::from(leg)) {
            Some(leg) if leg.place == Place::Current => {
                distance(self.run.highest, leg.latest).unsigned_abs()
            }
            _ => u64::MAX,
        };
        self.another_is_current(leg) && away <= self.near_limit() && u64::from(away) < was_away
    }

    /// A packet of the followed source.
    fn own(&mut self, view: &RingView<'_>, held: &Held, key: &Key) -> Verdict {
        let Some((step, plain)) = self.observe(held, key) else {
            bump(&mut self.counters.sources_untracked);
            bump(&mut self.counters.dropped_filtered);
            return Verdict::Free;
        };
        let place = match self.legs.get(usize::from(key.leg)) {
            Some(leg) => leg.place,
            None => return Verdict::Free,
        };
        let sequence = held.descriptor.sequence as u16;
        let again = matches!(step, Step::Duplicate { .. });
        let onward = matches!(step, Step::Next { .. } | Step::Gap { .. });
        let begins = matches!(step, Step::First { .. } | Step::Restart { .. });
        let Some(own) = extended(step) else {
            return self.hold(view, held, key, Hope::Restart { proven: false });
        };
        if place == Place::Current && !begins {
            if onward {
                self.catch_up(key.leg, own, sequence);
            }
            let quiet = plain && self.is_quiet();
            let breaks = self.staging.breaks();
            let verdict = self.place_own(view, held, key.leg, own, again);
            self.plain = quiet
                && verdict == Verdict::Kept
                && self.is_quiet()
                && self.staging.breaks() == breaks;
            return verdict;
        }
        if (begins || place == Place::Out) && self.may_join(key.leg, sequence) {
            self.join(key.leg, own, nearest(self.run.highest, sequence));
            self.place_held_of(view, key.leg);
            return self.place_own(view, held, key.leg, own, again);
        }
        if let Some(leg) = self.legs.get_mut(usize::from(key.leg)) {
            if leg.place == Place::Current {
                leg.place = Place::Astray;
            }
        }
        self.hold(view, held, key, Hope::Restart { proven: true })
    }

    /// A packet in the stream's sequence, whose extended sequence on its leg is `own`. `again`: the
    /// leg's figures know it as a second copy.
    fn place_own(
        &mut self,
        view: &RingView<'_>,
        held: &Held,
        leg: u8,
        own: u64,
        again: bool,
    ) -> Verdict {
        let sequence = match self.legs.get_mut(usize::from(leg)) {
            Some(leg) => {
                leg.last_ns = held.arrival_ns;
                leg.latest = own.wrapping_add(leg.delta);
                leg.latest
            }
            None => return Verdict::Free,
        };
        let now_ns = held.arrival_ns;
        if self.bye.is_some_and(|bye_ns| now_ns.saturating_sub(bye_ns) >= SILENCE_NS) {
            self.bye = None;
        }
        if self.candidate.as_ref().is_some_and(|candidate| self.refutes(leg, candidate, now_ns)) {
            self.drop_candidate();
        }
        self.place(view, held, leg, sequence, again)
    }

    /// Whether a packet in sequence on `leg` shows that the candidate is none.
    fn refutes(&self, leg: u8, candidate: &Candidate, now_ns: u64) -> bool {
        if candidate.proven && now_ns.saturating_sub(candidate.heard_ns) >= SILENCE_NS {
            return true;
        }
        if candidate.flow(leg).is_none() {
            return false;
        }
        if !candidate.restart {
            // The followed source is alive where the other was heard.
            return true;
        }
        // One that is proven waits for the other leg; one that is not, until its source gives up.
        let state = self.legs.get(usize::from(leg));
        let entry = state.and_then(|leg| self.table.get(leg.source));
        !candidate.proven && entry.is_some_and(|entry| entry.source.pending() == 0)
    }

    fn place(
        &mut self,
        view: &RingView<'_>,
        held: &Held,
        leg: u8,
        sequence: u64,
        again: bool,
    ) -> Verdict {
        let mut descriptor = held.descriptor;
        descriptor.sequence = sequence;
        descriptor.source =
            self.legs.get(usize::from(leg)).map_or(descriptor.source, |leg| leg.source);
        let other_silent = self.config.legs > 1
            && self
                .legs
                .get(usize::from(leg ^ 1))
                .is_some_and(|other| held.arrival_ns.saturating_sub(other.last_ns) >= SILENCE_NS);
        let placement =
            self.staging.place(view, descriptor, held.arrival_ns, self.limit, other_silent);
        self.count_leg(leg, held, &placement);
        let ahead = distance(sequence, self.run.highest);
        let other_had = if ahead > 0 { Some(false) } else { self.other_had(leg, sequence) };
        let again = again || other_had == Some(true);
        let first = match placement {
            // A second copy of one that found the ring full is new to the ring, not to the figures.
            Placement::New { .. } => !again,
            Placement::Late { first } => {
                bump(&mut self.counters.late);
                let older = distance(sequence, self.run.base) < 0;
                !again && (first || (self.config.legs == 1 && !older))
            }
            Placement::Duplicate { .. } => {
                bump(&mut self.counters.duplicate);
                false
            }
            Placement::RingFull => {
                bump(&mut self.counters.dropped_ring_full);
                // No position remembers it, but the figures of the legs do.
                !again && other_had == Some(false)
            }
        };
        if first {
            bump(&mut self.counters.unique);
            add(&mut self.counters.bytes, u64::from(descriptor.payload_len));
            if ahead < 0 {
                bump(&mut self.counters.reordered);
            }
        }
        if ahead > 0 {
            self.run.highest = sequence;
        }
        match placement {
            Placement::New { .. } => Verdict::Kept,
            _ => Verdict::Free,
        }
    }

    /// Whether the leg other than `leg` has brought `sequence`; `None` when that is too long ago.
    fn other_had(&self, leg: u8, sequence: u64) -> Option<bool> {
        let other = self.legs.get(usize::from(leg ^ 1));
        let Some(other) = other.filter(|other| other.place == Place::Current) else {
            return Some(false);
        };
        let entry = self.table.get(other.source)?;
        entry.source.has(sequence.wrapping_sub(other.delta))
    }

    /// Holds a packet of the candidate, or makes its sender the candidate.
    fn hold(&mut self, view: &RingView<'_>, held: &Held, key: &Key, hope: Hope) -> Verdict {
        let sequence = held.descriptor.sequence as u16;
        let restart = hope != Hope::Other;
        let alive = self.alive_until().is_some_and(|until| held.arrival_ns < until);
        match &mut self.candidate {
            Some(candidate)
                if candidate.restart == restart && candidate.is(key.ssrc, key.leg, &key.flow) =>
            {
                candidate.hear(sequence, key.leg, &key.flow, held.arrival_ns);
            }
            Some(candidate) if candidate.stays(restart, alive) => {
                // One at a time: a third has to wait until this one is decided.
                bump(&mut self.counters.dropped_filtered);
                return Verdict::Free;
            }
            _ => {
                self.drop_candidate();
                let mut candidate = Candidate::new(key.ssrc, restart, sequence);
                candidate.hear(sequence, key.leg, &key.flow, held.arrival_ns);
                self.candidate = Some(candidate);
            }
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.proven |= hope == Hope::Restart { proven: true };
        }
        if let Some(out) = self.hold.push(*held) {
            self.count_undelivered(restart);
            self.staging.free().push(out.descriptor.slot);
        }
        self.try_switch(view, held.arrival_ns);
        Verdict::Kept
    }

    fn count_undelivered(&mut self, restart: bool) {
        bump(if restart {
            &mut self.counters.dropped_invalid
        } else {
            &mut self.counters.dropped_filtered
        });
    }

    /// The candidate was none: its packets are counted and their slots free.
    pub(super) fn drop_candidate(&mut self) {
        let restart = self.candidate.take().is_some_and(|candidate| candidate.restart);
        while let Some(held) = self.hold.pop() {
            self.count_undelivered(restart);
            self.staging.free().push(held.descriptor.slot);
        }
    }

    /// A leg rejoined the stream's sequence: what was held of it belongs there too.
    fn place_held_of(&mut self, view: &RingView<'_>, leg: u8) {
        if !self.candidate.as_ref().is_some_and(|candidate| candidate.restart) {
            return;
        }
        for _ in 0..self.hold.len() {
            let Some(held) = self.hold.pop() else { return };
            let sequence = held.descriptor.sequence as u16;
            let near = self.away(sequence) <= self.near_limit();
            if held.descriptor.leg == leg && near {
                let sequence = nearest(self.run.highest, sequence);
                if self.place(view, &held, leg, sequence, false) != Verdict::Kept {
                    self.staging.free().push(held.descriptor.slot);
                }
            } else {
                // There is room: it was just taken out.
                let _ = self.hold.push(held);
            }
        }
        // A slice, not `take`: the kernel's compiler keeps the overflow check inside that.
        let legs = self.legs.get(..self.config.legs.into()).unwrap_or(&self.legs);
        let whole = legs.iter().all(|leg| leg.place == Place::Current);
        let proven = self.candidate.is_some_and(|candidate| candidate.proven);
        if self.hold.is_empty() || (whole && proven) {
            self.drop_candidate();
        }
    }

    /// The source with this SSRC has left the session: its RTCP BYE came at `arrival_ns`, whenever it is
    /// told. Another takes over at once, unless the source has gone on for longer than a source may be silent.
    pub fn bye(&mut self, view: &RingView<'_>, ssrc: u32, arrival_ns: u64, now_ns: u64) {
        // Nothing comes later than now.
        let arrival_ns = arrival_ns.min(now_ns);
        let goes_on = self.alive_until().is_some_and(|until| {
            until.saturating_sub(arrival_ns) >= SILENCE_NS.saturating_add(SILENCE_NS)
        });
        if self.followed == Some(ssrc) && !goes_on {
            self.changed_all();
            self.bye = Some(arrival_ns);
            self.try_switch(view, now_ns);
        }
    }

    /// When the last live leg of the followed source will have been silent for long enough.
    pub(super) fn switch_due(&self) -> Option<u64> {
        self.candidate.as_ref().filter(|candidate| candidate.proven)?;
        self.alive_until()
    }

    /// When the followed source is silent unless more comes of it.
    fn alive_until(&self) -> Option<u64> {
        let live = self.legs.iter().filter(|leg| leg.place == Place::Current);
        live.map(|leg| leg.last_ns.saturating_add(SILENCE_NS)).max()
    }

    /// Follows the candidate if it may take over at `now_ns`. Returns whether it does.
    pub(super) fn try_switch(&mut self, view: &RingView<'_>, now_ns: u64) -> bool {
        let Some(candidate) = self.candidate else { return false };
        let released = self.bye.is_some() && !candidate.restart;
        let silent = candidate.proven && self.switch_due().is_none_or(|due| due <= now_ns);
        if released || silent {
            self.switch(view, &candidate);
        }
        released || silent
    }

    /// Follows `candidate`: an epoch begins with the first packet held of it.
    fn switch(&mut self, view: &RingView<'_>, candidate: &Candidate) {
        self.candidate = None;
        self.bye = None;
        if candidate.restart {
            bump(&mut self.counters.restarts);
        } else {
            self.followed = Some(candidate.ssrc);
        }
        for (leg, flow) in self.legs.iter_mut().zip(candidate.flows) {
            leg.place = Place::Out;
            if !candidate.restart {
                leg.flow = flow;
            }
        }
        let mut begun = false;
        for _ in 0..self.hold.len() {
            let Some(held) = self.hold.pop() else { return };
            let verdict = self.replay(view, &held, candidate, &mut begun);
            if verdict != Verdict::Kept {
                self.staging.free().push(held.descriptor.slot);
            }
        }
    }

    /// Places a packet that was held, `begun` telling whether its epoch has.
    fn replay(
        &mut self,
        view: &RingView<'_>,
        held: &Held,
        candidate: &Candidate,
        begun: &mut bool,
    ) -> Verdict {
        let mut held = *held;
        let leg = held.descriptor.leg;
        let Some(flow) = candidate.flow(leg).copied() else { return Verdict::Free };
        let key = Key { flow, ssrc: candidate.ssrc, leg };
        if !candidate.restart && self.observe(&held, &key).is_none() {
            bump(&mut self.counters.sources_untracked);
            bump(&mut self.counters.dropped_filtered);
            return Verdict::Free;
        }
        let sequence = held.descriptor.sequence as u16;
        let Some(state) = self.legs.get(usize::from(leg)).copied() else { return Verdict::Free };
        let highest = self.table.get(state.source).map_or(0, |entry| entry.source.highest());
        let own = nearest(highest, sequence);
        if distance(highest, own).unsigned_abs() > u64::from(self.near_limit()) {
            self.count_undelivered(candidate.restart);
            return Verdict::Free;
        }
        if !*begun {
            *begun = true;
            self.run = Run { base: own, highest: own, prior: self.run.expected() };
            self.staging.begin(view, own, candidate.ssrc);
            self.join(leg, own, own);
            held.descriptor.flags |= flag::DISCONTINUITY;
        } else if state.place != Place::Current {
            self.join(leg, own, nearest(self.run.highest, sequence));
        }
        self.place_own(view, &held, leg, own, false)
    }
}

/// The extended sequence number that a step gave its packet.
fn extended(step: Step) -> Option<u64> {
    match step {
        Step::First { ext }
        | Step::Next { ext }
        | Step::Gap { ext, .. }
        | Step::Reordered { ext }
        | Step::Duplicate { ext }
        | Step::Restart { ext, .. } => Some(ext),
        Step::Stray => None,
    }
}
