//! RTP headers: telling RTP from what shares its port, parsing, header extensions, building.
//!
//! What lives here: everything that needs only the bytes of one packet. What does not: anything that
//! needs the packets before it ([`super::source`]).
//!
//! Nothing is copied and every length is checked. A parse needs the header's bytes and the packet's
//! last byte only, so packets cut by a snapshot length, and packets whose payload lies elsewhere,
//! parse as well as whole ones.

use core::fmt;

/// Bytes of the RTP fixed header (RFC 3550 §5.1).
pub const FIXED_LEN: usize = 12;
/// RTP version (RFC 3550 §5.1).
pub const VERSION: u8 = 2;
/// `profile` of the one-byte form of header extensions (RFC 8285 §4.2).
pub const PROFILE_ONE_BYTE: u16 = 0xBEDE;
/// `profile` of the two-byte form, its low four bits zero (RFC 8285 §4.3).
pub const PROFILE_TWO_BYTE: u16 = 0x1000;

/// The upper bits of RTCP packet types 192 to 223.
const RTCP_TYPES: u8 = 6;
/// Magic cookie of STUN (RFC 8489 §5).
const STUN_COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();
/// Bytes of a STUN header (RFC 8489 §5).
const STUN_LEN: usize = 20;
/// Bytes of a DTLS 1.2 record header (RFC 6347 §4.1).
const DTLS_RECORD_LEN: usize = 13;

/// What a datagram is, as far as its own bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RTP: version 2 and room for a fixed header. Whether it is media, its source tells.
    Rtp,
    /// RTCP (RFC 5761 §4).
    Rtcp,
    /// STUN (RFC 8489).
    Stun,
    /// DTLS (RFC 6347, RFC 9147).
    Dtls,
    /// Anything else.
    Other,
}

/// Tells apart what shares a port with RTP, by RFC 7983 §7 and RFC 5761 §4.
///
/// The first byte alone puts much into the range of STUN or DTLS that is neither (PTP for one), so
/// STUN needs its magic cookie, and a DTLS record its version. DTLS 1.3 ciphertext (first bytes 32
/// to 63, RFC 9147 §4) has nothing further to recognise.
#[inline]
pub fn classify(packet: &[u8]) -> Kind {
    if is_rtp(packet) {
        Kind::Rtp
    } else {
        classify_other(packet)
    }
}

/// Whether a datagram is RTP: version 2, room for a fixed header, and no packet type of RTCP (RFC 5761
/// §4: payload types 64 to 95 with the marker bit are 192 to 223).
#[inline]
pub fn is_rtp(packet: &[u8]) -> bool {
    match packet.first_chunk::<FIXED_LEN>() {
        Some([first, second, ..]) => is_rtp_start([*first, *second]),
        None => false,
    }
}

/// Whether a datagram with room for a fixed header that begins with these bytes is RTP.
#[inline]
pub const fn is_rtp_start([first, second]: [u8; 2]) -> bool {
    first >> 6 == VERSION && second >> 5 != RTCP_TYPES
}

/// Of the first two bytes what [`is_rtp_start`] looks at, in their order: the same of two packets, the same answer.
#[inline]
pub const fn start_bits(first: [u8; 2]) -> u16 {
    u16::from_le_bytes(first) & u16::from_le_bytes([0xc0, 0xe0])
}

/// What is no RTP.
fn classify_other(packet: &[u8]) -> Kind {
    match packet {
        [0..=3, _, _, _, cookie @ ..]
            if packet.len() >= STUN_LEN && cookie.starts_with(&STUN_COOKIE) =>
        {
            Kind::Stun
        }
        [20..=31, 0xFE, ..] if packet.len() >= DTLS_RECORD_LEN => Kind::Dtls,
        [32..=63, ..] => Kind::Dtls,
        [128..=191, 192..=223, _, _, ..] => Kind::Rtcp,
        _ => Kind::Other,
    }
}

