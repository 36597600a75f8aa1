//! The command lines of the source documents, as written there, with a time limit added.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::interop::app::{self, Receiver};
use crate::process::output;
use crate::project::{Project, on_path};
use crate::report::Outcome;

const PORT: u16 = 5004;
const RECEIVE: &str = "./user/rtp_app --mode rx --bind 127.0.0.1 --port 5004 --duration 20 --json";
const SEND: &str =
    "./user/rtp_app --mode tx --dst 127.0.0.1 --port 5004 --rate 50 --payload 1200 --duration 2";

/// `make -C user`, then the two commands beside each other.
pub fn run(project: &Project) -> Outcome {
    if !on_path("make") {
        return Outcome::NotRun("make is missing (cargo xtask setup)".into());
    }
    if UdpSocket::bind(("127.0.0.1", PORT)).is_err() {
        return Outcome::NotRun(format!("UDP port {PORT} is in use on this machine"));
    }
    Outcome::of(build_and_run(project))
}

fn build_and_run(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    cmd!(shell, "make -C user").run()?;
    let directory = tempfile::tempdir()?;
    println!("$ {RECEIVE}\n$ {SEND}");
    let receiver = Receiver::start_command(directory.path(), command_line(project, RECEIVE))?;
    output(directory.path(), "tx", &mut command_line(project, SEND), Duration::from_secs(20))?;
    let last = receiver.finish(Duration::from_secs(20))?;
    let stream = app::only_stream(&last)?;
    app::nothing_lost(stream)?;
    let packets = app::number(stream, "packets")?;
    // 50 packets per second for 2 s; where the last one falls is the sender's choice.
    ensure!(
        (99..=101).contains(&packets),
        "{packets} packets came; 50 packets/s for 2 s were sent"
    );
    let bytes = app::number(stream, "bytes")?;
    ensure!(bytes == packets * 1200, "{packets} packets of 1200 bytes came as {bytes} bytes");
    Ok(())
}

fn command_line(project: &Project, line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(&project.root);
    command
}
