//! The scenarios: the steps of two sides of a channel in the models.

use std::time::{Duration, Instant};

use loom::sync::atomic::Ordering;
use loom::thread;
use vgpu_transport::Transport;

use crate::error::Error;
use crate::pair::{FORMAT, LEFT, Pair, Start, far, pair, read_all};
pub(crate) use crate::region_scenario::*;
use crate::sync::{self, Without};
use crate::waiting::backend_poll;
use crate::waiting::hold_out::HoldOut;
use crate::wire::layout::Format;

/// One side writes twice and closes at once; the other sleeps and must get all, then the end.
pub(super) fn write_then_close() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    let writer = thread::spawn(move || {
        client.write_all(&[1], far()).unwrap();
        client.write_all(&[2], far()).unwrap();
    });
    assert_eq!(
        read_all(&mut server),
        [1, 2],
        "bytes were lost at the close"
    );
    writer.join().unwrap();
}

/// As before, but the reader only looks: once it has seen the end, it must have got the byte.
pub(super) fn end_seen_awake() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    let writer = thread::spawn(move || client.write_all(&[1], far()).unwrap());
    let mut got = 0;
    for _ in 0..3 {
        match server.try_read(&mut [0; 2]).unwrap() {
            Some(0) => assert_eq!(got, 1, "bytes were lost at the close"),
            Some(n) => got += n,
            None => {}
        }
    }
    writer.join().unwrap();
}

/// A question and its answer: both sides sleep and wake each other.
pub(super) fn round_trip() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    let echo = thread::spawn(move || {
        let mut byte = [0];
        assert_eq!(server.read(&mut byte, far()).unwrap(), 1);
        server.write_all(&byte, far()).unwrap();
        server
    });
    client.write_all(&[7], far()).unwrap();
    let mut byte = [0];
    assert_eq!(client.read(&mut byte, far()).unwrap(), 1);
    assert_eq!(byte, [7]);
    echo.join().unwrap();
}

/// A reader would like two bytes, gets none in its moment, and sleeps until the only one is there.
pub(super) fn hold_out_in_vain() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    server.reader.hold_out = HoldOut::always(2, Duration::ZERO);
    let writes = thread::spawn(move || {
        client.write_all(&[1], far()).unwrap();
        client
    });
    assert_eq!(server.read(&mut [0; 2], far()).unwrap(), 1);
    writes.join().unwrap();
}

/// A reader sleeps until two bytes are there, which come one by one.
pub(super) fn hold_out_for_two() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    server.reader.hold_out = HoldOut::always(2, Duration::from_secs(3600));
    let writes = thread::spawn(move || {
        client.write_all(&[1], far()).unwrap();
        client.write_all(&[2], far()).unwrap();
        client
    });
    let mut got = server.read(&mut [0; 2], far()).unwrap();
    if got == 1 {
        // A peer that does not know of amounts rings for the first byte.
        got += server.try_read(&mut [0]).unwrap().unwrap_or(1);
    }
    assert_eq!(got, 2);
    writes.join().unwrap();
}

/// The writer finds one free byte for its two and sleeps until the reader has made room.
pub(super) fn full_ring() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: LEFT - 1 });
    let reader = thread::spawn(move || {
        let mut byte = [0];
        assert_eq!(server.read(&mut byte, far()).unwrap(), 1);
        server
    });
    client.write_all(&[1, 2], far()).unwrap();
    reader.join().unwrap();
}

/// The reader waits for two bytes, which come one by one.
pub(super) fn read_two() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    let writer = thread::spawn(move || {
        client.write_all(&[1], far()).unwrap();
        client.write_all(&[2], far()).unwrap();
        client
    });
    let mut bytes = [0; 2];
    Transport::read_exact(&mut server, &mut bytes, far()).unwrap();
    assert_eq!(bytes, [1, 2]);
    let client = writer.join().unwrap();
    if FORMAT.get() == Format::Extended {
        assert!(client.stats().events_sent <= 1, "the first byte is no news");
    }
}

/// One side goes to sleep while the other closes and does not ring.
pub(super) fn close_while_asleep() {
    let Pair {
        mut server, client, ..
    } = pair(Start { unread: 0 });
    let closer = thread::spawn(move || drop(client));
    assert_eq!(server.read(&mut [0], far()).unwrap(), 0);
    closer.join().unwrap();
}

