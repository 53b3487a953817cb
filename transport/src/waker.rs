//! Waking a thread that waits for a transport, from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::error::TransportError;

/// The longest time for one `ppoll`: some kernels refuse a very long one. A longer wait takes several calls.
pub const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

/// A flag with a descriptor that is readable while it is raised.
#[derive(Debug)]
pub struct Waker {
    /// Whether it has been raised since it was last lowered.
    raised: AtomicBool,
    event: EventFd,
}

impl Waker {
    /// A waker that is not raised.
    ///
    /// # Errors
    /// The system's error, if no descriptor is free.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            raised: AtomicBool::new(false),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// Wakes the thread that waits, or the next one to wait.
    pub fn raise(&self) {
        // Partner: the swap in `lower`. Writes before this are visible after that.
        if !self.raised.swap(true, Ordering::AcqRel) {
            // Fails only after 2^64 - 1 raises without a read; the descriptor is readable then.
            let _ = self.event.write(1);
        }
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Whether it is raised, where a poll has found its descriptor readable.
    ///
    /// [`raise`](Self::raise) has two steps. Where it was lowered between them, its descriptor is readable and it is
    /// not raised: then this takes out what the late step has written, so that the next poll waits.
    pub fn is_raised_by_poll(&self) -> bool {
        if self.is_raised() {
            return true;
        }
        let _ = self.event.read();
        // What was read may be of a thread that has raised it since.
        self.is_raised()
    }

    /// Lowers it. Call it before looking for the reason of the wake-up. Returns whether it was
    /// raised.
    pub fn lower(&self) -> bool {
        if !self.is_raised() {
            return false;
        }
        // First the descriptor: a thread that raises it in between finds the flag set and does not
        // write, and its reason is visible after the swap.
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

    /// Waits until one of two wakers is raised.
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
            let left = TimeSpec::from_duration(left.min(LONGEST_POLL));
            let mut fds = [one, other].map(|waker| PollFd::new(waker.as_fd(), PollFlags::POLLIN));
            match ppoll(&mut fds, Some(left), None) {
                Ok(_) => {
                    let readable = fds.map(|fd| fd.any().unwrap_or(true));
                    for (waker, readable) in [one, other].into_iter().zip(readable) {
                        if readable && waker.is_raised_by_poll() {
                            return Ok(());
                        }
                    }
                }
                Err(Errno::EINTR) => {}
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

    use nix::poll::{PollTimeout, poll};

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

    /// Lowers `waker` between the two steps of a thread that raises it.
    fn raise_late(waker: &Waker) {
        assert!(!waker.raised.swap(true, Ordering::AcqRel));
        assert!(waker.lower());
        waker.event.write(1).unwrap();
    }

    #[test]
    fn a_step_that_comes_late_wakes_nobody_for_ever() {
        let (waker, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        for either in [false, true] {
            raise_late(&waker);
            let deadline = Instant::now() + Duration::from_millis(50);
            let waited = match either {
                false => waker.wait(deadline),
                true => Waker::wait_for_either(&other, &waker, deadline),
            };
            assert!(waited.is_err());
            let mut fds = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0), "it waited");
        }
        // One that is raised for good counts.
        raise_late(&waker);
        waker.raise();
        waker
            .wait(Instant::now() + Duration::from_secs(60))
            .unwrap();
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
