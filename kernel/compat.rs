// SPDX-License-Identifier: MIT OR GPL-2.0

//! What an older kernel's Rust API lacks, under the name that it has in a newer one.

#[cfg(not(kernel_before_7_3))]
pub(crate) use kernel::error::code::EOPNOTSUPP;

/// Operation not supported on transport endpoint.
#[cfg(kernel_before_7_3)]
pub(crate) const EOPNOTSUPP: kernel::error::Error = {
    let errno = -(kernel::bindings::EOPNOTSUPP as i32);
    // SAFETY: 7.2's `Error` is a struct of one `NonZeroI32` from -4095 to -1, and this is one. Its
    // constructor that is const is private.
    unsafe { core::mem::transmute::<i32, kernel::error::Error>(errno) }
};
