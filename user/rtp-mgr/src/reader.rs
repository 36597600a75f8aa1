//! Reading a receive ring: batches of packets, gaps and discontinuities.
//!
//! What lives here: the reader's cursor, waiting, and how a position is shown. What does not: the
//! memory that packets are borrowed or copied from (`shm`).
//!
//! A reliable reader of the owning process borrows packets where they lie. Every other reader
//! copies, and believes a copy only when nothing was written over it meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::{Descriptor, ReaderStatus, SOURCE_NONE, flag};
use rtp_mgr_ring::reader::{Available, Cursor};
use rtp_mgr_ring::view::RingView;

use crate::clock::monotonic_ns;
use crate::config::nanos;
use crate::engine::ReceiveEngine;
use crate::engine::inline::Driven;
use crate::engine::receive_task::{OwnPort, ReceiveTask};
use crate::engine::worker::drain;
use crate::error::Error;
use crate::kernel::wake::DeviceWake;
use crate::poll::wait_readable;
use crate::shm::{ControlPage, Region, Window, WindowSlots};
use crate::stats::State;

/// Positions that one batch has at most: a reader that keeps the ring full gives room back often.
const BATCH_MAX: u64 = 256;
/// Bytes that a copying reader copies at most per batch, and at least one packet.
const COPY_MAX: usize = 1 << 20;
/// Attempts to copy something that is not overwritten meanwhile; then the reader is called again.
const COPY_ROUNDS_MAX: usize = 64;
/// How often a status page is looked at before its writer is given up.
const SNAPSHOT_TRIES: u32 = 1_000;

/// A reader of a receive stream in the process that owns it. Send, not Sync.
#[derive(Debug)]
pub struct Reader {
    ring: OwnRing,
}

/// By who runs the ring.
#[derive(Debug)]
enum OwnRing {
    User(RingReader<OwnWake>),
    Kernel(RingReader<DeviceWake>),
}

/// Calls the same method of either.
macro_rules! either {
    ($reader:expr, $ring:ident => $call:expr) => {
        match $reader {
            OwnRing::User($ring) => $call,
            OwnRing::Kernel($ring) => $call,
        }
    };
}

impl Reader {
    pub(crate) fn new(
        task: Arc<ReceiveTask>,
        reliable: bool,
        threshold: u32,
    ) -> Result<Self, Error> {
        let (index, port) = task.add_own_reader(reliable)?;
        let region = task.region().clone();
        let access = if reliable {
            // The engine has just been told of this reader, never demotes readers of its own
            // process, and forgets it in `drop`.
            Access::Borrow(Window::new(region.clone()))
        } else {
            Access::Copy(Copies::new(&region))
        };
        let drives_from_ns = if reliable && threshold == 1 { 0 } else { u64::MAX };
        let wake = OwnWake { port: port.clone(), task, drives_from_ns, poller: None };
        let ring = RingReader::new(region, index, port.page().clone(), access, wake, threshold);
        Ok(Self { ring: OwnRing::User(ring) })
    }

    /// A reader of a stream of the kernel engine.
    pub(crate) fn of_module(ring: RingReader<DeviceWake>) -> Self {
        Self { ring: OwnRing::Kernel(ring) }
    }

    /// See [`Receiver::read`](crate::Receiver::read).
    ///
    /// # Errors
    /// The engine has ended.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        either!(&mut self.ring, ring => ring.read(timeout))
    }

    /// See [`Receiver::try_read`](crate::Receiver::try_read).
    ///
    /// # Errors
    /// The engine has ended.
    pub fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        either!(&mut self.ring, ring => ring.try_read())
    }

    /// What the engine says about this reader: its accepted tail, positions missed, demotion.
    pub fn status(&self) -> ReaderStatus {
        either!(&self.ring, ring => ring.status())
    }

    /// Positions that this reader missed because they were overwritten before it read them.
    pub fn missed(&self) -> u64 {
        either!(&self.ring, ring => ring.missed())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let OwnRing::User(ring) = &self.ring {
            ring.wake.task.remove_own_reader(ring.index);
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        if let OwnRing::User(ring) = &self.ring {
            ring.wake.task.file_is_asked_for();
        }
        either!(&self.ring, ring => ring.wake.as_fd())
    }
}

