#![forbid(unsafe_code)]
//! Sleeping in the kernel until a descriptor is readable, with a deadline.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use vgpu_transport::LONGEST_POLL;

use crate::error::{Error, Result};
use crate::waiting::alarm;
use crate::waiting::machine_costs::Pace;

/// The most descriptors of one call.
pub(crate) const MOST: usize = 4;

/// A descriptor and the events that it is watched for; an error on it counts as one.
pub(crate) type Watched<'a> = (BorrowedFd<'a>, PollFlags);

/// Which of the descriptors of one call have an event: one bit each, the first is bit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready(u8);

impl Ready {
    pub(crate) const NONE: Self = Self(0);

    /// The descriptors in `fds` that have an event.
    pub(crate) fn of(fds: &[PollFd<'_>]) -> Self {
        let bits = fds.iter().enumerate();
        Self(bits.fold(0, |bits, (i, fd)| {
            // Flags that nix does not know are events as well.
            bits | u8::from(fd.any().unwrap_or(true)) << i
        }))
    }

    /// Whether any has.
    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether the descriptor at `index` has.
    pub(crate) fn has(self, index: usize) -> bool {
        self.0 >> index & 1 != 0
    }

    /// Whether any but the one at `index` has.
    pub(crate) fn any_but(self, index: usize) -> bool {
        self.0 & !(1 << index) != 0
    }
}

/// Waits until one of `fds` is readable; false if `deadline` passed first.
pub(crate) fn poll_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<bool> {
    let mut watched = [(fds[0], PollFlags::POLLIN); MOST];
    for (watched, fd) in watched.iter_mut().zip(fds) {
        watched.0 = *fd;
    }
    Ok(poll_fds(&watched[..fds.len()], deadline)?.any())
}

/// Waits until one of `fds`, at most [`MOST`], has an event; none of them if `deadline` passed first.
pub(crate) fn poll_fds(fds: &[Watched<'_>], deadline: Instant) -> Result<Ready> {
    poll_from(fds, Instant::now(), deadline)
}

/// [`poll_fds`] for a caller that has just read the clock.
pub(crate) fn poll_from(fds: &[Watched<'_>], mut now: Instant, deadline: Instant) -> Result<Ready> {
    if fds.is_empty() {
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        return Ok(Ready::NONE);
    }
    if Pace::here().slow_clock
        && let Some(outcome) = alarm::poll(fds, deadline)
    {
        return outcome.map_err(failed);
    }
    loop {
        let left = deadline.saturating_duration_since(now).min(LONGEST_POLL);
        let mut polled = array(fds, None);
        let polled = &mut polled[..fds.len()];
        match ppoll(polled, Some(TimeSpec::from_duration(left)), None) {
            // The kernel has checked after the time was over; an interruption proves no such check.
            Ok(0) if left.is_zero() || Instant::now() >= deadline => return Ok(Ready::NONE),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Ready::of(polled)),
            Err(errno) => return Err(failed(errno)),
        }
        now = Instant::now();
    }
}

/// `fds`, at least one, for the system call; the places behind them are filled with `last`, or with
/// the first of them.
pub(crate) fn array<'a>(
    fds: &[Watched<'a>],
    last: Option<BorrowedFd<'a>>,
) -> [PollFd<'a>; MOST + 1] {
    let last = last.map_or(fds[0], |fd| (fd, PollFlags::POLLIN));
    std::array::from_fn(|i| {
        let (fd, events) = *fds.get(i).unwrap_or(&last);
        PollFd::new(fd, events)
    })
}

fn failed(errno: Errno) -> Error {
    Error::os("cannot wait for the peer", errno)
}

/// Whether one of `fds` has an event now.
pub(crate) fn poll_now(fds: &[Watched<'_>]) -> Result<bool> {
    let outcome = look(fds).map_err(|errno| Error::os("cannot look for the peer", errno))?;
    Ok(outcome.any())
}

/// Which of `fds` have an event now.
pub(crate) fn look(fds: &[Watched<'_>]) -> nix::Result<Ready> {
    if fds.is_empty() {
        return Ok(Ready::NONE);
    }
    let mut polled = array(fds, None);
    let polled = &mut polled[..fds.len()];
    loop {
        match ppoll(polled, Some(TimeSpec::from_duration(Duration::ZERO)), None) {
            Ok(_) => return Ok(Ready::of(polled)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
