//! Streams of other processes of this user: finding them, their figures, reading along.
//!
//! What lives here: the asking side. What does not: the messages (`handshake`) and reading
//! ([`crate::reader`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR, READERS_MAX, ReaderStatus};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

use crate::config::{EngineKind, Mode};
use crate::device::Device;
use crate::error::Error;
use crate::handshake::{Answer, Hello, ask, receive_answer, understand};
use crate::kernel;
use crate::kernel::wake::AttachedWake;
use crate::leg::Leg;
use crate::reader::{Access, Batch, Copies, RingReader, Wake};
use crate::runtime_dir;
use crate::shm::{ControlPage, Region, Use};
use crate::stats::{Direction, Stats, StreamId};

/// How long an owner may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Wake-ups that are forgotten at a time.
const WAKES_MAX: usize = 1_024;

/// A stream that runs on this machine.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The stream's number.
    pub id: StreamId,
    /// The name that readers attach under, if it is published.
    pub name: Option<String>,
    /// Who runs the ring.
    pub engine: EngineKind,
    /// Which way packets go.
    pub direction: Direction,
    /// Process that owns the stream.
    pub owner_pid: u32,
    /// User that owns the stream.
    pub owner_uid: u32,
    /// Its legs, as they were given.
    pub legs: Vec<String>,
    /// Attached readers may be reliable.
    pub allow_reliable: bool,
}

impl StreamInfo {
    /// What others are told of a stream that this process owns.
    pub(crate) fn of(
        region: &Region,
        name: Option<&String>,
        legs: &[Leg],
        allow_reliable: bool,
    ) -> Self {
        let header = region.layout().header();
        Self {
            id: StreamId(header.stream_id),
            name: name.cloned(),
            engine: EngineKind::of(header.engine),
            direction: Direction::of(header.direction),
            owner_pid: header.owner_pid,
            owner_uid: header.owner_uid,
            legs: legs.iter().map(ToString::to_string).collect(),
            allow_reliable,
        }
    }
}

/// The streams of this user (of all users, for root) that run on this machine, by number. Of the
/// embedded engine's, those whose owner does not answer, and those that are not announced, are left
/// out; the module tells of all of its own.
///
/// # Errors
/// None at present.
pub fn list() -> Result<Vec<StreamInfo>, Error> {
    let mut streams: Vec<StreamInfo> = runtime_dir::sockets()
        .iter()
        .filter_map(|path| request(path, Hello::Describe).ok())
        .map(|reply| reply.info)
        .collect();
    for stream in kernel::list() {
        if streams.iter().all(|known| known.id != stream.id) {
            streams.push(stream);
        }
    }
    streams.sort_by_key(|stream| stream.id);
    Ok(streams)
}

/// A running stream's description and figures, by name or number.
///
/// # Errors
/// There is none, it is another user's, or of another ABI version.
pub fn stat(name: &str) -> Result<(StreamInfo, Stats), Error> {
    let layout = |reason| Error::Layout { name: name.to_owned(), reason };
    let path = match find(name) {
        Err(Error::NoSuchStream { .. }) => match kernel::find(name) {
            Some(Ok((info, device))) => {
                let region = Region::of_device(&device, Use::Observer).map_err(layout)?;
                return Ok((info, Stats::new(Arc::new(region))));
            }
            Some(Err(reason)) => return Err(Error::Refused { name: name.to_owned(), reason }),
            None => return Err(Error::NoSuchStream { name: name.to_owned() }),
        },
        path => path?,
    };
    let reply = request(&path, Hello::Figures).map_err(|mistake| mistake.of(name))?;
    let ring = reply.files.into_iter().next();
    let ring = ring.ok_or_else(|| layout("its owner's answer lacks its memory".into()))?;
    let region = match reply.info.engine {
        EngineKind::User => Region::open(ring, false),
        EngineKind::Kernel => {
            kernel_device(ring).and_then(|device| Region::of_device(&device, Use::Observer))
        }
    };
    Ok((reply.info, Stats::new(Arc::new(region.map_err(layout)?))))
}

/// What an owner said.
struct Reply {
    info: StreamInfo,
    reader: usize,
    files: Vec<OwnedFd>,
    socket: OwnedFd,
}

