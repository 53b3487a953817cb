//! A session's bytes on their way: the transport, what was received in part, what waits to go out.
//!
//! Nothing here waits but [`Wire::wait`] and [`Wire::close`], which take a deadline.

use std::time::{Duration, Instant};

use vgpu_protocol::clock;
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::{Interest, Transport, TransportError};

use super::SessionEnd;
use super::inbox::{Event, Inbox};
use super::outbox::{Outbox, Reply};
use super::vector_add::Running;
use crate::usage::Counters;

/// Time for the last frames and the close of the transport.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// A peer that wakes this thread this often without moving a byte is slowed down from there on.
const FRUITLESS_WAKES: u32 = 64;

/// Bytes of a body that nobody wants, taken at once.
const SCRAP: usize = 64 << 10;

/// The moving parts below a session's rules.
pub(crate) struct Wire<'a, T: Transport + ?Sized> {
    transport: &'a mut T,
    counters: &'a Counters,
    inbox: Inbox,
    outbox: Outbox,
    scrap: Vec<u8>,
    scrap_left: usize,
    unflushed: bool,
    /// Nothing can be sent any more: the guest is gone, or a frame cannot be completed.
    cut: bool,
    moved_at: Instant,
    fruitless: u32,
}

impl<'a, T: Transport + ?Sized> Wire<'a, T> {
    pub(crate) fn new(transport: &'a mut T, counters: &'a Counters) -> Self {
        Self {
            transport,
            counters,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            scrap: vec![0; SCRAP],
            scrap_left: 0,
            unflushed: false,
            cut: false,
            moved_at: clock::now(),
            fruitless: 0,
        }
    }

    /// Queues a reply; errors are counted.
    pub(crate) fn answer(&mut self, reply: &Reply) {
        if !reply.status().is_ok() {
            self.counters.failure();
        }
        self.outbox.push(reply);
    }

    /// Queues the mediator's own last word, which is no answer.
    pub(crate) fn say_last(&mut self, code: ErrorCode, text: &str) {
        self.outbox.push(&Reply::closing(code.into(), text));
    }

    /// Whether no reply waits.
    pub(crate) fn is_sent(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether further requests may be read; see [`super::outbox::CAPACITY`].
    pub(crate) fn may_read(&self) -> bool {
        !self.outbox.is_full()
    }

    /// Whether a frame has begun in either direction and is not complete.
    pub(crate) fn is_in_frame(&self) -> bool {
        self.inbox.is_partial() || self.scrap_left > 0 || !self.outbox.is_empty()
    }

    /// When the last byte moved.
    pub(crate) fn moved_at(&self) -> Instant {
        self.moved_at
    }

    /// Bytes have moved, or the device has worked.
    pub(crate) fn progress(&mut self) {
        self.moved_at = clock::now();
        self.fruitless = 0;
    }

    /// The next `bytes` bytes are of no use.
    pub(crate) fn discard(&mut self, bytes: usize) {
        self.scrap_left += bytes;
    }

    /// Whether useless bytes are still to come.
    pub(crate) fn is_discarding(&self) -> bool {
        self.scrap_left > 0
    }

    /// Takes useless bytes. Returns whether there were any.
    pub(crate) fn read_scrap(&mut self) -> Result<bool, SessionEnd> {
        let room = self.scrap_left.min(self.scrap.len());
        let received = self.transport.try_read(&mut self.scrap[..room]);
        let Some(n) = self.received(received, true)? else {
            return Ok(false);
        };
        self.scrap_left -= n;
        Ok(true)
    }

    /// Takes bytes of a frame; `None` if there were none.
    pub(crate) fn read_event(&mut self, in_request: bool) -> Result<Option<Event>, SessionEnd> {
        let received = self.transport.try_read(self.inbox.unfilled());
        let in_request = in_request || self.inbox.is_partial();
        let Some(n) = self.received(received, in_request)? else {
            return Ok(None);
        };
        self.inbox.advance(n).map(Some).map_err(|error| {
            let text = error.to_string();
            self.answer(&Reply::closing(ErrorCode::Protocol.into(), &text));
            SessionEnd::GuestFault(text)
        })
    }

    /// Takes bytes of a chunk straight into the pipeline. Returns whether there were any, and room.
    pub(crate) fn read_chunk(&mut self, running: &mut Running<'_>) -> Result<bool, SessionEnd> {
        let Some(buffer) = running.unfilled() else {
            return Ok(false);
        };
        let received = self.transport.try_read(buffer);
        let Some(n) = self.received(received, true)? else {
            return Ok(false);
        };
        running.advance(n);
        Ok(true)
    }

    fn received(
        &mut self,
        result: Result<Option<usize>, TransportError>,
        in_request: bool,
    ) -> Result<Option<usize>, SessionEnd> {
        match result {
            Ok(None) => Ok(None),
            Ok(Some(0)) => {
                self.cut = true;
                Err(SessionEnd::GuestClosed(in_request))
            }
            Ok(Some(n)) => {
                self.counters.received(n);
                Ok(Some(n))
            }
            Err(error) => Err(self.failed(error, in_request)),
        }
    }

    /// Sends replies, or the result that `running` has ready. Returns whether bytes moved.
    ///
    /// A frame that has begun is completed before another.
    pub(crate) fn send(&mut self, running: Option<&mut Running<'_>>) -> Result<bool, SessionEnd> {
        let result = running.and_then(|running| {
            let turn =
                running.is_writing() || (self.outbox.is_empty() && running.begin_result(None));
            turn.then_some(running)
        });
        let Some(running) = result else {
            if self.outbox.is_empty() {
                return Ok(false);
            }
            let sent = self.transport.try_write(self.outbox.unsent());
            let sent = self.sent(sent)?;
            self.outbox.advance(sent);
            return Ok(sent > 0);
        };
        let unsent = match running.unsent() {
            Ok(unsent) => unsent,
            Err(error) => {
                self.cut = true;
                return Err(SessionEnd::ExecutorLost(error.to_string()));
            }
        };
        let sent = self.transport.try_write(unsent);
        let sent = self.sent(sent)?;
        self.counters.worked(running.sent(sent), 0);
        Ok(sent > 0)
    }

    fn sent(&mut self, result: Result<usize, TransportError>) -> Result<usize, SessionEnd> {
        let n = result.map_err(|error| self.failed(error, true))?;
        self.note_sent(n);
        Ok(n)
    }

    /// The transport itself, for who moves the bytes of a frame; see
    /// [`note_sent`](Self::note_sent).
    pub(crate) fn transport(&mut self) -> &mut T {
        self.transport
    }

    /// Notes `n` bytes that were written to the [`transport`](Self::transport).
    pub(crate) fn note_sent(&mut self, n: usize) {
        self.counters.sent(n);
        self.unflushed |= n > 0;
    }

    /// Writes what fits of `bytes`, a part of a frame; returns how many.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, SessionEnd> {
        let sent = self.transport.try_write(bytes);
        self.sent(sent)
    }

