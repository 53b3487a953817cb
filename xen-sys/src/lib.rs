//! Xen's user-space interfaces: grants, event channels and domain information.
//!
//! | layer | where | what |
//! |---|---|---|
//! | bindings | [`generated`] | bindgen's output for the C headers, committed |
//! | ioctls | [`ioctl`] | one `unsafe fn` for each ioctl |
//! | operations | [`GrantShare`], [`GrantMap`], [`EventChannels`] | owned, typed errors |
//!
//! Two [`Provider`]s implement the operations: Xen's C libraries, loaded at run time by their
//! sonames, and the kernel's devices. Nothing is linked: building needs neither Xen nor libclang,
//! and off Xen every `open_…` returns an error that names what is missing.
//!
//! ```no_run
//! use xen_sys::{Access, DomId, Provider, UnmapNotify};
//!
//! # fn main() -> xen_sys::Result<()> {
//! let provider = Provider::from_env()?;
//! let events = provider.open_event_channels()?;
//! let port = events.bind_unbound(DomId(0))?;
//! // Byte 21 goes to zero and dom0 gets an event when this process ends, however it ends.
//! let notify = UnmapNotify { clear_byte: Some(21), send_event: Some(port) };
//! let page = provider.open_grant_share()?.share(DomId(0), 1, Access::ReadWrite, Some(notify))?;
//! println!("grant {} port {port}", page.refs()[0]);
//! # Ok(())
//! # }
//! ```

mod device;
mod domain;
mod error;
mod evtchn;
pub mod generated;
mod grant;
pub mod ioctl;
mod kernel;
mod libraries;
mod memory;
mod provider;

pub use domain::DomId;
pub use error::{Error, ErrorKind, Result};
pub use evtchn::{EventChannels, Port};
pub use grant::{
    Access, GrantMap, GrantRef, GrantShare, MappedPages, PAGE_SIZE, SharedPages, UnmapNotify,
};
pub use libraries::{DomainInfo, Domains};
pub use provider::{PROVIDER_ENV, Provider};
