//! Every interleaving of two sides of a channel, as the memory model allows it.
//!
//! What is explored is the code itself: the files below are the crate's own, compiled against
//! loom's atomics, locks and condition variables. Models stand in for three things only: the
//! shared memory (`loom/shm.rs`; loom reports every unordered access to a ring byte), the doorbell
//! (`loom/backend.rs`, a flag that stays up until acknowledged, as an eventfd or event channel
//! does) and the sleep on it (`loom/poll.rs`). A lost wake-up shows as a deadlock of the model.
//!
//! Each protocol has a twin that leaves one thing out ([`Without`]) and must fail; if it does not,
//! the model is too small to show anything. Explored are all executions with at most three
//! ([`MANY`]) or four ([`FEW`]) switches at a point where the running thread could have gone on.
#![allow(
    dead_code,
    unreachable_pub,
    unused_qualifications,
    reason = "of the crate's files each test uses a part"
)]

#[path = "loom/backend.rs"]
mod backend;
#[path = "../src/channel.rs"]
mod channel;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/extension.rs"]
mod extension;
#[path = "loom/extension_page.rs"]
mod extension_page;
#[path = "../src/layout.rs"]
mod layout;
#[path = "../src/linger.rs"]
mod linger;
#[path = "../src/notify.rs"]
mod notify;
#[path = "loom/poll.rs"]
mod poll;
/// The models are on none.
mod reactor {
    #[derive(Debug, Clone, Copy)]
    pub struct Token;
}
#[path = "../src/reader.rs"]
mod reader;
/// The models have none.
mod region {
    pub mod ledger {
        #[derive(Debug, Default)]
        pub(crate) struct Ledger {}

        impl Ledger {
            pub(crate) fn sweep(&self) {}
            pub(crate) fn peer_gone(&self) {}
            pub(crate) fn close(&self) {}
        }
    }
    pub use crate::region_error::{RegionError, TicketError};
}
#[path = "../src/region/error.rs"]
mod region_error;
#[path = "../src/ring.rs"]
mod ring;
#[path = "../src/ring_end.rs"]
mod ring_end;
#[path = "../src/shared.rs"]
mod shared;
#[path = "loom/shm.rs"]
mod shm;
#[path = "../src/spin.rs"]
mod spin;
#[path = "loom/sync.rs"]
mod sync;
#[path = "../src/wait.rs"]
mod wait;
#[path = "../src/waiting.rs"]
mod waiting;
#[path = "../src/writer.rs"]
mod writer;

use std::cell::Cell;
use std::time::{Duration, Instant};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use vgpu_protocol::transport::Transport;

use backend::{Bell, Doorbell, Parts};
use channel::Channel;
use error::Error;
use extension_page::ExtensionPage;
use layout::{Format, Orders, Role};
use shm::{ControlPage, Region};
use sync::{Arc, Without, leave_out};

/// Switches explored where there are few things to interleave.
const FEW: usize = 4;
/// Switches explored where there are many.
const MANY: usize = 3;
/// Bytes of the left ring, which the client writes.
const LEFT: u32 = 1 << 10;

thread_local! {
    // loom runs all threads of a model on one thread of the system.
    static FORMAT: Cell<Format> = const { Cell::new(Format::Classic) };
}

