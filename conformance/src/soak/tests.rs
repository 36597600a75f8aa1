//! That each of the checks can fail.

use std::sync::atomic::AtomicBool;

use rtp_mgr::Engine;

use super::*;

/// A moment's load without any crowd. Other tests of this process have files and streams of their own, so the
/// machine is taken to be as it was.
fn story() -> Story {
    let h = Harness::new(Engine::User, "no reader processes");
    let before = Machine::now();
    let mut account = Account::default();
    let pairs = [false, true].map(|redundant| {
        let line = Line::open(&h, redundant);
        let (stats, len) = (line.rx.stats(), line.payload_len());
        let flags = [const { AtomicBool::new(false) }; 2];
        let [over, stop] = &flags;
        let Line { rx, tx, .. } = line;
        let (sent, (owner, received)) = thread::scope(|scope| {
            let _end = EndAll(&flags);
            let owner = scope.spawn(|| load::own(rx, stop));
            let sender = scope.spawn(|| load::transmit(tx, &stats, len, over));
            wait::until(|| "500 packets".into(), || stats.counters().published >= 500);
            over.store(true, Ordering::Release);
            let sent = join(sender);
            stop.store(true, Ordering::Release);
            (sent, join(owner))
        });
        account.steady.push(owner);
        Pair { sent, received, owner, readers: 2 }
    });
    let after = before.clone();
    let pairs = pairs.into();
    Story { pairs, account, before, after, snapshots: 1, kernel: false, left: Vec::new() }
}

type Change = fn(&mut Story);

/// By the check that has to find it.
const CHANGES: &[(&str, Change)] = &[
    ("one_fate", |story| story.pairs[0].received.counters.published -= 1),
    ("one_fate", |story| story.pairs[1].received.counters.duplicate += 1),
    ("one_fate", |story| story.pairs[0].sent.last.counters.sent -= 1),
    ("one_fate", |story| story.pairs[0].sent.last.legs[0].received += 1),
    ("one_fate", |story| story.pairs[1].sent.last.legs[1].received -= 1),
    ("one_fate", |story| story.pairs[1].received.counters.staged = 1),
    ("every_position", |story| story.pairs[1].owner.packets -= 1),
    ("every_position", |story| story.pairs[1].received.counters.gap_positions += 1),
    ("every_position", |story| story.account.steady[0].missed += 1),
    ("every_position", |story| story.account.steady.truncate(1)),
    ("out_of_place", |story| story.pairs[1].owner.torn = 1),
    ("out_of_place", |story| story.pairs[1].owner.jumps = 1),
    ("out_of_place", |story| story.account.steady[0].torn = 1),
    ("out_of_place", |story| story.account.wrong.push("torn".into())),
    ("place_taken", |story| story.pairs[0].readers = 3),
    ("for_long", |story| {
        let counters = &mut story.pairs[0].received.counters;
        counters.dropped_ring_full = counters.received;
    }),
    ("is_left", |story| story.left.push("a stream".into())),
    ("is_left", |story| story.before = Machine::default()),
];

#[test]
fn every_check_finds_what_is_wrong() {
    let complaints = |story: &Story| {
        let found = CHECKS.map(|(name, check)| (name, check(story)));
        found.into_iter().filter(|(_, wrong)| !wrong.is_empty()).collect::<Vec<_>>()
    };
    let good = story();
    assert_eq!(complaints(&good), []);
    for (number, (check, change)) in CHANGES.iter().enumerate() {
        let mut changed = good.clone();
        change(&mut changed);
        let found = complaints(&changed);
        assert!(found.iter().any(|(name, _)| name.ends_with(check)), "{number} {check}: {found:?}");
    }
}
