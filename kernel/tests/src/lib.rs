//! What the tests of the kernel module share: the device, its calls, mappings of a stream's parts, and a
//! reader.
//!
//! Thin on purpose: it hides no error of the module and corrects none.

#![allow(unsafe_code)] // System calls and mapped memory: everything the tests are about.

pub mod books;
pub mod bpf;
pub mod cgroup;
pub mod dummy;
pub mod namespace;
pub mod random;
pub mod sockets;
pub mod tracing;
pub mod transmit;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::{
    DESC_WORDS, Descriptor, Header, LegFigures, PAGE, ReaderStatus, SEQUENCE_WORDS, SourceFigures,
    StreamCounters, control, ioctl, status,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::reader::{Available, Cursor};
use rtp_mgr_ring::view::{Block, ControlView, DescriptorWords, RingView, SlotsView};

/// The device's node.
pub const DEVICE: &str = "/dev/rtp_mgr";

/// An argument of a call: begins with its size.
pub trait Argument: Copy {
    /// Says how long it is.
    fn set_size(&mut self, size: u32);
}

macro_rules! arguments {
    ($($type:ident)*) => {
        $(impl Argument for ioctl::$type {
            fn set_size(&mut self, size: u32) {
                self.size = size;
            }
        })*
    };
}

arguments! { Version Create Attach AddLeg Heard Plain Stats Setting List }

/// One open file of the device.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
}

impl Device {
    /// Opens the device for reading and writing.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::options().read(true).write(true).open(DEVICE)?.into() })
    }

    /// Opens the device for reading only.
    pub fn open_read_only() -> io::Result<Self> {
        Ok(Self { file: File::open(DEVICE)?.into() })
    }

    /// The file descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A duplicate of this file: the same stream.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// A call, with the argument's size filled in.
    pub fn call<T: Argument>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        argument.set_size(size_of::<T>() as u32);
        // SAFETY: The argument is as long as it says.
        unsafe { self.raw_call(number, std::ptr::from_mut(argument).cast()) }
    }

    /// A call without arguments.
    pub fn plain(&self, number: u32) -> io::Result<()> {
        self.call(number, &mut ioctl::Plain::default())
    }

    /// A call with any argument.
    ///
    /// # Safety
    ///
    /// The module may write to `argument` as much as its first word says.
    pub unsafe fn raw_call(&self, number: u32, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: As this function's own requirement.
        match unsafe { libc::ioctl(self.fd(), libc::Ioctl::from(number as i32 as u32), argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes this file a stream of the simulated DMA engine.
    pub fn create(&self, mut request: ioctl::Create) -> io::Result<ioctl::Create> {
        request.source = ioctl::SOURCE_SIMULATED;
        self.call(ioctl::CREATE, &mut request)?;
        Ok(request)
    }

    /// Makes this file a stream with UDP legs.
    pub fn create_udp(&self, mut request: ioctl::Create) -> io::Result<ioctl::Create> {
        request.source = ioctl::SOURCE_UDP;
        self.call(ioctl::CREATE, &mut request)?;
        Ok(request)
    }

    /// Hands `socket` over as a leg.
    pub fn add_leg(&self, socket: &impl AsRawFd, leg: u32) -> io::Result<()> {
        let mut request = ioctl::AddLeg { fd: socket.as_raw_fd(), leg, ..Default::default() };
        self.call(ioctl::ADD_LEG, &mut request)
    }

    /// Makes this file a reader of `other`'s stream.
    pub fn attach(&self, other: &Device, reader: u32) -> io::Result<ioctl::Attach> {
        let mut request = ioctl::Attach { fd: other.fd(), reader, ..Default::default() };
        self.call(ioctl::ATTACH, &mut request)?;
        Ok(request)
    }

    /// Changes a setting.
    pub fn set(&self, key: u32, value: u64) -> io::Result<()> {
        self.call(ioctl::SET, &mut ioctl::Setting { key, value, ..Default::default() })
    }

    /// Reads a setting.
    pub fn get(&self, key: u32) -> io::Result<u64> {
        let mut setting = ioctl::Setting { key, ..Default::default() };
        self.call(ioctl::GET, &mut setting)?;
        Ok(setting.value)
    }

    /// State and counters.
    pub fn stats(&self) -> io::Result<(u32, StreamCounters)> {
        let mut stats = ioctl::Stats::default();
        self.call(ioctl::STATS, &mut stats)?;
        Ok((stats.state, StreamCounters::from_words(stats.counters)))
    }

    /// Maps a part of the stream.
    pub fn map(&self, offset: u64, len: u64, protection: i32) -> io::Result<Mapping> {
        self.map_as(offset, len, protection, libc::MAP_SHARED)
    }

    /// Maps with flags of one's own.
    pub fn map_as(
        &self,
        offset: u64,
        len: u64,
        protection: i32,
        flags: i32,
    ) -> io::Result<Mapping> {
        // SAFETY: A new mapping at a place that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                protection,
                flags,
                self.fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { address: address.cast(), len: len as usize })
    }

    /// What poll says within `timeout`: the events, or 0.
    pub fn poll(&self, timeout: Duration) -> io::Result<i16> {
        self.poll_for(libc::POLLIN, timeout)
    }

    /// What poll says of these events within `timeout`: the events, or 0.
    pub fn poll_for(&self, events: i16, timeout: Duration) -> io::Result<i16> {
        let mut request = libc::pollfd { fd: self.fd(), events, revents: 0 };
        // SAFETY: One request.
        match unsafe { libc::poll(&mut request, 1, timeout.as_millis() as i32) } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(0),
            _ => Ok(request.revents),
        }
    }
}

