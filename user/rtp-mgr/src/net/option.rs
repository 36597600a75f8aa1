//! Socket options without a safe wrapper elsewhere.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use super::retry;

// Not in the `libc` crate for every target it has; the same on all architectures of the 64-bit
// kernels' generic socket numbers (include/uapi/asm-generic/socket.h, linux/udp.h, linux/in6.h).
pub(super) const SO_RXQ_OVFL: libc::c_int = 40;
pub(super) const SO_TIMESTAMPNS_OLD: libc::c_int = 35;
pub(super) const SO_TIMESTAMPNS_NEW: libc::c_int = 64;
pub(super) const UDP_SEGMENT: libc::c_int = 103;
pub(super) const UDP_GRO: libc::c_int = 104;
const SO_MEMINFO: libc::c_int = 55;
const SO_BINDTOIFINDEX: libc::c_int = 62;
const IPV6_MULTICAST_ALL: libc::c_int = 29;
const IPV6_UNICAST_IF: libc::c_int = 76;

/// Sets a socket option whose value is a plain C struct or integer.
fn set<T: Copy>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    retry(|| {
        // SAFETY: `value` is readable for size_of::<T>() bytes; the kernel only reads it.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                name,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        }
    })
    .map(|_| ())
}

/// Turns an option on or off.
fn switch(socket: impl AsFd, level: libc::c_int, name: libc::c_int, on: bool) -> io::Result<()> {
    set(socket.as_fd(), level, name, &libc::c_int::from(on))
}

/// Lets the kernel hand over coalesced datagrams whole (UDP GRO).
///
/// # Errors
/// The kernel has no UDP GRO (Linux before 5.0), or refuses it for this socket.
pub fn set_gro(socket: impl AsFd, on: bool) -> io::Result<()> {
    switch(socket, libc::SOL_UDP, UDP_GRO, on)
}

/// Leaves the UDP checksum out.
#[cfg(test)]
pub(super) fn set_no_checksum(socket: impl AsFd) -> io::Result<()> {
    switch(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, true)
}

/// Asks for kernel receive times (CLOCK_REALTIME, nanoseconds) with every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_timestamps(socket: impl AsFd) -> io::Result<()> {
    switch(socket.as_fd(), libc::SOL_SOCKET, SO_TIMESTAMPNS_NEW, true)
        .or_else(|_| switch(socket.as_fd(), libc::SOL_SOCKET, SO_TIMESTAMPNS_OLD, true))
}

/// Asks for the socket's drop count with every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_drop_counts(socket: impl AsFd) -> io::Result<()> {
    switch(socket, libc::SOL_SOCKET, SO_RXQ_OVFL, true)
}

/// Asks for the destination address of every datagram.
///
/// # Errors
/// What the kernel reports.
pub fn set_destinations(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        switch(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, true)
    } else {
        switch(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, true)
    }
}

/// Whether the socket receives datagrams for groups that other sockets joined.
///
/// # Errors
/// The kernel is too old (IPv6: Linux before 4.20).
pub fn set_multicast_all(socket: impl AsFd, ipv6: bool, all: bool) -> io::Result<()> {
    if ipv6 {
        switch(socket, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, all)
    } else {
        switch(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, all)
    }
}

/// Binds the socket to an interface: nothing arrives from or leaves through another.
///
/// # Errors
/// No such interface; no permission (Linux before 5.7 wants CAP_NET_RAW).
pub fn bind_to_interface(socket: impl AsFd, index: u32) -> io::Result<()> {
    set(socket.as_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX, &(index as libc::c_int))
}

/// Sends unicast through an interface without binding to it (`IP_UNICAST_IF`).
///
/// # Errors
/// No such interface.
pub fn set_unicast_interface(socket: impl AsFd, ipv6: bool, index: u32) -> io::Result<()> {
    let value = index.to_be();
    if ipv6 {
        set(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_UNICAST_IF, &value)
    } else {
        set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_UNICAST_IF, &value)
    }
}

/// Joins a group, from any source or from one (RFC 3678), on an interface (0: what the routes say).
///
/// # Errors
/// No such interface or no route to the group (ENODEV), too many memberships (ENOBUFS).
pub fn join_group(
    socket: impl AsFd,
    group: IpAddr,
    source: Option<IpAddr>,
    interface: u32,
) -> io::Result<()> {
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    match source {
        Some(source) => {
            let request = libc::group_source_req {
                gsr_interface: interface,
                gsr_group: storage(group),
                gsr_source: storage(source),
            };
            set(socket.as_fd(), level, libc::MCAST_JOIN_SOURCE_GROUP, &request)
        }
        None => {
            let request = GroupRequest { interface, group: storage(group) };
            set(socket.as_fd(), level, libc::MCAST_JOIN_GROUP, &request)
        }
    }
}

/// `struct group_req` (RFC 3678), which the `libc` crate lacks.
#[derive(Clone, Copy)]
#[repr(C)]
struct GroupRequest {
    interface: u32,
    group: libc::sockaddr_storage,
}

/// An address as the kernel's `sockaddr_storage`, port 0.
fn storage(address: IpAddr) -> libc::sockaddr_storage {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match address {
        IpAddr::V4(address) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every socket address.
            unsafe { ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(name) };
        }
        IpAddr::V6(address) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>().write(name) };
        }
    }
    storage
}

/// Memory of a socket (`SO_MEMINFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes of buffers waiting to be received, the kernel's overhead included.
    pub receive_used: u32,
    /// Most of them that the socket takes (twice what was granted).
    pub receive_limit: u32,
    /// Datagrams dropped since the socket was made, modulo 2^32.
    pub drops: u32,
}

/// Reads a socket's memory figures.
///
/// # Errors
/// Linux before 4.12.
pub fn memory_info(socket: impl AsFd) -> io::Result<MemoryInfo> {
    let mut values = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    retry(|| {
        // SAFETY: `values` is writable for `len` bytes.
        unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        }
    })?;
    Ok(MemoryInfo {
        receive_used: values[libc::SK_MEMINFO_RMEM_ALLOC as usize],
        receive_limit: values[libc::SK_MEMINFO_RCVBUF as usize],
        drops: values[libc::SK_MEMINFO_DROPS as usize],
    })
}
