//! Transport stream packets, ISO/IEC 13818-1: tables, clock references and elementary streams.

/// Bytes of a packet.
pub(super) const PACKET: usize = 188;

const PAT_PID: u16 = 0;
const PMT_PID: u16 = 0x1000;
const VIDEO_PID: u16 = 0x100;
const AUDIO_PID: u16 = 0x101;
const NULL_PID: u16 = 0x1fff;

/// Stream types of table 2-34 and stream ids of table 2-22.
const VIDEO_TYPE: u8 = 0x02;
const AUDIO_TYPE: u8 = 0x03;

/// The elementary streams of the programme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Video,
    Audio,
}

impl Stream {
    const fn pid(self) -> u16 {
        match self {
            Stream::Video => VIDEO_PID,
            Stream::Audio => AUDIO_PID,
        }
    }

    const fn id(self) -> u8 {
        match self {
            Stream::Video => 0xe0,
            Stream::Audio => 0xc0,
        }
    }
}

/// Writes packets one after the other.
#[derive(Debug, Default)]
pub(super) struct Muxer {
    bytes: Vec<u8>,
    /// The next continuity counters: PAT, PMT, video, audio.
    counters: [u8; 4],
}

/// A PES packet on its way into packets.
#[derive(Debug)]
pub(super) struct Pes {
    stream: Stream,
    bytes: Vec<u8>,
    sent: usize,
}

impl Pes {
    /// Wraps a coded frame that is to be shown at `pts`, in 90 kHz (section 2.4.3.6).
    pub fn new(stream: Stream, pts: u64, frame: &[u8]) -> Self {
        // Video may leave its length open; a frame can be longer than the field tells.
        let length = match stream {
            Stream::Video => 0,
            Stream::Audio => (frame.len() + 8) as u16,
        };
        let mut bytes = vec![0, 0, 1, stream.id()];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0x84, 0x80, 5]); // begins with a frame; PTS only
        bytes.extend(timestamp(pts));
        bytes.extend_from_slice(frame);
        Self { stream, bytes, sent: 0 }
    }

    pub fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }
}

/// A PTS with its prefix of 2 and its marker bits.
fn timestamp(pts: u64) -> [u8; 5] {
    let pts = pts & 0x1_ffff_ffff;
    [
        0x21 | (pts >> 29) as u8 & 0x0e,
        (pts >> 22) as u8,
        1 | (pts >> 14) as u8,
        (pts >> 7) as u8,
        1 | (pts << 1) as u8,
    ]
}

impl Muxer {
    /// Packets so far.
    pub fn packets(&self) -> usize {
        self.bytes.len() / PACKET
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The programme association table: one programme.
    pub fn put_pat(&mut self) {
        let programme = [0, 1, 0xe0 | (PMT_PID >> 8) as u8, PMT_PID as u8];
        self.put_section(PAT_PID, 0, 0x00, &programme);
    }

    /// The programme map table: its streams, and whose packets carry the clock.
    pub fn put_pmt(&mut self) {
        let pid = |pid: u16| [0xe0 | (pid >> 8) as u8, pid as u8];
        let mut body = [&pid(VIDEO_PID)[..], &[0xf0, 0]].concat();
        for (kind, stream) in [(VIDEO_TYPE, Stream::Video), (AUDIO_TYPE, Stream::Audio)] {
            body.push(kind);
            body.extend(pid(stream.pid()));
            body.extend([0xf0, 0]);
        }
        self.put_section(PMT_PID, 1, 0x02, &body);
    }

    /// A packet that carries nothing but a clock reference (27 MHz).
    pub fn put_pcr(&mut self, pcr: u64) {
        // Without payload the counter stays where it was (section 2.4.3.3).
        let counter = self.counters[2].wrapping_sub(1) & 0xf;
        self.put_header(VIDEO_PID, false, 0x20 | counter);
        let base = pcr / 300 % (1 << 33);
        let field = (base << 15) | (0x3f << 9) | (pcr % 300);
        self.bytes.extend([183, 0x10]);
        self.bytes.extend(&field.to_be_bytes()[2..]);
        self.pad();
    }

    /// A packet that carries nothing at all.
    pub fn put_null(&mut self) {
        self.put_header(NULL_PID, false, 0x10);
        self.pad();
    }

    /// The next packet of a frame.
    pub fn put_pes(&mut self, pes: &mut Pes) {
        let first = pes.sent == 0;
        let rest = &pes.bytes[pes.sent..];
        // Every video frame can be decoded alone: random access indicator in its first packet.
        let flags = first && pes.stream == Stream::Video;
        let room = PACKET - 4 - if flags { 2 } else { 0 };
        let count = rest.len().min(room);
        let stuffing = PACKET - 4 - count;
        let counter = self.count(match pes.stream {
            Stream::Video => 2,
            Stream::Audio => 3,
        });
        let adaptation = if stuffing > 0 { 0x30 } else { 0x10 };
        self.put_header(pes.stream.pid(), first, adaptation | counter);
        if stuffing > 0 {
            self.bytes.push(stuffing as u8 - 1);
        }
        if stuffing > 1 {
            self.bytes.push(if flags { 0x40 } else { 0 });
            self.bytes.resize(self.bytes.len() + stuffing - 2, 0xff);
        }
        self.bytes.extend_from_slice(&rest[..count]);
        pes.sent += count;
    }

    /// A table that fits one packet (sections 2.4.4.3 and 2.4.4.8): its id, 1 for all other numbers in it.
    fn put_section(&mut self, pid: u16, counter: usize, table: u8, body: &[u8]) {
        let length = body.len() + 9;
        let mut section = vec![table, 0xb0, length as u8, 0, 1, 0xc1, 0, 0];
        section.extend_from_slice(body);
        section.extend(crc(&section).to_be_bytes());
        let counter = self.count(counter);
        self.put_header(pid, true, 0x10 | counter);
        self.bytes.push(0);
        self.bytes.extend(section);
        self.pad();
    }

    fn put_header(&mut self, pid: u16, starts: bool, control: u8) {
        let [high, low] = pid.to_be_bytes();
        self.bytes.extend([0x47, high | u8::from(starts) << 6, low, control]);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(PACKET), 0xff);
    }

    fn count(&mut self, counter: usize) -> u8 {
        let value = self.counters[counter];
        self.counters[counter] = (value + 1) & 0xf;
        value
    }
}

/// The check of sections, annex A.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    })
}
