//! Every reason, on a machine made of files.

use super::*;
use crate::kernel::usable::tests::version;
use crate::probe::Status;
use rustix::io::Errno;
use tempfile::TempDir;

const RELEASE: &str = "7.3.4+deb13-cloud-amd64";
const RUSTC: &str = "rustc 1.85.1 (4eb161250 2025-03-15)\n";
const CONFIG: &str =
    "CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT=\"rustc 1.85.1 (4eb161250 2025-03-15)\"\n";

/// A machine in a temporary directory.
struct Files {
    root: TempDir,
    release: &'static str,
    rustc: Option<&'static str>,
}

impl Files {
    /// A machine that has everything to build and load the module.
    fn ready() -> Self {
        let root = tempfile::tempdir().unwrap();
        let files = Self { root, release: RELEASE, rustc: Some(RUSTC) };
        files.write("proc/version", "Linux version 7.3.4").write("proc/modules", "");
        files.write("proc/self/status", "CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n");
        files.write("proc/sys/kernel/modules_disabled", "0\n");
        files.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n");
        files.write("sys/module/module/parameters/sig_enforce", "N\n");
        files.build("Makefile", "").build("include/config/auto.conf", CONFIG);
        files.build("rust/libkernel.rmeta", "");
        files
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) -> &Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn build(&self, path: &str, text: &str) -> &Self {
        self.write(&format!("lib/modules/{RELEASE}/build/{path}"), text)
    }

    fn installed(&self) -> &Self {
        let list = "kernel/fs/fat/fat.ko:\nupdates/dkms/rtp_mgr.ko.xz: kernel/net/x.ko\n";
        self.write(&format!("lib/modules/{RELEASE}/modules.dep"), list)
    }

    fn remove(&self, path: &str) -> &Self {
        let path = self.root.path().join(path);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
        self
    }

    fn answered(&self, answer: Result<ioctl::Version, Unusable>) -> Vec<Finding> {
        let rustc = || self.rustc.map(str::to_owned);
        let release = self.release.to_owned();
        let findings =
            findings(&answer, &Machine { root: self.root.path(), release, rustc: &rustc });
        assert!(!findings.is_empty());
        for finding in &findings {
            assert_eq!(finding.engine, Some("kernel"), "{finding:?}");
            assert_eq!(finding.remedy.is_none(), finding.status == Status::Ok, "{finding:?}");
        }
        findings
    }

    /// Names of what is found without a device.
    fn names(&self) -> Vec<&'static str> {
        self.absent().iter().map(|finding| finding.name).collect()
    }

    fn absent(&self) -> Vec<Finding> {
        self.answered(Err(Unusable::Closed(Errno::NOENT.into())))
    }
}

/// Asserts what comes first, with these words in its detail and remedy.
fn first(findings: &[Finding], name: &str, detail: &str, remedy: &str) {
    let found = &findings[0];
    assert_eq!(found.name, name, "{findings:?}");
    assert!(found.detail.contains(detail), "{found:?}");
    assert!(found.remedy.as_deref().unwrap_or("").contains(remedy), "{found:?}");
}

#[test]
fn a_module_that_has_everything_is_chosen_and_lists_it() {
    let all = feature::UDP_RECEIVE | feature::UDP_TRANSMIT | feature::SIMULATED;
    let answer = Ok(version(ABI_MAJOR, all));
    let (engine, reason) = choice(&answer);
    assert_eq!((engine, reason.as_str()), ("kernel", "the module rtp_mgr 9.8.7 is loaded"));
    // Nothing to build it with, and nobody asks.
    let files = Files::ready();
    files.remove("lib").write("proc/sys/kernel/modules_disabled", "1");
    let findings = files.answered(answer);
    let names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
    let expected =
        [DEVICE_FINDING, "kernel-receive", "kernel-transmit", "kernel-simulated", "kernel-streams"];
    assert_eq!(names, expected);
    assert!(findings.iter().all(|finding| finding.status == Status::Ok), "{findings:?}");
    assert!(findings[0].detail.contains(&format!("{ABI_MAJOR}.3")), "{findings:?}");
}