/// Why bytes are not a valid RTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The packet ends before its fixed header, CSRC list or extension does.
    Short {
        /// Bytes that the header takes, as far as known.
        needed: usize,
        /// Bytes of the packet.
        len: usize,
    },
    /// The packet is long enough, but its header goes on past the bytes at hand.
    Cut {
        /// Bytes that the header takes, as far as known.
        needed: usize,
    },
    /// Not version 2.
    Version(u8),
    /// The padding count is zero or larger than what follows the header.
    Padding {
        /// The count, from the packet's last byte.
        count: u8,
        /// Bytes after the header.
        available: usize,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, len } => {
                write!(f, "RTP header of at least {needed} bytes in a packet of {len}")
            }
            Self::Cut { needed } => {
                write!(f, "RTP header of at least {needed} bytes goes past the bytes at hand")
            }
            Self::Version(version) => write!(f, "RTP version {version}, not {VERSION}"),
            Self::Padding { count, available } => {
                write!(f, "RTP padding count {count}, with 1 to {available} possible")
            }
        }
    }
}

impl core::error::Error for HeaderError {}

/// Where the header extension of a packet is (RFC 3550 §5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// "Defined by profile".
    pub profile: u16,
    /// Bytes from the start of the packet to the extension's data.
    pub offset: usize,
    /// Bytes of its data, a multiple of four.
    pub len: usize,
}

/// The fields of the fixed header that no length can spoil (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedHeader {
    /// The marker bit.
    pub marker: bool,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Synchronisation source. 0 is a valid SSRC.
    pub ssrc: u32,
    /// Contributing sources, 0 to 15.
    pub csrc_count: u8,
    /// Whether an extension follows the CSRC list.
    pub has_extension: bool,
    /// Whether the packet ends with padding.
    pub has_padding: bool,
}

impl FixedHeader {
    /// Whether the payload follows and nothing else: no contributing sources, extension or padding.
    #[inline]
    pub const fn is_all(&self) -> bool {
        self.csrc_count == 0 && !self.has_extension && !self.has_padding
    }
}

/// A parsed RTP header. Offsets count from the start of the packet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtpHeader {
    /// The marker bit.
    pub marker: bool,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Synchronisation source. 0 is a valid SSRC.
    pub ssrc: u32,
    /// Contributing sources, 0 to 15.
    pub csrc_count: u8,
    /// The header extension.
    pub extension: Option<Extension>,
    /// Where the payload begins.
    pub payload_offset: usize,
    /// Bytes of payload, padding not counted.
    pub payload_len: usize,
    /// Bytes of padding at the end. 0 also when there is padding whose count is not at hand
    /// ([`parse_prefix`] without the last byte); `payload_len` then includes it.
    pub padding_len: u8,
}

impl RtpHeader {
    /// The contributing sources in `packet`, from which this header was parsed.
    pub fn csrcs<'p>(&self, packet: &'p [u8]) -> impl Iterator<Item = u32> + 'p {
        let list = packet.get(FIXED_LEN..).unwrap_or_default();
        list.chunks_exact(4).take(self.csrc_count.into()).filter_map(read_u32)
    }

    /// The elements of the header extension in `packet`, from which this header was parsed (RFC
    /// 8285). None when there is no extension, or one of another profile.
    pub fn elements<'p>(&self, packet: &'p [u8]) -> Elements<'p> {
        let data = self.extension.and_then(|extension| {
            let end = extension.offset.checked_add(extension.len)?;
            Some((extension.profile, packet.get(extension.offset..end)?))
        });
        match data {
            Some((profile, data)) => Elements::new(profile, data),
            None => Elements { rest: &[], one_byte: true },
        }
    }
}

/// Parses a whole packet.
///
/// # Errors
/// [`HeaderError`] when the bytes are not RTP version 2 or lengths inside do not fit; never `Cut`.
#[inline]
pub fn parse(packet: &[u8]) -> Result<RtpHeader, HeaderError> {
    parse_prefix(packet, packet.len(), packet.last().copied())
}

