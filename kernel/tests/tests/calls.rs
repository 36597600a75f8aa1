//! The calls of the device: sizes, errors, who may do what.

#![allow(unsafe_code)] // Calls with arguments that are wrong on purpose.

use rtp_mgr_kernel_tests::{Argument, Device, Reader, errno, list};
use rtp_mgr_ring::abi::{self, StreamCounters, ioctl};

fn small() -> ioctl::Create {
    ioctl::Create { ring_order: 4, packet_len: 64, slot_stride: 64, ..Default::default() }
}

/// A call with bytes as they are.
fn raw(device: &Device, number: u32, bytes: &mut [u64]) -> std::io::Result<()> {
    // SAFETY: Callers give a buffer of a page, and the module writes no more than a size up to that.
    unsafe { device.raw_call(number, bytes.as_mut_ptr().cast()) }
}

fn sized(size: u32) -> Vec<u64> {
    let mut bytes = vec![0; 1024];
    bytes[0] = u64::from(size);
    bytes
}

#[test]
fn the_version_is_that_of_the_abi() {
    let mut version = ioctl::Version::default();
    Device::open().unwrap().call(ioctl::VERSION, &mut version).unwrap();
    assert_eq!((version.abi_major, version.abi_minor), (abi::ABI_MAJOR, abi::ABI_MINOR));
    assert_ne!(version.features & abi::feature::SIMULATED, 0);
    assert_eq!(version.release[31], 0);
}

#[test]
fn older_and_newer_callers_are_understood() {
    let device = Device::open().unwrap();
    // Older: knows only the size and the version.
    let mut bytes = sized(8);
    bytes[1] = 0x5555;
    raw(&device, ioctl::VERSION, &mut bytes).unwrap();
    assert_eq!(bytes[0] >> 32, u64::from(abi::ABI_MAJOR) | u64::from(abi::ABI_MINOR) << 16);
    assert_eq!(bytes[1], 0x5555, "nothing beyond what it knows is written");
    // Newer: zeros where we know nothing.
    let len = size_of::<ioctl::Version>() as u32;
    let mut bytes = sized(len + 64);
    raw(&device, ioctl::VERSION, &mut bytes).unwrap();
    assert_eq!(bytes[0] as u32, len, "how much was understood");
    for at in [len / 8, len / 8 + 7] {
        let mut bytes = sized(len + 64);
        bytes[at as usize] = 1 << 40;
        assert_eq!(errno(raw(&device, ioctl::VERSION, &mut bytes)), libc::E2BIG);
    }
    let mut longest = sized(4096);
    raw(&device, ioctl::VERSION, &mut longest).unwrap();
    for (size, error) in
        [(0, libc::EINVAL), (7, libc::EINVAL), (4097, libc::E2BIG), (u32::MAX, libc::E2BIG)]
    {
        assert_eq!(errno(raw(&device, ioctl::VERSION, &mut sized(size))), error, "{size}");
    }
    // The size in the call's number is not looked at.
    let other_size = ioctl::VERSION & !(0x3fff << 16) | 8 << 16;
    raw(&device, other_size, &mut sized(len)).unwrap();
}

#[test]
fn what_is_no_call_is_refused() {
    let device = Device::open().unwrap();
    for number in [0, 14, 200, 255] {
        let call = ioctl::VERSION & !0xff | number;
        assert_eq!(errno(raw(&device, call, &mut sized(48))), libc::ENOTTY, "{number}");
    }
    let other_type = ioctl::VERSION ^ 0x100;
    assert_eq!(errno(raw(&device, other_type, &mut sized(48))), libc::ENOTTY);
    for address in [std::ptr::null_mut(), std::ptr::dangling_mut(), usize::MAX as *mut libc::c_void]
    {
        for number in 1..=13 {
            // SAFETY: Nothing is there, which is the point.
            let result = unsafe { device.raw_call(ioctl::VERSION & !0xff | number, address) };
            assert_eq!(errno(result), libc::EFAULT, "{number}");
        }
    }
}

