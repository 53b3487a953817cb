//! The time for deadlines that are milliseconds away.
//!
//! Reading the precise clock costs 20 ns where user space may read the processor's counter, and a
//! system call where it may not, as in a PV domain (80 µs in an emulated one). Code that checks at
//! every step of a stream how long nothing has moved reads the time of the last timer tick instead,
//! which the kernel keeps in memory that every process can read.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Both clocks at one moment, to tell the one in terms of the other.
#[derive(Debug, Clone, Copy)]
struct Base {
    instant: Instant,
    /// `CLOCK_MONOTONIC`, read after `instant`: what [`now`] returns is never ahead of it.
    monotonic: Duration,
}

impl Base {
    fn take() -> Option<Self> {
        let instant = Instant::now();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?.into();
        Some(Self { instant, monotonic })
    }
}

/// The time of the last timer tick (1 to 10 ms ago), without a system call.
///
/// Comparable with [`Instant::now`], and never ahead of it, so that a deadline never passes early.
/// Not for measuring.
pub fn now() -> Instant {
    static BASE: OnceLock<Option<Base>> = OnceLock::new();
    let base = *BASE.get_or_init(Base::take);
    base.and_then(since).unwrap_or_else(Instant::now)
}

/// The last tick, of which `CLOCK_MONOTONIC_COARSE` tells; see clock_gettime(2).
fn since(base: Base) -> Option<Instant> {
    let tick: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok()?.into();
    match tick.checked_sub(base.monotonic) {
        Some(later) => base.instant.checked_add(later),
        None => base.instant.checked_sub(base.monotonic - tick),
    }
}

/// Times in which a loop did not run although it had something to do: on a machine with too much to do, or
/// stopped. Others may have waited for it meanwhile, so that such a time does not count as their silence.
#[derive(Debug, Clone, Copy)]
pub struct Rests {
    /// When the loop is to be here at the latest.
    due: Instant,
}

/// What a step of a loop may take; longer is a rest.
const STEP: Duration = Duration::from_millis(100);

impl Rests {
    /// For a loop that begins now.
    pub fn new() -> Self {
        Self { due: now() }
    }

    /// The loop is about to wait, at the latest until then.
    pub fn waits_until(&mut self, until: Instant) {
        self.due = self.due.max(until);
    }

    /// The loop is here, at the time `now`. Returns how long it has rested.
    pub fn end_at(&mut self, now: Instant) -> Option<Duration> {
        let rest = now.saturating_duration_since(self.due);
        self.due = now;
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
