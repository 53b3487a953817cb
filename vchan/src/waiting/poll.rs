#![forbid(unsafe_code)]
//! Sleeping in the kernel until a descriptor is readable, with a deadline.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::error::{Error, Result};

/// The longest time for one system call.
const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

/// Waits until one of at most two descriptors is readable; false if `deadline` passed first.
pub(crate) fn poll_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<bool> {
    // The last descriptor is repeated where there is only one.
    let mut polled = std::array::from_fn::<_, 2, _>(|i| {
        PollFd::new(fds[i.min(fds.len() - 1)], PollFlags::POLLIN)
    });
    poll_fds(&mut polled[..fds.len()], deadline)
}

/// Waits until one of `fds` has an event it asks for; false if `deadline` passed first.
pub(crate) fn poll_fds(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<bool> {
    poll_from(fds, Instant::now(), deadline)
}

/// [`poll_fds`] for a caller that has just read the clock, which is a system call on some guests.
pub(crate) fn poll_from(
    fds: &mut [PollFd<'_>],
    mut now: Instant,
    deadline: Instant,
) -> Result<bool> {
    loop {
        // Some kernels refuse very long times; a caller that asked for one simply polls again.
        let left = deadline.saturating_duration_since(now).min(LONGEST_POLL);
        match ppoll(fds, Some(TimeSpec::from_duration(left)), None) {
            // The kernel has checked after the time was over; an interruption proves no such check.
            Ok(0) if left.is_zero() || Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Error::os("cannot wait for the peer", errno)),
        }
        now = Instant::now();
    }
}

/// Whether one of `fds` has an event it asks for now.
pub(crate) fn poll_now(fds: &mut [PollFd<'_>]) -> Result<bool> {
    loop {
        match ppoll(fds, Some(TimeSpec::from_duration(Duration::ZERO)), None) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("cannot look for the peer", errno)),
        }
    }
}
