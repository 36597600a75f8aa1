//! Waiting for packets: `read`, the descriptor by level and by edge, thresholds.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rtp_mgr::Receiver;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::harness::{Harness, ms};
use crate::heard::{self, all, assert_heard};
use crate::wait::LONG;

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

/// Whether the descriptor is readable, now or within `time`.
pub(super) fn readable(stream: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(&stream, PollFlags::IN)];
    poll(&mut fds, Some(&timespec(time))).expect("poll works") == 1
}

/// One descriptor on an epoll of its own.
struct Epoll(std::os::fd::OwnedFd);

impl Epoll {
    fn new(stream: &Receiver, edge: bool) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let edge = if edge { epoll::EventFlags::ET } else { epoll::EventFlags::empty() };
        let data = epoll::EventData::new_u64(1);
        epoll::add(&epoll, stream, data, epoll::EventFlags::IN | edge).expect("it can be added");
        Self(epoll)
    }

    fn fires(&self, time: Duration) -> bool {
        let mut events = Vec::with_capacity(1);
        epoll::wait(&self.0, spare_capacity(&mut events), Some(&timespec(time)))
            .expect("epoll works")
            == 1
    }
}

pub(crate) fn read_waits_no_longer_than_asked(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    for time in [ms(0), ms(30)] {
        let before = Instant::now();
        let batch = rig.rx.read(time).expect("the engine runs").expect("it has not stopped");
        assert!(batch.is_empty() && batch.iter().next().is_none());
        drop(batch);
        assert!(before.elapsed() >= time && before.elapsed() < LONG, "{:?}", before.elapsed());
    }
}

pub(crate) fn a_packet_wakes_a_waiting_reader(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    // Each is sent while the reader sleeps, or is about to.
    thread::scope(|scope| {
        let (told, tell) = std::sync::mpsc::channel();
        scope.spawn(move || {
            for sequence in 0..300 {
                sender.send(sequence);
                tell_waits(&tell);
            }
        });
        for sequence in 0..300 {
            assert_heard(&rig.hear(1), all([sequence]));
            told.send(()).expect("the sender listens");
        }
    });
}

fn tell_waits(tell: &std::sync::mpsc::Receiver<()>) {
    tell.recv_timeout(LONG).expect("the packet was heard");
}

pub(crate) fn the_descriptor_tells_by_level(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    let epoll = Epoll::new(&rig.rx, false);
    assert_heard(&rig.hear_present(), []);
    assert!(!readable(&rig.rx, ms(0)));
    for round in 0..200 {
        sender.send(round);
        assert!(readable(&rig.rx, LONG), "round {round}");
        assert!(epoll.fires(LONG), "round {round}");
        // As long as nobody has read.
        assert!(readable(&rig.rx, ms(0)) && epoll.fires(ms(0)), "round {round}");
        assert_heard(&rig.hear_present(), all([round]));
        assert!(!readable(&rig.rx, ms(0)) && !epoll.fires(ms(0)), "round {round}: all is read");
    }
}

pub(crate) fn the_descriptor_tells_by_edge(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    let epoll = Epoll::new(&rig.rx, true);
    assert_heard(&rig.hear_present(), []);
    epoll.fires(ms(0));
    thread::scope(|scope| {
        // Packets come while the ring is drained, too: none may be left behind without an edge.
        let sending = scope.spawn(|| {
            for sequence in 0..3_000 {
                sender.send(sequence);
                if sequence % 7 == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut heard = Vec::new();
        while heard.len() < 3_000 {
            assert!(epoll.fires(LONG), "no edge after {} packets", heard.len());
            heard.extend(heard::hear_present(&mut rig.rx));
        }
        assert_heard(&heard, all(0..3_000));
        sending.join().expect("the sender does not panic");
    });
}

pub(crate) fn a_batch_waits_for_its_threshold(h: &Harness) {
    let mut rig = h.rig(|builder| builder.wake_threshold(8).max_latency(Duration::from_secs(60)));
    let sender = rig.sender();
    for round in 0..20 {
        assert_heard(&rig.hear_present(), []);
        let first = round * 8;
        sender.send_all(first..first + 7);
        rig.let_engine_come_round();
        assert!(!readable(&rig.rx, ms(0)), "round {round}");
        sender.send(first + 7);
        assert!(readable(&rig.rx, LONG), "round {round}");
        assert_heard(&rig.hear(8), all(first..first + 8));
    }
    assert!(rig.counters().wakeups <= 20);
}

pub(crate) fn a_batch_below_its_threshold_does_not_wait_for_ever(h: &Harness) {
    let latency = ms(40);
    let mut rig = h.rig(|builder| builder.wake_threshold(500).max_latency(latency));
    let sender = rig.sender();
    for round in 0..5 {
        assert_heard(&rig.hear_present(), []);
        sender.send(round);
        assert!(readable(&rig.rx, LONG), "round {round}");
        assert_heard(&rig.hear_present(), all([round]));
    }
}
