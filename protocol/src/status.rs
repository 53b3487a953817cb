//! How a request went: success, a mediator's error code, or a CUDA result.

use std::fmt;

/// Longest error message that travels, in bytes.
pub const MAX_ERROR_TEXT: usize = 1024;

/// Errors of the mediator, as opposed to results of the CUDA driver. Negative on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorCode {
    /// The guest broke the protocol; the mediator ends the session after this reply.
    Protocol = -1,
    /// A handle that names nothing, or something of another kind or generation.
    Handle = -2,
    /// The guest's share of memory is used up.
    QuotaMemory = -3,
    /// The guest has as many objects or requests open as it may.
    QuotaHandles = -4,
    /// Nothing moved for as long as the request or the mediator allows.
    Timeout = -5,
    /// The guest ended the request before it was complete.
    Cancelled = -6,
    /// The executor died or was taken away; the session's state there is gone.
    BackendLost = -7,
    /// The mediator or its executor cannot do this.
    Unsupported = -8,
    /// No capacity right now.
    Busy = -9,
    /// A number is outside what the mediator allows.
    Range = -10,
    /// Policy forbids it.
    Denied = -11,
    /// No protocol version in common.
    Version = -12,
    /// The mediator failed in a way that has no code of its own; the message says how.
    Internal = -13,
}

impl ErrorCode {
    const ALL: [ErrorCode; 13] = [
        Self::Protocol,
        Self::Handle,
        Self::QuotaMemory,
        Self::QuotaHandles,
        Self::Timeout,
        Self::Cancelled,
        Self::BackendLost,
        Self::Unsupported,
        Self::Busy,
        Self::Range,
        Self::Denied,
        Self::Version,
        Self::Internal,
    ];

    /// The name used in documents and messages, as in `E_PROTO`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "E_PROTO",
            Self::Handle => "E_HANDLE",
            Self::QuotaMemory => "E_QUOTA_MEM",
            Self::QuotaHandles => "E_QUOTA_HANDLES",
            Self::Timeout => "E_TIMEOUT",
            Self::Cancelled => "E_CANCELLED",
            Self::BackendLost => "E_BACKEND_LOST",
            Self::Unsupported => "E_UNSUPPORTED",
            Self::Busy => "E_BUSY",
            Self::Range => "E_RANGE",
            Self::Denied => "E_DENIED",
            Self::Version => "E_VERSION",
            Self::Internal => "E_INTERNAL",
        }
    }

    /// The number on the wire.
    pub const fn to_raw(self) -> i32 {
        self as i32
    }

    /// Whether the same request may succeed later without anything being changed: on this session,
    /// or, if [`ends_session`](Self::ends_session), on a new one.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::QuotaMemory | Self::QuotaHandles | Self::Timeout | Self::BackendLost | Self::Busy
        )
    }

    /// Whether the session is over after this error.
    pub const fn ends_session(self) -> bool {
        matches!(
            self,
            Self::Protocol | Self::BackendLost | Self::Denied | Self::Version
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The status field of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done (0).
    Ok,
    /// The mediator's own error (negative).
    Mediator(ErrorCode),
    /// A `CUresult` of the driver (positive), unchanged.
    Cuda(i32),
    /// A negative number this version has no name for; an error all the same.
    Unknown(i32),
}

impl Status {
    /// Done.
    pub const OK: Status = Status::Ok;

    /// Sorts the number found on the wire. Never fails: newer peers may know more codes.
    pub fn from_raw(raw: i32) -> Self {
        match raw {
            0 => Self::Ok,
            1.. => Self::Cuda(raw),
            _ => ErrorCode::ALL
                .into_iter()
                .find(|code| code.to_raw() == raw)
                .map_or(Self::Unknown(raw), Self::Mediator),
        }
    }

    /// The number on the wire.
    pub const fn to_raw(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::Mediator(code) => code.to_raw(),
            Self::Cuda(raw) | Self::Unknown(raw) => raw,
        }
    }

    /// Whether the request succeeded.
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }
}

impl From<ErrorCode> for Status {
    fn from(code: ErrorCode) -> Self {
        Self::Mediator(code)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Mediator(code) => f.write_str(code.name()),
            Self::Cuda(result) => write!(f, "CUDA error {result}"),
            Self::Unknown(raw) => write!(f, "error {raw}"),
        }
    }
}

/// The body of an error reply: `text`, cut at a character so that it fits [`MAX_ERROR_TEXT`].
pub fn encode_error_text(text: &str) -> &[u8] {
    crate::op::field::bounded(text, MAX_ERROR_TEXT).as_bytes()
}

/// The text of an error reply, fit for a terminal: control characters and bytes that are not UTF-8
/// are replaced, and what exceeds [`MAX_ERROR_TEXT`] is dropped.
pub fn decode_error_text(body: &[u8]) -> String {
    let bounded = &body[..body.len().min(MAX_ERROR_TEXT)];
    printable(&String::from_utf8_lossy(bounded))
}

/// A text of the other side's without what could steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
