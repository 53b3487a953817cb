#![forbid(unsafe_code)]
//! Limits how soon a peer may ring again. Pure: the caller supplies the time.

use std::time::{Duration, Instant};

/// Rings in a row without any progress before the next is delayed.
const FREE: u32 = 64;
/// The first and the longest delay: doubled each time.
const DELAY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));
/// A silence this long resets the count; longer than the longest delay, which the peer cannot
/// avoid.
const FORGIVING_SILENCE: Duration = Duration::from_millis(100);

/// Counts the rings of one peer that led to nothing.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    idle: u32,
    last: Option<Instant>,
}

impl Limiter {
    /// Notes a ring at `now`. `moved`: an index of the channel has moved since the previous ring.
    /// Returns how long the peer must be kept from ringing again.
    pub(crate) fn ring(&mut self, moved: bool, now: Instant) -> Duration {
        let silent = self
            .last
            .replace(now)
            .is_some_and(|last| now.saturating_duration_since(last) >= FORGIVING_SILENCE);
        if moved || silent {
            self.idle = 0;
        }
        self.idle = self.idle.saturating_add(1);
        match self.idle.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(over) => (DELAY.0 * (1 << over.min(16))).min(DELAY.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_storm_is_slowed_down_step_by_step_and_forgiven_when_something_moves() {
        let mut limiter = Limiter::default();
        let mut now = Instant::now();
        for _ in 0..FREE {
            assert_eq!(limiter.ring(false, now), Duration::ZERO);
        }
        let mut delays = Vec::new();
        for _ in 0..8 {
            let delay = limiter.ring(false, now);
            delays.push(delay);
            // At the earliest moment allowed.
            now += delay;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 32, 32].map(after));
        assert_eq!(limiter.ring(true, now), Duration::ZERO);
        assert_eq!(limiter.ring(false, now), Duration::ZERO);
    }

    #[test]
    fn an_endless_storm_stays_at_the_longest_delay() {
        let mut limiter = Limiter {
            idle: u32::MAX - 2,
            last: None,
        };
        for _ in 0..5 {
            assert_eq!(limiter.ring(false, Instant::now()), DELAY.1);
        }
    }

    #[test]
    fn needless_rings_now_and_then_are_never_put_off() {
        let mut limiter = Limiter::default();
        let mut now = Instant::now();
        for _ in 0..10 * FREE {
            assert_eq!(limiter.ring(false, now), Duration::ZERO);
            now += FORGIVING_SILENCE;
        }
    }

    #[test]
    fn a_trickle_that_moves_an_index_with_each_ring_is_not_put_off() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        for _ in 0..10 * FREE {
            assert_eq!(limiter.ring(true, now), Duration::ZERO);
        }
    }
}
