//! Coalesced goodput: RTP payload per second from one program to another over loopback.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rtp_mgr::ring::header;
use rtp_mgr_bench_report::{Better, Bound, Contest, Goal, OURS, Row};

use crate::Settings;
use crate::load::Load;
use crate::net::{Net, Side};
use crate::receivers::{Kind, Program, Running, missing_program, over};
use crate::sys::{self, ReceiveBuffers, SendBuffers, TRAIN_MAX};

const PAYLOAD: usize = 1_200;
const HEADER: usize = 12;
/// Packets of a train: as many as a datagram holds.
const TRAIN: usize = 65_507 / (PAYLOAD + HEADER);
/// Payload of MPEG-TS in RTP (RFC 2250): seven packets.
const TS_PAYLOAD: usize = 7 * 188;

#[derive(Clone, Copy)]
enum Who {
    Ours,
    Train,
    RtpTrain,
    Batch,
    Ffmpeg,
    GStreamer,
}

pub(super) fn rows(settings: &Settings<'_>) -> Result<Vec<Row>> {
    let mut contest = Contest {
        row: "coalesced goodput, embedded".into(),
        unit: "Gb/s",
        better: Better::Higher,
        target:
            "at least 0.85 of a bare GSO-to-GRO loop without RTP; 30 times FFmpeg and GStreamer"
                .into(),
        goals: vec![Goal::Ratio("gso-gro loop", Bound::AtLeast(0.85))],
        ..Contest::default()
    };
    let mut candidates = vec![
        (OURS, Who::Ours),
        ("gso-gro loop", Who::Train),
        ("gso-gro loop, RTP written and read", Who::RtpTrain),
        ("sendmmsg-recvmmsg", Who::Batch),
    ];
    if settings.all_peers {
        for (name, who, program) in
            [("ffmpeg", Who::Ffmpeg, "ffmpeg"), ("gstreamer", Who::GStreamer, "gst-launch-1.0")]
        {
            contest.goals.push(Goal::Ratio(name, Bound::AtLeast(30.0)));
            match missing_program(program) {
                None => candidates.push((name, who)),
                Some(why) => contest.absent(name, why),
            }
        }
        contest.notes.push(
            "FFmpeg and GStreamer send MPEG-TS as fast as they can to a receiver of their own kind; all \
             that they sent counts"
                .into(),
        );
    } else {
        contest.target = "at least 0.85 of a bare GSO-to-GRO loop without RTP".into();
    }
    let files = settings.all_peers.then(Files::new).transpose()?;
    let mut lost = Vec::new();
    settings.interleave("goodput", &candidates, &mut contest, |who, _| match (who, &files) {
        (Who::Ours, _) => ours(settings).map(|(goodput, share)| {
            lost.push(share);
            goodput
        }),
        (Who::Train, _) => plain(settings.time, Content::Train),
        (Who::RtpTrain, _) => plain(settings.time, Content::RtpTrain),
        (Who::Batch, _) => plain(settings.time, Content::Batch),
        (Who::Ffmpeg, Some(files)) => files.measure(Kind::Ffmpeg, ffmpeg),
        (Who::GStreamer, Some(files)) => files.measure(Kind::GStreamer, gstreamer),
        (_, None) => bail!("no files"),
    })?;
    let most = lost.into_iter().fold(0.0, f64::max);
    contest.notes.push(format!(
        "rtp_app tx to rx --reorder 20; at most {:.1} % was lost in the socket of a receiver that \
         was slower than its sender",
        most * 100.0
    ));
    Ok(vec![contest.finish()])
}

/// `rtp_app tx` to `rtp_app rx`: goodput, and the share that was lost.
fn ours(settings: &Settings<'_>) -> Result<(f64, f64)> {
    let net = Net::Loopback;
    let port = net.free_port()?.to_string();
    let seconds = settings.time.as_secs_f64().to_string();
    let mut rx = Command::new(&settings.rtp_app);
    rx.args(["rx", "--engine", "user", "--bind", "127.0.0.1", "--port", &port]);
    rx.args(["--reorder", "20", "--json", "--interval", "3600", "--idle-timeout", "2"]);
    let rx = net.at(Side::Receiver, || {
        rx.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("rtp_app rx")
    })?;
    net.wait_for_receiver(port.parse()?)?;
    let mut tx = Command::new(&settings.rtp_app);
    tx.args(["tx", "--engine", "user", "--dst", "127.0.0.1", "--port", &port, "--json"]);
    tx.args(["--rate", "10000000", "--payload", &PAYLOAD.to_string(), "--duration", &seconds]);
    net.at(Side::Sender, || Program::start(&mut tx))?.wait(settings.time * 4 + LIMIT)?;
    let output = rx.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().context("rtp_app rx said nothing")?;
    let report: serde_json::Value = serde_json::from_str(last)?;
    let figure =
        |name: &str| report["streams"][0][name].as_f64().with_context(|| format!("no {name}"));
    let goodput = figure("bytes")? * 8.0 / figure("duration_s")? / 1e9;
    Ok((goodput, figure("lost")? / figure("expected")?.max(1.0)))
}

const LIMIT: Duration = Duration::from_secs(10);

