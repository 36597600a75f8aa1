// SPDX-License-Identifier: MIT OR GPL-2.0

//! A stream: its states, who owns it, and what may be done when.
//!
//! # Ownership
//!
//! Every open file that was made a stream or attached to one holds a reference. So does the registry,
//! until the last of those files is closed; a mapping keeps its file open. When the last file closes, the
//! timer is cancelled, the registry lets go, and the memory goes with the last reference, in process
//! context.
//!
//! # Locks, outermost first
//!
//! | lock | kind | protects |
//! |---|---|---|
//! | registry | mutex | the list of streams |
//! | [`Stream::control`] | mutex | state; starting and stopping |
//! | [`Stream::files`] | mutex; never with the one before | how many files there are, and of whom |
//! | the legs', in [`Receive`] | mutex, never waited for | which sockets the stream has |
//! | a socket's own | sleeps; in no softirq here | whose a socket's packets are |
//! | the shim's, of namespaces | mutex; netfilter's own is taken in it | which namespaces have a hook, and for whom |
//! | the engine's, in [`Receive`] | spin lock, bottom halves off | ring, counters, readers, source, when the timer is due |
//! | the thread's, in [`Transmit`] | mutex | the thread being there or not |
//! | the engine's, in [`Transmit`] | mutex | ring, counters, legs; a send may wait for memory |
//! | a wait queue's own, a timer's own | spin lock, interrupts off | who sleeps; what is due |
//!
//! # Contexts
//!
//! | entry | context | takes |
//! |---|---|---|
//! | ioctl | process | control, then engine |
//! | ATTACH, release | process | files, then engine; a last or a writer's release control after that |
//! | LIST, fdinfo | process, of other users, too | none of the stream's |
//! | poll | process, no sleeping lock | engine |
//! | mmap | process, mmap lock held | none |
//! | timer | softirq | engine |
//! | a packet of a leg | softirq, RCU; several CPUs at once | engine |
//! | a train that may be a leg's | softirq, RCU; several CPUs at once | none |
//! | the first train of a leg that was cut up | kernel worker | the shim's, of namespaces |
//! | a transmit stream's thread | kernel thread, with the opener's credentials | engine, for a batch at a time |
//! | KICK | process, with the opener's credentials while it sends | engine, for two batches at most, if it is free |
//! | space in a leg's socket | any, the socket's wait queue locked | the wait queue in which the thread sleeps |
//!
//! With the control lock held a call may wait for the lock of a socket, which its user can hold for as
//! long as it likes (a corked send that waits for space). So nothing that others than the stream's owner
//! may do takes it: LIST and fdinfo read the status page, ATTACH and a reader's release take the lock of
//! the files, under which nobody waits.
//!
//! A transmit stream's poll takes no lock. KICK only tries for the engine's: if somebody has it, or the thread has
//! to send, it rings the thread's bell.
//!
//! # The timer
//!
//! It is started with the engine's lock held and only while the engine runs, by whoever has found that
//! something is due before it: a call, a packet, its own handler. Its handler takes the lock, forgets
//! when the timer was due, does all that is due and starts it for what comes next. So after each hold of
//! the lock the timer is due no later than anything that waits for it, or its handler is about to take
//! the lock; a handler rests for 20 us, so that a gap of thousands of positions, of which each run gives up
//! 4,096, does not keep bottom halves off. A start that came while the handler waited for the lock is moved or, at worst, runs it once
//! more than needed.
//!
//! # Packets of legs
//!
//! An adopted socket's packets come in softirq, on any CPU, through a pointer that the socket has to the
//! leg ([`crate::source::udp`]). They are copied, placed and published under the engine's lock, or left
//! to the socket if the engine does not run. Of a train of packets that the network coalesced, the last
//! one publishes; if that one does not come (its checksum may be wrong), the timer does. So
//! what was placed is published when the lock is given back, or the timer is started.
//!
//! A train of nothing but RTP comes whole if the socket takes trains (shim.c tells how), and is published
//! in the hold of the lock in which it was placed. The hook that this needs is in the socket's namespace from
//! the first train on, and gone, an RCU grace period included, before the leg lets the socket go.
//!
//! # Stopping
//!
//! The engine is halted under its lock, after which nobody starts the timer and packets are left to
//! their sockets. Then, with the control lock held and the engine's not, the sockets are given back, an RCU
//! grace period waits for packets that had found the leg before, and the timer is cancelled, which waits
//! for its handler. After that nothing but calls reaches the engine: it forgets the sockets and publishes
//! what it has. Only then may a leg be dropped, and the stream with it.
//!
//! A leg holds its socket's file and not the other way round; the stream's own files hold the module. So
//! the module cannot go while a socket may call it, and a socket closed by its user, or one whose
//! namespace nobody else has any more, lives until it is let go.
//!
//! # The thread
//!
//! A transmit stream has one while it runs; a KICK that finds it asleep sends in its stead. It is started and stopped with the control lock held and the
//! engine's not; stopping waits for its end, which is at most a batch away, since its sends wait for
//! memory but never for space in a socket. There is one exception: a send through a socket that is not
//! corked takes no lock of the socket, and a corked one is not sent through, but a user who corks it
//! between the look and the send, and then has a send of its own wait for space, holds the lock for which
//! the thread then waits. The network stack has no send that only tries the lock. Who waits then are
//! calls on files of that stream (STOP, STATS, the writer's close); the end of that send ends it.
//!
//! Each send passes the security module's check of a send (`kernel_sendmsg()` is `sock_sendmsg()`, which calls
//! `security_socket_sendmsg()`) with the opener's credentials, which the thread and a KICK that sends act for; so
//! ADD_LEG has none of its own, and what is refused is a send that failed. A thread that was not stopped before is when its owner's file
//! is closed, and so before the stream, its memory and the module can go.

