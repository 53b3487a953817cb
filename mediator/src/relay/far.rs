//! The session with the other mediator: this worker is its guest.
//!
//! It is trusted with the work, not with the guest: whatever it sends is checked against what it
//! was asked, and a reply that does not fit ends the session.

use std::fmt;
use std::time::{Duration, Instant};

use vgpu_protocol::clock;
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::handle::{HandleKind, HandleMinter};
use vgpu_protocol::message::{Features, Hello, HelloReply, InfoReply, Op};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_protocol::transport::{Interest, Transport, TransportError};
use vgpu_protocol::{MIN_VERSION, VERSION};

use super::stream::Stream;
use crate::session::inbox::{Event, Inbox};

/// Time for the last frame and the close.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// An open session.
pub(super) struct Far {
    pub(super) stream: Stream,
    /// Where it is, as the administrator wrote it.
    place: String,
    inbox: Inbox,
    /// What comes next is the body of a Data frame, which is not read here.
    in_body: bool,
    /// Frames without their Data bodies that wait to go out.
    out: Vec<u8>,
    sent: usize,
    last_request: u32,
    streams: HandleMinter,
    pub(super) hello: HelloReply,
    pub(super) info: InfoReply,
    /// Nothing can be said any more.
    cut: bool,
}

/// The other mediator cannot be used, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// For the guest.
    pub(super) code: ErrorCode,
    /// What has happened and what to do, in one line.
    pub(super) text: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Lost {
    /// `what` the other mediator has done, as the end of a sentence about it.
    pub(super) fn new(place: &str, what: &str, advice: &str) -> Self {
        Self {
            code: ErrorCode::BackendLost,
            text: format!("the mediator behind this one ({place}) {what}; {advice}"),
        }
    }
}

