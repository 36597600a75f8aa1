//! What packets of the soak look like, and a reader that checks each of them.

use std::sync::OnceLock;

use rtp_mgr::{Cause, Item};

use crate::dice::Dice;

/// Longest payload.
pub(crate) const PAYLOAD_MAX: usize = 1_200;

/// The payload that belongs to a sequence number: bytes that no other number has at this place. Filled and
/// checked by copying and comparing memory, so that the load is the engines' and not the check's.
pub(crate) fn payload(sequence: u16, len: usize) -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let mut dice = Dice::new(0x50a4);
        let mut noise = vec![0; (usize::from(u16::MAX) + 1 + PAYLOAD_MAX).next_multiple_of(8)];
        noise.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&dice.next().to_ne_bytes()));
        noise
    });
    &noise[usize::from(sequence)..][..len.min(PAYLOAD_MAX)]
}

/// What a reader has heard, and what of it is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub packets: u64,
    /// Positions given up as lost.
    pub gaps: u64,
    /// Positions that were overwritten before they were read.
    pub missed: u64,
    pub breaks: u64,
    /// Packets with another packet's payload.
    pub torn: u64,
    /// Places where the sequence does not continue and nothing says so.
    pub jumps: u64,
    /// The next sequence number.
    pub(super) next: Option<u64>,
}

impl Tally {
    /// Nothing from here on continues what came before.
    pub(crate) fn forget(&mut self) {
        self.next = None;
    }

    pub(crate) fn add(&mut self, item: Item<'_>) {
        match item {
            Item::Packet(packet) => {
                let len = packet.payload().len();
                self.torn += u64::from(packet.payload() != payload(packet.sequence_number(), len));
                self.packets += 1;
                self.go_on(packet.sequence(), 1);
            }
            Item::Gap(gap) => {
                self.gaps += u64::from(gap.count());
                self.go_on(gap.sequence(), gap.count().into());
            }
            Item::Discontinuity(found) => {
                if found.cause() == Cause::Lapped {
                    self.missed += found.count();
                } else {
                    self.breaks += 1;
                }
                self.forget();
            }
        }
    }

    fn go_on(&mut self, sequence: u64, count: u64) {
        self.jumps += u64::from(self.next.is_some_and(|next| next != sequence));
        self.next = Some(sequence.wrapping_add(count));
    }

    /// Positions accounted for.
    pub(crate) fn positions(&self) -> u64 {
        self.packets + self.gaps + self.missed
    }

    /// For the parent of a reader process.
    pub(crate) fn text(&self) -> String {
        let Self { packets, gaps, missed, breaks, torn, jumps, .. } = self;
        format!(
            "packets={packets} gaps={gaps} missed={missed} breaks={breaks} torn={torn} jumps={jumps}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_numbers_share_a_payload() {
        for (one, other) in [(0, 1), (1, 0), (65_535, 0), (7, 4_711)] {
            assert_ne!(payload(one, 40), payload(other, 40), "{one} and {other}");
        }
        assert_eq!(payload(65_535, PAYLOAD_MAX).len(), PAYLOAD_MAX);
    }
}
