//! Which suites of Debian have kernels that the module supports, and the chroot of each suite's compilers.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache::{Cache, require_root};
use super::mirror;
use super::prepare::{output, quiet};

/// First series whose Rust API the module is written for.
const OLDEST: (u32, u32) = (7, 2);
/// Flavour of the distribution's kernel: small, and complete for a virtual machine.
pub const FLAVOUR: &str = "cloud-amd64";
/// What a chroot needs to build kernels and modules, and to boot.
const PACKAGES: &str = "gcc,make,rustc,rust-src,rust-clippy,bindgen,libc6-dev,flex,bison,bc,\
                        libelf-dev,libssl-dev,xz-utils,kmod,python3-minimal,ca-certificates,\
                        busybox-static";
/// Where our things are in a chroot.
pub const PLACE: &str = "rtp-manager";

/// A release of Debian with its compilers, and the suite that has kernels built by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    /// The release that the compilers come from.
    release: &'static str,
    /// The suite that the kernels come from.
    pub kernels: &'static str,
    chroot: &'static str,
}

/// In the order in which they are asked for a kernel.
pub const SUITES: [Suite; 2] = [
    Suite { release: "trixie", kernels: "trixie-backports", chroot: "chroot" },
    Suite { release: "testing", kernels: "testing", chroot: "chroot-testing" },
];

/// A kernel of the distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub suite: Suite,
    /// Such as 7.3.
    pub series: String,
    /// What `uname -r` says.
    pub release: String,
}

impl Suite {
    /// The suite of that name.
    fn named(name: &str) -> Result<Self> {
        match SUITES.iter().find(|suite| suite.kernels == name) {
            Some(suite) => Ok(*suite),
            None => bail!(
                "--suite {name}: no such suite; accepted: {}",
                SUITES.map(|suite| suite.kernels).join(", ")
            ),
        }
    }

    /// The chroot.
    pub fn root(&self, cache: &Cache) -> PathBuf {
        cache.path(self.chroot)
    }

    /// `program` in the chroot, at low priority: it shares the machine. The chroot's `/proc`, which the
    /// kernel's tools want, is in a mount namespace that ends with the program.
    pub fn command(&self, cache: &Cache, program: &str) -> Command {
        const RUN: &str = "mount -t proc proc /proc && exec \"$0\" \"$@\"";
        let mut command = Command::new("nice");
        command.args(["unshare", "--mount", "chroot"]).arg(self.root(cache));
        command.args(["sh", "-c", RUN, program]);
        command.env_clear().env("LC_ALL", "C").env("HOME", "/root").stdin(Stdio::null());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Makes the chroot, once.
    pub fn prepare(&self, cache: &Cache) -> Result<()> {
        cache.once(self.chroot, || self.bootstrap(cache))
    }

    fn bootstrap(&self, cache: &Cache) -> Result<()> {
        require_root()?;
        let mirror = mirror::debian()?;
        let partial = cache.path(format!("{}.partial", self.chroot));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        let mut debootstrap = Command::new("debootstrap");
        debootstrap
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), self.release])
            .arg(&partial)
            .arg(&mirror);
        quiet(&mut debootstrap)?;
        let apt = partial.join("etc/apt");
        fs::write(apt.join("apt.conf.d/00host"), mirror::transport_settings()?)?;
        if self.kernels != self.release {
            let line = format!("deb {mirror} {} main\n", self.kernels);
            fs::write(apt.join("sources.list.d/backports.list"), line)?;
        }
        fs::create_dir_all(partial.join(PLACE).join("packages"))?;
        let whole = self.root(cache);
        if whole.exists() {
            fs::remove_dir_all(&whole)?;
        }
        fs::rename(partial, whole)?;
        self.update(cache)
    }

    /// Reads the mirror's lists again.
    pub fn update(&self, cache: &Cache) -> Result<()> {
        quiet(self.command(cache, "apt-get").args(PATIENT).args(["update", "-qq"]))
    }

    /// Installs packages, from the suite of the kernels where that has them.
    pub fn install(&self, cache: &Cache, packages: &[&str]) -> Result<()> {
        let mut install = self.command(cache, "apt-get");
        install.args(PATIENT).args(["install", "--yes", "-qq", "--no-install-recommends"]);
        quiet(install.args(["-t", self.kernels]).args(packages))?;
        quiet(self.command(cache, "apt-get").arg("clean"))
    }

    /// Version of a package here, if it has it.
    pub fn version(&self, cache: &Cache, package: &str) -> Result<Option<String>> {
        let text = output(self.command(cache, "apt-cache").args(["madison", package]))?;
        Ok(versions(&text, self.kernels).next().map(str::to_owned))
    }
}

/// A download is tried again, and a mirror that lags behind is good enough: its lists are signed all the
/// same.
const PATIENT: [&str; 4] = ["-o", "Acquire::Retries=3", "-o", "Acquire::Check-Valid-Until=false"];

/// What `apt-cache madison` says that a suite has, newest first: lines of
/// `package | version | address suite/component architecture Packages`.
fn versions<'a>(madison: &'a str, suite: &'a str) -> impl Iterator<Item = &'a str> {
    madison.lines().filter_map(move |line| {
        let mut columns = line.split('|').map(str::trim);
        let (_, version, place) = (columns.next()?, columns.next()?, columns.next()?);
        let (found, _) = place.split(' ').nth(1)?.split_once('/')?;
        (found == suite).then_some(version)
    })
}

