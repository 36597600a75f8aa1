//! MPEG-2 video, ISO/IEC 13818-2 (ITU-T H.262): pictures that stand alone, each no longer than it may be.
//!
//! Main profile at main level, progressive, intra pictures only, the default quantiser matrix. Integer arithmetic
//! throughout, so that every machine makes the same bytes.

use super::bits::BitWriter;
use super::picture::{FRAME_RATE, HEIGHT, Picture, WIDTH};

/// Frame rate code of 25 frames per second, table 6-4.
const FRAME_RATE_CODE: u32 = 3;

const _: () = assert!(FRAME_RATE == 25);

/// Ends a sequence, section 6.2.2.
pub(super) const SEQUENCE_END: [u8; 4] = [0, 0, 1, 0xb7];

/// Section 7.3, figure 7-2.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Default matrix for intra blocks, section 6.3.11.
#[rustfmt::skip]
const INTRA_MATRIX: [i32; 64] = [
     8, 16, 19, 22, 26, 27, 29, 34,
    16, 16, 22, 24, 27, 29, 34, 37,
    19, 22, 26, 27, 29, 34, 34, 38,
    22, 22, 26, 27, 29, 34, 37, 40,
    22, 26, 27, 29, 32, 35, 40, 48,
    26, 27, 29, 32, 35, 40, 48, 58,
    26, 27, 29, 34, 38, 46, 56, 69,
    27, 29, 35, 38, 46, 56, 69, 83,
];

/// Codes of the number of bits of a DC difference: table B.12 for luma, B.13 for chroma.
const DC_SIZE_LUMA: [(u32, u32); 9] = [
    (0b100, 3),
    (0b00, 2),
    (0b01, 2),
    (0b101, 3),
    (0b110, 3),
    (0b1110, 4),
    (0b1_1110, 5),
    (0b11_1110, 6),
    (0b111_1110, 7),
];
const DC_SIZE_CHROMA: [(u32, u32); 9] = [
    (0b00, 2),
    (0b01, 2),
    (0b10, 2),
    (0b110, 3),
    (0b1110, 4),
    (0b1_1110, 5),
    (0b11_1110, 6),
    (0b111_1110, 7),
    (0b1111_1110, 8),
];

/// The shorter codes of table B.14, without the sign: run, level, code, bits. Everything else is escaped.
#[rustfmt::skip]
const AC_CODES: [(u32, u32, u32, u32); 31] = [
    (0, 1, 0b11, 2),           (1, 1, 0b011, 3),          (0, 2, 0b0100, 4),
    (2, 1, 0b0101, 4),         (0, 3, 0b0_0101, 5),       (3, 1, 0b0_0111, 5),
    (4, 1, 0b0_0110, 5),       (1, 2, 0b00_0110, 6),      (5, 1, 0b00_0111, 6),
    (6, 1, 0b00_0101, 6),      (7, 1, 0b00_0100, 6),      (0, 4, 0b000_0110, 7),
    (2, 2, 0b000_0100, 7),     (8, 1, 0b000_0111, 7),     (9, 1, 0b000_0101, 7),
    (0, 5, 0b0010_0110, 8),    (0, 6, 0b0010_0001, 8),    (1, 3, 0b0010_0101, 8),
    (3, 2, 0b0010_0100, 8),    (10, 1, 0b0010_0111, 8),   (11, 1, 0b0010_0011, 8),
    (12, 1, 0b0010_0010, 8),   (13, 1, 0b0010_0000, 8),   (0, 7, 0b00_0000_1010, 10),
    (1, 4, 0b00_0000_1100, 10), (2, 3, 0b00_0000_1011, 10), (4, 2, 0b00_0000_1111, 10),
    (5, 2, 0b00_0000_1001, 10), (14, 1, 0b00_0000_1110, 10), (15, 1, 0b00_0000_1101, 10),
    (16, 1, 0b00_0000_1000, 10),
];
const END_OF_BLOCK: (u32, u32) = (0b10, 2);
const ESCAPE: (u32, u32) = (0b00_0001, 6);

/// cos(k * pi / 16) * 2^13 for k = 0..=8.
const COSINE: [i64; 9] = [8192, 8035, 7568, 6811, 5793, 4551, 3135, 1598, 0];

/// A transformed block.
struct Block {
    coefficients: [i32; 64],
    /// Nothing but DC.
    is_flat: bool,
}

/// Four blocks of luma, two of chroma.
type Macroblock = [Block; 6];

/// Encodes a picture in at most `bytes_max` bytes, as good as that allows. It begins with its own sequence and group headers, so that
/// a receiver can start anywhere.
pub(super) fn encode(picture: &Picture, frame: u32, bit_rate: u32, bytes_max: usize) -> Vec<u8> {
    let rows = transform(picture);
    (1..=31)
        .map(|quantiser| encode_with(&rows, frame, bit_rate, quantiser))
        .find(|bytes| bytes.len() <= bytes_max)
        .unwrap_or_else(|| panic!("a picture of more than {bytes_max} bytes"))
}

