//! Waiting for the peer: look again and again for a bounded while, then sleep.
//!
//! [`Spin`] decides how long looking is worthwhile. [`Waiters`] lets the two halves of a split
//! channel sleep on the one descriptor of the backend: whoever comes first (the *leader*) polls
//! it, the other (the *follower*) sleeps on a condition variable and is woken by the leader, who
//! may have taken an event that was meant for both.

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::poll::{Cancel, poll_backend};
use crate::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// How long a side looks at the ring before it sleeps, unless told otherwise.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(100);

/// Misses in a row after which spinning stops.
const MISSES_TO_STOP: u32 = 2;
/// Short sleeps after which spinning is tried again.
const SHORT_SLEEPS_TO_TRY: u32 = 8;
/// A sleep is short if spinning would cost no more than this part of it.
const SHORT_SLEEP_FACTOR: u32 = 20;

/// Decides whether to spin. Never spins on an idle channel: it stops after two misses and starts
/// again only after a number of short sleeps.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    on: bool,
    misses: u32,
    short_sleeps: u32,
}

impl Spin {
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            max,
            on: !max.is_zero(),
            misses: 0,
            short_sleeps: 0,
        }
    }

    /// Calls `ready` until it says yes or the time for looking is over.
    pub(crate) fn run(&mut self, mut ready: impl FnMut() -> Result<bool>) -> Result<bool> {
        if ready()? {
            return Ok(true);
        }
        if !self.on {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            // The clock is read seldom: on some guests it is a system call.
            for _ in 0..32 {
                std::hint::spin_loop();
                if ready()? {
                    self.misses = 0;
                    return Ok(true);
                }
            }
            if start.elapsed() >= self.max {
                self.misses += 1;
                if self.misses >= MISSES_TO_STOP {
                    self.on = false;
                    self.short_sleeps = 0;
                }
                return Ok(false);
            }
        }
    }

    /// Learns from a sleep.
    pub(crate) fn slept(&mut self, duration: Duration) {
        if self.on || self.max.is_zero() {
            return;
        }
        if duration < self.max * SHORT_SLEEP_FACTOR {
            self.short_sleeps += 1;
            if self.short_sleeps >= SHORT_SLEEPS_TO_TRY {
                self.on = true;
                // One more miss turns it off again.
                self.misses = MISSES_TO_STOP - 1;
            }
        } else {
            self.short_sleeps = 0;
        }
    }
}

/// Everyone of this process who waits on one channel.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable once the channel is closed by this side; exists once the channel is split.
    cancel: OnceLock<Cancel>,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody polls the backend's descriptor and will acknowledge what it says.
    leader: bool,
    /// Counts acknowledged events. A waiter notes it before its last look at the ring: if it has
    /// changed since, an event that it needed may have been taken by another thread.
    generation: u64,
    /// Threads on the condition variable; waking nobody would cost a system call all the same.
    followers: u32,
    cancelled: bool,
}

impl Waiters {
    /// Prepares for two threads: the one that closes must be able to wake the other.
    pub(crate) fn enable_cancel(&self) -> Result<()> {
        // A second split of the same channel is not possible; an existing descriptor stays.
        let _ = self.cancel.set(Cancel::new()?);
        Ok(())
    }

    /// Wakes every waiter for good.
    pub(crate) fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        self.changed.notify_all();
        if let Some(cancel) = self.cancel.get() {
            cancel.signal();
        }
    }

    /// What to pass to [`sleep`](Self::sleep); to be read before the last look at the ring.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Acknowledges the backend for a call that does not wait. Returns whether the doorbell had
    /// rung. While another thread sleeps on the descriptor, that one acknowledges.
    pub(crate) fn acknowledge(&self, backend: &dyn Backend) -> Result<bool> {
        let mut state = self.lock();
        if state.leader {
            return Ok(false);
        }
        state.generation += 1;
        acknowledge(backend)
    }

    /// Sleeps until the doorbell rings, the peer dies, the channel is closed, or `deadline`.
    /// Returns whether this thread heard the doorbell. May return early for no reason.
    pub(crate) fn sleep(
        &self,
        backend: &dyn Backend,
        seen: u64,
        deadline: Instant,
        waiting: &'static str,
    ) -> Result<bool> {
        let mut state = self.lock();
        while state.leader {
            if state.generation != seen || state.cancelled {
                return Ok(false);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut(waiting));
            }
            state.followers += 1;
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
        }
        if state.generation != seen || state.cancelled {
            return Ok(false);
        }
        state.leader = true;
        drop(state);

        let outcome = poll_backend(backend, self.cancel.get(), deadline);
        let mut state = self.lock();
        state.leader = false;
        let outcome = match outcome {
            Ok(true) => {
                state.generation += 1;
                acknowledge(backend)
            }
            Ok(false) => Err(Error::TimedOut(waiting)),
            Err(error) => Err(error),
        };
        // Also after a time-out: a follower must take over.
        if state.followers > 0 {
            self.changed.notify_all();
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a thread panicked while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn acknowledge(backend: &dyn Backend) -> Result<bool> {
    backend
        .acknowledge()
        .map_err(|source| Error::os("cannot acknowledge the doorbell", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_when_idle_and_comes_back_with_traffic() {
        let mut spin = Spin::new(Duration::from_micros(1));
        for _ in 0..MISSES_TO_STOP {
            assert!(spin.on);
            assert!(!spin.run(|| Ok(false)).unwrap());
        }
        assert!(!spin.on);
        for _ in 0..100 {
            spin.slept(Duration::from_secs(1));
        }
        assert!(!spin.on, "long sleeps must not start it");
        for _ in 0..SHORT_SLEEPS_TO_TRY {
            spin.slept(Duration::from_micros(2));
        }
        assert!(spin.on);
        let mut looks = 0;
        assert!(
            spin.run(|| {
                looks += 1;
                Ok(looks == 3)
            })
            .unwrap()
        );
        assert_eq!(spin.misses, 0, "a hit forgives the misses");
    }

    #[test]
    fn no_spin_means_one_look() {
        let mut spin = Spin::new(Duration::ZERO);
        let mut looks = 0;
        assert!(
            !spin
                .run(|| {
                    looks += 1;
                    Ok(false)
                })
                .unwrap()
        );
        assert_eq!(looks, 1);
    }
}
