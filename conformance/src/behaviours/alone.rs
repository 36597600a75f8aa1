//! Behaviours that look at or change what a process has only once: its descriptors, mappings,
//! threads, network namespace. Each runs in a process of its own.

use std::fs;
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};

use rtp_mgr::{Attached, Context, Leg, Mode};

use crate::child::Remote;
use crate::harness::{Harness, Need, NotRun, Rig, unique_name};
use crate::heard::{self, all, assert_heard};
use crate::process;
use crate::raw;
use crate::wait;

/// What a process holds.
#[derive(Debug)]
struct Holdings {
    descriptors: Vec<String>,
    mappings: usize,
    threads: usize,
}

impl Holdings {
    fn now() -> Self {
        let descriptors = process::descriptors().into_iter().map(|(_, target)| {
            // Sockets and pipes are numbered.
            target.split(':').next().unwrap_or_default().to_owned()
        });
        let mut descriptors: Vec<_> = descriptors.collect();
        descriptors.sort();
        Self { descriptors, mappings: process::stream_mappings().len(), threads: threads() }
    }

    /// Nothing came to it that stays. Less is no leak: what is opened and closed on the way may have been
    /// there at first.
    #[track_caller]
    fn assert_again(&self) {
        wait::until(|| format!("{self:?}, now {:?}", Self::now()), || Self::now().is_within(self));
    }

    fn is_within(&self, other: &Self) -> bool {
        let count =
            |of: &Self, kind: &String| of.descriptors.iter().filter(|it| *it == kind).count();
        self.descriptors.iter().all(|kind| count(self, kind) <= count(other, kind))
            && self.mappings <= other.mappings
            && self.threads <= other.threads
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("/proc is mounted").count()
}

pub(crate) fn killed_readers_leak_nothing(h: &Harness) -> Result<(), NotRun> {
    const KILLED: u16 = 50;
    h.needs(Need::OtherProcesses)?;
    let name = unique_name("killed");
    let mut rig = h.rig(|builder| builder.ring_order(6).publish(&name).allow_reliable(true));
    let sender = rig.sender();
    assert_heard(&rig.relay(&sender, 0..10), all(0..10));
    let before = Holdings::now();
    for round in 0..KILLED {
        let mode = if round % 2 == 0 { Mode::Lossy } else { Mode::Reliable };
        let mut reader = Remote::reader(h, &name, mode);
        if round % 3 == 0 {
            // Killed while it reads.
            reader.tell("rest");
        }
        let first = 10 + round * 20;
        assert_heard(&rig.relay(&sender, first..first + 20), all(first..first + 20));
        reader.kill();
        rig.wait_for("it has gone", |counters| counters.readers == 1);
    }
    let first = 10 + KILLED * 20;
    // Far round the ring: a reliable one that were still counted would be in the way.
    assert_heard(&rig.relay(&sender, first..first + 500), all(first..first + 500));
    assert_eq!(rig.counters().dropped_ring_full, 0);
    before.assert_again();
    Ok(())
}

pub(crate) fn readers_that_come_and_go_leak_nothing(h: &Harness) {
    let name = unique_name("comes-and-goes");
    let mut rig = h.rig(|builder| builder.ring_order(6).publish(&name));
    let sender = rig.sender();
    let before = Holdings::now();
    for round in 0..50 {
        let attached = Attached::open(&name, Mode::Lossy).unwrap_or_else(|error| panic!("{error}"));
        let subscribed = rig.rx.subscribe(Mode::Reliable).expect("there is room");
        sender.send(round);
        assert_heard(&rig.hear(1), all([round]));
        if round % 2 == 0 {
            drop(attached);
            drop(subscribed);
        } else {
            drop(subscribed);
            drop(attached);
        }
        rig.wait_for("they have gone", |counters| counters.readers == 1);
    }
    before.assert_again();
}

pub(crate) fn streams_that_come_and_go_leak_nothing(h: &Harness) {
    let opened = |name: &str| {
        let mut rig = h.rig(|builder| builder.ring_order(6).publish(name));
        let sender = rig.sender();
        assert_heard(&rig.relay(&sender, 0..10), all(0..10));
        let tx = h.transmit(rig.line.address(0), |builder| builder.publish(format!("{name}-tx")));
        drop(tx);
    };
    // The first may set up what the process keeps.
    opened(&unique_name("first"));
    let before = Holdings::now();
    for _ in 0..30 {
        opened(&unique_name("again"));
    }
    before.assert_again();
}

pub(crate) fn fifty_streams_share_one_thread(h: &Harness) {
    const STREAMS: u32 = 50;
    const PACKETS: u16 = 100;
    let context = Context::new(NonZeroUsize::MIN).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(context.threads(), 1);
    let one = h.rig(|builder| builder.context(&context));
    let before = threads();
    let mut rigs: Vec<Rig> = (1..STREAMS)
        .map(|_| h.rig(|builder| builder.context(&context).ring_order(8)))
        .chain([one])
        .collect();
    assert_eq!(threads(), before, "a stream has a thread of its own");
    let senders: Vec<_> = rigs.iter().zip(0..).map(|(rig, ssrc)| rig.sender().ssrc(ssrc)).collect();
    for sequence in 0..PACKETS {
        senders.iter().for_each(|sender| sender.send(sequence));
    }
    for (rig, ssrc) in rigs.iter_mut().zip(0..) {
        rig.line.settle();
        let heard = rig.hear_present();
        assert_heard(&heard, all(0..PACKETS));
        assert!(heard::packets(&heard).all(|packet| packet.ssrc == ssrc));
        let counters = rig.counters();
        assert_eq!((counters.received, counters.sources), (PACKETS.into(), 1));
    }
    drop(rigs);
    drop(context);
    wait::until(|| "the engine's thread has ended".to_owned(), || threads() < before);
}

/// Enters a network namespace of its own with a cable `near` to nowhere, where groups are nobody
/// else's. Returns whether it has IPv6.
fn enter_namespace() -> Result<bool, NotRun> {
    raw::new_network_namespace()
        .map_err(|error| NotRun::because(format!("no network namespace can be made: {error}")))?;
    ip("link set lo up multicast on")?;
    // Addresses are usable at once, instead of after duplicate detection.
    let ipv6 = fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").is_ok();
    ip("link add near type veth peer name far")?;
    ip("link set near up")?;
    ip("link set far up")?;
    ip("address add 10.1.0.1/24 dev near")?;
    if ipv6 {
        ip("address add fd01::1/64 dev near nodad")?;
    }
    Ok(ipv6)
}

fn ip(words: &str) -> Result<(), NotRun> {
    let status = Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(NotRun::because(format!("`ip {words}` ends with {status}"))),
        Err(error) => Err(NotRun::because(format!("the program 'ip' cannot be started: {error}"))),
    }
}

