//! What `rtp_app` is made of.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | the command line and its mistakes |
//! | [`cmd`] | one file per command |
//! | [`machine`] | what this machine dropped of everybody's packets |
//! | [`text`], [`live`] | the figures for people |
//! | [`signals`], [`stdio`] | ending when asked to |
//! | [`capture`] | capture files: reading, finding the RTP, writing |
//! | [`media`] | MPEG-TS, WAV, SDP: what payloads are made of and restored to |
//! | [`figures`] | from the library's snapshot to the JSON |
//! | [`output`] | the JSON schema |
//! | [`error`] | how a command fails, and its exit status |

#![deny(missing_docs)]
// The library is the program's own: its documentation is read with private items.
#![allow(rustdoc::private_intra_doc_links)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

pub mod capture;
pub mod cli;
pub mod cmd;
pub mod error;
pub mod figures;
pub mod live;
pub mod machine;
pub mod media;
pub mod output;
pub mod signals;
pub mod stdio;
pub mod text;

use cli::{Command, Parsed};
use error::Failure;
use signals::Stop;

/// Runs the program. `arguments` begins with its own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match begin(arguments) {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when this fails too.
            let _ = writeln!(std::io::stderr(), "rtp_app: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn begin(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let stop = Stop::install()
        .map_err(|error| Failure::failed(format!("signals cannot be handled: {error}")))?;
    log();
    let cli = match cli::parse(arguments)? {
        Parsed::Help(text) => return print(&text),
        Parsed::Run(cli) => *cli,
    };
    if cli.version {
        return cmd::version(cli.json);
    }
    match cli.command {
        None => print(&cli::help()),
        Some(command) => execute(&command, &stop),
    }
}

fn execute(command: &Command, stop: &Stop) -> Result<(), Failure> {
    match command {
        Command::Inspect(args) => cmd::inspect::run(args, stop),
        Command::Rx(args) => cmd::rx::run(args, stop),
        Command::Tx(args) => cmd::tx::run(args, stop),
        Command::Consume(args) => cmd::consume::run(args, stop),
        Command::Demo(args) => cmd::demo::run(args, stop),
        Command::List(args) => cmd::streams::list(args),
        Command::Stat(args) => cmd::streams::stat(args),
        Command::Doctor(args) => cmd::doctor::run(args),
        Command::Bench(args) => cmd::bench::run(args, stop),
    }
}

/// What the library has to say goes to standard error when RUST_LOG asks for it.
fn log() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Fails only when a log is there already.
        let _ = log.try_init();
    }
}

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}
