//! The laws that counters keep at every snapshot.

use rtp_mgr_ring::abi::StreamCounters;

/// The law of a receive stream.
#[track_caller]
pub fn assert_receive_books(counters: &StreamCounters) {
    assert_eq!(
        counters.received,
        counters.published
            + counters.dropped_ring_full
            + counters.dropped_oversize
            + counters.dropped_invalid
            + counters.dropped_filtered
            + counters.duplicate
            + counters.late
            + counters.staged,
        "{counters:?}"
    );
}

/// The law of a transmit stream.
#[track_caller]
pub fn assert_transmit_books(counters: &StreamCounters) {
    assert_eq!(
        counters.committed,
        counters.sent + counters.send_failed + counters.pending,
        "{counters:?}"
    );
}
