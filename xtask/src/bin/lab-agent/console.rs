//! Access to the agent of a guest over its console.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wire::{self, Lines, NoAnswer, Reply, Request};

/// The folder in which `guest_create` of functions.sh notes a guest's terminal and domain.
const FOLDER: &str = "/run/lab";

/// On top of the script's own limit: starting processes is slow in an emulated machine.
const SCRIPT_START_TIME: Duration = Duration::from_secs(30);

/// Interval at which a silent guest is checked for life.
const CHECK: Duration = Duration::from_secs(3);

/// Runs a script in the guest `name`. `id` must never have been used with it.
pub(crate) fn run(name: &str, id: &str, request: &Request) -> Reply {
    let refuse = |status, why: String| crate::refusal(status, &why);
    let Ok(tty) = fs::read_to_string(format!("{FOLDER}/{name}.tty")) else {
        return refuse(125, format!("there is no guest {name}"));
    };
    // The terminal of a guest that is gone may be another guest's by now.
    if !lives(name) {
        return refuse(125, format!("guest {name} is gone"));
    }
    let mut console = match Console::open(name, tty.trim()) {
        Ok(console) => console,
        Err(error) => return refuse(125, format!("the console of guest {name}: {error}")),
    };
    let deadline = Instant::now() + Duration::from_secs(request.seconds) + SCRIPT_START_TIME;
    match wire::exchange(&mut console, id, request, wire::SILENCE, deadline) {
        Ok(reply) => reply,
        Err(NoAnswer::Line(error)) => refuse(125, format!("guest {name} is gone ({error})")),
        Err(NoAnswer::Late) => refuse(
            124,
            format!("guest {name} did not answer within {} s", request.seconds),
        ),
        Err(NoAnswer::Damaged) => refuse(124, format!("the console of guest {name} damages lines")),
    }
}

/// Identifies this boot, to tell a process of it from a later one with the same number.
pub(crate) fn boot_clock() -> String {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    seconds.replace('.', "-")
}

/// Whether the guest's domain still exists.
fn lives(name: &str) -> bool {
    let Ok(domid) = fs::read_to_string(format!("{FOLDER}/{name}.domid")) else {
        return false;
    };
    Command::new("xenstore-exists")
        .arg(format!("/local/domain/{}/console", domid.trim()))
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A guest's console, for one process at a time.
struct Console<'a> {
    name: &'a str,
    tty: File,
    _lock: Flock<File>,
    unread: Vec<u8>,
}

impl<'a> Console<'a> {
    fn open(name: &'a str, tty: &str) -> io::Result<Self> {
        let lock = File::create(format!("{FOLDER}/{name}.lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        let tty = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
            .open(tty)?;
        Ok(Self {
            name,
            tty,
            _lock: lock,
            unread: Vec::new(),
        })
    }

    fn wait(&self, wanted: PollFlags, time: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.tty.as_fd(), wanted)];
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, time) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Lines for Console<'_> {
    fn send(&mut self, text: &str) -> io::Result<()> {
        let mut left = text.as_bytes();
        let deadline = Instant::now() + SCRIPT_START_TIME;
        while !left.is_empty() {
            match self.tty.write(left) {
                Ok(n) => left = &left[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, CHECK)?;
                    if Instant::now() > deadline || !lives(self.name) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next(&mut self, deadline: Instant) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if !self.wait(PollFlags::POLLIN, left.min(CHECK))? {
                if !lives(self.name) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                continue;
            }
            let mut bytes = [0; 4096];
            match self.tty.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.unread.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
