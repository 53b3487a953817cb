//! Both halves of a session: the mediator's against a guest that sends anything, and the other way
//! round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::op::field::Bytes;
use vgpu_protocol::op::{
    Body, Exchange, ExchangeReply, Features, Fence, FenceReply, Goodbye, Info, InfoReply, Op, Ping,
    PingReply, Request,
};
use vgpu_protocol::session::client::Event;
use vgpu_protocol::session::server::{Failure, Step, Terms, Timeouts};
use vgpu_protocol::session::{Client, Server};
use vgpu_protocol::status::ErrorCode;

/// Bytes of an exchange that the executor takes.
const MOST: u64 = 32 << 10;

/// The guest's exchange: more bytes than its credit lets it send at once.
const EXCHANGE: Exchange = Exchange {
    up: 2400,
    down: 1200,
};

const INITIAL_CREDIT: u32 = 512;

/// Bytes of data in a frame from the guest.
const PIECE: usize = 100;

/// The other side's bytes, in portions; the first byte determines how to cut the rest, 0 means not
/// at all.
struct Script<'a> {
    rest: &'a [u8],
    portion: usize,
}

impl<'a> Script<'a> {
    fn new(data: &'a [u8]) -> Self {
        let (portion, rest) = data.split_first().unwrap_or((&0, &[]));
        let portion = match *portion {
            0 => usize::MAX,
            portion => portion.into(),
        };
        Self { rest, portion }
    }

    fn read(&mut self, to: &mut [u8]) -> usize {
        assert!(!to.is_empty(), "a read into nothing looks like the end");
        let n = self.rest.len().min(self.portion).min(to.len());
        let (front, rest) = self.rest.split_at(n);
        to[..n].copy_from_slice(front);
        self.rest = rest;
        n
    }
}

/// A request that the executor runs.
struct Work {
    request: Request,
    input: u64,
    output: u64,
}

/// A mediator's half with an executor that is done with the newest request first.
struct Mediating<'a> {
    script: Script<'a>,
    server: Server,
    now: Instant,
    works: BTreeMap<u32, Work>,
    said: Vec<u8>,
    over: bool,
}

fn terms() -> Terms {
    Terms {
        max_lanes: 2.try_into().expect("not 0"),
        max_requests: 8.try_into().expect("not 0"),
        max_handles: 16,
        initial_credit: INITIAL_CREDIT,
        features: Features::ALL,
    }
}

