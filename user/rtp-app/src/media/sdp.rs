//! Session descriptions (SDP, RFC 8866) of one stream: what `tx --sdp` writes and `rx --sdp` reads.
//!
//! A stream of two legs is described as two media in a group DUP (RFC 7104, as ST 2022-7 senders write it), a
//! source-specific one with a source filter (RFC 4570). Times and keys of sessions are none of our business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtp_mgr::leg::Leg;
use rtp_mgr_ring::source::static_clock_rate;
use sdp_types::{
    Attribute, Connection, Media, MediaType, NetType, Origin, RtpMap, Session, SourceFilter,
    SourceFilterAddrType, SourceFilterAddress, SourceFilterDestination, SourceFilterMode, Time,
    TransportProto,
};

use super::audio::Format;
use super::input::Input;
use super::{MediaError, MediaInfo, pcm};

/// No description of a stream is longer, in bytes.
const LENGTH_MAX: usize = 64 * 1024;

/// The names of two media that carry the same packets.
const MIDS: [&str; 2] = ["primary", "secondary"];

/// A stream as a session description tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The session's name.
    pub name: String,
    /// Where the packets go: one leg, or two that carry the same. A group's leg names the source it is filtered by.
    pub legs: Vec<Leg>,
    /// Time to live of IPv4 multicast.
    pub ttl: Option<u8>,
    /// The one sender of a unicast stream, where a source filter names it.
    pub source: Option<IpAddr>,
    /// The RTP payload type.
    pub payload_type: u8,
    /// The encoding, if it is one of ours.
    pub format: Option<Format>,
    /// The RTP clock in Hz, if it is known.
    pub clock_rate: Option<u32>,
    /// How much media a packet holds.
    pub packet_time: Option<Duration>,
    /// RFC 7273 `ts-refclk`, as it is written.
    pub reference_clock: Option<String>,
    /// RFC 7273 `mediaclk`, as it is written.
    pub media_clock: Option<String>,
}

impl Description {
    /// Describes a stream of ours. Audio is said to run on the sender's own clock, which is what it does.
    ///
    /// # Errors
    /// The stream's format is not known: receivers could not be told what it is.
    pub fn of(
        name: &str,
        legs: Vec<Leg>,
        payload_type: u8,
        info: &MediaInfo,
    ) -> Result<Self, MediaError> {
        let Some(format) = info.format else {
            return Err(MediaError::Output {
                name: name.to_owned(),
                reason: "the encoding is not known, so no session description can be written; \
                         accepted: MPEG-TS, WAV or raw audio with --format"
                    .to_owned(),
            });
        };
        let is_audio = matches!(format, Format::Audio(_));
        Ok(Self {
            name: name.to_owned(),
            legs,
            ttl: None,
            source: None,
            payload_type,
            format: Some(format),
            clock_rate: Some(format.clock_rate()),
            packet_time: info.packet_time().filter(|_| is_audio),
            reference_clock: is_audio.then(|| "local".to_owned()),
            media_clock: is_audio.then(|| "sender".to_owned()),
        })
    }

