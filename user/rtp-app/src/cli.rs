//! The command line: what can be said, what is accepted, and the one line that a mistake gets.
//!
//! What lives here: options, their ranges and the long form `--mode rx|tx`. What does not: anything
//! that needs a file, a socket or another option to be judged (the commands do that).
// Comments on options are the program's help: `[SOURCE@]` there is no link.
#![allow(rustdoc::broken_intra_doc_links)]

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{StringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::error::Failure;

/// Longest RTP payload that fits a UDP datagram over IPv4: 65,535 - 20 - 8 - 12 bytes.
pub const PAYLOAD_MAX: u32 = 65_495;
/// Port when none is given: RFC 3551's.
pub const PORT_DEFAULT: u16 = 5004;

/// Receive, send, inspect and measure RTP.
#[derive(Debug, Parser)]
#[command(
    name = "rtp_app",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true,
    after_help = "The long form of the first two: --mode rx --bind ADDRESS --port PORT, and \
                  --mode tx --dst ADDRESS --port PORT.\n\
                  Exit status: 0 done, 1 failed, 2 bad usage. Ctrl-C ends every command with its \
                  summary."
)]
pub struct Cli {
    /// Print the versions of program, ABI and engines
    #[arg(long, short = 'V')]
    pub version: bool,
    /// With --version: as JSON
    #[arg(long, requires = "version")]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive a stream
    Rx(RxArgs),
    /// Send a stream
    Tx(TxArgs),
    /// Send a generated programme over loopback and check every byte of what arrives
    Demo(DemoArgs),
    /// Consume the simulated DMA engine's bursts and check their pattern
    Consume(ConsumeArgs),
    /// Figures of each RTP stream in a capture file
    Inspect(InspectArgs),
    /// The streams that run on this machine
    List(ListArgs),
    /// Counters of a running stream
    Stat(StatArgs),
    /// Which engine will be used and why, and what limits this machine
    Doctor(DoctorArgs),
    /// Measure the embedded engine on this machine, beside loops over plain sockets
    Bench(BenchArgs),
}

/// Who runs the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// The kernel module when it is loaded and usable, else the embedded engine.
    #[default]
    Auto,
    /// The kernel module.
    Kernel,
    /// The embedded engine.
    User,
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// On.
    On,
    /// Off.
    Off,
}

/// `--clock-rate PT=HZ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockRate {
    /// RTP payload type.
    pub payload_type: u8,
    /// RTP clock rate in Hz.
    pub hz: u32,
}

/// Packets per second as a fraction, so that no rate drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Packets...
    pub packets: u64,
    /// ...in so many seconds.
    pub seconds: u64,
}

impl Rate {
    /// Packets per second.
    pub fn per_second(self) -> f64 {
        self.packets as f64 / self.seconds as f64
    }
}

/// Address flags of the long form; they describe leg 1.
#[derive(Clone, Debug, Default, Args)]
pub struct RxAddress {
    /// A leg, [SOURCE@]ADDRESS[%INTERFACE]:PORT; a second one makes the stream redundant (ST 2022-7)
    #[arg(long = "leg", value_name = "LEG", conflicts_with_all = ["bind", "port", "interface"])]
    pub legs: Vec<String>,
    /// Address to receive on, or multicast group to join [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// UDP port [default: 5004]
    #[arg(long, value_name = "PORT", value_parser = text(port))]
    pub port: Option<u16>,
    /// Network interface to receive multicast on
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
}

