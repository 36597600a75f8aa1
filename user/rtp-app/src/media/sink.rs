//! Payloads back into files: [`RawSink`] writes them as they are, [`WavSink`] makes a WAV of L16 and L24.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use hound::{SampleFormat, WavSpec, WavWriter};

use super::audio::{AudioFormat, Depth};
use super::{MediaError, MediaSink, Summary};

/// A WAV's lengths have 32 bits; this leaves room for its header.
const WAV_DATA_MAX: u64 = u32::MAX as u64 - 4_096;

/// Writes payloads one after the other: a transport stream comes out as it went in, audio as big-endian samples.
pub struct RawSink<W: Write + Send> {
    name: String,
    writer: BufWriter<W>,
    summary: Summary,
}

impl RawSink<File> {
    /// Makes a file, or empties one that is there.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> Result<Self, MediaError> {
        let (name, file) = create_file(path)?;
        Ok(Self::new(&name, file))
    }
}

impl<W: Write + Send> RawSink<W> {
    /// Writes to a pipe, for example standard output, called `name` in messages.
    pub fn new(name: &str, writer: W) -> Self {
        let writer = BufWriter::with_capacity(64 * 1024, writer);
        Self { name: name.to_owned(), writer, summary: Summary::default() }
    }

    fn error(&self, source: std::io::Error) -> MediaError {
        MediaError::Io { name: self.name.clone(), source }
    }
}

impl<W: Write + Send> MediaSink for RawSink<W> {
    fn packet(&mut self, payload: &[u8], _timestamp: u32) -> Result<(), MediaError> {
        self.writer.write_all(payload).map_err(|source| self.error(source))?;
        self.summary.bytes += payload.len() as u64;
        Ok(())
    }

    fn gap(&mut self, count: u64) -> Result<(), MediaError> {
        self.summary.missing_packets += count;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        self.writer.flush().map_err(|source| self.error(source))
    }

    fn finish(mut self: Box<Self>) -> Result<Summary, MediaError> {
        self.flush()?;
        Ok(self.summary)
    }
}

/// Writes a WAV whose header is true after every second of audio, when it is dropped, and when it is finished.
///
/// Missing packets become silence of the length that the RTP timestamps around them say, or, if these make no sense, of as
/// many packets as are missing; so what follows stays in its place.
pub struct WavSink {
    name: String,
    writer: WavWriter<BufWriter<File>>,
    audio: AudioFormat,
    summary: Summary,
    /// The RTP timestamp that follows the last packet's.
    expected: Option<u32>,
    /// Missing packets that no silence stands for yet.
    missing: u64,
    /// Samples per channel of the last packet and of the longest so far.
    last_samples: u32,
    most_samples: u32,
    /// Samples per channel since the header was last made true.
    unflushed: u64,
}

impl WavSink {
    /// Makes a file, or empties one that is there.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, audio: AudioFormat) -> Result<Self, MediaError> {
        let (name, file) = create_file(path)?;
        let spec = WavSpec {
            channels: audio.channels.into(),
            sample_rate: audio.rate,
            bits_per_sample: (audio.depth.bytes() * 8) as u16,
            sample_format: SampleFormat::Int,
        };
        let writer =
            WavWriter::new(BufWriter::new(file), spec).map_err(|error| written(&name, error))?;
        Ok(Self {
            name,
            writer,
            audio,
            summary: Summary::default(),
            expected: None,
            missing: 0,
            last_samples: 0,
            most_samples: 0,
            unflushed: 0,
        })
    }

    /// Samples per channel of silence before the packet at `timestamp`.
    fn silence_before(&mut self, timestamp: u32) -> u64 {
        let (Some(expected), missing) = (self.expected, std::mem::take(&mut self.missing)) else {
            return 0;
        };
        let elapsed = u64::from(timestamp.wrapping_sub(expected));
        let most = missing.saturating_mul(self.most_samples.into());
        match missing {
            0 => {
                self.summary.timestamp_jumps += u64::from(elapsed != 0);
                0
            }
            _ if (1..=most).contains(&elapsed) => elapsed,
            _ => missing.saturating_mul(self.last_samples.into()),
        }
    }

    fn write_silence(&mut self, samples: u64) -> Result<(), MediaError> {
        self.make_room(samples)?;
        for _ in 0..samples * u64::from(self.audio.channels) {
            self.writer.write_sample(0).map_err(|error| written(&self.name, error))?;
        }
        self.summary.silence_samples += samples;
        Ok(())
    }

    fn write_samples(&mut self, payload: &[u8]) -> Result<(), MediaError> {
        for sample in payload.chunks_exact(self.audio.depth.bytes()) {
            let value = match self.audio.depth {
                Depth::L16 => i32::from(i16::from_be_bytes([sample[0], sample[1]])),
                Depth::L24 => i32::from_be_bytes([sample[0], sample[1], sample[2], 0]) >> 8,
            };
            self.writer.write_sample(value).map_err(|error| written(&self.name, error))?;
        }
        Ok(())
    }

    /// Counts samples that are about to be written.
    fn make_room(&mut self, samples: u64) -> Result<(), MediaError> {
        let bytes = samples.saturating_mul(self.audio.frame_bytes() as u64);
        if self.summary.bytes.saturating_add(bytes) > WAV_DATA_MAX {
            return Err(MediaError::Output {
                name: self.name.clone(),
                reason:
                    "full: a WAV holds at most 4 GiB; --out - gives raw samples without a limit"
                        .to_owned(),
            });
        }
        self.summary.bytes += bytes;
        self.unflushed += samples;
        Ok(())
    }
}

impl MediaSink for WavSink {
    fn packet(&mut self, payload: &[u8], timestamp: u32) -> Result<(), MediaError> {
        let silence = self.silence_before(timestamp);
        self.write_silence(silence)?;
        let odd = payload.len() % self.audio.frame_bytes();
        let whole = &payload[..payload.len() - odd];
        let samples = (whole.len() / self.audio.frame_bytes()) as u32;
        self.make_room(samples.into())?;
        self.write_samples(whole)?;
        self.summary.odd_bytes += odd as u64;
        self.expected = Some(timestamp.wrapping_add(samples));
        self.last_samples = samples;
        self.most_samples = self.most_samples.max(samples);
        match self.unflushed >= u64::from(self.audio.rate) {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn gap(&mut self, count: u64) -> Result<(), MediaError> {
        self.summary.missing_packets += count;
        self.missing += count;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        self.unflushed = 0;
        self.writer.flush().map_err(|error| written(&self.name, error))
    }

    fn finish(mut self: Box<Self>) -> Result<Summary, MediaError> {
        let missing = std::mem::take(&mut self.missing);
        self.write_silence(missing.saturating_mul(self.last_samples.into()))?;
        let Self { name, writer, summary, .. } = *self;
        writer.finalize().map_err(|error| written(&name, error))?;
        Ok(summary)
    }
}

fn create_file(path: &Path) -> Result<(String, File), MediaError> {
    let name = path.display().to_string();
    match File::create(path) {
        Ok(file) => Ok((name, file)),
        Err(source) => Err(MediaError::Io { name, source }),
    }
}

fn written(name: &str, error: hound::Error) -> MediaError {
    let source = match error {
        hound::Error::IoError(source) => source,
        other => std::io::Error::other(other),
    };
    MediaError::Io { name: name.to_owned(), source }
}
