#![forbid(unsafe_code)]
//! The memory of a region as a backend provides it: pages, and the means by which the peer gets at them.

use std::os::fd::OwnedFd;

use super::ticket::Carrier;
use crate::wire::layout::PAGE;
use crate::wire::shm::Region;

/// Memory that this side has made for its regions, one after the other.
#[derive(Debug)]
pub struct OwnerMemory {
    /// The header page, writable for both sides. Unmapping it sets the owner's state to 0.
    pub header: Region,
    /// The data pages, writable here.
    pub data: Region,
    /// Further pages of the list of grant references; only kept alive here.
    pub list: Option<Region>,
    /// The carrier that a ticket for this memory names.
    pub carrier: Carrier,
    /// The memfds of header and data, where the peer needs them.
    pub descriptors: Option<[OwnedFd; 2]>,
}

impl OwnerMemory {
    /// Its pages in all, including the list's.
    pub fn pages(&self) -> usize {
        1 + (self.data.len() + self.list.as_ref().map_or(0, Region::len)) / PAGE
    }
}

/// Memory of the peer's that this side has mapped.
#[derive(Debug)]
pub struct PeerMemory {
    /// The header page, writable.
    pub header: Region,
    /// The data pages, writable if the ticket allows that.
    pub data: Region,
    /// Whether unmapping the header clears the peer's state in it and rings the owner's doorbell.
    pub kernel_tells: bool,
}
