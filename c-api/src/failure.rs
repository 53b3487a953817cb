//! The results of calls, and what a thread can ask about its last failure.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use vgpu_guest::protocol::op::QuietFailure;
use vgpu_guest::protocol::status::Status;
use vgpu_guest::{ErrorKind, Retry};

use crate::pointers::elements_mut;

/// Returned by a call that succeeds.
pub const VGPU_OK: c_int = 0;

/// Returned by a call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum VgpuError {
    /// An argument is wrong: NULL where there must be something, a size that does not fit, a text that is not UTF-8.
    InvalidArgument = 1,
    /// A handle is NULL, was freed, is of another kind, or its session was closed.
    InvalidHandle = 2,
    /// No mediator can be reached.
    Unreachable = 3,
    /// The connection broke, or the session is over since an earlier error.
    Connection = 4,
    /// Nothing moved for as long as the options allow.
    Timeout = 5,
    /// The mediator refused: `vgpu_last_error_mediator` has its code.
    Refused = 6,
    /// The driver reported an error: `vgpu_last_error_cuda` has its `CUresult`.
    Cuda = 7,
    /// This session does not offer what was asked for.
    Unsupported = 8,
    /// The mediator broke the protocol.
    Protocol = 9,
    /// A fault in this library.
    Internal = 10,
}

impl From<ErrorKind> for VgpuError {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Argument => Self::InvalidArgument,
            ErrorKind::Unreachable => Self::Unreachable,
            ErrorKind::Connection => Self::Connection,
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Cuda => Self::Cuda,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Protocol => Self::Protocol,
            // Nothing interrupts a session of this library.
            _ => Self::Internal,
        }
    }
}

/// Whether the same call can succeed without anything being changed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum VgpuRetry {
    /// No.
    No = 0,
    /// Yes, in the same session.
    SameSession = 1,
    /// Perhaps, in a new session: this one is over.
    NewSession = 2,
}

impl From<Retry> for VgpuRetry {
    fn from(retry: Retry) -> Self {
        match retry {
            Retry::No => Self::No,
            Retry::SameSession => Self::SameSession,
            Retry::NewSession => Self::NewSession,
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: VgpuError,
    cuda: i32,
    mediator: i32,
    retry: VgpuRetry,
    message: CString,
    advice: CString,
    log: CString,
    requests: Vec<FailedRequest>,
    more_requests: u32,
}

/// A request that failed when nobody waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FailedRequest {
    /// Its id: one of those that `vgpu_last_requests` has given after the call that sent it.
    pub id: u32,
    /// The number of the operation (docs/protocol.md): 29 is a launch.
    pub operation: u32,
    /// The `CUresult`; 0 where it was not the driver's failure.
    pub cuda: i32,
    /// The mediator's code, which is negative; 0 where it was not the mediator's.
    pub mediator: i32,
}

impl FailedRequest {
    fn new(failed: &QuietFailure) -> Self {
        let (cuda, mediator) = codes(Some(failed.status));
        Self {
            id: failed.request_id,
            operation: failed.op.code().into(),
            cuda,
            mediator,
        }
    }
}

/// The `CUresult` and the mediator's code of a status, of which one is 0.
fn codes(status: Option<Status>) -> (i32, i32) {
    match status {
        Some(Status::Cuda(result)) => (result, 0),
        Some(other) => (0, other.to_raw()),
        None => (0, 0),
    }
}

impl Failure {
    /// A failure of the caller's.
    pub(crate) fn new(code: VgpuError, message: String) -> Self {
        Self {
            code,
            cuda: 0,
            mediator: 0,
            retry: VgpuRetry::No,
            message: c_text(message),
            advice: c_text("correct the arguments".to_owned()),
            log: CString::default(),
            requests: Vec::new(),
            more_requests: 0,
        }
    }

    /// A wrong argument.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(VgpuError::InvalidArgument, message.into())
    }

    fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self {
            advice: c_text("report this as a fault of vgpu".to_owned()),
            ..Self::new(
                VgpuError::Internal,
                format!("a fault in libvgpu: {}", text.unwrap_or("a panic")),
            )
        }
    }
}

