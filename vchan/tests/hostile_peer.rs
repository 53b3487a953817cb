//! A peer that writes what it likes into the control page and rings when it likes.
//!
//! Numbers in the names are those of the project's list of hostile-peer cases. For each: no panic,
//! no wait beyond its deadline, and the typed error, again on every later call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vchan::layout::{Role, bit, offset};
use vchan::{Channel, Error, PeerError};

mod liar;
use liar::*;

/// Runs `f` and fails the test if it does not return; a watchdog, not a measure.
fn returns<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(f()));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("the victim hangs or panicked")
}

/// Every call reports the peer's fault, again and again.
fn assert_broken(victim: &mut Channel, expected: &PeerError) {
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

#[test]
fn c01_c02_impossible_write_index_is_named_and_sticks() {
    for role in ROLES {
        for lie in [RING + 1, u32::MAX, 0x8000_0000] {
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
}

#[test]
fn c03_read_index_ahead_of_what_was_written() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        victim.write_all(b"12345", soon()).unwrap();
        liar.page.set_u32(liars_indexes(role).1, 6);
        // Looked at only when the ring seems full, or when drained.
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
fn c04_indexes_moving_backwards() {
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

#[test]
fn c06_own_indexes_overwritten_by_the_peer_change_nothing() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (own_prod, own_cons, ring) = match role {
            Role::Server => (offset::RIGHT_PROD, offset::LEFT_CONS, &liar.right),
            Role::Client => (offset::LEFT_PROD, offset::RIGHT_CONS, &liar.left),
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
        ring.copy_out(0, &mut written);
        assert_eq!(&written, b"firstsecond");

        liar.page.set_u32(liars_indexes(role).0, 3);
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 3);
        assert_eq!(liar.page.u32(own_cons), 3);
    }
}

#[test]
fn c07_c52_flickering_index_is_bounded() {
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
                        // The liar does not ring, so a sleep may last to its deadline.
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

#[test]
fn c09_orders_changed_after_connect_have_no_effect() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        for order in [0, 9, 20, 21, 0xFFFF] {
            liar.page.set_u16(offset::LEFT_ORDER, order);
            liar.page.set_u16(offset::RIGHT_ORDER, order);
            assert_eq!(victim.incoming_ring_bytes(), RING as usize);
            let written = victim.try_write(&[0; 2 * RING as usize]).unwrap();
            assert_eq!(written, RING as usize);
            let cons = liars_indexes(role).1;
            liar.page
                .set_u32(cons, liar.page.u32(cons).wrapping_add(RING));
        }
    }
}

#[test]
fn c11_live_byte_without_meaning_or_taken_back() {
    for role in ROLES {
        for lie in [2, 3, 0x80, 0xFF] {
            let (mut victim, liar) = pair(role);
            liar.page.set_u8(liars_live(role), lie);
            match victim.try_read(&mut [0; 8]) {
                Err(Error::Peer(error @ PeerError::Live { .. })) => {
                    assert_broken(&mut victim, &error);
                }
                other => panic!("live byte {lie} was accepted: {other:?}"),
            }
        }
        let (mut victim, liar) = pair(role);
        liar.page.set_u8(liars_live(role), 0);
        assert_eq!(victim.try_read(&mut [0; 8]).unwrap(), Some(0));
        liar.page.set_u8(liars_live(role), 1);
        liar.page.set_u32(liars_indexes(role).0, 5);
        assert_eq!(
            victim.try_read(&mut [0; 8]).unwrap(),
            Some(0),
            "the end stays the end"
        );
        assert!(matches!(
            victim.try_write(b"x"),
            Err(Error::PeerClosed { .. })
        ));
    }
}

#[test]
fn c12_own_live_byte_zeroed_by_the_peer_changes_nothing() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        liar.page.set_u8(
            liars_live(if role == Role::Server {
                Role::Client
            } else {
                Role::Server
            }),
            0,
        );
        victim.write_all(b"still here", soon()).unwrap();
        assert!(matches!(
            victim.read(&mut [0; 8], short()),
            Err(Error::TimedOut(_))
        ));
    }
}

#[test]
fn c13_notify_bits_stuck_or_stolen() {
    for role in ROLES {
        let (requests, demands) = notify_bytes(role);
        // Stuck at one: an event for each operation, nothing worse.
        let (mut victim, liar) = pair(role);
        for n in 1..=100u32 {
            liar.page.set_u8(demands, 0xFF);
            liar.page.set_u32(liars_indexes(role).0, n);
            assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 1);
        }
        assert!(victim.stats().events_sent <= 101);

        // Stolen: the wake-up is lost, the deadline is not.
        let (mut victim, liar) = pair(role);
        let stop = Arc::new(AtomicBool::new(false));
        let thief = {
            let (stop, page) = (Arc::clone(&stop), liar.page.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    page.set_u8(requests, 0);
                }
            })
        };
        let outcome = returns(move || victim.read(&mut [0; 8], short()));
        stop.store(true, Ordering::Relaxed);
        thief.join().unwrap();
        assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
    }
}

#[test]
fn c19_c21_events_without_data_do_not_outlast_the_deadline() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let stop = Arc::new(AtomicBool::new(false));
        let storm = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    liar.ring();
                }
                liar
            })
        };
        let (mut victim, outcome) = returns(move || {
            let outcome = victim.read(&mut [0; 8], short());
            (victim, outcome)
        });
        assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
        stop.store(true, Ordering::Relaxed);
        let liar = storm.join().unwrap();
        // And the channel still works.
        liar.page.set_u32(liars_indexes(role).0, 1);
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 1);
    }
}

#[test]
fn c20_c51_silence_ends_at_the_deadline() {
    for role in ROLES {
        let (mut victim, _liar) = pair(role);
        victim.write_all(&[0; RING as usize], soon()).unwrap();
        assert!(matches!(
            victim.write_all(b"x", short()),
            Err(Error::TimedOut(_))
        ));
        assert!(matches!(victim.drain(short()), Err(Error::TimedOut(_))));
        assert!(matches!(
            victim.read(&mut [0; 8], short()),
            Err(Error::TimedOut(_))
        ));
        assert!(matches!(victim.close(short()), Err(Error::TimedOut(_))));
        // Closed all the same.
        assert!(matches!(victim.try_write(b"x"), Err(Error::Closed)));
    }
}

#[test]
fn doorbell_made_blocking_and_full_does_not_hold_the_victim() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        // The counter holds 1; fill it to its last value and take O_NONBLOCK away.
        nix::unistd::write(&liar.own_bell, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        fcntl(&liar.own_bell, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        liar.page
            .set_u8(notify_bytes(role).1, bit::WRITE | bit::READ);
        returns(move || {
            victim.write_all(b"wakes you", soon()).unwrap();
            assert_eq!(victim.stats().events_sent, 1);
        });
    }
}

#[test]
fn hang_up_is_seen_while_live_stays_one() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (page, prod) = (liar.page.clone(), liars_indexes(role).0);
        let waiting = thread::spawn(move || {
            let mut buf = [0; 8];
            let first = victim.read(&mut buf, soon()).unwrap();
            (first, victim.read(&mut buf, soon()).unwrap())
        });
        thread::sleep(Duration::from_millis(30));
        page.set_u32(prod, 2);
        drop(liar);
        assert_eq!(
            waiting.join().unwrap(),
            (2, 0),
            "the data first, then the end"
        );
    }
}
