//! QEMU: booting the prepared kernel with the module and programs, and learning how that went.
//!
//! The serial console carries everything. The machine's first process marks where the command's
//! output and the kernel's log begin and end with a word that is new for every boot, so that no
//! program's output can be taken for it.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::cache::Cache;
use super::initramfs::Archive;
use super::prepare::which;
use super::results::Tally;
use super::suite::Kernel;
use super::{Guest, Test, build, furniture};

const TRIAL: Duration = Duration::from_secs(30);
const MEMORY: &str = "1G";
/// Lines of the console that are shown of a machine that did not end as it should.
const LAST_LINES: usize = 60;
/// Boots that are tried for one command.
const BOOTS_MAX: usize = 3;

/// How a machine is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// After this it is stopped.
    pub timeout: Duration,
    /// One CPU whose clock counts instructions: 1 ns each, whatever else the host does.
    pub icount: bool,
    /// A thread for each emulated CPU.
    pub parallel: bool,
    /// Added to the kernel's command line.
    pub append: Vec<String>,
    /// Load the module before the command.
    pub load: bool,
}

/// The command ended with this status, other than 0.
#[derive(Clone, Copy, Debug)]
pub struct Failed(pub u8);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {} in the virtual machine", self.0)
    }
}

impl std::error::Error for Failed {}

/// The machine ended before the command began, and so before the module was loaded.
#[derive(Debug)]
struct NotBooted(String);

impl fmt::Display for NotBooted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotBooted {}

/// How QEMU runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Software,
}

/// KVM where a trial boot has shown that it works, since a device that opens may not run a kernel.
/// The result is kept until this machine boots again.
pub fn accelerator(cache: &Cache, kernel: &Kernel) -> Result<Accelerator> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let stamp = cache.path(format!("stamps/accelerator-{}", kernel.release));
    let kept = fs::read_to_string(&stamp).unwrap_or_default();
    if let Some(works) = kept.strip_prefix(boot.trim()).filter(|_| !boot.is_empty()) {
        return Ok(if works.trim() == "kvm" { Accelerator::Kvm } else { Accelerator::Software });
    }
    let opens = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let works = opens && trial(cache, kernel)?;
    eprintln!(
        "KVM: {}",
        match (opens, works) {
            (false, _) => "not available",
            (true, false) => "a trial boot failed: not used",
            (true, true) => "a trial boot worked: used",
        }
    );
    let accelerator = if works { Accelerator::Kvm } else { Accelerator::Software };
    let word = if works { "kvm" } else { "software" };
    fs::write(stamp, format!("{} {word}", boot.trim()))?;
    Ok(accelerator)
}

fn trial(cache: &Cache, kernel: &Kernel) -> Result<bool> {
    let settings = Settings {
        timeout: TRIAL,
        icount: false,
        parallel: false,
        append: Vec::new(),
        load: false,
    };
    let boot = Boot::new(cache, kernel, None, "true", settings)?;
    let ended = boot.watch(Accelerator::Kvm, &mut |_| {});
    Ok(ended.is_ok_and(|ended| ended.status == Some(0)))
}

/// Runs a command with its output as it comes. Its exit status, and a clean kernel log, decide.
pub fn run(
    cache: &Cache,
    kernel: &Kernel,
    guest: &Guest,
    command: &[OsString],
    settings: Settings,
) -> Result<()> {
    run_with(cache, kernel, guest, command, settings, &mut |line| println!("{line}"))
}

/// As [`run`], with its output given to `print` line by line.
pub fn run_with(
    cache: &Cache,
    kernel: &Kernel,
    guest: &Guest,
    command: &[OsString],
    settings: Settings,
    print: &mut dyn FnMut(&str),
) -> Result<()> {
    let words: Vec<_> = command.iter().map(|word| quote(&word.to_string_lossy())).collect();
    let accelerator = accelerator(cache, kernel)?;
    let boot = Boot::new(cache, kernel, Some(guest), &words.join(" "), settings)?;
    boot.execute(accelerator, print)
}

