#![doc = include_str!("../README.md")]
//! # Layers
//! | layer | where | what |
//! |---|---|---|
//! | bindings | [`generated`] | bindgen's output for the C headers, committed |
//! | ioctls | [`ioctl`] | one `unsafe fn` for each ioctl |
//! | operations | [`GrantShare`], [`GrantMap`], [`EventChannels`] | owned, typed errors |

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
