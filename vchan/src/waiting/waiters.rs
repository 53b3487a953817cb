//! Sleeping until the peer rings.
//!
//! [`Waiters`] lets the two halves of a split channel sleep on the one descriptor of the backend:
//! the first to come (the *leader*) polls it, the other (the *follower*) sleeps on a condition
//! variable and is woken by the leader, who may have taken an event that was meant for both.

use std::time::Instant;

use vgpu_transport::Waker;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Generation, Mutex, MutexGuard, OnceLock, PoisonError};
use crate::waiting::backend_poll::{Cancel, poll_backend};

/// The threads of this process that wait on one channel.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable once the channel is closed by this side; exists once the channel is split.
    cancel: OnceLock<Cancel>,
}

#[derive(Debug, Default)]
struct State {
    /// A thread polls the backend's descriptor and will acknowledge its events.
    leader: bool,
    /// Counts acknowledged events. A waiter notes it before its last look at the ring: if it has
    /// changed since, another thread may have taken an event that the waiter needed.
    generation: Generation,
    /// Threads on the condition variable; waking nobody would still cost a system call.
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

    /// Wakes every waiter, for good.
    pub(crate) fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        self.changed.notify_all();
        if let Some(cancel) = self.cancel.get() {
            cancel.signal();
        }
    }

    /// The value to pass to [`sleep`](Self::sleep). Read it before the last look at the ring.
    pub(crate) fn generation(&self) -> Generation {
        self.lock().generation
    }

    /// Acknowledges the backend for a call that does not wait. Returns whether the doorbell had
    /// rung. While another thread sleeps on the descriptor, that one acknowledges.
    pub(crate) fn acknowledge(&self, backend: &dyn Backend) -> Result<bool> {
        let mut state = self.lock();
        if state.leader {
            return Ok(false);
        }
        state.generation.next();
        acknowledge(backend)
    }

    /// Sleeps until the doorbell rings, the peer dies, the channel is closed, or `deadline`; as the
    /// only sleeper also until `waker` is raised. Returns whether this thread heard the doorbell.
    /// May return early for no reason. `now` is the caller's latest reading of the clock.
    pub(crate) fn sleep(
        &self,
        backend: &dyn Backend,
        waker: Option<&Waker>,
        seen: Generation,
        mut now: Instant,
        deadline: Instant,
        waiting: &'static str,
    ) -> Result<bool> {
        let mut state = self.lock();
        while state.leader {
            if state.generation != seen || state.cancelled {
                return Ok(false);
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return Err(Error::TimedOut(waiting));
            }
            state.followers += 1;
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
            now = Instant::now();
        }
        if state.generation != seen || state.cancelled {
            return Ok(false);
        }
        state.leader = true;
        drop(state);

        let outcome = poll_backend(backend, self.cancel.get(), waker, now, deadline);
        let mut state = self.lock();
        state.leader = false;
        let outcome = match outcome {
            Ok(true) => {
                state.generation.next();
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