impl Mediating<'_> {
    fn run(data: &[u8]) -> Vec<u8> {
        let now = Instant::now();
        let timeouts = Timeouts {
            hello: Duration::from_secs(1),
            idle: Duration::from_secs(100),
            stall: Duration::from_secs(10),
            request: None,
        };
        let mut this = Mediating {
            script: Script::new(data),
            server: Server::new(terms(), timeouts, 0x1234_5678, None, now),
            now,
            works: BTreeMap::new(),
            said: Vec::new(),
            over: false,
        };
        // Later requests are not answered earlier, so that two honest sides settle on one dialogue.
        while this.work() || this.send() || this.receive() {
            this.now += Duration::from_millis(1);
            let late = this.server.late(this.now);
            assert!(late.is_none() || this.now >= this.server.deadline());
        }
        this.said
    }

    fn complete(&mut self, id: u32, outcome: Result<Vec<u8>, ErrorCode>) {
        let outcome = outcome.map_err(|code| Failure {
            status: code.into(),
            text: "it failed".to_owned(),
        });
        self.server.complete(id, outcome, self.now);
    }

    fn receive(&mut self) -> bool {
        if self.over || !self.server.may_receive() {
            return false;
        }
        if self.server.inbox().data_left() > 0 {
            return self.take_data() || self.read_ahead();
        }
        match self.server.next(self.now) {
            Err(_) => self.over = true,
            Ok(Some(step)) => self.step(step),
            Ok(None) => return self.server.inbox().data_left() > 0 || self.read_ahead(),
        }
        true
    }

    fn read_ahead(&mut self) -> bool {
        let n = self.script.read(self.server.inbox().space());
        self.server.inbox().received(n);
        self.server.received(self.now);
        n > 0
    }

    fn take_data(&mut self) -> bool {
        let (id, wanted) = self.server.data().expect("data of a request");
        let mut piece = [0; 100];
        let n = match self.server.inbox().direct() {
            0 => self.server.inbox().take(&mut piece),
            direct => {
                let n = self.script.read(&mut piece[..direct.min(100)]);
                self.server.inbox().took(n);
                n
            }
        };
        self.server.data_received(n, self.now);
        if wanted && n > 0 {
            let work = self.works.get_mut(&id).expect("it was started");
            work.input += n as u64;
            assert!(work.input <= work.request.data().0);
            self.server.grant(id, n as u64, self.now);
        }
        n > 0
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Admit => self.server.admit(terms(), self.now),
            Step::Start(header, request) => {
                let id = header.request_id;
                assert!(header.lane < terms().max_lanes.get());
                let work = Work {
                    request,
                    input: 0,
                    output: 0,
                };
                assert!(self.works.insert(id, work).is_none(), "started twice");
                assert!(self.works.len() <= 16, "more than the terms allow");
                if matches!(&self.works[&id].request, Request::Exchange(exchange) if exchange.up > MOST)
                {
                    self.works.remove(&id);
                    self.complete(id, Err(ErrorCode::QuotaMemory));
                }
            }
            Step::Cancel(id) => {
                self.works.remove(&id);
                self.complete(id, Err(ErrorCode::Cancelled));
            }
        }
    }

    /// Completes the newest request that can be completed.
    fn work(&mut self) -> bool {
        let ready = |work: &&Work| {
            (work.input, work.output) == work.request.data() || work.request.op() == Op::Fence
        };
        let next = self.works.iter().rev().find(|(_, work)| ready(work));
        let Some(id) = next.map(|(id, _)| *id) else {
            return false;
        };
        let work = self.works.remove(&id).expect("found");
        let outcome = match work.request {
            Request::Ping(Ping { payload }) => match payload.as_slice() {
                b"fail" => Err(ErrorCode::Range),
                _ => Ok(PingReply { payload }.encode()),
            },
            Request::Fence(_) => Ok(FenceReply::default().encode()),
            Request::Info(_) => Ok(info().encode()),
            Request::Exchange(_) => Ok(ExchangeReply {}.encode()),
            // For a device, and there is no device here.
            _ => Err(ErrorCode::Unsupported),
        };
        self.complete(id, outcome);
        true
    }

    fn send(&mut self) -> bool {
        if self.server.outbox().data().is_none() {
            let ready = self.server.downs().find_map(|(id, left)| {
                let work = self.works.get(&id)?;
                let ready = work.input.saturating_sub(work.output);
                (ready > 0).then(|| (id, ready.min(left).min(700) as u32))
            });
            match ready {
                Some((id, len)) => self.server.begin_down(id, len, self.now),
                None => self.server.tell_credit(self.now),
            }
        }
        let head = self.server.outbox().unsent();
        let head = &head[..head.len().min(self.script.portion)];
        self.said.extend_from_slice(head);
        let data = self.server.outbox().data().map_or(0, |(_, left)| left);
        let data = data.min(self.script.portion - head.len());
        let n = head.len() + data;
        self.said.resize(self.said.len() + data, 0);
        if let Some((id, sent)) = self.server.sent(n, self.now)
            && let Some(work) = self.works.get_mut(&id)
        {
            work.output += sent as u64;
        }
        n > 0
    }
}

/// A mediator's session. Its answers must be whole, valid replies.
pub(crate) fn mediator(data: &[u8]) {
    frames(&Mediating::run(data), true);
}

/// Checks that `bytes` are whole, valid frames; returns the last operation.
fn frames(mut bytes: &[u8], replies: bool) -> Option<Op> {
    let mut last = None;
    while let Some((header, after)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(header).expect("only valid headers are sent");
        assert_eq!(header.is_reply(), replies);
        bytes = after
            .get(header.body_len as usize..)
            .expect("a body is as long as its header says");
        last = Some(header.op);
    }
    assert!(bytes.is_empty(), "half a header was sent");
    last
}

/// A guest's half that asks for one of everything at once.
struct Asking<'a> {
    script: Script<'a>,
    client: Client,
    /// The exchange's id, and the bytes received so far.
    adding: Option<u32>,
    added: u64,
    replies: Vec<u32>,
    asked: Vec<u8>,
    open: bool,
    leaving: bool,
    over: bool,
}

