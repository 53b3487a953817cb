#![forbid(unsafe_code)]
//! The flags through which a reactor and one of its channels communicate.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Events received for one channel, and that channel's notes to the reactor.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) rang: AtomicBool,
    /// The peer's socket has hung up, or its domain is gone.
    pub(super) hung_up: AtomicBool,
    /// An index of this side has moved since the last ring.
    pub(super) moved: AtomicBool,
    /// Made when a thread first sleeps on this channel alone; `None` if that failed.
    pub(super) own: OnceLock<Option<Own>>,
}

/// For threads that sleep on one channel: wakes them for any event of the reactor, since there may
/// be no other thread to take it, and for events that another thread has taken for this channel.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) both: Epoll,
    pub(super) heard: EventFd,
}

impl Slot {
    /// Wakes the threads that sleep on this channel alone.
    pub(super) fn wake(&self) {
        if let Some(Some(own)) = self.own.get() {
            // Fails only if the counter is full, and then it is readable already.
            let _ = own.heard.write(1);
        }
    }
}

impl Own {
    pub(super) fn new(sources: BorrowedFd<'_>) -> nix::Result<Self> {
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let heard = EventFd::from_value_and_flags(0, flags)?;
        for fd in [sources, heard.as_fd()] {
            both.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self { both, heard })
    }
}
