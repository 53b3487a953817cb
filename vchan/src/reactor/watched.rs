#![forbid(unsafe_code)]
//! The sources that a reactor watches for each channel: its bell, and the sign that its peer is gone.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use xen_sys::Port;

use crate::local::bell;
use crate::local::stranger::Stranger;

/// The doorbell by which the peer of one channel rings us.
#[derive(Debug)]
pub(super) enum Bell {
    /// A port of the reactor's event-channel handle.
    Port(Port),
    /// A bell that reports each ring once and is never read.
    Local(Arc<bell::Bell>),
}

/// The source that reports the end of a channel's peer.
#[derive(Debug)]
pub(crate) enum Death {
    /// Readable for ever once the peer's domain is gone.
    Domain(Box<dyn Domain>),
    /// Hangs up when the peer's process ends.
    Stream(Arc<Stranger<UnixStream>>),
}

/// The watch over a peer's domain.
pub(crate) trait Domain: AsFd + Send + Sync + std::fmt::Debug {}
impl<T: AsFd + Send + Sync + std::fmt::Debug> Domain for T {}
