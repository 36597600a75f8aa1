//! A receive stream without sockets, fed with prepared packets in batches: the paths of the ring that
//! every packet takes. Shared by the benchmarks and the instruction count.

use rtp_mgr_ring::abi::{
    Descriptor, LegFigures, SourceFigures, StreamCounters, DESC_WORDS, SEQUENCE_WORDS,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::figures::FigureBlocks;
use rtp_mgr_ring::follow::Held;
use rtp_mgr_ring::header;
use rtp_mgr_ring::producer::{Mode, Producer, Readers};
use rtp_mgr_ring::reader::Cursor;
use rtp_mgr_ring::receive::{Config, Filter, Memory, Packet, ReceiveCore, Storage, Verdict};
use rtp_mgr_ring::staging::{Entry, Order};
use rtp_mgr_ring::table::{Flow, SourceEntry};
use rtp_mgr_ring::view::{Block, ControlView, RingView};

const POSITIONS: usize = 1_024;
const SLOTS: usize = POSITIONS * 2;
const SOURCES: usize = 2_048;
const LEN: usize = 212;

#[derive(Debug)]
struct Heap;

impl Memory for Heap {
    type Entries = Box<[Entry]>;
    type Slots = Box<[u32]>;
    type Sources = Box<[SourceEntry]>;
    type Index = Box<[u16]>;
    type Held = Box<[Held]>;
}

/// The memory that readers see.
struct Shared {
    claim: Word,
    head: Word,
    tail: Word,
    wake_at: Word,
    descriptors: Vec<[Word; DESC_WORDS]>,
    counters: Vec<Word>,
    leg: Vec<Word>,
    sources: Vec<Vec<Word>>,
}

fn block(words: usize) -> Vec<Word> {
    (0..SEQUENCE_WORDS + words).map(|_| Word::new(0)).collect()
}

impl FigureBlocks for Shared {
    fn counters(&self) -> Block<'_> {
        Block { words: &self.counters }
    }

    fn leg(&self, _: usize) -> Block<'_> {
        Block { words: &self.leg }
    }

    fn source(&self, at: u16) -> Block<'_> {
        Block { words: &self.sources[usize::from(at)] }
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            claim: Word::new(0),
            head: Word::new(0),
            tail: Word::new(0),
            wake_at: Word::new(u64::MAX >> 1),
            counters: block(StreamCounters::WORDS),
            leg: block(LegFigures::WORDS),
            sources: (0..SOURCES).map(|_| block(SourceFigures::WORDS)).collect(),
            descriptors: (0..POSITIONS).map(|_| core::array::from_fn(|_| Word::new(0))).collect(),
        }
    }

    fn ring(&self) -> RingView<'_> {
        RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors }
    }

    fn control(&self) -> ControlView<'_> {
        ControlView { position: &self.tail, wake_at: &self.wake_at }
    }
}

/// Parsing, ordering, counting, publishing and reading.
pub struct Receive {
    core: ReceiveCore<Heap>,
    shared: Shared,
    cursor: Cursor,
    packet: [u8; LEN],
    sources: u32,
    sent: u64,
    now_ns: u64,
}

impl Receive {
    /// A stream in sequence order if `ordered`, of so many sources that take turns.
    pub fn new(ordered: bool, sources: u32) -> Self {
        let config = Config {
            start: 0,
            slot_stride: 2_048,
            order: ordered
                .then_some(Order { reorder_ns: 20_000_000, window: POSITIONS as u32 / 2 }),
            legs: 1,
            filter: Filter::default(),
            clock_rates: [48_000; 128],
            stall_ns: u64::MAX,
            secret: [1, 2],
        };
        let storage = Storage {
            entries: vec![Entry::EMPTY; POSITIONS].into(),
            slots: vec![0; SLOTS].into(),
            sources: vec![SourceEntry::FREE; SOURCES].into(),
            index: vec![0; SOURCES * 2].into(),
            held: vec![Held::EMPTY; POSITIONS / 2].into(),
        };
        let mut core = ReceiveCore::new(config, storage);
        core.readers_mut().add(Mode::Reliable, false, 0, 0);
        core.refresh_limit();
        Self {
            core,
            shared: Shared::new(),
            cursor: Cursor::new(0, POSITIONS as u32),
            packet: [0; LEN],
            sources,
            sent: 0,
            now_ns: 1_000_000,
        }
    }

    /// Receives `packets` packets, publishes them, reads them and gives them back. Returns how many were
    /// read.
    pub fn batch(&mut self, packets: usize) -> u64 {
        self.core.observe_tail(0, self.shared.tail.load_acquire(), self.now_ns);
        self.core.refresh_limit();
        for _ in 0..packets {
            self.one();
        }
        self.core.tally();
        self.core.publish_figures(&self.shared, self.now_ns);
        self.core.flush(&self.shared.ring(), self.now_ns);
        self.core.should_wake(0, self.shared.wake_at.load());
        read(&mut self.cursor, &self.shared)
    }

    fn one(&mut self) {
        let turn = self.sent % u64::from(self.sources);
        let sequence = (self.sent / u64::from(self.sources)) as u16;
        self.sent += 1;
        self.now_ns += 10_000;
        let timestamp = u32::from(sequence).wrapping_mul(48);
        header::build(&mut self.packet, false, 97, sequence, timestamp, 7 + turn as u32);
        let mut slot = [0];
        if self.core.take_slots(&mut slot) == 0 {
            return;
        }
        let packet = Packet {
            slot: slot[0],
            len: LEN as u32,
            truncated: false,
            coalesced: false,
            leg: 0,
            arrival_ns: self.now_ns,
            time_ns: self.now_ns,
            flow: &Flow { family: 4, source_port: 5004, destination_port: 5004, ..Flow::NONE },
        };
        let verdict = self.core.packet(&self.shared.ring(), &packet, &self.packet);
        if verdict != Verdict::Kept {
            self.core.give_back(slot[0]);
        }
    }
}

/// Reads everything there is and gives it back.
fn read(cursor: &mut Cursor, shared: &Shared) -> u64 {
    let view = shared.ring();
    let ready = cursor.ready(&view);
    let mut sum = 0;
    for at in 0..ready {
        sum ^= cursor.load(&view, cursor.next().wrapping_add(at)).sequence;
    }
    core::hint::black_box(sum);
    cursor.advance(ready);
    cursor.release(&shared.control());
    ready
}

/// The protocol alone: descriptors published and read.
pub struct Hop {
    producer: Producer,
    readers: Readers,
    shared: Shared,
    cursor: Cursor,
}

impl Hop {
    /// An empty ring.
    pub fn new() -> Self {
        let mut readers = Readers::new();
        readers.add(Mode::Reliable, false, 0, 0);
        Self {
            producer: Producer::new(0),
            readers,
            shared: Shared::new(),
            cursor: Cursor::new(0, POSITIONS as u32),
        }
    }

    /// Publishes `packets` positions and reads them. Returns how many were read.
    pub fn batch(&mut self, packets: usize) -> u64 {
        let view = self.shared.ring();
        let first = self.producer.head();
        let end = first.wrapping_add(packets as u64);
        self.readers.observe_tail(0, self.shared.tail.load_acquire(), first, 0);
        self.producer.claim_up_to(&view, end.wrapping_sub(1));
        for position in first..end {
            let descriptor =
                Descriptor { sequence: position, len: LEN as u32, ..Descriptor::default() };
            self.producer.write(&view, position, &descriptor);
        }
        self.producer.publish(&view, end);
        self.readers.should_wake(0, self.shared.wake_at.load(), end);
        read(&mut self.cursor, &self.shared)
    }
}
