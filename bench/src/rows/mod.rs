//! What is measured: one file per row of the report. A row that is measured under several conditions is
//! several rows in the report.

use anyhow::Result;
use rtp_mgr_bench_report::Row;

use crate::Settings;
use crate::lab::Lab;

mod flows;
mod goodput;
mod hop;
mod latency;
mod lossless;
mod pacing;
mod processor;
mod resilience;
mod start;

/// A kind of row.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What `--row` accepts.
    pub name: &'static str,
    /// What is measured, for people.
    pub about: &'static str,
    run: fn(&Settings<'_>) -> Result<Vec<Row>>,
}

/// All of them, in the order of the report.
pub const ALL: &[Kind] = &[
    Kind { name: "goodput", about: "coalesced goodput, embedded", run: goodput::rows },
    Kind { name: "lossless", about: "lossless rate, per packet, embedded", run: lossless::rows },
    Kind { name: "cpu", about: "CPU per packet, embedded receive", run: processor::rows },
    Kind { name: "hop", about: "ring hop", run: hop::rows },
    Kind { name: "latency", about: "latency", run: latency::rows },
    Kind { name: "resilience", about: "resilience", run: resilience::rows },
    Kind { name: "pacing", about: "pacing", run: pacing::rows },
    Kind { name: "flows", about: "many flows", run: flows::rows },
    Kind { name: "start", about: "start-up", run: start::rows },
];

impl Kind {
    /// Measures. A row that cannot be run here says so itself.
    ///
    /// # Errors
    /// The user wants the end.
    pub fn run(&self, settings: &Settings<'_>) -> Result<Vec<Row>> {
        settings.check_stop()?;
        match (self.run)(settings) {
            Ok(rows) => Ok(rows),
            Err(error) => {
                settings.check_stop()?;
                Ok(vec![Row::not_run(self.about, "", "", format!("{error:#}"))])
            }
        }
    }
}

/// A cable, or, where namespaces cannot be made, loopback and the reason.
fn lab() -> (Option<Lab>, Option<String>) {
    match Lab::new() {
        Ok(lab) => (Some(lab), None),
        Err(error) => (None, Some(format!("over loopback, not across a cable: {error:#}"))),
    }
}

/// A transport stream of empty packets, each seventh with a clock reference: FFmpeg looks for two.
fn transport_stream(packets: usize) -> Vec<u8> {
    let mut stream = Vec::with_capacity(packets * 188);
    for at in 0..packets {
        let mut packet = [0xff_u8; 188];
        if at % 7 == 0 {
            // ISO/IEC 13818-1 2.4.3.5: PID 0x100, adaptation field only, a reference of 1 ms more each.
            let base = (at as u64 / 7 * 90) << 15 | 0x7e00;
            packet[..6].copy_from_slice(&[0x47, 0x01, 0x00, 0x20, 183, 0x10]);
            packet[6..12].copy_from_slice(&base.to_be_bytes()[2..]);
        } else {
            // PID 0x1fff: empty.
            packet[..4].copy_from_slice(&[0x47, 0x1f, 0xff, 0x10 | (at as u8 & 15)]);
        }
        stream.extend(packet);
    }
    stream
}
