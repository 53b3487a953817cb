#![forbid(unsafe_code)]
//! A region that this side made, shared by the channel's ledger and its user.

use super::header::Header;
use super::memory::OwnerMemory;
use super::ticket::{Access, Ticket};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state that channel and [`OwnedRegion`](super::OwnedRegion) share; the memory goes when
/// either of them ends.
#[derive(Debug)]
pub(super) struct OwnedCell {
    pub(super) ticket: Ticket,
    owner: Mutex<Option<Arc<Owner>>>,
}

/// Memory with its header.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) header: Header,
    pub(super) memory: OwnerMemory,
    pub(super) access: Access,
}

impl OwnedCell {
    pub(super) fn new(ticket: Ticket, owner: Arc<Owner>) -> Self {
        Self {
            ticket,
            owner: Mutex::new(Some(owner)),
        }
    }

    pub(super) fn take(&self) -> Option<Arc<Owner>> {
        self.lock().take()
    }

    pub(super) fn get(&self) -> Option<Arc<Owner>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Owner>>> {
        // Nothing can panic while it is held.
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
