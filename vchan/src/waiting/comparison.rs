#![forbid(unsafe_code)]
//! Whether a half that polls before it sleeps moves its bytes faster than one that sleeps at once:
//! measured, without a clock of its own.
//!
//! Polling does harm that no single wait shows. Where a processor is shared with other work, by
//! this system or by a host below it, a thread that polls uses up its turn; it then loses the
//! processor in the middle of its work, and is no longer one that runs as soon as it is woken. How
//! much that costs, and whether polling saves more, depends on schedulers that cannot be asked. So
//! both ways are tried:
//!
//! - Time is divided into *slices*, longer than a scheduler's turns. In each, the half waits one way.
//! - Now and then, one slice is a *trial* of the way that is not in use. A trial that does clearly
//!   worse ends early. Where polls find what they wait for, there is nothing to gain, and no trial.
//! - The ways are compared by the bytes moved in their latest slices. Polling is given up only for
//!   a clear gain, and taken up again without one.
//! - A trial that changes nothing makes the time until the next twice as long.
//! - After a long wait everything is forgotten: a half that was idle polls first, as a new one.

use std::time::Duration;

use crate::waiting::spin_window::nanos;

/// A slice is this many times the longest look.
const SLICE: i64 = 16;
/// A trial may end after one slice divided by this.
const EARLY: i64 = 8;
/// A trial ends early if it moves fewer bytes in a second than the other way divided by this.
const CLEARLY_WORSE: f64 = 2.0;
/// A slice of polling leads to a trial if at least one part in this many of it went into polls that
/// found nothing.
const IN_VAIN: i64 = 16;
/// Waits that a slice has at least.
const WAITS: u32 = 8;
/// Sleeping at once must be this many times as fast as polling to be preferred.
const CLEARLY_BETTER: f64 = 1.25;
/// Slices from one trial to the next: at first, and at most.
const APART: (u32, u32) = (1, 64);
/// A wait this many slices long makes the half a new one.
const IDLE: i64 = 16;

/// A way to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Poll,
    Sleep,
}

/// What one way has done lately. Older slices count less: the latest has half of the weight.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    bytes: f64,
    nanos: f64,
}

impl Record {
    fn add(&mut self, bytes: f64, nanos: f64) {
        self.bytes = self.bytes / 2.0 + bytes;
        self.nanos = self.nanos / 2.0 + nanos;
    }

    /// Bytes per nanosecond; zero if there is no record.
    fn rate(&self) -> f64 {
        match self.nanos > 0.0 {
            true => self.bytes / self.nanos,
            false => 0.0,
        }
    }
}

/// The comparison of one waiting half.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// Nanoseconds.
    slice: i64,
    in_use: Way,
    trial: bool,
    polling: Record,
    sleeping: Record,
    /// Slices between trials.
    apart: u32,
    /// Slices until the next trial.
    left: u32,
    current: Option<Slice>,
}

/// The slice under way.
#[derive(Debug, Default)]
struct Slice {
    /// Bytes that the half had moved at the beginning.
    bytes: u64,
    /// Nanoseconds so far.
    nanos: i64,
    /// Those of polls that found nothing.
    in_vain: i64,
    waits: u32,
}

impl Slice {
    fn begin(bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }
}

/// What happened between two calls of [`Comparison::passed`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    /// Nanoseconds.
    pub(crate) nanos: i64,
    /// Nanoseconds of polls that found nothing.
    pub(crate) in_vain: i64,
    pub(crate) waits: u32,
}

