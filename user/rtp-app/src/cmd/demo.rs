//! `rtp_app demo`: a real programme, sent to ourselves over loopback and checked to the last bit.
//!
//! Two ordinary streams of the library: a transmit stream on this thread, a receive stream on
//! another. Both sides are shown from their figures, as `tx` and `rx` show them.

use std::fmt::Write as _;
use std::io::Cursor;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rtp_mgr::{Item, Leg, Receiver, Stats, StreamSnapshot, Transmitter};
use rtp_mgr_ring::abi::{ReaderStatus, SLOT_STRIDE_MIN, StreamCounters};
use sha2::{Digest, Sha256};

use super::tx::replay::Replay;
use super::tx::send::{Limit, Pacing, Round, Sender};
use crate::cli::DemoArgs;
use crate::error::Failure;
use crate::figures::{Intervals, receive_report, transmit_stream};
use crate::live::{Panel, REDRAW};
use crate::media::ts::TsSource;
use crate::media::{Input, MediaInfo, MediaSource, programme};
use crate::output::{DemoReport, Engine, Report, SCHEMA, Stream, TxStream, utc_now, write_line};
use crate::signals::{LOOK, Stop};
use crate::text;

/// How long the receive stream waits for a missing packet.
const REORDER: Duration = Duration::from_millis(20);
/// Quiet for this long after the last packet was sent: nothing more comes.
const QUIET: Duration = Duration::from_millis(300);
/// Between lines where no terminal redraws them.
const LINE: Duration = Duration::from_secs(1);
/// Bytes of an RTP header without CSRC and extension (RFC 3550 section 5.1).
const RTP_HEADER: usize = 12;

/// Runs the command.
///
/// # Errors
/// A stream cannot be opened, or what arrived is not what was sent.
pub fn run(args: &DemoArgs, stop: &Stop) -> Result<(), Failure> {
    if !args.json {
        crate::print("making a programme: a moving picture and a tone, as MPEG-TS\n")?;
    }
    let programme = programme::generate(args.duration);
    let sent = hex(&Sha256::digest(&programme));
    let total = programme.len() as u64;
    let input = Input::pipe("the programme", Box::new(Cursor::new(programme)));
    let source = TsSource::open(input, None).map_err(|error| Failure::media("demo:", &error))?;
    let mut streams = Streams::open(args, source.info())?;
    let outcome = stream(&mut streams, Box::new(source), total, args, stop)?;
    let report = outcome.report(sent, total);
    if args.json {
        write_line(&mut std::io::stdout().lock(), &report).map_err(Failure::stdout)?;
    } else {
        crate::print(&summary(&report, stop.requested()))?;
    }
    if report.identical || stop.requested() {
        return Ok(());
    }
    Err(Failure::failed("demo: what arrived is not what was sent"))
}

/// Both ends.
struct Streams {
    receiver: Receiver,
    transmitter: Transmitter,
    receive_leg: String,
    known: TxStream,
}

impl Streams {
    fn open(args: &DemoArgs, info: &MediaInfo) -> Result<Self, Failure> {
        let any_port = Leg::new(Ipv4Addr::LOCALHOST.into(), 0);
        let receiver = Receiver::builder()
            .engine(args.engine.into())
            .leg(any_port.clone())
            .ordered(REORDER)
            .open()
            .map_err(Failure::library)?;
        let port = receiver.local_addr(0).map_or(0, |address| address.port());
        let leg = any_port.with_port(port);
        let stride = ((RTP_HEADER + info.payload_max) as u32).max(SLOT_STRIDE_MIN);
        let transmitter = Transmitter::builder()
            .engine(args.engine.into())
            .leg(leg.clone())
            .slot_stride(stride)
            .payload_type(info.payload_type)
            .clock_rate(info.clock_rate.unwrap_or(90_000))
            .open()
            .map_err(Failure::library)?;
        let known = TxStream {
            id: transmitter.id().to_string(),
            ssrc: Some(transmitter.ssrc()),
            payload_type: Some(info.payload_type),
            destinations: vec![leg.to_string()],
            clock_rate: info.clock_rate,
            ..TxStream::default()
        };
        Ok(Self { receiver, transmitter, receive_leg: leg.to_string(), known })
    }
}

