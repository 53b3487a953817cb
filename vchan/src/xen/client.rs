//! The vchan client role over Xen: finding a server and mapping its pages.

use std::thread;
use std::time::{Duration, Instant};

use xen_sys::{Access, GrantMap, GrantRef, Port, UnmapNotify};

use super::domain_watch::PeerDomain;
use super::keys::{ExtensionKey, KeyError, Keys};
use super::link::Link;
use super::path::ChannelPath;
use super::store::{Store, StoreError};
use super::{domain_gone, memory, place, sys};
use crate::DomId;
use crate::backend::Parts;
use crate::channel::Channel;
use crate::connect_options::Setup;
use crate::error::{Error, ExtensionError, PeerError, Result};
use crate::reactor::Handle;
use crate::wire::control_page::ControlPage;
use crate::wire::extension::Acceptance;
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Format, ORDER_MAX_EXTENDED, Orders, RingPlace, Role};
use crate::wire::shm::Region;

/// First and longest pause between two looks for the keys. Polling, because a guest may neither
/// watch everywhere nor spend its few watches on connection attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// A look that gets no answer for this long reports that xenstored does not answer, whatever an
/// earlier look found.
const SILENCE: Duration = Duration::from_secs(1);

/// Time for xenstored and the server to answer one last look after the deadline: keys published
/// before it count, though the answer takes a moment.
const LAST_LOOK_LIMIT: Duration = Duration::from_millis(100);

/// Interval after which keys that led nowhere are tried again.
const STALE_AGAIN: Duration = Duration::from_millis(500);

/// Connects to the server that domain `peer` runs at `path`, waiting for its keys if need be.
///
/// `path` is absolute, or relative to the home of `peer`. Keys that lead nowhere, such as those of
/// a server that was killed, are tried now and then: the next server may get the same numbers.
///
/// # Errors
/// At once: an invalid path, no Xen, no such domain, no permission, keys that are not numbers,
/// a control page that breaks the rules. At the deadline: no keys, or only stale ones.
pub fn connect(peer: DomId, path: &str, deadline: Instant) -> Result<Channel> {
    connect_with(&Setup::new(), peer, path, deadline)
}

/// [`connect`] on a reactor: over its event-channel handle. Waits all the same.
///
/// # Errors
/// As [`connect`].
pub fn connect_on_reactor(
    reactor: &Handle,
    peer: DomId,
    path: &str,
    deadline: Instant,
) -> Result<Channel> {
    connect_with(&Setup::new().reactor(reactor), peer, path, deadline)
}

/// [`connect`] with a choice of format and the rest of [`Setup`].
///
/// # Errors
/// As [`connect`].
pub fn connect_with(
    setup: &Setup<'_>,
    peer: DomId,
    path: &str,
    deadline: Instant,
) -> Result<Channel> {
    Channel::from_parts(connect_parts(setup, peer, path, deadline)?)
}

