//! Every public function of the ring crate, instantiated as the kernel module instantiates it, so
//! that `cargo xtask panic-check` finds its machine code and looks for a way to a panic in it.
//!
//! What the compiler inlines is compiled here; what it does not stands in the ring crate's own
//! objects. Both are looked at.
#![no_std]

use rtp_mgr_ring::abi::{
    Descriptor, Header, LegFigures, ReaderStatus, SourceFigures, StreamCounters, DESC_WORDS,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::batch::{self, Batch, Place, Run};
use rtp_mgr_ring::figures::FigureBlocks;
use rtp_mgr_ring::follow::Held;
use rtp_mgr_ring::header::{self, Kind};
use rtp_mgr_ring::layout::{self, Layout, Part, Refused, Shape};
use rtp_mgr_ring::pace::{Due, Pacer, Rate};
use rtp_mgr_ring::producer::{Mode, Readers};
use rtp_mgr_ring::reader::{Available, Cursor};
use rtp_mgr_ring::receive::{Config, Memory, Packet, ReceiveCore, Storage, Verdict};
use rtp_mgr_ring::source::{self, Seen, Source, Step};
use rtp_mgr_ring::staging::{Entry, Order};
use rtp_mgr_ring::steady::{Packets, RunEnd};
use rtp_mgr_ring::table::SourceEntry;
use rtp_mgr_ring::transmit::{self, Job, Progress, TransmitCore};
use rtp_mgr_ring::view::{Block, ControlView, RingView, SlotsView};

/// Storage that somebody else allocated.
#[derive(Debug)]
pub struct Lent;

impl Memory for Lent {
    type Entries = &'static mut [Entry];
    type Slots = &'static mut [u32];
    type Sources = &'static mut [SourceEntry];
    type Index = &'static mut [u16];
    type Held = &'static mut [Held];
}

/// A receive stream in lent storage.
pub type Receive = ReceiveCore<Lent>;
/// A transmit stream in lent storage.
pub type Transmit = TransmitCore<&'static mut [Progress]>;

/// Makes a receive stream.
#[inline(never)]
pub fn receive_new(config: Config, storage: Storage<Lent>) -> Receive {
    ReceiveCore::new(config, storage)
}

/// Shows it a packet.
#[inline(never)]
pub fn receive_packet(
    core: &mut Receive,
    view: &RingView<'_>,
    packet: &Packet,
    bytes: &[u8],
) -> Verdict {
    core.packet(view, packet, bytes)
}

/// Packets of a train in slots that begin where their number says.
#[derive(Debug)]
pub struct Lengths<'a> {
    bytes: &'a mut [u8],
    lens: core::slice::Iter<'a, u32>,
}

impl Packets for Lengths<'_> {
    fn next_len(&mut self) -> Option<u32> {
        self.lens.next().copied()
    }

    fn copy_to(&mut self, slot: u32, len: u32) -> Option<&[u8]> {
        let space = self.bytes.get_mut(slot as usize..)?.get_mut(..len as usize)?;
        space.fill(0x80);
        Some(space)
    }
}

/// Shows it packets of a train.
#[inline(never)]
pub fn receive_run(
    core: &mut Receive,
    view: &RingView<'_>,
    packets: &mut Lengths<'_>,
    like: &Packet,
) -> (u64, RunEnd) {
    let run = core.take_run(view, like, core.claim().wrapping_add(9), like.len, packets);
    core.count_coalesced(run.0);
    let _ = core.is_fuller();
    let _ = core.fuller_at();
    run
}

/// Shows it a packet, and publishes at once.
#[inline(never)]
pub fn receive_and_tell(
    core: &mut Receive,
    view: &RingView<'_>,
    to: &Blocks<'_>,
    packet: &Packet,
    bytes: &[u8],
) -> Option<u32> {
    let slot = core.take_slot();
    if core.take_and_tell(view, to, packet, bytes, packet.arrival_ns) {
        core.show_next(view);
    }
    slot
}

/// Everything else that ends in a verdict.
#[inline(never)]
pub fn receive_others(
    core: &mut Receive,
    view: &RingView<'_>,
    packet: &Packet,
    bytes: &[u8],
) -> [Verdict; 2] {
    core.passed(Kind::Rtcp);
    [core.without_slot(bytes), core.raw(view, packet, 7)]
}

