//! `cargo xtask`: the project's own tasks.
//!
//! | module | what lives there |
//! |---|---|
//! | [`mod@test`] | the test command: its steps, in order |
//! | [`checks`] | formatting, lints, documentation, compiler versions |
//! | [`setup`] | system packages of the interoperability tests |
//! | [`documents`] | the command lines of the source documents, as written |
//! | [`interop`] | FFmpeg, GStreamer and tshark as peers of `rtp_app` |
//! | [`bench`](mod@bench) | measurements beside the peers, and their report |
//! | [`vm`] | the kernel module in a virtual machine |
//! | [`audit`] | licences and advisories |
//! | [`header`], [`panic_check`], [`guard`] | the C header, the panic-free ring, its instruction counts |
//! | [`project`], [`process`], [`report`] | what the above share |

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

mod audit;
mod bench;
mod checks;
mod documents;
mod guard;
mod header;
mod interop;
mod panic_check;
mod process;
mod project;
mod report;
mod setup;
mod test;
mod vm;

use project::Project;

/// The tasks of RTP Manager.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the program and let it send a programme to itself
    Demo(DemoArgs),
    /// Everything that this machine can test; installs what it needs where it may
    Test(test::TestArgs),
    /// Install the system packages that the interoperability tests need
    Setup,
    /// FFmpeg, GStreamer and tshark against rtp_app
    Interop(interop::InteropArgs),
    /// Measure everything beside its peers; the report is target/bench/
    Bench(bench::BenchArgs),
    /// Licences and advisories of the dependencies (cargo-deny)
    Audit,
    /// No panic path in the optimised code of the ring
    PanicCheck,
    /// Instructions per packet of the ring's hot paths, against those on record (valgrind)
    Guard(guard::GuardArgs),
    /// Write include/rtp_mgr.h
    Header(HeaderArgs),
    /// The kernel module in a virtual machine
    Vm(vm::VmArgs),
    /// Model-check the ring (loom)
    Loom,
    /// Formatting of all crates
    FmtCheck,
    /// Lints of all crates, warnings denied
    Clippy,
    /// Documentation of all crates, warnings denied
    Doc,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Passed to `rtp_app demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
struct HeaderArgs {
    /// Only compare with what is checked in
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let project = Project::find()?;
    match task {
        Task::Demo(demo) => checks::demo(&project, &demo.arguments),
        Task::Test(arguments) => test::run(&project, &arguments),
        Task::Setup => setup::run(&project),
        Task::Interop(arguments) => interop::run(&project, &arguments),
        Task::Bench(arguments) => bench::run(&project, &arguments),
        Task::Audit => audit::run(&project),
        Task::PanicCheck => panic_check::run(&project),
        Task::Guard(arguments) => guard::run(&project, &arguments),
        Task::Header(header) => header::run(&project, header.check),
        Task::Vm(arguments) => return vm::run(&project, &arguments),
        Task::Loom => checks::loom(&project),
        Task::FmtCheck => checks::format(&project),
        Task::Clippy => checks::clippy(&project),
        Task::Doc => checks::doc(&project),
    }
    .map(|()| ExitCode::SUCCESS)
}