/// What came of it.
struct Outcome {
    engine: Engine,
    transmit: TxStream,
    received: Report,
    digest: String,
    duration: Duration,
}

impl Outcome {
    fn report(self, sha256_sent: String, programme_bytes: u64) -> DemoReport {
        DemoReport {
            schema: SCHEMA,
            engine: self.engine,
            time: utc_now(),
            last: true,
            identical: sha256_sent == self.digest,
            sha256_sent,
            sha256_received: self.digest,
            programme_bytes,
            duration_s: self.duration.as_secs_f64(),
            transmit: self.transmit,
            receive: self.received.streams.into_iter().next().unwrap_or_default(),
        }
    }
}

/// Sends on this thread, receives on another.
fn stream(
    streams: &mut Streams,
    source: Box<TsSource>,
    total: u64,
    args: &DemoArgs,
    stop: &Stop,
) -> Result<Outcome, Failure> {
    let Streams { receiver, transmitter, receive_leg, known } = streams;
    let mut screen = Screen {
        panel: Panel::new(!args.json),
        json: args.json,
        total,
        receive: receiver.stats(),
        transmit: transmitter.stats(),
        receive_leg: std::slice::from_ref(receive_leg),
        known,
        engine: receiver.engine().into(),
        intervals: Intervals::new(StreamCounters::default()),
        next: Instant::now(),
    };
    let (receive, transmit) = (receiver.stats(), transmitter.stats());
    let ends_there = Limit::default();
    let mut sender =
        Sender::new(source, Pacing::Launch, ends_there, false, Replay::default(), 0x5254_5000);
    let all_sent = AtomicBool::new(false);
    let mut duration = Duration::ZERO;
    let digest = thread::scope(|scope| {
        let listening = scope.spawn(|| listen(receiver, &all_sent, stop));
        let sent = send(&mut sender, transmitter, &mut screen, stop);
        duration = sender.elapsed();
        all_sent.store(true, Ordering::Release);
        let heard = listening
            .join()
            .unwrap_or_else(|_| Err(Failure::failed("demo: the receiving thread has failed")));
        sent.and(heard)
    })?;
    screen.panel.clear();
    let mut transmitted = transmit_stream(&transmit.snapshot(), known.clone());
    transmitted.payload_bytes = sender.payload_bytes();
    transmitted.duration_s = duration.as_secs_f64();
    Ok(Outcome {
        engine: screen.engine,
        duration,
        transmit: transmitted,
        received: received(&receive.snapshot(), screen.receive_leg, true),
        digest,
    })
}

fn send(
    sender: &mut Sender,
    to: &mut Transmitter,
    screen: &mut Screen<'_>,
    stop: &Stop,
) -> Result<(), Failure> {
    let mut ended = false;
    while !stop.requested() {
        screen.tick()?;
        if ended {
            if to.flush(LOOK).map_err(Failure::library)? {
                return screen.tick();
            }
            continue;
        }
        match sender.round(to)? {
            Round::Ended => ended = true,
            Round::Went => {}
            Round::Wait(time) => thread::sleep(time.min(LOOK)),
        }
    }
    Ok(())
}

/// Reads until nothing more comes; returns the SHA-256 of all payload.
fn listen(from: &mut Receiver, all_sent: &AtomicBool, stop: &Stop) -> Result<String, Failure> {
    let mut hash = Sha256::new();
    let mut quiet_since = Instant::now();
    let mut stopped = false;
    loop {
        let Some(batch) = from.read(LOOK).map_err(Failure::library)? else { break };
        for item in &batch {
            if let Item::Packet(packet) = item {
                hash.update(packet.payload());
            }
        }
        if !batch.is_empty() || !all_sent.load(Ordering::Acquire) {
            quiet_since = Instant::now();
        }
        batch.release();
        if !stopped && (stop.requested() || quiet_since.elapsed() >= QUIET) {
            from.stop().map_err(Failure::library)?;
            stopped = true;
        }
    }
    Ok(hex(&hash.finalize()))
}

