//! The Xen backend: granted pages, event channels and a meeting point in xenstore.
//!
//! The **server** grants the control page and the rings to its peer and writes two keys into
//! xenstore; the **client** reads the keys, binds the event channel and maps the pages. On
//! XCP-ng a guest may talk to dom0 only and may map nothing, so there the guest is the server,
//! below its own `data/` node, and dom0 the client.
//!
//! * [`Server`], [`connect`]: the two roles.
//! * [`store`], [`keys`], [`path`]: xenstore, the keys, and the names of nodes.
//! * `domain_watch`, `identity`: detection of the end of the peer's domain.
//! * `link`: doorbell and death notice, as a backend of the ring core.
//! * `region`: pages of shared regions.
//! * `memory`: the one file with `unsafe`: pages as regions. `sys`: the crate xen-sys, adapted.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use vchan::{DomId, xen};
//!
//! # fn main() -> vchan::Result<()> {
//! let soon = || Instant::now() + Duration::from_secs(10);
//! // In the guest:
//! let mut server = xen::Server::publish(DomId(0), "data/demo", (64 << 10).into())?;
//! let mut guest_end = server.accept(soon())?;
//! // In dom0, for guest 7:
//! let mut dom0_end = xen::connect(DomId(7), "data/demo", soon())?;
//! # Ok(())
//! # }
//! ```

mod client;
mod domain_watch;
mod identity;
pub mod keys;
mod link;
mod memory;
pub mod path;
mod region;
mod server;
pub mod store;
mod sys;

#[cfg(feature = "testing")]
pub(crate) use client::connect_parts;
pub use client::{connect, connect_on_reactor, connect_with};
pub use domain_watch::DomainLife;
pub use server::Server;

use crate::DomId;
use crate::error::{Error, PeerError};
use domain_watch::WatchError;
use keys::KeyError;
use path::{ChannelPath, PathError};
use store::StoreError;

/// The peer's address for messages: `xen:7/data/x`.
fn place(peer: DomId, path: &ChannelPath) -> String {
    let slash = if path.is_absolute() { "" } else { "/" };
    format!("xen:{peer}{slash}{path}")
}

fn domain_gone(place: impl std::fmt::Display) -> Error {
    Error::setup(
        format!("the domain at the other end of {place} was destroyed"),
        "look at `xl list`; a restarted guest has a new domain id",
    )
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::setup(error.to_string(), error.advice())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let advice = error.advice();
        match error {
            StoreError::Unreachable { source } => {
                Self::os_with_advice("cannot reach xenstore", source, advice)
            }
            error => Self::setup(error.to_string(), advice),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            error @ KeyError::Value { .. } => PeerError::Rendezvous(error.to_string()).into(),
        }
    }
}

impl From<WatchError> for Error {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Absent(_) => {
                Self::setup(error.to_string(), "check the domain id with `xl list`")
            }
            WatchError::EventFd(errno) => Self::os("cannot create an eventfd", errno),
        }
    }
}
