// SPDX-License-Identifier: MIT OR GPL-2.0

//! UDP sockets as legs of a receive stream: taking them over and giving them back, and what becomes of
//! each of their packets.
//!
//! A leg holds its socket's file, so the socket outlives it whatever user space closes. An adopted socket
//! calls [`rtp_mgr_udp_packet`] for each datagram it would have received, in softirq, on several CPUs at
//! once. RTP is taken; everything else stays with the socket. Trains of RTP come whole, to
//! [`rtp_mgr_udp_train`], where that makes no difference to anyone: shim.c, which asks here
//! ([`rtp_mgr_udp_is_rtp`]), says when. On the same condition a packet comes before the UDP code has seen it.
//!
//! # Lifetime
//!
//! The socket points to the leg's [`Port`]. [`Leg::release`] has it call here no more; packets that were on
//! their way are through after an RCU grace period, which whoever releases waits for. Only then
//! [`Leg::forget`] takes the pointer away, so that none of them finds that of the socket's next owner, and
//! the port, or what it points to, may go.

use core::mem::{offset_of, MaybeUninit};
use core::ptr::NonNull;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

use crate::engine::{Bytes, Datagram, Head, Outcome, HEAD};
use crate::primitives::copy_bytes;
use crate::receive::Receive;
use crate::ring::abi;
use crate::ring::atomic::Word;
use crate::ring::header::{self, Kind};
use crate::ring::receive::Packet;
use crate::ring::table::Flow;
use crate::source::train::Train;

/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;

/// `struct rtp_mgr_arrival` of shim.h.
#[repr(C)]
struct Arrival {
    flow: Flow,
    len: u32,
    more: u32,
    time_ns: u64,
    bytes: *const u8,
}

const _: () = assert!(size_of::<Arrival>() == 64 && offset_of!(Arrival, len) == 40);

mod shim {
    use kernel::{bindings, ffi::c_void};

    extern "C" {
        // The kernel's own, which its bindings leave out.
        pub(super) fn net_enable_timestamp();
        pub(super) fn net_disable_timestamp();

        pub(super) fn rtp_mgr_watch_new(sk: *mut bindings::sock) -> *mut c_void;
        pub(super) fn rtp_mgr_watch_free(watch: *mut c_void);
        pub(super) fn rtp_mgr_udp_check(sk: *mut bindings::sock) -> kernel::ffi::c_int;
        pub(super) fn rtp_mgr_udp_adopt(
            sk: *mut bindings::sock,
            port: *mut c_void,
        ) -> kernel::ffi::c_int;
        pub(super) fn rtp_mgr_udp_release(sk: *mut bindings::sock);
        pub(super) fn rtp_mgr_udp_forget(sk: *mut bindings::sock, port: *mut c_void);
        pub(super) fn rtp_mgr_udp_figures(
            sk: *mut bindings::sock,
            drops: *mut u32,
            buffer: *mut u32,
        );
        pub(super) fn rtp_mgr_udp_free(skb: *mut bindings::sk_buff);
        pub(super) fn rtp_mgr_udp_accept(
            sk: *mut bindings::sock,
            skb: *mut bindings::sk_buff,
            arrival: *mut super::Arrival,
        ) -> bool;
    }
}

/// What an adopted socket points to. Begins as `struct rtp_mgr_port` of shim.h.
#[repr(C, align(8))]
struct Port {
    watch: Watch,
    state: NonNull<Word>,
    leaves_others: bool,
    receive: NonNull<Receive>,
    leg: u8,
}

const _: () = assert!(offset_of!(Port, state) == 8 && offset_of!(Port, leaves_others) == 16);
const _: () = assert!(abi::STATE_RUNNING == 2);

/// What looks out for trains of a socket: `struct rtp_mgr_watch` of shim.c.
#[repr(transparent)]
struct Watch(NonNull<c_void>);

