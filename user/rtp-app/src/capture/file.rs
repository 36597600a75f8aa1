//! pcap and pcapng files: frames with their time and link type.
//!
//! What lives here: the two file formats, in either byte order, read as a stream. What does not: what
//! is inside a frame ([`super::link`]).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, LegacyPcapBlock, PcapBlockOwned,
    PcapError, SimplePacketBlock, create_reader,
};

use super::link::{ACCEPTED_LINK_TYPES, LinkType};

/// What the reader holds at first, in bytes. It grows for larger blocks.
const BUFFER: usize = 256 * 1024;
/// The largest block that it grows for: a larger one is damage.
const BUFFER_MAX: usize = 64 * 1024 * 1024;

/// Block type of a pcapng section header, the same in both byte orders.
const PCAPNG_MAGIC: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];
/// Bytes of the shortest section header.
const SECTION_HEADER: usize = 28;

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There is nothing in it.
    #[error("an empty file; accepted: pcap, pcapng")]
    Empty,
    /// It is something else.
    #[error("not a capture{hint}; accepted: pcap, pcapng")]
    NotACapture {
        /// What it looks like, with the remedy.
        hint: &'static str,
    },
    /// All of its packets come from a kind of interface that is not known.
    #[error("link type {0} is not known; accepted: {ACCEPTED_LINK_TYPES}")]
    LinkType(u32),
    /// It ends in the middle of a packet or of its own header.
    #[error("the capture ends in the middle of a packet; whole packets before: {frames}")]
    Truncated {
        /// Packets that could be read.
        frames: u64,
    },
    /// Its structure makes no sense from some place on.
    #[error("the capture is damaged; packets before the damage: {frames}")]
    Damaged {
        /// Packets that could be read.
        frames: u64,
    },
}

impl CaptureError {
    /// Whether what was read before this error is good: the rest of the file is missing or damaged.
    pub fn is_partial(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Damaged { .. })
    }
}

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its number in the file, from 1.
    pub number: u64,
    /// When it was captured; `None` where the file does not say.
    pub time_ns: Option<u64>,
    /// What it begins with, or the number of a link type that is not known.
    pub link: Result<LinkType, u32>,
    /// The bytes captured.
    pub data: &'a [u8],
    /// Bytes on the wire.
    pub len: usize,
}

/// How the frames of one interface are to be read.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Result<LinkType, u32>,
    resolution: Resolution,
    /// Seconds to add to every time.
    offset_s: i64,
    /// Longest captured frame; 0: no limit.
    snap_len: usize,
}

/// Units of a capture's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// 10^-n seconds.
    Decimal(u32),
    /// 2^-n seconds.
    Binary(u32),
}

impl Resolution {
    const MICROSECONDS: Self = Self::Decimal(6);
    const NANOSECONDS: Self = Self::Decimal(9);

    /// From pcapng's `if_tsresol`.
    fn from_option(value: u8) -> Self {
        let exponent = u32::from(value & 0x7F);
        if value & 0x80 == 0 { Self::Decimal(exponent) } else { Self::Binary(exponent) }
    }

    /// Nanoseconds in `units`. `None` when there are too many.
    fn to_ns(self, units: u64) -> Option<u64> {
        let units = u128::from(units);
        let ns = match self {
            Self::Decimal(exponent @ 0..=9) => units * 10_u128.pow(9 - exponent),
            Self::Decimal(exponent) => {
                10_u128.checked_pow(exponent - 9).map_or(0, |divisor| units / divisor)
            }
            Self::Binary(exponent) => (units * 1_000_000_000).checked_shr(exponent).unwrap_or(0),
        };
        u64::try_from(ns).ok()
    }
}

impl Interface {
    /// The time that `units` of this interface's clock stand for.
    fn time_ns(&self, units: u64) -> Option<u64> {
        let offset_ns = i128::from(self.offset_s) * 1_000_000_000;
        u64::try_from(i128::from(self.resolution.to_ns(units)?) + offset_ns).ok()
    }
}

/// A frame in the reader's own memory.
#[derive(Clone, Copy, Debug)]
struct Record {
    time_ns: Option<u64>,
    link: Result<LinkType, u32>,
    len: usize,
}

/// A capture file, read from front to end.
pub struct CaptureFile {
    reader: Box<dyn PcapReaderIterator + Send>,
    /// Why reading failed, from inside the reader.
    io_error: Arc<Mutex<Option<io::Error>>>,
    interfaces: Vec<Interface>,
    /// The section's byte order (pcapng).
    big_endian: bool,
    data: Vec<u8>,
    frames: u64,
    /// A link type that is not known, and whether any frame's was.
    unknown_link: Option<u32>,
    known_link: bool,
}

