//! Shared by the tests: the own domain, deadlines, volatile access, waiting for events.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use xen_sys::{DomId, EventChannels, Port, Provider};

/// The domain this runs in.
pub(crate) fn own_domain() -> DomId {
    match std::env::var("XEN_SYS_DOMID") {
        Ok(text) => DomId(text.parse().expect("XEN_SYS_DOMID is a number")),
        Err(_) => DomId(0),
    }
}

/// Long enough for an emulated machine; a test that waits this long has failed.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Reads one byte that another mapping may change.
pub(crate) fn peek(start: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: the tests stay within the pages they mapped, while these are mapped.
    unsafe { start.as_ptr().add(at).read_volatile() }
}

/// Writes one byte that another mapping may see.
pub(crate) fn poke(start: NonNull<u8>, at: usize, byte: u8) {
    // SAFETY: as in `peek`; the tests write to writable mappings only.
    unsafe { start.as_ptr().add(at).write_volatile(byte) }
}

/// Waits until the byte has this value.
pub(crate) fn wait_for_byte(start: NonNull<u8>, at: usize, byte: u8) {
    let deadline = soon();
    while peek(start, at) != byte {
        assert!(
            Instant::now() < deadline,
            "byte {at} stayed {}, not {byte}",
            peek(start, at)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the next pending port, leaving it masked.
pub(crate) fn next_event(events: &dyn EventChannels) -> Port {
    let deadline = soon();
    loop {
        if let Some(port) = events.pending().expect("pending") {
            return port;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no event came");
        let mut poll = libc::pollfd {
            fd: events.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = i32::try_from(left.as_millis()).expect("a short wait");
        // SAFETY: one valid structure.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    }
}

/// Whether the descriptor is readable at once.
pub(crate) fn readable(events: &dyn EventChannels) -> bool {
    let mut poll = libc::pollfd {
        fd: events.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid structure.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLIN != 0 }
}

/// Takes and unmasks what is pending, such as the first event of a fresh binding.
pub(crate) fn drain(events: &dyn EventChannels) {
    while let Some(port) = events.pending().expect("pending") {
        events.unmask(port).expect("unmask");
    }
}

/// Two event devices of this domain, bound to each other.
pub(crate) struct Pair {
    pub(crate) server: Box<dyn EventChannels>,
    pub(crate) server_port: Port,
    pub(crate) client: Box<dyn EventChannels>,
    pub(crate) client_port: Port,
}

/// Binds a pair and swallows the events that binding causes.
pub(crate) fn bound_pair(server: Provider, client: Provider) -> Pair {
    let own = own_domain();
    let server = server
        .open_event_channels()
        .expect("open the server's events");
    let client = client
        .open_event_channels()
        .expect("open the client's events");
    let server_port = server.bind_unbound(own).expect("bind_unbound");
    let client_port = client
        .bind_interdomain(own, server_port)
        .expect("bind_interdomain");
    // Xen raises the first event on the binder's port.
    assert_eq!(next_event(&*client), client_port);
    client.unmask(client_port).expect("unmask");
    drain(&*server);
    drain(&*client);
    Pair {
        server,
        server_port,
        client,
        client_port,
    }
}
