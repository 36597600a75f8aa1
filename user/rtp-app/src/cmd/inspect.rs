//! `rtp_app inspect FILE`: figures of each RTP source in a capture.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::capture::find::{ClockRates, Finder, Findings, FoundSource};
use crate::capture::{CaptureError, CaptureFile};
use crate::cli::InspectArgs;
use crate::error::Failure;
use crate::output::{Engine, Report, Stream, q4_ns_to_ms, write_line};
use crate::signals::Stop;
use crate::text::{grouped, share};

/// Reads the capture and prints what is in it.
///
/// # Errors
/// The file cannot be read or is not a capture. One that is truncated or damaged is an error too, after
/// what could be read was printed.
pub fn run(args: &InspectArgs, stop: &Stop) -> Result<(), Failure> {
    let failed = |error: &CaptureError| Failure::file("FILE", &args.file, error);
    let mut file = CaptureFile::open(&args.file).map_err(|error| failed(&error))?;
    let rates = args.clock_rates.iter().map(|rate| (rate.payload_type, rate.hz));
    let mut finder = Finder::new(ClockRates::new(rates));
    let error = loop {
        match file.next() {
            Ok(Some(frame)) if !stop.requested() => finder.frame(&frame),
            Ok(_) => break None,
            Err(error) if error.is_partial() => break Some(error),
            Err(error) => return Err(failed(&error)),
        }
    };
    let found = finder.finish();
    let mut report = report(&found);
    if stop.requested() {
        report.warnings.push(format!("interrupted after {} frames", found.frames));
    }
    for warning in &report.warnings {
        // Nobody is left to tell when this fails too.
        let _ = writeln!(std::io::stderr(), "rtp_app: {warning}");
    }
    report.warnings.extend(error.as_ref().map(ToString::to_string));
    let mut stdout = std::io::stdout().lock();
    if args.json {
        write_line(&mut stdout, &report).map_err(Failure::stdout)?;
    } else {
        stdout.write_all(table(&report, found.frames).as_bytes()).map_err(Failure::stdout)?;
    }
    error.map_or(Ok(()), |error| Err(failed(&error)))
}

fn report(found: &Findings) -> Report {
    let streams = found.sources.iter().zip(1..).map(|(source, id)| stream(source, id)).collect();
    let mut report = Report::now(Engine::User, true, streams, found.not_rtp);
    let joined = found.sources.iter().map(|source| source.joined).sum();
    let notes = [
        (
            joined,
            "datagrams hold several RTP packets each, joined by segmentation or receive offload: \
                  only the first of each counts; turn the offload off where you capture",
        ),
        (found.fragments, "UDP fragments are not put together: counted as not RTP (other)"),
        (
            found.broken_udp,
            "UDP datagrams with wrong or missing lengths: counted as not RTP (other)",
        ),
        (
            found.unknown_link,
            "frames of an interface whose link type is not known: not looked into",
        ),
    ];
    let notes = notes.into_iter().filter(|(count, _)| *count > 0);
    report.warnings.extend(notes.map(|(count, text)| format!("{count} {text}")));
    report
}

/// The figures of one source, as `rx` reports those of a stream.
fn stream(source: &FoundSource, id: usize) -> Stream {
    let figures = &source.figures;
    let jitter = |q4_ns: u64| source.clock_rate.map(|_| q4_ns_to_ms(q4_ns));
    let mean = q4_ns_to_ms(figures.jitter_sum_q4_ns) / figures.jitter_count.max(1) as f64;
    Stream {
        id: id.to_string(),
        ssrc: Some(source.key.ssrc),
        payload_type: Some(source.payload_type),
        source: Some(source.key.source.to_string()),
        destination: Some(source.key.destination.to_string()),
        received: figures.received + source.invalid,
        packets: figures.unique,
        bytes: figures.bytes,
        expected: figures.expected,
        lost: figures.lost,
        duplicate: figures.duplicate,
        reordered: figures.reordered,
        restarts: figures.restarts,
        dropped_invalid: source.invalid,
        clock_rate: source.clock_rate,
        jitter_ms: jitter(figures.jitter_q4_ns),
        jitter_mean_ms: source.clock_rate.map(|_| mean),
        jitter_max_ms: jitter(figures.jitter_max_q4_ns),
        first_sequence: Some(figures.first_sequence as u16),
        last_sequence: Some(figures.highest_sequence as u16),
        duration_s: figures.last_ns.saturating_sub(figures.first_ns) as f64 / 1e9,
        ..Stream::default()
    }
}

const COLUMNS: [&str; 15] = [
    "#",
    "source",
    "destination",
    "SSRC",
    "PT",
    "received",
    "lost",
    "",
    "duplicate",
    "reordered",
    "restarts",
    "invalid",
    "jitter mean ms",
    "max ms",
    "seconds",
];

/// The report as a table.
fn table(report: &Report, frames: u64) -> String {
    let mut text = String::new();
    if report.streams.is_empty() {
        let _ = writeln!(text, "no RTP in {} frames", grouped(frames));
    } else {
        let rows: Vec<_> = report.streams.iter().map(row).collect();
        let header = COLUMNS.map(str::to_owned);
        let width = |column: usize| {
            let cells = rows.iter().chain([&header]).map(|row| row[column].len());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
        for row in [&header].into_iter().chain(&rows) {
            let _ = writeln!(text, "{}", line(row, &widths));
        }
    }
    let other = &report.not_rtp;
    let _ = writeln!(
        text,
        "not RTP: RTCP {}, STUN {}, DTLS {}, other UDP {}",
        grouped(other.rtcp),
        grouped(other.stun),
        grouped(other.dtls),
        grouped(other.other)
    );
    text
}

fn row(stream: &Stream) -> [String; COLUMNS.len()] {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), |ms| format!("{ms:.3}"));
    [
        stream.id.clone(),
        text(&stream.source),
        text(&stream.destination),
        stream.ssrc.map_or_else(String::new, |ssrc| format!("0x{ssrc:08x}")),
        stream.payload_type.map_or_else(String::new, |pt| pt.to_string()),
        grouped(stream.received),
        grouped(stream.lost),
        format!("({})", share(stream.lost, stream.expected)),
        grouped(stream.duplicate),
        grouped(stream.reordered),
        grouped(stream.restarts),
        grouped(stream.dropped_invalid),
        ms(stream.jitter_mean_ms),
        ms(stream.jitter_max_ms),
        format!("{:.3}", stream.duration_s),
    ]
}

/// Addresses flush left, numbers flush right.
fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
        1..=3 | 7 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}
