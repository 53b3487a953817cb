//! The mediator's answers, frame by frame.

use std::num::NonZeroU16;
use std::sync::Arc;

use super::*;
use crate::frame::{Flags, MAX_DATA};
use crate::op::field::{Bytes, StreamRef};
use crate::op::{CopyToDevice, Fence, FenceReply, MAX_QUIET_FAILURES, Ping, QuietFailure};
use crate::session::server::{CAPACITY, Failure};
use crate::session::tally::{OpResult, Tally};
use crate::status::ErrorCode;

fn request(op: Op, id: u32) -> FrameHeader {
    FrameHeader::request(op, id)
}

fn ping_body(len: usize) -> Vec<u8> {
    let payload = Bytes::new(&vec![7; len]).expect("short enough");
    Ping { payload }.encode()
}

fn add(elements: u64) -> Vec<u8> {
    exchange(elements).encode()
}

fn fail(code: ErrorCode) -> Result<Vec<u8>, Failure> {
    Err(Failure {
        status: code.into(),
        text: "it failed".to_owned(),
    })
}

impl Raw {
    /// Quiet pings of these ids, each of which fails.
    fn fail_quietly(&mut self, ids: impl Iterator<Item = u32>) {
        for id in ids {
            let header = request(Op::Ping, id).with_flags(Flags::QUIET);
            self.start(header, &ping_body(1));
            self.server
                .complete(id, fail(ErrorCode::QuotaMemory), self.now);
            assert!(self.said().is_empty());
        }
    }

    /// The report of a fence.
    fn fence(&mut self, id: u32) -> FenceReply {
        self.fence_behind(id, &FenceReply::default())
    }

    /// The same, where the backend reports `more`.
    fn fence_behind(&mut self, id: u32, more: &FenceReply) -> FenceReply {
        self.start(request(Op::Fence, id), &Fence {}.encode());
        self.server.complete(id, Ok(more.encode()), self.now);
        let said = self.said();
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].0.flags, Flags::REPLY);
        FenceReply::decode(&said[0].1).expect("a sound answer")
    }
}

#[test]
fn replies_say_that_quiet_requests_failed_until_a_fence_says_which() {
    let mut raw = Raw::open(terms());
    raw.fail_quietly(2..4);
    assert!(raw.info(4).flags.contains(Flags::FAILURES));
    let said = raw.ask(request(Op::Ping, 5).with_lane(99), &ping_body(1));
    assert_eq!(said[0].0.status, ErrorCode::Range.into());
    assert!(said[0].0.flags.contains(Flags::FAILURES));
    let fence = raw.fence(6);
    let ids: Vec<_> = fence
        .failures
        .as_slice()
        .iter()
        .map(|f| (f.request_id, f.op))
        .collect();
    assert_eq!(ids, [(2, Op::Ping), (3, Op::Ping)]);
    assert!(!raw.info(7).flags.contains(Flags::FAILURES));
    assert_eq!(raw.fence(8), FenceReply::default());
}

#[test]
fn a_fence_names_64_failures_and_counts_the_rest() {
    let mut raw = Raw::open(terms());
    raw.fail_quietly(2..2 + MAX_QUIET_FAILURES as u32 + 9);
    // Failures from another mediator.
    let mut more = FenceReply::default();
    let failure = QuietFailure {
        request_id: 5000,
        op: Op::Ping,
        status: ErrorCode::Busy.into(),
    };
    more.failures.push(failure).expect("room");
    more.dropped = u32::MAX - 5;
    let fence = raw.fence_behind(1000, &more);
    assert_eq!(fence.failures.as_slice().len(), MAX_QUIET_FAILURES);
    assert_eq!(fence.failures.as_slice()[0].request_id, 2);
    assert_eq!(fence.dropped, u32::MAX, "counted as far as the number goes");
}

#[test]
fn a_fence_whose_work_failed_keeps_the_failures_for_the_next() {
    let mut raw = Raw::open(terms());
    raw.fail_quietly(2..3);
    for (id, outcome) in [(10, fail(ErrorCode::BackendLost)), (11, Ok(vec![1]))] {
        raw.start(request(Op::Fence, id), &[]);
        raw.server.complete(id, outcome, raw.now);
        let said = raw.said();
        assert!(!said[0].0.status.is_ok() && said[0].0.flags.contains(Flags::FAILURES));
    }
    assert_eq!(raw.fence(12).failures.as_slice().len(), 1);
}