/// How a reader is told that there is something new.
pub(crate) trait Wake: AsFd {
    /// Forgets what was told so far. `Err`: there is nobody any more who would tell.
    fn forget(&mut self) -> Result<(), Error>;

    /// The stream has stopped and everything was read. `Err`: it did not end well.
    fn ended(&self) -> Result<(), Error>;

    /// Does the engine's work, or waits until `until_ns` of CLOCK_MONOTONIC for some, where a reader does that.
    fn drive(&mut self, _until_ns: u64) -> Driven {
        Driven::Elsewhere { until_ns: u64::MAX }
    }

    /// Whether it takes a look at the file to learn that nobody is there.
    const MAY_VANISH: bool;
}

/// An event file descriptor that the engine of this process signals.
#[derive(Debug)]
pub(crate) struct OwnWake {
    port: Arc<OwnPort>,
    task: Arc<ReceiveTask>,
    /// It may do the engine's work in its own call from this time on, CLOCK_MONOTONIC in nanoseconds.
    drives_from_ns: u64,
    /// What it waits with then.
    poller: Option<OwnedFd>,
}

impl AsFd for OwnWake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.event()
    }
}

impl Wake for OwnWake {
    fn forget(&mut self) -> Result<(), Error> {
        drain(self.port.event());
        Ok(())
    }

    fn ended(&self) -> Result<(), Error> {
        self.task.read_to_end();
        if self.task.has_failed() { Err(Error::EngineGone) } else { Ok(()) }
    }

    fn drive(&mut self, until_ns: u64) -> Driven {
        // The stream's lock is left to the engine's thread while that does the work.
        if self.drives_from_ns > 0 && monotonic_ns() < self.drives_from_ns {
            return Driven::Elsewhere { until_ns: self.drives_from_ns };
        }
        let driven = self.task.drive(&self.port, &mut self.poller, until_ns);
        if let Driven::Elsewhere { until_ns } = driven {
            self.drives_from_ns = until_ns;
        }
        driven
    }

    const MAY_VANISH: bool = false;
}

/// How a reader gets at packets.
#[derive(Debug)]
pub(crate) enum Access {
    Borrow(Window),
    Copy(Copies),
}

/// Packets copied out of the ring.
#[derive(Debug)]
pub(crate) struct Copies {
    bytes: Vec<u8>,
    /// Each with where its bytes begin.
    packets: Vec<(Descriptor, usize)>,
    positions_max: u64,
    stride: usize,
}

impl Copies {
    pub(crate) fn new(region: &Region) -> Self {
        let stride = region.layout().header().slot_stride as usize;
        let positions = (COPY_MAX / stride).clamp(1, BATCH_MAX as usize);
        Self {
            bytes: vec![0; positions * stride],
            packets: Vec::with_capacity(positions),
            positions_max: positions as u64,
            stride,
        }
    }
}

/// What a look at the ring found.
enum Found {
    /// Something: the batch is ready.
    Some,
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will come.
    Stopped,
}

/// A reader of a ring, in whatever process.
#[derive(Debug)]
pub(crate) struct RingReader<W> {
    region: Arc<Region>,
    index: usize,
    control: Arc<ControlPage>,
    access: Access,
    wake: W,
    cursor: Cursor,
    threshold: u64,
    /// The position from which on it asked to be woken, while nothing has come.
    armed_at: Option<u64>,
    /// Of the present batch.
    positions: u64,
    lapped: u64,
    /// In total.
    missed: u64,
}

/// The moment of this time of CLOCK_MONOTONIC; `None`: too far away.
fn instant(until_ns: u64) -> Option<Instant> {
    let left = Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()));
    Instant::now().checked_add(left)
}

