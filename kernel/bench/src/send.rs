//! Senders through a plain socket: one packet per message, or a segmented message of many.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use rtp_mgr::ring::header;

use crate::{BATCH, PACKET, sys};

/// Sends batches of RTP.
pub struct Sender {
    socket: UdpSocket,
    packets: Vec<u8>,
    sequence: u16,
    segmented: bool,
}

impl Sender {
    pub fn new(to: SocketAddr, segmented: bool) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        if to.ip().is_multicast() {
            socket2::SockRef::from(&socket).set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
        }
        socket.connect(to)?;
        if segmented {
            sys::set_segment(&socket, PACKET as u16)?;
        }
        Ok(Self { socket, packets: vec![0; BATCH * PACKET], sequence: 0, segmented })
    }

    /// Sends `count` packets.
    pub fn send(&mut self, count: usize) -> Result<()> {
        for packet in self.packets.chunks_exact_mut(PACKET).take(count) {
            let timestamp = u32::from(self.sequence) * 90;
            header::build(packet, false, 96, self.sequence, timestamp, 0x1234_5678);
            self.sequence = self.sequence.wrapping_add(1);
        }
        let bytes = &self.packets[..count * PACKET];
        let sent = match self.segmented {
            true => self.socket.send(bytes)? / PACKET,
            false => sys::send_many(&self.socket, bytes, PACKET)?,
        };
        ensure!(sent == count, "{sent} of {count} packets were sent");
        Ok(())
    }
}
