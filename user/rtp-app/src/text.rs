//! The figures as text for people, rendered from the structs that the JSON is made of, so that both
//! always say the same.

use std::fmt::Write;

use crate::output::{Interval, Leg, Report, Ring, Skew, Stream, TxStream};

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of `unit` with a decimal prefix: `1.26 Gb/s`.
pub fn scaled(number: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    for (factor, prefix) in PREFIXES {
        if number >= factor {
            return format!("{:.2} {prefix}{unit}", number / factor);
        }
    }
    format!("{number:.0} {unit}")
}

/// Milliseconds, or a dash when not known.
pub fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |ms| format!("{ms:.3} ms"))
}

/// `part` of `whole` in per cent.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".into();
    }
    let percent = part as f64 / whole as f64 * 100.0;
    if percent > 0.0 && percent < 0.01 { "< 0.01 %".into() } else { format!("{percent:.2} %") }
}

/// A progress bar: `done` from 0 to 1, and beyond when something repeats.
pub fn bar(done: f64) -> String {
    const WIDTH: usize = 30;
    let part = if done > 1.0 { done.fract() } else { done.max(0.0) };
    let filled = (part * WIDTH as f64).round() as usize;
    let (full, empty) = ("=".repeat(filled), " ".repeat(WIDTH - filled.min(WIDTH)));
    format!("[{full}{empty}] {:.0} %", part * 100.0)
}

/// The live lines of a receive stream.
pub fn receive_lines(report: &Report, interval: &Interval) -> Vec<String> {
    let mut lines = Vec::new();
    let first = report.streams.first().cloned().unwrap_or_default();
    let ring = first.ring.clone().unwrap_or_default();
    let who = match report.streams.len() {
        0 | 1 => match (&first.source, first.ssrc) {
            (Some(source), Some(ssrc)) => format!("{source}, SSRC 0x{ssrc:08x}"),
            _ => "nothing heard yet".into(),
        },
        sources => format!("{} sources", grouped(sources as u64)),
    };
    lines.push(format!("rx  {who}  [{} engine]", report.engine));
    let jitter = report.streams.iter().filter_map(|stream| stream.jitter_ms).reduce(f64::max);
    lines.push(format!(
        "    {} packets  {} pkt/s  {}  jitter {}",
        grouped(ring.unique),
        grouped(interval.packets_per_s.round() as u64),
        scaled(interval.bits_per_s, "b/s"),
        milliseconds(jitter),
    ));
    lines.push(format!(
        "    lost {} ({})  reordered {}  late {}  duplicate {}",
        grouped(ring.lost),
        share(ring.lost, ring.expected),
        grouped(report.streams.iter().map(|stream| stream.reordered).sum()),
        grouped(ring.late),
        grouped(ring.duplicate),
    ));
    if first.legs.len() > 1 {
        for leg in &first.legs {
            lines.push(format!("    {}", leg_line(leg)));
            lines.extend(leg.skew_ms.map(|skew| format!("        {}", skew_line(&skew))));
        }
    }
    lines
}

/// A leg's figures in one line.
pub fn leg_line(leg: &Leg) -> String {
    format!(
        "leg {} {}: received {}  lost {} ({})  alone {}  jitter {}",
        leg.leg,
        leg.address,
        grouped(leg.received),
        grouped(leg.lost),
        share(leg.lost, leg.expected),
        grouped(leg.recovered),
        milliseconds(leg.jitter_ms),
    )
}

/// How far a leg is behind the other.
pub fn skew_line(skew: &Skew) -> String {
    format!(
        "behind {:.3} ms (min {:.3}, mean {:.3}, max {:.3})",
        skew.latest, skew.min, skew.mean, skew.max
    )
}

/// The summary of a receive stream.
pub fn receive_summary(report: &Report) -> String {
    let mut text = String::new();
    for stream in &report.streams {
        stream_summary(&mut text, stream);
    }
    if let Some(ring) = report.streams.first().and_then(|stream| stream.ring.as_ref()) {
        let _ = write!(text, "{}", loss_attribution(ring));
        if report.streams.len() > 1 {
            let _ = writeln!(
                text,
                "ring        received {} = published {} + ring full {} + oversize {} + invalid {} + \
                 filtered {} + duplicate {} + late {} + staged {}",
                ring.received,
                ring.published,
                ring.dropped_ring_full,
                ring.dropped_oversize,
                ring.dropped_invalid,
                ring.dropped_filtered,
                ring.duplicate,
                ring.late,
                ring.staged,
            );
        }
    }
    let other = &report.not_rtp;
    if other.rtcp + other.stun + other.dtls + other.other > 0 {
        let _ = writeln!(
            text,
            "not RTP     RTCP {}, STUN {}, DTLS {}, other {}",
            other.rtcp, other.stun, other.dtls, other.other
        );
    }
    text
}

