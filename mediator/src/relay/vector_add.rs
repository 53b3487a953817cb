//! One vector add on its way through: the guest's chunks go on, the results come back.
//!
//! Both directions move at once. A Data frame of the guest is checked as if it were for an executor
//! here, then announced to the other mediator under a request of our own, and only then is its body
//! passed on. A result must answer that request, be the chunk that is due, and not come before its
//! input; the guest gets it under its own request.
//!
//! A request that fails on one side is brought to an orderly end on the other: frames that have
//! begun are completed, with zeros where bytes will not come, so that both sessions can go on.
//!
//! `forth` is the way of the input, `back` that of the results; here is what drives both.

mod back;
mod forth;

use std::time::Instant;

use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::message::{Chunks, Op, VectorAdd, VectorAddReply};
use vgpu_protocol::status::{ErrorCode, Status};

use super::body::{Body, Step};
use super::far::{Far, Lost};
use super::stream::Waiting;
use super::{Guest, SHARE, wait_for_both};
use crate::session::SessionEnd;
use crate::session::input::Input;
use crate::session::outbox::Reply;

/// The parts of a relay that a vector add needs.
pub(super) struct Parts<'r> {
    pub(super) far: &'r mut Far,
    pub(super) waiting: &'r mut Waiting,
    pub(super) forth: &'r mut Body,
    pub(super) back: &'r mut Body,
}

/// The state of one vector add.
struct Passing<'r> {
    parts: Parts<'r>,
    /// The guest's request.
    request: FrameHeader,
    /// Ours to the other mediator.
    ours: FrameHeader,
    elements: u64,
    input: Input,
    /// Results that have not begun to come.
    results: Chunks,
    /// Chunks whose input has been passed on whole, less results that have begun.
    computable: u64,
    sending: Option<Sending>,
    /// Bytes of a result that nobody wants any more.
    scrap: usize,
    /// The other mediator's input has its last frame.
    far_input_ended: bool,
    /// The other mediator's final reply: its time for the work, or why it failed.
    outcome: Option<u64>,
    failure: Option<(Status, String)>,
    began: Instant,
    wants: Wants,
}

/// A result frame on its way to the guest; its body is in `back`.
struct Sending {
    header: [u8; HEADER_LEN],
    sent: usize,
    elements: u64,
}

/// What was tried and could not move.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Wants {
    pub(super) near_read: bool,
    pub(super) near_write: bool,
    pub(super) far_read: bool,
    pub(super) far_write: bool,
}

/// Why a vector add cannot go on.
enum Stopped {
    /// The guest's session is over.
    Near(SessionEnd),
    /// The other mediator's is.
    Far(Lost),
}

impl From<SessionEnd> for Stopped {
    fn from(end: SessionEnd) -> Self {
        Self::Near(end)
    }
}

impl From<Lost> for Stopped {
    fn from(lost: Lost) -> Self {
        Self::Far(lost)
    }
}

/// Passes one vector add on and answers it.
///
/// # Errors
/// The session is over; the guest has been told why.
pub(super) fn run(
    guest: &mut Guest<'_>,
    parts: Parts<'_>,
    request: FrameHeader,
    job: VectorAdd,
) -> Result<(), SessionEnd> {
    let Some(handle) = parts.far.streams().mint() else {
        // There is one request at a time.
        return Err(SessionEnd::ExecutorLost("no stream handle is free".into()));
    };
    let ours = parts
        .far
        .request(Op::VectorAdd)
        .with_flags(Flags::MORE)
        .with_handle(handle)
        .with_deadline_ms(request.deadline_ms);
    let body = job.encode();
    // 16 bytes.
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    parts.far.queue(&ours.with_body_len(len), &body);
    let mut passing = Passing {
        parts,
        request,
        ours,
        elements: job.elements,
        input: Input::new(&job),
        results: job.chunks(),
        computable: 0,
        sending: None,
        scrap: 0,
        far_input_ended: false,
        outcome: None,
        failure: None,
        began: Instant::now(),
        wants: Wants::default(),
    };
    let stopped = passing.drive(guest).err();
    // What the guest still sends of a frame belongs to nobody.
    guest.wire.discard(passing.parts.forth.abandon());
    let lost = match stopped {
        None => None,
        Some(Stopped::Near(end)) => {
            passing.parts.far.cut();
            passing.complete_result(guest);
            return Err(end);
        }
        Some(Stopped::Far(lost)) => {
            passing.complete_result(guest);
            passing.failure = Some((lost.code.into(), lost.text.clone()));
            Some(lost)
        }
    };
    passing.parts.far.streams().release(handle);
    guest.counters.worked(0, passing.device_ns());
    let reply = passing.reply();
    let verdict = guest
        .rules
        .finish(&request, passing.input.has_ended(), reply);
    guest.obey(verdict)?;
    match lost {
        None => Ok(()),
        Some(lost) => Err(super::give_up(guest, &lost)),
    }
}

