//! Layout of the shared memory of a stream: the contract between engine and user, the same for the
//! kernel module and the embedded engine.
//!
//! What lives here: constants, plain structs of integers and their offsets. What does not: anything
//! that reads or writes shared memory ([`super::view`]). `docs/abi.md` tells the rules in prose;
//! `include/rtp_mgr.h` is the C view of this file.
//!
//! The region is little endian, page aligned and linear. Offsets are read from the [`Header`] at run
//! time and never computed by the user. A part never shares a page with another part.
//!
//! | part | written by (receive) | written by (transmit) |
//! |---|---|---|
//! | status: [`Header`], positions, [`StreamCounters`], [`LegFigures`], [`SourceFigures`] | engine | engine |
//! | [`ReaderStatus`], a page per reader | engine | engine |
//! | control: [`control`], a page per reader or writer | its user | its user |
//! | descriptors: [`Descriptor`] | engine | user |
//! | slots | engine | user |

#[cfg(target_endian = "big")]
compile_error!("the shared memory of RTP Manager is little endian");

/// First word of the status part: "RTPM" in memory order.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RTPM");
/// Raised by a change that an older user cannot read. A different major version is refused.
pub const ABI_MAJOR: u16 = 1;
/// Raised by additions. A user accepts any minor version of its major version.
pub const ABI_MINOR: u16 = 0;

/// Magic byte of the ioctls of `/dev/rtp_mgr`.
pub const IOCTL_MAGIC: u8 = 0xBB;

/// Every part begins on a multiple of this, in bytes.
pub const PAGE: usize = 4096;
/// Size of a descriptor in bytes.
pub const DESC_STRIDE: usize = 64;
/// Number of 64-bit words in a descriptor.
pub const DESC_WORDS: usize = DESC_STRIDE / 8;
/// Smallest and largest `ring_order`: a ring has `2^ring_order` positions.
pub const RING_ORDER_MIN: u8 = 4;
/// See [`RING_ORDER_MIN`].
pub const RING_ORDER_MAX: u8 = 20;
/// `ring_order` when nothing else is asked for: 1,024 positions.
pub const RING_ORDER_DEFAULT: u8 = 10;
/// Smallest slot, in bytes.
pub const SLOT_STRIDE_MIN: u32 = 64;
/// Largest slot, in bytes.
pub const SLOT_STRIDE_MAX: u32 = 65_536;
/// Slot size when nothing else is asked for, in bytes.
pub const SLOT_STRIDE_DEFAULT: u32 = 2_048;
/// Longest packet, in bytes.
pub const PACKET_LEN_MAX: u32 = 65_535;
/// Legs that one stream can have (ST 2022-7 needs two).
pub const LEGS_MAX: usize = 2;
/// Readers that one receive stream can have.
pub const READERS_MAX: usize = 16;
/// Source table entries when nothing else is asked for.
pub const SOURCES_DEFAULT: u32 = 1_024;
/// Most source table entries: descriptors name a source in 16 bits and [`SOURCE_NONE`] is taken.
pub const SOURCES_MAX: u32 = 65_535;
/// [`Descriptor::source`] of a packet whose source found no room in the table.
pub const SOURCE_NONE: u16 = u16::MAX;

/// [`Header::direction`]: the engine produces.
pub const DIRECTION_RECEIVE: u32 = 0;
/// [`Header::direction`]: the user produces.
pub const DIRECTION_TRANSMIT: u32 = 1;

/// [`Header::engine`]: the embedded engine.
pub const ENGINE_USER: u32 = 0;
/// [`Header::engine`]: the kernel module.
pub const ENGINE_KERNEL: u32 = 1;

/// [`status::STATE`]: configured, not started.
pub const STATE_CONFIGURED: u64 = 1;
/// [`status::STATE`]: running.
pub const STATE_RUNNING: u64 = 2;
/// [`status::STATE`]: stopped; nothing more will be published.
pub const STATE_STOPPED: u64 = 3;

/// Bits of [`Header::features`].
pub mod feature {
    /// Packets are in RTP sequence order and gaps are published.
    pub const ORDERED: u64 = 1 << 0;
    /// `time_ns` of every packet is its own (never shared by coalesced packets).
    pub const EXACT_TIMES: u64 = 1 << 1;
    /// Fed by the simulated DMA engine.
    pub const SIMULATED: u64 = 1 << 2;
    /// Of a module: it has receive streams with UDP legs.
    pub const UDP_RECEIVE: u64 = 1 << 3;
    /// Of a module: it has transmit streams.
    pub const UDP_TRANSMIT: u64 = 1 << 4;
}

