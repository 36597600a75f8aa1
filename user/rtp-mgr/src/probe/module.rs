//! Why the kernel engine is used, or what stands between this machine and using it.
//!
//! What lives here: facts read from files, and what follows from them. What does not: what the device
//! answers ([`crate::kernel::usable`]), and building or loading anything. `kernel/check.sh` asks the
//! same of a build directory.
//!
//! Facts are read below a root, so that tests bring their own machine, and decided on apart from
//! that. What stops the user first comes first. A module that answers has been built and loaded, so
//! nothing of that is looked at then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR, feature, ioctl};

use super::Finding;
use crate::device::DEVICE;
use crate::kernel::usable::{ABILITIES, MORE_STREAMS, Unusable, has_room, judge, loaded, streams};

/// The finding about the device itself.
pub(super) const DEVICE_FINDING: &str = "kernel-module";
/// The oldest kernel that the module can be built for.
const KERNEL_MIN: (u32, u32) = (7, 2);
/// Bit of CAP_SYS_MODULE in a set of capabilities.
const CAP_SYS_MODULE: u32 = 16;
/// The variable of the firmware that says whether Secure Boot is on: four bytes of attributes, then 1
/// or 0.
const SECURE_BOOT: &str =
    "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const GUIDE: &str = "docs/BUILD-DEPLOY-GUIDE.md";
const EMBEDDED: &str = "until then the embedded engine serves the same API";

/// Which engine a receive stream of the network gets with `Engine::Auto`, and why.
pub(super) fn choice(answer: &Result<ioctl::Version, Unusable>) -> (&'static str, String) {
    match answer {
        Err(unusable) => ("user", unusable.detail()),
        Ok(version) => match judge(version, feature::UDP_RECEIVE) {
            Ok(()) => ("kernel", loaded(version)),
            Err(unusable) => ("user", unusable.detail()),
        },
    }
}

/// Everything about the kernel engine, on `machine`, whose device gave this `answer`.
pub(super) fn findings(
    answer: &Result<ioctl::Version, Unusable>,
    machine: &Machine<'_>,
) -> Vec<Finding> {
    let findings = match answer {
        Ok(version) => answered(version),
        Err(unusable) if unusable.is_absent() || unusable.is_stale() => {
            absent(unusable, &Facts::gather(machine))
        }
        Err(unusable) => vec![of_device(unusable)],
    };
    findings.into_iter().map(|finding| Finding { engine: Some("kernel"), ..finding }).collect()
}

fn of_device(unusable: &Unusable) -> Finding {
    Finding::limited(DEVICE_FINDING, unusable.detail(), unusable.remedy())
}

/// What a module that answers can do.
fn answered(version: &ioctl::Version) -> Vec<Finding> {
    if let Err(unusable) = judge(version, 0) {
        return vec![of_device(&unusable)];
    }
    let (major, minor) = (version.abi_major, version.abi_minor);
    let detail = format!(
        "{}; its ABI version is {major}.{minor}, this program's {ABI_MAJOR}.{ABI_MINOR}",
        loaded(version)
    );
    let abilities = ABILITIES.into_iter().map(|(bit, what)| {
        let name = match bit {
            feature::UDP_RECEIVE => "kernel-receive",
            feature::UDP_TRANSMIT => "kernel-transmit",
            _ => "kernel-simulated",
        };
        match judge(version, bit) {
            Ok(()) => Finding::ok(name, format!("the module has: {what}")),
            Err(unusable) => Finding::limited(name, unusable.detail(), unusable.remedy()),
        }
    });
    let streams = match has_room(version) {
        true => Finding::ok("kernel-streams", streams(version)),
        false => Finding::limited("kernel-streams", streams(version), MORE_STREAMS),
    };
    let device = Finding::ok(DEVICE_FINDING, detail);
    std::iter::once(device).chain(abilities).chain([streams]).collect()
}

/// Where facts are read.
pub(super) struct Machine<'a> {
    /// The directory that stands for `/`.
    pub root: &'a Path,
    /// The running kernel, as `uname -r` says it.
    pub release: String,
    /// What the compiler says when asked for its version; `None`: there is none.
    pub rustc: &'a dyn Fn() -> Option<String>,
}

