//! The command's failures: one line of what went wrong, one line of what to do.

use std::io;

/// Printed to stderr by `main`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) advice: String,
    /// The exit status.
    pub(crate) status: u8,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
            status: 1,
        }
    }

    /// The command line makes no sense.
    pub(crate) fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: 2,
            ..Self::new(what, advice)
        }
    }

    /// A person has ended it with Ctrl-C: the status is the one that shells report for that.
    pub(crate) fn interrupted(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: 130,
            ..Self::new(what, advice)
        }
    }

    /// Standard input or output failed.
    pub(crate) fn standard(which: &str, error: &io::Error) -> Self {
        Self::new(
            format!("cannot use standard {which}: {error}"),
            "check where it is redirected to, and that there is room",
        )
    }
}

impl Failure {
    /// The stream has come to its end; fails if the peer went away without ending it.
    pub(crate) fn unless_ended(end: vchan::PeerEnd) -> Result<(), Self> {
        match end {
            vchan::PeerEnd::Gone => Err(Self::new(
                "the other side went away without ending its stream: there may be more missing",
                "look at the other side's output, then start both sides again",
            )),
            _ => Ok(()),
        }
    }
}

impl From<vchan::Error> for Failure {
    fn from(error: vchan::Error) -> Self {
        Self::new(error.to_string(), error.advice())
    }
}
