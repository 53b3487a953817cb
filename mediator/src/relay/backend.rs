//! A backend that passes requests on by their shape: a header, a body, and so much data each way.
//!
//! One reply is not passed on as it is. Info describes the mediator that a guest talks to as well as the device behind it, so
//! the relay puts its own name and version into it, and into the reason where the device is.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Body, Features, InfoReply, Op, Request};
use vgpu_protocol::session::client::{self, NotSent, Violation};
use vgpu_protocol::session::server::{Failure, Outcome, Terms};
use vgpu_protocol::session::{after_rest, next_in_turn};
use vgpu_protocol::status::{ErrorCode, Status};
use vgpu_transport::clock;

use super::buffer::{Buffer, Pool};
use super::far_session::FarSession;
use super::lost::Lost;
use crate::executor::{Executor, ExecutorInfo};
use crate::session::backend::{Also, Backend, Event, NotOpened, Opened, SessionBackend};

/// The part of a request's time for which the other mediator may be silent before it counts as
/// hung: the guest should get the reason before its own deadline.
const SHARE: (u32, u32) = (3, 4);

/// Frames, and portions of data, that are taken between two looks at everything else.
const AT_ONCE: u32 = 64;

/// Opens the session with the other mediator, once.
pub(super) type OpenFar<'a> = &'a mut (dyn FnMut(Duration) -> Result<FarSession, Lost> + Send);

/// A session's way to the other mediator.
pub(super) struct Relay<'a> {
    open: Option<OpenFar<'a>>,
    /// Present once a guest was admitted.
    far: Option<FarSession>,
    info: ExecutorInfo,
    /// Of a request's data, what the guest may send before any is granted.
    initial_credit: u64,
    /// How long nothing may move for a request that does not say.
    patience: Duration,
    passing: Vec<Passing>,
    pool: Pool,
    events: VecDeque<Event>,
    /// The other mediator was looked at since the last event but none.
    looked: bool,
    /// The request whose data is being received.
    receiving: Option<u32>,
    /// It has data for which there is no room now.
    no_room: bool,
    /// The request whose data was sent last: the next frame is another's, if another has data.
    last_up: u32,
    /// Its last word on failures of quiet requests.
    failures: bool,
    /// And of what kernels have printed.
    printed: bool,
    /// When the other mediator last told how long its device worked, by the precise clock.
    told_time: Instant,
    /// The other mediator can no longer be used. The guest first gets what was answered before.
    lost: Option<Lost>,
    told: bool,
}

/// A request that was passed on and is not over, on either side.
#[derive(Debug)]
struct Passing {
    header: FrameHeader,
    up: Buffer,
    down: Buffer,
    /// Bytes of data that the guest has not sent.
    up_left: u64,
    /// Of these, what it may send.
    granted: u64,
    /// When anything last moved for it.
    moved: Instant,
    patience: Duration,
    stage: Stage,
}

/// Stages of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The other mediator has it.
    UnderWay,
    /// It was answered; the guest has not taken all data.
    Answered,
    /// Nobody here wants it any more.
    GivenUp,
}

impl Passing {
    /// Whether it is the other mediator's turn.
    fn waits_for_far(&self) -> bool {
        let guest_can_send = self.up_left > 0 && self.granted > 0;
        self.stage == Stage::UnderWay
            && self.down.is_empty()
            && (!self.up.is_empty() || !guest_can_send)
    }
}

impl<'a> Relay<'a> {
    /// A way that is yet to be opened. `own` is what this mediator allows, `patience` how long nothing
    /// may move.
    pub(super) fn new(open: OpenFar<'a>, own: Terms, patience: Duration) -> Self {
        Self {
            open: Some(open),
            initial_credit: own.initial_credit.into(),
            ..Self::unopened(patience)
        }
    }

    /// The way that `far` is.
    pub(super) fn opened(far: FarSession, patience: Duration) -> Self {
        let mut relay = Self::unopened(patience);
        relay.initial_credit = far.terms().initial_credit.into();
        relay.set(far);
        relay
    }

