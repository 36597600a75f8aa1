//! The transmit side of the embedded engine: from the ring into sockets.
//!
//! What lives here: one stream's loop body. [`TransmitStream`] takes what the writer committed, sends
//! what is due straight from the slots to every leg, releases what has left, and says when it wants
//! to be called again. What does not: threads and waiting ([`super::transmit_task`]), what is believed
//! of the writer ([`rtp_mgr_ring::transmit`]), when packets are due ([`rtp_mgr_ring::pace`]).
//!
//! A batch is sent to every leg before the next one begins: a packet counts as sent when at least
//! one leg took it. Sending copies, so that a slot is free as soon as its packet was taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rtp_mgr_ring::abi::{LegFigures, SourceFigures, StreamCounters, status};
use rtp_mgr_ring::batch::{BATCH_MAX, Batch, Part, Place, Run};
use rtp_mgr_ring::pace::{LATE_NS, Pacer, RETRY_NS, stall_limit_ns};
use rtp_mgr_ring::transmit::{Progress, TransmitCore, awake};

use super::worker::{NEVER, signal};
use crate::clock::{self, Clock};
use crate::error::Warning;
use crate::net::{SendBatch, SendError, Sent, SlotMemory};
use crate::rtcp::{self, NtpTime, SenderReport};
use crate::shm::{ControlPage, Region};
use crate::socket::TransmitSocket;
use crate::stats::State;

/// Batches before other streams get their turn.
const ROUNDS_MAX: usize = 8;
/// How often the clocks are looked at.
const HOUSEKEEPING_NS: u64 = 500_000_000;
/// Time between sender reports (RFC 3550 section 6.2).
const REPORT_NS: u64 = 5_000_000_000;

/// What a [`TransmitStream`] is made of.
pub(crate) struct Parts {
    pub region: Arc<Region>,
    /// The slots, once per leg.
    pub slots: Vec<SlotMemory>,
    pub legs: Vec<LegSockets>,
    pub start: u64,
    pub pacer: Option<Pacer>,
    pub gso: bool,
    /// The writer's control page.
    pub control: Arc<ControlPage>,
    /// Tells the writer that positions are free.
    pub event: Arc<OwnedFd>,
    /// RTCP: clock rate in Hz, when known, and canonical name.
    pub report: Option<(Option<u32>, String)>,
}

/// The sockets of a leg.
pub(crate) struct LegSockets {
    pub rtp: TransmitSocket,
    /// To the port above.
    pub rtcp: Option<TransmitSocket>,
}

struct Leg {
    sockets: LegSockets,
    batch: SendBatch,
    /// How far it is with the stream's batch.
    at: Place,
    blocked_since: Option<u64>,
    figures: LegFigures,
}

/// What the sender reports are made of.
pub(crate) struct Reports {
    clock_rate: Option<u32>,
    cname: String,
    next_ns: u64,
}

/// A transmit stream of the embedded engine.
pub(crate) struct TransmitStream {
    region: Arc<Region>,
    core: TransmitCore<Box<[Progress]>>,
    control: Arc<ControlPage>,
    event: Arc<OwnedFd>,
    legs: Vec<Leg>,
    pacer: Option<Pacer>,
    batch: Batch<Box<[Run]>>,
    reports: Option<Reports>,
    clock: Clock,
    housekeeping_ns: u64,
    warnings: Vec<Warning>,
}

/// When to go on.
enum Next {
    /// At once: there is more to do.
    Now,
    /// At this time.
    At(u64),
    /// When the writer kicks.
    Kick,
}

impl TransmitStream {
    pub(crate) fn new(parts: Parts) -> Self {
        let slot_count = parts.region.layout().slot_count();
        let stride = parts.region.layout().header().slot_stride;
        let legs = parts.legs.into_iter().zip(parts.slots).map(|(sockets, slots)| Leg {
            figures: LegFigures {
                socket_buffer: sockets.rtp.buffer().granted as u64,
                ..LegFigures::default()
            },
            sockets,
            batch: SendBatch::new(slots, BATCH_MAX, parts.gso),
            at: Place::default(),
            blocked_since: None,
        });
        let now = clock::monotonic_ns();
        let mut stream = Self {
            core: TransmitCore::new(
                vec![Progress::default(); slot_count].into(),
                stride,
                parts.start,
            ),
            region: parts.region,
            control: parts.control,
            event: parts.event,
            legs: legs.collect(),
            pacer: parts.pacer,
            batch: Batch::new(vec![Run::default(); BATCH_MAX].into()),
            reports: parts.report.map(|(clock_rate, cname)| Reports::new(clock_rate, cname)),
            clock: Clock::new(),
            housekeeping_ns: now,
            warnings: Vec::new(),
        };
        stream.tell_clock();
        stream.publish(now);
        stream
    }

