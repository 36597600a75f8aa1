//! Capture files: reading the UDP in them, finding the RTP in that, writing and sending it again.
//!
//! | module | what lives there |
//! |---|---|
//! | [`mod@file`] | pcap and pcapng files: frames with their time and link type |
//! | [`link`] | from a frame of any supported link type to its UDP datagram |
//! | [`find`] | which datagrams are RTP, and the figures of their sources |
//! | [`replay`] | the RTP of a capture as a media source (`tx --input`) |
//! | [`mod@write`] | captures of received packets (`rx --pcap`) |
//!
//! Times are nanoseconds of UTC since 1970.

pub mod file;
pub mod find;
pub mod link;
pub mod replay;
pub mod write;

use std::net::SocketAddr;

pub use file::{CaptureError, CaptureFile, Frame};
pub use link::{Content, LinkType};
pub use replay::Replay;
pub use write::CaptureWriter;

/// One UDP datagram of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Number of its frame in the file, from 1, as tshark counts.
    pub frame: u64,
    /// When it was captured; `None` where the file does not say (Simple Packet Blocks).
    pub time_ns: Option<u64>,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub destination: SocketAddr,
    /// The first bytes of its payload: all of them unless the snapshot length cut it.
    pub payload: &'a [u8],
    /// Bytes of payload that were sent.
    pub payload_len: usize,
}

impl<'a> Datagram<'a> {
    /// A whole datagram that was received at `time_ns`.
    pub fn received(
        time_ns: u64,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &'a [u8],
    ) -> Self {
        let time_ns = Some(time_ns);
        Self { frame: 0, time_ns, source, destination, payload, payload_len: payload.len() }
    }

    /// Whether the snapshot length cut the payload.
    pub fn is_cut(&self) -> bool {
        self.payload.len() < self.payload_len
    }

    /// The payload's last byte, if it is there.
    pub fn last_byte(&self) -> Option<u8> {
        self.payload.last().copied().filter(|_| !self.is_cut())
    }
}
