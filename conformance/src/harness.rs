//! What behaviours run on: the engine, what it and the machine can do, streams on the loopback
//! interface.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rtp_mgr::ring::abi::StreamCounters;
use rtp_mgr::{
    Engine, EngineKind, Leg, Receiver, ReceiverBuilder, StreamSnapshot, Transmitter,
    TransmitterBuilder,
};

use crate::behaviours::books;
use crate::heard::{self, Heard};
use crate::wait;
use crate::wire::{Line, Sender};

/// What a behaviour takes that not every engine or machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Packets coalesced on receive (GRO) and cut up on send (GSO).
    Offload,
    /// Readers in other processes.
    OtherProcesses,
    /// The simulated source.
    Simulated,
    /// Transmit streams.
    Transmit,
}

/// Why a behaviour could not be looked at here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun(pub String);

impl NotRun {
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The engine under test.
#[derive(Clone, Debug)]
pub struct Harness {
    engine: Engine,
    program: PathBuf,
    without: Vec<(Need, String)>,
}

impl Harness {
    /// Tests `engine`. `program` is this crate's program, for the processes that behaviours start.
    pub fn new(engine: Engine, program: impl Into<PathBuf>) -> Self {
        Self { engine, program: program.into(), without: Vec::new() }
    }

    /// Behaviours with this need are not run here.
    #[must_use]
    pub fn without(mut self, need: Need, reason: impl Into<String>) -> Self {
        self.without.push((need, reason.into()));
        self
    }

    /// The engine under test.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Who is expected to run the streams.
    pub fn kind(&self) -> EngineKind {
        match self.engine {
            Engine::Kernel => EngineKind::Kernel,
            Engine::Auto | Engine::User => EngineKind::User,
        }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn needs(&self, need: Need) -> Result<(), NotRun> {
        match self.without.iter().find(|(missing, _)| *missing == need) {
            Some((_, reason)) => Err(NotRun::because(reason)),
            None => Ok(()),
        }
    }

    /// A receive stream's settings, with nothing that one behaviour could get in another's way with:
    /// no second port.
    pub(crate) fn receiver(&self) -> ReceiverBuilder {
        Receiver::builder().engine(self.engine).rtcp(false)
    }

    pub(crate) fn transmitter(&self) -> TransmitterBuilder {
        Transmitter::builder().engine(self.engine).rtcp(false)
    }

    /// A receive stream with one leg on the loopback interface.
    pub(crate) fn rig(&self, settings: impl FnOnce(ReceiverBuilder) -> ReceiverBuilder) -> Rig {
        Rig::open(settings(self.receiver().leg(loopback())))
    }

    /// A receive stream with two legs on the loopback interface.
    pub(crate) fn redundant(
        &self,
        settings: impl FnOnce(ReceiverBuilder) -> ReceiverBuilder,
    ) -> Rig {
        Rig::open(settings(self.receiver().leg(loopback()).leg(loopback())))
    }

    /// A receive stream that has the port above its own for RTCP, too.
    pub(crate) fn rig_with_rtcp(
        &self,
        settings: impl Fn(ReceiverBuilder) -> ReceiverBuilder,
    ) -> Rig {
        // The kernel chooses the port; the one above may be somebody's.
        for _ in 0..50 {
            let rig = self.rig(|builder| settings(builder.rtcp(true)));
            if !rig.rx.warnings().iter().any(|warning| warning.text().contains("RTCP")) {
                return rig;
            }
        }
        panic!("in 50 tries no port whose neighbour is free");
    }

    /// A transmit stream to `to`.
    pub(crate) fn transmit(
        &self,
        to: SocketAddr,
        settings: impl FnOnce(TransmitterBuilder) -> TransmitterBuilder,
    ) -> Transmitter {
        settings(self.transmitter().leg(Leg::new(to.ip(), to.port())))
            .open()
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A leg on the loopback interface whose port the kernel chooses.
pub(crate) fn loopback() -> Leg {
    "127.0.0.1:0".parse().expect("a leg")
}

/// A name for a stream that no other behaviour, in this process or another, uses.
pub(crate) fn unique_name(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("conformance-{what}-{}-{count}", std::process::id())
}

/// A receive stream and what leads to it.
pub(crate) struct Rig {
    pub rx: Receiver,
    pub line: Line,
}

impl Rig {
    #[track_caller]
    pub(crate) fn open(builder: ReceiverBuilder) -> Self {
        let rx = builder.open().unwrap_or_else(|error| panic!("{error}"));
        let line = Line::to(&rx);
        Self { rx, line }
    }

    /// Sends to leg 0.
    pub(crate) fn sender(&self) -> Sender {
        self.line.sender(0)
    }

    /// The counters once everything sent is in them.
    #[track_caller]
    pub(crate) fn counters(&self) -> StreamCounters {
        self.line.settle();
        let counters = self.rx.stats().counters();
        books::assert_balanced(&counters);
        counters
    }

    /// The next `packets` packets and what lies between them.
    #[track_caller]
    pub(crate) fn hear(&mut self, packets: usize) -> Vec<Heard> {
        heard::hear(&mut self.rx, packets)
    }

    /// What is there now that everything sent has been taken.
    #[track_caller]
    pub(crate) fn hear_present(&mut self) -> Vec<Heard> {
        self.line.settle();
        heard::hear_present(&mut self.rx)
    }

    /// Waits until the engine is done with everything sent so far, down to waking readers: it has
    /// begun with something that was sent after all of that had been counted.
    #[track_caller]
    pub(crate) fn let_engine_come_round(&self) {
        self.line.settle();
        let side = self.rx.side_channel();
        self.sender().datagram(b"no RTP");
        side.recv(wait::LONG).expect("what is no RTP is passed on");
    }

    /// Sends in pieces that fit the ring and reads along.
    #[track_caller]
    pub(crate) fn relay(
        &mut self,
        sender: &Sender,
        sequences: impl IntoIterator<Item = u16>,
    ) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut sequences = sequences.into_iter().peekable();
        let piece = (self.rx.slot_count() / 4).clamp(1, 64) as usize;
        while sequences.peek().is_some() {
            for sequence in sequences.by_ref().take(piece) {
                sender.send(sequence);
            }
            heard.extend(self.hear_present());
        }
        heard
    }

    /// Stops the stream. Returns the rest of what it has to read and the final figures.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (Vec<Heard>, StreamSnapshot) {
        self.line.settle();
        self.rx.stop().unwrap_or_else(|error| panic!("{error}"));
        let rest = heard::hear_rest(&mut self.rx);
        let snapshot = self.rx.stats().snapshot();
        books::assert_balanced(&snapshot.counters);
        (rest, snapshot)
    }

    /// Waits until the counters are as `holds` says.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&StreamCounters) -> bool) {
        wait_for(&self.rx.stats(), what, holds);
    }
}

/// Waits until a stream's counters are as `holds` says.
#[track_caller]
pub(crate) fn wait_for(
    stats: &rtp_mgr::Stats,
    what: &str,
    holds: impl Fn(&StreamCounters) -> bool,
) {
    wait::until(|| format!("{what}: {:?}", stats.counters()), || holds(&stats.counters()));
}

/// So many milliseconds.
pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The error of something that has to be refused.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T, rtp_mgr::Error>) -> rtp_mgr::Error {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error,
    }
}
