//! `--pipe`: standard input to the channel, the channel to standard output.
//!
//! Bytes go between the ring and the two descriptors directly; the kernel's copy is the only one.
//!
//! The wire format has no half-close, so this command decides when a transfer is over:
//! * when the peer closes and everything it sent has been written out: an error if it has not read all that was
//!   sent, or more lies in standard input;
//! * when standard input has been sent and read by the peer, the peer waits for more, and nothing
//!   has come from it for `--linger`. A peer that is merely slow holds bytes and does not wait for
//!   more, so its answer is not cut off. An input that was empty from the start does not count,
//!   unless it is a regular file: it usually means that this side only receives.

use std::fs::OpenOptions;
use std::io::{self, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, lseek};
use vchan::{Channel, Error, Reader, Writer};
use vgpu_cli::Failure;

use crate::progress::{Meter, Progress};
use crate::stream::{unless_gone, whenever};

/// Time for the peer to read the rest before a close gives up.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// A silent peer gets this many times `--linger` before it is given up: a peer that polls the ring
/// without ever asking to be woken looks the same as one that is still at work.
const DOUBT: u32 = 30;

#[derive(Debug, Default)]
struct Shared {
    /// Bytes received so far.
    received: AtomicU64,
    /// Bytes sent so far.
    sent: AtomicU64,
    /// Everything received has been written out, and this side waits for more.
    all_written: AtomicBool,
    /// This side has decided to close.
    closing: AtomicBool,
    /// Why the sending thread ended early.
    failure: Mutex<Option<Failure>>,
}

impl Shared {
    fn fail(&self, failure: Failure) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// Why the sending thread ended early, if it did; told once.
    fn failure(&self) -> Result<(), Failure> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take().map_or(Ok(()), Err)
    }
}

pub(crate) fn run(channel: Channel, linger: Duration, progress: &Progress) -> Result<(), Failure> {
    let input = Input::standard();
    let sending = Arc::new(progress.meter("sent", input.bytes));
    let receiving = progress.meter("received", None);
    let (reader, writer) = channel.split()?;
    let shared = Arc::new(Shared::default());
    let writer = Arc::new(Mutex::new(writer));
    let sender = {
        let (shared, writer) = (Arc::clone(&shared), Arc::clone(&writer));
        let sending = Arc::clone(&sending);
        // Never joined unless it closes: it may be waiting for a terminal.
        thread::spawn(move || {
            if let Err(failure) = send(&shared, &writer, input, linger, &sending) {
                shared.fail(failure);
            }
        })
    };
    let received = receive(&shared, reader, &receiving);
    if shared.closing.load(Ordering::Acquire) {
        let _ = sender.join();
    }
    sending.done();
    received?;
    // The sending thread reads its input while it has the writer, and tells before it lets go if that could not be sent.
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    shared.failure()?;
    if !shared.closing.load(Ordering::Acquire) {
        // The peer closed first: check whether it had read everything sent by then, and whether there was more to send.
        writer.drain(Instant::now())?;
        if has_more(&stdin()) {
            return Err(Error::PeerClosed { unread: 0 }.into());
        }
    }
    Ok(())
}

/// Whether input lies there that nobody will read. Takes a byte of it.
fn has_more(input: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        && matches!(nix::unistd::read(input.as_fd(), &mut [0]), Ok(1..))
}

fn receive(shared: &Shared, mut reader: Reader, meter: &Meter) -> Result<(), Failure> {
    let output = output().map_err(|error| Failure::standard("output", &error))?;
    let step = step(reader.ring_bytes());
    let deadline = whenever();
    loop {
        shared.all_written.store(true, Ordering::Release);
        let bytes = match reader.peek(1, deadline) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => bytes,
            Err(Error::Closed) if shared.closing.load(Ordering::Acquire) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        shared.all_written.store(false, Ordering::Release);
        let n = bytes
            .up_to(step)
            .write_to(&output, deadline)
            .map_err(|error| Failure::standard("output", &error))?;
        shared.received.fetch_add(n as u64, Ordering::Relaxed);
        meter.add(n);
        match reader.consume(n) {
            Err(Error::Closed) if shared.closing.load(Ordering::Acquire) => return Ok(()),
            outcome => outcome?,
        }
    }
    // A side that only takes what we send need not end a stream of its own.
    let only_sent =
        shared.sent.load(Ordering::SeqCst) > 0 && shared.received.load(Ordering::Relaxed) == 0;
    match only_sent {
        true => Ok(()),
        false => unless_gone(reader.peer_end()?),
    }
}

