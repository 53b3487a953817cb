//! Errors for people: one line of what is wrong and one of what to do.

use std::fmt::Display;

use crate::logging;

/// Why a program of this crate gives up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// The problem, in one line.
    pub what: String,
    /// The remedy, in one line.
    pub advice: String,
}

impl Failure {
    /// A failure and its remedy.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// The system refused to do `what`.
    pub fn system(what: impl Display, error: impl Display, advice: impl Into<String>) -> Self {
        Self::new(format!("{what}: {error}"), advice)
    }

    /// Prints the two lines on standard error, behind what was logged before.
    pub fn print(&self) {
        logging::say(&format!("error: {}\n help: {}\n", self.what, self.advice));
    }
}
