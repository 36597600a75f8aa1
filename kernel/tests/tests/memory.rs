//! Mapping a stream: what is allowed, what is refused, and abuse that must be harmless.

#![allow(unsafe_code)] // mmap and its relatives.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
use rtp_mgr_kernel_tests::cgroup::Group;
use rtp_mgr_kernel_tests::sockets::until;
use rtp_mgr_kernel_tests::{Device, Mapping, Reader, errno, header_of, owned};
use rtp_mgr_ring::abi::{Header, PAGE, READERS_MAX, ioctl};

const RW: i32 = PROT_READ | PROT_WRITE;
const ONE: u64 = PAGE as u64;

fn small() -> ioctl::Create {
    ioctl::Create { ring_order: 6, packet_len: 200, interval_ns: 5_000_000, ..Default::default() }
}

fn stream() -> (Device, Header, u32) {
    let device = Device::open().unwrap();
    let answer = device.create(small()).unwrap();
    let header = header_of(&device.map(0, ONE, PROT_READ).unwrap());
    assert_eq!(header.total_len, answer.total_len);
    (device, header, answer.reader_index)
}

/// Parts that only the module writes: offset and length.
fn read_only_parts(header: &Header) -> [(u64, u64); 3] {
    [
        (header.status_offset, header.status_len),
        (header.desc_offset, header.desc_len),
        (header.slots_offset, header.slots_len),
    ]
}

#[test]
fn parts_of_the_module_can_be_read_and_never_written() {
    let (device, header, _) = stream();
    for (offset, len) in read_only_parts(&header) {
        assert_eq!(errno(device.map(offset, len, RW)), libc::EPERM);
        assert_eq!(errno(device.map(offset, len, PROT_WRITE)), libc::EPERM);
        let mapping = device.map(offset, len, PROT_READ).unwrap();
        assert_eq!(errno(mapping.protect(RW)), libc::EACCES);
        assert_eq!(errno(mapping.protect(PROT_READ | PROT_EXEC)), libc::EACCES);
        let sum = mapping.words().iter().fold(0_u64, |sum, word| sum.wrapping_add(word.load()));
        assert_eq!(sum == 0, offset != header.status_offset, "fresh memory is zero");
    }
}

#[test]
fn nothing_is_executable_or_private() {
    let (device, header, _) = stream();
    for (offset, len) in read_only_parts(&header).into_iter().chain([(header.control_offset, ONE)])
    {
        assert_eq!(errno(device.map(offset, len, PROT_READ | PROT_EXEC)), libc::EPERM);
        let private = device.map_as(offset, len, PROT_READ, libc::MAP_PRIVATE);
        assert_eq!(errno(private), libc::EINVAL);
    }
    let control = device.map(header.control_offset, ONE, RW).unwrap();
    assert_eq!(errno(control.protect(RW | PROT_EXEC)), libc::EACCES);
}

#[test]
fn a_mapping_lies_within_one_part() {
    let (device, header, _) = stream();
    for (offset, len) in [
        (0, header.total_len),
        (header.status_len - ONE, 2 * ONE),
        (header.desc_offset - ONE, 2 * ONE),
        (header.desc_offset, header.desc_len + ONE),
        (header.slots_offset, header.slots_len + ONE),
        (header.total_len, ONE),
        (header.total_len - ONE, 2 * ONE),
        (1 << 40, ONE),
        (i64::MAX as u64 & !(ONE - 1), ONE),
    ] {
        let error = errno(device.map(offset, len, PROT_READ));
        // The largest offsets do not get as far as the module.
        assert!(matches!(error, libc::EINVAL | libc::EOVERFLOW), "{offset:#x} {len:#x}: {error}");
    }
    assert!(device.map(header.slots_offset + ONE, ONE, PROT_READ).is_ok(), "part of a part");
}

#[test]
fn each_file_has_its_own_control_page_and_reader_status() {
    let (owner, header, index) = stream();
    let other = Device::open().unwrap();
    let attached = other.attach(&owner, ioctl::READER_LOSSY).unwrap();
    assert_ne!(index, attached.reader_index);
    let first = owner.map(header.control_offset, ONE, RW).unwrap();
    let second = other.map(header.control_offset, ONE, RW).unwrap();
    first.word(2048).store(0x1111);
    second.word(2048).store(0x2222);
    assert_eq!((first.word(2048).load(), second.word(2048).load()), (0x1111, 0x2222));
    let status = |index: u32| header.reader_status_offset + u64::from(index) * ONE;
    assert!(owner.map(status(index), ONE, PROT_READ).is_ok());
    assert_eq!(errno(owner.map(status(index), ONE, RW)), libc::EPERM);
    assert!(other.map(status(attached.reader_index), ONE, PROT_READ).is_ok());
    assert_eq!(errno(other.map(status(index), ONE, PROT_READ)), libc::EPERM);
    assert_eq!(errno(other.map(status(0), 2 * ONE, PROT_READ)), libc::EPERM);
}

