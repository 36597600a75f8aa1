//! `conformance compare`: the same traffic through both engines, packet for packet.
//!
//! The engines share the ring core and nothing else: one reads sockets into slots from a thread, the other
//! copies in softirq. Whatever a user of the API can see has to be equal all the same: every descriptor, every
//! byte, every figure but those that are about time ([`recording::NOT_COMPARED`]).
//!
//! | module | what lives there |
//! |---|---|
//! | [`plan`] | settings and generated traffic of one round, from a seed |
//! | [`captured`] | traffic from a capture file |
//! | [`round`] | sending in step, comparing |
//! | [`stream`] | one of the two streams |
//! | [`recording`] | what is compared, and what is not |

use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rtp_mgr::Engine;
use rtp_mgr::ring::abi::StreamCounters;

use crate::program::{EngineName, Report};
use crate::suite::{Outcome, message};

mod captured;
mod plan;
mod recording;
mod round;
mod stream;
#[cfg(test)]
mod tests;

use plan::{Plan, Step};
use round::Ended;

/// A round in which the machine stood still where time decides is run again, so many times at most.
const TRIES: u32 = 10;

/// Sends the same traffic through two engines and compares what becomes of every packet
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Run only the rounds whose name contains one of these (default: all)
    filters: Vec<String>,
    /// The engine that is compared with the embedded one
    #[arg(long, value_enum, default_value = "kernel")]
    engine: EngineName,
    /// Seed of the first round; the next round's is one more
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Rounds of generated traffic (with --capture: none unless said)
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Send the UDP datagrams of this capture (pcap, pcapng), in order of arrival and in sequence order
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Print every datagram that is sent
    #[arg(long)]
    show: bool,
    /// Print the results in the kernel's test format (KTAP)
    #[arg(long)]
    ktap: bool,
}

/// Rounds when nothing is said.
const ROUNDS: u64 = 20;

/// So many rounds have everything in them that traffic can have.
const COMPLETE_ROUNDS: u64 = 12;
/// The test that they have.
const COMPLETE: &str = "compare::nothing_was_missing_in_the_traffic";
/// Counters that only one kind of traffic raises.
const KINDS: [&str; 17] = [
    "published",
    "dropped_ring_full",
    "dropped_oversize",
    "dropped_invalid",
    "dropped_filtered",
    "duplicate",
    "late",
    "lost",
    "recovered",
    "reordered",
    "restarts",
    "gap_positions",
    "sources_untracked",
    "passed_rtcp",
    "passed_stun",
    "passed_dtls",
    "passed_other",
];

/// A round with its name, and how to run it again.
struct Round {
    is_generated: bool,
    name: String,
    again: String,
    plan: Plan,
}

/// `conformance compare`
pub(crate) fn main(options: &CompareArgs) -> ExitCode {
    let rounds = match rounds(options) {
        Ok(rounds) => rounds,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(2);
        }
    };
    let chosen: Vec<&Round> = rounds
        .iter()
        .filter(|round| {
            let filters = &options.filters;
            filters.is_empty() || filters.iter().any(|part| round.name.contains(part))
        })
        .collect();
    let generated = chosen.iter().filter(|round| round.is_generated).count() as u64;
    // Fewer rounds, or some chosen from them, may well be without something.
    let complete = generated >= COMPLETE_ROUNDS;
    let count = chosen.len() + usize::from(complete);
    let mut report = Report::new(options.ktap, "rounds", count);
    let mut sum = Sum::new();
    for round in chosen {
        let start = Instant::now();
        if options.show {
            show(&round.plan);
        }
        let outcome = run(round, [Engine::User, options.engine.into()], &mut sum);
        report.add(&round.name, &outcome, start.elapsed());
    }
    sum.print();
    if complete {
        report.add(COMPLETE, &sum.complete(), Duration::ZERO);
    }
    report.end()
}

