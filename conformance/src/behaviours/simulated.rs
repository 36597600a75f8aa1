//! The simulated DMA engine: bursts of a pattern on a timer.

use rtp_mgr::{Framing, SimConfig};

use crate::harness::{Harness, Need, NotRun, Rig, ms};
use crate::heard::{self, Heard};

const SIM: SimConfig =
    SimConfig { interval: ms(5), burst: 8, packet_len: 256, framing: Framing::Raw };

fn rig(h: &Harness, order: u8, sim: SimConfig) -> Rig {
    Rig::open(h.receiver().simulated(sim).ring_order(order))
}

pub(crate) fn bursts_arrive_and_are_counted(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Simulated)?;
    for framing in [Framing::Raw, Framing::Rtp] {
        let mut rig = rig(h, 10, SimConfig { framing, ..SIM });
        let mut heard = rig.hear(80);
        let (rest, last) = rig.finish();
        heard.extend(rest);
        assert!(last.simulated);
        for packet in heard::packets(&heard) {
            assert_eq!(packet.payload.len(), 256);
            assert_eq!(packet.raw, framing == Framing::Raw);
        }
        let counters = last.counters;
        let packets = heard::count(&heard) as u64;
        assert_eq!((counters.received, counters.published), (packets, packets));
        assert_eq!(counters.bursts * 8, packets);
        assert_eq!(counters.bytes_produced, packets * 256);
        assert_eq!((counters.bytes_overflowed, counters.dropped_ring_full), (0, 0));
    }
    Ok(())
}

pub(crate) fn a_reader_that_does_not_read_overflows_the_ring(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Simulated)?;
    let mut rig = rig(h, 4, SIM);
    rig.wait_for("an overflow", |counters| counters.dropped_ring_full >= 24);
    let heard = rig.hear(17);
    assert!(
        matches!(heard[16], Heard::Discontinuity { cause: rtp_mgr::Cause::RingFull, count } if count >= 24),
        "{}",
        heard::outline_text(&heard)
    );
    let (_, last) = rig.finish();
    let counters = last.counters;
    assert_eq!(counters.bytes_overflowed, counters.dropped_ring_full * 256);
    assert_eq!(counters.bytes_produced, counters.published * 256);
    assert_eq!(counters.received, counters.bursts * 8);
    Ok(())
}

pub(crate) fn settings_change_while_running(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Simulated)?;
    let mut rig = rig(h, 10, SIM);
    let _ = rig.hear(8);
    rig.rx
        .set_simulated(SimConfig { packet_len: 64, burst: 3, ..SIM })
        .unwrap_or_else(|error| panic!("{error}"));
    heard::hear_until(&mut rig.rx, "shorter packets", |heard| {
        heard::packets(heard).any(|packet| packet.payload.len() == 64)
    });
    let error = rig.rx.set_simulated(SimConfig { burst: 0, ..SIM }).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("burst 0"), "{error}");
    let unsimulated = h.rig(|builder| builder);
    let error = unsimulated.rx.set_simulated(SIM).unwrap_err();
    assert!(error.is_usage(), "{error}");
    Ok(())
}
