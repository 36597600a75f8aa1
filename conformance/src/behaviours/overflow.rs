//! A ring whose reliable reader does not keep up: the newest is dropped, nothing is overwritten, and
//! the place is marked.

use rtp_mgr::{Cause, Item, Mode};

use crate::harness::{Harness, ms};
use crate::heard::{Mark, all, assert_heard};
use crate::wire::payload;

/// `ring_order` of the rings here, and their positions.
const ORDER: u8 = 4;
const POSITIONS: u16 = 16;

pub(crate) fn a_full_ring_drops_the_newest_and_marks_the_place(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(ORDER));
    let sender = rig.sender();
    for round in 0..3_u16 {
        let first = round * 100;
        sender.send_all(first..first + 100);
        rig.line.settle();
        let lost = u64::from(100 - POSITIONS);
        let kept = all(first..first + POSITIONS);
        if round == 0 {
            assert_heard(&rig.hear_present(), kept);
        } else {
            let mark = Mark::Break(lost, Cause::RingFull);
            assert_heard(&rig.hear_present(), [mark].into_iter().chain(kept));
        }
        let counters = rig.counters();
        let rounds = u64::from(round) + 1;
        assert_eq!(counters.dropped_ring_full, rounds * lost);
        assert_eq!(counters.published, rounds * u64::from(POSITIONS));
        assert_eq!((counters.unique, counters.lost), (rounds * 100, 0), "lost by the reader alone");
        assert_eq!(counters.high_watermark, u64::from(POSITIONS));
    }
}

pub(crate) fn a_full_ring_drops_the_newest_and_marks_the_place_in_order(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(ORDER).ordered(ms(20)));
    let sender = rig.sender();
    sender.send_all(0..50);
    rig.line.settle();
    assert_heard(&rig.hear_present(), all(0..POSITIONS));
    // Of these the network lost three more.
    sender.send_all(53..60);
    let lost = u64::from(53 - POSITIONS);
    let mark = Mark::Break(lost, Cause::RingFull);
    assert_heard(&rig.hear_present(), [mark].into_iter().chain(all(53..60)));
    let counters = rig.counters();
    assert_eq!(counters.dropped_ring_full, u64::from(50 - POSITIONS));
    assert_eq!((counters.expected, counters.unique, counters.lost), (60, 57, 3));
    assert_eq!((counters.gap_positions, counters.restarts), (0, 0));
}

pub(crate) fn what_is_borrowed_is_never_overwritten(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(ORDER));
    let sender = rig.sender().payload_len(1_000);
    sender.send_all(0..10);
    rig.line.settle();
    let batch = rig.rx.read(ms(0)).expect("the engine runs").expect("it has not stopped");
    let packets: Vec<_> = batch
        .iter()
        .filter_map(|item| match item {
            Item::Packet(packet) => Some(packet),
            _ => None,
        })
        .collect();
    assert_eq!(packets.len(), 10);
    // Many times round the ring, were there room.
    sender.send_all(10..500);
    rig.line.settle();
    for (number, packet) in packets.iter().enumerate() {
        assert_eq!(packet.payload(), payload(sender.ssrc, number as u16, 1_000));
    }
    drop(packets);
    batch.release();
    assert_heard(&rig.hear_present(), all(10..16));
    sender.send(500);
    assert_heard(&rig.hear(1), [Mark::Break(484, Cause::RingFull), Mark::P(500)]);
}

pub(crate) fn a_reader_that_leaves_makes_room(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ring_order(ORDER));
    let sender = rig.sender();
    let stalled = rig.rx.subscribe(Mode::Reliable).expect("there is room");
    sender.send_all(0..40);
    assert_heard(&rig.hear_present(), all(0..POSITIONS));
    sender.send_all(40..60);
    assert_heard(&rig.hear_present(), []);
    assert_eq!(rig.counters().dropped_ring_full, u64::from(60 - POSITIONS));
    drop(stalled);
    rig.wait_for("one reader left", |counters| counters.readers == 1);
    let heard = rig.relay(&sender, 60..200);
    let mark = Mark::Break(u64::from(60 - POSITIONS), Cause::RingFull);
    assert_heard(&heard, [mark].into_iter().chain(all(60..200)));
}
