//! Receivers of one stream: what the kernel engine is compared with, and itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rtp_mgr::{Engine, Item, Receiver};
use rtp_mgr_bench::sys::{self, PacketRing, ReceiveBuffers};

use crate::{BATCH, PACKET};

/// By then a packet ring's block is handed over though it is not full.
const HANDED_OVER: Duration = Duration::from_millis(20);
/// Bytes of Ethernet, IPv4 and UDP.
const HEADERS: u64 = 14 + 20 + 8;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

/// How packets are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Dropped in raw prerouting.
    Drop,
    Recv,
    RecvMany,
    RecvCoalesced,
    PacketRing,
    Ring,
    RingOrdered,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::Drop,
        Self::Recv,
        Self::RecvMany,
        Self::RecvCoalesced,
        Self::PacketRing,
        Self::Ring,
        Self::RingOrdered,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Recv => "recv",
            Self::RecvMany => "recvmmsg",
            Self::RecvCoalesced => "recvmmsg UDP_GRO",
            Self::PacketRing => "TPACKET_V3",
            Self::Ring => "ring",
            Self::RingOrdered => "ring, ordered",
        }
    }

    /// Whether packets are dropped in raw prerouting: by all that does not look before that.
    pub fn is_dropped(self) -> bool {
        matches!(self, Self::Drop | Self::PacketRing)
    }

    /// Whether it tells what it takes.
    pub fn counts(self) -> bool {
        self != Self::Drop
    }
}

/// Something that receives.
pub trait Receive {
    /// Takes what there is, `count` packets at most unless they come together.
    fn take(&mut self, count: usize) -> Result<()>;
    /// Takes what is handed over only after a while. Not measured.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Packets taken so far.
    fn taken(&self) -> u64;
    /// Where to send.
    fn address(&self) -> Result<SocketAddr>;
}

/// Opens a receiver, of a multicast group if `group` says so.
pub fn open(way: Way, group: bool) -> Result<Box<dyn Receive>> {
    if matches!(way, Way::Ring | Way::RingOrdered) {
        return Ok(Box::new(Ring::new(group, way == Way::RingOrdered)?));
    }
    let ip = if group { GROUP } else { Ipv4Addr::LOCALHOST };
    let socket = UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
    if group {
        socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
    }
    let mut many = ReceiveBuffers::new(BATCH, PACKET, false);
    if way == Way::RecvCoalesced {
        sys::set_gro(&socket)?;
        many = ReceiveBuffers::new(BATCH, sys::TRAIN_MAX, false);
    }
    let packet_ring = match way {
        Way::PacketRing => Some(PacketRing::open("lo")?),
        _ => None,
    };
    Ok(Box::new(Socket { socket, way, many, packet_ring, bytes: [0; 2_048], taken: 0 }))
}

/// Takes all blocks that there are. A coalesced packet counts as those it is made of.
fn take_blocks(ring: &mut PacketRing) -> u64 {
    let mut packets = 0;
    while let Some(got) = ring.take() {
        packets += got.bytes.saturating_sub(got.packets * HEADERS) / PACKET as u64;
    }
    packets
}

/// A plain socket, or a packet socket beside it.
struct Socket {
    socket: UdpSocket,
    way: Way,
    many: ReceiveBuffers,
    packet_ring: Option<PacketRing>,
    bytes: [u8; 2_048],
    taken: u64,
}

impl Receive for Socket {
    fn take(&mut self, count: usize) -> Result<()> {
        let mut left = count;
        match self.way {
            Way::Drop => {}
            Way::Recv => {
                while left > 0 {
                    let len = self.socket.recv(&mut self.bytes)?;
                    ensure!(len == PACKET, "a packet of {len} bytes");
                    left -= 1;
                }
                self.taken += count as u64;
            }
            Way::RecvMany | Way::RecvCoalesced => {
                while left > 0 {
                    let packets = self.many.receive(&self.socket)?.bytes as usize / PACKET;
                    ensure!(packets > 0, "nothing came");
                    left = left.saturating_sub(packets);
                    self.taken += packets as u64;
                }
            }
            _ => {
                let ring = self.packet_ring.as_mut().context("a packet ring")?;
                self.taken += take_blocks(ring);
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        if let Some(ring) = &mut self.packet_ring {
            std::thread::sleep(HANDED_OVER);
            self.taken += take_blocks(ring);
        }
        Ok(())
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }
}

/// A stream of the kernel engine.
struct Ring {
    receiver: Receiver,
    group: bool,
    taken: u64,
    bytes: u64,
}

impl Ring {
    fn new(group: bool, ordered: bool) -> Result<Self> {
        let leg = if group { format!("{GROUP}%lo:0") } else { "127.0.0.1:0".into() };
        let mut builder = Receiver::builder()
            .engine(Engine::Kernel)
            .leg(leg.parse()?)
            .slot_stride(PACKET as u32)
            .rtcp(false)
            .announce(false);
        if ordered {
            builder = builder.ordered(Duration::from_millis(20));
        }
        Ok(Self { receiver: builder.open()?, group, taken: 0, bytes: 0 })
    }
}

impl Receive for Ring {
    fn take(&mut self, count: usize) -> Result<()> {
        let mut left = count;
        while left > 0 {
            let batch = self.receiver.try_read()?.context("the stream has stopped")?;
            ensure!(!batch.is_empty(), "nothing came, with {left} to come");
            for item in &batch {
                // Showing the item would keep it in memory: a cost of this program only.
                let Item::Packet(packet) = item else { anyhow::bail!("not a packet") };
                self.bytes += packet.payload().len() as u64;
                self.taken += 1;
            }
            left = left.saturating_sub(batch.len());
        }
        Ok(())
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn address(&self) -> Result<SocketAddr> {
        let address = self.receiver.local_addr(0).context("the leg's address")?;
        let ip = if self.group { GROUP } else { Ipv4Addr::LOCALHOST };
        Ok((IpAddr::V4(ip), address.port()).into())
    }
}
