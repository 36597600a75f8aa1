//! How a thread of the engine is scheduled.
//!
//! What lives here: asking for a short time slice. What does not: what the thread does
//! ([`crate::engine`]).
//!
//! A thread that wakes up takes the processor from another one only if its deadline is earlier, and that is a
//! slice away (EEVDF, sched(7)). With the default of about 3 ms, a thread that computes keeps a packet that is
//! due waiting for as long. A thread with a short slice has its deadline soon; what it gets of the processor
//! in all is the same, and no privilege is needed. Kernels before 6.12 ignore the wish.

#![allow(unsafe_code)] // The owner of two scheduler calls; every block says why it is sound.

use std::io;

/// The shortest slice that kernels grant, nanoseconds.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` as it was at first: SCHED_ATTR_SIZE_VER0 of include/uapi/linux/sched/types.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const SIZE: u32 = size_of::<Attributes>() as u32;
const _: () = assert!(SIZE == 48);

/// Gives the calling thread the shortest slice, if it is scheduled as threads are by default. All else stays.
///
/// # Errors
/// What the kernel reports: it has no such call, or a sandbox forbids it.
pub(crate) fn ask_for_short_slice() -> io::Result<()> {
    let mut attributes = Attributes { size: SIZE, ..Attributes::default() };
    // SAFETY: Thread 0 is the caller; the kernel writes at most `SIZE` bytes to the structure.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if attributes.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    let wanted = Attributes { size: SIZE, runtime_ns: SLICE_NS, ..attributes };
    // SAFETY: Thread 0 is the caller; the kernel reads `SIZE` bytes of the structure.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present() -> Attributes {
        let mut attributes = Attributes { size: SIZE, ..Attributes::default() };
        // SAFETY: As above.
        let got =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        attributes
    }

    #[test]
    fn the_slice_is_short_and_policy_and_niceness_stay() {
        std::thread::spawn(|| {
            let before = present();
            ask_for_short_slice().unwrap();
            let after = present();
            assert_eq!((after.policy, after.nice), (before.policy, before.nice));
            // 0: this kernel does not tell.
            assert!(after.runtime_ns <= SLICE_NS, "{after:?}");
        })
        .join()
        .unwrap();
    }
}
