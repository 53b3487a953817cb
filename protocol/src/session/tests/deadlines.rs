//! Deadlines: whose, and when they pass.

use super::*;
use crate::op::field::Bytes;
use crate::op::{Fence, FenceReply, Ping};
use crate::session::server::{Failure, Late};
use crate::status::ErrorCode;

const TICK: Duration = Duration::from_millis(1);

impl Raw {
    /// The next deadline is in `time`, and its text contains `words`; nothing is late before.
    fn late_in(&mut self, time: Duration, words: &str) -> Late {
        let at = self.now + time;
        assert_eq!(self.server.deadline(), at, "{words}: not in {time:?}");
        assert_eq!(self.server.late(at - TICK), None, "{words}: too early");
        let late = self.server.late(at).expect(words);
        let (Late::Session(text) | Late::Request(_, text)) = &late;
        assert!(text.contains(words), "'{text}' without '{words}'");
        self.now = at;
        late
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        assert_eq!(self.server.late(self.now), None);
    }
}

fn ping(id: u32) -> (FrameHeader, Vec<u8>) {
    let payload = Bytes::new(b"ping").expect("short");
    (
        FrameHeader::request(Op::Ping, id),
        Ping { payload }.encode(),
    )
}

fn add(elements: u64) -> (FrameHeader, Vec<u8>) {
    let header = FrameHeader::request(Op::Exchange, 2);
    (header, exchange(elements).encode())
}

#[test]
fn a_guest_has_its_time_for_hello_and_not_more() {
    let mut raw = Raw::new(terms());
    let bytes = frame(FrameHeader::request(Op::Hello, 1), &hello().encode());
    // A byte at a time does not extend the deadline.
    for at in 0..9 {
        raw.pass(HELLO / 10);
        raw.hear(&bytes[at..=at]).expect("a sound part");
    }
    let late = raw.late_in(HELLO / 10, "no complete Hello");
    assert!(matches!(late, Late::Session(_)));
}

#[test]
fn getting_ready_is_not_the_guests_time() {
    let mut raw = Raw::new(terms());
    let bytes = frame(FrameHeader::request(Op::Hello, 1), &hello().encode());
    raw.hear(&bytes).expect("a sound Hello");
    raw.pass(HELLO * 20);
    raw.server.admit(terms(), raw.now);
    raw.pass(STALL - TICK);
    raw.late_in(TICK, "no reply taken");
}

#[test]
fn an_idle_guest_is_let_go_after_its_time() {
    let mut raw = Raw::open(terms());
    raw.pass(IDLE - TICK);
    let (header, body) = ping(2);
    raw.start(header, &body);
    raw.server.complete(2, Ok(body), raw.now);
    raw.said();
    let late = raw.late_in(IDLE, "no request");
    assert!(matches!(late, Late::Session(_)));
}

#[test]
fn half_a_frame_is_not_waited_for() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    let bytes = frame(header, &body);
    raw.hear(&bytes[..20]).expect("a sound part");
    raw.pass(STALL - TICK);
    raw.hear(&bytes[20..33]).expect("a sound part");
    raw.late_in(STALL, "half a frame");
}

#[test]
fn a_guest_that_does_not_take_its_replies_is_let_go() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    raw.start(header, &body);
    raw.server.complete(2, Ok(body), raw.now);
    raw.pass(STALL - TICK);
    raw.server.sent(1, raw.now);
    // Nothing sent is no progress.
    raw.pass(STALL - TICK);
    raw.server.sent(0, raw.now);
    raw.late_in(TICK, "no reply taken");
}

#[test]
fn a_reply_after_long_work_gives_the_guest_its_whole_time() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    raw.start(header, &body);
    for _ in 0..10 {
        raw.pass(STALL - TICK);
        raw.server.progressed(2, raw.now);
        raw.shown();
    }
    raw.server.complete(2, Ok(body), raw.now);
    raw.late_in(STALL, "no reply taken");
}

#[test]
fn a_request_that_does_not_move_is_given_up_and_the_session_goes_on() {
    let mut raw = Raw::open(terms());
    let (header, body) = add(100);
    raw.start(header.with_deadline_ms(500), &body);
    let (other, body) = ping(3);
    raw.start(other, &body);
    let patience = Duration::from_millis(500);
    raw.pass(patience - TICK);
    let data = FrameHeader::data_up(&header, 10, true);
    raw.hear(&frame(data, &[1; 10]))
        .expect("the session goes on");
    let late = raw.late_in(
        patience,
        "nothing moved for 500 ms in the middle of Exchange",
    );
    let Late::Request(2, text) = late else {
        panic!("{late:?}");
    };
    let status = ErrorCode::Timeout.into();
    let outcome = Err(Failure { status, text });
    raw.server.complete(2, outcome, raw.now);
    raw.refused(ErrorCode::Timeout, "nothing moved");
    // The other request has the mediator's own limit.
    let late = raw.late_in(STALL - patience - patience + TICK, "in the middle of Ping");
    assert!(matches!(late, Late::Request(3, _)));
}

#[test]
fn a_request_may_be_given_a_time_in_all_however_it_proceeds() {
    let timeouts = Timeouts {
        request: Some(3 * STALL),
        ..timeouts()
    };
    let mut raw = Raw::with(terms(), timeouts).admitted(terms());
    let (header, body) = ping(2);
    raw.start(header, &body);
    for _ in 0..5 {
        raw.pass(STALL / 2);
        raw.server.progressed(2, raw.now);
        raw.shown();
    }
    // Time in which this side did not run is not the request's.
    raw.now += STALL;
    raw.server.rested(STALL, raw.now);
    let late = raw.late_in(STALL / 2, "Ping took longer than 90000 ms");
    assert!(matches!(late, Late::Request(2, _)));
}

