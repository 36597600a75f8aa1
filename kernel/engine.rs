// SPDX-License-Identifier: MIT OR GPL-2.0

//! What runs under a stream's lock: taking packets in, publishing, accounting for readers, waking them.
//!
//! What does not live here: who may call what when ([`crate::stream`]), and the ring's rules
//! ([`crate::ring`]). Nothing here sleeps, allocates after the start, or trusts what users write: of
//! their memory only `tail` and `wake_at` are read, each once per run.

use kernel::alloc::flags::{__GFP_NOWARN, GFP_KERNEL_ACCOUNT};
use kernel::bindings;
use kernel::prelude::*;

use crate::clock::ClockPage;
use crate::memory::Memory;
use crate::primitives::{monotonic_ns, tai_ns, trace, WaitQueue};
use crate::ring::abi::{self, ioctl, status, ReaderStatus, StreamCounters, READERS_MAX};
use crate::ring::follow::Held;
use crate::ring::producer::Mode;
use crate::ring::receive::{self, Filter, Packet, ReceiveCore, Storage, Verdict};
use crate::ring::staging::Entry;
use crate::ring::table::{Flow, SourceEntry};
use crate::source::Source;

/// What readers are told by poll.
const READABLE: u32 = bindings::POLLIN | 0x40;

/// Storage of the ring core in kernel memory.
pub(crate) struct KernelMemory;

impl receive::Memory for KernelMemory {
    type Entries = KVVec<Entry>;
    type Slots = KVVec<u32>;
    type Sources = KVVec<SourceEntry>;
    type Index = KVVec<u16>;
    type Held = KVVec<Held>;
}

/// Allocates what a stream of this header keeps to itself.
pub(crate) fn storage(header: &abi::Header) -> Result<Storage<KernelMemory>> {
    let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
    let sources = header.sources_count as usize;
    let index = sources.saturating_mul(2).checked_next_power_of_two().ok_or(EINVAL)?;
    Ok(Storage {
        entries: KVVec::from_elem(Entry::EMPTY, header.slot_count as usize, flags)?,
        slots: KVVec::from_elem(0, header.slot_total as usize, flags)?,
        sources: KVVec::from_elem(SourceEntry::FREE, sources, flags)?,
        index: KVVec::from_elem(0, index, flags)?,
        held: KVVec::from_elem(Held::EMPTY, 1, flags)?,
    })
}

/// How long published packets have waited for a reader whose threshold is not reached.
#[derive(Clone, Copy)]
struct Patience {
    due_ns: Option<u64>,
    /// It ran out, and the reader has not taken everything since.
    over: bool,
}

/// A stream's engine.
pub(crate) struct Engine {
    id: u64,
    core: KBox<ReceiveCore<KernelMemory>>,
    source: KBox<dyn Source>,
    running: bool,
    stopped: bool,
    /// When the timer is due, if it is started.
    alarm_ns: Option<u64>,
    /// Bit per reader.
    readers: u32,
    patience: [Patience; READERS_MAX],
    max_latency_ns: u64,
    /// Bytes that the device made of the packet at each position.
    lens: KVVec<u32>,
    /// Every reader has released, or lost, what is before this position.
    consumed_to: u64,
    clock: ClockPage,
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
    dropped: u64,
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
        self.dropped = self.dropped.wrapping_add(1);
    }

    /// A burst is complete.
    pub(crate) fn burst_done(&mut self) {
        bump(&mut self.core.counters_mut().bursts, 1);
    }

    fn packet(&self, slot: &Slot, len: u32) -> Packet {
        Packet {
            slot: slot.0,
            len,
            truncated: false,
            coalesced: false,
            leg: 0,
            arrival_ns: self.now_ns,
            time_ns: self.tai_ns,
            flow: Flow::default(),
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
            self.dropped = self.dropped.wrapping_add(1);
            self.core.give_back(slot.0);
        }
    }
}

