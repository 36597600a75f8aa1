//! UDP sockets, packets for them and streams that have them: what the tests of legs share.

use std::io::{self, ErrorKind};
use std::mem::size_of_val;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::ioctl;
use rtp_mgr_ring::header;

use crate::{Item, Reader};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;
/// The usual sender.
pub const SSRC: u32 = 0x1234_5678;

/// Waits until `done`, or panics after [`LIMIT`].
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::yield_now();
    }
}

/// A packet of `len` bytes.
pub fn rtp_of(ssrc: u32, sequence: u16, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u8) ^ sequence as u8).collect();
    header::build(&mut bytes, false, 96, sequence, u32::from(sequence) * 160, ssrc)
        .expect("room for a header");
    bytes
}

/// A packet of the usual sender, with a length of its own.
pub fn rtp(sequence: u16) -> Vec<u8> {
    rtp_of(SSRC, sequence, 12 + usize::from(sequence % 500))
}

/// Sets a socket option.
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

/// A socket that does not block.
pub fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// One on the loopback address.
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

/// A socket that sends to `to`.
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

/// An ordered stream.
pub fn ordered(reorder_ns: u64) -> ioctl::Create {
    ioctl::Create { flags: ioctl::CREATE_ORDERED, reorder_ns, ..Default::default() }
}

/// The sequence numbers of what was read.
pub fn sequences(items: &[Item]) -> Vec<u16> {
    items.iter().map(|item| item.descriptor.sequence as u16).collect()
}

/// Runs `act` in a network namespace of its own, with the loopback interface up.
pub fn in_namespace(mtu: i32, act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                new_namespace(mtu);
                act();
            })
            .join()
            .unwrap();
    });
}

/// Gives this thread a network namespace of its own, with the loopback interface up.
pub fn new_namespace(mtu: i32) {
    // SAFETY: Changes this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // SAFETY: A request is plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_mtu = mtu;
    // SAFETY: Requests with a name and a value.
    unsafe {
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &request), 0);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request), 0);
    }
}

/// Attaches a classic filter.
pub fn attach_filter(socket: &UdpSocket, code: &mut [libc::sock_filter]) {
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program).unwrap();
}

/// Has this thread run on one CPU.
pub fn pin(cpu: usize) {
    // SAFETY: A set of CPUs for this thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}
