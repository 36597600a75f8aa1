//! rx and tx against each other and against hand-made packets.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::path::Path;
use std::process::Stdio;

use common::{
    App, LIMIT, balances, bye, capture, command, feed, figure, free_port, noise, parse, rtp, run,
    transport_stream, wait, wav,
};
use rustix::process::Signal;
use serde_json::Value;

const SSRC: u32 = 0x1234_5678;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Starts `rx` on 127.0.0.1 with these options and waits until it listens.
fn listening(port: u16, options: &[&str]) -> App {
    let leg = format!("127.0.0.1:{port}");
    let mut app = App::start(&[&["rx", "--leg", &leg], options].concat());
    app.message("receiving on");
    app
}

/// A hand-made sender to `port` of 127.0.0.1.
struct Sender {
    socket: UdpSocket,
    port: u16,
}

impl Sender {
    fn to(port: u16) -> Self {
        Self { socket: UdpSocket::bind("127.0.0.1:0").expect("a port"), port }
    }

    fn send(&self, sequence: u16, payload: &[u8]) {
        self.send_as(SSRC, sequence, payload);
    }

    fn send_as(&self, ssrc: u32, sequence: u16, payload: &[u8]) {
        let packet = rtp(sequence, u32::from(sequence) * 3000, ssrc, 96, payload);
        self.socket.send_to(&packet, ("127.0.0.1", self.port)).expect("sending");
    }

    fn bye(&self) {
        self.bye_as(SSRC);
    }

    fn bye_as(&self, ssrc: u32) {
        self.socket.send_to(&bye(ssrc), ("127.0.0.1", self.port + 1)).expect("sending");
    }
}

/// Waits for a report in which the first stream has `packets`.
fn until_received(app: &mut App, packets: u64) -> Value {
    app.json(|report| report["streams"][0]["packets"].as_u64() >= Some(packets))
}

#[test]
fn what_tx_sends_is_what_rx_counts() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--clock-rate", "96=90000"]);
    let first = rx.json(|_| true);
    assert_eq!((&first["final"], &first["engine"]), (&Value::Bool(false), &"user".into()));
    let leg = format!("127.0.0.1:{port}");
    let arguments = ["tx", "--leg", &leg, "--rate", "500", "--payload", "1200", "--count", "100"];
    let tx = run(&[&arguments[..], &["--json"]].concat()).good().last_report();
    for (name, value) in [
        ("committed", 100),
        ("sent", 100),
        ("send_failed", 0),
        ("pending", 0),
        ("payload_bytes", 120_000),
    ] {
        assert_eq!(figure(&tx, name), value, "{name}");
    }
    // tx said BYE: rx ends by itself.
    let report = rx.end().good().last_report();
    balances(&report);
    for (name, value) in [
        ("received", 100),
        ("packets", 100),
        ("bytes", 120_000),
        ("expected", 100),
        ("lost", 0),
        ("duplicate", 0),
        ("late", 0),
        ("reordered", 0),
        ("restarts", 0),
        ("dropped_ring_full", 0),
        ("payload_type", 96),
        ("clock_rate", 90_000),
    ] {
        assert_eq!(figure(&report, name), value, "{name} in {report}");
    }
    let stream = &report["streams"][0];
    assert_eq!(stream["ssrc"], tx["streams"][0]["ssrc"]);
    assert_eq!(stream["destination"], leg.as_str());
    assert!(stream["source"].as_str().is_some_and(|source| source.starts_with("127.0.0.1:")));
    let span = figure(&report, "last_sequence").wrapping_sub(figure(&report, "first_sequence"));
    assert_eq!(span as u16, 99);
    // 99 intervals of 2 ms; on a busy machine the first may leave late, and the last on time.
    assert!(stream["duration_s"].as_f64() >= Some(0.1), "{stream}");
    assert!(stream["jitter_ms"].is_f64() && stream["jitter_mean_ms"].is_f64(), "{stream}");
    assert!(report["not_rtp"]["rtcp"].as_u64() >= Some(1), "{report}");
}

