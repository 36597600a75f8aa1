// SPDX-License-Identifier: MIT OR GPL-2.0

//! What an older kernel's Rust API lacks or has wrong, as a newer one has it.

#[cfg(not(kernel_before_7_3))]
pub(crate) use kernel::error::code::{EDQUOT, EOPNOTSUPP};

/// Operation not supported on transport endpoint.
#[cfg(kernel_before_7_3)]
pub(crate) const EOPNOTSUPP: kernel::error::Error = error(kernel::bindings::EOPNOTSUPP);

/// Quota exceeded.
#[cfg(kernel_before_7_3)]
pub(crate) const EDQUOT: kernel::error::Error = error(kernel::bindings::EDQUOT);

#[cfg(kernel_before_7_3)]
const fn error(number: u32) -> kernel::error::Error {
    assert!(number >= 1 && number <= 4_095);
    // SAFETY: 7.2's `Error` is a struct of one `NonZeroI32` from -4095 to -1, and this is one. Its
    // constructor that is const is private.
    unsafe { core::mem::transmute::<i32, kernel::error::Error>(-(number as i32)) }
}

/// A mapping that is shared, or may become so: not private. 7.2's `VM_MAYSHARE` is by mistake the bit of
/// `VM_MAYEXEC`, which private mappings have, too.
pub(crate) const MAYSHARE: kernel::mm::virt::vm_flags_t = 1 << kernel::bindings::VMA_MAYSHARE_BIT;
