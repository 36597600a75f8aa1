// SPDX-License-Identifier: MIT OR GPL-2.0

//! The pages that a stream shares with user space: allocating, viewing and mapping them.
//!
//! # Ownership
//!
//! Of a receive stream the kernel writes everything except control pages, and reads of user-written memory
//! only the words of control pages, each once ([`Memory::control`]). Of a transmit stream the writer
//! also writes descriptors, read once each ([`Memory::ring`]), and slots, whose bytes only go to the
//! network ([`Memory::slots_bytes`]). A page lives until the stream's memory is dropped
//! *and* the last mapping of it is gone (each mapping holds a reference to the page); a mapping also keeps
//! its file, and so the stream, alive.

use core::ptr::NonNull;

use kernel::alloc::allocator::Vmalloc;
use kernel::alloc::flags::{__GFP_NOWARN, __GFP_ZERO, GFP_KERNEL_ACCOUNT};
use kernel::alloc::Vec;
use kernel::bindings;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;

use crate::allocator;
use crate::compat::MAYSHARE;
use crate::ring::abi::{
    self, control, status, Header, LegFigures, ReaderStatus, SourceFigures, StreamCounters,
    LEGS_MAX, PAGE,
};
use crate::ring::atomic::Word;
use crate::ring::figures::FigureBlocks;
use crate::ring::layout;
use crate::ring::view::{Block, ControlView, DescriptorWords, RingView};

mod shim {
    use kernel::ffi::{c_int, c_void};

    // The compiler cannot see through a page.
    extern "C" {
        pub(super) fn rtp_mgr_page_holders(page: *const c_void) -> c_int;
    }
}

const WORDS: usize = PAGE / 8;

/// One page of words.
#[repr(C, align(4096))]
struct Page([Word; WORDS]);

const _: () = assert!(size_of::<Page>() == PAGE && PAGE == kernel::page::PAGE_SIZE);
const _: () = assert!(Block::len_words(LegFigures::WORDS) <= status::LEGS_STRIDE / 8);
const _: () = assert!(Block::len_words(SourceFigures::WORDS) <= status::SOURCES_STRIDE / 8);

/// Pages that are zero at first, charged to the memory cgroup of whoever asks for them.
pub(crate) struct Pages(Vec<Page, allocator::Pages>);

impl Pages {
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut pages = Vec::with_capacity(count, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN)?;
        // SAFETY: There is room for `count` pages, and zero is a valid value of every word.
        unsafe { pages.inc_len(count) };
        Ok(Self(pages))
    }

    fn words(&self, offset: usize, count: usize) -> &[Word] {
        let all = self.0.len().wrapping_mul(WORDS);
        let first = offset / 8;
        match first.checked_add(count) {
            // SAFETY: The pages are contiguous, so `all` words begin at their start, and these are
            // among them. A word may be written by anyone at any time: it is an atomic.
            Some(end) if end <= all => unsafe {
                core::slice::from_raw_parts(self.0.as_ptr().cast::<Word>().add(first), count)
            },
            _ => &[],
        }
    }

    /// `count` blocks of `WORDS` words each; none if there are not as many.
    fn blocks<const WORDS: usize>(&self, offset: usize, count: usize) -> &[[Word; WORDS]] {
        let words = self.words(offset, count.saturating_mul(WORDS));
        // SAFETY: As many words as they are together, or none.
        unsafe {
            core::slice::from_raw_parts(words.as_ptr().cast(), words.len().checked_div(WORDS).unwrap_or(0))
        }
    }

    /// How many have the page at `index`, this among them; 0: there is no such page.
    fn holders(&self, index: usize) -> usize {
        // SAFETY: `self` keeps the page.
        self.known(index).map_or(0, |page| unsafe { holders(page) })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }

    /// The page at `index` as the memory management knows it, for as long as `self` lives.
    pub(crate) fn known(&self, index: usize) -> Option<*mut bindings::page> {
        let page = self.0.get(index)?;
        // SAFETY: A page of a vmalloc allocation (`allocator::Pages` makes such).
        Some(unsafe { bindings::vmalloc_to_page(core::ptr::from_ref(page).cast()) })
    }

    /// The page at `index` as the memory management knows it, put into `area` at `address`.
    fn insert(&self, index: usize, area: &VmaNew, address: usize) -> Result {
        let page = self.0.get(index).ok_or(EINVAL)?;
        // SAFETY: It points to a page of a vmalloc allocation (`allocator::Pages` makes such), which lives as long as `self`.
        let page = unsafe { Vmalloc::to_page(NonNull::from(page).cast()) };
        area.set_mixedmap().vm_insert_page(address, &page)
    }
}

