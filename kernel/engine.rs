// SPDX-License-Identifier: MIT OR GPL-2.0

//! What runs under a stream's lock: taking packets in, publishing, accounting for readers, waking them.
//!
//! What does not live here: who may call what when ([`crate::stream`]), and the ring's rules
//! ([`crate::ring`]). Nothing here sleeps, allocates after the start, or trusts what users write: of
//! their memory only `tail` and `wake_at` are read, each once per run.

use kernel::alloc::flags::{__GFP_NOWARN, GFP_KERNEL_ACCOUNT};
use kernel::bindings;
use kernel::prelude::*;

use crate::allocator::Table;
use crate::clock::ClockPage;
use crate::compat::EOPNOTSUPP;
use crate::memory::Memory;
use crate::primitives::{
    monotonic_ns, random, realtime_of, tai_ns, tai_of, trace, WaitQueue,
};
use crate::ring::abi::{self, feature, ioctl, status, StreamCounters, LEGS_MAX, READERS_MAX};
use crate::ring::follow::Held;
use crate::ring::header::Kind;
use crate::ring::producer::Mode;
use crate::ring::receive::{self, Filter, Packet, ReceiveCore, Storage, Verdict};
use crate::ring::source::static_clock_rate;
use crate::ring::staging::{Entry, Order};
use crate::ring::steady::{Packets, RunEnd};
use crate::ring::table::{Flow, SourceEntry};
use crate::source::train::Train;
use crate::source::udp::SocketView;
use crate::source::Source;

/// What readers are told by poll.
const READABLE: u32 = bindings::POLLIN | 0x40;
/// How often the clocks and the sockets' drop counters are looked at.
const HOUSEKEEPING_NS: u64 = 500_000_000;
/// Longest that gaps may stay open.
pub(crate) const REORDER_MAX_NS: u64 = 60_000_000_000;
/// Free positions below which the readers' tails are looked at before every packet.
const ROOM_LOW: u64 = 64;
/// A time stamp older than this tells that the clock was set meanwhile.
const AGE_MAX_NS: u64 = 1_000_000_000;
/// For so long after a look at the clock a packet's stamp is the present.
const FRESH_NS: u64 = 1_000_000;
/// The rest of a train that does not come is waited for so long.
const TRAIN_NS: u64 = 1_000_000;

/// Storage of the ring core in kernel memory.
pub(crate) struct KernelMemory;

impl receive::Memory for KernelMemory {
    type Entries = Table<Entry>;
    type Slots = Table<u32>;
    type Sources = Table<SourceEntry>;
    type Index = Table<u16>;
    type Held = Table<Held>;
}

/// Allocates what a stream of this header keeps to itself.
pub(crate) fn storage(header: &abi::Header) -> Result<Storage<KernelMemory>> {
    let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
    let sources = header.sources_count as usize;
    let index = sources.saturating_mul(2).checked_next_power_of_two().ok_or(EINVAL)?;
    Ok(Storage {
        entries: Table::from_elem(Entry::EMPTY, header.slot_count as usize, flags)?,
        slots: Table::from_elem(0, header.slot_total as usize, flags)?,
        sources: Table::from_elem(SourceEntry::FREE, sources, flags)?,
        index: Table::from_elem(0, index, flags)?,
        held: Table::from_elem(Held::EMPTY, held_max(header), flags)?,
    })
}

/// Packets that may be held for a source that is not proven yet.
fn held_max(header: &abi::Header) -> usize {
    match header.features & feature::ORDERED {
        0 => 1,
        _ => (header.slot_count / 2) as usize,
    }
}

/// How long published packets have waited for a reader whose threshold is not reached.
#[derive(Clone, Copy)]
struct Patience {
    due_ns: Option<u64>,
    /// It ran out, and the reader has not taken everything since.
    over: bool,
}

/// What a reader's control page said when it was looked at last.
#[derive(Clone, Copy)]
struct Seen {
    /// Its tail, the last that was true.
    tail: u64,
    wake_at: u64,
    /// It was woken for this, and there is nothing to do for it until it says something else.
    woken: bool,
}

impl Seen {
    /// Of a reader that begins at `start`.
    const fn new(start: u64) -> Self {
        Self { tail: start, wake_at: start.wrapping_add(1), woken: false }
    }
}

/// The socket of a leg, looked at for what it dropped.
struct Socket {
    view: SocketView,
    /// Its count at the last look, modulo 2^32.
    drops: u32,
}

/// A receive stream's engine.
pub(crate) struct Engine {
    id: u64,
    core: KBox<ReceiveCore<KernelMemory>>,
    /// What brings packets when the timer says so; `None`: legs do, at any time.
    source: Option<KBox<dyn Source>>,
    sockets: [Option<Socket>; LEGS_MAX],
    /// By leg: time stamp of its latest packet, if that was followed by others of its train.
    trains: [Option<u64>; LEGS_MAX],
    running: bool,
    stopped: bool,
    /// When the timer is due, if it is started.
    alarm_ns: Option<u64>,
    /// Packets were placed and wait for the rest of their train.
    pending: bool,
    /// Bit per reader.
    readers: u32,
    patience: [Patience; READERS_MAX],
    /// What the readers' control pages said last.
    seen: [Seen; READERS_MAX],
    /// Position up to which packets are visible.
    published: u64,
    /// Position at which the readers' tails have to be looked at again.
    look_at: u64,
    /// Position before which a packet changes nothing about readers and the room that they leave.
    quiet_to: u64,
    max_latency_ns: u64,
    /// How long gaps stay open; `None`: arrival order.
    reorder_ns: Option<u64>,
    /// Bytes that the device made of the packet at each position; empty with legs.
    lens: Table<u32>,
    /// Every reader has released, or lost, what is before this position.
    consumed_to: u64,
    /// Packets dropped for want of room, as far as they were traced.
    traced: u64,
    /// When clocks and sockets are to be looked at next.
    look_ns: u64,
    /// Last look at CLOCK_MONOTONIC for a packet, and the latest present there was.
    clock_ns: u64,
    latest_ns: u64,
    clock: ClockPage,
    /// Packets of a train get times of their own.
    exact_times: bool,
}

