//! User space that does what it must not: the kernel's own positions do not move, nothing is logged, and
//! other readers notice nothing.

#![allow(unsafe_code)] // Calls and mappings that are wrong on purpose.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::random::Random;
use rtp_mgr_kernel_tests::{Device, Reader};
use rtp_mgr_ring::abi::{PAGE, control, ioctl};
use rtp_mgr_ring::pattern;

const RUN: Duration = Duration::from_secs(3);

/// What hostile callers pass.
trait Interesting {
    fn interesting(&mut self) -> u64;
}

impl Interesting for Random {
    /// Mostly values at which something changes.
    fn interesting(&mut self) -> u64 {
        const VALUES: [u64; 16] = [
            0,
            1,
            2,
            4,
            8,
            16,
            63,
            64,
            4_095,
            4_096,
            65_536,
            1 << 31,
            u32::MAX as u64,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.next(),
            _ => VALUES[self.below(16) as usize],
        }
    }
}

fn busy() -> ioctl::Create {
    ioctl::Create {
        ring_order: 6,
        interval_ns: 500_000,
        burst: 8,
        packet_len: 128,
        ..Default::default()
    }
}

#[test]
fn scribbling_over_the_control_page_hurts_only_the_scribbler() {
    let mut honest =
        Reader::create(ioctl::Create { reader: ioctl::READER_LOSSY, ..busy() }).unwrap();
    let scribbler = Reader::attach(&honest.device, ioctl::READER_LOSSY).unwrap();
    honest.device.plain(ioctl::START).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            let (scribbler, over) = (&scribbler, &over);
            scope.spawn(move || {
                let mut random = Random(seed);
                let words = scribbler.control_page().words();
                while !over.load(Ordering::Relaxed) {
                    let at = match random.below(4) {
                        0 => random.below(words.len() as u64) as usize,
                        1 => control::WAKE_AT / 8,
                        _ => control::TAIL / 8,
                    };
                    words[at].store(random.interesting());
                }
            });
        }
        let deadline = Instant::now() + RUN;
        let mut next = 0;
        while Instant::now() < deadline {
            for item in honest.take().0 {
                let number = pattern::check(&item.bytes).expect("intact");
                assert!(number >= next, "in order");
                next = number + 1;
            }
            let counters = honest.counters();
            assert_eq!(counters.dropped_ring_full, 0, "nobody made the ring full");
        }
        over.store(true, Ordering::Relaxed);
        assert!(next > 0);
    });
    honest.device.plain(ioctl::STOP).unwrap();
    let counters = honest.counters();
    assert_eq!(counters.received, counters.published);
    // Nothing but publishing moves the head.
    assert_eq!(honest.ring().head.load(), counters.published);
    assert_eq!(honest.ring().claim.load(), counters.published);
    assert!(scribbler.own_status().violations > 0);
    assert_eq!(honest.own_status().violations, 0);
}

#[test]
fn a_reliable_scribbler_costs_packets_and_nothing_else() {
    let reader = Reader::create(busy()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let mut random = Random(7);
    let deadline = Instant::now() + RUN;
    while Instant::now() < deadline {
        reader.control().position.store(random.interesting());
        reader.control().wake_at.store(random.interesting());
        reader.device.poll(Duration::ZERO).unwrap();
    }
    reader.device.plain(ioctl::STOP).unwrap();
    let counters = reader.counters();
    assert_eq!(counters.received, counters.published + counters.dropped_ring_full);
    assert_eq!(reader.ring().head.load(), counters.published);
}

#[test]
fn random_calls_on_shared_files_from_several_threads() {
    let deadline = Instant::now() + RUN;
    let files: Vec<_> = (0..8).map(|_| Device::open().unwrap()).collect();
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let files = &files;
            scope.spawn(move || {
                let mut random = Random(seed * 77);
                let mut argument = vec![0_u64; PAGE / 8];
                while Instant::now() < deadline {
                    let file = &files[random.below(files.len() as u64) as usize];
                    for word in argument.iter_mut().take(12) {
                        *word = match random.below(3) {
                            0 => 0,
                            1 => random.below(64) << 32 | random.below(16),
                            _ => random.interesting(),
                        };
                    }
                    let size = [8, 16, 24, 48, 64, 80, 88, 376, 4_096, 5_000];
                    let first = argument[0] & 0xffff_ffff_0000_0000;
                    argument[0] = first | size[random.below(10) as usize];
                    let number = ioctl::VERSION & !0xff | random.below(14) as u32;
                    if number & 0xff == ioctl::LIST & 0xff {
                        // Its entries go where it says: to memory of ours, or nowhere.
                        argument[1] = [0, 1, u64::MAX][random.below(3) as usize];
                    }
                    // SAFETY: The buffer is as long as the largest size that is accepted.
                    let _ = unsafe { file.raw_call(number, argument.as_mut_ptr().cast()) };
                }
            });
        }
    });
    drop(files);
    assert!(Device::open().unwrap().create(busy()).is_ok(), "the device works as before");
}

#[test]
fn random_mappings_while_the_stream_starts_and_stops() {
    let owner = Device::open().unwrap();
    owner.create(busy()).unwrap();
    let deadline = Instant::now() + RUN;
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            let owner = &owner;
            scope.spawn(move || {
                let mut random = Random(seed * 1_001);
                while Instant::now() < deadline {
                    let offset = random.below(64) * PAGE as u64;
                    let len = (1 + random.below(8)) * PAGE as u64;
                    let protection = random.below(8) as i32;
                    let flags = [
                        libc::MAP_SHARED,
                        libc::MAP_PRIVATE,
                        libc::MAP_SHARED | libc::MAP_POPULATE,
                    ];
                    let flags = flags[random.below(3) as usize];
                    let Ok(mapping) = owner.map_as(offset, len, protection, flags) else {
                        continue;
                    };
                    let _ = mapping.protect(random.below(8) as i32);
                    let part = mapping.address().wrapping_add(PAGE).cast();
                    if mapping.len() > PAGE {
                        // SAFETY: Pages of this mapping, which nobody reads.
                        unsafe {
                            libc::madvise(
                                part,
                                PAGE,
                                [
                                    libc::MADV_DONTNEED,
                                    libc::MADV_FREE,
                                    libc::MADV_WILLNEED,
                                    libc::MADV_HUGEPAGE,
                                ][random.below(4) as usize],
                            );
                            libc::mremap(part, PAGE, PAGE * 2, 0);
                            libc::munmap(part, PAGE);
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < deadline {
                owner.plain(ioctl::START).unwrap();
                owner.set(ioctl::SETTING_INTERVAL_NS, 100_000).unwrap();
                owner.plain(ioctl::STOP).unwrap();
            }
        });
    });
    assert!(owner.stats().is_ok());
}

#[test]
fn readers_come_and_go_while_packets_flow() {
    let mut owner =
        Reader::create(ioctl::Create { reader: ioctl::READER_LOSSY, ..busy() }).unwrap();
    owner.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + RUN;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let device = owner.device.duplicate().unwrap();
            scope.spawn(move || {
                while Instant::now() < deadline {
                    let mut reader = Reader::attach(&device, ioctl::READER_LOSSY).unwrap();
                    reader.wait(1, Duration::from_millis(20)).unwrap();
                    for item in reader.take().0 {
                        assert!(pattern::check(&item.bytes).is_some(), "never a torn packet");
                    }
                }
            });
        }
        while Instant::now() < deadline {
            owner.take();
        }
    });
    assert_eq!(owner.device.stats().unwrap().1.readers, 1);
}
