//! The package mirror that this machine's apt is configured with, and how apt reaches it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::prepare::output;

/// Where Debian's main archive is, as apt says; one without a Debian of its own is refused.
pub fn debian() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)";
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets = output(&mut apt).context("ask apt for its package mirrors")?;
    match first_debian(&targets) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!(
            "apt on this machine has no Debian archive (run apt-get update first if it should): \
             the virtual machine is built from Debian's packages"
        ),
    }
}

/// The first repository with origin and label Debian (security updates have another label).
fn first_debian(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let uri = words.next()?;
        (words.eq(["Debian", "Debian", "main"])).then_some(uri)
    })
}

/// apt's settings for reaching mirrors (proxies and the like), for the chroot.
pub fn transport_settings() -> Result<String> {
    let dump = output(Command::new("apt-config").arg("dump"))?;
    let is_transport = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("acquire::http") || line.starts_with("acquire::retries")
    };
    Ok(dump.lines().filter(is_transport).map(|line| format!("{line}\n")).collect())
}

/// Whether this machine is Debian or derived from it, so that packages can be installed with apt.
pub fn debian_like() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
            .flat_map(|(_, value)| value.trim_matches('"').split_whitespace())
            .any(|id| matches!(id, "debian" | "ubuntu"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_taken_and_no_other() {
        let targets = "https://other.example/ Other Other main\n\
                       http://mirror.example/debian-security/ Debian Debian-Security main\n\
                       http://mirror.example/debian/ Debian Debian main\n";
        assert_eq!(first_debian(targets), Some("http://mirror.example/debian/"));
        assert_eq!(first_debian("http://mirror.example/ubuntu/ Ubuntu Ubuntu main\n"), None);
    }
}