/// How many have a page.
///
/// # Safety
///
/// The caller is one of them.
pub(crate) unsafe fn holders(page: *const bindings::page) -> usize {
    // SAFETY: As this function's own requirement.
    usize::try_from(unsafe { shim::rtp_mgr_page_holders(page.cast()) }).unwrap_or(0)
}

/// A part of a page: the page, an offset in it and a length in bytes.
pub(crate) struct Piece {
    pub(crate) page: *mut bindings::page,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// The pages of a stream's slots, as the memory management knows them: to look for each would take as long as to
/// copy a packet.
pub(crate) struct SlotPages(KVVec<*mut bindings::page>);

// SAFETY: Pointers to pages, which belong to no thread.
unsafe impl Send for SlotPages {}

impl SlotPages {
    /// The bytes from `from` to `to`, counted from the first slot's first, by pages.
    pub(crate) fn pieces(&self, from: usize, to: usize) -> impl Iterator<Item = Piece> + '_ {
        let pages = self.0.get(from / PAGE..).unwrap_or_default().iter();
        let mut next = from;
        pages.map_while(move |page| {
            let offset = next % PAGE;
            let len = to.saturating_sub(next).min(PAGE.saturating_sub(offset));
            next = next.saturating_add(len);
            (len > 0).then_some(Piece { page: *page, offset: offset as u32, len: len as u32 })
        })
    }
}

/// `len` bytes from `start` on, by pages.
///
/// # Safety
///
/// They are in a vmalloc allocation that lives longer than the iterator.
unsafe fn pieces(start: Option<NonNull<u8>>, len: u32) -> impl Iterator<Item = Piece> {
    let (mut next, mut left) = (start, len);
    core::iter::from_fn(move || {
        let at = next.filter(|_| left > 0)?.as_ptr();
        let offset = (at.addr() % PAGE) as u32;
        let len = left.min((PAGE as u32).saturating_sub(offset));
        left = left.saturating_sub(len);
        next = NonNull::new(at.wrapping_add(len as usize));
        // SAFETY: As this function's own requirement.
        let page = unsafe { bindings::vmalloc_to_page(at.cast_const().cast()) };
        Some(Piece { page, offset, len })
    })
}

/// A copy of a packet.
pub(crate) struct SlotCopy {
    pages: Pages,
    len: u32,
}

impl SlotCopy {
    /// Its bytes by pages.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> {
        // SAFETY: Bytes of a vmalloc allocation.
        unsafe { pieces(Some(self.pages.start()), self.len) }
    }
}

/// What a stream's memory is to hold.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// One of the `DIRECTION_` values.
    pub(crate) direction: u32,
    pub(crate) features: u64,
    pub(crate) slot_count: u32,
    pub(crate) slot_total: u32,
    pub(crate) slot_stride: u32,
    pub(crate) legs: u32,
    pub(crate) sources: u32,
    pub(crate) stream_id: u64,
    pub(crate) owner_pid: u32,
    pub(crate) owner_uid: u32,
}

impl Shape {
    /// The header of such a stream.
    pub(crate) fn header(&self) -> Header {
        let shape = layout::Shape {
            direction: self.direction,
            engine: abi::ENGINE_KERNEL,
            features: self.features,
            slot_count: self.slot_count,
            slot_total: self.slot_total,
            slot_stride: self.slot_stride,
            legs: self.legs,
            sources: self.sources,
            stream_id: self.stream_id,
            owner_pid: self.owner_pid,
            owner_uid: self.owner_uid,
        };
        shape.header()
    }
}

/// Bytes that a stream of this header takes.
pub(crate) fn bytes(header: &Header) -> u64 {
    layout::memory_len(header)
}

/// The memory of one stream.
pub(crate) struct Memory {
    header: Header,
    /// The region. The page at `control_offset` is never mapped.
    region: Pages,
    /// A control page per reader, or the writer's.
    controls: Pages,
    places: Places,
}

