//! The guest's side of a session: its frames, the rules for them, and what waits its turn.
//!
//! Whatever runs the requests, an executor here or a mediator elsewhere, this is the same.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vgpu_protocol::clock;
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{Op, VectorAdd};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::Transport;

use super::inbox::Event;
use super::outbox::Reply;
use super::rules::{DataVerdict, Rules, Verdict};
use super::serve::Backend;
use super::wire::Wire;
use super::{SessionEnd, Settings, StopFlag};
use crate::usage::{Counters, Observed};

/// How soon an idle session notices that the broker wants it to end.
const STOP_CHECK: Duration = Duration::from_millis(250);

/// What the rules leave to the backend.
pub(crate) enum Step {
    /// Get ready for a guest whose Hello is sound.
    Admit(FrameHeader),
    /// Answer with this if there is an answer to be had.
    Ping(FrameHeader, Vec<u8>, Reply),
    /// Run this; its input follows.
    VectorAdd(FrameHeader, VectorAdd),
}

/// A guest and the state of its session.
pub(crate) struct Front<'a, T: Transport + ?Sized> {
    pub(crate) wire: Wire<'a, T>,
    pub(crate) rules: Rules,
    pub(crate) settings: &'a Settings,
    pub(crate) counters: &'a Counters,
    client: &'a OnceLock<String>,
    stop: &'a StopFlag,
    /// Requests of the lane that came while a vector add was running.
    deferred: VecDeque<(FrameHeader, Vec<u8>)>,
    began: Instant,
}

impl<'a, T: Transport + ?Sized> Front<'a, T> {
    pub(super) fn new(
        transport: &'a mut T,
        settings: &'a Settings,
        observed: &'a Observed,
        stop: &'a StopFlag,
    ) -> Self {
        let wire = Wire::new(transport, &observed.counters);
        Self {
            began: wire.moved_at(),
            wire,
            rules: Rules::new(settings.limits, settings.epoch, settings.refusal.clone()),
            settings,
            counters: &observed.counters,
            client: &observed.client,
            stop,
            deferred: VecDeque::new(),
        }
    }

    /// Makes the name known that the guest gave itself.
    pub(super) fn note_client(&self) {
        if let Some(name) = self.rules.client_name() {
            let _ = self.client.set(name);
        }
    }

    /// Serves requests until one needs the backend.
    pub(super) fn next_step(&mut self, backend: &mut dyn Backend<T>) -> Result<Step, SessionEnd> {
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
                self.wait_between_requests(backend)?;
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
            Verdict::Reply(reply) if header.op == Op::Ping && reply.status().is_ok() => {
                Ok(Some(Step::Ping(*header, body.to_vec(), reply)))
            }
            verdict => self.obey(verdict).map(|()| None),
        }
    }

    /// Carries out a verdict that needs no backend.
    pub(crate) fn obey(&mut self, verdict: Verdict) -> Result<(), SessionEnd> {
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

    /// Takes bytes while a vector add takes its input: `running` is its request.
    ///
    /// `None`: there was nothing. A Data header of the request is the caller's business; everything
    /// else is dealt with.
    pub(crate) fn next_data(
        &mut self,
        running: &FrameHeader,
    ) -> Result<Option<Option<FrameHeader>>, SessionEnd> {
        let Some(event) = self.wire.read_event(true)? else {
            return Ok(None);
        };
        match event {
            Event::None => {}
            Event::Frame(header, body) => {
                self.counters.request();
                self.defer(header, body)?;
            }
            Event::Data(header) => match self.rules.on_data(&header, Some(running)) {
                DataVerdict::Running => return Ok(Some(Some(header))),
                DataVerdict::Discard => self.wire.discard(header.body_len as usize),
                DataVerdict::End(reply, end) => {
                    self.wire.answer(&reply);
                    return Err(end);
                }
            },
        }
        Ok(Some(None))
    }

    /// How long nothing may move in the middle of `request`.
    pub(crate) fn patience(&self, request: &FrameHeader) -> Duration {
        let own_limit = self.settings.stall_timeout;
        match request.deadline_ms {
            0 => own_limit,
            ms => own_limit.min(Duration::from_millis(ms.into())),
        }
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

    fn wait_between_requests(&mut self, backend: &mut dyn Backend<T>) -> Result<(), SessionEnd> {
        let (settings, began) = (self.settings, self.began);
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
            until = until.min(clock::now() + STOP_CHECK);
        }
        if backend.wait(self, reading, writing, until)? || Instant::now() < deadline {
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
}
