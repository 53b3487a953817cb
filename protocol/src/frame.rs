//! Frames: a 40-byte header, then `body_len` bytes.
//!
//! Decoding copies the header once and validates every field before anything acts on it. A header
//! that fails ends the session: after it the two sides no longer agree where the next frame starts.

use bytemuck::{Pod, Zeroable};

use crate::handle::{Handle, HandleError};
use crate::le::{I32, U16, U32, U64};
use crate::message::Op;
use crate::status::Status;

/// The first four bytes of every frame: `VGPU`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VGPU");

/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 40;

/// Largest body of a [`Op::Data`] frame, in bytes.
pub const MAX_BODY: u32 = 16 << 20;

/// Largest body of any other frame, in bytes.
pub const MAX_CONTROL_BODY: u32 = 4096;

/// The header as it lies on the wire.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawHeader {
    magic: U32,
    op: U16,
    flags: U16,
    request_id: U32,
    lane: U16,
    reserved: U16,
    handle: U64,
    body_len: U32,
    deadline_ms: U32,
    status: I32,
    reserved2: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// The flags of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u16);

impl Flags {
    /// No flag: a request that is answered and has no further frames.
    pub const NONE: Flags = Flags(0);
    /// The frame answers a request.
    pub const REPLY: Flags = Flags(1 << 0);
    /// A request that is answered only if it fails, and then at the next fence.
    pub const QUIET: Flags = Flags(1 << 1);
    /// Further frames of this request follow in this direction.
    pub const MORE: Flags = Flags(1 << 2);

    const KNOWN: u16 = Self::REPLY.0 | Self::QUIET.0 | Self::MORE.0;

    /// Checks `bits`; `None` if any bit is unknown.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !Self::KNOWN == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The bits as on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Flags) -> Self {
        Self(self.0 | other.0)
    }
}

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

/// A validated header, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What is asked, or what is answered.
    pub op: Op,
    /// Request or reply, quiet or not, more to come or not.
    pub flags: Flags,
    /// Chosen by the guest, never 0; a reply carries the id of its request. 0 only in
    /// [`FrameHeader::closing`].
    pub request_id: u32,
    /// Requests of one lane run in order; lanes are independent of each other.
    pub lane: u16,
    /// The object meant, where the operation has one.
    pub handle: Option<Handle>,
    /// Bytes that follow this header.
    pub body_len: u32,
    /// Requests: give up when nothing has moved for this many milliseconds; 0 = the server's own limit.
    pub deadline_ms: u32,
    /// Replies: how it went; [`Status::OK`] in requests.
    pub status: Status,
}

impl FrameHeader {
    /// A request on lane 0 without body, handle or deadline. `request_id` must not be 0.
    pub const fn request(op: Op, request_id: u32) -> Self {
        Self {
            op,
            flags: Flags::NONE,
            request_id,
            lane: 0,
            handle: None,
            body_len: 0,
            deadline_ms: 0,
            status: Status::OK,
        }
    }

    /// The final reply to `request`, without body.
    #[must_use]
    pub const fn reply_to(request: &Self, status: Status) -> Self {
        Self {
            op: request.op,
            flags: Flags::REPLY,
            request_id: request.request_id,
            lane: request.lane,
            handle: request.handle,
            body_len: 0,
            deadline_ms: 0,
            status,
        }
    }

    /// The mediator ends the session of its own accord: the guest broke the protocol, was asked to
    /// go, or the mediator stops. `status` says which; a text follows as in any error reply.
    #[must_use]
    pub const fn closing(status: Status) -> Self {
        let mut header = Self::request(Op::Goodbye, 0);
        header.flags = Flags::REPLY;
        header.status = status;
        header
    }

    /// A frame of result data for `request`; the final reply is still to follow.
    #[must_use]
    pub const fn data_reply_to(request: &Self, body_len: u32) -> Self {
        Self {
            op: Op::Data,
            flags: Flags::REPLY.with(Flags::MORE),
            request_id: request.request_id,
            lane: request.lane,
            handle: request.handle,
            body_len,
            deadline_ms: 0,
            status: Status::OK,
        }
    }

    /// A frame of input data for `request`; `more` says whether another one follows.
    ///
    /// A frame with `more == false` ends the input, complete or not.
    #[must_use]
    pub const fn data_for(request: &Self, body_len: u32, more: bool) -> Self {
        Self {
            op: Op::Data,
            flags: if more { Flags::MORE } else { Flags::NONE },
            request_id: request.request_id,
            lane: request.lane,
            handle: request.handle,
            body_len,
            deadline_ms: 0,
            status: Status::OK,
        }
    }

    /// The same with a body of `len` bytes.
    #[must_use]
    pub const fn with_body_len(mut self, len: u32) -> Self {
        self.body_len = len;
        self
    }

