//! Loading, unloading, and what is left when parties disappear. Run alone: these tests unload the module.

#![allow(unsafe_code)] // Loading modules, fork, kill.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::dummy::{self, Dummy};
use rtp_mgr_kernel_tests::tracing::tracing;
use rtp_mgr_kernel_tests::transmit::{self, Writer};
use rtp_mgr_kernel_tests::{DEVICE, Device, Reader, errno, header_of};
use rtp_mgr_ring::abi::{PAGE, StreamCounters, ioctl};

const LIMIT: Duration = Duration::from_secs(30);

fn load(parameters: &str) -> io::Result<()> {
    let path = std::env::var("RTP_MGR_MODULE").expect("RTP_MGR_MODULE: the module's file");
    let module = File::open(path)?;
    let parameters = CString::new(parameters).unwrap();
    // SAFETY: A file and a text.
    match unsafe {
        libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), parameters.as_ptr(), 0)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unload() -> io::Result<()> {
    // SAFETY: A text.
    match unsafe { libc::syscall(libc::SYS_delete_module, c"rtp_mgr".as_ptr(), libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unloads once nobody uses the module any more.
fn unload_when_free() {
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = unload() {
        assert_eq!(error.raw_os_error(), Some(libc::EWOULDBLOCK), "{error}");
        assert!(Instant::now() < deadline, "something still holds the module");
        std::thread::yield_now();
    }
}

fn major() -> Option<u32> {
    let devices = fs::read_to_string("/proc/devices").unwrap();
    let line = devices.lines().find(|line| line.ends_with(" rtp_mgr"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn small() -> ioctl::Create {
    ioctl::Create { ring_order: 6, interval_ns: 1_000_000, packet_len: 256, ..Default::default() }
}

/// Kernel memory in use that a leak would show in, bytes.
fn kernel_memory() -> u64 {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let value = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (value("SUnreclaim:") + value("VmallocUsed:")) * 1024
}

#[test]
fn the_device_appears_with_the_module_and_goes_with_it() {
    assert!(major().is_some() && fs::exists(DEVICE).unwrap());
    unload_when_free();
    assert!(major().is_none() && !fs::exists(DEVICE).unwrap());
    assert!(!fs::exists("/sys/class/rtp_mgr").unwrap());
    load("").unwrap();
    assert!(fs::exists("/sys/class/rtp_mgr/rtp_mgr").unwrap());
    // As the source document's line does it.
    let node = CString::new("/tmp/rtp_mgr_node").unwrap();
    let number = libc::makedev(major().unwrap(), 0);
    // SAFETY: A text and numbers.
    assert_eq!(unsafe { libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o600, number) }, 0);
    assert!(File::open("/tmp/rtp_mgr_node").is_ok());
    fs::remove_file("/tmp/rtp_mgr_node").unwrap();
}

#[test]
fn parameters_are_taken_and_bad_ones_refused() {
    unload_when_free();
    for bad in [
        "ring_order=3",
        "ring_order=21",
        "ring_order=x",
        "max_ring_mb=0",
        "max_user_mb=0",
        "dma_interval_ms=0",
        "dma_interval_ms=10001",
    ] {
        assert_eq!(errno(load(bad)), libc::EINVAL, "{bad}");
        assert!(major().is_none());
    }
    load("ring_order=5 dma_interval_ms=7 max_ring_mb=4 max_user_mb=6").unwrap();
    let device = Device::open().unwrap();
    device.create(ioctl::Create::default()).unwrap();
    let header = header_of(&device.map(0, PAGE as u64, libc::PROT_READ).unwrap());
    assert_eq!(header.slot_count, 32);
    assert_eq!(device.get(ioctl::SETTING_INTERVAL_NS).unwrap(), 7_000_000);
    // 1,024 positions of 4,096 bytes are over 4 MiB; 512 are about half of it, and three of those are
    // over what one user may have.
    let request = |ring_order| ioctl::Create { ring_order, slot_stride: 4_096, ..small() };
    assert_eq!(errno(Device::open().unwrap().create(request(10))), libc::ENOMEM);
    let first = Device::open().unwrap();
    first.create(request(9)).unwrap();
    let second = Device::open().unwrap();
    second.create(request(9)).unwrap();
    let third = Device::open().unwrap();
    assert_eq!(errno(third.create(request(9))), libc::ENOMEM);
    drop(first);
    third.create(request(9)).unwrap();
    drop((device, second, third));
    unload_when_free();
    load("").unwrap();
}

#[test]
fn a_user_has_no_more_streams_than_allowed() {
    let numbers = |device: &Device| {
        let mut version = ioctl::Version::default();
        device.call(ioctl::VERSION, &mut version).unwrap();
        (version.user_streams, version.max_user_streams)
    };
    unload_when_free();
    load("max_user_streams=3").unwrap();
    let asking = Device::open().unwrap();
    assert_eq!(numbers(&asking), (0, 3));
    let devices: Vec<_> = (0..4).map(|_| Device::open().unwrap()).collect();
    devices[0].create(small()).unwrap();
    devices[1].create_udp(ioctl::Create { ring_order: 4, ..Default::default() }).unwrap();
    let transmit = ioctl::Create { ring_order: 4, ..transmit::request() };
    devices[2].call(ioctl::CREATE, &mut transmit.clone()).unwrap();
    assert_eq!(errno(devices[3].create(small())), libc::EDQUOT);
    assert_eq!(numbers(&asking), (3, 3));
    // Readers are no streams, others have their own, and a file that was refused can be used again.
    let reader = Device::open().unwrap();
    reader.attach(&devices[0], ioctl::READER_LOSSY).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let device = Device::open().unwrap();
            // SAFETY: Only this thread changes, and it ends here.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
            assert_eq!(numbers(&device), (0, 3));
            device.create(small()).unwrap();
            assert_eq!(numbers(&device), (1, 3));
        });
        other.join().unwrap();
    });
    let [first, .., refused] = &devices[..] else { panic!() };
    drop(reader);
    refused.attach(first, ioctl::READER_LOSSY).unwrap();
    let mut devices = devices;
    drop(devices.remove(1));
    assert_eq!(numbers(&asking), (2, 3));
    let again = Device::open().unwrap();
    again.create(small()).unwrap();
    drop((devices, again, asking));
    unload_when_free();
    load("max_user_streams=0").unwrap();
    let devices: Vec<_> = (0..300).map(|_| Device::open().unwrap()).collect();
    let tiny = ioctl::Create { ring_order: 4, slot_stride: 64, packet_len: 64, ..small() };
    for device in &devices {
        device.create(tiny).unwrap();
    }
    assert_eq!(numbers(&devices[0]), (300, 0));
    drop(devices);
    unload_when_free();
    load("").unwrap();
}

#[test]
fn the_module_stays_while_it_is_open_or_mapped() {
    let device = Device::open().unwrap();
    assert_eq!(errno(unload()), libc::EWOULDBLOCK);
    device.create(small()).unwrap();
    device.plain(ioctl::START).unwrap();
    let mapping = device.map(0, PAGE as u64, libc::PROT_READ).unwrap();
    assert_eq!(errno(unload()), libc::EWOULDBLOCK);
    drop(device);
    assert_eq!(errno(unload()), libc::EWOULDBLOCK, "the mapping holds it");
    drop(mapping);
    unload_when_free();
    load("").unwrap();
}

#[test]
fn what_a_killed_owner_leaves_goes_with_it() {
    let before = kernel_memory();
    for round in 0..20 {
        let mut pipe = [0; 2];
        // SAFETY: Room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: The child uses its own stream until it is killed.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let reader = Reader::create(small());
            if let Ok(mut reader) = reader {
                let started = reader.device.plain(ioctl::START).is_ok();
                // SAFETY: One byte to the parent.
                unsafe { libc::write(pipe[1], [u8::from(started)].as_ptr().cast(), 1) };
                loop {
                    reader.take();
                }
            }
            // SAFETY: Ends the child.
            unsafe { libc::_exit(1) };
        }
        let mut started = 0_u8;
        let mut status = 0;
        // SAFETY: Our child and our pipe.
        unsafe {
            libc::close(pipe[1]);
            assert_eq!(libc::read(pipe[0], (&raw mut started).cast(), 1), 1, "round {round}");
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &mut status, 0);
            libc::close(pipe[0]);
        }
        assert_eq!(started, 1);
    }
    unload_when_free();
    load("").unwrap();
    let after = kernel_memory();
    assert!(after < before + (4 << 20), "{before} before, {after} after");
}

