//! The receive side of the embedded engine: from sockets into the ring.
//!
//! What lives here: one stream's loop body. [`ReceiveStream`] gives the sockets free slots, shows
//! what came to the ring core, publishes positions and figures, and decides whom to wake and when it
//! wants to be called again. What does not: threads and waiting (the engine's context), the memory
//! (whoever implements [`ReceiveMemory`]), and every decision about packets
//! ([`rtp_mgr_ring::receive`]).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rtp_mgr_ring::abi::{READERS_MAX, ReaderStatus};
use rtp_mgr_ring::figures::FigureBlocks;
use rtp_mgr_ring::follow::Held;
use rtp_mgr_ring::header::{self, Kind};
use rtp_mgr_ring::producer::Mode;
use rtp_mgr_ring::receive::{Config, Memory, Packet, ReceiveCore, Storage, Verdict};
use rtp_mgr_ring::staging::Entry;
use rtp_mgr_ring::table::{Flow, SourceEntry};
use rtp_mgr_ring::view::{Block, ControlView, RingView};
use rustix::thread::nanosleep;
use rustix::time::Timespec;

use super::meter::Meter;
use super::simulate::{Consumption, Simulator, Sink};
use crate::clock::{self, Arrival, Clock};
use crate::net::{MessageInfo, RECEIVE_SEGMENTS_MAX, RecvBatch, SlotMemory};
use crate::rtcp::Compound;
use crate::side_channel::SidePacket;
use crate::socket::ReceiveSocket;

/// Datagrams that one receive call takes at most.
const MESSAGES_MAX: usize = 64;
/// Slots that the network is given at most at a time.
pub(crate) const NETWORK_SLOTS: usize = 1_024;
/// Receive calls for one leg before the others get their turn.
const ROUNDS_MAX: usize = 8;
/// Free positions below which the readers' tails are looked at before every packet.
const ROOM_LOW: u64 = 64;
/// Longest time that the sockets are drained at the end.
const DRAIN_NS: u64 = 500_000_000;
/// How often the sockets' drop counters and the clocks are looked at.
const HOUSEKEEPING_NS: u64 = 500_000_000;

/// Shared memory of a receive stream, as the engine writes it.
pub(crate) trait ReceiveMemory {
    /// Positions and descriptors.
    fn ring(&self) -> RingView<'_>;
    /// The figures.
    fn figures(&self) -> &impl FigureBlocks;
    /// Status page of a reader.
    fn reader_status(&self, reader: usize) -> Block<'_>;
    /// Tells users about the clock: TAI - UTC in seconds, whether it is configured, steps so far.
    fn set_clock(&self, tai_offset_s: i32, valid: bool, generation: u64);
    /// Tells users that nothing more will be published.
    fn set_stopped(&self);
}

/// One reader, as the engine sees it.
pub(crate) trait ReaderPort {
    /// Its control page: hostile memory.
    fn control(&self) -> ControlView<'_>;
    /// Wakes it. Never blocks; a reader that does not listen is its own problem.
    fn wake(&self);
}

/// Where everything goes that is not RTP.
pub(crate) trait SideSink {
    /// One datagram. Never blocks.
    fn pass(&mut self, packet: SidePacket);
}

/// Storage of the ring core on the heap.
#[derive(Debug)]
pub(crate) struct Heap;

impl Memory for Heap {
    type Entries = Box<[Entry]>;
    type Slots = Box<[u32]>;
    type Sources = Box<[SourceEntry]>;
    type Index = Box<[u16]>;
    type Held = Box<[Held]>;
}

/// Packets that may be held for a source that is not proven yet.
pub(crate) fn held_max(slot_count: usize) -> usize {
    slot_count / 2
}

/// Slots that a ring of `slot_count` positions needs: those in the ring, those held, those that the
/// network has.
pub(crate) fn slots_needed(slot_count: usize) -> usize {
    slot_count + held_max(slot_count) + NETWORK_SLOTS + MESSAGES_MAX
}

fn storage(slot_count: usize, slot_total: usize, sources: usize) -> Storage<Heap> {
    Storage {
        entries: vec![Entry::EMPTY; slot_count].into(),
        slots: vec![0; slot_total].into(),
        sources: vec![SourceEntry::FREE; sources].into(),
        index: vec![0; (sources * 2).next_power_of_two()].into(),
        held: vec![Held::EMPTY; held_max(slot_count)].into(),
    }
}

/// What a [`ReceiveStream`] is made of.
pub(crate) struct Parts<M, S> {
    pub memory: M,
    pub slots: SlotMemory,
    pub slot_count: usize,
    pub sources: usize,
    pub config: Config,
    pub legs: Vec<LegSockets>,
    pub side: S,
    /// How long a partly filled batch may wait for its reader's threshold.
    pub max_latency_ns: u64,
}

/// The sockets of a leg.
pub(crate) struct LegSockets {
    /// Shared with whoever waits in a receive call.
    pub rtp: Arc<ReceiveSocket>,
    /// RTCP on a port of its own.
    pub rtcp: Option<ReceiveSocket>,
}

struct Leg {
    sockets: LegSockets,
    /// Drop counts of the sockets at the last look (32 bits, wrapping).
    drops: u32,
    /// While the socket has more than was taken: arrival of the latest packet that was.
    behind_ns: Option<u64>,
}

struct Reader<P> {
    port: P,
    /// Since when something new waits below its threshold.
    waiting_since: Option<u64>,
}

/// What waits for packets in a receive call, without the stream: nobody else receives meanwhile.
pub(crate) struct Lent {
    batch: Box<RecvBatch>,
    socket: Arc<ReceiveSocket>,
}

