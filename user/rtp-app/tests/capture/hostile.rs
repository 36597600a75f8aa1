//! Captures that someone made to do harm.

use super::support::*;
use proptest::prelude::*;
use rtp_app::capture::CaptureFile;
use rtp_app::capture::find::{ClockRates, Finder};

/// Reads a capture to its end, whatever it is, and counts what it holds.
fn survive(bytes: Vec<u8>) -> Option<(u64, u64)> {
    let mut file = CaptureFile::new(std::io::Cursor::new(bytes)).ok()?;
    let mut finder = Finder::new(ClockRates::default());
    let mut frames = 0;
    while let Ok(Some(frame)) = file.next() {
        assert!(frame.len >= frame.data.len());
        finder.frame(&frame);
        frames += 1;
    }
    Some((frames, finder.finish().frames))
}

fn samples() -> Vec<Vec<u8>> {
    let (a, b) = (address("10.0.0.1:4000"), address("10.0.0.2:5004"));
    let (a6, b6) = (address("[2001:db8::1]:4000"), address("[ff3e::1]:5004"));
    let packets = (0..4).flat_map(|index| {
        let rtp = Rtp { payload_len: 20, ..Rtp::pcmu(1, index) }.bytes();
        [udp(a, b, &rtp), udp(a6, b6, &rtp)]
    });
    let packets: Vec<_> = packets.collect();
    let mut samples = Vec::new();
    type Wrap = fn(&[u8]) -> Vec<u8>;
    let wraps: [(u32, Wrap); 5] = [
        (ETHERNET, |packet| tagged(&[(0x88A8, 1), (0x8100, 2)], packet)),
        (LINUX_COOKED, linux_cooked),
        (LINUX_COOKED_2, linux_cooked_2),
        (RAW, <[u8]>::to_vec),
        (NULL, |packet| loopback([2, 0, 0, 0], packet)),
    ];
    for (link, wrap) in wraps {
        let mut pcap = Pcap::new(link);
        let mut pcapng = PcapNg::new(Order::Big);
        pcapng.interface(link as u16, 0, &[(9, vec![9])]);
        for (time, packet) in (START_NS..).zip(&packets) {
            let frame = wrap(packet);
            pcap.frame(time, &frame);
            pcapng.enhanced(0, time, &frame, frame.len());
            pcapng.simple(&frame, frame.len());
        }
        samples.extend([pcap.bytes, pcapng.bytes]);
    }
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_captures_end_in_good_order(
        sample in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let samples = samples();
        let mut bytes = samples[sample.index(samples.len())].clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some((frames, found)) = survive(bytes) {
            prop_assert_eq!(frames, found);
        }
    }

    #[test]
    fn random_bytes_after_a_header_end_in_good_order(
        link in prop_oneof![Just(1u32), Just(113), Just(276), Just(101), Just(0), Just(108)],
        big_endian in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        as_frames in any::<bool>(),
    ) {
        let order = Order::BOTH[usize::from(big_endian)];
        let mut pcap = Pcap::with(link, order, true);
        if as_frames {
            for frame in bytes.chunks(60) {
                pcap.frame(START_NS, frame);
            }
        } else {
            pcap.bytes.extend(&bytes);
        }
        survive(pcap.bytes);
        let mut pcapng = PcapNg::new(order);
        pcapng.interface(link as u16, 0, &[]);
        pcapng.bytes.extend(&bytes);
        survive(pcapng.bytes);
        survive(bytes);
    }
}

/// A record that claims 4 GB, a block that claims 4 GB: no such memory is taken.
#[test]
fn impossible_lengths_are_refused() {
    let mut pcap = Pcap::new(RAW);
    pcap.bytes.extend([0xFF; 16]);
    pcap.bytes.extend(vec![0; 1_000]);
    survive(pcap.bytes);
    let mut pcapng = PcapNg::new(Order::Little);
    pcapng.bytes.extend([6, 0, 0, 0, 0xF0, 0xFF, 0xFF, 0xFF]);
    pcapng.bytes.extend(vec![0; 1_000]);
    survive(pcapng.bytes);
}