/// Slots in and out.
#[inline(never)]
pub fn receive_slots(core: &mut Receive, slots: &mut [u32]) -> usize {
    let taken = core.take_slots(slots);
    for slot in slots {
        core.give_back(*slot);
    }
    taken
}

/// Time passes.
#[inline(never)]
pub fn receive_time(core: &mut Receive, view: &RingView<'_>, now_ns: u64) -> (Option<u64>, bool) {
    core.set_reorder_ns(now_ns);
    core.bye(view, 7, now_ns, now_ns);
    core.expire(view, now_ns);
    let news = core.flush(view, now_ns);
    core.finish(view);
    (core.next_deadline(), news)
}

/// Figures.
#[inline(never)]
pub fn receive_figures(
    core: &mut Receive,
    now_ns: u64,
) -> (StreamCounters, LegFigures, SourceFigures) {
    core.counters_mut().wakeups = now_ns;
    if let Some(figures) = core.leg_figures_mut(1) {
        figures.socket_buffer = now_ns;
    }
    core.tally();
    (core.counters(now_ns), core.leg_figures(1), core.source_figures(1))
}

/// Where figures are published.
#[derive(Debug)]
pub struct Blocks<'a>(pub &'a [Word]);

impl FigureBlocks for Blocks<'_> {
    fn counters(&self) -> Block<'_> {
        Block { words: self.0 }
    }

    fn leg(&self, leg: usize) -> Block<'_> {
        Block { words: self.0.get(leg..).unwrap_or_default() }
    }

    fn source(&self, at: u16) -> Block<'_> {
        Block { words: self.0.get(usize::from(at)..).unwrap_or_default() }
    }
}

/// Publishing them.
#[inline(never)]
pub fn receive_publish(core: &mut Receive, to: &Blocks<'_>, now_ns: u64) {
    core.publish_figures(to, now_ns);
}

/// Readers of a receive stream.
#[inline(never)]
pub fn receive_readers(core: &mut Receive, tail: u64, now_ns: u64) -> (u64, ReaderStatus) {
    core.observe_tail(0, tail, now_ns);
    core.should_wake(0, tail);
    let head = core.head();
    let readers: &mut Readers = core.readers_mut();
    let at = readers.add(Mode::Reliable, true, head, now_ns).unwrap_or(0);
    readers.observe_tail(at, tail, head, now_ns);
    readers.lap(head, 16);
    readers.demote_stalled(now_ns, 1, head, 16);
    let woken = readers.should_wake(at, tail, head);
    let status = readers.status(at);
    readers.remove(at);
    core.refresh_limit();
    let count = core.readers().count() as u64;
    let changed = core.take_changed_readers();
    (count.wrapping_add(u64::from(woken)).wrapping_add(changed.into()), status)
}

/// A reader's side.
#[inline(never)]
pub fn read(
    cursor: &mut Cursor,
    view: &RingView<'_>,
    control: &ControlView<'_>,
    slots: &SlotsView<'_>,
    to: &mut [u8],
) -> (Available, Descriptor, bool) {
    let available = cursor.available(view);
    let position = cursor.next();
    let descriptor = cursor.load(view, position);
    let copied = slots.copy(descriptor.slot, to);
    let intact = cursor.is_intact(view, position);
    cursor.advance(cursor.ready(view).min(copied as u64));
    cursor.release(control);
    (available, descriptor, intact && cursor.prepare_wait(view, control, 3))
}

/// Lays a region out.
#[inline(never)]
pub fn lay_out(shape: &Shape) -> (Header, u64) {
    let header = shape.header();
    let controls = layout::control_pages(&header) as u64;
    (header, layout::memory_len(&header).wrapping_add(controls))
}

/// Checks a header, and finds the parts that it describes.
#[inline(never)]
pub fn find_parts(header: &Header, len: u64, at: usize) -> Result<[Option<Part>; 6], Refused> {
    let layout = Layout::check(header, len)?;
    let room = layout.figures_len().wrapping_add(layout.slot_count());
    let word = Part { offset: layout.status_word(at), len: room };
    let slots = layout.holds(at as u32, layout.header().slot_stride).then(|| layout.slots());
    let block = layout.reader_status(at).or(Some(layout.counters()));
    Ok([layout.leg(at), layout.source(at), block, slots, Some(layout.descriptors()), Some(word)])
}

/// Blocks of figures.
#[inline(never)]
pub fn block(block: &Block<'_>, values: &mut [u64]) -> bool {
    block.publish(values);
    block.snapshot(values, 3)
}

