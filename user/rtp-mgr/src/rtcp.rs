//! RTCP as far as a one-way stream needs it (RFC 3550 section 6).
//!
//! What lives here: the sender's compound packets (SR, SDES, BYE), reading what others send, and NTP
//! timestamps. What does not: when to send (the transmit engine), and receiver reports of our own.

use std::fmt;

use rtcp_types::prelude::*;
use rtcp_types::{
    Bye, Compound as CompoundBuilder, ReceiverReport, RtcpWriteError, Sdes, SdesChunk, SdesItem,
    SenderReport as SenderReportPacket,
};

/// Seconds from 1900 (NTP) to 1970 (Unix), RFC 868.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;
const NANOS: u64 = 1_000_000_000;
/// Longest CNAME and BYE reason in bytes: their length has eight bits (RFC 3550 6.5, 6.6).
const TEXT_MAX: usize = 255;
/// Bytes of the header that every RTCP packet begins with.
const HEADER_LEN: usize = 4;

/// A 64-bit NTP timestamp: seconds since 1900 modulo 2^32, and their fraction (RFC 3550 section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// From nanoseconds of CLOCK_REALTIME (UTC since 1970), rounded to the nearest 2^-32 s.
    pub fn from_unix_ns(ns: u64) -> Self {
        let seconds = (ns / NANOS).wrapping_add(NTP_TO_UNIX_S);
        let fraction = (((ns % NANOS) << 32) + NANOS / 2) / NANOS;
        Self((seconds << 32).wrapping_add(fraction))
    }

    /// To nanoseconds of CLOCK_REALTIME, in the NTP era (136 years, the next begins in 2036) that is
    /// nearest to `near_ns`. Exact for times made by [`from_unix_ns`](Self::from_unix_ns).
    pub fn to_unix_ns(self, near_ns: u64) -> u64 {
        let near_s = near_ns / NANOS + NTP_TO_UNIX_S;
        let ahead = ((self.0 >> 32) as u32).wrapping_sub(near_s as u32) as i32;
        let seconds = near_s.saturating_add_signed(ahead.into()).saturating_sub(NTP_TO_UNIX_S);
        let nanos = ((self.0 & u64::from(u32::MAX)) * NANOS + (1 << 31)) >> 32;
        seconds.saturating_mul(NANOS).saturating_add(nanos)
    }
}

impl fmt::Display for NtpTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{:08x}", self.0 >> 32, self.0 & u64::from(u32::MAX))
    }
}

/// What a sender says about its stream (RFC 3550 6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderReport {
    /// The sender.
    pub ssrc: u32,
    /// The wall clock time of this report.
    pub ntp: NtpTime,
    /// The same instant in RTP timestamp units.
    pub rtp_timestamp: u32,
    /// Packets sent since the start, modulo 2^32.
    pub packets: u32,
    /// Payload bytes sent since the start, modulo 2^32.
    pub octets: u32,
}

/// Why an RTCP packet cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RtcpError {
    /// The CNAME is empty or too long.
    #[error("cname {value:?} has {len} bytes; accepted: 1 to 255", len = .value.len())]
    Cname {
        /// The name.
        value: String,
    },
    /// The reason is too long.
    #[error("BYE reason of {len} bytes is too long; accepted: up to 255")]
    Reason {
        /// Its bytes.
        len: usize,
    },
}

/// The compound packet of a running sender: SR and SDES with its CNAME (RFC 3550 6.1).
///
/// # Errors
/// The CNAME is empty or longer than 255 bytes.
pub fn sender_report(report: &SenderReport, cname: &str) -> Result<Vec<u8>, RtcpError> {
    check_cname(cname)?;
    let compound = CompoundBuilder::builder()
        .add_packet(report_packet(report))
        .add_packet(name_packet(report.ssrc, cname));
    Ok(write(&compound))
}

