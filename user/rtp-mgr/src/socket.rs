//! The sockets of a leg: ordinary UDP sockets with the options that RTP wants.
//!
//! What lives here: opening them, joining groups, asking for buffers, and saying in one sentence what
//! is wrong when it does not work. What does not: moving packets ([`crate::net`]).
//!
//! **Receive.** A multicast socket is bound to its group and told to take only groups it joined
//! itself, so nothing but the group's own packets arrives, however many groups and programs share
//! the port. It lets other programs bind the same group; a unicast port belongs to one socket.
//!
//! **Transmit.** The socket is connected, so that the route is looked up once.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_getres};
use socket2::{Domain, Protocol, Socket, Type};

use crate::leg::Leg;
use crate::net;

/// Smallest memory that a network driver gives a packet, in bytes. Longer packets get the next power
/// of two.
const BUFFER_UNIT: usize = 2_048;
/// The kernel's bookkeeping per packet (`struct sk_buff`), in bytes.
const BUFFER_OVERHEAD: usize = 256;
/// Headers in front of and `struct skb_shared_info` behind the data, in bytes.
const BUFFER_FRAME: usize = 384;
/// Linux's default for `net.core.rmem_max` and `wmem_max`, in bytes.
const BUFFER_MIN: usize = 212_992;
/// Largest value that the kernel can double in an `int`.
const BUFFER_MAX: usize = (i32::MAX / 2) as usize;
/// Ticks that kernels are built with: 100 to 1,000 a second.
const TICK_MIN: Duration = Duration::from_millis(1);
const TICK_MAX: Duration = Duration::from_millis(10);
/// Largest hop limit and TTL.
const TTL_RANGE: std::ops::RangeInclusive<u32> = 1..=255;
/// Largest differentiated services code point (RFC 2474: six bits).
const DSCP_MAX: u32 = 63;

/// Socket buffer that holds `hold` of a stream of `packets_per_second` packets of `packet_len`
/// bytes, in bytes to ask for.
///
/// The kernel doubles what is asked for and then charges every packet for the memory it occupies
/// (for 1,400 bytes some 2,304), not for its length: small packets need more than they seem to. Never
/// less than what every Linux grants.
pub fn buffer_for(packets_per_second: f64, packet_len: usize, hold: Duration) -> usize {
    buffer_holding(packets_per_second * hold.as_secs_f64(), packet_len).max(BUFFER_MIN)
}

/// Socket buffer that holds this many packets, in bytes to ask for.
fn buffer_holding(packets: f64, packet_len: usize) -> usize {
    let memory = packet_len.min(net::DATAGRAM_MAX) + BUFFER_FRAME;
    let occupied = memory.next_power_of_two().max(BUFFER_UNIT) + BUFFER_OVERHEAD;
    let bytes = packets.ceil().max(1.0) * occupied as f64 / 2.0;
    (bytes as usize).min(BUFFER_MAX)
}

/// How to open a receive socket.
#[derive(Clone, Debug, Default)]
pub struct ReceiveOptions {
    /// Socket buffer to ask for in bytes ([`buffer_for`]); `None` leaves the system's default.
    pub buffer: Option<usize>,
    /// Take coalesced datagrams whole. Their packets share one receive time.
    pub gro: bool,
    /// On the IPv6 wildcard, receive IPv4 as well.
    pub dual_stack: bool,
}

/// How to open a transmit socket.
#[derive(Clone, Debug, Default)]
pub struct TransmitOptions {
    /// Socket buffer to ask for in bytes; `None` leaves the system's default.
    pub buffer: Option<usize>,
    /// TTL or hop limit, 1 to 255. `None`: 1 for groups (RFC 1112), the system's for unicast.
    pub ttl: Option<u32>,
    /// Differentiated services code point, 0 to 63 (RFC 2474); 46 is expedited forwarding.
    pub dscp: Option<u32>,
    /// Port to send from; 0 lets the kernel choose.
    pub source_port: u16,
}