impl Machine<'_> {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    fn modules_folder(&self) -> PathBuf {
        Path::new("lib/modules").join(&self.release)
    }

    /// Where the module is, if it is installed for this kernel.
    fn installed(&self) -> Installed {
        let folder = self.modules_folder();
        let is_ours = |name: &str| name.starts_with("rtp_mgr.ko");
        let listed = self.read(folder.join("modules.dep")).is_some_and(|list| {
            let names = list.lines().filter_map(|line| line.split(':').next());
            names.filter_map(|path| path.rsplit('/').next()).any(is_ours)
        });
        if listed {
            return Installed::Yes;
        }
        let lies_in = |place: &str| {
            let entries = fs::read_dir(self.path(folder.join(place)));
            let mut names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
            names.any(|name| name.to_str().is_some_and(is_ours))
        };
        match ["updates", "updates/dkms", "extra"].into_iter().any(lies_in) {
            true => Installed::Unlisted,
            false => Installed::No,
        }
    }

    fn loading(&self) -> Loading {
        // Without /proc nothing follows from what is not in it.
        if self.has("proc/version") && !self.has("proc/modules") {
            return Loading::Impossible;
        }
        match self.read("proc/sys/kernel/modules_disabled") {
            Some(disabled) if disabled.trim() == "1" => Loading::Disabled,
            _ => Loading::Allowed,
        }
    }

    /// What shows that modules are another machine's business, the one around this container.
    fn container(&self) -> Option<&'static str> {
        let bounding = self.read("proc/self/status").and_then(|status| {
            let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
            u64::from_str_radix(set.trim(), 16).ok()
        });
        if bounding.is_some_and(|set| set >> CAP_SYS_MODULE & 1 == 0) {
            return Some("CAP_SYS_MODULE is not in its bounding set");
        }
        (!self.has("lib/modules")).then_some("there is no /lib/modules")
    }

    /// The configuration of the kernel and where it was found.
    fn configuration(&self) -> Option<(PathBuf, String)> {
        let folder = self.modules_folder();
        let texts = [
            folder.join("build/include/config/auto.conf"),
            Path::new("boot").join(format!("config-{}", self.release)),
            folder.join("config"),
        ];
        let text = texts.into_iter().find_map(|path| Some((path.clone(), self.read(&path)?)));
        let packed = PathBuf::from("proc/config.gz");
        text.or_else(|| unpack(&self.path(&packed)).map(|text| (packed, text)))
    }

    /// Why this kernel takes signed modules only, if it does.
    fn signature(&self) -> Option<String> {
        let lockdown = self.read("sys/kernel/security/lockdown").map(|modes| chosen(&modes));
        if let Some(mode) = lockdown.as_deref().filter(|mode| *mode != "none") {
            return Some(format!("lockdown is '{mode}'"));
        }
        let enforced = self.read("sys/module/module/parameters/sig_enforce");
        if enforced.is_some_and(|enforced| enforced.trim() == "Y") {
            return Some("module.sig_enforce is on".into());
        }
        // A kernel that tells its lockdown has decided what Secure Boot means to it.
        let secure_boot = fs::read(self.path(SECURE_BOOT)).ok();
        let on = secure_boot.is_some_and(|variable| variable.get(4) == Some(&1));
        (on && lockdown.is_none()).then(|| "Secure Boot is on".into())
    }

    fn build(&self) -> Build {
        let folder = self.modules_folder().join("build");
        if !self.has(folder.join("Makefile")) {
            return Build::NoHeaders;
        }
        let Some(config) = self.read(folder.join("include/config/auto.conf")) else {
            return Build::NotConfigured;
        };
        if !self.has(folder.join("rust/libkernel.rmeta")) {
            return Build::NoMetadata;
        }
        let Some(wanted) = compiler_of(&config) else { return Build::Possible };
        let found = (self.rustc)().as_deref().and_then(compiler_version).map(str::to_owned);
        match found.as_deref() == Some(wanted) {
            true => Build::Possible,
            false => Build::WrongCompiler { wanted: wanted.into(), found },
        }
    }

    /// Major number of the device, as long as the module is loaded.
    fn major(&self) -> Option<u32> {
        let devices = self.read("proc/devices")?;
        let line = devices.lines().find_map(|line| line.trim().strip_suffix(" rtp_mgr"))?;
        line.trim().parse().ok()
    }
}

/// Whether the module is installed for the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installed {
    No,
    /// It is there, and `modprobe` does not know of it.
    Unlisted,
    Yes,
}

/// Whether this kernel loads modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loading {
    Allowed,
    /// Until the next boot.
    Disabled,
    /// It was built without.
    Impossible,
}

