//! The operations, one row each.
//!
//! A row is `code => Request / Reply`, the feature it needs, whether a request may be quiet, the
//! fields of both bodies in the order they lie on the wire, and, where a request has data beyond its
//! body, how many bytes of it go up to the mediator and down to the guest. Everything else about an
//! operation on the wire comes from here: see the [module](super).

use std::num::{NonZeroU16, NonZeroU64};

use super::field::{Bytes, Field, FieldError, List, Reader, Text};
use super::{Body, Features, Operation};
use crate::status::Status;

/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME: usize = 64;

/// Longest of each of the texts in [`InfoReply`], in bytes.
pub const MAX_INFO_TEXT: usize = 512;

/// Most bytes of a ping.
pub const MAX_PING: usize = 4096;

/// Failures a mediator keeps between two fences; what exceeds them is counted only.
pub const MAX_QUIET_FAILURES: usize = 64;

/// Elements of each vector in one chunk of a vector add's data; the last chunk has what is left.
///
/// Large enough to hide a kernel's launch, small enough that a few of them stay in a processor's
/// cache.
pub const VECTOR_ADD_CHUNK: u64 = 64 << 10;

/// Bytes of one element of a vector.
const FLOAT: u64 = size_of::<f32>() as u64;

operations! {
    /// Opens the session. The first request, and only the first.
    1 => Hello / HelloReply {
        feature: NONE, quiet: no,
        request {
            /// Oldest version the guest speaks.
            min_version: NonZeroU16,
            /// Newest version the guest speaks, not below `min_version`.
            max_version: u16,
            /// What the guest can use; unknown bits are ignored.
            features: Features,
            /// Which program this is, for the mediator's log.
            client_name: Text<MAX_CLIENT_NAME>,
        } check rules::hello,
        reply {
            /// The version both speak from now on: the highest in common.
            version: NonZeroU16,
            /// What both sides have.
            features: Features,
            /// Lanes are numbered from 0 to one below this.
            max_lanes: NonZeroU16,
            /// Requests that may be under way at once, and quiet ones as many again.
            max_requests: NonZeroU16,
            /// Objects of each kind that may be open at once.
            max_handles: u32,
            /// Bytes of a request's data that may be sent before the mediator grants any.
            initial_credit: u32,
            /// Different for every session a mediator ever opens; state of another epoch is gone.
            epoch: u64,
        }
    }

    /// Ends the session in good order. The last request.
    2 => Goodbye / GoodbyeReply {
        feature: NONE, quiet: no,
        request {}
        reply {}
    }

    /// What executes the session's work, and why that.
    5 => Info / InfoReply {
        feature: NONE, quiet: no,
        request {}
        reply {
            /// Bytes of device memory.
            total_memory: u64,
            /// `cuda`, `cpu` or `relay`.
            executor: Text<MAX_INFO_TEXT>,
            /// The device's name.
            device: Text<MAX_INFO_TEXT>,
            /// Driver name and version.
            driver: Text<MAX_INFO_TEXT>,
            /// One line: why the mediator took this executor.
            reason: Text<MAX_INFO_TEXT>,
            /// Name and version of the mediator.
            mediator: Text<MAX_INFO_TEXT>,
        }
    }

    /// Sends the same bytes back. A quiet one is only received.
    6 => Ping / PingReply {
        feature: NONE, quiet: yes,
        request {
            /// Any bytes.
            payload: Bytes<MAX_PING>,
        }
        reply {
            /// The same bytes.
            payload: Bytes<MAX_PING>,
        }
    }

    /// Waits for every request of its lane before it, and reports the quiet ones that failed.
    7 => Fence / FenceReply {
        feature: QUIET, quiet: no,
        request {}
        reply {
            /// Failures that no entry of the list names.
            dropped: u32,
            /// The first quiet requests that failed since the fence before, of any lane.
            failures: List<QuietFailure, MAX_QUIET_FAILURES>,
        }
    }

    /// Adds two vectors of 32-bit floats. Its data is chunk k of the first vector, then chunk k of
    /// the second, for every k; back come the sums.
    8 => VectorAdd / VectorAddReply {
        feature: VECTOR_ADD_F32, quiet: no,
        request {
            /// Elements of each vector, fewer than 2^60.
            elements: NonZeroU64,
        } check rules::vector_add,
        reply {
            /// Time the device worked, in nanoseconds, as the executor measured it.
            device_ns: u64,
        }
        data up |add| 2 * FLOAT * add.elements.get(),
        data down |add| FLOAT * add.elements.get(),
    }
}

/// The rules that concern more than one field.
mod rules {
    use super::*;

    pub(super) fn hello(hello: &Hello) -> Result<(), (&'static str, FieldError)> {
        if hello.max_version < hello.min_version.get() {
            let value = hello.max_version.into();
            let rule = "below min_version";
            return Err(("max_version", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn vector_add(add: &VectorAdd) -> Result<(), (&'static str, FieldError)> {
        let value = add.elements.get();
        if value >= 1 << 60 {
            let rule = "2^60 and more have no room anywhere";
            return Err(("elements", FieldError::Value { value, rule }));
        }
        Ok(())
    }
}

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

impl Field for QuietFailure {
    const NAME: &'static str = "request id u32, op u16, status i32";
    const MAX_LEN: usize = 10;

    fn write(&self, body: &mut Vec<u8>) {
        self.request_id.write(body);
        self.op.code().write(body);
        self.status.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let request_id = u32::read(reader)?;
        let code = u16::read(reader)?;
        let op = Op::from_code(code).ok_or(FieldError::Value {
            value: code.into(),
            rule: "not an operation of this version",
        })?;
        let status = Status::read(reader)?;
        if status.is_ok() {
            let rule = "a failure needs an error code";
            return Err(FieldError::Value { value: 0, rule });
        }
        Ok(Self {
            request_id,
            op,
            status,
        })
    }
}