fn transform(picture: &Picture) -> Vec<Vec<Macroblock>> {
    let macroblock = |x: usize, y: usize| {
        let luma = |dx, dy| dct(&picture.luma.block(16 * x + dx, 16 * y + dy));
        let chroma = |n: usize| dct(&picture.chroma[n].block(8 * x, 8 * y));
        [luma(0, 0), luma(8, 0), luma(0, 8), luma(8, 8), chroma(0), chroma(1)]
    };
    (0..HEIGHT.div_ceil(16)).map(|y| (0..WIDTH / 16).map(|x| macroblock(x, y)).collect()).collect()
}

fn encode_with(rows: &[Vec<Macroblock>], frame: u32, bit_rate: u32, quantiser: u32) -> Vec<u8> {
    let mut bits = BitWriter::default();
    put_sequence_header(&mut bits, bit_rate);
    put_group_header(&mut bits, frame);
    put_picture_header(&mut bits);
    for (row, macroblocks) in rows.iter().enumerate() {
        put_slice(&mut bits, row as u32, macroblocks, quantiser);
    }
    bits.into_bytes()
}

fn put_start_code(bits: &mut BitWriter, code: u32) {
    bits.align();
    bits.put(0x100 | code, 32);
}

/// Sections 6.2.2.1 and 6.2.2.3.
fn put_sequence_header(bits: &mut BitWriter, bit_rate: u32) {
    put_start_code(bits, 0xb3);
    bits.put(WIDTH as u32, 12);
    bits.put(HEIGHT as u32, 12);
    bits.put(1, 4); // square pixels
    bits.put(FRAME_RATE_CODE, 4);
    bits.put(bit_rate.div_ceil(400), 18);
    bits.put(1, 1); // marker
    bits.put(112, 10); // VBV buffer: the largest of the level
    bits.put(0b000, 3); // no constrained parameters, default matrices

    put_start_code(bits, 0xb5);
    bits.put(1, 4); // sequence extension
    bits.put(0x48, 8); // main profile at main level
    bits.put(1, 1); // progressive
    bits.put(0b01, 2); // 4:2:0
    bits.put(0, 2 + 2 + 12); // extensions of size and bit rate
    bits.put(1, 1); // marker
    bits.put(0, 8); // extension of the VBV buffer size
    bits.put(1, 1); // low delay: no B pictures
    bits.put(0, 2 + 5); // extension of the frame rate
}

/// Section 6.2.2.6.
fn put_group_header(bits: &mut BitWriter, frame: u32) {
    let seconds = frame / FRAME_RATE;
    put_start_code(bits, 0xb8);
    bits.put(0, 1); // no dropped frames
    bits.put(seconds / 3600 % 24, 5);
    bits.put(seconds / 60 % 60, 6);
    bits.put(1, 1); // marker
    bits.put(seconds % 60, 6);
    bits.put(frame % FRAME_RATE, 6);
    bits.put(0b10, 2); // closed, not broken
}

/// Sections 6.2.3 and 6.2.3.1.
fn put_picture_header(bits: &mut BitWriter) {
    put_start_code(bits, 0x00);
    bits.put(0, 10); // the first of its group
    bits.put(1, 3); // intra
    bits.put(0xffff, 16); // variable bit rate: no VBV delay
    bits.put(0, 1); // no extra information

    put_start_code(bits, 0xb5);
    bits.put(8, 4); // picture coding extension
    bits.put(0xffff, 16); // no motion vectors
    bits.put(0b00, 2); // DC with 8 bits
    bits.put(0b11, 2); // a frame
    bits.put(0, 1); // top field first: not with progressive sequences
    bits.put(1, 1); // frame prediction and frame DCT only
    bits.put(0b00000, 5); // concealment, linear quantiser, table B.14, zigzag, no repeat
    bits.put(0b11, 2); // progressive
    bits.put(0, 1); // no composite display
}

/// Section 6.2.4: one row of macroblocks.
fn put_slice(bits: &mut BitWriter, row: u32, macroblocks: &[Macroblock], quantiser: u32) {
    put_start_code(bits, row + 1);
    bits.put(quantiser, 5);
    bits.put(0, 1); // no extra information
    let mut predicted = [128; 3];
    for macroblock in macroblocks {
        bits.put(0b11, 2); // the next address; intra
        for (n, block) in macroblock.iter().enumerate() {
            let (component, sizes) = match n {
                0..=3 => (0, &DC_SIZE_LUMA),
                _ => (n - 3, &DC_SIZE_CHROMA),
            };
            // 8 bits of DC: an eighth of the coefficient (section 7.4.1).
            let dc = divide(block.coefficients[0], 8).clamp(0, 255);
            put_dc(bits, dc - predicted[component], sizes);
            predicted[component] = dc;
            if !block.is_flat {
                put_ac(bits, &block.coefficients, quantiser);
            }
            bits.put(END_OF_BLOCK.0, END_OF_BLOCK.1);
        }
    }
}

