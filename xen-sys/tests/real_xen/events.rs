//! Event channels. The "granting" provider is the end that waits, the "mapping" one binds to it.

use std::os::fd::AsRawFd;

use xen_sys::{DomId, ErrorKind, Port, Provider};

use crate::support::{bound_pair, drain, next_event, own_domain, readable};

pub(crate) fn both_ends_reach_each_other(server: Provider, client: Provider) {
    let pair = bound_pair(server, client);
    for _ in 0..10 {
        pair.client.notify(pair.client_port).expect("notify");
        assert_eq!(next_event(&*pair.server), pair.server_port);
        pair.server.unmask(pair.server_port).expect("unmask");
        pair.server.notify(pair.server_port).expect("notify");
        assert_eq!(next_event(&*pair.client), pair.client_port);
        pair.client.unmask(pair.client_port).expect("unmask");
    }
}

pub(crate) fn a_delivered_port_waits_for_unmask(server: Provider, client: Provider) {
    let pair = bound_pair(server, client);
    pair.client.notify(pair.client_port).expect("notify");
    assert_eq!(next_event(&*pair.server), pair.server_port);
    // Masked: further events are merged into one until the unmask.
    for _ in 0..3 {
        pair.client.notify(pair.client_port).expect("notify");
    }
    assert_eq!(pair.server.pending().expect("pending"), None);
    assert!(!readable(&*pair.server));
    pair.server.unmask(pair.server_port).expect("unmask");
    assert_eq!(next_event(&*pair.server), pair.server_port);
    pair.server.unmask(pair.server_port).expect("unmask");
    assert_eq!(
        pair.server.pending().expect("pending"),
        None,
        "three events became one"
    );
}

pub(crate) fn nothing_pending_is_none(server: Provider, _client: Provider) {
    let events = server.open_event_channels().expect("open");
    assert_eq!(events.pending().expect("pending"), None);
    let port = events.bind_unbound(own_domain()).expect("bind_unbound");
    assert_eq!(events.pending().expect("pending"), None);
    assert!(!readable(&*events));
    events.reset().expect("reset");
    events.unbind(port).expect("unbind");
}

pub(crate) fn a_taken_port_refuses_a_second_client(server: Provider, client: Provider) {
    let pair = bound_pair(server, client);
    let second = client.open_event_channels().expect("open");
    let error = second
        .bind_interdomain(own_domain(), pair.server_port)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BindRefused, "{error}");
    assert!(error.hint().is_some());
    let error = second
        .bind_interdomain(own_domain(), Port(4000))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BindRefused, "{error}");
    let error = second.bind_interdomain(DomId(0x7f00), Port(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BindRefused, "{error}");
}

pub(crate) fn notifying_a_closed_peer_succeeds(server: Provider, client: Provider) {
    let pair = bound_pair(server, client);
    drop(pair.client);
    pair.server
        .notify(pair.server_port)
        .expect("Xen drops an event to nobody");
    // The port waits again, for a new client of the same domain.
    let again = client.open_event_channels().expect("open");
    let port = again
        .bind_interdomain(own_domain(), pair.server_port)
        .expect("bind again");
    assert_eq!(next_event(&*again), port);
    pair.server.notify(pair.server_port).expect("notify");
    again.unmask(port).expect("unmask");
    assert_eq!(next_event(&*again), port);
}

pub(crate) fn unbound_ports_are_errors(server: Provider, _client: Provider) {
    let events = server.open_event_channels().expect("open");
    let port = events.bind_unbound(own_domain()).expect("bind_unbound");
    events
        .notify(port)
        .expect("a port that waits can be notified");
    events.unbind(port).expect("unbind");
    assert_eq!(
        events.notify(port).unwrap_err().errno(),
        Some(libc::ENOTCONN)
    );
    assert_eq!(
        events.unbind(port).unwrap_err().errno(),
        Some(libc::ENOTCONN)
    );
}

pub(crate) fn one_device_serves_many_ports(server: Provider, client: Provider) {
    let own = own_domain();
    let (server, client) = (
        server.open_event_channels().expect("open"),
        client.open_event_channels().expect("open"),
    );
    let mut ports: Vec<(Port, Port)> = (0..40)
        .map(|_| {
            let local = server.bind_unbound(own).expect("bind_unbound");
            (
                local,
                client
                    .bind_interdomain(own, local)
                    .expect("bind_interdomain"),
            )
        })
        .collect();
    drain(&*client);
    drain(&*server);
    for (_, remote) in &ports {
        client.notify(*remote).expect("notify");
    }
    while !ports.is_empty() {
        let port = next_event(&*server);
        let before = ports.len();
        ports.retain(|(local, _)| *local != port);
        assert_eq!(
            ports.len() + 1,
            before,
            "port {port} came twice or is not ours"
        );
        server.unmask(port).expect("unmask");
    }
}

pub(crate) fn the_descriptor_is_nonblocking_and_closed_on_exec(
    server: Provider,
    _client: Provider,
) {
    let events = server.open_event_channels().expect("open");
    let fd = events.as_fd().as_raw_fd();
    // SAFETY: these commands read flags.
    let (descriptor, status) = unsafe {
        (
            libc::fcntl(fd, libc::F_GETFD),
            libc::fcntl(fd, libc::F_GETFL),
        )
    };
    assert_ne!(descriptor & libc::FD_CLOEXEC, 0);
    assert_ne!(status & libc::O_NONBLOCK, 0);
    // The grant devices do not expose a descriptor: find them by name.
    let _share = server.open_grant_share().expect("open");
    let _map = server.open_grant_map().expect("open");
    for entry in std::fs::read_dir("/proc/self/fd").expect("fds").flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if !target.starts_with("/dev/xen") {
            continue;
        }
        let fd: i32 = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .expect("a number");
        // SAFETY: reads flags; a descriptor that another test closed meanwhile gives -1, in which
        // every bit is set.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert_ne!(
            flags & libc::FD_CLOEXEC,
            0,
            "{} leaks into programs",
            target.display()
        );
    }
}

pub(crate) fn a_restricted_device_binds_nothing_else(server: Provider, client: Provider) {
    let own = own_domain();
    let waiting = server.open_event_channels().expect("open");
    let port = waiting.bind_unbound(own).expect("bind_unbound");
    let events = client.open_event_channels().expect("open");
    if own == DomId(0) {
        // Linux refuses to restrict to dom0, so allow a domain that is not there.
        assert_eq!(
            events.restrict(own).unwrap_err().errno(),
            Some(libc::EINVAL)
        );
        events.restrict(DomId(100)).expect("restrict");
        let error = events.bind_interdomain(own, port).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BindRefused, "{error}");
        assert_eq!(error.errno(), Some(libc::EACCES));
    } else {
        events.restrict(own).expect("restrict");
        events
            .bind_interdomain(own, port)
            .expect("the allowed domain");
        let error = events.bind_interdomain(DomId(0), Port(1)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EACCES));
    }
    let error = events.bind_unbound(own).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EACCES));
}