/// Why there is no reply.
enum Mistake {
    /// Nobody listens.
    Nobody,
    /// The owner refuses, or its answer makes no sense.
    Refused(String),
}

impl Mistake {
    fn of(self, name: &str) -> Error {
        let name = name.to_owned();
        match self {
            Self::Nobody => Error::NoSuchStream { name },
            Self::Refused(reason) => Error::Refused { name, reason },
        }
    }
}

/// The socket of the stream with a name or number.
fn find(name: &str) -> Result<PathBuf, Error> {
    let sockets = runtime_dir::sockets();
    if let Some(path) = sockets.iter().find(|path| runtime_dir::name_of(path) == Some(name)) {
        return Ok(path.clone());
    }
    // A published stream's socket has its name, not its number.
    let numbered = sockets.into_iter().find(|path| {
        name.contains('-')
            && request(path, Hello::Describe).is_ok_and(|reply| reply.info.id.to_string() == name)
    });
    numbered.ok_or_else(|| Error::NoSuchStream { name: name.to_owned() })
}

/// Asks a stream's owner.
fn request(path: &Path, hello: Hello) -> Result<Reply, Mistake> {
    let system = |error: Errno| Mistake::Refused(std::io::Error::from(error).to_string());
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(system)?;
    for timeout in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, timeout, Some(PATIENCE)).map_err(system)?;
    }
    let address = SocketAddrUnix::new(path).map_err(system)?;
    match connect(&socket, &address) {
        Err(Errno::CONNREFUSED) => {
            runtime_dir::clear(path);
            return Err(Mistake::Nobody);
        }
        Err(Errno::NOENT) => return Err(Mistake::Nobody),
        Err(Errno::AGAIN) => {
            return Err(Mistake::Refused("its owner does not answer: it is stopped".into()));
        }
        result => result.map_err(system)?,
    }
    let owner = socket_peercred(&socket).map_err(system)?;
    ask(&socket, hello).map_err(system)?;
    let (answer, files) = receive_answer(&socket).map_err(Mistake::Refused)?;
    match answer {
        Answer::Refused(reason) => Err(Mistake::Refused(reason)),
        Answer::Welcome { reader, text } => {
            let pid = owner.pid.as_raw_nonzero().get().unsigned_abs();
            let info = understand(&text, pid, owner.uid.as_raw()).ok_or_else(|| {
                Mistake::Refused("its description is not understood: use one release".into())
            })?;
            Ok(Reply { info, reader: reader as usize, files, socket })
        }
    }
}

/// A reader of another process's receive stream. It copies what it reads. Send, not Sync.
#[derive(Debug)]
pub struct Attached {
    ring: AnyRing,
    info: StreamInfo,
    stats: Stats,
}

/// By who runs the ring.
#[derive(Debug)]
enum AnyRing {
    User(RingReader<PeerWake>),
    Kernel(RingReader<AttachedWake>),
}

/// Calls the same method of either.
macro_rules! either {
    ($reader:expr, $ring:ident => $call:expr) => {
        match $reader {
            AnyRing::User($ring) => $call,
            AnyRing::Kernel($ring) => $call,
        }
    };
}

impl Attached {
    /// Attaches to a published stream, from its present end on.
    ///
    /// # Errors
    /// There is no such stream, it refuses (reliable readers need `allow_reliable`, there are 16
    /// readers), or it is of another ABI version.
    pub fn open(name: &str, mode: Mode) -> Result<Self, Error> {
        let reply =
            request(&find(name)?, Hello::Attach(mode)).map_err(|mistake| mistake.of(name))?;
        let layout = |reason| Error::Layout { name: name.to_owned(), reason };
        if reply.reader >= READERS_MAX {
            return Err(layout(format!("its owner gave us place {}", reply.reader)));
        }
        let mut files = reply.files.into_iter();
        let (region, ring) = match (reply.info.engine, files.next(), files.next()) {
            (EngineKind::User, Some(ring), Some(control)) => {
                let region = Arc::new(Region::open(ring, true).map_err(layout)?);
                let page = Arc::new(ControlPage::open(control).map_err(layout)?);
                let access = Access::Copy(Copies::new(&region));
                let wake = PeerWake { socket: reply.socket, name: name.to_owned() };
                let ring = RingReader::new(region.clone(), reply.reader, page, access, wake, 1);
                (region, AnyRing::User(ring))
            }
            (EngineKind::Kernel, Some(file), None) => {
                let device = kernel_device(file).map_err(layout)?;
                let mapped = Region::of_device(&device, Use::Reader(reply.reader));
                let region = Arc::new(mapped.map_err(layout)?);
                let page = ControlPage::of_device(&device, region.layout()).map_err(layout)?;
                let access = Access::Copy(Copies::new(&region));
                let wake = AttachedWake::new(device, reply.socket, name)?;
                let page = Arc::new(page);
                let ring = RingReader::new(region.clone(), reply.reader, page, access, wake, 1);
                (region, AnyRing::Kernel(ring))
            }
            _ => return Err(layout("its owner's answer lacks its memory".into())),
        };
        Ok(Self { ring, info: reply.info, stats: Stats::new(region) })
    }

