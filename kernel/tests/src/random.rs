//! Repeatable randomness.

/// xorshift64*: what it gives must differ, not be unpredictable.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number. (No iterator: it never ends.)
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
