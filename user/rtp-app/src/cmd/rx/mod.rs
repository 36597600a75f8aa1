//! `rtp_app rx`: receive, show, record.
//!
//! | module | what lives there |
//! |---|---|
//! | [`open`] | from the options to a stream |
//! | [`end`] | when it is enough |
//! | [`record`] | where the packets go |
//! | [`capture`] | `--pcap` |

mod capture;
mod end;
mod open;
mod record;

use std::io::Write;
use std::time::Instant;

use rtp_mgr::{Batch, Stats, StreamSnapshot};

use crate::cli::RxArgs;
use crate::error::Failure;
use crate::figures::{Intervals, receive_report};
use crate::live::{Panel, Timetable};
use crate::output::{Report, write_line};
use crate::signals::{LOOK, Stop};
use crate::stdio::Stdout;
use crate::text;

use end::{End, Reason};
use open::Feed;
use record::{Recorder, is_stdout};

/// Runs the command.
///
/// # Errors
/// A mistake in the options, a stream that cannot be opened, an output that cannot be written, or
/// a loss with `--fail-on-loss`.
pub fn run(args: &RxArgs, stop: &Stop) -> Result<(), Failure> {
    let settings = open::Settings::new(args)?;
    let mut feed = settings.open()?;
    let mut recorder = Recorder::open(args, settings.format(), &feed.stats(), stop)?;
    let mut screen = Screen::new(args, &feed, stop)?;
    let mut end = End::new(args);
    let ended = receive(&mut feed, &mut recorder, &mut screen, &mut end, stop);
    // Whatever ended it: what is on its way is taken, the files are made whole, the figures told.
    let drained = drain(&mut feed, &mut recorder, &mut end, ended.is_ok());
    let finished = recorder.finish();
    let report = screen.report(&feed, &screen.stats.snapshot(), true);
    let told =
        screen.summary(&report, ended.as_ref().ok(), finished.as_deref().unwrap_or_default());
    ended?;
    drained?;
    finished?;
    told?;
    if args.fail_on_loss { no_loss(&report) } else { Ok(()) }
}

/// Reads until the end.
fn receive(
    feed: &mut Feed,
    recorder: &mut Recorder,
    screen: &mut Screen,
    end: &mut End,
    stop: &Stop,
) -> Result<Reason, Failure> {
    let stats = feed.stats();
    let side = feed.side_channel();
    screen.begin(feed)?;
    loop {
        let now = Instant::now();
        if stop.requested() {
            return Ok(Reason::Signal);
        }
        if let Some(reason) = end.reached(now) {
            return Ok(reason);
        }
        if let Some(side) = &side {
            end.listen(side, now);
            if end.all_left(now, || stats.snapshot()) {
                return Ok(Reason::Bye);
            }
        }
        screen.tick(feed, now)?;
        let patience = end.patience(now, LOOK).min(screen.timetable.patience(now));
        let Some(batch) = feed.read(patience)? else { return Ok(Reason::Stopped) };
        if batch.is_empty() {
            recorder.flush()?;
        } else {
            let took = take(recorder, &batch, end.wanted())?;
            end.took(took, Instant::now());
        }
        batch.release();
    }
}

/// Records a batch, no more than `wanted` packets of it. Returns how many.
fn take(recorder: &mut Recorder, batch: &Batch<'_>, wanted: u64) -> Result<u64, Failure> {
    let mut took = 0;
    for item in batch {
        if took == wanted {
            break;
        }
        took += recorder.take(&item)?;
    }
    Ok(took)
}

/// Stops the stream and reads what is still in it. After a failure it is only released.
fn drain(
    feed: &mut Feed,
    recorder: &mut Recorder,
    end: &mut End,
    record: bool,
) -> Result<(), Failure> {
    if !feed.stop()? {
        return Ok(());
    }
    while let Some(batch) = feed.read(LOOK)? {
        if record {
            let took = take(recorder, &batch, end.wanted())?;
            end.took(took, Instant::now());
        }
        batch.release();
    }
    Ok(())
}

