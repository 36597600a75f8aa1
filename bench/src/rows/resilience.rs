//! A reader that stands still for a while: how much is lost.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rtp_mgr::{Engine, Item, Leg, Receiver};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};

use crate::Settings;
use crate::load::{self, Load};
use crate::net::{Net, Side};
use crate::receivers::over;

const LOAD: Load = Load { len: 172, rate: Some(200e3), flows: 1 };
const PAUSES_MS: [u64; 3] = [50, 100, 500];
const LOOP: &str = "recv loop";

#[derive(Clone, Copy)]
enum Who {
    Ours,
    Loop,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let pauses = if settings.all_peers { &PAUSES_MS[..] } else { &PAUSES_MS[1..2] };
    pauses.iter().map(|ms| row(settings, *ms)).collect()
}

fn row(settings: &Settings<'_>, ms: u64) -> Result<Row> {
    let mut contest = Contest {
        row: format!("lost while the reader stands still for {ms} ms at 200 kpps"),
        unit: "packets",
        better: Better::Lower,
        target: "nothing lost at default settings, told the rate".into(),
        goals: vec![Goal::Value(Bound::AtMost(0.0))],
        ..Contest::default()
    };
    let candidates = [(OURS, Who::Ours), (LOOP, Who::Loop)];
    settings.interleave("resilience", &candidates, &mut contest, |who, _| {
        measure(who, Duration::from_millis(ms)).map(|lost| lost as f64)
    })?;
    Ok(contest.finish())
}

fn measure(who: Who, pause: Duration) -> Result<u64> {
    let net = Net::Loopback;
    let port = net.free_port()?;
    let (ready, is_ready) = mpsc::channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            Side::Receiver.pin()?;
            match who {
                Who::Ours => ours(port, pause, &ready, &stop),
                Who::Loop => plain(&net.receiver(port)?, pause, &ready, &stop),
            }
        });
        let sent = is_ready
            .recv_timeout(Duration::from_secs(5))
            .context("the receiver did not begin")
            .and_then(|()| {
                let socket = net.sender(port)?;
                let time = pause + Duration::from_millis(200);
                net.at(Side::Sender, || load::send(&socket, &LOAD, time, &AtomicBool::new(false)))
            });
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        let received = receiving.join().unwrap_or_else(|_| bail!("a thread has failed"));
        Ok(sent?.packets.saturating_sub(received?))
    })
}

/// Reads for 50 ms, then stands still once.
struct Pause {
    at: Option<Instant>,
    length: Duration,
    done: bool,
}

impl Pause {
    fn new(length: Duration) -> Self {
        Self { at: None, length, done: false }
    }

    fn after_packets(&mut self) {
        let at = *self.at.get_or_insert_with(|| Instant::now() + Duration::from_millis(50));
        if !self.done && Instant::now() >= at {
            self.done = true;
            thread::sleep(self.length);
        }
    }
}

fn ours(port: u16, pause: Duration, ready: &mpsc::Sender<()>, stop: &AtomicBool) -> Result<u64> {
    let mut receiver = Receiver::builder()
        .engine(Engine::User)
        .leg(Leg::new(Net::Loopback.address().into(), port))
        .expected_rate(LOAD.rate.unwrap_or(1.0), LOAD.len)
        .open()?;
    let _ = ready.send(());
    let (mut packets, mut pause) = (0, Pause::new(pause));
    while !stop.load(Ordering::Relaxed) {
        let batch = receiver.read(Duration::from_millis(20))?.context("the stream stopped")?;
        let read = batch.iter().filter(|item| matches!(item, Item::Packet(_))).count() as u64;
        batch.release();
        packets += read;
        if read > 0 {
            pause.after_packets();
        }
    }
    Ok(packets)
}

fn plain(
    socket: &UdpSocket,
    pause: Duration,
    ready: &mpsc::Sender<()>,
    stop: &AtomicBool,
) -> Result<u64> {
    let _ = ready.send(());
    let (mut packets, mut pause) = (0, Pause::new(pause));
    let mut buffer = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                packets += 1;
                pause.after_packets();
            }
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(packets)
}
