//! Requests that overtake those that cannot start.

use super::*;
use crate::frame::Flags;
use crate::handle::{Handle, HandleKind};
use crate::op::field::{Bytes, StreamRef};
use crate::op::{
    Fence, FenceReply, GraphLaunch, Info, Launch, MemoryInfo, Ping, PingReply, Request,
    StreamCancel, StreamCancelReply, StreamCreate,
};
use crate::session::WINDOW;
use crate::session::client::NotSent;
use crate::session::server::{Failure, Outcome};
use crate::status::ErrorCode;

fn handle(kind: HandleKind, slot: u32) -> Handle {
    Handle::new(kind, slot, 1).expect("sound")
}

fn stream(slot: u32) -> StreamRef {
    StreamRef::of(handle(HandleKind::Stream, slot))
}

fn launch(stream: StreamRef) -> Request {
    Launch {
        module: handle(HandleKind::Module, 0),
        function: 0,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream,
        deadline_ms: 0,
        parameters: Bytes::default(),
        attributes: Default::default(),
    }
    .into()
}

fn cancel(stream: StreamRef) -> Request {
    StreamCancel { stream }.into()
}

/// The frame of a request, quiet where it may be.
fn sent(id: u32, request: &Request) -> Vec<u8> {
    let mut header = FrameHeader::request(request.op(), id);
    if request.op().spec().is_some_and(|spec| spec.quiet) {
        header = header.with_flags(Flags::QUIET);
    }
    under(header, request)
}

/// The frame of a request on a lane, which is answered.
fn asked(id: u32, lane: u16, request: impl Into<Request>) -> Vec<u8> {
    let request = request.into();
    under(
        FrameHeader::request(request.op(), id).with_lane(lane),
        &request,
    )
}

fn under(header: FrameHeader, request: &Request) -> Vec<u8> {
    let mut body = Vec::new();
    request.encode_to(&mut body);
    frame(header, &body)
}

fn ping() -> Ping {
    Ping {
        payload: Bytes::default(),
    }
}

impl Raw {
    /// Reads on behind what cannot start; the steps of those that overtake it.
    fn read_behind(&mut self, mut bytes: &[u8]) -> Vec<(u32, Request)> {
        let mut steps = Vec::new();
        loop {
            while let Some(step) = self
                .server
                .overtaking(self.now)
                .expect("the session goes on")
            {
                match step {
                    Step::Start(header, request) => steps.push((header.request_id, request)),
                    other => panic!("{other:?}"),
                }
            }
            let space = self.server.space_behind();
            let n = space.len().min(bytes.len());
            if n == 0 {
                return steps;
            }
            space[..n].copy_from_slice(&bytes[..n]);
            self.server.inbox().received(n);
            bytes = &bytes[n..];
        }
    }

    /// The ids of those.
    fn overtaken_by(&mut self, bytes: &[u8]) -> Vec<u32> {
        let steps = self.read_behind(bytes);
        steps.into_iter().map(|(id, _)| id).collect()
    }