#[test]
fn the_long_form_of_the_source_documents_works() {
    let port = free_port().to_string();
    let mut rx = App::start(&["--mode", "rx", "--bind", "127.0.0.1", "--port", &port, "--json"]);
    rx.json(|_| true);
    let tx = [
        "--mode",
        "tx",
        "--dst",
        "127.0.0.1",
        "--port",
        &port,
        "--rate",
        "50",
        "--payload",
        "1200",
    ];
    run(&[&tx[..], &["--count", "10"]].concat()).good();
    let report = rx.end().good().last_report();
    assert_eq!((figure(&report, "packets"), figure(&report, "lost")), (10, 0));
}

#[test]
fn loss_duplicates_and_disorder_are_counted_and_the_books_balance() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--fail-on-loss"]);
    let sender = Sender::to(port);
    // RFC 3550 A.3 by hand: 65,530 to 3 over the wrap are 10; 65,533 is missing; 0 comes twice; 2 and 1
    // change places.
    for sequence in [65_530, 65_531, 65_532, 65_534, 65_535, 0, 0, 2, 1, 3] {
        sender.send(sequence, b"four");
    }
    until_received(&mut rx, 9);
    sender.bye();
    let ended = rx.end();
    let report = ended.last_report();
    balances(&report);
    for (name, value) in [
        ("received", 10),
        ("packets", 9),
        ("bytes", 36),
        ("expected", 10),
        ("lost", 1),
        ("duplicate", 1),
        ("reordered", 1),
        ("first_sequence", 65_530),
        ("last_sequence", 3),
    ] {
        assert_eq!(figure(&report, name), value, "{name} in {report}");
    }
    assert!(report["streams"][0]["jitter_ms"].is_null(), "no clock rate, no jitter");
    assert_eq!(ended.status, Some(1), "--fail-on-loss");
    let reason = ended.stderr.last().expect("the reason");
    assert!(reason.contains("--fail-on-loss") && reason.contains("1 lost"), "{reason}");
}

#[test]
fn order_is_restored() {
    let port = free_port();
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let mut rx = listening(port, &["--reorder", "2000", "--json", "--out", text(&out)]);
    let sender = Sender::to(port);
    for sequence in [10, 12, 14, 13, 11, 15] {
        sender.send(sequence, &[sequence as u8]);
    }
    until_received(&mut rx, 6);
    sender.bye();
    let report = rx.end().good().last_report();
    balances(&report);
    assert_eq!(fs::read(&out).expect("the output"), [10, 11, 12, 13, 14, 15]);
    assert_eq!((figure(&report, "reordered"), figure(&report, "lost")), (2, 0));
}

#[test]
fn two_legs_are_one_stream_and_each_recovers_the_others_loss() {
    let (first, second) = (free_port(), free_port());
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let other = format!("127.0.0.1:{second}");
    let mut rx = listening(
        first,
        &["--leg", &other, "--reorder", "500", "--json", "--out", text(&out), "--fail-on-loss"],
    );
    let (a, b) = (Sender::to(first), Sender::to(second));
    for sequence in 0..20 {
        if sequence != 5 {
            a.send(sequence, &[sequence as u8]);
        }
        if sequence != 7 && sequence != 8 {
            b.send(sequence, &[sequence as u8]);
        }
    }
    until_received(&mut rx, 20);
    a.bye();
    let report = rx.end().good().last_report();
    balances(&report);
    assert_eq!(fs::read(&out).expect("the output"), (0..20).collect::<Vec<u8>>());
    let stream = &report["streams"][0];
    assert_eq!((figure(&report, "packets"), figure(&report, "lost")), (20, 0));
    assert_eq!(figure(&report, "recovered"), 3, "{stream}");
    assert_eq!(figure(&report, "received"), 37);
    assert_eq!(figure(&report, "duplicate"), 17);
    let legs = stream["legs"].as_array().expect("legs");
    assert_eq!((&legs[0]["received"], &legs[1]["received"]), (&19.into(), &18.into()));
    assert_eq!((&legs[0]["lost"], &legs[1]["lost"]), (&1.into(), &2.into()));
    assert!(legs[0]["skew_ms"].is_object() || legs[1]["skew_ms"].is_object(), "{stream}");
}