impl<W: Wake> RingReader<W> {
    pub(crate) fn new(
        region: Arc<Region>,
        index: usize,
        control: Arc<ControlPage>,
        access: Access,
        wake: W,
        threshold: u32,
    ) -> Self {
        let start = control.view().position.load();
        let slot_count = region.layout().header().slot_count;
        Self {
            cursor: Cursor::new(start, slot_count),
            region,
            index,
            control,
            access,
            wake,
            threshold: threshold.into(),
            armed_at: None,
            positions: 0,
            lapped: 0,
            missed: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> &ControlPage {
        &self.control
    }

    pub(crate) fn wake(&self) -> &W {
        &self.wake
    }

    pub(crate) fn missed(&self) -> u64 {
        self.missed
    }

    pub(crate) fn status(&self) -> ReaderStatus {
        let mut words = [0; ReaderStatus::WORDS];
        self.region.reader_status(self.index).snapshot(&mut words, SNAPSHOT_TRIES);
        ReaderStatus::from_words(words)
    }

    pub(crate) fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        let until_ns = monotonic_ns().saturating_add(nanos(timeout));
        loop {
            // The state comes first: what was published before the stop is seen after it.
            let stopped = self.region.state() == State::Stopped;
            if self.fetch()? {
                self.armed_at = None;
                return Ok(Some(self.batch()));
            }
            if !stopped && !timeout.is_zero() {
                match self.wake.drive(until_ns) {
                    Driven::Elsewhere { .. } => {}
                    // While this reader did the work, nobody was asked to wake it.
                    Driven::TimedOut => self.armed_at = None,
                    Driven::Worked => {
                        self.armed_at = None;
                        continue;
                    }
                }
            }
            match self.look()? {
                Found::Some => return Ok(Some(self.batch())),
                Found::Stopped => return Ok(None),
                Found::Nothing if wait_readable(self.wake.as_fd(), instant(until_ns)) => {}
                Found::Nothing => return Ok(Some(self.batch())),
            }
        }
    }

    pub(crate) fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        Ok(match self.look()? {
            Found::Some | Found::Nothing => Some(self.batch()),
            Found::Stopped => None,
        })
    }

    /// Takes what there is into the batch. If that is nothing, the wake-up is asked for.
    fn look(&mut self) -> Result<Found, Error> {
        // The state comes first: what was published before the stop is seen after it.
        let stopped = self.region.state() == State::Stopped;
        if self.fetch()? {
            self.armed_at = None;
            return Ok(Found::Some);
        }
        if stopped {
            return self.wake.ended().map(|()| Found::Stopped);
        }
        if self.armed_at.take() == Some(self.cursor.next()) && !W::MAY_VANISH {
            // Whatever comes now signals the file: nothing has to be asked of the kernel. Not twice
            // in a row: the file may be readable for what was read before.
            return Ok(Found::Nothing);
        }
        let listening = self.wake.forget();
        self.armed_at = Some(self.cursor.next());
        self.cursor.prepare_wait(&self.region.ring(), &self.control.view(), self.threshold);
        // Anything that came before the wake-up was asked for is taken now, and a stop in between
        // signals the file.
        if self.fetch()? {
            self.armed_at = None;
            return Ok(Found::Some);
        }
        if self.region.state() == State::Stopped {
            return match self.fetch()? {
                true => Ok(Found::Some),
                false => self.wake.ended().map(|()| Found::Stopped),
            };
        }
        listening.map(|()| Found::Nothing)
    }

