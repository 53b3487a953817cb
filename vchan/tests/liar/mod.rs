//! A victim and a lying peer at its other end.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod region;

use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vchan::layout::{Role, offset};
use vchan::{Channel, Error, PeerError, local};
use vchan_testing::peer::LyingPeer;

pub(crate) const RING: u32 = 4096;

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn short() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

/// A victim in `role` and the liar at its other end; rings of 4 KiB.
pub(crate) fn pair(role: Role) -> (Channel, LyingPeer) {
    let (one, other) = UnixStream::pair().unwrap();
    let rings = (RING as usize).into();
    match role {
        Role::Server => {
            let liar = thread::spawn(move || LyingPeer::connect(other, soon()).unwrap());
            (
                local::serve_on(one, rings, soon()).unwrap(),
                liar.join().unwrap(),
            )
        }
        Role::Client => {
            let liar = thread::spawn(move || LyingPeer::serve(other, rings, soon()).unwrap());
            (
                local::connect_on(one, soon()).unwrap(),
                liar.join().unwrap(),
            )
        }
    }
}

/// Two honest ends over a socket pair: server and client.
pub(crate) fn honest(rings: usize) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || local::serve_on(one, rings, soon()).unwrap());
    let client = local::connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

pub(crate) const ROLES: [Role; 2] = [Role::Server, Role::Client];

/// Offsets of the liar's own indexes: (its prod, its cons).
pub(crate) fn liars_indexes(victim: Role) -> (usize, usize) {
    match victim {
        Role::Server => (offset::LEFT_PROD, offset::RIGHT_CONS),
        Role::Client => (offset::RIGHT_PROD, offset::LEFT_CONS),
    }
}

/// Offsets of the victim's own indexes: (its prod, its cons).
pub(crate) fn victims_indexes(victim: Role) -> (usize, usize) {
    match victim {
        Role::Server => (offset::RIGHT_PROD, offset::LEFT_CONS),
        Role::Client => (offset::LEFT_PROD, offset::RIGHT_CONS),
    }
}

pub(crate) fn liars_live(victim: Role) -> usize {
    match victim {
        Role::Server => offset::CLI_LIVE,
        Role::Client => offset::SRV_LIVE,
    }
}

/// Offsets of the notify bytes: (the victim's requests, the liar's requests).
pub(crate) fn notify_bytes(victim: Role) -> (usize, usize) {
    match victim {
        Role::Server => (offset::CLI_NOTIFY, offset::SRV_NOTIFY),
        Role::Client => (offset::SRV_NOTIFY, offset::CLI_NOTIFY),
    }
}

/// Runs `f` and fails the test if it does not return; a watchdog, not a measure.
pub(crate) fn returns<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(f()));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("the victim hangs or panicked")
}

/// Every call reports the peer's fault, repeatedly.
#[track_caller]
pub(crate) fn assert_broken(victim: &mut Channel, expected: &PeerError) {
    let mut buf = [0; 8];
    for _ in 0..2 {
        let outcomes = [
            victim.try_read(&mut buf).map(|_| ()),
            victim.read(&mut buf, soon()).map(|_| ()),
            victim.try_write(b"x").map(|_| ()),
            victim.write_all(b"x", soon()),
            victim.drain(soon()),
        ];
        for outcome in outcomes {
            match outcome {
                Err(Error::Peer(found)) => assert_eq!(&found, expected),
                other => panic!("expected {expected:?}, got {other:?}"),
            }
        }
    }
}

/// Fills `buf`.
pub(crate) fn read_exact(channel: &mut Channel, buf: &mut [u8]) {
    let mut filled = 0;
    while filled < buf.len() {
        match channel.read(&mut buf[filled..], soon()).unwrap() {
            0 => panic!("the stream ended after {filled} bytes"),
            n => filled += n,
        }
    }
}
