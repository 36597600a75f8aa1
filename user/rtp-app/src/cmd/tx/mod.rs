//! `rtp_app tx`: send generated packets, media files, or a capture's RTP.
//!
//! | module | what lives there |
//! |---|---|
//! | [`open`] | from the options to a source and a stream |
//! | [`generate`] | generated packets |
//! | [`replay`] | packets that come with headers of their own |
//! | [`send`] | filling slots in time |

pub mod generate;
mod open;
pub mod replay;
pub mod send;

use std::time::{Duration, Instant};

use rtp_mgr::{Stats, StreamSnapshot, Transmitter};
use rtp_mgr_ring::abi::StreamCounters;

use crate::cli::TxArgs;
use crate::error::Failure;
use crate::figures::transmit_stream;
use crate::live::{Panel, Timetable};
use crate::output::{Engine, SCHEMA, TxReport, TxStream, utc_now, write_line};
use crate::signals::{LOOK, Stop};
use crate::stdio::Stdout;
use crate::text;

use open::Settings;
use send::{Round, Sender};

/// How long what is with the engine may take to leave at the end, beyond its due times.
const CLOSE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// A mistake in the options, an input that cannot be read, a stream that cannot be opened, or
/// packets that the path refused.
pub fn run(args: &TxArgs, stop: &Stop) -> Result<(), Failure> {
    let settings = match Settings::new(args, stop) {
        // An input that had said nothing yet.
        Err(_) if stop.requested() => return nothing_sent(args),
        settings => settings?,
    };
    let mut transmitter = settings.open()?;
    settings.write_description(&transmitter)?;
    let legs = settings.legs.clone();
    let rtcp_options = settings.is_replay().then(|| settings.rtcp_options());
    let mut screen = Screen::new(args, &settings, &transmitter, stop)?;
    let mut sender = settings.sender();
    let sent = send(&mut sender, &mut transmitter, &mut screen, stop);
    // Whatever ended it: what is with the engine leaves, BYE is said, the figures are told.
    let closed = transmitter.close(CLOSE).map_err(Failure::library);
    let mut remarks = sender.remarks();
    if let Some(options) = rtcp_options {
        let unsaid = sender.replay().bye(&legs, &options);
        if unsaid > 0 {
            remarks.push(format!("{unsaid} RTCP BYE could not be sent"));
        }
    }
    let told = closed.as_ref().map_or(Ok(()), |last| screen.summary(last, &sender, &remarks));
    let last = closed?;
    told?;
    // A signal ends an input in the middle and gives up what cannot leave: that is no failure.
    if stop.requested() {
        return Ok(());
    }
    sent?;
    all_sent(&last.counters)
}

fn send(
    sender: &mut Sender,
    to: &mut Transmitter,
    screen: &mut Screen,
    stop: &Stop,
) -> Result<(), Failure> {
    while !stop.requested() {
        let now = Instant::now();
        screen.tick(sender, now)?;
        match sender.round(to)? {
            Round::Ended => return flush(sender, to, screen, stop),
            Round::Went => {}
            Round::Wait(time) => {
                std::thread::sleep(time.min(LOOK).min(screen.timetable.patience(now)))
            }
        }
    }
    Ok(())
}

/// The summary when the end came before the stream.
fn nothing_sent(args: &TxArgs) -> Result<(), Failure> {
    if !args.json {
        return crate::print("sent        nothing: interrupted before the input began\n");
    }
    let report = TxReport {
        schema: SCHEMA,
        engine: Engine::User,
        time: utc_now(),
        last: true,
        streams: Vec::new(),
        warnings: Vec::new(),
    };
    write_line(&mut std::io::stdout().lock(), &report).map_err(Failure::stdout)
}

/// Waits until the last packets were due and have left.
fn flush(
    sender: &Sender,
    to: &mut Transmitter,
    screen: &mut Screen,
    stop: &Stop,
) -> Result<(), Failure> {
    while !stop.requested() && !to.flush(LOOK).map_err(Failure::library)? {
        screen.tick(sender, Instant::now())?;
    }
    Ok(())
}

/// Packets that the path refused are a failure, with the system's last word on it.
fn all_sent(counters: &StreamCounters) -> Result<(), Failure> {
    if counters.send_failed == 0 {
        return Ok(());
    }
    let cause = std::io::Error::from_raw_os_error(counters.send_errno as i32);
    Err(Failure::failed(format!(
        "{} of {} packets could not be sent; the last error was: {cause}",
        counters.send_failed, counters.committed
    )))
}

