//! The thread that finds guests and their channels in xenstore.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use vchan::DomId;
use vchan::xen::DomainLife;
use vchan::xen::keys::{KeyError, Keys};
use vchan::xen::store::{Store, StoreError};

use super::guest::{DOMAINS, Guest, home};
use super::name;
use super::watches::{Subject, Watches};
use super::{Announced, Command, Event};
use crate::policy::{Identity, Policy};

/// Time for one answer of xenstored.
const XENSTORE_ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How often everything is looked at without an event: what a lost one can cost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// How often it is tried whether xenstored is back.
const XENSTORED_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Domains that are looked at; Xen's numbers end at 32751, its memory long before.
const MOST_DOMAINS: usize = 4096;

/// Runs until the broker's side of `commands` is gone, then removes the hints.
pub(super) fn run(
    store: Store,
    policy: Policy,
    events: Sender<Event>,
    waker: UnixStream,
    commands: UnboundedReceiver<Command>,
    xenstore: Arc<AtomicBool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let mut discovery = Discovery {
        store,
        policy,
        events,
        waker,
        guests: BTreeMap::new(),
        restarted: false,
        xenstore,
    };
    match runtime {
        Ok(runtime) => runtime.block_on(discovery.serve(commands)),
        Err(error) => log::error!("cannot watch for guests: {error}"),
    }
    discovery.remove_hints();
}

struct Discovery {
    store: Store,
    policy: Policy,
    events: Sender<Event>,
    waker: UnixStream,
    guests: BTreeMap<u16, Guest>,
    /// xenstored has ended once. The next one may know nothing of domains that still run, so that
    /// a domain it does not list is no longer proof of the domain's end.
    restarted: bool,
    /// Whether xenstored answers, for the broker.
    xenstore: Arc<AtomicBool>,
}

