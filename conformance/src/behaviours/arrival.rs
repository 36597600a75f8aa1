//! Streams in order of arrival: what is sent is what is read.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use rtp_mgr::{Cause, clock};

use crate::harness::{Harness, Rig};
use crate::heard::{self, Mark, all, assert_heard, run};
use crate::wire::{HEADER, Rtp, payload};

pub(crate) fn every_packet_is_delivered_once_in_order_of_arrival(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender().ssrc(0xdead_beef);
    // Across the end of the sequence numbers.
    let heard = rig.relay(&sender, run(63_000, 5_000));
    assert_heard(&heard, all(run(63_000, 5_000)));
    let extended: Vec<u64> = heard::packets(&heard).map(|packet| packet.sequence).collect();
    assert!(extended.windows(2).all(|pair| pair[1] == pair[0] + 1), "extended numbers continue");
    let counters = rig.counters();
    assert_eq!((counters.received, counters.published, counters.unique), (5_000, 5_000, 5_000));
    assert_eq!((counters.expected, counters.lost), (5_000, 0));
    assert_eq!(counters.bytes, 5_000 * sender.payload_len as u64);
    let (rest, last) = rig.finish();
    assert_eq!(rest, []);
    assert_eq!(last.counters.received, 5_000);
}

/// RFC 3550 section 5.1 and 5.3.1: CSRC list, extension, padding.
pub(crate) fn header_fields_and_payload_are_what_was_sent(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    let mut sent = Vec::new();
    for (number, (csrcs, extension, padding)) in [
        (0, None, 0),
        (15, None, 0),
        (0, Some(3), 0),
        (0, None, 1),
        (4, Some(0), 255),
        (1, Some(9), 4),
    ]
    .into_iter()
    .enumerate()
    {
        let rtp = Rtp {
            ssrc: 0xffff_ffff,
            payload_type: [0, 34, 63, 96, 100, 127][number],
            sequence: 100 + number as u16,
            timestamp: (u32::MAX - 2).wrapping_add(number as u32),
            marker: number % 2 == 0,
            payload_len: 50 + number,
        };
        let bytes = decorated(&rtp, csrcs, extension, padding);
        sender.datagram(&bytes);
        sent.push((rtp, bytes));
    }
    let heard = rig.hear(sent.len());
    assert_heard(&heard, all(100..106));
    for (packet, (rtp, bytes)) in heard::packets(&heard).zip(&sent) {
        assert_eq!(packet.bytes, *bytes);
        assert_eq!(packet.payload.len(), rtp.payload_len);
        assert_eq!((packet.ssrc, packet.rtp_timestamp), (rtp.ssrc, rtp.timestamp));
        assert_eq!((packet.payload_type, packet.marker), (rtp.payload_type, rtp.marker));
        assert_eq!((packet.leg, packet.raw, packet.recovered), (0, false, false));
    }
}

/// A packet with CSRCs, an extension of so many words and so much padding.
fn decorated(rtp: &Rtp, csrcs: u8, extension: Option<u16>, padding: u8) -> Vec<u8> {
    let mut bytes = rtp.header().to_vec();
    bytes[0] |= csrcs | u8::from(extension.is_some()) << 4 | u8::from(padding > 0) << 5;
    (0..csrcs).for_each(|csrc| bytes.extend([csrc; 4]));
    if let Some(words) = extension {
        bytes.extend([0xbe, 0xde]);
        bytes.extend(words.to_be_bytes());
        bytes.extend(vec![0x10; usize::from(words) * 4]);
    }
    bytes.extend(payload(rtp.ssrc, rtp.sequence, rtp.payload_len));
    if padding > 0 {
        bytes.extend(vec![0; usize::from(padding) - 1]);
        bytes.push(padding);
    }
    bytes
}

