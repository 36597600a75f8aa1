//! Sockets as a program without any library would use them: recvmmsg, sendmmsg, segmentation
//! offload, a TPACKET_V3 ring; and offloads of an interface, a network namespace.
//!
//! What lives here: what takes `unsafe`. What does not: who is measured how.
#![allow(unsafe_code)] // The owner of those calls; every block says why it is sound.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a datagram buffer that holds any coalesced train.
pub const TRAIN_MAX: usize = 65_536;
const CONTROL: usize = 64;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_struct(socket, level, name, &value)
}

fn set_struct<T>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as a `T` has, from one.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(|_| ())
}

/// Lets the kernel hand over coalesced trains whole.
pub fn set_gro(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Has the kernel say when each datagram arrived.
pub fn set_timestamps(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// What one call brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Packets, those of coalesced trains one by one.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
}

/// Headers of `count` messages of `len` bytes each, one after the other in `bytes`; and the lists that they point to,
/// which live as long as they do.
fn messages_over(
    bytes: &mut [u8],
    count: usize,
    len: usize,
) -> (Box<[libc::iovec]>, Box<[libc::mmsghdr]>) {
    let parts = bytes.chunks_exact_mut(len).take(count);
    let mut iovecs: Box<[_]> = parts
        .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
        .collect();
    let headers = iovecs.iter_mut().map(|iovec| {
        // SAFETY: all-zero bytes are a valid mmsghdr (integers and null pointers).
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_iov = ptr::from_mut(iovec);
        header.msg_hdr.msg_iovlen = 1;
        header
    });
    let headers = headers.collect();
    (iovecs, headers)
}

/// Datagram buffers for recvmmsg.
pub struct ReceiveBuffers {
    len: usize,
    bytes: Box<[u8]>,
    /// What the headers point to.
    _iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    controls: Box<[Control]>,
    /// Whether control messages are wanted.
    control: bool,
    /// Senders, where they are wanted.
    names: Box<[libc::sockaddr_in6]>,
    received: usize,
}

impl ReceiveBuffers {
    /// `messages` buffers of `len` bytes each.
    pub fn new(messages: usize, len: usize, control: bool) -> Self {
        let mut bytes: Box<[u8]> = vec![0; messages * len].into();
        let (iovecs, headers) = messages_over(&mut bytes, messages, len);
        let controls = vec![Control([0; CONTROL]); messages].into();
        let names = Box::default();
        Self { len, bytes, _iovecs: iovecs, headers, controls, control, names, received: 0 }
    }

    /// Has the kernel say who sent each datagram.
    pub fn with_senders(mut self) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_in6 (integers).
        let name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
        self.names = vec![name; self.headers.len()].into();
        self
    }

    /// Waits for the first datagram (as long as the socket's time-out) and takes what is there.
    ///
    /// # Errors
    /// What the socket reports; `WouldBlock` when the time ran out.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<Got> {
        if self.control {
            for (header, control) in self.headers.iter_mut().zip(&mut self.controls) {
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = CONTROL;
            }
        }
        for (header, name) in self.headers.iter_mut().zip(&mut self.names) {
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        }
        // SAFETY: every header has a list of one buffer and, if any, control memory and a name, all owned by
        // this value and not otherwise borrowed during the call.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        })?;
        self.received = received as usize;
        let mut got = Got::default();
        for at in 0..self.received {
            let len = self.headers[at].msg_len as usize;
            let segment = match self.control {
                true => self.segment(at).unwrap_or(len).max(1),
                false => len.max(1),
            };
            got.packets += len.div_ceil(segment).max(1) as u64;
            got.bytes += len as u64;
        }
        Ok(got)
    }

    /// The datagrams of the last call, each with its arrival time if the socket tells
    /// (nanoseconds of CLOCK_REALTIME).
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], Option<u64>)> {
        (0..self.received).map(|at| {
            let start = at * self.len;
            let len = (self.headers[at].msg_len as usize).min(self.len);
            (&self.bytes[start..start + len], self.time(at))
        })
    }

    /// The control message of `level` and `kind` that came with a datagram.
    fn message<T: Copy>(&self, at: usize, level: libc::c_int, kind: libc::c_int) -> Option<T> {
        let header = &self.headers[at].msg_hdr;
        if !self.control {
            return None;
        }
        // SAFETY: the header's control memory is `controls[at]`, of which the kernel wrote
        // `msg_controllen` bytes of messages; the macros stay within them.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: a message that the macros found lies whole in the control memory; it has at
            // least a `T` when its length says so.
            unsafe {
                let found = *message;
                let room =
                    found.cmsg_len as usize >= libc::CMSG_LEN(size_of::<T>() as u32) as usize;
                if found.cmsg_level == level && found.cmsg_type == kind && room {
                    return Some(libc::CMSG_DATA(message).cast::<T>().read_unaligned());
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        None
    }

    /// Bytes of each packet of a coalesced datagram.
    fn segment(&self, at: usize) -> Option<usize> {
        self.message::<libc::c_int>(at, libc::SOL_UDP, libc::UDP_GRO).map(|len| len.max(1) as usize)
    }

    fn time(&self, at: usize) -> Option<u64> {
        let time: libc::timespec = self.message(at, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
        Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

/// Packets of equal length for sendmmsg, or one train for segmentation offload.
pub struct SendBuffers {
    len: usize,
    bytes: Box<[u8]>,
    /// What the headers point to.
    _iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl SendBuffers {
    /// `packets` packets of `len` bytes each.
    pub fn new(packets: usize, len: usize) -> Self {
        let mut bytes: Box<[u8]> = vec![0; packets * len].into();
        let (iovecs, headers) = messages_over(&mut bytes, packets, len);
        Self { len, bytes, _iovecs: iovecs, headers }
    }

    /// Number of packets.
    pub fn packets(&self) -> usize {
        self.headers.len()
    }

    /// One of them.
    pub fn packet(&mut self, at: usize) -> &mut [u8] {
        &mut self.bytes[at * self.len..(at + 1) * self.len]
    }

    /// Sends the packets of `range` on a connected socket. Returns how many the kernel took.
    ///
    /// # Errors
    /// What the socket reports.
    pub fn send(&mut self, socket: impl AsFd, range: std::ops::Range<usize>) -> io::Result<usize> {
        let headers = &mut self.headers[range];
        // SAFETY: every header has a list of one packet, owned by this value.
        check(unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                0,
            )
        })
        .map(|sent| sent as usize)
    }

    /// Sends all packets as one train that the kernel cuts up (UDP_SEGMENT).
    ///
    /// # Errors
    /// What the socket reports.
    pub fn send_train(&self, socket: impl AsFd) -> io::Result<()> {
        // SAFETY: the kernel reads `bytes`, which live through the call.
        let sent = unsafe {
            libc::send(socket.as_fd().as_raw_fd(), self.bytes.as_ptr().cast(), self.bytes.len(), 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the kernel cut what [`send_train`](Self::send_train) sends.
    ///
    /// # Errors
    /// The kernel has no UDP_SEGMENT.
    pub fn set_segmentation(&self, socket: impl AsFd) -> io::Result<()> {
        set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, self.len as libc::c_int)
    }
}

/// Moves this thread to a network namespace of its own.
///
/// # Errors
/// Not permitted.
pub fn new_network_namespace() -> io::Result<()> {
    // SAFETY: nothing is unshared that Rust's ownership of descriptors rests on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Switches segmentation, coalescing and checksum offloads of an interface of this namespace off.
///
/// # Errors
/// There is no such interface, or this is not permitted.
pub fn offloads_off(interface: &str) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // linux/ethtool.h: ETHTOOL_SRXCSUM, STXCSUM, SSG, STSO, SGSO, SGRO. Segmentation goes first: it
    // needs the others.
    const COMMANDS: [(u32, bool); 6] =
        [(0x1f, true), (0x24, true), (0x2c, true), (0x19, false), (0x17, false), (0x15, false)];
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    for (command, needed) in COMMANDS {
        let mut value = Value { command, data: 0 };
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
        // SAFETY: the request names an `ethtool_value`, which both commands read and nothing else.
        let done = check(unsafe {
            libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, ptr::from_mut(&mut request))
        });
        // An interface may not let go of checksums; it then has none to compute on a cable.
        if needed {
            done?;
        }
    }
    Ok(())
}

/// A ring of blocks that the kernel fills with every packet of an interface (TPACKET_V3).
pub struct PacketRing {
    socket: OwnedFd,
    base: *mut u8,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is tied to no thread.
unsafe impl Send for PacketRing {}

const BLOCK_LEN: usize = 1 << 18;
const BLOCKS: usize = 64;

impl PacketRing {
    /// Opens a ring on an interface of this namespace. Blocks that are not full are handed over after
    /// 1 ms.
    ///
    /// # Errors
    /// Not permitted (CAP_NET_RAW), no such interface, no memory.
    pub fn open(interface: &str) -> io::Result<Self> {
        let protocol = (libc::ETH_P_IP as u16).to_be();
        // SAFETY: a call without pointers.
        let socket = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
        })?;
        // SAFETY: the descriptor was just made and is owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        set(
            &socket,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            libc::tpacket_versions::TPACKET_V3 as _,
        )?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_LEN as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: 2_048,
            tp_frame_nr: (BLOCK_LEN * BLOCKS / 2_048) as u32,
            tp_retire_blk_tov: 1,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_struct(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BLOCK_LEN * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = Self { socket, base: base.cast(), next: 0 };
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: the name ends with a zero byte.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the kernel reads one sockaddr_ll.
        check(unsafe {
            libc::bind(
                ring.socket.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        Ok(ring)
    }

    /// Walks the packets of the next block and gives it back. `None`: the kernel has it still.
    pub fn take(&mut self) -> Option<Got> {
        // SAFETY: `next` is less than BLOCKS, so that the block lies in the mapping, which is aligned
        // to pages; block status and header are written by the kernel before it hands the block over.
        let (header, status) = unsafe {
            let block = self.base.add(self.next * BLOCK_LEN);
            let header = ptr::from_mut(&mut (*block.cast::<libc::tpacket_block_desc>()).hdr.bh1);
            (header, AtomicU32::from_ptr(&raw mut (*header).block_status))
        };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let mut got = Got::default();
        // SAFETY: the block is ours until its status is written; packets lie where the kernel says,
        // and the walk ends at the end of the block whatever it says.
        unsafe {
            let packets = (*header).num_pkts;
            let mut at = (*header).offset_to_first_pkt as usize;
            for _ in 0..packets {
                if at + size_of::<libc::tpacket3_hdr>() > BLOCK_LEN {
                    break;
                }
                let packet = self.base.add(self.next * BLOCK_LEN + at).cast::<libc::tpacket3_hdr>();
                got.packets += 1;
                got.bytes += u64::from((*packet).tp_snaplen);
                at += (*packet).tp_next_offset as usize;
            }
        }
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        Some(got)
    }
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `open`, to which nothing refers any more. That it fails
        // leaves it mapped.
        unsafe { libc::munmap(self.base.cast(), BLOCK_LEN * BLOCKS) };
    }
}

/// Memory of fixed-size packets that one thread writes and another reads, by turns that a ring's
/// positions give.
pub struct SharedSlots {
    bytes: Box<[std::cell::UnsafeCell<u8>]>,
    len: usize,
}

// SAFETY: access goes through `write` and `read` alone, whose callers promise whose turn it is.
unsafe impl Sync for SharedSlots {}

impl SharedSlots {
    /// `slots` packets of `len` bytes.
    pub fn new(slots: usize, len: usize) -> Self {
        Self { bytes: (0..slots * len).map(|_| std::cell::UnsafeCell::new(0)).collect(), len }
    }

    /// Copies a packet into a slot.
    ///
    /// # Safety
    /// No other thread reads or writes this slot at the same time.
    pub unsafe fn write(&self, slot: usize, packet: &[u8]) {
        let bytes = &self.bytes[slot * self.len..(slot + 1) * self.len];
        let len = packet.len().min(self.len);
        // SAFETY: `bytes` has `self.len` cells, and nobody else uses them now.
        unsafe { ptr::copy_nonoverlapping(packet.as_ptr(), bytes[0].get(), len) };
    }

    /// A slot's bytes.
    ///
    /// # Safety
    /// No other thread writes this slot while the result lives.
    pub unsafe fn read(&self, slot: usize) -> &[u8] {
        let bytes = &self.bytes[slot * self.len..(slot + 1) * self.len];
        // SAFETY: `bytes` has `self.len` initialised cells that nobody writes now.
        unsafe { std::slice::from_raw_parts(bytes[0].get(), self.len) }
    }
}
