#![forbid(unsafe_code)]
//! Bulk buffers beside the ring, which both sides address by offset.
//!
//! One side makes a region ([`Channel::create_region`]): granted pages on Xen, a memfd over
//! [`local`](crate::local). It sends the region's [`ticket`](OwnedRegion::ticket), 48 bytes, over
//! the channel in whatever protocol the two speak; the other side maps it once
//! ([`Channel::map_region`]). From then on bytes are put into the region and only small messages
//! about them go through the ring.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use vchan::region::{Access, TICKET_BYTES};
//! use vchan::{Channel, Result};
//!
//! fn soon() -> Instant {
//!     Instant::now() + Duration::from_secs(10)
//! }
//!
//! /// Offers a megabyte, and takes it back when the peer has answered.
//! fn owner(mut channel: Channel) -> Result<()> {
//!     let mut region = channel.create_region(1 << 20, Access::Both)?;
//!     region.write_at(70_000, b"a question")?;
//!     channel.write_all(&region.ticket(), soon())?;
//!     let mut answered = [0];
//!     channel.read(&mut answered, soon())?;
//!     let mut answer = [0; 9];
//!     region.read_at(500_000, &mut answer)?;
//!     assert_eq!(&answer, b"an answer");
//!     region.revoke(soon())
//! }
//!
//! /// Maps what it is offered, and answers.
//! fn peer(mut channel: Channel) -> Result<()> {
//!     let mut ticket = [0; TICKET_BYTES];
//!     let mut filled = 0;
//!     while filled < ticket.len() {
//!         filled += channel.read(&mut ticket[filled..], soon())?;
//!     }
//!     let mut region = channel.map_region(&ticket, soon())?;
//!     let mut question = [0; 10];
//!     region.read_at(70_000, &mut question)?;
//!     assert_eq!(&question, b"a question");
//!     region.write_at(500_000, b"an answer")?;
//!     channel.write_all(b"!", soon())?;
//!     // Here until the owner closes: the region is unmapped as soon as it is revoked.
//!     channel.read(&mut [0], soon())?;
//!     assert!(region.read_at(0, &mut question).is_err());
//!     Ok(())
//! }
//!
//! # fn main() -> Result<()> {
//! # use vchan::local;
//! # let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
//! # let server = std::thread::spawn(move || owner(local::serve_on(one, 64 << 10, soon())?));
//! # peer(local::connect_on(other, soon())?)?;
//! # server.join().unwrap()
//! # }
//! ```
//!
//! # Who can make a region
//! On Xen any domain may grant pages; mapping them needs permission. On XCP-ng only dom0 may map,
//! so there the guest makes the region. Grants count against the kernel's limit, 1,024 pages by
//! default. A region takes one page more than its bytes need, and one more for each further 1,023
//! pages beyond 960.
//!
//! # Guarantees
//! * Every access is checked against the region's length; a side that may only read has a read-only
//!   mapping of pages that are read-only for it.
//! * Bytes are copied: no reference to memory that the peer can change exists.
//! * A ticket, the header page and the list of pages are copied once, checked, then used. A ticket
//!   that is wrong or too late is an error and nothing else.
//! * After [`OwnedRegion::revoke`] the peer has unmapped; one that does not obey is an error at the
//!   deadline. The pages that such regions can hold are [limited](Regions::set_limit): the pages of
//!   ended regions stay with the channel for its next ones, unless they are [given
//!   back](Regions::give_back).
//! * Regions end with their channel, with the process, and with the domain of either side. A
//!   mapping does not keep a dead domain in `xl list`.

mod bounds;
pub(crate) mod error;
pub(crate) mod grant_list;
pub(crate) mod header;
pub(crate) mod ledger;
mod mapped;
pub(crate) mod mapped_cell;
pub(crate) mod memory;
mod owned;
mod owned_cell;
pub(crate) mod ticket;
mod view;

use std::sync::{Arc, Weak};
use std::time::Instant;

