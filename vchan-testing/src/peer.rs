#![allow(unsafe_code)]
//! A peer without rules.
//!
//! [`LyingPeer`] goes through the rendezvous honestly and then has free access to the control page
//! and the doorbells. [`Offer`] is a server's half of the rendezvous that a test may falsify.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vchan::control_page::ControlPage;
use vchan::error::{Error, PeerError, RegionError, Result};
use vchan::extension::{Acceptance, Header, offset};
use vchan::extension_page::ExtensionPage;
use vchan::layout::{Format, ORDER_MAX_LOCAL, PAGE, RingSizes};
use vchan::local::Stranger;
use vchan::shm::Region;
use vchan::testing::{
    self, Hello, RawControlPage, RawExtensionPage, RawRegion, Shape, decode_reply, encode_reply,
};
pub use vchan::testing::{Bell, HELLO_BYTES, REPLY_BYTES};

/// One end of a channel without any rules.
#[derive(Debug)]
pub struct LyingPeer {
    /// The control page.
    pub page: Page,
    /// The extension page, if it was offered; accepted, if this peer was asked to.
    pub extension: Option<Page>,
    /// Client to server.
    pub left: Arc<Region>,
    /// Server to client.
    pub right: Arc<Region>,
    victims_bell: Bell,
    own_bell: Bell,
    /// The victim's ends of the two bells, if this peer made them and so may keep them.
    victims_ends: Option<[Bell; 2]>,
    /// Dropping it looks like the death of this peer.
    pub stream: UnixStream,
}

/// Raw access to a control page or an extension page.
#[derive(Debug)]
pub struct Page(Region);

impl Clone for Page {
    fn clone(&self) -> Self {
        Self::of(&self.0, 0)
    }
}

impl Page {
    /// The page that begins at a byte of `memory`.
    fn of(memory: &Region, at: usize) -> Self {
        // SAFETY: this type has atomic accesses only.
        Self(unsafe { memory.part(at, PAGE) })
    }

    /// Stores a `u32` at a byte offset, a multiple of 4.
    pub fn set_u32(&self, at: usize, value: u32) {
        self.0.u32_at(at).store(value, Ordering::SeqCst);
    }

    /// Stores a `u16` at a byte offset, byte by byte.
    pub fn set_u16(&self, at: usize, value: u16) {
        self.0.store_bytes(at, &value.to_ne_bytes());
    }

    /// Stores a byte.
    pub fn set_u8(&self, at: usize, value: u8) {
        self.0.u8_at(at).store(value, Ordering::SeqCst);
    }

    /// Stores bytes one by one.
    pub fn set_bytes(&self, at: usize, bytes: &[u8]) {
        self.0.store_bytes(at, bytes);
    }

    /// Loads a `u32`.
    pub fn u32(&self, at: usize) -> u32 {
        self.0.u32_at(at).load(Ordering::SeqCst)
    }

    /// Loads a byte.
    pub fn u8(&self, at: usize) -> u8 {
        self.0.u8_at(at).load(Ordering::SeqCst)
    }
}