impl Lent {
    /// Lets packets come for so long. Returns how long that was, nanoseconds.
    pub(crate) fn rest(&self, rest: Duration) -> u64 {
        let begin = clock::monotonic_ns();
        if let Ok(rest) = Timespec::try_from(rest) {
            // A signal ends it early.
            let _ = nanosleep(&rest);
        }
        clock::monotonic_ns().saturating_sub(begin)
    }

    /// Waits for packets as long as the socket does ([`ReceiveSocket::patience`]) and takes what is there. Returns
    /// the number of datagrams.
    ///
    /// # Errors
    /// What the socket reports; the stream goes on.
    pub(crate) fn wait(&mut self) -> io::Result<usize> {
        self.batch.wait(&*self.socket)
    }
}

/// A receive stream of the embedded engine.
pub(crate) struct ReceiveStream<M, P, S> {
    memory: M,
    core: ReceiveCore<Heap>,
    /// `None` while it is [lent](Self::lend).
    batch: Option<Box<RecvBatch>>,
    /// For RTCP sockets, whose packets stay out of the ring.
    side_batch: RecvBatch,
    legs: Vec<Leg>,
    readers: [Option<Reader<P>>; READERS_MAX],
    side: S,
    clock: Clock,
    max_latency_ns: u64,
    housekeeping_ns: u64,
    slot_count: usize,
    /// Datagrams that the sockets dropped, as far as is known.
    external_drops: u64,
    meter: Meter,
    /// When the last packet arrived, and the one before it.
    arrivals_ns: [u64; 2],
    /// What stands in for sockets, and what became of its bytes.
    simulated: Option<(Simulator, Consumption)>,
}

impl<M: ReceiveMemory, P: ReaderPort, S: SideSink> ReceiveStream<M, P, S> {
    pub(crate) fn new(parts: Parts<M, S>) -> Self {
        let slot_total = parts.slots.slots() as usize;
        let side_slots = SlotMemory::private(MESSAGES_MAX as u32, 2_048);
        let mut side_batch = RecvBatch::new(side_slots, MESSAGES_MAX, 1);
        let mut next = 0..MESSAGES_MAX as u32;
        side_batch.fill(|| next.next());
        let legs = parts.legs.into_iter().map(|sockets| Leg {
            drops: sockets.rtp.drops().unwrap_or(0),
            behind_ns: None,
            sockets,
        });
        let mut stream = Self {
            core: ReceiveCore::new(
                parts.config,
                storage(parts.slot_count, slot_total, parts.sources),
            ),
            batch: Some(Box::new(RecvBatch::new(parts.slots, MESSAGES_MAX, RECEIVE_SEGMENTS_MAX))),
            side_batch,
            legs: legs.collect(),
            readers: [const { None }; READERS_MAX],
            side: parts.side,
            clock: Clock::new(),
            max_latency_ns: parts.max_latency_ns,
            housekeeping_ns: 0,
            slot_count: parts.slot_count,
            external_drops: 0,
            meter: Meter::default(),
            arrivals_ns: [0; 2],
            simulated: None,
            memory: parts.memory,
        };
        for (leg, state) in stream.legs.iter().enumerate() {
            if let Some(figures) = stream.core.leg_figures_mut(leg) {
                figures.socket_buffer = state.sockets.rtp.buffer().granted as u64;
            }
        }
        stream.tell_clock();
        stream.publish_figures(clock::monotonic_ns());
        stream
    }

    /// Number of legs.
    pub(crate) fn legs(&self) -> usize {
        self.legs.len()
    }

