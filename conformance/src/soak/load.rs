//! A transmit stream into a receive stream, as fast as the machine sustains.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rtp_mgr::{Leg, Receiver, Stats, StreamSnapshot, Transmitter};

use super::tally::{PAYLOAD_MAX, Tally, payload};
use crate::harness::{Harness, loopback, ms, unique_name};
use crate::heard::Reads;
use crate::wait::LONG;
use crate::wire::HEADER;

/// How often the rate is thought over.
const WINDOW: Duration = Duration::from_millis(100);
/// Packets per second: where it begins, and its least.
const RATE_FIRST: f64 = 2_000.0;
const RATE_MIN: f64 = 500.0;
/// What is sent for so long without loss is sustained.
const SUSTAINED: Duration = Duration::from_secs(1);
/// Packets committed at a time.
const BATCH_MAX: f64 = 64.0;

/// A pair of streams.
pub(crate) struct Line {
    pub name: String,
    pub rx: Receiver,
    pub tx: Transmitter,
    payload_len: usize,
}

impl Line {
    /// In order of arrival over one leg with segmentation offload, or in sequence order over two legs, packet
    /// by packet.
    #[track_caller]
    pub(crate) fn open(h: &Harness, redundant: bool) -> Self {
        let name = unique_name(if redundant { "soak-ordered" } else { "soak-arrival" });
        let legs = if redundant { 2 } else { 1 };
        let mut builder = h
            .receiver()
            .publish(&name)
            .allow_reliable(true)
            .stall_limit(ms(100))
            .ring_order(12)
            .slot_stride(2_048);
        for _ in 0..legs {
            builder = builder.leg(loopback());
        }
        if redundant {
            builder = builder.ordered(ms(50));
        }
        let rx = builder.open().unwrap_or_else(|error| panic!("{error}"));
        let payload_len = if redundant { 300 } else { PAYLOAD_MAX };
        // A stride as long as the packets: they lie next to each other.
        let stride = (HEADER + payload_len) as u32;
        let mut builder = h.transmitter().gso(!redundant).slot_stride(stride).ring_order(11);
        for leg in 0..legs {
            let to = rx.local_addr(leg).expect("it has that leg");
            builder = builder.leg(Leg::new(to.ip(), to.port()));
        }
        let tx = builder.open().unwrap_or_else(|error| panic!("{error}"));
        Self { name, rx, tx, payload_len }
    }
}

/// What became of a transmit stream.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub last: StreamSnapshot,
    /// Packets per second: the mean, and the most that was sustained (0: there was loss in every second).
    pub mean: f64,
    pub sustained: f64,
}

/// The present rate, and what has been reached.
struct Pace {
    rate: f64,
    begun: Instant,
    sent: u64,
    lost: u64,
    /// Windows since the last one with loss: when they began, and what had been sent by then.
    clean: Vec<(Instant, u64)>,
    sustained: f64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        let clean = vec![(now, 0)];
        Self { rate: RATE_FIRST, begun: now, sent: 0, lost: 0, clean, sustained: 0.0 }
    }

    /// At the end of a window: less after a loss, more when all of it was sent, not much more than the path
    /// takes.
    fn think(&mut self, now: Instant, sent: u64, lost: u64) {
        let per_second = |(begun, before): (Instant, u64)| {
            (sent - before) as f64 / now.duration_since(begun).as_secs_f64()
        };
        if lost > self.lost {
            self.rate = (self.rate * 0.8).max(RATE_MIN);
            self.clean.clear();
        } else {
            let reached = per_second((self.begun, self.sent));
            // Fast until the limit was met for the first time.
            let more = if lost == 0 { 1.4 } else { 1.1 };
            self.rate = (self.rate * more).min(reached * 1.5).max(RATE_MIN);
            let long = |(begun, _): &&(Instant, u64)| now.duration_since(*begun) >= SUSTAINED;
            if let Some(from) = self.clean.iter().rev().find(long) {
                self.sustained = self.sustained.max(per_second(*from));
            }
        }
        self.clean.push((now, sent));
        (self.begun, self.sent, self.lost) = (now, sent, lost);
    }
}

/// Sends until it is over, as fast as nothing is lost, and looks a little further all the time.
#[track_caller]
pub(crate) fn transmit(mut tx: Transmitter, to: &Stats, len: usize, over: &AtomicBool) -> Sent {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    let stats = tx.stats();
    let (mut budget, mut refilled) = (0.0, start);
    while !over.load(Ordering::Acquire) {
        let now = Instant::now();
        if now.duration_since(pace.begun) >= WINDOW {
            let counters = to.counters();
            let lost = counters.dropped_ring_full + counters.external_drops;
            pace.think(now, stats.counters().sent, lost);
        }
        budget += pace.rate * now.duration_since(refilled).as_secs_f64();
        budget = budget.min(4.0 * BATCH_MAX);
        refilled = now;
        if budget < 1.0 {
            // Until the next packet is due.
            thread::sleep(Duration::from_secs_f64(1.0 / pace.rate).max(ms(1)));
            continue;
        }
        budget -= commit(&mut tx, budget.min(BATCH_MAX) as usize, len) as f64;
    }
    assert!(tx.flush(LONG).expect("the engine runs"), "{:?}", stats.counters());
    let last = tx.close(LONG).unwrap_or_else(|error| panic!("{error}"));
    let mean = last.counters.sent as f64 / start.elapsed().as_secs_f64();
    Sent { last, mean, sustained: pace.sustained }
}

/// Commits as many of `count` packets as there is room for.
#[track_caller]
fn commit(tx: &mut Transmitter, count: usize, len: usize) -> usize {
    let first = tx.next_sequence();
    let mut slots = tx.reserve(count, ms(20)).unwrap_or_else(|error| panic!("{error}"));
    let count = slots.len();
    for index in 0..count {
        let sequence = first.wrapping_add(index as u16);
        let mut slot = slots.get(index).expect("one of them");
        let timestamp = u32::from(sequence).wrapping_mul(90);
        slot.rtp(false, timestamp)[..len].copy_from_slice(payload(sequence, len));
        slot.set_payload_len(len).unwrap_or_else(|error| panic!("{error}"));
    }
    slots.commit(count).unwrap_or_else(|error| panic!("{error}"));
    count
}

/// Reads a stream as its owner, until it is told to stop it and there is nothing more.
#[track_caller]
pub(crate) fn own(mut rx: Receiver, stop: &AtomicBool) -> (Tally, StreamSnapshot) {
    let mut tally = Tally::default();
    loop {
        match Reads::read(&mut rx, ms(50)) {
            Ok(Some(batch)) => batch.iter().for_each(|item| tally.add(item)),
            Ok(None) => break,
            Err(error) => panic!("{error}"),
        }
        if stop.load(Ordering::Acquire) {
            rx.stop().unwrap_or_else(|error| panic!("{error}"));
        }
    }
    (tally, rx.stats().snapshot())
}

impl Line {
    /// Bytes of a payload.
    pub(crate) fn payload_len(&self) -> usize {
        self.payload_len
    }
}
