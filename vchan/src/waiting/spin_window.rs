#![forbid(unsafe_code)]
//! How long a wait may look at the ring before it sleeps: the decision, without a clock.
//!
//! A look is worth its processor time only if it spares a sleep and a wake-up, and that is not up
//! to this side alone: the peer must be running meanwhile. If both share a processor, or a
//! hypervisor has fewer than it promises, it is not, and neither the number of processors nor their
//! load tells. So the decision follows from how looks end:
//!
//! - Each half has a *budget* of time for looking, at most one longest look; it begins full. Looking is
//!   paid for out of it. Each wait that looking did not end adds a small part of the time it took, so
//!   looks that find nothing cost that part of the time in the long run.
//! - A look that found what it waited for adds what it has spared, a fixed sum, and a little for each
//!   byte moved until the next.
//! - While there is budget, every wait looks. Once it has run out, a look is a trial, made when the
//!   budget covers all of it. The first trial that finds something turns looking on again.
//! - A look is a few times as long as those that found something lately. A wait that slept makes it
//!   twice as long as that wait: so trials are short, and frequent, where waits are short.
//! - A half whose waits are long is idle and does not look at all. Its budget fills up meanwhile, so
//!   the first messages after a pause find out anew.
//!
//! So a peer that sends a byte now and then, just often enough for a look to find it, does not keep
//! this side looking: such a look costs more than it adds.

use std::time::Duration;

/// A longest look beyond this is as good as this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A successful look adds the longest look divided by this to the budget.
const WORTH: i64 = 8;
/// The shortest look is the longest divided by this.
const SHORTEST: i64 = 32;
/// The first look is the longest divided by this: long enough to see a peer wake up and answer.
const FIRST: i64 = 4;
/// A look that does not follow from successful ones lasts at most the longest divided by this.
const UNPROVEN: i64 = 2;
/// Nanoseconds that each byte moved after a successful look adds: about the cost of copying it
/// twice and using it.
const BYTE: i64 = 1;
/// One part in this many of the time spent waiting is always added.
const SHARE: i64 = 64;
/// A look is this many times as long as successful ones were lately.
const REACH: i64 = 8;
/// A wait of up to this many times the longest look may still be due to sleeping alone: it covers
/// the wake-ups of two sides that sleep, and through a relay those of a third.
const BOTH_SLEEP: i64 = 4;

/// The decision of one waiting half. All times are in nanoseconds.
#[derive(Debug)]
pub(crate) struct Window {
    max: i64,
    /// Length of the next look, if the budget allows it.
    reach: i64,
    /// Limit of the look under way.
    look: i64,
    /// Time left to spend, at most the longest look.
    budget: i64,
    /// Bytes that this half had moved at the last wait.
    bytes: u64,
    /// Waits are short.
    busy: bool,
    /// A look has found something since the last long wait.
    helped: bool,
    /// The last look found something.
    found: bool,
    /// The budget has not run out since a look found something.
    on: bool,
}

impl Window {
    /// A window for looks of at most `max`; zero: no looking at all.
    pub(crate) fn new(max: Duration) -> Self {
        let max = nanos(max.min(LONGEST));
        Self {
            max,
            reach: max / FIRST,
            look: 0,
            // Enough for a few looks that find nothing.
            budget: max,
            bytes: 0,
            busy: false,
            helped: false,
            found: false,
            on: true,
        }
    }

