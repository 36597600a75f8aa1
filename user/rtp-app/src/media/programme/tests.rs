//! The programme as a receiver takes it apart, and as FFmpeg does where it is installed.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::*;
use crate::media::ts::TsSource;
use crate::media::{Input, MediaSource};

const SECONDS: u32 = 2;

static PROGRAMME: LazyLock<Vec<u8>> = LazyLock::new(|| generate(SECONDS));

/// A transport stream packet taken apart (ISO/IEC 13818-1 section 2.4.3.2).
struct Packet<'a> {
    position: u64,
    pid: u16,
    starts: bool,
    counter: u8,
    pcr: Option<u64>,
    payload: Option<&'a [u8]>,
}

impl<'a> Packet<'a> {
    fn parse(n: usize, packet: &'a [u8]) -> Self {
        assert_eq!(packet[0], 0x47);
        let (has_adaptation, has_payload) = (packet[3] & 0x20 != 0, packet[3] & 0x10 != 0);
        let adaptation = if has_adaptation { 1 + usize::from(packet[4]) } else { 0 };
        let has_pcr = adaptation > 1 && packet[5] & 0x10 != 0;
        let field = packet[6..12].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        Self {
            position: (n * PACKET) as u64,
            pid: u16::from_be_bytes([packet[1] & 0x1f, packet[2]]),
            starts: packet[1] & 0x40 != 0,
            counter: packet[3] & 0xf,
            pcr: has_pcr.then(|| (field >> 15) * 300 + (field & 0x1ff)),
            payload: has_payload.then(|| &packet[4 + adaptation..]),
        }
    }
}

fn packets(bytes: &[u8]) -> Vec<Packet<'_>> {
    bytes.chunks_exact(PACKET).enumerate().map(|(n, packet)| Packet::parse(n, packet)).collect()
}

/// The time of a byte at the constant rate, in ticks.
fn clock_at(byte: u64) -> u64 {
    START_TICKS + byte * 8 * 27_000_000 / u64::from(BIT_RATE)
}

/// An elementary stream's frames: when each has arrived, its PTS and its bytes.
fn frames(pid: u16) -> Vec<(u64, u64, Vec<u8>)> {
    let mut frames: Vec<(u64, Vec<u8>)> = Vec::new();
    for packet in packets(&PROGRAMME).iter().filter(|packet| packet.pid == pid) {
        let Some(payload) = packet.payload else { continue };
        if packet.starts {
            frames.push((0, Vec::new()));
        }
        let (arrived, bytes) = frames.last_mut().unwrap();
        *arrived = clock_at(packet.position + PACKET as u64);
        bytes.extend_from_slice(payload);
    }
    frames
        .into_iter()
        .map(|(arrived, pes)| {
            assert_eq!(pes[..3], [0, 0, 1]);
            assert_eq!((pes[6], pes[7], pes[8]), (0x84, 0x80, 5));
            let bits = |n: usize, mask: u8| u64::from(pes[n] & mask);
            let pts = bits(9, 0x0e) << 29
                | bits(10, 0xff) << 22
                | bits(11, 0xfe) << 14
                | bits(12, 0xff) << 7
                | bits(13, 0xfe) >> 1;
            (arrived, pts, pes[14..].to_vec())
        })
        .collect()
}

