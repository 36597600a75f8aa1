//! `tx` sends a file with the session description it wrote; FFmpeg and GStreamer restore the file.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::app;
use super::media::{Audio, Linear, Tail, transport_stream};
use super::{Bench, Test, ports, read, same_bytes};
use crate::process::{Child, output};
use crate::report::Outcome;

pub const TESTS: &[Test] = &[
    Test { name: "tx TS to FFmpeg", needs: &["ffmpeg"], run: ffmpeg_ts },
    Test { name: "tx L16 to FFmpeg", needs: &["ffmpeg"], run: |b| ffmpeg_audio(b, Linear::L16) },
    Test { name: "tx L24 to FFmpeg", needs: &["ffmpeg"], run: |b| ffmpeg_audio(b, Linear::L24) },
    Test { name: "tx TS to GStreamer", needs: &["ffmpeg", "gst-launch-1.0"], run: gstreamer_ts },
    Test {
        name: "tx L16 to GStreamer",
        needs: &["gst-launch-1.0"],
        run: |b| gstreamer_audio(b, Linear::L16),
    },
    Test {
        name: "tx L24 to GStreamer",
        needs: &["gst-launch-1.0"],
        run: |b| gstreamer_audio(b, Linear::L24),
    },
];

const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a peer may take to end after the RTCP BYE. FFmpeg without one waits for 10 s and more.
const BYE_LIMIT: Duration = Duration::from_secs(5);

/// The last frames of a stream that FFmpeg may keep for itself when its input ends.
const CUT_FRAMES: usize = 3;

fn ffmpeg_ts(bench: &Bench) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Short)?;
    let out = bench.file("out.md5");
    let peer = ffmpeg_from(&describe(bench, &programme)?, "framemd5", &out);
    let packets = send_to(bench, peer, &programme)?;

    let reference = bench.file("reference.md5");
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-v", "error", "-i"])
        .arg(&programme)
        .args(["-map", "0", "-c", "copy", "-f", "framemd5"])
        .arg(&reference);
    output(bench.directory(), "reference", &mut command, START_LIMIT)?;
    let sent = frames(&String::from_utf8(read(&reference)?)?)?;
    let came = frames(&String::from_utf8(read(&out)?)?)?;
    let count = same_frames(&sent, &came)?;
    Ok(Outcome::Passed(format!("{packets} packets, {count} frames alike")))
}

fn ffmpeg_audio(bench: &Bench, linear: Linear) -> Result<Outcome> {
    let audio = Audio::new(bench, linear)?;
    let out = bench.file("out.be");
    let muxer = if linear == Linear::L24 { "s24be" } else { "s16be" };
    let peer = ffmpeg_from(&describe(bench, &audio.path)?, muxer, &out);
    let packets = send_to(bench, peer, &audio.path)?;
    same_bytes("samples", &audio.network_bytes(), &read(&out)?)?;
    Ok(Outcome::Passed(format!("{packets} packets, exact")))
}

fn gstreamer_ts(bench: &Bench) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Short)?;
    let out = bench.file("out.ts");
    let peer = gstreamer_from(&describe(bench, &programme)?, "rtpmp2tdepay", &out);
    let packets = send_to(bench, peer, &programme)?;
    same_bytes("TS", &read(&programme)?, &read(&out)?)?;
    Ok(Outcome::Passed(format!("{packets} packets, exact")))
}

fn gstreamer_audio(bench: &Bench, linear: Linear) -> Result<Outcome> {
    let audio = Audio::new(bench, linear)?;
    let out = bench.file("out.be");
    let depayloader = format!("rtp{}depay", linear.name());
    let peer = gstreamer_from(&describe(bench, &audio.path)?, &depayloader, &out);
    let packets = send_to(bench, peer, &audio.path)?;
    same_bytes("samples", &audio.network_bytes(), &read(&out)?)?;
    Ok(Outcome::Passed(format!("{packets} packets, exact")))
}

/// What a peer opens, and where it listens then.
struct Description {
    path: PathBuf,
    port: u16,
}

/// Lets `tx` write the description before anybody listens: it sends one packet, which is thrown away.
fn describe(bench: &Bench, input: &Path) -> Result<Description> {
    let port = ports::free_pair()?;
    let path = bench.file("session.sdp");
    let sinks = [UdpSocket::bind(("127.0.0.1", port))?, UdpSocket::bind(("127.0.0.1", port + 1))?];
    let options = ["--input".as_ref(), input.as_os_str(), "--count".as_ref(), "1".as_ref()];
    app::transmit(bench, port, options.into_iter().chain(["--sdp".as_ref(), path.as_os_str()]))?;
    drop(sinks);
    Ok(Description { path, port })
}

/// A receiving peer.
struct Peer {
    name: &'static str,
    command: Command,
    port: u16,
    /// What it writes to standard output when it takes packets; a bound port is waited for anyway.
    sign: &'static str,
}