impl Discovery {
    async fn serve(&mut self, mut commands: UnboundedReceiver<Command>) {
        let mut watches = match Watches::open().await {
            Ok(watches) => watches,
            Err(error) => {
                log::error!("cannot watch for guests: {error}");
                return;
            }
        };
        watch_domains(&mut watches);
        let mut recheck = Instant::now();
        loop {
            let now = Instant::now();
            if recheck <= now {
                recheck = now + RECHECK_INTERVAL;
                self.refresh(&mut watches, now);
                self.guests.values_mut().for_each(|guest| guest.mark(now));
            }
            let due: Vec<u16> = self
                .guests
                .iter_mut()
                .filter_map(|(domid, guest)| guest.is_due(now).then_some(*domid))
                .collect();
            due.into_iter().for_each(|domid| self.look(domid, now));

            let next = self.guests.values().filter_map(Guest::due_at).min();
            let wake_at = next.map_or(recheck, |next| next.min(recheck));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => {
                        if matches!(command, Command::Judge(_)) {
                            // Every guest is judged anew, at once.
                            recheck = Instant::now();
                        }
                        self.obey(command);
                    }
                    None => return,
                },
                () = watches.marked() => self.on_marks(&mut watches),
                () = watches.ended() => {
                    drop(watches);
                    watches = match self.xenstored_again(&mut commands).await {
                        Some(watches) => watches,
                        None => return,
                    };
                    watch_domains(&mut watches);
                    recheck = Instant::now();
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Waits until there is a xenstored again; `None` when the broker ends first.
    async fn xenstored_again(
        &mut self,
        commands: &mut UnboundedReceiver<Command>,
    ) -> Option<Watches> {
        log::error!(
            "xenstored has ended: sessions go on, but no guest can begin one until it is back; look \
             at its log and start it again"
        );
        self.restarted = true;
        // Relaxed, as the load in `XenGuests`: it carries no data.
        self.xenstore.store(false, Ordering::Relaxed);
        let mut next = Instant::now() + XENSTORED_RETRY_INTERVAL;
        loop {
            tokio::select! {
                command = commands.recv() => self.obey(command?),
                () = tokio::time::sleep_until(next.into()) => match Watches::open().await {
                    Ok(watches) => {
                        self.xenstore.store(true, Ordering::Relaxed);
                        log::warn!(
                            "xenstored is back: guests that it does not know any more begin \
                             sessions only after they have been started again"
                        );
                        return Some(watches);
                    }
                    Err(error) => {
                        log::debug!("no watches yet: {error}");
                        next = Instant::now() + XENSTORED_RETRY_INTERVAL;
                    }
                },
            }
        }
    }

    fn on_marks(&mut self, watches: &mut Watches) {
        let now = Instant::now();
        let marks = watches.take();
        log::trace!("changed: {marks:?}");
        if marks.contains(&Subject::Introduced) || marks.contains(&Subject::Released) {
            self.refresh(watches, now);
        }
        for mark in marks {
            match mark {
                Subject::Introduced | Subject::Released => {}
                Subject::Name(domid) => self.identify(domid, watches, now),
                Subject::Channels(domid) => {
                    if let Some(guest) = self.guests.get_mut(&domid) {
                        guest.mark(now);
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Judge(policy) => self.policy = policy,
            Command::Over {
                domid,
                name,
                failed,
            } => {
                if let Some(guest) = self.guests.get_mut(&domid) {
                    let path = format!("{}/data/vgpu/{name}", guest.home());
                    guest.over(&name, failed, now);
                    self.remove(&path);
                }
            }
            Command::Later { domid, name } => {
                if let Some(guest) = self.guests.get_mut(&domid) {
                    guest.put_off(&name, now);
                }
            }
        }
    }

    /// Finds out which domains there are.
    fn refresh(&mut self, watches: &mut Watches, now: Instant) {
        let listed = match self.store.list(DOMAINS, now + XENSTORE_ANSWER_LIMIT) {
            Ok(listed) => listed,
            Err(error) => {
                log::warn!("cannot list the domains: {error}");
                return;
            }
        };
        let domids: Vec<u16> = listed
            .iter()
            .filter_map(|name| name.parse().ok())
            // dom0 itself is no guest.
            .filter(|domid| *domid != 0)
            .take(MOST_DOMAINS)
            .collect();
        let gone: Vec<u16> = self
            .guests
            .keys()
            .filter(|domid| !domids.contains(domid))
            .copied()
            .collect();
        for domid in gone {
            self.forget(domid, watches);
        }
        for domid in domids {
            self.identify(domid, watches, now);
        }
    }

    fn forget(&mut self, domid: u16, watches: &mut Watches) {
        self.guests.remove(&domid);
        watches.remove(Subject::Name(domid));
        watches.remove(Subject::Channels(domid));
        if self.restarted {
            // Whoever watches over the domain of a session sees for itself whether it is alive.
            log::info!("xenstore does not know domain {domid} any more");
        } else {
            self.tell(Event::Gone { domid });
        }
    }

    /// Reads who a domain is and applies the policy to it.
    fn identify(&mut self, domid: u16, watches: &mut Watches, now: Instant) {
        let identity = match self.read_identity(domid) {
            Ok(identity) => identity,
            Err(error) => {
                log::warn!("cannot identify domain {domid}: {error}");
                return;
            }
        };
        let known = self.guests.get(&domid).map(|guest| &guest.identity);
        if known.is_some() && identity.name.is_none() && identity.uuid.is_none() {
            // Its nodes are being removed: it is about to be gone.
            return;
        }
        if known.is_some_and(|known| known.uuid.is_some() && known.uuid != identity.uuid) {
            // The number belongs to another domain now.
            self.forget(domid, watches);
        }
        let judgement = self.policy.judge(&identity);
        watches.add(Subject::Name(domid));
        let (allow, changed) = match self.guests.get_mut(&domid) {
            Some(guest) => {
                let changed = guest.judgement.allow != judgement.allow;
                guest.identity = identity;
                guest.judgement = judgement;
                (guest.judgement.allow, changed)
            }
            None => {
                let guest = Guest::new(identity, judgement, now);
                let allow = guest.judgement.allow;
                self.guests.insert(domid, guest);
                (allow, true)
            }
        };
        if let (true, Some(guest)) = (changed, self.guests.get(&domid)) {
            let verb = if allow { "allowed" } else { "denied" };
            log::info!("{}: {verb}: {}", guest.identity, guest.judgement.why);
        }
        if allow {
            watches.add(Subject::Channels(domid));
        } else {
            watches.remove(Subject::Channels(domid));
        }
        self.hint(domid, allow);
    }

    fn read_identity(&self, domid: u16) -> Result<Identity, StoreError> {
        let deadline = Instant::now() + XENSTORE_ANSWER_LIMIT;
        let read = |node| {
            let path = format!("{}/{node}", home(domid));
            self.store.read_if_present(&path, deadline)
        };
        Ok(Identity {
            domid,
            name: read("name")?.map(String::from),
            uuid: read("vm")?.as_deref().and_then(name::uuid),
        })
    }

    /// Tells a guest whether it is worth waiting for. Only a hint: the guest could write it itself.
    fn hint(&self, domid: u16, allow: bool) {
        let home = home(domid);
        let path = format!("{home}/data/vgpu/mediator");
        let wanted = if allow { "allowed" } else { "denied" };
        let deadline = Instant::now() + XENSTORE_ANSWER_LIMIT;
        let write = || {
            // A domain that is still being built has no `data`; made by us, it would not be the
            // guest's. The toolstack makes it before it announces the domain.
            match self.store.list(&format!("{home}/data"), deadline) {
                Ok(_) => {}
                Err(StoreError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
            match self.store.read_if_present(&path, deadline) {
                Ok(Some(there)) if &*there == wanted => Ok(()),
                // Whatever the guest has put there is replaced.
                Ok(_) | Err(StoreError::NotText { .. }) => {
                    self.store.write(&path, wanted, deadline)
                }
                Err(error) => Err(error),
            }
        };
        if let Err(error) = write() {
            log::debug!("no hint for domain {domid}: {error}");
        }
    }

    /// Looks at a guest's channels and announces those that wait.
    fn look(&mut self, domid: u16, now: Instant) {
        let Some(guest) = self.guests.get_mut(&domid) else {
            return;
        };
        let node = format!("{}/data/vgpu", guest.home());
        let deadline = now + XENSTORE_ANSWER_LIMIT;
        let names = match self.store.list(&node, deadline) {
            Ok(names) => names,
            Err(StoreError::NotFound { .. }) => Vec::new(),
            Err(error) => {
                // A list that is too long for one answer is the guest's own doing.
                log::debug!("{}: {error}", guest.identity);
                return;
            }
        };
        let candidates = guest.candidates(&names, now);
        log::trace!(
            "{}: {} nodes, {} channels to look into",
            guest.identity,
            names.len(),
            candidates.len()
        );
        let mut announced = Vec::new();
        for candidate in candidates {
            let keys = format!("{node}/{}", candidate.name);
            match Keys::read(self.store, &keys, deadline) {
                Ok(Some(_)) => {}
                // The guest writes one after the other.
                Ok(None) => continue,
                Err(KeyError::Store(error)) => {
                    log::debug!("{}: {error}", guest.identity);
                    continue;
                }
                Err(error) => {
                    log::debug!("{}: {error}", guest.identity);
                    guest.ignore(&candidate.name, now);
                    continue;
                }
            }
            // Looked at here: a worker may look at no domain.
            let life = match DomainLife::watched(DomId(domid), deadline) {
                Ok(life) => life,
                Err(error) => {
                    log::debug!("{}: {error}", guest.identity);
                    break;
                }
            };
            if !guest.announce(&candidate.name, now) {
                break;
            }
            announced.push(Announced {
                guest: guest.identity.clone(),
                name: candidate.name,
                again: candidate.again,
                life,
            });
        }
        for channel in announced {
            self.tell(Event::Announced(channel));
        }
    }

    fn tell(&self, event: Event) {
        // Without a broker this thread ends soon. A full socket has woken it already.
        if self.events.send(event).is_ok() {
            let _ = (&self.waker).write(&[1]);
        }
    }

    fn remove(&self, path: &str) {
        if let Err(error) = self
            .store
            .remove(path, Instant::now() + XENSTORE_ANSWER_LIMIT)
        {
            log::debug!("cannot remove {path}: {error}");
        }
    }

    fn remove_hints(&self) {
        let deadline = Instant::now() + XENSTORE_ANSWER_LIMIT;
        for guest in self.guests.values() {
            let node = format!("{}/data/vgpu", guest.home());
            self.remove(&format!("{node}/mediator"));
            // Nothing of the guest's own is in there: the node was made for the hint.
            if matches!(self.store.list(&node, deadline), Ok(names) if names.is_empty()) {
                self.remove(&node);
            }
        }
    }
}

/// Watches the comings and goings of domains.
fn watch_domains(watches: &mut Watches) {
    watches.add(Subject::Introduced);
    watches.add(Subject::Released);
}
