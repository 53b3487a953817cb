#![forbid(unsafe_code)]
//! Polling the ring before going to sleep.
//!
//! Waking a sleeper costs an event, an interrupt and a scheduler; see
//! [`machine_costs`](crate::waiting::machine_costs). Polling costs a processor.
//! [`spin_window`](crate::waiting::spin_window) decides for how long to poll, and
//! [`comparison`](crate::waiting::comparison) whether to poll at all.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::waiting::coarse_clock;
use crate::waiting::comparison::{Comparison, Moved, Passed};
use crate::waiting::machine_costs::{Pace, RESTS};
use crate::waiting::spin_window::{Window, nanos};

/// Looks after which the rest between two looks grows by one pause.
const LOOKS: u32 = 8;
/// The longest rest between two looks, in pauses.
const LONGEST_REST: u32 = 8;

/// The polling of one waiting half.
#[derive(Debug)]
pub(crate) struct Spin {
    window: Window,
    comparison: Comparison,
    /// The latest reading of the clock that the comparison was told of, and whether the half slept
    /// at once then: the two ways to wait have clocks of their own.
    told: Option<(Instant, bool)>,
    /// Events since then, without their times.
    since: Passed,
    /// Nanoseconds since then of the waits that polling ended, about.
    nanos: i64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Spin {
    /// Polls for at most `max`; never if that is zero.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            window: Window::new(max),
            comparison: Comparison::new(),
            told: None,
            since: Passed::default(),
            nanos: 0,
            hits: 0,
            misses: 0,
        }
    }

    /// Sets the longest window; its history stays.
    pub(crate) fn set_max(&mut self, max: Duration) {
        self.window = Window::new(max);
    }

    /// The longest window.
    pub(crate) fn max(&self) -> Duration {
        self.window.max()
    }

    /// Whether polling has paid lately, or has not been tried.
    #[inline]
    pub(crate) fn pays(&self) -> bool {
        self.comparison.polls() && self.window.pays()
    }

    /// Polls in the wait that begins, if that may pay: [`Polling::run`] between
    /// [`begin`](Self::begin) and [`end`](Self::end). Returns how polling ended, and since when this
    /// took part in the wait.
    #[inline]
    pub(crate) fn run(
        &mut self,
        moved: Moved,
        deadline: Instant,
        ready: impl FnMut(bool) -> Result<bool>,
    ) -> Result<Looked> {
        match self.begin(moved) {
            Ok(polling) => Ok(self.end(polling.run(deadline, ready)?, moved)),
            Err(looked) => Ok(looked),
        }
    }

    /// Begins a wait of a half that has `moved` so much. `Err`: it does not poll.
    #[inline]
    pub(crate) fn begin(&mut self, moved: Moved) -> std::result::Result<Polling, Looked> {
        self.since.waits = self.since.waits.saturating_add(1);
        if self.nanos >= Comparison::patience() {
            self.tell(self.now(), moved);
        }
        let window = self.window.next(moved.bytes);
        if window.is_zero() || self.sleeps_at_once() {
            let now = self.now();
            self.tell(now, moved);
            return Err(Looked::Nothing { start: now, now });
        }
        Ok(Polling { window })
    }

    /// Learns how polling ended.
    #[inline]
    pub(crate) fn end(&mut self, polled: Polled, moved: Moved) -> Looked {
        match polled {
            Polled::Ready(after) => {
                self.hits += 1;
                self.nanos = self.nanos.saturating_add(nanos(after));
                self.window.hit(after);
                Looked::Ready
            }
            Polled::Nothing { start, now } => {
                let looked = now.saturating_duration_since(start);
                self.misses += 1;
                self.since.in_vain = self.since.in_vain.saturating_add(nanos(looked));
                self.window.missed(looked);
                self.tell(now, moved);
                Looked::Nothing { start, now }
            }
        }
    }

    /// Whether this half does not poll at all now.
    fn sleeps_at_once(&self) -> bool {
        self.window.max().is_zero() || !self.comparison.polls()
    }

    /// The time, for a wait that sleeps. Only one that polls too has to know it exactly.
    pub(crate) fn now(&self) -> Instant {
        match self.sleeps_at_once() {
            true => coarse_clock::now(),
            false => Instant::now(),
        }
    }

    /// Tells the comparison what has happened until `now`.
    fn tell(&mut self, now: Instant, moved: Moved) {
        if self.window.max().is_zero() {
            return;
        }
        let at_once = self.sleeps_at_once();
        let mut passed = std::mem::take(&mut self.since);
        if let Some((told, like)) = self.told.replace((now, at_once))
            && like == at_once
        {
            passed.nanos = nanos(now.saturating_duration_since(told));
        }
        self.comparison.passed(passed, moved);
        self.nanos = 0;
    }

    /// Learns from a wait that polling did not end: `total` is its length, polling included.
    pub(crate) fn waited(&mut self, total: Duration) {
        self.window.waited(total);
    }
}

