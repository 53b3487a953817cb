//! The vchan server role over Xen: granting the pages and waiting for the client.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use xen_sys::{Access, GrantShare, UnmapNotify};

use super::domain_watch::PeerDomain;
use super::keys::{ExtensionKey, Keys};
use super::link::Link;
use super::path::ChannelPath;
use super::store::Store;
use super::{memory, place, sys};
use crate::DomId;
use crate::backend::{self, Backend, Parts};
use crate::channel::Channel;
use crate::connect_options::Setup;
use crate::error::{Error, Result};
use crate::reactor::{Handle, Token};
use crate::wire::control_page::ControlPage;
use crate::wire::extension::Header;
use crate::wire::extension_page::{ExtensionPage, new_nonce};
use crate::wire::layout::{Format, ORDER_MAX_EXTENDED, Orders, RingPlace, RingSizes, Role};
use crate::wire::shm::Region;

/// Time limit for the xenstore requests together that withdraw a server where no caller waits for
/// them, and for those that publish it where the caller gives no deadline.
const STORE_TIME: Duration = Duration::from_secs(5);

/// The smallest ring that [`Server::publish_default`] falls back to, in bytes.
const LEAST_DEFAULT: usize = 64 << 10;

/// A published channel without a client yet.
///
/// Dropping it removes the keys from xenstore and takes the grants back.
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: first the keys, so that nobody can find the server, then the memory
    // (the kernel clears our live byte and rings), then the doorbell.
    published: Publication,
    control: ControlPage,
    extension: Option<(ExtensionPage, Header)>,
    left: Region,
    right: Region,
    /// The orders offered: with the extension a ring may be larger than without.
    orders: Orders,
    first_index: u32,
    link: Link,
}

impl Server {
    /// Grants the pages of a channel to `peer` and writes its keys below `path`.
    ///
    /// `path` is absolute, or relative to the home of this domain. A guest can write below its own
    /// `data/` only; dom0 as the server of a guest uses that guest's `/local/domain/<id>/data/…`,
    /// because the guest can read there.
    ///
    /// # Errors
    /// An invalid path, no Xen, no such domain, no permission, the limit of gntalloc (1,024 pages
    /// for the whole kernel by default), a xenstore quota. A failure leaves nothing behind.
    pub fn publish(peer: DomId, path: &str, rings: RingSizes) -> Result<Self> {
        Self::publish_with(&Setup::new(), peer, path, rings)
    }

