//! `rtp_app consume` (and `consumer_app`): reads the bursts of the simulated DMA engine out of the
//! ring, checks their pattern, shows throughput and overflow.

use std::time::Instant;

use rtp_mgr::{Batch, Framing, Item, Receiver, SimConfig, Stats};
use rtp_mgr_ring::abi::StreamCounters;
use rtp_mgr_ring::pattern;

use crate::cli::ConsumeArgs;
use crate::error::Failure;
use crate::live::{Panel, Timetable};
use crate::output::{ConsumeReport, Engine, SCHEMA, write_line};
use crate::signals::{LOOK, Stop};
use crate::stdio::Stdout;
use crate::text::{grouped, scaled};

/// Runs the command.
///
/// # Errors
/// The stream cannot be opened, or what was read is not the pattern.
pub fn run(args: &ConsumeArgs, stop: &Stop) -> Result<(), Failure> {
    let sim = SimConfig {
        interval: args.dma_interval,
        burst: args.burst,
        packet_len: args.packet_len,
        framing: if args.rtp { Framing::Rtp } else { Framing::Raw },
    };
    let mut receiver = Receiver::builder()
        .engine(args.engine.into())
        .simulated(sim)
        .ring_order(args.ring_order)
        .open()
        .map_err(Failure::library)?;
    let mut screen = Screen::new(args, &receiver, stop)?;
    let mut check = Check::default();
    let consumed = consume(args, &mut receiver, &mut check, &mut screen, stop);
    let drained = drain(args, &mut receiver, &mut check);
    let report = screen.report(&check, true);
    let told = screen.summary(&report);
    consumed.and(drained).and(told)?;
    if check.errors == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!("{} packets were not the pattern", check.errors)))
}

fn consume(
    args: &ConsumeArgs,
    receiver: &mut Receiver,
    check: &mut Check,
    screen: &mut Screen,
    stop: &Stop,
) -> Result<(), Failure> {
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    loop {
        let now = Instant::now();
        let enough = args.count.is_some_and(|count| check.packets >= count);
        if stop.requested() || enough || deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(());
        }
        screen.tick(check, now)?;
        let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(now));
        let patience = left.min(LOOK).min(screen.timetable.patience(now));
        let Some(batch) = receiver.read(patience).map_err(Failure::library)? else { return Ok(()) };
        check.batch(&batch, args.count);
        batch.release();
    }
}

/// Stops the source and reads what it still had produced.
fn drain(args: &ConsumeArgs, receiver: &mut Receiver, check: &mut Check) -> Result<(), Failure> {
    receiver.stop().map_err(Failure::library)?;
    while let Some(batch) = receiver.read(LOOK).map_err(Failure::library)? {
        check.batch(&batch, args.count);
        batch.release();
    }
    Ok(())
}

/// Checks packets against the pattern, and their numbers against what the ring says is missing.
#[derive(Debug, Default)]
struct Check {
    packets: u64,
    errors: u64,
    expected: Option<u64>,
}

impl Check {
    fn batch(&mut self, batch: &Batch<'_>, most: Option<u64>) {
        for item in batch {
            match item {
                Item::Packet(_) if most.is_some_and(|most| self.packets >= most) => return,
                Item::Packet(packet) => self.packet(packet.payload()),
                Item::Gap(gap) => self.missing(gap.count().into()),
                Item::Discontinuity(missing) => self.missing(missing.count()),
            }
        }
    }

    fn packet(&mut self, bytes: &[u8]) {
        self.packets += 1;
        let number = pattern::check(bytes);
        let right = number.is_some() && self.expected.is_none_or(|wanted| number == Some(wanted));
        self.errors += u64::from(!right);
        self.expected = number.map(|number| number.wrapping_add(1));
    }

    /// 0: nobody knows how many.
    fn missing(&mut self, count: u64) {
        let known = self.expected.filter(|_| count > 0);
        self.expected = known.map(|expected| expected.wrapping_add(count));
    }
}

/// What the user sees.
struct Screen {
    json: Option<Stdout>,
    panel: Panel,
    stats: Stats,
    engine: Engine,
    timetable: Timetable,
    begin: Instant,
    drawn: (Instant, StreamCounters),
}

