//! Which executor this machine offers, asked of a child process.
//!
//! Initialising CUDA may hang, crash, or leave the process unable to fork: none of that may happen
//! to the broker. The child answers on a socket that is its standard input. Its standard output is
//! the log: a driver or a preloaded library may print what it likes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use vgpu_cli::Failure;
use vgpu_transport::endpoint::Endpoint;
use vgpu_transport::output::write_all;

use super::poll::{is_ready, wait, wait_readable};
use crate::control;
use crate::executor::{ExecutorChoice, probe};
use crate::lines::LineBuffer;
use crate::print::print_error;
use crate::relay::{self, Route};

/// First argument of the child.
pub const ARGUMENT: &str = "probe";

/// Time for the child. A driver that starts up several GPUs takes its time.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// Longest answer of the child in bytes.
const MAX_ANSWER: usize = 16 << 10;

/// How long a child that was killed, or has nothing more to say, may take to end. One that hangs in
/// the kernel is left behind.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// The child's findings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Executor(control::Executor),
    Error(String),
}

/// An executor that was proven to work.
#[derive(Debug, Clone)]
pub struct ChosenExecutor {
    /// The executor that workers open; never `auto`.
    pub choice: ExecutorChoice,
    /// Its description.
    pub executor: control::Executor,
    /// It stands in for what was asked for, which may come later.
    pub stands_in: bool,
}

