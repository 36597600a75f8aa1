//! Where the parts of a stream's memory lie: laid out by the engine, checked by everybody else.
//!
//! What lives here: arithmetic on the [`Header`], the same for the kernel module and the embedded
//! engine. What does not: the memory itself, and which part who may map (its owner knows).

use super::abi::{
    status, Header, LegFigures, ReaderStatus, SourceFigures, StreamCounters, ABI_MAJOR, ABI_MINOR,
    DESC_STRIDE, DIRECTION_TRANSMIT, LEGS_MAX, MAGIC, PAGE, READERS_MAX, RING_ORDER_MAX,
    RING_ORDER_MIN, SEQUENCE_WORDS, SLOT_STRIDE_MAX, SLOT_STRIDE_MIN, SOURCES_MAX,
};

/// Legs whose figures a header may promise: room for later minor versions.
const LEGS_CHECKED: u32 = 64;

const _: () = assert!(LEGS_MAX as u32 <= LEGS_CHECKED);

/// What a stream's memory is to hold. Its numbers were checked by whoever took them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// [`DIRECTION_RECEIVE`](super::abi::DIRECTION_RECEIVE) or [`DIRECTION_TRANSMIT`].
    pub direction: u32,
    /// [`ENGINE_USER`](super::abi::ENGINE_USER) or [`ENGINE_KERNEL`](super::abi::ENGINE_KERNEL).
    pub engine: u32,
    /// Bits of [`feature`](super::abi::feature).
    pub features: u64,
    /// Positions, a power of two.
    pub slot_count: u32,
    /// Slots, at least as many.
    pub slot_total: u32,
    /// Bytes of a slot.
    pub slot_stride: u32,
    /// Legs with figures, at most [`LEGS_MAX`].
    pub legs: u32,
    /// Entries of the source table.
    pub sources: u32,
    /// Number of the stream.
    pub stream_id: u64,
    /// Process that owns the stream.
    pub owner_pid: u32,
    /// User that owns the stream.
    pub owner_uid: u32,
}

impl Shape {
    /// The header of such a stream: status, reader status (receive only), the page at which each
    /// file maps its own control page, descriptors, slots. Within the limits of the ABI nothing
    /// saturates.
    pub const fn header(&self) -> Header {
        let page = PAGE as u64;
        let readers = if self.direction == DIRECTION_TRANSMIT { 0 } else { READERS_MAX as u32 };
        let sources = (self.sources as u64).saturating_mul(status::SOURCES_STRIDE as u64);
        let status_len = pages((status::SOURCES as u64).saturating_add(sources));
        let control_offset = status_len.saturating_add((readers as u64).saturating_mul(page));
        let desc_offset = control_offset.saturating_add(page);
        let desc_len = pages((self.slot_count as u64).saturating_mul(DESC_STRIDE as u64));
        let slots_offset = desc_offset.saturating_add(desc_len);
        let slots_len = pages((self.slot_total as u64).saturating_mul(self.slot_stride as u64));
        Header {
            magic: MAGIC,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            header_len: size_of::<Header>() as u32,
            direction: self.direction,
            total_len: slots_offset.saturating_add(slots_len),
            features: self.features,
            slot_count: self.slot_count,
            slot_total: self.slot_total,
            slot_stride: self.slot_stride,
            desc_stride: DESC_STRIDE as u32,
            status_offset: 0,
            status_len,
            reader_status_offset: status_len,
            reader_status_stride: PAGE as u32,
            reader_status_count: readers,
            control_offset,
            control_len: page,
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
            engine: self.engine,
            stream_id: self.stream_id,
            owner_pid: self.owner_pid,
            owner_uid: self.owner_uid,
        }
    }
}

/// Bytes of a block of `words`, its sequence count included.
const fn block_len(words: usize) -> u32 {
    SEQUENCE_WORDS.saturating_add(words).saturating_mul(8) as u32
}

/// `bytes` in whole pages, as bytes.
const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE as u64).saturating_mul(PAGE as u64)
}

/// Control pages of a stream of this header: one for each reader, or the writer's.
pub const fn control_pages(header: &Header) -> usize {
    if header.direction == DIRECTION_TRANSMIT {
        1
    } else {
        header.reader_status_count as usize
    }
}

