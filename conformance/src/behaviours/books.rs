//! The books: every packet under exactly one cause, at every moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rtp_mgr::ring::abi::StreamCounters;
use rtp_mgr::{State, Stats};

use crate::dice::Dice;
use crate::harness::{Harness, NotRun, Rig, ms};
use crate::heard;
use crate::wire::Sender;

/// Snapshots that a behaviour looks at, at least, and different ones among them.
const SNAPSHOTS: u64 = 5_000;
const DIFFERENT: u64 = 500;

/// The law of a receive stream.
#[track_caller]
pub(crate) fn assert_balanced(counters: &StreamCounters) {
    let StreamCounters {
        received,
        published,
        dropped_ring_full,
        dropped_oversize,
        dropped_invalid,
        dropped_filtered,
        duplicate,
        late,
        staged,
        ..
    } = *counters;
    let accounted = published
        + dropped_ring_full
        + dropped_oversize
        + dropped_invalid
        + dropped_filtered
        + duplicate
        + late
        + staged;
    assert_eq!(received, accounted, "{counters:?}");
    assert_eq!(counters.lost, counters.expected.saturating_sub(counters.unique), "{counters:?}");
}

/// The law of a transmit stream.
#[track_caller]
pub(crate) fn assert_transmit_balanced(counters: &StreamCounters) {
    let StreamCounters { committed, sent, send_failed, pending, .. } = *counters;
    assert_eq!(committed, sent + send_failed + pending, "{counters:?}");
}

/// Counters that never fall.
fn growing(counters: &StreamCounters) -> [u64; 14] {
    [
        counters.received,
        counters.published,
        counters.dropped_ring_full,
        counters.dropped_oversize,
        counters.dropped_invalid,
        counters.dropped_filtered,
        counters.duplicate,
        counters.late,
        counters.unique,
        counters.expected,
        counters.committed,
        counters.sent,
        counters.send_failed,
        counters.updated_ns,
    ]
}

/// Looks at the books until told otherwise and often enough.
struct Auditor {
    stats: Stats,
    law: fn(&StreamCounters),
    snapshots: u64,
    different: u64,
    before: StreamCounters,
}

impl Auditor {
    fn new(stats: Stats, law: fn(&StreamCounters)) -> Self {
        let before = stats.counters();
        Self { stats, law, snapshots: 0, different: 0, before }
    }

    fn look(&mut self) {
        // Both ways to the figures, in turn.
        let now = if self.snapshots.is_multiple_of(4) {
            self.stats.snapshot().counters
        } else {
            self.stats.counters()
        };
        (self.law)(&now);
        for ((now, before), name) in growing(&now).iter().zip(growing(&self.before)).zip(0..) {
            assert!(*now >= before, "counter {name} of {:?} then {:?}", self.before, now);
        }
        self.snapshots += 1;
        self.different += u64::from(now.updated_ns != self.before.updated_ns);
        self.before = now;
    }

    fn is_satisfied(&self) -> bool {
        self.snapshots >= SNAPSHOTS && self.different >= DIFFERENT
    }
}

