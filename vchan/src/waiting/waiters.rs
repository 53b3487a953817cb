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
    /// A thread polls the backend's descriptor.
    leader: bool,
    /// Counts events, when one is heard and when it is acknowledged. A waiter notes it before its
    /// last look at the ring: if it has changed since, another thread may have taken an event that
    /// the waiter needed.
    generation: Generation,
    /// A thread was woken by the descriptor and has not acknowledged the event yet: it had better
    /// use what came with it first.
    woken: bool,
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

    /// Acknowledges the event that ended a [`sleep`](Self::sleep), if that has not been done.
    /// Returns whether it was the doorbell. Call it before the last look at the ring.
    pub(crate) fn acknowledge_wake_up(&self, backend: &dyn Backend) -> Result<bool> {
        let mut state = self.lock();
        // Who sleeps has acknowledged it before.
        match state.woken && !state.leader {
            true => state.acknowledge(backend),
            false => Ok(false),
        }
    }

    /// Acknowledges the backend for a call that does not wait. Returns whether the doorbell had
    /// rung. While another thread sleeps on the descriptor, that one acknowledges.
    pub(crate) fn acknowledge(&self, backend: &dyn Backend) -> Result<bool> {
        let mut state = self.lock();
        match state.leader {
            true => Ok(false),
            false => state.acknowledge(backend),
        }
    }

    /// Sleeps until the doorbell rings, the peer dies, the channel is closed, or `deadline`; as the
    /// only sleeper also until `waker` is raised. May return early for no reason. What woke it is to
    /// be [acknowledged](Self::acknowledge_wake_up). `now` is the caller's latest reading of the clock.
    pub(crate) fn sleep(
        &self,
        backend: &dyn Backend,
        waker: Option<&Waker>,
        seen: Generation,
        mut now: Instant,
        deadline: Instant,
        waiting: &'static str,
    ) -> Result<()> {
        let mut state = self.lock();
        while state.leader {
            if state.generation != seen || state.cancelled {
                return Ok(());
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
            return Ok(());
        }
        state.leader = true;
        drop(state);

        let outcome = poll_backend(backend, self.cancel.get(), waker, now, deadline);
        let mut state = self.lock();
        state.leader = false;
        let outcome = match outcome {
            Ok(true) => {
                state.generation.next();
                state.woken = true;
                Ok(())
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

impl State {
    fn acknowledge(&mut self, backend: &dyn Backend) -> Result<bool> {
        self.woken = false;
        self.generation.next();
        backend
            .acknowledge()
            .map_err(|source| Error::os("cannot acknowledge the doorbell", source))
    }
}
