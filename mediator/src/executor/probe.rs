//! Choosing an executor.

use std::fmt;
use std::str::FromStr;

use super::{Executor, ExecutorError, cpu, cuda};

/// What an administrator asked for with `--executor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorChoice {
    /// CUDA where a real allocation proves that it works, otherwise the CPU.
    #[default]
    Auto,
    /// CUDA, or nothing.
    Cuda,
    /// The CPU.
    Cpu,
}

impl FromStr for ExecutorChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "cpu" => Ok(Self::Cpu),
            relay if relay == "relay" || relay.starts_with("relay:") => Err(format!(
                "executor `{relay}`: this build cannot relay to another mediator; \
                 use auto, cuda or cpu"
            )),
            other => Err(format!("unknown executor `{other}`; use auto, cuda or cpu")),
        }
    }
}

impl fmt::Display for ExecutorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        })
    }
}

/// The executor that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("executor {choice} is not available: {source}")]
pub struct ProbeError {
    /// What was asked for.
    pub choice: ExecutorChoice,
    /// Why it cannot be had.
    pub source: ExecutorError,
}

/// Opens the executor that `choice` allows, and says in its
/// [`reason`](super::ExecutorInfo::reason) why it is this one.
///
/// # Errors
/// [`ProbeError`] when the one executor asked for does not work here. `auto` always finds one.
pub fn probe(choice: ExecutorChoice) -> Result<Box<dyn Executor>, ProbeError> {
    match choice {
        ExecutorChoice::Cpu => Ok(Box::new(cpu::CpuExecutor::new("asked for"))),
        ExecutorChoice::Cuda => {
            open_cuda("asked for").map_err(|source| ProbeError { choice, source })
        }
        ExecutorChoice::Auto => match open_cuda("CUDA works here: a trial vector add was right") {
            Ok(cuda) => Ok(cuda),
            Err(error) => Ok(Box::new(cpu::CpuExecutor::new(&format!(
                "no CUDA: {error}"
            )))),
        },
    }
}

/// Opens CUDA, which proves it.
fn open_cuda(reason: &str) -> Result<Box<dyn Executor>, ExecutorError> {
    Ok(Box::new(cuda::open(reason)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written_alike() {
        for choice in [
            ExecutorChoice::Auto,
            ExecutorChoice::Cuda,
            ExecutorChoice::Cpu,
        ] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "vulkan".parse::<ExecutorChoice>().unwrap_err();
        assert!(
            error.contains("`vulkan`") && error.contains("auto, cuda or cpu"),
            "{error}"
        );
        let error = "relay:xen:".parse::<ExecutorChoice>().unwrap_err();
        assert!(error.contains("relay"), "{error}");
    }

    #[test]
    fn the_cpu_can_always_be_had() {
        let executor = probe(ExecutorChoice::Cpu).unwrap();
        assert_eq!(executor.info().kind, "cpu");
        assert_eq!(executor.info().reason, "asked for");
    }
}
