//! One guest's session, from Hello to Goodbye.
//!
//! | file | job | I/O |
//! |---|---|---|
//! | [`inbox`] | bytes to frames | none |
//! | [`outbox`] | frames to bytes, bounded | none |
//! | [`rules`] | what each request means and how it is answered | none |
//! | [`input`] | which Data frames a vector add's input consists of | none |
//! | `wire` | moves bytes both ways | the transport's |
//! | `front` | the guest's side: its frames, and what waits its turn | none of its own |
//! | [`serve`](mod@serve) | the loop, and what it asks of whatever runs the requests | none of its own |
//! | `execute` | runs them on an executor here; `crate::relay` is the other way | none of its own |
//! | [`vector_add`] | one running vector add and its pipeline slots | the executor's |
//!
//! A guest can send anything at any time: whatever breaks a rule becomes an error reply or the end
//! of this session, and nothing else. Memory is bounded by the pipeline's slots, one control frame
//! and [`outbox::CAPACITY`] bytes of replies.

mod execute;
pub(crate) mod front;
pub mod inbox;
pub mod input;
pub mod outbox;
pub mod rules;
pub mod serve;
pub mod vector_add;
pub(crate) mod wire;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use vgpu_protocol::message::Limits;
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::TransportError;

pub use serve::{OpenError, OpenExecutor, serve};

/// What a session is run with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the guest may ask for; told to it in the reply to Hello.
    pub limits: Limits,
    /// Different for every session that a mediator ever opens.
    pub epoch: u64,
    /// Time a guest has for a complete Hello.
    pub hello_timeout: Duration,
    /// Time a session may stand still between requests.
    pub idle_timeout: Duration,
    /// Time without any byte moved in the middle of a frame or a request.
    pub stall_timeout: Duration,
    /// Why the broker took this executor; `info` says it.
    pub reason: Option<String>,
    /// Answer Hello with this error and end.
    pub refusal: Option<Refusal>,
}

/// Why a guest is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// [`ErrorCode::Denied`] or [`ErrorCode::Busy`].
    pub code: ErrorCode,
    /// For the person in front of the guest.
    pub text: String,
}

/// How a session ended.
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
    /// The executor cannot be had, or is lost.
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

    /// What was asked, if anything.
    pub fn get(&self) -> Option<StopReason> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(StopReason::Draining),
            _ => Some(StopReason::Kicked),
        }
    }
}
