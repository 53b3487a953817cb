//! Detection of the end of a peer's whole domain.
//!
//! When a peer *process* dies its kernel clears the live byte and signals us (unmap notification).
//! When the peer *domain* is destroyed nobody does: our port silently becomes unbound, the live
//! byte stays 1, and our mappings keep the dead domain in `xl list`. xenstored reports that a
//! domain went away through the special watch `@releaseDomain`, without saying which. One thread
//! per process waits for that and checks the domains of the live channels; a channel whose domain
//! is gone (or whose number now belongs to another domain) has its waiters woken through an eventfd
//! that stays readable. After a restart of xenstored the thread also checks every few seconds: the
//! new xenstored does not report the end of domains that ran before.
//!
//! The watch has a connection of its own, so that a flood of events delays no reply. Only
//! privileged domains receive `@releaseDomain`; a guest does not, and its peer is as a rule dom0,
//! which does not go away alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::identity::{self, Identity};
use super::store::provider::Provider;
use super::store::{Store, Waited};
use crate::DomId;

/// The watch name that fires when any domain shuts down or is released.
const RELEASE_DOMAIN: &str = "@releaseDomain";

/// Interval at which the peers are checked while no event can report their end.
const POLL: Duration = Duration::from_secs(5);

/// Time limit for one check of a peer with xenstored.
const PROBE: Duration = Duration::from_secs(2);

/// Longest pause between attempts to watch again after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// The life of one peer domain, watched until the last clone of this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct PeerDomain(Arc<Peer>);

/// The life of a domain at the other end of a channel, for a program that separates the watching
/// from the channel. A process that may see domains holds a [`watched`](Self::watched) one. It
/// notifies another process, which may not; that one's channel has a [`told`](Self::told) life, set
/// by [`Setup::life`](crate::Setup::life).
#[derive(Debug, Clone)]
pub struct DomainLife(PeerDomain);

impl DomainLife {
    /// Watches `domain`. The first check takes until `deadline` at most.
    ///
    /// # Errors
    /// There is no such domain, or xenstored cannot be reached.
    pub fn watched(domain: DomId, deadline: Instant) -> crate::Result<Self> {
        let store = Store::open(deadline)?;
        Ok(Self(PeerDomain::watch(domain, store, deadline)?))
    }

    /// A life that ends when [`end`](Self::end) is called, and not before.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn told(domain: DomId) -> crate::Result<Self> {
        let peer = Peer::new(domain, None, true).map_err(WatchError::EventFd)?;
        Ok(Self(PeerDomain(Arc::new(peer))))
    }

    /// Marks the domain as gone and wakes all waiters.
    pub fn end(&self) {
        self.0.0.end();
    }

    /// Whether it is gone.
    pub fn is_over(&self) -> bool {
        self.0.is_gone()
    }

    pub(crate) fn peer(&self) -> PeerDomain {
        self.0.clone()
    }
}

impl AsFd for DomainLife {
    /// Readable from the moment the domain is known to be gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Peer {
    domain: DomId,
    /// The domain's identity when the channel was set up; `None` where that cannot be seen.
    identity: Option<Identity>,
    /// Whether its end can be detected at all.
    watched: bool,
    gone: AtomicBool,
    wake: EventFd,
}

impl PeerDomain {
    /// Starts to watch `domain`.
    ///
    /// # Errors
    /// [`WatchError::Absent`] when there is no such domain, as far as this domain may see that.
    pub(crate) fn watch(
        domain: DomId,
        store: Store,
        deadline: Instant,
    ) -> Result<Self, WatchError> {
        let identity = match domain.0 {
            0 => None, // dom0 is always there, and nobody outlives it
            _ => match identity::look(domain, store, deadline) {
                identity::Look::Alive(identity) => Some(identity),
                identity::Look::Gone => return Err(WatchError::Absent(domain)),
                identity::Look::Hidden => None,
            },
        };
        let watched = identity.is_some();
        let peer = Peer::new(domain, identity, watched).map_err(WatchError::EventFd)?;
        let peer = Arc::new(peer);
        if watched {
            peers().push(Arc::downgrade(&peer));
            start(store);
            // A release between the first check and the entry in the list notified nobody.
            peer.check(store, deadline.min(Instant::now() + PROBE));
        }
        Ok(Self(peer))
    }

