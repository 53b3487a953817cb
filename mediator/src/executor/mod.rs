//! Executors: what runs a guest's work.
//!
//! A worker process owns one [`Executor`] for the one session it serves. The broker never makes
//! one: it asks a short-lived child process which executor this machine can offer, because a CUDA
//! driver that was initialised cannot be used after a fork and may take its process down.

pub mod cpu;
pub mod cuda;
mod cuda_result;
mod error;
mod gpu;
mod on_device;
mod probe;
pub(crate) mod trial;

use std::sync::Arc;

use vchan::region::Regions;
use vgpu_protocol::op::{Features, FenceReply, Op};

use crate::compile::Compile;
use crate::devices::{Device, Devices, MISSING_ADVICE};
use crate::guest_memory::GuestMemory;
use crate::policy::Share;
use crate::session::backend::Backend;
use crate::worker::turns::Turns;

pub use error::ExecutorError;
pub use gpu::{KERNEL_TIME, Limits};
pub use probe::{ExecutorChoice, ProbeError, probe};

/// The description of an executor, for `info`, logs and `vgpuctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorInfo {
    /// `cuda` or `cpu`.
    pub kind: &'static str,
    /// The device's own name, as in `NVIDIA H100 PCIe`.
    pub device: String,
    /// Bytes of memory that the device has.
    pub total_memory: u64,
    /// The driver's version as people write it; empty where there is no driver.
    pub driver: String,
    /// Why this executor was taken, in one line.
    pub reason: String,
    /// The devices that it has, in the order in which its session counts them; empty for those of another mediator.
    pub devices: Vec<Device>,
}

/// A backend that runs requests on a device of this machine: one arm of its
/// [`start`](Backend::start) for each operation that it knows.
pub trait Executor: Backend + Send {
    /// The description of this executor.
    fn info(&self) -> &ExecutorInfo;

    /// Says, before the first request, what its session may have of the device.
    fn set_share(&mut self, _share: Share) {}

    /// After [`set_share`](Self::set_share): has the limit of memory there count for all sessions of the guest.
    fn set_guest_memory(&mut self, _sessions: Arc<GuestMemory>) {}

    /// The optional parts of the protocol that it has.
    fn features(&self) -> Features {
        Features::ALL
    }

    /// Lets it map, from before the first request on, what its session's guest offers.
    fn set_regions(&mut self, _regions: Regions) {}

    /// Gives it, before the first request, its session's turns on the device.
    fn set_turns(&mut self, _turns: &Arc<Turns>) {}

    /// Has the sources of its session compiled by this.
    fn set_compiler(&mut self, _compiler: Arc<dyn Compile>) {}

    /// Whether it still works that was opened some time ago, for nobody yet.
    ///
    /// # Errors
    /// It does not, and this process can open it no more.
    fn check(&mut self) -> Result<(), ExecutorError> {
        Ok(())
    }

    /// The failures that came after their requests were answered, since the call before.
    fn take_failures(&mut self) -> FenceReply {
        FenceReply::default()
    }
}

/// Loads the library of NVIDIA's driver, if there is one, and asks nothing of it yet.
pub(crate) fn load_driver() {
    cuda::load_driver();
}

/// Makes standard output of this process, which serves one session, that of the session's kernels. Called
/// before the driver is loaded.
///
/// # Errors
/// There is no descriptor left.
pub(crate) fn capture_printed() -> std::io::Result<()> {
    cuda::capture_printed()
}

/// The devices that `devices` names, of those that there are.
fn chosen(devices: &Devices, there: &[Device]) -> Result<Vec<Device>, ExecutorError> {
    if devices.keys().is_empty() {
        return Err(ExecutorError::Unavailable {
            what: "the rules for this guest have no device in common".to_owned(),
            advice: "name the same devices in each of them, in the same way, and vgpuctl reload"
                .to_owned(),
        });
    }
    devices
        .find_in(there)
        .map_err(|key| ExecutorError::Unavailable {
            what: format!("there is no device {key}, which this guest is to have"),
            advice: MISSING_ADVICE.to_owned(),
        })
}

/// The answer to an operation that an executor does not know.
fn unsupported(info: &ExecutorInfo, op: Op) -> ExecutorError {
    ExecutorError::Unsupported {
        what: format!("the {} executor does not know {op}", info.kind),
    }
}
