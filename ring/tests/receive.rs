//! Behaviour of a whole receive stream, against plain oracles: what is published, in which order,
//! what is counted.

#![cfg(not(loom))]

use std::collections::BTreeSet;

use proptest::prelude::*;
use rtp_mgr_ring::abi::{
    flag, Descriptor, LegFigures, SourceFigures, StreamCounters, DESC_WORDS, LEGS_MAX,
    SEQUENCE_WORDS,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::figures::FigureBlocks;
use rtp_mgr_ring::follow::{Held, SILENCE_NS};
use rtp_mgr_ring::header;
use rtp_mgr_ring::producer::{Mode, Readers};
use rtp_mgr_ring::receive::{Config, Filter, Memory, Packet, ReceiveCore, Storage, Verdict};
use rtp_mgr_ring::staging::{Entry, Order, EXPIRE_MAX};
use rtp_mgr_ring::table::{Flow, SourceEntry};
use rtp_mgr_ring::view::{Block, RingView};

const MS: u64 = 1_000_000;

#[derive(Debug)]
struct Heap;

impl Memory for Heap {
    type Entries = Box<[Entry]>;
    type Slots = Box<[u32]>;
    type Sources = Box<[SourceEntry]>;
    type Index = Box<[u16]>;
    type Held = Box<[Held]>;
}

fn boxed<T: Clone>(value: T, len: usize) -> Box<[T]> {
    vec![value; len].into()
}

/// What a reader sees at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    descriptor: Descriptor,
}

const SOURCES: usize = 64;

/// Where figures are published.
struct Blocks {
    counters: Vec<Word>,
    legs: Vec<Vec<Word>>,
    sources: Vec<Vec<Word>>,
}

impl Blocks {
    fn new() -> Self {
        let block =
            |len: usize| -> Vec<Word> { (0..SEQUENCE_WORDS + len).map(|_| Word::new(0)).collect() };
        Self {
            counters: block(StreamCounters::WORDS),
            legs: (0..LEGS_MAX).map(|_| block(LegFigures::WORDS)).collect(),
            sources: (0..SOURCES).map(|_| block(SourceFigures::WORDS)).collect(),
        }
    }
}

impl FigureBlocks for Blocks {
    fn counters(&self) -> Block<'_> {
        Block { words: &self.counters }
    }

    fn leg(&self, leg: usize) -> Block<'_> {
        Block { words: &self.legs[leg] }
    }

    fn source(&self, at: u16) -> Block<'_> {
        Block { words: &self.sources[usize::from(at)] }
    }
}

fn published<const WORDS: usize>(block: &Block<'_>) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    assert!(block.snapshot(&mut words, 1));
    words
}

/// A stream with its memory, a reader that reads everything at once, and the law checked throughout.
struct Rig {
    core: ReceiveCore<Heap>,
    claim: Word,
    head: Word,
    descriptors: Vec<[Word; DESC_WORDS]>,
    next: u64,
    now: u64,
    read: Vec<Seen>,
    slots: usize,
    reader: Option<usize>,
    blocks: Blocks,
    legs: u8,
}

#[derive(Clone, Copy)]
struct Setup {
    order: u32,
    reorder_ms: Option<u64>,
    legs: u8,
    start: u64,
    clock_rate: u32,
    filter: Filter,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            order: 6,
            reorder_ms: Some(20),
            legs: 1,
            start: 0,
            clock_rate: 90_000,
            filter: Filter::default(),
        }
    }
}

fn flow(leg: u8, host: u8) -> Flow {
    let mut source = [0; 16];
    source[..4].copy_from_slice(&[10, 0, leg, host]);
    Flow { family: 4, source, source_port: 4000, destination_port: 5004, ..Flow::default() }
}

#[derive(Clone, Copy)]
struct Sent {
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    leg: u8,
    host: u8,
}

impl Sent {
    fn new(sequence: u16) -> Self {
        Self {
            sequence,
            timestamp: u32::from(sequence).wrapping_mul(90),
            ssrc: 0x1234,
            leg: 0,
            host: 1,
        }
    }

    fn leg(self, leg: u8) -> Self {
        Self { leg, ..self }
    }

    fn ssrc(self, ssrc: u32) -> Self {
        Self { ssrc, ..self }
    }

    fn host(self, host: u8) -> Self {
        Self { host, ..self }
    }

    fn timestamp(self, timestamp: u32) -> Self {
        Self { timestamp, ..self }
    }
}

impl Rig {
    fn new(setup: Setup) -> Self {
        let positions = 1_usize << setup.order;
        let slots = positions + positions / 2 + 8;
        let mut clock_rates = [0; 128];
        clock_rates[33] = setup.clock_rate;
        let config = Config {
            start: setup.start,
            slot_stride: 2048,
            order: setup
                .reorder_ms
                .map(|ms| Order { reorder_ns: ms * MS, window: positions as u32 / 2 }),
            legs: setup.legs,
            filter: setup.filter,
            clock_rates,
            stall_ns: u64::MAX,
            secret: [1, 2],
        };
        let storage = Storage {
            entries: boxed(Entry::EMPTY, positions),
            slots: boxed(0, slots),
            sources: boxed(SourceEntry::FREE, SOURCES),
            index: boxed(0, 2 * SOURCES),
            held: boxed(Held::EMPTY, positions / 2),
        };
        Self {
            core: ReceiveCore::new(config, storage),
            claim: Word::new(setup.start),
            head: Word::new(setup.start),
            descriptors: (0..positions).map(|_| std::array::from_fn(|_| Word::new(0))).collect(),
            next: setup.start,
            now: 1_000 * MS,
            read: Vec::new(),
            slots,
            reader: None,
            blocks: Blocks::new(),
            legs: setup.legs,
        }
    }

    fn with_reliable_reader(mut self) -> Self {
        let start = self.next;
        self.reader = self.core.readers_mut().add(Mode::Reliable, false, start, self.now);
        self.core.refresh_limit();
        self
    }

    fn packet(&mut self, sent: Sent) -> Verdict {
        let mut bytes = [0; 32];
        header::build(&mut bytes, false, 33, sent.sequence, sent.timestamp, sent.ssrc).unwrap();
        let mut slot = [0];
        assert_eq!(self.core.take_slots(&mut slot), 1, "a slot is always free for the network");
        let packet = Packet {
            slot: slot[0],
            len: 32,
            truncated: false,
            coalesced: false,
            leg: sent.leg,
            arrival_ns: self.now,
            time_ns: self.now,
            flow: &flow(sent.leg, sent.host),
        };
        let view =
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
        let verdict = self.core.packet(&view, &packet, &bytes);
        if verdict != Verdict::Kept {
            self.core.give_back(slot[0]);
        }
        self.core.flush(&view, self.now);
        self.after();
        verdict
    }

