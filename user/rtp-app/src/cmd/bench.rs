//! `rtp_app bench`: how fast the embedded engine is on this machine, beside loops over plain sockets
//! in the same interleaved run.
//!
//! What is measured and how lives in `rtp-mgr-bench`; here are the options and the report.

use std::sync::Mutex;

use rtp_mgr_bench::rows::{self, Kind};
use rtp_mgr_bench::{Settings, machine};
use rtp_mgr_bench_report::{Machine, Row, table};
use serde::Serialize;

use crate::cli::BenchArgs;
use crate::error::Failure;
use crate::live::Panel;
use crate::output::{SCHEMA, write_line};
use crate::signals::Stop;

/// What `bench --json` prints.
#[derive(Serialize)]
struct BenchReport {
    schema: u32,
    /// Always true: there is one line.
    #[serde(rename = "final")]
    last: bool,
    machine: Machine,
    rows: Vec<Row>,
}

/// Runs the command.
///
/// # Errors
/// Nothing could be measured; standard output.
pub fn run(args: &BenchArgs, stop: &Stop) -> Result<(), Failure> {
    let chosen = choose(&args.rows)?;
    let rtp_app = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("bench: this program is not found: {error}")))?;
    let panel = Mutex::new(Panel::new(!args.json));
    let settings = Settings {
        runs: args.runs as usize,
        time: args.time,
        all_peers: false,
        rtp_app,
        stop: &|| stop.requested(),
        progress: &|what| {
            if let Ok(mut panel) = panel.lock() {
                panel.show(&[what.to_owned()]);
            }
        },
    };
    let machine = machine::look(concat!("rtp_app ", env!("CARGO_PKG_VERSION")));
    let mut rows = Vec::new();
    for kind in chosen {
        match kind.run(&settings) {
            Ok(measured) => rows.extend(measured),
            Err(_) if stop.requested() => break,
            Err(error) => return Err(Failure::failed(format!("bench: {error:#}"))),
        }
    }
    if let Ok(mut panel) = panel.lock() {
        panel.clear();
    }
    if args.json {
        let report = BenchReport { schema: SCHEMA, last: true, machine, rows };
        return write_line(&mut std::io::stdout().lock(), &report).map_err(Failure::stdout);
    }
    crate::print(&text(&machine, &rows, stop.requested()))
}

fn choose(names: &[String]) -> Result<Vec<&'static Kind>, Failure> {
    let known = |name: &String| rows::ALL.iter().any(|kind| kind.name == *name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let accepted: Vec<_> = rows::ALL.iter().map(|kind| kind.name).collect();
        return Err(Failure::usage(format!(
            "--row {unknown}: no such row; accepted: {}",
            accepted.join(", ")
        )));
    }
    let chosen = |kind: &&Kind| names.is_empty() || names.iter().any(|name| name == kind.name);
    Ok(rows::ALL.iter().filter(chosen).collect())
}

fn text(machine: &Machine, rows: &[Row], interrupted: bool) -> String {
    let mut text = format!(
        "{}, {} processors, Linux {}, load {:.1}\n",
        machine.cpu, machine.cpus, machine.kernel, machine.load
    );
    text.push_str("Compare within a row: absolute figures are this machine's at this moment.\n\n");
    text.push_str(&table(rows));
    if interrupted {
        text.push_str("interrupted before the end\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name_and_an_unknown_one_is_named() {
        assert_eq!(choose(&[]).unwrap().len(), rows::ALL.len());
        let chosen = choose(&["hop".into(), "start".into()]).unwrap();
        assert_eq!(chosen.iter().map(|kind| kind.name).collect::<Vec<_>>(), ["hop", "start"]);
        let failure = choose(&["speed".into()]).map(|_| ()).unwrap_err();
        assert_eq!(failure.status(), 2);
        let line = failure.to_string();
        assert!(line.starts_with("--row speed: no such row; accepted: goodput, "), "{line}");
    }

    #[test]
    fn an_interruption_is_said() {
        let machine = Machine::default();
        assert!(text(&machine, &[], true).ends_with("interrupted before the end\n"));
        assert!(!text(&machine, &[], false).contains("interrupted"));
    }
}