/// Bytes of a packet that tell what it is: `RTP_MGR_HEAD` of shim.h.
pub(crate) const HEAD: usize = 20;

/// The first bytes of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    pub(crate) const EMPTY: Self = Self { bytes: [0; HEAD], len: 0 };

    /// The first of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut head = Self { len: bytes.len().min(HEAD), ..Self::EMPTY };
        for (to, from) in head.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        head
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// Where the bytes of a packet are until they are in a slot.
pub(crate) trait Bytes {
    /// The first of them.
    fn head(&mut self) -> Head;

    /// Copies all of them to `to`, which is as long as the packet. Returns whether there were as many.
    fn copy(&mut self, to: &mut [u8]) -> bool;

    /// Whether it is what it was when it was looked at first, going by the copy.
    fn is_still(copy: &[u8]) -> bool {
        let _ = copy;
        true
    }
}

/// A packet of a leg, or a train of them that is whole.
pub(crate) struct Datagram<'a> {
    /// What the ring is told of it. It has no slot yet, and before it is [dated](Engine::date) no times.
    pub(crate) packet: Packet<'a>,
    /// The next packet of its train comes right after it.
    pub(crate) more: bool,
    /// What the network stack stamped it with; 0: nothing.
    pub(crate) stamp_ns: u64,
    /// The present, CLOCK_MONOTONIC, once it is dated.
    pub(crate) now_ns: u64,
}

/// The packets of a train on their way into slots.
struct TrainPackets<'a, 'b> {
    memory: &'a Memory,
    train: &'a mut Train<'b>,
}

impl Packets for TrainPackets<'_, '_> {
    #[inline(always)]
    fn next_len(&mut self) -> Option<u32> {
        self.train.next_of_run()
    }

    #[inline(always)]
    fn copy_to(&mut self, slot: u32, len: u32) -> Option<&[u8]> {
        // SAFETY: Whoever asks has taken the slot from the free ones, and it is nobody's until the verdict.
        let space = unsafe { self.memory.slot_part(slot, len) }?;
        self.train.copy_run(space).then_some(&*space)
    }
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was taken, and counted.
    Taken,
    /// It is the socket's.
    Left,
}

/// A free slot that a source has for itself.
pub(crate) struct Slot(u32);

/// How a source delivers packets.
pub(crate) struct Intake<'a> {
    core: &'a mut ReceiveCore<KernelMemory>,
    lens: &'a mut [u32],
    memory: &'a Memory,
    now_ns: u64,
    tai_ns: u64,
}

impl Intake<'_> {
    /// A slot to fill. A device may hold several.
    pub(crate) fn slot(&mut self) -> Option<Slot> {
        let mut slots = [0];
        (self.core.take_slots(&mut slots) == 1).then_some(Slot(slots[0]))
    }

    /// The bytes of a slot.
    pub(crate) fn bytes<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        // SAFETY: The slot was taken from the free ones, and its `Slot` exists once and is borrowed
        // mutably.
        unsafe { self.memory.slot(slot.0) }
    }

    /// Gives a slot back unused.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.core.give_back(slot.0);
    }

    /// The slot holds a packet of `len` bytes with number `sequence` that is not RTP.
    pub(crate) fn raw(&mut self, slot: Slot, len: u32, sequence: u64) {
        let packet = self.packet(&slot, len);
        let position = self.core.head();
        let verdict = self.core.raw(&self.memory.ring(), &packet, sequence);
        self.account(slot, len, position, verdict);
    }

    /// The slot holds an RTP packet of `len` bytes, of which the device made `produced`.
    pub(crate) fn rtp(&mut self, slot: Slot, len: u32, produced: u32) {
        let packet = self.packet(&slot, len);
        let position = self.core.head();
        // SAFETY: As in `bytes`: the slot is this `Slot`'s alone until the verdict.
        let bytes = unsafe { self.memory.slot(slot.0) };
        let verdict = match bytes.get(..len as usize) {
            Some(bytes) => self.core.packet(&self.memory.ring(), &packet, bytes),
            None => Verdict::Free,
        };
        self.account(slot, produced, position, verdict);
    }

    /// `produced` bytes, one packet, were lost before they reached a slot.
    pub(crate) fn overrun(&mut self, produced: u32) {
        let counters = self.core.counters_mut();
        bump(&mut counters.received, 1);
        bump(&mut counters.dropped_ring_full, 1);
        bump(&mut counters.bytes_overflowed, u64::from(produced));
    }

    /// A burst is complete.
    pub(crate) fn burst_done(&mut self) {
        bump(&mut self.core.counters_mut().bursts, 1);
    }

    fn packet(&self, slot: &Slot, len: u32) -> Packet<'static> {
        Packet {
            slot: slot.0,
            len,
            truncated: false,
            coalesced: false,
            leg: 0,
            arrival_ns: self.now_ns,
            time_ns: self.tai_ns,
            flow: &Flow::NONE,
        }
    }

    fn account(&mut self, slot: Slot, produced: u32, position: u64, verdict: Verdict) {
        if verdict == Verdict::Kept {
            bump(&mut self.core.counters_mut().bytes_produced, u64::from(produced));
            let mask = self.lens.len().wrapping_sub(1);
            if let Some(place) = self.lens.get_mut(position as usize & mask) {
                *place = produced;
            }
        } else {
            bump(&mut self.core.counters_mut().bytes_overflowed, u64::from(produced));
            self.core.give_back(slot.0);
        }
    }
}

