//! What a packet costs, counted in instructions inside the machine.
//!
//! The program is `kernel/bench`; here it is run, and its figures are read and compared.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::machine::{self, Settings};
use super::suite::Kernel;
use super::{Guest, build};
use crate::project::Project;

/// The program's longest run.
const TIMEOUT: Duration = Duration::from_secs(900);
/// What is taken from every other figure of a load: a packet that nobody receives.
pub const FLOOR: &str = "drop";

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
