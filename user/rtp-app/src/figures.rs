//! From one snapshot of the library to the structs of the JSON. Every command that shows figures of
//! a stream comes through here, so they all show the same.

use std::time::Instant;

use rtp_mgr::{EngineKind, SourceSnapshot, StreamSnapshot};
use rtp_mgr_ring::abi::{LegFigures, ReaderStatus, SOURCE_NONE, StreamCounters};

use crate::output::{
    Engine, Interval, Leg, NotRtp, Report, Ring, Skew, Stream, TxStream, q4_ns_to_ms,
};

impl From<EngineKind> for Engine {
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::User => Self::User,
            EngineKind::Kernel => Self::Kernel,
        }
    }
}

/// The report of a receive stream. `legs` are their addresses as given; `own` is what the engine
/// says about this process's reader.
pub fn receive_report(
    snapshot: &StreamSnapshot,
    legs: &[String],
    own: &ReaderStatus,
    last: bool,
) -> Report {
    let counters = &snapshot.counters;
    let not_rtp = NotRtp {
        rtcp: counters.passed_rtcp,
        stun: counters.passed_stun,
        dtls: counters.passed_dtls,
        other: counters.passed_other,
    };
    let ring = ring(snapshot, own);
    let legs: Vec<Leg> = snapshot
        .legs
        .iter()
        .enumerate()
        .map(|(index, figures)| leg(index, figures, legs.get(index)))
        .collect();
    let streams = if snapshot.ordered || snapshot.sources.len() < 2 {
        vec![whole(snapshot, legs, ring)]
    } else {
        let one = |source| source_stream(snapshot, source, &legs, &ring);
        snapshot.sources.iter().map(one).collect()
    };
    Report::now(snapshot.engine.into(), last, streams, not_rtp)
}

/// The sources that a stream delivers: those its legs follow, or in arrival order all of them.
pub fn followed(snapshot: &StreamSnapshot) -> Vec<&SourceSnapshot> {
    if !snapshot.ordered {
        return snapshot.sources.iter().collect();
    }
    let indices = snapshot.legs.iter().map(|leg| leg.source);
    indices
        .filter(|index| *index != u64::from(SOURCE_NONE))
        .filter_map(|index| snapshot.source(u16::try_from(index).ok()?))
        .collect()
}

/// A ring that carries one source, or follows one.
fn whole(snapshot: &StreamSnapshot, legs: Vec<Leg>, ring: Ring) -> Stream {
    let counters = &snapshot.counters;
    let followed = followed(snapshot);
    let mut stream = Stream {
        id: snapshot.id.to_string(),
        received: counters.received,
        packets: counters.unique,
        bytes: counters.bytes,
        expected: counters.expected,
        lost: counters.lost,
        duplicate: counters.duplicate,
        late: counters.late,
        reordered: counters.reordered,
        recovered: counters.recovered,
        restarts: counters.restarts,
        dropped_ring_full: Some(counters.dropped_ring_full),
        dropped_oversize: Some(counters.dropped_oversize),
        dropped_invalid: counters.dropped_invalid,
        dropped_filtered: counters.dropped_filtered,
        external_drops: Some(counters.external_drops),
        legs,
        ring: Some(ring),
        ..Stream::default()
    };
    let first_ns = followed.iter().map(|source| source.figures.first_ns).min();
    let latest = followed.iter().max_by_key(|source| source.figures.last_ns);
    if let (Some(first), Some(first_ns), Some(latest)) = (followed.first(), first_ns, latest) {
        describe(&mut stream, first);
        stream.last_sequence = Some(latest.figures.highest_sequence as u16);
        stream.duration_s = seconds(latest.figures.last_ns.saturating_sub(first_ns));
    }
    stream
}

/// One source of several that share a ring in arrival order.
fn source_stream(
    snapshot: &StreamSnapshot,
    source: &SourceSnapshot,
    legs: &[Leg],
    ring: &Ring,
) -> Stream {
    let figures = &source.figures;
    let mut stream = Stream {
        id: format!("{}.{}", snapshot.id, source.index),
        received: figures.received,
        packets: figures.unique,
        bytes: figures.bytes,
        expected: figures.expected,
        lost: figures.lost,
        duplicate: figures.duplicate,
        reordered: figures.reordered,
        restarts: figures.restarts,
        legs: legs.to_vec(),
        ring: Some(ring.clone()),
        ..Stream::default()
    };
    describe(&mut stream, source);
    stream.last_sequence = Some(figures.highest_sequence as u16);
    stream.duration_s = seconds(figures.last_ns.saturating_sub(figures.first_ns));
    stream
}

/// Who sends, and what only a source has: clock rate, jitter, first sequence number.
fn describe(stream: &mut Stream, source: &SourceSnapshot) {
    let figures = &source.figures;
    stream.ssrc = Some(source.ssrc);
    stream.payload_type = Some(source.payload_type);
    stream.source = source.from.map(|address| address.to_string());
    stream.destination = source.to.map(|address| address.to_string());
    stream.clock_rate = source.clock_rate;
    stream.first_sequence = Some(figures.first_sequence as u16);
    if source.clock_rate.is_some() && figures.jitter_count > 0 {
        let mean = figures.jitter_sum_q4_ns as f64 / figures.jitter_count as f64 / 16.0 / 1e6;
        stream.jitter_ms = Some(q4_ns_to_ms(figures.jitter_q4_ns));
        stream.jitter_mean_ms = Some(mean);
        stream.jitter_max_ms = Some(q4_ns_to_ms(figures.jitter_max_q4_ns));
    }
}

