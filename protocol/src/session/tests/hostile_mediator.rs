//! Mediators that break the protocol: each rule once, then arbitrary frames.

use proptest::prelude::*;

use super::*;
use crate::frame::Flags;
use crate::op::field::Bytes;
use crate::op::{Exchange, Fence, Info, Ping, Request};
use crate::session::client::NotSent;
use crate::status::ErrorCode;

fn reply(op: Op, id: u32, status: Status, body: &[u8]) -> Vec<u8> {
    let request = FrameHeader::request(op, id);
    frame(FrameHeader::reply_to(&request, status), body)
}

fn down(id: u32, len: usize, credit: u32) -> Vec<u8> {
    let request = FrameHeader::request(Op::Exchange, id);
    frame(FrameHeader::data_down(&request, 0, credit), &vec![4; len])
}

fn failed() -> Status {
    ErrorCode::QuotaMemory.into()
}

impl Told {
    /// An exchange of 8 bytes up and 4 down for each of `elements` as request 2.
    fn adding(elements: u64) -> Self {
        let mut told = Self::open(Terms {
            initial_credit: 100,
            ..terms()
        });
        told.ask(2, &exchange(elements).into());
        told
    }

    fn ask(&mut self, id: u32, request: &Request) {
        let header = FrameHeader::request(request.op(), id);
        self.client.request(header, request).expect("room");
        self.asked();
    }

    /// Begins and sends a frame of data.
    fn send(&mut self, id: u32, len: usize) {
        self.client.begin_up(id, len);
        let head = self.client.outbox().unsent().len();
        assert_eq!(self.client.sent(head + len), Some((id, len)));
    }
}

#[test]
fn what_is_no_frame_is_a_violation() {
    Told::adding(10).violated(&[0; 32], "magic");
}

#[test]
fn a_request_is_a_violation() {
    let request = frame(FrameHeader::request(Op::Info, 2), &[]);
    Told::adding(10).violated(&request, "Info comes as a request");
    let data = FrameHeader::data_up(&FrameHeader::request(Op::Exchange, 2), 0, true);
    Told::adding(10).violated(&frame(data, &[]), "Data comes as a request");
}

#[test]
fn an_answer_to_nothing_is_a_violation() {
    let bytes = reply(Op::Info, 3, Status::OK, &[]);
    Told::adding(10).violated(&bytes, "answered Info 3, which was not asked");
}

#[test]
fn a_second_answer_is_a_violation() {
    let bytes = reply(Op::Exchange, 2, failed(), b"no");
    let mut told = Told::adding(10);
    told.hear(&bytes).expect("an early error");
    told.violated(&bytes, "which was not asked");
}

#[test]
fn an_answer_to_something_else_is_a_violation() {
    let bytes = reply(Op::Fence, 2, failed(), b"no");
    Told::adding(10).violated(&bytes, "the reply to Exchange on lane 0 is due");
    let request = FrameHeader::request(Op::Exchange, 2).with_lane(1);
    let bytes = frame(FrameHeader::reply_to(&request, failed()), b"no");
    Told::adding(10).violated(&bytes, "on lane 1 where");
}

#[test]
fn success_before_the_data_was_sent_is_a_violation() {
    let bytes = reply(Op::Exchange, 2, Status::OK, &[]);
    Told::adding(10).violated(&bytes, "before its data was sent");
    let mut told = Told::adding(10);
    told.send(2, 79);
    told.violated(&bytes, "before its data was sent");
    // Begun, but not completely sent.
    let mut told = Told::adding(10);
    told.client.begin_up(2, 80);
    told.violated(&bytes, "before its data was sent");
}

#[test]
fn success_after_the_data_was_ended_early_is_a_violation() {
    let mut told = Told::adding(10);
    told.client.end_early(2);
    let bytes = reply(Op::Exchange, 2, Status::OK, &[]);
    told.violated(&bytes, "before its data was sent");
}

#[test]
fn success_before_the_data_has_come_is_a_violation() {
    let mut told = Told::adding(10);
    told.send(2, 80);
    told.hear(&down(2, 39, 0)).expect("39 of 40 bytes");
    let bytes = reply(Op::Exchange, 2, Status::OK, &[]);
    told.violated(&bytes, "1 bytes too early");
}

#[test]
fn more_data_than_is_due_is_a_violation() {
    Told::adding(10).violated(&down(2, 41, 0), "41 bytes for request 2, where 40");
    let mut told = Told::adding(10);
    told.hear(&down(2, 40, 0)).expect("as much as is due");
    told.violated(&down(2, 1, 0), "where 0 bytes are due");
}

#[test]
fn data_of_no_request_is_a_violation() {
    Told::adding(10).violated(&down(3, 1, 0), "request 3, which is not under way");
}

#[test]
fn data_with_nothing_in_it_says_that_work_goes_on_and_changes_nothing() {
    let mut told = Told::adding(10);
    let before = (told.client.credit(2), told.client.down_left(2));
    told.hear(&down(2, 0, 0)).expect("the request goes on");
    told.hear(&down(3, 0, 0)).expect("a quiet one may go on");
    assert_eq!((told.client.credit(2), told.client.down_left(2)), before);
}

#[test]
fn an_answer_to_a_quiet_request_is_a_violation() {
    let mut told = Told::adding(10);
    let payload = Bytes::new(b"quiet").expect("short");
    let header = FrameHeader::request(Op::Ping, 3).with_flags(Flags::QUIET);
    told.client
        .request(header, &Ping { payload }.into())
        .expect("room");
    told.violated(
        &reply(Op::Ping, 3, failed(), b"no"),
        "Ping 3, which was not asked",
    );
}

#[test]
fn an_end_without_a_reason_is_a_violation() {
    let closing = frame(FrameHeader::closing(Status::OK), b"bye");
    Told::adding(10).violated(&closing, "without an error");
}