    /// Number of legs.
    pub(crate) fn legs(&self) -> usize {
        self.legs.len()
    }

    /// The socket of `leg`, to wait on.
    pub(crate) fn fd(&self, leg: usize) -> Option<BorrowedFd<'_>> {
        self.legs.get(leg).map(|leg| leg.sockets.rtp.as_fd())
    }

    /// Whether `leg` takes no packets at present.
    pub(crate) fn is_blocked(&self, leg: usize) -> bool {
        self.legs.get(leg).is_some_and(|leg| leg.blocked_since.is_some())
    }

    /// What limits the stream, found out while it runs.
    pub(crate) fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Sends what is due. Returns when it wants to be called again, CLOCK_MONOTONIC in nanoseconds.
    pub(crate) fn run(&mut self) -> u64 {
        let region = self.region.clone();
        let need_kick = region.status_word(status::NEED_KICK);
        awake(need_kick);
        let mut next = Next::Now;
        for _ in 0..ROUNDS_MAX {
            next = self.round();
            match next {
                Next::Now => {}
                Next::At(_) => break,
                Next::Kick => {
                    if self.core.prepare_sleep(need_kick, self.control.view().position) {
                        break;
                    }
                    awake(need_kick);
                    next = Next::Now;
                }
            }
        }
        let now = clock::monotonic_ns();
        self.housekeep(now);
        let reports = self.report_due();
        let housekeeping = self.housekeeping_ns.saturating_add(HOUSEKEEPING_NS);
        match next {
            Next::Now => now,
            Next::At(at) => at.min(reports).min(housekeeping),
            Next::Kick => reports.min(housekeeping),
        }
    }

    /// Takes the next batch, if there is none, and sends what the legs take of it.
    fn round(&mut self) -> Next {
        let now = clock::monotonic_ns();
        self.core.observe_head(self.control.view().position.load_acquire());
        if self.batch.is_empty() {
            let next = self.take_batch(now);
            if self.batch.is_empty() {
                self.publish(now);
                return next;
            }
        }
        for leg in 0..self.legs.len() {
            self.send(leg, now);
        }
        self.give_up_stalled(now);
        if self.legs.iter().all(|leg| leg.at.done == self.batch.len()) {
            self.finish_batch(now);
            return Next::Now;
        }
        self.publish(now);
        Next::At(now.saturating_add(RETRY_NS))
    }

    /// Hands out what is due now.
    fn take_batch(&mut self, now_ns: u64) -> Next {
        let view = self.region.ring();
        let ready = self.core.ready();
        if ready == 0 {
            return Next::Kick;
        }
        let ready = match self.core.peek(&view) {
            Some(job) if ready > BATCH_MAX as u64 => whole_messages(job.len) as u64,
            _ => ready.min(BATCH_MAX as u64),
        };
        let (due, late, mut next) = match &mut self.pacer {
            None => (ready, 0, Next::Now),
            Some(pacer) => {
                let late = pacer.late(now_ns, ready);
                let due = pacer.due(now_ns, ready);
                (due.packets, late, Next::At(due.next_ns))
            }
        };
        let mut late = late;
        while (self.batch.len() as u64) < due {
            let Some(job) = self.core.peek(&view) else { break };
            if let Some(launch_ns) = job.launch_ns.filter(|_| self.pacer.is_none()) {
                let launch_ns = self.clock.monotonic_from_tai(launch_ns);
                if launch_ns > now_ns {
                    next = Next::At(launch_ns);
                    break;
                }
                late += u64::from(now_ns - launch_ns > LATE_NS);
            }
            self.core.take(&job);
            let mut run = Run::of(job);
            let room = due - self.batch.len() as u64 - 1;
            self.core.extend(&mut run, room as usize, &view);
            // There is room: no more is due than a batch has.
            self.batch.push(&run);
            for leg in &mut self.legs {
                leg.batch.add_row(job.slot, job.len as usize, run.count as usize);
            }
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.sent(self.batch.len() as u64);
            late = late.min(self.batch.len() as u64);
        }
        self.core.counters_mut().sent_late += late;
        next
    }

    /// Sends to one leg what it takes of the batch.
    fn send(&mut self, at: usize, now_ns: u64) {
        let Some(leg) = self.legs.get_mut(at) else { return };
        let batch = &mut self.batch;
        while leg.at.done < batch.len() {
            let sent = leg.batch.send(&leg.sockets.rtp);
            let counters = self.core.counters_mut();
            counters.socket_calls += sent.calls as u64;
            counters.coalesced += sent.coalesced as u64;
            count_icmp(&sent, leg, counters);
            if sent.packets > 0 {
                leg.took(batch, sent.packets, now_ns);
            }
            match sent.stop {
                None => break,
                Some(SendError::WouldBlock) => {
                    leg.blocked_since.get_or_insert(now_ns);
                    break;
                }
                Some(refused @ SendError::OffloadRefused(_)) => {
                    let peer = leg.sockets.rtp.peer_addr();
                    self.warnings.push(Warning::new(format!("leg {peer}: {refused}")));
                    leg.batch.split();
                }
                Some(error) => {
                    let skipped = leg.batch.skip();
                    leg.give_up(batch, skipped, errno(&error));
                }
            }
        }
    }

    /// Ends the waiting for legs that take nothing for too long.
    fn give_up_stalled(&mut self, now_ns: u64) {
        let limit = stall_limit_ns(self.legs.len());
        for leg in &mut self.legs {
            let since = leg.blocked_since.unwrap_or(now_ns);
            if now_ns.saturating_sub(since) >= limit {
                leg.give_up(&mut self.batch, usize::MAX, libc::EAGAIN as u32);
                // Still blocked: the next batch is given up at once, until it takes something.
                leg.blocked_since = Some(since);
            }
        }
    }

    /// Releases the batch: every leg is done with it.
    fn finish_batch(&mut self, now_ns: u64) {
        self.core.finish_batch(&self.batch, now_ns, &self.region.ring());
        self.batch.clear();
        for leg in &mut self.legs {
            leg.batch.clear();
            leg.at = Place::default();
        }
        self.publish(now_ns);
    }

    /// Publishes positions and figures, and wakes the writer if it waits for them.
    fn publish(&mut self, now_ns: u64) {
        let counters = self.core.counters(now_ns);
        self.region.counters().publish(&counters.to_words());
        for (at, leg) in self.legs.iter().enumerate() {
            self.region.leg(at).publish(&leg.figures.to_words());
        }
        if let Some(sender) = self.core.sender() {
            self.region.source(0).publish(&sender.to_words());
        }
        self.region.status_word(status::HEAD).store_release(self.core.head());
        self.core.publish_tail(self.region.status_word(status::TAIL));
        let wake_at = self.control.view().wake_at.load();
        if self.core.should_wake(wake_at) {
            signal(&*self.event);
        }
    }

    fn housekeep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.housekeeping_ns) >= HOUSEKEEPING_NS {
            self.housekeeping_ns = now_ns;
            if self.clock.refresh().is_some() {
                self.tell_clock();
            }
            self.publish(now_ns);
        }
        if self.report_due() <= now_ns {
            self.report(now_ns, false);
        }
    }

    fn tell_clock(&self) {
        let tai = self.clock.tai_offset();
        let word = |offset| self.region.status_word(offset);
        word(status::TAI_OFFSET_S).store(i64::from(tai.seconds) as u64);
        word(status::TAI_VALID).store(tai.valid.into());
        word(status::CLOCK_GENERATION).store_release(self.clock.generation());
    }

    /// Ends the stream: what was not sent is given up, RTCP says BYE.
    pub(crate) fn stop(&mut self) {
        let now = clock::monotonic_ns();
        for leg in &mut self.legs {
            leg.give_up(&mut self.batch, usize::MAX, libc::ECANCELED as u32);
        }
        self.finish_batch(now);
        self.core.observe_head(self.control.view().position.load_acquire());
        let view = self.region.clone();
        while let Some(job) = self.core.peek(&view.ring()) {
            self.core.take(&job);
            self.core.failed(job.position, libc::ECANCELED as u32);
        }
        self.report(now, true);
        self.publish(now);
        self.region.set_state(State::Stopped);
        self.wake();
    }

    /// Wakes the writer, whatever it waits for.
    pub(crate) fn wake(&self) {
        signal(&*self.event);
    }

    /// When the next sender report is due.
    fn report_due(&self) -> u64 {
        self.reports.as_ref().map_or(NEVER, |reports| reports.due(self.core.sender().is_some()))
    }

    /// Sends a sender report, or BYE, to every leg.
    fn report(&mut self, now_ns: u64, bye: bool) {
        let Some(reports) = &mut self.reports else { return };
        let sockets = self.legs.iter().filter_map(|leg| leg.sockets.rtcp.as_ref());
        reports.send(self.core.sender(), sockets, now_ns, bye);
    }
}

