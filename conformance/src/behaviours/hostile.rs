//! Datagrams that nobody in his right mind sends: counted, and nothing else happens.

use rtp_mgr::ring::abi::StreamCounters;

use crate::dice::Dice;
use crate::harness::{Harness, Rig, ms};
use crate::heard::{self, Heard, all, assert_heard};
use crate::wire::{Rtp, payload};

/// What a datagram has to be taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Valid,
    Invalid,
    Rtcp,
    Stun,
    Dtls,
    Other,
}

/// By RFC 3550 section 5.1 and 5.3.1, RFC 5761 section 4 and RFC 7983 section 7, written anew.
fn judge(bytes: &[u8]) -> Taken {
    let at = |index: usize| bytes.get(index).copied().map(usize::from);
    let Some(first) = at(0) else { return Taken::Other };
    match first {
        0..=3 if bytes.len() >= 20 && bytes[4..8] == [0x21, 0x12, 0xa4, 0x42] => Taken::Stun,
        20..=31 if bytes.len() >= 13 && bytes[1] == 254 => Taken::Dtls,
        // DTLS 1.3 ciphertext has nothing further to be known by.
        32..=63 => Taken::Dtls,
        128..=191 => {
            if bytes.len() >= 4 && (192..=223).contains(&bytes[1]) {
                return Taken::Rtcp;
            }
            if bytes.len() < 12 {
                return Taken::Other;
            }
            let mut header = 12 + 4 * (first & 15);
            if first & 16 != 0 {
                let (Some(high), Some(low)) = (at(header + 2), at(header + 3)) else {
                    return Taken::Invalid;
                };
                header += 4 + 4 * (high << 8 | low);
            }
            let Some(rest) = bytes.len().checked_sub(header) else { return Taken::Invalid };
            let padding = usize::from(bytes[bytes.len() - 1]);
            let padded = first & 32 != 0;
            if padded && (padding == 0 || padding > rest) { Taken::Invalid } else { Taken::Valid }
        }
        _ => Taken::Other,
    }
}

/// A packet with everything in it that has a length: 3 CSRCs, an extension of 2 words, a payload, 4
/// bytes of padding.
fn ornate(ssrc: u32, sequence: u16) -> Vec<u8> {
    let rtp = Rtp { ssrc, payload_type: 96, sequence, timestamp: 9, marker: false, payload_len: 9 };
    let mut bytes = rtp.header().to_vec();
    bytes[0] |= 0x30 | 3;
    bytes.extend([1; 12]);
    bytes.extend([0xbe, 0xde, 0, 2, 0x10, 5, 0, 0, 0x20, 6, 0, 0]);
    bytes.extend(payload(ssrc, sequence, rtp.payload_len));
    bytes.extend([0, 0, 0, 4]);
    bytes
}

/// Sends datagrams and keeps the account that the stream has to come to.
struct Account {
    rig: Rig,
    sender: crate::wire::Sender,
    counts: [u64; 6],
    oversize: u64,
    heard: Vec<Heard>,
}

