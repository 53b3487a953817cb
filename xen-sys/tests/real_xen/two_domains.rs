//! A guest grants and dom0 maps, as vgpu does it: the two ends are two runs of this program.
//!
//! The guest's end runs `two_domains::the_guest_grants`, dom0's `two_domains::dom0_maps` with
//! `XEN_SYS_PEER` set to the guest's number, both with `XEN_SYS_PROVIDER`. They meet at the node
//! `data/xen-sys` of the guest, which `xenstore-write` and `xenstore-read` reach.

use std::process::Command;
use std::time::{Duration, Instant};

use xen_sys::{Access, DomId, EventChannels, GrantRef, PAGE_SIZE, Port, Provider, UnmapNotify};

use crate::support::{next_event, peek, poke, soon, wait_for_byte};

const PAGES: usize = 9;
const CLIENT_LIVE: u16 = 20;
const SERVER_LIVE: u16 = 21;

fn xenstore(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the xenstore programs");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for an event and unmasks its port.
fn take_event(events: &dyn EventChannels, port: Port) {
    assert_eq!(next_event(events), port);
    events.unmask(port).expect("unmask");
}

#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn the_guest_grants() {
    if std::env::var_os("XEN_SYS_TWO_DOMAINS").is_none() {
        return;
    }
    let dom0 = DomId(0);
    let provider = Provider::from_env().expect("provider");
    let events = provider.open_event_channels().expect("open");
    let port = events.bind_unbound(dom0).expect("bind_unbound");
    let share = provider.open_grant_share().expect("open");
    let notify = UnmapNotify {
        clear_byte: Some(SERVER_LIVE),
        send_event: Some(port),
    };
    let control = share
        .share(dom0, 1, Access::ReadWrite, Some(notify))
        .expect("share");
    let ring = share
        .share(dom0, PAGES, Access::ReadOnly, None)
        .expect("share");
    poke(control.as_ptr(), SERVER_LIVE.into(), 1);
    for page in 0..PAGES {
        poke(
            ring.as_ptr(),
            page * PAGE_SIZE + 5,
            page.to_le_bytes()[0] + 1,
        );
    }
    let refs: Vec<String> = ring.refs().iter().map(|gref| gref.to_string()).collect();
    let place = format!("{port} {} {}", control.refs()[0], refs.join(" "));
    xenstore("xenstore-write", &["data/xen-sys", &place]).expect("xenstore-write");

    // dom0 maps, reports it, and unmaps: one event for each.
    take_event(&*events, port);
    assert_eq!(peek(control.as_ptr(), CLIENT_LIVE.into()), 1);
    poke(control.as_ptr(), 0, 42);
    events.notify(port).expect("notify");
    take_event(&*events, port);
    wait_for_byte(control.as_ptr(), CLIENT_LIVE.into(), 0);
    events.notify(port).expect("notify");
    // The next client maps and stays; this end goes first, without closing.
    take_event(&*events, port);
}

#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn dom0_maps() {
    let Ok(peer) = std::env::var("XEN_SYS_PEER") else {
        return;
    };
    let node = format!("/local/domain/{peer}/data/xen-sys");
    let guest = DomId(peer.parse().expect("XEN_SYS_PEER is a number"));
    let provider = Provider::from_env().expect("provider");

    let deadline = Instant::now() + Duration::from_secs(120);
    let place = loop {
        match xenstore("xenstore-read", &[&node]) {
            Some(place) if !place.is_empty() => break place,
            _ => assert!(
                Instant::now() < deadline,
                "the guest wrote nothing to {node}"
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    xenstore("xenstore-rm", &[&node]);
    let mut numbers = place
        .split(' ')
        .map(|number| number.parse::<u32>().expect("a number"));
    let remote = Port(numbers.next().expect("a port"));
    let control_ref = GrantRef(numbers.next().expect("a reference"));
    let ring_refs: Vec<GrantRef> = numbers.map(GrantRef).collect();
    assert_eq!(ring_refs.len(), PAGES);

    let map = provider.open_grant_map().expect("open");
    let connect = || {
        let events = provider.open_event_channels().expect("open");
        let port = events
            .bind_interdomain(guest, remote)
            .expect("bind_interdomain");
        take_event(&*events, port);
        let notify = UnmapNotify {
            clear_byte: Some(CLIENT_LIVE),
            send_event: Some(port),
        };
        let control = map
            .map(
                guest,
                &[control_ref],
                Access::ReadWrite,
                Some(notify),
                soon(),
            )
            .expect("map the control page");
        poke(control.as_ptr(), CLIENT_LIVE.into(), 1);
        (events, port, control)
    };

    let (events, port, control) = connect();
    let ring = map
        .map(guest, &ring_refs, Access::ReadOnly, None, soon())
        .expect("map the ring");
    for page in 0..PAGES {
        assert_eq!(
            usize::from(peek(ring.as_ptr(), page * PAGE_SIZE + 5)),
            page + 1
        );
    }
    map.map(guest, &ring_refs, Access::ReadWrite, None, soon())
        .map(|_| ())
        .expect_err("the ring was granted read-only");
    events.notify(port).expect("notify");
    take_event(&*events, port);
    assert_eq!(peek(control.as_ptr(), 0), 42);
    drop(control);
    // Only once the guest has seen the byte cleared may the next client set it again.
    take_event(&*events, port);
    drop(events);

    let (events, port, control) = connect();
    assert_eq!(peek(control.as_ptr(), SERVER_LIVE.into()), 1);
    events.notify(port).expect("notify");
    // The guest's process ends with its pages still mapped here.
    take_event(&*events, port);
    wait_for_byte(control.as_ptr(), SERVER_LIVE.into(), 0);
    assert_eq!(
        peek(ring.as_ptr(), 5),
        1,
        "the pages stay until the last mapping goes"
    );
}
