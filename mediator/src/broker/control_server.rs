//! The control socket's serving side: bounded connections, nothing that waits.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket,
    sockopt::PeerCredentials,
};
use nix::unistd::Uid;
use vchan::local::Stranger;
use vgpu_cli::Failure;

use super::connections::Connections;
use crate::control::{Answer, Ask, MAX_REQUEST, Refused, Request, Response, VERSION};
use crate::lines::LineBuffer;

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 16;

/// Time for one question and its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// The listening socket and its connections.
#[derive(Debug)]
pub(super) struct ControlServer {
    listener: Stranger<UnixListener>,
    path: PathBuf,
    /// Device and inode of the socket's file, to remove only our own.
    identity: (u64, u64),
    connections: Connections<UnixStream, LineBuffer>,
}

impl ControlServer {
    /// Listens at `path`. The caller holds the lock for it, but a lock file can be removed: so a
    /// socket on which somebody listens stays, and ours appears there ready, by a rename.
    pub(super) fn bind(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::system(
                format!("cannot listen on the control socket {}", path.display()),
                error,
                "give --control a path of at most 96 bytes in a directory of yours",
            )
        };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Failure::new(
                    format!("{} exists and is not a socket", path.display()),
                    "give --control another path, or remove the file",
                ));
            }
            Ok(_) if is_live(path) => {
                return Err(Failure::new(
                    format!("another process listens on {}", path.display()),
                    "stop that one first, or give this one another --control PATH",
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        // Of a process of the same number that was killed here.
        let _ = fs::remove_file(&temporary);
        let bind = || {
            let listener = UnixListener::bind(&temporary)?;
            listener.set_nonblocking(true)?;
            fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
            let about = fs::symlink_metadata(&temporary)?;
            fs::rename(&temporary, path)?;
            Ok((listener, (about.dev(), about.ino())))
        };
        let (listener, identity) = bind().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed(error)
        })?;
        Ok(Self {
            listener: listener.into(),
            path: path.to_owned(),
            identity,
            connections: Connections::new(MOST_CONNECTIONS),
        })
    }

    /// The listening socket, while another connection can be taken.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.connections.has_room().then(|| self.listener.as_fd())
    }

    /// The connections, and what each waits for; a hang-up is always reported.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u64, PollFd<'_>)> {
        self.connections.polled()
    }

    /// When the first connection's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connections.deadline()
    }

    /// Takes one connection that waits.
    pub(super) fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => Stranger::from(stream),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("control socket: {error}");
                }
                return;
            }
        };
        let admitted = stream.set_nonblocking(true).is_ok()
            && getsockopt(&*stream, PeerCredentials)
                .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == Uid::effective().as_raw());
        let lines = LineBuffer::new(MAX_REQUEST);
        let id = self.connections.take(stream, lines, now + REQUEST_LIMIT);
        if !admitted {
            let answer = refused(
                "this user may not control the mediator",
                "run vgpuctl as root or as the user that runs the mediator",
            );
            self.answer(id, answer);
        }
    }

    /// Moves what a connection has; returns its question once that is complete.
    pub(super) fn serve(&mut self, id: u64) -> Option<Ask> {
        let (stream, lines) = self.connections.asking(id)?;
        let received = match lines.read(stream) {
            Ok(received) => received,
            Err(error) => {
                log::debug!("control connection: {error}");
                self.connections.close(id);
                return None;
            }
        };
        let Some(line) = received.lines.first() else {
            if received.closed {
                self.connections.close(id);
            }
            return None;
        };
        self.connections.has_asked(id);
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
        match serde_json::to_vec(&response) {
            Ok(mut line) => {
                line.push(b'\n');
                self.connections.answer(id, line);
            }
            Err(error) => {
                log::error!("a control answer cannot be written: {error}");
                self.connections.close(id);
            }
        }
    }

    /// Gives a question until `deadline`.
    pub(super) fn allow_until(&mut self, id: u64, deadline: Instant) {
        self.connections.allow_until(id, deadline);
    }

    /// Closes connections whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.connections.expire(now);
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Another mediator's, if ours was removed. Nothing can be done about an error here.
        if let Ok(there) = fs::symlink_metadata(&self.path)
            && (there.dev(), there.ino()) == self.identity
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether somebody listens on the socket at `path`. Does not wait for room in its queue.
fn is_live(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let tried = UnixAddr::new(path).and_then(|address| {
        let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(probe.as_raw_fd(), &address)
    });
    // A full queue and missing rights mean that somebody is there.
    !matches!(tried, Err(Errno::ECONNREFUSED | Errno::ENOENT))
}

/// An answer that says no.
pub(super) fn refused(what: &str, advice: &str) -> Answer {
    Answer::Error(Refused {
        what: what.to_owned(),
        advice: advice.to_owned(),
        code: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_use_stays_and_the_end_of_one_leaves_that_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let first = ControlServer::bind(&path).unwrap();
        let refused = ControlServer::bind(&path).unwrap_err().what;
        assert!(refused.contains("another process listens"), "{refused}");
        fs::remove_file(&path).unwrap();
        let second = ControlServer::bind(&path).unwrap();
        drop(first);
        assert!(is_live(&path));
        drop(second);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        // Leftovers of a killed mediator are no obstacle.
        drop(UnixListener::bind(&path).unwrap());
        let _third = ControlServer::bind(&path).unwrap();
        assert!(is_live(&path));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
