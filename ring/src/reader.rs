//! The consumer's side of the ring protocol.
//!
//! What lives here: one reader's cursor, how it tells what it may read, whether what it copied was
//! overwritten meanwhile, and how it goes to sleep without missing a wake-up. What does not: copying
//! packets ([`super::view::SlotsView`]) and sleeping itself.
//!
//! A *reliable* reader in the producer's own process reads in place: nothing it has not released is
//! overwritten. Every other reader copies first and believes afterwards:
//!
//! ```text
//! available -> load -> copy the packet -> is_intact? -> use the copy -> advance -> release
//! ```

use super::abi::Descriptor;
use super::atomic::{fence_full, fence_read};
use super::view::{ControlView, RingView};

/// What stands before a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Available {
    /// So many positions may be read, from the cursor on.
    Positions(u64),
    /// The producer has lapped this reader: `missed` positions are gone, and the cursor now stands
    /// where there is something again.
    Lapped {
        /// Positions that this reader will never see.
        missed: u64,
    },
}

/// Where one reader stands.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    next: u64,
    slot_count: u64,
    /// Lapped, and nothing read since.
    lapped: bool,
}

impl Cursor {
    /// A reader that begins at `next`.
    pub const fn new(next: u64, slot_count: u32) -> Self {
        Self { next, slot_count: slot_count as u64, lapped: false }
    }

    /// Next position to read.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Positions published and not yet read, for a reader that cannot be lapped. Never more than the
    /// ring has, whatever the shared words say.
    #[inline]
    pub fn ready(&self, view: &RingView<'_>) -> u64 {
        self.behind(view.head.load_acquire()).min(self.slot_count)
    }

    fn behind(&self, head: u64) -> u64 {
        let behind = head.wrapping_sub(self.next);
        // A head behind the cursor is not the producer's doing: nothing to read.
        if behind as i64 > 0 {
            behind
        } else {
            0
        }
    }

    /// What a reader that may be lapped finds. Moves the cursor when it was: to the oldest position
    /// there is, or, when it was lapped there before it had read anything, an eighth of a ring further,
    /// so that a reader slower than the producer reads something at all.
    pub fn available(&mut self, view: &RingView<'_>) -> Available {
        let head = view.head.load_acquire();
        let oldest = view.claim.load().wrapping_sub(self.slot_count);
        let missed = oldest.wrapping_sub(self.next);
        if missed as i64 > 0 {
            let lead = if self.lapped { self.slot_count / 8 } else { 0 };
            self.lapped = true;
            self.next = oldest.wrapping_add(lead);
            return Available::Lapped { missed: missed.wrapping_add(lead) };
        }
        Available::Positions(self.behind(head).min(self.slot_count))
    }

    /// Whether what was copied of `position` is what was published there: the producer has not begun
    /// to write that place again.
    #[inline]
    pub fn is_intact(&self, view: &RingView<'_>, position: u64) -> bool {
        fence_read();
        view.claim.load().wrapping_sub(position) <= self.slot_count
    }

    /// Copies the descriptor of `position` out.
    #[inline]
    pub fn load(&self, view: &RingView<'_>, position: u64) -> Descriptor {
        view.load(position)
    }

    /// Goes past `positions` more.
    #[inline]
    pub fn advance(&mut self, positions: u64) {
        self.next = self.next.wrapping_add(positions);
        self.lapped &= positions == 0;
    }

    /// Tells the producer that everything before the cursor may be overwritten.
    #[inline]
    pub fn release(&self, control: &ControlView<'_>) {
        control.position.store_release(self.next);
    }

    /// Asks to be woken when `threshold` positions (at least one) are there, and looks once more.
    /// `true`: there are not, and sleeping is right; the wake-up will come.
    pub fn prepare_wait(
        &self,
        view: &RingView<'_>,
        control: &ControlView<'_>,
        threshold: u64,
    ) -> bool {
        let threshold = threshold.max(1).min(self.slot_count);
        control.wake_at.store(self.next.wrapping_add(threshold));
        // See Producer::publish.
        fence_full();
        self.behind(view.head.load_acquire()) < threshold
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::abi::DESC_WORDS;
    use super::super::atomic::Word;
    use super::*;

    #[test]
    fn a_reader_that_is_lapped_before_it_read_anything_gets_a_lead() {
        let descriptors: [[Word; DESC_WORDS]; 16] =
            core::array::from_fn(|_| core::array::from_fn(|_| Word::new(0)));
        let (claim, head) = (Word::new(100), Word::new(100));
        let view = RingView { claim: &claim, head: &head, descriptors: &descriptors };
        let mut cursor = Cursor::new(0, 16);
        assert_eq!(cursor.available(&view), Available::Lapped { missed: 84 });
        assert_eq!(cursor.available(&view), Available::Positions(16));
        // The producer takes the oldest position before it was read.
        claim.store(101);
        head.store(101);
        assert_eq!(cursor.available(&view), Available::Lapped { missed: 3 });
        assert_eq!((cursor.next(), cursor.available(&view)), (87, Available::Positions(14)));
        cursor.advance(1);
        claim.store(110);
        head.store(110);
        assert_eq!(cursor.available(&view), Available::Lapped { missed: 6 });
    }
}
