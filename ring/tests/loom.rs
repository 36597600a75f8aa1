//! The shared-memory protocol under a model checker: every order in which two threads can see each
//! other's stores.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p rtp-mgr-ring --test loom
//! ```
//!
//! Each model was seen to fail with the fence or ordering it is about taken out:
//!
//! | taken out | model that fails |
//! |---|---|
//! | release of `head` in `Producer::publish` | `a_published_descriptor_is_never_torn` |
//! | write fence in `Producer::claim_up_to` | `an_overwritten_packet_is_always_noticed` |
//! | read fence in `Cursor::is_intact` | `an_overwritten_packet_is_always_noticed` |
//! | full fence in `Producer::publish` | `no_wake_up_is_lost` |
//! | full fence in `Cursor::prepare_wait` | `no_wake_up_is_lost` |
//! | write fence in `Block::publish` | `a_snapshot_is_never_torn` |
//! | read fence in `Block::snapshot` | `a_snapshot_is_never_torn` |
//! | full fence in `transmit::commit` | `no_kick_is_lost` |
//! | full fence in `transmit::prepare_sleep` | `no_kick_is_lost` |

#![cfg(loom)]

use loom::sync::{Arc, Notify};
use loom::thread;
use rtp_mgr_ring::abi::{Descriptor, DESC_WORDS};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::producer::{Mode, Producer, Readers};
use rtp_mgr_ring::reader::{Available, Cursor};
use rtp_mgr_ring::transmit;
use rtp_mgr_ring::view::{Block, ControlView, RingView, SlotsView};

/// Positions begin just before they wrap.
const START: u64 = u64::MAX;

struct Ring {
    claim: Word,
    head: Word,
    descriptors: Vec<[Word; DESC_WORDS]>,
    slots: Vec<Word>,
    tail: Word,
    wake_at: Word,
    notify: Notify,
}

impl Ring {
    fn new(slot_count: usize, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            claim: Word::new(START),
            head: Word::new(START),
            descriptors: (0..slot_count).map(|_| std::array::from_fn(|_| Word::new(0))).collect(),
            slots: (0..slots).map(|_| Word::new(0)).collect(),
            tail: Word::new(START),
            wake_at: Word::new(START),
            notify: Notify::new(),
        })
    }

    fn view(&self) -> RingView<'_> {
        RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors }
    }

    fn slots(&self) -> SlotsView<'_> {
        SlotsView { words: &self.slots, stride: 8 }
    }

    fn control(&self) -> ControlView<'_> {
        ControlView { position: &self.tail, wake_at: &self.wake_at }
    }
}

/// What stands at the n-th position written: both modelled words say so.
fn mark(n: u64) -> Descriptor {
    Descriptor { sequence: n + 100, time_ns: n + 100, ..Descriptor::default() }
}

#[test]
fn a_published_descriptor_is_never_torn() {
    loom::model(|| {
        let ring = Ring::new(2, 0);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(START);
                for n in 0..2 {
                    let position = START.wrapping_add(n);
                    producer.claim_up_to(&ring.view(), position);
                    producer.write(&ring.view(), position, &mark(n));
                    producer.publish(&ring.view(), position.wrapping_add(1));
                }
            })
        };
        let cursor = Cursor::new(START, 2);
        for n in 0..cursor.ready(&ring.view()) {
            assert_eq!(cursor.load(&ring.view(), START.wrapping_add(n)), mark(n));
        }
        producer.join().unwrap();
    });
}

