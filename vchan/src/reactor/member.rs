#![forbid(unsafe_code)]
//! A channel's side of its reactor: the parts that a backend needs to be a doorbell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xen_sys::{EventChannels, Port};

use super::core::{Core, Place};
use super::slot::{Own, Slot};
use super::token::Token;
use super::watched::Death;
use crate::error::{Error, Result};
use crate::local::bell::Bell;
use crate::local::stranger::Stranger;

/// A channel's place on a reactor, given up when dropped.
#[derive(Debug)]
pub(crate) struct Member {
    core: Arc<Core>,
    token: Token,
    slot: Arc<Slot>,
}

impl Member {
    /// Puts a channel with a local bell on the reactor.
    pub(crate) fn with_bell(
        core: &Arc<Core>,
        bell: Arc<Bell>,
        stream: Arc<Stranger<UnixStream>>,
    ) -> Result<Self> {
        Ok(Self::at(core, core.add_bell(bell, stream)?))
    }

    /// Puts a channel with an event channel on the reactor. `open` makes the handle for the first
    /// one; `bind` binds the port.
    pub(crate) fn with_port<E: From<Error>>(
        core: &Arc<Core>,
        death: Option<Death>,
        open: impl FnOnce() -> Result<Box<dyn EventChannels>>,
        bind: impl FnOnce(&dyn EventChannels) -> Result<Port, E>,
    ) -> Result<(Self, Arc<dyn EventChannels>, Port), E> {
        let (place, events, port) = core.add_port(death, open, bind)?;
        Ok((Self::at(core, place), events, port))
    }

    fn at(core: &Arc<Core>, place: Place) -> Self {
        Self {
            core: Arc::clone(core),
            token: place.token,
            slot: place.slot,
        }
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Implements [`Backend::moved`](crate::backend::Backend::moved).
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

    /// Implements [`Backend::poll_fd`](crate::backend::Backend::poll_fd).
    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        let own = self.slot.own.get().unwrap_or_else(|| self.make_own());
        match own {
            Some(own) => own.both.0.as_fd(),
            // Readable more often than necessary, but never too seldom.
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
            // Events received before this descriptor existed.
            if self.slot.rang.load(Ordering::Acquire) || self.hung_up() {
                self.slot.wake();
            }
            own
        })
    }

    /// Implements [`Backend::acknowledge`](crate::backend::Backend::acknowledge).
    pub(crate) fn acknowledge(&self) -> io::Result<bool> {
        // Only a channel with a descriptor of its own has one to silence.
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