/// `rtp_app rx`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct RxArgs {
    #[command(flatten)]
    /// Where to receive.
    pub address: RxAddress,
    /// Take addresses, payload type and format from a session description
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    pub sdp: Option<PathBuf>,
    /// Audio format, to write a WAV file and to know the clock rate, such as L24/48000/2
    #[arg(long, value_name = "ENCODING/RATE/CHANNELS")]
    pub format: Option<String>,
    /// Write the payload to a file (- is standard output); .wav needs --format or --sdp
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the packets to a capture file (pcap)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// End after this many packets
    #[arg(long, value_name = "PACKETS", value_parser = text(count))]
    pub count: Option<u64>,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = text(seconds))]
    pub duration: Option<Duration>,
    /// End when nothing arrived for this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = text(seconds))]
    pub idle_timeout: Option<Duration>,
    /// Restore the order, waiting this long for a missing packet; two legs need it [default for
    /// two legs: 20]
    #[arg(long, value_name = "MS", value_parser = text(reorder))]
    pub reorder: Option<Duration>,
    /// Clock rate of a payload type, for the jitter
    #[arg(long = "clock-rate", value_name = "PT=HZ", value_parser = text(clock_rate))]
    pub clock_rates: Vec<ClockRate>,
    /// Take only this SSRC, decimal or 0x hexadecimal
    #[arg(long, value_name = "SSRC", value_parser = text(ssrc))]
    pub ssrc: Option<u32>,
    /// Take only this payload type
    #[arg(long, value_name = "PT", value_parser = text(payload_type))]
    pub payload_type: Option<u8>,
    /// Exit status 1 when a packet was lost
    #[arg(long)]
    pub fail_on_loss: bool,
    /// One JSON line per interval, the last one with "final": true
    #[arg(long)]
    pub json: bool,
    /// Seconds between reports
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = text(seconds))]
    pub interval: Duration,
    /// An arrival time of its own for each packet (turns GRO off)
    #[arg(long, conflicts_with = "gro")]
    pub exact_times: bool,
    /// Let the kernel coalesce packets (GRO) [default: on where it works, off with --pcap]
    #[arg(long, value_name = "on|off")]
    pub gro: Option<OnOff>,
    /// Be awake when the next packet of a steady stream comes, looking out for it this long at most, for
    /// some processor time (100 is enough for most machines; takes the embedded engine)
    #[arg(long, value_name = "MICROSECONDS", value_parser = text(busy_poll))]
    pub busy_poll: Option<Duration>,
    /// Sources whose figures are kept apart; packets of further ones arrive uncounted by source
    #[arg(long, value_name = "SOURCES", value_parser = text(sources))]
    pub sources: Option<u32>,
    /// The ring has 2^N positions [default: 10, 13 with --out or --pcap, or what --reorder needs at
    /// the --expected-rate]
    #[arg(long, value_name = "N", value_parser = text(ring_order))]
    pub ring_order: Option<u8>,
    /// Bytes of a slot; a longer packet is dropped and counted [default: 2048]
    #[arg(long, value_name = "BYTES", value_parser = text(slot_stride))]
    pub slot_stride: Option<u32>,
    /// Packets per second to be ready for (socket buffer, ring)
    #[arg(long, value_name = "PACKETS", value_parser = text(rate))]
    pub expected_rate: Option<Rate>,
    /// Let other processes of this user attach to the ring under this name
    #[arg(long, value_name = "NAME", value_parser = text(stream_name))]
    pub publish: Option<String>,
    /// With --publish: readers that ask for it may hold packets back from being overwritten
    #[arg(long)]
    pub allow_reliable: bool,
    /// Read the ring that another process publishes under this name, instead of a socket
    #[arg(long, value_name = "NAME", value_parser = text(stream_name),
          conflicts_with_all = ["legs", "bind", "port", "interface", "publish", "reorder", "gro",
                                "exact_times", "busy_poll", "expected_rate", "slot_stride", "ring_order", "sources",
                                "ssrc", "payload_type", "clock_rates", "sdp"])]
    pub attach: Option<String>,
    /// With --attach: be a reliable reader (the owner must allow it)
    #[arg(long)]
    pub reliable: bool,
    /// Who runs the ring
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app tx`
#[derive(Clone, Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "A capture is sent at the spacing it was captured with. Its packets keep sequence \
                  numbers, timestamps, payload types and SSRC (unless --ssrc or --payload-type names \
                  others); they go to the address given here, and every SSRC gets an RTCP BYE at \
                  the end."
)]
pub struct TxArgs {
    /// A leg, ADDRESS[%INTERFACE]:PORT; a second one gets the same packets (ST 2022-7)
    #[arg(long = "leg", value_name = "LEG", conflicts_with_all = ["dst", "port"])]
    pub legs: Vec<String>,
    /// Address to send to
    #[arg(long, value_name = "ADDRESS")]
    pub dst: Option<String>,
    /// UDP port [default: 5004]
    #[arg(long, value_name = "PORT", value_parser = text(port))]
    pub port: Option<u16>,
    /// Packets per second [default: 50]
    #[arg(long, value_name = "PACKETS", value_parser = text(rate), conflicts_with = "input")]
    pub rate: Option<Rate>,
    /// Payload bytes of a generated packet [default: 1200]
    #[arg(long, value_name = "BYTES", value_parser = text(payload), conflicts_with = "input")]
    pub payload: Option<u32>,
    /// End after this many packets
    #[arg(long, value_name = "PACKETS", value_parser = text(count))]
    pub count: Option<u64>,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = text(seconds))]
    pub duration: Option<Duration>,
    /// Send a file: MPEG-TS, WAV, or the RTP of a pcap or pcapng; - is standard input
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// What --input - carries: TS, or audio such as L24/48000/2
    #[arg(long, value_name = "TS|ENCODING/RATE/CHANNELS", requires = "input")]
    pub format: Option<String>,
    /// Bits per second of a transport stream that has no PCR
    #[arg(long, value_name = "BITS", value_parser = text(bitrate), requires = "input")]
    pub bitrate: Option<u64>,
    /// Milliseconds of audio in a packet [default: 1]
    #[arg(long, value_name = "MS", value_parser = text(packet_time), requires = "input")]
    pub ptime: Option<Duration>,
    /// Start again at the end of the file
    #[arg(long = "loop", requires = "input")]
    pub repeat: bool,
    /// Time to live, or IPv6 hop limit [default: the system's; multicast: 1]
    #[arg(long, value_name = "HOPS", value_parser = text(ttl))]
    pub ttl: Option<u8>,
    /// Differentiated services code point
    #[arg(long, value_name = "DSCP", value_parser = text(dscp))]
    pub dscp: Option<u8>,
    /// Network interface to send on
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// UDP source port [default: any]
    #[arg(long, value_name = "PORT", value_parser = text(port))]
    pub source_port: Option<u16>,
    /// RTP payload type [default: 33 for TS, else 96 or 97]
    #[arg(long, value_name = "PT", value_parser = text(payload_type))]
    pub payload_type: Option<u8>,
    /// SSRC, decimal or 0x hexadecimal [default: random; a capture keeps its own]
    #[arg(long, value_name = "SSRC", value_parser = text(ssrc))]
    pub ssrc: Option<u32>,
    /// Write a session description that receivers can open
    #[arg(long, value_name = "FILE")]
    pub sdp: Option<PathBuf>,
    /// One JSON line per interval, the last one with "final": true
    #[arg(long)]
    pub json: bool,
    /// Seconds between reports
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = text(seconds))]
    pub interval: Duration,
    /// Send equal neighbours in one call (GSO) [default: on where it works]
    #[arg(long, value_name = "on|off")]
    pub gso: Option<OnOff>,
    /// Let the network read large sends from the ring's own pages (kernel engine) [default: on where it
    /// works and pays]
    #[arg(long, value_name = "on|off")]
    pub zerocopy: Option<OnOff>,
    /// The ring has 2^N positions
    #[arg(long, value_name = "N", default_value = "10", value_parser = text(ring_order))]
    pub ring_order: u8,
    /// Who runs the ring
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app demo`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct DemoArgs {
    /// The result as one JSON line
    #[arg(long)]
    pub json: bool,
    /// Length of the programme, 1 to 60 whole seconds
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = text(whole_seconds))]
    pub duration: u32,
    /// Who runs the rings
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app consume`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct ConsumeArgs {
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = text(seconds))]
    pub duration: Option<Duration>,
    /// End after this many packets
    #[arg(long, value_name = "PACKETS", value_parser = text(count))]
    pub count: Option<u64>,
    /// One JSON line per interval, the last one with "final": true
    #[arg(long)]
    pub json: bool,
    /// Seconds between reports
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = text(seconds))]
    pub interval: Duration,
    /// The ring has 2^N positions
    #[arg(long, value_name = "N", default_value = "10", value_parser = text(ring_order))]
    pub ring_order: u8,
    /// Milliseconds between the bursts of the simulated DMA engine
    #[arg(long, value_name = "MS", default_value = "50", value_parser = text(dma_interval))]
    pub dma_interval: Duration,
    /// Packets in a burst
    #[arg(long, value_name = "PACKETS", default_value = "64", value_parser = text(burst))]
    pub burst: u32,
    /// Bytes of pattern in a packet
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = text(packet_len))]
    pub packet_len: u32,
    /// Frame the pattern as RTP
    #[arg(long)]
    pub rtp: bool,
    /// Who runs the ring
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app inspect`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct InspectArgs {
    /// A pcap or pcapng file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The figures as one JSON line
    #[arg(long)]
    pub json: bool,
    /// Clock rate of a payload type, for the jitter
    #[arg(long = "clock-rate", value_name = "PT=HZ", value_parser = text(clock_rate))]
    pub clock_rates: Vec<ClockRate>,
}

