#![forbid(unsafe_code)]
//! A clock that is cheap on every machine, for waits that sleep.
//!
//! Where the processor's counter has to be asked of the hypervisor, a reading of the clock can cost
//! as much as a wake-up. There it is the time of the last timer tick ([`vgpu_transport::clock`]).

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getres};
use vgpu_transport::clock;

use crate::waiting::machine_costs::Pace;

/// The present, as [`Instant::now`] reports it where that is cheap; elsewhere up to [`behind`] in
/// the past, never in the future.
pub(crate) fn now() -> Instant {
    match Pace::here().slow_clock {
        true => clock::now(),
        false => Instant::now(),
    }
}

/// Two timer ticks where [`now`] is the time of the last one, else zero.
pub(crate) fn behind() -> Duration {
    match Pace::here().slow_clock {
        true => tick() * 2,
        false => Duration::ZERO,
    }
}

fn tick() -> Duration {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_milliseconds_apart() {
        assert!(!tick().is_zero());
        assert!(tick() <= Duration::from_millis(10), "{:?}", tick());
    }
}