#[test]
fn fences_of_one_lane_go_together_when_the_request_before_them_is_over() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Ping, 2), &ping_body(1));
    for id in 3..6 {
        raw.start(request(Op::Fence, id), &[]);
        raw.server
            .complete(id, Ok(FenceReply::default().encode()), raw.now);
        assert!(raw.said().is_empty());
    }
    raw.start(request(Op::Fence, 6).with_lane(1), &[]);
    raw.server
        .complete(6, Ok(FenceReply::default().encode()), raw.now);
    assert_eq!(raw.said()[0].0.request_id, 6);
    raw.server.complete(2, Ok(ping_body(1)), raw.now);
    let ids: Vec<u32> = raw
        .said()
        .iter()
        .map(|(header, _)| header.request_id)
        .collect();
    assert_eq!(ids, [2, 3, 4, 5]);
    assert!(!raw.server.is_busy());
}

#[test]
fn a_fence_does_not_wait_for_data_that_nobody_wants() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(1000));
    raw.server
        .complete(2, fail(ErrorCode::QuotaMemory), raw.now);
    raw.refused(ErrorCode::QuotaMemory, "it failed");
    assert_eq!(raw.fence(3), FenceReply::default());
    assert!(raw.server.is_busy());
    // The guest ends the data of a request that was answered already.
    let end = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    raw.hear(&frame(end, &[])).expect("the session goes on");
    assert!(raw.steps.is_empty() && raw.said().is_empty());
    assert!(!raw.server.is_busy());
}

#[test]
fn the_time_to_an_answer_is_counted_by_its_length() {
    let mut raw = Raw::open(terms());
    let before = raw.server.counts().durations;
    for (id, ms) in [(2, 0), (3, 10), (4, 11), (5, 99_000)] {
        raw.start(request(Op::Ping, id), &ping_body(1));
        let now = raw.now + Duration::from_millis(ms);
        raw.server.complete(id, Ok(ping_body(1)), now);
        // Only the first time.
        raw.server.complete(id, Ok(ping_body(1)), now);
        raw.said();
    }
    // Nobody waits for the end of a quiet one.
    let quiet = request(Op::Ping, 6).with_flags(Flags::QUIET);
    raw.start(quiet, &ping_body(1));
    raw.server.complete(6, Ok(ping_body(1)), raw.now);
    let durations = raw.server.counts().durations;
    let more: Vec<u64> = std::iter::zip(durations.within, before.within)
        .map(|(after, before)| after - before)
        .collect();
    assert_eq!(more, [2, 1, 0, 0, 0, 1]);
    assert_eq!(durations.sum_us - before.sum_us, 99_021_000);
}

#[test]
fn requests_that_are_over_are_counted_by_operation_and_result() {
    let tally = Arc::new(Tally::default());
    let mut raw = Raw::new(terms());
    raw.server.count_in(Arc::clone(&tally));
    let mut raw = raw.admitted(terms());
    for (id, outcome) in [(2, Ok(ping_body(1))), (3, fail(ErrorCode::QuotaMemory))] {
        raw.start(request(Op::Ping, id), &ping_body(1));
        raw.server.complete(id, outcome.clone(), raw.now);
        // Only the first time.
        raw.server.complete(id, outcome, raw.now);
        raw.said();
    }
    raw.fail_quietly(4..6);
    let quiet = request(Op::Ping, 6).with_flags(Flags::QUIET);
    raw.start(quiet, &ping_body(1));
    raw.server.complete(6, Ok(ping_body(1)), raw.now);
    // One that is not over, and one that is refused because of it and of others.
    for id in 10..18 {
        raw.start(request(Op::Exchange, id), &add(1));
    }
    raw.hear(&frame(request(Op::Exchange, 18), &add(1)))
        .expect("the session goes on");
    let counted = |wanted: Op| {
        let found = tally.iter().find(|(op, _)| *op == wanted);
        found.expect("every operation is there").1
    };
    assert_eq!(counted(Op::Hello), [1, 0, 0]);
    assert_eq!(counted(Op::Ping), [2, 3, 0]);
    assert_eq!(counted(Op::Exchange), [0, 1, 0]);
    assert_eq!(counted(Op::Launch), [0; 3]);
    tally.count(Op::Launch, OpResult::FailedLater);
    tally.count(Op::Data, OpResult::Failed);
    assert_eq!(counted(Op::Launch), [0, 0, 1]);
}

