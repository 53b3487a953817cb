//! The result of a request: success, a mediator's error code, or a CUDA result.

use std::fmt;

/// Longest text of an error reply, in bytes.
pub const MAX_ERROR_TEXT: usize = 1024;

/// Errors of the mediator, as opposed to results of the CUDA driver. Negative on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorCode {
    /// The guest broke the protocol; the mediator ends the session after this reply.
    Protocol = -1,
    /// A handle that names nothing, or an object of another kind or generation.
    Handle = -2,
    /// The guest's share of memory is used up.
    QuotaMemory = -3,
    /// The guest has opened as many objects or requests as it may.
    QuotaHandles = -4,
    /// No progress for as long as the request or the mediator allows.
    Timeout = -5,
    /// The guest ended the request before it was complete.
    Cancelled = -6,
    /// The executor died or was taken away; the session's state there is gone.
    BackendLost = -7,
    /// The mediator or its executor cannot do this.
    Unsupported = -8,
    /// No capacity right now.
    Busy = -9,
    /// A number is outside the mediator's limits.
    Range = -10,
    /// Policy forbids it.
    Denied = -11,
    /// No protocol version in common.
    Version = -12,
    /// The mediator failed in a way that has no code of its own; the message has the details.
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
    /// A negative number that this version has no name for; an error all the same.
    Unknown(i32),
}

impl Status {
    /// Done.
    pub const OK: Status = Status::Ok;

    /// Classifies the number found on the wire. Never fails: newer peers may know more codes.
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
            Self::Cuda(result) => match cuda_name(*result) {
                Some(name) => write!(f, "{name} ({result})"),
                None => write!(f, "CUDA error {result}"),
            },
            Self::Unknown(raw) => write!(f, "error {raw}"),
        }
    }
}