/// Every test program, each with its own result lines; then the count of them all. They run one after the
/// other, but in three machines at once: the module's own tests, those between network namespaces, which
/// mostly wait, and the others.
///
/// # Errors
/// A test failed, a program ended without the results that it announced, nothing ran, or the kernel's
/// log has warnings.
pub fn test(cache: &Cache, kernel: &Kernel, guest: &Guest, settings: Settings) -> Result<Tally> {
    let accelerator = accelerator(cache, kernel)?;
    let (own, others): (Vec<_>, Vec<_>) = guest.tests.iter().partition(|test| test.libtest);
    let (between, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|test| build::NAMESPACES.contains(&test.program.as_str()));
    let mut boots = Vec::new();
    for tests in [own, between, others] {
        if !tests.is_empty() {
            let script = test_script(&tests)?;
            boots.push(Boot::new(cache, kernel, Some(guest), &script, settings.clone())?);
        }
    }
    let mut tally = Tally::default();
    let ended = thread::scope(|scope| {
        let mut boots = boots.iter();
        let first = boots.next().context("no test program")?;
        let behind: Vec<_> = boots
            .map(|boot| {
                scope.spawn(|| {
                    let mut lines = Vec::new();
                    let ended = boot.execute(accelerator, &mut |line| lines.push(line.to_owned()));
                    (lines, ended)
                })
            })
            .collect();
        let mut hear = |line: &str| {
            println!("{line}");
            tally.line(line);
        };
        let mut ended = first.execute(accelerator, &mut hear);
        for machine in behind {
            let (lines, result) =
                machine.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
            lines.iter().for_each(|line| hear(line));
            // A failed test is the lesser of two evils.
            ended = match (ended, result) {
                (Err(before), Err(after)) if before.is::<Failed>() => Err(after),
                (before, after) => before.and(after),
            };
        }
        ended
    });
    println!("\nin the virtual machine: {tally}");
    for (name, reason) in &tally.not_run {
        println!("not run: {name}: {reason}");
    }
    if !tally.failed.is_empty() && ended.as_ref().is_err_and(|error| error.is::<Failed>()) {
        bail!("{tally}: {}", tally.failed.join(", "));
    }
    ended.with_context(|| tally.to_string())?;
    if tally.unheard() > 0 || tally.passed == 0 {
        bail!("{tally}");
    }
    Ok(tally)
}

/// What the machine's shell does to run them.
fn test_script(tests: &[&Test]) -> Result<String> {
    let mut script = String::from("failed=0\n");
    for test in tests {
        writeln!(script, "echo; echo \"== {}\"", test.program)?;
        let words: Vec<_> = test.arguments.iter().map(|word| quote(word)).collect();
        writeln!(script, "{} {} || failed=1", test.program, words.join(" "))?;
    }
    script.push_str("(exit $failed)");
    Ok(script)
}