/// Where in the region what every packet needs is, found once.
struct Places {
    claim: NonNull<Word>,
    head: NonNull<Word>,
    descriptors: NonNull<[DescriptorWords]>,
    counters: NonNull<[Word]>,
    legs: NonNull<[[Word; status::LEGS_STRIDE / 8]]>,
    sources: NonNull<[[Word; status::SOURCES_STRIDE / 8]]>,
    controls: NonNull<[Page]>,
    state: NonNull<Word>,
    slots: NonNull<u8>,
}

// SAFETY: They point to atomics of pages that move and go with `Memory`, whose part this is.
unsafe impl Send for Places {}
// SAFETY: As above.
unsafe impl Sync for Places {}

impl Places {
    fn new(header: &Header, region: &Pages, controls: &Pages) -> Self {
        let word = |offset: usize| NonNull::from(region.words(offset, 1).first().unwrap_or(&NOWHERE));
        let count = header.slot_count as usize;
        let words =
            region.words(header.desc_offset as usize, count.saturating_mul(abi::DESC_WORDS));
        // SAFETY: The words are `count` times `DESC_WORDS`, and a descriptor is an array of those.
        let descriptors = unsafe {
            core::slice::from_raw_parts(
                words.as_ptr().cast::<DescriptorWords>(),
                words.len() / abi::DESC_WORDS,
            )
        };
        Self {
            claim: word(status::CLAIM),
            head: word(status::HEAD),
            state: word(status::STATE),
            descriptors: NonNull::from(descriptors),
            counters: NonNull::from(
                region.words(status::COUNTERS, Block::len_words(StreamCounters::WORDS)),
            ),
            legs: NonNull::from(region.blocks(status::LEGS, LEGS_MAX)),
            sources: NonNull::from(region.blocks(status::SOURCES, header.sources_count as usize)),
            controls: NonNull::from(&*controls.0),
            // SAFETY: The slots part is in the region.
            slots: unsafe { region.start().add(header.slots_offset as usize) },
        }
    }
}

/// Whose file maps. A reader has its own control page and sees its own status page; the owner, and
/// whoever reads nothing, sees those of all readers. The owner of a transmit stream is its writer, whose
/// control page is that of the first reader; nobody else sees what it writes.
#[derive(Clone, Copy)]
pub(crate) struct Viewer {
    pub(crate) reader: Option<usize>,
    pub(crate) owner: bool,
}

/// A part of the region, as one file may map it.
struct Part {
    offset: u64,
    len: u64,
    writable: bool,
}

impl Memory {
    /// The memory of a stream whose first position is `start`.
    pub(crate) fn new(header: Header, start: u64) -> Result<Self> {
        let count = usize::try_from(header.total_len)? / PAGE;
        let controls = Pages::new(layout::control_pages(&header))?;
        let region = Pages::new(count)?;
        let places = Places::new(&header, &region, &controls);
        let memory = Self { header, region, controls, places };
        memory.write_header();
        memory.live(status::CLAIM).store(start);
        memory.live(status::HEAD).store(start);
        Ok(memory)
    }

    fn write_header(&self) {
        // SAFETY: `Header` consists of integers without padding (its size is the sum of its fields,
        // asserted in the ABI to be a multiple of eight).
        let words = unsafe {
            core::slice::from_raw_parts(
                core::ptr::from_ref(&self.header).cast::<u64>(),
                size_of::<Header>() / 8,
            )
        };
        for (to, from) in self.region.words(0, words.len()).iter().zip(words) {
            to.store(*from);
        }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    fn word(&self, offset: usize) -> &Word {
        match self.region.words(offset, 1) {
            [word] => word,
            // No stream has less than its status part.
            _ => &NOWHERE,
        }
    }

    /// Claim, head and descriptors.
    #[inline]
    pub(crate) fn ring(&self) -> RingView<'_> {
        let Places { claim, head, descriptors, .. } = &self.places;
        // SAFETY: They are in the region, which lives as long as `self` and is not moved.
        unsafe {
            RingView { claim: claim.as_ref(), head: head.as_ref(), descriptors: descriptors.as_ref() }
        }
    }

    /// The live word that says whether the stream runs.
    #[inline]
    pub(crate) fn state(&self) -> &Word {
        // SAFETY: It is in the region, which lives as long as `self` and is not moved.
        unsafe { self.places.state.as_ref() }
    }

    /// One of the live words of the status part.
    pub(crate) fn live(&self, offset: usize) -> &Word {
        self.word(offset)
    }

