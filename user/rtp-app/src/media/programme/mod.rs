//! A short programme made on the spot: a picture in motion and a tone, as a transport stream that any player shows.
//!
//! Everything is made here, by integer arithmetic, so the demo sends the same bytes on every machine and nothing needs to be
//! installed: `picture` draws, `video` and `sound` encode, `mux` packs, and this file says what is sent when.

mod bits;
mod mux;
mod picture;
mod sound;
mod video;

use mux::{Muxer, PACKET, Pes, Stream};
use picture::{FRAME_RATE, Picture};

/// The programme's constant bit rate, in bits per second: 2,000 transport stream packets.
pub const BIT_RATE: u32 = 3_008_000;

/// Transport stream packets in the time of a frame.
const FRAME_PACKETS: usize = (BIT_RATE / FRAME_RATE) as usize / (8 * PACKET);

/// What video may take of them: the rest is for tables, clock references and two frames of sound.
const VIDEO_BYTES_MAX: usize = (FRAME_PACKETS - 14) * (PACKET - 4);

/// Ticks of 27 MHz in the time of a packet.
const PACKET_TICKS: u64 = 27_000_000 * 8 * PACKET as u64 / BIT_RATE as u64;

/// A clock reference is true for its own eleventh byte (ISO/IEC 13818-1 section 2.4.2.2).
const PCR_BYTE: u64 = 10;

/// The clock at the first byte, in ticks: ten seconds, so that nothing has to be negative.
const START_TICKS: u64 = 10 * 27_000_000;

/// How long after its time to be sent a frame is shown, in 90 kHz: two frames.
const DELAY: u64 = 2 * 90_000 / FRAME_RATE as u64;

/// Makes `seconds` of the programme: whole transport stream packets, always the same ones.
///
/// ```
/// let programme = rtp_app::media::programme::generate(1);
/// assert_eq!(programme.len(), 2_000 * 188);
/// ```
pub fn generate(seconds: u32) -> Vec<u8> {
    let frames = seconds * FRAME_RATE;
    let mut programme = Programme::default();
    for frame in 0..frames {
        programme.put_frame(frame, frame + 1 == frames);
    }
    programme.muxer.into_bytes()
}

#[derive(Default)]
struct Programme {
    muxer: Muxer,
    sound: Option<Pes>,
    sound_frames: u32,
}

impl Programme {
    /// Everything that is sent in the time of one video frame.
    fn put_frame(&mut self, frame: u32, is_last: bool) {
        let end = self.muxer.packets() + FRAME_PACKETS;
        let mut video = video_frame(frame, is_last);
        self.put_pcr();
        if frame.is_multiple_of(2) {
            self.muxer.put_pat();
            self.muxer.put_pmt();
        }
        while self.muxer.packets() < end {
            if self.muxer.packets() + FRAME_PACKETS / 2 == end {
                self.put_pcr();
            } else if self.is_sound_due() {
                self.put_sound();
            } else if !video.is_sent() {
                self.muxer.put_pes(&mut video);
            } else {
                self.muxer.put_null();
            }
        }
        debug_assert!(video.is_sent());
    }

    fn put_pcr(&mut self) {
        let position = self.muxer.packets() as u64 * PACKET as u64 + PCR_BYTE;
        self.muxer.put_pcr(START_TICKS + position * PACKET_TICKS / PACKET as u64);
    }

    /// Whether a frame of sound is being sent, or its time has come.
    fn is_sound_due(&self) -> bool {
        let now = self.muxer.packets() as u64 * PACKET_TICKS / 300;
        self.sound.is_some() || sound_time(self.sound_frames) <= now
    }

    fn put_sound(&mut self) {
        let number = self.sound_frames;
        let mut pes = self.sound.take().unwrap_or_else(|| {
            self.sound_frames += 1;
            let pts = START_TICKS / 300 + DELAY + sound_time(number);
            Pes::new(Stream::Audio, pts, &sound::encode(number))
        });
        self.muxer.put_pes(&mut pes);
        self.sound = Some(pes).filter(|pes| !pes.is_sent());
    }
}

fn video_frame(frame: u32, is_last: bool) -> Pes {
    let pts = START_TICKS / 300 + DELAY + u64::from(frame) * 90_000 / u64::from(FRAME_RATE);
    let mut bytes = video::encode(&Picture::draw(frame), frame, BIT_RATE, VIDEO_BYTES_MAX);
    if is_last {
        bytes.extend(video::SEQUENCE_END);
    }
    Pes::new(Stream::Video, pts, &bytes)
}

/// When a frame of sound begins, in 90 kHz.
fn sound_time(frame: u32) -> u64 {
    u64::from(frame) * u64::from(sound::FRAME_SAMPLES) * 90_000 / u64::from(sound::SAMPLE_RATE)
}

#[cfg(test)]
mod tests;
