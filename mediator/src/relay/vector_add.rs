//! One vector add on its way through: the guest's chunks go on, the results come back.
//!
//! Both directions move at once. A Data frame of the guest is checked as if it were for an executor
//! here, then announced to the other mediator under a request of our own, and only then is its body
//! passed on. A result must answer that request, be the chunk that is due, and not come before its
//! input; the guest gets it under its own request.
//!
//! A request that fails on one side is brought to an orderly end on the other: frames that have
//! begun are completed, with zeros where bytes will not come, so that both sessions can go on.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::message::{Chunks, Op, VectorAdd, VectorAddReply};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_protocol::transport::{Transport, TransportError};

use super::body::{Body, Failed, Step};
use super::far::{Far, Lost};
use super::stream::{Stream, Waiting};
use super::{Guest, SHARE, wait_for_both};
use crate::session::SessionEnd;
use crate::session::inbox::Event;
use crate::session::input::Input;
use crate::session::outbox::Reply;

/// Time to complete a frame for a guest whose request is lost.
const COMPLETING: Duration = Duration::from_secs(2);

/// Bytes of an element of the result.
const ELEMENT: usize = 4;

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

    /// Replies that wait, or a result.
    fn send_to_guest(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
        let Some(sending) = &mut self.sending else {
            if guest.wire.is_sent() {
                return Ok(false);
            }
            let sent = guest.wire.send(None)?;
            self.wants.near_write |= !sent;
            return Ok(sent);
        };
        // What waited before the result goes first.
        if sending.sent == 0 && !guest.wire.is_sent() {
            let sent = guest.wire.send(None)?;
            self.wants.near_write |= !sent;
            return Ok(sent);
        }
        if sending.sent < HEADER_LEN {
            let n = guest.wire.write(&sending.header[sending.sent..])?;
            sending.sent += n;
            self.wants.near_write |= n == 0;
            return Ok(n > 0);
        }
        let step = match self
            .parts
            .back
            .pass(&mut self.parts.far.stream, guest.wire.transport())
        {
            Ok(step) => step,
            Err(Failed::From(error)) => return Err(self.parts.far.failed(error).into()),
            Err(Failed::To(error)) => return Err(guest.wire.failed(error, true).into()),
        };
        guest.wire.note_sent(step.written);
        self.wants.far_read |= step.starved;
        self.wants.near_write |= step.full;
        if self.parts.back.is_written() {
            self.parts.far.body_read();
            guest.counters.worked(sending.elements, 0);
            self.sending = None;
        }
        Ok(has_moved(step))
    }

    /// The guest's input, or other requests that came in between.
    fn take_from_guest(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
        if !guest.wire.may_read() || !self.is_flowing() {
            return Ok(false);
        }
        if guest.wire.is_discarding() {
            let read = guest.wire.read_scrap()?;
            self.wants.near_read |= !read;
            return Ok(read);
        }
        if !self.parts.forth.is_written() {
            // Its header goes first.
            if !self.parts.far.is_sent() {
                return Ok(false);
            }
            let near = guest.wire.transport();
            let step = match self.parts.forth.pass(near, &mut self.parts.far.stream) {
                Ok(step) => step,
                Err(Failed::From(error)) => return Err(guest.wire.failed(error, true).into()),
                // It may have said why.
                Err(Failed::To(TransportError::Closed)) => {
                    return Err(self.parts.far.last_words().into());
                }
                Err(Failed::To(error)) => return Err(self.parts.far.failed(error).into()),
            };
            guest.counters.received(step.read);
            self.wants.near_read |= step.starved;
            self.wants.far_write |= step.full;
            if self.parts.forth.is_written() {
                self.computable += 1;
            }
            return Ok(has_moved(step));
        }
        if self.input.has_ended() {
            return Ok(false);
        }
        match guest.next_data(&self.request)? {
            None => {
                self.wants.near_read = true;
                return Ok(false);
            }
            Some(None) => {}
            Some(Some(header)) => self.begin_data(guest, &header),
        }
        Ok(true)
    }

    /// Announces the guest's next Data frame to the other mediator, if it is what is due.
    fn begin_data(&mut self, guest: &mut Guest<'_>, header: &FrameHeader) {
        let len = header.body_len as usize;
        match self.input.expect(len, header.has_more()) {
            Ok(_) => {
                let data = FrameHeader::data_for(&self.ours, header.body_len, header.has_more());
                self.parts.far.queue(&data, &[]);
                self.far_input_ended |= !header.has_more();
                self.parts.forth.begin(len);
            }
            Err((code, text)) => {
                self.fail(guest, code.into(), text);
                guest.wire.discard(len);
            }
        }
    }

    /// Frame headers, and what ends the input of a request that has failed.
    fn send_to_far(&mut self) -> Result<bool, Stopped> {
        let mut moved = false;
        if !self.parts.far.is_sent() {
            moved = self.parts.far.send()? > 0;
            self.wants.far_write |= !moved;
        }
        if self.is_flowing() || !self.parts.far.is_sent() {
            return Ok(moved);
        }
        if !self.parts.forth.is_written() {
            let padded = self.parts.forth.pad(&mut self.parts.far.stream);
            let padded = padded.map_err(|error| self.parts.far.failed(error))?;
            self.wants.far_write |= padded == 0;
            moved |= padded > 0;
        } else if !self.far_input_ended {
            let end = FrameHeader::data_for(&self.ours, 0, false);
            self.parts.far.queue(&end, &[]);
            self.far_input_ended = true;
            moved = true;
        }
        Ok(moved)
    }

    /// Results and the final reply.
    fn take_from_far(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
        if self.sending.is_some() || self.outcome.is_some() {
            return Ok(false);
        }
        if self.scrap > 0 {
            return self.read_scrap();
        }
        let Some(event) = self.parts.far.read_event()? else {
            self.wants.far_read = true;
            return Ok(false);
        };
        match event {
            Event::None => {}
            Event::Data(header) => self.begin_result(&header)?,
            Event::Frame(header, body) => {
                if let Some((status, text)) = self.finish(&header, &body)? {
                    self.fail(guest, status, text);
                }
            }
        }
        Ok(true)
    }

    fn read_scrap(&mut self) -> Result<bool, Stopped> {
        let mut bytes = [0; 4096];
        let room = self.scrap.min(bytes.len());
        match self.parts.far.stream.try_read(&mut bytes[..room]) {
            Ok(None) => {
                self.wants.far_read = true;
                Ok(false)
            }
            Ok(Some(0)) => Err(self.parts.far.failed(TransportError::Closed).into()),
            Ok(Some(n)) => {
                self.scrap -= n;
                if self.scrap == 0 {
                    self.parts.far.body_read();
                }
                Ok(true)
            }
            Err(error) => Err(self.parts.far.failed(error).into()),
        }
    }

    /// Checks the header of a result and announces it to the guest.
    fn begin_result(&mut self, header: &FrameHeader) -> Result<(), Lost> {
        let Some(elements) = self.results.next().filter(|_| self.computable > 0) else {
            return Err(self
                .parts
                .far
                .violates("sends a result that cannot be there yet"));
        };
        self.computable -= 1;
        let len = elements as usize * ELEMENT;
        // At most half of a body that was allowed.
        let body_len = u32::try_from(len).unwrap_or(u32::MAX);
        let due = FrameHeader::data_reply_to(&self.ours, body_len);
        if *header != due {
            let what = format!(
                "sends {} bytes for request {} where {} bytes for request {} are due",
                header.body_len, header.request_id, due.body_len, due.request_id
            );
            return Err(self.parts.far.violates(&what));
        }
        if !self.is_flowing() {
            self.scrap = len;
            return Ok(());
        }
        self.parts.back.begin(len);
        self.sending = Some(Sending {
            header: FrameHeader::data_reply_to(&self.request, body_len).encode(),
            sent: 0,
            elements: elements.into(),
        });
        Ok(())
    }

    /// Takes the other mediator's final reply; gives what failed, if something did.
    fn finish(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
    ) -> Result<Option<(Status, String)>, Lost> {
        let far = &mut *self.parts.far;
        let status = far.check_reply(header, body, &self.ours)?;
        if !status.is_ok() {
            self.outcome = Some(0);
            let text = decode_error_text(body);
            let place = far.place();
            if let Status::Mediator(
                ErrorCode::BackendLost
                | ErrorCode::Protocol
                | ErrorCode::Denied
                | ErrorCode::Version
                | ErrorCode::Handle,
            ) = status
            {
                // Its session is over, or it does not understand us.
                let what = format!("gave up: {text} ({status})");
                return Err(Lost::new(place, &what, "connect again"));
            }
            return Ok(Some((status, format!("{text} (at {place})"))));
        }
        let reply = VectorAddReply::decode(body).ok();
        let whole = reply
            .as_ref()
            .is_some_and(|reply| reply.elements == self.elements);
        let all = self.far_input_ended
            && far.is_sent()
            && self.parts.forth.is_written()
            && self.results.elements_left() == 0;
        if !whole || !all {
            return Err(far.violates("says that it is done, and is not"));
        }
        self.outcome = reply.map(|reply| reply.device_ns);
        Ok(None)
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

    /// Completes a result frame that the guest has in part, so that the reason can follow it.
    fn complete_result(&mut self, guest: &mut Guest<'_>) {
        let Some(sending) = self.sending.take() else {
            return;
        };
        if sending.sent == 0 {
            return;
        }
        let deadline = Instant::now() + COMPLETING;
        let mut header = &sending.header[sending.sent..];
        self.parts.back.abandon();
        while !header.is_empty() || !self.parts.back.is_written() {
            let written = match header.is_empty() {
                false => guest.wire.write(header).inspect(|n| header = &header[*n..]),
                true => guest.wire.pad(self.parts.back),
            };
            let go_on = match written {
                Ok(0) => guest.wire.wait(false, true, deadline),
                Ok(_) => Ok(true),
                Err(end) => Err(end),
            };
            if !matches!(go_on, Ok(true)) {
                guest.wire.cut();
                return;
            }
        }
    }
}

fn has_moved(step: Step) -> bool {
    step.read > 0 || step.written > 0
}

impl crate::session::wire::Wire<'_, Stream> {
    /// Completes a body with zeros.
    fn pad(&mut self, body: &mut Body) -> Result<usize, SessionEnd> {
        let padded = body.pad(self.transport() as &mut dyn Transport);
        let n = padded.map_err(|error| self.failed(error, true))?;
        self.note_sent(n);
        Ok(n)
    }
}
