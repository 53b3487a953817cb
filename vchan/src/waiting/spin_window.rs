#![forbid(unsafe_code)]
//! How long a wait may look at the ring before it sleeps: the decision, without a clock.
//!
//! A look is worth its processor only if it spares a sleep and a wake-up, and whether it does is not
//! for this side alone to say: the peer must run meanwhile. Where both share a processor, or a
//! hypervisor has fewer than it promises, it does not, and neither the number of processors nor
//! their load tells. So the decision follows from how looks end:
//!
//! - Each half has a *purse* of time to look. Every look is paid out of it, with all the time that
//!   has passed from its beginning, even if this thread did not run. A look that found what it waited
//!   for puts in what it has spared, a fixed sum, and a little for each byte moved since.
//! - A half whose last look was in vain saves up for a whole one before it looks again. What it saves is a
//!   small part of the time of its waits, so that trying again costs that part and no more.
//! - A look is a few times as long as those that helped lately. Looks in vain but followed by a short
//!   sleep make it longer, up to the longest: two sides that sleep see each other's wake-ups.
//! - A half whose waits are long is idle and does not look at all.
//!
//! So a peer that sends a byte now and then, just often enough for looking to find it, does not keep
//! this side looking: such a look costs more than it puts in.

use std::time::Duration;

/// A longest look beyond this is as good as this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What a look that helped is worth, and the shortest look, as parts of the longest.
const WORTH: i64 = 8;
const SHORTEST: i64 = 32;
/// The first look, and the longest that is made without any having helped, as parts of the longest:
/// long enough to see a peer wake up and answer.
const FIRST: i64 = 4;
const UNPROVEN: i64 = 2;
/// What a byte moved after a look that helped is worth, in nanoseconds: copying it twice and doing
/// something with it costs about that.
const BYTE: i64 = 1;
/// The part of the time of waits that goes into the purse in any case: one of so many.
const SAVED: i64 = 64;
/// A look is so many times as long as those that helped.
const REACH: i64 = 8;
/// A wait of so many longest looks may still come of sleeping alone: two sides that sleep see
/// each other's wake-ups in it, and through a relay those of a third.
const BOTH_SLEEP: i64 = 4;

/// The decision of one waiting half. All times are in nanoseconds.
#[derive(Debug)]
pub(crate) struct Window {
    max: i64,
    /// How long the next look shall be, if the purse allows it.
    reach: i64,
    /// What there is to spend, at most the longest look.
    purse: i64,
    /// Bytes that this half had moved at the last wait.
    bytes: u64,
    /// Waits are short.
    busy: bool,
    /// Looking has helped since the last long wait.
    helped: bool,
    /// The last look was in vain.
    vain: bool,
}

impl Window {
    /// One for looks of at most `max`; zero is none at all.
    pub(crate) fn new(max: Duration) -> Self {
        let max = nanos(max.min(LONGEST));
        Self {
            max,
            reach: max / FIRST,
            // Enough to find out.
            purse: max,
            bytes: 0,
            busy: false,
            helped: false,
            vain: false,
        }
    }

