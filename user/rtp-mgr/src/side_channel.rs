//! What a receive stream leaves to its sockets: RTCP, STUN, DTLS and the rest.

use std::net::SocketAddr;
use std::time::Duration;

use rtp_mgr_ring::header::Kind;

/// A datagram that is no RTP.
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

/// Receives [`SidePacket`]s. Clones share one queue of bounded length.
#[derive(Clone, Debug)]
pub struct SideChannel {}

impl SideChannel {
    /// The next, without waiting.
    pub fn try_recv(&self) -> Option<SidePacket> {
        None
    }

    /// The next, waiting up to `timeout`. `None`: the time ran out, or the stream has stopped.
    pub fn recv(&self, timeout: Duration) -> Option<SidePacket> {
        let _ = timeout;
        None
    }

    /// Datagrams dropped because nobody took them.
    pub fn dropped(&self) -> u64 {
        0
    }
}
