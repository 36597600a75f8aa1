//! FFmpeg, GStreamer and tshark as peers of `rtp_app`.
//!
//! | module | what lives there |
//! |---|---|
//! | [`to_rx`] | FFmpeg and GStreamer send, `rx` restores the bytes |
//! | [`from_tx`] | `tx` sends, FFmpeg and GStreamer receive |
//! | [`recordings`] | `rx --pcap` as tshark sees it, recordings against `inspect` |
//! | [`generated`] | generated captures: `inspect` against tshark |
//! | [`app`] | running `rtp_app` and reading its figures |
//! | [`ports`], [`media`], [`pcap`], [`sender`], [`tshark`] | what the tests are made of |
//!
//! The command lines of the peers are those known to deliver the bytes unchanged. Every test begins
//! with its receiver and waits until that listens; everything is bounded in time, stays on loopback,
//! and ends the programs it started.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use xshell::cmd;

use crate::project::{Project, on_path};
use crate::report::{Outcome, Report};
use crate::setup;

pub mod app;
mod from_tx;
mod generated;
mod media;
mod pcap;
mod ports;
mod recordings;
mod sender;
mod to_rx;
mod tshark;

/// `cargo xtask interop`
#[derive(Debug, Args)]
pub struct InteropArgs {
    /// Only the tests whose name contains one of these
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// Name the tests
    #[arg(long)]
    list: bool,
}

/// Where a test works.
#[derive(Debug)]
pub struct Bench {
    /// The release build of the program.
    pub rtp_app: PathBuf,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new(project: &Project, name: &str) -> Result<Self> {
        let prefix: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let directory = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir()?;
        Ok(Self { rtp_app: project.rtp_app(), directory })
    }

    /// The test's own directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// One test.
pub struct Test {
    /// Its name.
    name: &'static str,
    /// Programs that must be there.
    needs: &'static [&'static str],
    /// Runs it; an error is a failure.
    run: fn(&Bench) -> Result<Outcome>,
}

fn tests() -> impl Iterator<Item = &'static Test> {
    [to_rx::TESTS, from_tx::TESTS, recordings::TESTS, generated::TESTS].into_iter().flatten()
}

/// `cargo xtask interop`
pub fn run(project: &Project, arguments: &InteropArgs) -> Result<()> {
    let chosen: Vec<_> = tests().filter(|test| chosen(test.name, &arguments.tests)).collect();
    if chosen.is_empty() {
        bail!(
            "cargo xtask interop {}: no such test; accepted: part of the name of a test (cargo \
             xtask interop --list)",
            arguments.tests.join(" ")
        );
    }
    if arguments.list {
        for test in chosen {
            println!("{}", test.name);
        }
        return Ok(());
    }
    let mut report = Report::default();
    report.step("system packages", || setup::step(project));
    report.step("release build", || Outcome::of(project.build_release()));
    if report.success() {
        run_tests(project, &mut report, &chosen);
    }
    report.finish()
}

/// All tests as rows of the test command's table.
pub fn rows(project: &Project, report: &mut Report, _step: &str) {
    let all: Vec<_> = tests().collect();
    run_tests(project, report, &all);
}

fn run_tests(project: &Project, report: &mut Report, tests: &[&Test]) {
    println!();
    for version in versions(project) {
        println!("peer: {version}");
    }
    for test in tests {
        report.step(&format!("interop: {}", test.name), || run_test(project, test));
    }
}

fn run_test(project: &Project, test: &Test) -> Outcome {
    let missing: Vec<_> = test.needs.iter().filter(|need| !on_path(need)).copied().collect();
    if !missing.is_empty() {
        return Outcome::NotRun(format!("no {} here (cargo xtask setup)", missing.join(", ")));
    }
    let bench = match Bench::new(project, test.name) {
        Ok(bench) => bench,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    match (test.run)(&bench) {
        Ok(outcome) => outcome,
        Err(error) => {
            let kept = bench.directory.keep();
            Outcome::Failed(format!("{error:#}\nits files are in {}", kept.display()))
        }
    }
}

fn versions(project: &Project) -> Vec<String> {
    let Ok(shell) = project.shell() else { return Vec::new() };
    [("ffmpeg", "-version"), ("gst-launch-1.0", "--version"), ("tshark", "--version")]
        .into_iter()
        .filter(|(program, _)| on_path(program))
        .filter_map(|(program, option)| {
            let text = cmd!(shell, "{program} {option}").quiet().ignore_stderr().read().ok()?;
            text.lines().next().map(str::to_owned)
        })
        .collect()
}

fn chosen(name: &str, filters: &[String]) -> bool {
    let name = name.to_lowercase();
    filters.is_empty() || filters.iter().any(|filter| name.contains(&filter.to_lowercase()))
}

/// Fails when what came is not what was sent, and says where.
fn same_bytes(what: &str, sent: &[u8], came: &[u8]) -> Result<()> {
    if sent == came {
        return Ok(());
    }
    let first = sent.iter().zip(came).position(|(a, b)| a != b);
    let place = first.unwrap_or(sent.len().min(came.len()));
    bail!("{what}: {} bytes sent, {} came; they differ at byte {place}", sent.len(), came.len())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_filter_ignores_case() {
        assert!(chosen("FFmpeg sends TS", &["ffmpeg".into()]));
        assert!(!chosen("FFmpeg sends TS", &["gst".into()]));
    }

    #[test]
    fn names_of_tests_differ() {
        let mut names: Vec<_> = tests().map(|test| test.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_difference_is_located() {
        assert!(same_bytes("x", b"abc", b"abc").is_ok());
        let error = same_bytes("x", b"abc", b"abd").unwrap_err().to_string();
        assert!(error.ends_with("differ at byte 2"), "{error}");
        let error = same_bytes("x", b"abc", b"ab").unwrap_err().to_string();
        assert!(error.ends_with("differ at byte 2"), "{error}");
    }
}
