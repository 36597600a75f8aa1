//! One of the two streams that get the same traffic: its sockets, and what it makes of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rtp_mgr::{Engine, Leg, Mode, Reader, Receiver, SideChannel, Stats};
use socket2::{Domain, Protocol, Socket, Type};

use super::plan::{FOR_EVER, Shape, Step};
use super::recording::{Record, Recording};
use crate::behaviours::books;
use crate::heard::Reads;
use crate::wait;
use crate::wire::{self, UNDER_WAY_MAX, memory_of, taken};

/// A stream and the sockets that send to it.
pub(crate) struct Stream {
    rx: Receiver,
    stats: Stats,
    side: SideChannel,
    lossy: Option<Reader>,
    /// By sender, then by leg.
    sockets: Vec<Vec<UdpSocket>>,
    start: u64,
    coalesced: bool,
    sent: u64,
    under_way: u64,
    pub recording: Recording,
}

impl Stream {
    /// Opens a stream of this shape, with a socket that shares each of `senders`' addresses for
    /// each leg.
    #[track_caller]
    pub(crate) fn open(engine: Engine, shape: &Shape, senders: &[UdpSocket]) -> Self {
        let mut builder = Receiver::builder()
            .engine(engine)
            .rtcp(false)
            .announce(false)
            .ring_order(shape.ring_order)
            .slot_stride(shape.slot_stride)
            .sources(shape.sources)
            .gro(shape.gro)
            .start_position(shape.start);
        for _ in 0..shape.legs {
            builder = builder.leg(Leg::new(shape.local(), 0));
        }
        if shape.ordered {
            builder = builder.ordered(FOR_EVER);
        }
        if let Some(payload_type) = shape.payload_type {
            builder = builder.payload_type(payload_type);
        }
        if let Some(ssrc) = shape.ssrc {
            builder = builder.ssrc(ssrc);
        }
        if let Some(address) = shape.source_address {
            builder = builder.source_address(address);
        }
        if let Some((payload_type, hz)) = shape.clock_rate {
            builder = builder.clock_rate(payload_type, hz);
        }
        let rx = builder.open().unwrap_or_else(|error| panic!("{engine:?}: {error}"));
        let to: Vec<SocketAddr> = (0..2).map_while(|leg| rx.local_addr(leg)).collect();
        let sockets = |sender: &UdpSocket| {
            let from = sender.local_addr().expect("a bound socket");
            to.iter().map(|to| connect(from, *to)).collect()
        };
        let stats = rx.stats();
        Self {
            sockets: senders.iter().map(sockets).collect(),
            lossy: shape.skimmed.then(|| rx.subscribe(Mode::Lossy).expect("there is room")),
            side: rx.side_channel(),
            start: stats.snapshot().head,
            coalesced: shape.gro,
            stats,
            rx,
            sent: 0,
            under_way: 0,
            recording: Recording::default(),
        }
    }

    /// Whether `packets` more may be under way.
    pub(crate) fn has_room(&self, packets: &[Vec<u8>]) -> bool {
        self.under_way == 0 || self.under_way + memory(packets) <= UNDER_WAY_MAX
    }

    /// Sends packets, as one train or one by one.
    #[track_caller]
    pub(crate) fn send(&mut self, leg: usize, from: usize, packets: &[Vec<u8>]) {
        self.under_way += memory(packets);
        self.sent += packets.len() as u64;
        let socket = &self.sockets[from][leg];
        match packets {
            [packet] => {
                let sent = socket.send(packet);
                sent.unwrap_or_else(|error| panic!("{} bytes: {error}", packet.len()));
            }
            train => wire::send_train(socket, train),
        }
    }

    /// Waits until the stream has taken everything that was sent, readers see what came of it, and what is no
    /// RTP was passed on.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        let (sent, start, stats) = (self.sent, self.start, &self.stats);
        let (side, passed) = (&self.side, &mut self.recording.passed);
        let settled = || {
            let counters = stats.counters();
            if taken(&counters) < sent {
                return false;
            }
            passed.extend(std::iter::from_fn(|| side.try_recv()).map(Into::into));
            let aside = taken(&counters) - counters.received;
            if (passed.len() as u64) < aside {
                return false;
            }
            let snapshot = stats.snapshot();
            let positions = snapshot.counters.published + snapshot.counters.gap_positions;
            snapshot.head.wrapping_sub(start) >= positions
        };
        wait::idly_until(|| format!("{sent} datagrams sent: {:?}", stats.snapshot()), settled);
        self.under_way = 0;
    }

    /// Sends a datagram that is no RTP, and waits until the engine knows of it: of BYE the module learns
    /// from user space, which reads the next one when it has told.
    #[track_caller]
    pub(crate) fn tell(&mut self, leg: usize, from: usize, datagram: &[u8]) {
        for datagram in [datagram, b"and then?"] {
            self.settle();
            self.send(leg, from, &[datagram.to_vec()]);
        }
        self.settle();
    }

    /// Takes what readers can hear at present; all has settled.
    #[track_caller]
    pub(crate) fn read(&mut self) {
        hear(&mut self.rx, &mut self.recording.heard, self.coalesced);
    }

    /// As [`read`](Self::read), by the lossy reader.
    #[track_caller]
    pub(crate) fn skim(&mut self) {
        if let Some(reader) = &mut self.lossy {
            hear(reader, &mut self.recording.skimmed, self.coalesced);
        }
    }

    /// Stops the stream, takes the rest of it and its last figures.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        self.settle();
        self.rx.stop().unwrap_or_else(|error| panic!("{error}"));
        self.read();
        self.skim();
        let snapshot = self.stats.snapshot();
        let engine = snapshot.engine;
        books::assert_balanced(&snapshot.counters);
        assert_eq!(snapshot.counters.external_drops, 0, "lost in the socket of {engine}");
        assert_eq!(self.side.dropped(), 0, "nobody took what {engine} passed on");
        self.recording.last = Some(snapshot.into());
    }
}

fn memory(packets: &[Vec<u8>]) -> u64 {
    packets.iter().map(|packet| memory_of(packet.len())).sum()
}

#[track_caller]
fn hear(reader: &mut impl Reads, heard: &mut Vec<Record>, coalesced: bool) {
    loop {
        match reader.try_read() {
            Ok(Some(batch)) if batch.is_empty() => return,
            Ok(Some(batch)) => {
                heard.extend(batch.iter().map(|item| Record::new(item, coalesced)));
            }
            Ok(None) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A socket for each sender in `steps`: whoever shares its address sends as that sender.
pub(crate) fn senders(shape: &Shape, steps: &[Step]) -> Vec<UdpSocket> {
    let senders = steps.iter().filter_map(Step::sender).max().map_or(0, |most| most + 1);
    let socket = |sender| {
        let ip = if shape.ipv6 {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + sender as u8))
        };
        bind(SocketAddr::new(ip, 0))
    };
    (0..senders).map(socket).collect()
}

/// A socket that shares its address with those to other destinations.
#[track_caller]
fn connect(from: SocketAddr, to: SocketAddr) -> UdpSocket {
    let socket = bind(from);
    socket.connect(to).expect("an address on this machine");
    socket
}

#[track_caller]
fn bind(from: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, Some(Protocol::UDP));
    let socket = socket.expect("a socket");
    socket.set_reuse_port(true).expect("a socket option");
    socket.bind(&from.into()).unwrap_or_else(|error| panic!("{from}: {error}"));
    socket.into()
}
