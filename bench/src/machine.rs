//! The machine that is measured.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use rtp_mgr_bench_report::Machine;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Looks at this machine. `program` says what is measured.
pub fn look(program: &str) -> Machine {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?.to_owned();
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory_kib = after(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    Machine {
        cpu: after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib: memory_kib.unwrap_or_default() / 1_048_576.0,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        date: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        program: program.into(),
        peers: peers(),
        load: read("/proc/loadavg")
            .split_whitespace()
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or_default(),
    }
}

fn peers() -> BTreeMap<String, String> {
    [("ffmpeg", "-version"), ("gst-launch-1.0", "--version")]
        .into_iter()
        .filter_map(|(program, option)| {
            let output = Command::new(program).arg(option).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Some((program.to_owned(), text.lines().next()?.to_owned()))
        })
        .collect()
}