/// A shell on this terminal.
pub fn shell(cache: &Cache, kernel: &Kernel, guest: &Guest, settings: Settings) -> Result<()> {
    let accelerator = accelerator(cache, kernel)?;
    println!("a shell in the virtual machine; `exit` ends it (Ctrl-A X kills it)");
    let boot = Boot::new(
        cache,
        kernel,
        Some(guest),
        "PS1='vm# ' setsid -c bash --norc -i </dev/ttyS0 >/dev/ttyS0 2>&1",
        settings,
    )?;
    let initrd = tempfile::Builder::new().prefix("rtp-manager-vm-").tempfile()?;
    boot.write_initrd(initrd.as_file())?;
    let mut qemu = boot.qemu(accelerator, initrd.path())?;
    qemu.args(["-serial", "mon:stdio"]);
    let status = qemu.status().context("start QEMU")?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

/// What a boot is made of.
struct Boot {
    vmlinuz: PathBuf,
    /// Archives, one after the other.
    furniture: Vec<PathBuf>,
    archive: Vec<u8>,
    /// An image of a disk that can be read.
    disk: Option<PathBuf>,
    mark: String,
    settings: Settings,
}

/// How a command in the machine ended.
struct Ended {
    status: Option<i32>,
    boot_log: Vec<String>,
    log: Vec<String>,
}

impl Boot {
    /// Boots, gives the command's output to `print`, and judges exit status and kernel log.
    fn execute(&self, accelerator: Accelerator, print: &mut dyn FnMut(&str)) -> Result<()> {
        let mut ended = self.watch(accelerator, print);
        // With a thread for each CPU the stock kernel crashes now and then (about one boot in sixty on a
        // busy machine) with "Oops: int3": the emulator lets one CPU run into code that the other is
        // patching. Seen before anything of ours had run, and with code in place that was whole again.
        for _ in 1..BOOTS_MAX {
            let Some(reason) =
                ended.as_ref().err().and_then(|error| error.downcast_ref::<NotBooted>())
            else {
                break;
            };
            eprintln!("{reason}\nnothing of ours had run: booting again");
            ended = self.watch(accelerator, print);
        }
        let ended = ended?;
        let complaints = complaints(&ended.boot_log, &ended.log);
        if !complaints.is_empty() {
            bail!(
                "the kernel log has warnings:\n{}\nthe log since the command began:\n{}",
                complaints.join("\n"),
                ended.log.join("\n")
            );
        }
        match ended.status {
            Some(0) => Ok(()),
            Some(status) => Err(Failed(u8::try_from(status).unwrap_or(u8::MAX)).into()),
            None => bail!("the virtual machine stopped without saying how the command ended"),
        }
    }

    fn new(
        cache: &Cache,
        kernel: &Kernel,
        guest: Option<&Guest>,
        script: &str,
        settings: Settings,
    ) -> Result<Self> {
        let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let mark = format!("vm-{}", nonce.trim());
        let mut archive = Archive::default();
        for directory in ["bin", "sbin", "dev", "lib", "proc", "sys", "tmp", "run", "root", "etc"] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", &busybox(cache, kernel)?)?;
        archive.symlink("bin/sh", if guest.is_some() { "../sbin/dash" } else { "busybox" });
        archive.symlink("sbin/modprobe", "../bin/busybox");
        archive.script("init", &init(&mark, script, guest.is_some() && settings.load));
        archive
            .script("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        archive.script("etc/group", "root:x:0:\nnogroup:x:65534:\n");
        let mut furniture = Vec::new();
        if let Some(guest) = guest {
            archive.file("lib/rtp_mgr.ko", &guest.module)?;
            for (name, file) in &guest.files {
                archive.directories_of(name);
                archive.file(name, file)?;
            }
            furniture.push(furniture::modules(cache, kernel)?);
            furniture.push(furniture::tools(cache, kernel)?);
        }
        let archive = archive.finish();
        let disk = guest.and_then(|guest| guest.disk.clone());
        Ok(Self { vmlinuz: kernel.vmlinuz(cache)?, furniture, archive, disk, mark, settings })
    }

    fn write_initrd(&self, mut to: &File) -> Result<()> {
        for part in &self.furniture {
            let mut from = File::open(part).with_context(|| part.display().to_string())?;
            std::io::copy(&mut from, &mut to)?;
        }
        to.write_all(&self.archive)?;
        Ok(())
    }

    fn qemu(&self, accelerator: Accelerator, initrd: &Path) -> Result<Command> {
        const PROGRAM: &str = "qemu-system-x86_64";
        let program = which(PROGRAM).with_context(|| format!("{PROGRAM} is missing"))?;
        // Whatever ends this process ends the machine, too.
        let mut qemu = match which("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        qemu.args(["-M", "q35", "-m", MEMORY, "-display", "none", "-no-reboot"]);
        qemu.args(["-nodefaults", "-net", "none"]);
        match (self.settings.icount, accelerator) {
            (true, _) => qemu
                .args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
                .args(["-smp", "1", "-cpu", "max,-erms,-fsrm"]),
            (false, Accelerator::Kvm) => qemu.args(["-accel", "kvm", "-smp", "2", "-cpu", "host"]),
            (false, Accelerator::Software) => {
                let threads = if self.settings.parallel { "multi" } else { "single" };
                qemu.args(["-accel", &format!("tcg,thread={threads}"), "-smp", "2", "-cpu", "max"])
            }
        };
        if let Some(disk) = &self.disk {
            let file = disk.display().to_string().replace(',', ",,");
            qemu.args(["-drive", &format!("if=none,id=disk,format=raw,readonly=on,file={file}")]);
            // The stock kernel needs no module for it.
            qemu.args(["-device", "nvme,serial=disk,drive=disk"]);
        }
        qemu.arg("-kernel").arg(&self.vmlinuz).arg("-initrd").arg(initrd);
        let mut line = String::from("console=ttyS0 loglevel=2 log_buf_len=4M panic=-1 oops=panic");
        for word in &self.settings.append {
            write!(line, " {word}")?;
        }
        qemu.arg("-append").arg(line);
        Ok(qemu)
    }

    /// Boots, gives the command's output to `print` line by line, and waits for the end.
    fn watch(&self, accelerator: Accelerator, print: &mut dyn FnMut(&str)) -> Result<Ended> {
        // A file without a name: nothing is left of it, however this process ends.
        let initrd = tempfile::tempfile()?;
        self.write_initrd(&initrd)?;
        let mut qemu = self.qemu(accelerator, Path::new("/dev/stdin"))?;
        qemu.args(["-serial", "file:/dev/stdout"]);
        qemu.stdin(initrd).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Kill(qemu.spawn().context("start QEMU")?);
        let (to, lines) = mpsc::channel();
        let stdout = child.0.stdout.take().context("QEMU's output")?;
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let timeout = self.settings.timeout;
        let deadline = Instant::now() + timeout;
        let mut console = Console::new(&self.mark);
        let (mut boot_log, mut log, mut last) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match console.line(&line) {
                    Shown::Output => print(&line),
                    Shown::BootLog => boot_log.push(line),
                    Shown::Log => log.push(line),
                    Shown::Nothing => last.push(line),
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the virtual machine was stopped: {} s had passed, and it had {}{}",
                    timeout.as_secs(),
                    console.state.words(),
                    console_tail(&last)
                ),
            }
        }
        let status = child.0.wait()?;
        drop(reader.join());
        if console.status.is_none() {
            let mut complaint = String::new();
            if let Some(mut stderr) = child.0.stderr.take() {
                // Whatever can be read of it is all there is.
                let _ = std::io::Read::read_to_string(&mut stderr, &mut complaint);
            }
            let text = format!(
                "the virtual machine ended early ({status}): it had {}\n{complaint}{}",
                console.state.words(),
                console_tail(&last)
            );
            return Err(match console.state {
                State::Booting => NotBooted(text).into(),
                _ => anyhow!(text),
            });
        }
        Ok(Ended { status: console.status, boot_log, log })
    }
}

fn console_tail(lines: &[String]) -> String {
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    if last.is_empty() { String::new() } else { format!("; its console:\n{}", last.join("\n")) }
}

/// Stops the machine with the one who watches it.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Clone, Copy)]
enum State {
    Booting,
    Command,
    BootLog,
    Log,
    Over,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::Booting => "not begun the command",
            Self::Command => "not ended the command",
            Self::BootLog | Self::Log => "ended the command and not stopped",
            Self::Over => "stopped",
        }
    }
}

