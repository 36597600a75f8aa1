//! System calls that the libraries lack: many messages at once, segmentation, packet rings.

#![allow(unsafe_code)] // Raw system calls and a mapping.

use std::io;
use std::mem::{size_of_val, zeroed};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// Options of `SOL_UDP` (uapi/linux/udp.h).
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

fn set<T>(socket: &impl AsRawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of_val(value) as libc::socklen_t;
    // SAFETY: A value of plain numbers and its length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has each message cut up into packets of `len` bytes.
pub fn set_segment(socket: &UdpSocket, len: u16) -> Result<()> {
    set(socket, libc::SOL_UDP, UDP_SEGMENT, &i32::from(len)).context("UDP_SEGMENT")
}

/// Takes coalesced packets as they are.
pub fn set_coalesced(socket: &UdpSocket) -> Result<()> {
    set(socket, libc::SOL_UDP, UDP_GRO, &1_i32).context("UDP_GRO")
}

/// Sends `bytes` in packets of `len`, with one call. Returns how many were sent.
pub fn send_many(socket: &UdpSocket, bytes: &[u8], len: usize) -> Result<usize> {
    let mut parts: Vec<libc::iovec> = bytes
        .chunks_exact(len)
        .map(|packet| libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: len })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: Zero is a valid message header.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: The messages and what they point to live until the call returns; it only reads the bytes.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error()).context("sendmmsg")
}

/// Room for many messages.
pub struct Many {
    buffers: Vec<Vec<u8>>,
    count: usize,
}

impl Many {
    /// `count` messages of up to `len` bytes.
    pub fn new(count: usize, len: usize) -> Self {
        Self { buffers: vec![vec![0; len]; count], count }
    }

    /// Receives what there is. Returns messages and bytes.
    pub fn receive(&mut self, socket: &UdpSocket) -> Result<(usize, usize)> {
        let mut parts: Vec<libc::iovec> = self
            .buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: Zero is a valid message header.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: Messages, parts and buffers live until the call returns, each as long as it is said.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                self.count as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received)
            .map_err(|_| io::Error::last_os_error())
            .context("recvmmsg")?;
        let bytes = messages[..received].iter().map(|message| message.msg_len as usize).sum();
        Ok((received, bytes))
    }
}

/// A TPACKET_V3 receive ring of IPv4 packets on lo that go to one UDP port.
pub struct PacketRing {
    // The mapping keeps the socket's memory; the socket keeps filling it.
    _socket: OwnedFd,
    memory: *mut u8,
    /// The next to be handed over.
    block: usize,
}

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 8;
/// `ETH_P_IP`, network order.
const PROTOCOL: i32 = (0x0800_u16.to_be()) as i32;
/// `tpacket_block_desc`: version, offset to private data, then the header of version 1.
const STATUS: usize = 8;
const COUNT: usize = 12;
const FIRST: usize = 16;
/// Of `tpacket3_hdr`.
const NEXT: usize = 0;
const LEN: usize = 16;
/// Of IPv4 and UDP.
const HEADERS: usize = 28;
/// After this a block is handed over though it is not full.
pub const RETIRE: Duration = Duration::from_millis(1);

impl PacketRing {
    pub fn new(port: u16) -> Result<Self> {
        // SAFETY: A new socket, owned from here on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("a packet socket");
            }
            OwnedFd::from_raw_fd(fd)
        };
        set(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V3)
            .context("PACKET_VERSION")?;
        // What it sends itself is seen twice on lo: leaving, and arriving.
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)
            .context("PACKET_IGNORE_OUTGOING")?;
        attach_port_filter(&socket, port)?;
        // SAFETY: Zero is a valid request.
        let mut request: libc::tpacket_req3 = unsafe { zeroed() };
        request.tp_block_size = BLOCK as u32;
        request.tp_block_nr = BLOCKS as u32;
        request.tp_frame_size = 2_048;
        request.tp_frame_nr = (BLOCK / 2_048 * BLOCKS) as u32;
        request.tp_retire_blk_tov = RETIRE.as_millis() as u32;
        set(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request).context("PACKET_RX_RING")?;
        // SAFETY: A new mapping at a place that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCK * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map the packet ring");
        }
        // SAFETY: Zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = PROTOCOL as u16;
        address.sll_ifindex = 1;
        // SAFETY: An address and its length.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as u32,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error()).context("bind the packet socket");
        }
        Ok(Self { _socket: socket, memory: memory.cast(), block: 0 })
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset + 4 <= BLOCK * BLOCKS && offset.is_multiple_of(4));
        // SAFETY: Inside the mapping; the kernel writes the status word, and nothing else of a block that
        // is ours.
        unsafe { &*self.memory.add(offset).cast::<AtomicU32>() }
    }

    /// Takes what the kernel has handed over. Returns how many packets of `len` bytes that was: a
    /// coalesced one counts as those it is made of.
    pub fn take(&mut self, len: usize) -> u64 {
        let mut taken = 0;
        loop {
            let base = self.block * BLOCK;
            if self.word(base + STATUS).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return taken;
            }
            let count = self.word(base + COUNT).load(Ordering::Relaxed);
            let mut packet = base + self.word(base + FIRST).load(Ordering::Relaxed) as usize;
            for _ in 0..count {
                let bytes = self.word(packet + LEN).load(Ordering::Relaxed) as usize;
                taken += (bytes.saturating_sub(HEADERS) / len) as u64;
                packet += self.word(packet + NEXT).load(Ordering::Relaxed) as usize;
            }
            self.word(base + STATUS).store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.block = (self.block + 1) % BLOCKS;
        }
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: Mapped in `new`, and nobody borrows it any more.
        unsafe { libc::munmap(self.memory.cast(), BLOCK * BLOCKS) };
    }
}

/// A classic BPF filter: UDP to this port, over IPv4 without options.
fn attach_port_filter(socket: &impl AsRawFd, port: u16) -> Result<()> {
    let (load_byte, load_half, equal, accept) = (0x30, 0x28, 0x15, 0x06);
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(load_byte, 0, 0, 9),
        step(equal, 0, 3, 17),
        step(load_half, 0, 0, 22),
        step(equal, 0, 1, u32::from(port)),
        step(accept, 0, 0, u32::MAX),
        step(accept, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program).context("SO_ATTACH_FILTER")
}
