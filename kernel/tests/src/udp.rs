//! UDP sockets and streams with such legs.

use std::io::{self, ErrorKind};
use std::mem::size_of_val;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::ioctl;
use rtp_mgr_ring::header;

use crate::{Item, Reader};

/// For what takes no time worth mentioning on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The usual source.
pub const SSRC: u32 = 0x1234_5678;

/// Waits until it is done.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::yield_now();
    }
}

/// A packet of RTP of a source, payload type 96, `len` bytes that tell it from its neighbours.
pub fn rtp_of(ssrc: u32, sequence: u16, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u8) ^ sequence as u8).collect();
    header::build(&mut bytes, false, 96, sequence, u32::from(sequence) * 160, ssrc)
        .expect("room for a header");
    bytes
}

/// The same of [`SSRC`], of a length of its own.
pub fn rtp(sequence: u16) -> Vec<u8> {
    rtp_of(SSRC, sequence, 12 + usize::from(sequence % 500))
}

/// Sets an option.
pub fn option<T>(socket: &impl AsRawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: A value of plain numbers and its length.
    match unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as u32,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket that never waits.
pub fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The same on the loopback interface.
pub fn local() -> UdpSocket {
    bound((Ipv4Addr::LOCALHOST, 0).into())
}

/// An address as system calls take it, and its length.
pub fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, u32) {
    // SAFETY: Plain numbers.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let place = std::ptr::from_mut(&mut storage);
    let len = match address {
        SocketAddr::V4(address) => {
            // SAFETY: The storage has room for it, and is aligned for it.
            let to = unsafe { &mut *place.cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as u16;
            to.sin_port = address.port().to_be();
            to.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            size_of_val(to)
        }
        SocketAddr::V6(address) => {
            // SAFETY: As above.
            let to = unsafe { &mut *place.cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as u16;
            to.sin6_port = address.port().to_be();
            to.sin6_addr.s6_addr = address.ip().octets();
            size_of_val(to)
        }
    };
    (storage, len as u32)
}

/// A socket that never waits, with an option of [`libc::SOL_SOCKET`] that has to be set before it is bound.
pub fn shared(name: i32, address: SocketAddr) -> UdpSocket {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: A new socket, owned from here on.
    let socket = unsafe {
        UdpSocket::from_raw_fd(libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0))
    };
    option(&socket, libc::SOL_SOCKET, name, &1_i32).unwrap();
    let (address, len) = raw_address(address);
    // SAFETY: An address and its length.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    socket
}

/// Everything a socket has.
pub fn drain(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => all.push(buffer[..len].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                return all;
            }
        }
    }
}

/// A socket connected to `to`, on the same machine.
pub fn sender(to: &UdpSocket) -> UdpSocket {
    let to = to.local_addr().unwrap();
    let from: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::LOCALHOST, 0).into()
    } else {
        (Ipv6Addr::LOCALHOST, 0).into()
    };
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// A running stream with one leg.
pub fn running(request: ioctl::Create, socket: &UdpSocket) -> Reader {
    let reader = Reader::create_udp(request).unwrap();
    reader.device.add_leg(socket, 0).unwrap();
    reader.device.plain(ioctl::START).unwrap();
    reader
}

/// In sequence order.
pub fn ordered(reorder_ns: u64) -> ioctl::Create {
    ioctl::Create { flags: ioctl::CREATE_ORDERED, reorder_ns, ..Default::default() }
}

/// Sequence numbers of the packets.
pub fn sequences(items: &[Item]) -> Vec<u16> {
    items.iter().map(|item| item.descriptor.sequence as u16).collect()
}