fn bump(counter: &mut u64, amount: u64) {
    *counter = counter.wrapping_add(amount);
}

/// The numbers of the bits that are set.
#[inline]
fn bits(mut left: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let at = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        Some(at as usize)
    })
}

/// The earlier of two times, if there is one.
#[inline]
fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn bit(reader: usize) -> u32 {
    1_u32.wrapping_shl(reader as u32)
}

/// The position at which a reader with this `tail` wants to be woken: what it asked for, if that is
/// still to come, and else the next packet.
fn wake_position(tail: u64, wake_at: u64) -> u64 {
    if wake_at.wrapping_sub(tail) as i64 > 0 {
        wake_at
    } else {
        tail.wrapping_add(1)
    }
}

impl Engine {
    /// An engine with nothing received.
    pub(crate) fn new(
        header: &abi::Header,
        config: receive::Config,
        source: Option<KBox<dyn Source>>,
    ) -> Result<Self> {
        let storage = storage(header)?;
        let lens = if source.is_some() { header.slot_count as usize } else { 0 };
        let lens = Table::from_elem(0, lens, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        Ok(Self {
            id: header.stream_id,
            consumed_to: config.start,
            reorder_ns: config.order.map(|order| order.reorder_ns),
            core: KBox::new(ReceiveCore::new(config, storage), GFP_KERNEL_ACCOUNT)?,
            source,
            sockets: [const { None }; LEGS_MAX],
            trains: [None; LEGS_MAX],
            running: false,
            stopped: false,
            alarm_ns: None,
            pending: false,
            readers: 0,
            patience: [Patience { due_ns: None, over: false }; READERS_MAX],
            seen: [Seen::new(config.start); READERS_MAX],
            published: config.start,
            look_at: config.start,
            quiet_to: config.start,
            max_latency_ns: 0,
            lens,
            traced: 0,
            look_ns: 0,
            clock_ns: 0,
            latest_ns: 0,
            clock: ClockPage::new(),
            exact_times: header.features & feature::EXACT_TIMES != 0,
        })
    }

    /// Whether packets are taken.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Runs, from now on. Returns when [`service`](Self::service) is due.
    pub(crate) fn start(&mut self, memory: &Memory) -> Option<u64> {
        let now_ns = self.now();
        self.running = true;
        self.stopped = false;
        memory.live(status::STATE).store(abi::STATE_RUNNING);
        self.look_around(memory, now_ns);
        self.publish_figures(memory, now_ns);
        match &mut self.source {
            Some(source) => source.start(now_ns),
            None => Some(now_ns.saturating_add(HOUSEKEEPING_NS)),
        }
    }

    /// Looks, from now on, at the socket of `leg` for what it drops; `None`: no more.
    ///
    /// # Safety
    ///
    /// The leg that `view` is of lives until this is called for it again.
    pub(crate) unsafe fn watch(&mut self, leg: usize, view: Option<SocketView>) {
        self.look_at_sockets();
        let socket = view.map(|view| {
            // SAFETY: As this function's own requirement.
            let (drops, buffer) = unsafe { view.figures() };
            if let Some(figures) = self.core.leg_figures_mut(leg) {
                // The kernel doubles what it grants, for its own records (socket(7)).
                figures.socket_buffer = u64::from(buffer / 2);
            }
            Socket { view, drops }
        });
        if let Some(place) = self.sockets.get_mut(leg) {
            *place = socket;
        }
    }

    /// Takes on `leg` only packets from `source`.
    pub(crate) fn set_leg_source(&mut self, leg: usize, source: [u8; 16]) {
        self.core.set_leg_source(leg, source);
    }

    /// Takes nothing more, and starts no timer.
    pub(crate) fn halt(&mut self) {
        self.running = false;
    }

    /// When the timer is to be started for what is due at `due_ns`: not, if it comes before that anyway.
    pub(crate) fn alarm(&mut self, due_ns: Option<u64>) -> Option<u64> {
        let due_ns = due_ns.filter(|_| self.running)?;
        if self.alarm_ns.is_some_and(|alarm_ns| alarm_ns <= due_ns) {
            return None;
        }
        self.alarm_ns = Some(due_ns);
        self.alarm_ns
    }

    /// The timer's handler runs: whatever is due is looked for after this.
    pub(crate) fn alarm_over(&mut self) {
        self.alarm_ns = None;
    }

    /// Gives up some of the gaps that are open. Returns whether there are more. Between [`halt`](Self::halt)
    /// and [`stop`](Self::stop), each time with a lock of its own.
    pub(crate) fn give_up(&mut self, memory: &Memory) -> bool {
        self.core.give_up(&memory.ring())
    }

    /// Publishes what there is, and nothing more. Comes after [`halt`](Self::halt).
    pub(crate) fn stop(&mut self, memory: &Memory, waits: &[WaitQueue; READERS_MAX]) {
        let now_ns = self.now();
        self.stopped = true;
        self.alarm_ns = None;
        self.core.finish(&memory.ring());
        self.look_around(memory, now_ns);
        self.conclude(memory, waits, now_ns);
        memory.live(status::STATE).store(abi::STATE_STOPPED);
        for wait in waits {
            wait.wake(READABLE | bindings::POLLHUP);
        }
    }

    /// One run: from the timer, or from whoever has news for the stream. Returns when the next is due.
    pub(crate) fn service(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
    ) -> Option<u64> {
        if !self.running {
            return None;
        }
        let now_ns = self.now();
        self.observe_readers(memory, now_ns);
        let source_ns = match &mut self.source {
            Some(source) => {
                let mut intake = Intake {
                    core: &mut self.core,
                    lens: &mut self.lens,
                    memory,
                    now_ns,
                    tai_ns: tai_ns(),
                };
                source.service(&mut intake, now_ns)
            }
            None => None,
        };
        self.core.expire(&memory.ring(), now_ns);
        let due_ns = self.conclude(memory, waits, now_ns);
        let look_ns = match self.source {
            Some(_) => None,
            None => Some(self.look_ns),
        };
        [source_ns, due_ns, look_ns].into_iter().flatten().min()
    }

    /// Finds out when a packet, or a train, arrived, and what time it is. The network stack has just looked at the
    /// clock for its stamp: right after a look of ours, that is the present (docs/decisions/0015).
    #[inline(always)]
    pub(crate) fn date(&mut self, datagram: &mut Datagram<'_>) {
        let stamp_ns = datagram.stamp_ns;
        // As the clocks stand to each other now.
        let stamped_ns = stamp_ns.wrapping_sub(realtime_of(0));
        let fresh = stamp_ns != 0 && stamped_ns.wrapping_sub(self.clock_ns) < FRESH_NS;
        let arrival_ns = if fresh { stamped_ns } else { self.arrival(stamp_ns, stamped_ns) };
        self.latest_ns = self.latest_ns.max(arrival_ns);
        datagram.now_ns = self.latest_ns;
        datagram.packet.arrival_ns = arrival_ns;
        datagram.packet.time_ns = tai_of(arrival_ns);
    }

    /// The present, CLOCK_MONOTONIC, which does not go back for a stream.
    pub(crate) fn now(&mut self) -> u64 {
        self.latest_ns = self.latest_ns.max(monotonic_ns());
        self.latest_ns
    }

    /// When a packet arrived, by the clock: CLOCK_MONOTONIC now, if it was not stamped, or that tells nothing.
    #[inline(never)]
    fn arrival(&mut self, stamp_ns: u64, stamped_ns: u64) -> u64 {
        let now_ns = monotonic_ns();
        self.clock_ns = now_ns;
        self.latest_ns = self.latest_ns.max(now_ns);
        let age_ns = if stamp_ns == 0 { 0 } else { now_ns.wrapping_sub(stamped_ns) };
        if age_ns < AGE_MAX_NS {
            now_ns.saturating_sub(age_ns)
        } else {
            now_ns
        }
    }

    /// A packet of a leg. `None`: it was the usual one, is counted, and [`show_usual`](Self::show_usual) follows;
    /// else [`conclude`](Self::conclude) or [`postpone`](Self::postpone).
    #[inline(always)]
    pub(crate) fn datagram<B: Bytes>(
        &mut self,
        memory: &Memory,
        datagram: &Datagram<'_>,
        bytes: &mut B,
    ) -> Option<Outcome> {
        let quiet = self.is_quiet() || self.is_quiet_after_all(memory, datagram.now_ns);
        let alone = !self.is_coalesced(datagram);
        let usual = quiet && alone && !self.pending && !self.is_time(datagram.now_ns);
        let mut packet = datagram.packet;
        let Some(slot) = self.core.take_slot() else {
            return Some(self.without_slot(packet, !alone, &bytes.head()));
        };
        packet.slot = slot;
        // SAFETY: The slot was taken from the free ones, and is nobody's but ours until the verdict.
        let Some(space) = (unsafe { memory.slot_part(slot, packet.len) }) else {
            packet.truncated = true;
            return Some(self.sort::<B>(memory, packet, !alone, bytes.head().bytes()));
        };
        if !bytes.copy(space) {
            self.core.give_back(slot);
            // Its bytes are not where they should be, and it is the socket's, whatever it came with.
            return Some(Outcome::Left);
        }
        let ring = memory.ring();
        if usual && self.core.take_and_tell(&ring, memory, &packet, space, datagram.now_ns) {
            return None;
        }
        Some(self.sort::<B>(memory, packet, !alone, space))
    }

    #[inline(never)]
    fn without_slot(&mut self, mut packet: Packet<'_>, coalesced: bool, head: &Head) -> Outcome {
        if coalesced {
            self.coalesced(&mut packet);
        }
        self.core.without_slot(head.bytes());
        Outcome::Taken
    }

    /// Whether packets change nothing about readers and the room that they leave.
    #[inline]
    fn is_quiet(&self) -> bool {
        (self.core.claim().wrapping_sub(self.quiet_to) as i64) < 0
    }

    /// Whether clocks and sockets are to be looked at.
    #[inline]
    fn is_time(&self, now_ns: u64) -> bool {
        now_ns >= self.look_ns
    }

    /// The same after another look at what readers say.
    #[inline(never)]
    fn is_quiet_after_all(&mut self, memory: &Memory, now_ns: u64) -> bool {
        self.observe_readers(memory, now_ns);
        self.publish_readers(memory);
        self.is_quiet()
    }

    /// Learns up to where it [is quiet](Self::is_quiet).
    fn settle_quiet(&mut self) {
        let fuller_at = self.core.fuller_at();
        let sooner = fuller_at.filter(|at| (at.wrapping_sub(self.look_at) as i64) < 0);
        self.quiet_to = sooner.unwrap_or(self.look_at);
    }

    /// A packet came coalesced with others: it counts as such, and tells so or gets a time of its own.
    fn coalesced(&mut self, packet: &mut Packet<'_>) {
        packet.coalesced = true;
        if !self.exact_times {
            self.core.count_coalesced(1);
        }
        self.give_time(packet);
    }

    /// A train of packets of a leg, all of them RTP when it was taken. `like` tells what they have in
    /// common. [`conclude`](Self::conclude) follows.
    pub(crate) fn train(&mut self, memory: &Memory, like: &Datagram<'_>, train: &mut Train<'_>) {
        let ring = memory.ring();
        let packet = Packet { coalesced: true, ..like.packet };
        let mut count = 0_u64;
        let mut next = train.next_packet();
        while let Some(len) = next {
            if self.must_look() {
                self.observe_readers(memory, like.now_ns);
            }
            // With a time of its own each is for itself.
            let (taken, end) = if self.exact_times {
                (0, RunEnd::Before { len })
            } else {
                let mut packets = TrainPackets { memory, train };
                self.core.take_run(&ring, &packet, self.look_at, len, &mut packets)
            };
            count = count.wrapping_add(taken);
            let outcome = match end {
                RunEnd::Done => break,
                RunEnd::Before { len } => self.place(memory, Packet { len, ..packet }, train),
                RunEnd::Copied { slot, len } => {
                    train.end_run();
                    // SAFETY: The slot was taken from the free ones, and is nobody's but ours until the verdict.
                    let space = unsafe { memory.slot(slot) };
                    let bytes = space.get(..len as usize).unwrap_or_default();
                    self.sort::<Train<'_>>(memory, Packet { slot, len, ..packet }, false, bytes)
                }
                RunEnd::Torn => Outcome::Left,
            };
            if outcome != Outcome::Taken {
                // It is no longer what it was, and nobody gets it.
                let counters = self.core.counters_mut();
                bump(&mut counters.received, 1);
                bump(&mut counters.dropped_invalid, 1);
            }
            count = count.wrapping_add(1);
            next = train.next_packet();
        }
        if !self.exact_times {
            self.core.count_coalesced(count);
        }
        if let Some(train) = self.trains.get_mut(usize::from(packet.leg)) {
            *train = None;
        }
    }

    /// Gives a packet that came coalesced with others a time of its own, if it is to have one.
    #[inline]
    fn give_time(&self, packet: &mut Packet<'_>) {
        if self.exact_times && packet.coalesced {
            (packet.arrival_ns, packet.time_ns) = (monotonic_ns(), tai_ns());
            packet.coalesced = false;
        }
    }

    /// Finds a slot for a packet of a train that is of no run, copies it there and gives it its place in the ring.
    #[inline(never)]
    fn place(&mut self, memory: &Memory, packet: Packet<'_>, train: &mut Train<'_>) -> Outcome {
        let mut packet = packet;
        self.give_time(&mut packet);
        let Some(slot) = self.core.take_slot() else {
            self.core.without_slot(train.head().bytes());
            return Outcome::Taken;
        };
        packet.slot = slot;
        // SAFETY: The slot was taken from the free ones, and is nobody's but ours until the verdict.
        let Some(space) = (unsafe { memory.slot_part(slot, packet.len) }) else {
            packet.truncated = true;
            return self.sort::<Train<'_>>(memory, packet, false, train.head().bytes());
        };
        if !train.copy(space) {
            self.core.give_back(slot);
            return Outcome::Left;
        }
        self.sort::<Train<'_>>(memory, packet, false, space)
    }

    /// A packet that is not plainly the next one, in a slot that is given back unless it is kept. `coalesced`: with
    /// others, as nobody has told yet.
    #[inline(never)]
    fn sort<B: Bytes>(
        &mut self,
        memory: &Memory,
        mut packet: Packet<'_>,
        coalesced: bool,
        bytes: &[u8],
    ) -> Outcome {
        if coalesced {
            self.coalesced(&mut packet);
        }
        let verdict = if B::is_still(bytes) {
            self.core.packet(&memory.ring(), &packet, bytes)
        } else {
            Verdict::Passed(Kind::Other)
        };
        if verdict != Verdict::Kept {
            self.core.give_back(packet.slot);
        }
        match verdict {
            Verdict::Kept | Verdict::Free => Outcome::Taken,
            // A filter left less of it than a header, or its sender made it something else.
            Verdict::Passed(_) => Outcome::Left,
        }
    }

    /// Whether a packet came coalesced with others: more of its train follow, or it is the last of one.
    #[inline]
    fn is_coalesced(&mut self, datagram: &Datagram<'_>) -> bool {
        let leg = usize::from(datagram.packet.leg);
        let Some(train) = self.trains.get_mut(leg) else { return false };
        if train.is_none() && !datagram.more {
            return false;
        }
        let follows = *train == Some(datagram.stamp_ns);
        *train = datagram.more.then_some(datagram.stamp_ns);
        datagram.more || follows
    }

    /// A packet that was left to the socket of a leg. [`conclude`](Self::conclude) follows.
    pub(crate) fn passed(&mut self, kind: Kind) {
        self.core.passed(kind);
    }

    /// What a user heard beside the legs: so many packets by kind, and a BYE of an SSRC at a time of
    /// CLOCK_MONOTONIC, nanoseconds. [`conclude`](Self::conclude) follows.
    pub(crate) fn heard(&mut self, memory: &Memory, passed: [u32; 4], bye: Option<(u32, u64)>) {
        let [rtcp, stun, dtls, other] = passed;
        let counters = self.core.counters_mut();
        bump(&mut counters.passed_rtcp, u64::from(rtcp));
        bump(&mut counters.passed_stun, u64::from(stun));
        bump(&mut counters.passed_dtls, u64::from(dtls));
        bump(&mut counters.passed_other, u64::from(other));
        if let Some((ssrc, arrival_ns)) = bye {
            let now_ns = self.now();
            self.core.bye(&memory.ring(), ssrc, arrival_ns, now_ns);
        }
    }

    /// More packets of a train follow at once, and are published with this one. Returns until when they
    /// are waited for.
    pub(crate) fn postpone(&mut self, now_ns: u64) -> u64 {
        self.pending = true;
        now_ns.saturating_add(TRAIN_NS)
    }

    /// Whether something was placed and waits for the rest of its train to be published.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending
    }

