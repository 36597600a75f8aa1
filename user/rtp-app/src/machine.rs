//! What this machine dropped of everybody's packets before they reached any stream: a hint where a stream's own may have
//! been lost, which no stream can count as its own.
//!
//! Interfaces, the backlogs of the CPUs, IP and UDP count for all streams together and since the machine, or the
//! network namespace, began: that a figure grows while `lost` grows is what tells. They are those of the namespace of
//! the process that owns the stream.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The figures; those of a file that cannot be read are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineLosses {
    /// Interfaces that have dropped packets or found errors.
    pub interfaces: Vec<InterfaceLosses>,
    /// Packets that found the backlog of a CPU full.
    pub backlog_dropped: Option<u64>,
    /// Datagrams of which a fragment did not come.
    pub reassembly_failed: Option<u64>,
    /// UDP datagrams with a wrong checksum.
    pub udp_checksum_errors: Option<u64>,
    /// UDP datagrams that found the buffer of their socket full.
    pub udp_buffer_errors: Option<u64>,
}

/// What an interface did not hand on (`/proc/net/dev`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceLosses {
    /// Its name.
    pub interface: String,
    /// Dropped or missed for want of room, or because nobody wanted them.
    pub dropped: u64,
    /// Bad packets, of any kind.
    pub errors: u64,
    /// Overruns of the hardware's queue.
    pub overruns: u64,
}

impl MachineLosses {
    /// Those of the namespace that this process is in.
    pub fn of_process(pid: u32) -> Self {
        let folder = PathBuf::from(format!("/proc/{pid}/net"));
        let read = |name: &str| std::fs::read_to_string(folder.join(Path::new(name))).ok();
        let text = |name: &str| read(name).unwrap_or_default();
        Self::parse(&text("dev"), &text("softnet_stat"), &text("snmp"), &text("snmp6"))
    }

    /// From what is in the files of these names.
    fn parse(dev: &str, softnet_stat: &str, snmp: &str, snmp6: &str) -> Self {
        let (four, six) = (protocols(snmp), protocols6(snmp6));
        let both = |four_name: &str, six_name: &str| {
            let counts = [four.get(four_name), six.get(six_name)];
            counts.into_iter().flatten().copied().reduce(u64::wrapping_add)
        };
        Self {
            interfaces: dev.lines().filter_map(interface).collect(),
            backlog_dropped: backlog(softnet_stat),
            reassembly_failed: both("Ip ReasmFails", "Ip6ReasmFails"),
            udp_checksum_errors: both("Udp InCsumErrors", "Udp6InCsumErrors"),
            udp_buffer_errors: both("Udp RcvbufErrors", "Udp6RcvbufErrors"),
        }
    }

    /// As `stat` prints it.
    pub fn text(&self) -> String {
        let mut rows = Vec::new();
        for InterfaceLosses { interface, dropped, errors, overruns } in &self.interfaces {
            rows.extend([
                (format!("{interface}, dropped"), Some(*dropped)),
                (format!("{interface}, errors"), Some(*errors)),
                (format!("{interface}, overruns"), Some(*overruns)),
            ]);
        }
        rows.extend([
            ("CPU backlogs".to_owned(), self.backlog_dropped),
            ("IP reassembly".to_owned(), self.reassembly_failed),
            ("UDP checksums".to_owned(), self.udp_checksum_errors),
            ("UDP buffers".to_owned(), self.udp_buffer_errors),
        ]);
        let mut text =
            String::from("dropped by this machine, of everybody's packets, since it began\n");
        for (name, count) in rows {
            let count = count.map_or_else(|| "-".to_owned(), crate::text::grouped);
            text.push_str(&format!("  {name:<24}{count:>10}\n"));
        }
        text
    }
}

/// A line of `dev`: name, and of what was received bytes, packets, errors, drops, overruns, and more. `None`: not an
/// interface, or one that lost nothing.
fn interface(line: &str) -> Option<InterfaceLosses> {
    let (name, figures) = line.split_once(':')?;
    let figures: Option<Vec<u64>> =
        figures.split_whitespace().map(|figure| figure.parse().ok()).collect();
    let [_, _, errors, dropped, overruns, ..] = figures?[..] else { return None };
    let lost = InterfaceLosses { interface: name.trim().to_owned(), dropped, errors, overruns };
    (dropped != 0 || errors != 0 || overruns != 0).then_some(lost)
}

/// `softnet_stat`: a line per CPU, of hexadecimal numbers of which the second are the drops.
fn backlog(text: &str) -> Option<u64> {
    let drops = text.lines().map(|line| {
        let second = line.split_whitespace().nth(1)?;
        u64::from_str_radix(second, 16).ok()
    });
    drops.collect::<Option<Vec<_>>>()?.into_iter().reduce(u64::wrapping_add)
}

/// `snmp`: for each protocol a line of names and one of values.
fn protocols(text: &str) -> HashMap<String, u64> {
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let mut figures = HashMap::new();
    for pair in lines.chunks_exact(2) {
        let [(protocol, names), (same, values)] = pair else { continue };
        if protocol == same {
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                // Some are -1.
                figures
                    .extend(value.parse().ok().map(|value| (format!("{protocol} {name}"), value)));
            }
        }
    }
    figures
}

/// `snmp6`: a name and a value in each line.
fn protocols6(text: &str) -> HashMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 3400707   56575    0    0    0     0          0         0 34007074    5657    0    0    0     0       0          0
  eth0:       9       8    7    6    5     4          3         2        1       0    9    9    9     0       0          0
eth1.2:9 8 0 1 0 0 0 0 0 0 0 0 0 0 0 0
";
    const SNMP: &str = "\
Ip: Forwarding DefaultTTL ReasmFails FragOKs
Ip: 2 64 11 0
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors MemErrors
Udp: 100 1 2 3 20 5 30 7
UdpLite: RcvbufErrors
UdpLite: 999
";

    #[test]
    fn every_figure_is_found_under_its_name() {
        let softnet = "008ce1c9 0000000a 00000005\n00183217 00000010 00000001\n";
        let snmp6 =
            "Ip6InReceives   \t5\nIp6ReasmFails                   \t100\nUdp6InCsumErrors\t200\n";
        let losses = MachineLosses::parse(DEV, softnet, SNMP, snmp6);
        let interface = |name: &str, dropped, errors, overruns| InterfaceLosses {
            interface: name.to_owned(),
            dropped,
            errors,
            overruns,
        };
        let expected = MachineLosses {
            interfaces: vec![interface("eth0", 6, 7, 5), interface("eth1.2", 1, 0, 0)],
            backlog_dropped: Some(26),
            reassembly_failed: Some(111),
            udp_checksum_errors: Some(230),
            udp_buffer_errors: Some(20),
        };
        assert_eq!(losses, expected);
        let text = losses.text();
        assert!(text.contains("eth0, dropped                    6\n"), "{text}");
        assert!(text.contains("CPU backlogs                    26\n"), "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_missing_and_not_zero() {
        assert_eq!(MachineLosses::parse("", "", "", ""), MachineLosses::default());
        let nonsense =
            MachineLosses::parse("x: a b c d e", "1 zz\n", "Udp: a\n", "Udp6InCsumErrors");
        assert_eq!(nonsense, MachineLosses::default());
        assert!(MachineLosses::default().text().contains("CPU backlogs                     -\n"));
    }

    #[test]
    fn this_machine_has_them() {
        let losses = MachineLosses::of_process(std::process::id());
        assert!(
            losses.backlog_dropped.is_some() && losses.udp_buffer_errors.is_some(),
            "{losses:?}"
        );
    }
}
