//! Streams seen from other processes: list, stat, and readers that attach, misbehave and die.

mod common;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{App, balances, bye, figure, free_port, parse, rtp, run};
use rustix::process::Signal;
use serde_json::Value;

/// A stream that is published, and its hand-made sender.
struct Published {
    owner: App,
    name: String,
    socket: UdpSocket,
    port: u16,
    sequence: u16,
}

impl Published {
    fn start(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let port = free_port();
        let leg = format!("127.0.0.1:{port}");
        let arguments = ["rx", "--leg", &leg, "--publish", &name, "--json", "--interval", "0.02"];
        let mut owner = App::start(&[&arguments[..], options].concat());
        owner.message("receiving on");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        Self { owner, name, socket, port, sequence: 0 }
    }

    fn attach(&self, options: &[&str]) -> App {
        let arguments = ["rx", "--attach", &self.name, "--json", "--interval", "0.02"];
        let mut app = App::start(&[&arguments[..], options].concat());
        app.message("reading stream");
        app
    }

    fn send(&mut self, packets: u16) {
        for _ in 0..packets {
            let packet = rtp(self.sequence, u32::from(self.sequence) * 90, 7, 96, &[1; 100]);
            self.socket.send_to(&packet, ("127.0.0.1", self.port)).expect("sending");
            self.sequence = self.sequence.wrapping_add(1);
        }
    }

    /// Waits until the owner has counted everything that was sent.
    fn settle(&mut self) -> Value {
        let all = u64::from(self.sequence);
        self.owner.json(|report| report["streams"][0]["packets"].as_u64() == Some(all))
    }

    fn end(self) -> Value {
        self.socket.send_to(&bye(7), ("127.0.0.1", self.port + 1)).expect("sending");
        self.owner.end().good().last_report()
    }
}

#[test]
fn an_attached_reader_gets_what_the_owner_gets() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let mut stream = Published::start(&[]);
    let mut reader = stream.attach(&["--out", out.to_str().expect("UTF-8"), "--count", "50"]);
    stream.send(50);
    stream.settle();
    reader.json(|report| report["streams"][0]["packets"] == 50);
    let seen = reader.end().good().last_report();
    assert_eq!(std::fs::metadata(&out).expect("the output").len(), 5_000);
    assert_eq!(seen["streams"][0]["ring"]["lapped"], 0);
    let report = stream.end();
    balances(&report);
    assert_eq!((figure(&report, "packets"), figure(&report, "lost")), (50, 0));
}

#[test]
fn the_owners_end_ends_the_reader() {
    let mut stream = Published::start(&[]);
    let mut reader = stream.attach(&[]);
    stream.send(5);
    reader.json(|report| report["streams"][0]["packets"] == 5);
    stream.owner.signal(Signal::TERM);
    assert_eq!(figure(&reader.end().good().last_report(), "packets"), 5);
    stream.owner.end().good();
}

#[test]
fn the_owners_death_ends_the_reader_with_the_reason() {
    let stream = Published::start(&[]);
    let reader = stream.attach(&[]);
    stream.owner.signal(Signal::KILL);
    let ended = reader.end();
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let line = ended.stderr.last().expect("the reason");
    assert!(line.contains("gone") || line.contains("ended"), "{line}");
    // Nothing of it is listed any more, and the name can be used again.
    let list = parse(&run(&["list", "--json"]).good().stdout[0]);
    let names: Vec<_> =
        list["streams"].as_array().expect("streams").iter().map(|s| &s["name"]).collect();
    assert!(!names.contains(&&Value::from(stream.name.as_str())), "{list}");
}

#[test]
fn a_killed_or_stopped_reader_stops_nobody() {
    let mut stream = Published::start(&["--ring-order", "4", "--allow-reliable"]);
    let mut healthy = stream.attach(&[]);
    let killed = stream.attach(&[]);
    let stopped = stream.attach(&[]);
    killed.signal(Signal::KILL);
    stopped.signal(Signal::STOP);
    // Many times around a ring of 16, one packet at a time: the healthy ones follow.
    for _ in 0..200 {
        stream.send(1);
        stream.settle();
    }
    healthy.json(|report| report["streams"][0]["packets"] == 200);
    healthy.signal(Signal::TERM);
    healthy.end().good();
    // The stopped one learns what it missed; after it is continued it goes on.
    stopped.signal(Signal::CONT);
    stopped.signal(Signal::TERM);
    stopped.end().good();
    let again = stream.attach(&[]);
    again.signal(Signal::TERM);
    again.end().good();
    let report = stream.end();
    balances(&report);
    assert_eq!((figure(&report, "packets"), figure(&report, "lost")), (200, 0));
    assert_eq!(figure(&report, "dropped_ring_full"), 0);
}

