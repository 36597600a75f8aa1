//! The archive that the kernel boots with: a `newc` cpio, written here so that no tool is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

impl Archive {
    /// A directory; its parent comes before it.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    /// The directories that `name` lies in. One that is there already stays as it is.
    pub fn directories_of(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            self.directory(&name[..at]);
        }
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: &str, to: &str) {
        self.entry(name, SYMLINK, to.as_bytes());
    }

    /// An executable file with this text.
    pub fn script(&mut self, name: &str, text: &str) {
        self.entry(name, REGULAR | 0o755, text.as_bytes());
    }

    /// A copy of `file`.
    pub fn file(&mut self, name: &str, file: &Path) -> Result<()> {
        let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let mode = fs::metadata(file)?.permissions().mode() & 0o777;
        self.entry(name, REGULAR | mode, &content);
        Ok(())
    }

    /// A copy of what is in `folder`, which gets this name; symbolic links are left out.
    pub fn tree(&mut self, name: &str, folder: &Path) -> Result<()> {
        self.directory(name);
        let mut entries = fs::read_dir(folder)
            .with_context(|| format!("read {}", folder.display()))?
            .collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&name, &entry.path())?;
            } else if entry.file_type()?.is_file() {
                self.file(&name, &entry.path())?;
            }
        }
        Ok(())
    }

    /// The finished archive. Archives may follow each other in one file.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let header = [
            self.entries,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device, major and minor
            0,
            0, // of a device node
            0,
            name.len() as u32 + 1,
            0, // checksum
        ];
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_on_four_bytes_and_the_trailer_ends_the_archive() {
        let mut archive = Archive::default();
        archive.directory("a");
        archive.script("a/b", "12345");
        let bytes = archive.finish();
        let starts: Vec<_> =
            bytes.windows(6).enumerate().filter(|(_, six)| six == b"070701").collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|(at, _)| at % 4 == 0));
        assert!(bytes.windows(11).any(|name| name == b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
