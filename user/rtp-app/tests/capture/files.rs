//! The two file formats.

use super::support::*;
use rtp_app::capture::{CaptureError, CaptureFile, LinkType};

const TIME_NS: u64 = START_NS + 123_456_789;

fn packet() -> Vec<u8> {
    udp(address("10.0.0.1:4000"), address("10.0.0.2:5004"), &Rtp::pcmu(1, 0).bytes())
}

fn kept(time_ns: u64, data: &[u8]) -> Kept {
    Kept { time_ns: Some(time_ns), link: Ok(LinkType::RawIp), data: data.to_vec(), len: data.len() }
}

#[test]
fn pcap_in_both_byte_orders_and_resolutions() {
    for order in Order::BOTH {
        for nanoseconds in [false, true] {
            let mut pcap = Pcap::with(RAW, order, nanoseconds);
            pcap.frame(TIME_NS, &packet());
            pcap.cut_frame(TIME_NS + MS, &packet(), 60);
            let (frames, error) = read(&pcap.bytes);
            assert!(error.is_none(), "{error:?}");
            let exact = |time: u64| if nanoseconds { time } else { time / 1_000 * 1_000 };
            let cut = Kept { len: packet().len(), ..kept(exact(TIME_NS + MS), &packet()[..60]) };
            assert_eq!(frames, [kept(exact(TIME_NS), &packet()), cut], "{order:?} {nanoseconds}");
        }
    }
}

/// if_tsresol: powers of ten and of two (top bit); without it microseconds.
#[test]
fn pcapng_resolutions_in_both_byte_orders() {
    let cases: [(Option<u8>, u64, u64); 6] = [
        (None, 1_700_000_000_123_456, 123_456_000),
        (Some(6), 1_700_000_000_123_456, 123_456_000),
        (Some(9), 1_700_000_000_123_456_789, 123_456_789),
        (Some(3), 1_700_000_000_123, 123_000_000),
        (Some(0), 1_700_000_000, 0),
        // 1/1024 s: 512 of them.
        (Some(0x80 | 10), (1_700_000_000 << 10) + 512, 500_000_000),
    ];
    for order in Order::BOTH {
        for (resolution, units, fraction_ns) in cases {
            let mut file = PcapNg::new(order);
            let options: Vec<_> = resolution.map(|value| (9, vec![value])).into_iter().collect();
            file.interface(RAW as u16, 0, &options);
            file.enhanced(0, units, &packet(), packet().len());
            let (frames, error) = read(&file.bytes);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(
                frames,
                [kept(START_NS + fraction_ns, &packet())],
                "{order:?} {resolution:?}"
            );
        }
    }
}

/// if_tsoffset: seconds to add, a signed number in the section's byte order.
#[test]
fn pcapng_time_offsets() {
    for order in Order::BOTH {
        let mut file = PcapNg::new(order);
        let seconds = |offset: i64| (14, order.u64(offset as u64).to_vec());
        file.interface(RAW as u16, 0, &[(9, vec![9]), seconds(1_700_000_000)]);
        file.interface(RAW as u16, 0, &[(9, vec![9]), seconds(-1)]);
        file.enhanced(0, 5, &packet(), packet().len());
        file.enhanced(1, START_NS, &packet(), packet().len());
        file.enhanced(1, 5, &packet(), packet().len());
        let times: Vec<_> = read(&file.bytes).0.iter().map(|frame| frame.time_ns).collect();
        assert_eq!(times, [Some(START_NS + 5), Some(START_NS - 1_000_000_000), None], "{order:?}");
    }
}

#[test]
fn pcapng_interfaces_and_sections_keep_their_own_settings() {
    let mut file = PcapNg::new(Order::Little);
    file.interface(RAW as u16, 0, &[(9, vec![9])]);
    file.interface(ETHERNET as u16, 0, &[]);
    // An interface statistics block and a name resolution block in between.
    file.block(5, &[0; 12]);
    file.block(4, &[0; 4]);
    file.enhanced(1, START_NS / 1_000, &ethernet(&packet()), 80);
    file.enhanced(0, START_NS, &packet(), packet().len());
    file.section(Order::Big);
    file.interface(LINUX_COOKED as u16, 0, &[(9, vec![9])]);
    file.enhanced(0, START_NS + 1, &linux_cooked(&packet()), 90);
    let (frames, error) = read(&file.bytes);
    assert!(error.is_none(), "{error:?}");
    let links: Vec<_> = frames.iter().map(|frame| frame.link.unwrap()).collect();
    assert_eq!(links, [LinkType::Ethernet, LinkType::RawIp, LinkType::LinuxCooked]);
    let times: Vec<_> = frames.iter().map(|frame| frame.time_ns.unwrap() - START_NS).collect();
    assert_eq!(times, [0, 0, 1]);
    assert_eq!((frames[0].data.len(), frames[0].len), (80, packet().len() + 14));
}

