//! The mediator's half of a session: the meaning of a guest's frames, and the answers.
//!
//! A guest can send anything at any time: a violation becomes an error reply or the end of its
//! session. Memory is bounded by [`Terms::max_requests`], the longest control frame,
//! [`CAPACITY`] bytes of replies and what is read [behind](Server::space_behind) a request that cannot start; the work for
//! a frame by the number of requests under way.

mod overtaking;

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::in_flight::{Failure, Outcome};
use super::in_flight::{InFlight, Requests};
use super::inbox::{Inbox, Received};
use super::most_requests;
use super::outbox::Outbox;
use super::tally::{OpResult, Tally};
use crate::frame::{Flags, FrameHeader, MAX_DATA};
use crate::op::field::StreamRef;
use crate::op::{
    Body, BodyError, Features, FenceReply, GoodbyeReply, Hello, HelloReply, Op, OpSet,
    QuietFailure, Request, negotiate_version,
};
use crate::status::{ErrorCode, Status, encode_error_text};
use crate::{MIN_VERSION, VERSION};

/// With more than this many bytes of untaken replies, no further request should be read. A guest
/// that asks without reading answers stops itself.
pub const CAPACITY: usize = 64 << 10;

/// Credit for data that is dropped: whatever a guest has announced, it is granted in steps of this, as it comes.
const DROPPED: u64 = u32::MAX as u64;

/// Interval at which a guest is shown that a request is being worked on.
const SHOW: Duration = Duration::from_secs(1);

/// The limits of a guest, sent in the answer to its Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Lanes are numbered from 0 to one below this.
    pub max_lanes: NonZeroU16,
    /// Most requests under way at once, and as many quiet ones.
    pub max_requests: NonZeroU16,
    /// Most objects of each kind that may be open at once.
    pub max_handles: u32,
    /// Bytes of a request's data that may arrive before any are granted. The code that runs the
    /// requests takes these, for all requests that may be under way, without waiting for anything.
    pub initial_credit: u32,
    /// The optional parts of the protocol that can be used.
    pub features: Features,
}

impl Terms {
    /// The limits within both.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self {
            max_lanes: self.max_lanes.min(other.max_lanes),
            max_requests: self.max_requests.min(other.max_requests),
            max_handles: self.max_handles.min(other.max_handles),
            initial_credit: self.initial_credit.min(other.initial_credit),
            features: self.features.common(other.features),
        }
    }
}

/// Time limits for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a complete Hello.
    pub hello: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Without any byte moved in the middle of a frame or a request.
    pub stall: Duration,
    /// For a request in all, however it proceeds; `None`: no limit.
    pub request: Option<Duration>,
}

/// The reason why a guest is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// [`ErrorCode::Denied`] or [`ErrorCode::Busy`].
    pub code: ErrorCode,
    /// The text for the guest's user.
    pub text: String,
}

/// The reason why a session is over. The guest's last message is in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest said goodbye.
    Goodbye,
    /// The guest broke the protocol.
    Fault(String),
    /// The guest was turned away.
    Refused(Refusal),
}

/// The action that a guest's frame requires.
#[derive(Debug)]
pub enum Step {
    /// Hello is valid: get ready, then call [`Server::admit`] or [`Server::turn_away`].
    Admit,
    /// Run this request. Its data arrives next, at [`Server::data`].
    Start(FrameHeader, Request),
    /// The guest has ended this request's data early: it gives up.
    Cancel(u32),
}

/// A deadline that has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Late {
    /// The guest: the session is over.
    Session(String),
    /// A request without progress: cancel it, and answer it with this text.
    Request(u32, String),
}