    fn wait(&mut self, ns: u64) {
        self.now += ns;
        let view =
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
        self.core.expire(&view, self.now);
        self.core.flush(&view, self.now);
        self.after();
    }

    fn bye(&mut self, ssrc: u32) {
        self.bye_of(ssrc, self.now);
    }

    /// A BYE that came at `arrival_ns` and is told now.
    fn bye_of(&mut self, ssrc: u32, arrival_ns: u64) {
        let view =
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
        self.core.bye(&view, ssrc, arrival_ns, self.now);
        self.core.flush(&view, self.now);
        self.after();
    }

    fn finish(&mut self) {
        let view =
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
        self.core.finish(&view);
        self.core.flush(&view, self.now);
        self.after();
        assert_eq!(self.counters().staged, 0);
    }

    fn counters(&self) -> StreamCounters {
        self.core.counters(self.now)
    }

    /// Publishing what changed leaves everything published.
    fn assert_published(&mut self) {
        self.core.publish_figures(&self.blocks, self.now);
        let counters = StreamCounters::from_words(published(&self.blocks.counters()));
        assert_eq!(counters, self.counters());
        for leg in 0..usize::from(self.legs) {
            let figures = LegFigures::from_words(published(&self.blocks.leg(leg)));
            assert_eq!(figures, self.core.leg_figures(leg), "leg {leg}");
        }
        for at in 0..counters.sources as u16 {
            let figures = SourceFigures::from_words(published(&self.blocks.source(at)));
            assert_eq!(figures, self.core.source_figures(at), "source {at}");
        }
    }

    /// Reads what is new (the reader without limits) and checks the law, the slots and the figures.
    fn after(&mut self) {
        self.assert_published();
        match self.reader {
            None => self.drain(),
            Some(_) => self.assert_unread_is_kept(),
        }
        let counters = self.counters();
        assert_eq!(
            counters.received,
            counters.published
                + counters.dropped_ring_full
                + counters.dropped_oversize
                + counters.dropped_invalid
                + counters.dropped_filtered
                + counters.duplicate
                + counters.late
                + counters.staged,
            "the books: {counters:?}"
        );
    }

    fn drain(&mut self) {
        let view =
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors };
        let head = view.head.load_acquire();
        while self.next != head {
            let descriptor = view.load(self.next);
            self.read.push(Seen { descriptor });
            self.next = self.next.wrapping_add(1);
        }
        if let Some(reader) = self.reader {
            self.core.readers_mut().observe_tail(reader, self.next, head, self.now);
            self.core.refresh_limit();
        }
    }

    /// The 16-bit sequence numbers of the packets read, in order.
    fn packets(&self) -> Vec<u16> {
        let packets = self.read.iter().filter(|seen| !seen.descriptor.has(flag::LOST));
        packets.map(|seen| seen.descriptor.sequence as u16).collect()
    }

    /// Within an epoch every descriptor continues the one before, its count of missing included.
    fn assert_continuous(&self) {
        for pair in self.read.windows(2) {
            let (a, b) = (&pair[0].descriptor, &pair[1].descriptor);
            if b.has(flag::DISCONTINUITY) && b.count == 0 {
                continue;
            }
            let missing = if b.has(flag::DISCONTINUITY) { u64::from(b.count) } else { 0 };
            assert_eq!(b.sequence, a.sequence + 1 + missing, "{a:?} then {b:?}");
        }
    }

    fn free_slots(&mut self) -> usize {
        self.free().len()
    }

    fn free(&mut self) -> BTreeSet<u32> {
        let mut slots = vec![0; self.slots];
        let taken = self.core.take_slots(&mut slots);
        let different: BTreeSet<u32> = slots[..taken].iter().copied().collect();
        assert_eq!(different.len(), taken, "a slot was given out twice");
        for slot in slots[..taken].iter().rev() {
            self.core.give_back(*slot);
        }
        different
    }

    /// What the reader has not released is not given to the network.
    fn assert_unread_is_kept(&mut self) {
        let free = self.free();
        let head = self.head.load_acquire();
        let mask = self.descriptors.len() as u64 - 1;
        let mut position = self.next;
        while position != head {
            let words = &self.descriptors[(position & mask) as usize];
            let descriptor = Descriptor::from_words(std::array::from_fn(|at| words[at].load()));
            if !descriptor.has(flag::LOST) {
                assert!(!free.contains(&descriptor.slot), "position {position}: {descriptor:?}");
            }
            position = position.wrapping_add(1);
        }
    }
}

#[test]
fn in_order_packets_are_published_at_once_from_the_first_on() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 65_500..65_536_u32 + 100 {
        rig.packet(Sent::new(sequence as u16));
        rig.now += MS;
    }
    assert_eq!(rig.packets().len(), 136);
    assert_eq!(rig.counters().lost, 0);
    assert_eq!(rig.counters().epochs, 1);
    rig.assert_continuous();
}

#[test]
fn a_gap_is_published_as_lost_when_its_time_is_over_and_not_before() {
    let mut rig = Rig::new(Setup::default());
    rig.packet(Sent::new(10));
    rig.now += MS;
    rig.packet(Sent::new(13));
    assert_eq!(rig.packets(), [10]);
    assert_eq!(rig.core.next_deadline(), Some(rig.now + 20 * MS));
    rig.wait(20 * MS - 1);
    assert_eq!(rig.packets(), [10]);
    rig.wait(1);
    assert_eq!(rig.packets(), [10, 13]);
    let lost: Vec<_> = rig.read.iter().filter(|s| s.descriptor.has(flag::LOST)).collect();
    assert_eq!(lost.iter().map(|s| s.descriptor.sequence as u16).collect::<Vec<_>>(), [11, 12]);
    rig.packet(Sent::new(11));
    assert_eq!(rig.counters().late, 1);
    rig.packet(Sent::new(11));
    assert_eq!((rig.counters().late, rig.counters().duplicate), (1, 1));
    assert_eq!((rig.counters().expected, rig.counters().lost), (4, 1));
}

#[test]
fn a_gap_wider_than_the_window_becomes_an_epoch_with_its_count() {
    let mut rig = Rig::new(Setup::default());
    rig.packet(Sent::new(10));
    rig.now += 100 * MS;
    rig.packet(Sent::new(100));
    assert_eq!(rig.packets(), [10, 100]);
    let last = rig.read.last().unwrap().descriptor;
    assert!(last.has(flag::DISCONTINUITY) && !last.has(flag::LOST));
    assert_eq!(last.count, 89);
    rig.packet(Sent::new(10));
    assert_eq!(rig.counters().duplicate, 1, "the epoch before is remembered");
    rig.packet(Sent::new(50));
    assert_eq!(rig.counters().late, 1);
    assert_eq!(rig.counters().lost, 88, "one came late");
}