#[test]
fn an_overwritten_packet_is_always_noticed() {
    loom::model(|| {
        // One position, two slots: position n is in slot n modulo 2, so slot 0 is written again for
        // position 2 only after position 1 was claimed.
        let ring = Ring::new(1, 2);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(START);
                for n in 0..3_u64 {
                    let position = START.wrapping_add(n);
                    // The network writes the packet into a free slot before it has a position.
                    ring.slots[n as usize % 2].store(n + 100);
                    producer.claim_up_to(&ring.view(), position);
                    producer.write(&ring.view(), position, &mark(n));
                    producer.publish(&ring.view(), position.wrapping_add(1));
                }
            })
        };
        let mut cursor = Cursor::new(START, 1);
        for _ in 0..2 {
            match cursor.available(&ring.view()) {
                Available::Lapped { missed } => assert!(missed <= 2),
                Available::Positions(0) => {}
                Available::Positions(_) => {
                    let n = cursor.next().wrapping_sub(START);
                    let descriptor = cursor.load(&ring.view(), cursor.next());
                    let mut packet = [0; 8];
                    ring.slots().copy((n % 2) as u32, &mut packet);
                    if cursor.is_intact(&ring.view(), cursor.next()) {
                        assert_eq!(descriptor, mark(n));
                        assert_eq!(u64::from_le_bytes(packet), n + 100);
                        cursor.advance(1);
                    }
                }
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let ring = Ring::new(2, 0);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(START);
                let mut readers = Readers::new();
                let reader = readers.add(Mode::Reliable, false, START, 0).unwrap();
                for n in 0..2 {
                    let head = START.wrapping_add(n + 1);
                    producer.publish(&ring.view(), head);
                    if readers.should_wake(reader, ring.wake_at.load(), head) {
                        ring.notify.notify();
                    }
                }
            })
        };
        // Reads both, one or two at a time. A lost wake-up is a deadlock, which the checker reports.
        let mut cursor = Cursor::new(START, 2);
        while cursor.next() != START.wrapping_add(2) {
            match cursor.ready(&ring.view()) {
                0 if cursor.prepare_wait(&ring.view(), &ring.control(), 1) => ring.notify.wait(),
                ready => cursor.advance(ready),
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_threshold_is_waited_for_and_reached() {
    loom::model(|| {
        let ring = Ring::new(2, 0);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(START);
                let mut readers = Readers::new();
                let reader = readers.add(Mode::Reliable, false, START, 0).unwrap();
                for n in 0..2 {
                    let head = START.wrapping_add(n + 1);
                    producer.publish(&ring.view(), head);
                    if readers.should_wake(reader, ring.wake_at.load(), head) {
                        ring.notify.notify();
                    }
                }
            })
        };
        let cursor = Cursor::new(START, 2);
        while cursor.ready(&ring.view()) < 2 {
            if cursor.prepare_wait(&ring.view(), &ring.control(), 2) {
                ring.notify.wait();
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_released_position_is_written_again_only_after_it_was_read() {
    loom::model(|| {
        let ring = Ring::new(1, 0);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut producer = Producer::new(START);
                let mut readers = Readers::new();
                let reader = readers.add(Mode::Reliable, false, START, 0).unwrap();
                let mut written = 0;
                // Three looks: what does not fit by then is dropped.
                for _ in 0..3 {
                    let head = producer.head();
                    readers.observe_tail(reader, ring.tail.load_acquire(), head, 0);
                    if readers.limit(1).is_some_and(|limit| limit != head) {
                        producer.claim_up_to(&ring.view(), head);
                        producer.write(&ring.view(), head, &mark(written));
                        producer.publish(&ring.view(), head.wrapping_add(1));
                        written += 1;
                    }
                }
            })
        };
        let mut cursor = Cursor::new(START, 1);
        for n in 0..2 {
            if cursor.ready(&ring.view()) == 0 {
                break;
            }
            assert_eq!(cursor.load(&ring.view(), cursor.next()), mark(n));
            cursor.advance(1);
            cursor.release(&ring.control());
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_snapshot_is_never_torn() {
    loom::model(|| {
        let words: Arc<Vec<Word>> = Arc::new((0..3).map(|_| Word::new(0)).collect());
        let writer = {
            let words = words.clone();
            thread::spawn(move || {
                for value in 1..3 {
                    Block { words: &words }.publish(&[value, value]);
                }
            })
        };
        let mut values = [0; 2];
        if (Block { words: &words }).snapshot(&mut values, 1) {
            assert_eq!(values[0], values[1]);
        }
        writer.join().unwrap();
    });
}

#[test]
fn no_kick_is_lost() {
    loom::model(|| {
        let shared = Arc::new((Word::new(0), Word::new(0), Notify::new()));
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (head, need_kick, notify) = &*shared;
                for position in 1..3 {
                    if transmit::commit(head, need_kick, position) {
                        notify.notify();
                    }
                }
            })
        };
        let (head, need_kick, notify) = &*shared;
        let mut taken = 0;
        while taken != 2 {
            let now = head.load_acquire();
            if now == taken && transmit::prepare_sleep(need_kick, head, taken) {
                notify.wait();
            }
            transmit::awake(need_kick);
            taken = head.load_acquire();
        }
        writer.join().unwrap();
    });
}