/// Bits of [`Descriptor::flags`].
pub mod flag {
    /// The RTP marker bit.
    pub const MARKER: u16 = 1 << 0;
    /// No packet here: `count` packets from `sequence` on are missing.
    pub const LOST: u16 = 1 << 1;
    /// The sequence does not continue from the position before: a new epoch, or packets were
    /// dropped here. `count` packets are missing before this one (0: not known).
    pub const DISCONTINUITY: u16 = 1 << 2;
    /// With DISCONTINUITY or LOST: at least one of the missing was dropped because the ring was full.
    pub const RING_FULL: u16 = 1 << 3;
    /// The packet was longer than what is here.
    pub const TRUNCATED: u16 = 1 << 4;
    /// Only one leg had this packet when it was placed, and the other had passed it.
    pub const RECOVERED: u16 = 1 << 5;
    /// Not RTP: the simulated source's raw pattern.
    pub const RAW: u16 = 1 << 6;
    /// `time_ns` is shared with neighbouring packets that the kernel coalesced.
    pub const COALESCED_TIME: u16 = 1 << 7;
    /// Transmit: send no earlier than `time_ns`.
    pub const LAUNCH_TIME: u16 = 1 << 8;
}

/// Static description of a stream's memory, at offset 0 of the status part.
///
/// Written once before the region is shared. A user copies it once, checks it against the real size
/// of what it mapped, and uses the copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`ABI_MAJOR`].
    pub abi_major: u16,
    /// [`ABI_MINOR`].
    pub abi_minor: u16,
    /// Bytes of this struct that the engine filled.
    pub header_len: u32,
    /// [`DIRECTION_RECEIVE`] or [`DIRECTION_TRANSMIT`].
    pub direction: u32,
    /// Bytes of the whole region.
    pub total_len: u64,
    /// Bits of [`feature`].
    pub features: u64,
    /// Positions in the ring, a power of two.
    pub slot_count: u32,
    /// Slots, at least `slot_count`.
    pub slot_total: u32,
    /// Bytes from one slot to the next.
    pub slot_stride: u32,
    /// Bytes from one descriptor to the next.
    pub desc_stride: u32,
    /// Offset of the status part (this struct).
    pub status_offset: u64,
    /// Bytes of the status part.
    pub status_len: u64,
    /// Offset of the reader status pages.
    pub reader_status_offset: u64,
    /// Bytes from one reader status page to the next.
    pub reader_status_stride: u32,
    /// Number of reader status pages.
    pub reader_status_count: u32,
    /// Offset at which a file maps its own control page.
    pub control_offset: u64,
    /// Bytes of a control page.
    pub control_len: u64,
    /// Offset of the descriptors.
    pub desc_offset: u64,
    /// Bytes of the descriptors.
    pub desc_len: u64,
    /// Offset of the slots.
    pub slots_offset: u64,
    /// Bytes of the slots.
    pub slots_len: u64,
    /// Offset of [`StreamCounters`] in the status part.
    pub counters_offset: u32,
    /// Bytes of the counters, sequence word included.
    pub counters_len: u32,
    /// Offset of the first [`LegFigures`] in the status part.
    pub legs_offset: u32,
    /// Bytes from one leg's figures to the next.
    pub legs_stride: u32,
    /// Number of legs with figures.
    pub legs_count: u32,
    /// Bytes from one source's figures to the next.
    pub sources_stride: u32,
    /// Offset of the first [`SourceFigures`] in the status part.
    pub sources_offset: u64,
    /// Number of entries in the source table.
    pub sources_count: u32,
    /// [`ENGINE_USER`] or [`ENGINE_KERNEL`].
    pub engine: u32,
    /// Number of the stream, unique on this machine while it lives (per engine).
    pub stream_id: u64,
    /// Process that owns the stream.
    pub owner_pid: u32,
    /// User that owns the stream.
    pub owner_uid: u32,
}

/// Offsets of the live words in the status part. Each group has its own cache line.
pub mod status {
    /// Bytes reserved for [`super::Header`].
    pub const HEADER_AREA: usize = 512;
    /// One more than the highest position being written (receive).
    pub const CLAIM: usize = 512;
    /// Next position to publish (receive) or the engine's accepted head (transmit).
    pub const HEAD: usize = 576;
    /// Transmit: not 0 while the engine sleeps and wants a kick after a commit.
    pub const NEED_KICK: usize = 640;
    /// Transmit: next position to release.
    pub const TAIL: usize = 704;
    /// One of the `STATE_` values.
    pub const STATE: usize = 768;
    /// TAI - UTC in seconds, a two's complement number.
    pub const TAI_OFFSET_S: usize = 776;
    /// 1 when the machine has a TAI offset configured, else 0 (`time_ns` then equals UTC).
    pub const TAI_VALID: usize = 784;
    /// Raised when CLOCK_REALTIME was seen to step.
    pub const CLOCK_GENERATION: usize = 792;
    /// Offset of the counters, as this implementation lays them out (users read the header).
    pub const COUNTERS: usize = 1024;
    /// Offset of the legs' figures, as this implementation lays them out.
    pub const LEGS: usize = 2048;
    /// Bytes from one leg's figures to the next.
    pub const LEGS_STRIDE: usize = 512;
    /// Offset of the source table, as this implementation lays it out.
    pub const SOURCES: usize = 4096;
    /// Bytes from one source's figures to the next.
    pub const SOURCES_STRIDE: usize = 256;
}

