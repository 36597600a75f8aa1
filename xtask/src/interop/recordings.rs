//! Captures of live streams: what `rx --pcap` writes as tshark sees it, and `inspect` against tshark
//! on them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::app::{self, Receiver};
use super::media::{Noise, Tail, transport_stream};
use super::sender::{Sender, Sent, rtp};
use super::tshark::{self, Packet};
use super::{Bench, Test, ports, to_rx};
use crate::process::Child;
use crate::report::Outcome;

pub const TESTS: &[Test] = &[
    Test { name: "rx --pcap read by tshark", needs: &["tshark"], run: known_times },
    Test {
        name: "rx --pcap beside dumpcap",
        needs: &["ffmpeg", "tshark", "dumpcap"],
        run: beside_dumpcap,
    },
    Test {
        name: "FFmpeg recorded, inspect and tshark",
        needs: &["ffmpeg", "tshark"],
        run: |bench| recorded(bench, "ffmpeg", to_rx::ffmpeg_sends_ts),
    },
    Test {
        name: "GStreamer recorded, inspect and tshark",
        needs: &["ffmpeg", "gst-launch-1.0", "tshark"],
        run: |bench| recorded(bench, "gst-launch", to_rx::gstreamer_sends_ts),
    },
];

const PACKETS: u32 = 300;
/// One packet in so many is left out.
const LEFT_OUT: u32 = 17;
const PAYLOAD_TYPE: u8 = 33;
/// 2 ms at 90 kHz.
const TIMESTAMP_STEP: u32 = 180;
/// How far the middle of the arrival times may lie behind the send call, and any of them.
const TYPICAL_DELAY_NS: u64 = 1_000_000;
const GREATEST_DELAY_NS: u64 = 200_000_000;
const END_LIMIT: Duration = Duration::from_secs(10);

/// Packets sent at known times, some left out: tshark must find these packets, these losses and
/// these times.
fn known_times(bench: &Bench) -> Result<Outcome> {
    let port = ports::free_pair()?;
    let file = bench.file("rx.pcapng");
    let receiver = record(bench, port, &file)?;
    let mut sender = Sender::new(port)?;
    let mut noise = Noise::new(7);
    for index in 0..PACKETS {
        if index % LEFT_OUT != LEFT_OUT - 1 {
            // Over the wrap of sequence and timestamp.
            let sequence = 65_400_u16.wrapping_add(index as u16);
            let timestamp = (u32::MAX - 20_000).wrapping_add(index * TIMESTAMP_STEP);
            let packet = rtp(PAYLOAD_TYPE, false, sequence, timestamp, 0, &payload(sequence));
            sender.send(sequence, &packet)?;
        }
        sender.pause(Duration::from_micros(noise.next() % 4_000));
    }
    let report = receiver.finish(END_LIMIT)?;
    let (sent, lost) = (sender.sent.len() as u64, u64::from(PACKETS / LEFT_OUT));
    let stream = app::only_stream(&report)?;
    ensure!(app::number(stream, "packets")? == sent, "{sent} packets were sent: {stream}");
    ensure!(app::number(stream, "lost")? == lost, "{lost} packets were left out: {stream}");

    let streams = tshark::streams(bench, &file, &[port])?;
    let [row] = &streams[..] else { anyhow::bail!("tshark: not one stream: {streams:?}") };
    ensure!(row.packets == sent && row.lost == lost as i64, "tshark: {row:?}");
    let delay = arrival_times(&sender.sent, &tshark::packets(bench, &file, port)?)?;
    tshark::agree(bench, &file, &[port])?;
    Ok(Outcome::Passed(format!("{sent} packets, {lost} lost, typical delay {delay} ns")))
}

/// A payload that differs from packet to packet.
fn payload(sequence: u16) -> Vec<u8> {
    sequence.to_be_bytes().repeat(80)
}

/// Each packet was captured after its send call began, and soon after that ended. Returns how far
/// behind the call the middle one is.
fn arrival_times(sent: &[Sent], came: &[Packet]) -> Result<u64> {
    ensure!(sent.len() == came.len(), "{} sent, {} captured", sent.len(), came.len());
    let mut delays = Vec::new();
    for (sent, came) in sent.iter().zip(came) {
        ensure!(sent.sequence == came.sequence, "{} captured for {}", came.sequence, sent.sequence);
        ensure!(came.payload == payload(sent.sequence), "another payload in {}", came.sequence);
        let delay = came.time_ns.saturating_sub(sent.after_ns);
        ensure!(
            came.time_ns >= sent.before_ns && delay <= GREATEST_DELAY_NS,
            "sequence {}: captured at {}, sent from {} to {}",
            came.sequence,
            came.time_ns,
            sent.before_ns,
            sent.after_ns
        );
        delays.push(delay);
    }
    delays.sort_unstable();
    let middle = delays.get(delays.len() / 2).copied().unwrap_or_default();
    ensure!(middle <= TYPICAL_DELAY_NS, "the middle delay is {middle} ns");
    Ok(middle)
}

