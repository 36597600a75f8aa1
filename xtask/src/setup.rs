//! The system packages that tests and measurements need: what is missing, and installing it
//! where that may be done (root on a Debian-like system) or naming the command where not.

use std::fs;

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use crate::project::{Project, on_path};
use crate::report::Outcome;

/// Something that a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Program(&'static str),
    /// A GStreamer element.
    Element(&'static str),
}

/// What is needed, and the Debian package that has it.
const NEEDS: &[(Need, &str)] = &[
    (Need::Program("make"), "make"),
    (Need::Program("ffmpeg"), "ffmpeg"),
    (Need::Program("tshark"), "tshark"),
    (Need::Program("ip"), "iproute2"),
    (Need::Program("nft"), "nftables"),
    (Need::Program("shellcheck"), "shellcheck"),
    (Need::Program("valgrind"), "valgrind"),
    (Need::Program("gst-launch-1.0"), "gstreamer1.0-tools"),
    (Need::Program("gst-inspect-1.0"), "gstreamer1.0-tools"),
    (Need::Element("audioconvert"), "gstreamer1.0-plugins-base"),
    (Need::Element("wavparse"), "gstreamer1.0-plugins-good"),
    (Need::Element("udpsink"), "gstreamer1.0-plugins-good"),
    (Need::Element("rtpmp2tpay"), "gstreamer1.0-plugins-good"),
    (Need::Element("rtpL24pay"), "gstreamer1.0-plugins-good"),
    (Need::Element("sdpdemux"), "gstreamer1.0-plugins-bad"),
];

/// Another package manager at work is waited for; a download is tried again.
const PATIENT: [&str; 4] = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"];

/// `cargo xtask setup`
pub fn run(project: &Project) -> Result<()> {
    match step(project) {
        Outcome::Passed(text) => {
            println!("{text}");
            Ok(())
        }
        Outcome::Failed(text) | Outcome::NotRun(text) => bail!(text),
    }
}

/// Makes sure that the packages are there, as a step of the test command.
pub fn step(project: &Project) -> Outcome {
    let shell = match project.shell() {
        Ok(shell) => shell,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let packages = missing(&shell);
    if packages.is_empty() {
        return Outcome::Passed("all there".into());
    }
    let list = packages.join(" ");
    if !debian_like(&fs::read_to_string("/etc/os-release").unwrap_or_default())
        || !on_path("apt-get")
    {
        return Outcome::NotRun(format!(
            "missing, by the names of Debian's packages: {list}; install what has them here"
        ));
    }
    if !root(&shell) {
        return Outcome::NotRun(format!(
            "not root; run: sudo apt-get update && sudo apt-get install {list}"
        ));
    }
    if let Err(error) = install(&shell, &packages) {
        return Outcome::Failed(format!("{error:#}"));
    }
    match missing(&shell).as_slice() {
        [] => Outcome::Passed(format!("installed {list}")),
        left => Outcome::Failed(format!(
            "installed {list}, and still not there: what {} should have",
            left.join(" ")
        )),
    }
}

fn install(shell: &Shell, packages: &[&str]) -> Result<()> {
    // Lists that cannot be refreshed may still do; installing tells.
    let updated = cmd!(shell, "apt-get {PATIENT...} update").run();
    let options = ["--yes", "--no-install-recommends"];
    let installed = cmd!(shell, "apt-get {PATIENT...} install {options...} {packages...}")
        // tshark's package asks who may capture.
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run();
    match (installed, updated) {
        (Ok(()), _) => Ok(()),
        (Err(error), Ok(())) => Err(error.into()),
        (Err(error), Err(update)) => Err(anyhow::anyhow!("{update}; then {error}")),
    }
}

/// The packages of what is not there, each once.
fn missing(shell: &Shell) -> Vec<&'static str> {
    packages_of(NEEDS.iter().filter(|(need, _)| !present(shell, *need)))
}

fn packages_of<'a>(needs: impl IntoIterator<Item = &'a (Need, &'static str)>) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs.into_iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn present(shell: &Shell, need: Need) -> bool {
    match need {
        Need::Program(name) => on_path(name),
        Need::Element(name) => {
            on_path("gst-inspect-1.0")
                && cmd!(shell, "gst-inspect-1.0 --exists {name}")
                    .quiet()
                    .ignore_stdout()
                    .ignore_stderr()
                    .run()
                    .is_ok()
        }
    }
}

/// Debian or something derived from it, by `/etc/os-release`.
fn debian_like(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches('"').split_whitespace())
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

fn root(shell: &Shell) -> bool {
    cmd!(shell, "id -u").quiet().read().is_ok_and(|id| id == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_descendants_are_recognised() {
        assert!(debian_like("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(debian_like("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(debian_like("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!debian_like("ID=fedora\nNAME=\"not debian\"\n"));
        assert!(!debian_like(""));
    }

    #[test]
    fn a_package_is_named_once() {
        let needs = [
            (Need::Program("gst-launch-1.0"), "gstreamer1.0-tools"),
            (Need::Program("ffmpeg"), "ffmpeg"),
            (Need::Program("gst-inspect-1.0"), "gstreamer1.0-tools"),
        ];
        assert_eq!(packages_of(&needs), ["ffmpeg", "gstreamer1.0-tools"]);
    }
}
