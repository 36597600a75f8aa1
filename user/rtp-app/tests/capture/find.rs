//! Finding RTP among other datagrams.

use std::net::SocketAddr;

use super::support::*;
use proptest::prelude::*;
use rtp_app::capture::Datagram;
use rtp_app::capture::find::{ClockRates, Finder, Findings};
use rtp_app::output::NotRtp;

/// Datagrams 20 ms apart.
#[derive(Default)]
struct Traffic {
    datagrams: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Traffic {
    fn send(&mut self, source: &str, destination: &str, payload: impl Into<Vec<u8>>) {
        self.datagrams.push((address(source), address(destination), payload.into()));
    }

    fn find(&self) -> Findings {
        let mut finder = Finder::new(ClockRates::default());
        for (frame, (source, destination, payload)) in (1..).zip(&self.datagrams) {
            let datagram =
                Datagram::received(START_NS + frame * 20 * MS, *source, *destination, payload);
            finder.datagram(&Datagram { frame, ..datagram });
        }
        finder.finish()
    }
}

const A: &str = "10.0.0.1:4000";
const B: &str = "10.0.0.2:5004";
const C: &str = "10.0.0.3:5004";

fn other(count: u64) -> NotRtp {
    NotRtp { other: count, ..NotRtp::default() }
}

#[test]
fn sources_are_told_apart_by_addresses_and_ssrc_and_listed_in_order() {
    let mut traffic = Traffic::default();
    for index in 0..10 {
        traffic.send(A, B, Rtp::pcmu(5, index).bytes());
        traffic.send(A, C, Rtp::pcmu(5, index * 2).bytes());
        traffic.send(B, A, Rtp::pcmu(0, index).bytes());
        traffic.send(A, B, Rtp::pcmu(4, index).bytes());
    }
    let found = traffic.find();
    let keys: Vec<_> = found
        .sources
        .iter()
        .map(|source| (source.key.source, source.key.destination, source.key.ssrc))
        .collect();
    let (a, b, c) = (address(A), address(B), address(C));
    // SSRC 0 is a valid SSRC (RFC 3550 §3).
    assert_eq!(keys, [(a, b, 5), (a, c, 5), (b, a, 0), (a, b, 4)]);
    assert_eq!(found.sources[1].figures.lost, 9);
    assert!(found.sources.iter().all(|source| source.figures.received == 10));
    assert_eq!(found.not_rtp, NotRtp::default());
}

/// Validation needs three packets, and then counts all three.
#[test]
fn no_packet_of_a_valid_source_is_missing_from_its_figures() {
    for count in 0..10 {
        let mut traffic = Traffic::default();
        for index in 0..count {
            traffic.send(A, B, Rtp::pcmu(5, index).bytes());
        }
        let found = traffic.find();
        if count < 3 {
            assert!(found.sources.is_empty());
            assert_eq!(found.not_rtp, other(count.into()));
        } else {
            let figures = &found.sources[0].figures;
            assert_eq!((figures.received, figures.expected), (count.into(), count.into()));
            assert_eq!(figures.first_sequence as u16, 1_000);
            assert_eq!(found.not_rtp, NotRtp::default());
        }
    }
}

/// Half of a stream (a mirror port, one leg of two) has no two packets in sequence.
#[test]
fn a_stream_of_which_every_second_packet_is_missing_is_found() {
    let mut traffic = Traffic::default();
    for index in 0..10 {
        traffic.send(A, B, Rtp::pcmu(5, index * 2).bytes());
    }
    let figures = traffic.find().sources[0].figures;
    assert_eq!((figures.received, figures.expected, figures.lost), (10, 19, 9));
}

/// A late copy of the path: 400 packets later is late, not a restart.
#[test]
fn a_burst_from_another_path_is_late() {
    let mut traffic = Traffic::default();
    for index in (0..1_000).filter(|index| !(500..520).contains(index)).chain(500..520) {
        let rtp = Rtp { timestamp: index * 16, ..Rtp::pcmu(5, index) };
        traffic.send(A, B, rtp.bytes());
    }
    let found = traffic.find();
    let figures = &found.sources[0].figures;
    assert_eq!((figures.received, figures.reordered, figures.restarts), (1_000, 20, 0));
    assert_eq!((figures.lost, found.sources[0].invalid), (0, 0));
}

#[test]
fn a_single_packet_far_out_of_sequence_counts_as_invalid() {
    let mut traffic = Traffic::default();
    for index in 0..10 {
        traffic.send(A, B, Rtp::pcmu(5, index).bytes());
    }
    traffic.send(A, B, Rtp { timestamp: 1 << 30, ..Rtp::pcmu(5, 30_000) }.bytes());
    let found = traffic.find();
    assert_eq!((found.sources[0].invalid, found.sources[0].figures.received), (1, 10));
}

/// A packet with impossible padding belongs to its source, and to nothing that it counts.
#[test]
fn packets_that_are_not_valid_count_as_invalid() {
    let mut traffic = Traffic::default();
    for index in 0..10 {
        let mut bytes = Rtp::pcmu(5, index).bytes();
        if index == 4 {
            bytes[0] |= 0x20;
            *bytes.last_mut().unwrap() = 200;
        }
        traffic.send(A, B, bytes);
    }
    let found = traffic.find();
    let source = &found.sources[0];
    assert_eq!((source.invalid, source.figures.received, source.figures.lost), (1, 9, 1));
}

#[test]
fn rtcp_stun_and_dtls_are_counted_apart() {
    let mut traffic = Traffic::default();
    // A sender report without reports (RFC 3550 §6.4.1): 7 words.
    let report = [&[0x80, 200, 0, 6][..], &[0; 24]].concat();
    // A binding request (RFC 8489 §5).
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 12]].concat();
    // A DTLS 1.2 handshake record (RFC 6347 §4.1).
    let handshake = [&[22, 0xFE, 0xFD][..], &[0; 8], &[0, 20], &[1; 20]].concat();
    // DTLS 1.3 ciphertext (RFC 9147 §4).
    let ciphertext = [&[0x2F, 0x12, 0x34][..], &[9; 30]].concat();
    traffic.send(A, B, ciphertext.clone());
    for index in 0..5 {
        traffic.send(A, B, Rtp::pcmu(5, index).bytes());
        traffic.send(B, A, report.clone());
    }
    traffic.send(A, B, [&report[..], &[0x81, 202, 0, 2], &[0; 8]].concat());
    traffic.send(A, B, stun.clone());
    traffic.send(B, A, stun);
    traffic.send(A, B, handshake);
    traffic.send(B, A, ciphertext.clone());
    traffic.send(A, C, ciphertext);
    let found = traffic.find();
    assert_eq!(found.sources.len(), 1);
    // Ciphertext counts as DTLS between addresses that shook hands, before that as anything.
    assert_eq!(found.not_rtp, NotRtp { rtcp: 6, stun: 2, dtls: 2, other: 2 });
}

