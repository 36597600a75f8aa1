//! What this machine offers to a stream, found out by trying it.
//!
//! What lives here: typed findings for `rtp_app doctor`. What does not: printing them, choosing an
//! engine for a stream (the builders do), and what the kernel engine takes (`module`).
//!
//! Offloads, receive times and drop counts are tried with real datagrams over loopback. That shows
//! what the kernel does; a network device may still do less, which a stream notices and works around.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Serialize;

use crate::clock::{self, TaiOffset};
use crate::device;
use crate::kernel::usable;
use crate::leg::Leg;
use crate::net::{self, MessageInfo, RecvBatch, SendBatch, SlotMemory};
use crate::socket::{
    BufferGrant, ReceiveOptions, ReceiveSocket, SocketError, TransmitOptions, TransmitSocket,
    buffer_for,
};

mod module;

/// The device of the kernel engine.
pub const DEVICE: &str = device::DEVICE;

/// The stream that socket buffers are measured against: 1 Gbit/s of 1,400-byte packets, held for
/// 100 ms on receive (a busy machine's longest pause) and 10 ms on transmit.
const PACKETS_PER_SECOND: f64 = 1e9 / 8.0 / 1_400.0;
const PACKET_LEN: usize = 1_400;
const RECEIVE_HOLD: Duration = Duration::from_millis(100);
const TRANSMIT_HOLD: Duration = Duration::from_millis(10);
/// Packets and bytes per packet that a trial sends.
const TRIAL_PACKETS: usize = 4;
const TRIAL_LEN: usize = 300;
/// How long a trial over loopback waits, milliseconds.
const TRIAL_WAIT_MS: u64 = 500;
/// Reading a clock costs tens of nanoseconds; more than this is a system call, nanoseconds.
const CLOCK_COST_MAX_NS: u64 = 300;
/// Timers of an ordinary thread may be this late by default, nanoseconds.
const SLACK_MAX_NS: u64 = 100_000;

/// How a finding turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with less than there could be.
    Limited,
    /// Not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, stable: programs may look for it.
    pub name: &'static str,
    /// How it turned out.
    pub status: Status,
    /// What was found, in a sentence.
    pub detail: String,
    /// What to do about it; `None` when nothing needs doing.
    pub remedy: Option<String>,
    /// Whether the chosen engine cannot work without it.
    pub required: bool,
    /// The engine that it is about: "kernel"; `None`: the machine, whoever runs the ring.
    pub engine: Option<&'static str>,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), None);
        Self { name, status: Status::Ok, detail, remedy, required: false, engine: None }
    }

    fn limited(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { status: Status::Limited, remedy, ..Self::ok(name, detail) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Missing, ..Self::limited(name, detail, remedy) }
    }

    fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The engine that a receive stream of the network gets with `Engine::Auto`: "user" or "kernel".
    pub engine: &'static str,
    /// Why that one.
    pub reason: String,
    /// What was looked at, most important first: the kernel engine, with what stops its user first
    /// before what comes after, then the machine.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the chosen engine works.
    pub fn works(&self) -> bool {
        !self.findings.iter().any(|finding| finding.required && finding.status == Status::Missing)
    }

    /// Whether it works and nothing limits it. What is missing without being required is another
    /// engine's and limits nothing.
    pub fn is_unlimited(&self) -> bool {
        self.works() && !self.findings.iter().any(|finding| finding.status == Status::Limited)
    }

    /// What first stops a user of the kernel engine; `None`: it runs every kind of stream.
    pub fn kernel_obstacle(&self) -> Option<&Finding> {
        let mut kernel = self.findings.iter().filter(|finding| finding.engine == Some("kernel"));
        kernel.find(|finding| finding.status != Status::Ok)
    }
}

/// Looks at this machine. Takes less than a second; opens loopback sockets and the kernel engine's
/// device, and asks the compiler for its version where the module could be built.
pub fn probe() -> Report {
    let answer = usable::ask(Path::new(DEVICE));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let machine = module::Machine { root: Path::new("/"), release, rustc: &module::rustc };
    let (engine, reason) = module::choice(&answer);
    let mut findings = module::findings(&answer, &machine);
    findings.extend([memfd(), loopback_socket(), receive_buffer(), send_buffer()]);
    findings.extend([gro(), gso(), timestamps(), drop_counts(), backlog()]);
    findings.extend([tai(), clock_source(), timer_slack()]);
    findings.extend([ipv6(), multicast_ipv4(), multicast_ipv6()]);
    Report { engine, reason, findings }
}

