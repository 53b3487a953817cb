#![allow(unsafe_code)]
//! Closing descriptors that a stranger may have filled.
//!
//! The process that closes the last descriptor of a file pays for its release, which can sleep for
//! as long as somebody else likes: a TCP socket with unsent data and `SO_LINGER` for its linger
//! time, a file of a FUSE file system until its server answers. A stranger can send us such a file
//! (`SCM_RIGHTS`), even without our receiving it: messages unread in the queue of a Unix socket are
//! released with the socket. So no code with a deadline closes such a descriptor: a [`Stranger`] is
//! closed where it is dropped only if that is known not to sleep, and otherwise by a thread made
//! for it (or see [`keep_unclosed`]).

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{Shutdown, UnixAddr, getpeername, shutdown};
use nix::sys::stat::fstat;

/// Most closing threads at once. The descriptors that wait for one are bounded by the process's
/// limit on descriptors.
const MOST_THREADS: usize = 16;

/// Stack size of a closing thread, in bytes.
const STACK: usize = 64 << 10;

/// A file with more memory than this, in bytes, takes noticeable time to free.
const QUICKLY_FREED: i64 = 64 << 20;

/// A descriptor that a stranger gave us, or a socket that a stranger can send to.
#[derive(Debug)]
pub struct Stranger<T: Into<OwnedFd>>(ManuallyDrop<T>);

impl<T: Into<OwnedFd>> Stranger<T> {
    /// Unwraps the descriptor. From then on its holder pays for closing it.
    #[must_use]
    pub fn trust(mut self) -> T {
        // SAFETY: taken out once: `self` is forgotten below and does not drop.
        let inner = unsafe { ManuallyDrop::take(&mut self.0) };
        std::mem::forget(self);
        inner
    }
}

impl<T: Into<OwnedFd>> From<T> for Stranger<T> {
    fn from(inner: T) -> Self {
        Self(ManuallyDrop::new(inner))
    }
}

impl<T: Into<OwnedFd>> Deref for Stranger<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Into<OwnedFd> + AsFd> AsFd for Stranger<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: Into<OwnedFd>> Drop for Stranger<T> {
    fn drop(&mut self) {
        // SAFETY: taken out once, as `self` goes.
        let fd: OwnedFd = unsafe { ManuallyDrop::take(&mut self.0) }.into();
        if !closes_at_once(&fd) {
            close_elsewhere(fd);
        }
    }
}

/// Whether closing it cannot sleep. No call in here can either, even if others hold the same file.
fn closes_at_once(fd: &OwnedFd) -> bool {
    match option(fd, libc::SO_DOMAIN) {
        Some(libc::AF_UNIX) if option(fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM) => {
            is_empty_stream(fd)
        }
        Some(_) => false,
        // Shared memory, whose own release function gives the pages back.
        None => {
            fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
                && fstat(fd).is_ok_and(|stat| stat.st_size <= QUICKLY_FREED)
        }
    }
}

/// Shuts a Unix stream down, so that nothing more can arrive, and returns whether nothing is unread
/// in it.
fn is_empty_stream(fd: &OwnedFd) -> bool {
    if shutdown(fd.as_raw_fd(), Shutdown::Both).is_err() {
        return false;
    }
    if option(fd, libc::SO_ACCEPTCONN) == Some(1) {
        return drain_listener(fd);
    }
    // An unconnected socket could be given a queue by other holders.
    if getpeername::<UnixAddr>(fd.as_raw_fd()).is_err() {
        return false;
    }
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int. For a Unix socket it takes no lock that a reader holds while it
    // copies.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    told == 0 && unread == 0
}

/// Takes the connections that wait; the listener is shut down, so that no more arrive.
fn drain_listener(fd: &OwnedFd) -> bool {
    loop {
        let flags = libc::SOCK_CLOEXEC;
        // SAFETY: null for an address that is not wanted. A listener that is shut down never waits.
        let taken = unsafe {
            libc::accept4(
                fd.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                flags,
            )
        };
        match Errno::result(taken) {
            // SAFETY: the kernel has just made it; nobody else knows its number.
            Ok(taken) => drop(Stranger::from(unsafe { OwnedFd::from_raw_fd(taken) })),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            // The queue is empty.
            Err(Errno::EINVAL | Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
}

/// An option of any socket; `None` if it is not a socket. (nix has no `SO_DOMAIN`.)
pub(super) fn option(fd: &impl AsFd, option: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the kernel writes at most `length` bytes, which `value` has.
    let told = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (told == 0).then_some(value)
}

#[derive(Debug)]
struct Closing {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
    /// No threads: descriptors wait for [`take_unclosed`].
    kept: bool,
}

static CLOSING: Mutex<Closing> = Mutex::new(Closing {
    waiting: VecDeque::new(),
    threads: 0,
    kept: false,
});

fn close_elsewhere(fd: OwnedFd) {
    // Nothing in here panics while it is locked.
    let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.waiting.push_back(fd);
    if !closing.kept && closing.threads < MOST_THREADS {
        let thread = thread::Builder::new()
            .name("vchan-close".into())
            .stack_size(STACK);
        match thread.spawn(close_those_that_wait) {
            Ok(_) => closing.threads += 1,
            // The descriptor waits for the next thread then.
            Err(error) => log::warn!("no thread that closes a descriptor: {error}"),
        }
    }
}

/// From now on no threads close the descriptors that this process drops: they are kept until
/// [`take_unclosed`]. For a process that has a better way, such as another process that exits.
pub fn keep_unclosed() {
    let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.kept = true;
}

/// Descriptors that wait to be closed, by a thread or through [`take_unclosed`].
pub fn unclosed() -> usize {
    let closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.waiting.len()
}

/// Takes up to `most` of the descriptors that wait to be closed, the oldest first.
pub fn take_unclosed(most: usize) -> Vec<Stranger<OwnedFd>> {
    let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    let count = most.min(closing.waiting.len());
    closing.waiting.drain(..count).map(Stranger::from).collect()
}

fn close_those_that_wait() {
    loop {
        let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fd) = closing.waiting.pop_front() else {
            closing.threads -= 1;
            return;
        };
        drop(closing);
        drop(fd);
    }
}
