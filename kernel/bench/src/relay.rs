//! From a sender to a receiver, with everything between: plain sockets, or a transmit stream and a
//! receive stream of the kernel engine.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use rtp_mgr::{Engine, Transmitter};

use crate::receive::{self, Receive, Way};
use crate::send::Sender;
use crate::transmit::send;
use crate::{BATCH, Clock, PACKET, PACKETS, WARM_UP};

const SOCKETS: &str = "sendmmsg to recvmmsg";
const SOCKETS_SEGMENTED: &str = "UDP_SEGMENT to recvmmsg";
const RINGS: &str = "ring to ring";

/// How packets get from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub name: &'static str,
    /// Ways to do it.
    pub ways: &'static [&'static str],
    /// The device takes trains whole. If not, the stack cuts them up before it, and packets cross one by one.
    whole: bool,
    /// The ring's sender makes trains.
    gso: bool,
}

const ALL: [&str; 3] = [SOCKETS, SOCKETS_SEGMENTED, RINGS];

pub const LOADS: [Load; 3] = [
    Load { name: "relay", ways: &ALL, whole: false, gso: true },
    Load { name: "relay unsegmented", ways: &[SOCKETS, RINGS], whole: true, gso: false },
    Load { name: "relay segmented", ways: &ALL, whole: true, gso: true },
];

/// Instructions per packet.
pub fn run(load: Load, way: &str) -> Result<f64> {
    let _device = (!load.whole).then(OneByOne::new).transpose()?;
    let ring = way == RINGS;
    let mut receiver = receive::open(if ring { Way::Ring } else { Way::RecvMany }, false)?;
    let to = receiver.address()?;
    let trains = load.whole && if ring { load.gso } else { way == SOCKETS_SEGMENTED };
    if !ring {
        let mut sender = Sender::new(to, way == SOCKETS_SEGMENTED)?;
        return measure(&mut *receiver, trains, |_| sender.send());
    }
    let mut sender = Transmitter::builder()
        .engine(Engine::Kernel)
        .leg(to.to_string().parse()?)
        .slot_stride(PACKET as u32)
        .gso(load.gso)
        .rtcp(false)
        .announce(false)
        .open()?;
    measure(&mut *receiver, trains, |count| send(&mut sender, count, PACKET))
}

/// `trains`: packets cross the device many in a buffer. If not, each in its own.
fn measure(
    receiver: &mut dyn Receive,
    trains: bool,
    mut send: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let mut cost = 0.0;
    for packets in [WARM_UP, PACKETS] {
        let (before, crossed_before) = (receiver.taken(), crossed()?);
        let start = Clock::now()?;
        for _ in 0..packets / BATCH {
            send(BATCH)?;
            receiver.take(BATCH).context("receive")?;
        }
        cost = start.elapsed()? / packets as f64;
        let taken = receiver.taken() - before;
        ensure!(taken == packets as u64, "{taken} of {packets} packets came");
        let buffers = crossed()? - crossed_before;
        // Something of the system may cross it, too.
        let expected = if trains { 1..=packets / 8 } else { packets..=packets + packets / 64 };
        ensure!(
            expected.contains(&buffers),
            "{buffers} buffers crossed the device, not {expected:?}"
        );
    }
    Ok(cost)
}

/// Buffers that have crossed the loopback device.
fn crossed() -> Result<usize> {
    let path = "/sys/class/net/lo/statistics/rx_packets";
    let count = std::fs::read_to_string(path).context(path)?;
    count.trim().parse().context(path)
}

/// The loopback device takes packets one by one, until this is dropped.
struct OneByOne;

impl OneByOne {
    fn new() -> Result<Self> {
        let one_by_one = Self;
        segmentation("off")?;
        Ok(one_by_one)
    }
}

impl Drop for OneByOne {
    fn drop(&mut self) {
        if let Err(error) = segmentation("on") {
            eprintln!("{error:#}");
        }
    }
}

fn segmentation(state: &str) -> Result<()> {
    let arguments = ["-K", "lo", "tx-udp-segmentation", state];
    let status = Command::new("ethtool").args(arguments).status().context("run ethtool")?;
    ensure!(status.success(), "ethtool {}: {status}", arguments.join(" "));
    Ok(())
}
