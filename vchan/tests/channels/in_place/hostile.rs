//! A peer that changes the bytes, or its indexes, while this side uses them in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vchan::{Error, PeerError};

use crate::liar::{RING, ROLES, liars_indexes, liars_live, pair as liar_pair, soon};

// docs/threat-model.md, case 16.
#[test]
fn c16_a_peer_that_rewrites_bytes_meanwhile_changes_nothing_but_the_bytes() {
    for role in ROLES {
        let (mut victim, liar) = liar_pair(role);
        let (left, right) = (liar.left.clone(), liar.right.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let rewriter = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut value = 0;
                while !stop.load(Ordering::Relaxed) {
                    left.store_bytes(0, &[value; RING as usize]);
                    right.store_bytes(0, &[value; RING as usize]);
                    value = value.wrapping_add(1);
                }
            })
        };
        let (prod, cons) = liars_indexes(role);
        let (mut read, mut written) = (0u32, 0u32);
        for round in 0..2000u32 {
            read = read.wrapping_add(1 + round % RING);
            liar.page.set_u32(prod, read);
            let bytes = victim.peek(1, soon()).unwrap();
            assert_eq!(bytes.len(), (1 + round % RING) as usize);
            // A copy does not change.
            if let Some(header) = bytes.array::<16>(0) {
                let first = header;
                std::hint::black_box(&victim);
                assert_eq!(first, header);
            }
            let n = victim.peek(1, soon()).unwrap().len();
            let mut words = 0;
            assert_eq!(
                victim
                    .peek(1, soon())
                    .unwrap()
                    .for_each_word(|_| words += 1),
                n / 8
            );
            assert_eq!(words, n / 8);
            victim.consume(n).unwrap();

            let mut room = victim.reserve(1, soon()).unwrap();
            assert_eq!(room.len(), RING as usize);
            room.fill_words(|| 7);
            victim.commit(1 + (round as usize * 7) % 4096).unwrap();
            written = written.wrapping_add(1 + (round * 7) % 4096);
            liar.page.set_u32(cons, written);
        }
        stop.store(true, Ordering::Relaxed);
        rewriter.join().unwrap();
    }
}

#[test]
fn an_index_that_turns_hostile_after_a_peek_is_named_and_sticks() {
    for role in ROLES {
        let (mut victim, liar) = liar_pair(role);
        let (prod, cons) = liars_indexes(role);
        liar.page.set_u32(prod, 10);
        assert_eq!(victim.peek(1, soon()).unwrap().len(), 10);
        liar.page.set_u32(prod, RING + 5);
        // The lent bytes were checked; the lie has no influence on giving them back.
        victim.consume(4).unwrap();
        for _ in 0..2 {
            let found = victim.peek(1, soon()).map(|bytes| bytes.len());
            assert!(
                matches!(found, Err(Error::Peer(PeerError::Producer { found, .. })) if found == RING + 5),
                "{found:?}"
            );
            assert!(matches!(victim.try_peek(1), Err(Error::Peer(_))));
            assert!(matches!(victim.consume(1), Err(Error::Peer(_))));
            assert!(matches!(victim.reserve(1, soon()), Err(Error::Peer(_))));
            assert!(matches!(victim.commit(0), Err(Error::Peer(_))));
        }

        let (mut victim, liar) = liar_pair(role);
        assert_eq!(victim.reserve(1, soon()).unwrap().len(), RING as usize);
        victim.commit(10).unwrap();
        liar.page.set_u32(cons, 11);
        victim.commit(10).unwrap();
        // Eleven are possible by now.
        assert_eq!(
            victim.reserve(1, soon()).unwrap().len(),
            RING as usize - 20 + 11
        );
        liar.page.set_u32(cons, 21);
        assert!(matches!(
            victim.reserve(1, soon()),
            Err(Error::Peer(PeerError::Consumer { found: 21, .. }))
        ));
        assert!(matches!(victim.commit(1), Err(Error::Peer(_))));

        let (mut victim, liar) = liar_pair(role);
        liar.page.set_u8(liars_live(role), 9);
        assert!(matches!(
            victim.peek(1, soon()),
            Err(Error::Peer(PeerError::Live { found: 9, .. }))
        ));
    }
}
