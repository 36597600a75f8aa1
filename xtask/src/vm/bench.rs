//! Measurements of the kernel engine, as rows of the report of `cargo xtask bench`: instructions per
//! packet of the whole machine, counted by a clock that advances 1 ns with each.

use rtp_mgr_bench_report::Row;

use crate::project::Project;

/// What is to be measured in the machine, and what it is to reach.
const ROWS: [(&str, &str); 4] = [
    (
        "kernel engine, receive, one by one, reference path",
        "at most 0.6 of recvmmsg's and 0.85 of TPACKET_V3's receive share",
    ),
    ("kernel engine, receive, coalesced", "at most 1.2 of a bare UDP_GRO reader"),
    ("kernel engine, transmit to receive, one by one", "at most 0.8 of sendmmsg-to-recvmmsg"),
    ("kernel engine, transmit to receive, coalesced", "at most 0.12 of sendmmsg-to-recvmmsg"),
];

/// The rows of the kernel engine.
pub fn rows(_project: &Project) -> Vec<Row> {
    let why = "not measured by this command yet: it needs the virtual machine";
    ROWS.iter().map(|(row, target)| Row::not_run(row, "instructions/packet", target, why)).collect()
}