/// The kernel that was chosen before, or the newest whose headers and source a suite both has.
pub fn choose(cache: &Cache, series: Option<&str>, suite: Option<&str>) -> Result<Kernel> {
    let asked = [series.unwrap_or("newest"), suite.unwrap_or("any")].join("-");
    let kept = cache.path(format!("stamps/choice-{asked}"));
    if let Some(kernel) = fs::read_to_string(&kept).ok().as_deref().and_then(remembered) {
        return Ok(kernel);
    }
    let suites = match suite {
        Some(name) => vec![Suite::named(name)?],
        None => SUITES.to_vec(),
    };
    // Whatever suite it asks about, the one who asks is the apt of the first chroot.
    SUITES[0].prepare(cache)?;
    let _lock = cache.lock("prepare")?;
    let mut seen = Vec::new();
    for suite in suites {
        let lists = Lists::read(cache, suite)?;
        let candidates = lists.kernels(cache)?;
        let wanted = |(found, _): &&(String, String)| series.is_none_or(|series| series == found);
        if let Some((series, release)) = candidates.iter().find(wanted) {
            fs::write(kept, format!("{} {series} {release}\n", suite.kernels))?;
            return Ok(Kernel { suite, series: series.clone(), release: release.clone() });
        }
        seen.extend(
            candidates.iter().map(|(_, release)| format!("{release} in {}", suite.kernels)),
        );
    }
    bail!(
        "--kernel {}: the mirror has no {FLAVOUR} kernel of this series with headers and source; it \
         has {} (of the series {}.{} and newer)",
        series.unwrap_or("(any)"),
        if seen.is_empty() { "none".into() } else { seen.join(", ") },
        OLDEST.0,
        OLDEST.1
    )
}

fn remembered(text: &str) -> Option<Kernel> {
    let mut words = text.split_whitespace();
    let (suite, series, release) = (words.next()?, words.next()?, words.next()?);
    Some(Kernel {
        suite: Suite::named(suite).ok()?,
        series: series.into(),
        release: release.into(),
    })
}

/// A suite's package lists, apart from those of the chroot that reads them.
struct Lists {
    suite: Suite,
    options: Vec<String>,
}

impl Lists {
    fn read(cache: &Cache, suite: Suite) -> Result<Self> {
        let inside = format!("/{PLACE}/lists-{}", suite.kernels);
        let outside = SUITES[0].root(cache).join(inside.trim_start_matches('/'));
        fs::create_dir_all(outside.join("lists/partial"))?;
        let source = format!("deb {} {} main\n", mirror::debian()?, suite.kernels);
        fs::write(outside.join("sources.list"), source)?;
        let options = [
            format!("Dir::Etc::SourceList={inside}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={inside}/lists"),
            "Dir::Cache::PkgCache=".into(),
            "Dir::Cache::SrcPkgCache=".into(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let lists = Self { suite, options };
        let mut update = SUITES[0].command(cache, "apt-get");
        quiet(update.args(&lists.options).args(PATIENT).args(["update", "-qq"]))
            .with_context(|| format!("read what {} has", suite.kernels))?;
        Ok(lists)
    }

    fn ask(&self, cache: &Cache, question: &[&str]) -> Result<String> {
        output(SUITES[0].command(cache, "apt-cache").args(&self.options).args(question))
    }

    /// Series and release of each kernel that the module supports and whose headers have the version of
    /// the series' source package, newest first.
    fn kernels(&self, cache: &Cache) -> Result<Vec<(String, String)>> {
        let names = self.ask(cache, &["pkgnames", "linux-source-"])?;
        let mut series: Vec<_> = names.lines().filter_map(series_of).collect();
        series.sort_unstable();
        let mut kernels = Vec::new();
        for (major, minor) in series.into_iter().rev() {
            let series = format!("{major}.{minor}");
            let version = self.newest(cache, &format!("linux-source-{series}"))?;
            let headers = self.ask(cache, &["pkgnames", &format!("linux-headers-{series}.")])?;
            for package in headers.lines().filter(|name| name.ends_with(FLAVOUR)) {
                if version.is_some() && self.newest(cache, package)? == version {
                    let release = package.trim_start_matches("linux-headers-");
                    kernels.push((series.clone(), release.to_owned()));
                }
            }
        }
        Ok(kernels)
    }

    fn newest(&self, cache: &Cache, package: &str) -> Result<Option<String>> {
        let text = self.ask(cache, &["madison", package])?;
        Ok(versions(&text, self.suite.kernels).next().map(str::to_owned))
    }
}

/// The series that a source package is of, when the module supports it.
fn series_of(package: &str) -> Option<(u32, u32)> {
    let (major, minor) = package.strip_prefix("linux-source-")?.split_once('.')?;
    let series = (major.parse().ok()?, minor.parse().ok()?);
    (series >= OLDEST).then_some(series)
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
    fn versions_of_other_suites_are_not_taken() {
        let madison = "linux-source-7.2 | 7.2.13-1 | http://m.example/debian unstable/main amd64 Packages\n\
                       linux-source-7.2 | 7.2.12-1 | http://m.example/debian testing/main amd64 Packages\n";
        assert_eq!(versions(madison, "testing").collect::<Vec<_>>(), ["7.2.12-1"]);
        assert_eq!(versions(madison, "test").count(), 0);
    }

    #[test]
    fn a_choice_is_remembered_with_its_suite() {
        let kernel = remembered("testing 7.2 7.2.12+deb14-cloud-amd64\n").unwrap();
        assert_eq!((kernel.suite, kernel.series.as_str()), (SUITES[1], "7.2"));
        assert_eq!(remembered("7.3 7.3.4+deb13-cloud-amd64"), None);
    }

    #[test]
    fn an_unknown_suite_is_refused_with_those_there_are() {
        let error = Suite::named("sid").unwrap_err().to_string();
        assert!(error.contains("--suite sid") && error.contains("trixie-backports"), "{error}");
    }
}
