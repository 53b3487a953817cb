//! Errors of connecting and accepting.

use std::io;

use crate::handshake::Refused;
use crate::secret_line::SecretError;

/// The reason why a connection could not be made. `Display` is one line with the failure,
/// [`advice`](Self::advice) one with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ConnectError {
    what: String,
    advice: String,
    interrupted: bool,
}

impl ConnectError {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
            interrupted: false,
        }
    }

    pub(crate) fn interrupted() -> Self {
        Self {
            interrupted: true,
            ..Self::new("interrupted", "start again when ready")
        }
    }

    /// One line: the remedy.
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// Whether the caller interrupted it.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

/// The reasons why a client over TCP is not admitted. For the log: the client gets no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It went away first, as a port scan does.
    #[error("it closed the connection {}", after(*.received))]
    Gone {
        /// Bytes received before.
        received: usize,
    },
    /// Its time was up.
    #[error("it was too slow: time ran out {}", after(*.received))]
    TimedOut {
        /// Bytes received before.
        received: usize,
    },
    /// It does not know the secret, or is not a client of this mediator.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The file of secrets cannot be read.
    #[error("{error} ({})", error.advice())]
    Secrets {
        /// The reason.
        error: SecretError,
    },
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn after(received: usize) -> String {
    match received {
        0 => "without a word".to_owned(),
        n => format!("after {n} bytes of its greeting"),
    }
}
