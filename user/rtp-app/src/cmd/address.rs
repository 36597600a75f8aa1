//! The legs that the address flags of `rx` and `tx` mean.

use rtp_mgr::leg::{Leg, LegError};
use rtp_mgr_ring::abi::LEGS_MAX;

use crate::cli::{PORT_DEFAULT, RxAddress, TxArgs};
use crate::error::Failure;

/// The legs that the flags of `rx` name; empty when they name none.
///
/// # Errors
/// [`Failure::Usage`] with the flag, the value and what is accepted.
pub fn receive_legs(flags: &RxAddress) -> Result<Vec<Leg>, Failure> {
    let interface = flags.interface.as_deref();
    match (&flags.bind, flags.port) {
        (None, None) => flags_legs(&flags.legs),
        (bind, port) => {
            let address = bind.as_deref().unwrap_or("0.0.0.0");
            Ok(vec![from_parts("--bind", address, port.unwrap_or(PORT_DEFAULT), interface)?])
        }
    }
}

/// The legs that the flags of `tx` name. `--interface` holds for every leg that names none.
///
/// # Errors
/// [`Failure::Usage`] with the flag, the value and what is accepted.
pub fn transmit_legs(args: &TxArgs) -> Result<Vec<Leg>, Failure> {
    let interface = args.interface.as_deref();
    let legs = match &args.dst {
        Some(address) => {
            vec![from_parts("--dst", address, args.port.unwrap_or(PORT_DEFAULT), interface)?]
        }
        None if args.legs.is_empty() => {
            return Err(Failure::usage(
                "--leg: missing; accepted: --leg ADDRESS[%INTERFACE]:PORT, or --dst ADDRESS and \
                 --port PORT",
            ));
        }
        None => flags_legs(&args.legs)?,
    };
    for leg in &legs {
        if leg.is_wildcard() {
            return Err(Failure::usage(format!(
                "{} {}: not a destination; accepted: the address of a host or a multicast group",
                if args.dst.is_some() { "--dst" } else { "--leg" },
                leg.address()
            )));
        }
    }
    legs.into_iter().map(|leg| on_interface(leg, interface)).collect()
}

fn flags_legs(values: &[String]) -> Result<Vec<Leg>, Failure> {
    if values.len() > LEGS_MAX {
        return Err(Failure::usage(format!(
            "--leg: given {} times; accepted: once, or twice for a redundant stream",
            values.len()
        )));
    }
    let legs = values.iter().map(|value| parse(value)).collect::<Result<Vec<_>, _>>()?;
    match legs.as_slice() {
        [first, second] if first == second => Err(Failure::usage(format!(
            "--leg {second}: given twice; accepted: two different paths"
        ))),
        _ => Ok(legs),
    }
}

fn parse(value: &str) -> Result<Leg, Failure> {
    let leg: Leg = value.parse().map_err(|error| {
        Failure::usage(match error {
            LegError::Port { port, .. } => port_refused(value, &port),
            error => sentence("--leg", value, &error),
        })
    })?;
    match leg.port() {
        0 => Err(Failure::usage(port_refused(value, "0"))),
        _ => Ok(leg),
    }
}

fn port_refused(leg: &str, port: &str) -> String {
    format!("--leg {leg}: {port:?} is not a port; accepted: 1 to 65535")
}

fn from_parts(
    flag: &str,
    address: &str,
    port: u16,
    interface: Option<&str>,
) -> Result<Leg, Failure> {
    let bare = address.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(address);
    let text =
        if bare.contains(':') { format!("[{bare}]:{port}") } else { format!("{bare}:{port}") };
    let leg: Leg = text.parse().map_err(|error| {
        Failure::usage(match error {
            LegError::Interface { .. } | LegError::Mapped { .. } => sentence(flag, &text, &error),
            _ => format!(
                "{flag} {address}: not an IP address (names are not looked up); accepted: an IPv4 \
                 or IPv6 address, such as 127.0.0.1"
            ),
        })
    })?;
    on_interface(leg, interface)
}

/// The leg on this interface, unless it names one itself.
///
/// # Errors
/// [`Failure::Usage`]: the name cannot be one.
pub fn on_interface(leg: Leg, interface: Option<&str>) -> Result<Leg, Failure> {
    match interface {
        Some(name) if leg.interface().is_none() => leg.with_interface(name).map_err(|_| {
            Failure::usage(format!(
                "--interface {name}: cannot be the name of an interface; accepted: 1 to 15 bytes \
                 without spaces, '/', ':' and '%'"
            ))
        }),
        _ => Ok(leg),
    }
}

/// The library's message with the flag in front of the value in place of its own beginning.
fn sentence(flag: &str, value: &str, error: &LegError) -> String {
    let text = error.to_string();
    match text.strip_prefix(&format!("leg {value:?}")) {
        Some(rest) => format!("{flag} {value}{rest}"),
        None => format!("{flag} {value}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legs(values: &[&str]) -> Result<Vec<Leg>, Failure> {
        flags_legs(&values.iter().map(|value| value.to_string()).collect::<Vec<_>>())
    }

    fn refused(values: &[&str]) -> String {
        match legs(values) {
            Err(Failure::Usage(line)) => line,
            other => panic!("{values:?} was taken as {other:?}"),
        }
    }

    #[test]
    fn bind_and_port_are_leg_one() {
        let leg = from_parts("--bind", "127.0.0.1", 5004, None).unwrap();
        assert_eq!(leg, "127.0.0.1:5004".parse().unwrap());
        for written in ["ff3e::1", "[ff3e::1]", "ff3e::1%eth0"] {
            let leg = from_parts("--bind", written, 5004, Some("eth0")).unwrap();
            assert_eq!(leg, "[ff3e::1%eth0]:5004".parse().unwrap());
        }
    }

    #[test]
    fn each_mistake_names_the_flag_the_value_and_what_is_accepted() {
        assert_eq!(
            refused(&["127.0.0.1:0"]),
            "--leg 127.0.0.1:0: \"0\" is not a port; accepted: 1 to 65535"
        );
        assert_eq!(
            refused(&["127.0.0.1:65536"]),
            "--leg 127.0.0.1:65536: \"65536\" is not a port; accepted: 1 to 65535"
        );
        assert!(refused(&["127.0.0.1"]).starts_with("--leg 127.0.0.1 has no port; accepted: "));
        assert!(refused(&["localhost:5004"]).contains("\"localhost\" is not an IP address"));
        assert!(refused(&["1.2.3.4:1", "1.2.3.4:2", "1.2.3.4:3"]).contains("given 3 times"));
        assert!(refused(&["1.2.3.4:1", "1.2.3.4:1"]).contains("two different paths"));
        let Err(Failure::Usage(line)) = from_parts("--bind", "nowhere", 5004, None) else {
            panic!("taken");
        };
        assert!(line.starts_with("--bind nowhere: not an IP address"), "{line}");
    }
}
