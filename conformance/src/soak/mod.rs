//! `conformance soak`: receive and transmit streams at the highest rate the machine sustains, while readers stall,
//! are killed, leave and come back; then nothing may be left, and every packet has to be accounted for.
//!
//! | module | what lives there |
//! |---|---|
//! | [`load`] | the streams and their rate |
//! | [`crowd`] | the reader processes |
//! | [`tally`] | packets, and checking them |
//! | [`machine`] | what must be as before |

use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rtp_mgr::{EngineKind, Stats, StreamSnapshot};

use crate::behaviours::books;
use crate::harness::{Harness, ms};
use crate::program::{EngineName, Report};
use crate::suite::{Outcome, message};
use crate::wait;

pub(crate) mod crowd;
mod load;
mod machine;
mod tally;
#[cfg(test)]
mod tests;

use crowd::{Account, Crowd};
use load::{Line, Sent};
use machine::Machine;
use tally::Tally;

/// Loads streams with readers that stall and die, and looks at what is left
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// Look only at what contains one of these (default: all)
    filters: Vec<String>,
    /// The engine of all streams
    #[arg(long, value_enum, default_value = "user")]
    engine: EngineName,
    /// How long the load lasts
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seed of what readers do
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the results in the kernel's test format (KTAP)
    #[arg(long)]
    ktap: bool,
}

/// A pair of streams, afterwards.
#[derive(Clone)]
struct Pair {
    sent: Sent,
    received: StreamSnapshot,
    owner: Tally,
    /// Readers of the receive stream when all but two had left.
    readers: u64,
}

/// What the soak showed.
#[derive(Clone)]
struct Story {
    pairs: Vec<Pair>,
    account: Account,
    before: Machine,
    after: Machine,
    snapshots: u64,
    kernel: bool,
    left: Vec<String>,
}

/// What is looked at afterwards.
type Check = fn(&Story) -> Vec<String>;
const CHECKS: [(&str, Check); 6] = [
    ("soak::every_packet_has_one_fate", fates),
    ("soak::readers_account_for_every_position", positions),
    ("soak::no_packet_is_torn_or_out_of_place", intact),
    ("soak::no_reader_leaves_its_place_taken", places),
    ("soak::stalled_readers_hold_nobody_up_for_long", stalled),
    ("soak::no_stream_file_or_memory_is_left", left),
];

/// `conformance soak`
pub(crate) fn main(options: &SoakArgs, program: PathBuf) -> ExitCode {
    let wanted = |name: &str| {
        options.filters.is_empty() || options.filters.iter().any(|part| name.contains(part))
    };
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    let mut report = Report::new(options.ktap, "checks", checks.len());
    if checks.is_empty() {
        return report.end();
    }
    let harness = Harness::new(options.engine.into(), program);
    let start = Instant::now();
    let story = panic::catch_unwind(AssertUnwindSafe(|| run(&harness, options)));
    if let Ok(story) = &story {
        tell(story);
    }
    for (name, check) in checks {
        let outcome = match &story {
            Ok(story) => match check(story)[..] {
                [] => Outcome::Holds,
                ref wrong => Outcome::Fails(wrong.join("\n")),
            },
            Err(panic) => Outcome::Fails(message(panic.as_ref())),
        };
        report.add(name, &outcome, start.elapsed());
    }
    report.end()
}

#[track_caller]
fn run(h: &Harness, options: &SoakArgs) -> Story {
    // What a process has only once it has used a stream is there before as after.
    drop(Line::open(h, false));
    let before = Machine::now();
    let lines = [false, true].map(|redundant| Line::open(h, redundant));
    let names = lines.each_ref().map(|line| line.name.clone());
    let crowd = Crowd::new(h, names.to_vec(), options.seed);
    let (pairs, account, snapshots) = work(lines, crowd, Duration::from_secs(options.seconds));
    let kernel = h.kind() == EngineKind::Kernel;
    let after = settle(&before, kernel);
    Story { pairs, account, before, after, snapshots, kernel, left: remaining(&names) }
}

