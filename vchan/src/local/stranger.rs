#![allow(unsafe_code)]
//! Closing what a stranger may have filled.
//!
//! The process that closes the last descriptor of a file pays for its release, and that can sleep for
//! as long as somebody else likes: a TCP socket with unsent data and `SO_LINGER` for its linger time, a
//! file of a FUSE file system until its server answers. A stranger can send us such a file
//! (`SCM_RIGHTS`), and it need not be received for that: what lies unread in the queue of a Unix
//! socket is released with the socket. So nobody with a deadline closes such a descriptor: a
//! [`Stranger`] is closed where it is dropped only if that is known not to sleep, otherwise by a thread
//! made for it (or see [`keep_unclosed`]).

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

/// Threads at once. What waits for one is bounded by the descriptors that the process may have.
const MOST_THREADS: usize = 16;

/// The room that a thread needs to close something.
const STACK: usize = 64 << 10;

/// Giving more memory than this back takes time of its own, in bytes.
const QUICKLY_FREED: i64 = 64 << 20;

/// A descriptor that a stranger gave us, or a socket that a stranger can send to.
#[derive(Debug)]
pub struct Stranger<T: Into<OwnedFd>>(ManuallyDrop<T>);

impl<T: Into<OwnedFd>> Stranger<T> {
    /// Trusts it, which means that whoever drops it closes it.
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

/// Whether closing it cannot sleep. No call in here can either, also if others have the same file.
fn closes_at_once(fd: &OwnedFd) -> bool {
    match option(fd, libc::SO_DOMAIN) {
        Some(libc::AF_UNIX) if option(fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM) => {
            is_empty_stream(fd)
        }
        Some(_) => false,
        // Shared memory, which has a release of its own that gives the pages back.
        None => {
            fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
                && fstat(fd).is_ok_and(|stat| stat.st_size <= QUICKLY_FREED)
        }
    }
}

/// Ends a Unix stream, so that nothing more can come, and says whether nothing lies unread in it.
fn is_empty_stream(fd: &OwnedFd) -> bool {
    if shutdown(fd.as_raw_fd(), Shutdown::Both).is_err() {
        return false;
    }
    if option(fd, libc::SO_ACCEPTCONN) == Some(1) {
        return drain_listener(fd);
    }
    // One that is not connected could be given a queue by others who have it.
    if getpeername::<UnixAddr>(fd.as_raw_fd()).is_err() {
        return false;
    }
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int. For a Unix socket it takes no lock that a reader holds while it
    // copies.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    told == 0 && unread == 0
}

/// Takes the connections that wait; the listener is shut down, so that they do not become more.
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

/// An option of any socket; `None` if it is no socket. (nix has no `SO_DOMAIN`.)
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
    /// No threads: it waits for [`take_unclosed`].
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
            // It waits for the next thread then.
            Err(error) => log::warn!("no thread that closes a descriptor: {error}"),
        }
    }
}

/// From now on no threads close what this process drops: it is kept until somebody
/// [takes](take_unclosed) it. For a process that has a better way, such as another process that exits.
pub fn keep_unclosed() {
    let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.kept = true;
}

/// How many descriptors wait to be closed, by a thread or by whoever takes them.
pub fn unclosed() -> usize {
    let closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    closing.waiting.len()
}

/// Takes up to `most` of the descriptors that wait to be closed, first those that wait longest.
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