impl Comparison {
    /// For looks of usually `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            slice: nanos(longest).saturating_mul(SLICE).max(1),
            in_use: Way::Poll,
            trial: false,
            polling: Record::default(),
            sleeping: Record::default(),
            apart: APART.0,
            left: APART.0,
            current: None,
        }
    }

    /// Nanoseconds after which, at the latest, [`passed`](Self::passed) should be called while the
    /// half is at work.
    pub(crate) fn patience(&self) -> i64 {
        self.slice / EARLY
    }

    /// Whether the half may poll now.
    #[inline]
    pub(crate) fn polls(&self) -> bool {
        (self.in_use == Way::Poll) != self.trial
    }

    /// Takes note of what happened since the last call; `bytes` have been moved so far.
    pub(crate) fn passed(&mut self, passed: Passed, bytes: u64) {
        if passed.nanos >= self.slice.saturating_mul(IDLE) {
            *self = Self {
                slice: self.slice,
                ..Self::new(Duration::ZERO)
            };
        }
        let usual = match self.in_use {
            Way::Poll => self.polling.rate(),
            Way::Sleep => self.sleeping.rate(),
        };
        let Some(current) = &mut self.current else {
            self.current = Some(Slice::begin(bytes));
            return;
        };
        current.nanos = current.nanos.saturating_add(passed.nanos);
        current.in_vain = current.in_vain.saturating_add(passed.in_vain);
        current.waits = current.waits.saturating_add(passed.waits);
        if current.waits < WAITS || current.nanos < self.slice / EARLY {
            return;
        }
        let moved = bytes.wrapping_sub(current.bytes) as f64;
        let nanos = current.nanos as f64;
        if current.nanos < self.slice {
            let clearly_worse = moved / nanos * CLEARLY_WORSE < usual;
            if !self.trial || !clearly_worse {
                return;
            }
        }
        let in_vain = current.in_vain >= current.nanos / IN_VAIN;
        self.current = Some(Slice::begin(bytes));
        match self.polls() {
            true => self.polling.add(moved, nanos),
            false => self.sleeping.add(moved, nanos),
        }
        self.next(in_vain);
    }

    /// Chooses how to wait in the next slice. Polls were `in_vain` for a part of this one.
    fn next(&mut self, in_vain: bool) {
        if !std::mem::take(&mut self.trial) {
            if self.in_use == Way::Sleep || in_vain {
                self.left = self.left.saturating_sub(1);
                self.trial = self.left == 0;
            }
            return;
        }
        let better = match self.polling.rate() * CLEARLY_BETTER < self.sleeping.rate() {
            true => Way::Sleep,
            false if self.polling.rate() < self.sleeping.rate() => self.in_use,
            false => Way::Poll,
        };
        self.apart = match better == self.in_use {
            true => (self.apart * 2).min(APART.1),
            false => APART.0,
        };
        self.in_use = better;
        self.left = self.apart;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(1);

    /// A half at work: bytes so far, and nanoseconds spent in each way.
    struct Half {
        comparison: Comparison,
        bytes: u64,
        polling: i64,
        sleeping: i64,
        /// Whether polls find nothing.
        in_vain: bool,
    }

    impl Half {
        fn new() -> Self {
            let mut comparison = Comparison::new(LONGEST);
            comparison.passed(Passed::default(), 0);
            Self {
                comparison,
                bytes: 0,
                polling: 0,
                sleeping: 0,
                in_vain: true,
            }
        }

        /// Works for `slices` with these bytes per microsecond, if it polls and if it sleeps.
        fn work(&mut self, slices: u32, mut rates: impl FnMut(bool) -> u64) {
            (self.polling, self.sleeping) = (0, 0);
            let step = self.comparison.slice / 32;
            for _ in 0..32 * slices {
                let polls = self.comparison.polls();
                match polls {
                    true => self.polling += step,
                    false => self.sleeping += step,
                }
                self.bytes += rates(polls) * step.unsigned_abs() / 1000;
                let passed = Passed {
                    nanos: step,
                    in_vain: if polls && self.in_vain { step / 4 } else { 0 },
                    waits: 4,
                };
                self.comparison.passed(passed, self.bytes);
            }
        }

        /// The part of the last work's time in which it polled.
        fn polled(&self) -> f64 {
            self.polling as f64 / (self.polling + self.sleeping) as f64
        }
    }

    fn either(polling: u64, sleeping: u64) -> impl FnMut(bool) -> u64 {
        move |polls| if polls { polling } else { sleeping }
    }

    #[test]
    fn a_half_polls_first_and_where_both_ways_are_equal() {
        let mut half = Half::new();
        half.work(1, either(10, 10));
        assert_eq!(half.polled(), 1.0);
        half.work(1000, either(10, 10));
        assert!(half.polled() > 0.95, "{}", half.polled());
        // Not worth a change.
        half.work(1000, either(10, 12));
        assert!(half.polled() > 0.95, "{}", half.polled());
    }

    #[test]
    fn where_polling_is_much_faster_the_other_way_costs_little() {
        let mut half = Half::new();
        half.work(60, either(100, 1));
        assert!(half.polled() > 0.98, "{}", half.polled());
        half.work(1000, either(100, 1));
        assert!(half.polled() > 0.997, "{}", half.polled());
    }

    #[test]
    fn where_sleeping_at_once_is_faster_it_is_used() {
        for (polling, sleeping) in [(10, 15), (10, 30), (1, 100), (0, 10)] {
            let mut half = Half::new();
            half.work(10, either(polling, sleeping));
            half.work(1000, either(polling, sleeping));
            assert!(half.polled() < 0.03, "{sleeping}: {}", half.polled());
        }
    }

    #[test]
    fn where_polls_find_something_there_is_no_trial() {
        let mut half = Half::new();
        half.in_vain = false;
        // Also where the other way would be faster by chance.
        half.work(1000, either(10, 30));
        assert_eq!(half.polled(), 1.0);
        half.in_vain = true;
        half.work(140, either(10, 30));
        half.work(1000, either(10, 30));
        assert!(half.polled() < 0.03, "{}", half.polled());
    }

    #[test]
    fn it_follows_a_change_of_the_machine() {
        let mut half = Half::new();
        for _ in 0..3 {
            half.work(1000, either(10, 30));
            half.work(140, either(100, 1));
            half.work(1000, either(100, 1));
            assert!(half.polled() > 0.99, "{}", half.polled());
            half.work(260, either(10, 30));
            half.work(1000, either(10, 30));
            assert!(half.polled() < 0.03, "{}", half.polled());
        }
    }

    // Rates that vary by a factor of nine from one moment to the next.
    #[test]
    fn noise_does_not_hide_a_large_difference() {
        let mut state = 1u64;
        let mut noise = move || {
            // Knuth's linear congruential generator (MMIX).
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            1 + (state >> 33) % 9
        };
        let mut half = Half::new();
        half.work(2000, |polls| noise() * if polls { 10 } else { 30 });
        assert!(half.polled() < 0.1, "{}", half.polled());
        let mut half = Half::new();
        half.work(2000, |polls| noise() * if polls { 30 } else { 10 });
        assert!(half.polled() > 0.9, "{}", half.polled());
    }

    #[test]
    fn a_long_wait_makes_it_new() {
        let mut half = Half::new();
        half.work(1000, either(10, 30));
        assert!(!half.comparison.polls() || half.polled() < 0.03);
        let long = Passed {
            nanos: half.comparison.slice * IDLE,
            in_vain: 0,
            waits: 1,
        };
        half.comparison.passed(long, half.bytes);
        half.work(1, either(10, 30));
        assert_eq!(half.polled(), 1.0);
    }

    #[test]
    fn any_times_and_bytes_are_fine() {
        for longest in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let mut comparison = Comparison::new(longest);
            for bytes in [0, u64::MAX, 0, 5] {
                for nanos in [0, 1, i64::MAX] {
                    let passed = Passed {
                        nanos,
                        in_vain: nanos,
                        waits: u32::MAX,
                    };
                    comparison.passed(passed, bytes);
                    assert!(comparison.patience() >= 0);
                }
            }
        }
    }
}
