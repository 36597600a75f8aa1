//! Transport streams made packet by packet, read as a receiver would see them.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const PCR_WRAP: u64 = (1 << 33) * 300;

/// 1,504,000 bit/s: a packet lasts exactly 1 ms, 27,000 ticks.
const TICKS_PER_PACKET: u64 = 27_000;

/// A packet with a recognisable payload.
fn packet(pid: u16, number: usize) -> Packet {
    let mut packet = [0; PACKET];
    packet[0] = 0x47;
    packet[1..3].copy_from_slice(&pid.to_be_bytes());
    packet[3] = 0x10 | (number & 0xf) as u8;
    for (i, byte) in packet[4..].iter_mut().enumerate() {
        *byte = (number * 31 + i * 7) as u8;
    }
    packet
}

/// One with an adaptation field, and in it a PCR that is true for the byte the standard says.
fn with_pcr(pid: u16, number: usize, pcr: Option<u64>, discontinuity: bool) -> Packet {
    let mut packet = packet(pid, number);
    packet[3] |= 0x20;
    packet[4] = 7;
    packet[5] = if discontinuity { 0x80 } else { 0 } | if pcr.is_some() { 0x10 } else { 0 };
    let pcr = pcr.unwrap_or(0) % PCR_WRAP;
    let field = ((pcr / 300) << 15) | (0x3f << 9) | (pcr % 300);
    packet[6..12].copy_from_slice(&field.to_be_bytes()[2..]);
    packet
}

/// Ticks at the PCR byte of packet `number` when the stream has run at 1 packet per ms since `start`.
fn clock_at(start: u64, number: usize) -> u64 {
    start + number as u64 * TICKS_PER_PACKET + PCR_BYTE * TICKS_PER_PACKET / PACKET as u64
}

/// `count` packets at 1 ms each, every 25th with a PCR on PID 0x100.
fn constant_rate(count: usize, start: u64) -> Vec<Packet> {
    (0..count)
        .map(|n| match n % 25 {
            3 => with_pcr(0x100, n, Some(clock_at(start, n)), false),
            _ => packet(0x101, n),
        })
        .collect()
}

/// An input whose reads are as short as those of a slow pipe.
struct Trickle {
    bytes: io::Cursor<Vec<u8>>,
    most: usize,
    read: Arc<AtomicU64>,
}

impl Read for Trickle {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = self.most.min(to.len());
        let read = self.bytes.read(&mut to[..most])?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

fn pipe(bytes: Vec<u8>, most: usize) -> Input {
    let reader = Trickle { bytes: io::Cursor::new(bytes), most, read: Arc::default() };
    Input::pipe("standard input", Box::new(reader))
}

fn source(bytes: Vec<u8>) -> TsSource {
    TsSource::open(pipe(bytes, usize::MAX), None).unwrap()
}

/// What a receiver gets: the payloads' bytes in a row, and the packets.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    packets: Vec<MediaPacket>,
    error: Option<String>,
}

fn receive(source: &mut TsSource) -> Received {
    let mut received = Received::default();
    let mut payload = [0xee; 1_500];
    loop {
        match source.next(&mut payload) {
            Ok(Some(packet)) => {
                received.bytes.extend_from_slice(&payload[..packet.len]);
                received.packets.push(packet);
            }
            Ok(None) => return received,
            Err(error) => {
                assert!(received.error.is_none(), "an error after an error");
                received.error = Some(error.to_string());
            }
        }
    }
}

fn close(ns: u64, expected: u64) -> bool {
    ns.abs_diff(expected) <= 100 // the PCR's own resolution is 37 ns
}

#[test]
fn payloads_are_seven_whole_packets_and_a_short_tail() {
    for count in [1, 6, 7, 8, 14, 100] {
        let bytes = constant_rate(count, 0).concat();
        let mut source = source(bytes.clone());
        let received = receive(&mut source);
        assert_eq!(received.error, None);
        assert_eq!(received.bytes, bytes);
        let (last, full) = received.packets.split_last().unwrap();
        assert!(full.iter().all(|packet| packet.len == 1_316 && !packet.marker));
        assert_eq!(last.len, (count - full.len() * 7) * 188);
    }
}

#[test]
fn extra_bytes_of_longer_packets_are_left_out() {
    let packets = constant_rate(1_000, 0);
    let parity: Vec<u8> = packets.iter().flat_map(|p| [&p[..], &[0xaa; 16]].concat()).collect();
    let stamped: Vec<u8> = packets.iter().flat_map(|p| [&[0x47; 4], &p[..]].concat()).collect();
    for (bytes, size) in [(parity, "204"), (stamped, "192")] {
        let mut source = source(bytes);
        let received = receive(&mut source);
        assert_eq!(received.error, None);
        assert_eq!(received.bytes, packets.concat());
        assert!(close(received.packets[100].due_ns, 700_000_000));
        assert!(source.remarks().iter().any(|remark| remark.contains(size)));
    }
}