/// The state of a session.
#[derive(Debug)]
pub struct Server {
    terms: Terms,
    timeouts: Timeouts,
    epoch: u64,
    refusal: Option<Refusal>,
    allowed: OpSet,
    /// The reason why new requests are refused.
    draining: Option<Failure>,
    hello: Option<(FrameHeader, Hello)>,
    /// The guest has been admitted.
    admitted: bool,
    requests: Requests,
    failures: FenceReply,
    /// The backend knows of more failures, which its next Fence reports.
    failures_behind: bool,
    /// Kernels have printed something that has not been taken.
    printed: bool,
    inbox: Inbox,
    outbox: Outbox,
    /// Nothing is in the outbox but what shows that work goes on: a guest that waits for nothing need not take that.
    only_shows: bool,
    /// When it was last shown that work goes on, while no request can be started.
    shown: Instant,
    /// The request whose data is being received, and whether the frame is its last.
    receiving: Option<(u32, bool)>,
    /// A StreamCancel that has overtaken others, until it is answered, and its stream. Nothing else starts meanwhile.
    overtaker: Option<(u32, StreamRef)>,
    /// Launches that wait in the inbox and are cancelled when their time comes.
    withdrawn: BTreeSet<u32>,
    began: Instant,
    /// Time at which bytes last arrived.
    received: Instant,
    /// Time at which bytes were last sent, or the first of those waiting was queued.
    sent: Instant,
    counts: Counts,
    tally: Arc<Tally>,
}

/// Totals so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests received.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How long the answered ones took.
    pub durations: Durations,
}

