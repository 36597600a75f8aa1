//! Reading a receive ring: batches of packets, gaps and discontinuities.
//!
//! What lives here: the reader's cursor, waiting, and how a position is shown. What does not: the
//! memory that packets are borrowed from ([`crate::shm`]).

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rtp_mgr_ring::abi::{Descriptor, ReaderStatus, flag};

use crate::error::Error;

/// A reader of a receive stream in the process that owns it.
#[derive(Debug)]
pub struct Reader {
    wake: OwnedFd,
}

impl Reader {
    /// See [`Receiver::read`](crate::Receiver::read).
    ///
    /// # Errors
    /// The engine has ended.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>, Error> {
        let _ = timeout;
        Err(Error::NotInThisBuild("read"))
    }

    /// See [`Receiver::try_read`](crate::Receiver::try_read).
    ///
    /// # Errors
    /// The engine has ended.
    pub fn try_read(&mut self) -> Result<Option<Batch<'_>>, Error> {
        Err(Error::NotInThisBuild("read"))
    }

    /// What the engine says about this reader: its accepted tail, positions missed, demotion.
    pub fn status(&self) -> ReaderStatus {
        ReaderStatus::default()
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Some positions of the ring, in order. Dropping it releases them.
#[derive(Debug)]
pub struct Batch<'a> {
    _reader: PhantomData<&'a mut Reader>,
}

impl<'a> Batch<'a> {
    /// Number of positions; packets, gaps and missed ones alike. 0: the time ran out.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether the time ran out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stands in the positions.
    pub fn iter(&self) -> Items<'_> {
        Items { _batch: PhantomData }
    }

    /// Lets the ring have the positions back: nothing borrowed from the batch outlives this.
    pub fn release(self) {}
}

impl<'b> IntoIterator for &'b Batch<'_> {
    type Item = Item<'b>;
    type IntoIter = Items<'b>;

    fn into_iter(self) -> Items<'b> {
        self.iter()
    }
}

/// Iterator over a [`Batch`].
#[derive(Clone, Debug)]
pub struct Items<'b> {
    _batch: PhantomData<&'b ()>,
}

impl<'b> Iterator for Items<'b> {
    type Item = Item<'b>;

    fn next(&mut self) -> Option<Item<'b>> {
        None
    }
}

/// What can stand in the ring.
#[derive(Clone, Copy, Debug)]
pub enum Item<'b> {
    /// A packet.
    Packet(Packet<'b>),
    /// A missing packet of an ordered stream.
    Gap(Gap),
    /// What follows does not continue what came before.
    Discontinuity(Discontinuity),
}

/// A packet in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'b> {
    descriptor: Descriptor,
    position: u64,
    bytes: &'b [u8],
}

impl<'b> Packet<'b> {
    /// The RTP payload, padding not included. Of a raw packet: all of it.
    pub fn payload(&self) -> &'b [u8] {
        let start = usize::from(self.descriptor.payload_offset);
        let end = start.saturating_add(self.descriptor.payload_len as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The whole packet, RTP header included.
    pub fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// Its position in the ring.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Extended sequence number: cycles above, the 16 bits of the packet below.
    pub fn sequence(&self) -> u64 {
        self.descriptor.sequence
    }

    /// The sequence number in the packet.
    pub fn sequence_number(&self) -> u16 {
        self.descriptor.sequence as u16
    }

    /// RTP timestamp.
    pub fn rtp_timestamp(&self) -> u32 {
        self.descriptor.rtp_timestamp
    }

    /// RTP synchronisation source.
    pub fn ssrc(&self) -> u32 {
        self.descriptor.ssrc
    }

    /// RTP payload type.
    pub fn payload_type(&self) -> u8 {
        self.descriptor.payload_type
    }

    /// The RTP marker bit.
    pub fn marker(&self) -> bool {
        self.descriptor.has(flag::MARKER)
    }

    /// Arrival, nanoseconds of CLOCK_TAI.
    pub fn time_ns(&self) -> u64 {
        self.descriptor.time_ns
    }

    /// The arrival time is shared with neighbours that the kernel coalesced.
    pub fn time_is_shared(&self) -> bool {
        self.descriptor.has(flag::COALESCED_TIME)
    }

    /// Leg that brought it: 0 or 1.
    pub fn leg(&self) -> u8 {
        self.descriptor.leg
    }

    /// Index into the source table ([`crate::StreamSnapshot::source`]); `None` when the table was full.
    pub fn source(&self) -> Option<u16> {
        let source = self.descriptor.source;
        (source != rtp_mgr_ring::abi::SOURCE_NONE).then_some(source)
    }

    /// When it was placed one leg alone had it.
    pub fn recovered(&self) -> bool {
        self.descriptor.has(flag::RECOVERED)
    }

    /// Not RTP: the simulated source's bare pattern.
    pub fn raw(&self) -> bool {
        self.descriptor.has(flag::RAW)
    }

    /// Bits of [`flag`].
    pub fn flags(&self) -> u16 {
        self.descriptor.flags
    }
}

/// Missing packets of an ordered stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    sequence: u64,
    count: u32,
}

impl Gap {
    /// Extended sequence number of the first that is missing.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many are missing.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// Why a sequence does not continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The source's own sequence: a restart, another source, more lost than the window holds; in
    /// arrival order any loss.
    Sequence,
    /// At least some were dropped because the ring was full.
    RingFull,
    /// This reader was too slow: positions were overwritten before it read them.
    Lapped,
}

/// A break in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discontinuity {
    count: u64,
    cause: Cause,
}

impl Discontinuity {
    /// How many are missing here (0: not known); positions when the cause is [`Cause::Lapped`],
    /// packets otherwise.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Why.
    pub fn cause(&self) -> Cause {
        self.cause
    }
}
