//! The number of a domain.

use std::fmt;

/// A domain id as Xen uses it; 0 is dom0. Source: `xen/xen.h`, `domid_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u16);

impl DomId {
    /// The first number that Xen never gives to a domain (`DOMID_FIRST_RESERVED`, `xen/xen.h`).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