fn stream_summary(text: &mut String, stream: &Stream) {
    let Some(ssrc) = stream.ssrc else {
        let _ = writeln!(text, "received    nothing");
        return;
    };
    let _ = writeln!(
        text,
        "source      {}, SSRC 0x{ssrc:08x}, payload type {}",
        stream.source.as_deref().unwrap_or("-"),
        stream.payload_type.map_or_else(|| "-".into(), |pt| pt.to_string()),
    );
    let _ = writeln!(
        text,
        "received    {} packets, {} ({} bytes of payload) in {:.3} s",
        grouped(stream.packets),
        scaled(stream.bytes as f64, "B"),
        stream.bytes,
        stream.duration_s,
    );
    let _ = writeln!(
        text,
        "lost        {} of {} ({})",
        grouped(stream.lost),
        grouped(stream.expected),
        share(stream.lost, stream.expected),
    );
    let _ = writeln!(
        text,
        "order       reordered {}, late {}, duplicate {}, restarts {}",
        grouped(stream.reordered),
        grouped(stream.late),
        grouped(stream.duplicate),
        grouped(stream.restarts),
    );
    let _ = writeln!(
        text,
        "jitter      {} (mean {}, max {})",
        milliseconds(stream.jitter_ms),
        milliseconds(stream.jitter_mean_ms),
        milliseconds(stream.jitter_max_ms),
    );
    if stream.legs.len() > 1 {
        let _ = writeln!(text, "recovered   {} packets came on one leg alone", stream.recovered);
        for leg in &stream.legs {
            let _ = writeln!(text, "            {}", leg_line(leg));
            if let Some(skew) = &leg.skew_ms {
                let _ = writeln!(text, "                {}", skew_line(skew));
            }
        }
    }
}

/// Where packets were lost on this machine. `lost` counts every missing packet once; within it the
/// socket's drops are a lower bound, and what a full ring dropped was received and is not in it.
fn loss_attribution(ring: &Ring) -> String {
    let mut text = String::new();
    if ring.lost > 0 {
        let here = ring.external_drops.min(ring.lost);
        let _ = writeln!(
            text,
            "lost where  at least {} in this machine's sockets, up to {} before them",
            grouped(here),
            grouped(ring.lost - here),
        );
    }
    for (count, cause) in [
        (ring.dropped_ring_full, "the ring was full: a reliable reader is too slow"),
        (ring.dropped_oversize, "longer than a slot: raise --slot-stride"),
        (ring.lapped, "overwritten before this reader took them"),
        (ring.dropped_invalid, "not valid RTP, or far out of sequence"),
        (ring.dropped_filtered, "of a source that this stream does not follow"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "dropped     {}: {cause}", grouped(count));
        }
    }
    text
}

/// The books of a receive ring as one table that balances.
pub fn books(ring: &Ring) -> String {
    let rows = [
        ("published", ring.published),
        ("dropped, ring full", ring.dropped_ring_full),
        ("dropped, oversize", ring.dropped_oversize),
        ("dropped, invalid", ring.dropped_invalid),
        ("dropped, filtered", ring.dropped_filtered),
        ("duplicate", ring.duplicate),
        ("late", ring.late),
        ("staged", ring.staged),
    ];
    table("received", ring.received, &rows)
}

/// The books of a transmit ring as one table that balances.
pub fn transmit_books(stream: &TxStream) -> String {
    let rows =
        [("sent", stream.sent), ("send failed", stream.send_failed), ("pending", stream.pending)];
    let mut text = table("committed", stream.committed, &rows);
    let _ = writeln!(text, "{:<20}{:>16}", "read from the ring", grouped(stream.zerocopy));
    text
}

