#![forbid(unsafe_code)]
//! How long looking at the ring again and again is worthwhile before going to sleep.
//!
//! Waking a sleeper costs an event, an interrupt and a scheduler; see [`pace`](crate::pace). Looking costs a processor. The window follows what waits have cost so far, as
//! KVM's halt polling does: a wait that was over within the longest window would have been won by
//! looking, so the window doubles; a wait that was much longer would not, so it shrinks. An idle channel
//! therefore sleeps: one long wait after another brings the window to zero and keeps it there.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::pace::{Pace, RESTS};

/// The first window after none.
const FIRST: Duration = Duration::from_micros(32);
/// Looks after which the rest between two looks becomes one pause longer.
const LOOKS: u32 = 8;
/// The longest rest between two looks, in pauses.
const LONGEST_REST: u32 = 8;
/// A wait of so many longest windows may still come of sleeping alone: two sides that sleep see
/// each other's wake-ups in it, and through a relay those of a third.
const BOTH_SLEEP: u32 = 4;
/// Short waits to let pass after looking has not helped once: at first, and at most.
const PAUSE: (u32, u32) = (4, 256);

/// The window of one waiting half.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    window: Duration,
    /// Looking has helped since the window last shrank.
    helped: bool,
    /// Short waits to let pass before the window may grow from zero.
    pause: u32,
    /// The next such pause.
    next_pause: u32,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Spin {
    /// Looks for at most `max`; never if that is zero.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            max,
            window: Duration::ZERO,
            helped: false,
            pause: 0,
            next_pause: PAUSE.0,
            hits: 0,
            misses: 0,
        }
    }

    /// Sets the longest window; what was counted stays.
    pub(crate) fn set_max(&mut self, max: Duration) {
        let (hits, misses) = (self.hits, self.misses);
        *self = Self::new(max);
        (self.hits, self.misses) = (hits, misses);
    }

    /// The longest window.
    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// Whether there may be any looking.
    pub(crate) fn is_allowed(&self) -> bool {
        !self.max.is_zero()
    }

    /// Calls `ready` until it says yes, the window is over, or the deadline; now and then it is
    /// told to look thoroughly. Returns whether it did, and since when this took part in the wait.
    #[inline]
    pub(crate) fn run(
        &mut self,
        deadline: Instant,
        mut ready: impl FnMut(bool) -> Result<bool>,
    ) -> Result<Looked> {
        if self.window.is_zero() {
            let now = Instant::now();
            return Ok(Looked::InVain { start: now, now });
        }
        let pace = Pace::here();
        let turns = pace.turns(self.window);
        let (mut start, mut looks, mut turn) = (None, 0u32, 0);
        loop {
            let mut rested = 0;
            while rested < RESTS {
                let rest = (1 + looks / LOOKS).min(LONGEST_REST);
                looks = looks.saturating_add(1);
                // Leaves the core to its sibling, and the line to the peer that is to write it: each
                // look takes the line away from a writer, who may be about to write more.
                for _ in 0..rest {
                    std::hint::spin_loop();
                }
                rested += rest;
                if ready(rested >= RESTS)? {
                    self.hit();
                    return Ok(Looked::Ready);
                }
            }
            turn += 1;
            if turn < turns {
                continue;
            }
            let now = Instant::now();
            let start = *start.get_or_insert_with(|| pace.before(now, turns));
            if now - start >= self.window || now >= deadline {
                self.misses += 1;
                return Ok(Looked::InVain { start, now });
            }
            turn = 0;
        }
    }

    fn hit(&mut self) {
        self.hits += 1;
        self.helped = true;
        self.next_pause = PAUSE.0;
    }

    /// Learns from a wait that looking did not end: how long it was, looking included.
    pub(crate) fn waited(&mut self, total: Duration) {
        let looked_in_vain = total > self.max && self.window == self.max;
        if looked_in_vain || total > self.max * BOTH_SLEEP {
            if self.window.is_zero() {
                return;
            }
            if std::mem::take(&mut self.helped) {
                // Perhaps a hiccup.
                self.window /= 2;
            } else {
                // Idle, or a peer that cannot run while we look because it shares our processor.
                self.window = Duration::ZERO;
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(PAUSE.1);
            }
            if self.window < FIRST {
                self.window = Duration::ZERO;
            }
        } else if self.pause > 0 {
            self.pause -= 1;
        } else {
            self.window = (self.window * 2).max(FIRST).min(self.max);
        }
    }
}