    /// The longest look.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max.unsigned_abs())
    }

    /// Whether looking pays, or has not been tried. Never if the longest look is zero.
    pub(crate) fn pays(&self) -> bool {
        self.max > 0 && self.on
    }

    /// The length of the look in the wait that begins; zero: none. This half has moved `bytes` so
    /// far.
    pub(crate) fn next(&mut self, bytes: u64) -> Duration {
        let moved = bytes.wrapping_sub(std::mem::replace(&mut self.bytes, bytes));
        self.look = 0;
        if self.max == 0 || !self.busy {
            return Duration::ZERO;
        }
        if self.found {
            let moved = i64::try_from(moved).unwrap_or(i64::MAX);
            self.add(moved.saturating_mul(BYTE));
        }
        self.on &= self.budget >= self.least();
        if self.on || self.budget >= self.reach {
            self.look = self.reach.min(self.budget);
        }
        Duration::from_nanos(self.look.unsigned_abs())
    }

    /// A look succeeded after this time.
    pub(crate) fn hit(&mut self, after: Duration) {
        if nanos(after) > self.look.saturating_mul(2) {
            // Longer than the look was to last: this thread was not running, and the peer may have
            // been on its processor.
            return self.missed(after);
        }
        let after = nanos(after);
        self.add((self.max / WORTH).saturating_sub(after));
        self.found = true;
        self.helped = true;
        self.on = true;
        let wanted = after.saturating_mul(REACH).clamp(self.least(), self.max);
        // Grows at once, shrinks slowly.
        self.reach = wanted.max(self.reach - (self.reach - wanted) / 16);
    }

    /// A look of this length failed.
    pub(crate) fn missed(&mut self, after: Duration) {
        // Any more than that is time in which this thread was not running.
        self.add(-nanos(after).min(self.look));
        self.found = false;
    }

    /// A wait that looking did not end took this long in all.
    pub(crate) fn waited(&mut self, total: Duration) {
        let total = nanos(total);
        self.add(total / SHARE);
        if total <= self.max.saturating_mul(BOTH_SLEEP) {
            self.busy = true;
            let most = self.reach.saturating_mul(2).min(self.max / UNPROVEN);
            self.reach = total.saturating_mul(2).min(most).max(self.least());
        } else if !std::mem::take(&mut self.helped) {
            // Once may have been a hiccup.
            self.busy = false;
        }
    }

    /// The shortest look that is worth beginning.
    fn least(&self) -> i64 {
        (self.max / SHORTEST).max(1).min(self.max)
    }

    fn add(&mut self, sum: i64) {
        self.budget = self.budget.saturating_add(sum).clamp(0, self.max);
    }
}

