//! The guest's half of a session, for guests and for mediators that pass sessions on.
//!
//! The mediator is trusted with the work, not with this process: everything it sends is checked
//! against the requests, and an answer that does not match is a [`Violation`], after which the
//! session cannot go on.

use std::ops::Range;
use std::time::Duration;

use super::inbox::{Inbox, Received};
use super::most_requests;
use super::outbox::Outbox;
use crate::frame::{Flags, FrameHeader, HEADER_LEN, MAX_DATA};
use crate::op::{Body, BodyError, Features, Hello, HelloReply, Op, Operation, Overtakes, Request};
use crate::status::{Status, decode_error_text};
use crate::{MIN_VERSION, VERSION};

/// The mediator's violation of the protocol, worded to follow "it": `sent data of request 3, which
/// is not under way`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl From<BodyError> for Violation {
    fn from(error: BodyError) -> Self {
        Self(format!("sent a bad body: {error}"))
    }
}

/// The reasons why a request cannot be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSent {
    /// It needs a feature that Hello did not agree on.
    #[error("this mediator did not offer it when the session was opened")]
    NotOffered(Op),
    /// The mediator's limit of requests under way is reached.
    #[error("{0} requests are under way, and this mediator takes no more")]
    TooMany(usize),
    /// The request's id is in use.
    #[error("request {0} is under way")]
    InUse(u32),
    /// Hello has not been answered.
    #[error("the session is not open")]
    NotOpen,
    /// No mediator would accept it.
    #[error("{0}")]
    Body(#[from] BodyError),
}

/// An event from the mediator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request is over; the body of its reply is [`Client::body`] until the next call.
    Reply {
        /// The request's id.
        id: u32,
        /// Its result.
        status: Status,
        /// Quiet requests have failed; a fence names them.
        failures: bool,
        /// Kernels have printed something that has not been taken.
        printed: bool,
    },
    /// Data of a request is next in the inbox, as much as
    /// [`data_left`](Inbox::data_left) says.
    Data(u32),
    /// More of a request's data may be sent: its id, and the bytes; 0 bytes show that the request
    /// is being worked on.
    Credit(u32, u32),
    /// The mediator is at work, and starts no other request meanwhile.
    Working,
    /// The mediator has ended the session, for this reason.
    Closing(Status, String),
}

/// A request that is not over.
#[derive(Debug)]
struct Call {
    header: FrameHeader,
    /// Bytes of data that have not begun to be sent.
    up_left: u64,
    /// The last frame of data has begun to be sent, or there is none.
    up_ended: bool,
    credit: u64,
    down_left: u64,
    /// [`Client::queued`] before it, and with it. For one that overtakes others, the end of the last request that
    /// it does not overtake, or 0: its answer says that this one has started.
    queued: Range<u64>,
}

/// The state of a session.
#[derive(Debug)]
pub struct Client {
    inbox: Inbox,
    outbox: Outbox,
    calls: Vec<Call>,
    last_id: u32,
    agreed: Option<HelloReply>,
    /// Bytes of all requests that start in order, with as much of their data as needs no grant.
    queued: u64,
    /// The same up to the last of each lane.
    queued_by_lane: Vec<u64>,
    /// The lane of the last of them.
    last_lane: u16,
    /// How many of them belong to requests that the mediator is known to have started.
    started: u64,
}

impl Client {
    /// A session whose Hello is in the outbox; its reply is the first [`Event`], which is waited for as long as
    /// `patience`.
    pub fn new(client_name: &str, patience: Duration) -> Self {
        let mut client = Self {
            inbox: Inbox::of_replies(),
            outbox: Outbox::default(),
            calls: Vec::new(),
            last_id: 0,
            agreed: None,
            queued: 0,
            queued_by_lane: Vec::new(),
            last_lane: 0,
            started: 0,
        };
        let hello = Hello {
            min_version: MIN_VERSION.try_into().expect("versions start at 1"),
            max_version: VERSION,
            features: Features::ALL,
            client_name: client_name.into(),
        };
        let ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let header = client.next_header(Op::Hello).with_deadline_ms(ms.max(1));
        client.push(header, &hello.into());
        client
    }

