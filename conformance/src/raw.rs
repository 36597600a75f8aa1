//! System calls without a safe wrapper: attempts on memory, a network namespace of one's own.
#![allow(unsafe_code)] // The owner of those calls; every block says why it is sound.

use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::thread::UnshareFlags;

use crate::process::Mapping;

/// Maps the first `len` bytes of a file for writing, and lets go of them again.
pub(crate) fn map_writable(file: impl AsFd, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let base =
        unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
    // SAFETY: this is the mapping just made, to which nothing refers.
    unsafe { rustix::mm::munmap(base, len) }?;
    Ok(())
}

/// Makes a mapping of this process writable.
pub(crate) fn make_writable(mapping: &Mapping) -> io::Result<()> {
    let base = ptr::with_exposed_provenance_mut(mapping.start as usize);
    let protection = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: more can be done to the memory afterwards, not less: nobody's reads go wrong. (A
    // mapping that has meanwhile gone gives an error.)
    unsafe { rustix::mm::mprotect(base, mapping.len as usize, protection) }?;
    Ok(())
}

/// Moves this thread, and those it starts from here on, to a network namespace of its own.
pub(crate) fn new_network_namespace() -> io::Result<()> {
    let unshare = |flags| {
        // SAFETY: nothing is unshared that Rust's ownership of descriptors rests on: the table of
        // descriptors stays the process's.
        unsafe { rustix::thread::unshare_unsafe(flags) }
    };
    unshare(UnshareFlags::NEWNET)
        // What an ordinary user may do.
        .or_else(|_| unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET))?;
    Ok(())
}
