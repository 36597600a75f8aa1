//! Linear audio as RTP payloads, L16 (RFC 3551 section 4.5.11) and L24 (RFC 3190 section 4): [`PcmSource`].
//!
//! A packet holds the same number of samples each time, except for the last. Packet times are nominal as in
//! AES67: 1 ms is 48 samples at 48 kHz and at 44.1 kHz too (where it lasts 1.09 ms), 96 at 96 and 88.2 kHz. A payload
//! never exceeds [`PAYLOAD_MAX`] bytes: a packet time that would is refused, and the default becomes shorter.

use std::time::Duration;

use super::audio::{AudioFormat, Format};
use super::input::Input;
use super::wav::{self, SampleLayout};
use super::{Framing, MediaError, MediaInfo, MediaPacket, MediaSource, PAYLOAD_MAX};

/// The default packet times, longest first, in microseconds: those of AES67.
const PACKET_TIMES_US: [u64; 4] = [1_000, 333, 250, 125];

/// How many samples per channel a packet holds. `packet_time` is nominal (see the module's text).
///
/// # Errors
/// The packet time is shorter than a sample or longer than what fits [`PAYLOAD_MAX`] bytes.
pub fn samples_per_packet(
    audio: &AudioFormat,
    packet_time: Option<Duration>,
) -> Result<u32, MediaError> {
    let most = audio.samples_per_payload_max();
    let Some(time) = packet_time else {
        let fitting = PACKET_TIMES_US
            .iter()
            .map(|&us| nominal_samples(audio.rate, Duration::from_micros(us)))
            .find(|samples| (1..=u64::from(most)).contains(samples));
        return Ok(fitting.map_or(most.min(audio.rate.div_ceil(1_000)), |samples| samples as u32));
    };
    match nominal_samples(audio.rate, time) {
        samples @ 1.. if samples <= u64::from(most) => Ok(samples as u32),
        samples => Err(MediaError::PacketTime {
            value: packet_time_text(time),
            reason: format!(
                "{samples} samples of {audio} in a packet; accepted: 1 to {most} ({} ms), which is {PAYLOAD_MAX} bytes",
                packet_time_text(Duration::from_nanos(
                    u64::from(most) * 1_000_000_000 / u64::from(audio.rate)
                )),
            ),
        }),
    }
}

/// Samples in a packet time, at the rate it is named after: 48 kHz for 44.1 kHz, and so on.
fn nominal_samples(rate: u32, time: Duration) -> u64 {
    let rate = if rate.is_multiple_of(11_025) { rate / 11_025 * 12_000 } else { rate };
    let samples_e9 = u128::from(rate) * time.as_nanos();
    ((samples_e9 + 500_000_000) / 1_000_000_000) as u64
}

