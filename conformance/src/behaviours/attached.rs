//! Readers of other processes: on their own, harmless whatever they do.

use std::time::Instant;

use rtp_mgr::{Attached, Cause, Direction, EngineKind, Error, Mode, list, stat};
use rustix::process::Signal;

use crate::child::{Answer, Remote};
use crate::harness::{Harness, Need, NotRun, Rig, ms, refusal, unique_name};
use crate::heard::{self, Mark, all, assert_heard, run};
use crate::wait;
use crate::wire::Sender;

/// A published stream with a small ring, and its name.
fn published(h: &Harness, what: &str, order: u8) -> (Rig, String) {
    let name = unique_name(what);
    let rig = h.rig(|builder| builder.ring_order(order).publish(&name).allow_reliable(true));
    (rig, name)
}

#[track_caller]
fn assert_answer(answer: &Answer, packets: u64, missed: u64) {
    assert_eq!((answer.get("packets"), answer.get("missed")), (packets, missed), "{answer:?}");
    assert_sound(answer);
}

/// Nothing but packets of the stream was heard.
#[track_caller]
fn assert_sound(answer: &Answer) {
    let [torn, gaps, other]: [u64; 3] = ["torn", "gaps", "other"].map(|name| answer.get(name));
    assert_eq!([torn, gaps, other], [0; 3], "{answer:?}");
}

pub(crate) fn readers_have_cursors_and_loss_counts_of_their_own(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let (mut rig, name) = published(h, "cursors", 6);
    let sender = rig.sender();
    assert_heard(&rig.relay(&sender, 0..50), all(0..50));
    let mut along = Remote::reader(h, &name, Mode::Lossy);
    let mut idle = Remote::reader(h, &name, Mode::Lossy);
    assert_eq!(rig.rx.stats().snapshot().readers.len(), 3);
    along.tell("read 2000");
    assert_heard(&rig.relay(&sender, 50..2_050), all(50..2_050));
    let heard = along.answer("read");
    assert_sound(&heard);
    assert_eq!(heard.get::<u64>("accounted"), 2_000, "{heard:?}");
    // 64 positions: what is older is gone.
    assert_answer(&idle.ask("read 2000"), 64, 2_000 - 64);
    assert_eq!(idle.ask("status").get::<u64>("lapped"), 2_000 - 64);
    assert_eq!(rig.counters().dropped_ring_full, 0);
    along.end();
    idle.end();
    rig.wait_for("the owner alone", |counters| counters.readers == 1);
    Ok(())
}

pub(crate) fn a_reader_in_the_owners_process_attaches_too(h: &Harness) {
    let (mut rig, name) = published(h, "inside", 6);
    let mut attached = Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(attached.info().id, rig.rx.id());
    let sender = rig.sender();
    sender.send_all(0..40);
    assert_heard(&rig.hear_present(), all(0..40));
    assert_heard(&heard::hear_present(&mut attached), all(0..40));
    assert_heard(&rig.relay(&sender, 40..200), all(40..200));
    let heard = heard::hear_present(&mut attached);
    assert_heard(&heard, [Mark::Break(96, Cause::Lapped)].into_iter().chain(all(136..200)));
    let figures = attached.stats().snapshot();
    assert_eq!((figures.id, figures.counters.published), (rig.rx.id(), 200));
}

pub(crate) fn a_stopped_reader_holds_nobody_up(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let (mut rig, name) = published(h, "stopped", 6);
    let sender = rig.sender();
    let mut stopped = Remote::reader(h, &name, Mode::Lossy);
    let mut along = Remote::reader(h, &name, Mode::Lossy);
    // Stopped in the midst of reading.
    stopped.tell("read 3000");
    along.tell("read 3000");
    assert_heard(&rig.relay(&sender, 0..500), all(0..500));
    stopped.signal(Signal::STOP);
    assert_heard(&rig.relay(&sender, 500..3_000), all(500..3_000));
    let counters = rig.counters();
    assert_eq!((counters.dropped_ring_full, counters.published), (0, 3_000));
    assert_eq!(along.answer("read").get::<u64>("accounted"), 3_000);
    stopped.signal(Signal::CONT);
    let heard = stopped.answer("read");
    assert_sound(&heard);
    assert_eq!(heard.get::<u64>("accounted"), 3_000, "{heard:?}");
    Ok(())
}

