//! Printed output of kernels on a GPU.
//!
//! The driver keeps it on the device, 1 MiB of it, the oldest overwritten. In a launch, in a call that
//! synchronises and in few others it formats what is there, in the calling thread, and writes it to the C
//! library's `stdout`. So a worker, which is a process of one session, makes its standard output a pipe
//! before the driver is there, and a thread takes from it all the time, or the driver would wait in its call.
//!
//! A kernel can have much written by few bytes, as `%100000000d` does. What is kept is bounded; a call that
//! does not end for all that it writes ends the process.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{dup2_stdout, pipe2};
use vgpu_ptx::Output;
use vgpu_transport::clock;

use crate::logging;

/// Bytes taken in one go, so that the other of two threads has its turn.
const AT_ONCE: usize = 1 << 20;

/// Bytes of output that are kept until somebody takes them: at first, and at most where the device keeps more.
pub(super) const KEPT: usize = 1 << 20;
pub(super) const MOST_KEPT: usize = 16 << 20;

/// How long nothing comes before a call counts as over.
const PAUSE_MS: u16 = 100;

/// How long one call of the driver may write.
const LONGEST_CALL: Duration = Duration::from_secs(30);

/// This process's standard output, since [`capture`].
static CAPTURE: OnceLock<Capture> = OnceLock::new();

/// Makes standard output a pipe that [`captured`] reads. Called before the driver is loaded.
///
/// # Errors
/// There is no descriptor left.
pub(super) fn capture() -> io::Result<()> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // The driver waits where it is full, and what reads it does not.
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    dup2_stdout(write)?;
    let _ = CAPTURE.set(Capture::of(read.into()));
    Ok(())
}

/// The output captured so far; starts the thread that reads it. `None` if [`capture`] was not called.
pub(super) fn captured() -> Option<&'static Capture> {
    static THREAD: Once = Once::new();
    let capture = CAPTURE.get()?;
    // Not in `capture`: a process that is to be confined has one thread.
    THREAD.call_once(|| {
        let taking = thread::Builder::new().name("printed".into());
        let started = taking.spawn(|| capture.take_in_always());
        capture.started(started.is_ok());
    });
    capture
        .has_thread
        .get()
        .is_some_and(|has| *has)
        .then_some(capture)
}

/// Output of the driver on its way to the guest.
pub(super) struct Capture {
    pipe: io::PipeReader,
    kept: Mutex<Output>,
    /// Counts what the thread that calls the driver does.
    looks: AtomicU64,
    has_thread: OnceLock<bool>,
}

impl Capture {
    fn of(pipe: io::PipeReader) -> Self {
        Self {
            pipe,
            kept: Mutex::default(),
            looks: AtomicU64::new(0),
            has_thread: OnceLock::new(),
        }
    }

    fn started(&self, has: bool) {
        let _ = self.has_thread.set(has);
    }

    /// Output written so far.
    pub(super) fn kept(&self) -> MutexGuard<'_, Output> {
        // SAFETY: without a stream it writes out every stream that is open for writing; any thread may call it.
        unsafe { libc::fflush(ptr::null_mut()) };
        self.take_in().0
    }

    /// The calling thread, which calls the driver, is not in such a call.
    pub(super) fn look(&self) {
        // Relaxed: nothing is published along with it.
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what is in the pipe, and says whether there was something.
    fn take_in(&self) -> (MutexGuard<'_, Output>, bool) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut part = [0; 16 << 10];
        let mut taken = 0;
        while taken < AT_ONCE {
            match (&self.pipe).read(&mut part) {
                Ok(n @ 1..) => {
                    kept.push(&part[..n]);
                    taken += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // There is no more. The other end is this process's own and stays open.
                Ok(0) | Err(_) => break,
            }
        }
        (kept, taken > 0)
    }

    fn take_in_always(&self) -> ! {
        let mut watch = Watch::default();
        loop {
            let mut pipe = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            let timeout = match watch.since {
                Some(_) => PollTimeout::from(PAUSE_MS),
                None => PollTimeout::NONE,
            };
            // What is wrong with it shows in reading it.
            let _ = poll(&mut pipe, timeout);
            let some = self.take_in().1;
            let looks = self.looks.load(Ordering::Relaxed);
            if watch.is_too_long(some, looks, clock::now()) {
                let limit = LONGEST_CALL.as_secs();
                log::error!(
                    "kernels printed so much that the driver wrote it for {limit} s: this session ends"
                );
                logging::flush();
                // Other threads may be in the driver and hold its locks.
                process::abort();
            }
        }
    }
}

/// Watches for a call of the driver that writes without end.
#[derive(Debug, Default)]
struct Watch {
    /// Since when it has written, and how often the thread that calls it had looked by then.
    since: Option<(Instant, u64)>,
}

impl Watch {
    /// Whether the driver has written for too long, now that it has written `some` or nothing.
    fn is_too_long(&mut self, some: bool, looks: u64, now: Instant) -> bool {
        match self.since {
            _ if !some => self.since = None,
            Some((since, then)) if then == looks => {
                return now.saturating_duration_since(since) > LONGEST_CALL;
            }
            _ => self.since = Some((now, looks)),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        const LINE: &[u8] = b"sixteen letters\n";
        const LINES: usize = 3 << 16;
        let (read, mut write) = io::pipe().expect("a pipe");
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our own");
        let capture: &Capture = Box::leak(Box::new(Capture::of(read)));
        thread::spawn(|| capture.take_in_always());
        for _ in 0..LINES {
            // Waits for the thread again and again.
            write.write_all(LINE).expect("taken");
        }
        let printed = capture.kept().take(usize::MAX);
        assert_eq!(printed.text, LINE.repeat(1 << 16));
        assert_eq!(printed.lost, ((LINES - (1 << 16)) * LINE.len()) as u64);
        assert!(capture.kept().is_empty());
    }

    #[test]
    fn only_one_call_that_writes_all_the_time_is_too_long() {
        let start = clock::now();
        let at = |s| start + Duration::from_secs(s);
        let mut watch = Watch::default();
        assert!(!watch.is_too_long(true, 1, at(0)));
        assert!(!watch.is_too_long(true, 1, at(30)));
        assert!(watch.is_too_long(true, 1, at(31)));
        // Another call.
        assert!(!watch.is_too_long(true, 2, at(40)));
        assert!(!watch.is_too_long(true, 2, at(60)));
        // A pause in between, and nobody who looks, as where the guest does nothing.
        assert!(!watch.is_too_long(false, 2, at(61)));
        assert!(!watch.is_too_long(true, 2, at(200)));
        assert!(!watch.is_too_long(true, 2, at(230)));
        assert!(watch.is_too_long(true, 2, at(231)));
    }
}
