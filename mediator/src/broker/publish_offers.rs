//! `xen:` in a guest that has the GPU: channels on offer to dom0.
//!
//! On XCP-ng a guest talks to dom0 only, and grants where dom0 maps. So this mediator is the vchan
//! server: a worker publishes a channel below this domain's own home and waits; when dom0's
//! mediator takes it, the worker serves the session and the next worker offers the next channel.
//! Exactly one is on offer at any time, or none while the limit of sessions is reached.

use std::path::Path;
use std::time::{Duration, Instant};

use vchan::xen::store::{Store, StoreError};
use vgpu_cli::Failure;

use super::Broker;
use super::lock_file::LockFile;
use super::peer::Peer;
use super::session_worker::SessionWorker;
use super::xen::LOCK;
use crate::relay::OFFERS;
use crate::worker::spec::Carrier;

/// Time for xenstored's first answers.
const XENSTORE_OPEN_LIMIT: Duration = Duration::from_secs(5);

/// First and longest pause before the next offer, after one that failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The channel on offer.
#[derive(Debug)]
pub(super) struct Offers {
    store: Store,
    /// The worker that has it, and the channel's name.
    current: Option<(u64, String)>,
    /// No sooner than this.
    not_before: Instant,
    pause: Duration,
    _instance: LockFile,
}

/// The number of this domain; `None` where that cannot be told, which is then found elsewhere.
pub(super) fn own_domid() -> Option<u16> {
    let deadline = Instant::now() + XENSTORE_OPEN_LIMIT;
    let store = Store::open(deadline).ok()?;
    store.read("domid", deadline).ok()?.parse().ok()
}

impl Offers {
    /// Begins to offer, and removes what an earlier life of this mediator left behind.
    ///
    /// # Errors
    /// xenstored does not answer, or another mediator offers already.
    pub(super) fn start(now: Instant) -> Result<Self, Failure> {
        let failed = |error: StoreError| {
            Failure::new(
                format!("cannot offer channels to dom0: {error}"),
                error.advice(),
            )
        };
        let deadline = now + XENSTORE_OPEN_LIMIT;
        let store = Store::open(deadline).map_err(failed)?;
        let instance = LockFile::acquire(
            Path::new(LOCK),
            "already offers channels to dom0",
            "stop that one first (kill its pid, or systemctl stop vgpu-mediatord)",
        )?;
        store.remove(OFFERS, deadline).map_err(failed)?;
        Ok(Self {
            store,
            current: None,
            not_before: now,
            pause: PAUSE.0,
            _instance: instance,
        })
    }
}

impl Broker<'_> {
    /// When a channel should be offered and is not.
    pub(super) fn offer_due(&self, now: Instant) -> Option<Instant> {
        let offers = self.offers.as_ref()?;
        let free = self.stopping.is_none() && offers.current.is_none() && self.occupancy().1;
        let may_start = || self.accounts.may_start_at(&Peer::Dom0, now);
        free.then(|| offers.not_before.max(may_start()))
    }

    /// Offers a channel if none is on offer.
    pub(super) fn keep_offering(&mut self, now: Instant) {
        if self.offer_due(now).is_none_or(|due| due > now) {
            return;
        }
        let mut name = [0; 8];
        let named = getrandom::fill(&mut name);
        let name = format!("{:016x}", u64::from_ne_bytes(name));
        let path = format!("{OFFERS}/{name}");
        let session = match named {
            Ok(()) => self.start(Peer::Dom0, Carrier::Offer { path }, None, None, now),
            Err(_) => None,
        };
        let Some(offers) = &mut self.offers else {
            return;
        };
        match session {
            Some(session) => offers.current = Some((session, name)),
            None => offers.put_off(now),
        }
    }

    /// Notes that the channel on offer was taken: it is a session from now on.
    pub(super) fn look_at_offer(&mut self, id: u64, now: Instant) {
        let session = self.sessions.get(&id);
        if let Some(pid) = session
            .filter(|it| it.was_connected())
            .map(SessionWorker::pid)
            && self.is_offering(id)
        {
            self.offer_taken(id, pid, now);
        }
    }

    fn offer_taken(&mut self, id: u64, pid: u32, now: Instant) {
        if let Some(offers) = &mut self.offers {
            offers.current = None;
            offers.pause = PAUSE.0;
            offers.not_before = now;
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.began = now;
        }
        self.accounts.begin(&Peer::Dom0, now);
        let line = format!("session {id} begins (worker {pid})");
        self.accounts.log(&Peer::Dom0, log::Level::Info, &line, now);
    }

    /// Notes that a worker has ended; returns whether it only ever offered.
    pub(super) fn offer_ended(&mut self, session: &SessionWorker, now: Instant) -> bool {
        if !self.is_offering(session.id) {
            return false;
        }
        if session.was_connected() {
            self.offer_taken(session.id, session.pid(), now);
            return false;
        }
        if let Some(offers) = &mut self.offers
            && let Some((_, name)) = offers.current.take()
        {
            // A worker that was killed leaves its keys. This does not wait for the answer.
            let _ = offers.store.remove(&format!("{OFFERS}/{name}"), now);
            offers.put_off(now);
        }
        true
    }

    /// Whether `session` has no guest yet.
    pub(super) fn is_offering(&self, session: u64) -> bool {
        let current = self
            .offers
            .as_ref()
            .and_then(|offers| offers.current.as_ref());
        current.is_some_and(|(current, _)| *current == session)
    }
}

impl Offers {
    fn put_off(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}