/// How looking ended.
#[derive(Debug)]
pub(crate) enum Looked {
    /// With what was waited for.
    Ready,
    /// Without.
    InVain {
        /// Since when the wait has lasted.
        start: Instant,
        /// What the clock says.
        now: Instant,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(1);
    const SHORT: Duration = Duration::from_micros(700);
    const LONG: Duration = Duration::from_secs(1);

    fn looks(spin: &mut Spin, until: u32) -> u32 {
        let mut looks = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        spin.run(deadline, |_| {
            looks += 1;
            Ok(looks == until)
        })
        .unwrap();
        looks
    }

    #[test]
    fn short_waits_open_the_window_within_a_dozen() {
        let mut spin = Spin::new(MAX);
        assert_eq!(looks(&mut spin, u32::MAX), 0, "looks before it has learnt");
        let mut waits = 0;
        while spin.window < MAX {
            spin.waited(SHORT);
            waits += 1;
        }
        assert!(waits <= 12, "{waits} waits");
        assert_eq!(looks(&mut spin, 3), 3);
        assert_eq!(spin.hits, 1);
    }

    #[test]
    fn an_idle_channel_stops_looking_and_stays_so() {
        let mut spin = Spin::new(MAX);
        for _ in 0..12 {
            spin.waited(SHORT);
        }
        looks(&mut spin, 1);
        let mut long = 0;
        while !spin.window.is_zero() {
            spin.waited(LONG);
            long += 1;
        }
        assert!(long <= 2, "{long} long waits");
        for _ in 0..100 {
            spin.waited(LONG);
            assert_eq!(looks(&mut spin, u32::MAX), 0);
        }
    }

    // Neither side would ever begin if the other's sleep counted against looking.
    #[test]
    fn waits_that_two_sleepers_make_long_open_the_window_too() {
        let mut spin = Spin::new(MAX);
        for _ in 0..12 {
            spin.waited(if spin.window == MAX { SHORT } else { 3 * MAX });
        }
        assert_eq!(spin.window, MAX);
    }

    #[test]
    fn work_that_takes_longer_than_looking_is_looked_for_rarely() {
        let mut spin = Spin::new(MAX);
        let (mut wasted, mut waits) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..10_000 {
            wasted += spin.window;
            spin.waited(2 * MAX);
            waits += 2 * MAX;
        }
        assert!(wasted < waits / 50, "{wasted:?} of {waits:?}");
    }

    // Two sides on one processor: every wait is short once looking has stopped, and none while it
    // goes on.
    #[test]
    fn looking_that_never_helps_becomes_rare() {
        let mut spin = Spin::new(MAX);
        let mut wasted = Duration::ZERO;
        for _ in 0..10_000 {
            wasted += spin.window;
            spin.waited(spin.window + Duration::from_micros(50));
        }
        assert!(wasted < 10_000 * Duration::from_micros(25), "{wasted:?}");
    }

    #[test]
    fn a_hiccup_does_not_close_the_window() {
        let mut spin = Spin::new(MAX);
        for _ in 0..12 {
            spin.waited(SHORT);
        }
        looks(&mut spin, 1);
        spin.waited(LONG);
        assert!(!spin.window.is_zero());
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
        let mut spin = Spin::new(Duration::from_secs(3600));
        for _ in 0..64 {
            spin.waited(SHORT);
        }
        let deadline = Instant::now() + Duration::from_millis(5);
        let looked = spin.run(deadline, |_| Ok(false)).unwrap();
        assert!(matches!(looked, Looked::InVain { .. }));
        assert!(Instant::now() >= deadline);
    }
}
