//! Figures of this machine's GPUs, from NVIDIA's management library (NVML).
//!
//! Its calls may take long or hang, and it may take a process down, so it is loaded in a process of its own,
//! which [`broker::gpus`](crate::broker) keeps. Standard input is a socket: for each line that comes, one is
//! answered. Standard output is the log.

mod nvml;

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use vgpu_transport::output::write_all;

use crate::control::Gpu;
use crate::print::print_error;
use nvml::{Device, EccErrors, Error, Nvml};

/// First argument of the process.
pub const ARGUMENT: &str = "gpus";

/// It ends when nobody has asked for so long.
const IDLE: Duration = Duration::from_secs(300);

/// GPUs that are told of at most.
const MOST_GPUS: u32 = 64;

/// Longest text of the library that is taken, in characters.
const LONGEST_TEXT: usize = 128;

/// Processes that are told of at most.
const MOST_PROCESSES: usize = 1024;

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reading {
    Figures(Figures),
    /// Why there are none, in a line.
    Error(String),
}

/// Figures of the GPUs, and of the processes that use them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) gpus: Vec<Gpu>,
    processes: Vec<Process>,
}

/// A process on one GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Process {
    pid: u32,
    /// Bytes of its memory there, its context included.
    memory: Option<u64>,
    /// Part of its life in which a kernel of its ran there, in percent, where accounting is on.
    busy_percent: Option<u32>,
}

impl Figures {
    /// Bytes of a process's memory on GPUs, and the part of its life in which one ran its kernels, in percent.
    pub(crate) fn of_process(&self, pid: u32) -> (Option<u64>, Option<u32>) {
        let own = || self.processes.iter().filter(|process| process.pid == pid);
        let memory = own().filter_map(|process| process.memory);
        let memory = memory.reduce(u64::saturating_add);
        (
            memory,
            own().filter_map(|process| process.busy_percent).max(),
        )
    }
}

/// The process: answers until the other side is gone, nobody asks any more, or the library fails as a whole.
pub fn main() -> ExitCode {
    // A broker that dies must not leave this behind in a call that hangs.
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        print_error(&format!("vgpu-mediatord {ARGUMENT}: {errno}\n"));
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("vgpu-mediatord {ARGUMENT}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut nvml = None;
    while is_asked()? {
        if nvml.is_none() {
            nvml = Some(Nvml::start());
        }
        let read = match &nvml {
            Some(Ok(nvml)) => read(nvml),
            Some(Err(error)) => Err(error.clone()),
            None => continue,
        };
        let failed = read.is_err();
        let reading = read.map_or_else(|error| Reading::Error(error.to_string()), Reading::Figures);
        let line = serde_json::to_string(&reading)? + "\n";
        write_all(&io::stdin(), line.as_bytes())?;
        if failed {
            // The next process begins anew.
            break;
        }
    }
    Ok(())
}

/// Waits for a question; false if there will be none.
fn is_asked() -> io::Result<bool> {
    let stdin = io::stdin();
    let timeout = PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::MAX);
    if poll(
        &mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)],
        timeout,
    )? == 0
    {
        return Ok(false);
    }
    Ok(stdin.lock().read(&mut [0; 64])? > 0)
}

/// The library's figures for each GPU. A GPU that fails has only its number.
fn read(nvml: &Nvml) -> Result<Figures, Error> {
    let mut figures = Figures::default();
    for index in 0..nvml.device_count()?.min(MOST_GPUS) {
        match nvml.device(index) {
            Some(device) => {
                figures.gpus.push(gpu(index, device));
                figures.processes.extend(processes(device));
            }
            None => figures.gpus.push(Gpu {
                index,
                ..Gpu::default()
            }),
        }
    }
    figures.processes.truncate(MOST_PROCESSES);
    Ok(figures)
}

/// The processes that compute there now.
fn processes(device: Device<'_>) -> Vec<Process> {
    let running = device.processes(MOST_PROCESSES).unwrap_or_default();
    let accounts = device.has_accounts();
    let told = running.into_iter().map(|process| Process {
        pid: process.pid,
        memory: process.used(),
        busy_percent: match accounts {
            true => device.busy_percent_of(process.pid),
            false => None,
        },
    });
    told.collect()
}

/// A figure that the GPU does not give, or not now, is left out.
fn gpu(index: u32, device: Device<'_>) -> Gpu {
    let memory = device.memory();
    Gpu {
        index,
        uuid: text(device.uuid()),
        name: text(device.name()),
        total_memory: memory.as_ref().map(|memory| memory.total),
        memory_used: memory.as_ref().map(|memory| memory.used),
        busy_percent: device.busy_percent(),
        temperature_c: device.temperature(),
        power_mw: device.power(),
        power_limit_mw: device.power_limit(),
        ecc_corrected: device.ecc_errors(EccErrors::Corrected),
        ecc_uncorrected: device.ecc_errors(EccErrors::Uncorrected),
        age_s: 0,
    }
}

fn text(text: Option<String>) -> String {
    let text = text.unwrap_or_default().replace(char::is_control, " ");
    text.chars().take(LONGEST_TEXT).collect()
}
