//! A session's transport with its state machine, and the steps in which bytes move between them.
//!
//! Nothing here knows of threads. A [`Wire`] belongs to one call at a time, which moves its own data and
//! everything that is not data for all calls; [`pump`](crate::pump) decides whose turn it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vgpu_protocol::frame::Flags;
use vgpu_protocol::op::field::{BodyBytes, Bytes};
use vgpu_protocol::op::{Op, Overtakes, Ping, Request};
use vgpu_protocol::session::{self, WINDOW, after_rest, client::Event, client::NotSent};
use vgpu_protocol::status::{Status, decode_error_text};
use vgpu_transport::clock::Rests;
use vgpu_transport::{Interest, Transport, TransportError, Waker};

use crate::data::Data;
use crate::error::Cause;
use crate::options::after;

/// How often a wait looks whether the program was told to stop.
pub(crate) const INTERRUPT_LOOK: Duration = Duration::from_millis(100);

/// Longest frame of data: a request of another lane waits for the end of one at most.
const MAX_FRAME: usize = 256 << 10;

/// Bytes that a call moves before it lets another one that has something to send go first.
const BYTES_OF_TURN: usize = 1 << 20;

/// A request on its way to the state machine.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Which lane of this program waits for it.
    pub(crate) lane: u16,
    /// The lane in its header: the same, except in tests of what a mediator refuses.
    pub(crate) header_lane: u16,
    pub(crate) quiet: bool,
    pub(crate) request: Request,
    /// When anything last moved for it.
    pub(crate) moved: Instant,
}

impl Asked {
    fn overtakes(&self) -> Overtakes {
        self.request.op().overtakes(self.quiet)
    }
}

/// A request that has been answered, or a quiet one that has been sent.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: u32,
    /// The body of its reply.
    pub(crate) body: BodyBytes,
    /// Quiet requests have failed.
    pub(crate) failures: bool,
}

/// The result of a call.
pub(crate) type Outcome = Result<Done, Cause>;

/// A call whose request has been queued.
#[derive(Debug)]
struct Call {
    /// 0 for one that cannot be sent.
    id: u32,
    lane: u16,
    op: Op,
    quiet: bool,
    /// Data goes up.
    uploads: bool,
    /// All its frames are sent once [`Wire::sent`] is this.
    mark: u64,
    moved: Instant,
    outcome: Option<Outcome>,
}

/// The transport and the state of one session.
pub(crate) struct Wire {
    transport: Box<dyn Transport>,
    machine: session::Client,
    /// How long nothing may move for a call.
    patience: Duration,
    /// The same for the mediator, which gives up when this side would: it can say why. 0 asks for nothing.
    patience_ms: u32,
    /// The requests beyond what the mediator takes at once, in order, at most one of each lane of this program.
    waiting: VecDeque<Asked>,
    calls: Vec<Call>,
    /// The request whose data is next in the inbox, if any is.
    receiving: u32,
    /// Bytes sent of all frames, less those of data.
    sent: u64,
    /// When bytes were last sent.
    wrote: Instant,
    /// When bytes last came.
    heard: Instant,
    /// The moment for which it was last judged what is late.
    judged: Option<Instant>,
    /// The request that has begun a frame of data last.
    last_sender: u32,
    moved_in_turn: usize,
    rests: Rests,
    /// The last write found no room for all it had.
    full: bool,
    /// The mediator takes no more bytes; what it said before is still read.
    closed: bool,
    unflushed: bool,
    said_goodbye: bool,
    /// Bytes queued in all when the mediator was last asked how far it is.
    asked_at: u64,
    /// The last reply's count of bytes that kernels have printed. For whoever asks, whichever lane it was for; no
    /// other data goes with it, so all accesses are relaxed.
    printed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("transport", &self.transport.describe())
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// A session whose Hello is about to leave, as a call of `lane`.
    pub(crate) fn new(
        transport: Box<dyn Transport>,
        client_name: &str,
        lane: u16,
        patience: Duration,
    ) -> Self {
        let machine = session::Client::new(client_name, patience);
        let now = Instant::now();
        let hello = Call {
            id: machine.under_way().next().expect("its Hello"),
            lane,
            op: Op::Hello,
            quiet: false,
            uploads: false,
            mark: machine.outbox().len() as u64,
            moved: now,
            outcome: None,
        };
        Self {
            transport,
            machine,
            patience,
            // Hello says nothing of it.
            patience_ms: 0,
            waiting: VecDeque::new(),
            calls: vec![hello],
            receiving: 0,
            sent: 0,
            wrote: now,
            heard: now,
            judged: None,
            last_sender: 0,
            moved_in_turn: 0,
            rests: Rests::new(),
            full: false,
            closed: false,
            unflushed: false,
            said_goodbye: false,
            asked_at: 0,
            printed: Arc::default(),
        }
    }

