//! Generated captures: several streams with loss, copies, disorder and jitter among packets that are
//! not RTP, in all link types and both families; `inspect` must find what tshark finds.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::media::Noise;
use super::pcap::{Capture, Link};
use super::sender::rtp;
use super::{Bench, Test, app, tshark};
use crate::report::Outcome;

pub const TESTS: &[Test] = &[
    Test {
        name: "generated captures, inspect and tshark",
        needs: &["tshark"],
        run: |bench| captures(bench, 65_535),
    },
    Test {
        name: "cut captures, inspect and tshark",
        needs: &["tshark"],
        // Link layer, IPv6, UDP and RTP headers fit; payloads do not.
        run: |bench| captures(bench, 96),
    },
];

const PACKETS: u32 = 800;
/// More packets than a late one or a copy can be behind.
const LATE_MAX: u32 = 10;
const START_NS: u64 = 1_700_000_000_000_000_000;

/// One stream of a capture.
struct Stream {
    port: u16,
    ssrc: u32,
    payload_type: u8,
    /// Between packets: nanoseconds and RTP timestamp units.
    step_ns: u64,
    step: u32,
    first_sequence: u16,
    first_timestamp: u32,
}

/// G.711, MPEG audio, MPEG-TS and a dynamic payload type (whose clock rate nobody knows); the
/// last two share a port. All wrap their sequence numbers, some their timestamps.
const STREAMS: [Stream; 4] = [
    Stream {
        port: 5004,
        ssrc: 0x1234_5678,
        payload_type: 0,
        step_ns: 20_000_000,
        step: 160,
        first_sequence: 65_000,
        first_timestamp: u32::MAX - 1_000,
    },
    Stream {
        port: 5006,
        ssrc: 0,
        payload_type: 14,
        step_ns: 24_000_000,
        step: 2_160,
        first_sequence: 65_500,
        first_timestamp: 5,
    },
    Stream {
        port: 5008,
        ssrc: 0xffff_ffff,
        payload_type: 33,
        step_ns: 4_000_000,
        step: 360,
        first_sequence: 65_535,
        first_timestamp: u32::MAX - 90_000,
    },
    Stream {
        port: 5008,
        ssrc: 0x0bad_cafe,
        payload_type: 96,
        step_ns: 16_000_000,
        step: 1_440,
        first_sequence: 64_800,
        first_timestamp: 0,
    },
];

/// Packets of the capture that are not RTP.
const RTCP: u64 = 50;
const STUN: u64 = 20;
const OTHER: u64 = 200;

/// A datagram of a capture.
struct Datagram {
    time_ns: u64,
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
}

fn captures(bench: &Bench, snapshot: usize) -> Result<Outcome> {
    let mut files = 0;
    for link in Link::ALL {
        for (from, to) in [("192.0.2.1", "239.1.2.3"), ("2001:db8::1", "ff3e::8000:1")] {
            let ends = (from.parse()?, to.parse()?);
            let mut noise = Noise::new(1 + files);
            let mut capture = Capture::new(link, snapshot);
            for datagram in datagrams(ends, &mut noise) {
                let Datagram { time_ns, from, to, payload } = datagram;
                capture.datagram(time_ns, from, to, &payload);
            }
            let file = bench.file(&format!("{link:?}-{files}.pcap"));
            std::fs::write(&file, capture.into_bytes())?;
            check(bench, &file).with_context(|| format!("{link:?}, {from} to {to}"))?;
            files += 1;
        }
    }
    Ok(Outcome::Passed(format!("{files} captures of {} streams, figures alike", STREAMS.len())))
}

fn check(bench: &Bench, file: &std::path::Path) -> Result<()> {
    let ports: Vec<u16> = STREAMS.iter().map(|stream| stream.port).collect();
    let (streams, with_jitter) = tshark::agree(bench, file, &ports)?;
    ensure!(streams == STREAMS.len(), "{streams} streams");
    ensure!(with_jitter == STREAMS.len() - 1, "{with_jitter} streams with jitter");
    let report = app::inspect(bench, file)?;
    let not_rtp = &report["not_rtp"];
    for (kind, sent) in [("rtcp", RTCP), ("stun", STUN), ("dtls", 0), ("other", OTHER)] {
        let counted = app::number(not_rtp, kind)?;
        ensure!(counted == sent, "{kind}: {sent} in the file, {counted} counted: {not_rtp}");
    }
    Ok(())
}

type Ends = (std::net::IpAddr, std::net::IpAddr);