/// A socket buffer as asked for and as granted, in bytes. The kernel reports twice the grant; this
/// is the plain figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferGrant {
    /// What was asked for.
    pub asked: usize,
    /// What the kernel granted.
    pub granted: usize,
}

/// Something that limits a socket without stopping it. The text names the remedy.
#[derive(Debug)]
#[non_exhaustive]
pub enum SocketWarning {
    /// The receive buffer is smaller than the rate needs.
    ReceiveBuffer(BufferGrant),
    /// The send buffer is smaller than asked for.
    SendBuffer(BufferGrant),
    /// No coalesced receive.
    NoGro(io::Error),
    /// No kernel receive times: arrival times are those of reading.
    NoTimestamps(io::Error),
    /// Drops of the socket are not counted.
    NoDropCounts(io::Error),
}

impl fmt::Display for SocketWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReceiveBuffer(grant) => grant.explain(f, "receive", "rmem_max"),
            Self::SendBuffer(grant) => grant.explain(f, "send", "wmem_max"),
            Self::NoGro(error) => write!(
                f,
                "coalesced receive (UDP GRO) is refused here ({error}): packets are received one \
                 by one, which costs more time per packet"
            ),
            Self::NoTimestamps(error) => write!(
                f,
                "kernel receive times are refused here ({error}): arrival times and jitter are \
                 those of reading the socket"
            ),
            Self::NoDropCounts(error) => write!(
                f,
                "the socket's drop counter is refused here ({error}): losses in the socket show as \
                 loss without their cause"
            ),
        }
    }
}

impl BufferGrant {
    /// Whether there is less than was asked for.
    pub fn is_short(&self) -> bool {
        self.granted < self.asked
    }

    fn explain(&self, f: &mut fmt::Formatter<'_>, which: &str, limit: &str) -> fmt::Result {
        write!(
            f,
            "{which} socket buffer: {} bytes granted of {} asked for; allow them with: \
             sysctl -w net.core.{limit}={} (or run with CAP_NET_ADMIN)",
            self.granted, self.asked, self.asked
        )
    }
}

