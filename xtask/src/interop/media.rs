//! What is sent: a transport stream made by FFmpeg and audio made here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, read};
use crate::process::output;

/// Bytes of a transport stream packet.
const TS_PACKET: usize = 188;
/// Transport stream packets in an RTP packet.
const TS_PER_RTP: usize = 7;
/// Seconds of picture, sound and audio.
const SECONDS: u32 = 2;

pub const CHANNELS: u32 = 2;
pub const RATE: u32 = 48_000;

/// How many transport stream packets a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// A multiple of seven: all RTP packets are full.
    Full,
    /// Three more than a multiple of seven.
    Short,
}

/// Makes a transport stream with a picture and a tone at a constant 3 Mb/s.
pub fn transport_stream(bench: &Bench, tail: Tail) -> Result<PathBuf> {
    let path = bench.file("programme.ts");
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i"])
        .arg(format!("testsrc2=size=352x288:rate=25:duration={SECONDS}"))
        .args(["-f", "lavfi", "-i"])
        .arg(format!("sine=frequency=1000:sample_rate=48000:duration={SECONDS}"))
        .args(["-c:v", "mpeg2video", "-b:v", "2M", "-c:a", "mp2", "-b:a", "192k"])
        .args(["-muxrate", "3M", "-f", "mpegts"])
        .arg(&path);
    output(bench.directory(), "make-ts", &mut command, Duration::from_secs(60))?;
    let bytes = with_tail(read(&path)?, tail)?;
    fs::write(&path, bytes)?;
    Ok(path)
}

/// Adds null packets (ISO/IEC 13818-1 2.4.1) up to the tail asked for.
fn with_tail(mut bytes: Vec<u8>, tail: Tail) -> Result<Vec<u8>> {
    ensure!(
        !bytes.is_empty() && bytes.len().is_multiple_of(TS_PACKET),
        "{} bytes are no transport stream",
        bytes.len()
    );
    let wanted = if tail == Tail::Full { 0 } else { 3 };
    while bytes.len() / TS_PACKET % TS_PER_RTP != wanted {
        bytes.extend([0x47, 0x1f, 0xff, 0x10]);
        bytes.resize(bytes.len() + TS_PACKET - 4, 0xff);
    }
    Ok(bytes)
}

/// Sample width of linear audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linear {
    /// 16 bits.
    L16,
    /// 24 bits.
    L24,
}

impl Linear {
    /// Its name in a session description.
    pub fn name(self) -> &'static str {
        match self {
            Self::L16 => "L16",
            Self::L24 => "L24",
        }
    }

    /// As `rtp_app` takes it.
    pub fn format(self) -> String {
        format!("{}/{RATE}/{CHANNELS}", self.name())
    }

    fn bytes(self) -> usize {
        match self {
            Self::L16 => 2,
            Self::L24 => 3,
        }
    }
}

/// Audio in which no two frames are alike, over the whole range of values.
#[derive(Debug)]
pub struct Audio {
    /// A WAV file.
    pub path: PathBuf,
    linear: Linear,
    /// Its samples, least significant byte first, as in the file.
    samples: Vec<u8>,
}

impl Audio {
    /// Makes the file.
    pub fn new(bench: &Bench, linear: Linear) -> Result<Self> {
        let count = (RATE * CHANNELS * SECONDS) as usize;
        let mut noise = Noise::new(u64::from(RATE));
        let samples: Vec<u8> = (0..count)
            .flat_map(|_| noise.next().to_le_bytes().into_iter().take(linear.bytes()))
            .collect();
        let path = bench.file("audio.wav");
        fs::write(&path, wav(linear, &samples))?;
        Ok(Self { path, linear, samples })
    }

    /// The samples as they are on the network: most significant byte first.
    pub fn network_bytes(&self) -> Vec<u8> {
        let sample = self.linear.bytes();
        self.samples.chunks(sample).flat_map(|sample| sample.iter().rev()).copied().collect()
    }