enum Shown {
    Output,
    BootLog,
    Log,
    Nothing,
}

/// Understands the serial console.
struct Console<'a> {
    mark: &'a str,
    state: State,
    status: Option<i32>,
}

impl<'a> Console<'a> {
    fn new(mark: &'a str) -> Self {
        Self { mark, state: State::Booting, status: None }
    }

    fn line(&mut self, line: &str) -> Shown {
        if let Some(at) = line.find(self.mark) {
            let mut words = line[at..].split_whitespace().skip(1);
            match (words.next(), words.next()) {
                (Some("command"), _) => self.state = State::Command,
                (Some("status"), status) => {
                    self.status = status.and_then(|status| status.parse().ok());
                    self.state = State::BootLog;
                }
                (Some("log"), _) => self.state = State::Log,
                _ => self.state = State::Over,
            }
            return Shown::Nothing;
        }
        match self.state {
            State::Command => Shown::Output,
            State::BootLog => Shown::BootLog,
            State::Log => Shown::Log,
            State::Booting | State::Over => Shown::Nothing,
        }
    }
}

/// The machine's first process.
fn init(mark: &str, script: &str, load: bool) -> String {
    let load = if load {
        "insmod /lib/rtp_mgr.ko || { echo 'rtp_mgr.ko was refused'; false; } && {"
    } else {
        "{"
    };
    format!(
        "#!/bin/sh\n\
         export PATH=/sbin:/bin HOME=/root TERM=linux RTP_MGR_MODULE=/lib/rtp_mgr.ko\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev 2>/dev/null\n\
         mkdir -p /dev/shm /dev/pts\n\
         mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts\n\
         mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run\n\
         chmod 1777 /tmp /dev/shm\n\
         mount -t debugfs debug /sys/kernel/debug; mount -t tracefs trace /sys/kernel/tracing\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         ip link set lo up\n\
         dmesg -r -c > /run/boot.log\n\
         echo; echo '{mark} command'\n\
         {load}\n{script}\n}}\n\
         status=$?\n\
         echo; echo \"{mark} status $status\"\n\
         cat /run/boot.log; echo '{mark} log'; dmesg -r\n\
         echo '{mark} over'\n\
         poweroff -f\n"
    )
}