impl LyingPeer {
    /// Takes the client role against a victim that serves, in libxenvchan's format.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn connect(stream: UnixStream, deadline: Instant) -> Result<Self> {
        Self::connect_answering(stream, deadline, |_, _| ())
    }

    /// [`connect`](Self::connect) with an honest answer to the offer of the extension.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_extended(stream: UnixStream, deadline: Instant) -> Result<Self> {
        Self::connect_answering(stream, deadline, |header, page| {
            let answer = Acceptance {
                version: header.version,
                features: header.features,
                nonce: header.nonce,
            };
            page.set_bytes(offset::ACCEPTANCE, &answer.encode());
        })
    }

    /// [`connect`](Self::connect) with any answer to the offer of the extension, written by
    /// `answer` before the victim is notified of this client.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_answering(
        stream: UnixStream,
        deadline: Instant,
        answer: impl FnOnce(&Header, &Page),
    ) -> Result<Self> {
        let mut hello = [0; HELLO_BYTES];
        let fds = testing::receive(&stream, &mut hello, 3, deadline)?;
        let Ok([memory, to_server, from_server]) = <[Stranger<OwnedFd>; 3]>::try_from(fds) else {
            return Err(Error::setup(
                "the victim sent no memory",
                "look at the test",
            ));
        };
        let hello = Hello::decode(&hello)?;
        let bytes = usize::try_from(hello.memory_bytes).unwrap_or(0);
        let region = testing::map_memory(&memory, bytes)?;
        let classic = ControlPage::over(Page::of(&region, 0).0).orders()?;
        let mut orders = classic;
        if let Some(nonce) = hello.extension {
            let page = ExtensionPage::over(Page::of(&region, PAGE).0);
            let header = page.header()?;
            (_, orders) = header
                .check(classic, &nonce, ORDER_MAX_LOCAL)
                .map_err(PeerError::from)?;
            answer(&header, &Page::of(&region, PAGE));
        }
        let shape = Shape {
            orders,
            extension: hello.extension.is_some(),
        };
        let pieces = shape.divide(&region);
        pieces.control.connect_client();
        testing::send(&stream, &encode_reply(Ok(())), &[], deadline)?;
        let peer = Self {
            page: Page::of(&region, 0),
            extension: shape.extension.then(|| Page::of(&region, PAGE)),
            left: Arc::new(pieces.left),
            right: Arc::new(pieces.right),
            victims_bell: Bell::from_peer(to_server)?,
            own_bell: Bell::from_peer(from_server)?,
            victims_ends: None,
            stream,
        };
        peer.ring();
        Ok(peer)
    }

    /// Takes the server role against a victim that connects, without the extension.
    ///
    /// # Errors
    /// Those of serving.
    pub fn serve(stream: UnixStream, rings: RingSizes, deadline: Instant) -> Result<Self> {
        Self::serve_offer(Offer::new(rings)?, stream, deadline)
    }

    /// [`serve`](Self::serve) with the extension.
    ///
    /// # Errors
    /// Those of serving.
    pub fn serve_extended(stream: UnixStream, rings: RingSizes, deadline: Instant) -> Result<Self> {
        Self::serve_offer(Offer::extended(rings)?, stream, deadline)
    }

    fn serve_offer(offer: Offer, stream: UnixStream, deadline: Instant) -> Result<Self> {
        offer.send(&stream, deadline)?;
        testing::receive(&stream, &mut [0; REPLY_BYTES], 0, deadline)?;
        Ok(offer.into_peer(stream))
    }

    /// Wakes the victim.
    pub fn ring(&self) {
        self.victims_bell.ring().expect("a ring");
    }

    /// All bell descriptors that this peer holds: those that it rings and hears, and the victim's
    /// where it kept them.
    pub fn bells(&self) -> Vec<BorrowedFd<'_>> {
        let ends = self.victims_ends.iter().flatten();
        [&self.victims_bell, &self.own_bell]
            .into_iter()
            .chain(ends)
            .map(AsFd::as_fd)
            .collect()
    }
}

/// A server's offer before it is sent.
#[derive(Debug)]
pub struct Offer {
    /// The message.
    pub hello: [u8; HELLO_BYTES],
    /// The control page inside the memory.
    pub page: Page,
    /// The extension page inside the memory, if there is one.
    pub extension: Option<Page>,
    /// The memory, sealed.
    pub memory: OwnedFd,
    /// Rings the server.
    pub to_server: Bell,
    /// Rung by the client's side of the offer.
    pub from_server: Bell,
    /// The server's ends of the two.
    own_ends: [Bell; 2],
    region: Region,
    shape: Shape,
}

impl Offer {
    /// An honest offer without the extension.
    ///
    /// # Errors
    /// Those of serving.
    pub fn new(rings: RingSizes) -> Result<Self> {
        Self::of(Shape::choose(Format::Classic, rings)?)
    }

    /// An honest offer with the extension.
    ///
    /// # Errors
    /// Those of serving.
    pub fn extended(rings: RingSizes) -> Result<Self> {
        Self::of(Shape::choose(Format::Extended, rings)?)
    }

