//! UDP ports for a test, and who listens on them.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

/// Below the ports that systems give to whoever asks for any.
const FIRST: u16 = 20_000;
const PAIRS: u16 = 5_000;

/// An even port such that it and the next (RTCP) are free on this machine.
pub fn free_pair() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() % u32::from(PAIRS);
    (0..PAIRS)
        .map(|_| {
            let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            FIRST + 2 * ((start + next) % u32::from(PAIRS)) as u16
        })
        .find(|port| free(*port) && free(*port + 1))
        .context("no free pair of UDP ports from 20000 to 29999")
}

fn free(port: u16) -> bool {
    // Without IPv6 on this machine nobody can have the port there.
    UdpSocket::bind(("0.0.0.0", port)).is_ok()
        && UdpSocket::bind(("::1", port))
            .map_or_else(|error| error.kind() != std::io::ErrorKind::AddrInUse, |_| true)
}

/// True when an IPv4 or IPv6 socket of this machine is bound to the port.
pub fn listening(port: u16) -> Result<bool> {
    let udp4 = std::fs::read_to_string("/proc/net/udp")?;
    let udp6 = std::fs::read_to_string("/proc/net/udp6").unwrap_or_default();
    Ok(bound(&udp4, port) || bound(&udp6, port))
}

/// The port among the local addresses of a table like `/proc/net/udp`.
fn bound(table: &str, port: u16) -> bool {
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1)?.rsplit_once(':'))
        .any(|(_, local)| u16::from_str_radix(local, 16) == Ok(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_port_is_found_and_a_remote_one_is_not() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
                     2154: 0100007F:138C 00000000:1F90 07 00000000:00000000 00:00000000\n";
        assert!(bound(table, 5004));
        assert!(!bound(table, 8080));
        assert!(!bound("", 5004));
    }

    #[test]
    fn a_socket_of_our_own_is_seen() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listening(port).unwrap());
    }

    #[test]
    fn pairs_differ_and_are_even() {
        let one = free_pair().unwrap();
        let other = free_pair().unwrap();
        assert_ne!(one, other);
        assert_eq!((one % 2, other % 2), (0, 0));
    }
}
