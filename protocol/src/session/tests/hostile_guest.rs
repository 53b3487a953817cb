//! Guests that break the protocol: each rule once, then arbitrary frames.

use proptest::prelude::*;

use super::*;
use crate::frame::{Flags, MAX_DATA};
use crate::op::HelloReply;
use crate::session::server::Failure;
use crate::status::ErrorCode;

fn add(id: u32, elements: u64) -> Vec<u8> {
    let header = FrameHeader::request(Op::Exchange, id);
    frame(header, &exchange(elements).encode())
}

fn data(id: u32, len: usize, more: bool) -> Vec<u8> {
    let request = FrameHeader::request(Op::Exchange, id);
    frame(FrameHeader::data_up(&request, 0, more), &vec![3; len])
}

/// After a request 2 with 800 bytes of data, `bytes` end the session.
fn breaks(bytes: &[u8], words: &str) {
    let mut raw = Raw::open(Terms {
        initial_credit: 100,
        ..terms()
    });
    raw.hear(&add(2, 100)).expect("sound");
    fault(raw.hear(bytes), words);
    raw.refused(ErrorCode::Protocol, words);
}

#[test]
fn what_is_no_frame_ends_the_session() {
    breaks(&[0xff; 32], "magic");
    let mut bytes = FrameHeader::request(Op::Info, 3).encode();
    bytes[4] = 99;
    breaks(&bytes, "op is 99");
}

#[test]
fn a_reply_ends_the_session() {
    let request = FrameHeader::request(Op::Info, 3);
    let reply = FrameHeader::reply_to(&request, Status::OK);
    breaks(&frame(reply, &[]), "Info comes as a reply");
    let down = FrameHeader::data_down(&FrameHeader::request(Op::Exchange, 2), 0, 9);
    breaks(&frame(down, &[]), "Data comes as a reply");
    let closing = FrameHeader::closing(ErrorCode::Busy.into());
    breaks(&frame(closing, &[]), "Closing comes as a reply");
}

#[test]
fn data_beyond_what_is_due_ends_the_session() {
    let mut raw = Raw::open(terms());
    raw.hear(&add(2, 1)).expect("sound");
    fault(raw.hear(&data(2, 9, true)), "9 bytes of data, 8 due");
}

#[test]
fn data_beyond_the_credit_ends_the_session() {
    breaks(&data(2, 101, true), "101 bytes of data, 100 granted");
    let twice = [data(2, 60, true), data(2, 41, true)].concat();
    breaks(&twice, "41 bytes of data, 40 granted");
}

#[test]
fn data_that_is_whole_and_promises_more_ends_the_session() {
    let mut raw = Raw::open(terms());
    raw.hear(&add(2, 10)).expect("sound");
    fault(raw.hear(&data(2, 80, true)), "more to come where none is");
    breaks(&data(2, 0, true), "more to come where none is");
}

#[test]
fn data_of_no_request_ends_the_session() {
    breaks(&data(3, 1, true), "request 3: data where none is due");
    breaks(&data(3, 0, false), "request 3: data where none is due");
}

#[test]
fn data_after_its_end_ends_the_session() {
    // Ended early; the request is not answered yet.
    let twice = [data(2, 50, true), data(2, 0, false), data(2, 1, true)].concat();
    breaks(&twice, "request 2: data where none is due");
}

#[test]
fn data_on_another_lane_ends_the_session() {
    let request = FrameHeader::request(Op::Exchange, 2).with_lane(1);
    let data = frame(FrameHeader::data_up(&request, 0, true), &[3]);
    breaks(&data, "request 2: data where none is due");
}

#[test]
fn an_id_that_is_in_use_ends_the_session() {
    breaks(&add(2, 1), "request 2 again before it is over");
    // Also one that was answered while its data goes on.
    let mut raw = Raw::open(terms());
    raw.hear(&add(2, 100)).expect("sound");
    let outcome = Err(Failure {
        status: ErrorCode::QuotaMemory.into(),
        text: String::new(),
    });
    raw.server.complete(2, outcome, raw.now);
    raw.said();
    fault(raw.hear(&add(2, 1)), "request 2 again before it is over");
}

#[test]
fn a_second_hello_ends_the_session() {
    let hello = frame(FrameHeader::request(Op::Hello, 3), &hello().encode());
    breaks(&hello, "a second Hello");
}

#[test]
fn anything_before_hello_ends_the_session() {
    let mut raw = Raw::new(terms());
    let info = frame(FrameHeader::request(Op::Info, 1), &[]);
    fault(raw.hear(&info), "the first request is Info, not Hello");
    raw.refused(ErrorCode::Protocol, "not Hello");
    let mut raw = Raw::new(terms());
    fault(raw.hear(&data(1, 1, false)), "data where none is due");
}

#[test]
fn a_broken_hello_ends_the_session() {
    let header = FrameHeader::request(Op::Hello, 1);
    let mut raw = Raw::new(terms());
    fault(raw.hear(&frame(header, &[0; 13])), "min_version is 0");
    raw.refused(ErrorCode::Protocol, "min_version");
    let mut newer = hello();
    newer.min_version = 2.try_into().expect("not 0");
    newer.max_version = 9;
    let mut raw = Raw::new(terms());
    fault(
        raw.hear(&frame(header, &newer.encode())),
        "the guest speaks 2 to 9",
    );
    raw.refused(ErrorCode::Version, "update the older");
}