/// Loads the lines for this time, and ends them. Returns what became of them and of their readers, and how
/// often their books were looked at.
#[track_caller]
fn work(lines: [Line; 2], mut crowd: Crowd<'_>, time: Duration) -> (Vec<Pair>, Account, u64) {
    let laws = lines.each_ref().map(|line| {
        let (rx, tx): (Law, Law) = (books::assert_balanced, books::assert_transmit_balanced);
        [(line.rx.stats(), rx), (line.tx.stats(), tx)]
    });
    let flags = [const { AtomicBool::new(false) }; 3];
    let [over, stop, audited] = &flags;
    thread::scope(|scope| {
        // Whatever panics, the others have to end.
        let _end = EndAll(&flags);
        let auditor = scope.spawn(|| audit(laws.as_flattened(), audited));
        let at_work = lines.map(|line| {
            let (stats, len) = (line.rx.stats(), line.payload_len());
            let (Line { rx, tx, .. }, to) = (line, stats.clone());
            let sender = scope.spawn(move || load::transmit(tx, &to, len, over));
            let owner = scope.spawn(move || load::own(rx, stop));
            (stats, sender, owner)
        });
        let end = Instant::now() + time;
        let broken = |(_, sender, owner): &(_, Thread<'_, Sent>, Thread<'_, _>)| {
            sender.is_finished() || owner.is_finished()
        };
        while Instant::now() < end && !at_work.iter().any(broken) && !auditor.is_finished() {
            crowd.stir();
            // The pace of what happens to readers.
            thread::sleep(ms(30));
        }
        over.store(true, Ordering::Release);
        let sent = at_work.map(|(stats, sender, owner)| (stats, join(sender), owner));
        crowd.disperse();
        // The owner's, and the steady one's: a process that was killed takes a moment to be gone.
        let readers = |(stats, ..): &(Stats, _, _)| stats.counters().readers;
        wait::happens_within(wait::LONG, || sent.iter().all(|sent| readers(sent) == 2));
        let counts = sent.each_ref().map(readers);
        stop.store(true, Ordering::Release);
        let pairs = sent.into_iter().zip(counts).map(|((_, sent, owner), readers)| {
            let (owner, received) = join(owner);
            Pair { sent, received, owner, readers }
        });
        let (pairs, account) = (pairs.collect(), crowd.conclude());
        audited.store(true, Ordering::Release);
        (pairs, account, join(auditor))
    })
}

type Thread<'scope, T> = thread::ScopedJoinHandle<'scope, T>;

/// The law of a stream's books.
type Law = fn(&rtp_mgr::ring::abi::StreamCounters);

/// Ends the threads that wait for these.
struct EndAll<'a>(&'a [AtomicBool]);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::Release));
    }
}

