//! The ring protocol under the model checker: every interleaving and every value that a relaxed load
//! may return, for small rings and few packets.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p rtp-mgr-ring --release --test loom --target-dir target/loom
//! ```
//!
//! The code under test is that of the real builds; only [`Word`] is the checker's, and a descriptor
//! has three words. Positions begin one before the wrap.
//!
//! # What each model notices
//!
//! Each of these was taken out or weakened by hand, and the models were run again:
//!
//! | weakened | models that fail |
//! |---|---|
//! | `Producer::claim_up_to`: write fence | `what_was_overwritten_is_never_taken_for_a_packet` |
//! | `Producer::publish`: release of `head` | all that read packets of a receive ring |
//! | `Producer::publish`: full fence | `no_wake_up_is_lost`, with a threshold too |
//! | `Cursor::ready`: acquire of `head` | `a_reliable_reader_reads_in_place` |
//! | `Cursor::available`: acquire of `head` | `what_is_published_is_whole`, `what_was_overwritten_…` |
//! | `Cursor::is_intact`: read fence | `what_was_overwritten_is_never_taken_for_a_packet` |
//! | `Cursor::release`: release of `tail` | `a_reliable_reader_reads_in_place` |
//! | `Cursor::prepare_wait`: full fence, second look | `no_wake_up_is_lost`, with a threshold too |
//! | `Block::publish`: write fence, release | `a_snapshot_is_never_torn` |
//! | `Block::snapshot`: acquire, read fence | `a_snapshot_is_never_torn` |
//! | `TransmitCore::prepare_sleep`: full fence, second look | `no_kick_is_lost` |
//! | `transmit::commit`: full fence, release of `head` | `no_kick_is_lost` |
//! | `TransmitCore::publish_tail`: full fence, release of `tail` | `a_writer_waits_for_room` |
//! | `transmit::prepare_wait`: full fence, acquire, second look | `a_writer_waits_for_room` |
#![cfg(loom)]

use std::rc::Rc;

use loom::cell::Cell;
use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use rtp_mgr_ring::abi::{Descriptor, DESC_WORDS};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::producer::{Mode, Producer, Readers};
use rtp_mgr_ring::reader::{Available, Cursor};
use rtp_mgr_ring::staging::{Entry, Order, Placement, Staging};
use rtp_mgr_ring::transmit::{awake, commit, prepare_wait, Progress, TransmitCore};
use rtp_mgr_ring::view::{Block, ControlView, DescriptorWords, RingView, SlotsView};

const START: u64 = u64::MAX;
const POSITIONS: usize = 2;
const SLOTS: usize = 3;

/// Explores everything.
const ALL: Option<usize> = None;

/// Explores what happens with at most so many switches away from a thread that could go on.
const fn up_to(preemptions: usize) -> Option<usize> {
    Some(preemptions)
}

fn check(bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = bound;
    builder.check(model);
}

fn position(n: u64) -> u64 {
    START.wrapping_add(n)
}

/// What a packet holds.
fn content(n: u64) -> u64 {
    n.wrapping_add(1).wrapping_mul(1_001)
}

fn descriptor(n: u64, slot: u32) -> Descriptor {
    Descriptor { sequence: n, time_ns: content(n), slot, len: 8, ..Descriptor::default() }
}

fn is_whole(descriptor: &Descriptor, n: u64) -> bool {
    (descriptor.sequence, descriptor.time_ns, descriptor.len) == (n, content(n), 8)
}

struct Ring {
    claim: Word,
    head: Word,
    descriptors: [DescriptorWords; POSITIONS],
    /// Packets for those who copy.
    slots: [Word; SLOTS],
    /// Packets for those who read in place: an access that is not ordered is an error.
    cells: [Cell<u64>; SLOTS],
    position: Word,
    wake_at: Word,
    need_kick: Word,
    tail: Word,
    bell: Bell,
}

impl Ring {
    fn new() -> Rc<Self> {
        let words = || core::array::from_fn::<_, DESC_WORDS, _>(|_| Word::new(0));
        Rc::new(Self {
            claim: Word::new(START),
            head: Word::new(START),
            descriptors: core::array::from_fn(|_| words()),
            slots: core::array::from_fn(|_| Word::new(0)),
            cells: core::array::from_fn(|_| Cell::new(0)),
            position: Word::new(START),
            // No wake-up is asked for.
            wake_at: Word::new(START.wrapping_add(i64::MAX as u64)),
            need_kick: Word::new(0),
            tail: Word::new(START),
            bell: Bell::default(),
        })
    }

    fn view(&self) -> RingView<'_> {
        RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors }
    }

    fn control(&self) -> ControlView<'_> {
        ControlView { position: &self.position, wake_at: &self.wake_at }
    }

    fn slots(&self) -> SlotsView<'_> {
        SlotsView { words: &self.slots, stride: 8 }
    }
}

/// A file that stays readable until it is read: an eventfd.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_one();
    }

    /// Sleeps until it has been rung. When that never comes, the checker reports a deadlock.
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// The producer's private side of a receive ring in arrival order.
struct Engine {
    staging: Staging<Vec<Entry>, Vec<u32>>,
}