/// Offsets in a control page (one per reader or writer, written by its user).
pub mod control {
    /// Receive: next position that this reader has not released.
    pub const TAIL: usize = 0;
    /// Transmit: next position that the writer has not committed.
    pub const HEAD: usize = 0;
    /// Receive: wake me when head has reached this position. Transmit: when tail has.
    pub const WAKE_AT: usize = 64;
}

/// One position of the ring: 64 bytes.
///
/// Shared as eight words ([`Descriptor::to_words`]); this struct is always a private copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Extended sequence number: cycles above, the 16 bits of the packet below.
    pub sequence: u64,
    /// Arrival time, or launch time (transmit), in nanoseconds of CLOCK_TAI.
    pub time_ns: u64,
    /// Slot that holds the packet.
    pub slot: u32,
    /// Bytes of the packet in the slot, RTP header included.
    pub len: u32,
    /// RTP timestamp.
    pub rtp_timestamp: u32,
    /// RTP synchronisation source. 0 is a valid SSRC.
    pub ssrc: u32,
    /// Packets missing, with LOST or DISCONTINUITY.
    pub count: u32,
    /// Index into the source table, or [`SOURCE_NONE`].
    pub source: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// Bytes from the start of the slot to the payload.
    pub payload_offset: u16,
    /// RTP payload type, 0 to 127.
    pub payload_type: u8,
    /// Leg that the packet came from.
    pub leg: u8,
    /// Bytes of payload, padding not counted.
    pub payload_len: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

impl Descriptor {
    /// The descriptor as it stands in shared memory.
    #[inline]
    pub const fn to_words(&self) -> [u64; DESC_WORDS] {
        [
            self.sequence,
            self.time_ns,
            self.slot as u64 | (self.len as u64) << 32,
            self.rtp_timestamp as u64 | (self.ssrc as u64) << 32,
            self.count as u64 | (self.source as u64) << 32 | (self.flags as u64) << 48,
            self.payload_offset as u64
                | (self.payload_type as u64) << 16
                | (self.leg as u64) << 24
                | (self.payload_len as u64) << 32,
            self.reserved[0],
            self.reserved[1],
        ]
    }

    /// Reads back what [`to_words`](Self::to_words) wrote. Any words make a descriptor: what they
    /// say is checked by whoever uses it.
    #[inline]
    pub const fn from_words(words: [u64; DESC_WORDS]) -> Self {
        let [sequence, time_ns, place, rtp, kind, payload, reserved_0, reserved_1] = words;
        Self {
            sequence,
            time_ns,
            slot: place as u32,
            len: (place >> 32) as u32,
            rtp_timestamp: rtp as u32,
            ssrc: (rtp >> 32) as u32,
            count: kind as u32,
            source: (kind >> 32) as u16,
            flags: (kind >> 48) as u16,
            payload_offset: payload as u16,
            payload_type: (payload >> 16) as u8,
            leg: (payload >> 24) as u8,
            payload_len: (payload >> 32) as u32,
            reserved: [reserved_0, reserved_1],
        }
    }

    /// Whether all bits of `flags` are set.
    #[inline]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// Declares a block of 64-bit words that is shared under a sequence count ([`super::view::Block`]).
macro_rules! words {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: u64,)* }

        impl $name {
            /// Number of words.
            pub const WORDS: usize = size_of::<Self>() / 8;
            /// The fields' names, in order.
            pub const NAMES: [&'static str; Self::WORDS] = [$(stringify!($field),)*];

            /// The fields in order.
            #[inline]
            pub const fn to_words(&self) -> [u64; Self::WORDS] {
                [$(self.$field,)*]
            }

            /// The fields from words in the same order.
            #[inline]
            pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
                let [$($field,)*] = words;
                Self { $($field,)* }
            }
        }
    };
}