/// Why a leg's socket could not be opened. Every message names the argument, its value and what to
/// do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// No interface of that name.
    #[error("leg {leg}: there is no interface {interface:?}; accepted: {available}")]
    NoInterface {
        /// The leg.
        leg: Leg,
        /// The name.
        interface: String,
        /// The names there are.
        available: String,
    },
    /// A link-local address without an interface.
    #[error(
        "leg {leg}: {address} has a meaning on one link only; name its interface, such as \
         [{address}%eth0]:{port}; accepted: {available}", address = .leg.address(), port = .leg.port()
    )]
    InterfaceNeeded {
        /// The leg.
        leg: Leg,
        /// The names there are.
        available: String,
    },
    /// Another socket has the port.
    #[error(
        "leg {leg}: UDP port {port} of {address} is in use by another socket; choose another port or \
         end the program that holds it (ss -ulpn 'sport = :{port}' names it)"
    )]
    PortInUse {
        /// The leg.
        leg: Leg,
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// The address is none of this machine's.
    #[error(
        "leg {leg}: {address} is not an address of this machine; accepted: an address that 'ip \
         address' lists, {wildcard} for all of them, or a multicast group",
        wildcard = if .address.is_ipv4() { "0.0.0.0" } else { "[::]" }
    )]
    NotLocal {
        /// The leg.
        leg: Leg,
        /// The address.
        address: IpAddr,
    },
    /// The system does not allow it.
    #[error("leg {leg}: no permission to {action}: {remedy}")]
    Permission {
        /// The leg.
        leg: Leg,
        /// What was tried.
        action: &'static str,
        /// What helps.
        remedy: &'static str,
    },
    /// The interface is not named and the routes name none either, or they do not lead there over
    /// the one that is.
    #[error("leg {leg}: {}", no_route(leg, available))]
    NoRoute {
        /// The leg.
        leg: Leg,
        /// The names of interfaces there are.
        available: String,
    },
    /// The kernel's limit of memberships.
    #[error("leg {leg}: the kernel allows no more group memberships; raise {limit} with sysctl -w")]
    Memberships {
        /// The leg.
        leg: Leg,
        /// The limit's name.
        limit: &'static str,
    },
    /// The address family is switched off.
    #[error("leg {leg}: this machine has no {family}; accepted: an address of the other family")]
    NoFamily {
        /// The leg.
        leg: Leg,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// The destination cannot be sent to.
    #[error(
        "leg {leg}: {address} is no destination; accepted: a unicast address or a multicast group",
        address = .leg.address()
    )]
    NotADestination {
        /// The leg.
        leg: Leg,
    },
    /// A number out of its range.
    #[error("leg {leg}: {argument} {value} is out of range; accepted: {accepted}")]
    OutOfRange {
        /// The leg.
        leg: Leg,
        /// The argument.
        argument: &'static str,
        /// Its value.
        value: u32,
        /// The range.
        accepted: &'static str,
    },
    /// Anything else.
    #[error("leg {leg}: cannot {action}: {error}")]
    Os {
        /// The leg.
        leg: Leg,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// A socket that receives a leg.
#[derive(Debug)]
pub struct ReceiveSocket {
    socket: Socket,
    local: SocketAddr,
    destination: Option<IpAddr>,
    source: Option<IpAddr>,
    gro: bool,
    buffer: BufferGrant,
    /// How long a receive call waits at most; `None`: it does not.
    patience: Option<Duration>,
    warnings: Vec<SocketWarning>,
}

impl ReceiveSocket {
    /// Opens, binds and joins.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(leg: &Leg, options: &ReceiveOptions) -> Result<Self, SocketError> {
        let interface = interface_of(leg)?;
        let socket = open_socket(leg)?;
        let ipv6 = leg.address().is_ipv6();
        if ipv6 {
            let only = !(options.dual_stack && leg.is_wildcard());
            socket.set_only_v6(only).map_err(os(leg, "restrict the socket to IPv6"))?;
        }
        let mut warnings = Vec::new();
        let buffer =
            receive_buffer(&socket, options.buffer).map_err(os(leg, "size the receive buffer"))?;
        if buffer.is_short() {
            warnings.push(SocketWarning::ReceiveBuffer(buffer));
        }
        net::set_timestamps(&socket)
            .unwrap_or_else(|e| warnings.push(SocketWarning::NoTimestamps(e)));
        net::set_drop_counts(&socket)
            .unwrap_or_else(|e| warnings.push(SocketWarning::NoDropCounts(e)));
        let gro = options.gro && set_gro(&socket, &mut warnings);
        if leg.is_wildcard() {
            net::set_destinations(&socket, ipv6).map_err(os(leg, "ask for destinations"))?;
        }
        only_own_groups(&socket, leg, options)?;
        bind(&socket, leg, interface)?;
        if leg.is_multicast() {
            join(&socket, leg, interface)?;
        }
        let local = local_addr(&socket).map_err(os(leg, "read the local address"))?;
        Ok(Self {
            local,
            destination: (!leg.is_wildcard()).then(|| leg.address()),
            source: leg.source(),
            gro,
            buffer,
            patience: None,
            warnings,
            socket,
        })
    }

    /// Has receive calls that do not say otherwise (MSG_DONTWAIT) wait for a datagram, for about `time`.
    ///
    /// # Errors
    /// What the kernel reports; then they do not wait.
    pub(crate) fn wait_in_calls(&mut self, time: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(time))?;
        self.socket.set_nonblocking(false)?;
        // Time-outs are rounded up to ticks, and begin with the next one.
        let tick = clock_getres(ClockId::MonotonicCoarse);
        let tick = Duration::try_from(tick).unwrap_or(TICK_MAX).clamp(TICK_MIN, TICK_MAX);
        self.patience = Some(time + 2 * tick);
        Ok(())
    }

    /// How long such a call waits at most; `None`: it does not wait.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Address and port it is bound to; the port that the kernel chose when the leg's is 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The destination address of everything it receives. `None` for wildcard binds: each datagram
    /// tells its own ([`net::MessageInfo::destination`]).
    pub fn destination(&self) -> Option<IpAddr> {
        self.destination
    }

    /// The only sender to accept, if the leg names one. For groups the kernel sees to it; for
    /// unicast legs the engine compares, and counts what it drops.
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// Whether coalesced datagrams arrive whole.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Turns coalesced receive on or off.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn set_gro(&mut self, on: bool) -> io::Result<()> {
        net::set_gro(&self.socket, on)?;
        self.gro = on;
        Ok(())
    }

    /// The receive buffer.
    pub fn buffer(&self) -> BufferGrant {
        self.buffer
    }

    /// Datagrams that the kernel dropped at this socket so far, modulo 2^32: no room, wrong
    /// checksum. A lower bound: a coalesced datagram counts as one. `None` when it does not say.
    pub fn drops(&self) -> Option<u32> {
        net::memory_info(&self.socket).ok().map(|info| info.drops)
    }

    /// What limits this socket.
    pub fn warnings(&self) -> &[SocketWarning] {
        &self.warnings
    }
}