impl Engine {
    fn new() -> Self {
        let order = Order { reorder_ns: 0, window: 1 };
        let entries = vec![Entry::EMPTY; POSITIONS];
        Self { staging: Staging::new(entries, vec![0; SLOTS], START, order, 1) }
    }

    /// Receives packet `n` into a free slot, which `write` fills.
    fn receive(&mut self, ring: &Ring, n: u64, limit: Option<u64>, write: impl Fn(usize)) -> bool {
        let slot = self.staging.free().pop().expect("a slot more than positions");
        write(slot as usize);
        let placed = self.staging.append(&ring.view(), descriptor(n, slot), 0, limit);
        if placed == Placement::RingFull {
            self.staging.free().push(slot);
            return false;
        }
        self.staging.publish(&ring.view());
        true
    }
}

/// Lapping, and torn reads: whatever a lossy reader takes for a packet is one, whole, and the right
/// one; what it misses is counted to the last.
fn lossy(packets: u64, attempts: usize) {
    let ring = Ring::new();
    let producer = thread::spawn({
        let ring = Rc::clone(&ring);
        move || {
            let mut engine = Engine::new();
            for n in 0..packets {
                engine.receive(&ring, n, None, |slot| ring.slots[slot].store(content(n)));
            }
        }
    });
    let mut cursor = Cursor::new(START, POSITIONS as u32);
    let mut seen = 0;
    for _ in 0..attempts {
        seen += look(&ring, &mut cursor);
    }
    producer.join().unwrap();
    // Everything stands still: what is left is read without fail.
    loop {
        match look(&ring, &mut cursor) {
            0 => break,
            more => seen += more,
        }
    }
    assert_eq!(seen, packets);
}

/// Reads one packet if there is one. Returns how many the cursor went past.
fn look(ring: &Ring, cursor: &mut Cursor) -> u64 {
    let view = ring.view();
    match cursor.available(&view) {
        Available::Lapped { missed } => missed,
        Available::Positions(0) => 0,
        Available::Positions(_) => {
            let at = cursor.next();
            let copy = cursor.load(&view, at);
            let mut bytes = [0; 8];
            ring.slots().copy(copy.slot, &mut bytes);
            if !cursor.is_intact(&view, at) {
                return 0;
            }
            let n = at.wrapping_sub(START);
            assert!(is_whole(&copy, n), "position {n} reads as {copy:?}");
            assert_eq!(u64::from_le_bytes(bytes), content(n), "position {n}, slot {}", copy.slot);
            cursor.advance(1);
            1
        }
    }
}

#[test]
fn what_is_published_is_whole() {
    check(ALL, || lossy(2, 3));
}

#[test]
fn what_was_overwritten_is_never_taken_for_a_packet() {
    check(ALL, || lossy(3, 1));
    check(up_to(4), || lossy(4, 2));
}

/// A reliable reader reads in place, without looking whether it was overrun; a packet that finds no
/// room is dropped, and nothing is written that it has not released.
#[test]
fn a_reliable_reader_reads_in_place() {
    check(ALL, || {
        let ring = Ring::new();
        let producer = thread::spawn({
            let ring = Rc::clone(&ring);
            move || {
                let mut engine = Engine::new();
                let mut readers = Readers::new();
                readers.add(Mode::Reliable, false, START, 0);
                let mut published = 0;
                for _ in 0..4 {
                    let tail = ring.position.load_acquire();
                    readers.observe_tail(0, tail, engine.staging.head(), 0);
                    let limit = readers.limit(POSITIONS as u32);
                    let n = published;
                    let write = |slot: usize| ring.cells[slot].set(content(n));
                    published += u64::from(engine.receive(&ring, n, limit, write));
                }
                assert_eq!(readers.status(0).violations, 0);
                published
            }
        });
        let view = ring.view();
        let mut cursor = Cursor::new(START, POSITIONS as u32);
        let mut read = 0;
        let mut take = || {
            for _ in 0..cursor.ready(&view) {
                let copy = cursor.load(&view, cursor.next());
                assert!(is_whole(&copy, read), "position {read} reads as {copy:?}");
                assert_eq!(ring.cells[copy.slot as usize].get(), content(read));
                cursor.advance(1);
                read += 1;
            }
            cursor.release(&ring.control());
        };
        take();
        take();
        let published = producer.join().unwrap();
        take();
        assert_eq!(read, published);
    });
}

/// Sleeping: a reader that was told to sleep is woken when its threshold is reached. The checker
/// reports a wake-up that never comes as a deadlock.
fn waking(packets: u64, threshold: u64) {
    let ring = Ring::new();
    let producer = thread::spawn({
        let ring = Rc::clone(&ring);
        move || {
            let mut producer = Producer::new(START);
            let mut readers = Readers::new();
            readers.add(Mode::Lossy, false, START, 0);
            for n in 0..packets {
                producer.claim_up_to(&ring.view(), position(n));
                producer.publish(&ring.view(), position(n + 1));
                let wake_at = ring.wake_at.load();
                if readers.should_wake(0, wake_at, producer.head()) {
                    ring.bell.ring();
                }
            }
        }
    });
    let mut cursor = Cursor::new(START, POSITIONS as u32);
    let mut left = packets;
    while left > 0 {
        let ready = cursor.ready(&ring.view());
        cursor.advance(ready);
        left -= ready;
        if left > 0 && cursor.prepare_wait(&ring.view(), &ring.control(), threshold.min(left)) {
            ring.bell.wait();
        }
    }
    producer.join().unwrap();
}

