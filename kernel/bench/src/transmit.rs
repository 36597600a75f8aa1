//! Transmit streams of the kernel engine into a device that drops what it is given, once it has let go of
//! it: packets that are copied, and packets that the network reads from the ring.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rtp_mgr::{Engine, Transmitter};

use crate::Clock;

/// Whether packets are copied.
pub const WAYS: [&str; 2] = ["copied", "read from the ring"];
const TIMEOUT: Duration = Duration::from_secs(10);
/// Packets of a run.
const PACKETS: usize = 4_096;
const RTP_HEADER: usize = 12;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub name: &'static str,
    /// Bytes of a packet and of its slot.
    packet: usize,
    slot: u32,
    /// Packets that are committed together, and leave as one.
    train: usize,
}

/// Trains of media packets and of large ones.
pub const LOADS: [Load; 4] = [
    Load { name: "transmit 8 of 1400", packet: 1_400, slot: 1_400, train: 8 },
    Load { name: "transmit 46 of 1400", packet: 1_400, slot: 1_400, train: 46 },
    Load { name: "transmit 6 in 8192", packet: 8_000, slot: 8_192, train: 6 },
    Load { name: "transmit 8 of 8000", packet: 8_000, slot: 8_000, train: 8 },
];

/// Instructions per packet.
pub fn run(load: Load, way: &str) -> Result<f64> {
    let _device = Device::new()?;
    let zerocopy = way != WAYS[0];
    let mut sender = Transmitter::builder()
        .engine(Engine::Kernel)
        .leg("10.99.0.77:5004".parse()?)
        .slot_stride(load.slot)
        .socket_buffer(4 << 20)
        .zerocopy(zerocopy)
        .rtcp(false)
        .announce(false)
        .open()?;
    let read = |sender: &Transmitter| sender.stats().snapshot().legs[0].zerocopy;
    // The path is tried before it is used.
    let deadline = Instant::now() + TIMEOUT;
    for round in 0.. {
        if round > 16 && (!zerocopy || read(&sender) > 0) {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing is read from the ring");
        send(&mut sender, load)?;
    }
    let before = read(&sender);
    let start = Clock::now()?;
    let trains = PACKETS / load.train;
    for _ in 0..trains {
        send(&mut sender, load)?;
    }
    let packets = trains * load.train;
    let cost = start.elapsed()? / packets as f64;
    let read = read(&sender) - before;
    // A train that goes on at the ring's start may be in too many pieces.
    let expected = if zerocopy { packets as u64 * 3 / 4..=packets as u64 } else { 0..=0 };
    ensure!(expected.contains(&read), "{read} of {packets} packets were read, not {expected:?}");
    Ok(cost)
}

/// A train, until its slots are free again.
fn send(sender: &mut Transmitter, load: Load) -> Result<()> {
    let mut left = load.train;
    while left > 0 {
        let mut slots = sender.reserve(left, TIMEOUT)?;
        let lent = slots.len();
        ensure!(lent > 0, "no room");
        for mut slot in slots.iter_mut() {
            slot.rtp(false, 0);
            slot.set_payload_len(load.packet - RTP_HEADER)?;
        }
        slots.commit(lent)?;
        left -= lent;
    }
    if !sender.flush(TIMEOUT)? {
        bail!("not sent within {TIMEOUT:?}");
    }
    Ok(())
}

/// The device, until it is dropped.
struct Device;

impl Device {
    fn new() -> Result<Self> {
        ip("link add bench0 mtu 9000 type dummy")?;
        let device = Self;
        ip("addr add 10.99.0.1/24 dev bench0")?;
        ip("link set bench0 up")?;
        Ok(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = ip("link del bench0") {
            eprintln!("{error:#}");
        }
    }
}

fn ip(command: &str) -> Result<()> {
    let status = Command::new("ip").args(command.split(' ')).status().context("run ip")?;
    ensure!(status.success(), "ip {command}: {status}");
    Ok(())
}
