//! The same captures, read by tshark: `docs/inspect-and-tshark.md` says where the two agree and why they
//! differ elsewhere. Without tshark these tests say so and do nothing; `cargo xtask test` installs it.

use std::path::Path;
use std::process::Command;

use super::support::*;
use rtp_app::capture::{CaptureWriter, Datagram};
use serde_json::Value;

const FIRST_PORT: u16 = 5_004;

/// Whether tshark is there. Says what is not run when it is not.
fn tshark_is_there() -> bool {
    let there = Command::new("tshark").arg("--version").output().is_ok();
    if !there {
        eprintln!("not run: tshark is not installed (apt-get install tshark)");
    }
    there
}

fn tshark(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new("tshark").arg("-r").arg(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One line of `-z rtp,streams`.
#[derive(Debug)]
struct Line {
    port: u16,
    ssrc: u32,
    packets: i64,
    lost: i64,
    mean_jitter_ms: f64,
    max_jitter_ms: f64,
}

/// Start, end, source, port, destination, port, SSRC, payload (any number of words), packets, lost,
/// (per cent), three deltas, three jitters, perhaps a mark for problems.
fn parse_line(line: &str) -> Option<Line> {
    let words: Vec<_> = line.split_whitespace().filter(|word| *word != "X").collect();
    let ssrc = words.iter().position(|word| word.starts_with("0x"))?;
    let from_end = |back: usize| words[words.len() - back];
    Some(Line {
        port: words[ssrc - 1].parse().ok()?,
        ssrc: u32::from_str_radix(&words[ssrc][2..], 16).ok()?,
        packets: from_end(9).parse().ok()?,
        lost: from_end(8).parse().ok()?,
        mean_jitter_ms: from_end(2).parse().ok()?,
        max_jitter_ms: from_end(1).parse().ok()?,
    })
}

fn streams(path: &Path, ports: u16) -> Vec<Line> {
    let decode = format!("udp.port=={FIRST_PORT}-{},rtp", FIRST_PORT + ports.max(1) - 1);
    let text = tshark(path, &["-d", &decode, "-q", "-z", "rtp,streams"]);
    let lines: Vec<_> = text.lines().filter_map(parse_line).collect();
    assert!(!lines.is_empty(), "{text}");
    lines
}

/// Holds every stream of a capture against tshark's line for it. `jitter`: whether both know the rate.
fn compare(bytes: &[u8], ports: u16, jitter: bool) {
    let (_directory, path) = file("a.pcap", bytes);
    let (json, error, status) = inspect(&path, &[]);
    assert_eq!((error.as_str(), status), ("", 0));
    let ours = json["streams"].as_array().unwrap();
    let theirs = streams(&path, ports);
    assert_eq!(ours.len(), theirs.len());
    for line in theirs {
        let same = |stream: &&Value| {
            let destination = stream["destination"].as_str().unwrap();
            stream["ssrc"] == line.ssrc && destination.ends_with(&format!(":{}", line.port))
        };
        let stream = ours.iter().find(same).unwrap();
        let number = |name: &str| stream[name].as_i64().unwrap();
        assert_eq!(number("received"), line.packets, "{line:?}");
        assert_eq!(number("expected") - number("received"), line.lost, "{line:?}");
        if jitter {
            let near = |name: &str, theirs: f64| {
                let ours = stream[name].as_f64().unwrap();
                let margin = 0.01 * theirs.abs() + 0.001;
                assert!((ours - theirs).abs() <= margin, "{name} {ours} {line:?}");
            };
            near("jitter_mean_ms", line.mean_jitter_ms);
            near("jitter_max_ms", line.max_jitter_ms);
        }
    }
}

/// What a network and a sender do to the streams of one capture.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    payload_type: u8,
    clock_rate: u32,
    /// Packets that share a timestamp, as those of a video frame.
    per_frame: u32,
    /// Per cent of packets lost, duplicated, marked, and replaced by comfort noise.
    lost: u64,
    duplicated: u64,
    marked: u64,
    comfort_noise: u64,
    /// Most that a packet is delayed, in microseconds. More than 20,000: they overtake each other.
    delay_us: u64,
    /// Whether sequence numbers and timestamps wrap within the stream.
    wraps: bool,
}

const PCMU: Weather = Weather {
    payload_type: 0,
    clock_rate: 8_000,
    per_frame: 1,
    lost: 0,
    duplicated: 0,
    marked: 0,
    comfort_noise: 0,
    delay_us: 4_000,
    wraps: false,
};

/// The same numbers every time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % limit.max(1)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A capture of 20 streams on as many ports, with 30 to 300 packets each. The first two packets and the
/// last one of each stream come on time.
fn weather(weather: Weather, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut frames = Vec::new();
    for port in 0..20_u16 {
        let count = 30 + dice.below(270);
        // tshark counts cycles wrongly for streams that begin with 0 or wrap out of order.
        let sequence = if weather.wraps {
            (65_536 - count + dice.below(count - 10)) as u16
        } else {
            1 + dice.below(65_000) as u16
        };
        let timestamp =
            if weather.wraps { 0_u32.wrapping_sub(2_000) } else { dice.below(1 << 30) as u32 };
        for index in 0..count {
            let calm = index < 2 || index + 1 == count;
            if !calm && dice.percent(weather.lost) {
                continue;
            }
            let frame_index = index / u64::from(weather.per_frame);
            let ticks = frame_index * u64::from(weather.clock_rate) / 50;
            let noise = dice.percent(weather.comfort_noise);
            let rtp = Rtp {
                payload_type: if noise { 13 } else { weather.payload_type },
                marker: dice.percent(weather.marked),
                sequence: sequence.wrapping_add(index as u16),
                timestamp: timestamp.wrapping_add(ticks as u32),
                ssrc: u32::from(port % 4),
                payload_len: 100,
            };
            let sent_us = index * 20_000 / u64::from(weather.per_frame);
            let copies = if !calm && dice.percent(weather.duplicated) { 2 } else { 1 };
            for _ in 0..copies {
                // The last packet waits for all others.
                let delay_us = if index + 1 == count {
                    weather.delay_us
                } else {
                    dice.below(weather.delay_us)
                };
                let delay_us = if index < 2 { 0 } else { delay_us };
                frames.push((sent_us + delay_us, port, rtp));
            }
        }
    }
    frames.sort_by_key(|(time_us, ..)| *time_us);
    let mut pcap = Pcap::new(ETHERNET);
    for (time_us, port, rtp) in frames {
        let destination = (std::net::Ipv4Addr::new(239, 1, 1, 1), FIRST_PORT + port).into();
        let packet = udp(address("10.0.0.1:4000"), destination, &rtp.bytes());
        pcap.frame(START_NS + time_us * 1_000, &ethernet(&packet));
    }
    pcap.bytes
}

#[test]
fn figures_equal_tsharks() {
    if !tshark_is_there() {
        return;
    }
    let video = Weather { payload_type: 33, clock_rate: 90_000, per_frame: 5, ..PCMU };
    let cases = [
        PCMU,
        video,
        Weather { delay_us: 1, ..PCMU },
        Weather { delay_us: 50, ..video },
        Weather { lost: 20, ..PCMU },
        Weather { duplicated: 20, ..PCMU },
        Weather { delay_us: 90_000, ..PCMU },
        Weather { marked: 15, ..PCMU },
        Weather { marked: 20, delay_us: 2_000, ..video },
        Weather { comfort_noise: 10, ..PCMU },
        Weather { wraps: true, lost: 0, ..PCMU },
        Weather { wraps: true, duplicated: 20, marked: 10, ..video },
        Weather { lost: 10, duplicated: 10, marked: 10, delay_us: 90_000, ..PCMU },
        Weather { lost: 10, duplicated: 10, marked: 10, delay_us: 9_000, ..video },
    ];
    for (seed, case) in (0..).zip(cases) {
        compare(&weather(case, seed), 20, true);
    }
}

/// Outages up to a cycle are loss; of longer ones, both lose whole cycles.
#[test]
fn outages_equal_tsharks() {
    if !tshark_is_there() {
        return;
    }
    let mut pcap = Pcap::new(RAW);
    for (port, outage) in (0..).zip([100, 2_998, 3_000, 30_000, 60_000, 65_450, 65_600, 70_000]) {
        for index in (0..50).chain(50 + outage..100 + outage) {
            let destination = format!("10.0.0.2:{}", FIRST_PORT + port);
            let packet =
                udp(address("10.0.0.1:4000"), address(&destination), &Rtp::pcmu(1, index).bytes());
            pcap.frame(START_NS + u64::from(index) * 20 * MS, &packet);
        }
    }
    compare(&pcap.bytes, 8, true);
}

/// tshark does not know the clock rate of dynamic payload types: the counts agree all the same.
#[test]
fn counts_equal_tsharks_without_a_clock_rate() {
    if tshark_is_there() {
        // 80: unassigned, and RTCP with the marker bit (RFC 5761 §4).
        for payload_type in [35, 80, 97] {
            let unknown = Weather { payload_type, clock_rate: 48_000, lost: 10, ..PCMU };
            compare(&weather(unknown, 99), 20, false);
        }
    }
}

/// Every way to wrap a packet that we make here is one that tshark reads too.
#[test]
fn link_types_equal_tsharks() {
    if !tshark_is_there() {
        return;
    }
    type Wrap = fn(&[u8]) -> Vec<u8>;
    let wraps: [(u32, Wrap); 8] = [
        (ETHERNET, ethernet),
        (ETHERNET, |packet| tagged(&[(0x8100, 5)], packet)),
        (ETHERNET, |packet| tagged(&[(0x88A8, 5), (0x8100, 6)], packet)),
        (LINUX_COOKED, linux_cooked),
        (LINUX_COOKED_2, linux_cooked_2),
        (RAW, <[u8]>::to_vec),
        (NULL, |packet| loopback(family(packet).to_le_bytes(), packet)),
        (LOOP, |packet| loopback(family(packet).to_be_bytes(), packet)),
    ];
    for (link, wrap) in wraps {
        let mut pcap = Pcap::new(link);
        let mut pcapng = PcapNg::new(Order::Big);
        pcapng.interface(link as u16, 0, &[(9, vec![9])]);
        for index in 0..20 {
            for (source, destination) in
                [("10.0.0.1:4000", "10.0.0.2:5004"), ("[2001:db8::1]:4000", "[ff3e::1]:5005")]
            {
                let rtp = Rtp::pcmu(9, index).bytes();
                let frame = wrap(&udp(address(source), address(destination), &rtp));
                let time_ns = START_NS + u64::from(index) * 20 * MS + u64::from(index % 3) * MS;
                pcap.cut_frame(time_ns, &frame, 90);
                pcapng.enhanced(0, time_ns, &frame, 90);
            }
        }
        compare(&pcap.bytes, 2, true);
        compare(&pcapng.bytes, 2, true);
    }
}

/// AF_INET, or AF_INET6 of the BSDs.
fn family(packet: &[u8]) -> u32 {
    if packet[0] >> 4 == 4 { 2 } else { 30 }
}

/// What `rx --pcap` writes: times to the nanosecond, good checksums, RTP.
#[test]
fn captures_we_write_are_rtp_to_tshark() {
    if !tshark_is_there() {
        return;
    }
    let (_directory, path) = file("a.pcap", b"");
    let mut writer = CaptureWriter::create(&path).unwrap();
    let mut expected = String::new();
    for index in 0..10_u32 {
        for (source, destination) in
            [("10.0.0.1:4000", "239.1.1.1:5004"), ("[2001:db8::1]:4000", "[ff3e::1]:5004")]
        {
            let rtp = Rtp { payload_len: 99, ..Rtp::pcmu(9, index) };
            let time_ns = START_NS + u64::from(index) * 20_000_001;
            let bytes = rtp.bytes();
            let datagram =
                Datagram::received(time_ns, address(source), address(destination), &bytes);
            writer.write(&datagram).unwrap();
            let (seconds, fraction) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
            let status = if source.starts_with('[') { "" } else { "1" };
            expected += &format!(
                "{seconds}.{fraction:09}\t{status}\t1\t{}\t0x00000009\t{}\n",
                rtp.sequence,
                hex(&bytes[12..])
            );
        }
    }
    writer.finish().unwrap();
    let fields = [
        "frame.time_epoch",
        "ip.checksum.status",
        "udp.checksum.status",
        "rtp.seq",
        "rtp.ssrc",
        "rtp.payload",
    ];
    let fields: Vec<_> = fields.iter().flat_map(|field| ["-e", field]).collect();
    let checks = ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"];
    let decode = ["-d", "udp.port==5004,rtp", "-T", "fields"];
    assert_eq!(tshark(&path, &[&decode[..], &checks, &fields].concat()), expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
