//! `rtp_app inspect` as a program: its JSON, its table, its mistakes.

use super::support::*;
use serde_json::{Value, json};

const A: &str = "10.0.0.1:4000";
const B: &str = "10.0.0.2:5004";

/// 100 packets, of which number 50 is missing, 60 comes twice and 70 after 71; the network delays every
/// second packet by 1 ms. RTCP, and one datagram of something else.
fn capture() -> Pcap {
    let mut pcap = Pcap::new(ETHERNET);
    let mut order: Vec<u32> = (0..100).filter(|index| *index != 50).collect();
    order.insert(order.iter().position(|index| *index == 60).unwrap(), 60);
    let at = order.iter().position(|index| *index == 70).unwrap();
    order.swap(at, at + 1);
    for (slot, index) in (0..).zip(order) {
        let time_ns = START_NS + slot * 20 * MS + slot % 2 * MS;
        pcap.frame(time_ns, &ethernet(&udp(address(A), address(B), &Rtp::pcmu(9, index).bytes())));
    }
    let report = [&[0x80, 200, 0, 6][..], &[0; 24]].concat();
    pcap.frame(START_NS + 1, &ethernet(&udp(address(A), address("10.0.0.2:5005"), &report)));
    pcap.frame(START_NS + 2, &ethernet(&udp(address(A), address(B), b"hello")));
    pcap
}

