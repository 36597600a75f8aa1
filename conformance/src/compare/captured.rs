//! Traffic from a capture file.

use std::path::Path;

use rtp_app::capture::link::content;
use rtp_app::capture::{CaptureFile, Content};
use rtp_mgr::ring::header::{Kind, classify};

use super::plan::{Plan, Shape, Step};

/// Senders that are told apart; further ones share a socket with others.
const SENDERS_MAX: usize = 100;
/// Datagrams between two looks at the streams.
const READ_EVERY: usize = 200;

/// The capture's datagrams, sent to streams in order of arrival and in sequence order.
pub(crate) fn plans(file: &Path) -> Result<Vec<(&'static str, Plan)>, String> {
    let steps = read(file).map_err(|mistake| format!("--capture {}: {mistake}", file.display()))?;
    let shape = Shape {
        ordered: false,
        legs: 1,
        ipv6: false,
        ring_order: 10,
        slot_stride: 2_048,
        sources: 1_024,
        gro: true,
        start: 0,
        payload_type: None,
        ssrc: None,
        source_address: None,
        clock_rate: None,
        skimmed: false,
    };
    let ordered = Shape { ordered: true, ..shape.clone() };
    Ok([("in_order_of_arrival", shape), ("in_sequence_order", ordered)]
        .map(|(kind, shape)| (kind, Plan { shape, steps: steps.clone() }))
        .into())
}

fn read(file: &Path) -> Result<Vec<Step>, String> {
    let mut capture = CaptureFile::open(file).map_err(|error| error.to_string())?;
    let mut senders = Vec::new();
    let mut steps = Vec::new();
    while let Some(frame) = capture.next().map_err(|error| error.to_string())? {
        let Content::Udp(datagram) = content(&frame) else { continue };
        let known = senders.iter().position(|sender| *sender == datagram.source);
        let from = known.unwrap_or_else(|| {
            senders.push(datagram.source);
            senders.len() - 1
        });
        steps.push(Step::Send {
            leg: 0,
            from: from % SENDERS_MAX,
            packets: vec![datagram.payload.to_vec()],
            followed: classify(datagram.payload) == Kind::Rtp,
        });
        if steps.len().is_multiple_of(READ_EVERY) {
            steps.push(Step::Read);
        }
    }
    if steps.is_empty() {
        return Err("no UDP in it; accepted: a capture of RTP over UDP".into());
    }
    Ok(steps)
}
