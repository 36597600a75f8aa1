//! What test programs print, counted: libtest's lines and KTAP.
//!
//! A program that announces more tests than it reports has not passed, whatever its exit status.

use std::fmt::{self, Display};

/// How the tests of a run ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    /// Names.
    pub failed: Vec<String>,
    /// Names and reasons.
    pub not_run: Vec<(String, String)>,
    announced: usize,
    open: Option<Open>,
}

/// A test of libtest that has begun and printed something before its result.
#[derive(Debug, PartialEq, Eq)]
struct Open {
    name: String,
    skip: Option<String>,
}

impl Tally {
    /// Takes in a line of a program's output.
    pub fn line(&mut self, line: &str) {
        if let Some(count) = announced(line) {
            self.announced += count;
        } else if let Some((name, result)) = libtest(line).or_else(|| ktap(line)) {
            self.add(name.to_owned(), result);
        } else if let Some(name) = begun(line) {
            self.open = Some(Open { name: name.to_owned(), skip: None });
        } else if let Some(reason) = line.strip_prefix("# SKIP ") {
            if let Some(open) = &mut self.open {
                open.skip = Some(reason.trim().to_owned());
            }
        } else if matches!(line, "ok" | "FAILED") {
            let Some(open) = self.open.take() else { return };
            let result = match (line, &open.skip) {
                ("ok", Some(reason)) => Single::NotRun(reason),
                ("ok", None) => Single::Passed,
                _ => Single::Failed,
            };
            self.add(open.name, result);
        }
    }

    fn add(&mut self, name: String, result: Single<'_>) {
        self.open = None;
        match result {
            Single::Passed => self.passed += 1,
            Single::Failed => self.failed.push(name),
            Single::NotRun(reason) => self.not_run.push((name, reason.to_owned())),
        }
    }

    /// Tests that were announced and of which nothing was heard.
    pub fn unheard(&self) -> usize {
        let heard = self.passed + self.failed.len() + self.not_run.len();
        self.announced.saturating_sub(heard)
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed, not_run) = (self.passed, self.failed.len(), self.not_run.len());
        write!(f, "{passed} tests passed, {failed} failed, {not_run} not run")?;
        match self.unheard() {
            0 => Ok(()),
            unheard => write!(f, ", {unheard} ended without a result"),
        }
    }
}

enum Single<'a> {
    Passed,
    Failed,
    NotRun(&'a str),
}

/// `running 3 tests`, or a KTAP plan `1..3`.
fn announced(line: &str) -> Option<usize> {
    let libtest = line
        .strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or_else(|| rest.strip_suffix(" test")));
    libtest.or_else(|| line.strip_prefix("1.."))?.parse().ok()
}

/// `test NAME ... `, and then what the test itself printed.
fn begun(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.split_once(" ...").map(|(name, _)| name)
}

/// `test NAME ... ok`, `... FAILED`, `... ignored, REASON`.
fn libtest(line: &str) -> Option<(&str, Single<'_>)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let result = match result {
        "ok" => Single::Passed,
        "FAILED" => Single::Failed,
        "ignored" => Single::NotRun("no reason given"),
        _ => Single::NotRun(result.strip_prefix("ignored, ")?),
    };
    Some((name, result))
}

/// `ok 1 NAME`, `not ok 1 NAME`, `ok 1 NAME # SKIP REASON`.
fn ktap(line: &str) -> Option<(&str, Single<'_>)> {
    let (good, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, name) = rest.split_once(' ')?;
    number.parse::<usize>().ok()?;
    if let Some((name, reason)) = name.split_once(" # SKIP") {
        let reason = reason.trim();
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        return Some((name, Single::NotRun(reason)));
    }
    Some((name, if good { Single::Passed } else { Single::Failed }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn libtest_and_ktap_are_counted_together() {
        let tally = tally(
            "running 3 tests\n\
             test a ... ok\n\
             test b ... FAILED\n\
             test c ... ignored, needs a device\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored\n\
             KTAP version 1\n\
             1..3\n\
             ok 1 x::y\n\
             # why\n\
             not ok 2 z\n\
             ok 3 w # SKIP no multicast here\n",
        );
        assert_eq!(tally.to_string(), "2 tests passed, 2 failed, 2 not run");
        assert_eq!(tally.failed, ["b", "z"]);
        let reasons: Vec<_> = tally.not_run.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["needs a device", "no multicast here"]);
    }

    #[test]
    fn a_program_that_dies_has_tests_without_a_result() {
        let tally = tally("running 2 tests\ntest a ... ok\ntest b ... Segmentation fault\n");
        assert_eq!(tally.unheard(), 1);
        assert_eq!(
            tally.to_string(),
            "1 tests passed, 0 failed, 0 not run, 1 ended without a result"
        );
    }

    #[test]
    fn a_test_that_says_why_it_did_not_run_has_not_passed() {
        let tally = tally(
            "running 2 tests\ntest a ... \n# SKIP no 32-bit programs\nok\ntest b ... noise\nok\n",
        );
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.not_run, [("a".to_owned(), "no 32-bit programs".to_owned())]);
        assert_eq!(tally.unheard(), 0);
    }

    #[test]
    fn other_output_is_no_result() {
        assert_eq!(tally("ok\nok then\nnot ok at all\ntest of nothing\n1..\n"), Tally::default());
    }
}
