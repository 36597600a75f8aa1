//! Where media is read from: a file, or a pipe such as standard input. Looks ahead to tell what it
//! carries; knows no format.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::MediaError;

/// A file or a pipe, with its name for messages and its first bytes within reach.
pub struct Input {
    name: String,
    reader: Reader,
    /// Bytes looked at by [`Input::peek`] and not yet read, from `peeked_at` on.
    peeked: Vec<u8>,
    peeked_at: usize,
}

enum Reader {
    File { file: BufReader<File>, len: u64 },
    Pipe(BufReader<Box<dyn Read + Send>>),
}

/// What the first bytes of an input say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing at all.
    Empty,
    /// MPEG transport stream packets.
    TransportStream,
    /// RIFF/WAVE, RF64 or BW64.
    Wave,
    /// pcap or pcapng.
    Capture,
    /// None of these.
    Unknown,
}

impl Input {
    /// Opens a file. Pipes and devices by name work too, but cannot be started again.
    ///
    /// # Errors
    /// The file cannot be opened, or is a directory.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            match metadata.is_dir() {
                true => Err(io::Error::from(io::ErrorKind::IsADirectory)),
                false => Ok((file, metadata)),
            }
        });
        let (file, metadata) =
            opened.map_err(|source| MediaError::Io { name: name.clone(), source })?;
        let reader = match metadata.is_file() {
            true => Reader::File { len: metadata.len(), file: BufReader::new(file) },
            false => Reader::Pipe(BufReader::new(Box::new(file))),
        };
        Ok(Self { name, reader, peeked: Vec::new(), peeked_at: 0 })
    }

    /// Reads from a pipe, for example standard input, called `name` in messages.
    pub fn pipe(name: &str, reader: Box<dyn Read + Send>) -> Self {
        let reader = Reader::Pipe(BufReader::new(reader));
        Self { name: name.to_owned(), reader, peeked: Vec::new(), peeked_at: 0 }
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length in bytes, if it is a regular file.
    pub fn file_len(&self) -> Option<u64> {
        match self.reader {
            Reader::File { len, .. } => Some(len),
            Reader::Pipe(_) => None,
        }
    }

    /// The next `count` bytes, or as many as there are, without taking them.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn peek(&mut self, count: usize) -> Result<&[u8], MediaError> {
        let wanted = self.peeked_at + count;
        while self.peeked.len() < wanted {
            let have = self.peeked.len();
            self.peeked.resize(wanted, 0);
            let read = read_some(&mut self.reader, &mut self.peeked[have..]);
            self.peeked.truncate(have + *read.as_ref().unwrap_or(&0));
            if read.map_err(|source| self.error(source))? == 0 {
                break;
            }
        }
        let end = wanted.min(self.peeked.len());
        Ok(&self.peeked[self.peeked_at..end])
    }

    /// Tells what the input carries from its first bytes.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn content(&mut self) -> Result<Content, MediaError> {
        let first = self.peek(super::ts::DETECT_BYTES)?;
        let magic = first.get(..4).unwrap_or_default();
        Ok(match magic {
            _ if first.is_empty() => Content::Empty,
            b"RIFF" | b"RF64" | b"BW64" => Content::Wave,
            // pcap in microseconds and nanoseconds, both byte orders; a pcapng section header.
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1]
            | [0x0a, 0x0d, 0x0d, 0x0a] => Content::Capture,
            _ if super::ts::is_transport_stream(first) => Content::TransportStream,
            _ => Content::Unknown,
        })
    }

    /// Reads what is there, waiting for at least one byte; 0 means that the input has ended.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, MediaError> {
        let peeked = &self.peeked[self.peeked_at..];
        if peeked.is_empty() {
            return read_some(&mut self.reader, buffer).map_err(|source| self.error(source));
        }
        let count = peeked.len().min(buffer.len());
        buffer[..count].copy_from_slice(&peeked[..count]);
        self.peeked_at += count;
        Ok(count)
    }

    /// Fills `buffer` as far as the input goes; less than its length means that the input has ended.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, MediaError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(&mut buffer[done..])? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    /// Goes back to the first byte.
    ///
    /// # Errors
    /// It is not a regular file.
    pub fn rewind(&mut self) -> Result<(), MediaError> {
        let sought = match &mut self.reader {
            Reader::File { file, .. } => file.rewind(),
            Reader::Pipe(_) => {
                let reason = "not a regular file, so it cannot be started again".to_owned();
                return Err(MediaError::Input { name: self.name.clone(), reason });
            }
        };
        self.peeked.clear();
        self.peeked_at = 0;
        sought.map_err(|source| self.error(source))
    }

    /// An error about what is in this input.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> MediaError {
        MediaError::Input { name: self.name.clone(), reason: reason.into() }
    }

    /// An error about what is missing or damaged in this input.
    pub(super) fn damaged(&self, reason: impl Into<String>) -> MediaError {
        MediaError::Damaged { name: self.name.clone(), reason: reason.into() }
    }

    fn error(&self, source: io::Error) -> MediaError {
        MediaError::Io { name: self.name.clone(), source }
    }
}

fn read_some(reader: &mut Reader, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let read = match reader {
            Reader::File { file, .. } => file.read(buffer),
            Reader::Pipe(pipe) => pipe.read(buffer),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}
