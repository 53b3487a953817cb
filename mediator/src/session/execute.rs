//! Sessions whose requests run on this machine's executor.
//!
//! Whenever a byte can move it is moved; only when none can does the thread wait, for the transport
//! or for the device. So a guest that sends its next chunk while it takes the last result keeps
//! both directions busy.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{InfoReply, VectorAdd};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::Transport;

use super::SessionEnd;
use super::front::Front;
use super::outbox::Reply;
use super::serve::{Backend, NotOpened, OpenExecutor, Opened};
use super::vector_add::{Running, status_of};
use crate::executor::{Executor, ExecutorInfo};

/// The executor, once a guest was admitted.
pub(super) struct Execute<'o> {
    open: OpenExecutor<'o>,
    /// Why the broker took it; overrides the executor's own word.
    reason: Option<String>,
    executor: Option<Box<dyn Executor>>,
}

impl<'o> Execute<'o> {
    pub(super) fn new(open: OpenExecutor<'o>, reason: Option<String>) -> Self {
        Self {
            open,
            reason,
            executor: None,
        }
    }

    fn info_reply(&self, info: &ExecutorInfo) -> InfoReply {
        let reason = self.reason.as_ref().unwrap_or(&info.reason);
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

impl<T: Transport + ?Sized> Backend<T> for Execute<'_> {
    fn open(&mut self) -> Result<Opened, NotOpened> {
        let executor = (self.open)().map_err(|error| NotOpened {
            code: error.code,
            text: format!("the mediator cannot open its executor: {error}"),
            end: SessionEnd::ExecutorLost(error.text),
        })?;
        let info = self.info_reply(executor.info());
        self.executor = Some(executor);
        Ok(Opened { info, terms: None })
    }

    fn wait(
        &mut self,
        front: &mut Front<'_, T>,
        reading: bool,
        writing: bool,
        until: Instant,
    ) -> Result<bool, SessionEnd> {
        front.wire.wait(reading, writing, until)
    }

    fn ping(
        &mut self,
        front: &mut Front<'_, T>,
        _request: &FrameHeader,
        _body: &[u8],
        reply: &Reply,
    ) -> Result<(), SessionEnd> {
        front.wire.answer(reply);
        Ok(())
    }

    fn vector_add(
        &mut self,
        front: &mut Front<'_, T>,
        request: FrameHeader,
        job: VectorAdd,
    ) -> Result<(), SessionEnd> {
        let Some(executor) = &mut self.executor else {
            // The rules admit a guest before they let it ask for anything.
            return Err(SessionEnd::GuestFault("a request before Hello".into()));
        };
        let longest = job.elements.min(u64::from(job.chunk_elements));
        // At most u32::MAX, which fits usize on every machine with 32 bits or more.
        let pipeline = match executor.vector_add(usize::try_from(longest).unwrap_or(usize::MAX)) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                let text = error.to_string();
                let verdict = front.rules.finish(
                    &request,
                    false,
                    Reply::error(&request, status_of(&error), &text),
                );
                front.obey(verdict)?;
                return check_executor(front, error.ends_session(), text);
            }
        };
        let mut running = Running::new(request, job, pipeline);
        if let Err(end) = drive(front, &mut running) {
            front.wire.complete_frame(&mut running);
            return Err(end);
        }
        front.wire.discard(running.left_of_body());
        let input_ended = running.input_ended();
        let (reply, failure, device_ns) = running.into_outcome();
        front.counters.worked(0, device_ns);
        let verdict = front.rules.finish(&request, input_ended, reply);
        front.obey(verdict)?;
        match failure {
            Some(failure) => check_executor(front, failure.executor_lost, failure.text),
            None => Ok(()),
        }
    }
}

/// Ends the session when its executor is of no use any more.
fn check_executor<T: Transport + ?Sized>(
    front: &mut Front<'_, T>,
    lost: bool,
    text: String,
) -> Result<(), SessionEnd> {
    if !lost {
        return Ok(());
    }
    front.wire.say_last(ErrorCode::BackendLost, &text);
    Err(SessionEnd::ExecutorLost(text))
}

/// Moves bytes until the vector add is done or has failed.
fn drive<T: Transport + ?Sized>(
    front: &mut Front<'_, T>,
    running: &mut Running<'_>,
) -> Result<(), SessionEnd> {
    let own_limit: Duration = front.settings.stall_timeout;
    let mut patience = front.patience(running.request());
    front.wire.progress();
    while !running.is_finished() {
        let wrote = front.wire.send(Some(running))?;
        let read = receive(front, running)?;
        if wrote || read {
            front.wire.progress();
            continue;
        }
        let deadline = front.wire.moved_at() + patience;
        if running.awaits_device() {
            running.begin_result(Some(deadline));
            front.wire.progress();
            continue;
        }
        let reading = !running.input_ended() && front.wire.may_read();
        let writing = running.is_writing() || !front.wire.is_sent();
        if front.wire.wait(reading, writing, deadline)? {
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
        front.wire.progress();
    }
    Ok(())
}

/// Reads for a vector add: its input, or other requests that came in between.
fn receive<T: Transport + ?Sized>(
    front: &mut Front<'_, T>,
    running: &mut Running<'_>,
) -> Result<bool, SessionEnd> {
    if !front.wire.may_read() || running.has_failed() {
        return Ok(false);
    }
    if front.wire.is_discarding() {
        return front.wire.read_scrap();
    }
    if running.is_filling() {
        return front.wire.read_chunk(running);
    }
    if running.input_ended() {
        return Ok(false);
    }
    match front.next_data(running.request())? {
        None => return Ok(false),
        Some(None) => {}
        Some(Some(header)) => running.begin_data(&header),
    }
    Ok(true)
}