/// The writer sleeps on a full ring; the reader closes.
pub(super) fn close_while_writing() {
    let Pair {
        server, mut client, ..
    } = pair(Start { unread: LEFT });
    let closer = thread::spawn(move || drop(server));
    let outcome = client.write_all(&[1], far());
    assert!(
        matches!(outcome, Err(Error::PeerClosed { unread: LEFT })),
        "{outcome:?}"
    );
    closer.join().unwrap();
}

/// The peer's domain is destroyed: it neither closes nor rings, only the backend does.
pub(super) fn domain_destroyed() {
    let Pair {
        mut server,
        client,
        servers_bell,
        dead,
        ..
    } = pair(Start { unread: 0 });
    let backend = thread::spawn(move || {
        dead.store(true, Ordering::SeqCst);
        servers_bell.ring();
    });
    let outcome = server.read(&mut [0], far());
    assert!(matches!(outcome, Err(Error::PeerLost)), "{outcome:?}");
    backend.join().unwrap();
    drop(client);
}

/// Both have written something and close in an orderly way at the same time.
pub(super) fn both_close() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 1 });
    let other = thread::spawn(move || server.close(far()));
    let outcomes = [client.close(far()), other.join().unwrap()];
    for outcome in outcomes {
        assert!(
            matches!(outcome, Ok(()) | Err(Error::PeerClosed { .. })),
            "{outcome:?}"
        );
    }
}

/// An application that polls the descriptor itself.
pub(super) fn poll_loop() {
    let Pair {
        mut server,
        mut client,
        servers_bell,
        ..
    } = pair(Start { unread: 0 });
    let writer = thread::spawn(move || {
        client.write_all(&[1], far()).unwrap();
        client.write_all(&[2], far()).unwrap();
        client
    });
    let mut got = 0;
    while got < 2 {
        match server.try_read(&mut [0; 2]).unwrap() {
            Some(n) => got += n,
            None => {
                sync::atomic::make_late_requests();
                if sync::is_left_out(Without::AcknowledgeFirst) {
                    servers_bell.take();
                }
                servers_bell.wait();
            }
        }
    }
    writer.join().unwrap();
}

/// Both halves of one side sleep, one as leader and one as follower, on one doorbell; the
/// other side reads one byte and writes one.
pub(super) fn split_halves() {
    let Pair {
        mut server,
        client,
        clients_bell,
        ..
    } = pair(Start { unread: LEFT });
    backend_poll::next_cancel(Some(clients_bell));
    let (mut reader, mut writer) = client.split().unwrap();
    let reads = thread::spawn(move || {
        assert_eq!(reader.read(&mut [0], far()).unwrap(), 1);
        reader
    });
    let writes = thread::spawn(move || {
        writer.write_all(&[1], far()).unwrap();
        writer
    });
    server.write_all(&[9], far()).unwrap();
    assert_eq!(server.read(&mut [0], far()).unwrap(), 1);
    reads.join().unwrap();
    writes.join().unwrap();
}

/// The half that polls for both runs out of time; the other must take over.
pub(super) fn leader_times_out() {
    let Pair {
        mut server,
        client,
        clients_bell,
        ..
    } = pair(Start { unread: LEFT });
    backend_poll::next_cancel(Some(clients_bell));
    let (mut reader, mut writer) = client.split().unwrap();
    let reads = thread::spawn(move || {
        let past = Instant::now();
        let outcome = reader.read(&mut [0], past);
        assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
        reader
    });
    let writes = thread::spawn(move || {
        writer.write_all(&[1], far()).unwrap();
        writer
    });
    assert_eq!(server.read(&mut [0], far()).unwrap(), 1);
    reads.join().unwrap();
    writes.join().unwrap();
}

/// One half sleeps, the other closes the channel.
pub(super) fn own_half_closes() {
    let Pair {
        server,
        client,
        clients_bell,
        ..
    } = pair(Start { unread: 0 });
    backend_poll::next_cancel(Some(clients_bell));
    let (mut reader, writer) = client.split().unwrap();
    let reads = thread::spawn(move || {
        let outcome = reader.read(&mut [0], far());
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    });
    writer.close(far()).unwrap();
    reads.join().unwrap();
    drop(server);
}