#[test]
fn outages_are_losses_when_timestamp_and_clock_advance_together_and_restarts_otherwise() {
    for outage in [100_u32, 2_999, 3_000, 4_000, 32_767, 32_768, 60_000, 65_000] {
        let mut rig = Rig::new(Setup { order: 8, ..Setup::default() });
        let mut sequence = 65_000_u16;
        let mut timestamp = 77_u32;
        let mut send = |rig: &mut Rig, skip: u32| {
            sequence = sequence.wrapping_add(skip as u16);
            timestamp = timestamp.wrapping_add(skip.wrapping_mul(90));
            rig.now += u64::from(skip) * MS;
            rig.packet(Sent::new(sequence).timestamp(timestamp));
        };
        (0..500).for_each(|_| send(&mut rig, 1));
        send(&mut rig, outage + 1);
        (0..500).for_each(|_| send(&mut rig, 1));
        rig.finish();
        assert_eq!(rig.packets().len(), 1_001, "outage of {outage}");
        assert_eq!(rig.counters().lost, u64::from(outage), "outage of {outage}");
        assert_eq!(rig.counters().restarts, 0, "outage of {outage}");
        rig.assert_continuous();

        let mut rig = Rig::new(Setup { order: 8, ..Setup::default() });
        for sequence in 0..500_u16 {
            rig.packet(Sent::new(sequence));
            rig.now += MS;
        }
        let restart = 500_u16.wrapping_add(outage as u16);
        for step in 0..500_u16 {
            let sent = Sent::new(restart.wrapping_add(step));
            rig.packet(sent.timestamp(0x8000_0000 + u32::from(step) * 90));
            rig.now += MS;
        }
        rig.finish();
        assert_eq!(rig.packets().len(), 1_000, "restart at +{outage}");
        // MAX_DROPOUT and MAX_MISORDER of RFC 3550 A.1, the latter widened to the window.
        let far = (3_000..65_536 - 128).contains(&(outage + 1));
        assert_eq!(rig.counters().restarts, u64::from(far), "restart at +{outage}");
    }
}

#[test]
fn a_restart_is_an_epoch_and_loses_nothing() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 30_000..30_050 {
        rig.packet(Sent::new(sequence));
        rig.now += MS;
    }
    for sequence in 28_000..28_050 {
        rig.packet(Sent::new(sequence).timestamp(5));
        rig.now += MS;
    }
    rig.finish();
    let expected: Vec<u16> = (30_000..30_050).chain(28_000..28_050).collect();
    assert_eq!(rig.packets(), expected);
    let counters = rig.counters();
    assert_eq!((counters.restarts, counters.epochs), (1, 2));
    assert_eq!((counters.expected, counters.lost, counters.unique), (100, 0, 100));
    assert!(rig.read[50].descriptor.has(flag::DISCONTINUITY));
}

#[test]
fn a_single_packet_far_out_of_sequence_is_counted_and_not_delivered() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 1_000..1_010 {
        rig.packet(Sent::new(sequence));
    }
    rig.packet(Sent::new(40_000).timestamp(1));
    assert_eq!(rig.counters().staged, 1, "held until the next packet tells");
    for sequence in 1_010..1_200 {
        rig.packet(Sent::new(sequence));
    }
    assert_eq!(rig.packets(), (1_000..1_200).collect::<Vec<u16>>());
    assert_eq!(rig.counters().staged, 0);
    assert_eq!((rig.counters().dropped_invalid, rig.counters().lost), (1, 0));
}

#[test]
fn a_restart_among_late_packets_of_the_old_run_loses_nothing() {
    let mut rig = Rig::new(Setup::default());
    for sequence in [1_000, 1_001, 1_002, 1_003] {
        rig.packet(Sent::new(sequence));
    }
    rig.packet(Sent::new(40_000).timestamp(9));
    rig.packet(Sent::new(1_004));
    rig.packet(Sent::new(40_001).timestamp(9));
    rig.packet(Sent::new(40_002).timestamp(9));
    rig.finish();
    assert_eq!(rig.packets(), [1_000, 1_001, 1_002, 1_003, 1_004, 40_000, 40_001, 40_002]);
    let counters = rig.counters();
    assert_eq!((counters.restarts, counters.lost, counters.dropped_invalid), (1, 0, 0));
}

#[test]
fn another_source_on_both_legs_takes_over_and_is_merged() {
    let mut rig = Rig::new(Setup { order: 8, legs: 2, ..Setup::default() });
    for sequence in 0..50 {
        rig.packet(Sent::new(sequence).ssrc(7));
        rig.packet(Sent::new(sequence).ssrc(7).leg(1));
        rig.wait(MS);
    }
    for sequence in 60_000..60_100 {
        // The new sender's legs lose every fifth and every seventh packet.
        if sequence % 5 != 0 {
            rig.packet(Sent::new(sequence).ssrc(8));
        }
        if sequence % 7 != 0 {
            rig.packet(Sent::new(sequence).ssrc(8).leg(1));
        }
        rig.wait(5 * MS);
    }
    rig.finish();
    let new: Vec<u16> =
        (60_000..60_100).filter(|sequence| sequence % 5 != 0 || sequence % 7 != 0).collect();
    let expected: Vec<u16> = (0..50).chain(new).collect();
    assert_eq!(rig.packets(), expected);
    assert_eq!(rig.counters().restarts, 0);
}

#[test]
fn another_source_is_filtered_while_the_first_lives_and_takes_over_with_all_it_sent_after() {
    for second in [0_u32, 0xffff_ffff] {
        let mut rig = Rig::new(Setup::default());
        for sequence in 0..20_u16 {
            rig.packet(Sent::new(sequence).ssrc(7));
            rig.now += MS;
            rig.packet(Sent::new(500 + sequence).ssrc(second));
        }
        assert_eq!(rig.counters().dropped_filtered, 19, "the last is held");
        // The first is silent from here; the other goes on every 20 ms.
        for sequence in 520..529_u16 {
            rig.wait(20 * MS);
            rig.packet(Sent::new(sequence).ssrc(second));
        }
        assert_eq!(rig.packets(), (0..20).collect::<Vec<u16>>());
        let due = rig.core.next_deadline().expect("the takeover is due without another packet");
        rig.wait(due - rig.now);
        let expected: Vec<u16> = (0..20).chain(519..529).collect();
        assert_eq!(rig.packets(), expected);
        assert!(rig.read[20].descriptor.has(flag::DISCONTINUITY));
        assert_eq!(rig.read[20].descriptor.ssrc, second);
        assert_eq!(rig.counters().restarts, 0);
        assert_eq!(rig.counters().epochs, 2);
    }
}

