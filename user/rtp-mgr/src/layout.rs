//! Where the parts of a stream's memory lie, as this library says it: the arithmetic is the ring
//! crate's ([`rtp_mgr_ring::layout`]).
//!
//! What lives here: what to tell a user whose stream has a header that is not used. What does not:
//! the memory itself ([`crate::shm`]).

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR, Header};
use rtp_mgr_ring::layout::Refused;
pub(crate) use rtp_mgr_ring::layout::{Layout, Part, Shape};

/// Checks a header that was read once against the real size of the region. The text of the mistake
/// says what to do.
pub(crate) fn check(header: &Header, region_len: u64) -> Result<Layout, String> {
    Layout::check(header, region_len).map_err(|refused| match refused {
        Refused::Magic(magic) => format!("its memory begins with {magic:#010x}, not \"RTPM\""),
        Refused::Version { major, minor } => format!(
            "it has ABI version {major}.{minor}, this program {ABI_MAJOR}.{ABI_MINOR}: use the \
             program and engine of one release"
        ),
        Refused::Field(what) => {
            format!("its header has {what} out of range: the owner's program is damaged or hostile")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtp_mgr_ring::abi::MAGIC;

    #[test]
    fn what_is_refused_says_what_to_do() {
        let refused = |header: Header| check(&header, 0).unwrap_err();
        let header = Header { magic: MAGIC, abi_major: 2, ..Header::default() };
        let version = refused(header);
        assert!(
            version.contains("ABI version 2.0") && version.contains("one release"),
            "{version}"
        );
        assert!(refused(Header::default()).contains("begins with 0x00000000"));
        let damaged = refused(Header { abi_major: ABI_MAJOR, ..header });
        assert!(damaged.contains("header_len") && damaged.contains("damaged"), "{damaged}");
    }
}
