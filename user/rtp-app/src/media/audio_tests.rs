//! WAV files to payloads and payloads to WAV files: what a receiver gets is what was in the file.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use proptest::prelude::*;
use tempfile::TempDir;

use super::pcm::PcmSource;
use super::sink::{RawSink, WavSink};
use super::*;

fn format(text: &str) -> AudioFormat {
    match text.parse().unwrap() {
        Format::Audio(audio) => audio,
        Format::Mp2t => panic!("{text} is no audio"),
    }
}

/// A directory that goes with its files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A WAV of integer samples as hound writes it.
fn wav(rate: u32, channels: u16, bits: u16, samples: &[i32]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let spec = WavSpec {
        channels,
        sample_rate: rate,
        bits_per_sample: bits,
        sample_format: SampleFormat::Int,
    };
    let mut writer = WavWriter::new(&mut file, spec).unwrap();
    for &sample in samples {
        writer.write_sample(sample).unwrap();
    }
    writer.finalize().unwrap();
    file.into_inner()
}

/// A WAV with a fmt chunk of our own and any chunks around it.
fn riff(id: &[u8; 4], chunks: &[(&[u8; 4], u32, &[u8])]) -> Vec<u8> {
    let mut bytes = [id, &[0xff; 4][..], b"WAVE"].concat();
    for (id, len, content) in chunks {
        bytes.extend_from_slice(&id[..]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(content);
        if len % 2 == 1 && *len != u32::MAX {
            bytes.push(0);
        }
    }
    bytes
}

fn fmt(tag: u16, channels: u16, rate: u32, block: u16, bits: u16) -> Vec<u8> {
    let mut chunk = Vec::new();
    chunk.extend_from_slice(&tag.to_le_bytes());
    chunk.extend_from_slice(&channels.to_le_bytes());
    chunk.extend_from_slice(&rate.to_le_bytes());
    chunk.extend_from_slice(&(rate * u32::from(block)).to_le_bytes());
    chunk.extend_from_slice(&block.to_le_bytes());
    chunk.extend_from_slice(&bits.to_le_bytes());
    chunk
}

/// WAVE_FORMAT_EXTENSIBLE with `valid` bits of the container in use.
fn fmt_extensible(channels: u16, rate: u32, block: u16, bits: u16, valid: u16) -> Vec<u8> {
    let mut chunk = fmt(0xfffe, channels, rate, block, bits);
    chunk.extend_from_slice(&22u16.to_le_bytes());
    chunk.extend_from_slice(&valid.to_le_bytes());
    chunk.extend_from_slice(&0u32.to_le_bytes());
    chunk.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    chunk
}

fn media(path: &Path, options: &SourceOptions) -> Result<Box<dyn MediaSource>, MediaError> {
    match open(Input::open(path)?, options)? {
        Source::Media(source) => Ok(source),
        Source::Capture(_) => panic!("{} is taken for a capture", path.display()),
    }
}

fn plain(path: &Path) -> Box<dyn MediaSource> {
    media(path, &SourceOptions::default()).unwrap()
}

fn refusal(path: &Path) -> String {
    media(path, &SourceOptions::default()).err().unwrap().to_string()
}

/// All payloads with their packets, and the error at the end.
fn payloads(source: &mut dyn MediaSource) -> (Vec<(MediaPacket, Vec<u8>)>, Option<String>) {
    let mut all = Vec::new();
    let mut payload = vec![0; source.info().payload_max];
    loop {
        match source.next(&mut payload) {
            Ok(Some(packet)) => all.push((packet, payload[..packet.len].to_vec())),
            Ok(None) => return (all, None),
            Err(error) => {
                assert!(matches!(source.next(&mut payload), Ok(None)), "goes on after an error");
                return (all, Some(error.to_string()));
            }
        }
    }
}

/// Big-endian samples, as RFC 3551 section 4.5.11 and RFC 3190 section 4 put them into a payload.
fn samples_of(bytes: &[u8], depth: Depth) -> Vec<i32> {
    bytes
        .chunks_exact(depth.bytes())
        .map(|s| match depth {
            Depth::L16 => i16::from_be_bytes([s[0], s[1]]).into(),
            Depth::L24 => i32::from_be_bytes([s[0], s[1], s[2], 0]) >> 8,
        })
        .collect()
}

fn bytes_of(payloads: &[(MediaPacket, Vec<u8>)]) -> Vec<u8> {
    payloads.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
}

fn ramp(count: usize, bits: u16) -> Vec<i32> {
    let most = 1i64 << (bits - 1);
    (0..count as i64).map(|n| ((n * 77_777) % (2 * most) - most) as i32).collect()
}

fn read_wav(path: &Path) -> (WavSpec, Vec<i32>) {
    let mut reader = WavReader::open(path).unwrap();
    let samples = reader.samples::<i32>().map(Result::unwrap).collect();
    (reader.spec(), samples)
}

#[test]
fn a_wav_becomes_packets_of_one_millisecond() {
    let files = Files::new();
    for (bits, depth) in [(16, Depth::L16), (24, Depth::L24)] {
        let samples = ramp(2 * 1_000, bits);
        let path = files.write("a.wav", &wav(48_000, 2, bits, &samples));
        let mut source = plain(&path);
        let info = source.info().clone();
        assert_eq!(info.samples_per_packet, Some(48));
        assert_eq!(info.clock_rate, Some(48_000));
        assert_eq!(info.packet_time(), Some(Duration::from_millis(1)));
        assert_eq!(source.total_bytes(), Some(2_000 * depth.bytes() as u64));

        let (packets, error) = payloads(&mut *source);
        assert_eq!(error, None);
        assert_eq!(samples_of(&bytes_of(&packets), depth), samples);
        assert_eq!(packets.len(), 21);
        for (n, (packet, _)) in packets.iter().enumerate() {
            assert_eq!(packet.due_ns, n as u64 * 1_000_000);
            assert_eq!(packet.timestamp, n as u32 * 48);
            assert_eq!(packet.len, if n < 20 { 48 } else { 40 } * 2 * depth.bytes());
            assert!(!packet.marker);
        }
    }
}

#[test]
fn static_payload_types_are_taken_where_they_fit() {
    let files = Files::new();
    for (rate, channels, bits, payload_type) in
        [(44_100, 2, 16, 10), (44_100, 1, 16, 11), (48_000, 2, 16, 97), (44_100, 2, 24, 97)]
    {
        let path = files.write("a.wav", &wav(rate, channels, bits, &[0; 100]));
        assert_eq!(plain(&path).info().payload_type, payload_type);
    }
}

/// AES67 names packet times after 48 kHz: 48 samples at 44.1 kHz last 1.09 ms.
#[test]
fn packet_times_are_nominal() {
    let samples =
        |text, us| pcm::samples_per_packet(&format(text), Some(Duration::from_micros(us))).unwrap();
    assert_eq!(samples("L24/48000/2", 1_000), 48);
    assert_eq!(samples("L24/44100/2", 1_000), 48);
    assert_eq!(samples("L24/88200/2", 1_000), 96);
    assert_eq!(samples("L24/96000/2", 1_000), 96);
    assert_eq!(samples("L24/48000/2", 125), 6);
    assert_eq!(samples("L24/48000/2", 333), 16);
    assert_eq!(samples("L16/48000/1", 4_000), 192);
    assert_eq!(samples("L16/8000/1", 20_000), 160);
}

#[test]
fn no_payload_exceeds_the_limit() {
    let default = |text| pcm::samples_per_packet(&format(text), None).unwrap();
    assert_eq!(default("L24/48000/8"), 48);
    assert_eq!(default("L24/48000/16"), 16, "1 ms would be 2,304 bytes");
    assert_eq!(default("L24/48000/64"), 6);
    assert_eq!(default("L24/192000/255"), 1, "not even 125 us fit");
    for text in ["L16/1000/1", "L24/384000/255", "L16/22050/7", "L24/44100/32"] {
        let bytes = default(text) as usize * format(text).frame_bytes();
        assert!((1..=PAYLOAD_MAX).contains(&bytes), "{text}: {bytes}");
    }

    let audio = format("L24/48000/2");
    assert_eq!(pcm::samples_per_packet(&audio, Some(Duration::from_millis(5))).unwrap(), 240);
    let error = pcm::samples_per_packet(&audio, Some(Duration::from_millis(20))).unwrap_err();
    assert!(matches!(&error, MediaError::PacketTime { value, .. } if value == "20"));
    assert!(error.to_string().contains("1 to 240 (5 ms)"), "{error}");
    assert!(pcm::samples_per_packet(&audio, Some(Duration::from_micros(1))).is_err());
}

#[test]
fn timestamps_and_due_times_go_on_in_a_second_pass() {
    let files = Files::new();
    let path = files.write("a.wav", &wav(44_100, 1, 16, &ramp(100, 16)));
    let mut source = plain(&path);
    let first = payloads(&mut *source).0;
    source.restart().unwrap();
    let second = payloads(&mut *source).0;
    assert_eq!(bytes_of(&first), bytes_of(&second));
    let timestamps: Vec<_> = second.iter().map(|(packet, _)| packet.timestamp).collect();
    assert_eq!(timestamps, [100, 148, 196]);
    assert_eq!(second[0].0.due_ns, 100 * 1_000_000_000 / 44_100);
}

#[test]
fn eight_bits_become_l16_and_padded_24_bits_l24_without_loss() {
    let files = Files::new();
    let path = files.write("8.wav", &wav(8_000, 1, 8, &[-128, -1, 0, 1, 127]));
    let mut source = plain(&path);
    assert_eq!(source.info().format.unwrap().to_string(), "L16/8000/1");
    let bytes = bytes_of(&payloads(&mut *source).0);
    assert_eq!(samples_of(&bytes, Depth::L16), [-32_768, -256, 0, 256, 32_512]);

    let data: Vec<u8> =
        [-8_388_608i32, -1, 8_388_607].iter().flat_map(|s| (s << 8).to_le_bytes()).collect();
    let chunks: [(&[u8; 4], u32, &[u8]); 2] =
        [(b"fmt ", 40, &fmt_extensible(1, 48_000, 4, 32, 24)), (b"data", 12, &data)];
    let path = files.write("24in32.wav", &riff(b"RIFF", &chunks));
    let mut source = plain(&path);
    assert_eq!(source.info().format.unwrap().to_string(), "L24/48000/1");
    let bytes = bytes_of(&payloads(&mut *source).0);
    assert_eq!(samples_of(&bytes, Depth::L24), [-8_388_608, -1, 8_388_607]);
}

#[test]
fn chunks_of_odd_length_and_behind_the_samples_are_skipped() {
    let files = Files::new();
    let chunks: [(&[u8; 4], u32, &[u8]); 4] = [
        (b"bext", 5, b"hello"),
        (b"fmt ", 16, &fmt(1, 1, 48_000, 2, 16)),
        (b"data", 6, &[1, 0, 2, 0, 3, 0]),
        (b"iXML", 4, b"<a/>"),
    ];
    let path = files.write("a.wav", &riff(b"RIFF", &chunks));
    let (packets, error) = payloads(&mut *plain(&path));
    assert_eq!(error, None);
    assert_eq!(samples_of(&bytes_of(&packets), Depth::L16), [1, 2, 3]);
}

#[test]
fn rf64_has_its_length_in_another_chunk() {
    let files = Files::new();
    let mut ds64 = vec![0; 28];
    ds64[8] = 4;
    let chunks: [(&[u8; 4], u32, &[u8]); 4] = [
        (b"ds64", 28, &ds64),
        (b"fmt ", 16, &fmt(1, 1, 48_000, 2, 16)),
        (b"data", u32::MAX, &[1, 0, 2, 0]),
        (b"junk", 2, &[9, 9]),
    ];
    for id in [b"RF64", b"BW64"] {
        let path = files.write("a.wav", &riff(id, &chunks));
        let (packets, error) = payloads(&mut *plain(&path));
        assert_eq!(error, None);
        assert_eq!(samples_of(&bytes_of(&packets), Depth::L16), [1, 2]);
    }
}

#[test]
fn a_length_left_open_goes_to_the_end_of_the_input() {
    for len in [0, u32::MAX] {
        let data: Vec<u8> = (0..1_000u16).flat_map(u16::to_le_bytes).collect();
        let chunks: [(&[u8; 4], u32, &[u8]); 2] =
            [(b"fmt ", 16, &fmt(1, 2, 48_000, 4, 16)), (b"data", len, &data)];
        let bytes = riff(b"RIFF", &chunks);
        let input = Input::pipe("standard input", Box::new(Cursor::new(bytes)));
        let mut source = PcmSource::wav(input, None).unwrap();
        assert_eq!(source.total_bytes(), None);
        let (packets, error) = payloads(&mut source);
        assert_eq!(error, None);
        let expected: Vec<i32> = (0..1_000).collect();
        assert_eq!(samples_of(&bytes_of(&packets), Depth::L16), expected);
    }
}

#[test]
fn what_does_not_fit_l16_or_l24_is_refused_with_what_does() {
    let files = Files::new();
    let cases: [(&str, Vec<u8>); 4] = [
        ("32-bit samples", fmt(1, 2, 48_000, 8, 32)),
        ("32-bit floating-point samples", fmt(3, 2, 48_000, 8, 32)),
        ("format tag 0x0055", fmt(0x55, 2, 48_000, 1, 0)),
        ("300 channels", fmt(1, 300, 48_000, 600, 16)),
    ];
    for (what, fmt) in cases {
        let chunks: [(&[u8; 4], u32, &[u8]); 2] = [(b"fmt ", 16, &fmt), (b"data", 8, &[0; 8])];
        let error = refusal(&files.write("a.wav", &riff(b"RIFF", &chunks)));
        assert!(error.contains("a.wav: ") && error.contains(what), "{error}");
        assert!(error.contains("accepted"), "{error}");
    }
}

#[test]
fn a_wav_cut_in_its_samples_is_sent_as_far_as_it_goes_and_told() {
    let files = Files::new();
    let samples = ramp(2 * 480, 24);
    let whole = wav(48_000, 2, 24, &samples);
    let path = files.write("cut.wav", &whole[..whole.len() - 6 * 100 - 1]);
    let (packets, error) = payloads(&mut *plain(&path));
    assert_eq!(samples_of(&bytes_of(&packets), Depth::L24), samples[..2 * 379]);
    let error = error.unwrap();
    assert!(error.contains("cut.wav: truncated: 2279 of the 2880 bytes"), "{error}");
}

#[test]
fn a_wav_cut_in_its_header_is_refused() {
    let files = Files::new();
    let whole = wav(48_000, 2, 16, &[1; 100]);
    for len in [4, 11, 20, 40, 43] {
        let error = refusal(&files.write("cut.wav", &whole[..len]));
        assert!(
            error.contains("truncated: the WAV ends before its samples begin"),
            "{len}: {error}"
        );
    }
    let error = refusal(&files.write("none.wav", &whole[..44]));
    assert!(error.contains("no samples"), "{error}");
    let error = refusal(&files.write("zero.wav", &wav(48_000, 2, 16, &[])));
    assert!(error.contains("no samples"), "{error}");
}

#[test]
fn an_input_is_told_by_its_content_not_by_its_name() {
    let files = Files::new();
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty.wav", b"", "empty"),
        ("text.wav", b"This is no WAV at all, and nothing else that we know.", "none of MPEG-TS"),
        ("riff.wav", b"RIFF\0\0\0\0AVI LIST", "not a WAV"),
        ("raw.pcm", &[0; 4_000], "--format"),
    ];
    for (name, bytes, reason) in cases {
        let error = refusal(&files.write(name, bytes));
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
    assert!(refusal(files.0.path()).contains("directory"));
    assert!(refusal(&files.path("missing.ts")).contains("missing.ts: No such file"));

    let capture = files.write("a.ts", &[0x0a, 0x0d, 0x0d, 0x0a, 0x1c, 0, 0, 0]);
    let opened = open(Input::open(&capture).unwrap(), &SourceOptions::default());
    assert!(matches!(opened, Ok(Source::Capture(_))));
}

#[test]
fn raw_samples_need_a_format_and_are_sent_as_they_are() {
    let files = Files::new();
    let bytes: Vec<u8> = (0..6 * 100).map(|n| n as u8).collect();
    let path = files.write("a.pcm", &[&bytes[..], &[1, 2, 3]].concat());
    let format = Some("L24/48000/2".parse().unwrap());
    let mut source = media(&path, &SourceOptions { format, ..Default::default() }).unwrap();
    assert_eq!(source.total_bytes(), Some(600));
    let (packets, error) = payloads(&mut *source);
    assert_eq!(bytes_of(&packets), bytes);
    assert!(error.unwrap().contains("truncated: the last sample has 3 of 6 bytes"));
}

/// Sends a WAV's payloads to a sink, leaving out the packets named.
fn through(source: &mut dyn MediaSource, sink: &mut WavSink, lost: &[usize], start: u32) {
    for (n, (packet, payload)) in payloads(source).0.iter().enumerate() {
        match lost.contains(&n) {
            true => sink.gap(1).unwrap(),
            false => sink.packet(payload, packet.timestamp.wrapping_add(start)).unwrap(),
        }
    }
}

#[test]
fn a_wav_comes_out_as_it_went_in() {
    let files = Files::new();
    for (bits, channels, rate) in
        [(16, 1, 8_000), (16, 2, 44_100), (24, 2, 48_000), (24, 8, 96_000)]
    {
        let samples = ramp(usize::from(channels) * 5_000, bits);
        let path = files.write("in.wav", &wav(rate, channels, bits, &samples));
        let mut source = plain(&path);
        let out = files.path("out.wav");
        let Some(Format::Audio(audio)) = source.info().format else { panic!("not audio") };
        let mut sink = WavSink::create(&out, audio).unwrap();
        through(&mut *source, &mut sink, &[], u32::MAX - 1_000);
        let summary = Box::new(sink).finish().unwrap();
        assert_eq!(summary, Summary { bytes: source.total_bytes().unwrap(), ..Summary::default() });
        let (spec, read) = read_wav(&out);
        assert_eq!((spec.sample_rate, spec.channels, spec.bits_per_sample), (rate, channels, bits));
        assert_eq!(read, samples);
    }
}

#[test]
fn missing_packets_become_silence_of_their_length() {
    let files = Files::new();
    let samples: Vec<i32> = (1..=960).collect();
    let path = files.write("in.wav", &wav(48_000, 2, 16, &samples));
    let out = files.path("out.wav");
    let mut sink = WavSink::create(&out, format("L16/48000/2")).unwrap();
    // Ten packets; one at the beginning, two in the middle and the last are lost.
    through(&mut *plain(&path), &mut sink, &[0, 4, 5, 9], 4_294_967_200);
    let summary = Box::new(sink).finish().unwrap();
    assert_eq!(summary.missing_packets, 4);
    assert_eq!(summary.silence_samples, 3 * 48, "before the first packet there is nothing to fill");
    let mut expected = samples[96..].to_vec();
    expected[3 * 96..5 * 96].fill(0);
    expected[8 * 96..].fill(0);
    assert_eq!(read_wav(&out).1, expected);
}

/// Packets of irregular size, as FFmpeg sends them: the timestamps say how much is missing.
#[test]
fn timestamps_decide_how_long_a_gap_is() {
    let files = Files::new();
    let out = files.path("out.wav");
    let mut sink = WavSink::create(&out, format("L16/48000/1")).unwrap();
    sink.packet(&[0, 1].repeat(50), 1_000).unwrap();
    sink.packet(&[0, 2].repeat(10), 1_050).unwrap();
    sink.gap(2).unwrap();
    sink.packet(&[0, 3].repeat(10), 1_060 + 63).unwrap();
    // Timestamps that make no sense: as many as the last packet had.
    sink.gap(2).unwrap();
    sink.packet(&[0, 4].repeat(10), 5).unwrap();
    let summary = Box::new(sink).finish().unwrap();
    assert_eq!(summary.silence_samples, 63 + 20);
    let samples = read_wav(&out).1;
    assert_eq!(samples.len(), 50 + 10 + 63 + 10 + 20 + 10);
    assert_eq!(samples[60..123], [0; 63]);
    assert_eq!(samples[133..153], [0; 20]);
}

#[test]
fn odd_payloads_and_timestamp_jumps_are_told() {
    let files = Files::new();
    let mut sink = WavSink::create(&files.path("out.wav"), format("L24/48000/2")).unwrap();
    sink.packet(&[1; 13], 0).unwrap();
    sink.packet(&[2; 12], 2).unwrap();
    sink.packet(&[3; 12], 900).unwrap();
    let summary = Box::new(sink).finish().unwrap();
    assert_eq!((summary.odd_bytes, summary.timestamp_jumps, summary.bytes), (1, 1, 36));
    assert_eq!(read_wav(&files.path("out.wav")).1.len(), 12);
}

#[test]
fn an_unfinished_wav_is_playable() {
    let files = Files::new();
    let dropped = files.path("dropped.wav");
    let mut sink = WavSink::create(&dropped, format("L16/8000/1")).unwrap();
    sink.packet(&[0, 7].repeat(160), 0).unwrap();
    drop(sink);
    assert_eq!(read_wav(&dropped).1, [7; 160]);

    let killed = files.path("killed.wav");
    let mut sink = WavSink::create(&killed, format("L16/8000/1")).unwrap();
    for n in 0..60 {
        sink.packet(&[0, 7].repeat(160), n * 160).unwrap();
    }
    // As kill -9 leaves it: nothing is run any more.
    std::mem::forget(sink);
    assert_eq!(read_wav(&killed).1, [7; 8_000]);
}

#[test]
fn a_wav_without_a_format_is_refused_and_other_names_get_the_bytes() {
    let files = Files::new();
    let error = create(&files.path("a.WAV"), None).err().unwrap().to_string();
    assert!(error.contains("a.WAV: ") && error.contains("--format"), "{error}");
    assert!(create(&files.path("a.wav"), Some(Format::Mp2t)).is_err());
    let error = create(&files.path("no/such/a.ts"), None).err().unwrap().to_string();
    assert!(error.contains("no/such/a.ts: No such file"), "{error}");

    let path = files.path("a.ts");
    let mut sink = create(&path, Some(Format::Mp2t)).unwrap();
    sink.packet(b"first", 0).unwrap();
    sink.gap(3).unwrap();
    sink.packet(b"second", 9).unwrap();
    sink.flush().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"firstsecond");
    let summary = sink.finish().unwrap();
    assert_eq!((summary.bytes, summary.missing_packets), (11, 3));
}

