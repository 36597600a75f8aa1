//! When a receive command has had enough.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rtp_mgr::rtcp::Compound;
use rtp_mgr::{Kind, SideChannel, StreamSnapshot};

use crate::cli::RxArgs;
use crate::figures::followed;

/// How long it must have been quiet after a BYE: RTP and RTCP come through different sockets, so
/// the BYE can overtake the last packets.
const QUIET: Duration = Duration::from_millis(200);
/// A source that still sends this long after its BYE has not left.
const BYE_HOLDS: Duration = Duration::from_secs(2);

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// `--count` packets.
    Count,
    /// `--duration` is over.
    Duration,
    /// `--idle-timeout` without a packet.
    Idle,
    /// Every source said BYE.
    Bye,
    /// The owner of the stream stopped it.
    Stopped,
}

impl Reason {
    /// For the summary.
    pub fn text(self) -> &'static str {
        match self {
            Self::Signal => "interrupted",
            Self::Count => "--count reached",
            Self::Duration => "--duration is over",
            Self::Idle => "nothing arrived for --idle-timeout",
            Self::Bye => "the sender said BYE",
            Self::Stopped => "the owner stopped the stream",
        }
    }
}

/// Watches for the end.
#[derive(Debug)]
pub struct End {
    count: Option<u64>,
    deadline: Option<Instant>,
    idle: Option<Duration>,
    packets: u64,
    latest: Instant,
    byes: HashMap<u32, Instant>,
}

impl End {
    /// From now on.
    pub fn new(args: &RxArgs) -> Self {
        let now = Instant::now();
        Self {
            count: args.count,
            deadline: args.duration.map(|duration| now + duration),
            idle: args.idle_timeout,
            packets: 0,
            latest: now,
            byes: HashMap::new(),
        }
    }

    /// How many more packets are wanted.
    pub fn wanted(&self) -> u64 {
        self.count.map_or(u64::MAX, |count| count.saturating_sub(self.packets))
    }

    /// Packets were read.
    pub fn took(&mut self, packets: u64, now: Instant) {
        if packets > 0 {
            self.packets += packets;
            self.latest = now;
        }
    }

    /// Looks for BYE in what the stream left to its sockets.
    pub fn listen(&mut self, side: &SideChannel, now: Instant) {
        while let Some(packet) = side.try_recv() {
            if packet.kind != Kind::Rtcp {
                continue;
            }
            let compound = Compound::parse(&packet.bytes).unwrap_or_default();
            for ssrc in compound.byes {
                self.byes.insert(ssrc, now);
            }
        }
    }

    /// Whether it is over, as far as time and number go.
    pub fn reached(&self, now: Instant) -> Option<Reason> {
        if self.wanted() == 0 {
            Some(Reason::Count)
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            Some(Reason::Duration)
        } else if self.idle.is_some_and(|idle| now.duration_since(self.latest) >= idle) {
            Some(Reason::Idle)
        } else {
            None
        }
    }

    /// Whether every source has left and nothing of theirs is on its way. `snapshot` is asked for
    /// only when there was a BYE and it is quiet.
    pub fn all_left(&mut self, now: Instant, snapshot: impl FnOnce() -> StreamSnapshot) -> bool {
        let quiet = now.duration_since(self.latest) >= QUIET;
        if !quiet {
            self.byes.retain(|_, said| now.duration_since(*said) < BYE_HOLDS);
        }
        let settled = self.byes.values().any(|said| now.duration_since(*said) >= QUIET);
        if self.packets == 0 || !quiet || !settled {
            return false;
        }
        let snapshot = snapshot();
        let sources = followed(&snapshot);
        snapshot.counters.staged == 0
            && !sources.is_empty()
            && sources.iter().all(|source| self.byes.contains_key(&source.ssrc))
    }

    /// The longest that may be waited for a packet before looking here again.
    pub fn patience(&self, now: Instant, most: Duration) -> Duration {
        let mut patience = most;
        if let Some(deadline) = self.deadline {
            patience = patience.min(deadline.saturating_duration_since(now));
        }
        if let Some(idle) = self.idle {
            patience = patience.min((self.latest + idle).saturating_duration_since(now));
        }
        patience
    }
}
