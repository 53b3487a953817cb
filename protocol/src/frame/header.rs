//! The header and its validation.

use bytemuck::{Pod, Zeroable};

use super::{Flags, FrameError, HEADER_LEN, MAGIC};
use crate::handle::Handle;
use crate::le::{I32, U16, U32, U64};
use crate::message::Op;
use crate::status::Status;

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