#[test]
fn a_module_without_udp_leaves_the_network_to_the_embedded_engine() {
    let answer = Ok(version(ABI_MAJOR, feature::SIMULATED));
    let (engine, reason) = choice(&answer);
    assert_eq!(engine, "user");
    assert!(reason.contains("no receive streams with UDP legs"), "{reason}");
    let findings = Files::ready().answered(answer);
    let status: Vec<_> = findings.iter().map(|finding| finding.status).collect();
    let (ok, limited) = (Status::Ok, Status::Limited);
    assert_eq!(status, [ok, limited, limited, ok, ok]);
    first(&findings[1..], "kernel-receive", "UDP legs", "update the module");
    first(&findings[2..], "kernel-transmit", "transmit streams", "update the module");
}

#[test]
fn a_user_with_as_many_streams_as_allowed_is_told_how_to_have_more() {
    let full = ioctl::Version { user_streams: 7, max_user_streams: 7, ..version(ABI_MAJOR, !0) };
    let findings = Files::ready().answered(Ok(full));
    first(&findings[4..], "kernel-streams", "7 of 7 (max_user_streams)", "max_user_streams=NUMBER");
}

#[test]
fn a_module_that_only_receives_is_chosen_and_its_limit_told() {
    let answer = Ok(version(ABI_MAJOR, feature::SIMULATED | feature::UDP_RECEIVE));
    assert_eq!(choice(&answer).0, "kernel");
    first(&Files::ready().answered(answer)[2..], "kernel-transmit", "transmit", "update");
}

#[test]
fn another_abi_says_which_side_to_update() {
    for (major, side) in [(ABI_MAJOR + 1, "the program"), (ABI_MAJOR - 1, "the module")] {
        let answer = Ok(version(major, !0));
        assert_eq!(choice(&answer).0, "user");
        let findings = Files::ready().answered(answer);
        let remedy = format!("update {side}");
        first(
            &findings,
            DEVICE_FINDING,
            &format!("rtp_mgr 9.8.7 has ABI version {major}.3"),
            &remedy,
        );
        assert_eq!(findings.len(), 1);
    }
}

#[test]
fn a_device_that_may_not_be_opened_is_all_there_is_to_say() {
    let findings = Files::ready().answered(Err(Unusable::Closed(Errno::ACCESS.into())));
    first(&findings, DEVICE_FINDING, "may not open /dev/rtp_mgr", "scripts/setup.sh USER");
    assert_eq!((findings.len(), findings[0].status), (1, Status::Limited));
}

#[test]
fn a_device_of_others_is_told_from_ours() {
    let findings = Files::ready().answered(Err(Unusable::Mute(Errno::NOTTY.into())));
    first(&findings, DEVICE_FINDING, "not the module's device", "sudo rm /dev/rtp_mgr");
}

#[test]
fn a_stale_node_goes_before_what_keeps_the_module_from_loading() {
    for errno in [Errno::NXIO, Errno::NODEV] {
        let files = Files::ready();
        files.write("sys/kernel/security/lockdown", "none [integrity] confidentiality");
        let findings = files.answered(Err(Unusable::Closed(errno.into())));
        first(&findings, DEVICE_FINDING, "left over", "sudo rm /dev/rtp_mgr");
        first(&findings[1..], "module-signature", "lockdown is 'integrity'", "mokutil");
        assert_eq!(findings.len(), 2);
    }
}

#[test]
fn where_nothing_stands_in_the_way_the_module_is_built_and_loaded() {
    let findings = Files::ready().absent();
    first(&findings, DEVICE_FINDING, "not installed", "`sudo scripts/load.sh` builds");
    assert!(!findings[0].remedy.as_ref().unwrap().contains("above"), "{findings:?}");
    assert_eq!((findings.len(), findings[0].status), (1, Status::Missing));
}

#[test]
fn an_installed_module_is_loaded_whatever_it_was_built_with() {
    let mut files = Files::ready();
    files.installed().remove(&format!("lib/modules/{RELEASE}/build"));
    files.rustc = None;
    let findings = files.absent();
    first(&findings, DEVICE_FINDING, "installed and not loaded", "sudo modprobe rtp_mgr");
    assert_eq!(findings.len(), 1);
}

