// SPDX-License-Identifier: MIT OR GPL-2.0

//! Where a transmit stream's packets go. What decides which, and when, is [`crate::transmit`].

pub(crate) mod copies;
pub(crate) mod flight;
pub(crate) mod udp;
