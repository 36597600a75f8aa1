// SPDX-License-Identifier: MIT OR GPL-2.0

//! The simulated DMA engine: bursts of a pattern that checks itself, on a timer.

use kernel::prelude::*;

use super::{Source, INTERVALS_NS};
use crate::compat::EOPNOTSUPP;
use crate::engine::Intake;
use crate::primitives::monotonic_ns;
use crate::ring::abi::ioctl;
use crate::ring::{header, pattern};

/// Bytes of an RTP header without CSRCs.
const RTP_HEADER: usize = 12;
/// First dynamic payload type (RFC 3551 section 3).
const PAYLOAD_TYPE: u8 = 96;
/// Clock of the RTP timestamps, Hz.
const CLOCK_RATE: u64 = 90_000;
/// Until the rest of a burst that took too long for one run, at least.
const REST_NS: u64 = 20_000;
/// A run ends after this, with bottom halves off all the while ...
const RUN_NS: u64 = 500_000;
/// ... which is looked at after so many packets.
const LOOK_EVERY: u32 = 16;

/// What a packet contains.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The pattern alone.
    Raw,
    /// RTP, with the pattern as payload.
    Rtp,
}

/// How it works.
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub(crate) content: Content,
    /// Bytes of a packet.
    pub(crate) packet_len: u32,
    /// Bytes of a slot: the longest packet.
    pub(crate) packet_len_max: u32,
    /// Packets in a burst.
    pub(crate) burst: u32,
    pub(crate) interval_ns: u64,
    pub(crate) ssrc: u32,
}

/// Packets of a burst that may be asked for.
pub(crate) const BURSTS: core::ops::RangeInclusive<u32> = 1..=65_536;

/// Shortest packet of a content.
pub(crate) const fn packet_len_min(content: Content) -> u32 {
    match content {
        Content::Raw => pattern::LEN_MIN as u32,
        Content::Rtp => (RTP_HEADER + pattern::LEN_MIN) as u32,
    }
}

/// The engine's state.
pub(crate) struct Simulated {
    config: Config,
    byte_budget: u32,
    /// When the next burst is due.
    due_ns: u64,
    /// Packets of the present burst that are still to come.
    left: u32,
    /// Number of the next packet.
    number: u64,
}

impl Simulated {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, byte_budget: 4 << 20, due_ns: 0, left: 0, number: 0 }
    }

    /// Bytes of a packet's pattern.
    fn pattern_len(&self) -> u32 {
        match self.config.content {
            Content::Raw => self.config.packet_len,
            Content::Rtp => self.config.packet_len.saturating_sub(RTP_HEADER as u32),
        }
    }

    fn produce(&mut self, intake: &mut Intake<'_>, now_ns: u64) {
        let number = self.number;
        self.number = number.wrapping_add(1);
        let Some(mut slot) = intake.slot() else {
            intake.overrun(self.pattern_len());
            return;
        };
        let len = self.config.packet_len as usize;
        let Some(bytes) = intake.bytes(&mut slot).get_mut(..len) else {
            intake.give_back(slot);
            return;
        };
        match self.config.content {
            Content::Raw => {
                pattern::fill(bytes, number);
                intake.raw(slot, self.config.packet_len, number);
            }
            Content::Rtp => {
                let timestamp = now_ns.wrapping_div(1_000).wrapping_mul(CLOCK_RATE / 1_000);
                let timestamp = (timestamp / 1_000) as u32;
                let marker = self.left == 1;
                let sequence = number as u16;
                let ssrc = self.config.ssrc;
                if header::build(bytes, marker, PAYLOAD_TYPE, sequence, timestamp, ssrc).is_none() {
                    intake.give_back(slot);
                    return;
                }
                if let Some(payload) = bytes.get_mut(RTP_HEADER..) {
                    pattern::fill(payload, number);
                }
                intake.rtp(slot, self.config.packet_len, self.pattern_len());
            }
        }
    }
}

impl Source for Simulated {
    fn start(&mut self, now_ns: u64) -> Option<u64> {
        self.left = 0;
        self.due_ns = now_ns.saturating_add(self.config.interval_ns);
        Some(self.due_ns)
    }

    fn service(&mut self, intake: &mut Intake<'_>, now_ns: u64) -> Option<u64> {
        if self.left == 0 {
            if now_ns < self.due_ns {
                return Some(self.due_ns);
            }
            self.left = self.config.burst;
            let next_ns = self.due_ns.saturating_add(self.config.interval_ns);
            // Bursts that were missed altogether are not made up for.
            self.due_ns = if next_ns > now_ns {
                next_ns
            } else {
                now_ns.saturating_add(self.config.interval_ns)
            };
        }
        let mut bytes = 0_u32;
        let mut end_ns = now_ns;
        while self.left > 0
            && bytes < self.byte_budget
            && end_ns.saturating_sub(now_ns) < RUN_NS
        {
            for _ in 0..LOOK_EVERY.min(self.left) {
                self.produce(intake, now_ns);
                bytes = bytes.saturating_add(self.config.packet_len);
                self.left = self.left.saturating_sub(1);
                if bytes >= self.byte_budget {
                    break;
                }
            }
            end_ns = monotonic_ns();
        }
        // As long as it has worked it rests: whatever its user asks for, half of the CPU is the others'.
        let rest_ns = end_ns.saturating_sub(now_ns).max(REST_NS);
        let rested_ns = end_ns.saturating_add(rest_ns);
        if self.left > 0 {
            return Some(rested_ns);
        }
        intake.burst_done();
        Some(self.due_ns.max(rested_ns))
    }

    fn set(&mut self, key: u32, value: u64) -> Result {
        match key {
            ioctl::SETTING_INTERVAL_NS if INTERVALS_NS.contains(&value) => {
                let next_ns = self.due_ns.saturating_sub(self.config.interval_ns);
                self.due_ns = next_ns.saturating_add(value);
                self.config.interval_ns = value;
            }
            ioctl::SETTING_BURST
                if u32::try_from(value).is_ok_and(|value| BURSTS.contains(&value)) =>
            {
                self.config.burst = value as u32;
            }
            ioctl::SETTING_PACKET_LEN
                if (u64::from(packet_len_min(self.config.content))
                    ..=u64::from(self.config.packet_len_max))
                    .contains(&value) =>
            {
                self.config.packet_len = value as u32;
            }
            ioctl::SETTING_BYTE_BUDGET if (4_096..=16_777_216).contains(&value) => {
                self.byte_budget = value as u32;
            }
            ioctl::SETTING_INTERVAL_NS
            | ioctl::SETTING_BURST
            | ioctl::SETTING_BYTE_BUDGET
            | ioctl::SETTING_PACKET_LEN => return Err(EINVAL),
            _ => return Err(EOPNOTSUPP),
        }
        Ok(())
    }

    fn get(&self, key: u32) -> Result<u64> {
        match key {
            ioctl::SETTING_INTERVAL_NS => Ok(self.config.interval_ns),
            ioctl::SETTING_BURST => Ok(u64::from(self.config.burst)),
            ioctl::SETTING_BYTE_BUDGET => Ok(u64::from(self.byte_budget)),
            ioctl::SETTING_PACKET_LEN => Ok(u64::from(self.config.packet_len)),
            _ => Err(EOPNOTSUPP),
        }
    }
}