fn bump(counter: &mut u64, amount: u64) {
    *counter = counter.wrapping_add(amount);
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
        source: KBox<dyn Source>,
    ) -> Result<Self> {
        let storage = storage(header)?;
        let lens =
            KVVec::from_elem(0, header.slot_count as usize, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        Ok(Self {
            id: header.stream_id,
            consumed_to: config.start,
            core: KBox::new(ReceiveCore::new(config, storage), GFP_KERNEL_ACCOUNT)?,
            source,
            running: false,
            stopped: false,
            alarm_ns: None,
            readers: 0,
            patience: [Patience { due_ns: None, over: false }; READERS_MAX],
            max_latency_ns: 0,
            lens,
            clock: ClockPage::new(),
        })
    }

    /// Runs, from now on. Returns when [`service`](Self::service) is due.
    pub(crate) fn start(&mut self, memory: &Memory) -> Option<u64> {
        self.running = true;
        self.stopped = false;
        memory.live(status::STATE).store(abi::STATE_RUNNING);
        let due_ns = self.source.start(monotonic_ns());
        self.publish_figures(memory, monotonic_ns());
        due_ns
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

    /// Publishes what there is, and nothing more. Comes after [`halt`](Self::halt).
    pub(crate) fn stop(&mut self, memory: &Memory, waits: &[WaitQueue; READERS_MAX]) {
        let now_ns = monotonic_ns();
        self.stopped = true;
        self.alarm_ns = None;
        self.core.finish(&memory.ring());
        self.core.flush(&memory.ring(), now_ns);
        memory.live(status::STATE).store(abi::STATE_STOPPED);
        self.publish_figures(memory, now_ns);
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
        let now_ns = monotonic_ns();
        self.observe_readers(memory, now_ns);
        let before = self.core.head();
        let mut intake = Intake {
            core: &mut self.core,
            lens: &mut self.lens,
            memory,
            now_ns,
            tai_ns: tai_ns(),
            dropped: 0,
        };
        let source_ns = self.source.service(&mut intake, now_ns);
        let dropped = intake.dropped;
        let ring = memory.ring();
        self.core.expire(&ring, now_ns);
        let news = self.core.flush(&ring, now_ns);
        self.skip_lapped();
        let head = self.core.head();
        if news {
            trace::publish(self.id, head, head.wrapping_sub(before));
        }
        if dropped > 0 {
            trace::drop(self.id, head, dropped);
        }
        let patience_ns = self.wake_readers(memory, waits, now_ns);
        self.publish_figures(memory, now_ns);
        [source_ns, self.core.next_deadline(), patience_ns].into_iter().flatten().min()
    }

    fn reader_indices(&self) -> impl Iterator<Item = usize> {
        let readers = self.readers;
        (0..READERS_MAX).filter(move |reader| readers & bit(*reader) != 0)
    }

    /// Believes what is true of the readers' tails, each loaded once.
    fn observe_readers(&mut self, memory: &Memory, now_ns: u64) {
        let head = self.core.head();
        for reader in self.reader_indices() {
            let tail = memory.control(reader).position.load_acquire();
            self.core.readers_mut().observe_tail(reader, tail, head, now_ns);
        }
        self.core.refresh_limit();
        let slowest = self.slowest();
        let mut bytes = 0_u64;
        let mask = self.lens.len().wrapping_sub(1);
        while slowest.wrapping_sub(self.consumed_to) as i64 > 0 {
            let len = self.lens.get(self.consumed_to as usize & mask).copied().unwrap_or(0);
            bytes = bytes.wrapping_add(u64::from(len));
            self.consumed_to = self.consumed_to.wrapping_add(1);
        }
        bump(&mut self.core.counters_mut().bytes_consumed, bytes);
    }

    /// The tail of the slowest reader; without readers, what was consumed is not known to grow.
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
        slowest.unwrap_or(self.consumed_to)
    }

    /// What was taken from a reader was not consumed.
    fn skip_lapped(&mut self) {
        let slowest = if self.readers == 0 { self.core.head() } else { self.slowest() };
        if slowest.wrapping_sub(self.consumed_to) as i64 > 0 {
            self.consumed_to = slowest;
        }
    }

    /// Wakes readers whose threshold is reached or whose patience is over. Returns when the next one's
    /// will be.
    fn wake_readers(
        &mut self,
        memory: &Memory,
        waits: &[WaitQueue; READERS_MAX],
        now_ns: u64,
    ) -> Option<u64> {
        let head = self.core.head();
        let mut next_ns: Option<u64> = None;
        for reader in self.reader_indices() {
            let Some((patience, wait)) = self.patience.get_mut(reader).zip(waits.get(reader))
            else {
                continue;
            };
            // After the head was published, with a full fence between.
            let control = memory.control(reader);
            let tail = control.position.load();
            let wake_at = wake_position(tail, control.wake_at.load());
            if tail == head {
                *patience = Patience { due_ns: None, over: false };
                continue;
            }
            let mut wake = self.core.readers_mut().should_wake(reader, wake_at, head);
            if head.wrapping_sub(wake_at) as i64 >= 0 {
                patience.due_ns = None;
            } else if self.max_latency_ns > 0 && !patience.over {
                let due_ns =
                    *patience.due_ns.get_or_insert(now_ns.saturating_add(self.max_latency_ns));
                if due_ns <= now_ns {
                    *patience = Patience { due_ns: None, over: true };
                    wake = true;
                } else {
                    next_ns = Some(next_ns.map_or(due_ns, |next_ns| next_ns.min(due_ns)));
                }
            }
            if wake {
                bump(&mut self.core.counters_mut().wakeups, 1);
                trace::wake(self.id, reader as u32, head);
                wait.wake(READABLE);
            }
        }
        next_ns
    }

    /// What poll says to `reader`.
    pub(crate) fn ready(&mut self, memory: &Memory, reader: usize) -> u32 {
        let hangup = if self.stopped { bindings::POLLHUP } else { 0 };
        let head = memory.ring().head.load_acquire();
        let control = memory.control(reader);
        let tail = control.position.load();
        let Some(patience) = self.patience.get_mut(reader) else { return hangup };
        if head == tail {
            patience.over = false;
            return hangup;
        }
        let reached = head.wrapping_sub(wake_position(tail, control.wake_at.load())) as i64 >= 0;
        if reached || patience.over || self.stopped {
            hangup | READABLE
        } else {
            hangup
        }
    }

    /// Writes everything that the status pages say.
    fn publish_figures(&mut self, memory: &Memory, now_ns: u64) {
        let counters: StreamCounters = self.core.counters(now_ns);
        memory.counters().publish(&counters.to_words());
        memory.leg(0).publish(&self.core.leg_figures(0).to_words());
        while let Some((source, figures)) = self.core.take_dirty_source() {
            memory.source(source).publish(&figures.to_words());
        }
        for reader in self.reader_indices() {
            let status: ReaderStatus = self.core.readers().status(reader);
            memory.reader_status(reader).publish(&status.to_words());
        }
        self.clock.publish(memory);
    }

    /// A new reader, beginning at the next position. Returns its place and that position.
    pub(crate) fn add_reader(
        &mut self,
        memory: &Memory,
        mode: Mode,
        demotable: bool,
    ) -> Result<(usize, u64)> {
        let head = self.core.head();
        let now_ns = monotonic_ns();
        let readers = self.core.readers_mut();
        let reader = readers.add(mode, demotable, head, now_ns).ok_or(ENOSPC)?;
        self.readers |= bit(reader);
        if let Some(patience) = self.patience.get_mut(reader) {
            *patience = Patience { due_ns: None, over: false };
        }
        let control = memory.control(reader);
        control.position.store(head);
        control.wake_at.store(head.wrapping_add(1));
        self.core.refresh_limit();
        self.publish_figures(memory, now_ns);
        Ok((reader, head))
    }

    /// Forgets a reader.
    pub(crate) fn remove_reader(&mut self, memory: &Memory, reader: usize) {
        let now_ns = monotonic_ns();
        self.observe_readers(memory, now_ns);
        self.readers &= !bit(reader);
        self.core.readers_mut().remove(reader);
        self.core.refresh_limit();
        if self.readers == 0 {
            self.consumed_to = self.core.head();
        }
        memory.reader_status(reader).publish(&ReaderStatus::default().to_words());
        self.publish_figures(memory, now_ns);
    }

    /// The counters now.
    pub(crate) fn counters(&mut self, memory: &Memory) -> StreamCounters {
        let now_ns = monotonic_ns();
        self.observe_readers(memory, now_ns);
        self.publish_figures(memory, now_ns);
        self.core.counters(now_ns)
    }

    /// Sets the counters to zero.
    pub(crate) fn reset_counters(&mut self, memory: &Memory) -> Result {
        let now_ns = monotonic_ns();
        self.observe_readers(memory, now_ns);
        if self.core.counters(now_ns).staged != 0 {
            return Err(EBUSY);
        }
        *self.core.counters_mut() = StreamCounters::default();
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
            _ => self.source.set(key, value),
        }
    }

    /// Changes how long an attached reliable reader may hold the ring full.
    pub(crate) fn set_stall_ns(&mut self, stall_ns: u64) {
        self.core.set_stall_ns(stall_ns);
    }

    /// Reads one.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        match key {
            ioctl::SETTING_MAX_LATENCY_US => Ok(self.max_latency_ns / 1_000),
            _ => self.source.get(key),
        }
    }
}

/// What a simulated stream takes: everything.
pub(crate) fn config(slot_stride: u32, start: u64, stall_ns: u64) -> receive::Config {
    receive::Config {
        start,
        slot_stride,
        order: None,
        legs: 1,
        filter: Filter::default(),
        clock_rates: [0; 128],
        stall_ns,
    }
}