/// Mapped pages.
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    len: usize,
}

// SAFETY: It is memory of atomics, and unmapped once.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Where it begins.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it as words.
    pub fn words(&self) -> &[Word] {
        // SAFETY: Mapped pages, readable, for as long as `self`; the other side writes atomically.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.len / 8) }
    }

    /// The word at `offset`.
    pub fn word(&self, offset: usize) -> &Word {
        &self.words()[offset / 8]
    }

    /// Changes the protection.
    pub fn protect(&self, protection: i32) -> io::Result<()> {
        // SAFETY: Pages of this mapping.
        match unsafe { libc::mprotect(self.address.cast(), self.len, protection) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Mapped by `map`, and nobody borrows it any more.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// A reader of a stream, with all its parts mapped.
#[derive(Debug)]
pub struct Reader {
    /// The file.
    pub device: Device,
    /// A copy of the header.
    pub header: Header,
    /// The status part.
    pub status: Mapping,
    own_status: Mapping,
    control: Mapping,
    descriptors: Mapping,
    slots: Mapping,
    cursor: Cursor,
}

/// One position as a reader found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The packet's bytes.
    pub bytes: Vec<u8>,
}

impl Reader {
    /// A new stream with this file as its reader.
    pub fn create(request: ioctl::Create) -> io::Result<Self> {
        let device = Device::open()?;
        let answer = device.create(request)?;
        Self::map(device, answer.reader_index, request.start)
    }

    /// A new stream with UDP legs, with this file as its reader.
    pub fn create_udp(request: ioctl::Create) -> io::Result<Self> {
        let device = Device::open()?;
        let answer = device.create_udp(request)?;
        Self::map(device, answer.reader_index, request.start)
    }

    /// A reader of another file's stream.
    pub fn attach(to: &Device, reader: u32) -> io::Result<Self> {
        let device = Device::open()?;
        let answer = device.attach(to, reader)?;
        Self::map(device, answer.reader_index, answer.start)
    }

    fn map(device: Device, index: u32, start: u64) -> io::Result<Self> {
        let read = libc::PROT_READ;
        let page = PAGE as u64;
        let header = {
            let first = device.map(0, page, read)?;
            header_of(&first)
        };
        let own = header.reader_status_offset + u64::from(index) * page;
        let both = read | libc::PROT_WRITE;
        Ok(Self {
            status: device.map(header.status_offset, header.status_len, read)?,
            own_status: device.map(own, page, read)?,
            control: device.map(header.control_offset, header.control_len, both)?,
            descriptors: device.map(header.desc_offset, header.desc_len, read)?,
            slots: device.map(header.slots_offset, header.slots_len, read)?,
            cursor: Cursor::new(start, header.slot_count),
            device,
            header,
        })
    }

    /// Claim, head and descriptors.
    pub fn ring(&self) -> RingView<'_> {
        let words = self.descriptors.words();
        let count = self.header.slot_count as usize;
        assert!(words.len() >= count * DESC_WORDS);
        // SAFETY: A descriptor is an array of words, and there are as many as asserted.
        let descriptors =
            unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<DescriptorWords>(), count) };
        RingView {
            claim: self.status.word(status::CLAIM),
            head: self.status.word(status::HEAD),
            descriptors,
        }
    }

    /// Tail and wake position.
    pub fn control(&self) -> ControlView<'_> {
        ControlView {
            position: self.control.word(control::TAIL),
            wake_at: self.control.word(control::WAKE_AT),
        }
    }

    /// The whole control page.
    pub fn control_page(&self) -> &Mapping {
        &self.control
    }

    /// Next position to read.
    pub fn next(&self) -> u64 {
        self.cursor.next()
    }

    /// Counters from the mapped pages, without a system call.
    pub fn counters(&self) -> StreamCounters {
        let mut words = [0; StreamCounters::WORDS];
        let first = self.header.counters_offset as usize / 8;
        let block = &self.status.words()[first..first + SEQUENCE_WORDS + StreamCounters::WORDS];
        snapshot(&Block { words: block }, &mut words);
        StreamCounters::from_words(words)
    }

    /// Figures of a leg.
    pub fn leg(&self, leg: usize) -> LegFigures {
        let offset = self.header.legs_offset as usize + leg * self.header.legs_stride as usize;
        LegFigures::from_words(self.block(offset))
    }

    /// An entry of the source table.
    pub fn source(&self, at: u16) -> SourceFigures {
        let stride = self.header.sources_stride as usize;
        let offset = self.header.sources_offset as usize + usize::from(at) * stride;
        SourceFigures::from_words(self.block(offset))
    }

    fn block<const WORDS: usize>(&self, offset: usize) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let block = &self.status.words()[offset / 8..][..SEQUENCE_WORDS + WORDS];
        snapshot(&Block { words: block }, &mut words);
        words
    }

    /// What the engine says of this reader.
    pub fn own_status(&self) -> ReaderStatus {
        let mut words = [0; ReaderStatus::WORDS];
        let block = &self.own_status.words()[..SEQUENCE_WORDS + ReaderStatus::WORDS];
        snapshot(&Block { words: block }, &mut words);
        ReaderStatus::from_words(words)
    }

    /// Copies out and releases everything there is. Returns it and how many positions were missed.
    pub fn take(&mut self) -> (Vec<Item>, u64) {
        let mut items = Vec::new();
        let mut lost = 0;
        loop {
            let count = match self.cursor.clone_available(&self.ring()) {
                (cursor, Available::Lapped { missed }) => {
                    self.cursor = cursor;
                    lost += missed;
                    continue;
                }
                (_, Available::Positions(count)) => count,
            };
            if count == 0 {
                return (items, lost);
            }
            for _ in 0..count {
                let position = self.cursor.next();
                let descriptor = self.cursor.load(&self.ring(), position);
                let mut bytes =
                    vec![0; (descriptor.len as usize).min(self.header.slot_stride as usize)];
                let slots =
                    SlotsView { words: self.slots.words(), stride: self.header.slot_stride };
                slots.copy(descriptor.slot, &mut bytes);
                if !self.cursor.is_intact(&self.ring(), position) {
                    break;
                }
                items.push(Item { descriptor, bytes });
                self.cursor.advance(1);
            }
            self.cursor.release(&self.control());
        }
    }

    /// Asks to be woken for `threshold` more positions and waits for them with poll.
    pub fn wait(&self, threshold: u64, timeout: Duration) -> io::Result<i16> {
        if self.cursor.prepare_wait(&self.ring(), &self.control(), threshold) {
            self.device.poll(timeout)
        } else {
            Ok(libc::POLLIN)
        }
    }

    /// Reads until `count` packets came, or panics after `limit`.
    pub fn collect(&mut self, count: usize, limit: Duration) -> Vec<Item> {
        let deadline = Instant::now() + limit;
        let mut items = Vec::new();
        while items.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} packets in {limit:?}", items.len());
            self.wait(1, Duration::from_millis(200)).expect("poll");
            items.extend(self.take().0);
        }
        items
    }
}

