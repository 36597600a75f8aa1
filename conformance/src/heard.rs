//! What a reader hears, as plain values that outlive their batch.

use std::time::{Duration, Instant};

use rtp_mgr::{Attached, Batch, Cause, Error, Item, Reader, Receiver};

use crate::wait::LONG;
use crate::wire;

/// Whatever packets can be read from.
pub(crate) trait Reads {
    fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error>;
    fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error>;
}

macro_rules! reads {
    ($($reader:ty)*) => {
        $(impl Reads for $reader {
            fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
                <$reader>::read(self, timeout)
            }

            fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
                <$reader>::try_read(self)
            }
        })*
    };
}
reads!(Receiver Reader Attached);

/// What stood in a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Packet(Packet),
    Gap { sequence: u64, count: u32 },
    Discontinuity { count: u64, cause: Cause },
}

/// A packet and what the ring says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub position: u64,
    pub sequence: u64,
    pub ssrc: u32,
    pub rtp_timestamp: u32,
    pub payload_type: u8,
    pub marker: bool,
    pub leg: u8,
    pub source: Option<u16>,
    pub recovered: bool,
    pub raw: bool,
    pub time_ns: u64,
    pub time_is_shared: bool,
    pub bytes: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn number(&self) -> u16 {
        self.sequence as u16
    }

    /// Whether the payload is what [`wire::payload`] makes for this packet.
    pub(crate) fn is_intact(&self) -> bool {
        self.payload == wire::payload(self.ssrc, self.number(), self.payload.len())
    }
}

impl From<rtp_mgr::Packet<'_>> for Packet {
    fn from(packet: rtp_mgr::Packet<'_>) -> Self {
        Self {
            position: packet.position(),
            sequence: packet.sequence(),
            ssrc: packet.ssrc(),
            rtp_timestamp: packet.rtp_timestamp(),
            payload_type: packet.payload_type(),
            marker: packet.marker(),
            leg: packet.leg(),
            source: packet.source(),
            recovered: packet.recovered(),
            raw: packet.raw(),
            time_ns: packet.time_ns(),
            time_is_shared: packet.time_is_shared(),
            bytes: packet.bytes().to_vec(),
            payload: packet.payload().to_vec(),
        }
    }
}

impl From<Item<'_>> for Heard {
    fn from(item: Item<'_>) -> Self {
        match item {
            Item::Packet(packet) => Self::Packet(packet.into()),
            Item::Gap(gap) => Self::Gap { sequence: gap.sequence(), count: gap.count() },
            Item::Discontinuity(discontinuity) => {
                Self::Discontinuity { count: discontinuity.count(), cause: discontinuity.cause() }
            }
        }
    }
}

/// The next `packets` packets and what lies between them.
#[track_caller]
pub(crate) fn hear(reader: &mut impl Reads, packets: usize) -> Vec<Heard> {
    hear_until(reader, &format!("{packets} packets"), |heard| count(heard) >= packets)
}

