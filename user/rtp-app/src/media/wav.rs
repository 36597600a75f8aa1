//! The header of a WAV file: what samples follow, and how many.
//!
//! Read here and not by hound (which writes ours) because broadcast files need what it refuses: RF64 and BW64
//! beyond 4 GiB (EBU Tech 3306, ITU-R BS.2088), padding after chunks of odd length (bext, iXML), and lengths left
//! open by a program that writes to a pipe. Audio data is not read here.

use super::MediaError;
use super::audio::{AudioFormat, Depth, Format};
use super::input::Input;

/// Longer `fmt ` and `ds64` chunks than this are not read whole.
const CHUNK_READ_MAX: usize = 64;

/// A length that is not known, or found elsewhere.
const OPEN_LENGTH: u32 = u32::MAX;

const TAG_PCM: u16 = 0x0001;
const TAG_FLOAT: u16 = 0x0003;
const TAG_EXTENSIBLE: u16 = 0xfffe;

/// How samples lie in the input; each becomes L16 or L24 without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleLayout {
    /// 8 bits around 128, for L16.
    Unsigned8,
    /// 16 bits, little endian, for L16.
    Little16,
    /// 24 bits, little endian, for L24.
    Little24,
    /// At most 24 bits at the top of 32, little endian, for L24.
    Little32,
    /// As in the payload.
    Network(Depth),
}

impl SampleLayout {
    /// Bytes of a sample in the input.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Unsigned8 => 1,
            Self::Little16 => 2,
            Self::Little24 => 3,
            Self::Little32 => 4,
            Self::Network(depth) => depth.bytes(),
        }
    }

    /// Bits of a sample in the payload.
    pub const fn depth(self) -> Depth {
        match self {
            Self::Unsigned8 | Self::Little16 => Depth::L16,
            Self::Little24 | Self::Little32 => Depth::L24,
            Self::Network(depth) => depth,
        }
    }

    /// Turns samples of the input into those of a payload; the slices hold equally many.
    pub(super) fn convert(self, from: &[u8], to: &mut [u8]) {
        let samples =
            from.chunks_exact(self.bytes()).zip(to.chunks_exact_mut(self.depth().bytes()));
        match self {
            Self::Unsigned8 => {
                samples.for_each(|(from, to)| to.copy_from_slice(&[from[0] ^ 0x80, 0]))
            }
            Self::Little16 => {
                samples.for_each(|(from, to)| to.copy_from_slice(&[from[1], from[0]]))
            }
            Self::Little24 => {
                samples.for_each(|(from, to)| to.copy_from_slice(&[from[2], from[1], from[0]]));
            }
            Self::Little32 => {
                samples.for_each(|(from, to)| to.copy_from_slice(&[from[3], from[2], from[1]]));
            }
            Self::Network(_) => to.copy_from_slice(from),
        }
    }
}

/// What a WAV header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WavHeader {
    /// How samples lie in the file.
    pub layout: SampleLayout,
    /// The format of the payload.
    pub audio: AudioFormat,
    /// Bytes of sample data, or `None` for all that follows.
    pub data_bytes: Option<u64>,
}

/// Reads a WAV up to its first sample.
///
/// # Errors
/// The input cannot be read, ends within its header, or holds samples that fit neither L16 nor L24 without loss.
pub fn read_header(input: &mut Input) -> Result<WavHeader, MediaError> {
    let riff: [u8; 12] = read_array(input)?;
    let open_ended = matches!(u32_at(&riff, 4), 0 | OPEN_LENGTH);
    if !matches!(&riff[..4], b"RIFF" | b"RF64" | b"BW64") || &riff[8..] != b"WAVE" {
        return Err(input.wrong("not a WAV: RIFF, RF64 or BW64 and WAVE expected at the beginning"));
    }
    let mut format = None;
    let mut long_data = None;
    loop {
        let chunk: [u8; 8] = read_array(input)?;
        let len = u32_at(&chunk, 4);
        match &chunk[..4] {
            b"fmt " => format = Some(read_format(input, len)?),
            b"ds64" => long_data = Some(read_long_data_size(input, len)?),
            b"data" => {
                let Some((layout, audio)) = format else {
                    return Err(input.wrong("not a WAV we can read: no fmt chunk before the data"));
                };
                let data_bytes = match (len, long_data) {
                    (OPEN_LENGTH, Some(bytes)) if bytes != 0 && bytes != u64::MAX => Some(bytes),
                    (OPEN_LENGTH, _) => None,
                    (0, _) if open_ended => None,
                    (len, _) => Some(u64::from(len)),
                };
                return Ok(WavHeader { layout, audio, data_bytes });
            }
            _ => skip(input, u64::from(len) + u64::from(len & 1))?,
        }
    }
}

