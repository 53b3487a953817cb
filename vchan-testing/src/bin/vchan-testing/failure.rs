//! The command's failures: one line with the failure, one with the remedy.

/// Printed to stderr by `main`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) advice: String,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
        }
    }
}

impl From<vchan::Error> for Failure {
    fn from(error: vchan::Error) -> Self {
        Self::new(error.to_string(), error.advice())
    }
}