fn busybox(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let chroot = kernel.suite.root(cache);
    ["bin/busybox", "usr/bin/busybox"]
        .into_iter()
        .map(|path| chroot.join(path))
        .find(|path: &PathBuf| Path::new(path).is_file())
        .with_context(|| format!("no busybox in {}", chroot.display()))
}

/// Lines of the kernel's log that must not be there: signs of trouble at any time, and any warning since
/// the command began. What the module refuses, it says as an error: its own lines are warnings only by
/// their words.
fn complaints<'a>(boot: &'a [String], log: &'a [String]) -> Vec<&'a str> {
    const SIGNS: [&str; 14] = [
        "WARNING:",
        "BUG:",
        "Oops",
        "Call Trace",
        "rust_kernel: panicked",
        "panic",
        "INFO: task",
        "rcu_sched",
        "rcu: INFO",
        "general protection",
        "lockdep",
        "refcount_t",
        "use-after-free",
        "Bad page",
    ];
    let sign =
        |line: &&str| !line.contains("ommand line") && SIGNS.iter().any(|sign| line.contains(sign));
    let all = boot.iter().chain(log).map(String::as_str);
    let mut complaints: Vec<_> = all.filter(sign).collect();
    complaints.extend(log.iter().map(String::as_str).filter(|line| !sign(line) && warning(line)));
    complaints
}

/// What the kernel says of the machine's clock, when the host kept the emulator from running for too long.
const CLOCK: [&str; 4] = ["clocksource: ", "tsc: ", "TSC found unstable", "sched_clock: "];

/// A line of the raw log, `<LEVEL>[TIME] TEXT`, of level 4 (warning) or worse, other than what the
/// module says, the kernel of it (that it is from outside the tree), and what is no doing of the module's.
fn warning(line: &str) -> bool {
    let Some((level, rest)) = line.strip_prefix('<').and_then(|rest| rest.split_once('>')) else {
        return false;
    };
    let text = rest.split_once("] ").map_or(rest, |(_, text)| text);
    // The lower three bits are the level, the others say who wrote it.
    let others = text.starts_with("rtp_mgr: ") || CLOCK.iter().any(|clock| text.starts_with(clock));
    level.parse::<u32>().is_ok_and(|level| level & 7 <= 4) && !others
}

/// A word as the shell takes it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_split_at_the_marks_of_this_boot() {
        let mut console = Console::new("vm-1");
        let shown: Vec<_> = [
            "boot text",
            "vm-1 command",
            "vm-2 status 0",
            "vm-1 status 3",
            "<6>[ 0.1] boot log",
            "vm-1 log",
            "<6>[ 0.2] log",
            "vm-1 over",
            "rest",
        ]
        .iter()
        .map(|line| match console.line(line) {
            Shown::Output => 'o',
            Shown::BootLog => 'b',
            Shown::Log => 'l',
            Shown::Nothing => '-',
        })
        .collect();
        assert_eq!(shown, ['-', '-', 'o', '-', 'b', '-', 'l', '-', '-']);
        assert_eq!(console.status, Some(3));
    }

    #[test]
    fn warnings_in_the_log_are_found_and_the_command_line_is_no_warning() {
        let boot = [
            "<6>[0.0] Command line: console=ttyS0 panic=-1",
            "<5>[0.1] Kernel command line: panic=-1",
            "<4>[0.2] a firmware that is old",
        ]
        .map(String::from);
        let log = [
            "<4>[0.3] rtp_mgr: loading out-of-tree module taints kernel.",
            "<6>[0.4] rtp_mgr: loaded",
            "<4>[0.5] ------------[ cut here ]------------",
            "<4>[0.6] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1",
            "<12>[0.7] said by a program, as a warning",
            "<13>[0.8] said by a program",
            "<4>[0.9] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
        ]
        .map(String::from);
        assert_eq!(complaints(&boot, &log), [&log[3], &log[2], &log[4]]);
        assert_eq!(complaints(&log[3..4], &[]), [&log[3]]);
    }

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
