//! Other processes: readers that attach, owners that publish.
//!
//! A behaviour starts this crate's program in a role ([`Remote`]), tells it what to do in lines on
//! its standard input, and gets one line of `name=value` pairs for each. The process ends with its
//! standard input, so none outlives a behaviour that fails.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rtp_mgr::{Attached, Cause, Engine, Error, Item, Mode, Receiver};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::net::SendFlags;
use rustix::process::Signal;

use crate::dice::Dice;
use crate::harness::{Harness, ms};
use crate::heard::Reads;
use crate::process::{self, Mapping};
use crate::raw;
use crate::soak::crowd;
use crate::wait::LONG;
use crate::wire;

/// Carries the role to the process.
const ROLE: &str = "RTP_MGR_CONFORMANCE_ROLE";

/// The role of this process, if it was started for one.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// What a process said in answer to one line.
#[derive(Debug)]
pub(crate) struct Answer(HashMap<String, String>);

impl Answer {
    fn parse(line: &str) -> Self {
        let pairs = line.split_ascii_whitespace().filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[track_caller]
    pub(crate) fn get<T: FromStr>(&self, name: &str) -> T {
        let value = self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0));
        value.parse().unwrap_or_else(|_| panic!("{name}={value}"))
    }
}

/// A process of this crate's program, as its parent sees it.
pub(crate) struct Remote {
    process: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    /// An answer that was looked at and not taken.
    waiting: Option<String>,
}

impl Remote {
    /// A process with a reader attached to the stream called `name`.
    #[track_caller]
    pub(crate) fn reader(h: &Harness, name: &str, mode: Mode) -> Self {
        let mode = if mode == Mode::Reliable { "reliable" } else { "lossy" };
        let mut remote = Self::start(h, &format!("reader {name} {mode}"));
        remote.answer("attaching");
        remote
    }

    /// A process that owns a stream called `name`, and the address of its leg.
    #[track_caller]
    pub(crate) fn owner(h: &Harness, name: &str, reorder: Option<Duration>) -> (Self, SocketAddr) {
        let engine = format!("{:?}", h.engine()).to_lowercase();
        let reorder = reorder.map_or("-".to_owned(), |reorder| reorder.as_millis().to_string());
        let mut remote = Self::start(h, &format!("owner {name} {engine} {reorder}"));
        let address = remote.answer("publishing").get("address");
        (remote, address)
    }

    /// A process that takes part in the soak.
    #[track_caller]
    pub(crate) fn role(h: &Harness, role: &str) -> Self {
        let mut remote = Self::start(h, role);
        remote.answer("attaching");
        remote
    }

    /// Ends its standard input.
    pub(crate) fn close(&mut self) {
        drop(self.input.take());
    }

    #[track_caller]
    fn start(h: &Harness, role: &str) -> Self {
        let mut process = Command::new(h.program())
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", h.program().display()));
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        // Ends with the process.
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, input, lines, waiting: None }
    }

    /// Tells it what to do, without waiting for the answer.
    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it was not told to end");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    /// Its answer to what it was told last.
    #[track_caller]
    pub(crate) fn answer(&mut self, to: &str) -> Answer {
        let line = match self.waiting.take() {
            Some(line) => Ok(line),
            None => self.lines.recv_timeout(LONG),
        };
        match line {
            Ok(line) => {
                let answer = Answer::parse(&line);
                assert!(!answer.0.contains_key("error"), "{to}: {line}");
                answer
            }
            Err(error) => panic!("{to}: no answer: {error}"),
        }
    }

    /// Whether [`answer`](Self::answer) has not to wait. A process that is gone has nothing to say.
    pub(crate) fn has_answered(&mut self) -> bool {
        if self.waiting.is_none() {
            match self.lines.try_recv() {
                Ok(line) => self.waiting = Some(line),
                Err(mpsc::TryRecvError::Empty) => return false,
                Err(mpsc::TryRecvError::Disconnected) => {}
            }
        }
        true
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> Answer {
        self.tell(line);
        self.answer(line)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), signal).expect("it is our child");
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        let status = self.process.wait().expect("it is our child");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }

    /// Lets it end by itself.
    pub(crate) fn end(mut self) {
        self.close();
        let status = self.process.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // One that was stopped cannot end by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `main` of a process with a role.
pub(crate) fn main(role: &str) -> ExitCode {
    let words: Vec<&str> = role.split(' ').collect();
    let result = match words[..] {
        ["reader", name, mode] => reader(name, mode),
        ["owner", name, engine, reorder] => owner(name, engine, reorder),
        ["steady", name] => crowd::steady(name),
        ["wild", name, mode, seed] => crowd::wild(name, mode, number(seed)),
        _ => Err(Error::EngineGone),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One word, for the parent to read.
            say(&format!("error={}", error.to_string().replace(' ', "_")));
            ExitCode::FAILURE
        }
    }
}

