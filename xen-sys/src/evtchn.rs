//! Event channels: one-bit notifications between two domains.

use std::fmt;
use std::os::fd::AsFd;

use crate::{DomId, Result};

/// A local event channel port. Source: `xen/event_channel.h`, `evtchn_port_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u32);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One open event channel device and the ports bound through it.
///
/// The descriptor is non-blocking and close-on-exec, and is readable while a port is pending:
/// wait with `poll`, then call [`pending`](Self::pending). Dropping it unbinds every port.
/// After `fork` the child must not use it.
///
/// A port that was delivered stays masked until [`unmask`](Self::unmask), so a peer can raise at
/// most one event per unmask.
pub trait EventChannels: AsFd + fmt::Debug + Send + Sync {
    /// The implementation, for diagnostics: a device path or a library's name.
    fn provider(&self) -> &str;

    /// Allocates a port that `peer` may bind to.
    ///
    /// # Errors
    /// `BindRefused` when the domain does not exist or Xen has no free port.
    fn bind_unbound(&self, peer: DomId) -> Result<Port>;

    /// Binds a fresh local port to the port `remote` of domain `peer`.
    ///
    /// Xen marks the new local port pending once, so a first event arrives without the peer.
    ///
    /// # Errors
    /// `BindRefused` when the remote port is not waiting for this domain: stale number, already
    /// bound, or the domain is gone.
    fn bind_interdomain(&self, peer: DomId, remote: Port) -> Result<Port>;

    /// Signals the other end of `port`. Succeeds even when the other end is gone.
    fn notify(&self, port: Port) -> Result<()>;

    /// The next pending port, now masked; `None` when there is none. Never blocks.
    ///
    /// # Errors
    /// `EventsLost` when the kernel's list overflowed: call [`reset`](Self::reset).
    fn pending(&self) -> Result<Option<Port>>;

    /// Fills `ports` from its start with pending ports, each now masked and listed at most once;
    /// returns their number. Never blocks.
    ///
    /// # Errors
    /// As [`pending`](Self::pending).
    fn pending_many(&self, ports: &mut [Port]) -> Result<usize> {
        for (count, place) in ports.iter_mut().enumerate() {
            match self.pending() {
                Ok(Some(port)) => *place = port,
                // A persistent error comes again with the next call.
                Err(error) if count == 0 => return Err(error),
                Ok(None) | Err(_) => return Ok(count),
            }
        }
        Ok(ports.len())
    }

    /// Lets each of `ports` be delivered again, as [`unmask`](Self::unmask).
    fn unmask_many(&self, ports: &[Port]) -> Result<()> {
        ports.iter().try_for_each(|&port| self.unmask(port))
    }

    /// Lets `port` be delivered again. Unmask before looking for work, so that an event after the
    /// look is not lost.
    fn unmask(&self, port: Port) -> Result<()>;

    /// Closes `port`; the peer's end becomes unbound and gets no event for it.
    fn unbind(&self, port: Port) -> Result<()>;

    /// Empties the kernel's list of pending ports after `EventsLost`.
    fn reset(&self) -> Result<()>;

    /// From now on only [`bind_interdomain`](Self::bind_interdomain) to `peer` is allowed, until
    /// the descriptor is closed. Ports bound before keep working. Linux refuses domain 0.
    fn restrict(&self, peer: DomId) -> Result<()>;
}
