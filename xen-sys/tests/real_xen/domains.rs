//! The list of domains. Only dom0 may ask.

use xen_sys::{DomId, Domains, ErrorKind};

use crate::support::own_domain;

#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn dom0_is_listed_and_alive() {
    let domains = match Domains::open() {
        Ok(domains) => domains,
        Err(error) => {
            assert_ne!(own_domain(), DomId(0), "dom0 can ask: {error}");
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::DeviceMissing
                ),
                "{error}"
            );
            return;
        }
    };
    if own_domain() != DomId(0) {
        let error = domains.info(DomId(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        return;
    }
    let dom0 = domains.info(DomId(0)).expect("info").expect("dom0 exists");
    assert!(dom0.is_alive());
    assert!(!dom0.paused);
    assert_eq!(dom0.uuid, Some([0; 16]), "dom0 has the zero UUID");
    assert_eq!(domains.info(DomId(0x7eef)).expect("info"), None);
    let list = domains.list().expect("list");
    assert_eq!(list.first().map(|info| info.id), Some(DomId(0)));
    assert!(list.is_sorted_by_key(|info| info.id));
}
