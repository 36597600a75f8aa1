//! `rtp_app list` and `rtp_app stat`: the streams that run on this machine, seen from outside.

use std::fmt::Write;

use rtp_mgr::{Direction, EngineKind, State, StreamInfo, StreamSnapshot};
use rtp_mgr_ring::abi::ReaderStatus;
use serde::Serialize;

use crate::cli::{EngineChoice, ListArgs, StatArgs};
use crate::error::Failure;
use crate::figures::{receive_report, transmit_stream};
use crate::machine::MachineLosses;
use crate::output::{Engine, Report, SCHEMA, Stream, TxReport, TxStream, utc_now, write_line};
use crate::text;

/// A stream as `list --json` shows it, and `stat --json` as `info`.
#[derive(Clone, Debug, Serialize)]
struct Listed {
    id: String,
    name: Option<String>,
    direction: &'static str,
    engine: Engine,
    pid: u32,
    uid: u32,
    legs: Vec<String>,
    /// Whether attached readers may be reliable.
    allow_reliable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

#[derive(Serialize)]
struct List {
    schema: u32,
    streams: Vec<Listed>,
}

/// What `stat --json` prints: the report of `rx --json` or `tx --json`, who owns the stream, and its
/// readers.
#[derive(Serialize)]
struct Stat<R> {
    #[serde(flatten)]
    report: R,
    info: Listed,
    readers: Vec<Reader>,
    /// Receive: where more of its packets may have been lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<MachineLosses>,
}

/// A reader as `stat --json` shows it.
#[derive(Clone, Debug, Serialize)]
struct Reader {
    reliable: bool,
    /// Positions published that it has not released.
    behind: u64,
    /// Positions overwritten before it released them.
    lapped: u64,
    /// Values of its tail that the engine refused.
    violations: u64,
    /// It stalled past the limit and was made lossy.
    demoted: bool,
    wakeups: u64,
}

/// Runs `list`.
///
/// # Errors
/// The streams cannot be looked up; standard output.
pub fn list(args: &ListArgs) -> Result<(), Failure> {
    let streams = find(args.engine)?;
    if args.json {
        let list = List { schema: SCHEMA, streams: streams.iter().map(listed).collect() };
        return write_line(&mut std::io::stdout().lock(), &list).map_err(Failure::stdout);
    }
    if streams.is_empty() {
        return crate::print("no streams of this user run here\n");
    }
    crate::print(&table(&streams))
}

/// Runs `stat`.
///
/// # Errors
/// No such stream; standard output.
pub fn stat(args: &StatArgs) -> Result<(), Failure> {
    if let Some(name) = &args.stream {
        let (info, stats) = rtp_mgr::stat(name).map_err(Failure::library)?;
        return show(args, &info, &stats.snapshot());
    }
    let mut shown = 0;
    for stream in find(args.engine)? {
        let (info, stats) = match rtp_mgr::stat(&stream.id.to_string()) {
            // It has ended since it was listed.
            Err(_) if find(args.engine)?.iter().all(|still| still.id != stream.id) => continue,
            found => found.map_err(Failure::library)?,
        };
        if shown > 0 && !args.json {
            crate::print("\n")?;
        }
        show(args, &info, &stats.snapshot())?;
        shown += 1;
    }
    if shown == 0 {
        return Err(Failure::failed("no streams of this user run here"));
    }
    Ok(())
}

fn show(args: &StatArgs, info: &StreamInfo, snapshot: &StreamSnapshot) -> Result<(), Failure> {
    if args.json {
        return print_json(info, snapshot);
    }
    crate::print(&match info.direction {
        Direction::Receive => receive_text(info, snapshot),
        Direction::Transmit => transmit_text(info, snapshot),
    })
}

fn find(engine: EngineChoice) -> Result<Vec<StreamInfo>, Failure> {
    let mut streams = rtp_mgr::list().map_err(Failure::library)?;
    streams.retain(|stream| match engine {
        EngineChoice::Auto => true,
        EngineChoice::Kernel => stream.engine == EngineKind::Kernel,
        EngineChoice::User => stream.engine == EngineKind::User,
    });
    Ok(streams)
}

/// Where its packets come from or go to.
fn paths(stream: &StreamInfo) -> String {
    if stream.legs.is_empty() { "simulated".into() } else { stream.legs.join(" and ") }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Receive => "receive",
        Direction::Transmit => "transmit",
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Configured => "configured",
        State::Running => "running",
        State::Stopped => "stopped",
    }
}

fn listed(stream: &StreamInfo) -> Listed {
    Listed {
        id: stream.id.to_string(),
        name: stream.name.clone(),
        direction: direction(stream.direction),
        engine: stream.engine.into(),
        pid: stream.owner_pid,
        uid: stream.owner_uid,
        legs: stream.legs.clone(),
        allow_reliable: stream.allow_reliable,
        state: None,
    }
}