/// Milliseconds as SDP writes them: `1`, `1.09` (48 samples at 44.1 kHz), `0.33` (16 at 48 kHz), `0.125` (6);
/// never 0 for a sample of any rate.
pub(super) fn packet_time_text(time: Duration) -> String {
    let ns = time.as_nanos();
    let two_decimals = ns >= 10_000 && !ns.is_multiple_of(125_000);
    let unit = if two_decimals { 10_000 } else { 1_000 };
    let us = (ns + unit / 2) / unit * unit / 1_000;
    let text = format!("{}.{:03}", us / 1_000, us % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Linear audio as a [`MediaSource`].
pub struct PcmSource {
    info: MediaInfo,
    input: Input,
    layout: SampleLayout,
    audio: AudioFormat,
    is_wav: bool,
    /// Bytes of samples the header promises, if any, and how many of them are still to be read.
    data_bytes: Option<u64>,
    left: Option<u64>,
    /// The input's samples of one packet.
    block: Vec<u8>,
    /// Samples per channel given so far, over all passes.
    position: u64,
    ended: bool,
    failure: Option<MediaError>,
}

impl PcmSource {
    /// Reads a WAV.
    ///
    /// # Errors
    /// See [`wav::read_header`] and [`samples_per_packet`].
    pub fn wav(mut input: Input, packet_time: Option<Duration>) -> Result<Self, MediaError> {
        let header = wav::read_header(&mut input)?;
        let frame = (header.layout.bytes() * usize::from(header.audio.channels)) as u64;
        if header.data_bytes.is_some_and(|bytes| bytes < frame) || input.peek(1)?.is_empty() {
            return Err(input.wrong("no samples after the header"));
        }
        Self::new(input, header.layout, header.audio, header.data_bytes, packet_time)
            .map(|source| Self { is_wav: true, ..source })
    }

    /// Reads samples as they are in a payload, big endian and interleaved, from the first byte on.
    ///
    /// # Errors
    /// See [`samples_per_packet`].
    pub fn raw(
        input: Input,
        audio: AudioFormat,
        packet_time: Option<Duration>,
    ) -> Result<Self, MediaError> {
        Self::new(input, SampleLayout::Network(audio.depth), audio, None, packet_time)
    }

    fn new(
        input: Input,
        layout: SampleLayout,
        audio: AudioFormat,
        data_bytes: Option<u64>,
        packet_time: Option<Duration>,
    ) -> Result<Self, MediaError> {
        let samples = samples_per_packet(&audio, packet_time)?;
        let format = Format::Audio(audio);
        let frames = samples as usize * usize::from(audio.channels);
        Ok(Self {
            info: MediaInfo {
                format: Some(format),
                payload_type: format.payload_type(),
                clock_rate: Some(audio.rate),
                payload_max: samples as usize * audio.frame_bytes(),
                samples_per_packet: Some(samples),
                framing: Framing::Payload,
            },
            input,
            layout,
            audio,
            is_wav: false,
            data_bytes,
            left: data_bytes,
            block: vec![0; frames * layout.bytes()],
            position: 0,
            ended: false,
            failure: None,
        })
    }

    /// Bytes of one sample of every channel in the input.
    fn input_frame(&self) -> usize {
        self.layout.bytes() * usize::from(self.audio.channels)
    }

    /// Reads the samples of one packet; gives how many bytes of whole ones there are.
    fn read_block(&mut self) -> usize {
        let wanted = match self.left {
            Some(left) => self.block.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => self.block.len(),
        };
        let read = match self.input.fill(&mut self.block[..wanted]) {
            Ok(read) => read,
            Err(error) => {
                self.failure = Some(error);
                0
            }
        };
        self.left = self.left.map(|left| left - read as u64);
        let odd = read % self.input_frame();
        if read < self.block.len() {
            self.ended = true;
            self.failure = self.failure.take().or_else(|| self.shortage(odd));
        }
        read - odd
    }

    /// What is missing at the end of the input.
    fn shortage(&self, odd: usize) -> Option<MediaError> {
        let promised = self.data_bytes.zip(self.left.filter(|&left| left > 0));
        let reason = match promised {
            Some((all, left)) => {
                format!("truncated: {} of the {all} bytes of samples are there", all - left)
            }
            None if odd > 0 => {
                format!("truncated: the last sample has {odd} of {} bytes", self.input_frame())
            }
            None => return None,
        };
        Some(self.input.damaged(reason))
    }
}

impl MediaSource for PcmSource {
    fn info(&self) -> &MediaInfo {
        &self.info
    }

    fn next(&mut self, payload: &mut [u8]) -> Result<Option<MediaPacket>, MediaError> {
        let bytes = if self.ended { 0 } else { self.read_block() };
        if bytes == 0 {
            self.ended = true;
            return self.failure.take().map_or(Ok(None), Err);
        }
        let frames = bytes / self.input_frame();
        let len = frames * self.audio.frame_bytes();
        self.layout.convert(&self.block[..bytes], &mut payload[..len]);
        let position = self.position;
        self.position += frames as u64;
        let due = u128::from(position) * 1_000_000_000 / u128::from(self.audio.rate);
        Ok(Some(MediaPacket { len, due_ns: due as u64, timestamp: position as u32, marker: false }))
    }

    fn restart(&mut self) -> Result<(), MediaError> {
        self.input.rewind()?;
        if self.is_wav {
            wav::read_header(&mut self.input)?;
        }
        self.left = self.data_bytes;
        self.ended = false;
        self.failure = None;
        Ok(())
    }

    fn total_bytes(&self) -> Option<u64> {
        let raw_bytes = || self.input.file_len().filter(|_| !self.is_wav);
        let frames = self.data_bytes.or_else(raw_bytes)? / self.input_frame() as u64;
        Some(frames * self.audio.frame_bytes() as u64)
    }
}