    /// One of the stream's counters as it was last published: the one `offset` bytes into
    /// [`StreamCounters`].
    pub(crate) fn counter(&self, offset: usize) -> u64 {
        let first = status::COUNTERS.saturating_add(Block::len_words(0).saturating_mul(8));
        self.word(first.saturating_add(offset)).load()
    }

    /// What one reader is told.
    pub(crate) fn reader_status(&self, reader: usize) -> Block<'_> {
        let offset =
            (self.header.reader_status_offset as usize).saturating_add(reader.saturating_mul(PAGE));
        Block { words: self.region.words(offset, Block::len_words(ReaderStatus::WORDS)) }
    }

    /// The control page of one reader, or of the writer, which is the first. What it says is whatever its user wrote.
    #[inline]
    pub(crate) fn control(&self, reader: usize) -> ControlView<'_> {
        // SAFETY: They are pages of `controls`, which lives as long as `self` and is not moved.
        let pages = unsafe { self.places.controls.as_ref() };
        match pages.get(reader) {
            Some(Page(words)) => ControlView {
                position: &words[control::TAIL / 8],
                wake_at: &words[control::WAKE_AT / 8],
            },
            None => ControlView { position: &NOWHERE, wake_at: &NOWHERE },
        }
    }

    /// Whether nobody but the stream has the control page of `reader`, whose file is closed or was never
    /// there: not so while a pipe, or whatever else pinned the page while it was mapped, still
    /// has it. Nobody gets it who does not have it already.
    pub(crate) fn is_free(&self, reader: usize) -> bool {
        self.controls.holders(reader) == 1
    }

    /// The bytes of `slot`, for its one producer to write.
    ///
    /// # Safety
    ///
    /// Nobody else in the kernel has the bytes of this slot while the slice lives: the slot was taken
    /// from the free ones and not given back. (A user who reads them meanwhile reads what it reads.)
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub(crate) unsafe fn slot(&self, slot: u32) -> &mut [u8] {
        if slot >= self.header.slot_total {
            return &mut [];
        }
        let stride = self.header.slot_stride as usize;
        let start = (slot as usize).wrapping_mul(stride);
        // SAFETY: The slot is one of those that the slots part was made for, so all of it is there, in the
        // region; the caller has it for itself. Pages hold words, which may be written through a shared
        // reference.
        unsafe {
            core::slice::from_raw_parts_mut(self.places.slots.as_ptr().add(start), stride)
        }
    }

    /// The first `len` bytes of `slot`, as above; `None`: there are not as many.
    ///
    /// # Safety
    ///
    /// As for [`slot`](Self::slot).
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn slot_part(&self, slot: u32, len: u32) -> Option<&mut [u8]> {
        if slot >= self.header.slot_total || len > self.header.slot_stride {
            return None;
        }
        let start = (slot as usize).wrapping_mul(self.header.slot_stride as usize);
        // SAFETY: As above; no more bytes than the slot has.
        Some(unsafe {
            core::slice::from_raw_parts_mut(self.places.slots.as_ptr().add(start), len as usize)
        })
    }

    /// Whether a packet of `len` bytes fills a slot, so that the next slot's is right behind it.
    pub(crate) fn is_full(&self, len: u32) -> bool {
        len == self.header.slot_stride
    }

    /// Where `slot` begins, if there are `count` slots from it on, and `len` bytes are in one. Their user may write
    /// them at any time: to be read by what copies bytes and does not look at them.
    pub(crate) fn slots_bytes(&self, slot: u32, count: usize, len: u32) -> Option<NonNull<u8>> {
        let end = (slot as usize).saturating_add(count);
        if end > self.header.slot_total as usize || len > self.header.slot_stride {
            return None;
        }
        let offset = (self.header.slots_offset as usize).saturating_add(self.slot_offset(slot));
        // SAFETY: The slot is one of the region's, so its start is inside.
        let address = unsafe { self.region.0.as_ptr().cast::<u8>().add(offset) };
        NonNull::new(address.cast_mut())
    }

    /// The slots' pages, for as long as `self` lives.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn slot_pages(&self) -> Result<SlotPages> {
        let first = self.header.slots_offset as usize / PAGE;
        let count = (self.header.slots_len as usize).div_ceil(PAGE);
        let mut pages = KVVec::from_elem(
            core::ptr::null_mut(),
            count,
            GFP_KERNEL_ACCOUNT | __GFP_NOWARN,
        )?;
        for (index, page) in pages.iter_mut().enumerate() {
            *page = self.region.known(first.saturating_add(index)).ok_or(ENOMEM)?;
        }
        Ok(SlotPages(pages))
    }

    /// A copy of the first `len` bytes of `slot`, as they are at this moment.
    pub(crate) fn slot_copy(&self, slot: u32, len: u32) -> Result<SlotCopy> {
        let from = self.slots_bytes(slot, 1, len).ok_or(EFAULT)?;
        let pages = Pages::new((len as usize).div_ceil(PAGE))?;
        // SAFETY: As many bytes of a slot and of pages that are ours. Nobody looks at what is copied, so
        // it does not matter if the slot's user writes it meanwhile.
        unsafe { from.copy_to_nonoverlapping(pages.start(), len as usize) };
        Ok(SlotCopy { pages, len })
    }

    /// Where in the slots' pages `slot` begins, bytes from the first one.
    pub(crate) fn slot_offset(&self, slot: u32) -> usize {
        (slot as usize).saturating_mul(self.header.slot_stride as usize)
    }

    /// The part that a mapping of `len` bytes at `offset` is in, as `viewer` may map it.
    fn part(&self, offset: u64, len: u64, viewer: Viewer) -> Result<Part> {
        let header = &self.header;
        let own = viewer.reader.map(|reader| {
            let page = PAGE as u64;
            (reader as u64).saturating_mul(page).saturating_add(header.reader_status_offset)
        });
        let transmit = header.direction == abi::DIRECTION_TRANSMIT;
        let packets = !transmit || viewer.owner;
        let parts = [
            (header.status_offset, header.status_len, true, false),
            (
                header.reader_status_offset,
                u64::from(header.reader_status_count).saturating_mul(PAGE as u64),
                viewer.owner || own.is_none_or(|own| own == offset && len == PAGE as u64),
                false,
            ),
            (header.control_offset, header.control_len, viewer.reader.is_some(), true),
            (header.desc_offset, header.desc_len, packets, transmit),
            (header.slots_offset, header.slots_len, packets, transmit),
        ];
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        for (start, part_len, allowed, writable) in parts {
            if offset >= start && end <= start.saturating_add(part_len) {
                return if allowed { Ok(Part { offset, len, writable }) } else { Err(EPERM) };
            }
        }
        Err(EINVAL)
    }

    /// Maps `area`, which begins at `offset` of the file of `viewer`.
    pub(crate) fn map(&self, area: &VmaNew, offset: u64, viewer: Viewer) -> Result {
        if area.flags() & MAYSHARE == 0 {
            return Err(EINVAL);
        }
        let len = area.end().saturating_sub(area.start());
        let part = self.part(offset, len as u64, viewer)?;
        if area.executable() || (area.writable() && !part.writable) {
            return Err(EPERM);
        }
        area.try_clear_mayexec()?;
        if !part.writable {
            area.try_clear_maywrite()?;
        }
        area.set_dontcopy();
        area.set_dontexpand();
        area.set_dontdump();
        let (pages, first) = match viewer.reader {
            Some(reader) if part.offset == self.header.control_offset => (&self.controls, reader),
            _ => (&self.region, (part.offset / PAGE as u64) as usize),
        };
        let count = (part.len / PAGE as u64) as usize;
        for page in 0..count {
            let address = area.start().saturating_add(page.saturating_mul(PAGE));
            pages.insert(first.saturating_add(page), area, address)?;
        }
        Ok(())
    }
}

impl FigureBlocks for Memory {
    #[inline]
    fn counters(&self) -> Block<'_> {
        // SAFETY: It is in the region, which lives as long as `self` and is not moved.
        Block { words: unsafe { self.places.counters.as_ref() } }
    }

    #[inline]
    fn leg(&self, leg: usize) -> Block<'_> {
        // SAFETY: They are in the region, which lives as long as `self` and is not moved.
        block(unsafe { self.places.legs.as_ref() }.get(leg))
    }

    #[inline]
    fn source(&self, index: u16) -> Block<'_> {
        // SAFETY: As above.
        block(unsafe { self.places.sources.as_ref() }.get(usize::from(index)))
    }
}

/// The block at the beginning of `words`. What is behind it is nobody's.
#[inline]
fn block<const WORDS: usize>(words: Option<&[Word; WORDS]>) -> Block<'_> {
    Block { words: words.map_or(&[], |words| words) }
}

/// Stands in for a word that is outside of the region, which no offset here is.
static NOWHERE: Word = Word::new(0);
