//! Where a measurement sends: over loopback, or across the cable of a [`Lab`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, NEAR};

/// Which processor a part of a measurement runs on: senders on the first, receivers on the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends.
    Sender,
    /// Receives.
    Receiver,
}

impl Side {
    fn cpu(self) -> usize {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Sender => 0,
            Self::Receiver => 1.min(cpus - 1),
        }
    }

    /// Keeps this thread, and what it starts from here on, on its processor.
    ///
    /// # Errors
    /// The processor is not ours.
    pub fn pin(self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.cpu());
        sched_setaffinity(None, &set).with_context(|| format!("run on processor {}", self.cpu()))
    }
}

/// Where to measure.
#[derive(Clone, Copy)]
pub enum Net<'a> {
    /// Within this machine; packets may be coalesced.
    Loopback,
    /// Across a cable; packets one by one.
    Cable(&'a Lab),
}

impl Net<'_> {
    /// Address of the receiving end.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Cable(_) => NEAR,
        }
    }

    /// Runs `work` at one end, on its processor.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn at<R: Send>(self, side: Side, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let pinned = move || {
            side.pin()?;
            work()
        };
        match (self, side) {
            (Self::Loopback, _) => thread::scope(|scope| {
                scope.spawn(pinned).join().unwrap_or_else(|_| bail!("a thread has failed"))
            }),
            (Self::Cable(lab), Side::Receiver) => lab.near.inside(pinned),
            (Self::Cable(lab), Side::Sender) => lab.far.inside(pinned),
        }
    }

    /// A socket that receives, with as large a buffer as a stream of ours asks for and the system
    /// grants.
    ///
    /// # Errors
    /// The port is taken.
    pub fn receiver(self, port: u16) -> Result<UdpSocket> {
        self.at(Side::Receiver, || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            // Beyond the system's limit where that may be done, as streams of ours do.
            if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
                socket.set_recv_buffer_size(BUFFER)?;
            }
            socket.bind(&SocketAddr::from((self.address(), port)).into())?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            Ok(socket.into())
        })
    }

    /// A socket that sends to `port`.
    ///
    /// # Errors
    /// What the system reports.
    pub fn sender(self, port: u16) -> Result<UdpSocket> {
        self.at(Side::Sender, || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_send_buffer_size(BUFFER)?;
            socket.connect(&SocketAddr::from((self.address(), port)).into())?;
            Ok(socket.into())
        })
    }

    /// A port that nobody receives on, and neither on the one above.
    ///
    /// # Errors
    /// None is left.
    pub fn free_port(self) -> Result<u16> {
        self.at(Side::Receiver, || {
            for _ in 0..100 {
                let socket = UdpSocket::bind((self.address(), 0))?;
                let port = socket.local_addr()?.port();
                if port % 2 == 0 && UdpSocket::bind((self.address(), port + 1)).is_ok() {
                    return Ok(port);
                }
            }
            bail!("no free pair of ports")
        })
    }

    /// Waits until somebody receives on `port`.
    ///
    /// # Errors
    /// Nobody does within 10 s.
    pub fn wait_for_receiver(self, port: u16) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while self.drops(port)?.is_none() {
            if Instant::now() > until {
                bail!("nobody receives on port {port} after 10 s");
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Datagrams that the socket on `port` has dropped; `None` when there is none.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn drops(self, port: u16) -> Result<Option<u64>> {
        let table = self.at(Side::Receiver, || {
            fs::read_to_string("/proc/thread-self/net/udp").context("/proc/thread-self/net/udp")
        })?;
        Ok(drops_in(&table, port))
    }

    /// Where packets to `port` go.
    pub fn destination(self, port: u16) -> SocketAddr {
        (IpAddr::from(self.address()), port).into()
    }
}

/// Bytes of socket buffer to ask for.
pub const BUFFER: usize = 4 << 20;
/// How long a receive call waits before it looks whether it shall end.
const TIMEOUT: Duration = Duration::from_millis(20);

/// The drops column of the socket on `port`.
fn drops_in(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit(':').next()?;
        (u16::from_str_radix(local, 16) == Ok(port)).then(|| fields.last()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_those_of_the_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
                     timeout inode ref pointer drops\n\
                     9: 0100007F:1388 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 0 0\n\
                     9: 0100007F:138A 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 0 17\n";
        assert_eq!(drops_in(table, 5002), Some(17));
        assert_eq!(drops_in(table, 5000), Some(0));
        assert_eq!(drops_in(table, 5001), None);
    }

    #[test]
    fn a_bound_port_is_seen() {
        let socket = Net::Loopback.receiver(0).unwrap();
        let port = socket.local_addr().unwrap().port();
        Net::Loopback.wait_for_receiver(port).unwrap();
    }
}