/// How many packets of `len` bytes to take when more are ready than a batch has: as many as fill messages to the last,
/// so that the next batch does not begin with the rest of one.
fn whole_messages(len: u32) -> usize {
    BATCH_MAX - BATCH_MAX % SendBatch::message_packets_max(len as usize)
}

impl Leg {
    /// The network took `packets` more of the batch.
    fn took(&mut self, batch: &mut Batch<Box<[Run]>>, packets: usize, now_ns: u64) {
        let bytes = |part: Part| part.count as u64 * u64::from(part.len);
        self.figures.bytes += batch.parts(&self.at, packets).map(bytes).sum::<u64>();
        self.figures.received += packets as u64;
        self.figures.last_ns = now_ns;
        self.blocked_since = None;
        batch.take(&mut self.at, packets);
    }

    /// Counts `packets` more of the batch, or what there are, as given up on this leg.
    fn give_up(&mut self, batch: &mut Batch<Box<[Run]>>, packets: usize, errno: u32) {
        self.figures.lost += batch.refuse(&mut self.at, packets, errno) as u64;
        self.blocked_since = None;
    }
}

impl Reports {
    pub(crate) fn new(clock_rate: Option<u32>, cname: String) -> Self {
        Self { clock_rate, cname, next_ns: 0 }
    }