#[test]
fn tables_name_the_streams_and_check() {
    let all = packets(&PROGRAMME);
    let section = |pid| {
        let packet = all.iter().find(|packet| packet.pid == pid).unwrap();
        let payload = packet.payload.unwrap();
        assert!(packet.starts && payload[0] == 0);
        let length = 3 + usize::from(u16::from_be_bytes([payload[2] & 0xf, payload[3]]));
        payload[1..1 + length].to_vec()
    };
    let pat = section(0);
    assert_eq!(mux::crc(&pat), 0, "annex A: over a whole section the check is zero");
    assert_eq!(pat[0], 0);
    let pmt_pid = u16::from_be_bytes([pat[10] & 0x1f, pat[11]]);
    let pmt = section(pmt_pid);
    assert_eq!(mux::crc(&pmt), 0);
    assert_eq!(pmt[0], 2);
    let pcr_pid = u16::from_be_bytes([pmt[8] & 0x1f, pmt[9]]);
    assert!(all.iter().all(|packet| packet.pcr.is_none() || packet.pid == pcr_pid));
    let streams: Vec<_> = pmt[12..pmt.len() - 4]
        .chunks_exact(5)
        .map(|entry| (entry[0], u16::from_be_bytes([entry[1] & 0x1f, entry[2]])))
        .collect();
    assert_eq!(streams, [(0x02, 0x100), (0x03, 0x101)]);
}

/// Annex A's polynomial over the well-known test string.
#[test]
fn the_check_is_crc_32_mpeg_2() {
    assert_eq!(mux::crc(b"123456789"), 0x0376_e6e7);
}

#[test]
fn counters_follow_each_other() {
    let mut counters = BTreeMap::new();
    for packet in packets(&PROGRAMME).iter().filter(|packet| packet.pid != 0x1fff) {
        let step = u8::from(packet.payload.is_some());
        if let Some(last) = counters.insert(packet.pid, packet.counter) {
            assert_eq!(packet.counter, (last + step) & 0xf, "PID {:#x}", packet.pid);
        }
    }
    assert_eq!(counters.keys().copied().collect::<Vec<_>>(), [0, 0x100, 0x101, 0x1000]);
}

#[test]
fn clock_references_and_tables_come_often_enough_and_are_true() {
    let all = packets(&PROGRAMME);
    let positions = |wanted: &dyn Fn(&Packet) -> bool| -> Vec<u64> {
        all.iter().filter(|packet| wanted(packet)).map(|packet| packet.position).collect()
    };
    let longest = |positions: Vec<u64>| {
        let steps = positions.windows(2).map(|pair| clock_at(pair[1]) - clock_at(pair[0]));
        steps.max().unwrap() / 27_000
    };
    assert!(longest(positions(&|packet| packet.pcr.is_some())) <= 40, "DVB: 40 ms");
    assert!(longest(positions(&|packet| packet.pid == 0)) <= 100, "DVB: 100 ms");
    for packet in all {
        if let Some(pcr) = packet.pcr {
            assert!(
                pcr.abs_diff(clock_at(packet.position + 10)) <= 1,
                "500 ns are allowed, 37 are 1"
            );
        }
    }
}

#[test]
fn frames_arrive_before_they_are_shown_but_not_long_before() {
    for (pid, step, count) in
        [(0x100, 3_600, SECONDS * 25), (0x101, 2_160, SECONDS * 1_000 / 24 + 1)]
    {
        let frames = frames(pid);
        assert_eq!(frames.len() as u32, count);
        for (n, (arrived, pts, _)) in frames.iter().enumerate() {
            assert_eq!(*pts, frames[0].1 + n as u64 * step);
            let ahead = pts * 300 - arrived;
            assert!((1..27_000 * 100).contains(&ahead), "{n}: {} ms", ahead / 27_000);
        }
    }
    assert_eq!(frames(0x100)[0].1, frames(0x101)[0].1, "picture and sound begin together");
}

#[test]
fn the_same_programme_is_made_each_time() {
    // The last frame is another: it ends the sequence.
    let bytes = 24 * FRAME_PACKETS * PACKET;
    assert_eq!(generate(1)[..bytes], PROGRAMME[..bytes]);
    assert_eq!(generate(0), [0; 0]);
}

#[test]
fn it_is_sent_at_its_own_rate() {
    let input = Input::pipe("programme", Box::new(&PROGRAMME[..]));
    let mut source = TsSource::open(input, None).unwrap();
    let mut payload = [0; 1_316];
    let mut count = 0;
    while let Some(packet) = source.next(&mut payload).unwrap() {
        assert!(packet.due_ns.abs_diff(count * 3_500_000) < 100, "seven packets in 3.5 ms");
        count += 1;
    }
    assert_eq!(count, (u64::from(SECONDS) * 2_000).div_ceil(7));
    assert_eq!(source.remarks(), [""; 0]);
}

