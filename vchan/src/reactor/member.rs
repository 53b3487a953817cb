#![forbid(unsafe_code)]
//! A channel's side of its reactor: what a backend needs to be a doorbell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Token;
use super::core::Core;

/// What the reactor has heard for one channel, and what the channel tells it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) rang: AtomicBool,
    /// The peer's socket has hung up, or its domain is gone.
    pub(super) hung_up: AtomicBool,
    /// An index of ours has moved since the last ring.
    pub(super) moved: AtomicBool,
    /// Made when somebody wants to sleep on this channel alone; `None` if that failed.
    own: OnceLock<Option<Own>>,
}

/// For those who sleep on one channel: whatever happens to the reactor, since nobody else may be
/// there to take it, and what another thread has taken for this channel.
#[derive(Debug)]
struct Own {
    both: Epoll,
    heard: EventFd,
}

impl Slot {
    /// Wakes who sleeps on this channel alone.
    pub(super) fn wake(&self) {
        if let Some(Some(own)) = self.own.get() {
            // Fails only if the counter is full, and then it is readable already.
            let _ = own.heard.write(1);
        }
    }
}

impl Own {
    fn new(sources: BorrowedFd<'_>) -> nix::Result<Self> {
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let heard = EventFd::from_value_and_flags(0, flags)?;
        for fd in [sources, heard.as_fd()] {
            both.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self { both, heard })
    }
}

/// A channel's place on a reactor, given up when dropped.
#[derive(Debug)]
pub(crate) struct Member {
    core: Arc<Core>,
    token: Token,
    slot: Arc<Slot>,
}

impl Member {
    pub(super) fn new(core: Arc<Core>, token: Token, slot: Arc<Slot>) -> Self {
        Self { core, token, slot }
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// For [`Backend::moved`](crate::backend::Backend::moved).
    #[inline]
    pub(crate) fn moved(&self) {
        // Pairs with nothing: a step that is noticed one ring late changes little.
        self.slot.moved.store(true, Ordering::Relaxed);
    }

    /// Whether the peer's death has been noticed.
    pub(crate) fn hung_up(&self) -> bool {
        // Pairs with the store in `State::died`.
        self.slot.hung_up.load(Ordering::Acquire)
    }

    /// For [`Backend::poll_fd`](crate::backend::Backend::poll_fd).
    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        let own = self.slot.own.get().unwrap_or_else(|| self.make_own());
        match own {
            Some(own) => own.both.0.as_fd(),
            // Readable more often than it should be, but always when it should.
            None => self.core.as_fd(),
        }
    }

    #[cold]
    fn make_own(&self) -> &Option<Own> {
        self.core.between_turns(|| {
            let own = self.slot.own.get_or_init(|| {
                Own::new(self.core.sources())
                    .inspect_err(|errno| log::warn!("cannot sleep on one channel alone: {errno}"))
                    .ok()
            });
            // What was heard before there was anything to wake.
            if self.slot.rang.load(Ordering::Acquire) || self.hung_up() {
                self.slot.wake();
            }
            own
        })
    }

    /// For [`Backend::acknowledge`](crate::backend::Backend::acknowledge).
    pub(crate) fn acknowledge(&self) -> io::Result<bool> {
        // Only those who poll a descriptor of the channel's own have to make it silent.
        if let Some(own) = self.slot.own.get() {
            self.core.turn()?;
            if let Some(own) = own {
                // In this order: a ring from here on makes it readable again.
                let _ = own.heard.read();
            }
        }
        // Pairs with the store in `State::rang`.
        Ok(self.slot.rang.swap(false, Ordering::AcqRel))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.core.remove(self.token.0);
    }
}