    fn of(shape: Shape) -> Result<Self> {
        let memory = testing::create_memory(shape.bytes())?;
        let region = testing::map_memory(&memory, shape.bytes())?;
        let pieces = shape.divide(&region);
        pieces.control.initialise(shape.orders.classic(), 0);
        let mut nonce = None;
        if let Some(page) = &pieces.extension {
            let header = Header::offer(shape.orders, testing::new_nonce()?);
            page.initialise(&header, 0);
            nonce = Some(header.nonce);
        }
        let (from_client, to_server) = Bell::pair()?;
        let (to_client, from_server) = Bell::pair()?;
        Ok(Self {
            hello: Hello {
                memory_bytes: shape.bytes() as u64,
                extension: nonce,
            }
            .encode(),
            page: Page::of(&region, 0),
            extension: shape.extension.then(|| Page::of(&region, PAGE)),
            memory,
            to_server,
            from_server,
            own_ends: [to_client, from_client],
            region,
            shape,
        })
    }

    /// The other end of the victim's channel, once the victim has taken the offer.
    #[must_use]
    pub fn into_peer(self, stream: UnixStream) -> LyingPeer {
        let pieces = self.shape.divide(&self.region);
        let [victims_bell, own_bell] = self.own_ends;
        LyingPeer {
            page: self.page,
            extension: self.extension,
            left: Arc::new(pieces.left),
            right: Arc::new(pieces.right),
            victims_bell,
            own_bell,
            victims_ends: Some([self.to_server, self.from_server]),
            stream,
        }
    }

    /// Sends it as an honest server would.
    ///
    /// # Errors
    /// Those of serving.
    pub fn send(&self, stream: &UnixStream, deadline: Instant) -> Result<()> {
        let fds = [
            self.memory.as_fd(),
            self.to_server.as_fd(),
            self.from_server.as_fd(),
        ];
        send_raw(stream, &self.hello, &fds, deadline)
    }
}

/// Decodes a server's message and encodes it again.
///
/// # Errors
/// [`PeerError::Rendezvous`].
pub fn reencode_hello(bytes: &[u8; HELLO_BYTES]) -> Result<[u8; HELLO_BYTES], PeerError> {
    Hello::decode(bytes).map(Hello::encode)
}

/// Decodes a client's answer and encodes it again.
///
/// # Errors
/// [`PeerError::Rendezvous`].
pub fn reencode_reply(bytes: &[u8; REPLY_BYTES]) -> Result<[u8; REPLY_BYTES], PeerError> {
    decode_reply(bytes).map(encode_reply)
}

/// Sends any bytes with any descriptors.
///
/// # Errors
/// Those of serving.
pub fn send_raw(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<()> {
    testing::send(stream, bytes, fds, deadline)
}

/// Receives a message of exactly `bytes`, with any descriptors that come along.
///
/// # Errors
/// Those of serving.
pub fn receive_raw(
    stream: &UnixStream,
    bytes: &mut [u8],
    deadline: Instant,
) -> Result<Vec<OwnedFd>> {
    let fds = testing::receive(stream, bytes, 3, deadline)?;
    Ok(fds.into_iter().map(Stranger::trust).collect())
}

/// A peer's result for a falsified list of a region's pages. The list is that of `pages` honest
/// references from 1000 on; the header page has reference 7, further pages have 100 and so on. Each
/// of `lies` puts a value into an entry of one of these pages.
///
/// # Errors
/// [`RegionError::List`]; [`RegionError::Stale`] for a further page that nobody granted.
pub fn read_list(pages: usize, lies: &[(usize, usize, u32)]) -> Result<Vec<u32>> {
    let further = testing::further_pages(pages);
    let bytes = PAGE * (1 + further);
    let memory = testing::map_memory(&testing::create_memory(bytes)?, bytes)?;
    // SAFETY: this thread alone uses the memory, here and below.
    let page = |number| unsafe { memory.part(PAGE * number, PAGE) };
    let refs: Vec<u32> = (100..).take(further).collect();
    let data: Vec<u32> = (1000..).take(pages).collect();
    let rest = (further > 0).then(|| {
        // SAFETY: as for a page.
        unsafe { memory.part(PAGE, PAGE * further) }
    });
    testing::write_grant_list(&page(0), rest.as_ref(), &refs, &data);
    for &(number, entry, value) in lies {
        page(number % (1 + further))
            .u32_at(entry % (PAGE / 4) * 4)
            .store(value, Ordering::Relaxed);
    }
    let granted = |reference: u32| {
        let number = usize::try_from(reference.checked_sub(100)?).ok()?;
        (number < further).then(|| page(1 + number))
    };
    testing::read_grant_list(&page(0), 7, pages, |reference| {
        granted(reference).ok_or_else(|| RegionError::Stale.into())
    })
}
