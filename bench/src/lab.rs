//! Two network namespaces joined by a cable without offloads: packets cross it one by one.
//!
//! The namespaces have no names: they and the cable are gone with this process, however it ends.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::sys;

/// Address of the receiving end.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Address of the sending end.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The interface at either end.
pub const INTERFACE: &str = "cable";

/// A network namespace, kept by an open file.
pub struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<Self> {
            sys::new_network_namespace().context("a network namespace (needs root)")?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        });
        made.join().unwrap_or_else(|_| bail!("a thread has failed"))
    }

    /// Runs `work` on a thread in this namespace. Sockets and programs stay where they were made.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(kind))
                    .context("enter a network namespace")?;
                work()
            });
            worker.join().unwrap_or_else(|_| bail!("a thread has failed"))
        })
    }

    /// Runs a program here, with `input`.
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.inside(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("{program} could not be started (cargo xtask setup)"))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        })
    }
}

/// The two ends.
pub struct Lab {
    /// Receives.
    pub near: Namespace,
    /// Sends.
    pub far: Namespace,
}

impl Lab {
    /// Makes both namespaces and the cable.
    ///
    /// # Errors
    /// Not root, or no `ip`.
    pub fn new() -> Result<Self> {
        let lab = Self { near: Namespace::new()?, far: Namespace::new()? };
        let far = format!("/proc/{}/fd/{}", std::process::id(), lab.far.0.as_raw_fd());
        lab.near.run(
            "ip",
            &["-batch", "-"],
            &format!("link add {INTERFACE} type veth peer name {INTERFACE} netns {far}\n"),
        )?;
        for (end, address) in [(&lab.near, NEAR), (&lab.far, FAR)] {
            end.run(
                "ip",
                &["-batch", "-"],
                &format!(
                    "link set lo up\naddress add {address}/24 dev {INTERFACE}\n\
                     link set {INTERFACE} up\n"
                ),
            )?;
            end.inside(|| sys::offloads_off(INTERFACE).context("switch offloads off"))?;
        }
        Ok(lab)
    }

    /// Drops every datagram to `port` where packets come in, before anything else sees them. Ends with
    /// the guard.
    ///
    /// # Errors
    /// No `nft`.
    pub fn drop_point(&self, port: u16) -> Result<DropPoint<'_>> {
        self.near.run(
            "nft",
            &["-f", "-"],
            &format!(
                "table ip bench {{\n chain early {{\n type filter hook prerouting priority raw;\n \
                 udp dport {port} drop\n }}\n}}\n"
            ),
        )?;
        Ok(DropPoint(&self.near))
    }
}

/// While this lives, datagrams are dropped.
pub struct DropPoint<'a>(&'a Namespace);

impl Drop for DropPoint<'_> {
    fn drop(&mut self) {
        // When this fails the rule lives as long as its namespace: the next row's figures would be those
        // of no packets, and its receivers say so.
        let _ = self.0.run("nft", &["-f", "-"], "delete table ip bench\n");
    }
}