    /// Fails when a WAV file does not hold these samples and no others.
    pub fn same_samples(&self, path: &Path) -> Result<()> {
        let (format, data) = wav_parts(&read(path)?)?;
        let expected = fmt_chunk(self.linear);
        // WAVE_FORMAT_EXTENSIBLE says the same in another form.
        let same_format = format.get(2..16) == expected.get(2..16);
        ensure!(same_format, "{}: its format is {format:?}", path.display());
        super::same_bytes("samples", &self.samples, &data)
    }
}

fn fmt_chunk(linear: Linear) -> Vec<u8> {
    let frame = linear.bytes() as u32 * CHANNELS;
    let mut chunk = Vec::new();
    chunk.extend(1_u16.to_le_bytes());
    chunk.extend((CHANNELS as u16).to_le_bytes());
    chunk.extend(RATE.to_le_bytes());
    chunk.extend((RATE * frame).to_le_bytes());
    chunk.extend((frame as u16).to_le_bytes());
    chunk.extend((linear.bytes() as u16 * 8).to_le_bytes());
    chunk
}

fn wav(linear: Linear, samples: &[u8]) -> Vec<u8> {
    let format = fmt_chunk(linear);
    let mut file = Vec::new();
    file.extend(b"RIFF");
    file.extend((4 + 8 + format.len() as u32 + 8 + samples.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend((format.len() as u32).to_le_bytes());
    file.extend(format);
    file.extend(b"data");
    file.extend((samples.len() as u32).to_le_bytes());
    file.extend(samples);
    file
}

/// The `fmt ` and `data` chunks of a WAV file whose sizes are right.
fn wav_parts(file: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    ensure!(file.get(..4) == Some(b"RIFF") && file.get(8..12) == Some(b"WAVE"), "not a WAV file");
    ensure!(size_at(file, 4)? + 8 == file.len(), "RIFF size {} is wrong", size_at(file, 4)?);
    let (mut format, mut data) = (None, None);
    let mut at = 12;
    while at < file.len() {
        let size = size_at(file, at + 4)?;
        let body = file.get(at + 8..at + 8 + size).context("a WAV chunk is cut short")?;
        match &file[at..at + 4] {
            b"fmt " => format = Some(body.to_vec()),
            b"data" => data = Some(body.to_vec()),
            _ => {}
        }
        at += 8 + size + size % 2;
    }
    Ok((format.context("a WAV file without fmt")?, data.context("a WAV file without data")?))
}

fn size_at(file: &[u8], at: usize) -> Result<usize> {
    let bytes = file.get(at..at + 4).context("a WAV file is cut short")?;
    Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
}

/// A reproducible sequence of numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// `seed` must not be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// True once in `times`, on average.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_as_asked() {
        for packets in 1..15 {
            let bytes = vec![0; packets * TS_PACKET];
            let full = with_tail(bytes.clone(), Tail::Full).unwrap();
            assert_eq!(full.len() % (TS_PACKET * TS_PER_RTP), 0);
            let short = with_tail(bytes, Tail::Short).unwrap();
            assert_eq!(short.len() % (TS_PACKET * TS_PER_RTP), 3 * TS_PACKET);
        }
        assert!(with_tail(vec![0; 100], Tail::Full).is_err());
    }

    #[test]
    fn a_wav_file_gives_back_its_samples() {
        let samples = [1, 2, 3, 4, 5, 6];
        let file = wav(Linear::L24, &samples);
        let (format, data) = wav_parts(&file).unwrap();
        assert_eq!(data, samples);
        assert_eq!(format, fmt_chunk(Linear::L24));
        assert!(wav_parts(&file[..file.len() - 1]).is_err());
    }

    #[test]
    fn samples_on_the_network_begin_with_the_most_significant_byte() {
        let audio = |linear, samples: &[u8]| Audio {
            path: PathBuf::new(),
            linear,
            samples: samples.to_vec(),
        };
        assert_eq!(audio(Linear::L16, &[1, 2, 3, 4]).network_bytes(), [2, 1, 4, 3]);
        assert_eq!(audio(Linear::L24, &[1, 2, 3, 4, 5, 6]).network_bytes(), [3, 2, 1, 6, 5, 4]);
    }
}