    /// A frame cannot be completed: nothing can follow it.
    pub(crate) fn cut(&mut self) {
        self.cut = true;
    }

    /// What a failure of the transport means for the session.
    pub(crate) fn failed(&mut self, error: TransportError, in_request: bool) -> SessionEnd {
        self.cut = true;
        match error {
            TransportError::Closed => SessionEnd::GuestClosed(in_request),
            TransportError::PeerViolation(what) => SessionEnd::GuestFault(what),
            other => SessionEnd::Transport(other),
        }
    }

    /// Waits until bytes may move; false once `deadline` has passed.
    pub(crate) fn wait(
        &mut self,
        read: bool,
        write: bool,
        deadline: Instant,
    ) -> Result<bool, SessionEnd> {
        self.wait_by(read, write, deadline, |transport, interest| {
            transport.wait(interest.unwrap_or(Interest::Read), deadline)
        })
    }

    /// [`wait`](Self::wait) by another way to sleep, which is told what the guest is waited for.
    pub(crate) fn wait_by(
        &mut self,
        read: bool,
        write: bool,
        deadline: Instant,
        sleep: impl FnOnce(&mut T, Option<Interest>) -> Result<(), TransportError>,
    ) -> Result<bool, SessionEnd> {
        if clock::now() >= deadline {
            return Ok(false);
        }
        if self.unflushed {
            self.unflushed = false;
            match self.transport.flush(deadline) {
                Ok(()) => {}
                Err(TransportError::TimedOut(_)) => return Ok(false),
                Err(error) => return Err(self.failed(error, true)),
            }
        }
        if self.fruitless > FRUITLESS_WAKES {
            std::thread::sleep(Duration::from_millis(1));
        }
        let interest = match (read, write) {
            (true, true) => Some(Interest::ReadOrWrite),
            (false, true) => Some(Interest::Write),
            (true, false) => Some(Interest::Read),
            (false, false) => None,
        };
        match sleep(self.transport, interest) {
            Ok(()) => {
                self.fruitless = self.fruitless.saturating_add(1);
                Ok(true)
            }
            Err(TransportError::TimedOut(_)) => Ok(false),
            Err(error) => Err(self.failed(error, true)),
        }
    }

    /// Completes a result frame that was sent in part, so that a last word can follow it.
    pub(crate) fn complete_frame(&mut self, running: &mut Running<'_>) {
        let deadline = Instant::now() + CLOSING_TIME;
        while running.is_writing() && !self.cut {
            let sent = self.send(Some(running));
            self.wait_to_send(sent, deadline);
        }
    }

    /// Sends the last replies if the guest takes them, and closes.
    pub(crate) fn close(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        while !self.outbox.is_empty() && !self.cut {
            let sent = self.send(None);
            self.wait_to_send(sent, deadline);
        }
        if let Err(error) = self.transport.close(deadline) {
            log::debug!("closing {}: {error}", self.transport.describe());
        }
    }

    fn wait_to_send(&mut self, sent: Result<bool, SessionEnd>, deadline: Instant) {
        match sent {
            Ok(true) => {}
            Ok(false) => match self.wait(false, true, deadline) {
                Ok(true) => {}
                Ok(false) | Err(_) => self.cut = true,
            },
            Err(_) => self.cut = true,
        }
    }
}