    /// The longest look.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max.unsigned_abs())
    }

    /// Whether looking has paid lately, or has not been tried. Never if there may be none.
    pub(crate) fn pays(&self) -> bool {
        self.max > 0 && !self.vain
    }

    /// How long to look in the wait that begins; zero: not at all. This half has moved `bytes` so far.
    pub(crate) fn next(&mut self, bytes: u64) -> Duration {
        let moved = bytes.wrapping_sub(std::mem::replace(&mut self.bytes, bytes));
        if self.max == 0 || !self.busy {
            return Duration::ZERO;
        }
        if !self.vain {
            self.earn(
                i64::try_from(moved)
                    .unwrap_or(i64::MAX)
                    .saturating_mul(BYTE),
            );
        }
        let needed = if self.vain { self.reach } else { self.least() };
        if self.purse < needed {
            self.vain = true;
            return Duration::ZERO;
        }
        let look = self.reach.min(self.purse);
        Duration::from_nanos(look.unsigned_abs())
    }

    /// A look found what it was for after so long.
    pub(crate) fn hit(&mut self, after: Duration) {
        let after = nanos(after);
        if after > self.max {
            // Longer than any look: this thread was not running, and the peer may have been on its
            // processor.
            return self.missed(self.max());
        }
        self.earn((self.max / WORTH).saturating_sub(after));
        self.vain = false;
        self.helped = true;
        let wanted = after.saturating_mul(REACH).clamp(self.least(), self.max);
        // At once where it must be longer, slowly where it may be shorter.
        self.reach = wanted.max(self.reach - (self.reach - wanted) / 16);
    }

    /// A look was in vain after so long.
    pub(crate) fn missed(&mut self, after: Duration) {
        self.earn(-nanos(after).min(self.reach));
        self.vain = true;
    }

    /// A wait that looking did not end was over after so long in all, `looked` of it looking.
    pub(crate) fn waited(&mut self, total: Duration, looked: Duration) {
        let (total, looked) = (nanos(total), nanos(looked));
        if total <= self.max.saturating_mul(BOTH_SLEEP) {
            self.busy = true;
            self.earn(total / SAVED);
            if looked > 0 && looked >= self.reach {
                self.reach = (self.reach * 2).min(self.max / UNPROVEN).max(self.reach);
            }
        } else if !std::mem::take(&mut self.helped) {
            // Once may have been a hiccup.
            self.busy = false;
        }
    }

    /// The shortest look that is worth beginning.
    fn least(&self) -> i64 {
        (self.max / SHORTEST).max(1).min(self.max)
    }

    fn earn(&mut self, sum: i64) {
        self.purse = self.purse.saturating_add(sum).clamp(0, self.max);
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(1);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// What a half has done in many waits.
    #[derive(Debug, Default)]
    struct Spent {
        looking: Duration,
        all: Duration,
    }

    impl Spent {
        fn is_less_than_one_in(&self, parts: u32) -> bool {
            self.looking * parts < self.all
        }
    }

    /// `waits` waits for a peer that answers after `answer` where this half looks for so long, and
    /// `sleep` after the end of a look in vain; `bytes` are moved in each.
    fn waits(
        window: &mut Window,
        waits: u32,
        answer: Duration,
        sleep: Duration,
        bytes: u64,
    ) -> Spent {
        let mut spent = Spent::default();
        let mut moved = window.bytes;
        for _ in 0..waits {
            moved += bytes;
            let look = window.next(moved);
            if answer <= look {
                window.hit(answer);
                spent.looking += answer;
                spent.all += answer;
                continue;
            }
            if !look.is_zero() {
                window.missed(look);
            }
            window.waited(look + sleep, look);
            spent.looking += look;
            spent.all += look + sleep;
        }
        spent
    }

    #[test]
    fn a_peer_that_answers_at_once_is_looked_for_almost_always() {
        let mut window = Window::new(MAX);
        let spent = waits(&mut window, 1000, us(2), us(50), 16);
        assert!(spent.all < us(1000 * 3), "{spent:?}");
        assert!(window.pays());
    }

    // Neither side would ever begin if the other's sleep counted against looking.
    #[test]
    fn waits_that_two_sleepers_make_long_open_the_window_too() {
        let mut window = Window::new(MAX);
        window.waited(3 * MAX, Duration::ZERO);
        assert!(window.next(0) >= us(100));
    }

    #[test]
    fn an_idle_half_stops_looking_and_stays_so() {
        let mut window = Window::new(MAX);
        waits(&mut window, 100, us(2), us(50), 16);
        let mut long = 0;
        while !window.next(0).is_zero() {
            window.missed(us(50));
            window.waited(LONG, us(50));
            long += 1;
        }
        assert!(long <= 2, "{long} long waits");
        for _ in 0..100 {
            window.waited(LONG, Duration::ZERO);
            assert!(window.next(0).is_zero());
        }
    }

    // Two sides on one processor: every wait is short once looking has stopped, and none while it
    // goes on.
    #[test]
    fn where_looking_never_helps_it_costs_a_small_part_of_the_time() {
        let mut window = Window::new(MAX);
        let never = Duration::MAX;
        waits(&mut window, 1000, never, us(7), 16 << 10);
        let spent = waits(&mut window, 100_000, never, us(7), 16 << 10);
        assert!(spent.is_less_than_one_in(50), "{spent:?}");
        assert!(!spent.looking.is_zero(), "it is never tried again");
    }

    #[test]
    fn looking_begins_again_once_it_pays() {
        let mut window = Window::new(MAX);
        waits(&mut window, 10_000, Duration::MAX, us(7), 16);
        // The peer sleeps too at first.
        let spent = waits(&mut window, 2000, us(60), us(60), 16);
        assert!(spent.looking * 2 > spent.all, "{spent:?}");
        let spent = waits(&mut window, 1000, us(2), us(60), 16);
        assert!(spent.all < us(1000 * 3), "{spent:?}");
    }

    // A peer that sends a byte just often enough for looking to find it.
    #[test]
    fn a_trickle_is_not_looked_for() {
        for every in [us(100), us(200), us(500), us(900)] {
            let mut window = Window::new(MAX / 8);
            let spent = waits(&mut window, 10_000, every, every, 1);
            assert!(spent.is_less_than_one_in(5), "{every:?}: {spent:?}");
        }
        for every in [us(500), us(900)] {
            let mut window = Window::new(MAX);
            let spent = waits(&mut window, 10_000, every, every, 1);
            assert!(spent.is_less_than_one_in(3), "{every:?}: {spent:?}");
        }
    }

    #[test]
    fn bulk_that_takes_a_while_is_looked_for() {
        let mut window = Window::new(MAX);
        let spent = waits(&mut window, 1000, us(300), us(350), 256 << 10);
        assert!(spent.looking * 10 > spent.all * 9, "{spent:?}");
    }

    #[test]
    fn work_that_takes_longer_than_looking_is_looked_for_rarely() {
        let mut window = Window::new(MAX);
        let spent = waits(&mut window, 10_000, Duration::MAX, 2 * MAX, 16);
        assert!(spent.is_less_than_one_in(50), "{spent:?}");
    }

    #[test]
    fn a_hiccup_does_not_close_the_window() {
        let mut window = Window::new(MAX);
        waits(&mut window, 100, us(2), us(50), 16);
        let look = window.next(0);
        window.missed(look);
        window.waited(LONG, look);
        assert!(!window.next(0).is_zero());
    }

    // Found by the one whose processor the peer had meanwhile.
    #[test]
    fn what_is_found_after_not_running_did_not_help() {
        let mut window = Window::new(MAX);
        for _ in 0..10_000 {
            window.waited(us(10), Duration::ZERO);
            if !window.next(0).is_zero() {
                window.hit(us(3000));
            }
            assert!(!window.helped);
        }
        assert!(!window.pays());
    }

    #[test]
    fn any_longest_look_and_any_times_are_fine() {
        for max in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let mut window = Window::new(max);
            for time in [
                Duration::ZERO,
                Duration::from_nanos(1),
                us(50),
                Duration::MAX,
            ] {
                window.waited(time, time);
                assert!(window.next(u64::MAX) <= LONGEST);
                window.hit(time);
                window.missed(time);
                window.next(0);
                window.waited(Duration::ZERO, time);
            }
        }
        assert!(Window::new(Duration::ZERO).next(0).is_zero());
        assert!(!Window::new(Duration::ZERO).pays());
    }
}