    /// The RTP socket of `leg`, to wait on.
    pub(crate) fn rtp_fd(&self, leg: usize) -> Option<BorrowedFd<'_>> {
        self.legs.get(leg).map(|leg| leg.sockets.rtp.as_fd())
    }

    /// The RTCP socket of `leg`, to wait on.
    pub(crate) fn rtcp_fd(&self, leg: usize) -> Option<BorrowedFd<'_>> {
        self.legs.get(leg)?.sockets.rtcp.as_ref().map(AsFd::as_fd)
    }

    /// Whether there is one reader, and it is one that reads a stream of sockets.
    pub(crate) fn has_one_reader(&self) -> bool {
        self.simulated.is_none() && self.core.readers().count() == 1
    }

    /// Positions of the ring.
    pub(crate) fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// Next position to publish.
    pub(crate) fn head(&self) -> u64 {
        self.core.head()
    }

    /// Packets per second.
    pub(crate) fn rate(&self) -> u64 {
        self.meter.rate()
    }

    /// Packets taken from the sockets so far.
    pub(crate) fn taken(&self) -> u64 {
        self.meter.total()
    }

    /// For how long the sockets hold what comes at the rate of the last moments, nanoseconds.
    pub(crate) fn hold_ns(&self) -> u64 {
        let buffers = self.legs.iter().map(|leg| leg.sockets.rtp.buffer().granted as u64);
        // Each leg has its own share of what comes.
        let legs = self.legs.len() as u64;
        buffers.min().map_or(u64::MAX, |buffer| self.meter.hold_ns(buffer.saturating_mul(legs)))
    }

    /// Whether packets were coming less than `gap_ns` after each other, the last at most as long before `now_ns`.
    pub(crate) fn is_pouring(&self, gap_ns: u64, now_ns: u64) -> bool {
        let [latest_ns, before_ns] = self.arrivals_ns;
        now_ns.saturating_sub(latest_ns) < gap_ns && latest_ns.saturating_sub(before_ns) < gap_ns
    }

    /// When the last packet arrived, CLOCK_MONOTONIC in nanoseconds.
    pub(crate) fn latest_arrival_ns(&self) -> u64 {
        self.arrivals_ns[0]
    }

    /// Datagrams that the sockets dropped, as far as is known.
    pub(crate) fn external_drops(&self) -> u64 {
        self.external_drops
    }

    /// The stream's decisions, for settings that change while it runs.
    pub(crate) fn core(&mut self) -> &mut ReceiveCore<Heap> {
        &mut self.core
    }

    /// Adds a reader that begins at the next position to be published. `None`: there is no room.
    pub(crate) fn add_reader(&mut self, mode: Mode, demotable: bool, port: P) -> Option<usize> {
        let now = clock::monotonic_ns();
        let head = self.core.head();
        let reader = self.core.readers_mut().add(mode, demotable, head, now)?;
        self.core.refresh_limit();
        port.control().position.store(head);
        // No wake-up is asked for yet: as far away as can be.
        port.control().wake_at.store(head.wrapping_add(i64::MAX as u64));
        self.readers[reader] = Some(Reader { port, waiting_since: None });
        self.publish_reader(reader);
        self.publish_figures(now);
        Some(reader)
    }

    /// Forgets a reader. Returns its port.
    pub(crate) fn remove_reader(&mut self, reader: usize) -> Option<P> {
        let removed = self.readers.get_mut(reader)?.take()?;
        self.core.readers_mut().remove(reader);
        self.core.refresh_limit();
        self.memory.reader_status(reader).publish(&ReaderStatus::default().to_words());
        self.publish_figures(clock::monotonic_ns());
        Some(removed.port)
    }

    /// Takes what the RTP socket of `leg` has. Returns whether there may be more.
    ///
    /// # Errors
    /// What the socket reports; the stream goes on.
    pub(crate) fn receive(&mut self, leg: usize) -> io::Result<bool> {
        for _ in 0..ROUNDS_MAX {
            if !self.receive_round(leg, NETWORK_SLOTS)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes from the RTP socket of `leg` what half of the ring can hold, for a reader that has read
    /// everything and reads nothing meanwhile. Returns whether there may be more.
    ///
    /// # Errors
    /// What the socket reports; the stream goes on.
    pub(crate) fn receive_half(&mut self, leg: usize) -> io::Result<bool> {
        self.receive_round(leg, self.half())
    }

    /// How long a receive call on the stream's socket waits at most. `None`: it does not wait, or there are
    /// two sockets to wait for.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self.legs.as_slice() {
            [leg] => leg.sockets.rtp.patience(),
            _ => None,
        }
    }

    /// Hands out what takes packets from the socket of `leg`, for the reader that
    /// [`receive_half`](Self::receive_half) is for. Until it is [back](Self::take_back) nothing is received.
    pub(crate) fn lend(&mut self, leg: usize) -> Option<Lent> {
        let socket = self.legs.get(leg)?.sockets.rtp.clone();
        let mut batch = self.batch.take()?;
        self.prepare(&mut batch, self.half());
        Some(Lent { batch, socket })
    }

    /// Takes over what was received meanwhile, until `now_ns`. Returns whether the socket had as much as was asked
    /// for.
    pub(crate) fn take_back(
        &mut self,
        leg: usize,
        lent: Lent,
        received: usize,
        now_ns: u64,
    ) -> bool {
        self.batch = Some(lent.batch);
        self.take_received(leg, received, now_ns)
    }

    /// One receive call and what it brought, in a shape of at most `slots_max` slots. Returns whether
    /// the socket had as much as was asked for.
    fn receive_round(&mut self, leg: usize, slots_max: usize) -> io::Result<bool> {
        self.learn_tails(clock::monotonic_ns());
        if leg >= self.legs.len() {
            return Ok(false);
        }
        // Whoever has it receives.
        let Some(mut batch) = self.batch.take() else { return Ok(false) };
        self.prepare(&mut batch, slots_max);
        let state = &mut self.legs[leg];
        state.behind_ns = None;
        let received = batch.receive(&*state.sockets.rtp);
        self.batch = Some(batch);
        Ok(self.take_received(leg, received?, clock::monotonic_ns()))
    }

    /// Gives the batch free slots, in a shape of at most `slots_max`.
    fn prepare(&mut self, batch: &mut RecvBatch, slots_max: usize) {
        let core = &mut self.core;
        batch.adapt(slots_max);
        batch.release(false, |slot| core.give_back(slot));
        batch.fill(|| take_slot(core));
    }

    /// What a receive call brought. Returns whether the socket had as much as was asked for.
    fn take_received(&mut self, leg: usize, received: usize, now_ns: u64) -> bool {
        let Some(batch) = &self.batch else { return false };
        let (messages, _, _) = batch.present_shape();
        if received == 0 {
            return false;
        }
        let counters = self.core.counters_mut();
        counters.socket_calls = counters.socket_calls.wrapping_add(1);
        let latest_ns = self.place(leg, now_ns);
        let more = received == messages;
        self.legs[leg].behind_ns = more.then_some(latest_ns);
        self.flush(now_ns);
        more
    }

    /// What a reader that has read everything, and reads nothing meanwhile, has room for.
    fn half(&self) -> usize {
        (self.slot_count / 2).min(NETWORK_SLOTS)
    }

    /// Shows the packets of the batch to the core. Returns when the last of them arrived.
    fn place(&mut self, leg: usize, now_ns: u64) -> u64 {
        let mut latest_ns = now_ns;
        let (Some(state), Some(batch)) = (self.legs.get(leg), &mut self.batch) else {
            return latest_ns;
        };
        let local = state.sockets.rtp.local_addr();
        let known = state.sockets.rtp.destination();
        let mut drops = state.drops;
        let mut coalesced = 0;
        let (mut packets, mut bytes) = (0, 0);
        let mut byes = Vec::new();
        loop {
            if self.core.room().is_some_and(|room| room < ROOM_LOW) {
                learn_tails(&mut self.core, &mut self.readers, now_ns);
            }
            let core = &mut self.core;
            let Some(arrived) = batch.next_packet(|| take_slot(core)) else { break };
            let info = &arrived.info;
            coalesced += u64::from(info.coalesced);
            packets += 1;
            bytes += arrived.len as u64;
            if info.drops != 0 {
                drops = info.drops;
            }
            let arrival = self.clock.arrival(info.realtime_ns.unwrap_or(0), now_ns);
            latest_ns = arrival.monotonic_ns;
            // Coalesced packets share a time: that says nothing of how they come.
            let before_ns = if info.coalesced { 0 } else { self.arrivals_ns[0] };
            self.arrivals_ns = [latest_ns, before_ns];
            let verdict = match arrived.slot {
                None => self.core.without_slot(arrived.bytes),
                Some(slot) => {
                    let destination = info.destination.or(known).unwrap_or(local.ip());
                    let packet = Packet {
                        slot,
                        len: u32::try_from(arrived.len).unwrap_or(u32::MAX),
                        truncated: info.truncated || arrived.bytes.len() < arrived.len,
                        coalesced: info.coalesced,
                        leg: leg as u8,
                        arrival_ns: arrival.monotonic_ns,
                        time_ns: arrival.tai_ns,
                        flow: &flow(info, destination, local.port()),
                    };
                    self.core.packet(&self.memory.ring(), &packet, arrived.bytes)
                }
            };
            if let Verdict::Passed(kind) = verdict {
                if kind == Kind::Rtcp {
                    let compound = Compound::parse(arrived.whole);
                    let ssrcs = compound.into_iter().flat_map(|compound| compound.byes);
                    byes.extend(ssrcs.map(|ssrc| (ssrc, arrival.monotonic_ns)));
                }
                self.side.pass(SidePacket {
                    kind,
                    leg: leg as u8,
                    rtcp_port: false,
                    from: info.from,
                    time_ns: arrival.tai_ns,
                    bytes: arrived.whole.into(),
                });
            }
            if verdict == Verdict::Kept {
                batch.keep();
            }
        }
        self.meter.count(packets, bytes, now_ns);
        let counters = self.core.counters_mut();
        counters.coalesced = counters.coalesced.wrapping_add(coalesced);
        for (ssrc, arrival_ns) in byes {
            self.core.bye(&self.memory.ring(), ssrc, arrival_ns, now_ns);
        }
        self.count_drops(leg, drops);
        latest_ns
    }

    /// Takes what the RTCP socket of `leg` has, after all RTP that came before it.
    ///
    /// # Errors
    /// What the sockets report; the stream goes on.
    pub(crate) fn receive_rtcp(&mut self, leg: usize) -> io::Result<()> {
        if self.batch.is_none() {
            // What came before it is not known yet.
            return Ok(());
        }
        for leg in 0..self.legs.len() {
            self.receive(leg)?;
        }
        let Some(socket) = self.legs.get(leg).and_then(|leg| leg.sockets.rtcp.as_ref()) else {
            return Ok(());
        };
        let now = clock::monotonic_ns();
        self.side_batch.fill(|| None);
        self.side_batch.receive(socket)?;
        while let Some(arrived) = self.side_batch.next_packet(|| None) {
            // RTP has no business on this port.
            let kind = match header::classify(arrived.bytes) {
                Kind::Rtp => Kind::Other,
                kind => kind,
            };
            self.core.passed(kind);
            let compound = Compound::parse(arrived.whole).filter(|_| kind == Kind::Rtcp);
            let arrival = self.clock.arrival(arrived.info.realtime_ns.unwrap_or(0), now);
            for ssrc in compound.into_iter().flat_map(|compound| compound.byes) {
                self.core.bye(&self.memory.ring(), ssrc, arrival.monotonic_ns, now);
            }
            self.side.pass(SidePacket {
                kind,
                leg: leg as u8,
                rtcp_port: true,
                from: arrived.info.from,
                time_ns: arrival.tai_ns,
                bytes: arrived.whole.into(),
            });
        }
        self.flush(now);
        Ok(())
    }

    /// Feeds the stream by a simulated source. `start` is the ring's first position.
    pub(crate) fn simulate(&mut self, simulator: Simulator, slot_count: usize, start: u64) {
        self.simulated = Some((simulator, Consumption::new(slot_count, start)));
    }

    /// Whether a simulated source stands in for sockets.
    pub(crate) fn is_simulated(&self) -> bool {
        self.simulated.is_some()
    }

    /// After the end: counts what was released since.
    pub(crate) fn look_back(&mut self) {
        let now = clock::monotonic_ns();
        self.learn_tails(now);
        self.count_consumed();
        self.publish_figures(now);
    }

    /// The simulated source.
    pub(crate) fn simulator(&mut self) -> Option<&mut Simulator> {
        self.simulated.as_mut().map(|(simulator, _)| simulator)
    }

    /// Counts what every reader has released of the simulated source's bytes.
    fn count_consumed(&mut self) {
        let Some((_, consumption)) = &mut self.simulated else { return };
        if let Some(tail) = slowest_tail(&self.core) {
            let bytes = consumption.release(tail);
            let counters = self.core.counters_mut();
            counters.bytes_consumed = counters.bytes_consumed.wrapping_add(bytes);
        }
    }

    /// Produces what is due of the simulated source.
    fn produce(&mut self, now_ns: u64) {
        self.count_consumed();
        let Some((simulator, consumption)) = &mut self.simulated else { return };
        let arrival =
            Arrival { monotonic_ns: now_ns, tai_ns: self.clock.tai_from_monotonic(now_ns) };
        let memory = &self.memory;
        simulator.run(&mut Produced { core: &mut self.core, memory, consumption, arrival }, now_ns);
    }

    /// Does what is due at this time.
    pub(crate) fn tick(&mut self) {
        let now = clock::monotonic_ns();
        self.learn_tails(now);
        self.produce(now);
        if now.saturating_sub(self.housekeeping_ns) >= HOUSEKEEPING_NS {
            self.housekeeping_ns = now;
            self.look_at_sockets();
            if self.clock.refresh().is_some() {
                self.tell_clock();
            }
        }
        let heard_ns = self.hear(now);
        self.core.expire(&self.memory.ring(), heard_ns);
        self.flush(now);
    }

    /// Until when it is known what has come: now, unless a socket has more than was taken so far.
    /// What came in time but was not read yet is no loss.
    fn hear(&mut self, now_ns: u64) -> u64 {
        if self.core.next_deadline().is_none_or(|due| due > now_ns) {
            return now_ns;
        }
        for leg in 0..self.legs.len() {
            if let Err(error) = self.receive(leg) {
                tracing::warn!(%error, leg, "receive");
            }
        }
        self.legs.iter().filter_map(|leg| leg.behind_ns).min().unwrap_or(now_ns).min(now_ns)
    }

    /// When [`tick`](Self::tick) wants to be called, CLOCK_MONOTONIC in nanoseconds.
    pub(crate) fn deadline(&mut self) -> u64 {
        let waiting = self.readers.iter().flatten().filter_map(|reader| {
            reader.waiting_since.map(|since| since.saturating_add(self.max_latency_ns))
        });
        let housekeeping = self.housekeeping_ns.saturating_add(HOUSEKEEPING_NS);
        let simulated = self.simulated.as_ref().map(|(simulator, _)| simulator.due_ns());
        let all = waiting.chain(self.core.next_deadline()).chain(simulated).chain([housekeeping]);
        all.min().unwrap_or(housekeeping)
    }

    /// Ends the stream: takes what the sockets still hold, gives up gaps, wakes everybody.
    pub(crate) fn stop(&mut self) {
        // In bounded time: a sender that never pauses does not keep the stream open.
        let until = clock::monotonic_ns().saturating_add(DRAIN_NS);
        for leg in 0..self.legs.len() {
            while self.receive(leg).unwrap_or(false) && clock::monotonic_ns() < until {}
            // Its error is that of a socket that is closed next.
            let _ = self.receive_rtcp(leg);
        }
        self.look_at_sockets();
        let now = clock::monotonic_ns();
        self.learn_tails(now);
        self.count_consumed();
        self.core.finish(&self.memory.ring());
        self.flush(now);
        self.memory.set_stopped();
        self.wake_all();
    }

    /// Wakes every reader, whatever it waits for.
    pub(crate) fn wake_all(&self) {
        self.readers.iter().flatten().for_each(|reader| reader.port.wake());
    }

    /// Takes over what the readers say of themselves.
    pub(crate) fn learn_tails(&mut self, now_ns: u64) {
        learn_tails(&mut self.core, &mut self.readers, now_ns);
    }

    /// Publishes positions and figures, and wakes whom they concern.
    pub(crate) fn flush(&mut self, now_ns: u64) {
        // The figures first: they are never behind what a reader has.
        self.core.tally();
        self.publish_figures(now_ns);
        let demoted = self.core.counted().readers_demoted;
        let news = self.core.flush(&self.memory.ring(), now_ns);
        let mut wakeups = 0;
        for at in 0..READERS_MAX {
            wakeups += u64::from(self.notify(at, news, now_ns));
        }
        if wakeups > 0 || self.core.counted().readers_demoted != demoted {
            let counters = self.core.counters_mut();
            counters.wakeups = counters.wakeups.wrapping_add(wakeups);
            self.publish_figures(now_ns);
        }
    }

    /// Wakes a reader if its threshold is reached or something has waited for too long.
    fn notify(&mut self, at: usize, news: bool, now_ns: u64) -> bool {
        let Some(Some(reader)) = self.readers.get_mut(at) else { return false };
        let wake_at = reader.port.control().wake_at.load();
        let mut wake = self.core.should_wake(at, wake_at);
        if !wake && news {
            reader.waiting_since.get_or_insert(now_ns);
        }
        let overdue = reader
            .waiting_since
            .is_some_and(|since| now_ns.saturating_sub(since) >= self.max_latency_ns);
        wake |= overdue;
        if wake {
            reader.waiting_since = None;
            reader.port.wake();
        }
        self.publish_reader(at);
        wake
    }

    fn publish_reader(&self, at: usize) {
        let status = self.core.readers().status(at);
        self.memory.reader_status(at).publish(&status.to_words());
    }

    fn publish_figures(&mut self, now_ns: u64) {
        self.core.publish_figures(self.memory.figures(), now_ns);
    }

    fn look_at_sockets(&mut self) {
        for leg in 0..self.legs.len() {
            if let Some(drops) = self.legs[leg].sockets.rtp.drops() {
                self.count_drops(leg, drops);
            }
        }
    }

    /// `drops` is a socket's count modulo 2^32; an older one than known changes nothing.
    fn count_drops(&mut self, leg: usize, drops: u32) {
        let Some(state) = self.legs.get_mut(leg) else { return };
        let new = drops.wrapping_sub(state.drops);
        if new == 0 || new > u32::MAX / 2 {
            return;
        }
        state.drops = drops;
        self.external_drops = self.external_drops.wrapping_add(new.into());
        let counters = self.core.counters_mut();
        counters.external_drops = counters.external_drops.wrapping_add(new.into());
        if let Some(figures) = self.core.leg_figures_mut(leg) {
            figures.external_drops = figures.external_drops.wrapping_add(new.into());
        }
    }

    fn tell_clock(&self) {
        let tai = self.clock.tai_offset();
        self.memory.set_clock(tai.seconds, tai.valid, self.clock.generation());
    }
}