/// Runs `scenario` on channels of this format in every interleaving, with `without` left out of
/// the code.
fn explore(
    format: Format,
    switches: usize,
    without: Without,
    scenario: impl Fn() + Sync + Send + 'static,
) {
    FORMAT.set(format);
    leave_out(without);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.max_branches = 10_000;
    model.check(move || {
        sync::atomic::start();
        scenario();
    });
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// What is asked of the model before it starts.
struct Start {
    /// Bytes in the left ring that the server has not read yet.
    unread: u32,
}

struct Pair {
    server: Channel,
    client: Channel,
    servers_bell: Arc<Bell>,
    clients_bell: Arc<Bell>,
    /// Set when the peer's domain is destroyed.
    dead: Arc<AtomicBool>,
}

/// A connected pair. The left ring's write index stands at 0.
fn pair(start: Start) -> Pair {
    let bells = [Arc::new(Bell::default()), Arc::new(Bell::default())];
    let dead = Arc::new(AtomicBool::new(false));
    let (left_indexes, right_indexes) = ((0u32.wrapping_sub(start.unread), 0), (0, 0));
    let control = ControlPage::connected(left_indexes, right_indexes);
    let extension = match FORMAT.get() {
        Format::Classic => None,
        Format::Extended => Some(ExtensionPage::connected(left_indexes, right_indexes)),
    };
    let orders = Orders::check(10, 11).unwrap();
    let (left, right) = (
        Region::new(orders.left_bytes()),
        Region::new(orders.right_bytes()),
    );
    let side = |role, own: usize| {
        let parts = Parts {
            role,
            orders,
            first_index: None,
            control: control.clone(),
            extension: extension.clone(),
            left: left.clone(),
            right: right.clone(),
            backend: Box::new(Doorbell {
                own: Arc::clone(&bells[own]),
                peers: Arc::clone(&bells[1 - own]),
                dead: Arc::clone(&dead),
            }),
        };
        Channel::from_parts(parts).unwrap()
    };
    Pair {
        server: side(Role::Server, 0),
        client: side(Role::Client, 1),
        servers_bell: Arc::clone(&bells[0]),
        clients_bell: Arc::clone(&bells[1]),
        dead,
    }
}

/// Reads until the end of the stream.
fn read_all(channel: &mut Channel) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buf = [0; 2];
    loop {
        match channel.read(&mut buf, far()).unwrap() {
            0 => return bytes,
            n => bytes.extend(&buf[..n]),
        }
    }
}

mod scenario {
    use super::*;

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

    /// One side goes to sleep while the other closes without a word.
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

    /// The peer's domain is destroyed: no close, no ring of its own, only the backend's.
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
        poll::next_cancel(Some(clients_bell));
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
        poll::next_cancel(Some(clients_bell));
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
        poll::next_cancel(Some(clients_bell));
        let (mut reader, writer) = client.split().unwrap();
        let reads = thread::spawn(move || {
            let outcome = reader.read(&mut [0], far());
            assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
        });
        writer.close(far()).unwrap();
        reads.join().unwrap();
        drop(server);
    }
}

/// The scenario holds in both formats, and fails in its twins for the reason given.
macro_rules! holds_but_not {
    ($scenario:ident, $switches:ident, $($twin:ident: $without:ident => $why:literal),* $(,)?) => {
        mod $scenario {
            holds_but_not!(@ classic Classic $scenario $switches $($twin $without $why)*);
            holds_but_not!(@ extended Extended $scenario $switches $($twin $without $why)*);
        }
    };
    (@ $name:ident $format:ident $scenario:ident $switches:ident
        $($twin:ident $without:ident $why:literal)*) => {
        mod $name {
            use crate::{Format, Without, explore, scenario};

            #[test]
            fn holds() {
                let switches = crate::$switches;
                explore(Format::$format, switches, Without::Nothing, scenario::$scenario);
            }
            $(
                #[test]
                #[should_panic(expected = $why)]
                fn $twin() {
                    let switches = crate::$switches;
                    explore(Format::$format, switches, Without::$without, scenario::$scenario);
                }
            )*
        }
    };
}

holds_but_not! {
    write_then_close, MANY,
    without_the_last_look_at_the_index: LookAfterClose => "bytes were lost at the close",
}
holds_but_not! {
    end_seen_awake, FEW,
    without_the_order_of_index_and_close: OrderOfClose => "bytes were lost at the close",
}
holds_but_not! {
    round_trip, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    read_two, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    full_ring, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    poll_loop, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
    acknowledging_after_the_look: AcknowledgeFirst => "deadlock",
}
holds_but_not! {
    close_while_asleep, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    close_while_writing, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    domain_destroyed, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    both_close, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    split_halves, MANY,
    without_noticing_an_event_that_the_other_took: Generation => "deadlock",
    without_waking_the_follower: FollowerWakeUp => "deadlock",
}
holds_but_not! {
    leader_times_out, FEW,
    without_waking_the_follower: FollowerWakeUp => "deadlock",
}
holds_but_not! {
    own_half_closes, FEW,
    without_the_cancel: Cancel => "deadlock",
}
