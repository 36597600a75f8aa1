//! A plain loop that does the least that RTP takes: it asks when packets came and from where, parses their headers,
//! and counts losses and jitter (RFC 3550 §6.4.1) of each source. No order, no ring, nobody who looks at its figures.
//!
//! What stands between it and a loop that does nothing with packets is what no receiver of RTP can save.

use std::collections::HashMap;
use std::io;
use std::net::UdpSocket;

use rtp_mgr::ring::header;

use crate::sys::{self, ReceiveBuffers};

/// The clock that the load's timestamps count in.
const CLOCK_HZ: u64 = 48_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Ticks of the RTP clock at this time, nanoseconds.
fn ticks(time_ns: u64) -> u64 {
    time_ns / NS_PER_S * CLOCK_HZ + time_ns % NS_PER_S * CLOCK_HZ / NS_PER_S
}

#[derive(Clone, Copy, Debug, Default)]
struct Source {
    next: u16,
    lost: i64,
    received: u64,
    transit: u64,
    /// Sixteenths of a tick.
    jitter: u64,
}

/// The loop's buffers and what it has counted.
pub struct RtpLoop {
    buffers: ReceiveBuffers,
    sources: HashMap<u32, Source>,
}

impl RtpLoop {
    /// Takes up to `messages` datagrams of `len` bytes with a call on `socket`.
    ///
    /// # Errors
    /// The socket has no arrival times.
    pub fn new(socket: &UdpSocket, messages: usize, len: usize) -> io::Result<Self> {
        sys::set_timestamps(socket)?;
        let buffers = ReceiveBuffers::new(messages, len, true).with_senders();
        Ok(Self { buffers, sources: HashMap::new() })
    }

    /// Waits for the first packet, takes what is there, counts it, and shows each packet to `each`. Returns how many.
    ///
    /// # Errors
    /// What the socket reports; `WouldBlock` when the time ran out.
    pub fn receive(&mut self, socket: &UdpSocket, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
        let got = self.buffers.receive(socket)?;
        for (packet, time) in self.buffers.datagrams() {
            let Ok(fixed) = header::parse_fixed(packet, packet.len()) else { continue };
            let source = self.sources.entry(fixed.ssrc).or_default();
            let arrival = ticks(time.unwrap_or(0));
            let transit = arrival.wrapping_sub(fixed.timestamp.into());
            if source.received > 0 {
                source.lost += i64::from(fixed.sequence.wrapping_sub(source.next) as i16);
                let differs = transit.abs_diff(source.transit) & u64::from(u32::MAX);
                source.jitter = source.jitter + differs - (source.jitter + 8) / 16;
            }
            source.received += 1;
            source.next = fixed.sequence.wrapping_add(1);
            source.transit = transit;
            each(packet);
        }
        Ok(got.packets)
    }

    /// Packets lost, and the mean jitter in ticks, of all sources.
    pub fn figures(&self) -> (i64, u64) {
        let sources = self.sources.len().max(1) as u64;
        let lost = self.sources.values().map(|source| source.lost).sum();
        (lost, self.sources.values().map(|source| source.jitter / 16).sum::<u64>() / sources)
    }
}
