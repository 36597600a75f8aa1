//! A sender that is the same for every receiver: RTP packets of one length at a fixed rate.
//!
//! Every 250 us it sends what is due with one sendmmsg: small bursts, as a sender without hardware
//! pacing makes them.

use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

use crate::sys::SendBuffers;

/// Time between two bursts.
const PERIOD: Duration = Duration::from_micros(250);
/// Packets of a send call at most.
const BATCH: usize = 64;
/// Bytes of an RTP header.
const HEADER: usize = 12;
/// Payload type of what is sent.
pub const PAYLOAD_TYPE: u8 = 97;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Bytes of UDP payload, RTP header included.
    pub len: usize,
    /// Packets per second; `None`: as fast as possible.
    pub rate: Option<f64>,
    /// RTP sources that take turns.
    pub flows: u32,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sent {
    /// Packets that the kernel took.
    pub packets: u64,
    /// Seconds from the first to the last.
    pub seconds: f64,
}

/// Sends for `duration`, or until `stop`.
///
/// # Errors
/// What the socket reports.
pub fn send(
    socket: &UdpSocket,
    load: &Load,
    duration: Duration,
    stop: &AtomicBool,
) -> Result<Sent> {
    let mut rtp = Rtp::new(load.flows);
    let mut buffers = SendBuffers::new(BATCH, load.len);
    let start = Instant::now();
    let mut clock = Ticks::start(PERIOD);
    let mut sent = 0_u64;
    while start.elapsed() < duration && !stop.load(Ordering::Relaxed) {
        let due = match load.rate {
            Some(rate) => {
                clock.wait();
                (start.elapsed().min(duration).as_secs_f64() * rate) as u64
            }
            None => sent + BATCH as u64,
        };
        while sent < due {
            let batch = BATCH.min((due - sent) as usize);
            for at in 0..batch {
                rtp.write(buffers.packet(at));
            }
            let mut done = 0;
            while done < batch {
                done += buffers.send(socket, done..batch).context("send")?;
            }
            sent += batch as u64;
        }
    }
    Ok(Sent { packets: sent, seconds: start.elapsed().as_secs_f64() })
}

/// Headers of sources that take turns.
#[derive(Debug)]
pub struct Rtp {
    sequences: Vec<u16>,
    next: usize,
    timestamp: u32,
}

impl Rtp {
    /// So many sources.
    pub fn new(flows: u32) -> Self {
        Self { sequences: vec![0; flows.max(1) as usize], next: 0, timestamp: 0 }
    }

    /// Writes the next header.
    pub fn write(&mut self, packet: &mut [u8]) {
        let Some(header) = packet.first_chunk_mut::<HEADER>() else { return };
        let sequence = &mut self.sequences[self.next];
        header[0] = 0x80;
        header[1] = PAYLOAD_TYPE;
        header[2..4].copy_from_slice(&sequence.to_be_bytes());
        header[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        header[8..12].copy_from_slice(&(0x1000_0000 + self.next as u32).to_be_bytes());
        *sequence = sequence.wrapping_add(1);
        self.next = (self.next + 1) % self.sequences.len();
        if self.next == 0 {
            self.timestamp = self.timestamp.wrapping_add(48);
        }
    }
}

/// A clock that ticks at fixed times, without drift.
#[derive(Debug)]
pub struct Ticks {
    next_ns: u64,
    period_ns: u64,
}

impl Ticks {
    /// The first tick is one period from now.
    pub fn start(period: Duration) -> Self {
        // Without this, timers of ordinary threads come 50 us late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        Self { next_ns: now_ns(), period_ns: period.as_nanos() as u64 }
    }

    /// Sleeps until the next tick. One that was missed is over at once.
    pub fn wait(&mut self) {
        self.next_ns += self.period_ns;
        let until = Timespec {
            tv_sec: (self.next_ns / 1_000_000_000) as i64,
            tv_nsec: (self.next_ns % 1_000_000_000) as _,
        };
        // A signal ends it early: the next tick makes up for it.
        let _ = clock_nanosleep_absolute(ClockId::Monotonic, &until);
    }
}

/// CLOCK_MONOTONIC, nanoseconds.
pub fn now_ns() -> u64 {
    let now = clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Net;

    #[test]
    fn sources_take_turns_and_count_on_their_own() {
        let mut rtp = Rtp::new(2);
        let mut headers = [[0; HEADER]; 4];
        headers.iter_mut().for_each(|header| rtp.write(header));
        let of = |at: usize| (headers[at][3], headers[at][11], headers[at][7]);
        assert_eq!([of(0), of(1), of(2), of(3)], [(0, 0, 0), (0, 1, 0), (1, 0, 48), (1, 1, 48)]);
    }

    #[test]
    fn the_rate_is_kept_over_the_whole_time() {
        let receiver = Net::Loopback.receiver(0).unwrap();
        let sender = Net::Loopback.sender(receiver.local_addr().unwrap().port()).unwrap();
        let load = Load { len: 100, rate: Some(10_000.0), flows: 1 };
        let stop = AtomicBool::new(false);
        let sent = send(&sender, &load, Duration::from_millis(100), &stop).unwrap();
        // The last burst comes a period before the end, or with the end on a busy machine.
        assert!((990..=1_000).contains(&sent.packets), "{sent:?}");
    }
}
