//! On a machine without Xen every operation returns an error with a hint, and nothing panics.

use std::path::Path;

use xen_sys::{Domains, Error, ErrorKind, Provider};

/// The errors of all `open_…` calls with one provider.
fn openings(provider: Provider) -> Vec<Error> {
    [
        provider.open_grant_share().map(|_| ()),
        provider.open_grant_map().map(|_| ()),
        provider.open_event_channels().map(|_| ()),
    ]
    .into_iter()
    .map(|result| result.expect_err("there is no Xen here"))
    .collect()
}

#[test]
fn every_opening_names_what_is_missing() {
    if Path::new("/dev/xen").exists() {
        test_skip::skipped("this machine runs on Xen; tests/real_xen covers it");
        return;
    }
    for provider in [Provider::Ioctls, Provider::Auto] {
        for error in openings(provider) {
            assert_eq!(error.kind(), ErrorKind::DeviceMissing, "{error}");
            assert!(error.to_string().contains("/dev/xen/"), "{error}");
            assert!(
                error
                    .hint()
                    .is_some_and(|hint| hint.contains("local transport")),
                "{error}"
            );
        }
    }
    for error in openings(Provider::Libraries) {
        let kinds = [ErrorKind::DeviceMissing, ErrorKind::LibraryMissing];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
    let error = Domains::open().expect_err("there is no Xen here");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("dom0")),
        "{error}"
    );
}
