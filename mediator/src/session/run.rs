//! The loop of a session: moves bytes between the guest's stream, the rules and the backend.
//!
//! Whenever a byte can move it is moved; only when none can does the thread wait, for everything at
//! once: the guest, the device or the other mediator, and the next deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::MAX_DATA;
use vgpu_protocol::op::{Body, Request};
use vgpu_protocol::session::server::{End, Late, Step};
use vgpu_protocol::session::server::{Failure, Terms};
use vgpu_protocol::session::{Server, next_in_turn};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::clock::{self, Rests};
use vgpu_transport::{Interest, Transport, TransportError};

use super::backend::{Event, SessionBackend};
use super::stream::{Stream, Waiting};
use super::{SessionEnd, Settings, StopFlag, StopReason};
use crate::usage::Observed;

/// How soon an idle session notices that the broker wants it to end.
const STOP_CHECK: Duration = Duration::from_millis(250);

/// How soon a backend that runs something is asked, though nothing has said that it has news: a
/// driver that has failed need not say so.
const BACKEND_CHECK: Duration = Duration::from_millis(100);

/// Time for the last frames and the close of the transport.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Longest time for a backend to get ready, though the guest may wait longer for the answer to its Hello.
const LONGEST_OPENING: Duration = Duration::from_secs(60);

/// A peer that wakes this thread this often without moving a byte is slowed down from there on.
const FRUITLESS_WAKES: u32 = 64;

/// Bytes read between two looks at everything else: results and room are not to wait for a stream
/// that never pauses.
const READ_AT_ONCE: usize = 256 << 10;

/// Filler for data that will not come: its request has failed in the middle of a frame.
static ZEROS: [u8; 4096] = [0; 4096];

/// Runs a session over `stream` until it ends, and closes the stream.
pub(crate) fn run(
    stream: &mut Stream,
    backend: &mut dyn SessionBackend,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut server = Server::new(
        settings.terms,
        settings.timeouts,
        settings.epoch,
        settings.refusal.clone(),
        clock::now(),
    );
    server.allow_only(settings.operations);
    server.count_in(Arc::clone(observed.counters.tally()));
    let mut session = Session {
        stream,
        backend,
        server,
        own_terms: settings.terms,
        observed,
        stop,
        stopping: None,
        waiting: Waiting::new(),
        last_down: 0,
        no_room: false,
        unflushed: false,
        read_left: 0,
        dry: false,
        sent_data: false,
        judged: None,
        rests: Rests::new(),
        cut: false,
        fruitless: 0,
    };
    let end = loop {
        if let Err(end) = session.turn() {
            break end;
        }
    };
    session.finish();
    end
}

struct Session<'a> {
    stream: &'a mut Stream,
    backend: &'a mut dyn SessionBackend,
    server: Server,
    own_terms: Terms,
    observed: &'a Observed,
    stop: &'a StopFlag,
    /// No new requests are run; the session ends when those under way are over.
    stopping: Option<StopReason>,
    waiting: Waiting,
    /// The request whose data was sent last: the next frame is another's, if another has data.
    last_down: u32,
    /// Data has come for which the backend has no room now.
    no_room: bool,
    unflushed: bool,
    /// Bytes that may still be read in this turn.
    read_left: usize,
    /// The last read took all there was: what has come since is found by the wait.
    dry: bool,
    /// Data of the backend's was sent in this turn: it may have room or more data now.
    sent_data: bool,
    /// The moment for which it was last judged what is late.
    judged: Option<Instant>,
    rests: Rests,
    /// Nothing can be sent any more: the guest is gone.
    cut: bool,
    fruitless: u32,
}