    /// The buffer for received bytes, from which data is taken.
    #[inline]
    pub fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// The bytes to send.
    #[inline]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The terms of the session; `None` before Hello's reply.
    pub fn agreed(&self) -> Option<&HelloReply> {
        self.agreed.as_ref()
    }

    /// A header for the next request, with an id that is not in use.
    pub fn next_header(&mut self, op: Op) -> FrameHeader {
        loop {
            // 0 is never a request's id.
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.call(self.last_id).is_none() {
                return FrameHeader::request(op, self.last_id);
            }
        }
    }

    /// Queues `request` under `header`, which names its operation.
    ///
    /// # Errors
    /// It cannot be sent, now or at all.
    pub fn request(&mut self, header: FrameHeader, request: &Request) -> Result<(), NotSent> {
        debug_assert_eq!(header.op, request.op());
        let agreed = self.agreed.as_ref().ok_or(NotSent::NotOpen)?;
        if !agreed.features.contains(header.needs()) {
            return Err(NotSent::NotOffered(header.op));
        }
        request.check()?;
        let max = most_requests(agreed.max_requests, header.op);
        if self.call(header.request_id).is_some() {
            return Err(NotSent::InUse(header.request_id));
        }
        if self.calls.len() >= max {
            return Err(NotSent::TooMany(self.calls.len()));
        }
        self.push(header, request);
        Ok(())
    }

    fn push(&mut self, header: FrameHeader, request: &Request) {
        let before = self.outbox.len();
        self.outbox.push(header, |body| request.encode_to(body));
        let (up, down) = request.data();
        let credit = self
            .agreed
            .as_ref()
            .map_or(0, |agreed| agreed.initial_credit);
        let lane = usize::from(header.lane);
        let queued = match header.overtakes() {
            Overtakes::Nothing => {
                let start = self.queued;
                self.queued += (self.outbox.len() - before) as u64;
                if up > 0 {
                    self.queued += up.min(credit.into()) + HEADER_LEN as u64;
                }
                if lane >= self.queued_by_lane.len() {
                    self.queued_by_lane.resize(lane + 1, 0);
                }
                self.queued_by_lane[lane] = self.queued;
                self.last_lane = header.lane;
                start..self.queued
            }
            Overtakes::OtherLanes => {
                let end = self.queued_by_lane.get(lane).copied().unwrap_or(0);
                end..end
            }
            Overtakes::Everything => 0..0,
        };
        if header.is_quiet() && up == 0 {
            return;
        }
        self.calls.push(Call {
            header,
            up_left: up,
            up_ended: up == 0,
            credit: credit.into(),
            down_left: down,
            queued,
        });
    }

    /// The lane of the last request that starts in order: the answer to a Ping on it says that all have started.
    #[inline]
    pub fn last_lane(&self) -> u16 {
        self.last_lane
    }

    /// Bytes of all requests so far that start in order, and of their first data.
    #[inline]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes of requests that start in order, and of their first data, that the mediator is not known to have started. Of a
    /// guest that sends no more than [`WINDOW`](super::WINDOW) of them, a mediator finds every request that
    /// [overtakes](Op::overtakes) them.
    #[inline]
    pub fn not_started(&self) -> u64 {
        self.queued - self.started
    }

    /// Whether a request is not over.
    pub fn is_under_way(&self, id: u32) -> bool {
        self.call(id).is_some()
    }

    /// Requests that are not over.
    pub fn under_way(&self) -> impl Iterator<Item = u32> {
        self.calls.iter().map(|call| call.header.request_id)
    }