#[test]
fn a_file_without_a_stream_is_in_the_wrong_state() {
    let device = Device::open().unwrap();
    for call in [ioctl::START, ioctl::STOP, ioctl::RESET_STATS, ioctl::KICK] {
        assert_eq!(errno(device.plain(call)), libc::EBUSY);
    }
    assert_eq!(errno(device.stats()), libc::EBUSY);
    assert_eq!(errno(device.get(ioctl::SETTING_BURST)), libc::EBUSY);
    assert_eq!(errno(device.call(ioctl::ADD_LEG, &mut ioctl::AddLeg::default())), libc::EBUSY);
    let empty = Device::open().unwrap();
    assert_eq!(errno(device.attach(&empty, ioctl::READER_LOSSY)), libc::EBUSY);
    device.create(small()).unwrap();
    assert_eq!(errno(device.create(small())), libc::EBUSY, "one stream for a file");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let refused = |change: fn(&mut ioctl::Create)| {
        let mut request = ioctl::Create { source: ioctl::SOURCE_SIMULATED, ..small() };
        change(&mut request);
        errno(Device::open().unwrap().call(ioctl::CREATE, &mut request))
    };
    let invalid: [fn(&mut ioctl::Create); 17] = [
        |r| r.flags = 1,
        |r| r.legs = 3,
        |r| r.direction = 2,
        |r| r.source = 2,
        |r| r.ring_order = 3,
        |r| r.ring_order = 21,
        |r| r.ring_order = u32::MAX,
        |r| r.slot_stride = 63,
        |r| r.slot_stride = 65_537,
        |r| r.sources = 65_536,
        |r| r.pattern = 2,
        |r| r.packet_len = 7,
        |r| r.packet_len = 65,
        |r| r.burst = 65_537,
        |r| r.reader = 3,
        |r| r.interval_ns = 99_999,
        |r| r.interval_ns = 10_000_000_001,
    ];
    for (index, change) in invalid.into_iter().enumerate() {
        assert_eq!(refused(change), libc::EINVAL, "number {index}");
    }
    let udp: [fn(&mut ioctl::Create); 9] = [
        |r| r.flags = 1 << 4,
        |r| r.legs = 2,
        |r| (r.legs, r.flags) = (3, ioctl::CREATE_ORDERED),
        |r| r.reorder_ns = 1,
        |r| (r.reorder_ns, r.flags) = (60_000_000_001, ioctl::CREATE_ORDERED),
        |r| r.payload_type = 128,
        |r| r.pattern = 1,
        |r| r.packet_len = 64,
        |r| r.interval_ns = 1_000_000,
    ];
    for (index, change) in udp.into_iter().enumerate() {
        let mut request = ioctl::Create { ring_order: 4, ..Default::default() };
        change(&mut request);
        assert_eq!(errno(Device::open().unwrap().create_udp(request)), libc::EINVAL, "UDP {index}");
    }
    assert_eq!(
        refused(|r| {
            r.ring_order = 20;
            r.slot_stride = 65_536;
            r.packet_len = 0;
        }),
        libc::ENOMEM,
        "over the limit of one stream"
    );
    let device = Device::open().unwrap();
    device.create(small()).unwrap();
    assert_eq!(errno(device.call(ioctl::ADD_LEG, &mut ioctl::AddLeg::default())), libc::EOPNOTSUPP);
    assert_eq!(errno(device.plain(ioctl::KICK)), libc::EOPNOTSUPP);
    let mut flagged = ioctl::Plain { flags: 1, ..Default::default() };
    assert_eq!(errno(device.call(ioctl::START, &mut flagged)), libc::EINVAL);
}

#[test]
fn only_the_owner_steers_and_every_reader_may_look() {
    let owner = Device::open().unwrap();
    owner.create(small()).unwrap();
    let reader = Device::open().unwrap();
    reader.attach(&owner, ioctl::READER_LOSSY).unwrap();
    for call in [ioctl::START, ioctl::STOP, ioctl::RESET_STATS] {
        assert_eq!(errno(reader.plain(call)), libc::EPERM);
    }
    assert_eq!(errno(reader.set(ioctl::SETTING_BURST, 1)), libc::EPERM);
    assert!(reader.stats().is_ok());
    assert!(reader.get(ioctl::SETTING_BURST).is_ok());
    let through_reader = Device::open().unwrap();
    through_reader.attach(&reader, ioctl::READER_LOSSY).unwrap();
}

#[test]
fn readers_are_limited_and_their_places_are_used_again() {
    let owner = Device::open().unwrap();
    owner.create(small()).unwrap();
    for _ in 0..3 {
        let readers: Vec<_> = (1..abi::READERS_MAX)
            .map(|_| Reader::attach(&owner, ioctl::READER_LOSSY).unwrap())
            .collect();
        let one_more = Device::open().unwrap();
        assert_eq!(errno(one_more.attach(&owner, ioctl::READER_LOSSY)), libc::ENOSPC);
        assert_eq!(readers.len(), abi::READERS_MAX - 1);
    }
    assert_eq!(owner.stats().unwrap().1.readers, 1);
}

