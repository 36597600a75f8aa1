//! Where the parts of a stream's memory lie: laid out by the owner, checked by everybody else.
//!
//! What lives here: arithmetic on the header. What does not: the memory itself ([`crate::shm`]).

use rtp_mgr_ring::abi::{
    ABI_MAJOR, ABI_MINOR, DESC_STRIDE, ENGINE_USER, Header, LegFigures, MAGIC, PAGE, READERS_MAX,
    RING_ORDER_MAX, RING_ORDER_MIN, ReaderStatus, SEQUENCE_WORDS, SLOT_STRIDE_MAX, SLOT_STRIDE_MIN,
    SOURCES_MAX, SourceFigures, StreamCounters, status,
};
use rtp_mgr_ring::abi::{DIRECTION_RECEIVE, DIRECTION_TRANSMIT};

use crate::stats::Direction;

/// What a stream's memory is to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub direction: Direction,
    /// Bits of [`rtp_mgr_ring::abi::feature`].
    pub features: u64,
    /// Positions, a power of two.
    pub slot_count: u32,
    /// Slots, at least as many.
    pub slot_total: u32,
    pub slot_stride: u32,
    pub legs: u32,
    pub sources: u32,
    pub stream_id: u64,
    pub owner_pid: u32,
    pub owner_uid: u32,
}

const fn block_len(words: usize) -> u32 {
    ((SEQUENCE_WORDS + words) * 8) as u32
}

fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE as u64)
}

impl Shape {
    /// The header of such a stream: status, reader status, a hole where the kernel engine's files
    /// map their control page, descriptors, slots.
    pub(crate) fn header(&self) -> Header {
        let readers = match self.direction {
            Direction::Receive => READERS_MAX as u64,
            Direction::Transmit => 0,
        };
        let sources = u64::from(self.sources) * status::SOURCES_STRIDE as u64;
        let status_len = pages(status::SOURCES as u64 + sources);
        let reader_status_offset = status_len;
        let control_offset = reader_status_offset + readers * PAGE as u64;
        let desc_offset = control_offset + PAGE as u64;
        let desc_len = pages(u64::from(self.slot_count) * DESC_STRIDE as u64);
        let slots_offset = desc_offset + desc_len;
        let slots_len = pages(u64::from(self.slot_total) * u64::from(self.slot_stride));
        Header {
            magic: MAGIC,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            header_len: size_of::<Header>() as u32,
            direction: match self.direction {
                Direction::Receive => DIRECTION_RECEIVE,
                Direction::Transmit => DIRECTION_TRANSMIT,
            },
            total_len: slots_offset + slots_len,
            features: self.features,
            slot_count: self.slot_count,
            slot_total: self.slot_total,
            slot_stride: self.slot_stride,
            desc_stride: DESC_STRIDE as u32,
            status_offset: 0,
            status_len,
            reader_status_offset,
            reader_status_stride: PAGE as u32,
            reader_status_count: readers as u32,
            control_offset,
            control_len: PAGE as u64,
            desc_offset,
            desc_len,
            slots_offset,
            slots_len,
            counters_offset: status::COUNTERS as u32,
            counters_len: block_len(StreamCounters::WORDS),
            legs_offset: status::LEGS as u32,
            legs_stride: status::LEGS_STRIDE as u32,
            legs_count: self.legs,
            sources_stride: status::SOURCES_STRIDE as u32,
            sources_offset: status::SOURCES as u64,
            sources_count: self.sources,
            engine: ENGINE_USER,
            stream_id: self.stream_id,
            owner_pid: self.owner_pid,
            owner_uid: self.owner_uid,
        }
    }
}

/// A private copy of a header that was checked: every part lies within the region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    header: Header,
}

/// A part of the region, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub offset: usize,
    pub len: usize,
}

impl Layout {
    /// Checks a header that was read once against the real size of the region. The text of the
    /// mistake says what to do.
    pub(crate) fn check(header: &Header, region_len: u64) -> Result<Self, String> {
        if header.magic != MAGIC {
            return Err(format!("its memory begins with {:#010x}, not \"RTPM\"", header.magic));
        }
        if header.abi_major != ABI_MAJOR {
            return Err(format!(
                "it has ABI version {}.{}, this program {ABI_MAJOR}.{ABI_MINOR}: use the program \
                 and engine of one release",
                header.abi_major, header.abi_minor
            ));
        }
        Checker { header, region_len }.run().map_err(|what| {
            format!("its header has {what} out of range: the owner's program is damaged or hostile")
        })?;
        Ok(Self { header: *header })
    }

