//! A session's loop: admit the guest, then run what it asks for, one request after the other.

use std::time::Instant;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{Features, InfoReply, Limits, VectorAdd};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::Transport;

use super::execute::Execute;
use super::front::{Front, Step};
use super::outbox::Reply;
use super::{SessionEnd, Settings, StopFlag};
use crate::executor::{Executor, ExecutorError, ProbeError};
use crate::usage::Observed;

/// Opens the session's executor, once, when a guest was admitted.
pub type OpenExecutor<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Executor>, OpenError>;

/// No executor can be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct OpenError {
    /// [`ErrorCode::Busy`] where others have the device and waiting may help.
    pub code: ErrorCode,
    /// One line.
    pub text: String,
}

impl From<String> for OpenError {
    fn from(text: String) -> Self {
        Self {
            code: ErrorCode::BackendLost,
            text,
        }
    }
}

impl From<ProbeError> for OpenError {
    fn from(error: ProbeError) -> Self {
        let text = error.to_string();
        match error.source {
            ExecutorError::Busy { .. } => Self {
                code: ErrorCode::Busy,
                text,
            },
            _ => text.into(),
        }
    }
}

/// What runs a session's requests: an executor here, or a mediator elsewhere.
pub(crate) trait Backend<T: Transport + ?Sized> {
    /// Gets ready, once, for a guest that was admitted.
    fn open(&mut self) -> Result<Opened, NotOpened>;

    /// Waits, between two requests, until the guest's bytes may move; false once `until` has
    /// passed.
    ///
    /// # Errors
    /// The session ends; the guest has been told why.
    fn wait(
        &mut self,
        front: &mut Front<'_, T>,
        reading: bool,
        writing: bool,
        until: Instant,
    ) -> Result<bool, SessionEnd>;

    /// Answers a ping with `reply`, which holds `body`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn ping(
        &mut self,
        front: &mut Front<'_, T>,
        request: &FrameHeader,
        body: &[u8],
        reply: &Reply,
    ) -> Result<(), SessionEnd>;

    /// Takes the input of a vector add, which the rules and limits allow, and answers it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn vector_add(
        &mut self,
        front: &mut Front<'_, T>,
        request: FrameHeader,
        job: VectorAdd,
    ) -> Result<(), SessionEnd>;
}

/// A backend is ready.
pub(crate) struct Opened {
    /// What Info will answer.
    pub(crate) info: InfoReply,
    /// What it can do, if that may be less than this mediator allows.
    pub(crate) terms: Option<(Limits, Features)>,
}

/// A backend cannot be had.
pub(crate) struct NotOpened {
    /// For the guest.
    pub(crate) code: ErrorCode,
    /// For the person in front of it.
    pub(crate) text: String,
    /// For the log.
    pub(crate) end: SessionEnd,
}

/// Runs a session over `transport` on an executor until it ends, and closes the transport.
pub fn serve(
    transport: &mut dyn Transport,
    open: OpenExecutor<'_>,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut execute = Execute::new(open, settings.reason.clone());
    serve_with(transport, &mut execute, settings, observed, stop)
}

/// [`serve`] with any backend.
pub(crate) fn serve_with<T: Transport + ?Sized>(
    transport: &mut T,
    backend: &mut dyn Backend<T>,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut front = Front::new(transport, settings, observed, stop);
    let end = match run(&mut front, backend) {
        Err(end) => end,
        Ok(never) => match never {},
    };
    front.wire.close();
    end
}

enum Never {}

fn run<T: Transport + ?Sized>(
    front: &mut Front<'_, T>,
    backend: &mut dyn Backend<T>,
) -> Result<Never, SessionEnd> {
    loop {
        match front.next_step(backend)? {
            Step::Admit(request) => {
                let opened = backend.open().map_err(|refused| {
                    let reply = Reply::error(&request, refused.code.into(), &refused.text);
                    front.wire.answer(&reply);
                    refused.end
                })?;
                front.note_client();
                if let Some((limits, features)) = opened.terms {
                    front.rules.narrow(limits, features);
                }
                let reply = front.rules.admit(&request, opened.info);
                front.wire.answer(&reply);
                // Opening may take seconds, which are not the guest's.
                front.wire.progress();
            }
            Step::Ping(request, body, reply) => backend.ping(front, &request, &body, &reply)?,
            Step::VectorAdd(request, job) => backend.vector_add(front, request, job)?,
        }
    }
}