#[test]
fn a_foreign_file_is_no_stream() {
    let device = Device::open().unwrap();
    for (fd, id, error) in [
        (0, 0, libc::EINVAL),
        (9_999, 0, libc::EBADF),
        (-2, 0, libc::EINVAL),
        (-1, 0, libc::EINVAL),
        (-1, u64::MAX, libc::ENOENT),
        (0, 1, libc::EINVAL),
    ] {
        let mut request =
            ioctl::Attach { fd, id, reader: ioctl::READER_LOSSY, ..Default::default() };
        assert_eq!(errno(device.call(ioctl::ATTACH, &mut request)), error, "{fd} {id}");
    }
    assert_eq!(errno(device.attach(&device, ioctl::READER_LOSSY)), libc::EBUSY, "itself");
}

/// Runs something as another user: the identity of one thread.
fn as_user(uid: libc::uid_t, act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                // SAFETY: Only this thread changes, and it ends here.
                let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
                assert_eq!(done, 0);
                act();
            })
            .join()
            .unwrap();
    });
}

#[test]
fn a_user_sees_its_own_streams_and_root_sees_all() {
    let files: Vec<_> = (0..4).map(|_| Device::open().unwrap()).collect();
    let [mine, theirs, asking, attaching] = &files[..] else { panic!() };
    let my_id = mine.create(small()).unwrap().id;
    as_user(65_534, || {
        let their_id = theirs.create(small()).unwrap().id;
        let seen = list(asking);
        assert_eq!(seen.iter().map(|entry| entry.id).collect::<Vec<_>>(), [their_id]);
        assert_eq!(seen[0].owner_uid, 65_534);
        assert_eq!(seen[0].owner_pid, std::process::id());
        assert_eq!(seen[0].slot_count, 16);
        let mut by_id =
            ioctl::Attach { fd: -1, id: my_id, reader: ioctl::READER_LOSSY, ..Default::default() };
        assert_eq!(errno(attaching.call(ioctl::ATTACH, &mut by_id)), libc::EPERM);
    });
    let seen: Vec<_> = list(asking).iter().map(|entry| entry.id).collect();
    assert_eq!(seen.len(), 2);
    assert!(seen.contains(&my_id));
    let mut by_id =
        ioctl::Attach { fd: -1, id: my_id, reader: ioctl::READER_LOSSY, ..Default::default() };
    attaching.call(ioctl::ATTACH, &mut by_id).unwrap();
    let mut small_room = ioctl::List { entry_size: 8, room: 0, ..Default::default() };
    asking.call(ioctl::LIST, &mut small_room).unwrap();
    assert_eq!(small_room.count, 2, "the count does not depend on the room");
}

#[test]
fn a_list_entry_of_an_older_caller_is_cut() {
    let device = Device::open().unwrap();
    let id = device.create(small()).unwrap().id;
    let mut entries = [u64::MAX; 4];
    let mut list = ioctl::List {
        entry_size: 16,
        entries: entries.as_mut_ptr() as u64,
        room: 1,
        ..Default::default()
    };
    device.call(ioctl::LIST, &mut list).unwrap();
    assert_eq!(entries[0], id);
    assert_eq!(entries[2..], [u64::MAX; 2]);
    list.entry_size = 7;
    assert_eq!(errno(device.call(ioctl::LIST, &mut list)), libc::EINVAL);
}

#[test]
fn counters_of_an_older_caller_are_cut() {
    let device = Device::open().unwrap();
    device.create(small()).unwrap();
    let mut bytes = sized(24);
    bytes[3] = 0x77;
    raw(&device, ioctl::STATS, &mut bytes).unwrap();
    assert_eq!((bytes[0] >> 32, bytes[3]), (abi::STATE_CONFIGURED, 0x77));
    let mut stats = ioctl::Stats::default();
    stats.set_size(size_of::<ioctl::Stats>() as u32);
    device.call(ioctl::STATS, &mut stats).unwrap();
    assert_eq!(StreamCounters::from_words(stats.counters).received, 0);
}

#[test]
fn a_32_bit_caller_is_refused() {
    let device = Device::open().unwrap();
    // SAFETY: The child makes one system call by the 32-bit entry and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let result: i32;
        // SAFETY: ioctl by its 32-bit number; the argument is not looked at.
        unsafe {
            std::arch::asm!(
                "push rbx", "mov ebx, {fd:e}", "int 0x80", "pop rbx",
                fd = in(reg) device.fd(),
                inlateout("eax") 54 => result,
                in("ecx") ioctl::VERSION,
                in("edx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
            libc::_exit(if result == -libc::EOPNOTSUPP { 0 } else { 1 });
        }
    }
    let mut status = 0;
    // SAFETY: Our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV {
        rtp_mgr_kernel_tests::not_run("this kernel runs no 32-bit programs");
        return;
    }
    assert!(libc::WIFEXITED(status));
    assert_eq!(libc::WEXITSTATUS(status), 0);
}