impl AsFd for ReceiveSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<ReceiveSocket> for OwnedFd {
    fn from(socket: ReceiveSocket) -> Self {
        socket.socket.into()
    }
}

/// A socket that sends a leg.
#[derive(Debug)]
pub struct TransmitSocket {
    socket: Socket,
    local: SocketAddr,
    peer: SocketAddr,
    buffer: BufferGrant,
    warnings: Vec<SocketWarning>,
}

impl TransmitSocket {
    /// Opens, binds to the leg's source (if named) and connects.
    ///
    /// Groups are looped back to this machine's own receivers.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(leg: &Leg, options: &TransmitOptions) -> Result<Self, SocketError> {
        let interface = interface_of(leg)?;
        if leg.is_wildcard() || leg.port() == 0 || leg.address() == Ipv4Addr::BROADCAST {
            return Err(SocketError::NotADestination { leg: leg.clone() });
        }
        let socket = open_socket(leg)?;
        let mut warnings = Vec::new();
        let buffer =
            send_buffer(&socket, options.buffer).map_err(os(leg, "size the send buffer"))?;
        if buffer.is_short() {
            warnings.push(SocketWarning::SendBuffer(buffer));
        }
        if leg.address().is_ipv6() {
            socket.set_only_v6(true).map_err(os(leg, "restrict the socket to IPv6"))?;
        }
        set_ttl(&socket, leg, options.ttl)?;
        set_dscp(&socket, leg, options.dscp)?;
        set_outgoing(&socket, leg, interface)?;
        let from = leg.source().unwrap_or(if leg.address().is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        });
        let from = scoped(from, options.source_port, interface);
        socket.bind(&from.into()).map_err(bind_error(leg, from))?;
        let peer = scoped(leg.address(), leg.port(), interface);
        socket.connect(&peer.into()).map_err(connect_error(leg))?;
        let local = local_addr(&socket).map_err(os(leg, "read the local address"))?;
        Ok(Self { socket, local, peer, buffer, warnings })
    }

    /// Address and port it sends from.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Address and port it sends to.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The send buffer.
    pub fn buffer(&self) -> BufferGrant {
        self.buffer
    }

    /// Longest packet that leaves unfragmented, RTP header included, in bytes, as far as the kernel
    /// knows the path.
    pub fn packet_len_max(&self) -> Option<usize> {
        let (mtu, headers) = match self.peer {
            SocketAddr::V4(_) => (sockopt::ip_mtu(&self.socket).ok()?, 20 + 8),
            SocketAddr::V6(_) => (sockopt::ipv6_mtu(&self.socket).ok()?, 40 + 8),
        };
        usize::try_from(mtu).ok()?.checked_sub(headers)
    }

    /// What limits this socket.
    pub fn warnings(&self) -> &[SocketWarning] {
        &self.warnings
    }

    /// Sends one datagram, such as RTCP, without waiting.
    ///
    /// # Errors
    /// What the kernel reports. An ICMP answer to an earlier packet is not an error of this one.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.socket.send(datagram) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.socket.send(datagram).map(|_| ())
            }
            result => result.map(|_| ()),
        }
    }
}