fn received(snapshot: &StreamSnapshot, leg: &[String], last: bool) -> Report {
    receive_report(snapshot, leg, &ReaderStatus::default(), last)
}

/// What the user sees.
struct Screen<'a> {
    panel: Panel,
    json: bool,
    total: u64,
    receive: Stats,
    transmit: Stats,
    receive_leg: &'a [String],
    known: &'a TxStream,
    engine: Engine,
    intervals: Intervals,
    next: Instant,
}

impl Screen<'_> {
    fn tick(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if self.json || now < self.next {
            return Ok(());
        }
        self.next = now + if self.panel.visible() { REDRAW } else { LINE };
        let snapshot = self.receive.snapshot();
        let interval = self.intervals.next(snapshot.counters);
        let report = received(&snapshot, self.receive_leg, false);
        let transmit = transmit_stream(&self.transmit.snapshot(), self.known.clone());
        let share = |bytes: u64| bytes as f64 / self.total.max(1) as f64;
        let payload = transmit.sent_bytes.saturating_sub(transmit.sent * RTP_HEADER as u64);
        if self.panel.visible() {
            let mut lines = vec![
                format!(
                    "tx  {}  sent {} packets, late {}",
                    text::bar(share(payload)),
                    text::grouped(transmit.sent),
                    transmit.sent_late,
                ),
                format!("rx  {}", text::bar(share(snapshot.counters.bytes))),
            ];
            lines.extend(text::receive_lines(&report, &interval));
            self.panel.show(&lines);
            return Ok(());
        }
        let ring = report.streams.first().and_then(|stream| stream.ring.clone());
        let ring = ring.unwrap_or_default();
        let jitter = report.streams.first().and_then(|stream| stream.jitter_ms);
        crate::print(&format!(
            "tx {:>4.0} %  sent {} | rx {:>4.0} %  received {}  {}  lost {}  jitter {}  [{} engine]\n",
            share(payload) * 100.0,
            text::grouped(transmit.sent),
            share(snapshot.counters.bytes) * 100.0,
            text::grouped(ring.unique),
            text::scaled(interval.bits_per_s, "b/s"),
            text::grouped(ring.lost),
            text::milliseconds(jitter),
            self.engine,
        ))
    }
}

fn summary(report: &DemoReport, interrupted: bool) -> String {
    let Stream { packets, lost, expected, reordered, jitter_mean_ms, jitter_max_ms, .. } =
        &report.receive;
    let mut text = format!(
        "sent        {} packets, {} of MPEG-TS in {:.1} s\n",
        text::grouped(report.transmit.sent),
        text::scaled(report.programme_bytes as f64, "B"),
        report.duration_s,
    );
    let _ = writeln!(
        text,
        "received    {} packets, lost {} of {}, reordered {}, jitter mean {} max {}",
        text::grouped(*packets),
        text::grouped(*lost),
        text::grouped(*expected),
        text::grouped(*reordered),
        text::milliseconds(*jitter_mean_ms),
        text::milliseconds(*jitter_max_ms),
    );
    let _ = writeln!(text, "engine      {}", report.engine);
    let _ = writeln!(text, "sent        SHA-256 {}", report.sha256_sent);
    let _ = writeln!(text, "received    SHA-256 {}", report.sha256_received);
    text.push_str(match (report.identical, interrupted) {
        (true, _) => "identical: every bit arrived as it was sent\n",
        (false, true) => "interrupted before the end\n",
        (false, false) => "DIFFERENT: what arrived is not what was sent\n",
    });
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
