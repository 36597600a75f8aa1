//! How much comes, and for how long a socket holds it.
//!
//! What lives here: a stream's packet rate over the last moments, and the time that the receive buffers
//! of its sockets last at that rate. What does not: what follows from it ([`super::inline`]).

/// What a rate is measured over, nanoseconds.
const WINDOW_NS: u64 = 10_000_000;
/// What the kernel accounts for a packet beside its bytes, at most: its own records, and buffers that are
/// powers of two.
const RECORD_LEN: u64 = 512;
const NS_PER_S: u64 = 1_000_000_000;

/// Counts packets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    /// Since when the present window counts.
    since_ns: u64,
    packets: u64,
    bytes: u64,
    /// Of the windows before: the highest, falling by an eighth with each.
    rate: u64,
    packet_len: u64,
    total: u64,
}

impl Meter {
    /// `packets` of `bytes` together were taken at `now_ns` of CLOCK_MONOTONIC.
    pub(crate) fn count(&mut self, packets: u64, bytes: u64, now_ns: u64) {
        self.total += packets;
        self.packets += packets;
        self.bytes += bytes;
        let passed_ns = now_ns.saturating_sub(self.since_ns);
        if passed_ns < WINDOW_NS {
            return;
        }
        let rate = self.packets.saturating_mul(NS_PER_S) / passed_ns;
        self.rate = rate.max(self.rate - self.rate / 8);
        self.packet_len = self.bytes / self.packets.max(1);
        (self.since_ns, self.packets, self.bytes) = (now_ns, 0, 0);
    }

    /// Packets per second in the last moments.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Packets so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// For how long a socket holds what comes, nanoseconds, if it has a receive buffer of `buffer` bytes, as
    /// SO_RCVBUF sets it (the kernel grants twice that).
    pub(crate) fn hold_ns(&self, buffer: u64) -> u64 {
        let packet = self.packet_len.saturating_mul(2).saturating_add(RECORD_LEN);
        let packets = buffer.saturating_mul(2) / packet;
        packets.saturating_mul(NS_PER_S).checked_div(self.rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// `packets` of 1,000 bytes in each of so many milliseconds.
    fn run(meter: &mut Meter, from_ms: u64, ms: u64, packets: u64) {
        (from_ms..from_ms + ms).for_each(|at| meter.count(packets, packets * 1_000, at * MS));
    }

    #[test]
    fn nothing_is_held_for_ever() {
        assert_eq!(Meter::default().hold_ns(200_000), u64::MAX);
    }

    #[test]
    fn a_buffer_lasts_as_long_as_its_packets_at_the_rate() {
        let mut meter = Meter::default();
        run(&mut meter, 1_000, 100, 50);
        // Twice 1,256,000 bytes are 1,000 packets of 2,512.
        let hold = meter.hold_ns(1_256_000);
        assert!((18 * MS..=22 * MS).contains(&hold), "{hold}");
        assert_eq!(meter.total(), 5_000);
    }

    #[test]
    fn a_burst_is_remembered_for_a_while() {
        let mut meter = Meter::default();
        run(&mut meter, 1_000, 20, 100);
        let burst = meter.hold_ns(1_000_000);
        run(&mut meter, 1_020, 20, 1);
        assert!(meter.hold_ns(1_000_000) < burst * 2);
        run(&mut meter, 1_040, 400, 1);
        assert!(meter.hold_ns(1_000_000) > burst * 50);
    }
}
