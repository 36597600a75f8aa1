//! Publishing a receive stream's figures: what changed since the last time, and no more.
//!
//! What lives here: which words of which block a packet changes that continues its source's sequence
//! and does nothing else, which is nearly every packet. What does not: the figures themselves
//! ([`super::receive`], [`super::source`]) and how a block is written ([`super::view::Block`]).
//!
//! Publishing every word of every block costs more than all else that a packet takes. So whatever can
//! change figures says that it may have changed anything, and only the path of a plain packet, once it is
//! through, takes that back. Then as many words are written as it has changed.

use core::mem::offset_of;

use super::abi::{LegFigures, SourceFigures, StreamCounters};
use super::atomic::Word;
use super::source::Source;
use super::view::Block;

/// Where the figures of a receive stream are published.
pub trait FigureBlocks {
    /// The stream's counters.
    fn counters(&self) -> Block<'_>;
    /// Figures of a leg.
    fn leg(&self, leg: usize) -> Block<'_>;
    /// An entry of the source table.
    fn source(&self, at: u16) -> Block<'_>;
}

/// What changed since it was published last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changed {
    #[default]
    Nothing,
    /// What plain packets change: see [`publish_plain_counters`], [`publish_plain_leg`],
    /// [`publish_plain_source`].
    Plain,
    Anything,
}

/// Writes the word of a block that is at this byte of it.
#[inline(always)]
fn put<const WORDS: usize>(words: &[Word; WORDS], offset: usize, value: u64) {
    if let Some(word) = words.get(offset / 8) {
        word.store(value);
    }
}

macro_rules! update {
    ($block:expr, $type:ident { $($field:ident: $value:expr,)* }) => {
        if let Some(words) = $block.begin::<{ $type::WORDS }>() {
            $(put(words, offset_of!($type, $field), $value);)*
            $block.end();
        }
    };
}

/// The counters that plain packets and waking readers change. `counters` are those that are kept, `expected` is derived.
#[inline(always)]
pub(super) fn publish_plain_counters(
    block: &Block<'_>,
    counters: &StreamCounters,
    expected: u64,
    now_ns: u64,
) {
    update!(
        block,
        StreamCounters {
            received: counters.received,
            published: counters.published,
            unique: counters.unique,
            bytes: counters.bytes,
            expected: expected,
            coalesced: counters.coalesced,
            wakeups: counters.wakeups,
            high_watermark: counters.high_watermark,
            updated_ns: now_ns,
        }
    );
}

/// Those of them that a packet changes which came by itself and found room that was in use before.
#[inline(always)]
pub(super) fn publish_next_counters(
    block: &Block<'_>,
    counters: &StreamCounters,
    expected: u64,
    now_ns: u64,
) {
    update!(
        block,
        StreamCounters {
            received: counters.received,
            published: counters.published,
            unique: counters.unique,
            bytes: counters.bytes,
            expected: expected,
            updated_ns: now_ns,
        }
    );
}

/// The figures of a leg that plain packets change.
#[inline(always)]
pub(super) fn publish_plain_leg(
    block: &Block<'_>,
    figures: &LegFigures,
    expected: u64,
    jitter_q4_ns: u64,
) {
    update!(
        block,
        LegFigures {
            received: figures.received,
            first: figures.first,
            expected: expected,
            bytes: figures.bytes,
            jitter_q4_ns: jitter_q4_ns,
            last_ns: figures.last_ns,
        }
    );
}

/// The figures of a source that plain packets change. `expected` is what it derives.
#[inline(always)]
pub(super) fn publish_plain_source(block: &Block<'_>, source: &Source, expected: u64) {
    let jitter = source.jitter();
    update!(
        block,
        SourceFigures {
            received: source.received(),
            unique: source.unique(),
            bytes: source.bytes(),
            expected: expected,
            highest_sequence: source.highest(),
            jitter_q4_ns: jitter.q4_ns,
            jitter_max_q4_ns: jitter.max_q4_ns,
            jitter_sum_q4_ns: jitter.sum_q4_ns,
            jitter_count: jitter.count,
            last_ns: source.last_arrival_ns(),
            rtp_timestamp: source.last_timestamp().into(),
        }
    );
}
