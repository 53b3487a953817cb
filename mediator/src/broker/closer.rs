//! Closing what local clients may have filled, in processes that end.
//!
//! A client can leave sockets in its connection (`SCM_RIGHTS`), and the last close of the connection
//! closes them too. For a TCP socket with unsent data and `SO_LINGER` it sleeps as long as the client
//! likes, but not where it happens because a process exits: see `inet_release` in the kernel. So a
//! batch of connections is passed to a child, let go of here, and closed by the child's end.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use vchan::local::{Stranger, keep_unclosed, take_unclosed, unclosed};

/// First argument of such a process.
pub const ARGUMENT: &str = "closer";

/// Connections that wait for a batch at most, while more clients are taken.
pub(super) const MOST_WAITING: usize = 64;

/// Connections of one batch.
const MOST_AT_ONCE: usize = 256;

/// Between the starts of two processes.
const START_INTERVAL: Duration = Duration::from_millis(250);

/// Processes at once: four times as many as there are while none is slow to end.
pub(super) const MOST_PROCESSES: usize = 32;

/// How long a process stays after the broker has let go. What else was started meanwhile has copies
/// until its `exec`, and must not be the last to close.
const HOLD_AFTER_RELEASE: Duration = Duration::from_secs(1);

/// A process that is still there after this time is killed.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// Runs such a process: holds what it has inherited until the broker has let go of it.
pub fn main() -> ExitCode {
    // Started through /proc/self/exe, it would be shown as `exe`.
    let _ = prctl::set_name(c"vgpu-mediatord");
    // Nothing is ever written: it returns when the broker's end is closed.
    let _ = io::stdin().read(&mut [0]);
    thread::sleep(HOLD_AFTER_RELEASE);
    ExitCode::SUCCESS
}

/// The processes that close for the broker.
#[derive(Debug)]
pub(super) struct Closers {
    running: Vec<Closer>,
    /// No process is started sooner.
    next: Instant,
}

#[derive(Debug)]
struct Closer {
    child: Child,
    /// Closes the broker's copies. Never the last ones, unless the child has died too early; then it
    /// is this thread that sleeps.
    letting_go: JoinHandle<()>,
    kill_at: Instant,
}

impl Closers {
    /// From now on what cannot be closed at once waits for this.
    pub(super) fn new(now: Instant) -> Self {
        keep_unclosed();
        Self {
            running: Vec::new(),
            next: now,
        }
    }

    /// Whether another connection may come that has to be closed in the end.
    pub(super) fn have_room(&self) -> bool {
        unclosed() < MOST_WAITING
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let start = (unclosed() > 0 && self.running.len() < MOST_PROCESSES).then_some(self.next);
        let kills = self.running.iter().map(|closer| closer.kill_at);
        kills.chain(start).min()
    }

    /// Starts what is due and collects what has ended.
    pub(super) fn work(&mut self, now: Instant) {
        self.running.retain_mut(|closer| {
            // An error means that there is no such child.
            let ended = !matches!(closer.child.try_wait(), Ok(None));
            if closer.kill_at <= now {
                // It may have ended already; looked at again should it take long.
                let _ = closer.child.kill();
                closer.kill_at = now + HOLD_AFTER_RELEASE;
            }
            !(ended && closer.letting_go.is_finished())
        });
        if unclosed() == 0 || self.running.len() >= MOST_PROCESSES || now < self.next {
            return;
        }
        self.next = now + START_INTERVAL;
        match start(take_unclosed(MOST_AT_ONCE), now) {
            Ok(closer) => self.running.push(closer),
            // Its connections wait again.
            Err(error) => log::warn!("no process that closes connections: {error}"),
        }
    }
}

impl Drop for Closers {
    fn drop(&mut self) {
        for closer in &mut self.running {
            // It may have ended already. This process ends too, and closes nothing before that.
            let _ = closer.child.kill();
        }
    }
}

fn start(batch: Vec<Stranger<OwnedFd>>, now: Instant) -> io::Result<Closer> {
    let (link, theirs) = UnixStream::pair()?;
    let inherited = |flag: FdFlag| {
        batch
            .iter()
            .try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop))
    };
    // Inherited by this child alone: no other thread of the broker starts processes.
    let spawned = inherited(FdFlag::empty())
        .map_err(io::Error::from)
        .and_then(|()| {
            Command::new("/proc/self/exe")
                .arg0("vgpu-mediatord")
                .arg(ARGUMENT)
                .env_remove("NOTIFY_SOCKET")
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
        });
    inherited(FdFlag::FD_CLOEXEC)?;
    let mut child = spawned?;
    let let_go = move || {
        batch.into_iter().for_each(|fd| drop(fd.trust()));
        drop(link);
    };
    let letting_go = thread::Builder::new()
        .name("let-go".into())
        .stack_size(64 << 10)
        .spawn(let_go)
        .inspect_err(|_| {
            // The batch waits again. The child is a zombie until this process ends; it has no work.
            let _ = child.kill();
        })?;
    Ok(Closer {
        child,
        letting_go,
        kill_at: now + KILL_AFTER,
    })
}
