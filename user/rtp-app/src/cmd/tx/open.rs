//! From the options of `tx` to a source and a stream that is open.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::path::Path;

use rtp_mgr::socket::TransmitOptions;
use rtp_mgr::{Leg, PacketRate, Transmitter, clock};
use rtp_mgr_ring::abi::SLOT_STRIDE_MIN;

use super::generate::Generator;
use super::replay::Replay;
use super::send::{Limit, Pacing, Sender};
use crate::capture::{self, find::ClockRates};
use crate::cli::{OnOff, Rate, TxArgs};
use crate::cmd::address::transmit_legs;
use crate::error::Failure;
use crate::media::audio::Format;
use crate::media::sdp::Description;
use crate::media::{self, Framing, Input, MediaInfo, MediaSource, Source, SourceOptions};
use crate::signals::Stop;
use crate::stdio::Stdin;

/// Packets per second when nobody says.
const RATE: Rate = Rate { packets: 50, seconds: 1 };
/// Payload bytes when nobody says.
const PAYLOAD: u32 = 1_200;
/// Bytes of an RTP header without CSRC and extension (RFC 3550 section 5.1).
const RTP_HEADER: usize = 12;

/// The options, judged together, and the source they name.
pub struct Settings<'a> {
    args: &'a TxArgs,
    /// Where to send.
    pub legs: Vec<Leg>,
    source: Box<dyn MediaSource>,
    live: bool,
    description: Option<Description>,
}

impl<'a> Settings<'a> {
    /// Judges the options together and opens the input.
    ///
    /// # Errors
    /// [`Failure::Usage`]; an input that cannot be read.
    pub fn new(args: &'a TxArgs, stop: &Stop) -> Result<Self, Failure> {
        let legs = transmit_legs(args)?;
        let live = args.input.as_deref() == Some(Path::new("-"));
        if live && args.repeat {
            return Err(Failure::usage(
                "--loop: cannot be used together with --input -; accepted: a file",
            ));
        }
        let source = source(args, stop)?;
        let mut settings = Self { args, legs, source, live, description: None };
        settings.description = settings.describe()?;
        Ok(settings)
    }

    /// What `--sdp` shall say.
    fn describe(&self) -> Result<Option<Description>, Failure> {
        let Some(path) = &self.args.sdp else { return Ok(None) };
        let name = self.args.input.as_deref().and_then(Path::file_name);
        let name = name.map_or_else(|| "rtp_app".into(), |name| name.to_string_lossy());
        let mut description =
            Description::of(&name, self.legs.clone(), self.payload_type(), self.info())
                .map_err(|error| Failure::usage(format!("--sdp {}: {error}", path.display())))?;
        description.ttl = self.args.ttl;
        Ok(Some(description))
    }

    /// What is sent.
    pub fn info(&self) -> &MediaInfo {
        self.source.info()
    }

    /// The payload type that goes into the headers made here.
    pub fn payload_type(&self) -> u8 {
        self.args.payload_type.unwrap_or(self.info().payload_type)
    }

