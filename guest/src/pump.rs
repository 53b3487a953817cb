//! The one loop that moves a session's bytes, and how the lanes of a session take turns at it.
//!
//! One call at a time leads: its thread owns the [`Wire`], moves its own data and whatever else comes and
//! goes, and waits for the transport without holding a lock. Calls of other threads leave their request at
//! the desk, wake the leader if it sleeps, and wait until they get their answer or the lead. They
//! get the lead when data of theirs comes or may leave, which only their thread can move, or when the call
//! that led is over. A program with one lane never waits for another: it takes the wire from the desk and
//! puts it back.
//!
//! No wait is without end. The leader gives up calls for which nothing moves; a call that waits gives up
//! when the leader shows no sign of life.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use vgpu_protocol::op::HelloReply;
use vgpu_transport::clock;
use vgpu_transport::{Transport, TransportError, Waker};

use crate::data::Data;
use crate::error::Cause;
use crate::options::{Options, after};
use crate::wire::{Asked, INTERRUPT_LOOK, Outcome, Wire};

/// The state that the lanes of a session share.
#[derive(Debug)]
pub(crate) struct Shared {
    options: Options,
    /// Wakes the leader; present once there is a second lane.
    waker: OnceLock<Waker>,
    /// The wire's, which says what it means.
    printed: Arc<AtomicBool>,
    desk: Mutex<Desk>,
}

#[derive(Debug)]
struct Desk {
    /// Here while nobody leads.
    wire: Option<Box<Wire>>,
    /// Requests that the leader has not seen.
    asked: Vec<Asked>,
    /// The leader waits for the transport, or is about to.
    asleep: bool,
    /// When the leader was here last.
    seen: Instant,
    /// Why the session is over.
    over: Option<String>,
    lanes: Vec<Option<Seat>>,
}

/// The waiting place of a lane's thread.
#[derive(Debug)]
struct Seat {
    call: Arc<Condvar>,
    news: Option<News>,
}

/// The events that a waiting call can receive.
#[derive(Debug)]
enum News {
    Lead(Box<Wire>),
    Over(Outcome),
}

/// How a call's time as the leader ended.
enum Led {
    Over(Outcome),
    /// The call of this lane has to go on first.
    Turn(u16),
}

/// One lane of a session, for one thread at a time.
#[derive(Debug)]
pub(crate) struct Lane {
    shared: Arc<Shared>,
    number: u16,
    called: Arc<Condvar>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.lock().lanes[usize::from(self.number)] = None;
    }
}

impl Lane {
    /// Opens a session on `transport`: its first lane, and the wire with Hello's answer.
    ///
    /// # Errors
    /// The mediator refuses, does not answer until `deadline`, or is not a mediator.
    pub(crate) fn open(
        transport: Box<dyn Transport>,
        options: &Options,
        deadline: Instant,
    ) -> Result<(Self, HelloReply), Cause> {
        let now = Instant::now();
        // Until the session is open, the time that is left to connect limits every wait.
        let patience = deadline.saturating_duration_since(now);
        let mut wire = Wire::new(transport, &options.client_name, 0, patience);
        let shared = Arc::new(Shared {
            options: options.clone(),
            waker: OnceLock::new(),
            printed: Arc::clone(wire.printed()),
            desk: Mutex::new(Desk {
                wire: None,
                asked: Vec::new(),
                asleep: false,
                seen: now,
                over: None,
                lanes: Vec::new(),
            }),
        });
        let lane = shared.seat(1).expect("a free seat in an empty session");
        drop(shared);
        match lane.drive(&mut wire, &mut Data::none(), None)? {
            Led::Over(outcome) => outcome?,
            Led::Turn(_) => unreachable!("there is one lane"),
        };
        let agreed = wire.machine().agreed().expect("Hello was answered").clone();
        wire.set_patience(options.stall_timeout);
        lane.shared.lock().wire = Some(Box::new(wire));
        Ok((lane, agreed))
    }

    /// Whether the last reply of the session said that kernels have printed something.
    pub(crate) fn has_printed(&self) -> bool {
        self.shared.printed.load(Ordering::Relaxed)
    }