impl Screen {
    fn new(args: &ConsumeArgs, receiver: &Receiver, stop: &Stop) -> Result<Self, Failure> {
        let json = match args.json {
            true => Some(Stdout::new(stop).map_err(Failure::stdout)?),
            false => None,
        };
        let panel = Panel::new(json.is_none());
        let (engine, stats) = (receiver.engine(), receiver.stats());
        panel.note(&format!(
            "consuming the simulated DMA engine ({engine} engine, stream {}): {} packets of {} bytes \
             every {:?}; Ctrl-C ends",
            receiver.id(),
            args.burst,
            args.packet_len,
            args.dma_interval,
        ));
        let timetable = Timetable::new(args.interval, json.is_some(), &panel);
        let now = Instant::now();
        Ok(Self {
            json,
            panel,
            engine: engine.into(),
            timetable,
            begin: now,
            drawn: (now, stats.counters()),
            stats,
        })
    }

    fn report(&self, check: &Check, last: bool) -> ConsumeReport {
        let counters = self.stats.counters();
        ConsumeReport {
            schema: SCHEMA,
            engine: self.engine,
            last,
            bursts: counters.bursts,
            bytes_produced: counters.bytes_produced,
            bytes_consumed: counters.bytes_consumed,
            bytes_overflowed: counters.bytes_overflowed,
            packets: check.packets,
            pattern_errors: check.errors,
            duration_s: self.begin.elapsed().as_secs_f64(),
        }
    }

    fn tick(&mut self, check: &Check, now: Instant) -> Result<(), Failure> {
        if self.timetable.line_is_due(now) {
            let report = self.report(check, false);
            self.print(&report)?;
        }
        if self.timetable.redraw_is_due(now) {
            let counters = self.stats.counters();
            let (then, before) = std::mem::replace(&mut self.drawn, (now, counters));
            let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
            let bytes = counters.bytes_consumed.saturating_sub(before.bytes_consumed);
            self.panel.show(&[format!(
                "{}  bursts {}  packets {}  overflowed {} bytes  pattern errors {}",
                scaled(bytes as f64 / seconds, "B/s"),
                grouped(counters.bursts),
                grouped(check.packets),
                grouped(counters.bytes_overflowed),
                grouped(check.errors),
            )]);
        }
        Ok(())
    }

    fn print(&mut self, report: &ConsumeReport) -> Result<(), Failure> {
        match &mut self.json {
            Some(stdout) => write_line(stdout, report).map_err(Failure::stdout),
            None => Ok(()),
        }
    }

    fn summary(&mut self, report: &ConsumeReport) -> Result<(), Failure> {
        self.panel.clear();
        if self.json.is_some() {
            return self.print(report);
        }
        let rate = report.bytes_consumed as f64 / report.duration_s.max(1e-3);
        crate::print(&format!(
            "produced    {} bytes in {} bursts\n\
             consumed    {} bytes in {} packets, {} in {:.1} s\n\
             overflowed  {} bytes\n\
             pattern     {} errors\n",
            grouped(report.bytes_produced),
            grouped(report.bursts),
            grouped(report.bytes_consumed),
            grouped(report.packets),
            scaled(rate, "B/s"),
            report.duration_s,
            grouped(report.bytes_overflowed),
            grouped(report.pattern_errors),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(number: u64) -> [u8; 64] {
        let mut packet = [0; 64];
        pattern::fill(&mut packet, number);
        packet
    }

    #[test]
    fn packets_in_a_row_are_right() {
        let mut check = Check::default();
        for number in 5..9 {
            check.packet(&packet(number));
        }
        assert_eq!((check.packets, check.errors), (4, 0));
    }

    #[test]
    fn what_the_ring_says_is_missing_is_right_and_what_it_does_not_say_is_not() {
        let mut check = Check::default();
        check.packet(&packet(1));
        check.missing(3);
        check.packet(&packet(5));
        assert_eq!(check.errors, 0);
        check.missing(0);
        check.packet(&packet(100));
        assert_eq!(check.errors, 0, "nobody knows how many");
        check.packet(&packet(102));
        assert_eq!(check.errors, 1, "one is missing and nobody said so");
        let mut torn = packet(103);
        torn[40] ^= 1;
        check.packet(&torn);
        assert_eq!(check.errors, 2);
    }
}
