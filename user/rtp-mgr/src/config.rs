//! Settings of streams: what can be chosen, its range, and what is refused before anything is
//! opened.
//!
//! What lives here: plain values and their checks. What does not: the builders that collect them
//! ([`crate::receiver`], [`crate::transmitter`]) and whatever needs the machine to be judged.

use std::net::IpAddr;
use std::time::Duration;

use rtp_mgr_ring::abi::{
    ENGINE_KERNEL, LEGS_MAX, PACKET_LEN_MAX, RING_ORDER_DEFAULT, RING_ORDER_MAX, RING_ORDER_MIN,
    SLOT_STRIDE_DEFAULT, SLOT_STRIDE_MAX, SLOT_STRIDE_MIN, SOURCES_DEFAULT, SOURCES_MAX,
};
use rtp_mgr_ring::receive::Filter;

use crate::error::Error;
use crate::leg::Leg;

/// Who shall run the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The kernel module when it is loaded and usable, else the embedded engine.
    #[default]
    Auto,
    /// The kernel module; an error when it cannot be used.
    Kernel,
    /// The embedded engine.
    User,
}

/// Who runs a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// The embedded engine, in the process that owns the stream.
    User,
    /// The kernel module.
    Kernel,
}

impl EngineKind {
    /// As the ABI names it.
    pub(crate) fn of(engine: u32) -> Self {
        match engine {
            ENGINE_KERNEL => Self::Kernel,
            _ => Self::User,
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Kernel => "kernel",
        })
    }
}

/// What a reader may cost the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is overwritten before this reader has released it; what finds the ring full is
    /// dropped and counted.
    Reliable,
    /// The oldest is overwritten; this reader learns exactly how many it missed.
    Lossy,
}

/// Packets per second as a fraction, so that no rate drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRate {
    packets: u64,
    seconds: u64,
}

impl PacketRate {
    /// The fastest rate, packets per second.
    pub const MAX: u64 = 1_000_000_000;

    /// `packets` in `seconds`: from one packet in 1,000,000 seconds to 10^9 packets per second.
    ///
    /// # Errors
    /// Out of that range.
    pub fn new(packets: u64, seconds: u64) -> Result<Self, Error> {
        let fast = seconds.saturating_mul(Self::MAX);
        if packets == 0 || seconds == 0 || seconds > 1_000_000 || packets > fast {
            return Err(Error::argument(
                "rate",
                format_args!("{packets} packets in {seconds} s"),
                "accepted: 1 packet in 1,000,000 s to 1,000,000,000 packets/s",
            ));
        }
        Ok(Self { packets, seconds })
    }

    /// Packets...
    pub fn packets(self) -> u64 {
        self.packets
    }

    /// ...in so many seconds.
    pub fn seconds(self) -> u64 {
        self.seconds
    }

    /// Packets per second.
    pub fn per_second(self) -> f64 {
        self.packets as f64 / self.seconds as f64
    }
}

/// How the simulated source frames its bursts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// The bare pattern.
    #[default]
    Raw,
    /// The pattern as the payload of RTP packets.
    Rtp,
}

/// The simulated DMA engine: bursts of a self-checking pattern on a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Time between bursts, 100 us to 10 s.
    pub interval: Duration,
    /// Packets of a burst, 1 to 65,536.
    pub burst: u32,
    /// Bytes of a packet's pattern, at least 8, in a slot together with its framing.
    pub packet_len: u32,
    /// How it is framed.
    pub framing: Framing,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(50),
            burst: 64,
            packet_len: 1_024,
            framing: Framing::Raw,
        }
    }
}

