#![forbid(unsafe_code)]
//! How long the sleeping reader of a stream sleeps.
//!
//! A reader that is faster than its writer and sleeps at once sleeps again and again: the first
//! bytes wake it, and it has read them before there are more. Where a wake-up takes as long as
//! reading a good part of the ring, as in an emulator, it is better to let the writer go on: the
//! reader asks to be woken only when half of the ring is full, and looks what is there after a
//! moment in any case. Only a reader does so that has read a whole ring without an answer from its
//! own side, and ever more rarely where the writer pauses.

use std::time::Duration;

use crate::waiting::comparison::is_large;
use crate::waiting::rest::Rest;

/// After a wait that held out and gained nothing, the next ones do not: how many, at first and at most.
const REST: (u32, u32) = (1, 256);

/// The history of one reader.
#[derive(Debug)]
pub(crate) struct HoldOut {
    ring: u32,
    /// Zero: never.
    amount: u32,
    moment: Duration,
    /// Bytes that this side had written at the last wait.
    written: u64,
    /// Bytes that this side had read when that last changed.
    since: u64,
    rest: Rest,
}

impl HoldOut {
    /// For a ring of this many bytes. Sleeps for at most this `moment`; not at all if that is zero.
    pub(crate) fn new(ring: u32, moment: Duration) -> Self {
        Self {
            ring,
            amount: match is_large(ring) && !moment.is_zero() {
                true => ring / 2,
                false => 0,
            },
            moment,
            written: 0,
            since: 0,
            rest: Rest::new(REST),
        }
    }

    /// Holds out for this many bytes at each wait.
    #[cfg(test)]
    pub(crate) fn always(amount: u32, moment: Duration) -> Self {
        Self {
            amount,
            ..Self::new(0, moment)
        }
    }

    /// How long to sleep for the [`amount`](Self::amount).
    pub(crate) fn moment(&self) -> Duration {
        self.moment
    }

    /// The bytes to hold out for in the wait that begins, on a side that has read and written so
    /// many; `None`: it does not.
    pub(crate) fn amount(&mut self, read: u64, written: u64) -> Option<u32> {
        if std::mem::replace(&mut self.written, written) != written {
            self.since = read;
        }
        if self.amount == 0 || read.wrapping_sub(self.since) < u64::from(self.ring) {
            return None;
        }
        (!self.rest.skips()).then_some(self.amount)
    }

    /// A wait that held out found this many bytes.
    pub(crate) fn found(&mut self, bytes: u32) {
        self.rest.learn(bytes >= self.amount / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u32 = 1 << 20;
    const MOMENT: Duration = Duration::from_millis(8);

    #[test]
    fn a_stream_is_waited_for_once_a_ring_of_it_was_read() {
        let mut hold_out = HoldOut::new(RING, MOMENT);
        assert_eq!(hold_out.amount(0, 0), None);
        assert_eq!(hold_out.amount(u64::from(RING) - 1, 0), None);
        for read in [u64::from(RING), u64::MAX] {
            assert_eq!(hold_out.amount(read, 0), Some(RING / 2));
            hold_out.found(RING / 2);
        }
    }

    #[test]
    fn neither_answers_nor_small_rings_hold_out() {
        let mut hold_out = HoldOut::new(RING, MOMENT);
        for turn in 1..100 {
            assert_eq!(hold_out.amount(turn << 30, turn), None);
        }
        for (ring, moment) in [(RING / 8, MOMENT), (RING, Duration::ZERO)] {
            assert_eq!(HoldOut::new(ring, moment).amount(u64::MAX, 0), None);
        }
        let mut always = HoldOut::always(2, Duration::ZERO);
        assert_eq!(always.amount(0, 0), Some(2));
    }

    #[test]
    fn a_writer_that_pauses_is_rarely_waited_for() {
        let mut hold_out = HoldOut::new(RING, MOMENT);
        let mut waits = 0;
        for _ in 0..100_000 {
            if hold_out.amount(u64::MAX, 0).is_some() {
                waits += 1;
                hold_out.found(64);
            }
        }
        assert!(waits < 500, "{waits}");
    }
}