/// The same stream by dumpcap on the loopback interface: the same packets at the same times.
fn beside_dumpcap(bench: &Bench) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Full)?;
    let port = ports::free_pair()?;
    let reference = bench.file("dumpcap.pcapng");
    let mut dumpcap = Command::new("dumpcap");
    dumpcap
        .args(["-q", "-i", "lo", "-f", &format!("udp dst port {port}"), "-a", "duration:60"])
        .arg("-w")
        .arg(&reference);
    let mut dumpcap = Child::start(bench.directory(), "dumpcap", &mut dumpcap)?;
    let listening =
        dumpcap.until("capturing", END_LIMIT, |child| Ok(child.stderr()?.contains("File: ")));
    if let Err(error) = listening {
        if dumpcap.stderr()?.to_lowercase().contains("permission") {
            return Ok(Outcome::NotRun("dumpcap may not capture here (run it as root)".into()));
        }
        return Err(error);
    }
    let file = bench.file("rx.pcapng");
    let receiver = record(bench, port, &file)?;
    to_rx::ffmpeg_sends_ts(bench, &programme, port)?;
    let report = receiver.finish(END_LIMIT)?;
    let packets = app::number(app::only_stream(&report)?, "packets")?;
    // The end of the stream is in the file once its packets are.
    dumpcap.until("all packets captured", END_LIMIT, |_| {
        Ok(tshark::packets(bench, &reference, port).is_ok_and(|all| all.len() as u64 >= packets))
    })?;
    drop(dumpcap);
    let theirs = tshark::packets(bench, &reference, port)?;
    let ours = tshark::packets(bench, &file, port)?;
    let apart = same_times(&theirs, &ours)?;
    tshark::agree(bench, &reference, &[port]).context("the capture of dumpcap")?;
    tshark::agree(bench, &file, &[port]).context("the capture of rx")?;
    Ok(Outcome::Passed(format!("{packets} packets, times typically {apart} ns apart")))
}

/// Returns how far apart the middle pair of times is.
fn same_times(theirs: &[Packet], ours: &[Packet]) -> Result<u64> {
    ensure!(theirs.len() == ours.len(), "dumpcap has {}, rx {}", theirs.len(), ours.len());
    let mut apart = Vec::new();
    for (their, our) in theirs.iter().zip(ours) {
        ensure!(
            their.sequence == our.sequence && their.payload == our.payload,
            "dumpcap has sequence {}, rx {}, or the payload differs",
            their.sequence,
            our.sequence
        );
        apart.push(their.time_ns.abs_diff(our.time_ns));
    }
    apart.sort_unstable();
    let middle = apart.get(apart.len() / 2).copied().unwrap_or_default();
    ensure!(middle <= TYPICAL_DELAY_NS, "the middle times are {middle} ns apart");
    Ok(middle)
}

/// A peer's stream recorded by `rx --pcap`: `inspect` and tshark agree, jitter included.
fn recorded(
    bench: &Bench,
    peer: &str,
    send: fn(&Bench, &Path, u16) -> Result<()>,
) -> Result<Outcome> {
    let programme = transport_stream(bench, Tail::Full)?;
    let port = ports::free_pair()?;
    let file = bench.file("rx.pcapng");
    let receiver = record(bench, port, &file)?;
    send(bench, &programme, port)?;
    let report = receiver.finish(END_LIMIT)?;
    let packets = app::number(app::only_stream(&report)?, "packets")?;
    let (streams, with_jitter) = tshark::agree(bench, &file, &[port])?;
    ensure!((streams, with_jitter) == (1, 1), "{peer}: {streams} streams, {with_jitter} jitters");
    Ok(Outcome::Passed(format!("{packets} packets, figures alike, jitter too")))
}

fn record(bench: &Bench, port: u16, file: &Path) -> Result<Receiver> {
    let options = ["--exact-times".as_ref(), "--pcap".as_ref(), file.as_os_str()];
    Receiver::start(bench, port, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(time_ns: u64) -> (Sent, Packet) {
        (
            Sent { sequence: 5, before_ns: 1_000, after_ns: 3_000 },
            Packet { time_ns, sequence: 5, payload: payload(5) },
        )
    }

    #[test]
    fn a_time_within_the_call_has_no_delay() {
        let (sent, came) = pair(2_000);
        assert_eq!(arrival_times(&[sent], &[came]).unwrap(), 0);
        let (sent, came) = pair(3_500);
        assert_eq!(arrival_times(&[sent], &[came]).unwrap(), 500);
    }

    #[test]
    fn a_time_before_the_call_or_long_after_it_fails() {
        for time in [999, 3_000 + GREATEST_DELAY_NS + 1, 3_000 + TYPICAL_DELAY_NS + 1] {
            let (sent, came) = pair(time);
            assert!(arrival_times(&[sent], &[came]).is_err(), "{time}");
        }
    }
}
