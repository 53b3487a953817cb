//! The session with the other mediator: this worker is its guest.
//!
//! It is trusted with the work, not with the guest: whatever it sends is checked against what it was
//! asked, by the same [`Client`] that guests use, and what does not fit ends the session.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Goodbye, HelloReply, Info, InfoReply, Op, Operation, Request};
use vgpu_protocol::session::after_rest;
use vgpu_protocol::session::client::{Client, Event, NotSent, Violation};
use vgpu_protocol::session::server::Terms;
use vgpu_protocol::status::decode_error_text;
use vgpu_transport::clock;
use vgpu_transport::{Interest, Transport, TransportError};

use super::lost::Lost;
use crate::session::Stream;

/// Time for the last frame and the close.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// Bytes of requests that wait for room, above which no further one should be taken.
const PLENTY: usize = 64 << 10;

/// An open session.
pub(super) struct FarSession {
    stream: Stream,
    client: Client,
    /// Its endpoint, as the administrator wrote it.
    place: String,
    hello: HelloReply,
    info: InfoReply,
    /// When a byte last moved, either way.
    moved: Instant,
    /// Since when something waits to be sent.
    unsent_since: Option<Instant>,
    /// Written and, as far as is known, still in the stream's own buffer.
    unflushed: bool,
    /// It takes nothing any more; it may have said why.
    send_closed: bool,
    /// Nothing can be said any more.
    cut: bool,
}

impl FarSession {
    /// Says Hello on a fresh stream and asks what there is.
    ///
    /// # Errors
    /// The other mediator refuses, is not a mediator, or does not answer until `deadline`.
    pub(super) fn open(stream: Stream, place: &str, deadline: Instant) -> Result<Self, Lost> {
        let name = concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION"), " (relay)");
        let mut opening = Opening {
            stream,
            client: Client::new(name, deadline.saturating_duration_since(Instant::now())),
            place,
            began: clock::now(),
            deadline,
        };
        let hello = opening.answer::<vgpu_protocol::op::Hello>()?;
        let header = opening.client.next_header(Op::Info);
        opening
            .client
            .request(header, &Info {}.into())
            .expect("nothing else is under way");
        let info = opening.answer::<Info>()?;
        Ok(Self {
            stream: opening.stream,
            client: opening.client,
            place: place.to_owned(),
            hello,
            info,
            moved: clock::now(),
            unsent_since: None,
            unflushed: false,
            send_closed: false,
            cut: false,
        })
    }

    /// Its endpoint, as the administrator wrote it.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Its limits and features.
    pub(super) fn terms(&self) -> Terms {
        let hello = &self.hello;
        Terms {
            max_lanes: hello.max_lanes,
            max_requests: hello.max_requests,
            max_handles: hello.max_handles,
            initial_credit: hello.initial_credit,
            features: hello.features,
        }
    }

    /// Its own answer to Info, at the start.
    pub(super) fn info(&self) -> &InfoReply {
        &self.info
    }

    /// The answer to Info for guests, where this is the one of the mediator there.
    pub(super) fn describe(&self, info: InfoReply) -> InfoReply {
        let reason = format!("{} at {}: {}", info.executor, self.place, info.reason);
        InfoReply {
            executor: "relay".into(),
            reason: reason.as_str().into(),
            mediator: concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION")).into(),
            ..info
        }
    }

    /// When a byte last moved, either way.
    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// Since when something waits to be sent, if so.
    pub(super) fn unsent_since(&self) -> Option<Instant> {
        self.unsent_since
    }

    /// This side did not run for so long, until `now`.
    pub(super) fn rested(&mut self, rest: Duration, now: Instant) {
        self.moved = after_rest(self.moved, rest, now);
        let unsent = &mut self.unsent_since;
        *unsent = unsent.map(|since| after_rest(since, rest, now));
    }

    /// Whether there is room for another request.
    pub(super) fn has_room(&self) -> bool {
        self.client.outbox().len() <= PLENTY
    }

    /// Queues a request under a header of the guest's.
    ///
    /// # Errors
    /// It cannot be sent now.
    pub(super) fn request(
        &mut self,
        header: &FrameHeader,
        request: &Request,
    ) -> Result<(), NotSent> {
        self.client.request(*header, request)?;
        self.note_unsent();
        Ok(())
    }

    /// How many bytes of a request's data may begin to be sent now.
    pub(super) fn may_send(&self, id: u32) -> usize {
        self.client.may_send(id)
    }

