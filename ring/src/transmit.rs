//! A transmit stream, whole: the engine as consumer of a ring that its user writes.
//!
//! What lives here: what is believed of the writer's head and descriptors, which packets are ready,
//! the release of positions in whatever order they are done, sleeping without missing a kick, and
//! the counters. What does not: sockets and time ([`super::pace`]).
//!
//! On a transmit ring slot and position index are the same. Everything the user writes is loaded
//! once into private memory and checked; positions between `tail` and `head` are the engine's.

use core::ops::DerefMut;

use super::abi::{flag, Descriptor, SourceFigures, StreamCounters};
use super::atomic::{fence_full, Word};
use super::batch::{Batch, Run};
use super::view::RingView;

/// What the engine knows of one position. Fill new storage with the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    stage: Stage,
    /// Sends that read its slot and are not over: see [`TransmitCore::hold`].
    holds: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not done. It is being sent if it was handed out.
    #[default]
    Open,
    /// Done: may be released when all before it are, and nobody reads its slot.
    Done,
}

/// A packet to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Its position.
    pub position: u64,
    /// The slot that holds it.
    pub slot: u32,
    /// Its length in bytes.
    pub len: u32,
    /// CLOCK_TAI before which it must not go, nanoseconds.
    pub launch_ns: Option<u64>,
    /// RTP timestamp, as the descriptor says.
    pub rtp_timestamp: u32,
    /// Payload bytes, as the descriptor says; never more than `len`.
    pub payload_len: u32,
    /// Payload type, as the descriptor says.
    pub payload_type: u8,
    /// SSRC, as the descriptor says; `None`: it says that this is no RTP.
    pub ssrc: Option<u32>,
}

/// Who sends: the SSRC of the latest packets, and what RTCP sender reports say of it (RFC 3550
/// section 6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sender {
    ssrc: Option<u32>,
    packets: u64,
    octets: u64,
    payload_type: u8,
    rtp_timestamp: u32,
    last_ns: u64,
}

impl Sender {
    /// `packets` like `job`, of which the last has this timestamp.
    #[inline]
    fn count(&mut self, job: &Job, packets: u32, rtp_timestamp: u32, now_ns: u64) {
        if job.ssrc.is_none() {
            return;
        }
        if job.ssrc != self.ssrc {
            *self = Self { ssrc: job.ssrc, ..Self::default() };
        }
        let octets = u64::from(job.payload_len).wrapping_mul(packets.into());
        self.packets = self.packets.wrapping_add(packets.into());
        self.octets = self.octets.wrapping_add(octets);
        self.payload_type = job.payload_type;
        (self.rtp_timestamp, self.last_ns) = (rtp_timestamp, now_ns);
    }
}

/// A transmit stream. `P` holds a [`Progress`] per position.
#[derive(Debug)]
pub struct TransmitCore<P> {
    progress: P,
    slot_stride: u32,
    /// Accepted from the writer.
    head: u64,
    /// Next to hand out.
    next: u64,
    /// Next to release.
    tail: u64,
    /// Positions from the tail on that are done and not released.
    waiting: u64,
    /// Sends that [`hold`](Self::hold) was told of and that are not over.
    sends: u32,
    /// The last head that was refused: counted once.
    refused: Option<u64>,
    /// The wake-up position that the writer was last woken for.
    woken_at: Option<u64>,
    sender: Sender,
    counters: StreamCounters,
}

/// Shortest packet: an RTP header without anything.
const LEN_MIN: u32 = 12;

impl<P: DerefMut<Target = [Progress]>> TransmitCore<P> {
    /// A stream whose first position is `start`. `progress` has one element per position, a power of
    /// two.
    pub fn new(mut progress: P, slot_stride: u32, start: u64) -> Self {
        progress.fill(Progress::default());
        Self {
            progress,
            slot_stride,
            head: start,
            next: start,
            tail: start,
            waiting: 0,
            sends: 0,
            refused: None,
            woken_at: None,
            sender: Sender::default(),
            counters: StreamCounters::default(),
        }
    }

    fn slot_count(&self) -> u64 {
        self.progress.len() as u64
    }

    fn index(&self, position: u64) -> usize {
        position as usize & self.progress.len().wrapping_sub(1)
    }

    /// How many packets the writer may add.
    fn room(&self) -> u64 {
        self.slot_count().wrapping_sub(self.head.wrapping_sub(self.tail))
    }

    /// Takes the writer's `head`, loaded once from its control page, if it is true: forward, and at
    /// most a ring past what is not released. Returns how many packets are new.
    pub fn observe_head(&mut self, head: u64) -> u64 {
        let new = head.wrapping_sub(self.head);
        if new > self.room() {
            if self.refused != Some(head) {
                self.refused = Some(head);
                self.counters.violations = self.counters.violations.wrapping_add(1);
            }
            return 0;
        }
        self.refused = None;
        self.head = head;
        self.counters.committed = self.counters.committed.wrapping_add(new);
        new
    }