/// A stream to receive.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveConfig {
    pub engine: Engine,
    pub legs: Vec<Leg>,
    pub simulated: Option<SimConfig>,
    pub reorder: Option<Duration>,
    pub ring_order: Option<u8>,
    pub slot_stride: u32,
    pub sources: u32,
    pub ssrc: Option<u32>,
    pub payload_type: Option<u8>,
    pub leave_others: bool,
    pub source_address: Option<IpAddr>,
    pub clock_rates: Vec<(u8, u32)>,
    pub exact_times: bool,
    pub gro: bool,
    pub expected: Option<(f64, usize)>,
    pub socket_buffer: Option<usize>,
    pub rtcp: bool,
    pub publish: Option<String>,
    pub announce: bool,
    pub allow_reliable: bool,
    pub max_latency: Duration,
    pub busy_poll: Duration,
    pub wake_threshold: u32,
    pub stall_limit: Duration,
    pub start: u64,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            legs: Vec::new(),
            simulated: None,
            reorder: None,
            ring_order: None,
            slot_stride: SLOT_STRIDE_DEFAULT,
            sources: SOURCES_DEFAULT,
            ssrc: None,
            payload_type: None,
            leave_others: false,
            source_address: None,
            clock_rates: Vec::new(),
            exact_times: false,
            gro: true,
            expected: None,
            socket_buffer: None,
            rtcp: true,
            publish: None,
            announce: true,
            allow_reliable: false,
            max_latency: Duration::from_millis(10),
            busy_poll: Duration::ZERO,
            wake_threshold: 1,
            stall_limit: Duration::from_secs(2),
            start: 0,
        }
    }
}

/// Longest time that a reader may look out for one packet.
const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

/// Longest time that gaps may stay open.
const REORDER_MAX: Duration = Duration::from_secs(60);

impl ReceiveConfig {
    /// Which packets are the stream's, but for the legs' sources.
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            ssrc: self.ssrc,
            payload_type: self.payload_type,
            sources: [None; LEGS_MAX],
            leave_others: self.leave_others,
        }
    }

    /// Checks everything that needs no look at the machine. Returns the ring order to use.
    pub(crate) fn check(&self) -> Result<u8, Error> {
        if self.simulated.is_some() {
            if let Some(leg) = self.legs.first() {
                return Err(Error::argument("leg", leg, "a simulated stream has no legs"));
            }
        } else {
            check_leg_count(&self.legs)?;
        }
        if let Some(leg) = self.legs.get(1)
            && self.reorder.is_none()
        {
            return Err(Error::argument("leg", leg, "a second leg needs `ordered`"));
        }
        if let Some((rate, packet_len)) = self.expected {
            check_expected(rate, packet_len)?;
        }
        let ring_order = self.ring_order()?;
        check_slot_stride(self.slot_stride)?;
        check_range("sources", self.sources, self.legs.len().max(1) as u32, SOURCES_MAX)?;
        check_range("wake_threshold", self.wake_threshold, 1, 1 << ring_order)?;
        for (payload_type, hz) in &self.clock_rates {
            check_payload_type(*payload_type)?;
            check_range("clock_rate", *hz, 1, 1_000_000_000)?;
        }
        if let Some(payload_type) = self.payload_type {
            check_payload_type(payload_type)?;
        }
        if self.leave_others && self.ssrc.is_none() && self.payload_type.is_none() {
            let accepted = "accepted: with an SSRC or a payload type, so that there are others";
            return Err(Error::argument("leave_others", true, accepted));
        }
        if self.leave_others && self.simulated.is_some() {
            let accepted = "accepted: for a stream with legs";
            return Err(Error::argument("leave_others", true, accepted));
        }
        if let Some(name) = &self.publish {
            check_name(name)?;
        }
        self.check_busy_poll()?;
        if let Some(sim) = &self.simulated {
            if sim.framing == Framing::Raw && self.reorder.is_some() {
                let accepted = "accepted: for a simulated stream framed as RTP";
                return Err(Error::argument("ordered", "with a raw simulated stream", accepted));
            }
            check_sim(sim, self.slot_stride)?;
        }
        Ok(ring_order)
    }

    fn check_busy_poll(&self) -> Result<(), Error> {
        let asked = self.busy_poll;
        let accepted = if asked > BUSY_POLL_MAX {
            "accepted: 0 to 10 ms"
        } else if !asked.is_zero() && self.engine == Engine::Kernel {
            "accepted: with the embedded engine, whose reader takes packets from the socket itself"
        } else if !asked.is_zero() && self.simulated.is_some() {
            "accepted: for a stream with legs"
        } else {
            return Ok(());
        };
        Err(Error::argument("busy_poll", format_args!("{asked:?}"), accepted))
    }

    /// The ring order asked for, or one that is large enough.
    fn ring_order(&self) -> Result<u8, Error> {
        if let Some(order) = self.ring_order {
            check_ring_order(order)?;
        }
        let asked = self.ring_order.unwrap_or(RING_ORDER_DEFAULT);
        let Some(reorder) = self.reorder else { return Ok(asked) };
        if reorder > REORDER_MAX {
            return Err(Error::argument(
                "ordered",
                format_args!("{reorder:?}"),
                "accepted: 0 to 60 s",
            ));
        }
        let Some((rate, _)) = self.expected else { return Ok(asked) };
        let needed = order_for(reorder, rate);
        if needed > RING_ORDER_MAX {
            let window = f64::from(1_u32 << (RING_ORDER_MAX - 1));
            return Err(Error::RingNeverLargeEnough {
                reorder_ms: reorder.as_millis(),
                packets_per_second: rate,
                largest: RING_ORDER_MAX,
                reorder_max_ms: (window / rate * 1e3) as u128,
            });
        }
        match self.ring_order {
            Some(ring_order) if ring_order < needed => Err(Error::RingTooSmall {
                ring_order,
                needed,
                reorder_ms: reorder.as_millis(),
                packets_per_second: rate,
            }),
            _ => Ok(asked.max(needed)),
        }
    }
}