impl AsFd for TransmitSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<TransmitSocket> for OwnedFd {
    fn from(socket: TransmitSocket) -> Self {
        socket.socket.into()
    }
}

/// Names of the interfaces in this network namespace, in the kernel's order.
pub fn interfaces() -> Vec<String> {
    // The thread's own view: threads may be in different network namespaces.
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

fn available() -> String {
    match interfaces() {
        names if names.is_empty() => "none found".to_owned(),
        names => names.join(", "),
    }
}

/// An error that has no better name.
fn os(leg: &Leg, action: &'static str) -> impl Fn(io::Error) -> SocketError {
    let leg = leg.clone();
    move |error| SocketError::Os { leg: leg.clone(), action, error }
}

/// The index of the leg's interface.
fn interface_of(leg: &Leg) -> Result<Option<u32>, SocketError> {
    let Some(name) = leg.interface() else {
        return match leg.needs_interface() {
            true => Err(SocketError::InterfaceNeeded { leg: leg.clone(), available: available() }),
            false => Ok(None),
        };
    };
    let socket = open_socket(leg)?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Err(SocketError::NoInterface {
            leg: leg.clone(),
            interface: name.to_owned(),
            available: available(),
        }),
        Err(error) => Err(os(leg, "look the interface up")(error.into())),
    }
}

fn open_socket(leg: &Leg) -> Result<Socket, SocketError> {
    let (domain, family) = match leg.address() {
        IpAddr::V4(_) => (Domain::IPV4, "IPv4"),
        IpAddr::V6(_) => (Domain::IPV6, "IPv6"),
    };
    let kind = Type::DGRAM.nonblocking().cloexec();
    Socket::new(domain, kind, Some(Protocol::UDP)).map_err(|error| {
        match Errno::from_io_error(&error) {
            Some(Errno::AFNOSUPPORT) => SocketError::NoFamily { leg: leg.clone(), family },
            _ => os(leg, "open a socket")(error),
        }
    })
}

/// An address with the port and, where it takes one, the scope of the interface.
fn scoped(address: IpAddr, port: u16, interface: Option<u32>) -> SocketAddr {
    match address {
        IpAddr::V4(_) => SocketAddr::new(address, port),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, interface.unwrap_or(0)).into(),
    }
}

fn local_addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Keeps datagrams away that are for groups that other sockets joined.
fn only_own_groups(
    socket: &Socket,
    leg: &Leg,
    options: &ReceiveOptions,
) -> Result<(), SocketError> {
    let ipv6 = leg.address().is_ipv6();
    let action = "leave other sockets' groups out";
    if !ipv6 || (options.dual_stack && leg.is_wildcard()) {
        net::set_multicast_all(socket, false, false).map_err(os(leg, action))?;
    }
    if ipv6 {
        net::set_multicast_all(socket, true, false).map_err(os(leg, action))?;
    }
    Ok(())
}