/// The compound packet of a sender that leaves: its last report, SDES and BYE (RFC 3550 6.6). A
/// sender that has sent nothing reports as a receiver does.
///
/// # Errors
/// The CNAME is empty or longer than 255 bytes, or the reason is longer.
pub fn bye(report: &SenderReport, cname: &str, reason: Option<&str>) -> Result<Vec<u8>, RtcpError> {
    check_cname(cname)?;
    let mut leave = Bye::builder().add_source(report.ssrc);
    if let Some(reason) = reason {
        if reason.len() > TEXT_MAX {
            return Err(RtcpError::Reason { len: reason.len() });
        }
        leave = leave.reason(reason);
    }
    let compound = match report.packets {
        0 => CompoundBuilder::builder().add_packet(ReceiverReport::builder(report.ssrc)),
        _ => CompoundBuilder::builder().add_packet(report_packet(report)),
    };
    Ok(write(&compound.add_packet(name_packet(report.ssrc, cname)).add_packet(leave)))
}

fn check_cname(cname: &str) -> Result<(), RtcpError> {
    match cname.len() {
        1..=TEXT_MAX => Ok(()),
        _ => Err(RtcpError::Cname { value: cname.to_owned() }),
    }
}

fn report_packet(report: &SenderReport) -> impl RtcpPacketWriter + use<> {
    SenderReportPacket::builder(report.ssrc)
        .ntp_timestamp(report.ntp.0)
        .rtp_timestamp(report.rtp_timestamp)
        .packet_count(report.packets)
        .octet_count(report.octets)
}

fn name_packet(ssrc: u32, cname: &str) -> impl RtcpPacketWriter {
    let item = SdesItem::builder(SdesItem::CNAME, cname);
    Sdes::builder().add_chunk(SdesChunk::builder(ssrc).add_item(item))
}

/// Writes a compound whose parts were checked before.
fn write(compound: &impl RtcpPacketWriter) -> Vec<u8> {
    let write = || -> Result<Vec<u8>, RtcpWriteError> {
        let mut packet = vec![0; compound.calculate_size()?];
        let len = compound.write_into(&mut packet)?;
        packet.truncate(len);
        Ok(packet)
    };
    write().expect("one source, no padding, texts of checked length")
}

/// What one RTCP datagram says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compound {
    /// Sender reports.
    pub senders: Vec<SenderReport>,
    /// Receivers that sent a report.
    pub receivers: Vec<u32>,
    /// Sources and their CNAMEs.
    pub names: Vec<(u32, String)>,
    /// Sources that leave.
    pub byes: Vec<u32>,
    /// Packets in it of other types.
    pub others: u32,
    /// Packets in it that contradict themselves.
    pub malformed: u32,
}

impl Compound {
    /// Reads a datagram.
    ///
    /// Lenient on purpose: single packets count (RFC 5506), and one that is malformed does not hide
    /// those before and after it. `None` when the bytes are no RTCP at all: too short, another
    /// version, or a length that leaves the datagram at the first packet.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let mut compound = Self::default();
        let mut rest = datagram;
        let mut packets = 0;
        while !rest.is_empty() {
            let Some((packet, after)) = split_packet(rest) else {
                compound.malformed += 1;
                break;
            };
            rest = after;
            packets += 1;
            if compound.learn(packet).is_none() {
                compound.malformed += 1;
            }
        }
        (packets > 0).then_some(compound)
    }

    /// Takes over what one packet says; `None` when it is malformed.
    fn learn(&mut self, packet: &[u8]) -> Option<()> {
        match packet[1] {
            SenderReportPacket::PACKET_TYPE => {
                let report = SenderReportPacket::parse(packet).ok()?;
                self.senders.push(SenderReport {
                    ssrc: report.ssrc(),
                    ntp: NtpTime(report.ntp_timestamp()),
                    rtp_timestamp: report.rtp_timestamp(),
                    packets: report.packet_count(),
                    octets: report.octet_count(),
                });
            }
            ReceiverReport::PACKET_TYPE => {
                self.receivers.push(ReceiverReport::parse(packet).ok()?.ssrc());
            }
            Sdes::PACKET_TYPE => names(packet, &mut self.names)?,
            Bye::PACKET_TYPE => self.byes.extend(Bye::parse(packet).ok()?.ssrcs()),
            _ => self.others += 1,
        }
        Some(())
    }
}

