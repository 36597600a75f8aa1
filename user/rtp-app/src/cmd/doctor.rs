//! `rtp_app doctor`: which engine will be used and why, and what limits this machine.

use std::fmt::Write;

use rtp_mgr::probe::{Finding, Report, Status, probe};
use serde::Serialize;

use crate::cli::{DoctorArgs, EngineChoice};
use crate::error::Failure;
use crate::output::{SCHEMA, write_line};

/// What `doctor --json` prints.
#[derive(Serialize)]
struct DoctorReport<'a> {
    schema: u32,
    /// Whether the chosen engine works.
    works: bool,
    /// Whether it works and nothing limits it.
    unlimited: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the command.
///
/// # Errors
/// The chosen engine does not work, or, with `--strict`, something limits it.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let mut report = probe();
    if args.engine == EngineChoice::User {
        (report.engine, report.reason) = ("user", "asked for".into());
    }
    if args.json {
        let (works, unlimited) = (report.works(), report.is_unlimited());
        let line = DoctorReport { schema: SCHEMA, works, unlimited, report: &report };
        write_line(&mut std::io::stdout().lock(), &line).map_err(Failure::stdout)?;
    } else {
        crate::print(&text(&report))?;
    }
    judge(args, &report)
}

fn judge(args: &DoctorArgs, report: &Report) -> Result<(), Failure> {
    let obstacle = report.kernel_obstacle().filter(|_| args.engine == EngineChoice::Kernel);
    if let Some(finding) = obstacle {
        let what = if report.engine == "kernel" { "is limited" } else { "cannot be used" };
        let mut text = format!("the kernel engine {what}: {}", finding.detail);
        if let Some(remedy) = &finding.remedy {
            let _ = write!(text, "; remedy: {remedy}");
        }
        return Err(Failure::failed(text));
    }
    let names = |status| -> Vec<&str> {
        let found = report.findings.iter().filter(|finding| finding.status == status);
        found.map(|finding| finding.name).collect()
    };
    if !report.works() {
        let missing = names(Status::Missing).join(", ");
        return Err(Failure::failed(format!("the engine does not work: {missing}")));
    }
    if args.strict && !report.is_unlimited() {
        let limits = names(Status::Limited).join(", ");
        return Err(Failure::failed(format!("--strict: limited by {limits}")));
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = format!("engine      {}: {}\n", report.engine, report.reason);
    for finding in &report.findings {
        let _ = writeln!(text, "{}", line(finding));
        if let Some(remedy) = finding.remedy.as_ref().filter(|_| finding.status != Status::Ok) {
            let _ = writeln!(text, "{:12}{:18}remedy: {remedy}", "", "");
        }
    }
    text
}

fn line(finding: &Finding) -> String {
    let status = match finding.status {
        Status::Ok => "ok",
        Status::Limited => "limited",
        Status::Missing => "missing",
    };
    format!("{status:<12}{:<18}{}", finding.name, finding.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: Status, required: bool) -> Report {
        Report {
            engine: "user",
            reason: "because".into(),
            findings: vec![Finding {
                name: "thing",
                status,
                detail: "is so".into(),
                remedy: Some("do this".into()),
                required,
                engine: None,
            }],
        }
    }

    fn verdict(report: &Report, strict: bool, engine: EngineChoice) -> Result<(), String> {
        let args = DoctorArgs { json: false, strict, engine };
        judge(&args, report).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_status_is_about_the_chosen_engine() {
        let auto = EngineChoice::Auto;
        assert_eq!(verdict(&report(Status::Limited, false), false, auto), Ok(()));
        assert_eq!(
            verdict(&report(Status::Limited, false), true, auto),
            Err("--strict: limited by thing".into())
        );
        assert_eq!(verdict(&report(Status::Missing, false), true, auto), Ok(()));
        assert!(verdict(&report(Status::Missing, true), false, auto).is_err());
    }

    #[test]
    fn the_kernel_engine_is_refused_with_what_stops_it_first_and_the_remedy() {
        let machine = report(Status::Limited, false).findings.remove(0);
        let about = |name: &str, status| Finding {
            status,
            detail: format!("{name} is so"),
            remedy: (status != Status::Ok).then(|| format!("mend {name}")),
            engine: Some("kernel"),
            ..machine.clone()
        };
        let kernel = EngineChoice::Kernel;
        let mut report = Report { findings: Vec::new(), ..report(Status::Ok, false) };
        report.findings = vec![
            machine.clone(),
            about("a", Status::Ok),
            about("b", Status::Missing),
            about("c", Status::Limited),
        ];
        let refused = |what| Err(format!("the kernel engine {what}: b is so; remedy: mend b"));
        assert_eq!(verdict(&report, false, kernel), refused("cannot be used"));
        assert_eq!(verdict(&report, false, EngineChoice::Auto), Ok(()));
        report.engine = "kernel";
        assert_eq!(verdict(&report, false, kernel), refused("is limited"));
        report.findings.truncate(2);
        assert_eq!(verdict(&report, false, kernel), Ok(()), "the machine's limits are not its own");
    }

    #[test]
    fn every_finding_shows_with_its_remedy() {
        let text = text(&report(Status::Limited, false));
        assert!(text.contains("user: because"), "{text}");
        assert!(text.contains("limited     thing             is so"), "{text}");
        assert!(text.contains("remedy: do this"), "{text}");
    }
}