/// Whether memory can be shared that a reader can neither shrink nor write.
fn memfd() -> Finding {
    let name = "memfd-seals";
    match try_memfd() {
        Ok(true) => {
            Finding::ok(name, "rings can be shared with other processes, sealed").required()
        }
        Ok(false) => Finding::missing(
            name,
            "a sealed memfd could still be written or shrunk",
            "use Linux 5.1 or newer",
        )
        .required(),
        Err(error) => Finding::missing(
            name,
            format!("a memfd cannot be made and sealed: {error}"),
            "use Linux 5.1 or newer, and allow memfd_create where a sandbox forbids it",
        )
        .required(),
    }
}

/// Seals a memfd as a ring is sealed, and tries what must then fail.
fn try_memfd() -> io::Result<bool> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("rtp_mgr-probe", flags)?);
    file.set_len(4096)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.write(&[0]).is_err() && file.set_len(0).is_err() && file.set_len(8192).is_err())
}

/// The two ends of a trial on loopback.
struct Trial {
    from: TransmitSocket,
    to: ReceiveSocket,
}

impl Trial {
    fn open(gro: bool) -> Result<Self, SocketError> {
        let any_port = Leg::new(Ipv4Addr::LOCALHOST.into(), 0);
        let options = ReceiveOptions { gro, ..Default::default() };
        let to = ReceiveSocket::open(&any_port, &options)?;
        let leg = any_port.with_port(to.local_addr().port());
        Ok(Self { from: TransmitSocket::open(&leg, &TransmitOptions::default())?, to })
    }

    /// Sends a few packets, as one message or one by one, and tells what arrived.
    fn run(&self, offload: bool) -> Result<Vec<MessageInfo>, String> {
        let memory = SlotMemory::private(TRIAL_PACKETS as u32, TRIAL_LEN);
        let mut batch = SendBatch::new(memory, TRIAL_PACKETS, offload);
        for slot in 0..TRIAL_PACKETS {
            batch.add(slot as u32, TRIAL_LEN);
        }
        if let Some(stop) = batch.send(&self.from).stop {
            return Err(stop.to_string());
        }
        self.collect().map_err(|error| error.to_string())
    }

    /// The datagrams that arrive until all packets are there or the time is up.
    fn collect(&self) -> io::Result<Vec<MessageInfo>> {
        let memory = SlotMemory::private(TRIAL_PACKETS as u32, TRIAL_LEN);
        let mut free = 0..TRIAL_PACKETS as u32;
        let mut batch = RecvBatch::new(memory, TRIAL_PACKETS, 1);
        let until = clock::monotonic_ns() + TRIAL_WAIT_MS * 1_000_000;
        let mut messages = Vec::new();
        let mut packets = 0;
        while packets < TRIAL_PACKETS && wait_readable(&self.to, until)? {
            batch.fill(|| free.next());
            batch.receive(&self.to)?;
            while let Some(packet) = batch.next_packet(|| None) {
                packets += 1;
                if packet.segment == 0 {
                    messages.push(packet.info);
                }
            }
        }
        Ok(messages)
    }
}

/// Waits until a socket has something to read; `false` when the time is up.
fn wait_readable(socket: impl AsFd, until_ns: u64) -> io::Result<bool> {
    let left = until_ns.saturating_sub(clock::monotonic_ns());
    let time = Timespec { tv_sec: 0, tv_nsec: left.min(999_999_999) as i64 };
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&time))? > 0)
}

/// Runs a trial and lets `judge` look at what arrived.
fn tried(
    name: &'static str,
    gro: bool,
    offload: bool,
    remedy: &str,
    judge: impl FnOnce(&[MessageInfo]) -> Finding,
) -> Finding {
    let messages =
        Trial::open(gro).map_err(|error| error.to_string()).and_then(|trial| trial.run(offload));
    match messages {
        Ok(messages) => judge(&messages),
        Err(error) => {
            Finding::limited(name, format!("the trial over loopback failed: {error}"), remedy)
        }
    }
}

