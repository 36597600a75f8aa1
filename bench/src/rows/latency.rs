//! From just before a packet is sent to when the application has it, over loopback.
//!
//! A packet carries the time of its sending. The sender waits busily for the time of its next packet,
//! so that its processor is awake; the receiver's may be idle, or kept busy by a neighbour.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rtp_mgr::{Engine, Item, Leg, Receiver};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row, statistics};

use crate::Settings;
use crate::load::{Rtp, now_ns};
use crate::net::{Net, Side};
use crate::receivers::over;
use crate::rtp_loop::RtpLoop;

const LOOP: &str = "recv loop";
/// A loop that does the least that RTP takes: [`RtpLoop`].
const RTP: &str = "recvmsg+RTP";
/// For how long a reader of ours that was asked to looks out for a packet.
const BUSY_POLL: Duration = Duration::from_micros(100);
/// Bytes: RTP header, time of sending, and what makes it a G.711 packet.
const LEN: usize = 172;
const STAMP: std::ops::Range<usize> = 12..20;
/// Packets per second, and the least number of packets measured.
const RATES: [(f64, usize); 3] = [(50.0, 30), (1_000.0, 500), (50_000.0, 10_000)];
/// Share, name and limit of the ratio to the plain loop.
const SHARES: [(f64, &str, Option<f64>); 3] =
    [(0.5, "p50", Some(1.0)), (0.99, "p99", Some(1.2)), (0.999, "p99.9", None)];

#[derive(Clone, Copy)]
enum Who {
    Ours,
    /// The same with `busy_poll`.
    Awake,
    Loop,
    Rtp,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for busy in [false, true] {
        if busy && !settings.all_peers {
            break;
        }
        for (rate, least) in
            RATES.into_iter().filter(|(rate, _)| settings.all_peers || *rate > 50.0)
        {
            rows.extend(row(settings, rate, least, busy)?);
        }
    }
    Ok(rows)
}

fn row(settings: &Settings<'_>, rate: f64, least: usize, busy: bool) -> Result<Vec<Row>> {
    let condition = if busy { "beside a busy neighbour" } else { "idle machine" };
    // p99.9 of a few packets is their maximum.
    let shares: Vec<_> =
        SHARES.into_iter().filter(|(share, ..)| *share < 0.999 || least >= 500).collect();
    let contest = |(_, name, limit): &(f64, &str, Option<f64>), how: &str| Contest {
        row: format!("latency {name}, {rate} pps, {condition}{how}"),
        unit: "us",
        better: Better::Lower,
        target: match limit {
            Some(limit) => format!("at most {limit} of a blocking recv loop"),
            None => "none".into(),
        },
        goals: limit.map(|limit| Goal::Ratio(LOOP, Bound::AtMost(limit))).into_iter().collect(),
        ..Contest::default()
    };
    let usual = shares.iter().map(|share| contest(share, ""));
    let awake = shares.iter().map(|share| contest(share, ", busy_poll 100 us"));
    let mut contests: Vec<_> = usual.zip(awake).collect();
    let mut driver = Contest::default();
    let packets = least.max((settings.time.as_secs_f64() * rate) as usize);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        if busy {
            scope.spawn(|| {
                // Pinned to where the receiver is: it has to share.
                Side::Receiver.pin()?;
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(0_u64);
                }
                anyhow::Ok(())
            });
        }
        let measured = settings.interleave(
            "latency",
            &[(OURS, Who::Ours), ("awake", Who::Awake), (LOOP, Who::Loop), (RTP, Who::Rtp)],
            &mut driver,
            |who, _| {
                let mut times = measure(who, rate, packets)?;
                times.sort_unstable_by(f64::total_cmp);
                for ((share, ..), (usual, awake)) in shares.iter().zip(&mut contests) {
                    let value = statistics::percentile_of_sorted(&times, *share);
                    let value = value.context("nothing arrived")?;
                    let mut add = |of_usual: Option<_>, of_awake: Option<_>| {
                        of_usual.into_iter().for_each(|name| usual.add(name, value));
                        of_awake.into_iter().for_each(|name| awake.add(name, value));
                    };
                    match who {
                        Who::Ours => add(Some(OURS), None),
                        Who::Awake => add(None, Some(OURS)),
                        Who::Loop => add(Some(LOOP), Some(LOOP)),
                        Who::Rtp => add(Some(RTP), Some(RTP)),
                    }
                }
                Ok(0.0)
            },
        );
        stop.store(true, Ordering::Relaxed);
        measured
    })?;
    let (usual, awake): (Vec<_>, Vec<_>) = contests.into_iter().unzip();
    Ok(usual
        .into_iter()
        .chain(awake)
        .map(|mut contest| {
            contest.not_run = driver.not_run.clone();
            contest.finish()
        })
        .collect())
}

