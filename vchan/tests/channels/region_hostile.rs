//! Regions against a peer that lies: tickets, messages, memory, states, and pages it never unmaps.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::unistd::pipe;
use proptest::prelude::*;
use vchan::region::{Access, Carrier, MappedRegion, RegionError, TICKET_BYTES, Ticket};
use vchan::{Channel, Error};
use vchan_testing::peer::{LyingPeer, receive_raw, send_raw};

use crate::liar::region::{OWNER_STATE, PAGE, PEER_STATE, header, memfd, sealed, ticket};
use crate::liar::{ROLES, pair, short, soon};

fn send(liar: &LyingPeer, message: &[u8], files: &[&File]) {
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    send_raw(&liar.stream, message, &fds, soon()).unwrap();
}

/// The victim's result for a region of two pages with this header and data.
fn offered(ticket: &Ticket, header: &File, data: &File) -> (vchan::Result<MappedRegion>, Channel) {
    let (victim, liar) = pair(ROLES[0]);
    send(&liar, &ticket.encode(), &[header, data]);
    let region = victim.map_region(&ticket.encode(), soon());
    (region, victim)
}

#[track_caller]
fn assert_region<T: std::fmt::Debug>(result: vchan::Result<T>, expected: RegionError) {
    match result {
        Err(Error::Region(error)) => assert_eq!(error, expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[track_caller]
fn assert_broken<T: std::fmt::Debug>(result: vchan::Result<T>, victim: &mut Channel) {
    assert!(matches!(result, Err(Error::Peer(_))), "{result:?}");
    // Sticky: the ring is no longer trusted either.
    assert!(matches!(victim.try_read(&mut [0]), Err(Error::Peer(_))));
}

#[test]
fn an_honest_offer_is_mapped() {
    for role in ROLES {
        let (victim, liar) = pair(role);
        let ticket = ticket(5000);
        let data = sealed(2 * PAGE);
        data.write_all_at(b"bytes", 4000).unwrap();
        let header = header(&ticket);
        send(&liar, &ticket.encode(), &[&header, &data]);
        let region = victim.map_region(&ticket.encode(), soon()).unwrap();
        let mut seen = [0; 5];
        region.read_at(4000, &mut seen).unwrap();
        assert_eq!(&seen, b"bytes");
        let state = || {
            let mut state = [9];
            header.read_exact_at(&mut state, PEER_STATE).unwrap();
            state[0]
        };
        assert_eq!(state(), 1);
        drop(region);
        assert_eq!(state(), 0);
    }
}

#[test]
fn c15_a_header_that_is_not_the_tickets() {
    let good = ticket(5000);
    let data = sealed(2 * PAGE);
    let changes: [fn(&mut Ticket); 4] = [
        |ticket| ticket.id += 1,
        |ticket| ticket.nonce[15] ^= 1,
        |ticket| ticket.length += 1,
        |ticket| ticket.access = Access::PeerReads,
    ];
    for change in changes {
        let mut other = good;
        change(&mut other);
        assert_region(offered(&good, &header(&other), &data).0, RegionError::Stale);
        // The reverse: no memory comes for the ticket.
        let (victim, liar) = pair(ROLES[1]);
        send(&liar, &good.encode(), &[&header(&good), &data]);
        let missing = victim.map_region(&other.encode(), short());
        assert!(matches!(missing, Err(Error::TimedOut(_))), "{missing:?}");
    }
    let random = sealed(PAGE);
    random.write_all_at(&[0xA5; 4096], 0).unwrap();
    assert_region(offered(&good, &random, &data).0, RegionError::Stale);
    assert_region(offered(&good, &sealed(PAGE), &data).0, RegionError::Stale);
}

#[test]
fn c11_states_that_mean_nothing_or_change() {
    let good = ticket(5000);
    let data = sealed(2 * PAGE);
    for (owner, expected) in [
        (0, RegionError::OwnerClosed),
        (2, RegionError::Revoked),
        (3, RegionError::State(3)),
        (255, RegionError::State(255)),
    ] {
        let header = header(&good);
        header.write_all_at(&[owner], OWNER_STATE).unwrap();
        assert_region(offered(&good, &header, &data).0, expected.clone());
        header.write_all_at(&[1], OWNER_STATE).unwrap();
        let (region, _victim) = offered(&good, &header, &data);
        let region = region.unwrap();
        header.write_all_at(&[owner], OWNER_STATE).unwrap();
        assert_region(region.read_at(0, &mut [0]), expected);
        // Unmapped for good, whatever the owner writes next.
        header.write_all_at(&[1], OWNER_STATE).unwrap();
        assert_region(region.read_at(0, &mut [0]), RegionError::Revoked);
    }
    for peer in [0, 1, 3, 255] {
        let header = header(&good);
        header.write_all_at(&[peer], PEER_STATE).unwrap();
        assert_region(offered(&good, &header, &data).0, RegionError::Used);
    }
}

#[test]
fn a_header_rewritten_while_mapped_changes_nothing() {
    let good = ticket(5000);
    let data = sealed(2 * PAGE);
    let header = header(&good);
    let (region, _victim) = offered(&good, &header, &data);
    let mut region = region.unwrap();
    // A longer region, more rights: the victim uses its copy.
    let mut other = ticket(1 << 40);
    other.access = Access::PeerReads;
    header.write_all_at(&other.encode(), 0).unwrap();
    assert_eq!(region.len(), 5000);
    region.write_at(4999, b"x").unwrap();
    assert!(region.write_at(5000, b"x").is_err());
}

#[test]
fn memory_that_could_fault_or_is_too_small() {
    let good = ticket(5000);
    let header_good = header(&good);
    let unsealed = memfd(2 * PAGE, SealFlag::empty());
    let growing = memfd(2 * PAGE, SealFlag::F_SEAL_SHRINK);
    let short = sealed(PAGE);
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * PAGE).unwrap();
    let (reading, _writing) = pipe().unwrap();
    let pipe = File::from(reading);
    for data in [&unsealed, &growing, &short, &file, &pipe] {
        let (region, mut victim) = offered(&good, &header(&good), data);
        assert_broken(region, &mut victim);
    }
    let data = sealed(2 * PAGE);
    let long = sealed(2 * PAGE);
    long.write_all_at(&good.encode(), 0).unwrap();
    for header in [&memfd(PAGE, SealFlag::empty()), &long, &pipe] {
        let (region, mut victim) = offered(&good, header, &data);
        assert_broken(region, &mut victim);
    }
    // Read-only data for a region that the victim may write.
    let read_only = memfd(2 * PAGE, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW);
    fcntl(
        &read_only,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE),
    )
    .unwrap();
    let (region, mut victim) = offered(&good, &header_good, &read_only);
    assert_broken(region, &mut victim);
}

#[test]
fn messages_that_are_none() {
    let good = ticket(5000);
    let (header, data) = (header(&good), sealed(2 * PAGE));
    for files in [&[][..], &[&header], &[&header, &data, &data]] {
        let (mut victim, liar) = pair(ROLES[0]);
        send(&liar, &good.encode(), files);
        let region = victim.map_region(&good.encode(), soon());
        assert_broken(region, &mut victim);
    }
    // Part of a message: what follows cannot be parsed.
    let (mut victim, liar) = pair(ROLES[0]);
    send(&liar, &good.encode()[..20], &[&header, &data]);
    assert_broken(victim.map_region(&good.encode(), soon()), &mut victim);
    // Nothing, and the end.
    let (victim, liar) = pair(ROLES[0]);
    let missing = victim.map_region(&good.encode(), short());
    assert!(matches!(missing, Err(Error::TimedOut(_))), "{missing:?}");
    drop(liar);
    let missing = victim.map_region(&good.encode(), soon());
    assert!(
        matches!(missing, Err(Error::PeerClosed { .. })),
        "{missing:?}"
    );
}

#[test]
fn lengths_beyond_all_limits_cost_nothing() {
    let (victim, _liar) = pair(ROLES[0]);
    // Refused by the ticket alone, whose memory never comes.
    for length in [(64 << 20) + 1, 1 << 40, u64::MAX - 1, u64::MAX] {
        let region = victim.map_region(&ticket(length).encode(), soon());
        assert!(
            matches!(region, Err(Error::Region(RegionError::Limit { .. }))),
            "{region:?}"
        );
    }
    let mut grants = ticket(100);
    grants.carrier = Carrier::Grants { header: 8 };
    let region = victim.map_region(&grants.encode(), soon());
    assert!(matches!(region, Err(Error::Region(RegionError::Ticket(_)))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any bytes the answer is a typed error, and the channel stays usable.
    #[test]
    fn any_bytes_as_a_ticket(
        random in proptest::collection::vec(any::<u8>(), 0..100),
        at in 0..TICKET_BYTES,
        value: u8,
    ) {
        let (mut victim, liar) = pair(ROLES[0]);
        let region = victim.map_region(&random, short());
        prop_assert!(matches!(region, Err(Error::Region(RegionError::Ticket(_)))));
        let good = ticket(5000);
        send(&liar, &good.encode(), &[&header(&good), &sealed(2 * PAGE)]);
        let mut changed = good.encode();
        changed[at] ^= value;
        match victim.map_region(&changed, Instant::now()) {
            Ok(_) => prop_assert_eq!(value, 0),
            Err(Error::Region(_) | Error::TimedOut(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
        prop_assert!(matches!(victim.try_read(&mut [0]), Ok(None)));
    }
}

/// The liar's part of a region that the victim made: the message's descriptors.
fn taken(liar: &LyingPeer) -> (File, File) {
    let mut message = [0; TICKET_BYTES];
    let fds = receive_raw(&liar.stream, &mut message, soon()).unwrap();
    let [header, data] = <[OwnedFd; 2]>::try_from(fds).unwrap();
    (File::from(header), File::from(data))
}

#[test]
fn c39_a_peer_that_never_unmaps_strands_a_bounded_number_of_pages() {
    for role in ROLES {
        let (victim, liar) = pair(role);
        victim.regions().set_limit(20 * 4096);
        let mut made = 0;
        let refused = loop {
            match victim.create_region(3 * 4096, Access::Both) {
                Ok(mut region) => {
                    made += 1;
                    assert!(made < 100, "no end");
                    let (header, _) = taken(&liar);
                    // Mapped, with any value that is not 0.
                    header.write_all_at(&[2 + made], PEER_STATE).unwrap();
                    let revoked = region.revoke(short());
                    assert_region(revoked, RegionError::StillHeld { pages: 4 });
                }
                Err(error) => break error,
            }
        };
        assert_eq!(made, 5);
        let expected = RegionError::Limit {
            wanted: 4,
            used: 20,
            held: 20,
            limit: 20,
        };
        assert_region(Err::<(), _>(refused), expected);
        // Its death frees them.
        let mut victim = victim;
        drop(liar);
        assert!(victim.read(&mut [0], soon()).is_ok());
        let refused = victim.create_region(1, Access::Both);
        assert!(matches!(refused, Err(Error::PeerClosed { .. })));
    }
}

#[test]
fn c39_small_regions_that_are_never_let_go_cost_a_bounded_number_of_descriptors() {
    let (victim, liar) = pair(ROLES[0]);
    let mut made = 0;
    let refused = loop {
        match victim.create_region(1, Access::Both) {
            Ok(region) => {
                made += 1;
                assert!(made < 10_000, "no end");
                let (header, _) = taken(&liar);
                header.write_all_at(&[1], PEER_STATE).unwrap();
                drop(region);
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Region(RegionError::TooMany(n)) if n == made));
}

#[test]
fn c39_a_peer_that_claims_to_have_unmapped_gets_the_same_pages_again() {
    let (victim, liar) = pair(ROLES[0]);
    victim.regions().set_limit(4 * 4096);
    let mut inode = None;
    for round in 0..50 {
        let mut region = victim.create_region(3 * 4096, Access::Both).unwrap();
        let (header, data) = taken(&liar);
        header.write_all_at(&[1], PEER_STATE).unwrap();
        data.write_all_at(b"left behind", 0).unwrap();
        header.write_all_at(&[0], PEER_STATE).unwrap();
        region.revoke(soon()).unwrap();
        let found = data.metadata().unwrap().ino();
        assert_eq!(*inode.get_or_insert(found), found, "round {round}");
        let mut seen = [1; 11];
        if round > 0 {
            drop(region);
            let region = victim.create_region(3 * 4096, Access::Both).unwrap();
            region.read_at(0, &mut seen).unwrap();
            assert_eq!(seen, [0; 11]);
            taken(&liar);
        }
    }
}

#[test]
fn a_peer_that_dies_does_not_hold_a_revocation() {
    for role in ROLES {
        let (victim, liar) = pair(role);
        let mut region = victim.create_region(5000, Access::Both).unwrap();
        let (header, _data) = taken(&liar);
        header.write_all_at(&[1], PEER_STATE).unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(liar);
        });
        region.revoke(soon()).unwrap();
        killer.join().unwrap();
    }
}

#[test]
fn c19_a_peer_that_rings_without_end_does_not_carry_a_revocation_beyond_its_deadline() {
    let (victim, liar) = pair(ROLES[0]);
    let mut region = victim.create_region(5000, Access::Both).unwrap();
    let (header, _data) = taken(&liar);
    header.write_all_at(&[1], PEER_STATE).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                liar.ring();
            }
        });
        let revoked = region.revoke(short());
        done.store(true, Ordering::Relaxed);
        assert_region(revoked, RegionError::StillHeld { pages: 3 });
    });
}

#[test]
fn a_peer_that_takes_no_offer_is_reported() {
    let (victim, _liar) = pair(ROLES[0]);
    let error = loop {
        match victim.create_region(1, Access::Both) {
            Ok(region) => drop(region),
            Err(error) => break error,
        }
    };
    assert!(
        error.to_string().contains("has not taken") || error.to_string().contains("descriptors"),
        "{error}"
    );
}
