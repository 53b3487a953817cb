//! Many channels of one reactor, over memfd and eventfds; good peers and bad.
//!
//! Numbers in the names are those of the cases in `docs/threat-model.md`.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::layout::{Role, offset};
use vchan::reactor::{Handle, Reactor};
use vchan::{Channel, Error, PeerError, local};
use vchan_testing::conformance::many::{Ask, Echo, Many};
use vchan_testing::conformance::{STEP_LIMIT, cases};
use vchan_testing::peer::LyingPeer;

use crate::liar::{liars_indexes, short, soon};

/// A server's channel and a client's, each on a reactor if one is given.
fn pair(server: Option<&Handle>, client: Option<&Handle>) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let connected = scope.spawn(move || match client {
            Some(handle) => local::connect_on_reactor(handle, other, soon()).unwrap(),
            None => local::connect_on(other, soon()).unwrap(),
        });
        let served = match server {
            Some(handle) => local::serve_on_reactor(handle, one, 4096, soon()).unwrap(),
            None => local::serve_on(one, 4096, soon()).unwrap(),
        };
        (served, connected.join().unwrap())
    })
}

/// A victim on a reactor, and the liar at its other end.
fn victim(handle: &Handle) -> (Channel, LyingPeer) {
    let (one, other) = UnixStream::pair().unwrap();
    let liar = thread::spawn(move || LyingPeer::connect(other, soon()).unwrap());
    (
        local::serve_on_reactor(handle, one, 4096, soon()).unwrap(),
        liar.join().unwrap(),
    )
}

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

/// c49, c50, c19: one that never reads and one that rings without end, trickles bytes and at last
/// breaks its index are served in the same thread as 98 others, which get every byte.
#[test]
fn a_hundred_channels_in_one_thread_with_a_stalled_and_a_hostile_one() {
    const BYTES: u64 = 128 << 10;
    let mut servers = Reactor::new().unwrap();
    let mut clients = Reactor::new().unwrap();
    let (mut echoes, mut asks) = (Many::default(), Many::default());
    for seed in 0..98 {
        let (server, client) = pair(Some(servers.handle()), Some(clients.handle()));
        echoes.add(server, Echo::default());
        asks.add(client, Ask::new(seed, BYTES));
    }
    let (server, mut stalled) = pair(Some(servers.handle()), None);
    let stalled_token = server.token().unwrap();
    echoes.add(server, Echo::default());
    let (server, liar) = victim(servers.handle());
    let liars_token = server.token().unwrap();
    echoes.add(server, Echo::default());
    assert_eq!(servers.handle().len(), 100);

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) || echoes.len() > 1 {
                let others = echoes
                    .turn(&mut servers, Instant::now() + Duration::from_millis(50))
                    .unwrap();
                assert_eq!(others, []);
            }
        });
        let (prod, _) = liars_indexes(Role::Server);
        let mut turns = 0u32;
        while !asks.is_empty() {
            while stalled.try_write(&[7; 512]).unwrap() > 0 {}
            for _ in 0..8 {
                liar.ring();
            }
            turns += 1;
            // A byte now and then; the unread ones together are less than a ring.
            if turns < 8 * 1024 && turns.is_multiple_of(8) {
                liar.page.set_u32(prod, turns / 8);
            }
            asks.turn(&mut clients, Instant::now() + Duration::from_millis(1))
                .unwrap();
        }
        liar.page.set_u32(prod, 0x8000_0000);
        liar.ring();
        stop.store(true, Ordering::Relaxed);
    });
    for (_, end) in asks.ended() {
        assert!(end.is_ok(), "{end:?}");
    }
    assert_eq!(asks.ended().len(), 98);
    let wrong: Vec<_> = echoes
        .ended()
        .iter()
        .filter(|(_, end)| end.is_err())
        .collect();
    assert!(
        matches!(wrong[..], [(token, Err(Error::Peer(PeerError::Producer { .. })))] if *token == liars_token),
        "{wrong:?}"
    );
    assert_eq!(echoes.ended().len(), 99);
    // The stalled one is as alive as before: it gets its bytes as soon as it reads.
    assert_eq!(echoes.len(), 1);
    assert!(
        !echoes
            .ended()
            .iter()
            .any(|(token, _)| *token == stalled_token)
    );
    let mut buf = [0; 512];
    let mut read = 0;
    while read < 20_000 {
        echoes.turn(&mut servers, short()).unwrap();
        if let Some(n) = stalled.try_read(&mut buf).unwrap() {
            assert!(n > 0 && buf[..n].iter().all(|&byte| byte == 7));
            read += n;
        }
        stalled.try_write(&[7; 512]).unwrap();
    }
}

/// Every call of a channel works on a reactor as it does alone: nobody waits on the reactor.
#[test]
fn the_generic_suite_with_both_ends_on_one_reactor() {
    conformance(|_| {});
}

/// The same while a thread sits in `wait` and takes the events first.
#[test]
fn the_generic_suite_beside_a_thread_that_waits_on_the_reactor() {
    let stop = AtomicBool::new(false);
    conformance(|reactor| {
        let mut ready = Vec::new();
        while !stop.load(Ordering::Relaxed) && !reactor.handle().is_empty() {
            let soon = Instant::now() + Duration::from_millis(20);
            reactor.wait(&mut ready, soon).unwrap();
        }
    });
}