pub(crate) fn many_lengths_and_slot_sizes(h: &Harness) {
    // The longest datagram that IPv4 carries.
    const LONGEST: usize = 65_507;
    for (stride, lens) in [
        (64, vec![12, 13, 63, 64]),
        (1_341, vec![12, 1_340, 1_341, 700, 1_341, 1_341]),
        (2_048, vec![2_048, 12, 2_047, 1_000]),
        (65_536, vec![LONGEST, 12, 9_000, LONGEST]),
    ] {
        let mut rig = h.rig(|builder| builder.slot_stride(stride).ring_order(6));
        assert_eq!(rig.rx.slot_stride(), stride);
        let mut sender = rig.sender();
        for (number, len) in lens.iter().enumerate() {
            sender.payload_len = len - HEADER;
            sender.send(number as u16);
        }
        let heard = rig.hear(lens.len());
        assert_heard(&heard, all(run(0, lens.len())));
        let heard_lens: Vec<usize> =
            heard::packets(&heard).map(|packet| packet.bytes.len()).collect();
        assert_eq!(heard_lens, lens, "slot stride {stride}");
    }
}

pub(crate) fn loss_is_a_discontinuity_with_its_count(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    rig.sender().send_all([65_534, 65_535, 2, 3, 1_003]);
    let heard = rig.hear(5);
    let lost = |count| Mark::Break(count, Cause::Sequence);
    assert_heard(
        &heard,
        [
            Mark::P(65_534),
            Mark::P(65_535),
            lost(2),
            Mark::P(2),
            Mark::P(3),
            lost(999),
            Mark::P(1_003),
        ],
    );
    let counters = rig.counters();
    assert_eq!((counters.expected, counters.unique, counters.lost), (1_006, 5, 1_001));
}

pub(crate) fn a_second_copy_is_counted_and_not_delivered(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    rig.sender().send_all([10, 11, 11, 10, 12, 11, 13]);
    assert_heard(&rig.hear(4), all(10..14));
    let counters = rig.counters();
    assert_eq!((counters.received, counters.duplicate, counters.published), (7, 3, 4));
    assert_eq!((counters.unique, counters.lost), (4, 0));
}

pub(crate) fn late_packets_are_delivered_in_order_of_arrival(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    rig.sender().send_all([10, 13, 11, 12, 14]);
    let heard = rig.hear(5);
    assert_heard(
        &heard,
        [
            Mark::P(10),
            Mark::Break(2, Cause::Sequence),
            Mark::P(13),
            Mark::P(11),
            Mark::P(12),
            Mark::P(14),
        ],
    );
    let counters = rig.counters();
    assert_eq!((counters.reordered, counters.expected, counters.lost), (2, 5, 0));
}

pub(crate) fn ssrc_0_is_a_source(h: &Harness) {
    let mut rig = h.rig(|builder| builder);
    rig.sender().ssrc(0).send_all(0..3);
    let heard = rig.hear(3);
    assert_heard(&heard, all(0..3));
    assert!(heard::packets(&heard).all(|packet| packet.ssrc == 0 && packet.source.is_some()));
    let snapshot = rig.rx.stats().snapshot();
    let sources: Vec<u32> = snapshot.sources.iter().map(|source| source.ssrc).collect();
    assert_eq!(sources, [0]);
}

pub(crate) fn ssrc_payload_type_and_address_filter(h: &Harness) {
    let address: IpAddr = "127.0.0.2".parse().expect("an address");
    let mut rig = h.rig(|builder| builder.ssrc(0).payload_type(33).source_address(address));
    let to = rig.line.address(0);
    let sender = |address: IpAddr| rig.line.sender_from(address, to).ssrc(0).payload_type(33);
    sender(address).ssrc(1).send(1);
    sender(address).payload_type(96).send(2);
    sender("127.0.0.1".parse().expect("an address")).send(3);
    sender(address).send(4);
    assert_heard(&rig.hear(1), all([4]));
    let counters = rig.counters();
    assert_eq!((counters.received, counters.dropped_filtered, counters.published), (4, 3, 1));
}

/// `time_ns` is CLOCK_TAI: read by the same clock just before and after, it lies between.
pub(crate) fn arrival_times_are_tai(h: &Harness) {
    // The engine compares clocks twice a second; in between they drift apart a little.
    const DRIFT_NS: u64 = 1_000_000;
    let mut rig = h.rig(|builder| builder);
    let sender = rig.sender();
    for sequence in 0..20 {
        let before = clock::tai_ns();
        sender.send(sequence);
        let heard = rig.hear(1);
        let after = clock::tai_ns();
        let time = heard::packets(&heard).next().expect("a packet").time_ns;
        assert!(
            (before - DRIFT_NS..=after + DRIFT_NS).contains(&time),
            "{time} is not in {before}..{after}"
        );
    }
}

