//! The toolchain and image of a stock kernel with Rust, from the distribution's packages.
//!
//! The header packages lack the Rust metadata. The same configuration, built with the same compilers
//! from the matching source package, gives it back with the same symbol hashes, so a module built
//! against it loads in the distribution's own kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache::{Cache, require_root};
use super::mirror;

/// First series whose Rust API the module is written for.
const OLDEST: (u32, u32) = (7, 2);
/// Flavour of the distribution's kernel: small, and complete for a virtual machine.
const FLAVOUR: &str = "cloud-amd64";
/// What the chroot needs to build kernels and modules, and to boot.
const PACKAGES: &str = "gcc,make,rustc,rust-src,rust-clippy,bindgen,libc6-dev,flex,bison,bc,\
                        libelf-dev,libssl-dev,xz-utils,kmod,python3-minimal,ca-certificates,\
                        busybox-static";
/// Where things are in the chroot.
const PLACE: &str = "rtp-manager";

/// A kernel of the distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Such as 7.3.
    pub series: String,
    /// What `uname -r` says.
    pub release: String,
}

impl Target {
    /// What the distribution added to the version.
    fn suffix(&self) -> &str {
        self.release.find('+').map_or("", |at| &self.release[at..])
    }

    /// Build directory of the kernel, as the chroot sees it.
    pub fn output(&self) -> String {
        format!("/{PLACE}/out-{}", self.release)
    }

    /// Source of the kernel, as the chroot sees it.
    fn source(&self) -> String {
        format!("/{PLACE}/source-{}", self.release)
    }

    /// The unpacked image and modules.
    pub fn image(&self, cache: &Cache) -> PathBuf {
        cache.path(format!("image-{}", self.release))
    }

    /// The kernel to boot.
    pub fn vmlinuz(&self, cache: &Cache) -> Result<PathBuf> {
        let image = self.image(cache);
        let inside = image.join("usr/lib/modules").join(&self.release).join("vmlinuz");
        let boot = image.join("boot").join(format!("vmlinuz-{}", self.release));
        [inside, boot]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("no vmlinuz in {}", image.display()))
    }

    /// `make` of this kernel's build system, in the chroot.
    pub fn make(&self, cache: &Cache) -> Command {
        let mut make = in_chroot(cache, "make");
        make.arg("-C").arg(self.source());
        make.arg(format!("O={}", self.output())).arg(format!("LOCALVERSION={}", self.suffix()));
        make
    }
}

/// Prepares the kernel of `series`, or the newest. Quick when that was done before.
pub fn run(cache: &Cache, series: Option<&str>) -> Result<Target> {
    host_packages()?;
    cache.once("chroot", || chroot(cache))?;
    let target = choose(cache, series)?;
    cache.once(&format!("packages-{}", target.release), || packages(cache, &target))?;
    cache.once(&format!("metadata-{}", target.release), || metadata(cache, &target))?;
    Ok(target)
}

/// Installs what this machine lacks, where that may be done.
fn host_packages() -> Result<()> {
    const NEEDS: [(&str, &str); 2] =
        [("debootstrap", "debootstrap"), ("qemu-system-x86_64", "qemu-system-x86")];
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !mirror::debian_like() || !rustix::process::geteuid().is_root() {
        bail!(
            "missing (by the names of Debian's packages): {list}; install what has them here, or \
             run this as root on Debian"
        );
    }
    println!("installing {list}");
    let mut update = Command::new("apt-get");
    update.args(["-o", "DPkg::Lock::Timeout=300", "update", "-qq"]);
    quiet(&mut update)?;
    let mut install = Command::new("apt-get");
    install
        .args(["-o", "DPkg::Lock::Timeout=300", "install", "--yes", "-qq"])
        .arg("--no-install-recommends")
        .args(missing)
        .env("DEBIAN_FRONTEND", "noninteractive");
    quiet(&mut install)
}