#[test]
fn a_module_that_modprobe_does_not_know_is_listed_first() {
    let files = Files::ready();
    files.write(&format!("lib/modules/{RELEASE}/updates/rtp_mgr.ko"), "");
    files.write(&format!("lib/modules/{RELEASE}/modules.dep"), "updates/other_rtp_mgr.ko:\n");
    first(&files.absent(), DEVICE_FINDING, "modprobe does not know", "sudo depmod");
}

#[test]
fn a_loaded_module_without_a_node_gets_one() {
    let files = Files::ready();
    files.write("sys/module/rtp_mgr/refcnt", "0");
    first(&files.absent(), DEVICE_FINDING, "is loaded", "devtmpfs");
    files.write("proc/devices", "Character devices:\n  1 mem\n511 xrtp_mgr\n240 rtp_mgr\n\n");
    first(&files.absent(), DEVICE_FINDING, "is loaded", "mknod -m 660 /dev/rtp_mgr c 240 0");
    let stale = files.answered(Err(Unusable::Closed(Errno::NXIO.into())));
    first(&stale, DEVICE_FINDING, "not its node", "sudo rm /dev/rtp_mgr && sudo mknod");
    assert_eq!(stale.len(), 1);
    files.write("proc/self/status", "CapBnd:\t00000000a80425fb\n");
    let findings = files.absent();
    first(&findings, DEVICE_FINDING, "is loaded", "--device /dev/rtp_mgr");
    assert_eq!(findings.len(), 1);
}

#[test]
fn a_kernel_without_modules_goes_before_everything() {
    let files = Files::ready();
    files.remove("proc/modules").remove("lib");
    first(&files.absent(), "kernel-modules", "CONFIG_MODULES", "CONFIG_MODULES=y");
    assert_eq!(files.names(), ["kernel-modules", DEVICE_FINDING], "no folder of modules either");
    first(&files.absent()[1..], DEVICE_FINDING, "not installed", "once the above is done");
    // Nothing follows from a /proc that is not mounted.
    files.remove("proc");
    assert!(!files.names().contains(&"kernel-modules"));
}

#[test]
fn switched_off_modules_need_a_restart() {
    let files = Files::ready();
    files.installed().write("proc/sys/kernel/modules_disabled", "1\n");
    first(&files.absent(), "kernel-modules", "modules_disabled", "restart");
}

#[test]
fn an_old_kernel_is_told_before_what_it_lacks() {
    let mut files = Files::ready();
    files.release = "6.18.44-amd64";
    files.write("boot/config-6.18.44-amd64", "# CONFIG_RUST is not set\n");
    let findings = files.absent();
    first(&findings, "kernel-version", "6.18.44-amd64 is older than 7.2", "Linux 7.2 or newer");
    assert_eq!(files.names(), ["kernel-version", "kernel-rust", DEVICE_FINDING]);
    files.release = "7.1.99";
    assert_eq!(files.names()[0], "kernel-version");
    files.release = "10.0.1";
    assert!(!files.names().contains(&"kernel-version"));
}

#[test]
fn a_kernel_without_rust_is_found_wherever_its_configuration_is() {
    let config = "CONFIG_RUST_IS_AVAILABLE=y\n# CONFIG_RUST is not set\n";
    for place in [format!("boot/config-{RELEASE}"), format!("lib/modules/{RELEASE}/config")] {
        let files = Files::ready();
        files.remove(&format!("lib/modules/{RELEASE}/build")).write(&place, config);
        first(&files.absent(), "kernel-rust", &place, "CONFIG_RUST=y");
        assert_eq!(files.names(), ["kernel-rust", DEVICE_FINDING], "headers would not help");
        files.write(&place, CONFIG);
        assert_eq!(files.names()[0], "kernel-headers", "{place}");
    }
    let files = Files::ready();
    files
        .build("include/config/auto.conf", config)
        .write(&format!("boot/config-{RELEASE}"), CONFIG);
    first(&files.absent(), "kernel-rust", "build/include/config/auto.conf", "CONFIG_RUST=y");
}