/// Bytes of memory that a stream of this header takes: its region, less the page at which control
/// pages are mapped, plus the control pages.
pub const fn memory_len(header: &Header) -> u64 {
    let controls = (control_pages(header) as u64).saturating_mul(PAGE as u64);
    header.total_len.saturating_sub(PAGE as u64).saturating_add(controls)
}

/// Why a header is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It begins with this, not with [`MAGIC`].
    Magic(u32),
    /// It is of another major version.
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// This field, or the part it describes, is out of range or leads outside of the region.
    Field(&'static str),
}

/// A part of the region, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From the start of the region.
    pub offset: usize,
    /// Its length.
    pub len: usize,
}

/// A private copy of a header that was checked: every part lies within the region, so nothing
/// saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    header: Header,
}

impl Layout {
    /// Checks a header that was read once against the real length of the region in bytes.
    ///
    /// # Errors
    /// What is wrong with it, the first thing found.
    pub fn check(header: &Header, region_len: u64) -> Result<Self, Refused> {
        if header.magic != MAGIC {
            return Err(Refused::Magic(header.magic));
        }
        if header.abi_major != ABI_MAJOR {
            return Err(Refused::Version { major: header.abi_major, minor: header.abi_minor });
        }
        Checker { header, region_len }.run().map_err(Refused::Field)?;
        Ok(Self { header: *header })
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Positions of the ring.
    pub const fn slot_count(&self) -> usize {
        self.header.slot_count as usize
    }

    /// Bytes from the start of the region to the end of the reader status pages: what the figures
    /// need.
    pub fn figures_len(&self) -> usize {
        let header = &self.header;
        let readers = strided(
            header.reader_status_offset as usize,
            header.reader_status_stride,
            header.reader_status_count as usize,
        );
        let status = (header.status_offset as usize).saturating_add(header.status_len as usize);
        readers.offset.max(status)
    }

    /// The status part. This, the pages of all readers, of all descriptors and of all slots are what
    /// files of the kernel engine's device map.
    pub const fn status(&self) -> Part {
        let header = &self.header;
        Part { offset: header.status_offset as usize, len: header.status_len as usize }
    }

    /// The status pages of all readers; `None` for a stream that has none.
    pub fn reader_pages(&self) -> Option<Part> {
        let header = &self.header;
        let len = (header.reader_status_count as usize)
            .saturating_mul(header.reader_status_stride as usize);
        (len > 0).then_some(Part { offset: header.reader_status_offset as usize, len })
    }

    /// The descriptors, in whole pages.
    pub const fn descriptor_pages(&self) -> Part {
        let header = &self.header;
        Part { offset: header.desc_offset as usize, len: header.desc_len as usize }
    }

    /// The slots, in whole pages.
    pub const fn slot_pages(&self) -> Part {
        let header = &self.header;
        Part { offset: header.slots_offset as usize, len: header.slots_len as usize }
    }

    /// The descriptors.
    pub const fn descriptors(&self) -> Part {
        Part {
            offset: self.header.desc_offset as usize,
            len: self.slot_count().saturating_mul(DESC_STRIDE),
        }
    }

    /// The slots, whole words of eight bytes.
    pub const fn slots(&self) -> Part {
        let len = self.header.slots_len as usize;
        Part { offset: self.header.slots_offset as usize, len: len & !7 }
    }

    /// Offset in the region of a live word of the status part ([`status`]).
    pub const fn status_word(&self, offset: usize) -> usize {
        (self.header.status_offset as usize).saturating_add(offset)
    }

    /// The stream's counters.
    pub const fn counters(&self) -> Part {
        let offset = self.status_word(self.header.counters_offset as usize);
        Part { offset, len: self.header.counters_len as usize }
    }

    /// The figures of `leg`, if the stream has that one.
    pub fn leg(&self, leg: usize) -> Option<Part> {
        let header = &self.header;
        let first = self.status_word(header.legs_offset as usize);
        (leg < header.legs_count as usize).then(|| strided(first, header.legs_stride, leg))
    }

    /// The figures of the source at `index`, if the table has that entry.
    pub fn source(&self, index: usize) -> Option<Part> {
        let header = &self.header;
        let first = self.status_word(header.sources_offset as usize);
        (index < header.sources_count as usize)
            .then(|| strided(first, header.sources_stride, index))
    }

    /// What `reader` is told, if there is such a reader.
    pub fn reader_status(&self, reader: usize) -> Option<Part> {
        let header = &self.header;
        let first = header.reader_status_offset as usize;
        (reader < header.reader_status_count as usize)
            .then(|| strided(first, header.reader_status_stride, reader))
    }

    /// Whether a packet of `len` bytes in `slot` lies within the slots.
    pub const fn holds(&self, slot: u32, len: u32) -> bool {
        slot < self.header.slot_total && len <= self.header.slot_stride
    }
}

/// The one at `index` of equal parts of `stride` bytes that begin at `first`.
const fn strided(first: usize, stride: u32, index: usize) -> Part {
    let len = stride as usize;
    Part { offset: first.saturating_add(index.saturating_mul(len)), len }
}

const fn is_multiple(value: u64, of: usize) -> bool {
    matches!(value.checked_rem(of as u64), Some(0))
}

const fn require(ok: bool, what: &'static str) -> Result<(), &'static str> {
    if ok {
        Ok(())
    } else {
        Err(what)
    }
}

struct Checker<'a> {
    header: &'a Header,
    region_len: u64,
}

impl Checker<'_> {
    fn run(&self) -> Result<(), &'static str> {
        let header = self.header;
        let order = header.slot_count.checked_ilog2().unwrap_or(0);
        let orders = u32::from(RING_ORDER_MIN)..=u32::from(RING_ORDER_MAX);
        require(header.header_len as usize >= size_of::<Header>(), "header_len")?;
        require(header.total_len <= self.region_len, "total_len")?;
        require(header.slot_count.is_power_of_two() && orders.contains(&order), "slot_count")?;
        require(header.slot_total >= header.slot_count, "slot_total")?;
        require((SLOT_STRIDE_MIN..=SLOT_STRIDE_MAX).contains(&header.slot_stride), "slot_stride")?;
        require(header.desc_stride as usize == DESC_STRIDE, "desc_stride")?;
        require(header.reader_status_count as usize <= READERS_MAX, "reader_status_count")?;
        require(header.sources_count <= SOURCES_MAX, "sources_count")?;
        require(header.legs_count <= LEGS_CHECKED, "legs_count")?;
        self.parts()?;
        self.status_blocks()
    }

    /// Parts within the region, long enough for what they hold.
    fn parts(&self) -> Result<(), &'static str> {
        let header = self.header;
        let product = |count: u32, stride: u32| u64::from(count).saturating_mul(stride.into());
        let descriptors = product(header.slot_count, DESC_STRIDE as u32);
        let slots = product(header.slot_total, header.slot_stride);
        let readers = product(header.reader_status_count, header.reader_status_stride);
        let least = status::SOURCES as u64;
        require(self.part(header.status_offset, header.status_len, least), "status")?;
        require(self.part(header.control_offset, header.control_len, PAGE as u64), "control")?;
        require(self.part(header.desc_offset, header.desc_len, descriptors), "descriptors")?;
        require(self.part(header.slots_offset, header.slots_len, slots), "slots")?;
        require(self.part(header.reader_status_offset, readers, readers), "reader_status_offset")
    }

    /// Blocks within the status part, and strides that hold them.
    fn status_blocks(&self) -> Result<(), &'static str> {
        let header = self.header;
        let block = |len: u32, words| len >= block_len(words) && is_multiple(len.into(), 8);
        let readers = header.reader_status_count == 0
            || block(header.reader_status_stride, ReaderStatus::WORDS);
        require(block(header.counters_len, StreamCounters::WORDS), "counters_len")?;
        require(block(header.legs_stride, LegFigures::WORDS), "legs_stride")?;
        require(block(header.sources_stride, SourceFigures::WORDS), "sources_stride")?;
        require(readers, "reader_status_stride")?;
        let legs = u64::from(header.legs_count).saturating_mul(header.legs_stride.into());
        let sources = u64::from(header.sources_count).saturating_mul(header.sources_stride.into());
        for (offset, len, what) in [
            (header.counters_offset.into(), header.counters_len.into(), "counters_offset"),
            (header.legs_offset.into(), legs, "legs_offset"),
            (header.sources_offset, sources, "sources_offset"),
        ] {
            let end = u64::checked_add(offset, len);
            let inside = end.is_some_and(|end| end <= header.status_len);
            require(is_multiple(offset, 8) && inside, what)?;
        }
        Ok(())
    }

    /// Whether `offset..offset + len` lies page aligned within the region and holds `needed` bytes.
    fn part(&self, offset: u64, len: u64, needed: u64) -> bool {
        let end = offset.checked_add(len);
        is_multiple(offset, PAGE)
            && len >= needed
            && end.is_some_and(|end| end <= self.header.total_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{DIRECTION_RECEIVE, ENGINE_KERNEL, ENGINE_USER};
    use proptest::prelude::*;

    fn shape() -> Shape {
        Shape {
            direction: DIRECTION_RECEIVE,
            engine: ENGINE_USER,
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

    fn transmit() -> Shape {
        Shape { direction: DIRECTION_TRANSMIT, slot_total: 1024, sources: 0, ..shape() }
    }

    fn layout(header: &Header) -> Layout {
        Layout::check(header, header.total_len).unwrap()
    }

    /// (offset, length) of status, reader status, control, descriptors, slots.
    fn parts(header: &Header) -> [(u64, u64); 5] {
        let readers = header.reader_status_count * header.reader_status_stride;
        [
            (header.status_offset, header.status_len),
            (header.reader_status_offset, readers.into()),
            (header.control_offset, header.control_len),
            (header.desc_offset, header.desc_len),
            (header.slots_offset, header.slots_len),
        ]
    }

    #[test]
    fn a_receive_region_is_pages_of_status_readers_control_descriptors_and_slots() {
        // 4 KiB and 1,024 sources of 256 bytes; 16 readers; 1,024 descriptors of 64 bytes; the slots.
        let pages = [65, 16, 1, 16, 1300];
        let mut offset = 0;
        for (part, pages) in parts(&shape().header()).into_iter().zip(pages) {
            assert_eq!(part, (offset * 4096, pages * 4096));
            offset += pages;
        }
        assert_eq!(shape().header().total_len, offset * 4096);
    }

    #[test]
    fn a_transmit_region_has_no_reader_status_and_one_control_page() {
        let header = transmit().header();
        assert_eq!(parts(&header).map(|(_, len)| len / 4096), [1, 0, 1, 16, 512]);
        assert_eq!(header.direction, DIRECTION_TRANSMIT);
        assert_eq!(layout(&header).reader_status(0), None);
        assert_eq!(layout(&header).source(0), None);
        assert_eq!(control_pages(&header), 1);
        assert_eq!(memory_len(&header), header.total_len);
    }

    #[test]
    fn every_reader_has_a_control_page_and_none_lies_in_the_region() {
        let header = shape().header();
        assert_eq!(control_pages(&header), READERS_MAX);
        assert_eq!(memory_len(&header), header.total_len + 15 * 4096);
    }

    #[test]
    fn the_header_says_whose_stream_it_is() {
        let header = Shape { engine: ENGINE_KERNEL, features: 5, ..shape() }.header();
        assert_eq!((header.magic, header.abi_major, header.abi_minor), (MAGIC, 1, 0));
        assert_eq!((header.engine, header.features, header.stream_id), (ENGINE_KERNEL, 5, 7));
        assert_eq!((header.owner_pid, header.owner_uid, header.legs_count), (1, 2, 2));
    }

    #[test]
    fn another_version_is_refused() {
        let header = Header { abi_major: 2, abi_minor: 3, ..shape().header() };
        let refused = Layout::check(&header, header.total_len);
        assert_eq!(refused, Err(Refused::Version { major: 2, minor: 3 }));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(Layout::check(&Header::default(), u64::MAX), Err(Refused::Magic(0)));
    }

    #[test]
    fn a_later_minor_version_with_longer_blocks_is_accepted() {
        let mut header = shape().header();
        header.abi_minor += 1;
        header.counters_len += 64;
        assert_eq!(layout(&header).counters().len, header.counters_len as usize);
    }

    #[test]
    fn a_header_that_promises_more_than_the_region_has_is_refused() {
        let header = shape().header();
        let refused = Layout::check(&header, header.total_len - 1);
        assert_eq!(refused, Err(Refused::Field("total_len")));
    }

    #[test]
    fn strides_that_would_overlap_or_tear_are_refused() {
        let header = shape().header();
        for (header, field) in [
            (Header { desc_stride: 32, ..header }, "desc_stride"),
            (Header { legs_stride: 8, ..header }, "legs_stride"),
            (Header { sources_stride: 255, ..header }, "sources_stride"),
            (Header { reader_status_stride: 8, ..header }, "reader_status_stride"),
            (Header { slot_count: 1000, ..header }, "slot_count"),
            (Header { slot_total: 1023, ..header }, "slot_total"),
            (Header { control_len: 0, ..header }, "control"),
            (Header { desc_offset: header.desc_offset + 8, ..header }, "descriptors"),
        ] {
            assert_eq!(Layout::check(&header, header.total_len), Err(Refused::Field(field)));
        }
    }

    /// Writes one field of a header.
    type Scribble = fn(&mut Header, u64);

    /// Every field that leads somewhere.
    const SCRIBBLES: [Scribble; 26] = {
        macro_rules! fields {
            ($($field:ident)*) => { [$(|header, value| header.$field = value as _),*] };
        }
        fields!(header_len direction total_len slot_count slot_total slot_stride desc_stride
            status_offset status_len reader_status_offset reader_status_stride reader_status_count
            control_offset control_len desc_offset desc_len slots_offset slots_len counters_offset
            counters_len legs_offset legs_stride legs_count sources_stride sources_offset
            sources_count)
    };

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), 0_u64..1 << 24, (0_u64..1 << 12).prop_map(|page| page << 12)]
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let slots =
            (RING_ORDER_MIN..=RING_ORDER_MAX, 0_u32..5000, SLOT_STRIDE_MIN..=SLOT_STRIDE_MAX);
        (any::<bool>(), slots, 1_u32..=LEGS_MAX as u32, 0..=SOURCES_MAX).prop_map(
            |(sends, (order, spare, slot_stride), legs, sources)| Shape {
                direction: if sends { DIRECTION_TRANSMIT } else { DIRECTION_RECEIVE },
                slot_count: 1 << order,
                slot_total: (1 << order) + spare,
                slot_stride,
                legs,
                sources,
                ..shape()
            },
        )
    }

    proptest! {
        /// Parts follow each other without a hole, page aligned, and pass the check.
        #[test]
        fn every_shape_within_the_limits_makes_a_header_that_passes(shape in shapes()) {
            let header = shape.header();
            let mut end = 0;
            for (offset, len) in parts(&header) {
                prop_assert_eq!((offset, len % 4096), (end, 0));
                end += len;
            }
            prop_assert_eq!(header.total_len, end);
            prop_assert!(header.slots_len >= u64::from(shape.slot_total) * u64::from(shape.slot_stride));
            prop_assert!(Layout::check(&header, header.total_len).is_ok());
        }

        /// Whatever a header says, a checked layout never leads outside the region.
        #[test]
        fn a_scribbled_header_never_leads_outside(
            changes in proptest::collection::vec((0..SCRIBBLES.len(), value()), 1..4),
        ) {
            let mut header = shape().header();
            let region = header.total_len;
            for (at, value) in changes {
                SCRIBBLES[at](&mut header, value);
            }
            let Ok(layout) = Layout::check(&header, region) else { return Ok(()) };
            let mut parts = vec![layout.descriptors(), layout.slots(), layout.counters()];
            parts.extend((0..header.legs_count as usize).filter_map(|leg| layout.leg(leg)));
            parts.extend(layout.source(header.sources_count.saturating_sub(1) as usize));
            parts.extend((0..READERS_MAX).filter_map(|reader| layout.reader_status(reader)));
            parts.push(Part { offset: 0, len: layout.figures_len() });
            parts.push(Part { offset: header.control_offset as usize, len: PAGE });
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