/// The child: opens the executor, says in one line what it is, and ends.
pub fn main(arguments: &[String]) -> ExitCode {
    // A broker that dies meanwhile must not leave this behind, waiting for a driver.
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        print_error(&format!("vgpu-mediatord {ARGUMENT}: {errno}\n"));
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
    let answered = serde_json::to_string(&verdict)
        .map_err(io::Error::from)
        .and_then(|line| write_all(&io::stdin(), format!("{line}\n").as_bytes()));
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("vgpu-mediatord {ARGUMENT}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn look(choice: ExecutorChoice, secret: Option<PathBuf>) -> Result<control::Executor, String> {
    if let ExecutorChoice::Relay(endpoint) = choice {
        let info = relay::look(&Route { endpoint, secret })?;
        return Ok(control::Executor {
            kind: info.executor.to_string(),
            device: info.device.to_string(),
            total_memory: info.total_memory,
            driver: info.driver.to_string(),
            reason: info.reason.to_string(),
            devices: Vec::new(),
        });
    }
    let executor = probe(choice, None).map_err(|error| error.to_string())?;
    let info = executor.info();
    Ok(control::Executor {
        kind: info.kind.to_owned(),
        device: info.device.clone(),
        total_memory: info.total_memory,
        driver: info.driver.clone(),
        reason: info.reason.clone(),
        devices: info.devices.clone(),
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
) -> Result<ChosenExecutor, Failure> {
    let first = ask(choice, secret, interrupt);
    if interrupt.is_some_and(|fd| wait_readable(&fd, Instant::now()).is_ok()) {
        return Err(Failure::interrupted(
            "stopped while looking for an executor",
            "start it again",
        ));
    }
    let mut stands_in = false;
    let verdict = match (first, choice) {
        (Ok(Verdict::Executor(executor)), _) => Ok(executor),
        // It may be started later, and it may have been restarted by the next session.
        (Ok(Verdict::Error(what)) | Err(what), ExecutorChoice::Relay(endpoint)) => {
            log::warn!("{what} (sessions are refused until then)");
            stands_in = true;
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
        Ok(executor) => Ok(ChosenExecutor {
            choice: match choice {
                ExecutorChoice::Relay(_) => choice.clone(),
                _ if executor.kind == "cuda" => ExecutorChoice::Cuda,
                _ => ExecutorChoice::Cpu,
            },
            stands_in: stands_in || *choice == ExecutorChoice::Auto && executor.kind == "cpu",
            executor,
        }),
        Err(what) => Err(Failure::new(
            what,
            "use --executor auto or cpu, or correct what is missing (vgpuctl doctor looks for it)",
        )),
    }
}

/// The placeholder for a mediator that does not answer at the start.
fn not_there_yet(endpoint: &Endpoint) -> control::Executor {
    control::Executor {
        kind: "relay".to_owned(),
        device: "not known yet".to_owned(),
        total_memory: 0,
        driver: String::new(),
        reason: format!("{endpoint} did not answer when this mediator started"),
        devices: Vec::new(),
    }
}

fn ask(
    choice: &ExecutorChoice,
    secret: Option<&Path>,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Verdict, String> {
    let mut probe = Probe::start(choice, secret, Instant::now())?;
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(probe.as_fd())];
        fds.extend(interrupt.map(readable));
        wait(&mut fds, Some(probe.deadline)).map_err(|error| format!("the probe: {error}"))?;
        if fds.get(1).is_some_and(is_ready) {
            probe.kill();
            probe.end();
            return Err("interrupted".to_owned());
        }
        let Some(answer) = probe.answer(Instant::now()) else {
            continue;
        };
        probe.kill();
        let status = probe.end();
        return match (answer, status) {
            (Answer::Verdict(verdict), _) => Ok(verdict),
            (Answer::Nothing(why), _) => Err(why),
            (Answer::Closed, Some(status)) => {
                Err(format!("the probe ended without an answer ({status})"))
            }
            (Answer::Closed, None) => Err("the probe ended without an answer".to_owned()),
        };
    }
}

/// Result of a probe.
pub(super) enum Answer {
    Verdict(Verdict),
    /// Why its answer cannot be used, in words.
    Nothing(String),
    /// It has closed its socket, most likely with its end.
    Closed,
}

/// A child that looks for an executor.
#[derive(Debug)]
pub(super) struct Probe {
    child: Child,
    answers: UnixStream,
    lines: LineBuffer,
    /// When it has taken too long.
    pub(super) deadline: Instant,
}

impl Probe {
    pub(super) fn start(
        choice: &ExecutorChoice,
        secret: Option<&Path>,
        now: Instant,
    ) -> Result<Self, String> {
        let spawn = || {
            let (answers, theirs) = UnixStream::pair()?;
            answers.set_nonblocking(true)?;
            let child = Command::new("/proc/self/exe")
                .arg0("vgpu-mediatord")
                .args([ARGUMENT, &choice.to_string()])
                .args(secret)
                // The order in which a configuration counts devices, and nvidia-smi.
                .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
                .stdin(OwnedFd::from(theirs))
                .stdout(io::stderr().as_fd().try_clone_to_owned()?)
                .process_group(0)
                .spawn()?;
            Ok((child, answers))
        };
        let (child, answers) =
            spawn().map_err(|error: io::Error| format!("the probe cannot be started: {error}"))?;
        Ok(Self {
            child,
            answers,
            lines: LineBuffer::new(MAX_ANSWER),
            deadline: now + PROBE_LIMIT,
        })
    }

    /// Its finding, or that nothing more is to be expected; `None` as long as it looks. Asked
    /// when it is readable or its time is over. It is to be killed then.
    pub(super) fn answer(&mut self, now: Instant) -> Option<Answer> {
        let nothing = |why: String| Answer::Nothing(format!("the probe's answer: {why}"));
        Some(match self.lines.read(&self.answers) {
            Ok(received) => match received.lines.first() {
                Some(line) => match serde_json::from_str(line) {
                    Ok(verdict) => Answer::Verdict(verdict),
                    Err(error) => nothing(error.to_string()),
                },
                None if received.closed => Answer::Closed,
                None if now < self.deadline => return None,
                None => Answer::Nothing(format!(
                    "the driver did not start within {} s",
                    PROBE_LIMIT.as_secs()
                )),
            },
            Err(error) => nothing(error.to_string()),
        })
    }

    pub(super) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }

    /// Whether the child has ended, which is collected by that.
    pub(super) fn has_ended(&mut self) -> bool {
        // An error means that there is no such child.
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the child, which is about to end.
    fn end(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + EXIT_LIMIT;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answers.as_fd()
    }
}
