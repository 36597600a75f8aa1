//! The source table: who sends, found by leg, addresses and SSRC.
//!
//! What lives here: lookup, insertion, eviction of idle sources. What does not: figures
//! ([`super::source`]) and which source an ordered stream follows ([`super::follow`]).
//!
//! Open addressing with linear probing over an index of 16-bit table positions, at most half full.
//! Storage is the caller's: nothing is allocated.

use core::ops::DerefMut;

use super::abi::{SourceFigures, SOURCE_NONE};
use super::figures::{publish_plain_source, Changed, FigureBlocks};
use super::source::{Seen, Source, Step};

/// Addresses and ports of a packet. IPv4 addresses stand in the first four bytes.
///
/// The kernel module's C writes it where it comes from: hence its layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// Source address, network order.
    pub source: [u8; 16],
    /// Destination address, network order.
    pub destination: [u8; 16],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// 4 or 6; 0: not from a network.
    pub family: u8,
}

impl Flow {
    /// Of what came from no network.
    pub const NONE: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        source_port: 0,
        destination_port: 0,
        family: 0,
    };
}

/// What identifies a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// Addresses and ports.
    pub flow: Flow,
    /// RTP synchronisation source.
    pub ssrc: u32,
    /// Leg it came on.
    pub leg: u8,
}

impl Key {
    /// SipHash-1-3 (Aumasson and Bernstein) of the key's six words, without the length, which never
    /// differs. Senders choose addresses and SSRC: not knowing `secret`, they cannot choose them so that
    /// they meet in the index.
    fn hash(&self, secret: Secret) -> usize {
        let words = |bytes: &[u8; 16]| {
            let value = u128::from_le_bytes(*bytes);
            [value as u64, (value >> 64) as u64]
        };
        let [source_0, source_1] = words(&self.flow.source);
        let [destination_0, destination_1] = words(&self.flow.destination);
        let ports = u64::from(self.flow.source_port) << 16 | u64::from(self.flow.destination_port);
        let rest =
            u64::from(self.ssrc) << 16 | u64::from(self.leg) << 8 | u64::from(self.flow.family);
        let mut state = Sip([
            secret[0] ^ 0x736f_6d65_7073_6575,
            secret[1] ^ 0x646f_7261_6e64_6f6d,
            secret[0] ^ 0x6c79_6765_6e65_7261,
            secret[1] ^ 0x7465_6462_7974_6573,
        ]);
        for word in [source_0, source_1, destination_0, destination_1, ports, rest] {
            state.0[3] ^= word;
            state.round();
            state.0[0] ^= word;
        }
        state.0[2] ^= 0xff;
        for _ in 0..3 {
            state.round();
        }
        let [a, b, c, d] = state.0;
        (a ^ b ^ c ^ d) as usize
    }
}

/// Random words that no sender knows.
pub type Secret = [u64; 2];

/// The state of a SipHash.
struct Sip([u64; 4]);

impl Sip {
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }
}

/// One entry of the table. Fill new storage with [`SourceEntry::FREE`].
#[derive(Clone, Copy, Debug)]
pub struct SourceEntry {
    used: bool,
    /// Not published yet: what of its figures.
    changed: Changed,
    next_dirty: u16,
    /// Who it is.
    pub key: Key,
    /// Payload type of the latest packet.
    pub payload_type: u8,
    /// Its figures.
    pub source: Source,
}

impl SourceEntry {
    /// An entry that nobody uses.
    pub const FREE: Self = Self {
        used: false,
        changed: Changed::Nothing,
        next_dirty: NOBODY,
        key: Key {
            flow: Flow {
                family: 0,
                source: [0; 16],
                destination: [0; 16],
                source_port: 0,
                destination_port: 0,
            },
            ssrc: 0,
            leg: 0,
        },
        payload_type: 0,
        source: Source::new(0),
    };

