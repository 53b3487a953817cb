#![forbid(unsafe_code)]
//! Sleeping in the kernel until a channel's backend has an event, or this side closes.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::waiting::poll::poll_from;
use vgpu_transport::Waker;

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

/// Waits until the doorbell rings, the peer dies, `cancel` is signalled or `waker` is raised; false if
/// `deadline` passed first. `now` spares the clock: see [`poll_from`].
pub(crate) fn poll_backend(
    backend: &dyn Backend,
    cancel: Option<&Cancel>,
    waker: Option<&Waker>,
    mut now: Instant,
    deadline: Instant,
) -> Result<bool> {
    let bell = backend.poll_fd();
    let others = [
        cancel.map(|cancel| cancel.0.as_fd()),
        waker.map(AsFd::as_fd),
    ];
    let (mut fds, mut used) = ([(bell, PollFlags::POLLIN); 3], 1);
    for fd in others.into_iter().flatten() {
        fds[used].0 = fd;
        used += 1;
    }
    loop {
        let ready = poll_from(&fds[..used], now, deadline)?;
        if !ready.any() {
            return Ok(false);
        }
        // The waker's descriptor is the last, and may be readable with the waker down.
        let woken = match waker {
            None => true,
            Some(waker) => ready.any_but(used - 1) || waker.is_raised_by_poll(),
        };
        if woken {
            return Ok(true);
        }
        now = Instant::now();
    }
}