#[test]
fn tx_sends_the_same_packets_on_two_legs() {
    let (first, second) = (free_port(), free_port());
    let (one, two) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{second}"));
    let mut rx = listening(first, &["--leg", &two, "--json"]);
    rx.json(|_| true);
    run(&["tx", "--leg", &one, "--leg", &two, "--rate", "1000", "--count", "50"]).good();
    let report = rx.end().good().last_report();
    balances(&report);
    assert_eq!((figure(&report, "packets"), figure(&report, "lost")), (50, 0));
    assert_eq!(figure(&report, "received"), 100);
}

#[test]
fn a_transport_stream_arrives_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (input, out) = (dir.path().join("in.ts"), dir.path().join("out.ts"));
    // Not a multiple of seven: the short tail is sent, too.
    let stream = transport_stream(1000, 20_000_000);
    fs::write(&input, &stream).expect("a file");
    let port = free_port();
    let mut rx = listening(port, &["--out", text(&out), "--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    let tx = run(&["tx", "--leg", &leg, "--input", text(&input), "--json"]).good().last_report();
    assert_eq!(figure(&tx, "sent"), 143);
    let report = rx.end().good().last_report();
    assert_eq!((figure(&report, "payload_type"), figure(&report, "clock_rate")), (33, 90_000));
    assert!(report["streams"][0]["jitter_ms"].is_f64());
    assert!(fs::read(&out).expect("the output") == stream, "the bytes differ");
}

#[test]
fn a_transport_stream_comes_from_standard_input_and_goes_to_standard_output() {
    let stream = transport_stream(700, 20_000_000);
    let port = free_port();
    let leg = format!("127.0.0.1:{port}");
    let mut receiver = command(&["rx", "--leg", &leg, "--out", "-", "--idle-timeout", "30"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting rtp_app");
    let mut messages = BufReader::new(receiver.stderr.take().expect("stderr")).lines();
    assert!(
        messages.next().is_some_and(|line| line.is_ok_and(|line| line.contains("receiving on")))
    );
    let mut payload = receiver.stdout.take().expect("stdout");
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        payload.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut tx = command(&["tx", "--leg", &leg, "--input", "-", "--format", "TS"]);
    tx.stdin(Stdio::piped());
    let mut tx = App::spawn(tx);
    feed(tx.stdin(), &stream);
    tx.end().good();
    assert!(wait(&mut receiver).is_some_and(|status| status.success()));
    let bytes = reading.join().expect("the reader").expect("the payload");
    assert!(bytes == stream, "the bytes differ");
    let rest: Vec<String> = messages.map_while(Result::ok).collect();
    assert!(rest.iter().any(|line| line.starts_with("received")), "the summary: {rest:?}");
}

/// The samples of a WAV file.
fn samples(file: &[u8]) -> &[u8] {
    let mut at = 12;
    loop {
        let len = u32::from_le_bytes(file[at + 4..at + 8].try_into().expect("4 bytes")) as usize;
        if &file[at..at + 4] == b"data" {
            return &file[at + 8..at + 8 + len];
        }
        at += 8 + len + len % 2;
    }
}

#[test]
fn audio_arrives_as_a_wav_sample_for_sample() {
    for (bits, format) in [(24, "L24/48000/2"), (16, "L16/48000/2")] {
        let dir = tempfile::tempdir().expect("a directory");
        let (input, out) = (dir.path().join("in.wav"), dir.path().join("out.wav"));
        // 100 ms and a packet that is not full.
        let sound = noise(usize::from(bits) / 8 * 2 * 4823, u64::from(bits));
        fs::write(&input, wav(2, bits, &sound)).expect("a file");
        let port = free_port();
        let mut rx = listening(port, &["--format", format, "--out", text(&out), "--json"]);
        rx.json(|_| true);
        let leg = format!("127.0.0.1:{port}");
        let tx =
            run(&["tx", "--leg", &leg, "--input", text(&input), "--json"]).good().last_report();
        assert_eq!(figure(&tx, "sent"), 101, "1 ms each");
        assert_eq!(figure(&tx, "clock_rate"), 48_000);
        let report = rx.end().good().last_report();
        assert_eq!((figure(&report, "packets"), figure(&report, "clock_rate")), (101, 48_000));
        assert!(samples(&fs::read(&out).expect("the output")) == sound, "{format} differs");
    }
}

#[test]
fn a_session_description_written_by_tx_is_enough_for_rx() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let sound = noise(3 * 2 * 480, 9);
    fs::write(at("in.wav"), wav(2, 24, &sound)).expect("a file");
    let port = free_port();
    let leg = format!("127.0.0.1:{port}");
    let (input, sdp, out) = (at("in.wav"), at("s.sdp"), at("out.wav"));
    let tx = ["tx", "--leg", &leg, "--input", text(&input), "--sdp", text(&sdp)];
    // Once into a socket that nobody reads, for the description.
    let holder = UdpSocket::bind(("127.0.0.1", port)).expect("the port");
    run(&tx).good();
    drop(holder);
    let described = fs::read_to_string(&sdp).expect("the description");
    assert!(described.contains(&format!("m=audio {port} RTP/AVP 97")), "{described}");
    assert!(described.contains("a=rtpmap:97 L24/48000/2"), "{described}");
    let mut rx = App::start(&["rx", "--sdp", text(&sdp), "--out", text(&out), "--json"]);
    rx.json(|_| true);
    run(&tx).good();
    rx.end().good();
    assert!(samples(&fs::read(&out).expect("the output")) == sound, "the samples differ");
}

#[test]
fn a_capture_is_written_and_sent_again_with_its_own_headers() {
    let dir = tempfile::tempdir().expect("a directory");
    let pcap = dir.path().join("x.pcap");
    let port = free_port();
    let mut rx = listening(port, &["--pcap", text(&pcap), "--json"]);
    let sender = Sender::to(port);
    for sequence in 100..120 {
        sender.send(sequence, &[sequence as u8; 50]);
    }
    until_received(&mut rx, 20);
    sender.bye();
    rx.end().good();
    let inspected = run(&["inspect", text(&pcap), "--json"]).good().last_report();
    assert_eq!((figure(&inspected, "received"), figure(&inspected, "lost")), (20, 0));
    assert_eq!(inspected["streams"][0]["destination"], format!("127.0.0.1:{port}").as_str());
    let from = sender.socket.local_addr().expect("its address").to_string();
    assert_eq!(inspected["streams"][0]["source"], from.as_str());

    let port = free_port();
    let mut rx = listening(port, &["--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    run(&["tx", "--leg", &leg, "--input", text(&pcap)]).good();
    // The capture's source gets a BYE of its own: rx ends.
    let report = rx.end().good().last_report();
    assert_eq!(figure(&report, "ssrc"), u64::from(SSRC));
    assert_eq!((figure(&report, "packets"), figure(&report, "bytes")), (20, 1000));
    assert_eq!((figure(&report, "first_sequence"), figure(&report, "last_sequence")), (100, 119));
}

#[test]
fn a_capture_keeps_its_spacing_and_can_change_its_ssrc() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.pcap");
    let packets: Vec<_> = (0..30).map(|n| rtp(n, u32::from(n) * 900, 7, 33, b"x")).collect();
    fs::write(&path, capture(&packets)).expect("a file");
    let port = free_port();
    let mut rx = listening(port, &["--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    run(&["tx", "--leg", &leg, "--input", text(&path), "--ssrc", "0x99"]).good();
    let report = rx.end().good().last_report();
    assert_eq!(figure(&report, "ssrc"), 0x99);
    // 29 intervals of 10 ms; on a busy machine the first may leave late, and the last on time.
    assert!(report["streams"][0]["duration_s"].as_f64() >= Some(0.2), "{report}");
}

#[test]
fn a_bye_ends_rx_only_when_every_source_has_left() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--interval", "0.05"]);
    let sender = Sender::to(port);
    for sequence in 0..3 {
        sender.send_as(1, sequence, b"a");
        sender.send_as(2, sequence, b"b");
    }
    rx.json(|report| report["streams"].as_array().is_some_and(|streams| streams.len() == 2));
    sender.bye_as(1);
    // Still there well after the BYE: it answers to the other source.
    for sequence in 3..10 {
        sender.send_as(2, sequence, b"b");
        let packets = u64::from(sequence) + 1;
        rx.json(|report| {
            let streams = report["streams"].as_array().expect("streams");
            streams.iter().any(|s| s["ssrc"] == 2 && s["packets"].as_u64() >= Some(packets))
        });
    }
    sender.bye_as(2);
    let report = rx.end().good().last_report();
    balances(&report);
    let streams = report["streams"].as_array().expect("streams");
    let packets: Vec<_> =
        streams.iter().map(|s| (s["ssrc"].as_u64(), s["packets"].as_u64())).collect();
    assert_eq!(packets, [(Some(1), Some(3)), (Some(2), Some(10))]);
    assert_eq!(streams[0]["ring"]["received"], 13, "the ring's books are everybody's");
}

#[test]
fn a_thousand_sources_share_a_ring_and_each_has_its_figures() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--interval", "0.2", "--ring-order", "13"]);
    let sender = Sender::to(port);
    for sequence in [0, 1, 3] {
        for ssrc in 0..1000 {
            // Every tenth has no gap.
            let sequence = if ssrc % 10 == 0 { sequence.min(2) } else { sequence };
            sender.send_as(ssrc, sequence, &[0; 160]);
        }
        let packets = if sequence == 3 { 3 } else { u64::from(sequence) + 1 };
        // One round at a time: the sockets of a small machine hold a thousand packets.
        rx.json(|report| {
            let streams = report["streams"].as_array().expect("streams");
            streams.len() == 1000 && streams.iter().all(|s| s["packets"].as_u64() == Some(packets))
        });
    }
    rx.signal(Signal::TERM);
    let report = rx.end().good().last_report();
    balances(&report);
    let streams = report["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 1000);
    for stream in streams {
        let gap = u64::from(stream["ssrc"].as_u64().expect("an SSRC") % 10 != 0);
        assert_eq!(stream["lost"].as_u64(), Some(gap), "{stream}");
        assert_eq!(stream["expected"].as_u64(), Some(3 + gap), "{stream}");
    }
    assert_eq!(streams[0]["ring"]["received"], 3000);
    assert_eq!(streams[0]["ring"]["lost"], 900);
}

#[test]
fn filters_leave_others_out_and_count_them() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--ssrc", "2"]);
    let sender = Sender::to(port);
    for sequence in 0..5 {
        sender.send_as(1, sequence, b"a");
        sender.send_as(2, sequence, b"b");
    }
    until_received(&mut rx, 5);
    sender.bye_as(2);
    let report = rx.end().good().last_report();
    balances(&report);
    assert_eq!((figure(&report, "packets"), figure(&report, "ssrc")), (5, 2));
    assert_eq!(report["streams"][0]["ring"]["dropped_filtered"], 5);
}

#[test]
fn count_duration_and_idle_timeout_end_rx() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let port = free_port();
    let rx = listening(port, &["--count", "5", "--out", text(&out), "--json"]);
    let sender = Sender::to(port);
    for sequence in 0..9 {
        sender.send(sequence, &[sequence as u8]);
    }
    rx.end().good();
    assert_eq!(fs::read(&out).expect("the output"), [0, 1, 2, 3, 4], "no more than --count");

    let port = free_port();
    for options in [["--duration", "0.3"], ["--idle-timeout", "0.3"]] {
        let ended = listening(port, &[&options[..], &["--json"]].concat()).end().good();
        let report = ended.last_report();
        assert_eq!((figure(&report, "received"), figure(&report, "lost")), (0, 0));
        assert!(report["streams"][0]["ssrc"].is_null());
    }
}

#[test]
fn sigterm_at_once_gives_the_summary() {
    let port = free_port();
    let rx = listening(port, &["--json"]);
    rx.signal(Signal::TERM);
    assert_eq!(figure(&rx.end().good().last_report(), "received"), 0);

    let text = listening(port, &[]);
    text.signal(Signal::INT);
    let ended = text.end().good();
    assert!(ended.stdout.iter().any(|line| line.contains("interrupted")), "{ended:?}");

    let holder = UdpSocket::bind(("127.0.0.1", port)).expect("the port");
    let leg = holder.local_addr().expect("its address").to_string();
    let mut tx = App::start(&["tx", "--leg", &leg, "--rate", "0.01"]);
    tx.message("sending to");
    tx.signal(Signal::TERM);
    let ended = tx.end().good();
    assert!(ended.stdout.iter().any(|line| line.starts_with("sent")), "{ended:?}");
}

#[test]
fn sigterm_in_the_middle_keeps_both_books_and_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let port = free_port();
    let mut rx = listening(port, &["--json", "--interval", "0.05", "--out", text(&out)]);
    let leg = format!("127.0.0.1:{port}");
    let tx = App::start(&["tx", "--leg", &leg, "--rate", "2000", "--payload", "100", "--json"]);
    until_received(&mut rx, 200);
    rx.signal(Signal::TERM);
    let report = rx.end().good().last_report();
    balances(&report);
    let bytes = fs::metadata(&out).expect("the output").len();
    assert_eq!(bytes, figure(&report, "bytes"), "all that was counted is in the file");
    tx.signal(Signal::INT);
    let sent = tx.end();
    let report = sent.last_report();
    let term = |name| figure(&report, name);
    assert_eq!(term("committed"), term("sent") + term("send_failed") + term("pending"));
}

#[test]
fn a_closed_standard_output_ends_quietly() {
    for options in [&["--json", "--interval", "0.05"][..], &["--out", "-"][..]] {
        let port = free_port();
        let leg = format!("127.0.0.1:{port}");
        let mut child = command(&[&["rx", "--leg", &leg], options].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting rtp_app");
        let mut messages = BufReader::new(child.stderr.take().expect("stderr")).lines();
        assert!(messages.next().is_some());
        drop(child.stdout.take());
        let sender = Sender::to(port);
        let mut sequence = 0;
        let end = std::time::Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting") {
                break status;
            }
            assert!(std::time::Instant::now() < end, "still running");
            // Until it notices: it has to write to see that nobody reads.
            sender.send(sequence, b"payload");
            sequence = sequence.wrapping_add(1);
            std::thread::yield_now();
        };
        assert_eq!(status.code(), Some(0), "{options:?}");
        let rest: Vec<String> = messages.map_while(Result::ok).collect();
        assert!(!rest.iter().any(|line| line.starts_with("rtp_app:")), "{rest:?}");
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut doctor = command(&["doctor"]);
    let status = doctor.stdout(writer).status().expect("running rtp_app");
    assert_eq!(status.code(), Some(0), "doctor");
}

#[test]
fn a_full_disk_is_reported_and_the_summary_still_told() {
    for options in [&["--out"][..], &["--pcap"], &["--format", "L24/48000/2", "--out"]] {
        let option = options.last().expect("an option");
        let port = free_port();
        let rx = listening(port, &[&["--json"], options, &["/dev/full"]].concat());
        let sender = Sender::to(port);
        for sequence in 0..3 {
            sender.send(sequence, &[0; 500]);
        }
        sender.bye();
        let ended = rx.end();
        assert_eq!(ended.status, Some(1), "{ended:?}");
        balances(&ended.last_report());
        let line = ended.stderr.last().expect("the reason");
        for part in [*option, "/dev/full", "No space left", "incomplete"] {
            assert!(line.contains(part), "{part} is not in: {line}");
        }
    }
    for arguments in [&["doctor"][..], &["--version"], &["list", "--json"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let ended = command(arguments).stdout(full).output().expect("running rtp_app");
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        let line = String::from_utf8_lossy(&ended.stderr);
        assert!(line.contains("standard output") && line.contains("No space left"), "{line}");
    }
}

#[test]
fn sigterm_ends_tx_that_waits_for_its_input() {
    let holder = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let leg = holder.local_addr().expect("its address").to_string();
    let start = || {
        let mut tx = command(&["tx", "--leg", &leg, "--input", "-", "--format", "TS", "--json"]);
        tx.stdin(Stdio::piped());
        App::spawn(tx)
    };
    // Before the first byte.
    let mut tx = start();
    let input = tx.stdin();
    tx.message("reading standard input");
    tx.signal(Signal::TERM);
    assert_eq!(tx.end().good().last_report()["streams"].as_array().map(Vec::len), Some(0));
    drop(input);
    // In the middle.
    let mut tx = start();
    let mut input = tx.stdin();
    std::io::Write::write_all(&mut input, &transport_stream(700, 20_000_000)).expect("writing");
    tx.message("sending to");
    tx.signal(Signal::TERM);
    let report = tx.end().good().last_report();
    let term = |name| figure(&report, name);
    assert_eq!(term("committed"), term("sent") + term("send_failed") + term("pending"));
}

#[test]
fn a_file_can_be_sent_again_and_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (input, out) = (dir.path().join("in.ts"), dir.path().join("out.ts"));
    let stream = transport_stream(70, 20_000_000);
    fs::write(&input, &stream).expect("a file");
    let port = free_port();
    let mut rx = listening(port, &["--out", text(&out), "--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    run(&["tx", "--leg", &leg, "--input", text(&input), "--loop", "--count", "25"]).good();
    let report = rx.end().good().last_report();
    assert_eq!((figure(&report, "packets"), figure(&report, "restarts")), (25, 0));
    let expected: Vec<u8> = stream.iter().copied().cycle().take(25 * 1316).collect();
    assert!(fs::read(&out).expect("the output") == expected, "the bytes differ");
}

#[test]
fn a_transport_stream_without_clock_references_goes_at_the_bit_rate_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("in.ts");
    // Null packets (PID 0x1fff): no PCR anywhere.
    let packet: Vec<u8> = [0x47, 0x1f, 0xff, 0x10].into_iter().chain([0xff; 184]).collect();
    fs::write(&input, packet.repeat(7 * 21)).expect("a file");
    let port = free_port();
    let mut rx = listening(port, &["--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    // 1,316 bytes every 10 ms.
    run(&["tx", "--leg", &leg, "--input", text(&input), "--bitrate", "1052800"]).good();
    let report = rx.end().good().last_report();
    assert_eq!(figure(&report, "packets"), 21);
    assert!(report["streams"][0]["duration_s"].as_f64() >= Some(0.12), "{report}");
}

#[test]
fn raw_audio_comes_from_standard_input() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out.wav");
    let sound = noise(6 * 48 * 20, 5);
    let port = free_port();
    let mut rx = listening(port, &["--format", "L24/48000/2", "--out", text(&out), "--json"]);
    rx.json(|_| true);
    let leg = format!("127.0.0.1:{port}");
    let mut tx = command(&["tx", "--leg", &leg, "--input", "-", "--format", "L24/48000/2"]);
    tx.stdin(Stdio::piped());
    let mut tx = App::spawn(tx);
    feed(tx.stdin(), &sound);
    tx.end().good();
    rx.end().good();
    // A WAV is little endian, the network big endian.
    let swapped: Vec<u8> =
        sound.chunks(3).flat_map(|sample| sample.iter().rev().copied()).collect();
    assert!(samples(&fs::read(&out).expect("the output")) == swapped, "the samples differ");
}

#[test]
fn tx_to_a_port_that_nobody_has_goes_on() {
    let leg = format!("127.0.0.1:{}", free_port());
    let ended = run(&["tx", "--leg", &leg, "--rate", "500", "--count", "50", "--json"]).good();
    let report = ended.last_report();
    assert_eq!((figure(&report, "sent"), figure(&report, "send_failed")), (50, 0));
}

#[test]
fn interval_lines_tell_the_differences() {
    let port = free_port();
    let mut rx = listening(port, &["--json", "--interval", "0.05"]);
    let sender = Sender::to(port);
    let mut sum = 0;
    let mut total = 0;
    let mut lines = 0;
    for sequence in 0..20 {
        sender.send(sequence, b"12345");
        while total < u64::from(sequence) + 1 {
            let report = parse(&rx.line(|_| true));
            balances(&report);
            sum += report["interval"]["packets"].as_u64().expect("packets");
            total = figure(&report, "packets");
            lines += 1;
            assert!(report["interval"]["duration_s"].is_f64());
        }
    }
    assert_eq!(sum, total, "the intervals add up over {lines} lines");
    sender.bye();
    let last = rx.end().good().last_report();
    assert!(last.get("interval").is_none(), "the last line is not an interval");
}
