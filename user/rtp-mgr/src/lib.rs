//! The library side of RTP Manager.