use core::mem::offset_of;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::cred::Credential;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::task::Kuid;
use kernel::{bindings, current};

use crate::compat::EOPNOTSUPP;
use crate::engine::{self, Engine, REORDER_MAX_NS};
use crate::memory::{self, Memory, Shape, Viewer};
use crate::primitives::{monotonic_ns, WaitQueue};
use crate::receive::Receive;
use crate::registry::{self, Reservation};
use crate::ring::abi::{self, feature, ioctl, StreamCounters, LEGS_MAX, READERS_MAX};
use crate::ring::producer::Mode;
use crate::source::simulated::{self, Content, Simulated};
use crate::source::{Source, INTERVALS_NS};
use crate::transmit::{self, Transmit};
use crate::Parameters;

/// Sources of a stream whose user does not say.
const SOURCES: u32 = 16;
/// Sources that the source table of a kernel stream may have room for.
const SOURCES_MAX: u32 = 65_535;
/// Slots beyond the positions: what a device holds to write into.
const SPARE_SLOTS: u32 = 16;
/// Packets of a burst, unless the user says.
const BURST: u32 = 64;
/// Bytes of a simulated packet, unless the user says.
const PACKET_LEN: u32 = 1_024;
/// How long an attached reliable reader may hold the ring full, unless the owner says.
const STALL_NS: u64 = 1_000_000_000;

struct Control {
    state: u64,
    stall_ns: u64,
}

struct Files {
    /// None: nobody has the stream any more, and nobody gets it.
    count: usize,
    /// Whether attached readers may be reliable.
    allow_reliable: bool,
}

/// What the engine of a stream and the calls on its files both use.
#[pin_data]
pub(crate) struct Shared {
    pub(crate) memory: Memory,
    #[pin]
    pub(crate) waits: [WaitQueue; READERS_MAX],
}

/// Who runs a stream's ring. What changes its state is called with the control lock held, and readers come
/// and go with that of the files.
enum Kind {
    /// Packets come in.
    Receive(Arc<Receive>),
    /// Packets go out.
    Transmit(Arc<Transmit>),
}

