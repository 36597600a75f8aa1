//! From the options of `rx` to a stream that is open.

use std::time::Duration;

use rtp_mgr::{Attached, Batch, Engine, Leg, Mode, Receiver, ReceiverBuilder, SideChannel, Stats};
use rtp_mgr_ring::abi::ReaderStatus;

use super::record::is_stdout;
use crate::cli::{EngineChoice, OnOff, RxArgs};
use crate::cmd::address::receive_legs;
use crate::error::Failure;
use crate::media::audio::Format;

/// How long gaps stay open when nobody says.
const REORDER_DEFAULT: Duration = Duration::from_millis(20);
/// Bytes of a packet, to size the socket buffer for an expected rate.
const PACKET_LEN: usize = 1_500;

impl From<EngineChoice> for Engine {
    fn from(choice: EngineChoice) -> Self {
        match choice {
            EngineChoice::Auto => Self::Auto,
            EngineChoice::Kernel => Self::Kernel,
            EngineChoice::User => Self::User,
        }
    }
}

/// The options, judged together.
#[derive(Debug)]
pub struct Settings<'a> {
    args: &'a RxArgs,
    legs: Vec<Leg>,
    payload_type: Option<u8>,
    format: Option<Format>,
}

impl<'a> Settings<'a> {
    /// Judges the options together.
    ///
    /// # Errors
    /// [`Failure::Usage`]; a session description that cannot be read.
    pub fn new(args: &'a RxArgs) -> Result<Self, Failure> {
        if args.json && args.out.as_deref().is_some_and(is_stdout) {
            return Err(Failure::usage(
                "--out -: cannot be used together with --json, which needs standard output too; \
                 accepted: a file",
            ));
        }
        let format = match &args.format {
            Some(text) => Some(
                text.parse::<Format>()
                    .map_err(|error| Failure::usage(format!("--format {error}")))?,
            ),
            None => None,
        };
        let settings = Self {
            args,
            legs: receive_legs(&args.address)?,
            payload_type: args.payload_type,
            format,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), Failure> {
        let wav = self.args.out.as_deref().and_then(|path| path.extension());
        let wav = wav.is_some_and(|extension| extension.eq_ignore_ascii_case("wav"));
        if wav && !matches!(self.format, Some(Format::Audio(_))) {
            return Err(Failure::usage(format!(
                "--out {}: a WAV needs to know the audio format; accepted: also --format, such as \
                 --format L24/48000/2, or --sdp FILE",
                self.args.out.as_deref().unwrap_or("".as_ref()).display()
            )));
        }
        if self.args.attach.is_none() && self.legs.is_empty() {
            return Err(Failure::usage(
                "--leg: missing; accepted: --leg [SOURCE@]ADDRESS[%INTERFACE]:PORT, --bind ADDRESS \
                 and --port PORT, --sdp FILE, or --attach NAME",
            ));
        }
        Ok(())
    }

    /// The encoding of the payload, when known.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// As the library says.
    pub fn open(&self) -> Result<Feed, Failure> {
        let Some(name) = &self.args.attach else {
            let receiver = self.builder().open().map_err(Failure::library)?;
            let legs = self.legs.iter().map(ToString::to_string).collect();
            return Ok(Feed::Own { receiver, legs });
        };
        let mode = if self.args.reliable { Mode::Reliable } else { Mode::Lossy };
        Attached::open(name, mode).map(Feed::Attached).map_err(Failure::library)
    }

    fn builder(&self) -> ReceiverBuilder {
        let args = self.args;
        let mut builder = Receiver::builder()
            .engine(args.engine.into())
            .exact_times(args.exact_times)
            .gro(args.gro != Some(OnOff::Off))
            .allow_reliable(args.allow_reliable);
        for leg in &self.legs {
            builder = builder.leg(leg.clone());
        }
        if let Some(reorder) = self.reorder() {
            builder = builder.ordered(reorder);
        }
        if let Some(order) = args.ring_order {
            builder = builder.ring_order(order);
        }
        if let Some(stride) = args.slot_stride {
            builder = builder.slot_stride(stride);
        }
        if let Some(ssrc) = args.ssrc {
            builder = builder.ssrc(ssrc);
        }
        if let Some(payload_type) = self.payload_type {
            builder = builder.payload_type(payload_type);
        }
        if let Some(rate) = args.expected_rate {
            builder = builder.expected_rate(rate.per_second(), PACKET_LEN);
        }
        if let Some(name) = &args.publish {
            builder = builder.publish(name);
        }
        for (payload_type, hz) in self.clock_rates() {
            builder = builder.clock_rate(payload_type, hz);
        }
        builder
    }

    /// A file wants one source in order; two legs need an order to be merged.
    fn reorder(&self) -> Option<Duration> {
        let wanted = self.args.out.is_some() || self.legs.len() > 1;
        self.args.reorder.or(wanted.then_some(REORDER_DEFAULT))
    }

    /// What the format says, then what `--clock-rate` says, which counts more.
    fn clock_rates(&self) -> Vec<(u8, u32)> {
        let mut rates = Vec::new();
        if let Some(format) = &self.format {
            match self.payload_type {
                Some(payload_type) => rates.push((payload_type, format.clock_rate())),
                // RFC 3551 section 3: the dynamic payload types.
                None => rates.extend((96..=127).map(|pt| (pt, format.clock_rate()))),
            }
        }
        rates.extend(self.args.clock_rates.iter().map(|rate| (rate.payload_type, rate.hz)));
        rates
    }
}

/// A stream to read, this process's or another's.
#[derive(Debug)]
pub enum Feed {
    /// Received here.
    Own {
        /// The stream.
        receiver: Receiver,
        /// Its legs, as they were given.
        legs: Vec<String>,
    },
    /// Received by another process.
    Attached(Attached),
}

impl Feed {
    /// The next positions. `None`: the stream has stopped.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Failure> {
        match self {
            Self::Own { receiver, .. } => receiver.read(timeout),
            Self::Attached(attached) => attached.read(timeout),
        }
        .map_err(Failure::library)
    }

