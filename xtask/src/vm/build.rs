//! Building what runs in the machine: the module, with the kernel's own compiler, and static
//! programs, with ours.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache::{Cache, require_root};
use super::prepare::{Target, in_chroot, quiet};

/// What of the checkout the module is built from.
const SOURCES: [&str; 2] = ["kernel", "ring/src"];
const MODULE: &str = "rtp_mgr.ko";

/// Builds the module. Warnings fail the build, and so does code that can panic.
/// Leaves it in `vm/RELEASE/` of the build directory.
pub fn module(cache: &Cache, kernel: &Target, root: &Path, target: &Path) -> Result<PathBuf> {
    let place = copy_sources(cache, kernel, root, "build")?;
    make(cache, kernel, &place, &[])?;
    let folder = format!("{}/kernel", place.inside);
    let mut check = in_chroot(cache, "sh");
    check.args([format!("{folder}/panic-free.sh"), format!("{folder}/main.o")]);
    quiet(&mut check)?;
    // Debug information is most of it, and the machine loads it often.
    quiet(in_chroot(cache, "strip").args(["--strip-debug", &format!("{folder}/{MODULE}")]))?;
    let built = place.outside.join("kernel").join(MODULE);
    let to = target.join("vm").join(&kernel.release);
    fs::create_dir_all(&to)?;
    let to = to.join(MODULE);
    fs::copy(&built, &to).with_context(|| format!("copy {}", built.display()))?;
    Ok(to)
}

/// The kernel's lints on the module.
pub fn clippy(cache: &Cache, kernel: &Target, root: &Path) -> Result<()> {
    let place = copy_sources(cache, kernel, root, "clippy")?;
    // What is up to date is not looked at again, and its warnings would go unseen.
    let object = place.outside.join("kernel/main.o");
    if object.exists() {
        fs::remove_file(object)?;
    }
    make(cache, kernel, &place, &["CLIPPY=1"])
}

/// A copy of the sources in the chroot.
struct Place {
    outside: PathBuf,
    inside: String,
}

/// Copies what differs, so that make builds only what changed. One copy for each checkout.
fn copy_sources(cache: &Cache, kernel: &Target, root: &Path, purpose: &str) -> Result<Place> {
    require_root()?;
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let inside = format!("/rtp-manager/{purpose}-{}-{:016x}", kernel.release, hasher.finish());
    let outside = cache.chroot().join(inside.trim_start_matches('/'));
    for part in SOURCES {
        mirror(&root.join(part), &outside.join(part))?;
    }
    Ok(Place { outside, inside })
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

fn make(cache: &Cache, kernel: &Target, place: &Place, more: &[&str]) -> Result<()> {
    let mut make = kernel.make(cache);
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

/// A program's name in the machine, and its file here.
type Programs = Vec<(String, PathBuf)>;

/// The programs, linked statically: the name and file of each, and which of them are tests.
pub fn programs(root: &Path, target: &Path) -> Result<(Programs, Vec<String>)> {
    let target = target.join("vm/programs");
    let mut programs = Vec::new();
    let mut tests = Vec::new();
    for arguments in [
        &["build", "--package", "rtp-app"][..],
        &["test", "--no-run", "--package", "rtp-mgr-kernel-tests", "--test", "*"],
    ] {
        for (name, file, is_test) in cargo(root, &target, arguments)? {
            if is_test {
                tests.push(name.clone());
            }
            programs.push((name, file));
        }
    }
    tests.sort();
    Ok((programs, tests))
}

/// Runs cargo and tells the executables it made: name, file, whether it is a test.
fn cargo(root: &Path, target: &Path, arguments: &[&str]) -> Result<Vec<(String, PathBuf, bool)>> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(arguments)
        // With a target, build scripts and macros are not linked statically.
        .args(["--quiet", "--message-format", "json", "--target", &triple])
        .arg("--target-dir")
        .arg(target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo")
        .current_dir(root)
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
