//! A bar chart of a row as SVG, and the page that shows all rows.

use std::fmt::Write as _;

use crate::statistics::percentile;
use crate::table::{figure, verdict};
use crate::{Better, OURS, Report, Row};

const WIDTH: f64 = 720.0;
const NAMES: f64 = 190.0;
const FIGURES: f64 = 110.0;
const LINE: f64 = 26.0;
const TOP: f64 = 46.0;
const STYLE: &str = "text{font:13px sans-serif;fill:#222}.t{font-weight:bold}.s{fill:#666}\
                     .o{fill:#2563a8}.p{fill:#a9b4c0}.w{stroke:#222;stroke-width:1.5}";

/// The row as horizontal bars: medians, with lines from the lowest to the highest run.
pub fn svg(row: &Row) -> String {
    let mut bars: Vec<(&str, f64)> = row.ours.map(|ours| (OURS, ours)).into_iter().collect();
    bars.extend(row.peers.iter().map(|(name, value)| (name.as_str(), *value)));
    let ends = |name: &str| {
        let samples = row.samples.get(name).map_or(&[][..], Vec::as_slice);
        Some((percentile(samples, 0.0)?, percentile(samples, 1.0)?))
    };
    let most = bars
        .iter()
        .map(|(name, value)| ends(name).map_or(*value, |(_, most)| most.max(*value)))
        .fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - NAMES - FIGURES) / most } else { 0.0 };
    let height = TOP + LINE * bars.len().max(1) as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\"><style>{STYLE}</style>\
         <text class=\"t\" x=\"4\" y=\"18\">{}</text>\
         <text class=\"s\" x=\"4\" y=\"36\">{}, {} is better; target {}: {}</text>",
        escape(&row.row),
        escape(&row.unit),
        if row.better == Better::Higher { "more" } else { "less" },
        escape(&row.target),
        verdict(row),
    );
    for (at, (name, value)) in bars.iter().enumerate() {
        let y = TOP + LINE * at as f64;
        let middle = y + 9.0;
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<text x=\"4\" y=\"{:.1}\">{}</text><rect class=\"{}\" x=\"{NAMES}\" y=\"{y:.1}\" \
             width=\"{:.1}\" height=\"18\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            y + 14.0,
            escape(name),
            if *name == OURS { "o" } else { "p" },
            (value * scale).max(0.0),
            WIDTH - FIGURES + 8.0,
            y + 14.0,
            figure(*value),
        );
        if let Some((least, most)) = ends(name) {
            let _ = write!(
                svg,
                "<line class=\"w\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                NAMES + least.max(0.0) * scale,
                NAMES + most.max(0.0) * scale,
            );
        }
    }
    if bars.is_empty() {
        let why = row.not_run.get(OURS).map_or("", String::as_str);
        let _ = write!(svg, "<text x=\"4\" y=\"{}\">not run: {}</text>", TOP + 14.0, escape(why));
    }
    svg.push_str("</svg>\n");
    svg
}

/// One page with every chart.
pub fn page(report: &Report) -> String {
    let machine = &report.machine;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>RTP Manager: speed</title>\
         <style>body{{font:15px sans-serif;max-width:760px;margin:2em auto;color:#222}}\
         figure{{margin:1.5em 0}}figcaption{{color:#666;font-size:13px}}</style></head><body>\n\
         <h1>RTP Manager: speed</h1>\n<p>{}, {} processors, {:.1} GiB, Linux {}; {}; {}; load at the \
         beginning {:.1}. Ratios mean something; absolute figures are this machine's.</p>\n",
        escape(&machine.cpu),
        machine.cpus,
        machine.memory_gib,
        escape(&machine.kernel),
        escape(&machine.program),
        escape(&machine.date),
        machine.load,
    );
    for row in &report.rows {
        let _ = write!(page, "<figure>{}<figcaption>", svg(row));
        let ratios = row.ratios.iter().map(|(name, ratio)| format!("{} of {name}", figure(*ratio)));
        let lines = (row.runs > 0)
            .then(|| format!("{} runs, spread {:.0} %", row.runs, row.spread * 100.0))
            .into_iter()
            .chain(ratios)
            .chain(row.not_run.iter().map(|(name, why)| format!("{name} not run: {why}")))
            .chain(row.notes.iter().cloned());
        page.push_str(&escape(&lines.collect::<Vec<_>>().join("; ")));
        page.push_str("</figcaption></figure>\n");
    }
    page.push_str("</body></html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Contest;

    fn row() -> Row {
        let mut contest = Contest { row: "a < b".into(), unit: "Gb/s", ..Contest::default() };
        for ours in [4.0, 5.0, 6.0] {
            contest.add(OURS, ours);
            contest.add("loop", ours * 2.0);
        }
        contest.finish()
    }

    #[test]
    fn bars_are_as_long_as_the_figures() {
        let svg = svg(&row());
        let widths: Vec<f64> = svg
            .split("<rect ")
            .skip(1)
            .map(|rect| {
                let width = rect.split("width=\"").nth(1).unwrap();
                width.split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        // The longest run (12) reaches the right end of the 420 points of the chart.
        assert_eq!(widths, [175.0, 350.0]);
        assert!(svg.contains("a &lt; b"), "{svg}");
    }

    #[test]
    fn the_page_has_every_row_and_says_what_was_not_run() {
        let rows = vec![row(), Row::not_run("kernel", "x", "t", "no machine")];
        let page = page(&Report { rows, ..Report::default() });
        assert_eq!(page.matches("<svg ").count(), 2);
        assert!(page.contains("not run: no machine"), "{page}");
    }
}
