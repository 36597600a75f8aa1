//! The check that no panic path is left in the optimised code of the ring.
//!
//! What lives here: reading the objects of the ring crate and of `ring-panic-check`, which
//! instantiates all of it, and comparing what they refer to with what the kernel has for sure. That
//! is stricter than a search for `core::panicking`: slices, options and numbers panic through other
//! doors, and 128-bit division is a panic in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use rustc_demangle::demangle;
use xshell::cmd;

use crate::project::Project;

/// Crates whose code is looked at.
const CRATES: [&str; 2] = ["rtp_mgr_ring", "ring_panic_check"];
/// What the code may refer to besides itself: memory functions, which every kernel has ...
const ALLOWED: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];
/// ... and formatting for `Display` and `Debug`, which nothing on a data path calls.
const ALLOWED_PATHS: [&str; 2] = ["core::fmt::", " as core::fmt::"];

/// Fails when the ring's objects refer to the panic machinery, or to anything else that a kernel
/// module cannot have.
pub fn run(project: &Project) -> Result<()> {
    let mut defined = BTreeSet::new();
    let mut referred = BTreeMap::<String, BTreeSet<String>>::new();
    let archives = build(project)?;
    for archive in &archives {
        read_archive(archive, &mut defined, &mut referred)
            .with_context(|| archive.display().to_string())?;
    }
    let functions = defined.len();
    if functions < 20 {
        bail!("the ring's objects define only {functions} symbols: this check looked at nothing");
    }
    referred.retain(|name, _| !defined.contains(name) && !is_allowed(name));
    if referred.is_empty() {
        println!("no panic path in {functions} symbols of {}", CRATES.join(", "));
        return Ok(());
    }
    for (name, users) in &referred {
        for user in users {
            println!("{user}\n    refers to {name}");
        }
    }
    bail!(
        "the ring's optimised code can panic, or needs what a kernel does not have (listed above)"
    )
}

fn is_allowed(name: &str) -> bool {
    ALLOWED.contains(&name) || ALLOWED_PATHS.iter().any(|path| name.contains(path))
}

/// Builds the two crates as the kernel module would be and returns their archives.
fn build(project: &Project) -> Result<Vec<PathBuf>> {
    let shell = project.shell()?;
    let messages = cmd!(
        shell,
        "cargo build -p ring-panic-check --profile panic-check --message-format json --quiet"
    )
    .quiet()
    .read()?;
    let mut archives = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let wanted = message["target"]["name"].as_str().is_some_and(|name| CRATES.contains(&name));
        let files = message["filenames"].as_array().filter(|_| wanted);
        let files = files.into_iter().flatten().filter_map(|file| file.as_str());
        archives.extend(files.filter(|file| file.ends_with(".rlib")).map(PathBuf::from));
    }
    if archives.len() != CRATES.len() {
        bail!("expected an archive for each of {CRATES:?}, found {archives:?}");
    }
    Ok(archives)
}

/// Adds the symbols that an archive defines, and those it refers to with who does.
fn read_archive(
    path: &PathBuf,
    defined: &mut BTreeSet<String>,
    referred: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let data = fs::read(path)?;
    let archive = ArchiveFile::parse(&*data)?;
    for member in archive.members() {
        let member = member?;
        if member.name().ends_with(b".o") {
            read_object(&object::File::parse(member.data(&*data)?)?, defined, referred)?;
        }
    }
    Ok(())
}

fn read_object(
    file: &object::File<'_>,
    defined: &mut BTreeSet<String>,
    referred: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let name = |symbol: &object::Symbol<'_, '_>| -> Result<String> {
        Ok(format!("{:#}", demangle(symbol.name()?)))
    };
    let mut functions = Vec::new();
    for symbol in file.symbols().filter(|symbol| !symbol.is_undefined()) {
        let name = name(&symbol)?;
        functions.push((symbol.section_index(), symbol.address(), symbol.size(), name.clone()));
        defined.insert(name);
    }
    for section in file.sections() {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(index)?;
            if !symbol.is_undefined() {
                continue;
            }
            let user = functions.iter().find(|(within, start, size, _)| {
                *within == Some(section.index()) && (*start..start + size).contains(&offset)
            });
            let user = user.map_or_else(
                || section.name().unwrap_or("?").to_owned(),
                |(.., name)| name.clone(),
            );
            referred.entry(name(&symbol)?).or_default().insert(user);
        }
    }
    Ok(())
}
