//! FFmpeg and GStreamer send; what `rx` writes is what they read, byte by byte or sample by sample.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::app::{self, Receiver};
use super::media::{Audio, Linear, Tail, transport_stream};
use super::{Bench, Test, ports, read, same_bytes};
use crate::process::output;
use crate::report::Outcome;

pub const TESTS: &[Test] = &[
    Test { name: "FFmpeg TS to rx", needs: &["ffmpeg"], run: ffmpeg_ts },
    Test { name: "FFmpeg L16 to rx", needs: &["ffmpeg"], run: |b| ffmpeg_audio(b, Linear::L16) },
    Test { name: "FFmpeg L24 to rx", needs: &["ffmpeg"], run: |b| ffmpeg_audio(b, Linear::L24) },
    Test { name: "GStreamer TS to rx", needs: &["ffmpeg", "gst-launch-1.0"], run: gstreamer_ts },
    Test {
        name: "GStreamer L16 to rx",
        needs: &["gst-launch-1.0"],
        run: |b| gstreamer_audio(b, Linear::L16),
    },
    Test {
        name: "GStreamer L24 to rx",
        needs: &["gst-launch-1.0"],
        run: |b| gstreamer_audio(b, Linear::L24),
    },
];

/// How long a peer may take to send two seconds of media.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// How long `rx` may take to notice the end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// FFmpeg's RTCP on the media port must not be taken for RTP.
fn ffmpeg_ts(bench: &Bench) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Full)?;
    let port = ports::free_pair()?;
    let out = bench.file("out.ts");
    let receiver = Receiver::start(bench, port, ["--out".as_ref(), out.as_os_str()])?;
    ffmpeg_sends_ts(bench, &programme, port)?;
    let report = receiver.finish(END_LIMIT)?;
    let stream = app::only_stream(&report)?;
    app::nothing_lost(stream)?;
    let rtcp = app::number(&report["not_rtp"], "rtcp")?;
    ensure!(rtcp > 0, "FFmpeg's RTCP on the media port was not told apart");
    same_bytes("TS", &read(&programme)?, &read(&out)?)?;
    ensure!(stream["payload_type"] == 33, "the payload type is {}", stream["payload_type"]);
    passed(stream, &format!(", {rtcp} RTCP on the media port"))
}

fn ffmpeg_audio(bench: &Bench, linear: Linear) -> Result<Outcome> {
    let audio = Audio::new(bench, linear)?;
    let port = ports::free_pair()?;
    let out = bench.file("out.wav");
    let receiver = receive_audio(bench, port, linear, &out)?;
    let codec = if linear == Linear::L24 { "pcm_s24be" } else { "pcm_s16be" };
    let mut command = ffmpeg();
    command
        .args(["-re", "-i"])
        .arg(&audio.path)
        .args(["-c:a", codec, "-f", "rtp", "-payload_type", "97"])
        .arg(format!("rtp://127.0.0.1:{port}?pkt_size=300"));
    output(bench.directory(), "ffmpeg", &mut command, SEND_LIMIT)?;
    finish_audio(receiver, &audio, &out)
}

fn gstreamer_ts(bench: &Bench) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Full)?;
    let port = ports::free_pair()?;
    let out = bench.file("out.ts");
    let receiver = Receiver::start(bench, port, ["--out".as_ref(), out.as_os_str()])?;
    gstreamer_sends_ts(bench, &programme, port)?;
    let report = receiver.finish(END_LIMIT)?;
    let stream = app::only_stream(&report)?;
    app::nothing_lost(stream)?;
    same_bytes("TS", &read(&programme)?, &read(&out)?)?;
    passed(stream, "")
}

fn gstreamer_audio(bench: &Bench, linear: Linear) -> Result<Outcome> {
    let audio = Audio::new(bench, linear)?;
    let port = ports::free_pair()?;
    let out = bench.file("out.wav");
    let receiver = receive_audio(bench, port, linear, &out)?;
    let mut command = gst_launch();
    command
        .arg("filesrc")
        .arg(location(&audio.path))
        .args("! wavparse ! audioconvert dithering=none noise-shaping=none !".split(' '))
        .arg(format!("rtp{}pay", linear.name()))
        .args("pt=97 min-ptime=1000000 max-ptime=1000000 ! udpsink host=127.0.0.1".split(' '))
        .arg(format!("port={port}"));
    output(bench.directory(), "gst-launch", &mut command, SEND_LIMIT)?;
    finish_audio(receiver, &audio, &out)
}

/// Sends a transport stream with FFmpeg, which puts its RTCP on the media port here.
pub fn ffmpeg_sends_ts(bench: &Bench, programme: &Path, port: u16) -> Result<()> {
    let mut command = ffmpeg();
    command
        .args(["-f", "mpegtsraw", "-i"])
        .arg(programme)
        .args(["-map", "0", "-c", "copy", "-f", "rtp"])
        .arg(format!("udp://127.0.0.1:{port}?pkt_size=1328&bitrate=4000000"));
    output(bench.directory(), "ffmpeg", &mut command, SEND_LIMIT).map(drop)
}

/// Sends a transport stream with GStreamer.
pub fn gstreamer_sends_ts(bench: &Bench, programme: &Path, port: u16) -> Result<()> {
    let mut command = gst_launch();
    command
        .arg("filesrc")
        .arg(location(programme))
        .args("blocksize=1316 ! video/mpegts,systemstream=true,packetsize=188 !".split(' '))
        .args("rtpmp2tpay ! udpsink host=127.0.0.1 max-bitrate=4000000".split(' '))
        .arg(format!("port={port}"));
    output(bench.directory(), "gst-launch", &mut command, SEND_LIMIT).map(drop)
}

fn receive_audio(bench: &Bench, port: u16, linear: Linear, out: &Path) -> Result<Receiver> {
    let format = linear.format();
    Receiver::start(
        bench,
        port,
        ["--format".as_ref(), format.as_ref(), "--out".as_ref(), out.as_os_str()],
    )
}

fn finish_audio(receiver: Receiver, audio: &Audio, out: &Path) -> Result<Outcome> {
    let report = receiver.finish(END_LIMIT)?;
    let stream = app::only_stream(&report)?;
    app::nothing_lost(stream)?;
    ensure!(stream["payload_type"] == 97, "the payload type is {}", stream["payload_type"]);
    audio.same_samples(out)?;
    passed(stream, "")
}

fn passed(stream: &serde_json::Value, more: &str) -> Result<Outcome> {
    Ok(Outcome::Passed(format!("{} packets, exact{more}", app::number(stream, "packets")?)))
}

fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-hide_banner", "-v", "warning"]);
    command
}

fn gst_launch() -> Command {
    let mut command = Command::new("gst-launch-1.0");
    command.arg("-q");
    command
}

fn location(path: &Path) -> String {
    format!("location={}", path.display())
}