#[test]
fn a_payload_is_due_when_its_first_byte_is() {
    let mut source = source(constant_rate(1_000, 123_456_789).concat());
    let received = receive(&mut source);
    for (n, packet) in received.packets.iter().enumerate() {
        let expected = n as u64 * 7_000_000;
        assert!(close(packet.due_ns, expected), "{n}: {} for {expected}", packet.due_ns);
        assert!(packet.timestamp.abs_diff(n as u32 * 630) <= 1, "90 kHz: 630 units in 7 ms");
    }
    assert_eq!(source.remarks(), [""; 0]);
}

#[test]
fn the_pcr_may_wrap() {
    let mut source = source(constant_rate(1_000, PCR_WRAP - 500 * TICKS_PER_PACKET).concat());
    let received = receive(&mut source);
    assert!(close(received.packets.last().unwrap().due_ns, 994_000_000));
    assert_eq!(source.remarks(), [""; 0]);
}

/// 26 h 30 min: the RTP timestamp wraps after 13 h 15 min.
#[test]
fn the_rtp_timestamp_wraps_and_the_due_time_does_not() {
    let every = 9 * timeline::CLOCK;
    let packets: Vec<_> =
        (0..10_600u64).map(|n| with_pcr(0x100, n as usize, Some(n * every), false)).collect();
    let received = receive(&mut source(packets.concat()));
    let last = received.packets.last().unwrap();
    let seconds = 9 * (received.packets.len() as u64 - 1) * 7;
    assert!(close(last.due_ns, seconds * 1_000_000_000));
    assert!(seconds * 90_000 > u64::from(u32::MAX));
    assert!(last.timestamp.abs_diff((seconds * 90_000) as u32) <= 1);
}

#[test]
fn the_rate_may_change_at_every_pcr() {
    // A PCR every 70 packets; even stretches take 10 ms, odd ones 40 ms.
    let mut clock = 0;
    let mut packets = Vec::new();
    for n in 0..700 {
        if n % 70 == 0 {
            packets.push(with_pcr(0x100, n, Some(clock), false));
            clock += if n / 70 % 2 == 0 { 270_000 } else { 1_080_000 };
        } else {
            packets.push(packet(0x101, n));
        }
    }
    let received = receive(&mut source(packets.concat()));
    // Packet 70 is 25 ms after packet 0... and so on; the PCR byte is 10 bytes in, so times differ by less than 10 us.
    for (n, expected_ms) in [(0, 0), (5, 5), (10, 10), (15, 30), (20, 50), (25, 55), (30, 60)] {
        let due = received.packets[n].due_ns;
        assert!(due.abs_diff(expected_ms * 1_000_000) < 50_000, "payload {n} due at {due}");
    }
}

#[test]
fn a_new_time_base_leaves_no_trace_in_the_times() {
    let mut packets = constant_rate(500, 0);
    packets.extend((500..1_000).map(|n| match n % 25 {
        3 => with_pcr(0x100, n, Some(clock_at(77 * timeline::CLOCK, n)), n == 503),
        _ => packet(0x101, n),
    }));
    let mut source = source(packets.concat());
    let received = receive(&mut source);
    for (n, packet) in received.packets.iter().enumerate() {
        assert!(close(packet.due_ns, n as u64 * 7_000_000), "{n}: {}", packet.due_ns);
    }
    assert!(source.remarks()[0].contains("discontinuities: 1"));
}

/// The indicator may come in a packet of the PCR PID before the one with the new PCR.
#[test]
fn a_discontinuity_indicated_ahead_of_its_pcr_counts() {
    // The new base is 20 ms ahead: believable unless indicated.
    let mut packets = constant_rate(500, 0);
    packets.extend((500..1_000).map(|n| match n {
        501 => with_pcr(0x100, n, None, true),
        _ if n % 25 == 3 => with_pcr(0x100, n, Some(clock_at(540_000, n)), false),
        _ => packet(0x101, n),
    }));
    let mut source = source(packets.concat());
    let received = receive(&mut source);
    assert!(close(received.packets.last().unwrap().due_ns, 994_000_000));
    assert!(source.remarks()[0].contains("discontinuities: 1"));
}

