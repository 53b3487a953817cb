#![forbid(unsafe_code)]
//! The pauses by which a reader of small messages lets them gather before it looks again.
//!
//! A reader that is faster than the writer finds one small message at each look, and each look
//! takes the index's cache line away from the writer: both then run at the speed of that exchange.
//! A few pauses let a batch gather, which costs one exchange. If nothing more arrives the pauses
//! are wasted, so they are made only while they pay, and never by a side that answers the messages
//! it reads.

use crate::waiting::rest::Rest;

/// The first and the largest number of processor pauses; the largest takes half a microsecond.
const PAUSES: (u32, u32) = (2, 16);
/// Messages that make a batch.
const BATCH: u32 = 8;
/// A message of at least this many bytes is worth an exchange of its own.
const LARGE: u32 = 4096;
/// Bounds of the looks without pauses after pauses that did not pay.
const REST: (u32, u32) = (4, 1024);

/// The pauses of one reader.
#[derive(Debug)]
pub(crate) struct Batching {
    /// Pauses before the next look.
    pauses: u32,
    /// Bytes wanted by the look under way.
    wanted: u32,
    /// Pauses preceded the look under way.
    paused: bool,
    /// The last look found too little.
    little: bool,
    rest: Rest,
    /// Bytes that this side had written at the last look.
    written: u64,
}

impl Batching {
    pub(crate) fn new() -> Self {
        Self {
            pauses: PAUSES.0,
            wanted: 0,
            paused: false,
            little: false,
            rest: Rest::new(REST),
            written: 0,
        }
    }

    /// The number of pauses to make before a look for `wanted` bytes, on a side that has written
    /// `written` bytes so far.
    #[inline]
    pub(crate) fn pauses(&mut self, wanted: u32, written: u64) -> u32 {
        let answers = std::mem::replace(&mut self.written, written) != written;
        self.wanted = wanted.min(LARGE);
        self.paused = false;
        // A peer that waits for an answer sends no more.
        if answers || !self.little || wanted >= LARGE {
            return 0;
        }
        if self.rest.skips() {
            return 0;
        }
        self.paused = true;
        self.pauses
    }

    /// Learns how many bytes the look found.
    #[inline]
    pub(crate) fn found(&mut self, bytes: u32) {
        if bytes == 0 {
            // A wait follows; its result says nothing about these pauses.
            self.little = false;
            return;
        }
        self.little = bytes < self.wanted * BATCH;
        if !self.paused {
            return;
        }
        let paid = bytes > self.wanted;
        self.rest.learn(paid);
        if !paid {
            self.pauses = PAUSES.0;
        } else if self.little {
            self.pauses = (self.pauses * 2).min(PAUSES.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_small_messages_is_let_gather() {
        let mut batching = Batching::new();
        assert_eq!(batching.pauses(64, 0), 0, "nothing is known yet");
        let mut pauses = 0;
        for _ in 0..8 {
            batching.found(128);
            pauses = batching.pauses(64, 0);
        }
        assert_eq!(pauses, PAUSES.1);
        batching.found(64 * BATCH);
        assert_eq!(batching.pauses(64, 0), 0, "there was a batch");
        batching.found(64);
        assert_eq!(batching.pauses(LARGE, 0), 0);
    }

    #[test]
    fn an_answer_is_never_held_up() {
        let mut batching = Batching::new();
        for written in 1..1000 {
            assert_eq!(batching.pauses(64, written), 0);
            batching.found(64);
        }
    }

    #[test]
    fn what_does_not_pay_becomes_rare() {
        let mut batching = Batching::new();
        let mut made = 0;
        for _ in 0..100_000 {
            made += batching.pauses(64, 0);
            batching.found(64);
        }
        assert!(made < 1000, "{made} pauses that did not pay");
    }
}
