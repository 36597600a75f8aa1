//! Processor time per received packet at loads that mean something, of the whole machine.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, Row};

use crate::Settings;
use crate::cpu::{Meter, Used};
use crate::lab::Lab;
use crate::load::{self, Load};
use crate::net::{Net, Side};
use crate::receivers::{Kind, Running};

const LOADS: [(&str, Load); 4] = [
    ("50 kpps x 172 B in 1,000 flows", Load { len: 172, rate: Some(50e3), flows: 1_000 }),
    ("64 kpps x 300 B", Load { len: 300, rate: Some(64e3), flows: 1 }),
    ("130 kpps x 1,262 B", Load { len: 1_262, rate: Some(130e3), flows: 1 }),
    ("200 kpps x 1,400 B", Load { len: 1_400, rate: Some(200e3), flows: 1 }),
];
/// What the receive share is less.
const FLOOR: &str = "dropped in prerouting";

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let (lab, note) = super::lab();
    let mut rows = Vec::new();
    for (name, load) in LOADS.iter().skip(if settings.all_peers { 0 } else { 2 }) {
        for mut row in measure(settings, lab.as_ref(), name, load)? {
            row.notes.extend(note.clone());
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Other programs' share of the machine beyond which it is the scheduler's account that counts.
const QUIET: f64 = 0.02;

fn measure(
    settings: &Settings<'_>,
    lab: Option<&Lab>,
    name: &str,
    load: &Load,
) -> Result<Vec<Row>> {
    let mut whole = Contest {
        row: format!("CPU per packet, embedded receive, {name}"),
        unit: "ns/packet",
        better: Better::Lower,
        target: "at most 1.05 of recvmmsg, half of GStreamer and FFmpeg".into(),
        goals: vec![Goal::Ratio("recvmmsg", Bound::AtMost(1.05))],
        ..Contest::default()
    };
    let mut kinds = vec![Kind::Ours, Kind::Recvmmsg, Kind::Recv];
    if settings.all_peers {
        kinds.extend([Kind::Rtp, Kind::Gro, Kind::GStreamer, Kind::Ffmpeg]);
        for program in ["gstreamer", "ffmpeg"] {
            whole.goals.push(Goal::Ratio(program, Bound::AtMost(0.5)));
        }
        if load.flows > 1 {
            whole.notes.push("gstreamer without its jitter buffer, which takes one source".into());
        }
    } else {
        whole.target = "at most 1.05 of recvmmsg".into();
    }
    let mut candidates = Vec::new();
    if lab.is_some() {
        candidates.push((FLOOR, None));
        if settings.all_peers {
            kinds.push(Kind::Tpacket);
        }
    }
    for kind in kinds {
        match kind.missing() {
            None => candidates.push((kind.name(), Some(kind))),
            Some(why) => whole.absent(kind.name(), why),
        }
    }
    let mut accounted = whole.clone();
    let mut foreign = 0.0_f64;
    let mut losses = BTreeMap::<&str, f64>::new();
    settings.interleave("CPU per packet", &candidates, &mut whole, |kind, _| {
        let sample = sample(settings, lab, kind, load)?;
        let name = kind.map_or(FLOOR, Kind::name);
        foreign = foreign.max(sample.used.others);
        let most = losses.entry(name).or_default();
        *most = most.max(sample.lost);
        accounted.add(name, sample.used.accounted_s * 1e9 / sample.packets);
        Ok(sample.used.whole_s * 1e9 / sample.packets)
    })?;
    let mut chosen = if foreign <= QUIET {
        whole.notes.push("the whole machine, sender and softirq included".into());
        whole
    } else {
        accounted.samples.retain(|name, _| whole.samples.contains_key(name));
        accounted.not_run = whole.not_run;
        accounted.notes.push(format!(
            "sender, receiver and softirq by the scheduler's account: other programs used up to {:.0} % of \
             the machine meanwhile",
            foreign * 100.0
        ));
        accounted
    };
    for (name, lost) in losses.into_iter().filter(|(_, lost)| *lost > 0.0) {
        chosen.notes.push(format!("{name} lost up to {:.2} % of the packets", lost * 100.0));
    }
    let share = lab.map(|_| receive_share(&chosen, name).finish());
    Ok([Some(chosen.finish()), share].into_iter().flatten().collect())
}

/// The same figures less those of packets that were dropped early: what receiving alone costs.
fn receive_share(whole: &Contest, name: &str) -> Contest {
    let mut share = Contest {
        row: format!("receive share of the CPU per packet, {name}"),
        unit: "ns/packet",
        better: Better::Lower,
        target: "none: what is left of the row above without sender and drop floor".into(),
        not_run: whole.not_run.clone(),
        ..Contest::default()
    };
    let floor = whole.samples.get(FLOOR).cloned().unwrap_or_default();
    for (name, samples) in whole.samples.iter().filter(|(name, _)| *name != FLOOR) {
        for (sample, floor) in samples.iter().zip(&floor) {
            share.add(name, sample - floor);
        }
    }
    share
}

struct Sample {
    used: Used,
    packets: f64,
    /// Share of the packets.
    lost: f64,
}

fn sample(
    settings: &Settings<'_>,
    lab: Option<&Lab>,
    kind: Option<Kind>,
    load: &Load,
) -> Result<Sample> {
    let net = lab.map_or(Net::Loopback, Net::Cable);
    let receiver = kind.map(|kind| Running::start(kind, net, load)).transpose()?;
    let port = match &receiver {
        Some(receiver) => receiver.port,
        None => net.free_port()?,
    };
    let dropped = matches!(kind, None | Some(Kind::Tpacket));
    let _dropped = lab.filter(|_| dropped).map(|lab| lab.drop_point(port)).transpose()?;
    let socket = net.sender(port)?;
    let meter = Meter::start()?;
    let sent =
        net.at(Side::Sender, || load::send(&socket, load, settings.time, &AtomicBool::new(false)))?;
    let used = meter.stop()?;
    thread::sleep(Duration::from_millis(20));
    let lost = match receiver.map(|receiver| lost(receiver, net, port, sent.packets)) {
        Some(lost) => lost?,
        None => 0,
    };
    let packets = sent.packets.max(1) as f64;
    Ok(Sample { used, packets, lost: lost as f64 / packets })
}

/// Packets that did not arrive; a program does not say, but its socket does.
fn lost(receiver: Running, net: Net<'_>, port: u16, sent: u64) -> Result<u64> {
    let dropped = net.drops(port)?.unwrap_or(0);
    Ok(receiver.finish()?.map_or(dropped, |received| sent.saturating_sub(received)))
}

#[cfg(test)]
mod tests {
    use rtp_mgr_bench_report::OURS;

    use super::*;

    #[test]
    fn the_receive_share_is_less_the_floor_of_the_same_round() {
        let mut whole = Contest::default();
        for (floor, ours, peer) in [(100.0, 300.0, 500.0), (200.0, 400.0, 600.0)] {
            whole.add(FLOOR, floor);
            whole.add(OURS, ours);
            whole.add("recvmmsg", peer);
        }
        let row = receive_share(&whole, "load").finish();
        assert_eq!((row.ours, row.ratios["recvmmsg"]), (Some(200.0), 0.5));
        assert!(!row.peers.contains_key(FLOOR));
    }
}