#[test]
fn reliable_readers_need_the_owners_leave() {
    let stream = Published::start(&[]);
    let ended = run(&["rx", "--attach", &stream.name, "--reliable"]);
    let line = ended.refused(1);
    assert!(line.contains(&stream.name) && line.contains("reliable"), "{line}");
    stream.owner.signal(Signal::TERM);
    stream.owner.end().good();

    let mut stream = Published::start(&["--allow-reliable"]);
    let mut reader = stream.attach(&["--reliable"]);
    stream.send(10);
    reader.json(|report| report["streams"][0]["packets"] == 10);
    let stat = parse(&run(&["stat", &stream.name, "--json"]).good().stdout[0]);
    let readers = stat["readers"].as_array().expect("readers");
    assert_eq!(readers.iter().filter(|reader| reader["reliable"] == true).count(), 2, "{stat}");
    reader.signal(Signal::TERM);
    reader.end().good();
    stream.end();
}

#[test]
fn list_and_stat_show_the_same_figures_as_the_owner() {
    let mut stream = Published::start(&[]);
    stream.send(20);
    let own = stream.settle();
    let list = parse(&run(&["list", "--json"]).good().stdout[0]);
    let listed = list["streams"].as_array().expect("streams");
    let ours = listed.iter().find(|s| s["name"] == stream.name.as_str()).expect("our stream");
    assert_eq!(ours["direction"], "receive");
    assert_eq!(ours["id"], own["streams"][0]["id"]);
    assert_eq!(ours["legs"][0], format!("127.0.0.1:{}", stream.port).as_str());
    for name in [stream.name.as_str(), ours["id"].as_str().expect("an id")] {
        let stat = parse(&run(&["stat", name, "--json"]).good().stdout[0]);
        balances(&stat);
        assert_eq!(stat["info"]["state"], "running");
        assert!(stat["machine"]["backlog_dropped"].is_u64(), "{stat}");
        for figure in ["received", "packets", "bytes", "expected", "lost", "ssrc", "last_sequence"]
        {
            assert_eq!(stat["streams"][0][figure], own["streams"][0][figure], "{figure}");
        }
    }
    let text = run(&["stat", &stream.name]).good().stdout.join("\n");
    assert!(text.contains("balances") && !text.contains("DOES NOT"), "{text}");
    let text = run(&["list"]).good().stdout.join("\n");
    assert!(text.contains(&stream.name), "{text}");
    stream.end();
}

#[test]
fn stat_without_a_name_shows_every_stream() {
    let streams = [Published::start(&[]), Published::start(&[])];
    let lines = run(&["stat", "--json"]).good().stdout;
    let reports: Vec<_> = lines.iter().map(|line| parse(line)).collect();
    for stream in &streams {
        let ours = reports.iter().filter(|stat| stat["info"]["name"] == stream.name.as_str());
        assert_eq!(ours.count(), 1, "{}", stream.name);
    }
    for stream in streams {
        stream.owner.signal(Signal::TERM);
        stream.owner.end().good();
    }
}

#[test]
fn names_that_are_taken_or_unknown_are_refused() {
    let stream = Published::start(&[]);
    let leg = format!("127.0.0.1:{}", free_port());
    let taken = run(&["rx", "--leg", &leg, "--publish", &stream.name]);
    assert!(taken.refused(1).contains(&stream.name), "{taken:?}");
    let unknown = run(&["rx", "--attach", "no-such-stream"]);
    assert!(unknown.refused(1).contains("no-such-stream"), "{unknown:?}");
    let unknown = run(&["stat", "no-such-stream"]);
    assert!(unknown.refused(1).contains("no-such-stream"), "{unknown:?}");
    let bad = run(&["rx", "--leg", &leg, "--publish", "a/b"]);
    assert!(bad.refused(2).contains("--publish a/b"), "{bad:?}");
    stream.owner.signal(Signal::TERM);
    stream.owner.end().good();
}
