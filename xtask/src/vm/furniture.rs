//! What every machine has beside the command's programs: modules of the distribution's kernel, and tools
//! to set up a network. Made once into archives that the boot's own is appended to.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{Cache, require_root};
use super::initramfs::Archive;
use super::prepare::{output, quiet};
use super::suite::{Kernel, PLACE};

/// Modules that tests use, and with them whatever they depend on. The kernel loads them when they are
/// asked for. Names that a kernel does not have are left out.
const MODULES: &str = "veth dummy macvlan ipvlan vrf ifb tun bridge \
     sch_netem sch_fq sch_etf sch_ingress act_mirred cls_matchall cls_u32 \
     nf_tables nft_limit nft_numgen nft_ct nft_reject_inet nft_socket nft_log \
     nf_conntrack nf_defrag_ipv6 udp_tunnel xfrm_user esp4 af_packet udp_diag inet_diag";
/// Packages of the tools.
const PACKAGES: [&str; 3] = ["iproute2", "nftables", "ethtool"];
/// Their programs, and shells: busybox's own prefers its `ip` and `tc` to the real ones.
const TOOLS: [&str; 7] = ["ip", "tc", "ss", "nft", "ethtool", "dash", "bash"];
/// Data that they read: netem's distributions.
const DATA: [&str; 1] = ["/usr/lib/tc"];

/// The archive of the kernel's modules.
pub fn modules(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    MODULES.hash(&mut hasher);
    let name = format!("modules-{}-{:016x}", kernel.release, hasher.finish());
    let archive = cache.path(format!("{name}.cpio"));
    cache.once(&name, || {
        require_root()?;
        let inside = format!("/{PLACE}/modules-{}", kernel.release);
        let root = kernel.outside(cache, &inside);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let from = kernel.image(cache).join("usr/lib/modules");
        fs::create_dir_all(root.join("all/lib"))?;
        copy_tree(&from, &root.join("all/lib/modules"))?;
        // The image has no modules.dep: depmod runs where it is installed. Uncompressed, since the
        // machine's modprobe may not unpack.
        let script = format!(
            "cd {inside}
             depmod -b all {release}
             mkdir -p some/lib/modules/{release}
             cp all/lib/modules/{release}/modules.builtin* some/lib/modules/{release}/ || true
             for module in {MODULES}; do
                 modprobe -d $PWD/all -S {release} --show-depends $module 2>/dev/null || true
             done | sed -n 's/^insmod \\([^ ]*\\).*/\\1/p' | sort -u | while read -r file; do
                 cp $file some/lib/modules/{release}/
             done
             unxz some/lib/modules/{release}/*.ko.xz
             depmod -b some {release}
             rm -r all",
            release = kernel.release
        );
        quiet(kernel.command(cache, "sh").args(["-ec", &script]))?;
        let mut made = Archive::default();
        made.directory("lib");
        made.tree("lib/modules", &root.join("some/lib/modules"))?;
        write(&archive, made)
    })?;
    Ok(archive)
}

/// The archive of the tools, with the libraries that they load.
pub fn tools(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let name = format!("tools-{}", kernel.suite.kernels);
    let archive = cache.path(format!("{name}.cpio"));
    cache.once(&name, || {
        require_root()?;
        kernel.suite.update(cache)?;
        kernel.suite.install(cache, &PACKAGES)?;
        let script = "for tool in \"$@\"; do which $tool; done; \
                      for tool in \"$@\"; do ldd $(which $tool); done | grep -o '/[^ ]*' | sort -u";
        let files = output(kernel.command(cache, "sh").args(["-ec", script, "sh"]).args(TOOLS))?;
        let mut made = Archive::default();
        for folder in ["lib", "lib/x86_64-linux-gnu", "lib64", "sbin", "usr", "usr/lib"] {
            made.directory(folder);
        }
        for file in files.lines() {
            let (folder, name) = file.rsplit_once('/').context("a path of a tool")?;
            let library = folder.contains("/lib");
            let folder = if library { folder.trim_start_matches("/usr") } else { "/sbin" };
            let from = real(&kernel.suite.root(cache), file)?;
            made.file(&format!("{}/{name}", folder.trim_start_matches('/')), &from)?;
        }
        for folder in DATA {
            let from = kernel.outside(cache, folder);
            if from.is_dir() {
                made.tree(folder.trim_start_matches('/'), &from)?;
            }
        }
        write(&archive, made)
    })?;
    Ok(archive)
}

/// Whole or not at all.
fn write(to: &Path, archive: Archive) -> Result<()> {
    let part = to.with_extension("part");
    fs::write(&part, archive.finish())?;
    Ok(fs::rename(part, to)?)
}

/// A file of the chroot, from outside, with its symbolic links followed as the chroot would.
fn real(root: &Path, inside: &str) -> Result<PathBuf> {
    let mut path = PathBuf::from(inside);
    for _ in 0..8 {
        let outside = root.join(path.strip_prefix("/").unwrap_or(&path));
        // The folders may be links, too: /lib is one, to a relative path that leads inside.
        let Ok(target) = fs::read_link(&outside) else { return Ok(outside) };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    anyhow::bail!("{inside}: too many symbolic links")
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&path, &to)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}
