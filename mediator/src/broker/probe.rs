//! Which executor this machine offers, asked of a child process.
//!
//! Initialising CUDA may hang, crash, or leave the process unable to fork: none of that may happen
//! to the broker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use vgpu_protocol::endpoint::Endpoint;

use super::wait::{is_ready, wait, wait_readable};
use crate::control;
use crate::executor::{ExecutorChoice, probe};
use crate::failure::Failure;
use crate::lines::LineBuffer;
use crate::relay::{self, Route};

/// First argument of the child.
pub const ARGUMENT: &str = "probe";

/// Time for the child. A driver that starts up several GPUs takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest answer of the child in bytes.
const MAX_ANSWER: usize = 16 << 10;

/// What the child found.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Executor(control::Executor),
    Error(String),
}

/// An executor that was proven to work.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What workers open; never `auto`.
    pub choice: ExecutorChoice,
    /// What it is.
    pub executor: control::Executor,
}

/// The child: opens the executor, says in one line what it is, and ends.
pub fn main(arguments: &[String]) -> ExitCode {
    // A broker that dies meanwhile must not leave this behind, waiting for a driver.
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        eprintln!("vgpu-mediatord {ARGUMENT}: {errno}");
    }
    let found = match arguments {
        [choice] => choice.parse().and_then(|choice| look(choice, None)),
        [choice, secret] => {
            let secret = Some(PathBuf::from(secret));
            choice.parse().and_then(|choice| look(choice, secret))
        }
        _ => Err("arguments: auto, cuda, cpu or relay:E, and a secret's file".to_owned()),
    };
    let verdict = match found {
        Ok(executor) => Verdict::Executor(executor),
        Err(error) => Verdict::Error(error),
    };
    match serde_json::to_string(&verdict) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vgpu-mediatord {ARGUMENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn look(choice: ExecutorChoice, secret: Option<PathBuf>) -> Result<control::Executor, String> {
    if let ExecutorChoice::Relay(endpoint) = choice {
        let info = relay::look(&Route { endpoint, secret })?;
        return Ok(control::Executor {
            kind: info.executor,
            device: info.device,
            total_memory: info.total_memory,
            driver: info.driver,
            reason: info.reason,
        });
    }
    let executor = probe(choice).map_err(|error| error.to_string())?;
    let info = executor.info();
    Ok(control::Executor {
        kind: info.kind.to_owned(),
        device: info.device.clone(),
        total_memory: info.total_memory,
        driver: info.driver.clone(),
        reason: info.reason.clone(),
    })
}

/// Finds the executor that `choice` allows, waiting a minute at most, or until `interrupt` becomes
/// readable.
///
/// # Errors
/// The one executor asked for does not work here, or the wait was interrupted.
pub fn find(
    choice: &ExecutorChoice,
    secret: Option<&Path>,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Offer, Failure> {
    let first = ask(choice, secret, interrupt);
    if interrupt.is_some_and(|fd| wait_readable(&fd, Instant::now()).is_ok()) {
        return Err(Failure::new(
            "stopped while looking for an executor",
            "start it again",
        ));
    }
    let verdict = match (first, choice) {
        (Ok(Verdict::Executor(executor)), _) => Ok(executor),
        // It may be started later, and it may have been restarted by the next session.
        (Ok(Verdict::Error(what)) | Err(what), ExecutorChoice::Relay(endpoint)) => {
            log::warn!("{what} (sessions are refused until then)");
            Ok(not_there_yet(endpoint))
        }
        (Ok(Verdict::Error(what)), _) => Err(what),
        // The driver took the child down: the CPU is still there.
        (Err(what), ExecutorChoice::Auto) => match ask(&ExecutorChoice::Cpu, None, interrupt) {
            Ok(Verdict::Executor(mut executor)) => {
                executor.reason = format!("no CUDA: {what}");
                Ok(executor)
            }
            Ok(Verdict::Error(error)) | Err(error) => Err(error),
        },
        (Err(what), _) => Err(format!("executor {choice} is not available: {what}")),
    };
    match verdict {
        Ok(executor) => Ok(Offer {
            choice: match choice {
                ExecutorChoice::Relay(_) => choice.clone(),
                _ if executor.kind == "cuda" => ExecutorChoice::Cuda,
                _ => ExecutorChoice::Cpu,
            },
            executor,
        }),
        Err(what) => Err(Failure::new(
            what,
            "use --executor auto or cpu, or correct what is missing (vgpuctl doctor looks for it)",
        )),
    }
}

/// What stands for a mediator that does not answer at the start.
fn not_there_yet(endpoint: &Endpoint) -> control::Executor {
    control::Executor {
        kind: "relay".to_owned(),
        device: "not known yet".to_owned(),
        total_memory: 0,
        driver: String::new(),
        reason: format!("{endpoint} did not answer when this mediator started"),
    }
}

fn ask(
    choice: &ExecutorChoice,
    secret: Option<&Path>,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Verdict, String> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("vgpu-mediatord")
        .args([ARGUMENT, &choice.to_string()])
        .args(secret)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    let answer = read_answer(&mut child, interrupt);
    if answer.is_err() {
        // It may have ended already.
        let _ = child.kill();
    }
    let status = child.wait();
    match answer {
        Ok(Some(line)) => {
            serde_json::from_str(&line).map_err(|error| format!("the probe's answer: {error}"))
        }
        Ok(None) => Err(match status {
            Ok(status) => format!("the probe ended without an answer ({status})"),
            Err(error) => format!("the probe cannot be waited for: {error}"),
        }),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(format!(
            "the driver did not start within {} s",
            PATIENCE.as_secs()
        )),
        Err(error) => Err(format!("the probe's answer: {error}")),
    }
}

/// The child's one line; `None` if it ended without.
fn read_answer(child: &mut Child, interrupt: Option<BorrowedFd<'_>>) -> io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut lines = LineBuffer::new(MAX_ANSWER);
    let Some(stdout) = &mut child.stdout else {
        return Ok(None);
    };
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(stdout.as_fd())];
        fds.extend(interrupt.map(readable));
        wait(&mut fds, Some(deadline))?;
        if !is_ready(&fds[0]) {
            if fds.get(1).is_some_and(is_ready) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            continue;
        }
        // One look at a readable pipe does not block.
        let mut once = Once(stdout, false);
        let received = lines.read(&mut once)?;
        if let Some(line) = received.lines.into_iter().next() {
            return Ok(Some(line));
        }
        if received.closed {
            return Ok(None);
        }
    }
}

/// Reads once, then reports that there is nothing more for now.
struct Once<'a, R>(&'a mut R, bool);

impl<R: io::Read> io::Read for Once<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.1, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}
