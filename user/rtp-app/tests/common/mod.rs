//! Running the program as its users do, and waiting for what it says.

#![allow(dead_code)] // Each test file uses a part of this.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes this long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A running rtp_app; killed when dropped.
pub struct App {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// One that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

struct Lines {
    incoming: Receiver<String>,
    seen: Vec<String>,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, incoming) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { incoming, seen: Vec::new(), reader: Some(reader) }
    }

    fn find(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.incoming.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn rest(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading the output");
        }
        self.seen.extend(self.incoming.try_iter());
        std::mem::take(&mut self.seen)
    }
}

/// Where the streams of this test process are announced: not where those of the user are.
pub fn runtime_dir() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path()
}

/// The program with these arguments, not yet started.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rtp_app"));
    command.args(arguments).stdin(Stdio::null()).env("XDG_RUNTIME_DIR", runtime_dir());
    command
}

impl App {
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting rtp_app");
        let stdout = Lines::of(child.stdout.take().expect("stdout"));
        let stderr = Lines::of(child.stderr.take().expect("stderr"));
        Self { child, stdout, stderr }
    }

    /// Fails the test with everything that was said.
    fn give_up(&mut self, what: &str) -> ! {
        let _ = self.child.kill();
        panic!("{what}: {:?} {:?}", self.stdout.rest(), self.stderr.rest())
    }

    /// Its standard input, when the command was given a pipe.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a piped standard input")
    }

    /// Waits for a line of standard output.
    pub fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        match self.stdout.find(wanted) {
            Some(line) => line,
            None => self.give_up("no such line"),
        }
    }

    /// Waits for a line of standard output that is JSON with `wanted`.
    pub fn json(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        parse(&self.line(|line| wanted(&parse(line))))
    }

    /// Waits for a line of standard error.
    pub fn message(&mut self, wanted: &str) -> String {
        match self.stderr.find(|line| line.contains(wanted)) {
            Some(line) => line,
            None => self.give_up(wanted),
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("sending a signal");
    }

    /// Waits until it ends.
    pub fn end(mut self) -> Ended {
        let Some(status) = wait(&mut self.child) else { self.give_up("did not end") };
        Ended { status: status.code(), stdout: self.stdout.rest(), stderr: self.stderr.rest() }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The last line of standard output, which is the final report.
    pub fn last_report(&self) -> Value {
        let report = parse(self.stdout.last().unwrap_or_else(|| panic!("no output: {self:?}")));
        assert_eq!(report["final"], true, "{self:?}");
        assert_eq!(report["schema"], 1);
        report
    }

    /// Checks that it did what it should.
    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }

    /// Checks that it ended with this status and exactly one line on standard error.
    #[track_caller]
    pub fn refused(&self, status: i32) -> &str {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.stderr.len(), 1, "one line: {self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        &self.stderr[0]
    }
}

/// Waits for a child, at most [`LIMIT`]. `None`: still running.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        // Only the test's own patience: nothing is synchronised by it.
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Ended {
    App::start(arguments).end()
}

pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
}

/// A figure of the first stream of a report.
#[track_caller]
pub fn figure(report: &Value, name: &str) -> u64 {
    let value = &report["streams"][0][name];
    value.as_u64().unwrap_or_else(|| panic!("{name} is {value} in {report}"))
}

/// Checks the law of the books in a receive report.
#[track_caller]
pub fn balances(report: &Value) {
    let ring = &report["streams"][0]["ring"];
    let term = |name: &str| ring[name].as_u64().unwrap_or_else(|| panic!("{name} in {ring}"));
    let sum = [
        "published",
        "dropped_ring_full",
        "dropped_oversize",
        "dropped_invalid",
        "dropped_filtered",
        "duplicate",
        "late",
        "staged",
    ]
    .map(term)
    .iter()
    .sum::<u64>();
    assert_eq!(term("received"), sum, "{ring}");
}

/// A pair of UDP ports of 127.0.0.1, even and the one after it, that nobody has and the system
/// gives to nobody by itself (below its range of ephemeral ports).
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16 % 1000 * 20;
    loop {
        let port = 10_000 + (start + NEXT.fetch_add(2, Ordering::Relaxed)) % 20_000;
        let free = |port: u16| UdpSocket::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
}

/// Bytes that look like no others: a linear congruential sequence.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

/// An RTP packet (RFC 3550 section 5.1).
pub fn rtp(sequence: u16, timestamp: u32, ssrc: u32, payload_type: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x80, payload_type];
    packet.extend(sequence.to_be_bytes());
    packet.extend(timestamp.to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An RTCP BYE (RFC 3550 section 6.6) behind an empty receiver report (6.1: a compound packet).
pub fn bye(ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x80, 201, 0, 1];
    packet.extend(ssrc.to_be_bytes());
    packet.extend([0x81, 203, 0, 1]);
    packet.extend(ssrc.to_be_bytes());
    packet
}

/// A WAV file of these samples, 48 kHz.
pub fn wav(channels: u16, bits: u16, samples: &[u8]) -> Vec<u8> {
    let rate = 48_000_u32;
    let block = channels * bits / 8;
    let mut file = Vec::new();
    file.extend(b"RIFF");
    file.extend((36 + samples.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16_u32.to_le_bytes());
    file.extend(1_u16.to_le_bytes());
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * u32::from(block)).to_le_bytes());
    file.extend(block.to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(b"data");
    file.extend((samples.len() as u32).to_le_bytes());
    file.extend(samples);
    file
}

/// A transport stream of `packets` packets of 188 bytes with a PCR at a constant bit rate.
pub fn transport_stream(packets: usize, bits_per_second: u64) -> Vec<u8> {
    let mut stream = noise(packets * 188, 188);
    for (index, packet) in stream.chunks_exact_mut(188).enumerate() {
        packet[0] = 0x47;
        packet[1] = 0x01;
        packet[2] = 0x00;
        packet[3] = 0x10 | (index as u8 & 0x0f);
        if index % 20 == 0 {
            let ticks = (index * 188 + 10) as u64 * 8 * 27_000_000 / bits_per_second;
            let (base, extension) = (ticks / 300, ticks % 300);
            packet[3] |= 0x20;
            packet[4] = 7;
            packet[5] = 0x10;
            packet[6..10].copy_from_slice(&((base >> 1) as u32).to_be_bytes());
            packet[10] = ((base & 1) as u8) << 7 | 0x7e | (extension >> 8) as u8;
            packet[11] = extension as u8;
        }
    }
    stream
}

/// Writes bytes to a pipe and closes it.
pub fn feed(mut to: impl Write, bytes: &[u8]) {
    to.write_all(bytes).expect("writing to the program");
}

/// A pcap file (raw IP, microseconds) of these UDP payloads, from 192.0.2.1:5004 to 192.0.2.2:5004,
/// 10 ms apart.
pub fn capture(datagrams: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for (index, payload) in datagrams.iter().enumerate() {
        let (udp_len, ip_len) = (8 + payload.len() as u16, 28 + payload.len() as u16);
        let us = index as u32 * 10_000;
        for word in [1_700_000_000 + us / 1_000_000, us % 1_000_000, ip_len.into(), ip_len.into()] {
            file.extend(word.to_le_bytes());
        }
        // RFC 791 section 3.1; the checksums are zero, as offloaded ones are in captures.
        file.extend([0x45, 0]);
        file.extend(ip_len.to_be_bytes());
        file.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        for field in [5004, 5004, udp_len, 0] {
            file.extend(field.to_be_bytes());
        }
        file.extend(payload);
    }
    file
}
