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
use crate::primitives::{copy_bytes, monotonic_ns, realtime_of, tai_of};
use crate::receive::Receive;
use crate::ring::header::{self, Kind};
use crate::ring::receive::Packet;
use crate::ring::table::Flow;
use crate::source::train::Train;

/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;
/// A time stamp older than this tells that the clock was set meanwhile.
const AGE_MAX_NS: u64 = 1_000_000_000;

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
    receive: NonNull<Receive>,
    leg: u8,
}

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
        let port = KBox::new(Port { watch, receive, leg }, GFP_KERNEL_ACCOUNT)?;
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
    let Some((datagram, bytes)) = (unsafe { port.accept(sk, skb, &mut arrival) }) else { return 0 };
    let mut single = Single { skb: packet, len: datagram.packet.len, bytes };
    // SAFETY: The UDP code calls encap_rcv in softirq; the shim's hook hands nothing over elsewhere.
    let outcome = unsafe { receive.datagram(&datagram, &mut single) };
    // SAFETY: The packet is that of this call.
    unsafe { answer(outcome, skb) }
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
    let Some((like, _)) = (unsafe { port.accept(sk, skb, &mut arrival) }) else { return 0 };
    // SAFETY: The packet is ours until this returns.
    let mut train = unsafe { Train::new(packet, UDP_HEADER, like.packet.len, size) };
    // SAFETY: The UDP code calls encap_rcv in softirq; the shim's hook hands nothing over elsewhere.
    let outcome = unsafe { receive.train(&mut train, &like) };
    drop(train);
    // SAFETY: The packet is that of this call.
    unsafe { answer(outcome, skb) }
}

/// Whether the stream of an adopted socket takes packets.
///
/// # Safety
///
/// Called by the shim with the port of an adopted socket, in the RCU section in which it was read.
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_is_running(port: *const c_void) -> bool {
    // SAFETY: As this function's own requirement.
    unsafe { Port::of(port) }.receive().is_running()
}

/// Whether the stream of an adopted socket leaves RTP of others to it: a train may hold both.
///
/// # Safety
///
/// As [`rtp_mgr_udp_is_running`].
#[no_mangle]
unsafe extern "C" fn rtp_mgr_udp_leaves_others(port: *const c_void) -> bool {
    // SAFETY: As this function's own requirement.
    unsafe { Port::of(port) }.receive().leaves_others()
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
struct Single {
    /// It is ours while this lives.
    skb: NonNull<bindings::sk_buff>,
    len: u32,
    /// Its bytes, if they are in one piece; else null.
    bytes: *const u8,
}

impl Single {
    #[inline(never)]
    fn copy_pieces(&mut self, to: &mut [u8]) -> bool {
        self.train().copy_next(to)
    }

    fn train(&self) -> Train<'_> {
        // SAFETY: The packet is ours while this lives, and as long as it says.
        unsafe { Train::new(self.skb, UDP_HEADER, self.len, self.len) }
    }
}

impl Bytes for Single {
    fn head(&mut self) -> Head {
        let mut train = self.train();
        train.next_packet();
        train.head()
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
/// `skb` is the packet that the shim handed over, and is not used any more if it was taken.
unsafe fn answer(outcome: Outcome, skb: *mut bindings::sk_buff) -> c_int {
    match outcome {
        Outcome::Taken => {
            // SAFETY: The answer is that the packet is taken: it is ours to free.
            unsafe { bindings::consume_skb(skb) };
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

    /// Whether the socket accepts a packet, what it then tells of itself (`arrival` keeps that), and where its bytes
    /// are if they are in one piece. One that it refuses is gone.
    ///
    /// # Safety
    ///
    /// `sk` was called with `skb`, and this is its port.
    #[inline(always)]
    unsafe fn accept<'a>(
        &self,
        sk: *mut bindings::sock,
        skb: *mut bindings::sk_buff,
        arrival: &'a mut MaybeUninit<Arrival>,
    ) -> Option<(Datagram<'a>, *const u8)> {
        // SAFETY: As this function's own requirement.
        if !unsafe { shim::rtp_mgr_udp_accept(sk, skb, arrival.as_mut_ptr()) } {
            return None;
        }
        // SAFETY: All of it is written for a packet that is accepted.
        let arrival: &'a Arrival = unsafe { arrival.assume_init_ref() };
        let now_ns = monotonic_ns();
        let (arrival_ns, time_ns) = times(arrival.time_ns, now_ns);
        let packet = Packet {
            slot: 0,
            len: arrival.len,
            truncated: false,
            coalesced: false,
            leg: self.leg,
            arrival_ns,
            time_ns,
            flow: &arrival.flow,
        };
        let more = arrival.more != 0;
        Some((Datagram { packet, more, stamp_ns: arrival.time_ns, now_ns }, arrival.bytes))
    }
}

/// CLOCK_MONOTONIC and CLOCK_TAI of a packet that was stamped with `stamp_ns` of CLOCK_REALTIME, or
/// comes now, at `now_ns` of CLOCK_MONOTONIC.
fn times(stamp_ns: u64, now_ns: u64) -> (u64, u64) {
    let age_ns = match stamp_ns {
        0 => 0,
        stamp_ns => realtime_of(now_ns).wrapping_sub(stamp_ns),
    };
    let arrival_ns = if age_ns < AGE_MAX_NS { now_ns.saturating_sub(age_ns) } else { now_ns };
    (arrival_ns, tai_of(arrival_ns))
}