/// Section 7.2.1.
fn put_dc(bits: &mut BitWriter, difference: i32, sizes: &[(u32, u32); 9]) {
    let size = 32 - difference.unsigned_abs().leading_zeros();
    let (code, length) = sizes[size as usize];
    bits.put(code, length);
    let value = if difference < 0 { difference + (1 << size) - 1 } else { difference };
    bits.put(value as u32, size);
}

/// Section 7.2.2, without the end of the block.
fn put_ac(bits: &mut BitWriter, coefficients: &[i32; 64], quantiser: u32) {
    let mut run = 0;
    for &at in &ZIGZAG[1..] {
        let at = usize::from(at);
        // Section 7.4.2.3 inverted: level * matrix * 2 * (2 * quantiser) / 32, rounded to nearest.
        let level =
            divide(coefficients[at] * 8, INTRA_MATRIX[at] * quantiser as i32).clamp(-2047, 2047);
        if level == 0 {
            run += 1;
            continue;
        }
        put_run_and_level(bits, run, level);
        run = 0;
    }
}

fn put_run_and_level(bits: &mut BitWriter, run: u32, level: i32) {
    let known = AC_CODES.iter().find(|(r, l, ..)| (*r, *l) == (run, level.unsigned_abs()));
    match known {
        Some(&(_, _, code, length)) => {
            bits.put(code, length);
            bits.put(u32::from(level < 0), 1);
        }
        None => {
            bits.put(ESCAPE.0, ESCAPE.1);
            bits.put(run, 6);
            bits.put(level as u32, 12);
        }
    }
}

/// Divides and rounds to the nearest, halves away from zero.
fn divide(value: i32, by: i32) -> i32 {
    (value.abs() + by / 2) / by * value.signum()
}

/// The discrete cosine transform of annex A.
fn dct(samples: &[u8; 64]) -> Block {
    let mut coefficients = [0; 64];
    if samples == &[samples[0]; 64] {
        coefficients[0] = i32::from(samples[0]) * 8;
        return Block { coefficients, is_flat: true };
    }
    let mut lines = [0; 64];
    for y in 0..8 {
        for u in 0..8 {
            lines[8 * y + u] =
                (0..8).map(|x| i64::from(samples[8 * y + x]) * basis(u, x)).sum::<i64>();
        }
    }
    for v in 0..8 {
        for u in 0..8 {
            let sum: i64 = (0..8).map(|y| lines[8 * y + u] * basis(v, y)).sum();
            // Two cosines of 13 bits and two factors of one half.
            coefficients[8 * v + u] = ((sum + (1 << 27)) >> 28) as i32;
        }
    }
    Block { coefficients, is_flat: false }
}

/// Twice the transform's basis function in 13 bits; for `u` = 0 the cosine of 45 degrees is the constant.
fn basis(u: usize, x: usize) -> i64 {
    let angle = if u == 0 { 4 } else { (2 * x + 1) * u % 32 };
    match angle {
        0..=8 => COSINE[angle],
        9..=16 => -COSINE[16 - angle],
        17..=24 => -COSINE[angle - 16],
        _ => COSINE[32 - angle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Annex A as it is printed.
    fn reference(samples: &[u8; 64]) -> Vec<f64> {
        use std::f64::consts::{FRAC_1_SQRT_2, PI};
        let c = |u: usize| if u == 0 { FRAC_1_SQRT_2 } else { 1.0 };
        let cosine = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * PI / 16.0).cos();
        (0..64)
            .map(|n| {
                let (v, u) = (n / 8, n % 8);
                let sum: f64 = (0..64)
                    .map(|s| f64::from(samples[s]) * cosine(s % 8, u) * cosine(s / 8, v))
                    .sum();
                sum * c(u) * c(v) / 4.0
            })
            .collect()
    }

    #[test]
    fn the_transform_is_that_of_annex_a() {
        let mut seed = 1u32;
        for _ in 0..200 {
            let samples = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            });
            for (ours, exact) in dct(&samples).coefficients.iter().zip(reference(&samples)) {
                assert!((f64::from(*ours) - exact).abs() < 1.0, "{ours} for {exact}");
            }
        }
        let flat = dct(&[77; 64]);
        assert!(flat.is_flat);
        assert_eq!(flat.coefficients[0], 77 * 8);
    }

    #[test]
    fn a_picture_keeps_to_its_length() {
        let picture = Picture::draw(3);
        let fine = encode(&picture, 3, 3_000_000, 60_000);
        let coarse = encode(&picture, 3, 3_000_000, 9_000);
        assert!(fine.len() <= 60_000 && coarse.len() <= 9_000 && coarse.len() < fine.len());
        for bytes in [fine, coarse] {
            let codes: Vec<u8> =
                bytes.windows(4).filter(|w| w[..3] == [0, 0, 1]).map(|w| w[3]).collect();
            let slices: Vec<u8> = (1..=23).collect();
            assert_eq!(codes[..5], [0xb3, 0xb5, 0xb8, 0x00, 0xb5]);
            assert_eq!(codes[5..], slices);
        }
    }
}
