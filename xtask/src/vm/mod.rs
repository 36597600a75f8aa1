//! `cargo xtask vm`: the kernel module, built for a stock distribution kernel and run in it.
//!
//! Everything that takes long is prepared once and kept outside the checkout ([`cache`]): a chroot
//! of Debian with the compilers that built the distribution's kernel, the Rust metadata of that kernel
//! (which the header packages leave out), and its image. After that, building the module and
//! booting a virtual machine with it takes seconds.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cache`] | where things are kept, and that one process at a time changes them |
//! | [`mirror`] | the package mirror that this machine's apt uses |
//! | [`suite`] | which suite has a kernel, and the chroot of its compilers |
//! | [`prepare`] | kernel headers, metadata, image |
//! | [`bench`](mod@bench) | what the kernel engine costs, in instructions |
//! | [`build`] | the module and the static programs that run beside it |
//! | [`furniture`] | the kernel's own modules and the tools that every machine has |
//! | [`peers`] | FFmpeg and GStreamer, on a disk |
//! | [`initramfs`] | the archive that the kernel boots with |
//! | [`machine`] | QEMU: booting, what it printed, how it ended |
//! | [`results`] | the tests' result lines, counted |

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::project::Project;
use crate::report::{Outcome, Report};

pub mod bench;
mod build;
mod cache;
mod furniture;
mod initramfs;
mod machine;
mod mirror;
mod peers;
mod prepare;
mod results;
mod suite;

use cache::Cache;
use machine::{Failed, Settings};
use suite::Kernel;

/// The kernels of the test command: the newest, the oldest series that the module supports, and the
/// same built by a compiler 12 versions younger.
const TESTED: [Wanted; 3] = [
    Wanted { series: None, suite: "trixie-backports", tests: Tests::All },
    Wanted { series: Some("7.2"), suite: "trixie-backports", tests: Tests::Module },
    Wanted { series: Some("7.2"), suite: "testing", tests: Tests::Smoke },
];
/// Test programs that run quickly and use most of the module.
const SMOKE: [&str; 2] = ["stream", "memory"];
/// Time for all tests in the machine.
const TEST_TIMEOUT_S: u64 = 900;