    /// Publishes what was placed, figures first: they are never behind what a reader has. Wakes whom it
    /// concerns. Returns when [`service`](Self::service) is due.
    #[inline(never)]
    pub(crate) fn conclude(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
    ) -> Option<u64> {
        self.pending = false;
        if self.is_time(now_ns) {
            self.look_around(memory, now_ns);
        }
        // As they were after the packets before, unless that makes a difference.
        if self.must_look() || self.core.is_fuller() {
            self.observe_readers(memory, now_ns);
            self.core.tally_use();
        }
        self.core.tally_positions();
        self.core.publish_figures(memory, now_ns);
        let demoted = self.core.counted().readers_demoted;
        if self.core.show(&memory.ring(), now_ns) {
            self.trace_news();
        }
        self.skip_lapped();
        self.settle_quiet();
        let full = self.core.counted().dropped_ring_full;
        if full != self.traced {
            trace::drop(self.id, self.core.head(), full.wrapping_sub(self.traced));
            self.traced = full;
        }
        let unsaid = self.core.counted().readers_demoted != demoted;
        self.tell_readers(memory, waits, now_ns, unsaid)
    }

    /// Publishes the [usual](Self::datagram) packet, and wakes whom it concerns. Returns as
    /// [`conclude`](Self::conclude).
    #[inline(always)]
    pub(crate) fn show_usual(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
    ) -> Option<u64> {
        self.core.show_next(&memory.ring());
        self.trace_news();
        if self.are_heard(memory) {
            // The usual packet leaves no gap open.
            return None;
        }
        self.tell_usual(memory, waits, now_ns)
    }