    /// Shows the source its packet. `before` is what [`Table::touch`] returned. Also tells whether the
    /// packet is the next of the sequence and changed nothing else.
    #[inline]
    pub(super) fn observe(&mut self, seen: &Seen, misorder: u32, before: Changed) -> (Step, bool) {
        let steady = self.payload_type == seen.payload_type && !self.source.has_stray();
        self.payload_type = seen.payload_type;
        let step = self.source.observe(seen, misorder);
        let plain = steady && matches!(step, Step::Next { .. });
        if plain {
            self.changed = before.max(Changed::Plain);
        }
        (step, plain)
    }

    /// The entry as it stands in the status pages.
    pub fn figures(&self) -> SourceFigures {
        if !self.used {
            return SourceFigures::default();
        }
        let halves = |bytes: &[u8; 16]| {
            let value = u128::from_le_bytes(*bytes);
            (value as u64, (value >> 64) as u64)
        };
        let flow = &self.key.flow;
        let (source_address_0, source_address_1) = halves(&flow.source);
        let (destination_address_0, destination_address_1) = halves(&flow.destination);
        SourceFigures {
            key: u64::from(flow.family)
                | u64::from(flow.source_port) << 16
                | u64::from(flow.destination_port) << 32
                | u64::from(self.key.leg) << 48
                | u64::from(self.payload_type) << 56,
            source_address_0,
            source_address_1,
            destination_address_0,
            destination_address_1,
            ssrc_clock_rate: u64::from(self.key.ssrc)
                | u64::from(self.source.latest_clock_rate()) << 32,
            ..self.source.figures()
        }
    }
}

/// A source among many that sent nothing for this long gives its entry up when another needs it.
pub const IDLE_NS: u64 = 60_000_000_000;
/// Entries looked at for an idle one, each time the table is full.
const EVICTION_STEPS: usize = 16;
const NOBODY: u16 = SOURCE_NONE;

/// The table. `T` holds the entries, `I` the index: a power of two, at least twice as many.
#[derive(Debug)]
pub struct Table<T, I> {
    entries: T,
    index: I,
    secret: Secret,
    used: usize,
    /// How long a source is silent before its entry may be taken.
    idle_ns: u64,
    /// Where to look for the next free or idle entry.
    hand: usize,
    /// First of the list of entries to publish again.
    dirty: u16,
    /// Entry found last: packets come in runs.
    latest: u16,
}