fn send(
    shared: &Shared,
    writer: &Mutex<Writer>,
    input: Input,
    linger: Duration,
    meter: &Meter,
) -> Result<(), Failure> {
    let lock = || writer.lock().unwrap_or_else(PoisonError::into_inner);
    let stdin = stdin();
    // Bytes sent so far are still delivered, but the stream is not marked as complete.
    let failed = |mut writer: MutexGuard<'_, Writer>, error: io::Error| {
        shared.closing.store(true, Ordering::Release);
        let _ = writer.drain(Instant::now() + CLOSE_LIMIT);
        writer.abandon();
        Failure::standard("input", &error)
    };
    // Told while the writer is held: who has it next must not take what was read and not sent for nothing.
    let gone = |writer: MutexGuard<'_, Writer>, error: Error| {
        shared.fail(error.into());
        drop(writer);
        Ok(())
    };
    let step = step(lock().ring_bytes());
    let deadline = whenever();
    let mut sent = input.bytes.is_some();
    loop {
        // Without the lock: this may take for ever, and ending the transfer needs the writer.
        wait_readable(stdin.as_fd()).map_err(|errno| failed(lock(), errno.into()))?;
        let mut writer = lock();
        let room = match writer.reserve(1, deadline) {
            Ok(room) => room,
            Err(error) => return gone(writer, error),
        };
        match room.up_to(step).read_from(&stdin, Instant::now()) {
            Ok(0) => break,
            Ok(n) => {
                // First: the peer may be gone the moment after it has seen the bytes.
                shared.sent.fetch_add(n as u64, Ordering::SeqCst);
                if let Err(error) = writer.commit(n) {
                    return gone(writer, error);
                }
                meter.add(n);
                sent = true;
            }
            // Another process has read the input first.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(failed(writer, error)),
        }
    }
    if !sent {
        return Ok(());
    }
    lock().drain(deadline)?;
    meter.done();
    let mut silent = 0;
    loop {
        let before = shared.received.load(Ordering::Relaxed);
        thread::sleep(linger);
        // Pairs with the stores in `receive`: the count is at least as recent as the flag.
        if !shared.all_written.load(Ordering::Acquire)
            || shared.received.load(Ordering::Relaxed) != before
        {
            silent = 0;
            continue;
        }
        silent += 1;
        if lock().peer_awaits_data() || silent >= DOUBT {
            break;
        }
    }
    shared.closing.store(true, Ordering::Release);
    Ok(lock().close_now(Instant::now() + CLOSE_LIMIT)?)
}

/// Standard input, with its length if it is a regular file.
#[derive(Debug, Clone, Copy)]
struct Input {
    /// Bytes left in it, if it is a regular file.
    bytes: Option<u64>,
}

impl Input {
    fn standard() -> Self {
        let stdin = stdin();
        let bytes = fstat(&stdin)
            .ok()
            .filter(|stat| file_type(stat.st_mode) == SFlag::S_IFREG)
            .map(|stat| {
                let at = lseek(&stdin, 0, Whence::SeekCur).unwrap_or(0);
                u64::try_from(stat.st_size.saturating_sub(at)).unwrap_or(0)
            });
        Self { bytes }
    }
}

/// Standard output. A blocking pipe is reopened without blocking, which does not affect other
/// holders of the pipe: each call then writes as much as the pipe has room for.
fn output() -> io::Result<OwnedFd> {
    let stdout = stdout();
    let fd = stdout.as_fd();
    if file_type(fstat(fd)?.st_mode) == SFlag::S_IFIFO {
        let again = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/proc/self/fd/1");
        if let Ok(file) = again {
            return Ok(file.into());
        }
    }
    fd.try_clone_to_owned()
}

fn file_type(mode: nix::sys::stat::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// Bytes moved at a time: the other side works on one part while the next is moved.
fn step(ring_bytes: usize) -> usize {
    (ring_bytes / 4).clamp(1 << 10, 128 << 10)
}

/// Waits, with no deadline, until there is something to read, the end, or an error.
fn wait_readable(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map(drop),
        }
    }
}