/// How long a reader may stand still at the expected rate without losing anything.
const READER_HOLD: Duration = Duration::from_millis(600);
/// Memory that a ring is given for that at most; it takes what packets touch of it.
const READER_HOLD_BYTES: u64 = 512 << 20;

impl ReceiveConfig {
    /// The ring order of the embedded engine, of which `least` was asked for or needed: in arrival order
    /// at an expected rate, when nobody chose another, enough for a reader that stands still for a
    /// while. The ring of an ordered stream is its reorder window's double.
    pub(crate) fn hold_order(&self, least: u8) -> u8 {
        let (Some((rate, _)), None, None) = (self.expected, self.ring_order, self.reorder) else {
            return least;
        };
        let positions = (READER_HOLD.as_secs_f64() * rate).ceil().max(1.0);
        let wanted = positions.log2().ceil().min(RING_ORDER_MAX.into()) as u8;
        // Slots are half as many again as positions.
        let bytes = |order: u8| (1_u64 << order) * u64::from(self.slot_stride) * 3 / 2;
        let most =
            (RING_ORDER_MIN..=RING_ORDER_MAX).rfind(|order| bytes(*order) <= READER_HOLD_BYTES);
        wanted.min(most.unwrap_or(RING_ORDER_MIN)).max(least)
    }
}

/// The least ring order whose window (half of its positions) holds `reorder` at `rate` packets/s.
fn order_for(reorder: Duration, rate: f64) -> u8 {
    let window = (reorder.as_secs_f64() * rate).ceil().max(1.0);
    let order = (window * 2.0).log2().ceil();
    if order >= 255.0 { u8::MAX } else { (order as u8).max(RING_ORDER_MIN) }
}

/// A stream to send.
#[derive(Clone, Debug)]
pub(crate) struct TransmitConfig {
    pub engine: Engine,
    pub legs: Vec<Leg>,
    pub ring_order: u8,
    pub slot_stride: u32,
    pub rate: Option<PacketRate>,
    pub gso: bool,
    pub zerocopy: bool,
    pub ttl: Option<u8>,
    pub dscp: Option<u8>,
    pub interface: Option<String>,
    pub source_port: u16,
    pub socket_buffer: Option<usize>,
    pub ssrc: Option<u32>,
    pub payload_type: u8,
    pub first_sequence: Option<u16>,
    pub clock_rate: Option<u32>,
    pub cname: Option<String>,
    pub rtcp: bool,
    pub publish: Option<String>,
    pub announce: bool,
    pub start: u64,
}

impl Default for TransmitConfig {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            legs: Vec::new(),
            ring_order: RING_ORDER_DEFAULT,
            slot_stride: SLOT_STRIDE_DEFAULT,
            rate: None,
            gso: true,
            zerocopy: true,
            ttl: None,
            dscp: None,
            interface: None,
            source_port: 0,
            socket_buffer: None,
            ssrc: None,
            payload_type: 96,
            first_sequence: None,
            clock_rate: None,
            cname: None,
            rtcp: true,
            publish: None,
            announce: true,
            start: 0,
        }
    }
}