#[test]
fn json_has_the_figures_of_the_design() {
    let (_directory, path) = file("a.pcap", &capture().bytes);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!((error.as_str(), status), ("", 0));
    assert_eq!(json["schema"], 1);
    assert_eq!(json["engine"], "user");
    assert_eq!(json["final"], true);
    assert!(json["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(json["not_rtp"], json!({"rtcp": 1, "stun": 0, "dtls": 0, "other": 1}));
    let streams = json["streams"].as_array().unwrap();
    assert_eq!(streams.len(), 1);
    let expected = json!({
        "ssrc": 9, "payload_type": 0, "source": A, "destination": B,
        "received": 100, "packets": 99, "bytes": 99 * 160, "expected": 100, "lost": 1,
        "duplicate": 1, "late": 0, "reordered": 1, "recovered": 0, "restarts": 0,
        "dropped_invalid": 0, "clock_rate": 8000, "first_sequence": 1000, "last_sequence": 1099,
        "duration_s": 1.981, "legs": [], "ring": null,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&streams[0][name], value, "{name}");
    }
    // 1 ms more or less from packet to packet: A.8 comes near 1 ms.
    for name in ["jitter_ms", "jitter_mean_ms", "jitter_max_ms"] {
        let jitter = streams[0][name].as_f64().unwrap();
        assert!(jitter > 0.5 && jitter < 8.0, "{name} {jitter}");
    }
}

#[test]
fn a_clock_rate_can_be_given_and_is_otherwise_not_guessed() {
    let mut pcap = Pcap::new(RAW);
    for index in 0..20 {
        let rtp = Rtp { payload_type: 97, timestamp: index * 960, ..Rtp::pcmu(9, index) };
        let delay = u64::from(index % 2) * MS;
        let time_ns = START_NS + u64::from(index) * 20 * MS + delay;
        pcap.frame(time_ns, &udp(address(A), address(B), &rtp.bytes()));
    }
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let (unknown, _, _) = inspect(&path, &[]);
    let stream = &unknown["streams"][0];
    for name in ["clock_rate", "jitter_ms", "jitter_mean_ms", "jitter_max_ms"] {
        assert_eq!(stream[name], Value::Null, "{name}");
    }
    let (known, _, _) = inspect(&path, &["--clock-rate", "97=48000", "--clock-rate", "98=90000"]);
    let stream = &known["streams"][0];
    assert_eq!(stream["clock_rate"], 48_000);
    // |D| is 1 ms for each of the 19 packets after the first.
    let expected = 1.0 - (15.0_f64 / 16.0).powi(19);
    assert!((stream["jitter_ms"].as_f64().unwrap() - expected).abs() < 1e-5);
    assert!((stream["jitter_max_ms"].as_f64().unwrap() - expected).abs() < 1e-5);
}

#[test]
fn the_table_shows_the_same_figures() {
    let (_directory, path) = file("a.pcap", &capture().bytes);
    let output = rtp_app(&["inspect", path.to_str().unwrap()]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let cells: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(cells[..8], ["1", A, B, "0x00000009", "0", "100", "1", "(1.00"]);
    assert_eq!(lines[2], "not RTP: RTCP 1, STUN 0, DTLS 0, other UDP 1");
}

#[test]
fn a_capture_without_rtp_says_so() {
    let mut pcap = Pcap::new(RAW);
    pcap.frame(START_NS, &udp(address(A), address(B), b"hello"));
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let output = rtp_app(&["inspect", path.to_str().unwrap()]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "no RTP in 1 frames\nnot RTP: RTCP 0, STUN 0, DTLS 0, other UDP 1\n");
    // A header and nothing else is a capture too.
    let (_directory, path) = file("b.pcap", &Pcap::new(RAW).bytes);
    let (json, _, status) = inspect(&path, &[]);
    assert_eq!((json["streams"].as_array().map(Vec::len), status), (Some(0), 0));
}

#[test]
fn a_truncated_capture_is_reported_and_fails() {
    let bytes = capture().bytes;
    let (_directory, path) = file("a.pcap", &bytes[..bytes.len() - 5_000]);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!(status, 1);
    let received = json["streams"][0]["received"].as_u64().unwrap();
    assert!(received > 70, "{received}");
    let frames = received;
    assert_eq!(
        error,
        format!(
            "rtp_app: FILE {}: the capture ends in the middle of a packet; whole packets before: \
             {frames}\n",
            path.display()
        )
    );
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn a_snapped_capture_has_all_figures_but_padding() {
    let mut pcap = Pcap::new(ETHERNET);
    for index in 0..50 {
        let frame = ethernet(&udp(address(A), address(B), &Rtp::pcmu(9, index).bytes()));
        // Ethernet, IPv4, UDP and the fixed header.
        pcap.cut_frame(START_NS + u64::from(index) * 20 * MS, &frame, 14 + 20 + 8 + 12);
    }
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!((error.as_str(), status), ("", 0));
    let stream = &json["streams"][0];
    assert_eq!((&stream["received"], &stream["bytes"]), (&json!(50), &json!(50 * 160)));
    assert_eq!(stream["jitter_max_ms"], 0.0);
}

#[test]
fn fragments_are_mentioned() {
    let mut pcap = capture();
    let mut fragment = udp(address(A), address(B), &Rtp::pcmu(9, 100).bytes());
    fragment[6] = 0x20;
    pcap.frame(START_NS, &ethernet(&fragment));
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!(status, 0);
    assert_eq!(json["not_rtp"]["other"], 2);
    let warning = "1 UDP fragments are not put together: counted as not RTP (other)";
    assert_eq!(json["warnings"], json!([warning]));
    assert_eq!(error, format!("rtp_app: {warning}\n"));
}

/// What a capture on the sending machine looks like when the device segments (UDP GSO).
#[test]
fn joined_packets_are_mentioned() {
    let mut pcap = Pcap::new(RAW);
    for burst in 0..10 {
        let packets = (0..4).flat_map(|index| Rtp::pcmu(9, burst * 4 + index).bytes());
        let packets: Vec<_> = packets.collect();
        let time_ns = START_NS + u64::from(burst) * 80 * MS;
        pcap.frame(time_ns, &udp(address(A), address(B), &packets));
    }
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!((status, json["streams"][0]["received"].as_u64()), (0, Some(10)));
    let warning = "10 datagrams hold several RTP packets each, joined by segmentation or receive \
                   offload: only the first of each counts; turn the offload off where you capture";
    assert_eq!(error, format!("rtp_app: {warning}\n"));
    assert_eq!(json["warnings"], json!([warning]));
}

/// One line: argument, value, what is accepted.
#[test]
fn what_cannot_be_inspected_gets_one_line() {
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty.pcap", b"", "an empty file; accepted: pcap, pcapng"),
        ("a.wav", b"RIFF\0\0\0\0WAVEfmt ", "not a capture; accepted: pcap, pcapng"),
        (
            "short.pcap",
            &0xA1B2_C3D4_u32.to_le_bytes(),
            "the capture ends in the middle of a packet; whole packets before: 0",
        ),
        (
            "radio.pcap",
            &Pcap::new(127).bytes.clone(),
            "link type 127 is not known; accepted: Ethernet (1), Linux cooked v1 (113) and v2 (276), \
             raw IP (12, 14, 101, 228, 229), BSD loopback (0, 108)",
        ),
    ];
    for (name, bytes, reason) in cases {
        let (_directory, path) = file(name, bytes);
        let output = rtp_app(&["inspect", path.to_str().unwrap()]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, format!("rtp_app: FILE {}: {reason}\n", path.display()));
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{name}");
    }
    let output = rtp_app(&["inspect", "/nonexistent/a.pcap"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("rtp_app: FILE /nonexistent/a.pcap: No such file"), "{error}");
    assert_eq!(output.status.code(), Some(1));
    let output = rtp_app(&["inspect", "a.pcap", "--clock-rate", "200=8000"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_closed_standard_output_ends_quietly() {
    use std::process::{Command, Stdio};
    let (_directory, path) = file("a.pcap", &capture().bytes);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_rtp_app"))
        .args(["inspect", path.to_str().unwrap()])
        .stdout(Stdio::from(writer))
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