/// What the user sees.
struct Screen {
    json: Option<Stdout>,
    panel: Panel,
    stats: Stats,
    engine: Engine,
    known: TxStream,
    timetable: Timetable,
    drawn: (Instant, StreamCounters),
    warnings: Vec<String>,
}

impl Screen {
    fn new(
        args: &TxArgs,
        settings: &Settings<'_>,
        transmitter: &Transmitter,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let json = match args.json {
            true => Some(Stdout::new(stop).map_err(Failure::stdout)?),
            false => None,
        };
        let own_headers = !settings.is_replay();
        let known = TxStream {
            id: transmitter.id().to_string(),
            ssrc: own_headers.then(|| transmitter.ssrc()),
            payload_type: own_headers.then(|| settings.payload_type()),
            destinations: settings.legs.iter().map(ToString::to_string).collect(),
            clock_rate: settings.info().clock_rate,
            ..TxStream::default()
        };
        let panel = Panel::new(json.is_none());
        let engine = transmitter.engine();
        panel.note(&format!(
            "sending to {} ({engine} engine, stream {}); Ctrl-C ends",
            known.destinations.join(" and "),
            transmitter.id(),
        ));
        let warnings: Vec<String> =
            transmitter.warnings().iter().map(ToString::to_string).collect();
        for warning in &warnings {
            panel.note(&format!("warning: {warning}"));
        }
        let stats = transmitter.stats();
        let timetable = Timetable::new(args.interval, json.is_some(), &panel);
        let now = Instant::now();
        Ok(Self {
            json,
            panel,
            engine: engine.into(),
            known,
            timetable,
            drawn: (now, stats.counters()),
            stats,
            warnings,
        })
    }

    fn stream(&self, snapshot: &StreamSnapshot, sender: &Sender) -> TxStream {
        let mut stream = transmit_stream(snapshot, self.known.clone());
        stream.payload_bytes = sender.payload_bytes();
        stream.duration_s = sender.elapsed().as_secs_f64();
        if stream.ssrc.is_none() {
            stream.ssrc = sender.replay().only_ssrc();
        }
        stream
    }

    fn tick(&mut self, sender: &Sender, now: Instant) -> Result<(), Failure> {
        if self.timetable.line_is_due(now) {
            let stream = self.stream(&self.stats.snapshot(), sender);
            self.print(stream, false)?;
        }
        if self.timetable.redraw_is_due(now) {
            self.redraw(sender, now);
        }
        Ok(())
    }

    fn redraw(&mut self, sender: &Sender, now: Instant) {
        let snapshot = self.stats.snapshot();
        let counters = snapshot.counters;
        let (then, before) = std::mem::replace(&mut self.drawn, (now, counters));
        let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
        let packets = counters.sent.saturating_sub(before.sent) as f64 / seconds;
        let bits = counters.sent_bytes.saturating_sub(before.sent_bytes) as f64 * 8.0 / seconds;
        let stream = self.stream(&snapshot, sender);
        let mut lines = text::transmit_lines(&stream, self.engine, packets, bits);
        if let Some(total) = sender.total_bytes().filter(|total| *total > 0) {
            let done = stream.payload_bytes as f64 / total as f64;
            lines.push(format!("    {}", text::bar(done)));
        }
        self.panel.show(&lines);
    }

    fn print(&mut self, stream: TxStream, last: bool) -> Result<(), Failure> {
        let Some(stdout) = &mut self.json else { return Ok(()) };
        let report = TxReport {
            schema: SCHEMA,
            engine: self.engine,
            time: utc_now(),
            last,
            streams: vec![stream],
            warnings: if last { self.warnings.clone() } else { Vec::new() },
        };
        write_line(stdout, &report).map_err(Failure::stdout)
    }

    fn summary(
        &mut self,
        last: &StreamSnapshot,
        sender: &Sender,
        remarks: &[String],
    ) -> Result<(), Failure> {
        self.panel.clear();
        let stream = self.stream(last, sender);
        if self.json.is_some() {
            return self.print(stream, true);
        }
        let mut summary = text::transmit_summary(&stream);
        for remark in remarks {
            summary.push_str(&format!("input       {remark}\n"));
        }
        crate::print(&summary)
    }
}