words! {
    /// Counters of a stream: packets unless the name says otherwise; zero at open.
    ///
    /// The law of a receive stream, at every snapshot: `received == published + dropped_ring_full +
    /// dropped_oversize + dropped_invalid + dropped_filtered + duplicate + late + staged`.
    /// The law of a transmit stream: `committed == sent + send_failed + pending`.
    pub struct StreamCounters {
        /// Packets that the stream took (RTP or claiming to be; not what it passed on).
        pub received,
        /// Packets published in the ring.
        pub published,
        /// Lost because no position was free.
        pub dropped_ring_full,
        /// Lost because longer than a slot.
        pub dropped_oversize,
        /// Not valid RTP, or a single packet far out of its source's sequence.
        pub dropped_invalid,
        /// Valid, but not of the source that this stream follows.
        pub dropped_filtered,
        /// Further copies of packets that had come before.
        pub duplicate,
        /// Came after their position was published as LOST.
        pub late,
        /// Gauge: held back for order or probation, not yet published.
        pub staged,
        /// Different packets, late ones included.
        pub unique,
        /// Payload bytes of the unique.
        pub bytes,
        /// RFC 3550 A.3 expected, merged over the legs and summed over sources and restarts.
        pub expected,
        /// `expected - unique`, never below zero.
        pub lost,
        /// Redundant streams: unique packets that one leg alone had.
        pub recovered,
        /// Unique packets that came after one with a higher sequence number.
        pub reordered,
        /// Restarts of a followed source's sequence.
        pub restarts,
        /// Epochs begun.
        pub epochs,
        /// Positions published as LOST.
        pub gap_positions,
        /// Left to the side channel: RTCP.
        pub passed_rtcp,
        /// Left to the side channel: STUN.
        pub passed_stun,
        /// Left to the side channel: DTLS.
        pub passed_dtls,
        /// Left to the side channel: anything else.
        pub passed_other,
        /// Packets lost in the socket or backlog, as far as the kernel tells (a lower bound).
        /// Transmit: times that the path answered with an ICMP error (a lower bound, too).
        pub external_drops,
        /// Entries of the source table in use.
        pub sources,
        /// Packets of sources that found no room in the source table.
        pub sources_untracked,
        /// Wake-ups sent to readers (or, transmit, writers).
        pub wakeups,
        /// Most positions in use at once.
        pub high_watermark,
        /// Gauge: readers attached.
        pub readers,
        /// Reliable readers demoted for stalling.
        pub readers_demoted,
        /// Receive or send calls to the socket.
        pub socket_calls,
        /// Packets that came or went coalesced (GRO, GSO).
        pub coalesced,
        /// Transmit: packets the engine accepted from the writer.
        pub committed,
        /// Transmit: packets handed to the network.
        pub sent,
        /// Transmit: bytes of UDP payload sent.
        pub sent_bytes,
        /// Transmit: packets given up after an error of the path.
        pub send_failed,
        /// Transmit, gauge: accepted and not yet sent.
        pub pending,
        /// Transmit: the last error number of the path.
        pub send_errno,
        /// Transmit: packets sent more than 1 ms after they were due.
        pub sent_late,
        /// Transmit: descriptors refused (length or slot out of range).
        pub violations,
        /// Simulated DMA: bursts produced.
        pub bursts,
        /// Simulated DMA: bytes published.
        pub bytes_produced,
        /// Simulated DMA: bytes that every reader has released.
        pub bytes_consumed,
        /// Simulated DMA: bytes dropped because the ring was full.
        pub bytes_overflowed,
        /// CLOCK_MONOTONIC of this snapshot, in nanoseconds.
        pub updated_ns,
    }
}

words! {
    /// Figures of one leg. Of a transmit stream's leg only the fields that say so are used.
    pub struct LegFigures {
        /// Packets of the followed source that came on this leg, copies included. Transmit: packets
        /// that the network took on this leg.
        pub received,
        /// Of these, those that were the first copy.
        pub first,
        /// Of these, further copies of packets that had come before.
        pub duplicate,
        /// Of these, those that came after their position was published as LOST.
        pub late,
        /// Packets that only this leg had.
        pub recovered,
        /// RFC 3550 A.3 expected on this leg.
        pub expected,
        /// `expected` less the different packets that came on this leg, never below zero. Transmit:
        /// packets given up on this leg.
        pub lost,
        /// Packets that came on this leg after one with a higher sequence number.
        pub reordered,
        /// Payload bytes received on this leg, copies included. Transmit: bytes of UDP payload sent.
        pub bytes,
        /// RFC 3550 A.8 interarrival jitter on this leg, nanoseconds times 16.
        pub jitter_q4_ns,
        /// CLOCK_MONOTONIC of the last packet, nanoseconds; 0: none. Also of a transmit leg.
        pub last_ns,
        /// How many times this leg brought a second copy (samples of the skew).
        pub skew_count,
        /// Arrival on this leg less the first arrival: latest, nanoseconds. A two's complement
        /// number: the copy that was read second may have arrived first.
        pub skew_last_ns,
        /// The least.
        pub skew_min_ns,
        /// The greatest.
        pub skew_max_ns,
        /// The sum, for the mean.
        pub skew_sum_ns,
        /// Lost in this leg's socket, as far as the kernel tells. Transmit: ICMP errors met.
        pub external_drops,
        /// Receive buffer that the kernel granted, bytes. Transmit: send buffer.
        pub socket_buffer,
        /// Source table index of what the leg follows, or [`SOURCE_NONE`].
        pub source,
        /// Transmit: of the received, packets whose slots the network read and nobody copied. Counted when
        /// it has let go of them.
        pub zerocopy,
    }
}

