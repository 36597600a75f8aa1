//! Licences, sources and advisories of the dependencies, by cargo-deny and `deny.toml`.

use anyhow::{Context, Result};
use xshell::cmd;

use crate::project::{Project, on_path};

/// `cargo xtask audit`
pub fn run(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    if !on_path("cargo-deny") {
        cmd!(shell, "cargo install cargo-deny --locked")
            .run()
            .context("cargo-deny is missing; run: cargo install cargo-deny --locked")?;
    }
    let rest = cmd!(shell, "cargo deny check licenses bans sources").run();
    // Apart from the rest, because it fetches a database: without a network the rest is still told.
    let advisories = cmd!(shell, "cargo deny check advisories").run();
    rest.context("licences, bans and sources")?;
    advisories.context("advisories (their database is fetched over the network)")
}