    fn unopened(patience: Duration) -> Self {
        Self {
            open: None,
            far: None,
            info: ExecutorInfo {
                kind: "relay",
                device: String::new(),
                total_memory: 0,
                driver: String::new(),
                reason: String::new(),
                devices: Vec::new(),
            },
            initial_credit: 0,
            patience,
            passing: Vec::new(),
            pool: Pool::default(),
            events: VecDeque::new(),
            looked: false,
            receiving: None,
            no_room: false,
            last_up: 0,
            failures: false,
            printed: false,
            told_time: Instant::now(),
            lost: None,
            told: false,
        }
    }

    fn set(&mut self, far: FarSession) {
        let info = far.describe(far.info().clone());
        self.info = ExecutorInfo {
            kind: "relay",
            device: info.device.to_string(),
            total_memory: info.total_memory,
            driver: info.driver.to_string(),
            reason: info.reason.to_string(),
            devices: Vec::new(),
        };
        self.initial_credit = self.initial_credit.min(far.terms().initial_credit.into());
        self.far = Some(far);
    }

    /// The session there; the rules let nobody ask for anything before it is open.
    fn far(&mut self) -> &mut FarSession {
        self.far.as_mut().expect("opened with the session")
    }

    fn get(&mut self, id: u32) -> Option<&mut Passing> {
        self.passing
            .iter_mut()
            .find(|passing| passing.header.request_id == id)
    }

    /// The same for one that the guest waits for.
    fn wanted(&mut self, id: u32) -> Option<&mut Passing> {
        self.get(id)
            .filter(|passing| passing.stage != Stage::GivenUp)
    }

    fn done(&mut self, id: u32, outcome: Outcome) {
        self.events.push_back(Event::Done(id, outcome));
    }

    fn moved(&mut self, id: u32, now: Instant) {
        if let Some(passing) = self.wanted(id) {
            passing.moved = now;
            if !matches!(self.events.back(), Some(Event::Moved(last)) if *last == id) {
                self.events.push_back(Event::Moved(id));
            }
        }
    }

    /// The other mediator goes on with work, and may not have read everything yet.
    fn works(&mut self, now: Instant) {
        let under_way = self
            .passing
            .iter()
            .filter(|passing| passing.stage == Stage::UnderWay);
        let ids: Vec<u32> = under_way.map(|passing| passing.header.request_id).collect();
        for id in ids {
            self.moved(id, now);
        }
        if !self
            .events
            .iter()
            .any(|event| matches!(event, Event::Working))
        {
            self.events.push_back(Event::Working);
        }
    }

    /// Drops what is over: the answer is out, and no frame of its data is under way.
    fn sweep(&mut self) {
        let sending = self.far.as_ref().and_then(FarSession::sending);
        let pool = &mut self.pool;
        self.passing.retain_mut(|passing| {
            let id = passing.header.request_id;
            let over = match passing.stage {
                Stage::UnderWay => false,
                Stage::Answered => passing.down.is_empty(),
                Stage::GivenUp => true,
            };
            let keep = !over || sending.is_some_and(|(sending, _)| sending == id);
            if !keep {
                passing.up.release(pool);
                passing.down.release(pool);
            }
            keep
        });
    }

    /// Moves what can be moved between here and the other mediator.
    fn look(&mut self) -> Result<(), Lost> {
        // Read before the look, so that there is one after every deadline.
        let now = clock::now();
        self.send(now)?;
        self.receive(now)?;
        // Room that was granted, or what a failed request's data ends with.
        self.send(now)?;
        self.far().flush()?;
        self.sweep();
        self.check_progress(now)
    }

