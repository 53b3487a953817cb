//! Requests that do not wait for those before them that cannot start.

use std::time::Instant;

use super::super::WINDOW;
use super::{End, Failure, Outcome, Server, Step};
use crate::op::field::StreamRef;
use crate::op::{Body, Op, Overtakes, Request, StreamCancelReply};
use crate::status::{ErrorCode, Status};

/// `CUDA_ERROR_NOT_SUPPORTED`: there are kernels, and none of them can be ended.
const NOT_SUPPORTED: Status = Status::Cuda(801);

/// Bytes that are read behind a request that cannot start: a guest's window, the last request that went over it, and those
/// that overtake.
const BEHIND: u64 = 2 * WINDOW;

/// The most that granted credit adds to that.
const MOST_GRANTED: u64 = 8 << 20;

impl Server {
    /// The buffer for what comes behind a request that cannot start, or behind data for which there is no room; empty
    /// once all is here that a guest may send in that case, and much more.
    pub fn space_behind(&mut self) -> &mut [u8] {
        let most = self.most_behind();
        self.inbox.space_behind(most)
    }

    /// Whether it has room.
    pub fn has_space_behind(&self) -> bool {
        self.inbox.unread() < self.most_behind()
    }

    fn most_behind(&self) -> usize {
        let granted: u64 = self.requests.iter().map(|request| request.credit).sum();
        usize::try_from(BEHIND + granted.min(MOST_GRANTED)).unwrap_or(usize::MAX)
    }

    /// The next request that [overtakes](Op::overtakes) those that cannot start.
    ///
    /// # Errors
    /// The session is over.
    pub fn overtaking(&mut self, now: Instant) -> Result<Option<Step>, End> {
        while self.is_open() && self.may_start() && self.may_receive() {
            let requests = &self.requests;
            let lanes = self.terms.max_lanes.get();
            let taken = self.inbox.take_behind(lanes, |header| {
                // A guest may reuse the id of a quiet request before it is known to be over.
                match requests.get(header.request_id) {
                    Some(_) => Overtakes::Nothing,
                    None => header.overtakes(),
                }
            });
            let Some((header, body)) = taken else {
                break;
            };
            self.counts.requests += 1;
            let decoded = Request::decode(header.op, &body);
            let step = self.on_decoded(&header, decoded, now)?;
            if let Some(Step::Start(header, Request::StreamCancel(cancel))) = &step {
                self.overtaker = Some((header.request_id, cancel.stream));
            }
            if step.is_some() {
                return Ok(step);
            }
        }
        Ok(None)
    }

    /// Whether a request may be started: not while a StreamCancel has overtaken others and is not answered.
    pub fn may_start(&self) -> bool {
        self.overtaker.is_none()
    }

    /// The outcome of a StreamCancel that has overtaken others: launches among them are ended as well. Where the backend
    /// had only some that it cannot end, they are what was ended.
    pub(super) fn withdraw(&mut self, stream: StreamRef, outcome: Outcome) -> Outcome {
        let mut launches = Vec::new();
        let mut made = false;
        for (header, body) in self.inbox.passed_over() {
            if !matches!(header.op, Op::Launch | Op::GraphLaunch | Op::StreamCreate) {
                continue;
            }
            match Request::decode(header.op, body) {
                Ok(Request::StreamCreate(create)) => made |= StreamRef::of(create.stream) == stream,
                // One before may have ended it, whose time has not come.
                Ok(request)
                    if request.kernel_stream() == Some(stream)
                        && !self.withdrawn.contains(&header.request_id) =>
                {
                    launches.push(header.request_id);
                }
                _ => {}
            }
        }
        let began = match outcome {
            Ok(body) => match StreamCancelReply::decode(&body) {
                Ok(reply) => reply.kernels,
                // The backend's, which is checked elsewhere.
                Err(_) => return Ok(body),
            },
            // The backend has yet to hear of it.
            Err(failure) if made && failure.status == ErrorCode::Handle.into() => 0,
            Err(failure) if !launches.is_empty() && failure.status == NOT_SUPPORTED => 0,
            Err(failure) => return Err(failure),
        };
        let more = u32::try_from(launches.len()).unwrap_or(u32::MAX);
        self.withdrawn.extend(launches);
        let kernels = began.saturating_add(more);
        Ok(StreamCancelReply { kernels }.encode())
    }

    pub(super) fn was_withdrawn(&mut self, id: u32) -> Option<Failure> {
        (!self.withdrawn.is_empty() && self.withdrawn.remove(&id)).then(|| Failure {
            status: ErrorCode::Cancelled.into(),
            text: "it was cancelled before it began".to_owned(),
        })
    }
}