fn conformance(meanwhile: impl Fn(&mut Reactor)) {
    for case in cases().into_iter().filter(|case| case.dies.is_none()) {
        let mut reactor = Reactor::new().unwrap();
        let handle = reactor.handle().clone();
        let (one, other) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + STEP_LIMIT;
        let for_client = handle.clone();
        let connecting =
            thread::spawn(move || local::connect_on_reactor(&for_client, other, deadline).unwrap());
        let server = local::serve_on_reactor(&handle, one, case.rings, deadline).unwrap();
        let client = connecting.join().unwrap();
        let served = thread::spawn(move || (case.server)(server));
        let asked = thread::spawn(move || (case.client)(client));
        meanwhile(&mut reactor);
        let outcomes = (served.join().unwrap(), asked.join().unwrap());
        assert_eq!(outcomes, (Ok(()), Ok(())), "case {}", case.name);
        assert!(reactor.handle().is_empty(), "case {}", case.name);
    }
}

#[test]
fn the_death_of_a_peer_is_a_token_and_ends_a_read_in_another_thread() {
    let mut reactor = Reactor::new().unwrap();
    let (mut watched, liar) = victim(reactor.handle());
    let (mut read, other_liar) = victim(reactor.handle());
    let token = watched.token().unwrap();
    let mut ready = Vec::new();
    assert_eq!(watched.try_read(&mut [0; 8]).unwrap(), None);
    reactor.wait(&mut ready, Instant::now()).unwrap();
    let reader = thread::spawn(move || read.read(&mut [0; 8], soon()));
    // Their processes are gone without closing: the live bytes stay.
    drop((liar.stream, other_liar.stream));
    ready.clear();
    while !ready.contains(&token) {
        reactor.wait(&mut ready, soon()).unwrap();
    }
    assert_eq!(watched.try_read(&mut [0; 8]).unwrap(), Some(0));
    assert_eq!(reader.join().unwrap().unwrap(), 0);
}

#[test]
fn a_poll_loop_over_a_single_channels_descriptor_works_and_can_sleep() {
    let reactor = Reactor::new().unwrap();
    let (mut server, mut client) = pair(Some(reactor.handle()), None);
    let (mut other, mut others_client) = pair(Some(reactor.handle()), None);
    let mut buf = [0; 8];
    // The descriptor is first requested now, yet reports the earlier event.
    is_readable(&server);
    for round in 0..100u8 {
        // As documented: until the call that would block.
        assert_eq!(server.try_read(&mut buf).unwrap(), None);
        assert!(!is_readable(&server), "round {round}: old events");
        client.write_all(&[round], soon()).unwrap();
        assert!(is_readable(&server), "round {round}: a new one");
        assert_eq!(server.try_read(&mut buf).unwrap(), Some(1));
        others_client.write_all(&[round], soon()).unwrap();
        assert_eq!(other.read(&mut buf, soon()).unwrap(), 1);
        assert_eq!(buf[0], round);
    }
}

#[test]
fn channels_outlive_their_reactor() {
    let reactor = Reactor::new().unwrap();
    let (mut server, mut client) = pair(Some(reactor.handle()), Some(reactor.handle()));
    drop(reactor);
    let reader = thread::spawn(move || {
        let mut buf = [0; 8];
        assert_eq!(server.read(&mut buf, soon()).unwrap(), 5);
        server.read(&mut buf, soon()).unwrap()
    });
    client.write_all(b"hello", soon()).unwrap();
    client.close(soon()).unwrap();
    assert_eq!(reader.join().unwrap(), 0);
}

#[test]
fn wait_returns_empty_at_its_deadline_and_never_waits_past_it() {
    let mut reactor = Reactor::new().unwrap();
    let (server, liar) = victim(reactor.handle());
    let mut ready = vec![server.token().unwrap(); 3];
    // The first look reports that there is a channel.
    reactor.wait(&mut ready, short()).unwrap();
    assert_eq!(ready, [server.token().unwrap()]);
    reactor.wait(&mut ready, short()).unwrap();
    assert!(ready.is_empty());
    // A storm leads to tokens that lead to nothing, and then to fewer.
    let mut tokens = 0;
    for _ in 0..100 {
        for _ in 0..50 {
            liar.ring();
            reactor.wait(&mut ready, Instant::now()).unwrap();
            tokens += ready.len();
        }
    }
    assert!(tokens < 2_500, "{tokens} for 5,000 rings");
    assert!(tokens >= 64);
}

#[test]
fn a_waiting_call_keeps_its_deadline_in_a_storm_and_hears_the_peer_after_it() {
    let reactor = Reactor::new().unwrap();
    let (mut server, liar) = victim(reactor.handle());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                liar.ring();
            }
        });
        for _ in 0..3 {
            let outcome = server.read(&mut [0; 8], short());
            assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    liar.page.set_u32(offset::LEFT_PROD, 3);
    liar.ring();
    assert_eq!(server.read(&mut [0; 8], soon()).unwrap(), 3);
}