/// `cargo xtask vm`
#[derive(Debug, Args)]
pub struct VmArgs {
    /// Series of the kernel, such as 7.2; without it, the newest that the distribution has
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
    /// Suite that the kernel is from, such as testing; without it, the first that has it
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Emulate each CPU by a thread of its own, without KVM: they really run at once, but now and then the
    /// emulator runs a CPU into code that another is patching ("Oops: int3")
    #[arg(long)]
    parallel: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch and build what the others need (they do so themselves)
    Prepare,
    /// Build the module, and say where it is
    Build,
    /// Lint the module with the kernel's clippy
    Clippy,
    /// Run a command in the machine, with the module loaded; exits with the command's status
    Run {
        #[command(flatten)]
        options: RunOptions,
        /// Seconds after which the machine is stopped
        #[arg(long, value_name = "S", default_value_t = 120)]
        timeout: u64,
        /// One CPU whose clock advances 1 ns with each instruction, for measurements
        #[arg(long)]
        icount: bool,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// A shell in the machine, with the module loaded
    Shell {
        #[command(flatten)]
        options: RunOptions,
    },
    /// Count what a packet costs, kernel engine and plain sockets, in instructions of the whole system
    Bench {
        /// Times that each is measured
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: u32,
        /// Also write the figures to this file, as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Only what has this in its name, such as "segmented, ring"
        filter: Option<String>,
    },
    /// The module's tests, in the machine
    Test {
        /// Seconds after which the machine is stopped
        #[arg(long, value_name = "S", default_value_t = TEST_TIMEOUT_S)]
        timeout: u64,
        /// Passed to the test programs: a filter, --nocapture and the like
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct RunOptions {
    /// Do not load the module
    #[arg(long)]
    no_module: bool,
    /// Add a word to the kernel's command line, such as lockdown=integrity (repeatable)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Put a file into the machine's /root, under its own name (repeatable)
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Give the machine the disk with FFmpeg and GStreamer
    #[arg(long)]
    peers: bool,
}

/// Runs one of the tasks.
pub fn run(project: &Project, arguments: &VmArgs) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let kernel = prepare::run(&cache, arguments.kernel.as_deref(), arguments.suite.as_deref())?;
    eprintln!("kernel {} ({})", kernel.release, kernel.suite.kernels);
    match &arguments.task {
        Task::Prepare => machine::accelerator(&cache, &kernel).map(drop)?,
        Task::Build => println!("{}", build::module(&cache, &kernel, project)?.display()),
        Task::Clippy => build::clippy(&cache, &kernel, &project.root)?,
        Task::Run { options, timeout, icount, command } => {
            let guest = options.guest(&cache, &kernel, project)?;
            let settings = options.settings(*timeout, *icount).parallel(arguments.parallel);
            if let Err(error) = machine::run(&cache, &kernel, &guest, command, settings) {
                let Some(Failed(status)) = error.downcast_ref() else { return Err(error) };
                return Ok(ExitCode::from(*status));
            }
        }
        Task::Shell { options } => {
            let guest = options.guest(&cache, &kernel, project)?;
            let settings = options.settings(0, false).parallel(arguments.parallel);
            machine::shell(&cache, &kernel, &guest, settings)?;
        }
        Task::Bench { runs, json, filter } => {
            let filter = filter.as_deref().unwrap_or_default();
            let figures = bench::figures(&cache, &kernel, project, *runs, filter)?;
            print!("{}", bench::table(&figures));
            if let Some(file) = json {
                let text = serde_json::to_string_pretty(&figures)?;
                std::fs::write(file, text).with_context(|| file.display().to_string())?;
            }
        }
        Task::Test { timeout, arguments: words } => {
            let mut guest = Guest::new(&cache, &kernel, project)?;
            for test in &mut guest.tests {
                test.choose(words);
            }
            let guest = guest.equipped(&cache, &kernel)?;
            let settings = Settings::tests(*timeout).parallel(arguments.parallel);
            machine::test(&cache, &kernel, &guest, settings)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl RunOptions {
    fn guest(&self, cache: &Cache, kernel: &Kernel, project: &Project) -> Result<Guest> {
        let mut guest = Guest::new(cache, kernel, project)?.with(&self.file);
        if self.peers {
            guest.disk = Some(peers::disk(cache, kernel)?);
        }
        Ok(guest)
    }

    fn settings(&self, timeout_s: u64, icount: bool) -> Settings {
        Settings {
            timeout: Duration::from_secs(timeout_s),
            icount,
            parallel: false,
            append: self.append.clone(),
            load: !self.no_module,
        }
    }
}

impl Settings {
    fn tests(timeout_s: u64) -> Self {
        let timeout = Duration::from_secs(timeout_s);
        Self { timeout, icount: false, parallel: false, append: Vec::new(), load: true }
    }

    fn parallel(self, parallel: bool) -> Self {
        Self { parallel, ..self }
    }
}

/// A test program and how it is called.
#[derive(Clone, Debug)]
struct Test {
    program: String,
    /// Whether it has libtest's options.
    libtest: bool,
    arguments: Vec<String>,
}

impl Test {
    /// Adds what the user said: everything to a program with libtest's options, filters to others.
    fn choose(&mut self, arguments: &[String]) {
        let filters = arguments.iter().filter(|word| self.libtest || !word.starts_with('-'));
        self.arguments.extend(filters.cloned());
    }
}

/// What the machine is given: the module and programs.
struct Guest {
    module: PathBuf,
    /// Path in the machine, and file here.
    files: Vec<(String, PathBuf)>,
    /// Those that are test programs, in the order in which they run.
    tests: Vec<Test>,
    /// An image of a disk that can be read.
    disk: Option<PathBuf>,
}

impl Guest {
    fn new(cache: &Cache, kernel: &Kernel, project: &Project) -> Result<Self> {
        let module = build::module(cache, kernel, project)?;
        let (mut files, tests) = build::programs(project)?;
        let consumer = build::consumer(cache, kernel, project)?;
        files.push((format!("bin/{}", build::CONSUMER), consumer));
        files.extend(build::scripts(project, &module));
        Ok(Self { module, files, tests, disk: None })
    }

    /// With the disk that its tests want.
    fn equipped(mut self, cache: &Cache, kernel: &Kernel) -> Result<Self> {
        if self.tests.iter().any(|test| test.program == build::PEERS) {
            self.disk = Some(peers::disk(cache, kernel)?);
        }
        Ok(self)
    }

    fn with(mut self, files: &[PathBuf]) -> Self {
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            self.files.push((format!("root/{name}"), file.clone()));
        }
        self
    }
}

/// A kernel that is asked for, and what is run in it.
struct Wanted {
    series: Option<&'static str>,
    suite: &'static str,
    tests: Tests,
}

/// How much of the tests.
#[derive(Clone, Copy)]
enum Tests {
    All,
    /// Those of the module itself.
    Module,
    Smoke,
}

impl Tests {
    fn wants(self, test: &Test) -> bool {
        match self {
            Self::All => true,
            Self::Module => {
                test.libtest
                    || [build::CONSUMER, build::SCRIPTS_TEST].contains(&test.program.as_str())
            }
            Self::Smoke => SMOKE.contains(&test.program.as_str()),
        }
    }
}

impl Wanted {
    fn row(&self, name: &str) -> String {
        format!("{name} ({} of {})", self.series.unwrap_or("newest"), self.suite)
    }
}

/// Rows of the test command: the module built for each kernel, warnings denied, and the kernel's lints.
pub fn build_rows(project: &Project, report: &mut Report, name: &str) {
    for wanted in &TESTED {
        report.step(&wanted.row(name), || {
            outcome(wanted, |cache, kernel| {
                build::module(cache, kernel, project)?;
                build::clippy(cache, kernel, &project.root)?;
                Ok(kernel.release.clone())
            })
        });
    }
}

/// Rows of the test command: the tests in a virtual machine of each kernel.
pub fn test_rows(project: &Project, report: &mut Report, name: &str) {
    for wanted in &TESTED {
        report.step(&wanted.row(name), || {
            outcome(wanted, |cache, kernel| {
                let mut guest = Guest::new(cache, kernel, project)?;
                guest.tests.retain(|test| wanted.tests.wants(test));
                let guest = guest.equipped(cache, kernel)?;
                let tally = machine::test(cache, kernel, &guest, Settings::tests(TEST_TIMEOUT_S))?;
                Ok(format!("{}: {tally}", kernel.release))
            })
        });
    }
}

/// A machine that cannot be made here is no failure; anything wrong after that is.
fn outcome(wanted: &Wanted, task: impl FnOnce(&Cache, &Kernel) -> Result<String>) -> Outcome {
    let prepared = Cache::open().and_then(|cache| {
        let kernel = prepare::run(&cache, wanted.series, Some(wanted.suite))?;
        Ok((cache, kernel))
    });
    let result = match prepared {
        Ok((cache, kernel)) => task(&cache, &kernel),
        Err(error) if error.downcast_ref::<prepare::Unavailable>().is_some() => {
            eprintln!("{error:#}");
            // What a program said comes at the end, and its last line is the reason.
            let cause = error.root_cause().to_string();
            let reason = cause.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            return Outcome::NotRun(format!("{error}: {reason}"));
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(remark) => Outcome::Passed(remark),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}
