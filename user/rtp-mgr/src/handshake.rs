//! What is said over a stream's socket before its memory is shared.
//!
//! What lives here: the messages, one datagram each, and how file descriptors go with them. What does
//! not: who may ask ([`crate::publish`]) and asking ([`crate::attach`]).
//!
//! The first eight bytes of both messages, magic and version, are the same in every version, so that
//! programs of different versions can say that they are.

use std::fmt::Write;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rtp_mgr_ring::abi::{ABI_MAJOR, ABI_MINOR};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::attach::StreamInfo;
use crate::config::{EngineKind, Mode};
use crate::stats::{Direction, StreamId};

/// First word of both messages: "RTPA" in memory order.
const MAGIC: u32 = u32::from_le_bytes(*b"RTPA");
/// Longest message in bytes.
const LEN_MAX: usize = 4_096;
/// Most file descriptors that go with a message: ring and control page.
const FILES_MAX: usize = 2;
/// Bytes of a question.
const HELLO_LEN: usize = 16;
/// Bytes of an answer before its text.
const ANSWER_LEN: usize = 16;

/// What somebody wants of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// What it is.
    Describe,
    /// Its memory, to read the figures.
    Figures,
    /// To read along.
    Attach(Mode),
}

impl Hello {
    fn bytes(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..8].copy_from_slice(&preamble());
        (bytes[8], bytes[9]) = match self {
            Self::Describe => (1, 0),
            Self::Figures => (2, 0),
            Self::Attach(Mode::Lossy) => (3, 0),
            Self::Attach(Mode::Reliable) => (3, 1),
        };
        bytes
    }

    /// Reads a question. The text of the mistake is for whoever asked.
    fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        check_preamble(bytes, "this stream's owner")?;
        match bytes.get(8..10) {
            Some([1, _]) => Ok(Self::Describe),
            Some([2, _]) => Ok(Self::Figures),
            Some([3, 0]) => Ok(Self::Attach(Mode::Lossy)),
            Some([3, 1]) => Ok(Self::Attach(Mode::Reliable)),
            _ => Err("the question is not understood: use programs of one release".into()),
        }
    }
}

fn preamble() -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..6].copy_from_slice(&ABI_MAJOR.to_le_bytes());
    bytes[6..8].copy_from_slice(&ABI_MINOR.to_le_bytes());
    bytes
}

/// Checks magic and version of a message; `we` says who refuses.
fn check_preamble(bytes: &[u8], we: &str) -> Result<(), String> {
    let ours = preamble();
    let Some(theirs) = bytes.first_chunk::<8>().filter(|theirs| theirs[..4] == ours[..4]) else {
        return Err("what came is not of this protocol".into());
    };
    let version = |bytes: &[u8; 8]| {
        (u16::from_le_bytes([bytes[4], bytes[5]]), u16::from_le_bytes([bytes[6], bytes[7]]))
    };
    let (major, minor) = version(theirs);
    if major != ABI_MAJOR {
        return Err(format!(
            "{we} has ABI version {ABI_MAJOR}.{ABI_MINOR}, the other side {major}.{minor}: use \
             programs of one release"
        ));
    }
    Ok(())
}

/// The answer, its file descriptors apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The description, and the place of the reader that was asked for.
    Welcome { reader: u32, text: String },
    /// Why not, and what to do.
    Refused(String),
}

impl Answer {
    fn bytes(&self) -> Vec<u8> {
        let (status, reader, text) = match self {
            Self::Welcome { reader, text } => (0, *reader, text),
            Self::Refused(reason) => (1, 0, reason),
        };
        let mut bytes = preamble().to_vec();
        bytes.extend([status, 0, 0, 0]);
        bytes.extend(reader.to_le_bytes());
        bytes.extend(text.bytes().take(LEN_MAX - ANSWER_LEN));
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        check_preamble(bytes, "this program")?;
        let (Some(status), Some(reader), Some(text)) =
            (bytes.get(8), bytes.get(12..16), bytes.get(ANSWER_LEN..))
        else {
            return Err("its answer is cut off: use programs of one release".into());
        };
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(match status {
            0 => {
                let reader = u32::from_le_bytes(reader.try_into().unwrap_or_default());
                Self::Welcome { reader, text }
            }
            _ => Self::Refused(text),
        })
    }
}

/// Sends a question.
pub(crate) fn ask(socket: impl AsFd, hello: Hello) -> Result<(), Errno> {
    rustix::net::send(socket, &hello.bytes(), SendFlags::NOSIGNAL).map(|_| ())
}

