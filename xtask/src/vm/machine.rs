//! QEMU: booting the prepared kernel with the module and programs, and learning how that went.
//!
//! The serial console carries everything. The machine's first process marks where the command's
//! output and the kernel's log begin and end with a word that is new for every boot, so that no
//! program's output can be taken for it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Guest;
use super::cache::Cache;
use super::initramfs::Archive;
use super::prepare::{Target, which};

const TRIAL: Duration = Duration::from_secs(30);
const TEST: Duration = Duration::from_secs(600);
const MEMORY: &str = "1G";

/// Kernel modules that programs in the machine use, in loading order.
const MODULES: [&str; 1] = ["veth"];

/// How QEMU runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Software,
}

/// KVM where a trial boot has shown that it works, since a device that opens may not run a kernel.
/// The result is kept until this machine boots again.
pub fn accelerator(cache: &Cache, kernel: &Target) -> Result<Accelerator> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let stamp = cache.path(format!("stamps/accelerator-{}", kernel.release));
    let kept = fs::read_to_string(&stamp).unwrap_or_default();
    if let Some(works) = kept.strip_prefix(boot.trim()).filter(|_| !boot.is_empty()) {
        return Ok(if works.trim() == "kvm" { Accelerator::Kvm } else { Accelerator::Software });
    }
    let opens = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let works = opens && trial(cache, kernel)?;
    println!(
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

fn trial(cache: &Cache, kernel: &Target) -> Result<bool> {
    let boot = Boot::new(cache, kernel, None, "true")?;
    let ended = boot.watch(Accelerator::Kvm, TRIAL, &mut |_| {});
    Ok(ended.is_ok_and(|ended| ended.status == Some(0)))
}

/// Runs a command with its output as it comes. Its exit status, and a clean kernel log, decide.
pub fn run(
    cache: &Cache,
    kernel: &Target,
    guest: &Guest,
    command: &[OsString],
    timeout: u64,
) -> Result<()> {
    let words: Vec<_> = command.iter().map(|word| quote(&word.to_string_lossy())).collect();
    execute(cache, kernel, guest, &words.join(" "), Duration::from_secs(timeout))
}

/// Every test program, one after the other, each with its own result lines.
pub fn test(cache: &Cache, kernel: &Target, guest: &Guest, arguments: &[OsString]) -> Result<()> {
    let words: Vec<_> = arguments.iter().map(|word| quote(&word.to_string_lossy())).collect();
    let mut script = String::from("failed=0\n");
    for test in &guest.tests {
        writeln!(script, "echo; echo \"== {test}\"")?;
        writeln!(script, "{test} --test-threads=1 {} || failed=1", words.join(" "))?;
    }
    script.push_str("(exit $failed)");
    execute(cache, kernel, guest, &script, TEST)
}

fn execute(
    cache: &Cache,
    kernel: &Target,
    guest: &Guest,
    script: &str,
    timeout: Duration,
) -> Result<()> {
    let accelerator = accelerator(cache, kernel)?;
    let boot = Boot::new(cache, kernel, Some(guest), script)?;
    let ended = boot.watch(accelerator, timeout, &mut |line| println!("{line}"))?;
    let complaints = complaints(&ended.log);
    if !complaints.is_empty() {
        bail!(
            "the kernel log has warnings:\n{}\nwhole log:\n{}",
            complaints.join("\n"),
            ended.log.join("\n")
        );
    }
    match ended.status {
        Some(0) => Ok(()),
        Some(status) => bail!("exit status {status} in the virtual machine"),
        None => bail!("the virtual machine stopped without saying how the command ended"),
    }
}

/// A shell on this terminal.
pub fn shell(cache: &Cache, kernel: &Target, guest: &Guest) -> Result<()> {
    let accelerator = accelerator(cache, kernel)?;
    println!("a shell in the virtual machine; `exit` ends it (Ctrl-A X kills it)");
    let boot = Boot::new(cache, kernel, Some(guest), "setsid cttyhack sh")?;
    let status = boot.qemu(accelerator)?.stdin(Stdio::inherit()).status()?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

/// What a boot is made of.
struct Boot {
    vmlinuz: PathBuf,
    initrd: tempfile::NamedTempFile,
    mark: String,
}

/// How a command in the machine ended.
struct Ended {
    status: Option<i32>,
    log: Vec<String>,
}

impl Boot {
    fn new(cache: &Cache, kernel: &Target, guest: Option<&Guest>, script: &str) -> Result<Self> {
        let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let mark = format!("vm-{}", nonce.trim());
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "lib", "proc", "sys", "tmp", "run", "root", "etc"] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", &busybox(cache)?)?;
        archive.symlink("bin/sh", "busybox");
        archive.script("init", &init(&mark, script, guest.is_some()));
        archive
            .script("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        if let Some(guest) = guest {
            archive.file("lib/rtp_mgr.ko", &guest.module)?;
            for (name, file) in &guest.programs {
                archive.file(&format!("bin/{name}"), file)?;
            }
            for module in MODULES {
                add_module(&mut archive, cache, kernel, module)?;
            }
        }
        let initrd = tempfile::Builder::new().prefix("rtp-manager-vm-").tempfile()?;
        fs::write(initrd.path(), archive.finish())?;
        Ok(Self { vmlinuz: kernel.vmlinuz(cache)?, initrd, mark })
    }

    fn qemu(&self, accelerator: Accelerator) -> Result<Command> {
        let program = which("qemu-system-x86_64").context("qemu-system-x86_64 is missing")?;
        let mut qemu = Command::new(program);
        qemu.args(["-M", "q35", "-smp", "2", "-m", MEMORY, "-nographic", "-no-reboot"]);
        qemu.args(["-nodefaults", "-serial", "mon:stdio", "-net", "none"]);
        match accelerator {
            Accelerator::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Software => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
        qemu.arg("-kernel").arg(&self.vmlinuz).arg("-initrd").arg(self.initrd.path());
        qemu.args(["-append", "console=ttyS0 loglevel=2 panic=-1 oops=panic"]);
        Ok(qemu)
    }

    /// Boots, gives the command's output to `print` line by line, and waits for the end.
    fn watch(
        &self,
        accelerator: Accelerator,
        timeout: Duration,
        print: &mut dyn FnMut(&str),
    ) -> Result<Ended> {
        let mut qemu = self.qemu(accelerator)?;
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
        let deadline = Instant::now() + timeout;
        let mut console = Console { mark: &self.mark, state: State::Booting, status: None };
        let mut log = Vec::new();
        let mut last = Vec::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match console.line(&line) {
                    Shown::Output => print(&line),
                    Shown::Log => log.push(line),
                    Shown::Nothing => last.push(line),
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("stopped the virtual machine after {} s", timeout.as_secs())
                }
            }
        }
        let status = child.0.wait()?;
        drop(reader.join());
        if console.status.is_none() {
            let tail = last[last.len().saturating_sub(60)..].join("\n");
            bail!("the virtual machine ended early ({status}):\n{tail}");
        }
        Ok(Ended { status: console.status, log })
    }
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

enum State {
    Booting,
    Command,
    Log,
    Over,
}

enum Shown {
    Output,
    Log,
    Nothing,
}

/// Understands the serial console.
struct Console<'a> {
    mark: &'a str,
    state: State,
    status: Option<i32>,
}