    /// See [`Receiver::read`](crate::Receiver::read).
    ///
    /// # Errors
    /// The owner's process ended without stopping the stream (what it had published was read), or
    /// the ring's content is damaged.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        either!(&mut self.ring, ring => ring.read(timeout))
    }

    /// See [`Receiver::try_read`](crate::Receiver::try_read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        either!(&mut self.ring, ring => ring.try_read())
    }

    /// What the engine says about this reader: its accepted tail, positions missed, demotion.
    pub fn status(&self) -> ReaderStatus {
        either!(&self.ring, ring => ring.status())
    }

    /// Positions that this reader missed because they were overwritten before it read them.
    pub fn missed(&self) -> u64 {
        either!(&self.ring, ring => ring.missed())
    }

    /// The stream's figures.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    #[cfg(test)]
    fn user_ring(&self) -> &RingReader<PeerWake> {
        match &self.ring {
            AnyRing::User(ring) => ring,
            AnyRing::Kernel(_) => unreachable!("these tests are of the embedded engine"),
        }
    }

    /// The stream.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }
}

impl AsFd for Attached {
    /// Readable when there is something to read since the last empty [`try_read`](Self::try_read),
    /// and when the owner has gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(&self.ring, ring => ring.wake().as_fd())
    }
}

/// The file of the kernel engine's device that an owner passed on.
fn kernel_device(file: OwnedFd) -> Result<Device, String> {
    // Memory of a file that is none of the module's could shrink under its readers.
    let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind != Ok(FileType::CharacterDevice) {
        return Err("what its owner passed is no file of the module".into());
    }
    let device = Device::from(file);
    match device.version() {
        Ok(version) if version.abi_major == ABI_MAJOR => Ok(device),
        Ok(version) => Err(format!(
            "its module has ABI version {}.{}, this program {ABI_MAJOR}.{ABI_MINOR}: use those of \
             one release",
            version.abi_major, version.abi_minor
        )),
        Err(error) => Err(format!("what its owner passed is no file of the module: {error}")),
    }
}

/// The connection to the owner: a byte for each wake-up, and its end when the owner's process ends.
#[derive(Debug)]
struct PeerWake {
    socket: OwnedFd,
    name: String,
}

impl AsFd for PeerWake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wake for PeerWake {
    fn forget(&mut self) -> Result<(), Error> {
        for _ in 0..WAKES_MAX {
            match recv(&self.socket, &mut [0; 8], RecvFlags::DONTWAIT) {
                Ok((1.., _)) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok((0, _)) | Err(_) => return Err(Error::OwnerGone { name: self.name.clone() }),
            }
        }
        Ok(())
    }

    fn ended(&self) -> Result<(), Error> {
        Ok(())
    }

    const MAY_VANISH: bool = true;
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Instant;

    use super::*;
    use crate::reader::Item;
    use crate::receiver::Receiver;

    const LONG: Duration = Duration::from_secs(10);

    fn name(of: &str) -> String {
        format!("unit-{of}-{}", std::process::id())
    }

    fn owner(name: &str) -> (Receiver, UdpSocket) {
        let rx = Receiver::builder()
            .leg("127.0.0.1:0".parse().unwrap())
            .rtcp(false)
            .ring_order(4)
            .publish(name)
            .allow_reliable(true)
            .stall_limit(Duration::from_millis(50))
            .open()
            .unwrap();
        let tx = UdpSocket::bind("127.0.0.1:0").unwrap();
        tx.connect(rx.local_addr(0).unwrap()).unwrap();
        (rx, tx)
    }

