//! Media in and out of RTP payloads: what `tx --input` reads and what `rx --out` writes.
//!
//! A [`MediaSource`] gives one RTP payload at a time with the moment it is due and its RTP timestamp;
//! a [`MediaSink`] takes payloads in stream order and restores a file. Nothing here knows sockets,
//! rings, RTP headers or clocks: sequence numbers, SSRC, the random timestamp offset and the waiting
//! are the transmit loop's business.
//!
//! | module | what lives there |
//! |---|---|
//! | [`audio`] | [`Format`]: the encodings we know, as `L24/48000/2` or `MP2T` |
//! | [`input`] | files and pipes to read from, and what they carry |
//! | [`pcm`] | linear audio into payloads: packet times, sample layouts |
//! | [`wav`] | the header of a WAV file |
//! | [`programme`] | a short programme made on the spot, for the demo |
//! | [`sdp`] | session descriptions of a stream |
//! | [`sink`] | payloads back into files: bytes as they are, or a WAV |
//! | [`ts`] | MPEG transport streams, timed by their PCR |

pub mod audio;
mod error;
pub mod input;
pub mod pcm;
pub mod programme;
pub mod sdp;
pub mod sink;
pub mod ts;
pub mod wav;

use std::path::Path;
use std::time::Duration;

pub use audio::{AudioFormat, Depth, Format};
pub use error::MediaError;
pub use input::{Content, Input};

/// The longest RTP payload of an audio packet, in bytes: AES67's limit, which leaves room in an Ethernet
/// frame for the IPv6, UDP and RTP headers and a header extension.
pub const PAYLOAD_MAX: usize = 1_440;

/// What a source needs its transmit loop to know before the first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaInfo {
    /// The encoding, or `None` for a capture whose encoding nobody said.
    pub format: Option<Format>,
    /// The payload type to use unless the user names one: static where RFC 3551 has one, otherwise 97.
    pub payload_type: u8,
    /// The RTP clock in Hz, or `None` when it is not known.
    pub clock_rate: Option<u32>,
    /// The longest payload (or packet, see `framing`) that [`MediaSource::next`] writes, in bytes.
    pub payload_max: usize,
    /// Samples per channel in a full packet; `None` where the packet time is not constant.
    pub samples_per_packet: Option<u32>,
    /// What [`MediaSource::next`] writes.
    pub framing: Framing,
}

impl MediaInfo {
    /// How long one full packet lasts; `None` where that is not constant.
    pub fn packet_time(&self) -> Option<Duration> {
        let samples = u64::from(self.samples_per_packet?);
        let rate = u64::from(self.clock_rate.filter(|&rate| rate > 0)?);
        Some(Duration::from_nanos(samples * 1_000_000_000 / rate))
    }
}

/// What a source writes into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The payload: the transmit loop builds the RTP header.
    Payload,
    /// A whole RTP packet with its own header (a capture that is sent again).
    RtpPacket,
}

/// One payload, as written into the buffer given to [`MediaSource::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaPacket {
    /// Bytes written.
    pub len: usize,
    /// When it is due, in nanoseconds since the stream's first packet was. Never goes back.
    pub due_ns: u64,
    /// RTP timestamp since the stream's first packet, in units of the RTP clock, wrapping.
    pub timestamp: u32,
    /// The RTP marker bit.
    pub marker: bool,
}

/// Something that gives RTP payloads in the order and at the times they are to be sent.
pub trait MediaSource: Send {
    /// What the stream is.
    fn info(&self) -> &MediaInfo;

    /// Writes the next payload to the start of `payload`, or tells with `None` that the source has ended.
    /// `payload` has at least [`MediaInfo::payload_max`] bytes.
    ///
    /// # Errors
    /// The input cannot be read, or its content is damaged. Damage is told when everything whole has been
    /// given (so a transmit loop that sends what it gets and then reports the error has sent all that can be
    /// sent); after an error, the source has ended.
    fn next(&mut self, payload: &mut [u8]) -> Result<Option<MediaPacket>, MediaError>;

    /// Goes back to the beginning for `--loop`. Due times and RTP timestamps go on from where they were.
    ///
    /// # Errors
    /// The input is a pipe, or cannot be read.
    fn restart(&mut self) -> Result<(), MediaError>;

    /// How many payload bytes one pass gives, where that is known beforehand.
    fn total_bytes(&self) -> Option<u64>;

