//! One running vector add: which chunk is in which slot of the executor's pipeline.
//!
//! Input bytes go from the transport straight into a slot's buffers, results from the slot straight
//! to the transport. Slots are used in turn, so the oldest submitted one is always the next result.

use std::collections::VecDeque;
use std::time::Instant;

use vgpu_protocol::clock;
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::message::{VectorAdd, VectorAddReply};
use vgpu_protocol::status::{ErrorCode, Status};

use super::input::Input;
use super::outbox::Reply;
use crate::executor::{ExecutorError, VectorAddPipeline};

// Floats travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Bytes of one f32.
const ELEMENT: usize = size_of::<f32>();

/// Chunks of a vector add on their way through a pipeline.
pub struct Running<'p> {
    pipeline: Box<dyn VectorAddPipeline + 'p>,
    request: FrameHeader,
    elements: u64,
    input: Input,
    /// The frame whose body is being received.
    filling: Option<Filling>,
    /// Chunks submitted and not yet delivered, oldest first.
    submitted: VecDeque<Chunk>,
    next_slot: usize,
    /// The oldest chunk's frame is being sent.
    writing: Option<Writing>,
    failure: Option<Failure>,
}

#[derive(Clone, Copy)]
struct Chunk {
    slot: usize,
    elements: usize,
}

struct Filling {
    /// `None` once the request has failed: the body is of no use.
    chunk: Option<Chunk>,
    received: usize,
    len: usize,
}

struct Writing {
    header: [u8; HEADER_LEN],
    /// Bytes of header and body sent so far.
    sent: usize,
}

/// Why the request failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// For the final reply.
    pub status: Status,
    /// For the final reply.
    pub text: String,
    /// The executor cannot be used any more.
    pub executor_lost: bool,
}

impl<'p> Running<'p> {
    /// A vector add whose input is about to follow.
    pub fn new(
        request: FrameHeader,
        job: VectorAdd,
        pipeline: Box<dyn VectorAddPipeline + 'p>,
    ) -> Self {
        Self {
            pipeline,
            request,
            elements: job.elements,
            input: Input::new(&job),
            filling: None,
            submitted: VecDeque::new(),
            next_slot: 0,
            writing: None,
            failure: None,
        }
    }

    /// The request that runs.
    pub fn request(&self) -> &FrameHeader {
        &self.request
    }

    /// Whether the last Data frame of this request has begun, and is complete unless
    /// [`left_of_body`](Self::left_of_body) says otherwise.
    pub fn input_ended(&self) -> bool {
        self.input.has_ended()
    }

    /// Whether nothing is left to do but the final reply.
    pub fn is_finished(&self) -> bool {
        let done = self.input.has_ended() && self.filling.is_none() && self.submitted.is_empty();
        self.writing.is_none() && (done || self.failure.is_some())
    }

    /// Whether the request has failed, so that its input is of no use any more.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Bytes still to come of the body that is being received.
    pub fn left_of_body(&self) -> usize {
        self.filling
            .as_ref()
            .map_or(0, |filling| filling.len - filling.received)
    }

    /// Gives up; nothing more is computed. A frame that is being sent is still completed.
    pub fn fail(&mut self, status: Status, text: String) {
        self.failure.get_or_insert(Failure {
            status,
            text,
            executor_lost: false,
        });
    }

    fn fail_executor(&mut self, error: &ExecutorError) {
        let lost = error.ends_session();
        self.fail(status_of(error), error.to_string());
        if let Some(failure) = &mut self.failure {
            failure.executor_lost |= lost;
        }
    }

    /// The final reply, the failure if it is one, and the nanoseconds that the device worked.
    pub fn into_outcome(self) -> (Reply, Option<Failure>, u64) {
        let device_ns = self.pipeline.device_ns();
        let reply = match &self.failure {
            Some(failure) => Reply::error(&self.request, failure.status, &failure.text),
            None => {
                let body = VectorAddReply {
                    elements: self.elements,
                    device_ns,
                };
                Reply::ok(&self.request, body.encode())
            }
        };
        (reply, self.failure, device_ns)
    }

    /// Takes the header of this request's next Data frame.
    ///
    /// Must not be called while another body is being received.
    pub fn begin_data(&mut self, header: &FrameHeader) {
        debug_assert!(self.filling.is_none());
        let len = header.body_len as usize;
        let more = header.has_more();
        let chunk = match self.input.expect(len, more) {
            Ok(elements) => Some(Chunk {
                slot: self.next_slot,
                elements,
            }),
            Err((code, text)) => {
                self.fail(code.into(), text);
                None
            }
        };
        if len > 0 {
            self.filling = Some(Filling {
                chunk,
                received: 0,
                len,
            });
        }
    }

    /// Whether a body is being received.
    pub fn is_filling(&self) -> bool {
        self.filling.is_some()
    }