impl Passing<'_> {
    /// Moves bytes until the request is over on both sides.
    fn drive(&mut self, guest: &mut Guest<'_>) -> Result<(), Stopped> {
        let mut patience = guest.patience(&self.request);
        guest.wire.progress();
        loop {
            self.wants = Wants::default();
            let mut moved = self.send_to_guest(guest)?;
            moved |= self.take_from_guest(guest)?;
            moved |= self.send_to_far()?;
            moved |= self.take_from_far(guest)?;
            if self.is_over() {
                return Ok(());
            }
            if moved {
                guest.wire.progress();
                self.parts.waiting.progress();
                continue;
            }
            let is_guests = self.wants.near_write || (self.wants.near_read && self.is_flowing());
            // The guest counts the same time: it should hear why before it gives up itself.
            let patience_now = match is_guests {
                true => patience,
                false => patience * SHARE.0 / SHARE.1,
            };
            let deadline = guest.wire.moved_at() + patience_now;
            if wait_for_both(
                guest,
                self.parts.far,
                self.parts.waiting,
                self.wants,
                deadline,
            )? {
                continue;
            }
            if !is_guests {
                return Err(self.parts.far.hung(patience_now).into());
            }
            let text = format!(
                "nothing moved for {} ms in the middle of a vector add",
                patience_now.as_millis()
            );
            if self.failure.is_some() {
                return Err(SessionEnd::TimedOut(text).into());
            }
            // The request ends here; the other mediator gets time to see its end.
            self.fail(guest, ErrorCode::Timeout.into(), text);
            patience = guest.settings.stall_timeout;
            guest.wire.progress();
        }
    }

    /// Whether the request has not failed.
    fn is_flowing(&self) -> bool {
        self.failure.is_none()
    }

    /// Whether nothing is left but the final reply, and the other mediator waits for a request.
    fn is_over(&self) -> bool {
        self.outcome.is_some()
            && self.far_input_ended
            && self.parts.far.is_sent()
            && self.parts.forth.is_written()
            && self.sending.is_none()
    }

    /// Gives up; what was begun is brought to its end.
    fn fail(&mut self, guest: &mut Guest<'_>, status: Status, text: String) {
        self.failure.get_or_insert((status, text));
        guest.wire.discard(self.parts.forth.abandon());
    }

    /// The time that the other mediator's device worked, by its own account, and not longer than
    /// the request took: it goes into the guest's account here.
    fn device_ns(&self) -> u64 {
        let elapsed = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.outcome.unwrap_or(0).min(elapsed)
    }

    fn reply(&self) -> Reply {
        match &self.failure {
            Some((status, text)) => Reply::error(&self.request, *status, text),
            None => {
                let body = VectorAddReply {
                    elements: self.elements,
                    device_ns: self.device_ns(),
                };
                Reply::ok(&self.request, body.encode())
            }
        }
    }
}

fn has_moved(step: Step) -> bool {
    step.read > 0 || step.written > 0
}
