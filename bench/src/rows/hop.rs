//! The ring's protocol alone: packets from one thread to another, without sockets.
#![allow(unsafe_code)] // Here positions decide whose turn a slot is; both blocks say why it is.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rtp_mgr::ring::abi::{DESC_WORDS, Descriptor};
use rtp_mgr::ring::atomic::Word;
use rtp_mgr::ring::producer::{Mode, Producer, Readers};
use rtp_mgr::ring::reader::Cursor;
use rtp_mgr::ring::view::{ControlView, RingView};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};

use crate::Settings;
use crate::net::Side;
use crate::sys::SharedSlots;

const POSITIONS: usize = 1_024;
const PACKET: usize = 1_200;
const BATCHES: [usize; 3] = [1, 8, 64];
/// How long the first packet may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Who {
    Ours,
    Rtrb,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let batches = if settings.all_peers { &BATCHES[..] } else { &BATCHES[1..2] };
    for batch in batches.iter().copied() {
        let mut contest = Contest {
            row: format!("ring hop, 1200 B, batches of {batch}"),
            unit: "M packets/s",
            better: Better::Higher,
            target: "at least rtrb moving the same bytes".into(),
            goals: vec![Goal::Ratio("rtrb", Bound::AtLeast(1.0))],
            ..Contest::default()
        };
        let candidates = [(OURS, Who::Ours), ("rtrb", Who::Rtrb)];
        settings.interleave("ring hop", &candidates, &mut contest, |who, _| {
            let seconds = match who {
                Who::Ours => ours(settings.time / 2, batch, true)?,
                Who::Rtrb => rtrb(settings.time / 2, batch, [7_u8; PACKET], |packet| look(packet))?,
            };
            Ok(1e-6 / seconds)
        })?;
        rows.push(contest.finish());
    }
    for batch in batches.iter().copied() {
        let mut contest = Contest {
            row: format!("ring hop without payload, batches of {batch}"),
            unit: "ns/packet",
            better: Better::Lower,
            target: "under 15 ns".into(),
            goals: vec![Goal::Value(Bound::AtMost(15.0))],
            ..Contest::default()
        };
        // As much as a descriptor: what two processors take to hand anything over.
        let candidates = [(OURS, Who::Ours), ("rtrb, 64 B items", Who::Rtrb)];
        settings.interleave("ring hop", &candidates, &mut contest, |who, _| {
            let seconds = match who {
                Who::Ours => ours(settings.time / 2, batch, false)?,
                Who::Rtrb => rtrb(settings.time / 2, batch, [7_u64; DESC_WORDS], |words| words[0])?,
            };
            Ok(seconds * 1e9)
        })?;
        rows.push(contest.finish());
    }
    Ok(rows)
}

/// Waits for the other side: a moment busily, then by letting others run.
struct Patience(u32);

impl Patience {
    fn wait(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(1_000) { thread::yield_now() } else { spin_loop() }
    }
}

/// Looks at a packet as one who uses it does: every cache line.
fn look(packet: &[u8]) -> u8 {
    packet.iter().step_by(64).fold(0, |sum, byte| sum ^ byte)
}

/// Runs a producer here and `consumer` on the other processor. Both return packets; the result is
/// seconds per packet.
fn race(
    time: Duration,
    mut produce: impl FnMut() -> u64 + Send,
    mut consume: impl FnMut() -> u64 + Send,
) -> Result<f64> {
    let stop = AtomicBool::new(false);
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let consumer = scope.spawn(|| -> Result<u64> {
            Side::Receiver.pin()?;
            let (mut packets, mut patience) = (consume(), Patience(0));
            while packets == 0 && !stop.load(Ordering::Relaxed) {
                patience.wait();
                packets = consume();
            }
            begun.store(true, Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                match consume() {
                    0 => patience.wait(),
                    more => packets += more,
                }
            }
            Ok(packets)
        });
        let producer = scope.spawn(|| -> Result<()> {
            Side::Sender.pin()?;
            let mut patience = Patience(0);
            while !stop.load(Ordering::Relaxed) {
                if produce() == 0 {
                    patience.wait();
                }
            }
            Ok(())
        });
        // The machine may have other things to do before it runs both.
        let until = Instant::now() + PATIENCE;
        while !begun.load(Ordering::Acquire) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        producer.join().unwrap_or_else(|_| bail!("a thread has failed"))?;
        match consumer.join().unwrap_or_else(|_| bail!("a thread has failed"))? {
            0 => bail!("nothing went through"),
            packets => Ok(seconds / packets as f64),
        }
    })
}

