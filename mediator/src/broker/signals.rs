//! Signals as bytes on sockets, for the broker's poll loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Signals that have arrived since the last look.
#[derive(Debug)]
pub(super) struct Signals {
    termination: UnixStream,
    hang_up: UnixStream,
    children: UnixStream,
}

impl Signals {
    /// From here on SIGTERM, SIGINT, SIGHUP and SIGCHLD only make the descriptors readable.
    pub(super) fn register() -> io::Result<Self> {
        Ok(Self {
            termination: receiver(&[SIGTERM, SIGINT])?,
            hang_up: receiver(&[SIGHUP])?,
            children: receiver(&[SIGCHLD])?,
        })
    }

    /// Readable when the process should end.
    pub(super) fn termination(&self) -> BorrowedFd<'_> {
        self.termination.as_fd()
    }

    /// Readable when the configuration should be read again, or a terminal is gone.
    pub(super) fn hang_up(&self) -> BorrowedFd<'_> {
        self.hang_up.as_fd()
    }

    /// Readable when a child has ended.
    pub(super) fn children(&self) -> BorrowedFd<'_> {
        self.children.as_fd()
    }

    /// How many signals to end have come.
    pub(super) fn take_terminations(&mut self) -> usize {
        take(&mut self.termination)
    }

    /// How many SIGHUPs have come.
    pub(super) fn take_hang_ups(&mut self) -> usize {
        take(&mut self.hang_up)
    }

    /// How many signals about children have come; several children may share one.
    pub(super) fn take_children(&mut self) -> usize {
        take(&mut self.children)
    }
}

fn receiver(signals: &[i32]) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}

fn take(receiver: &mut UnixStream) -> usize {
    let mut buffer = [0; 64];
    // At most one byte a signal waits here; an error means that none does.
    receiver.read(&mut buffer).unwrap_or(0)
}
