//! A guest grants a page to another guest: Xen allows it, or refuses it under the policy SILO.
//!
//! The ends are two runs of this program, each with `XEN_SYS_PEER`, the other guest's number, and
//! `XEN_SYS_EXPECT`, `allowed` or `refused`. The first writes its reference to its node
//! `data/xen-sys` and keeps the page until somebody removes that.

use std::process::Command;

use xen_sys::{Access, DomId, Error, ErrorKind, GrantRef, Provider};

use crate::support::{peek, poke, soon};

/// Byte 7 of the page.
const MARK: u8 = 42;

/// The other guest, and whether it can be reached; `None` outside of a run by two guests.
fn peer() -> Option<(DomId, bool)> {
    let allowed = std::env::var("XEN_SYS_EXPECT").ok()? == "allowed";
    let peer = std::env::var("XEN_SYS_PEER").ok()?;
    Some((DomId(peer.parse().expect("a number")), allowed))
}

fn check<T>(outcome: Result<T, Error>, allowed: bool, refusal: ErrorKind) -> Option<T> {
    match (outcome, allowed) {
        (Ok(value), true) => Some(value),
        (Err(error), false) => {
            assert_eq!(error.kind(), refusal, "{error}");
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains("SILO"), "does not say why: {error}: {hint}");
            None
        }
        (Ok(_), false) => panic!("Xen allowed it"),
        (Err(error), true) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn a_guest_grants() {
    let Some((peer, allowed)) = peer() else {
        return;
    };
    let provider = Provider::from_env().expect("provider");
    let events = provider.open_event_channels().expect("open");
    check(events.bind_unbound(peer), allowed, ErrorKind::BindRefused);

    let share = provider.open_grant_share().expect("open");
    let page = share
        .share(peer, 1, Access::ReadWrite, None)
        .expect("granting needs no leave of Xen's");
    poke(page.as_ptr(), 7, MARK);
    let xenstore = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).status();
        status.expect("the xenstore programs").success()
    };
    let reference = page.refs()[0].to_string();
    assert!(xenstore("xenstore-write", &["data/xen-sys", &reference]));
    let deadline = soon() + std::time::Duration::from_secs(60);
    while xenstore("xenstore-exists", &["data/xen-sys"]) {
        assert!(std::time::Instant::now() < deadline, "nobody took it");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn a_guest_maps() {
    let Some((peer, allowed)) = peer() else {
        return;
    };
    let reference = std::env::var("XEN_SYS_REFERENCE").expect("XEN_SYS_REFERENCE");
    let reference = GrantRef(reference.parse().expect("a number"));
    let provider = Provider::from_env().expect("provider");
    let map = provider.open_grant_map().expect("open");
    let page = map.map(peer, &[reference], Access::ReadWrite, None, soon());
    if let Some(page) = check(page, allowed, ErrorKind::MapRefused) {
        assert_eq!(peek(page.as_ptr(), 7), MARK);
    }
}
