//! tshark: its table of RTP streams, its view of single packets, and both against `rtp_app`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Bench, app};
use crate::process::output;

const LIMIT: Duration = Duration::from_secs(60);

/// One row of `-z rtp,streams`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// `address:port`, IPv6 addresses in brackets.
    pub source: String,
    pub destination: String,
    pub ssrc: u32,
    pub packets: u64,
    /// Expected less received: negative with duplicates.
    pub lost: i64,
    pub jitter_mean_ms: f64,
    pub jitter_max_ms: f64,
}

/// The RTP streams of a capture, taking what goes to `ports` for RTP.
pub fn streams(bench: &Bench, file: &Path, ports: &[u16]) -> Result<Vec<Stream>> {
    let mut command = tshark(file, ports);
    command.args(["-q", "-z", "rtp,streams"]);
    parse(&output(bench.directory(), "tshark", &mut command, LIMIT)?)
}

/// One RTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub time_ns: u64,
    pub sequence: u16,
    pub payload: Vec<u8>,
}

/// The RTP packets of a capture.
pub fn packets(bench: &Bench, file: &Path, port: u16) -> Result<Vec<Packet>> {
    let mut command = tshark(file, &[port]);
    command.args(["-Y", "rtp", "-T", "fields", "-E", "separator=/t"]);
    command.args(["-e", "frame.time_epoch", "-e", "rtp.seq", "-e", "rtp.payload"]);
    let text = output(bench.directory(), "tshark", &mut command, LIMIT)?;
    text.lines().map(packet).collect()
}

fn tshark(file: &Path, ports: &[u16]) -> Command {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    for port in ports {
        command.args(["-d", &format!("udp.port=={port},rtp")]);
    }
    command
}

fn packet(line: &str) -> Result<Packet> {
    let fields: Vec<_> = line.split('\t').collect();
    let [time, sequence, payload] = fields[..] else { bail!("tshark: not a packet: {line}") };
    let (seconds, fraction) = time.split_once('.').context("tshark: a time without fraction")?;
    ensure!(fraction.len() == 9, "tshark: not nanoseconds: {time}");
    Ok(Packet {
        time_ns: seconds.parse::<u64>()? * 1_000_000_000 + fraction.parse::<u64>()?,
        sequence: sequence.parse()?,
        payload: bytes(payload)?,
    })
}

fn bytes(hexadecimal: &str) -> Result<Vec<u8>> {
    let digits = hexadecimal.replace(':', "");
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            let pair = digits.get(at..at + 2).context("tshark: half a byte")?;
            Ok(u8::from_str_radix(pair, 16)?)
        })
        .collect()
}

/// Reads the table. The name of the payload may have spaces, so a row is read from both ends:
/// start, end, addresses and SSRC before it; packets, lost, six times and a mark for problems after.
fn parse(table: &str) -> Result<Vec<Stream>> {
    let mut lines = table.lines().skip_while(|line| !line.trim_start().starts_with("Start time"));
    let head = lines.next().context("tshark: no table of RTP streams")?;
    for name in ["Pkts", "Lost", "Mean Jitter", "Max Jitter"] {
        ensure!(head.contains(name), "tshark: no column {name}: {head}");
    }
    lines
        .take_while(|line| !line.starts_with("===="))
        .map(|line| row(line).with_context(|| format!("tshark: not a stream: {line}")))
        .collect()
}

fn row(line: &str) -> Result<Stream> {
    let mut fields: Vec<_> = line.split_whitespace().collect();
    if fields.last() == Some(&"X") {
        fields.pop();
    }
    let [_, _, source, source_port, destination, destination_port, ssrc, rest @ ..] = &fields[..]
    else {
        bail!("too few columns");
    };
    let [.., packets, lost, _percent, _, _, _, _, jitter_mean, jitter_max] = rest else {
        bail!("too few columns");
    };
    Ok(Stream {
        source: address(source, source_port),
        destination: address(destination, destination_port),
        ssrc: u32::from_str_radix(ssrc.trim_start_matches("0x"), 16)?,
        packets: packets.parse()?,
        lost: lost.parse()?,
        jitter_mean_ms: jitter_mean.parse()?,
        jitter_max_ms: jitter_max.parse()?,
    })
}

