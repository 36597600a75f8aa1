//! The program: runs behaviours where there is no cargo, and is the other process where a behaviour
//! takes one.

use std::env;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use rtp_mgr::Engine;

use crate::child;
use crate::compare::{self, CompareArgs};
use crate::harness::Harness;
use crate::soak::{self, SoakArgs};
use crate::suite::{BEHAVIOURS, Behaviour, NOT_RUN, Outcome};

/// Runs the behaviours that every engine of RTP Manager has to show.
#[derive(Debug, Parser)]
#[command(name = "conformance", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    task: Option<Task>,
    /// Run the behaviours whose name contains one of these (default: all)
    filters: Vec<String>,
    /// The engine to test
    #[arg(long, value_enum, default_value = "user")]
    engine: EngineName,
    /// Print their names
    #[arg(long)]
    list: bool,
    /// Print the results in the kernel's test format (KTAP)
    #[arg(long)]
    ktap: bool,
    /// Run this many at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Run this one in this process and say nothing else
    #[arg(long, value_name = "NAME", hide = true, conflicts_with = "filters")]
    here: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Task {
    Compare(CompareArgs),
    Soak(SoakArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EngineName {
    Auto,
    Kernel,
    User,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::Kernel => Self::Kernel,
            EngineName::User => Self::User,
        }
    }
}

/// The program's `main`.
pub fn main() -> ExitCode {
    if let Some(role) = child::role() {
        return child::main(&role);
    }
    let options = Options::parse();
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("the program's own path: {error}");
            return ExitCode::FAILURE;
        }
    };
    match &options.task {
        Some(Task::Compare(options)) => return compare::main(options),
        Some(Task::Soak(options)) => return soak::main(options, program),
        None => {}
    }
    let harness = Harness::new(options.engine.into(), program);
    match &options.here {
        Some(name) => run_one(name, &harness),
        None => run_all(&options, &harness),
    }
}

fn run_one(name: &str, harness: &Harness) -> ExitCode {
    let Some(behaviour) = Behaviour::find(name) else {
        eprintln!("no behaviour {name}; --list shows them");
        return ExitCode::from(2);
    };
    match behaviour.run_here(harness) {
        Outcome::Holds => ExitCode::SUCCESS,
        Outcome::NotRun(reason) => {
            println!("{reason}");
            ExitCode::from(NOT_RUN)
        }
        // The panic has printed its message.
        Outcome::Fails(_) => ExitCode::FAILURE,
    }
}

fn run_all(options: &Options, harness: &Harness) -> ExitCode {
    let chosen: Vec<&Behaviour> = BEHAVIOURS
        .iter()
        .filter(|behaviour| {
            let name = behaviour.name();
            options.filters.is_empty() || options.filters.iter().any(|part| name.contains(part))
        })
        .collect();
    if options.list {
        chosen.iter().for_each(|behaviour| println!("{}", behaviour.name()));
        return ExitCode::SUCCESS;
    }
    let report = Report::new(options.ktap, "behaviours", chosen.len());
    let waiting = Mutex::new(chosen.into_iter());
    let report = Mutex::new(report);
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panic holds it").next();
                    let Some(behaviour) = next else { return };
                    let start = Instant::now();
                    let outcome = behaviour.run(harness);
                    let mut report = report.lock().expect("no panic holds it");
                    report.add(&behaviour.name(), &outcome, start.elapsed());
                }
            });
        }
    });
    report.into_inner().expect("no panic holds it").end()
}

/// Prints results as they come.
pub(crate) struct Report {
    ktap: bool,
    ran: usize,
    failed: Vec<String>,
    not_run: usize,
    start: Instant,
}

impl Report {
    /// Of `count` tests, which are called `what`.
    pub(crate) fn new(ktap: bool, what: &str, count: usize) -> Self {
        if ktap {
            println!("KTAP version 1\n1..{count}");
        } else {
            println!("\nrunning {count} {what}");
        }
        Self { ktap, ran: 0, failed: Vec::new(), not_run: 0, start: Instant::now() }
    }

    pub(crate) fn add(&mut self, name: &str, outcome: &Outcome, took: Duration) {
        self.ran += 1;
        let number = self.ran;
        let details = |text: &str| text.lines().for_each(|line| println!("# {line}"));
        match (outcome, self.ktap) {
            (Outcome::Holds, true) => println!("ok {number} {name}"),
            (Outcome::Holds, false) => println!("test {name} ... ok ({:.2} s)", took.as_secs_f64()),
            (Outcome::NotRun(reason), true) => println!("ok {number} {name} # SKIP {reason}"),
            (Outcome::NotRun(reason), false) => println!("test {name} ... not run: {reason}"),
            (Outcome::Fails(message), true) => {
                details(message);
                println!("not ok {number} {name}");
            }
            (Outcome::Fails(message), false) => {
                println!("test {name} ... FAILED");
                details(message);
            }
        }
        match outcome {
            Outcome::Holds => {}
            Outcome::NotRun(_) => self.not_run += 1,
            Outcome::Fails(_) => self.failed.push(name.to_owned()),
        }
    }

    pub(crate) fn end(self) -> ExitCode {
        let failed = self.failed.len();
        let passed = self.ran - failed - self.not_run;
        if self.ktap {
            println!("# Totals: pass:{passed} fail:{failed} skip:{}", self.not_run);
        } else {
            let seconds = self.start.elapsed().as_secs_f64();
            let not_run = self.not_run;
            self.failed.iter().for_each(|name| println!("failed: {name}"));
            println!(
                "\nresult: {passed} passed; {failed} failed; {not_run} not run; {seconds:.2} s\n"
            );
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
