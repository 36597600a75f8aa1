//! Where the project's files are, and running cargo in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// The checkout and its build directory.
#[derive(Clone, Debug)]
pub struct Project {
    /// The directory of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
}

impl Project {
    /// The checkout that this program was built from.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask: its manifest has no parent directory")?
            .to_owned();
        let shell = Shell::new()?;
        shell.change_dir(&root);
        let metadata = cmd!(shell, "cargo metadata --no-deps --format-version 1 --offline")
            .quiet()
            .read()
            .context("cargo metadata")?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let target =
            metadata["target_directory"].as_str().context("cargo metadata: no target_directory")?;
        Ok(Self { root, target: target.into() })
    }

    /// A shell in the root of the checkout.
    pub fn shell(&self) -> Result<Shell> {
        let shell = Shell::new()?;
        shell.change_dir(&self.root);
        Ok(shell)
    }

    /// The release build of the program.
    pub fn rtp_app(&self) -> PathBuf {
        self.target.join("release/rtp_app")
    }

    /// Builds the release program.
    pub fn build_release(&self) -> Result<()> {
        let shell = self.shell()?;
        cmd!(shell, "cargo build --release -p rtp-app").run()?;
        Ok(())
    }
}

/// True when `program` is on the PATH.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}