/// What is heard until `done`.
#[track_caller]
pub(crate) fn hear_until(
    reader: &mut impl Reads,
    what: &str,
    mut done: impl FnMut(&[Heard]) -> bool,
) -> Vec<Heard> {
    let deadline = Instant::now() + LONG;
    let mut heard = Vec::new();
    while !done(&heard) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{what} not within {LONG:?}: {}", outline_text(&heard));
        match reader.read(left) {
            Ok(Some(batch)) => heard.extend(batch.iter().map(Heard::from)),
            Ok(None) => panic!("{what}: the stream ended after {}", outline_text(&heard)),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    heard
}

/// What can be heard without waiting.
#[track_caller]
pub(crate) fn hear_present(reader: &mut impl Reads) -> Vec<Heard> {
    let mut heard = Vec::new();
    loop {
        match reader.try_read() {
            Ok(Some(batch)) if batch.is_empty() => return heard,
            Ok(Some(batch)) => heard.extend(batch.iter().map(Heard::from)),
            Ok(None) => return heard,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What is heard until the stream ends.
#[track_caller]
pub(crate) fn hear_rest(reader: &mut impl Reads) -> Vec<Heard> {
    let deadline = Instant::now() + LONG;
    let mut heard = Vec::new();
    while Instant::now() < deadline {
        match reader.read(LONG) {
            Ok(Some(batch)) => heard.extend(batch.iter().map(Heard::from)),
            Ok(None) => return heard,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the stream did not end within {LONG:?}");
}

pub(crate) fn packets(heard: &[Heard]) -> impl Iterator<Item = &Packet> {
    heard.iter().filter_map(|heard| match heard {
        Heard::Packet(packet) => Some(packet),
        _ => None,
    })
}

/// Number of packets.
pub(crate) fn count(heard: &[Heard]) -> usize {
    packets(heard).count()
}

/// The short form that tests compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A packet with this sequence number.
    P(u16),
    /// A missing packet with this sequence number.
    Gap(u16),
    /// A discontinuity.
    Break(u64, Cause),
}

/// What was heard, in short; gaps one by one. Every packet's payload is checked.
#[track_caller]
pub(crate) fn outline(heard: &[Heard]) -> Vec<Mark> {
    let mut marks = Vec::with_capacity(heard.len());
    for heard in heard {
        match heard {
            Heard::Packet(packet) => {
                assert!(packet.is_intact(), "payload of {} is another's", packet.number());
                marks.push(Mark::P(packet.number()));
            }
            Heard::Gap { sequence, count } => {
                let missing = (0..u64::from(*count)).map(|step| sequence.wrapping_add(step));
                marks.extend(missing.map(|sequence| Mark::Gap(sequence as u16)));
            }
            Heard::Discontinuity { count, cause } => marks.push(Mark::Break(*count, *cause)),
        }
    }
    marks
}

/// A summary for messages: runs of packets instead of each.
pub(crate) fn outline_text(heard: &[Heard]) -> String {
    let mut text = String::new();
    let mut run: Option<(u16, u16)> = None;
    let flush = |run: &mut Option<(u16, u16)>, text: &mut String| {
        if let Some((first, last)) = run.take() {
            text.push_str(&format!("{first}..={last} "));
        }
    };
    for heard in heard {
        match (heard, &mut run) {
            (Heard::Packet(packet), Some((_, last))) if packet.number() == last.wrapping_add(1) => {
                *last = packet.number();
            }
            (Heard::Packet(packet), _) => {
                flush(&mut run, &mut text);
                run = Some((packet.number(), packet.number()));
            }
            (other, _) => {
                flush(&mut run, &mut text);
                text.push_str(&format!("{other:?} "));
            }
        }
    }
    flush(&mut run, &mut text);
    if text.is_empty() { "nothing".to_owned() } else { text }
}

/// Asserts that exactly `marks` were heard.
#[track_caller]
pub(crate) fn assert_heard(heard: &[Heard], marks: impl IntoIterator<Item = Mark>) {
    let expected: Vec<Mark> = marks.into_iter().collect();
    let outline = outline(heard);
    if outline != expected {
        let at = outline.iter().zip(&expected).take_while(|(left, right)| left == right).count();
        let near = |marks: &[Mark]| {
            let from = at.saturating_sub(3).min(marks.len());
            format!("{:?}", &marks[from..(at + 5).min(marks.len())])
        };
        panic!(
            "heard {} instead of {}; from mark {at} on (three before it shown): {} instead of {}",
            outline.len(),
            expected.len(),
            near(&outline),
            near(&expected),
        );
    }
}

/// Packets with these sequence numbers.
pub(crate) fn all(sequences: impl IntoIterator<Item = u16>) -> impl Iterator<Item = Mark> {
    sequences.into_iter().map(Mark::P)
}

/// `count` sequence numbers from `first` on, wrapping.
pub(crate) fn run(first: u16, count: usize) -> impl Iterator<Item = u16> + Clone {
    (0..count).map(move |step| first.wrapping_add(step as u16))
}
