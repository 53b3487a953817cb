//! A transport for tests of the session alone: a script of bytes in, a record of bytes out.

use std::time::Instant;

use vgpu_protocol::transport::{Interest, Transport, TransportError};

/// What the guest does once the script is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtEnd {
    /// It closes the stream.
    Closes,
    /// It stays, and says nothing more.
    Stalls,
}

/// Delivers the script in portions and takes replies in portions.
#[derive(Debug)]
pub(super) struct Scripted {
    pub(super) input: Vec<u8>,
    pub(super) read: usize,
    pub(super) output: Vec<u8>,
    pub(super) portion: usize,
    pub(super) at_end: AtEnd,
    /// Every other call moves nothing, as on a busy ring.
    pub(super) turn: bool,
    /// Bytes of output after which the guest takes no more.
    pub(super) takes_at_most: usize,
    pub(super) closed: bool,
}

impl Scripted {
    pub(super) fn new(input: Vec<u8>, portion: usize, at_end: AtEnd) -> Self {
        Self {
            input,
            read: 0,
            output: Vec::new(),
            portion,
            at_end,
            turn: false,
            takes_at_most: usize::MAX,
            closed: false,
        }
    }
}

impl Transport for Scripted {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        assert!(
            !buf.is_empty(),
            "a read into nothing looks like the end of the stream"
        );
        self.turn = !self.turn;
        let left = &self.input[self.read..];
        if left.is_empty() {
            return Ok((self.at_end == AtEnd::Closes).then_some(0));
        }
        if self.turn {
            return Ok(None);
        }
        let n = left.len().min(self.portion).min(buf.len());
        buf[..n].copy_from_slice(&left[..n]);
        self.read += n;
        Ok(Some(n))
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        assert!(!self.closed, "nothing is written after the close");
        let room = self.takes_at_most.saturating_sub(self.output.len());
        let n = buf.len().min(self.portion).min(room);
        self.output.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn wait(&mut self, _: Interest, deadline: Instant) -> Result<(), TransportError> {
        if self.read < self.input.len() || self.at_end == AtEnd::Closes {
            return Ok(());
        }
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        Err(TransportError::TimedOut("test"))
    }

    fn flush(&mut self, _: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn close(&mut self, _: Instant) -> Result<(), TransportError> {
        self.closed = true;
        Ok(())
    }

    fn describe(&self) -> String {
        "a script".to_owned()
    }
}