/// `rtp_app list`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct ListArgs {
    /// As one JSON line per stream
    #[arg(long)]
    pub json: bool,
    /// Only the streams of this engine
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app stat`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct StatArgs {
    /// Name or id of a stream, as `list` shows it [default: all]
    #[arg(value_name = "STREAM")]
    pub stream: Option<String>,
    /// As one JSON line per stream
    #[arg(long)]
    pub json: bool,
    /// Only the streams of this engine
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app doctor`
#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct DoctorArgs {
    /// As one JSON line
    #[arg(long)]
    pub json: bool,
    /// Exit status 1 when anything limits the chosen engine
    #[arg(long)]
    pub strict: bool,
    /// The engine to judge
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
}

/// `rtp_app bench`
#[derive(Clone, Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Packets cross a cable between two network namespaces where root allows it, \
                  otherwise loopback. Programs beside this one make the figures spread; ratios suffer \
                  less."
)]
pub struct BenchArgs {
    /// Only this row; may be repeated [default: all]
    #[arg(long = "row", value_name = "NAME")]
    pub rows: Vec<String>,
    /// Repetitions of every measurement
    #[arg(long, value_name = "N", default_value = "5", value_parser = text(runs))]
    pub runs: u32,
    /// Milliseconds of a measurement
    #[arg(long, value_name = "MS", default_value = "100", value_parser = text(bench_time))]
    pub time: Duration,
    /// As one JSON line
    #[arg(long)]
    pub json: bool,
}

