//! Shared regions between two honest ends.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::local::{connect_on, serve_on};
use vchan::region::{Access, MappedRegion, OwnedRegion, RegionError};
use vchan::{Channel, Error};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn short() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

/// Server and client.
fn pair() -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_on(one, 4096, soon()).unwrap());
    let client = connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

fn region(
    owner: &Channel,
    peer: &Channel,
    bytes: usize,
    access: Access,
) -> (OwnedRegion, MappedRegion) {
    let owned = owner.create_region(bytes, access).unwrap();
    let mapped = peer.map_region(&owned.ticket(), soon()).unwrap();
    (owned, mapped)
}

/// Pseudo-random bytes, the same in every run.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (seed..seed + len)
        .map(|i| i.wrapping_mul(0x9E37_79B9).to_le_bytes()[3])
        .collect()
}

#[track_caller]
fn assert_region<T: std::fmt::Debug>(result: vchan::Result<T>, expected: RegionError) {
    match result {
        Err(Error::Region(error)) => assert_eq!(error, expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[test]
fn both_sides_read_and_write_at_any_offset() {
    let (server, client) = pair();
    // Either role makes one.
    for (owner, peer) in [(&server, &client), (&client, &server)] {
        let bytes = 3 * 4096 + 777;
        let (mut owned, mut mapped) = region(owner, peer, bytes, Access::Both);
        assert_eq!((owned.len(), mapped.len()), (bytes, bytes));
        let mut seen = vec![1; bytes];
        mapped.read_at(0, &mut seen).unwrap();
        assert!(seen.iter().all(|&byte| byte == 0), "it starts with zeros");
        for (round, offset) in [0, 1, 4095, 4096, 8000, bytes - 5000]
            .into_iter()
            .enumerate()
        {
            let data = pattern(5000, round);
            let mut seen = vec![0; 5000];
            owned.write_at(offset, &data).unwrap();
            mapped.read_at(offset, &mut seen).unwrap();
            assert_eq!(seen, data);
            let data = pattern(5000, 99 + round);
            mapped.write_at(offset, &data).unwrap();
            owned.read_at(offset, &mut seen).unwrap();
            assert_eq!(seen, data);
        }
        owned.store_u64(4096, 0x0123_4567_89AB_CDEF).unwrap();
        assert_eq!(mapped.load_u64(4096).unwrap(), 0x0123_4567_89AB_CDEF);
        mapped.store_u64(0, 5).unwrap();
        assert_eq!(owned.load_u64(0).unwrap(), 5);
        let (here, there) = (owned.view(10, 20).unwrap(), mapped.view(10, 20).unwrap());
        assert_eq!((here.len(), there.len()), (20, 20));
        assert_ne!(here.as_ptr(), there.as_ptr());
    }
}

#[test]
fn accesses_beyond_the_end_are_typed_errors() {
    let (server, client) = pair();
    let (mut owned, mut mapped) = region(&server, &client, 5000, Access::Both);
    for (offset, len) in [
        (0, 5001),
        (5000, 1),
        (5001, 0),
        // Within the last page, beyond the region.
        (4999, 2),
        (8000, 1),
        (usize::MAX, 1),
        (usize::MAX - 3, 8),
    ] {
        let expected = RegionError::OutOfBounds {
            offset: offset as u64,
            len: len as u64,
            region: 5000,
        };
        let mut buf = vec![0; len];
        assert_region(owned.read_at(offset, &mut buf), expected.clone());
        assert_region(mapped.read_at(offset, &mut buf), expected.clone());
        assert_region(owned.write_at(offset, &buf), expected.clone());
        assert_region(mapped.write_at(offset, &buf), expected.clone());
        assert_region(owned.view(offset, len), expected.clone());
        assert_region(mapped.view(offset, len), expected);
    }
    owned.read_at(5000, &mut []).unwrap();
    for offset in [4993, 5000, usize::MAX] {
        assert!(mapped.load_u64(offset).is_err());
        assert!(owned.store_u64(offset, 1).is_err());
    }
    let misaligned = RegionError::Misaligned { offset: 4, size: 8 };
    assert_region(mapped.load_u64(4), misaligned.clone());
    assert_region(mapped.store_u64(4, 1), misaligned);
}

/// The permissions of all mappings of regions' and channels' memory, by address.
fn permissions(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let parse = |hex| usize::from_str_radix(hex, 16).unwrap();
        (parse(start)..parse(end)).contains(&address)
    });
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_side_that_may_only_read_cannot_write() {
    let (server, client) = pair();
    let (mut owned, mut mapped) = region(&server, &client, 9000, Access::PeerReads);
    owned.write_at(0, b"from the owner").unwrap();
    assert_region(mapped.write_at(0, b"x"), RegionError::ReadOnly);
    assert_region(mapped.store_u64(0, 1), RegionError::ReadOnly);
    let view = mapped.view(0, 9000).unwrap();
    assert!(!view.is_writable());
    assert_eq!(permissions(view.as_ptr().as_ptr() as usize), "r--s");
    let mut seen = [0; 14];
    mapped.read_at(0, &mut seen).unwrap();
    assert_eq!(&seen, b"from the owner");

    let (mut owned, mut mapped) = region(&server, &client, 9000, Access::PeerWrites);
    assert_region(owned.write_at(0, b"x"), RegionError::ReadOnly);
    assert_region(owned.store_u64(0, 1), RegionError::ReadOnly);
    assert!(!owned.view(0, 1).unwrap().is_writable());
    mapped.write_at(0, b"from the peer!").unwrap();
    owned.read_at(0, &mut seen).unwrap();
    assert_eq!(&seen, b"from the peer!");
}

#[test]
fn a_peer_that_waits_in_a_call_lets_a_revoked_region_go() {
    let (server, mut client) = pair();
    let mut owned = server.create_region(9000, Access::Both).unwrap();
    let ticket = owned.ticket();
    let (mapped_tx, mapped_rx) = mpsc::channel();
    let peer = thread::spawn(move || {
        let region = client.map_region(&ticket, soon()).unwrap();
        mapped_tx.send(()).unwrap();
        // Ends with the channel; the region ended before.
        assert_eq!(client.read(&mut [0], soon()).unwrap(), 0);
        let end = region.read_at(0, &mut [0]);
        (region, client, end)
    });
    mapped_rx.recv().unwrap();
    owned.revoke(soon()).unwrap();
    // Repeating it is harmless, and this side can still use the region.
    owned.revoke(soon()).unwrap();
    owned.write_at(0, b"still ours").unwrap();
    drop((owned, server));
    let (_region, _client, end) = peer.join().unwrap();
    assert!(end.is_err());
}

#[test]
fn a_peer_that_looks_later_is_refused_and_lets_go_then() {
    let (server, client) = pair();
    let (mut owned, mapped) = region(&server, &client, 9000, Access::Both);
    // The peer is in no call: three pages are still held.
    assert_region(owned.revoke(short()), RegionError::StillHeld { pages: 4 });
    assert_region(mapped.read_at(0, &mut [0]), RegionError::Revoked);
    owned.revoke(soon()).unwrap();
    assert_region(mapped.read_at(0, &mut [0]), RegionError::Revoked);
}

#[test]
fn a_view_holds_a_revocation_back() {
    let (server, client) = pair();
    let (mut owned, mapped) = region(&server, &client, 9000, Access::Both);
    let view = mapped.view(100, 50).unwrap();
    assert_region(owned.revoke(short()), RegionError::StillHeld { pages: 4 });
    assert_region(mapped.read_at(0, &mut [0]), RegionError::Revoked);
    assert_region(owned.revoke(short()), RegionError::StillHeld { pages: 4 });
    drop(view);
    owned.revoke(soon()).unwrap();
}

#[test]
fn nobody_maps_what_was_revoked_or_dropped() {
    let (server, client) = pair();
    let mut owned = server.create_region(100, Access::Both).unwrap();
    // Nobody has mapped it, so this does not wait.
    owned.revoke(Instant::now()).unwrap();
    assert_region(
        client.map_region(&owned.ticket(), soon()),
        RegionError::Revoked,
    );
    let owned = server.create_region(100, Access::Both).unwrap();
    let ticket = owned.ticket();
    drop(owned);
    assert_region(client.map_region(&ticket, soon()), RegionError::Revoked);
    // Its memory serves the next region, which has another ticket.
    let owned = server.create_region(100, Access::Both).unwrap();
    assert_ne!(owned.ticket(), ticket);
    client.map_region(&owned.ticket(), soon()).unwrap();
}

#[test]
fn a_ticket_serves_once() {
    let (server, client) = pair();
    let (owned, mapped) = region(&server, &client, 100, Access::Both);
    let used = || client.map_region(&owned.ticket(), soon());
    assert_region(used(), RegionError::Used);
    drop(mapped);
    assert!(matches!(
        client.map_region(&owned.ticket(), short()),
        Err(Error::TimedOut(_))
    ));
    // The peer has unmapped it: nothing to wait for.
    let mut owned = owned;
    owned.revoke(Instant::now()).unwrap();
}

#[test]
fn tickets_may_be_used_in_any_order() {
    let (server, client) = pair();
    let owned: Vec<_> = (1..=10)
        .map(|n| server.create_region(n * 1000, Access::Both).unwrap())
        .collect();
    for owned in owned.iter().rev() {
        let mapped = client.map_region(&owned.ticket(), soon()).unwrap();
        assert_eq!(mapped.len(), owned.len());
    }
}

#[test]
fn memory_of_an_ended_region_is_used_again_and_cleared() {
    let (server, client) = pair();
    // Three data pages and a header fit, and not one page more.
    server.regions().set_limit(4 * 4096);
    for round in 0..20 {
        let bytes = 3 * 4096 - round * 500;
        let (mut owned, mapped) = region(&server, &client, bytes, Access::Both);
        let mut seen = vec![1; bytes];
        mapped.read_at(0, &mut seen).unwrap();
        assert!(seen.iter().all(|&byte| byte == 0), "round {round}");
        owned.write_at(0, &pattern(bytes, 1)).unwrap();
        drop(mapped);
        owned.revoke(soon()).unwrap();
    }
}

#[test]
fn limits_are_per_channel_and_per_side() {
    let (server, client) = pair();
    assert_region(server.create_region(0, Access::Both), RegionError::Empty);
    server.regions().set_limit(10 * 4096);
    let first = server.create_region(5 * 4096, Access::Both).unwrap();
    let limit = |wanted, used, held| RegionError::Limit {
        wanted,
        used,
        held,
        limit: 10,
    };
    let five_more = || server.create_region(4 * 4096, Access::Both);
    assert_region(five_more(), limit(5, 6, 0));
    assert_region(
        server.create_region(usize::MAX, Access::Both),
        limit(usize::MAX / 4096 + 2, 6, 0),
    );
    // The peer holds it: its pages count until it lets go.
    let mapped = client.map_region(&first.ticket(), soon()).unwrap();
    drop(first);
    assert_region(five_more(), limit(5, 6, 6));
    server.regions().give_back();
    assert_region(five_more(), limit(5, 6, 6));
    drop(mapped);
    let smaller = five_more().unwrap();
    // The same pages; a larger region needs others.
    let larger = || server.create_region(6 * 4096, Access::Both);
    drop(smaller);
    assert_region(larger(), limit(7, 6, 0));
    server.regions().give_back();
    larger().unwrap();
    server.regions().give_back();

    // The mapping side has limits of its own.
    client.regions().set_limit(3 * 4096);
    let owned = server.create_region(3 * 4096, Access::Both).unwrap();
    let refused = client.map_region(&owned.ticket(), soon());
    assert!(matches!(
        refused,
        Err(Error::Region(RegionError::Limit {
            wanted: 4,
            limit: 3,
            ..
        }))
    ));

    let (server, _client) = pair();
    let most: Vec<_> = (0..vchan::region::MOST_REGIONS)
        .map(|_| server.create_region(1, Access::Both).unwrap())
        .collect();
    assert_region(
        server.create_region(1, Access::Both),
        RegionError::TooMany(most.len()),
    );
}

#[test]
fn regions_end_with_the_channel() {
    let (server, client) = pair();
    let (owned, mapped) = region(&server, &client, 100, Access::Both);
    let (owned2, mapped2) = region(&client, &server, 100, Access::Both);
    let handle = client.regions();
    drop(client);
    // The side that closed.
    assert!(matches!(mapped.read_at(0, &mut [0]), Err(Error::Closed)));
    assert!(matches!(owned2.read_at(0, &mut [0]), Err(Error::Closed)));
    let refused = handle.create(1, Access::Both);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    // The other one: its mapping ends, its own region stays until it closes too.
    let end = mapped2.read_at(0, &mut [0]);
    assert!(matches!(end, Err(Error::PeerClosed { .. })), "{end:?}");
    let refused = server.create_region(1, Access::Both);
    assert!(matches!(refused, Err(Error::PeerClosed { .. })));
    owned.read_at(0, &mut [0]).unwrap();
    let mut owned = owned;
    owned.revoke(soon()).unwrap();
    drop(server);
    assert!(matches!(owned.read_at(0, &mut [0]), Err(Error::Closed)));
    assert!(matches!(owned.revoke(soon()), Err(Error::Closed)));
}

#[test]
fn split_channels_keep_their_regions() {
    let (server, client) = pair();
    let regions = client.regions();
    let (mut reader, writer) = client.split().unwrap();
    let owned = regions.create(4096, Access::PeerReads).unwrap();
    let mapped = server.map_region(&owned.ticket(), soon()).unwrap();
    drop(writer);
    mapped.read_at(0, &mut [0]).unwrap();
    drop(mapped);
    assert_eq!(reader.try_read(&mut [0]).unwrap(), None);
    drop(reader);
    assert!(matches!(owned.read_at(0, &mut [0]), Err(Error::Closed)));
}

/// A region's message on the socket does not wake a poll loop.
#[test]
fn an_offer_of_a_region_is_no_death_notice() {
    let (mut server, client) = pair();
    assert_eq!(server.try_read(&mut [0]).unwrap(), None);
    let owned = client.create_region(100, Access::Both).unwrap();
    let readable = |channel: &Channel| {
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    };
    assert!(!readable(&server));
    let mapped = server.map_region(&owned.ticket(), soon()).unwrap();
    assert!(!readable(&server));
    assert!(!server.peer_gone().unwrap());
    // The real one, with an offer still unread.
    let _other = client.create_region(100, Access::Both).unwrap();
    drop(client);
    assert!(readable(&server));
    assert!(matches!(server.try_read(&mut [0]), Ok(Some(0))));
    assert!(mapped.read_at(0, &mut [0]).is_err());
}

#[test]
fn messages_on_the_ring_order_the_bytes_of_a_region() {
    const SLOTS: usize = 4;
    const SLOT: usize = 10_000;
    let (mut server, mut client) = pair();
    let (mut owned, mapped) = region(&server, &client, SLOTS * SLOT, Access::PeerReads);
    let reader = thread::spawn(move || {
        let mut seen = vec![0; SLOT];
        for round in 0..2000u32 {
            let mut number = [0; 4];
            let mut filled = 0;
            while filled < 4 {
                filled += client.read(&mut number[filled..], soon()).unwrap();
            }
            assert_eq!(u32::from_le_bytes(number), round);
            let slot = round as usize % SLOTS;
            mapped.read_at(slot * SLOT, &mut seen).unwrap();
            let first = (round % 251) as u8;
            assert!(seen.iter().all(|&byte| byte == first), "round {round}");
            client.write_all(&[1], soon()).unwrap();
        }
    });
    let mut ahead = 0;
    for round in 0..2000u32 {
        if ahead == SLOTS {
            ahead -= server.read(&mut [0], soon()).unwrap();
        }
        let slot = round as usize % SLOTS;
        owned
            .write_at(slot * SLOT, &[(round % 251) as u8; SLOT])
            .unwrap();
        server.write_all(&round.to_le_bytes(), soon()).unwrap();
        ahead += 1;
    }
    reader.join().unwrap();
}