/// A stream.
#[pin_data(PinnedDrop)]
pub(crate) struct Stream {
    #[pin]
    control: Mutex<Control>,
    #[pin]
    files: Mutex<Files>,
    kind: Kind,
    shared: Arc<Shared>,
    // Last: the memory is given back before the right to it.
    reservation: Reservation,
}

/// A file's part in a stream.
pub(crate) struct Role {
    stream: Arc<Stream>,
    reader: Option<usize>,
    owner: bool,
}

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 {
        default
    } else {
        value
    }
}

fn reader_mode(reader: u32) -> Result<Option<Mode>> {
    match reader {
        ioctl::READER_RELIABLE => Ok(Some(Mode::Reliable)),
        ioctl::READER_LOSSY => Ok(Some(Mode::Lossy)),
        ioctl::READER_NONE => Ok(None),
        _ => Err(EINVAL),
    }
}

/// The numbers of a stream, checked.
fn shape(request: &ioctl::Create) -> Result<Shape> {
    let (features, legs) = match (request.direction, request.source) {
        (abi::DIRECTION_TRANSMIT, _) => return transmit_shape(request),
        (abi::DIRECTION_RECEIVE, ioctl::SOURCE_SIMULATED) => {
            if request.flags != 0 || request.legs > 1 || request.reorder_ns != 0 {
                return Err(EINVAL);
            }
            (feature::SIMULATED | feature::EXACT_TIMES, 1)
        }
        (abi::DIRECTION_RECEIVE, ioctl::SOURCE_UDP) => udp(request)?,
        _ => return Err(EINVAL),
    };
    let sources = or_default(request.sources, SOURCES);
    if sources > SOURCES_MAX {
        return Err(EINVAL);
    }
    let (slot_count, stride) = ring_numbers(request)?;
    // Held for a source that may take over: see the engine's storage.
    let held = if features & feature::ORDERED == 0 { 0 } else { slot_count / 2 };
    Ok(Shape {
        direction: abi::DIRECTION_RECEIVE,
        features,
        slot_count,
        slot_total: slot_count.saturating_add(held).saturating_add(SPARE_SLOTS),
        slot_stride: stride,
        legs,
        sources,
        stream_id: 0,
        owner_pid: 0,
        owner_uid: 0,
    })
}

/// What belongs to a receive stream with UDP legs, checked: its features and number of legs.
fn udp(request: &ioctl::Create) -> Result<(u64, u32)> {
    let known = ioctl::CREATE_ORDERED
        | ioctl::CREATE_SSRC
        | ioctl::CREATE_PAYLOAD_TYPE
        | ioctl::CREATE_EXACT_TIMES
        | ioctl::CREATE_LEAVE_OTHERS;
    let leaves = request.flags & ioctl::CREATE_LEAVE_OTHERS != 0;
    let chooses = request.flags & (ioctl::CREATE_SSRC | ioctl::CREATE_PAYLOAD_TYPE) != 0;
    let exact = request.flags & ioctl::CREATE_EXACT_TIMES != 0;
    let ordered = request.flags & ioctl::CREATE_ORDERED != 0;
    let legs = or_default(request.legs, 1);
    let legs_max = if ordered { LEGS_MAX as u32 } else { 1 };
    let reorder_max = if ordered { REORDER_MAX_NS } else { 0 };
    let simulated = [request.pattern, request.packet_len, request.burst];
    if request.flags & !known != 0
        || (leaves && !chooses)
        || legs > legs_max
        || request.reorder_ns > reorder_max
        || request.payload_type > 127
        || simulated != [0; 3]
        || request.interval_ns != 0
    {
        return Err(EINVAL);
    }
    let features = if ordered { feature::ORDERED } else { 0 };
    Ok((features | if exact { feature::EXACT_TIMES } else { 0 }, legs))
}

