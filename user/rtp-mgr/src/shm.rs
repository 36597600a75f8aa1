//! The shared memory of streams: memfds, their seals, mappings, and the views laid over them.
//!
//! What lives here: every `unsafe` that it takes to reach memory that another thread, process or the
//! kernel may be writing, be it a memfd of the embedded engine or pages of the kernel engine. What does not: where the parts lie ([`crate::layout`]) and the protocol
//! that says who may touch what when (the ring crate).
//!
//! # Who touches what
//!
//! - Status, control and descriptor words are only ever seen through atomics ([`Word`]).
//! - A slot of a receive ring belongs to the engine until its position is published, then to the
//!   ring: nobody writes it until every reliable reader has released the position. A reliable reader
//!   that is never demoted may therefore borrow the bytes in place ([`Window`]). Everybody else
//!   copies through atomics and checks afterwards whether the copy is whole.
//! - A slot of a transmit ring belongs to the writer until its position is committed
//!   ([`Room`]), then to the engine until it is released.
#![allow(unsafe_code)] // The owner of mappings; every block says why it is sound.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rtp_mgr_ring::abi::{
    DESC_STRIDE, DESC_WORDS, Header, PAGE, STATE_CONFIGURED, STATE_RUNNING, STATE_STOPPED, control,
    status,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::view::{Block, ControlView, DescriptorWords, RingView, SlotsView};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::device::Device;
use crate::error::Error;
use crate::layout::{self, Layout, Part, Shape};
use crate::net::SlotMemory;
use crate::stats::State;

/// Words of a header.
pub(crate) const HEADER_WORDS: usize = size_of::<Header>() / 8;

/// Seals of the memory of a ring: its size is fixed, and nobody gets a new writable mapping.
const RING_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);
/// Seals of a control page: its size is fixed.
const CONTROL_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The header as words in memory order.
pub(crate) fn header_words(header: &Header) -> [u64; HEADER_WORDS] {
    const { assert!(size_of::<Header>() == HEADER_WORDS * 8) };
    // SAFETY: Header is repr(C), of integers without padding (its size is the sum of its fields, all
    // naturally aligned), as long as the array.
    unsafe { mem::transmute::<Header, [u64; HEADER_WORDS]>(*header) }
}

/// The header that words in memory order make. Any words make one; what it says is checked by
/// [`Layout::check`].
pub(crate) fn header_from_words(words: [u64; HEADER_WORDS]) -> Header {
    // SAFETY: Header is repr(C) and made of integers: every bit pattern is one.
    unsafe { mem::transmute::<[u64; HEADER_WORDS], Header>(words) }
}

/// Memory mapped into this process.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What of it is there: all of it, or the parts that a file of the device maps.
    mapped: [Range<usize>; PARTS],
}

/// Parts of a region that are mapped one by one: status, reader status, descriptors, slots.
const PARTS: usize = 4;
const NOTHING: Range<usize> = 0..0;