    /// Whether the last reply said that kernels have printed something.
    pub(crate) fn printed(&self) -> &Arc<AtomicBool> {
        &self.printed
    }

    /// The state machine.
    pub(crate) fn machine(&self) -> &session::Client {
        &self.machine
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
        self.patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    }

    /// Whether the mediator has answered a Goodbye.
    pub(crate) fn has_said_goodbye(&self) -> bool {
        self.said_goodbye
    }

    /// Queues `asked` behind the requests that are here, unless it overtakes them.
    pub(crate) fn ask(&mut self, asked: Asked) {
        if self.is_behind(&asked, self.waiting.len()) || !self.start(&asked) {
            self.waiting.push_back(asked);
        }
    }

    /// Whether `asked` has to wait for one of the first `n` requests that wait.
    fn is_behind(&self, asked: &Asked, n: usize) -> bool {
        let mut before = self.waiting.iter().take(n);
        match asked.overtakes() {
            Overtakes::Nothing => n > 0,
            Overtakes::OtherLanes => before.any(|other| other.header_lane == asked.header_lane),
            Overtakes::Everything => false,
        }
    }

    /// Begins the turn of a call.
    pub(crate) fn begin_turn(&mut self) {
        self.moved_in_turn = 0;
    }

    /// Notes whether this side did not run until `now`: that does not count as the mediator's silence.
    pub(crate) fn note_rest(&mut self, now: Instant) {
        let Some(rest) = self.rests.end_at(now) else {
            return;
        };
        let after = |at: &mut Instant| *at = after_rest(*at, rest, now);
        after(&mut self.wrote);
        after(&mut self.heard);
        self.calls
            .iter_mut()
            .for_each(|call| after(&mut call.moved));
        self.waiting
            .iter_mut()
            .for_each(|asked| after(&mut asked.moved));
    }

    /// Starts the requests that wait, as many as the mediator takes.
    pub(crate) fn start_waiting(&mut self) {
        let mut at = 0;
        while let Some(asked) = self.waiting.get(at) {
            if self.is_behind(asked, at) {
                at += 1;
                continue;
            }
            let asked = self.waiting.remove(at).expect("found there");
            if !self.start(&asked) {
                self.waiting.insert(at, asked);
                at += 1;
            }
        }
    }

    /// Makes a call of a request. Returns whether it is one: the mediator may take no more until another
    /// one is over, or has yet to start what it was sent.
    fn start(&mut self, asked: &Asked) -> bool {
        let op = asked.request.op();
        if asked.overtakes() == Overtakes::Nothing && self.machine.not_started() > WINDOW {
            self.ask_how_far();
            return false;
        }
        let mut header = self.machine.next_header(op);
        header = header
            .with_lane(asked.header_lane)
            .with_deadline_ms(self.patience_ms);
        if asked.quiet {
            header = header.with_flags(Flags::QUIET);
        }
        let refused = match self.machine.request(header, &asked.request) {
            Ok(()) => None,
            Err(NotSent::TooMany(_)) => return false,
            Err(error) => Some(error),
        };
        self.calls.push(Call {
            id: match refused {
                None => header.request_id,
                Some(_) => 0,
            },
            lane: asked.lane,
            op,
            quiet: asked.quiet,
            uploads: asked.request.data().0 > 0,
            mark: self.mark(),
            moved: asked.moved,
            outcome: refused.map(|error| Err(error.into())),
        });
        self.transport.count_beside(asked.request.bytes_beside());
        if op != Op::Goodbye {
            self.ask_how_far();
        }
        true
    }

