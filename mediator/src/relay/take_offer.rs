//! Taking a channel that a GPU domain offers.
//!
//! The mediator there keeps one free channel below its own home in xenstore, at
//! `data/vgpu-offer/<16 hex digits>`, and offers the next when that is taken. That an offer is taken
//! once only is Xen's doing: its event channel binds to one peer and refuses the second, which looks
//! for the next; see `docs/adr/0011-relay.md`.
//!
//! The content of that node is a claim of the other domain: names are checked, a look tries a bounded
//! number of offers, each for a bounded time, and all ends at the deadline.

use std::thread;
use std::time::{Duration, Instant};

use vchan::xen::store::{Store, StoreError};
use vchan::{Channel, DomId, xen};

use crate::broker::xen::name;
use crate::policy::{GuestKey, Identity};

/// Directory of a GPU domain's offers, below its home in xenstore.
pub const OFFERS: &str = "data/vgpu-offer";

/// Offers tried of one look at them. An honest mediator has one, or two for a moment.
const MOST: usize = 4;

/// Time for one of them; connecting takes milliseconds.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// First and longest pause between two looks.
const ATTEMPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Time for one last look after the deadline.
const LAST_LOOK_LIMIT: Duration = Duration::from_millis(100);

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
    let node = format!("/local/domain/{domid}/{OFFERS}");
    let mut pause = ATTEMPT_PAUSE.0;
    let mut refused: Option<vchan::Error> = None;
    let mut looked = false;
    loop {
        // Read before the look, so that there is one after the deadline: what was offered before it
        // counts, though xenstored takes a moment to say so.
        let now = Instant::now();
        let late = now >= deadline;
        let end = if late {
            now + LAST_LOOK_LIMIT
        } else {
            deadline
        };
        let names = match list(store, &node, end) {
            // xenstored may not be able to answer so soon; what was found before says more.
            Err(_) if late && looked => Vec::new(),
            names => names?,
        };
        looked = true;
        for name in names {
            let until = end.min(Instant::now() + ATTEMPT_LIMIT);
            match xen::connect(DomId(domid), &format!("{OFFERS}/{name}"), until) {
                Ok(channel) => return Ok(channel),
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
        pause = (pause * 2).min(ATTEMPT_PAUSE.1);
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

/// The offers to try: a bounded number, however many the other domain writes.
fn list(store: Store, node: &str, deadline: Instant) -> Result<Vec<Box<str>>, NoOffer> {
    let names = match store.list(node, deadline) {
        Ok(names) => names,
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let sound = names.into_iter().filter(|name| name::is_channel(name));
    Ok(sound.take(MOST).collect())
}
