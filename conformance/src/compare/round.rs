//! One round: two streams get the same datagrams in the same order, and are compared.
//!
//! What lives here: sending in step, and noticing that the machine stood still where time decides. What does
//! not: what is sent ([`super::plan`]) and what is looked at ([`super::recording`]).
//!
//! Of two legs the embedded engine reads one socket after the other, so what was sent to one is taken before
//! anything goes to the other.

use std::thread;
use std::time::{Duration, Instant};

use rtp_mgr::Engine;

use super::plan::{Plan, Step};
use super::recording::{Difference, Equal, difference};
use super::stream::{Stream, senders};

/// How much later the second stream may get a packet than the first.
const SKEW_MAX: Duration = Duration::from_millis(40);
/// An ordered stream asks whether a leg, or a source, was silent for 200 ms. With an answer that is further
/// from that than the skew, and some, both streams give the same one.
const DOUBTFUL: std::ops::Range<Duration> = Duration::from_millis(120)..Duration::from_millis(280);

/// How a round ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Everything that was compared is equal. The figures are the first stream's.
    Equal(Box<super::recording::Figures>),
    /// They differ.
    Differ {
        difference: Difference,
        /// The step after which that was seen, and how many there are.
        step: usize,
        steps: usize,
    },
    /// The machine stood still where time decides: nothing is known.
    Disturbed,
}

/// When something was last sent to each leg.
struct Watch {
    ordered: bool,
    /// Anything, and packets of the followed source.
    sent: [[Option<Instant>; 2]; 2],
}

impl Watch {
    /// Notes a send that took from `begin` to `end`. Returns whether it came at a doubtful time.
    fn note(&mut self, leg: usize, followed: bool, begin: Instant, end: Instant) -> bool {
        let ages = self.sent.iter().flatten().flatten().map(|sent| begin.duration_since(*sent));
        let doubtful = ages.into_iter().any(|age| DOUBTFUL.contains(&age));
        let skewed = end.duration_since(begin) > SKEW_MAX;
        self.sent[0][leg] = Some(end);
        if followed {
            self.sent[1][leg] = Some(end);
        }
        self.ordered && (doubtful || skewed)
    }
}

/// Runs `plan` on streams of both engines.
#[track_caller]
pub(crate) fn run(plan: &Plan, engines: [Engine; 2]) -> Ended {
    let senders = senders(&plan.shape, &plan.steps);
    let mut streams = engines.map(|engine| Stream::open(engine, &plan.shape, &senders));
    let mut watch = Watch { ordered: plan.shape.ordered, sent: [[None; 2]; 2] };
    let mut equal = Equal::default();
    let mut last_leg = None;
    for (step, what) in plan.steps.iter().enumerate() {
        match what {
            Step::Send { leg, from, packets, followed } => {
                if last_leg.replace(*leg).is_some_and(|last| last != *leg)
                    || streams.iter().any(|stream| !stream.has_room(packets))
                {
                    streams.iter_mut().for_each(Stream::settle);
                }
                let begin = Instant::now();
                streams.iter_mut().for_each(|stream| stream.send(*leg, *from, packets));
                if watch.note(*leg, *followed, begin, Instant::now()) {
                    return Ended::Disturbed;
                }
            }
            Step::Tell { leg, from, datagram } => {
                streams.iter_mut().for_each(|stream| stream.tell(*leg, *from, datagram));
            }
            Step::Read => {
                streams.iter_mut().for_each(Stream::settle);
                streams.iter_mut().for_each(Stream::read);
            }
            Step::Skim => {
                streams.iter_mut().for_each(Stream::settle);
                streams.iter_mut().for_each(Stream::skim);
            }
            Step::Pause(time) => {
                streams.iter_mut().for_each(Stream::settle);
                // The silence is what is tried.
                thread::sleep(*time);
            }
        }
        if matches!(what, Step::Read | Step::Skim)
            && let Some(difference) = compare(&streams, &mut equal)
        {
            return Ended::Differ { difference, step, steps: plan.steps.len() };
        }
    }
    streams.iter_mut().for_each(Stream::finish);
    let step = plan.steps.len();
    match compare(&streams, &mut equal) {
        Some(difference) => Ended::Differ { difference, step, steps: step },
        None => {
            let [left, _] = streams;
            let figures = left.recording.last.expect("it has just finished");
            Ended::Equal(Box::new(figures))
        }
    }
}

fn compare(streams: &[Stream; 2], equal: &mut Equal) -> Option<Difference> {
    let [left, right] = streams.each_ref().map(|stream| &stream.recording);
    difference(left, right, equal)
}

/// What one stream makes of `plan`.
#[cfg(test)]
pub(crate) fn record(plan: &Plan, engine: Engine) -> super::recording::Recording {
    let senders = senders(&plan.shape, &plan.steps);
    let mut stream = Stream::open(engine, &plan.shape, &senders);
    for step in &plan.steps {
        match step {
            Step::Send { leg, from, packets, .. } => {
                if !stream.has_room(packets) {
                    stream.settle();
                }
                stream.send(*leg, *from, packets);
            }
            Step::Tell { leg, from, datagram } => stream.tell(*leg, *from, datagram),
            Step::Read => {
                stream.settle();
                stream.read();
            }
            Step::Skim => {
                stream.settle();
                stream.skim();
            }
            Step::Pause(_) => {}
        }
    }
    stream.finish();
    stream.recording
}
