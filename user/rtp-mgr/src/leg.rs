//! The name of a leg: one network path of a stream, as users write it.
//!
//! What lives here: parsing and printing `[SOURCE@]ADDRESS[%INTERFACE]:PORT`. What does not: whether
//! the machine has that address or interface ([`crate::socket`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// How a leg is written, for messages and help texts.
pub const SYNTAX: &str = "[SOURCE@]ADDRESS[%INTERFACE]:PORT, such as 127.0.0.1:5004, 239.1.1.1%eth0:5004, \
     192.0.2.7@232.1.1.1%eth0:5004 or [ff3e::1%eth0]:5004";

/// Longest name of an interface, in bytes (`IFNAMSIZ` without its closing zero).
const INTERFACE_LEN_MAX: usize = 15;

/// One network path of a stream.
///
/// For a receive stream the address is a multicast group to join, a local address, or the wildcard;
/// the source, with a group, makes the join source-specific (RFC 4607). For a transmit stream the
/// address is the destination and the source the local address to send from.
///
/// ```
/// use rtp_mgr::leg::Leg;
///
/// let leg: Leg = "192.0.2.7@232.1.1.1%eth0:5004".parse()?;
/// assert!(leg.is_multicast());
/// assert_eq!(leg.interface(), Some("eth0"));
/// assert_eq!(leg.to_string(), "192.0.2.7@232.1.1.1%eth0:5004");
/// # Ok::<(), rtp_mgr::leg::LegError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leg {
    source: Option<IpAddr>,
    address: IpAddr,
    interface: Option<String>,
    port: u16,
}

/// Why a text is not a leg. Every message names the part, its value and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LegError {
    /// There is no `:PORT` at the end.
    #[error("leg {leg:?} has no port; accepted: {SYNTAX}")]
    NoPort {
        /// The whole text.
        leg: String,
    },
    /// An IPv6 address stands before a port without brackets.
    #[error(
        "leg {leg:?}: an IPv6 address needs brackets before the port, such as [{address}]:5004"
    )]
    Brackets {
        /// The whole text.
        leg: String,
        /// What stands before the last colon.
        address: String,
    },
    /// The port is not a number from 0 to 65535.
    #[error("leg {leg:?}: port {port:?} is not a number from 0 to 65535")]
    Port {
        /// The whole text.
        leg: String,
        /// What stands after the last colon.
        port: String,
    },
    /// The address or the source is not a numeric IP address.
    #[error(
        "leg {leg:?}: {address:?} is not an IP address (names are not looked up); accepted: {SYNTAX}"
    )]
    Address {
        /// The whole text.
        leg: String,
        /// The part that is no address.
        address: String,
    },
    /// An IPv4-mapped IPv6 address.
    #[error("leg {leg:?}: write {mapped} as the IPv4 address {plain}")]
    Mapped {
        /// The whole text.
        leg: String,
        /// The address as written.
        mapped: Ipv6Addr,
        /// The address to write.
        plain: Ipv4Addr,
    },
    /// The name cannot be one of a network interface.
    #[error(
        "leg {leg:?}: {interface:?} cannot be an interface name; accepted: 1 to 15 bytes without \
         spaces, '/', ':' and '%'"
    )]
    Interface {
        /// The whole text.
        leg: String,
        /// The name.
        interface: String,
    },
    /// The source is a group, the wildcard, or carries an interface.
    #[error(
        "leg {leg:?}: source {from:?} is not one sender's address; accepted: a unicast address, the \
         interface goes after the group"
    )]
    Source {
        /// The whole text.
        leg: String,
        /// The source as written.
        from: String,
    },
    /// Source and address are of different families.
    #[error("leg {leg:?}: source {from} and address {address} must both be IPv4 or both IPv6")]
    Family {
        /// The whole text.
        leg: String,
        /// The source.
        from: IpAddr,
        /// The address.
        address: IpAddr,
    },
}

