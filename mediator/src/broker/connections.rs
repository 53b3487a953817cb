//! Connections that bring one question each and are closed once its answer is sent: bounded, and nothing waits.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, send};
use vchan::local::Stranger;

/// The connections of one socket: of each its stream, and what has come of its question.
#[derive(Debug)]
pub(super) struct Connections<S: Into<OwnedFd>, Q> {
    all: BTreeMap<u64, Connection<S, Q>>,
    next: u64,
    /// Connections at once; more wait in the kernel's queue.
    most: usize,
}

#[derive(Debug)]
struct Connection<S: Into<OwnedFd>, Q> {
    stream: Stranger<S>,
    question: Q,
    unsent: Vec<u8>,
    /// Its question is complete: nothing more is read.
    has_asked: bool,
    deadline: Instant,
}

impl<S: AsFd + Into<OwnedFd>, Q> Connections<S, Q> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            all: BTreeMap::new(),
            next: 0,
            most,
        }
    }

    /// Whether another one can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.all.len() < self.most
    }

    /// Takes a connection that blocks nobody, until `deadline`; its number.
    pub(super) fn take(&mut self, stream: Stranger<S>, question: Q, deadline: Instant) -> u64 {
        let id = self.next;
        self.next += 1;
        let connection = Connection {
            stream,
            question,
            unsent: Vec::new(),
            has_asked: false,
            deadline,
        };
        self.all.insert(id, connection);
        id
    }

    /// The events each waits for; a hang-up is always reported.
    pub(super) fn polled(&self) -> impl Iterator<Item = (u64, PollFd<'_>)> {
        self.all.iter().map(|(id, connection)| {
            let events = match (connection.has_asked, connection.unsent.is_empty()) {
                (false, _) => PollFlags::POLLIN,
                // It may have shut down its sending side.
                (true, true) => PollFlags::empty(),
                (true, false) => PollFlags::POLLOUT,
            };
            (*id, PollFd::new(connection.stream.as_fd(), events))
        })
    }

    /// When the first one's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.all
            .values()
            .map(|connection| connection.deadline)
            .min()
    }

    /// Closes those whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.all.retain(|_, connection| connection.deadline > now);
    }

    /// Gives one until `deadline`.
    pub(super) fn allow_until(&mut self, id: u64, deadline: Instant) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.deadline = deadline;
        }
    }

    /// Closes one at once.
    pub(super) fn close(&mut self, id: u64) {
        self.all.remove(&id);
    }

    /// The stream of one that is ready, with what has come of its question. One that has asked is sent more of its
    /// answer instead.
    pub(super) fn asking(&mut self, id: u64) -> Option<(&S, &mut Q)> {
        if self.all.get(&id)?.has_asked {
            self.send(id);
            return None;
        }
        let connection = self.all.get_mut(&id)?;
        Some((&*connection.stream, &mut connection.question))
    }

    /// The question is complete; what follows it is not read.
    pub(super) fn has_asked(&mut self, id: u64) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.has_asked = true;
        }
    }

    /// Answers, and closes the connection once all is sent. It may be gone.
    pub(super) fn answer(&mut self, id: u64, answer: Vec<u8>) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.has_asked = true;
            connection.unsent = answer;
            self.send(id);
        }
    }

    fn send(&mut self, id: u64) {
        let Some(connection) = self.all.get_mut(&id) else {
            return;
        };
        // It waits for its answer: all that can have happened is that it hung up.
        if connection.unsent.is_empty() {
            self.close(id);
            return;
        }
        let fd = connection.stream.as_fd().as_raw_fd();
        match send(fd, &connection.unsent, MsgFlags::MSG_NOSIGNAL) {
            Ok(n) if n < connection.unsent.len() => {
                connection.unsent.drain(..n);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => self.close(id),
        }
    }
}
