//! Waiting for descriptors with a deadline.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until any of `fds` is ready or `deadline` has passed. A signal ends the wait early.
pub(super) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let timeout = match deadline {
        None => PollTimeout::NONE,
        // Rounded up, so that the deadline has passed when poll says so.
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        }
    };
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until `fd` is readable.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] at `deadline`.
pub(super) fn wait_readable(fd: &impl AsFd, deadline: Instant) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        // Read before the look, so that there is one after the deadline.
        let late = Instant::now() >= deadline;
        wait(&mut fds, Some(deadline))?;
        if is_ready(&fds[0]) {
            return Ok(());
        }
        if late {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Whether poll reported anything about it.
pub(super) fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(true)
}