impl Leg {
    /// A leg of `address` and `port` on whatever interface the routes say, from any source.
    ///
    /// Port 0 lets the kernel choose one (receive only).
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { source: None, address: address.to_canonical(), interface: None, port }
    }

    /// The same leg with one source.
    ///
    /// # Errors
    /// The source is no unicast address or of another family than the address.
    pub fn with_source(mut self, source: IpAddr) -> Result<Self, LegError> {
        let source = source.to_canonical();
        let leg = || format!("{source}@{self}");
        if source.is_multicast() || source.is_unspecified() {
            return Err(LegError::Source { leg: leg(), from: source.to_string() });
        }
        if source.is_ipv4() != self.address.is_ipv4() {
            return Err(LegError::Family { leg: leg(), from: source, address: self.address });
        }
        self.source = Some(source);
        Ok(self)
    }

    /// The same leg on a named interface.
    ///
    /// # Errors
    /// `interface` cannot be the name of an interface. Whether it exists shows when a socket opens.
    pub fn with_interface(mut self, interface: &str) -> Result<Self, LegError> {
        if !is_interface_name(interface) {
            return Err(LegError::Interface {
                leg: self.to_string(),
                interface: interface.to_owned(),
            });
        }
        self.interface = Some(interface.to_owned());
        Ok(self)
    }

    /// The same leg with another port.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The leg of this leg's RTCP, one port higher (RFC 3550 section 11). `None` for ports 0 and
    /// 65535.
    pub fn rtcp(&self) -> Option<Self> {
        match self.port {
            0 => None,
            port => Some(self.clone().with_port(port.checked_add(1)?)),
        }
    }

    /// The one source, if named.
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// The group, local address or destination.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The name of the interface, if given.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the address is a multicast group.
    pub fn is_multicast(&self) -> bool {
        self.address.is_multicast()
    }

    /// Whether the address means any local address.
    pub fn is_wildcard(&self) -> bool {
        self.address.is_unspecified()
    }

    /// Whether the address has a meaning only on one link (RFC 4007): such a leg needs an interface.
    pub fn needs_interface(&self) -> bool {
        match self.address {
            IpAddr::V4(_) => false,
            // fe80::/10, and groups of interface-local (1) and link-local (2) scope, RFC 4291 2.7.
            IpAddr::V6(address) if address.is_multicast() => {
                matches!(address.octets()[1] & 0x0f, 1 | 2)
            }
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = self.source {
            write!(f, "{source}@")?;
        }
        let (open, close) = if self.address.is_ipv6() { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}", self.address)?;
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        write!(f, "{close}:{}", self.port)
    }
}

impl FromStr for Leg {
    type Err = LegError;

    fn from_str(leg: &str) -> Result<Self, LegError> {
        let (source, rest) = split_source(leg);
        let (place, port) = split_port(leg, rest)?;
        let (address, interface) = match place.split_once('%') {
            Some((address, interface)) => (address, Some(interface)),
            None => (place, None),
        };
        let port = parse_port(leg, port)?;
        let mut parsed = Leg::new(parse_address(leg, address)?, port);
        if let Some(interface) = interface {
            parsed = parsed.with_interface(interface).map_err(|error| in_text(leg, error))?;
        }
        if let Some(source) = source {
            let source = parse_source(leg, source)?;
            parsed = parsed.with_source(source).map_err(|error| in_text(leg, error))?;
        }
        Ok(parsed)
    }
}

/// Splits `SOURCE@` off. An `@` behind a `%` belongs to an interface name.
fn split_source(leg: &str) -> (Option<&str>, &str) {
    match leg.split_once('@') {
        Some((source, rest)) if !source.contains('%') || source.ends_with(']') => {
            (Some(source), rest)
        }
        _ => (None, leg),
    }
}

