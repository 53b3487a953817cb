#![forbid(unsafe_code)]
//! The findings of a run, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Counts of one run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// States in which a rule was broken, and the victim was called.
    pub states: u64,
    /// Channels begun, or refused.
    pub channels: u64,
    /// Calls by their outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Guard pages placed around the shared memory, beside those already there.
    pub guards: usize,
    /// Longest overrun of a call's deadline.
    pub latest: Duration,
}

impl Report {
    pub(super) fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Notes the return of a call with this deadline.
    pub(super) fn late(&mut self, deadline: Instant) {
        self.latest = self.latest.max(deadline.elapsed());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "hostile: {} corrupted states, {} channels, {} guard pages, at most {:?} beyond a deadline",
            self.states, self.channels, self.guards, self.latest
        )?;
        for (outcome, count) in &self.outcomes {
            writeln!(f, "hostile: {count:>9} {outcome}")?;
        }
        Ok(())
    }
}
