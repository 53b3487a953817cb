//! Whether a domain is alive, and whether it is still the one it was.
//!
//! libxenctrl asks Xen itself, and is used where it is installed (dom0). Elsewhere xenstore is
//! asked: the toolstack removes `/local/domain/<id>` with the domain, and its node `vm` names the
//! domain's uuid. A guest can see only itself, and learns nothing.

use std::sync::OnceLock;
use std::time::Instant;

use xen_sys::{DomainInfo, Domains};

use super::path;
use super::store::{Store, StoreError};
use super::sys;
use crate::DomId;

/// Xen's shutdown code for "suspended" (`SHUTDOWN_suspend`, `xen/sched.h`): such a domain may be
/// resumed with its grants and ports in place.
const SUSPENDED: u8 = 2;

/// An identity that distinguishes a domain from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// Its uuid, from Xen.
    Uuid([u8; 16]),
    /// Its node `vm` in xenstore, which holds the uuid.
    Vm(Box<str>),
    /// It exists; its identity cannot be seen.
    Unnamed,
}

impl Identity {
    /// Whether both have the same kind of identity and it is not equal.
    pub(super) fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Uuid(one), Self::Uuid(other)) => one != other,
            (Self::Vm(one), Self::Vm(other)) => one != other,
            _ => false,
        }
    }
}

/// The visible state of a domain.
#[derive(Debug)]
pub(super) enum Look {
    /// It runs, is paused, or is suspended.
    Alive(Identity),
    /// It does not exist, is being destroyed, or has shut down.
    Gone,
    /// This domain is not allowed to see it, or the look failed.
    Hidden,
}

/// Checks `domain`, waiting for xenstored until `deadline` at most.
pub(super) fn look(domain: DomId, store: Store, deadline: Instant) -> Look {
    match control().map(|domains| domains.info(sys::domain(domain))) {
        Some(Ok(info)) => from_xen(info),
        Some(Err(error)) => {
            log::debug!("libxenctrl does not tell about domain {domain}: {error}");
            from_xenstore(domain, store, deadline)
        }
        None => from_xenstore(domain, store, deadline),
    }
}

fn control() -> Option<&'static Domains> {
    static CONTROL: OnceLock<Option<Domains>> = OnceLock::new();
    let open = || {
        Domains::open()
            .inspect_err(|error| log::debug!("no libxenctrl: {error}"))
            .ok()
    };
    CONTROL.get_or_init(open).as_ref()
}

fn from_xen(info: Option<DomainInfo>) -> Look {
    match info {
        Some(DomainInfo {
            dying: false,
            shutdown: None | Some(SUSPENDED),
            uuid,
            ..
        }) => Look::Alive(uuid.map_or(Identity::Unnamed, Identity::Uuid)),
        _ => Look::Gone,
    }
}

fn from_xenstore(domain: DomId, store: Store, deadline: Instant) -> Look {
    let home = path::home(domain);
    match store.read(&format!("{home}/vm"), deadline) {
        Ok(vm) => return Look::Alive(Identity::Vm(vm)),
        Err(StoreError::NotFound { .. }) => {}
        Err(_) => return Look::Hidden,
    }
    // dom0 does not have a `vm` node everywhere: its home shows whether it exists.
    match store.read(&home, deadline) {
        Ok(_) => Look::Alive(Identity::Unnamed),
        Err(StoreError::NotFound { .. }) => Look::Gone,
        Err(_) => Look::Hidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(dying: bool, shutdown: Option<u8>) -> Option<DomainInfo> {
        let uuid = Some([7; 16]);
        Some(DomainInfo {
            id: xen_sys::DomId(3),
            uuid,
            dying,
            shutdown,
            paused: true,
        })
    }

    #[test]
    fn paused_and_suspended_domains_are_alive() {
        for shutdown in [None, Some(SUSPENDED)] {
            let look = from_xen(info(false, shutdown));
            assert!(matches!(look, Look::Alive(Identity::Uuid(uuid)) if uuid == [7; 16]));
        }
    }

    /// docs/threat-model.md, case 31: a new domain has the number of the old one, but not its uuid.
    #[test]
    fn case_31_a_reused_domain_id_is_seen() {
        let uuid = |byte| Identity::Uuid([byte; 16]);
        let vm = |path: &str| Identity::Vm(path.into());
        assert!(uuid(1).differs(&uuid(2)));
        assert!(vm("/vm/1").differs(&vm("/vm/2")));
        assert!(!uuid(1).differs(&uuid(1)));
        assert!(!vm("/vm/1").differs(&vm("/vm/1")));
        // Seen in two ways, or not at all: no proof of another domain.
        assert!(!uuid(1).differs(&vm("/vm/2")));
        assert!(!Identity::Unnamed.differs(&uuid(1)));
    }

    #[test]
    fn dying_crashed_and_missing_domains_are_gone() {
        let crashed = info(false, Some(3));
        for gone in [None, info(true, None), crashed, info(true, Some(SUSPENDED))] {
            assert!(matches!(from_xen(gone), Look::Gone));
        }
    }
}