/// A cursor that can be tried on a copy: the view borrows its owner.
trait CloneAvailable {
    fn clone_available(&self, ring: &RingView<'_>) -> (Cursor, Available);
}

impl CloneAvailable for Cursor {
    fn clone_available(&self, ring: &RingView<'_>) -> (Cursor, Available) {
        let mut cursor = *self;
        let available = cursor.available(ring);
        (cursor, available)
    }
}

/// Copies a consistent state of `block`. The engine's CPU may be off for a while in the middle of writing it: a
/// virtual one is, when the host has others to run.
fn snapshot(block: &Block<'_>, words: &mut [u64]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !block.snapshot(words, 1_000) {
        assert!(Instant::now() < deadline, "no consistent snapshot in 20 s");
        std::thread::yield_now();
    }
}

/// A private copy of the header at the start of the status part.
pub fn header_of(status: &Mapping) -> Header {
    let mut header = Header::default();
    let words: Vec<u64> =
        status.words()[..size_of::<Header>() / 8].iter().map(Word::load).collect();
    // SAFETY: A header consists of integers, and as many bytes are copied as it has.
    unsafe {
        std::ptr::copy_nonoverlapping(
            words.as_ptr().cast::<u8>(),
            std::ptr::from_mut(&mut header).cast::<u8>(),
            size_of::<Header>(),
        );
    }
    header
}

/// The streams that the caller may see, up to 4096.
pub fn list(device: &Device) -> Vec<ioctl::ListEntry> {
    let mut entries = vec![ioctl::ListEntry::default(); 4_096];
    let mut list = ioctl::List {
        entry_size: size_of::<ioctl::ListEntry>() as u32,
        entries: entries.as_mut_ptr() as u64,
        room: 4_096,
        ..Default::default()
    };
    device.call(ioctl::LIST, &mut list).expect("LIST");
    entries.truncate(list.count as usize);
    entries
}

/// The error number of a failed call.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("it should have failed").raw_os_error().expect("an error of the kernel")
}

/// Takes the descriptor of a file from a raw number.
///
/// # Safety
///
/// Nobody else closes it.
pub unsafe fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: As this function's own requirement.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Says that the test which calls this did not run what it is about, and why. Written so that the test
/// harness does not keep it to itself; whoever counts the results reads it.
pub fn not_run(reason: &str) {
    use std::io::Write;
    writeln!(io::stdout(), "\n# SKIP {reason}").expect("standard output");
}
