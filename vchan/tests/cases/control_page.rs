//! Cases 9 to 15: everything else in the control page.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vchan::layout::{ORDER_MAX, ORDER_SMALL, Orders, Role, live, offset};
use vchan::local::connect_on;
use vchan::{Error, PeerError};
use vchan_testing::peer::{Offer, send_raw};

use crate::liar::*;

#[test]
fn case_09_orders_changed_after_connect() {
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

/// The rule itself is tested in `layout.rs`; here a client meets each impossible pair.
#[test]
fn case_10_impossible_ring_orders() {
    let offered = |left: u16, right: u16| {
        let offer = Offer::new((64 << 10).into()).unwrap();
        offer.page.set_u16(offset::LEFT_ORDER, left);
        offer.page.set_u16(offset::RIGHT_ORDER, right);
        let fds = [
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.from_server.as_fd(),
        ];
        let (near, far) = UnixStream::pair().unwrap();
        send_raw(&far, &offer.hello, &fds, soon()).unwrap();
        connect_on(near, soon()).expect_err("the offer was accepted")
    };
    for order in [0, 1, 9, 21, 31, 32, 0x8000, 0xFFFF] {
        for pair in [(order, 16), (16, order), (order, order)] {
            let error = offered(pair.0, pair.1);
            assert!(
                matches!(error, Error::Peer(PeerError::Orders { .. })),
                "{pair:?}: {error:?}"
            );
        }
    }
    for pair in [(10, 10), (11, 11), (10, 20), (20, 10)] {
        let error = offered(pair.0, pair.1);
        assert!(
            matches!(error, Error::Peer(PeerError::Orders { .. })),
            "{pair:?}: {error:?}"
        );
    }
    // Possible, but not with memory of 33 pages.
    for left in ORDER_SMALL..=ORDER_MAX {
        for right in ORDER_SMALL..=ORDER_MAX {
            let fits = Orders::check(left, right).is_ok_and(|orders| orders.grant_count() == 32);
            if !fits {
                let error = offered(left, right);
                assert!(
                    matches!(error, Error::Peer(_)),
                    "({left}, {right}): {error:?}"
                );
            }
        }
    }
}

#[test]
fn case_11_live_bytes_without_meaning_or_toggling() {
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
fn case_12_own_live_byte_zeroed_by_the_peer() {
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
fn case_13_notify_bits_stuck_or_stolen() {
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

/// Once connected, nothing reads the list again; the lab tests its contents at connect.
#[test]
fn case_14_grant_list_rewritten() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        for (round, lie) in [(1, 0), (2, 1), (3, u32::MAX), (4, 8)] {
            for at in (offset::GRANTS..4096).step_by(4) {
                liar.page.set_u32(at, lie);
            }
            liar.page.set_u32(liars_indexes(role).0, round);
            assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 1);
            victim.write_all(b"x", soon()).unwrap();
        }
    }
}

#[test]
fn case_15_control_page_zero_or_random() {
    let offered = |spoil: &dyn Fn(&Offer)| {
        let offer = Offer::new((64 << 10).into()).unwrap();
        spoil(&offer);
        let (near, far) = UnixStream::pair().unwrap();
        offer.send(&far, soon()).unwrap();
        connect_on(near, soon()).map(drop)
    };
    let zero = offered(&|offer| {
        (0..4096)
            .step_by(4)
            .for_each(|at| offer.page.set_u32(at, 0))
    });
    assert!(
        matches!(zero, Err(Error::Peer(PeerError::Orders { .. }))),
        "{zero:?}"
    );
    let mut state = 0x5EED_u32;
    for _ in 0..300 {
        let random = offered(&|offer| {
            let mut state = state;
            for at in (0..4096).step_by(4) {
                state = state.wrapping_mul(0x9E37_79B9).wrapping_add(0x7F4A_7C15);
                offer.page.set_u32(at, state);
            }
        });
        assert!(matches!(random, Err(Error::Peer(_))), "{random:?}");
        state = state.wrapping_add(1);
    }
    // Sound but for one field.
    for (at, lie) in [
        (offset::SRV_LIVE, live::CLOSED),
        (offset::CLI_LIVE, live::CONNECTED),
    ] {
        let outcome = offered(&|offer| offer.page.set_u8(at, lie));
        assert!(
            matches!(outcome, Err(Error::Peer(PeerError::Rendezvous(_)))),
            "{outcome:?}"
        );
    }
    let outcome = offered(&|offer| offer.page.set_u32(offset::RIGHT_PROD, (64 << 10) + 1));
    assert!(
        matches!(outcome, Err(Error::Peer(PeerError::StartIndexes { .. }))),
        "{outcome:?}"
    );
}