/// `--fail-on-loss`
fn no_loss(report: &Report) -> Result<(), Failure> {
    let Some(ring) = report.streams.first().and_then(|stream| stream.ring.as_ref()) else {
        return Ok(());
    };
    let causes = [
        (ring.lost, "lost before the ring"),
        (ring.dropped_ring_full, "dropped: the ring was full"),
        (ring.dropped_oversize, "dropped: longer than a slot"),
        (ring.late, "too late"),
        (ring.lapped, "overwritten before they were read"),
    ];
    let found: Vec<String> = causes
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, cause)| format!("{count} {cause}"))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "--fail-on-loss: of {} packets expected, {}",
        ring.expected,
        found.join(", ")
    )))
}

/// What the user sees.
struct Screen {
    json: Option<Stdout>,
    panel: Panel,
    /// The summary goes where the payload does not.
    summary_to_stderr: bool,
    legs: Vec<String>,
    stats: Stats,
    lines: Intervals,
    redraws: Intervals,
    timetable: Timetable,
}

impl Screen {
    fn new(args: &RxArgs, feed: &Feed, stop: &Stop) -> Result<Self, Failure> {
        let json = match args.json {
            true => Some(Stdout::new(stop).map_err(Failure::stdout)?),
            false => None,
        };
        let stats = feed.stats();
        let counters = stats.counters();
        let panel = Panel::new(json.is_none());
        let timetable = Timetable::new(args.interval, json.is_some(), &panel);
        Ok(Self {
            panel,
            json,
            summary_to_stderr: args.out.as_deref().is_some_and(is_stdout),
            legs: feed.legs(),
            stats,
            lines: Intervals::new(counters),
            redraws: Intervals::new(counters),
            timetable,
        })
    }

    /// Says that packets are listened for from now on.
    fn begin(&mut self, feed: &Feed) -> Result<(), Failure> {
        self.panel.note(&feed.greeting());
        for warning in feed.warnings() {
            self.panel.note(&format!("warning: {warning}"));
        }
        Ok(())
    }

    fn report(&self, feed: &Feed, snapshot: &StreamSnapshot, last: bool) -> Report {
        let mut report = receive_report(snapshot, &self.legs, &feed.own(), last);
        if last {
            report.warnings = feed.warnings();
        }
        report
    }

    /// Shows the figures when it is time.
    fn tick(&mut self, feed: &Feed, now: Instant) -> Result<(), Failure> {
        if self.timetable.line_is_due(now) {
            let snapshot = self.stats.snapshot();
            let mut report = self.report(feed, &snapshot, false);
            report.interval = Some(self.lines.next(snapshot.counters));
            self.print(&report)?;
        }
        if self.timetable.redraw_is_due(now) {
            let snapshot = self.stats.snapshot();
            let report = self.report(feed, &snapshot, false);
            let interval = self.redraws.next(snapshot.counters);
            self.panel.show(&text::receive_lines(&report, &interval));
        }
        Ok(())
    }

    fn print(&mut self, report: &Report) -> Result<(), Failure> {
        match &mut self.json {
            Some(stdout) => write_line(stdout, report).map_err(Failure::stdout),
            None => Ok(()),
        }
    }

    /// The last word.
    fn summary(
        &mut self,
        report: &Report,
        reason: Option<&Reason>,
        remarks: &[String],
    ) -> Result<(), Failure> {
        self.panel.clear();
        if self.json.is_some() {
            return self.print(report);
        }
        let mut summary = text::receive_summary(report);
        for remark in remarks {
            summary.push_str(&format!("output      {remark}\n"));
        }
        if let Some(reason) = reason {
            summary.push_str(&format!("ended       {}\n", reason.text()));
        }
        if self.summary_to_stderr {
            // Nobody is left to tell when this fails.
            let _ = std::io::stderr().write_all(summary.as_bytes());
            return Ok(());
        }
        crate::print(&summary)
    }
}
