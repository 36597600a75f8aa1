//! Readers in other processes, and what one process sees of another's streams.
//!
//! The other processes are this test program itself, told by an environment variable what to do.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rtp_mgr::ring::header;
use rtp_mgr::{
    Attached, Direction, Error, Item, Mode, Receiver, ReceiverBuilder, Transmitter, list, stat,
};
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(20);
/// Names the stream that a child reads.
const CHILD: &str = "RTP_MGR_TEST_CHILD";
/// Sequence number of the last packet.
const LAST: u16 = 60_000;

fn name(of: &str) -> String {
    format!("test-{of}-{}", std::process::id())
}

fn builder() -> ReceiverBuilder {
    Receiver::builder().leg("127.0.0.1:0".parse().unwrap()).rtcp(false)
}

fn sender(rx: &Receiver) -> UdpSocket {
    let tx = UdpSocket::bind("127.0.0.1:0").unwrap();
    tx.connect(rx.local_addr(0).unwrap()).unwrap();
    tx
}

fn send(tx: &UdpSocket, sequence: u16) {
    let mut packet = [sequence as u8; 100];
    header::build(&mut packet, false, 96, sequence, 0, 7).unwrap();
    tx.send(&packet).unwrap();
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// What a child does: reads up to the last packet, and tells how many it read and missed.
#[test]
#[ignore = "run by the other tests as a process of its own"]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let mut attached = Attached::open(&name, Mode::Lossy).unwrap();
    println!("child attached");
    let mut read = 0;
    loop {
        let Some(batch) = attached.read(LONG).unwrap() else { break };
        let mut last = false;
        for item in &batch {
            if let Item::Packet(packet) = item {
                assert!(packet.payload().iter().all(|b| *b == packet.sequence_number() as u8));
                read += 1;
                last |= packet.sequence_number() == LAST;
            }
        }
        drop(batch);
        if last {
            break;
        }
    }
    println!("child read {read} missed {}", attached.missed());
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    /// A child that is attached to `name`.
    fn start(name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, lines };
        process.line("child attached");
        process
    }

    /// The line of the child's output with this text.
    fn line(&mut self, text: &str) -> String {
        loop {
            let line = self.lines.next().expect("the child says it").unwrap();
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What the child read and missed.
    fn figures(mut self) -> (u64, u64) {
        let line = self.line("child read");
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(self.child.wait().unwrap().success());
        (numbers[0], numbers[1])
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends packets one by one and reads each as the owner.
fn go_on(rx: &mut Receiver, tx: &UdpSocket, sequences: impl Iterator<Item = u16>) -> u64 {
    let mut read = 0;
    for sequence in sequences {
        send(tx, sequence);
        assert_eq!(rx.read(LONG).unwrap().unwrap().len(), 1);
        read += 1;
    }
    read
}

#[test]
fn a_reader_in_another_process_reads_all_that_is_published_after_it_came() {
    let name = name("reads");
    let mut rx = builder().publish(&name).ring_order(12).open().unwrap();
    let tx = sender(&rx);
    go_on(&mut rx, &tx, 0..10);
    let one = Process::start(&name);
    let two = Process::start(&name);
    assert_eq!(rx.stats().counters().readers, 3);
    let sent = go_on(&mut rx, &tx, (10..1_000).chain([LAST]));
    assert_eq!(one.figures(), (sent, 0));
    assert_eq!(two.figures(), (sent, 0));
    wait_for("both to be noticed as gone", || rx.stats().counters().readers == 1);
}

#[test]
fn a_killed_reader_is_forgotten_and_stops_nobody() {
    let name = name("killed");
    let mut rx = builder().publish(&name).ring_order(6).open().unwrap();
    let tx = sender(&rx);
    for round in 0..20 {
        let process = Process::start(&name);
        go_on(&mut rx, &tx, round * 100..round * 100 + 50);
        process.signal(Signal::KILL);
        go_on(&mut rx, &tx, round * 100 + 50..round * 100 + 100);
        wait_for("the reader to be forgotten", || rx.stats().counters().readers == 1);
    }
    assert_eq!(rx.stats().counters().published, 2_000);
    assert_eq!(rx.stats().counters().dropped_ring_full, 0);
}

#[test]
fn a_stopped_reader_misses_exactly_what_was_overwritten_and_stops_nobody() {
    let name = name("stopped");
    let mut rx = builder().publish(&name).ring_order(6).open().unwrap();
    let tx = sender(&rx);
    let process = Process::start(&name);
    process.signal(Signal::STOP);
    let sent = go_on(&mut rx, &tx, (0..5_000).chain([LAST]));
    assert_eq!(rx.stats().counters().dropped_ring_full, 0);
    process.signal(Signal::CONT);
    let (read, missed) = process.figures();
    assert_eq!(read + missed, sent);
    assert!(missed >= sent - 5_000, "a ring of 64 holds not more: {missed}");
}

#[test]
fn reliable_reading_is_the_owners_to_grant() {
    let name = name("reliable");
    let _rx = builder().publish(&name).open().unwrap();
    let refused = Attached::open(&name, Mode::Reliable).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("allow_reliable"), "{refused}");
    Attached::open(&name, Mode::Lossy).unwrap();
}

#[test]
fn what_is_not_there_or_not_published_cannot_be_attached_to() {
    let refused = Attached::open("no-such-stream", Mode::Lossy).unwrap_err();
    assert!(matches!(refused, Error::NoSuchStream { .. }), "{refused}");
    let rx = builder().open().unwrap();
    let refused = Attached::open(&rx.id().to_string(), Mode::Lossy).unwrap_err();
    assert!(refused.to_string().contains("publish"), "{refused}");
    let name = name("tx");
    let _tx = Transmitter::builder()
        .leg("127.0.0.1:9".parse().unwrap())
        .rtcp(false)
        .publish(&name)
        .open()
        .unwrap();
    let refused = Attached::open(&name, Mode::Lossy).unwrap_err();
    assert!(refused.to_string().contains("transmit"), "{refused}");
    let taken = builder().publish(&name).open().unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
}

#[test]
fn sixteen_readers_and_no_more() {
    let name = name("many");
    let rx = builder().publish(&name).open().unwrap();
    let mut attached: Vec<_> =
        (0..15).map(|_| Attached::open(&name, Mode::Lossy).unwrap()).collect();
    let refused = Attached::open(&name, Mode::Lossy).unwrap_err();
    assert!(refused.to_string().contains("16 readers"), "{refused}");
    assert_eq!(rx.stats().snapshot().readers.len(), 16);
    attached.pop();
    wait_for("a free place", || Attached::open(&name, Mode::Lossy).is_ok());
}

#[test]
fn streams_are_listed_with_their_figures_while_they_live() {
    let name = name("listed");
    let mut rx = builder().publish(&name).open().unwrap();
    let plain = builder().open().unwrap();
    let hidden = builder().announce(false).open().unwrap();
    let tx = sender(&rx);
    go_on(&mut rx, &tx, 0..7);
    let streams = list().unwrap();
    let find = |rx: &Receiver| streams.iter().find(|stream| stream.id == rx.id());
    let found = find(&rx).unwrap();
    assert_eq!(found.name.as_deref(), Some(&*name));
    assert_eq!((found.direction, found.owner_pid), (Direction::Receive, std::process::id()));
    assert_eq!(found.legs, ["127.0.0.1:0"]);
    assert_eq!(find(&plain).unwrap().name, None);
    assert!(find(&hidden).is_none());
    for by in [name.clone(), rx.id().to_string()] {
        let (info, stats) = stat(&by).unwrap();
        assert_eq!(info.id, rx.id());
        let (theirs, ours) = (stats.snapshot(), rx.stats().snapshot());
        assert_eq!(theirs.counters.published, 7);
        assert_eq!(theirs.sources[0].figures, ours.sources[0].figures);
        assert_eq!((theirs.head, theirs.slot_count), (ours.head, ours.slot_count));
    }
    let id = rx.id();
    drop(rx);
    assert!(!list().unwrap().iter().any(|stream| stream.id == id));
    assert!(matches!(stat(&name).unwrap_err(), Error::NoSuchStream { .. }));
}
