//! That the comparison finds nothing where there is nothing, and everything where there is something.

use rtp_mgr::Cause;
use rtp_mgr::Engine;

use super::plan::Plan;
use super::recording::{Equal, Figures, NOT_COMPARED, Record, Recording, difference};
use super::round::{Ended, record, run};

const USER: [Engine; 2] = [Engine::User, Engine::User];

/// A change to what one side recorded.
type Change = fn(&mut Recording);

fn last(recording: &mut Recording) -> &mut Figures {
    recording.last.as_mut().expect("it has finished")
}

fn packet(recording: &mut Recording) -> &mut super::recording::Packet {
    let mut packets = recording.heard.iter_mut().filter_map(|record| match record {
        Record::Packet(packet) if packet.payload_len > 0 => Some(packet),
        _ => None,
    });
    packets.nth(20).expect("more than 20 packets")
}

/// What each has to be found as.
const CHANGES: &[(&str, Change)] = &[
    ("what the reader heard", |side| packet(side).position += 1),
    ("what the reader heard", |side| packet(side).sequence ^= 1 << 16),
    ("what the reader heard", |side| packet(side).rtp_timestamp += 1),
    ("what the reader heard", |side| packet(side).ssrc ^= 1),
    ("what the reader heard", |side| packet(side).payload_type ^= 1),
    ("what the reader heard", |side| packet(side).leg ^= 1),
    ("what the reader heard", |side| packet(side).source = None),
    ("what the reader heard", |side| packet(side).flags ^= 1),
    ("what the reader heard", |side| packet(side).payload_offset += 4),
    ("what the reader heard", |side| packet(side).payload_len -= 1),
    ("what the reader heard", |side| *packet(side).bytes.last_mut().expect("a payload") ^= 1),
    ("what the reader heard", |side| drop(side.heard.remove(7))),
    ("what the reader heard", |side| drop(side.heard.pop())),
    ("what the reader heard", |side| side.heard.swap(3, 4)),
    ("what the reader heard", |side| {
        side.heard.insert(5, Record::Gap { sequence: 1, count: 1, ring_full: false });
    }),
    ("what the reader heard", |side| {
        side.heard.push(Record::Break { count: 1, cause: Cause::RingFull });
    }),
    ("what the lossy reader heard", |side| drop(side.skimmed.pop())),
    ("what was passed on", |side| drop(side.passed.pop())),
    ("counter received", |side| last(side).counters.received += 1),
    ("counter dropped_ring_full", |side| last(side).counters.dropped_ring_full += 1),
    ("counter gap_positions", |side| last(side).counters.gap_positions += 1),
    ("head", |side| last(side).head += 1),
    ("of leg 0 the figure first", |side| last(side).legs[0].first += 1),
    ("of leg 1 the figure skew_count", |side| last(side).legs[1].skew_count += 1),
    ("of source 0 the figure reordered", |side| last(side).sources[0].reordered += 1),
    ("of all source", |side| last(side).sources.truncate(0)),
    ("of reader 1 the figure lapped", |side| last(side).readers[1].lapped += 1),
    ("whether it has stopped", |side| side.last = None),
];

/// A round with two legs and a lossy reader in which something was passed on.
fn recorded() -> Recording {
    let plans = (0..).map(|number| Plan::new(2 + 3 * number));
    let mut skimmed = plans.filter(|plan| plan.shape.skimmed && plan.shape.legs == 2);
    let found = skimmed.find_map(|plan| {
        let recording = record(&plan, Engine::User);
        let packets = recording.heard.len() > 100 && !recording.skimmed.is_empty();
        (packets && !recording.passed.is_empty()).then_some(recording)
    });
    found.expect("there are as many seeds as it takes")
}

#[test]
fn every_change_of_one_side_is_found() {
    let recording = recorded();
    assert_eq!(difference(&recording, &recording.clone(), &mut Equal::default()), None);
    for (number, (what, change)) in CHANGES.iter().enumerate() {
        let mut changed = recording.clone();
        change(&mut changed);
        for (left, right) in [(&recording, &changed), (&changed, &recording)] {
            let found = difference(left, right, &mut Equal::default());
            let found = found.unwrap_or_else(|| panic!("change {number} of {what} is not found"));
            assert!(found.place.starts_with(what) || found.place.ends_with(what), "{found:?}");
            assert_ne!(found.left, found.right, "{found:?}");
        }
    }
}

#[test]
fn what_is_about_time_is_not_compared() {
    let recording = recorded();
    let mut changed = recording.clone();
    let figures = last(&mut changed);
    figures.counters.updated_ns += 1;
    figures.counters.wakeups += 1;
    figures.legs[0].jitter_q4_ns += 1;
    figures.sources[0].last_ns += 1;
    assert_eq!(difference(&recording, &changed, &mut Equal::default()), None);
    let mut names: Vec<_> = NOT_COMPARED.iter().map(|(name, _)| name).collect();
    names.dedup();
    assert_eq!(names.len(), NOT_COMPARED.len());
}

/// Two streams of one engine: a difference would be the comparison's own.
#[test]
fn two_streams_of_the_embedded_engine_are_equal() {
    for seed in 0..9 {
        let ended = run(&Plan::new(seed), USER);
        assert!(!matches!(ended, Ended::Differ { .. }), "seed {seed}: {ended:?}");
    }
}
