//! Finding guests that want a session, on Xen.
//!
//! A guest serves its channel below its own home in xenstore, at `data/vgpu/<16 hex digits>`, and
//! waits. A thread watches that place for every guest that the policy admits and tells the broker
//! of each new channel; the broker tells it when the session is over, and it removes what is left.
//!
//! | file | job |
//! |---|---|
//! | `name` | which names below `data/vgpu` are channels |
//! | `guest` | what is known of one guest, and when to look again: time and names in, decisions out |
//! | `watches` | xenstore watches as marks on a board |
//! | `discovery` | the thread |
//!
//! A guest decides how often its watch fires and what stands in its node. So events only leave a
//! mark, a marked guest is looked at no more often than five times a second, a look reads a bounded
//! number of nodes, a guest has a bounded number of channels waiting, and one whose channels lead
//! nowhere waits ever longer.

mod discovery;
mod guest;
pub(crate) mod name;
mod watches;

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use vchan::xen::DomainLife;
use vchan::xen::store::Store;
use vgpu_cli::Failure;

use super::lock_file::LockFile;
use crate::policy::{Identity, Policy};

/// Lock of a host's one mediator on `xen:`; two would serve the same guests.
pub(super) const LOCK: &str = "/run/vgpu/xen.lock";

/// Time for xenstored's first answers.
const XENSTORE_OPEN_LIMIT: Duration = Duration::from_secs(5);

/// Time for removing the hints at the end.
const HINT_REMOVAL_LIMIT: Duration = Duration::from_secs(3);

/// A message from the thread to the broker.
#[derive(Debug)]
pub(super) enum Event {
    /// A guest that the policy admits waits for a session.
    Announced(Announced),
    /// The domain is gone.
    Gone {
        /// Which one it was.
        domid: u16,
    },
}

/// A channel that waits for the mediator.
#[derive(Debug)]
pub(super) struct Announced {
    /// The guest.
    pub(super) guest: Identity,
    /// Its name below `data/vgpu`.
    pub(super) name: String,
    /// It was announced before and put off.
    pub(super) again: bool,
    /// The guest's domain, watched.
    pub(super) life: DomainLife,
}

/// A message from the broker to the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// These rules are in force from now on.
    Judge(Policy),
    /// The session on this channel is over: remove what is left of it.
    Over {
        /// The guest.
        domid: u16,
        /// The channel.
        name: String,
        /// It led nowhere: the guest was not there.
        failed: bool,
    },
    /// There is no room for it now: announce it again in a while if it still waits.
    Later {
        /// The guest.
        domid: u16,
        /// The channel.
        name: String,
    },
}

/// The broker's side of the thread.
#[derive(Debug)]
pub(super) struct XenGuests {
    events: Receiver<Event>,
    wake: UnixStream,
    /// The thread cleans up and ends when this is gone.
    commands: Option<UnboundedSender<Command>>,
    /// Whether xenstored answers, as the thread knows it.
    xenstore: Arc<AtomicBool>,
    _instance: LockFile,
}

impl XenGuests {
    /// Starts to watch for guests.
    ///
    /// # Errors
    /// This is no dom0, xenstored does not answer, or another mediator does this already.
    pub(super) fn start(policy: &Policy) -> Result<Self, Failure> {
        let deadline = Instant::now() + XENSTORE_OPEN_LIMIT;
        let store = Store::open(deadline).map_err(no_xenstore)?;
        store.list(guest::DOMAINS, deadline).map_err(no_xenstore)?;
        let instance = LockFile::acquire(
            Path::new(LOCK),
            "already serves the guests of this Xen host",
            "stop that one first (kill its pid, or systemctl stop vgpu-mediatord); a second \
             mediator can serve local: or file: only",
        )?;
        let failed = |error: io::Error| {
            Failure::system(
                "cannot watch for guests",
                error,
                "this is not expected; report it",
            )
        };
        let (wake, waker) = UnixStream::pair().map_err(failed)?;
        wake.set_nonblocking(true).map_err(failed)?;
        waker.set_nonblocking(true).map_err(failed)?;
        let (sender, events) = std::sync::mpsc::channel();
        let (commands, orders) = tokio::sync::mpsc::unbounded_channel();
        let policy = policy.clone();
        let xenstore = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&xenstore);
        thread::Builder::new()
            .name("xen-guests".into())
            .spawn(move || discovery::run(store, policy, sender, waker, orders, told))
            .map_err(failed)?;
        Ok(Self {
            events,
            wake,
            commands: Some(commands),
            xenstore,
            _instance: instance,
        })
    }

    /// The events since the last call; an error once the thread is gone.
    pub(super) fn events(&mut self) -> Result<Vec<Event>, ()> {
        let mut bytes = [0; 64];
        // Only a wake-up; how many there were does not matter, and an error means none.
        let _ = self.wake.read(&mut bytes);
        let mut events = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(event) => events.push(event),
                Err(TryRecvError::Empty) => return Ok(events),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    /// Whether xenstored answers.
    pub(super) fn xenstore_is_up(&self) -> bool {
        // Relaxed, as the store in `discovery`: it carries no data.
        self.xenstore.load(Ordering::Relaxed)
    }

    /// Tells the thread. It may be gone, which [`events`](Self::events) reports.
    pub(super) fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }
}

impl AsFd for XenGuests {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for XenGuests {
    fn drop(&mut self) {
        self.commands = None;
        // The thread removes its hints from xenstore; when it has, its sender is gone.
        let deadline = Instant::now() + HINT_REMOVAL_LIMIT;
        loop {
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    log::warn!("xenstored does not answer; hints stay in the guests' data/vgpu");
                    return;
                }
            }
        }
    }
}

fn no_xenstore(error: vchan::xen::store::StoreError) -> Failure {
    let advice = match &error {
        vchan::xen::store::StoreError::Denied { .. } => {
            "xen: serves guests from dom0; here, in a guest, use local:PATH or file:DIR"
        }
        _ => "start this in dom0 of a Xen host, with xenstored running; elsewhere use local:PATH",
    };
    Failure::new(format!("cannot listen on xen:: {error}"), advice)
}
