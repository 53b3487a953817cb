//! Rates that a guest cannot exceed. Time is an argument, so tests need no clock.

use std::time::{Duration, Instant};

/// Allows `burst` events at once and then one every `interval`.
///
/// The idea of a bucket that refills over time is Firecracker's rate limiter's; this one counts
/// whole events.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    tokens: u32,
    refilled: Instant,
}

impl TokenBucket {
    /// A full bucket. `interval` must not be zero.
    pub fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            burst,
            interval,
            tokens: burst,
            refilled: now,
        }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }

    /// When the next token is there: `now`, or later.
    pub fn next(&mut self, now: Instant) -> Instant {
        self.refill(now);
        if self.tokens > 0 {
            now
        } else {
            self.refilled + self.interval
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let gained = elapsed.as_nanos() / self.interval.as_nanos().max(1);
        let missing = u128::from(self.burst - self.tokens);
        if gained >= missing {
            self.tokens = self.burst;
            self.refilled = now;
        } else {
            // Below `missing`, which is a u32.
            let gained = u32::try_from(gained).unwrap_or(0);
            self.tokens += gained;
            self.refilled += self.interval * gained;
        }
    }
}

/// Lets through so many log lines about one guest, and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    bucket: TokenBucket,
    suppressed: u64,
}

impl LogLimit {
    /// Ten lines at once, then one a second.
    pub fn new(now: Instant) -> Self {
        Self {
            bucket: TokenBucket::new(10, Duration::from_secs(1), now),
            suppressed: 0,
        }
    }

    /// `None`: do not log. `Some(n)`: log, and say that `n` lines were left out before.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.take(now) {
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
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
    }
}