/// Parses a packet of `packet_len` bytes of which only the first, `prefix`, and perhaps the last are
/// at hand.
///
/// # Errors
/// As [`parse`]; [`HeaderError::Cut`] when the header does not end within `prefix` but may well be
/// good (its [`FixedHeader`] may still parse).
pub fn parse_prefix(
    prefix: &[u8],
    packet_len: usize,
    last_byte: Option<u8>,
) -> Result<RtpHeader, HeaderError> {
    let fixed = parse_fixed(prefix, packet_len)?;
    let csrc_end = FIXED_LEN.saturating_add(usize::from(fixed.csrc_count).saturating_mul(4));
    let (extension, payload_offset) = if fixed.has_extension {
        let extension = parse_extension(prefix, packet_len, csrc_end)?;
        (Some(extension), extension.offset.saturating_add(extension.len))
    } else {
        (None, csrc_end)
    };
    let Some(available) = packet_len.checked_sub(payload_offset) else {
        return Err(HeaderError::Short { needed: payload_offset, len: packet_len });
    };
    let padding_len = match last_byte {
        Some(count) if fixed.has_padding => count,
        _ => 0,
    };
    // RFC 3550 §5.1: the count includes itself, so with padding it is at least 1.
    let payload_len = match available.checked_sub(padding_len.into()) {
        Some(len) if padding_len > 0 || !fixed.has_padding || last_byte.is_none() => len,
        _ => return Err(HeaderError::Padding { count: padding_len, available }),
    };
    Ok(RtpHeader {
        marker: fixed.marker,
        payload_type: fixed.payload_type,
        sequence: fixed.sequence,
        timestamp: fixed.timestamp,
        ssrc: fixed.ssrc,
        csrc_count: fixed.csrc_count,
        extension,
        payload_offset,
        payload_len,
        padding_len,
    })
}

/// Parses the fixed header of a packet of `packet_len` bytes, whatever follows it.
///
/// # Errors
/// [`HeaderError::Version`], [`HeaderError::Short`] or [`HeaderError::Cut`].
#[inline]
pub fn parse_fixed(prefix: &[u8], packet_len: usize) -> Result<FixedHeader, HeaderError> {
    if packet_len < FIXED_LEN {
        return Err(HeaderError::Short { needed: FIXED_LEN, len: packet_len });
    }
    let Some(&[flags, kind, s0, s1, t0, t1, t2, t3, i0, i1, i2, i3]) =
        prefix.first_chunk::<FIXED_LEN>()
    else {
        return Err(HeaderError::Cut { needed: FIXED_LEN });
    };
    if flags >> 6 != VERSION {
        return Err(HeaderError::Version(flags >> 6));
    }
    Ok(FixedHeader {
        marker: kind & 0x80 != 0,
        payload_type: kind & 0x7F,
        sequence: u16::from_be_bytes([s0, s1]),
        timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
        ssrc: u32::from_be_bytes([i0, i1, i2, i3]),
        csrc_count: flags & 0x0F,
        has_extension: flags & 0x10 != 0,
        has_padding: flags & 0x20 != 0,
    })
}

/// Parses the extension that begins at `start` (RFC 3550 §5.3.1).
fn parse_extension(
    prefix: &[u8],
    packet_len: usize,
    start: usize,
) -> Result<Extension, HeaderError> {
    let offset = start.saturating_add(4);
    if packet_len < offset {
        return Err(HeaderError::Short { needed: offset, len: packet_len });
    }
    let Some(&[p0, p1, l0, l1]) = prefix.get(start..).and_then(<[u8]>::first_chunk::<4>) else {
        return Err(HeaderError::Cut { needed: offset });
    };
    let len = usize::from(u16::from_be_bytes([l0, l1])).saturating_mul(4);
    Ok(Extension { profile: u16::from_be_bytes([p0, p1]), offset, len })
}

