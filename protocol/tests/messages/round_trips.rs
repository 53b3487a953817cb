//! Every message that can be sent arrives unchanged, and no message makes the receiver panic.

use crate::bodies::Bodies;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vgpu_protocol::frame::{Flags, FrameError, FrameHeader, HEADER_LEN};
use vgpu_protocol::op::field::FieldError;
use vgpu_protocol::op::{Body, Features, Hello, Op, SynchronizeReply, negotiate_version};
use vgpu_protocol::status::{Status, decode_error_text};

/// All operations that a frame can have.
fn ops() -> Vec<Op> {
    [&[Op::Closing, Op::Data], Op::REQUESTS].concat()
}

/// Every header the protocol allows.
fn headers() -> impl Strategy<Value = FrameHeader> {
    (
        proptest::sample::select(ops()),
        0..16u16,
        1..=u32::MAX,
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
        any::<i32>(),
        any::<u32>(),
    )
        .prop_filter_map("flags the op does not allow", |header| {
            let (op, bits, request_id, lane, len, deadline_ms, status, credit) = header;
            let flags = Flags::from_bits(bits)?;
            let (reply, data) = (flags.contains(Flags::REPLY), op == Op::Data);
            let max = u32::try_from(op.max_body(reply)).expect("small");
            let header = FrameHeader {
                op,
                flags,
                request_id: if op == Op::Closing { 0 } else { request_id },
                lane,
                body_len: len % (max + 1),
                deadline_ms: if reply || data { 0 } else { deadline_ms },
                status: Status::from_raw(if reply && !data { status } else { 0 }),
                credit: if reply && data { credit } else { 0 },
            };
            match FrameHeader::decode(&header.encode()) {
                Err(FrameError::FlagsForOp { .. }) => None,
                _ => Some(header),
            }
        })
}

#[test]
fn every_body_of_the_table_survives_the_wire() {
    let mut runner = TestRunner::default();
    for bodies in Bodies::all() {
        let values = bodies.values();
        let mut sound = 0;
        // Most bytes are invalid in a field with few values, such as FillRange's element_bytes.
        for tried in 0.. {
            if tried >= 100 && sound > 0 {
                break;
            }
            assert!(tried < 100_000, "{bodies:?}: no sound one found");
            let values = values.new_tree(&mut runner).expect("a value").current();
            let body = values.concat();
            assert!(body.len() <= bodies.max_len(), "{bodies:?}");
            match bodies.again(&body) {
                Ok(again) => {
                    assert_eq!(again, body, "{bodies:?}");
                    sound += 1;
                }
                // A rule for more than one field, or a bound below the type's.
                Err(error) => assert!(
                    matches!(error.error, FieldError::Value { .. }),
                    "{bodies:?}: {error}"
                ),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn headers_survive_the_wire(header in headers()) {
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_header_that_decodes_encodes_to_the_same_bytes(bytes in any::<[u8; HEADER_LEN]>(), op in 0..10u16) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(b"VGPU");
        bytes[4..6].copy_from_slice(&op.to_le_bytes());
        bytes[14..16].copy_from_slice(&[0, 0]);
        if let Ok(header) = FrameHeader::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn one_changed_byte_is_refused_or_a_different_header(
        header in headers(), at in 0..HEADER_LEN, change in 1..=255u8,
    ) {
        let mut bytes = header.encode();
        bytes[at] ^= change;
        if let Ok(other) = FrameHeader::decode(&bytes) {
            prop_assert_ne!(other, header);
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(body in prop::collection::vec(any::<u8>(), 0..4200)) {
        for bodies in Bodies::all() {
            // Allocation is bounded by the input: the decoded value has no more bytes than the
            // input.
            if let Ok(again) = bodies.again(&body) {
                prop_assert!(again.len() <= 3 * body.len(), "{:?}", bodies);
            }
        }
        prop_assert!(decode_error_text(&body).len() <= 3 * 1024);
    }

    #[test]
    fn versions_are_agreed_on(min in 1..100u16, more in 0..100u16, features: u64) {
        let hello = Hello {
            min_version: min.try_into().expect("from 1"),
            max_version: min + more,
            features: Features(features),
            client_name: "x".into(),
        };
        prop_assert_eq!(negotiate_version(&hello).is_some(), min == 1);
    }

    #[test]
    fn statuses_keep_their_number(raw: i32) {
        prop_assert_eq!(Status::from_raw(raw).to_raw(), raw);
        prop_assert_eq!(Status::from_raw(raw).is_ok(), raw == 0);
    }
}

#[test]
fn a_reply_is_checked_and_its_time_read_without_knowing_what_it_is() {
    let reply = SynchronizeReply { device_ns: 77 }.encode();
    assert_eq!(Op::Synchronize.check_reply(&reply), Ok(()));
    assert_eq!(Op::Synchronize.device_ns(&reply), Some(77));
    assert!(Op::Synchronize.check_reply(&reply[1..]).is_err());
    assert_eq!(Op::Synchronize.device_ns(&reply[1..]), None);
    assert_eq!(Op::Ping.device_ns(&[0; 8]), None);
    assert_eq!(Op::Closing.device_ns(&[0; 8]), None);
}
