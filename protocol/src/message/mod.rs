//! The operations and what their frames carry.
//!
//! | op | request body | final reply body |
//! |---|---|---|
//! | Hello | [`Hello`] | [`HelloReply`] |
//! | Info | – | [`InfoReply`] |
//! | Ping | up to 4096 bytes | the same bytes |
//! | VectorAdd | [`VectorAdd`], then Data frames | [`VectorAddReply`], after Data replies |
//! | Fence | – | [`FenceReply`] |
//! | Goodbye | – | – |
//!
//! A reply whose status is not 0 carries a text instead
//! ([`decode_error_text`](crate::status::decode_error_text)).

mod fence;
mod hello;
mod info;
mod vector_add;

use std::fmt;

use bytemuck::Pod;

pub use fence::{FenceReply, MAX_QUIET_FAILURES, QuietFailure, QuietFailures};
pub use hello::{Features, Hello, HelloReply, Limits, MAX_CLIENT_NAME, negotiate_version};
pub use info::{InfoReply, MAX_INFO_TEXT};
pub use vector_add::{Chunks, DataType, VectorAdd, VectorAddReply};

use crate::frame::{Flags, MAX_BODY, MAX_CONTROL_BODY};

/// What a frame asks for or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    /// Opens the session: version, features, limits. The first frame, and only the first.
    Hello = 1,
    /// What executes the work.
    Info = 2,
    /// Sends the same bytes back.
    Ping = 3,
    /// Adds two vectors that follow in Data frames.
    VectorAdd = 4,
    /// A part of a request's input or result.
    Data = 5,
    /// Waits for everything before it and reports the quiet requests that failed.
    Fence = 6,
    /// Ends the session in good order.
    Goodbye = 7,
}

impl Op {
    /// All operations of this version.
    pub const ALL: [Op; 7] = [
        Self::Hello,
        Self::Info,
        Self::Ping,
        Self::VectorAdd,
        Self::Data,
        Self::Fence,
        Self::Goodbye,
    ];

    /// The operation with this number.
    pub const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Hello),
            2 => Some(Self::Info),
            3 => Some(Self::Ping),
            4 => Some(Self::VectorAdd),
            5 => Some(Self::Data),
            6 => Some(Self::Fence),
            7 => Some(Self::Goodbye),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// Longest body of its frames, in bytes.
    pub const fn max_body(self) -> u32 {
        match self {
            Self::Data => MAX_BODY,
            _ => MAX_CONTROL_BODY,
        }
    }

    /// Whether its frames may name an object.
    pub const fn takes_handle(self) -> bool {
        matches!(self, Self::VectorAdd | Self::Data)
    }

    /// Whether a frame of this operation may have these flags.
    pub const fn allows(self, flags: Flags) -> bool {
        let (reply, quiet, more) = (
            flags.contains(Flags::REPLY),
            flags.contains(Flags::QUIET),
            flags.contains(Flags::MORE),
        );
        match self {
            // Result data is always followed by the final reply.
            Self::Data => !quiet && (!reply || more),
            // The input always follows in Data frames.
            Self::VectorAdd => !quiet && (reply != more),
            Self::Ping => !more && (!reply || !quiet),
            Self::Hello | Self::Info | Self::Fence | Self::Goodbye => !more && !quiet,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a body was refused. The frame around it was sound, so the session can go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Too short, or too long, for what it must hold.
    #[error("{message} body has {len} bytes, {wanted} needed")]
    Length {
        /// Which message.
        message: &'static str,
        /// Bytes there.
        len: usize,
        /// Bytes that the rest of the message calls for.
        wanted: usize,
    },
    /// A field has a value it may not have.
    #[error("{message}: {field} is {value}, {rule}")]
    Field {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
        /// The value found.
        value: u64,
        /// What is allowed.
        rule: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{message}: {field} is not UTF-8")]
    NotText {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// Splits a body into its fixed front, copied, and the rest.
fn split_front<'a, T: Pod>(
    message: &'static str,
    body: &'a [u8],
) -> Result<(T, &'a [u8]), MessageError> {
    let wanted = size_of::<T>();
    let (front, rest) = body.split_at_checked(wanted).ok_or(MessageError::Length {
        message,
        len: body.len(),
        wanted,
    })?;
    Ok((bytemuck::pod_read_unaligned(front), rest))
}

/// A body that is a fixed structure and nothing else.
fn exact<T: Pod>(message: &'static str, body: &[u8]) -> Result<T, MessageError> {
    match split_front(message, body)? {
        (value, []) => Ok(value),
        _ => Err(MessageError::Length {
            message,
            len: body.len(),
            wanted: size_of::<T>(),
        }),
    }
}

/// Takes `len` bytes of text off the front of `rest`.
fn take_text<'a>(
    message: &'static str,
    field: &'static str,
    rest: &mut &'a [u8],
    len: usize,
) -> Result<&'a str, MessageError> {
    let (text, after) = rest.split_at_checked(len).ok_or(MessageError::Length {
        message,
        len: rest.len(),
        wanted: len,
    })?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| MessageError::NotText { message, field })
}

/// Cuts `text` at a character so that it has at most `max` bytes.
pub(crate) fn bounded(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