pub(crate) fn a_reliable_reader_that_stalls_is_demoted(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let name = unique_name("stalls");
    let mut rig = h.rig(|builder| {
        builder.ring_order(5).publish(&name).allow_reliable(true).stall_limit(ms(100))
    });
    let sender = rig.sender();
    let mut reliable = Remote::reader(h, &name, Mode::Reliable);
    assert_eq!(reliable.ask("status").get::<u64>("reliable"), 1);
    reliable.tell("read 32");
    assert_heard(&rig.relay(&sender, 0..32), all(0..32));
    assert_answer(&reliable.answer("read"), 32, 0);
    // From here on it does not read: 32 packets later the ring is full, for a while.
    let mut heard = Vec::new();
    let mut next = 32;
    wait::until(
        || "the reader is demoted".to_owned(),
        || {
            sender.send(next);
            next += 1;
            heard.extend(rig.hear_present());
            rig.rx.stats().counters().readers_demoted == 1
        },
    );
    assert_heard(&heard[..32], all(32..64));
    let dropped = rig.counters().dropped_ring_full;
    assert!(dropped > 0, "it was demoted before the ring was full");
    // Nobody is in the way any more.
    let more = rig.relay(&sender, next..next + 500);
    assert_eq!(heard::count(&more), 500);
    assert_eq!(rig.counters().dropped_ring_full, dropped);
    let published = rig.counters().published;
    let answer = reliable.ask(&format!("read {}", published - 32));
    assert_eq!(answer.get::<u64>("accounted"), published - 32, "{answer:?}");
    assert!(answer.get::<u64>("missed") > 0, "{answer:?}");
    let status = reliable.ask("status");
    assert_eq!((status.get::<u64>("demoted"), status.get::<u64>("reliable")), (1, 0));
    Ok(())
}