fn leg(index: usize, figures: &LegFigures, address: Option<&String>) -> Leg {
    let skew = (figures.skew_count > 0).then(|| Skew {
        latest: skew_ms(figures.skew_last_ns),
        min: skew_ms(figures.skew_min_ns),
        mean: skew_ms(figures.skew_sum_ns) / figures.skew_count as f64,
        max: skew_ms(figures.skew_max_ns),
    });
    Leg {
        leg: index as u8 + 1,
        address: address.cloned().unwrap_or_default(),
        received: figures.received,
        first: figures.first,
        duplicate: figures.duplicate,
        late: figures.late,
        recovered: figures.recovered,
        expected: figures.expected,
        lost: figures.lost,
        reordered: figures.reordered,
        bytes: figures.bytes,
        jitter_ms: (figures.jitter_q4_ns > 0).then(|| q4_ns_to_ms(figures.jitter_q4_ns)),
        skew_ms: skew,
        external_drops: figures.external_drops,
        socket_buffer: figures.socket_buffer,
    }
}

/// Milliseconds of a skew in nanoseconds, a two's complement number in the shared memory.
fn skew_ms(ns: u64) -> f64 {
    ns as i64 as f64 / 1e6
}

/// The ring as a whole.
pub fn ring(snapshot: &StreamSnapshot, own: &ReaderStatus) -> Ring {
    let counters = &snapshot.counters;
    Ring {
        slot_count: snapshot.slot_count,
        slot_stride: snapshot.slot_stride,
        received: counters.received,
        published: counters.published,
        dropped_ring_full: counters.dropped_ring_full,
        dropped_oversize: counters.dropped_oversize,
        dropped_invalid: counters.dropped_invalid,
        dropped_filtered: counters.dropped_filtered,
        duplicate: counters.duplicate,
        late: counters.late,
        staged: counters.staged,
        unique: counters.unique,
        expected: counters.expected,
        lost: counters.lost,
        external_drops: counters.external_drops,
        epochs: counters.epochs,
        gap_positions: counters.gap_positions,
        high_watermark: counters.high_watermark,
        sources: counters.sources,
        sources_untracked: counters.sources_untracked,
        readers: counters.readers,
        readers_demoted: counters.readers_demoted,
        lapped: own.lapped,
        coalesced: counters.coalesced,
        socket_calls: counters.socket_calls,
        wakeups: counters.wakeups,
    }
}

/// A transmit stream. What the counters do not know is left as it is in `known`.
pub fn transmit_stream(snapshot: &StreamSnapshot, known: TxStream) -> TxStream {
    let counters = &snapshot.counters;
    TxStream {
        committed: counters.committed,
        sent: counters.sent,
        sent_bytes: counters.sent_bytes,
        send_failed: counters.send_failed,
        pending: counters.pending,
        sent_late: counters.sent_late,
        coalesced: counters.coalesced,
        zerocopy: snapshot.legs.iter().map(|leg| leg.zerocopy).sum(),
        socket_calls: counters.socket_calls,
        ..known
    }
}

/// Differences between one report and the next.
#[derive(Debug)]
pub struct Intervals {
    at: Instant,
    counters: StreamCounters,
}

impl Intervals {
    /// From here on.
    pub fn new(counters: StreamCounters) -> Self {
        Self { at: Instant::now(), counters }
    }

