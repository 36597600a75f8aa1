//! The test command: every step that this machine can run, in order, and a table of how each ended.

use anyhow::{Result, bail};
use clap::Args;

use crate::checks::with_component;
use crate::project::Project;
use crate::report::{Outcome, Report};
use crate::{bench, checks, documents, guard, header, interop, panic_check, setup, vm};

/// `cargo xtask test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only the steps whose name contains one of these
    #[arg(value_name = "STEP")]
    steps: Vec<String>,
    /// Name the steps
    #[arg(long)]
    list: bool,
}

type Task = fn(&Project, &mut Report, &str);

/// The steps: the packages that tests use, what is quick and often wrong, and last what needs the
/// release build.
const STEPS: &[(&str, Task)] = &[
    ("system packages", |p, r, n| r.step(n, || setup::step(p))),
    ("formatting", |p, r, n| r.step(n, || with_component(p, "fmt", "rustfmt", checks::format))),
    ("clippy", |p, r, n| r.step(n, || with_component(p, "clippy", "clippy", checks::clippy))),
    ("documentation", |p, r, n| r.step(n, || Outcome::of(checks::doc(p)))),
    ("shell scripts", |p, r, n| r.step(n, || checks::scripts(p))),
    ("C header", |p, r, n| r.step(n, || Outcome::of(header::run(p, true)))),
    ("unit and integration tests", |p, r, n| r.step(n, || Outcome::of(checks::unit_tests(p)))),
    ("examples in the documentation", |p, r, n| r.step(n, || Outcome::of(checks::doc_tests(p)))),
    ("loom models", |p, r, n| r.step(n, || Outcome::of(checks::loom(p)))),
    ("panic check", |p, r, n| r.step(n, || Outcome::of(panic_check::run(p)))),
    ("ring with the kernel's rustc", |p, r, n| r.step(n, || checks::ring_compiler(p))),
    ("kernel module: build and lints", vm::build_rows),
    ("kernel module: tests in a virtual machine", vm::test_rows),
    ("release build", |p, r, n| r.step(n, || Outcome::of(p.build_release()))),
    ("instruction counts", |p, r, n| r.step(n, || guard::step(p))),
    ("measurements, each once", |p, r, n| r.step(n, || Outcome::of(bench::smoke(p)))),
    ("demo", |p, r, n| r.step(n, || Outcome::of(checks::demo(p, &[])))),
    ("source documents", |p, r, n| r.step(n, || documents::run(p))),
    ("interop", interop::rows),
];

/// Runs the steps.
pub fn run(project: &Project, arguments: &TestArgs) -> Result<()> {
    let chosen: Vec<_> = STEPS.iter().filter(|(name, _)| chosen(name, &arguments.steps)).collect();
    if chosen.is_empty() {
        bail!(
            "cargo xtask test {}: no such step; accepted: part of the name of a step (cargo xtask \
             test --list)",
            arguments.steps.join(" ")
        );
    }
    if arguments.list {
        for (name, _) in chosen {
            println!("{name}");
        }
        return Ok(());
    }
    let mut report = Report::default();
    for (name, task) in chosen {
        task(project, &mut report, name);
    }
    report.finish()
}

fn chosen(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_part_of_a_name_and_none_means_all() {
        assert!(chosen("release build", &[]));
        assert!(chosen("release build", &["demo".into(), "build".into()]));
        assert!(!chosen("release build", &["loom".into()]));
    }

    #[test]
    fn names_of_steps_differ() {
        let mut names: Vec<_> = STEPS.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }
}