fn ffmpeg_from(session: &Description, muxer: &str, out: &Path) -> Peer {
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-hide_banner", "-v", "warning"])
        .args(["-protocol_whitelist", "file,udp,rtp", "-i"])
        .arg(&session.path)
        .args(["-map", "0", "-c", "copy", "-f", muxer])
        .arg(out);
    Peer { name: "ffmpeg", command, port: session.port, sign: "" }
}

fn gstreamer_from(session: &Description, depayloader: &str, out: &Path) -> Peer {
    let mut command = Command::new("gst-launch-1.0");
    command
        .args(["-e", "filesrc"])
        .arg(format!("location={}", session.path.display()))
        .args("! sdpdemux latency=100 timeout=0 !".split(' '))
        .args([depayloader, "!", "filesink"])
        .arg(format!("location={}", out.display()));
    // The pipeline runs once it has its clock.
    Peer { name: "gst-launch", command, port: session.port, sign: "New clock" }
}

/// Starts the peer, sends it the file, waits until the BYE ends it. Returns the packets sent.
fn send_to(bench: &Bench, mut peer: Peer, input: &Path) -> Result<u64> {
    let mut child = Child::start(bench.directory(), peer.name, &mut peer.command)?;
    child.until("listening", START_LIMIT, |child| {
        Ok(ports::listening(peer.port)? && child.stdout()?.contains(peer.sign))
    })?;
    let report = app::transmit(bench, peer.port, ["--input".as_ref(), input.as_os_str()])?;
    child.success(BYE_LIMIT).context("after the RTCP BYE")?;
    app::number(app::only_stream(&report)?, "sent")
}

/// Size and checksum of the frames of each elementary stream, in order.
type Frames = BTreeMap<u32, Vec<(u64, String)>>;

/// Reads FFmpeg's `framemd5`: `stream, dts, pts, duration, size, checksum`. Time stamps are left
/// out: a live receiver counts them from where it began.
fn frames(text: &str) -> Result<Frames> {
    let mut frames = Frames::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<_> = line.split(',').map(str::trim).collect();
        let [stream, _, _, _, size, checksum, ..] = fields[..] else {
            bail!("framemd5: not a frame: {line}");
        };
        frames.entry(stream.parse()?).or_default().push((size.parse()?, checksum.to_owned()));
    }
    Ok(frames)
}

/// Fails unless what came is what was sent, less a few frames at the end. Returns how many are alike.
fn same_frames(sent: &Frames, came: &Frames) -> Result<usize> {
    ensure!(
        sent.keys().eq(came.keys()),
        "streams {:?} were sent, {:?} came",
        sent.keys(),
        came.keys()
    );
    for (stream, sent) in sent {
        let came = &came[stream];
        let alike = sent.iter().zip(came).take_while(|(sent, came)| sent == came).count();
        ensure!(alike == came.len(), "stream {stream}: frame {alike} is not the one sent");
        ensure!(
            alike + CUT_FRAMES >= sent.len(),
            "stream {stream}: {alike} of {} frames came",
            sent.len()
        );
    }
    Ok(came.values().map(Vec::len).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "#format: frame checksums\n#stream#, dts, pts, duration, size, hash\n\
                        0,      0,      0,     3600,      100, aa\n\
                        1,      0,      0,     2160,      576, bb\n\
                        0,   3600,   3600,     3600,       50, cc\n";

    #[test]
    fn frames_are_kept_by_stream_without_their_times() {
        let later = SENT.replace("0,   3600,   3600", "0,   9999,   9999");
        let sent = frames(SENT).unwrap();
        assert_eq!(sent[&0], [(100, "aa".to_owned()), (50, "cc".to_owned())]);
        assert_eq!(same_frames(&sent, &frames(&later).unwrap()).unwrap(), 3);
    }

    #[test]
    fn a_frame_that_differs_or_streams_that_are_missing_fail() {
        let sent = frames(SENT).unwrap();
        assert!(same_frames(&sent, &frames(&SENT.replace("aa", "ab")).unwrap()).is_err());
        assert!(same_frames(&sent, &frames("0, 0, 0, 3600, 100, aa\n").unwrap()).is_err());
        assert!(frames("0, 0\n").is_err());
    }

    #[test]
    fn only_the_last_frames_may_be_missing() {
        let line = |n: usize| format!("0, 0, 0, 1, 1, {n}\n");
        let some = |range: std::ops::Range<usize>| frames(&range.map(line).collect::<String>());
        let sent = some(0..20).unwrap();
        assert_eq!(same_frames(&sent, &some(0..17).unwrap()).unwrap(), 17);
        assert!(same_frames(&sent, &some(0..16).unwrap()).is_err());
        assert!(same_frames(&sent, &some(1..20).unwrap()).is_err());
    }
}
