// SPDX-License-Identifier: MIT OR GPL-2.0

//! All streams of the machine: their numbers, who made them, and how many and how much memory each user has.

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::sync::Arc;
use kernel::task::Kuid;

use crate::compat::EDQUOT;
use crate::stream::Stream;
use crate::Parameters;

struct Entry {
    owner: Kuid,
    bytes: u64,
    /// Until its last file is closed.
    stream: Option<Arc<Stream>>,
}

struct Streams {
    last_id: u64,
    /// By number. (The kernel's vectors can panic when they grow, as far as the compiler can tell.)
    entries: Option<RBTree<u64, Entry>>,
}

kernel::sync::global_lock! {
    // SAFETY: Initialised when the module is loaded, before its device exists.
    unsafe(uninit) static STREAMS: Mutex<Streams> = Streams { last_id: 0, entries: None };
}

/// Makes the registry usable. Called once, at load.
pub(crate) fn init() {
    // SAFETY: Called once.
    unsafe { STREAMS.init() };
    STREAMS.lock().entries = Some(RBTree::new());
}

/// What a user has.
struct Own {
    streams: u32,
    bytes: u64,
}

impl Own {
    fn of(entries: &RBTree<u64, Entry>, owner: Kuid) -> Self {
        let own = entries.values().filter(|entry| entry.owner == owner);
        own.fold(Self { streams: 0, bytes: 0 }, |sum, entry| Self {
            streams: sum.streams.saturating_add(1),
            bytes: sum.bytes.saturating_add(entry.bytes),
        })
    }
}

/// How many streams `owner` has.
pub(crate) fn count_of(owner: Kuid) -> u32 {
    STREAMS.lock().entries.as_ref().map_or(0, |entries| Own::of(entries, owner).streams)
}

/// A number, and the right to so much memory. Given back when dropped, in process context and without
/// the registry's lock.
pub(crate) struct Reservation {
    id: u64,
}

impl Reservation {
    /// Reserves `bytes` for a stream of `owner`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: over the limit of memory of one stream or of one user. `EDQUOT`: the user has as many
    /// streams as one may have.
    pub(crate) fn new(owner: Kuid, bytes: u64) -> Result<Self> {
        let parameters = Parameters::get();
        if bytes > parameters.max_ring_bytes {
            return Err(ENOMEM);
        }
        let mut streams = STREAMS.lock();
        let last_id = streams.last_id;
        let entries = streams.entries.as_mut().ok_or(ENODEV)?;
        let own = Own::of(entries, owner);
        if parameters.max_user_streams != 0 && own.streams >= parameters.max_user_streams {
            return Err(EDQUOT);
        }
        if own.bytes.saturating_add(bytes) > parameters.max_user_bytes {
            return Err(ENOMEM);
        }
        let id = last_id.wrapping_add(1);
        let entry = Entry { owner, bytes, stream: None };
        entries.try_create_and_insert(id, entry, GFP_KERNEL_ACCOUNT)?;
        streams.last_id = id;
        Ok(Self { id })
    }

    /// The stream's number.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(entries) = STREAMS.lock().entries.as_mut() {
            entries.remove(&self.id);
        }
    }
}

/// From now on `stream` can be found.
pub(crate) fn publish(stream: &Arc<Stream>) {
    let mut streams = STREAMS.lock();
    let entry = streams.entries.as_mut().and_then(|entries| entries.get_mut(&stream.id()));
    if let Some(entry) = entry {
        entry.stream = Some(stream.clone());
    }
}

/// From now on it cannot. Returns what the registry held, to be dropped by the caller.
pub(crate) fn withdraw(id: u64) -> Option<Arc<Stream>> {
    STREAMS.lock().entries.as_mut()?.get_mut(&id)?.stream.take()
}

/// The stream with this number.
pub(crate) fn find(id: u64) -> Option<Arc<Stream>> {
    STREAMS.lock().entries.as_ref()?.get(&id)?.stream.clone()
}

/// The first stream with a number above `id`, of `owner` or with `None` of anybody.
pub(crate) fn next_after(id: u64, owner: Option<Kuid>) -> Option<Arc<Stream>> {
    let streams = STREAMS.lock();
    let mut entries = streams.entries.as_ref()?.iter().filter(|(number, _)| **number > id);
    entries.find_map(|(_, entry)| {
        let visible = owner.is_none_or(|owner| owner == entry.owner);
        entry.stream.as_ref().filter(|_| visible).cloned()
    })
}
