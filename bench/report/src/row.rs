//! One row: our figure, the peers' in the same interleaved run, and whether the target is met.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::statistics::{median, ratio, spread};

/// What our own figure is called among the samples.
pub const OURS: &str = "ours";

/// Which figure is the better one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The higher one.
    #[default]
    Higher,
    /// The lower one.
    Lower,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio of our figure to this peer's.
    Ratio(&'static str, Bound),
    /// Our figure itself.
    Value(Bound),
}

/// A row of the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// Median of our runs; absent when the row was not run.
    pub ours: Option<f64>,
    /// Unit of all figures.
    pub unit: String,
    /// Median of each peer.
    pub peers: BTreeMap<String, f64>,
    /// Ours divided by the peer's: the median of the ratios of neighbouring runs.
    pub ratios: BTreeMap<String, f64>,
    /// What is to be reached, in words.
    pub target: String,
    /// Whether it is; absent when a peer that the target names was not run and nothing was missed.
    pub met: Option<bool>,
    /// Repetitions.
    pub runs: usize,
    /// Highest less lowest of our runs, as a share of the median.
    pub spread: f64,
    /// Which figure is the better one.
    #[serde(default)]
    pub better: Better,
    /// Peers (or the row: [`OURS`]) that were not run, and why.
    #[serde(default)]
    pub not_run: BTreeMap<String, String>,
    /// What to know when reading it.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Every run of everybody, in order.
    #[serde(default)]
    pub samples: BTreeMap<String, Vec<f64>>,
}

impl Row {
    /// A row that could not be run at all.
    pub fn not_run(row: &str, unit: &str, target: &str, why: impl Into<String>) -> Self {
        Self {
            row: row.into(),
            unit: unit.into(),
            target: target.into(),
            not_run: BTreeMap::from([(OURS.into(), why.into())]),
            ..Self::default()
        }
    }
}

/// Collects the samples of one row.
#[derive(Clone, Debug, Default)]
pub struct Contest {
    /// What is measured.
    pub row: String,
    /// Unit of all samples.
    pub unit: &'static str,
    /// Which sample is the better one.
    pub better: Better,
    /// What is to be reached, in words.
    pub target: String,
    /// The same, to be judged.
    pub goals: Vec<Goal>,
    /// By name ([`OURS`] for our own).
    pub samples: BTreeMap<String, Vec<f64>>,
    /// Who was not run, and why.
    pub not_run: BTreeMap<String, String>,
    /// What to know when reading it.
    pub notes: Vec<String>,
}

impl Contest {
    /// Adds a sample.
    pub fn add(&mut self, name: &str, value: f64) {
        self.samples.entry(name.into()).or_default().push(value);
    }

    /// Says why a peer has no samples.
    pub fn absent(&mut self, name: &str, why: impl Into<String>) {
        self.not_run.insert(name.into(), why.into());
    }

    /// The row.
    pub fn finish(self) -> Row {
        let none = Vec::new();
        let ours = self.samples.get(OURS).unwrap_or(&none);
        let peers = || self.samples.iter().filter(|(name, _)| *name != OURS);
        let ratios: BTreeMap<_, _> = peers()
            .filter_map(|(name, theirs)| Some((name.clone(), ratio(ours, theirs)?)))
            .collect();
        let verdicts: Vec<_> = self
            .goals
            .iter()
            .map(|goal| match goal {
                Goal::Ratio(peer, bound) => ratios.get(*peer).map(|ratio| bound.holds(*ratio)),
                Goal::Value(bound) => median(ours).map(|ours| bound.holds(ours)),
            })
            .collect();
        Row {
            ours: median(ours),
            unit: self.unit.into(),
            peers: peers()
                .filter_map(|(name, theirs)| Some((name.clone(), median(theirs)?)))
                .collect(),
            met: judge(&verdicts),
            runs: ours.len(),
            spread: spread(ours),
            better: self.better,
            target: self.target,
            row: self.row,
            ratios,
            not_run: self.not_run,
            notes: self.notes,
            samples: self.samples,
        }
    }
}

/// Missed when one goal is; met when all are; otherwise not known.
fn judge(verdicts: &[Option<bool>]) -> Option<bool> {
    if verdicts.contains(&Some(false)) {
        return Some(false);
    }
    (!verdicts.is_empty() && !verdicts.contains(&None)).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest(goals: &[Goal]) -> Contest {
        let mut contest =
            Contest { row: "r".into(), unit: "Gb/s", goals: goals.into(), ..Contest::default() };
        for (ours, peer) in [(9.0, 10.0), (8.0, 10.0), (4.0, 5.0)] {
            contest.add(OURS, ours);
            contest.add("loop", peer);
        }
        contest
    }

    #[test]
    fn a_row_has_medians_and_ratios_of_neighbours() {
        let row = contest(&[]).finish();
        assert_eq!((row.ours, row.runs), (Some(8.0), 3));
        assert_eq!(row.peers, BTreeMap::from([("loop".into(), 10.0)]));
        assert_eq!(row.ratios, BTreeMap::from([("loop".into(), 0.8)]));
        assert_eq!(row.spread, 5.0 / 8.0);
        assert_eq!(row.met, None, "no goal");
    }

    #[test]
    fn one_missed_goal_is_a_missed_target() {
        let met = |goals: &[Goal]| contest(goals).finish().met;
        let loose = Goal::Ratio("loop", Bound::AtLeast(0.8));
        let tight = Goal::Ratio("loop", Bound::AtLeast(0.85));
        let unknown = Goal::Ratio("ffmpeg", Bound::AtLeast(30.0));
        let value = Goal::Value(Bound::AtMost(8.0));
        assert_eq!(met(&[loose, value]), Some(true));
        assert_eq!(met(&[loose, tight]), Some(false));
        assert_eq!(met(&[loose, unknown]), None);
        assert_eq!(met(&[tight, unknown]), Some(false));
    }

    #[test]
    fn the_json_is_the_one_of_the_documents() {
        let mut contest = contest(&[Goal::Ratio("loop", Bound::AtLeast(0.85))]);
        contest.target = "at least 0.85 of loop".into();
        contest.absent("ffmpeg", "no ffmpeg here (cargo xtask setup)");
        let json = serde_json::to_value(contest.finish()).unwrap();
        assert_eq!(json["row"], "r");
        assert_eq!(json["ours"], 8.0);
        assert_eq!(json["unit"], "Gb/s");
        assert_eq!(json["peers"]["loop"], 10.0);
        assert_eq!(json["ratios"]["loop"], 0.8);
        assert_eq!(json["target"], "at least 0.85 of loop");
        assert_eq!(json["met"], false);
        assert_eq!(json["runs"], 3);
        assert_eq!(json["spread"], 0.625);
        assert_eq!(json["not_run"]["ffmpeg"], "no ffmpeg here (cargo xtask setup)");
        assert_eq!(json["better"], "higher");
    }

    #[test]
    fn a_row_that_was_not_run_says_why_and_reads_back() {
        let row = Row::not_run("kernel", "instructions", "at most 0.6", "no machine");
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(r#""ours":null"#) && text.contains(r#""met":null"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