impl CaptureFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// Not there, not readable, not a capture, or a pcap file of a link type that is not known.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
        }
        Self::new(file)
    }

    /// Reads a capture from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(source: impl Read + Send + 'static) -> Result<Self, CaptureError> {
        let io_error = Arc::new(Mutex::new(None));
        let mut source = FillingReader { source, error: Arc::clone(&io_error) };
        let mut start = [0; SECTION_HEADER];
        let len = source.read(&mut start).map_err(|_| take_error(&io_error))?;
        if len == 0 {
            return Err(CaptureError::Empty);
        }
        let is_pcapng = start.starts_with(&PCAPNG_MAGIC);
        if is_pcapng && len < SECTION_HEADER {
            return Err(CaptureError::Truncated { frames: 0 });
        }
        let begin = io::Cursor::new(start).take(len as u64);
        let again = FillingReader { source: begin.chain(source), error: Arc::default() };
        let reader = create_reader(BUFFER, again)
            .map_err(|error| header_error(&error, &start, &io_error))?;
        let mut capture = Self {
            reader,
            io_error,
            interfaces: Vec::new(),
            big_endian: false,
            data: Vec::new(),
            frames: 0,
            unknown_link: None,
            known_link: false,
        };
        if !is_pcapng {
            capture.read_pcap_header()?;
        }
        Ok(capture)
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read further ([`CaptureError::is_partial`] ones leave what came before
    /// good), or all of its frames were of an unknown link type.
    #[allow(clippy::should_implement_trait, reason = "the frame borrows the reader")]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let Some(record) = self.read_record()? else {
            return match self.unknown_link {
                Some(link) if !self.known_link => Err(CaptureError::LinkType(link)),
                _ => Ok(None),
            };
        };
        self.frames += 1;
        match record.link {
            Ok(_) => self.known_link = true,
            Err(link) => self.unknown_link = Some(link),
        }
        Ok(Some(Frame {
            number: self.frames,
            time_ns: record.time_ns,
            link: record.link,
            data: &self.data,
            len: record.len.max(self.data.len()),
        }))
    }

    fn read_pcap_header(&mut self) -> Result<(), CaptureError> {
        let Ok((len, PcapBlockOwned::LegacyHeader(header))) = self.reader.next() else {
            return Err(CaptureError::NotACapture { hint: "" });
        };
        // The upper bits tell the length of the frame check sequence, which link.rs does not need.
        let link = header.network.0 as u32 & 0xFFFF;
        let resolution = if header.is_nanosecond_precision() {
            Resolution::NANOSECONDS
        } else {
            Resolution::MICROSECONDS
        };
        self.reader.consume(len);
        let known = LinkType::from_number(link).ok_or(CaptureError::LinkType(link))?;
        self.interfaces.push(Interface { link: Ok(known), resolution, offset_s: 0, snap_len: 0 });
        Ok(())
    }

    /// Reads blocks until one is a packet, and keeps its bytes in `data`.
    fn read_record(&mut self) -> Result<Option<Record>, CaptureError> {
        loop {
            let step = match self.reader.next() {
                Ok((len, block)) => {
                    let record = match block {
                        PcapBlockOwned::Legacy(packet) => {
                            pcap_record(&packet, &self.interfaces, &mut self.data).map(Some)
                        }
                        PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                            self.big_endian = section.big_endian();
                            self.interfaces.clear();
                            Some(None)
                        }
                        PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                            self.interfaces.push(interface(&description, self.big_endian));
                            Some(None)
                        }
                        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                            enhanced_record(&packet, &self.interfaces, &mut self.data).map(Some)
                        }
                        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                            simple_record(&packet, &self.interfaces, &mut self.data).map(Some)
                        }
                        PcapBlockOwned::NG(_) | PcapBlockOwned::LegacyHeader(_) => Some(None),
                    };
                    Step::Block(len, record)
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => Step::Refill,
                Err(PcapError::BufferTooSmall) => Step::Grow,
                Err(PcapError::UnexpectedEof) => return Err(self.truncated()),
                Err(_) => return Err(self.damaged()),
            };
            match step {
                Step::Block(len, Some(record)) => {
                    self.reader.consume(len);
                    if let Some(record) = record {
                        return Ok(Some(record));
                    }
                }
                Step::Block(_, None) => return Err(self.damaged()),
                Step::Refill => self.refill()?,
                Step::Grow => {
                    // The buffer is at least as large as what is in it and too small for the block.
                    let size = self.reader.data().len().max(BUFFER).saturating_mul(2);
                    if size > BUFFER_MAX {
                        return Err(self.damaged());
                    }
                    self.reader.grow(size);
                    self.refill()?;
                }
            }
        }
    }

    /// Reads more. A block that is incomplete although nothing is left to read for it is damage:
    /// its inner lengths do not fit its own.
    fn refill(&mut self) -> Result<(), CaptureError> {
        let before = self.reader.data().len();
        if self.reader.refill().is_err() {
            return Err(take_error(&self.io_error).into());
        }
        if self.reader.data().len() == before && !self.reader.reader_exhausted() {
            return Err(self.damaged());
        }
        Ok(())
    }

    fn truncated(&self) -> CaptureError {
        CaptureError::Truncated { frames: self.frames }
    }

    fn damaged(&self) -> CaptureError {
        CaptureError::Damaged { frames: self.frames }
    }
}