/// A stream whose train of packets is in the queue of `dummy`, read from its ring.
fn queued(dummy: &Dummy) -> Writer {
    let create = ioctl::Create { ring_order: 9, ..transmit::request() };
    let mut writer = dummy.prompt(create, LIMIT);
    dummy.queue("delay 100s");
    (0..46).for_each(|number| writer.fill(&transmit::numbered(number, dummy::LEN)));
    writer.commit();
    let deadline = Instant::now() + LIMIT;
    while writer.counters().sent != writer.next {
        assert!(Instant::now() < deadline, "{:?}", writer.counters());
    }
    assert_eq!(writer.room(), 512 - 46);
    writer
}

#[test]
fn what_the_network_reads_of_a_stream_that_is_gone_holds_the_module_until_it_has() {
    let before = kernel_memory();
    for round in 0..6 {
        let dummy = Dummy::new("zc0", "10.88.0");
        if round % 2 == 0 {
            drop(queued(&dummy));
        } else {
            let mut pipe = [0; 2];
            // SAFETY: Room for two descriptors.
            assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
            // SAFETY: The child uses its own stream until it is killed.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let _writer = queued(&dummy);
                loop {
                    // SAFETY: One byte to the parent, then a rest.
                    unsafe {
                        libc::write(pipe[1], [1_u8].as_ptr().cast(), 1);
                        libc::pause();
                    }
                }
            }
            let (mut queued, mut status) = (0_u8, 0);
            // SAFETY: Our child and our pipe.
            unsafe {
                libc::close(pipe[1]);
                assert_eq!(libc::read(pipe[0], (&raw mut queued).cast(), 1), 1, "round {round}");
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &mut status, 0);
                libc::close(pipe[0]);
            }
        }
        for _ in 0..20 {
            assert_eq!(errno(unload()), libc::EWOULDBLOCK, "round {round}");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The queue goes with the device, and the module as soon as it may: while the last packets end.
        std::thread::scope(|scope| {
            scope.spawn(|| drop(dummy));
            unload_when_free();
        });
        load("").unwrap();
    }
    let after = kernel_memory();
    assert!(after < before + (4 << 20), "{before} before, {after} after");
}