fn rounds(options: &CompareArgs) -> Result<Vec<Round>, String> {
    let mut rounds = Vec::new();
    let engine = format!("{:?}", options.engine).to_lowercase();
    if let Some(file) = &options.capture {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (kind, plan) in captured::plans(file)? {
            rounds.push(Round {
                is_generated: false,
                name: format!("compare::captured_{stem}_{kind}"),
                again: format!("--capture {} captured", file.display()),
                plan,
            });
        }
    }
    let generated = options.rounds.unwrap_or(if options.capture.is_some() { 0 } else { ROUNDS });
    rounds.extend((0..generated).map(|round| {
        let seed = options.seed.wrapping_add(round);
        Round {
            is_generated: true,
            name: format!("compare::generated_with_seed_{seed}"),
            again: format!("--engine {engine} --seed {seed} --rounds 1"),
            plan: Plan::new(seed),
        }
    }));
    Ok(rounds)
}

/// What was seen in all rounds: that nothing was missing in the traffic.
struct Sum {
    datagrams: u64,
    /// Rounds that had to be run again.
    again: u64,
    counters: [u64; StreamCounters::WORDS],
}

impl Sum {
    fn new() -> Self {
        Self { datagrams: 0, again: 0, counters: [0; StreamCounters::WORDS] }
    }

    fn add(&mut self, plan: &Plan, counters: &StreamCounters) {
        self.datagrams += plan.datagrams() as u64;
        for (sum, word) in self.counters.iter_mut().zip(counters.to_words()) {
            *sum = sum.saturating_add(word);
        }
    }

    /// Whether there was some of everything.
    fn complete(&self) -> Outcome {
        let sums = StreamCounters::NAMES.iter().zip(self.counters);
        let missing = |kind: &&str| !sums.clone().any(|(name, sum)| name == kind && sum > 0);
        let missing: Vec<&str> = KINDS.into_iter().filter(missing).collect();
        match missing[..] {
            [] => Outcome::Holds,
            _ => Outcome::Fails(format!("in no round there was {}", missing.join(", "))),
        }
    }

    fn print(&self) {
        let sums = StreamCounters::NAMES.iter().zip(self.counters);
        let compared = sums.filter(|(name, sum)| {
            *sum > 0 && recording::NOT_COMPARED.iter().all(|(other, _)| other != *name)
        });
        let text: Vec<String> = compared.map(|(name, sum)| format!("{name} {sum}")).collect();
        println!("# equal on both engines: {} datagrams, {}", self.datagrams, text.join(", "));
        if self.again > 0 {
            println!("# {} times the machine stood still, and a round was run again", self.again);
        }
    }
}

fn run(round: &Round, engines: [Engine; 2], sum: &mut Sum) -> Outcome {
    let mut disturbances = Vec::new();
    for _ in 0..TRIES {
        let ended = panic::catch_unwind(AssertUnwindSafe(|| round::run(&round.plan, engines)));
        match ended {
            Ok(Ended::Equal(figures)) => {
                sum.add(&round.plan, &figures.counters);
                return Outcome::Holds;
            }
            Ok(Ended::Differ { difference, step, steps }) => {
                return Outcome::Fails(format!(
                    "{} differs, seen after step {step} of {steps}:\n  {:?}: {}\n  {:?}: {}\nthe streams: \
                     {:?}\nagain: conformance compare {}",
                    difference.place,
                    engines[0],
                    difference.left,
                    engines[1],
                    difference.right,
                    round.plan.shape,
                    round.again,
                ));
            }
            Ok(Ended::Disturbed(why)) => {
                sum.again += 1;
                disturbances.push(why);
            }
            Err(panic) => {
                let said = message(panic.as_ref());
                return Outcome::Fails(format!(
                    "{said}\nthe streams: {:?}\nagain: conformance compare {}",
                    round.plan.shape, round.again
                ));
            }
        }
    }
    Outcome::Fails(format!(
        "in {TRIES} tries the machine stood still where time decides: nothing is known\n{}\n\
         again: conformance compare {}",
        disturbances.join("\n"),
        round.again
    ))
}

fn show(plan: &Plan) {
    println!("# {:?}", plan.shape);
    for (number, step) in plan.steps.iter().enumerate() {
        match step {
            Step::Send { leg, from, packets, .. } => {
                for packet in packets {
                    let (len, bytes) = (packet.len(), recording::hex(packet));
                    println!("# {number}: sender {from} to leg {leg}, {len} bytes {bytes}");
                }
            }
            other => println!("# {number}: {other:?}"),
        }
    }
}
