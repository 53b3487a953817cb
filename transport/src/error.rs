//! The reasons why a call on a transport, or a wait, can fail.

use std::io;

/// The reasons why a transport's call can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The other side closed the stream, or its process or domain is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The deadline passed first.
    #[error("timed out while waiting to {0}")]
    TimedOut(&'static str),
    /// The other side broke the transport's rules; the stream is unusable from here on.
    #[error("the other side broke the transport's rules: {0}")]
    PeerViolation(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Whether a wait has ended at its deadline.
pub(crate) fn timed_out(error: &TransportError) -> bool {
    matches!(error, TransportError::TimedOut(_))
}
