//! Choosing an executor.

use std::fmt;
use std::str::FromStr;

use vgpu_transport::endpoint::Endpoint;

use super::{Executor, ExecutorError, cpu, cuda};
use crate::devices::Devices;

/// The choice that an administrator made with `--executor`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExecutorChoice {
    /// CUDA where a real allocation proves that it works, otherwise the CPU.
    #[default]
    Auto,
    /// CUDA, or nothing.
    Cuda,
    /// The CPU.
    Cpu,
    /// Another mediator: see [`relay`](crate::relay).
    Relay(Endpoint),
}

/// The notations, for messages.
const CHOICES: &str = "auto, cuda or cpu, or relay:E";

impl FromStr for ExecutorChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "cpu" => Ok(Self::Cpu),
            other => match other.strip_prefix("relay") {
                Some(rest) if rest.is_empty() || rest.starts_with(':') => relay(rest, other),
                _ => Err(format!("unknown executor `{other}`; use {CHOICES}")),
            },
        }
    }
}

/// The mediator behind `relay`.
fn relay(rest: &str, whole: &str) -> Result<ExecutorChoice, String> {
    const WAYS: &str =
        "use relay:xen:DOMAIN, relay:tcp:HOST:PORT, relay:unix:PATH or relay:local:PATH";
    let endpoint = rest
        .strip_prefix(':')
        .unwrap_or_default()
        .parse::<Endpoint>()
        .map_err(|error| format!("executor `{whole}`: {error}; {WAYS}"))?;
    match endpoint {
        Endpoint::Xen => Err(format!(
            "executor `{whole}`: which domain? relay:xen:DOMAIN names the one with the GPU"
        )),
        Endpoint::XenDomain(_) | Endpoint::Local(_) | Endpoint::Unix(_) | Endpoint::Tcp { .. } => {
            Ok(ExecutorChoice::Relay(endpoint))
        }
        other => Err(format!(
            "executor `{whole}`: no relay goes over {other}; {WAYS}"
        )),
    }
}

impl TryFrom<String> for ExecutorChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ExecutorChoice> for String {
    fn from(choice: ExecutorChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for ExecutorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cuda => f.write_str("cuda"),
            Self::Cpu => f.write_str("cpu"),
            Self::Relay(endpoint) => write!(f, "relay:{endpoint}"),
        }
    }
}

/// The executor that was asked for is not available.
#[derive(Debug, thiserror::Error)]
#[error("executor {choice} is not available: {source}")]
pub struct ProbeError {
    /// The choice that was made.
    pub choice: ExecutorChoice,
    /// Why it is not available.
    pub source: ExecutorError,
}

/// Opens the executor that `choice` allows, and says in its
/// [`reason`](super::ExecutorInfo::reason) why it is this one. It has no other devices than `devices`, in their order;
/// all where nothing is said.
///
/// # Errors
/// [`ProbeError`] when the one executor asked for does not work here, or lacks one of the devices. `auto` always finds
/// one for all devices. Another mediator has no executor here: sessions are passed on to it whole.
pub fn probe(
    choice: ExecutorChoice,
    devices: Option<&Devices>,
) -> Result<Box<dyn Executor>, ProbeError> {
    let open_cpu = |reason: &str| -> Result<Box<dyn Executor>, ExecutorError> {
        let executor = cpu::CpuExecutor::new(reason);
        if let Some(devices) = devices {
            super::chosen(devices, &executor.info().devices)?;
        }
        Ok(Box::new(executor))
    };
    let failed = |choice| move |source| ProbeError { choice, source };
    match choice {
        ExecutorChoice::Relay(_) => Err(ProbeError {
            choice,
            source: ExecutorError::Unavailable {
                what: "another mediator takes whole sessions".into(),
                advice: "use it over xen:, local:, unix: or tcp:".into(),
            },
        }),
        ExecutorChoice::Cpu => open_cpu("executor is set to cpu").map_err(failed(choice)),
        ExecutorChoice::Cuda => {
            open_cuda("executor is set to cuda", devices).map_err(failed(choice))
        }
        ExecutorChoice::Auto => {
            match open_cuda(
                "CUDA works here: a trial kernel gave the right result",
                devices,
            ) {
                Ok(cuda) => Ok(cuda),
                Err(error) => open_cpu(&format!("no CUDA: {error}")).map_err(failed(choice)),
            }
        }
    }
}

/// Opens CUDA, which proves it.
fn open_cuda(reason: &str, devices: Option<&Devices>) -> Result<Box<dyn Executor>, ExecutorError> {
    Ok(Box::new(cuda::open(reason, devices)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceKey;

    #[test]
    fn choices_are_read_and_written_alike() {
        for choice in [
            ExecutorChoice::Auto,
            ExecutorChoice::Cuda,
            ExecutorChoice::Cpu,
            ExecutorChoice::Relay(Endpoint::XenDomain("gpu-1".into())),
            ExecutorChoice::Relay(Endpoint::Local("/a".into())),
            ExecutorChoice::Relay("tcp:[::1]:7".parse().unwrap()),
        ] {
            assert_eq!(choice.to_string().parse(), Ok(choice.clone()));
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(
                serde_json::from_str::<ExecutorChoice>(&json).unwrap(),
                choice
            );
        }
        let error = "vulkan".parse::<ExecutorChoice>().unwrap_err();
        assert!(
            error.contains("`vulkan`") && error.contains("auto, cuda or cpu"),
            "{error}"
        );
        for (text, word) in [
            ("relay", "relay:xen:DOMAIN"),
            ("relay:", "relay:xen:DOMAIN"),
            ("relay:xen:", "which domain"),
            ("relay:file:/d", "file:/d"),
            ("relay:tcp:host", "tcp:HOST:PORT"),
            ("relays:xen:g", "unknown executor"),
        ] {
            let error = text.parse::<ExecutorChoice>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_cpu_can_always_be_had() {
        let executor = probe(ExecutorChoice::Cpu, None).unwrap();
        assert_eq!(executor.info().kind, "cpu");
        assert_eq!(executor.info().reason, "executor is set to cpu");
    }

    #[test]
    fn the_cpu_is_device_0_and_has_no_other() {
        let open = |keys: Vec<DeviceKey>| {
            let devices = Devices::try_from(keys).unwrap();
            probe(ExecutorChoice::Cpu, Some(&devices)).map(|it| it.info().devices.len())
        };
        assert_eq!(open(vec![DeviceKey::Index(0)]).unwrap(), 1);
        let error = open(vec![DeviceKey::Index(0), DeviceKey::Index(1)]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("there is no device 1") && text.contains("vgpuctl doctor"),
            "{text}"
        );
        let text = open(Vec::new()).unwrap_err().to_string();
        assert!(text.contains("no device in common"), "{text}");
    }
}