/// Splits `ADDRESS[%INTERFACE]` from `PORT`.
fn split_port<'a>(leg: &str, rest: &'a str) -> Result<(&'a str, &'a str), LegError> {
    let no_port = || LegError::NoPort { leg: leg.to_owned() };
    if let Some(inner) = rest.strip_prefix('[') {
        let (place, after) = inner.split_once(']').ok_or_else(no_port)?;
        return Ok((place, after.strip_prefix(':').ok_or_else(no_port)?));
    }
    if rest.parse::<Ipv6Addr>().is_ok() {
        return Err(LegError::Brackets { leg: leg.to_owned(), address: rest.to_owned() });
    }
    let (place, port) = rest.rsplit_once(':').ok_or_else(no_port)?;
    let address = place.split('%').next().unwrap_or(place);
    if address.parse::<Ipv6Addr>().is_ok() {
        return Err(LegError::Brackets { leg: leg.to_owned(), address: place.to_owned() });
    }
    Ok((place, port))
}

fn parse_port(leg: &str, port: &str) -> Result<u16, LegError> {
    let error = || LegError::Port { leg: leg.to_owned(), port: port.to_owned() };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    port.parse().map_err(|_| error())
}

fn parse_address(leg: &str, address: &str) -> Result<IpAddr, LegError> {
    let parsed: IpAddr = address
        .parse()
        .map_err(|_| LegError::Address { leg: leg.to_owned(), address: address.to_owned() })?;
    if let IpAddr::V6(mapped) = parsed
        && let Some(plain) = mapped.to_ipv4_mapped()
    {
        return Err(LegError::Mapped { leg: leg.to_owned(), mapped, plain });
    }
    Ok(parsed)
}

fn parse_source(leg: &str, source: &str) -> Result<IpAddr, LegError> {
    let bare =
        source.strip_prefix('[').and_then(|source| source.strip_suffix(']')).unwrap_or(source);
    if bare.contains('%') {
        return Err(LegError::Source { leg: leg.to_owned(), from: source.to_owned() });
    }
    parse_address(leg, bare)
}

/// Puts the whole text as the user wrote it into an error.
fn in_text(text: &str, mut error: LegError) -> LegError {
    match &mut error {
        LegError::NoPort { leg }
        | LegError::Brackets { leg, .. }
        | LegError::Port { leg, .. }
        | LegError::Address { leg, .. }
        | LegError::Mapped { leg, .. }
        | LegError::Interface { leg, .. }
        | LegError::Source { leg, .. }
        | LegError::Family { leg, .. } => text.clone_into(leg),
    }
    error
}

