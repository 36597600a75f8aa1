//! One file per command, and what they share.

pub mod address;
pub mod bench;
pub mod consume;
pub mod demo;
pub mod doctor;
pub mod inspect;
pub mod rx;
pub mod streams;
pub mod tx;

use std::io::Write;

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR};

use crate::error::Failure;
use crate::output::{EngineVersions, SCHEMA, VersionReport, write_line};

/// `rtp_app --version [--json]`
///
/// # Errors
/// Standard output.
pub fn version(json: bool) -> Result<(), Failure> {
    let report = VersionReport {
        schema: SCHEMA,
        program: "rtp_app",
        version: env!("CARGO_PKG_VERSION"),
        abi: format!("{ABI_MAJOR}.{ABI_MINOR}"),
        engines: EngineVersions { user: Some(env!("CARGO_PKG_VERSION").into()), kernel: None },
    };
    let mut stdout = std::io::stdout().lock();
    if json {
        return write_line(&mut stdout, &report).map_err(Failure::stdout);
    }
    let engine = |version: &Option<String>| version.clone().unwrap_or_else(|| "not there".into());
    writeln!(
        stdout,
        "rtp_app {}, ABI {}; engines: user {}, kernel {}",
        report.version,
        report.abi,
        engine(&report.engines.user),
        engine(&report.engines.kernel),
    )
    .map_err(Failure::stdout)
}
