//! The encodings we know by name: [`Format`] and its text form, as `--format` and an SDP's rtpmap have it.

use std::fmt;
use std::str::FromStr;

use super::{MediaError, PAYLOAD_MAX};

/// Sampling rates accepted, in Hz: up to 384 kHz, the highest in use (DXD).
const RATES: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// An encoding with its parameters: `MP2T`, or linear audio as `L24/48000/2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// MPEG transport stream, RFC 2250 and RFC 3551 section 5 (payload type 33, 90 kHz).
    Mp2t,
    /// Uncompressed audio.
    Audio(AudioFormat),
}

/// Uncompressed big-endian audio: L16 of RFC 3551 section 4.5.11, L24 of RFC 3190 section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AudioFormat {
    /// Bits per sample.
    pub depth: Depth,
    /// Samples per second and channel, which is the RTP clock rate too.
    pub rate: u32,
    /// Interleaved channels, 1 to 255.
    pub channels: u8,
}

/// Bits per sample of linear audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Depth {
    /// 16 bits.
    L16,
    /// 24 bits.
    L24,
}

impl Depth {
    /// Bytes of one sample.
    pub const fn bytes(self) -> usize {
        match self {
            Depth::L16 => 2,
            Depth::L24 => 3,
        }
    }

    /// The encoding's name in SDP.
    pub const fn name(self) -> &'static str {
        match self {
            Depth::L16 => "L16",
            Depth::L24 => "L24",
        }
    }
}

impl AudioFormat {
    /// Bytes of one sample of every channel.
    pub const fn frame_bytes(&self) -> usize {
        self.depth.bytes() * self.channels as usize
    }

    /// How many samples per channel fit a payload of [`PAYLOAD_MAX`] bytes; 0 when not even one does.
    pub const fn samples_per_payload_max(&self) -> u32 {
        (PAYLOAD_MAX / self.frame_bytes()) as u32
    }
}

impl Format {
    /// The encoding name of SDP's rtpmap.
    pub const fn name(&self) -> &'static str {
        match self {
            Format::Mp2t => "MP2T",
            Format::Audio(audio) => audio.depth.name(),
        }
    }

    /// The RTP clock in Hz.
    pub const fn clock_rate(&self) -> u32 {
        match self {
            Format::Mp2t => 90_000,
            Format::Audio(audio) => audio.rate,
        }
    }

    /// The payload type to use by default: static where RFC 3551 section 6 has one, otherwise 97.
    pub fn payload_type(&self) -> u8 {
        match self {
            Format::Mp2t => 33,
            Format::Audio(AudioFormat { depth: Depth::L16, rate: 44_100, channels: 2 }) => 10,
            Format::Audio(AudioFormat { depth: Depth::L16, rate: 44_100, channels: 1 }) => 11,
            Format::Audio(_) => 97,
        }
    }

    /// The format that a static payload type of RFC 3551 section 6 stands for, if it is one of ours.
    pub fn from_payload_type(payload_type: u8) -> Option<Self> {
        let l16 =
            |channels| Format::Audio(AudioFormat { depth: Depth::L16, rate: 44_100, channels });
        match payload_type {
            33 => Some(Format::Mp2t),
            10 => Some(l16(2)),
            11 => Some(l16(1)),
            _ => None,
        }
    }

    /// Builds a format from the parts of an rtpmap. `channels` is 1 when absent (RFC 8866 section 6.6).
    ///
    /// # Errors
    /// An encoding we do not know, or a rate or channel count out of range.
    pub fn from_parts(name: &str, rate: u32, channels: Option<u32>) -> Result<Self, MediaError> {
        Self::checked(name, rate, channels).map_err(|reason| {
            let value = match channels {
                Some(channels) => format!("{name}/{rate}/{channels}"),
                None => format!("{name}/{rate}"),
            };
            MediaError::Format { value, reason }
        })
    }

    fn checked(name: &str, rate: u32, channels: Option<u32>) -> Result<Self, &'static str> {
        let depth = match name.to_ascii_uppercase().as_str() {
            "MP2T" if channels.is_some_and(|n| n != 1) => return Err("MP2T has no channels"),
            "MP2T" if rate == 90_000 => return Ok(Format::Mp2t),
            "MP2T" => return Err("the clock rate of MP2T is 90000"),
            "L16" => Depth::L16,
            "L24" => Depth::L24,
            _ => return Err("an encoding that is not supported"),
        };
        if !RATES.contains(&rate) {
            return Err("the rate is a number from 1000 to 384000");
        }
        match u8::try_from(channels.unwrap_or(1)) {
            Ok(channels @ 1..) => Ok(Format::Audio(AudioFormat { depth, rate, channels })),
            _ => Err("the channel count is a number from 1 to 255"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Mp2t => f.write_str("MP2T/90000"),
            Format::Audio(audio) => audio.fmt(f),
        }
    }
}

