//! What ran and how it ended: one row per step or test, a table, and the closing line.

use std::fmt::{self, Display, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Characters of a remark in the table.
const REMARK_MAX: usize = 100;

/// How a step or a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should; with a remark or an empty text.
    Passed(String),
    /// It did not; why.
    Failed(String),
    /// It could not be tried; why, and what would help.
    NotRun(String),
}

impl Outcome {
    /// From what a task returned.
    pub fn of(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Passed(String::new()),
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }

    fn remark(&self) -> &str {
        match self {
            Self::Passed(text) | Self::Failed(text) | Self::NotRun(text) => text,
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed(_) => "passed",
            Self::Failed(_) => "FAILED",
            Self::NotRun(_) => "NOT RUN",
        })
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What ran.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// The rows so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Runs something under a heading and keeps its outcome.
    pub fn step(&mut self, name: &str, run: impl FnOnce() -> Outcome) {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = run();
        let row = Row { name: name.to_owned(), outcome, took: start.elapsed() };
        println!("=== {}", row.summary());
        self.rows.push(row);
    }

    /// Prints the table and the closing line; an error when something failed.
    pub fn finish(&self) -> Result<()> {
        print!("\n{}", self.table());
        println!("\n{}", self.closing_line());
        match self.count(|outcome| matches!(outcome, Outcome::Failed(_))) {
            0 => Ok(()),
            failed => bail!("{failed} of {} steps failed", self.rows.len()),
        }
    }

    /// True when nothing failed.
    pub fn success(&self) -> bool {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_))) == 0
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.rows.iter().filter(|row| which(&row.outcome)).count()
    }

    /// `N passed, N failed, N skipped`.
    fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.count(|outcome| matches!(outcome, Outcome::Passed(_))),
            self.count(|outcome| matches!(outcome, Outcome::Failed(_))),
            self.count(|outcome| matches!(outcome, Outcome::NotRun(_))),
        )
    }

    fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let mut table = String::new();
        for row in &self.rows {
            let line = format!(
                "{:width$}  {:7}  {:>7.1} s  {}",
                row.name,
                row.outcome,
                row.took.as_secs_f64(),
                first_line(row.outcome.remark()),
            );
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{}", line.trim_end());
        }
        table
    }
}

impl Row {
    fn summary(&self) -> String {
        let mut summary =
            format!("{}: {} ({:.1} s)", self.name, self.outcome, self.took.as_secs_f64());
        if !self.outcome.remark().is_empty() {
            let _ = write!(summary, ": {}", self.outcome.remark());
        }
        summary
    }
}

/// The first line, cut where it would make the table hard to read; the step itself said it all.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(REMARK_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let rows = outcomes.iter().enumerate().map(|(index, outcome)| Row {
            name: format!("step {index}"),
            outcome: outcome.clone(),
            took: Duration::from_millis(1500),
        });
        Report { rows: rows.collect() }
    }

    #[test]
    fn the_closing_line_counts_each_kind() {
        let report = report(&[
            Outcome::Passed(String::new()),
            Outcome::NotRun("no tshark".into()),
            Outcome::Passed("3 files".into()),
        ]);
        assert_eq!(report.closing_line(), "2 passed, 0 failed, 1 skipped");
        assert!(report.success());
    }

    #[test]
    fn one_failure_fails_the_whole() {
        let report = report(&[Outcome::Passed(String::new()), Outcome::Failed("no".into())]);
        assert!(!report.success());
    }

    #[test]
    fn the_table_gives_the_reason_on_one_line() {
        let report = report(&[Outcome::NotRun("no tshark\nmore".into())]);
        assert_eq!(report.table(), "step 0  NOT RUN      1.5 s  no tshark\n");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(first_line(&"é".repeat(REMARK_MAX)), "é".repeat(REMARK_MAX));
        assert_eq!(first_line(&"é".repeat(200)), format!("{}...", "é".repeat(REMARK_MAX)));
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let error = anyhow::anyhow!("inner").context("outer");
        assert_eq!(Outcome::of(Err(error)), Outcome::Failed("outer: inner".into()));
    }
}
