//! Running one script.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::serving::{MAX_ERR, MAX_OUT};
use crate::wire::{Reply, Request};

/// Shell functions for scripts, in the lab's machines.
const FUNCTIONS: &str = "/lab/functions.sh";

/// Status of a script that was killed at its limit.
const KILLED: i32 = 137;

/// Runs the script with its output in files of `folder`, so that background processes that keep
/// them open do not block this process.
pub(crate) fn run(request: &Request, folder: &Path) -> Reply {
    try_run(request, folder)
        .unwrap_or_else(|error| crate::refusal(126, &format!("lab: cannot run a script: {error}")))
}

fn try_run(request: &Request, folder: &Path) -> io::Result<Reply> {
    let path = |name: &str| folder.join(name);
    let mut script = format!("[ ! -e {FUNCTIONS} ] || . {FUNCTIONS}\n").into_bytes();
    script.extend_from_slice(&request.script);
    fs::write(path("script"), script)?;
    // In a group of its own, so that a script that runs too long ends with its children; a process
    // that must outlive the script starts with setsid.
    let mut child = Command::new("sh")
        .arg(path("script"))
        .stdin(Stdio::null())
        .stdout(File::create(path("out"))?)
        .stderr(File::create(path("err"))?)
        .process_group(0)
        .spawn()?;
    let group = child.id();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait()));
    let limit = Duration::from_secs(request.seconds.max(1));
    let mut note = "";
    let status = match ended.recv_timeout(limit) {
        Ok(status) => status_of(status?),
        Err(_) => {
            // Its members are still ours to kill: the script itself has not been waited for.
            Command::new("kill")
                .args(["-KILL", "--", &format!("-{group}")])
                .status()?;
            note = "lab: killed at its limit\n";
            let _ = ended.recv_timeout(limit);
            KILLED
        }
    };
    let mut err = last_of(&path("err"), MAX_ERR - note.len())?;
    err.extend_from_slice(note.as_bytes());
    Ok(Reply {
        status,
        out: last_of(&path("out"), MAX_OUT)?,
        err,
    })
}

fn status_of(status: std::process::ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    }
}

fn last_of(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    bytes.drain(..bytes.len().saturating_sub(most));
    Ok(bytes)
}
