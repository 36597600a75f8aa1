//! What a receive stream leaves to its sockets: RTCP, STUN, DTLS and the rest, and RTP of others if it is asked to.
//!
//! What lives here: a bounded queue from the engine to whoever listens. What does not: telling the
//! kinds apart ([`rtp_mgr_ring::header`]).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rtp_mgr_ring::header::Kind;

use crate::engine::worker::{drain, new_event, signal};
use crate::error::Error;
use crate::poll::wait_readable;

/// Most datagrams that wait to be taken.
const PACKETS_MAX: usize = 1_024;
/// Most bytes of them.
const BYTES_MAX: usize = 1 << 20;

/// A datagram that is no RTP, or RTP that is not the stream's
/// ([`leave_others`](crate::ReceiverBuilder::leave_others)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidePacket {
    /// What it seems to be (RFC 5761, RFC 7983).
    pub kind: Kind,
    /// Leg that brought it: 0 or 1.
    pub leg: u8,
    /// It came on the port above the leg's, where RTCP is expected.
    pub rtcp_port: bool,
    /// Who sent it.
    pub from: SocketAddr,
    /// Arrival, nanoseconds of CLOCK_TAI.
    pub time_ns: u64,
    /// The datagram.
    pub bytes: Box<[u8]>,
}

/// Receives [`SidePacket`]s. Clones share one queue, which holds up to 1,024 datagrams and 1 MiB:
/// what finds it full is dropped and counted.
#[derive(Clone, Debug)]
pub struct SideChannel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    event: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<SidePacket>,
    bytes: usize,
    dropped: u64,
    closed: bool,
    /// The event was signalled since it was drained last.
    signalled: bool,
}

impl SideChannel {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self { shared: Arc::new(Shared { queue: Mutex::default(), event: new_event()? }) })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under this lock.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next, without waiting. After `None` [`AsFd`] becomes readable when there is another.
    pub fn try_recv(&self) -> Option<SidePacket> {
        let mut queue = self.queue();
        match queue.packets.pop_front() {
            Some(packet) => {
                queue.bytes -= packet.bytes.len();
                Some(packet)
            }
            None => {
                if !queue.closed && std::mem::take(&mut queue.signalled) {
                    drain(&self.shared.event);
                }
                None
            }
        }
    }

    /// The next, waiting up to `timeout`. `None`: the time ran out, or the stream has stopped.
    pub fn recv(&self, timeout: Duration) -> Option<SidePacket> {
        let until = Instant::now().checked_add(timeout);
        loop {
            if let Some(packet) = self.try_recv() {
                return Some(packet);
            }
            if self.queue().closed || !wait_readable(&self.shared.event, until) {
                return self.try_recv();
            }
        }
    }

    /// Datagrams dropped because nobody took them.
    pub fn dropped(&self) -> u64 {
        self.queue().dropped
    }

    /// Queues a datagram, if there is room.
    pub(crate) fn push(&self, packet: SidePacket) {
        let mut queue = self.queue();
        let bytes = queue.bytes + packet.bytes.len();
        if queue.packets.len() >= PACKETS_MAX || bytes > BYTES_MAX {
            queue.dropped += 1;
            return;
        }
        queue.bytes = bytes;
        queue.packets.push_back(packet);
        if queue.packets.len() == 1 {
            queue.signalled = true;
            signal(&self.shared.event);
        }
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.queue().closed = true;
        signal(&self.shared.event);
    }
}

impl AsFd for SideChannel {
    /// Readable when there is a datagram since the last [`try_recv`](Self::try_recv) that found
    /// none, and from when the stream has stopped.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(len: usize) -> SidePacket {
        SidePacket {
            kind: Kind::Stun,
            leg: 0,
            rtcp_port: false,
            from: "127.0.0.1:9".parse().unwrap(),
            time_ns: 0,
            bytes: vec![0; len].into(),
        }
    }

    #[test]
    fn what_finds_the_queue_full_is_dropped_and_counted() {
        let side = SideChannel::new().unwrap();
        (0..PACKETS_MAX + 3).for_each(|_| side.push(packet(1)));
        assert_eq!(side.dropped(), 3);
        let taken = std::iter::from_fn(|| side.try_recv()).count();
        assert_eq!(taken, PACKETS_MAX);
        (0..20).for_each(|_| side.push(packet(BYTES_MAX / 16)));
        assert_eq!(side.dropped(), 3 + 4);
        let taken = std::iter::from_fn(|| side.try_recv()).count();
        assert_eq!(taken, 16);
        side.push(packet(1));
        assert!(side.try_recv().is_some());
    }

    #[test]
    fn waiting_ends_with_a_datagram_and_with_the_stream() {
        let side = SideChannel::new().unwrap();
        assert!(side.recv(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| side.recv(Duration::from_secs(10)));
            side.push(packet(1));
            assert!(waiting.join().unwrap().is_some());
            let waiting = scope.spawn(|| side.recv(Duration::MAX));
            side.close();
            assert!(waiting.join().unwrap().is_none());
        });
        assert!(side.recv(Duration::MAX).is_none());
    }
}