impl TransmitConfig {
    /// Checks everything that needs no look at the machine.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_leg_count(&self.legs)?;
        for leg in &self.legs {
            if leg.port() == 0 {
                return Err(Error::argument(
                    "leg",
                    leg,
                    "port 0 cannot be sent to; accepted: 1 to 65535",
                ));
            }
        }
        check_ring_order(self.ring_order)?;
        check_slot_stride(self.slot_stride)?;
        check_payload_type(self.payload_type)?;
        if let Some(hz) = self.clock_rate {
            check_range("clock_rate", hz, 1, 1_000_000_000)?;
        }
        if let Some(ttl) = self.ttl {
            check_range("ttl", u32::from(ttl), 1, 255)?;
        }
        if let Some(dscp) = self.dscp {
            check_range("dscp", u32::from(dscp), 0, 63)?;
        }
        if let Some(cname) = &self.cname
            && !(1..=255).contains(&cname.len())
        {
            return Err(Error::argument("cname", cname, "accepted: 1 to 255 bytes"));
        }
        if let Some(name) = &self.publish {
            check_name(name)?;
        }
        Ok(())
    }
}

/// Nanoseconds of a time; the most there are for one that is longer.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn check_range(argument: &'static str, value: u32, least: u32, most: u32) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Error::argument(argument, value, format!("accepted: {least} to {most}")))
    }
}

fn check_expected(rate: f64, packet_len: usize) -> Result<(), Error> {
    // No comparison holds for what is not a number.
    if rate > 0.0
        && rate <= PacketRate::MAX as f64
        && (1..=PACKET_LEN_MAX as usize).contains(&packet_len)
    {
        return Ok(());
    }
    Err(Error::argument(
        "expected_rate",
        format_args!("{rate} packets/s of {packet_len} bytes"),
        "accepted: more than 0, up to 1,000,000,000 packets/s of 1 to 65,535 bytes",
    ))
}

fn check_leg_count(legs: &[Leg]) -> Result<(), Error> {
    match legs.len() {
        0 => Err(Error::argument("leg", "(none)", "a stream needs one leg, or two for redundancy")),
        1..=LEGS_MAX => Ok(()),
        more => Err(Error::argument("leg", format_args!("({more} legs)"), "accepted: 1 or 2 legs")),
    }
}

fn check_ring_order(order: u8) -> Result<(), Error> {
    check_range("ring_order", order.into(), RING_ORDER_MIN.into(), RING_ORDER_MAX.into())
}

fn check_slot_stride(stride: u32) -> Result<(), Error> {
    check_range("slot_stride", stride, SLOT_STRIDE_MIN, SLOT_STRIDE_MAX)
}

fn check_payload_type(payload_type: u8) -> Result<(), Error> {
    if matches!(payload_type, 0..=63 | 96..=127) {
        Ok(())
    } else {
        // RFC 5761 section 4 leaves 64 to 95 to RTCP.
        Err(Error::argument("payload_type", payload_type, "accepted: 0 to 63, 96 to 127"))
    }
}

/// Checks the name of a published stream.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good) {
        Ok(())
    } else {
        Err(Error::argument(
            "publish",
            format_args!("{name:?}"),
            "accepted: 1 to 64 letters, digits, '-', '_' and '.' (not first)",
        ))
    }
}

