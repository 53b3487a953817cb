#![allow(unsafe_code)]
//! Granted and mapped pages as the regions the ring works on.

use std::sync::Arc;

use xen_sys::{Access, MappedPages, SharedPages};

use crate::wire::shm::Region;

/// Pages of ours that the peer may map.
pub(super) fn shared(pages: SharedPages) -> Region {
    let (start, len) = (pages.as_ptr(), pages.len());
    // SAFETY: `SharedPages` keeps `len` bytes at `start` mapped read-write until it is dropped,
    // and hands them out as a raw pointer only. They are kernel pages: nothing can take them away.
    unsafe { Region::new(start, len, true, Arc::new(pages)) }
}

/// Pages of the peer's that we have mapped with `access`.
pub(super) fn mapped(pages: MappedPages, access: Access) -> Region {
    let (start, len) = (pages.as_ptr(), pages.len());
    // SAFETY: as above for `MappedPages`, writable if mapped so. Xen keeps a mapped page until it
    // is unmapped, even when the domain that owns it is destroyed.
    unsafe { Region::new(start, len, access == Access::ReadWrite, Arc::new(pages)) }
}