/// The timer of an engine may run late, after packets that came when it was due.
#[test]
fn who_takes_over_does_not_depend_on_when_the_engine_looks() {
    let [on_time, late] = [true, false].map(|on_time| {
        let mut rig = Rig::new(Setup { order: 4, ..Setup::default() });
        for sequence in 0..5 {
            rig.packet(Sent::new(sequence).ssrc(7));
        }
        // More than can be held for it.
        for sequence in 500..520 {
            rig.now += MS;
            rig.packet(Sent::new(sequence).ssrc(8));
        }
        let due = rig.core.next_deadline().expect("the takeover is due without another packet");
        if on_time {
            rig.wait(due - rig.now);
        }
        rig.now = due + MS;
        rig.packet(Sent::new(520).ssrc(8));
        rig.packet(Sent::new(5).ssrc(7));
        rig.finish();
        (rig.packets(), rig.counters().epochs, rig.counters().dropped_filtered)
    });
    assert_eq!(on_time.0, (0..5).chain(512..521).collect::<Vec<u16>>());
    assert_eq!(on_time, late);
}

#[test]
fn another_source_takes_over_at_once_after_bye() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 0..5 {
        rig.packet(Sent::new(sequence).ssrc(7));
    }
    rig.bye(7);
    rig.packet(Sent::new(9_000).ssrc(8));
    assert_eq!(rig.packets(), [0, 1, 2, 3, 4, 9_000]);
}

#[test]
fn the_same_ssrc_from_another_address_is_another_source() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 0..5 {
        rig.packet(Sent::new(sequence));
        rig.packet(Sent::new(sequence).host(2));
    }
    assert_eq!(rig.packets(), [0, 1, 2, 3, 4]);
    assert_eq!(rig.counters().dropped_filtered, 4);
    rig.finish();
    assert_eq!(rig.counters().dropped_filtered, 5);
}

#[test]
fn a_named_source_is_the_only_one_taken() {
    let filter = Filter { ssrc: Some(0), ..Filter::default() };
    let mut rig = Rig::new(Setup { filter, ..Setup::default() });
    rig.packet(Sent::new(1).ssrc(5));
    rig.packet(Sent::new(2).ssrc(0));
    assert_eq!(rig.packets(), [2]);
    assert_eq!(rig.counters().dropped_filtered, 1);
}

#[test]
fn what_is_left_to_others_is_passed_and_nowhere_in_the_books() {
    let filter = Filter { ssrc: Some(7), leave_others: true, ..Filter::default() };
    let mut rig = Rig::new(Setup { filter, ..Setup::default() });
    for sequence in 0..10 {
        rig.packet(Sent::new(sequence).ssrc(7));
        rig.packet(Sent::new(sequence).ssrc(8));
    }
    assert_eq!(rig.packets(), (0..10).collect::<Vec<u16>>());
    let counters = rig.counters();
    assert_eq!((counters.received, counters.passed_other, counters.dropped_filtered), (10, 10, 0));
}

#[test]
fn who_is_another_is_told_by_the_first_twelve_bytes() {
    let named = Filter { ssrc: Some(7), payload_type: Some(96), ..Filter::default() };
    let leaving = Filter { leave_others: true, ..named };
    let head =
        |payload_type: u8, ssrc: u8| [0x80, 0x80 | payload_type, 0, 1, 0, 0, 0, 0, 0, 0, 0, ssrc];
    assert!(!leaving.leaves(&head(96, 7)));
    assert!(leaving.leaves(&head(97, 7)) && leaving.leaves(&head(96, 8)));
    assert!(!named.leaves(&head(97, 8)), "dropped instead");
    assert!(!leaving.leaves(&head(97, 8)[..11]), "no RTP");
}

#[test]
fn a_full_ring_drops_the_newest_and_marks_where() {
    for reorder_ms in [None, Some(20)] {
        let mut rig =
            Rig::new(Setup { order: 4, reorder_ms, ..Setup::default() }).with_reliable_reader();
        for sequence in 0..30 {
            rig.packet(Sent::new(sequence));
        }
        assert_eq!(rig.counters().dropped_ring_full, 14);
        assert_eq!(rig.counters().high_watermark, 16);
        rig.drain();
        for sequence in 30..40 {
            rig.packet(Sent::new(sequence));
        }
        rig.drain();
        assert_eq!(rig.packets(), (0..16).chain(30..40).collect::<Vec<u16>>());
        let marked = rig.read[16].descriptor;
        assert!(marked.has(flag::DISCONTINUITY | flag::RING_FULL));
        assert_eq!(marked.count, 14);
        assert_eq!((rig.counters().unique, rig.counters().lost), (40, 0));
        rig.assert_continuous();
    }
}

#[test]
fn what_every_reader_has_released_is_written_again_first() {
    for reorder_ms in [None, Some(20)] {
        let mut rig =
            Rig::new(Setup { order: 6, reorder_ms, ..Setup::default() }).with_reliable_reader();
        for sequence in 0..40 {
            assert_eq!(rig.packet(Sent::new(sequence)), Verdict::Kept);
            rig.drain();
        }
        let slots: BTreeSet<u32> = rig.read.iter().map(|seen| seen.descriptor.slot).collect();
        assert_eq!(slots.len(), 1, "{slots:?}");
        assert_eq!(rig.free_slots(), rig.slots);
    }
}

#[test]
fn what_the_slowest_reader_has_not_released_is_kept_for_it() {
    let mut rig = Rig::new(Setup { order: 4, ..Setup::default() }).with_reliable_reader();
    let other = rig.core.readers_mut().add(Mode::Lossy, false, 0, rig.now).unwrap();
    rig.core.refresh_limit();
    for sequence in 0..3 {
        rig.packet(Sent::new(sequence));
        rig.drain();
    }
    assert_eq!(rig.free_slots(), rig.slots - 3);
    // A tail that is not true frees nothing.
    rig.core.observe_tail(other, 7, rig.now);
    rig.core.refresh_limit();
    assert_eq!(rig.free_slots(), rig.slots - 3);
    rig.core.observe_tail(other, 2, rig.now);
    rig.core.refresh_limit();
    assert_eq!(rig.free_slots(), rig.slots - 1);
}

#[test]
fn two_legs_ten_milliseconds_apart_at_130_000_packets_per_second_never_restart() {
    let mut rig = Rig::new(Setup { order: 12, legs: 2, ..Setup::default() });
    let step = 1_000_000_000 / 130_000;
    let lag = 1_300;
    let total = 70_000_u32;
    for tick in 0..total + lag {
        if tick < total {
            rig.packet(Sent::new(tick as u16).timestamp(tick));
        }
        if tick >= lag {
            let late = tick - lag;
            rig.packet(Sent::new(late as u16).timestamp(late).leg(1));
        }
        rig.wait(step);
    }
    rig.finish();
    let counters = rig.counters();
    assert_eq!((counters.published, counters.duplicate), (70_000, 70_000));
    assert_eq!((counters.restarts, counters.epochs, counters.lost), (0, 1, 0));
    assert_eq!(counters.recovered, 0);
    let skew = rig.core.leg_figures(1);
    assert_eq!(skew.skew_count, 70_000);
    assert_eq!(skew.skew_min_ns, u64::from(lag) * step);
    assert_eq!(skew.skew_max_ns, u64::from(lag) * step);
}