fn table(streams: &[StreamInfo]) -> String {
    let mut text = format!(
        "{:<16}{:<20}{:<10}{:<8}{:>8}  {}\n",
        "ID", "NAME", "DIRECTION", "ENGINE", "PID", "LEGS"
    );
    for stream in streams {
        let _ = writeln!(
            text,
            "{:<16}{:<20}{:<10}{:<8}{:>8}  {}",
            stream.id.to_string(),
            stream.name.as_deref().unwrap_or("-"),
            direction(stream.direction),
            stream.engine.to_string(),
            stream.owner_pid,
            paths(stream),
        );
    }
    text
}

fn print_json(info: &StreamInfo, snapshot: &StreamSnapshot) -> Result<(), Failure> {
    let described = Listed { state: Some(state(snapshot.state)), ..listed(info) };
    let readers = readers(snapshot);
    let mut stdout = std::io::stdout().lock();
    match info.direction {
        Direction::Receive => {
            let report = report(info, snapshot);
            let machine = Some(MachineLosses::of_process(info.owner_pid));
            write_line(&mut stdout, &Stat { report, info: described, readers, machine })
        }
        Direction::Transmit => {
            let report = TxReport {
                schema: SCHEMA,
                engine: snapshot.engine.into(),
                time: utc_now(),
                last: true,
                streams: vec![transmitted(info, snapshot)],
                warnings: Vec::new(),
            };
            write_line(&mut stdout, &Stat { report, info: described, readers, machine: None })
        }
    }
    .map_err(Failure::stdout)
}

fn report(info: &StreamInfo, snapshot: &StreamSnapshot) -> Report {
    receive_report(snapshot, &info.legs, &ReaderStatus::default(), true)
}

fn transmitted(info: &StreamInfo, snapshot: &StreamSnapshot) -> TxStream {
    let known = TxStream {
        id: info.id.to_string(),
        destinations: info.legs.clone(),
        ..TxStream::default()
    };
    transmit_stream(snapshot, known)
}

fn readers(snapshot: &StreamSnapshot) -> Vec<Reader> {
    let active = snapshot.readers.iter().filter(|reader| reader.active != 0);
    active
        .map(|reader| Reader {
            reliable: reader.reliable != 0,
            behind: snapshot.head.wrapping_sub(reader.tail),
            lapped: reader.lapped,
            violations: reader.violations,
            demoted: reader.demoted != 0,
            wakeups: reader.wakeups,
        })
        .collect()
}

fn heading(info: &StreamInfo, snapshot: &StreamSnapshot) -> String {
    format!(
        "stream {}{}: {}, {}, {} engine, process {}, {} positions of {} bytes\n{}\n\n",
        info.id,
        info.name.as_ref().map_or_else(String::new, |name| format!(" ({name})")),
        direction(info.direction),
        state(snapshot.state),
        snapshot.engine,
        info.owner_pid,
        snapshot.slot_count,
        snapshot.slot_stride,
        paths(info),
    )
}

fn receive_text(info: &StreamInfo, snapshot: &StreamSnapshot) -> String {
    let report = report(info, snapshot);
    let mut text = heading(info, snapshot);
    let Some(Stream { ring: Some(ring), legs, .. }) = report.streams.first() else { return text };
    text.push_str(&text::books(ring));
    text.push('\n');
    text.push_str(&text::losses(ring));
    text.push('\n');
    text.push_str(&MachineLosses::of_process(info.owner_pid).text());
    let sources = report.streams.iter().filter(|stream| stream.ssrc.is_some());
    for (index, stream) in sources.enumerate() {
        let _ = write!(text, "{}{}", if index == 0 { "\n" } else { "" }, text::source_line(stream));
    }
    if legs.len() > 1 {
        text.push('\n');
        for leg in legs {
            let _ = writeln!(text, "{}", text::leg_line(leg));
            if let Some(skew) = &leg.skew_ms {
                let _ = writeln!(text, "    {}", text::skew_line(skew));
            }
        }
    }
    for (index, reader) in readers(snapshot).iter().enumerate() {
        let _ = writeln!(
            text,
            "{}reader {}: {}{}, {} behind, {} lapped, {} violations",
            if index == 0 { "\n" } else { "" },
            index + 1,
            if reader.reliable { "reliable" } else { "lossy" },
            if reader.demoted { " (demoted)" } else { "" },
            text::grouped(reader.behind),
            text::grouped(reader.lapped),
            text::grouped(reader.violations),
        );
    }
    text
}

fn transmit_text(info: &StreamInfo, snapshot: &StreamSnapshot) -> String {
    let mut text = heading(info, snapshot);
    text.push_str(&text::transmit_books(&transmitted(info, snapshot)));
    text
}
