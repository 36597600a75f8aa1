//! RTP of a capture that is sent again: what stays of its headers, and its sources' BYE.
//!
//! Sequence numbers, timestamps, markers, CSRCs and extensions stay as they are; so do SSRC and
//! payload type unless `--ssrc` or `--payload-type` names others. Addresses and ports become those
//! of the transmit stream.

use std::collections::BTreeMap;

use rtp_mgr::rtcp::{self, NtpTime, SenderReport};
use rtp_mgr::socket::{TransmitOptions, TransmitSocket};
use rtp_mgr::{Leg, clock};
use rtp_mgr_ring::header;

/// A capture with more sources than this leaves the others without a BYE.
const SOURCES_MAX: usize = 1_024;

/// What is done to headers, and which sources they named.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    ssrc: Option<u32>,
    payload_type: Option<u8>,
    sources: BTreeMap<u32, SenderReport>,
}

impl Replay {
    /// Changes what is given, keeps what is `None`.
    pub fn new(ssrc: Option<u32>, payload_type: Option<u8>) -> Self {
        Self { ssrc, payload_type, sources: BTreeMap::new() }
    }

    /// Rewrites one packet; returns its payload bytes.
    pub fn rewrite(&mut self, packet: &mut [u8]) -> u64 {
        if let (Some(ssrc), Some(field)) = (self.ssrc, packet.get_mut(8..12)) {
            field.copy_from_slice(&ssrc.to_be_bytes());
        }
        if let (Some(payload_type), Some(field)) = (self.payload_type, packet.get_mut(1)) {
            *field = *field & 0x80 | payload_type;
        }
        let Ok(header) = header::parse(packet) else { return 0 };
        if self.sources.len() < SOURCES_MAX || self.sources.contains_key(&header.ssrc) {
            let source = self.sources.entry(header.ssrc).or_insert_with(|| SenderReport {
                ssrc: header.ssrc,
                ntp: NtpTime(0),
                rtp_timestamp: 0,
                packets: 0,
                octets: 0,
            });
            source.rtp_timestamp = header.timestamp;
            source.packets = source.packets.wrapping_add(1);
            source.octets = source.octets.wrapping_add(header.payload_len as u32);
        }
        header.payload_len as u64
    }

    /// The one SSRC of everything that was sent.
    pub fn only_ssrc(&self) -> Option<u32> {
        match self.sources.len() {
            1 => self.sources.keys().next().copied(),
            _ => None,
        }
    }

    /// Says BYE for every source on the port above each leg's (RFC 3550 sections 6.6 and 11).
    /// Returns how many could not be said.
    pub fn bye(&self, legs: &[Leg], options: &TransmitOptions) -> usize {
        let ntp = NtpTime::from_unix_ns(clock::realtime_ns());
        let mut unsaid = 0;
        for leg in legs.iter().filter_map(Leg::rtcp) {
            let Ok(socket) = TransmitSocket::open(&leg, options) else {
                unsaid += self.sources.len();
                continue;
            };
            for source in self.sources.values() {
                let report = SenderReport { ntp, ..*source };
                let said = rtcp::bye(&report, "rtp_app", None)
                    .is_ok_and(|datagram| socket.send(&datagram).is_ok());
                unsaid += usize::from(!said);
            }
        }
        unsaid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ssrc: u32, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x80, 0x80 | 33, 0, 7, 0, 0, 0, 9];
        packet.extend(ssrc.to_be_bytes());
        packet.extend(payload);
        packet
    }

    #[test]
    fn headers_stay_unless_asked_for() {
        let mut replay = Replay::default();
        let mut sent = packet(1, b"abc");
        assert_eq!(replay.rewrite(&mut sent), 3);
        assert_eq!(sent, packet(1, b"abc"));
        assert_eq!(replay.only_ssrc(), Some(1));
        replay.rewrite(&mut packet(2, b""));
        assert_eq!(replay.only_ssrc(), None);
    }

    #[test]
    fn ssrc_and_payload_type_change_and_the_marker_stays() {
        let mut replay = Replay::new(Some(5), Some(97));
        let mut sent = packet(1, b"abc");
        replay.rewrite(&mut sent);
        let mut expected = packet(5, b"abc");
        expected[1] = 0x80 | 97;
        assert_eq!(sent, expected);
        assert_eq!(replay.only_ssrc(), Some(5));
    }

    #[test]
    fn a_bye_counts_what_was_sent() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let mut replay = Replay::default();
        replay.rewrite(&mut packet(1, b"abc"));
        replay.rewrite(&mut packet(1, b"abcd"));
        let leg: Leg = format!("127.0.0.1:{}", port - 1).parse().unwrap();
        assert_eq!(replay.bye(&[leg], &TransmitOptions::default()), 0);
        let mut datagram = [0; 1500];
        let len = receiver.recv(&mut datagram).unwrap();
        let compound = rtcp::Compound::parse(&datagram[..len]).unwrap();
        assert_eq!(compound.byes, [1]);
        assert_eq!((compound.senders[0].packets, compound.senders[0].octets), (2, 7));
    }
}
