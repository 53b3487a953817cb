//! Cases 19 to 24: the doorbell, rung too often, too seldom, too early or for nobody.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, send};
use vchan::Error;
use vchan::layout::bit;

use crate::liar::*;

#[test]
fn case_19_storm_without_data() {
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

/// Neither a byte nor a ring: every call that waits ends at its deadline, and the channel stays
/// usable.
#[test]
fn case_20_no_event_ever() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        assert!(matches!(
            victim.read(&mut [0; 8], short()),
            Err(Error::TimedOut(_))
        ));
        let interest = vgpu_transport::Interest::Read;
        assert!(matches!(
            victim.wait(interest, short()),
            Err(Error::TimedOut(_))
        ));
        // Written without a ring: found at the next look.
        liar.page.set_u32(liars_indexes(role).0, 2);
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 2);
    }
}

/// A ring without cause keeps nobody awake; one ring stands for any number of writes.
#[test]
fn case_21_spurious_and_coalesced_events() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        for _ in 0..10 {
            liar.ring();
        }
        assert!(matches!(
            victim.read(&mut [0; 8], short()),
            Err(Error::TimedOut(_))
        ));
        assert_eq!(victim.try_read(&mut [0; 8]).unwrap(), None);

        let (page, prod) = (liar.page.clone(), liars_indexes(role).0);
        let waiting = thread::spawn(move || {
            let mut buf = [0; 64];
            let mut read = 0;
            while read < 10 {
                read += victim.read(&mut buf, soon()).unwrap();
            }
            read
        });
        thread::sleep(Duration::from_millis(20));
        for n in 1..=10 {
            page.set_u32(prod, n);
        }
        liar.ring();
        assert_eq!(waiting.join().unwrap(), 10);
    }
}

/// The nearest thing to an overflowing event channel ring: a doorbell that its owner has filled as
/// far as it can be filled and whose calls may block.
#[test]
fn case_22_doorbell_full_and_blocking() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        for bell in liar.bells() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            while send(bell.as_raw_fd(), &[0; 4096], flags).is_ok() {}
            fcntl(bell, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        }
        liar.page
            .set_u8(notify_bytes(role).1, bit::WRITE | bit::READ);
        returns(move || {
            victim.write_all(b"wakes you", soon()).unwrap();
            assert_eq!(victim.stats().events_sent, 1);
        });
    }
}

/// A ring before the victim's first look is not lost.
#[test]
fn case_23_event_before_anybody_listens() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        liar.page.set_u32(liars_indexes(role).0, 3);
        liar.ring();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 3);
        liar.ring();
        assert_eq!(victim.try_read(&mut [0; 8]).unwrap(), None);
        // Acknowledged above: the next ring is a new one.
        liar.page.set_u32(liars_indexes(role).0, 4);
        liar.ring();
        victim.wait(vgpu_transport::Interest::Read, soon()).unwrap();
        assert_eq!(victim.try_read(&mut [0; 8]).unwrap(), Some(1));
    }
}

/// Ringing a peer that is gone is no error; the next look finds it gone.
#[test]
fn case_24_ringing_a_peer_that_is_gone() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        liar.page
            .set_u8(notify_bytes(role).1, bit::WRITE | bit::READ);
        drop(liar);
        // Before the hang-up is noticed a write, with its ring, may still succeed.
        match victim.try_write(b"x") {
            Ok(1) | Err(Error::PeerClosed { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 0);
        assert!(matches!(
            victim.try_write(b"x"),
            Err(Error::PeerClosed { .. })
        ));
    }
}
