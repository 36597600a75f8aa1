//! Borrowed views of shared memory: words that the other side may change at any time.
//!
//! What lives here: how words are laid over the parts of the region, seen through atomics only. What
//! does not: mapping (whoever owns the memory builds these views) and protocol
//! ([`super::producer`], [`super::reader`]).

use super::abi::{Descriptor, DESC_WORDS, SEQUENCE_WORDS};
use super::atomic::{fence_read, fence_write, Word};

/// Words of a descriptor that are written and read: those that say something; the rest stays zero. Fewer
/// under the model checker, whose state space grows with every access: three name sequence, time and slot.
const SAYING: usize = if cfg!(loom) { 3 } else { 6 };

/// The words of one descriptor.
pub type DescriptorWords = [Word; DESC_WORDS];

/// Positions and descriptors of one ring.
#[derive(Clone, Copy, Debug)]
pub struct RingView<'a> {
    /// One more than the highest position being written.
    pub claim: &'a Word,
    /// Next position to publish.
    pub head: &'a Word,
    /// The descriptors; their number is a power of two.
    pub descriptors: &'a [DescriptorWords],
}

impl RingView<'_> {
    /// The words that describe `position`, `None` only when the ring has no descriptors.
    #[inline]
    fn words(&self, position: u64) -> Option<&DescriptorWords> {
        let mask = self.descriptors.len().wrapping_sub(1);
        self.descriptors.get(position as usize & mask)
    }

    /// Copies the descriptor of `position` out, but for what is reserved. What it says may be torn: see
    /// [`super::reader`].
    #[inline]
    pub fn load(&self, position: u64) -> Descriptor {
        let mut copy = [0; DESC_WORDS];
        if let Some(words) = self.words(position) {
            for (to, from) in copy.iter_mut().zip(words).take(SAYING) {
                *to = from.load();
            }
        }
        Descriptor::from_words(copy)
    }

    /// Writes the descriptor of `position`.
    #[inline(always)]
    pub fn store(&self, position: u64, descriptor: &Descriptor) {
        if let Some(words) = self.words(position) {
            for (to, from) in words.iter().zip(descriptor.to_words()).take(SAYING) {
                to.store(from);
            }
        }
    }
}

/// The control page of one reader or writer.
#[derive(Clone, Copy, Debug)]
pub struct ControlView<'a> {
    /// Receive: the reader's tail. Transmit: the writer's head.
    pub position: &'a Word,
    /// Position to wake at.
    pub wake_at: &'a Word,
}

/// The slots of a ring, as words. A slot begins at any byte: `slot_stride` need not be a multiple of
/// eight.
#[derive(Clone, Copy, Debug)]
pub struct SlotsView<'a> {
    /// The whole slots part.
    pub words: &'a [Word],
    /// Bytes from one slot to the next.
    pub stride: u32,
}

impl SlotsView<'_> {
    /// Copies the first bytes of `slot` to `to`. Returns how many there were: fewer than asked for
    /// when `slot` or the length leaves the region.
    ///
    /// A concurrent writer may change what is copied, never where it is copied to.
    pub fn copy(&self, slot: u32, to: &mut [u8]) -> usize {
        let start = (slot as usize).saturating_mul(self.stride as usize);
        let first = start / 8;
        let skip = start % 8;
        let Some(words) = self.words.get(first..) else { return 0 };
        let available = words.len().saturating_mul(8).saturating_sub(skip);
        let len = to.len().min(available);
        let Some(to) = to.get_mut(..len) else { return 0 };
        if skip == 0 {
            for (chunk, word) in to.chunks_mut(8).zip(words) {
                write_prefix(chunk, word.load());
            }
        } else {
            let shift = (skip as u32).wrapping_mul(8);
            let shift_back = 64_u32.wrapping_sub(shift);
            let next = words.iter().skip(1).map(Word::load).chain(core::iter::repeat(0));
            for ((chunk, word), next) in to.chunks_mut(8).zip(words).zip(next) {
                write_prefix(
                    chunk,
                    word.load().wrapping_shr(shift) | next.wrapping_shl(shift_back),
                );
            }
        }
        len
    }
}