    fn send(tx: &UdpSocket, sequence: u16) {
        let mut packet = [0; 16];
        rtp_mgr_ring::header::build(&mut packet, false, 96, sequence, 0, 7).unwrap();
        tx.send(&packet).unwrap();
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let until = Instant::now() + LONG;
        while !condition() {
            assert!(Instant::now() < until, "waited in vain: {what}");
            std::thread::yield_now();
        }
    }

    /// Sends packets and reads each as the owner.
    fn go_on(rx: &mut Receiver, tx: &UdpSocket, sequences: std::ops::Range<u16>) {
        for sequence in sequences {
            send(tx, sequence);
            let batch = rx.read(LONG).unwrap().unwrap();
            assert!(matches!(batch.iter().last(), Some(Item::Packet(_))), "{sequence}");
        }
    }

    #[test]
    fn rubbish_in_a_control_page_is_counted_and_changes_nothing() {
        let name = name("scribble");
        let (mut rx, tx) = owner(&name);
        let scribbler = Attached::open(&name, Mode::Reliable).unwrap();
        let mut other = Attached::open(&name, Mode::Lossy).unwrap();
        let control = scribbler.user_ring().control();
        for (round, rubbish) in (0..).zip([u64::MAX, 1 << 63, 1_000_000, 17]) {
            control.view().position.store(rubbish);
            control.view().wake_at.store(rubbish.wrapping_mul(3));
            go_on(&mut rx, &tx, round * 3..round * 3 + 3);
            let counters = rx.stats().counters();
            assert_eq!(counters.dropped_ring_full, 0);
        }
        let mut read = 0;
        while read < 12 {
            read += other.read(LONG).unwrap().unwrap().len();
        }
        assert_eq!(other.missed(), 0);
        assert_eq!(scribbler.status().violations, 4);
        assert_eq!(scribbler.status().tail, 0);
    }

    #[test]
    fn a_reliable_reader_of_another_process_that_stalls_is_made_lossy() {
        let name = name("stall");
        let (mut rx, tx) = owner(&name);
        let mut stalled = Attached::open(&name, Mode::Reliable).unwrap();
        assert_eq!(stalled.status().reliable, 1);
        go_on(&mut rx, &tx, 0..16);
        // The ring is full: packets are dropped until the limit has passed.
        let mut next = 16;
        wait_for("the demotion", || {
            send(&tx, next);
            next += 1;
            rx.stats().counters().readers_demoted == 1
        });
        assert_eq!(stalled.status().demoted, 1);
        assert!(rx.stats().counters().dropped_ring_full > 0);
        while !rx.read(Duration::from_millis(50)).unwrap().unwrap().is_empty() {}
        go_on(&mut rx, &tx, next..next + 40);
        let published = rx.stats().counters().published;
        let mut read = 0;
        while read + stalled.missed() < published {
            read += stalled.read(LONG).unwrap().unwrap().len() as u64;
        }
        assert_eq!(read, 16);
    }

    #[test]
    fn a_file_that_is_no_device_is_not_taken_for_the_modules() {
        let file = tempfile::tempfile().unwrap();
        let refused = kernel_device(file.into()).unwrap_err();
        assert!(refused.contains("no file of the module"), "{refused}");
        let zero = std::fs::File::open("/dev/zero").unwrap();
        assert!(kernel_device(zero.into()).unwrap_err().contains("no file of the module"));
    }

    #[test]
    fn an_owner_that_stops_is_told_from_one_that_dies() {
        let name = name("end");
        let (mut rx, tx) = owner(&name);
        let mut attached = Attached::open(&name, Mode::Lossy).unwrap();
        send(&tx, 0);
        rx.stop().unwrap();
        assert_eq!(attached.read(LONG).unwrap().unwrap().len(), 1);
        assert!(attached.read(LONG).unwrap().is_none());

        let (_rx, _tx) = owner(&name);
        let mut attached = Attached::open(&name, Mode::Lossy).unwrap();
        // What the kernel does when the owner's process ends.
        rustix::net::shutdown(&attached.user_ring().wake().socket, rustix::net::Shutdown::Both)
            .unwrap();
        assert!(matches!(attached.read(LONG), Err(Error::OwnerGone { .. })));
    }
}