#[test]
fn a_control_page_that_somebody_still_holds_is_given_to_nobody_else() {
    let (owner, header, _) = stream();
    let attach = || {
        let device = Device::open().unwrap();
        let index = device.attach(&owner, ioctl::READER_LOSSY).unwrap().reader_index;
        (device, index)
    };
    let (first, held) = attach();
    let (reading, writing) = io::pipe().unwrap();
    {
        let page = first.map(header.control_offset, ONE, RW).unwrap();
        let part = libc::iovec { iov_base: page.address().cast(), iov_len: PAGE };
        // SAFETY: A mapped page. The pipe refers to it from now on, whatever is unmapped.
        let moved = unsafe { libc::vmsplice(writing.as_raw_fd(), &part, 1, 0) };
        assert_eq!(moved, PAGE as isize);
    }
    drop(first);
    let (second, other) = attach();
    assert_ne!(other, held, "the page of the reader before is in the pipe");
    drop((reading, writing));
    let (_third, again) = attach();
    assert_eq!(again, held, "nobody holds it any more");
    drop(second);
}

#[test]
fn when_all_control_pages_are_held_there_is_no_place_for_a_reader() {
    let owner = Device::open().unwrap();
    owner.create(ioctl::Create { reader: ioctl::READER_NONE, ..small() }).unwrap();
    let header = header_of(&owner.map(0, ONE, PROT_READ).unwrap());
    let (reading, writing) = io::pipe().unwrap();
    for _ in 0..READERS_MAX {
        let device = Device::open().unwrap();
        device.attach(&owner, ioctl::READER_LOSSY).unwrap();
        let page = device.map(header.control_offset, ONE, RW).unwrap();
        let part = libc::iovec { iov_base: page.address().cast(), iov_len: PAGE };
        // SAFETY: As above.
        assert_eq!(unsafe { libc::vmsplice(writing.as_raw_fd(), &part, 1, 0) }, PAGE as isize);
    }
    let late = Device::open().unwrap();
    assert_eq!(errno(late.attach(&owner, ioctl::READER_LOSSY)), libc::ENOSPC);
    late.attach(&owner, ioctl::READER_NONE).unwrap();
    drop((reading, writing));
    Device::open().unwrap().attach(&owner, ioctl::READER_LOSSY).unwrap();
}

#[test]
fn the_owner_and_who_only_looks_see_the_status_of_all_readers() {
    let (owner, header, _) = stream();
    let reader = Device::open().unwrap();
    let at = reader.attach(&owner, ioctl::READER_LOSSY).unwrap().reader_index;
    let looking = Device::open().unwrap();
    let answer = looking.attach(&owner, ioctl::READER_NONE).unwrap();
    assert_eq!((answer.reader_index, answer.start), (ioctl::NO_READER, 0));
    assert_eq!(owner.stats().unwrap().1.readers, 2, "it is no reader");
    let all = u64::from(header.reader_status_count) * ONE;
    for device in [&owner, &looking] {
        assert_eq!(errno(device.map(header.reader_status_offset, all, RW)), libc::EPERM);
        let pages = device.map(header.reader_status_offset, all, PROT_READ).unwrap();
        assert_eq!(pages.word(at as usize * PAGE + 8).load(), 1, "an active reader");
        assert_eq!(errno(pages.protect(RW)), libc::EACCES);
    }
    assert!(looking.map(header.status_offset, header.status_len, PROT_READ).is_ok());
    assert_eq!(errno(looking.map(header.control_offset, ONE, RW)), libc::EPERM);
    assert_eq!(errno(looking.plain(ioctl::START)), libc::EPERM);
}

#[test]
fn a_file_that_reads_nothing_has_no_control_page() {
    let device = Device::open().unwrap();
    let request = ioctl::Create { reader: ioctl::READER_NONE, ..small() };
    assert_eq!(device.create(request).unwrap().reader_index, ioctl::NO_READER);
    let header = header_of(&device.map(0, ONE, PROT_READ).unwrap());
    assert_eq!(errno(device.map(header.control_offset, ONE, RW)), libc::EPERM);
    assert_eq!(device.poll(Duration::ZERO).unwrap() & libc::POLLERR, libc::POLLERR);
}

#[test]
fn a_file_without_a_stream_maps_nothing_and_one_open_for_reading_writes_nothing() {
    assert_eq!(errno(Device::open().unwrap().map(0, ONE, PROT_READ)), libc::EBUSY);
    let device = Device::open_read_only().unwrap();
    device.create(small()).unwrap();
    let header = header_of(&device.map(0, ONE, PROT_READ).unwrap());
    assert_eq!(errno(device.map(header.control_offset, ONE, RW)), libc::EACCES);
    let control = device.map(header.control_offset, ONE, PROT_READ).unwrap();
    assert_eq!(errno(control.protect(RW)), libc::EACCES);
}