/// Fills `to`, at most eight bytes, with the first bytes of `word` in memory order.
#[inline]
fn write_prefix(to: &mut [u8], word: u64) {
    let bytes = word.to_le_bytes();
    match <&mut [u8; 8]>::try_from(&mut *to) {
        Ok(to) => *to = bytes,
        Err(_) => to.iter_mut().zip(bytes).for_each(|(to, from)| *to = from),
    }
}

/// A block of words under a sequence count: odd while the engine writes.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The sequence count, then the block's words.
    pub words: &'a [Word],
}

impl Block<'_> {
    /// Replaces the words. Only the engine, from one thread at a time, calls this.
    #[inline]
    pub fn publish(&self, values: &[u64]) {
        let Some((sequence, words)) = self.words.split_first() else { return };
        let odd = sequence.load().wrapping_add(1);
        sequence.store(odd);
        fence_write();
        for (to, from) in words.iter().zip(values) {
            to.store(*from);
        }
        sequence.store_release(odd.wrapping_add(1));
    }

    /// The words of a block of `WORDS`, to replace some of them until [`end`](Self::end). Only the engine, from
    /// one thread at a time, calls this. `None`: the block is shorter.
    #[inline(always)]
    pub fn begin<const WORDS: usize>(&self) -> Option<&[Word; WORDS]> {
        let (sequence, words) = self.words.split_first()?;
        let words = words.first_chunk::<WORDS>()?;
        sequence.store(sequence.load().wrapping_add(1));
        fence_write();
        Some(words)
    }

    /// The words are what they are to be.
    #[inline(always)]
    pub fn end(&self) {
        if let Some(sequence) = self.words.first() {
            sequence.store_release(sequence.load().wrapping_add(1));
        }
    }

    /// Copies a consistent state of the words out. `false` when the writer was in the way `tries`
    /// times: `values` is then of no use.
    pub fn snapshot(&self, values: &mut [u64], tries: u32) -> bool {
        let Some((sequence, words)) = self.words.split_first() else { return false };
        if words.len() < values.len() {
            return false;
        }
        for _ in 0..tries {
            let before = sequence.load_acquire();
            if before & 1 == 0 {
                for (to, from) in values.iter_mut().zip(words) {
                    *to = from.load();
                }
                fence_read();
                if sequence.load() == before {
                    return true;
                }
            }
            core::hint::spin_loop();
        }
        false
    }

    /// Number of words a block of `len` values takes, its sequence count included.
    pub const fn len_words(len: usize) -> usize {
        SEQUENCE_WORDS.saturating_add(len)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn slots_of_any_stride_copy_the_bytes_they_hold() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1024).collect();
        let words: Vec<Word> = bytes
            .chunks_exact(8)
            .map(|chunk| Word::new(u64::from_le_bytes(chunk.try_into().unwrap())))
            .collect();
        for stride in [64, 65, 67, 71, 100] {
            let slots = SlotsView { words: &words, stride };
            for slot in 0..1024 / stride {
                for len in [0, 1, 7, 8, 9, stride as usize] {
                    let mut copy = std::vec![0; len];
                    let start = (slot * stride) as usize;
                    assert_eq!(slots.copy(slot, &mut copy), len);
                    assert_eq!(copy, bytes[start..start + len], "stride {stride} slot {slot}");
                }
            }
        }
    }

    #[test]
    fn a_slot_outside_the_region_copies_nothing_and_one_at_its_end_what_is_there() {
        let words: Vec<Word> = (0..16).map(|_| Word::new(u64::MAX)).collect();
        let slots = SlotsView { words: &words, stride: 100 };
        let mut copy = [0; 100];
        assert_eq!(slots.copy(1, &mut copy), 28);
        assert_eq!(slots.copy(2, &mut copy), 0);
        assert_eq!(slots.copy(u32::MAX, &mut copy), 0);
    }

    #[test]
    fn a_block_gives_back_what_was_published_and_refuses_while_it_is_written() {
        let words: Vec<Word> = (0..4).map(|_| Word::new(0)).collect();
        let block = Block { words: &words };
        block.publish(&[1, 2, 3]);
        let mut copy = [0; 3];
        assert!(block.snapshot(&mut copy, 1));
        assert_eq!(copy, [1, 2, 3]);
        words[0].store(words[0].load() + 1);
        assert!(!block.snapshot(&mut copy, 3));
    }
}