fn table(total_name: &str, total: u64, rows: &[(&str, u64)]) -> String {
    let width = 20;
    let mut text = format!("{total_name:<width$}{:>16}\n", grouped(total));
    for (name, count) in rows {
        let _ = writeln!(text, "  {name:<18}{:>16}", grouped(*count));
    }
    let sum: u64 = rows.iter().map(|(_, count)| count).sum();
    let verdict = if sum == total { "balances" } else { "DOES NOT BALANCE" };
    let _ = writeln!(text, "{:<width$}{:>16}  {verdict}", "sum", grouped(sum));
    text
}

/// A source's figures in one line.
pub fn source_line(stream: &Stream) -> String {
    format!(
        "source {}, SSRC 0x{:08x}, payload type {}: {} packets, lost {} of {}, jitter {}\n",
        stream.source.as_deref().unwrap_or("-"),
        stream.ssrc.unwrap_or_default(),
        stream.payload_type.map_or_else(|| "-".into(), |pt| pt.to_string()),
        grouped(stream.packets),
        grouped(stream.lost),
        grouped(stream.expected),
        milliseconds(stream.jitter_ms),
    )
}

/// Expected, lost and where, for `stat`.
pub fn losses(ring: &Ring) -> String {
    let here = ring.external_drops.min(ring.lost);
    let mut text = format!("{:<20}{:>16}\n", "expected", grouped(ring.expected));
    for (name, count) in [
        ("unique", ring.unique),
        ("lost", ring.lost),
        ("  in the sockets, >=", here),
        ("  before them, <=", ring.lost - here),
    ] {
        let _ = writeln!(text, "{name:<20}{:>16}", grouped(count));
    }
    text
}

/// The live line of a transmit stream.
pub fn transmit_lines(
    stream: &TxStream,
    engine: crate::output::Engine,
    packets_per_s: f64,
    bits_per_s: f64,
) -> Vec<String> {
    let ssrc = stream.ssrc.map_or_else(String::new, |ssrc| format!(", SSRC 0x{ssrc:08x}"));
    vec![
        format!("tx  {}{ssrc}  [{engine} engine]", stream.destinations.join(" and ")),
        format!(
            "    {} pkt/s  {}  sent {}  failed {}  late {}",
            grouped(packets_per_s.round() as u64),
            scaled(bits_per_s, "b/s"),
            grouped(stream.sent),
            grouped(stream.send_failed),
            grouped(stream.sent_late),
        ),
    ]
}

/// The summary of a transmit stream.
pub fn transmit_summary(stream: &TxStream) -> String {
    let ssrc = stream.ssrc.map_or_else(String::new, |ssrc| format!(", SSRC 0x{ssrc:08x}"));
    let pt = stream.payload_type.map_or_else(String::new, |pt| format!(", payload type {pt}"));
    let mut text = format!(
        "sent        {} packets, {} ({} bytes of payload) in {:.3} s to {}{ssrc}{pt}\n",
        grouped(stream.sent),
        scaled(stream.payload_bytes as f64, "B"),
        stream.payload_bytes,
        stream.duration_s,
        stream.destinations.join(" and "),
    );
    if stream.send_failed > 0 {
        let _ = writeln!(text, "failed      {}: refused by the path", grouped(stream.send_failed));
    }
    if stream.sent_late > 0 {
        let _ = writeln!(
            text,
            "late        {} sent more than 1 ms after they were due",
            grouped(stream.sent_late)
        );
    }
    if stream.zerocopy > 0 {
        let _ = writeln!(
            text,
            "not copied  {}: read from the ring's own pages",
            grouped(stream.zerocopy)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_small_loss_is_not_shown_as_none() {
        assert_eq!(share(1, 1_000_000), "< 0.01 %");
        assert_eq!(share(0, 1_000_000), "0.00 %");
        assert_eq!(share(1, 200), "0.50 %");
    }

    #[test]
    fn the_books_say_whether_they_balance() {
        let ring = Ring { received: 10, published: 7, late: 2, staged: 1, ..Default::default() };
        assert!(books(&ring).ends_with("10  balances\n"), "{}", books(&ring));
        let wrong = Ring { late: 3, ..ring };
        assert!(books(&wrong).ends_with("11  DOES NOT BALANCE\n"), "{}", books(&wrong));
    }

    #[test]
    fn socket_drops_explain_no_more_than_what_is_lost() {
        let ring = Ring { lost: 5, external_drops: 9, ..Default::default() };
        assert!(loss_attribution(&ring).contains("at least 5 in this machine's sockets, up to 0"));
    }
}