fn read_format(input: &mut Input, len: u32) -> Result<(SampleLayout, AudioFormat), MediaError> {
    let chunk = read_chunk(input, len, 16)?;
    let extensible = u16_at(&chunk, 0) == TAG_EXTENSIBLE && chunk.len() >= 40;
    let tag = if extensible { u16_at(&chunk, 24) } else { u16_at(&chunk, 0) };
    let channels = u16_at(&chunk, 2);
    let rate = u32_at(&chunk, 4);
    let block = u16_at(&chunk, 12);
    let bits = u16_at(&chunk, 14);
    let valid = match extensible {
        true if u16_at(&chunk, 18) > 0 => u16_at(&chunk, 18),
        _ => bits,
    };
    if tag != TAG_PCM {
        return Err(input.wrong(unsupported(tag, valid, input.name())));
    }
    if channels == 0 || block == 0 || !block.is_multiple_of(channels) {
        return Err(input.wrong(format!("damaged fmt chunk: {channels} channels in {block} bytes")));
    }
    let layout = match (valid, block / channels) {
        (1..=8, 1) => SampleLayout::Unsigned8,
        (9..=16, 2) => SampleLayout::Little16,
        (17..=24, 3) => SampleLayout::Little24,
        (17..=24, 4) => SampleLayout::Little32,
        _ => return Err(input.wrong(unsupported(tag, valid, input.name()))),
    };
    match Format::from_parts(layout.depth().name(), rate, Some(channels.into())) {
        Ok(Format::Audio(audio)) => Ok((layout, audio)),
        _ => Err(input.wrong(format!(
            "{channels} channels at {rate} Hz; accepted: 1 to 255 channels, 1000 to 384000 Hz"
        ))),
    }
}

fn unsupported(tag: u16, bits: u16, name: &str) -> String {
    let what = match tag {
        TAG_PCM => format!("{bits}-bit samples"),
        TAG_FLOAT => format!("{bits}-bit floating-point samples"),
        tag => format!("audio with format tag {tag:#06x}"),
    };
    format!(
        "{what}; accepted: integer PCM of 8, 16 or 24 bits; to convert: ffmpeg -i {name} -c:a pcm_s24le OUT.wav"
    )
}

/// The data size of an RF64: after the RIFF size, in a chunk before the others.
fn read_long_data_size(input: &mut Input, len: u32) -> Result<u64, MediaError> {
    let chunk = read_chunk(input, len, 16)?;
    Ok(u64::from(u32_at(&chunk, 12)) << 32 | u64::from(u32_at(&chunk, 8)))
}

/// A chunk's content, as far as it matters, and its padding.
fn read_chunk(input: &mut Input, len: u32, least: usize) -> Result<Vec<u8>, MediaError> {
    let wanted = usize::try_from(len).map_or(CHUNK_READ_MAX, |len| len.min(CHUNK_READ_MAX));
    if wanted < least {
        return Err(
            input.wrong(format!("damaged header: a chunk of {len} bytes, {least} expected"))
        );
    }
    let mut chunk = vec![0; wanted];
    if input.fill(&mut chunk)? < wanted {
        return Err(cut(input));
    }
    skip(input, u64::from(len) + u64::from(len & 1) - wanted as u64)?;
    Ok(chunk)
}

fn read_array<const N: usize>(input: &mut Input) -> Result<[u8; N], MediaError> {
    let mut bytes = [0; N];
    match input.fill(&mut bytes)? {
        read if read == N => Ok(bytes),
        _ => Err(cut(input)),
    }
}

fn skip(input: &mut Input, mut count: u64) -> Result<(), MediaError> {
    let mut scratch = [0; 4096];
    while count > 0 {
        let most = scratch.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        match input.read(&mut scratch[..most])? {
            0 => return Err(cut(input)),
            read => count -= read as u64,
        }
    }
    Ok(())
}

fn cut(input: &Input) -> MediaError {
    input.wrong("truncated: the WAV ends before its samples begin")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at + 2)) << 16 | u32::from(u16_at(bytes, at))
}