/// All packets of a capture in the order of their times.
fn datagrams((from, to): Ends, noise: &mut Noise) -> Vec<Datagram> {
    let mut all = Vec::new();
    for stream in &STREAMS {
        let from = SocketAddr::new(from, stream.port + 1_000);
        let to = SocketAddr::new(to, stream.port);
        media(stream, noise, |time_ns, payload| all.push(Datagram { time_ns, from, to, payload }));
    }
    let mut other = |count: u64, port: u16, payload: &dyn Fn(&mut Noise) -> Vec<u8>| {
        for _ in 0..count {
            let time_ns = START_NS + noise.next() % 3_000_000_000;
            let (from, to) = (SocketAddr::new(from, port), SocketAddr::new(to, port));
            all.push(Datagram { time_ns, from, to, payload: payload(noise) });
        }
    };
    other(RTCP, 5005, &|_| receiver_report());
    other(STUN, 3478, &|_| stun_binding());
    other(OTHER / 2, 319, &|_| ptp_sync());
    other(OTHER / 2, 40_000, &|noise| {
        // As long as media packets, and anything at all inside.
        (0..25).flat_map(|_| noise.next().to_be_bytes()).collect()
    });
    all.sort_by_key(|datagram| datagram.time_ns);
    all
}

/// The packets of a stream, disturbed where tshark can count (docs/inspect-and-tshark.md): the first
/// two are in order and there, and nothing is late at the wrap of the sequence number, where tshark
/// would add a cycle, or at the end, which it takes for the highest number.
fn media(stream: &Stream, noise: &mut Noise, mut add: impl FnMut(u64, Vec<u8>)) {
    for index in 0..PACKETS {
        let disturb = index > 2 && index + 1 < PACKETS;
        if disturb && noise.once_in(50) {
            continue;
        }
        let sequence = stream.first_sequence.wrapping_add(index as u16);
        let timestamp = stream.first_timestamp.wrapping_add(index * stream.step);
        let marker = index > 0 && noise.once_in(60);
        let payload: Vec<u8> = sequence.to_be_bytes().repeat(80);
        let packet = rtp(stream.payload_type, marker, sequence, timestamp, stream.ssrc, &payload);
        let jitter = if index < 2 { 0 } else { noise.next() % (stream.step_ns / 3) };
        let mut time = START_NS + u64::from(index) * stream.step_ns + jitter;
        let may_be_late = disturb
            && index + LATE_MAX < PACKETS
            && sequence.wrapping_add(LATE_MAX as u16) > 2 * LATE_MAX as u16;
        if may_be_late && noise.once_in(40) {
            time += stream.step_ns * (1 + noise.next() % 4);
        }
        if may_be_late && noise.once_in(70) {
            add(time + noise.next() % (stream.step_ns * 3), packet.clone());
        }
        add(time, packet);
    }
}

/// RFC 3550 6.4.2 without a report block, and an SDES CNAME (6.5).
fn receiver_report() -> Vec<u8> {
    vec![0x80, 201, 0, 1, 1, 2, 3, 4, 0x81, 202, 0, 2, 1, 2, 3, 4, 1, 1, b'x', 0]
}

/// RFC 8489 5: a binding request without attributes.
fn stun_binding() -> Vec<u8> {
    let mut packet = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    packet.extend([7; 12]);
    packet
}

/// IEEE 1588 13.6: a Sync message. Its first byte is 0x00, that of a Sync of a profile 0x10.
fn ptp_sync() -> Vec<u8> {
    let mut packet = vec![0x10, 0x02, 0, 44];
    packet.resize(44, 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_disturbed_but_begin_in_order() {
        for stream in &STREAMS {
            let mut packets = Vec::new();
            media(stream, &mut Noise::new(3), |time, packet| packets.push((time, packet)));
            packets.sort_by_key(|(time, _)| *time);
            let sequence = |at: usize| u16::from_be_bytes([packets[at].1[2], packets[at].1[3]]);
            assert_eq!(sequence(0), stream.first_sequence);
            assert_eq!(sequence(1), stream.first_sequence.wrapping_add(1));
            let in_order =
                (1..packets.len()).all(|at| sequence(at) == sequence(at - 1).wrapping_add(1));
            assert!(!in_order);
            assert_ne!(packets.len(), PACKETS as usize);
        }
    }

    #[test]
    fn the_rtcp_lengths_are_right() {
        let packet = receiver_report();
        // In 32-bit words less one.
        assert_eq!(packet[3], 1);
        assert_eq!(packet.len(), (1 + 1) * 4 + (2 + 1) * 4);
        assert_eq!(packet[11], 2);
    }
}