fn join<T>(thread: Thread<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Looks at the books all the time. Returns how often.
fn audit(laws: &[(Stats, Law)], over: &AtomicBool) -> u64 {
    let mut snapshots = 0;
    while !over.load(Ordering::Acquire) {
        for (stats, law) in laws {
            law(&stats.counters());
            snapshots += 1;
        }
        // Not a load of its own.
        thread::sleep(ms(2));
    }
    snapshots
}

/// The machine once it is as before, or when that does not happen.
fn settle(before: &Machine, whole: bool) -> Machine {
    let is_back = || Machine::now().left_over(before, whole).is_empty();
    wait::happens_within(wait::LONG, is_back);
    Machine::now()
}

/// Streams of this process that are still there.
fn remaining(names: &[String]) -> Vec<String> {
    let streams = rtp_mgr::list().unwrap_or_default();
    let ours = streams.into_iter().filter(|stream| {
        stream.owner_pid == std::process::id()
            || stream.name.as_ref().is_some_and(|name| names.contains(name))
    });
    ours.map(|stream| format!("stream {} is still there: {stream:?}", stream.id)).collect()
}

/// `what`, unless both are equal.
fn unequal(what: &str, left: u64, right: u64) -> Option<String> {
    (left != right).then(|| format!("{what}: {left} and {right}"))
}

/// Packets that the network took on all legs of a transmit stream, and did not bring to the receive stream.
fn on_the_way(pair: &Pair) -> i64 {
    let sent: u64 = pair.sent.last.legs.iter().map(|leg| leg.received).sum();
    sent as i64 - pair.received.counters.received as i64
}

fn fates(story: &Story) -> Vec<String> {
    let mut wrong = Vec::new();
    for pair in &story.pairs {
        let (tx, rx) = (&pair.sent.last.counters, &pair.received.counters);
        wrong.extend(unequal(
            "committed, and sent or failed",
            tx.committed,
            tx.sent + tx.send_failed,
        ));
        let fates = rx.published
            + rx.dropped_ring_full
            + rx.dropped_oversize
            + rx.dropped_invalid
            + rx.dropped_filtered
            + rx.duplicate
            + rx.late;
        wrong.extend(unequal("received, and what became of that", rx.received, fates));
        wrong.extend(unequal("still held back, and none", rx.staged + tx.pending, 0));
        let explained = rx.external_drops + story.after.backlog_drops - story.before.backlog_drops;
        // What was coalesced when it was dropped counts once.
        let lost = on_the_way(pair);
        if lost < 0 || (lost > 0 && explained == 0) {
            wrong.push(format!("{lost} lost between the streams, and nobody counted any"));
        }
        if rx.published < 100 {
            wrong.push(format!("hardly anything was received: {rx:?}"));
        }
    }
    wrong
}

fn positions(story: &Story) -> Vec<String> {
    let mut wrong = Vec::new();
    for (pair, steady) in story.pairs.iter().zip(&story.account.steady) {
        let rx = &pair.received.counters;
        wrong.extend(unequal("published, and read by the owner", rx.published, pair.owner.packets));
        wrong.extend(unequal("gaps, and read by the owner", rx.gap_positions, pair.owner.gaps));
        let positions = rx.published + rx.gap_positions;
        wrong.extend(unequal("positions, and those of the steady", positions, steady.positions()));
    }
    wrong.extend(unequal("streams, and steady readers", 2, story.account.steady.len() as u64));
    wrong
}

fn intact(story: &Story) -> Vec<String> {
    let mut wrong = story.account.wrong.clone();
    for (pair, steady) in story.pairs.iter().zip(&story.account.steady) {
        // In order of arrival the network may have changed it.
        let reordered = !pair.received.ordered && pair.received.counters.reordered > 0;
        for tally in [&pair.owner, steady] {
            if tally.torn > 0 || (tally.jumps > 0 && !reordered) {
                wrong.push(format!("{tally:?}"));
            }
        }
    }
    wrong
}

fn places(story: &Story) -> Vec<String> {
    let counts = story.pairs.iter().map(|pair| pair.readers);
    counts
        .filter_map(|readers| unequal("readers, and those that had not left", readers, 2))
        .collect()
}

/// A demoted reader is one that was found stalling; most is published all the same.
fn stalled(story: &Story) -> Vec<String> {
    let mut wrong = Vec::new();
    for pair in &story.pairs {
        let rx = &pair.received.counters;
        if rx.dropped_ring_full > rx.received / 2 {
            wrong.push(format!("more was dropped than published: {rx:?}"));
        }
    }
    wrong
}

fn left(story: &Story) -> Vec<String> {
    let mut left = story.after.left_over(&story.before, story.kernel);
    left.extend(story.left.iter().cloned());
    left
}

/// Prints what the soak showed.
fn tell(story: &Story) {
    for pair in &story.pairs {
        let (tx, rx) = (&pair.sent.last.counters, &pair.received.counters);
        let order = if pair.received.ordered {
            "two legs, one by one, ordered"
        } else {
            "trains, arrival order"
        };
        println!(
            "# {order}: sustained {:.0} packets/s (mean {:.0}); sent {}, received {}, published {}, duplicate {}, \
             late {}, gaps {}; lost: ring full {}, socket {}, on the way {}; send failed {}; coalesced {}; readers \
             demoted {}, wake-ups {}",
            pair.sent.sustained,
            pair.sent.mean,
            tx.sent,
            rx.received,
            rx.published,
            rx.duplicate,
            rx.late,
            rx.gap_positions,
            rx.dropped_ring_full,
            rx.external_drops,
            on_the_way(pair),
            tx.send_failed,
            tx.coalesced,
            rx.readers_demoted,
            rx.wakeups
        );
    }
    let Account { started, killed, ended, packets, missed, stalls, .. } = &story.account;
    println!(
        "# readers: {started} started, {killed} killed, {ended} ended (of the crowd's: {packets} packets, {missed} \
         missed, {stalls} stalls); the books were looked at {} times; backlog drops {}; {}",
        story.snapshots,
        story.after.backlog_drops - story.before.backlog_drops,
        story.after.text(&story.before)
    );
}
