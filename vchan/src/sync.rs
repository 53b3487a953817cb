#![forbid(unsafe_code)]
//! The atomics, locks and fences of the channel's own files.
//!
//! Here they are the standard library's. `tests/loom/main.rs` compiles the same files (`channel/`,
//! `region/`, most of `wire/` and `waiting/`) with a module of this name that holds loom's, so that
//! loom explores the code itself. Anything those files newly use of `shm`, `backend` or `poll` must
//! be added to its model in `tests/loom/`. Use these paths in those files, not `std::sync`.

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// A count of events. A change since it was last read means that events were missed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    pub(crate) fn next(&mut self) {
        self.0 = self.0.wrapping_add(1);
    }
}

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}