#[test]
fn legs_fail_over_in_both_directions_again_and_again() {
    for clock_rate in [0, 90_000] {
        let setup = Setup { order: 10, legs: 2, clock_rate, ..Setup::default() };
        let mut rig = Rig::new(setup);
        let mut sequence = 60_000_u16;
        for round in 0..12_u8 {
            let dead = round % 3;
            // Long enough to be a jump of more than MAX_DROPOUT when the leg comes back.
            for _ in 0..3_500 {
                for leg in (0..2).filter(|leg| *leg != dead) {
                    rig.packet(Sent::new(sequence).leg(leg));
                }
                sequence = sequence.wrapping_add(1);
                rig.wait(MS / 4);
            }
        }
        rig.finish();
        let counters = rig.counters();
        assert_eq!(counters.published, 12 * 3_500, "clock rate {clock_rate}: {counters:?}");
        assert_eq!((counters.lost, counters.restarts, counters.epochs), (0, 0, 1));
        rig.assert_continuous();
    }
}

#[test]
fn a_sender_that_restarts_on_both_legs_is_followed_when_the_slower_leg_has_restarted() {
    let mut rig = Rig::new(Setup { order: 8, legs: 2, ..Setup::default() });
    let sent: Vec<Sent> = (5_000..5_200_u16)
        .map(Sent::new)
        .chain((40_000..40_200).map(|s| Sent::new(s).timestamp(1_000 + u32::from(s))))
        .collect();
    let lag = 8;
    for tick in 0..sent.len() + lag {
        if let Some(sent) = sent.get(tick) {
            rig.packet(*sent);
        }
        if let Some(sent) = tick.checked_sub(lag).and_then(|late| sent.get(late)) {
            rig.packet(sent.leg(1));
        }
        rig.wait(MS);
    }
    rig.finish();
    let expected: Vec<u16> = (5_000..5_200).chain(40_000..40_200).collect();
    assert_eq!(rig.packets(), expected);
    let counters = rig.counters();
    assert_eq!((counters.restarts, counters.epochs, counters.duplicate), (1, 2, 400));
}

#[test]
fn a_leg_that_goes_astray_does_not_take_the_stream_with_it() {
    let mut rig = Rig::new(Setup { order: 8, legs: 2, ..Setup::default() });
    for step in 0..400_u16 {
        rig.packet(Sent::new(step));
        let astray = if step < 100 { step } else { 20_000 + step };
        rig.packet(Sent::new(astray).leg(1).timestamp(u32::from(astray) * 7));
        rig.wait(MS);
    }
    rig.finish();
    assert_eq!(rig.packets(), (0..400).collect::<Vec<u16>>());
    assert_eq!(rig.counters().restarts, 0);
}

#[test]
fn many_sources_share_a_ring_in_arrival_order_each_with_its_figures() {
    let mut rig = Rig::new(Setup { reorder_ms: None, ..Setup::default() });
    for sequence in 0..100_u16 {
        for ssrc in 0..50 {
            if sequence != 40 || ssrc != 3 {
                rig.packet(Sent::new(sequence.wrapping_sub(50)).ssrc(ssrc));
            }
        }
    }
    let counters = rig.counters();
    assert_eq!((counters.sources, counters.unique, counters.lost), (50, 4_999, 1));
    let mut sources: Vec<_> = (0..50).map(|at| rig.core.source_figures(at)).collect();
    sources.sort_by_key(|figures| figures.ssrc_clock_rate as u32);
    for (ssrc, figures) in sources.iter().enumerate() {
        assert_eq!(figures.ssrc_clock_rate as u32, ssrc as u32);
        assert_eq!(figures.received, if ssrc == 3 { 99 } else { 100 });
        assert_eq!(figures.expected, 100);
    }
    assert_eq!(rig.core.source_figures(50), SourceFigures::default());
}

#[test]
fn a_plain_packet_publishes_only_what_it_changes() {
    for reorder_ms in [None, Some(20)] {
        let mut rig = Rig::new(Setup { reorder_ms, ..Setup::default() });
        for sequence in 0..3 {
            rig.packet(Sent::new(sequence));
        }
        // Words that no plain packet changes: duplicates, losses, restarts.
        let untouched = |rig: &Rig| {
            let at = |names: &[&str], name: &str| {
                SEQUENCE_WORDS + names.iter().position(|other| *other == name).unwrap()
            };
            [
                &rig.blocks.counters[at(&StreamCounters::NAMES, "duplicate")],
                &rig.blocks.legs[0][at(&LegFigures::NAMES, "lost")],
                &rig.blocks.sources[0][at(&SourceFigures::NAMES, "restarts")],
            ]
            .map(|word| word.load())
        };
        let publish = |rig: &mut Rig, sequence: u16| {
            for block in [&rig.blocks.counters, &rig.blocks.legs[0], &rig.blocks.sources[0]] {
                block.iter().skip(SEQUENCE_WORDS).for_each(|word| word.store(77));
            }
            let (core, blocks) = (&mut rig.core, &rig.blocks);
            let mut bytes = [0; 32];
            header::build(&mut bytes, false, 33, sequence, u32::from(sequence) * 90, 0x1234);
            let mut slot = [0];
            core.take_slots(&mut slot);
            let packet = Packet {
                slot: slot[0],
                len: 32,
                truncated: false,
                coalesced: false,
                leg: 0,
                arrival_ns: rig.now,
                time_ns: rig.now,
                flow: &flow(0, 1),
            };
            let view =
                RingView { claim: &rig.claim, head: &rig.head, descriptors: &rig.descriptors };
            core.packet(&view, &packet, &bytes);
            core.tally();
            core.publish_figures(blocks, rig.now);
            core.flush(&view, rig.now);
        };
        publish(&mut rig, 3);
        assert_eq!(untouched(&rig), [77; 3], "the next packet");
        publish(&mut rig, 5);
        assert_eq!(untouched(&rig), [0, 1, 0], "one after a gap");
    }
}

#[test]
fn a_full_source_table_gives_way_only_to_idle_entries() {
    let mut rig = Rig::new(Setup { reorder_ms: None, ..Setup::default() });
    for ssrc in 0..65 {
        rig.packet(Sent::new(1).ssrc(ssrc));
    }
    assert_eq!((rig.counters().sources, rig.counters().sources_untracked), (64, 1));
    rig.now += 61_000 * MS;
    for ssrc in 1_000..1_030 {
        rig.packet(Sent::new(1).ssrc(ssrc));
        rig.packet(Sent::new(2).ssrc(ssrc));
    }
    assert_eq!((rig.counters().sources, rig.counters().sources_untracked), (64, 1));
    assert_eq!(rig.counters().duplicate, 0);
    assert_eq!(rig.counters().lost, 0);
}