    /// How many it has granted.
    pub(super) fn credit(&self, id: u32) -> u64 {
        self.client.credit(id)
    }

    /// Begins a frame of `len` bytes of a request's data, which are at hand.
    pub(super) fn begin_up(&mut self, id: u32, len: usize) {
        self.client.begin_up(id, len);
        self.note_unsent();
    }

    /// Tells it that no more of a request's data comes.
    pub(super) fn end_early(&mut self, id: u32) {
        self.client.end_early(id);
        self.note_unsent();
    }

    /// The frame of data that is being sent: whose it is, and how many bytes are left.
    pub(super) fn sending(&self) -> Option<(u32, usize)> {
        self.client.outbox().data()
    }

    /// Sends what is queued, then `body`, the next bytes of the frame of data that is being sent;
    /// `None` when nothing could be sent. Returns how many bytes of the body were, and whose.
    pub(super) fn send(&mut self, body: &[u8]) -> Result<Option<(u32, usize)>, Lost> {
        let parts = [self.client.outbox().unsent(), body];
        if self.send_closed || parts.iter().all(|part| part.is_empty()) {
            return Ok(None);
        }
        let n = match self.stream.try_write_parts(&parts) {
            Ok(n) => n,
            Err(TransportError::Closed) => {
                self.send_closed = true;
                return Ok(None);
            }
            Err(error) => return Err(self.failed(&error)),
        };
        if n == 0 {
            return Ok(None);
        }
        self.moved = clock::now();
        self.unflushed = true;
        let sent = self.client.sent(n);
        if self.client.outbox().is_empty() {
            self.unsent_since = None;
        }
        Ok(Some(sent.unwrap_or((0, 0))))
    }

    /// Has the stream give away what it has gathered, as far as there is room.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        if !self.unflushed || self.send_closed {
            return Ok(());
        }
        match self.stream.flush(clock::now()) {
            Ok(()) => self.unflushed = false,
            Err(TransportError::TimedOut(_)) => {}
            Err(TransportError::Closed) => self.send_closed = true,
            Err(error) => return Err(self.failed(&error)),
        }
        Ok(())
    }

    /// The next thing that it has said, of what was received. Data must be taken before.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Lost> {
        self.client.next().map_err(|error| self.violates(&error))
    }

    /// The body of the reply that was next.
    pub(super) fn body(&self) -> &[u8] {
        self.client.body()
    }

    /// The text of the reply that was next and an error.
    pub(super) fn error_text(&self) -> String {
        decode_error_text(self.client.body())
    }

    /// Receives bytes; returns whether there were any.
    pub(super) fn receive(&mut self) -> Result<bool, Lost> {
        let read = self.stream.try_read(self.client.inbox().space());
        let Some(n) = self.count(read)? else {
            return Ok(false);
        };
        self.client.inbox().received(n);
        Ok(true)
    }

    /// Bytes of data that have to be taken before anything else.
    pub(super) fn data_left(&mut self) -> usize {
        self.client.inbox().data_left()
    }

    /// Takes data to `to`, which has room; returns how many bytes, `None` when there are none now.
    pub(super) fn take_data(&mut self, to: &mut [u8]) -> Result<Option<usize>, Lost> {
        let inbox = self.client.inbox();
        if inbox.direct() > 0 {
            let most = inbox.direct().min(to.len());
            let read = self.stream.try_read(&mut to[..most]);
            let n = self.count(read)?;
            self.client.inbox().took(n.unwrap_or(0));
            return Ok(n);
        }
        if !inbox.has_unread() && !self.receive()? {
            return Ok(None);
        }
        Ok(Some(self.client.inbox().take(to)))
    }

    /// Drops data that nobody wants; returns whether there was any.
    pub(super) fn drop_data(&mut self) -> Result<bool, Lost> {
        let here = self.client.inbox().has_unread() || self.receive()?;
        self.client.inbox().drop_data();
        Ok(here)
    }

    fn count(
        &mut self,
        read: Result<Option<usize>, TransportError>,
    ) -> Result<Option<usize>, Lost> {
        let n = match read {
            Ok(None) => return Ok(None),
            Ok(Some(0)) => return Err(self.failed(&TransportError::Closed)),
            Ok(Some(n)) => n,
            Err(error) => return Err(self.failed(&error)),
        };
        self.moved = clock::now();
        Ok(Some(n))
    }

    /// The stream and what to wait for; without `reading`, not for more to come.
    pub(super) fn wants(&mut self, reading: bool) -> (&mut Stream, Option<Interest>) {
        let writing = !self.send_closed && !self.client.outbox().is_empty();
        let interest = match (reading, writing) {
            (true, true) => Some(Interest::ReadOrWrite),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            (false, false) => None,
        };
        (&mut self.stream, interest)
    }

    /// Its stream has failed.
    fn failed(&mut self, error: &TransportError) -> Lost {
        self.cut = true;
        Lost::failed(&self.place, error)
    }

    /// It breaks the protocol.
    pub(super) fn violates(&mut self, violation: &Violation) -> Lost {
        self.cut = true;
        Lost::violates(&self.place, violation)
    }

    /// The session cannot be ended in good order.
    pub(super) fn cut(&mut self) {
        self.cut = true;
    }

    fn note_unsent(&mut self) {
        if !self.client.outbox().is_empty() {
            self.unsent_since.get_or_insert_with(clock::now);
        }
    }
}

