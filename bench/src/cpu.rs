//! Processor time, softirq included, of what is measured.
//!
//! Two ways to tell, both kept:
//!
//! - *The whole machine*, less what other programs used meanwhile. The kernel counts idle time to the
//!   nanosecond and shows it in ticks (10 ms): busy is what was not idle. This sees everything, on a
//!   quiet machine.
//! - *Accounted for*: the scheduler's account of this process, its children and the softirq threads, to
//!   the nanosecond. Softirq that interrupts a sender's call is in the sender's account, which is
//!   where loopback and veth deliver packets. It misses interrupts of an idle processor. On a machine
//!   that others use it is the better one.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Ticks of /proc per second: USER_HZ, the same on every Linux.
const TICK_S: f64 = 0.01;

/// A point in time.
#[derive(Clone, Debug)]
pub struct Meter {
    start: Instant,
    idle_ticks: u64,
    others_ticks: u64,
    accounted: Duration,
}

/// What was used between two points.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Of the whole machine, less other programs; seconds.
    pub whole_s: f64,
    /// Accounted for; seconds.
    pub accounted_s: f64,
    /// Share of the machine that other programs used.
    pub others: f64,
}

impl Meter {
    /// Begins now.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn start() -> Result<Self> {
        let processes = processes();
        Ok(Self {
            others_ticks: others(&processes, std::process::id()),
            accounted: accounted(&processes),
            idle_ticks: idle(&stat()?)?,
            start: Instant::now(),
        })
    }

    /// What was used since. Children that have ended meanwhile are missing: stop before they do.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn stop(&self) -> Result<Used> {
        let seconds = self.start.elapsed().as_secs_f64();
        let idle_s = idle(&stat()?)?.saturating_sub(self.idle_ticks) as f64 * TICK_S;
        let processes = processes();
        let others = others(&processes, std::process::id());
        let others_s = others.saturating_sub(self.others_ticks) as f64 * TICK_S;
        let all_s = seconds * std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Ok(Used {
            whole_s: (all_s - idle_s - others_s).max(0.0),
            accounted_s: accounted(&processes).saturating_sub(self.accounted).as_secs_f64(),
            others: others_s / all_s,
        })
    }
}

fn stat() -> Result<String> {
    fs::read_to_string("/proc/stat").context("/proc/stat")
}

/// Ticks that all processors were idle, had to wait for a disk, or were taken away by the host.
fn idle(stat: &str) -> Result<u64> {
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // cpu user nice system idle iowait irq softirq steal
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    Ok(field(3) + field(4) + field(7))
}

/// A process: its name, its parent, and its ticks with those of children that were waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    name: String,
    parent: u32,
    ticks: u64,
}

type Processes = HashMap<u32, Process>;

fn processes() -> Processes {
    let Ok(entries) = fs::read_dir("/proc") else { return Processes::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, process(&stat)?))
    })
    .collect()
}

/// A line of /proc/PID/stat.
fn process(stat: &str) -> Option<Process> {
    // The name in parentheses may hold anything.
    let (name, rest) = (stat.split_once('(')?.1, &stat[stat.rfind(')')? + 1..]);
    let name = name[..name.rfind(')')?].to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Process { name, parent: number(1)? as u32, ticks })
}

/// Whether a process is `root` or descends from it.
fn descends(processes: &Processes, mut pid: u32, root: u32) -> bool {
    // Chains of parents are short; a pid that was used again could make a circle.
    for _ in 0..64 {
        if pid == root {
            return true;
        }
        match processes.get(&pid) {
            Some(process) if process.parent != 0 => pid = process.parent,
            _ => return false,
        }
    }
    false
}

/// Process 2: the parent of the kernel's threads.
const KTHREADD: u32 = 2;

/// Ticks that programs used, other than `own`, its children and kernel threads. Those of a program that
/// ended are among its parent's.
fn others(processes: &Processes, own: u32) -> u64 {
    let foreign = |pid: u32| !descends(processes, pid, own) && !descends(processes, pid, KTHREADD);
    processes.iter().filter(|(pid, _)| foreign(**pid)).map(|(_, process)| process.ticks).sum()
}

/// What the scheduler has on account for this process, its children and the softirq threads.
fn accounted(processes: &Processes) -> Duration {
    let own = std::process::id();
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let mut sum = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    for (pid, process) in processes {
        let softirq = process.parent == KTHREADD && process.name.starts_with("ksoftirqd");
        if *pid != own && (softirq || descends(processes, *pid, own)) {
            sum += scheduled(*pid);
        }
    }
    sum
}

/// The time on a processor of all threads that a process has now.
fn scheduled(pid: u32) -> Duration {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let times = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    });
    times.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        let stat = "cpu  100 20 30 4000 50 6 7 800 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(idle(stat).unwrap(), 4000 + 50 + 800);
        assert!(idle("").is_err());
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "12 (a ) b) S 7 12 12 0 -1 4 5 6 7 8 100 20 3 4 20 0 1 0 99 1 1";
        let expected = Process { name: "a ) b".into(), parent: 7, ticks: 127 };
        assert_eq!(process(stat), Some(expected));
    }

    #[test]
    fn children_and_kernel_threads_are_not_others() {
        let process = |parent, ticks| Process { name: String::new(), parent, ticks };
        let processes = HashMap::from([
            (1, process(0, 1)),
            (2, process(0, 10)),
            (3, process(2, 100)),
            (50, process(1, 1_000)),
            (60, process(50, 10_000)),
            (70, process(1, 100_000)),
        ]);
        // Process 1 and 70 are others; 2 and 3 the kernel's; 50 this one, 60 its child.
        assert_eq!(others(&processes, 50), 100_001);
    }

    #[test]
    fn what_this_process_does_is_accounted_for() {
        let meter = Meter::start().unwrap();
        let start = clock_gettime(ClockId::ThreadCPUTime);
        let spent = |start: &rustix::time::Timespec| {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            (now.tv_sec - start.tv_sec) as f64 + (now.tv_nsec - start.tv_nsec) as f64 / 1e9
        };
        while spent(&start) < 0.05 {
            std::hint::black_box(0);
        }
        let used = meter.stop().unwrap();
        assert!(used.accounted_s >= 0.05, "{used:?}");
    }
}
