//! How the cost of a packet grows with the number of sources in a ring, and of streams in a process,
//! while the number of packets stays the same.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rtp_mgr::{Context, Engine, Leg, Receiver};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::Settings;
use crate::cpu::Meter;
use crate::load::{self, Load, Rtp, Ticks};
use crate::net::{Net, Side};
use crate::receivers::{Kind, Running};

const SOURCES: [u32; 5] = [1, 10, 100, 1_000, 2_000];
const STREAMS: [u32; 4] = [1, 10, 50, 200];
const LEN: usize = 172;
/// Packets per second of all sources together: 2,000 of 50.
const SOURCES_RATE: f64 = 100e3;
/// Of all streams together: 200 of 50.
const STREAMS_RATE: f64 = 10e3;

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    if !settings.all_peers {
        return Ok(Vec::new());
    }
    let sources = growth(
        settings,
        "many flows: 1 to 2,000 sources in one ring, 100 kpps in all",
        &SOURCES,
        |sources| sources_cost(settings, sources),
    )?;
    let mut streams = growth(
        settings,
        "many flows: 1 to 200 streams on one engine thread, 10 kpps in all",
        &STREAMS,
        |streams| streams_cost(settings, streams),
    )?;
    streams.notes.push(memory_per_stream()?);
    Ok(vec![sources, streams])
}

/// The cost of the most over the cost of the least.
fn growth(
    settings: &Settings<'_>,
    name: &str,
    counts: &[u32],
    mut cost: impl FnMut(u32) -> Result<f64>,
) -> Result<Row> {
    let mut costs = Contest::default();
    let names: Vec<String> = counts.iter().map(u32::to_string).collect();
    let candidates: Vec<_> = names.iter().map(String::as_str).zip(counts.iter().copied()).collect();
    settings.interleave("many flows", &candidates, &mut costs, |count, _| cost(count))?;
    if let Some((name, why)) = costs.not_run.iter().next() {
        bail!("{name}: {why}");
    }
    let mut contest = Contest {
        row: name.into(),
        unit: "times the cost of one",
        better: Better::Lower,
        target: "less than 2".into(),
        goals: vec![Goal::Value(Bound::AtMost(2.0))],
        ..Contest::default()
    };
    let samples = |count: &str| costs.samples.get(count).cloned().unwrap_or_default();
    let one = samples(&names[0]);
    for (most, one) in samples(&names[names.len() - 1]).iter().zip(&one) {
        contest.add(OURS, most / one);
    }
    for name in &names {
        let cost = rtp_mgr_bench_report::statistics::median(&samples(name)).unwrap_or_default();
        contest.notes.push(format!("{name}: {cost:.0} ns/packet, sender included"));
    }
    Ok(contest.finish())
}

fn sources_cost(settings: &Settings<'_>, sources: u32) -> Result<f64> {
    let net = Net::Loopback;
    // At least two: one alone would be ordered.
    let load = Load { len: LEN, rate: Some(SOURCES_RATE), flows: sources };
    let receiver = Running::start(Kind::Ours, net, &Load { flows: sources.max(2), ..load })?;
    let socket = net.sender(receiver.port)?;
    let meter = Meter::start()?;
    let sent = net
        .at(Side::Sender, || load::send(&socket, &load, settings.time, &AtomicBool::new(false)))?;
    let used = meter.stop()?;
    receiver.finish()?;
    Ok(used.accounted_s * 1e9 / sent.packets.max(1) as f64)
}

/// Streams that share an engine thread, and one thread that reads them all.
struct Streams {
    receivers: Vec<Receiver>,
    ports: Vec<u16>,
}

fn open(count: u32) -> Result<Streams> {
    let context = Context::new(NonZeroUsize::MIN)?;
    let mut streams = Streams { receivers: Vec::new(), ports: Vec::new() };
    for _ in 0..count {
        let receiver = Receiver::builder()
            .engine(Engine::User)
            .leg(Leg::new(Net::Loopback.address().into(), 0))
            .rtcp(false)
            .ordered(Duration::from_millis(20))
            .context(&context)
            .open()?;
        streams.ports.push(receiver.local_addr(0).context("no address")?.port());
        streams.receivers.push(receiver);
    }
    Ok(streams)
}

fn streams_cost(settings: &Settings<'_>, count: u32) -> Result<f64> {
    let net = Net::Loopback;
    let Streams { receivers, ports } = net.at(Side::Receiver, || open(count))?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let reading =
        net.at(Side::Receiver, || Ok(thread::spawn(move || read(receivers, &stopping))))?;
    let sockets: Vec<_> = ports.iter().map(|port| net.sender(*port)).collect::<Result<_>>()?;
    let meter = Meter::start()?;
    let sent = net.at(Side::Sender, || {
        let mut rtp: Vec<Rtp> = sockets.iter().map(|_| Rtp::new(1)).collect();
        let period = Duration::from_micros(500);
        let mut clock = Ticks::start(period);
        let ticks = (settings.time.as_secs_f64() / period.as_secs_f64()) as usize;
        let burst = (STREAMS_RATE * period.as_secs_f64()) as usize;
        let mut packet = [0; LEN];
        for tick in 0..ticks {
            clock.wait();
            for at in 0..burst {
                let stream = (tick * burst + at) % sockets.len();
                rtp[stream].write(&mut packet);
                sockets[stream].send(&packet)?;
            }
        }
        Ok(ticks * burst)
    })?;
    let used = meter.stop()?;
    stop.store(true, Ordering::Relaxed);
    let received = reading.join().unwrap_or_else(|_| bail!("a thread has failed"))?;
    if received == 0 {
        bail!("nothing arrived");
    }
    Ok(used.accounted_s * 1e9 / sent as f64)
}

/// Reads them all, as a program with many streams does: with one epoll file.
fn read(mut receivers: Vec<Receiver>, stop: &AtomicBool) -> Result<usize> {
    let mut packets = 0;
    let time = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, receiver) in receivers.iter().enumerate() {
        epoll::add(&all, receiver, EventData::new_u64(at as u64), EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(receivers.len());
    // What came before the files were asked for the first time.
    let mut ready: Vec<usize> = (0..receivers.len()).collect();
    while !stop.load(Ordering::Relaxed) {
        for at in ready.drain(..) {
            loop {
                let batch = receivers[at].try_read()?.context("a stream stopped")?;
                if batch.is_empty() {
                    break;
                }
                packets += batch.len();
                batch.release();
            }
        }
        epoll::wait(&all, spare_capacity(&mut events), Some(&time))?;
        ready.extend(events.drain(..).map(|event| event.data.u64() as usize));
    }
    Ok(packets)
}

/// What a stream takes, and what a source does, by what this process has more afterwards.
fn memory_per_stream() -> Result<String> {
    const COUNT: u32 = 50;
    let resident = || -> Result<f64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|text| text.split_whitespace().next()?.parse().ok());
        kib.context("no VmRSS")
    };
    let before = resident()?;
    let streams = open(COUNT)?;
    let each = (resident()? - before) / f64::from(COUNT);
    drop(streams);
    let source = size_of::<rtp_mgr::ring::table::SourceEntry>()
        + size_of::<rtp_mgr::ring::abi::SourceFigures>()
        + 2 * size_of::<u16>();
    Ok(format!(
        "memory: {each:.0} KiB resident per opened stream with default settings (what packets touch comes \
         on top), {source} B per source"
    ))
}