/// NVIDIA's name of a `CUresult`; `None` for codes newer than CUDA 13.
pub const fn cuda_name(result: i32) -> Option<&'static str> {
    Some(match result {
        1 => "CUDA_ERROR_INVALID_VALUE",
        2 => "CUDA_ERROR_OUT_OF_MEMORY",
        3 => "CUDA_ERROR_NOT_INITIALIZED",
        4 => "CUDA_ERROR_DEINITIALIZED",
        5 => "CUDA_ERROR_PROFILER_DISABLED",
        6 => "CUDA_ERROR_PROFILER_NOT_INITIALIZED",
        7 => "CUDA_ERROR_PROFILER_ALREADY_STARTED",
        8 => "CUDA_ERROR_PROFILER_ALREADY_STOPPED",
        34 => "CUDA_ERROR_STUB_LIBRARY",
        36 => "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        46 => "CUDA_ERROR_DEVICE_UNAVAILABLE",
        47 => "CUDA_ERROR_MULTICAST_RESOURCE_FULL",
        100 => "CUDA_ERROR_NO_DEVICE",
        101 => "CUDA_ERROR_INVALID_DEVICE",
        102 => "CUDA_ERROR_DEVICE_NOT_LICENSED",
        200 => "CUDA_ERROR_INVALID_IMAGE",
        201 => "CUDA_ERROR_INVALID_CONTEXT",
        202 => "CUDA_ERROR_CONTEXT_ALREADY_CURRENT",
        205 => "CUDA_ERROR_MAP_FAILED",
        206 => "CUDA_ERROR_UNMAP_FAILED",
        207 => "CUDA_ERROR_ARRAY_IS_MAPPED",
        208 => "CUDA_ERROR_ALREADY_MAPPED",
        209 => "CUDA_ERROR_NO_BINARY_FOR_GPU",
        210 => "CUDA_ERROR_ALREADY_ACQUIRED",
        211 => "CUDA_ERROR_NOT_MAPPED",
        212 => "CUDA_ERROR_NOT_MAPPED_AS_ARRAY",
        213 => "CUDA_ERROR_NOT_MAPPED_AS_POINTER",
        214 => "CUDA_ERROR_ECC_UNCORRECTABLE",
        215 => "CUDA_ERROR_UNSUPPORTED_LIMIT",
        216 => "CUDA_ERROR_CONTEXT_ALREADY_IN_USE",
        217 => "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        218 => "CUDA_ERROR_INVALID_PTX",
        219 => "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT",
        220 => "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        221 => "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        222 => "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        223 => "CUDA_ERROR_JIT_COMPILATION_DISABLED",
        224 => "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY",
        225 => "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC",
        226 => "CUDA_ERROR_CONTAINED",
        227 => "CUDA_ERROR_INSUFFICIENT_LOADER_VERSION",
        300 => "CUDA_ERROR_INVALID_SOURCE",
        301 => "CUDA_ERROR_FILE_NOT_FOUND",
        302 => "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND",
        303 => "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED",
        304 => "CUDA_ERROR_OPERATING_SYSTEM",
        400 => "CUDA_ERROR_INVALID_HANDLE",
        401 => "CUDA_ERROR_ILLEGAL_STATE",
        402 => "CUDA_ERROR_LOSSY_QUERY",
        500 => "CUDA_ERROR_NOT_FOUND",
        600 => "CUDA_ERROR_NOT_READY",
        700 => "CUDA_ERROR_ILLEGAL_ADDRESS",
        701 => "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        702 => "CUDA_ERROR_LAUNCH_TIMEOUT",
        703 => "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING",
        704 => "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
        705 => "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED",
        708 => "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE",
        709 => "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        710 => "CUDA_ERROR_ASSERT",
        711 => "CUDA_ERROR_TOO_MANY_PEERS",
        712 => "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        713 => "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        714 => "CUDA_ERROR_HARDWARE_STACK_ERROR",
        715 => "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        716 => "CUDA_ERROR_MISALIGNED_ADDRESS",
        717 => "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        718 => "CUDA_ERROR_INVALID_PC",
        719 => "CUDA_ERROR_LAUNCH_FAILED",
        720 => "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        721 => "CUDA_ERROR_TENSOR_MEMORY_LEAK",
        800 => "CUDA_ERROR_NOT_PERMITTED",
        801 => "CUDA_ERROR_NOT_SUPPORTED",
        802 => "CUDA_ERROR_SYSTEM_NOT_READY",
        803 => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        804 => "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        805 => "CUDA_ERROR_MPS_CONNECTION_FAILED",
        806 => "CUDA_ERROR_MPS_RPC_FAILURE",
        807 => "CUDA_ERROR_MPS_SERVER_NOT_READY",
        808 => "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED",
        809 => "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED",
        810 => "CUDA_ERROR_MPS_CLIENT_TERMINATED",
        811 => "CUDA_ERROR_CDP_NOT_SUPPORTED",
        812 => "CUDA_ERROR_CDP_VERSION_MISMATCH",
        900 => "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        902 => "CUDA_ERROR_STREAM_CAPTURE_MERGE",
        903 => "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
        904 => "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        905 => "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
        906 => "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        907 => "CUDA_ERROR_CAPTURED_EVENT",
        908 => "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        909 => "CUDA_ERROR_TIMEOUT",
        910 => "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
        911 => "CUDA_ERROR_EXTERNAL_DEVICE",
        912 => "CUDA_ERROR_INVALID_CLUSTER_SIZE",
        913 => "CUDA_ERROR_FUNCTION_NOT_LOADED",
        914 => "CUDA_ERROR_INVALID_RESOURCE_TYPE",
        915 => "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION",
        916 => "CUDA_ERROR_KEY_ROTATION",
        917 => "CUDA_ERROR_STREAM_DETACHED",
        918 => "CUDA_ERROR_GRAPH_RECAPTURE_FAILURE",
        919 => "CUDA_ERROR_FABRIC_NOT_READY",
        999 => "CUDA_ERROR_UNKNOWN",
        _ => return None,
    })
}

/// The body of an error reply: `text`, cut at a character so that it fits [`MAX_ERROR_TEXT`].
pub fn encode_error_text(text: &str) -> &[u8] {
    crate::op::field::bounded(text, MAX_ERROR_TEXT).as_bytes()
}

/// The text of an error reply, safe for a terminal: control characters and bytes that are not UTF-8
/// are replaced, and any excess over [`MAX_ERROR_TEXT`] is dropped.
pub fn decode_error_text(body: &[u8]) -> String {
    let bounded = &body[..body.len().min(MAX_ERROR_TEXT)];
    printable(&String::from_utf8_lossy(bounded))
}

/// A text of the other side without characters that could control a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