/// Makes a transmit stream.
#[inline(never)]
pub fn transmit_new(progress: &'static mut [Progress], start: u64) -> Transmit {
    TransmitCore::new(progress, 2_048, start)
}

/// One round of it.
#[inline(never)]
pub fn transmit_round(
    core: &mut Transmit,
    view: &RingView<'_>,
    head: u64,
) -> (Option<Job>, StreamCounters) {
    core.observe_head(head);
    let job = core.peek(view);
    if let Some(job) = &job {
        core.take(job);
        let held = core.hold(job.position, job.len);
        core.sent(job.position, job.len);
        if held {
            core.let_go(job.position, job.len);
        }
        core.failed(job.position.wrapping_add(1), 5);
    }
    core.counters_mut().socket_calls = core.tail().wrapping_add(core.head());
    (job, core.counters(core.ready().wrapping_add(core.unreleased())))
}

/// Sleeping and waking.
#[inline(never)]
pub fn transmit_sleep(
    core: &mut Transmit,
    need_kick: &Word,
    control: &ControlView<'_>,
    tail: &Word,
) -> [bool; 4] {
    transmit::awake(need_kick);
    core.publish_tail(tail);
    [
        core.should_wake(control.wake_at.load()),
        core.prepare_sleep(need_kick, control.position),
        transmit::commit(control.position, need_kick, 2),
        transmit::prepare_wait(control.wake_at, tail, 3),
    ]
}

/// A batch of it, of which a leg takes some packets and gives up the rest.
#[inline(never)]
pub fn transmit_batch(
    core: &mut Transmit,
    view: &RingView<'_>,
    batch: &mut Batch<&'static mut [Run]>,
    place: &mut Place,
    [most, errno]: [u32; 2],
) -> (usize, Option<batch::Part>) {
    while let Some(job) = core.peek(view) {
        core.take(&job);
        let mut run = Run::of(job);
        core.extend(&mut run, most as usize, view);
        if !batch.push(&run) || batch.is_empty() {
            break;
        }
    }
    let next = batch.parts(place, most as usize).last();
    batch.take(place, most as usize);
    let refused = batch.refuse(place, most as usize, errno);
    for (begin, run) in batch.runs() {
        if batch.is_whole(begin, run.count as usize) {
            core.sent_run(run, 1);
        } else if batch.outcome(begin).0 {
            core.sent_of_run(run, most, 1, view);
        }
    }
    batch.clear();
    (refused.wrapping_add(batch.len()), next)
}

/// A batch without packets.
#[inline(never)]
pub fn transmit_batch_new(runs: &'static mut [Run]) -> Batch<&'static mut [Run]> {
    Batch::new(runs)
}

/// Pacing.
#[inline(never)]
pub fn pace(packets: u64, seconds: u64, now_ns: u64) -> Option<(Due, Option<u64>)> {
    let rate = Rate::new(packets, seconds)?;
    let mut pacer = Pacer::new(rate);
    pacer.set_rate(rate);
    let due = pacer.due(now_ns, packets);
    pacer.sent(due.packets);
    Some((due, pacer.next_ns()))
}

/// Figures of a source on their own.
#[inline(never)]
pub fn observe(source: &mut Source, seen: &Seen) -> (Step, SourceFigures) {
    source.set_clock_rate(source::static_clock_rate(seen.payload_type).unwrap_or(0));
    (source.observe(seen, 512), source.figures())
}

/// Headers.
#[inline(never)]
pub fn headers(packet: &mut [u8], len: usize) -> (Kind, u64) {
    let built = header::build(packet, true, 96, 1, 2, 3).unwrap_or(0) as u64;
    let mut sum = built;
    if let Ok(header) = header::parse(packet) {
        for csrc in header.csrcs(packet) {
            sum = sum.wrapping_add(csrc.into());
        }
        for element in header.elements(packet) {
            sum = sum.wrapping_add(element.data.len() as u64);
        }
    }
    if let Ok(header) = header::parse_prefix(packet, len, None) {
        sum = sum.wrapping_add(header.payload_len as u64);
    }
    (header::classify(packet), sum)
}

/// What configuration needs.
#[inline(never)]
pub fn order(reorder_ns: u64, window: u32) -> (Order, [u64; DESC_WORDS]) {
    let descriptor = Descriptor::from_words([reorder_ns; DESC_WORDS]);
    (Order { reorder_ns, window }, descriptor.to_words())
}
