//! Everybody who can receive: this library, and what a user would write or run instead.

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rtp_mgr::{Engine, Item, Leg, Receiver};

use crate::lab::INTERFACE;
use crate::load::{Load, PAYLOAD_TYPE};
use crate::net::{BUFFER, Net, Side};
use crate::rtp_loop::RtpLoop;
use crate::sys::{self, PacketRing, ReceiveBuffers, TRAIN_MAX};

/// Datagrams of a recvmmsg call.
const MESSAGES: usize = 64;
/// How long an ordered stream of ours waits for a missing packet.
const REORDER: Duration = Duration::from_millis(20);

/// Who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This library's embedded engine: RTP parsed, ordered (one source) and counted.
    Ours,
    /// One recv per packet.
    Recv,
    /// recvmmsg, 64 at a time.
    Recvmmsg,
    /// The same with the least that RTP takes: [`RtpLoop`].
    Rtp,
    /// recvmmsg with UDP_GRO.
    Gro,
    /// A packet socket's ring; the packets are dropped behind it.
    Tpacket,
    /// udpsrc ! rtpjitterbuffer ! fakesink
    GStreamer,
    /// -c copy -f null
    Ffmpeg,
}

impl Kind {
    /// As the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => rtp_mgr_bench_report::OURS,
            Self::Recv => "recv loop",
            Self::Recvmmsg => "recvmmsg",
            Self::Rtp => "recvmmsg+RTP",
            Self::Gro => "recvmmsg+GRO",
            Self::Tpacket => "TPACKET_V3",
            Self::GStreamer => "gstreamer",
            Self::Ffmpeg => "ffmpeg",
        }
    }

    /// Why it cannot be run here.
    pub fn missing(self) -> Option<String> {
        let program = match self {
            Self::GStreamer => "gst-launch-1.0",
            Self::Ffmpeg => "ffmpeg",
            _ => return None,
        };
        missing_program(program)
    }
}

/// The reason for which a program cannot be run.
pub fn missing_program(program: &str) -> Option<String> {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    });
    (!found).then(|| format!("no {program} here (cargo xtask setup)"))
}

/// A receiver at work. Dropping it ends it.
pub struct Running {
    /// Where it receives.
    pub port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
    program: Option<Program>,
}

impl Running {
    /// Starts a receiver and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(kind: Kind, net: Net<'_>, load: &Load) -> Result<Self> {
        let port = net.free_port()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Self { port, stop, thread: None, program: None };
        match kind {
            Kind::Ours => running.ours(net, load)?,
            Kind::Recv => running.sockets(net, |socket, stop| recv_loop(&socket, &stop))?,
            Kind::Recvmmsg => running.sockets(net, |socket, stop| {
                recvmmsg_loop(&socket, ReceiveBuffers::new(MESSAGES, 2_048, false), &stop)
            })?,
            Kind::Rtp => running.sockets(net, |socket, stop| rtp_loop(&socket, &stop))?,
            Kind::Gro => {
                running.sockets(net, |socket, stop| {
                    sys::set_gro(&socket)?;
                    recvmmsg_loop(&socket, ReceiveBuffers::new(16, TRAIN_MAX, true), &stop)
                })?;
            }
            Kind::Tpacket => running.tpacket(net)?,
            Kind::GStreamer => running.program(net, &mut gstreamer(net, port, load))?,
            Kind::Ffmpeg => {
                let directory = tempfile::tempdir()?;
                let mut command = ffmpeg(net, port, directory.path())?;
                running.program(net, &mut command)?;
                if let Some(program) = &mut running.program {
                    program.directory = Some(directory);
                }
            }
        }
        Ok(running)
    }

    fn ours(&mut self, net: Net<'_>, load: &Load) -> Result<()> {
        let (port, stop) = (self.port, self.stop.clone());
        let builder =
            Receiver::builder().engine(Engine::User).leg(Leg::new(net.address().into(), port));
        let builder = if load.flows == 1 { builder.ordered(REORDER) } else { builder };
        let builder = builder.sources(load.flows.max(1_024));
        self.thread = Some(net.at(Side::Receiver, || {
            let mut receiver = builder.open()?;
            Ok(thread::spawn(move || our_loop(&mut receiver, &stop)))
        })?);
        Ok(())
    }

    fn sockets(
        &mut self,
        net: Net<'_>,
        body: impl FnOnce(UdpSocket, Arc<AtomicBool>) -> Result<u64> + Send + 'static,
    ) -> Result<()> {
        let socket = net.receiver(self.port)?;
        let stop = self.stop.clone();
        self.thread =
            Some(net.at(Side::Receiver, || Ok(thread::spawn(move || body(socket, stop))))?);
        Ok(())
    }

    fn tpacket(&mut self, net: Net<'_>) -> Result<()> {
        let stop = self.stop.clone();
        self.thread = Some(net.at(Side::Receiver, || {
            let ring = PacketRing::open(INTERFACE).context("a packet socket (needs root)")?;
            Ok(thread::spawn(move || tpacket_loop(ring, &stop)))
        })?);
        Ok(())
    }

    fn program(&mut self, net: Net<'_>, command: &mut Command) -> Result<()> {
        self.program = Some(net.at(Side::Receiver, || Program::start(command))?);
        net.wait_for_receiver(self.port).with_context(|| format!("{command:?}"))
    }

    /// Ends it. Returns the packets it had; `None` for a program, which does not say.
    ///
    /// # Errors
    /// It has failed.
    pub fn finish(mut self) -> Result<Option<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => {
                thread.join().unwrap_or_else(|_| bail!("a thread has failed")).map(Some)
            }
            None => Ok(None),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever wanted to know has called `finish`.
            let _ = thread.join();
        }
    }
}

