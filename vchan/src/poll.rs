#![forbid(unsafe_code)]
//! Sleeping in the kernel until a descriptor is readable, with a deadline.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::backend::Backend;
use crate::error::{Error, Result};

/// The longest time for one system call.
const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

/// Readable from the moment it is signalled, for good.
#[derive(Debug)]
pub(crate) struct Cancel(EventFd);

impl Cancel {
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        EventFd::from_value_and_flags(0, flags)
            .map(Self)
            .map_err(|errno| Error::os("cannot create an eventfd", errno))
    }

    pub(crate) fn signal(&self) {
        // Fails only if the counter is full, and then the descriptor is readable already.
        let _ = self.0.write(1);
    }
}

/// Waits until the doorbell rings, the peer dies or `cancel` is signalled; false if `deadline`
/// passed first.
pub(crate) fn poll_backend(
    backend: &dyn Backend,
    cancel: Option<&Cancel>,
    deadline: Instant,
) -> Result<bool> {
    match cancel {
        Some(cancel) => poll_readable(&[backend.poll_fd(), cancel.0.as_fd()], deadline),
        None => poll_readable(&[backend.poll_fd()], deadline),
    }
}

/// Waits until one of at most two descriptors is readable; false if `deadline` passed first.
pub(crate) fn poll_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<bool> {
    // The last is repeated where there is only one.
    let mut polled = std::array::from_fn::<_, 2, _>(|i| {
        PollFd::new(fds[i.min(fds.len() - 1)], PollFlags::POLLIN)
    });
    poll_fds(&mut polled[..fds.len()], deadline)
}

/// Waits until one of `fds` is as it asks; false if `deadline` passed first.
pub(crate) fn poll_fds(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<bool> {
    loop {
        // Some kernels refuse very long times; who asked for one simply polls again.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(LONGEST_POLL);
        match ppoll(fds, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Error::os("cannot wait for the peer", errno)),
        }
    }
}