#[test]
fn no_wake_up_is_lost() {
    check(ALL, || waking(2, 1));
    check(up_to(4), || waking(3, 1));
}

#[test]
fn no_wake_up_of_a_threshold_is_lost() {
    check(ALL, || waking(2, 2));
    check(up_to(4), || waking(3, 2));
}

/// A snapshot that is given out is of one moment, and later ones of later moments.
fn snapshots(count: usize) {
    let words: Rc<[Word; 3]> = Rc::new(core::array::from_fn(|_| Word::new(0)));
    let writer = thread::spawn({
        let words = Rc::clone(&words);
        move || {
            let block = Block { words: &words[..] };
            block.publish(&[1; 2]);
            block.publish(&[2; 2]);
        }
    });
    let block = Block { words: &words[..] };
    let mut latest = 0;
    for _ in 0..count {
        let mut values = [0; 2];
        if block.snapshot(&mut values, 1) {
            assert_eq!(values, [values[0]; 2]);
            assert!(values[0] >= latest);
            latest = values[0];
        }
    }
    writer.join().unwrap();
    let mut values = [0; 2];
    assert!(block.snapshot(&mut values, 1));
    assert_eq!(values, [2; 2]);
}

#[test]
fn a_snapshot_is_never_torn() {
    check(ALL, || snapshots(1));
    check(up_to(3), || snapshots(2));
}

/// A transmit stream that sends at once.
struct Sender {
    core: TransmitCore<Vec<Progress>>,
    sent: u64,
}

impl Sender {
    fn new() -> Self {
        Self { core: TransmitCore::new(vec![Progress::default(); POSITIONS], 64, START), sent: 0 }
    }

    /// Sends what the writer has committed; each packet is whole.
    fn send(&mut self, ring: &Ring) {
        self.core.observe_head(ring.position.load_acquire());
        while let Some(job) = self.core.peek(&ring.view()) {
            assert_eq!(ring.cells[job.slot as usize].get(), content(self.sent));
            self.core.take(&job);
            self.core.sent(job.position, job.len);
            self.sent += 1;
        }
        assert_eq!(self.core.counters(0).violations, 0);
    }
}

/// The writer fills the slot of packet `n`, and its descriptor.
fn fill(ring: &Ring, n: u64) {
    let slot = position(n) as usize % POSITIONS;
    ring.cells[slot].set(content(n));
    let descriptor = Descriptor { len: 12, slot: slot as u32, ..descriptor(n, 0) };
    ring.view().store(position(n), &descriptor);
}

/// Transmit: an engine that went to sleep is kicked by the next commit.
#[test]
fn no_kick_is_lost() {
    const PACKETS: u64 = 2;
    check(ALL, || {
        let ring = Ring::new();
        let engine = thread::spawn({
            let ring = Rc::clone(&ring);
            move || {
                let mut sender = Sender::new();
                loop {
                    sender.send(&ring);
                    if sender.sent == PACKETS {
                        break;
                    }
                    if sender.core.prepare_sleep(&ring.need_kick, &ring.position) {
                        ring.bell.wait();
                    }
                    awake(&ring.need_kick);
                }
            }
        });
        for n in 0..PACKETS {
            fill(&ring, n);
            if commit(&ring.position, &ring.need_kick, position(n + 1)) {
                ring.bell.ring();
            }
        }
        engine.join().unwrap();
    });
}

/// Transmit: a writer that waits for room is woken when there is, and writes a slot again only after
/// the engine has read it.
#[test]
fn a_writer_waits_for_room() {
    const PACKETS: u64 = 3;
    check(ALL, || {
        let ring = Ring::new();
        fill(&ring, 0);
        fill(&ring, 1);
        commit(&ring.position, &ring.need_kick, position(2));
        let engine = thread::spawn({
            let ring = Rc::clone(&ring);
            move || {
                let mut sender = Sender::new();
                // Two looks: the third packet may come after both.
                for _ in 0..2 {
                    sender.send(&ring);
                    sender.core.publish_tail(&ring.tail);
                    if sender.core.should_wake(ring.wake_at.load()) {
                        ring.bell.ring();
                    }
                }
                sender
            }
        });
        let room = position(1);
        while prepare_wait(&ring.wake_at, &ring.tail, room) {
            ring.bell.wait();
        }
        fill(&ring, 2);
        commit(&ring.position, &ring.need_kick, position(PACKETS));
        let mut sender = engine.join().unwrap();
        sender.send(&ring);
        assert_eq!(sender.sent, PACKETS);
    });
}
