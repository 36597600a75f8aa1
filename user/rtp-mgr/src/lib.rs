//! The library side of RTP Manager.

pub mod clock;
pub mod leg;
pub mod net;
pub mod probe;
pub mod rtcp;
pub mod socket;