impl Watch {
    /// # Safety
    ///
    /// `sk` lives until this is dropped. By then it is not adopted, and no packet is on its way through it.
    unsafe fn new(sk: *mut bindings::sock) -> Result<Self> {
        // SAFETY: As this function's own requirement; process context.
        NonNull::new(unsafe { shim::rtp_mgr_watch_new(sk) }).map(Self).ok_or(ENOMEM)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: It was made by `new`, with what that required. Process context.
        unsafe { shim::rtp_mgr_watch_free(self.0.as_ptr()) };
    }
}

/// A socket of a process, with a reference to its file.
struct Socket(NonNull<bindings::socket>);

impl Socket {
    /// The one with number `fd` of this process.
    fn of(fd: c_int) -> Result<Self> {
        let mut error = 0;
        // SAFETY: `error` is written when there is no socket.
        let socket = NonNull::new(unsafe { bindings::sockfd_lookup(fd, &mut error) });
        socket.map(Self).ok_or_else(|| Error::from_errno(error))
    }

    fn sock(&self) -> *mut bindings::sock {
        // SAFETY: The socket's file is referenced, and an open socket keeps its `sock`.
        unsafe { (*self.0.as_ptr()).sk }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: The reference was taken with it.
        unsafe { bindings::fput((*self.0.as_ptr()).file) };
    }
}

/// A socket that a stream has for a leg.
pub(crate) struct Leg {
    port: KBox<Port>,
    adopted: bool,
    /// The socket points to the port: it is adopted, or was and is not [forgotten](Self::forget) yet.
    pointed: bool,
    // Last: the port's watch looks at it.
    socket: Socket,
}

// SAFETY: The socket has locks of its own and its file is referenced; the port is only read.
unsafe impl Send for Leg {}

/// An adopted socket, to look at.
pub(crate) struct SocketView(*mut bindings::sock);

// SAFETY: Only words are read through it, atomically, from any context.
unsafe impl Send for SocketView {}

impl Leg {
    /// The socket with number `fd` of this process, as leg number `leg` of `receive`. It is not adopted
    /// yet.
    ///
    /// # Errors
    ///
    /// `EBADF`, `ENOTSOCK`: no socket. `EINVAL`: not UDP, or not bound.
    ///
    /// # Safety
    ///
    /// `receive` lives until this is dropped.
    pub(crate) unsafe fn new(receive: NonNull<Receive>, fd: c_int, leg: u8) -> Result<Self> {
        let socket = Socket::of(fd)?;
        // SAFETY: Asks about the socket, which is referenced.
        to_result(unsafe { shim::rtp_mgr_udp_check(socket.sock()) })?;
        // SAFETY: A leg drops its port before its socket, after that was released and forgotten.
        let watch = unsafe { Watch::new(socket.sock())? };
        // SAFETY: As this function's own requirement.
        let stream = unsafe { receive.as_ref() };
        let (state, leaves_others) = (NonNull::from(stream.state()), stream.leaves_others());
        let port =
            KBox::new(Port { watch, state, leaves_others, receive, leg }, GFP_KERNEL_ACCOUNT)?;
        // Has the network stack stamp packets while there is a leg: not only while it is adopted, since
        // it means patching the kernel's code. Undone by dropping the leg.
        // SAFETY: Process context.
        unsafe { shim::net_enable_timestamp() };
        Ok(Self { port, adopted: false, pointed: false, socket })
    }

    fn sock(&self) -> *mut bindings::sock {
        self.socket.sock()
    }

    fn port(&self) -> *mut c_void {
        core::ptr::from_ref::<Port>(&self.port).cast_mut().cast()
    }

    /// Makes the socket's packets this leg's.
    ///
    /// # Errors
    ///
    /// `EBUSY`: someone else has it.
    pub(crate) fn adopt(&mut self) -> Result {
        if self.adopted {
            return Ok(());
        }
        // SAFETY: The socket is referenced, and the port stays until it was released.
        to_result(unsafe { shim::rtp_mgr_udp_adopt(self.sock(), self.port()) })?;
        self.adopted = true;
        self.pointed = true;
        Ok(())
    }

