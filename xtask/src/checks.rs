//! The steps that cargo does: formatting, lints, documentation, tests, compiler versions, builds.

use anyhow::Result;
use xshell::cmd;

use crate::project::{Project, on_path};
use crate::report::Outcome;

/// The compiler that the ring must build with: the one of the kernels the module is for.
const RING_COMPILER: &str = "1.85";

/// Formatting of all crates.
pub fn format(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    cmd!(shell, "cargo fmt --all --check").run()?;
    Ok(())
}

/// Lints of all crates and their tests, warnings denied. `rust-version` of each crate makes clippy
/// refuse library items that are younger.
pub fn clippy(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    cmd!(shell, "cargo clippy --workspace --all-targets -- -D warnings").run()?;
    // They are no targets of a plain `cargo test`, and so not among all of them.
    cmd!(shell, "cargo clippy --package rtp-mgr-kernel-tests --test * -- -D warnings").run()?;
    Ok(())
}

/// Documentation of all crates, warnings denied.
pub fn doc(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    cmd!(shell, "cargo doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?;
    Ok(())
}

/// Unit and integration tests of all crates.
pub fn unit_tests(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    if on_path("cargo-nextest") {
        cmd!(shell, "cargo nextest run --workspace --no-fail-fast").run()?;
    } else {
        cmd!(shell, "cargo test --workspace --lib --bins --tests --no-fail-fast").run()?;
    }
    Ok(())
}

/// The examples in the documentation.
pub fn doc_tests(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    cmd!(shell, "cargo test --workspace --doc --no-fail-fast").run()?;
    Ok(())
}

/// The ring under the model checker. The other flags ask for another target directory: in the
/// usual one each run would rebuild what the other left.
pub fn loom(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    let target = project.target.join("loom");
    cmd!(shell, "cargo test -p rtp-mgr-ring --release --test loom --target-dir {target}")
        .env("RUSTFLAGS", "--cfg loom")
        .run()?;
    Ok(())
}

/// The ring with the compiler of the kernels.
pub fn ring_compiler(project: &Project) -> Outcome {
    let missing = format!(
        "no Rust {RING_COMPILER} here (rustup toolchain install {RING_COMPILER} --profile minimal)"
    );
    let Ok(shell) = project.shell() else { return Outcome::NotRun(missing) };
    let toolchain = format!("+{RING_COMPILER}");
    if cmd!(shell, "rustc {toolchain} --version")
        .env("RUSTUP_AUTO_INSTALL", "0")
        .quiet()
        .ignore_stderr()
        .read()
        .is_err()
    {
        return Outcome::NotRun(missing);
    }
    let target = project.target.join("ring-compiler");
    Outcome::of(
        cmd!(shell, "cargo {toolchain} check -p rtp-mgr-ring --target-dir {target}")
            .run()
            .map_err(Into::into),
    )
}

/// Lints of the shell scripts.
pub fn scripts(project: &Project) -> Outcome {
    if !on_path("shellcheck") {
        return Outcome::NotRun("shellcheck is missing (cargo xtask setup)".into());
    }
    let check = || {
        let shell = project.shell()?;
        let files = cmd!(shell, "git ls-files *.sh .ci/run").read()?;
        let files: Vec<_> = files.lines().collect();
        Ok(cmd!(shell, "shellcheck {files...}").run()?)
    };
    Outcome::of(check())
}

/// Builds the program and runs its demonstration.
pub fn demo(project: &Project, arguments: &[String]) -> Result<()> {
    project.build_release()?;
    let program = project.rtp_app();
    let shell = project.shell()?;
    cmd!(shell, "{program} demo {arguments...}").quiet().run()?;
    Ok(())
}

/// Runs a check whose program rustup installs apart.
pub fn with_component(
    project: &Project,
    command: &str,
    component: &str,
    check: fn(&Project) -> Result<()>,
) -> Outcome {
    let there = project.shell().is_ok_and(|shell| {
        let version = cmd!(shell, "cargo {command} --version").quiet();
        version.ignore_stdout().ignore_stderr().run().is_ok()
    });
    if there {
        Outcome::of(check(project))
    } else {
        Outcome::NotRun(format!("cargo {command} is missing (rustup component add {component})"))
    }
}
