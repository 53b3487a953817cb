//! Regions leave nothing behind: descriptors and mappings after many, however they end.
//!
//! One test in a program of its own, because it counts what the whole process holds.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::Channel;
use vchan::local::{connect_on, serve_on};
use vchan::region::Access;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// (open descriptors, mappings of shared memory)
fn held() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = maps
        .lines()
        .filter(|line| line.contains("memfd:vchan"))
        .count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), memory)
}

/// What is held once nothing is being closed any more.
fn settled() -> (usize, usize) {
    loop {
        let before = held();
        thread::sleep(Duration::from_millis(100));
        if held() == before {
            return before;
        }
    }
}

/// Waits until no more than `before` is held: what a peer may have filled is closed by a thread of its
/// own.
#[track_caller]
fn assert_nothing_left(before: (usize, usize)) {
    let deadline = soon();
    while held() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(held(), before);
}

fn pair() -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_on(one, 4096, soon()).unwrap());
    let client = connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

fn round(how: usize) {
    let (mut server, mut client) = pair();
    let mut owned = server.create_region(70_000, Access::Both).unwrap();
    let unused = server.create_region(5000, Access::PeerReads).unwrap();
    let mapped = client.map_region(&owned.ticket(), soon()).unwrap();
    match how % 6 {
        0 => drop((client, server)),
        1 => drop((server, client)),
        2 => {
            drop(mapped);
            owned.revoke(soon()).unwrap();
            drop((owned, unused));
            drop(server.create_region(60_000, Access::Both).unwrap());
        }
        3 => {
            owned.revoke(Instant::now()).unwrap_err();
            drop(owned);
            assert_eq!(client.try_read(&mut [0]).unwrap(), None);
            assert!(mapped.read_at(0, &mut [0]).is_err());
        }
        4 => {
            client.close(soon()).unwrap();
            server.read(&mut [0], soon()).unwrap();
            let view = owned.view(0, 100).unwrap();
            drop(server);
            drop(view);
        }
        _ => {
            let view = mapped.view(0, 100).unwrap();
            server.close(soon()).unwrap();
            // The mapping ends when the client hears of it, the view's when the view ends.
            assert!(client.peer_gone().unwrap());
            drop(client);
            drop(view);
        }
    }
}

#[test]
fn two_hundred_channels_with_regions_leave_nothing_behind() {
    (0..6).for_each(round);
    let before = settled();
    (0..200).for_each(round);
    assert_nothing_left(before);
    // Those of an open channel, ended over and over, do not add up either.
    let (server, client) = pair();
    for round in 0..200 {
        let owned = server.create_region(50_000, Access::Both).unwrap();
        let _mapped = client.map_region(&owned.ticket(), soon()).unwrap();
        if round == 100 {
            drop(owned);
        }
    }
    drop((server, client));
    assert_nothing_left(before);
}
