#![forbid(unsafe_code)]
//! Computations that the reading and the writing half share.

use std::time::{Duration, Instant};

/// Bytes copied between two publications of an index: a large copy is handed over in steps, so
/// that the other side works on the first part, still in the cache, while we copy the next.
pub(crate) fn copy_step(ring_bytes: u32) -> u32 {
    (ring_bytes / 4).clamp(4 << 10, 64 << 10)
}

/// "No timeout" is ten years: far beyond any wait, and safely within what a clock can express.
pub(crate) fn deadline_after(timeout: Option<Duration>) -> Instant {
    const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    Instant::now() + timeout.unwrap_or(FOREVER).min(FOREVER)
}