pub(crate) fn reliable_is_refused_unless_allowed(h: &Harness) {
    let name = unique_name("lossy-only");
    let rig = h.rig(|builder| builder.publish(&name));
    let error = refusal(Attached::open(&name, Mode::Reliable));
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    assert!(error.to_string().contains("allow_reliable"), "{error}");
    Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
    drop(rig);
    let error = refusal(Attached::open(&name, Mode::Lossy));
    assert!(matches!(error, Error::NoSuchStream { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
}

pub(crate) fn a_reader_that_scribbles_harms_nobody(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    for mode in [Mode::Lossy, Mode::Reliable] {
        let name = unique_name("scribbles");
        let mut rig = h.rig(|builder| {
            let builder = builder.ring_order(8).publish(&name).allow_reliable(true);
            builder.stall_limit(ms(50))
        });
        let sender = rig.sender();
        let mut honest = Remote::reader(h, &name, Mode::Lossy);
        let mut vandal = Remote::reader(h, &name, mode);
        honest.tell("rest");
        vandal.tell("scribble 4711 200");
        let mut sent = 0;
        let mut heard = Vec::new();
        while !vandal.has_answered() {
            heard.extend(rig.relay(&sender, run(sent as u16, 64)));
            sent += 64;
        }
        let written: u64 = vandal.answer("scribble").get("scribbled");
        assert!(written >= 1_000, "{written} words");
        let violations = || {
            let readers = rig.rx.stats().snapshot().readers;
            readers.iter().map(|reader| reader.violations).sum::<u64>()
        };
        assert!(violations() > 0, "nothing was noticed");
        // A reliable one can hold the ring full until it is demoted, and no longer.
        if mode == Mode::Lossy {
            assert_heard(&heard, all(run(0, sent)));
            assert_eq!(rig.counters().dropped_ring_full, 0);
        }
        // New readers come as before.
        let mut late = Remote::reader(h, &name, Mode::Lossy);
        let published = rig.counters().published;
        let more = rig.relay(&sender, run(sent as u16, 100));
        let published = rig.counters().published - published;
        assert_eq!(heard::count(&more) as u64, published);
        let answer = late.ask(&format!("read {published}"));
        assert_eq!((answer.get::<u64>("packets"), answer.get::<u64>("torn")), (published, 0));
        vandal.ask("babble");
        vandal.kill();
        rig.wait_for("the vandal has gone", |counters| counters.readers == 3);
        let more = rig.relay(&sender, run((sent + 100) as u16, 100));
        assert_eq!(heard::count(&more), 100);
        let (_, last) = rig.finish();
        let answer = honest.answer("rest");
        assert_eq!(answer.get::<u64>("accounted"), last.counters.published, "{answer:?}");
        assert_eq!((answer.get::<u64>("torn"), answer.get::<u64>("gaps")), (0, 0));
    }
    Ok(())
}

pub(crate) fn the_ring_cannot_be_written_or_shrunk(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let (mut rig, name) = published(h, "attacked", 6);
    let sender = rig.sender();
    let mut attacker = Remote::reader(h, &name, Mode::Lossy);
    sender.send_all(0..64);
    rig.line.settle();
    let answer = attacker.ask("attack");
    assert_eq!(answer.get::<String>("worked"), "nothing", "{answer:?}");
    let bytes: u64 = answer.get("bytes");
    let ring = u64::from(rig.rx.slot_count()) * u64::from(rig.rx.slot_stride());
    assert!(bytes >= ring, "{answer:?}: the ring was not found");
    assert!(answer.get::<u64>("tried") >= 2, "{answer:?}");
    // What stood in the ring stands there still.
    assert_heard(&rig.hear_present(), all(0..64));
    assert_answer(&attacker.ask("read 64"), 64, 0);
    assert_heard(&rig.relay(&sender, 64..200), all(64..200));
    Ok(())
}

pub(crate) fn a_reader_learns_that_the_stream_has_stopped(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let (mut rig, name) = published(h, "ends", 6);
    let mut attached = Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
    let mut remote = Remote::reader(h, &name, Mode::Lossy);
    rig.sender().send_all(0..30);
    rig.line.settle();
    remote.tell("rest");
    rig.rx.stop().unwrap_or_else(|error| panic!("{error}"));
    let answer = remote.answer("rest");
    assert_answer(&answer, 30, 0);
    assert_eq!(answer.get::<String>("end"), "stopped");
    assert_heard(&heard::hear_rest(&mut attached), all(0..30));
    Ok(())
}

pub(crate) fn a_reader_learns_that_the_owner_has_died(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let name = unique_name("dies");
    // Twice: what the first leaves behind is not in the second's way.
    for _ in 0..2 {
        let (mut owner, address) = Remote::owner(h, &name, None);
        let mut attached =
            Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
        let mut remote = Remote::reader(h, &name, Mode::Lossy);
        Sender::unattended(address).send_all(0..20);
        wait::until(
            || "20 packets published".to_owned(),
            || owner.ask("counters").get::<u64>("published") == 20,
        );
        remote.tell("rest");
        owner.kill();
        let answer = remote.answer("rest");
        assert_eq!(answer.get::<u64>("packets"), 20, "{answer:?}");
        assert_eq!(answer.get::<String>("end"), "owner-gone");
        assert_heard(&heard::hear(&mut attached, 20), all(0..20));
        let error = match attached.read(wait::LONG) {
            Err(error) => error,
            Ok(batch) => panic!("{batch:?}"),
        };
        assert!(matches!(error, Error::OwnerGone { .. }), "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        let error = refusal(Attached::open(&name, Mode::Lossy));
        assert!(matches!(error, Error::NoSuchStream { .. }), "{error}");
        assert!(!list().expect("a list").iter().any(|info| info.name.as_ref() == Some(&name)));
    }
    Ok(())
}

pub(crate) fn an_owner_that_is_stopped_keeps_nobody_waiting(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::OtherProcesses)?;
    let name = unique_name("owner-stopped");
    let (owner, address) = Remote::owner(h, &name, None);
    let mut attached = Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
    Sender::unattended(address).send_all(0..5);
    assert_heard(&heard::hear(&mut attached, 5), all(0..5));
    owner.signal(Signal::STOP);
    let before = Instant::now();
    // Whether they succeed is the engine's affair.
    let _ = Attached::open(&name, Mode::Lossy);
    let _ = stat(&name);
    let _ = list().unwrap_or_else(|error| panic!("{error}"));
    let batch = attached.read(ms(10)).unwrap_or_else(|error| panic!("{error}"));
    assert!(batch.is_some_and(|batch| batch.is_empty()));
    assert_eq!(attached.stats().counters().published, 5);
    assert!(before.elapsed() < wait::LONG, "{:?}", before.elapsed());
    owner.signal(Signal::CONT);
    Sender::unattended(address).send_all(5..10);
    assert_eq!(heard::count(&heard::hear(&mut attached, 5)), 5);
    Ok(())
}

pub(crate) fn a_name_belongs_to_one_stream(h: &Harness) {
    let name = unique_name("taken");
    let first = h.rig(|builder| builder.publish(&name));
    let second = || h.receiver().leg(crate::harness::loopback()).publish(&name).open();
    let error = refusal(second());
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    drop(first);
    second().unwrap_or_else(|error| panic!("the name is free again: {error}"));
    let error = refusal(Attached::open(&unique_name("nobody"), Mode::Lossy));
    assert!(matches!(error, Error::NoSuchStream { .. }), "{error}");
}

pub(crate) fn streams_are_listed_and_their_figures_shown(h: &Harness) {
    let (mut rig, name) = published(h, "listed", 6);
    let hidden = h.rig(|builder| builder.announce(false));
    let sender = rig.sender();
    assert_heard(&rig.relay(&sender, 0..40), all(0..40));
    let listed = list().unwrap_or_else(|error| panic!("{error}"));
    let info = listed.iter().find(|info| info.id == rig.rx.id()).expect("it is listed");
    assert_eq!(info.name.as_ref(), Some(&name));
    assert_eq!((info.engine, info.direction), (h.kind(), Direction::Receive));
    assert_eq!(info.owner_pid, std::process::id());
    assert!(info.allow_reliable);
    assert_eq!(info.legs.len(), 1);
    let unannounced = listed.iter().find(|info| info.id == hidden.rx.id());
    match h.kind() {
        EngineKind::User => assert!(unannounced.is_none(), "it was not to be announced"),
        // The module knows all of its streams, but not their legs; root may look at each.
        EngineKind::Kernel => {
            assert!(unannounced.expect("it is listed").legs.is_empty());
            let looked = stat(&hidden.rx.id().to_string());
            if rustix::process::geteuid().is_root() {
                let (_, stats) = looked.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(stats.snapshot().id, hidden.rx.id());
            } else {
                let error = refusal(looked);
                assert!(error.to_string().contains("root"), "{error}");
            }
        }
    }
    for key in [name.clone(), rig.rx.id().to_string()] {
        let (info, stats) = stat(&key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(info.id, rig.rx.id());
        let (theirs, ours) = (stats.snapshot(), rig.rx.stats().snapshot());
        assert_eq!(theirs.counters.published, 40);
        assert_eq!(theirs.sources.len(), ours.sources.len());
        assert_eq!((theirs.slot_count, theirs.owner_pid), (ours.slot_count, ours.owner_pid));
    }
    drop(rig);
    let error = refusal(stat(&name));
    assert!(matches!(error, Error::NoSuchStream { .. }), "{error}");
}