    /// Sends requests, and data that is at hand.
    fn send(&mut self, now: Instant) -> Result<(), Lost> {
        for _ in 0..AT_ONCE {
            self.begin_up();
            let Some(far) = &mut self.far else {
                break;
            };
            let sending = far.sending();
            let body = sending.and_then(|(id, left)| {
                let bytes = self
                    .passing
                    .iter()
                    .find(|passing| passing.header.request_id == id)?
                    .up
                    .bytes();
                Some(&bytes[..left.min(bytes.len())])
            });
            let Some((id, n)) = far.send(body.unwrap_or_default())? else {
                break;
            };
            if n == 0 {
                continue;
            }
            let whole = far.sending().is_none();
            if let Some(passing) = self.get(id) {
                passing.up.taken(n);
                let quiet = passing.header.is_quiet();
                if whole && quiet && passing.up_left == 0 && passing.up.is_empty() {
                    // A fence reports whether it failed.
                    passing.stage = Stage::Answered;
                    self.done(id, Ok(Vec::new()));
                }
            }
            self.moved(id, now);
        }
        Ok(())
    }

    /// Begins a frame of data, if there is some that may be sent.
    fn begin_up(&mut self) {
        let Some(far) = self.far.as_mut().filter(|far| far.sending().is_none()) else {
            return;
        };
        let at_hand = self.passing.iter().map(|passing| {
            let id = passing.header.request_id;
            let len = match passing.stage {
                Stage::UnderWay => passing.up.bytes().len().min(far.may_send(id)),
                Stage::Answered | Stage::GivenUp => 0,
            };
            (id, len)
        });
        if let Some((id, len)) = next_in_turn(self.last_up, at_hand) {
            self.last_up = id;
            far.begin_up(id, len);
        }
    }

    /// Takes what the other mediator has sent.
    fn receive(&mut self, now: Instant) -> Result<(), Lost> {
        self.no_room = false;
        for _ in 0..AT_ONCE {
            let progress = match self.far().data_left() {
                0 => match self.far().next()? {
                    Some(event) => {
                        self.take_event(event, now)?;
                        true
                    }
                    None => self.far().receive()?,
                },
                _ => self.take_data(now)?,
            };
            if !progress {
                break;
            }
        }
        Ok(())
    }

    fn take_event(&mut self, event: client::Event, now: Instant) -> Result<(), Lost> {
        match event {
            client::Event::Data(id) => {
                self.receiving = Some(id);
                self.pass_credit(id, now);
            }
            // It goes on with long work: so does this one, for its guest.
            client::Event::Credit(id, 0) => self.moved(id, now),
            client::Event::Credit(id, _) => self.pass_credit(id, now),
            client::Event::Working => self.works(now),
            client::Event::Closing(status, text) => {
                let far = self.far();
                far.cut();
                return Err(Lost::closing(far.place(), status, &text));
            }
            client::Event::Reply {
                id,
                status,
                failures,
                printed,
            } => {
                if failures != self.failures {
                    self.failures = failures;
                    self.events.push_back(Event::Failures(failures));
                }
                if printed != self.printed {
                    self.printed = printed;
                    self.events.push_back(Event::Printed(printed));
                }
                self.take_reply(id, status)?;
            }
        }
        Ok(())
    }

    /// Grants to the guest what the other mediator has granted here: what comes can then go on.
    fn pass_credit(&mut self, id: u32, now: Instant) {
        let Some(far) = &self.far else {
            return;
        };
        let credit = far.credit(id);
        // Bytes of a frame that has begun are not in the credit any more.
        let begun = match far.sending() {
            Some((sending, left)) if sending == id => left,
            _ => 0,
        };
        let Some(passing) = self.wanted(id) else {
            return;
        };
        let waiting = (passing.up.bytes().len() - begun) as u64;
        let granted = credit.saturating_sub(waiting).min(passing.up_left);
        if granted > passing.granted {
            let room = granted - passing.granted;
            passing.granted = granted;
            passing.moved = now;
            self.events.push_back(Event::Room(id, room));
        }
    }