/// Binds to the leg's address: for groups that is what keeps the port's other traffic away.
fn bind(socket: &Socket, leg: &Leg, interface: Option<u32>) -> Result<(), SocketError> {
    let address = scoped(leg.address(), leg.port(), interface);
    if let Some(index) = interface
        && (!leg.is_multicast() || leg.address().is_ipv6())
    {
        // IPv4 memberships know their interface; an IPv6 socket that joined a group on one interface
        // receives it from every one that anybody joined it on.
        net::bind_to_interface(socket, index).map_err(device_error(leg))?;
    }
    if !leg.is_multicast() {
        return socket.bind(&address.into()).map_err(bind_error(leg, address));
    }
    socket.set_reuse_address(true).map_err(os(leg, "share the port"))?;
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    match socket.bind(&address.into()) {
        // The other program shares the port the other way (SO_REUSEPORT).
        Err(error) if in_use(&error) => socket
            .set_reuse_port(true)
            .and_then(|()| socket.bind(&address.into()))
            .map_err(bind_error(leg, address)),
        result => result.map_err(bind_error(leg, address)),
    }
}

fn join(socket: &Socket, leg: &Leg, interface: Option<u32>) -> Result<(), SocketError> {
    net::join_group(socket, leg.address(), leg.source(), interface.unwrap_or(0)).map_err(|error| {
        let ipv4 = leg.address().is_ipv4();
        match Errno::from_io_error(&error) {
            Some(Errno::NODEV | Errno::ADDRNOTAVAIL) if interface.is_none() => {
                SocketError::NoRoute { leg: leg.clone(), available: available() }
            }
            Some(Errno::NOBUFS) => SocketError::Memberships {
                leg: leg.clone(),
                limit: if ipv4 { "net.ipv4.igmp_max_memberships" } else { "net.core.optmem_max" },
            },
            _ => os(leg, "join the group")(error),
        }
    })
}

fn bind_error(leg: &Leg, address: SocketAddr) -> impl Fn(io::Error) -> SocketError {
    let leg = leg.clone();
    move |error| {
        let leg = leg.clone();
        match Errno::from_io_error(&error) {
            Some(Errno::ADDRINUSE) => {
                SocketError::PortInUse { leg, address: address.ip(), port: address.port() }
            }
            Some(Errno::ADDRNOTAVAIL) => SocketError::NotLocal { leg, address: address.ip() },
            Some(Errno::ACCESS | Errno::PERM) => SocketError::Permission {
                leg,
                action: "bind to this port",
                remedy: "use a port of 1024 or higher, or run with CAP_NET_BIND_SERVICE",
            },
            Some(Errno::NODEV) => SocketError::NotLocal { leg, address: address.ip() },
            _ => SocketError::Os { leg, action: "bind the socket", error },
        }
    }
}

fn device_error(leg: &Leg) -> impl Fn(io::Error) -> SocketError {
    let leg = leg.clone();
    move |error| {
        let leg = leg.clone();
        match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => SocketError::Permission {
                leg,
                action: "bind to an interface",
                remedy: "leave %INTERFACE out, run with CAP_NET_RAW, or use Linux 5.7 or newer",
            },
            _ => SocketError::Os { leg, action: "bind to the interface", error },
        }
    }
}

fn no_route(leg: &Leg, available: &str) -> String {
    let address = leg.address();
    match leg.interface() {
        None => format!(
            "no route says which interface {address} is on; name it, such as {address}%eth0, or \
             add a route; accepted: {available}"
        ),
        Some(interface) => {
            let (ip, range) = match (address, leg.is_multicast()) {
                (IpAddr::V4(_), true) => ("ip", "224.0.0.0/4".to_owned()),
                (IpAddr::V6(_), true) => ("ip -6", "multicast ff00::/8 table local".to_owned()),
                (IpAddr::V4(_), false) => ("ip", address.to_string()),
                (IpAddr::V6(_), false) => ("ip -6", address.to_string()),
            };
            format!(
                "no route leads to {address} over {interface}; add one: \
                 {ip} route add {range} dev {interface}"
            )
        }
    }
}

