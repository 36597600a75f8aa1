//! Readers in the owner's process: each with a cursor and a loss count of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rtp_mgr::ring::abi::READERS_MAX;
use rtp_mgr::{Cause, Mode};

use crate::harness::{Harness, ms};
use crate::heard::{self, Heard, Mark, Reads, all, assert_heard, run};

pub(crate) fn every_reader_hears_every_packet(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(8));
    let sender = rig.sender();
    let mut readers: Vec<_> = [Mode::Reliable, Mode::Lossy, Mode::Reliable]
        .map(|mode| rig.rx.subscribe(mode).expect("there is room"))
        .into();
    rig.wait_for("four readers", |counters| counters.readers == 4);
    let mut heard = vec![Vec::new(); readers.len()];
    let mut owner = Vec::new();
    for first in (0..1_000).step_by(50) {
        sender.send_all(first..first + 50);
        owner.extend(rig.hear_present());
        for (reader, heard) in readers.iter_mut().zip(&mut heard) {
            heard.extend(heard::hear_present(reader));
        }
    }
    for heard in heard.iter().chain([&owner]) {
        assert_heard(heard, all(0..1_000));
    }
    let statuses: Vec<_> = readers.iter().map(|reader| reader.status()).collect();
    assert_eq!(statuses.iter().map(|status| status.reliable).collect::<Vec<_>>(), [1, 0, 1]);
    assert!(statuses.iter().all(|status| status.active == 1 && status.lapped == 0));
}

pub(crate) fn a_reader_begins_at_the_present_end(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    sender.send_all(0..10);
    rig.line.settle();
    let mut reader = rig.rx.subscribe(Mode::Lossy).expect("there is room");
    assert_heard(&heard::hear_present(&mut reader), []);
    sender.send_all(10..20);
    rig.line.settle();
    assert_heard(&heard::hear_present(&mut reader), all(10..20));
    assert_heard(&rig.hear_present(), all(0..20));
}

pub(crate) fn a_lossy_reader_learns_exactly_how_many_it_missed(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(5));
    let sender = rig.sender();
    let mut lossy = rig.rx.subscribe(Mode::Lossy).expect("there is room");
    let mut missed = 0;
    for first in (0..3_000).step_by(1_000) {
        assert_heard(&rig.relay(&sender, first..first + 1_000), all(first..first + 1_000));
        assert_eq!(rig.counters().dropped_ring_full, 0, "a lossy reader holds nobody up");
        let heard = heard::hear_present(&mut lossy);
        missed += 1_000 - 32;
        let mark = Mark::Break(1_000 - 32, Cause::Lapped);
        assert_heard(&heard, [mark].into_iter().chain(all(first + 968..first + 1_000)));
        assert_eq!(lossy.status().lapped, missed);
    }
    assert_eq!(rig.rx.stats().snapshot().readers.len(), 2);
}

/// While the ring is overwritten under it: every position is either heard, whole, or counted.
pub(crate) fn a_lossy_reader_under_load_accounts_for_every_position(h: &Harness) {
    const COUNT: usize = 30_000;
    let mut rig = h.rig(|builder| builder.ring_order(6));
    let sender = rig.sender().payload_len(1_000);
    let mut lossy = rig.rx.subscribe(Mode::Lossy).expect("there is room");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let mut accounted = 0;
            loop {
                let last = done.load(Ordering::Acquire);
                let heard = heard::hear_present(&mut lossy);
                check_runs(&heard, &mut accounted);
                if last {
                    return (accounted, lossy.status());
                }
                // Now and then it does something else.
                thread::sleep(ms(3));
            }
        });
        let mut total = 0;
        for first in (0..COUNT).step_by(64) {
            let count = 64.min(COUNT - first);
            sender.trains(first as u16, count);
            total += heard::count(&rig.hear_present());
        }
        assert_eq!(total, COUNT);
        done.store(true, Ordering::Release);
        let (accounted, status) = listening.join().expect("the listener does not panic");
        assert_eq!(accounted, COUNT as u64);
        assert!(status.lapped > 0, "it was never overrun: nothing was shown");
    });
    assert_eq!(rig.counters().dropped_ring_full, 0);
}

/// Every packet is whole and stands where the count of those before it says.
fn check_runs(heard: &[Heard], accounted: &mut u64) {
    for item in heard {
        match item {
            Heard::Packet(packet) => {
                assert!(packet.is_intact(), "packet {} is torn", packet.sequence);
                assert_eq!(packet.number(), *accounted as u16);
                *accounted += 1;
            }
            Heard::Discontinuity { count, cause: Cause::Lapped } => *accounted += count,
            other => panic!("{other:?} in a stream without loss"),
        }
    }
}

pub(crate) fn sixteen_readers_and_no_more(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(6));
    let sender = rig.sender();
    // The owner's is one of them.
    let mut readers: Vec<_> =
        (1..READERS_MAX).map(|_| rig.rx.subscribe(Mode::Lossy).expect("there is room")).collect();
    let error = rig.rx.subscribe(Mode::Lossy).unwrap_err();
    assert!(error.to_string().contains("16"), "{error}");
    for round in 0..50_u16 {
        let at = usize::from(round) % readers.len();
        readers.swap_remove(at);
        rig.wait_for("a free place", |counters| counters.readers < READERS_MAX as u64);
        readers.push(rig.rx.subscribe(Mode::Lossy).expect("its place is free again"));
        sender.send(round);
        assert_heard(&rig.hear(1), all([round]));
        let newest = readers.last_mut().expect("there are some");
        assert_heard(&heard::hear(newest, 1), all([round]));
    }
}

pub(crate) fn a_batch_not_iterated_is_released(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(4));
    let sender = rig.sender();
    let mut positions = 0;
    for first in (0..160).step_by(8) {
        sender.send_all(run(first, 8));
        rig.line.settle();
        loop {
            let batch = Reads::try_read(&mut rig.rx).expect("the engine runs").expect("not ended");
            if batch.is_empty() {
                break;
            }
            positions += batch.len();
        }
    }
    assert_eq!(positions, 160);
    assert_eq!(rig.counters().dropped_ring_full, 0);
}
