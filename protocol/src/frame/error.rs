//! What can be wrong with a header.

use super::MAGIC;
use crate::handle::HandleError;
use crate::message::Op;

/// Why a header was refused: which field, and the value it had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream is not at the start of a frame.
    #[error("magic is {0:#010x}, not {MAGIC:#010x} (\"VGPU\")")]
    Magic(u32),
    /// The operation is not known to this version.
    #[error("op is {0}, which protocol version {version} does not have", version = crate::VERSION)]
    Op(u16),
    /// A flag bit without meaning is set.
    #[error("flags is {0:#06x}, which has unknown bits")]
    Flags(u16),
    /// The flags are known, but not allowed on this operation.
    #[error("flags is {flags:#06x}, which {op} does not allow")]
    FlagsForOp {
        /// The operation.
        op: Op,
        /// The flags it came with.
        flags: u16,
    },
    /// Request id 0 belongs to a mediator's own Goodbye and nothing else.
    #[error("request_id is 0, which only a mediator's own Goodbye has")]
    RequestId,
    /// A field that must be zero is not.
    #[error("{field} is {value:#x}, not 0")]
    Reserved {
        /// `reserved` (offset 14) or `reserved2` (offset 36).
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// The handle is malformed.
    #[error("handle is {value:#018x}: {reason}")]
    Handle {
        /// Its value.
        value: u64,
        /// What is wrong with it.
        reason: HandleError,
    },
    /// The handle is well formed, but this operation takes none.
    #[error("handle is {value:#018x}, but {op} takes none")]
    HandleForOp {
        /// The operation.
        op: Op,
        /// The handle's value.
        value: u64,
    },
    /// The body is longer than this operation allows.
    #[error("body_len is {len}, but {op} allows at most {max} bytes")]
    BodyLen {
        /// The operation.
        op: Op,
        /// The length announced.
        len: u32,
        /// The most it may be.
        max: u32,
    },
    /// Only requests carry a deadline.
    #[error("deadline_ms is {0} in a reply, where it must be 0")]
    DeadlineInReply(u32),
    /// Only replies carry a status.
    #[error("status is {0} in a request, where it must be 0")]
    StatusInRequest(i32),
    /// Result data cannot carry an error: the final reply of the request does.
    #[error("status is {0} in a data frame, where it must be 0")]
    StatusInData(i32),
}
