//! Errors of a device.

use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::{ErrorCode, Status};

use crate::session::SessionEnd;
use crate::session::backend::NotOpened;

/// Why an executor could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// This machine does not offer the executor at all.
    #[error("{what}; {advice}")]
    Unavailable {
        /// The missing part.
        what: String,
        /// The remedy, for an administrator.
        advice: String,
    },
    /// This machine has the device, and others have it now.
    #[error("{what}; {advice}")]
    Busy {
        /// The obstacle.
        what: String,
        /// The remedy, for an administrator.
        advice: String,
    },
    /// A CUDA driver call failed.
    #[error("{what} failed with CUDA error {code}")]
    Cuda {
        /// The `CUresult`, as the driver gave it.
        code: i32,
        /// The call, and what the driver says about the error.
        what: String,
    },
    /// The device, or this machine, has not enough memory.
    #[error("out of memory: {what} needs {wanted} bytes")]
    OutOfMemory {
        /// Bytes that were asked for.
        wanted: u64,
        /// Their purpose.
        what: String,
    },
    /// The executor does not know the operation.
    #[error("{what}")]
    Unsupported {
        /// Which executor and operation.
        what: String,
    },
    /// The device did not answer in time.
    #[error("timed out while waiting for {what}")]
    TimedOut {
        /// The operation that was waited for.
        what: String,
    },
    /// The device cannot be used any more by this process; a new session gets a new one.
    #[error("the device is lost: {what}")]
    DeviceLost {
        /// The event.
        what: String,
    },
}

impl ExecutorError {
    /// Whether the executor can still be used after this error. CUDA's context errors stick: once
    /// a kernel faulted, every later call in the process fails too.
    pub fn ends_session(&self) -> bool {
        matches!(
            self,
            Self::DeviceLost { .. }
                | Self::TimedOut { .. }
                | Self::Unavailable { .. }
                | Self::Busy { .. }
        )
    }

    /// The text for the guest.
    pub fn status(&self) -> Status {
        match self {
            Self::Cuda { code, .. } => Status::from_raw((*code).max(1)),
            Self::OutOfMemory { .. } => ErrorCode::QuotaMemory.into(),
            Self::Unsupported { .. } => ErrorCode::Unsupported.into(),
            Self::TimedOut { .. } => ErrorCode::Timeout.into(),
            Self::Busy { .. } => ErrorCode::Busy.into(),
            Self::DeviceLost { .. } | Self::Unavailable { .. } => ErrorCode::BackendLost.into(),
        }
    }
}

impl From<&ExecutorError> for Failure {
    fn from(error: &ExecutorError) -> Self {
        Self {
            status: error.status(),
            text: error.to_string(),
        }
    }
}

impl From<&ExecutorError> for NotOpened {
    fn from(error: &ExecutorError) -> Self {
        let text = error.to_string();
        Self {
            code: ErrorCode::BackendLost,
            end: SessionEnd::ExecutorLost(text.clone()),
            text,
        }
    }
}
