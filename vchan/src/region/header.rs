#![forbid(unsafe_code)]
//! The header page of a region: its ticket, and the state of its two sides.
//!
//! | offset | what | written by |
//! |---|---|---|
//! | 0..48 | the ticket, see [`ticket`](super::ticket) | owner, before it hands the ticket out |
//! | 48 | grant reference of the first further page of the list, 0 if none | owner |
//! | 64 | owner's state | owner; its kernel sets 0 when the page is unmapped |
//! | 128 | peer's state | see below; the peer's kernel sets 0 when the page is unmapped |
//! | 256.. | grant references of the data pages, see [`grant_list`](super::grant_list) | owner |
//!
//! The peer's state goes `AWAITED` → `MAPPED` (peer) → `RELEASED` (peer or its kernel), or
//! `AWAITED` → `RELEASED` (owner, which revokes a region that nobody has mapped). Both first steps
//! are compare-exchanges of the same byte, so one of them wins. The page then serves the next
//! region: a peer that has claimed checks the ticket once more, and undoes a claim of the wrong
//! region, `MAPPED` → `AWAITED`.

use super::error::RegionError;
use super::ticket::{TICKET_BYTES, Ticket};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::wire::layout::PAGE;
use crate::wire::shm::Region;

/// Offset of the reference to the first further page of the list.
pub(crate) const NEXT: usize = 48;
/// Offset of the owner's state.
pub(crate) const OWNER_STATE: usize = 64;
/// Offset of the peer's state.
pub(crate) const PEER_STATE: usize = 128;
/// Offset of the list of data pages.
pub(crate) const LIST: usize = 256;

/// Values of the owner's state.
mod owner {
    pub(super) const CLOSED: u8 = 0;
    pub(super) const OPEN: u8 = 1;
    pub(super) const REVOKED: u8 = 2;
}

/// Values of the peer's state.
mod peer {
    pub(super) const RELEASED: u8 = 0;
    pub(super) const MAPPED: u8 = 1;
    pub(super) const AWAITED: u8 = 2;
}

/// A header page, seen as atomics.
#[derive(Debug)]
pub(crate) struct Header {
    page: Region,
}

impl Header {
    /// Takes a region of one page; writable, except for use with [`check`](Self::check) alone.
    ///
    /// # Panics
    /// If it is not one page; backends map it themselves.
    pub(crate) fn new(page: Region) -> Self {
        assert_eq!(page.len(), PAGE, "the header is one page");
        Self { page }
    }

    /// Owner: makes it the header of `ticket`'s region.
    pub(super) fn initialise(&self, ticket: &Ticket) {
        self.page.copy_in(0, &ticket.encode());
        self.owner_state().store(owner::OPEN, Ordering::SeqCst);
        // Last: the peer may map once it sees this.
        self.peer_state().store(peer::AWAITED, Ordering::SeqCst);
    }

    /// Peer: whether this is the header of `ticket`'s region, still open and never mapped.
    ///
    /// # Errors
    /// [`RegionError::Stale`], [`RegionError::Used`], or why it is not open.
    pub(crate) fn check(&self, ticket: &Ticket) -> Result<(), RegionError> {
        self.check_ticket(ticket)?;
        self.check_open()?;
        match self.peer_state().load(Ordering::SeqCst) {
            peer::AWAITED => Ok(()),
            _ => Err(RegionError::Used),
        }
    }

    fn check_ticket(&self, ticket: &Ticket) -> Result<(), RegionError> {
        let mut found = [0; TICKET_BYTES];
        self.page.copy_out(0, &mut found);
        match found == ticket.encode() {
            true => Ok(()),
            false => Err(RegionError::Stale),
        }
    }

    /// Peer: declares the region of `ticket`, which was [checked](Self::check), mapped. Once this
    /// has returned `Ok`, the caller must [`release`](Self::release) the region where no kernel
    /// does. Claims are made one at a time, so that none meets one that is being undone.
    ///
    /// # Errors
    /// [`RegionError::Used`], also if the owner has just revoked it. [`RegionError::Stale`] if the
    /// owner has revoked it since the check and made another region of its memory: the claim was
    /// undone, and the owner, which may be waiting for that, should be rung.
    pub(super) fn claim(&self, ticket: &Ticket) -> Result<(), RegionError> {
        self.peer_state()
            .compare_exchange(
                peer::AWAITED,
                peer::MAPPED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .map_err(|_| RegionError::Used)?;
        // Once claimed, the ticket does not change any more.
        self.check_ticket(ticket).inspect_err(|_| {
            // Pairs with `is_released`: an owner that revokes meanwhile checks again.
            self.peer_state().store(peer::AWAITED, Ordering::SeqCst);
        })
    }

    /// Peer: whether the owner still allows access, from one load.
    ///
    /// # Errors
    /// The reason if it does not.
    #[inline]
    pub(super) fn check_open(&self) -> Result<(), RegionError> {
        // Pairs with the stores in `initialise`, `revoke` and `close`.
        match self.owner_state().load(Ordering::SeqCst) {
            owner::OPEN => Ok(()),
            owner::REVOKED => Err(RegionError::Revoked),
            owner::CLOSED => Err(RegionError::OwnerClosed),
            other => Err(RegionError::State(other)),
        }
    }

    /// Peer: declares its mapping gone, where no kernel does.
    pub(super) fn release(&self) {
        // Pairs with the load in `is_released`.
        self.peer_state().store(peer::RELEASED, Ordering::SeqCst);
    }

    /// Owner: refuses the peer every further access.
    pub(super) fn revoke(&self) {
        self.owner_state().store(owner::REVOKED, Ordering::SeqCst);
    }

    /// Owner: the region ends with the channel.
    pub(super) fn close(&self) {
        self.owner_state().store(owner::CLOSED, Ordering::SeqCst);
    }

    /// Owner, after a revocation: whether the peer claims to have no mapping and can get none.
    pub(super) fn is_released(&self) -> bool {
        // Nobody has mapped it, and nobody can any more (pairs with `claim`).
        let refused = self.peer_state().compare_exchange(
            peer::AWAITED,
            peer::RELEASED,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        matches!(refused, Ok(_) | Err(peer::RELEASED))
    }

    fn owner_state(&self) -> &AtomicU8 {
        self.page.u8_at(OWNER_STATE)
    }

    fn peer_state(&self) -> &AtomicU8 {
        self.page.u8_at(PEER_STATE)
    }
}
