#![forbid(unsafe_code)]
//! Two [bells](Bell) and a socket as doorbell and death notice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{SysconfVar, sysconf};

use super::bell::Bell;
use super::descriptor_socket::Handover;
use super::memory;
use super::stranger::Stranger;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::reactor::{Handle, Member, Token};
use crate::region::{Access, OwnerMemory, PeerMemory, Ticket};

const RANG: u64 = 0;
const HUNG_UP: u64 = 1;

/// The local backend of one channel.
#[derive(Debug)]
pub(super) struct LocalBackend {
    watched: Watched,
    /// Rung by the peer; `watched` watches it.
    _own: Arc<Bell>,
    /// Rings the bell that the peer watches.
    peers: Bell,
    /// Hangs up when the peer's process ends.
    handover: Handover,
    spin_helps: bool,
    name: String,
}

/// The code that watches the doorbell and the socket.
#[derive(Debug)]
enum Watched {
    /// The channel itself.
    Alone { epoll: Epoll, dead: AtomicBool },
    /// A reactor.
    Reactor(Member),
}

/// Processors of the machine, not only those this process may use: the peer's may be others.
fn processors() -> i64 {
    match sysconf(SysconfVar::_NPROCESSORS_ONLN) {
        Ok(Some(count)) => count,
        _ => 1,
    }
}

impl LocalBackend {
    pub(super) fn new(
        reactor: Option<&Handle>,
        own: Bell,
        peers: Bell,
        stream: Stranger<UnixStream>,
        name: String,
    ) -> Result<Self> {
        let (own, stream) = (Arc::new(own), Arc::new(stream));
        let watched = match reactor {
            Some(reactor) => {
                let bell = Arc::clone(&own);
                Watched::Reactor(Member::with_bell(
                    reactor.core(),
                    bell,
                    Arc::clone(&stream),
                )?)
            }
            None => Watched::Alone {
                epoll: watch(&own, &stream)
                    .map_err(|errno| Error::os("cannot watch the doorbell with epoll", errno))?,
                dead: AtomicBool::new(false),
            },
        };
        Ok(Self {
            watched,
            _own: own,
            peers,
            handover: Handover::new(stream),
            spin_helps: processors() > 1,
            name,
        })
    }
}

fn watch(own: &Bell, stream: &Stranger<UnixStream>) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let edge = EpollFlags::EPOLLET;
    epoll.add(own, EpollEvent::new(EpollFlags::EPOLLIN | edge, RANG))?;
    // Error and hang-up are always reported.
    epoll.add(
        stream,
        EpollEvent::new(EpollFlags::EPOLLRDHUP | edge, HUNG_UP),
    )?;
    Ok(epoll)
}

impl Backend for LocalBackend {
    fn notify(&self) -> io::Result<()> {
        self.peers.ring()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        match &self.watched {
            Watched::Alone { epoll, .. } => epoll.0.as_fd(),
            Watched::Reactor(member) => member.poll_fd(),
        }
    }

    fn acknowledge(&self) -> io::Result<bool> {
        let (epoll, dead) = match &self.watched {
            Watched::Alone { epoll, dead } => (epoll, dead),
            Watched::Reactor(member) => return member.acknowledge(),
        };
        let mut events = [EpollEvent::empty(); 2];
        let count = match epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut rang = false;
        for event in &events[..count] {
            match event.data() {
                RANG => rang = true,
                _ => dead.store(true, Ordering::Release),
            }
        }
        Ok(rang)
    }

    fn peer_alive(&self) -> bool {
        match &self.watched {
            // Pairs with the store in `acknowledge`.
            Watched::Alone { dead, .. } => !dead.load(Ordering::Acquire),
            Watched::Reactor(member) => !member.hung_up(),
        }
    }

    fn token(&self) -> Option<Token> {
        match &self.watched {
            Watched::Alone { .. } => None,
            Watched::Reactor(member) => Some(member.token()),
        }
    }

    fn moved(&self) {
        if let Watched::Reactor(member) = &self.watched {
            member.moved();
        }
    }

    fn spin_helps(&self) -> bool {
        self.spin_helps
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
    fn share_region(&self, data: usize, access: Access) -> Result<OwnerMemory> {
        memory::for_region(data, access.peer_writes())
    }

    fn hand_over_region(&self, memory: &OwnerMemory, ticket: &Ticket) -> Result<()> {
        self.handover.send(memory, ticket)
    }

    fn map_region(
        &self,
        ticket: &Ticket,
        at: Option<usize>,
        deadline: Instant,
    ) -> Result<PeerMemory> {
        self.handover.map(ticket, at, deadline)
    }
}