words! {
    /// Figures of one source (address, destination, SSRC, leg) of a receive stream. A transmit stream has
    /// one entry: the sender of its latest RTP, with what sender reports say (RFC 3550 section 6.4.1).
    pub struct SourceFigures {
        /// 0: free. Bits 0 to 15: address family (4 or 6), 16 to 31: source port, 32 to 47:
        /// destination port, 48 to 55: leg, 56 to 63: payload type of the latest packet.
        pub key,
        /// Source address, first 8 bytes (IPv4: in the first 4 bytes of them), memory order.
        pub source_address_0,
        /// Source address, last 8 bytes.
        pub source_address_1,
        /// Destination address, first 8 bytes.
        pub destination_address_0,
        /// Destination address, last 8 bytes.
        pub destination_address_1,
        /// Bits 0 to 31: SSRC, 32 to 63: clock rate in Hz (0: not known).
        pub ssrc_clock_rate,
        /// Packets, copies included.
        pub received,
        /// Different packets.
        pub unique,
        /// Payload bytes of the unique.
        pub bytes,
        /// Second copies.
        pub duplicate,
        /// Came after one with a higher sequence number.
        pub reordered,
        /// RFC 3550 A.3, summed over restarts.
        pub expected,
        /// `expected - unique`, never below zero.
        pub lost,
        /// Restarts of the sequence.
        pub restarts,
        /// Packets far out of sequence that no second one confirmed.
        pub stray,
        /// First extended sequence number.
        pub first_sequence,
        /// Highest extended sequence number.
        pub highest_sequence,
        /// RFC 3550 A.8 interarrival jitter, nanoseconds times 16: latest.
        pub jitter_q4_ns,
        /// The greatest.
        pub jitter_max_q4_ns,
        /// The sum over packets, for the mean (wraps never in practice: saturating).
        pub jitter_sum_q4_ns,
        /// Number of packets in that sum.
        pub jitter_count,
        /// CLOCK_MONOTONIC of the first packet, nanoseconds.
        pub first_ns,
        /// CLOCK_MONOTONIC of the latest packet, nanoseconds.
        pub last_ns,
        /// RTP timestamp of the latest packet.
        pub rtp_timestamp,
    }
}

words! {
    /// What the engine tells one reader (its own page).
    pub struct ReaderStatus {
        /// 1 while the page belongs to a reader.
        pub active,
        /// 1 for a reliable reader, 0 for a lossy one.
        pub reliable,
        /// Tail that the engine has accepted.
        pub tail,
        /// Positions that were overwritten before this reader released them.
        pub lapped,
        /// Values of its tail that the engine refused.
        pub violations,
        /// 1 after the reader stalled past the limit and was made lossy.
        pub demoted,
        /// Wake-ups sent to this reader.
        pub wakeups,
    }
}

/// The calls of `/dev/rtp_mgr`.
///
/// Every struct begins with its own `size` in bytes, as its caller knows it. The module takes a
/// shorter one as if the rest were zero, and a longer one if what it does not know is zero (-E2BIG
/// otherwise); it fills no more than the caller has room for. The size in the number of a call is not
/// looked at.
pub mod ioctl {
    use super::{StreamCounters, IOCTL_MAGIC};

    /// Number of a call, as `_IOWR` makes it.
    const fn call(number: u32, size: usize) -> u32 {
        3 << 30 | (size as u32) << 16 | (IOCTL_MAGIC as u32) << 8 | number
    }

    /// Which ABI the module has: [`Version`].
    pub const VERSION: u32 = call(1, size_of::<Version>());
    /// Make this file a stream: [`Create`].
    pub const CREATE: u32 = call(2, size_of::<Create>());
    /// Make this file a reader of another file's stream: [`Attach`].
    pub const ATTACH: u32 = call(3, size_of::<Attach>());
    /// Hand over a socket: [`AddLeg`].
    pub const ADD_LEG: u32 = call(4, size_of::<AddLeg>());
    /// Run the stream: [`Plain`].
    pub const START: u32 = call(5, size_of::<Plain>());
    /// Stop it; START resumes: [`Plain`].
    pub const STOP: u32 = call(6, size_of::<Plain>());
    /// Counters and state: [`Stats`].
    pub const STATS: u32 = call(7, size_of::<Stats>());
    /// Counters back to zero: [`Plain`].
    pub const RESET_STATS: u32 = call(8, size_of::<Plain>());
    /// Change a setting: [`Setting`].
    pub const SET: u32 = call(9, size_of::<Setting>());
    /// Read a setting: [`Setting`].
    pub const GET: u32 = call(10, size_of::<Setting>());
    /// Transmit: there is something to send: [`Plain`].
    pub const KICK: u32 = call(11, size_of::<Plain>());
    /// The streams of this user: [`List`].
    pub const LIST: u32 = call(12, size_of::<List>());
    /// Tell the stream what its user heard on a socket that the module does not see: [`Heard`].
    pub const HEARD: u32 = call(13, size_of::<Heard>());