impl<T, I> Table<T, I>
where
    T: DerefMut<Target = [SourceEntry]>,
    I: DerefMut<Target = [u16]>,
{
    /// An empty table. When it is full, a source that sent nothing for `idle_ns` gives its entry up.
    /// `secret` is to be random where senders are not trusted.
    pub fn new(mut entries: T, mut index: I, idle_ns: u64, secret: Secret) -> Self {
        entries.fill(SourceEntry::FREE);
        index.fill(NOBODY);
        Self { entries, index, secret, used: 0, idle_ns, hand: 0, dirty: NOBODY, latest: 0 }
    }

    /// Entries in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The entry at `at`, in use or not.
    pub fn get(&self, at: u16) -> Option<&SourceEntry> {
        self.entries.get(usize::from(at))
    }

    /// The entry at `at`, to be changed: it will be published again. With it what of it was to be
    /// published already, for [`SourceEntry::observe`].
    #[inline]
    pub(super) fn touch(&mut self, at: u16) -> Option<(&mut SourceEntry, Changed)> {
        let entry = self.entries.get_mut(usize::from(at)).filter(|entry| entry.used)?;
        let before = core::mem::replace(&mut entry.changed, Changed::Anything);
        if before == Changed::Nothing {
            entry.next_dirty = core::mem::replace(&mut self.dirty, at);
        }
        Some((entry, before))
    }

    /// Where the entry found last stands.
    #[inline]
    pub(super) fn latest_at(&self) -> u16 {
        self.latest
    }

    /// The entry found last, with its place.
    pub(super) fn latest(&self) -> Option<(u16, &SourceEntry)> {
        let entry = self.get(self.latest).filter(|entry| entry.used)?;
        Some((self.latest, entry))
    }

    /// Finds `key`, which is then the latest.
    #[inline]
    pub(super) fn find_known(&mut self, key: &Key) -> Option<u16> {
        let latest = self.entries.get(usize::from(self.latest));
        if !latest.is_some_and(|entry| entry.used && entry.key == *key) {
            self.latest = self.find(key)?;
        }
        Some(self.latest)
    }

    /// Whether all entries are published as they are.
    #[inline]
    pub(super) fn is_published(&self) -> bool {
        usize::from(self.dirty) >= self.entries.len()
    }

    /// The entry at `at`, to be changed by whoever publishes it.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, at: u16) -> Option<&mut SourceEntry> {
        self.entries.get_mut(usize::from(at))
    }

    /// The entry at `at`, which is in use, to be shown the next packet of its sequence and nothing else.
    #[inline]
    pub(super) fn touch_plainly(&mut self, at: u16) -> Option<&mut SourceEntry> {
        let entry = self.entries.get_mut(usize::from(at))?;
        if entry.changed == Changed::Nothing {
            entry.changed = Changed::Plain;
            entry.next_dirty = core::mem::replace(&mut self.dirty, at);
        }
        Some(entry)
    }

    /// Finds `key`, or gives it an entry with `clock_rate`. `None`: the table is full of sources that
    /// are not idle.
    #[inline]
    pub fn find_or_insert(&mut self, key: &Key, clock_rate: u32, now_ns: u64) -> Option<u16> {
        if self.find_known(key).is_none() {
            self.latest = self.insert(key, clock_rate, now_ns)?;
        }
        Some(self.latest)
    }

    fn insert(&mut self, key: &Key, clock_rate: u32, now_ns: u64) -> Option<u16> {
        let at = self.free_entry(now_ns)?;
        let mask = self.index.len().checked_sub(1)?;
        let mut place = key.hash(self.secret) & mask;
        for _ in 0..self.index.len() {
            match self.index.get_mut(place) {
                Some(index) if *index == NOBODY => {
                    *index = at;
                    break;
                }
                _ => place = place.wrapping_add(1) & mask,
            }
        }
        let entry = self.entries.get_mut(usize::from(at))?;
        *entry = SourceEntry {
            used: true,
            key: *key,
            source: Source::new(clock_rate),
            ..SourceEntry::FREE
        };
        self.used = self.used.wrapping_add(1);
        Some(at)
    }

    fn find(&self, key: &Key) -> Option<u16> {
        let mask = self.index.len().checked_sub(1)?;
        let mut place = key.hash(self.secret) & mask;
        for _ in 0..self.index.len() {
            let at = self.index.get(place).copied().filter(|at| *at != NOBODY)?;
            if self.entries.get(usize::from(at)).is_some_and(|entry| entry.key == *key) {
                return Some(at);
            }
            place = place.wrapping_add(1) & mask;
        }
        None
    }

    fn free_entry(&mut self, now_ns: u64) -> Option<u16> {
        let len = self.entries.len();
        let steps = if self.used < len { len } else { EVICTION_STEPS.min(len) };
        for _ in 0..steps {
            let at = self.hand;
            self.hand = at.wrapping_add(1);
            if self.hand >= len {
                self.hand = 0;
            }
            let entry = self.entries.get(at)?;
            if !entry.used {
                return u16::try_from(at).ok();
            }
            let idle = now_ns.saturating_sub(entry.source.last_arrival_ns());
            if self.used >= len && idle >= self.idle_ns && entry.changed == Changed::Nothing {
                let key = entry.key;
                self.remove(&key);
                return u16::try_from(at).ok();
            }
        }
        None
    }

    fn remove(&mut self, key: &Key) {
        let secret = self.secret;
        let Some(mask) = self.index.len().checked_sub(1) else { return };
        let Some(at) = self.find(key) else { return };
        let mut hole = key.hash(self.secret) & mask;
        while self.index.get(hole).is_some_and(|index| *index != at) {
            hole = hole.wrapping_add(1) & mask;
        }
        // Close the hole: move back every later entry of this run that may not stand behind it.
        let mut place = hole;
        for _ in 0..self.index.len() {
            place = place.wrapping_add(1) & mask;
            let Some(moved) = self.index.get(place).copied().filter(|at| *at != NOBODY) else {
                break;
            };
            let Some(home) =
                self.entries.get(usize::from(moved)).map(|entry| entry.key.hash(secret))
            else {
                break;
            };
            let from_home = place.wrapping_sub(home & mask) & mask;
            let from_hole = place.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                if let Some(index) = self.index.get_mut(hole) {
                    *index = moved;
                }
                hole = place;
            }
        }
        if let Some(index) = self.index.get_mut(hole) {
            *index = NOBODY;
        }
        if let Some(entry) = self.entries.get_mut(usize::from(at)) {
            *entry = SourceEntry::FREE;
        }
        self.used = self.used.wrapping_sub(1);
    }

    /// Takes the first of those that changed off the list.
    fn next_dirty(&mut self) -> Option<&mut SourceEntry> {
        let entry = self.entries.get_mut(usize::from(self.dirty))?;
        self.dirty = core::mem::replace(&mut entry.next_dirty, NOBODY);
        Some(entry)
    }

    /// Publishes those that changed since they were published last.
    #[inline(always)]
    pub(super) fn publish(&mut self, to: &impl FigureBlocks) {
        loop {
            let at = self.dirty;
            let Some(entry) = self.next_dirty() else { return };
            match core::mem::take(&mut entry.changed) {
                Changed::Plain => {
                    let expected = entry.source.expected();
                    publish_plain_source(&to.source(at), &entry.source, expected);
                }
                _ => publish_source(to, at, entry),
            }
        }
    }
}

