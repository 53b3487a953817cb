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
    /// Channels that were begun, or refused to begin.
    pub channels: u64,
    /// Calls by how they ended.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Guard pages put around what the peer shares, beside those that are there anyway.
    pub guards: usize,
    /// By how much the last call went beyond its deadline, at most.
    pub latest: Duration,
}

impl Report {
    pub(super) fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Notes that a call with this deadline has just returned.
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
