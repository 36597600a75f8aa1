//! The self-checking pattern of the simulated source.
//!
//! What lives here: what a packet of that source contains, given its number. What does not: when
//! packets are produced.
//!
//! A packet is a row of 64-bit little-endian words: its number, then words that depend on the number
//! and on their place, so that a byte out of place, a torn packet or one of another number shows. The
//! last word is cut where the packet ends.

/// Bytes of the number at the start of a packet: the shortest packet.
pub const LEN_MIN: usize = 8;

/// Odd, and without a short period in its bits (2^64 divided by the golden ratio).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Word `index` of packet `number`.
#[inline]
const fn word(number: u64, index: u64) -> u64 {
    match index {
        0 => number,
        _ => {
            let mixed = number.wrapping_add(index.wrapping_mul(STEP)).wrapping_mul(STEP);
            mixed ^ (mixed >> 29)
        }
    }
}

/// Writes packet `number` over all of `to`.
pub fn fill(to: &mut [u8], number: u64) {
    let mut index = 0_u64;
    for chunk in to.chunks_mut(8) {
        for (byte, value) in chunk.iter_mut().zip(word(number, index).to_le_bytes()) {
            *byte = value;
        }
        index = index.wrapping_add(1);
    }
}

/// The number of a packet, if all of it is as it was written.
pub fn check(packet: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*packet.first_chunk::<LEN_MIN>()?);
    let mut index = 0_u64;
    for chunk in packet.chunks(8) {
        if chunk.iter().zip(word(number, index).to_le_bytes()).any(|(byte, value)| *byte != value) {
            return None;
        }
        index = index.wrapping_add(1);
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_recognised_at_any_length() {
        for len in [8, 9, 15, 16, 17, 1024, 1400] {
            for number in [0, 1, 255, u64::MAX] {
                let mut packet = [0xa5; 1400];
                fill(&mut packet[..len], number);
                assert_eq!(check(&packet[..len]), Some(number), "{len} bytes");
                assert!(packet[len..].iter().all(|byte| *byte == 0xa5), "nothing beyond");
            }
        }
        assert_eq!(check(&[0; 7]), None);
    }

    #[test]
    fn any_single_bit_that_is_wrong_is_noticed() {
        let mut packet = [0; 61];
        fill(&mut packet, 77);
        for bit in 0..packet.len() * 8 {
            packet[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(check(&packet), Some(77), "bit {bit}");
            packet[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_packet_torn_between_two_numbers_is_noticed() {
        let (mut old, mut new) = ([0; 64], [0; 64]);
        fill(&mut old, 5);
        fill(&mut new, 6);
        for cut in (8..64).step_by(8) {
            let torn: [u8; 64] =
                core::array::from_fn(|at| if at < cut { new[at] } else { old[at] });
            assert_eq!(check(&torn), None, "cut at {cut}");
        }
    }
}