/// `time` in nanoseconds, or the most that fit.
pub(crate) fn nanos(time: Duration) -> i64 {
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

    /// The totals of many waits of one half.
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

    /// Makes `waits` waits for a peer that answers after `answer` while this half looks, and
    /// `sleep` after the end of a look that failed; `bytes` are moved in each.
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
            window.waited(look + sleep);
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
        window.waited(3 * MAX);
        assert!(window.next(0) >= us(100));
    }

    #[test]
    fn an_idle_half_stops_looking_and_stays_so() {
        let mut window = Window::new(MAX);
        waits(&mut window, 100, us(2), us(50), 16);
        let mut long = 0;
        while !window.next(0).is_zero() {
            window.missed(us(50));
            window.waited(LONG);
            long += 1;
        }
        assert!(long <= 2, "{long} long waits");
        for _ in 0..100 {
            window.waited(LONG);
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
        window.waited(LONG);
        assert!(!window.next(0).is_zero());
    }

    // The first looks of a session find nothing while the other side starts up.
    #[test]
    fn an_idle_time_pays_for_new_trials() {
        for max in [MAX, MAX / 8] {
            let mut window = Window::new(max);
            waits(&mut window, 1000, Duration::MAX, us(40), 16);
            assert!(!window.pays());
            window.waited(LONG);
            let spent = waits(&mut window, 100, us(2), us(40), 16);
            assert!(spent.all < us(400), "{max:?}: {spent:?}");
        }
    }

    #[test]
    fn trials_are_short_and_frequent_where_waits_are_short() {
        let mut window = Window::new(MAX);
        waits(&mut window, 10_000, Duration::MAX, us(7), 16);
        let (mut waited, mut trials) = (Duration::ZERO, Vec::new());
        while waited < us(100_000) {
            let look = window.next(0);
            if !look.is_zero() {
                window.missed(look);
                trials.push(look);
            }
            window.waited(look + us(7));
            waited += look + us(7);
        }
        assert!(trials.iter().all(|trial| *trial <= us(40)), "{trials:?}");
        assert!((20..100).contains(&trials.len()), "{} trials", trials.len());
    }

    #[test]
    fn a_look_that_finds_nothing_does_not_stop_what_pays() {
        let mut window = Window::new(MAX);
        waits(&mut window, 100, us(2), us(50), 16);
        let look = window.next(0);
        window.missed(look);
        window.waited(look + us(50));
        assert!(window.pays());
        assert!(!window.next(0).is_zero());
    }

    /// The processors of the two sides of [`round_trips`].
    #[derive(Clone, Copy, PartialEq)]
    enum Processors {
        /// Each side has its own; waking one takes this long.
        Two(Duration),
        /// Both share one; switching takes this long.
        One(Duration),
    }

    /// The time that `count` round trips take if each side spends a microsecond on its message; the
    /// second side waits first.
    fn round_trips(sides: &mut [Window; 2], count: u32, processors: Processors) -> Duration {
        let own = us(1);
        let mut now = Duration::ZERO;
        // Since when the waiting side has waited, and how long it looks.
        let (mut since, mut look) = (now, sides[1].next(0));
        for step in 0..2 * count as usize {
            let [one, other] = sides;
            let (sender, waiter) = match step % 2 {
                0 => (one, other),
                _ => (other, one),
            };
            now += own;
            let senders_look = sender.next(0);
            let sent = now;
            match processors {
                Processors::Two(_) if now <= since + look => waiter.hit(now - since),
                Processors::Two(wake_up) => {
                    if !look.is_zero() {
                        waiter.missed(look);
                    }
                    now += wake_up;
                    waiter.waited(now - since);
                }
                Processors::One(change) => {
                    // The waiter cannot run before the sender sleeps.
                    now += senders_look + change;
                    if !look.is_zero() {
                        waiter.missed(look);
                    }
                    waiter.waited(now - since);
                }
            }
            (since, look) = (sent, senders_look);
        }
        now
    }

    /// A guest and a mediator that looks for a short while only.
    fn a_session() -> [Window; 2] {
        [Window::new(MAX), Window::new(MAX / 8)]
    }

    #[test]
    fn two_sides_that_each_have_a_processor_soon_look_for_each_other() {
        for wake_up in [us(5), us(20), us(50)] {
            let mut sides = a_session();
            round_trips(&mut sides, 3, Processors::Two(wake_up));
            // The mediator opens its executor.
            sides.iter_mut().for_each(|side| side.waited(us(20_000)));
            let first = round_trips(&mut sides, 100, Processors::Two(wake_up));
            assert!(first < us(500), "{wake_up:?}: {first:?}");
        }
    }

    #[test]
    fn two_sides_that_share_a_processor_lose_little() {
        for change in [us(2), us(7), us(30)] {
            let mut sides = a_session();
            let asleep = [Duration::ZERO; 2].map(Window::new);
            round_trips(&mut sides, 1000, Processors::One(change));
            let usual = round_trips(&mut sides, 20_000, Processors::One(change));
            let asleep = round_trips(&mut { asleep }, 20_000, Processors::One(change));
            assert!(usual < asleep * 11 / 10, "{usual:?} beside {asleep:?}");
        }
    }

    #[test]
    fn two_sides_look_again_once_each_has_a_processor_again() {
        let mut sides = a_session();
        round_trips(&mut sides, 100_000, Processors::One(us(7)));
        round_trips(&mut sides, 400, Processors::Two(us(20)));
        let then = round_trips(&mut sides, 1000, Processors::Two(us(20)));
        assert!(then < us(3000), "{then:?}");
    }

    // Found by the side whose processor the peer had meanwhile.
    #[test]
    fn what_is_found_after_not_running_did_not_help() {
        let mut window = Window::new(MAX);
        for _ in 0..10_000 {
            window.waited(us(10));
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
                window.waited(time);
                assert!(window.next(u64::MAX) <= LONGEST);
                window.hit(time);
                window.missed(time);
                window.next(0);
                window.waited(Duration::ZERO);
            }
        }
        assert!(Window::new(Duration::ZERO).next(0).is_zero());
        assert!(!Window::new(Duration::ZERO).pays());
    }
}