/// What the kernel accepts as a name (`dev_valid_name`), without `%`, which separates here.
fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= INTERFACE_LEN_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/:%]".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leg(text: &str) -> Leg {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(text: &str) -> LegError {
        text.parse::<Leg>().expect_err(text)
    }

    #[test]
    fn every_form_of_the_syntax_is_understood() {
        let plain = leg("127.0.0.1:5004");
        assert_eq!(plain.address(), IpAddr::from([127, 0, 0, 1]));
        assert_eq!((plain.port(), plain.interface(), plain.source()), (5004, None, None));
        assert!(!plain.is_multicast() && !plain.is_wildcard());

        let group = leg("239.1.1.1%eth0:5004");
        assert_eq!(group.interface(), Some("eth0"));
        assert!(group.is_multicast());

        let specific = leg("192.0.2.7@232.1.1.1%eth0.100:65535");
        assert_eq!(specific.source(), Some(IpAddr::from([192, 0, 2, 7])));
        assert_eq!((specific.interface(), specific.port()), (Some("eth0.100"), 65535));

        for text in ["2001:db8::1@[ff3e::1%eth0]:5004", "[2001:db8::1]@[ff3e::1%eth0]:5004"] {
            let v6 = leg(text);
            assert_eq!(v6.source(), Some("2001:db8::1".parse().unwrap()));
            assert_eq!(v6.address(), "ff3e::1".parse::<IpAddr>().unwrap());
            assert_eq!(v6.interface(), Some("eth0"));
        }
        assert!(leg("[::]:0").is_wildcard());
        assert!(leg("0.0.0.0:5004").is_wildcard());
        assert_eq!(leg("239.1.1.1%a@b:1").interface(), Some("a@b"));
    }

    #[test]
    fn link_scoped_addresses_ask_for_an_interface() {
        for text in ["[fe80::1]:1", "[ff02::1]:1", "[ff01::1]:1", "[ff32::1]:1"] {
            assert!(leg(text).needs_interface(), "{text}");
        }
        for text in ["[ff05::1]:1", "[ff3e::1]:1", "[2001:db8::1]:1", "224.0.0.1:1", "[::1]:1"] {
            assert!(!leg(text).needs_interface(), "{text}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        assert!(matches!(error("239.1.1.1"), LegError::NoPort { .. }));
        assert!(matches!(error("[ff3e::1]5004"), LegError::NoPort { .. }));
        assert!(matches!(error("[ff3e::1:5004"), LegError::NoPort { .. }));
        assert!(matches!(error(""), LegError::NoPort { .. }));
        assert!(matches!(error("ff3e::1%eth0:5004"), LegError::Brackets { .. }));
        assert!(matches!(error("2001:db8::1"), LegError::Brackets { .. }));
        for port in ["65536", "-1", "+1", "", "5004x", "0x10", "99999999999"] {
            let text = format!("127.0.0.1:{port}");
            assert!(
                matches!(error(&text), LegError::Port { port: named, .. } if named == port),
                "{text}"
            );
        }
        for host in ["localhost", "239.1.1", "239.1.1.256", "", "1.2.3.4.5"] {
            let text = format!("{host}:5004");
            assert!(
                matches!(error(&text), LegError::Address { address, .. } if address == host),
                "{text}"
            );
        }
        assert!(matches!(error("[::ffff:192.0.2.1]:1"), LegError::Mapped { .. }));
        for name in ["", "sixteen_bytes_ab", "a/b", "a b", ".."] {
            let text = format!("239.1.1.1%{name}:1");
            assert!(matches!(error(&text), LegError::Interface { .. }), "{text}");
        }
        assert!(matches!(error("239.0.0.1@239.1.1.1:1"), LegError::Source { .. }));
        assert!(matches!(error("0.0.0.0@239.1.1.1:1"), LegError::Source { .. }));
        assert!(matches!(error("[fe80::1%eth0]@[ff3e::1]:1"), LegError::Source { .. }));
        assert!(matches!(error("192.0.2.1@[ff3e::1]:1"), LegError::Family { .. }));
        assert!(matches!(error("somebody@239.1.1.1:1"), LegError::Address { .. }));
    }

    #[test]
    fn messages_carry_the_text_as_written_and_what_is_accepted() {
        let message = error("studio:5004").to_string();
        assert!(message.contains("\"studio:5004\"") && message.contains(SYNTAX), "{message}");
        let message = error("239.0.0.9@239.1.1.1%eth0:1").to_string();
        assert!(message.contains("\"239.0.0.9@239.1.1.1%eth0:1\""), "{message}");
    }

    #[test]
    fn rtcp_stands_one_port_higher() {
        let rtcp = leg("192.0.2.7@232.1.1.1%eth0:5004").rtcp().unwrap();
        assert_eq!(rtcp.to_string(), "192.0.2.7@232.1.1.1%eth0:5005");
        assert_eq!(leg("127.0.0.1:65535").rtcp(), None);
        assert_eq!(leg("127.0.0.1:0").rtcp(), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            v6: bool, bits: u128, from: Option<u128>,
            interface in proptest::option::of("[a-z][a-z0-9.@-]{0,14}"), port: u16,
        ) {
            let ip = |bits: u128| -> IpAddr {
                if v6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from(bits as u32).into() }
            };
            let address = ip(bits);
            prop_assume!(address == address.to_canonical());
            let mut leg = Leg::new(address, port);
            if let Some(name) = &interface {
                leg = leg.with_interface(name).unwrap();
            }
            if let Some(source) = from.map(ip)
                && let Ok(with) = leg.clone().with_source(source) {
                    leg = with;
            }
            prop_assert_eq!(leg.to_string().parse::<Leg>().unwrap(), leg);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[\\[\\]@%:.0-9a-f/ ]{0,40}|.{0,40}") {
            let _ = text.parse::<Leg>();
        }
    }
}
