//! The other mediator as an executor, for commands that are no sessions: those of the file
//! protocol's two files. Small and one at a time, so nothing here is streamed.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::message::{DataType, Op, VectorAdd, VectorAddReply};
use vgpu_protocol::status::decode_error_text;
use vgpu_protocol::transport::Transport;

use super::far::{Far, Lost};
use super::{Route, describe, open};
use crate::executor::{Executor, ExecutorError, ExecutorInfo, VectorAddPipeline};
use crate::session::OpenError;
use crate::session::inbox::Event;

/// Time for one addition there.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a session with the mediator at the end of `route`, as an executor.
///
/// # Errors
/// It cannot be reached or refuses.
pub fn executor(route: &Route) -> Result<Box<dyn Executor>, OpenError> {
    let far = open(route).map_err(|lost| OpenError {
        code: lost.code,
        text: lost.text,
    })?;
    let info = describe(&far);
    let info = ExecutorInfo {
        kind: "relay",
        device: info.device,
        total_memory: info.total_memory,
        driver: info.driver,
        reason: info.reason,
    };
    Ok(Box::new(RelayExecutor { far, info }))
}

struct RelayExecutor {
    far: Far,
    info: ExecutorInfo,
}

impl Drop for RelayExecutor {
    fn drop(&mut self) {
        self.far.close();
    }
}

impl Executor for RelayExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn vector_add(
        &mut self,
        chunk_elements: usize,
    ) -> Result<Box<dyn VectorAddPipeline + '_>, ExecutorError> {
        let limits = &self.far.hello.limits;
        let most = u64::from(limits.max_chunk_elements.min(limits.max_body / 8));
        if chunk_elements as u64 > most.min(limits.max_elements) {
            return Err(ExecutorError::OutOfMemory {
                wanted: 8 * chunk_elements as u64,
                what: format!("a chunk for the mediator at {}", self.far.place()),
            });
        }
        Ok(Box::new(Slot {
            far: &mut self.far,
            a: vec![0.0; chunk_elements],
            b: vec![0.0; chunk_elements],
            sum: vec![0.0; chunk_elements],
            elements: 0,
            device_ns: 0,
        }))
    }
}

/// The only slot.
struct Slot<'f> {
    far: &'f mut Far,
    a: Vec<f32>,
    b: Vec<f32>,
    sum: Vec<f32>,
    /// Of the result in `sum`.
    elements: usize,
    device_ns: u64,
}

impl VectorAddPipeline for Slot<'_> {
    fn slots(&self) -> usize {
        1
    }

    fn input(&mut self, _slot: usize, elements: usize) -> (&mut [f32], &mut [f32]) {
        (&mut self.a[..elements], &mut self.b[..elements])
    }

    fn submit(&mut self, _slot: usize, elements: usize) -> Result<(), ExecutorError> {
        let (a, b) = (&self.a[..elements], &self.b[..elements]);
        let spent = add(self.far, a, b, &mut self.sum[..elements])?;
        self.device_ns = self.device_ns.saturating_add(spent);
        self.elements = elements;
        Ok(())
    }

    fn is_done(&mut self, _slot: usize) -> Result<bool, ExecutorError> {
        Ok(true)
    }

    fn result(&mut self, _slot: usize, _deadline: Instant) -> Result<&[f32], ExecutorError> {
        Ok(&self.sum[..self.elements])
    }

    fn device_ns(&self) -> u64 {
        self.device_ns
    }
}

fn lost(lost: Lost) -> ExecutorError {
    ExecutorError::DeviceLost { what: lost.text }
}

/// Adds one chunk there; returns the nanoseconds that the device worked, by that mediator's account.
fn add(far: &mut Far, a: &[f32], b: &[f32], sum: &mut [f32]) -> Result<u64, ExecutorError> {
    let deadline = Instant::now() + PATIENCE;
    // At most what the limits allow, which are 32-bit numbers.
    let elements = u32::try_from(a.len()).unwrap_or(u32::MAX);
    let Some(handle) = far.streams().mint() else {
        return Err(ExecutorError::DeviceLost {
            what: "no stream handle is free".into(),
        });
    };
    let job = VectorAdd {
        elements: elements.into(),
        chunk_elements: elements,
        data_type: DataType::F32,
    }
    .encode();
    let request = far
        .request(Op::VectorAdd)
        .with_flags(Flags::MORE)
        .with_handle(handle);
    // 16 bytes.
    far.queue(&request.with_body_len(16), &job);
    far.queue(&FrameHeader::data_for(&request, 8 * elements, false), &[]);
    let front = far.take_queued();
    for bytes in [&front, bytemuck::cast_slice(a), bytemuck::cast_slice(b)] {
        let written = far.stream.write_all(bytes, deadline);
        written.map_err(|error| lost(far.failed(error)))?;
    }
    let outcome = take_result(far, &request, sum, deadline);
    far.streams().release(handle);
    outcome
}

fn take_result(
    far: &mut Far,
    request: &FrameHeader,
    sum: &mut [f32],
    deadline: Instant,
) -> Result<u64, ExecutorError> {
    let mut whole = false;
    let started = Instant::now();
    loop {
        match far.next_event(started, deadline).map_err(lost)? {
            Event::None => {}
            Event::Data(header) => {
                // As long as the input's half, which was within the limits.
                let len = u32::try_from(4 * sum.len()).unwrap_or(u32::MAX);
                if whole || header != FrameHeader::data_reply_to(request, len) {
                    return Err(lost(far.violates("sends a result that is not due")));
                }
                let read = far
                    .stream
                    .read_exact(bytemuck::cast_slice_mut(sum), deadline);
                read.map_err(|error| lost(far.failed(error)))?;
                far.body_read();
                whole = true;
            }
            Event::Frame(header, body) => {
                let status = far.check_reply(&header, &body, request).map_err(lost)?;
                if !status.is_ok() {
                    let what = format!("{} ({status})", decode_error_text(&body));
                    return Err(ExecutorError::DeviceLost { what });
                }
                return match VectorAddReply::decode(&body) {
                    Ok(reply) if whole && reply.elements == sum.len() as u64 => Ok(reply.device_ns),
                    _ => Err(lost(far.violates("says that it is done, and is not"))),
                };
            }
        }
    }
}