    #[inline(never)]
    fn tell_usual(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
    ) -> Option<u64> {
        self.tell_readers(memory, waits, now_ns, false)
    }

    /// There are packets that were not visible before.
    #[inline(always)]
    fn trace_news(&mut self) {
        let before = core::mem::replace(&mut self.published, self.core.head());
        trace::publish(self.id, self.published, self.published.wrapping_sub(before));
    }

    /// Wakes whom new packets concern, and publishes what that changes; figures also if they are `unsaid`. Returns
    /// when [`service`](Self::service) is due.
    #[inline(always)]
    fn tell_readers(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
        unsaid: bool,
    ) -> Option<u64> {
        let (woken, patience_ns) = self.wake_readers(memory, waits, now_ns);
        if woken || unsaid {
            self.publish_figures(memory, now_ns);
        }
        self.publish_readers(memory);
        earlier(self.core.next_deadline(), patience_ns)
    }

    /// Whether all readers were woken, and none has said anything since.
    #[inline(always)]
    fn are_heard(&self, memory: &Memory) -> bool {
        let mut left = self.readers;
        while left != 0 {
            let reader = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            // After the head was published, with a full fence between.
            let control = memory.control(reader);
            let (tail, wake_at) = (control.position.load_acquire(), control.wake_at.load());
            let Some(seen) = self.seen.get(reader) else { return false };
            if !seen.woken || seen.tail != tail || seen.wake_at != wake_at {
                return false;
            }
        }
        true
    }

