//! The toolchain and image of a stock kernel with Rust, from the distribution's packages.
//!
//! The header packages lack the Rust metadata. The same configuration, built with the same compilers
//! from the matching source package, gives it back with the same symbol hashes, so a module built
//! against it loads in the distribution's own kernel.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::cache::{Cache, require_root};
use super::mirror;
use super::suite::{self, Kernel, PLACE};

/// Why this machine cannot run the virtual machine, where that is nobody's mistake.
#[derive(Debug)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine cannot make the virtual machine")
    }
}

impl Kernel {
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

    /// The kernel's configuration as the headers have it, as the chroot sees it.
    fn configuration(&self) -> String {
        format!("/usr/src/linux-headers-{}/.config", self.release)
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

    /// A file of the chroot, from outside.
    pub fn outside(&self, cache: &Cache, inside: &str) -> PathBuf {
        self.suite.root(cache).join(inside.trim_start_matches('/'))
    }

    /// `program` in the chroot of the kernel's compilers.
    pub fn command(&self, cache: &Cache, program: &str) -> Command {
        self.suite.command(cache, program)
    }

    /// `make` of this kernel's build system, in the chroot, with the C compiler that built the kernel.
    pub fn make(&self, cache: &Cache) -> Result<Command> {
        let mut make = self.command(cache, "make");
        make.arg("-C").arg(self.source());
        make.arg(format!("O={}", self.output())).arg(format!("LOCALVERSION={}", self.suffix()));
        let compiler = self.setting(cache, "CONFIG_CC_VERSION_TEXT")?;
        let compiler = compiler.split(' ').next().unwrap_or_default();
        // The usual compiler of the release needs no name, and a name would be part of the
        // configuration.
        if self.default_compiler(cache)? != self.version_of(cache, compiler)? {
            make.arg(format!("CC={compiler}")).arg(format!("HOSTCC={compiler}"));
        }
        Ok(make)
    }

    fn default_compiler(&self, cache: &Cache) -> Result<String> {
        self.version_of(cache, "gcc")
    }

    fn version_of(&self, cache: &Cache, compiler: &str) -> Result<String> {
        output(self.command(cache, compiler).arg("-dumpfullversion"))
    }

    /// A text of the kernel's configuration.
    fn setting(&self, cache: &Cache, name: &str) -> Result<String> {
        let path = self.outside(cache, &self.configuration());
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(value
            .with_context(|| format!("{}: no {name}", path.display()))?
            .trim_matches('"')
            .into())
    }
}

/// Prepares the kernel of `series`, or the newest, of `suite`, or of the first that has it. Quick when
/// that was done before.
pub fn run(cache: &Cache, series: Option<&str>, suite: Option<&str>) -> Result<Kernel> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let reason =
            format!("the kernels are for Linux on x86_64, and this is {}", std::env::consts::ARCH);
        return Err(anyhow!(reason).context(Unavailable));
    }
    require_root().context(Unavailable)?;
    host_packages().context(Unavailable)?;
    let kernel = suite::choose(cache, series, suite).context(Unavailable)?;
    let release = &kernel.release;
    kernel.suite.prepare(cache).context(Unavailable)?;
    cache.once(&format!("packages-{release}"), || packages(cache, &kernel)).context(Unavailable)?;
    cache.once(&format!("metadata-{release}"), || metadata(cache, &kernel))?;
    Ok(kernel)
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
    eprintln!("installing {list}");
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

/// Headers and source installed in the chroot, image and modules unpacked beside it.
fn packages(cache: &Cache, kernel: &Kernel) -> Result<()> {
    require_root()?;
    let Kernel { suite, series, release } = kernel;
    suite.update(cache)?;
    let headers = format!("linux-headers-{release}");
    suite.install(cache, &[&headers, &format!("linux-source-{series}")])?;
    let place = kernel.outside(cache, &format!("{PLACE}/packages"));
    fs::create_dir_all(&place)?;
    // Which of the three a series splits its image into differs; one of them has the image.
    let mut wanted = Vec::new();
    for part in ["image", "binary", "modules"] {
        let package = format!("linux-{part}-{release}");
        if suite.version(cache, &package)?.is_some() {
            wanted.push(package);
        }
    }
    let script = format!("cd /{PLACE}/packages && apt-get download -qq \"$@\"");
    quiet(kernel.command(cache, "sh").args(["-c", &script, "sh"]).args(&wanted))?;
    let image = kernel.image(cache);
    fs::create_dir_all(&image)?;
    for entry in fs::read_dir(&place)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if wanted.iter().any(|package| name.starts_with(&format!("{package}_"))) {
            quiet(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&image))?;
            fs::remove_file(&path)?;
        }
    }
    kernel.vmlinuz(cache).map(drop)
}

/// `make modules_prepare` with the headers' configuration.
fn metadata(cache: &Cache, kernel: &Kernel) -> Result<()> {
    require_root()?;
    let built_by = kernel.setting(cache, "CONFIG_RUSTC_VERSION_TEXT")?;
    let here = output(kernel.command(cache, "rustc").arg("--version"))?;
    if built_by != here.trim() {
        let (release, suite, here) = (&kernel.release, kernel.suite.kernels, here.trim());
        bail!(
            anyhow!("{release} was built by {built_by}, and {suite} has {here}")
                .context(Unavailable)
        );
    }
    let (source, out) = (kernel.source(), kernel.output());
    let unpack = format!(
        "mkdir -p {source} {out} && tar -xJf /usr/src/linux-source-{}.tar.xz -C {source} \
         --strip-components=1 && cp {} {out}/.config",
        kernel.series,
        kernel.configuration()
    );
    quiet(kernel.command(cache, "sh").args(["-ec", &unpack]))?;
    quiet(kernel.make(cache)?.arg("olddefconfig"))?;
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    quiet(kernel.make(cache)?.arg(format!("-j{jobs}")).arg("modules_prepare"))?;
    let symbols =
        format!("cp /usr/src/linux-headers-{}/Module.symvers {out}/Module.symvers", kernel.release);
    quiet(kernel.command(cache, "sh").args(["-ec", &symbols]))?;
    let built =
        fs::read_to_string(kernel.outside(cache, &out).join("include/config/kernel.release"))?;
    if built.trim() != kernel.release {
        bail!("the metadata was built for {}, not for {}", built.trim(), kernel.release);
    }
    Ok(())
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
    fn the_suffix_is_what_the_distribution_added() {
        let kernel = Kernel {
            suite: suite::SUITES[0],
            series: "7.3".into(),
            release: "7.3.4+deb13-cloud-amd64".into(),
        };
        assert_eq!(kernel.suffix(), "+deb13-cloud-amd64");
    }
}