    fn take_reply(&mut self, id: u32, status: Status) -> Result<(), Lost> {
        let far = self.far();
        if let Status::Mediator(code) = status
            && code.ends_session()
        {
            far.cut();
            return Err(Lost::gave_up(far.place(), status, &far.error_text()));
        }
        let mut outcome = match status.is_ok() {
            true => Ok(far.body().to_owned()),
            false => Err(Failure {
                status,
                text: format!("{} (at {})", far.error_text(), far.place()),
            }),
        };
        let Some(passing) = self.wanted(id) else {
            return Ok(());
        };
        let op = passing.header.op;
        passing.stage = match outcome {
            Ok(_) => Stage::Answered,
            Err(_) => Stage::GivenUp,
        };
        if let Ok(body) = &mut outcome {
            if let Err(error) = op.check_reply(body) {
                let violation = Violation(format!("sends what it should not: {error}"));
                return Err(self.far().violates(&violation));
            }
            if op == Op::Info
                && let Ok(info) = InfoReply::decode(body)
            {
                *body = self.far().describe(info).encode();
            }
            self.account(op, body);
        }
        self.done(id, outcome);
        Ok(())
    }

    /// The time that the other mediator's device worked since the last answer with such a time, by its own account
    /// and not longer than that is ago: it goes into the guest's account here.
    fn account(&mut self, op: Op, body: &[u8]) {
        if let Some(device_ns) = op.device_ns(body) {
            let now = Instant::now();
            let before = std::mem::replace(&mut self.told_time, now);
            let passed = now.saturating_duration_since(before).as_nanos();
            let passed = u64::try_from(passed).unwrap_or(u64::MAX);
            self.events.push_back(Event::Worked(device_ns.min(passed)));
        }
    }

    /// Takes data for the guest, or drops it where nobody wants it.
    fn take_data(&mut self, now: Instant) -> Result<bool, Lost> {
        let id = self.receiving.unwrap_or(0);
        let far = self.far.as_mut().expect("data came from it");
        let passing = self
            .passing
            .iter_mut()
            .find(|passing| passing.header.request_id == id);
        let Some(passing) = passing.filter(|passing| passing.stage == Stage::UnderWay) else {
            return far.drop_data();
        };
        let space = passing.down.space(&mut self.pool);
        if space.is_empty() {
            self.no_room = true;
            return Ok(false);
        }
        let Some(n) = far.take_data(space)? else {
            return Ok(false);
        };
        passing.down.filled(n);
        self.moved(id, now);
        Ok(true)
    }

    /// Whether the other mediator does anything while it is its turn.
    fn check_progress(&mut self, now: Instant) -> Result<(), Lost> {
        let Some(far) = &self.far else {
            return Ok(());
        };
        let waiting = self
            .passing
            .iter()
            .filter(|passing| passing.waits_for_far())
            .map(|passing| (passing.moved, passing.patience));
        let unsent = far.unsent_since().map(|since| (since, self.patience));
        let late = waiting.chain(unsent).find_map(|(since, patience)| {
            let patience = patience * SHARE.0 / SHARE.1;
            (now >= since.max(far.moved()) + patience).then_some(patience)
        });
        match late {
            None => Ok(()),
            Some(patience) => {
                let far = self.far();
                far.cut();
                Err(Lost::hung(far.place(), patience))
            }
        }
    }
}

