//! Bad input: one line that names the argument, the value and what is accepted, and the status that
//! says whose fault it is (2: the command line, 1: the world).

mod common;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use common::{App, command, free_port, noise, run, transport_stream, wav};

/// Runs the program and checks that it refuses with this status, in one line that has all of these.
#[track_caller]
fn refused(arguments: &[&str], status: i32, parts: &[&str]) {
    let ended = run(arguments);
    let line = ended.refused(status);
    assert!(line.starts_with("rtp_app: "), "{line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn values_out_of_range_are_usage() {
    let leg = "127.0.0.1:5004";
    refused(&["rx", "--bind", "127.0.0.1", "--port", "70000"], 2, &["--port 70000", "1 to 65535"]);
    refused(&["rx", "--bind", "127.0.0.1", "--port", "0"], 2, &["--port 0", "1 to 65535"]);
    refused(&["tx", "--leg", "127.0.0.1:65536"], 2, &["--leg 127.0.0.1:65536", "1 to 65535"]);
    refused(&["tx", "--leg", leg, "--rate", "0"], 2, &["--rate 0", "accepted: 0.001 to"]);
    refused(
        &["tx", "--leg", leg, "--payload", "65496"],
        2,
        &["--payload 65496", "fits a datagram", "0 to 65495"],
    );
    refused(&["rx", "--leg", leg, "--ring-order", "3"], 2, &["--ring-order 3", "4 to 20"]);
    refused(&["rx", "--leg", leg, "--ring-order", "21"], 2, &["--ring-order 21", "4 to 20"]);
    refused(&["rx", "--leg", leg, "--slot-stride", "10"], 2, &["--slot-stride 10", "64 to 65536"]);
    refused(&["tx", "--leg", leg, "--ttl", "0"], 2, &["--ttl 0", "1 to 255"]);
    refused(&["tx", "--leg", leg, "--dscp", "64"], 2, &["--dscp 64", "0 to 63"]);
    refused(&["rx", "--leg", leg, "--duration", "soon"], 2, &["--duration soon", "seconds"]);
    refused(&["rx", "--leg", leg, "--format", "L24"], 2, &["--format", "L24", "L24/48000/2"]);
}

#[test]
fn a_ring_too_small_for_the_reorder_time_says_which_order_it_takes() {
    let arguments = ["--reorder", "20", "--expected-rate", "130000", "--ring-order", "10"];
    let all = [&["rx", "--leg", "127.0.0.1:5004"], &arguments[..]].concat();
    // 20 ms at 130,000 packets/s are 2,600 packets; the window is half of the ring: 2^13 positions.
    refused(&all, 2, &["--ring-order 10", "--reorder 20", "130000", "accepted: 13 to 20"]);
}

#[test]
fn addresses_that_are_none_are_usage() {
    refused(&["rx", "--bind", "nowhere", "--port", "5004"], 2, &["--bind nowhere", "IP address"]);
    refused(&["tx", "--dst", "localhost", "--port", "5004"], 2, &["--dst localhost", "IP address"]);
    refused(&["rx", "--leg", "example.com:5004"], 2, &["--leg", "example.com", "127.0.0.1:5004"]);
    refused(&["tx", "--dst", "0.0.0.0", "--port", "5004"], 2, &["--dst 0.0.0.0", "destination"]);
    refused(&["rx"], 2, &["--leg: missing", "--bind"]);
    refused(&["tx"], 2, &["--leg: missing", "--dst"]);
    let three = ["rx", "--leg", "127.0.0.1:1", "--leg", "127.0.0.1:2", "--leg", "127.0.0.1:3"];
    refused(&three, 2, &["--leg", "3 times"]);
}

#[test]
fn an_address_of_another_machine_cannot_be_received_on() {
    // RFC 5737: for documentation, nobody's.
    refused(
        &["rx", "--bind", "198.51.100.77", "--port", "5004"],
        1,
        &["198.51.100.77", "not an address of this machine", "accepted"],
    );
}

#[test]
fn a_unicast_port_in_use_is_named() {
    let holder = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("its address").port().to_string();
    let arguments = ["rx", "--bind", "127.0.0.1", "--port", &port];
    refused(&arguments, 1, &[port.as_str(), "in use", "another port"]);
}

#[test]
fn an_interface_that_does_not_exist_is_named_with_those_that_do() {
    refused(
        &["rx", "--leg", "239.1.1.1%nosuch0:5004"],
        1,
        &["239.1.1.1%nosuch0:5004", "no interface", "nosuch0", "accepted", "lo"],
    );
    refused(
        &["tx", "--dst", "239.1.1.1", "--port", "5004", "--interface", "nosuch0"],
        1,
        &["nosuch0", "accepted", "lo"],
    );
    refused(
        &["rx", "--bind", "239.1.1.1", "--interface", "name/with/slashes"],
        2,
        &["--interface name/with/slashes", "1 to 15 bytes"],
    );
}

#[test]
fn unknown_options_commands_modes_and_engines_are_named() {
    refused(&["receive"], 2, &["receive", "no such command", "rx, tx, demo"]);
    refused(&["rx", "--prot", "1"], 2, &["--prot", "--port"]);
    refused(&["--mode", "both"], 2, &["--mode both", "rx, tx"]);
    refused(&["rx", "--leg", "127.0.0.1:1", "--engine", "fast"], 2, &["--engine fast", "kernel"]);
    refused(&["inspect"], 2, &["FILE", "missing"]);
}

#[test]
fn options_that_exclude_each_other_are_named() {
    let leg = "127.0.0.1:5004";
    refused(&["rx", "--leg", leg, "--port", "1"], 2, &["--leg", "--port"]);
    refused(&["rx", "--leg", leg, "--attach", "x"], 2, &["--leg", "--attach"]);
    refused(&["rx", "--leg", leg, "--reliable"], 2, &["--reliable", "--attach"]);
    refused(&["rx", "--leg", leg, "--allow-reliable"], 2, &["--allow-reliable", "--publish"]);
    refused(&["tx", "--leg", leg, "--input", "x.ts", "--rate", "5"], 2, &["--rate", "--input"]);
    refused(&["rx", "--leg", leg, "--count", "1", "--count", "2"], 2, &["--count", "once"]);
    refused(&["rx", "--leg", leg, "--out", "-", "--json"], 2, &["--out -", "--json"]);
    refused(&["rx", "--leg", leg, "--out", "x.wav"], 2, &["--out x.wav", "--format"]);
    refused(&["tx", "--leg", leg, "--input", "-", "--loop"], 2, &["--loop", "--input -"]);
    refused(&["tx", "--leg", leg, "--sdp", "x.sdp"], 2, &["--sdp x.sdp", "encoding"]);
}

#[test]
fn the_kernel_engine_without_its_module_says_how_to_load_it() {
    if Path::new("/dev/rtp_mgr").exists() {
        return;
    }
    let arguments = ["rx", "--leg", "127.0.0.1:5004", "--engine", "kernel"];
    refused(&arguments, 1, &["kernel engine", "modprobe rtp_mgr"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    refused(&["inspect", "/nowhere/x.pcap"], 1, &["/nowhere/x.pcap", "No such file"]);
    let leg = "127.0.0.1:5004";
    refused(&["tx", "--leg", leg, "--input", "/nowhere/x.ts"], 1, &["--input /nowhere/x.ts"]);
    refused(&["rx", "--sdp", "/nowhere/x.sdp"], 1, &["--sdp /nowhere/x.sdp", "No such file"]);
    let port = free_port();
    let leg = format!("127.0.0.1:{port}");
    let ended = run(&["rx", "--leg", &leg, "--out", "/nowhere/x.ts"]);
    assert_eq!(ended.status, Some(1));
    let line = ended.stderr.last().expect("a line");
    assert!(line.contains("--out /nowhere/x.ts") && line.contains("No such file"), "{line}");
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["x.ts", "x.wav", "x.pcap", "x.pcapng"] {
        let path = dir.path().join(name);
        fs::write(&path, "this is only text, whatever the name says\n".repeat(50)).expect("a file");
        let input = text(&path);
        let accepted = "MPEG-TS, WAV, pcap";
        let arguments = ["tx", "--leg", "127.0.0.1:5004", "--input", input];
        refused(&arguments, 1, &["--input", input, accepted]);
        refused(&["inspect", input], 1, &[input, "pcap"]);
    }
    let empty = dir.path().join("empty.ts");
    fs::write(&empty, b"").expect("a file");
    refused(&["tx", "--leg", "127.0.0.1:5004", "--input", text(&empty)], 1, &["empty"]);
    let sdp = dir.path().join("x.sdp");
    fs::write(&sdp, "hello\n").expect("a file");
    refused(&["rx", "--sdp", text(&sdp)], 1, &["--sdp", "x.sdp", "session description"]);
    // A WAV by content is sent, whatever its name; one that claims to be another is named.
    let wav_file = dir.path().join("y.ts");
    fs::write(&wav_file, wav(2, 24, &noise(6 * 480, 1))).expect("a file");
    let arguments = ["tx", "--leg", "127.0.0.1:5004", "--input", text(&wav_file), "--format", "TS"];
    refused(&arguments, 1, &["y.ts", "a WAV"]);
}

#[test]
fn a_truncated_file_is_sent_as_far_as_it_goes_and_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let leg = listener.local_addr().expect("its address").to_string();
    let stream = transport_stream(140, 10_000_000);
    let samples = noise(6 * 4800, 2);
    let sound = wav(2, 24, &samples);
    for (name, bytes) in [("t.ts", &stream[..stream.len() - 50]), ("t.wav", &sound[..20_000])] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        let ended = run(&["tx", "--leg", &leg, "--input", text(&path), "--json"]);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let line = ended.stderr.last().expect("a line");
        assert!(line.contains(name) && line.contains("truncated"), "{line}");
        let sent = common::figure(&ended.last_report(), "payload_bytes");
        assert!(sent > 0 && sent < bytes.len() as u64, "{ended:?}");
    }
}

#[test]
fn a_truncated_capture_is_reported_after_what_it_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole =
        common::capture(&(0..20).map(|n| common::rtp(n, 0, 7, 96, b"x")).collect::<Vec<_>>());
    let path = dir.path().join("t.pcap");
    fs::write(&path, &whole[..whole.len() - 5]).expect("a file");
    let ended = run(&["inspect", text(&path), "--json"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(common::figure(&ended.last_report(), "received"), 19);
    assert!(ended.stderr.last().expect("a line").contains("t.pcap"), "{ended:?}");
}

/// Runs as somebody who is not root, whoever runs the tests.
fn as_nobody(arguments: &[&str]) -> common::Ended {
    let mut command = command(arguments);
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    App::spawn(command).end()
}

#[test]
fn a_file_without_permission_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret.ts");
    fs::write(&path, transport_stream(7, 1_000_000)).expect("a file");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.path(), open).expect("permissions");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("permissions");
    let ended = as_nobody(&["tx", "--leg", "127.0.0.1:5004", "--input", text(&path)]);
    let line = ended.refused(1);
    assert!(line.contains("--input") && line.contains("Permission denied"), "{line}");
}

#[test]
fn a_privileged_port_without_permission_is_named_with_its_remedy() {
    let limit = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let limit: u16 = limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    if limit < 2 {
        return;
    }
    let port = (limit - 1).to_string();
    let ended = as_nobody(&["rx", "--bind", "127.0.0.1", "--port", &port]);
    let line = ended.refused(1);
    assert!(line.contains(&format!("127.0.0.1:{port}")) && line.contains("permission"), "{line}");
}