/// What two loops over plain sockets send.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    /// The same packets again and again, one by one.
    Batch,
    /// The same train again and again.
    Train,
    /// Trains of which each packet is written (header and payload) and read (header): the least that RTP takes.
    RtpTrain,
}

/// Two loops that know nothing of rings.
fn plain(time: Duration, content: Content) -> Result<f64> {
    let net = Net::Loopback;
    let receiver = net.receiver(0)?;
    let sender = net.sender(receiver.local_addr()?.port())?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            Side::Receiver.pin()?;
            receive(&receiver, content, &stop)
        });
        let sent = net.at(Side::Sender, || transmit(&sender, content, time));
        stop.store(true, Ordering::Relaxed);
        let received = received.join().unwrap_or_else(|_| bail!("a thread has failed"));
        sent.and(received)
    })
}

fn transmit(socket: &UdpSocket, content: Content, time: Duration) -> Result<()> {
    let trains = content != Content::Batch;
    let mut buffers = SendBuffers::new(if trains { TRAIN } else { 64 }, PAYLOAD + HEADER);
    if trains {
        buffers.set_segmentation(socket).context("UDP_SEGMENT")?;
    }
    let payload: Vec<u8> = (0..=u8::MAX).cycle().take(PAYLOAD).collect();
    let mut number = 0_u32;
    let until = Instant::now() + time;
    while Instant::now() < until {
        for _ in 0..16 {
            if content == Content::RtpTrain {
                for at in 0..TRAIN {
                    let packet = buffers.packet(at);
                    header::build(packet, false, 96, number as u16, number, 0x1234_5678);
                    packet[HEADER..].copy_from_slice(&payload);
                    number = number.wrapping_add(1);
                }
            }
            if trains {
                buffers.send_train(socket)?;
            } else {
                buffers.send(socket, 0..64)?;
            }
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, content: Content, stop: &AtomicBool) -> Result<f64> {
    let mut buffers = if content == Content::Batch {
        ReceiveBuffers::new(64, 2_048, false)
    } else {
        sys::set_gro(socket)?;
        ReceiveBuffers::new(16, TRAIN_MAX, true)
    };
    let (mut packets, mut in_order, mut next) = (0_u64, 0_u64, 0_u16);
    let mut span: Option<(Instant, Instant)> = None;
    while !stop.load(Ordering::Relaxed) {
        match buffers.receive(socket) {
            Ok(got) => {
                let now = Instant::now();
                packets += got.packets;
                span = Some((span.map_or(now, |(first, _)| first), now));
                if content == Content::RtpTrain {
                    for packet in
                        buffers.datagrams().flat_map(|(bytes, _)| bytes.chunks(PAYLOAD + HEADER))
                    {
                        let fixed = header::parse_fixed(packet, packet.len())?;
                        in_order += u64::from(fixed.sequence == next);
                        next = fixed.sequence.wrapping_add(1);
                    }
                }
            }
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(content != Content::RtpTrain || in_order > packets / 2, "{in_order} of {packets}");
    let (first, last) = span.context("nothing arrived")?;
    Ok(packets as f64 * (PAYLOAD * 8) as f64 / (last - first).as_secs_f64() / 1e9)
}

/// A long and a short transport stream of empty packets: the difference is what sending costs.
struct Files {
    directory: tempfile::TempDir,
}

const LONG: usize = 20_000;
const SHORT: usize = 20;

impl Files {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for (name, packets) in [("long.ts", LONG), ("short.ts", SHORT)] {
            fs::write(directory.path().join(name), super::transport_stream(packets * 7))?;
        }
        Ok(Self { directory })
    }

    fn measure(&self, receiver: Kind, sender: fn(&Path, u16) -> Command) -> Result<f64> {
        let net = Net::Loopback;
        let load = Load { len: TS_PAYLOAD + HEADER, rate: None, flows: 1 };
        let running = Running::start(receiver, net, &load)?;
        let time = |name: &str| -> Result<f64> {
            let mut command = sender(&self.directory.path().join(name), running.port);
            let start = Instant::now();
            net.at(Side::Sender, || Program::start(&mut command))?.wait(LIMIT * 3)?;
            Ok(start.elapsed().as_secs_f64())
        };
        let short = time("short.ts")?;
        let seconds = time("long.ts")? - short;
        running.finish()?;
        if seconds <= 0.0 {
            bail!("the long file took no longer than the short one");
        }
        Ok(((LONG - SHORT) * TS_PAYLOAD * 8) as f64 / seconds / 1e9)
    }
}

fn ffmpeg(file: &Path, port: u16) -> Command {
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-f", "mpegtsraw", "-i"])
        .arg(file);
    command.args(["-map", "0", "-c", "copy", "-f", "rtp"]);
    command.arg(format!("udp://127.0.0.1:{port}?pkt_size={}", TS_PAYLOAD + HEADER));
    command
}

fn gstreamer(file: &Path, port: u16) -> Command {
    let mut command = Command::new("gst-launch-1.0");
    command.args(["-q", "filesrc"]).arg(format!("location={}", file.display()));
    command.arg(format!("blocksize={TS_PAYLOAD}"));
    command.args(["!", "video/mpegts,systemstream=true,packetsize=188", "!", "rtpmp2tpay", "!"]);
    command.args(["udpsink", "host=127.0.0.1", &format!("port={port}"), "sync=false"]);
    command
}
