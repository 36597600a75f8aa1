//! The simulated DMA engine: bursts of the self-checking pattern on a timer.
//!
//! What lives here: when bursts come and what they are made of. What does not: the pattern
//! ([`rtp_mgr_ring::pattern`]) and how packets get into the ring ([`super::receive`]).
//!
//! Packets are numbered as they are produced, those that find the ring full included: a gap in the
//! numbers is an overflow. A burst larger than the byte budget of one run is produced in several,
//! so that other streams get their turn.

use rtp_mgr_ring::header::{self, FIXED_LEN};
use rtp_mgr_ring::pattern;

use crate::config::{Framing, SimConfig};
use crate::net::SlotMemory;

/// Bytes that one run produces at most.
const BUDGET: usize = 4 << 20;
/// A timer that is behind by more than this starts over.
const BEHIND_MAX_NS: u64 = 100_000_000;
/// What framed packets carry: a dynamic payload type (RFC 3551 section 3) and "DMA0".
const PAYLOAD_TYPE: u8 = 96;
const SSRC: u32 = u32::from_be_bytes(*b"DMA0");

/// Where produced packets go.
pub(super) trait Sink {
    /// A free slot.
    fn slot(&mut self) -> Option<u32>;

    /// The packet in `slot` is there: `bytes` of it, the pattern in its last `pattern_len`.
    fn produced(&mut self, slot: u32, packet: &[u8], number: u64, pattern_len: usize, raw: bool);

    /// A burst begins.
    fn burst(&mut self);
}

/// The source of one stream.
pub(crate) struct Simulator {
    config: SimConfig,
    memory: SlotMemory,
    packet: Vec<u8>,
    /// Of the next packet.
    number: u64,
    next_ns: u64,
    /// Packets left of a burst that has begun.
    left: u32,
}

impl Simulator {
    /// The first burst comes an interval after `now_ns`.
    pub(crate) fn new(config: SimConfig, memory: SlotMemory, now_ns: u64) -> Self {
        let packet = vec![0; memory.stride()];
        let mut simulator = Self { config, memory, packet, number: 0, next_ns: 0, left: 0 };
        simulator.set(config, now_ns);
        simulator
    }

    /// Changes the source. The next burst comes an interval after `now_ns`.
    pub(crate) fn set(&mut self, config: SimConfig, now_ns: u64) {
        self.config = config;
        self.left = 0;
        self.next_ns = now_ns.saturating_add(self.interval_ns());
    }

    fn interval_ns(&self) -> u64 {
        u64::try_from(self.config.interval.as_nanos()).unwrap_or(u64::MAX)
    }

    /// When [`run`](Self::run) has something to do, CLOCK_MONOTONIC in nanoseconds.
    pub(crate) fn due_ns(&self) -> u64 {
        if self.left > 0 { 0 } else { self.next_ns }
    }

    /// Produces what is due at `now_ns`. Returns whether that was anything.
    pub(super) fn run(&mut self, sink: &mut impl Sink, now_ns: u64) -> bool {
        if self.due_ns() > now_ns {
            return false;
        }
        if self.left == 0 {
            let interval = self.interval_ns();
            let late = now_ns - self.next_ns > BEHIND_MAX_NS;
            self.next_ns = (if late { now_ns } else { self.next_ns }).saturating_add(interval);
            self.left = self.config.burst;
            sink.burst();
        }
        let pattern_len = self.config.packet_len as usize;
        let budget = (BUDGET / pattern_len).max(1) as u32;
        for _ in 0..self.left.min(budget) {
            let Some(slot) = sink.slot() else {
                // Never, while there are more slots than positions.
                self.left = 0;
                break;
            };
            let len = self.frame(pattern_len);
            self.memory.write(slot, &self.packet[..len]);
            let raw = self.config.framing == Framing::Raw;
            let packet = self.memory.bytes(slot, len);
            sink.produced(slot, packet, self.number, pattern_len, raw);
            self.number = self.number.wrapping_add(1);
            self.left -= 1;
        }
        true
    }

    /// Writes the next packet; returns its length.
    fn frame(&mut self, pattern_len: usize) -> usize {
        let start = match self.config.framing {
            Framing::Raw => 0,
            Framing::Rtp => {
                let (sequence, timestamp) = (self.number as u16, self.number as u32);
                header::build(&mut self.packet, false, PAYLOAD_TYPE, sequence, timestamp, SSRC)
                    .unwrap_or(FIXED_LEN)
            }
        };
        let end = start + pattern_len;
        pattern::fill(&mut self.packet[start..end], self.number);
        end
    }
}

