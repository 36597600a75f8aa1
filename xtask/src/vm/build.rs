//! Building what runs in the machine: the module, with the kernel's own compiler, and static
//! programs, with ours.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Test;
use super::cache::{Cache, require_root};
use super::prepare::quiet;
use super::suite::{Kernel, PLACE};
use crate::project::Project;

/// What of the checkout the module, and what is built with the kernel's C compiler, is made from.
const SOURCES: [&str; 3] = ["kernel", "ring/src", "include"];
const MODULE: &str = "rtp_mgr.ko";
/// The consumer's name in the machine.
pub const CONSUMER: &str = "c_consumer";
/// The name of the test of the project's scripts, and what of a checkout it finds where.
pub const SCRIPTS_TEST: &str = "scripts.sh";
/// The name of what runs the conformance suite on the kernel engine.
const CONFORMANCE: &str = "conformance.sh";
/// The name of the test of streams between network namespaces.
const NETWORK: &str = "network.sh";
/// The names of the comparison of both engines and of the soak.
const COMPARE: &str = "compare.sh";
const SOAK: &str = "soak.sh";
/// The name of the test of streams from and to FFmpeg and GStreamer.
pub const PEERS: &str = "peers.sh";
/// Those that wait for a network most of the time.
pub const NAMESPACES: [&str; 2] = [NETWORK, PEERS];
const SCRIPTS: [&str; 2] = ["scripts/load.sh", "scripts/unload.sh"];
const CHECKOUT: &str = "/root/rtp_mgr";

/// Builds the module. Warnings fail the build, and so does code that can panic.
/// Leaves it in `vm/RELEASE/` of the build directory.
pub fn module(cache: &Cache, kernel: &Kernel, project: &Project) -> Result<PathBuf> {
    let place = copy_sources(cache, kernel, &project.root, "build")?;
    make(cache, kernel, &place, &[])?;
    let folder = format!("{}/kernel", place.inside);
    let mut check = kernel.command(cache, "sh");
    check.args([format!("{folder}/panic-free.sh"), format!("{folder}/main.o")]);
    quiet(&mut check)?;
    // Debug information is most of it, and the machine loads it often.
    quiet(kernel.command(cache, "strip").args(["--strip-debug", &format!("{folder}/{MODULE}")]))?;
    to_target(&place.outside.join("kernel").join(MODULE), kernel, project, MODULE)
}

/// The kernel's lints on the module and on the example of a hardware source.
pub fn clippy(cache: &Cache, kernel: &Kernel, root: &Path) -> Result<()> {
    let place = copy_sources(cache, kernel, root, "clippy")?;
    // What is up to date is not looked at again, and its warnings would go unseen.
    let object = place.outside.join("kernel/main.o");
    if object.exists() {
        fs::remove_file(object)?;
    }
    make(cache, kernel, &place, &["CLIPPY=1", "RTP_MGR_EXAMPLE=1"])
}