/// Decodes the programme with FFmpeg. `None`, with the reason, where it is not installed.
fn ffmpeg(output: &[&str]) -> Option<Vec<u8>> {
    let spawned = Command::new("ffmpeg")
        .args(["-v", "warning", "-xerror", "-f", "mpegts", "-i", "pipe:0"])
        .args(output)
        .arg("pipe:1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            eprintln!("not run: ffmpeg: {error}; apt-get install ffmpeg");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&PROGRAMME));
    let decoded = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&decoded.stderr).into_owned();
    assert!(decoded.status.success() && complaints.is_empty(), "ffmpeg: {complaints}");
    writer.join().unwrap().unwrap();
    Some(decoded.stdout)
}

/// 35 dB is a good picture: what is drawn is what is seen.
#[test]
fn ffmpeg_shows_the_pictures_that_were_drawn() {
    let Some(video) = ffmpeg(&["-map", "0:v", "-f", "rawvideo", "-pix_fmt", "yuv420p"]) else {
        return;
    };
    let size = 640 * 360 * 3 / 2;
    assert_eq!(video.len(), size * SECONDS as usize * 25);
    for (n, shown) in video.chunks_exact(size).enumerate().step_by(7) {
        let drawn = Picture::draw(n as u32);
        let planes = [
            &drawn.luma.samples[..640 * 360],
            &drawn.chroma[0].samples[..320 * 180],
            &drawn.chroma[1].samples[..320 * 180],
        ];
        let squares: f64 = planes
            .concat()
            .iter()
            .zip(shown)
            .map(|(drawn, shown)| f64::from(drawn.abs_diff(*shown)).powi(2))
            .sum();
        let psnr = 10.0 * (255.0 * 255.0 * size as f64 / squares.max(1e-9)).log10();
        assert!(psnr > 35.0, "frame {n}: {psnr} dB");
    }
}

/// How strong a frequency is in samples at 48 kHz.
fn strength(samples: &[f64], hertz: f64) -> f64 {
    let turn = std::f64::consts::TAU * hertz / 48_000.0;
    let (re, im) = samples.iter().enumerate().fold((0.0, 0.0), |(re, im), (n, sample)| {
        let angle = turn * n as f64;
        (re + sample * angle.cos(), im + sample * angle.sin())
    });
    2.0 * f64::hypot(re, im) / samples.len() as f64
}

#[test]
fn ffmpeg_plays_the_tone_and_the_pip() {
    let Some(audio) = ffmpeg(&["-map", "0:a", "-f", "s16le"]) else { return };
    let samples: Vec<f64> = audio
        .chunks_exact(2)
        .map(|bytes| f64::from(i16::from_le_bytes([bytes[0], bytes[1]])) / 32_768.0)
        .collect();
    assert!(samples.len() / 2 >= SECONDS as usize * 48_000);
    let channel = |n: usize, from: usize| -> Vec<f64> {
        samples[2 * from..].iter().skip(n).step_by(2).take(4_800).copied().collect()
    };
    let tone = channel(0, 24_000);
    assert!((strength(&tone, 1_125.0) - 0.25).abs() < 0.01, "12 dB below full scale");
    let power = tone.iter().map(|sample| sample * sample).sum::<f64>() / tone.len() as f64;
    assert!((power - 0.25 * 0.25 / 2.0).abs() < 0.001, "and nothing but the tone");
    assert!((strength(&channel(1, 48_000 + 4_800), 1_875.0) - 0.25).abs() < 0.01);
    assert!(channel(1, 48_000 + 24_000).iter().all(|sample| sample.abs() < 0.001), "between pips");
}