// SAFETY: the mapping is not tied to a thread, and its memory is reached only through atomics or
// under the rules at the top of this file.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file.
    fn of_file(file: impl AsFd, len: usize, write: bool) -> io::Result<Self> {
        let protection = if write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        Self::of_file_at(file, 0, len, protection)
    }

    fn of_file_at(
        file: impl AsFd,
        offset: u64,
        len: usize,
        protection: ProtFlags,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset)
        }?;
        Self::at(base, len, [0..len, NOTHING, NOTHING, NOTHING])
    }

    fn at(
        base: *mut std::ffi::c_void,
        len: usize,
        mapped: [Range<usize>; PARTS],
    ) -> io::Result<Self> {
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, mapped })
    }

    /// Maps parts of a file, each where it would be if the whole file were mapped. What lies between
    /// them cannot be reached.
    fn of_parts(file: impl AsFd, len: usize, parts: &[(Part, ProtFlags)]) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        let mut whole = Self::at(base, len, [NOTHING; PARTS])?;
        for ((part, protection), mapped) in parts.iter().zip(&mut whole.mapped) {
            let range = part.offset..part.offset.saturating_add(part.len);
            if range.end > len {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: it replaces pages of the reservation that was just made, within its bounds,
            // and nobody knows these pages yet.
            let at = unsafe {
                let to = whole.base.as_ptr().add(part.offset).cast();
                rustix::mm::mmap(to, part.len, *protection, flags, &file, part.offset as u64)
            }?;
            debug_assert_eq!(at.addr(), whole.base.as_ptr().addr() + part.offset);
            *mapped = range;
        }
        Ok(whole)
    }

    /// Has the pages of `part` there now, not when a packet needs them. A file of shared memory is meant, which may
    /// be written.
    fn populate(&self, part: Part) {
        let start = part.offset / PAGE * PAGE;
        let end = part.offset.saturating_add(part.len).min(self.len);
        if !self.holds(part) || start >= end {
            return;
        }
        // SAFETY: these pages are this value's, and what is in them stays as it is.
        let populated = unsafe {
            let base = self.base.as_ptr().add(start).cast();
            rustix::mm::madvise(base, end - start, Advice::LinuxPopulateWrite)
        };
        // Linux before 5.14 does not know it, and memory may be short: they come when they are needed.
        if let Err(error) = populated {
            tracing::debug!(%error, bytes = end - start, "populate");
        }
    }

    /// Whether all of `part` is there.
    fn holds(&self, part: Part) -> bool {
        let end = part.offset.saturating_add(part.len);
        self.mapped.iter().any(|mapped| mapped.start <= part.offset && end <= mapped.end)
    }

    /// The words at `part`; `None` where it is not wholly mapped or not aligned.
    fn words(&self, part: Part) -> Option<&[Word]> {
        if !self.holds(part) || !part.offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: the words lie within the mapping, which lives as long as `self`; Word is an
        // AtomicU64 and aligned, and whoever else reaches this memory from this process does it
        // through atomics too (rules at the top: status, control and descriptor parts always, slots
        // when they are copied).
        Some(unsafe {
            slice::from_raw_parts(self.base.as_ptr().add(part.offset).cast(), part.len / 8)
        })
    }

    fn word(&self, offset: usize) -> Option<&Word> {
        self.words(Part { offset, len: 8 })?.first()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and every reference into it borrows from this value.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Bytes of slots that are there from the beginning: slots are used again as soon as they are released, so that more
/// are only needed where packets wait in the ring.
const SLOTS_READY: usize = 256 << 10;
/// Bytes of descriptors at most: those of 16,384 positions. A larger ring is not held up, nor its memory taken, for what
/// it may need.
const DESCRIPTORS_READY: usize = 1 << 20;

/// Anonymous memory as a file that can be sealed.
fn memfd(name: &str, len: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know NOEXEC_SEAL.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&file, len)?;
    Ok(file)
}

/// What a file of the kernel engine's device is to its stream, and so what it may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// All of a receive ring: its owner.
    Owner,
    /// A receive ring and the status of one reader: that reader.
    Reader(usize),
    /// The figures alone.
    Observer,
    /// A transmit ring, to be written: its owner.
    Writer,
}

