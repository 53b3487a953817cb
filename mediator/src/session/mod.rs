//! One guest's session, from Hello to Goodbye.
//!
//! | file | job |
//! |---|---|
//! | `run` | the one loop: bytes between the stream, the rules and the backend |
//! | [`stream`] | either side's stream, and one wait for everything |
//! | [`backend`] | what the loop asks of whatever runs the requests |
//! | [`local_backend`] | an executor here; `crate::relay` is the other way |
//! | `exchange` | data that is sent back, which needs neither |
//! | `one_request` | one request without a session |
//!
//! The rules themselves are [`vgpu_protocol::session::Server`], which has no I/O. A guest can send
//! anything at any time: whatever breaks a rule becomes an error reply or the end of this session,
//! and nothing else.

pub mod backend;
mod exchange;
pub mod local_backend;
pub(crate) mod one_request;
mod run;
pub mod stream;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::{AtomicU8, Ordering};

pub use vgpu_protocol::op::OpSet;
pub use vgpu_protocol::session::server::{Refusal, Terms, Timeouts};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::TransportError;

pub use local_backend::{LocalBackend, OpenError, OpenExecutor};
pub(crate) use run::run;
pub use stream::Stream;

use crate::usage::Observed;

/// Bytes of a request's data that a guest may send before any are granted: what an executor takes
/// in one piece, so that small requests never wait to hear of room.
pub const INITIAL_CREDIT: u32 = 512 << 10;

/// The settings of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The guest's limits and features, sent in the reply to Hello.
    pub terms: Terms,
    /// Which operations it may ask for; others are refused before anything is done.
    pub operations: OpSet,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Different for every session that a mediator ever opens.
    pub epoch: u64,
    /// Why the broker took this executor; `info` says it.
    pub reason: Option<String>,
    /// Answer Hello with this error and end.
    pub refusal: Option<Refusal>,
}

/// Runs a session over `stream` on an executor until it ends, and closes the stream.
pub fn serve(
    stream: &mut Stream,
    open: OpenExecutor<'_>,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut backend = LocalBackend::new(open, settings.reason.clone(), settings.terms.max_handles);
    run(stream, &mut backend, settings, observed, stop)
}

/// End of a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The guest said goodbye.
    #[error("goodbye")]
    Goodbye,
    /// The guest closed the stream, or died.
    #[error("the guest closed the connection{}", .0.then_some(" in the middle of a request").unwrap_or_default())]
    GuestClosed(
        /// Whether a frame or a request was under way.
        bool,
    ),
    /// The guest broke the protocol.
    #[error("the guest broke the protocol: {0}")]
    GuestFault(String),
    /// Nothing moved for too long.
    #[error("{0}")]
    TimedOut(String),
    /// The guest was turned away.
    #[error("refused: {}: {}", .0.code, .0.text)]
    Refused(Refusal),
    /// The executor cannot be opened, or is lost.
    #[error("the executor failed: {0}")]
    ExecutorLost(String),
    /// The broker asked for it.
    #[error("{0}")]
    Stopped(StopReason),
    /// The transport failed.
    #[error(transparent)]
    Transport(TransportError),
}

/// Why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The mediator stops.
    Draining,
    /// An administrator removed the guest.
    Kicked,
}

impl StopReason {
    /// The code that the guest gets.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Draining => ErrorCode::Busy,
            Self::Kicked => ErrorCode::Denied,
        }
    }
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Draining => "the mediator is stopping; connect again when it is back",
            Self::Kicked => "an administrator ended this session",
        })
    }
}

/// Set by the thread that listens to the broker, read by the session between two requests.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicU8);

impl StopFlag {
    /// Asks the session to end after the request that runs.
    pub fn set(&self, reason: StopReason) {
        let value = match reason {
            StopReason::Draining => 1,
            StopReason::Kicked => 2,
        };
        // Relaxed: the flag carries no other data with it.
        self.0.store(value, Ordering::Relaxed);
    }

    /// The operation, if there is one.
    pub fn get(&self) -> Option<StopReason> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(StopReason::Draining),
            _ => Some(StopReason::Kicked),
        }
    }
}
