//! The way back: results and the final reply to the guest.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::message::VectorAddReply;
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_protocol::transport::{Transport, TransportError};

use super::super::Guest;
use super::super::body::{Body, Failed};
use super::super::far::Lost;
use super::super::stream::Stream;
use super::{Passing, Sending, Stopped, has_moved};
use crate::session::SessionEnd;
use crate::session::inbox::Event;

/// Time to complete a frame for a guest whose request is lost.
const COMPLETING: Duration = Duration::from_secs(2);

/// Bytes of an element of the result.
const ELEMENT: usize = 4;

impl Passing<'_> {
    /// Replies that wait, or a result.
    pub(super) fn send_to_guest(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
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

    /// Results and the final reply.
    pub(super) fn take_from_far(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
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

    /// Completes a result frame that the guest has in part, so that the reason can follow it.
    pub(super) fn complete_result(&mut self, guest: &mut Guest<'_>) {
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

impl crate::session::wire::Wire<'_, Stream> {
    /// Completes a body with zeros.
    fn pad(&mut self, body: &mut Body) -> Result<usize, SessionEnd> {
        let padded = body.pad(self.transport() as &mut dyn Transport);
        let n = padded.map_err(|error| self.failed(error, true))?;
        self.note_sent(n);
        Ok(n)
    }
}