    /// Takes what there is into the batch; `false` when that is nothing.
    fn fetch(&mut self) -> Result<bool, Error> {
        self.positions = 0;
        self.lapped = 0;
        let ring = self.region.ring();
        match &mut self.access {
            Access::Borrow(_) => {
                self.positions = self.cursor.ready(&ring).min(BATCH_MAX);
            }
            Access::Copy(copies) => {
                // A round that copies nothing lost to a producer that is a whole ring faster.
                for _ in 0..COPY_ROUNDS_MAX {
                    match self.cursor.available(&ring) {
                        Available::Lapped { missed } => {
                            self.lapped = self.lapped.saturating_add(missed);
                            self.missed = self.missed.saturating_add(missed);
                        }
                        Available::Positions(0) => break,
                        Available::Positions(count) => {
                            let count = count.min(copies.positions_max);
                            self.positions = copies.take(&self.region, &self.cursor, count)?;
                            if self.positions > 0 {
                                break;
                            }
                        }
                    }
                }
                // What was copied may be overwritten.
                self.cursor.advance(self.positions);
                self.cursor.release(&self.control.view());
            }
        }
        Ok(self.positions > 0 || self.lapped > 0)
    }

    fn batch(&mut self) -> Batch<'_> {
        let next = self.cursor.next();
        let (packets, first, borrowed) = match &self.access {
            Access::Borrow(window) => (Packets::InPlace(window.slots()), next, self.positions),
            Access::Copy(copies) => (Packets::Copied(copies), next.wrapping_sub(self.positions), 0),
        };
        Batch {
            ring: self.region.ring(),
            packets,
            first,
            positions: self.positions,
            lapped: self.lapped,
            release: Release {
                cursor: &mut self.cursor,
                control: &self.control,
                positions: borrowed,
            },
        }
    }
}

impl Copies {
    /// Copies up to `count` positions; fewer when the producer writes over them. An error is a
    /// descriptor that no producer writes.
    fn take(&mut self, region: &Region, cursor: &Cursor, count: u64) -> Result<u64, Error> {
        self.packets.clear();
        let ring = region.ring();
        let slots = region.slots();
        for at in 0..count {
            let position = cursor.next().wrapping_add(at);
            let descriptor = cursor.load(&ring, position);
            let start = at as usize * self.stride;
            let len = if descriptor.has(flag::LOST) { 0 } else { descriptor.len };
            let holds = region.layout().holds(descriptor.slot, len);
            if holds {
                let to = &mut self.bytes[start..start + len as usize];
                slots.copy(descriptor.slot, to);
            }
            if !cursor.is_intact(&ring, position) {
                return Ok(at);
            }
            if !holds {
                return Err(Error::Corrupt(format!(
                    "position {position} names {len} bytes in slot {}",
                    descriptor.slot
                )));
            }
            self.packets.push((descriptor, start));
        }
        Ok(count)
    }
}

/// Some positions of the ring, in order. Dropping it releases them.
#[derive(Debug)]
pub struct Batch<'a> {
    ring: RingView<'a>,
    packets: Packets<'a>,
    first: u64,
    positions: u64,
    lapped: u64,
    /// Dropped last, when nothing borrows from the positions any more.
    release: Release<'a>,
}

/// Where the packets of a batch are.
#[derive(Clone, Copy, Debug)]
enum Packets<'a> {
    InPlace(WindowSlots<'a>),
    Copied(&'a Copies),
}

/// Gives positions back to the ring when it is dropped.
#[derive(Debug)]
struct Release<'a> {
    cursor: &'a mut Cursor,
    control: &'a ControlPage,
    positions: u64,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if self.positions > 0 {
            self.cursor.advance(self.positions);
            self.cursor.release(&self.control.view());
        }
    }
}

impl Batch<'_> {
    /// Number of positions; packets and gaps alike. 0, without any items: the time ran out.
    pub fn len(&self) -> usize {
        self.positions as usize
    }

    /// Whether the time ran out: there are no items.
    pub fn is_empty(&self) -> bool {
        self.positions == 0 && self.lapped == 0
    }

    /// What stands in the positions. One position can be two items: a discontinuity, and the packet
    /// that it stands before.
    pub fn iter(&self) -> Items<'_> {
        Items { batch: self, at: 0, lapped: self.lapped, shown: false }
    }

    /// Lets the ring have the positions back: nothing borrowed from the batch outlives this.
    pub fn release(self) {
        drop(self.release);
    }

    #[inline]
    fn descriptor(&self, at: u64) -> Descriptor {
        match self.packets {
            Packets::InPlace(_) => self.ring.load(self.first.wrapping_add(at)),
            Packets::Copied(copies) => copies.packets[at as usize].0,
        }
    }

    /// The packet that is there, as its descriptor tells.
    #[inline]
    fn bytes(&self, at: u64, descriptor: &Descriptor) -> &[u8] {
        match self.packets {
            Packets::InPlace(slots) => slots.bytes(descriptor.slot, descriptor.len),
            Packets::Copied(copies) => {
                let start = copies.packets[at as usize].1;
                &copies.bytes[start..start + descriptor.len as usize]
            }
        }
    }
}