/// Answers the parent.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Nobody listens any more: the end of the standard input follows.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn owner(name: &str, engine: &str, reorder: &str) -> Result<(), Error> {
    let engine = match engine {
        "kernel" => Engine::Kernel,
        "user" => Engine::User,
        _ => Engine::Auto,
    };
    let leg = crate::harness::loopback();
    let mut builder = Receiver::builder().engine(engine).rtcp(false).leg(leg).publish(name);
    if let Ok(reorder) = reorder.parse() {
        builder = builder.ordered(ms(reorder)).ring_order(13);
    }
    let mut rx = builder.open()?;
    let address = rx.local_addr(0).ok_or(Error::EngineGone)?;
    say(&format!("address={address}"));
    for line in io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["read", count] => say(&Tally::default().read(&mut rx, number(count))?),
            ["counters"] => {
                let counters = rx.stats().counters();
                say(&format!(
                    "received={} published={} late={} external_drops={}",
                    counters.received, counters.published, counters.late, counters.external_drops
                ));
            }
            _ => say("error=unknown"),
        }
    }
    Ok(())
}

fn reader(name: &str, mode: &str) -> Result<(), Error> {
    let mode = if mode == "reliable" { Mode::Reliable } else { Mode::Lossy };
    let mut attached = Attached::open(name, mode)?;
    say("attached=1");
    for line in io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["read", count] => say(&Tally::default().read(&mut attached, number(count))?),
            ["rest"] => say(&Tally::default().rest(&mut attached)),
            ["status"] => {
                let status = attached.status();
                say(&format!(
                    "lapped={} violations={} demoted={} reliable={}",
                    status.lapped, status.violations, status.demoted, status.reliable
                ));
            }
            ["scribble", seed, rounds] => {
                say(&format!("scribbled={}", scribble(&attached, number(seed), number(rounds))?));
            }
            ["babble"] => say(&format!("said={}", babble())),
            ["attack"] => say(&attack()?),
            _ => say("error=unknown"),
        }
    }
    Ok(())
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or(0)
}

/// What a reader has heard.
#[derive(Debug, Default)]
struct Tally {
    packets: u64,
    missed: u64,
    gaps: u64,
    other: u64,
    torn: u64,
    last: u16,
}

impl Tally {
    fn text(&self, end: &str) -> String {
        let Self { packets, missed, gaps, other, torn, last } = self;
        format!(
            "packets={packets} missed={missed} accounted={} gaps={gaps} other={other} \
             torn={torn} last={last} end={end}",
            packets + missed
        )
    }

    fn add(&mut self, item: Item<'_>) {
        match item {
            Item::Packet(packet) => {
                let expected =
                    wire::payload(packet.ssrc(), packet.sequence_number(), packet.payload().len());
                self.torn += u64::from(packet.payload() != expected);
                self.packets += 1;
                self.last = packet.sequence_number();
            }
            Item::Gap(gap) => self.gaps += u64::from(gap.count()),
            Item::Discontinuity(discontinuity) => match discontinuity.cause() {
                Cause::Lapped => self.missed += discontinuity.count(),
                _ => self.other += 1,
            },
        }
    }

    /// Reads until it has accounted for `count` packets.
    fn read(mut self, from: &mut impl Reads, count: u64) -> Result<String, Error> {
        while self.packets + self.missed < count {
            match from.read(LONG)? {
                Some(batch) if batch.is_empty() => return Ok(self.text("time")),
                Some(batch) => batch.iter().for_each(|item| self.add(item)),
                None => return Ok(self.text("stopped")),
            }
        }
        Ok(self.text("count"))
    }

    /// Reads until there is nothing more.
    fn rest(mut self, from: &mut impl Reads) -> String {
        loop {
            match from.read(LONG) {
                Ok(Some(batch)) if batch.is_empty() => return self.text("time"),
                Ok(Some(batch)) => batch.iter().for_each(|item| self.add(item)),
                Ok(None) => return self.text("stopped"),
                Err(Error::OwnerGone { .. }) => return self.text("owner-gone"),
                Err(_) => return self.text("error"),
            }
        }
    }
}

fn os(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Os { doing, source }
}

/// Fills everything this reader may write with values that lie: random ones, and ones close to the
/// truth. Returns the number of words written.
fn scribble(attached: &Attached, seed: u64, rounds: u64) -> Result<u64, Error> {
    let mut dice = Dice::new(seed);
    let memory = File::options().write(true).open("/proc/self/mem").map_err(os("open memory"))?;
    let pages: Vec<Mapping> =
        process::stream_mappings().into_iter().filter(|mapping| mapping.writable).collect();
    let mut written = 0;
    for _ in 0..rounds {
        let head = attached.stats().snapshot().head;
        for page in &pages {
            for _ in 0..8 {
                // Where the words lie that the engine looks at, and anywhere.
                let word = [0, 8, dice.below(page.len / 8)][dice.below(3) as usize];
                let value = match dice.below(6) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => head.wrapping_add(dice.below(2_000)),
                    3 => head.wrapping_sub(dice.below(2_000)),
                    4 => head ^ (1 << 63),
                    _ => dice.next(),
                };
                memory
                    .write_all_at(&value.to_le_bytes(), page.start + word * 8)
                    .map_err(os("write the control page"))?;
                written += 1;
            }
        }
        spoil_wakeups();
        thread::sleep(ms(1));
    }
    Ok(written)
}

