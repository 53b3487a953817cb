//! The failures of quiet requests, gathered until a Fence tells of them.

use super::{FenceReply, QuietFailure};

/// No failure.
impl Default for FenceReply {
    fn default() -> Self {
        Self {
            dropped: 0,
            failures: Default::default(),
        }
    }
}

impl FenceReply {
    /// Whether nothing has failed.
    pub fn is_empty(&self) -> bool {
        self.dropped == 0 && self.failures.as_slice().is_empty()
    }

    /// One more; beyond those that have room only their number is kept.
    pub fn add(&mut self, failure: QuietFailure) {
        if self.failures.push(failure).is_err() {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// All of `more`.
    pub fn add_all(&mut self, more: &FenceReply) {
        self.dropped = self.dropped.saturating_add(more.dropped);
        for failure in more.failures.as_slice() {
            self.add(*failure);
        }
    }
}