/// A Simple Packet Block has no time, and its length is the interface's snapshot length or less.
#[test]
fn pcapng_simple_packets() {
    let mut file = PcapNg::new(Order::Little);
    file.interface(RAW as u16, 61, &[]);
    file.simple(&packet(), 61);
    file.simple(&packet()[..50], 50);
    let (frames, error) = read(&file.bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(frames[0].data, packet()[..61]);
    assert_eq!((frames[0].len, frames[0].time_ns), (packet().len(), None));
    assert_eq!(frames[1].data, packet()[..50]);
}

#[test]
fn a_block_larger_than_the_buffer_is_read() {
    let mut file = PcapNg::new(Order::Little);
    file.interface(RAW as u16, 0, &[(9, vec![9])]);
    file.block(0x0BAD, &vec![0xAA; 3_000_000]);
    let large: Vec<u8> = (0..1_000_000_u32).map(|index| index as u8).collect();
    file.enhanced(0, START_NS, &large, large.len());
    let (frames, error) = read(&file.bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(frames, [kept(START_NS, &large)]);
}

/// Cut anywhere, a file gives the frames that are whole, and says that it was cut.
#[test]
fn a_file_cut_anywhere_gives_what_is_whole() {
    let mut pcap = Pcap::new(RAW);
    let mut pcapng = PcapNg::new(Order::Little);
    pcapng.interface(RAW as u16, 0, &[(9, vec![9])]);
    let mut ends = [vec![pcap.bytes.len()], vec![pcapng.bytes.len()]];
    for index in 0..3 {
        pcap.frame(START_NS + index, &packet());
        pcapng.enhanced(0, START_NS + index, &packet(), packet().len());
        ends[0].push(pcap.bytes.len());
        ends[1].push(pcapng.bytes.len());
    }
    for (bytes, ends) in [(pcap.bytes, &ends[0]), (pcapng.bytes, &ends[1])] {
        for len in 1..=bytes.len() {
            let (frames, error) = read(&bytes[..len]);
            let whole = ends.iter().skip(1).filter(|end| **end <= len).count();
            assert_eq!(frames.len(), whole, "cut at {len}");
            // A pcapng file may end after any block, its section header too.
            let at_an_end = ends.contains(&len) || bytes[0] == 0x0A && len == 28;
            match error {
                None => assert!(at_an_end, "cut at {len}"),
                Some(CaptureError::Truncated { frames }) => {
                    assert_eq!((frames, at_an_end), (whole as u64, false), "cut at {len}");
                }
                Some(CaptureError::NotACapture { .. }) => assert!(len < 4, "cut at {len}"),
                Some(other) => panic!("cut at {len}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_is_no_capture_is_refused_with_what_is_accepted() {
    let message = |bytes: &[u8]| read(bytes).1.unwrap().to_string();
    assert_eq!(message(b""), "an empty file; accepted: pcap, pcapng");
    assert_eq!(message(b"RIFF\0\0\0\0WAVEfmt "), "not a capture; accepted: pcap, pcapng");
    assert_eq!(message(&[0x47; 188]), "not a capture; accepted: pcap, pcapng");
    assert_eq!(
        message(&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3]),
        "not a capture (compressed with gzip: uncompress it first); accepted: pcap, pcapng"
    );
}

#[test]
fn an_unknown_link_type_is_named() {
    // 127: IEEE 802.11 with radiotap.
    let error = read(&Pcap::new(127).bytes).1.unwrap();
    assert!(matches!(error, CaptureError::LinkType(127)));
    let text = error.to_string();
    assert!(text.starts_with("link type 127 is not known; accepted: Ethernet (1), Linux cooked"));

    // The upper bits of the field say how long the frame check sequence is: not part of the type.
    assert!(read(&Pcap::new(0x2400_0000 | ETHERNET).bytes).1.is_none());

    let mut file = PcapNg::new(Order::Little);
    file.interface(127, 0, &[]);
    file.enhanced(0, 1, &packet(), packet().len());
    assert!(matches!(read(&file.bytes).1, Some(CaptureError::LinkType(127))));
    file.interface(RAW as u16, 0, &[]);
    file.enhanced(1, 1, &packet(), packet().len());
    let (frames, error) = read(&file.bytes);
    assert!(error.is_none(), "one of its interfaces is known");
    assert_eq!(
        frames.iter().map(|frame| frame.link).collect::<Vec<_>>(),
        [Err(127), Ok(LinkType::RawIp)]
    );
}

#[test]
fn a_packet_of_no_described_interface_is_damage() {
    let mut file = PcapNg::new(Order::Little);
    file.interface(RAW as u16, 0, &[]);
    file.enhanced(0, 1, &packet(), packet().len());
    file.enhanced(1, 1, &packet(), packet().len());
    let (frames, error) = read(&file.bytes);
    assert_eq!(frames.len(), 1);
    assert!(matches!(error, Some(CaptureError::Damaged { frames: 1 })), "{error:?}");
}

#[test]
fn a_packet_longer_than_its_block_is_damage() {
    for more in [0, 4_000_000] {
        let mut file = PcapNg::new(Order::Little);
        file.interface(RAW as u16, 0, &[]);
        file.enhanced(0, 1, &packet(), packet().len());
        let start = file.bytes.len();
        file.enhanced(0, 1, &packet(), packet().len());
        // Captured length of the second block.
        file.bytes[start + 20..start + 24].copy_from_slice(&1_000_u32.to_le_bytes());
        file.block(0x0BAD, &vec![0; more]);
        let (frames, error) = read(&file.bytes);
        assert_eq!(frames.len(), 1);
        assert!(error.unwrap().is_partial());
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &std::path::Path| match CaptureFile::open(path) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("opened {path:?}"),
    };
    assert!(message(directory.path()).contains("directory"));
    assert!(message(&directory.path().join("nothing")).contains("No such file"));
}