/// The ring, as a simulated source fills it.
struct Produced<'a, M> {
    core: &'a mut ReceiveCore<Heap>,
    memory: &'a M,
    consumption: &'a mut Consumption,
    arrival: Arrival,
}

impl<M: ReceiveMemory> Sink for Produced<'_, M> {
    fn slot(&mut self) -> Option<u32> {
        take_slot(self.core)
    }

    fn produced(&mut self, slot: u32, bytes: &[u8], number: u64, pattern_len: usize, raw: bool) {
        let packet = Packet {
            slot,
            len: bytes.len() as u32,
            truncated: false,
            coalesced: false,
            leg: 0,
            arrival_ns: self.arrival.monotonic_ns,
            time_ns: self.arrival.tai_ns,
            flow: &Flow::NONE,
        };
        let view = self.memory.ring();
        let verdict = match raw {
            true => self.core.raw(&view, &packet, number),
            false => self.core.packet(&view, &packet, bytes),
        };
        let len = pattern_len as u64;
        let counters = self.core.counters_mut();
        if verdict == Verdict::Kept {
            counters.bytes_produced = counters.bytes_produced.wrapping_add(len);
            self.consumption.push(pattern_len as u32);
        } else {
            counters.bytes_overflowed = counters.bytes_overflowed.wrapping_add(len);
            self.core.give_back(slot);
        }
    }

    fn burst(&mut self) {
        let counters = self.core.counters_mut();
        counters.bursts = counters.bursts.wrapping_add(1);
    }
}

