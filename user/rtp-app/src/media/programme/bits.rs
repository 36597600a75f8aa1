//! Bits into bytes, most significant first, as the MPEG standards write them.

/// A growing string of bits.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits that do not fill a byte yet, in the low `pending` bits.
    held: u64,
    pending: u32,
}

impl BitWriter {
    /// Appends the low `count` bits of `value`; `count` is at most 32.
    pub fn put(&mut self, value: u32, count: u32) {
        let mask = (1u64 << count) - 1;
        self.held = self.held << count | (u64::from(value) & mask);
        self.pending += count;
        while self.pending >= 8 {
            self.pending -= 8;
            self.bytes.push((self.held >> self.pending) as u8);
        }
    }

    /// Appends zero bits up to the next byte.
    pub fn align(&mut self) {
        let rest = self.pending % 8;
        if rest > 0 {
            self.put(0, 8 - rest);
        }
    }

    /// The bytes, the last one filled up with zeros.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.align();
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_each_other_across_bytes() {
        let mut bits = BitWriter::default();
        bits.put(0b101, 3);
        bits.put(0xffff_f00f, 12); // only the low twelve count
        bits.put(1, 1);
        bits.put(0x1234_5678, 32);
        bits.put(1, 1);
        assert_eq!(bits.into_bytes(), [0b1010_0000, 0b0001_1111, 0x12, 0x34, 0x56, 0x78, 0x80]);
    }
}