impl fmt::Display for AudioFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.depth.name(), self.rate, self.channels)
    }
}

impl FromStr for Format {
    type Err = MediaError;

    fn from_str(text: &str) -> Result<Self, MediaError> {
        let error = |reason| MediaError::Format { value: text.to_owned(), reason };
        if text.eq_ignore_ascii_case("MP2T") || text.eq_ignore_ascii_case("TS") {
            return Ok(Format::Mp2t);
        }
        let mut parts = text.split('/');
        let name = parts.next().unwrap_or_default();
        let rate = parts.next().ok_or_else(|| error("the sampling rate is missing"))?;
        let channels = parts.next();
        if parts.next().is_some() {
            return Err(error("there is something after the channel count"));
        }
        let rate = rate.parse().map_err(|_| error("the rate is a number from 1000 to 384000"))?;
        let channels = channels
            .map(|n| n.parse().map_err(|_| error("the channel count is a number from 1 to 255")))
            .transpose()?;
        Self::checked(name, rate, channels).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn l24(rate: u32, channels: u8) -> Format {
        Format::Audio(AudioFormat { depth: Depth::L24, rate, channels })
    }

    #[test]
    fn reads_what_it_writes() {
        for text in ["L24/48000/2", "L16/44100/1", "L24/96000/8", "MP2T/90000"] {
            assert_eq!(text.parse::<Format>().unwrap().to_string(), text);
        }
        assert_eq!("L24/48000/2".parse::<Format>().unwrap(), l24(48_000, 2));
    }

    #[test]
    fn encoding_names_have_no_case_and_channels_default_to_one() {
        assert_eq!("ts".parse::<Format>().unwrap(), Format::Mp2t);
        assert_eq!("l24/48000".parse::<Format>().unwrap(), l24(48_000, 1));
        assert_eq!("mp2t".parse::<Format>().unwrap(), Format::Mp2t);
    }

    #[test]
    fn a_wrong_format_names_the_value_the_fault_and_what_is_accepted() {
        for (text, fault) in [
            ("L24", "sampling rate is missing"),
            ("L24/fast", "1000 to 384000"),
            ("L24/0/2", "1000 to 384000"),
            ("L24/48000/0", "1 to 255"),
            ("L24/48000/256", "1 to 255"),
            ("L24/48000/2/1", "after the channel count"),
            ("opus/48000/2", "not supported"),
            ("MP2T/48000", "90000"),
            ("", "sampling rate is missing"),
        ] {
            let error = text.parse::<Format>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: ")), "{error}");
            assert!(error.contains(fault), "{error}");
            assert!(error.contains("for example L24/48000/2"), "{error}");
        }
    }

    /// RFC 3551 section 6, tables 4 and 5.
    #[test]
    fn static_payload_types_are_used_both_ways() {
        for pt in [10, 11, 33] {
            assert_eq!(Format::from_payload_type(pt).unwrap().payload_type(), pt);
        }
        assert_eq!("L16/44100/2".parse::<Format>().unwrap().payload_type(), 10);
        assert_eq!(l24(48_000, 2).payload_type(), 97);
        assert_eq!(Format::from_payload_type(0), None);
    }
}
