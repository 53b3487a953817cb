#![forbid(unsafe_code)]
//! What the two halves of a channel have in common.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Parts};
use crate::error::{Error, PeerError, Result, RingName};
use crate::layout::{Role, live, offset};
use crate::notify;
use crate::region::ledger::Ledger;
use crate::shm::{ControlPage, Region};
use crate::spin::{Looked, Spin};
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::wait::Waiters;

/// Fields drop in this order: memory before the doorbell.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Beside the rings; ends with them.
    pub(crate) regions: Ledger,
    role: Role,
    control: ControlPage,
    left: Region,
    right: Region,
    pub(crate) backend: Box<dyn Backend>,
    /// The backend wants to hear of every step.
    on_reactor: bool,
    pub(crate) waiters: Waiters,
    /// This side has closed.
    closed: AtomicBool,
    /// The peer has closed or died; never taken back, whatever the peer does to its live byte.
    gone: AtomicBool,
    /// It did not close, but vanished with its domain.
    lost: AtomicBool,
    /// The first rule the peer broke.
    broken: OnceLock<PeerError>,
    pub(crate) events_sent: AtomicU64,
    pub(crate) events_received: AtomicU64,
    pub(crate) sleeps: AtomicU64,
}

/// Offsets of one ring's two indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexOffsets {
    pub(crate) name: RingName,
    pub(crate) cons: usize,
    pub(crate) prod: usize,
}

