//! Two bounded queues of bytes: a transport without an operating system below it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use vgpu_transport::{Interest, Transport, TransportError};

#[derive(Default)]
struct State {
    queues: [VecDeque<u8>; 2],
    /// Which ends are closed.
    closed: [bool; 2],
}

/// One end; end 0 writes queue 0 and reads queue 1.
pub(crate) struct End {
    shared: Arc<(Mutex<State>, Condvar)>,
    index: usize,
    capacity: usize,
    portion: usize,
}

/// Two ends; each queue holds `capacity` bytes and each call moves at most `portion`.
pub(crate) fn pair(capacity: usize, portion: usize) -> (End, End) {
    let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
    let end = |index| End {
        shared: Arc::clone(&shared),
        index,
        capacity,
        portion,
    };
    (end(0), end(1))
}

impl End {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (lock, changed) = &*self.shared;
        let result = f(&mut lock.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
        result
    }
}

impl Transport for End {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let (other, portion) = (1 - self.index, self.portion);
        assert!(
            !buf.is_empty(),
            "a read into nothing cannot tell the end of the stream"
        );
        self.with(|state| {
            let n = buf.len().min(state.queues[other].len()).min(portion);
            for (slot, byte) in buf.iter_mut().zip(state.queues[other].drain(..n)) {
                *slot = byte;
            }
            Ok(if n == 0 && !state.closed[other] {
                None
            } else {
                Some(n)
            })
        })
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        let (me, capacity, portion) = (self.index, self.capacity, self.portion);
        self.with(|state| {
            if state.closed[0] || state.closed[1] {
                return Err(TransportError::Closed);
            }
            let n = buf
                .len()
                .min(capacity - state.queues[me].len())
                .min(portion);
            state.queues[me].extend(&buf[..n]);
            Ok(n)
        })
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        let (lock, changed) = &*self.shared;
        let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let readable = !state.queues[1 - self.index].is_empty() || state.closed[1 - self.index];
            let writable =
                state.queues[self.index].len() < self.capacity || state.closed[1 - self.index];
            let ready = match interest {
                Interest::Read => readable,
                Interest::Write => writable,
                Interest::ReadOrWrite => readable || writable,
            };
            if ready {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TransportError::TimedOut("move bytes through a pipe"));
            }
            (state, _) = changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn flush(&mut self, _deadline: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn close(&mut self, _deadline: Instant) -> Result<(), TransportError> {
        let me = self.index;
        self.with(|state| state.closed[me] = true);
        Ok(())
    }

    fn describe(&self) -> String {
        "pipe".to_owned()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let me = self.index;
        self.with(|state| state.closed[me] = true);
    }
}