    /// Most bytes of a request's data that may be sent in one frame now; 0 for none, also while a
    /// frame of data is under way.
    #[inline]
    pub fn may_send(&self, id: u32) -> usize {
        let Some(call) = self.call(id).filter(|call| !call.up_ended) else {
            return 0;
        };
        if self.outbox.data().is_some() {
            return 0;
        }
        let len = call.up_left.min(call.credit).min(MAX_DATA.into());
        usize::try_from(len).expect("at most MAX_DATA")
    }

    /// Whether a request may send data as soon as no other data is under way.
    pub fn has_credit(&self, id: u32) -> bool {
        self.call(id)
            .is_some_and(|call| !call.up_ended && call.credit > 0)
    }

    /// Bytes of a request's data that have not begun to be sent.
    pub fn up_left(&self, id: u32) -> u64 {
        self.call(id)
            .filter(|call| !call.up_ended)
            .map_or(0, |call| call.up_left)
    }

    /// Bytes of a request's data that may begin to be sent with the credit granted.
    pub fn credit(&self, id: u32) -> u64 {
        self.call(id)
            .filter(|call| !call.up_ended)
            .map_or(0, |call| call.credit)
    }

    /// Bytes of a request's data that have not arrived.
    pub fn down_left(&self, id: u32) -> u64 {
        self.call(id).map_or(0, |call| call.down_left)
    }

    /// Begins a frame of `len` bytes, which must be at hand.
    ///
    /// # Panics
    /// If `len` is 0 or more than [`may_send`](Self::may_send) returns.
    pub fn begin_up(&mut self, id: u32, len: usize) {
        assert!((1..=self.may_send(id)).contains(&len));
        let Some(call) = self
            .calls
            .iter_mut()
            .find(|call| call.header.request_id == id)
        else {
            return;
        };
        let left = call.up_left - len as u64;
        call.up_left = left;
        call.credit -= len as u64;
        call.up_ended = left == 0;
        let len = u32::try_from(len).expect("at most MAX_DATA");
        self.outbox
            .begin_data(&FrameHeader::data_up(&call.header, len, left > 0));
        if call.up_ended && call.header.is_quiet() {
            self.forget(id);
        }
    }

    /// Gives a request up: no more of its data is sent. Its answer still comes, unless it is quiet;
    /// a quiet one is reported by a fence at the earliest, and until that is answered the id must
    /// not be reused for a request with data.
    pub fn end_early(&mut self, id: u32) {
        let Some(call) = self
            .calls
            .iter_mut()
            .find(|call| call.header.request_id == id)
        else {
            return;
        };
        if !call.up_ended {
            call.up_ended = true;
            let header = call.header;
            self.outbox
                .push(FrameHeader::data_up(&header, 0, false), |_| ());
            if header.is_quiet() {
                self.forget(id);
            }
        }
    }

    /// Notes that `n` bytes of the outbox and the data under way were sent; returns the request
    /// whose data they include, and the bytes of it.
    pub fn sent(&mut self, n: usize) -> Option<(u32, usize)> {
        self.outbox.sent(n)
    }