fn connect_error(leg: &Leg) -> impl Fn(io::Error) -> SocketError {
    let leg = leg.clone();
    move |error| {
        let leg = leg.clone();
        match Errno::from_io_error(&error) {
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ADDRNOTAVAIL) => {
                SocketError::NoRoute { leg, available: available() }
            }
            // A subnet's broadcast address.
            Some(Errno::ACCESS) => SocketError::NotADestination { leg },
            _ => SocketError::Os { leg, action: "connect the socket", error },
        }
    }
}

fn set_gro(socket: &Socket, warnings: &mut Vec<SocketWarning>) -> bool {
    match net::set_gro(socket, true) {
        Ok(()) => true,
        Err(error) => {
            warnings.push(SocketWarning::NoGro(error));
            false
        }
    }
}

/// Asks for a receive buffer, beyond the system's limit where that is permitted.
fn receive_buffer(socket: &Socket, asked: Option<usize>) -> io::Result<BufferGrant> {
    let granted = || sockopt::socket_recv_buffer_size(socket).map(|doubled| doubled / 2);
    let Some(asked) = asked.map(|asked| asked.min(BUFFER_MAX)) else {
        let granted = granted()?;
        return Ok(BufferGrant { asked: granted, granted });
    };
    if sockopt::set_socket_recv_buffer_size_force(socket, asked).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, asked)?;
    }
    Ok(BufferGrant { asked, granted: granted()? })
}

/// Asks for a send buffer, beyond the system's limit where that is permitted.
fn send_buffer(socket: &Socket, asked: Option<usize>) -> io::Result<BufferGrant> {
    let granted = || sockopt::socket_send_buffer_size(socket).map(|doubled| doubled / 2);
    let Some(asked) = asked.map(|asked| asked.min(BUFFER_MAX)) else {
        let granted = granted()?;
        return Ok(BufferGrant { asked: granted, granted });
    };
    if sockopt::set_socket_send_buffer_size_force(socket, asked).is_err() {
        sockopt::set_socket_send_buffer_size(socket, asked)?;
    }
    Ok(BufferGrant { asked, granted: granted()? })
}

fn set_ttl(socket: &Socket, leg: &Leg, ttl: Option<u32>) -> Result<(), SocketError> {
    let Some(ttl) = ttl else { return Ok(()) };
    if !TTL_RANGE.contains(&ttl) {
        let leg = leg.clone();
        return Err(SocketError::OutOfRange {
            leg,
            argument: "ttl",
            value: ttl,
            accepted: "1 to 255",
        });
    }
    match (leg.address(), leg.is_multicast()) {
        (IpAddr::V4(_), true) => socket.set_multicast_ttl_v4(ttl),
        (IpAddr::V4(_), false) => socket.set_ttl_v4(ttl),
        (IpAddr::V6(_), true) => socket.set_multicast_hops_v6(ttl),
        (IpAddr::V6(_), false) => socket.set_unicast_hops_v6(ttl),
    }
    .map_err(os(leg, "set the TTL"))
}

fn set_dscp(socket: &Socket, leg: &Leg, dscp: Option<u32>) -> Result<(), SocketError> {
    let Some(dscp) = dscp else { return Ok(()) };
    if dscp > DSCP_MAX {
        let leg = leg.clone();
        return Err(SocketError::OutOfRange {
            leg,
            argument: "dscp",
            value: dscp,
            accepted: "0 to 63",
        });
    }
    // The upper six bits of the traffic class; the lower two are congestion notification.
    let class = dscp << 2;
    match leg.address() {
        IpAddr::V4(_) => socket.set_tos_v4(class),
        IpAddr::V6(_) => socket.set_tclass_v6(class),
    }
    .map_err(os(leg, "set the DSCP"))
}