#[test]
fn readers_go_on_when_the_owner_is_gone() {
    let owner = Reader::create(small()).unwrap();
    owner.device.plain(ioctl::START).unwrap();
    let mut reader = Reader::attach(&owner.device, ioctl::READER_LOSSY).unwrap();
    drop(owner);
    reader.collect(200, LIMIT);
    assert_eq!(reader.device.stats().unwrap().1.readers, 1);
}

/// Ends the storm also when a test fails in the middle of it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn loading_and_unloading_under_a_storm_of_opens_leaves_nothing() {
    let over = AtomicBool::new(false);
    let opened = AtomicU64::new(0);
    let before = kernel_memory();
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for pause in 1..=3 {
            let (over, opened) = (&over, &opened);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Leaves moments in which nobody has it open: otherwise it is never unloaded.
                    std::thread::sleep(Duration::from_millis(3 * pause));
                    // Sometimes the device is not there, or just going.
                    let Ok(device) = Device::open() else { continue };
                    opened.fetch_add(1, Ordering::Relaxed);
                    device.create(small()).unwrap();
                    device.plain(ioctl::START).unwrap();
                    let mapping = device.map(0, PAGE as u64, libc::PROT_READ).unwrap();
                    drop(device);
                    drop(mapping);
                }
            });
        }
        for _ in 0..100 {
            unload_when_free();
            load("").unwrap();
        }
    });
    assert!(opened.load(Ordering::Relaxed) > 0, "the storm never found the device");
    unload_when_free();
    load("").unwrap();
    let after = kernel_memory();
    assert!(after < before + (8 << 20), "{before} before, {after} after");
}

