//! Instructions per packet of the kernel engine and of plain sockets, whole system.
//!
//! Runs in a virtual machine whose clock advances by 1 ns with each instruction (`cargo xtask vm
//! bench`). One thread sends a batch and then takes it, again and again, so that nothing waits and
//! nothing is left to chance: the time that passed, divided by the packets, is what a packet costs
//! sender, network stack and receiver together. Less what it costs when it is dropped on arrival, that
//! is the receiver's share.
//!
//! | module | what lives there |
//! |---|---|
//! | `send` | senders: one by one, segmented |
//! | `receive` | receivers: the kernel engine, and what a user would have instead |
//! | `relay` | from a transmit stream to a receive stream |
//! | `transmit` | transmit streams into a device that drops: copied, and read from the ring |

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

mod receive;
mod relay;
mod send;
mod transmit;

use receive::Way;
use send::Sender;

/// Bytes of a packet, its RTP header included.
const PACKET: usize = 1_400;
/// Packets that are sent before they are taken.
const BATCH: usize = 32;
/// Packets of a run that counts, and of what comes before it.
const PACKETS: usize = 4_096;
const WARM_UP: usize = 1_024;

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    /// Who sends: `single`, `segmented`, `multicast`, `relay`, `transmit` and what these say of it.
    load: &'static str,
    /// Who receives.
    way: &'static str,
    /// Instructions per packet, whole system, of each run.
    instructions: Vec<f64>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `vm_bench [RUNS] [FILTER]`: every load with every receiver, each in `RUNS` runs. A figure per line.
fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let runs: usize = words.next().map_or(Ok(3), |word| word.parse()).context("RUNS: a number")?;
    let filter = words.next().unwrap_or_default();
    // Background work after boot would count. Waiting costs nothing with this clock.
    std::thread::sleep(Duration::from_secs(20));
    for load in ["single", "segmented", "multicast", "multicast segmented"] {
        for way in Way::ALL {
            let name = way.name();
            if format!("{load}, {name};").contains(&filter) {
                let measure = || receive_run(load, way).with_context(|| format!("{load}, {name}"));
                let instructions = (0..runs).map(|_| measure()).collect::<Result<_>>()?;
                tell(&Figure { load, way: name, instructions })?;
            }
        }
    }
    for load in relay::LOADS {
        for &way in load.ways {
            let name = load.name;
            if format!("{name}, {way};").contains(&filter) {
                let measure = || relay::run(load, way).with_context(|| format!("{name}, {way}"));
                let instructions = (0..runs).map(|_| measure()).collect::<Result<_>>()?;
                tell(&Figure { load: name, way, instructions })?;
            }
        }
    }
    for load in transmit::LOADS {
        for way in transmit::WAYS {
            let name = load.name;
            if format!("{name}, {way};").contains(&filter) {
                let measure = || transmit::run(load, way).with_context(|| format!("{name}, {way}"));
                let instructions = (0..runs).map(|_| measure()).collect::<Result<_>>()?;
                tell(&Figure { load: name, way, instructions })?;
            }
        }
    }
    Ok(())
}

fn tell(figure: &Figure) -> Result<()> {
    println!("figure {}", serde_json::to_string(figure)?);
    Ok(())
}

/// Instructions per packet of one load and one receiver.
fn receive_run(load: &'static str, way: Way) -> Result<f64> {
    let group = load.starts_with("multicast");
    let segmented = load.ends_with("segmented");
    let mut receiver = receive::open(way, group)?;
    let mut sender = Sender::new(receiver.address()?, segmented)?;
    let _rules = way.is_dropped().then(Rules::drop).transpose()?;
    let mut cost = 0.0;
    for packets in [WARM_UP, PACKETS] {
        let before = receiver.taken();
        let start = Clock::now()?;
        for _ in 0..packets / BATCH {
            sender.send()?;
            receiver.take(BATCH)?;
        }
        cost = start.elapsed()? / packets as f64;
        receiver.settle()?;
        let taken = receiver.taken() - before;
        let expected = if way.counts() { packets as u64 } else { 0 };
        ensure!(taken == expected, "{taken} of {packets} packets came, not {expected}");
    }
    Ok(cost)
}

/// The guest's clock, and how much of it passed idle.
struct Clock {
    start: std::time::Instant,
    idle: u64,
}

impl Clock {
    fn now() -> Result<Self> {
        Ok(Self { idle: idle_ticks()?, start: std::time::Instant::now() })
    }

    /// Instructions since then.
    ///
    /// # Errors
    /// The machine was idle: what passed then is no work.
    fn elapsed(&self) -> Result<f64> {
        let passed = self.start.elapsed();
        let idle = idle_ticks()? - self.idle;
        ensure!(idle == 0, "the machine was idle for {idle} ticks");
        Ok(passed.as_nanos() as f64)
    }
}

fn idle_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let idle = stat.lines().next().and_then(|line| line.split_whitespace().nth(4));
    idle.context("the idle time of /proc/stat")?.parse().context("the idle time of /proc/stat")
}

/// Drops all of IPv4 on arrival, until it is dropped itself: a chain without a rule. Evaluating one costs
/// several hundred instructions, which would count as the sender's.
struct Rules;

impl Rules {
    fn drop() -> Result<Self> {
        nft("add table ip bench")?;
        let rules = Self;
        nft(
            "add chain ip bench arrival { type filter hook prerouting priority raw; policy drop; }",
        )?;
        Ok(rules)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if let Err(error) = nft("delete table ip bench") {
            eprintln!("{error:#}");
        }
    }
}

fn nft(command: &str) -> Result<()> {
    let status = Command::new("nft").arg(command).status().context("run nft")?;
    ensure!(status.success(), "nft {command}: {status}");
    Ok(())
}
