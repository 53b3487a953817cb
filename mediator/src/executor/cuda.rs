//! The CUDA executor: a guest's work on an NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build or start the mediator: the driver's library is loaded when the
//! executor is opened. Opening it is also the proof that it works. A driver can load, list its GPUs
//! and still fail at the first allocation (in a PV dom0 it does), so [`open`] ends with a trial
//! kernel, by the same code that runs guests' kernels.
//!
//! * `driver`: the driver's functions and results.
//! * `device`: the GPU and its context.
//! * `queue`: what guests ask of the driver.
//! * `caller`: of that, what may take its time.
//! * `graph`: graphs that it launches as a whole.
//! * `handles`: page-locked memory, streams and events of theirs.
//! * `image`: what guests call a module.
//! * `platform`: is this a PV dom0?
//! * `printed`: what kernels print.
//! * `words`: what the codes mean that a driver refuses to start with.
//!
//! The executor gives the driver's own error codes on. After an error that spoils the context, or
//! work that does not end, it is *lost*: it calls the driver no more, not even to free memory, which
//! the end of the process does.

mod attributes;
mod caller;
mod device;
mod driver;
mod graph;
mod handles;
mod image;
mod platform;
mod printed;
mod queue;
mod words;

use std::fmt::Display;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::Status;
use vgpu_transport::Waker;

use super::on_device::{OnDevice, Open};
use super::{ExecutorError, ExecutorInfo, KERNEL_TIME, Limits, cuda_result, trial};
use crate::devices::{self, Devices};
use crate::policy::{MOST_OBJECTS, PINNED_MIB};
use device::Device;
use driver::{CallError, Driver, LoadError};
use platform::Platform;
use queue::Queue;
use words::Words;

/// Elements of the vector add that proves the device.
const PROOF_ELEMENTS: usize = 1000;

/// How long that may take.
const PROOF_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a guest's work on one of this machine's NVIDIA GPUs.
pub type CudaExecutor = OnDevice<OpenGpu>;

/// A GPU whose context is open.
#[derive(Debug)]
pub struct OpenGpu(Arc<Device>);

impl Open for OpenGpu {
    type Device = Queue;

    fn prints(&self) -> bool {
        printed::captured().is_some()
    }

    fn open(&self, _: &ExecutorInfo, _: &Limits) -> Result<Queue, ExecutorError> {
        if self.0.is_lost() {
            return Err(ExecutorError::DeviceLost {
                what: "an earlier error ended this process's use of it".into(),
            });
        }
        Queue::new(&self.0).map_err(|error| executor_error(&self.0, error))
    }

    fn check(&self) -> Result<(), ExecutorError> {
        self.0
            .synchronize()
            .map_err(|error| executor_error(&self.0, error))
    }

    fn select(&mut self, device: &devices::Device) -> Result<(), ExecutorError> {
        let waker = Arc::clone(self.0.waker());
        let opened = Device::open(self.0.driver(), device.index, waker).map_err(explain)?;
        self.0 = Arc::new(opened);
        Ok(())
    }
}

/// Loads the driver's library. A failure is the error of opening the executor.
pub(super) fn load_driver() {
    let _ = Driver::load();
}

/// Makes this process's standard output the output of its one session's kernels, before the library is loaded.
///
/// # Errors
/// There is no descriptor left. Then the executor does not offer the output.
pub(super) fn capture_printed() -> io::Result<()> {
    printed::capture()
}

/// Opens the executor on the first of `devices`, or else of those that the driver shows, and proves it with a vector
/// add. `reason` is the line that `info` gives for the choice of this executor.
///
/// Initialising CUDA takes some tenths of a second and cannot be interrupted; a caller that must not
/// hang does it in a process of its own.
///
/// # Errors
/// [`ExecutorError::Unavailable`], with what is missing and what to do about it.
pub fn open(reason: &str, devices: Option<&Devices>) -> Result<CudaExecutor, ExecutorError> {
    let driver = Driver::load().map_err(|error| explain_load(error, Platform::detect()))?;
    let none = CallError {
        code: cuda_result::NO_DEVICE,
        call: "cuDeviceGetCount",
    };
    let count = match (Device::count(driver), devices) {
        // The driver hides what the mediator has not named, and then there may be none.
        (Err(error), Some(_)) if error.code == cuda_result::NO_DEVICE => 0,
        (Err(error), _) => return Err(explain(error)),
        (Ok(0), None) => return Err(explain(none)),
        (Ok(count), _) => count,
    };
    let there = Device::all(driver, count).map_err(explain)?;
    let chosen = match devices {
        Some(devices) => super::chosen(devices, &there)?,
        None => there,
    };
    let waker = Waker::new().map_err(|error| ExecutorError::Unavailable {
        what: format!("no descriptor for the GPU's events: {error}"),
        advice: "raise the mediator's limit of open files (LimitNOFILE)".into(),
    })?;
    let mut executor = CudaExecutor::open_device(driver, chosen, waker, reason).map_err(explain)?;
    executor.prove()?;
    Ok(executor)
}

