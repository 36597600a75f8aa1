//! Waiting for files with a deadline that is kept to the timer's precision.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits shorter than this are to end on time; what is left of a longer one is waited for next.
const PRECISE: Duration = Duration::from_millis(2);

/// Waits up to `timeout` for events of an epoll file; without one, for as long as it takes. It may
/// return early without any.
///
/// `epoll_wait` counts in milliseconds and rounds up (older kernels have nothing better), `ppoll`
/// in nanoseconds.
///
/// # Errors
/// A signal; what the kernel reports.
pub(crate) fn wait_events(
    epoll: impl AsFd,
    events: &mut [MaybeUninit<Event>],
    timeout: Option<Duration>,
) -> Result<&[Event], Errno> {
    let whole = match timeout {
        None => None,
        Some(Duration::ZERO) => Some(Timespec::default()),
        Some(short) if short < PRECISE => {
            let short = Timespec { tv_sec: 0, tv_nsec: short.subsec_nanos().into() };
            if poll(&mut [PollFd::new(&epoll, PollFlags::IN)], Some(&short))? == 0 {
                return Ok(&[]);
            }
            Some(Timespec::default())
        }
        Some(long) => {
            let ms = Duration::from_millis(u64::try_from(long.as_millis()).unwrap_or(u64::MAX));
            Timespec::try_from(ms).ok()
        }
    };
    let (events, _) = epoll::wait(epoll, events, whole.as_ref())?;
    Ok(events)
}

/// Waits until `file` is readable (or its other end has gone). `false`: the deadline came first.
/// Without a deadline it waits for as long as it takes.
pub(crate) fn wait_readable(file: impl AsFd, until: Option<Instant>) -> bool {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) if left == Some(Duration::ZERO) => return false,
            // Looks at the clock again.
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_wait_is_not_rounded_up_to_milliseconds() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut events = [const { MaybeUninit::uninit() }; 1];
        // The shortest of many: others run on this machine, too.
        let shortest = (0..200).map(|_| {
            let start = Instant::now();
            let events = wait_events(&epoll, &mut events, Some(Duration::from_micros(200)));
            assert!(events.unwrap().is_empty());
            start.elapsed()
        });
        let shortest = shortest.min().unwrap();
        assert!(shortest >= Duration::from_micros(200), "{shortest:?}");
        assert!(shortest < Duration::from_micros(900), "{shortest:?}");
    }

    #[test]
    fn what_is_ready_is_told_whatever_the_time() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &event, epoll::EventData::new_u64(7), epoll::EventFlags::IN).unwrap();
        let mut events = [const { MaybeUninit::uninit() }; 2];
        for timeout in [Some(0), Some(5), Some(5_000), None] {
            let timeout = timeout.map(Duration::from_millis);
            let ready = wait_events(&epoll, &mut events, timeout).unwrap();
            assert_eq!(ready.iter().map(|event| event.data.u64()).collect::<Vec<_>>(), [7]);
        }
    }
}
