//! A stream's door to other processes: its socket, and who comes through it.
//!
//! What lives here: accepting, checking who asks, handing out memory, noticing that a reader has
//! gone. What does not: the messages ([`crate::handshake`]) and where the socket is
//! ([`crate::runtime_dir`]).
//!
//! Everything here runs on the engine's thread and waits for nobody: a peer that says nothing holds
//! a place until another one wants it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rtp_mgr_ring::abi::READERS_MAX;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, sockopt::socket_peercred};

use crate::config::Mode;
use crate::engine::worker::Registration;
use crate::error::Error;
use crate::handshake::{Answer, Hello, answer, hear};
use crate::runtime_dir::{self, Listening};

/// Tags of the files: the listening socket, and the peers from here on.
const TAG_LISTEN: u16 = 16;
const TAG_PEER: u16 = 32;
/// Connections at a time: readers, and others that ask something.
const PEERS_MAX: usize = READERS_MAX + 16;

/// What a reader maps: the ring and its control page, or a file of the device that has both.
pub(crate) type Files = Vec<OwnedFd>;

/// What a stream lets others have.
pub(crate) trait Host {
    /// Its description.
    fn describe(&self) -> String;

    /// Its memory, to be read only.
    fn share(&self) -> io::Result<OwnedFd>;

    /// Adds a reader that is woken over `socket`. Returns its place and what it maps, or why not.
    fn attach(&mut self, mode: Mode, socket: &Arc<OwnedFd>) -> Result<(usize, Files), String>;

    /// A reader has gone.
    fn detach(&mut self, reader: usize);
}

/// One connection.
struct Peer {
    socket: Arc<OwnedFd>,
    reader: Option<usize>,
}

/// The door.
pub(crate) struct Server {
    listening: Listening,
    /// A file descriptor to give up when there is none left.
    spare: Option<OwnedFd>,
    peers: [Option<Peer>; PEERS_MAX],
    /// The place whose silent peer goes next.
    hand: usize,
}

impl Server {
    /// Opens a door under `name`.
    pub(crate) fn open(name: &str) -> Result<Self, Error> {
        let listening = runtime_dir::listening(name)?;
        let spare = listening.socket.try_clone().ok();
        Ok(Self { listening, spare, peers: [const { None }; PEERS_MAX], hand: 0 })
    }

    /// Has `ready` called when somebody comes.
    pub(crate) fn watch(&self, registration: &Registration) -> Result<(), Error> {
        registration.watch(&self.listening.socket, TAG_LISTEN, EventFlags::IN)
    }

    /// Whether a file is one of the door's.
    pub(crate) fn has_tag(tag: u16) -> bool {
        tag >= TAG_LISTEN
    }

    /// A file of the door's is ready.
    pub(crate) fn ready(&mut self, tag: u16, registration: &Registration, host: &mut dyn Host) {
        match tag.checked_sub(TAG_PEER) {
            None => self.accept(registration, host),
            Some(at) => self.hear(usize::from(at), registration, host),
        }
    }

    /// Closes the door on everybody.
    pub(crate) fn close(mut self, registration: &Registration) {
        registration.unwatch(&self.listening.socket);
        for peer in self.peers.iter_mut().filter_map(Option::take) {
            registration.unwatch(&peer.socket);
        }
    }