    /// Packets accepted and not yet handed out.
    pub fn ready(&self) -> u64 {
        self.head.wrapping_sub(self.next)
    }

    /// Positions accepted and not yet released.
    pub fn unreleased(&self) -> u64 {
        self.head.wrapping_sub(self.tail)
    }

    /// The next packet, without handing it out. A descriptor that makes no sense is counted, and its
    /// position passed over.
    #[inline]
    pub fn peek(&mut self, view: &RingView<'_>) -> Option<Job> {
        while self.ready() > 0 {
            let job = self.job(&view.load(self.next));
            if job.is_some() {
                return job;
            }
            self.pass_over();
        }
        None
    }

    /// The next descriptor makes no sense.
    #[cold]
    fn pass_over(&mut self) {
        let position = self.next;
        self.counters.violations = self.counters.violations.wrapping_add(1);
        self.next = position.wrapping_add(1);
        self.failed(position, 0);
    }

    /// The descriptor as a job, if it can be one.
    #[inline]
    fn job(&self, descriptor: &Descriptor) -> Option<Job> {
        let slot = self.index(self.next) as u32;
        let fits = (LEN_MIN..=self.slot_stride).contains(&descriptor.len);
        (fits && descriptor.slot == slot).then(|| Job {
            position: self.next,
            slot,
            len: descriptor.len,
            launch_ns: descriptor.has(flag::LAUNCH_TIME).then_some(descriptor.time_ns),
            rtp_timestamp: descriptor.rtp_timestamp,
            payload_len: descriptor.payload_len.min(descriptor.len),
            payload_type: descriptor.payload_type,
            ssrc: (u32::from(descriptor.payload_offset) >= LEN_MIN).then_some(descriptor.ssrc),
        })
    }

