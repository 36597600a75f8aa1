//! Waiting for something to happen, with a deadline that only a failure reaches.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// How often a condition is looked at before the processor is given to others for longer.
const EAGER: u32 = 200;

/// As [`until`], for what takes another thread each time: on an emulated machine that thread's processor may
/// not run before this one has nothing to do.
#[track_caller]
pub(crate) fn idly_until(what: impl FnOnce() -> String, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {}", what());
        thread::sleep(Duration::from_micros(20));
    }
}

/// Waits until `holds`; `what` describes the failure when it does not within [`LONG`].
#[track_caller]
pub(crate) fn until(what: impl FnOnce() -> String, mut holds: impl FnMut() -> bool) {
    if !happens_within(LONG, &mut holds) {
        panic!("not within {LONG:?}: {}", what());
    }
}

/// Whether `holds` becomes true within `time`.
pub(crate) fn happens_within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    let mut looks = 0;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        looks += 1;
        if looks < EAGER {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(200));
        }
    }
}
