//! What the machine has of a soak before and after: memory of the kernel, users of the module.

use std::fs;

use crate::process;

/// How much more memory of each kind may be in use afterwards, in KiB: rings, sockets and packets are in these
/// kinds, and the smallest receive ring of the soak has 8 MiB.
const LOST_MAX_KIB: i64 = 2_048;

/// The machine at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// Figures of /proc/meminfo, KiB.
    vmalloc: i64,
    percpu: i64,
    unreclaimable: i64,
    /// Free, or to be had: what processes leave in the allocator's lists makes it no measure of what is lost.
    available: i64,
    /// Users of the module; `None`: not loaded.
    users: Option<i64>,
    descriptors: usize,
    mappings: usize,
    /// Packets that CPUs' backlogs dropped.
    pub backlog_drops: u64,
}

fn meminfo(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

impl Machine {
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let users = fs::read_to_string("/sys/module/rtp_mgr/refcnt").ok();
        Self {
            vmalloc: meminfo(&text, "VmallocUsed"),
            percpu: meminfo(&text, "Percpu"),
            unreclaimable: meminfo(&text, "SUnreclaim"),
            available: meminfo(&text, "MemAvailable"),
            users: users.and_then(|text| text.trim().parse().ok()),
            descriptors: process::descriptors().len(),
            mappings: process::stream_mappings().len(),
            backlog_drops: backlog_drops(),
        }
    }

    /// What is not as it was `before`; `whole`: nobody else uses the machine, so its memory is looked at.
    pub(crate) fn left_over(&self, before: &Self, whole: bool) -> Vec<String> {
        let mut left = Vec::new();
        let mut look = |what: &str, now: i64, then: i64, most: i64| {
            if now - then > most {
                left.push(format!("{what}: {then} before, {now} after"));
            }
        };
        let count = |number: usize| number as i64;
        look("open files of this process", count(self.descriptors), count(before.descriptors), 0);
        look("mappings of streams", count(self.mappings), count(before.mappings), 0);
        if whole {
            look("users of the module", self.users.unwrap_or(0), before.users.unwrap_or(0), 0);
            look("VmallocUsed, KiB", self.vmalloc, before.vmalloc, LOST_MAX_KIB);
            look("Percpu, KiB", self.percpu, before.percpu, LOST_MAX_KIB);
            look("SUnreclaim, KiB", self.unreclaimable, before.unreclaimable, LOST_MAX_KIB);
        }
        left
    }

    /// For people.
    pub(crate) fn text(&self, before: &Self) -> String {
        format!(
            "VmallocUsed {:+} KiB, Percpu {:+} KiB, SUnreclaim {:+} KiB, MemAvailable {:+} KiB",
            self.vmalloc - before.vmalloc,
            self.percpu - before.percpu,
            self.unreclaimable - before.unreclaimable,
            self.available - before.available
        )
    }
}

/// The second column of each CPU's line, hexadecimal.
fn backlog_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let column = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(column).sum()
}
