//! What `rtp_app` is made of.