/// What happens to a packet of the property tests on its way.
#[derive(Clone, Copy, Debug)]
struct Fate {
    lost: bool,
    copies: u8,
    delay: u8,
}

fn fates(len: usize) -> impl Strategy<Value = Vec<Fate>> {
    let fate = (prop::bool::weighted(0.1), 1..3_u8, prop_oneof![8 => Just(0), 1 => 1..10_u8])
        .prop_map(|(lost, copies, delay)| Fate { lost, copies, delay });
    prop::collection::vec(fate, len)
}

/// Ticks at which copies of packet `index` arrive.
fn arrivals(fates: &[Fate]) -> Vec<Vec<usize>> {
    let mut ticks = vec![Vec::new(); fates.len() + 16];
    for (index, fate) in fates.iter().enumerate().filter(|(_, fate)| !fate.lost) {
        for copy in 0..fate.copies {
            ticks[index + usize::from(fate.delay) + usize::from(copy)].push(index);
        }
    }
    ticks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Everything that arrives within the reorder time is published once, in order; what does not
    /// is a LOST position; positions may wrap.
    #[test]
    fn ordered_streams_agree_with_the_oracle(
        fates in fates(300),
        first in any::<u16>(),
        start in prop_oneof![Just(0), (u64::MAX - 200)..=u64::MAX],
    ) {
        let mut rig = Rig::new(Setup { start, ..Setup::default() });
        let mut arrived = Vec::new();
        for tick in arrivals(&fates) {
            for index in tick {
                rig.packet(Sent::new(first.wrapping_add(index as u16)));
                arrived.push(index);
            }
            rig.wait(MS);
        }
        rig.finish();
        prop_assume!(!arrived.is_empty());
        // The first one heard is where the stream begins; what is older comes too late for it.
        let begin = arrived[0];
        let distinct: BTreeSet<usize> = arrived.iter().copied().collect();
        let expected: Vec<u16> = distinct
            .range(begin..)
            .map(|index| first.wrapping_add(*index as u16))
            .collect();
        prop_assert_eq!(rig.packets(), expected);
        rig.assert_continuous();
        let highest = *distinct.last().unwrap();
        prop_assert_eq!(rig.read.len(), highest - begin + 1);
        let counters = rig.counters();
        prop_assert_eq!(counters.expected, (highest - begin + 1) as u64);
        prop_assert_eq!(counters.received, arrived.len() as u64);
        prop_assert_eq!(counters.restarts, 0);
        prop_assert_eq!(counters.epochs, 1);
        let free = rig.free_slots();
        prop_assert!(free >= rig.slots - (1 << 6), "slots leaked: {} of {}", free, rig.slots);
    }

    /// Nothing is lost while either leg has it, and `recovered` counts what one alone had.
    #[test]
    fn two_legs_agree_with_the_oracle(
        left in fates(300),
        right in fates(300),
        lag in 0..12_usize,
        first in any::<u16>(),
        start in prop_oneof![Just(0), (u64::MAX - 200)..=u64::MAX],
    ) {
        let mut rig = Rig::new(Setup { legs: 2, start, reorder_ms: Some(25), ..Setup::default() });
        let legs = [arrivals(&left), arrivals(&right)];
        let mut first_heard = None;
        for tick in 0..332_usize {
            for (leg, ticks) in legs.iter().enumerate() {
                let Some(at) = tick.checked_sub(leg * lag).and_then(|at| ticks.get(at)) else {
                    continue;
                };
                for index in at {
                    first_heard.get_or_insert(*index);
                    rig.packet(Sent::new(first.wrapping_add(*index as u16)).leg(leg as u8));
                }
            }
            rig.wait(MS);
        }
        // Both legs bring a last packet, so that both have passed all the others.
        for leg in 0..2 {
            rig.packet(Sent::new(first.wrapping_add(300)).leg(leg));
        }
        rig.finish();
        let begin = first_heard.unwrap_or(300);
        let has = |index: usize| {
            (index == 300 || !left[index].lost, index == 300 || !right[index].lost)
        };
        let either: Vec<u16> = (begin..=300)
            .filter(|index| has(*index).0 || has(*index).1)
            .map(|index| first.wrapping_add(index as u16))
            .collect();
        prop_assert_eq!(rig.packets(), either.clone());
        rig.assert_continuous();
        let counters = rig.counters();
        let alone = (begin..=300).filter(|index| has(*index).0 != has(*index).1).count();
        prop_assert_eq!(counters.recovered, alone as u64);
        prop_assert_eq!(counters.lost, (301 - begin - either.len()) as u64);
        prop_assert_eq!((counters.restarts, counters.epochs), (0, 1));
    }

    /// With a reader that stalls at will, the books balance (checked throughout), what is read is
    /// continuous with its marks, and nothing is read twice.
    #[test]
    fn a_stalling_reader_costs_what_is_counted_and_nothing_else(
        fates in fates(400),
        stalls in prop::collection::vec(0..60_usize, 40),
        ordered in any::<bool>(),
        start in prop_oneof![Just(0), (u64::MAX - 200)..=u64::MAX],
    ) {
        let reorder_ms = ordered.then_some(20);
        let setup = Setup { order: 4, reorder_ms, start, ..Setup::default() };
        let mut rig = Rig::new(setup).with_reliable_reader();
        let mut stall = stalls.into_iter().cycle();
        let mut left = stall.next().unwrap_or(0);
        for tick in arrivals(&fates) {
            for index in tick {
                rig.packet(Sent::new(index as u16));
            }
            rig.wait(MS);
            if left == 0 {
                rig.drain();
                left = stall.next().unwrap_or(0);
            } else {
                left -= 1;
            }
        }
        rig.finish();
        rig.drain();
        let packets = rig.packets();
        let distinct: BTreeSet<u16> = packets.iter().copied().collect();
        prop_assert_eq!(distinct.len(), packets.len());
        prop_assert_eq!(packets.len() as u64, rig.counters().published);
        if ordered {
            rig.assert_continuous();
        }
        prop_assert!(rig.counters().unique as usize <= fates.iter().filter(|f| !f.lost).count());
    }

    /// A lossy reader may write anything into its control page: the ring is written the same.
    #[test]
    fn a_hostile_reader_changes_nothing(
        fates in fates(200),
        tails in prop::collection::vec((any::<u64>(), any::<bool>()), 400),
        start in prop_oneof![Just(0), (u64::MAX - 200)..=u64::MAX],
    ) {
        let run = |hostile: bool| {
            let mut rig = Rig::new(Setup { start, order: 4, ..Setup::default() });
            let reader = rig.core.readers_mut().add(Mode::Lossy, true, start, rig.now);
            let mut tails = tails.iter();
            for tick in arrivals(&fates) {
                for index in tick {
                    rig.packet(Sent::new(index as u16));
                }
                if let (true, Some(reader), Some((wild, near))) = (hostile, reader, tails.next()) {
                    let head = rig.core.head();
                    let tail = if *near { head.wrapping_add(wild % 40).wrapping_sub(20) } else { *wild };
                    rig.core.readers_mut().observe_tail(reader, tail, head, rig.now);
                    rig.core.readers_mut().should_wake(reader, *wild, head);
                    rig.core.refresh_limit();
                }
                rig.wait(MS);
            }
            rig.finish();
            let counters = rig.counters();
            // Where a packet lies depends on what was released.
            let read = rig.read.into_iter().map(|seen| Descriptor { slot: 0, ..seen.descriptor });
            (read.collect::<Vec<_>>(), counters)
        };
        prop_assert_eq!(run(true), run(false));
    }

    /// A reliable reader is believed only forward and up to head: whatever it says, no position is
    /// written a ring or more after the last one that it truly released.
    #[test]
    fn a_hostile_reliable_reader_only_fills_the_ring(
        tails in prop::collection::vec((any::<u64>(), any::<bool>()), 100),
        start in prop_oneof![Just(0), (u64::MAX - 200)..=u64::MAX],
    ) {
        let mut rig =
            Rig::new(Setup { start, order: 4, ..Setup::default() }).with_reliable_reader();
        let mut accepted = start;
        for (sequence, (wild, near)) in (0_u16..).zip(tails) {
            let head = rig.core.head();
            let tail = if near { head.wrapping_add(wild % 40).wrapping_sub(20) } else { wild };
            rig.core.readers_mut().observe_tail(0, tail, head, rig.now);
            rig.core.refresh_limit();
            if tail.wrapping_sub(accepted) <= head.wrapping_sub(accepted) {
                accepted = tail;
                rig.next = tail;
            }
            rig.packet(Sent::new(sequence));
            prop_assert!(rig.claim.load().wrapping_sub(accepted) <= 16);
        }
    }

    /// Random packets on random legs of random sources: no panic, balanced books, no slot lost.
    #[test]
    fn anything_at_all_keeps_the_books(
        packets in prop::collection::vec(
            (any::<u16>(), 0..3_u32, 0..2_u8, 0..2_u8, any::<u32>(), 0..300_u64),
            1..400,
        ),
        near in any::<bool>(),
        start in any::<u64>(),
    ) {
        let mut rig = Rig::new(Setup { legs: 2, start, order: 5, ..Setup::default() });
        for (sequence, ssrc, leg, host, timestamp, wait) in packets {
            let sequence = if near { sequence % 40 } else { sequence };
            rig.packet(Sent { sequence, timestamp, ssrc, leg, host });
            rig.wait(wait * MS / 4);
            if sequence % 97 == 0 {
                rig.bye(ssrc);
            }
        }
        rig.finish();
        let free = rig.free_slots();
        prop_assert!(free >= rig.slots - (1 << 5));
    }
}

