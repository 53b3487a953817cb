#![deny(unsafe_code)]
//! The memory that both sides of a channel share: the two pages, the rings, and the rules for
//! access.
//!
//! `control_page` is libxenvchan's page and `extension_page` the one beside it; `ring_end` is one
//! end of one ring, in either format. Nothing here waits.

pub mod control_page;
pub mod extension;
pub mod extension_page;
pub mod layout;
mod non_temporal;
pub mod notify;
pub mod ring;
pub(crate) mod ring_end;
pub mod shm;
