//! The time for deadlines that are milliseconds away.
//!
//! Reading the precise clock costs 20 ns where user space may read the processor's counter, and a
//! system call where it may not, as in a PV domain (80 µs in an emulated one). Code that checks at
//! every step of a stream how long nothing has moved reads the time of the last timer tick instead,
//! which the kernel keeps in memory that every process can read.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The time of the last timer tick (1 to 10 ms ago), without a system call.
///
/// Comparable with [`Instant::now`], and never ahead of it, so that a deadline never passes early.
/// Not for measuring.
pub fn now() -> Instant {
    static ZERO: OnceLock<Option<Instant>> = OnceLock::new();
    let zero = *ZERO.get_or_init(zero);
    zero.and_then(since).unwrap_or_else(Instant::now)
}

/// When `CLOCK_MONOTONIC` was 0. It is read after the other clock, so this may be too early but never too
/// late, and [`now`] is never ahead. The latest of some tries: the thread may lose its processor between the two.
fn zero() -> Option<Instant> {
    let tries = (0..4).filter_map(|_| {
        let instant = Instant::now();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
        instant.checked_sub(monotonic.into())
    });
    tries.max()
}

/// The last tick as an `Instant`, by `CLOCK_MONOTONIC_COARSE`; see clock_gettime(2).
fn since(zero: Instant) -> Option<Instant> {
    let tick = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok()?;
    zero.checked_add(tick.into())
}

/// Times in which a loop did not run although it had something to do: on an overloaded machine, or
/// while stopped. Others may have waited for it meanwhile, so such a time does not count as their
/// silence.
#[derive(Debug, Clone, Copy)]
pub struct Rests {
    /// The latest time at which the loop should run again.
    due: Instant,
}

/// Longest normal step of a loop; anything longer is a rest.
const STEP: Duration = Duration::from_millis(100);

impl Rests {
    /// Starts now.
    pub fn new() -> Self {
        Self { due: now() }
    }

    /// Notes that the loop is about to wait, until `until` at the latest.
    pub fn waits_until(&mut self, until: Instant) {
        self.due = self.due.max(until);
    }

    /// Notes that the loop runs again at `now`. Returns how long it has rested, if it has.
    pub fn end_at(&mut self, now: Instant) -> Option<Duration> {
        let due = std::mem::replace(&mut self.due, now);
        // The usual case, and cheaper than a subtraction of times.
        if now <= due {
            return None;
        }
        let rest = now.saturating_duration_since(due);
        (rest > STEP).then_some(rest)
    }
}

impl Default for Rests {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_what_goes_beyond_the_wait_and_a_step() {
        let mut rests = Rests::new();
        let now = Instant::now();
        let (step, second) = (STEP, Duration::from_secs(1));
        rests.end_at(now);
        assert_eq!(rests.end_at(now + step), None);
        rests.waits_until(now + second);
        assert_eq!(rests.end_at(now + second / 2), None);
        rests.waits_until(now + second);
        assert_eq!(rests.end_at(now + 3 * second), Some(2 * second));
        assert_eq!(rests.end_at(now + 3 * second), None);
    }

    #[test]
    fn it_goes_on_and_is_never_ahead() {
        let (first, deadline) = (now(), Instant::now() + Duration::from_secs(60));
        loop {
            let tick = now();
            let precise = Instant::now();
            assert!(tick <= precise, "{:?} ahead", tick - precise);
            assert!(tick >= first);
            if tick > first {
                return;
            }
            assert!(precise < deadline, "the clock stands still");
        }
    }
}
