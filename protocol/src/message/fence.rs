//! Fence: what became of the quiet requests.

use bytemuck::{Pod, Zeroable};

use super::{MessageError, Op, split_front};
use crate::le::{I32, U16, U32};
use crate::status::Status;

/// Failures a mediator keeps between two fences; what exceeds them is counted only.
pub const MAX_QUIET_FAILURES: usize = 64;

/// One quiet request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietFailure {
    /// Which request.
    pub request_id: u32,
    /// What it was.
    pub op: Op,
    /// How it failed; never [`Status::Ok`].
    pub status: Status,
}

/// The quiet requests that failed since the fence before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FenceReply {
    /// The first [`MAX_QUIET_FAILURES`] of them, in the order they failed.
    pub failures: Vec<QuietFailure>,
    /// How many more there were.
    pub dropped: u32,
}

/// The mediator's memory of failures between two fences.
#[derive(Debug, Default)]
pub struct QuietFailures {
    since_fence: FenceReply,
}

impl QuietFailures {
    /// Notes one, or only counts it when too many are kept already.
    pub fn push(&mut self, failure: QuietFailure) {
        if self.since_fence.failures.len() < MAX_QUIET_FAILURES {
            self.since_fence.failures.push(failure);
        } else {
            self.since_fence.dropped = self.since_fence.dropped.saturating_add(1);
        }
    }

    /// Hands them over, for the reply to a fence, and begins anew.
    pub fn take(&mut self) -> FenceReply {
        std::mem::take(&mut self.since_fence)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawFront {
    count: U32,
    dropped: U32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawFailure {
    request_id: U32,
    op: U16,
    reserved: U16,
    status: I32,
}

const MESSAGE: &str = "FenceReply";

impl FenceReply {
    /// The body; failures beyond [`MAX_QUIET_FAILURES`] are counted as dropped.
    pub fn encode(&self) -> Vec<u8> {
        let kept = &self.failures[..self.failures.len().min(MAX_QUIET_FAILURES)];
        let cut = self.failures.len() - kept.len();
        let front = RawFront {
            // At most MAX_QUIET_FAILURES.
            count: u32::try_from(kept.len()).unwrap_or(0).into(),
            dropped: self
                .dropped
                .saturating_add(u32::try_from(cut).unwrap_or(u32::MAX))
                .into(),
        };
        let mut body = bytemuck::bytes_of(&front).to_vec();
        for failure in kept {
            let raw = RawFailure {
                request_id: failure.request_id.into(),
                op: failure.op.code().into(),
                reserved: 0.into(),
                status: failure.status.to_raw().into(),
            };
            body.extend_from_slice(bytemuck::bytes_of(&raw));
        }
        body
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Wrong length, too many entries, or an entry that names no failed request.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let (front, mut rest): (RawFront, _) = split_front(MESSAGE, body)?;
        let field = |field, value, rule| MessageError::Field {
            message: MESSAGE,
            field,
            value,
            rule,
        };
        let count = usize::try_from(front.count.get()).unwrap_or(usize::MAX);
        if count > MAX_QUIET_FAILURES {
            return Err(field("count", front.count.get().into(), "at most 64"));
        }
        let mut failures = Vec::with_capacity(count);
        for _ in 0..count {
            let raw: RawFailure;
            (raw, rest) = split_front(MESSAGE, rest)?;
            let code = raw.op.get();
            let op =
                Op::from_code(code).ok_or(field("op", code.into(), "not an op of this version"))?;
            let status = Status::from_raw(raw.status.get());
            if status.is_ok() {
                return Err(field("status", 0, "a failure needs an error code"));
            }
            if raw.reserved.get() != 0 {
                return Err(field("reserved", raw.reserved.get().into(), "not 0"));
            }
            failures.push(QuietFailure {
                request_id: raw.request_id.get(),
                op,
                status,
            });
        }
        match rest {
            [] => Ok(Self {
                failures,
                dropped: front.dropped.get(),
            }),
            extra => Err(MessageError::Length {
                message: MESSAGE,
                len: body.len(),
                wanted: body.len() - extra.len(),
            }),
        }
    }
}