impl Far {
    /// Says Hello on a fresh stream and asks what there is.
    ///
    /// # Errors
    /// The other mediator refuses, is none, or does not answer until `deadline`.
    pub(super) fn open(stream: Stream, place: &str, deadline: Instant) -> Result<Self, Lost> {
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: VERSION,
            features: Features::ALL,
            client_name: concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION"), " (relay)").into(),
        };
        let nothing = HelloReply {
            version: VERSION,
            features: Features::default(),
            limits: vgpu_protocol::message::Limits {
                max_body: 0,
                max_lanes: 1,
                max_requests: 1,
                max_handles: 1,
                max_chunk_elements: 0,
                preferred_chunk_elements: 0,
                max_elements: 0,
            },
            epoch: 0,
        };
        let mut far = Self {
            stream,
            place: place.to_owned(),
            inbox: Inbox::of_replies(),
            in_body: false,
            out: Vec::new(),
            sent: 0,
            last_request: 0,
            streams: HandleMinter::new(HandleKind::Stream, 1),
            hello: nothing,
            info: InfoReply::default(),
            cut: false,
        };
        let reply = far.call(Op::Hello, &hello.encode(), deadline)?;
        far.hello = far.understand(HelloReply::decode(&reply))?;
        let HelloReply {
            version,
            features,
            limits,
            ..
        } = far.hello;
        if !(MIN_VERSION..=VERSION).contains(&version) || !Features::ALL.contains(features) {
            return Err(far.violates("agreed to something that was not offered"));
        }
        if limits.max_handles == 0 || limits.max_chunk_elements == 0 || limits.max_elements == 0 {
            return Err(far.violates("allows nothing at all"));
        }
        let reply = far.call(Op::Info, &[], deadline)?;
        far.info = far.understand(InfoReply::decode(&reply))?;
        Ok(far)
    }

    /// Where it is, as the administrator wrote it.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn understand<T, E: fmt::Display>(&mut self, decoded: Result<T, E>) -> Result<T, Lost> {
        decoded.map_err(|error| self.violates(&format!("sends what it should not: {error}")))
    }

    /// A request of ours, without a body.
    pub(super) fn request(&mut self, op: Op) -> FrameHeader {
        // Ids may be used again once their request is over, and there is one at a time.
        self.last_request = self.last_request.checked_add(1).unwrap_or(1);
        FrameHeader::request(op, self.last_request)
    }

    /// A stream handle for a request; to be given back when that is over.
    pub(super) fn streams(&mut self) -> &mut HandleMinter {
        &mut self.streams
    }

    /// Queues a frame, or the front of one whose body follows.
    pub(super) fn queue(&mut self, header: &FrameHeader, body: &[u8]) {
        self.out.extend_from_slice(&header.encode());
        self.out.extend_from_slice(body);
    }

    /// Whether everything queued was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.out.is_empty()
    }

    /// Sends what is queued, as much as there is room for; returns how many bytes.
    pub(super) fn send(&mut self) -> Result<usize, Lost> {
        if self.out.is_empty() {
            return Ok(0);
        }
        let written = self.stream.try_write(&self.out[self.sent..]);
        let n = match written {
            Ok(n) => n,
            Err(TransportError::Closed) => return Err(self.last_words()),
            Err(error) => return Err(self.failed(error)),
        };
        self.sent += n;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(n)
    }

    /// Why it has closed: its Goodbye, if that is the next thing to be read.
    pub(super) fn last_words(&mut self) -> Lost {
        loop {
            if self.in_body {
                return self.failed(TransportError::Closed);
            }
            match self.read_event() {
                Ok(Some(Event::None)) => {}
                Ok(Some(event @ Event::Frame(..))) => {
                    let gone = self.failed(TransportError::Closed);
                    return match event {
                        Event::Frame(header, _) if header.op == Op::Goodbye => {
                            self.unasked(&event).unwrap_or(gone)
                        }
                        _ => gone,
                    };
                }
                Ok(_) => return self.failed(TransportError::Closed),
                Err(lost) => return lost,
            }
        }
    }

    /// Takes bytes of a frame; `None` if there were none.
    pub(super) fn read_event(&mut self) -> Result<Option<Event>, Lost> {
        let read = self.stream.try_read(self.inbox.unfilled());
        match read.map_err(|error| self.failed(error))? {
            None => Ok(None),
            Some(0) => Err(self.failed(TransportError::Closed)),
            Some(n) => match self.inbox.advance(n) {
                Ok(event) => {
                    self.in_body = matches!(&event, Event::Data(header) if header.body_len > 0);
                    Ok(Some(event))
                }
                Err(error) => Err(self.violates(&format!("sends what is no frame: {error}"))),
            },
        }
    }

    /// What is queued, to be written in another way.
    pub(super) fn take_queued(&mut self) -> Vec<u8> {
        self.sent = 0;
        std::mem::take(&mut self.out)
    }

    /// The next event, waited for until `deadline`.
    pub(super) fn next_event(
        &mut self,
        started: Instant,
        deadline: Instant,
    ) -> Result<Event, Lost> {
        loop {
            let sent = self.send()?;
            if let Some(event) = self.read_event()? {
                return Ok(event);
            }
            if sent == 0 && !self.wait(deadline)? {
                return Err(self.hung(started.elapsed()));
            }
        }
    }

    /// The body of the Data frame that was announced has been read.
    pub(super) fn body_read(&mut self) {
        self.in_body = false;
    }

    /// Asks something that is answered with one frame, and waits for it; the guest waits, too.
    pub(super) fn call(&mut self, op: Op, body: &[u8], deadline: Instant) -> Result<Vec<u8>, Lost> {
        // Bodies here are at most 4096 bytes.
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let request = self.request(op).with_body_len(len);
        self.queue(&request, body);
        let started = clock::now();
        loop {
            match self.next_event(started, deadline)? {
                Event::None => {}
                Event::Frame(header, body) => {
                    let status = self.check_reply(&header, &body, &request)?;
                    return match status {
                        Status::Ok => Ok(body),
                        status => Err(self.refused(status, &body)),
                    };
                }
                Event::Data(_) => return Err(self.violates("sends data nobody asked for")),
            }
        }
    }

    /// Waits for this side alone; false at `deadline`.
    fn wait(&mut self, deadline: Instant) -> Result<bool, Lost> {
        if clock::now() >= deadline {
            return Ok(false);
        }
        let interest = match self.is_sent() {
            true => Interest::Read,
            false => Interest::ReadOrWrite,
        };
        let waited = match self.stream.flush(deadline) {
            Ok(()) => self.stream.wait(interest, deadline),
            error => error,
        };
        match waited {
            Ok(()) => Ok(true),
            Err(TransportError::TimedOut(_)) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The status of a reply to `request`.
    ///
    /// # Errors
    /// It answers something else, or the other mediator ends the session.
    pub(super) fn check_reply(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        request: &FrameHeader,
    ) -> Result<Status, Lost> {
        if header.is_reply() && header.op == Op::Goodbye && header.request_id == 0 {
            return Err(self.closing(header.status, body));
        }
        let wanted = FrameHeader::reply_to(request, header.status).with_body_len(header.body_len);
        if *header != wanted {
            let what = format!(
                "answers {} {} where the reply to {} {} is due",
                header.op, header.request_id, request.op, request.request_id
            );
            return Err(self.violates(&what));
        }
        Ok(header.status)
    }

    /// What it means that something comes though nothing was asked.
    pub(super) fn unasked(&mut self, event: &Event) -> Option<Lost> {
        match event {
            Event::None => None,
            Event::Frame(header, body)
                if header.is_reply() && header.op == Op::Goodbye && header.request_id == 0 =>
            {
                Some(self.closing(header.status, body))
            }
            Event::Frame(header, _) | Event::Data(header) => {
                let what = format!("sends {} though nothing is under way", header.op);
                Some(self.violates(&what))
            }
        }
    }

    fn closing(&mut self, status: Status, body: &[u8]) -> Lost {
        self.cut = true;
        let what = format!(
            "ended the session: {} ({status})",
            decode_error_text(body).trim_end_matches('.')
        );
        Lost::new(&self.place, &what, "its log says more")
    }

    /// A request that opens the session was refused.
    fn refused(&mut self, status: Status, body: &[u8]) -> Lost {
        let text = decode_error_text(body);
        let what = format!("refuses: {text} ({status})");
        let mut lost = Lost::new(&self.place, &what, "look at its log and policy");
        if status == Status::Mediator(ErrorCode::Busy) {
            lost.code = ErrorCode::Busy;
        }
        lost
    }

    /// Its stream has failed.
    pub(super) fn failed(&mut self, error: TransportError) -> Lost {
        self.cut = true;
        match error {
            TransportError::Closed => Lost::new(
                &self.place,
                "is gone",
                "connect again once it is back (there: vgpuctl status)",
            ),
            error => Lost::new(
                &self.place,
                &format!("cannot be reached any more: {error}"),
                "look whether it runs, then connect again",
            ),
        }
    }

    /// It does nothing.
    pub(super) fn hung(&mut self, waited: Duration) -> Lost {
        self.cut = true;
        Lost::new(
            &self.place,
            &format!("has not moved for {} ms", waited.as_millis()),
            "look whether it hangs (there: vgpuctl status), then connect again",
        )
    }

    /// It breaks the protocol.
    pub(super) fn violates(&mut self, what: &str) -> Lost {
        self.cut = true;
        Lost::new(
            &self.place,
            &format!("breaks the protocol: it {what}"),
            "let both run the same release of vgpu",
        )
    }

    /// The session cannot be ended in good order: a request was left in the middle.
    pub(super) fn cut(&mut self) {
        self.cut = true;
    }

    /// Says goodbye if that can be said, and closes.
    pub(super) fn close(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        if !self.cut && self.out.is_empty() && !self.inbox.is_partial() {
            let goodbye = self.request(Op::Goodbye);
            // Nobody waits for the answer: it would only say that the session is over.
            let said = self.stream.write_all(&goodbye.encode(), deadline);
            if let Err(error) = said {
                log::debug!("goodbye to {}: {error}", self.place);
            }
        }
        if let Err(error) = self.stream.close(deadline) {
            log::debug!("closing {}: {error}", self.place);
        }
    }
}