/// What the command line came to.
#[derive(Debug)]
pub enum Parsed {
    /// Do this.
    Run(Box<Cli>),
    /// Print this on standard output and end: the help.
    Help(String),
}

/// Reads the command line. `arguments` begins with the program's own name.
///
/// # Errors
/// [`Failure::Usage`] with the one line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let arguments = short_form(arguments.into_iter().collect())?;
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Ok(Parsed::Run(Box::new(cli))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Ok(Parsed::Help(error.render().to_string()))
            }
            _ => Err(Failure::Usage(one_line(&error))),
        },
    }
}

/// The help that `rtp_app` prints when nothing is asked for.
pub fn help() -> String {
    Cli::command().render_help().to_string()
}

/// Turns `--mode rx ...` into `rx ...`, and a call as `consumer_app` into `consume ...`.
fn short_form(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let called_as = arguments.first().and_then(|name| Path::new(name).file_name());
    if called_as == Some(OsStr::new("consumer_app")) {
        arguments.insert(1, "consume".into());
        return Ok(arguments);
    }
    let Some(first) = arguments.get(1) else { return Ok(arguments) };
    if !first.to_string_lossy().starts_with('-') {
        return Ok(arguments);
    }
    let Some(at) = arguments.iter().position(|argument| {
        argument == "--mode" || argument.to_string_lossy().starts_with("--mode=")
    }) else {
        return Ok(arguments);
    };
    let argument = arguments.remove(at);
    let mode = match argument.to_string_lossy().strip_prefix("--mode=") {
        Some(mode) => mode.to_owned(),
        None if at < arguments.len() => arguments.remove(at).to_string_lossy().into_owned(),
        None => return Err(Failure::usage("--mode: the value is missing; accepted: rx, tx")),
    };
    if mode != "rx" && mode != "tx" {
        return Err(Failure::usage(format!("--mode {mode}: not a mode; accepted: rx, tx")));
    }
    arguments.insert(1, mode.into());
    Ok(arguments)
}

