//! The CPU executor: same protocol and same results without a GPU.

mod device;
mod registration;

use self::device::CpuDevice;
use super::on_device::{OnDevice, Open};
use super::{ExecutorError, ExecutorInfo, KERNEL_TIME, Limits};
use crate::devices::Device;
use crate::policy::{MOST_OBJECTS, PINNED_MIB};

/// Device memory of a session, at most, and at most this part of the machine's.
const MEMORY: (u64, u64) = (1 << 30, 8);

/// Runs a guest's work on this machine's processor.
pub type CpuExecutor = OnDevice<Processor>;

/// This machine's processor.
#[derive(Debug)]
pub struct Processor(());

impl Open for Processor {
    type Device = CpuDevice;

    fn prints(&self) -> bool {
        true
    }

    fn open(&self, info: &ExecutorInfo, limits: &Limits) -> Result<CpuDevice, ExecutorError> {
        CpuDevice::new(&info.device, limits.memory).map_err(|error| ExecutorError::Unavailable {
            what: format!("no thread or descriptor for the cpu device: {error}"),
            advice: "raise the mediator's limits of open files and of threads".into(),
        })
    }

    fn check(&self) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn select(&mut self, _: &Device) -> Result<(), ExecutorError> {
        // There is but one.
        Ok(())
    }
}

impl CpuExecutor {
    /// `reason` is the line that `info` gives for the choice of this executor.
    pub fn new(reason: &str) -> Self {
        let device = Device {
            index: 0,
            uuid: String::new(),
            pci: String::new(),
            name: processor_name().unwrap_or_else(|| "CPU".into()),
            total_memory: total_memory().unwrap_or(0),
        };
        let info = ExecutorInfo {
            kind: "cpu",
            device: device.name.clone(),
            total_memory: device.total_memory,
            driver: String::new(),
            reason: reason.to_owned(),
            devices: vec![device],
        };
        let limits = Limits {
            memory: MEMORY.0.min(info.total_memory / MEMORY.1),
            objects: MOST_OBJECTS,
            kernel_time: KERNEL_TIME,
            pinned: u64::from(PINNED_MIB) << 20,
        };
        let description = device::describe(&info.device, limits.memory);
        Self::from(Processor(()), info, vec![description], limits)
    }
}

/// The processor's name as the kernel gives it; absent on some architectures.
fn processor_name() -> Option<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes of memory of this machine.
fn total_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    use vgpu_protocol::op::{Info, Request};

    use crate::executor::{Executor, trial};
    use crate::session::one_request::one_request;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn the_trial_adds_and_leaves_nothing_behind() {
        let mut executor = CpuExecutor::new("a test");
        for elements in [1, 2, 1000, 1_000_003] {
            assert_eq!(
                trial::wrong_sums(&mut executor, elements, deadline()),
                Ok(0)
            );
        }
        let gpu = executor.gpu.as_ref().expect("a device");
        assert!(gpu.is_unused(), "{gpu:?}");
    }

    #[test]
    fn what_it_does_not_know_is_refused_by_name() {
        let mut executor = CpuExecutor::new("a test");
        let failure = one_request(&mut executor, &Request::Info(Info {}), &[], deadline());
        let failure = failure.unwrap_err();
        assert!(
            failure.text.contains("Info") && failure.text.contains("cpu"),
            "{}",
            failure.text
        );
    }

    #[test]
    fn info_names_a_device() {
        let executor = CpuExecutor::new("a test");
        assert!(!executor.info().device.is_empty());
        assert!(executor.info().total_memory > 0);
    }
}
