//! `cargo xtask bench`: every row beside its peers, in one report: a table, JSON, an SVG per row and
//! a page.
//!
//! Measuring is `rtp-bench`'s, a release build with the program's own flags, and [`vm::bench`]'s for
//! the kernel engine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use rtp_mgr_bench_report::{Report, Row, page, svg, table};
use xshell::cmd;

use crate::project::Project;
use crate::report::Outcome;
use crate::{setup, vm};

/// `cargo xtask bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Short measurements: every row in under 10 minutes
    #[arg(long)]
    quick: bool,
    /// Only these rows: goodput, lossless, cpu, hop, latency, resilience, pacing, flows, start, kernel
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
}

/// Repetitions, and milliseconds of a measurement.
const QUICK: (u32, u32) = (5, 250);
const FULL: (u32, u32) = (9, 1_500);
/// The rows that are measured in the virtual machine.
const KERNEL: &str = "kernel";

/// Runs the command.
pub fn run(project: &Project, arguments: &BenchArgs) -> Result<()> {
    let start = Instant::now();
    match setup::step(project) {
        Outcome::Passed(_) => {}
        Outcome::Failed(why) | Outcome::NotRun(why) => {
            println!("some peers may not be here: {why}");
        }
    }
    let shell = project.shell()?;
    cmd!(shell, "cargo build --release -p rtp-app -p rtp-mgr-bench").run()?;
    let native: Vec<_> = arguments.rows.iter().filter(|row| *row != KERNEL).collect();
    let mut report = match arguments.rows.is_empty() || !native.is_empty() {
        true => measure(project, if arguments.quick { QUICK } else { FULL }, &native)?,
        false => Report::default(),
    };
    if arguments.rows.is_empty() || native.len() < arguments.rows.len() {
        report.rows.extend(vm::bench::rows(project));
    }
    println!("\n{}", table(&report.rows));
    let directory = project.target.join("bench");
    write(&report, &directory)?;
    println!("{}", closing_line(&report.rows));
    println!(
        "{}, {} ({:.0} s)",
        directory.join("index.html").display(),
        directory.join("report.json").display(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Every short row of `rtp_app bench` once: that they work, not what they come to.
pub fn smoke(project: &Project) -> Result<()> {
    const ROWS: [&str; 5] = ["goodput", "cpu", "hop", "latency", "start"];
    let shell = project.shell()?;
    let rtp_app = project.rtp_app();
    let rows = ROWS.iter().flat_map(|row| ["--row", row]);
    let output =
        cmd!(shell, "{rtp_app} bench --json --runs 1 --time 20 {rows...}").quiet().read()?;
    let report: Report = serde_json::from_str(&output).context("rtp_app bench --json")?;
    let empty: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.ours.is_none_or(|ours| !ours.is_finite()))
        .map(|row| format!("{}: {:?}", row.row, row.not_run))
        .collect();
    if report.rows.len() < ROWS.len() || !empty.is_empty() {
        bail!("{} rows; without a figure: {}", report.rows.len(), empty.join("; "));
    }
    Ok(())
}

/// Runs `rtp-bench`, which prints the machine and then the rows, one JSON line each.
fn measure(project: &Project, (runs, time): (u32, u32), rows: &[&String]) -> Result<Report> {
    let mut command = Command::new(project.target.join("release/rtp-bench"));
    command.arg("--rtp-app").arg(project.rtp_app());
    command.args(["--runs", &runs.to_string(), "--time", &time.to_string()]);
    for row in rows {
        command.args(["--row", row]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("rtp-bench could not be started")?;
    let stdout = child.stdout.take().context("rtp-bench has no output")?;
    let report = read(BufReader::new(stdout));
    let status = child.wait()?;
    if !status.success() {
        bail!("rtp-bench: {status}");
    }
    report
}

fn read(lines: impl BufRead) -> Result<Report> {
    let mut lines = lines.lines();
    let first = lines.next().context("rtp-bench said nothing")??;
    let machine = serde_json::from_str(&first).context("rtp-bench: the machine")?;
    let mut report = Report { machine, rows: Vec::new() };
    for line in lines {
        report.rows.push(serde_json::from_str(&line?).context("rtp-bench: a row")?);
    }
    Ok(report)
}

/// Replaces what an earlier run left in `directory`.
fn write(report: &Report, directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| directory.display().to_string());
        }
        _ => {}
    }
    fs::create_dir_all(directory)?;
    fs::write(directory.join("report.json"), report.to_json())?;
    fs::write(directory.join("index.html"), page(report))?;
    for row in &report.rows {
        fs::write(directory.join(format!("{}.svg", file_name(&row.row))), svg(row))?;
    }
    Ok(())
}

/// A row's name as that of a file.
fn file_name(row: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut name: String = row.chars().map(plain).collect();
    while name.contains("--") {
        name = name.replace("--", "-");
    }
    name.trim_matches('-').to_owned()
}

fn closing_line(rows: &[Row]) -> String {
    let count = |met| rows.iter().filter(|row| row.met == met).count();
    format!(
        "{} rows: {} met, {} missed, {} without a verdict",
        rows.len(),
        count(Some(true)),
        count(Some(false)),
        count(None)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_reads_back() {
        let row = Row { row: "r".into(), met: Some(false), ..Row::default() };
        let machine = r#"{"cpu":"c","cpus":2,"memory_gib":1,"kernel":"k","date":"d","program":"p","peers":{},"load":0}"#;
        let text = format!("{machine}\n{}\n", serde_json::to_string(&row).unwrap());
        let report = read(text.as_bytes()).unwrap();
        assert_eq!((report.machine.cpus, report.rows), (2, vec![row]));
        assert!(read(&b""[..]).is_err());
    }

    #[test]
    fn a_report_is_written_whole_and_replaces_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("bench");
        let report = |name: &str| Report {
            rows: vec![Row { row: name.into(), ..Row::default() }],
            ..Report::default()
        };
        write(&report("the first"), &directory).unwrap();
        write(&report("CPU, 172 B"), &directory).unwrap();
        let mut files: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["cpu-172-b.svg", "index.html", "report.json"]);
    }

    #[test]
    fn verdicts_are_counted() {
        let rows =
            [Some(true), Some(false), Some(false), None].map(|met| Row { met, ..Row::default() });
        assert_eq!(closing_line(&rows), "4 rows: 1 met, 2 missed, 1 without a verdict");
    }
}