    /// Hands out what [`peek`](Self::peek) showed: it is being sent.
    #[inline]
    pub fn take(&mut self, job: &Job) {
        if job.position == self.next && self.ready() > 0 {
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Hands out those that follow `run`, whose last packet was the latest that was handed out, as part of it: as many as
    /// are like it, `most` at most. What has a launch time is like nothing.
    #[inline]
    pub fn extend(&mut self, run: &mut Run, most: usize, view: &RingView<'_>) {
        let first = run.first;
        if first.launch_ns.is_some() {
            return;
        }
        for _ in 0..self.ready().min(most as u64) {
            let slot = first.slot.wrapping_add(run.count);
            // Slot and position are not checked against the ring: they follow those of the first.
            if slot as usize >= self.progress.len() {
                break;
            }
            let descriptor = view.load(self.next);
            let rtp = u32::from(descriptor.payload_offset) >= LEN_MIN;
            let alike = descriptor.slot == slot
                && descriptor.len == first.len
                && !descriptor.has(flag::LAUNCH_TIME)
                && descriptor.payload_len.min(descriptor.len) == first.payload_len
                && descriptor.payload_type == first.payload_type
                && rtp.then_some(descriptor.ssrc) == first.ssrc;
            if !alike {
                break;
            }
            run.count = run.count.wrapping_add(1);
            run.rtp_timestamp = descriptor.rtp_timestamp;
            self.next = self.next.wrapping_add(1);
        }
    }

    /// The packets of `run` have left at `now_ns` of CLOCK_MONOTONIC: as [`sent`](Self::sent) and
    /// [`count_sender`](Self::count_sender) for each of them.
    #[inline]
    pub fn sent_run(&mut self, run: &Run, now_ns: u64) {
        let Run { first, count, rtp_timestamp } = run;
        self.sender.count(first, *count, *rtp_timestamp, now_ns);
        let (position, count) = (first.position, u64::from(*count));
        let handed_out = self.next.wrapping_sub(self.tail);
        // Nearly always: in order, and nobody reads a slot.
        if position == self.tail && self.waiting == 0 && self.sends == 0 && count <= handed_out {
            self.tail = position.wrapping_add(count);
            let bytes = u64::from(first.len).wrapping_mul(count);
            self.counters.sent = self.counters.sent.wrapping_add(count);
            self.counters.sent_bytes = self.counters.sent_bytes.wrapping_add(bytes);
            return;
        }
        for step in 0..count {
            self.sent(position.wrapping_add(step), first.len);
        }
    }

    /// The packet at `position` has left. Its slot is released when no send [holds](Self::hold) it.
    #[inline]
    pub fn sent(&mut self, position: u64, len: u32) {
        if self.finish(position) {
            self.counters.sent = self.counters.sent.wrapping_add(1);
            self.counters.sent_bytes = self.counters.sent_bytes.wrapping_add(len.into());
        }
    }

    /// The packet of `run` that is `step` behind its first has left at `now_ns` of CLOCK_MONOTONIC. Its timestamp is what
    /// its descriptor says by now, which is still the engine's.
    pub fn sent_of_run(&mut self, run: &Run, step: u32, now_ns: u64, view: &RingView<'_>) {
        let first = &run.first;
        let position = first.position.wrapping_add(step.into());
        self.sender.count(first, 1, view.load(position).rtp_timestamp, now_ns);
        self.sent(position, first.len);
    }

    /// Releases a batch that every leg is done with, at `now_ns` of CLOCK_MONOTONIC: its packets have left, or are given
    /// up, each as its legs say.
    #[inline]
    pub fn finish_batch<R: DerefMut<Target = [Run]>>(
        &mut self,
        batch: &Batch<R>,
        now_ns: u64,
        view: &RingView<'_>,
    ) {
        for (begin, run) in batch.runs() {
            if batch.is_whole(begin, run.count as usize) {
                self.sent_run(run, now_ns);
            } else {
                self.finish_one_by_one(batch, begin, run, now_ns, view);
            }
        }
    }

    /// Releases the packets of `run`, each as its legs say, of which the first is the one at `begin` of the batch.
    #[cold]
    fn finish_one_by_one<R: DerefMut<Target = [Run]>>(
        &mut self,
        batch: &Batch<R>,
        begin: usize,
        run: &Run,
        now_ns: u64,
        view: &RingView<'_>,
    ) {
        for step in 0..run.count {
            let (taken, errno) = batch.outcome(begin.saturating_add(step as usize));
            if taken {
                self.sent_of_run(run, step, now_ns, view);
            } else {
                self.failed(run.first.position.wrapping_add(step.into()), errno);
            }
            if errno != 0 {
                self.counters.send_errno = errno.into();
            }
        }
    }

    /// Counts a packet that has left at `now_ns` of CLOCK_MONOTONIC for the sender reports.
    #[inline]
    pub fn count_sender(&mut self, job: &Job, now_ns: u64) {
        self.sender.count(job, 1, job.rtp_timestamp, now_ns);
    }

    /// The sender of the latest packets, as the first entry of the stream's source table: SSRC, packets,
    /// payload bytes, latest RTP timestamp and when that packet left. `None`: no RTP has left.
    pub fn sender(&self) -> Option<SourceFigures> {
        let sender = &self.sender;
        sender.ssrc.map(|ssrc| SourceFigures {
            key: u64::from(sender.payload_type).wrapping_shl(56),
            ssrc_clock_rate: ssrc.into(),
            received: sender.packets,
            unique: sender.packets,
            bytes: sender.octets,
            rtp_timestamp: sender.rtp_timestamp.into(),
            last_ns: sender.last_ns,
            ..SourceFigures::default()
        })
    }

    /// The packet at `position` is given up. `errno`: what the path said, 0 for nothing.
    pub fn failed(&mut self, position: u64, errno: u32) {
        if self.finish(position) {
            self.counters.send_failed = self.counters.send_failed.wrapping_add(1);
            if errno != 0 {
                self.counters.send_errno = errno.into();
            }
        }
    }

    /// Marks a position done, once, and releases what is done up to there.
    #[inline]
    fn finish(&mut self, position: u64) -> bool {
        let (index, tail) = (self.index(position), self.tail);
        let handed_out = position.wrapping_sub(tail) < self.next.wrapping_sub(tail);
        let Some(progress) = self.progress.get_mut(index) else { return false };
        if !handed_out || progress.stage == Stage::Done {
            return false;
        }
        // Nearly always: in order, and nobody reads its slot.
        if position == tail && progress.holds == 0 {
            self.tail = tail.wrapping_add(1);
        } else {
            progress.stage = Stage::Done;
            self.waiting = self.waiting.wrapping_add(1);
        }
        if self.waiting != 0 {
            self.release();
        }
        true
    }

    /// Moves the tail past what is done and held by nobody.
    fn release(&mut self) {
        while self.waiting != 0 {
            let index = self.index(self.tail);
            match self.progress.get_mut(index) {
                Some(progress) if progress.stage == Stage::Done && progress.holds == 0 => {
                    progress.stage = Stage::Open;
                }
                _ => break,
            }
            self.tail = self.tail.wrapping_add(1);
            self.waiting = self.waiting.wrapping_sub(1);
        }
    }

    /// A send begins that reads the slots of `count` positions from `first` on, all handed out and not
    /// released: none is before [`let_go`](Self::let_go) was called with the same numbers, whatever
    /// becomes of its packet. Several sends may hold a position. `false`: too many do, or these are
    /// not such positions; nothing has changed.
    pub fn hold(&mut self, first: u64, count: u32) -> bool {
        let begin = first.wrapping_sub(self.tail);
        let fits = begin
            .checked_add(count.into())
            .is_some_and(|end| end <= self.next.wrapping_sub(self.tail));
        if !fits {
            return false;
        }
        for step in 0..count {
            if self.holds(first, step).is_none_or(|holds| *holds == u8::MAX) {
                return false;
            }
        }
        for step in 0..count {
            if let Some(holds) = self.holds(first, step) {
                *holds = holds.saturating_add(1);
            }
        }
        self.sends = self.sends.saturating_add(u32::from(count > 0));
        true
    }

    /// A send is over that [`hold`](Self::hold) was told of.
    pub fn let_go(&mut self, first: u64, count: u32) {
        for step in 0..count {
            if let Some(holds) = self.holds(first, step) {
                *holds = holds.saturating_sub(1);
            }
        }
        self.sends = self.sends.saturating_sub(u32::from(count > 0));
        self.release();
    }

    fn holds(&mut self, first: u64, step: u32) -> Option<&mut u8> {
        let index = self.index(first.wrapping_add(step.into()));
        self.progress.get_mut(index).map(|progress| &mut progress.holds)
    }

    /// Next position to release.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Tells the writer what is released. Its `wake_at` is to be loaded after this.
    pub fn publish_tail(&self, tail: &Word) {
        tail.store_release(self.tail);
        // See prepare_wait, and Producer::publish.
        fence_full();
    }

    /// Whether to wake the writer: `tail` has reached `wake_at`, loaded once from its control page
    /// after the tail was published, and it was not woken for that position before. Counts.
    pub fn should_wake(&mut self, wake_at: u64) -> bool {
        let reached = self.tail.wrapping_sub(wake_at) as i64 >= 0;
        if !reached || self.woken_at == Some(wake_at) {
            return false;
        }
        self.woken_at = Some(wake_at);
        self.counters.wakeups = self.counters.wakeups.wrapping_add(1);
        true
    }

    /// Asks for a kick and looks at the writer's head once more. `true`: there is nothing new, and
    /// sleeping is right; a writer that commits from here on sees `need_kick`. A head that
    /// [`observe_head`](Self::observe_head) would refuse is nothing new: it keeps nobody awake.
    pub fn prepare_sleep(&self, need_kick: &Word, writer_head: &Word) -> bool {
        need_kick.store(1);
        // See commit.
        fence_full();
        let new = writer_head.load_acquire().wrapping_sub(self.head);
        new == 0 || new > self.room()
    }

    /// Accepted from the writer.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The stream's counters now.
    pub fn counters(&self, now_ns: u64) -> StreamCounters {
        let counters = &self.counters;
        let pending =
            counters.committed.wrapping_sub(counters.sent).wrapping_sub(counters.send_failed);
        StreamCounters { pending, updated_ns: now_ns, ..*counters }
    }

    /// The counters that the engine keeps: those of calls, coalescing and lateness.
    pub fn counters_mut(&mut self) -> &mut StreamCounters {
        &mut self.counters
    }
}

/// Whether the engine sends in the call in which a writer kicks it, or has a thread do it.
///
/// Sending in the call costs no wake-up and no change of threads. But a writer that fills slots faster than they
/// are sent gets more done if somebody else sends meanwhile, and needs no calls as long as that somebody is
/// busy. So when many calls in a row came sooner after the one before than that had taken, the thread sends;
/// until the writer pauses, or the thread finds nothing more than it was woken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// How many came soon after what was sent before.
    in_a_row: u32,
    /// When the latest call that sends began, CLOCK_MONOTONIC, and how long the one before took.
    began_ns: u64,
    took_ns: u64,
    /// When the engine fell asleep.
    ended_ns: u64,
    /// The writer's head as it was when the thread had woken; `None`: it rests.
    woken_for: Option<u64>,
}

/// What the thread does after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It goes on.
    None,
    /// It waits for space in a socket.
    Space,
    /// It waits until packets are due.
    Time,
    /// It sleeps until the writer kicks.
    Kick,
}

