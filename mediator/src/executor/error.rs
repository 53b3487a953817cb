//! What can go wrong on a device.

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
        /// What is missing.
        what: String,
        /// What an administrator can do about it.
        advice: String,
    },
    /// This machine has the device, and others have it now.
    #[error("{what}; {advice}")]
    Busy {
        /// What is in the way.
        what: String,
        /// What an administrator can do about it.
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
        /// What they were for.
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
        /// What was being waited for.
        what: String,
    },
    /// The device cannot be used any more by this process; a new session gets a new one.
    #[error("the device is lost: {what}")]
    DeviceLost {
        /// What happened.
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

    /// What the guest is told.
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