    /// The session's options.
    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Its number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Another lane of the session, where fewer than `most` are in use.
    ///
    /// # Errors
    /// All are in use, or the system has no descriptor left.
    pub(crate) fn another(&self, most: u16) -> Result<Self, Cause> {
        if self.shared.waker.get().is_none() {
            let waker = Waker::new().map_err(|source| TransportError::Io {
                context: "eventfd".to_owned(),
                source,
            })?;
            // Another thread may have been faster; one is as good as the other.
            let _ = self.shared.waker.set(waker);
        }
        self.shared.seat(most).ok_or_else(|| {
            Cause::Input(format!(
                "all {most} lanes of this session are in use; drop one first"
            ))
        })
    }

    /// Runs one request of this lane, named `doing` in errors.
    ///
    /// # Errors
    /// It failed, or the session did.
    pub(crate) fn run(&mut self, doing: &str, asked: Asked, data: &mut Data<'_>) -> Outcome {
        let mut desk = self.shared.lock();
        if let Some(why) = &desk.over {
            return Err(Cause::SessionOver(why.clone()));
        }
        // The time now, for a call that does not wait for the lead.
        let mut now = Some(asked.moved);
        match &mut desk.wire {
            // Nobody leads: this call is about to.
            Some(wire) => wire.ask(asked),
            None => {
                now = None;
                desk.asked.push(asked);
            }
        }
        if desk.asleep {
            self.shared.wake_leader();
        }
        loop {
            let wire = match self.wait_for_news(desk, doing)? {
                News::Over(outcome) => return outcome,
                News::Lead(wire) => wire,
            };
            if let Some(outcome) = self.lead(wire, doing, data, now.take()) {
                return outcome;
            }
            desk = self.shared.lock();
        }
    }

    /// Waits for the end of this lane's call, or for the lead.
    fn wait_for_news(&self, mut desk: MutexGuard<'_, Desk>, doing: &str) -> Result<News, Cause> {
        let options = &self.shared.options;
        // A sign of life that was too old: where the whole process did not run, the leader gets one
        // more look to show another.
        let mut late = None;
        loop {
            if let Some(news) = desk.news_of(self.number) {
                if let News::Over(Err(cause)) = &news
                    && cause.ends_session()
                {
                    self.shared.end(&mut desk, doing, cause);
                }
                return Ok(news);
            }
            let cause = if let Some(why) = &desk.over {
                match options.interrupted() {
                    true => Cause::Interrupted,
                    false => Cause::SessionOver(why.clone()),
                }
            } else if let Some(wire) = desk.take_wire() {
                return Ok(News::Lead(wire));
            } else if options.interrupted() {
                Cause::Interrupted
            } else if late == Some(desk.seen) {
                Cause::Stalled(options.stall_timeout)
            } else {
                let seen = desk.seen;
                let is_late = after(seen, options.stall_timeout) <= Instant::now();
                let waited = self.called.wait_timeout(desk, INTERRUPT_LOOK);
                let slept;
                (desk, slept) = waited.unwrap_or_else(PoisonError::into_inner);
                late = (is_late && slept.timed_out()).then_some(seen);
                continue;
            };
            self.shared.end(&mut desk, doing, &cause);
            return Err(cause);
        }
    }

    /// Leads until this lane's call is over (`Some`) or another lane has to lead. `now` spares a reading of the
    /// clock.
    fn lead(
        &self,
        wire: Box<Wire>,
        doing: &str,
        data: &mut Data<'_>,
        now: Option<Instant>,
    ) -> Option<Outcome> {
        let mut lead = Lead {
            lane: self,
            wire: Some(wire),
        };
        let wire = lead.wire.as_mut().expect("just put there");
        wire.begin_turn();
        let outcome = match self.drive(wire, data, now) {
            Ok(Led::Turn(other)) => {
                lead.leave_to(Some(other));
                return None;
            }
            Ok(Led::Over(outcome)) => outcome,
            Err(cause) => Err(cause),
        };
        let said_goodbye = wire.has_said_goodbye();
        match &outcome {
            Err(cause) if cause.ends_session() => lead.end(doing, cause),
            _ if said_goodbye => lead.end(doing, &Cause::SessionOver("a goodbye".to_owned())),
            _ => lead.leave_to(None),
        }
        Some(outcome)
    }

