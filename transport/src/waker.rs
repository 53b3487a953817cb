//! Waking a thread that waits for a transport, from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::transport::TransportError;

/// A flag with a descriptor that is readable while it is raised.
#[derive(Debug)]
pub struct Waker {
    /// Whether somebody has raised it since it was last lowered.
    raised: AtomicBool,
    event: EventFd,
}

impl Waker {
    /// One that is not raised.
    ///
    /// # Errors
    /// The system's, where no descriptor is free.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            raised: AtomicBool::new(false),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// Wakes whoever waits, now or next.
    pub fn raise(&self) {
        // Partner: the swap in `lower`. What was done before this is seen after that.
        if !self.raised.swap(true, Ordering::AcqRel) {
            // Fails only at 2^64 - 1 raises that nobody has seen; it is readable then.
            let _ = self.event.write(1);
        }
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Lowers it; to be called before looking for what it was raised for. Returns whether it was.
    pub fn lower(&self) -> bool {
        if !self.is_raised() {
            return false;
        }
        // First the descriptor: who raises it in between finds the flag set and does not write, and
        // what that was for is seen after the swap.
        let _ = self.event.read();
        self.raised.swap(false, Ordering::AcqRel)
    }

    /// Waits until it is raised.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at `deadline`.
    pub fn wait(&self, deadline: Instant) -> Result<(), TransportError> {
        Self::wait_for_either(self, self, deadline)
    }

    /// Waits until one of the two is raised.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at `deadline`.
    pub fn wait_for_either(
        one: &Self,
        other: &Self,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if one.is_raised() || other.is_raised() {
                return Ok(());
            }
            if left.is_zero() {
                return Err(TransportError::TimedOut("be woken"));
            }
            // Rounded up, so as not to turn round before the deadline.
            let ms = left.as_millis().saturating_add(1);
            let timeout = PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX);
            let mut fds = [one, other].map(|waker| PollFd::new(waker.as_fd(), PollFlags::POLLIN));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(TransportError::Io {
                        context: "poll".to_owned(),
                        source: errno.into(),
                    });
                }
            }
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn it_wakes_from_another_thread_and_stays_raised_until_it_is_lowered() {
        let waker = Arc::new(Waker::new().unwrap());
        assert!(waker.wait(Instant::now()).is_err());
        let other = Arc::clone(&waker);
        let thread = thread::spawn(move || other.raise());
        waker
            .wait(Instant::now() + Duration::from_secs(60))
            .unwrap();
        thread.join().unwrap();
        assert!(waker.is_raised());
        waker.wait(Instant::now()).unwrap();
        assert!(waker.lower());
        assert!(!waker.lower());
        assert!(waker.wait(Instant::now()).is_err());
    }

    #[test]
    fn nothing_raised_is_lost_while_it_is_lowered() {
        let waker = Arc::new(Waker::new().unwrap());
        let done = Arc::new(std::sync::atomic::AtomicU32::new(0));
        const ROUNDS: u32 = 20_000;
        let thread = {
            let (waker, done) = (Arc::clone(&waker), Arc::clone(&done));
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    done.fetch_add(1, Ordering::Relaxed);
                    waker.raise();
                }
            })
        };
        let mut seen = 0;
        while seen < ROUNDS {
            waker
                .wait(Instant::now() + Duration::from_secs(60))
                .unwrap();
            waker.lower();
            seen = done.load(Ordering::Relaxed);
        }
        thread.join().unwrap();
    }
}
