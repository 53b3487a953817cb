//! The failures of quiet requests, gathered until a Fence reports them.

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

    /// Adds a failure; once the list is full only their number is kept.
    pub fn add(&mut self, failure: QuietFailure) {
        if self.failures.push(failure).is_err() {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// Adds all of `more`.
    pub fn add_all(&mut self, more: &FenceReply) {
        self.dropped = self.dropped.saturating_add(more.dropped);
        for failure in more.failures.as_slice() {
            self.add(*failure);
        }
    }
}