impl Session<'_> {
    /// Moves what can be moved, then waits if nothing more can be.
    fn turn(&mut self) -> Result<(), SessionEnd> {
        // Read before the look, so that there is one after every deadline.
        let now = clock::now();
        if let Some(rest) = self.rests.end_at(now) {
            self.server.rested(rest, now);
            self.backend.rested(rest, now);
        }
        let mut moved = self.take_events(now)?;
        moved |= self.read(now)?;
        let held_back = !self.server.may_receive();
        // Before anything is answered: a guest with an answer finds its request counted.
        self.count();
        // Last, so that what was just asked is answered before the wait.
        let wrote = self.write(now)?;
        moved |= wrote;
        let more = self.read_left == 0 || self.sent_data || (wrote && held_back);
        if moved {
            self.fruitless = 0;
            self.waiting.progress();
        }
        // Also while bytes move: a busy lane must keep neither a stop nor another lane's deadline.
        self.check_stop()?;
        let late = match self.judged.replace(now) {
            // The clock ticks much more rarely than bytes move.
            Some(before) if before == now => None,
            _ => self.server.late(now),
        };
        match late {
            None if more => Ok(()),
            None => self.wait(now),
            Some(Late::Session(text)) => {
                if self.server.outbox().is_empty() {
                    self.server.close(ErrorCode::Timeout, &text);
                }
                Err(SessionEnd::TimedOut(text))
            }
            Some(Late::Request(id, text)) => {
                self.backend.cancel(id);
                let status = ErrorCode::Timeout.into();
                self.server.complete(id, Err(Failure { status, text }), now);
                Ok(())
            }
        }
    }

    /// Takes the backend's events.
    fn take_events(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        let mut moved = false;
        while let Some(event) = self.backend.next_event() {
            moved = true;
            match event {
                Event::Done(id, outcome) => self.server.complete(id, outcome, now),
                Event::Room(id, bytes) => self.server.grant(id, bytes, now),
                Event::Moved(id) => self.server.progressed(id, now),
                Event::Working => self.server.works(now),
                Event::Failures(some) => self.server.set_failures_behind(some),
                Event::Uses(device) => self.observed.counters.set_device(device),
                Event::FailedLater(op) => self.observed.counters.failed_later(op),
                Event::Printed(some) => self.server.set_printed(some),
                Event::Worked(device_ns) => self.observed.counters.worked(device_ns),
                Event::Beside(came, went) => {
                    self.observed.counters.received(came);
                    self.observed.counters.sent(went);
                }
                Event::Lost(lost) => {
                    self.server.close(lost.code, &lost.text);
                    return Err(lost.end);
                }
            }
        }
        Ok(moved)
    }

    /// Shows others what has been asked and what it comes to.
    fn count(&self) {
        let (counts, under_way) = (self.server.counts(), self.server.under_way());
        let load = self.backend.load();
        self.observed.counters.asked(counts, under_way, load);
    }

    /// Sends what there is room for.
    fn write(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        let mut moved = false;
        self.sent_data = false;
        loop {
            if self.server.outbox().data().is_none() && !self.server.is_idle() {
                self.begin_data(now);
            }
            let data = self.server.outbox().data();
            let running = data.is_some_and(|(id, _)| self.server.is_running(id));
            let body = match data {
                Some((id, left)) if running => {
                    let output = self.backend.output(id);
                    &output[..left.min(output.len())]
                }
                Some((_, left)) => &ZEROS[..left.min(ZEROS.len())],
                None => &[],
            };
            let parts = [self.server.outbox().unsent(), body];
            if parts.iter().all(|part| part.is_empty()) {
                return Ok(moved);
            }
            let sent = self.stream.try_write_parts(&parts);
            let n = sent.map_err(|error| self.failed(error))?;
            if n == 0 {
                return Ok(moved);
            }
            moved = true;
            self.unflushed = true;
            self.observed.counters.sent(n);
            if let Some((id, n)) = self.server.sent(n, now)
                && running
            {
                self.backend.sent(id, n);
                self.sent_data = true;
            }
        }
    }

    /// Begins a frame of data for the guest, if there is some, or tells what room there is.
    fn begin_data(&mut self, now: Instant) {
        let backend = &mut self.backend;
        let at_hand = self.server.downs().map(|(id, left)| {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let ready = backend.output(id).len().min(most);
            (id, ready.min(MAX_DATA as usize))
        });
        match next_in_turn(self.last_down, at_hand) {
            Some((id, ready)) => {
                self.last_down = id;
                let len = u32::try_from(ready).expect("at most MAX_DATA");
                self.server.begin_down(id, len, now);
            }
            None => self.server.tell_credit(now),
        }
    }

    /// Takes what has come, up to [`READ_AT_ONCE`] bytes.
    fn read(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        let mut moved = false;
        self.no_room = false;
        self.read_left = READ_AT_ONCE;
        self.dry = false;
        while self.read_left > 0 {
            if !self.server.may_receive() {
                break;
            }
            let progress = match self.server.inbox().data_left() {
                0 if !self.may_start() => {
                    self.server.held_up(now);
                    self.look_behind(now)?
                }
                0 => self.take_step(now)? || self.read_ahead(now)?,
                _ => {
                    let taken = self.take_data(now)?;
                    taken || (self.no_room && self.look_behind(now)?)
                }
            };
            if !progress {
                break;
            }
            moved = true;
            self.read_left = self.read_left.saturating_sub(1);
        }
        Ok(moved)
    }

    /// Does what the next frame calls for, if one is there.
    fn take_step(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        match self.server.next(now) {
            Err(end) => return Err(end.into()),
            Ok(None) => return Ok(self.server.inbox().data_left() > 0),
            Ok(Some(step)) => self.begin(step, now)?,
        }
        Ok(true)
    }

    fn begin(&mut self, step: Step, now: Instant) -> Result<(), SessionEnd> {
        match step {
            Step::Start(header, request) => match request {
                Request::Statistics(_) if self.backend.has_no_figures() => {
                    self.count();
                    let body = self.observed.counters.statistics().encode();
                    self.server.complete(header.request_id, Ok(body), now);
                }
                request => self.backend.start(&header, request),
            },
            Step::Admit => self.admit()?,
            Step::Cancel(id) => {
                self.backend.cancel(id);
                let text = "the guest ended the data early".to_owned();
                let status = ErrorCode::Cancelled.into();
                self.server.complete(id, Err(Failure { status, text }), now);
            }
        }
        self.take_events(now)?;
        Ok(())
    }

    /// Whether the next request may be started.
    fn may_start(&self) -> bool {
        self.backend.may_start() && self.server.may_start()
    }

    /// Reads on where the next request cannot start, or its data has no room: for those that overtake it, and for the end of
    /// the stream.
    fn look_behind(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        let mut moved = false;
        let space = self.server.space_behind();
        let wanted = space.len();
        if wanted > 0 && !self.dry {
            let read = self.stream.try_read(space);
            if let Some(n) = self.count_received(read, wanted, now)? {
                self.server.inbox().received(n);
                moved = true;
            }
        }
        while let Some(step) = self.server.overtaking(now)? {
            self.begin(step, now)?;
            moved = true;
        }
        Ok(moved)
    }

    fn admit(&mut self) -> Result<(), SessionEnd> {
        let opened = match self
            .backend
            .open(self.server.hello_patience(LONGEST_OPENING))
        {
            Ok(opened) => opened,
            Err(refused) => {
                self.server.turn_away(refused.code, &refused.text);
                return Err(refused.end);
            }
        };
        if let Some(name) = self.server.client_name() {
            let _ = self.observed.client.set(name);
        }
        let mut terms = opened.terms.unwrap_or(self.own_terms);
        terms.features = terms.features.common(opened.features);
        self.server.admit(terms, clock::now());
        Ok(())
    }

    /// Takes data of a request to where it belongs.
    fn take_data(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        let wanted = match self.server.data() {
            Some((id, true)) => Some(id),
            _ => None,
        };
        let inbox = self.server.inbox();
        if !inbox.has_unread() && (wanted.is_none() || inbox.direct() == 0) {
            return self.read_ahead(now);
        }
        let Some(id) = wanted else {
            let n = inbox.drop_data();
            self.server.data_received(n, now);
            return Ok(true);
        };
        let room = self.backend.input(id);
        if room.is_empty() {
            // Asking for room can have made the request fail.
            let news = self.take_events(now)?;
            self.no_room = !news;
            return Ok(news);
        }
        let n = match inbox.direct() {
            0 => inbox.take(room),
            direct => {
                let room_len = room.len();
                let space = &mut room[..direct.min(room_len)];
                let wanted = space.len();
                let read = self.stream.try_read(space);
                let Some(n) = self.count_received(read, wanted, now)? else {
                    return Ok(false);
                };
                self.server.inbox().took(n);
                n
            }
        };
        self.server.data_received(n, now);
        self.backend.filled(id, n);
        self.take_events(now)?;
        Ok(true)
    }

    /// Takes bytes into the inbox.
    fn read_ahead(&mut self, now: Instant) -> Result<bool, SessionEnd> {
        if self.dry {
            return Ok(false);
        }
        let space = self.server.inbox().space();
        let wanted = space.len();
        let read = self.stream.try_read(space);
        let Some(n) = self.count_received(read, wanted, now)? else {
            return Ok(false);
        };
        self.server.inbox().received(n);
        Ok(true)
    }

    fn count_received(
        &mut self,
        read: Result<Option<usize>, TransportError>,
        wanted: usize,
        now: Instant,
    ) -> Result<Option<usize>, SessionEnd> {
        match read {
            Ok(None) => Ok(None),
            Ok(Some(0)) => Err(self.failed(TransportError::Closed)),
            Ok(Some(n)) => {
                self.observed.counters.received(n);
                self.read_left = self.read_left.saturating_sub(n);
                self.dry = n < wanted;
                self.server.received(now);
                Ok(Some(n))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The end of the session that a failure of the stream causes.
    fn failed(&mut self, error: TransportError) -> SessionEnd {
        self.cut = true;
        match error {
            TransportError::Closed => SessionEnd::GuestClosed(self.server.is_busy()),
            TransportError::PeerViolation(what) => SessionEnd::GuestFault(what),
            other => SessionEnd::Transport(other),
        }
    }

    /// Ends the session when the broker wants it to end and every request is answered, whatever the
    /// guest still sends.
    fn check_stop(&mut self) -> Result<(), SessionEnd> {
        let Some(reason) = self.stop.get() else {
            return Ok(());
        };
        if self.stopping.is_none() {
            self.stopping = Some(reason);
            self.server.drain(reason.code(), &reason.to_string());
        }
        if self.server.has_work() {
            return Ok(());
        }
        self.server.close(reason.code(), &reason.to_string());
        Err(SessionEnd::Stopped(reason))
    }

    fn wait(&mut self, now: Instant) -> Result<(), SessionEnd> {
        let mut until = self.server.deadline().min(now + STOP_CHECK);
        if self.server.is_busy() {
            until = until.min(now + BACKEND_CHECK);
        }
        if let Some(due) = self.backend.due() {
            until = until.min(due);
        }
        self.rests.waits_until(until);
        let in_data = self.server.inbox().data_left() > 0;
        let goes_on = !self.no_room && (in_data || self.may_start());
        let reading = self.server.may_receive() && (goes_on || self.server.has_space_behind());
        let writing = !self.server.outbox().is_empty();
        // What it has sent may never be read up to its end.
        if !reading && self.stream.is_cut() {
            return Err(self.failed(TransportError::Closed));
        }
        self.sleep(reading, writing, until)
    }

    fn sleep(&mut self, read: bool, write: bool, until: Instant) -> Result<(), SessionEnd> {
        if self.unflushed {
            self.unflushed = false;
            match self.stream.flush(until) {
                Ok(()) => {}
                Err(TransportError::TimedOut(_)) => {
                    self.unflushed = true;
                    return Ok(());
                }
                Err(error) => return Err(self.failed(error)),
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
        let also = self.backend.also();
        match self.waiting.wait((self.stream, interest), also, until) {
            Ok(()) => {
                self.fruitless = self.fruitless.saturating_add(1);
                Ok(())
            }
            Err(TransportError::TimedOut(_)) => Ok(()),
            // The next call on the stream that failed says what is wrong with it.
            Err(TransportError::Closed | TransportError::PeerViolation(_)) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Sends the last replies if the guest takes them, and closes.
    fn finish(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        while !self.cut && !self.server.outbox().is_empty() && Instant::now() < deadline {
            match self.write_last() {
                Ok(true) => {}
                Ok(false) => {
                    if self.stream.flush(deadline).is_err()
                        || self.stream.wait(Interest::Write, deadline).is_err()
                    {
                        self.cut = true;
                    }
                }
                Err(_) => self.cut = true,
            }
        }
        self.count();
        self.backend.close();
        if let Err(error) = self.stream.close(deadline) {
            log::debug!("closing {}: {error}", self.stream.describe());
        }
    }

    /// Sends what is queued, and completes the frame that is under way; begins no other.
    fn write_last(&mut self) -> Result<bool, SessionEnd> {
        let body = match self.server.outbox().data() {
            Some((_, left)) => &ZEROS[..left.min(ZEROS.len())],
            None => &[],
        };
        let parts = [self.server.outbox().unsent(), body];
        let sent = self.stream.try_write_parts(&parts);
        let n = sent.map_err(|error| self.failed(error))?;
        self.observed.counters.sent(n);
        self.server.sent(n, clock::now());
        Ok(n > 0)
    }
}

impl From<End> for SessionEnd {
    fn from(end: End) -> Self {
        match end {
            End::Goodbye => Self::Goodbye,
            End::Fault(what) => Self::GuestFault(what),
            End::Refused(refusal) => Self::Refused(refusal),
        }
    }
}
