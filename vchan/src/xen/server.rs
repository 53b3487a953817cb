//! The vchan server role over Xen: granting the pages and waiting for the client.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use xen_sys::{Access, GrantShare, UnmapNotify};

use super::domain_watch::PeerDomain;
use super::keys::Keys;
use super::link::Link;
use super::path::ChannelPath;
use super::store::Store;
use super::{memory, place, sys};
use crate::DomId;
use crate::backend::{self, Backend, Parts};
use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::layout::{Orders, RingPlace, RingSizes, Role};
use crate::reactor::{Handle, Token};
use crate::shm::{ControlPage, Region};

/// How long the requests to xenstore that publish or withdraw a server may take together.
const STORE_TIME: Duration = Duration::from_secs(5);

/// The smallest ring that [`Server::publish_default`] falls back to, in bytes.
const LEAST_DEFAULT: usize = 64 << 10;

/// A published channel without a client yet.
///
/// Dropping it removes the keys from xenstore and takes the grants back.
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: first nobody can find us any more, then the memory goes (the kernel
    // clears our live byte and rings), then the doorbell.
    published: Publication,
    control: ControlPage,
    left: Region,
    right: Region,
    orders: Orders,
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
    /// A path that is none, no Xen, no such domain, no permission, the limit of gntalloc
    /// (1,024 pages for the whole kernel by default), a xenstore quota. Whatever had been set up
    /// by then is undone.
    pub fn publish(peer: DomId, path: &str, rings: RingSizes) -> Result<Self> {
        Self::publish_over(None, peer, path, rings)
    }

    /// [`publish`](Self::publish) on a reactor: over its event-channel handle. Its
    /// [`token`](Self::token) comes when [`wait_for_client`](Self::wait_for_client) should look
    /// again, and stays that of the channel.
    ///
    /// Clients of libxenvchan before Xen 4.14 do not ring when they connect, but when they write.
    ///
    /// # Errors
    /// As there.
    pub fn publish_on_reactor(
        reactor: &Handle,
        peer: DomId,
        path: &str,
        rings: RingSizes,
    ) -> Result<Self> {
        Self::publish_over(Some(reactor), peer, path, rings)
    }

    fn publish_over(
        reactor: Option<&Handle>,
        peer: DomId,
        path: &str,
        rings: RingSizes,
    ) -> Result<Self> {
        let path: ChannelPath = path.parse()?;
        let orders = Orders::choose(rings).map_err(|error| {
            Error::setup(error.to_string(), "ask for at most 1048576 bytes a ring")
        })?;
        let deadline = Instant::now() + STORE_TIME;
        let store = Store::open(deadline)?;
        let life = PeerDomain::watch(peer, store, deadline)?;

        let link = Link::new(reactor, life, place(peer, &path), |events| {
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
        control.initialise(orders, 0);
        let mut filled = 0;
        let left = ring(&*grants, peer, &control, orders.left_place(), &mut filled)?;
        let right = ring(&*grants, peer, &control, orders.right_place(), &mut filled)?;

        let keys = Keys {
            ring_ref,
            event_channel: port.0,
        };
        // Made before the keys are written: a failure half-way removes what is there.
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
            left,
            right,
            orders,
            link,
        })
    }

    /// [`publish`](Self::publish) with the default ring size of 256 KiB each way, or half of that
    /// or a quarter where the kernel grants no more pages.
    pub fn publish_default(peer: DomId, path: &str) -> Result<Self> {
        let mut bytes = RingSizes::DEFAULT.client_to_server;
        loop {
            match Self::publish(peer, path, bytes.into()) {
                Err(error) if sys::is_grant_limit(&error) && bytes > LEAST_DEFAULT => {
                    log::info!("no pages for rings of {bytes} bytes, trying half: {error}");
                    bytes /= 2;
                }
                result => return result,
            }
        }
    }

    /// The sizes the rings really have.
    pub fn ring_sizes(&self) -> RingSizes {
        self.orders.sizes()
    }

    /// Which one of its reactor this is, if it is on one.
    pub fn token(&self) -> Option<Token> {
        self.link.token()
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

    /// Waits for the client, then removes the keys and hands out the channel.
    pub fn accept(mut self, deadline: Instant) -> Result<Channel> {
        self.wait_for_client(deadline)?;
        let Self {
            mut published,
            control,
            left,
            right,
            orders,
            link,
        } = self;
        published.withdraw();
        Channel::from_parts(Parts {
            role: Role::Server,
            orders,
            first_index: Some(0),
            control,
            left,
            right,
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

/// One ring: its part of the control page, or pages of its own, whose references are listed.
fn ring(
    grants: &dyn GrantShare,
    peer: DomId,
    control: &ControlPage,
    place: RingPlace,
    filled: &mut usize,
) -> Result<Region> {
    if let Some(region) = control.ring_in_page(place) {
        return Ok(region);
    }
    // Writable for the peer also where it only reads, as libxenvchan grants it: clients that map
    // both rings alike exist, and the bytes it could change are those it alone reads.
    let pages = grants
        .share(sys::domain(peer), place.pages(), Access::ReadWrite, None)
        .map_err(sys::error)?;
    for reference in pages.refs() {
        control.set_grant(*filled, reference.0);
        *filled += 1;
    }
    Ok(memory::shared(pages))
}

/// Keys in xenstore that are removed at the latest when this is dropped.
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