/// The memory of one stream, or as much of it as this process maps.
pub(crate) struct Region {
    /// The memory as a file; none when a device has it.
    file: Option<OwnedFd>,
    mapping: Mapping,
    layout: Layout,
    /// The slots are mapped here.
    has_slots: bool,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Region {
    fn new(file: Option<OwnedFd>, mapping: Mapping, layout: Layout) -> Self {
        let has_slots = mapping.holds(layout.slots());
        Self { file, mapping, layout, has_slots }
    }

    /// Makes the memory of a stream, writes its header and seals it. Positions begin at `start`.
    pub(crate) fn create(shape: &Shape, start: u64) -> Result<Self, Error> {
        let header = shape.header();
        let failed = |source| Error::Memory { what: "the ring", bytes: header.total_len, source };
        let file = memfd("rtp_mgr ring", header.total_len).map_err(failed)?;
        let len = usize::try_from(header.total_len)
            .map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let mapping = Mapping::of_file(&file, len, true).map_err(failed)?;
        rustix::fs::fcntl_add_seals(&file, RING_SEALS).map_err(|error| failed(error.into()))?;
        let layout = layout::check(&header, header.total_len)
            .map_err(|reason| Error::Layout { name: "(new)".into(), reason })?;
        let region = Self::new(Some(file), mapping, layout);
        let words = region.words(Part { offset: 0, len: size_of::<Header>() });
        for (to, from) in words.iter().zip(header_words(&header)) {
            to.store(from);
        }
        // A fault for each page costs the packet that is first there more than all that is done with it.
        for (part, most) in
            [(region.layout.descriptors(), DESCRIPTORS_READY), (region.layout.slots(), SLOTS_READY)]
        {
            region.mapping.populate(Part { len: part.len.min(most), ..part });
        }
        region.status_word(status::CLAIM).store(start);
        region.status_word(status::HEAD).store(start);
        region.status_word(status::TAIL).store(start);
        region.set_state(State::Configured);
        Ok(region)
    }

    /// Maps another process's stream, read only: all of it, or only what the figures need.
    ///
    /// The text of the mistake says what to do.
    pub(crate) fn open(file: OwnedFd, all: bool) -> Result<Self, String> {
        let seals = rustix::fs::fcntl_get_seals(&file)
            .map_err(|error| format!("its memory cannot be judged: {error}"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err("its memory can shrink: the owner's program is damaged or hostile".into());
        }
        let failed = |error: io::Error| format!("its memory cannot be mapped: {error}");
        let size = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        if size < PAGE as u64 {
            return Err(format!("its memory has {size} bytes: the owner's program is damaged"));
        }
        let layout = layout::check(&read_header(&file).map_err(failed)?, size)?;
        let len = if all { layout.header().total_len as usize } else { layout.figures_len() };
        let mapping = Mapping::of_file(&file, len, false).map_err(failed)?;
        Ok(Self::new(Some(file), mapping, layout))
    }

    /// Maps a stream of the kernel engine through one of its files. The module maps nothing beyond a
    /// stream's memory, and a mapping keeps it: there is no other size to check against.
    ///
    /// The text of the mistake says what to do.
    pub(crate) fn of_device(device: &Device, purpose: Use) -> Result<Self, String> {
        let failed = |error: io::Error| format!("its memory cannot be mapped: {error}");
        let header = read_header(device).map_err(failed)?;
        let layout = layout::check(&header, header.total_len)?;
        let usable = match purpose {
            Use::Writer => ProtFlags::READ | ProtFlags::WRITE,
            _ => ProtFlags::READ,
        };
        let readers = match purpose {
            Use::Reader(reader) => layout.reader_status(reader),
            Use::Owner | Use::Observer => layout.reader_pages(),
            Use::Writer => None,
        };
        let mut parts = vec![(layout.status(), ProtFlags::READ)];
        parts.extend(readers.map(|readers| (readers, ProtFlags::READ)));
        if purpose != Use::Observer {
            parts.push((layout.descriptor_pages(), usable));
            parts.push((layout.slot_pages(), usable));
        }
        let len = header.total_len as usize;
        let mapping = Mapping::of_parts(device, len, &parts).map_err(failed)?;
        Ok(Self::new(None, mapping, layout))
    }

    /// The file, to be handed to another process: read only where the system lets it be reopened so.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        let Some(file) = &self.file else { return Err(io::ErrorKind::Unsupported.into()) };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reopened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        match reopened {
            Ok(file) => Ok(file),
            // Without /proc: the seals alone keep others from writing.
            Err(_) => file.try_clone(),
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The words at a part that [`Layout`] named; none where it is not mapped here.
    fn words(&self, part: Part) -> &[Word] {
        self.mapping.words(part).unwrap_or_default()
    }

    /// A live word of the status part (offsets in [`status`]).
    pub(crate) fn status_word(&self, offset: usize) -> &Word {
        static NOWHERE: Word = Word::new(0);
        self.mapping.word(self.layout.status_word(offset)).unwrap_or(&NOWHERE)
    }

    /// Positions and descriptors.
    pub(crate) fn ring(&self) -> RingView<'_> {
        RingView {
            claim: self.status_word(status::CLAIM),
            head: self.status_word(status::HEAD),
            descriptors: self.descriptors(),
        }
    }

    fn descriptors(&self) -> &[DescriptorWords] {
        const { assert!(size_of::<DescriptorWords>() == DESC_STRIDE) };
        let words = self.words(self.layout.descriptors());
        // A slice of words is a slice of arrays of words.
        words.as_chunks::<DESC_WORDS>().0
    }

    /// The slots, to be copied from.
    pub(crate) fn slots(&self) -> SlotsView<'_> {
        let words = self.words(self.layout.slots());
        SlotsView { words, stride: self.layout.header().slot_stride }
    }