#[test]
fn without_pcr_the_bitrate_decides() {
    let packets: Vec<_> = (0..700).map(|n| packet(0x101, n)).collect();
    let input = pipe(packets.concat(), usize::MAX);
    let mut slow = TsSource::open(input, Some(1_504_000)).unwrap();
    let received = receive(&mut slow);
    assert_eq!(received.bytes, packets.concat());
    assert!(close(received.packets[99].due_ns, 99 * 7_000_000));
    assert!(slow.remarks()[0].contains("no PCR: timed at 1504000 bit/s"));

    let mut source = source(packets.concat());
    let received = receive(&mut source);
    assert!(close(received.packets[99].due_ns, 99 * 1_316 * 8 * 1_000 / 4));
    assert!(source.remarks()[0].contains("4000000 bit/s"));
}

#[test]
fn pcrs_of_another_programme_are_not_mixed_in() {
    let mut packets = constant_rate(1_000, 0);
    for n in (10..1_000).step_by(25) {
        packets[n] = with_pcr(0x200, n, Some(clock_at(9_999_999_999, n) + n as u64 * 5_000), false);
    }
    let mut source = source(packets.concat());
    let received = receive(&mut source);
    assert!(close(received.packets.last().unwrap().due_ns, 994_000_000));
    assert_eq!(source.remarks(), [""; 0]);
}

#[test]
fn another_pid_takes_over_when_the_first_one_ceases() {
    let mut packets = constant_rate(500, 0);
    packets.extend((500..2_000).map(|n| match n % 25 {
        3 => with_pcr(0x200, n, Some(clock_at(55 * timeline::CLOCK, n)), false),
        _ => packet(0x101, n),
    }));
    let mut source = source(packets.concat());
    let received = receive(&mut source);
    assert!(close(received.packets.last().unwrap().due_ns, 285 * 7_000_000));
    assert!(source.remarks().iter().any(|remark| remark.contains("PID")));
}

#[test]
fn a_cut_last_packet_is_told_after_everything_whole() {
    let whole = constant_rate(10, 0).concat();
    let mut cut = whole.clone();
    cut.extend_from_slice(&packet(0x101, 10)[..100]);
    let received = receive(&mut source(cut));
    assert_eq!(received.bytes, whole);
    let error = received.error.unwrap();
    assert!(
        error.contains("standard input: truncated: the last packet has 100 of 188 bytes"),
        "{error}"
    );
    assert!(error.contains("what was whole has been sent"), "{error}");
}

#[test]
fn bytes_that_are_no_packets_are_skipped_and_told() {
    let packets = constant_rate(300, 0);
    let mut bytes = packets[..100].concat();
    bytes.extend_from_slice(&[0; 1_000]);
    bytes.extend_from_slice(&packets[100..].concat());
    let received = receive(&mut source(bytes));
    assert_eq!(received.bytes, packets.concat());
    let error = received.error.unwrap();
    assert!(error.contains("1000 bytes") && error.contains("byte 18800"), "{error}");
}

#[test]
fn a_stream_captured_from_the_middle_of_a_packet_begins_with_the_first_whole_one() {
    let packets = constant_rate(300, 0);
    let received = receive(&mut source(packets.concat()[100..].to_vec()));
    assert_eq!(received.bytes, packets[1..].concat());
    assert!(received.error.unwrap().contains("88 bytes"));
}

#[test]
fn a_packet_with_a_damaged_sync_byte_goes_out_as_it_is() {
    let mut packets = constant_rate(300, 0);
    packets[150][0] = 0x46;
    let mut source = source(packets.concat());
    let received = receive(&mut source);
    assert_eq!(received.bytes, packets.concat());
    assert_eq!(received.error, None);
    assert!(source.remarks()[0].contains("sync byte: 1"));
}

#[test]
fn a_stream_that_turns_into_something_else_is_told() {
    let packets = constant_rate(50, 0);
    let mut bytes = packets.concat();
    bytes.resize(bytes.len() + (2 << 20), 0);
    let received = receive(&mut source(bytes));
    assert_eq!(received.bytes, packets.concat());
    assert!(received.error.unwrap().contains("not a transport stream any more from byte 9400"));
}

#[test]
fn what_is_not_a_transport_stream_is_refused() {
    let text = "no sync byte here. ".repeat(200).into_bytes();
    for (bytes, reason) in [
        (Vec::new(), "empty"),
        (text, "not an MPEG transport stream"),
        (vec![0x47; 100], "not an MPEG transport stream"),
        (vec![0; 10_000], "not an MPEG transport stream"),
    ] {
        let error = TsSource::open(pipe(bytes, usize::MAX), None).err().unwrap().to_string();
        assert!(error.starts_with("standard input: ") && error.contains(reason), "{error}");
    }
}