    /// [`Create::flags`]: follow one source, publish in RTP sequence order ([`Create::reorder_ns`]).
    pub const CREATE_ORDERED: u64 = 1 << 0;
    /// [`Create::flags`]: take only [`Create::ssrc`].
    pub const CREATE_SSRC: u64 = 1 << 1;
    /// [`Create::flags`]: take only [`Create::payload_type`].
    pub const CREATE_PAYLOAD_TYPE: u64 = 1 << 2;
    /// [`Create::flags`]: UDP legs: packets that came coalesced get the times at which they were taken, one
    /// by one, instead of the one time that they share ([`super::feature::EXACT_TIMES`]).
    pub const CREATE_EXACT_TIMES: u64 = 1 << 3;
    /// [`Create::flags`]: UDP legs: RTP that [`CREATE_SSRC`] or [`CREATE_PAYLOAD_TYPE`], one of which it needs,
    /// rules out stays with the socket and counts as passed ([`super::StreamCounters::passed_other`]), as what
    /// is no RTP.
    pub const CREATE_LEAVE_OTHERS: u64 = 1 << 4;
    /// [`Attach::flags`]: a further reader of the owner's own process. It may be reliable, is never
    /// demoted, and [`Attach::fd`] has to be the owner's file (-EPERM otherwise).
    pub const ATTACH_OWN: u32 = 1 << 0;
    /// [`Plain::flags`] of [`STOP`]: let the legs go, too. [`START`] needs them anew.
    pub const STOP_LEGS: u32 = 1 << 0;
    /// [`AddLeg::flags`]: take only packets from [`AddLeg::source`].
    pub const LEG_SOURCE: u32 = 1 << 0;
    /// [`AddLeg::flags`], transmit: no segmentation offload.
    pub const LEG_NO_GSO: u32 = 1 << 1;
    /// [`AddLeg::flags`], transmit: packets are copied, never sent from the ring's own pages.
    pub const LEG_NO_ZEROCOPY: u32 = 1 << 2;
    /// [`Heard::flags`]: the source [`Heard::ssrc`] has said BYE (RFC 3550 section 6.6).
    pub const HEARD_BYE: u32 = 1 << 0;

    /// [`Create::source`]: UDP legs, given by [`ADD_LEG`].
    pub const SOURCE_UDP: u32 = 0;
    /// [`Create::source`]: the simulated DMA engine.
    pub const SOURCE_SIMULATED: u32 = 1;
    /// [`Create::pattern`]: the pattern alone.
    pub const PATTERN_RAW: u32 = 0;
    /// [`Create::pattern`]: the pattern as payload of RTP packets.
    pub const PATTERN_RTP: u32 = 1;
    /// [`Create::reader`], [`Attach::reader`]: what it has not released is not overwritten.
    pub const READER_RELIABLE: u32 = 0;
    /// [`Create::reader`], [`Attach::reader`]: the oldest is overwritten.
    pub const READER_LOSSY: u32 = 1;
    /// [`Create::reader`], [`Attach::reader`]: this file reads nothing; attached, it looks at figures.
    pub const READER_NONE: u32 = 2;
    /// [`Create::reader_index`] of a file that reads nothing.
    pub const NO_READER: u32 = u32::MAX;

    /// [`Setting::key`]: time between bursts of the simulated DMA engine, nanoseconds,
    /// 100,000 to 10,000,000,000.
    pub const SETTING_INTERVAL_NS: u32 = 1;
    /// [`Setting::key`]: packets in a burst, 1 to 65,536; what finds the ring full overflows.
    pub const SETTING_BURST: u32 = 2;
    /// [`Setting::key`]: longest that published packets wait for a reader's threshold, microseconds,
    /// up to 10,000,000; 0: for ever.
    pub const SETTING_MAX_LATENCY_US: u32 = 3;
    /// [`Setting::key`]: how long gaps of an ordered stream stay open, nanoseconds.
    pub const SETTING_REORDER_NS: u32 = 4;
    /// [`Setting::key`]: rate of a transmit stream: packets in the high 32 bits, in so many seconds in
    /// the low 32; 0: not paced.
    pub const SETTING_RATE: u32 = 5;
    /// [`Setting::key`]: an attached reliable reader that holds the ring full for this long is made
    /// lossy, nanoseconds, at least 1,000,000.
    pub const SETTING_STALL_NS: u32 = 6;
    /// [`Setting::key`]: bytes that one run of the simulated DMA engine's timer may produce, 4,096 to
    /// 16,777,216.
    pub const SETTING_BYTE_BUDGET: u32 = 7;
    /// [`Setting::key`]: 1 lets other files attach as reliable readers.
    pub const SETTING_ALLOW_RELIABLE: u32 = 8;
    /// [`Setting::key`]: RTP clock rate of a payload type (in the high 32 bits), Hz (in the low 32), for
    /// the jitter; before the stream starts. The static types of RFC 3551 are known. Cannot be read.
    pub const SETTING_CLOCK_RATE: u32 = 9;
    /// [`Setting::key`]: bytes of a simulated packet, see [`Create::packet_len`].
    pub const SETTING_PACKET_LEN: u32 = 10;