pub(crate) fn multicast_within_the_machine(h: &Harness) -> Result<(), NotRun> {
    let mut groups = vec![
        ["239.1.1.1%lo:5004", "239.1.1.2%lo:5004"],
        ["239.1.1.1%near:5004", "239.1.1.2%near:5004"],
        ["10.1.0.1@232.1.1.1%near:5004", "10.1.0.1@232.1.1.2%near:5004"],
    ];
    if enter_namespace()? {
        groups.push(["[ff35::1%near]:5004", "[ff35::2%near]:5004"]);
        groups.push(["fd01::1@[ff3e::8000:1%near]:5004", "fd01::1@[ff3e::8000:2%near]:5004"]);
    } else {
        println!("not run: multicast over IPv6, which this machine has not");
    }
    for [group, other] in groups {
        let leg: Leg = group.parse().expect("a leg");
        let open = |leg: &str| Rig::open(h.receiver().leg(leg.parse().expect("a leg")));
        // Two programs on one group, a third on another with the same port.
        let (mut first, mut second, mut third) = (open(group), open(group), open(other));
        let mut to_group = h.transmitter().leg(leg).ssrc(1).first_sequence(0).open();
        let mut to_other =
            h.transmitter().leg(other.parse().expect("a leg")).ssrc(2).first_sequence(0).open();
        for tx in [&mut to_group, &mut to_other] {
            let tx = tx.as_mut().unwrap_or_else(|error| panic!("{group}: {error}"));
            super::transmit::post(tx, &[100; 50]);
            assert!(tx.flush(wait::LONG).expect("the engine runs"), "{group}");
        }
        for (rig, ssrc) in [(&mut first, 1), (&mut second, 1), (&mut third, 2)] {
            let heard = rig.hear(50);
            assert_heard(&heard, all(0..50));
            assert!(heard::packets(&heard).all(|packet| packet.ssrc == ssrc), "{group}");
            let counters = rig.rx.stats().counters();
            assert_eq!((counters.received, counters.sources), (50, 1), "{group}");
        }
    }
    Ok(())
}
