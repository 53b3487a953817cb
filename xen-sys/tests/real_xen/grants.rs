//! Granting and mapping pages.

use std::fs;
use std::ptr::NonNull;

use xen_sys::{Access, DomId, ErrorKind, GrantRef, PAGE_SIZE, Provider, UnmapNotify};

use crate::support::{own_domain, peek, poke, soon};

pub(crate) fn pages_are_zeroed_and_shared_both_ways(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    assert_eq!(ours.len(), PAGE_SIZE);
    assert!(
        (0..PAGE_SIZE).all(|at| peek(ours.as_ptr(), at) == 0),
        "a fresh page is zeroed"
    );
    let theirs = map
        .map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
        .expect("map");
    assert_eq!(theirs.len(), PAGE_SIZE);
    poke(ours.as_ptr(), 7, 0x5a);
    assert_eq!(peek(theirs.as_ptr(), 7), 0x5a);
    poke(theirs.as_ptr(), PAGE_SIZE - 1, 0xa5);
    assert_eq!(peek(ours.as_ptr(), PAGE_SIZE - 1), 0xa5);
}

pub(crate) fn many_pages_keep_their_order(granting: Provider, mapping: Provider) {
    const PAGES: usize = 33;
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), PAGES, Access::ReadWrite, None)
        .expect("share");
    assert_eq!(ours.refs().len(), PAGES);
    for page in 0..PAGES {
        poke(ours.as_ptr(), page * PAGE_SIZE, page.to_le_bytes()[0]);
    }
    let reversed: Vec<GrantRef> = ours.refs().iter().rev().copied().collect();
    let theirs = map
        .map(own_domain(), &reversed, Access::ReadOnly, None, soon())
        .expect("map");
    for page in 0..PAGES {
        let expected = (PAGES - 1 - page).to_le_bytes()[0];
        assert_eq!(
            peek(theirs.as_ptr(), page * PAGE_SIZE),
            expected,
            "page {page}"
        );
    }
}

/// The line of `/proc/self/smaps` for the mapping at `start`, and its `VmFlags`.
fn mapping_of(start: NonNull<u8>) -> (String, String) {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let address = format!("{:x}-", start.as_ptr().addr());
    let at = smaps.find(&address).expect("the mapping is listed");
    let mut lines = smaps[at..].lines();
    let head = lines.next().unwrap_or_default().to_owned();
    let flags = lines
        .find(|line| line.starts_with("VmFlags:"))
        .unwrap_or_default()
        .to_owned();
    (head, flags)
}

pub(crate) fn a_read_only_mapping_is_read_only(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 2, Access::ReadOnly, None)
        .expect("share");
    poke(ours.as_ptr(), PAGE_SIZE, 9);
    let theirs = map
        .map(own_domain(), ours.refs(), Access::ReadOnly, None, soon())
        .expect("map");
    assert_eq!(peek(theirs.as_ptr(), PAGE_SIZE), 9);
    let (head, _) = mapping_of(theirs.as_ptr());
    assert!(head.contains(" r--s "), "{head}");
}

pub(crate) fn a_read_only_grant_refuses_a_writable_mapping(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 1, Access::ReadOnly, None)
        .expect("share");
    let error = map
        .map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MapRefused, "{error}");
}

pub(crate) fn unknown_references_are_refused(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    for wrong in [GrantRef(0x0fff_fff0), GrantRef(u32::MAX)] {
        // A good reference before the bad one: nothing of it may stay mapped.
        let refs = [ours.refs()[0], wrong];
        let error = map
            .map(own_domain(), &refs, Access::ReadOnly, None, soon())
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MapRefused, "{error}");
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("max_maptrack_frames"))
        );
    }
    map.map(own_domain(), ours.refs(), Access::ReadOnly, None, soon())
        .expect("still usable");
}