pub(crate) fn ipv6(h: &Harness) -> Result<(), crate::NotRun> {
    let leg = "[::1]:0".parse().expect("a leg");
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return Err(crate::NotRun::because("this machine has no IPv6 on its loopback interface"));
    }
    let mut rig = Rig::open(h.receiver().leg(leg));
    let sender = rig.sender();
    sender.send_all(0..100);
    assert_heard(&rig.hear(100), all(0..100));
    let snapshot = rig.rx.stats().snapshot();
    assert_eq!(snapshot.sources[0].from, Some(sender.address()));
    assert_eq!(snapshot.sources[0].to, Some(rig.line.address(0)));
    Ok(())
}

pub(crate) fn positions_wrap(h: &Harness) {
    let start = u64::MAX - 40;
    let mut rig = h.rig(|builder| builder.ring_order(6).start_position(start));
    let sender = rig.sender();
    let heard = rig.relay(&sender, 0..200);
    assert_heard(&heard, all(0..200));
    for (step, packet) in heard::packets(&heard).enumerate() {
        assert_eq!(packet.position, start.wrapping_add(step as u64));
    }
}

pub(crate) fn a_full_source_table_loses_no_packets(h: &Harness) {
    let mut rig = h.rig(|builder| builder.sources(4));
    for ssrc in 0..6 {
        rig.sender().ssrc(ssrc).send_all(0..3);
    }
    let heard = rig.hear(18);
    assert_eq!(heard::count(&heard), 18);
    for packet in heard::packets(&heard) {
        assert!(packet.is_intact());
        assert_eq!(packet.source.is_some(), packet.ssrc < 4, "source {}", packet.ssrc);
    }
    let counters = rig.counters();
    assert_eq!((counters.sources, counters.sources_untracked), (4, 6));
    assert_eq!((counters.unique, counters.lost), (18, 0));
}

/// Names and figures of each source are its own (RFC 3550 A.1, A.3, A.8).
pub(crate) fn addresses_ports_and_jitter_of_a_source(h: &Harness) {
    let mut rig = h.rig(|builder| builder.clock_rate(96, 48_000));
    let known = rig.sender().ssrc(1);
    let fixed = rig.sender().ssrc(2).payload_type(33);
    let unknown = rig.sender().ssrc(3).payload_type(97);
    for sequence in [5, 6, 8, 7, 8] {
        known.send(sequence);
        fixed.send(sequence + 100);
        unknown.send(sequence + 200);
    }
    let heard = rig.hear(12);
    let index: HashMap<u32, u16> = heard::packets(&heard)
        .map(|packet| (packet.ssrc, packet.source.expect("room in the table")))
        .collect();
    let to: SocketAddr = rig.line.address(0);
    rig.counters();
    let snapshot = rig.rx.stats().snapshot();
    for (sender, rate, first) in
        [(&known, Some(48_000), 5), (&fixed, Some(90_000), 105), (&unknown, None, 205)]
    {
        let source = snapshot.source(index[&sender.ssrc]).expect("a source");
        assert_eq!(
            (source.ssrc, source.leg, source.payload_type),
            (sender.ssrc, 0, sender.payload_type)
        );
        assert_eq!((source.from, source.to), (Some(sender.address()), Some(to)));
        assert_eq!(source.clock_rate, rate);
        let figures = &source.figures;
        assert_eq!((figures.received, figures.unique, figures.duplicate), (5, 4, 1));
        assert_eq!((figures.expected, figures.lost, figures.reordered), (4, 0, 1));
        assert_eq!(
            (figures.first_sequence as u16, figures.highest_sequence as u16),
            (first, first + 3)
        );
        assert_eq!(figures.bytes, 4 * sender.payload_len as u64);
        assert!(figures.first_ns > 0 && figures.first_ns <= figures.last_ns);
        assert_eq!(figures.jitter_count > 0, rate.is_some(), "no clock rate, no jitter");
    }
}
