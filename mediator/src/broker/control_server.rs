//! The control socket's serving side: bounded connections, nothing that waits.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

use crate::control::{Answer, Ask, MAX_REQUEST, Refused, Request, Response, VERSION};
use crate::failure::Failure;
use crate::lines::LineBuffer;

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 16;

/// Time for one question and its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The listening socket and its connections.
#[derive(Debug)]
pub(super) struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    lines: LineBuffer,
    unsent: Vec<u8>,
    /// Its question was read; the connection closes once the answer is sent.
    answered: bool,
    deadline: Instant,
}

impl ControlServer {
    /// Listens at `path`, which the caller holds the lock for: what is there is stale.
    pub(super) fn bind(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::system(
                format!("cannot listen on the control socket {}", path.display()),
                error,
                "give --control a path of at most 107 bytes in a directory of yours",
            )
        };
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                use std::os::unix::fs::FileTypeExt;
                if !metadata.file_type().is_socket() {
                    return Err(Failure::new(
                        format!("{} exists and is not a socket", path.display()),
                        "give --control another path, or remove the file",
                    ));
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            connections: BTreeMap::new(),
            next: 0,
        })
    }

    /// The listening socket, while another connection can be taken.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        (self.connections.len() < MOST_CONNECTIONS).then(|| self.listener.as_fd())
    }

    /// The connections, and what each waits for; a hang-up is always reported.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u64, PollFd<'_>)> {
        self.connections.iter().map(|(id, connection)| {
            let events = match (connection.answered, connection.unsent.is_empty()) {
                (false, _) => PollFlags::POLLIN,
                // It has asked, and may have shut down its sending side.
                (true, true) => PollFlags::empty(),
                (true, false) => PollFlags::POLLOUT,
            };
            (*id, PollFd::new(connection.stream.as_fd(), events))
        })
    }

    /// When the first connection's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connections
            .values()
            .map(|connection| connection.deadline)
            .min()
    }

    /// Takes one connection that waits.
    pub(super) fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("control socket: {error}");
                }
                return;
            }
        };
        let admitted = stream.set_nonblocking(true).is_ok()
            && getsockopt(&stream, PeerCredentials)
                .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == Uid::effective().as_raw());
        self.connections.insert(
            self.next,
            Connection {
                stream,
                lines: LineBuffer::new(MAX_REQUEST),
                unsent: Vec::new(),
                answered: false,
                deadline: now + PATIENCE,
            },
        );
        if !admitted {
            let answer = refused(
                "this user may not control the mediator",
                "run vgpuctl as root or as the user that runs the mediator",
            );
            self.answer(self.next, answer);
        }
        self.next += 1;
    }

    /// Moves what a connection has; returns its question once that is complete.
    pub(super) fn serve(&mut self, id: u64) -> Option<Ask> {
        let connection = self.connections.get_mut(&id)?;
        if connection.answered {
            self.send(id);
            return None;
        }
        let received = match connection.lines.read(&connection.stream) {
            Ok(received) => received,
            Err(error) => {
                log::debug!("control connection: {error}");
                self.connections.remove(&id);
                return None;
            }
        };
        let Some(line) = received.lines.first() else {
            if received.closed {
                self.connections.remove(&id);
            }
            return None;
        };
        // One question a connection: what follows it is not read.
        connection.answered = true;
        match serde_json::from_str::<Request>(line) {
            Ok(request) if request.v == VERSION => Some(request.ask),
            Ok(request) => {
                let what = format!("control version {} is not {VERSION}", request.v);
                self.answer(
                    id,
                    refused(&what, "use the vgpuctl of the mediator's version"),
                );
                None
            }
            Err(error) => {
                let what = format!("the request is not understood: {error}");
                self.answer(
                    id,
                    refused(&what, "use the vgpuctl of the mediator's version"),
                );
                None
            }
        }
    }

    /// Answers a question. The connection may be gone.
    pub(super) fn answer(&mut self, id: u64, answer: Answer) {
        let response = Response { v: VERSION, answer };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match serde_json::to_vec(&response) {
            Ok(mut line) => {
                line.push(b'\n');
                connection.unsent = line;
                connection.answered = true;
                self.send(id);
            }
            Err(error) => {
                log::error!("a control answer cannot be written: {error}");
                self.connections.remove(&id);
            }
        }
    }

    /// Closes connections whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.connections
            .retain(|_, connection| connection.deadline > now);
    }

    fn send(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        // It waits for its answer: all that can have happened is that it hung up.
        if connection.unsent.is_empty() {
            self.connections.remove(&id);
            return;
        }
        match connection.stream.write(&connection.unsent) {
            Ok(n) if n == connection.unsent.len() => {
                self.connections.remove(&id);
            }
            Ok(n) => {
                connection.unsent.drain(..n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.connections.remove(&id);
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The lock is still held, so the socket is ours.
        let _ = fs::remove_file(&self.path);
    }
}

/// An answer that says no.
pub(super) fn refused(what: &str, advice: &str) -> Answer {
    Answer::Error(Refused {
        what: what.to_owned(),
        advice: advice.to_owned(),
    })
}