#[test]
fn a_request_with_data_and_a_broken_body_ends_the_session() {
    // The amount of data that follows is unknown.
    let header = FrameHeader::request(Op::Exchange, 3);
    breaks(&frame(header, &[0xff; 16]), "up is 18446744073709551615");
    breaks(
        &frame(header, &[(1u64 << 60).to_le_bytes(), [0; 8]].concat()),
        "no room anywhere",
    );
    breaks(&frame(header, &[1; 7]), "needs 8 bytes");
}

#[test]
fn requests_that_fail_and_are_never_ended_are_bounded() {
    let mut raw = Raw::open(terms());
    let most = 2 * u32::from(terms().max_requests.get());
    for id in 2..2 + most {
        raw.hear(&add(id, 100)).expect("sound");
        let outcome = Err(Failure {
            status: ErrorCode::QuotaMemory.into(),
            text: String::new(),
        });
        raw.server.complete(id, outcome, raw.now);
        assert_eq!(raw.said().len(), 1);
    }
    fault(raw.hear(&add(2 + most, 100)), "more failed requests");
}

#[test]
fn a_cut_frame_is_noticed() {
    let mut raw = Raw::open(terms());
    assert!(!raw.server.is_busy());
    raw.hear(&FrameHeader::request(Op::Ping, 2).encode()[..31])
        .expect("sound so far");
    assert!(raw.server.is_busy() && raw.server.is_in_frame());
}

/// Frames that are valid by themselves, with small numbers so that they meet each other.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let op = proptest::sample::select(
        &[
            Op::Ping,
            Op::Fence,
            Op::Exchange,
            Op::Info,
            Op::Goodbye,
            Op::Data,
            Op::Data,
            Op::Data,
        ][..],
    );
    let len = prop_oneof![4 => 0..100usize, 1 => 0..5000usize];
    (op, 1..5u32, 0..5u16, 0..5u16, len, any::<bool>()).prop_map(
        |(op, id, lane, flags, len, zero)| {
            let mut header = FrameHeader::request(op, id).with_lane(lane / 2);
            if let Some(flags) = Flags::from_bits(flags) {
                header = header.with_flags(flags);
            }
            let body = match op {
                Op::Exchange => exchange(len as u64).encode(),
                Op::Ping => [&(len as u16).to_le_bytes()[..], &vec![0; len]].concat(),
                Op::Data if !zero => vec![1; len],
                _ => Vec::new(),
            };
            frame(header, &body)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// For any frames, nothing panics, the answers are whole and bounded, and the executor receives
    /// only what the terms allow.
    #[test]
    fn any_frames_are_borne(
        frames in prop::collection::vec(frames(), 0..60),
        noise in prop::collection::vec(any::<u8>(), 0..64),
        answers in prop::collection::vec((any::<bool>(), 0..6u32), 60),
    ) {
        let mut raw = Raw::open(terms());
        let mut answers = answers.into_iter();
        let mut granted = 0;
        for bytes in frames.iter().chain([&noise]) {
            let result = raw.hear(bytes);
            let said = raw.said();
            prop_assert!(raw.taken.len() as u64 <= 10_000 * 61);
            if result.is_err() {
                // No session ends without a message.
                prop_assert!(!said.is_empty());
                break;
            }
            for step in std::mem::take(&mut raw.steps) {
                match step {
                    Step::Start(header, request) => {
                        prop_assert!(header.lane < terms().max_lanes.get());
                        prop_assert!(raw.server.is_running(header.request_id));
                        prop_assert!(request.data().0 < u64::from(MAX_DATA));
                    }
                    Step::Cancel(id) => {
                        let status = ErrorCode::Cancelled.into();
                        let text = String::new();
                        raw.server.complete(id, Err(Failure { status, text }), raw.now);
                        prop_assert!(!raw.server.is_running(id));
                    }
                    Step::Admit => prop_assert!(false, "twice"),
                }
            }
            if let Some((good, id)) = answers.next() {
                raw.server.grant(id, 50, raw.now);
                granted += 50;
                raw.server.tell_credit(raw.now);
                let outcome = match good {
                    true => Ok(HelloReply::MAX_LEN.to_le_bytes()[..2].to_vec()),
                    false => Err(Failure { status: ErrorCode::Busy.into(), text: "x".repeat(5000) }),
                };
                raw.server.complete(id, outcome, raw.now);
                raw.said();
            }
            let _ = (raw.server.deadline(), raw.server.late(raw.now));
        }
        prop_assert!(granted <= 3000);
    }

    #[test]
    fn any_bytes_are_borne(bytes in prop::collection::vec(any::<u8>(), 0..6000), opened: bool) {
        let mut raw = if opened { Raw::open(terms()) } else { Raw::new(terms()) };
        let _ = raw.hear(&bytes);
        raw.said();
    }
}