/// How long requests took from their arrival to their answers, by the session's clock, which may
/// tick every few milliseconds. Requests without an answer are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Durations {
    /// Requests that took no longer than each of [`LIMITS`](Self::LIMITS), but longer than the
    /// one before; then those that took longer than all.
    pub within: [u64; Durations::LIMITS.len() + 1],
    /// Sum in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// The limits, ascending.
    pub const LIMITS: [Duration; 5] = [
        Duration::from_millis(10),
        Duration::from_millis(100),
        Duration::from_secs(1),
        Duration::from_secs(10),
        Duration::from_secs(60),
    ];

    /// Counts a request that took this long.
    pub fn add(&mut self, one: Duration) {
        let longer = Self::LIMITS.iter().filter(|limit| one > **limit).count();
        self.within[longer] += 1;
        let us = u64::try_from(one.as_micros()).unwrap_or(u64::MAX);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds those of another session; figures that overflow stay at the top.
    pub fn add_all(&mut self, other: &Self) {
        for (all, more) in self.within.iter_mut().zip(other.within) {
            *all = all.saturating_add(more);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

impl Server {
    /// A session that waits for Hello. With a `refusal`, it only answers Hello.
    pub fn new(
        terms: Terms,
        timeouts: Timeouts,
        epoch: u64,
        refusal: Option<Refusal>,
        now: Instant,
    ) -> Self {
        Self {
            terms,
            timeouts,
            epoch,
            refusal,
            allowed: OpSet::ALL,
            draining: None,
            hello: None,
            admitted: false,
            requests: Requests::default(),
            failures: FenceReply::default(),
            failures_behind: false,
            printed: false,
            inbox: Inbox::of_requests(),
            outbox: Outbox::default(),
            only_shows: false,
            shown: now,
            receiving: None,
            overtaker: None,
            withdrawn: BTreeSet::new(),
            began: now,
            received: now,
            sent: now,
            counts: Counts::default(),
            tally: Arc::default(),
        }
    }

    /// Counts requests that are over in `tally` from here on, where others can read it.
    pub fn count_in(&mut self, tally: Arc<Tally>) {
        self.tally = tally;
    }

    /// Refuses every operation that is not in `allowed`, before anything is done for it.
    pub fn allow_only(&mut self, allowed: OpSet) {
        self.allowed = allowed;
    }

    /// The buffer for received bytes.
    #[inline]
    pub fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// The bytes to send.
    #[inline]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Totals so far.
    #[inline]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The guest's own name, safe for a log.
    pub fn client_name(&self) -> Option<String> {
        let (_, hello) = self.hello.as_ref()?;
        Some(hello.client_name.as_str().escape_debug().to_string())
    }

    /// How long the guest waits for the answer to its Hello; at most `own`.
    pub fn hello_patience(&self, own: Duration) -> Duration {
        let hello = self.hello.as_ref();
        hello.map_or(own, |(header, _)| header.patience(own))
    }

    /// Whether the guest has been admitted.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.admitted
    }

    /// Whether further requests may be read; see [`CAPACITY`].
    #[inline]
    pub fn may_receive(&self) -> bool {
        self.outbox.len() <= CAPACITY
    }

    /// Whether a frame has begun in either direction and is not complete, or a request is under way.
    pub fn is_busy(&self) -> bool {
        self.is_in_frame() || self.requests.len() > 0
    }

    /// Whether no request is under way, answered or not.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.requests.len() == 0
    }

    /// Whether a request is under way and not answered.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.requests.iter().any(|request| !request.answered)
    }

    /// Requests that are not answered.
    #[inline]
    pub fn under_way(&self) -> usize {
        let requests = self.requests.iter();
        requests.filter(|request| !request.answered).count()
    }

    /// Whether a frame has begun in either direction and is not complete.
    pub fn is_in_frame(&self) -> bool {
        self.inbox.is_partial() || self.has_replies()
    }

    /// Whether there is something that the guest has to take.
    fn has_replies(&self) -> bool {
        !self.outbox.is_empty() && !self.only_shows
    }

    /// Notes that bytes have arrived.
    pub fn received(&mut self, now: Instant) {
        self.received = now;
    }

    /// The next action for the received bytes; none while [`may_receive`](Self::may_receive)
    /// returns false.
    ///
    /// # Errors
    /// The session is over.
    pub fn next(&mut self, now: Instant) -> Result<Option<Step>, End> {
        if self.receiving.is_none() && !self.inbox.has_unread() {
            return Ok(None);
        }
        while self.inbox.data_left() == 0 && self.may_receive() {
            if let Some((id, last)) = self.receiving.take()
                && last
                && let Some(step) = self.data_ended(id)
            {
                return Ok(Some(step));
            }
            match self.inbox.next() {
                Ok(None) => return Ok(None),
                Ok(Some(Received::Data(header))) => self.on_data(&header, now)?,
                Ok(Some(Received::Frame(header))) => {
                    let step = self.on_request(&header, now)?;
                    if step.is_some() {
                        return Ok(step);
                    }
                }
                Err(error) => return Err(self.fault(error.to_string())),
            }
        }
        Ok(None)
    }

    /// The request whose data is being received, and whether the data is wanted.
    #[inline]
    pub fn data(&self) -> Option<(u32, bool)> {
        let (id, _) = self.receiving?;
        let wanted = self
            .requests
            .get(id)
            .is_some_and(|request| !request.answered);
        Some((id, wanted))
    }

    /// Notes `n` bytes of data, which were taken out of the inbox.
    pub fn data_received(&mut self, n: usize, now: Instant) {
        let Some((id, last)) = self.receiving.filter(|_| n > 0) else {
            return;
        };
        let whole = last && self.inbox.data_left() == 0;
        if let Some(request) = self.requests.get_mut(id) {
            request.moved = now;
            // Its backend may be done before the next frame is read.
            request.up_ended |= whole && request.up_left == 0;
        }
    }

    /// Admits the guest: answers its Hello. `info` is the answer to Info, `terms` the limits of the
    /// session.
    pub fn admit(&mut self, terms: Terms, now: Instant) {
        let Some((header, hello)) = &self.hello else {
            return;
        };
        self.terms = self.terms.common(terms);
        self.terms.features = self.terms.features.common(hello.features);
        let reply = HelloReply {
            version: negotiate_version(hello).expect("checked when Hello came"),
            features: self.terms.features,
            max_lanes: self.terms.max_lanes,
            max_requests: self.terms.max_requests,
            max_handles: self.terms.max_handles,
            initial_credit: self.terms.initial_credit,
            epoch: self.epoch,
        };
        let header = FrameHeader::reply_to(header, Status::OK);
        self.tally.count(Op::Hello, OpResult::Ok);
        self.begin_to_send(now);
        self.outbox.push(header, |body| reply.encode_to(body));
        self.admitted = true;
        // Getting ready may take seconds, which do not count against the guest.
        self.received = now;
    }

    /// Refuses new requests from here on; those under way go on.
    pub fn drain(&mut self, code: ErrorCode, text: &str) {
        self.draining = Some(Failure {
            status: code.into(),
            text: text.to_owned(),
        });
    }

    /// Answers Hello with an error.
    pub fn turn_away(&mut self, code: ErrorCode, text: &str) {
        if let Some((header, _)) = self.hello {
            self.answer_error(&header, code.into(), text);
        }
    }

    /// Ends the session on the mediator's own initiative.
    pub fn close(&mut self, code: ErrorCode, text: &str) {
        let header = FrameHeader::closing(code.into());
        self.outbox.push(header, |body| {
            body.extend_from_slice(encode_error_text(text))
        });
    }

    fn fault(&mut self, what: String) -> End {
        self.close(ErrorCode::Protocol, &what);
        End::Fault(what)
    }

    fn on_data(&mut self, header: &FrameHeader, now: Instant) -> Result<(), End> {
        let len = u64::from(header.body_len);
        let id = header.request_id;
        let what = match self.requests.get_mut(id) {
            Some(request) if !request.up_ended && request.header.lane == header.lane => {
                let whole = request.up_left == len;
                if len > request.up_left {
                    format!("{len} bytes of data, {} due", request.up_left)
                } else if len > request.credit {
                    format!("{len} bytes of data, {} granted", request.credit)
                } else if header.has_more() && (whole || len == 0) {
                    format!("{len} bytes of data, and more to come where none is")
                } else {
                    request.credit -= len;
                    request.up_left -= len;
                    request.moved = now;
                    if request.answered && request.header.is_quiet() {
                        request.let_come();
                    }
                    self.receiving = Some((id, !header.has_more()));
                    return Ok(());
                }
            }
            _ => "data where none is due".to_owned(),
        };
        Err(self.fault(format!("request {id}: {what}")))
    }

    /// Handles the last byte of a request's data; returns a cancellation if it came too early.
    fn data_ended(&mut self, id: u32) -> Option<Step> {
        let request = self.requests.get_mut(id)?;
        request.up_ended = true;
        let whole = request.up_left == 0;
        if request.answered {
            self.requests.remove(id);
            return None;
        }
        if whole {
            return None;
        }
        Some(Step::Cancel(id))
    }

    fn on_request(&mut self, header: &FrameHeader, now: Instant) -> Result<Option<Step>, End> {
        self.counts.requests += 1;
        if !self.is_open() {
            return self.on_first(header).map(Some);
        }
        if header.op == Op::Hello {
            return Err(self.fault("a second Hello".to_owned()));
        }
        self.check_id(header)?;
        let decoded = Request::decode(header.op, self.inbox.body());
        self.on_decoded(header, decoded, now)
    }

    fn on_decoded(
        &mut self,
        header: &FrameHeader,
        decoded: Result<Request, BodyError>,
        now: Instant,
    ) -> Result<Option<Step>, End> {
        let takes_data = header.op.spec().is_some_and(|spec| spec.data.0);
        if let Err(error) = &decoded
            && takes_data
        {
            // The amount of data to drop would be unknown.
            return Err(self.fault(error.to_string()));
        }
        // Needed even if the request is refused: its data arrives all the same.
        let (up, down) = decoded.as_ref().map_or((0, 0), Request::data);
        let refused = self
            .refuse(header)
            .or(decoded.as_ref().err().map(|error| Failure {
                status: ErrorCode::Range.into(),
                text: error.to_string(),
            }))
            .or(self.was_withdrawn(header.request_id));
        // A well-behaved guest ends the data of a failed request before it sends another, so this
        // fills up only when a guest opens requests and never ends them.
        if self.requests.unwanted() >= 2 * usize::from(self.terms.max_requests.get()) {
            return Err(
                self.fault("more failed requests with data to come than requests".to_owned())
            );
        }
        self.requests.push(InFlight {
            header: *header,
            up_left: up,
            up_ended: up == 0,
            credit: self.terms.initial_credit.into(),
            untold: 0,
            down_left: down,
            outcome: None,
            answered: false,
            behind: 0,
            began: now,
            moved: now,
            shown: now,
            patience: header.patience(self.timeouts.stall),
        });
        let id = header.request_id;
        if let Some(failure) = refused {
            self.complete(id, Err(failure), now);
            return Ok(None);
        }
        match decoded {
            Ok(Request::Goodbye(_)) => {
                self.complete(id, Ok(GoodbyeReply {}.encode()), now);
                return Err(End::Goodbye);
            }
            Ok(request) => return Ok(Some(Step::Start(*header, request))),
            // It was refused.
            Err(_) => {}
        }
        Ok(None)
    }

    /// An id that is in use ends the session.
    fn check_id(&mut self, header: &FrameHeader) -> Result<(), End> {
        match self.requests.get(header.request_id) {
            None => Ok(()),
            Some(_) => Err(self.fault(format!(
                "request {} again before it is over",
                header.request_id
            ))),
        }
    }

    /// The reason why a request must not be run, if there is one.
    fn refuse(&self, header: &FrameHeader) -> Option<Failure> {
        if self.draining.is_some() && header.op != Op::Goodbye {
            return self.draining.clone();
        }
        let lanes = self.terms.max_lanes.get();
        let (code, text) = if header.lane >= lanes {
            let text = format!(
                "lane {} was not offered; lanes are 0 to {}",
                header.lane,
                lanes - 1
            );
            (ErrorCode::Range, text)
        } else if !self.allowed.contains(header.op) {
            let text = format!("the mediator does not allow {} to this guest", header.op);
            (ErrorCode::Unsupported, text)
        } else if !self.terms.features.contains(header.needs()) {
            let text = format!("{} needs a feature that Hello did not agree on", header.op);
            (ErrorCode::Unsupported, text)
        } else if self.requests.count(header.is_quiet())
            >= most_requests(self.terms.max_requests, header.op)
        {
            // Quiet ones are counted separately: a guest does not know when they are over.
            (ErrorCode::Busy, "too many requests under way".to_owned())
        } else {
            return None;
        };
        let status = code.into();
        Some(Failure { status, text })
    }

    fn on_first(&mut self, header: &FrameHeader) -> Result<Step, End> {
        let fault = |server: &mut Self, what: String| {
            server.answer_error(header, ErrorCode::Protocol.into(), &what);
            End::Fault(what)
        };
        if header.op != Op::Hello || self.hello.is_some() {
            let what = format!("the first request is {}, not Hello", header.op);
            return Err(fault(self, what));
        }
        let hello = match Hello::decode(self.inbox.body()) {
            Ok(hello) => hello,
            Err(error) => return Err(fault(self, error.to_string())),
        };
        if let Some(refusal) = self.refusal.clone() {
            self.answer_error(header, refusal.code.into(), &refusal.text);
            return Err(End::Refused(refusal));
        }
        if negotiate_version(&hello).is_none() {
            let text = format!(
                "no version in common: the guest speaks {} to {}, the mediator {MIN_VERSION} to \
                 {VERSION}; update the older of the two",
                hello.min_version, hello.max_version
            );
            self.answer_error(header, ErrorCode::Version.into(), &text);
            return Err(End::Fault(text));
        }
        self.hello = Some((*header, hello));
        Ok(Step::Admit)
    }

    fn answer_error(&mut self, header: &FrameHeader, status: Status, text: &str) {
        self.count_failed(header.op);
        let header = FrameHeader::reply_to(header, status).with_flags(self.news());
        self.outbox.push(header, |body| {
            body.extend_from_slice(encode_error_text(text))
        });
    }

    fn count_failed(&mut self, op: Op) {
        self.counts.failed += 1;
        self.tally.count(op, OpResult::Failed);
    }

    /// The flags that every reply carries.
    fn news(&self) -> Flags {
        match self.failures_behind || !self.failures.is_empty() {
            true => self.printed_flag().with(Flags::FAILURES),
            false => self.printed_flag(),
        }
    }

    fn printed_flag(&self) -> Flags {
        match self.printed && self.terms.features.contains(Features::PRINTED) {
            true => Flags::PRINTED,
            false => Flags::NONE,
        }
    }

    /// Completes a request, whether it succeeded or failed. Its answer is sent after its data, and
    /// a Fence's answer after those before it. An id that is not under way is ignored.
    pub fn complete(&mut self, id: u32, outcome: Outcome, now: Instant) {
        let Some(request) = self
            .requests
            .get_mut(id)
            .filter(|request| !request.answered)
        else {
            return;
        };
        request.moved = now;
        let outcome = match self.overtaker.take_if(|(overtaker, _)| *overtaker == id) {
            Some((_, stream)) => self.withdraw(stream, outcome),
            None => outcome,
        };
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.outcome = Some(outcome);
        if !request.header.is_quiet() {
            // The clock ticks rarely, and this is cheaper than a subtraction of times.
            let took = match now == request.began {
                true => Duration::ZERO,
                false => now.saturating_duration_since(request.began),
            };
            self.counts.durations.add(took);
        }
        self.begin_to_send(now);
        self.answer_what_is_done();
    }

    /// The guest's time for taking replies starts here, if none waits.
    fn begin_to_send(&mut self, now: Instant) {
        if !self.has_replies() {
            self.sent = now;
            self.only_shows = false;
        }
    }

    /// Sets whether the backend knows of failures of quiet requests that it has not reported.
    pub fn set_failures_behind(&mut self, some: bool) {
        self.failures_behind = some;
    }

    /// Whether kernels have printed something that has not been taken.
    pub fn set_printed(&mut self, some: bool) {
        self.printed = some;
    }

    fn answer_what_is_done(&mut self) {
        // An answer may release a fence behind it.
        while let Some(id) = self.answerable() {
            self.answer(id);
        }
    }

    fn answerable(&self) -> Option<u32> {
        let mut requests = self.requests.iter();
        requests
            .find(|request| request.is_ready())
            .map(|request| request.header.request_id)
    }

    fn answer(&mut self, id: u32) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let header = request.header;
        let Some(mut outcome) = request.outcome.take() else {
            return;
        };
        if outcome.is_ok() && (!request.up_ended || request.up_left > 0) {
            let code = match request.up_ended {
                true => ErrorCode::Cancelled,
                false => ErrorCode::Internal,
            };
            outcome = Err(Failure {
                status: code.into(),
                text: format!("{} ended before its data did", header.op),
            });
        }
        let fence = match &outcome {
            Ok(body) if header.op == Op::Fence => match FenceReply::decode(body) {
                Ok(more) => Some(more),
                Err(error) => {
                    outcome = Err(Failure {
                        status: ErrorCode::Internal.into(),
                        text: error.to_string(),
                    });
                    None
                }
            },
            _ => None,
        };
        if header.is_quiet() {
            // No answer tells the guest to stop.
            request.let_come();
        } else {
            // After the answer it might be taken for credit of the next request with the same id.
            request.untold = 0;
        }
        self.requests.answered(id);
        if outcome.is_ok() {
            self.tally.count(header.op, OpResult::Ok);
        }
        match outcome {
            Ok(_) if header.is_quiet() => {}
            Ok(body) => {
                let header = FrameHeader::reply_to(&header, Status::OK);
                if let Some(more) = fence {
                    self.failures.add_all(&more);
                    let failures = std::mem::take(&mut self.failures);
                    let header = header.with_flags(self.printed_flag());
                    self.outbox.push(header, |out| failures.encode_to(out));
                } else {
                    let header = header.with_flags(self.news());
                    self.outbox.push(header, |out| out.extend_from_slice(&body));
                }
            }
            Err(Failure { status, .. }) if header.is_quiet() => {
                self.count_failed(header.op);
                self.failures.add(QuietFailure {
                    request_id: id,
                    op: header.op,
                    status,
                });
            }
            Err(Failure { status, text }) => self.answer_error(&header, status, &text),
        }
    }

    /// Grants room for `bytes` more of a request's data.
    pub fn grant(&mut self, id: u32, bytes: u64, now: Instant) {
        let request = self.requests.get_mut(id);
        // Once no more of it is wanted, the guest may reuse the id.
        let wanted = |request: &&mut InFlight| !request.up_ended && !request.answered;
        if let Some(request) = request.filter(wanted) {
            request.grant(bytes);
            request.moved = now;
        }
    }

    /// Notes progress on a request that the guest cannot see yet. From time to time the guest is
    /// shown it: a guest that waits for long work learns that it goes on.
    pub fn progressed(&mut self, id: u32, now: Instant) {
        // Bytes that wait to be taken show as much.
        let quiet = self.outbox.is_empty();
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.moved = now;
        if quiet && !request.answered && now.saturating_duration_since(request.shown) >= SHOW {
            request.shown = now;
            let credit = take_credit(request);
            let header = FrameHeader::data_down(&request.header, 0, credit);
            self.begin_to_send(now);
            self.outbox.begin_data(&header);
        }
    }

    /// Notes that the backend can start no request now. What the guest has sent waits, so its silence does not count.
    pub fn held_up(&mut self, now: Instant) {
        self.received = now;
    }

    /// Notes progress of the backend's while it can start no request: from time to time the guest is shown it, whatever
    /// it waits for may not have been read yet.
    pub fn works(&mut self, now: Instant) {
        if self.is_open()
            && self.outbox.is_empty()
            && now.saturating_duration_since(self.shown) >= SHOW
        {
            self.shown = now;
            self.only_shows = true;
            self.outbox.begin_data(&FrameHeader::working());
        }
    }

    /// Whether the request is under way, so that the backend knows of it.
    #[inline]
    pub fn is_running(&self, id: u32) -> bool {
        self.requests
            .get(id)
            .is_some_and(|request| !request.answered)
    }

    /// The requests whose data may go down, in order of arrival, and the bytes of each; none while
    /// a frame of data is under way.
    pub fn downs(&self) -> impl Iterator<Item = (u32, u64)> {
        let free = self.outbox.data().is_none();
        let due = self
            .requests
            .iter()
            .filter(move |request| free && request.down_left > 0 && !request.answered);
        due.map(|request| (request.header.request_id, request.down_left))
    }

    /// Begins a frame with `len` bytes of a request's data, which must be at hand.
    ///
    /// # Panics
    /// If `len` is 0 or more than [`downs`](Self::downs) returned.
    pub fn begin_down(&mut self, id: u32, len: u32, now: Instant) {
        self.begin_to_send(now);
        if let Some(request) = self.requests.get_mut(id) {
            let due = request.down_left.min(MAX_DATA.into());
            assert!((1..=due).contains(&len.into()) && !request.answered);
            let credit = take_credit(request);
            request.shown = now;
            let header = FrameHeader::data_down(&request.header, len, credit);
            self.outbox.begin_data(&header);
        }
    }

    /// Sends granted credit to the guest, where no data going down carries it.
    pub fn tell_credit(&mut self, now: Instant) {
        let untold = self.requests.iter().any(|request| request.untold > 0);
        if !untold || self.outbox.data().is_some() {
            return;
        }
        self.begin_to_send(now);
        for request in self
            .requests
            .iter_mut()
            .filter(|request| request.untold > 0)
        {
            let credit = take_credit(request);
            request.shown = now;
            let header = FrameHeader::data_down(&request.header, 0, credit);
            self.outbox.begin_data(&header);
        }
    }

    /// Notes that `n` bytes of the outbox and the data under way were sent; returns the request
    /// whose data they include, and the bytes of it.
    pub fn sent(&mut self, n: usize, now: Instant) -> Option<(u32, usize)> {
        if n > 0 {
            self.sent = now;
        }
        let (id, n) = self.outbox.sent(n)?;
        if let Some(request) = self.requests.get_mut(id) {
            request.down_left = request.down_left.saturating_sub(n as u64);
            request.moved = now;
            if request.down_left == 0 {
                self.answer_what_is_done();
            }
        }
        Some((id, n))
    }

    /// The time of the next deadline, if nothing happens before.
    pub fn deadline(&self) -> Instant {
        let mut first = None;
        self.each_deadline(|at, _| first = Some(first.map_or(at, |first: Instant| first.min(at))));
        first.unwrap_or(self.received + self.timeouts.idle)
    }

    /// This side did not run for `rest`, until `now`: that time counts neither as the guest's
    /// silence nor as the backend's.
    pub fn rested(&mut self, rest: Duration, now: Instant) {
        let after = |at: &mut Instant| *at = super::after_rest(*at, rest, now);
        after(&mut self.began);
        after(&mut self.received);
        after(&mut self.sent);
        for request in self.requests.iter_mut() {
            after(&mut request.began);
            after(&mut request.moved);
        }
    }

    /// The deadline that has passed at `now`, if any.
    pub fn late(&self, now: Instant) -> Option<Late> {
        let mut late = None;
        self.each_deadline(|at, what| {
            if now >= at && late.is_none() {
                late = Some(what());
            }
        });
        late
    }

    /// Visits every deadline.
    fn each_deadline(&self, mut visit: impl FnMut(Instant, &dyn Fn() -> Late)) {
        let session = |what: &str, time: Duration| {
            Late::Session(format!("{what} within {} ms", time.as_millis()))
        };
        let Timeouts {
            hello,
            idle,
            stall,
            request: in_all,
        } = self.timeouts;
        if self.hello.is_none() {
            visit(self.began + hello, &|| session("no complete Hello", hello));
        }
        if self.has_replies() {
            let taken = "no reply taken";
            visit(self.sent + stall, &|| session(taken, stall));
        }
        // Requests before a fence have their own deadlines.
        let counted = |request: &&InFlight| !request.answered && !request.is_behind_others();
        for request in self.requests.iter().filter(counted) {
            let (id, op, patience) = (
                request.header.request_id,
                request.header.op,
                request.patience,
            );
            visit(request.moved + patience, &|| {
                let ms = patience.as_millis();
                Late::Request(
                    id,
                    format!("nothing moved for {ms} ms in the middle of {op}"),
                )
            });
            if let Some(in_all) = in_all {
                visit(request.began + in_all, &|| {
                    let ms = in_all.as_millis();
                    Late::Request(id, format!("{op} took longer than {ms} ms"))
                });
            }
        }
        let waits_for_room = matches!(self.data(), Some((_, true)));
        // While a guest takes replies, nothing need arrive from it.
        let moved = self.received.max(self.sent);
        if self.inbox.is_partial() && !waits_for_room {
            visit(moved + stall, &|| {
                session("half a frame and no more", stall)
            });
        } else if self.is_open() && !self.is_busy() {
            visit(moved + idle, &|| session("no request", idle));
        } else if self.requests.iter().any(|request| request.answered) {
            visit(moved + stall, &|| {
                session("half a request and no more", stall)
            });
        }
    }
}

impl InFlight {
    fn grant(&mut self, bytes: u64) {
        // Never more than the rest of the data.
        let bytes = bytes.min(self.up_left.saturating_sub(self.credit));
        self.credit += bytes;
        self.untold += bytes;
    }

    /// Grants credit for data that is dropped, where it runs short.
    fn let_come(&mut self) {
        if !self.up_ended && self.credit < DROPPED / 2 {
            self.grant(DROPPED - self.credit);
        }
    }
}

/// The credit to send for a request in one frame.
fn take_credit(request: &mut InFlight) -> u32 {
    let credit = u32::try_from(request.untold).unwrap_or(u32::MAX);
    request.untold -= u64::from(credit);
    credit
}