    /// Starts the requests read before, as far as possible, and returns their ids.
    fn go_on(&mut self) -> Vec<u32> {
        self.hear(&[]).expect("the session goes on");
        let steps = self.steps.drain(..);
        steps
            .map(|step| match step {
                Step::Start(header, _) => header.request_id,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn answer(&mut self, id: u32, outcome: Outcome) -> StreamCancelReply {
        self.server.complete(id, outcome, self.now);
        let said = self.said();
        let [(header, body)] = &said[..] else {
            panic!("one answer: {said:?}");
        };
        assert_eq!((header.request_id, header.status), (id, Status::OK));
        StreamCancelReply::decode(body).expect("a reply")
    }

    fn failures(&mut self) -> Vec<(u32, Status)> {
        let fence = FrameHeader::request(Op::Fence, 99);
        self.start(fence, &[]);
        self.server
            .complete(99, Ok(FenceReply::default().encode()), self.now);
        let said = self.said();
        let reply = FenceReply::decode(&said[0].1).expect("a reply");
        let failures = reply.failures.as_slice().iter();
        failures
            .map(|failure| (failure.request_id, failure.status))
            .collect()
    }
}

fn kernels(kernels: u32) -> Outcome {
    Ok(StreamCancelReply { kernels }.encode())
}

/// A GPU's kernels run on, and what it was not given is ended all the same, once.
#[test]
fn a_cancel_that_ends_nothing_that_has_begun_ends_what_has_not() {
    let mut raw = Raw::open(terms());
    let refused = || {
        let status = Status::Cuda(801);
        let text = "a GPU cannot end one kernel alone".to_owned();
        Err(Failure { status, text })
    };
    let line = [
        sent(2, &launch(stream(1))),
        sent(3, &launch(stream(2))),
        sent(4, &cancel(stream(1))),
        sent(5, &cancel(stream(1))),
    ]
    .concat();
    let steps = raw.read_behind(&line);
    assert!(
        matches!(&steps[..], [(4, Request::StreamCancel(_))]),
        "{steps:?}"
    );
    assert_eq!(raw.answer(4, refused()).kernels, 1);
    let steps = raw.read_behind(&[]);
    assert!(
        matches!(&steps[..], [(5, Request::StreamCancel(_))]),
        "{steps:?}"
    );
    raw.server.complete(5, refused(), raw.now);
    let said = raw.said();
    let [(header, _)] = &said[..] else {
        panic!("one answer: {said:?}");
    };
    assert_eq!((header.request_id, header.status), (5, Status::Cuda(801)));
    assert_eq!(raw.go_on(), [3]);
    raw.server.complete(3, Ok(Vec::new()), raw.now);
    assert_eq!(raw.failures(), [(2, ErrorCode::Cancelled.into())]);
}

#[test]
fn a_cancel_ends_what_was_sent_before_and_not_read() {
    let mut raw = Raw::open(terms());
    let graph = GraphLaunch {
        exec: handle(HandleKind::GraphExec, 0),
        stream: stream(1),
    };
    let line = [
        sent(2, &launch(stream(1))),
        sent(3, &launch(stream(2))),
        sent(4, &ping().into()),
        sent(5, &graph.into()),
        sent(6, &cancel(stream(1))),
        sent(7, &launch(stream(1))),
    ]
    .concat();
    // However it is cut.
    let (one, other) = line.split_at(HEADER_LEN + 7);
    assert!(raw.read_behind(one).is_empty());
    let steps = raw.read_behind(other);
    assert!(
        matches!(&steps[..], [(6, Request::StreamCancel(_))]),
        "{steps:?}"
    );
    // Until it is answered nothing else starts.
    assert!(!raw.server.may_start());
    assert_eq!(raw.answer(6, kernels(40)).kernels, 42);
    assert!(raw.server.may_start());
    assert_eq!(raw.go_on(), [3, 4, 7]);
    for id in [3, 4, 7] {
        raw.server.complete(id, Ok(Vec::new()), raw.now);
    }
    let cancelled = ErrorCode::Cancelled.into();
    assert_eq!(raw.failures(), [(2, cancelled), (5, cancelled)]);
}

#[test]
fn a_cancel_that_was_refused_ends_nothing() {
    let mut raw = Raw::open(terms());
    let line = [sent(2, &launch(stream(1))), sent(3, &cancel(stream(1)))].concat();
    assert_eq!(raw.read_behind(&line).len(), 1);
    let failure = Failure {
        status: Status::Cuda(700),
        text: "a fault".to_owned(),
    };
    raw.server.complete(3, Err(failure), raw.now);
    raw.refused(Status::Cuda(700), "a fault");
    assert_eq!(raw.go_on(), [2]);
}

#[test]
fn a_stream_that_waits_to_be_made_has_its_launches_cancelled() {
    let mut raw = Raw::open(terms());
    let create = StreamCreate {
        stream: handle(HandleKind::Stream, 1),
        flags: 0,
        priority: 0,
    };
    let unknown = || Failure {
        status: ErrorCode::Handle.into(),
        text: "no such stream".to_owned(),
    };
    let line = [
        sent(2, &create.into()),
        sent(3, &launch(stream(1))),
        sent(4, &cancel(stream(1))),
        sent(5, &cancel(stream(2))),
    ]
    .concat();
    assert_eq!(raw.read_behind(&line).len(), 1);
    assert_eq!(raw.answer(4, Err(unknown())).kernels, 1);
    // One at a time, and of a stream that nobody makes there is nothing to say.
    assert_eq!(raw.read_behind(&[]).len(), 1);
    raw.server.complete(5, Err(unknown()), raw.now);
    raw.refused(ErrorCode::Handle, "no such");
    assert_eq!(raw.go_on(), [2]);
    raw.server.complete(2, Ok(Vec::new()), raw.now);
    assert_eq!(raw.failures(), [(3, ErrorCode::Cancelled.into())]);
}

#[test]
fn what_is_read_behind_is_bounded_and_ends_at_what_breaks_a_rule() {
    let mut raw = Raw::open(terms());
    let one = sent(2, &launch(stream(1)));
    let flood = one.repeat(3 * WINDOW as usize / one.len());
    assert!(raw.read_behind(&flood).is_empty());
    assert!(!raw.server.has_space_behind());
    let most = 2 * WINDOW as usize + 4096 * 8;
    assert!((WINDOW as usize..=most).contains(&raw.server.inbox().unread()));

    let mut raw = Raw::open(terms());
    let garbage = [one, vec![0; HEADER_LEN], sent(3, &cancel(stream(1)))].concat();
    assert!(raw.read_behind(&garbage).is_empty());
    fault(raw.hear(&[]), "magic");
}

#[test]
fn a_cancel_behind_data_without_room_is_found() {
    let mut raw = Raw::open(terms());
    let up = exchange(100);
    let header = FrameHeader::request(Op::Exchange, 2);
    raw.start(header, &up.encode());
    let data = frame(FrameHeader::data_up(&header, 800, false), &[7; 800]);
    let line = [
        data,
        sent(3, &launch(stream(1))),
        sent(4, &cancel(stream(1))),
    ]
    .concat();
    // The header is read, the data has no room.
    assert!(pour(raw.server.inbox(), &line[..100]).is_empty());
    assert!(raw.server.next(raw.now).expect("sound").is_none());
    assert!(raw.server.inbox().data_left() > 0);
    assert_eq!(raw.read_behind(&line[100..]).len(), 1);
    assert_eq!(raw.answer(4, kernels(0)).kernels, 1);
    assert!(raw.go_on().is_empty());
    assert_eq!(raw.taken, [7; 800]);
}

#[test]
fn there_is_room_for_a_cancel_when_all_requests_wait() {
    let mut raw = Raw::open(terms());
    for id in 2..10 {
        raw.start(FrameHeader::request(Op::Synchronize, id), &[]);
    }
    raw.ask(FrameHeader::request(Op::Synchronize, 10), &[]);
    let mut body = Vec::new();
    cancel(stream(1)).encode_to(&mut body);
    raw.start(FrameHeader::request(Op::StreamCancel, 11), &body);
}

#[test]
fn a_guest_knows_what_was_started_by_what_comes() {
    let mut client = Told::open(terms()).client;
    let before = client.not_started();
    let mut ask = |request: &Request, quiet: bool| -> Result<FrameHeader, NotSent> {
        let mut header = client.next_header(request.op());
        if quiet {
            header = header.with_flags(Flags::QUIET);
        }
        client.request(header, request)?;
        Ok(header)
    };
    ask(&launch(stream(1)), true).expect("sent");
    let sync = ask(&crate::op::Synchronize {}.into(), false).expect("sent");
    let cancelled = ask(&cancel(stream(1)), false).expect("sent");
    ask(&launch(stream(1)), true).expect("sent");
    let all = client.not_started();
    let reply = |client: &mut Client, header: &FrameHeader, body: &[u8]| {
        let bytes = frame(FrameHeader::reply_to(header, Status::OK), body);
        assert!(pour(client.inbox(), &bytes).is_empty());
        assert!(matches!(client.next(), Ok(Some(Event::Reply { .. }))));
    };
    // It says nothing of those that it has overtaken.
    reply(
        &mut client,
        &cancelled,
        &StreamCancelReply { kernels: 1 }.encode(),
    );
    assert_eq!(client.not_started(), all);
    reply(&mut client, &sync, &[0; 8]);
    let left = client.not_started();
    let one = sent(1, &launch(stream(1))).len() as u64;
    assert_eq!((before, left), (0, one));
}

#[test]
fn what_does_not_touch_the_device_overtakes_other_lanes_and_not_its_own() {
    let mut raw = Raw::open(terms());
    let line = [
        asked(2, 0, launch(stream(1))),
        asked(3, 0, ping()),
        asked(4, 1, ping()),
        asked(5, 1, MemoryInfo {}),
        asked(6, 1, ping()),
        asked(7, 2, Fence {}),
        asked(8, 3, Info {}),
        asked(9, 3, MemoryInfo {}),
        // No such lane, and nobody waits for a quiet one.
        asked(10, 9, ping()),
        sent(11, &ping().into()),
    ]
    .concat();
    let (one, other) = line.split_at(HEADER_LEN + 7);
    assert_eq!(raw.overtaken_by(one), Vec::<u32>::new());
    assert_eq!(raw.overtaken_by(other), [4, 7, 8]);
    // A fence has nothing of its lane before it.
    raw.server
        .complete(7, Ok(FenceReply::default().encode()), raw.now);
    assert_eq!(raw.said().len(), 1);
    // The rest in order, once it can start.
    assert_eq!(raw.go_on(), [2, 3, 5, 6, 9, 11]);
}

/// Raw bytes up to the first frame that cannot start, one at a time.
fn start_one(raw: &mut Raw) -> u32 {
    match raw.server.next(raw.now) {
        Ok(Some(Step::Start(header, _))) => header.request_id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_that_waited_for_its_lane_overtakes_the_others_once_that_has_started() {
    let mut raw = Raw::open(terms());
    let line = [
        asked(2, 0, MemoryInfo {}),
        asked(3, 1, MemoryInfo {}),
        asked(4, 0, MemoryInfo {}),
        asked(5, 1, ping()),
        asked(6, 1, Fence {}),
        asked(7, 1, MemoryInfo {}),
        asked(8, 0, ping()),
    ]
    .concat();
    assert!(raw.overtaken_by(&line).is_empty());
    assert_eq!(start_one(&mut raw), 2);
    assert!(raw.overtaken_by(&[]).is_empty());
    assert_eq!(start_one(&mut raw), 3);
    assert_eq!(raw.overtaken_by(&[]), [5, 6]);
    assert_eq!(start_one(&mut raw), 4);
    assert_eq!(raw.overtaken_by(&[]), [8]);
    assert_eq!(raw.overtaken_by(&asked(9, 1, ping())), Vec::<u32>::new());
    assert_eq!(raw.go_on(), [7, 9]);
}

#[test]
fn an_id_that_is_in_use_overtakes_nothing() {
    let mut raw = Raw::open(terms());
    let quiet = under(
        FrameHeader::request(Op::Launch, 5).with_flags(Flags::QUIET),
        &launch(stream(1)),
    );
    pour(raw.server.inbox(), &quiet);
    assert_eq!(start_one(&mut raw), 5);
    let line = [asked(6, 0, MemoryInfo {}), asked(5, 1, ping())].concat();
    assert!(raw.overtaken_by(&line).is_empty());
    raw.server.complete(5, Ok(Vec::new()), raw.now);
    assert_eq!(raw.go_on(), [6, 5]);
}

#[test]
fn one_behind_data_that_passed_by_the_inbox_is_found() {
    let mut raw = Raw::open(terms());
    let up = exchange(10_000);
    raw.start(FrameHeader::request(Op::Exchange, 2), &up.encode());
    raw.server.grant(2, up.up, raw.now);
    raw.said();
    let bytes = u32::try_from(up.up).expect("small");
    let header = FrameHeader::request(Op::Exchange, 2);
    let header = FrameHeader::data_up(&header, bytes, false).with_body_len(bytes);
    pour(raw.server.inbox(), &header.encode());
    assert!(raw.server.next(raw.now).expect("sound").is_none());
    // Nothing of the data is here.
    assert!(raw.server.overtaking(raw.now).expect("sound").is_none());
    raw.server.inbox().took(bytes as usize);
    raw.server.data_received(bytes as usize, raw.now);
    let line = [asked(3, 0, MemoryInfo {}), asked(4, 1, ping())].concat();
    assert_eq!(raw.overtaken_by(&line), [4]);
    assert_eq!(raw.go_on(), [3]);
}

#[test]
fn those_that_overtake_are_limited_like_all_others() {
    let mut raw = Raw::open(terms());
    pour(raw.server.inbox(), &asked(2, 0, launch(stream(1))));
    let mut started = 0;
    for id in 3..20 {
        // A backend that answers none.
        started += raw.overtaken_by(&asked(id, 1, ping())).len();
    }
    assert_eq!(started, usize::from(terms().max_requests.get()));
    let refused = raw.said();
    assert_eq!(refused.len(), 17 - started);
    let busy = |(header, _): &(FrameHeader, Vec<u8>)| header.status == ErrorCode::Busy.into();
    assert!(refused.iter().all(busy), "{refused:?}");

    // A guest that takes no answers stops itself.
    let mut raw = Raw::open(terms());
    pour(raw.server.inbox(), &asked(2, 0, launch(stream(1))));
    let payload = Bytes::new(&[7; 4096]).expect("as many as there may be");
    let mut id = 3;
    loop {
        let ping = Ping {
            payload: payload.clone(),
        };
        let steps = raw.read_behind(&asked(id, 1, ping.clone()));
        if steps.is_empty() {
            break;
        }
        let reply = PingReply {
            payload: ping.payload,
        };
        raw.server.complete(id, Ok(reply.encode()), raw.now);
        id += 1;
    }
    assert!(!raw.server.may_receive());
    assert!((15..=17).contains(&(id - 3)), "{id}");
}

#[test]
fn the_answer_to_one_that_overtakes_tells_of_its_own_lane_alone() {
    let mut client = Told::open(terms()).client;
    let mut ask = |lane: u16, request: &Request| {
        let header = client.next_header(request.op()).with_lane(lane);
        client.request(header, request).expect("sent");
        header
    };
    let launch = launch(stream(1));
    let len = sent(1, &launch).len() as u64;
    ask(0, &launch);
    ask(1, &launch);
    ask(0, &launch);
    let none = ask(2, &ping().into());
    let first_two = ask(1, &ping().into());
    let all = ask(0, &ping().into());
    assert_eq!(client.not_started(), 3 * len);
    for (lane, header, left) in [(2, none, 3), (1, first_two, 1), (0, all, 0)] {
        let bytes = frame(FrameHeader::reply_to(&header, Status::OK), &ping().encode());
        assert!(pour(client.inbox(), &bytes).is_empty());
        assert!(matches!(client.next(), Ok(Some(Event::Reply { .. }))));
        assert_eq!(client.not_started(), left * len, "lane {lane}");
    }
    assert_eq!(client.last_lane(), 0);
}