    /// The header.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.header.slot_count as usize
    }

    /// Bytes from the start of the region to the end of the reader status pages: what the figures
    /// need.
    pub(crate) fn figures_len(&self) -> usize {
        let header = &self.header;
        let readers = header.reader_status_count as usize * header.reader_status_stride as usize;
        let end = header.reader_status_offset as usize + readers;
        end.max(header.status_offset as usize + header.status_len as usize)
    }

    /// The status part, and the pages of all readers, of all descriptors and of all slots, as files of
    /// the kernel engine's device map them.
    pub(crate) fn status(&self) -> Part {
        let header = &self.header;
        Part { offset: header.status_offset as usize, len: header.status_len as usize }
    }

    /// See [`status`](Self::status); `None` for a stream without readers.
    pub(crate) fn reader_pages(&self) -> Option<Part> {
        let header = &self.header;
        let len = header.reader_status_count as usize * header.reader_status_stride as usize;
        (len > 0).then(|| Part { offset: header.reader_status_offset as usize, len })
    }

    /// See [`status`](Self::status).
    pub(crate) fn descriptor_pages(&self) -> Part {
        let header = &self.header;
        Part { offset: header.desc_offset as usize, len: header.desc_len as usize }
    }

    /// See [`status`](Self::status).
    pub(crate) fn slot_pages(&self) -> Part {
        let header = &self.header;
        Part { offset: header.slots_offset as usize, len: header.slots_len as usize }
    }

    pub(crate) fn descriptors(&self) -> Part {
        Part { offset: self.header.desc_offset as usize, len: self.slot_count() * DESC_STRIDE }
    }

    /// The slots, whole words of eight bytes.
    pub(crate) fn slots(&self) -> Part {
        Part {
            offset: self.header.slots_offset as usize,
            len: self.header.slots_len as usize / 8 * 8,
        }
    }

    /// A live word of the status part.
    pub(crate) fn status_word(&self, offset: usize) -> usize {
        self.header.status_offset as usize + offset
    }

    pub(crate) fn counters(&self) -> Part {
        let offset = self.status_word(self.header.counters_offset as usize);
        Part { offset, len: self.header.counters_len as usize }
    }

    pub(crate) fn leg(&self, leg: usize) -> Option<Part> {
        let header = &self.header;
        (leg < header.legs_count as usize).then(|| Part {
            offset: self
                .status_word(header.legs_offset as usize + leg * header.legs_stride as usize),
            len: header.legs_stride as usize,
        })
    }

    pub(crate) fn source(&self, source: usize) -> Option<Part> {
        let header = &self.header;
        (source < header.sources_count as usize).then(|| Part {
            offset: self.status_word(
                header.sources_offset as usize + source * header.sources_stride as usize,
            ),
            len: header.sources_stride as usize,
        })
    }

    pub(crate) fn reader_status(&self, reader: usize) -> Option<Part> {
        let header = &self.header;
        (reader < header.reader_status_count as usize).then(|| Part {
            offset: header.reader_status_offset as usize
                + reader * header.reader_status_stride as usize,
            len: header.reader_status_stride as usize,
        })
    }

    /// Whether a packet of `len` bytes in `slot` lies within the slots.
    pub(crate) fn holds(&self, slot: u32, len: u32) -> bool {
        slot < self.header.slot_total && len <= self.header.slot_stride
    }
}

struct Checker<'a> {
    header: &'a Header,
    region_len: u64,
}

impl Checker<'_> {
    fn run(&self) -> Result<(), &'static str> {
        let header = self.header;
        let fail = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let order = header.slot_count.ilog2_or_zero();
        let orders = u32::from(RING_ORDER_MIN)..=u32::from(RING_ORDER_MAX);
        fail(header.header_len as usize >= size_of::<Header>(), "header_len")?;
        fail(header.total_len <= self.region_len, "total_len")?;
        fail(header.slot_count.is_power_of_two() && orders.contains(&order), "slot_count")?;
        fail(header.slot_total >= header.slot_count, "slot_total")?;
        fail((SLOT_STRIDE_MIN..=SLOT_STRIDE_MAX).contains(&header.slot_stride), "slot_stride")?;
        fail(header.desc_stride as usize == DESC_STRIDE, "desc_stride")?;
        fail(header.reader_status_count as usize <= READERS_MAX, "reader_status_count")?;
        fail(header.sources_count <= SOURCES_MAX, "sources_count")?;
        fail(header.legs_count <= 64, "legs_count")?;
        let slots = u64::from(header.slot_total) * u64::from(header.slot_stride);
        let descriptors = u64::from(header.slot_count) * DESC_STRIDE as u64;
        fail(self.part(header.status_offset, header.status_len, status::SOURCES as u64), "status")?;
        fail(self.part(header.desc_offset, header.desc_len, descriptors), "descriptors")?;
        fail(self.part(header.slots_offset, header.slots_len, slots), "slots")?;
        let readers =
            u64::from(header.reader_status_count) * u64::from(header.reader_status_stride);
        fail(self.part(header.reader_status_offset, readers, readers), "reader_status_offset")?;
        fail(header.control_len >= PAGE as u64, "control_len")?;
        self.status_blocks()
    }

    /// Blocks within the status part, and strides that hold them.
    fn status_blocks(&self) -> Result<(), &'static str> {
        let header = self.header;
        let fail = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let block = |len: u32, words| len >= block_len(words) && len.is_multiple_of(8);
        fail(block(header.counters_len, StreamCounters::WORDS), "counters_len")?;
        fail(block(header.legs_stride, LegFigures::WORDS), "legs_stride")?;
        fail(block(header.sources_stride, SourceFigures::WORDS), "sources_stride")?;
        fail(
            header.reader_status_count == 0
                || block(header.reader_status_stride, ReaderStatus::WORDS),
            "reader_status_stride",
        )?;
        let legs = u64::from(header.legs_count) * u64::from(header.legs_stride);
        let sources = u64::from(header.sources_count) * u64::from(header.sources_stride);
        for (offset, len, what) in [
            (header.counters_offset.into(), header.counters_len.into(), "counters_offset"),
            (header.legs_offset.into(), legs, "legs_offset"),
            (header.sources_offset, sources, "sources_offset"),
        ] {
            let end = u64::checked_add(offset, len);
            fail(
                offset.is_multiple_of(8) && end.is_some_and(|end| end <= header.status_len),
                what,
            )?;
        }
        Ok(())
    }

    /// Whether `offset..offset + len` lies page aligned within the region and holds `needed` bytes.
    fn part(&self, offset: u64, len: u64, needed: u64) -> bool {
        let end = offset.checked_add(len);
        offset.is_multiple_of(PAGE as u64)
            && len >= needed
            && end.is_some_and(|end| end <= self.header.total_len)
    }
}