/// A consumer written in C, static, to run in the machine.
pub fn consumer(cache: &Cache, kernel: &Kernel, project: &Project) -> Result<PathBuf> {
    let place = copy_sources(cache, kernel, &project.root, "build")?;
    let (inside, name) = (&place.inside, CONSUMER);
    let mut gcc = kernel.command(cache, "gcc");
    gcc.args(["-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]);
    gcc.arg(format!("-I{inside}/include"));
    gcc.args(["-o", &format!("{inside}/{name}"), &format!("{inside}/kernel/tests/c/consumer.c")]);
    quiet(&mut gcc)?;
    to_target(&place.outside.join(name), kernel, project, name)
}

/// The project's scripts and those that are tests, to run in the machine beside `module`.
pub fn scripts(project: &Project, module: &Path) -> Files {
    let place = |part: &str| format!("{}/{part}", CHECKOUT.trim_start_matches('/'));
    let mut files: Files =
        SCRIPTS.iter().map(|&script| (place(script), project.root.join(script))).collect();
    files.push((place("kernel/rtp_mgr.ko"), module.to_owned()));
    for test in [SCRIPTS_TEST, CONFORMANCE, NETWORK, PEERS, COMPARE, SOAK, "namespaces.sh"] {
        files.push((format!("bin/{test}"), project.root.join("kernel/tests").join(test)));
    }
    files
}

/// Takes what was built in the chroot to `vm/RELEASE/` of the build directory: whole or not at all, since
/// a machine may be starting with the one before.
fn to_target(built: &Path, kernel: &Kernel, project: &Project, name: &str) -> Result<PathBuf> {
    let folder = project.target.join("vm").join(&kernel.release);
    fs::create_dir_all(&folder)?;
    let (to, part) = (folder.join(name), folder.join(format!("{name}.part")));
    fs::copy(built, &part).with_context(|| format!("copy {}", built.display()))?;
    fs::rename(part, &to)?;
    Ok(to)
}

/// A copy of the sources in the chroot.
struct Place {
    outside: PathBuf,
    inside: String,
    /// Held while it is used: two builds in one place would spoil each other.
    _lock: File,
}

/// Copies what differs, so that make builds only what changed. One copy for each checkout.
fn copy_sources(cache: &Cache, kernel: &Kernel, root: &Path, purpose: &str) -> Result<Place> {
    require_root()?;
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let inside = format!("/{PLACE}/{purpose}-{}-{:016x}", kernel.release, hasher.finish());
    let outside = kernel.outside(cache, &inside);
    let lock = cache.lock(inside.rsplit('/').next().unwrap_or(&inside))?;
    for part in SOURCES {
        mirror(&root.join(part), &outside.join(part))?;
    }
    Ok(Place { outside, inside, _lock: lock })
}

/// Files that make or Kbuild leave beside the sources.
fn is_source(name: &str) -> bool {
    let source = [".rs", ".c", ".h", ".sh"].iter().any(|end| name.ends_with(end));
    (source && !name.ends_with(".mod.c")) || matches!(name, "Makefile" | "Kbuild")
}

/// Makes `to` hold the sources of `from`, without touching those that are the same.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            mirror(&entry.path(), &to.join(&name))?;
        } else if is_source(&name) {
            let content = fs::read(entry.path())?;
            if fs::read(to.join(&name)).ok().as_ref() != Some(&content) {
                fs::write(to.join(&name), content)?;
            }
            names.push(name);
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_source(&name) && !names.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn make(cache: &Cache, kernel: &Kernel, place: &Place, more: &[&str]) -> Result<()> {
    let mut make = kernel.make(cache)?;
    make.arg(format!("M={}/kernel", place.inside)).args(more).arg("modules");
    let done = make.stdin(Stdio::null()).output().context("run make in the chroot")?;
    let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if !done.status.success() {
        bail!("the module does not build:\n{text}");
    }
    let warned =
        text.lines().any(|line| line.contains("warning:") || line.starts_with("WARNING: modpost"));
    if warned {
        bail!("the module builds with warnings:\n{text}");
    }
    Ok(())
}

/// The profile of the programs that run in the machine.
const PROFILE: &str = "--profile=guest";

/// A file's path in the machine, and the file here.
type Files = Vec<(String, PathBuf)>;

/// Programs of the machine that are no test programs of cargo's but have tests, and how they are called.
const SUITES: [(&str, &[&str]); 7] = [
    (CONSUMER, &[]),
    (SCRIPTS_TEST, &[CHECKOUT]),
    (NETWORK, &[]),
    (PEERS, &[]),
    (CONFORMANCE, &[]),
    (COMPARE, &[]),
    (SOAK, &[]),
];

/// The programs, linked statically, and the tests among them in the order in which they run.
pub fn programs(project: &Project) -> Result<(Files, Vec<Test>)> {
    let mut files = Vec::new();
    let mut tests = Vec::new();
    for arguments in [
        &["build", PROFILE, "--package", "rtp-app", "--package", "conformance", "--bins"][..],
        &["test", PROFILE, "--no-run", "--package", "rtp-mgr-kernel-tests", "--test", "*"],
    ] {
        for (name, file, is_test) in cargo(project, arguments)? {
            if is_test {
                let arguments = vec!["--test-threads=1".into()];
                tests.push(Test { program: name.clone(), libtest: true, arguments });
            }
            files.push((format!("bin/{name}"), file));
        }
    }
    tests.sort_by(|one, other| one.program.cmp(&other.program));
    tests.extend(SUITES.map(|(program, arguments)| Test {
        program: program.into(),
        libtest: false,
        arguments: arguments.iter().map(|&word| word.into()).collect(),
    }));
    Ok((files, tests))
}

/// The program that measures in the machine, linked statically.
pub fn bench(project: &Project) -> Result<Files> {
    let arguments = ["build", "--release", "--package", "rtp-mgr-kernel-bench", "--bins"];
    let made = cargo(project, &arguments)?;
    Ok(made.into_iter().map(|(name, file, _)| (format!("bin/{name}"), file)).collect())
}

/// Runs cargo and tells the executables it made: name, file, whether it is a test.
fn cargo(project: &Project, arguments: &[&str]) -> Result<Vec<(String, PathBuf, bool)>> {
    let target = project.target.join("vm/programs");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(arguments)
        // With a target, build scripts and macros are not linked statically.
        .args(["--quiet", "--message-format", "json", "--target", &triple])
        .arg("--target-dir")
        .arg(target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo")
        .current_dir(&project.root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let done = cargo.output().context("run cargo")?;
    let text = String::from_utf8_lossy(&done.stdout);
    let messages: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !done.status.success() {
        for message in &messages {
            eprint!("{}", message["message"]["rendered"].as_str().unwrap_or_default());
        }
        bail!("{cargo:?} failed ({})", done.status);
    }
    Ok(messages.iter().filter_map(executable).collect())
}

fn executable(message: &serde_json::Value) -> Option<(String, PathBuf, bool)> {
    let file = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    let is_test = message["profile"]["test"].as_bool()?;
    let kind = message["target"]["kind"][0].as_str()?;
    // The unit tests of a library or program run outside.
    let wanted = if is_test { kind == "test" } else { kind == "bin" };
    wanted.then(|| (name.to_owned(), file.into(), is_test))
}