    fn accept(&mut self, registration: &Registration, host: &mut dyn Host) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listening.socket, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => return self.turn_away(),
            Err(_) => return,
        };
        if !is_trusted(&socket) {
            let refused = Answer::Refused("it belongs to another user".into());
            let _ = answer(&socket, &refused, &[]);
            return;
        }
        let Some(at) = self.place(registration, host) else { return };
        if registration.watch(&socket, TAG_PEER + at as u16, EventFlags::IN).is_ok() {
            self.peers[at] = Some(Peer { socket: Arc::new(socket), reader: None });
        }
    }

    /// No file descriptor is left for whoever waits at the door: a file that stays ready would keep
    /// the thread from everything else.
    fn turn_away(&mut self) {
        tracing::warn!("no file descriptor left for a reader");
        drop(self.spare.take());
        drop(accept_with(&self.listening.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK));
        self.spare = self.listening.socket.try_clone().ok();
    }

    /// A place for one more connection, at the cost of one that has said nothing.
    fn place(&mut self, registration: &Registration, host: &mut dyn Host) -> Option<usize> {
        if let Some(free) = self.peers.iter().position(Option::is_none) {
            return Some(free);
        }
        for _ in 0..PEERS_MAX {
            self.hand = (self.hand + 1) % PEERS_MAX;
            if self.peers[self.hand].as_ref().is_some_and(|peer| peer.reader.is_none()) {
                self.drop_peer(self.hand, registration, host);
                return Some(self.hand);
            }
        }
        None
    }

    /// A peer has said something, or has gone.
    fn hear(&mut self, at: usize, registration: &Registration, host: &mut dyn Host) {
        let Some(Some(peer)) = self.peers.get_mut(at) else { return };
        if peer.reader.is_some() {
            // Readers say nothing: this is the end, or no reader of ours.
            let mut byte = [0; 1];
            let said = rustix::net::recv(&peer.socket, &mut byte, RecvFlags::DONTWAIT);
            if !matches!(said, Err(Errno::AGAIN | Errno::INTR)) {
                self.drop_peer(at, registration, host);
            }
            return;
        }
        let stays = match hear(&peer.socket) {
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(Some(Ok(hello))) => peer.serve(hello, host),
            Ok(Some(Err(reason))) => {
                let _ = answer(&peer.socket, &Answer::Refused(reason), &[]);
                false
            }
            Ok(None) | Err(_) => false,
        };
        if !stays {
            self.drop_peer(at, registration, host);
        }
    }

    fn drop_peer(&mut self, at: usize, registration: &Registration, host: &mut dyn Host) {
        let Some(peer) = self.peers.get_mut(at).and_then(Option::take) else { return };
        registration.unwatch(&peer.socket);
        if let Some(reader) = peer.reader {
            host.detach(reader);
        }
    }
}

impl Peer {
    /// Answers. Returns whether the connection goes on: it is a reader's.
    fn serve(&mut self, hello: Hello, host: &mut dyn Host) -> bool {
        let text = host.describe();
        let failed = |error: io::Error| Answer::Refused(format!("its memory: {error}"));
        let result = match hello {
            Hello::Describe => answer(&self.socket, &Answer::Welcome { reader: 0, text }, &[]),
            Hello::Figures => match host.share() {
                Ok(ring) => {
                    answer(&self.socket, &Answer::Welcome { reader: 0, text }, &[ring.as_fd()])
                }
                Err(error) => answer(&self.socket, &failed(error), &[]),
            },
            Hello::Attach(mode) => return self.attach(mode, text, host),
        };
        // One that does not take its answer has gone.
        let _ = result;
        false
    }

    fn attach(&mut self, mode: Mode, text: String, host: &mut dyn Host) -> bool {
        match host.attach(mode, &self.socket) {
            Ok((reader, files)) => {
                self.reader = Some(reader);
                let welcome = Answer::Welcome { reader: reader as u32, text };
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                answer(&self.socket, &welcome, &files).is_ok()
            }
            Err(reason) => {
                let _ = answer(&self.socket, &Answer::Refused(reason), &[]);
                false
            }
        }
    }
}

/// Whether whoever connected is this user, or root.
fn is_trusted(socket: impl AsFd) -> bool {
    socket_peercred(socket)
        .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root())
}

/// Wakes a peer: one byte, without waiting. That nobody takes them is as good.
pub(crate) fn wake(socket: BorrowedFd<'_>) {
    use rustix::net::SendFlags;
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::send(socket, &[1], flags);
}