    /// Whether reports can say what the RTP timestamp is when they are sent.
    pub(crate) fn has_clock(&self) -> bool {
        self.clock_rate.is_some()
    }

    /// When the next report is due.
    pub(crate) fn due(&self, has_sender: bool) -> u64 {
        if self.has_clock() && has_sender { self.next_ns } else { NEVER }
    }

    /// Sends a report on `sender`, or its BYE, through every socket.
    pub(crate) fn send<'s>(
        &mut self,
        sender: Option<SourceFigures>,
        sockets: impl Iterator<Item = &'s TransmitSocket>,
        now_ns: u64,
        bye: bool,
    ) {
        self.next_ns = now_ns.saturating_add(REPORT_NS);
        let Some(report) = sender.map(|sender| self.report(&sender, now_ns)) else { return };
        let datagram = match bye {
            true => rtcp::bye(&report, &self.cname, None),
            false => rtcp::sender_report(&report, &self.cname),
        };
        let Ok(datagram) = datagram else { return };
        for rtcp in sockets {
            // Nobody may be listening there.
            if let Err(error) = rtcp.send(&datagram) {
                tracing::debug!(%error, "RTCP");
            }
        }
    }

    /// The report of this moment. Without a clock rate the RTP timestamp is that of the latest
    /// packet.
    fn report(&self, sender: &SourceFigures, now_ns: u64) -> SenderReport {
        let since = u128::from(now_ns.saturating_sub(sender.last_ns));
        let ticks = since * u128::from(self.clock_rate.unwrap_or(0)) / 1_000_000_000;
        SenderReport {
            ssrc: sender.ssrc_clock_rate as u32,
            ntp: NtpTime::from_unix_ns(clock::realtime_ns()),
            rtp_timestamp: (sender.rtp_timestamp as u32).wrapping_add(ticks as u32),
            packets: sender.received as u32,
            octets: sender.bytes as u32,
        }
    }
}

fn count_icmp(sent: &Sent, leg: &mut Leg, counters: &mut StreamCounters) {
    let errors = sent.icmp_errors as u64;
    if errors > 0 {
        leg.figures.external_drops += errors;
        counters.external_drops += errors;
        counters.send_errno = libc::ECONNREFUSED as u64;
    }
}

/// The error number that a send ended with.
fn errno(error: &SendError) -> u32 {
    let number = match error {
        SendError::WouldBlock => Some(libc::EAGAIN),
        SendError::TooLong { .. } => Some(libc::EMSGSIZE),
        SendError::OffloadRefused(error) | SendError::Unreachable(error) | SendError::Os(error) => {
            error.raw_os_error()
        }
    };
    number.unwrap_or(libc::EIO) as u32
}