impl CudaExecutor {
    fn open_device(
        driver: &'static Driver,
        devices: Vec<devices::Device>,
        waker: Waker,
        reason: &str,
    ) -> Result<CudaExecutor, CallError> {
        let first = devices.first().map_or(0, |device| device.index);
        let device = Arc::new(Device::open(driver, first, Arc::new(waker))?);
        let mut descriptions = vec![device.describe()?];
        for other in devices.iter().skip(1) {
            descriptions.push(Device::describe_other(driver, other.index)?);
        }
        let cuda = device.cuda_version()?;
        let info = ExecutorInfo {
            kind: "cuda",
            device: devices
                .first()
                .map_or_else(String::new, |it| it.name.clone()),
            total_memory: devices.first().map_or(0, |it| it.total_memory),
            driver: match kernel_module_version() {
                Some(version) => format!("{version} (CUDA {cuda})"),
                None => format!("CUDA {cuda}"),
            },
            reason: reason.to_owned(),
            devices,
        };
        let limits = Limits {
            memory: info.total_memory,
            objects: MOST_OBJECTS,
            kernel_time: KERNEL_TIME,
            pinned: u64::from(PINNED_MIB) << 20,
        };
        Ok(Self::from(OpenGpu(device), info, descriptions, limits))
    }

    /// Allocates, loads the kernel, copies, adds, copies back and compares.
    fn prove(&mut self) -> Result<(), ExecutorError> {
        let deadline = Instant::now() + PROOF_DEADLINE;
        let wrong = trial::wrong_sums(self, PROOF_ELEMENTS, deadline).map_err(explain_proof)?;
        // What a session may have of the device is not known yet: its own begins with the first request.
        self.forget_use();
        match wrong {
            0 => Ok(()),
            count => Err(ExecutorError::Unavailable {
                what: format!("the GPU added {count} of {PROOF_ELEMENTS} numbers wrongly"),
                advice: "check the GPU's memory (`nvidia-smi -q -d ECC`)".into(),
            }),
        }
    }
}

/// The error for a session, of a call made for it.
fn executor_error(device: &Device, error: CallError) -> ExecutorError {
    if error.is_sticky() {
        device.lose(error);
        return ExecutorError::DeviceLost {
            what: format!("CUDA error {} in {error}", error.code),
        };
    }
    ExecutorError::Cuda {
        code: error.code,
        what: error.to_string(),
    }
}

/// The version of the kernel's part of the driver, as `580.159.04`.
fn kernel_module_version() -> Option<String> {
    let version = fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(version.trim().to_owned())
}

/// Why the executor is not there, for want of a library.
fn explain_load(error: LoadError, platform: Platform) -> ExecutorError {
    let (what, advice) = match error {
        LoadError::Absent => (
            "NVIDIA's driver library (libcuda.so.1) is not installed or cannot be loaded"
                .to_owned(),
            "install NVIDIA's driver to use a GPU",
        ),
        LoadError::MissingSymbol(symbol) => (
            format!("NVIDIA's driver library (libcuda.so.1) lacks the function {symbol}"),
            "install NVIDIA's driver of version 520 or later",
        ),
    };
    unavailable(what, advice, platform)
}

/// Why the executor is not there, after a call to the driver failed.
fn explain(error: CallError) -> ExecutorError {
    explain_on(error, Platform::detect())
}

fn explain_on(error: CallError, platform: Platform) -> ExecutorError {
    explain_code(error.code, &error, platform)
}

/// The same for the error of a call, by its number and what is said of it.
fn explain_code(code: i32, error: &dyn Display, platform: Platform) -> ExecutorError {
    let Words {
        cause,
        advice,
        busy,
    } = words::of(code);
    let mut what = format!("CUDA error {code} in {error}");
    if !cause.is_empty() {
        what = format!("{what}: {cause}");
    }
    if busy {
        return ExecutorError::Busy {
            what,
            advice: advice.to_owned(),
        };
    }
    unavailable(what, advice, platform)
}

/// An error of the proof, whose cause lies with the machine and not with a request.
fn explain_proof(failure: Failure) -> ExecutorError {
    if let Status::Cuda(code) = failure.status {
        return explain_code(code, &failure.text, Platform::detect());
    }
    unavailable(
        format!("the trial kernel failed: {}", failure.text),
        "see `dmesg` for lines with NVRM, and try `nvidia-smi`",
        Platform::detect(),
    )
}

/// Joins the error with what the machine itself has to do with it.
fn unavailable(what: String, advice: &str, platform: Platform) -> ExecutorError {
    match platform.hint() {
        Some((cause, better)) => ExecutorError::Unavailable {
            what: format!("{what}; {cause}"),
            advice: better.to_owned(),
        },
        None => ExecutorError::Unavailable {
            what,
            advice: advice.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;

    #[test]
    fn a_machine_without_a_driver_says_what_to_do() {
        let error = explain_load(LoadError::Absent, Platform::NotXen).to_string();
        assert!(
            error.contains("libcuda.so.1") && error.contains("install NVIDIA's driver"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_pv_dom0_is_named_as_the_cause() {
        let dom0 = Platform::Xen {
            paravirtual: true,
            dom0: true,
        };
        let not_supported = CallError {
            code: 801,
            call: "cuMemAlloc",
        };
        for error in [
            explain_on(not_supported, dom0),
            explain_load(LoadError::Absent, dom0),
        ] {
            let error = error.to_string();
            assert!(
                error.contains("PV dom0") && error.contains("dom0=pvh iommu=pt"),
                "{error}"
            );
        }
    }

    #[test]
    fn opening_works_or_explains() {
        match open("a test", None) {
            Ok(executor) => assert_eq!(executor.info().kind, "cuda"),
            Err(
                ExecutorError::Unavailable { what, advice } | ExecutorError::Busy { what, advice },
            ) => {
                assert!(!what.is_empty() && !advice.is_empty());
            }
            Err(other) => panic!("not explained: {other}"),
        }
    }
}