    fn reader_indices(&self) -> impl Iterator<Item = usize> {
        bits(self.readers)
    }

    /// Whether there may be no room without another look at the readers' tails.
    fn must_look(&self) -> bool {
        self.core.claim().wrapping_sub(self.look_at) as i64 >= 0
    }

    /// Believes what is true of the readers' tails, each loaded once.
    #[inline]
    fn observe_readers(&mut self, memory: &Memory, now_ns: u64) {
        let mut moved = false;
        for reader in bits(self.readers) {
            let tail = memory.control(reader).position.load_acquire();
            moved |= self.observe_tail(reader, tail, now_ns);
        }
        // A new reader, and one that keeps the ring full, are looked at there.
        if moved || self.must_look() {
            self.follow_readers(memory);
        }
    }

    /// Believes a reader's tail, if that is true. Returns whether it is news.
    #[inline]
    fn observe_tail(&mut self, reader: usize, tail: u64, now_ns: u64) -> bool {
        let Some(seen) = self.seen.get_mut(reader) else { return false };
        // What is not true yet may become so.
        let moved = seen.tail != tail && self.core.observe_tail(reader, tail, now_ns);
        if moved {
            seen.tail = tail;
            seen.woken = false;
        }
        moved
    }

    /// Learns from the tails that were believed what may be written, and what was consumed.
    #[inline(never)]
    fn follow_readers(&mut self, memory: &Memory) {
        self.core.refresh_limit();
        let slowest = self.slowest();
        // No packet takes more positions than the window.
        let slack = u64::from(self.core.window()).saturating_add(ROOM_LOW);
        let positions = memory.header().slot_count;
        self.look_at = slowest.wrapping_add(u64::from(positions)).wrapping_sub(slack);
        self.settle_quiet();
        if self.lens.is_empty() {
            return;
        }
        let mut bytes = 0_u64;
        let mask = self.lens.len().wrapping_sub(1);
        while slowest.wrapping_sub(self.consumed_to) as i64 > 0 {
            let len = self.lens.get(self.consumed_to as usize & mask).copied().unwrap_or(0);
            bytes = bytes.wrapping_add(u64::from(len));
            self.consumed_to = self.consumed_to.wrapping_add(1);
        }
        if bytes > 0 {
            bump(&mut self.core.counters_mut().bytes_consumed, bytes);
        }
    }