#[test]
fn too_many_requests_are_refused_one_by_one() {
    let mut raw = Raw::open(terms());
    for id in 2..10 {
        raw.start(request(Op::Ping, id), &ping_body(1));
    }
    raw.hear(&frame(request(Op::Ping, 10), &ping_body(1)))
        .expect("the session goes on");
    raw.refused(ErrorCode::Busy, "too many");
    raw.server.complete(5, Ok(ping_body(1)), raw.now);
    raw.said();
    raw.start(request(Op::Ping, 11), &ping_body(1));
    assert_eq!(raw.server.counts().failed, 1);
    // Quiet ones are counted separately, and the fence reports those beyond the limit.
    for id in 100..109 {
        let quiet = request(Op::Ping, id).with_flags(Flags::QUIET);
        raw.hear(&frame(quiet, &ping_body(1)))
            .expect("the session goes on");
    }
    assert_eq!(raw.steps.len(), 8);
    raw.steps.clear();
    raw.server.complete(2, Ok(ping_body(1)), raw.now);
    assert!(raw.said()[0].0.flags.contains(Flags::FAILURES));
    for id in (3..9).chain([9, 11]).chain(100..108) {
        raw.server.complete(id, Ok(ping_body(1)), raw.now);
    }
    raw.said();
    let fence = raw.fence(200);
    let busy = QuietFailure {
        request_id: 108,
        op: Op::Ping,
        status: ErrorCode::Busy.into(),
    };
    assert_eq!(fence.failures.as_slice(), [busy]);
}

#[test]
fn what_hello_did_not_agree_on_is_refused_and_its_data_dropped() {
    let mut raw = Raw::open(Terms {
        features: Features::NONE,
        ..terms()
    });
    for (op, body) in [(Op::Fence, vec![]), (Op::Exchange, add(10))] {
        raw.hear(&frame(request(op, 2), &body))
            .expect("the session goes on");
        raw.refused(ErrorCode::Unsupported, "did not agree");
    }
    let data = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    raw.hear(&frame(data, &[1; 80]))
        .expect("the session goes on");
    assert!(raw.taken.is_empty() && !raw.server.is_busy());
    let quiet = request(Op::Ping, 3).with_flags(Flags::QUIET);
    assert!(raw.ask(quiet, &ping_body(1)).is_empty());
    assert!(raw.info(4).flags.contains(Flags::FAILURES));
}

#[test]
fn a_lane_that_was_not_offered_is_refused() {
    let mut raw = Raw::open(terms());
    let max = terms().max_lanes.get();
    raw.start(request(Op::Ping, 2).with_lane(max - 1), &ping_body(1));
    raw.hear(&frame(request(Op::Ping, 3).with_lane(max), &ping_body(1)))
        .expect("the session goes on");
    raw.refused(ErrorCode::Range, "lanes are 0 to 3");
}

#[test]
fn a_body_that_breaks_a_rule_ends_its_request_only() {
    let mut raw = Raw::open(terms());
    raw.hear(&frame(request(Op::Ping, 2), &[9]))
        .expect("the session goes on");
    raw.refused(ErrorCode::Range, "payload needs 2 bytes");
    raw.start(request(Op::Ping, 2), &ping_body(1));
}

