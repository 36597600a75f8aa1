// SPDX-License-Identifier: MIT OR GPL-2.0

//! ioctl: arguments in and out of user memory, and which call does what.
//!
//! # Sizes
//!
//! A call is known by type and number; the size comes from the struct's first word, which is read once.
//! A caller that knows less than we do gets its shorter struct filled; one that knows more must have
//! zeros where we know nothing.

use kernel::bindings;
use kernel::fs::LocalFile;
use kernel::ioctl::{_IOC_NR, _IOC_TYPE};
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::task::Kuid;
use kernel::uaccess::{UserPtr, UserSlice};

use crate::device::Handle;
use crate::registry;
use crate::ring::abi::{self, feature, ioctl};
use crate::stream::{Role, Stream};
use crate::Parameters;

/// No struct of a call is longer.
const SIZE_MAX: usize = 4096;
/// None is shorter: its size and one number.
const SIZE_MIN: usize = 8;

/// An argument of a call.
///
/// # Safety
///
/// Integers only, without padding, and the first four bytes are the struct's size.
unsafe trait Argument: Copy + Default {}

// SAFETY: Integers without padding (sizes are asserted in the ABI), beginning with `size`.
unsafe impl Argument for ioctl::Version {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Create {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Attach {}
// SAFETY: As above.
unsafe impl Argument for ioctl::AddLeg {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Heard {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Plain {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Stats {}
// SAFETY: As above.
unsafe impl Argument for ioctl::Setting {}
// SAFETY: As above.
unsafe impl Argument for ioctl::List {}

/// An entry of a list in user memory.
fn entry_bytes(entry: &ioctl::ListEntry) -> &[u8] {
    // SAFETY: Integers without padding (its size is asserted in the ABI).
    unsafe {
        core::slice::from_raw_parts(
            core::ptr::from_ref(entry).cast::<u8>(),
            size_of::<ioctl::ListEntry>(),
        )
    }
}

fn bytes_mut<T: Argument>(argument: &mut T) -> &mut [u8] {
    // SAFETY: Any bytes make the integers of an argument, and there is no padding.
    unsafe {
        core::slice::from_raw_parts_mut(core::ptr::from_mut(argument).cast::<u8>(), size_of::<T>())
    }
}

/// Where an argument is, and how much of it its caller knows.
struct Place {
    address: UserPtr,
    size: usize,
}

impl Place {
    /// Reads an argument.
    fn fetch<T: Argument>(address: usize) -> Result<(Self, T)> {
        let address = UserPtr::from_addr(address);
        let mut size = [0; 4];
        UserSlice::new(address, 4).reader().read_slice(&mut size)?;
        let size = u32::from_ne_bytes(size) as usize;
        if size < SIZE_MIN {
            return Err(EINVAL);
        }
        if size > SIZE_MAX {
            return Err(E2BIG);
        }
        let mut argument = T::default();
        let mut reader = UserSlice::new(address, size).reader();
        let known = size.min(size_of::<T>());
        let bytes = bytes_mut(&mut argument);
        let (head, rest) = bytes.split_at_mut_checked(known).ok_or(EINVAL)?;
        reader.read_slice(head)?;
        rest.fill(0);
        require_zeros(reader, size.saturating_sub(known))?;
        // What was read first is what counts, whatever a second read would give.
        if let Some(first) = bytes.first_chunk_mut::<4>() {
            *first = (known as u32).to_ne_bytes();
        }
        Ok((Self { address, size: known }, argument))
    }

