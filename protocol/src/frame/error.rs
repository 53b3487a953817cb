//! The faults of a header.

use super::MAGIC;
use crate::op::Op;

/// The reasons why a header is refused, with the field and its value.
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
    /// The frame goes in the wrong direction: guests ask, mediators answer.
    #[error("{op} comes {}", if *.reply { "as a reply where a request is due" } else { "as a request where a reply is due" })]
    Direction {
        /// The operation.
        op: Op,
        /// Whether it came as a reply.
        reply: bool,
    },
    /// Request id 0 belongs to the mediator's Closing and nothing else.
    #[error("request_id is {0}; only Closing has 0, and nothing else")]
    RequestId(u32),
    /// A field that must be zero here is not.
    #[error("{field} is {value:#x}, not 0")]
    NotZero {
        /// `reserved`, `deadline_ms`, `status` or `credit`.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// The body is longer than this operation allows.
    #[error("body_len is {len}, but {op} allows at most {max} bytes")]
    BodyLen {
        /// The operation.
        op: Op,
        /// The length announced.
        len: u32,
        /// The most it may be.
        max: usize,
    },
}