/// clap's error as one line: the argument, the value and what is accepted.
fn one_line(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(context_text).filter(|text| !text.is_empty());
    let argument = context(ContextKind::InvalidArg)
        .map(|argument| option_name(&argument).to_owned())
        .unwrap_or_else(|| "command line".into());
    let value = context(ContextKind::InvalidValue);
    let see = "see rtp_app --help";
    match error.kind() {
        ErrorKind::InvalidValue => match (value, context(ContextKind::ValidValue)) {
            (None, Some(accepted)) => {
                format!("{argument}: the value is missing; accepted: {accepted}")
            }
            (None, None) => format!("{argument}: the value is missing"),
            (Some(value), Some(accepted)) => {
                format!("{argument} {value}: not accepted; accepted: {accepted}")
            }
            (Some(value), None) => format!("{argument} {value}: not accepted; {see}"),
        },
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error)
                .map_or_else(|| "not accepted".to_owned(), ToString::to_string);
            format!("{argument} {}: {reason}", value.unwrap_or_default())
        }
        ErrorKind::UnknownArgument => match context(ContextKind::SuggestedArg) {
            Some(other) => format!("{argument}: no such option; is it {other}?"),
            None if argument.starts_with('-') => format!("{argument}: no such option; {see}"),
            None => format!("{argument}: nothing is expected here; {see}"),
        },
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let commands: Vec<_> =
                Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
            format!("{name}: no such command; accepted: {}", commands.join(", "))
        }
        ErrorKind::ArgumentConflict => match context(ContextKind::PriorArg) {
            Some(other) if option_name(&other) == argument => {
                format!("{argument}: given more than once; accepted: once")
            }
            Some(other) => {
                format!("{argument}: cannot be used together with {}", option_name(&other))
            }
            None => format!("{argument}: cannot be used here; {see}"),
        },
        ErrorKind::MissingRequiredArgument => format!("{argument}: missing; {see}"),
        ErrorKind::InvalidUtf8 => format!("{argument}: not UTF-8 text"),
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

/// `--port` from clap's `--port <PORT>`.
fn option_name(argument: &str) -> &str {
    argument.split([' ', '=']).next().unwrap_or(argument)
}

fn context_text(value: &ContextValue) -> String {
    match value {
        ContextValue::String(text) => text.clone(),
        ContextValue::Strings(texts) => texts.join(", "),
        ContextValue::StyledStr(text) => text.to_string(),
        other => other.to_string(),
    }
}

/// A value parser from a function that judges text.
fn text<T, F>(judge: F) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    StringValueParser::new().try_map(move |value| judge(&value).map_err(NotAccepted))
}

/// Why a value was refused, as clap wants to carry it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAccepted(String);

/// A whole number within limits, or the sentence that names them.
fn whole(value: &str, what: &str, least: u64, most: u64) -> Result<u64, String> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("not {what}; accepted: {least} to {most}")),
    }
}

