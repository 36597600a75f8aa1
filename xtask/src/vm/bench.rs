//! What a packet costs, counted in instructions inside the machine.
//!
//! The program is `kernel/bench`; here it is run, and its figures are read and compared.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::machine::{self, Settings};
use super::suite::Kernel;
use super::{Guest, build, prepare};
use crate::project::Project;

/// The program's longest run.
const TIMEOUT: Duration = Duration::from_secs(900);
/// What is taken from every other figure of a load: a packet that nobody receives.
const FLOOR: &str = "drop";

/// Instructions per packet, whole system.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figure {
    /// How packets are sent.
    pub load: String,
    /// How they are received.
    pub way: String,
    /// Of each run.
    pub instructions: Vec<f64>,
}

impl Figure {
    /// The median run.
    pub fn median(&self) -> f64 {
        let mut sorted = self.instructions.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Measures what has `filter` in its name.
pub fn figures(
    cache: &Cache,
    kernel: &Kernel,
    project: &Project,
    runs: u32,
    filter: &str,
) -> Result<Vec<Figure>> {
    let guest = Guest {
        module: build::module(cache, kernel, project)?,
        files: build::bench(project)?,
        tests: Vec::new(),
        disk: None,
    };
    let settings = Settings {
        timeout: TIMEOUT,
        icount: true,
        parallel: false,
        append: Vec::new(),
        load: true,
    };
    let command = ["vm_bench".into(), runs.to_string().into(), filter.into()];
    let mut figures = Vec::new();
    let mut print = |line: &str| match line.strip_prefix("figure ") {
        Some(figure) => figures.push(serde_json::from_str(figure)),
        None => eprintln!("{line}"),
    };
    machine::run_with(cache, kernel, &guest, &command, settings, &mut print)?;
    let figures = figures.into_iter().collect::<Result<Vec<Figure>, _>>();
    let figures = figures.context("read the figures")?;
    ensure!(!figures.is_empty(), "nothing has {filter:?} in its name");
    Ok(figures)
}

/// A row of the report.
struct Plan {
    row: &'static str,
    load: &'static str,
    /// Less what the same load costs when it is dropped on arrival.
    share: bool,
    ours: &'static str,
    peers: &'static [&'static str],
    target: &'static str,
    goals: &'static [Goal],
}

const UNIT: &str = "instructions/packet";
const RUNS: u32 = 5;
const ORDERED: &str = "ring, ordered";
const ONE_BY_ONE: [&str; 4] = ["recv", "recvmmsg", "recvmmsg UDP_GRO", "TPACKET_V3"];
const SHARES: [Goal; 2] =
    [Goal::Ratio("recvmmsg", Bound::AtMost(0.6)), Goal::Ratio("TPACKET_V3", Bound::AtMost(0.85))];
const SHARES_TARGET: &str = "receive share at most 0.6 of recvmmsg's and 0.85 of TPACKET_V3's";
const COALESCED: [&str; 3] = ["recvmmsg UDP_GRO", "recvmmsg", "TPACKET_V3"];
const COALESCED_GOAL: [Goal; 1] = [Goal::Ratio("recvmmsg UDP_GRO", Bound::AtMost(1.2))];
const COALESCED_TARGET: &str = "whole cost at most 1.2 of a bare UDP_GRO reader's";
const RINGS: &str = "ring to ring";
const RELAY: &str = "sendmmsg to recvmmsg";
const RELAY_SEGMENTED: &str = "UDP_SEGMENT to recvmmsg";
const COPIED: &str = "copied";
const OWN_PAGES: &str = "read from the ring";

/// The rows of the kernel engine.
const PLANS: [Plan; 9] = [
    Plan {
        row: "kernel engine, receive, one by one",
        load: "single",
        share: true,
        ours: ORDERED,
        peers: &ONE_BY_ONE,
        target: SHARES_TARGET,
        goals: &SHARES,
    },
    Plan {
        row: "kernel engine, receive, one by one, multicast",
        load: "multicast",
        share: true,
        ours: ORDERED,
        peers: &ONE_BY_ONE,
        target: SHARES_TARGET,
        goals: &SHARES,
    },
    Plan {
        row: "kernel engine, receive, coalesced",
        load: "segmented",
        share: false,
        ours: ORDERED,
        peers: &COALESCED,
        target: COALESCED_TARGET,
        goals: &COALESCED_GOAL,
    },
    Plan {
        row: "kernel engine, receive, coalesced, multicast",
        load: "multicast segmented",
        share: false,
        ours: ORDERED,
        peers: &COALESCED,
        target: COALESCED_TARGET,
        goals: &COALESCED_GOAL,
    },
    Plan {
        row: "kernel engine, transmit to receive, one by one",
        load: "relay",
        share: false,
        ours: RINGS,
        peers: &[RELAY, RELAY_SEGMENTED],
        target: "whole cost at most 0.8 of sendmmsg to recvmmsg",
        goals: &[Goal::Ratio(RELAY, Bound::AtMost(0.8))],
    },
    Plan {
        row: "kernel engine, transmit to receive, one by one, sent one by one",
        load: "relay unsegmented",
        share: false,
        ours: RINGS,
        peers: &[RELAY],
        target: "-",
        goals: &[],
    },
    Plan {
        row: "kernel engine, transmit to receive, coalesced",
        load: "relay segmented",
        share: false,
        ours: RINGS,
        peers: &[RELAY, RELAY_SEGMENTED],
        target: "whole cost at most 0.12 of sendmmsg to recvmmsg, one by one",
        goals: &[Goal::Ratio(RELAY, Bound::AtMost(0.12))],
    },
    Plan {
        row: "kernel engine, transmit from the ring's own pages, trains of 46 x 1,400 B",
        load: "transmit 46 of 1400",
        share: false,
        ours: OWN_PAGES,
        peers: &[COPIED],
        target: "less than copying",
        goals: &[Goal::Ratio(COPIED, Bound::AtMost(1.0))],
    },
    Plan {
        row: "kernel engine, transmit from the ring's own pages, trains of 8 x 8,000 B",
        load: "transmit 8 of 8000",
        share: false,
        ours: OWN_PAGES,
        peers: &[COPIED],
        target: "less than copying",
        goals: &[Goal::Ratio(COPIED, Bound::AtMost(1.0))],
    },
];

/// The rows of the kernel engine, measured; without a machine, with the reason.
pub fn rows(project: &Project) -> Vec<Row> {
    let measured = Cache::open().and_then(|cache| {
        let kernel = prepare::run(&cache, None, None)?;
        Ok((kernel.release.clone(), figures(&cache, &kernel, project, RUNS, "")?))
    });
    match measured {
        Ok((release, figures)) => PLANS.iter().map(|plan| plan.row(&release, &figures)).collect(),
        Err(error) => {
            let not_run =
                |plan: &Plan| Row::not_run(plan.row, UNIT, plan.target, format!("{error:#}"));
            PLANS.iter().map(not_run).collect()
        }
    }
}

impl Plan {
    fn row(&self, release: &str, figures: &[Figure]) -> Row {
        let of =
            |way: &str| figures.iter().find(|figure| figure.load == self.load && figure.way == way);
        let mut contest = Contest {
            row: self.row.into(),
            unit: UNIT,
            better: Better::Lower,
            target: self.target.into(),
            goals: self.goals.into(),
            ..Contest::default()
        };
        let floor = of(FLOOR).filter(|_| self.share);
        for (name, way) in
            [(OURS, self.ours)].into_iter().chain(self.peers.iter().map(|way| (*way, *way)))
        {
            let Some(figure) = of(way) else {
                contest.absent(name, "not measured");
                continue;
            };
            for (run, whole) in figure.instructions.iter().enumerate() {
                let floor = floor.and_then(|floor| floor.instructions.get(run)).unwrap_or(&0.0);
                contest.add(name, whole - floor);
            }
        }
        contest.notes = vec![format!(
            "Linux {release}, emulated, one CPU; every instruction of the whole machine counts"
        )];
        if self.ours != OWN_PAGES {
            contest.notes.push(RECEIVERS.into());
        }
        contest.finish()
    }
}

/// What to know of the rows with receivers.
const RECEIVERS: &str = "1,400 bytes over loopback; the peers do nothing with RTP, the kernel engine parses, orders and \
                         counts it";

/// The figures for people: whole cost, and the receiver's share.
pub fn table(figures: &[Figure]) -> String {
    let mut text = format!("{:<24}{:<22}{:>10}{:>10}\n", "load", "receiver", "whole", "share");
    for figure in figures {
        let floor = figures.iter().find(|other| other.load == figure.load && other.way == FLOOR);
        let share =
            floor.map_or(String::new(), |floor| format!("{:.0}", figure.median() - floor.median()));
        let _ = writeln!(
            text,
            "{:<24}{:<22}{:>10.0}{:>10}",
            figure.load,
            figure.way,
            figure.median(),
            share
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(load: &str, way: &str, instructions: &[f64]) -> Figure {
        Figure { load: load.into(), way: way.into(), instructions: instructions.into() }
    }

    #[test]
    fn a_share_is_what_receiving_adds_to_dropping() {
        let figures = [
            figure("single", FLOOR, &[100.0, 100.0]),
            figure("single", "recvmmsg", &[200.0, 200.0]),
            figure("single", "TPACKET_V3", &[180.0, 180.0]),
            figure("single", ORDERED, &[150.0, 160.0]),
            figure("other", ORDERED, &[1.0]),
        ];
        let row = PLANS[0].row("7.3", &figures);
        assert_eq!(row.ratios["recvmmsg"], 0.55);
        assert_eq!((row.ours, row.met), (Some(55.0), Some(true)));
        assert!(row.not_run.contains_key("recv"));
    }

    #[test]
    fn the_whole_cost_is_not_lessened() {
        let figures = [
            figure("segmented", FLOOR, &[100.0]),
            figure("segmented", "recvmmsg UDP_GRO", &[200.0]),
            figure("segmented", ORDERED, &[250.0]),
        ];
        let row = PLANS[2].row("7.3", &figures);
        assert_eq!((row.ours, row.ratios["recvmmsg UDP_GRO"]), (Some(250.0), 1.25));
        assert_eq!(row.met, Some(false));
    }
}
