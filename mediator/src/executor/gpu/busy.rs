//! The time for which a device ran kernels: kernels that ran side by side count once.

use std::time::Instant;

use super::device::Span;

/// Spans that are remembered one by one.
const MOST: usize = 64;

impl Span {
    /// The part of it that is in `other` as well.
    fn within(self, other: Self) -> Self {
        Self {
            began: self.began.max(other.began),
            ended: self.ended.min(other.ended),
        }
    }
}

/// The time that has been counted.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Apart from each other and in order.
    spans: Vec<Span>,
    /// Everything before this is counted: spans that ended here or earlier are forgotten.
    since: Option<i64>,
}

impl Busy {
    /// Counts a kernel's time; returns the nanoseconds of it that no other kernel had.
    pub(super) fn add(&mut self, kernel: Span) -> u64 {
        let began = self
            .since
            .map_or(kernel.began, |since| since.max(kernel.began));
        let kernel = Span { began, ..kernel };
        if kernel.ns() == 0 {
            return 0;
        }
        let first = self.spans.partition_point(|span| span.ended < kernel.began);
        let end = self
            .spans
            .partition_point(|span| span.began <= kernel.ended);
        let (mut whole, mut known) = (kernel, 0);
        for span in self.spans.drain(first..end) {
            known += kernel.within(span).ns();
            whole.began = whole.began.min(span.began);
            whole.ended = whole.ended.max(span.ended);
        }
        self.spans.insert(first, whole);
        if self.spans.len() > MOST {
            self.since = Some(self.spans.remove(0).ended);
        }
        kernel.ns() - known
    }
}

/// The time that is told of before it is measured: a kernel's is known when it ends, and until then its guest
/// would seem to leave the device alone.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Kernels have been under way, and been told of, until then.
    until: Option<Instant>,
    /// Nanoseconds that were told of and not measured since.
    ns: u64,
}

impl Ahead {
    /// Kernels are under way, or none is. Returns the nanoseconds to tell of.
    pub(super) fn under_way(&mut self, some: bool, now: Instant) -> u64 {
        let since = std::mem::replace(&mut self.until, some.then_some(now));
        let passed = match since {
            Some(since) if some => now.saturating_duration_since(since).as_nanos(),
            _ => 0,
        };
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.ns = self.ns.saturating_add(passed);
        passed
    }

    /// Kernels that are over by now took `ns` nanoseconds, and others are under way still, or none is. Returns the
    /// nanoseconds that have not been told of.
    pub(super) fn measured(&mut self, ns: u64, others: bool, now: Instant) -> u64 {
        // What has passed until now, and was not told of, is in what was measured. Where a turn is over, what passes until
        // the next one is nobody's time here.
        self.until = self.until.filter(|_| others).map(|_| now);
        let told = self.ns.min(ns);
        self.ns -= told;
        ns - told
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_told_before_it_was_measured_counts_once() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let ms = |ms: u64| ms * 1_000_000;
        let mut ahead = Ahead::default();
        assert_eq!(ahead.under_way(false, at(0)), 0);
        // Since when it is under way is not known at the first look.
        assert_eq!(ahead.under_way(true, at(500)), 0);
        assert_eq!(ahead.under_way(true, at(1_000)), ms(500));
        assert_eq!(ahead.under_way(true, at(1_500)), ms(500));
        // From 300 to 1,700; the next one goes on.
        assert_eq!(ahead.measured(ms(1_400), true, at(1_700)), ms(400));
        assert_eq!(ahead.under_way(true, at(2_000)), ms(300));
        // It waited for another guest's kernel in part: later ones make up for it.
        assert_eq!(ahead.measured(ms(200), true, at(2_100)), 0);
        assert_eq!(ahead.under_way(false, at(2_500)), 0);
        assert_eq!(ahead.measured(ms(150), false, at(2_600)), ms(50));
        assert_eq!(ahead.measured(ms(7), false, at(2_700)), ms(7));
        // A kernel that is never measured, since it was ended, has been told of.
        assert_eq!(ahead.under_way(true, at(3_000)), 0);
        assert_eq!(ahead.under_way(true, at(9_000)), ms(6_000));
        // Between two turns nothing passes.
        assert_eq!(ahead.measured(ms(6_005), false, at(9_005)), ms(5));
        assert_eq!(ahead.under_way(true, at(9_500)), 0);
    }

    fn span(began: i64, ended: i64) -> Span {
        Span { began, ended }
    }

    #[test]
    fn time_that_kernels_share_counts_once() {
        let mut busy = Busy::default();
        for (began, ended, counted) in [
            (0, 10, 10),
            (5, 15, 5),
            (15, 20, 5),
            (30, 40, 10),
            // Heard of late, and in the gap.
            (22, 25, 3),
            (23, 24, 0),
            (-5, 50, 5 + 2 + 5 + 10),
            (-5, 50, 0),
            (60, 60, 0),
            (70, 60, 0),
        ] {
            assert_eq!(busy.add(span(began, ended)), counted, "{began} to {ended}");
        }
    }

    #[test]
    fn any_order_comes_to_the_time_in_which_any_ran() {
        let mut state = 1u32;
        let mut below = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i64::from((state >> 8) % n)
        };
        for _ in 0..300 {
            let (mut busy, mut ran, mut sum) = (Busy::default(), [false; 1000], 0);
            for _ in 0..MOST {
                let began = below(900);
                let ended = began + below(100);
                sum += busy.add(span(began, ended));
                (began..ended).for_each(|at| ran[usize::try_from(at).unwrap()] = true);
                let so_far = ran.iter().filter(|ran| **ran).count();
                assert_eq!(sum, so_far as u64);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_counts_twice() {
        let mut busy = Busy::default();
        for at in 0..10_000 {
            assert_eq!(busy.add(span(10 * at, 10 * at + 4)), 4);
            assert!(busy.spans.len() <= MOST);
        }
        assert_eq!(busy.add(span(0, 4)), 0);
        assert_eq!(busy.add(span(i64::MIN, 50)), 0);
    }
}
