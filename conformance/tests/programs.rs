//! `conformance compare` and `conformance soak` as programs, briefly, on the embedded engine.

use std::process::Command;

#[track_caller]
fn run(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_conformance")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words:?}: {}\n{text}", output.status);
    text
}

#[test]
fn a_soak_leaves_nothing_behind() {
    let text = run(&["soak", "--seconds", "2", "--ktap"]);
    assert!(text.contains("# Totals: pass:6 fail:0 skip:0"), "{text}");
}

#[test]
fn rounds_of_generated_traffic_have_everything_in_them() {
    let text = run(&["compare", "--engine", "user", "--rounds", "12", "--ktap"]);
    assert!(text.contains("# Totals: pass:13 fail:0 skip:0"), "{text}");
}

#[test]
fn a_capture_that_is_none_is_refused_by_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_conformance"))
        .args(["compare", "--engine", "user", "--capture", "/dev/null"])
        .output()
        .expect("the program was built");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--capture /dev/null: an empty file; accepted: pcap, pcapng"), "{text}");
}