/// Splits the first packet off: version 2, and a length that stays within the datagram.
fn split_packet(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[first, _, high, low] = datagram.first_chunk::<HEADER_LEN>()?;
    let len = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
    if first >> 6 != 2 {
        return None;
    }
    datagram.split_at_checked(len)
}

/// Reads the CNAMEs of an SDES packet (RFC 3550 6.5).
///
/// By hand: rtcp-types 0.3 takes the leading zero bytes of a chunk's SSRC for padding of the chunk
/// before, and refuses items of one byte at the end.
fn names(packet: &[u8], to: &mut Vec<(u32, String)>) -> Option<()> {
    let chunks = packet[0] & 0x1f;
    let mut at = HEADER_LEN;
    for _ in 0..chunks {
        let ssrc = u32::from_be_bytes(*packet.get(at..)?.first_chunk()?);
        at += 4;
        loop {
            let kind = *packet.get(at)?;
            if kind == 0 {
                // One to four zero bytes, up to the next 32-bit boundary.
                at = (at + 1).next_multiple_of(4);
                break;
            }
            let len = usize::from(*packet.get(at + 1)?);
            let value = packet.get(at + 2..at + 2 + len)?;
            if kind == SdesItem::CNAME {
                to.push((ssrc, String::from_utf8_lossy(value).into_owned()));
            }
            at += 2 + len;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPORT: SenderReport = SenderReport {
        ssrc: 0x1234_5678,
        ntp: NtpTime(0x0123_4567_89ab_cdef),
        rtp_timestamp: 0xfedc_ba98,
        packets: 1_000,
        octets: 1_316_000,
    };

    /// The bytes as RFC 3550 6.4.1, 6.5 and 6.6 draw them.
    #[rustfmt::skip]
    const SR_SDES: [u8; 44] = [
        0x80, 200, 0, 6,
        0x12, 0x34, 0x56, 0x78,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        0xfe, 0xdc, 0xba, 0x98,
        0x00, 0x00, 0x03, 0xe8,
        0x00, 0x14, 0x14, 0xa0,
        0x81, 202, 0, 3,
        0x12, 0x34, 0x56, 0x78,
        1, 4, b'a', b'@', b'b', b'c', 0, 0,
    ];

    #[test]
    fn a_report_is_the_bytes_of_the_rfc() {
        assert_eq!(sender_report(&REPORT, "a@bc").unwrap(), SR_SDES);
    }

    #[test]
    fn a_bye_closes_the_compound() {
        let packet = bye(&REPORT, "a@bc", Some("end")).unwrap();
        let mut expected = SR_SDES.to_vec();
        expected.extend([0x81, 203, 0, 2, 0x12, 0x34, 0x56, 0x78, 3, b'e', b'n', b'd']);
        assert_eq!(packet, expected);

        let silent = SenderReport { packets: 0, ..REPORT };
        let packet = bye(&silent, "a@bc", None).unwrap();
        let mut expected = vec![0x80, 201, 0, 1, 0x12, 0x34, 0x56, 0x78];
        expected.extend(&SR_SDES[28..]);
        expected.extend([0x81, 203, 0, 1, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(packet, expected);
    }

    #[test]
    fn what_is_built_is_read_back() {
        let compound = Compound::parse(&bye(&REPORT, "a@bc", Some("end")).unwrap()).unwrap();
        let expected = Compound {
            senders: vec![REPORT],
            names: vec![(REPORT.ssrc, "a@bc".to_owned())],
            byes: vec![REPORT.ssrc],
            ..Compound::default()
        };
        assert_eq!(compound, expected);
    }

    #[test]
    fn texts_of_wrong_length_are_refused_with_the_range() {
        let long = "x".repeat(256);
        for cname in ["", &long] {
            let error = sender_report(&REPORT, cname).unwrap_err();
            assert_eq!(error, RtcpError::Cname { value: cname.to_owned() });
            assert!(error.to_string().contains("accepted: 1 to 255"));
        }
        assert_eq!(bye(&REPORT, "a", Some(&long)), Err(RtcpError::Reason { len: 256 }));
        assert!(sender_report(&REPORT, &long[..255]).is_ok());
        assert!(bye(&REPORT, "a", Some(&long[..255])).is_ok());
    }

    #[test]
    fn a_chunk_after_another_keeps_its_small_ssrc() {
        #[rustfmt::skip]
        let sdes = [
            0x82, 202, 0, 5,
            0, 0, 0, 1,  1, 1, b'x', 0,
            0, 0, 0, 2,  2, 1, b'n', 1, 2, b'y', b'z', 0,
        ];
        let compound = Compound::parse(&sdes).unwrap();
        assert_eq!(compound.names, [(1, "x".to_owned()), (2, "yz".to_owned())]);
        assert_eq!(compound.malformed, 0);
    }

    #[test]
    fn a_bye_is_found_behind_packets_that_say_nothing() {
        #[rustfmt::skip]
        let datagram = [
            0x81, 201, 0, 1, 0, 0, 0, 9,                // RR that lacks its block
            0x81, 202, 0, 1, 0, 0, 0, 9,                // SDES that lacks its item
            0x80, 204, 0, 2, 0, 0, 0, 9, 1, 2, 3, 4,    // APP
            0x82, 203, 0, 2, 0, 0, 0, 9, 0, 0, 0, 10,   // BYE of two
            0x80, 203, 0, 9,                            // cut off
        ];
        let compound = Compound::parse(&datagram).unwrap();
        assert_eq!(compound.byes, [9, 10]);
        assert_eq!((compound.others, compound.malformed), (1, 3));
    }

    #[test]
    fn what_is_no_rtcp_is_refused() {
        for datagram in [&[][..], &[0x80], &[0x80, 203, 0], &[0x40, 203, 0, 0], &[0x81, 203, 0, 1]]
        {
            assert_eq!(Compound::parse(datagram), None);
        }
    }

    #[test]
    fn ntp_time_begins_in_1900() {
        assert_eq!(NtpTime::from_unix_ns(0), NtpTime(2_208_988_800 << 32));
        assert_eq!(NtpTime::from_unix_ns(NANOS / 2), NtpTime(2_208_988_800 << 32 | 1 << 31));
        // RFC 5905 figure 4: the first day of Unix, and the last second of the first era.
        let last = (u64::from(u32::MAX) - 2_208_988_800) * NANOS;
        assert_eq!(NtpTime::from_unix_ns(last).0 >> 32, u64::from(u32::MAX));
        assert_eq!(NtpTime::from_unix_ns(last + NANOS).0 >> 32, 0);
        assert_eq!(NtpTime(0).to_unix_ns(last), last + NANOS, "2036 begins the next era");
    }

    proptest! {
        #[test]
        fn ntp_time_loses_nothing(ns in 0..u64::MAX / 2, off in -60 * 365 * 86_400i64..60 * 365 * 86_400) {
            let near = ns.saturating_add_signed(off.saturating_mul(NANOS as i64));
            prop_assert_eq!(NtpTime::from_unix_ns(ns).to_unix_ns(near), ns);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Compound::parse(&bytes);
        }

        #[test]
        fn no_compound_of_hostile_packets_makes_the_parser_panic(
            packets in proptest::collection::vec(
                (0x80u8..0xc0, 198u8..210, proptest::collection::vec(any::<u8>(), 0..64), -2i32..3),
                1..6,
            )
        ) {
            let mut bytes = Vec::new();
            for (first, kind, body, lie) in &packets {
                let len = (body.len() as i32 / 4 + lie).max(0) as u16;
                bytes.extend([*first, *kind]);
                bytes.extend(len.to_be_bytes());
                bytes.extend(body);
            }
            let compound = Compound::parse(&bytes);
            if let Some(compound) = compound {
                prop_assert!(compound.byes.len() <= bytes.len() / 4);
            }
        }

        #[test]
        fn a_mutated_report_never_makes_the_parser_panic(at in 0usize..56, value: u8, cut in 0usize..57) {
            let mut bytes = bye(&REPORT, "a@bc", Some("end")).unwrap();
            bytes[at] = value;
            let _ = Compound::parse(&bytes[..cut.min(bytes.len())]);
        }
    }
}
