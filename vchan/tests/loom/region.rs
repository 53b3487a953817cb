//! The crate's own regions, without the list of pages that only Xen has.

#[path = "../../src/region/bounds.rs"]
mod bounds;
#[path = "../../src/region/error.rs"]
pub(crate) mod error;
#[path = "../../src/region/header.rs"]
pub(crate) mod header;
#[path = "../../src/region/ledger.rs"]
pub(crate) mod ledger;
#[path = "../../src/region/mapped.rs"]
pub(crate) mod mapped;
#[path = "../../src/region/mapped_cell.rs"]
pub(crate) mod mapped_cell;
#[path = "../../src/region/memory.rs"]
pub(crate) mod memory;
#[path = "../../src/region/owned.rs"]
pub(crate) mod owned;
#[path = "../../src/region/owned_cell.rs"]
mod owned_cell;
#[path = "../../src/region/ticket.rs"]
pub(crate) mod ticket;
#[path = "../../src/region/view.rs"]
mod view;

use std::time::Instant;

pub use error::RegionError;
pub use mapped::MappedRegion;
pub use memory::{OwnerMemory, PeerMemory};
pub use owned::OwnedRegion;
pub use ticket::{Access, Carrier, TICKET_BYTES, Ticket};

use crate::channel::Channel;
use crate::error::Result;

/// As in `src/region/mod.rs`.
impl Channel {
    pub(crate) fn create_region(&self, bytes: usize, access: Access) -> Result<OwnedRegion> {
        owned::create(self.shared(), bytes, access)
    }

    pub(crate) fn map_region(&self, ticket: &[u8], deadline: Instant) -> Result<MappedRegion> {
        mapped::map(self.shared(), ticket, deadline)
    }
}
