// SPDX-License-Identifier: MIT OR GPL-2.0

//! `/dev/rtp_mgr`: registering it, and the operations of its files.
//!
//! The region and the class are named `rtp_mgr`, so `/proc/devices` lists the major number and the node
//! appears by itself. Both owners are set, that of the file operations and that of the character device:
//! an open that races with unloading fails, and an open file keeps the module.

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::cred::Credential;
use kernel::error::{from_err_ptr, to_result};
use kernel::fs::LocalFile;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::sync::aref::ARef;
use kernel::sync::{new_mutex, Mutex, SetOnce};
use kernel::{bindings, c_str, seq_print};

use crate::compat::EOPNOTSUPP;
use crate::control;
use crate::ring::abi;
use crate::stream::Role;

/// What an open file is.
#[pin_data]
pub(crate) struct Handle {
    role: SetOnce<Role>,
    /// Those of whoever opened it.
    opener: ARef<Credential>,
    /// Held while the role is being decided.
    #[pin]
    configuring: Mutex<()>,
}

impl Handle {
    fn new(opener: ARef<Credential>) -> impl PinInit<Self> {
        pin_init!(Self {
            role: SetOnce::new(),
            opener,
            configuring <- new_mutex!((), "rtp_mgr file"),
        })
    }

    /// With which credentials the file was opened.
    pub(crate) fn opener(&self) -> &ARef<Credential> {
        &self.opener
    }

    /// Its part in a stream, once it has one: for good.
    pub(crate) fn role(&self) -> Option<&Role> {
        self.role.as_ref()
    }

    /// Gives it a role.
    ///
    /// # Errors
    ///
    /// `EBUSY`: it has one. Or what `make` says.
    pub(crate) fn configure(&self, make: impl FnOnce() -> Result<Role>) -> Result {
        let _configuring = self.configuring.lock();
        if self.role().is_some() {
            return Err(EBUSY);
        }
        self.role.populate(make()?);
        Ok(())
    }

    /// The handle of a file, if it is one of ours.
    pub(crate) fn of(file: &LocalFile) -> Option<&Self> {
        // SAFETY: The file lives as long as the reference; its operations do not change.
        let (operations, handle) =
            unsafe { ((*file.as_ptr()).f_op, (*file.as_ptr()).private_data) };
        // SAFETY: Files with our operations have a handle from `open` to `release`, and the latter comes
        // after the last reference to the file.
        core::ptr::eq(operations, &OPERATIONS.0).then(|| unsafe { &*handle.cast::<Self>() })
    }
}

/// File operations as a static.
pub(crate) struct Operations(pub(crate) bindings::file_operations);

// SAFETY: Never written, and what it points to are functions and the module.
unsafe impl Sync for Operations {}

#[cfg(kernel_before_7_3)]
pub(crate) const fn owner() -> *mut bindings::module {
    crate::THIS_MODULE.as_ptr()
}

#[cfg(not(kernel_before_7_3))]
pub(crate) const fn owner() -> *mut bindings::module {
    kernel::module::this_module::<crate::LocalModule>().as_ptr()
}

static OPERATIONS: Operations = Operations(bindings::file_operations {
    owner: owner(),
    open: Some(open),
    release: Some(release),
    unlocked_ioctl: Some(ioctl),
    compat_ioctl: Some(compat_ioctl),
    mmap: Some(mmap),
    poll: Some(poll),
    show_fdinfo: Some(show_fdinfo),
    ..pin_init::zeroed()
});

/// # Safety
///
/// `file` is one of ours, between `open` and `release`, for as long as the reference is used.
unsafe fn handle<'a>(file: *mut bindings::file) -> &'a Handle {
    // SAFETY: `open` put it there.
    unsafe { &*(*file).private_data.cast::<Handle>() }
}

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn open(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: The kernel gives us the file that is being opened, and its credentials live as long.
    let opener = unsafe { Credential::from_ptr((*file).f_cred) };
    let handle = match KBox::pin_init(Handle::new(opener.into()), GFP_KERNEL_ACCOUNT) {
        Ok(handle) => handle,
        Err(error) => return error.to_errno(),
    };
    // SAFETY: A `Handle` is not moved: from here on only references to it exist.
    let handle = unsafe { Pin::into_inner_unchecked(handle) };
    // SAFETY: The kernel gives us the file that is being opened; its private data is ours.
    unsafe { (*file).private_data = KBox::into_raw(handle).cast() };
    0
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `open` put it there, and this is the last operation on the file.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Handle>()) });
    0
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn ioctl(
    file: *mut bindings::file,
    command: c_uint,
    argument: c_ulong,
) -> c_long {
    // SAFETY: The kernel calls this between `open` and `release`.
    let handle = unsafe { handle(file) };
    errno(control::call(handle, command, argument)) as c_long
}