#[test]
fn while_it_drains_nothing_new_is_run_and_the_rest_ends_well() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10));
    raw.server.drain(ErrorCode::Busy, "going down");
    raw.hear(&frame(request(Op::Ping, 3), &ping_body(1)))
        .expect("the session goes on");
    raw.refused(ErrorCode::Busy, "going down");
    let data = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    raw.hear(&frame(data, &[1; 80]))
        .expect("the session goes on");
    assert_eq!(raw.taken.len(), 80);
    assert_eq!(raw.server.downs().collect::<Vec<_>>(), [(2, 40)]);
    raw.server.begin_down(2, 40, raw.now);
    let head = raw.server.outbox().len();
    assert_eq!(raw.server.sent(head + 40, raw.now), Some((2, 40)));
    raw.server.complete(2, Ok(vec![0; 8]), raw.now);
    assert_eq!(raw.said()[0].0.status, Status::OK);
    let goodbye = raw.hear(&frame(request(Op::Goodbye, 4), &[]));
    assert_eq!(goodbye, Err(End::Goodbye));
    assert_eq!(raw.said()[0].0.op, Op::Goodbye);
}

#[test]
fn the_mediators_last_word_is_the_last() {
    let mut raw = Raw::open(terms());
    raw.server.close(ErrorCode::Busy, "stopping");
    let said = raw.said();
    assert_eq!(
        said[0].0,
        FrameHeader::closing(ErrorCode::Busy.into()).with_body_len(8)
    );
    let mut told = Told::open(terms());
    told.hear(&frame(said[0].0, &said[0].1))
        .expect("a sound frame");
    let closing = Event::Closing(ErrorCode::Busy.into(), "stopping".to_owned());
    assert_eq!(told.events, [closing]);
}

#[test]
fn a_mediator_turns_guests_away() {
    use crate::session::server::Refusal;

    let refusal = Refusal {
        code: ErrorCode::Denied,
        text: "no rule admits you".to_owned(),
    };
    let mut raw = Raw::new(terms());
    raw.server = Server::new(terms(), timeouts(), 7, Some(refusal.clone()), raw.now);
    let result = raw.hear(&frame(request(Op::Hello, 1), &hello().encode()));
    assert_eq!(result, Err(End::Refused(refusal)));
    raw.refused(ErrorCode::Denied, "no rule");

    let mut raw = Raw::new(terms());
    raw.hear(&frame(request(Op::Hello, 1), &hello().encode()))
        .expect("sound");
    raw.server.turn_away(ErrorCode::BackendLost, "no GPU");
    raw.refused(ErrorCode::BackendLost, "no GPU");
    assert!(!raw.server.is_open());
}

#[test]
fn an_answer_before_its_data_has_come_is_the_mediators_own_fault() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10));
    raw.server.begin_down(2, 40, raw.now);
    let head = raw.server.outbox().len();
    raw.server.sent(head + 40, raw.now);
    raw.server.complete(2, Ok(vec![0; 8]), raw.now);
    raw.refused(ErrorCode::Internal, "ended before its data");
}

#[test]
fn an_answer_waits_for_the_data_before_it() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10));
    let data = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    raw.hear(&frame(data, &[1; 80]))
        .expect("the session goes on");
    raw.server.complete(2, Ok(vec![0; 8]), raw.now);
    assert!(raw.server.outbox().is_empty());
    raw.server.begin_down(2, 40, raw.now);
    let head = raw.server.outbox().len();
    raw.server.sent(head + 39, raw.now);
    assert_eq!(raw.server.outbox().len(), 0);
    raw.server.sent(1, raw.now);
    assert_eq!(raw.said()[0].0.status, Status::OK);
}

#[test]
fn a_request_whose_data_the_guest_ended_early_never_succeeds() {
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10));
    raw.server.begin_down(2, 40, raw.now);
    let head = raw.server.outbox().len();
    raw.server.sent(head + 40, raw.now);
    let end = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    raw.hear(&frame(end, &[])).expect("the session goes on");
    assert!(matches!(raw.steps[..], [Step::Cancel(2)]));
    raw.server.complete(2, Ok(vec![0; 8]), raw.now);
    raw.refused(ErrorCode::Cancelled, "ended before its data");
    assert!(!raw.server.is_busy());
}

#[test]
fn an_answer_may_be_given_as_soon_as_the_last_byte_has_come() {
    // Before the next frame is read.
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10));
    let data = FrameHeader::data_up(&request(Op::Exchange, 2), 0, false);
    let bytes = frame(data, &[1; 80]);
    pour(raw.server.inbox(), &bytes);
    assert!(raw.server.next(raw.now).expect("sound").is_none());
    raw.server.begin_down(2, 40, raw.now);
    let head = raw.server.outbox().len();
    raw.server.sent(head + 40, raw.now);
    assert_eq!(raw.server.inbox().take(&mut [0; 100]), 80);
    raw.server.data_received(80, raw.now);
    raw.server.complete(2, Ok(vec![0; 8]), raw.now);
    assert_eq!(raw.said()[0].0.status, Status::OK);
    assert!(raw.server.next(raw.now).expect("sound").is_none());
}

