//! Errors for people: one line of what, one line of what to do.

use std::{fmt, io};

use vgpu_guest::Cause;

/// Why the command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    advice: String,
    exit_status: u8,
    reported: bool,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
            exit_status: 1,
            reported: false,
        }
    }

    /// Marks a failure that the printed object already describes.
    pub(crate) fn reported(self) -> Self {
        Self {
            reported: true,
            ..self
        }
    }

    /// Arguments that cannot be meant.
    pub(crate) fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            exit_status: 2,
            ..Self::new(what, advice)
        }
    }

    pub(crate) fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// For programs, unless an object that says so was printed.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        let object = || vgpu_cli::failure_object(&self.what, &self.advice, self.exit_status);
        (!self.reported).then(object)
    }
}

/// The two lines.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n help: {}", self.what, self.advice)
    }
}

impl From<vgpu_guest::Error> for Failure {
    fn from(error: vgpu_guest::Error) -> Self {
        // As shells report a program ended by SIGINT.
        let exit_status = if matches!(error.cause(), Cause::Interrupted) {
            130
        } else {
            1
        };
        Self {
            what: error.to_string(),
            advice: error.advice(),
            exit_status,
            reported: false,
        }
    }
}

impl From<io::Error> for Failure {
    /// The only input and output that is not told in its own words is printing the result.
    fn from(error: io::Error) -> Self {
        Self::new(
            format!("cannot print the result: {error}"),
            "keep stdout open",
        )
    }
}