impl Console<'_> {
    fn line(&mut self, line: &str) -> Shown {
        if let Some(at) = line.find(self.mark) {
            let mut words = line[at..].split_whitespace().skip(1);
            match (words.next(), words.next()) {
                (Some("command"), _) => self.state = State::Command,
                (Some("status"), status) => {
                    self.status = status.and_then(|status| status.parse().ok());
                    self.state = State::Log;
                }
                _ => self.state = State::Over,
            }
            return Shown::Nothing;
        }
        match self.state {
            State::Command => Shown::Output,
            State::Log => Shown::Log,
            State::Booting | State::Over => Shown::Nothing,
        }
    }
}

/// The machine's first process.
fn init(mark: &str, script: &str, module: bool) -> String {
    let load = if module {
        "insmod /lib/rtp_mgr.ko $(cat /tmp/parameters 2>/dev/null) || echo 'insmod failed'\n"
    } else {
        ""
    };
    format!(
        "#!/bin/sh\n\
         export PATH=/bin HOME=/root TERM=linux RTP_MGR_MODULE=/lib/rtp_mgr.ko\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev 2>/dev/null\n\
         mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /tmp\n\
         chmod 1777 /tmp /dev/shm\n\
         mount -t debugfs debug /sys/kernel/debug\n\
         ip link set lo up\n\
         for module in /lib/needed-*.ko; do [ -e $module ] && insmod $module; done\n\
         echo; echo '{mark} command'\n\
         {load}{script}\n\
         status=$?\n\
         echo; echo \"{mark} status $status\"\n\
         dmesg\n\
         echo '{mark} over'\n\
         poweroff -f\n"
    )
}

/// Adds a module of the distribution, to be loaded before the command.
fn add_module(archive: &mut Archive, cache: &Cache, kernel: &Target, name: &str) -> Result<()> {
    let modules = kernel.image(cache).join("usr/lib/modules").join(&kernel.release);
    let mut folders = vec![modules];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == format!("{name}.ko.xz").as_str())
            {
                let unpacked = Command::new("xz").arg("-dc").arg(&path).output()?;
                let file = tempfile::NamedTempFile::new()?;
                fs::write(file.path(), unpacked.stdout)?;
                return archive.file(&format!("lib/needed-{name}.ko"), file.path());
            }
        }
    }
    bail!("the kernel's package has no module {name}")
}

fn busybox(cache: &Cache) -> Result<PathBuf> {
    let chroot = cache.chroot();
    ["bin/busybox", "usr/bin/busybox"]
        .into_iter()
        .map(|path| chroot.join(path))
        .find(|path: &PathBuf| Path::new(path).is_file())
        .with_context(|| format!("no busybox in {}", chroot.display()))
}

/// Lines of the kernel's log that must not be there. The module's own lines are not excused.
fn complaints(log: &[String]) -> Vec<&str> {
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
    log.iter()
        .map(String::as_str)
        .filter(|line| !line.contains("Command line") && !line.contains("command line"))
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .collect()
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
        let mut console = Console { mark: "vm-1", state: State::Booting, status: None };
        let shown: Vec<_> = [
            "boot text",
            "vm-1 command",
            "vm-2 status 0",
            "vm-1 status 3",
            "[ 0.1] log",
            "vm-1 over",
            "rest",
        ]
        .iter()
        .map(|line| match console.line(line) {
            Shown::Output => 'o',
            Shown::Log => 'l',
            Shown::Nothing => '-',
        })
        .collect();
        assert_eq!(shown, ['-', '-', 'o', '-', 'l', '-', '-']);
        assert_eq!(console.status, Some(3));
    }

    #[test]
    fn warnings_in_the_log_are_found_and_the_command_line_is_no_warning() {
        let log = [
            "[0.0] Command line: console=ttyS0 panic=-1",
            "[0.1] Kernel command line: panic=-1",
            "[0.2] rtp_mgr: loaded",
            "[0.3] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1",
        ]
        .map(String::from);
        assert_eq!(complaints(&log), [&log[3]]);
    }

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