/// A PTP message (IEEE 1588-2019 §13.3): 34 bytes of header.
fn ptp(kind: u8, sequence: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0x02, 0, 44, 0, 0, 2, 0];
    bytes.extend([0; 12]);
    bytes.extend([0, 0x1B, 0x19, 0xFF, 0xFE, 0, 0, 1, 0, 1]);
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 12]);
    bytes
}

#[test]
fn ptp_is_never_rtp() {
    let mut traffic = Traffic::default();
    for sequence in 0..50 {
        for (port, kind) in [(319, 0x00), (319, 0x01), (320, 0x08), (320, 0x09), (320, 0x0B)] {
            let destination = format!("224.0.1.129:{port}");
            traffic.send(&format!("10.0.0.1:{port}"), &destination, ptp(kind, sequence));
            traffic.send("[fe80::1]:319", &format!("[ff0e::181]:{port}"), ptp(kind, sequence));
        }
        // On PTP's ports even what looks like RTP is not.
        traffic.send("10.0.0.1:319", "224.0.1.129:319", Rtp::pcmu(5, sequence.into()).bytes());
        // On other ports (unicast PTP through a translator), PTP is still not RTP.
        traffic.send(A, B, ptp(0x00, sequence));
    }
    let found = traffic.find();
    assert!(found.sources.is_empty());
    assert_eq!(found.not_rtp, other(50 * 12));
}