    /// Makes the socket's packets its own again. Returns whether some may still be on their way here: an
    /// RCU grace period has to pass before [`forget`](Self::forget), and the leg or its stream goes.
    pub(crate) fn release(&mut self) -> bool {
        if !core::mem::take(&mut self.adopted) {
            return false;
        }
        // SAFETY: The socket is referenced and was adopted.
        unsafe { shim::rtp_mgr_udp_release(self.sock()) };
        true
    }

    /// Takes the pointer to the port from the socket, if it still has it. No packet is on its way here.
    pub(crate) fn forget(&mut self) {
        if !self.adopted && core::mem::take(&mut self.pointed) {
            // SAFETY: The socket is referenced; a pointer that is not this port's is left alone.
            unsafe { shim::rtp_mgr_udp_forget(self.sock(), self.port()) };
        }
    }

    /// The socket, to look at while this lives.
    pub(crate) fn view(&self) -> SocketView {
        SocketView(self.sock())
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if self.release() {
            grace_period();
        }
        self.forget();
        // SAFETY: It was enabled with the leg.
        unsafe { shim::net_disable_timestamp() };
    }
}

/// Waits until all packets are through that were on their way. Process context.
pub(crate) fn grace_period() {
    // SAFETY: Callers may sleep and are in no RCU section.
    unsafe { bindings::synchronize_rcu() };
}

impl SocketView {
    /// What it has dropped, modulo 2^32, and its receive buffer in bytes.
    ///
    /// # Safety
    ///
    /// The leg lives.
    pub(crate) unsafe fn figures(&self) -> (u32, u32) {
        let (mut drops, mut buffer) = (0, 0);
        // SAFETY: The leg holds the socket.
        unsafe { shim::rtp_mgr_udp_figures(self.0, &mut drops, &mut buffer) };
        (drops, buffer)
    }
}

/// A packet for an adopted socket: what encap_rcv answers. 0: it is taken, or dropped; 1: it is the
/// socket's. One that is `early` and the socket's comes again.
///
/// # Safety
///
/// Called by the shim in softirq, with the port that `sk` points to, in the RCU section in which it was
/// read. `head` has the first bytes of the packet's `len` bytes, up to [`HEAD`], until the socket has accepted it: its
/// filter may move them.
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_packet(
    port: *const c_void,
    sk: *mut bindings::sock,
    skb: *mut bindings::sk_buff,
    head: *const u8,
    len: u32,
    early: bool,
) -> c_int {
    // SAFETY: As this function's own requirement.
    let port = unsafe { Port::of(port) };
    let receive = port.receive();
    // SAFETY: As this function's own requirement.
    let bytes = unsafe { core::slice::from_raw_parts(head, (len as usize).min(HEAD)) };
    let mut arrival = MaybeUninit::uninit();
    let kind = header::classify(bytes);
    if kind != Kind::Rtp || receive.leaves(bytes) {
        if !early {
            receive.passed(kind);
        }
        return 1;
    }
    let Some(packet) = NonNull::new(skb).filter(|_| receive.is_running()) else { return 1 };
    // SAFETY: Socket and packet are those of this call.
    let Some(arrival) = (unsafe { accept(sk, skb, &mut arrival) }) else { return 0 };
    // SAFETY: The packet is that of this call, which the socket has accepted.
    unsafe { port.take(packet, arrival) }
}

/// A packet by itself for an adopted socket that came early, is RTP of its stream, and was accepted by the socket: what
/// encap_rcv answers, as above. `time_ns` as in [`Arrival`].
///
/// # Safety
///
/// Called by the shim in softirq, with the port that the packet's socket points to, in the RCU section in which it was
/// read, and with where its IP header (IPv4, or IPv6 without extensions) and its UDP header are, whole.
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_take(
    port: *const c_void,
    skb: *mut bindings::sk_buff,
    ip: *const u8,
    udp: *const [u8; UDP_HEADER as usize],
    time_ns: u64,
) -> c_int {
    // SAFETY: As this function's own requirement: an IP header begins with its version, and is as long as that says. The
    // packet is that of this call.
    let (port, packet, flow, [len, in_pieces]) = unsafe {
        let lens = [(*skb).len, (*skb).data_len];
        (Port::of(port), NonNull::new_unchecked(skb), flow(ip, &*udp), lens)
    };
    let arrival = Arrival {
        flow,
        len: len.wrapping_sub(UDP_HEADER),
        more: 0,
        time_ns,
        bytes: if in_pieces == 0 { udp.wrapping_add(1).cast() } else { core::ptr::null() },
    };
    // SAFETY: As this function's own requirement.
    unsafe { port.take(packet, &arrival) }
}

