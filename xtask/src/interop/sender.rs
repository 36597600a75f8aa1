//! A hand-made RTP sender that keeps the time of each packet.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// The RTP fixed header (RFC 3550 5.1) without CSRCs and extension, and a payload.
pub fn rtp(
    payload_type: u8,
    marker: bool,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x80, payload_type | if marker { 0x80 } else { 0 }];
    packet.extend(sequence.to_be_bytes());
    packet.extend(timestamp.to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    packet.extend(payload);
    packet
}

/// When a packet was sent: between the two, in nanoseconds of UTC since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub sequence: u16,
    pub before_ns: u64,
    pub after_ns: u64,
}

/// One RTP stream from a loopback socket of its own.
#[derive(Debug)]
pub struct Sender {
    socket: UdpSocket,
    pub sent: Vec<Sent>,
}

impl Sender {
    /// Will send to a loopback port.
    pub fn new(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", port))?;
        Ok(Self { socket, sent: Vec::new() })
    }

    /// Sends one packet now.
    pub fn send(&mut self, sequence: u16, packet: &[u8]) -> Result<()> {
        let before_ns = now_ns();
        self.socket.send(packet)?;
        self.sent.push(Sent { sequence, before_ns, after_ns: now_ns() });
        Ok(())
    }

    /// Lets time pass until the next packet is due.
    pub fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_rfc_3550() {
        let packet = rtp(33, true, 0x1234, 0x0102_0304, 0xa0b0_c0d0, &[9]);
        assert_eq!(packet, [0x80, 0xa1, 0x12, 0x34, 1, 2, 3, 4, 0xa0, 0xb0, 0xc0, 0xd0, 9]);
    }
}
