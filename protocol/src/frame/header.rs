//! The header and its validation.

use std::time::Duration;

use super::{Flags, FrameError, HEADER_LEN, MAGIC};
use crate::op::{Features, Op, Overtakes};
use crate::status::Status;

/// The lower of `own` and the milliseconds that a guest asks for; 0 asks for no limit.
pub fn within(own: Duration, asked_ms: u32) -> Duration {
    match asked_ms {
        0 => own,
        ms => own.min(Duration::from_millis(ms.into())),
    }
}

/// A validated header, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The operation that is requested, answered or carried.
    pub op: Op,
    /// Request or reply, quiet or not, more to come or not.
    pub flags: Flags,
    /// Chosen by the guest, never 0, and not reused before its request is over; a reply carries the
    /// id of its request. 0 only in [`FrameHeader::closing`] and [`FrameHeader::working`].
    pub request_id: u32,
    /// The guest's thread, as a number from 0: requests of all lanes start in the order of arrival, but for those that
    /// [overtake](Self::overtakes) others, and none waits for another lane to finish.
    pub lane: u16,
    /// Bytes that follow this header.
    pub body_len: u32,
    /// Requests: give up after this many milliseconds without progress; 0 = the mediator's own
    /// limit.
    pub deadline_ms: u32,
    /// Replies: the result; [`Status::OK`] in requests and data.
    pub status: Status,
    /// Data from the mediator: further bytes of the request's own data that the guest may send.
    pub credit: u32,
}

impl FrameHeader {
    /// A request on lane 0 without body or deadline. `request_id` must not be 0.
    pub const fn request(op: Op, request_id: u32) -> Self {
        Self {
            op,
            flags: Flags::NONE,
            request_id,
            lane: 0,
            body_len: 0,
            deadline_ms: 0,
            status: Status::OK,
            credit: 0,
        }
    }

    /// The reply to `request`, without body.
    #[must_use]
    pub const fn reply_to(request: &Self, status: Status) -> Self {
        let mut header = Self::request(request.op, request.request_id).with_flags(Flags::REPLY);
        header.lane = request.lane;
        header.status = status;
        header
    }

    /// The mediator ends the session on its own initiative: the guest broke the protocol or has to
    /// leave, or the mediator stops. `status` gives the reason; a text follows as in any error
    /// reply.
    #[must_use]
    pub const fn closing(status: Status) -> Self {
        let mut header = Self::request(Op::Closing, 0).with_flags(Flags::REPLY);
        header.status = status;
        header
    }

    /// The mediator is at work, and starts no other request meanwhile: whatever the guest has sent is not forgotten.
    #[must_use]
    pub const fn working() -> Self {
        Self::data_down(&Self::request(Op::Data, 0), 0, 0)
    }

    /// A frame of data from the mediator for `request`. Its reply is still to follow.
    #[must_use]
    pub const fn data_down(request: &Self, body_len: u32, credit: u32) -> Self {
        let mut header = Self::data_up(request, body_len, true).with_flags(Flags::REPLY);
        header.credit = credit;
        header
    }

