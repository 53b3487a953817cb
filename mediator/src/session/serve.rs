//! The loop that moves a session's bytes, both ways at once, under deadlines.
//!
//! Whenever a byte can move it is moved; only when none can does the thread wait, for the transport
//! or for the device. So a guest that sends its next chunk while it takes the last result keeps
//! both directions busy.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{InfoReply, Op, VectorAdd};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::{Interest, Transport, TransportError};

use super::inbox::{Event, Inbox};
use super::outbox::{Outbox, Reply};
use super::rules::{DataVerdict, Rules, Verdict};
use super::vector_add::{Running, status_of};
use super::{SessionEnd, Settings, StopFlag};
use crate::executor::{Executor, ExecutorInfo};
use crate::usage::{Counters, Observed};

/// Opens the session's executor, once, when a guest was admitted. The error is one line.
pub type OpenExecutor<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Executor>, String>;

/// How soon an idle session notices that the broker wants it to end.
const STOP_CHECK: Duration = Duration::from_millis(250);

/// Time for the last frames and the close of the transport.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// A peer that wakes this thread this often without moving a byte is slowed down from there on.
const FRUITLESS_WAKES: u32 = 64;

/// Runs a session over `transport` until it ends, and closes the transport.
pub fn serve(
    transport: &mut dyn Transport,
    open: OpenExecutor<'_>,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut session = Session {
        transport,
        settings,
        counters: &observed.counters,
        client: &observed.client,
        stop,
        rules: Rules::new(settings.limits, settings.epoch, settings.refusal.clone()),
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        deferred: VecDeque::new(),
        scrap: vec![0; 64 << 10],
        scrap_left: 0,
        unflushed: false,
        cut: false,
        moved_at: Instant::now(),
        fruitless: 0,
    };
    let end = match session.run(open) {
        Err(end) => end,
        Ok(never) => match never {},
    };
    session.close();
    end
}

/// What needs the executor.
enum Step {
    Admit(FrameHeader),
    VectorAdd(FrameHeader, VectorAdd),
}

enum Never {}

struct Session<'a> {
    transport: &'a mut dyn Transport,
    settings: &'a Settings,
    counters: &'a Counters,
    client: &'a OnceLock<String>,
    stop: &'a StopFlag,
    rules: Rules,
    inbox: Inbox,
    outbox: Outbox,
    /// Requests of the lane that came while a vector add was running.
    deferred: VecDeque<(FrameHeader, Vec<u8>)>,
    /// Where discarded bytes go.
    scrap: Vec<u8>,
    /// Bytes of a Data body that nobody wants, still to come.
    scrap_left: usize,
    unflushed: bool,
    /// A frame was sent in part and cannot be completed: nothing may follow it.
    cut: bool,
    moved_at: Instant,
    fruitless: u32,
}