/// One element of a header extension (RFC 8285 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'p> {
    /// Local identifier: 1 to 14 in the one-byte form, 1 to 255 in the two-byte form.
    pub id: u8,
    /// Its data: 1 to 16 bytes in the one-byte form, 0 to 255 in the two-byte form.
    pub data: &'p [u8],
}

/// Iterator over the elements of a header extension. Ends at the first that does not fit.
#[derive(Clone, Debug)]
pub struct Elements<'p> {
    rest: &'p [u8],
    one_byte: bool,
}

impl<'p> Elements<'p> {
    /// The elements in an extension's `data`; none when `profile` is neither form of RFC 8285.
    pub fn new(profile: u16, data: &'p [u8]) -> Self {
        let one_byte = profile == PROFILE_ONE_BYTE;
        let known = one_byte || profile & 0xFFF0 == PROFILE_TWO_BYTE;
        Self { rest: if known { data } else { &[] }, one_byte }
    }

    /// Splits identifier and length off `rest`, padding skipped.
    fn head(&mut self) -> Option<(u8, usize, &'p [u8])> {
        loop {
            let (&first, rest) = self.rest.split_first()?;
            if first == 0 {
                // RFC 8285 §4.1.2: padding between and after elements.
                self.rest = rest;
            } else if self.one_byte {
                let id = first >> 4;
                // RFC 8285 §4.2: 0 is reserved for padding, 15 ends the extension.
                let len = usize::from(first & 0x0F).saturating_add(1);
                return (1..=14).contains(&id).then_some((id, len, rest));
            } else {
                let (&len, rest) = rest.split_first()?;
                return Some((first, len.into(), rest));
            }
        }
    }
}

impl<'p> Iterator for Elements<'p> {
    type Item = Element<'p>;

    fn next(&mut self) -> Option<Element<'p>> {
        let split = self.head().and_then(|(id, len, rest)| {
            let (data, rest) = rest.split_at_checked(len)?;
            Some((Element { id, data }, rest))
        });
        self.rest = split.map_or(&[], |(_, rest)| rest);
        split.map(|(element, _)| element)
    }
}

/// Writes a fixed header without padding, extension or CSRCs to the start of `to`. Returns its
/// length, [`FIXED_LEN`]; `None` when `to` is shorter or `payload_type` is above 127.
pub fn build(
    to: &mut [u8],
    marker: bool,
    payload_type: u8,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
) -> Option<usize> {
    if payload_type > 127 {
        return None;
    }
    let to = to.first_chunk_mut::<FIXED_LEN>()?;
    let [s0, s1] = sequence.to_be_bytes();
    let [t0, t1, t2, t3] = timestamp.to_be_bytes();
    let [i0, i1, i2, i3] = ssrc.to_be_bytes();
    let kind = payload_type | if marker { 0x80 } else { 0 };
    *to = [VERSION << 6, kind, s0, s1, t0, t1, t2, t3, i0, i1, i2, i3];
    Some(FIXED_LEN)
}

