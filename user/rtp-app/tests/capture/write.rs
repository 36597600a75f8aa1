//! Captures of received packets.

use std::net::IpAddr;

use super::support::*;
use proptest::prelude::*;
use rtp_app::capture::link::content;
use rtp_app::capture::{CaptureFile, CaptureWriter, Content, Datagram};

fn written(datagrams: &[KeptDatagram]) -> Vec<u8> {
    let mut writer = CaptureWriter::new(Vec::new()).unwrap();
    for datagram in datagrams {
        let kept = Datagram {
            frame: 0,
            time_ns: datagram.time_ns,
            source: datagram.source,
            destination: datagram.destination,
            payload: &datagram.payload,
            payload_len: datagram.payload_len,
        };
        writer.write(&kept).unwrap();
    }
    writer.finish().unwrap()
}

fn read_back(bytes: Vec<u8>) -> Vec<KeptDatagram> {
    let mut file = CaptureFile::new(std::io::Cursor::new(bytes)).unwrap();
    let mut datagrams = Vec::new();
    while let Some(frame) = file.next().unwrap() {
        match content(&frame) {
            Content::Udp(datagram) => datagrams.push(datagram.into()),
            other => panic!("{other:?}"),
        }
    }
    datagrams
}

fn datagram() -> impl Strategy<Value = KeptDatagram> {
    let ends = prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        (any::<[u8; 16]>(), any::<[u8; 16]>())
            .prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)))
            .prop_filter("IPv4 in disguise", |(a, b)| a.to_canonical() == *a
                && b.to_canonical() == *b),
    ];
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    (ends, any::<[u16; 2]>(), payload, any::<u32>(), 0..3u32).prop_map(
        |((source, destination), ports, payload, offset, missing)| KeptDatagram {
            time_ns: Some(START_NS + u64::from(offset)),
            source: (source, ports[0]).into(),
            destination: (destination, ports[1]).into(),
            payload_len: payload.len() + missing as usize,
            payload,
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(datagrams in proptest::collection::vec(datagram(), 0..10)) {
        prop_assert_eq!(read_back(written(&datagrams)), datagrams);
    }

    /// RFC 791 §3.1, RFC 768, RFC 8200 §8.1: the sum over all of it, checksum included, is all ones.
    #[test]
    fn checksums_are_right(datagram in datagram()) {
        let datagram = KeptDatagram { payload_len: datagram.payload.len(), ..datagram };
        let bytes = written(&[datagram]);
        let packet = &bytes[24 + 16..];
        let (pseudo, segment) = if packet[0] >> 4 == 4 {
            prop_assert_eq!(ones_complement(&packet[..20]), 0);
            (packet[12..20].to_vec(), &packet[20..])
        } else {
            (packet[8..40].to_vec(), &packet[40..])
        };
        prop_assert_ne!(&segment[6..8], &[0, 0]);
        let len = (segment.len() as u16).to_be_bytes();
        let all = [&pseudo[..], &[0, 17], &len, segment].concat();
        prop_assert_eq!(ones_complement(&all), 0);
    }
}

/// A socket that takes both families names IPv4 peers in IPv6 form.
#[test]
fn mapped_addresses_are_written_as_ipv4() {
    let mapped = KeptDatagram {
        time_ns: Some(START_NS),
        source: address("[::ffff:10.0.0.1]:4000"),
        destination: address("[::ffff:10.0.0.2]:5004"),
        payload: vec![1, 2, 3],
        payload_len: 3,
    };
    let plain = KeptDatagram {
        source: address("10.0.0.1:4000"),
        destination: address("10.0.0.2:5004"),
        ..mapped.clone()
    };
    assert_eq!(read_back(written(&[mapped])), [plain]);
}

#[test]
fn the_longest_datagrams_fit_and_longer_ones_are_refused() {
    let write = |source: &str, destination: &str, len: usize| {
        let payload = vec![7; len];
        let mut writer = CaptureWriter::new(Vec::new()).unwrap();
        let datagram =
            Datagram::received(START_NS, address(source), address(destination), &payload);
        writer.write(&datagram).map(|()| read_back(writer.finish().unwrap()))
    };
    let v4 = |len| write("10.0.0.1:4000", "10.0.0.2:5004", len);
    let v6 = |len| write("[::1]:4000", "[::2]:5004", len);
    assert_eq!(v4(65_507).unwrap()[0].payload_len, 65_507);
    assert_eq!(v6(65_527).unwrap()[0].payload_len, 65_527);
    for refused in [v4(65_508), v6(65_528)] {
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_full_disk_is_told() {
    let mut writer = CaptureWriter::create(std::path::Path::new("/dev/full")).unwrap();
    let datagram =
        Datagram::received(START_NS, address("10.0.0.1:4000"), address("10.0.0.2:5004"), &[0; 100]);
    let mut failed = writer.write(&datagram).is_err();
    failed |= writer.finish().is_err();
    assert!(failed);
}
