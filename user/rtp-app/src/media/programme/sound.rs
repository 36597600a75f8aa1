//! What the programme sounds like, as MPEG-1 layer II audio (ISO/IEC 11172-3): a tone on the left, a pip every second on the right.
//!
//! A tone in the middle of a subband is a sequence of subband samples with a period of four, so no filter bank is needed:
//! the decoder's makes the tone of it.

use super::bits::BitWriter;

/// Samples per second.
pub(super) const SAMPLE_RATE: u32 = 48_000;

/// Samples per channel in a frame.
pub(super) const FRAME_SAMPLES: u32 = 1_152;

/// Bits per second, and bytes of a frame.
pub(super) const BIT_RATE: u32 = 128_000;
pub(super) const FRAME_BYTES: usize = (BIT_RATE / 8 * FRAME_SAMPLES / SAMPLE_RATE) as usize;

/// Subbands with a tone, of 750 Hz each: 1,125 Hz on the left, 1,875 Hz on the right.
const TONES: [usize; 2] = [1, 2];

/// Subbands of table B.2a (48 kHz, 56 to 192 kbit/s per channel).
const SUBBANDS: usize = 27;

/// The allocation of 65,535 steps, 16 bits per sample, for the lowest three subbands of that table.
const ALLOCATION: u32 = 15;
const STEPS: i32 = 65_535;

/// A scale factor of 0.25 (table B.1): 12 dB below full scale.
const SCALE_FACTOR: u32 = 9;

/// One scale factor for the whole frame (section 2.4.2.5).
const SCALE_FACTOR_ONCE: u32 = 0b10;

/// The pip's length in frames of 24 ms.
const PIP_FRAMES: u32 = 10;

/// Bits of an allocation in table B.2a.
fn allocation_bits(subband: usize) -> u32 {
    match subband {
        0..=10 => 4,
        11..=22 => 3,
        _ => 2,
    }
}

/// Frame number `frame` of the sound.
pub(super) fn encode(frame: u32) -> Vec<u8> {
    let mut bits = BitWriter::default();
    bits.put(0xfff, 12);
    bits.put(0b1101, 4); // MPEG-1, layer II, no check
    bits.put(8, 4); // 128 kbit/s
    bits.put(0b01, 2); // 48 kHz
    bits.put(0b00, 2); // no padding
    bits.put(0b0000_0100, 8); // stereo, an original, no emphasis
    for subband in 0..SUBBANDS {
        for tone in TONES {
            let allocation = if subband == tone { ALLOCATION } else { 0 };
            bits.put(allocation, allocation_bits(subband));
        }
    }
    TONES.iter().for_each(|_| bits.put(SCALE_FACTOR_ONCE, 2));
    TONES.iter().for_each(|_| bits.put(SCALE_FACTOR, 6));
    let loud = [true, is_pip(frame)];
    for triplet in 0..12 {
        for loud in loud {
            for sample in 3 * triplet..3 * triplet + 3 {
                bits.put(code(if loud { subband_sample(sample) } else { 0 }), 16);
            }
        }
    }
    let mut bytes = bits.into_bytes();
    bytes.resize(FRAME_BYTES, 0);
    bytes
}

/// Whether the pip sounds: for a quarter of a second from each full second on.
fn is_pip(frame: u32) -> bool {
    let into_second = frame * FRAME_SAMPLES % SAMPLE_RATE;
    into_second < PIP_FRAMES * FRAME_SAMPLES
}

/// A quarter of the subband's sampling rate: the middle of the subband. A frame holds nine periods of it.
fn subband_sample(n: u32) -> i32 {
    [STEPS / 2, 0, -(STEPS / 2), 0][n as usize % 4]
}

/// The code of a value of `-STEPS/2..=STEPS/2` (section 2.4.3.3.4): 65,535 itself is never one.
fn code(value: i32) -> u32 {
    (value + STEPS / 2) as u32
}
