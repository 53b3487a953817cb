#![forbid(unsafe_code)]
//! Liveness, sticky error, counters and waiters that the two halves of a channel share.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Parts};
use crate::error::{Error, PeerError, Result, RingName};
use crate::region::ledger::Ledger;
use crate::region::mapped_cell::RingsPeer;
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::waiting::waiters::Waiters;
use crate::wire::layout::{Format, Role, live, offset};
use crate::wire::ring_end::{RingEnd, ring_end};
use crate::wire::shm::SharedU8;

/// Fields drop in this order: memory before the doorbell.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Regions beside the rings; they end with the channel.
    pub(crate) regions: Ledger,
    role: Role,
    format: Format,
    own_live: SharedU8,
    peers_live: SharedU8,
    pub(crate) backend: Box<dyn Backend>,
    /// The backend must be notified of every step.
    on_reactor: bool,
    pub(crate) waiters: Waiters,
    /// `closed` is set or `broken` is: no call can succeed any more.
    unusable: AtomicBool,
    /// This side has closed.
    closed: AtomicBool,
    /// The peer has closed or died; never taken back, whatever the peer does to its live byte.
    gone: AtomicBool,
    /// The peer vanished with its domain, without closing.
    lost: AtomicBool,
    /// The first rule the peer broke.
    broken: OnceLock<PeerError>,
    /// Bytes that this side has written.
    pub(crate) written: AtomicU64,
    /// Bytes that this side had read when its reader last waited.
    pub(crate) read: AtomicU64,
    pub(crate) events_sent: AtomicU64,
    pub(crate) events_received: AtomicU64,
    pub(crate) sleeps: AtomicU64,
}

