#![forbid(unsafe_code)]
//! Options for setting up a channel other than the usual way.

use std::time::Instant;

use crate::reactor::Handle;
use crate::wire::layout::Format;
use crate::xen::DomainLife;

/// Options beyond the address, for [`local::serve_with`](crate::local::serve_with),
/// [`xen::connect_with`](crate::xen::connect_with) and the like.
///
/// ```
/// use vchan::{Format, Setup};
/// // Exactly libxenvchan's format, whatever the peer knows.
/// let setup = Setup::new().format(Format::Classic);
/// # let _ = setup;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup<'a> {
    pub(crate) format: Format,
    pub(crate) reactor: Option<&'a Handle>,
    pub(crate) first_index: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) life: Option<&'a DomainLife>,
}

impl<'a> Setup<'a> {
    /// The usual way: the extended format, on no reactor.
    pub fn new() -> Self {
        Self::default()
    }

    /// The wire format to be ready for.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Puts the channel on a reactor.
    #[must_use]
    pub fn reactor(mut self, reactor: &'a Handle) -> Self {
        self.reactor = Some(reactor);
        self
    }

    /// Time limit for a server to publish itself in xenstore; five seconds from the call by
    /// default.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Over Xen: the life of the domain at the other end, whose end also ends the channel. The
    /// channel then watches no domain itself.
    #[must_use]
    pub fn life(mut self, life: &'a DomainLife) -> Self {
        self.life = Some(life);
        self
    }

    /// Lets both rings of a server start at `index` instead of 0, for tests of the wrap-around.
    #[doc(hidden)]
    #[must_use]
    pub fn first_index(mut self, index: u32) -> Self {
        self.first_index = index;
        self
    }
}