#[test]
fn silence_is_two_hundred_milliseconds() {
    assert_eq!(SILENCE_NS, 200 * MS);
}

#[test]
fn a_leg_that_was_away_for_more_than_a_cycle_is_merged_again() {
    for away in [65_000_u32, 65_540, 70_000, 140_000] {
        let mut rig = Rig::new(Setup { order: 8, legs: 2, ..Setup::default() });
        let total = 1_000 + away + 1_000;
        for tick in 0..total + 1_000 {
            let sent = Sent::new(tick as u16).timestamp(tick.wrapping_mul(90));
            // Leg 1 is away in the middle, leg 0 at the end.
            if tick < total {
                rig.packet(sent);
            }
            if !(1_000..1_000 + away).contains(&tick) {
                rig.packet(sent.leg(1));
            }
            rig.wait(MS);
        }
        rig.finish();
        let counters = rig.counters();
        assert_eq!(counters.published, u64::from(total + 1_000), "away for {away}: {counters:?}");
        assert_eq!((counters.late, counters.lost, counters.epochs), (0, 0, 1), "away for {away}");
    }
}

#[test]
fn a_competing_source_does_not_take_over_when_the_followed_one_restarts() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 0..20 {
        rig.packet(Sent::new(sequence).ssrc(7));
        rig.packet(Sent::new(500 + 2 * sequence).ssrc(8));
        rig.packet(Sent::new(501 + 2 * sequence).ssrc(8));
        rig.wait(MS);
    }
    for sequence in 0..20 {
        rig.packet(Sent::new(40_000 + sequence).ssrc(7).timestamp(5));
        rig.packet(Sent::new(540 + 2 * sequence).ssrc(8));
        rig.packet(Sent::new(541 + 2 * sequence).ssrc(8));
        rig.wait(MS);
    }
    rig.finish();
    assert!(rig.read.iter().all(|seen| seen.descriptor.ssrc == 7), "{:?}", rig.packets());
    assert_eq!(rig.counters().restarts, 1);
    assert!(rig.packets().len() >= 39, "{:?}", rig.packets());
}

#[test]
fn a_packet_that_found_the_ring_full_is_one_packet_whatever_leg_brings_it_again() {
    let mut rig = Rig::new(Setup { order: 4, legs: 2, ..Setup::default() }).with_reliable_reader();
    for sequence in 0..20 {
        rig.packet(Sent::new(sequence));
    }
    // Leg 0 lost number 20; leg 1 has it, and finds the ring full as well.
    rig.packet(Sent::new(21));
    rig.packet(Sent::new(20).leg(1));
    rig.drain();
    for sequence in 16..22 {
        rig.packet(Sent::new(sequence).leg(1));
    }
    rig.drain();
    let counters = rig.counters();
    assert_eq!((counters.expected, counters.unique, counters.lost), (22, 22, 0));
}

#[test]
fn what_was_held_of_a_leg_that_is_back_never_comes_out_later() {
    let mut rig = Rig::new(Setup { order: 9, legs: 2, ..Setup::default() });
    let restarted = |sequence: u16| Sent::new(sequence).timestamp(9_000_000);
    for sequence in 0..100 {
        rig.packet(Sent::new(sequence));
        rig.packet(Sent::new(sequence).leg(1));
        rig.wait(MS);
    }
    // Leg 1 stalls while the sender restarts, and brings what it had before that afterwards.
    for sequence in 40_000..40_300 {
        rig.packet(restarted(sequence));
        rig.wait(MS);
    }
    for sequence in 100..110 {
        rig.packet(Sent::new(sequence).leg(1));
    }
    for sequence in 40_300..40_400 {
        rig.packet(restarted(sequence));
        rig.packet(restarted(sequence).leg(1));
        rig.wait(MS);
    }
    // A pause: nothing replaces the source.
    rig.wait(500 * MS);
    for sequence in 40_400..40_500 {
        rig.packet(restarted(sequence));
        rig.packet(restarted(sequence).leg(1));
        rig.wait(MS);
    }
    rig.finish();
    let expected: Vec<u16> = (0..100).chain(40_000..40_500).collect();
    assert_eq!(rig.packets(), expected);
    assert_eq!((rig.counters().restarts, rig.counters().epochs), (1, 2));
}