impl Asking<'_> {
    fn run(data: &[u8]) -> Vec<u8> {
        let mut this = Asking {
            script: Script::new(data),
            client: Client::new("fuzz", Duration::from_secs(10)),
            adding: None,
            added: 0,
            replies: Vec::new(),
            asked: Vec::new(),
            open: false,
            leaving: false,
            over: false,
        };
        while this.send() || this.receive() {}
        this.asked
    }

    fn ask(&mut self, request: impl Into<Request>, shape: impl Fn(FrameHeader) -> FrameHeader) {
        let request = request.into();
        let header = shape(self.client.next_header(request.op()));
        if self.client.request(header, &request).is_ok() && request.op() == Op::Exchange {
            self.adding = Some(header.request_id);
        }
    }

    fn ask_everything(&mut self) {
        let ping = |payload: &[u8]| Ping {
            payload: Bytes::new(payload).expect("short"),
        };
        let quiet = |header: FrameHeader| header.with_flags(Flags::QUIET);
        self.ask(EXCHANGE, |header| header.with_lane(1));
        self.ask(Info {}, |header| header);
        self.ask(ping(b"payload"), |header| header);
        self.ask(ping(b"quiet"), quiet);
        self.ask(ping(b"fail"), quiet);
        self.ask(Fence {}, |header| header.with_deadline_ms(100));
    }

    fn send(&mut self) -> bool {
        if self.over {
            return false;
        }
        if let Some(id) = self.adding {
            // Pieces of one size whenever credit comes, so that two honest sides settle on one
            // dialogue.
            let may = self.client.may_send(id).min(PIECE);
            if may == PIECE || (may > 0 && may as u64 == self.client.up_left(id)) {
                self.client.begin_up(id, may);
            }
        }
        let head = self.client.outbox().unsent();
        self.asked.extend_from_slice(head);
        let data = self.client.outbox().data().map_or(0, |(_, left)| left);
        let n = head.len() + data;
        self.asked.resize(self.asked.len() + data, 1);
        self.client.sent(n);
        n > 0
    }

    fn receive(&mut self) -> bool {
        if self.over {
            return false;
        }
        let dropped = self.client.inbox().drop_data();
        self.added += dropped as u64;
        assert!(self.added <= EXCHANGE.down, "more data than is due");
        match self.client.next() {
            Err(violation) => {
                assert!(!violation.to_string().is_empty());
                self.over = true;
            }
            Ok(Some(Event::Closing(status, _))) => {
                assert!(!status.is_ok());
                self.over = true;
            }
            Ok(Some(Event::Reply { id, status, .. })) => {
                assert!(!self.replies.contains(&id), "answered twice");
                self.replies.push(id);
                if !self.open && status.is_ok() {
                    self.open = true;
                    self.ask_everything();
                } else if self.client.under_way().next().is_none() {
                    self.over = self.leaving || !self.open;
                    self.leaving = true;
                    self.ask(Goodbye {}, |header| header);
                }
            }
            Ok(Some(Event::Data(_) | Event::Credit(..) | Event::Working)) => {}
            Ok(None) => {
                let n = self.script.read(self.client.inbox().space());
                self.client.inbox().received(n);
                return n > 0 || dropped > 0;
            }
        }
        true
    }
}

/// A guest's session: its requests must be whole and valid.
pub(crate) fn guest(data: &[u8]) {
    frames(&Asking::run(data), false);
}

/// The dialogue of an honest guest and an honest mediator: each receives the other's bytes so far,
/// until neither adds any.
///
/// # Panics
/// If they do not come to an end.
fn dialogue() -> (Vec<u8>, Vec<u8>) {
    let (mut questions, mut answers) = (Asking::run(&[0]), Vec::new());
    for _ in 0..100 {
        let more = Mediating::run(&[&[0][..], &questions].concat());
        let asked = Asking::run(&[&[0][..], &more].concat());
        if (&asked, &more) == (&questions, &answers) {
            return (questions, answers);
        }
        (questions, answers) = (asked, more);
    }
    panic!("the dialogue does not come to an end");
}

fn in_portions(script: &[u8]) -> Vec<Vec<u8>> {
    [0u8, 1, 97]
        .map(|portion| [&[portion][..], script].concat())
        .to_vec()
}

pub(crate) fn mediator_seeds() -> Vec<Vec<u8>> {
    in_portions(&dialogue().0)
}

pub(crate) fn guest_seeds() -> Vec<Vec<u8>> {
    in_portions(&dialogue().1)
}

fn info() -> InfoReply {
    InfoReply {
        total_memory: 1,
        executor: "fuzz".into(),
        device: "".into(),
        driver: "".into(),
        reason: "".into(),
        mediator: "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialogue_comes_to_its_end() {
        let (questions, answers) = dialogue();
        assert_eq!(frames(&questions, false), Some(Op::Goodbye));
        assert_eq!(frames(&answers, true), Some(Op::Goodbye));
        let count = |bytes: &[u8]| bytes.windows(4).filter(|word| word == b"VGPU").count();
        assert!(count(&questions) > 10 && count(&answers) > 10);
    }
}