/// A 32-bit caller: the shared memory is for 64-bit ones.
///
/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn compat_ioctl(_: *mut bindings::file, _: c_uint, _: c_ulong) -> c_long {
    EOPNOTSUPP.to_errno() as c_long
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The kernel calls this between `open` and `release`.
    let handle = unsafe { handle(file) };
    let Some(role) = handle.role() else { return EBUSY.to_errno() };
    // SAFETY: The area is being set up, and is ours until this returns. The API has no accessor.
    let (area, page) = unsafe { (VmaNew::from_raw(vma), (*vma).vm_pgoff) };
    let offset = match (page as u64).checked_mul(abi::PAGE as u64) {
        Some(offset) => offset,
        None => return EINVAL.to_errno(),
    };
    errno(role.stream().memory().map(area, offset, role.viewer()))
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: The kernel calls this between `open` and `release`.
    let handle = unsafe { handle(file) };
    match handle.role().and_then(|role| role.reader().map(|reader| (role, reader))) {
        // SAFETY: File and table are those of this poll operation, and the file holds the role.
        Some((role, reader)) => unsafe { role.stream().poll(reader, file, table) },
        None => bindings::POLLERR,
    }
}

/// # Safety
///
/// Called by the kernel as an operation of one of our files.
unsafe extern "C" fn show_fdinfo(to: *mut bindings::seq_file, file: *mut bindings::file) {
    // SAFETY: The kernel calls this between `open` and `release`, with a file to print to.
    let (to, handle) = unsafe { (SeqFile::from_raw(to), handle(file)) };
    let Some(role) = handle.role() else { return };
    let entry = role.stream().entry();
    seq_print!(to, "rtp-stream:\t{}\n", entry.id);
    seq_print!(
        to,
        "rtp-state:\t{}\n",
        match u64::from(entry.state) {
            abi::STATE_CONFIGURED => "configured",
            abi::STATE_RUNNING => "running",
            _ => "stopped",
        }
    );
    seq_print!(to, "rtp-positions:\t{}\n", entry.slot_count);
    seq_print!(to, "rtp-slot-stride:\t{}\n", entry.slot_stride);
    seq_print!(to, "rtp-memory:\t{}\n", entry.memory);
    seq_print!(to, "rtp-readers:\t{}\n", entry.readers);
    seq_print!(to, "rtp-published:\t{}\n", entry.published);
    match role.reader() {
        Some(reader) => seq_print!(to, "rtp-reader:\t{}\n", reader),
        None => seq_print!(to, "rtp-reader:\tnone\n"),
    }
}

/// The device, while the module is loaded.
pub(crate) struct Registration {
    number: bindings::dev_t,
    cdev: *mut bindings::cdev,
    class: *mut bindings::class,
}

// SAFETY: The pointers are used by whoever has the registration, and belong to no thread.
unsafe impl Send for Registration {}
// SAFETY: Nothing can be done through a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Makes the device appear.
    pub(crate) fn new() -> Result<Self> {
        let name = c_str!("rtp_mgr").as_char_ptr();
        let mut number = 0;
        // SAFETY: `number` is written by the call.
        to_result(unsafe { bindings::alloc_chrdev_region(&mut number, 0, 1, name) })?;
        // From here on dropping the registration undoes what was done.
        let mut registration =
            Self { number, cdev: core::ptr::null_mut(), class: core::ptr::null_mut() };
        // SAFETY: A plain constructor.
        let cdev = unsafe { bindings::cdev_alloc() };
        if cdev.is_null() {
            return Err(ENOMEM);
        }
        registration.cdev = cdev;
        // SAFETY: It was just made and nobody else knows it.
        unsafe {
            (*cdev).ops = &OPERATIONS.0;
            (*cdev).owner = owner();
        }
        // SAFETY: A plain constructor; the name lives as long as the module.
        registration.class = from_err_ptr(unsafe { bindings::class_create(name) })?;
        // SAFETY: Operations and owner are set.
        to_result(unsafe { bindings::cdev_add(cdev, number, 1) })?;
        // SAFETY: The class lives; format and argument agree.
        let device = from_err_ptr(unsafe {
            bindings::device_create(
                registration.class,
                core::ptr::null_mut(),
                number,
                core::ptr::null_mut(),
                c_str!("%s").as_char_ptr(),
                name,
            )
        });
        device.map(|_| registration)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: Each is undone only if it was done; a device or a `cdev` that was not added yet is
        // taken by these calls too. No file is open: each holds the module.
        unsafe {
            if !self.class.is_null() {
                bindings::device_destroy(self.class, self.number);
            }
            if !self.cdev.is_null() {
                bindings::cdev_del(self.cdev);
            }
            if !self.class.is_null() {
                bindings::class_destroy(self.class);
            }
            bindings::unregister_chrdev_region(self.number, 1);
        }
    }
}