/// Receives a question, without waiting. `None`: the other side has gone.
pub(crate) fn hear(socket: impl AsFd) -> Result<Option<Result<Hello, String>>, Errno> {
    let mut bytes = [0; LEN_MAX];
    let (received, _) = rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT)?;
    Ok((received > 0).then(|| Hello::of_bytes(&bytes[..received])))
}

/// Sends an answer, without waiting.
pub(crate) fn answer(
    socket: impl AsFd,
    answer: &Answer,
    files: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::NOBUFS);
    }
    let bytes = answer.bytes();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags).map(|_| ())
}

/// Receives an answer with its file descriptors. The text of the mistake says what to do.
pub(crate) fn receive_answer(socket: impl AsFd) -> Result<(Answer, Vec<OwnedFd>), String> {
    let mut bytes = [0; LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = received.map_err(|error| match error {
        Errno::AGAIN => "its owner does not answer: it is stopped, or very busy".to_owned(),
        other => format!("its owner does not answer: {}", std::io::Error::from(other)),
    })?;
    if received.bytes == 0 {
        return Err("its owner hung up without an answer".into());
    }
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    Ok((Answer::of_bytes(&bytes[..received.bytes])?, files))
}

/// The description of a stream as text: a line per value.
pub(crate) fn describe(info: &StreamInfo) -> String {
    let mut text = String::new();
    let mut line = |name, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name}={value}");
    };
    line("id", &info.id.0);
    if let Some(name) = &info.name {
        line("name", name);
    }
    line("engine", &info.engine);
    line(
        "direction",
        &match info.direction {
            Direction::Receive => "receive",
            Direction::Transmit => "transmit",
        },
    );
    line("allow_reliable", &info.allow_reliable);
    for leg in &info.legs {
        line("leg", leg);
    }
    text
}

/// Reads a description. Lines of later versions are passed over; `None`: something is missing.
pub(crate) fn understand(text: &str, owner_pid: u32, owner_uid: u32) -> Option<StreamInfo> {
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    Some(StreamInfo {
        id: StreamId(value("id")?.parse().ok()?),
        name: value("name"),
        engine: match value("engine")?.as_str() {
            "kernel" => EngineKind::Kernel,
            _ => EngineKind::User,
        },
        direction: match value("direction")?.as_str() {
            "transmit" => Direction::Transmit,
            _ => Direction::Receive,
        },
        owner_pid,
        owner_uid,
        legs: text
            .lines()
            .filter_map(|line| line.strip_prefix("leg="))
            .map(str::to_owned)
            .collect(),
        allow_reliable: value("allow_reliable")? == "true",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_survive_the_way() {
        for hello in [
            Hello::Describe,
            Hello::Figures,
            Hello::Attach(Mode::Lossy),
            Hello::Attach(Mode::Reliable),
        ] {
            assert_eq!(Hello::of_bytes(&hello.bytes()), Ok(hello));
        }
        for answer in
            [Answer::Welcome { reader: 7, text: "id=1\n".into() }, Answer::Refused("no".into())]
        {
            assert_eq!(Answer::of_bytes(&answer.bytes()), Ok(answer));
        }
    }

    #[test]
    fn another_version_is_told_what_to_do_and_nonsense_is_refused() {
        let mut hello = Hello::Describe.bytes();
        hello[4] += 1;
        let refused = Hello::of_bytes(&hello).unwrap_err();
        assert!(refused.contains("ABI version 1.0, the other side 2.0"), "{refused}");
        assert!(refused.contains("one release"), "{refused}");
        let whole = Answer::Welcome { reader: 1, text: String::new() }.bytes();
        for len in 0..ANSWER_LEN {
            assert!(Answer::of_bytes(&whole[..len]).is_err());
            assert!(len >= 10 || Hello::of_bytes(&whole[..len]).is_err());
        }
    }

    #[test]
    fn a_description_survives_its_text_and_later_lines_do_not_matter() {
        let info = StreamInfo {
            id: StreamId(5 << 32 | 6),
            name: Some("cam-1".into()),
            engine: EngineKind::User,
            direction: Direction::Transmit,
            owner_pid: 5,
            owner_uid: 0,
            legs: vec!["239.1.1.1%eth0:5004".into(), "[ff3e::1]:5004".into()],
            allow_reliable: true,
        };
        let text = describe(&info) + "later=thing\n";
        let read = understand(&text, 5, 0).unwrap();
        assert_eq!(format!("{read:?}"), format!("{info:?}"));
        assert!(understand("name=x\n", 1, 1).is_none());
    }
}
