//! Doorbell and death notice of one channel: an event channel port and the watch on the peer's
//! domain, behind one descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use xen_sys::{ErrorKind, EventChannels, Port};

use super::domain_watch::PeerDomain;
use crate::backend::Backend;
use crate::error::{Error, Result};

/// The event channel of one channel, and the life of the domain at its other end.
#[derive(Debug)]
pub(super) struct Link {
    events: Box<dyn EventChannels>,
    port: Port,
    peer: PeerDomain,
    /// Readable when either of the two descriptors is; absent where the domain is not watched.
    both: Option<Epoll>,
    place: String,
}

impl Link {
    /// Joins a bound `port` of `events` with the watch over its peer.
    pub(super) fn new(
        events: Box<dyn EventChannels>,
        port: Port,
        peer: PeerDomain,
        place: String,
    ) -> Result<Self> {
        let both = if peer.is_watched() {
            Some(join(events.as_fd(), peer.as_fd()).map_err(|errno| {
                Error::os(
                    "cannot wait for the event channel and the peer domain",
                    errno,
                )
            })?)
        } else {
            None
        };
        Ok(Self {
            events,
            port,
            peer,
            both,
            place,
        })
    }
}

fn join(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> nix::Result<Epoll> {
    let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for fd in [one, other] {
        both.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(both)
}

impl Backend for Link {
    fn notify(&self) -> io::Result<()> {
        Ok(self.events.notify(self.port)?)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        match &self.both {
            Some(both) => both.0.as_fd(),
            None => self.events.as_fd(),
        }
    }

    fn acknowledge(&self) -> io::Result<bool> {
        // One event, not all there are: each unmask lets a hostile peer raise the next, and it may
        // be as fast as we are. What is left keeps the descriptor readable.
        match self.events.pending() {
            Ok(Some(port)) => {
                // Unmasked before the caller looks at the ring: what comes later rings again.
                self.events.unmask(port)?;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) if error.kind() == ErrorKind::EventsLost => {
                self.events.reset()?;
                self.events.unmask(self.port)?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn peer_alive(&self) -> bool {
        !self.peer.is_gone()
    }

    fn peer_lost(&self) -> bool {
        self.peer.is_gone()
    }

    fn spin_helps(&self) -> bool {
        // The peer runs on virtual processors of its own, whatever the number of ours.
        true
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}