#[test]
fn a_longer_patience_than_the_mediators_own_is_not_granted() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    raw.start(header.with_deadline_ms(u32::MAX), &body);
    raw.late_in(STALL, "in the middle of Ping");
}

#[test]
fn a_fence_is_not_late_while_those_before_it_are_not() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    raw.start(header, &body);
    raw.start(FrameHeader::request(Op::Fence, 3), &Fence {}.encode());
    let nothing = FenceReply::default();
    raw.server.complete(3, Ok(nothing.encode()), raw.now);
    for _ in 0..3 {
        raw.pass(STALL - TICK);
        raw.server.progressed(2, raw.now);
        raw.shown();
    }
    raw.server.complete(2, Ok(body), raw.now);
    assert_eq!(raw.said().len(), 2);
}

#[test]
fn data_for_which_the_executor_has_no_room_is_not_the_guests_delay() {
    let mut raw = Raw::open(terms());
    let (header, body) = add(10);
    raw.start(header, &body);
    let data = frame(FrameHeader::data_up(&header, 80, false), &[1; 80]);
    pour(raw.server.inbox(), &data);
    raw.server.received(raw.now);
    assert!(raw.server.next(raw.now).expect("sound").is_none());
    for _ in 0..3 {
        raw.pass(STALL - TICK);
        raw.server.progressed(2, raw.now);
        raw.shown();
    }
    // The request's own deadline still counts.
    let late = raw.late_in(STALL, "in the middle of Exchange");
    assert!(matches!(late, Late::Request(2, _)));
}

#[test]
fn data_that_nobody_wants_is_not_waited_for() {
    let mut raw = Raw::open(terms());
    let (header, body) = add(10);
    raw.start(header, &body);
    let status = ErrorCode::QuotaMemory.into();
    let text = String::new();
    raw.server
        .complete(2, Err(Failure { status, text }), raw.now);
    raw.said();
    raw.late_in(STALL, "half a request");
}

#[test]
fn a_guest_that_takes_replies_slowly_is_not_late_with_what_was_not_read() {
    let mut raw = Raw::open(terms());
    let refused = FrameHeader::request(Op::Ping, 2).with_lane(99);
    let body = ping(2).1;
    while raw.server.may_receive() {
        raw.hear(&frame(refused, &body))
            .expect("the session goes on");
    }
    pour(raw.server.inbox(), &frame(refused, &body)[..20]);
    for _ in 0..10 {
        raw.pass(STALL - TICK);
        raw.server.sent(100, raw.now);
    }
    let rest = raw.server.outbox().len();
    raw.server.sent(rest, raw.now);
    raw.late_in(STALL, "half a frame");
}

#[test]
fn a_guest_is_shown_once_a_second_that_its_request_goes_on() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    raw.start(header, &body);
    let shown = (0..35).filter(|_| {
        raw.pass(Duration::from_millis(100));
        raw.server.progressed(2, raw.now);
        !raw.said().is_empty()
    });
    assert_eq!(shown.count(), 3);
    // The guest is not shown twice what it has not taken.
    for _ in 0..3 {
        raw.pass(Duration::from_millis(1100));
        raw.server.progressed(2, raw.now);
    }
    raw.shown();
    raw.server.complete(2, Ok(body), raw.now);
    raw.said();
    raw.server.progressed(2, raw.now);
    assert!(raw.said().is_empty());
}

#[test]
fn what_waits_for_the_backend_is_not_the_guests_delay() {
    let mut raw = Raw::open(terms());
    let (header, body) = ping(2);
    pour(raw.server.inbox(), &frame(header, &body)[..20]);
    for _ in 0..3 {
        raw.pass(STALL - TICK);
        raw.server.held_up(raw.now);
    }
    raw.late_in(STALL, "half a frame");
    let mut raw = Raw::open(terms());
    for _ in 0..3 {
        raw.pass(IDLE - TICK);
        raw.server.held_up(raw.now);
    }
    raw.late_in(IDLE, "no request");
}

#[test]
fn a_guest_is_shown_once_a_second_that_work_goes_on_while_nothing_can_be_started() {
    let mut raw = Raw::open(terms());
    let shown: Vec<_> = (0..35)
        .flat_map(|_| {
            raw.pass(Duration::from_millis(100));
            raw.server.works(raw.now);
            raw.said()
        })
        .collect();
    assert_eq!(shown.len(), 3);
    assert!(
        shown
            .iter()
            .all(|(header, _)| *header == FrameHeader::working())
    );
}

#[test]
fn a_guest_that_waits_for_nothing_need_not_take_what_shows_that_work_goes_on() {
    let mut raw = Raw::open(terms());
    for _ in 0..10 {
        raw.pass(STALL - TICK);
        raw.server.held_up(raw.now);
        raw.server.works(raw.now);
        assert!(raw.server.outbox().len() <= HEADER_LEN);
    }
    assert!(!raw.server.is_busy());
    raw.late_in(IDLE, "no request");
    // A reply behind it has its whole time.
    let (header, body) = ping(2);
    raw.hear(&frame(header, &body))
        .expect("the session goes on");
    raw.server.complete(2, Ok(body), raw.now);
    raw.late_in(STALL, "no reply taken");
}