    /// [`VERSION`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Version {
        /// Bytes of this struct.
        pub size: u32,
        /// Out: [`super::ABI_MAJOR`].
        pub abi_major: u16,
        /// Out: [`super::ABI_MINOR`].
        pub abi_minor: u16,
        /// Out: bits of [`super::feature`] that streams of this module can have.
        pub features: u64,
        /// Out: the module's version, text that ends with zeros.
        pub release: [u8; 32],
        /// Out: streams that a user may have at a time; 0: no limit. [`CREATE`] of one more is -EDQUOT.
        pub max_user_streams: u32,
        /// Out: streams that this user has.
        pub user_streams: u32,
    }

    /// [`CREATE`]: 0 stands for the default of every number that has one.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Create {
        /// Bytes of this struct.
        pub size: u32,
        /// [`super::DIRECTION_RECEIVE`] or [`super::DIRECTION_TRANSMIT`].
        pub direction: u32,
        /// `CREATE_` bits.
        pub flags: u64,
        /// Positions as a power of two; default: the module's parameter.
        pub ring_order: u32,
        /// Bytes of a slot; default 2,048.
        pub slot_stride: u32,
        /// Entries of the source table; default 16.
        pub sources: u32,
        /// One of the `SOURCE_` values.
        pub source: u32,
        /// Simulated: one of the `PATTERN_` values.
        pub pattern: u32,
        /// Simulated: bytes of a packet, up to `slot_stride`; default 1,024 or the slot, if smaller.
        pub packet_len: u32,
        /// Simulated: see [`SETTING_BURST`]; default 64 or the ring, if smaller.
        pub burst: u32,
        /// How this file reads: one of the `READER_` values.
        pub reader: u32,
        /// Simulated: see [`SETTING_INTERVAL_NS`]; default: the module's parameter.
        pub interval_ns: u64,
        /// Out: number of the stream.
        pub id: u64,
        /// Out: bytes of the region.
        pub total_len: u64,
        /// Out: which reader status page is this file's, or [`NO_READER`].
        pub reader_index: u32,
        /// UDP: legs that [`ADD_LEG`] will give, 1 or 2 (two need [`CREATE_ORDERED`], or transmit);
        /// default 1.
        pub legs: u32,
        /// With [`CREATE_ORDERED`]: see [`SETTING_REORDER_NS`].
        pub reorder_ns: u64,
        /// First position of the ring; 0 outside tests of what happens when positions wrap.
        pub start: u64,
        /// With [`CREATE_SSRC`].
        pub ssrc: u32,
        /// With [`CREATE_PAYLOAD_TYPE`]: 0 to 127.
        pub payload_type: u32,
    }

    /// [`ATTACH`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Attach {
        /// Bytes of this struct.
        pub size: u32,
        /// A file of the stream, or -1: `id` says which stream (needs CAP_SYS_ADMIN).
        pub fd: i32,
        /// Number of the stream; 0 with a file.
        pub id: u64,
        /// One of the `READER_` values.
        pub reader: u32,
        /// `ATTACH_` bits.
        pub flags: u32,
        /// Out: first position of this reader.
        pub start: u64,
        /// Out: bytes of the region.
        pub total_len: u64,
        /// Out: which reader status page is this file's, or [`NO_READER`].
        pub reader_index: u32,
        /// 0.
        pub reserved: u32,
    }

    /// [`ADD_LEG`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AddLeg {
        /// Bytes of this struct.
        pub size: u32,
        /// A UDP socket: bound (receive) or connected (transmit).
        pub fd: i32,
        /// 0 or 1.
        pub leg: u32,
        /// `LEG_` bits.
        pub flags: u32,
        /// With [`LEG_SOURCE`]: an address in network order; IPv4 in the first four bytes, then zeros.
        pub source: [u8; 16],
    }

    /// [`HEARD`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Heard {
        /// Bytes of this struct.
        pub size: u32,
        /// Leg that the socket belongs to: 0 or 1.
        pub leg: u32,
        /// `HEARD_` bits.
        pub flags: u32,
        /// With [`HEARD_BYE`].
        pub ssrc: u32,
        /// Packets that came to a port beside the leg's own, by kind: RTCP, STUN, DTLS, other. They
        /// count as passed.
        pub passed: [u32; 4],
        /// With [`HEARD_BYE`]: when it came, CLOCK_MONOTONIC in nanoseconds; 0: now.
        pub arrival_ns: u64,
    }

    /// A call without arguments.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Plain {
        /// Bytes of this struct.
        pub size: u32,
        /// [`STOP`]: `STOP_` bits; others: 0.
        pub flags: u32,
    }

    /// [`STATS`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Stats {
        /// Bytes of this struct.
        pub size: u32,
        /// Out: one of the `STATE_` values.
        pub state: u32,
        /// Out: the words of [`StreamCounters`], a consistent state.
        pub counters: [u64; StreamCounters::WORDS],
    }

    impl Default for Stats {
        fn default() -> Self {
            Self { size: 0, state: 0, counters: [0; StreamCounters::WORDS] }
        }
    }

    /// [`SET`] and [`GET`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Setting {
        /// Bytes of this struct.
        pub size: u32,
        /// One of the `SETTING_` values.
        pub key: u32,
        /// In or out: its value.
        pub value: u64,
    }

    /// [`LIST`]
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct List {
        /// Bytes of this struct.
        pub size: u32,
        /// Bytes from one entry to the next, as the caller knows [`ListEntry`].
        pub entry_size: u32,
        /// Address of the entries.
        pub entries: u64,
        /// In: entries that there is room for.
        pub room: u32,
        /// Out: streams that there are; the first `room` of them were written.
        pub count: u32,
    }

    /// One stream of [`LIST`].
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ListEntry {
        /// Number of the stream.
        pub id: u64,
        /// Process that made it.
        pub owner_pid: u32,
        /// User that made it.
        pub owner_uid: u32,
        /// [`super::DIRECTION_RECEIVE`] or [`super::DIRECTION_TRANSMIT`].
        pub direction: u32,
        /// One of the `STATE_` values.
        pub state: u32,
        /// Bits of [`super::feature`].
        pub features: u64,
        /// Positions of the ring.
        pub slot_count: u32,
        /// Bytes of a slot.
        pub slot_stride: u32,
        /// Readers attached.
        pub readers: u32,
        /// 0.
        pub reserved: u32,
        /// [`StreamCounters::published`]; of a transmit stream [`StreamCounters::committed`].
        pub published: u64,
        /// Bytes of memory of the stream.
        pub memory: u64,
    }

    const _: () = {
        assert!(size_of::<Version>() == 56);
        assert!(size_of::<Create>() == 104);
        assert!(size_of::<Attach>() == 48);
        assert!(size_of::<AddLeg>() == 32);
        assert!(size_of::<Heard>() == 40);
        assert!(size_of::<Plain>() == 8);
        assert!(size_of::<Stats>() == 8 + 8 * StreamCounters::WORDS);
        assert!(size_of::<Setting>() == 16);
        assert!(size_of::<List>() == 24);
        assert!(size_of::<ListEntry>() == 64);
    };
}