    /// What changed since the call before.
    pub fn next(&mut self, counters: StreamCounters) -> Interval {
        let now = Instant::now();
        let duration_s = now.duration_since(self.at).as_secs_f64();
        let then = std::mem::replace(&mut self.counters, counters);
        self.at = now;
        let grown =
            |field: fn(&StreamCounters) -> u64| field(&self.counters).saturating_sub(field(&then));
        let (packets, bytes) = (grown(|c| c.unique), grown(|c| c.bytes));
        let per_second = |amount: f64| if duration_s > 0.0 { amount / duration_s } else { 0.0 };
        Interval {
            duration_s,
            received: grown(|c| c.received),
            packets,
            bytes,
            expected: grown(|c| c.expected),
            lost: self.counters.lost as i64 - then.lost as i64,
            duplicate: grown(|c| c.duplicate),
            late: grown(|c| c.late),
            reordered: grown(|c| c.reordered),
            recovered: grown(|c| c.recovered),
            dropped_ring_full: grown(|c| c.dropped_ring_full),
            external_drops: grown(|c| c.external_drops),
            packets_per_s: per_second(packets as f64),
            bits_per_s: per_second(bytes as f64 * 8.0),
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtp_mgr::{Direction, State, StreamId};
    use rtp_mgr_ring::abi::SourceFigures;

    fn snapshot(ordered: bool, sources: Vec<SourceSnapshot>) -> StreamSnapshot {
        StreamSnapshot {
            id: StreamId(1 << 32 | 2),
            engine: EngineKind::User,
            direction: Direction::Receive,
            state: State::Running,
            ordered,
            exact_times: false,
            simulated: false,
            slot_count: 1024,
            slot_stride: 2048,
            owner_pid: 1,
            owner_uid: 0,
            head: 0,
            counters: StreamCounters {
                received: 30,
                published: 25,
                unique: 27,
                duplicate: 3,
                late: 2,
                expected: 29,
                lost: 2,
                ..StreamCounters::default()
            },
            legs: vec![LegFigures { source: 1, ..LegFigures::default() }],
            sources,
            readers: Vec::new(),
            tai_offset_s: None,
            clock_steps: 0,
        }
    }

    fn source(index: u16, ssrc: u32) -> SourceSnapshot {
        SourceSnapshot {
            index,
            leg: 0,
            from: Some("192.0.2.1:5000".parse().unwrap()),
            to: Some("192.0.2.2:5004".parse().unwrap()),
            ssrc,
            payload_type: 33,
            clock_rate: Some(90_000),
            figures: SourceFigures {
                received: 10,
                unique: 9,
                first_sequence: 65_536 + 65_535,
                highest_sequence: 2 * 65_536 + 7,
                first_ns: 1_000_000_000,
                last_ns: 3_500_000_000,
                jitter_q4_ns: 16_000_000,
                jitter_max_q4_ns: 32_000_000,
                jitter_sum_q4_ns: 96_000_000,
                jitter_count: 8,
                ..SourceFigures::default()
            },
        }
    }

    #[test]
    fn a_leg_whose_copy_was_read_second_and_came_first_lies_ahead() {
        let figures = LegFigures {
            skew_count: 2,
            skew_last_ns: -1_000_000_i64 as u64,
            skew_min_ns: -1_000_000_i64 as u64,
            skew_max_ns: 500_000,
            skew_sum_ns: -500_000_i64 as u64,
            ..LegFigures::default()
        };
        let skew = leg(0, &figures, None).skew_ms.expect("there are samples");
        assert_eq!([skew.latest, skew.min, skew.mean, skew.max], [-1.0, -1.0, -0.25, 0.5]);
    }

    #[test]
    fn an_ordered_stream_is_one_entry_and_names_what_it_follows() {
        let snapshot = snapshot(true, vec![source(0, 7), source(1, 8)]);
        let report = receive_report(&snapshot, &["l".into()], &ReaderStatus::default(), false);
        assert_eq!(report.streams.len(), 1);
        let stream = &report.streams[0];
        assert_eq!((stream.ssrc, stream.received, stream.packets), (Some(8), 30, 27));
        assert_eq!((stream.first_sequence, stream.last_sequence), (Some(65_535), Some(7)));
        assert_eq!((stream.jitter_ms, stream.jitter_max_ms), (Some(1.0), Some(2.0)));
        assert_eq!((stream.jitter_mean_ms, stream.duration_s), (Some(0.75), 2.5));
        assert_eq!(stream.source.as_deref(), Some("192.0.2.1:5000"));
    }

    #[test]
    fn sources_that_share_a_ring_are_an_entry_each_with_the_books_of_the_ring() {
        let snapshot = snapshot(false, vec![source(0, 7), source(1, 8)]);
        let report = receive_report(&snapshot, &["l".into()], &ReaderStatus::default(), false);
        let ssrcs: Vec<_> = report.streams.iter().map(|stream| stream.ssrc).collect();
        assert_eq!(ssrcs, [Some(7), Some(8)]);
        let stream = &report.streams[1];
        assert_eq!((stream.received, stream.packets), (10, 9));
        assert_eq!(stream.dropped_ring_full, None);
        assert_eq!(stream.ring.as_ref().map(|ring| ring.received), Some(30));
    }

    #[test]
    fn nothing_heard_yet_is_an_entry_without_a_source() {
        let mut snapshot = snapshot(false, Vec::new());
        snapshot.counters = StreamCounters::default();
        let report = receive_report(&snapshot, &["l".into()], &ReaderStatus::default(), false);
        assert_eq!(report.streams.len(), 1);
        assert_eq!((report.streams[0].ssrc, report.streams[0].received), (None, 0));
    }

    #[test]
    fn no_clock_rate_means_no_jitter() {
        let mut unknown = source(0, 7);
        unknown.clock_rate = None;
        let snapshot = snapshot(false, vec![unknown]);
        let report = receive_report(&snapshot, &["l".into()], &ReaderStatus::default(), false);
        assert_eq!(report.streams[0].jitter_ms, None);
    }

    #[test]
    fn an_interval_is_the_difference() {
        let before = StreamCounters { lost: 5, unique: 10, ..Default::default() };
        let mut intervals = Intervals::new(before);
        let after = StreamCounters { lost: 3, unique: 25, bytes: 100, ..Default::default() };
        let interval = intervals.next(after);
        assert_eq!((interval.lost, interval.packets, interval.bytes), (-2, 15, 100));
        assert_eq!(intervals.next(after).packets, 0);
    }
}