/// How many of the bytes in the ring every reader has released.
#[derive(Debug)]
pub(super) struct Consumption {
    /// Pattern bytes of each position.
    lens: Box<[u32]>,
    /// Next position to be produced, and to be released by all.
    head: u64,
    tail: u64,
}

impl Consumption {
    pub(super) fn new(slot_count: usize, start: u64) -> Self {
        Self { lens: vec![0; slot_count].into(), head: start, tail: start }
    }

    /// The next position has `len` bytes. Returns those of the position that it displaces.
    pub(super) fn push(&mut self, len: u32) {
        let index = self.index(self.head);
        self.lens[index] = len;
        self.head = self.head.wrapping_add(1);
        let oldest = self.head.wrapping_sub(self.lens.len() as u64);
        if oldest.wrapping_sub(self.tail) as i64 > 0 {
            // Overwritten before every reader had it.
            self.tail = oldest;
        }
    }

    /// Every reader has released what stands before `tail`. Returns how many bytes more that is.
    pub(super) fn release(&mut self, tail: u64) -> u64 {
        let mut bytes = 0;
        while self.tail != self.head && tail.wrapping_sub(self.tail) as i64 > 0 {
            bytes += u64::from(self.lens[self.index(self.tail)]);
            self.tail = self.tail.wrapping_add(1);
        }
        bytes
    }

    fn index(&self, position: u64) -> usize {
        position as usize & (self.lens.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Default)]
    struct Collected {
        packets: Vec<(u64, Vec<u8>)>,
        bursts: u32,
    }

    impl Sink for Collected {
        fn slot(&mut self) -> Option<u32> {
            Some(0)
        }

        fn produced(&mut self, _: u32, packet: &[u8], number: u64, len: usize, raw: bool) {
            assert_eq!(packet.len(), len + if raw { 0 } else { FIXED_LEN });
            self.packets.push((number, packet.to_vec()));
        }

        fn burst(&mut self) {
            self.bursts += 1;
        }
    }

    fn simulator(config: SimConfig) -> Simulator {
        Simulator::new(config, SlotMemory::private(1, 2_048), 1_000)
    }

    #[test]
    fn bursts_come_at_their_interval_and_carry_numbered_patterns() {
        let config = SimConfig {
            interval: Duration::from_millis(5),
            burst: 3,
            packet_len: 100,
            framing: Framing::Rtp,
        };
        let mut simulator = simulator(config);
        let mut sink = Collected::default();
        assert!(!simulator.run(&mut sink, 5_000_999));
        assert!(simulator.run(&mut sink, 5_001_000));
        assert_eq!(simulator.due_ns(), 10_001_000);
        assert!(simulator.run(&mut sink, 10_001_000));
        assert_eq!(sink.bursts, 2);
        for (index, (number, packet)) in sink.packets.iter().enumerate() {
            assert_eq!(*number, index as u64);
            let header = header::parse(packet).unwrap();
            assert_eq!((header.sequence, header.ssrc), (index as u16, SSRC));
            assert_eq!(pattern::check(&packet[FIXED_LEN..]), Some(index as u64));
        }
        // A thread that was kept from running for long does not make up for it.
        assert!(simulator.run(&mut sink, 1_000_000_000));
        assert_eq!(simulator.due_ns(), 1_005_000_000);
    }

    #[test]
    fn a_large_burst_takes_several_runs() {
        let config = SimConfig { burst: 5_000, packet_len: 2_000, ..SimConfig::default() };
        let mut simulator = simulator(config);
        let mut sink = Collected::default();
        let due = simulator.due_ns();
        let mut runs = 0;
        while simulator.run(&mut sink, due) {
            runs += 1;
        }
        assert_eq!((sink.packets.len(), sink.bursts), (5_000, 1));
        assert_eq!(runs, 3);
    }

    #[test]
    fn bytes_are_consumed_when_every_reader_has_released_them() {
        let mut consumption = Consumption::new(4, u64::MAX - 1);
        for len in [1, 10, 100] {
            consumption.push(len);
        }
        assert_eq!(consumption.release(u64::MAX - 1), 0);
        assert_eq!(consumption.release(0), 11);
        assert_eq!(consumption.release(9), 100);
        assert_eq!(consumption.release(9), 0);
        (0..6).for_each(|_| consumption.push(1));
        assert_eq!(consumption.release(7), 4, "two were overwritten");
    }
}
