//! The provider that calls Xen's C libraries, loaded at run time by their sonames.
//!
//! Each library is loaded once and stays loaded: its handles may outlive any one of ours.

mod ctrl;
mod evtchn;
mod gntshr;
mod gnttab;
mod load;

pub use ctrl::{DomainInfo, Domains};
pub(crate) use evtchn::LibraryEvtchn;
pub(crate) use gntshr::LibraryGntshr;
pub(crate) use gnttab::LibraryGnttab;
