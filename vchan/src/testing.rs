#![allow(
    unsafe_code,
    reason = "it lends out what only this crate may do safely"
)]
//! Internals for peers that break the rules: for `vchan-testing` only (feature `testing`).
//!
//! Nothing here is part of the crate's interface.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::Instant;

use crate::backend::Parts;
use crate::channel::Channel;
use crate::connect_options::Setup;
use crate::domain::DomId;
use crate::error::{PeerError, RegionError, Result};
use crate::local::stranger::Stranger;
use crate::wire::control_page::ControlPage;
use crate::wire::extension::{Acceptance, Header, Nonce};
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Orders, RingSizes};
use crate::wire::shm::Region;
use crate::{local, region, wire, xen};

pub use crate::local::bell::Bell;
pub use crate::local::hello::{
    HELLO_BYTES, Hello, REPLY_BYTES, Refusal, Reply, decode_reply, encode_reply,
};
pub use crate::local::memory_layout::{Pieces, Shape};

/// Raw access to shared memory.
pub trait RawRegion {
    /// A part of the region, as a region of its own.
    ///
    /// # Safety
    /// No two threads may use the same bytes as plain memory at once: not through a channel, and
    /// not by the copies below.
    ///
    /// # Panics
    /// If the part does not lie within the region.
    #[must_use]
    unsafe fn part(&self, offset: usize, len: usize) -> Region;

    /// Copies `from` into the region at `offset`.
    ///
    /// # Safety
    /// As [`part`](Self::part).
    ///
    /// # Panics
    /// If the bytes do not fit or the region is read-only.
    unsafe fn copy_in(&self, offset: usize, from: &[u8]);

    /// Copies bytes from `offset` on out into `to`.
    ///
    /// # Safety
    /// As [`part`](Self::part).
    ///
    /// # Panics
    /// If the region does not hold that many.
    unsafe fn copy_out(&self, offset: usize, to: &mut [u8]);

    /// The byte at `at`.
    ///
    /// # Panics
    /// If it does not lie within the region.
    fn u8_at(&self, at: usize) -> &AtomicU8;

    /// The four bytes at `at`, which must be aligned.
    ///
    /// # Panics
    /// If they do not lie within the region, or `at` is not a multiple of 4.
    fn u32_at(&self, at: usize) -> &AtomicU32;

    /// Address of the first byte, for guards around the region.
    fn start(&self) -> NonNull<u8>;
}

impl RawRegion for Region {
    unsafe fn part(&self, offset: usize, len: usize) -> Region {
        self.part(offset, len)
    }

    unsafe fn copy_in(&self, offset: usize, from: &[u8]) {
        self.copy_in(offset, from);
    }

    unsafe fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.copy_out(offset, to);
    }

    fn u8_at(&self, at: usize) -> &AtomicU8 {
        self.u8_at(at)
    }

    fn u32_at(&self, at: usize) -> &AtomicU32 {
        self.u32_at(at)
    }

    fn start(&self) -> NonNull<u8> {
        self.start()
    }
}

/// Access to a control page without its rules.
pub trait RawControlPage: Sized {
    /// The page in `region`.
    ///
    /// # Panics
    /// If that is not one writable page.
    fn over(region: Region) -> Self;
    /// The page's memory.
    fn region(&self) -> &Region;
    /// Fills it in as a server does before it publishes it.
    fn initialise(&self, orders: Orders, first_index: u32);
}

impl RawControlPage for ControlPage {
    fn over(region: Region) -> Self {
        Self::new(region)
    }

    fn region(&self) -> &Region {
        self.region()
    }

    fn initialise(&self, orders: Orders, first_index: u32) {
        self.initialise(orders, first_index);
    }
}

/// Access to an extension page without its rules.
pub trait RawExtensionPage: Sized {
    /// The page in `region`.
    ///
    /// # Panics
    /// If that is not one writable page.
    fn over(region: Region) -> Self;
    /// The page's memory.
    fn region(&self) -> &Region;
    /// Fills it in as a server does before it publishes it.
    fn initialise(&self, offer: &Header, first_index: u32);
    /// The server's offer.
    ///
    /// # Errors
    /// [`PeerError::Extension`].
    fn header(&self) -> Result<Header, PeerError>;
    /// Writes a client's answer to the offer.
    fn accept(&self, acceptance: &Acceptance);
}