    /// Whether the packets come with headers of their own.
    pub fn is_replay(&self) -> bool {
        self.info().framing == Framing::RtpPacket
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// As the library says.
    pub fn open(&self) -> Result<Transmitter, Failure> {
        let args = self.args;
        let info = self.info();
        let header = if self.is_replay() { 0 } else { RTP_HEADER };
        // Slots as long as the packets: equal neighbours are contiguous, one call sends many.
        let stride = ((header + info.payload_max) as u32).max(SLOT_STRIDE_MIN);
        let mut builder = Transmitter::builder()
            .engine(args.engine.into())
            .ring_order(args.ring_order)
            .slot_stride(stride)
            .payload_type(self.payload_type())
            .gso(args.gso != Some(OnOff::Off))
            .zerocopy(args.zerocopy != Some(OnOff::Off))
            // A capture's sources get their BYE from here; the engine knows one SSRC only.
            .rtcp(!self.is_replay());
        for leg in &self.legs {
            builder = builder.leg(leg.clone());
        }
        if let Some(rate) = self.rate() {
            let rate = PacketRate::new(rate.packets, rate.seconds).map_err(Failure::library)?;
            builder = builder.rate(rate);
        }
        if let Some(hz) = info.clock_rate {
            builder = builder.clock_rate(hz);
        }
        if let Some(ttl) = args.ttl {
            builder = builder.ttl(ttl);
        }
        if let Some(dscp) = args.dscp {
            builder = builder.dscp(dscp);
        }
        if let Some(port) = args.source_port {
            builder = builder.source_port(port);
        }
        if let Some(ssrc) = args.ssrc {
            builder = builder.ssrc(ssrc);
        }
        builder.open().map_err(Failure::library)
    }

    /// Writes the session description that `--sdp` asks for.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_description(&self, transmitter: &Transmitter) -> Result<(), Failure> {
        let (Some(path), Some(description)) = (&self.args.sdp, &self.description) else {
            return Ok(());
        };
        let origin = transmitter.local_addr(0).map(|address| address.ip());
        let session = clock::realtime_ns() / 1_000_000_000;
        fs::write(path, description.to_text(origin, session))
            .map_err(|error| Failure::file("--sdp", path, error))
    }

    /// How the BYE of a capture's sources leaves.
    pub fn rtcp_options(&self) -> TransmitOptions {
        TransmitOptions {
            ttl: self.args.ttl.map(u32::from),
            dscp: self.args.dscp.map(u32::from),
            ..TransmitOptions::default()
        }
    }

    /// What fills the slots.
    pub fn sender(self) -> Sender {
        let pacing = match (self.rate(), self.live) {
            (Some(_), _) => Pacing::Rate,
            (None, true) => Pacing::Live,
            (None, false) => Pacing::Launch,
        };
        let limit = Limit { count: self.args.count, duration: self.args.duration };
        let replay = Replay::new(self.args.ssrc, self.args.payload_type);
        // RFC 3550 section 5.1: the first timestamp should be random.
        let offset = RandomState::new().build_hasher().finish() as u32;
        Sender::new(self.source, pacing, limit, self.args.repeat, replay, offset)
    }

    /// The rate of generated packets.
    fn rate(&self) -> Option<Rate> {
        match self.args.input {
            Some(_) => None,
            None => Some(self.args.rate.unwrap_or(RATE)),
        }
    }
}

fn source(args: &TxArgs, stop: &Stop) -> Result<Box<dyn MediaSource>, Failure> {
    let Some(path) = &args.input else {
        let len = args.payload.unwrap_or(PAYLOAD) as usize;
        return Ok(Box::new(Generator::new(args.rate.unwrap_or(RATE), len)));
    };
    let format = match &args.format {
        Some(text) => Some(
            text.parse::<Format>().map_err(|error| Failure::usage(format!("--format {error}")))?,
        ),
        None => None,
    };
    let failed = |error| Failure::media("--input", &error);
    let input = if path == Path::new("-") {
        // Nobody has to see it: it tells who sits at a terminal what is waited for.
        let _ = writeln!(std::io::stderr(), "reading standard input");
        let stdin = Stdin::new(stop)
            .map_err(|error| Failure::failed(format!("--input -: standard input: {error}")))?;
        Input::pipe("standard input", Box::new(stdin))
    } else {
        Input::open(path).map_err(failed)?
    };
    let options = SourceOptions { format, bitrate: args.bitrate, packet_time: args.ptime };
    match media::open(input, &options).map_err(failed)? {
        Source::Media(source) => Ok(source),
        // Two passes over it are needed: not from a pipe.
        Source::Capture(_) if path == Path::new("-") => Err(Failure::usage(
            "--input -: a capture cannot be read from standard input; accepted: a file",
        )),
        Source::Capture(_) => {
            let capture = capture::replay::Replay::open(path, &ClockRates::default());
            Ok(Box::new(capture.map_err(failed)?))
        }
    }
}