/// Whether the module can be built for the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Build {
    Possible,
    NoHeaders,
    NotConfigured,
    NoMetadata,
    WrongCompiler { wanted: String, found: Option<String> },
}

/// What decides why there is no device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    release: String,
    /// The module is loaded: only its node is missing.
    loaded: bool,
    major: Option<u32>,
    installed: Installed,
    loading: Loading,
    container: Option<&'static str>,
    /// Whether the kernel was built with Rust, and what says so.
    rust: Option<(PathBuf, bool)>,
    build: Build,
    signature: Option<String>,
}

impl Facts {
    fn gather(machine: &Machine<'_>) -> Self {
        let rust = machine.configuration().map(|(path, config)| {
            (Path::new("/").join(path), config.lines().any(|line| line == "CONFIG_RUST=y"))
        });
        Self {
            release: machine.release.clone(),
            loaded: machine.has("sys/module/rtp_mgr"),
            major: machine.major(),
            installed: machine.installed(),
            loading: machine.loading(),
            container: machine.container(),
            rust,
            build: machine.build(),
            signature: machine.signature(),
        }
    }
}

/// Why there is no device.
fn absent(unusable: &Unusable, facts: &Facts) -> Vec<Finding> {
    if facts.loaded {
        return vec![node_missing(unusable, facts)];
    }
    let mut findings: Vec<_> = [
        loads_none(facts),
        too_old(facts),
        without_rust(facts),
        in_container(facts),
        disabled(facts),
        not_buildable(facts),
        unsigned(facts),
    ]
    .into_iter()
    .flatten()
    .collect();
    match unusable.is_stale() {
        // The node stands in the way of the right one.
        true => findings.insert(0, of_device(unusable)),
        false => findings.push(not_loaded(facts, !findings.is_empty())),
    }
    findings
}

/// The module is loaded and has no node here, or another device's.
fn node_missing(unusable: &Unusable, facts: &Facts) -> Finding {
    let (what, clear) = match unusable.is_stale() {
        true => ("is not its node", format!("sudo rm {DEVICE} && ")),
        false => ("is not there", String::new()),
    };
    let remedy = match (facts.container, facts.major) {
        (Some(_), _) => format!("pass the device into the container: --device {DEVICE}"),
        (None, Some(major)) => {
            format!("`{clear}sudo mknod -m 660 {DEVICE} c {major} 0`, or mount devtmpfs")
        }
        (None, None) => "mount devtmpfs on /dev".into(),
    };
    let detail = format!("the module rtp_mgr is loaded, but {DEVICE} {what}");
    Finding::limited(DEVICE_FINDING, detail, remedy)
}

fn loads_none(facts: &Facts) -> Option<Finding> {
    (facts.loading == Loading::Impossible).then(|| {
        Finding::missing(
            "kernel-modules",
            format!("the kernel {} loads no modules (CONFIG_MODULES)", facts.release),
            format!("run a kernel with CONFIG_MODULES=y and CONFIG_RUST=y; {EMBEDDED}"),
        )
    })
}

fn too_old(facts: &Facts) -> Option<Finding> {
    let (major, minor) = KERNEL_MIN;
    let old = series(&facts.release).is_some_and(|series| series < KERNEL_MIN);
    (old && facts.installed == Installed::No).then(|| {
        Finding::missing(
            "kernel-version",
            format!("the kernel {} is older than {major}.{minor}", facts.release),
            format!("run Linux {major}.{minor} or newer, built with CONFIG_RUST=y; {EMBEDDED}"),
        )
    })
}

fn without_rust(facts: &Facts) -> Option<Finding> {
    let (path, _) = facts.rust.as_ref().filter(|(_, rust)| !rust)?;
    (facts.installed == Installed::No).then(|| {
        Finding::missing(
            "kernel-rust",
            format!("the kernel is built without Rust: no CONFIG_RUST=y in {}", path.display()),
            format!(
                "run a kernel built with CONFIG_RUST=y ({GUIDE}, \"What it needs\"); {EMBEDDED}"
            ),
        )
    })
}

fn in_container(facts: &Facts) -> Option<Finding> {
    // A kernel without modules needs no folder for them.
    let evidence = facts.container.filter(|_| facts.loading != Loading::Impossible)?;
    Some(Finding::missing(
        "container",
        format!("modules cannot be loaded from here, as in a container: {evidence}"),
        format!("load the module on the host, and pass the device in: --device {DEVICE}"),
    ))
}