/// Runs `load` again and again while the books are looked at.
fn audit(stats: Stats, law: fn(&StreamCounters), mut load: impl FnMut()) {
    let satisfied = AtomicBool::new(false);
    thread::scope(|scope| {
        let auditing = scope.spawn(|| {
            let mut auditor = Auditor::new(stats, law);
            while !auditor.is_satisfied() {
                auditor.look();
            }
            satisfied.store(true, Ordering::Release);
        });
        while !satisfied.load(Ordering::Acquire) && !auditing.is_finished() {
            load();
        }
        if let Err(panic) = auditing.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Sends a bit of everything that a stream can meet.
struct Trouble {
    good: Sender,
    other: Sender,
    dice: Dice,
    next: u16,
}

impl Trouble {
    fn new(rig: &Rig) -> Self {
        let good = rig.sender();
        // An ordered stream follows the first it hears.
        good.send(0);
        Self { good, other: rig.sender().ssrc(8), dice: Dice::new(5), next: 1 }
    }

    /// More than the ring holds.
    fn flood(&mut self, count: u16) {
        for _ in 0..count {
            self.good.send(self.next);
            self.next = self.next.wrapping_add(1);
        }
    }

    fn send(&mut self) {
        for _ in 0..20 {
            let next = self.next;
            match self.dice.below(12) {
                0 => self.good.send(next.wrapping_sub(self.dice.below(40) as u16)),
                1 => self.next = next.wrapping_add(self.dice.below(5) as u16),
                2 => self.other.send(next),
                3 => self.good.datagram(&[0x80; 12][..self.dice.below(13) as usize]),
                4 => {
                    let mut cut = self.good.packet(next).bytes();
                    // CSRCs that are not there.
                    cut[0] |= 0x0f;
                    self.good.datagram(&cut[..20]);
                }
                5 => self.good.datagram(&self.good.packet(next).bytes().repeat(60)),
                6 => self.good.send(next.wrapping_add(20_000)),
                _ => {
                    self.good.send(next);
                    self.next = next.wrapping_add(1);
                }
            }
        }
    }
}

fn balance_under_load(mut rig: Rig) {
    let mut trouble = Trouble::new(&rig);
    let mut heard = 0;
    let mut dice = Dice::new(9);
    audit(rig.rx.stats(), assert_balanced, || {
        trouble.send();
        // At times nobody reads, and the ring gets full.
        if dice.chance(10) {
            trouble.flood(200);
        } else if dice.chance(60) {
            heard += heard::count(&heard::hear_present(&mut rig.rx));
        }
    });
    let sent = rig.line.sent();
    let (rest, last) = rig.finish();
    heard += heard::count(&rest);
    let counters = last.counters;
    let passed =
        counters.passed_rtcp + counters.passed_stun + counters.passed_dtls + counters.passed_other;
    assert_eq!(counters.received + passed, sent, "{counters:?}");
    assert_eq!((counters.published, counters.staged), (heard as u64, 0), "{counters:?}");
    for (name, count) in [
        ("dropped_ring_full", counters.dropped_ring_full),
        ("dropped_oversize", counters.dropped_oversize),
        ("dropped_invalid", counters.dropped_invalid),
        ("duplicate", counters.duplicate),
    ] {
        assert!(count > 0, "{name} never happened: {counters:?}");
    }
}

pub(crate) fn balance_at_every_snapshot_in_order_of_arrival(h: &Harness) {
    balance_under_load(h.rig(|builder| builder.ring_order(5)));
}

pub(crate) fn balance_at_every_snapshot_of_an_ordered_stream(h: &Harness) {
    balance_under_load(h.rig(|builder| builder.ring_order(7).ordered(ms(2))));
}

pub(crate) fn balance_at_every_snapshot_of_a_transmit_stream(h: &Harness) -> Result<(), NotRun> {
    h.needs(crate::Need::Transmit)?;
    // Nobody listens: some sends are refused.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let to = nobody.local_addr().expect("a bound socket");
    drop(nobody);
    let mut tx = h.transmit(to, |builder| builder.ring_order(5));
    let mut total = 0;
    audit(tx.stats(), assert_transmit_balanced, || {
        total += super::transmit::post_what_fits(&mut tx, 12, 200) as u64;
    });
    let last = tx.close(crate::wait::LONG).unwrap_or_else(|error| panic!("{error}"));
    assert_transmit_balanced(&last.counters);
    assert_eq!((last.counters.committed, last.counters.pending), (total, 0));
    Ok(())
}

pub(crate) fn figures_are_final_after_stop(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(ms(500)));
    let sender = rig.sender();
    sender.send_all([1, 2, 4, 6]);
    assert_eq!(rig.counters().staged, 2);
    let stats = rig.rx.stats();
    assert_eq!(stats.snapshot().state, State::Running);
    rig.rx.stop().unwrap_or_else(|error| panic!("{error}"));
    let last = stats.snapshot();
    assert_eq!(last.state, State::Stopped);
    assert_balanced(&last.counters);
    assert_eq!((last.counters.staged, last.counters.published), (0, 4));
    assert_eq!((last.counters.expected, last.counters.lost), (6, 2));
    assert_eq!(last.counters.gap_positions, 2);
    drop(rig);
    assert_eq!(stats.snapshot().counters, last.counters);
}
