//! A writer of a transmit stream, and what is at the other end of the network.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rtp_mgr_ring::abi::{
    self, DESC_WORDS, Descriptor, Header, LegFigures, PAGE, SEQUENCE_WORDS, StreamCounters,
    control, flag, ioctl, status,
};
use rtp_mgr_ring::atomic::Word;
use rtp_mgr_ring::transmit::{commit, prepare_wait};
use rtp_mgr_ring::view::Block;

use crate::{Device, Mapping, header_of};

/// A stream with all its parts mapped, as its writer has it.
#[derive(Debug)]
pub struct Writer {
    /// The file.
    pub device: Device,
    /// A copy of the header.
    pub header: Header,
    /// The status part.
    pub status: Mapping,
    /// The writer's page.
    pub control: Mapping,
    /// The descriptors.
    pub descriptors: Mapping,
    /// The packets.
    pub slots: Mapping,
    /// Next position to fill.
    pub next: u64,
    /// How many times the engine wanted a kick.
    pub kicks: u64,
}

/// What CREATE is asked for a transmit stream.
pub fn request() -> ioctl::Create {
    ioctl::Create { direction: abi::DIRECTION_TRANSMIT, ..Default::default() }
}

impl Writer {
    /// A new stream.
    pub fn create(mut request: ioctl::Create) -> io::Result<Self> {
        let device = Device::open()?;
        device.call(ioctl::CREATE, &mut request)?;
        let (read, both) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let header = header_of(&device.map(0, PAGE as u64, read)?);
        assert_eq!(request.total_len, header.total_len);
        assert_eq!(request.reader_index, ioctl::NO_READER);
        Ok(Self {
            status: device.map(header.status_offset, header.status_len, read)?,
            control: device.map(header.control_offset, header.control_len, both)?,
            descriptors: device.map(header.desc_offset, header.desc_len, both)?,
            slots: device.map(header.slots_offset, header.slots_len, both)?,
            next: request.start,
            kicks: 0,
            device,
            header,
        })
    }

    /// A stream with a leg per socket, running.
    pub fn running(request: ioctl::Create, legs: &[&UdpSocket]) -> io::Result<Self> {
        let writer = Self::create(ioctl::Create { legs: legs.len() as u32, ..request })?;
        for (leg, socket) in legs.iter().enumerate() {
            writer.add_leg(leg as u32, socket.as_raw_fd(), 0)?;
        }
        writer.device.plain(ioctl::START)?;
        Ok(writer)
    }

    /// Hands over a socket.
    pub fn add_leg(&self, leg: u32, fd: RawFd, flags: u32) -> io::Result<()> {
        let mut request = ioctl::AddLeg { fd, leg, flags, ..Default::default() };
        self.device.call(ioctl::ADD_LEG, &mut request)
    }

    fn head(&self) -> &Word {
        self.control.word(control::HEAD)
    }

    /// Next position that the engine will release.
    pub fn tail(&self) -> u64 {
        self.status.word(status::TAIL).load_acquire()
    }

    /// Positions that may be filled.
    pub fn room(&self) -> u64 {
        u64::from(self.header.slot_count) - self.next.wrapping_sub(self.tail())
    }

    /// The index of a position.
    pub fn index(&self, position: u64) -> u32 {
        position as u32 & (self.header.slot_count - 1)
    }