    /// The mediator's next event.
    ///
    /// # Errors
    /// A message that is not allowed here.
    #[allow(
        clippy::should_implement_trait,
        reason = "it fails, and can go on after nothing"
    )]
    pub fn next(&mut self) -> Result<Option<Event>, Violation> {
        if self.inbox.data_left() > 0 {
            return Ok(None);
        }
        let received = self
            .inbox
            .next()
            .map_err(|error| Violation(format!("sent a bad header: {error}")))?;
        match received {
            None => Ok(None),
            Some(Received::Data(header)) => self.on_data(&header).map(Some),
            Some(Received::Frame(header)) if header.op == Op::Closing => {
                if header.status.is_ok() {
                    let what = "ended the session without an error".to_owned();
                    return Err(Violation(what));
                }
                let text = decode_error_text(self.inbox.body());
                Ok(Some(Event::Closing(header.status, text)))
            }
            Some(Received::Frame(header)) => self.on_reply(&header).map(Some),
        }
    }

    /// The body of the last [`Event::Reply`].
    #[inline]
    pub fn body(&self) -> &[u8] {
        self.inbox.body()
    }

    /// The body of the last [`Event::Reply`], which must be a successful reply to an `O`.
    ///
    /// # Errors
    /// It does not match the table.
    pub fn reply<O: Operation>(&self) -> Result<O::Reply, Violation> {
        O::Reply::decode(self.body()).map_err(Violation::from)
    }

    fn on_data(&mut self, header: &FrameHeader) -> Result<Event, Violation> {
        let id = header.request_id;
        if id == 0 {
            return Ok(Event::Working);
        }
        let len = u64::from(header.body_len);
        let Some(call) = self
            .calls
            .iter_mut()
            .find(|call| call.header.request_id == id)
        else {
            // Credit for a request that is over, or was quiet, has no meaning any more.
            return match len {
                0 => Ok(Event::Credit(id, 0)),
                _ => Err(Violation(format!(
                    "sent data of request {id}, which is not under way"
                ))),
            };
        };
        if len > call.down_left || header.lane != call.header.lane {
            return Err(Violation(format!(
                "sent {len} bytes for request {id}, where {} bytes are due",
                call.down_left
            )));
        }
        call.credit = call.credit.saturating_add(header.credit.into());
        call.down_left -= len;
        // Nothing is granted, nor does anything come, before it is started, and all before it are.
        if header.credit > 0 || len > 0 {
            self.started = self.started.max(call.queued.end);
        }
        match len {
            0 => Ok(Event::Credit(id, header.credit)),
            _ => Ok(Event::Data(id)),
        }
    }

    fn on_reply(&mut self, header: &FrameHeader) -> Result<Event, Violation> {
        let id = header.request_id;
        let asked = |call: &Call| call.header.request_id == id && !call.header.is_quiet();
        let Some(at) = self.calls.iter().position(asked) else {
            let what = format!("answered {} {id}, which was not asked", header.op);
            return Err(Violation(what));
        };
        let call = &self.calls[at];
        // The other fields are the reply's own.
        if (header.op, header.lane) != (call.header.op, call.header.lane) {
            return Err(Violation(format!(
                "answered {} {id} on lane {} where the reply to {} on lane {} is due",
                header.op, header.lane, call.header.op, call.header.lane
            )));
        }
        if header.status.is_ok() {
            let sending = self.outbox.data().is_some_and(|(sending, _)| sending == id);
            if !call.up_ended || call.up_left > 0 || sending {
                return Err(Violation(format!(
                    "answered request {id} before its data was sent"
                )));
            }
            if call.down_left > 0 {
                let left = call.down_left;
                return Err(Violation(format!(
                    "answered request {id} {left} bytes too early"
                )));
            }
        }
        // Of one that failed, data may still be on its way.
        let started = match header.status.is_ok() {
            true => call.queued.end,
            false => call.queued.start,
        };
        self.started = self.started.max(started);
        if header.op == Op::Hello && header.status.is_ok() {
            self.agree()?;
        }
        self.end_early(id);
        // Not `remove`, which would copy it out to be dropped.
        self.calls.drain(at..=at);
        Ok(Event::Reply {
            id,
            status: header.status,
            failures: header.flags.contains(Flags::FAILURES),
            printed: header.flags.contains(Flags::PRINTED),
        })
    }

    fn agree(&mut self) -> Result<(), Violation> {
        let agreed = self.reply::<Hello>()?;
        let version = agreed.version.get();
        if !(MIN_VERSION..=VERSION).contains(&version) {
            return Err(Violation(format!(
                "chose version {version}, which was not offered"
            )));
        }
        if !Features::ALL.contains(agreed.features) {
            return Err(Violation(
                "agreed to features that were not offered".to_owned(),
            ));
        }
        self.agreed = Some(agreed);
        Ok(())
    }

    fn call(&self, id: u32) -> Option<&Call> {
        self.calls.iter().find(|call| call.header.request_id == id)
    }

    fn forget(&mut self, id: u32) {
        self.calls.retain(|call| call.header.request_id != id);
    }
}
