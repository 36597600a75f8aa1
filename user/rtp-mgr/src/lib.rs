//! Receive and send RTP through a ring of packets in shared memory.
//!
//! ```no_run
//! use std::time::Duration;
//! use rtp_mgr::{Item, Leg, Receiver};
//!
//! # fn use_it(_: &[u8]) {}
//! # fn conceal(_: u32) {}
//! # fn resync() {}
//! let mut rx = Receiver::builder()
//!     .leg("239.1.1.1%eth0:5004".parse::<Leg>()?)
//!     .ordered(Duration::from_millis(20))
//!     .open()?;
//! while let Some(batch) = rx.read(Duration::from_millis(100))? {
//!     for item in &batch {
//!         match item {
//!             Item::Packet(packet) => use_it(packet.payload()),
//!             Item::Gap(gap) => conceal(gap.count()),
//!             Item::Discontinuity(_) => resync(),
//!         }
//!     }
//!     batch.release(); // nothing borrowed from the batch outlives this
//! }
//! # Ok::<(), rtp_mgr::Error>(())
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`receiver`], [`reader`], [`side_channel`] | receive streams |
//! | [`transmitter`] | transmit streams |
//! | [`attach`] | streams of other processes |
//! | [`stats`] | figures |
//! | [`config`], [`error`] | settings and mistakes |
//! | [`context`] | engine threads |
//! | `engine`, `kernel`, `device` | the embedded engine; the module's streams and its calls |
//! | [`leg`], [`socket`], [`net`] | network paths and their sockets |
//! | [`rtcp`] | RTCP packets |
//! | [`probe`] | what this machine offers |
//! | [`clock`] | clocks |

#![deny(missing_docs)]

pub mod attach;
pub mod clock;
pub mod config;
pub mod context;
mod device;
mod engine;
pub mod error;
mod handshake;
mod kernel;
mod layout;
pub mod leg;
pub mod net;
mod poll;
pub mod probe;
mod publish;
pub mod reader;
pub mod receiver;
pub mod rtcp;
mod runtime_dir;
mod schedule;
mod shm;
pub mod side_channel;
pub mod socket;
pub mod stats;
pub mod transmitter;

pub use attach::{Attached, StreamInfo, list, stat};
pub use config::{Engine, EngineKind, Framing, Mode, PacketRate, SimConfig};
pub use context::Context;
pub use error::{Error, Warning};
pub use leg::{Leg, LegError};
pub use reader::{Batch, Cause, Discontinuity, Gap, Item, Items, Packet, Reader};
pub use receiver::{Receiver, ReceiverBuilder};
pub use rtp_mgr_ring as ring;
pub use rtp_mgr_ring::header::Kind;
pub use side_channel::{SideChannel, SidePacket};
pub use stats::{Direction, SourceSnapshot, State, Stats, StreamId, StreamSnapshot};
pub use transmitter::{Slot, Slots, Transmitter, TransmitterBuilder};