    /// The tail of the slowest reader; without readers, head, or what was consumed of a source's bytes:
    /// that is not known to grow.
    fn slowest(&self) -> u64 {
        let tails = self.reader_indices().map(|reader| self.core.readers().status(reader).tail);
        let slowest =
            tails.reduce(
                |slowest, tail| {
                    if tail.wrapping_sub(slowest) as i64 >= 0 {
                        slowest
                    } else {
                        tail
                    }
                },
            );
        let nobody = if self.lens.is_empty() { self.core.head() } else { self.consumed_to };
        slowest.unwrap_or(nobody)
    }

    /// What was taken from a reader was not consumed.
    fn skip_lapped(&mut self) {
        if self.lens.is_empty() {
            return;
        }
        let slowest = if self.readers == 0 { self.core.head() } else { self.slowest() };
        if slowest.wrapping_sub(self.consumed_to) as i64 > 0 {
            self.consumed_to = slowest;
        }
    }

    /// Looks at what readers say, and wakes those whose threshold is reached or whose patience is over. Returns
    /// whether it woke any, and when the next one's patience will be over.
    #[inline]
    fn wake_readers(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
    ) -> (bool, Option<u64>) {
        let mut next_ns: Option<u64> = None;
        let mut woken = false;
        for reader in bits(self.readers) {
            // After the head was published, with a full fence between.
            let control = memory.control(reader);
            let (tail, wake_at) = (control.position.load_acquire(), control.wake_at.load());
            let Some(seen) = self.seen.get(reader) else { continue };
            if seen.woken && seen.tail == tail && seen.wake_at == wake_at {
                continue;
            }
            if self.observe_tail(reader, tail, now_ns) {
                self.follow_readers(memory);
            }
            let due_ns = self.look_at(reader, tail, wake_at, now_ns);
            if due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                woken = true;
                self.wake(reader, waits);
            } else {
                next_ns = earlier(next_ns, due_ns);
            }
        }
        (woken, next_ns)
    }

    /// Decides when a reader that says this is to be woken: at `now_ns` if now, and `None` if for something
    /// that is not there yet, or not again.
    #[inline(never)]
    fn look_at(&mut self, reader: usize, tail: u64, wake_at: u64, now_ns: u64) -> Option<u64> {
        let head = self.core.head();
        let (Some(patience), Some(seen)) =
            (self.patience.get_mut(reader), self.seen.get_mut(reader))
        else {
            return None;
        };
        seen.woken = false;
        if tail == head {
            *patience = Patience { due_ns: None, over: false };
            return None;
        }
        let position = wake_position(tail, wake_at);
        let wake = self.core.should_wake(reader, position);
        if head.wrapping_sub(position) as i64 >= 0 {
            patience.due_ns = None;
            seen.wake_at = wake_at;
            seen.woken = true;
            return wake.then_some(now_ns);
        }
        if self.max_latency_ns == 0 || patience.over {
            return None;
        }
        let due_ns = *patience.due_ns.get_or_insert(now_ns.saturating_add(self.max_latency_ns));
        if due_ns <= now_ns {
            *patience = Patience { due_ns: None, over: true };
        }
        Some(due_ns)
    }

    fn wake(&mut self, reader: usize, waits: &[WaitQueue; READERS_MAX]) {
        self.core.count_wakeup();
        trace::wake(self.id, reader as u32, self.core.head());
        if let Some(wait) = waits.get(reader) {
            wait.wake(READABLE);
        }
    }

    /// What poll says to `reader`, and when its patience will be over if it has to wait.
    pub(crate) fn ready(&mut self, memory: &Memory, reader: usize) -> (u32, Option<u64>) {
        let hangup = if self.stopped { bindings::POLLHUP } else { 0 };
        let head = memory.ring().head.load_acquire();
        let control = memory.control(reader);
        let tail = control.position.load();
        let Some(patience) = self.patience.get_mut(reader) else { return (hangup, None) };
        if head == tail {
            patience.over = false;
            return (hangup, None);
        }
        let reached = head.wrapping_sub(wake_position(tail, control.wake_at.load())) as i64 >= 0;
        if reached || patience.over || self.stopped {
            return (hangup | READABLE, None);
        }
        if self.max_latency_ns == 0 {
            return (hangup, None);
        }
        let due_ns = monotonic_ns().saturating_add(self.max_latency_ns);
        (hangup, Some(*patience.due_ns.get_or_insert(due_ns)))
    }

    /// Writes what the status part says.
    #[inline(never)]
    fn publish_figures(&mut self, memory: &Memory, now_ns: u64) {
        self.core.publish_figures(memory, now_ns);
    }

    /// Writes those status pages of readers that say something else by now.
    #[inline]
    fn publish_readers(&mut self, memory: &Memory) {
        let changed = self.core.take_changed_readers();
        if changed != 0 {
            self.publish_status(memory, changed);
        }
    }

    #[inline(never)]
    fn publish_status(&self, memory: &Memory, readers: u32) {
        for reader in bits(readers) {
            let status = self.core.readers().status(reader);
            memory.reader_status(reader).publish(&status.to_words());
        }
    }

    /// Looks at the clocks and the sockets.
    fn look_around(&mut self, memory: &Memory, now_ns: u64) {
        self.look_ns = now_ns.saturating_add(HOUSEKEEPING_NS);
        self.clock.publish(memory);
        self.look_at_sockets();
    }

    fn look_at_sockets(&mut self) {
        let mut dropped = 0_u64;
        for (leg, socket) in (0..LEGS_MAX).zip(self.sockets.iter_mut()) {
            let Some(socket) = socket else { continue };
            // SAFETY: `watch` was promised that the leg lives.
            let (drops, _) = unsafe { socket.view.figures() };
            let more = u64::from(drops.wrapping_sub(socket.drops));
            socket.drops = drops;
            dropped = dropped.wrapping_add(more);
            if let Some(figures) = self.core.leg_figures_mut(leg) {
                bump(&mut figures.external_drops, more);
            }
        }
        bump(&mut self.core.counters_mut().external_drops, dropped);
    }

    /// A new reader, beginning at the next position. Returns its place and that position.
    pub(crate) fn add_reader(
        &mut self,
        memory: &Memory,
        mode: Mode,
        demotable: bool,
    ) -> Result<(usize, u64)> {
        let head = self.core.head();
        let now_ns = self.now();
        let readers = self.core.readers_mut();
        let fit = |reader| memory.is_free(reader);
        let reader = readers.add_where(fit, mode, demotable, head, now_ns).ok_or(ENOSPC)?;
        self.readers |= bit(reader);
        if let Some(seen) = self.seen.get_mut(reader) {
            *seen = Seen::new(head);
        }
        if let Some(patience) = self.patience.get_mut(reader) {
            *patience = Patience { due_ns: None, over: false };
        }
        let control = memory.control(reader);
        control.position.store(head);
        control.wake_at.store(head.wrapping_add(1));
        self.look_at = head;
        self.core.refresh_limit();
        self.settle_quiet();
        self.publish_figures(memory, now_ns);
        self.publish_readers(memory);
        Ok((reader, head))
    }

    /// Forgets a reader.
    pub(crate) fn remove_reader(&mut self, memory: &Memory, reader: usize) {
        let now_ns = self.now();
        self.observe_readers(memory, now_ns);
        self.readers &= !bit(reader);
        self.core.readers_mut().remove(reader);
        self.core.refresh_limit();
        if self.readers == 0 {
            self.consumed_to = self.core.head();
        }
        self.publish_figures(memory, now_ns);
        self.publish_readers(memory);
    }

    /// The counters now.
    pub(crate) fn counters(&mut self, memory: &Memory) -> StreamCounters {
        let now_ns = self.now();
        self.observe_readers(memory, now_ns);
        self.look_at_sockets();
        self.publish_figures(memory, now_ns);
        self.publish_readers(memory);
        self.core.counters(now_ns)
    }

    /// Sets the counters to zero.
    pub(crate) fn reset_counters(&mut self, memory: &Memory) -> Result {
        let now_ns = self.now();
        self.observe_readers(memory, now_ns);
        if !self.core.reset_counters() {
            return Err(EBUSY);
        }
        self.traced = 0;
        self.settle_quiet();
        self.publish_figures(memory, now_ns);
        Ok(())
    }

    /// Changes a setting that is the engine's or the source's.
    pub(crate) fn set(&mut self, key: u32, value: u64) -> Result {
        match key {
            ioctl::SETTING_MAX_LATENCY_US if value <= 10_000_000 => {
                self.max_latency_ns = value.saturating_mul(1_000);
                Ok(())
            }
            ioctl::SETTING_MAX_LATENCY_US => Err(EINVAL),
            ioctl::SETTING_REORDER_NS => match self.reorder_ns {
                None => Err(EOPNOTSUPP),
                Some(_) if value > REORDER_MAX_NS => Err(EINVAL),
                Some(_) => {
                    self.reorder_ns = Some(value);
                    self.core.set_reorder_ns(value);
                    Ok(())
                }
            },
            _ => self.source.as_mut().ok_or(EOPNOTSUPP)?.set(key, value),
        }
    }

    /// Sets the clock rate of a payload type, before the start.
    pub(crate) fn set_clock_rate(&mut self, value: u64) -> Result {
        if self.source.is_some() {
            return Err(EOPNOTSUPP);
        }
        let payload_type =
            u8::try_from(value >> 32).ok().filter(|payload_type| *payload_type < 128);
        self.core.set_clock_rate(payload_type.ok_or(EINVAL)?, value as u32);
        Ok(())
    }

    /// Changes how long an attached reliable reader may hold the ring full.
    pub(crate) fn set_stall_ns(&mut self, stall_ns: u64) {
        self.core.set_stall_ns(stall_ns);
    }

    /// Reads one.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        match key {
            ioctl::SETTING_MAX_LATENCY_US => Ok(self.max_latency_ns / 1_000),
            ioctl::SETTING_REORDER_NS => self.reorder_ns.ok_or(EOPNOTSUPP),
            _ => self.source.as_ref().ok_or(EOPNOTSUPP)?.get(key),
        }
    }
}

/// What a stream takes. Without legs of its own, everything.
pub(crate) fn config(
    header: &abi::Header,
    request: &ioctl::Create,
    stall_ns: u64,
) -> receive::Config {
    let mut clock_rates = [0; 128];
    for (payload_type, rate) in (0..128).zip(clock_rates.iter_mut()) {
        *rate = static_clock_rate(payload_type).unwrap_or(0);
    }
    let chosen = |flag: u64| request.flags & flag != 0;
    receive::Config {
        start: request.start,
        slot_stride: header.slot_stride,
        order: chosen(ioctl::CREATE_ORDERED)
            .then_some(Order { reorder_ns: request.reorder_ns, window: header.slot_count / 2 }),
        legs: header.legs_count as u8,
        filter: Filter {
            ssrc: chosen(ioctl::CREATE_SSRC).then_some(request.ssrc),
            payload_type: chosen(ioctl::CREATE_PAYLOAD_TYPE).then_some(request.payload_type as u8),
            sources: [None; LEGS_MAX],
            leave_others: chosen(ioctl::CREATE_LEAVE_OTHERS),
        },
        clock_rates,
        stall_ns,
        secret: [random(), random()],
    }
}
