//! Sleeping on the model's doorbell, under the names of `src/waiting/backend_poll.rs`.

use std::cell::RefCell;
use std::time::Instant;

use vgpu_transport::Waker;

use crate::sync::Arc;

use crate::backend::Backend;
use crate::bell::Bell;
use crate::error::Result;
use crate::sync::atomic::make_late_requests;
use crate::sync::{Without, is_left_out};

thread_local! {
    static CANCELS: RefCell<Option<Arc<Bell>>> = const { RefCell::new(None) };
}

/// The bell on which the next [`Cancel`] acts.
pub(crate) fn next_cancel(bell: Option<Arc<Bell>>) {
    CANCELS.set(bell);
}

/// A second reason for the own bell to be up.
#[derive(Debug)]
pub(crate) struct Cancel(Arc<Bell>);

impl Cancel {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(CANCELS.take().expect("no bell was named")))
    }

    pub(crate) fn signal(&self) {
        if !is_left_out(Without::Cancel) {
            self.0.cancel();
        }
    }
}

/// Like the real one; a deadline in the past means that the time is up at once.
pub(crate) fn poll_backend(
    backend: &dyn Backend,
    _cancel: Option<&Cancel>,
    _waker: Option<&Waker>,
    now: Instant,
    deadline: Instant,
) -> Result<bool> {
    make_late_requests();
    if deadline <= now {
        return Ok(backend.bell().is_up());
    }
    backend.bell().wait();
    Ok(true)
}
