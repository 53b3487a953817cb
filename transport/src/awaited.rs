//! Events that end a wait for a transport: another thread's or a device's.

use std::fmt::Debug;
use std::ops::Deref;
use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{TransportError, timed_out};
use crate::waker::Waker;

/// Something that a thread waits for along with a transport: another thread's work, or a device's.
///
/// A transport that polls before it sleeps asks [`has_come`](Self::has_come), so that work which is over soon needs
/// nobody to wake this thread; before it sleeps it calls [`arm`](Self::arm).
pub trait Awaited: Debug {
    /// Raised when it has come, if that is after [`arm`](Self::arm).
    fn waker(&self) -> &Waker;

    /// Whether it has come. Called over and over while a transport polls: a few loads.
    fn has_come(&self) -> bool;

    /// This thread is about to sleep: from here on the [`waker`](Self::waker) is raised when it has come.
    fn arm(&mut self);

    /// For how long a thread that has waited for `waited` sleeps before it looks again; `None`: until the
    /// [`waker`](Self::waker) is raised. Where the waker is raised much later than it has come, a timer is sooner.
    fn nap(&self, waited: Duration) -> Option<Duration> {
        let _ = waited;
        None
    }
}

impl dyn Awaited + '_ {
    /// Waits for it alone.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Result<(), TransportError> {
        if self.has_come() {
            return Ok(());
        }
        let now = clock::now();
        self.sleep(now, now, deadline, timed_out, |waker, _, until| {
            waker.wait(until)
        })
    }

    /// Sleeps until it has come, `sleep` finds something else to do, or `deadline`. The wait began at `since`.
    ///
    /// `sleep` is given the waker, the time, and the time at which to fail as `timed_out` knows.
    ///
    /// # Errors
    /// Those of `sleep`.
    pub fn sleep<E>(
        &mut self,
        since: Instant,
        mut now: Instant,
        deadline: Instant,
        timed_out: impl Fn(&E) -> bool,
        mut sleep: impl FnMut(&Waker, Instant, Instant) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let Some(nap) = self.nap(now.saturating_duration_since(since)) else {
                self.arm();
                return match self.has_come() {
                    true => Ok(()),
                    false => sleep(self.waker(), now, deadline),
                };
            };
            // Precisely: the other clock may be behind by more than a nap.
            now = Instant::now();
            let until = deadline.min(now + nap);
            match sleep(self.waker(), now, until) {
                // The last look comes after the deadline.
                Err(error) if timed_out(&error) && self.has_come() => return Ok(()),
                Err(error) if timed_out(&error) && until < deadline => now = Instant::now(),
                outcome => return outcome,
            }
        }
    }
}

/// A waker that other threads raise anyway.
impl<W: Deref<Target = Waker> + Debug> Awaited for W {
    fn waker(&self) -> &Waker {
        self
    }

    fn has_come(&self) -> bool {
        self.is_raised()
    }

    fn arm(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Something that has come after a number of looks, and that no waker tells of.
    #[derive(Debug)]
    struct Looked {
        waker: Waker,
        looks: Cell<u32>,
        comes_after: u32,
        /// Until when it is looked for between naps.
        by_timer: Duration,
        armed: bool,
    }

    impl Looked {
        fn after(looks: u32, by_timer: Duration) -> Self {
            Self {
                waker: Waker::new().unwrap(),
                looks: Cell::new(0),
                comes_after: looks,
                by_timer,
                armed: false,
            }
        }

        fn wait(&mut self, limit: Duration) -> Result<(), TransportError> {
            let awaited: &mut dyn Awaited = self;
            awaited.wait(Instant::now() + limit)
        }
    }

    impl Awaited for Looked {
        fn waker(&self) -> &Waker {
            &self.waker
        }

        fn has_come(&self) -> bool {
            self.looks.set(self.looks.get() + 1);
            self.looks.get() > self.comes_after
        }

        fn arm(&mut self) {
            self.armed = true;
        }

        fn nap(&self, waited: Duration) -> Option<Duration> {
            (waited < self.by_timer).then_some(Duration::from_millis(1))
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn what_a_timer_looks_for_needs_no_waker() {
        let mut looked = Looked::after(5, LONG);
        looked.wait(LONG).unwrap();
        assert!(!looked.armed);
        assert_eq!(looked.looks.get(), 6);
    }

    #[test]
    fn a_wait_that_is_too_long_for_a_timer_sleeps_until_the_waker_is_raised() {
        let mut looked = Looked::after(u32::MAX, Duration::from_millis(5));
        looked.waker.raise();
        looked.wait(LONG).unwrap();
        looked.waker.lower();
        let waited = looked.wait(Duration::from_millis(20));
        assert!(matches!(waited, Err(TransportError::TimedOut(_))));
        assert!(looked.armed);
    }

    #[test]
    fn the_last_look_comes_after_the_deadline() {
        // The first look is before the sleep.
        let mut looked = Looked::after(1, LONG);
        looked.wait(Duration::ZERO).unwrap();
        let mut looked = Looked::after(2, LONG);
        let waited = looked.wait(Duration::ZERO);
        assert!(matches!(waited, Err(TransportError::TimedOut(_))));
        assert!(!looked.armed);
    }
}