    /// A domain that is there and stays.
    #[cfg(test)]
    pub(super) fn unwatched(domain: DomId) -> Self {
        Self(Arc::new(Peer::new(domain, None, false).unwrap()))
    }

    /// The domain's id.
    pub(crate) fn domain(&self) -> DomId {
        self.0.domain
    }

    /// Whether the end of the domain will be detected: not that of dom0, nor from a guest.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.watched
    }

    /// Whether the domain is known to be gone. Never goes back to false.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Acquire) // pairs with the swap in `Peer::end`
    }
}

impl AsFd for PeerDomain {
    /// Readable from the moment the domain is known to be gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

impl Peer {
    fn new(domain: DomId, identity: Option<Identity>, watched: bool) -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            domain,
            identity,
            watched,
            gone: AtomicBool::new(false),
            wake: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    fn check(&self, store: Store, deadline: Instant) {
        let gone = match identity::look(self.domain, store, deadline) {
            identity::Look::Alive(now) => self
                .identity
                .as_ref()
                .is_some_and(|then| then.differs(&now)),
            identity::Look::Gone => true,
            identity::Look::Hidden => false,
        };
        if gone {
            self.end();
        }
    }

    fn end(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            log::debug!("domain {} is gone", self.domain.0);
            // Never read back, so it stays readable; a counter of 1 cannot overflow.
            let _ = self.wake.write(1);
        }
    }
}

fn peers() -> MutexGuard<'static, Vec<Weak<Peer>>> {
    static PEERS: Mutex<Vec<Weak<Peer>>> = Mutex::new(Vec::new());
    // Nothing panics while it holds the list, and a list of weak references is always usable.
    PEERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(store: Store) {
    static THREAD: OnceLock<()> = OnceLock::new();
    THREAD.get_or_init(|| {
        let body = move || run(store);
        if let Err(error) = thread::Builder::new()
            .name("domain-watch".into())
            .spawn(body)
        {
            log::warn!("cannot start the thread that watches for dead domains: {error}");
        }
    });
}

/// The thread: checks all peers at every event.
fn run(store: Store) {
    let mut pause = Duration::from_secs(1);
    let mut restarted = false;
    loop {
        match listen(store, restarted) {
            Ok(()) => restarted = true,
            Err(error) => log::debug!("cannot watch {RELEASE_DOMAIN}: {error}"),
        }
        check_all(store);
        thread::sleep(pause);
        // Without xenstored only a periodic check finds an end.
        pause = (pause * 2).min(if restarted { POLL } else { RETRY });
    }
}

/// Checks all peers at every event, and periodically once xenstored has been `restarted`. Returns
/// when xenstored has hung up.
fn listen(store: Store, restarted: bool) -> io::Result<()> {
    let mut watch = Provider::current()?.watch(RELEASE_DOMAIN)?;
    loop {
        // Events wait in the socket while the peers are checked, and one check answers all of them.
        match watch.wait(restarted.then_some(POLL)) {
            Waited::Fired | Waited::TimedOut => check_all(store),
            Waited::Ended => {
                log::debug!("the watch {RELEASE_DOMAIN} ended");
                return Ok(());
            }
        }
    }
}

fn check_all(store: Store) {
    let live: Vec<Arc<Peer>> = {
        let mut list = peers();
        list.retain(|peer| peer.strong_count() > 0);
        list.iter().filter_map(Weak::upgrade).collect()
    };
    for peer in live
        .iter()
        .filter(|peer| !peer.gone.load(Ordering::Relaxed))
    {
        peer.check(store, Instant::now() + PROBE);
    }
}

/// The reasons why a peer domain cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// There is no such domain.
    #[error("domain {} does not exist", .0.0)]
    Absent(DomId),
    /// No eventfd could be made.
    #[error("cannot create an eventfd: {0}")]
    EventFd(nix::Error),
}