/// Neither is what shares the look of RTP and nothing else: DNS, NTP, ESP in UDP, a constant header.
#[test]
fn protocols_that_resemble_rtp_are_not() {
    let mut traffic = Traffic::default();
    for index in 0..200_u32 {
        // DNS: the transaction id may begin with 0b10; the "sequence" is its constant flags.
        let mut dns = (0x8000_u16 | index as u16).to_be_bytes().to_vec();
        dns.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 0, 0, 1, 0, 1]);
        traffic.send(A, "10.0.0.9:53", dns);
        // ESP in UDP (RFC 3948): SPI, then a 32-bit sequence number.
        let mut esp = 0x80AB_CDEF_u32.to_be_bytes().to_vec();
        esp.extend(index.to_be_bytes());
        esp.extend([0x55; 60]);
        traffic.send(A, "10.0.0.9:4500", esp);
        let constant = [0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        traffic.send(A, B, constant);
    }
    let found = traffic.find();
    assert!(found.sources.is_empty());
    assert_eq!(found.not_rtp, other(600));
}

/// Sources that never become valid are given up, the oldest first, and still counted.
#[test]
fn memory_is_bounded() {
    let mut traffic = Traffic::default();
    for index in 0..10 {
        traffic.send(A, B, Rtp::pcmu(1, index).bytes());
    }
    for ssrc in 0..150_000 {
        traffic.send(A, B, Rtp::pcmu(1_000 + ssrc, 0).bytes());
        if ssrc % 20_000 == 0 {
            traffic.send(A, B, Rtp::pcmu(2, ssrc / 20_000).bytes());
        }
    }
    let found = traffic.find();
    let received: Vec<_> = found.sources.iter().map(|source| source.figures.received).collect();
    assert_eq!(received, [10, 8]);
    assert_eq!(found.not_rtp, other(150_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random datagrams on one flow, half of them with RTP's version.
    #[test]
    fn random_datagrams_are_never_rtp(
        payloads in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..100)), 0..500,
        ),
    ) {
        let mut traffic = Traffic::default();
        let count = payloads.len() as u64;
        for (version_2, mut payload) in payloads {
            if let Some(first) = payload.first_mut().filter(|_| version_2) {
                *first = 0x80 | *first & 0x3F;
            }
            traffic.send(A, B, payload);
        }
        let found = traffic.find();
        prop_assert!(found.sources.is_empty());
        let NotRtp { rtcp, stun, dtls, other } = found.not_rtp;
        prop_assert_eq!(rtcp + stun + dtls + other, count);
    }

    /// Every packet is counted once, wherever it belongs.
    #[test]
    fn nothing_is_counted_twice_or_not_at_all(
        packets in proptest::collection::vec((0..4u32, 0..40u16, any::<bool>()), 0..300),
    ) {
        let mut traffic = Traffic::default();
        let count = packets.len() as u64;
        for (ssrc, sequence, garbage) in packets {
            let rtp = Rtp { sequence, ..Rtp::pcmu(ssrc, sequence.into()) };
            traffic.send(A, B, if garbage { vec![0xFF; 20] } else { rtp.bytes() });
        }
        let found = traffic.find();
        let sources = found.sources.iter();
        let rtp: u64 = sources.map(|source| source.figures.received + source.invalid).sum();
        let NotRtp { rtcp, stun, dtls, other } = found.not_rtp;
        prop_assert_eq!(rtp + rtcp + stun + dtls + other, count);
    }
}