/// Whether UDP works at all here.
fn loopback_socket() -> Finding {
    let name = "loopback";
    let remedy = "bring the loopback interface up: ip link set lo up";
    let judge = |messages: &[MessageInfo]| match messages.len() {
        TRIAL_PACKETS => Finding::ok(name, "datagrams arrive over loopback"),
        n => Finding::missing(
            name,
            format!("{n} of {TRIAL_PACKETS} datagrams arrived over loopback"),
            remedy,
        ),
    };
    let finding = tried(name, false, false, remedy, judge).required();
    match finding.status {
        Status::Limited => Finding { status: Status::Missing, ..finding },
        _ => finding,
    }
}

/// Whether coalesced datagrams arrive whole.
fn gro() -> Finding {
    let name = "udp-gro";
    let remedy = "use Linux 5.0 or newer; until then packets are received one by one";
    tried(name, true, true, remedy, |messages| match messages {
        [whole] if whole.segment_len == TRIAL_LEN && whole.len == TRIAL_LEN * TRIAL_PACKETS => {
            Finding::ok(name, "coalesced receive works: many packets in one copy")
        }
        _ => Finding::limited(
            name,
            format!("{TRIAL_PACKETS} packets arrived as {} datagrams", messages.len()),
            remedy,
        ),
    })
}

/// Whether one message is cut into packets.
fn gso() -> Finding {
    let name = "udp-gso";
    let remedy = "use Linux 4.18 or newer; until then packets are sent one by one";
    tried(name, false, true, remedy, |messages| {
        let cut = messages.len() == TRIAL_PACKETS && messages.iter().all(|m| m.len == TRIAL_LEN);
        match cut {
            true => Finding::ok(name, "segmented send works: many packets in one call"),
            false => Finding::limited(
                name,
                format!("a segmented message arrived as {} datagrams", messages.len()),
                remedy,
            ),
        }
    })
}

/// Whether the kernel stamps packets.
fn timestamps() -> Finding {
    let name = "receive-times";
    let remedy = "use a kernel with SO_TIMESTAMPNS; until then arrival times are those of reading";
    tried(name, false, false, remedy, |messages| {
        let now = clock::realtime_ns();
        let stamped = |m: &MessageInfo| {
            m.realtime_ns.is_some_and(|at| now.abs_diff(at) < TRIAL_WAIT_MS * 2_000_000)
        };
        match !messages.is_empty() && messages.iter().all(stamped) {
            true => Finding::ok(name, "the kernel stamps every packet on arrival"),
            false => Finding::limited(name, "packets arrive without a kernel time", remedy),
        }
    })
}

/// Whether losses in the socket can be told from losses on the way.
fn drop_counts() -> Finding {
    let name = "drop-counts";
    let drops = Trial::open(false).ok().and_then(|trial| trial.to.drops());
    match drops {
        Some(_) => Finding::ok(name, "the kernel tells what a socket dropped"),
        None => Finding::limited(
            name,
            "the kernel does not tell what a socket dropped (SO_MEMINFO)",
            "use Linux 4.12 or newer; until then such losses show without their cause",
        ),
    }
}

fn receive_buffer() -> Finding {
    let asked = buffer_for(PACKETS_PER_SECOND, PACKET_LEN, RECEIVE_HOLD);
    let options = ReceiveOptions { buffer: Some(asked), ..Default::default() };
    let leg = Leg::new(Ipv4Addr::LOCALHOST.into(), 0);
    let grant = ReceiveSocket::open(&leg, &options).map(|socket| socket.buffer());
    buffer_finding("receive-buffer", "rmem_max", "100 ms of 1 Gbit/s", grant)
}

fn send_buffer() -> Finding {
    let asked = buffer_for(PACKETS_PER_SECOND, PACKET_LEN, TRANSMIT_HOLD);
    let options = TransmitOptions { buffer: Some(asked), ..Default::default() };
    let leg = Leg::new(Ipv4Addr::LOCALHOST.into(), 9);
    let grant = TransmitSocket::open(&leg, &options).map(|socket| socket.buffer());
    buffer_finding("send-buffer", "wmem_max", "10 ms of 1 Gbit/s", grant)
}

