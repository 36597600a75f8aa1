//! The commands that stand alone: version, help, doctor, demo.

mod common;

use common::{balances, parse, run};
use serde_json::Value;

#[test]
fn the_version_names_program_abi_and_engines() {
    let version = parse(&run(&["--version", "--json"]).good().stdout[0]);
    assert_eq!((&version["schema"], &version["program"]), (&1.into(), &"rtp_app".into()));
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["abi"], "1.0");
    assert!(version["engines"]["user"].is_string(), "{version}");
    let text = run(&["--version"]).good().stdout;
    assert!(text[0].starts_with("rtp_app ") && text[0].contains("ABI 1.0"), "{text:?}");
}

#[test]
fn help_is_there_with_and_without_asking() {
    for arguments in [&[][..], &["--help"], &["-h"]] {
        let text = run(arguments).good().stdout.join("\n");
        for word in ["rx", "tx", "demo", "consume", "inspect", "list", "stat", "doctor", "--mode"] {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
    }
    let text = run(&["tx", "--help"]).good().stdout.join("\n");
    assert!(text.contains("--payload") && text.contains("A capture is sent"), "{text}");
}

#[test]
fn doctor_says_which_engine_and_why_and_how_each_finding_turned_out() {
    let report = parse(&run(&["doctor", "--json"]).good().stdout[0]);
    assert_eq!(report["schema"], 1);
    assert!(matches!(report["engine"].as_str(), Some("user" | "kernel")), "{report}");
    assert!(report["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    let findings = report["findings"].as_array().expect("findings");
    assert!(!findings.is_empty());
    for finding in findings {
        let status = finding["status"].as_str().expect("a status");
        assert!(matches!(status, "ok" | "limited" | "missing"), "{finding}");
        assert!(status == "ok" || finding["remedy"].is_string(), "a remedy: {finding}");
    }
    let text = run(&["doctor"]).good().stdout.join("\n");
    assert!(text.starts_with("engine "), "{text}");
}

#[test]
fn a_doctor_asked_about_the_kernel_engine_names_what_stops_it_first() {
    let asked = run(&["doctor", "--json", "--engine", "kernel"]);
    let report = parse(&asked.stdout[0]);
    let findings = report["findings"].as_array().expect("findings").iter();
    let mut kernel = findings.filter(|finding| finding["engine"] == "kernel").peekable();
    assert!(kernel.peek().is_some(), "something is said about it: {report}");
    let Some(first) = kernel.find(|finding| finding["status"] != "ok") else {
        assert_eq!((asked.status, &report["engine"]), (Some(0), &"kernel".into()));
        return;
    };
    assert_eq!(asked.status, Some(1), "{asked:?}");
    for text in [&first["detail"], &first["remedy"]] {
        let text = text.as_str().expect("a text");
        assert!(asked.stderr[0].contains(text), "{text}: {asked:?}");
    }
}

#[test]
fn a_doctor_asked_about_the_embedded_engine_judges_that() {
    let report = parse(&run(&["doctor", "--json", "--engine", "user"]).good().stdout[0]);
    assert_eq!((&report["engine"], &report["reason"]), (&"user".into(), &"asked for".into()));
}

#[test]
fn a_strict_doctor_fails_when_anything_limits_the_engine() {
    let strict = run(&["doctor", "--strict", "--json"]);
    let report = parse(&strict.stdout[0]);
    let limited = report["findings"].as_array().expect("findings").iter();
    let limited: Vec<_> = limited.filter(|finding| finding["status"] == "limited").collect();
    assert_eq!(report["unlimited"], Value::Bool(limited.is_empty()));
    assert_eq!(strict.status, Some(if limited.is_empty() { 0 } else { 1 }), "{strict:?}");
    for finding in limited {
        let name = finding["name"].as_str().expect("a name");
        assert!(strict.stderr[0].contains(name), "{strict:?}");
    }
}

#[test]
fn the_demo_arrives_bit_for_bit() {
    let ended = run(&["demo", "--duration", "1", "--json"]).good();
    assert_eq!(ended.stdout.len(), 1, "one line: {ended:?}");
    let report = ended.last_report();
    assert_eq!(report["identical"], true);
    assert_eq!(report["sha256_sent"], report["sha256_received"]);
    assert_eq!(report["sha256_sent"].as_str().map(str::len), Some(64));
    let (tx, rx) = (&report["transmit"], &report["receive"]);
    assert_eq!((&tx["sent"], &rx["lost"]), (&rx["packets"], &0.into()));
    assert_eq!((&tx["ssrc"], &rx["payload_type"]), (&rx["ssrc"], &33.into()));
    assert_eq!(rx["bytes"], report["programme_bytes"]);
    balances(&serde_json::json!({ "streams": [rx] }));

    let ended = run(&["demo", "--duration", "1"]).good();
    let text = ended.stdout.join("\n");
    assert!(text.contains("identical") && text.contains("lost 0"), "{text}");
}
