//! Errors: the operation that failed, the side that is at fault, and the remedy.

use std::fmt;
use std::time::Duration;

use vgpu_protocol::op::{FenceReply, Op, QuietFailure};
use vgpu_protocol::session::client::{NotSent, Violation};
use vgpu_protocol::status::{ErrorCode, Status};
use vgpu_transport::Endpoint;
use vgpu_transport::TransportError;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. `Display` is one line of what; [`advice`](Error::advice) one of what to do.
#[derive(Debug)]
pub struct Error {
    pub(crate) doing: &'static str,
    pub(crate) epoch: Option<u64>,
    pub(crate) cause: Box<Cause>,
    /// The failure that came before, where that was asked for.
    pub(crate) failures: Option<Box<FenceReply>>,
}

/// The side at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// In this program: its arguments, or it was told to stop.
    Guest,
    /// Between the two: no mediator there, or the connection broke.
    Connection,
    /// The mediator refused, or broke the protocol.
    Mediator,
    /// The device or its driver.
    Device,
}

/// Kinds of failures, for programs that tell only these apart: C's codes and Python's exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The arguments of the call are wrong.
    Argument,
    /// No mediator can be reached.
    Unreachable,
    /// The connection broke, or the session was over before.
    Connection,
    /// Nothing moved for as long as the options allow.
    Timeout,
    /// The mediator refused; [`Error::status`] has its code.
    Refused,
    /// The driver reported an error; [`Error::status`] has the `CUresult`.
    Cuda,
    /// The session does not offer this.
    Unsupported,
    /// The mediator broke the protocol.
    Protocol,
    /// The program was told to stop.
    Interrupted,
}

/// Whether the same call can succeed without anything being changed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No.
    No,
    /// Yes, on the same client.
    SameSession,
    /// Perhaps, on a new client: this session is over.
    NewSession,
}

/// An endpoint that was tried and not used, and why.
#[derive(Debug)]
pub struct Skipped {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Why no session could be opened there.
    pub error: Error,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.endpoint, self.error.cause)
    }
}

