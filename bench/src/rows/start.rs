//! Start-up: from the command, or from the call that opens a stream, to the first packet.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rtp_mgr::{Engine, Leg, Receiver, Transmitter};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};

use crate::Settings;
use crate::net::{Net, Side};
use crate::receivers::{Program, missing_program};

#[derive(Clone, Copy)]
enum Who {
    Ours,
    GStreamer,
    Ffmpeg,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    Ok(vec![command(settings)?, library(settings)?])
}

fn contest(row: &str) -> Contest {
    Contest {
        row: row.into(),
        unit: "ms",
        better: Better::Lower,
        target: "under 10 ms".into(),
        goals: vec![Goal::Value(Bound::AtMost(10.0))],
        ..Contest::default()
    }
}

/// From starting a program to its first packet.
fn command(settings: &Settings<'_>) -> Result<Row> {
    let mut contest = contest("start-up: command to first packet");
    let mut candidates = vec![(OURS, Who::Ours)];
    if settings.all_peers {
        for (name, who, program) in
            [("gstreamer", Who::GStreamer, "gst-launch-1.0"), ("ffmpeg", Who::Ffmpeg, "ffmpeg")]
        {
            match missing_program(program) {
                None => candidates.push((name, who)),
                Some(why) => contest.absent(name, why),
            }
        }
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("short.ts");
    std::fs::write(&file, super::transport_stream(700))?;
    settings.interleave("start-up", &candidates, &mut contest, |who, _| {
        let socket = Net::Loopback.receiver(0)?;
        let port = socket.local_addr()?.port();
        let mut command = match who {
            Who::Ours => {
                let mut command = Command::new(&settings.rtp_app);
                command.args(["tx", "--engine", "user", "--dst", "127.0.0.1"]);
                command.args(["--port", &port.to_string(), "--count", "2"]);
                command
            }
            Who::GStreamer => {
                let mut command = Command::new("gst-launch-1.0");
                command.args(["-q", "fakesrc", "num-buffers=2", "sizetype=fixed", "sizemax=1212"]);
                command.args(["!", "udpsink", "host=127.0.0.1", &format!("port={port}")]);
                command
            }
            Who::Ffmpeg => {
                let mut command = Command::new("ffmpeg");
                command
                    .args(["-nostdin", "-loglevel", "error", "-f", "mpegtsraw", "-i"])
                    .arg(&file);
                command.args(["-map", "0", "-c", "copy", "-f", "rtp"]);
                command.arg(format!("udp://127.0.0.1:{port}?pkt_size=1328"));
                command
            }
        };
        let start = Instant::now();
        let program = Net::Loopback.at(Side::Sender, || Program::start(&mut command))?;
        let first = first_packet(&socket, start)?;
        drop(program);
        Ok(first)
    })?;
    Ok(contest.finish())
}

/// Milliseconds from `start` to the first packet.
fn first_packet(socket: &UdpSocket, start: Instant) -> Result<f64> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.recv(&mut [0; 2_048]).context("no packet within 10 s")?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// From opening both ends to reading the first packet.
fn library(settings: &Settings<'_>) -> Result<Row> {
    let mut contest = contest("start-up: library, both ends opened to first packet read");
    settings.interleave("start-up", &[(OURS, ())], &mut contest, |(), _| {
        let start = Instant::now();
        let mut receiver = Receiver::builder()
            .engine(Engine::User)
            .leg(Leg::new(Net::Loopback.address().into(), 0))
            .open()?;
        let port = receiver.local_addr(0).context("no address")?.port();
        let mut transmitter = Transmitter::builder()
            .engine(Engine::User)
            .leg(Leg::new(Net::Loopback.address().into(), port))
            .open()?;
        let mut slots = transmitter.reserve(1, Duration::from_secs(1))?;
        let mut slot = slots.get(0).context("no slot")?;
        slot.rtp(true, 0);
        slot.set_payload_len(1_200)?;
        slots.commit(1)?;
        let batch = receiver.read(Duration::from_secs(10))?.context("the stream stopped")?;
        let first = start.elapsed().as_secs_f64() * 1e3;
        let came = batch.len();
        batch.release();
        (came > 0).then_some(first).context("no packet within 10 s")
    })?;
    Ok(contest.finish())
}
