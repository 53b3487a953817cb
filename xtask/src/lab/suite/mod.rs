//! The integration tests that need Xen: `cargo xtask lab test`.
//!
//! One file per topic, each with a table of cases; a new topic is a new file and a line in
//! [`TOPICS`]. A case gets a [`Context`] and fails with an error.

use anyhow::Result;

mod channel;
mod context;
mod domains;
mod faults;
mod faults_hostile;
mod faults_restore;
mod faults_store;
mod faults_xenstored;
mod footprint;
mod gpu;
mod group;
mod interop;
mod many;
mod mediators;
mod missing_pieces;
pub(crate) mod nfs;
mod region;
mod relay;
mod runner;
mod session;
mod silo;
mod vchan;
mod vector_add;
mod xen_sys;
mod xenstore;

pub(crate) use context::Context;
pub(crate) use footprint::Footprint;
#[cfg(test)]
pub(crate) use runner::cases;
pub(crate) use runner::{Options, Totals, list, run};

use super::guest::Kind;

/// Every case of the suite, in the order in which they run.
pub(crate) const TOPICS: &[&[Case]] = &[
    xen_sys::CASES,
    xenstore::CASES,
    channel::CASES,
    vector_add::CASES,
    gpu::CASES,
    mediators::CASES,
    missing_pieces::CASES,
    domains::CASES,
    interop::CASES,
    vchan::CASES,
    region::CASES,
    many::CASES,
    session::CASES,
    silo::CASES,
    nfs::CASES,
    relay::CASES,
    faults::CASES,
    faults_store::CASES,
    faults_restore::CASES,
    faults_hostile::CASES,
    faults_xenstored::CASES,
];

/// One test.
pub(crate) struct Case {
    /// `topic/what`: matched by `--filter`.
    pub(crate) name: &'static str,
    /// The shared guests it uses; they run before it starts.
    pub(crate) guests: &'static [Kind],
    /// Whether it uses the shared guests with a network ([`Context::networked`]).
    pub(crate) networked: bool,
    /// The mediator that must run before it starts.
    pub(crate) mediator: Mediator,
    /// Whether nothing can run after it: it comes last, and its leftovers are not checked.
    pub(crate) ends_machine: bool,
    /// Whether it ends a shared guest ([`Context::end_guest`]): it comes after the cases that use
    /// the guest, and checks its leftovers itself.
    pub(crate) ends_guest: bool,
    /// The test itself. An error is a failure; [`super::host::Lacking`] in it a skip.
    pub(crate) run: fn(&mut Context) -> Result<()>,
}

impl Case {
    /// A case without a mediator.
    const fn new(
        name: &'static str,
        guests: &'static [Kind],
        run: fn(&mut Context) -> Result<()>,
    ) -> Self {
        Case {
            name,
            guests,
            networked: false,
            mediator: Mediator::Stopped,
            ends_machine: false,
            ends_guest: false,
            run,
        }
    }

    /// A case without a mediator that ends a guest of this kind.
    const fn ends_guest(
        name: &'static str,
        guests: &'static [Kind],
        run: fn(&mut Context) -> Result<()>,
    ) -> Self {
        Case {
            ends_guest: true,
            ..Case::new(name, guests, run)
        }
    }

    /// A case without a mediator, with the two shared PV guests that have a network to dom0.
    const fn networked(name: &'static str, run: fn(&mut Context) -> Result<()>) -> Self {
        Case {
            networked: true,
            ..Case::new(name, &[], run)
        }
    }

    /// A case that requires a running mediator that admits everybody.
    const fn with_mediator(
        name: &'static str,
        guests: &'static [Kind],
        run: fn(&mut Context) -> Result<()>,
    ) -> Self {
        Case {
            mediator: Mediator::Running,
            ..Case::new(name, guests, run)
        }
    }

    /// The same, and the last thing that its machine does.
    const fn ends_machine(
        name: &'static str,
        guests: &'static [Kind],
        run: fn(&mut Context) -> Result<()>,
    ) -> Self {
        Case {
            ends_machine: true,
            ..Case::with_mediator(name, guests, run)
        }
    }
}

/// The mediator that a case requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mediator {
    Running,
    Stopped,
}
