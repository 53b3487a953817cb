//! A victim and a lying peer at its other end.
#![allow(dead_code, reason = "each test program uses a part")]

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::layout::{Role, offset};
use vchan::local::peer::LyingPeer;
use vchan::{Channel, local};

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

pub(crate) const ROLES: [Role; 2] = [Role::Server, Role::Client];

/// Where the liar's own indexes are: (its prod, its cons).
pub(crate) fn liars_indexes(victim: Role) -> (usize, usize) {
    match victim {
        Role::Server => (offset::LEFT_PROD, offset::RIGHT_CONS),
        Role::Client => (offset::RIGHT_PROD, offset::LEFT_CONS),
    }
}

pub(crate) fn liars_live(victim: Role) -> usize {
    match victim {
        Role::Server => offset::CLI_LIVE,
        Role::Client => offset::SRV_LIVE,
    }
}

/// Where the victim's requests appear, and where the liar's requests go.
pub(crate) fn notify_bytes(victim: Role) -> (usize, usize) {
    match victim {
        Role::Server => (offset::CLI_NOTIFY, offset::SRV_NOTIFY),
        Role::Client => (offset::SRV_NOTIFY, offset::CLI_NOTIFY),
    }
}
