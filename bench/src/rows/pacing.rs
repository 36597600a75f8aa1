//! How evenly packets leave: the time between two, against what it should be.
//!
//! Packets are timed where loopback delivers them, which is within the sender's call.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rtp_mgr::{Engine, Leg, PacketRate, Transmitter};
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row, statistics};

use crate::Settings;
use crate::load::{Rtp, Ticks};
use crate::net::{Net, Side};
use crate::receivers::{Program, missing_program, over};
use crate::sys::{self, ReceiveBuffers};

/// RTP header and seven packets of MPEG-TS.
const LEN: usize = 12 + 7 * 188;
/// Packets per second, and how many are timed at least.
const RATES: [(u32, usize); 3] = [(1_000, 400), (10_000, 3_000), (100_000, 20_000)];
/// The first packets, while a sender finds its pace, do not count.
const SKIPPED: usize = 100;
const FIGURES: [(&str, &str); 4] =
    [("error p50", "us"), ("error p99", "us"), ("error max", "us"), ("Cinst", "packets")];
const SLEEP: &str = "send and sleep";

#[derive(Clone, Copy)]
enum Who {
    Ours,
    Sleep,
    GStreamer,
    Ffmpeg,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for (rate, packets) in RATES.into_iter().filter(|(rate, _)| settings.all_peers || *rate > 1_000)
    {
        let file = directory.path().join(format!("{rate}.ts"));
        let packets = packets.max((settings.time.as_secs_f64() * f64::from(rate) / 2.0) as usize);
        fs::write(&file, super::transport_stream((packets + 2 * SKIPPED) * 7))?;
        rows.extend(row(settings, rate, packets, &file)?);
    }
    Ok(rows)
}

fn row(settings: &Settings<'_>, rate: u32, packets: usize, file: &Path) -> Result<Vec<Row>> {
    let mut candidates = vec![(OURS, Who::Ours), (SLEEP, Who::Sleep)];
    let mut driver = Contest::default();
    let mut goals = Vec::new();
    if settings.all_peers {
        for (name, who, program) in
            [("gstreamer", Who::GStreamer, "gst-launch-1.0"), ("ffmpeg", Who::Ffmpeg, "ffmpeg")]
        {
            goals.push(Goal::Ratio(name, Bound::AtMost(1.0)));
            match missing_program(program) {
                None => candidates.push((name, who)),
                Some(why) => driver.absent(name, why),
            }
        }
    } else {
        goals.push(Goal::Ratio(SLEEP, Bound::AtMost(1.0)));
    }
    let target = match settings.all_peers {
        true => "better than GStreamer and FFmpeg",
        false => "no worse than a loop that sends and sleeps",
    };
    let mut contests = FIGURES.map(|(name, unit)| Contest {
        row: format!("pacing {name}, {rate} pps"),
        unit,
        better: Better::Lower,
        target: target.into(),
        goals: goals.clone(),
        ..Contest::default()
    });
    settings.interleave("pacing", &candidates, &mut driver, |who, _| {
        let times = departures(who, rate, packets, file)?;
        let name = candidates
            .iter()
            .find(|(_, candidate)| *candidate as u8 == who as u8)
            .map_or(OURS, |(name, _)| name);
        for (contest, value) in contests.iter_mut().zip(figures(&times, rate)?) {
            contest.add(name, value);
        }
        Ok(0.0)
    })?;
    let finish = |mut contest: Contest| {
        contest.not_run = driver.not_run.clone();
        contest.samples.retain(|name, _| !contest.not_run.contains_key(name));
        contest.finish()
    };
    Ok(contests.map(finish).into())
}