/// For [`Items`], which they are given no reference to: that would keep it out of registers.
impl<'b> Batch<'b> {
    /// The packet in this place, whose descriptor this is.
    #[inline]
    fn packet(&'b self, at: u64, descriptor: Descriptor) -> Item<'b> {
        let bytes = self.bytes(at, &descriptor);
        Item::Packet(Packet { descriptor, position: self.first.wrapping_add(at), bytes })
    }

    /// What stands in the place of a packet, or before it unless that was `shown`: with the place of the next item, and
    /// whether what stands before a packet there was shown.
    #[cold]
    #[inline(never)]
    fn item_with_break(&'b self, at: u64, shown: bool) -> (Item<'b>, u64, bool) {
        let descriptor = self.descriptor(at);
        let ring_full = descriptor.has(flag::RING_FULL);
        if descriptor.has(flag::LOST) {
            // Not in a packet's place, whatever its flags say next time.
            let (sequence, count) = (descriptor.sequence, descriptor.count);
            return (Item::Gap(Gap { sequence, count, ring_full }), at + 1, false);
        }
        if shown {
            return (self.packet(at, descriptor), at + 1, false);
        }
        let cause = if ring_full { Cause::RingFull } else { Cause::Sequence };
        let count = descriptor.count.into();
        (Item::Discontinuity(Discontinuity { count, cause }), at, true)
    }
}

impl<'b> IntoIterator for &'b Batch<'_> {
    type Item = Item<'b>;
    type IntoIter = Items<'b>;

    fn into_iter(self) -> Items<'b> {
        self.iter()
    }
}

/// Iterator over a [`Batch`].
#[derive(Clone, Debug)]
pub struct Items<'b> {
    batch: &'b Batch<'b>,
    at: u64,
    lapped: u64,
    /// The discontinuity before the next packet was shown.
    shown: bool,
}

impl<'b> Iterator for Items<'b> {
    type Item = Item<'b>;

    #[inline]
    fn next(&mut self) -> Option<Item<'b>> {
        if self.lapped > 0 {
            let count = std::mem::take(&mut self.lapped);
            return Some(Item::Discontinuity(Discontinuity { count, cause: Cause::Lapped }));
        }
        if self.at == self.batch.positions {
            return None;
        }
        let descriptor = self.batch.descriptor(self.at);
        if descriptor.flags & (flag::LOST | flag::DISCONTINUITY) != 0 {
            let (item, at, shown) = self.batch.item_with_break(self.at, self.shown);
            (self.at, self.shown) = (at, shown);
            return Some(item);
        }
        let item = self.batch.packet(self.at, descriptor);
        (self.at, self.shown) = (self.at + 1, false);
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.batch.positions - self.at) as usize;
        let lapped = usize::from(self.lapped > 0);
        (left + lapped, Some((2 * left + lapped).saturating_sub(self.shown.into())))
    }
}

/// What can stand in the ring.
#[derive(Clone, Copy, Debug)]
pub enum Item<'b> {
    /// A packet.
    Packet(Packet<'b>),
    /// A missing packet of an ordered stream.
    Gap(Gap),
    /// What follows does not continue what came before.
    Discontinuity(Discontinuity),
}

/// A packet in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'b> {
    descriptor: Descriptor,
    position: u64,
    bytes: &'b [u8],
}

