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

/// An ordered stream asks whether a leg, or a source, was silent for so long.
const SILENCE: Duration = Duration::from_millis(200);
/// Between a packet's arrival and the send.
const SLACK: Duration = Duration::from_millis(2);
/// How much longer a silence may be than it was meant to.
const OVERSLEPT: Duration = Duration::from_millis(250);
/// How late an engine's timer may be.
const TIMER: Duration = Duration::from_millis(80);

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
    /// The machine stood still where time decides, and so: nothing is known.
    Disturbed(String),
}

/// When something was last sent to each leg: begin and end of sending it to both streams.
struct Watch {
    ordered: bool,
    /// Anything, and packets of the followed source.
    sent: [[Option<(Instant, Instant)>; 2]; 2],
}

impl Watch {
    /// What is wrong with doing something from `begin` to `end`: the silence before it may have been long enough
    /// for one stream and not for the other.
    fn doubt(&self, begin: Instant, end: Instant) -> Option<String> {
        let silences = self.sent.iter().flatten().flatten().map(|(last_begin, last_end)| {
            let (least, most) = (begin.duration_since(*last_end), end.duration_since(*last_begin));
            least.saturating_sub(TIMER)..most + SLACK
        });
        let doubtful = silences.into_iter().find(|silence| silence.contains(&SILENCE));
        let doubtful = doubtful.filter(|_| self.ordered);
        doubtful.map(|silence| format!("a leg or source was silent for {silence:?}"))
    }

    /// Notes a send from `begin` to `end`.
    fn note(&mut self, leg: usize, followed: bool, begin: Instant, end: Instant) {
        self.sent[0][leg] = Some((begin, end));
        if followed {
            self.sent[1][leg] = Some((begin, end));
        }
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
                let end = Instant::now();
                if let Some(why) = watch.doubt(begin, end) {
                    return Ended::Disturbed(format!("at step {step} {why}"));
                }
                watch.note(*leg, *followed, begin, end);
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
                let begin = Instant::now();
                // The silence is what is tried.
                thread::sleep(*time);
                let slept = begin.elapsed();
                if slept > *time + OVERSLEPT {
                    return Ended::Disturbed(format!("at step {step} {time:?} took {slept:?}"));
                }
            }
        }
        if matches!(what, Step::Read | Step::Skim)
            && let Some(difference) = compare(&streams, &mut equal)
        {
            let now = Instant::now();
            return match watch.doubt(now, now) {
                Some(why) => Ended::Disturbed(format!("at step {step} {why}")),
                None => Ended::Differ { difference, step, steps: plan.steps.len() },
            };
        }
    }
    let now = Instant::now();
    streams.iter_mut().for_each(Stream::finish);
    let step = plan.steps.len();
    match compare(&streams, &mut equal) {
        Some(_) if watch.doubt(now, Instant::now()).is_some() => {
            Ended::Disturbed("at the end".into())
        }
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