impl Calls {
    /// So many calls in a row are too many.
    pub const ROW: u32 = 64;

    /// A writer kicks the engine, which sleeps. `true`: the call sends, and [`end`](Self::end) is told when.
    pub fn begin(&mut self, now_ns: u64) -> bool {
        let soon = now_ns.saturating_sub(self.ended_ns) < self.took_ns;
        self.in_a_row = if soon { self.in_a_row.saturating_add(1).min(Self::ROW) } else { 0 };
        self.began_ns = now_ns;
        self.in_a_row < Self::ROW
    }

    /// The call is over.
    pub fn end(&mut self, now_ns: u64) {
        self.took_ns = now_ns.saturating_sub(self.began_ns);
        self.ended_ns = now_ns;
    }

    /// The thread is through with a round, in which this was the writer's head.
    pub fn thread_round(&mut self, now_ns: u64, head: u64, rest: Rest) {
        let more = *self.woken_for.get_or_insert(head) != head;
        match rest {
            // What comes while a socket is full is more than it was woken for, too.
            Rest::None | Rest::Space => return,
            Rest::Time => {}
            Rest::Kick => self.thread_ends(now_ns, more),
        }
        self.woken_for = None;
    }

    /// The thread falls asleep. `more`: it found more than it was woken for.
    fn thread_ends(&mut self, now_ns: u64, more: bool) {
        self.ended_ns = now_ns;
        if !more {
            self.in_a_row = 0;
        }
    }
}