    /// Has the mediator answer something from time to time, so that this side knows what it has started.
    fn ask_how_far(&mut self) {
        let sent = self.machine.queued();
        let due = self.machine.not_started() > WINDOW / 2 && sent - self.asked_at > WINDOW / 4;
        if due {
            let ping = Ping {
                payload: Bytes::default(),
            };
            let lane = self.machine.last_lane();
            let header = self.machine.next_header(Op::Ping).with_lane(lane);
            // Where too much is under way, there are answers to come.
            if self.machine.request(header, &ping.into()).is_ok() {
                self.asked_at = sent;
            }
        }
    }

    /// The value of [`Self::sent`] once everything that is queued now has been sent.
    fn mark(&self) -> u64 {
        self.sent + self.machine.outbox().len() as u64
    }

    fn call(&self, lane: u16) -> Option<&Call> {
        self.calls.iter().find(|call| call.lane == lane)
    }

    /// The call with the request `id`; none for one that was given up.
    fn call_of(&mut self, id: u32) -> Option<&mut Call> {
        self.calls.iter_mut().find(|call| call.id == id)
    }

    fn lane_of(&self, id: u32) -> Option<u16> {
        self.calls
            .iter()
            .find(|call| call.id == id)
            .map(|call| call.lane)
    }

    /// Sends what the transport takes at once: frames of all calls, and data of the call of `lane`.
    /// Returns whether anything has changed.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn write(
        &mut self,
        lane: u16,
        data: &mut Data<'_>,
        now: Instant,
    ) -> Result<bool, Cause> {
        // Most often there is nothing: after a wait for an answer.
        if self.closed || !self.has_to_send() {
            return Ok(false);
        }
        let own = self.call(lane).map_or(0, |call| call.id);
        if own != 0 && self.next_sender() == Some(own) {
            let len = self.machine.may_send(own).min(MAX_FRAME);
            self.machine.begin_up(own, len);
            self.last_sender = own;
            let mark = self.mark();
            if let Some(call) = self.call_of(own) {
                call.mark = mark;
            }
        }
        let outbox = self.machine.outbox();
        let up = match outbox.data() {
            Some((id, left)) if id == own => data.up.next(left),
            _ => &[],
        };
        let pieces = [outbox.unsent(), up];
        let used = 1 + usize::from(!up.is_empty());
        let offered = pieces[0].len() + up.len();
        if offered == 0 {
            return Ok(false);
        }
        match self.transport.try_write_parts(&pieces[..used]) {
            Ok(n) => {
                self.full = n < offered;
                if n > 0 {
                    self.note_sent(n, data, now);
                }
                Ok(n > 0)
            }
            Err(TransportError::Closed) => {
                self.closed = true;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the call of `lane` has nothing to do but to wait for its answer: all was sent, and what came was used.
    pub(crate) fn only_waits(&mut self, lane: u16) -> bool {
        let asks = |call: &Call| call.outcome.is_none() && !call.quiet && !call.uploads;
        !self.closed
            && self.machine.outbox().is_empty()
            && !self.machine.inbox().has_unread()
            && self.call(lane).is_some_and(asks)
    }

    /// Whether nothing is asked or under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.waiting.is_empty()
    }

    /// Whether anything is left to be sent of any call.
    fn has_to_send(&self) -> bool {
        !self.machine.outbox().is_empty() || self.calls.iter().any(|call| call.uploads)
    }

    fn note_sent(&mut self, n: usize, data: &mut Data<'_>, now: Instant) {
        self.unflushed = true;
        self.wrote = now;
        self.moved_in_turn += n;
        let of_data = match self.machine.sent(n) {
            Some((id, n)) => {
                data.up.advance(n);
                if let Some(call) = self.call_of(id) {
                    call.moved = now;
                }
                n
            }
            None => 0,
        };
        self.sent += (n - of_data) as u64;
    }

    /// The call whose data may go next, in turns; none while a frame of data is under way.
    fn next_sender(&self) -> Option<u32> {
        let uploads = self.calls.iter().filter(|call| call.uploads);
        uploads
            .map(|call| call.id)
            .filter(|id| self.machine.may_send(*id) > 0)
            .min_by_key(|id| (*id <= self.last_sender, *id))
    }

    /// Whether another write could send more, for any call or data of the call of `lane`.
    pub(crate) fn has_more(&self, lane: u16) -> bool {
        let own = self.call(lane).map_or(0, |call| call.id);
        let outbox = self.machine.outbox();
        let sendable = match outbox.data() {
            Some((id, _)) => id == own || !outbox.unsent().is_empty(),
            None => !outbox.is_empty() || self.next_sender() == Some(own),
        };
        sendable && !self.full && !self.closed
    }

    /// Takes what has come: what is said to any call, and data for the call of `lane`. Returns whether
    /// anything has changed.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn read(
        &mut self,
        lane: u16,
        data: &mut Data<'_>,
        now: Instant,
    ) -> Result<bool, Cause> {
        let own = self.call(lane).map_or(0, |call| call.id);
        if self.machine.inbox().has_unread() && self.take_in(own, data)? {
            return Ok(true);
        }
        let inbox = self.machine.inbox();
        if inbox.data_left() > 0 && inbox.has_unread() {
            // Only the thread of another call can take it.
            return Ok(false);
        }
        let direct = match self.receiving == own {
            true => inbox.direct(),
            false => 0,
        };
        let read = if direct > 0 {
            let space = data.down.space();
            let most = direct.min(space.len());
            self.transport.try_read(&mut space[..most])?
        } else {
            self.transport.try_read(inbox.space())?
        };
        let n = match read {
            None => return Ok(false),
            Some(0) => return Err(TransportError::Closed.into()),
            Some(n) => n,
        };
        self.heard = now;
        self.moved_in_turn += n;
        if direct > 0 {
            self.machine.inbox().took(n);
            self.own_data_came(own, n, data);
        } else {
            self.machine.inbox().received(n);
            self.take_in(own, data)?;
        }
        Ok(true)
    }

    fn own_data_came(&mut self, own: u32, n: usize, data: &mut Data<'_>) {
        let now = self.heard;
        if let Some(call) = self.call_of(own) {
            call.moved = now;
        }
        data.down.received(n);
    }

    /// Uses what is in the inbox, up to the end of the call `own` or data of another one. Returns
    /// whether anything has changed.
    fn take_in(&mut self, own: u32, data: &mut Data<'_>) -> Result<bool, Cause> {
        let mut changed = false;
        loop {
            if self.machine.inbox().data_left() > 0 {
                let n = match self.receiving {
                    id if id == own => {
                        let n = self.machine.inbox().take(data.down.space());
                        if n > 0 {
                            self.own_data_came(own, n, data);
                        }
                        n
                    }
                    id if self.lane_of(id).is_some() => 0,
                    // Its call was given up.
                    _ => self.machine.inbox().drop_data(),
                };
                if n == 0 {
                    return Ok(changed);
                }
                changed = true;
                continue;
            }
            match self.machine.next()? {
                None => return Ok(changed),
                Some(Event::Data(id)) => self.receiving = id,
                Some(Event::Credit(id, _)) => {
                    let now = self.heard;
                    if let Some(call) = self.call_of(id) {
                        call.moved = now;
                    }
                }
                Some(Event::Working) => {
                    // Any of these may be what it has not read yet.
                    let now = self.heard;
                    let calls = self.calls.iter_mut().map(|call| &mut call.moved);
                    let waiting = self.waiting.iter_mut().map(|asked| &mut asked.moved);
                    calls.chain(waiting).for_each(|moved| *moved = now);
                }
                Some(Event::Closing(status, text)) => {
                    return Err(Cause::Ended { status, text });
                }
                Some(Event::Reply {
                    id,
                    status,
                    failures,
                    printed,
                }) => {
                    self.printed.store(printed, Ordering::Relaxed);
                    self.answered(id, status, failures);
                    if id == own {
                        return Ok(true);
                    }
                }
            }
            changed = true;
        }
    }

    fn answered(&mut self, id: u32, status: Status, failures: bool) {
        let body = BodyBytes::from_slice(self.machine.body());
        // The state machine may have ended its data.
        let mark = self.mark();
        let now = self.heard;
        // One more can be started.
        self.waiting
            .iter_mut()
            .for_each(|waiting| waiting.moved = now);
        let Some(call) = self.call_of(id) else {
            return;
        };
        call.mark = mark;
        call.moved = now;
        let op = call.op;
        call.outcome = Some(match status.is_ok() {
            true => Ok(Done { id, body, failures }),
            false => Err(Cause::Refused {
                op,
                status,
                text: decode_error_text(&body),
            }),
        });
        self.said_goodbye |= op == Op::Goodbye && status.is_ok();
    }

    /// Whether a call is over, with nothing of it left to send.
    fn is_over(&self, call: &Call) -> bool {
        let answered = call.outcome.is_some();
        if answered && self.closed {
            // The rest can never be sent.
            return true;
        }
        let sending = self.machine.outbox().data();
        let sent = self.sent >= call.mark && sending.is_none_or(|(id, _)| id != call.id);
        sent && (answered || (call.quiet && self.machine.up_left(call.id) == 0))
    }

    /// The result of the call of `lane`, once it is over.
    pub(crate) fn finished(&mut self, lane: u16) -> Option<Outcome> {
        let at = self.calls.iter().position(|call| call.lane == lane)?;
        self.is_over(&self.calls[at]).then(|| self.remove(at))
    }

    /// A call of another lane than `lane` that is over.
    pub(crate) fn finished_other(&mut self, lane: u16) -> Option<(u16, Outcome)> {
        let over = |call: &Call| call.lane != lane && self.is_over(call);
        let at = self.calls.iter().position(over)?;
        let other = self.calls[at].lane;
        Some((other, self.remove(at)))
    }

    fn remove(&mut self, at: usize) -> Outcome {
        let call = self.calls.remove(at);
        call.outcome.unwrap_or_else(|| {
            Ok(Done {
                id: call.id,
                body: BodyBytes::new(),
                failures: false,
            })
        })
    }

    /// The lane that has to go on, if that is not `lane`: only its thread has the data that comes or
    /// leaves next. `moved`: the call of `lane` has not come to a halt.
    pub(crate) fn turn(&mut self, lane: u16, moved: bool) -> Option<u16> {
        let inbox = self.machine.inbox();
        let receiving = inbox.data_left() > 0 && inbox.has_unread();
        if receiving {
            let receiver = self.lane_of(self.receiving);
            if receiver.is_some_and(|receiver| receiver != lane) {
                return receiver;
            }
        }
        if self.closed || self.full || (moved && self.moved_in_turn < BYTES_OF_TURN) {
            return None;
        }
        let sender = match self.machine.outbox().data() {
            Some((id, _)) => id,
            None => self.next_sender()?,
        };
        self.lane_of(sender).filter(|sender| *sender != lane)
    }

    /// A lane that waits for anything.
    pub(crate) fn any_lane(&self) -> Option<u16> {
        let call = self.calls.first().map(|call| call.lane);
        call.or_else(|| self.waiting.front().map(|asked| asked.lane))
    }

    /// When the first call is to be given up if nothing moves for it.
    pub(crate) fn first_limit(&self, now: Instant) -> Instant {
        if let [call] = &self.calls[..]
            && self.waiting.is_empty()
        {
            return self.limit(call);
        }
        let calls = self.calls.iter().map(|call| self.limit(call));
        let waiting = self
            .waiting
            .iter()
            .map(|asked| after(asked.moved, self.patience));
        let first = calls.chain(waiting).min();
        first.unwrap_or_else(|| after(now, self.patience))
    }

    fn limit(&self, call: &Call) -> Instant {
        // While it waits for its turn to send, what others send counts for it too.
        let behind = self.sent < call.mark || (call.uploads && self.machine.has_credit(call.id));
        let moved = match behind {
            true => call.moved.max(self.wrote),
            false => call.moved,
        };
        after(moved, self.patience)
    }

    /// Waits until something may move, at the latest until the [`limit`](Self::first_limit) of a call;
    /// `waker` ends it too. Returns the limit if it has passed: then comes one last look, and
    /// [`give_up_late`](Self::give_up_late).
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn wait(
        &mut self,
        now: Instant,
        limit: Instant,
        waker: Option<&Waker>,
    ) -> Result<Option<Instant>, Cause> {
        let until = limit.min(now + INTERRUPT_LOOK);
        self.rests.waits_until(until);
        let interest = match self.closed || self.machine.outbox().is_empty() {
            true => Interest::Read,
            false => Interest::ReadOrWrite,
        };
        let waited = match waker {
            None => self.transport.wait(interest, until),
            Some(waker) => self.transport.wait_or(Some(interest), waker, until),
        };
        self.full = false;
        match waited {
            // Not the clock: the last look must come after the limit.
            Err(TransportError::TimedOut(_)) => Ok((until >= limit).then_some(until)),
            other => Ok(other.map(|()| None)?),
        }
    }

    /// Makes what was written visible to the mediator, until `limit` at the latest.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn flush(&mut self, limit: Instant) -> Result<(), Cause> {
        if !std::mem::take(&mut self.unflushed) {
            return Ok(());
        }
        match self.transport.flush(limit) {
            Err(TransportError::TimedOut(_)) => Err(Cause::Stalled(self.patience)),
            // Its last words may be there to be read.
            Err(TransportError::Closed) => {
                self.closed = true;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Gives up the calls whose limit was `at` or before.
    ///
    /// # Errors
    /// The mediator is silent as a whole, or cannot be told: the session is over.
    pub(crate) fn give_up_late(&mut self, at: Instant) -> Result<(), Cause> {
        // The clock ticks much more rarely than bytes move.
        if self.judged.replace(at) == Some(at) {
            return Ok(());
        }
        let silent = after(self.heard, self.patience) <= at;
        for index in 0..self.calls.len() {
            let call = &self.calls[index];
            if self.limit(call) > at {
                continue;
            }
            let id = call.id;
            if silent || !self.end_data(id) {
                return Err(Cause::Stalled(self.patience));
            }
            let call = &mut self.calls[index];
            // Nobody waits for its answer any more; the end of its data leaves with what comes next.
            call.id = 0;
            call.mark = 0;
            call.outcome = Some(Err(Cause::GivenUp(self.patience)));
        }
        let late = |asked: &Asked| after(asked.moved, self.patience) <= at;
        if self.waiting.iter().any(late) {
            return Err(Cause::Stalled(self.patience));
        }
        Ok(())
    }

    /// Ends the data of a request that nobody waits for any more. Returns whether that is possible: a
    /// frame that has begun can only be completed by the thread that has its data.
    fn end_data(&mut self, id: u32) -> bool {
        let sending = self.machine.outbox().data();
        if sending.is_some_and(|(sending, _)| sending == id) {
            return false;
        }
        self.machine.end_early(id);
        true
    }

    /// Forgets the call of `lane`, whose thread is gone. Returns whether the session can go on.
    pub(crate) fn abandon(&mut self, lane: u16) -> bool {
        self.waiting.retain(|asked| asked.lane != lane);
        let Some(at) = self.calls.iter().position(|call| call.lane == lane) else {
            return true;
        };
        let id = self.calls.remove(at).id;
        self.end_data(id)
    }

    /// Closes the transport, waiting at most as long as nothing may move for what was written to be
    /// taken: over NFS that is several calls to a server that may be busy.
    ///
    /// # Errors
    /// The transport's.
    pub(crate) fn close(&mut self) -> Result<(), TransportError> {
        let deadline = after(Instant::now(), self.patience);
        self.transport.close(deadline)
    }
}
