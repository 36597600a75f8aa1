//! What a stream leaves to its sockets.

use rtp_mgr::ring::header;
use rtp_mgr::{Kind, SidePacket, clock};

use crate::harness::Harness;
use crate::heard::{all, assert_heard};
use crate::wait::{self, LONG};

/// A receiver report without report blocks (RFC 3550 section 6.4.2).
const RTCP: [u8; 8] = [0x80, 201, 0, 1, 0, 0, 0, 7];
/// A STUN binding request without attributes (RFC 8489 section 5).
const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
/// A DTLS 1.2 handshake record (RFC 6347 section 4.1).
const DTLS: [u8; 14] = [22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];

pub(crate) fn what_is_no_rtp_is_passed_on(h: &Harness) {
    let mut rig = h.rig_with_rtcp(|builder| builder);
    let side = rig.rx.side_channel();
    let sender = rig.sender();
    let mut above = rig.line.address(0);
    above.set_port(above.port() + 1);
    let control = rig.line.sender_from(above.ip(), above);
    assert!(side.try_recv().is_none());
    for (from, bytes, kind, rtcp_port) in [
        (&sender, &RTCP[..], Kind::Rtcp, false),
        (&control, &RTCP[..], Kind::Rtcp, true),
        (&sender, &STUN[..], Kind::Stun, false),
        (&sender, &DTLS[..], Kind::Dtls, false),
        (&sender, b"GET / HTTP/1.1\r\n", Kind::Other, false),
        (&sender, &[], Kind::Other, false),
    ] {
        let before = clock::tai_ns();
        from.datagram(bytes);
        let packet = side.recv(LONG).unwrap_or_else(|| panic!("{kind:?} is not passed on"));
        let SidePacket { time_ns, .. } = packet;
        let expected = SidePacket {
            kind,
            leg: 0,
            rtcp_port,
            from: from.address(),
            time_ns,
            bytes: bytes.into(),
        };
        assert_eq!(packet, expected);
        assert!((before - 1_000_000..=clock::tai_ns() + 1_000_000).contains(&time_ns));
    }
    sender.send(1);
    assert_heard(&rig.hear(1), all([1]));
    let counters = rig.counters();
    assert_eq!((counters.received, counters.passed_rtcp, counters.passed_stun), (1, 2, 1));
    assert_eq!((counters.passed_dtls, counters.passed_other), (1, 2));
    assert!(side.try_recv().is_none() && side.dropped() == 0);
}

/// However long it is, and however short the slots are.
pub(crate) fn a_long_datagram_is_passed_on_whole(h: &Harness) {
    for slot_stride in [64, 4_096] {
        for gro in [true, false] {
            let rig = h.rig(|builder| builder.slot_stride(slot_stride).gro(gro));
            let side = rig.rx.side_channel();
            let sender = rig.sender();
            for len in [63, 64, 65, 2_049, 9_000, 60_000] {
                let mut bytes = RTCP.repeat(len / RTCP.len() + 1);
                bytes.truncate(len);
                sender.datagram(&bytes);
                let packet =
                    side.recv(LONG).unwrap_or_else(|| panic!("{len} bytes are not passed on"));
                assert_eq!(
                    (packet.kind, packet.bytes.len()),
                    (Kind::Rtcp, len),
                    "slots of {slot_stride}"
                );
                assert_eq!(*packet.bytes, bytes);
            }
        }
    }
}

/// Of the source that the stream is to take.
const SSRC: u32 = 7;

pub(crate) fn rtp_of_others_is_left_to_them_if_it_is_asked_to(h: &Harness) {
    let mut rig = h.rig(|builder| builder.ssrc(SSRC).payload_type(96).leave_others(true));
    let side = rig.rx.side_channel();
    let sender = rig.sender();
    let packet = |payload_type, ssrc| {
        let mut bytes = vec![0; 40];
        header::build(&mut bytes, false, payload_type, 1, 2, ssrc).expect("room for a header");
        bytes
    };
    let others = [packet(97, SSRC), packet(96, SSRC + 1)];
    others.iter().for_each(|bytes| sender.datagram(bytes));
    sender.datagram(&packet(96, SSRC));
    for expected in &others {
        let packet = side.recv(LONG).expect("it is passed on");
        assert_eq!((packet.kind, packet.leg, packet.rtcp_port), (Kind::Rtp, 0, false));
        assert_eq!(packet.from, sender.address());
        assert_eq!(&*packet.bytes, expected);
    }
    assert_eq!(rig.hear(1).len(), 1);
    let counters = rig.counters();
    assert_eq!((counters.received, counters.passed_other, counters.dropped_filtered), (1, 2, 0));
    assert!(side.try_recv().is_none());
}

pub(crate) fn the_queue_is_bounded_and_counts_what_it_drops(h: &Harness) {
    let rig = h.rig(|builder| builder);
    let side = rig.rx.side_channel();
    let other = side.clone();
    let sender = rig.sender();
    wait::until(
        || "a datagram is dropped".to_owned(),
        || {
            (0..500).for_each(|_| sender.datagram(&STUN));
            rig.line.settle();
            side.dropped() > 0
        },
    );
    let sent = rig.line.sent();
    let mut taken = 0;
    // What the engine has counted may still be on its way, and what its socket dropped is told later.
    wait::until(
        || format!("{sent} taken or dropped, {:?}", rig.rx.stats().counters()),
        || {
            while side.try_recv().is_some() || other.try_recv().is_some() {
                taken += 1;
            }
            let lost = rig.rx.stats().counters().external_drops;
            taken + side.dropped() + lost == sent
        },
    );
    assert_eq!(rig.counters().passed_stun, sent, "they are counted, taken or not");
    sender.datagram(&RTCP);
    assert_eq!(other.recv(LONG).map(|packet| packet.kind), Some(Kind::Rtcp));
}