pub use error::{RegionError, TicketError};
pub use ledger::{DEFAULT_LIMIT, MOST_REGIONS};
pub use mapped::MappedRegion;
pub use memory::{OwnerMemory, PeerMemory};
pub use owned::OwnedRegion;
pub use ticket::{Access, Carrier, TICKET_BYTES, Ticket};
pub use view::View;

use crate::channel::Channel;
use crate::channel::channel_state::Shared;
use crate::error::{Error, Result};

/// Makes and maps regions of one channel; can be used by any thread after the channel is
/// [split](Channel::split). Does not keep the channel open.
#[derive(Debug, Clone)]
pub struct Regions(Weak<Shared>);

impl Regions {
    /// Makes a region of `bytes` zero bytes that the peer may map.
    ///
    /// # Errors
    /// [`RegionError::Limit`], [`RegionError::TooMany`], [`RegionError::Empty`]; [`Error::Os`] when
    /// the kernel grants no more pages, with the limit to raise; the end of the channel. A failure
    /// leaves nothing behind.
    pub fn create(&self, bytes: usize, access: Access) -> Result<OwnedRegion> {
        owned::create(&self.channel()?, bytes, access)
    }

    /// Maps the region of `ticket`, the bytes received from the peer.
    ///
    /// # Errors
    /// [`Error::Region`] if it is not a ticket, its region has ended, or this side's limits do not
    /// allow it; [`Error::Os`] where the pages cannot be mapped; [`Error::TimedOut`] if the pages
    /// had not arrived by `deadline`; the end of the channel.
    pub fn map(&self, ticket: &[u8], deadline: Instant) -> Result<MappedRegion> {
        mapped::map(&self.channel()?, ticket, None, deadline)
    }

    /// [`map`](Self::map), its first byte at the address `at` where that can be chosen (over `local:`) and nothing is
    /// there yet; elsewhere otherwise.
    ///
    /// # Errors
    /// Those of `map`.
    pub fn map_at(&self, ticket: &[u8], at: usize, deadline: Instant) -> Result<MappedRegion> {
        mapped::map(&self.channel()?, ticket, Some(at), deadline)
    }

    /// Sets the limit in bytes for all regions together that this side makes in the channel, and
    /// separately for those that it maps. Regions that the peer still holds count, and so do ended
    /// ones whose pages are kept for the next. Existing regions stay.
    pub fn set_limit(&self, bytes: usize) {
        if let Some(channel) = self.0.upgrade() {
            channel.regions.set_limit(bytes);
        }
    }

    /// Frees the pages of ended regions, as far as the peer claims to have unmapped them, instead
    /// of keeping them for the channel's next regions. Only for peers that are trusted with this,
    /// such as dom0: one that lies keeps pages of the kernel busy beyond every
    /// [limit](Self::set_limit).
    pub fn give_back(&self) {
        if let Some(channel) = self.0.upgrade() {
            channel.regions.give_back(channel.backend.peer_alive());
        }
    }

    fn channel(&self) -> Result<Arc<Shared>> {
        self.0.upgrade().ok_or(Error::Closed)
    }
}

impl Channel {
    /// Makes a region; see [`Regions::create`] and the [module](crate::region).
    ///
    /// # Errors
    /// As [`Regions::create`].
    pub fn create_region(&self, bytes: usize, access: Access) -> Result<OwnedRegion> {
        owned::create(self.shared(), bytes, access)
    }

    /// Maps a region; see [`Regions::map`] and the [module](crate::region).
    ///
    /// # Errors
    /// As [`Regions::map`].
    pub fn map_region(&self, ticket: &[u8], deadline: Instant) -> Result<MappedRegion> {
        mapped::map(self.shared(), ticket, None, deadline)
    }

    /// The regions of this channel; remains usable after it is split.
    pub fn regions(&self) -> Regions {
        Regions(Arc::downgrade(self.shared()))
    }
}
