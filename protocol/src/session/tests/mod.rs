//! Both halves of a session against each other, and each against a peer that sends anything.
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers that the tests make small"
)]

mod deadlines;
mod exchange;
mod hostile_guest;
mod hostile_mediator;
mod overtaking;
mod pair;
mod rules;

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::client::{Event, Violation};
use super::server::{End, Server, Step, Terms, Timeouts};
use super::{Client, inbox::Inbox, outbox::Outbox};
use crate::frame::{FrameHeader, HEADER_LEN};
use crate::op::{Body, Exchange, Features, Hello, HelloReply, InfoReply, Op};
use crate::status::Status;

const HELLO: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(300);

fn terms() -> Terms {
    let number = |n| NonZeroU16::new(n).expect("not 0");
    Terms {
        max_lanes: number(4),
        max_requests: number(8),
        max_handles: 16,
        initial_credit: 4096,
        features: Features::ALL,
    }
}

fn timeouts() -> Timeouts {
    Timeouts {
        hello: HELLO,
        idle: IDLE,
        stall: STALL,
        request: None,
    }
}

fn info() -> InfoReply {
    InfoReply {
        total_memory: 1 << 30,
        executor: "test".into(),
        device: "bytes".into(),
        driver: "".into(),
        reason: "".into(),
        mediator: "".into(),
    }
}

/// A frame with its body.
fn frame(header: FrameHeader, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("small");
    let mut bytes = header.with_body_len(len).encode().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// 8 bytes up and 4 down for each element.
fn exchange(elements: u64) -> Exchange {
    Exchange {
        up: 8 * elements,
        down: 4 * elements,
    }
}

fn hello() -> Hello {
    Hello {
        min_version: NonZeroU16::MIN,
        max_version: 1,
        features: Features::ALL,
        client_name: "test".into(),
    }
}

/// Puts bytes into an inbox as far as it takes them at once; returns the rest.
fn pour<'a>(inbox: &mut Inbox, bytes: &'a [u8]) -> &'a [u8] {
    let space = inbox.space();
    let n = space.len().min(bytes.len());
    space[..n].copy_from_slice(&bytes[..n]);
    inbox.received(n);
    &bytes[n..]
}

/// The frames that wait in an outbox, which has no data under way.
fn frames(outbox: &Outbox) -> Vec<(FrameHeader, Vec<u8>)> {
    assert_eq!(outbox.data(), None);
    let mut rest = outbox.unsent();
    let mut frames = Vec::new();
    while let Some((header, body)) = rest.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(header).expect("a sound header");
        let (body, after) = body.split_at(header.body_len as usize);
        frames.push((header, body.to_vec()));
        rest = after;
    }
    assert!(rest.is_empty());
    frames
}

/// A mediator's half that receives raw bytes, and takes all data as it arrives.
struct Raw {
    server: Server,
    now: Instant,
    steps: Vec<Step>,
    taken: Vec<u8>,
}

impl Raw {
    fn new(terms: Terms) -> Self {
        Self::with(terms, timeouts())
    }