    /// [`publish`](Self::publish) on a reactor: over its event-channel handle. Its
    /// [`token`](Self::token) comes when [`wait_for_client`](Self::wait_for_client) should look
    /// again, and stays that of the channel.
    ///
    /// Clients of libxenvchan before Xen 4.14 do not ring when they connect, only when they write.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_on_reactor(
        reactor: &Handle,
        peer: DomId,
        path: &str,
        rings: RingSizes,
    ) -> Result<Self> {
        Self::publish_with(&Setup::new().reactor(reactor), peer, path, rings)
    }

    /// [`publish`](Self::publish) with a choice of format and the rest of [`Setup`].
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_with(
        setup: &Setup<'_>,
        peer: DomId,
        path: &str,
        rings: RingSizes,
    ) -> Result<Self> {
        let path: ChannelPath = path.parse()?;
        let orders =
            Orders::choose_for(setup.format, ORDER_MAX_EXTENDED, rings).map_err(|error| {
                let advice = format!("ask for at most {} bytes a ring", error.most);
                Error::setup(error.to_string(), advice)
            })?;
        let deadline = setup
            .deadline
            .unwrap_or_else(|| Instant::now() + STORE_TIME);
        let store = Store::open(deadline)?;
        let life = PeerDomain::watch(peer, store, deadline)?;

        let link = Link::new(setup.reactor, life, place(peer, &path), |events| {
            events.bind_unbound(sys::domain(peer)).map_err(Error::from)
        })?;
        let port = link.port();

        let grants = sys::grant_share()?;
        let notify = UnmapNotify {
            clear_byte: u16::try_from(ControlPage::live_offset(Role::Server)).ok(),
            send_event: Some(port),
        };
        let page = grants
            .share(sys::domain(peer), 1, Access::ReadWrite, Some(notify))
            .map_err(sys::error)?;
        let ring_ref = page.refs()[0].0;
        let control = ControlPage::new(memory::shared(page));
        control.initialise(orders.classic(), setup.first_index);
        let (left, mut listed) = ring(&*grants, peer, &control, orders.left_place())?;
        let (right, right_refs) = ring(&*grants, peer, &control, orders.right_place())?;
        // The classic list first: the pages of each ring up to 1 MiB.
        let classic = orders.classic();
        let mut extra = listed.split_off(classic.left_place().pages());
        listed.extend(&right_refs[..classic.right_place().pages()]);
        extra.extend(&right_refs[classic.right_place().pages()..]);
        for (index, &reference) in listed.iter().enumerate() {
            control.set_grant(index, reference);
        }
        // Last, so that it takes no page that a ring needs.
        let extension = match setup.format {
            Format::Classic => None,
            Format::Extended => offer(&*grants, peer, orders, &extra, setup.first_index)?,
        };

        let keys = Keys {
            ring_ref,
            event_channel: port.0,
            extension: extension
                .as_ref()
                .map(|(_, header, page_ref)| ExtensionKey {
                    page_ref: *page_ref,
                    nonce: header.nonce,
                }),
        };
        // Made before the keys are written: a failure half-way removes those already there.
        let mut published = Publication {
            store,
            base: path.as_str().into(),
            keys,
            active: true,
        };
        published.write(deadline)?;
        Ok(Self {
            published,
            control,
            extension: extension.map(|(page, header, _)| (page, header)),
            left,
            right,
            orders,
            first_index: setup.first_index,
            link,
        })
    }

    /// [`publish`](Self::publish) with the default ring size of 256 KiB each way, or half of that
    /// or a quarter where the kernel grants no more pages.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_default(peer: DomId, path: &str) -> Result<Self> {
        Self::publish_default_with(&Setup::new(), peer, path)
    }

    /// [`publish_default`](Self::publish_default) with a choice of format and the rest of
    /// [`Setup`].
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_default_with(setup: &Setup<'_>, peer: DomId, path: &str) -> Result<Self> {
        let mut bytes = RingSizes::DEFAULT.client_to_server;
        loop {
            match Self::publish_with(setup, peer, path, bytes.into()) {
                Err(error) if sys::is_grant_limit(&error) && bytes > LEAST_DEFAULT => {
                    log::info!("no pages for rings of {bytes} bytes, trying half: {error}");
                    bytes /= 2;
                }
                result => return result,
            }
        }
    }

    /// The actual sizes of the rings; at most 1 MiB for a client without the extension.
    pub fn ring_sizes(&self) -> RingSizes {
        self.orders.sizes()
    }

    /// Its token on its reactor, if it is on one.
    pub fn token(&self) -> Option<Token> {
        self.link.token()
    }

    /// The pages that a client reads first; for tests that corrupt them.
    #[cfg(feature = "testing")]
    pub(crate) fn pages(&self) -> (&ControlPage, Option<&ExtensionPage>) {
        (&self.control, self.extension.as_ref().map(|(page, _)| page))
    }

    /// Waits until a client has connected; may be called again after it timed out.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::Setup`] when the peer domain is destroyed meanwhile.
    pub fn wait_for_client(&mut self, deadline: Instant) -> Result<()> {
        match backend::wait_for_client(&self.control, &self.link, deadline) {
            Err(Error::PeerClosed { .. }) => Err(super::domain_gone(self.link.describe())),
            outcome => outcome,
        }
    }

    /// Waits for the client, then removes the keys and returns the channel. A thread goes on, for
    /// some seconds, removing keys that xenstored has not removed by `deadline`.
    pub fn accept(self, deadline: Instant) -> Result<Channel> {
        Channel::from_parts(self.accept_parts(deadline)?)
    }

    /// Builds the parts of [`accept`](Self::accept)'s channel.
    pub(crate) fn accept_parts(mut self, deadline: Instant) -> Result<Parts> {
        self.wait_for_client(deadline)?;
        let Self {
            mut published,
            control,
            extension,
            left,
            right,
            orders: offered,
            first_index,
            link,
        } = self;
        published.withdraw_until(deadline);
        let accepted = match &extension {
            Some((page, header)) => page.acceptance(header)?,
            None => None,
        };
        let orders = match accepted {
            Some(acceptance) => acceptance.orders(offered),
            None => offered.classic(),
        };
        Ok(Parts {
            role: Role::Server,
            orders,
            first_index: Some(first_index),
            control,
            extension: extension
                .filter(|_| accepted.is_some())
                .map(|(page, _)| page),
            left: left.part(0, orders.left_bytes()),
            right: right.part(0, orders.right_bytes()),
            backend: Box::new(link),
        })
    }
}