#[test]
fn no_credit_follows_an_answer() {
    // The guest may have reused the id by then.
    let mut raw = Raw::open(terms());
    raw.start(request(Op::Exchange, 2), &add(10_000));
    raw.server.grant(2, 1000, raw.now);
    raw.server
        .complete(2, fail(ErrorCode::QuotaMemory), raw.now);
    raw.server.grant(2, 1000, raw.now);
    raw.server.tell_credit(raw.now);
    raw.refused(ErrorCode::QuotaMemory, "it failed");
}

#[test]
fn no_more_credit_is_granted_than_data_is_left() {
    let mut raw = Raw::open(Terms {
        initial_credit: 100,
        ..terms()
    });
    raw.start(request(Op::Exchange, 2), &add(100));
    // In the middle of a frame, whose credit is used.
    let data = FrameHeader::data_up(&request(Op::Exchange, 2), 100, true);
    let bytes = data.encode();
    raw.hear(&bytes).expect("the session goes on");
    raw.server.grant(2, u64::MAX, raw.now);
    raw.server.grant(2, u64::MAX, raw.now);
    raw.server.tell_credit(raw.now);
    let said = raw.said();
    assert_eq!((said.len(), said[0].0.credit), (1, 700));
}

#[test]
fn a_guest_that_takes_no_replies_is_not_read() {
    let mut raw = Raw::open(terms());
    let mut frames = Vec::new();
    for id in 2..2 + 100 {
        frames.extend(frame(request(Op::Ping, id).with_lane(99), &ping_body(0)));
    }
    while raw.server.may_receive() {
        pour(raw.server.inbox(), &frames[..3400]);
        assert!(raw.server.next(raw.now).expect("sound").is_none());
    }
    let waiting = raw.server.outbox().len();
    assert!(waiting > CAPACITY && waiting < CAPACITY + 2000, "{waiting}");
    assert!(raw.server.inbox().has_unread());
    let counted = raw.server.counts().requests;
    raw.said();
    assert!(raw.server.next(raw.now).expect("sound").is_none());
    assert!(raw.server.counts().requests > counted);
}

#[test]
fn a_guest_that_always_leaves_some_replies_makes_nothing_grow() {
    let mut outbox = Outbox::default();
    let header = FrameHeader::reply_to(&request(Op::Ping, 2), Status::OK);
    outbox.push(header, |body| body.extend_from_slice(&[0; 100]));
    for _ in 0..10_000 {
        outbox.push(header, |body| body.extend_from_slice(&[0; 100]));
        outbox.sent(132);
        assert_eq!(outbox.len(), 132);
    }
    assert!(outbox.allocated() < 4096, "{} bytes", outbox.allocated());
}

#[test]
fn many_requests_take_no_more_than_their_number_each() {
    // A thousand requests before a thousand fences: with work in proportion to the square of their
    // number for each, this would take minutes.
    let max_requests = NonZeroU16::new(2048).expect("not 0");
    let mut raw = Raw::open(Terms {
        max_requests,
        ..terms()
    });
    for id in 2..1002 {
        raw.start(request(Op::Ping, id), &ping_body(0));
    }
    for id in 1002..2002 {
        raw.start(request(Op::Fence, id), &[]);
        raw.server
            .complete(id, Ok(FenceReply::default().encode()), raw.now);
    }
    for round in 0..3000 {
        let id = 5000 + round;
        raw.start(request(Op::Ping, id).with_lane(1), &ping_body(0));
        raw.server.complete(id, Ok(ping_body(0)), raw.now);
        assert_eq!(raw.said().len(), 1);
    }
    for id in (2..1002).rev() {
        raw.server.complete(id, Ok(ping_body(0)), raw.now);
    }
    assert_eq!(raw.said().len(), 2000);
}

