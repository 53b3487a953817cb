#![forbid(unsafe_code)]
//! Two [bells](Bell) and a socket as doorbell and death notice.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

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

/// The processors that the kernel runs, as it lists them: `0-3,5`. Not those that this process may use: the peer's may be
/// others.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Whether the machine has one processor only, so that a side that polls keeps its peer from answering. Where the list
/// cannot be read, as in the root directory of a confined process, it may have more, and the waits find out.
fn has_one_processor() -> bool {
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| lists_one(ONLINE))
}

fn lists_one(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|list| list.trim_end().parse::<u32>().is_ok())
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
            spin_helps: !has_one_processor(),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::lists_one;

    #[test]
    fn one_processor_is_told_from_several_and_from_an_unknown_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (list, one) in [
            ("0\n", true),
            ("3\n", true),
            ("0-1\n", false),
            ("0,2\n", false),
        ] {
            fs::write(path, list).unwrap();
            assert_eq!(lists_one(path), one, "{list:?}");
        }
        assert!(!lists_one("/nonexistent"));
    }
}
