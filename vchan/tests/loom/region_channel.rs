//! A channel's calls for regions, as in `src/region/mod.rs`.

use std::time::Instant;

use super::{Access, MappedRegion, OwnedRegion, mapped, owned};
use crate::channel::Channel;
use crate::error::Result;

impl Channel {
    pub(crate) fn create_region(&self, bytes: usize, access: Access) -> Result<OwnedRegion> {
        owned::create(self.shared(), bytes, access)
    }

    pub(crate) fn map_region(&self, ticket: &[u8], deadline: Instant) -> Result<MappedRegion> {
        mapped::map(self.shared(), ticket, None, deadline)
    }
}