#[test]
fn no_quiet_request_has_data_for_the_guest() {
    for op in Op::REQUESTS {
        let spec = op.spec().expect("a row");
        assert!(!(spec.quiet && spec.data.1), "{op}: nothing would end it");
    }
}

#[test]
fn data_of_a_failed_quiet_request_is_let_come_in_steps() {
    let mut raw = Raw::open(Terms {
        initial_credit: 100,
        ..terms()
    });
    let copy = CopyToDevice {
        to: 1,
        bytes: (u64::MAX / 2).try_into().expect("not 0"),
        stream: StreamRef::DEFAULT,
    };
    let header = request(Op::CopyToDevice, 2).with_flags(Flags::QUIET);
    raw.start(header, &copy.encode());
    raw.server
        .complete(2, fail(ErrorCode::QuotaMemory), raw.now);
    let credit = |raw: &mut Raw| {
        raw.server.tell_credit(raw.now);
        let said = raw.said();
        said.iter()
            .map(|(header, _)| header.credit)
            .collect::<Vec<_>>()
    };
    let mut left = u64::from(u32::MAX);
    assert_eq!(credit(&mut raw), [u32::MAX - 100]);
    assert!(credit(&mut raw).is_empty());
    // However much comes, there is always credit for more.
    let mut told = 0;
    let len = MAX_DATA as usize;
    for _ in 0..3000 {
        let data = FrameHeader::data_up(&header, MAX_DATA, true);
        raw.hear(&data.encode()).expect("the session goes on");
        raw.server.inbox().took(len);
        raw.server.data_received(len, raw.now);
        left -= u64::from(MAX_DATA);
        for more in credit(&mut raw) {
            left += u64::from(more);
            told += 1;
        }
        assert!(left >= u64::from(u32::MAX) / 2);
    }
    assert_eq!(told, 1);
}

/// As behind a relay: it knows that there are failures, but not which.
#[test]
fn replies_say_that_quiet_requests_failed_elsewhere() {
    let mut raw = Raw::open(terms());
    let flags = |raw: &mut Raw, id| {
        raw.start(request(Op::Ping, id), &ping_body(1));
        raw.server.complete(id, Ok(ping_body(1)), raw.now);
        raw.said()[0].0.flags
    };
    raw.server.set_failures_behind(true);
    assert_eq!(flags(&mut raw, 2), Flags::REPLY.with(Flags::FAILURES));
    raw.server.set_failures_behind(false);
    assert_eq!(flags(&mut raw, 3), Flags::REPLY);
}

#[test]
fn every_reply_says_that_kernels_have_printed_until_that_was_taken() {
    let mut raw = Raw::open(terms());
    let flags = |raw: &mut Raw, op, id, body: Vec<u8>| {
        let asked = if op == Op::Ping {
            ping_body(1)
        } else {
            Vec::new()
        };
        raw.start(request(op, id), &asked);
        raw.server.complete(id, Ok(body), raw.now);
        raw.said()[0].0.flags
    };
    let printed = Flags::REPLY.with(Flags::PRINTED);
    raw.server.set_printed(true);
    assert_eq!(flags(&mut raw, Op::Ping, 2, ping_body(1)), printed);
    let none = FenceReply::default().encode();
    assert_eq!(flags(&mut raw, Op::Fence, 3, none), printed);
    raw.start(request(Op::Ping, 4), &ping_body(1));
    let failure = Failure {
        status: ErrorCode::Internal.into(),
        text: String::new(),
    };
    raw.server.complete(4, Err(failure), raw.now);
    assert_eq!(raw.said()[0].0.flags, printed);
    raw.server.set_printed(false);
    assert_eq!(flags(&mut raw, Op::Ping, 5, ping_body(1)), Flags::REPLY);
}

#[test]
fn a_guest_that_does_not_know_of_it_is_not_told_that_kernels_have_printed() {
    let mut terms = terms();
    terms.features = Features(Features::ALL.0 & !Features::PRINTED.0);
    let mut raw = Raw::open(terms);
    raw.server.set_printed(true);
    raw.start(request(Op::Ping, 2), &ping_body(1));
    raw.server.complete(2, Ok(ping_body(1)), raw.now);
    assert_eq!(raw.said()[0].0.flags, Flags::REPLY);
}