    /// The loop: moves bytes until this lane's call is over or another lane has to lead. `began`: the time now, if it
    /// is known.
    ///
    /// # Errors
    /// The session is over.
    fn drive(
        &self,
        wire: &mut Wire,
        data: &mut Data<'_>,
        mut began: Option<Instant>,
    ) -> Result<Led, Cause> {
        // Another lane is made only from a lane that is not in a call.
        let alone = Arc::strong_count(&self.shared) == 1;
        let mut late = None;
        loop {
            let now = began.take().unwrap_or_else(clock::now);
            wire.note_rest(now);
            // Calls that are late by now are checked a last time.
            let was_late = late.take();
            let at = was_late.unwrap_or(now);
            // Not only in waits: a fast mediator may leave no reason to wait. And before the desk, where
            // another lane may have ended the session for the same reason.
            if self.shared.options.interrupted() {
                return Err(Cause::Interrupted);
            }
            if !alone {
                self.shared.look_at_desk(wire)?;
            }
            wire.start_waiting();
            let wrote = wire.write(self.number, data, at)?;
            if alone && wrote && was_late.is_none() && wire.only_waits(self.number) {
                // The wait returns at once if the answer has come: no need to look here as well.
                late = self.wait(wire, at, alone)?;
                continue;
            }
            let read = wire.read(self.number, data, at)?;
            wire.give_up_late(at)?;
            // With a goodbye all calls end in one step, when this one does.
            if !alone && !wire.has_said_goodbye() {
                self.shared.hand_out(wire, self.number);
            }
            if let Some(outcome) = wire.finished(self.number) {
                return Ok(Led::Over(outcome));
            }
            if wire.has_said_goodbye() {
                return Err(Cause::SessionOver("a goodbye".to_owned()));
            }
            if !alone && let Some(other) = wire.turn(self.number, read || wrote) {
                return Ok(Led::Turn(other));
            }
            if read || (wrote && wire.has_more(self.number)) {
                continue;
            }
            late = self.wait(wire, at, alone)?;
        }
    }

    /// Waits until something may move, or until a limit that has passed, which it returns.
    ///
    /// # Errors
    /// The session is over.
    fn wait(&self, wire: &mut Wire, at: Instant, alone: bool) -> Result<Option<Instant>, Cause> {
        let limit = wire.first_limit(at);
        wire.flush(limit)?;
        if alone {
            return wire.wait(at, limit, None);
        }
        if !self.shared.fall_asleep() {
            return Ok(None);
        }
        let waited = wire.wait(at, limit, self.shared.waker.get());
        self.shared.wake_up();
        waited
    }

    /// The session is over because of `cause`, found by this lane.
    pub(crate) fn end(&self, doing: &str, cause: &Cause) {
        let mut desk = self.shared.lock();
        self.shared.end(&mut desk, doing, cause);
    }