impl Backend for Relay<'_> {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        let id = header.request_id;
        let now = clock::now();
        // A request whose data the guest has taken completely frees its id for another.
        self.sweep();
        let refused = match self.get(id) {
            // It was given up, and the rest of a frame of its data is not out.
            Some(_) => Some(NotSent::InUse(id)),
            None => self.far().request(header, &request).err(),
        };
        if let Some(refused) = refused {
            let code = match refused {
                NotSent::NotOffered(_) => ErrorCode::Unsupported,
                _ => ErrorCode::Busy,
            };
            let place = self.far().place();
            let failure = Failure {
                status: code.into(),
                text: format!("{refused} (at {place})"),
            };
            return self.done(id, Err(failure));
        }
        let (up_left, _) = request.data();
        if header.is_quiet() && up_left == 0 {
            // A fence reports whether it failed.
            return self.done(id, Ok(Vec::new()));
        }
        // Bytes that the other mediator lets the guest send at once, beyond this one's limit.
        let theirs: u64 = self.far().terms().initial_credit.into();
        let granted = theirs.min(up_left);
        if granted > self.initial_credit {
            let more = granted - self.initial_credit;
            self.events.push_back(Event::Room(id, more));
        }
        self.passing.push(Passing {
            header: *header,
            up: Buffer::default(),
            down: Buffer::default(),
            up_left,
            granted,
            moved: now,
            patience: header.patience(self.patience),
            stage: Stage::UnderWay,
        });
    }

    fn input(&mut self, id: u32) -> &mut [u8] {
        let passing = self
            .passing
            .iter_mut()
            .find(|passing| passing.header.request_id == id);
        match passing.filter(|passing| passing.stage == Stage::UnderWay && passing.up_left > 0) {
            Some(passing) => {
                let space = passing.up.space(&mut self.pool);
                let most = usize::try_from(passing.up_left).unwrap_or(usize::MAX);
                let len = space.len().min(most);
                &mut space[..len]
            }
            None => &mut [],
        }
    }

    fn filled(&mut self, id: u32, n: usize) {
        if let Some(passing) = self.get(id) {
            passing.up.filled(n);
            passing.up_left -= n as u64;
            passing.granted = passing.granted.saturating_sub(n as u64);
            passing.moved = clock::now();
        }
    }

    fn output(&mut self, id: u32) -> &[u8] {
        match self.wanted(id) {
            Some(passing) => passing.down.bytes(),
            None => &[],
        }
    }

    fn sent(&mut self, id: u32, n: usize) {
        if let Some(passing) = self.wanted(id) {
            passing.down.taken(n);
            passing.moved = clock::now();
        }
    }

    fn cancel(&mut self, id: u32) {
        if let Some(passing) = self.wanted(id) {
            passing.stage = Stage::GivenUp;
            // Its answer still comes, and is dropped.
            self.far().end_early(id);
        }
        self.events.retain(|event| event.request() != Some(id));
    }

    fn may_start(&self) -> bool {
        // A guest counts on it that what it has sent for a quiet request is before what it sends next, there too.
        let behind = |passing: &Passing| {
            passing.header.is_quiet()
                && passing.stage == Stage::UnderWay
                && passing.up_left == 0
                && !passing.up.is_empty()
        };
        self.lost.is_none()
            && self.far.as_ref().is_none_or(FarSession::has_room)
            && !self.passing.iter().any(behind)
    }

    fn next_event(&mut self) -> Option<Event> {
        if self.events.is_empty() && !self.looked && self.far.is_some() && self.lost.is_none() {
            self.looked = true;
            self.lost = self.look().err();
        }
        let event = self.events.pop_front().or_else(|| {
            let answering =
                |passing: &Passing| passing.stage == Stage::Answered && !passing.down.is_empty();
            if self.passing.iter().any(answering) {
                return None;
            }
            let lost = self.lost.clone().filter(|_| !self.told)?;
            self.told = true;
            Some(Event::Lost(Box::new(lost.into())))
        });
        self.looked &= event.is_some();
        event
    }

    fn also(&mut self) -> Also<'_> {
        let reading = !self.no_room;
        match self.far.as_mut().filter(|_| self.lost.is_none()) {
            Some(far) => {
                let (stream, interest) = far.wants(reading);
                Also::Stream(stream, interest)
            }
            None => Also::Nothing,
        }
    }
}

impl SessionBackend for Relay<'_> {
    fn open(&mut self, patience: Duration) -> Result<Opened, NotOpened> {
        if let Some(open) = self.open.take() {
            let far = open(patience)?;
            self.set(far);
        }
        let far = self.far();
        Ok(Opened {
            terms: Some(far.terms()),
            // A region belongs to the channel that it was made in.
            features: far.terms().features.without(Features::REGIONS),
        })
    }

    fn rested(&mut self, rest: Duration, now: Instant) {
        for passing in &mut self.passing {
            passing.moved = after_rest(passing.moved, rest, now);
        }
        if let Some(far) = &mut self.far {
            far.rested(rest, now);
        }
    }

    fn close(&mut self) {
        self.far = None;
    }
}

impl Executor for Relay<'_> {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }
}

impl fmt::Debug for Relay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("info", &self.info)
            .field("passing", &self.passing)
            .finish_non_exhaustive()
    }
}