#[test]
fn a_mapping_outlives_its_file_descriptor() {
    let mut reader = Reader::create(small()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    // The reader's device goes away, its mappings stay: the stream runs on.
    let Reader { device, status, header, .. } = reader;
    drop(device);
    // What was received grows also when the ring is full, which it soon is.
    let counters = |status: &Mapping| status.word(header.counters_offset as usize + 8).load();
    let before = counters(&status);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while counters(&status) == before {
        assert!(std::time::Instant::now() < deadline, "the stream ended with its descriptor");
    }
    reader = Reader::create(small()).unwrap();
    drop(status);
    drop(reader);
}

#[test]
fn a_child_does_not_inherit_the_mapping() {
    let (device, header, _) = stream();
    let mapping = device.map(header.status_offset, ONE, PROT_READ).unwrap();
    // SAFETY: The child touches one word and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: In the child; the signal that the test is about would otherwise print a message.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        let word = mapping.word(0).load();
        // SAFETY: Ends the child without running anything else.
        unsafe { libc::_exit(i32::from(word == 0)) };
    }
    let mut status = 0;
    // SAFETY: Our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
}

#[test]
fn mremap_does_not_grow_and_moving_or_unmapping_a_part_is_harmless() {
    let (device, header, _) = stream();
    let mapping = device.map(header.slots_offset, 4 * ONE, PROT_READ).unwrap();
    let page = PAGE;
    // SAFETY: The mapping's own pages; what is left of it is unmapped by its drop.
    unsafe {
        let grown =
            libc::mremap(mapping.address().cast(), 4 * page, 8 * page, libc::MREMAP_MAYMOVE);
        assert_eq!(grown, libc::MAP_FAILED);
        let moved = libc::mremap(mapping.address().cast(), page, page, libc::MREMAP_MAYMOVE);
        assert_ne!(moved, libc::MAP_FAILED);
        assert_eq!(libc::munmap(mapping.address().add(2 * page).cast(), page), 0);
        let last = mapping.address().add(3 * page);
        assert_eq!(last.cast::<u64>().read_volatile(), 0);
        libc::madvise(last.cast(), page, libc::MADV_DONTNEED);
    }
    device.plain(ioctl::START).unwrap();
    assert!(device.stats().is_ok());
}

#[test]
fn the_pages_serve_system_calls_that_pin_them() {
    let mut reader = Reader::create(small()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    reader.collect(1, Duration::from_secs(10));
    reader.device.plain(ioctl::STOP).unwrap();
    let slots = reader.device.map(reader.header.slots_offset, ONE, PROT_READ).unwrap();
    let expected: Vec<u8> =
        slots.words().iter().flat_map(|word| word.load().to_le_bytes()).collect();
    let mut pipe = [0; 2];
    // SAFETY: Room for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: Nobody else has them.
    let (from, to) = unsafe { (owned(pipe[0]), owned(pipe[1])) };
    let part = libc::iovec { iov_base: slots.address().cast(), iov_len: PAGE };
    // SAFETY: The pages stay mapped while the pipe holds them. vmsplice pins them, as direct and
    // zero-copy I/O do.
    let moved = unsafe { libc::vmsplice(to.as_raw_fd(), &part, 1, 0) };
    assert_eq!(moved, PAGE as isize, "{}", std::io::Error::last_os_error());
    let mut bytes = vec![0; PAGE];
    File::from(from).read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
    assert!(bytes.iter().any(|byte| *byte != 0));
}

/// Runs `act` in a child of this process that is in `group`; what it returns, or the signal that ended it.
fn in_group(group: &Group, act: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: The child runs `act` and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        group.enter();
        let result = act();
        // SAFETY: Ends the child.
        unsafe { libc::_exit(result) };
    }
    let mut status = 0;
    // SAFETY: Waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(libc::WTERMSIG(status))
    }
}

#[test]
fn a_control_group_pays_for_its_streams_and_gets_none_beyond_its_limit() {
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
    let group = Group::empty("tight");
    group.set("memory.max", "8M");
    group.set("memory.swap.max", "0");
    let create = |ring_order: u32| {
        let request = ioctl::Create { ring_order, ..Default::default() };
        Device::open().unwrap().create_udp(request).err().map_or(0, |e| e.raw_os_error().unwrap())
    };
    // 2 MiB of slots, and 32 of them.
    for _ in 0..20 {
        assert_eq!(in_group(&group, || create(10)), Ok(0));
        assert_eq!(in_group(&group, || create(14)), Ok(libc::ENOMEM));
    }
    until("all of it is given back", || {
        let current: u64 = group.get("memory.current").trim().parse().unwrap();
        current < 1 << 20
    });
    let events = group.get("memory.events");
    assert!(events.contains("oom_kill 0"), "{events}");
}