/// Positions of the ring and bytes of a slot.
fn ring_numbers(request: &ioctl::Create) -> Result<(u32, u32)> {
    let order = or_default(request.ring_order, Parameters::get().ring_order);
    let stride = or_default(request.slot_stride, abi::SLOT_STRIDE_DEFAULT);
    let order_ok =
        (u32::from(abi::RING_ORDER_MIN)..=u32::from(abi::RING_ORDER_MAX)).contains(&order);
    let stride_ok = (abi::SLOT_STRIDE_MIN..=abi::SLOT_STRIDE_MAX).contains(&stride);
    if !order_ok || !stride_ok {
        return Err(EINVAL);
    }
    Ok((1_u32.wrapping_shl(order), stride))
}

/// The numbers of a transmit stream, checked. Only what belongs to one may be asked for.
fn transmit_shape(request: &ioctl::Create) -> Result<Shape> {
    let legs = or_default(request.legs, 1);
    if request.source != ioctl::SOURCE_UDP
        || request.flags != 0
        || legs > LEGS_MAX as u32
        || request.reorder_ns != 0
        || request.ssrc != 0
        || request.payload_type != 0
    {
        return Err(EINVAL);
    }
    let (slot_count, slot_stride) = ring_numbers(request)?;
    Ok(Shape {
        direction: abi::DIRECTION_TRANSMIT,
        features: 0,
        slot_count,
        slot_total: slot_count,
        slot_stride,
        legs,
        // The sender.
        sources: 1,
        stream_id: 0,
        owner_pid: 0,
        owner_uid: 0,
    })
}

/// The simulated engine that was asked for.
fn simulated(request: &ioctl::Create, shape: &Shape) -> Result<Simulated> {
    let content = match request.pattern {
        ioctl::PATTERN_RAW => Content::Raw,
        ioctl::PATTERN_RTP => Content::Rtp,
        _ => return Err(EINVAL),
    };
    let longest = shape.slot_stride.min(abi::PACKET_LEN_MAX);
    let packet_len = or_default(request.packet_len, PACKET_LEN.min(longest));
    let burst = or_default(request.burst, BURST.min(shape.slot_count));
    let interval_ns = match request.interval_ns {
        0 => Parameters::get().interval_ns,
        interval_ns => interval_ns,
    };
    if !(simulated::packet_len_min(content)..=longest).contains(&packet_len)
        || !simulated::BURSTS.contains(&burst)
        || !INTERVALS_NS.contains(&interval_ns)
    {
        return Err(EINVAL);
    }
    Ok(Simulated::new(simulated::Config {
        content,
        packet_len,
        burst,
        packet_len_max: longest,
        interval_ns,
        ssrc: monotonic_ns() as u32,
    }))
}

fn boxed(source: impl Source + 'static) -> Result<KBox<dyn Source>> {
    Ok(KBox::new(source, GFP_KERNEL_ACCOUNT)?)
}

