//! Where received packets go: the payload to `--out`, the packets to `--pcap`.

use std::path::Path;

use rtp_mgr::{Item, Packet, Stats};

use super::capture::Capture;
use crate::cli::RxArgs;
use crate::error::Failure;
use crate::media::audio::Format;
use crate::media::sink::RawSink;
use crate::media::{self, MediaSink};
use crate::signals::Stop;
use crate::stdio::Stdout;

/// Whether a path means standard output.
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes what is read.
pub struct Recorder {
    out: Option<Box<dyn MediaSink>>,
    capture: Option<Capture>,
}

impl Recorder {
    /// Makes the files that the options name.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn open(
        args: &RxArgs,
        format: Option<Format>,
        stats: &Stats,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let out = args.out.as_deref().map(|path| sink(path, format, stop)).transpose()?;
        let capture = args.pcap.as_deref().map(|path| Capture::create(path, stats)).transpose()?;
        Ok(Self { out, capture })
    }

    /// Takes one item of a batch; returns how many packets it is.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn take(&mut self, item: &Item<'_>) -> Result<u64, Failure> {
        match item {
            Item::Packet(packet) => self.packet(packet).map(|()| 1),
            Item::Gap(gap) => self.missing(gap.count().into()).map(|()| 0),
            Item::Discontinuity(missing) => self.missing(missing.count()).map(|()| 0),
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) -> Result<(), Failure> {
        if let Some(capture) = &mut self.capture {
            capture.packet(packet)?;
        }
        match &mut self.out {
            Some(out) => out.packet(packet.payload(), packet.rtp_timestamp()).map_err(out_failed),
            None => Ok(()),
        }
    }

    fn missing(&mut self, count: u64) -> Result<(), Failure> {
        match &mut self.out {
            Some(out) => out.gap(count).map_err(out_failed),
            None => Ok(()),
        }
    }

    /// Gives on what is held back, when the input is quiet.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush().map_err(out_failed))
    }

    /// Makes the files whole. Returns remarks for the summary.
    ///
    /// # Errors
    /// A file that could not be written to its end.
    pub fn finish(&mut self) -> Result<Vec<String>, Failure> {
        let captured = self.capture.take().map_or(Ok(()), Capture::finish);
        let remarks = self.finish_out()?;
        captured.map(|()| remarks)
    }

    fn finish_out(&mut self) -> Result<Vec<String>, Failure> {
        let Some(out) = self.out.take() else { return Ok(Vec::new()) };
        let summary = out.finish().map_err(out_failed)?;
        let mut remarks = Vec::new();
        if summary.silence_samples > 0 {
            remarks.push(format!(
                "{} samples of silence stand for {} missing packets",
                summary.silence_samples, summary.missing_packets
            ));
        } else if summary.missing_packets > 0 {
            remarks.push(format!("{} packets are missing in the output", summary.missing_packets));
        }
        if summary.odd_bytes > 0 {
            remarks.push(format!("{} bytes were no whole samples", summary.odd_bytes));
        }
        if summary.timestamp_jumps > 0 {
            remarks.push(format!("{} jumps of the RTP timestamp", summary.timestamp_jumps));
        }
        Ok(remarks)
    }
}

fn sink(path: &Path, format: Option<Format>, stop: &Stop) -> Result<Box<dyn MediaSink>, Failure> {
    if is_stdout(path) {
        let stdout = Stdout::new(stop).map_err(Failure::stdout)?;
        return Ok(Box::new(RawSink::new("standard output", stdout)));
    }
    media::create(path, format).map_err(|error| Failure::media("--out", &error))
}

fn out_failed(error: crate::media::MediaError) -> Failure {
    match Failure::media("--out", &error) {
        Failure::Failed(text) => Failure::Failed(format!("{text}; the output is incomplete")),
        other => other,
    }
}