impl Account {
    fn new(rig: Rig) -> Self {
        let sender = rig.sender();
        Self { rig, sender, counts: [0; 6], oversize: 0, heard: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        let taken = judge(bytes);
        if bytes.len() > self.rig.rx.slot_stride() as usize
            && matches!(taken, Taken::Valid | Taken::Invalid)
        {
            self.oversize += 1;
        } else {
            self.counts[taken as usize] += 1;
        }
        self.sender.datagram(bytes);
        if self.rig.line.sent().is_multiple_of(64) {
            self.heard.extend(self.rig.hear_present());
        }
    }

    fn count(&self, taken: Taken) -> u64 {
        self.counts[taken as usize]
    }

    /// Sees that the stream is well. Returns the final counters.
    #[track_caller]
    fn close(mut self, ordered: bool) -> StreamCounters {
        self.heard.extend(self.rig.hear_present());
        if !ordered {
            let sender = self.rig.sender().ssrc(0x600d);
            sender.send_all(1..4);
            assert_heard(&self.rig.hear(3), all(1..4));
            self.counts[Taken::Valid as usize] += 3;
        }
        let counts = self.counts;
        let (oversize, heard) = (self.oversize, heard::count(&self.heard));
        let expected = |taken: Taken| counts[taken as usize];
        let (rest, last) = self.rig.finish();
        let counters = last.counters;
        let received = expected(Taken::Valid) + expected(Taken::Invalid) + oversize;
        assert_eq!(counters.received, received, "{counters:?}");
        assert_eq!(counters.dropped_oversize, oversize, "{counters:?}");
        assert_eq!(counters.passed_rtcp, expected(Taken::Rtcp), "{counters:?}");
        assert_eq!(counters.passed_stun, expected(Taken::Stun), "{counters:?}");
        assert_eq!(counters.passed_dtls, expected(Taken::Dtls), "{counters:?}");
        assert_eq!(counters.passed_other, expected(Taken::Other), "{counters:?}");
        if !ordered {
            assert_eq!(counters.dropped_invalid, expected(Taken::Invalid), "{counters:?}");
            let delivered = (heard + 3 + heard::count(&rest)) as u64;
            assert_eq!(counters.published, delivered, "{counters:?}");
            let valid = counters.published + counters.duplicate;
            assert_eq!(valid, expected(Taken::Valid), "{counters:?}");
        }
        counters
    }
}

/// In order of arrival with and without coalescing, and in sequence order.
fn accounts(h: &Harness) -> [(Account, bool); 3] {
    [(true, false), (false, false), (true, true)].map(|(gro, ordered)| {
        let rig = h.rig(|builder| {
            let builder = builder.gro(gro).ring_order(8).sources(4_096);
            if ordered { builder.ordered(ms(2)) } else { builder }
        });
        (Account::new(rig), ordered)
    })
}

pub(crate) fn every_truncation_of_a_header_is_counted(h: &Harness) {
    for (mut account, ordered) in accounts(h) {
        let whole = ornate(7, 0).len();
        for len in 0..=whole {
            account.send(&ornate(7, len as u16)[..len]);
        }
        // From 12 to 36 bytes CSRCs, extension or padding announce more than there is.
        assert!(account.count(Taken::Invalid) >= 25 && account.count(Taken::Other) == 12);
        account.close(ordered);
    }
}

pub(crate) fn every_corruption_of_a_header_is_counted(h: &Harness) {
    for (mut account, ordered) in accounts(h) {
        let mut number = 0;
        for at in 0..ornate(0, 0).len() {
            for value in [0, 1, 3, 15, 20, 40, 64, 127, 128, 160, 191, 192, 200, 223, 255] {
                let mut bytes = ornate(7, number);
                bytes[at] = value;
                account.send(&bytes);
                number += 1;
            }
        }
        assert!(account.count(Taken::Invalid) > 0 && account.count(Taken::Rtcp) > 0);
        account.close(ordered);
    }
}

pub(crate) fn lengths_that_do_not_fit_are_counted(h: &Harness) {
    // The longest datagram that IPv4 carries.
    const LONGEST: usize = 65_507;
    for gro in [true, false] {
        let mut rig = h.rig(|builder| builder.gro(gro).ring_order(8).slot_stride(2_048));
        let mut sender = rig.sender();
        let mut fitting = Vec::new();
        // Now long ones, now short ones, so that scatter lists are of either shape.
        let lens = [2_048, 2_049, LONGEST, 100, LONGEST, 2_047, 2_048, 4_096, 12, 65_000, 1_000];
        for (len, sequence) in lens.into_iter().zip(0..) {
            sender.payload_len = len - 12;
            sender.send(sequence);
            if len <= 2_048 {
                fitting.push(sequence);
            }
        }
        let heard = rig.hear(fitting.len());
        let numbers: Vec<u16> = heard::packets(&heard).map(|packet| packet.number()).collect();
        assert_eq!(numbers, fitting, "GRO {gro}");
        assert!(heard::packets(&heard).all(heard::Packet::is_intact), "GRO {gro}");
        // Empty ones and long ones that are no RTP.
        sender.datagram(&[]);
        sender.datagram(&vec![0xff; LONGEST]);
        sender.datagram(&[]);
        let counters = rig.counters();
        assert_eq!((counters.received, counters.published), (11, 6), "GRO {gro}");
        assert_eq!((counters.dropped_oversize, counters.passed_other), (5, 3), "GRO {gro}");
    }
}

pub(crate) fn noise_is_counted(h: &Harness) {
    for (mut account, ordered) in accounts(h) {
        let mut dice = Dice::new(31);
        for _ in 0..4_000 {
            let len = dice.below(80) as usize;
            let mut bytes = dice.bytes(len);
            // Most of it almost RTP.
            if dice.chance(70)
                && let Some(first) = bytes.first_mut()
            {
                *first = 0x80 | *first & 0x3f;
            }
            account.send(&bytes);
        }
        let counters = account.close(ordered);
        assert!(counters.received > 1_000, "{counters:?}");
    }
}