/// The order of a power of two; 0 for 0.
trait Ilog2OrZero {
    fn ilog2_or_zero(self) -> u32;
}

impl Ilog2OrZero for u32 {
    fn ilog2_or_zero(self) -> u32 {
        self.checked_ilog2().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape() -> Shape {
        Shape {
            direction: Direction::Receive,
            features: 0,
            slot_count: 1024,
            slot_total: 2600,
            slot_stride: 2048,
            legs: 2,
            sources: 1024,
            stream_id: 7,
            owner_pid: 1,
            owner_uid: 2,
        }
    }

    #[test]
    fn parts_are_page_aligned_and_do_not_overlap() {
        for (stride, sources) in [(64, 1), (1_328, 1024), (2_048, 65_535), (65_536, 3)] {
            let shape = Shape { slot_stride: stride, sources, ..shape() };
            let header = shape.header();
            let layout = Layout::check(&header, header.total_len).unwrap();
            let readers = layout.reader_status(READERS_MAX - 1).unwrap();
            let parts = [
                Part { offset: 0, len: header.status_len as usize },
                Part {
                    offset: header.reader_status_offset as usize,
                    len: readers.offset + readers.len - header.reader_status_offset as usize,
                },
                Part { offset: header.control_offset as usize, len: PAGE },
                layout.descriptors(),
                layout.slots(),
            ];
            for pair in parts.windows(2) {
                assert!(pair[0].offset + pair[0].len <= pair[1].offset, "{parts:?}");
            }
            assert!(parts.iter().all(|part| part.offset % PAGE == 0), "{parts:?}");
            let slots = layout.slots();
            assert!(slots.len >= 2600 * stride as usize);
            assert_eq!(header.total_len as usize, slots.offset + slots.len);
        }
    }

    #[test]
    fn another_version_is_refused_with_what_to_do() {
        let mut header = shape().header();
        header.abi_major += 1;
        let refused = Layout::check(&header, header.total_len).unwrap_err();
        assert!(
            refused.contains("ABI version 2.0") && refused.contains("one release"),
            "{refused}"
        );
    }

    #[test]
    fn a_later_minor_version_with_longer_blocks_is_accepted() {
        let mut header = shape().header();
        header.abi_minor += 1;
        header.counters_len += 64;
        Layout::check(&header, header.total_len).unwrap();
    }

    #[test]
    fn a_header_that_promises_more_than_the_region_has_is_refused() {
        let header = shape().header();
        assert!(Layout::check(&header, header.total_len - 1).is_err());
    }

    proptest! {
        /// Whatever a header says, a checked layout never leads outside the region.
        #[test]
        fn a_scribbled_header_never_leads_outside(
            changes in proptest::collection::vec((0_usize..size_of::<Header>() / 8, any::<u64>()), 1..4),
        ) {
            let header = shape().header();
            let region = header.total_len;
            let mut words = crate::shm::header_words(&header);
            for (at, value) in changes {
                words[at] = value;
            }
            let header = crate::shm::header_from_words(words);
            let Ok(layout) = Layout::check(&header, region) else { return Ok(()) };
            let mut parts = vec![layout.descriptors(), layout.slots(), layout.counters()];
            parts.extend((0..header.legs_count as usize).filter_map(|leg| layout.leg(leg)));
            parts.extend(layout.source(header.sources_count.saturating_sub(1) as usize));
            parts.extend((0..READERS_MAX).filter_map(|reader| layout.reader_status(reader)));
            parts.push(Part { offset: 0, len: layout.figures_len() });
            for part in parts {
                prop_assert!(part.offset % 8 == 0);
                prop_assert!((part.offset + part.len) as u64 <= region, "{part:?}");
            }
            let last = header.slot_total - 1;
            prop_assert!(layout.holds(last, header.slot_stride));
            let end = (last as usize + 1) * header.slot_stride as usize;
            prop_assert!(layout.slots().offset + end <= region as usize);
        }
    }
}
