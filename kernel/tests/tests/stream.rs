//! A stream of the simulated DMA engine as its readers see it.

use std::time::{Duration, Instant};

use rtp_mgr_kernel_tests::books::assert_receive_books as assert_books;
use rtp_mgr_kernel_tests::{Device, Reader, errno};
use rtp_mgr_ring::abi::{self, flag, ioctl};
use rtp_mgr_ring::{header, pattern};

const LIMIT: Duration = Duration::from_secs(20);

fn quick() -> ioctl::Create {
    ioctl::Create { interval_ns: 10_000_000, burst: 32, packet_len: 200, ..Default::default() }
}

#[test]
fn bursts_arrive_with_their_pattern_intact_and_in_order() {
    let mut reader = Reader::create(quick()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let mut items = reader.collect(2_000, LIMIT);
    reader.device.plain(ioctl::STOP).unwrap();
    items.extend(reader.take().0);
    for (number, item) in items.iter().enumerate() {
        assert_eq!(item.descriptor.len, 200);
        assert!(item.descriptor.has(flag::RAW));
        assert_eq!(pattern::check(&item.bytes), Some(number as u64));
        assert_eq!(item.descriptor.sequence, number as u64);
    }
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!(counters.dropped_ring_full, 0);
    assert_eq!(counters.published, items.len() as u64);
    assert_eq!(counters.bytes_produced, counters.published * 200);
    assert_eq!(counters.published, counters.bursts * 32);
}

#[test]
fn positions_begin_where_asked_and_wrap() {
    let start = u64::MAX - 40;
    let mut reader = Reader::create(ioctl::Create { start, ..quick() }).unwrap();
    assert_eq!(reader.status.word(abi::status::HEAD).load(), start);
    let late = Reader::attach(&reader.device, ioctl::READER_LOSSY).unwrap();
    assert_eq!(late.next(), start);
    reader.device.plain(ioctl::START).unwrap();
    let items = reader.collect(200, LIMIT);
    for (number, item) in items.iter().enumerate() {
        assert_eq!(pattern::check(&item.bytes), Some(number as u64));
    }
    assert!(reader.next() < 1_000, "it has wrapped");
    reader.device.plain(ioctl::STOP).unwrap();
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!(
        counters.published,
        reader.next().wrapping_sub(start) + reader.take().0.len() as u64
    );
    assert_eq!(reader.own_status().violations, 0);
}

#[test]
fn rtp_packets_parse_and_carry_the_pattern() {
    let request = ioctl::Create { pattern: ioctl::PATTERN_RTP, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let items = reader.collect(1_000, LIMIT);
    for (number, item) in items.iter().enumerate() {
        let rtp = header::parse(&item.bytes).expect("RTP");
        assert_eq!(rtp.sequence, number as u16);
        assert_eq!(rtp.marker, number % 32 == 31, "the last of a burst");
        assert_eq!(usize::from(item.descriptor.payload_offset), 12);
        assert_eq!(pattern::check(&item.bytes[12..]), Some(number as u64));
        assert_eq!(item.descriptor.source, 0);
    }
    let counters = reader.device.stats().unwrap().1;
    assert_books(&counters);
    assert_eq!((counters.sources, counters.lost), (1, 0));
    assert_eq!(counters.bytes_produced, counters.published * 188, "the pattern, not its framing");
}

#[test]
fn packets_change_their_length_while_running() {
    let mut reader = Reader::create(quick()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    reader.collect(32, LIMIT);
    reader.device.set(ioctl::SETTING_PACKET_LEN, 64).unwrap();
    assert_eq!(reader.device.get(ioctl::SETTING_PACKET_LEN).unwrap(), 64);
    let deadline = Instant::now() + LIMIT;
    while reader.collect(1, LIMIT).iter().all(|item| item.bytes.len() != 64) {
        assert!(Instant::now() < deadline, "packets stay as long as they were");
    }
}

#[test]
fn a_burst_larger_than_the_ring_overflows_it() {
    let request = ioctl::Create { ring_order: 4, burst: 64, interval_ns: 1_000_000_000, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    assert_eq!(reader.collect(16, LIMIT).len(), 16);
    // A burst may come in several runs, between which the stream can be stopped.
    let deadline = Instant::now() + LIMIT;
    while reader.counters().dropped_ring_full < 48 {
        assert!(Instant::now() < deadline, "{:?}", reader.counters());
        std::thread::yield_now();
    }
    reader.device.plain(ioctl::STOP).unwrap();
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!((counters.published, counters.dropped_ring_full), (16, 48));
    assert_eq!((counters.bytes_produced, counters.bytes_overflowed), (16 * 200, 48 * 200));
}

#[test]
fn further_readers_of_the_owner_may_be_reliable_and_are_never_demoted() {
    let mut owner = Reader::create(ioctl::Create { ring_order: 6, ..quick() }).unwrap();
    owner.device.set(ioctl::SETTING_STALL_NS, 1_000_000).unwrap();
    let attach = |to: &Device, reader, flags| {
        let device = Device::open().unwrap();
        let mut request = ioctl::Attach { fd: to.fd(), reader, flags, ..Default::default() };
        device.call(ioctl::ATTACH, &mut request).map(|()| device)
    };
    let own = attach(&owner.device, ioctl::READER_RELIABLE, ioctl::ATTACH_OWN).unwrap();
    let through_a_reader = attach(&own, ioctl::READER_RELIABLE, ioctl::ATTACH_OWN);
    assert_eq!(errno(through_a_reader), libc::EPERM);
    assert_eq!(errno(attach(&owner.device, ioctl::READER_LOSSY, 2)), libc::EINVAL);
    owner.device.plain(ioctl::START).unwrap();
    // It reads nothing: the ring stays full of what it has not released.
    let deadline = Instant::now() + LIMIT;
    while owner.counters().dropped_ring_full < 500 {
        assert!(Instant::now() < deadline, "the ring never overflows");
        owner.wait(1, Duration::from_millis(50)).unwrap();
        owner.take();
    }
    let counters = owner.counters();
    assert_eq!((counters.published, counters.readers_demoted), (64, 0));
}

#[test]
fn a_slow_reliable_reader_loses_the_newest_and_learns_where() {
    let request = ioctl::Create { ring_order: 4, burst: 8, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    while reader.counters().dropped_ring_full < 16 {
        assert!(Instant::now() < deadline, "the ring never overflows");
        std::thread::yield_now();
    }
    let (first, missed) = reader.take();
    assert_eq!(missed, 0);
    assert!(first.len() >= 16);
    for (number, item) in first.iter().take(16).enumerate() {
        assert_eq!(pattern::check(&item.bytes), Some(number as u64), "the oldest are kept");
    }
    let mut items = first;
    items.extend(reader.collect(32, LIMIT));
    let marked = items
        .iter()
        .find(|item| item.descriptor.has(flag::DISCONTINUITY | flag::RING_FULL))
        .expect("the place of the loss is marked");
    let mut next = 0;
    for item in &items {
        let number = pattern::check(&item.bytes).expect("intact");
        let gap = number - next;
        assert_eq!(u64::from(item.descriptor.count), gap, "the count is what is missing");
        next = number + 1;
    }
    assert!(marked.descriptor.count >= 16);
    reader.device.plain(ioctl::STOP).unwrap();
    let counters = reader.counters();
    assert_books(&counters);
    assert_eq!(counters.bytes_overflowed, counters.dropped_ring_full * 200);
    assert_eq!(counters.high_watermark, 16);
}

#[test]
fn a_lossy_reader_is_overwritten_and_learns_how_much_it_missed() {
    let request = ioctl::Create { ring_order: 5, reader: ioctl::READER_LOSSY, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    let mut next = 0;
    let mut lost = 0;
    let mut turns = 0;
    while turns < 20 {
        assert!(Instant::now() < deadline);
        if reader.counters().published < next + 100 {
            continue;
        }
        let (items, missed) = reader.take();
        lost += missed;
        for item in items {
            let number = pattern::check(&item.bytes).expect("never a torn packet");
            assert!(number >= next);
            next = number + 1;
        }
        turns += 1;
    }
    assert!(lost > 0);
    reader.device.plain(ioctl::STOP).unwrap();
    let (items, missed) = reader.take();
    let counters = reader.counters();
    assert_eq!(counters.dropped_ring_full, 0);
    assert_eq!(missed + lost + (reader.next() - missed - lost), counters.published);
    drop(items);
    assert_books(&counters);
}

#[test]
fn several_readers_each_get_everything() {
    // One burst that fits the ring, and a second until the next: nobody can be too slow.
    let request = ioctl::Create { burst: 512, interval_ns: 1_000_000_000, ..quick() };
    let mut first = Reader::create(request).unwrap();
    let mut others: Vec<_> =
        (0..3).map(|_| Reader::attach(&first.device, ioctl::READER_LOSSY).unwrap()).collect();
    assert_eq!(first.device.stats().unwrap().1.readers, 4);
    first.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    while first.counters().published < 512 {
        assert!(Instant::now() < deadline);
        first.wait(512, Duration::from_millis(200)).unwrap();
    }
    first.device.plain(ioctl::STOP).unwrap();
    for reader in std::iter::once(&mut first).chain(&mut others) {
        let (items, missed) = reader.take();
        assert_eq!((items.len(), missed), (512, 0));
        let numbers = items.iter().map(|item| pattern::check(&item.bytes).expect("intact"));
        assert!(numbers.eq(0..512));
    }
}

#[test]
fn reliable_readers_attach_only_when_the_owner_allows_and_are_demoted_when_they_stall() {
    let mut owner = Reader::create(ioctl::Create { ring_order: 6, ..quick() }).unwrap();
    let refused = Device::open().unwrap();
    assert_eq!(errno(refused.attach(&owner.device, ioctl::READER_RELIABLE)), libc::EPERM);
    owner.device.set(ioctl::SETTING_ALLOW_RELIABLE, 1).unwrap();
    owner.device.set(ioctl::SETTING_STALL_NS, 100_000_000).unwrap();
    let stalled = Reader::attach(&owner.device, ioctl::READER_RELIABLE).unwrap();
    owner.device.plain(ioctl::START).unwrap();
    let deadline = Instant::now() + LIMIT;
    while stalled.own_status().demoted == 0 {
        assert!(Instant::now() < deadline, "never demoted");
        owner.wait(1, Duration::from_millis(50)).unwrap();
        owner.take();
    }
    let dropped = owner.counters().dropped_ring_full;
    assert!(dropped > 0);
    owner.collect(500, LIMIT);
    let counters = owner.counters();
    assert_eq!(counters.dropped_ring_full, dropped, "it costs the others nothing any more");
    assert_eq!(counters.readers_demoted, 1);
    assert_eq!(stalled.own_status().reliable, 0);
}

#[test]
fn a_stream_stops_and_resumes_where_it_was() {
    let mut reader = Reader::create(quick()).unwrap();
    assert_eq!(errno(reader.device.plain(ioctl::STOP)), libc::EBUSY);
    reader.device.plain(ioctl::START).unwrap();
    assert_eq!(errno(reader.device.plain(ioctl::START)), libc::EBUSY);
    let before = reader.collect(64, LIMIT).len();
    reader.device.plain(ioctl::STOP).unwrap();
    let (state, counters) = reader.device.stats().unwrap();
    assert_eq!(u64::from(state), abi::STATE_STOPPED);
    let hangup = reader.device.poll(Duration::ZERO).unwrap();
    assert!(hangup & libc::POLLHUP != 0, "{hangup:#x}");
    let rest = reader.take().0.len();
    assert_eq!((before + rest) as u64, counters.published);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(reader.counters().published, counters.published, "nothing after the stop");
    reader.device.plain(ioctl::START).unwrap();
    let items = reader.collect(64, LIMIT);
    assert_eq!(pattern::check(&items[0].bytes), Some(counters.published));
}

#[test]
fn interval_and_burst_change_while_running() {
    let request = ioctl::Create { interval_ns: 10_000_000_000, burst: 1, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    assert_eq!(reader.wait(1, Duration::from_millis(50)).unwrap(), 0, "nothing for ten seconds");
    reader.device.set(ioctl::SETTING_BURST, 10).unwrap();
    reader.device.set(ioctl::SETTING_INTERVAL_NS, 1_000_000).unwrap();
    let items = reader.collect(100, Duration::from_secs(5));
    assert!(items.len() >= 100);
    assert_eq!(reader.device.get(ioctl::SETTING_BURST).unwrap(), 10);
    assert_eq!(reader.device.get(ioctl::SETTING_INTERVAL_NS).unwrap(), 1_000_000);
    for (key, value) in [
        (ioctl::SETTING_INTERVAL_NS, 99_999),
        (ioctl::SETTING_INTERVAL_NS, 10_000_000_001),
        (ioctl::SETTING_BURST, 0),
        (ioctl::SETTING_BURST, 65_537),
        (ioctl::SETTING_BURST, 1 << 32 | 1),
        (ioctl::SETTING_PACKET_LEN, 7),
        (ioctl::SETTING_PACKET_LEN, 2_049),
        (ioctl::SETTING_BYTE_BUDGET, 4_095),
        (ioctl::SETTING_STALL_NS, 999_999),
        (ioctl::SETTING_ALLOW_RELIABLE, 2),
        (ioctl::SETTING_MAX_LATENCY_US, 10_000_001),
    ] {
        assert_eq!(errno(reader.device.set(key, value)), libc::EINVAL, "{key} {value}");
    }
    assert_eq!(errno(reader.device.set(ioctl::SETTING_RATE, 1)), libc::EOPNOTSUPP);
}

#[test]
fn a_burst_over_the_byte_budget_is_spread_over_several_runs() {
    let request = ioctl::Create { burst: 512, interval_ns: 50_000_000, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.set(ioctl::SETTING_BYTE_BUDGET, 4_096).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    let items = reader.collect(1_024, LIMIT);
    let times: Vec<_> = items[..512].iter().map(|item| item.descriptor.time_ns).collect();
    let mut runs = times.clone();
    runs.dedup();
    assert_eq!(runs.len(), 512_usize.div_ceil(4_096_usize.div_ceil(200)), "{runs:?}");
    assert!(
        items.iter().enumerate().all(|(n, item)| pattern::check(&item.bytes) == Some(n as u64))
    );
}

#[test]
fn a_reader_sleeps_until_its_threshold() {
    let request = ioctl::Create { burst: 1, interval_ns: 5_000_000, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    for _ in 0..5 {
        let ready = reader.wait(20, Duration::from_secs(5)).unwrap();
        assert_eq!(ready & libc::POLLIN, libc::POLLIN);
        assert!(reader.take().0.len() >= 20);
    }
}

#[test]
fn the_longest_wait_is_bounded_when_the_threshold_is_far() {
    let request = ioctl::Create { burst: 1, interval_ns: 100_000_000, ..quick() };
    let mut reader = Reader::create(request).unwrap();
    reader.device.set(ioctl::SETTING_MAX_LATENCY_US, 20_000).unwrap();
    assert_eq!(reader.device.get(ioctl::SETTING_MAX_LATENCY_US).unwrap(), 20_000);
    reader.device.plain(ioctl::START).unwrap();
    let ready = reader.wait(1_000, Duration::from_secs(5)).unwrap();
    assert_eq!(ready & libc::POLLIN, libc::POLLIN);
    let again = reader.device.poll(Duration::ZERO).unwrap();
    assert_eq!(again & libc::POLLIN, libc::POLLIN, "remembered until drained");
    let count = reader.take().0.len();
    assert!((1..10).contains(&count), "{count}");
    assert_eq!(reader.device.poll(Duration::ZERO).unwrap(), 0);
}

#[test]
fn counters_go_back_to_zero_and_the_books_still_balance() {
    let mut reader = Reader::create(quick()).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    reader.collect(100, LIMIT);
    reader.device.plain(ioctl::STOP).unwrap();
    reader.device.plain(ioctl::RESET_STATS).unwrap();
    let counters = reader.counters();
    assert_eq!((counters.received, counters.published, counters.bursts), (0, 0, 0));
    reader.device.plain(ioctl::START).unwrap();
    reader.collect(100, LIMIT);
    assert_books(&reader.device.stats().unwrap().1);
}
