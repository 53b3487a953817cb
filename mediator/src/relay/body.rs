//! The body of one Data frame on its way from one stream to the other.
//!
//! Its length was checked before it begins. Between two rings the bytes are copied once, from the
//! one into the other; where a stream is no ring they take one more step through a buffer of
//! [`BOUNCE`] bytes.

use vchan::Channel;
use vgpu_protocol::transport::{Transport, TransportError};

use super::stream::Stream;

/// Bytes copied between two looks at the other direction, and of the buffer in between.
const BOUNCE: usize = 64 << 10;

/// What takes the place of bytes that will not come.
static ZEROS: [u8; 4096] = [0; 4096];

/// A body that is being passed on, or none.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Bytes still to be read from the one side.
    unread: usize,
    /// Bytes still to be written to the other.
    unwritten: usize,
    /// Made when it is first needed.
    bounce: Vec<u8>,
    /// Bytes of `bounce` that were written already, and that were read.
    filled: (usize, usize),
}

/// What one step has done, and why it did not do more.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes read.
    pub(super) read: usize,
    /// Bytes written.
    pub(super) written: usize,
    /// There was nothing to read.
    pub(super) starved: bool,
    /// There was no room to write.
    pub(super) full: bool,
}

/// Which side failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The side that is read; [`TransportError::Closed`] also where its stream ends.
    From(TransportError),
    /// The side that is written.
    To(TransportError),
}

impl Body {
    /// The next `len` bytes that are read are a body. The one before must be complete.
    pub(super) fn begin(&mut self, len: usize) {
        debug_assert!(self.is_written());
        (self.unread, self.unwritten) = (len, len);
        self.filled = (0, 0);
    }

    /// Whether nothing of it is missing on the other side.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten == 0
    }

    /// Moves bytes, at most [`BOUNCE`] of them, without waiting.
    pub(super) fn pass(&mut self, from: &mut Stream, to: &mut Stream) -> Result<Step, Failed> {
        let mut step = Step::default();
        if self.filled.0 == self.filled.1 && !from.may_read().map_err(Failed::From)? {
            step.starved = true;
            return Ok(step);
        }
        if !to.may_write().map_err(Failed::To)? {
            step.full = true;
            return Ok(step);
        }
        if let (Stream::Channel(from), Stream::Channel(to)) = (&mut *from, &mut *to) {
            return self.pass_between_rings(from, to);
        }
        if self.filled.0 == self.filled.1 && self.unread > 0 {
            self.bounce.resize(BOUNCE, 0);
            let room = self.unread.min(BOUNCE);
            match from
                .try_read(&mut self.bounce[..room])
                .map_err(Failed::From)?
            {
                None => step.starved = true,
                Some(0) => return Err(Failed::From(TransportError::Closed)),
                Some(n) => {
                    self.filled = (0, n);
                    self.unread -= n;
                    step.read = n;
                }
            }
        }
        let (start, end) = self.filled;
        if start < end {
            let n = to.try_write(&self.bounce[start..end]).map_err(Failed::To)?;
            self.filled.0 += n;
            self.unwritten -= n;
            step.written = n;
            step.full = n == 0;
        }
        Ok(step)
    }

    fn pass_between_rings(&mut self, from: &mut Channel, to: &mut Channel) -> Result<Step, Failed> {
        let from_failed = |error: vchan::Error| Failed::From(error.into());
        let to_failed = |error: vchan::Error| Failed::To(error.into());
        let mut step = Step::default();
        let Some(bytes) = from.try_peek(1).map_err(from_failed)? else {
            step.starved = true;
            return Ok(step);
        };
        if bytes.is_empty() {
            return Err(Failed::From(TransportError::Closed));
        }
        let Some(mut room) = to.try_reserve(1).map_err(to_failed)? else {
            step.full = true;
            return Ok(step);
        };
        let n = room.copy_from_peer(bytes.up_to(self.unread.min(BOUNCE)));
        to.commit(n).map_err(to_failed)?;
        from.consume(n).map_err(from_failed)?;
        self.unread -= n;
        self.unwritten -= n;
        (step.read, step.written) = (n, n);
        Ok(step)
    }

    /// Gives up what is still to be read; returns how many bytes that are. The rest of the frame is
    /// then for [`pad`](Self::pad).
    pub(super) fn abandon(&mut self) -> usize {
        self.filled = (0, 0);
        std::mem::take(&mut self.unread)
    }

    /// Completes an abandoned body with zeros, so that another frame can follow it; returns how
    /// many bytes were written. Its request has failed: nobody uses them.
    pub(super) fn pad(&mut self, to: &mut dyn Transport) -> Result<usize, TransportError> {
        debug_assert_eq!(self.unread, 0);
        let mut done = 0;
        while self.unwritten > 0 && done < BOUNCE {
            let n = to.try_write(&ZEROS[..self.unwritten.min(ZEROS.len())])?;
            if n == 0 {
                break;
            }
            self.unwritten -= n;
            done += n;
        }
        Ok(done)
    }
}
