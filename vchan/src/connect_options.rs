#![forbid(unsafe_code)]
//! How to set up a channel where the usual way will not do.

use std::time::Instant;

use crate::reactor::Handle;
use crate::wire::layout::Format;
use crate::xen::DomainLife;

/// Options of [`local::serve_with`](crate::local::serve_with),
/// [`xen::connect_with`](crate::xen::connect_with) and their like, beyond the place.
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

    /// Which wire format to be ready for.
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

    /// Until when a server may take to publish itself in xenstore; five seconds from the call if this
    /// is not given.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Over Xen: whose end ends the channel, of the domain that is connected to. Then the channel looks at
    /// no domain itself.
    #[must_use]
    pub fn life(mut self, life: &'a DomainLife) -> Self {
        self.life = Some(life);
        self
    }

    /// Lets both rings of a server start at `index` instead of 0, for tests of the wrap-around.
    #[must_use]
    pub fn first_index(mut self, index: u32) -> Self {
        self.first_index = index;
        self
    }
}