impl Session<'_> {
    fn run(&mut self, open: OpenExecutor<'_>) -> Result<Never, SessionEnd> {
        let began = self.moved_at;
        let mut executor: Option<Box<dyn Executor>> = None;
        loop {
            match (self.next_step(began)?, &mut executor) {
                (Step::Admit(request), slot) => {
                    let opened = open().map_err(|error| {
                        let text = format!("the mediator cannot open its executor: {error}");
                        let status = ErrorCode::BackendLost.into();
                        self.outbox.push(&Reply::error(&request, status, &text));
                        SessionEnd::ExecutorLost(error)
                    })?;
                    if let Some(name) = self.rules.client_name() {
                        let _ = self.client.set(name);
                    }
                    let info = self.info_reply(opened.info());
                    let reply = self.rules.admit(&request, info);
                    self.answer(&reply);
                    *slot = Some(opened);
                    // Opening may take seconds, which are not the guest's.
                    self.moved_at = Instant::now();
                }
                (Step::VectorAdd(request, job), Some(executor)) => {
                    self.vector_add(executor.as_mut(), request, job)?;
                }
                // The rules admit a guest before they let it ask for anything.
                (Step::VectorAdd(..), None) => {
                    return Err(SessionEnd::GuestFault("a request before Hello".into()));
                }
            }
        }
    }

    /// Serves requests until one needs the executor.
    fn next_step(&mut self, began: Instant) -> Result<Step, SessionEnd> {
        loop {
            if let Some((header, body)) = self.deferred.pop_front() {
                if let Some(step) = self.judge(&header, &body)? {
                    return Ok(step);
                }
                continue;
            }
            let wrote = self.send(None)?;
            let mut read = false;
            if !self.outbox.is_full() {
                if self.scrap_left > 0 {
                    read = self.read_scrap()?;
                } else if let Some(event) = self.read_event(false)? {
                    read = true;
                    if let Some(step) = self.on_event(event)? {
                        return Ok(step);
                    }
                }
            }
            if wrote || read {
                self.progress();
            } else {
                self.wait_between_requests(began)?;
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<Option<Step>, SessionEnd> {
        match event {
            Event::None => Ok(None),
            Event::Frame(header, body) => {
                self.counters.request();
                self.judge(&header, &body)
            }
            Event::Data(header) => {
                // Whether the frame is for a request that failed; no other takes input now.
                self.discard(&header)?;
                Ok(None)
            }
        }
    }

    fn judge(&mut self, header: &FrameHeader, body: &[u8]) -> Result<Option<Step>, SessionEnd> {
        match self.rules.on_frame(header, body) {
            Verdict::Nothing => Ok(None),
            Verdict::Admit(header) => Ok(Some(Step::Admit(header))),
            Verdict::VectorAdd(header, job) => Ok(Some(Step::VectorAdd(header, job))),
            verdict => self.obey(verdict).map(|()| None),
        }
    }

    /// Carries out a verdict that needs no executor.
    fn obey(&mut self, verdict: Verdict) -> Result<(), SessionEnd> {
        match verdict {
            Verdict::Reply(reply) => self.answer(&reply),
            Verdict::End(reply, end) => {
                self.answer(&reply);
                return Err(end);
            }
            Verdict::Nothing | Verdict::Admit(_) | Verdict::VectorAdd(..) => {}
        }
        Ok(())
    }

    fn answer(&mut self, reply: &Reply) {
        if !reply.status().is_ok() {
            self.counters.failure();
        }
        self.outbox.push(reply);
    }

    fn discard(&mut self, header: &FrameHeader) -> Result<(), SessionEnd> {
        match self.rules.on_data(header, None) {
            DataVerdict::End(reply, end) => {
                self.answer(&reply);
                Err(end)
            }
            DataVerdict::Discard | DataVerdict::Running => {
                self.scrap_left = header.body_len as usize;
                Ok(())
            }
        }
    }

    fn vector_add(
        &mut self,
        executor: &mut dyn Executor,
        request: FrameHeader,
        job: VectorAdd,
    ) -> Result<(), SessionEnd> {
        let longest = job.elements.min(u64::from(job.chunk_elements));
        // At most u32::MAX, which fits usize on every machine with 32 bits or more.
        let pipeline = match executor.vector_add(usize::try_from(longest).unwrap_or(usize::MAX)) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                let text = error.to_string();
                let verdict = self.rules.finish(
                    &request,
                    false,
                    Reply::error(&request, status_of(&error), &text),
                );
                self.obey(verdict)?;
                return self.check_executor(error.ends_session(), text);
            }
        };
        let mut running = Running::new(request, job, pipeline);
        if let Err(end) = self.drive(&mut running) {
            self.complete_frame(&mut running);
            return Err(end);
        }
        self.scrap_left = running.left_of_body();
        let input_ended = running.input_ended();
        let (reply, failure, device_ns) = running.into_outcome();
        self.counters.worked(0, device_ns);
        let verdict = self.rules.finish(&request, input_ended, reply);
        self.obey(verdict)?;
        match failure {
            Some(failure) => self.check_executor(failure.executor_lost, failure.text),
            None => Ok(()),
        }
    }

    /// Ends the session when its executor is of no use any more.
    fn check_executor(&mut self, lost: bool, text: String) -> Result<(), SessionEnd> {
        if !lost {
            return Ok(());
        }
        let status = ErrorCode::BackendLost.into();
        self.outbox.push(&Reply::closing(status, &text));
        Err(SessionEnd::ExecutorLost(text))
    }

    /// Moves bytes until the vector add is done or has failed.
    fn drive(&mut self, running: &mut Running<'_>) -> Result<(), SessionEnd> {
        let own_limit = self.settings.stall_timeout;
        let mut patience = match running.request().deadline_ms {
            0 => own_limit,
            ms => own_limit.min(Duration::from_millis(ms.into())),
        };
        self.progress();
        while !running.is_finished() {
            let wrote = self.send(Some(running))?;
            let read = self.receive(running)?;
            if wrote || read {
                self.progress();
                continue;
            }
            let deadline = self.moved_at + patience;
            if running.awaits_device() {
                running.begin_result(Some(deadline));
                self.progress();
                continue;
            }
            let reading = !running.input_ended() && !self.outbox.is_full();
            let writing = running.is_writing() || !self.outbox.is_empty();
            if self.wait(reading, writing, deadline)? {
                continue;
            }
            let text = format!(
                "nothing moved for {} ms in the middle of a vector add",
                patience.as_millis()
            );
            if running.has_failed() {
                return Err(SessionEnd::TimedOut(text));
            }
            // The request ends here; a guest that took half a frame gets more time for the rest.
            running.fail(ErrorCode::Timeout.into(), text);
            patience = own_limit;
            self.progress();
        }
        Ok(())
    }

    /// Reads for a vector add: its input, or other requests that came in between.
    fn receive(&mut self, running: &mut Running<'_>) -> Result<bool, SessionEnd> {
        if self.outbox.is_full() || running.has_failed() {
            return Ok(false);
        }
        if self.scrap_left > 0 {
            return self.read_scrap();
        }
        if running.is_filling() {
            let Some(buffer) = running.unfilled() else {
                return Ok(false);
            };
            let received = self.transport.try_read(buffer);
            return match self.received(received, true)? {
                None => Ok(false),
                Some(n) => {
                    running.advance(n);
                    Ok(true)
                }
            };
        }
        if running.input_ended() {
            return Ok(false);
        }
        let Some(event) = self.read_event(true)? else {
            return Ok(false);
        };
        match event {
            Event::None => {}
            Event::Frame(header, body) => {
                self.counters.request();
                self.defer(header, body)?;
            }
            Event::Data(header) => match self.rules.on_data(&header, Some(running.request())) {
                DataVerdict::Running => running.begin_data(&header),
                DataVerdict::Discard => self.scrap_left = header.body_len as usize,
                DataVerdict::End(reply, end) => {
                    self.answer(&reply);
                    return Err(end);
                }
            },
        }
        Ok(true)
    }

    /// Keeps a request until the vector add before it is over.
    fn defer(&mut self, header: FrameHeader, body: Vec<u8>) -> Result<(), SessionEnd> {
        let most = usize::from(self.settings.limits.max_requests) - 1;
        let text = if header.op == Op::VectorAdd {
            "another vector add is still taking its input"
        } else if self.deferred.len() >= most {
            "too many requests under way"
        } else {
            self.deferred.push_back((header, body));
            return Ok(());
        };
        let verdict = self.rules.fail(&header, ErrorCode::Busy.into(), text);
        self.obey(verdict)
    }

    /// Sends what there is, without waiting. A frame that has begun is completed before another.
    fn send(&mut self, running: Option<&mut Running<'_>>) -> Result<bool, SessionEnd> {
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
        let deadline = Instant::now() + self.settings.stall_timeout;
        let unsent = match running.unsent(deadline) {
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
        let n = result.map_err(|error| self.transport_end(error, true))?;
        self.counters.sent(n);
        self.unflushed |= n > 0;
        Ok(n)
    }

    fn read_event(&mut self, in_request: bool) -> Result<Option<Event>, SessionEnd> {
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

    fn read_scrap(&mut self) -> Result<bool, SessionEnd> {
        let room = self.scrap_left.min(self.scrap.len());
        let received = self.transport.try_read(&mut self.scrap[..room]);
        let Some(n) = self.received(received, true)? else {
            return Ok(false);
        };
        self.scrap_left -= n;
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
            Err(error) => Err(self.transport_end(error, in_request)),
        }
    }

    fn transport_end(&mut self, error: TransportError, in_request: bool) -> SessionEnd {
        self.cut = true;
        match error {
            TransportError::Closed => SessionEnd::GuestClosed(in_request),
            TransportError::PeerViolation(what) => SessionEnd::GuestFault(what),
            other => SessionEnd::Transport(other),
        }
    }

    fn progress(&mut self) {
        self.moved_at = Instant::now();
        self.fruitless = 0;
    }

    fn wait_between_requests(&mut self, began: Instant) -> Result<(), SessionEnd> {
        let settings = self.settings;
        let reading = !self.outbox.is_full();
        let writing = !self.outbox.is_empty();
        let in_frame = self.inbox.is_partial() || self.scrap_left > 0 || writing;
        if let Some(reason) = self.stop.get().filter(|_| !in_frame) {
            let reply = Reply::closing(reason.code().into(), &reason.to_string());
            self.outbox.push(&reply);
            return Err(SessionEnd::Stopped(reason));
        }
        let (deadline, what) = if !self.rules.is_open() {
            (began + settings.hello_timeout, "no complete Hello")
        } else if in_frame {
            (
                self.moved_at + settings.stall_timeout,
                "half a frame and no more",
            )
        } else {
            (self.moved_at + settings.idle_timeout, "no request")
        };
        let mut until = deadline;
        if !in_frame {
            until = until.min(Instant::now() + STOP_CHECK);
        }
        if self.wait(reading, writing, until)? || Instant::now() < deadline {
            return Ok(());
        }
        let waited = deadline.saturating_duration_since(if self.rules.is_open() {
            self.moved_at
        } else {
            began
        });
        let text = format!("{what} within {} ms", waited.as_millis());
        if !writing {
            let reply = Reply::closing(ErrorCode::Timeout.into(), &text);
            self.outbox.push(&reply);
        }
        Err(SessionEnd::TimedOut(text))
    }

    /// Waits until bytes may move; false once `deadline` has passed.
    fn wait(&mut self, read: bool, write: bool, deadline: Instant) -> Result<bool, SessionEnd> {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        if self.unflushed {
            self.unflushed = false;
            match self.transport.flush(deadline) {
                Ok(()) => {}
                Err(TransportError::TimedOut(_)) => return Ok(false),
                Err(error) => return Err(self.transport_end(error, true)),
            }
        }
        if self.fruitless > FRUITLESS_WAKES {
            std::thread::sleep(Duration::from_millis(1));
        }
        let interest = match (read, write) {
            (true, true) => Interest::ReadOrWrite,
            (false, true) => Interest::Write,
            (_, false) => Interest::Read,
        };
        match self.transport.wait(interest, deadline) {
            Ok(()) => {
                self.fruitless = self.fruitless.saturating_add(1);
                Ok(true)
            }
            Err(TransportError::TimedOut(_)) => Ok(false),
            Err(error) => Err(self.transport_end(error, true)),
        }
    }

    /// Completes a result frame that was sent in part, so that a last word can follow it.
    fn complete_frame(&mut self, running: &mut Running<'_>) {
        let deadline = Instant::now() + CLOSING_TIME;
        while running.is_writing() && !self.cut {
            match self.send(Some(running)) {
                Ok(true) => {}
                Ok(false) => match self.wait(false, true, deadline) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => self.cut = true,
                },
                Err(_) => self.cut = true,
            }
        }
    }

    /// Sends the last frames if the guest takes them, and closes.
    fn close(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        while !self.cut && !self.outbox.is_empty() {
            match self.send(None) {
                Ok(true) => {}
                Ok(false) => match self.wait(false, true, deadline) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => self.cut = true,
                },
                Err(_) => self.cut = true,
            }
        }
        if let Err(error) = self.transport.close(deadline) {
            log::debug!("closing {}: {error}", self.transport.describe());
        }
    }

    fn info_reply(&self, info: &ExecutorInfo) -> InfoReply {
        let reason = self.settings.reason.as_ref().unwrap_or(&info.reason);
        InfoReply {
            executor: info.kind.to_owned(),
            device: info.device.clone(),
            total_memory: info.total_memory,
            driver: info.driver.clone(),
            reason: reason.clone(),
            mediator: concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}
