//! What measurements come to: medians and percentiles, rows that compare, and the report of them
//! all as JSON, as a table, as SVG and as one HTML page.
//!
//! What lives here: arithmetic and text. What does not: measuring (`rtp-mgr-bench`) and files.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chart;
mod row;
pub mod statistics;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use chart::{page, svg};
pub use row::{Better, Bound, Contest, Goal, OURS, Row};
pub use table::table;

/// The machine that was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Processors.
    pub cpus: usize,
    /// Memory, GiB.
    pub memory_gib: f64,
    /// Release of the running kernel.
    pub kernel: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// What was measured.
    pub program: String,
    /// Versions of the peers that are programs.
    pub peers: BTreeMap<String, String>,
    /// Processes that could run at the beginning, on average over a minute: other work on the
    /// machine.
    pub load: f64,
}

/// Everything that one run of the benchmark found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What.
    pub rows: Vec<Row>,
}

impl Report {
    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        // Fails for maps whose keys are no text, and there are none.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}