/// Microseconds of every packet that arrived.
fn measure(who: Who, rate: f64, packets: usize) -> Result<Vec<f64>> {
    let net = Net::Loopback;
    let port = net.free_port()?;
    let (ready, is_ready) = mpsc::channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            Side::Receiver.pin()?;
            match who {
                Who::Ours => ours(port, Duration::ZERO, &ready, &stop),
                Who::Awake => ours(port, BUSY_POLL, &ready, &stop),
                Who::Rtp => rtp(&net.receiver(port)?, &ready, &stop),
                Who::Loop => plain(&net.receiver(port)?, &ready, &stop),
            }
        });
        let sent = is_ready
            .recv_timeout(Duration::from_secs(5))
            .context("the receiver did not begin")
            .and_then(|()| send(&net.sender(port)?, rate, packets));
        thread::sleep(Duration::from_millis(30));
        stop.store(true, Ordering::Relaxed);
        let times = receiving.join().unwrap_or_else(|_| bail!("a thread has failed"));
        sent.and(times)
    })
}

fn send(socket: &UdpSocket, rate: f64, packets: usize) -> Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            Side::Sender.pin()?;
            let mut rtp = Rtp::new(1);
            let mut packet = [0; LEN];
            let start = now_ns();
            for number in 0..packets {
                let due = start + (number as f64 / rate * 1e9) as u64;
                while now_ns() < due {
                    // Longer waits leave the processor to others until shortly before.
                    let left = due.saturating_sub(now_ns());
                    if left > 300_000 {
                        thread::sleep(Duration::from_nanos(left - 200_000));
                    }
                    std::hint::spin_loop();
                }
                rtp.write(&mut packet);
                packet[STAMP].copy_from_slice(&now_ns().to_ne_bytes());
                socket.send(&packet)?;
            }
            Ok(())
        });
        sender.join().unwrap_or_else(|_| bail!("a thread has failed"))
    })
}

/// How long a call waits before it looks whether it shall end. Not as long as the time between two packets: every
/// wait would end just when one comes.
const TIMEOUT: Duration = Duration::from_millis(50);

/// Microseconds since the packet was sent.
fn age(packet: &[u8]) -> Option<f64> {
    let stamp = packet.get(STAMP)?.try_into().ok()?;
    Some(now_ns().saturating_sub(u64::from_ne_bytes(stamp)) as f64 / 1e3)
}

fn ours(
    port: u16,
    busy_poll: Duration,
    ready: &mpsc::Sender<()>,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let mut receiver = Receiver::builder()
        .engine(Engine::User)
        .leg(Leg::new(Net::Loopback.address().into(), port))
        .ordered(Duration::from_millis(20))
        .busy_poll(busy_poll)
        .open()?;
    let _ = ready.send(());
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let batch = receiver.read(TIMEOUT)?.context("the stream stopped")?;
        for item in &batch {
            if let Item::Packet(packet) = item {
                times.extend(age(packet.bytes()));
            }
        }
        batch.release();
    }
    Ok(times)
}

fn plain(socket: &UdpSocket, ready: &mpsc::Sender<()>, stop: &AtomicBool) -> Result<Vec<f64>> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    let _ = ready.send(());
    let mut times = Vec::new();
    let mut buffer = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(len) => times.extend(age(&buffer[..len])),
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(times)
}

fn rtp(socket: &UdpSocket, ready: &mpsc::Sender<()>, stop: &AtomicBool) -> Result<Vec<f64>> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut rtp = RtpLoop::new(socket, 1, 2_048)?;
    let _ = ready.send(());
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match rtp.receive(socket, |packet| times.extend(age(packet))) {
            Ok(_) => {}
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    std::hint::black_box(rtp.figures());
    Ok(times)
}
