//! BPF programs, without a library.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Attaches a program.
pub const PROG_ATTACH: u32 = 8;
/// Attaches a program for as long as a file is open.
pub const LINK_CREATE: u32 = 28;

const PROG_LOAD: u32 = 5;

/// One instruction: code, registers, offset, constant.
pub fn step(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(constant as u32) << 32
}

/// bpf(2).
pub fn call(command: u32, attribute: &mut [u64; 16]) -> io::Result<RawFd> {
    // SAFETY: The attribute is as long as it is said to be, and its pointers live as long as the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// A program of this kind, for this place.
pub fn load(kind: u32, attach_type: u32, code: &[u64]) -> OwnedFd {
    let license = c"GPL";
    let mut load = [0; 16];
    load[0] = u64::from(kind) | (code.len() as u64) << 32;
    load[1] = code.as_ptr() as u64;
    load[2] = license.as_ptr() as u64;
    // expected_attach_type at byte 68.
    load[8] = u64::from(attach_type) << 32;
    let program = call(PROG_LOAD, &mut load).expect("a program that the verifier takes");
    // SAFETY: A new descriptor.
    unsafe { OwnedFd::from_raw_fd(program) }
}
