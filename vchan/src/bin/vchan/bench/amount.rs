//! The amount of data moved for one point.

use std::time::Duration;

use vgpu_cli::Failure;

/// Messages of the first, short run.
const FIRST_COUNT: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    /// As much as takes about this long.
    Time(Duration),
    /// This many bytes, in one run.
    Bytes(u64),
}

impl Amount {
    /// Calls `run`, which exchanges the given number of messages of `message_bytes` and returns the
    /// time they took: once, or with a growing count until a run lasts at least half the wanted
    /// time. Returns the last run's count and time.
    ///
    /// # Errors
    /// Those of `run`.
    pub(crate) fn run(
        self,
        message_bytes: usize,
        mut run: impl FnMut(u64) -> Result<Duration, Failure>,
    ) -> Result<(u64, Duration), Failure> {
        let time = match self {
            Self::Time(time) => time,
            Self::Bytes(bytes) => {
                let count = (bytes / message_bytes as u64).max(1);
                return Ok((count, run(count)?));
            }
        };
        let mut count = FIRST_COUNT;
        loop {
            let elapsed = run(count)?;
            if elapsed * 2 >= time {
                return Ok((count, elapsed));
            }
            // Aim at the wanted time, but do not trust a short run for more than a factor of 16.
            let sixteenths = time.as_nanos() * 16 / elapsed.as_nanos().max(1);
            let factor = u64::try_from(sixteenths).unwrap_or(256).clamp(32, 256);
            count = count.saturating_mul(factor) / 16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_grow_until_a_run_is_long_enough() {
        let micro = |count| Ok(Duration::from_micros(count));
        let (count, elapsed) = Amount::Time(Duration::from_millis(1))
            .run(64, micro)
            .unwrap();
        assert_eq!(elapsed, Duration::from_micros(count));
        assert!((500..=2000).contains(&count), "{count}");
        let (count, _) = Amount::Bytes(1 << 20).run(4096, micro).unwrap();
        assert_eq!(count, 256);
        let (count, _) = Amount::Bytes(1).run(4096, micro).unwrap();
        assert_eq!(count, 1);
    }
}