/// The tail of the slowest reader; `None` without readers.
fn slowest_tail(core: &ReceiveCore<Heap>) -> Option<u64> {
    let readers = (0..READERS_MAX).map(|at| core.readers().status(at));
    let tails = readers.filter(|status| status.active != 0).map(|status| status.tail);
    let head = core.head();
    tails.max_by_key(|tail| head.wrapping_sub(*tail))
}

/// Takes over what the readers say of themselves.
fn learn_tails<P: ReaderPort>(
    core: &mut ReceiveCore<Heap>,
    readers: &mut [Option<Reader<P>>; READERS_MAX],
    now_ns: u64,
) {
    let head = core.head();
    for (at, reader) in readers.iter_mut().enumerate() {
        let Some(reader) = reader else { continue };
        let tail = reader.port.control().position.load_acquire();
        core.observe_tail(at, tail, now_ns);
        if tail == head {
            reader.waiting_since = None;
        }
    }
    core.refresh_limit();
}

fn take_slot(core: &mut ReceiveCore<Heap>) -> Option<u32> {
    let mut slot = [0];
    (core.take_slots(&mut slot) == 1).then_some(slot[0])
}

/// Addresses in the form of the source table.
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn flow(info: &MessageInfo, destination: IpAddr, port: u16) -> Flow {
    Flow {
        family: if info.from.is_ipv4() { 4 } else { 6 },
        source: address_bytes(info.from.ip()),
        destination: address_bytes(destination),
        source_port: info.from.port(),
        destination_port: port,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use rtp_mgr_ring::abi::{
        DESC_WORDS, LEGS_MAX, LegFigures, SEQUENCE_WORDS, SourceFigures, StreamCounters,
    };
    use rtp_mgr_ring::atomic::Word;
    use rtp_mgr_ring::receive::Filter;
    use rtp_mgr_ring::staging::Order;

    use super::*;
    use crate::socket::ReceiveOptions;

    const POSITIONS: usize = 256;
    const SOURCES: usize = 16;

    struct Pages {
        claim: Word,
        head: Word,
        descriptors: Vec<[Word; DESC_WORDS]>,
        counters: Vec<Word>,
        legs: Vec<Vec<Word>>,
        sources: Vec<Vec<Word>>,
        readers: Vec<Vec<Word>>,
    }

    fn words(len: usize) -> Vec<Word> {
        (0..len).map(|_| Word::new(0)).collect()
    }

    impl Pages {
        fn new() -> Arc<Self> {
            let block = |len: usize| words(SEQUENCE_WORDS + len);
            Arc::new(Self {
                claim: Word::new(0),
                head: Word::new(0),
                descriptors: (0..POSITIONS)
                    .map(|_| std::array::from_fn(|_| Word::new(0)))
                    .collect(),
                counters: block(StreamCounters::WORDS),
                legs: (0..LEGS_MAX).map(|_| block(LegFigures::WORDS)).collect(),
                sources: (0..SOURCES).map(|_| block(SourceFigures::WORDS)).collect(),
                readers: (0..READERS_MAX).map(|_| block(ReaderStatus::WORDS)).collect(),
            })
        }

        fn snapshot(&self) -> StreamCounters {
            let mut values = [0; StreamCounters::WORDS];
            assert!(Block { words: &self.counters }.snapshot(&mut values, 1));
            StreamCounters::from_words(values)
        }
    }

    impl FigureBlocks for Pages {
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

    impl ReceiveMemory for Arc<Pages> {
        fn ring(&self) -> RingView<'_> {
            RingView { claim: &self.claim, head: &self.head, descriptors: &self.descriptors }
        }

        fn figures(&self) -> &impl FigureBlocks {
            &**self
        }

        fn reader_status(&self, reader: usize) -> Block<'_> {
            Block { words: &self.readers[reader] }
        }

        fn set_clock(&self, _: i32, _: bool, _: u64) {}

        fn set_stopped(&self) {}
    }

    struct Port {
        tail: Word,
        wake_at: Word,
        woken: AtomicU64,
    }

    impl ReaderPort for Arc<Port> {
        fn control(&self) -> ControlView<'_> {
            ControlView { position: &self.tail, wake_at: &self.wake_at }
        }

        fn wake(&self) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Default)]
    struct Side(Arc<Mutex<Vec<Passed>>>);

    type Passed = (Kind, Vec<u8>);

    impl SideSink for Side {
        fn pass(&mut self, packet: SidePacket) {
            let passed = (packet.kind, packet.bytes.to_vec());
            self.0.lock().expect("no panic elsewhere").push(passed);
        }
    }

    struct Rig {
        stream: ReceiveStream<Arc<Pages>, Arc<Port>, Side>,
        pages: Arc<Pages>,
        side: Side,
        sender: UdpSocket,
    }

    impl Rig {
        fn new(gro: bool, order: Option<Order>) -> Self {
            let leg = "127.0.0.1:0".parse().expect("a leg");
            let options = ReceiveOptions { gro, ..ReceiveOptions::default() };
            let rtp = ReceiveSocket::open(&leg, &options).expect("a socket");
            let rtcp = ReceiveSocket::open(&leg, &options).expect("a socket");
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
            sender.connect(rtp.local_addr()).expect("connected");
            let pages = Pages::new();
            let side = Side::default();
            let stream = ReceiveStream::new(Parts {
                memory: pages.clone(),
                slots: SlotMemory::private(slots_needed(POSITIONS) as u32, 2_048),
                slot_count: POSITIONS,
                sources: SOURCES,
                config: Config {
                    start: 0,
                    slot_stride: 2_048,
                    order,
                    legs: 1,
                    filter: Filter::default(),
                    clock_rates: [0; 128],
                    stall_ns: u64::MAX,
                    secret: [1, 2],
                },
                legs: vec![LegSockets { rtp: Arc::new(rtp), rtcp: Some(rtcp) }],
                side: side.clone(),
                max_latency_ns: 10_000_000,
            });
            Self { stream, pages, side, sender }
        }

        fn send(&self, sequence: u16, payload_len: usize) {
            let mut bytes = vec![sequence as u8; 12 + payload_len];
            header::build(&mut bytes, false, 96, sequence, 0, 7).expect("room for a header");
            self.sender.send(&bytes).expect("loopback takes it");
        }

        /// One segmented send: with GRO it arrives whole.
        fn send_train(&self, first: u16, packets: u16, payload_len: usize) {
            let mut bytes = Vec::new();
            for sequence in first..first + packets {
                let mut packet = vec![sequence as u8; 12 + payload_len];
                header::build(&mut packet, false, 96, sequence, 0, 7).expect("room for a header");
                bytes.extend(packet);
            }
            let memory = SlotMemory::private(64, 12 + payload_len);
            let mut batch = crate::net::SendBatch::new(
                {
                    let mut memory = memory;
                    for (slot, packet) in bytes.chunks(12 + payload_len).enumerate() {
                        memory.write(slot as u32, packet);
                    }
                    memory
                },
                64,
                true,
            );
            for slot in 0..packets {
                assert!(batch.add(slot.into(), 12 + payload_len));
            }
            assert_eq!(batch.send(&self.sender).packets, usize::from(packets));
        }

        fn receive(&mut self) {
            while self.stream.receive(0).expect("the socket works") {}
        }
    }

    #[test]
    fn figures_and_order_are_the_same_with_coalescing_on_and_off() {
        let figures: Vec<StreamCounters> = [true, false]
            .into_iter()
            .map(|gro| {
                let mut rig = Rig::new(gro, None);
                rig.send_train(0, 30, 1_000);
                rig.receive();
                rig.send_train(30, 30, 1_000);
                rig.send_train(60, 30, 500);
                rig.send_train(90, 30, 500);
                rig.send(120, 333);
                rig.receive();
                let view = rig.pages.ring();
                for sequence in 0..121_u64 {
                    let descriptor = view.load(sequence);
                    assert_eq!(descriptor.sequence as u16, sequence as u16, "gro {gro}");
                    let len = match sequence {
                        0..60 => 1_000,
                        60..120 => 500,
                        _ => 333,
                    };
                    assert_eq!(descriptor.payload_len, len, "gro {gro}");
                }
                let counters = rig.pages.snapshot();
                if gro {
                    assert!(counters.coalesced > 0, "the kernel coalesced nothing");
                }
                StreamCounters {
                    coalesced: 0,
                    socket_calls: 0,
                    updated_ns: 0,
                    wakeups: 0,
                    ..counters
                }
            })
            .collect();
        assert_eq!(figures[0], figures[1]);
        assert_eq!((figures[0].received, figures[0].published, figures[0].lost), (121, 121, 0));
    }

    #[test]
    fn what_is_no_rtp_goes_to_the_side_channel_and_not_into_the_ring() {
        let mut rig = Rig::new(true, None);
        let rtcp = [0x80, 201, 0, 1, 0, 0, 0, 7];
        let mut stun = [0; 20];
        stun[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
        rig.sender.send(&rtcp).expect("sent");
        rig.sender.send(&stun).expect("sent");
        rig.send(1, 10);
        rig.receive();
        let counters = rig.pages.snapshot();
        assert_eq!((counters.received, counters.passed_rtcp, counters.passed_stun), (1, 1, 1));
        let side = rig.side.0.lock().expect("no panic elsewhere");
        assert_eq!(*side, [(Kind::Rtcp, rtcp.to_vec()), (Kind::Stun, stun.to_vec())]);
    }

    #[test]
    fn what_comes_to_the_rtcp_port_and_is_none_is_counted_and_passed_on_too() {
        let mut rig = Rig::new(true, None);
        let rtcp_port = rig.stream.legs[0].sockets.rtcp.as_ref().expect("opened").local_addr();
        let rtcp = [0x80, 201, 0, 1, 0, 0, 0, 7];
        let mut rtp = [0; 12];
        header::build(&mut rtp, false, 96, 1, 2, 7).expect("room for a header");
        for datagram in [&rtcp[..], &rtp, b"hello"] {
            rig.sender.send_to(datagram, rtcp_port).expect("sent");
        }
        rig.stream.receive_rtcp(0).expect("the sockets work");
        let counters = rig.pages.snapshot();
        assert_eq!((counters.passed_rtcp, counters.passed_other, counters.received), (1, 2, 0));
        let side = rig.side.0.lock().expect("no panic elsewhere");
        assert_eq!(
            side.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [Kind::Rtcp, Kind::Other, Kind::Other]
        );
    }

    #[test]
    fn a_gap_asks_to_be_called_again_and_is_published_then() {
        let order = Order { reorder_ns: 1, window: 64 };
        let mut rig = Rig::new(true, Some(order));
        rig.send(1, 10);
        rig.send(3, 10);
        rig.receive();
        assert!(rig.stream.deadline() <= clock::monotonic_ns());
        assert_eq!(rig.pages.snapshot().staged, 1);
        rig.stream.tick();
        let counters = rig.pages.snapshot();
        assert_eq!((counters.staged, counters.published, counters.gap_positions), (0, 2, 1));
    }

    #[test]
    fn what_came_in_time_fills_its_gap_when_the_engine_is_late() {
        let order = Order { reorder_ns: 50_000_000, window: 128 };
        let mut rig = Rig::new(false, Some(order));
        rig.send(1, 10);
        rig.send(3, 10);
        rig.receive();
        rig.send(2, 10);
        // More than is taken at a time.
        (4..100).for_each(|sequence| rig.send(sequence, 10));
        std::thread::sleep(std::time::Duration::from_millis(60));
        rig.stream.tick();
        rig.receive();
        let counters = rig.pages.snapshot();
        assert_eq!((counters.published, counters.gap_positions, counters.late), (99, 0, 0));
    }

    #[test]
    fn a_gap_is_not_given_up_before_what_came_in_time_was_read() {
        let order = Order { reorder_ns: 50_000_000, window: 128 };
        let mut rig = Rig::new(false, Some(order));
        rig.send(1, 10);
        (3..90).for_each(|sequence| rig.send(sequence, 10));
        rig.send(2, 10);
        std::thread::sleep(std::time::Duration::from_millis(60));
        assert!(
            rig.stream.receive_round(0, NETWORK_SLOTS).expect("the socket works"),
            "there is more"
        );
        rig.stream.tick();
        let counters = rig.pages.snapshot();
        assert_eq!((counters.published, counters.gap_positions), (89, 0));
    }

    #[test]
    fn a_reader_is_woken_at_its_threshold_once_and_a_partly_filled_batch_does_not_wait_for_ever() {
        let mut rig = Rig::new(false, None);
        let port =
            Arc::new(Port { tail: Word::new(0), wake_at: Word::new(0), woken: AtomicU64::new(0) });
        rig.stream.add_reader(Mode::Reliable, false, port.clone()).expect("there is room");
        port.wake_at.store(3);
        let woken = |port: &Port| port.woken.load(Ordering::Relaxed);
        rig.send(1, 10);
        rig.send(2, 10);
        rig.receive();
        assert_eq!(woken(&port), 0);
        rig.send(3, 10);
        rig.receive();
        rig.stream.tick();
        assert_eq!(woken(&port), 1);
        port.tail.store(3);
        port.wake_at.store(1_000);
        rig.send(4, 10);
        rig.receive();
        assert_eq!(woken(&port), 1);
        rig.stream.max_latency_ns = 0;
        rig.stream.tick();
        assert_eq!(woken(&port), 2);
    }

    #[test]
    fn a_reader_that_does_not_read_fills_the_ring_and_leaving_empties_it() {
        let mut rig = Rig::new(true, None);
        let port =
            Arc::new(Port { tail: Word::new(0), wake_at: Word::new(0), woken: AtomicU64::new(0) });
        let reader = rig.stream.add_reader(Mode::Reliable, false, port).expect("there is room");
        for sequence in 0..300 {
            rig.send(sequence, 10);
            rig.receive();
        }
        assert_eq!(rig.pages.snapshot().dropped_ring_full, 300 - POSITIONS as u64);
        rig.stream.remove_reader(reader);
        rig.send(300, 10);
        rig.receive();
        assert_eq!(rig.pages.snapshot().published, POSITIONS as u64 + 1);
    }
}