fn chroot(cache: &Cache) -> Result<()> {
    require_root()?;
    let mirror = mirror::debian()?;
    let partial = cache.path("chroot.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), mirror::CODENAME])
        .arg(&partial)
        .arg(&mirror);
    quiet(&mut debootstrap)?;
    let apt = partial.join("etc/apt");
    fs::write(apt.join("apt.conf.d/00host"), mirror::transport_settings()?)?;
    fs::write(
        apt.join("sources.list.d/backports.list"),
        format!("deb {mirror} {}-backports main\n", mirror::CODENAME),
    )?;
    fs::create_dir_all(partial.join(PLACE).join("packages"))?;
    let whole = cache.chroot();
    if whole.exists() {
        fs::remove_dir_all(&whole)?;
    }
    fs::rename(partial, whole)?;
    quiet(in_chroot(cache, "apt-get").args(["update", "-qq"]))
}

/// The kernel that was chosen before, or the newest whose headers and source are both there.
fn choose(cache: &Cache, series: Option<&str>) -> Result<Target> {
    let kept = cache.path(format!("stamps/kernel-{}", series.unwrap_or("newest")));
    let text = fs::read_to_string(&kept).unwrap_or_default();
    if let Some((series, release)) = text.split_once(' ') {
        return Ok(Target { series: series.into(), release: release.trim().into() });
    }
    let names = output(in_chroot(cache, "apt-cache").arg("pkgnames").arg("linux-source-"))?;
    let mut candidates: Vec<_> = names.lines().filter_map(series_of).collect();
    candidates.sort_unstable();
    if let Some(wanted) = series {
        candidates.retain(|(major, minor)| format!("{major}.{minor}") == wanted);
    }
    while let Some((major, minor)) = candidates.pop() {
        let series = format!("{major}.{minor}");
        if let Some(release) = release_of(cache, &series)? {
            fs::write(kept, format!("{series} {release}\n"))?;
            return Ok(Target { series, release });
        }
    }
    bail!(
        "the mirror has no {} kernel of series {} with headers and source in {}-backports; \
         {}.{} or newer is needed",
        FLAVOUR,
        series.unwrap_or("(any)"),
        mirror::CODENAME,
        OLDEST.0,
        OLDEST.1
    )
}

/// The series that a source package is of, when the module supports it.
fn series_of(package: &str) -> Option<(u32, u32)> {
    let (major, minor) = package.strip_prefix("linux-source-")?.split_once('.')?;
    let series = (major.parse().ok()?, minor.parse().ok()?);
    (series >= OLDEST).then_some(series)
}

/// The release whose headers have the version of the series' source package.
fn release_of(cache: &Cache, series: &str) -> Result<Option<String>> {
    let version = newest_version(cache, &format!("linux-source-{series}"))?;
    let prefix = format!("linux-headers-{series}.");
    let names = output(in_chroot(cache, "apt-cache").args(["pkgnames", &prefix]))?;
    for package in names.lines().filter(|name| name.ends_with(FLAVOUR)) {
        if version.is_some() && newest_version(cache, package)? == version {
            return Ok(package.strip_prefix("linux-headers-").map(str::to_owned));
        }
    }
    Ok(None)
}

fn newest_version(cache: &Cache, package: &str) -> Result<Option<String>> {
    let text = output(in_chroot(cache, "apt-cache").args(["show", "--no-all-versions", package]))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned))
}