impl Drop for FarSession {
    /// Says goodbye if that can be said, and closes.
    fn drop(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        let idle = self.client.under_way().next().is_none() && self.client.outbox().is_empty();
        if idle && !self.cut && !self.send_closed {
            let goodbye = self.client.next_header(Op::Goodbye);
            // Nobody waits for the answer: it would only say that the session is over.
            if self.client.request(goodbye, &Goodbye {}.into()).is_ok() {
                let said = self
                    .stream
                    .write_all(self.client.outbox().unsent(), deadline);
                if let Err(error) = said {
                    log::debug!("goodbye to {}: {error}", self.place);
                }
            }
        }
        if let Err(error) = self.stream.close(deadline) {
            log::debug!("closing {}: {error}", self.place);
        }
    }
}

/// A session that is being opened: one request at a time, and the guest waits for each.
struct Opening<'a> {
    stream: Stream,
    client: Client,
    place: &'a str,
    began: Instant,
    deadline: Instant,
}

impl Opening<'_> {
    /// Waits for the answer to the one request that is under way.
    fn answer<O: Operation>(&mut self) -> Result<O::Reply, Lost> {
        let place = self.place;
        loop {
            while !self.client.outbox().is_empty() {
                let unsent = self.client.outbox().unsent();
                let sent = unsent.len();
                match self.stream.write_all(unsent, self.deadline) {
                    // It may have said why; what is there to be read says so.
                    Ok(()) | Err(TransportError::Closed) => self.client.sent(sent),
                    Err(error) => return Err(self.failed(&error)),
                };
            }
            let violates = |violation| Lost::violates(place, &violation);
            match self.client.next().map_err(violates)? {
                Some(Event::Reply { status, .. }) if status.is_ok() => {
                    return self.client.reply::<O>().map_err(violates);
                }
                Some(Event::Reply { status, .. }) => {
                    let text = decode_error_text(self.client.body());
                    return Err(Lost::refused(place, status, &text));
                }
                Some(Event::Closing(status, text)) => {
                    return Err(Lost::closing(place, status, &text));
                }
                // No request is under way that has data; only a flood of these is to be feared.
                Some(Event::Data(_) | Event::Credit(..) | Event::Working)
                    if clock::now() < self.deadline => {}
                Some(Event::Data(_) | Event::Credit(..) | Event::Working) => {
                    return Err(self.failed(&TransportError::TimedOut("read")));
                }
                None => self.receive()?,
            }
        }
    }

    fn receive(&mut self) -> Result<(), Lost> {
        let read = self.stream.try_read(self.client.inbox().space());
        match read.map_err(|error| self.failed(&error))? {
            Some(0) => Err(self.failed(&TransportError::Closed)),
            Some(n) => {
                self.client.inbox().received(n);
                Ok(())
            }
            None => {
                match self.stream.flush(self.deadline) {
                    // Bytes that arrived before the end are still to be read.
                    Ok(()) | Err(TransportError::Closed) => {}
                    Err(error) => return Err(self.failed(&error)),
                }
                let waited = self.stream.wait(Interest::Read, self.deadline);
                waited.map_err(|error| self.failed(&error))
            }
        }
    }

    fn failed(&self, error: &TransportError) -> Lost {
        match error {
            TransportError::TimedOut(_) => Lost::hung(self.place, self.began.elapsed()),
            error => Lost::failed(self.place, error),
        }
    }
}