#[test]
fn a_hello_that_agrees_to_what_was_not_offered_is_a_violation() {
    let answers = [
        (2, Features::ALL, "chose version 2"),
        (1, Features(1 << 40), "features that were not offered"),
    ];
    for (version, features, words) in answers {
        let mut told = Told {
            client: Client::new("test", Duration::from_secs(10)),
            events: Vec::new(),
        };
        let mut answer = hello_reply(terms());
        answer.version = version.try_into().expect("not 0");
        answer.features = features;
        told.violated(&reply(Op::Hello, 1, Status::OK, &answer.encode()), words);
        let mut told = Told {
            client: Client::new("test", Duration::from_secs(10)),
            events: Vec::new(),
        };
        told.violated(&reply(Op::Hello, 1, Status::OK, &[]), "HelloReply: version");
    }
}

#[test]
fn credit_is_counted_and_never_overflows() {
    let mut told = Told::adding(1 << 40);
    assert_eq!(told.client.may_send(2), 100);
    told.send(2, 100);
    assert_eq!(told.client.may_send(2), 0);
    told.hear(&down(2, 3, 50)).expect("data and credit");
    assert_eq!(told.client.may_send(2), 50);
    for _ in 0..5 {
        told.hear(&down(2, 0, u32::MAX)).expect("credit");
    }
    assert_eq!(told.client.may_send(2), crate::frame::MAX_DATA as usize);
}

#[test]
fn credit_for_a_request_that_is_over_says_nothing() {
    let mut told = Told::adding(100);
    told.hear(&reply(Op::Exchange, 2, failed(), b"no"))
        .expect("an early error");
    let end = told.asked();
    assert_eq!(end.len(), 1);
    assert_eq!(
        (end[0].0.op, end[0].0.has_more(), end[0].0.body_len),
        (Op::Data, false, 0)
    );
    told.events.clear();
    told.hear(&down(2, 0, 7)).expect("late credit");
    assert_eq!(told.events, [Event::Credit(2, 0)]);
}

#[test]
fn a_guest_asks_for_nothing_that_was_not_offered() {
    let mut told = Told::open(Terms {
        features: Features::NONE,
        ..terms()
    });
    let header = FrameHeader::request(Op::Fence, 2);
    let refused = told.client.request(header, &Fence {}.into());
    assert_eq!(refused, Err(NotSent::NotOffered(Op::Fence)));
    let payload = Bytes::new(b"quiet").expect("short");
    let header = FrameHeader::request(Op::Ping, 2).with_flags(Flags::QUIET);
    let refused = told.client.request(header, &Ping { payload }.into());
    assert_eq!(refused, Err(NotSent::NotOffered(Op::Ping)));
    let mut new = Client::new("test", Duration::from_secs(10));
    let header = FrameHeader::request(Op::Info, 2);
    assert_eq!(new.request(header, &Info {}.into()), Err(NotSent::NotOpen));
}

#[test]
fn a_guest_sends_no_body_that_every_mediator_refuses() {
    let mut told = Told::open(terms());
    let header = FrameHeader::request(Op::Exchange, 2);
    let refused = told.client.request(
        header,
        &Exchange {
            up: 1 << 62,
            down: 0,
        }
        .into(),
    );
    assert!(matches!(refused, Err(NotSent::Body(_))), "{refused:?}");
    assert!(told.client.outbox().is_empty());
}

#[test]
fn ids_are_not_used_twice_at_a_time() {
    let mut told = Told::adding(10);
    let header = FrameHeader::request(Op::Info, 2);
    let refused = told.client.request(header, &Info {}.into());
    assert_eq!(refused, Err(NotSent::InUse(2)));
    // The next id is none that the other side has chosen.
    assert_eq!(told.client.next_header(Op::Info).request_id, 3);
}

/// Frames that are valid by themselves, with small numbers so that they meet each other.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let op = proptest::sample::select(&[Op::Ping, Op::Exchange, Op::Info, Op::Data, Op::Data][..]);
    (op, 1..6u32, 0..3u16, any::<bool>(), 0..90usize, 0..90u32).prop_map(
        |(op, id, lane, good, len, credit)| {
            let request = FrameHeader::request(op, id).with_lane(lane / 2);
            match op {
                Op::Data => frame(
                    FrameHeader::data_down(&request, 0, credit),
                    &vec![1; len / 2],
                ),
                _ => {
                    let status = if good { Status::OK } else { failed() };
                    frame(FrameHeader::reply_to(&request, status), &vec![0; len / 4])
                }
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// For any frames, nothing panics, and every request gets at most one reply and no more data
    /// than is due.
    #[test]
    fn any_frames_are_borne(frames in prop::collection::vec(frames(), 0..40), noise: [u8; 8]) {
        let mut told = Told::adding(20);
        let payload = Bytes::new(b"ping").expect("short");
        told.ask(3, &Ping { payload }.into());
        told.ask(4, &Info {}.into());
        let mut replies = Vec::new();
        for bytes in frames.iter().map(Vec::as_slice).chain([&noise[..]]) {
            let due = told.client.down_left(2);
            let credit = told.client.may_send(2);
            if credit > 0 && bytes.len() % 3 == 0 {
                told.send(2, credit);
            }
            if told.hear(bytes).is_err() {
                break;
            }
            prop_assert!(told.client.down_left(2) <= due);
            for event in told.events.drain(..) {
                if let Event::Reply { id, .. } = event {
                    prop_assert!(!replies.contains(&id));
                    replies.push(id);
                }
            }
            told.asked();
        }
    }

    #[test]
    fn any_bytes_are_borne(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let _ = Told::adding(20).hear(&bytes);
    }
}
