//! The report as text for a terminal.

use std::fmt::Write as _;

use crate::Row;

/// Our figure, the peers' and the target, one row after the other.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", row.row);
        match row.ours {
            Some(ours) => {
                let _ = writeln!(
                    text,
                    "    {:24} {:>10} {}  ({} runs, spread {:.0} %)",
                    "ours",
                    figure(ours),
                    row.unit,
                    row.runs,
                    row.spread * 100.0,
                );
            }
            None => text.push_str("    not run\n"),
        }
        for (name, value) in &row.peers {
            let ratio =
                row.ratios.get(name).map(|ratio| format!("  ours is {} of it", figure(*ratio)));
            let _ = writeln!(
                text,
                "    {name:24} {:>10} {}{}",
                figure(*value),
                row.unit,
                ratio.unwrap_or_default(),
            );
        }
        for (name, why) in &row.not_run {
            let _ = writeln!(text, "    {name:24} not run: {why}");
        }
        for note in &row.notes {
            let _ = writeln!(text, "    note: {note}");
        }
        let _ = writeln!(text, "    target: {} -> {}\n", row.target, verdict(row));
    }
    text
}

pub(crate) fn verdict(row: &Row) -> &'static str {
    match row.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None if row.target.starts_with("none") => "for information",
        None => "not known",
    }
}

/// Three or four significant digits.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        0.01.. => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bound, Contest, Goal, OURS};

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        let shown: Vec<_> =
            [0.0, 12_345.6, 123.45, 12.345, 0.8567, 0.000_012].map(figure).into_iter().collect();
        assert_eq!(shown, ["0", "12346", "123.5", "12.35", "0.857", "1.20e-5"]);
    }

    #[test]
    fn the_table_says_what_was_missed_and_what_was_not_run() {
        let mut contest = Contest {
            row: "coalesced goodput".into(),
            unit: "Gb/s",
            target: "at least 0.85 of loop".into(),
            goals: vec![Goal::Ratio("loop", Bound::AtLeast(0.85))],
            ..Contest::default()
        };
        contest.add(OURS, 8.0);
        contest.add("loop", 10.0);
        contest.absent("ffmpeg", "not installed");
        let text = table(&[contest.finish(), Row::not_run("kernel", "x", "t", "no machine")]);
        assert!(text.contains("ours is 0.800 of it"), "{text}");
        assert!(text.contains("not run: not installed"), "{text}");
        assert!(text.contains("target: at least 0.85 of loop -> MISSED"), "{text}");
        assert!(text.contains("not run: no machine") && text.contains("-> not known"), "{text}");
    }
}