/// Addresses and ports of a packet.
///
/// # Safety
///
/// `ip` points to an IPv4 header, or to one of IPv6.
#[inline(always)]
unsafe fn flow(ip: *const u8, udp: &[u8; UDP_HEADER as usize]) -> Flow {
    let [a, b, c, d, ..] = *udp;
    // SAFETY: As this function's own requirement: addresses end an IPv4 header without options, and IPv6's.
    let (family, source, destination) = unsafe {
        if ip.read() >> 4 == 4 {
            (4, four(ip.add(12).cast()), four(ip.add(16).cast()))
        } else {
            (6, ip.add(8).cast::<[u8; 16]>().read(), ip.add(24).cast::<[u8; 16]>().read())
        }
    };
    Flow {
        source,
        destination,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        family,
    }
}

/// An IPv4 address as [`Flow`] has it.
///
/// # Safety
///
/// It can be read.
#[inline(always)]
unsafe fn four(address: *const [u8; 4]) -> [u8; 16] {
    // SAFETY: As this function's own requirement.
    let address = u32::from_le_bytes(unsafe { address.read() });
    u128::from(address).to_le_bytes()
}

/// A train of RTP of `size` bytes each for an adopted socket: what encap_rcv answers, as above.
///
/// # Safety
///
/// Called by the shim in softirq, with the port that `sk` points to, in the RCU section in which it was
/// read.
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_train(
    port: *const c_void,
    sk: *mut bindings::sock,
    skb: *mut bindings::sk_buff,
    size: u32,
) -> c_int {
    // SAFETY: As this function's own requirement.
    let port = unsafe { Port::of(port) };
    let receive = port.receive();
    let mut arrival = MaybeUninit::uninit();
    let Some(packet) = NonNull::new(skb).filter(|_| receive.is_running()) else { return 1 };
    // SAFETY: Socket and packet are those of this call.
    let Some(arrival) = (unsafe { accept(sk, skb, &mut arrival) }) else { return 0 };
    let like = port.datagram(arrival);
    let outcome = {
        // SAFETY: The packet is ours until this returns.
        let mut train = unsafe { Train::new(packet, UDP_HEADER, like.packet.len, size) };
        // SAFETY: The UDP code calls encap_rcv in softirq; the shim's hook hands nothing over elsewhere.
        unsafe { receive.train(&mut train, like) }
    };
    // SAFETY: As above; the packet is that of this call.
    unsafe { answer(outcome, skb) }
}

/// Whether all packets of a train are RTP: `len` bytes from `offset` on, in packets of `size` bytes.
///
/// # Safety
///
/// Called by the shim with a packet that is its own.
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_is_rtp(
    skb: *mut bindings::sk_buff,
    offset: u32,
    len: u32,
    size: u32,
) -> bool {
    let Some(skb) = NonNull::new(skb) else { return false };
    // SAFETY: As this function's own requirement.
    unsafe { Train::new(skb, offset, len, size) }.is_rtp()
}

/// The bytes of a packet that came by itself, or was cut off a train.
#[derive(Clone, Copy)]
struct Single {
    /// It is ours while this lives.
    skb: NonNull<bindings::sk_buff>,
    len: u32,
    /// Its bytes, if they are in one piece; else null.
    bytes: *const u8,
}

// What is called takes copies: a reference would keep `Single` out of registers.
impl Single {
    #[inline(never)]
    fn copy_pieces(self, to: &mut [u8]) -> bool {
        self.train().copy_next(to)
    }

