//! Why there is no connection.

use std::io;

use crate::handshake::Refused;
use crate::secret_line::SecretError;

/// Why a connection did not come about. `Display` is one line of what, [`advice`](Self::advice) one
/// of what to do.
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

    /// One line: what to do.
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// Whether the caller asked for it to end.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

/// Why a client that connected over TCP is not let in. For the log: the client gets no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It went away first, as a port scan does.
    #[error("it closed the connection {}", after(*.received))]
    Gone {
        /// Bytes that came before.
        received: usize,
    },
    /// Its time is over.
    #[error("it was too slow: time ran out {}", after(*.received))]
    TimedOut {
        /// Bytes that came before.
        received: usize,
    },
    /// It does not know the secret, or is not a client of this mediator.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The file of secrets cannot be read.
    #[error("{error} ({})", error.advice())]
    Secrets {
        /// Why.
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
