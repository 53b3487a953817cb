#![forbid(unsafe_code)]
//! How long it may take until the other processors see a store: what lets a publication go without
//! a fence. The protocol that rests on it is in [`notify`](crate::notify).
//!
//! A store that a processor has completed waits in its store buffer until the cache line is its own.
//! That takes nanoseconds, at worst a few microseconds where many processors fight for the line, and
//! nothing that happens to the thread holds it back: a processor that is interrupted, or leaves the
//! guest, has completed each instruction up to some point and none after it, and what it has
//! completed becomes visible whatever it does next. So after a store of one's own and a wait of
//! [`SETTLED`], whoever stores an index and then loads the word either loads the new word, or had
//! completed its own store early enough for it to be visible now.
//!
//! This is no rule of the language's memory model, which gives stores no time, but of every
//! processor that Xen runs on; Morrison and Afek describe it as temporally bounded TSO (ASPLOS 2015).
//! Where it fails a wake-up is late until the next message or the deadline; no byte is lost or torn.

use std::time::{Duration, Instant};

/// Ten times more than a store takes at worst.
const SETTLED: Duration = Duration::from_micros(100);

/// A publication without a fence: a store of an index, and the load of the wait word behind it. Marks
/// what [`settle`] is to be ordered with, for the model of it (`tests/loom/settle.rs`).
#[inline(always)]
pub(crate) fn unfenced<R>(publication: impl FnOnce() -> R) -> R {
    publication()
}

/// Returns once every publication without a fence either sees what this thread has stored before, or
/// can be seen by it.
#[cold]
pub(crate) fn settle() {
    let start = Instant::now();
    while start.elapsed() < SETTLED {
        std::hint::spin_loop();
    }
}