/// p50, p99 and maximum of the error, microseconds, and Cinst.
fn figures(times_ns: &[u64], rate: u32) -> Result<[f64; 4]> {
    let times = times_ns.get(SKIPPED..).unwrap_or_default();
    let period_ns = 1e9 / f64::from(rate);
    let mut errors: Vec<f64> = times
        .windows(2)
        .map(|pair| (pair[1].saturating_sub(pair[0]) as f64 - period_ns).abs() / 1e3)
        .collect();
    errors.sort_unstable_by(f64::total_cmp);
    let share = |share| statistics::percentile_of_sorted(&errors, share).context("nothing arrived");
    Ok([share(0.5)?, share(0.99)?, share(1.0)?, c_inst(times)])
}

/// The most packets in a bucket that is drained 1.1 times as fast as it is filled on average: the network
/// compatibility model of SMPTE ST 2110-21. On average means at the rate that was kept: who is slower than
/// asked for is not the smoother for it.
fn c_inst(times_ns: &[u64]) -> f64 {
    const BETA: f64 = 1.1;
    let (Some(first), Some(last)) = (times_ns.first(), times_ns.last()) else { return 0.0 };
    let period_ns = (last.saturating_sub(*first) as f64 / (times_ns.len() as f64 - 1.0)).max(1.0);
    let (mut level, mut most, mut drained_ns) = (0_f64, 0_f64, None);
    for time in times_ns {
        let time = *time as f64;
        let since = drained_ns.map_or(0.0, |drained: f64| time - drained);
        let drained = (since * BETA / period_ns).floor().max(0.0);
        level = (level - drained).max(0.0);
        // An empty bucket begins anew; of a full one the drain goes on at its own pace.
        drained_ns = Some(match (drained_ns, level > 0.0) {
            (Some(before), true) => before + drained * period_ns / BETA,
            _ => time,
        });
        level += 1.0;
        most = most.max(level);
    }
    most
}