/// Headers and source installed in the chroot, image and modules unpacked beside it.
fn packages(cache: &Cache, target: &Target) -> Result<()> {
    require_root()?;
    let Target { series, release } = target;
    let backports = format!("{}-backports", mirror::CODENAME);
    quiet(
        in_chroot(cache, "apt-get")
            .args(["install", "--yes", "-qq", "--no-install-recommends", "-t", &backports])
            .args([format!("linux-headers-{release}"), format!("linux-source-{series}")])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let place = cache.chroot().join(PLACE).join("packages");
    fs::create_dir_all(&place)?;
    let all = [
        format!("linux-image-{release}"),
        format!("linux-binary-{release}"),
        format!("linux-modules-{release}"),
    ];
    // Which of the three a series splits its image into differs; one of them has the image.
    let has = |package: &&String| newest_version(cache, package).is_ok_and(|found| found.is_some());
    let wanted: Vec<_> = all.iter().filter(has).collect();
    let script = format!("cd /{PLACE}/packages && apt-get download -qq \"$@\"");
    quiet(in_chroot(cache, "sh").args(["-c", &script, "sh"]).args(&wanted))?;
    let image = target.image(cache);
    fs::create_dir_all(&image)?;
    for entry in fs::read_dir(&place)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if wanted.iter().any(|package| name.starts_with(&format!("{package}_"))) {
            quiet(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&image))?;
        }
    }
    target.vmlinuz(cache).map(drop)
}

/// `make modules_prepare` with the headers' configuration.
fn metadata(cache: &Cache, target: &Target) -> Result<()> {
    require_root()?;
    let (source, out) = (target.source(), target.output());
    let headers = format!("/usr/src/linux-headers-{}", target.release);
    let unpack = format!(
        "mkdir -p {source} {out} && tar -xJf /usr/src/linux-source-{}.tar.xz -C {source} \
         --strip-components=1 && cp {headers}/.config {out}/.config",
        target.series
    );
    quiet(in_chroot(cache, "sh").args(["-ec", &unpack]))?;
    quiet(target.make(cache).arg("olddefconfig"))?;
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    quiet(target.make(cache).arg(format!("-j{jobs}")).arg("modules_prepare"))?;
    let copy = format!("cp {headers}/Module.symvers {out}/Module.symvers");
    quiet(in_chroot(cache, "sh").args(["-ec", &copy]))?;
    let built = fs::read_to_string(
        cache.chroot().join(out.trim_start_matches('/')).join("include/config/kernel.release"),
    )?;
    if built.trim() != target.release {
        bail!("the metadata was built for {}, not for {}", built.trim(), target.release);
    }
    Ok(())
}

/// `program` in the chroot, at low priority: it shares the machine. The chroot's `/proc`, which the
/// kernel's tools want, is in a mount namespace that ends with the program.
pub fn in_chroot(cache: &Cache, program: &str) -> Command {
    const RUN: &str = "mount -t proc proc /proc && exec \"$0\" \"$@\"";
    let mut command = Command::new("nice");
    command.args(["unshare", "--mount", "chroot"]).arg(cache.chroot());
    command.args(["sh", "-c", RUN, program]);
    command.env_clear().env("LC_ALL", "C").env("HOME", "/root").stdin(Stdio::null());
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs a command; its output is shown only when it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", command.get_program().to_string_lossy()))?;
    if !done.status.success() {
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!("{command:?} failed ({}):\n{last}", done.status);
    }
    Ok(())
}

/// What a command printed.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", command.get_program().to_string_lossy()))?;
    if !done.status.success() {
        bail!("{command:?} failed ({})", done.status);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Where a program is, also for users whose path lacks the administrator's.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| Path::new(file).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_that_the_module_supports_are_recognised() {
        assert_eq!(series_of("linux-source-7.3"), Some((7, 3)));
        assert_eq!(series_of("linux-source-7.10"), Some((7, 10)));
        assert_eq!(series_of("linux-source-6.12"), None);
        assert_eq!(series_of("linux-source-7.1"), None);
        assert_eq!(series_of("linux-source"), None);
    }

    #[test]
    fn the_suffix_is_what_the_distribution_added() {
        let target = Target { series: "7.3".into(), release: "7.3.4+deb13-cloud-amd64".into() };
        assert_eq!(target.suffix(), "+deb13-cloud-amd64");
    }
}
