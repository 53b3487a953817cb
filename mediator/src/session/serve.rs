//! A session's loop: what to read, what to run, how long to wait.
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
use vgpu_protocol::transport::Transport;

use super::inbox::Event;
use super::outbox::Reply;
use super::rules::{DataVerdict, Rules, Verdict};
use super::vector_add::{Running, status_of};
use super::wire::Wire;
use super::{SessionEnd, Settings, StopFlag};
use crate::executor::{Executor, ExecutorInfo};
use crate::usage::{Counters, Observed};

/// Opens the session's executor, once, when a guest was admitted. The error is one line.
pub type OpenExecutor<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Executor>, String>;

/// How soon an idle session notices that the broker wants it to end.
const STOP_CHECK: Duration = Duration::from_millis(250);

/// Runs a session over `transport` until it ends, and closes the transport.
pub fn serve(
    transport: &mut dyn Transport,
    open: OpenExecutor<'_>,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut session = Session {
        wire: Wire::new(transport, &observed.counters),
        settings,
        counters: &observed.counters,
        client: &observed.client,
        stop,
        rules: Rules::new(settings.limits, settings.epoch, settings.refusal.clone()),
        deferred: VecDeque::new(),
    };
    let end = match session.run(open) {
        Err(end) => end,
        Ok(never) => match never {},
    };
    session.wire.close();
    end
}

/// What needs the executor.
enum Step {
    Admit(FrameHeader),
    VectorAdd(FrameHeader, VectorAdd),
}

enum Never {}

struct Session<'a> {
    wire: Wire<'a>,
    settings: &'a Settings,
    counters: &'a Counters,
    client: &'a OnceLock<String>,
    stop: &'a StopFlag,
    rules: Rules,
    /// Requests of the lane that came while a vector add was running.
    deferred: VecDeque<(FrameHeader, Vec<u8>)>,
}

impl Session<'_> {
    fn run(&mut self, open: OpenExecutor<'_>) -> Result<Never, SessionEnd> {
        let began = self.wire.moved_at();
        let mut executor: Option<Box<dyn Executor>> = None;
        loop {
            match (self.next_step(began)?, &mut executor) {
                (Step::Admit(request), slot) => {
                    let opened = open().map_err(|error| {
                        let text = format!("the mediator cannot open its executor: {error}");
                        let status = ErrorCode::BackendLost.into();
                        self.wire.answer(&Reply::error(&request, status, &text));
                        SessionEnd::ExecutorLost(error)
                    })?;
                    if let Some(name) = self.rules.client_name() {
                        let _ = self.client.set(name);
                    }
                    let info = self.info_reply(opened.info());
                    let reply = self.rules.admit(&request, info);
                    self.wire.answer(&reply);
                    *slot = Some(opened);
                    // Opening may take seconds, which are not the guest's.
                    self.wire.progress();
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
            let wrote = self.wire.send(None)?;
            let mut read = false;
            if self.wire.may_read() {
                if self.wire.is_discarding() {
                    read = self.wire.read_scrap()?;
                } else if let Some(event) = self.wire.read_event(false)? {
                    read = true;
                    if let Some(step) = self.on_event(event)? {
                        return Ok(step);
                    }
                }
            }
            if wrote || read {
                self.wire.progress();
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
            Verdict::Reply(reply) => self.wire.answer(&reply),
            Verdict::End(reply, end) => {
                self.wire.answer(&reply);
                return Err(end);
            }
            Verdict::Nothing | Verdict::Admit(_) | Verdict::VectorAdd(..) => {}
        }
        Ok(())
    }

    fn discard(&mut self, header: &FrameHeader) -> Result<(), SessionEnd> {
        match self.rules.on_data(header, None) {
            DataVerdict::End(reply, end) => {
                self.wire.answer(&reply);
                Err(end)
            }
            DataVerdict::Discard | DataVerdict::Running => {
                self.wire.discard(header.body_len as usize);
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
            self.wire.complete_frame(&mut running);
            return Err(end);
        }
        self.wire.discard(running.left_of_body());
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
        self.wire.say_last(ErrorCode::BackendLost, &text);
        Err(SessionEnd::ExecutorLost(text))
    }

    /// Moves bytes until the vector add is done or has failed.
    fn drive(&mut self, running: &mut Running<'_>) -> Result<(), SessionEnd> {
        let own_limit = self.settings.stall_timeout;
        let mut patience = match running.request().deadline_ms {
            0 => own_limit,
            ms => own_limit.min(Duration::from_millis(ms.into())),
        };
        self.wire.progress();
        while !running.is_finished() {
            let wrote = self.wire.send(Some(running))?;
            let read = self.receive(running)?;
            if wrote || read {
                self.wire.progress();
                continue;
            }
            let deadline = self.wire.moved_at() + patience;
            if running.awaits_device() {
                running.begin_result(Some(deadline));
                self.wire.progress();
                continue;
            }
            let reading = !running.input_ended() && self.wire.may_read();
            let writing = running.is_writing() || !self.wire.is_sent();
            if self.wire.wait(reading, writing, deadline)? {
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
            self.wire.progress();
        }
        Ok(())
    }

    /// Reads for a vector add: its input, or other requests that came in between.
    fn receive(&mut self, running: &mut Running<'_>) -> Result<bool, SessionEnd> {
        if !self.wire.may_read() || running.has_failed() {
            return Ok(false);
        }
        if self.wire.is_discarding() {
            return self.wire.read_scrap();
        }
        if running.is_filling() {
            return self.wire.read_chunk(running);
        }
        if running.input_ended() {
            return Ok(false);
        }
        let Some(event) = self.wire.read_event(true)? else {
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
                DataVerdict::Discard => self.wire.discard(header.body_len as usize),
                DataVerdict::End(reply, end) => {
                    self.wire.answer(&reply);
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

    fn wait_between_requests(&mut self, began: Instant) -> Result<(), SessionEnd> {
        let settings = self.settings;
        let reading = self.wire.may_read();
        let writing = !self.wire.is_sent();
        let in_frame = self.wire.is_in_frame();
        if let Some(reason) = self.stop.get().filter(|_| !in_frame) {
            self.wire.say_last(reason.code(), &reason.to_string());
            return Err(SessionEnd::Stopped(reason));
        }
        let (deadline, what) = if !self.rules.is_open() {
            (began + settings.hello_timeout, "no complete Hello")
        } else if in_frame {
            (
                self.wire.moved_at() + settings.stall_timeout,
                "half a frame and no more",
            )
        } else {
            (self.wire.moved_at() + settings.idle_timeout, "no request")
        };
        let mut until = deadline;
        if !in_frame {
            until = until.min(Instant::now() + STOP_CHECK);
        }
        if self.wire.wait(reading, writing, until)? || Instant::now() < deadline {
            return Ok(());
        }
        let waited = deadline.saturating_duration_since(if self.rules.is_open() {
            self.wire.moved_at()
        } else {
            began
        });
        let text = format!("{what} within {} ms", waited.as_millis());
        if !writing {
            self.wire.say_last(ErrorCode::Timeout, &text);
        }
        Err(SessionEnd::TimedOut(text))
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
