//! A network device that goes nowhere, which may let go of packets at once or hold them, and a look at what
//! leaves through it.

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::ioctl;

use crate::transmit::{Writer, numbered, set_option};

/// Length of the packets of [`Dummy::prompt`], which are slots, too.
pub const LEN: usize = 1_400;
/// Port that its packets go to.
const PORT: u16 = 5_004;

/// Runs a line of shell, which has to succeed.
pub fn shell(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().expect("sh");
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A device that drops what it is to send, in the networks `prefix`.0/24 and fd88::/64, with room for packets
/// of 9,000 bytes. It can read pages and segment.
#[derive(Debug)]
pub struct Dummy {
    name: &'static str,
    prefix: &'static str,
}

impl Dummy {
    /// A new one.
    pub fn new(name: &'static str, prefix: &'static str) -> Self {
        shell(&format!("ip link add {name} mtu 9000 type dummy"));
        let dummy = Self { name, prefix };
        shell(&format!("ip addr add {prefix}.1/24 dev {name} && ip link set {name} up"));
        shell(&format!("ip addr add fd88::1/64 dev {name} nodad"));
        dummy
    }

    /// Packets wait in its queue as `netem` says.
    pub fn queue(&self, netem: &str) {
        shell(&format!("tc qdisc replace dev {} root netem limit 100000 {netem}", self.name));
    }

    /// Changes what the device does itself.
    pub fn offload(&self, what: &str) {
        shell(&format!("ethtool -K {} {what}", self.name));
    }

    /// A socket connected to nobody, with much room.
    pub fn sender(&self) -> UdpSocket {
        let socket = UdpSocket::bind((format!("{}.1", self.prefix), 0)).expect("bind");
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20);
        socket.connect((format!("{}.77", self.prefix), PORT)).expect("connect");
        socket
    }

    /// The same with IPv6.
    pub fn sender_v6(&self) -> UdpSocket {
        let socket = UdpSocket::bind("[fd88::1]:0").expect("bind");
        socket.connect(("fd88::77", PORT)).expect("connect");
        socket
    }

    /// A running stream.
    pub fn writer(&self, create: ioctl::Create, flags: u32) -> Writer {
        let writer = Writer::create(create).expect("CREATE");
        writer.add_leg(0, self.sender().as_raw_fd(), flags).expect("ADD_LEG");
        writer.device.plain(ioctl::START).expect("START");
        writer
    }

    /// A running stream with slots of [`LEN`] bytes that has just sent from them.
    pub fn prompt(&self, create: ioctl::Create, limit: Duration) -> Writer {
        let create = ioctl::Create { slot_stride: LEN as u32, ..create };
        let mut writer = self.writer(create, 0);
        let deadline = Instant::now() + limit;
        let packet = numbered(0, LEN);
        while writer.leg(0).zerocopy == 0 {
            assert!(Instant::now() < deadline, "{:?} {:?}", writer.leg(0), writer.counters());
            writer.send_all([packet.as_slice(); 16], limit);
        }
        writer
    }

    /// Watches what leaves. While somebody does, what leaves is copied.
    pub fn tap(&self) -> Tap {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: Numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, all) };
        assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
        // SAFETY: Just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(self.name).expect("a name");
        // SAFETY: An address of zeros is one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: A text.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: An address and its length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        let room = 64_i32 << 20;
        // SAFETY: A number and its size.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const room).cast(),
                size_of_val(&room) as u32,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        Tap { fd }
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        let done = Command::new("ip").args(["link", "del", self.name]).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// See [`Dummy::tap`].
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// The payloads of `count` packets of `len` bytes, trains cut up, or what came until nothing did for
    /// `limit`.
    pub fn collect(&self, count: usize, len: usize, limit: Duration) -> Vec<Vec<u8>> {
        /// Headers of IPv4 without options and of UDP.
        const HEADERS: usize = 28;
        let mut packets = Vec::new();
        let mut buffer = vec![0_u8; 1 << 17];
        while packets.len() < count {
            let mut request =
                libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: One request.
            if unsafe { libc::poll(&mut request, 1, limit.as_millis() as i32) } != 1 {
                break;
            }
            let to = buffer.as_mut_ptr().cast();
            // SAFETY: A buffer and its size.
            let got = unsafe { libc::recv(self.fd.as_raw_fd(), to, buffer.len(), 0) };
            let Some(packet) = usize::try_from(got).ok().and_then(|got| buffer.get(..got)) else {
                break;
            };
            let ours = packet.len() > HEADERS
                && packet[0] == 0x45
                && packet[9] == libc::IPPROTO_UDP as u8
                && packet[22..24] == PORT.to_be_bytes();
            if ours {
                packets.extend(packet[HEADERS..].chunks(len).map(<[u8]>::to_vec));
            }
        }
        packets
    }
}
