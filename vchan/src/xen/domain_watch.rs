//! Learning that a peer's whole domain is gone.
//!
//! When a peer *process* dies its kernel clears the live byte and signals us (unmap notification).
//! When the peer *domain* is destroyed nobody does: our port silently becomes unbound, the live
//! byte stays 1, and our mappings keep the dead domain in `xl list`. xenstored tells of every
//! domain that goes away through the special watch `@releaseDomain`, without saying which. One
//! thread per process listens there and looks at the domains of the live channels; a channel whose
//! domain is gone (or whose number now belongs to another domain) has its waiters woken through an
//! eventfd that stays readable.
//!
//! The watch has a connection of its own: xenstore-rs' tokio client delivers watch events and
//! replies through one task, and a flood of the former would hold back the latter. Only privileged
//! domains may watch `@releaseDomain`; a guest cannot, and its peer is dom0 as a rule, which
//! does not go away alone.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use xenstore_rs::AsyncWatch;
use xenstore_rs::tokio::XsTokio;

use super::identity::{self, Identity};
use super::store::Store;
use crate::DomId;

/// The watch name that fires when any domain shuts down or is released.
const RELEASE_DOMAIN: &str = "@releaseDomain";

/// How often the peers are looked at where nothing can tell of their end.
const POLL: Duration = Duration::from_secs(5);

/// Where xenstore-rs finds xenstored, unless `XENSTORED_PATH` says otherwise.
const SOCKET: &str = "/run/xenstored/socket";

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
    loop {
        let reason = runtime.block_on(listen(store));
        log::debug!("the watch {RELEASE_DOMAIN} ended ({reason}); again in {pause:?}");
        check_all(store);
        thread::sleep(pause);
        pause = (pause * 2).min(RETRY);
    }
}

async fn listen(store: Store) -> String {
    let connection = match XsTokio::new().await {
        Ok(connection) => connection,
        Err(error) => return error.to_string(),
    };
    let mut events = match connection.watch(RELEASE_DOMAIN).await {
        Ok(events) => events,
        Err(error) => return error.to_string(),
    };
    let mut gone = pin!(xenstored_gone());
    loop {
        // `check_all` blocks this thread, which runs nothing but this watch; events wait in
        // xenstored's queue meanwhile, and one look answers all of them.
        tokio::select! {
            event = events.next() => match event {
                Some(_) => check_all(store),
                None => return "end of events".into(),
            },
            () = &mut gone => return "xenstored has ended".into(),
        }
    }
}

/// Waits until xenstored hangs up. xenstore-rs does not tell those who wait for events of it, so
/// this holds a connection on which nothing is ever said. Through `/dev/xen/xenbus` there is
/// nothing to see: xenstored is a domain of its own there.
async fn xenstored_gone() {
    let path = env::var_os("XENSTORED_PATH").unwrap_or_else(|| SOCKET.into());
    if let Ok(socket) = UnixStream::connect(path).await {
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
    std::future::pending().await
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