impl From<vgpu_guest::Error> for Failure {
    fn from(error: vgpu_guest::Error) -> Self {
        let (cuda, mediator) = codes(error.status());
        Self {
            code: error.kind().into(),
            cuda,
            mediator,
            retry: error.retry().into(),
            message: c_text(error.to_string()),
            advice: c_text(error.advice()),
            log: c_text(error.compile_log().unwrap_or_default().to_owned()),
            requests: error.failures().iter().map(FailedRequest::new).collect(),
            more_requests: error.failures_unnamed(),
        }
    }
}

fn c_text(text: String) -> CString {
    let mut bytes = text.into_bytes();
    bytes
        .iter_mut()
        .filter(|byte| **byte == 0)
        .for_each(|byte| *byte = b' ');
    CString::new(bytes).unwrap_or_default()
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Runs a call: no panic leaves it, and its failure is this thread's last.
pub(crate) fn call(run: impl FnOnce() -> Result<(), Failure>) -> c_int {
    // What a panic leaves behind is locked, and the locks' owners say themselves what that means.
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return VGPU_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::panicked(&*panic),
    };
    let code = failure.code;
    // A thread that is ending has no place for it any more.
    let _ = LAST.try_with(|last| last.replace(Some(failure)));
    code as c_int
}

/// Something of this thread's last failure.
fn of_last<R>(otherwise: R, get: impl FnOnce(&Failure) -> R) -> R {
    let mut get = Some(get);
    let found = LAST.try_with(|last| {
        last.borrow()
            .as_ref()
            .and_then(|last| Some(get.take()?(last)))
    });
    found.ok().flatten().unwrap_or(otherwise)
}

/// The code of this thread's last failure; `VGPU_OK` where none of its calls has failed.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_code() -> c_int {
    of_last(VGPU_OK, |last| last.code as c_int)
}

/// The `CUresult` of this thread's last failure; 0 where it was not the driver's.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_cuda() -> c_int {
    of_last(0, |last| last.cuda)
}

/// The mediator's code of this thread's last failure, which is negative (docs/protocol.md); 0 where it was not the
/// mediator's.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_mediator() -> c_int {
    of_last(0, |last| last.mediator)
}

/// Whether what failed last in this thread may be tried again.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_retry() -> VgpuRetry {
    of_last(VgpuRetry::No, |last| last.retry)
}

/// The last failure of this thread, in one line; "" where nothing has. Valid until the next call of this library that
/// fails in this thread, or the thread's end.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_message() -> *const c_char {
    of_last(c"".as_ptr(), |last| last.message.as_ptr())
}

/// Advice on it, in one line; "" where nothing has failed. Valid as the message is.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_advice() -> *const c_char {
    of_last(c"".as_ptr(), |last| last.advice.as_ptr())
}

/// The compiler's messages, lines of text, where what failed last in this thread was `vgpu_module_compile`, because of its
/// source; "" otherwise. Valid as the message is.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_log() -> *const c_char {
    of_last(c"".as_ptr(), |last| last.log.as_ptr())
}

/// How many requests failed without anybody waiting for them, as far as this thread's last failure names them: the first 64.
/// Copies those for which `requests` has room, the first ones first; with a `room` of 0 it may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_last_error_requests(
    requests: *mut FailedRequest,
    room: usize,
) -> usize {
    // SAFETY: the header's rules for pointers.
    let place = unsafe { elements_mut(requests, room, "place for requests") };
    of_last(0, |last| {
        for (place, request) in place.unwrap_or_default().iter_mut().zip(&last.requests) {
            *place = *request;
        }
        last.requests.len()
    })
}

/// How many requests failed beside those that `vgpu_last_error_requests` names.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_last_error_more_requests() -> u32 {
    of_last(0, |last| last.more_requests)
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn a_panic_is_a_code_and_a_text() {
        let code = call(|| panic!("a test's\0 panic"));
        assert_eq!(code, VgpuError::Internal as c_int);
        assert_eq!(vgpu_last_error_code(), code);
        // SAFETY: no call has failed since.
        let message = unsafe { CStr::from_ptr(vgpu_last_error_message()) };
        assert_eq!(message, c"a fault in libvgpu: a test's  panic");
    }

    #[test]
    fn a_success_leaves_the_last_failure_and_another_thread_has_its_own() {
        assert_eq!(call(|| Err(Failure::argument("wrong"))), 1);
        assert_eq!(call(|| Ok(())), 0);
        assert_eq!(vgpu_last_error_code(), 1);
        let there = std::thread::spawn(|| vgpu_last_error_code())
            .join()
            .unwrap();
        assert_eq!(there, 0);
    }
}