/// The number in the first four bytes.
fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// A packet put together from its parts by the layout of RFC 3550 §5.1 and §5.3.1.
    #[derive(Clone, Debug)]
    struct Parts {
        marker: bool,
        payload_type: u8,
        sequence: u16,
        timestamp: u32,
        ssrc: u32,
        csrcs: Vec<u32>,
        extension: Option<(u16, Vec<u32>)>,
        payload: Vec<u8>,
        padding: u8,
    }

    impl Parts {
        fn to_bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0x80 | self.csrcs.len() as u8];
            bytes[0] |= if self.padding > 0 { 0x20 } else { 0 };
            bytes[0] |= if self.extension.is_some() { 0x10 } else { 0 };
            bytes.push(u8::from(self.marker) << 7 | self.payload_type);
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.timestamp.to_be_bytes());
            bytes.extend(self.ssrc.to_be_bytes());
            bytes.extend(self.csrcs.iter().flat_map(|csrc| csrc.to_be_bytes()));
            if let Some((profile, words)) = &self.extension {
                bytes.extend(profile.to_be_bytes());
                bytes.extend((words.len() as u16).to_be_bytes());
                bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
            }
            bytes.extend(&self.payload);
            bytes.extend((1..self.padding).map(|_| 0));
            bytes.extend((self.padding > 0).then_some(self.padding));
            bytes
        }

        fn header_len(&self) -> usize {
            let extension = self.extension.as_ref().map_or(0, |(_, words)| 4 + 4 * words.len());
            12 + 4 * self.csrcs.len() + extension
        }
    }

    fn parts() -> impl Strategy<Value = Parts> {
        (
            (any::<bool>(), 0..128u8, any::<u16>(), any::<u32>(), any::<u32>()),
            proptest::collection::vec(any::<u32>(), 0..=15),
            proptest::option::of((any::<u16>(), proptest::collection::vec(any::<u32>(), 0..20))),
            proptest::collection::vec(any::<u8>(), 0..50),
            prop_oneof![Just(0u8), any::<u8>()],
        )
            .prop_map(
                |(
                    (marker, payload_type, sequence, timestamp, ssrc),
                    csrcs,
                    extension,
                    payload,
                    padding,
                )| {
                    Parts {
                        marker,
                        payload_type,
                        sequence,
                        timestamp,
                        ssrc,
                        csrcs,
                        extension,
                        payload,
                        padding,
                    }
                },
            )
    }

    fn header(marker: bool, payload_type: u8) -> [u8; FIXED_LEN] {
        let mut bytes = [0; FIXED_LEN];
        assert_eq!(build(&mut bytes, marker, payload_type, 1, 2, 3), Some(12));
        bytes
    }

    proptest! {
        #[test]
        fn every_field_is_found_where_rfc_3550_puts_it(parts in parts()) {
            let bytes = parts.to_bytes();
            let header = parse(&bytes).unwrap();
            prop_assert_eq!(header.marker, parts.marker);
            prop_assert_eq!(header.payload_type, parts.payload_type);
            prop_assert_eq!(header.sequence, parts.sequence);
            prop_assert_eq!(header.timestamp, parts.timestamp);
            prop_assert_eq!(header.ssrc, parts.ssrc);
            prop_assert_eq!(header.csrcs(&bytes).collect::<Vec<_>>(), parts.csrcs.clone());
            prop_assert_eq!(header.padding_len, parts.padding);
            prop_assert_eq!(&bytes[header.payload_offset..][..header.payload_len], &parts.payload[..]);
            let extension = header.extension.map(|extension| {
                let words = bytes[extension.offset..][..extension.len].chunks_exact(4);
                let words = words.map(|word| u32::from_be_bytes(word.try_into().unwrap()));
                (extension.profile, words.collect::<Vec<_>>())
            });
            prop_assert_eq!(extension, parts.extension);
        }

        #[test]
        fn a_packet_cut_short_is_refused_and_a_snapped_one_is_cut(parts in parts(), at in any::<prop::sample::Index>()) {
            let parts = Parts { padding: 0, ..parts };
            let bytes = parts.to_bytes();
            let keep = at.index(bytes.len() + 1);
            let whole = parse(&bytes).unwrap();
            let snapped = parse_prefix(&bytes[..keep], bytes.len(), None);
            if keep >= parts.header_len() || (parts.extension.is_none() && keep >= FIXED_LEN) {
                prop_assert_eq!(snapped, Ok(whole));
                let short = parse(&bytes[..keep]);
                prop_assert_eq!(short.is_ok(), keep >= parts.header_len());
            } else if let Some((_, words)) = &parts.extension {
                let known = parts.header_len() - 4 * words.len();
                if keep >= known {
                    prop_assert_eq!(snapped, Ok(whole));
                } else {
                    prop_assert!(matches!(snapped, Err(HeaderError::Cut { .. })), "{:?}", snapped);
                }
                let short_is_refused = matches!(parse(&bytes[..keep]), Err(HeaderError::Short { .. }));
                prop_assert!(short_is_refused);
            } else {
                prop_assert_eq!(snapped, Err(HeaderError::Cut { needed: FIXED_LEN }));
            }
        }

        #[test]
        fn any_bytes_are_judged_without_leaving_them(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0..300usize, last in any::<Option<u8>>()) {
            let _ = classify(&bytes);
            for header in [parse(&bytes), parse_prefix(&bytes, len.max(bytes.len()), last)].into_iter().flatten() {
                let end = header.payload_offset + header.payload_len + usize::from(header.padding_len);
                prop_assert!(end == bytes.len() || end == len.max(bytes.len()));
                prop_assert!(header.elements(&bytes).count() <= bytes.len());
                prop_assert!(header.csrcs(&bytes).count() <= 15);
            }
        }

        #[test]
        fn what_is_built_parses_back(marker in any::<bool>(), payload_type in any::<u8>(), sequence in any::<u16>(), timestamp in any::<u32>(), ssrc in any::<u32>()) {
            let mut bytes = [0; 20];
            let built = build(&mut bytes, marker, payload_type, sequence, timestamp, ssrc);
            prop_assert_eq!(built, (payload_type < 128).then_some(12));
            if built.is_some() {
                let header = parse(&bytes).unwrap();
                prop_assert_eq!(header.payload_len, 8);
                prop_assert_eq!(
                    (header.marker, header.payload_type, header.sequence, header.timestamp, header.ssrc),
                    (marker, payload_type, sequence, timestamp, ssrc)
                );
            }
        }
    }

    #[test]
    fn build_refuses_a_short_buffer() {
        assert_eq!(build(&mut [0; 11], false, 33, 1, 2, 3), None);
    }

    /// RFC 3550 §5.1: the last octet of the padding counts itself.
    #[test]
    fn padding_that_cannot_be_is_refused() {
        let mut bytes = header(false, 33).to_vec();
        bytes[0] |= 0x20;
        let refused = |bytes: &[u8], count, available| {
            assert_eq!(parse(bytes), Err(HeaderError::Padding { count, available }));
        };
        refused(&[&bytes[..], &[0]].concat(), 0, 1);
        refused(&[&bytes[..], &[7, 5]].concat(), 5, 2);
        // No byte after the header: the last byte is one of the SSRC's.
        refused(&bytes, 3, 0);
        let all = parse(&[&bytes[..], &[7, 2]].concat()).unwrap();
        assert_eq!((all.payload_len, all.padding_len), (0, 2));
        let unknown = parse_prefix(&bytes, 20, None).unwrap();
        assert_eq!((unknown.payload_len, unknown.padding_len), (8, 0));
    }

    #[test]
    fn only_version_2_parses() {
        for version in [0, 1, 3] {
            let mut bytes = header(false, 0);
            bytes[0] = version << 6;
            assert_eq!(parse(&bytes), Err(HeaderError::Version(version)));
        }
    }

    /// The example of RFC 8285 §4.2, and its rules on identifiers 0 and 15.
    #[test]
    fn one_byte_elements() {
        let elements = |data| Elements::new(PROFILE_ONE_BYTE, data).collect::<Vec<_>>();
        let element = |id, data| Element { id, data };
        assert_eq!(
            elements(&[0x10, 0xAA, 0x21, 0xB0, 0xB1, 0, 0, 0x33, 1, 2, 3, 4]),
            [element(1, &[0xAA][..]), element(2, &[0xB0, 0xB1]), element(3, &[1, 2, 3, 4])]
        );
        assert_eq!(elements(&[0x10, 0xAA, 0xF0, 0xBB, 0x20, 0xCC]), [element(1, &[0xAA][..])]);
        assert_eq!(elements(&[0x10, 0xAA, 0x01, 0xBB, 0x20, 0xCC]), [element(1, &[0xAA][..])]);
        assert_eq!(elements(&[0x10, 0xAA, 0x2F, 0xBB]), [element(1, &[0xAA][..])], "too long");
        assert_eq!(elements(&[0, 0, 0, 0]), []);
    }

    /// The example of RFC 8285 §4.3: an element without data, one with one byte, padding.
    #[test]
    fn two_byte_elements() {
        for profile in [PROFILE_TWO_BYTE, PROFILE_TWO_BYTE | 0xF] {
            let data = [1, 0, 2, 1, 0xAA, 0, 255, 4, 1, 2, 3, 4];
            let elements: Vec<_> = Elements::new(profile, &data).collect();
            assert_eq!(
                elements,
                [
                    Element { id: 1, data: &[] },
                    Element { id: 2, data: &[0xAA] },
                    Element { id: 255, data: &[1, 2, 3, 4] },
                ]
            );
        }
        assert_eq!(Elements::new(PROFILE_TWO_BYTE, &[1, 3, 0, 0]).count(), 0, "too long");
        assert_eq!(Elements::new(PROFILE_TWO_BYTE, &[1]).count(), 0, "no length");
        assert_eq!(Elements::new(0x1234, &[0x10, 0xAA]).count(), 0, "another profile");
    }

    /// RFC 7983 §7 by first byte, for packets that are otherwise what they claim to be.
    #[test]
    fn kinds_by_first_byte() {
        for first in 0..=255u8 {
            let mut packet = [0; 40];
            packet[0] = first;
            packet[1] = if (20..=31).contains(&first) { 0xFE } else { 0 };
            packet[4..8].copy_from_slice(&STUN_COOKIE);
            let expected = match first {
                0..=3 => Kind::Stun,
                20..=63 => Kind::Dtls,
                128..=191 => Kind::Rtp,
                _ => Kind::Other,
            };
            assert_eq!(classify(&packet), expected, "first byte {first}");
        }
    }

    /// RFC 5761 §4: payload types 64 to 95 with the marker bit are RTCP.
    #[test]
    fn rtcp_by_second_byte() {
        for second in 0..=255u8 {
            let mut packet = header(second & 0x80 != 0, second & 0x7F);
            let rtcp = second & 0x80 != 0 && (64..96).contains(&(second & 0x7F));
            let expected = if rtcp { Kind::Rtcp } else { Kind::Rtp };
            assert_eq!(classify(&packet), expected, "second byte {second}");
            packet[0] = 0x40 | packet[0] & 0x3F;
            assert_eq!(classify(&packet), Kind::Other, "version 1, second byte {second}");
        }
        // The shortest RTCP packet: a BYE of no one (RFC 3550 §6.6).
        assert_eq!(classify(&[0x80, 203, 0, 0]), Kind::Rtcp);
        assert_eq!(classify(&[0x80, 203, 0]), Kind::Other);
    }

    /// IEEE 1588 messages begin with bytes of the STUN range (Sync 0, Delay_Req 1, Follow_Up 8).
    #[test]
    fn ptp_is_neither_stun_nor_rtp() {
        for message in 0..16u8 {
            for profile in [0x00, 0x10] {
                let mut packet = [0; 44];
                packet[..4].copy_from_slice(&[profile | message, 0x02, 0, 44]);
                assert_eq!(classify(&packet), Kind::Other);
            }
        }
    }

    #[test]
    fn short_packets_are_nothing() {
        assert_eq!(classify(&[]), Kind::Other);
        assert_eq!(classify(&header(false, 0)[..11]), Kind::Other);
        assert_eq!(classify(&[0; 19]), Kind::Other);
        assert_eq!(classify(&[22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Kind::Other);
    }
}
