//! `rtp-bench`: measures rows, prints each as one JSON line. `cargo xtask bench` makes the report.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use rtp_mgr_bench::{Settings, machine, rows};

/// Measure RTP Manager and its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The rtp_app to measure
    #[arg(long, value_name = "FILE")]
    rtp_app: PathBuf,
    /// Repetitions of everything
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Milliseconds of a measurement
    #[arg(long, value_name = "MS", default_value_t = 500)]
    time: u64,
    /// Only these rows
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rtp-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // Ends, with everything it made, when whoever started it does.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    // Neighbours matter less then. Without permission it stays as it is.
    let _ = rustix::process::setpriority_process(None, -15);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("take a signal over")?;
    }
    let settings = Settings {
        runs: arguments.runs,
        time: Duration::from_millis(arguments.time),
        all_peers: true,
        rtp_app: arguments.rtp_app.clone(),
        stop: &|| stop.load(Ordering::Relaxed),
        progress: &|what| eprintln!("{what}"),
    };
    let mut stdout = std::io::stdout().lock();
    let program = format!("rtp_app {}", env!("CARGO_PKG_VERSION"));
    writeln!(stdout, "{}", serde_json::to_string(&machine::look(&program))?)?;
    let known = |name: &String| rows::ALL.iter().any(|kind| kind.name == *name);
    if let Some(unknown) = arguments.rows.iter().find(|name| !known(name)) {
        let names: Vec<_> = rows::ALL.iter().map(|kind| kind.name).collect();
        bail!("--row {unknown}: no such row; accepted: {}", names.join(", "));
    }
    let chosen =
        |name: &str| arguments.rows.is_empty() || arguments.rows.iter().any(|row| row == name);
    for kind in rows::ALL.iter().filter(|kind| chosen(kind.name)) {
        for row in kind.run(&settings)? {
            writeln!(stdout, "{}", serde_json::to_string(&row)?)?;
        }
        stdout.flush()?;
    }
    Ok(())
}