/// Builds the parts of [`connect_with`]'s channel.
pub(crate) fn connect_parts(
    setup: &Setup<'_>,
    peer: DomId,
    path: &str,
    deadline: Instant,
) -> Result<Parts> {
    let path: ChannelPath = path.parse()?;
    let store = Store::open(deadline)?;
    let base = path.resolve(peer);
    let place = place(peer, &path);
    let mut stale: Option<(Keys, Error, Instant)> = None;
    let mut denied = None;
    let mut answered = false;
    let mut pause = PAUSE.0;
    let life = match setup.life {
        Some(life) => life.peer(),
        None => PeerDomain::watch(peer, store, deadline)?,
    };
    loop {
        // Read before checking, so that one check follows the deadline.
        let began = Instant::now();
        let left = deadline.saturating_duration_since(began);
        let end = match left.is_zero() {
            true => began + LAST_LOOK_LIMIT,
            false => deadline,
        };
        match Keys::read(store, &base, end) {
            Ok(Some(keys))
                if stale
                    .as_ref()
                    .is_none_or(|(tried, _, at)| *tried != keys || at.elapsed() >= STALE_AGAIN) =>
            {
                let attempt = attach(setup, peer, keys, &place, life.clone(), end);
                // Measured for each look: on a busy machine all of them together take long.
                let again = Instant::now();
                let attempt = match attempt {
                    Err(Attempt::Stale(error)) => {
                        log::debug!("the keys at {base} lead nowhere: {error}");
                        Some(error)
                    }
                    attempt => match still(keys, store, &base, end) {
                        Ok(true) => match attempt {
                            Ok(attached) => return attached.connect(),
                            Err(Attempt::Fatal(error) | Attempt::Stale(error)) => {
                                return Err(error);
                            }
                        },
                        // A new server has taken the path meanwhile. Somebody may fake that again
                        // and again, which the pause and the deadline below bound.
                        Ok(false) => Some(Error::setup(
                            format!("the keys at {base} keep changing"),
                            "let one server use the path at a time",
                        )),
                        // The earlier finding stays the reason.
                        Err(error) if is_cut_short(&error, again) => match attempt {
                            Err(Attempt::Fatal(error)) if stale.is_none() => Some(error),
                            _ => None,
                        },
                        Err(error) => return Err(error.into()),
                    },
                };
                if let Some(error) = attempt {
                    stale = Some((keys, error, Instant::now()));
                }
                (answered, denied) = (true, None);
            }
            Ok(_) => (answered, denied) = (true, None),
            // Without permission to read, a guest cannot even see that a node is missing.
            Err(KeyError::Store(error @ StoreError::Denied { .. })) => denied = Some(error),
            Err(error) if (answered || denied.is_some()) && is_cut_short(&error, began) => {}
            Err(error) => return Err(error.into()),
        }
        if life.is_gone() {
            return Err(domain_gone(place));
        }
        if left.is_zero() {
            return Err(match (stale, denied) {
                (Some((_, error, _)), _) => error,
                (None, Some(error)) => error.into(),
                (None, None) => Error::setup(
                    format!("no vchan server has published {base}"),
                    "start the server side first, and give both sides the same path (see \
                     xenstore-ls)",
                ),
            });
        }
        thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Whether a look that began at `began` merely ran out of time: that says nothing about xenstored,
/// if it has answered before.
fn is_cut_short(error: &KeyError, began: Instant) -> bool {
    let timed_out = matches!(error, KeyError::Store(StoreError::TimedOut { .. }));
    timed_out && began.elapsed() < SILENCE
}

/// Whether the keys are the same as before their page was mapped.
fn still(
    keys: Keys,
    store: Store,
    base: &str,
    deadline: Instant,
) -> std::result::Result<bool, KeyError> {
    match Keys::read(store, base, deadline) {
        Ok(now) => Ok(now == Some(keys)),
        // The keys have been replaced.
        Err(KeyError::Value { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The result of trying one pair of keys.
type Outcome<T> = std::result::Result<T, Attempt>;

/// The reason why a pair of keys did not lead to a channel.
enum Attempt {
    /// The server is gone: new keys may come.
    Stale(Error),
    /// Trying again cannot help.
    Fatal(Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl From<xen_sys::Error> for Attempt {
    fn from(error: xen_sys::Error) -> Self {
        let stale = sys::names_a_missing_server(&error);
        let error = sys::error(error);
        if stale {
            Self::Stale(error)
        } else {
            Self::Fatal(error)
        }
    }
}

/// A channel mapped and bound, before the server is notified.
struct Attached {
    parts: Parts,
    /// The answer to the server's offer.
    acceptance: Option<Acceptance>,
}

impl Attached {
    fn connect(self) -> Result<Parts> {
        let Self { parts, acceptance } = self;
        if let (Some(page), Some(acceptance)) = (&parts.extension, &acceptance) {
            page.accept(acceptance);
        }
        parts.control.connect_client();
        parts
            .backend
            .notify()
            .map_err(|error| Error::os("cannot notify the vchan server", error))?;
        Ok(parts)
    }
}

fn attach(
    setup: &Setup<'_>,
    peer: DomId,
    keys: Keys,
    place: &str,
    life: PeerDomain,
    deadline: Instant,
) -> Outcome<Attached> {
    // The port first: it is free for one client only, so whoever binds it has the server to
    // itself, and a port left from an earlier server is refused here, before any page is touched.
    let link = Link::new(setup.reactor, life, place.to_owned(), |events| {
        let remote = Port(keys.event_channel);
        events
            .bind_interdomain(sys::domain(peer), remote)
            .map_err(Attempt::from)
    })?;
    let port = link.port();

    let grants = sys::grant_map()?;
    let notify = UnmapNotify {
        clear_byte: u16::try_from(ControlPage::live_offset(Role::Client)).ok(),
        send_event: Some(port),
    };
    let refs = [GrantRef(keys.ring_ref)];
    let page = grants.map(
        sys::domain(peer),
        &refs,
        Access::ReadWrite,
        Some(notify),
        deadline,
    )?;
    let control = ControlPage::new(memory::mapped(page, Access::ReadWrite));
    if !control.server_is_live() {
        return Err(Attempt::Stale(Error::setup(
            format!("the vchan server behind {place} has closed"),
            "start the server side again",
        )));
    }
    let classic = control.orders().map_err(Error::from)?;
    let offered = match keys.extension {
        Some(key) if setup.format == Format::Extended => {
            extension(&*grants, peer, key, classic, deadline)?
        }
        _ => None,
    };
    let orders = match &offered {
        Some(offered) => offered.acceptance.orders(offered.orders),
        None => classic,
    };
    // One copy of the lists; later changes by the peer have no effect.
    let listed: Vec<u32> = (0..classic.grant_count())
        .map(|index| control.grant(index))
        .collect();
    let (left, right) = listed.split_at(classic.left_place().pages());
    let (mut left, mut right) = (left.to_vec(), right.to_vec());
    if let Some(offered) = &offered
        && orders != classic
    {
        let extra = offered
            .page
            .extra_grants(orders.grant_count() - classic.grant_count());
        let of_left = orders.left_place().pages() - classic.left_place().pages();
        left.extend(&extra[..of_left]);
        right.extend(&extra[of_left..]);
    }
    let extension_ref = offered.as_ref().and(keys.extension).map(|key| key.page_ref);
    let rings = left.iter().chain(&right).copied();
    check_refs(rings.chain([keys.ring_ref]).chain(extension_ref))?;
    let map = |place, refs: &[u32], access| {
        let refs: Vec<GrantRef> = refs.iter().copied().map(GrantRef).collect();
        ring(&*grants, peer, &control, place, &refs, access, deadline)
    };
    let left = map(orders.left_place(), &left, Access::ReadWrite)?;
    let right = map(orders.right_place(), &right, Access::ReadOnly)?;
    let (extension, acceptance) = match offered {
        Some(offered) => (Some(offered.page), Some(offered.acceptance)),
        None => (None, None),
    };
    Ok(Attached {
        parts: Parts {
            role: Role::Client,
            orders,
            first_index: None,
            control,
            extension,
            left,
            right,
            backend: Box::new(link),
        },
        acceptance,
    })
}

/// A server's offer in its extension page, checked.
struct Offered {
    page: ExtensionPage,
    /// The answer to write.
    acceptance: Acceptance,
    /// The orders offered.
    orders: Orders,
}

/// Maps the extension page. `None` if the key leads to no such page: a server that was killed may
/// have left it to one that knows no extension.
fn extension(
    grants: &dyn GrantMap,
    peer: DomId,
    key: ExtensionKey,
    classic: Orders,
    deadline: Instant,
) -> Outcome<Option<Offered>> {
    let refs = [GrantRef(key.page_ref)];
    let page = match grants.map(sys::domain(peer), &refs, Access::ReadWrite, None, deadline) {
        Err(error) if sys::names_a_missing_server(&error) => {
            log::warn!("the extension's key is stale, going on without: {error}");
            return Ok(None);
        }
        outcome => ExtensionPage::new(memory::mapped(outcome?, Access::ReadWrite)),
    };
    let header = match page.header() {
        Err(error @ PeerError::Extension(ExtensionError::Magic(_))) => {
            log::warn!("the extension's key is stale, going on without: {error}");
            return Ok(None);
        }
        outcome => outcome.map_err(Error::from)?,
    };
    let (acceptance, orders) = header
        .check(classic, &key.nonce, ORDER_MAX_EXTENDED)
        .map_err(|error| Error::from(PeerError::from(error)))?;
    Ok(Some(Offered {
        page,
        acceptance,
        orders,
    }))
}

/// Refuses references that name a page twice: bytes of one ring would appear in the other.
fn check_refs(refs: impl Iterator<Item = u32>) -> Result<()> {
    let mut sorted: Vec<u32> = refs.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PeerError::Rendezvous(format!(
            "grant reference {} stands for two pages of the channel",
            pair[0]
        ))
        .into()),
        None => Ok(()),
    }
}

fn ring(
    grants: &dyn GrantMap,
    peer: DomId,
    control: &ControlPage,
    place: RingPlace,
    refs: &[GrantRef],
    access: Access,
    deadline: Instant,
) -> Outcome<Region> {
    match control.ring_in_page(place) {
        Some(region) => Ok(region),
        None => {
            let pages = grants.map(sys::domain(peer), refs, access, None, deadline)?;
            Ok(memory::mapped(pages, access))
        }
    }
}