#[test]
fn fdinfo_tells_of_the_stream() {
    let mut reader = Reader::create(small()).unwrap();
    let read = |reader: &Reader| {
        fs::read_to_string(format!("/proc/self/fdinfo/{}", reader.device.fd())).unwrap()
    };
    assert!(read(&reader).contains("rtp-state:\tconfigured"));
    reader.device.plain(ioctl::START).unwrap();
    reader.collect(64, LIMIT);
    let text = read(&reader);
    for line in ["rtp-state:\trunning", "rtp-positions:\t64", "rtp-readers:\t1", "rtp-reader:\t0"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let empty = Device::open().unwrap();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", empty.fd())).unwrap();
    assert!(!text.contains("rtp-"));
}

/// By CPU: for what part of a trace it was in the softirq of timers.
fn timer_shares(trace: &str) -> Vec<f64> {
    let mut cpus = vec![(None, None, 0.0, 0.0); 64];
    for line in trace.lines().filter(|line| line.contains("action=HRTIMER]")) {
        let (before, event) = line.split_once(": softirq_").expect("an event");
        let cpu = before.split_once('[').and_then(|(_, rest)| rest.get(..3)).expect("a CPU");
        let time: f64 = before.rsplit(' ').next().unwrap().parse().expect("seconds");
        let (first, entry, last, busy) = &mut cpus[cpu.parse::<usize>().unwrap()];
        first.get_or_insert(time);
        *last = time;
        match event.starts_with("entry") {
            true => *entry = Some(time),
            false => *busy += entry.take().map_or(0.0, |entry| time - entry),
        }
    }
    let share = |(first, _, last, busy): &(Option<f64>, Option<f64>, f64, f64)| {
        first.map(|first| busy / (last - first))
    };
    cpus.iter().filter_map(share).collect()
}

#[test]
fn the_most_demanding_bursts_leave_half_of_a_cpu_alone() {
    let tracing = tracing();
    let device = Device::open().unwrap();
    let request = ioctl::Create {
        burst: 65_536,
        interval_ns: 100_000,
        packet_len: 8,
        reader: ioctl::READER_NONE,
        ..small()
    };
    device.create(request).unwrap();
    let status = device.map(0, PAGE as u64, libc::PROT_READ).unwrap();
    let offset = header_of(&status).counters_offset as usize + 8;
    let bursts = || status.word(offset + offset_of!(StreamCounters, bursts)).load();
    fs::write(format!("{tracing}/trace"), "").unwrap();
    let enable = |event: &str, on| {
        fs::write(format!("{tracing}/events/irq/softirq_{event}/enable"), on).unwrap();
    };
    enable("entry", "1");
    enable("exit", "1");
    device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    while bursts() < 5 {
        assert!(Instant::now() < deadline, "{} bursts in {LIMIT:?}", bursts());
        std::thread::sleep(Duration::from_millis(10));
    }
    device.plain(ioctl::STOP).unwrap();
    enable("entry", "0");
    enable("exit", "0");
    let trace = fs::read_to_string(format!("{tracing}/trace")).unwrap();
    let shares = timer_shares(&trace);
    println!("in the softirq of timers: {shares:?}");
    assert!(shares.iter().any(|share| *share > 0.2), "{shares:?}");
    assert!(shares.iter().all(|share| *share < 0.7), "{shares:?}");
}

#[test]
fn trace_events_exist_and_fire() {
    let tracing = tracing();
    let enable = format!("{tracing}/events/rtp_mgr/enable");
    fs::write(&enable, "1").unwrap();
    let mut reader = Reader::create(ioctl::Create { ring_order: 4, burst: 16, ..small() }).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    while reader.counters().dropped_ring_full == 0 {
        assert!(Instant::now() < deadline);
    }
    reader.collect(16, LIMIT);
    reader.device.plain(ioctl::STOP).unwrap();
    fs::write(&enable, "0").unwrap();
    let trace = fs::read_to_string(format!("{tracing}/trace")).unwrap();
    for event in ["rtp_mgr_publish: stream=", "rtp_mgr_drop: stream=", "rtp_mgr_wake: stream="] {
        assert!(trace.contains(event), "{event}");
    }
}