fn disabled(facts: &Facts) -> Option<Finding> {
    (facts.loading == Loading::Disabled).then(|| {
        Finding::missing(
            "kernel-modules",
            "loading modules is switched off until the next boot (kernel.modules_disabled is 1)",
            "restart, and load the module before whatever sets kernel.modules_disabled",
        )
    })
}

/// What the build directory lacks, where the module is not installed and this kernel could have it.
fn not_buildable(facts: &Facts) -> Option<Finding> {
    let moot = [loads_none(facts), too_old(facts), without_rust(facts), in_container(facts)];
    if facts.installed != Installed::No || moot.iter().any(Option::is_some) {
        return None;
    }
    let folder = format!("/lib/modules/{}/build", facts.release);
    match &facts.build {
        Build::Possible => None,
        Build::NoHeaders => Some(Finding::missing(
            "kernel-headers",
            format!("the headers of this kernel are not there: no {folder}/Makefile"),
            format!(
                "install them (linux-headers-{} or kernel-devel), or `make -C kernel KDIR=...`",
                facts.release
            ),
        )),
        Build::NotConfigured => Some(Finding::missing(
            "kernel-headers",
            format!("{folder} is not configured: no include/config/auto.conf"),
            format!("`make -C {folder} modules_prepare`, or install the headers of this kernel"),
        )),
        Build::NoMetadata => Some(Finding::missing(
            "rust-metadata",
            format!("the headers have no Rust metadata: no {folder}/rust/libkernel.rmeta"),
            format!("make it from the matching source: `make modules_prepare` ({GUIDE})"),
        )),
        Build::WrongCompiler { wanted, found } => Some(wrong_compiler(wanted, found.as_deref())),
    }
}

fn wrong_compiler(wanted: &str, found: Option<&str>) -> Finding {
    let found = found.map_or("there is none".into(), |found| format!("the one here is {found}"));
    Finding::missing(
        "rustc",
        format!("this kernel was built by rustc {wanted}, and {found}"),
        format!("install rustc {wanted} and name it: `make -C kernel RUSTC=...`"),
    )
}

fn unsigned(facts: &Facts) -> Option<Finding> {
    let why = facts.signature.as_ref()?;
    Some(Finding::missing(
        "module-signature",
        format!("this kernel takes signed modules only: {why}"),
        format!(
            "enrol a key with `mokutil --import`, sign rtp_mgr.ko with the kernel's scripts/sign-file \
             ({GUIDE}, \"Secure Boot and lockdown\")"
        ),
    ))
}

/// The last thing to do, after what is `left` to do before.
fn not_loaded(facts: &Facts, left: bool) -> Finding {
    let (state, remedy) = match facts.installed {
        Installed::No => {
            ("not installed for this kernel", "`sudo scripts/load.sh` builds and loads it".into())
        }
        Installed::Unlisted => (
            "installed, but modprobe does not know of it",
            format!("`sudo depmod {} && sudo modprobe rtp_mgr`", facts.release),
        ),
        Installed::Yes => ("installed and not loaded", "`sudo modprobe rtp_mgr`".to_owned()),
    };
    let detail = format!("{DEVICE} is not there: the module rtp_mgr is {state}");
    let remedy = if left { format!("once the above is done: {remedy}") } else { remedy };
    Finding::missing(DEVICE_FINDING, detail, remedy)
}

/// Major and minor number of a release such as `7.3.4+deb13-cloud-amd64`.
fn series(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The mode in brackets of `none [integrity] confidentiality`.
fn chosen(modes: &str) -> String {
    let mode = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    mode.map_or(modes, |(mode, _)| mode).trim().to_owned()
}

/// Version of the compiler in a configuration: its value is quoted or not, depending on the kernel.
fn compiler_of(config: &str) -> Option<&str> {
    let value = config.lines().find_map(|line| line.strip_prefix("CONFIG_RUSTC_VERSION_TEXT="))?;
    compiler_version(value.trim_matches('"'))
}

/// Version in `rustc 1.85.1 (4eb161250 2025-03-15)`.
fn compiler_version(text: &str) -> Option<&str> {
    text.strip_prefix("rustc ")?.split_whitespace().next()
}

/// The text of a packed file.
fn unpack(path: &Path) -> Option<String> {
    path.exists().then_some(())?;
    output(Command::new("gzip").arg("-dc").arg(path))
}

/// What the compiler that `make -C kernel` would take says of itself.
pub(super) fn rustc() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    output(Command::new(rustc).arg("--version"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()
}

#[cfg(test)]
mod tests;