/// A UDP port, 1 to 65535.
pub fn port(value: &str) -> Result<u16, String> {
    whole(value, "a port", 1, 65_535).map(|port| port as u16)
}

fn count(value: &str) -> Result<u64, String> {
    whole(value, "a number of packets", 1, u64::MAX)
}

fn seconds(value: &str) -> Result<Duration, String> {
    decimal(value, 0.001, 31_536_000.0)
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "not a time; accepted: 0.001 to 31536000 seconds".into())
}

fn whole_seconds(value: &str) -> Result<u32, String> {
    whole(value, "a length in whole seconds", 1, 60).map(|seconds| seconds as u32)
}

fn dma_interval(value: &str) -> Result<Duration, String> {
    decimal(value, 0.1, 10_000.0)
        .map(|ms| Duration::from_secs_f64(ms / 1e3))
        .ok_or_else(|| "not a time; accepted: 0.1 to 10000 milliseconds".into())
}

fn burst(value: &str) -> Result<u32, String> {
    whole(value, "a burst", 1, 65_536).map(|packets| packets as u32)
}

fn runs(value: &str) -> Result<u32, String> {
    whole(value, "a number of repetitions", 1, 1_000).map(|runs| runs as u32)
}

fn bench_time(value: &str) -> Result<Duration, String> {
    whole(value, "a time", 10, 60_000)
        .map(Duration::from_millis)
        .map_err(|_| "not a time; accepted: 10 to 60000 milliseconds".into())
}

fn packet_len(value: &str) -> Result<u32, String> {
    whole(value, "a packet of the pattern", 8, 2_036).map(|bytes| bytes as u32)
}

fn reorder(value: &str) -> Result<Duration, String> {
    decimal(value, 0.1, 10_000.0)
        .map(|ms| Duration::from_secs_f64(ms / 1e3))
        .ok_or_else(|| "not a time; accepted: 0.1 to 10000 milliseconds".into())
}

fn busy_poll(value: &str) -> Result<Duration, String> {
    whole(value, "a number of microseconds", 1, 10_000).map(Duration::from_micros)
}

fn packet_time(value: &str) -> Result<Duration, String> {
    decimal(value, 0.1, 100.0)
        .map(|ms| Duration::from_secs_f64(ms / 1e3))
        .ok_or_else(|| "not a packet time; accepted: 0.1 to 100 milliseconds".into())
}

fn decimal(value: &str, least: f64, most: f64) -> Option<f64> {
    value.parse().ok().filter(|number| (least..=most).contains(number))
}

/// A rate with at most three decimals, kept exactly.
fn rate(value: &str) -> Result<Rate, String> {
    let refused = || "not a rate; accepted: 0.001 to 10000000 packets per second".to_owned();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(refused());
    }
    let thousandths = format!("{whole}{fraction:0<3}").parse::<u64>().map_err(|_| refused())?;
    match thousandths {
        1..=10_000_000_000 if thousandths % 1000 == 0 => {
            Ok(Rate { packets: thousandths / 1000, seconds: 1 })
        }
        1..=10_000_000_000 => Ok(Rate { packets: thousandths, seconds: 1000 }),
        _ => Err(refused()),
    }
}

fn payload(value: &str) -> Result<u32, String> {
    let most = u64::from(PAYLOAD_MAX);
    whole(value, "a payload that fits a datagram", 0, most).map(|bytes| bytes as u32)
}

fn bitrate(value: &str) -> Result<u64, String> {
    whole(value, "a bit rate", 1_000, 10_000_000_000)
}

fn ttl(value: &str) -> Result<u8, String> {
    whole(value, "a number of hops", 1, 255).map(|hops| hops as u8)
}

fn dscp(value: &str) -> Result<u8, String> {
    whole(value, "a code point", 0, 63).map(|dscp| dscp as u8)
}

