//! Taking a channel that a GPU domain offers.
//!
//! The mediator there keeps one free channel below its own home in xenstore, at
//! `data/vgpu-offer/<16 hex digits>`, and offers the next when that is taken. That an offer is taken
//! once only is Xen's doing: its event channel binds to one peer and refuses the second. A lock
//! among the workers here spares them the race; see `docs/adr/0011-relay.md`.
//!
//! What stands in that node is the other domain's word: names are checked, a look tries a bounded
//! number of offers, each for a bounded time, and all ends at the deadline.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use vchan::xen::store::{Store, StoreError};
use vchan::{Channel, DomId, xen};

use crate::broker::xen::name;
use crate::policy::{GuestKey, Identity};

/// Where a mediator in a GPU domain offers its channels, below its home in xenstore.
pub const OFFERS: &str = "data/vgpu-offer";

/// Offers tried of one look at them. An honest mediator has one, or two for a moment.
const MOST: usize = 4;

/// Time for one of them; connecting takes milliseconds.
const TRY: Duration = Duration::from_secs(1);

/// First and longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Time for one last look after the deadline.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// How long a taken offer may still be shown, in a GPU domain that is slow.
const VANISHING: Duration = Duration::from_secs(1);

/// How long the lock is waited for at most: whoever holds it may hang.
const LOCK_TIME: Duration = Duration::from_secs(3);

/// Why no channel could be taken: what, and what to do.
#[derive(Debug)]
pub(super) struct NoOffer {
    pub(super) what: String,
    pub(super) advice: String,
}

impl NoOffer {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
        }
    }
}

impl From<StoreError> for NoOffer {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string(), error.advice())
    }
}

/// Takes a channel that `domain`, a domid, name or uuid, offers.
pub(super) fn take(domain: &str, deadline: Instant) -> Result<Channel, NoOffer> {
    let store = Store::open(deadline)?;
    let key = domain
        .parse::<GuestKey>()
        .map_err(|what| NoOffer::new(what, "correct --executor relay:xen:DOMAIN"))?;
    let domid = find(store, &key, deadline)?;
    let _lock = lock(domid, deadline.min(Instant::now() + LOCK_TIME));
    let node = format!("/local/domain/{domid}/{OFFERS}");
    let mut pause = PAUSE.0;
    let mut refused: Option<vchan::Error> = None;
    loop {
        // Read before the look, so that there is one after the deadline: what was offered before it
        // counts, though xenstored takes a moment to say so.
        let now = Instant::now();
        let late = now >= deadline;
        let end = if late { now + LAST_LOOK } else { deadline };
        for name in list(store, &node, end)? {
            let until = end.min(Instant::now() + TRY);
            match xen::connect(DomId(domid), &format!("{OFFERS}/{name}"), until) {
                Ok(channel) => {
                    wait_until_gone(store, &format!("{node}/{name}"));
                    return Ok(channel);
                }
                Err(error) => {
                    log::debug!("offer {name} of domain {domid}: {error}");
                    refused = Some(error);
                }
            }
        }
        if late {
            return Err(match refused {
                Some(error) => NoOffer::new(error.to_string(), error.advice()),
                None => NoOffer::new(
                    format!("domain {domid} offers no channel"),
                    "start vgpu-mediatord --listen xen: in it, or look whether it is at its limit \
                     of sessions (there: vgpuctl status)",
                ),
            });
        }
        thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// The domain that runs under this name now: a restarted one has another number.
fn find(store: Store, key: &GuestKey, deadline: Instant) -> Result<u16, NoOffer> {
    let mut found = Vec::new();
    for domid in store.list("/local/domain", deadline)? {
        let Ok(domid) = domid.parse::<u16>() else {
            continue;
        };
        let read = |node| store.read_if_present(&format!("/local/domain/{domid}/{node}"), deadline);
        let identity = Identity {
            domid,
            name: read("name")?.map(String::from),
            uuid: read("vm")?.as_deref().and_then(name::uuid),
        };
        if domid != 0 && identity.is(key) {
            found.push(domid);
        }
    }
    match found[..] {
        [domid] => Ok(domid),
        [] => Err(NoOffer::new(
            format!("there is no domain {key}"),
            "start the domain with the GPU (xl list shows what runs)",
        )),
        [..] => Err(NoOffer::new(
            format!("{} domains are {key}", found.len()),
            "name the one with the GPU by its uuid",
        )),
    }
}

/// The offers to try. Whoever writes thousands is not tried a thousand times.
fn list(store: Store, node: &str, deadline: Instant) -> Result<Vec<Box<str>>, NoOffer> {
    let names = match store.list(node, deadline) {
        Ok(names) => names,
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let sound = names.into_iter().filter(|name| name::is_channel(name));
    Ok(sound.take(MOST).collect())
}

/// Waits until an offer that was taken is not shown any more, so that the next worker here does
/// not try it.
fn wait_until_gone(store: Store, offer: &str) {
    let deadline = Instant::now() + VANISHING;
    let mut pause = PAUSE.0;
    loop {
        let late = Instant::now() >= deadline;
        if !matches!(store.list(offer, deadline), Ok(keys) if !keys.is_empty()) {
            return;
        }
        if late {
            log::debug!("{offer} is still shown");
            return;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One worker of this host at a time takes an offer of a domain. Without the lock, which somebody
/// may hold and hang, Xen still lets only one of them bind the event channel.
fn lock(domid: u16, deadline: Instant) -> Option<Flock<File>> {
    let path = PathBuf::from(format!("/run/vgpu/relay-{domid}.lock"));
    let open = || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create("/run/vgpu")?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
    };
    let mut file = open()
        .inspect_err(|error| log::warn!("{}: {error}", path.display()))
        .ok()?;
    loop {
        let late = Instant::now() >= deadline;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, errno)) => {
                log::warn!("{}: {errno}", path.display());
                return None;
            }
        }
        if late {
            log::debug!("{} is held for long; going on without", path.display());
            return None;
        }
        thread::sleep(PAUSE.0);
    }
}