/// Chooses the interface that packets leave through.
fn set_outgoing(socket: &Socket, leg: &Leg, interface: Option<u32>) -> Result<(), SocketError> {
    let Some(index) = interface else { return Ok(()) };
    let ipv6 = leg.address().is_ipv6();
    if !leg.is_multicast() {
        // Without the permission to bind, a preference for the interface is the next best.
        return net::bind_to_interface(socket, index)
            .or_else(|_| net::set_unicast_interface(socket, ipv6, index))
            .map_err(os(leg, "send through the interface"));
    }
    if ipv6 {
        socket.set_multicast_if_v6(index)
    } else {
        sockopt::set_ip_multicast_if_with_ifindex(
            socket,
            &Ipv4Addr::UNSPECIFIED,
            &Ipv4Addr::UNSPECIFIED,
            index,
        )
        .map_err(io::Error::from)
    }
    .map_err(os(leg, "send the group through the interface"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_computed_buffer_holds_what_it_is_computed_for() {
        for len in [12, 100, 1_400, 1_800, 4_000, 9_000, 20_000, 60_000] {
            // Few enough that a system's usual limit does not get in the way.
            let count = (100_000 / len).clamp(3, 80);
            let buffer = buffer_holding(count as f64, len);
            let options = ReceiveOptions { buffer: Some(buffer), ..Default::default() };
            let to = ReceiveSocket::open(&Leg::new(LOCALHOST, 0), &options).unwrap();
            if let [warning, ..] = to.warnings() {
                println!("not run for {len} bytes: {warning}");
                continue;
            }
            let leg = Leg::new(LOCALHOST, to.local_addr().port());
            let from = TransmitSocket::open(&leg, &TransmitOptions::default()).unwrap();
            for _ in 0..count {
                from.send(&vec![0; len]).unwrap();
            }
            assert_eq!(to.drops(), Some(0), "{count} packets of {len} bytes in {buffer}");
        }
    }

    #[test]
    fn the_computed_buffer_stays_within_what_can_be_asked_for() {
        let ms = Duration::from_millis;
        assert_eq!(buffer_for(1e12, 1_400, ms(10_000)), BUFFER_MAX);
        assert_eq!(buffer_for(f64::INFINITY, 1_400, ms(1_000)), BUFFER_MAX);
        assert_eq!(buffer_for(f64::NAN, 1_400, ms(0)), BUFFER_MIN);
        assert_eq!(buffer_for(0.0, usize::MAX, ms(0)), BUFFER_MIN);
        assert_eq!(buffer_for(20_000.0, 1_400, ms(100)), 2 * buffer_for(10_000.0, 1_400, ms(100)));
    }

    #[test]
    fn a_buffer_not_asked_for_is_the_systems() {
        let socket =
            ReceiveSocket::open(&Leg::new(LOCALHOST, 0), &ReceiveOptions::default()).unwrap();
        assert_eq!(socket.buffer().asked, socket.buffer().granted);
        assert!(!socket.buffer().is_short());
    }

    #[test]
    fn warnings_name_their_remedy() {
        let grant = BufferGrant { asked: 5_000_000, granted: 212_992 };
        let text = SocketWarning::ReceiveBuffer(grant).to_string();
        assert!(text.contains("sysctl -w net.core.rmem_max=5000000"), "{text}");
        let text = SocketWarning::SendBuffer(grant).to_string();
        assert!(text.contains("sysctl -w net.core.wmem_max=5000000"), "{text}");
        assert!(text.contains("212992 bytes granted of 5000000"), "{text}");
    }

    #[test]
    fn coalescing_can_be_turned_off_and_on() {
        let options = ReceiveOptions { gro: true, ..Default::default() };
        let mut socket = ReceiveSocket::open(&Leg::new(LOCALHOST, 0), &options).unwrap();
        assert!(socket.gro());
        socket.set_gro(false).unwrap();
        assert!(!socket.gro());
    }

    #[test]
    fn the_interfaces_of_this_machine_are_listed() {
        assert!(interfaces().contains(&"lo".to_owned()), "{:?}", interfaces());
    }
}