impl Shared {
    /// Builds the shared state, the end of the ring that this side reads, and the end of the one it
    /// writes.
    pub(crate) fn new(parts: Parts) -> (Self, RingEnd, RingEnd) {
        let Parts {
            role,
            control,
            extension,
            left,
            right,
            backend,
            ..
        } = parts;
        let end = |name, memory| ring_end(role, name, &control, extension.as_ref(), memory);
        let (left, right) = (end(RingName::Left, left), end(RingName::Right, right));
        let (incoming, outgoing) = match role {
            Role::Server => (left, right),
            Role::Client => (right, left),
        };
        let (own, peers) = match role {
            Role::Server => (offset::SRV_LIVE, offset::CLI_LIVE),
            Role::Client => (offset::CLI_LIVE, offset::SRV_LIVE),
        };
        let shared = Self {
            regions: Ledger::default(),
            role,
            format: match extension {
                Some(_) => Format::Extended,
                None => Format::Classic,
            },
            own_live: control.byte(own),
            peers_live: control.byte(peers),
            on_reactor: backend.token().is_some(),
            backend,
            waiters: Waiters::default(),
            unusable: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            broken: OnceLock::new(),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            events_sent: AtomicU64::new(0),
            events_received: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        };
        (shared, incoming, outgoing)
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The format in use.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Publishes the index of a ring of ours, and rings the peer if it asked to be told.
    #[inline]
    pub(crate) fn publish(&self, end: &RingEnd, index: u32) -> Result<()> {
        if self.on_reactor {
            self.backend.moved();
        }
        match end.publish(index) {
            true => self.ring_peer(),
            false => Ok(()),
        }
    }

    #[cold]
    pub(crate) fn ring_peer(&self) -> Result<()> {
        self.events_sent.fetch_add(1, Ordering::Relaxed);
        self.backend
            .notify()
            .map_err(|source| Error::os("cannot ring the peer's doorbell", source))
    }

    /// Fails with the reason for which no call can succeed any more, if there is one.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_unusable() {
            true => Err(self.reason()),
            false => Ok(()),
        }
    }

    #[inline]
    pub(crate) fn is_unusable(&self) -> bool {
        // Acquire: pairs with the stores in `fail` and `close`, which follow the reason.
        self.unusable.load(Ordering::Acquire)
    }

    #[cold]
    fn reason(&self) -> Error {
        match self.broken.get() {
            Some(error) if !self.closed.load(Ordering::Relaxed) => error.clone().into(),
            _ => Error::Closed,
        }
    }

    /// Records what the peer did; every later call fails with the first such error.
    #[cold]
    pub(crate) fn fail(&self, error: PeerError) -> Error {
        let first = self.broken.get_or_init(|| error).clone();
        // Release: pairs with the load in `is_unusable`.
        self.unusable.store(true, Ordering::Release);
        first.into()
    }

    /// Whether a write may go ahead, judged by two loads: this side is open, and the peer's live
    /// byte says that it is there. A peer that died otherwise is found by
    /// [`peer_gone`](Self::peer_gone), at the latest when the ring is full.
    #[inline]
    pub(crate) fn may_write(&self) -> bool {
        // Not short-circuit: fewer branches.
        !(self.is_unusable()
            | self.gone.load(Ordering::Relaxed)
            | (self.peers_live.load(Ordering::Relaxed) != live::CONNECTED))
    }

    /// Whether the peer has closed or died. Bytes it wrote before are still in the ring: a reader
    /// reads the index once more after this returns true.
    pub(crate) fn peer_gone(&self) -> Result<bool> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(true);
        }
        // Acquire: pairs with the closing side's store, which follows its last index store.
        let gone = match self.peers_live.load(Ordering::Acquire) {
            live::CONNECTED if self.backend.peer_alive() => false,
            live::CONNECTED => {
                // Published by the store to `gone`.
                self.lost.store(self.backend.peer_lost(), Ordering::Relaxed);
                true
            }
            live::CLOSED => true,
            found => {
                let field = match self.role {
                    Role::Server => "cli_live",
                    Role::Client => "srv_live",
                };
                return Err(self.fail(PeerError::Live { field, found }));
            }
        };
        if gone {
            self.gone.store(true, Ordering::Release);
            self.regions.peer_gone();
        }
        Ok(gone)
    }

    /// Whether the peer that [`peer_gone`](Self::peer_gone) found gone went away without closing.
    pub(crate) fn peer_vanished(&self) -> bool {
        self.peers_live.load(Ordering::Relaxed) == live::CONNECTED
    }

    /// The end that [`peer_gone`](Self::peer_gone) found, for a reader that has read everything.
    pub(crate) fn check_end(&self) -> Result<()> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(Error::PeerLost),
            false => Ok(()),
        }
    }

    /// [`check_end`](Self::check_end) for a writer whose peer has not read `unread` bytes.
    pub(crate) fn end(&self, unread: u32) -> Error {
        self.check_end()
            .err()
            .unwrap_or(Error::PeerClosed { unread })
    }

    /// Acknowledges a pending event, for a call that is about to report "would block".
    pub(crate) fn acknowledge(&self) -> Result<()> {
        let rang = self.waiters.acknowledge(self.backend.as_ref())?;
        self.heard(rang);
        Ok(())
    }

    /// Acknowledges the event that ended the last sleep. Delayed until this side has used what came
    /// with it: that is two system calls over Xen, and the peer may be waiting for the answer.
    pub(crate) fn acknowledge_wake_up(&self) -> Result<()> {
        let rang = self.waiters.acknowledge_wake_up(self.backend.as_ref())?;
        self.heard(rang);
        Ok(())
    }

    fn heard(&self, rang: bool) {
        if rang {
            self.events_received.fetch_add(1, Ordering::Relaxed);
            self.regions.sweep();
        }
    }

    /// Sleeps until the doorbell rings or the peer dies, at the latest until `until`, unless
    /// `ready` returns true. May return early for no reason.
    pub(crate) fn wait_for_bell(
        &self,
        until: Instant,
        ready: &mut dyn FnMut() -> bool,
    ) -> Result<()> {
        self.acknowledge_wake_up()?;
        let seen = self.waiters.generation();
        if ready() {
            return Ok(());
        }
        let waiting = "hear the peer's doorbell";
        let backend = self.backend.as_ref();
        let slept = self
            .waiters
            .sleep(backend, None, seen, Instant::now(), until, waiting);
        match slept {
            Ok(()) => self.acknowledge_wake_up(),
            Err(Error::TimedOut(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the channel on this side: the peer sees it, and every waiter of ours returns.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.regions.close();
        // Release: pairs with the load in `is_unusable`.
        self.unusable.store(true, Ordering::Release);
        // Release: whoever reads this sees every index stored before.
        self.own_live.store(live::CLOSED, Ordering::SeqCst);
        // Rings even if not asked to, as libxenvchan does. A peer that cannot be rung is gone
        // already.
        let _ = self.ring_peer();
        self.waiters.cancel();
    }

    /// The longest useful spin on this backend.
    pub(crate) fn useful_spin(&self, wanted: Duration) -> Duration {
        if self.backend.spin_helps() {
            wanted
        } else {
            Duration::ZERO
        }
    }
}

impl RingsPeer for Shared {
    fn ring(&self) {
        // A peer that cannot be rung is gone.
        let _ = self.ring_peer();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}
