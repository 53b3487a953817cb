#![forbid(unsafe_code)]
//! The costs of waiting on this machine: a look at the ring, a reading of the clock, a wake-up.
//!
//! Measured once per process. On hardware a look takes 10 to 50 ns, reading the clock about as
//! long, and waking a sleeper 5 to 50 µs. In an emulator a wake-up takes 300 µs and more, and a PV
//! guest that must ask Xen for the time waits 80 µs for it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::ppoll;
use nix::sys::time::TimeSpec;

/// The default for the longest time that a wait polls the ring, on hardware: more than waking a
/// peer takes there. Where system calls take longer than 5 µs it is 200 of them, which equals a few
/// wake-ups: a message may have to wake several domains one after the other.
pub const DEFAULT_SPIN: Duration = Duration::from_millis(1);
const DEFAULT_SPIN_CALLS: u32 = 200;

/// Pauses of the processor between two thorough looks.
pub(crate) const RESTS: u32 = 64;

/// Reading the clock, during which the ring is not watched, may take one part in this many of the
/// time spent polling.
const CLOCK_SHARE: u32 = 8;

/// A clock slower than this is not read where it need not be.
const SLOW_CLOCK: Duration = Duration::from_micros(2);

/// The costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Whether reading the clock takes long: it is a system call, or the hypervisor has to answer.
    pub(crate) slow_clock: bool,
    /// [`RESTS`] pauses.
    turn: Duration,
    /// The least number of turns between two readings of the clock.
    turns: u32,
    /// [`DEFAULT_SPIN`] for this machine.
    pub(crate) default_spin: Duration,
}

impl Pace {
    /// The costs of this machine.
    pub(crate) fn here() -> Self {
        static PACE: OnceLock<Pace> = OnceLock::new();
        *PACE.get_or_init(|| {
            let clock = least(|| {});
            let turn = least(|| (0..RESTS).for_each(|_| std::hint::spin_loop()));
            let call = least(|| {
                // Returns at once.
                let _ = ppoll(&mut [], Some(TimeSpec::from_duration(Duration::ZERO)), None);
            });
            Self::of(
                turn.saturating_sub(clock),
                clock,
                call.saturating_sub(clock),
            )
        })
    }

    fn of(turn: Duration, clock: Duration, call: Duration) -> Self {
        let turn = turn.max(Duration::from_nanos(RESTS.into()));
        let turns = (clock * CLOCK_SHARE).as_nanos().div_ceil(turn.as_nanos());
        Self {
            slow_clock: clock > SLOW_CLOCK,
            turn,
            turns: u32::try_from(turns).unwrap_or(u32::MAX).max(1),
            default_spin: DEFAULT_SPIN.max(call * DEFAULT_SPIN_CALLS),
        }
    }

    /// Turns between two readings of the clock in a window of this length.
    pub(crate) fn turns(&self, window: Duration) -> u32 {
        let fit = window.as_nanos().div_ceil(self.turn.as_nanos());
        u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, self.turns)
    }

    /// The time that this many pauses take.
    pub(crate) fn time_of(&self, pauses: u32) -> Duration {
        self.turn.saturating_mul(pauses) / RESTS
    }

    /// The start of `turns` turns that end at `now`.
    pub(crate) fn before(&self, now: Instant, turns: u32) -> Instant {
        now.checked_sub(self.turn.saturating_mul(turns))
            .unwrap_or(now)
    }
}

/// The shortest time of a few runs, including the reading of the clock: any of them may be
/// interrupted.
fn least(work: impl Fn()) -> Duration {
    let times = (0..4).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed()
    });
    times.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    // The clock of an emulated PV guest.
    #[test]
    fn a_slow_clock_is_read_rarely() {
        let fast = Pace::of(us(2), Duration::from_nanos(25), us(1));
        assert_eq!((fast.turns(us(32)), fast.turns(us(1000))), (1, 1));
        let slow = Pace::of(us(15), us(80), us(18));
        assert_eq!((slow.turns(us(32)), slow.turns(us(1000))), (3, 43));
        let now = Instant::now() + us(1000);
        assert_eq!(now - slow.before(now, 43), 43 * us(15));
    }

    #[test]
    fn slow_system_calls_make_the_default_window_longer() {
        let of = |call| Pace::of(us(2), us(1), call).default_spin;
        assert_eq!(of(us(0)), DEFAULT_SPIN);
        assert_eq!(of(us(5)), DEFAULT_SPIN);
        assert_eq!(of(us(18)), us(3600));
    }

    #[test]
    fn any_measurement_gives_a_pace() {
        let zero = Duration::ZERO;
        assert_eq!(Pace::of(zero, zero, zero).turns(Duration::MAX), 1);
        let odd = Pace::of(zero, Duration::from_secs(9), zero);
        assert_eq!(odd.turns(us(1)), 16);
        assert!(Pace::here().default_spin >= DEFAULT_SPIN);
    }
}