#[test]
fn a_closed_pipe_and_a_full_disk_are_told_apart() {
    struct Fails(std::io::ErrorKind);
    impl std::io::Write for Fails {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for (kind, closed) in
        [(std::io::ErrorKind::BrokenPipe, true), (std::io::ErrorKind::StorageFull, false)]
    {
        let mut sink = RawSink::new("standard output", Fails(kind));
        let error = sink.packet(&[0; 100_000], 0).unwrap_err();
        assert_eq!(error.is_closed_pipe(), closed);
        assert!(error.to_string().starts_with("standard output: "), "{error}");
    }
}

#[test]
fn a_wav_that_would_exceed_its_limit_says_so_and_stays_playable() {
    let files = Files::new();
    let path = files.path("a.wav");
    let mut sink = WavSink::create(&path, format("L24/48000/255")).unwrap();
    sink.packet(&[1; 765], 0).unwrap();
    sink.gap(u64::MAX / 2).unwrap();
    let error = sink.packet(&[1; 765], u32::MAX).unwrap_err().to_string();
    assert!(error.contains("4 GiB"), "{error}");
    drop(sink);
    assert_eq!(read_wav(&path).1.len(), 255);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any samples in any packet size and any loss: what arrives is the file with zeros for what is lost.
    #[test]
    fn any_wav_survives_any_loss(
        samples in prop::collection::vec(-8_388_608i32..8_388_608, 1..3_000),
        packet_us in 21u64..4_000,
        lost in prop::collection::btree_set(1usize..60, 0..20),
        start in any::<u32>(),
    ) {
        let files = Files::new();
        let path = files.write("in.wav", &wav(48_000, 1, 24, &samples));
        let options = SourceOptions { packet_time: Some(Duration::from_micros(packet_us)), ..Default::default() };
        let mut source = media(&path, &options).unwrap();
        let per_packet = source.info().samples_per_packet.unwrap() as usize;
        let packets = samples.len().div_ceil(per_packet);
        let lost: Vec<usize> = lost.into_iter().filter(|&n| n + 1 < packets).collect();
        let out = files.path("out.wav");
        let mut sink = WavSink::create(&out, format("L24/48000/1")).unwrap();
        through(&mut *source, &mut sink, &lost, start);
        Box::new(sink).finish().unwrap();
        let mut expected = samples;
        for n in lost {
            expected[n * per_packet..(n + 1) * per_packet].fill(0);
        }
        prop_assert_eq!(read_wav(&out).1, expected);
    }

    /// A WAV header of any bytes is read or refused, without a panic.
    #[test]
    fn damaged_headers_are_survived(flips in prop::collection::vec((0usize..60, any::<u8>()), 0..12)) {
        let mut bytes = wav(48_000, 2, 16, &[5; 200]);
        for (at, value) in flips { bytes[at] = value; }
        if let Ok(mut source) = PcmSource::wav(Input::pipe("x", Box::new(Cursor::new(bytes))), None) {
            payloads(&mut source);
        }
    }
}