fn ring_order(value: &str) -> Result<u8, String> {
    use rtp_mgr_ring::abi::{RING_ORDER_MAX, RING_ORDER_MIN};
    whole(value, "a ring order", RING_ORDER_MIN.into(), RING_ORDER_MAX.into())
        .map(|order| order as u8)
}

fn sources(value: &str) -> Result<u32, String> {
    whole(value, "a number of sources", 1, rtp_mgr_ring::abi::SOURCES_MAX.into())
        .map(|sources| sources as u32)
}

fn slot_stride(value: &str) -> Result<u32, String> {
    use rtp_mgr_ring::abi::{SLOT_STRIDE_MAX, SLOT_STRIDE_MIN};
    whole(value, "a slot size", SLOT_STRIDE_MIN.into(), SLOT_STRIDE_MAX.into())
        .map(|bytes| bytes as u32)
}

/// RFC 5761 section 4 leaves 64 to 95 to RTCP.
fn payload_type(value: &str) -> Result<u8, String> {
    match value.parse::<u8>() {
        Ok(number @ (0..=63 | 96..=127)) => Ok(number),
        _ => Err("not an RTP payload type; accepted: 0 to 63, 96 to 127".into()),
    }
}

fn ssrc(value: &str) -> Result<u32, String> {
    let hexadecimal = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    }
    .map_err(|_| "not an SSRC; accepted: 0 to 4294967295, or 0x0 to 0xffffffff".into())
}

fn clock_rate(value: &str) -> Result<ClockRate, String> {
    let refused = || {
        "not a clock rate; accepted: PT=HZ with PT 0 to 127 and HZ 1 to 1000000000, \
         such as 96=90000"
            .to_owned()
    };
    let (payload_type, hz) = value.split_once('=').ok_or_else(refused)?;
    let payload_type = payload_type.parse().ok().filter(|pt| *pt <= 127u8).ok_or_else(refused)?;
    let hz = hz.parse().ok().filter(|hz| (1..=1_000_000_000).contains(hz)).ok_or_else(refused)?;
    Ok(ClockRate { payload_type, hz })
}