    /// Fills the next slot, and its descriptor as given but for the slot and the length.
    pub fn fill_as(&mut self, bytes: &[u8], descriptor: Descriptor) {
        assert!(self.room() > 0 && bytes.len() <= self.header.slot_stride as usize);
        let slot = self.index(self.next);
        let at = slot as usize * self.header.slot_stride as usize;
        // SAFETY: A slot of the mapping, which only this writer fills; the kernel reads it.
        unsafe {
            let to = self.slots.address().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.describe(Descriptor { slot, len: bytes.len() as u32, ..descriptor });
    }

    /// Fills the next slot.
    pub fn fill(&mut self, bytes: &[u8]) {
        self.fill_as(bytes, Descriptor::default());
    }

    /// Fills the next slot with a packet that is not to leave before `launch_ns` of CLOCK_TAI.
    pub fn fill_at(&mut self, bytes: &[u8], launch_ns: u64) {
        let time =
            Descriptor { time_ns: launch_ns, flags: flag::LAUNCH_TIME, ..Default::default() };
        self.fill_as(bytes, time);
    }

    /// Writes the next descriptor, whatever it says.
    pub fn describe(&mut self, descriptor: Descriptor) {
        let first = self.index(self.next) as usize * DESC_WORDS;
        for (to, from) in self.descriptors.words()[first..].iter().zip(descriptor.to_words()) {
            to.store(from);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Makes what was filled the engine's, and kicks it if it wants that.
    pub fn commit(&mut self) {
        if commit(self.head(), self.status.word(status::NEED_KICK), self.next) {
            self.kicks += 1;
            self.device.plain(ioctl::KICK).expect("KICK");
        }
    }

    /// Waits with poll until everything before `position` is released. `false`: not within `limit`.
    pub fn wait_for(&self, position: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (wake_at, tail) = (self.control.word(control::WAKE_AT), self.status.word(status::TAIL));
        while prepare_wait(wake_at, tail, position) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.device.poll_for(libc::POLLOUT, left).expect("poll");
        }
        true
    }

    /// Sends these packets, waiting for room as needed, and returns when all are released.
    pub fn send_all<'a>(&mut self, packets: impl IntoIterator<Item = &'a [u8]>, limit: Duration) {
        let count = u64::from(self.header.slot_count);
        for packet in packets {
            if self.room() == 0 {
                self.commit();
                // A quarter at a time.
                let until = self.next.wrapping_sub(count - count / 4);
                assert!(self.wait_for(until, limit), "no room: {:?}", self.counters());
            }
            self.fill(packet);
        }
        self.commit();
        assert!(self.wait_for(self.next, limit), "not sent: {:?}", self.counters());
    }

    /// Counters from the mapped pages.
    pub fn counters(&self) -> StreamCounters {
        let mut words = [0; StreamCounters::WORDS];
        self.block(self.header.counters_offset as usize, &mut words);
        StreamCounters::from_words(words)
    }

    /// The figures of a leg, from the mapped pages.
    pub fn leg(&self, leg: usize) -> LegFigures {
        let mut words = [0; LegFigures::WORDS];
        let stride = self.header.legs_stride as usize;
        self.block(self.header.legs_offset as usize + leg * stride, &mut words);
        LegFigures::from_words(words)
    }

    fn block(&self, offset: usize, words: &mut [u64]) {
        let block = &self.status.words()[offset / 8..][..SEQUENCE_WORDS + words.len()];
        assert!(Block { words: block }.snapshot(words, 100_000), "a consistent snapshot");
    }
}

/// A socket that may be connected to, with room for bursts.
pub fn receiver() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20);
    socket
}

/// A socket connected to `to`.
pub fn sender(to: &UdpSocket) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.connect(to.local_addr().expect("an address")).expect("connect");
    socket
}

/// Sets an option that is a number.
pub fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) {
    // SAFETY: A number and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "option {option}: {}", io::Error::last_os_error());
}

/// Receives in a thread until `count` packets came, or none for `limit`.
pub fn collect(socket: UdpSocket, count: usize, limit: Duration) -> JoinHandle<Vec<Vec<u8>>> {
    std::thread::spawn(move || {
        socket.set_read_timeout(Some(limit)).expect("a timeout");
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_536];
        while packets.len() < count {
            let Ok(len) = socket.recv(&mut buffer) else { break };
            packets.push(buffer[..len].to_vec());
        }
        packets
    })
}

/// A packet with its number in the first eight bytes, `len` bytes long.
pub fn numbered(number: u64, len: usize) -> Vec<u8> {
    let bytes = number.to_le_bytes().into_iter();
    bytes.chain((8..len).map(|at| (number as usize * 31 + at) as u8)).take(len).collect()
}

/// Kernel threads of streams: their process ids.
pub fn threads() -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            name.starts_with("rtp_mgr/").then_some(number)
        })
        .collect()
}

/// How many times a process went to sleep or was made to wait.
pub fn switches(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("/proc");
    let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
    lines
        .map(|line| line.split_whitespace().last().expect("/proc").parse::<u64>().expect("/proc"))
        .sum()
}

/// CLOCK_REALTIME or another, nanoseconds.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: Room for a time.
    assert_eq!(unsafe { libc::clock_gettime(clock, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// When the kernel received each of the packets that come within `limit` of each other, up to `count`:
/// CLOCK_REALTIME, nanoseconds.
pub fn arrivals(socket: &UdpSocket, count: usize, limit: Duration) -> Vec<(u64, Vec<u8>)> {
    socket.set_read_timeout(Some(limit)).expect("a timeout");
    let mut arrivals = Vec::new();
    while arrivals.len() < count {
        let mut bytes = vec![0_u8; 2_048];
        let mut control = [0_u64; 32];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: All zero is an empty header.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: The header describes the buffers above.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
        if len < 0 {
            break;
        }
        bytes.truncate(len as usize);
        // SAFETY: The kernel filled the header; the first control message is the time, the only one
        // that was asked for.
        let time = unsafe {
            let first = libc::CMSG_FIRSTHDR(&message);
            assert!(!first.is_null() && (*first).cmsg_type == libc::SO_TIMESTAMPNS);
            libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned()
        };
        arrivals.push((time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64, bytes));
    }
    arrivals
}