    fn block(&self, part: Option<Part>) -> Block<'_> {
        Block { words: part.map(|part| self.words(part)).unwrap_or_default() }
    }

    pub(crate) fn counters(&self) -> Block<'_> {
        self.block(Some(self.layout.counters()))
    }

    pub(crate) fn leg(&self, leg: usize) -> Block<'_> {
        self.block(self.layout.leg(leg))
    }

    pub(crate) fn source(&self, source: usize) -> Block<'_> {
        self.block(self.layout.source(source))
    }

    pub(crate) fn reader_status(&self, reader: usize) -> Block<'_> {
        self.block(self.layout.reader_status(reader))
    }

    pub(crate) fn state(&self) -> State {
        match self.status_word(status::STATE).load_acquire() {
            STATE_RUNNING => State::Running,
            STATE_STOPPED => State::Stopped,
            _ => State::Configured,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.status_word(status::STATE).store_release(match state {
            State::Configured => STATE_CONFIGURED,
            State::Running => STATE_RUNNING,
            State::Stopped => STATE_STOPPED,
        });
    }

    /// The slots, as the engine writes them or sends from them. Only for the region's owner.
    pub(crate) fn slot_memory(self: &Arc<Self>) -> SlotMemory {
        let part = self.layout.slots();
        assert!(self.mapping.holds(part), "the owner maps all of its region");
        let header = self.layout.header();
        let len = header.slot_total as usize * header.slot_stride as usize;
        // SAFETY: within the mapping (asserted, and `Layout::check` for `len`), which lives as long
        // as the region that is handed over as `keep`. The engine names only slots that no reader
        // may borrow (rules at the top of this file).
        unsafe {
            let base = self.mapping.base.add(part.offset);
            SlotMemory::new(base, len, header.slot_stride as usize, self.clone())
        }
    }

    #[inline]
    fn slot_ptr(&self, slot: u32, len: u32) -> Option<NonNull<u8>> {
        if !self.layout.holds(slot, len) || !self.has_slots {
            return None;
        }
        let offset = slot as usize * self.layout.header().slot_stride as usize;
        // SAFETY: `holds` and `Layout::check`: the slot lies within the slots part, which is mapped.
        Some(unsafe { self.mapping.base.add(self.layout.slots().offset + offset) })
    }
}

/// The header at the beginning of a stream's file, read once.
fn read_header(file: impl AsFd) -> io::Result<Header> {
    let first = Mapping::of_file(file, PAGE, false)?;
    let mut words = [0; HEADER_WORDS];
    let shared = first.words(Part { offset: 0, len: size_of::<Header>() }).unwrap_or_default();
    for (to, from) in words.iter_mut().zip(shared) {
        *to = from.load();
    }
    Ok(header_from_words(words))
}

/// The control page of one reader or writer.
pub(crate) struct ControlPage {
    mapping: Mapping,
}

impl fmt::Debug for ControlPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPage").finish_non_exhaustive()
    }
}

impl ControlPage {
    /// A control page and the file that another process maps it from. Its positions are `start`.
    pub(crate) fn create(start: u64) -> Result<(Self, OwnedFd), Error> {
        let failed = |source| Error::Memory { what: "a control page", bytes: PAGE as u64, source };
        let file = memfd("rtp_mgr control", PAGE as u64).map_err(failed)?;
        rustix::fs::fcntl_add_seals(&file, CONTROL_SEALS).map_err(|error| failed(error.into()))?;
        let page = Self { mapping: Mapping::of_file(&file, PAGE, true).map_err(failed)? };
        page.begin(start);
        Ok((page, file))
    }