fn address(ip: &str, port: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// Fails unless `inspect` and tshark list the same streams with the same figures. `skip_jitter`
/// for captures where their jitter is of different packets. Returns how many streams, and how many
/// of them had a jitter to compare.
pub fn agree(bench: &Bench, file: &Path, ports: &[u16]) -> Result<(usize, usize)> {
    let theirs = streams(bench, file, ports)?;
    let report = app::inspect(bench, file)?;
    let ours = report["streams"].as_array().context("inspect: no streams")?;
    ensure!(!theirs.is_empty(), "tshark lists no stream");
    ensure!(
        ours.len() == theirs.len(),
        "inspect lists {} streams, tshark {}: {theirs:?}; {report}",
        ours.len(),
        theirs.len()
    );
    let mut with_jitter = 0;
    for their in &theirs {
        let our = ours
            .iter()
            .find(|our| {
                our["source"] == their.source.as_str()
                    && our["destination"] == their.destination.as_str()
                    && our["ssrc"] == their.ssrc
            })
            .with_context(|| format!("inspect does not list {their:?}; {report}"))?;
        with_jitter += usize::from(
            same_figures(our, their)
                .with_context(|| format!("tshark: {their:?}; inspect: {our}"))?,
        );
    }
    Ok((theirs.len(), with_jitter))
}

/// Compares one stream; true when there was a jitter on both sides.
fn same_figures(our: &Value, their: &Stream) -> Result<bool> {
    let received = app::number(our, "received")?;
    ensure!(received == their.packets, "{received} packets received");
    let lost = app::number(our, "expected")? as i64 - received as i64;
    ensure!(lost == their.lost, "{lost} lost");
    if our["clock_rate"].is_null() {
        return Ok(false);
    }
    for (name, their) in
        [("jitter_mean_ms", their.jitter_mean_ms), ("jitter_max_ms", their.jitter_max_ms)]
    {
        let our = our[name].as_f64().with_context(|| format!("no {name}"))?;
        ensure!((our - their).abs() <= their.abs() * 0.01 + 0.001, "{name}: {our}, not {their}");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As tshark 4.0 prints it; the second payload name has spaces, the second stream problems.
    const TABLE: &str = "\
========================= RTP Streams ========================
   Start time      End time     Src IP addr  Port    Dest IP addr  Port       SSRC          Payload  Pkts         Lost   Min Delta(ms)  Mean Delta(ms)   Max Delta(ms)  Min Jitter(ms) Mean Jitter(ms)  Max Jitter(ms) Problems?
     0.000000      1.985000        10.0.0.1  5004        10.0.0.2  5006 0x11223344           MPEG-II transport streams   100     0 (0.0%)           0.010          20.051         100.111           0.003           0.140           0.310 
     0.000000      1.985000             ::1  5004             ::2  5006 0x0000ABCD           ITU-T G.711 PCMU   101     -1 (-1.0%)           0.010          20.051         100.111           0.003           1.140           2.310 X
==============================================================
";

    #[test]
    fn the_table_is_read_whatever_the_payload_is_called() {
        let streams = parse(TABLE).unwrap();
        assert_eq!(
            streams,
            [
                Stream {
                    source: "10.0.0.1:5004".into(),
                    destination: "10.0.0.2:5006".into(),
                    ssrc: 0x1122_3344,
                    packets: 100,
                    lost: 0,
                    jitter_mean_ms: 0.140,
                    jitter_max_ms: 0.310,
                },
                Stream {
                    source: "[::1]:5004".into(),
                    destination: "[::2]:5006".into(),
                    ssrc: 0xabcd,
                    packets: 101,
                    lost: -1,
                    jitter_mean_ms: 1.140,
                    jitter_max_ms: 2.310,
                },
            ]
        );
    }

    #[test]
    fn another_table_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("   Start time  End time  Pkts\n").is_err());
        assert!(parse(&TABLE.replace("0 (0.0%)", "")).is_err());
    }

    #[test]
    fn a_packet_line_is_read() {
        let expected =
            Packet { time_ns: 1_700_000_000_000_000_042, sequence: 65535, payload: vec![1, 255] };
        assert_eq!(packet("1700000000.000000042\t65535\t01ff").unwrap(), expected);
        assert_eq!(packet("1700000000.000000042\t65535\t01:ff").unwrap(), expected);
        assert!(packet("1700000000.5\t1\t00").is_err());
        assert!(packet("1700000000.000000042\t65536\t00").is_err());
    }

    #[test]
    fn figures_are_compared_within_the_tolerance() {
        let their = parse(TABLE).unwrap().remove(1);
        let our = |received: u64, mean: f64| {
            json!({"received": received, "expected": 100, "clock_rate": 8000,
                   "jitter_mean_ms": mean, "jitter_max_ms": 2.310})
        };
        assert!(same_figures(&our(101, 1.151), &their).unwrap());
        assert!(same_figures(&our(101, 1.153), &their).is_err());
        assert!(same_figures(&our(100, 1.140), &their).is_err());
        let unknown = json!({"received": 101, "expected": 100, "clock_rate": null});
        assert!(!same_figures(&unknown, &their).unwrap());
    }
}
