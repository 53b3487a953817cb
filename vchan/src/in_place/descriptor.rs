#![forbid(unsafe_code)]
//! Bytes between a ring and a file descriptor, with no copy but the kernel's and no wait beyond a
//! deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::{SFlag, fstat};

use super::stretch;
use super::views::{PeerBytes, RingSpace};
use crate::waiting::poll::poll_fds;

/// Bytes that a blocking pipe with room accepts without waiting: POSIX promises as much for writes
/// of up to `PIPE_BUF` bytes, which is this on Linux.
const PIPE_PIECE: usize = 4096;

/// Ways to write to a descriptor without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Writes return at once, or go to a disk and take as long as it takes.
    Plain,
    /// A flag makes each call non-blocking.
    Socket,
    /// Only small pieces are safe, each after a poll.
    Pieces,
}

impl Output {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            return Ok(Self::Plain);
        }
        let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
        Ok(match kind {
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFIFO | SFlag::S_IFCHR => Self::Pieces,
            _ => Self::Plain,
        })
    }

    fn write(self, fd: BorrowedFd<'_>, bytes: PeerBytes<'_>) -> io::Result<usize> {
        match self {
            Self::Plain => stretch::write(fd, bytes.stretches()),
            Self::Socket => stretch::send(fd, bytes.stretches()),
            Self::Pieces => stretch::write(fd, bytes.up_to(PIPE_PIECE).stretches()),
        }
    }
}

pub(super) fn write_to(
    bytes: PeerBytes<'_>,
    fd: BorrowedFd<'_>,
    deadline: Instant,
) -> io::Result<usize> {
    let output = Output::of(fd)?;
    let mut done = 0;
    while done < bytes.len() {
        // Only the first byte is waited for.
        let now = Instant::now();
        let until = if done == 0 { deadline } else { now };
        // Read before checking, so that one check follows the deadline.
        let late = now >= deadline;
        let outcome = match ready(fd, PollFlags::POLLOUT, until) {
            Ok(true) => output.write(fd, bytes.after(done)),
            Ok(false) if done > 0 => break,
            Ok(false) => return Err(timed_out("take what the channel brings")),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if again(&error) => {
                if done > 0 {
                    break;
                }
                if late {
                    return Err(timed_out("take what the channel brings"));
                }
            }
            // The bytes written count; the error comes again next time.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    if done == 0 && !bytes.is_empty() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(done)
}

pub(super) fn read_from(
    space: &mut RingSpace<'_>,
    fd: BorrowedFd<'_>,
    deadline: Instant,
) -> io::Result<usize> {
    if space.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is no room in the ring to read into",
        ));
    }
    loop {
        // Read before checking, so that one check follows the deadline.
        let late = Instant::now() >= deadline;
        if !ready(fd, PollFlags::POLLIN, deadline)? {
            return Err(timed_out("have something for the channel"));
        }
        match stretch::read(fd, space.stretches()) {
            // Another reader was faster, or a signal came.
            Err(error) if again(&error) && !late => {}
            Err(error) if again(&error) => {
                return Err(timed_out("have something for the channel"));
            }
            outcome => return outcome,
        }
    }
}

/// Waits until a call on `fd` would not block; an error on `fd` counts as that. False at
/// `deadline`.
fn ready(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> io::Result<bool> {
    Ok(poll_fds(&[(fd, what)], deadline)?.any())
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("timed out while waiting for the descriptor to {what}"),
    )
}