    /// Sets the position, and asks for no wake-up: as far away as can be.
    fn begin(&self, position: u64) {
        self.view().position.store(position);
        self.view().wake_at.store(position.wrapping_add(i64::MAX as u64));
    }

    /// Maps the control page that an engine gave this process.
    ///
    /// The text of the mistake says what to do.
    pub(crate) fn open(file: OwnedFd) -> Result<Self, String> {
        let failed = |error: io::Error| format!("its control page cannot be mapped: {error}");
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|error| failed(error.into()))?;
        let size = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?.st_size;
        if !seals.contains(SealFlags::SHRINK) || size < PAGE as i64 {
            return Err("its control page can shrink: the owner's program is damaged".into());
        }
        Ok(Self { mapping: Mapping::of_file(&file, PAGE, true).map_err(failed)? })
    }

    /// Maps the control page of a file of the kernel engine's device.
    ///
    /// The text of the mistake says what to do.
    pub(crate) fn of_device(device: &Device, layout: &Layout) -> Result<Self, String> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Mapping::of_file_at(device, layout.header().control_offset, PAGE, protection)
            .map(|mapping| Self { mapping })
            .map_err(|error| format!("its control page cannot be mapped: {error}"))
    }

    /// The words of the page.
    pub(crate) fn view(&self) -> ControlView<'_> {
        const { assert!(control::TAIL == control::HEAD && control::WAKE_AT < PAGE) };
        let words = self.mapping.words(Part { offset: 0, len: PAGE }).expect("a page is mapped");
        ControlView { position: &words[control::TAIL / 8], wake_at: &words[control::WAKE_AT / 8] }
    }
}

/// What a reliable reader of the owning process may borrow: the packets of positions that are
/// published and that it has not released.
#[derive(Debug)]
pub(crate) struct Window {
    region: Arc<Region>,
}

impl Window {
    /// For a reader that the engine counts as reliable and never demotes.
    ///
    /// # Invariants
    /// The engine was told of the reader before any position that is asked for was published, and
    /// does not forget it while this lives. Its owner releases a position only when nothing borrowed
    /// from it is left (the borrows of [`WindowSlots::bytes`] end before the release).
    pub(crate) fn new(region: Arc<Region>) -> Self {
        Self { region }
    }

    /// The slots, found once for all packets of a batch.
    pub(crate) fn slots(&self) -> WindowSlots<'_> {
        let slots = self.region.slots();
        // None where they are not mapped.
        let total = if slots.words.is_empty() { 0 } else { self.region.layout.header().slot_total };
        WindowSlots { slots, total }
    }

    #[cfg(test)]
    fn bytes(&self, slot: u32, len: u32) -> &[u8] {
        self.slots().bytes(slot, len)
    }
}

/// The slots of a [`Window`].
#[derive(Clone, Copy)]
pub(crate) struct WindowSlots<'a> {
    slots: SlotsView<'a>,
    total: u32,
}

impl fmt::Debug for WindowSlots<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowSlots").field("total", &self.total).finish_non_exhaustive()
    }
}

impl<'a> WindowSlots<'a> {
    /// The first `len` bytes of `slot`, which a published position that was not released names;
    /// empty when the descriptor cannot be right.
    #[inline]
    pub(crate) fn bytes(&self, slot: u32, len: u32) -> &'a [u8] {
        let SlotsView { words, stride } = self.slots;
        if slot >= self.total || len > stride {
            return &[];
        }
        let offset = slot as usize * stride as usize;
        // SAFETY: within the words, which are all slots (`Layout::check`; `total` is 0 without them) and
        // mapped while they are borrowed. Published and not released by a reliable reader: the engine does
        // not write the slot (invariants of `Window`, rules at the top of this file), and no other process has
        // a writable mapping (F_SEAL_FUTURE_WRITE; the module gives none).
        unsafe { slice::from_raw_parts(words.as_ptr().cast::<u8>().add(offset), len as usize) }
    }
}

