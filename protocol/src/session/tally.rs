//! Requests that are over, counted by operation and result.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::op::Op;

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpResult {
    /// It was answered without an error, or needs no answer and was accepted.
    Ok,
    /// It was refused, or has failed.
    Failed,
    /// Its work has failed after it had counted as [`Ok`](Self::Ok), as a kernel's may that was launched.
    FailedLater,
}

impl OpResult {
    /// All of them, in the order of the counts.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::FailedLater];

    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::FailedLater => "failed_later",
        }
    }
}

/// Counts of requests, in the order of [`OpResult::ALL`].
pub type Counted = [u64; OpResult::ALL.len()];

/// How many requests of each operation are over, by result: a session's thread counts, other threads may read.
///
/// All accesses are relaxed: each count stands for itself and none guards other data. Only one thread
/// counts, so that a sum is a load and a store.
#[derive(Debug)]
pub struct Tally([[AtomicU64; OpResult::ALL.len()]; Op::REQUESTS.len()]);

impl Default for Tally {
    fn default() -> Self {
        Self([const { [const { AtomicU64::new(0) }; OpResult::ALL.len()] }; Op::REQUESTS.len()])
    }
}

impl Tally {
    /// Counts a request. A frame that is no request counts nowhere.
    #[inline]
    pub fn count(&self, op: Op, result: OpResult) {
        if let Some(index) = op.index() {
            let count = &self.0[index][result as usize];
            let sum = count.load(Ordering::Relaxed).wrapping_add(1);
            count.store(sum, Ordering::Relaxed);
        }
    }

    /// The counts of every operation.
    pub fn iter(&self) -> impl Iterator<Item = (Op, Counted)> {
        let counts = self.0.iter().map(|counts| {
            let load = |at: usize| counts[at].load(Ordering::Relaxed);
            std::array::from_fn(load)
        });
        Op::REQUESTS.iter().copied().zip(counts)
    }
}