pub(crate) fn the_wrong_owner_is_refused(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    // Granted to a domain that is not this one: this domain may not map it.
    let ours = share
        .share(DomId(own_domain().0 + 100), 1, Access::ReadWrite, None)
        .expect("share");
    let error = map
        .map(own_domain(), ours.refs(), Access::ReadOnly, None, soon())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MapRefused, "{error}");
    // And a domain that does not exist granted nothing.
    let error = map
        .map(DomId(0x7f00), ours.refs(), Access::ReadOnly, None, soon())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MapRefused, "{error}");
}

pub(crate) fn impossible_requests_are_refused_before_xen(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let own = own_domain();
    let byte = |at| {
        Some(UnmapNotify {
            clear_byte: Some(at),
            send_event: None,
        })
    };
    for (pages, notify) in [(0, None), (2, byte(0)), (1, byte(4096)), (usize::MAX, None)] {
        let error = share
            .share(own, pages, Access::ReadWrite, notify)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let one = [GrantRef(8)];
    let two = [GrantRef(8), GrantRef(9)];
    for (refs, access, notify) in [
        (&[][..], Access::ReadWrite, None),
        (&two[..], Access::ReadWrite, byte(0)),
        (&one[..], Access::ReadOnly, byte(0)),
    ] {
        let error = map
            .map(own, refs, access, notify, soon())
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// The kernel's limit on pages granted by gntalloc.
fn gntalloc_limit() -> usize {
    let text = fs::read_to_string("/sys/module/xen_gntalloc/parameters/limit").expect("the limit");
    text.trim().parse().expect("a number")
}

pub(crate) fn more_than_the_limit_is_an_error_that_leaves_nothing(
    granting: Provider,
    _mapping: Provider,
) {
    let share = granting.open_grant_share().expect("open");
    let limit = gntalloc_limit();
    let error = share
        .share(own_domain(), limit + 1, Access::ReadWrite, None)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GrantLimit, "{error}");
    assert_eq!(error.errno(), Some(libc::ENOSPC));
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains(&format!("limit={limit}")), "{hint}");
    // Half of the limit still fits: the failed request keeps nothing.
    share
        .share(own_domain(), limit / 2, Access::ReadWrite, None)
        .expect("share");
}

pub(crate) fn dropped_pages_are_free_again(granting: Provider, mapping: Provider) {
    const PAGES: usize = 64;
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let rounds = 2 * gntalloc_limit() / PAGES;
    for round in 0..rounds {
        let ours = share
            .share(own_domain(), PAGES, Access::ReadWrite, None)
            .unwrap_or_else(|error| panic!("round {round} of {rounds}: {error}"));
        let theirs = map
            .map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
            .expect("map");
        poke(theirs.as_ptr(), 0, 1);
        // The client unmaps first, as it must for the pages to be free at once.
        drop(theirs);
        drop(ours);
    }
}

pub(crate) fn children_inherit_no_mapping(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    let theirs = map
        .map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
        .expect("map");
    for start in [ours.as_ptr(), theirs.as_ptr()] {
        let (head, flags) = mapping_of(start);
        assert!(
            flags.split_whitespace().any(|flag| flag == "dc"),
            "no dontcopy: {head}: {flags}"
        );
    }
}

pub(crate) fn the_mapping_outlives_its_device(granting: Provider, mapping: Provider) {
    let ours = {
        let share = granting.open_grant_share().expect("open");
        share
            .share(own_domain(), 1, Access::ReadWrite, None)
            .expect("share")
    };
    let theirs = {
        let map = mapping.open_grant_map().expect("open");
        map.map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
            .expect("map")
    };
    poke(ours.as_ptr(), 1, 77);
    assert_eq!(peek(theirs.as_ptr(), 1), 77);
    drop(ours);
    // The owner is gone; the page stays until the last mapping goes.
    poke(theirs.as_ptr(), 1, 78);
    assert_eq!(peek(theirs.as_ptr(), 1), 78);
}