/// The reason itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The arguments of the call.
    #[error("{0}")]
    Input(String),
    /// None of the endpoints leads to a mediator.
    #[error("no session over {}", list(.0))]
    NoEndpoint(Vec<Skipped>),
    /// Nobody can be reached at an endpoint.
    #[error("{what}")]
    Unreachable {
        /// One line: what is wrong.
        what: String,
        /// One line: what to do.
        advice: String,
    },
    /// The connection broke.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// Nothing moved for as long as the options allow.
    #[error("the mediator made no progress for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// Nothing moved for this request, while other lanes of the session went on.
    #[error("the mediator made no progress with this request for {} s", .0.as_secs_f32())]
    GivenUp(Duration),
    /// The request cannot be sent in this session.
    #[error("{0}")]
    NotSent(#[from] NotSent),
    /// The mediator ended the session of its own accord.
    #[error("the mediator ended the session: {status}: {text}")]
    Ended {
        /// Why, for programs.
        status: Status,
        /// Why, in its words.
        text: String,
    },
    /// The mediator answered with an error.
    #[error("the mediator refused {op}: {status}: {text}")]
    Refused {
        /// The operation that was requested.
        op: Op,
        /// Its code.
        status: Status,
        /// Its words.
        text: String,
    },
    /// Work that was sent before, and not waited for, has failed.
    #[error("{}", first(.0))]
    Failed(FenceReply),
    /// CUDA C++ that does not compile.
    #[error("it does not compile: {}", first_error(.log))]
    Compile {
        /// `nvrtcResult`.
        result: i32,
        /// The compiler's messages, lines of text; see [`Error::compile_log`].
        log: String,
    },
    /// Nobody here or there compiles CUDA C++.
    #[error("{what}")]
    NoCompiler {
        /// One line: what is missing.
        what: String,
        /// One line: what to do.
        advice: String,
    },
    /// The mediator broke the protocol.
    #[error("the mediator broke the protocol: it {0}")]
    Protocol(#[from] Violation),
    /// An earlier error ended the session.
    #[error("the session is over since: {0}")]
    SessionOver(String),
    /// [`Options::interrupt`](crate::Options::interrupt) was set.
    #[error("interrupted")]
    Interrupted,
}

/// The first of several failures, and how many there are.
fn first(failed: &FenceReply) -> String {
    let known = failed.failures.as_slice();
    let all = known.len() as u64 + u64::from(failed.dropped);
    let more = match all {
        0 | 1 => String::new(),
        all => format!(", and {} more", all - 1),
    };
    match known.first() {
        Some(QuietFailure {
            request_id,
            op,
            status,
        }) => format!("{op}, request {request_id}, failed: {status}{more}"),
        None => format!("{all} requests failed"),
    }
}

/// The line of a compiler's log that has the first error.
fn first_error(log: &str) -> &str {
    let error = log.lines().find(|line| line.contains("error"));
    error
        .or(log.lines().next())
        .unwrap_or("no word of why")
        .trim()
}

fn list(skipped: &[Skipped]) -> String {
    skipped
        .iter()
        .map(Skipped::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl Cause {
    /// Whether the session is over after this.
    pub(crate) fn ends_session(&self) -> bool {
        match self {
            Self::Input(_)
            | Self::NotSent(_)
            | Self::GivenUp(_)
            | Self::Failed(_)
            | Self::Compile { .. }
            | Self::NoCompiler { .. } => false,
            Self::Refused { status, .. } => {
                matches!(status, Status::Mediator(code) if code.ends_session())
            }
            _ => true,
        }
    }
}

impl Error {
    pub(crate) fn new(doing: &'static str, epoch: Option<u64>, cause: impl Into<Cause>) -> Self {
        Self {
            doing,
            epoch,
            cause: Box::new(cause.into()),
            failures: None,
        }
    }

    /// The requests that failed without an answer, where this error tells of such: the first is the cause. At most
    /// [`MAX_QUIET_FAILURES`](vgpu_protocol::op::MAX_QUIET_FAILURES) of them, the first;
    /// [`failures_unnamed`](Self::failures_unnamed) is how many more there were.
    pub fn failures(&self) -> &[QuietFailure] {
        self.failed()
            .map_or(&[], |failed| failed.failures.as_slice())
    }

    /// How many requests failed beside those that [`failures`](Self::failures) names.
    pub fn failures_unnamed(&self) -> u32 {
        self.failed().map_or(0, |failed| failed.dropped)
    }

    fn failed(&self) -> Option<&FenceReply> {
        match (&*self.cause, &self.failures) {
            (Cause::Failed(failed), _) => Some(failed),
            (_, failed) => failed.as_deref(),
        }
    }

    /// The status that the mediator or the device gave, if one of them did.
    pub fn status(&self) -> Option<Status> {
        match &*self.cause {
            Cause::NoEndpoint(skipped) => match skipped.as_slice() {
                [only] => only.error.status(),
                _ => None,
            },
            Cause::Refused { status, .. } | Cause::Ended { status, .. } => Some(*status),
            Cause::Failed(failed) => failed.failures.as_slice().first().map(|at| at.status),
            _ => None,
        }
    }

    /// The compiler's messages where CUDA C++ did not compile: lines of text, without control characters but newlines
    /// and tabs.
    pub fn compile_log(&self) -> Option<&str> {
        match &*self.cause {
            Cause::Compile { log, .. } => Some(log),
            _ => None,
        }
    }

    /// The operation under way, as in `vector add`.
    pub fn doing(&self) -> &'static str {
        self.doing
    }

    /// The session it happened in; `None` before there was one. State of another epoch is gone.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The reason.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The kind of failure. Where the only endpoint failed, that failure's.
    pub fn kind(&self) -> ErrorKind {
        match &*self.cause {
            Cause::Input(_) | Cause::Compile { .. } => ErrorKind::Argument,
            Cause::NoCompiler { .. } => ErrorKind::Unsupported,
            Cause::NoEndpoint(skipped) => match skipped.as_slice() {
                [only] => only.error.kind(),
                _ => ErrorKind::Unreachable,
            },
            Cause::Unreachable { .. } => ErrorKind::Unreachable,
            Cause::Transport(_) | Cause::SessionOver(_) => ErrorKind::Connection,
            Cause::Stalled(_) | Cause::GivenUp(_) => ErrorKind::Timeout,
            Cause::NotSent(NotSent::Body(_)) => ErrorKind::Argument,
            Cause::NotSent(_) => ErrorKind::Unsupported,
            Cause::Refused { .. } | Cause::Ended { .. } | Cause::Failed(_) => match self.status() {
                Some(Status::Cuda(_)) => ErrorKind::Cuda,
                _ => ErrorKind::Refused,
            },
            Cause::Protocol(_) => ErrorKind::Protocol,
            Cause::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// The side at fault.
    pub fn side(&self) -> Side {
        match &*self.cause {
            Cause::Input(_)
            | Cause::Interrupted
            | Cause::Compile { .. }
            | Cause::NoCompiler { .. } => Side::Guest,
            Cause::NoEndpoint(_)
            | Cause::Unreachable { .. }
            | Cause::Transport(_)
            | Cause::Stalled(_)
            | Cause::SessionOver(_) => Side::Connection,
            Cause::Refused { status, .. } | Cause::Ended { status, .. } => match status {
                Status::Cuda(_) | Status::Mediator(ErrorCode::BackendLost) => Side::Device,
                _ => Side::Mediator,
            },
            Cause::Failed(_) => match self.status() {
                Some(Status::Mediator(_)) => Side::Mediator,
                _ => Side::Device,
            },
            Cause::NotSent(_) | Cause::GivenUp(_) | Cause::Protocol(_) => Side::Mediator,
        }
    }

    /// Whether the same call can succeed without anything being changed first.
    pub fn retry(&self) -> Retry {
        match &*self.cause {
            Cause::Input(_)
            | Cause::NotSent(_)
            | Cause::Interrupted
            | Cause::Protocol(_)
            | Cause::Compile { .. }
            | Cause::NoCompiler { .. } => Retry::No,
            Cause::GivenUp(_) => Retry::SameSession,
            Cause::Refused {
                status: Status::Mediator(code),
                ..
            }
            | Cause::Ended {
                status: Status::Mediator(code),
                ..
            } if code.is_retryable() => {
                if self.cause.ends_session() {
                    Retry::NewSession
                } else {
                    Retry::SameSession
                }
            }
            Cause::Refused { .. } | Cause::Ended { .. } | Cause::Failed(_) => Retry::No,
            Cause::Transport(TransportError::PeerViolation(_)) => Retry::No,
            Cause::NoEndpoint(_)
            | Cause::Unreachable { .. }
            | Cause::Transport(_)
            | Cause::Stalled(_)
            | Cause::SessionOver(_) => Retry::NewSession,
        }
    }

    /// One line on what a person can do about it.
    pub fn advice(&self) -> String {
        let text = match &*self.cause {
            Cause::Unreachable { advice, .. } | Cause::NoCompiler { advice, .. } => {
                return advice.clone();
            }
            Cause::Compile { .. } => "correct the source; the compiler's log says more",
            Cause::NoEndpoint(skipped) => {
                return match skipped.as_slice() {
                    [only] => only.error.advice(),
                    _ => skipped
                        .iter()
                        .map(|skipped| format!("{} {}", skipped.endpoint, skipped.error.advice()))
                        .collect::<Vec<_>>()
                        .join("; or "),
                };
            }
            Cause::Refused { status, .. } | Cause::Ended { status, .. } => {
                return status_advice(*status).to_owned();
            }
            Cause::Failed(_) => {
                return status_advice(self.status().unwrap_or(Status::OK)).to_owned();
            }
            Cause::NotSent(_) => "ask for what `vgpu info` says this mediator can do",
            Cause::GivenUp(_) => "try again; if it stays, look at `vgpuctl top`",
            Cause::Input(_) => "correct the arguments",
            Cause::Transport(TransportError::Closed) => {
                "look at the mediator's log for why it closed, then connect again"
            }
            Cause::Transport(_) | Cause::SessionOver(_) => "connect again",
            Cause::Stalled(_) => {
                "look whether the mediator still runs (vgpuctl status), or allow more time"
            }
            Cause::Protocol(_) => "use the same release of vgpu on both sides",
            Cause::Interrupted => "start again when ready",
        };
        text.to_owned()
    }
}

fn status_advice(status: Status) -> &'static str {
    match status {
        Status::Mediator(ErrorCode::Denied) => {
            "ask the admin of dom0 to allow this guest in the mediator's [guests] table"
        }
        Status::Mediator(ErrorCode::Version) => "use the same release of vgpu on both sides",
        Status::Mediator(ErrorCode::Busy | ErrorCode::QuotaHandles) => {
            "try again later, or end another session of this guest"
        }
        Status::Mediator(ErrorCode::QuotaMemory) => {
            "try again later, or with less data, or ask the admin of dom0 for more memory"
        }
        Status::Mediator(ErrorCode::BackendLost) => "connect again; earlier state is gone",
        Status::Mediator(ErrorCode::Timeout) => "try again; if it stays, look at `vgpuctl top`",
        Status::Mediator(ErrorCode::Unsupported | ErrorCode::Range) => {
            "ask for what `vgpu info` says this mediator can do"
        }
        Status::Cuda(result) => cuda_advice(result),
        _ => "look at the mediator's log for the details",
    }
}

fn cuda_advice(result: i32) -> &'static str {
    match result {
        1 => "correct the arguments of the call that failed",
        2 => "try with less data: `vgpu info` says how much memory there is",
        222 => {
            "compile with nvcc or NVRTC of a version of CUDA that is no newer than the driver's (`vgpu info`)"
        }
        200 | 209 | 218 => "give PTX, a cubin or a fatbin that this device and driver can load",
        500 => "look at the names in the module (`vgpu-ptx check FILE` lists its kernels)",
        700 | 710 | 714..=719 => {
            "correct the kernel or what it was given, and connect again: this context is gone"
        }
        702 => "allow the kernel more time, or look why it does not end; connect again",
        _ => "look at the mediator's log for the details",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

#[cfg(feature = "cli")]
impl From<Error> for vgpu_cli::Failure {
    fn from(error: Error) -> Self {
        let failed = match *error.cause {
            Cause::Interrupted => Self::interrupted,
            _ => Self::new,
        };
        failed(error.to_string(), error.advice())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.cause {
            Cause::Transport(error) => Some(error),
            _ => None,
        }
    }
}