impl Role {
    /// A new stream, as asked for, of a file with the credentials `opener`. A function of its own: it
    /// takes much of the stack. Fills in what the request is answered with.
    #[inline(never)]
    pub(crate) fn create(request: &mut ioctl::Create, opener: &ARef<Credential>) -> Result<Self> {
        let mut shape = shape(request)?;
        let transmit = shape.direction == abi::DIRECTION_TRANSMIT;
        let mode = if transmit { None } else { reader_mode(request.reader)? };
        let owner = Kuid::current_euid();
        let reservation = Reservation::new(owner, memory::bytes(&shape.header()))?;
        shape.stream_id = reservation.id();
        shape.owner_pid = current!().group_leader().pid() as u32;
        shape.owner_uid = owner.into_uid_in_current_ns();
        let header = shape.header();
        let memory = Memory::new(header, request.start)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                memory,
                waits <- pin_init::pin_init_array_from_fn(|_| WaitQueue::new()),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let kind = if transmit {
            Kind::Transmit(Transmit::new(request.start, shared.clone(), opener.clone())?)
        } else {
            let source = match request.source {
                ioctl::SOURCE_SIMULATED => Some(boxed(simulated(request, &shape)?)?),
                _ => None,
            };
            let legs = if source.is_some() { 0 } else { shape.legs as usize };
            let config = engine::config(&header, request, STALL_NS);
            let engine = Engine::new(&header, config, source)?;
            Kind::Receive(Receive::new(engine, config.filter, legs, shared.clone())?)
        };
        let control = Control { state: abi::STATE_CONFIGURED, stall_ns: STALL_NS };
        let files = Files { count: 1, allow_reliable: false };
        let stream = Arc::pin_init(
            pin_init!(Stream {
                control <- new_mutex!(control, "rtp_mgr control"),
                files <- new_mutex!(files, "rtp_mgr files"),
                kind,
                shared,
                reservation,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        stream.memory().live(abi::status::STATE).store(abi::STATE_CONFIGURED);
        let reader = match mode {
            Some(mode) => Some(stream.kind.add_reader(mode, false)?.0),
            None => None,
        };
        registry::publish(&stream);
        request.id = header.stream_id;
        request.total_len = header.total_len;
        request.reader_index = reader.map_or(ioctl::NO_READER, |reader| reader as u32);
        let reader = if transmit { Some(transmit::WRITER) } else { reader };
        Ok(Self { stream, reader, owner: true })
    }

    /// Another file of `stream`: a reader, or one that looks at figures. The owner's `own` readers may
    /// be reliable, and for ever.
    pub(crate) fn attach(
        stream: Arc<Stream>,
        own: bool,
        request: &mut ioctl::Attach,
    ) -> Result<Self> {
        let mode = reader_mode(request.reader)?;
        let (reader, start) = {
            let mut files = stream.files.lock();
            if files.count == 0 {
                return Err(ENOENT);
            }
            if mode == Some(Mode::Reliable) && !own && !files.allow_reliable {
                return Err(EPERM);
            }
            let (reader, start) = match mode {
                Some(mode) => {
                    let (reader, start) = stream.kind.add_reader(mode, !own)?;
                    (Some(reader), start)
                }
                None => (None, stream.memory().live(abi::status::HEAD).load()),
            };
            files.count = files.count.saturating_add(1);
            (reader, start)
        };
        request.start = start;
        request.total_len = stream.memory().header().total_len;
        request.reader_index = reader.map_or(ioctl::NO_READER, |reader| reader as u32);
        Ok(Self { stream, reader, owner: false })
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The reader that this file is. Of a transmit stream: the place of its writer.
    pub(crate) fn reader(&self) -> Option<usize> {
        self.reader
    }

    /// What it may see of the stream's memory.
    pub(crate) fn viewer(&self) -> Viewer {
        Viewer { reader: self.reader, owner: self.owner }
    }

    /// Fails for a file that only reads.
    pub(crate) fn require_owner(&self) -> Result {
        if self.owner {
            Ok(())
        } else {
            Err(EPERM)
        }
    }
}

impl Drop for Role {
    /// The file is closed, in process context.
    fn drop(&mut self) {
        let stream = &self.stream;
        let last = {
            let mut files = stream.files.lock();
            if let Some(reader) = self.reader {
                stream.kind.remove_reader(reader);
            }
            files.count = files.count.saturating_sub(1);
            files.count == 0
        };
        if last || (self.owner && stream.kind.ends_with_its_owner()) {
            let mut control = stream.control.lock();
            control.state = abi::STATE_STOPPED;
            stream.memory().live(abi::status::STATE).store(abi::STATE_STOPPED);
            stream.kind.end();
        }
        if last {
            drop(registry::withdraw(stream.id()));
        }
    }
}

impl Kind {
    fn add_reader(&self, mode: Mode, demotable: bool) -> Result<(usize, u64)> {
        match self {
            Self::Receive(receive) => receive.add_reader(mode, demotable),
            // It has a writer and no readers.
            Self::Transmit(_) => Err(EINVAL),
        }
    }

    fn remove_reader(&self, reader: usize) {
        match self {
            Self::Receive(receive) => receive.remove_reader(reader),
            // Its writer's place: the stream ends with that.
            Self::Transmit(_) => {}
        }
    }

    fn start(&self) -> Result {
        match self {
            Self::Receive(receive) => receive.start(),
            Self::Transmit(transmit) => transmit.start(),
        }
    }

    fn stop(&self) {
        match self {
            Self::Receive(receive) => receive.stop(),
            Self::Transmit(transmit) => transmit.stop(),
        }
    }

    /// Whether there is nothing left to run when the owner's file is closed.
    fn ends_with_its_owner(&self) -> bool {
        matches!(self, Self::Transmit(_))
    }

    /// Lets the legs of a stream that does not run go.
    fn let_go(&self) {
        match self {
            Self::Receive(receive) => receive.let_go(),
            Self::Transmit(transmit) => transmit.let_go(),
        }
    }

    /// Nobody has the stream any more, or may write: as [`stop`](Self::stop), whatever its state, and for
    /// good.
    fn end(&self) {
        match self {
            Self::Receive(receive) => receive.end(),
            Self::Transmit(transmit) => transmit.close(),
        }
    }

    fn counters(&self) -> StreamCounters {
        match self {
            Self::Receive(receive) => receive.counters(),
            Self::Transmit(transmit) => transmit.counters(),
        }
    }

    fn reset_counters(&self) -> Result {
        match self {
            Self::Receive(receive) => receive.reset_counters(),
            Self::Transmit(transmit) => transmit.reset_counters(),
        }
    }

    fn set_stall_ns(&self, stall_ns: u64) -> Result {
        match self {
            Self::Receive(receive) => receive.set_stall_ns(stall_ns),
            Self::Transmit(_) => return Err(EOPNOTSUPP),
        }
        Ok(())
    }

    fn set(&self, key: u32, value: u64) -> Result {
        match self {
            Self::Receive(receive) => receive.set(key, value),
            Self::Transmit(transmit) => transmit.set(key, value),
        }
    }

    fn get(&self, key: u32) -> Result<u64> {
        match self {
            Self::Receive(receive) => receive.get(key),
            Self::Transmit(transmit) => transmit.get(key),
        }
    }

    /// What poll says to `reader`. Called without the control lock.
    fn ready(&self, reader: usize) -> u32 {
        match self {
            Self::Receive(receive) => receive.ready(reader),
            Self::Transmit(transmit) => transmit.ready(),
        }
    }
}

impl Stream {
    /// Its number.
    pub(crate) fn id(&self) -> u64 {
        self.reservation.id()
    }

    /// What it shares.
    pub(crate) fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Hands a socket over.
    pub(crate) fn add_leg(&self, request: &ioctl::AddLeg) -> Result {
        let control = self.control.lock();
        if control.state == abi::STATE_RUNNING {
            return Err(EBUSY);
        }
        match &self.kind {
            Kind::Receive(receive) => {
                if request.flags & !ioctl::LEG_SOURCE != 0 {
                    return Err(EINVAL);
                }
                let source = (request.flags & ioctl::LEG_SOURCE != 0).then_some(request.source);
                receive.add_leg(request.fd, request.leg as usize, source)
            }
            Kind::Transmit(transmit) => transmit.add_leg(request),
        }
    }

    /// Hears what came beside the legs.
    pub(crate) fn heard(&self, request: &ioctl::Heard) -> Result {
        let _control = self.control.lock();
        let Kind::Receive(receive) = &self.kind else { return Err(EOPNOTSUPP) };
        if request.flags & !ioctl::HEARD_BYE != 0 {
            return Err(EINVAL);
        }
        let arrival_ns = if request.arrival_ns == 0 { u64::MAX } else { request.arrival_ns };
        let bye = (request.flags & ioctl::HEARD_BYE != 0).then_some((request.ssrc, arrival_ns));
        receive.heard(request.leg as usize, request.passed, bye)
    }

    /// Runs the stream. A stopped one resumes.
    pub(crate) fn start(&self) -> Result {
        let mut control = self.control.lock();
        if control.state == abi::STATE_RUNNING {
            return Err(EBUSY);
        }
        self.kind.start()?;
        control.state = abi::STATE_RUNNING;
        Ok(())
    }

    /// Stops it, and lets its legs go if so told, which one that does not run does, too.
    pub(crate) fn stop(&self, legs: bool) -> Result {
        let mut control = self.control.lock();
        let running = control.state == abi::STATE_RUNNING;
        if !running && !legs {
            return Err(EBUSY);
        }
        if running {
            control.state = abi::STATE_STOPPED;
            self.kind.stop();
        }
        if legs {
            self.kind.let_go();
        }
        Ok(())
    }

    /// The writer has committed something to a transmit stream.
    pub(crate) fn kick(&self) -> Result {
        match &self.kind {
            Kind::Receive(_) => Err(EOPNOTSUPP),
            Kind::Transmit(transmit) => {
                transmit.kick();
                Ok(())
            }
        }
    }

    /// State and counters.
    pub(crate) fn stats(&self) -> (u64, StreamCounters) {
        let counters = self.kind.counters();
        (self.memory().live(abi::status::STATE).load(), counters)
    }

    /// Counters back to zero.
    pub(crate) fn reset_stats(&self) -> Result {
        let _control = self.control.lock();
        self.kind.reset_counters()
    }

    /// Changes a setting; what that makes due earlier happens earlier.
    pub(crate) fn set(&self, key: u32, value: u64) -> Result {
        if key == ioctl::SETTING_ALLOW_RELIABLE {
            self.files.lock().allow_reliable = match value {
                0 => false,
                1 => true,
                _ => return Err(EINVAL),
            };
            return Ok(());
        }
        let mut control = self.control.lock();
        match (key, value) {
            (ioctl::SETTING_STALL_NS, 1_000_000..) => {
                self.kind.set_stall_ns(value)?;
                control.stall_ns = value;
            }
            (ioctl::SETTING_STALL_NS, _) => return Err(EINVAL),
            (ioctl::SETTING_CLOCK_RATE, _) => {
                let Kind::Receive(receive) = &self.kind else { return Err(EOPNOTSUPP) };
                if control.state != abi::STATE_CONFIGURED {
                    return Err(EBUSY);
                }
                return receive.set_clock_rate(value);
            }
            _ => return self.kind.set(key, value),
        }
        Ok(())
    }

    /// Reads a setting.
    pub(crate) fn get(&self, key: u32) -> Result<u64> {
        match key {
            ioctl::SETTING_ALLOW_RELIABLE => Ok(u64::from(self.files.lock().allow_reliable)),
            ioctl::SETTING_STALL_NS => Ok(self.control.lock().stall_ns),
            _ => self.kind.get(key),
        }
    }

    /// What LIST says of it: from the status page, since anybody's list may ask.
    pub(crate) fn entry(&self) -> ioctl::ListEntry {
        let memory = self.memory();
        let header = memory.header();
        let passed_on = match self.kind {
            Kind::Receive(_) => offset_of!(StreamCounters, published),
            Kind::Transmit(_) => offset_of!(StreamCounters, committed),
        };
        ioctl::ListEntry {
            id: header.stream_id,
            owner_pid: header.owner_pid,
            owner_uid: header.owner_uid,
            direction: header.direction,
            state: memory.live(abi::status::STATE).load() as u32,
            features: header.features,
            slot_count: header.slot_count,
            slot_stride: header.slot_stride,
            readers: memory.counter(offset_of!(StreamCounters, readers)) as u32,
            reserved: 0,
            published: memory.counter(passed_on),
            memory: memory::bytes(header),
        }
    }

    /// Registers `table` with the wait queue of `reader`, then says what there is for it.
    ///
    /// # Safety
    ///
    /// `file` and `table` are those of a poll operation on a file whose role this stream is.
    pub(crate) unsafe fn poll(
        &self,
        reader: usize,
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> u32 {
        if let Some(wait) = self.shared.waits.get(reader) {
            // SAFETY: As this function's own requirement: the file holds the stream.
            unsafe { wait.register(file, table) };
        }
        self.kind.ready(reader)
    }
}

#[pinned_drop]
impl PinnedDrop for Stream {
    fn drop(self: Pin<&mut Self>) {
        // The last file has done so; a stream that never had one never started.
        self.kind.end();
    }
}
