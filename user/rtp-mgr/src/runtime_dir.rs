//! The directory in which running streams are found: one socket per stream.
//!
//! What lives here: where it is, whose it is, and clearing away what dead processes left. What does
//! not: what is said over the sockets ([`crate::handshake`]).
//!
//! `$XDG_RUNTIME_DIR/rtp_mgr`, else `/run/rtp_mgr` for root, else `/tmp/rtp_mgr-UID`; mode 0700, so
//! that only its user comes near the sockets.

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::error::Error;

/// What the name of a stream's socket ends with.
const SUFFIX: &str = ".sock";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// Longest path of a Unix socket in bytes (`sun_path`, with its closing zero).
const PATH_MAX: usize = 107;

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The directory of this user, as far as it can be told without a look.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(runtime) = env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        places.push(Path::new(&runtime).join("rtp_mgr"));
    }
    if uid() == 0 {
        places.push("/run/rtp_mgr".into());
    }
    places.push(format!("/tmp/rtp_mgr-{}", uid()).into());
    places
}

/// The directory that new streams go to, made if it is not there.
fn own() -> Result<PathBuf, Error> {
    let mut refused = None;
    for path in places() {
        match make(&path) {
            Ok(()) => return Ok(path),
            Err(reason) => {
                refused.get_or_insert(Error::RuntimeDirectory { path, reason });
            }
        }
    }
    Err(refused.expect("there is a last place"))
}

fn make(path: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("the directory of running streams cannot be made: {error}"));
        }
        _ => {}
    }
    judge(path, uid())
}

/// Whether a directory is `owner`'s alone. It may stand where anybody can put one.
fn judge(path: &Path, owner: u32) -> Result<(), String> {
    let found = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
        return Err(format!(
            "not a directory of user {owner} with mode 0700; remove it, or set XDG_RUNTIME_DIR"
        ));
    }
    Ok(())
}

/// The sockets of all streams that this user may see: its own, and everybody's for root.
pub(crate) fn sockets() -> Vec<PathBuf> {
    let mut places = places();
    if uid() == 0 {
        places.extend(children("/run/user", |_| true).map(|user| user.join("rtp_mgr")));
        places.extend(children("/tmp", |name| name.starts_with("rtp_mgr-")));
    }
    places.sort();
    places.dedup();
    let trusted = places.into_iter().filter(|place| {
        let owner = fs::symlink_metadata(place).map(|found| found.uid());
        owner.is_ok_and(|owner| (owner == uid() || uid() == 0) && judge(place, owner).is_ok())
    });
    trusted.flat_map(|place| children(place, |name| name.ends_with(SUFFIX))).collect()
}

fn children(path: impl AsRef<Path>, wanted: fn(&str) -> bool) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(move |entry| entry.file_name().to_str().is_some_and(wanted))
        .map(|entry| entry.path())
}

/// A socket in the directory, which is removed with this value.
#[derive(Debug)]
pub(crate) struct Listening {
    pub socket: OwnedFd,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that streams are found by under `name`.
pub(crate) fn listening(name: &str) -> Result<Listening, Error> {
    listening_in(&own()?, name)
}

fn listening_in(directory: &Path, name: &str) -> Result<Listening, Error> {
    let path = directory.join(format!("{name}{SUFFIX}"));
    if path.as_os_str().as_bytes().len() > PATH_MAX {
        let reason = format!("longer than a socket's path can be ({PATH_MAX} bytes)");
        return Err(Error::RuntimeDirectory { path, reason });
    }
    let failed = |path: &Path, error: Errno| Error::RuntimeDirectory {
        path: path.to_owned(),
        reason: io::Error::from(error).to_string(),
    };
    let _lock = lock(directory).map_err(|error| failed(directory, error))?;
    let address = SocketAddrUnix::new(&path).map_err(|error| failed(&path, error))?;
    let socket = seqpacket().map_err(|error| failed(&path, error))?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if is_dead(&path) => {
            let _ = fs::remove_file(&path);
            bind(&socket, &address).map_err(|error| failed(&path, error))?;
        }
        Err(Errno::ADDRINUSE) => return Err(Error::NameTaken { name: name.to_owned() }),
        result => result.map_err(|error| failed(&path, error))?,
    }
    let listening = Listening { socket, path };
    listen(&listening.socket, BACKLOG).map_err(|error| failed(&listening.path, error))?;
    Ok(listening)
}

/// Removes a socket that nobody listens to any more. It was made under the same lock.
pub(crate) fn clear(path: &Path) {
    let Some(directory) = path.parent() else { return };
    if let Ok(_lock) = lock(directory)
        && is_dead(path)
    {
        let _ = fs::remove_file(path);
    }
}

/// Whoever makes or clears away sockets holds this.
fn lock(directory: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(directory.join(".lock"), flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn is_dead(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let Ok(socket) = seqpacket() else { return false };
    // Not listening yet is alive: it is made under the lock. A full backlog is alive, too.
    connect(&socket, &address) == Err(Errno::CONNREFUSED)
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The name that a socket's stream has.
pub(crate) fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_while_its_stream_lives_and_free_after_its_death() {
        let directory = tempfile::tempdir().unwrap();
        let first = listening_in(directory.path(), "a").unwrap();
        let taken = listening_in(directory.path(), "a").unwrap_err();
        assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
        assert!(first.path.exists());
        // As after kill -9: nobody listens any more, and the path is still there.
        let path = first.path.clone();
        let first = std::mem::ManuallyDrop::new(first);
        rustix::net::shutdown(&first.socket, rustix::net::Shutdown::Both).unwrap();
        let second = listening_in(directory.path(), "a").unwrap();
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_dead_is_cleared_away_and_what_lives_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let alive = listening_in(directory.path(), "alive").unwrap();
        clear(&alive.path);
        assert!(alive.path.exists());
        let path = alive.path.clone();
        rustix::net::shutdown(&alive.socket, rustix::net::Shutdown::Both).unwrap();
        clear(&path);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make(&open).unwrap_err().contains("0700"));
        let link = directory.path().join("link");
        let closed = directory.path().join("closed");
        make(&closed).unwrap();
        std::os::unix::fs::symlink(&closed, &link).unwrap();
        assert!(make(&link).is_err());
        make(&closed).unwrap();
    }
}