/// When each packet left, nanoseconds of the kernel's clock.
fn departures(who: Who, rate: u32, packets: usize, file: &Path) -> Result<Vec<u64>> {
    let net = Net::Loopback;
    let port = net.free_port()?;
    let socket = net.receiver(port)?;
    sys::set_timestamps(&socket)?;
    let wanted = packets + SKIPPED;
    let nominal = Duration::from_secs_f64(wanted as f64 / f64::from(rate));
    let until = Instant::now() + nominal * 4 + Duration::from_secs(4);
    let receive = move || -> Result<Vec<u64>> {
        Side::Receiver.pin()?;
        let mut buffers = ReceiveBuffers::new(64, 2_048, true);
        let mut times = Vec::with_capacity(wanted);
        while times.len() < wanted && Instant::now() < until {
            match buffers.receive(&socket) {
                Ok(_) => times.extend(
                    buffers
                        .datagrams()
                        .filter(|(bytes, _)| bytes.len() == LEN)
                        .filter_map(|(_, at)| at),
                ),
                Err(error) if over(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(times)
    };
    let receiving = thread::spawn(receive);
    let more = wanted + SKIPPED;
    let mut program = None;
    net.at(Side::Sender, || {
        match who {
            Who::Ours => ours(port, rate, more)?,
            Who::Sleep => send_and_sleep(port, rate, more)?,
            Who::GStreamer => program = Some(Program::start(&mut gstreamer(port, rate, more))?),
            Who::Ffmpeg => program = Some(Program::start(&mut ffmpeg(port, rate, file))?),
        }
        Ok(())
    })?;
    let times = receiving.join().unwrap_or_else(|_| bail!("a thread has failed"))?;
    drop(program);
    // Who is slower than asked for, or so bursty that its receiver loses some, has errors, not none.
    if times.len() < wanted / 10 {
        bail!("{} of {wanted} packets came in {nominal:?} and then some", times.len());
    }
    Ok(times)
}

fn ours(port: u16, rate: u32, packets: usize) -> Result<()> {
    let mut transmitter = Transmitter::builder()
        .engine(Engine::User)
        .leg(Leg::new(Net::Loopback.address().into(), port))
        .rate(PacketRate::new(rate.into(), 1)?)
        .slot_stride(LEN as u32)
        .rtcp(false)
        .open()?;
    let mut left = packets;
    while left > 0 {
        let mut slots = transmitter.reserve(left.min(64), Duration::from_secs(1))?;
        let lent = slots.len();
        for mut slot in slots.iter_mut() {
            slot.rtp(false, 0);
            slot.set_payload_len(LEN - 12)?;
        }
        slots.commit(lent)?;
        left -= lent;
    }
    transmitter.flush(Duration::from_secs(10))?;
    Ok(())
}

fn send_and_sleep(port: u16, rate: u32, packets: usize) -> Result<()> {
    let socket = Net::Loopback.sender(port)?;
    let mut rtp = Rtp::new(1);
    let mut packet = [0; LEN];
    let mut clock = Ticks::start(Duration::from_secs(1) / rate);
    for _ in 0..packets {
        clock.wait();
        rtp.write(&mut packet);
        match socket.send(&packet) {
            // The receiver has had all it wanted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            sent => sent?,
        };
    }
    Ok(())
}

fn gstreamer(port: u16, rate: u32, packets: usize) -> Command {
    let mut command = Command::new("gst-launch-1.0");
    command.args(["-q", "fakesrc", "sizetype=fixed", "filltype=zero", "format=time"]);
    command.args([&format!("sizemax={LEN}"), &format!("num-buffers={packets}")]);
    command.arg(format!("datarate={}", LEN as u64 * u64::from(rate)));
    command.args(["!", "udpsink", "host=127.0.0.1", &format!("port={port}"), "sync=true"]);
    command
}

fn ffmpeg(port: u16, rate: u32, file: &Path) -> Command {
    let bits = u64::from(rate) * LEN as u64 * 8;
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-f", "mpegtsraw", "-i"])
        .arg(file);
    command.args(["-map", "0", "-c", "copy", "-f", "rtp"]);
    command.arg(format!("udp://127.0.0.1:{port}?pkt_size={LEN}&bitrate={bits}&fifo_size=100000"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(count: u64, period_ns: u64) -> Vec<u64> {
        (0..count).map(|at| at * period_ns).collect()
    }

    #[test]
    fn even_packets_have_no_error_and_never_meet_in_the_bucket() {
        let found = figures(&even(1_000, 1_000_000), 1_000).unwrap();
        assert_eq!(found, [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_burst_fills_the_bucket_and_the_pace_empties_it() {
        // Ten at once, then at twice the pace: 2.2 periods drain while one comes.
        let times: Vec<u64> =
            std::iter::repeat_n(0, 10).chain((1..100).map(|at| at * 2_000_000)).collect();
        assert_eq!(c_inst(&times), 10.0);
        // Bursts of four every four periods: the bucket is empty before the next.
        let times: Vec<u64> = (0..400).map(|at| at / 4 * 4_000_000).collect();
        assert_eq!(c_inst(&times), 4.0);
    }

    #[test]
    fn who_is_slower_than_asked_for_is_judged_by_the_pace_that_was_kept() {
        // Three a millisecond apart, then nothing for four: one in two milliseconds on average.
        let times: Vec<u64> = (0..300).map(|at| at / 3 * 6_000_000 + at % 3 * 1_000_000).collect();
        assert_eq!(c_inst(&times), 2.0);
    }

    #[test]
    fn an_error_is_the_distance_from_the_period_both_ways() {
        // After what is skipped: 0.5 ms early, 0.5 ms late, in turns.
        let times: Vec<u64> = (0..1_000).map(|at| at * 1_000_000 + at % 2 * 500_000).collect();
        let [p50, p99, max, _] = figures(&times, 1_000).unwrap();
        assert_eq!((p50, p99, max), (500.0, 500.0, 500.0));
    }

    #[test]
    fn too_few_packets_are_no_figures() {
        assert!(figures(&even(50, 1_000), 1_000).is_err());
    }
}
