//! `rx --pcap`: the packets with their addresses and arrival times.
//!
//! A packet in the ring names its source by an index into the source table of the status pages;
//! addresses are looked up there once per source.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rtp_mgr::{Packet, Stats, StreamSnapshot};

use crate::capture::Datagram;
use crate::capture::write::CaptureWriter;
use crate::error::Failure;

/// The engine publishes a source right after its first packet: waiting longer is of no use.
const PATIENCE: Duration = Duration::from_millis(100);
/// Where a packet came from when the source table had no room for it.
const UNKNOWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A capture file being written.
pub struct Capture {
    path: PathBuf,
    writer: CaptureWriter<BufWriter<File>>,
    stats: Stats,
    sources: HashMap<u16, Source>,
    tai_offset_ns: u64,
    frames: u64,
}

/// A source of the table.
#[derive(Clone, Copy, Debug)]
struct Source {
    ssrc: u32,
    from: SocketAddr,
    to: SocketAddr,
}

impl Capture {
    /// Makes the file.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path, stats: &Stats) -> Result<Self, Failure> {
        let writer = CaptureWriter::create(path)
            .map_err(|error| Failure::failed(format!("--pcap {}: {error}", path.display())))?;
        let offset_s = stats.snapshot().tai_offset_s.unwrap_or(0);
        Ok(Self {
            path: path.to_owned(),
            writer,
            stats: stats.clone(),
            sources: HashMap::new(),
            tai_offset_ns: u64::try_from(offset_s).unwrap_or(0) * 1_000_000_000,
            frames: 0,
        })
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn packet(&mut self, packet: &Packet<'_>) -> Result<(), Failure> {
        let source = self.source(packet);
        self.frames += 1;
        let datagram = Datagram {
            frame: self.frames,
            time_ns: Some(packet.time_ns().saturating_sub(self.tai_offset_ns)),
            source: source.from,
            destination: source.to,
            payload: packet.bytes(),
            payload_len: packet.bytes().len(),
        };
        self.writer.write(&datagram).map_err(|error| failed(&self.path, &error))
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<(), Failure> {
        let Self { path, writer, .. } = self;
        writer.finish().map(|_| ()).map_err(|error| failed(&path, &error))
    }

    fn source(&mut self, packet: &Packet<'_>) -> Source {
        let unknown = Source { ssrc: packet.ssrc(), from: UNKNOWN, to: UNKNOWN };
        let Some(index) = packet.source() else { return unknown };
        match self.sources.get(&index) {
            Some(known) if known.ssrc == packet.ssrc() => *known,
            _ => {
                let found = self.look_up(index, packet.ssrc()).unwrap_or(unknown);
                self.sources.insert(index, found);
                found
            }
        }
    }

    fn look_up(&self, index: u16, ssrc: u32) -> Option<Source> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = entry(&self.stats.snapshot(), index, ssrc);
            if found.is_some() || Instant::now() >= end {
                return found;
            }
            std::thread::yield_now();
        }
    }
}

fn entry(snapshot: &StreamSnapshot, index: u16, ssrc: u32) -> Option<Source> {
    let source = snapshot.source(index).filter(|source| source.ssrc == ssrc)?;
    Some(Source { ssrc, from: source.from?, to: source.to? })
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("--pcap {}: {error}; the capture is incomplete", path.display()))
}
