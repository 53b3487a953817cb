//! The crate's own regions, without the list of pages that only Xen has.

#[path = "../../src/region/bounds.rs"]
mod bounds;
#[path = "region_channel.rs"]
mod channel;
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

pub use error::RegionError;
pub use mapped::MappedRegion;
pub use memory::{OwnerMemory, PeerMemory};
pub use owned::OwnedRegion;
pub use ticket::{Access, Carrier, TICKET_BYTES, Ticket};
