#![forbid(unsafe_code)]
//! Many channels, one descriptor, one loop.
//!
//! A channel outside a reactor costs an event-channel handle and a descriptor to poll. A
//! [`Reactor`] has one handle on `/dev/xen/evtchn` (opened with the first channel over Xen) and one
//! descriptor for any number of channels, over Xen and [`local`](crate::local) alike.
//! [`Reactor::wait`] reports which of them may make progress:
//!
//! ```
//! use std::collections::HashMap;
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use vchan::reactor::Reactor;
//! use vchan::{Result, local};
//!
//! # fn main() -> Result<()> {
//! let soon = || Instant::now() + Duration::from_secs(10);
//! let mut reactor = Reactor::new()?;
//! let mut channels = HashMap::new();
//! # let mut clients = Vec::new();
//! for _ in 0..3 {
//!     let (one, other) = UnixStream::pair().unwrap();
//! #   let client = std::thread::spawn(move || local::connect_on(other, soon()));
//!     let channel = local::serve_on_reactor(reactor.handle(), one, 4096, soon())?;
//! #   let mut client = client.join().unwrap()?;
//! #   client.write_all(b"hello", soon())?;
//! #   clients.push(client);
//!     let token = channel.token().expect("it is on a reactor");
//!     channels.insert(token, channel);
//! }
//! let (mut ready, mut buf) = (Vec::new(), [0; 1024]);
//! # let mut heard = 0;
//! while !channels.is_empty() {
//!     reactor.wait(&mut ready, soon())?;
//!     for token in ready.drain(..) {
//!         let Some(channel) = channels.get_mut(&token) else { continue };
//!         // A bounded amount for each, so that all get their turn.
//!         match channel.try_read(&mut buf)? {
//!             None => {}
//!             Some(0) => drop(channels.remove(&token)),
//!             Some(_) => reactor.handle().again(token), // there may be more
//!         }
//! #       heard += 1;
//! #       if heard == 3 { clients.clear() }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//! * A token comes when the peer has rung or is found dead, once however often it rang. It means
//!   that a call *may* make progress: the call may still report "would block".
//! * Readiness is edge-triggered: after a token, go on until `try_read` or `try_write` reports that
//!   it would block, or request the token again with [`Handle::again`]. A new channel needs its
//!   first `try_*` calls without a token.
//! * Tokens come in the order in which they became ready, and one requested again goes to the end:
//!   no channel waits for more than one turn of all others.
//! * Every channel keeps all its calls. Those that wait may be used on any thread, including the
//!   one that otherwise sits in [`Reactor::wait`]; meanwhile they do the reactor's work, and the
//!   next [`Reactor::wait`] reports the events they took for other channels. A channel on which a
//!   call has slept holds two more descriptors from then on.
//! * Channels outlive their reactor: without it, calls that wait and [`AsFd`] of the channel go on.
//!
//! # Peers that ring without end
//! A peer can raise its event channel again as soon as it has been unmasked. After 64 rings in a
//! row that move nothing, its channel is unmasked late: after 1 ms, then 2, up to 32 ms. An index
//! that moves, or a tenth of a second of silence, resets this. Until then it costs this side some
//! 30 short checks a second, and the other channels nothing.

mod core;
mod limiter;
mod member;
mod slot;
mod state;
pub(crate) mod token;
mod watched;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use self::core::Core;
use crate::error::{Error, Result};
use crate::waiting::poll::poll_readable;

/// For tests: event channels without Xen.
#[cfg(test)]
pub(crate) use self::core::tests as device_in_memory;
pub(crate) use member::Member;
pub use token::Token;
pub(crate) use watched::Death;

/// One poll loop for many channels; see the [module](self).
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
}

/// A handle that puts channels on a [`Reactor`], from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    core: Arc<Core>,
}

impl Reactor {
    /// A reactor without channels.
    ///
    /// # Errors
    /// [`Error::Os`] when no descriptors can be allocated; it takes four.
    pub fn new() -> Result<Self> {
        let core =
            Core::new().map_err(|errno| Error::os("cannot create an epoll descriptor", errno))?;
        Ok(Self {
            handle: Handle {
                core: Arc::new(core),
            },
        })
    }

    /// The handle that puts channels on this reactor.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Replaces the contents of `ready` by the channels that may make progress, at most 64, in the
    /// order in which they became ready. Waits for the first of them; leaves `ready` empty at
    /// `deadline`, which may lie in the past.
    ///
    /// # Errors
    /// [`Error::Os`] if the event channels' device or epoll fails.
    pub fn wait(&mut self, ready: &mut Vec<Token>, deadline: Instant) -> Result<()> {
        let core = &self.handle.core;
        loop {
            // Read before checking, so that one check follows the deadline; and rings that lead to
            // no token must not hold us here.
            let now = Instant::now();
            core.poll(ready).map_err(failed)?;
            if !ready.is_empty() || now >= deadline {
                return Ok(());
            }
            poll_readable(&[core.as_fd()], deadline)?;
        }
    }
}

impl AsFd for Reactor {
    /// Readable when [`wait`](Reactor::wait) has something to do; it then returns at once, though
    /// perhaps without a token. For programs with other descriptors to poll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.core.as_fd()
    }
}

impl Handle {
    /// Has [`Reactor::wait`] report `token` once more, after all that are ready now: for work that
    /// was cut short to give others their turn. A token whose channel is gone is ignored.
    pub fn again(&self, token: Token) {
        self.core.again(token);
    }

    /// Channels, and servers that wait for a client, on the reactor.
    pub fn len(&self) -> usize {
        self.core.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::os("cannot look for events of the channels", source)
}