    /// Writes an argument back, as much of it as its caller knows.
    fn answer<T: Argument>(&self, argument: &mut T) -> Result {
        let bytes = bytes_mut(argument);
        let known = bytes.get(..self.size).ok_or(EINVAL)?;
        UserSlice::new(self.address, self.size).writer().write_slice(known)
    }
}

fn require_zeros(mut reader: kernel::uaccess::UserSliceReader, mut len: usize) -> Result {
    let mut chunk = [0; 64];
    while len > 0 {
        let part = len.min(chunk.len());
        let bytes = chunk.get_mut(..part).ok_or(EINVAL)?;
        reader.read_slice(bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(E2BIG);
        }
        len = len.saturating_sub(part);
    }
    Ok(())
}

/// One call on an open file.
pub(crate) fn call(handle: &Handle, command: u32, address: usize) -> Result {
    if _IOC_TYPE(command) != u32::from(abi::IOCTL_MAGIC) {
        return Err(ENOTTY);
    }
    let is = |call: u32| _IOC_NR(command) == _IOC_NR(call);
    if is(ioctl::VERSION) {
        version(address)
    } else if is(ioctl::CREATE) {
        create(handle, address)
    } else if is(ioctl::ATTACH) {
        attach(handle, address)
    } else if is(ioctl::ADD_LEG) {
        add_leg(handle, address)
    } else if is(ioctl::START) {
        plain(handle, address, |role| role.require_owner().and_then(|()| role.stream().start()))
    } else if is(ioctl::STOP) {
        stop(handle, address)
    } else if is(ioctl::STATS) {
        stats(handle, address)
    } else if is(ioctl::RESET_STATS) {
        plain(handle, address, |role| {
            role.require_owner().and_then(|()| role.stream().reset_stats())
        })
    } else if is(ioctl::SET) {
        set(handle, address)
    } else if is(ioctl::GET) {
        get(handle, address)
    } else if is(ioctl::KICK) {
        plain(handle, address, |role| role.require_owner().and_then(|()| role.stream().kick()))
    } else if is(ioctl::LIST) {
        list(address)
    } else if is(ioctl::HEARD) {
        heard(handle, address)
    } else {
        Err(ENOTTY)
    }
}

/// The file's role; a file without one is in the wrong state for most calls.
fn role(handle: &Handle) -> Result<&Role> {
    handle.role().ok_or(EBUSY)
}

fn plain(handle: &Handle, address: usize, act: impl FnOnce(&Role) -> Result) -> Result {
    let (_, argument) = Place::fetch::<ioctl::Plain>(address)?;
    if argument.flags != 0 {
        return Err(EINVAL);
    }
    act(role(handle)?)
}

fn stop(handle: &Handle, address: usize) -> Result {
    let (_, argument) = Place::fetch::<ioctl::Plain>(address)?;
    if argument.flags & !ioctl::STOP_LEGS != 0 {
        return Err(EINVAL);
    }
    let role = role(handle)?;
    role.require_owner()?;
    role.stream().stop(argument.flags & ioctl::STOP_LEGS != 0)
}

fn version(address: usize) -> Result {
    let (place, mut version) = Place::fetch::<ioctl::Version>(address)?;
    version.abi_major = abi::ABI_MAJOR;
    version.abi_minor = abi::ABI_MINOR;
    version.features = feature::SIMULATED
        | feature::EXACT_TIMES
        | feature::ORDERED
        | feature::UDP_RECEIVE
        | feature::UDP_TRANSMIT;
    version.release = [0; 32];
    for (to, from) in version.release.iter_mut().zip(b"0.1.0") {
        *to = *from;
    }
    version.max_user_streams = Parameters::get().max_user_streams;
    version.user_streams = registry::count_of(Kuid::current_euid());
    place.answer(&mut version)
}

fn create(handle: &Handle, address: usize) -> Result {
    let (place, mut request) = Place::fetch::<ioctl::Create>(address)?;
    handle.configure(|| {
        let role = Role::create(&mut request, handle.opener())?;
        // A stream whose number its user cannot be told is dropped again.
        place.answer(&mut request)?;
        Ok(role)
    })
}

fn attach(handle: &Handle, address: usize) -> Result {
    let (place, mut request) = Place::fetch::<ioctl::Attach>(address)?;
    if request.flags & !ioctl::ATTACH_OWN != 0 || request.reserved != 0 {
        return Err(EINVAL);
    }
    let own = request.flags & ioctl::ATTACH_OWN != 0;
    handle.configure(|| {
        let stream = wanted_stream(&request, own)?;
        let role = Role::attach(stream, own, &mut request)?;
        place.answer(&mut request)?;
        Ok(role)
    })
}

fn wanted_stream(request: &ioctl::Attach, own: bool) -> Result<Arc<Stream>> {
    match (u32::try_from(request.fd), request.id) {
        (Ok(fd), 0) => {
            let file = LocalFile::fget(fd)?;
            // The file, and so what it holds, lives until `file` is dropped.
            let handle = Handle::of(&file).ok_or(EINVAL)?;
            let role = handle.role().ok_or(EBUSY)?;
            if own {
                role.require_owner()?;
            }
            Ok(role.stream().clone())
        }
        (Err(_), id) if request.fd == -1 && id != 0 && !own => {
            if !is_admin() {
                return Err(EPERM);
            }
            registry::find(id).ok_or(ENOENT)
        }
        _ => Err(EINVAL),
    }
}

fn is_admin() -> bool {
    // SAFETY: No requirements; it asks about the current task.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}

fn add_leg(handle: &Handle, address: usize) -> Result {
    let (_, leg) = Place::fetch::<ioctl::AddLeg>(address)?;
    let role = role(handle)?;
    role.require_owner()?;
    role.stream().add_leg(&leg)
}

fn heard(handle: &Handle, address: usize) -> Result {
    let (_, heard) = Place::fetch::<ioctl::Heard>(address)?;
    let role = role(handle)?;
    role.require_owner()?;
    role.stream().heard(&heard)
}

fn stats(handle: &Handle, address: usize) -> Result {
    let (place, mut stats) = Place::fetch::<ioctl::Stats>(address)?;
    let (state, counters) = role(handle)?.stream().stats();
    stats.state = state as u32;
    stats.counters = counters.to_words();
    place.answer(&mut stats)
}

fn set(handle: &Handle, address: usize) -> Result {
    let (_, setting) = Place::fetch::<ioctl::Setting>(address)?;
    let role = role(handle)?;
    role.require_owner()?;
    role.stream().set(setting.key, setting.value)
}

fn get(handle: &Handle, address: usize) -> Result {
    let (place, mut setting) = Place::fetch::<ioctl::Setting>(address)?;
    setting.value = role(handle)?.stream().get(setting.key)?;
    place.answer(&mut setting)
}

fn list(address: usize) -> Result {
    let (place, mut list) = Place::fetch::<ioctl::List>(address)?;
    let entry_size = list.entry_size as usize;
    if !(SIZE_MIN..=SIZE_MAX).contains(&entry_size) {
        return Err(EINVAL);
    }
    let owner = (!is_admin()).then(Kuid::current_euid);
    let mut to = UserPtr::from_addr(usize::try_from(list.entries)?);
    let mut last = 0;
    list.count = 0;
    while let Some(stream) = registry::next_after(last, owner) {
        if list.count < list.room {
            let entry = stream.entry();
            let bytes = entry_bytes(&entry);
            let known = bytes.get(..entry_size.min(bytes.len())).ok_or(EINVAL)?;
            UserSlice::new(to, known.len()).writer().write_slice(known)?;
            to = to.wrapping_byte_add(entry_size);
        }
        list.count = list.count.saturating_add(1);
        last = stream.id();
    }
    place.answer(&mut list)
}
