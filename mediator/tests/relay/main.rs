//! Mediators that relay to another one.

mod chain;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
mod ways;

use vgpu_guest::{Cause, Error};
use vgpu_protocol::status::Status;

/// Status and text with which a guest was refused, or its session ended.
fn refusal(error: &Error) -> (Status, String) {
    match error.cause() {
        Cause::Refused { status, text, .. } | Cause::Ended { status, text } => {
            (*status, text.clone())
        }
        Cause::NoEndpoint(left) => refusal(&left[0].error),
        other => panic!("{other:?}"),
    }
}