    /// Sentences about what was survived so far (no PCR, a discontinuity...), for the summary. Errors are not repeated here.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// How to read an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// What the input carries; without it, its content tells.
    pub format: Option<Format>,
    /// Bits per second of a transport stream without PCR; [`ts::DEFAULT_BITRATE`] without it.
    pub bitrate: Option<u64>,
    /// How much audio a packet holds; 1 ms without it, or less where that does not fit.
    pub packet_time: Option<Duration>,
}

/// What an input turned out to be.
pub enum Source {
    /// Media, ready to be sent.
    Media(Box<dyn MediaSource>),
    /// A pcap or pcapng, still unread.
    Capture(Input),
}

/// Opens an input as what its content (or [`SourceOptions::format`]) says: a WAV is known by its header, other
/// audio is raw big-endian samples and has to be named.
///
/// # Errors
/// The input cannot be read, is none of what we know, or does not suit the options.
pub fn open(mut input: Input, options: &SourceOptions) -> Result<Source, MediaError> {
    let content = input.content()?;
    let source: Box<dyn MediaSource> = match (content, options.format) {
        (Content::Empty, _) => {
            return Err(input.wrong("empty; accepted: MPEG-TS, WAV, pcap, pcapng"));
        }
        (Content::Capture, _) => return Ok(Source::Capture(input)),
        (Content::Wave, Some(Format::Mp2t)) => {
            return Err(input.wrong("a WAV, not a transport stream"));
        }
        (Content::Wave, _) => Box::new(pcm::PcmSource::wav(input, options.packet_time)?),
        (_, Some(Format::Audio(audio))) => {
            Box::new(pcm::PcmSource::raw(input, audio, options.packet_time)?)
        }
        (Content::TransportStream, _) | (_, Some(Format::Mp2t)) => {
            Box::new(ts::TsSource::open(input, options.bitrate)?)
        }
        (Content::Unknown, None) => {
            return Err(input.wrong(
                "none of MPEG-TS, WAV, pcap and pcapng; raw audio needs --format, for example L24/48000/2",
            ));
        }
    };
    Ok(Source::Media(source))
}

/// Makes the file that a stream's payloads are restored to: a WAV for audio, otherwise the bytes as they are.
///
/// # Errors
/// The file cannot be made, or is called .wav although the format is not known to be audio.
pub fn create(path: &Path, format: Option<Format>) -> Result<Box<dyn MediaSink>, MediaError> {
    let is_wav = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("wav"));
    match format {
        Some(Format::Audio(audio)) => Ok(Box::new(sink::WavSink::create(path, audio)?)),
        _ if is_wav => Err(MediaError::Output {
            name: path.display().to_string(),
            reason: "a WAV needs an audio format: --format L24/48000/2, for example, or --sdp"
                .to_owned(),
        }),
        _ => Ok(Box::new(sink::RawSink::create(path)?)),
    }
}

/// Something that restores a file from payloads given in stream order.
///
/// Dropping a sink leaves a file as whole as it can be made (a WAV gets its header), without a report.
pub trait MediaSink: Send {
    /// Takes the payload of one packet and its RTP timestamp.
    ///
    /// # Errors
    /// The file cannot be written.
    fn packet(&mut self, payload: &[u8], timestamp: u32) -> Result<(), MediaError>;

    /// `count` packets are missing before the next one.
    ///
    /// # Errors
    /// The file cannot be written.
    fn gap(&mut self, count: u64) -> Result<(), MediaError>;

    /// Hands over what is held back for larger writes: worth calling when nothing more comes for a while.
    ///
    /// # Errors
    /// The file cannot be written.
    fn flush(&mut self) -> Result<(), MediaError>;

    /// Makes the file whole and tells what is in it.
    ///
    /// # Errors
    /// The file cannot be written: what is there is then only part of what was received.
    fn finish(self: Box<Self>) -> Result<Summary, MediaError>;
}

/// What a sink wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of media written (for a WAV: of its sample data, silence included).
    pub bytes: u64,
    /// Packets that were missing.
    pub missing_packets: u64,
    /// Samples per channel of silence that stand for them; 0 for anything but audio.
    pub silence_samples: u64,
    /// Bytes of payloads that were no whole sample frame and were left out.
    pub odd_bytes: u64,
    /// Audio packets whose RTP timestamp did not follow the one before, although no packet was missing.
    pub timestamp_jumps: u64,
}

#[cfg(test)]
mod audio_tests;