const LEFT: IndexOffsets = IndexOffsets {
    name: RingName::Left,
    cons: offset::LEFT_CONS,
    prod: offset::LEFT_PROD,
};
const RIGHT: IndexOffsets = IndexOffsets {
    name: RingName::Right,
    cons: offset::RIGHT_CONS,
    prod: offset::RIGHT_PROD,
};

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            role,
            control,
            left,
            right,
            backend,
            ..
        } = parts;
        Self {
            regions: Ledger::default(),
            role,
            control,
            left,
            right,
            on_reactor: backend.token().is_some(),
            backend,
            waiters: Waiters::default(),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            broken: OnceLock::new(),
            events_sent: AtomicU64::new(0),
            events_received: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The ring this side reads.
    pub(crate) fn incoming(&self) -> (IndexOffsets, &Region) {
        match self.role {
            Role::Server => (LEFT, &self.left),
            Role::Client => (RIGHT, &self.right),
        }
    }

    /// The ring this side writes.
    pub(crate) fn outgoing(&self) -> (IndexOffsets, &Region) {
        match self.role {
            Role::Server => (RIGHT, &self.right),
            Role::Client => (LEFT, &self.left),
        }
    }

    #[inline]
    pub(crate) fn index(&self, at: usize) -> &AtomicU32 {
        self.control.u32_at(at)
    }

    /// What this side must tell the peer about; the peer sets bits, we take them.
    #[inline]
    fn asked_of_us(&self) -> &AtomicU8 {
        self.control.u8_at(match self.role {
            Role::Server => offset::SRV_NOTIFY,
            Role::Client => offset::CLI_NOTIFY,
        })
    }

    /// What the peer must tell this side about; we set bits, the peer takes them.
    #[inline]
    fn asked_of_peer(&self) -> &AtomicU8 {
        self.control.u8_at(match self.role {
            Role::Server => offset::CLI_NOTIFY,
            Role::Client => offset::SRV_NOTIFY,
        })
    }

    /// Publishes one of our indexes and rings the peer if it asked to be told.
    #[inline]
    pub(crate) fn publish(&self, at: usize, value: u32, bit: u8) -> Result<()> {
        if self.on_reactor {
            self.backend.moved();
        }
        if notify::publish(self.index(at), value, self.asked_of_us(), bit) {
            self.ring_peer()?;
        }
        Ok(())
    }

    /// Whether the peer has asked, by `bit`, to be told of our next step.
    pub(crate) fn peer_asked(&self, bit: u8) -> bool {
        notify::NotifyByte::load(self.asked_of_us()) & bit != 0
    }

    /// Asks the peer to tell; the caller looks again before it sleeps.
    pub(crate) fn request(&self, bit: u8) {
        notify::request(self.asked_of_peer(), bit);
    }

    /// Takes a request back.
    pub(crate) fn withdraw(&self, bit: u8) {
        notify::withdraw(self.asked_of_peer(), bit);
    }

    #[cold]
    pub(crate) fn ring_peer(&self) -> Result<()> {
        self.events_sent.fetch_add(1, Ordering::Relaxed);
        self.backend
            .notify()
            .map_err(|source| Error::os("cannot ring the peer's doorbell", source))
    }

    /// The reason for which no call can succeed any more, if there is one.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        match self.broken.get() {
            None => Ok(()),
            Some(error) => Err(error.clone().into()),
        }
    }

    pub(crate) fn is_unusable(&self) -> bool {
        self.check().is_err()
    }

    /// Records what the peer did; every later call fails with the first such error.
    #[cold]
    pub(crate) fn fail(&self, error: PeerError) -> Error {
        self.broken.get_or_init(|| error).clone().into()
    }

    /// Whether the peer has closed or died. What it wrote before is still in the ring: a reader
    /// looks at the index once more after this says yes.
    #[inline]
    pub(crate) fn peer_gone(&self) -> Result<bool> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(true);
        }
        let (at, field) = match self.role {
            Role::Server => (offset::CLI_LIVE, "cli_live"),
            Role::Client => (offset::SRV_LIVE, "srv_live"),
        };
        // Acquire: pairs with the closing side's store, which follows its last index store.
        let gone = match self.control.u8_at(at).load(Ordering::Acquire) {
            live::CONNECTED if self.backend.peer_alive() => false,
            live::CONNECTED => {
                // Published by the store to `gone`.
                self.lost.store(self.backend.peer_lost(), Ordering::Relaxed);
                true
            }
            live::CLOSED => true,
            found => return Err(self.fail(PeerError::Live { field, found })),
        };
        if gone {
            self.gone.store(true, Ordering::Release);
            self.regions.peer_gone();
        }
        Ok(gone)
    }

    /// The end that [`peer_gone`](Self::peer_gone) found, for a reader that has read everything.
    pub(crate) fn check_end(&self) -> Result<()> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(Error::PeerLost),
            false => Ok(()),
        }
    }

    /// The same for a writer whose peer has not read `unread` bytes.
    pub(crate) fn end(&self, unread: u32) -> Error {
        self.check_end()
            .err()
            .unwrap_or(Error::PeerClosed { unread })
    }

    /// Notes a pending event, for a call that is about to report "would block".
    pub(crate) fn acknowledge(&self) -> Result<()> {
        if self.waiters.acknowledge(self.backend.as_ref())? {
            self.events_received.fetch_add(1, Ordering::Relaxed);
            self.regions.sweep();
        }
        Ok(())
    }

    /// Sleeps until the doorbell rings or the peer dies, at the latest until `until`, unless
    /// `ready` says that it is not necessary. May return early for no reason.
    pub(crate) fn wait_for_bell(
        &self,
        until: Instant,
        ready: &mut dyn FnMut() -> bool,
    ) -> Result<()> {
        let seen = self.waiters.generation();
        if ready() {
            return Ok(());
        }
        let waiting = "hear the peer's doorbell";
        match self
            .waiters
            .sleep(self.backend.as_ref(), seen, until, waiting)
        {
            Ok(rang) => {
                if rang {
                    self.events_received.fetch_add(1, Ordering::Relaxed);
                    self.regions.sweep();
                }
                Ok(())
            }
            Err(Error::TimedOut(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until `ready` says yes: spins, then asks the peer to tell (`bits`), looks again and
    /// sleeps.
    pub(crate) fn wait_until(
        &self,
        spin: &mut Spin,
        bits: u8,
        deadline: Instant,
        waiting: &'static str,
        mut ready: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        if ready()? {
            return Ok(());
        }
        loop {
            let start = match spin.run(deadline, &mut ready)? {
                Looked::Ready => return Ok(()),
                Looked::NotSince(start) => start,
            };
            let seen = self.waiters.generation();
            self.request(bits);
            if ready()? {
                self.withdraw(bits);
                return Ok(());
            }
            self.sleeps.fetch_add(1, Ordering::Relaxed);
            let slept = self
                .waiters
                .sleep(self.backend.as_ref(), seen, deadline, waiting);
            let end = Instant::now();
            // Also after a time-out: waits that end in one are those of an idle channel.
            spin.waited(end.saturating_duration_since(start));
            if slept? {
                self.events_received.fetch_add(1, Ordering::Relaxed);
                self.regions.sweep();
            }
            if ready()? {
                return Ok(());
            }
            // A peer that rings without end must not carry us beyond the deadline.
            if end >= deadline {
                return Err(Error::TimedOut(waiting));
            }
        }
    }

    /// Ends the channel on this side: the peer sees it, and every waiter of ours returns.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.regions.close();
        let own_live = self.control.u8_at(ControlPage::live_offset(self.role));
        // Release: whoever reads this sees every index stored before.
        own_live.store(live::CLOSED, Ordering::SeqCst);
        // Unasked, as libxenvchan does. A peer that cannot be rung is gone already.
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

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}