/// A program that was started. Dropping it ends it.
pub struct Program {
    child: Child,
    directory: Option<tempfile::TempDir>,
}

impl Program {
    /// Starts it, without input and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Self { child, directory: None })
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not end well, or not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let until = std::time::Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("a program ended with {status}"),
                None if std::time::Instant::now() > until => bail!("still running after {limit:?}"),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn our_loop(receiver: &mut Receiver, stop: &AtomicBool) -> Result<u64> {
    let mut packets = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch = receiver.read(Duration::from_millis(20))?;
        let batch = batch.ok_or_else(|| anyhow!("the stream stopped"))?;
        packets += batch.iter().filter(|item| matches!(item, Item::Packet(_))).count() as u64;
        batch.release();
    }
    Ok(packets)
}

fn recv_loop(socket: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let mut buffer = [0; 2_048];
    let mut packets = 0;
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(_) => packets += 1,
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(packets)
}

fn recvmmsg_loop(
    socket: &UdpSocket,
    mut buffers: ReceiveBuffers,
    stop: &AtomicBool,
) -> Result<u64> {
    let mut packets = 0;
    while !stop.load(Ordering::Relaxed) {
        match buffers.receive(socket) {
            Ok(got) => packets += got.packets,
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(packets)
}

fn rtp_loop(socket: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let mut rtp = RtpLoop::new(socket, MESSAGES, 2_048)?;
    let mut packets = 0;
    while !stop.load(Ordering::Relaxed) {
        match rtp.receive(socket, |_| {}) {
            Ok(got) => packets += got,
            Err(error) if over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    std::hint::black_box(rtp.figures());
    Ok(packets)
}

fn tpacket_loop(mut ring: PacketRing, stop: &AtomicBool) -> Result<u64> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut packets = 0;
    while !stop.load(Ordering::Relaxed) {
        match ring.take() {
            Some(got) => packets += got.packets,
            None => {
                let time = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&time))?;
            }
        }
    }
    Ok(packets)
}

/// Whether a wait has ended without anything.
pub fn over(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn gstreamer(net: Net<'_>, port: u16, load: &Load) -> Command {
    let mut command = Command::new("gst-launch-1.0");
    command.args([
        "-q",
        "udpsrc",
        &format!("address={}", net.address()),
        &format!("port={port}"),
        &format!("buffer-size={BUFFER}"),
        &format!(
            "caps=application/x-rtp,media=audio,encoding-name=L16,clock-rate=48000,channels=2,\
             payload={PAYLOAD_TYPE}"
        ),
        "!",
    ]);
    if load.flows == 1 {
        command.args(["rtpjitterbuffer", "latency=20", "!"]);
    }
    command.args(["fakesink", "sync=false"]);
    command
}

fn ffmpeg(net: Net<'_>, port: u16, directory: &std::path::Path) -> Result<Command> {
    let sdp = directory.join("session.sdp");
    let address = net.address();
    fs::write(
        &sdp,
        format!(
            "v=0\r\no=- 0 0 IN IP4 {address}\r\ns=-\r\nc=IN IP4 {address}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP {PAYLOAD_TYPE}\r\na=rtpmap:{PAYLOAD_TYPE} L16/48000/2\r\n"
        ),
    )?;
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-hide_banner", "-loglevel", "error"])
        .args(["-protocol_whitelist", "file,udp,rtp", "-buffer_size", &BUFFER.to_string(), "-i"])
        .arg(sdp)
        .args(["-map", "0", "-c", "copy", "-f", "null", "-"]);
    Ok(command)
}