fn stream_name(value: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=64).contains(&value.len()) && !value.starts_with('.') && value.bytes().all(good) {
        Ok(value.to_owned())
    } else {
        Err("not a stream name; accepted: 1 to 64 letters, digits, - _ . (not first)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let all = std::iter::once("rtp_app").chain(arguments.iter().copied()).map(OsString::from);
        match parse(all) {
            Err(Failure::Usage(line)) => line,
            other => panic!("{arguments:?} was taken as {other:?}"),
        }
    }

    fn command(arguments: &[&str]) -> Command {
        match parse(arguments.iter().map(OsString::from)) {
            Ok(Parsed::Run(cli)) => cli.command.expect("a command"),
            other => panic!("{arguments:?} was taken as {other:?}"),
        }
    }

    #[test]
    fn the_command_line_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_form_is_the_short_form() {
        let long = command(&["rtp_app", "--mode", "rx", "--bind", "127.0.0.1", "--port", "5004"]);
        let Command::Rx(rx) = long else { panic!("{long:?}") };
        assert_eq!(rx.address.bind.as_deref(), Some("127.0.0.1"));
        assert_eq!(rx.address.port, Some(5004));

        let long = command(&[
            "rtp_app",
            "--dst",
            "127.0.0.1",
            "--mode=tx",
            "--port",
            "5004",
            "--rate",
            "50",
            "--payload",
            "1200",
        ]);
        let Command::Tx(tx) = long else { panic!("{long:?}") };
        assert_eq!(tx.dst.as_deref(), Some("127.0.0.1"));
        assert_eq!(tx.rate, Some(Rate { packets: 50, seconds: 1 }));
        assert_eq!(tx.payload, Some(1200));
    }

    #[test]
    fn consumer_app_consumes() {
        let called = command(&["./user/consumer_app", "--duration", "1.5"]);
        let Command::Consume(consume) = called else { panic!("{called:?}") };
        assert_eq!(consume.duration, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_mistake_gets_one_line_with_argument_value_and_what_is_accepted() {
        let cases: &[(&[&str], &str)] = &[
            (&["rx", "--port", "70000"], "--port 70000: not a port; accepted: 1 to 65535"),
            (&["rx", "--port", "0"], "--port 0: not a port; accepted: 1 to 65535"),
            (&["--mode", "up"], "--mode up: not a mode; accepted: rx, tx"),
            (&["--mode"], "--mode: the value is missing; accepted: rx, tx"),
            (
                &["rx", "--engine", "fast"],
                "--engine fast: not accepted; accepted: auto, kernel, user",
            ),
            (
                &["tx", "--rate", "0"],
                "--rate 0: not a rate; accepted: 0.001 to 10000000 packets per second",
            ),
            (
                &["tx", "--rate", "-5"],
                "--rate -5: not a rate; accepted: 0.001 to 10000000 packets per second",
            ),
            (
                &["tx", "--payload", "65496"],
                "--payload 65496: not a payload that fits a datagram; accepted: 0 to 65495",
            ),
            (&["rx", "--ring-order", "3"], "--ring-order 3: not a ring order; accepted: 4 to 20"),
            (&["rx", "--ring-order", "21"], "--ring-order 21: not a ring order; accepted: 4 to 20"),
            (
                &["rx", "--clock-rate", "96"],
                "--clock-rate 96: not a clock rate; accepted: PT=HZ with PT 0 to 127 and HZ 1 to \
                 1000000000, such as 96=90000",
            ),
            (
                &["tx", "--payload-type", "72"],
                "--payload-type 72: not an RTP payload type; accepted: 0 to 63, 96 to 127",
            ),
            (&["tx", "--dscp", "64"], "--dscp 64: not a code point; accepted: 0 to 63"),
            (
                &["rx", "--leg", "1.2.3.4:5", "--port", "5"],
                "--leg: cannot be used together with --port",
            ),
            (
                &["bench", "--runs", "0"],
                "--runs 0: not a number of repetitions; accepted: 1 to 1000",
            ),
            (&["bench", "--time", "5"], "--time 5: not a time; accepted: 10 to 60000 milliseconds"),
            (
                &["rx", "--busy-poll", "10001"],
                "--busy-poll 10001: not a number of microseconds; accepted: 1 to 10000",
            ),
            (&["rx", "--reorder"], "--reorder: the value is missing"),
        ];
        for (arguments, expected) in cases {
            assert_eq!(line(arguments), *expected, "{arguments:?}");
        }
    }

    #[test]
    fn unknown_options_and_commands_are_named() {
        assert_eq!(line(&["rx", "--prot", "5"]), "--prot: no such option; is it --port?");
        assert_eq!(
            line(&["receive"]),
            "receive: no such command; accepted: rx, tx, demo, consume, inspect, list, stat, doctor, \
             bench"
        );
        assert_eq!(line(&["inspect"]), "<FILE>: missing; see rtp_app --help");
    }

    #[test]
    fn a_rate_is_kept_exactly() {
        assert_eq!(rate("29.97"), Ok(Rate { packets: 29_970, seconds: 1000 }));
        assert_eq!(rate("8000"), Ok(Rate { packets: 8000, seconds: 1 }));
        assert_eq!(rate("0.001"), Ok(Rate { packets: 1, seconds: 1000 }));
        for bad in ["0", "0.0", "0.0001", "1e3", "", ".5", "-1", "10000000.001", "nan"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ssrc_is_decimal_or_hexadecimal() {
        assert_eq!(ssrc("0"), Ok(0));
        assert_eq!(ssrc("0x12345678"), Ok(0x1234_5678));
        assert_eq!(ssrc("4294967295"), Ok(u32::MAX));
        assert!(ssrc("4294967296").is_err());
        assert!(ssrc("0x").is_err());
    }
}