/// What stands before the words of a block: its sequence count.
pub const SEQUENCE_WORDS: usize = 1;

const _: () = {
    assert!(size_of::<Header>() <= status::HEADER_AREA && size_of::<Header>() % 8 == 0);
    assert!(align_of::<Header>() == 8);
    assert!(size_of::<Descriptor>() == DESC_STRIDE && align_of::<Descriptor>() == 8);
    assert!(core::mem::offset_of!(Descriptor, slot) == 16);
    assert!(core::mem::offset_of!(Descriptor, rtp_timestamp) == 24);
    assert!(core::mem::offset_of!(Descriptor, count) == 32);
    assert!(core::mem::offset_of!(Descriptor, source) == 36);
    assert!(core::mem::offset_of!(Descriptor, flags) == 38);
    assert!(core::mem::offset_of!(Descriptor, payload_offset) == 40);
    assert!(core::mem::offset_of!(Descriptor, payload_len) == 44);
    assert!(
        status::COUNTERS + (SEQUENCE_WORDS + StreamCounters::WORDS) * 8 <= status::LEGS,
        "the counters must fit"
    );
    assert!((SEQUENCE_WORDS + LegFigures::WORDS) * 8 <= status::LEGS_STRIDE);
    assert!(status::LEGS + LEGS_MAX * status::LEGS_STRIDE <= status::SOURCES);
    assert!((SEQUENCE_WORDS + SourceFigures::WORDS) * 8 <= status::SOURCES_STRIDE);
    assert!((SEQUENCE_WORDS + ReaderStatus::WORDS) * 8 <= PAGE);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_its_words() {
        let descriptor = Descriptor {
            sequence: 0x0123_4567_89ab_cdef,
            time_ns: 0xfedc_ba98_7654_3210,
            slot: 0x1111_2222,
            len: 0x3333_4444,
            rtp_timestamp: 0x5555_6666,
            ssrc: 0x7777_8888,
            count: 0x9999_aaaa,
            source: 0xbbcc,
            flags: 0xddee,
            payload_offset: 0xff01,
            payload_type: 0x23,
            leg: 0x45,
            payload_len: 0x6789_abcd,
            reserved: [0x0fed_cba9_8765_4321, 0x1357_9bdf_0246_8ace],
        };
        assert_eq!(Descriptor::from_words(descriptor.to_words()), descriptor);
    }

    #[test]
    fn words_stand_at_the_offsets_of_the_struct() {
        let descriptor = Descriptor { flags: 0x8001, payload_type: 0x7f, ..Default::default() };
        let bytes: [u8; DESC_STRIDE] = {
            let mut bytes = [0; DESC_STRIDE];
            for (chunk, word) in bytes.chunks_exact_mut(8).zip(descriptor.to_words()) {
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            bytes
        };
        assert_eq!(bytes[core::mem::offset_of!(Descriptor, flags)..][..2], [0x01, 0x80]);
        assert_eq!(bytes[core::mem::offset_of!(Descriptor, payload_type)], 0x7f);
    }

    #[test]
    fn counters_keep_their_order() {
        let mut words = [0; StreamCounters::WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = index as u64;
        }
        let counters = StreamCounters::from_words(words);
        assert_eq!(counters.received, 0);
        assert_eq!(counters.published, 1);
        assert_eq!(counters.updated_ns as usize, StreamCounters::WORDS - 1);
        assert_eq!(counters.to_words(), words);
        assert_eq!(StreamCounters::NAMES[1], "published");
    }
}
