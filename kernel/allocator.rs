// SPDX-License-Identifier: MIT OR GPL-2.0

//! Allocators for what is as large as a user asks for: without memory they fail.
//!
//! With the kernel's own, a request that the memory cgroup of its user has no room for ends with a process of
//! that cgroup killed, any of them, before it fails. The flag that says to fail instead
//! (`__GFP_RETRY_MAYFAIL`: reclaim, but kill nobody) has no name in the kernel's Rust API, and its `Flags`
//! cannot be made of a number; so the flags that callers give are left unread here.

use core::alloc::Layout;
use core::ptr::{null, NonNull};

use kernel::alloc::allocator::{KVmalloc, Kmalloc};
use kernel::alloc::{AllocError, Allocator, Flags, NumaNode, Vec};
use kernel::bindings;
use kernel::ffi::{c_int, c_ulong, c_void};

/// Charged to the cgroup of whoever asks, without a warning, zeroed.
const FLAGS: u32 = bindings::GFP_KERNEL_ACCOUNT
    | bindings::__GFP_NOWARN
    | bindings::__GFP_ZERO
    | 1 << bindings::___GFP_RETRY_MAYFAIL_BIT;

/// Whole pages, as `Vmalloc` gives them: zeroed, any flags are taken for those of this module.
pub(crate) struct Pages;
/// Tables, as `KVmalloc` gives them: likewise.
pub(crate) struct Tables;

/// A table.
pub(crate) type Table<T> = Vec<T, Tables>;

/// `vrealloc_node_align()` and `kvrealloc_node_align()`.
type Realloc = unsafe extern "C" fn(*const c_void, usize, c_ulong, u32, c_int) -> *mut c_void;

/// As [`Allocator::realloc`] by one of the two.
///
/// # Safety
///
/// As there, for memory that came from the same function.
unsafe fn call(
    realloc: Realloc,
    ptr: Option<NonNull<u8>>,
    layout: Layout,
    old_layout: Layout,
) -> Result<NonNull<[u8]>, AllocError> {
    let old = match ptr {
        Some(ptr) if old_layout.size() != 0 => ptr.as_ptr().cast_const(),
        _ => null(),
    };
    let size = layout.size();
    // SAFETY: `old` is null or memory of this function; size 0 frees it.
    let new = unsafe {
        realloc(old.cast(), size, layout.align() as c_ulong, FLAGS, bindings::NUMA_NO_NODE)
    };
    let new = match size {
        // Nothing: any address that is aligned.
        0 => NonNull::new(core::ptr::without_provenance_mut(layout.align())),
        _ => NonNull::new(new.cast()),
    };
    Ok(NonNull::slice_from_raw_parts(new.ok_or(AllocError)?, size))
}

// SAFETY: Memory stays until it is freed, wherever its pointer goes; the function keeps contents, size and
// alignment as asked (vrealloc() and its relatives are what the kernel's own allocators call).
unsafe impl Allocator for Pages {
    const MIN_ALIGN: usize = kernel::page::PAGE_SIZE;

    unsafe fn realloc(
        ptr: Option<NonNull<u8>>,
        layout: Layout,
        old_layout: Layout,
        _flags: Flags,
        _node: NumaNode,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: As the caller promises.
        unsafe { call(bindings::vrealloc_node_align, ptr, layout, old_layout) }
    }
}

// SAFETY: As above.
unsafe impl Allocator for Tables {
    const MIN_ALIGN: usize = KVmalloc::MIN_ALIGN;

    unsafe fn realloc(
        ptr: Option<NonNull<u8>>,
        layout: Layout,
        old_layout: Layout,
        _flags: Flags,
        _node: NumaNode,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // What is small comes from kmalloc().
        let layout = Kmalloc::aligned_layout(layout);
        // SAFETY: As the caller promises.
        unsafe { call(bindings::kvrealloc_node_align, ptr, layout, old_layout) }
    }
}
