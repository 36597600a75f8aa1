//! Coalescing (GRO) and segmentation (GSO): the same packets, figures and order with and without.

use rtp_mgr::ring::abi::StreamCounters;

use crate::harness::{Harness, Need, NotRun, Rig, ms};
use crate::heard::{self, Heard, all, assert_heard, run};
use crate::wait::LONG;
use crate::wire::Rtp;

/// Packets of many lengths: trains of one length, a shorter one at the end of a train, packets
/// that stand alone, one that is too long for its slot, loss and copies.
fn send_everything(rig: &Rig) {
    let mut sender = rig.sender();
    let mut next = 0;
    for (len, count) in [(1_000, 64), (1_000, 30), (400, 64), (1_350, 40), (0, 20), (1_000, 64)] {
        sender.payload_len = len;
        sender.trains(next, count);
        next += count as u16;
        let mut train: Vec<Vec<u8>> =
            run(next, 10).map(|sequence| sender.packet(sequence).bytes()).collect();
        // The last packet of a segmented send may be shorter.
        sender.payload_len = len / 2;
        train.push(sender.packet(next + 10).bytes());
        sender.train(&train);
        next += 11;
        rig.line.settle();
    }
    sender.payload_len = 3_000;
    sender.send(next);
    sender.payload_len = 100;
    // Lost, twice, out of order.
    sender.send_all([next + 2, next + 2, next + 1, next + 5]);
    rig.line.settle();
}

/// What has to be equal: not how it came, nor when.
fn comparable(counters: StreamCounters) -> StreamCounters {
    StreamCounters { coalesced: 0, socket_calls: 0, wakeups: 0, updated_ns: 0, ..counters }
}

fn what(heard: &[Heard]) -> Vec<Heard> {
    let mut heard = heard.to_vec();
    for heard in &mut heard {
        if let Heard::Packet(packet) = heard {
            (packet.time_ns, packet.time_is_shared) = (0, false);
        }
    }
    heard
}

fn compare(open: impl Fn(bool) -> Rig) -> Result<(), NotRun> {
    let [on, off] = [true, false].map(|gro| {
        let mut rig = open(gro);
        send_everything(&rig);
        let mut heard = rig.hear_present();
        let (rest, last) = rig.finish();
        heard.extend(rest);
        (heard, last.counters)
    });
    assert_eq!(comparable(on.1), comparable(off.1));
    assert_eq!(what(&on.0), what(&off.0));
    assert!(on.1.dropped_oversize == 1 && on.1.duplicate == 1, "{:?}", on.1);
    assert_eq!(off.1.coalesced, 0);
    assert!(heard::packets(&off.0).all(|packet| !packet.time_is_shared));
    if on.1.coalesced == 0 {
        return Err(NotRun::because("the kernel coalesces nothing on this loopback interface"));
    }
    assert!(heard::packets(&on.0).any(|packet| packet.time_is_shared));
    Ok(())
}

pub(crate) fn figures_and_order_are_the_same_with_gro_on_and_off(
    h: &Harness,
) -> Result<(), NotRun> {
    h.needs(Need::Offload)?;
    compare(|gro| h.rig(|builder| builder.gro(gro).slot_stride(1_500)))
}

pub(crate) fn ordered_figures_are_the_same_with_gro_on_and_off(h: &Harness) -> Result<(), NotRun> {
    h.needs(Need::Offload)?;
    compare(|gro| h.rig(|builder| builder.gro(gro).slot_stride(1_500).ordered(ms(60_000))))
}

pub(crate) fn exact_times_turn_gro_off(h: &Harness) {
    let mut rig = h.rig(|builder| builder.exact_times(true).gro(true));
    assert!(rig.rx.stats().snapshot().exact_times);
    let sender = rig.sender();
    sender.trains(0, 64);
    rig.line.settle();
    let trains = rig.hear(64);
    sender.send_all(64..164);
    let heard = rig.hear(100);
    assert_heard(&heard, all(64..164));
    assert!(heard::packets(&trains).chain(heard::packets(&heard)).all(|p| !p.time_is_shared));
    let times: Vec<u64> = heard::packets(&heard).map(|packet| packet.time_ns).collect();
    for pair in times.windows(2) {
        assert!(pair[0] < pair[1], "packets sent one after the other share {}", pair[0]);
    }
    assert_eq!(rig.counters().coalesced, 0);
}

pub(crate) fn packets_on_the_wire_are_the_same_with_gso_on_and_off(
    h: &Harness,
) -> Result<(), NotRun> {
    h.needs(Need::Offload)?;
    h.needs(Need::Transmit)?;
    let [on, off] = [true, false].map(|gso| {
        let catcher = super::transmit::Catcher::new();
        // A stride as long as the packets: they lie next to each other.
        let mut tx = h.transmit(catcher.address(), |builder| {
            builder.gso(gso).ssrc(3).first_sequence(65_500).slot_stride(1_012)
        });
        let mut caught = Vec::new();
        for lens in [vec![1_000; 40], vec![600; 30], vec![1_000, 600, 599, 0, 1_000, 1_000]] {
            super::transmit::post(&mut tx, &lens);
            assert!(tx.flush(LONG).expect("the engine runs"));
            caught.extend(catcher.catch(lens.len()));
        }
        let counters = tx.close(LONG).expect("the engine runs").counters;
        (caught, counters)
    });
    assert_eq!(on.0, off.0);
    assert_eq!(on.1.sent, 76);
    assert_eq!(comparable(on.1), comparable(off.1));
    assert_eq!(off.1.coalesced, 0);
    for (packet, sequence) in on.0.iter().zip(run(65_500, 76)) {
        let expected = Rtp {
            ssrc: 3,
            payload_type: 96,
            sequence,
            timestamp: super::transmit::timestamp_of(sequence),
            marker: false,
            payload_len: packet.len() - crate::wire::HEADER,
        };
        assert_eq!(*packet, expected.bytes());
    }
    if on.1.coalesced == 0 {
        return Err(NotRun::because("the kernel cuts up nothing on this loopback interface"));
    }
    Ok(())
}
