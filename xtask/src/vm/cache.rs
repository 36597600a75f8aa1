//! Where prepared things are kept: outside the checkout, so that every checkout shares them.
//!
//! A step that is finished leaves a stamp; one that was interrupted is done again. What has its stamp is
//! never changed, so any number of processes use it while one of them prepares more.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The directory.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/rtp-manager/vm`, or the same below `~/.cache`.
    pub fn open() -> Result<Self> {
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(home)
            .context("neither XDG_CACHE_HOME nor HOME is set: set one of them")?;
        Self::at(base.join("rtp-manager/vm"))
    }

    fn at(root: PathBuf) -> Result<Self> {
        for folder in ["stamps", "locks"] {
            fs::create_dir_all(root.join(folder))
                .with_context(|| format!("create {}", root.display()))?;
        }
        Ok(Self { root })
    }

    /// A path in the cache.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Does `step` unless its stamp says that it was done. One process at a time does steps.
    pub fn once(&self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = self.path("stamps").join(name);
        if stamp.exists() {
            return Ok(());
        }
        let _lock = self.lock("prepare")?;
        if stamp.exists() {
            return Ok(());
        }
        eprintln!("{name} ...");
        let start = Instant::now();
        step().with_context(|| format!("{name} (kept in {})", self.root.display()))?;
        fs::write(stamp, "")?;
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Keeps other processes from what goes by `name` until the result is dropped. Waits while another
    /// has it.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.path("locks").join(name);
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("another process has {}: waiting for it", path.display());
            flock(&lock, FlockOperation::LockExclusive)?;
        }
        Ok(lock)
    }
}

/// Fails unless this process may make a chroot.
pub fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the chroot with the kernel's compilers needs root: run this as root");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_done_once_and_again_when_it_failed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let mut done = 0;
        assert!(cache.once("step", || bail!("no")).is_err());
        for _ in 0..2 {
            cache
                .once("step", || {
                    done += 1;
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(done, 1);
    }
}
