//! Cases 16 to 18: changes that the peer makes to bytes while they are read or decoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vchan::layout::Role;
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::op::Op;
use vgpu_protocol::session::inbox::Inbox;
use vgpu_transport::{Transport, TransportError};

use crate::liar::*;

/// Offset of `body_len` in a header.
const BODY_LEN: usize = 16;

/// The ring in which the liar's bytes reach the victim.
fn incoming(liar: &vchan_testing::peer::LyingPeer, victim: Role) -> Arc<vchan::shm::Region> {
    match victim {
        Role::Server => Arc::clone(&liar.left),
        Role::Client => Arc::clone(&liar.right),
    }
}

/// The length that was checked is the length that is used, however fast the peer rewrites it.
#[test]
fn case_16_payload_rewritten_after_validation() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let ring = incoming(&liar, role);
        let sound = FrameHeader::request(Op::Hello, 7).encode();
        let copies = RING as usize / HEADER_LEN;
        for copy in 0..copies {
            ring.store_bytes(copy * HEADER_LEN, &sound);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let rewriter = {
            let (stop, ring) = (Arc::clone(&stop), Arc::clone(&ring));
            thread::spawn(move || {
                let mut length = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    length = if length == 0 { u32::MAX } else { 0 };
                    for copy in 0..copies {
                        ring.store_bytes(copy * HEADER_LEN + BODY_LEN, &length.to_le_bytes());
                    }
                }
            })
        };
        liar.page.set_u32(
            liars_indexes(role).0,
            u32::try_from(copies * HEADER_LEN).unwrap(),
        );
        for _ in 0..copies {
            let mut bytes = [0; HEADER_LEN];
            assert_eq!(victim.read(&mut bytes, soon()).unwrap(), HEADER_LEN);
            let first = FrameHeader::decode(&bytes);
            if let Ok(header) = &first {
                assert_eq!(header.body_len, 0, "a length above the limit was accepted");
            }
            // The private copy no longer changes.
            thread::yield_now();
            assert_eq!(first, FrameHeader::decode(&bytes));
        }
        stop.store(true, Ordering::Relaxed);
        rewriter.join().unwrap();
    }
}

#[test]
fn case_17_hostile_frame_lengths() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let ring = incoming(&liar, role);
        let mut sent = 0;
        for (length, allowed) in [
            (0, true),
            (RING + 1, false),
            (1 << 31, false),
            (u32::MAX, false),
        ] {
            let mut bytes = FrameHeader::request(Op::Hello, 7).encode();
            bytes[BODY_LEN..BODY_LEN + 4].copy_from_slice(&length.to_le_bytes());
            ring.store_bytes(sent, &bytes);
            sent += HEADER_LEN;
            liar.page
                .set_u32(liars_indexes(role).0, u32::try_from(sent).unwrap());

            let mut bytes = [0; HEADER_LEN];
            Transport::read_exact(&mut victim, &mut bytes, soon()).unwrap();
            match FrameHeader::decode(&bytes) {
                Ok(header) if allowed => assert_eq!(header.body_len, length),
                Err(error) if !allowed => {
                    assert!(error.to_string().contains(&length.to_string()), "{error}");
                }
                other => panic!("a body of {length} bytes: {other:?}"),
            }
        }
    }
}

#[test]
fn case_18_truncated_frame_then_close() {
    for role in ROLES {
        for cut in [1, 24, HEADER_LEN - 1] {
            let (mut victim, liar) = pair(role);
            let bytes = FrameHeader::request(Op::Hello, 7).encode();
            incoming(&liar, role).store_bytes(0, &bytes[..cut]);
            liar.page
                .set_u32(liars_indexes(role).0, u32::try_from(cut).unwrap());
            liar.page.set_u8(liars_live(role), 0);
            liar.ring();

            let mut inbox = Inbox::of_requests();
            let n = victim.read(inbox.space(), soon()).unwrap();
            assert_eq!(n, cut, "what was written before the close is delivered");
            inbox.received(n);
            assert!(matches!(inbox.next(), Ok(None)));
            assert!(inbox.is_partial(), "the cut is noticed");
            assert!(matches!(
                Transport::read_exact(&mut victim, inbox.space(), soon()),
                Err(TransportError::Closed)
            ));
        }
    }
}