#[test]
fn a_failing_input_is_told_after_what_was_read() {
    struct Broken(io::Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            match self.0.read(to)? {
                0 => Err(io::Error::other("the disk is gone")),
                read => Ok(read),
            }
        }
    }
    let packets = constant_rate(100, 0).concat();
    let input = Input::pipe("f.ts", Box::new(Broken(io::Cursor::new(packets.clone()))));
    let received = receive(&mut TsSource::open(input, None).unwrap());
    assert_eq!(received.bytes, packets);
    assert_eq!(received.error.unwrap(), "f.ts: the disk is gone");
}

#[test]
fn a_second_pass_goes_on_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.ts");
    let bytes = constant_rate(75, 4_711).concat();
    std::fs::write(&path, &bytes).unwrap();
    let mut source = TsSource::open(Input::open(&path).unwrap(), None).unwrap();
    assert_eq!(source.total_bytes(), Some(75 * 188));
    for pass in 0..3 {
        let received = receive(&mut source);
        assert_eq!(received.bytes, bytes);
        for (n, packet) in received.packets.iter().enumerate() {
            let expected = pass * 75_000_000 + n as u64 * 7_000_000;
            assert!(packet.due_ns.abs_diff(expected) < 1_000, "{pass} {n} {}", packet.due_ns);
        }
        source.restart().unwrap();
    }
    assert_eq!(source.remarks(), [""; 0]);
}

#[test]
fn a_pipe_cannot_be_started_again() {
    let mut source = source(constant_rate(10, 0).concat());
    receive(&mut source);
    let error = source.restart().unwrap_err().to_string();
    assert!(error.contains("standard input: not a regular file"), "{error}");
    assert_eq!(source.total_bytes(), None);
}

#[test]
fn reads_no_further_ahead_than_it_says() {
    for with_pcrs in [true, false] {
        let packets = match with_pcrs {
            true => constant_rate(60_000, 0),
            false => (0..60_000).map(|n| packet(0x101, n)).collect(),
        };
        let read = Arc::new(AtomicU64::new(0));
        let bytes = io::Cursor::new(packets.concat());
        let reader = Trickle { bytes, most: 4_096, read: Arc::clone(&read) };
        let mut source = TsSource::open(Input::pipe("-", Box::new(reader)), None).unwrap();
        let mut payload = [0; 1_316];
        let mut given = 0;
        while let Some(packet) = source.next(&mut payload).unwrap() {
            let ahead = read.load(Ordering::Relaxed) - given;
            let most = if with_pcrs { 50 * 188 + 4_096 } else { LOOKAHEAD + 8_192 };
            assert!(ahead <= most, "{ahead} bytes ahead");
            given += packet.len as u64;
        }
        assert_eq!(given, 60_000 * 188);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the PCRs and however short the reads: every byte arrives and no due time goes back.
    #[test]
    fn every_byte_arrives_in_time_order(
        kinds in prop::collection::vec((0u8..4, any::<u64>(), any::<bool>(), 0u16..3), 1..400),
        most in 1usize..3_000,
    ) {
        let packets: Vec<Packet> = kinds.iter().enumerate().map(|(n, &(kind, pcr, new, pid))| match kind {
            0 => with_pcr(pid, n, Some(pcr), new),
            1 => with_pcr(pid, n, Some(clock_at(0, n)), new),
            2 => with_pcr(pid, n, None, new),
            _ => packet(pid, n),
        }).collect();
        let mut source = TsSource::open(pipe(packets.concat(), most), None).unwrap();
        let received = receive(&mut source);
        prop_assert_eq!(received.bytes, packets.concat());
        prop_assert!(received.packets.is_sorted_by_key(|packet| packet.due_ns));
    }

    /// Damaged input never panics, and what is given are whole packets.
    #[test]
    fn damage_is_survived(
        cuts in prop::collection::vec((0usize..40_000, 0usize..400), 0..6),
        flips in prop::collection::vec((0usize..40_000, any::<u8>()), 0..20),
    ) {
        let mut bytes = constant_rate(200, 0).concat();
        for (at, count) in cuts {
            let at = at.min(bytes.len());
            let end = (at + count).min(bytes.len());
            bytes.drain(at..end);
        }
        for (at, value) in flips {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) { *byte = value; }
        }
        if let Ok(mut source) = TsSource::open(pipe(bytes, 4_096), None) {
            let received = receive(&mut source);
            prop_assert!(received.packets.iter().all(|packet| packet.len % 188 == 0 && packet.len > 0));
            prop_assert!(received.packets.is_sorted_by_key(|packet| packet.due_ns));
        }
    }
}
