//! From a sender to a receiver, with everything between: plain sockets, or a transmit stream and a
//! receive stream of the kernel engine.

use anyhow::{Context, Result, ensure};
use rtp_mgr::{Engine, Transmitter};

use crate::receive::{self, Receive, Way};
use crate::send::Sender;
use crate::transmit::send;
use crate::{BATCH, Clock, PACKET, PACKETS, WARM_UP};

/// Ways to do it.
pub const WAYS: [&str; 2] = ["sendmmsg to recvmmsg", "ring to ring"];

/// Instructions per packet.
pub fn run(way: &str, segmented: bool) -> Result<f64> {
    match way {
        "ring to ring" => ring(segmented),
        // The peer of both rows.
        _ => sockets(),
    }
}

fn sockets() -> Result<f64> {
    let mut receiver = receive::open(Way::RecvMany, false)?;
    let mut sender = Sender::new(receiver.address()?, false)?;
    measure(&mut *receiver, |_| sender.send())
}

fn ring(segmented: bool) -> Result<f64> {
    let mut receiver = receive::open(Way::Ring, false)?;
    let to = receiver.address()?.to_string();
    let mut sender = Transmitter::builder()
        .engine(Engine::Kernel)
        .leg(to.parse()?)
        .slot_stride(PACKET as u32)
        .gso(segmented)
        .rtcp(false)
        .announce(false)
        .open()?;
    measure(&mut *receiver, |count| send(&mut sender, count, PACKET))
}

fn measure(receiver: &mut dyn Receive, mut send: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut cost = 0.0;
    for packets in [WARM_UP, PACKETS] {
        let before = receiver.taken();
        let start = Clock::now()?;
        for _ in 0..packets / BATCH {
            send(BATCH)?;
            receiver.take(BATCH).context("receive")?;
        }
        cost = start.elapsed()? / packets as f64;
        let taken = receiver.taken() - before;
        ensure!(taken == packets as u64, "{taken} of {packets} packets came");
    }
    Ok(cost)
}
