//! A worker's process from the broker's side: how it is started, what goes to and fro, and its end.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vchan::local::Stranger;

use crate::lines::{LineBuffer, LooseLines, Received};
use crate::worker;
use crate::worker::link::MAX_LINE;
use crate::worker::spec::Start;

/// The process, its link and its log.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    link: UnixStream,
    lines: LineBuffer,
    /// Its standard error, until that is over.
    log: Option<UnixStream>,
    log_lines: LooseLines,
    /// The user that it is, of those who have nothing but a worker.
    pub(super) user: Option<u32>,
    /// The link is over; the process may still be there.
    pub(super) silent: bool,
}

impl Process {
    /// Starts a worker, shown as `label`. `guest` becomes its standard input, the link a descriptor that an argument
    /// names, and standard output is the log: a preloaded library may print what it likes.
    pub(super) fn start(
        label: &str,
        start: &Start,
        guest: Option<Stranger<OwnedFd>>,
    ) -> io::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        link.set_nonblocking(true)?;
        let (log, their_log) = UnixStream::pair()?;
        log.set_nonblocking(true)?;
        // A failed start closes it, and then this process must have another.
        let copy = guest.as_ref().map(|guest| guest.try_clone()).transpose()?;
        // Inherited by this child alone: no other thread of the broker starts processes.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let descriptor = theirs.as_raw_fd().to_string();
        let child = Command::new("/proc/self/exe")
            .arg0("vgpu-mediatord")
            .args([worker::ARGUMENT, label, &descriptor])
            .arg(serde_json::to_string(start)?)
            .env_remove("NOTIFY_SOCKET")
            // Compiled kernels of a guest must not reach another guest or this user's files.
            .env("CUDA_CACHE_DISABLE", "1")
            .envs(start.driver_environment())
            .stdin(copy.map_or_else(Stdio::null, Stdio::from))
            .stdout(OwnedFd::from(their_log.try_clone()?))
            .stderr(OwnedFd::from(their_log))
            // A Ctrl-C at the terminal is for the broker, which lets the workers finish.
            .process_group(0)
            .spawn()?;
        drop(theirs);
        // The worker has it and keeps it until it reads the word, so this close is never the last one.
        drop(guest.map(Stranger::trust));
        let process = Self {
            child,
            link,
            lines: LineBuffer::new(MAX_LINE),
            log: Some(log),
            log_lines: LooseLines::default(),
            user: start.confinement().user,
            silent: false,
        };
        if let Err(error) = process.tell(&[worker::BEGIN]) {
            log::debug!("{label}: its worker ended as it began: {error}");
        }
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the lines that have come.
    ///
    /// # Errors
    /// As of [`LineBuffer::read`].
    pub(super) fn read(&mut self) -> io::Result<Received> {
        let received = self.lines.read(&self.link)?;
        self.silent |= received.closed;
        Ok(received)
    }

    /// Sends some bytes without waiting.
    ///
    /// # Errors
    /// It does not take them.
    pub(super) fn tell(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.link).write_all(bytes)
    }

    /// Sends a line with a descriptor, without waiting.
    ///
    /// # Errors
    /// It does not take it whole.
    pub(super) fn tell_with(&self, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !with.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.link, &[IoSlice::new(line)], &mut with, flags)? {
            n if n == line.len() => Ok(()),
            n => Err(io::Error::other(format!(
                "it took {n} of {} bytes",
                line.len()
            ))),
        }
    }

    /// The pipe of its log, while it is open.
    pub(super) fn log(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(AsFd::as_fd)
    }

    /// Takes some of what it has logged.
    pub(super) fn logged(&mut self) -> Vec<String> {
        let Some(log) = &self.log else {
            return Vec::new();
        };
        let (lines, open) = self.log_lines.read(log);
        if !open {
            self.log = None;
        }
        lines
    }

    /// Ends it at once.
    pub(super) fn end(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.link.shutdown(Shutdown::Both);
    }

    /// Whether it has ended; collects its status.
    pub(super) fn try_wait(&mut self) -> Option<ExitStatus> {
        // An error means that there is no such child, which cannot be; it would be over then.
        self.child.try_wait().ok().flatten()
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}