/// What a grant means, and whose doing it is: the limit's, or a capability's that goes beyond it.
fn buffer_finding(
    name: &'static str,
    limit: &str,
    what: &str,
    grant: Result<BufferGrant, SocketError>,
) -> Finding {
    let path = format!("/proc/sys/net/core/{limit}");
    let max = read_number(&path);
    let limit_text = max.map_or("unknown".to_owned(), |max| format!("{max} bytes"));
    let grant = match grant {
        Ok(grant) => grant,
        Err(error) => return Finding::limited(name, error.to_string(), "see the finding above"),
    };
    let BufferGrant { asked, granted } = grant;
    let remedy = format!("sysctl -w net.core.{limit}={asked} (or run with CAP_NET_ADMIN)");
    if grant.is_short() {
        let detail = format!(
            "{granted} bytes granted of {asked}, which is {what}; net.core.{limit} is {limit_text}"
        );
        return Finding::limited(name, detail, remedy);
    }
    let forced = max.is_some_and(|max| max < asked as u64);
    let how = if forced { ", beyond the limit (CAP_NET_ADMIN)" } else { "" };
    Finding::ok(name, format!("{granted} bytes granted{how}; net.core.{limit} is {limit_text}"))
}

/// The queue between an interface without its own and the sockets (loopback, veth, tunnels).
fn backlog() -> Finding {
    let name = "backlog";
    let Some(max) = read_number("/proc/sys/net/core/netdev_max_backlog") else {
        return Finding::ok(name, "net.core.netdev_max_backlog is not visible here");
    };
    let dropped = backlog_drops(&fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default());
    if dropped == 0 {
        let detail =
            format!("net.core.netdev_max_backlog is {max} packets; none dropped since boot");
        return Finding::ok(name, detail);
    }
    Finding::limited(
        name,
        format!("{dropped} packets dropped since boot at net.core.netdev_max_backlog = {max}"),
        format!("sysctl -w net.core.netdev_max_backlog={}", (max * 4).max(10_000)),
    )
}

/// Sum of the second column of /proc/net/softnet_stat: one line per CPU, hexadecimal.
fn backlog_drops(table: &str) -> u64 {
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|drops| u64::from_str_radix(drops, 16).ok())
        .sum()
}

fn tai() -> Finding {
    let name = "tai-offset";
    let offset = TaiOffset::read();
    let kept = match net::clock_discipline() {
        Ok(discipline) if discipline.synchronised => {
            format!("the clock is kept, within an estimated {} us", discipline.estimated_error_us)
        }
        _ => "nothing claims to keep the clock".to_owned(),
    };
    if offset.valid {
        return Finding::ok(name, format!("TAI is UTC + {} s; {kept}", offset.seconds));
    }
    Finding::limited(
        name,
        format!("no TAI offset is configured, so times on CLOCK_TAI equal UTC; {kept}"),
        "let the time service set it: chrony with 'leapsectz right/UTC', or phc2sys/ptp4l",
    )
}

/// Whether reading the clock is cheap.
fn clock_source() -> Finding {
    let name = "clock-source";
    let path = "/sys/devices/system/clocksource/clocksource0";
    let source = fs::read_to_string(format!("{path}/current_clocksource"))
        .map_or("unknown".to_owned(), |source| source.trim().to_owned());
    let cost = clock_cost_ns();
    let detail = format!("{source}; reading the clock takes {cost} ns");
    if cost <= CLOCK_COST_MAX_NS {
        return Finding::ok(name, detail);
    }
    let remedy = format!("choose tsc or kvm-clock where {path}/available_clocksource offers it");
    Finding::limited(name, detail, remedy)
}

/// Cheapest of many rounds of readings, per reading: other programs on the processor do not count.
fn clock_cost_ns() -> u64 {
    const READINGS: u64 = 32;
    (0..64)
        .map(|_| {
            let before = clock::monotonic_ns();
            for _ in 1..READINGS {
                std::hint::black_box(clock::monotonic_ns());
            }
            (clock::monotonic_ns() - before) / READINGS
        })
        .min()
        .unwrap_or(0)
}