    /// Where the next bytes of the body belong: in a slot's buffers. `None` while every slot is
    /// taken, when no body is being received, or when the request has failed.
    pub fn unfilled(&mut self) -> Option<&mut [u8]> {
        let Filling {
            chunk, received, ..
        } = self.filling.as_ref()?;
        let chunk = chunk.filter(|_| self.failure.is_none())?;
        if self.submitted.len() >= self.pipeline.slots() {
            return None;
        }
        let half = chunk.elements * ELEMENT;
        let (a, b) = self.pipeline.input(chunk.slot, chunk.elements);
        Some(match received.checked_sub(half) {
            None => &mut bytemuck::cast_slice_mut(a)[*received..],
            Some(in_b) => &mut bytemuck::cast_slice_mut(b)[in_b..],
        })
    }

    /// Notes that `n` bytes were put into [`unfilled`](Self::unfilled). A complete chunk goes to
    /// the device.
    pub fn advance(&mut self, n: usize) {
        let Some(filling) = &mut self.filling else {
            return;
        };
        filling.received += n;
        if filling.received < filling.len {
            return;
        }
        let chunk = filling.chunk;
        self.filling = None;
        let Some(chunk) = chunk else {
            return;
        };
        match self.pipeline.submit(chunk.slot, chunk.elements) {
            Ok(()) => {
                self.submitted.push_back(chunk);
                self.next_slot = (self.next_slot + 1) % self.pipeline.slots();
            }
            Err(error) => self.fail_executor(&error),
        }
    }

    /// Starts a result frame if the oldest chunk is ready; with `wait_until`, waits for it.
    ///
    /// Returns whether a frame is being sent now.
    pub fn begin_result(&mut self, wait_until: Option<Instant>) -> bool {
        if self.writing.is_some() {
            return true;
        }
        if self.failure.is_some() {
            return false;
        }
        let Some(chunk) = self.submitted.front().copied() else {
            return false;
        };
        let deadline = match (wait_until, self.pipeline.is_done(chunk.slot)) {
            (None, Ok(false)) => return false,
            (None, _) => clock::now(),
            (Some(deadline), _) => deadline,
        };
        if let Err(error) = self.pipeline.result(chunk.slot, deadline) {
            self.fail_executor(&error);
            return false;
        }
        // At most MAX_BODY / 2, which the check of the input's length ensures.
        let len = u32::try_from(chunk.elements * ELEMENT).unwrap_or(u32::MAX);
        self.writing = Some(Writing {
            header: FrameHeader::data_reply_to(&self.request, len).encode(),
            sent: 0,
        });
        true
    }

    /// Whether a result frame is being sent.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether the device has work whose result is not being sent yet.
    pub fn awaits_device(&self) -> bool {
        self.writing.is_none() && self.failure.is_none() && !self.submitted.is_empty()
    }

    /// The bytes of the result frame to send next.
    ///
    /// # Errors
    /// The device does not give the result after all: the frame cannot be completed, and the
    /// session cannot go on.
    pub fn unsent(&mut self) -> Result<&[u8], ExecutorError> {
        let (Some(writing), Some(chunk)) = (&self.writing, self.submitted.front()) else {
            return Ok(&[]);
        };
        match writing.sent.checked_sub(HEADER_LEN) {
            None => Ok(&writing.header[writing.sent..]),
            Some(in_body) => {
                // It is there, so this does not wait.
                let result = self.pipeline.result(chunk.slot, clock::now())?;
                Ok(&bytemuck::cast_slice(result)[in_body..])
            }
        }
    }

    /// Notes that `n` bytes of [`unsent`](Self::unsent) were sent; returns the elements of the
    /// chunk that is delivered with them, or 0.
    pub fn sent(&mut self, n: usize) -> u64 {
        let (Some(writing), Some(chunk)) = (&mut self.writing, self.submitted.front()) else {
            return 0;
        };
        writing.sent += n;
        if writing.sent < HEADER_LEN + chunk.elements * ELEMENT {
            return 0;
        }
        let elements = chunk.elements as u64;
        self.writing = None;
        self.submitted.pop_front();
        elements
    }
}

/// What the guest is told about a failure of the executor.
pub fn status_of(error: &ExecutorError) -> Status {
    match error {
        ExecutorError::Cuda { code, .. } => Status::from_raw((*code).max(1)),
        ExecutorError::OutOfMemory { .. } => ErrorCode::QuotaMemory.into(),
        ExecutorError::TimedOut { .. } => ErrorCode::Timeout.into(),
        ExecutorError::Busy { .. } => ErrorCode::Busy.into(),
        ExecutorError::DeviceLost { .. } | ExecutorError::Unavailable { .. } => {
            ErrorCode::BackendLost.into()
        }
    }
}

impl std::fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("request", &self.request)
            .field("submitted", &self.submitted.len())
            .field("input", &self.input)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