/// Makes whoever would wake this reader through a counter wait for ever, if it lets itself.
fn spoil_wakeups() {
    for (number, target) in process::descriptors() {
        if !target.contains("[eventfd]") {
            continue;
        }
        // A second description of the same counter is not to be had; the flags of this one are
        // whose it is shared with.
        let Ok(file) = process::duplicate(number) else { continue };
        let _ = rustix::fs::fcntl_setfl(&file, OFlags::NONBLOCK);
        let most = (u64::MAX - 1).to_ne_bytes();
        let _ = rustix::io::write(&file, &most);
        let _ = rustix::fs::fcntl_setfl(&file, OFlags::empty());
    }
}

/// Says what nobody asked for on every socket that this process has. Returns how much was said.
fn babble() -> usize {
    let mut dice = Dice::new(1);
    let mut said = 0;
    for (number, target) in process::descriptors() {
        let socket = target.starts_with("socket:").then(|| process::duplicate(number));
        let Some(Ok(socket)) = socket else { continue };
        for _ in 0..1_000 {
            let len = dice.below(300) as usize;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            said += usize::from(rustix::net::send(&socket, &dice.bytes(len), flags).is_ok());
        }
    }
    said
}

/// Tries to change the ring's memory in every way that the kernel knows. Returns what worked.
fn attack() -> Result<String, Error> {
    let mappings = process::stream_mappings();
    let own: Vec<&str> =
        mappings.iter().filter(|map| map.writable).map(|map| map.inode.as_str()).collect();
    // Of the kernel engine all mappings are of one file.
    let is_ring =
        |map: &&Mapping| !map.writable && (map.is_device() || !own.contains(&map.inode.as_str()));
    let rings: Vec<&Mapping> = mappings.iter().filter(is_ring).collect();
    let memory = File::options().read(true).write(true).open("/proc/self/mem");
    let memory = memory.map_err(os("open memory"))?;
    let (mut tried, mut worked) = (0, Vec::new());
    let mut note = |what: &str, result: io::Result<()>| {
        tried += 1;
        if result.is_ok() {
            worked.push(what.to_owned());
        }
    };
    for ring in &rings {
        note("write-through-mem", memory.write_all_at(&[0xff; 64], ring.start + ring.len / 2));
        for file in files_of(ring) {
            let end = ring.len;
            note("map", raw::map_writable(&file, end));
            note(
                "write",
                rustix::io::pwrite(&file, &[0xff; 64], end / 2).map(drop).map_err(Into::into),
            );
            note("shrink", rustix::fs::ftruncate(&file, end / 2).map_err(Into::into));
            note("grow", rustix::fs::ftruncate(&file, end * 2).map_err(Into::into));
            for (what, flags) in [
                ("punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
                ("zero", FallocateFlags::ZERO_RANGE),
                ("collapse", FallocateFlags::COLLAPSE_RANGE),
            ] {
                note(what, rustix::fs::fallocate(&file, flags, 0, 4_096).map_err(Into::into));
            }
        }
        // Last: if it works, the mapping is no longer what the others were tried on.
        note("protect", raw::make_writable(ring));
    }
    // Without its memory the engine's own look at a control page would end it.
    for control in mappings.iter().filter(|map| map.writable) {
        for file in files_of(control) {
            note("shrink-control", rustix::fs::ftruncate(&file, 0).map_err(Into::into));
        }
    }
    let worked = if worked.is_empty() { "nothing".to_owned() } else { worked.join(",") };
    let bytes: u64 = rings.iter().map(|ring| ring.len).sum();
    Ok(format!("rings={} bytes={bytes} tried={tried} worked={worked}", rings.len()))
}

/// Every way to the file behind a mapping: the mapping itself and descriptors of this process, as
/// they are and opened again for writing.
fn files_of(mapping: &Mapping) -> Vec<OwnedFd> {
    let open = |path: PathBuf| File::options().read(true).write(true).open(path).map(OwnedFd::from);
    let mut files: Vec<OwnedFd> = open(mapping.file()).into_iter().collect();
    for (number, target) in process::descriptors() {
        if target == mapping.name {
            files.extend(open(PathBuf::from(format!("/proc/self/fd/{number}"))));
            files.extend(process::duplicate(number));
        }
    }
    files
}