/// What the writer of a transmit ring may fill: the slots of positions that it has not committed and
/// that the engine has released.
#[derive(Debug)]
pub(crate) struct Room {
    region: Arc<Region>,
}

impl Room {
    /// For the one writer of a transmit ring.
    ///
    /// # Invariants
    /// There is one per region, and slots are asked for only of positions from the writer's head on
    /// and below the engine's tail plus `slot_count`.
    pub(crate) fn new(region: Arc<Region>) -> Self {
        Self { region }
    }

    /// The slots of `count` positions from `head` on, as the two runs that the ring's end cuts them
    /// into, each `slot_stride` bytes per slot.
    pub(crate) fn slots(&mut self, head: u64, count: usize) -> (&mut [u8], &mut [u8]) {
        let slot_count = self.region.layout.slot_count();
        let stride = self.region.layout.header().slot_stride as usize;
        let first = head as usize & (slot_count - 1);
        let count = count.min(slot_count);
        let before_end = count.min(slot_count - first);
        let Some(base) = self.region.slot_ptr(0, 0) else { return (&mut [], &mut []) };
        // SAFETY: both runs lie within the first `slot_count` slots, which are mapped (`slot_ptr`)
        // and do not overlap (count <= slot_count). They belong to the writer (invariants), who
        // reaches them only through this exclusive borrow.
        unsafe {
            (
                slice::from_raw_parts_mut(base.add(first * stride).as_ptr(), before_end * stride),
                slice::from_raw_parts_mut(base.as_ptr(), (count - before_end) * stride),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Direction;
    use rtp_mgr_ring::abi::{Descriptor, ENGINE_USER, READERS_MAX, StreamCounters};

    fn shape(direction: Direction) -> Shape {
        Shape {
            direction: direction.abi(),
            engine: ENGINE_USER,
            features: 0,
            slot_count: 16,
            slot_total: 24,
            slot_stride: 100,
            legs: 1,
            sources: 4,
            stream_id: 1,
            owner_pid: 2,
            owner_uid: 3,
        }
    }

    fn region(direction: Direction) -> Arc<Region> {
        Arc::new(Region::create(&shape(direction), 5).unwrap())
    }

    #[test]
    fn a_header_survives_its_words() {
        let header = shape(Direction::Receive).header();
        assert_eq!(header_from_words(header_words(&header)), header);
    }

    #[test]
    fn what_the_owner_writes_another_mapping_reads() {
        let owner = region(Direction::Receive);
        let counters = StreamCounters { received: 9, updated_ns: 10, ..Default::default() };
        owner.counters().publish(&counters.to_words());
        let descriptor = Descriptor { slot: 23, len: 100, ..Default::default() };
        owner.ring().store(5, &descriptor);
        let mut memory = owner.slot_memory();
        memory.write(23, &[7; 100]);
        owner.set_state(State::Running);

        let other = Region::open(owner.share().unwrap(), true).unwrap();
        assert_eq!(other.layout().header(), owner.layout().header());
        assert_eq!(other.state(), State::Running);
        let mut words = [0; StreamCounters::WORDS];
        assert!(other.counters().snapshot(&mut words, 3));
        assert_eq!(StreamCounters::from_words(words), counters);
        assert_eq!(other.ring().head.load(), 5);
        assert_eq!(other.ring().load(5), descriptor);
        let mut copy = [0; 100];
        assert_eq!(other.slots().copy(23, &mut copy), 100);
        assert_eq!(copy, [7; 100]);
    }

    #[test]
    fn what_every_packet_needs_is_there_before_the_first() {
        let shape = Shape {
            slot_count: 4_096,
            slot_total: 8_192,
            slot_stride: 2_048,
            ..shape(Direction::Receive)
        };
        let owner = Region::create(&shape, 0).unwrap();
        // What a file of memory has is in memory.
        let there =
            rustix::fs::fstat(owner.file.as_ref().unwrap()).unwrap().st_blocks as usize * 512;
        let needed = owner.layout.descriptors().len + SLOTS_READY;
        assert!((needed..needed + (64 << 10)).contains(&there), "{there} of {needed} bytes");
        // Filled with what it had.
        assert_eq!(owner.layout().header(), &shape.header());
        assert_eq!(owner.ring().load(4_095), Descriptor::default());
    }

    #[test]
    fn the_figures_alone_can_be_mapped() {
        let owner = region(Direction::Receive);
        let other = Region::open(owner.share().unwrap(), false).unwrap();
        assert!(!other.counters().words.is_empty());
        assert!(!other.reader_status(READERS_MAX - 1).words.is_empty());
        assert!(other.ring().descriptors.is_empty());
        assert!(other.slots().words.is_empty());
    }

    #[test]
    fn others_can_neither_write_nor_resize() {
        let owner = region(Direction::Receive);
        let len = owner.layout().header().total_len;
        for file in [owner.share().unwrap(), owner.file.as_ref().unwrap().try_clone().unwrap()] {
            assert!(Mapping::of_file(&file, PAGE, true).is_err());
            assert!(rustix::io::write(&file, &[0; 8]).is_err());
            for size in [0, len - 1, len + 1] {
                assert!(rustix::fs::ftruncate(&file, size).is_err());
            }
            let punch =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            assert!(rustix::fs::fallocate(&file, punch, 0, PAGE as u64).is_err());
            let _ = rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).unwrap_err();
        }
    }

    #[test]
    fn a_read_only_mapping_cannot_be_made_writable() {
        let owner = region(Direction::Receive);
        let other = Region::open(owner.share().unwrap(), true).unwrap();
        // SAFETY: only the protection of a mapping of this test's own changes, and only to more.
        let made = unsafe {
            rustix::mm::mprotect(
                other.mapping.base.as_ptr().cast(),
                PAGE,
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
            )
        };
        assert_eq!(made, Err(rustix::io::Errno::ACCESS));
    }

    #[test]
    fn a_file_that_can_shrink_is_not_mapped() {
        let file = memfd("test", 1 << 20).unwrap();
        assert!(Region::open(file, true).unwrap_err().contains("shrink"));
        let file = memfd("test", PAGE as u64).unwrap();
        assert!(ControlPage::open(file).unwrap_err().contains("shrink"));
    }

    #[test]
    fn a_control_page_is_shared_and_of_fixed_size() {
        let (engine, file) = ControlPage::create(77).unwrap();
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        let user = ControlPage::open(file).unwrap();
        assert_eq!(user.view().position.load(), 77);
        user.view().position.store_release(78);
        user.view().wake_at.store(80);
        assert_eq!(engine.view().position.load_acquire(), 78);
        assert_eq!(engine.view().wake_at.load(), 80);
    }

    #[test]
    fn slots_to_fill_are_cut_at_the_end_of_the_ring() {
        let region = region(Direction::Transmit);
        let mut room = Room::new(region.clone());
        let (first, second) = room.slots(u64::MAX - 2, 5);
        assert_eq!((first.len(), second.len()), (300, 200));
        first.fill(1);
        second.fill(2);
        let memory = region.slot_memory();
        assert_eq!(memory.bytes(12, 100), [0; 100]);
        assert_eq!(memory.bytes(13, 100), [1; 100]);
        assert_eq!(memory.bytes(15, 100), [1; 100]);
        assert_eq!(memory.bytes(0, 100), [2; 100]);
        assert_eq!(memory.bytes(1, 100), [2; 100]);
        assert_eq!(memory.bytes(2, 100), [0; 100]);
    }

    #[test]
    fn a_descriptor_that_cannot_be_right_lends_nothing() {
        let window = Window::new(region(Direction::Receive));
        assert_eq!(window.bytes(23, 100).len(), 100);
        assert!(window.bytes(24, 1).is_empty());
        assert!(window.bytes(0, 101).is_empty());
        assert!(window.bytes(u32::MAX, u32::MAX).is_empty());
    }
}
