//! Cases 1 to 8: the peer's indexes, and ours where the peer can reach them.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vchan::layout::Role;
use vchan::{Error, PeerError, local};

use crate::liar::*;

/// Reports a write index that no ring allows; every later call reports it again.
fn refuse_producer(lie: u32) {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (prod, _) = liars_indexes(role);
        liar.page.set_u32(prod, lie);
        let error = match victim.try_read(&mut [0; 8]) {
            Err(Error::Peer(error)) => error,
            other => panic!("{lie:#x} was accepted: {other:?}"),
        };
        assert!(matches!(error, PeerError::Producer { found, .. } if found == lie));
        // A good value afterwards does not heal it.
        liar.page.set_u32(prod, 0);
        assert_broken(&mut victim, &error);
    }
}

#[test]
fn case_01_producer_one_beyond_the_ring() {
    refuse_producer(RING + 1);
    refuse_producer(0x8000_0000);
}

#[test]
fn case_02_producer_ffffffff() {
    refuse_producer(u32::MAX);
}

#[test]
fn case_03_consumer_ahead_of_producer() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        victim.write_all(b"12345", soon()).unwrap();
        liar.page.set_u32(liars_indexes(role).1, 6);
        // Read only when the ring seems full, or when drained.
        let error = match victim.drain(soon()) {
            Err(Error::Peer(error)) => error,
            other => panic!("accepted: {other:?}"),
        };
        assert!(
            matches!(error, PeerError::Consumer { found: 6, .. }),
            "{error:?}"
        );
        assert_broken(&mut victim, &error);
    }
}

#[test]
fn case_04_producer_moves_back() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (prod, cons) = liars_indexes(role);
        liar.page.set_u32(prod, 100);
        assert_eq!(victim.read(&mut [0; 200], soon()).unwrap(), 100);
        liar.page.set_u32(prod, 99);
        assert!(matches!(
            victim.try_read(&mut [0; 8]),
            Err(Error::Peer(PeerError::Producer { found: 99, .. }))
        ));

        let (mut victim, liar) = pair(role);
        victim.write_all(&[0; RING as usize], soon()).unwrap();
        liar.page.set_u32(cons, 100);
        assert_eq!(victim.try_write(&[0; 200]).unwrap(), 100);
        liar.page.set_u32(cons, 50);
        assert!(matches!(
            victim.try_write(b"x"),
            Err(Error::Peer(PeerError::Consumer { found: 50, .. }))
        ));
    }
}

/// Both ways across 2^32, more than once around the ring, with a peer that keeps the rules.
#[test]
fn case_05_indexes_wrap_with_an_honest_peer() {
    let (one, other) = UnixStream::pair().unwrap();
    let first = u32::MAX - 10_000;
    let server = thread::spawn(move || {
        let mut channel =
            local::serve_from_index(one, RING as usize, first, soon()).expect("a server");
        let mut buf = [0; 1000];
        loop {
            match channel.read(&mut buf, soon()).unwrap() {
                0 => return,
                n => channel.write_all(&buf[..n], soon()).unwrap(),
            }
        }
    });
    let mut client = local::connect_on(other, soon()).unwrap();
    for round in 0..40u8 {
        client.write_all(&[round; 997], soon()).unwrap();
        let mut back = [0; 997];
        read_exact(&mut client, &mut back);
        assert_eq!(back, [round; 997]);
    }
    client.close(soon()).unwrap();
    server.join().unwrap();
}

#[test]
fn case_06_own_indexes_rewritten_by_the_peer() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (own_prod, own_cons) = victims_indexes(role);
        let ring = match role {
            Role::Server => &liar.right,
            Role::Client => &liar.left,
        };
        victim.write_all(b"first", soon()).unwrap();
        liar.page.set_u32(own_prod, 0xDEAD_BEEF);
        liar.page.set_u32(own_cons, 0xDEAD_BEEF);
        victim.write_all(b"second", soon()).unwrap();
        assert_eq!(
            liar.page.u32(own_prod),
            11,
            "the index comes from the private cursor"
        );
        let mut written = [0; 11];
        ring.load_bytes(0, &mut written);
        assert_eq!(&written, b"firstsecond");

        liar.page.set_u32(liars_indexes(role).0, 3);
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 3);
        assert_eq!(liar.page.u32(own_cons), 3);
    }
}

#[test]
fn case_07_index_flickers_at_every_read() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let stop = Arc::new(AtomicBool::new(false));
        let flicker = {
            let (stop, page) = (Arc::clone(&stop), liar.page.clone());
            let (prod, cons) = liars_indexes(role);
            thread::spawn(move || {
                let mut value = 1u32;
                while !stop.load(Ordering::Relaxed) {
                    value = value.wrapping_mul(0x9E37_79B9).wrapping_add(1);
                    page.set_u32(prod, value >> 18);
                    page.set_u32(cons, value >> 20);
                }
            })
        };
        let outcome = returns(move || {
            let mut buf = [0; 64];
            for _ in 0..200 {
                for outcome in [
                    victim.read(&mut buf, short()).map(drop),
                    victim.write_all(&buf, short()),
                ] {
                    match outcome {
                        // The liar does not ring, so a sleep may last until its deadline.
                        Ok(()) | Err(Error::TimedOut(_)) => {}
                        other => return other,
                    }
                }
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        flicker.join().unwrap();
        assert!(matches!(outcome, Err(Error::Peer(_))), "{outcome:?}");
    }
}

/// A full ring takes nothing and gives all; an empty one gives nothing and takes all.
#[test]
fn case_08_exactly_full_and_exactly_empty() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (prod, cons) = liars_indexes(role);
        for round in 1..=3u32 {
            assert_eq!(
                victim.try_write(&[1; RING as usize + 1]).unwrap(),
                RING as usize
            );
            assert_eq!(victim.try_write(b"x").unwrap(), 0, "full");
            liar.page.set_u32(cons, round * RING);
            assert!(victim.drain(soon()).is_ok(), "empty");

            liar.page.set_u32(prod, round * RING);
            assert_eq!(victim.available().unwrap(), RING as usize);
            assert_eq!(
                victim.try_read(&mut [0; RING as usize + 1]).unwrap(),
                Some(RING as usize)
            );
            assert_eq!(victim.try_read(&mut [0; 1]).unwrap(), None, "empty");
        }
    }
}
