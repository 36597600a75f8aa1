//! Generated packets: `tx --rate 50 --payload 1200`.

use crate::cli::Rate;
use crate::media::{Framing, MediaError, MediaInfo, MediaPacket, MediaSource};

/// Payload type of generated packets: the first dynamic one (RFC 3551 section 3).
const PAYLOAD_TYPE: u8 = 96;
/// Clock of their RTP timestamps, Hz.
const CLOCK_RATE: u32 = 90_000;

/// Bytes after which a ramp repeats.
const RAMP: usize = 256;

/// An endless row of packets at a constant rate. The payload begins with the number of the packet,
/// big endian, as far as there is room; the rest counts up from its last byte.
#[derive(Debug)]
pub struct Generator {
    info: MediaInfo,
    rate: Rate,
    len: usize,
    number: u64,
    /// Bytes that count up, from 0: what follows the number of any packet is a part of them.
    ramp: Vec<u8>,
}

impl Generator {
    /// Packets of `len` payload bytes.
    pub fn new(rate: Rate, len: usize) -> Self {
        let info = MediaInfo {
            format: None,
            payload_type: PAYLOAD_TYPE,
            clock_rate: Some(CLOCK_RATE),
            payload_max: len,
            samples_per_packet: None,
            framing: Framing::Payload,
        };
        let ramp = (0..=u8::MAX).cycle().take(len + RAMP).collect();
        Self { info, rate, len, number: 0, ramp }
    }

    /// `units` per second, as many as there are before packet `number`.
    fn elapsed(&self, units: u64) -> u128 {
        let scaled = u128::from(self.number) * u128::from(self.rate.seconds) * u128::from(units);
        scaled / u128::from(self.rate.packets)
    }
}

impl MediaSource for Generator {
    fn info(&self) -> &MediaInfo {
        &self.info
    }

    fn next(&mut self, payload: &mut [u8]) -> Result<Option<MediaPacket>, MediaError> {
        let packet = MediaPacket {
            len: self.len,
            due_ns: self.elapsed(1_000_000_000) as u64,
            timestamp: self.elapsed(CLOCK_RATE.into()) as u32,
            marker: false,
        };
        let payload = &mut payload[..self.len];
        let (number, rest) = payload.split_at_mut(payload.len().min(size_of::<u64>()));
        number.copy_from_slice(&self.number.to_be_bytes()[..number.len()]);
        let first = usize::from((self.number as u8).wrapping_add(1));
        rest.copy_from_slice(&self.ramp[first..first + rest.len()]);
        self.number += 1;
        Ok(Some(packet))
    }

    fn restart(&mut self) -> Result<(), MediaError> {
        Ok(())
    }

    fn total_bytes(&self) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_due_at_the_rate_without_drift() {
        let mut source = Generator::new(Rate { packets: 30_000, seconds: 1001 }, 12);
        let mut payload = [0; 12];
        for number in 0..=30_000_u64 {
            let packet = source.next(&mut payload).unwrap().unwrap();
            assert_eq!(payload[..8], number.to_be_bytes());
            assert_eq!(payload[8], (number as u8).wrapping_add(1));
            if number == 30_000 {
                assert_eq!(packet.due_ns, 1_001_000_000_000);
                assert_eq!(packet.timestamp, 1001 * 90_000);
            }
        }
    }

    #[test]
    fn what_follows_the_number_counts_up_from_it() {
        let mut source = Generator::new(Rate { packets: 50, seconds: 1 }, 1_200);
        let mut payload = [0; 1_200];
        for number in 0..600_u64 {
            source.next(&mut payload).unwrap();
            assert_eq!(payload[..8], number.to_be_bytes());
            for (at, byte) in payload[8..].iter().enumerate() {
                assert_eq!(u64::from(*byte), (number + 1 + at as u64) % 256, "{number}, {at}");
            }
        }
    }

    #[test]
    fn a_payload_shorter_than_the_number_is_its_beginning() {
        let mut source = Generator::new(Rate { packets: 50, seconds: 1 }, 3);
        let mut payload = [9; 4];
        assert_eq!(source.next(&mut payload).unwrap().unwrap().len, 3);
        assert_eq!(payload, [0, 0, 0, 9]);
    }
}