impl AsFd for Server {
    /// Readable when [`wait_for_client`](Server::wait_for_client) should look again.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.poll_fd()
    }
}

/// One ring: its part of the control page, or its own pages and their references.
fn ring(
    grants: &dyn GrantShare,
    peer: DomId,
    control: &ControlPage,
    place: RingPlace,
) -> Result<(Region, Vec<u32>)> {
    if let Some(region) = control.ring_in_page(place) {
        return Ok((region, Vec::new()));
    }
    // Granted writable even for a peer that only reads, as libxenvchan does: some clients map both
    // rings alike, and the peer could only corrupt bytes that it alone reads.
    let pages = grants
        .share(sys::domain(peer), place.pages(), Access::ReadWrite, None)
        .map_err(sys::error)?;
    let refs = pages.refs().iter().map(|reference| reference.0).collect();
    Ok((memory::shared(pages), refs))
}

/// The extension page with its offer and its reference; `None` where the kernel grants no further
/// page and the rings can do without.
fn offer(
    grants: &dyn GrantShare,
    peer: DomId,
    orders: Orders,
    extra: &[u32],
    first_index: u32,
) -> Result<Option<(ExtensionPage, Header, u32)>> {
    let page = match grants
        .share(sys::domain(peer), 1, Access::ReadWrite, None)
        .map_err(sys::error)
    {
        Err(error) if sys::is_grant_limit(&error) && orders == orders.classic() => {
            log::info!("no page for the extension, going on without: {error}");
            return Ok(None);
        }
        outcome => outcome?,
    };
    let page_ref = page.refs()[0].0;
    let page = ExtensionPage::new(memory::shared(page));
    let header = Header::offer(orders, new_nonce()?);
    page.initialise(&header, first_index);
    for (index, &reference) in extra.iter().enumerate() {
        page.set_extra_grant(index, reference);
    }
    Ok(Some((page, header, page_ref)))
}

/// Keys in xenstore; dropping this removes them if they are still there.
#[derive(Debug)]
struct Publication {
    store: Store,
    /// As given: xenstored resolves a relative path against our own home.
    base: Box<str>,
    keys: Keys,
    active: bool,
}

impl Publication {
    fn write(&mut self, deadline: Instant) -> Result<()> {
        Ok(self.keys.publish(self.store, &self.base, deadline)?)
    }

    /// Removes the keys. A thread goes on with those that xenstored has not removed by `deadline`:
    /// the client is here, and the keys must not stay.
    fn withdraw_until(&mut self, deadline: Instant) {
        match self.keys.withdraw(self.store, &self.base, deadline) {
            Ok(()) => self.active = false,
            Err(error) => {
                log::debug!("the keys below {} are removed later: {error}", self.base);
                let later = Self {
                    store: self.store,
                    base: self.base.clone(),
                    keys: self.keys,
                    active: std::mem::take(&mut self.active),
                };
                let thread = thread::Builder::new().name("withdraw".into());
                if let Err(error) = thread.spawn(move || drop(later)) {
                    log::warn!("cannot remove the keys: {error}");
                }
            }
        }
    }

    fn withdraw(&mut self) {
        if std::mem::take(&mut self.active) {
            let deadline = Instant::now() + STORE_TIME;
            if let Err(error) = self.keys.withdraw(self.store, &self.base, deadline) {
                log::warn!("cannot remove the keys below {}: {error}", self.base);
            }
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.withdraw();
    }
}