/// How late the kernel may make a thread's timers to save wake-ups.
fn timer_slack() -> Finding {
    let name = "timer-slack";
    match rustix::thread::current_timer_slack() {
        Ok(slack) if slack <= SLACK_MAX_NS => {
            Finding::ok(name, format!("timers of this thread may be {slack} ns late"))
        }
        Ok(slack) => Finding::limited(
            name,
            format!("timers of this thread may be {slack} ns late"),
            "start it without a raised timer slack (TimerSlackNSec= of its systemd unit)",
        ),
        Err(error) => Finding::ok(name, format!("not visible here: {error}")),
    }
}

fn ipv6() -> Finding {
    let name = "ipv6";
    match ReceiveSocket::open(&Leg::new(Ipv6Addr::LOCALHOST.into(), 0), &ReceiveOptions::default())
    {
        Ok(_) => Finding::ok(name, "IPv6 sockets open"),
        Err(error) => Finding::limited(
            name,
            error.to_string(),
            "only for IPv6 streams: sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
    }
}

fn multicast_ipv4() -> Finding {
    multicast("multicast-ipv4", Ipv4Addr::new(239, 255, 255, 250).into(), "224.0.0.0/4")
}

fn multicast_ipv6() -> Finding {
    let site_local = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 1);
    multicast("multicast-ipv6", site_local.into(), "ff00::/8")
}

/// Whether groups have a route: legs without %INTERFACE need one. Connecting sends nothing.
fn multicast(name: &'static str, group: IpAddr, net: &str) -> Finding {
    let v6 = if group.is_ipv6() { "-6 " } else { "" };
    match TransmitSocket::open(&Leg::new(group, 9), &TransmitOptions::default()) {
        Ok(socket) => {
            Finding::ok(name, format!("groups have a route, from {}", socket.local_addr().ip()))
        }
        Err(error) => Finding::limited(
            name,
            format!("legs without %INTERFACE have no route: {error}"),
            format!("name the interface in the leg, or: ip {v6}route add {net} dev INTERFACE"),
        ),
    }
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_limit_comes_with_a_remedy_and_every_name_is_unique() {
        let report = probe();
        let names: BTreeSet<_> = report.findings.iter().map(|finding| finding.name).collect();
        assert_eq!(names.len(), report.findings.len());
        for finding in &report.findings {
            assert_eq!(finding.remedy.is_none(), finding.status == Status::Ok, "{finding:?}");
            assert!(!finding.detail.is_empty());
        }
        let why_not = report.kernel_obstacle();
        assert!(report.engine == "kernel" || why_not.is_some(), "{report:?}");
    }

    #[test]
    fn what_every_supported_kernel_has_is_found_by_trying() {
        for finding in [memfd(), loopback_socket(), gro(), gso(), timestamps(), drop_counts()] {
            assert_eq!(finding.status, Status::Ok, "{finding:?}");
        }
    }

    #[test]
    fn the_report_works_unless_something_required_is_missing() {
        let missing = Finding::missing("a", "b", "c");
        let report = |findings| Report { engine: "user", reason: String::new(), findings };
        let verdict = |report: Report| (report.works(), report.is_unlimited());
        let fine = Finding::ok("a", "b").required();
        assert_eq!(verdict(report(vec![fine.clone(), missing.clone()])), (true, true));
        assert_eq!(verdict(report(vec![fine.clone(), missing.required()])), (false, false));
        let limited = Finding::limited("a", "b", "c");
        assert_eq!(verdict(report(vec![fine, limited])), (true, false));
    }

    #[test]
    fn a_short_buffer_names_the_sysctl_line() {
        let grant = Ok(BufferGrant { asked: 10_000_000, granted: 212_992 });
        let finding = buffer_finding("receive-buffer", "rmem_max", "a lot", grant);
        assert_eq!(finding.status, Status::Limited);
        assert!(finding.remedy.unwrap().contains("sysctl -w net.core.rmem_max=10000000"));
    }

    #[test]
    fn backlog_drops_are_summed_over_the_processors() {
        let table = "0000a000 00000010 0 0\n0000b000 0000000f 0 0\n";
        assert_eq!(backlog_drops(table), 31);
        assert_eq!(backlog_drops(""), 0);
    }
}
