//! Network namespaces, and the cables between them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// A network namespace without a name: it is there while this, or a socket in it, is.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new one, in which only the loopback interface is up.
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            // SAFETY: Changes this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let new = Self(file.join().unwrap());
        new.shell("ip link set lo up");
        new
    }

    /// Runs `act` there. What it opens and starts there stays there.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let there = || {
            // SAFETY: Changes this thread only.
            assert_eq!(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            act()
        };
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// Runs a line of the shell there, which has to succeed; what it prints.
    pub fn shell(&self, line: &str) -> String {
        let done = self.run(|| Command::new("sh").args(["-c", line]).output().unwrap());
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{line}: {errors}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// As `ip` takes it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Joins this, as 10.1.`number`.1 on `n{number}`, with `other`, as 10.1.`number`.2 on `f{number}`, by a pair of
    /// virtual interfaces. Packets pass when this returns.
    pub fn join(&self, other: &Self, number: u8) {
        self.shell(&format!(
            "ip link add n{number} type veth peer name f{number} address 02:00:00:00:00:0{number} netns {}
             ip address add 10.1.{number}.1/24 dev n{number}
             ip link set n{number} up
             ip neighbour add 10.1.{number}.2 lladdr 02:00:00:00:00:0{number} dev n{number}",
            other.path()
        ));
        other.shell(&format!(
            "ip address add 10.1.{number}.2/24 dev f{number}
             ip link set f{number} up"
        ));
        // The kernel takes up to a second to believe in a cable.
        let deadline = Instant::now() + Duration::from_secs(30);
        let up = |line: String| line.contains("state UP");
        while !up(self.shell(&format!("ip link show n{number}")))
            || !up(other.shell(&format!("ip link show f{number}")))
        {
            assert!(Instant::now() < deadline, "a precondition: cable {number} does not come up");
        }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}
