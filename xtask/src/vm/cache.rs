//! Where prepared things are kept: outside the checkout, so that every checkout shares them.
//!
//! A step that is finished leaves a stamp; one that was interrupted is done again.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The directory, locked for this process: alone while it prepares, then together with others.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    lock: File,
}

impl Cache {
    /// `$XDG_CACHE_HOME/rtp-manager/vm`, or the same below `~/.cache`. Waits while another process
    /// uses it.
    pub fn open() -> Result<Self> {
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(home)
            .context("neither XDG_CACHE_HOME nor HOME is set: set one of them")?;
        let root = base.join("rtp-manager/vm");
        fs::create_dir_all(root.join("stamps"))
            .with_context(|| format!("create {}", root.display()))?;
        let lock = File::create(root.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("another process uses {}: waiting for it", root.display());
            flock(&lock, FlockOperation::LockExclusive)?;
        }
        Ok(Self { root, lock })
    }

    /// Nothing is prepared any more: others may use what is there at the same time.
    pub fn share(&self) -> Result<()> {
        Ok(flock(&self.lock, FlockOperation::LockShared)?)
    }

    /// A path in the cache.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The chroot with the kernel's compilers.
    pub fn chroot(&self) -> PathBuf {
        self.path("chroot")
    }

    /// Does `step` unless its stamp says that it was done.
    pub fn once(&self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = self.path("stamps").join(name);
        if stamp.exists() {
            return Ok(());
        }
        println!("{name} ...");
        let start = std::time::Instant::now();
        step().with_context(|| format!("{name} (kept in {})", self.root.display()))?;
        fs::write(stamp, "")?;
        println!("{name}: {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Fails unless this process may make a chroot.
pub fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("preparing the chroot with the kernel's compilers needs root: run this as root once");
    }
    Ok(())
}
