//! Senders through a plain socket: one packet per message, or a segmented message of many.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use rtp_mgr::ring::header;
use rtp_mgr_bench::sys::SendBuffers;

use crate::{BATCH, PACKET};

/// Sends batches of RTP.
pub struct Sender {
    socket: UdpSocket,
    packets: SendBuffers,
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
        let packets = SendBuffers::new(BATCH, PACKET);
        if segmented {
            packets.set_segmentation(&socket)?;
        }
        Ok(Self { socket, packets, sequence: 0, segmented })
    }

    /// Sends [`BATCH`] packets.
    pub fn send(&mut self) -> Result<()> {
        for at in 0..BATCH {
            let timestamp = u32::from(self.sequence) * 90;
            let packet = self.packets.packet(at);
            header::build(packet, false, 96, self.sequence, timestamp, 0x1234_5678);
            self.sequence = self.sequence.wrapping_add(1);
        }
        if self.segmented {
            return Ok(self.packets.send_train(&self.socket)?);
        }
        let sent = self.packets.send(&self.socket, 0..BATCH)?;
        ensure!(sent == BATCH, "{sent} of {BATCH} packets were sent");
        Ok(())
    }
}