#[inline(never)]
fn publish_source(to: &impl FigureBlocks, at: u16, entry: &SourceEntry) {
    to.source(at).publish(&entry.figures().to_words());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec;

    const SECRET: Secret = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn the_rounds_are_those_of_sip_hash() {
        // SipHash-2-4 of no bytes under the key 00 01 .. 0f, from the reference implementation's
        // vectors: two rounds for the one word (its length, 0), four at the end.
        let mut state = Sip([
            SECRET[0] ^ 0x736f_6d65_7073_6575,
            SECRET[1] ^ 0x646f_7261_6e64_6f6d,
            SECRET[0] ^ 0x6c79_6765_6e65_7261,
            SECRET[1] ^ 0x7465_6462_7974_6573,
        ]);
        state.round();
        state.round();
        state.0[2] ^= 0xff;
        (0..4).for_each(|_| state.round());
        let [a, b, c, d] = state.0;
        let expected = u64::from_le_bytes([0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72]);
        assert_eq!(a ^ b ^ c ^ d, expected);
    }

    #[test]
    fn where_sources_stand_depends_on_the_secret() {
        let key = |ssrc: u32| Key { ssrc, ..Key::default() };
        let low = |ssrc: u32, secret: Secret| key(ssrc).hash(secret) & 0xfff;
        let secret = [1, 2];
        // SSRCs that meet under one secret.
        let meeting: std::vec::Vec<u32> =
            (0..200_000).filter(|ssrc| low(*ssrc, SECRET) == low(0, SECRET)).collect();
        assert!(meeting.len() > 20);
        let still = meeting.iter().filter(|ssrc| low(**ssrc, secret) == low(0, secret)).count();
        assert!(still < 4, "{still} of {} meet under another one, too", meeting.len());
    }

    #[test]
    fn what_is_removed_is_gone_and_what_met_it_is_still_found() {
        let mut table = Table::new(vec![SourceEntry::FREE; 16], vec![0_u16; 32], IDLE_NS, SECRET);
        let key = |ssrc: u32| Key { ssrc, ..Key::default() };
        for ssrc in 0..16 {
            table.find_or_insert(&key(ssrc), 0, 0).expect("room");
        }
        for ssrc in 0..16 {
            table.remove(&key(ssrc));
            assert_eq!(table.find(&key(ssrc)), None);
            for other in ssrc + 1..16 {
                assert_eq!(table.find(&key(other)), Some(other as u16), "without {ssrc}");
            }
        }
        assert_eq!(table.used(), 0);
    }
}
