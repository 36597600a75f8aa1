//! The calls to the kernel's sockets that no safe crate offers: batched receive and send with
//! scatter and gather lists over the slots of a ring, control messages, and a few socket options.
//!
//! What lives here: how bytes and their particulars cross between sockets and slots, and every
//! `unsafe` that it takes. What does not: which options a stream's sockets get ([`crate::socket`]),
//! when to call, and what the bytes mean (the engine).
//!
//! **Receive.** A coalesced datagram (UDP GRO) is many packets of equal size, the last one possibly
//! shorter, delivered as one. [`RecvBatch`] gives the kernel a scatter list with one slot per packet,
//! each as long as the last packets were, so that the one copy out of the socket puts every packet
//! into a slot of its own. Behind the slots stands overflow memory for a whole datagram: when the
//! guess was wrong nothing is cut off, and the packets are moved to the slots they belong into.
//!
//! **Send.** [`SendBatch`] gathers neighbouring packets of equal size from their slots into one
//! message that the kernel (or the network device) cuts up again (UDP_SEGMENT).
#![allow(unsafe_code)] // The owner of socket calls; every block says why it is sound.

use std::io;
use std::mem;

mod memory;
mod option;
mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use memory::SlotMemory;
pub use option::{
    MemoryInfo, bind_to_interface, join_group, memory_info, set_destinations, set_drop_counts,
    set_gro, set_multicast_all, set_timestamps, set_unicast_interface,
};
pub use receive::{Arrived, MessageInfo, RecvBatch};
pub use send::{SendBatch, SendError, Sent};

/// Most packets that the kernel coalesces into one datagram or cuts one into: `UDP_MAX_SEGMENTS` is
/// 128 from Linux 6.9 on, 64 before.
pub const RECEIVE_SEGMENTS_MAX: usize = 128;
/// Most packets that [`SendBatch`] puts into one message: what every kernel with UDP_SEGMENT takes.
pub const SEND_SEGMENTS_MAX: usize = 64;
/// Most bytes of one message: a 16-bit IP length less the IPv4 and UDP headers.
pub const DATAGRAM_MAX: usize = 65_535 - 20 - 8;

/// Calls again while a signal interrupts.
fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// How the machine's clock is kept (`adjtimex`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockDiscipline {
    /// TAI - UTC as configured, seconds; 0 when nobody configured it.
    pub tai_offset_s: i32,
    /// Whether somebody (NTP, PTP) claims to keep the clock.
    pub synchronised: bool,
    /// Their estimate of the error, microseconds.
    pub estimated_error_us: u64,
}

/// Asks how the clock is kept.
///
/// # Errors
/// What the kernel reports.
pub fn clock_discipline() -> io::Result<ClockDiscipline> {
    // SAFETY: all-zero bytes are a valid timex; `modes` 0 changes nothing.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one timex to memory that holds one.
    let state = retry(|| unsafe { libc::adjtimex(&raw mut timex) })?;
    Ok(ClockDiscipline {
        tai_offset_s: timex.tai,
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        estimated_error_us: u64::try_from(timex.esterror).unwrap_or(0),
    })
}
