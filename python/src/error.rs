//! Errors of the guest's library as Python's exceptions, whose classes are in `vgpu/_errors.py`.

use pyo3::prelude::*;
use vgpu_guest::protocol::status::{Status, cuda_name};
use vgpu_guest::{Error, ErrorKind, Retry};

/// The parts of an exception.
struct Failure {
    kind: &'static str,
    message: String,
    advice: String,
    code: Option<String>,
    cuda_result: Option<i32>,
    retry: Option<&'static str>,
    log: Option<String>,
    /// Id, operation, name of the status and `CUresult` of each request that is named.
    requests: Vec<FailedRequest>,
    /// How many failed beside these.
    more_requests: u32,
}

type FailedRequest = (u32, String, Option<String>, Option<i32>);

impl Failure {
    fn raise(self, py: Python<'_>) -> PyErr {
        let made = py.import("vgpu._errors").and_then(|errors| {
            let Self {
                kind,
                message,
                advice,
                code,
                cuda_result,
                retry,
                log,
                requests,
                more_requests,
            } = self;
            let text = (kind, message, advice, code, cuda_result, retry, log);
            errors.call_method1("from_native", (text, requests, more_requests))
        });
        match made {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    }
}

/// A wrong argument.
pub(crate) fn argument(py: Python<'_>, message: impl Into<String>) -> PyErr {
    let failure = Failure {
        kind: "argument",
        message: message.into(),
        advice: "correct the arguments".to_owned(),
        code: None,
        cuda_result: None,
        retry: None,
        log: None,
        requests: Vec::new(),
        more_requests: 0,
    };
    failure.raise(py)
}

/// The name of a status, and its `CUresult`.
fn names(status: Option<Status>) -> (Option<String>, Option<i32>) {
    match status {
        Some(Status::Cuda(result)) => (cuda_name(result).map(str::to_owned), Some(result)),
        Some(other) => (Some(other.to_string()), None),
        None => (None, None),
    }
}

/// An error of the guest's library.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let (code, cuda_result) = names(error.status());
    let requests = error.failures().iter().map(|failed| {
        let (code, cuda_result) = names(Some(failed.status));
        (failed.request_id, failed.op.to_string(), code, cuda_result)
    });
    let failure = Failure {
        kind: match error.kind() {
            ErrorKind::Argument => "argument",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Connection => "connection",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Refused => "refused",
            ErrorKind::Cuda => "cuda",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Protocol => "protocol",
            _ => "other",
        },
        message: error.to_string(),
        advice: error.advice(),
        code,
        cuda_result,
        retry: match error.retry() {
            Retry::No => None,
            Retry::SameSession => Some("same session"),
            Retry::NewSession => Some("new session"),
        },
        log: error.compile_log().map(str::to_owned),
        requests: requests.collect(),
        more_requests: error.failures_unnamed(),
    };
    failure.raise(py)
}

/// Runs a call of the guest's library while other threads of Python go on.
pub(crate) fn detached<R: Send>(
    py: Python<'_>,
    run: impl FnOnce() -> vgpu_guest::Result<R> + Send,
) -> PyResult<R> {
    py.detach(run).map_err(|error| raise(py, &error))
}