/// A word where the shared memory has it: in a cache line of its own.
#[repr(align(64))]
struct Line(Word);

/// Descriptors where the shared memory has them: each in a cache line of its own.
#[repr(align(4096))]
struct Page([[Word; DESC_WORDS]; POSITIONS]);

impl Page {
    fn new() -> Self {
        Self([const { [const { Word::new(0) }; DESC_WORDS] }; POSITIONS])
    }
}

fn has_room(readers: &Readers, end: u64) -> bool {
    readers.limit(POSITIONS as u32).is_none_or(|limit| end <= limit)
}

fn ours(time: Duration, batch: usize, payload: bool) -> Result<f64> {
    let descriptors: Box<Page> = Box::new(Page::new());
    let [claim, head, tail, wake_at] = [const { Line(Word::new(0)) }; 4];
    let view = RingView { claim: &claim.0, head: &head.0, descriptors: &descriptors.0 };
    let control = ControlView { position: &tail.0, wake_at: &wake_at.0 };
    wake_at.0.store(i64::MAX as u64);
    let slots = SharedSlots::new(POSITIONS, PACKET);
    let packet = [7_u8; PACKET];
    let mut producer = Producer::new(0);
    let mut readers = Readers::new();
    readers.add(Mode::Reliable, false, 0, 0);
    let produce = || {
        let first = producer.head();
        let end = first.wrapping_add(batch as u64);
        // As the engines do: the reader's tail is looked at when there may be no room without.
        if !has_room(&readers, end) {
            readers.observe_tail(0, control.position.load_acquire(), first, 0);
            if !has_room(&readers, end) {
                return 0;
            }
        }
        producer.claim_up_to(&view, end.wrapping_sub(1));
        for position in first..end {
            let slot = position as usize % POSITIONS;
            if payload {
                // SAFETY: the reader has released this position's predecessor: `limit` said so.
                unsafe { slots.write(slot, &packet) };
            }
            let descriptor = Descriptor {
                sequence: position,
                slot: slot as u32,
                len: PACKET as u32,
                ..Descriptor::default()
            };
            producer.write(&view, position, &descriptor);
        }
        producer.publish(&view, end);
        black_box(readers.should_wake(0, control.wake_at.load(), end));
        batch as u64
    };
    let mut cursor = Cursor::new(0, POSITIONS as u32);
    let consume = || {
        let ready = cursor.ready(&view).min(batch as u64);
        for at in 0..ready {
            let descriptor = cursor.load(&view, cursor.next().wrapping_add(at));
            if payload {
                // SAFETY: published, and not yet released.
                black_box(look(unsafe { slots.read(descriptor.slot as usize) }));
            }
            black_box(descriptor.sequence);
        }
        // As the library's reader does: who has read nothing has nothing to release.
        if ready > 0 {
            cursor.advance(ready);
            cursor.release(&control);
        }
        ready
    };
    race(time, produce, consume)
}

fn rtrb<T: Copy + Send, R>(
    time: Duration,
    batch: usize,
    item: T,
    look: impl Fn(&T) -> R + Send,
) -> Result<f64> {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<T>::new(POSITIONS);
    let produce = move || {
        let Ok(chunk) = producer.write_chunk_uninit(batch) else { return 0 };
        chunk.fill_from_iter(std::iter::repeat_n(item, batch)) as u64
    };
    let consume = move || {
        let ready = consumer.slots().min(batch);
        let Ok(chunk) = consumer.read_chunk(ready) else { return 0 };
        let (first, second) = chunk.as_slices();
        for item in first.iter().chain(second) {
            black_box(look(item));
        }
        chunk.commit_all();
        ready as u64
    };
    race(time, produce, consume)
}