/// What to do after looking at the next block.
enum Step {
    /// Consume so many bytes; `None`: the block makes no sense, `Some(None)`: it is not a packet.
    Block(usize, Option<Option<Record>>),
    Refill,
    Grow,
}

fn header_error(
    error: &PcapError<&[u8]>,
    start: &[u8],
    io_error: &Mutex<Option<io::Error>>,
) -> CaptureError {
    match error {
        PcapError::ReadError => take_error(io_error).into(),
        PcapError::Incomplete(_) | PcapError::UnexpectedEof => {
            CaptureError::Truncated { frames: 0 }
        }
        _ if start.starts_with(&PCAPNG_MAGIC) => CaptureError::Damaged { frames: 0 },
        _ => CaptureError::NotACapture {
            hint: match start {
                [0x1F, 0x8B, ..] => " (compressed with gzip: uncompress it first)",
                [0x28, 0xB5, 0x2F, 0xFD, ..] => " (compressed with zstd: uncompress it first)",
                [0xFD, b'7', b'z', b'X', ..] => " (compressed with xz: uncompress it first)",
                _ => "",
            },
        },
    }
}

/// A pcap record. `None`: it makes no sense.
fn pcap_record(
    packet: &LegacyPcapBlock<'_>,
    interfaces: &[Interface],
    data: &mut Vec<u8>,
) -> Option<Record> {
    let interface = interfaces.first()?;
    replace(data, packet.data);
    let fraction_ns = interface.resolution.to_ns(packet.ts_usec.into())?;
    let time_ns = u64::from(packet.ts_sec) * 1_000_000_000 + fraction_ns;
    let len = packet.origlen as usize;
    Some(Record { time_ns: Some(time_ns), link: interface.link, len })
}

/// A pcapng Enhanced Packet Block. `None`: of an interface that was not described.
fn enhanced_record(
    packet: &EnhancedPacketBlock<'_>,
    interfaces: &[Interface],
    data: &mut Vec<u8>,
) -> Option<Record> {
    let interface = interfaces.get(packet.if_id as usize)?;
    replace(data, packet.packet_data());
    let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
    let len = packet.origlen as usize;
    Some(Record { time_ns: interface.time_ns(units), link: interface.link, len })
}

/// A pcapng Simple Packet Block: of the first interface, without a time.
fn simple_record(
    packet: &SimplePacketBlock<'_>,
    interfaces: &[Interface],
    data: &mut Vec<u8>,
) -> Option<Record> {
    let interface = interfaces.first()?;
    let captured = packet.packet_data();
    let limit = if interface.snap_len == 0 { captured.len() } else { interface.snap_len };
    replace(data, &captured[..captured.len().min(limit)]);
    Some(Record { time_ns: None, link: interface.link, len: packet.origlen as usize })
}

fn replace(data: &mut Vec<u8>, with: &[u8]) {
    data.clear();
    data.extend_from_slice(with);
}

fn interface(description: &InterfaceDescriptionBlock<'_>, big_endian: bool) -> Interface {
    let link = description.linktype.0 as u32;
    // pcap-parser reads this option as little endian whatever the section's byte order.
    let offset_s = description.if_tsoffset;
    Interface {
        link: LinkType::from_number(link).ok_or(link),
        resolution: Resolution::from_option(description.if_tsresol),
        offset_s: if big_endian { offset_s.swap_bytes() } else { offset_s },
        snap_len: description.snaplen as usize,
    }
}

/// The error that a [`FillingReader`] left behind.
fn take_error(slot: &Mutex<Option<io::Error>>) -> io::Error {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    slot.take().unwrap_or_else(|| io::Error::other("cannot be read"))
}

/// Fills what it is given unless the source ends (pipes give less at a time), and keeps the error,
/// which pcap-parser does not pass on.
struct FillingReader<R> {
    source: R,
    error: Arc<Mutex<Option<io::Error>>>,
}

impl<R: Read> Read for FillingReader<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Err(kind.into());
                }
            }
        }
        Ok(filled)
    }
}