    /// Stops the stream when it is ours; returns whether there is something left to be read.
    pub fn stop(&mut self) -> Result<bool, Failure> {
        match self {
            Self::Own { receiver, .. } => receiver.stop().map(|()| true).map_err(Failure::library),
            Self::Attached(_) => Ok(false),
        }
    }

    /// The figures.
    pub fn stats(&self) -> Stats {
        match self {
            Self::Own { receiver, .. } => receiver.stats(),
            Self::Attached(attached) => attached.stats(),
        }
    }

    /// What the engine says about our own reader. The owner's is reliable and misses nothing.
    pub fn own(&self) -> ReaderStatus {
        match self {
            Self::Own { .. } => ReaderStatus::default(),
            Self::Attached(attached) => attached.status(),
        }
    }

    /// What the stream leaves to its sockets.
    pub fn side_channel(&self) -> Option<SideChannel> {
        match self {
            Self::Own { receiver, .. } => Some(receiver.side_channel()),
            Self::Attached(_) => None,
        }
    }

    /// The legs, as they were given.
    pub fn legs(&self) -> Vec<String> {
        match self {
            Self::Own { legs, .. } => legs.clone(),
            Self::Attached(attached) => attached.info().legs.clone(),
        }
    }

    /// What limits the stream.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Self::Own { receiver, .. } => {
                receiver.warnings().iter().map(ToString::to_string).collect()
            }
            Self::Attached(_) => Vec::new(),
        }
    }

    /// The first line: where packets are listened for, and by whom.
    pub fn greeting(&self) -> String {
        match self {
            Self::Own { receiver, legs } => format!(
                "receiving on {} ({} engine, stream {}); Ctrl-C ends",
                legs.join(" and "),
                receiver.engine(),
                receiver.id(),
            ),
            Self::Attached(attached) => format!(
                "reading stream {} of process {} ({} engine); Ctrl-C ends",
                attached.info().id,
                attached.info().owner_pid,
                attached.info().engine,
            ),
        }
    }
}