impl<'b> Packet<'b> {
    /// The RTP payload, padding not included. Of a raw packet: all of it.
    pub fn payload(&self) -> &'b [u8] {
        let start = usize::from(self.descriptor.payload_offset);
        let end = start.saturating_add(self.descriptor.payload_len as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The whole packet, RTP header included.
    pub fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// Its position in the ring.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Extended sequence number: cycles above, the 16 bits of the packet below.
    pub fn sequence(&self) -> u64 {
        self.descriptor.sequence
    }

    /// The sequence number in the packet.
    pub fn sequence_number(&self) -> u16 {
        self.descriptor.sequence as u16
    }

    /// RTP timestamp.
    pub fn rtp_timestamp(&self) -> u32 {
        self.descriptor.rtp_timestamp
    }

    /// RTP synchronisation source.
    pub fn ssrc(&self) -> u32 {
        self.descriptor.ssrc
    }

    /// RTP payload type.
    pub fn payload_type(&self) -> u8 {
        self.descriptor.payload_type
    }

    /// The RTP marker bit.
    pub fn marker(&self) -> bool {
        self.descriptor.has(flag::MARKER)
    }

    /// Arrival, nanoseconds of CLOCK_TAI.
    pub fn time_ns(&self) -> u64 {
        self.descriptor.time_ns
    }

    /// The arrival time is shared with neighbours that the kernel coalesced.
    pub fn time_is_shared(&self) -> bool {
        self.descriptor.has(flag::COALESCED_TIME)
    }

    /// Leg that brought it: 0 or 1.
    pub fn leg(&self) -> u8 {
        self.descriptor.leg
    }

    /// Index into the source table ([`StreamSnapshot::source`](crate::StreamSnapshot::source));
    /// `None` when the table was full.
    pub fn source(&self) -> Option<u16> {
        let source = self.descriptor.source;
        (source != SOURCE_NONE).then_some(source)
    }

    /// When it was placed one leg alone had it.
    pub fn recovered(&self) -> bool {
        self.descriptor.has(flag::RECOVERED)
    }

    /// Not RTP: the simulated source's bare pattern.
    pub fn raw(&self) -> bool {
        self.descriptor.has(flag::RAW)
    }

    /// Bits of [`flag`].
    pub fn flags(&self) -> u16 {
        self.descriptor.flags
    }
}

/// Missing packets of an ordered stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    sequence: u64,
    count: u32,
    ring_full: bool,
}

impl Gap {
    /// Extended sequence number of the first that is missing.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many are missing.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// At least one of them was dropped because the ring was full.
    pub fn ring_full(&self) -> bool {
        self.ring_full
    }
}

/// Why a sequence does not continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The source's own sequence: a restart, another source, more lost than the window holds; in
    /// arrival order any loss.
    Sequence,
    /// At least some were dropped because the ring was full.
    RingFull,
    /// This reader was too slow: positions were overwritten before it read them.
    Lapped,
}

/// A break in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discontinuity {
    count: u64,
    cause: Cause,
}

impl Discontinuity {
    /// How many are missing here (0: not known); positions when the cause is [`Cause::Lapped`],
    /// packets otherwise.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Why.
    pub fn cause(&self) -> Cause {
        self.cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::engine::worker::signal;
    use crate::receiver::Receiver;

    #[test]
    fn a_wake_up_that_comes_when_everything_was_read_does_not_keep_the_reader_busy() {
        let receiver = Receiver::builder()
            .leg("127.0.0.1:0".parse().unwrap())
            .rtcp(false)
            .announce(false)
            .open()
            .unwrap();
        let mut reader = receiver.subscribe(Mode::Reliable).unwrap();
        assert!(reader.try_read().unwrap().unwrap().is_empty());
        signal(reader.as_fd());
        for _ in 0..2 {
            assert!(reader.try_read().unwrap().unwrap().is_empty());
        }
        assert!(!wait_readable(reader.as_fd(), Some(Instant::now())));
    }
}
