//! The way there: the guest's input to the other mediator.

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::transport::TransportError;

use super::super::Guest;
use super::super::body::Failed;
use super::{Passing, Stopped, has_moved};

impl Passing<'_> {
    /// The guest's input, or other requests that came in between.
    pub(super) fn take_from_guest(&mut self, guest: &mut Guest<'_>) -> Result<bool, Stopped> {
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
    pub(super) fn send_to_far(&mut self) -> Result<bool, Stopped> {
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
}