/// The polling of one wait. It borrows nothing, so that the condition may use all of the waiting half.
#[derive(Debug)]
pub(crate) struct Polling {
    window: Duration,
}

/// How the polling of one wait ended.
#[derive(Debug)]
pub(crate) enum Polled {
    /// The awaited condition held after about this time.
    Ready(Duration),
    /// It did not; the time of both is known.
    Nothing { start: Instant, now: Instant },
}

impl Polling {
    /// Calls `ready` until it returns true, the window is over, or the deadline; its argument now
    /// and then asks for a thorough look.
    #[inline]
    pub(crate) fn run(
        self,
        deadline: Instant,
        mut ready: impl FnMut(bool) -> Result<bool>,
    ) -> Result<Polled> {
        let pace = Pace::here();
        let turns = pace.turns(self.window);
        let (mut start, mut looks, mut turn) = (None, 0u32, 0);
        loop {
            let mut rested = 0;
            while rested < RESTS {
                let rest = (1 + looks / LOOKS).min(LONGEST_REST);
                looks = looks.saturating_add(1);
                // Leaves the core to its sibling, and the cache line to the peer: each look takes
                // the line away from a writer, which may be about to write more.
                for _ in 0..rest {
                    std::hint::spin_loop();
                }
                rested += rest;
                if ready(rested >= RESTS)? {
                    // The clock costs more than a short look.
                    return Ok(Polled::Ready(match start {
                        Some(start) => Instant::now().saturating_duration_since(start),
                        None => pace.time_of(turn * RESTS + rested),
                    }));
                }
            }
            turn += 1;
            if turn < turns {
                continue;
            }
            let now = Instant::now();
            let start = *start.get_or_insert_with(|| pace.before(now, turns));
            if now.saturating_duration_since(start) >= self.window || now >= deadline {
                return Ok(Polled::Nothing { start, now });
            }
            turn = 0;
        }
    }
}

/// The outcome of polling.
#[derive(Debug)]
pub(crate) enum Looked {
    /// The awaited condition holds.
    Ready,
    /// It does not.
    Nothing {
        /// Start of the wait.
        start: Instant,
        /// The latest reading of the clock.
        now: Instant,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(1);
    const SHORT: Duration = Duration::from_micros(700);

    fn looks(spin: &mut Spin, until: u32) -> u32 {
        let mut looks = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        spin.run(Moved::default(), deadline, |_| {
            looks += 1;
            Ok(looks == until)
        })
        .unwrap();
        looks
    }

    #[test]
    fn it_looks_once_a_wait_was_short() {
        let mut spin = Spin::new(MAX);
        assert_eq!(looks(&mut spin, u32::MAX), 0, "looks before it has learnt");
        spin.waited(SHORT);
        assert_eq!(looks(&mut spin, 3), 3);
        assert_eq!(spin.hits, 1);
    }

    #[test]
    fn no_spin_means_no_look() {
        let mut spin = Spin::new(Duration::ZERO);
        for _ in 0..100 {
            spin.waited(Duration::ZERO);
        }
        assert_eq!(looks(&mut spin, u32::MAX), 0);
    }

    #[test]
    fn looking_ends_at_the_deadline() {
        for max in [Duration::from_secs(3600), Duration::MAX] {
            let mut spin = Spin::new(max);
            for _ in 0..64 {
                spin.waited(SHORT);
            }
            let deadline = Instant::now() + Duration::from_millis(5);
            let looked = spin.run(Moved::default(), deadline, |_| Ok(false)).unwrap();
            assert!(matches!(looked, Looked::Nothing { .. }));
            assert!(Instant::now() >= deadline);
        }
    }
}