    fn with(terms: Terms, timeouts: Timeouts) -> Self {
        let now = Instant::now();
        Self {
            server: Server::new(terms, timeouts, 7, None, now),
            now,
            steps: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// After Hello, with nothing left to send.
    fn open(terms: Terms) -> Self {
        Self::new(terms).admitted(terms)
    }

    fn admitted(mut self, terms: Terms) -> Self {
        let request = FrameHeader::request(Op::Hello, 1);
        self.hear(&frame(request, &hello().encode()))
            .expect("a sound Hello");
        assert!(matches!(self.steps.pop(), Some(Step::Admit)));
        self.server.admit(terms, self.now);
        self.said();
        self
    }

    fn hear(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        loop {
            while let Some(step) = self.server.next(self.now)? {
                self.steps.push(step);
            }
            if self.server.inbox().data_left() > 0 && self.server.inbox().has_unread() {
                let wanted = self.server.data().expect("data of a request").1;
                let mut piece = [0; 1000];
                let n = self.server.inbox().take(&mut piece);
                if wanted {
                    self.taken.extend_from_slice(&piece[..n]);
                }
                self.server.data_received(n, self.now);
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            bytes = pour(self.server.inbox(), bytes);
            self.server.received(self.now);
        }
    }

    /// The frames that the guest receives and takes.
    fn said(&mut self) -> Vec<(FrameHeader, Vec<u8>)> {
        let frames = frames(self.server.outbox());
        let n = self.server.outbox().len();
        self.server.sent(n, self.now);
        frames
    }

    /// Shows the guest that a request goes on.
    fn shown(&mut self) {
        let said = self.said();
        assert!(
            matches!(said.as_slice(), [(header, _)] if header.op == Op::Data && header.body_len == 0),
            "{said:?}"
        );
    }

    /// The answer to one more request.
    fn ask(&mut self, header: FrameHeader, body: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
        self.hear(&frame(header, body))
            .expect("the session goes on");
        self.said()
    }

    /// A request that is to be run.
    fn start(&mut self, header: FrameHeader, body: &[u8]) {
        let said = self.ask(header, body);
        assert!(said.is_empty(), "{said:?}");
        match self.steps.pop() {
            Some(Step::Start(started, _)) => {
                assert_eq!(started.request_id, header.request_id);
            }
            other => panic!("{other:?}"),
        }
    }

    /// The answer to Info, whatever that describes.
    fn info(&mut self, id: u32) -> FrameHeader {
        self.start(FrameHeader::request(Op::Info, id), &[]);
        self.server.complete(id, Ok(info().encode()), self.now);
        self.said()[0].0
    }

    /// Its only frame, an error of this status whose text contains `words`.
    fn refused(&mut self, status: impl Into<Status>, words: &str) {
        let said = self.said();
        let [(header, text)] = &said[..] else {
            panic!("one frame expected: {said:?}");
        };
        assert_eq!(header.status, status.into());
        let text = String::from_utf8_lossy(text);
        assert!(text.contains(words), "'{text}' without '{words}'");
    }
}

fn fault(result: Result<(), End>, words: &str) {
    match result {
        Err(End::Fault(what)) => assert!(what.contains(words), "'{what}' without '{words}'"),
        other => panic!("a fault with '{words}' expected: {other:?}"),
    }
}

/// A guest's half that receives raw bytes, and drops all data as it arrives.
struct Told {
    client: Client,
    events: Vec<Event>,
}

impl Told {
    /// After Hello, with nothing left to send.
    fn open(terms: Terms) -> Self {
        let mut told = Self {
            client: Client::new("test", Duration::from_secs(10)),
            events: Vec::new(),
        };
        let reply = FrameHeader::reply_to(&FrameHeader::request(Op::Hello, 1), Status::OK);
        told.hear(&frame(reply, &hello_reply(terms).encode()))
            .expect("a sound answer");
        told.asked();
        told.events.clear();
        told
    }

    fn hear(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        loop {
            while let Some(event) = self.client.next()? {
                self.events.push(event);
            }
            if self.client.inbox().drop_data() == 0 {
                if bytes.is_empty() {
                    return Ok(());
                }
                bytes = pour(self.client.inbox(), bytes);
            }
        }
    }

    /// The frames that the mediator receives and takes.
    fn asked(&mut self) -> Vec<(FrameHeader, Vec<u8>)> {
        let frames = frames(self.client.outbox());
        let n = self.client.outbox().len();
        self.client.sent(n);
        frames
    }

    fn violated(&mut self, bytes: &[u8], words: &str) {
        match self.hear(bytes) {
            Err(Violation(what)) => assert!(what.contains(words), "'{what}' without '{words}'"),
            Ok(()) => panic!("a violation with '{words}' expected: {:?}", self.events),
        }
    }
}

fn hello_reply(terms: Terms) -> HelloReply {
    HelloReply {
        version: NonZeroU16::MIN,
        features: terms.features,
        max_lanes: terms.max_lanes,
        max_requests: terms.max_requests,
        max_handles: terms.max_handles,
        initial_credit: terms.initial_credit,
        epoch: 7,
    }
}

#[test]
fn a_rest_is_nobodys_silence_and_nobody_speaks_in_the_future() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let then = now + 5 * second;
    let after_rest = |at| super::after_rest(at, 4 * second, then);
    assert_eq!(after_rest(now), now + 4 * second);
    assert_eq!(after_rest(now + 2 * second), then);
}

#[test]
fn requests_with_data_take_turns() {
    let at_hand = [(4, 10), (9, 0), (2, 30)];
    for (last, next) in [(0, (4, 10)), (4, (2, 30)), (9, (2, 30)), (2, (4, 10))] {
        assert_eq!(
            super::next_in_turn(last, at_hand),
            Some(next),
            "after {last}"
        );
    }
    assert_eq!(super::next_in_turn(4, [(4, 1), (9, 0)]), Some((4, 1)));
    assert_eq!(super::next_in_turn(4, [(4, 0)]), None);
}
