//! Many flows in one ring, many streams in one thread.

use std::num::NonZeroUsize;

use rtp_mgr::Context;

use crate::harness::Harness;
use crate::heard::{self, all, assert_heard};

/// Every source has its own figures, whatever the others do: each loses, repeats and swaps packets
/// of its own.
pub(crate) fn a_thousand_sources_of_fifty_packets(h: &Harness) {
    const SOURCES: u32 = 1_000;
    const PACKETS: u16 = 50;
    let mut rig = h.rig(|builder| builder.sources(SOURCES).ring_order(12));
    let sender = rig.sender().payload_len(20);
    // Of source n: packets lost, sent twice, and swapped with the next, inside the run.
    let lost = |source: u32, packet: u16| (10..10 + source % 7).contains(&packet.into());
    let twice = |source: u32, packet: u16| (25..25 + source % 5).contains(&packet.into());
    let swapped = |source: u32| source.is_multiple_of(3);
    let mut heard = 0;
    for packet in 0..PACKETS {
        let mut train = Vec::new();
        for source in 0..SOURCES {
            let number = match packet {
                40 if swapped(source) => 41,
                41 if swapped(source) => 40,
                _ => packet,
            };
            if lost(source, number) {
                continue;
            }
            let rtp = crate::wire::Rtp { ssrc: source, ..sender.packet(number) };
            train.push(rtp.bytes());
            if twice(source, number) {
                train.push(rtp.bytes());
            }
        }
        for piece in train.chunks(64) {
            sender.train(piece);
            heard += heard::count(&rig.hear_present());
        }
    }
    let (rest, last) = rig.finish();
    heard += heard::count(&rest);
    assert_eq!(last.sources.len(), SOURCES as usize);
    assert_eq!(last.counters.sources, u64::from(SOURCES));
    let mut unique = 0;
    for source in &last.sources {
        let figures = &source.figures;
        let (lost, twice) = (u64::from(source.ssrc % 7), u64::from(source.ssrc % 5));
        let whole = u64::from(PACKETS);
        assert_eq!(figures.received, whole - lost + twice, "source {}", source.ssrc);
        assert_eq!((figures.unique, figures.duplicate), (whole - lost, twice), "{}", source.ssrc);
        assert_eq!((figures.expected, figures.lost), (whole, lost), "source {}", source.ssrc);
        assert_eq!(figures.reordered, u64::from(swapped(source.ssrc)), "source {}", source.ssrc);
        assert_eq!((figures.restarts, figures.stray), (0, 0), "source {}", source.ssrc);
        assert_eq!(figures.bytes, figures.unique * 20, "source {}", source.ssrc);
        unique += figures.unique;
    }
    assert_eq!((last.counters.unique, last.counters.published), (unique, unique));
    assert_eq!(heard as u64, unique);
}

pub(crate) fn streams_of_one_context_do_not_mix(h: &Harness) {
    let threads = NonZeroUsize::new(2).expect("not zero");
    let context = Context::new(threads).unwrap_or_else(|error| panic!("{error}"));
    let mut rigs: Vec<_> = (0..6)
        .map(|number| {
            h.rig(|builder| {
                // One of them is full all the time, one stops early.
                let order = if number == 0 { 4 } else { 8 };
                builder.context(&context).ring_order(order)
            })
        })
        .collect();
    let senders: Vec<_> = rigs.iter().zip(0..).map(|(rig, n)| rig.sender().ssrc(n)).collect();
    rigs[1].rx.stop().unwrap_or_else(|error| panic!("{error}"));
    for first in (0..1_000).step_by(50) {
        for (number, (rig, sender)) in rigs.iter_mut().zip(&senders).enumerate() {
            match number {
                0 => sender.send_all(first..first + 50),
                1 => {}
                _ => assert_heard(&rig.relay(sender, first..first + 50), all(first..first + 50)),
            }
        }
    }
    let counters = rigs[0].counters();
    assert_eq!((counters.published, counters.dropped_ring_full), (16, 984));
    assert_eq!(rigs[1].rx.stats().counters().received, 0);
    for rig in &rigs[2..] {
        let counters = rig.counters();
        assert_eq!((counters.received, counters.published, counters.sources), (1_000, 1_000, 1));
    }
    drop(context);
    let sender = &senders[5];
    let heard = rigs[5].relay(sender, 1_000..1_010);
    assert_heard(&heard, all(1_000..1_010));
}