/// The engine is awake: no kick needed.
pub fn awake(need_kick: &Word) {
    need_kick.store(0);
}

/// The writer's side: makes everything before `head` the engine's. `true`: it sleeps, kick it.
pub fn commit(writer_head: &Word, need_kick: &Word, head: u64) -> bool {
    writer_head.store_release(head);
    // The engine stores need_kick, then looks at head; the writer stores head, then looks at
    // need_kick. With a full fence between, on both sides, one of the two sees the other's store.
    fence_full();
    need_kick.load() != 0
}

/// The writer's side: asks to be woken when everything before `position` is released, and looks once
/// more. `true`: it is not, and sleeping is right; the wake-up will come.
pub fn prepare_wait(wake_at: &Word, tail: &Word, position: u64) -> bool {
    wake_at.store(position);
    // See TransmitCore::publish_tail.
    fence_full();
    (tail.load_acquire().wrapping_sub(position) as i64) < 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::abi::DESC_WORDS;
    use super::*;

    #[test]
    fn calls_send_unless_the_writer_is_faster() {
        let mut calls = Calls::default();
        let mut now_ns = 1_000_000;
        let mut call = |calls: &mut Calls, after_ns| {
            now_ns += after_ns;
            let sends = calls.begin(now_ns);
            if sends {
                now_ns += 100;
                calls.end(now_ns);
            } else {
                now_ns += 1_000;
                calls.thread_ends(now_ns, true);
            }
            sends
        };
        let row = Calls::ROW as usize;
        let many = 10 * row;
        assert!((0..many).all(|_| call(&mut calls, 100)), "not before it is sent");
        assert_eq!((0..many).take_while(|_| call(&mut calls, 99)).count(), row - 1);
        assert!((0..many).all(|_| !call(&mut calls, 99)), "still faster");
        assert!(call(&mut calls, 100), "it paused");
        assert_eq!((0..many).take_while(|_| call(&mut calls, 0)).count(), row - 1);
        calls.thread_ends(0, false);
        assert!(call(&mut calls, 0), "the thread kept up");
    }

    #[test]
    fn the_thread_keeps_up_if_it_found_no_more_than_it_was_woken_for() {
        let keeps_up = |rounds: &[(u64, Rest)]| {
            let mut calls = Calls { in_a_row: Calls::ROW, took_ns: 100, ..Calls::default() };
            rounds.iter().for_each(|&(head, rest)| calls.thread_round(50, head, rest));
            assert_eq!(calls.woken_for, None);
            calls.begin(50)
        };
        assert!(keeps_up(&[(7, Rest::None), (7, Rest::None), (7, Rest::Kick)]));
        assert!(!keeps_up(&[(7, Rest::None), (8, Rest::Kick)]));
        assert!(keeps_up(&[(7, Rest::Space), (7, Rest::Kick)]));
        assert!(!keeps_up(&[(7, Rest::Space), (8, Rest::Kick)]), "while the socket was full");
        assert!(!keeps_up(&[(7, Rest::Space), (8, Rest::Space), (8, Rest::Kick)]));
        assert!(keeps_up(&[(7, Rest::Time), (8, Rest::Kick)]), "before it was due");
        assert!(keeps_up(&[(7, Rest::None), (8, Rest::Kick), (9, Rest::Kick)]), "woken again");
    }

    struct Ring {
        claim: Word,
        head: Word,
        descriptors: Vec<[Word; DESC_WORDS]>,
    }

    impl Ring {
        fn new(count: usize) -> Self {
            let descriptors = (0..count).map(|_| core::array::from_fn(|_| Word::new(0))).collect();
            Self { claim: Word::new(0), head: Word::new(0), descriptors }
        }

        fn view(&self) -> RingView<'_> {
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors }
        }

        fn write(&self, position: u64, slot: u32, len: u32) {
            self.write_stamped(position, slot, len, 0);
        }

        fn write_stamped(&self, position: u64, slot: u32, len: u32, rtp_timestamp: u32) {
            let descriptor = Descriptor { slot, len, rtp_timestamp, ..Descriptor::default() };
            self.view().store(position, &descriptor);
        }
    }

    fn core(count: usize, start: u64) -> TransmitCore<Box<[Progress]>> {
        TransmitCore::new(std::vec![Progress::default(); count].into(), 2_048, start)
    }

    fn law(counters: &StreamCounters) {
        assert_eq!(counters.committed, counters.sent + counters.send_failed + counters.pending);
    }

    #[test]
    fn positions_are_released_in_order_whatever_order_they_are_done_in() {
        let ring = Ring::new(16);
        let start = u64::MAX - 1;
        let mut core = core(16, start);
        for step in 0..4 {
            let position = start.wrapping_add(step);
            ring.write(position, position as u32 & 15, 100);
        }
        assert_eq!(core.observe_head(start.wrapping_add(4)), 4);
        let mut jobs = Vec::new();
        while let Some(job) = core.peek(&ring.view()) {
            core.take(&job);
            jobs.push(job);
        }
        assert_eq!(jobs.len(), 4);
        core.sent(jobs[2].position, 100);
        core.sent(jobs[1].position, 100);
        assert_eq!(core.tail(), start);
        core.failed(jobs[0].position, 111);
        assert_eq!(core.tail(), start.wrapping_add(3));
        core.sent(jobs[0].position, 100);
        assert_eq!(core.counters(0).sent, 2, "done is done once");
        law(&core.counters(0));
        assert_eq!(core.counters(0).send_errno, 111);
    }

    #[test]
    fn a_position_that_a_send_reads_is_not_released() {
        let ring = Ring::new(16);
        let start = u64::MAX - 1;
        let at = |step: u64| start.wrapping_add(step);
        let mut core = core(16, start);
        let hand_out = |core: &mut TransmitCore<_>, steps: core::ops::Range<u64>| {
            for step in steps.clone() {
                ring.write(at(step), at(step) as u32 & 15, 100);
            }
            core.observe_head(at(steps.end));
            while let Some(job) = core.peek(&ring.view()) {
                core.take(&job);
            }
        };
        hand_out(&mut core, 0..6);
        assert!(core.hold(at(1), 3), "by one leg");
        assert!(core.hold(at(3), 2), "and by another");
        for step in 0..6 {
            match step {
                2 => core.failed(at(step), 0),
                _ => core.sent(at(step), 100),
            }
        }
        assert_eq!((core.counters(0).sent, core.counters(0).pending), (5, 0));
        assert_eq!(core.tail(), at(1), "counted, and not released");
        core.let_go(at(3), 2);
        assert_eq!(core.tail(), at(1));
        core.let_go(at(1), 3);
        assert_eq!(core.tail(), at(6));
        // The ring full of what is held: there is no room, and what is not handed out cannot be held.
        hand_out(&mut core, 6..22);
        assert!(core.hold(at(6), 16));
        for refused in [(at(6), 17), (at(5), 1), (at(22), 1), (at(0), u32::MAX)] {
            assert!(!core.hold(refused.0, refused.1), "{refused:?}");
        }
        (6..22).for_each(|step| core.sent(at(step), 100));
        assert_eq!(core.observe_head(at(23)), 0);
        core.let_go(at(6), 16);
        assert_eq!((core.tail(), core.unreleased()), (at(22), 0));
        assert_eq!(core.observe_head(at(23)), 1);
    }

    #[test]
    fn so_many_sends_hold_a_position_and_no_more() {
        let ring = Ring::new(16);
        let mut core = core(16, 0);
        ring.write(0, 0, 100);
        core.observe_head(1);
        let job = core.peek(&ring.view()).unwrap();
        core.take(&job);
        assert!((0..255).all(|_| core.hold(0, 1)));
        assert!(!core.hold(0, 1));
        core.sent(0, 100);
        (0..254).for_each(|_| core.let_go(0, 1));
        assert_eq!(core.tail(), 0);
        core.let_go(0, 1);
        assert_eq!(core.tail(), 1);
    }

    #[test]
    fn the_sender_is_that_of_the_latest_rtp() {
        let mut core = core(16, 0);
        assert_eq!(core.sender(), None);
        let job = |ssrc, rtp_timestamp, payload_len| Job {
            position: 0,
            slot: 0,
            len: 200,
            launch_ns: None,
            rtp_timestamp,
            payload_len,
            payload_type: 33,
            ssrc,
        };
        core.count_sender(&job(None, 1, 2), 3);
        assert_eq!(core.sender(), None, "what is no RTP has no sender");
        core.count_sender(&job(Some(0), 10, 100), 50);
        core.count_sender(&job(Some(0), 20, 60), 51);
        let sender = core.sender().unwrap();
        assert_eq!((sender.received, sender.bytes, sender.rtp_timestamp), (2, 160, 20));
        assert_eq!((sender.ssrc_clock_rate, sender.key >> 56, sender.last_ns), (0, 33, 51));
        core.count_sender(&job(Some(7), 30, 5), 52);
        let other = core.sender().unwrap();
        assert_eq!((other.ssrc_clock_rate, other.received, other.bytes), (7, 1, 5));
    }

    #[test]
    fn runs_are_packets_that_are_alike_and_in_a_row() {
        let start = u64::MAX - 20;
        let ring = Ring::new(16);
        let mut core = core(16, start);
        let at = |step: u64| start.wrapping_add(step);
        let slot = |step: u64| at(step) as u32 & 15;
        let like = |step: u64| Descriptor {
            slot: slot(step),
            len: 100,
            payload_offset: 12,
            payload_len: 88,
            payload_type: 33,
            rtp_timestamp: step as u32,
            ssrc: 7,
            ..Descriptor::default()
        };
        // The position at step 5 is the ring's first.
        assert_eq!(slot(5), 0);
        let others = [
            (7, Descriptor { len: 101, ..like(7) }),
            (8, Descriptor { ssrc: 8, ..like(8) }),
            (9, Descriptor { payload_type: 34, ..like(9) }),
            (10, Descriptor { payload_len: 87, ..like(10) }),
            (11, Descriptor { payload_offset: 0, ..like(11) }),
            (12, Descriptor { flags: flag::LAUNCH_TIME, ..like(12) }),
            (14, Descriptor { slot: slot(15), ..like(14) }),
        ];
        (0..16).for_each(|step| ring.view().store(at(step), &like(step)));
        others.iter().for_each(|(step, other)| ring.view().store(at(*step), other));
        // Which packets are its last is nothing that counts.
        ring.view().store(at(2), &Descriptor { flags: flag::MARKER, ..like(2) });
        core.observe_head(at(16));
        let mut runs = Vec::new();
        while let Some(job) = core.peek(&ring.view()) {
            core.take(&job);
            let mut run = Run::of(job);
            core.extend(&mut run, 3, &ring.view());
            runs.push((job.position.wrapping_sub(start), run.count, run.rtp_timestamp));
        }
        let single = |step: u64| (step, 1, step as u32);
        let mut expected = std::vec![(0, 4, 3), single(4), (5, 2, 6)];
        expected.extend((7..14).map(single));
        expected.push(single(15));
        assert_eq!(runs, expected);
        assert_eq!(core.counters(0).violations, 1, "step 14");
    }

    #[test]
    fn a_run_counts_as_its_packets_do() {
        let job = Job {
            position: 5,
            slot: 5,
            len: 100,
            payload_len: 88,
            ssrc: Some(7),
            ..Job::default()
        };
        let run = Run { first: Job { rtp_timestamp: 10, ..job }, count: 4, rtp_timestamp: 13 };
        let ring = Ring::new(16);
        let ready = || {
            let mut core = core(16, 5);
            (5..9).for_each(|at| ring.write_stamped(at, at as u32, 100, at as u32 + 5));
            core.observe_head(9);
            while let Some(job) = core.peek(&ring.view()) {
                core.take(&job);
            }
            core
        };
        let (mut whole, mut each, mut held) = (ready(), ready(), ready());
        whole.sent_run(&run, 50);
        (0..4).for_each(|step| each.sent_of_run(&run, step, 50, &ring.view()));
        assert!(held.hold(6, 1));
        held.sent_run(&run, 50);
        assert_eq!((whole.tail(), each.tail(), held.tail()), (9, 9, 6));
        held.let_go(6, 1);
        for core in [&whole, &each, &held] {
            assert_eq!((core.tail(), core.counters(0)), (9, whole.counters(0)));
            let sender = core.sender().unwrap();
            assert_eq!((sender.received, sender.bytes, sender.rtp_timestamp), (4, 352, 13));
            law(&core.counters(0));
        }
        assert_eq!((whole.counters(0).sent, whole.counters(0).sent_bytes), (4, 400));
        // Again: they are not the engine's any more.
        whole.sent_run(&run, 51);
        assert_eq!((whole.tail(), whole.counters(0).sent), (9, 4));
    }

    #[test]
    fn a_report_tells_of_the_latest_packet_of_a_run_that_left() {
        let ring = Ring::new(16);
        let mut core = core(16, 0);
        let stamp = |at: u64| 10 + at as u32;
        (0..4).for_each(|at| ring.write_stamped(at, at as u32, 100, stamp(at)));
        core.observe_head(4);
        let mut latest = |ssrc, step, now_ns| {
            let first =
                Job { len: 100, ssrc: Some(ssrc), rtp_timestamp: stamp(0), ..Job::default() };
            let run = Run { first, count: 4, rtp_timestamp: stamp(3) };
            core.sent_of_run(&run, step, now_ns, &ring.view());
            core.sender().map(|sender| (sender.received, sender.rtp_timestamp, sender.last_ns))
        };
        // Of a new sender's run the first was refused.
        assert_eq!(latest(7, 1, 50), Some((1, 11, 50)));
        assert_eq!(latest(7, 2, 51), Some((2, 12, 51)));
        assert_eq!(latest(8, 2, 52), Some((1, 12, 52)));
        assert_eq!(latest(8, 3, 53), Some((2, 13, 53)));
    }

    #[test]
    fn a_head_that_is_not_true_changes_nothing_and_counts_once() {
        let mut core = core(16, 100);
        for head in [99, 117, u64::MAX, 99] {
            assert_eq!(core.observe_head(head), 0);
        }
        assert_eq!(core.head(), 100);
        assert_eq!(core.counters(0).violations, 4);
        assert_eq!(core.observe_head(99), 0);
        assert_eq!(core.counters(0).violations, 4);
        assert_eq!(core.observe_head(116), 16);
    }

    #[test]
    fn descriptors_that_make_no_sense_are_passed_over_and_counted() {
        let ring = Ring::new(16);
        let mut core = core(16, 0);
        ring.write(0, 1, 100);
        ring.write(1, 1, 11);
        ring.write(2, 2, 2_049);
        ring.write(3, 3, 12);
        core.observe_head(4);
        let job = core.peek(&ring.view()).unwrap();
        assert_eq!((job.position, job.slot, job.len), (3, 3, 12));
        assert_eq!((core.counters(0).violations, core.counters(0).send_failed), (3, 3));
        assert_eq!(core.tail(), 3);
        law(&core.counters(0));
    }

    #[test]
    fn a_kick_is_asked_for_only_by_who_sleeps() {
        let (need_kick, head) = (Word::new(0), Word::new(5));
        let mut core = core(16, 5);
        assert!(!commit(&head, &need_kick, 6));
        assert!(!core.prepare_sleep(&need_kick, &head), "there is something new");
        core.observe_head(6);
        assert!(core.prepare_sleep(&need_kick, &head));
        assert!(commit(&head, &need_kick, 7));
        awake(&need_kick);
        assert!(!commit(&head, &need_kick, 8));
    }

    #[test]
    fn a_head_that_is_refused_does_not_keep_the_engine_awake() {
        let core = core(16, 5);
        for head in [4, 22, u64::MAX] {
            assert!(core.prepare_sleep(&Word::new(0), &Word::new(head)), "{head}");
        }
        for head in [6, 21] {
            assert!(!core.prepare_sleep(&Word::new(0), &Word::new(head)), "{head}");
        }
    }

    #[test]
    fn a_writer_is_woken_once_for_what_it_waits_for() {
        let ring = Ring::new(16);
        let start = u64::MAX - 1;
        let (wake_at, tail) = (Word::new(start), Word::new(start));
        let mut core = core(16, start);
        for position in [start, start.wrapping_add(1)] {
            ring.write(position, position as u32 & 15, 100);
        }
        core.observe_head(start.wrapping_add(2));
        assert!(prepare_wait(&wake_at, &tail, start.wrapping_add(2)));
        for (n, woken) in [(0, false), (1, true)] {
            let job = core.peek(&ring.view()).unwrap();
            assert_eq!(job.position, start.wrapping_add(n));
            core.take(&job);
            core.sent(job.position, job.len);
            core.publish_tail(&tail);
            assert_eq!(core.should_wake(wake_at.load()), woken);
        }
        assert!(!core.should_wake(wake_at.load()), "woken before");
        assert!(!prepare_wait(&wake_at, &tail, start.wrapping_add(2)), "it is released");
        assert_eq!(core.counters(0).wakeups, 1);
    }

    proptest! {
        /// Whatever a writer puts into its head and descriptors: jobs stay inside the ring and the
        /// slot, each position is handed out once, the books balance, nothing panics.
        #[test]
        fn a_hostile_writer_gets_nowhere(
            start in any::<u64>(),
            steps in prop::collection::vec((any::<u64>(), 0..40_u64, any::<u32>(), any::<u32>()), 1..200),
        ) {
            let ring = Ring::new(16);
            let mut core = core(16, start);
            let mut last: Option<u64> = None;
            for (wild, near, slot, len) in steps {
                let head = if near < 20 { core.head().wrapping_add(near) } else { wild };
                for index in 0..16 {
                    let slot = if wild & 1 == 0 { index as u32 } else { slot };
                    ring.write(index, slot, if near & 1 == 0 { len % 4_096 } else { len });
                }
                core.observe_head(head);
                while let Some(job) = core.peek(&ring.view()) {
                    prop_assert!(job.slot < 16 && (12..=2_048).contains(&job.len));
                    prop_assert!(job.payload_len <= job.len);
                    if let Some(last) = last {
                        prop_assert!(job.position.wrapping_sub(last) as i64 > 0);
                    }
                    last = Some(job.position);
                    core.take(&job);
                    core.sent(job.position, job.len);
                }
                prop_assert_eq!(core.unreleased(), 0);
                law(&core.counters(0));
            }
        }
    }
}
