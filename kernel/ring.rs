// SPDX-License-Identifier: MIT OR GPL-2.0

//! The ring core: the files of `ring/src`, unchanged.

// What user space and later parts of the module use of them is not used here.
#![allow(dead_code, unreachable_pub)]
// Clippy leaves the names of a public API alone, which this is in user space.
#![allow(clippy::wrong_self_convention)]

#[path = "../ring/src/abi.rs"]
pub(crate) mod abi;
#[path = "../ring/src/atomic.rs"]
pub(crate) mod atomic;
#[path = "../ring/src/batch.rs"]
pub(crate) mod batch;
#[path = "../ring/src/figures.rs"]
pub(crate) mod figures;
#[path = "../ring/src/follow.rs"]
pub(crate) mod follow;
#[path = "../ring/src/header.rs"]
pub(crate) mod header;
#[path = "../ring/src/layout.rs"]
pub(crate) mod layout;
#[path = "../ring/src/ordered.rs"]
mod ordered;
#[path = "../ring/src/pace.rs"]
pub(crate) mod pace;
#[path = "../ring/src/pattern.rs"]
pub(crate) mod pattern;
#[path = "../ring/src/producer.rs"]
pub(crate) mod producer;
#[path = "../ring/src/receive.rs"]
pub(crate) mod receive;
#[path = "../ring/src/source.rs"]
pub(crate) mod source;
#[path = "../ring/src/staging.rs"]
pub(crate) mod staging;
#[path = "../ring/src/steady.rs"]
pub(crate) mod steady;
#[path = "../ring/src/table.rs"]
pub(crate) mod table;
#[path = "../ring/src/transmit.rs"]
pub(crate) mod transmit;
#[path = "../ring/src/view.rs"]
pub(crate) mod view;
