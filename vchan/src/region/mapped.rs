#![forbid(unsafe_code)]
//! The side that maps a region its peer made.

use std::time::Instant;

use super::error::RegionError;
use super::header::Header;
use super::mapped_cell::{MappedCell, Mapping};
use super::ticket::{Access, Ticket};
use super::view::{self, View};
use crate::channel::channel_state::Shared;
use crate::error::{Error, Result};
use crate::sync::{Arc, Weak};

/// A region of the peer's, mapped here. See the [module](super).
///
/// It is unmapped when it is dropped, when its owner revokes or closes it, when the channel is
/// closed, and when the channel learns that the peer's process or domain is gone. Accesses after
/// that are errors.
#[derive(Debug)]
pub struct MappedRegion {
    cell: Arc<MappedCell>,
    channel: Weak<Shared>,
    ticket: Ticket,
}

/// Maps the region whose ticket is `bytes`, at `at` if that is possible.
pub(super) fn map(
    channel: &Arc<Shared>,
    bytes: &[u8],
    at: Option<usize>,
    deadline: Instant,
) -> Result<MappedRegion> {
    channel.check()?;
    if channel.peer_gone()? {
        return Err(channel.end(0));
    }
    let ticket = Ticket::decode(bytes)?;
    let pages = channel.backend.region_pages(ticket.pages());
    channel.regions.begin_mapping(ticket.id, pages)?;
    let memory = match channel.backend.map_region(&ticket, at, deadline) {
        Ok(memory) => memory,
        Err(error) => {
            channel.regions.abandon_mapping(ticket.id, pages);
            return Err(match error {
                // Not a ticket that came too late, but memory that no rule-abiding peer offers.
                Error::Peer(error) => channel.fail(error),
                error => error,
            });
        }
    };
    let header = Header::new(memory.header);
    let claim = || {
        let claimed = channel.regions.claim(&header, &ticket);
        if matches!(claimed, Err(RegionError::Stale)) {
            // A peer that cannot be rung is gone.
            let _ = channel.ring_peer();
        }
        claimed
    };
    if let Err(error) = header.check(&ticket).and_then(|()| claim()) {
        channel.regions.abandon_mapping(ticket.id, pages);
        if memory.kernel_tells {
            channel.regions.keep_unclaimed(header);
        }
        return Err(error.into());
    }
    let mapping = Mapping::new(
        memory.data,
        header,
        memory.kernel_tells,
        Arc::<Shared>::downgrade(channel),
    );
    let region = MappedRegion {
        cell: Arc::new(MappedCell::new(ticket.id, pages, mapping)),
        channel: Arc::downgrade(channel),
        ticket,
    };
    if !channel.regions.add_mapping(&region.cell) {
        return Err(Error::Closed);
    }
    // A peer's death that was noticed before the mapping was listed found nothing to unmap.
    match channel.peer_gone()? {
        true => Err(channel.end(0)),
        false => Ok(region),
    }
}

impl MappedRegion {
    /// Bytes of the region.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one byte")]
    pub fn len(&self) -> usize {
        // Checked when the ticket was decoded.
        usize::try_from(self.ticket.length).unwrap_or(usize::MAX)
    }

    /// The accesses allowed to each side.
    pub fn access(&self) -> Access {
        self.ticket.access
    }

    /// Copies bytes out of the region, from `offset` on. The owner can change them at any moment:
    /// check the copy, and use the copy.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`]; [`RegionError::Revoked`] and [`RegionError::OwnerClosed`];
    /// [`Error::PeerClosed`], [`Error::PeerLost`], [`Error::Closed`] with the channel.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        view::read(self.usable()?.data()?, self.len(), offset, to)
    }

    /// Copies `from` into the region at `offset`. An owner that receives a later message over the
    /// channel also sees these bytes.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`RegionError::ReadOnly`] with [`Access::PeerReads`].
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        view::write(self.writable()?.data()?, self.len(), offset, from)
    }

    /// Loads a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`RegionError::Misaligned`].
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        view::load(self.usable()?.data()?, self.len(), offset)
    }

    /// Stores a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`RegionError::Misaligned`].
    pub fn store_u64(&mut self, offset: usize, value: u64) -> Result<()> {
        view::store(self.writable()?.data()?, self.len(), offset, value)
    }

    /// The address of `len` bytes at `offset`, to be handed to a device or a system call. The bytes
    /// stay mapped while the view lives, and a revocation by the owner waits for that.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn view(&self, offset: usize, len: usize) -> Result<View> {
        let mapping = self.usable()?;
        let writable = self.access().peer_writes();
        let view = View::new(mapping.data()?, self.len(), offset, len, writable)?;
        Ok(view.holding(mapping))
    }

    fn usable(&self) -> Result<Arc<Mapping>> {
        let channel = self.channel.upgrade().ok_or(Error::Closed)?;
        channel.check()?;
        if channel.peer_gone()? {
            return Err(channel.end(0));
        }
        let mapping = self.cell.get().ok_or(RegionError::Revoked)?;
        if let Err(error) = mapping.check_open() {
            drop(mapping);
            channel.regions.end_mapping(&self.cell);
            return Err(error.into());
        }
        Ok(mapping)
    }

    fn writable(&self) -> Result<Arc<Mapping>> {
        match self.access().peer_writes() {
            true => self.usable(),
            false => Err(RegionError::ReadOnly.into()),
        }
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        match self.channel.upgrade() {
            Some(channel) => channel.regions.end_mapping(&self.cell),
            None => drop(self.cell.take()),
        }
    }
}
