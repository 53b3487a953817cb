#![forbid(unsafe_code)]
//! How the two sides of a long stream get apart in the ring.
//!
//! A reader right behind the writer fetches each line out of the writer's own cache, at a third of
//! the rate at which it comes out of the cache that all processors share; and the writer, on its next
//! way round the ring, fetches it out of the reader's. Once the two are further apart than a
//! processor's own cache is large, both run at full speed and stay apart. So a reader that has
//! followed closely for a while waits once until that much is there; never on a side that answers,
//! never for a writer that pauses, and ever more rarely where it does not help. A writer whose ring
//! stays nearly full does the same with the room that its reader makes.

use crate::error::Result;
use crate::waiting::rest::Rest;

/// The distance: more than a processor's second-level cache holds.
const DISTANCE: u32 = 3 << 20;
/// Bounds of the distances to skip after one that did not last.
const REST: (u32, u32) = (1, 256);

/// Pauses of the processor between two looks.
const PAUSES: u32 = 16;
/// Looks without a step of the other side after which it counts as pausing.
const MOST_STILL_LOOKS: u32 = 32;
/// Most looks in all: they take well below a millisecond.
const MOST_LOOKS: u32 = 1 << 10;

/// The history of one half of a channel.
#[derive(Debug)]
pub(crate) struct StreamDistance {
    /// Zero where the ring is too small.
    distance: u32,
    /// Bytes found so far in this stream, each time with the other side close ahead.
    close: u32,
    /// Bytes that this side had written at the last look.
    written: u64,
    /// The distance was reached; the next look shows whether it lasts.
    reached: bool,
    rest: Rest,
}

impl StreamDistance {
    pub(crate) fn new(ring: u32) -> Self {
        Self {
            // Only in a ring with room for the distance on both sides.
            distance: if ring / 2 < DISTANCE { 0 } else { DISTANCE },
            close: 0,
            written: 0,
            reached: false,
            rest: Rest::new(REST),
        }
    }

    /// Notes that a look found `found` bytes, `available` in all, on a side that has written
    /// `written` bytes so far; where it may pay, waits a moment for more, calling `look`.
    ///
    /// # Errors
    /// Those of `look`.
    #[inline]
    pub(crate) fn keep_apart(
        &mut self,
        found: u32,
        available: u32,
        written: u64,
        look: impl FnMut() -> Result<u32>,
    ) -> Result<()> {
        match self.look(found, available, written) {
            Some(distance) => self.wait(distance, available, look),
            None => Ok(()),
        }
    }

    /// Notes that a look found `found` bytes, `available` in all, on a side that has written
    /// `written` bytes so far. Returns the distance to wait for, if that may pay.
    #[inline]
    fn look(&mut self, found: u32, available: u32, written: u64) -> Option<u32> {
        if self.distance == 0 || found == 0 {
            return None;
        }
        self.learn(found, available, written)
    }

    fn learn(&mut self, found: u32, available: u32, written: u64) -> Option<u32> {
        let answers = std::mem::replace(&mut self.written, written) != written;
        if std::mem::take(&mut self.reached) {
            self.rest.learn(available >= self.distance / 2);
        }
        if answers || available >= self.distance {
            self.close = 0;
            return None;
        }
        self.close = self.close.saturating_add(found);
        if self.close < self.distance {
            return None;
        }
        self.close = 0;
        (!self.rest.skips()).then_some(self.distance)
    }

    /// Waits a moment until `distance` bytes are there (`available` are there now), as long as
    /// `look` finds more.
    ///
    /// # Errors
    /// Those of `look`.
    #[cold]
    fn wait(
        &mut self,
        distance: u32,
        mut available: u32,
        mut look: impl FnMut() -> Result<u32>,
    ) -> Result<()> {
        let (mut looks, mut still) = (0, 0);
        while available < distance && looks < MOST_LOOKS && still < MOST_STILL_LOOKS {
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
            let before = std::mem::replace(&mut available, look()?);
            looks += 1;
            still = if available == before { still + 1 } else { 0 };
        }
        self.reached = available >= distance;
        if !self.reached {
            self.rest.learn(false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u32 = 8 << 20;
    const STEP: u32 = 64 << 10;

    /// Looks that find the other side close until the distance is requested; their number.
    fn looks_until_asked(apart: &mut StreamDistance, most: u32) -> Option<u32> {
        (1..=most).find(|_| apart.look(STEP, STEP, 0).is_some())
    }

    #[test]
    fn a_long_stream_close_behind_asks_once_for_the_distance() {
        let mut apart = StreamDistance::new(RING);
        assert_eq!(looks_until_asked(&mut apart, 1000), Some(DISTANCE / STEP));
        let mut there = STEP;
        let found = apart.wait(DISTANCE, there, || {
            there += STEP;
            Ok(there)
        });
        assert!(found.is_ok() && there >= DISTANCE);
        for _ in 0..1000 {
            assert_eq!(apart.look(STEP, DISTANCE, 0), None, "they are apart");
        }
    }

    #[test]
    fn neither_answers_nor_small_rings_wait() {
        let mut apart = StreamDistance::new(RING);
        for written in 1..1000 {
            assert_eq!(apart.look(STEP, STEP, written), None);
        }
        assert_eq!(
            looks_until_asked(&mut StreamDistance::new(RING / 2), 10_000),
            None
        );
    }

    #[test]
    fn a_side_that_pauses_is_not_waited_for() {
        let mut apart = StreamDistance::new(RING);
        let mut looks = 0;
        let waited = apart.wait(DISTANCE, STEP, || {
            looks += 1;
            Ok(STEP)
        });
        assert!(waited.is_ok());
        assert_eq!(looks, MOST_STILL_LOOKS);
    }

    #[test]
    fn a_slow_side_is_waited_for_within_bounds() {
        let mut apart = StreamDistance::new(RING);
        let mut there = STEP;
        let waited = apart.wait(DISTANCE, there, || {
            there += 1;
            Ok(there)
        });
        assert!(waited.is_ok());
        assert_eq!(there, STEP + MOST_LOOKS);
    }

    #[test]
    fn what_does_not_last_becomes_rare() {
        let mut apart = StreamDistance::new(RING);
        let mut asked = 0;
        for _ in 0..100_000 {
            if apart.look(STEP, STEP, 0).is_some() {
                asked += 1;
                let reached = apart.wait(DISTANCE, STEP, || Ok(DISTANCE));
                assert!(reached.is_ok());
            }
        }
        assert!(asked < 20, "asked {asked} times");
    }
}
