//! The packet ring of RTP Manager.
//!
//! Sans-I/O: everything here takes bytes, positions and timestamps and returns decisions. Nothing
//! calls a clock, a socket or an allocator, so the same files serve three builds: the kernel module
//! (which includes them one by one with `#[path]`, under `cfg(kernel)`), user space, and the model
//! checker (`cfg(loom)`).
//!
//! **It cannot panic.** A Rust panic in the kernel is a crash, and stock kernels compile overflow
//! checks in. Arithmetic is explicitly wrapping, checked or saturating; access goes through `get`;
//! the lints below deny everything else in source, and `cargo xtask panic-check` looks for
//! what is left in the optimised objects.
//!
//! **It has no `unsafe`**, but for two accesses of the kernel's atomics in [`atomic`]. Memory that another
//! agent may write is seen only through atomics ([`view`]); whoever maps it builds the views.
//!
//! | module | what lives there |
//! |---|---|
//! | [`abi`] | layout of the shared memory: structs, offsets, flags, limits |
//! | [`layout`] | where the parts of that memory lie: laid out, and checked |
//! | [`atomic`] | the atomics and fences that the other modules use |
//! | [`view`] | borrowed views of the shared memory |
//! | [`header`] | RTP header parsing and building; telling RTCP, STUN and DTLS apart |
//! | [`source`] | RFC 3550 figures of one source: sequence, loss, jitter |
//! | [`producer`] | publishing, reader accounting, overflow, waking |
//! | [`reader`] | the consumer's side of the same protocol |
//! | [`figures`] | publishing a receive stream's figures |
//! | [`table`] | the source table |
//! | [`follow`] | which source an ordered stream follows |
//! | [`staging`] | which position a packet of an ordered stream gets |
//! | [`receive`], [`steady`], `ordered` | a receive stream: all of the above put together |
//! | [`transmit`] | a transmit stream: the engine as consumer of what its user writes |
//! | [`batch`] | packets of a transmit stream that are sent together |
//! | [`pattern`] | what the simulated source sends |
//! | [`pace`] | when the next packets of a transmit stream are due |
#![cfg_attr(not(any(test, loom)), no_std)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod abi;
pub mod atomic;
pub mod batch;
pub mod figures;
pub mod follow;
pub mod header;
pub mod layout;
mod ordered;
pub mod pace;
pub mod pattern;
pub mod producer;
pub mod reader;
pub mod receive;
pub mod source;
pub mod staging;
pub mod steady;
pub mod table;
pub mod transmit;
pub mod view;
