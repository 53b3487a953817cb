#![forbid(unsafe_code)]
//! A clock that is cheap on every machine, for waits that sleep.
//!
//! Where the processor's counter has to be asked of the hypervisor, a reading of the clock can cost
//! as much as a wake-up. The kernel's coarse clock (`CLOCK_MONOTONIC_COARSE`, `clock_gettime(2)`) is
//! read from memory: it is the time of the last timer tick.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::waiting::machine_costs::Pace;

/// An [`Instant`] and the coarse time that belongs to it.
struct Base {
    instant: Instant,
    coarse: Duration,
    tick: Duration,
}

/// The present, as [`Instant::now`] reports it where that is cheap; elsewhere up to [`behind`] in
/// the past, never in the future.
pub(crate) fn now() -> Instant {
    match Pace::here().slow_clock {
        true => coarse().unwrap_or_else(Instant::now),
        false => Instant::now(),
    }
}

/// Two timer ticks where [`now`] is the coarse time, else zero.
pub(crate) fn behind() -> Duration {
    match Pace::here().slow_clock {
        true => base().map_or(Duration::ZERO, |base| base.tick * 2),
        false => Duration::ZERO,
    }
}

fn coarse() -> Option<Instant> {
    let base = base()?;
    Some(base.instant + read()?.saturating_sub(base.coarse))
}

fn base() -> Option<&'static Base> {
    static BASE: OnceLock<Option<Base>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).ok()?);
        // The coarse time is up to a tick old when the other clock is read.
        let (coarse, now) = (read()?, Instant::now());
        Some(Base {
            instant: now.checked_sub(tick)?,
            coarse,
            tick,
        })
    });
    base.as_ref()
}

fn read() -> Option<Duration> {
    Some(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_ahead_and_little_behind() {
        let tick: Duration = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
            .unwrap()
            .into();
        assert!(tick <= Duration::from_millis(10), "{tick:?}");
        let mut last = coarse().unwrap();
        for _ in 0..1000 {
            let before = Instant::now();
            let coarse = coarse().unwrap();
            assert!(coarse <= Instant::now());
            // The kernel may have missed ticks while the machine was stopped, so no tight bound.
            assert!(before.saturating_duration_since(coarse) < Duration::from_secs(10));
            assert!(coarse >= last);
            last = coarse;
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}
