//! What `rtp_app` is made of.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | the command line and its mistakes |
//! | [`cmd`] | one file per command |
//! | [`text`], [`live`] | the figures for people |
//! | [`signals`], [`stdio`] | ending when asked to |
//! | [`media`] | MPEG-TS, WAV, SDP: what payloads are made of and restored to |
//! | [`output`] | the JSON schema |
//! | [`error`] | how a command fails, and its exit status |

#![deny(missing_docs)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

pub mod cli;
pub mod cmd;
pub mod error;
pub mod live;
pub mod media;
pub mod output;
pub mod signals;
pub mod stdio;
pub mod text;

use cli::{Command, Parsed};
use error::Failure;

/// Runs the program. `arguments` begins with its own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match cli::parse(arguments).and_then(dispatch) {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when this fails too.
            let _ = writeln!(std::io::stderr(), "rtp_app: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn dispatch(parsed: Parsed) -> Result<(), Failure> {
    let cli = match parsed {
        Parsed::Help(text) => return print(&text),
        Parsed::Run(cli) => *cli,
    };
    if cli.version {
        return cmd::version(cli.json);
    }
    match cli.command {
        None => print(&cli::help()),
        Some(command) => execute(command),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    Err(Failure::failed(format!("{command:?}: not in this build")))
}

/// Writes text to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}