fn check_sim(sim: &SimConfig, slot_stride: u32) -> Result<(), Error> {
    if !(Duration::from_micros(100)..=Duration::from_secs(10)).contains(&sim.interval) {
        let value = format_args!("interval {:?}", sim.interval).to_string();
        return Err(Error::argument("simulated", value, "accepted: 100 us to 10 s"));
    }
    check_range("simulated burst", sim.burst, 1, 65_536)?;
    let framing = match sim.framing {
        Framing::Raw => 0,
        Framing::Rtp => 12,
    };
    check_range(
        "simulated packet_len",
        sim.packet_len,
        8,
        slot_stride.min(PACKET_LEN_MAX) - framing,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive() -> ReceiveConfig {
        ReceiveConfig { legs: vec!["127.0.0.1:5004".parse().unwrap()], ..Default::default() }
    }

    #[test]
    fn a_ring_for_a_reorder_time_has_a_window_that_holds_it() {
        // Half of 2^n positions is the window.
        for (ms, rate, order) in [(20, 130_000.0, 13), (10, 51_200.0, 10), (10, 51_300.0, 11)] {
            assert_eq!(order_for(Duration::from_millis(ms), rate), order, "{ms} ms, {rate}/s");
        }
    }

    #[test]
    fn a_ring_too_small_is_grown_or_refused_with_the_order_it_takes() {
        let mut config = receive();
        config.reorder = Some(Duration::from_millis(20));
        config.expected = Some((130_000.0, 1_400));
        assert_eq!(config.check().unwrap(), 13);
        config.ring_order = Some(12);
        match config.check().unwrap_err() {
            Error::RingTooSmall { ring_order: 12, needed: 13, .. } => {}
            other => panic!("{other}"),
        }
        config.expected = Some((1e9, 1_400));
        assert!(matches!(config.check(), Err(Error::RingNeverLargeEnough { .. })));
    }

    #[test]
    fn a_ring_at_an_expected_rate_holds_what_comes_while_the_reader_stands_still() {
        let mut config = receive();
        assert_eq!(config.hold_order(10), 10, "nobody said a rate");
        // 120,000 packets in 600 ms: 2^17 positions of 2 KiB and half as many spare slots are 384 MiB.
        config.expected = Some((200_000.0, 172));
        assert_eq!(config.hold_order(10), 17);
        config.expected = Some((100.0, 172));
        assert_eq!(config.hold_order(10), 10, "never less than needed");
        // Memory ends it: 2^17 positions of 64 KiB would be 12 GiB.
        config.expected = Some((200_000.0, 172));
        config.slot_stride = 65_536;
        assert_eq!(config.hold_order(10), 12);
        config.slot_stride = 2_048;
        config.reorder = Some(Duration::from_millis(1));
        assert_eq!(config.hold_order(10), 10, "the window of an ordered stream stays as it is");
        config.reorder = None;
        config.ring_order = Some(8);
        assert_eq!(config.hold_order(8), 8, "somebody chose it");
    }

    #[test]
    fn two_legs_need_an_order_and_three_are_too_many() {
        let mut config = receive();
        config.legs.push("127.0.0.1:5006".parse().unwrap());
        assert!(config.check().unwrap_err().to_string().contains("`ordered`"));
        config.reorder = Some(Duration::from_millis(5));
        config.check().unwrap();
        let tables = ReceiveConfig { sources: 1, ..config.clone() };
        assert!(tables.check().unwrap_err().to_string().contains("2 to 65535"));
        config.legs.push("127.0.0.1:5008".parse().unwrap());
        assert!(config.check().unwrap_err().to_string().contains("1 or 2"));
    }

    #[test]
    fn every_mistake_names_the_argument_and_what_is_accepted() {
        let refused = |change: fn(&mut ReceiveConfig)| {
            let mut config = receive();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        for (text, argument, range) in [
            (refused(|c| c.ring_order = Some(3)), "ring_order 3", "4 to 20"),
            (refused(|c| c.ring_order = Some(21)), "ring_order 21", "4 to 20"),
            (refused(|c| c.slot_stride = 63), "slot_stride 63", "64 to 65536"),
            (refused(|c| c.sources = 0), "sources 0", "1 to 65535"),
            (refused(|c| c.payload_type = Some(72)), "payload_type 72", "0 to 63, 96 to 127"),
            (refused(|c| c.publish = Some("../x".into())), "publish \"../x\"", "1 to 64 letters"),
            (refused(|c| c.legs.clear()), "leg (none)", "one leg"),
        ] {
            assert!(text.contains(argument) && text.contains(range), "{text}");
        }
        assert!(PacketRate::new(0, 1).unwrap_err().to_string().contains("rate 0 packets"));
    }

    #[test]
    fn port_0_is_for_receiving_only() {
        let config = TransmitConfig {
            legs: vec!["127.0.0.1:0".parse().unwrap()],
            ..TransmitConfig::default()
        };
        assert!(config.check().unwrap_err().to_string().contains("1 to 65535"));
    }
}
