//! The RTP of a capture as a media source.

use super::support::*;
use rtp_app::capture::Replay;
use rtp_app::capture::find::ClockRates;
use rtp_app::media::{Framing, MediaError, MediaSource};

const A: &str = "10.0.0.1:4000";
const B: &str = "10.0.0.2:5004";

/// (when due, the packet's bytes, timestamp since the first packet)
type Sent = (u64, Vec<u8>, u32);

fn open(bytes: &[u8]) -> Result<Replay, MediaError> {
    let (_directory, path) = file("a.pcap", bytes);
    Replay::open(&path, &ClockRates::default())
}

fn pass(replay: &mut Replay) -> Result<Vec<Sent>, (Vec<Sent>, MediaError)> {
    let mut sent = Vec::new();
    let mut buffer = vec![0; replay.info().payload_max];
    loop {
        match replay.next(&mut buffer) {
            Ok(Some(packet)) => {
                sent.push((packet.due_ns, buffer[..packet.len].to_vec(), packet.timestamp));
            }
            Ok(None) => return Ok(sent),
            Err(error) => return Err((sent, error)),
        }
    }
}

/// Packets at irregular times, with one missing, beside RTCP and another protocol.
fn capture() -> (Pcap, Vec<Sent>) {
    let mut pcap = Pcap::new(ETHERNET);
    let mut expected = Vec::new();
    let report = [&[0x80, 200, 0, 6][..], &[0; 24]].concat();
    pcap.frame(START_NS - MS, &ethernet(&udp(address(A), address(B), b"not RTP")));
    for index in (0..10_u32).filter(|index| *index != 4) {
        let due_ns = u64::from(index) * 20 * MS + u64::from(index % 3) * 1_234;
        let rtp = Rtp { payload_len: 100 + index as usize, ..Rtp::pcmu(9, index) };
        pcap.frame(START_NS + due_ns, &ethernet(&udp(address(A), address(B), &rtp.bytes())));
        pcap.frame(START_NS + due_ns, &ethernet(&udp(address(A), address(B), &report)));
        expected.push((due_ns, rtp.bytes(), index * 160));
    }
    (pcap, expected)
}

#[test]
fn packets_come_whole_at_their_own_spacing() {
    let (pcap, expected) = capture();
    let mut replay = open(&pcap.bytes).unwrap();
    let info = replay.info();
    assert_eq!(info.framing, Framing::RtpPacket);
    assert_eq!((info.payload_type, info.clock_rate, info.payload_max), (0, Some(8_000), 121));
    assert_eq!(pass(&mut replay).unwrap(), expected);
    assert!(replay.next(&mut [0; 200]).unwrap().is_none(), "the end stays the end");
}

/// Another pass goes on in time, sequence number and timestamp.
#[test]
fn a_second_pass_continues_the_first() {
    let mut pcap = Pcap::new(RAW);
    for index in 0..10_u32 {
        let sequence = 65_530_u16.wrapping_add(index as u16);
        let rtp = Rtp { sequence, ..Rtp::pcmu(9, index) };
        let time_ns = START_NS + u64::from(index) * 20 * MS;
        pcap.frame(time_ns, &udp(address(A), address(B), &rtp.bytes()));
    }
    let (_directory, path) = file("a.pcap", &pcap.bytes);
    let mut replay = Replay::open(&path, &ClockRates::default()).unwrap();
    let mut sent = pass(&mut replay).unwrap();
    for _ in 0..2 {
        replay.restart().unwrap();
        sent.extend(pass(&mut replay).unwrap());
    }
    let expected: Vec<Sent> = (0..30_u32)
        .map(|index| {
            let sequence = 65_530_u16.wrapping_add(index as u16);
            let rtp = Rtp { sequence, ..Rtp::pcmu(9, index) };
            (u64::from(index) * 20 * MS, rtp.bytes(), index * 160)
        })
        .collect();
    assert_eq!(sent, expected);
}

/// Times that step back in the file are due at once.
#[test]
fn due_times_never_go_back() {
    let mut pcap = Pcap::new(RAW);
    for (index, at_ms) in (0..).zip([0, 20, 10, 30]) {
        let packet = udp(address(A), address(B), &Rtp::pcmu(9, index).bytes());
        pcap.frame(START_NS + at_ms * MS, &packet);
    }
    let due: Vec<_> = pass(&mut open(&pcap.bytes).unwrap()).unwrap();
    let due: Vec<_> = due.iter().map(|(due_ns, ..)| due_ns / MS).collect();
    assert_eq!(due, [0, 20, 20, 30]);
}

#[test]
fn cut_packets_are_refused_before_anything_is_sent() {
    let mut pcap = Pcap::new(ETHERNET);
    for index in 0..5 {
        let frame = ethernet(&udp(address(A), address(B), &Rtp::pcmu(9, index).bytes()));
        let captured = if index == 3 { 96 } else { frame.len() };
        pcap.cut_frame(START_NS + u64::from(index) * MS, &frame, captured);
    }
    let error = open(&pcap.bytes).map(|_| ()).unwrap_err().to_string();
    let reason = "the snapshot length cut its RTP packets (frame 4: 54 of 172 bytes are there); \
                  accepted: whole packets, as tcpdump -s 0 captures them";
    assert!(error.ends_with(reason), "{error}");
}

#[test]
fn packets_without_a_time_are_refused() {
    let mut file = PcapNg::new(Order::Little);
    file.interface(RAW as u16, 0, &[]);
    for index in 0..5 {
        let packet = udp(address(A), address(B), &Rtp::pcmu(9, index).bytes());
        file.simple(&packet, packet.len());
    }
    let error = open(&file.bytes).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("frame 1 has no time; accepted: pcap, or pcapng with Enhanced"),
        "{error}"
    );
}

#[test]
fn a_capture_without_rtp_is_refused() {
    let mut pcap = Pcap::new(RAW);
    pcap.frame(START_NS, &udp(address(A), address(B), &Rtp::pcmu(9, 0).bytes()));
    let error = open(&pcap.bytes).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no RTP in it; accepted: a capture with at least three"), "{error}");
}

/// What is whole is sent, then the damage is told.
#[test]
fn a_truncated_capture_gives_its_whole_packets_first() {
    let (pcap, expected) = capture();
    let (_directory, path) = file("a.pcap", &pcap.bytes[..pcap.bytes.len() - 1]);
    let mut replay = Replay::open(&path, &ClockRates::default()).unwrap();
    let (sent, error) = pass(&mut replay).unwrap_err();
    assert_eq!(sent, expected);
    assert!(matches!(error, MediaError::Damaged { .. }), "{error}");
    assert!(replay.next(&mut [0; 200]).unwrap().is_none(), "an error is the end");
}

#[test]
fn several_sources_are_sent_in_file_order_with_a_remark() {
    let mut pcap = Pcap::new(RAW);
    let mut expected = Vec::new();
    for index in 0..10_u32 {
        for (ssrc, destination) in [(1, B), (2, "10.0.0.2:5006")] {
            let rtp = Rtp::pcmu(ssrc, index + ssrc);
            let due_ns = u64::from(index) * 20 * MS + u64::from(ssrc - 1) * MS;
            pcap.frame(START_NS + due_ns, &udp(address(A), address(destination), &rtp.bytes()));
            expected.push((due_ns, rtp.bytes(), index * 160));
        }
    }
    let mut replay = open(&pcap.bytes).unwrap();
    assert_eq!(pass(&mut replay).unwrap(), expected);
    assert_eq!(replay.remarks(), ["2 RTP sources are sent as one, each with its own SSRC"]);
}