#[test]
fn a_packed_configuration_is_unpacked() {
    let files = Files::ready();
    files.remove(&format!("lib/modules/{RELEASE}/build"));
    let text = files.root.path().join("config");
    fs::write(&text, "# CONFIG_RUST is not set\n").unwrap();
    let packed = Command::new("gzip").arg("-c").arg(&text).output().expect("running gzip");
    files.write("proc/config.gz", packed.stdout);
    first(&files.absent(), "kernel-rust", "/proc/config.gz", "CONFIG_RUST=y");
    files.write("proc/config.gz", "damaged");
    assert_eq!(files.names()[0], "kernel-headers", "nothing follows from what cannot be read");
}

#[test]
fn in_a_container_the_module_is_the_hosts_business() {
    let files = Files::ready();
    files.remove(&format!("lib/modules/{RELEASE}/build"));
    files.write("proc/self/status", "CapBnd:\t00000000a80425fb\n");
    first(&files.absent(), "container", "CAP_SYS_MODULE", "on the host");
    assert_eq!(files.names(), ["container", DEVICE_FINDING], "headers would not help");
    let files = Files::ready();
    files.remove("lib/modules");
    first(&files.absent(), "container", "/lib/modules", "--device /dev/rtp_mgr");
}

#[test]
fn headers_metadata_and_compiler_are_missed_one_after_the_other() {
    let mut files = Files::ready();
    files.remove(&format!("lib/modules/{RELEASE}/build"));
    first(&files.absent(), "kernel-headers", "/build/Makefile", "linux-headers-7.3.4+deb13");
    files.build("Makefile", "");
    first(&files.absent(), "kernel-headers", "not configured", "modules_prepare");
    files.build("include/config/auto.conf", CONFIG);
    first(&files.absent(), "rust-metadata", "rust/libkernel.rmeta", "make modules_prepare");
    files.build("rust/libkernel.rmeta", "");
    files.rustc = Some("rustc 1.97.0 (abcdef 2026-07-01)\n");
    first(&files.absent(), "rustc", "rustc 1.85.1, and the one here is 1.97.0", "rustc 1.85.1");
    files.rustc = None;
    first(&files.absent(), "rustc", "there is none", "RUSTC=");
    files.rustc = Some(RUSTC);
    assert_eq!(files.names(), [DEVICE_FINDING]);
}

#[test]
fn the_compiler_of_a_configuration_is_found_however_it_is_quoted() {
    let files = Files::ready();
    for line in ["rustc 1.85.1 (4eb161250 2025-03-15)", "\"rustc 1.85.1\"", "rustc 1.85.1"] {
        let config = format!("CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT={line}\n");
        files.build("include/config/auto.conf", &config);
        assert_eq!(files.names(), [DEVICE_FINDING], "{line}");
        files.build("include/config/auto.conf", &config.replace("1.85.1", "1.85.0"));
        assert_eq!(files.names()[0], "rustc", "{line}");
    }
    files.build("include/config/auto.conf", "CONFIG_RUST=y\n");
    assert_eq!(files.names(), [DEVICE_FINDING], "a kernel that does not say is not contradicted");
}

#[test]
fn a_kernel_that_takes_signed_modules_only_says_why() {
    let secure_boot = |on: u8| [6, 0, 0, 0, on];
    let files = Files::ready();
    files.installed().write(SECURE_BOOT, secure_boot(1));
    assert_eq!(files.names(), [DEVICE_FINDING], "lockdown says what Secure Boot means here");
    files.write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    let findings = files.absent();
    first(&findings, "module-signature", "lockdown is 'confidentiality'", "mokutil --import");
    first(&findings, "module-signature", "", "scripts/sign-file");
    first(&findings, "module-signature", "", "\"Secure Boot and lockdown\"");
    assert_eq!(files.names(), ["module-signature", DEVICE_FINDING]);
    files.remove("sys/kernel/security/lockdown");
    first(&files.absent(), "module-signature", "Secure Boot is on", "mokutil");
    files.write(SECURE_BOOT, secure_boot(0));
    assert_eq!(files.names(), [DEVICE_FINDING]);
    files.write("sys/module/module/parameters/sig_enforce", "Y\n");
    first(&files.absent(), "module-signature", "sig_enforce", "mokutil");
}
