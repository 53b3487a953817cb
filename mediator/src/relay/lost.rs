//! Why the other mediator can no longer be used, in words.

use std::fmt;
use std::time::Duration;

use vgpu_protocol::session::client::Violation;
use vgpu_protocol::status::{ErrorCode, Status};
use vgpu_transport::TransportError;

use crate::session::SessionEnd;
use crate::session::backend::NotOpened;

/// The other mediator cannot be used, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// For the guest.
    pub(super) code: ErrorCode,
    /// The event and the remedy, in one line.
    pub(super) text: String,
}

impl Lost {
    /// `what` the mediator at `place` has done, as the end of a sentence about it.
    pub(super) fn new(place: &str, what: &str, advice: &str) -> Self {
        Self {
            code: ErrorCode::BackendLost,
            text: format!("the mediator behind this one ({place}) {what}; {advice}"),
        }
    }

    /// A request that opens the session was refused.
    pub(super) fn refused(place: &str, status: Status, text: &str) -> Self {
        let what = format!("refuses: {text} ({status})");
        let mut lost = Self::new(place, &what, "look at its log and policy");
        if status == Status::Mediator(ErrorCode::Busy) {
            lost.code = ErrorCode::Busy;
        }
        lost
    }

    /// It has ended the session of its own accord.
    pub(super) fn closing(place: &str, status: Status, text: &str) -> Self {
        let what = format!(
            "ended the session: {} ({status})",
            text.trim_end_matches('.')
        );
        Self::new(place, &what, "its log says more")
    }

    /// It has answered a request with an error that ends the session.
    pub(super) fn gave_up(place: &str, status: Status, text: &str) -> Self {
        let what = format!("gave up: {text} ({status})");
        Self::new(place, &what, "connect again")
    }

    /// Its stream has failed.
    pub(super) fn failed(place: &str, error: &TransportError) -> Self {
        match error {
            TransportError::Closed => Self::new(
                place,
                "is gone",
                "connect again once it is back (there: vgpuctl status)",
            ),
            error => Self::new(
                place,
                &format!("cannot be reached any more: {error}"),
                "look whether it runs, then connect again",
            ),
        }
    }

    /// It does nothing.
    pub(super) fn hung(place: &str, waited: Duration) -> Self {
        Self::new(
            place,
            &format!("has not moved for {} ms", waited.as_millis()),
            "look whether it hangs (there: vgpuctl status), then connect again",
        )
    }

    /// It breaks the protocol.
    pub(super) fn violates(place: &str, violation: &Violation) -> Self {
        Self::new(
            place,
            &format!("breaks the protocol: it {violation}"),
            "let both run the same release of vgpu",
        )
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Lost> for NotOpened {
    fn from(lost: Lost) -> Self {
        Self {
            code: lost.code,
            end: SessionEnd::ExecutorLost(lost.text.clone()),
            text: lost.text,
        }
    }
}
