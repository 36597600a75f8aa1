//! The end of a stream: what is there is read, nobody waits for ever, everything is free again.

use std::thread;
use std::time::{Duration, Instant};

use rtp_mgr::{Mode, State};

use crate::harness::{Harness, Rig, ms};
use crate::heard::{self, Mark, all, assert_heard};
use crate::wait::LONG;

/// Longer than a behaviour may take: whoever still waits then was not woken.
const TOO_LONG: Duration = Duration::from_secs(120);

pub(crate) fn a_stopped_stream_is_drained_and_then_ends(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let mut reader = rig.rx.subscribe(Mode::Lossy).expect("there is room");
    rig.sender().send_all(0..100);
    rig.line.settle();
    rig.rx.stop().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rig.rx.stats().snapshot().state, State::Stopped);
    assert_heard(&heard::hear_rest(&mut rig.rx), all(0..100));
    assert_heard(&heard::hear_rest(&mut reader), all(0..100));
    for _ in 0..3 {
        assert!(rig.rx.read(TOO_LONG).expect("an end is no error").is_none());
        assert!(rig.rx.try_read().expect("an end is no error").is_none());
    }
    rig.rx.stop().unwrap_or_else(|error| panic!("stopping twice: {error}"));
}

pub(crate) fn stop_gives_up_gaps_and_publishes_what_is_held_back(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ordered(Duration::from_secs(60)));
    rig.sender().send_all([1, 3, 6]);
    assert_eq!(rig.counters().staged, 2);
    rig.rx.stop().unwrap_or_else(|error| panic!("{error}"));
    let heard = heard::hear_rest(&mut rig.rx);
    let marks = [Mark::P(1), Mark::Gap(2), Mark::P(3), Mark::Gap(4), Mark::Gap(5), Mark::P(6)];
    assert_heard(&heard, marks);
}

/// A reader that waits with no end of its own in sight.
fn while_a_reader_waits(mut rig: Rig, end: impl FnOnce(&mut Option<Rig>)) {
    let mut waiting = rig.rx.subscribe(Mode::Reliable).expect("there is room");
    rig.sender().send(1);
    assert_heard(&rig.hear(1), all([1]));
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let heard = heard::hear(&mut waiting, 1);
            let before = Instant::now();
            let ended = matches!(waiting.read(TOO_LONG), Ok(None));
            (heard, ended, before.elapsed())
        });
        let mut rig = Some(rig);
        // Some of the time it sleeps already, some of the time not yet.
        thread::sleep(ms(5));
        end(&mut rig);
        let (heard, ended, took) = reader.join().expect("the reader does not panic");
        assert_heard(&heard, all([1]));
        assert!(ended && took < LONG, "ended: {ended}, after {took:?}");
    });
}

pub(crate) fn stop_wakes_readers_that_wait(h: &Harness) {
    for _ in 0..20 {
        while_a_reader_waits(h.rig(|builder| builder), |rig| {
            let rig = rig.as_mut().expect("it is there");
            rig.rx.stop().unwrap_or_else(|error| panic!("{error}"));
        });
    }
}

pub(crate) fn drop_wakes_readers_that_wait(h: &Harness) {
    for _ in 0..20 {
        while_a_reader_waits(h.rig(|builder| builder), |rig| drop(rig.take()));
    }
}

pub(crate) fn figures_outlive_the_stream(h: &Harness) {
    let rig = h.rig(|builder| builder);
    rig.sender().send_all(0..10);
    rig.counters();
    let (stats, side) = (rig.rx.stats(), rig.rx.side_channel());
    let id = rig.rx.id();
    drop(rig);
    let last = stats.snapshot();
    assert_eq!((last.id, last.state), (id, State::Stopped));
    assert_eq!((last.counters.received, last.counters.published), (10, 10));
    assert!(side.recv(TOO_LONG).is_none() && side.try_recv().is_none());
}

pub(crate) fn the_port_is_free_afterwards(h: &Harness) {
    let rig = h.rig(|builder| builder);
    let address = rig.line.address(0);
    drop(rig);
    // Until somebody else has it.
    let mut rig = Rig::open(h.receiver().leg(rtp_mgr::Leg::new(address.ip(), address.port())));
    rig.sender().send(1);
    assert_heard(&rig.hear(1), all([1]));
}
