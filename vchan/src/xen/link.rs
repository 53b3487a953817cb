//! Doorbell and death notice of one channel: an event channel port and the watch on the peer's
//! domain, behind one descriptor. The port is one of a handle of its own, or of a reactor's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use xen_sys::{ErrorKind, EventChannels, Port};

use super::domain_watch::PeerDomain;
use super::{region, sys};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::reactor::{Death, Handle, Member, Token};
use crate::region::{Access, OwnerMemory, PeerMemory, Ticket};

/// The event channel of one channel, and the life of the domain at its other end.
#[derive(Debug)]
pub(super) struct Link {
    // Before the handle: the reactor unbinds the port.
    watched: Watched,
    events: Arc<dyn EventChannels>,
    port: Port,
    peer: PeerDomain,
    place: String,
}

/// The code that watches the event channel and the peer domain.
#[derive(Debug)]
enum Watched {
    /// The channel itself, whose handle it is. The descriptor is readable when either of the two
    /// is; there is none where the domain is not watched.
    Alone(Option<Epoll>),
    /// A reactor, whose handle it is.
    Reactor(Member),
}

impl Link {
    /// Has `bind` bind a port, on a handle of its own or on that of `reactor`, and joins it with
    /// the watch over its peer.
    pub(super) fn new<E: From<Error>>(
        reactor: Option<&Handle>,
        peer: PeerDomain,
        place: String,
        bind: impl FnOnce(&dyn EventChannels) -> Result<Port, E>,
    ) -> Result<Self, E> {
        let (watched, events, port) = match reactor {
            Some(reactor) => {
                let death = peer
                    .is_watched()
                    .then(|| Death::Domain(Box::new(peer.clone())));
                let (member, events, port) =
                    Member::with_port(reactor.core(), death, sys::event_channels, bind)?;
                (Watched::Reactor(member), events, port)
            }
            None => {
                let events: Arc<dyn EventChannels> = sys::event_channels()?.into();
                let port = bind(&*events)?;
                let both = match peer.is_watched() {
                    true => Some(join(events.as_fd(), peer.as_fd()).map_err(|errno| {
                        Error::os(
                            "cannot wait for the event channel and the peer domain",
                            errno,
                        )
                    })?),
                    false => None,
                };
                (Watched::Alone(both), events, port)
            }
        };
        Ok(Self {
            watched,
            events,
            port,
            peer,
            place,
        })
    }

    /// The local port, for the notification of an unmap.
    pub(super) fn port(&self) -> Port {
        self.port
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
        match &self.watched {
            Watched::Alone(Some(both)) => both.0.as_fd(),
            Watched::Alone(None) => self.events.as_fd(),
            Watched::Reactor(member) => member.poll_fd(),
        }
    }

    fn acknowledge(&self) -> io::Result<bool> {
        if let Watched::Reactor(member) = &self.watched {
            return member.acknowledge();
        }
        // One event, not all of them: each unmask lets a hostile peer raise the next, and it may be
        // as fast as we are. The rest keep the descriptor readable.
        match self.events.pending() {
            Ok(Some(port)) => {
                // Unmasked before the caller looks at the ring: any later event rings again.
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
        // The peer has virtual processors of its own, whatever the number of ours.
        true
    }

    fn token(&self) -> Option<Token> {
        match &self.watched {
            Watched::Alone(_) => None,
            Watched::Reactor(member) => Some(member.token()),
        }
    }

    fn moved(&self) {
        if let Watched::Reactor(member) = &self.watched {
            member.moved();
        }
    }

    fn describe(&self) -> String {
        self.place.clone()
    }

    fn region_pages(&self, data: usize) -> usize {
        region::pages(data)
    }

    fn share_region(&self, data: usize, access: Access) -> Result<OwnerMemory> {
        region::share(self.peer.domain(), self.port, data, access)
    }

    fn map_region(
        &self,
        ticket: &Ticket,
        _at: Option<usize>,
        deadline: Instant,
    ) -> Result<PeerMemory> {
        region::map(self.peer.domain(), self.port, ticket, deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DomId;
    use crate::reactor::device_in_memory::Shared;

    /// docs/threat-model.md, case 22: the kernel's list of ports has overflowed, and says EFBIG until it
    /// is reset.
    #[test]
    fn case_22_an_overflow_is_one_event_and_the_next_is_heard() {
        // Without room for a single port.
        let device = Shared::new(0);
        let port = device.bind_unbound(sys::domain(DomId(0))).unwrap();
        let link = Link {
            watched: Watched::Alone(None),
            events: Arc::new(device.clone()),
            port,
            peer: PeerDomain::unwatched(DomId(0)),
            place: "xen:0/data/t".into(),
        };
        assert!(!link.acknowledge().unwrap());
        for round in 1..=3 {
            device.ring(port.0);
            device.ring(port.0);
            assert!(
                crate::waiting::poll::poll_readable(&[link.poll_fd()], Instant::now()).unwrap()
            );
            assert!(link.acknowledge().unwrap());
            // A ring while the port was masked is delivered once it no longer is.
            assert!(link.acknowledge().unwrap());
            assert!(!link.acknowledge().unwrap());
            assert_eq!(device.with(|state| state.resets), 2 * round);
            assert!(device.with(|state| state.masked.is_empty()));
        }
    }
}
