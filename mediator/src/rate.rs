//! Rates that a guest cannot exceed. Time is an argument, so tests need no clock.

use std::time::{Duration, Instant};

/// Allows `burst` events at once and then one every `interval`.
///
/// The idea of a bucket that refills over time is Firecracker's rate limiter's. This one counts whole
/// events, and keeps the time when it will be full in place of a number of tokens.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket. `burst` and `interval` must not be zero.
    pub fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            burst,
            interval,
            full_at: now,
        }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let there = self.next(now) <= now;
        if there {
            self.owe(now);
        }
        there
    }

    /// When the next token is there: `now`, or later.
    pub fn next(&self, now: Instant) -> Instant {
        let rest = self.interval * self.burst.saturating_sub(1);
        self.full_at.checked_sub(rest).map_or(now, |at| at.max(now))
    }

    /// Takes one token also where there is none, for an event that has happened already; later ones
    /// wait the longer. Gives the time when nothing is owed any more: `now`, or later.
    pub fn owe(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + self.interval;
        let all = self.interval * self.burst;
        self.full_at.checked_sub(all).map_or(now, |at| at.max(now))
    }

    /// Puts one token back: the event turned out to be another bucket's.
    pub fn put_back(&mut self) {
        self.full_at = self
            .full_at
            .checked_sub(self.interval)
            .unwrap_or(self.full_at);
    }

    /// Whether it is as good as new.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

/// How long nothing may be said of lines that were suppressed.
const SUPPRESSED_REPORT_TIME: Duration = Duration::from_secs(10);

/// Lets a bounded number of log lines through, and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    bucket: TokenBucket,
    suppressed: u64,
    /// When the first of them was.
    since: Instant,
}

impl LogLimit {
    /// Of one guest: ten lines at once, then one a second.
    pub fn new(now: Instant) -> Self {
        Self::of(10, Duration::from_secs(1), now)
    }

    /// `burst` lines at once, then one an `interval`.
    pub fn of(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            bucket: TokenBucket::new(burst, interval, now),
            suppressed: 0,
            since: now,
        }
    }

    /// `None`: do not log. `Some(n)`: log, and say that `n` lines were suppressed before.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.take(now) {
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppress(1, now);
            None
        }
    }

    /// Counts `lines` that something else has suppressed.
    pub fn suppress(&mut self, lines: u64, now: Instant) {
        if self.suppressed == 0 {
            self.since = now;
        }
        self.suppressed += lines;
    }

    /// How many lines were suppressed, which somebody else says.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    /// When to say how many lines were suppressed though none has come since, if any were.
    pub fn due(&self) -> Option<Instant> {
        (self.suppressed > 0).then(|| self.since + SUPPRESSED_REPORT_TIME)
    }

    /// How many lines were suppressed, if it is time to say so.
    pub fn overdue(&mut self, now: Instant) -> Option<u64> {
        self.due()
            .is_some_and(|at| at <= now)
            .then(|| std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_an_interval() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = TokenBucket::new(3, second, start);
        let taken = |bucket: &mut TokenBucket, now| (0..9).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(bucket.next(start), start + second);
        assert_eq!(taken(&mut bucket, start + second / 2), 0);
        assert_eq!(taken(&mut bucket, start + second), 1);
        // Half intervals are not lost.
        assert_eq!(taken(&mut bucket, start + second * 5 / 2), 1);
        assert_eq!(taken(&mut bucket, start + second * 3), 1);
        // A long pause gives no more than the burst.
        assert_eq!(taken(&mut bucket, start + second * 1000), 3);
        // A clock that stands still or runs back does no harm.
        assert_eq!(taken(&mut bucket, start), 0);
    }

    #[test]
    fn suppressed_lines_are_counted() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let admitted = (0..15).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(5));
        assert_eq!(limit.due(), None);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), None);
        // Nobody comes by who could say so.
        let due = start + Duration::from_secs(1) + SUPPRESSED_REPORT_TIME;
        assert_eq!(limit.due(), Some(due));
        assert_eq!(limit.overdue(due - Duration::from_nanos(1)), None);
        assert_eq!(limit.overdue(due), Some(1));
        assert_eq!(limit.due(), None);
    }

    #[test]
    fn what_is_owed_is_paid_before_there_is_more() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = TokenBucket::new(2, second, start);
        let owed: Vec<_> = (0..5).map(|_| bucket.owe(start) - start).collect();
        assert_eq!(owed, [0, 0, 1, 2, 3].map(|n| second * n));
        assert!(!bucket.take(start + second * 3));
        assert_eq!(bucket.next(start), start + second * 4);
        bucket.put_back();
        assert!(bucket.take(start + second * 3));
        assert!(!bucket.is_full(start + second * 4) && bucket.is_full(start + second * 5));
    }
}
