//! Running `rtp_app` and reading its figures.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Bench;
use crate::process::{Child, output};

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running `rtp_app rx --json`.
#[derive(Debug)]
pub struct Receiver(Child);

impl Receiver {
    /// Starts `rx` on a loopback port; returns when it listens. It ends on BYE, or when nothing came
    /// for 2 s after the first packet.
    pub fn start<S: AsRef<OsStr>>(
        bench: &Bench,
        port: u16,
        options: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut command = Command::new(&bench.rtp_app);
        command
            .args(["rx", "--bind", "127.0.0.1", "--port", &port.to_string(), "--json"])
            .args(["--idle-timeout", "2", "--duration", "60"])
            .args(options);
        Self::start_command(bench.directory(), command)
    }

    /// Starts a command line of `rx` that has `--json`; its first line tells that it listens.
    pub fn start_command(directory: &Path, mut command: Command) -> Result<Self> {
        let mut child = Child::start(directory, "rx", &mut command)?;
        child.until("listening", START_LIMIT, |child| Ok(child.stdout()?.contains('\n')))?;
        Ok(Self(child))
    }

    /// Waits for its end and returns its last report, whose books balance.
    pub fn finish(self, limit: Duration) -> Result<Value> {
        let report = last_report(&self.0.success(limit)?)?;
        for stream in report["streams"].as_array().context("rx: no streams")? {
            books_balance(stream)?;
        }
        Ok(report)
    }
}

/// Runs `rtp_app tx` to its end and returns its last report.
pub fn transmit<S: AsRef<OsStr>>(
    bench: &Bench,
    port: u16,
    options: impl IntoIterator<Item = S>,
) -> Result<Value> {
    let mut command = Command::new(&bench.rtp_app);
    command.args(["tx", "--dst", "127.0.0.1", "--port", &port.to_string(), "--json"]).args(options);
    last_report(&output(bench.directory(), "tx", &mut command, Duration::from_secs(30))?)
}

/// Runs `rtp_app inspect` and returns its report.
pub fn inspect(bench: &Bench, file: &Path) -> Result<Value> {
    let mut command = Command::new(&bench.rtp_app);
    command.arg("inspect").arg(file).arg("--json");
    last_report(&output(bench.directory(), "inspect", &mut command, Duration::from_secs(30))?)
}

fn last_report(text: &str) -> Result<Value> {
    let line = text.lines().last().context("rtp_app: no JSON line")?;
    let report: Value = serde_json::from_str(line).with_context(|| format!("JSON: {line}"))?;
    ensure!(report["schema"] == 1, "not schema 1: {line}");
    ensure!(report["final"] == true, "the last line is not final: {line}");
    Ok(report)
}

/// The stream of a report that must have one.
pub fn only_stream(report: &Value) -> Result<&Value> {
    match report["streams"].as_array().map(Vec::as_slice) {
        Some([stream]) => Ok(stream),
        _ => bail!("not one stream: {report}"),
    }
}

/// A figure that must be there.
pub fn number(object: &Value, name: &str) -> Result<u64> {
    object[name].as_u64().with_context(|| format!("no figure {name}: {object}"))
}

/// Packets came, each once and in order, and none is missing.
pub fn nothing_lost(stream: &Value) -> Result<()> {
    ensure!(number(stream, "packets")? > 0, "no packet came");
    for name in ["lost", "duplicate", "late", "reordered", "restarts", "dropped_invalid"] {
        let count = number(stream, name)?;
        ensure!(count == 0, "{name} is {count}: {stream}");
    }
    let (packets, expected) = (number(stream, "packets")?, number(stream, "expected")?);
    ensure!(packets == expected, "{packets} packets of {expected} expected");
    Ok(())
}

/// `received` is the sum of what became of the packets.
fn books_balance(stream: &Value) -> Result<()> {
    let ring = &stream["ring"];
    let causes = [
        "published",
        "dropped_ring_full",
        "dropped_oversize",
        "dropped_invalid",
        "dropped_filtered",
        "duplicate",
        "late",
        "staged",
    ];
    let mut sum = 0;
    for cause in causes {
        sum += number(ring, cause)?;
    }
    let received = number(ring, "received")?;
    ensure!(received == sum, "the books: {received} received, {sum} accounted for: {ring}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(received: u64, published: u64, duplicate: u64) -> Value {
        json!({"ring": {
            "received": received, "published": published, "dropped_ring_full": 0,
            "dropped_oversize": 0, "dropped_invalid": 0, "dropped_filtered": 0,
            "duplicate": duplicate, "late": 0, "staged": 0,
        }})
    }

    #[test]
    fn books_must_balance() {
        assert!(books_balance(&stream(10, 9, 1)).is_ok());
        assert!(books_balance(&stream(10, 9, 0)).is_err());
        assert!(books_balance(&json!({"ring": {"received": 0}})).is_err());
    }

    #[test]
    fn the_last_line_must_be_final() {
        let line = |last: bool| json!({"schema": 1, "final": last, "streams": []}).to_string();
        assert!(last_report(&format!("{}\n{}\n", line(false), line(true))).is_ok());
        assert!(last_report(&format!("{}\n", line(false))).is_err());
        assert!(last_report("").is_err());
    }
}
