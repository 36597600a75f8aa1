//! The highest rate that arrives whole, packet by packet across a cable without offloads.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rtp_mgr::{Engine, Leg, PacketRate, Transmitter};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};

use crate::Settings;
use crate::load::{self, Load, Sent};
use crate::net::{Net, Side};
use crate::receivers::{Kind, Running};

/// Bytes of UDP payload.
const LENGTHS: [usize; 2] = [172, 1_400];
/// Halvings of the interval between a rate that is too low and one that is too high.
const STEPS: usize = 6;
/// A sender that does less than this share of its rate cannot do the rate.
const KEPT: f64 = 0.98;

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let (lab, note) = super::lab();
    let net = lab.as_ref().map_or(Net::Loopback, Net::Cable);
    let lengths = if settings.all_peers { &LENGTHS[..] } else { &LENGTHS[1..] };
    let rows = lengths.iter().map(|len| {
        let mut row = row(settings, net, *len)?;
        row.notes.extend(note.clone());
        Ok(row)
    });
    rows.collect()
}

fn row(settings: &Settings<'_>, net: Net<'_>, len: usize) -> Result<Row> {
    let mut contest = Contest {
        row: format!("lossless rate, per packet, embedded, {len} B"),
        unit: "k packets/s",
        better: Better::Higher,
        target: "at least a bare sendmmsg/recvmmsg pair".into(),
        goals: vec![Goal::Ratio("sendmmsg-recvmmsg", Bound::AtLeast(1.0))],
        ..Contest::default()
    };
    let candidates = [(OURS, Kind::Ours), ("sendmmsg-recvmmsg", Kind::Recvmmsg)];
    settings.interleave("lossless rate", &candidates, &mut contest, |kind, _| {
        search(|rate| trial(settings, net, kind, len, rate))
    })?;
    Ok(contest.finish())
}

/// What came of a rate: the rate that was sent, and whether all of it arrived.
type Trial = (f64, bool);

/// The highest rate, k packets/s, whose packets all arrive.
fn search(mut trial: impl FnMut(Option<f64>) -> Result<Trial>) -> Result<f64> {
    let (most, whole) = trial(None)?;
    if whole {
        return Ok(most / 1e3);
    }
    let (mut good, mut bad) = (0.0, most);
    for _ in 0..STEPS {
        let rate = (good + bad) / 2.0;
        match trial(Some(rate))? {
            (sent, true) if sent >= rate * KEPT => good = rate,
            _ => bad = rate,
        }
    }
    Ok(good / 1e3)
}

fn trial(
    settings: &Settings<'_>,
    net: Net<'_>,
    kind: Kind,
    len: usize,
    rate: Option<f64>,
) -> Result<Trial> {
    settings.check_stop()?;
    let time = settings.time / 3;
    let load = Load { len, rate, flows: 1 };
    let receiver = Running::start(kind, net, &load)?;
    let sent = match kind {
        Kind::Ours => transmit(net, receiver.port, &load, time)?,
        _ => {
            let socket = net.sender(receiver.port)?;
            net.at(Side::Sender, || load::send(&socket, &load, time, &AtomicBool::new(false)))?
        }
    };
    // What is on its way arrives.
    thread::sleep(Duration::from_millis(30));
    let received = receiver.finish()?.context("no count")?;
    Ok((sent.packets as f64 / sent.seconds, received >= sent.packets))
}

/// Sends with a transmit stream of ours.
fn transmit(net: Net<'_>, port: u16, load: &Load, time: Duration) -> Result<Sent> {
    net.at(Side::Sender, || {
        let mut builder = Transmitter::builder()
            .engine(Engine::User)
            .leg(Leg::new(net.address().into(), port))
            .gso(false)
            .rtcp(false)
            .slot_stride(load.len as u32);
        if let Some(rate) = load.rate {
            builder = builder.rate(PacketRate::new(rate as u64, 1)?);
        }
        let mut transmitter = builder.open()?;
        let start = Instant::now();
        let mut timestamp = 0;
        while start.elapsed() < time {
            let mut slots = transmitter.reserve(64, Duration::from_millis(20))?;
            let lent = slots.len();
            for mut slot in slots.iter_mut() {
                slot.rtp(false, timestamp);
                slot.set_payload_len(load.len - 12)?;
                timestamp = timestamp.wrapping_add(48);
            }
            slots.commit(lent)?;
        }
        transmitter.flush(Duration::from_secs(1))?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sent { packets: transmitter.stats().counters().sent, seconds })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_near_the_highest_rate_that_arrives_whole() {
        // The sender can do 1,000,000, the receiver 300,000.
        let found = search(|rate| {
            let rate = rate.unwrap_or(1e6);
            Ok((rate, rate <= 300_000.0))
        });
        let found = found.unwrap();
        assert!((280.0..=300.0).contains(&found), "{found}");
    }

    #[test]
    fn a_receiver_faster_than_its_sender_is_not_searched() {
        assert_eq!(search(|rate| Ok((rate.unwrap_or(5e5), true))).unwrap(), 500.0);
    }

    #[test]
    fn a_rate_that_the_sender_does_not_keep_is_none() {
        // Without a rate something is lost; with one the sender does half of it.
        let found = search(|rate| Ok(rate.map_or((1e6, false), |rate| (rate / 2.0, true))));
        assert_eq!(found.unwrap(), 0.0);
    }
}
