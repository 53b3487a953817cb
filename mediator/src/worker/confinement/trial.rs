//! A process that does nothing but give up what a worker gives up, and says what of it worked: for the
//! mediator's start, so that it does not find out with its first guest, and for `vgpuctl doctor`.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use vgpu_transport::output::write_all;

use super::{Needs, Protection, Settings, enclose};
use crate::print::print_error;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// First argument of such a process.
pub const ARGUMENT: &str = "confinement-trial";

/// The process: `arguments` are the settings, and whether CUDA is needed.
pub fn main(arguments: &[String]) -> ExitCode {
    // Standard output is for preloaded libraries.
    let answered = serde_json::to_vec(&try_all(arguments))
        .map_err(io::Error::from)
        .and_then(|line| write_all(&io::stdin(), &line));
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("vgpu-mediatord {ARGUMENT}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn try_all(arguments: &[String]) -> Result<Vec<Protection>, String> {
    let [settings, cuda] = arguments else {
        return Err("it is started by vgpu-mediatord, not by hand".to_owned());
    };
    let settings: Settings = serde_json::from_str(settings).map_err(|error| error.to_string())?;
    let needs = Needs {
        cuda: cuda == "cuda",
        ..Needs::default()
    };
    enclose(settings, needs)?.seal()
}

/// Tries it.
///
/// # Errors
/// In words: a worker with these settings cannot be confined as they say, or no process can be started.
pub fn run(settings: &Settings, cuda: bool) -> Result<Vec<Protection>, String> {
    let text = serde_json::to_string(settings).map_err(|error| error.to_string())?;
    let spawn = || {
        let (answer, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("vgpu-mediatord")
            .args([ARGUMENT, &text, if cuda { "cuda" } else { "cpu" }])
            .stdin(OwnedFd::from(theirs))
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            .spawn()?;
        Ok((child, answer))
    };
    let failed = |error: io::Error| format!("the trial cannot be run: {error}");
    let (mut child, answer) = spawn().map_err(failed)?;
    let mut line = Vec::new();
    let read = answer.take(MAX_ANSWER).read_to_end(&mut line);
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    let answer: Result<Vec<Protection>, String> = serde_json::from_slice(&line)
        .map_err(|error| format!("the trial ended without an answer ({status}; {error})"))?;
    answer
}
