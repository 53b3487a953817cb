#![forbid(unsafe_code)]
//! A region of the peer's, as the channel's ledger and its user both hold it.

use std::fmt::Debug;

use super::error::RegionError;
use super::header::Header;
use crate::error::{Error, Result};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use crate::wire::shm::Region;

/// The part of a channel that a mapping needs.
pub(crate) trait RingsPeer: Debug + Send + Sync {
    /// Rings the peer, which then looks at the headers of its regions.
    fn ring(&self);
}

/// The state that channel and [`MappedRegion`](super::MappedRegion) share; the mapping goes when
/// either of them ends.
#[derive(Debug)]
pub(super) struct MappedCell {
    pub(super) id: u64,
    pub(super) pages: usize,
    mapping: Mutex<Option<Arc<Mapping>>>,
}

/// The mapping, until its last user is done.
#[derive(Debug)]
pub(super) struct Mapping {
    /// `None` only during the drop.
    data: Option<Region>,
    header: Header,
    kernel_tells: bool,
    channel: Weak<dyn RingsPeer>,
}

impl Mapping {
    /// A mapping of `data`, with its claimed `header`. With `tells` the kernel releases the header
    /// when it is unmapped.
    pub(super) fn new(
        data: Region,
        header: Header,
        kernel_tells: bool,
        channel: Weak<dyn RingsPeer>,
    ) -> Self {
        Self {
            data: Some(data),
            header,
            kernel_tells,
            channel,
        }
    }

    pub(super) fn data(&self) -> Result<&Region> {
        self.data.as_ref().ok_or(Error::Closed)
    }

    pub(super) fn check_open(&self) -> Result<(), RegionError> {
        self.header.check_open()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The owner may use the pages again once it is notified, so they go first.
        self.data = None;
        if !self.kernel_tells {
            self.header.release();
            if let Some(channel) = self.channel.upgrade() {
                channel.ring();
            }
        }
    }
}

impl MappedCell {
    pub(super) fn new(id: u64, pages: usize, mapping: Mapping) -> Self {
        Self {
            id,
            pages,
            mapping: Mutex::new(Some(Arc::new(mapping))),
        }
    }

    pub(super) fn get(&self) -> Option<Arc<Mapping>> {
        self.lock().clone()
    }

    pub(super) fn take(&self) -> Option<Arc<Mapping>> {
        self.lock().take()
    }

    pub(super) fn check_open(&self) -> Result<(), RegionError> {
        match self.lock().as_ref() {
            Some(mapping) => mapping.check_open(),
            None => Err(RegionError::Revoked),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Mapping>>> {
        // Nothing can panic while it is held.
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
