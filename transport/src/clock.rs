//! The time for deadlines that are milliseconds away.
//!
//! Reading the precise clock costs 20 ns where user space may read the processor's counter, and a
//! system call where it may not, as in a PV domain (80 µs in an emulated one). Who counts how long
//! nothing has moved, at every step of a stream, asks for the time of the last timer tick in place
//! of it, which the kernel keeps in memory that every process can read.

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

#[cfg(test)]
mod tests {
    use super::*;

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
