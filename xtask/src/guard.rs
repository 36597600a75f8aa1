//! `cargo xtask guard`: instructions per packet of the ring's hot paths, against those on record.
//!
//! Counted by valgrind's callgrind, without a clock: the same on a busy and on an idle machine. A path
//! is counted for few and for many packets; the difference is what packets cost.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use xshell::{Shell, cmd};

use crate::project::{Project, on_path};
use crate::report::Outcome;

/// `cargo xtask guard`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Put what is counted now on record
    #[arg(long)]
    record: bool,
}

/// The paths: publish and read; parse, order, count, publish, read; the same in arrival order with 1,000
/// sources.
const CASES: [&str; 3] = ["hop", "ordered", "arrival"];
/// Packets of the two counts. The sources of the last case have all been heard after the first.
const FEW: u64 = 4_000;
const MANY: u64 = 14_000;
/// More than this share of what is on record is a regression.
const MOST: f64 = 1.2;

/// Runs the command.
pub fn run(project: &Project, arguments: &GuardArgs) -> Result<()> {
    if !arguments.record {
        return match step(project) {
            Outcome::Passed(text) => {
                println!("{text}");
                Ok(())
            }
            Outcome::Failed(text) | Outcome::NotRun(text) => bail!(text),
        };
    }
    let counts = count(project)?;
    let lines = counts.iter().map(|(case, count)| format!("{case} {count:.0}\n"));
    let text: String = std::iter::once(HEADING.to_owned()).chain(lines).collect();
    fs::write(record(project), &text)?;
    print!("{text}");
    Ok(())
}

const HEADING: &str = "# Instructions per packet: cargo xtask guard --record\n";

/// As a step of the test command.
pub fn step(project: &Project) -> Outcome {
    if !on_path("valgrind") {
        return Outcome::NotRun("no valgrind here (cargo xtask setup)".into());
    }
    match compare(project) {
        Ok(text) => Outcome::Passed(text),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn compare(project: &Project) -> Result<String> {
    let path = record(project);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    judge(&count(project)?, &parse(&text)?)
}

/// What was counted, or which of it is too much.
fn judge(counts: &BTreeMap<String, f64>, recorded: &BTreeMap<String, f64>) -> Result<String> {
    let mut told = Vec::new();
    let mut worse = Vec::new();
    for (case, count) in counts {
        let before = recorded.get(case).with_context(|| format!("{case}: not on record"))?;
        let line = format!("{case} {count:.0} ({before:.0} on record)");
        if *count > before * MOST { &mut worse } else { &mut told }.push(line);
    }
    if worse.is_empty() {
        return Ok(format!("instructions per packet: {}", told.join(", ")));
    }
    bail!(
        "instructions per packet grew by more than {:.0} %: {}; if that is wanted: cargo xtask guard \
         --record",
        (MOST - 1.0) * 100.0,
        worse.join(", ")
    )
}

fn record(project: &Project) -> PathBuf {
    project.root.join("ring/examples/guard.txt")
}

fn parse(text: &str) -> Result<BTreeMap<String, f64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let (case, count) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
            Ok((case.to_owned(), count.trim().parse().with_context(|| format!("{line:?}"))?))
        })
        .collect()
}

fn count(project: &Project) -> Result<BTreeMap<String, f64>> {
    let shell = project.shell()?;
    cmd!(shell, "cargo build --quiet --release -p rtp-mgr-ring --example guard").run()?;
    let guard = project.target.join("release/examples/guard");
    let counts = CASES.iter().map(|case| {
        let few = instructions(&shell, &guard, case, FEW)?;
        let many = instructions(&shell, &guard, case, MANY)?;
        Ok(((*case).to_owned(), many.saturating_sub(few) as f64 / (MANY - FEW) as f64))
    });
    counts.collect()
}

fn instructions(shell: &Shell, guard: &PathBuf, case: &str, packets: u64) -> Result<u64> {
    let packets = packets.to_string();
    let options = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let output = cmd!(shell, "valgrind {options...} {guard} {case} {packets}")
        .quiet()
        .ignore_status()
        .read_stderr()?;
    collected(&output).with_context(|| format!("callgrind counted nothing: {output}"))
}

/// From callgrind's closing lines.
fn collected(output: &str) -> Option<u64> {
    let line = output.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
        pairs.iter().map(|(case, count)| ((*case).to_owned(), *count)).collect()
    }

    #[test]
    fn callgrinds_count_is_found() {
        let output = "==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n";
        assert_eq!(collected(output), Some(1_234_567));
        assert_eq!(collected("==7== valgrind: cannot\n"), None);
    }

    #[test]
    fn a_fifth_more_is_a_regression_and_less_is_none() {
        let recorded = parse("# heading\nhop 50\nordered 400\n").unwrap();
        assert!(judge(&counts(&[("hop", 60.0), ("ordered", 100.0)]), &recorded).is_ok());
        let error = judge(&counts(&[("hop", 61.0), ("ordered", 400.0)]), &recorded).unwrap_err();
        assert!(error.to_string().contains("20 %: hop 61 (50 on record);"), "{error}");
        assert!(judge(&counts(&[("new", 1.0)]), &recorded).is_err());
    }
}