    #[inline(never)]
    fn first(self) -> Head {
        let mut train = self.train();
        train.next_packet();
        train.head()
    }

    fn train(&self) -> Train<'_> {
        // SAFETY: The packet is ours while this lives, and as long as it says.
        unsafe { Train::new(self.skb, UDP_HEADER, self.len, self.len) }
    }
}

impl Bytes for Single {
    #[inline(always)]
    fn head(&mut self) -> Head {
        self.first()
    }

    #[inline(always)]
    fn copy(&mut self, to: &mut [u8]) -> bool {
        if self.bytes.is_null() || to.len() > self.len as usize {
            return self.copy_pieces(to);
        }
        // SAFETY: `len` bytes are there, in a packet that is ours while this lives. `to` is memory of ours.
        unsafe { copy_bytes(self.bytes, to.as_mut_ptr(), to.len()) };
        true
    }
}

/// What encap_rcv answers for a packet of which this became. One that was taken is freed.
///
/// # Safety
///
/// In softirq, or with bottom halves off. `skb` is the packet that the shim handed over, and is not used any more if it
/// was taken.
unsafe fn answer(outcome: Outcome, skb: *mut bindings::sk_buff) -> c_int {
    match outcome {
        Outcome::Taken => {
            // SAFETY: The answer is that the packet is taken: it is ours to free. Bottom halves are off.
            unsafe { shim::rtp_mgr_udp_free(skb) };
            0
        }
        Outcome::Left => 1,
    }
}

impl Port {
    /// # Safety
    ///
    /// `port` was read from an adopted socket, in an RCU section that ends after `'a`.
    unsafe fn of<'a>(port: *const c_void) -> &'a Self {
        // SAFETY: The port stays for a grace period after it was taken from the socket.
        unsafe { &*port.cast::<Self>() }
    }

    fn receive(&self) -> &Receive {
        // SAFETY: The stream lives as long as its legs, and so as their ports.
        unsafe { self.receive.as_ref() }
    }

    /// What the ring is told of a packet.
    #[inline(always)]
    fn datagram<'a>(&self, arrival: &'a Arrival) -> Datagram<'a> {
        let packet = Packet {
            slot: 0,
            len: arrival.len,
            truncated: false,
            coalesced: false,
            leg: self.leg,
            arrival_ns: 0,
            time_ns: 0,
            flow: &arrival.flow,
        };
        Datagram { packet, more: arrival.more != 0, stamp_ns: arrival.time_ns, now_ns: 0 }
    }

    /// Takes a packet, unless it is the socket's after all: what encap_rcv answers.
    ///
    /// # Safety
    ///
    /// In softirq, with a packet that this port's socket has accepted, and what that then told of itself.
    #[inline(always)]
    unsafe fn take(&self, skb: NonNull<bindings::sk_buff>, arrival: &Arrival) -> c_int {
        let datagram = self.datagram(arrival);
        let mut single = Single { skb, len: arrival.len, bytes: arrival.bytes };
        // SAFETY: As this function's own requirement.
        let outcome = unsafe { self.receive().datagram(datagram, &mut single) };
        // SAFETY: As above; the packet is ours if it was taken.
        unsafe { answer(outcome, skb.as_ptr()) }
    }
}

/// Whether the socket accepts a packet, and what that then tells of itself, which `arrival` keeps. One that it refuses
/// is gone.
///
/// # Safety
///
/// `sk` was called with `skb`.
#[inline(always)]
unsafe fn accept(
    sk: *mut bindings::sock,
    skb: *mut bindings::sk_buff,
    arrival: &mut MaybeUninit<Arrival>,
) -> Option<&Arrival> {
    // SAFETY: As this function's own requirement.
    if !unsafe { shim::rtp_mgr_udp_accept(sk, skb, arrival.as_mut_ptr()) } {
        return None;
    }
    // SAFETY: All of it is written for a packet that is accepted.
    Some(unsafe { arrival.assume_init_ref() })
}