    /// After a goodbye: closes the transport.
    ///
    /// # Errors
    /// The transport's.
    pub(crate) fn close(&mut self) -> Result<(), TransportError> {
        let wire = self.shared.lock().wire.take();
        wire.map_or(Ok(()), |mut wire| wire.close())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        // Nothing of the caller's runs while it is locked, and no step leaves it half done.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane with the lowest number that is free, below `most`.
    fn seat(self: &Arc<Self>, most: u16) -> Option<Lane> {
        let mut desk = self.lock();
        let free = desk.lanes.iter().position(Option::is_none);
        let at = free.unwrap_or(desk.lanes.len());
        let number = u16::try_from(at).ok().filter(|number| *number < most)?;
        let called = Arc::new(Condvar::new());
        let seat = Some(Seat {
            call: Arc::clone(&called),
            news: None,
        });
        match free {
            Some(at) => desk.lanes[at] = seat,
            None => desk.lanes.push(seat),
        }
        Some(Lane {
            shared: Arc::clone(self),
            number,
            called,
        })
    }

    fn wake_leader(&self) {
        if let Some(waker) = self.waker.get() {
            waker.raise();
        }
    }

    /// The leader takes what was left at the desk.
    ///
    /// # Errors
    /// The session is over.
    fn look_at_desk(&self, wire: &mut Wire) -> Result<(), Cause> {
        let mut desk = self.lock();
        desk.leader_lives();
        if let Some(why) = &desk.over {
            return Err(Cause::SessionOver(why.clone()));
        }
        desk.asked.drain(..).for_each(|asked| wire.ask(asked));
        Ok(())
    }

    /// Whether the leader may wait: nothing lies at the desk, and a new call will wake it.
    fn fall_asleep(&self) -> bool {
        let mut desk = self.lock();
        desk.asleep = desk.asked.is_empty() && desk.over.is_none();
        desk.asleep
    }

    fn wake_up(&self) {
        if let Some(waker) = self.waker.get() {
            waker.lower();
        }
        self.lock().asleep = false;
    }

    /// Gives the calls of other lanes than `lane` that are over what they wait for.
    fn hand_out(&self, wire: &mut Wire, lane: u16) {
        while let Some((other, outcome)) = wire.finished_other(lane) {
            self.lock().tell(other, News::Over(outcome));
        }
    }

    /// The session is over for all lanes.
    fn end(&self, desk: &mut Desk, doing: &str, cause: &Cause) {
        desk.over.get_or_insert_with(|| match cause {
            Cause::SessionOver(why) => why.clone(),
            cause => format!("{doing}: {cause}"),
        });
        desk.lanes.iter().flatten().for_each(|seat| {
            seat.call.notify_one();
        });
        if desk.asleep {
            self.wake_leader();
        }
    }
}

impl Desk {
    fn news_of(&mut self, lane: u16) -> Option<News> {
        let seat = self.lanes.get_mut(usize::from(lane))?;
        seat.as_mut()?.news.take()
    }

    fn tell(&mut self, lane: u16, news: News) {
        if let Some(Some(seat)) = self.lanes.get_mut(usize::from(lane)) {
            seat.news = Some(news);
            seat.call.notify_one();
        }
    }

    /// A sign of life, for the lanes that wait. Where there is no other, none can look.
    fn leader_lives(&mut self) {
        if self.lanes.len() > 1 {
            self.seen = clock::now();
        }
    }

    fn take_wire(&mut self) -> Option<Box<Wire>> {
        let wire = self.wire.take()?;
        self.leader_lives();
        Some(wire)
    }
}

/// The wire in a leader's hands. It leaves them in any case, also where the thread panics.
struct Lead<'s> {
    lane: &'s Lane,
    wire: Option<Box<Wire>>,
}

impl Lead<'_> {
    /// Gives the lead to the call of `next`, or to any that waits, or puts the wire on the desk.
    fn leave_to(&mut self, next: Option<u16>) {
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let mut desk = self.lane.shared.lock();
        if !desk.asked.is_empty() {
            desk.asked.drain(..).for_each(|asked| wire.ask(asked));
        }
        desk.leader_lives();
        // Most often nobody asks for anything any more.
        let next = match wire.is_idle() {
            true => None,
            false => next
                .or_else(|| wire.turn(self.lane.number, false))
                .or_else(|| wire.any_lane()),
        };
        match next {
            Some(next) if desk.over.is_none() => desk.tell(next, News::Lead(wire)),
            _ => desk.wire = Some(wire),
        }
    }

    /// The session is over. Calls that have their answer get it all the same.
    fn end(&mut self, doing: &str, cause: &Cause) {
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let mut desk = self.lane.shared.lock();
        while let Some((other, outcome)) = wire.finished_other(self.lane.number) {
            desk.tell(other, News::Over(outcome));
        }
        desk.wire = Some(wire);
        self.lane.shared.end(&mut desk, doing, cause);
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Only where the thread panics: in a function of the caller's that was to hear of progress.
        let can_go_on = match &mut self.wire {
            None => return,
            Some(wire) => wire.abandon(self.lane.number),
        };
        if can_go_on {
            self.leave_to(None);
        } else {
            let why = "a thread panicked in the middle of its data".to_owned();
            self.end("", &Cause::SessionOver(why));
        }
    }
}