    /// A frame of data from the guest for `request`; `more` says whether another frame of it follows.
    ///
    /// A frame with `more == false` ends the data, complete or not.
    #[must_use]
    pub const fn data_up(request: &Self, body_len: u32, more: bool) -> Self {
        let mut header = Self::request(Op::Data, request.request_id).with_body_len(body_len);
        header.lane = request.lane;
        if more {
            header.flags = Flags::MORE;
        }
        header
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

    /// The same with a limit, in milliseconds, on the time without progress.
    #[must_use]
    pub const fn with_deadline_ms(mut self, ms: u32) -> Self {
        self.deadline_ms = ms;
        self
    }

    /// Whether this frame comes from the mediator.
    pub const fn is_reply(&self) -> bool {
        self.flags.contains(Flags::REPLY)
    }

    /// Whether the request is answered only at a fence.
    pub const fn is_quiet(&self) -> bool {
        self.flags.contains(Flags::QUIET)
    }

    /// Which requests before this one it overtakes, where they cannot start.
    pub const fn overtakes(&self) -> Overtakes {
        self.op.overtakes(self.is_quiet())
    }

    /// Whether more data of this request follows in this direction.
    pub const fn has_more(&self) -> bool {
        self.flags.contains(Flags::MORE)
    }

    /// The longest time without progress for this request; at most `own`.
    pub fn patience(&self, own: Duration) -> Duration {
        within(own, self.deadline_ms)
    }

    /// The features that this request needs.
    pub const fn needs(&self) -> Features {
        let of_op = match self.op.spec() {
            Some(spec) => spec.feature,
            None => Features::NONE,
        };
        match self.is_quiet() {
            true => of_op.with(Features::QUIET),
            false => of_op,
        }
    }

    /// Appends the header to `out`.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode());
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.op.code().to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.bits().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.request_id.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.lane.to_le_bytes());
        // 14 and 15 are reserved.
        bytes[16..20].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.deadline_ms.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.status.to_raw().to_le_bytes());
        bytes[28..32].copy_from_slice(&self.credit.to_le_bytes());
        bytes
    }

    /// Copies the header out of `bytes` and validates every field.
    ///
    /// # Errors
    /// The first rule broken. The session cannot go on after it.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let half_word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let magic = word(0);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let code = half_word(4);
        let op = Op::from_code(code).ok_or(FrameError::Op(code))?;
        let bits = half_word(6);
        let flags = Flags::from_bits(bits).ok_or(FrameError::Flags(bits))?;
        let reply = flags.contains(Flags::REPLY);
        if !allows(op, flags) {
            return Err(FrameError::FlagsForOp { op, flags: bits });
        }
        let request_id = word(8);
        let is_data = matches!(op, Op::Data);
        // No data of any request: only that work goes on.
        let working = request_id == 0 && is_data && reply;
        if (request_id == 0) != (matches!(op, Op::Closing) || working) {
            return Err(FrameError::RequestId(request_id));
        }
        let (lane, reserved) = (half_word(12), half_word(14));
        let (len, deadline_ms) = (word(16), word(20));
        let (status, credit) = (word(24).cast_signed(), word(28));
        let max = op.max_body(reply);
        if len as usize > max {
            return Err(FrameError::BodyLen { op, len, max });
        }
        let not_zero = |field, value| Err(FrameError::NotZero { field, value });
        if reserved != 0 {
            return not_zero("reserved", reserved.into());
        }
        if working && lane != 0 {
            return not_zero("lane", lane.into());
        }
        if working && len != 0 {
            return not_zero("body_len", len);
        }
        if deadline_ms != 0 && (reply || is_data) {
            return not_zero("deadline_ms", deadline_ms);
        }
        if status != 0 && (!reply || is_data) {
            return not_zero("status", status.cast_unsigned());
        }
        if credit != 0 && (!reply || !is_data || working) {
            return not_zero("credit", credit);
        }
        Ok(Self {
            op,
            flags,
            request_id,
            lane,
            body_len: len,
            deadline_ms,
            status: Status::from_raw(status),
            credit,
        })
    }
}

/// Whether a frame of `op` may have these flags.
const fn allows(op: Op, flags: Flags) -> bool {
    let (reply, quiet, more) = (
        flags.contains(Flags::REPLY),
        flags.contains(Flags::QUIET),
        flags.contains(Flags::MORE),
    );
    // Flags of replies only.
    let news = flags.contains(Flags::FAILURES) || flags.contains(Flags::PRINTED);
    match op {
        // Data from the mediator is always followed by the reply.
        Op::Data => !quiet && !news && (!reply || more),
        Op::Closing => reply && !quiet && !more && !news,
        _ => {
            let may_be_quiet = match op.spec() {
                Some(spec) => spec.quiet,
                None => false,
            };
            !more && (!news || reply) && (!quiet || (may_be_quiet && !reply))
        }
    }
}
