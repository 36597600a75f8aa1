//! The ring-buffer consumer of the source documents: `rtp_app consume`, called `consumer_app`, too.

mod common;

use std::os::unix::fs::symlink;
use std::process::Command;

use common::{App, run};
use rustix::process::Signal;
use serde_json::Value;

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
fn every_burst_is_read_and_is_the_pattern() {
    for framing in [&[][..], &["--rtp"]] {
        let arguments = ["consume", "--json", "--count", "640", "--dma-interval", "20"];
        let report = run(&[&arguments[..], framing].concat()).good().last_report();
        assert_eq!(number(&report, "packets"), 640);
        assert_eq!(number(&report, "pattern_errors"), 0);
        assert_eq!(number(&report, "bytes_overflowed"), 0);
        // 64 packets of 1,024 bytes each; more may have come before the end.
        assert!(number(&report, "bursts") >= 10, "{report}");
        assert_eq!(number(&report, "bytes_produced"), number(&report, "bursts") * 65_536);
        assert!(number(&report, "bytes_consumed") <= number(&report, "bytes_produced"));
        assert!(matches!(report["engine"].as_str(), Some("user" | "kernel")), "{report}");
    }
}

#[test]
fn what_does_not_fit_the_ring_is_overflow_and_not_a_pattern_error() {
    // Bursts of 64 into 16 positions: 48 are lost each time, and the reader is told.
    let arguments = ["--ring-order", "4", "--count", "160", "--dma-interval", "10", "--json"];
    let report = run(&[&["consume"], &arguments[..]].concat()).good().last_report();
    assert_eq!(number(&report, "pattern_errors"), 0, "{report}");
    let all = number(&report, "bursts") * 65_536;
    assert_eq!(number(&report, "bytes_produced") + number(&report, "bytes_overflowed"), all);
    assert!(number(&report, "bytes_overflowed") >= number(&report, "bursts") * 48 * 1024);
}

#[test]
fn it_runs_until_a_signal_and_then_says_how_it_went() {
    let mut app = App::start(&["consume", "--json", "--interval", "0.02"]);
    app.json(|report| number(report, "packets") >= 64);
    app.signal(Signal::INT);
    let report = app.end().good().last_report();
    assert_eq!(number(&report, "packets") * 1024, number(&report, "bytes_produced"));

    let mut app = App::start(&["consume"]);
    app.message("consuming the simulated DMA engine");
    app.signal(Signal::TERM);
    let ended = app.end().good();
    for word in ["produced", "consumed", "overflowed", "pattern"] {
        assert!(ended.stdout.iter().any(|line| line.starts_with(word)), "{word}: {ended:?}");
    }
}

#[test]
fn consumer_app_is_the_same_program() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().join("consumer_app");
    symlink(env!("CARGO_BIN_EXE_rtp_app"), &name).expect("a link");
    let mut command = Command::new(&name);
    command.args(["--count", "64", "--json"]).env("XDG_RUNTIME_DIR", common::runtime_dir());
    let report = App::spawn(command).end().good().last_report();
    assert_eq!((number(&report, "packets"), number(&report, "pattern_errors")), (64, 0));
}