    /// The description as a file. `origin` is the sender's address and `session` a number of its own for this session (RFC 8866
    /// section 5.2 recommends a time).
    pub fn to_text(&self, origin: Option<IpAddr>, session: u64) -> String {
        let origin = origin.unwrap_or_else(|| match self.legs.first().map(Leg::address) {
            Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        });
        let mut description =
            Session::new(Origin::with_ip_addr(session.to_string(), 1, origin), &self.name);
        description.times.push(Time::new(0, 0));
        // A single leg's address stands in the session: FFmpeg takes no notice of one that follows a video medium of MP2T.
        if let Some(leg) = self.legs.first() {
            description.connection = Some(self.connection(leg));
        }
        if let [leg] = self.legs.as_slice() {
            description.attributes.extend(self.filter(leg));
        } else {
            let group = format!("DUP {}", MIDS.join(" "));
            description.attributes.push(Attribute::with_value("group", group));
        }
        description.medias =
            self.legs.iter().enumerate().map(|(n, leg)| self.media(leg, n)).collect();
        let mut text = Vec::new();
        description.write(&mut text).expect("a Vec takes what is written to it");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn media(&self, leg: &Leg, number: usize) -> Media {
        let kind = match self.format {
            Some(Format::Audio(_)) => MediaType::Audio,
            _ => MediaType::Video,
        };
        let mut media =
            Media::new(kind, leg.port(), TransportProto::RtpAvp, self.payload_type.to_string());
        if self.legs.len() > 1 {
            media.add_connection(self.connection(leg));
            media.attributes.extend(self.filter(leg));
        }
        let mut attribute = |name: &str, value: String| media.add_attribute_with_value(name, value);
        if let Some(format) = &self.format {
            attribute("rtpmap", rtpmap(self.payload_type, format).to_string());
        }
        if let Some(time) = self.packet_time {
            attribute("ptime", pcm::packet_time_text(time));
        }
        if let Some(clock) = &self.reference_clock {
            attribute("ts-refclk", clock.clone());
        }
        if let Some(clock) = &self.media_clock {
            attribute("mediaclk", clock.clone());
        }
        if let Some(mid) = MIDS.get(number).filter(|_| self.legs.len() > 1) {
            attribute("mid", (*mid).to_owned());
        }
        media.add_attribute(Attribute::new("recvonly"));
        media
    }

    /// An IPv4 group's address has to have its time to live (RFC 8866 section 5.7).
    fn connection(&self, leg: &Leg) -> Connection {
        let ttl = leg.is_multicast().then(|| self.ttl.unwrap_or(1));
        Connection::from_ip_addr_ttl(leg.address(), ttl)
    }

    fn filter(&self, leg: &Leg) -> Option<Attribute> {
        let source = leg.source().filter(|_| leg.is_multicast()).or(self.source)?;
        Some(Attribute::with_value("source-filter", source_filter(leg.address(), source)))
    }

    /// Reads a description from a file.
    ///
    /// # Errors
    /// The file cannot be read or is no description of one RTP stream to numeric addresses.
    pub fn read(input: &mut Input) -> Result<Self, MediaError> {
        let mut text = vec![0; LENGTH_MAX + 1];
        let length = input.fill(&mut text)?;
        if length > LENGTH_MAX {
            return Err(input.wrong("longer than 64 KiB; accepted: a session description (SDP)"));
        }
        Self::parse(&text[..length]).map_err(|reason| input.wrong(reason))
    }

    /// Reads a description; the error says what is wrong in it.
    fn parse(text: &[u8]) -> Result<Self, String> {
        // FFmpeg prints this line above the description when it sends.
        let text = text.strip_prefix(b"SDP:\n").unwrap_or(text);
        let session = Session::parse(text)
            .map_err(|error| format!("not a session description (SDP): {error}"))?;
        let media = streams(&session)?;
        let first = media[0];
        let payload_type = payload_type(first)?;
        let rtpmap = rtpmap_of(first, payload_type)?;
        let format = match &rtpmap {
            Some(map) => known_format(map)?,
            None => Format::from_payload_type(payload_type),
        };
        let mut description = Self {
            name: session.session_name.clone(),
            legs: Vec::new(),
            ttl: None,
            source: None,
            payload_type,
            format,
            clock_rate: rtpmap.map(|map| map.clock_rate).or(static_clock_rate(payload_type)),
            packet_time: packet_time(first)?,
            reference_clock: clock(&session, first, "ts-refclk"),
            media_clock: clock(&session, first, "mediaclk"),
        };
        for media in media {
            description.add_leg(&session, media)?;
        }
        Ok(description)
    }

    fn add_leg(&mut self, session: &Session, media: &Media) -> Result<(), String> {
        let connection = match (media.connections.as_slice(), &session.connection) {
            ([one], _) => one,
            ([], Some(one)) => one,
            ([], None) => return Err("no c= line says where the stream goes".to_owned()),
            _ => return Err("several c= lines for one m= line; accepted: one".to_owned()),
        };
        let address = connection
            .try_address()
            .map_err(|error| format!("{error}; accepted: a numeric IP address"))?;
        if address.count.is_some_and(|count| count > 1) {
            return Err(format!(
                "c= {}: several addresses; accepted: one",
                connection.connection_address
            ));
        }
        self.ttl = self.ttl.or(address.ttl);
        let leg = Leg::new(address.ip, media.port);
        let source = filter_source(session, media, address.ip)?;
        let leg = match source {
            Some(source) if leg.is_multicast() => {
                leg.with_source(source).map_err(|error| error.to_string())?
            }
            _ => {
                self.source = self.source.or(source);
                leg
            }
        };
        self.legs.push(leg);
        Ok(())
    }
}

fn rtpmap(payload_type: u8, format: &Format) -> RtpMap {
    let map = RtpMap::new(payload_type, format.name(), format.clock_rate());
    match format {
        Format::Audio(audio) => RtpMap { encoding_params: Some(audio.channels.to_string()), ..map },
        Format::Mp2t => map,
    }
}

fn source_filter(destination: IpAddr, source: IpAddr) -> SourceFilter {
    SourceFilter {
        mode: SourceFilterMode::Incl,
        nettype: NetType::In,
        addrtype: match destination {
            IpAddr::V4(_) => SourceFilterAddrType::Ip4,
            IpAddr::V6(_) => SourceFilterAddrType::Ip6,
        },
        destination: SourceFilterDestination::Address(SourceFilterAddress::IpAddr(destination)),
        sources: vec![SourceFilterAddress::IpAddr(source)],
    }
}

/// The media that make the one stream: a single one, or two in a group DUP.
fn streams(session: &Session) -> Result<Vec<&Media>, String> {
    let media: Vec<_> = session.medias.iter().filter(|media| media.port != 0).collect();
    if let Some(other) = media.iter().find(|media| !is_plain_rtp(media)) {
        return Err(format!("m={} {}: accepted: RTP/AVP or RTP/AVPF", other.media, other.proto));
    }
    match media.as_slice() {
        [] => Err("no m= line with a port describes a stream".to_owned()),
        [_] => Ok(media),
        [first, second] if are_duplicates(session, first, second) => Ok(media),
        several => Err(format!(
            "{} streams; accepted: one, or two that carry the same (a=group:DUP)",
            several.len()
        )),
    }
}

fn is_plain_rtp(media: &Media) -> bool {
    matches!(media.parse_transport_proto(), TransportProto::RtpAvp | TransportProto::RtpAvpf)
}

fn are_duplicates(session: &Session, first: &Media, second: &Media) -> bool {
    let mid = |media: &Media| media.get_first_attribute_value("mid").flatten().map(str::to_owned);
    let (Some(first), Some(second)) = (mid(first), mid(second)) else { return false };
    session.get_attribute_values("group").flatten().any(|group| {
        let mut words = group.split_ascii_whitespace();
        words.next().is_some_and(|semantics| semantics.eq_ignore_ascii_case("DUP"))
            && words.clone().any(|mid| mid == first)
            && words.clone().any(|mid| mid == second)
    })
}

/// The first payload type of the m= line.
fn payload_type(media: &Media) -> Result<u8, String> {
    let first = media.fmt.split_ascii_whitespace().next().unwrap_or_default();
    match first.parse() {
        Ok(payload_type @ 0..=127) => Ok(payload_type),
        _ => Err(format!("m={}: payload type '{first}'; accepted: 0 to 127", media.media)),
    }
}

fn rtpmap_of(media: &Media, payload_type: u8) -> Result<Option<RtpMap>, String> {
    media
        .attributes_typed::<RtpMap>()
        .find(|map| map.as_ref().map_or(true, |map| map.payload_type == payload_type))
        .transpose()
        .map_err(|error| error.to_string())
}

/// The format if the encoding is one of ours. Wrong parameters of one of ours are an error.
fn known_format(map: &RtpMap) -> Result<Option<Format>, String> {
    let ours = ["MP2T", "L16", "L24"];
    if !ours.iter().any(|name| name.eq_ignore_ascii_case(&map.encoding_name)) {
        return Ok(None);
    }
    let channels = match &map.encoding_params {
        Some(text) => Some(text.trim().parse().map_err(|_| {
            format!("a=rtpmap:{map}: channels '{text}'; accepted: a number from 1 to 255")
        })?),
        None => None,
    };
    Format::from_parts(&map.encoding_name, map.clock_rate, channels)
        .map(Some)
        .map_err(|error| format!("a=rtpmap: {error}"))
}

fn packet_time(media: &Media) -> Result<Option<Duration>, String> {
    let Some(text) = media.get_first_attribute_value("ptime").flatten() else { return Ok(None) };
    match text.trim().parse::<f64>() {
        Ok(ms) if ms > 0.0 && ms <= 10_000.0 => Ok(Some(Duration::from_secs_f64(ms / 1_000.0))),
        _ => Err(format!("a=ptime:{text}; accepted: milliseconds above 0, up to 10000")),
    }
}

fn clock(session: &Session, media: &Media, name: &str) -> Option<String> {
    let of_media = media.get_first_attribute_value(name);
    of_media.or_else(|| session.get_first_attribute_value(name)).flatten().map(str::to_owned)
}

/// The one source that the filters let through for `address`. Those of the media override the session's (RFC 4570 section 3.1).
fn filter_source(
    session: &Session,
    media: &Media,
    address: IpAddr,
) -> Result<Option<IpAddr>, String> {
    let of_media: Vec<_> = media.attributes_typed::<SourceFilter>().collect();
    let filters = match of_media.is_empty() {
        true => session.attributes_typed::<SourceFilter>().collect(),
        false => of_media,
    };
    for filter in filters {
        let filter = filter.map_err(|error| error.to_string())?;
        let destination = SourceFilterDestination::Address(SourceFilterAddress::IpAddr(address));
        if ![SourceFilterDestination::Wildcard, destination].contains(&filter.destination) {
            continue;
        }
        return match (filter.mode, filter.sources.as_slice()) {
            (SourceFilterMode::Incl, [SourceFilterAddress::IpAddr(source)]) => Ok(Some(*source)),
            _ => Err(format!(
                "a=source-filter: {filter}; accepted: incl with one numeric IP address"
            )),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::media::{AudioFormat, Depth, Framing};

    fn info(format: &str, samples: Option<u32>) -> MediaInfo {
        let format: Format = format.parse().unwrap();
        MediaInfo {
            format: Some(format),
            payload_type: format.payload_type(),
            clock_rate: Some(format.clock_rate()),
            payload_max: 1_316,
            samples_per_packet: samples,
            framing: Framing::Payload,
        }
    }

    fn legs(texts: &[&str]) -> Vec<Leg> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn lines(text: &str) -> Vec<&str> {
        assert!(text.ends_with("\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
        text.lines().collect()
    }

    fn parse(text: &str) -> Result<Description, String> {
        Description::parse(text.as_bytes())
    }

    /// RFC 8866 section 5 fixes the order of lines; section 5.7 asks for the TTL of an IPv4 group.
    #[test]
    fn a_transport_stream_to_a_group() {
        let mut description =
            Description::of("News", legs(&["239.1.1.1:5004"]), 33, &info("MP2T", None)).unwrap();
        description.ttl = Some(16);
        let text = description.to_text(Some([192, 0, 2, 7].into()), 3_900_000_000);
        assert_eq!(
            lines(&text),
            [
                "v=0",
                "o=- 3900000000 1 IN IP4 192.0.2.7",
                "s=News",
                "c=IN IP4 239.1.1.1/16",
                "t=0 0",
                "m=video 5004 RTP/AVP 33",
                "a=rtpmap:33 MP2T/90000",
                "a=recvonly",
            ]
        );
        assert_eq!(parse(&text).unwrap(), description);
    }

    #[test]
    fn audio_from_one_source_over_ipv6() {
        let legs = legs(&["2001:db8::7@[ff3e::1]:5006"]);
        let description =
            Description::of("Stereo", legs, 97, &info("L24/48000/2", Some(48))).unwrap();
        let text = description.to_text(None, 1);
        assert_eq!(
            lines(&text)[3..],
            [
                "c=IN IP6 ff3e::1",
                "t=0 0",
                "a=source-filter:incl IN IP6 ff3e::1 2001:db8::7",
                "m=audio 5006 RTP/AVP 97",
                "a=rtpmap:97 L24/48000/2",
                "a=ptime:1",
                "a=ts-refclk:local",
                "a=mediaclk:sender",
                "a=recvonly",
            ]
        );
        assert_eq!(parse(&text).unwrap(), description);
    }

    #[test]
    fn packet_times_are_written_as_aes67_does() {
        for (format, samples, ptime) in [
            ("L24/48000/2", 48, "1"),
            ("L16/44100/2", 48, "1.09"),
            ("L24/48000/2", 6, "0.125"),
            ("L24/48000/2", 12, "0.25"),
            ("L24/48000/2", 16, "0.33"),
            ("L24/48000/1", 192, "4"),
            ("L24/384000/255", 1, "0.003"),
        ] {
            let info = info(format, Some(samples));
            let description = Description::of("x", legs(&["127.0.0.1:5004"]), 97, &info).unwrap();
            let text = description.to_text(None, 1);
            assert!(text.contains(&format!("\r\na=ptime:{ptime}\r\n")), "{text}");
        }
    }

    #[test]
    fn two_legs_are_two_media_that_carry_the_same() {
        let legs = legs(&["192.0.2.7@232.1.1.1:5004", "198.51.100.7@232.1.2.1:5004"]);
        let description =
            Description::of("Twice", legs, 97, &info("L16/48000/2", Some(48))).unwrap();
        let description = Description { ttl: Some(5), ..description };
        let text = description.to_text(None, 1);
        assert!(text.contains("a=group:DUP primary secondary"));
        assert_eq!(text.matches("m=audio 5004 RTP/AVP 97\r\nc=IN IP4 232.1.").count(), 2);
        assert_eq!(parse(&text).unwrap(), description);
    }

    #[test]
    fn a_stream_of_unknown_encoding_cannot_be_described() {
        let unknown = MediaInfo { format: None, ..info("MP2T", None) };
        let error = Description::of("x", legs(&["127.0.0.1:5004"]), 96, &unknown).unwrap_err();
        assert!(error.to_string().contains("--format"));
    }

    /// As an AES67 device writes it (RFC 7273 section 4.8, AES67-2018 annex).
    #[test]
    fn a_description_by_an_aes67_device() {
        let text = "v=0\r\no=- 1423986 1423994 IN IP4 169.254.98.63\r\ns=AOIP44-serial-1614 : 2\r\n\
            c=IN IP4 239.65.45.154/32\r\nt=0 0\r\na=keywds:Dante\r\nm=audio 5004 RTP/AVP 97\r\n\
            i=2 channels: TxChan 0, TxChan 1\r\na=recvonly\r\na=rtpmap:97 L24/48000/2\r\na=ptime:1\r\n\
            a=ts-refclk:ptp=IEEE1588-2008:00-1D-C1-FF-FE-12-00-A4:0\r\na=mediaclk:direct=1042658940\r\n";
        let description = parse(text).unwrap();
        assert_eq!(description.legs, legs(&["239.65.45.154:5004"]));
        assert_eq!(description.ttl, Some(32));
        assert_eq!(description.payload_type, 97);
        let audio = AudioFormat { depth: Depth::L24, rate: 48_000, channels: 2 };
        assert_eq!(description.format, Some(Format::Audio(audio)));
        assert_eq!(description.packet_time, Some(Duration::from_millis(1)));
        assert_eq!(
            description.reference_clock.as_deref(),
            Some("ptp=IEEE1588-2008:00-1D-C1-FF-FE-12-00-A4:0")
        );
        assert_eq!(description.media_clock.as_deref(), Some("direct=1042658940"));
    }

    #[test]
    fn session_attributes_hold_where_the_media_has_none() {
        let session = "v=0\no=- 1 1 IN IP4 192.0.2.1\ns= \nc=IN IP4 232.1.1.1/8\nt=0 0\n\
            a=source-filter: incl IN IP4 * 192.0.2.1\n";
        let of = |media: &str| parse(&format!("{session}{media}")).unwrap();
        assert_eq!(of("m=video 5004 RTP/AVP 33\n").legs, legs(&["192.0.2.1@232.1.1.1:5004"]));
        let own = "m=video 5004 RTP/AVP 33\nc=IN IP4 232.9.9.9/8\n\
            a=source-filter: incl IN IP4 232.9.9.9 192.0.2.9\n";
        assert_eq!(of(own).legs, legs(&["192.0.2.9@232.9.9.9:5004"]));
        let others = "m=video 5004 RTP/AVP 33\na=source-filter: incl IN IP4 232.8.8.8 192.0.2.9\n";
        assert_eq!(of(others).legs, legs(&["232.1.1.1:5004"]));
    }

    #[test]
    fn a_filter_on_a_unicast_stream_names_the_sender() {
        let text = "v=0\no=- 1 1 IN IP4 192.0.2.1\ns= \nc=IN IP4 192.0.2.50\nt=0 0\n\
            m=audio 5004 RTP/AVP 10\na=source-filter: incl IN IP4 192.0.2.50 192.0.2.1\n";
        let description = parse(text).unwrap();
        assert_eq!(description.legs, legs(&["192.0.2.50:5004"]));
        assert_eq!(description.source, Some([192, 0, 2, 1].into()));
        assert_eq!(description.format.unwrap().to_string(), "L16/44100/2");
        assert_eq!(parse(&description.to_text(None, 1)).unwrap().source, description.source);
    }

    #[test]
    fn what_ffmpeg_prints_is_read_with_its_heading() {
        let text = "SDP:\nv=0\no=- 0 0 IN IP4 127.0.0.1\ns=No Name\nc=IN IP4 127.0.0.1\nt=0 0\n\
            a=tool:libavformat LIBAVFORMAT_VERSION\nm=audio 6020 RTP/AVP 97\nb=AS:2304\n\
            a=rtpmap:97 L24/48000/2\n\n";
        let description = parse(text).unwrap();
        assert_eq!(description.legs, legs(&["127.0.0.1:6020"]));
        assert_eq!(description.format.unwrap().to_string(), "L24/48000/2");
    }

    #[test]
    fn encodings_that_are_not_ours_still_give_a_clock() {
        let of = |media: &str| {
            parse(&format!(
                "v=0\no=- 1 1 IN IP4 192.0.2.1\ns=x\nc=IN IP4 192.0.2.1\nt=0 0\n{media}\n"
            ))
            .unwrap()
        };
        let video =
            of("m=video 6000 RTP/AVPF 96 97\na=rtpmap:97 rtx/90000\na=rtpmap:96 H264/90000");
        assert_eq!((video.format, video.clock_rate, video.payload_type), (None, Some(90_000), 96));
        let speech = of("m=audio 6000 RTP/AVP 0");
        assert_eq!((speech.format, speech.clock_rate), (None, Some(8_000)));
        let unknown = of("m=audio 6000 RTP/AVP 100");
        assert_eq!((unknown.format, unknown.clock_rate), (None, None));
    }

    #[test]
    fn what_cannot_be_received_is_refused_with_what_can() {
        let head = "v=0\no=- 1 1 IN IP4 192.0.2.1\ns=x\nt=0 0\n";
        let c = "c=IN IP4 239.1.1.1/8\n";
        for (text, reason) in [
            ("This is not SDP.".to_owned(), "not a session description"),
            (String::new(), "not a session description"),
            (head.to_owned(), "no m= line"),
            (format!("{head}m=video 0 RTP/AVP 33\n{c}"), "no m= line with a port"),
            (format!("{head}m=video 5004 RTP/AVP 33\n"), "no c= line"),
            (format!("{head}m=video 5004 RTP/SAVP 33\n{c}"), "RTP/SAVP: accepted: RTP/AVP"),
            (format!("{head}m=video 5004 udp 33\n{c}"), "accepted: RTP/AVP"),
            (format!("{head}m=video 5004 RTP/AVP x\n{c}"), "payload type 'x'"),
            (format!("{head}m=video 5004 RTP/AVP 200\n{c}"), "0 to 127"),
            (format!("{head}m=video 5004 RTP/AVP 33\nc=IN IP4 tx.example.org\n"), "numeric IP"),
            (
                format!("{head}m=video 5004 RTP/AVP 33\nc=IN IP4 239.1.1.1/8/3\n"),
                "several addresses",
            ),
            (format!("{head}m=video 5004 RTP/AVP 33\n{c}{c}"), "several c= lines"),
            (format!("{head}{c}m=video 5004 RTP/AVP 33\nm=audio 5006 RTP/AVP 0\n"), "2 streams"),
            (format!("{head}m=audio 5004 RTP/AVP 97\n{c}a=rtpmap:97 L24/0/2\n"), "1000 to 384000"),
            (format!("{head}m=audio 5004 RTP/AVP 97\n{c}a=rtpmap:97 L24/48000/two\n"), "'two'"),
            (format!("{head}m=audio 5004 RTP/AVP 97\n{c}a=rtpmap:97\n"), "rtpmap"),
            (format!("{head}m=audio 5004 RTP/AVP 97\n{c}a=ptime:-1\n"), "a=ptime:-1"),
            (format!("{head}m=audio 5004 RTP/AVP 97\n{c}a=ptime:NaN\n"), "a=ptime:NaN"),
            (
                format!(
                    "{head}m=audio 5004 RTP/AVP 97\n{c}a=source-filter:excl IN IP4 * 192.0.2.1\n"
                ),
                "accepted: incl",
            ),
            (
                format!(
                    "{head}m=audio 5004 RTP/AVP 97\n{c}a=source-filter:incl IN IP4 * a.example\n"
                ),
                "one numeric IP",
            ),
        ] {
            let error = parse(&text).err().unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(error.contains(reason), "{error} for {text}");
        }
    }

    #[test]
    fn a_file_that_is_no_description_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sdp");
        for bytes in [vec![0; 1_000], vec![b'a'; LENGTH_MAX + 1]] {
            std::fs::write(&path, bytes).unwrap();
            let error =
                Description::read(&mut Input::open(&path).unwrap()).unwrap_err().to_string();
            assert!(error.contains("a.sdp: ") && error.contains("session description"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(v=0\n)?([omcatsk]=[ -~]{0,40}\n){0,12}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(
            rate in 1_000u32..=384_000, channels in 1u8..=255, wide: bool,
            port in 1u16.., payload_type in 96u8..=127, group in 0u8..255, ttl in 1u8..,
            samples in 1u32..2_000,
        ) {
            let depth = if wide { Depth::L24 } else { Depth::L16 };
            let format = Format::Audio(AudioFormat { depth, rate, channels }).to_string();
            let leg = Leg::new([239, 1, 2, group].into(), port);
            let mut description =
                Description::of("x", vec![leg], payload_type, &info(&format, Some(samples))).unwrap();
            description.ttl = Some(ttl);
            let read = parse(&description.to_text(None, 7)).unwrap();
            // A packet time has two decimals of a millisecond.
            let time = |d: &Description| d.packet_time.unwrap().as_secs_f64();
            prop_assert!((time(&read) - time(&description)).abs() <= 5.1e-6);
            prop_assert_eq!(Description { packet_time: description.packet_time, ..read }, description);
        }
    }
}
