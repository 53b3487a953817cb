#![forbid(unsafe_code)]
//! A region on the side that made it.

use std::time::{Duration, Instant};

use super::error::RegionError;
use super::ledger::{self, Source};
use super::owned_cell::{OwnedCell, Owner};
use super::ticket::{Access, TICKET_BYTES, Ticket};
use super::view::{self, View};
use crate::channel::channel_state::Shared;
use crate::error::{Error, Result};
use crate::sync::{Arc, Weak};
use crate::wire::layout::PAGE;

/// Interval at which a revocation rings the peer again: a peer that was copying when the bell rang
/// sees the revocation only now.
const RING_AGAIN_INTERVAL: Duration = Duration::from_millis(100);

/// A region that this side made and its peer may map. See the [module](super).
///
/// Dropping it revokes the region without waiting. Its pages are kept for the next region of the
/// same channel, and freed when the channel is closed ([or before](super::Regions::give_back)).
#[derive(Debug)]
pub struct OwnedRegion {
    cell: Arc<OwnedCell>,
    channel: Weak<Shared>,
}

/// Makes a region of `bytes` in `channel`.
pub(super) fn create(channel: &Arc<Shared>, bytes: usize, access: Access) -> Result<OwnedRegion> {
    channel.check()?;
    if channel.peer_gone()? {
        return Err(channel.end(0));
    }
    let data = ledger::data_pages(bytes)?;
    let total = channel.backend.region_pages(data);
    let alive = channel.backend.peer_alive();
    let nonce = nonce()?;
    let (id, source) = channel.regions.begin(data, total, access, alive)?;
    let owner = match source {
        Source::Kept(owner) => {
            // The peer must not find the last region's bytes.
            owner.memory.data.part(0, data * PAGE).zero();
            owner
        }
        Source::Fresh => match channel.backend.share_region(data, access) {
            Ok(memory) => Arc::new(Owner {
                header: ledger::header(&memory),
                memory,
                access,
            }),
            Err(error) => {
                channel.regions.abandon(total);
                return Err(error);
            }
        },
    };
    let ticket = Ticket {
        id,
        nonce,
        length: bytes as u64,
        access,
        carrier: owner.memory.carrier,
    };
    owner.header.initialise(&ticket);
    if let Err(error) = channel.backend.hand_over_region(&owner.memory, &ticket) {
        owner.header.revoke();
        channel.regions.keep(owner);
        return Err(error);
    }
    let region = OwnedRegion {
        cell: Arc::new(OwnedCell::new(ticket, owner)),
        channel: Arc::downgrade(channel),
    };
    match channel.regions.add(&region.cell) {
        true => Ok(region),
        false => Err(Error::Closed),
    }
}

fn nonce() -> Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| {
        Error::os(
            "cannot get random bytes for a region's ticket",
            std::io::Error::other(error.to_string()),
        )
    })?;
    Ok(nonce)
}

impl OwnedRegion {
    /// The bytes by which the peer maps the region, once. Send them over the channel, in whatever
    /// protocol the application uses.
    pub fn ticket(&self) -> [u8; TICKET_BYTES] {
        self.cell.ticket.encode()
    }

    /// Bytes of the region.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one byte")]
    pub fn len(&self) -> usize {
        // It was a usize when the region was made.
        usize::try_from(self.cell.ticket.length).unwrap_or(usize::MAX)
    }

    /// The accesses allowed to each side.
    pub fn access(&self) -> Access {
        self.cell.ticket.access
    }

    /// Copies bytes out of the region, from `offset` on. A peer that may write can change them at
    /// any moment: check the copy, and use the copy.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`]; [`Error::Closed`].
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        view::read(&self.usable()?.memory.data, self.len(), offset, to)
    }

    /// Copies `from` into the region at `offset`. A peer that receives a later message over the
    /// channel also sees these bytes.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`]; [`RegionError::ReadOnly`] with [`Access::PeerWrites`];
    /// [`Error::Closed`].
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        let owner = self.writable()?;
        view::write(&owner.memory.data, self.len(), offset, from)
    }

    /// Loads a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`RegionError::Misaligned`].
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        view::load(&self.usable()?.memory.data, self.len(), offset)
    }

    /// Stores a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`RegionError::Misaligned`].
    pub fn store_u64(&mut self, offset: usize, value: u64) -> Result<()> {
        let owner = self.writable()?;
        view::store(&owner.memory.data, self.len(), offset, value)
    }

    /// The address of `len` bytes at `offset`, to be handed to a device or a system call.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn view(&self, offset: usize, len: usize) -> Result<View> {
        let owner = self.usable()?;
        let writable = self.access().owner_writes();
        let view = View::new(&owner.memory.data, self.len(), offset, len, writable)?;
        Ok(view.holding(owner))
    }

    /// Takes the region back: from now on every access of the peer fails, and it is asked to unmap.
    /// Waits until it has. This side may use the region until it is dropped.
    ///
    /// The wait consumes events without reporting them again: after this call use `try_*` calls
    /// before polling the channel's descriptor.
    ///
    /// # Errors
    /// [`RegionError::StillHeld`] at `deadline`: the call may be repeated. [`Error::Closed`].
    pub fn revoke(&mut self, deadline: Instant) -> Result<()> {
        let owner = self.usable()?;
        owner.header.revoke();
        loop {
            // Held for one round only, so as not to delay another thread's close.
            let channel = self.channel.upgrade().ok_or(Error::Closed)?;
            channel.check()?;
            // Read before checking, so that one check follows the deadline.
            let now = Instant::now();
            let mut free = || owner.header.is_released() || !channel.backend.peer_alive();
            if free() {
                return Ok(());
            }
            if now >= deadline {
                let pages = owner.memory.pages();
                return Err(RegionError::StillHeld { pages }.into());
            }
            channel.ring_peer()?;
            channel.wait_for_bell(deadline.min(now + RING_AGAIN_INTERVAL), &mut free)?;
        }
    }

    fn usable(&self) -> Result<Arc<Owner>> {
        let channel = self.channel.upgrade().ok_or(Error::Closed)?;
        channel.check()?;
        self.cell.get().ok_or(Error::Closed)
    }

    fn writable(&self) -> Result<Arc<Owner>> {
        match self.access().owner_writes() {
            true => self.usable(),
            false => Err(RegionError::ReadOnly.into()),
        }
    }
}

impl Drop for OwnedRegion {
    fn drop(&mut self) {
        let Some(channel) = self.channel.upgrade() else {
            return;
        };
        if let Some(owner) = self.cell.get() {
            owner.header.revoke();
            if !owner.header.is_released() {
                // A peer that cannot be rung is gone.
                let _ = channel.ring_peer();
            }
        }
        channel.regions.end(&self.cell);
    }
}