impl RawExtensionPage for ExtensionPage {
    fn over(region: Region) -> Self {
        Self::new(region)
    }

    fn region(&self) -> &Region {
        self.region()
    }

    fn initialise(&self, offer: &Header, first_index: u32) {
        self.initialise(offer, first_index);
    }

    fn header(&self) -> Result<Header, PeerError> {
        self.header()
    }

    fn accept(&self, acceptance: &Acceptance) {
        self.accept(acceptance);
    }
}

/// A nonce for an extension page.
///
/// # Errors
/// [`Error::Os`](crate::Error::Os).
pub fn new_nonce() -> Result<Nonce> {
    wire::extension_page::new_nonce()
}

/// Builds a channel of `parts`, as a rendezvous does.
///
/// # Errors
/// Those of a client's rendezvous.
pub fn channel(parts: Parts) -> Result<Channel> {
    Channel::from_parts(parts)
}

/// The server's half of the rendezvous over a socket.
///
/// # Errors
/// As [`local::serve_with`].
pub fn serve_on(
    setup: &Setup<'_>,
    stream: UnixStream,
    rings: RingSizes,
    deadline: Instant,
) -> Result<Parts> {
    local::serve_parts(setup, stream, rings, deadline)
}

/// The client's half of the rendezvous over a socket.
///
/// # Errors
/// As [`local::connect_with`].
pub fn connect_on(setup: &Setup<'_>, stream: UnixStream, deadline: Instant) -> Result<Parts> {
    local::connect_parts(setup, stream, deadline)
}

/// The server's half of the rendezvous over xenstore.
///
/// # Errors
/// As [`xen::Server::accept`].
pub fn accept(server: xen::Server, deadline: Instant) -> Result<Parts> {
    server.accept_parts(deadline)
}

/// The client's half of the rendezvous over xenstore.
///
/// # Errors
/// As [`xen::connect_with`].
pub fn connect(setup: &Setup<'_>, peer: DomId, path: &str, deadline: Instant) -> Result<Parts> {
    xen::connect_parts(setup, peer, path, deadline)
}

/// The pages of `server` that a client reads first.
pub fn published_pages(server: &xen::Server) -> (&ControlPage, Option<&ExtensionPage>) {
    server.pages()
}

/// Makes a memfd as a server does.
///
/// # Errors
/// [`Error::Os`](crate::Error::Os).
pub fn create_memory(len: usize) -> Result<OwnedFd> {
    local::memory::create(len)
}

/// Maps a memfd as a client does.
///
/// # Errors
/// The check that it fails.
pub fn map_memory(fd: &OwnedFd, len: usize) -> Result<Region> {
    local::memory::map(fd, len)
}

/// Sends `bytes`, with `fds` attached to the first of them.
///
/// # Errors
/// Those of a rendezvous.
pub fn send(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<()> {
    local::descriptors::send(stream, bytes, fds, deadline)
}

/// Fills `bytes` and returns the descriptors that came along, at most `wanted`.
///
/// # Errors
/// Those of a rendezvous.
pub fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    wanted: usize,
    deadline: Instant,
) -> Result<Vec<Stranger<OwnedFd>>> {
    local::descriptors::receive(stream, bytes, wanted, deadline)
}

/// Further pages in the list of a region of `data` pages.
pub fn further_pages(data: usize) -> usize {
    region::grant_list::further_pages(data)
}

/// Writes the list of a region's pages, as its owner does.
///
/// # Panics
/// If `further` is not as long as [`further_pages`] says.
pub fn write_grant_list(
    header: &Region,
    further: Option<&Region>,
    further_refs: &[u32],
    data: &[u32],
) {
    region::grant_list::write(header, further, further_refs, data);
}

/// Reads the list of a region's pages, as its peer does.
///
/// # Errors
/// [`RegionError::List`], and those of `map`.
pub fn read_grant_list<E: From<RegionError>>(
    header: &Region,
    header_ref: u32,
    pages: usize,
    map: impl FnMut(u32) -> Result<Region, E>,
) -> Result<Vec<u32>, E> {
    region::grant_list::read(header, header_ref, pages, map)
}