    /// The same with further flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = self.flags.with(flags);
        self
    }

    /// The same for another lane.
    #[must_use]
    pub const fn with_lane(mut self, lane: u16) -> Self {
        self.lane = lane;
        self
    }

    /// The same for an object.
    #[must_use]
    pub const fn with_handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// The same with a limit, in milliseconds, on the time without progress.
    #[must_use]
    pub const fn with_deadline_ms(mut self, ms: u32) -> Self {
        self.deadline_ms = ms;
        self
    }

    /// Whether this frame answers a request.
    pub const fn is_reply(&self) -> bool {
        self.flags.contains(Flags::REPLY)
    }

    /// Whether the request is answered only at a fence.
    pub const fn is_quiet(&self) -> bool {
        self.flags.contains(Flags::QUIET)
    }

    /// Whether further frames of this request follow in this direction.
    pub const fn has_more(&self) -> bool {
        self.flags.contains(Flags::MORE)
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: MAGIC.into(),
            op: self.op.code().into(),
            flags: self.flags.bits().into(),
            request_id: self.request_id.into(),
            lane: self.lane.into(),
            reserved: 0.into(),
            handle: self.handle.map_or(0, Handle::to_bits).into(),
            body_len: self.body_len.into(),
            deadline_ms: self.deadline_ms.into(),
            status: self.status.to_raw().into(),
            reserved2: 0.into(),
        };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(bytemuck::bytes_of(&raw));
        bytes
    }

    /// Copies the header out of `bytes` and validates every field.
    ///
    /// # Errors
    /// The first rule broken. The session cannot go on after it.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let raw: RawHeader = bytemuck::pod_read_unaligned(bytes);
        if raw.magic.get() != MAGIC {
            return Err(FrameError::Magic(raw.magic.get()));
        }
        let op = Op::from_code(raw.op.get()).ok_or(FrameError::Op(raw.op.get()))?;
        let flag_bits = raw.flags.get();
        let flags = Flags::from_bits(flag_bits).ok_or(FrameError::Flags(flag_bits))?;
        if !op.allows(flags) {
            return Err(FrameError::FlagsForOp {
                op,
                flags: flag_bits,
            });
        }
        let request_id = raw.request_id.get();
        let unasked_goodbye = op == Op::Goodbye && flags.contains(Flags::REPLY);
        if request_id == 0 && !unasked_goodbye {
            return Err(FrameError::RequestId);
        }
        for (field, value) in [
            ("reserved", u32::from(raw.reserved.get())),
            ("reserved2", raw.reserved2.get()),
        ] {
            if value != 0 {
                return Err(FrameError::Reserved { field, value });
            }
        }
        let handle = match raw.handle.get() {
            0 => None,
            value if !op.takes_handle() => return Err(FrameError::HandleForOp { op, value }),
            value => Some(
                Handle::from_bits(value).map_err(|reason| FrameError::Handle { value, reason })?,
            ),
        };
        let (len, max) = (raw.body_len.get(), op.max_body());
        if len > max {
            return Err(FrameError::BodyLen { op, len, max });
        }
        let (deadline_ms, status) = (raw.deadline_ms.get(), raw.status.get());
        if flags.contains(Flags::REPLY) {
            if deadline_ms != 0 {
                return Err(FrameError::DeadlineInReply(deadline_ms));
            }
            if op == Op::Data && status != 0 {
                return Err(FrameError::StatusInData(status));
            }
        } else if status != 0 {
            return Err(FrameError::StatusInRequest(status));
        }
        Ok(Self {
            op,
            flags,
            request_id,
            lane: raw.lane.get(),
            handle,
            body_len: len,
            deadline_ms,
            status: Status::from_raw(status),
        })
    }
}

/// Collects one header from a stream that delivers bytes in any portions.
#[derive(Debug, Clone)]
pub struct HeaderBuffer {
    bytes: [u8; HEADER_LEN],
    filled: usize,
}

impl Default for HeaderBuffer {
    fn default() -> Self {
        Self {
            bytes: [0; HEADER_LEN],
            filled: 0,
        }
    }
}

impl HeaderBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next bytes of the header belong.
    pub fn unfilled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Notes that `n` bytes were put into [`unfilled`](Self::unfilled) (more than it holds counts as
    /// all). Returns the header, and is empty again, once all 40 are there.
    ///
    /// # Errors
    /// As [`FrameHeader::decode`].
    pub fn advance(&mut self, n: usize) -> Result<Option<FrameHeader>, FrameError> {
        self.filled = self.filled.saturating_add(n).min(HEADER_LEN);
        if self.filled < HEADER_LEN {
            return Ok(None);
        }
        self.filled = 0;
        FrameHeader::decode(&self.bytes).map(Some)
    }

    /// Whether a header has begun and is not complete; an end of stream here cuts a frame.
    pub fn is_partial(&self) -> bool {
        self.filled != 0
    }
}