#[test]
fn a_source_that_goes_on_after_its_bye_is_not_replaced_at_once() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 0..5 {
        rig.packet(Sent::new(sequence).ssrc(7));
    }
    rig.bye(7);
    for sequence in 5..400 {
        rig.packet(Sent::new(sequence).ssrc(7));
        rig.wait(MS);
    }
    rig.packet(Sent::new(9_000).ssrc(8));
    rig.packet(Sent::new(400).ssrc(7));
    assert_eq!(rig.packets(), (0..401).collect::<Vec<u16>>());
}

/// RTCP comes by another way than RTP, and may be told later than what came after it.
#[test]
fn a_bye_that_is_told_late_counts_from_when_it_came() {
    let mut rig = Rig::new(Setup::default());
    for sequence in 0..5 {
        rig.packet(Sent::new(sequence).ssrc(7));
    }
    let arrival_ns = rig.now;
    rig.wait(300 * MS);
    rig.packet(Sent::new(5).ssrc(7));
    rig.bye_of(7, arrival_ns);
    rig.packet(Sent::new(9_000).ssrc(8));
    rig.packet(Sent::new(6).ssrc(7));
    assert_eq!(rig.packets(), (0..7).collect::<Vec<u16>>());
    // One that came after its last packet, told as late.
    rig.wait(10 * MS);
    let arrival_ns = rig.now;
    rig.wait(300 * MS);
    rig.bye_of(7, arrival_ns);
    rig.packet(Sent::new(9_000).ssrc(8));
    assert_eq!(rig.packets().last(), Some(&9_000));
}

#[test]
fn a_reader_is_demoted_for_stalling_and_not_for_a_burst_after_a_pause() {
    let mut readers = Readers::new();
    let reader = readers.add(Mode::Reliable, true, 0, 0).unwrap();
    let stall = 2_000 * MS;
    assert_eq!(readers.demote_stalled(0, stall, 0, 16), 0);
    // Silence, then as much as the ring holds at once.
    assert_eq!(readers.demote_stalled(5_000 * MS, stall, 16, 16), 0);
    assert_eq!(readers.demote_stalled(6_999 * MS, stall, 16, 16), 0);
    readers.observe_tail(reader, 1, 16, 6_999 * MS);
    assert_eq!(readers.demote_stalled(7_100 * MS, stall, 17, 16), 0, "it moved");
    assert_eq!(readers.demote_stalled(9_100 * MS, stall, 17, 16), 1);
}

#[test]
fn a_full_source_table_does_not_keep_an_ordered_stream_from_the_next_source() {
    let mut rig = Rig::new(Setup::default());
    for ssrc in 0..100 {
        for sequence in 0..5 {
            rig.packet(Sent::new(sequence).ssrc(ssrc));
            rig.wait(MS);
        }
        rig.wait(250 * MS);
    }
    rig.finish();
    assert_eq!(rig.packets().len(), 500, "{:?}", rig.counters());
    assert_eq!((rig.counters().restarts, rig.counters().sources_untracked), (0, 0));
}

#[test]
fn a_long_gap_is_given_up_in_parts_and_in_order() {
    let mut rig = Rig::new(Setup { order: 16, reorder_ms: Some(5), ..Setup::default() });
    let jumps: Vec<u16> = (0..10).map(|at| at * 2_900).collect();
    for sequence in &jumps {
        rig.packet(Sent::new(*sequence));
    }
    assert_eq!(rig.next, 1, "the gaps are open");
    rig.now += 5 * MS;
    let mut rounds = 0;
    while rig.core.next_deadline().is_some_and(|due| due <= rig.now) {
        let before = rig.next;
        rig.wait(0);
        assert!(rig.next > before && rig.next - before <= EXPIRE_MAX, "{before} {}", rig.next);
        rounds += 1;
    }
    assert!(rounds > 6 && rig.core.next_deadline().is_none());
    let sequences: Vec<_> = rig.read.iter().map(|seen| seen.descriptor.sequence).collect();
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!((rig.read.len(), rig.packets()), (9 * 2_900 + 1, jumps));
    let counters = rig.counters();
    assert_eq!((counters.gap_positions, counters.lost), (9 * 2_899, 9 * 2_899));
}

#[test]
fn packets_that_come_between_the_parts_of_a_gap_keep_their_places() {
    let mut rig = Rig::new(Setup { order: 16, reorder_ms: Some(5), ..Setup::default() });
    for sequence in (0..10).map(|at| at * 2_900) {
        rig.packet(Sent::new(sequence));
    }
    rig.now += 5 * MS;
    rig.wait(0);
    // One that was given up, one that is not yet, and the next.
    rig.packet(Sent::new(3_000));
    rig.packet(Sent::new(20_000));
    rig.packet(Sent::new(9 * 2_900 + 1));
    while rig.core.next_deadline().is_some() {
        rig.wait(0);
    }
    let expected: Vec<u16> = (0..7).map(|at| at * 2_900).chain([20_000]).collect();
    assert_eq!(rig.packets()[..8], expected);
    assert_eq!(*rig.packets().last().unwrap(), 9 * 2_900 + 1);
    let counters = rig.counters();
    assert_eq!((counters.late, counters.published), (1, 12));
    assert_eq!(rig.read.len(), 9 * 2_900 + 2);
}

#[test]
fn what_is_given_up_before_the_end_is_what_the_end_gives_up() {
    let ended = |in_parts: bool| {
        let mut rig = Rig::new(Setup { order: 16, reorder_ms: Some(5), ..Setup::default() });
        for sequence in (0..10).map(|at| at * 2_900) {
            rig.packet(Sent::new(sequence));
        }
        if in_parts {
            let (claim, head, descriptors) = (&rig.claim, &rig.head, &rig.descriptors[..]);
            let view = RingView { claim, head, descriptors };
            let mut parts = 1;
            while rig.core.give_up(&view) {
                parts += 1;
            }
            assert_eq!(parts, (9_u64 * 2_900).div_ceil(EXPIRE_MAX));
        }
        rig.finish();
        (rig.read.iter().map(|seen| seen.descriptor).collect::<Vec<_>>(), rig.counters())
    };
    assert_eq!(ended(true), ended(false));
}
