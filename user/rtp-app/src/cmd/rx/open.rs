//! From the options of `rx` to a stream that is open.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rtp_mgr::{Attached, Batch, Engine, Leg, Mode, Receiver, ReceiverBuilder, SideChannel, Stats};
use rtp_mgr_ring::abi::ReaderStatus;

use super::record::is_stdout;
use crate::cli::{EngineChoice, OnOff, RxArgs};
use crate::cmd::address::{on_interface, receive_legs};
use crate::error::Failure;
use crate::media::Input;
use crate::media::audio::Format;
use crate::media::sdp::Description;

/// How long gaps stay open when nobody says.
const REORDER_DEFAULT: Duration = Duration::from_millis(20);
/// Ring order when a file is written: 8,192 positions are 63 ms at 130,000 packets/s.
const RING_ORDER_FILES: u8 = 13;
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
    source: Option<IpAddr>,
    payload_type: Option<u8>,
    format: Option<Format>,
    clock_rate: Option<u32>,
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
        let mut settings = Self {
            args,
            legs: receive_legs(&args.address)?,
            source: None,
            payload_type: args.payload_type,
            format: None,
            clock_rate: None,
        };
        if let Some(text) = &args.format {
            let format: Format =
                text.parse().map_err(|error| Failure::usage(format!("--format {error}")))?;
            settings.format = Some(format);
            settings.clock_rate = Some(format.clock_rate());
        }
        if let Some(path) = &args.sdp {
            settings.describe(path)?;
        }
        settings.check()?;
        Ok(settings)
    }

    /// Takes over what a session description says. Addresses on the command line count more.
    fn describe(&mut self, path: &Path) -> Result<(), Failure> {
        let description = Input::open(path)
            .and_then(|mut input| Description::read(&mut input))
            .map_err(|error| Failure::media("--sdp", &error))?;
        if self.legs.is_empty() {
            let interface = self.args.address.interface.as_deref();
            let legs = description.legs.into_iter().map(|leg| on_interface(leg, interface));
            self.legs = legs.collect::<Result<_, _>>()?;
            self.source = description.source;
        }
        self.payload_type = self.payload_type.or(Some(description.payload_type));
        self.format = description.format;
        self.clock_rate = description.clock_rate;
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        if let Some(path) = self.args.pcap.as_deref().filter(|path| is_stdout(path)) {
            return Err(Failure::usage(format!(
                "--pcap {}: not a file name; accepted: a file",
                path.display()
            )));
        }
        let wav = self.args.out.as_deref().and_then(|path| path.extension());
        let wav = wav.is_some_and(|extension| extension.eq_ignore_ascii_case("wav"));
        if wav && !matches!(self.format, Some(Format::Audio(_))) {
            return Err(Failure::usage(format!(
                "--out {}: a WAV needs to know the audio format; accepted: also --format, such as \
                 --format L24/48000/2, or --sdp FILE",
                self.args.out.as_deref().unwrap_or("".as_ref()).display()
            )));
        }
        // clap drops a requirement when what is required conflicts with something given.
        for (given, option, needed) in [
            (self.args.reliable && self.args.attach.is_none(), "--reliable", "--attach"),
            (
                self.args.allow_reliable && self.args.publish.is_none(),
                "--allow-reliable",
                "--publish",
            ),
        ] {
            if given {
                return Err(Failure::usage(format!("{option}: needs {needed} NAME")));
            }
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
            return Ok(Feed::Own { receiver: Box::new(receiver), legs });
        };
        let mode = if self.args.reliable { Mode::Reliable } else { Mode::Lossy };
        let attached = Attached::open(name, mode).map_err(Failure::library)?;
        Ok(Feed::Attached(Box::new(attached)))
    }

    fn builder(&self) -> ReceiverBuilder {
        let args = self.args;
        let mut builder = Receiver::builder()
            .engine(args.engine.into())
            .exact_times(self.exact_times())
            .gro(args.gro != Some(OnOff::Off))
            .allow_reliable(args.allow_reliable);
        for leg in &self.legs {
            builder = builder.leg(leg.clone());
        }
        if let Some(reorder) = self.reorder() {
            builder = builder.ordered(reorder);
        }
        if let Some(order) = self.ring_order() {
            builder = builder.ring_order(order);
        }
        if let Some(longest) = args.busy_poll {
            builder = builder.busy_poll(longest);
        }
        if let Some(sources) = args.sources {
            builder = builder.sources(sources);
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
        if let Some(source) = self.source {
            builder = builder.source_address(source);
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

    /// A capture is worth its arrival times: coalesced packets would share one.
    fn exact_times(&self) -> bool {
        self.args.exact_times || (self.args.pcap.is_some() && self.args.gro != Some(OnOff::On))
    }

    /// Writing a file can take a while now and then: the ring holds what arrives meanwhile. With an
    /// expected rate the library knows what is needed.
    fn ring_order(&self) -> Option<u8> {
        let files = self.args.out.is_some() || self.args.pcap.is_some();
        let unknown = self.args.expected_rate.is_none();
        self.args.ring_order.or((files && unknown).then_some(RING_ORDER_FILES))
    }

    /// What the format says, then what `--clock-rate` says, which counts more.
    fn clock_rates(&self) -> Vec<(u8, u32)> {
        let mut rates = Vec::new();
        match (self.clock_rate, self.payload_type) {
            (Some(hz), Some(payload_type)) => rates.push((payload_type, hz)),
            // RFC 3551 section 3: the dynamic payload types.
            (Some(hz), None) => rates.extend((96..=127).map(|payload_type| (payload_type, hz))),
            (None, _) => {}
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
        receiver: Box<Receiver>,
        /// Its legs, as they were given.
        legs: Vec<String>,
    },
    /// Received by another process.
    Attached(Box<Attached>),
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
