//! Cases 49 to 52: a peer that is slow, greedy or restless on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vchan::Error;

use crate::liar::*;

/// One thread with two channels: the peer of one never reads, the other does not notice.
#[test]
fn case_49_slow_reader_beside_a_quick_one() {
    let (mut stuck, _never_reads) = honest(4096);
    let (mut lively, mut echo) = honest(4096);
    let echoing = thread::spawn(move || {
        let mut buf = [0; 512];
        loop {
            match echo.read(&mut buf, soon()).unwrap() {
                0 => return,
                n => echo.write_all(&buf[..n], soon()).unwrap(),
            }
        }
    });
    let mut refused = 0;
    for round in 0..2000u32 {
        if stuck.try_write(&[0; 64]).unwrap() == 0 {
            refused += 1;
        }
        lively.write_all(&round.to_le_bytes(), soon()).unwrap();
        let mut back = [0; 4];
        read_exact(&mut lively, &mut back);
        assert_eq!(back, round.to_le_bytes());
    }
    assert_eq!(
        refused,
        2000 - 4096 / 64,
        "the stuck one took what its ring holds"
    );
    lively.close(soon()).unwrap();
    echoing.join().unwrap();
}

/// A byte at a time, each announced: no more than one wake-up and one event per byte.
#[test]
fn case_50_one_byte_trickle() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        victim.set_spin(Duration::ZERO);
        const BYTES: u32 = 1000;
        let (page, prod, demands) = (
            liar.page.clone(),
            liars_indexes(role).0,
            notify_bytes(role).1,
        );
        let trickle = thread::spawn(move || {
            for n in 1..=BYTES {
                page.set_u8(demands, 0xFF);
                page.set_u32(prod, n);
                liar.ring();
                thread::yield_now();
            }
            liar
        });
        let mut read = 0;
        while read < BYTES as usize {
            read += victim.read(&mut [0; 64], soon()).unwrap();
        }
        let _liar = trickle.join().unwrap();
        let stats = victim.stats();
        // The liar rang once to connect.
        assert!(stats.events_received <= u64::from(BYTES) + 1, "{stats:?}");
        assert!(stats.events_sent <= u64::from(BYTES), "{stats:?}");
        assert!(stats.sleeps <= 2 * u64::from(BYTES), "{stats:?}");
    }
}

#[test]
fn case_51_ring_filled_and_never_drained() {
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

/// A reader that spins on an index which never stands still: data, an error or the deadline.
#[test]
fn case_52_spinning_on_a_flickering_index() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        victim.set_spin(Duration::from_millis(20));
        let stop = Arc::new(AtomicBool::new(false));
        let flicker = {
            let (stop, page, prod) = (Arc::clone(&stop), liar.page.clone(), liars_indexes(role).0);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    page.set_u32(prod, 5);
                    page.set_u32(prod, 0);
                }
            })
        };
        let outcome = returns(move || {
            loop {
                match victim.read(&mut [0; 3], short()) {
                    // Nobody rings, so a sleep lasts until its deadline.
                    Ok(_) | Err(Error::TimedOut(_)) => {}
                    Err(error) => return error,
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
        flicker.join().unwrap();
        assert!(matches!(outcome, Error::Peer(_)), "{outcome:?}");

        // The same in a write: the read index flickers while the ring is full.
        let (mut victim, liar) = pair(role);
        victim.set_spin(Duration::from_millis(20));
        victim.write_all(&[0; RING as usize], soon()).unwrap();
        let (page, cons) = (liar.page.clone(), liars_indexes(role).1);
        let stop = Arc::new(AtomicBool::new(false));
        let flicker = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    page.set_u32(cons, 7);
                    page.set_u32(cons, 0);
                }
            })
        };
        let outcome = returns(move || {
            loop {
                match victim.write_all(&[0; 8], short()) {
                    Ok(()) | Err(Error::TimedOut(_)) => {}
                    Err(error) => return error,
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
        flicker.join().unwrap();
        assert!(matches!(outcome, Error::Peer(_)), "{outcome:?}");
    }
}
