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
//! | [`prepare`] | chroot, kernel headers, metadata, image |
//! | [`build`] | the module and the static programs that run beside it |
//! | [`initramfs`] | the archive that the kernel boots with |
//! | [`machine`] | QEMU: booting, what it printed, how it ended |

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};

mod build;
mod cache;
mod initramfs;
mod machine;
mod mirror;
mod prepare;

use cache::Cache;
use prepare::Target;

/// `cargo xtask vm`
#[derive(Debug, Args)]
pub struct VmArgs {
    /// Series of the kernel, such as 7.2; without it, the newest that the distribution has
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
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
    /// Run a command in the machine, with the module loaded
    Run {
        /// Seconds after which the machine is stopped
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// A shell in the machine, with the module loaded
    Shell,
    /// The module's tests, in the machine
    Test {
        /// Passed to the test programs: a filter, --nocapture and the like
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Runs one of the tasks. `root` is the checkout, `target` where cargo builds.
pub fn run(root: &Path, target: &Path, arguments: &VmArgs) -> Result<()> {
    let cache = Cache::open()?;
    let kernel = prepare::run(&cache, arguments.kernel.as_deref())?;
    cache.share()?;
    println!("kernel {}", kernel.release);
    match &arguments.task {
        Task::Prepare => machine::accelerator(&cache, &kernel).map(drop),
        Task::Build => {
            println!("{}", build::module(&cache, &kernel, root, target)?.display());
            Ok(())
        }
        Task::Clippy => build::clippy(&cache, &kernel, root),
        Task::Run { timeout, command } => {
            let guest = guest(&cache, &kernel, root, target)?;
            machine::run(&cache, &kernel, &guest, command, *timeout)
        }
        Task::Shell => {
            let guest = guest(&cache, &kernel, root, target)?;
            machine::shell(&cache, &kernel, &guest)
        }
        Task::Test { arguments } => {
            let guest = guest(&cache, &kernel, root, target)?;
            machine::test(&cache, &kernel, &guest, arguments)
        }
    }
}

/// What the machine is given: the module and programs.
struct Guest {
    module: std::path::PathBuf,
    /// Name in the machine's path, and file here.
    programs: Vec<(String, std::path::PathBuf)>,
    /// Names of those that are test programs, in the order in which they run.
    tests: Vec<String>,
}

fn guest(cache: &Cache, kernel: &Target, root: &Path, target: &Path) -> Result<Guest> {
    let module = build::module(cache, kernel, root, target)?;
    let (programs, tests) = build::programs(root, target)?;
    Ok(Guest { module, programs, tests })
}
