//! Learning that a peer's whole domain is gone.
//!
//! When a peer *process* dies its kernel clears the live byte and signals us (unmap notification).
//! When the peer *domain* is destroyed nobody does: our port silently becomes unbound, the live
//! byte stays 1, and our mappings keep the dead domain in `xl list`. xenstored tells of every
//! domain that goes away through the special watch `@releaseDomain`, without saying which. One
//! thread per process listens there and looks at the domains of the live channels; a channel whose
//! domain is gone (or whose number now belongs to another domain) has its waiters woken through an
//! eventfd that stays readable. Once xenstored has ended the thread also looks every few seconds: the
//! next one does not tell of the domains that ran before.
//!
//! The watch has a connection of its own: xenstore-rs' tokio client delivers watch events and
//! replies through one task, and a flood of the former would hold back the latter. Only privileged
//! domains may watch `@releaseDomain`; a guest cannot, and its peer is dom0 as a rule, which
//! does not go away alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio_stream::StreamExt;
use xenstore_rs::AsyncWatch;

use super::identity::{self, Identity};
use super::store::Store;
use super::store_connection;
use crate::DomId;

/// The watch name that fires when any domain shuts down or is released.
const RELEASE_DOMAIN: &str = "@releaseDomain";

/// How often the peers are looked at while nothing can tell of their end.
const POLL: Duration = Duration::from_secs(5);

/// How long one look at a peer may wait for xenstored.
const PROBE: Duration = Duration::from_secs(2);

/// Longest pause between attempts to watch again after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// The life of one peer domain, watched until the last clone of this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct PeerDomain(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    domain: DomId,
    /// Who the domain was when the channel was set up; `None` where that cannot be seen.
    identity: Option<Identity>,
    /// Whether its end can be noticed at all.
    watched: bool,
    gone: AtomicBool,
    wake: EventFd,
}

impl PeerDomain {
    /// Starts to watch over `domain`.
    ///
    /// # Errors
    /// [`WatchError::Absent`] when there is no such domain, as far as this domain may see that.
    pub(crate) fn watch(
        domain: DomId,
        store: Store,
        deadline: Instant,
    ) -> Result<Self, WatchError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags).map_err(WatchError::EventFd)?;
        let identity = match domain.0 {
            0 => None, // dom0 is always there, and nobody outlives it
            _ => match identity::look(domain, store, deadline) {
                identity::Look::Alive(identity) => Some(identity),
                identity::Look::Gone => return Err(WatchError::Absent(domain)),
                identity::Look::Hidden => None,
            },
        };
        let watched = identity.is_some();
        let gone = AtomicBool::new(false);
        let peer = Arc::new(Peer {
            domain,
            identity,
            watched,
            gone,
            wake,
        });
        if watched {
            peers().push(Arc::downgrade(&peer));
            start(store);
            // A release between the first look and the entry in the list had no one to tell.
            peer.check(store);
        }
        Ok(Self(peer))
    }

    /// A domain that is there and stays.
    #[cfg(test)]
    pub(super) fn unwatched(domain: DomId) -> Self {
        Self(Arc::new(Peer {
            domain,
            identity: None,
            watched: false,
            gone: AtomicBool::new(false),
            wake: EventFd::new().unwrap(),
        }))
    }

    /// Which domain it is.
    pub(crate) fn domain(&self) -> DomId {
        self.0.domain
    }

    /// Whether the end of the domain will be noticed: not that of dom0, nor from a guest.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.watched
    }

    /// Whether the domain is known to be gone. Never goes back to false.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Acquire) // pairs with the store in `Peer::check`
    }
}

impl AsFd for PeerDomain {
    /// Readable from the moment the domain is known to be gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

impl Peer {
    fn check(&self, store: Store) {
        let gone = match identity::look(self.domain, store, Instant::now() + PROBE) {
            identity::Look::Alive(now) => self
                .identity
                .as_ref()
                .is_some_and(|then| then.differs(&now)),
            identity::Look::Gone => true,
            identity::Look::Hidden => false,
        };
        if gone && !self.gone.swap(true, Ordering::AcqRel) {
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

/// The thread: looks at all peers at every event.
fn run(store: Store) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::warn!("cannot watch for dead domains, looking every {POLL:?}: {error}");
            loop {
                thread::sleep(POLL);
                check_all(store);
            }
        }
    };
    let mut pause = Duration::from_secs(1);
    let mut restarted = false;
    loop {
        let ended = runtime.block_on(listen(store, restarted));
        restarted |= matches!(ended, Ended::Xenstored);
        log::debug!("the watch {RELEASE_DOMAIN} ended ({ended:?}); again in {pause:?}");
        check_all(store);
        thread::sleep(pause);
        // Without xenstored only a look tells of an end.
        pause = (pause * 2).min(if restarted { POLL } else { RETRY });
    }
}

/// Why [`listen`] has returned.
#[derive(Debug)]
enum Ended {
    /// The watch could not be set.
    #[expect(dead_code, reason = "for the log")]
    NotSet(io::Error),
    /// xenstored has hung up.
    Xenstored,
    /// The connection for the watch broke.
    Events,
}

/// Looks at all peers at every event; now and then as well once xenstored has been `restarted`.
async fn listen(store: Store, restarted: bool) -> Ended {
    let (connection, presence) = match store_connection::for_watches().await {
        Ok(connected) => connected,
        Err(error) => return Ended::NotSet(error),
    };
    let mut gone = pin!(presence.ended());
    let mut events = tokio::select! {
        events = connection.watch(RELEASE_DOMAIN) => match events {
            Ok(events) => events,
            Err(error) => return Ended::NotSet(error),
        },
        () = &mut gone => return Ended::Xenstored,
    };
    loop {
        // `check_all` blocks this thread, which runs nothing but this watch; events wait in
        // xenstored's queue meanwhile, and one look answers all of them.
        tokio::select! {
            event = events.next() => match event {
                Some(_) => check_all(store),
                None => return Ended::Events,
            },
            () = tokio::time::sleep(POLL), if restarted => check_all(store),
            () = &mut gone => return Ended::Xenstored,
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
        peer.check(store);
    }
}

/// Why a peer domain cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// There is no such domain.
    #[error("domain {} does not exist", .0.0)]
    Absent(DomId),
    /// No eventfd could be made.
    #[error("cannot create an eventfd: {0}")]
    EventFd(nix::Error),
}
