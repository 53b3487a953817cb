//! A guest's and a mediator's half, joined by two pipes, with an executor that completes its work
//! in any order. The side that moves next, and the number of bytes, are random.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{exchange, info, timeouts};
use crate::frame::{FrameHeader, MAX_DATA};
use crate::op::{Body, ExchangeReply, FenceReply, Op, PingReply, Request};
use crate::session::client::{Event, NotSent};
use crate::session::server::{End, Failure, Step, Terms};
use crate::session::{Client, Server};
use crate::status::{ErrorCode, Status};

/// Bytes that a pipe holds.
const PIPE: usize = 3000;

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A number of bytes: a few, or many.
    fn portion(&mut self) -> usize {
        let most = [1, 40, 700, 100_000][self.below(4)];
        1 + self.below(most)
    }
}

/// The fate of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// The executor fails after this many bytes of its data.
    Fails(u64),
    /// The guest gives up after it has begun to send this many bytes.
    GivenUp(u64),
}

/// A request on the guest's side.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) header: FrameHeader,
    pub(super) fate: Fate,
    pub(super) up: Vec<u8>,
    begun: usize,
    sent: usize,
    pub(super) down: Vec<u8>,
    pub(super) reply: Option<(Status, Vec<u8>)>,
}

/// A request on the executor's side.
#[derive(Debug)]
struct Work {
    header: FrameHeader,
    request: Request,
    fate: Fate,
    /// Bytes of data that wait here: never more than the guest had credit for.
    held: VecDeque<u8>,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    over: bool,
}

/// The answer to the data of an [`exchange`].
pub(super) fn answer(up: &[u8]) -> Vec<u8> {
    up[..up.len() / 2].to_vec()
}

pub(super) struct Pair {
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) now: Instant,
    pub(super) random: Random,
    terms: Terms,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    pub(super) calls: BTreeMap<u32, Call>,
    works: BTreeMap<u32, Work>,
    /// The request whose data the guest is receiving.
    receiving: u32,
    /// Replies in the order received: the request, and whether quiet requests had failed.
    pub(super) replies: Vec<(u32, bool)>,
    /// Requests that the executor has completed, in order.
    pub(super) done: Vec<u32>,
    pub(super) end: Option<End>,
}

impl Pair {
    pub(super) fn new(terms: Terms, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            client: Client::new("pair", Duration::from_secs(10)),
            server: Server::new(terms, timeouts(), 7, None, now),
            now,
            random: Random(seed),
            terms,
            up: VecDeque::new(),
            down: VecDeque::new(),
            calls: BTreeMap::new(),
            works: BTreeMap::new(),
            receiving: 0,
            replies: Vec::new(),
            done: Vec::new(),
            end: None,
        }
    }

    pub(super) fn open(terms: Terms, seed: u64) -> Self {
        let mut pair = Self::new(terms, seed);
        pair.until("Hello is answered", |pair| pair.client.agreed().is_some());
        pair
    }

    /// Sends a request, with its data.
    pub(super) fn ask(
        &mut self,
        request: impl Into<Request>,
        shape: impl Fn(FrameHeader) -> FrameHeader,
        up: Vec<u8>,
        fate: Fate,
    ) -> Result<u32, NotSent> {
        let request = request.into();
        let header = shape(self.client.next_header(request.op()));
        self.client.request(header, &request)?;
        let id = header.request_id;
        let call = Call {
            header,
            fate,
            up,
            begun: 0,
            sent: 0,
            down: Vec::new(),
            reply: None,
        };
        self.calls.insert(id, call);
        Ok(id)
    }

    pub(super) fn add(&mut self, lane: u16, elements: u64, fate: Fate) -> Result<u32, NotSent> {
        let add = exchange(elements);
        let seed = self.random.next();
        let up = (0..8 * elements).map(|i| (i ^ (i >> 8) ^ seed) as u8);
        self.ask(add, |header| header.with_lane(lane), up.collect(), fate)
    }

    /// Moves things, in random order, until `done`; fails if nothing moves any more before.
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let first = self.random.below(6);
            let portion = self.random.portion();
            let moved = (0..6).any(|i| self.turn((first + i) % 6, portion));
            assert!(moved, "nothing moves, but not yet: {what}");
        }
    }

    /// Moves whatever can move.
    pub(super) fn settle(&mut self) {
        while (0..6).any(|what| self.turn(what, 100_000)) {}
    }

    /// Does one of the six possible things; returns whether it could.
    fn turn(&mut self, what: usize, portion: usize) -> bool {
        match what {
            0 => self.client_begins(portion),
            1 => self.client_sends(portion),
            2 => self.server_receives(portion),
            3 => self.work(portion),
            4 => self.server_sends(portion),
            _ => self.client_receives(portion),
        }
    }

    fn client_begins(&mut self, portion: usize) -> bool {
        let ids: Vec<u32> = self.client.under_way().collect();
        if ids.is_empty() {
            return false;
        }
        let first = self.random.below(ids.len());
        for i in 0..ids.len() {
            let id = ids[(first + i) % ids.len()];
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            if let Fate::GivenUp(after) = call.fate
                && call.begun as u64 >= after
                && self.client.up_left(id) > 0
            {
                self.client.end_early(id);
                return true;
            }
            let may = self.client.may_send(id).min(portion);
            if may > 0 {
                call.begun += may;
                self.client.begin_up(id, may);
                return true;
            }
        }
        false
    }

    pub(super) fn client_sends(&mut self, portion: usize) -> bool {
        let portion = portion.min(PIPE - self.up.len());
        let head = self.client.outbox().unsent();
        let mut bytes = head[..head.len().min(portion)].to_vec();
        if let Some((id, left)) = self.client.outbox().data() {
            let call = &self.calls[&id];
            let n = left.min(portion - bytes.len());
            bytes.extend_from_slice(&call.up[call.sent..call.sent + n]);
        }
        if let Some((id, n)) = self.client.sent(bytes.len()) {
            self.calls.get_mut(&id).expect("known").sent += n;
        }
        self.up.extend(&bytes);
        !bytes.is_empty()
    }

    fn server_receives(&mut self, portion: usize) -> bool {
        if self.end.is_some() || !self.server.may_receive() {
            return false;
        }
        if self.server.inbox().data_left() == 0 {
            match self.server.next(self.now) {
                Ok(Some(step)) => self.step(step),
                Ok(None) if self.server.inbox().data_left() > 0 => {}
                Ok(None) => return self.server_reads_ahead(portion),
                Err(end) => self.end = Some(end),
            }
            return true;
        }
        let (id, wanted) = self.server.data().expect("data of a request");
        if !self.server.inbox().has_unread() && (!wanted || self.server.inbox().direct() == 0) {
            return self.server_reads_ahead(portion);
        }
        if !wanted {
            let n = self.server.inbox().drop_data();
            self.server.data_received(n, self.now);
            return true;
        }
        let mut piece = vec![0; portion];
        let n = match self.server.inbox().direct() {
            0 => self.server.inbox().take(&mut piece),
            direct => {
                let n = direct.min(portion).min(self.up.len());
                self.up
                    .drain(..n)
                    .zip(&mut piece)
                    .for_each(|(b, to)| *to = b);
                self.server.inbox().took(n);
                n
            }
        };
        self.server.data_received(n, self.now);
        let work = self.works.get_mut(&id).expect("started");
        work.held.extend(&piece[..n]);
        let most = self.terms.initial_credit as usize;
        assert!(work.held.len() <= most, "more data than was granted");
        n > 0
    }

    fn server_reads_ahead(&mut self, portion: usize) -> bool {
        let space = self.server.inbox().space();
        let n = space.len().min(portion).min(self.up.len());
        self.up.drain(..n).zip(space).for_each(|(b, to)| *to = b);
        self.server.inbox().received(n);
        self.server.received(self.now);
        n > 0
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Admit => self.server.admit(self.terms, self.now),
            Step::Start(header, request) => {
                let id = header.request_id;
                let work = Work {
                    header,
                    request,
                    fate: self.calls[&id].fate,
                    held: VecDeque::new(),
                    input: Vec::new(),
                    output: Vec::new(),
                    sent: 0,
                    over: false,
                };
                assert!(self.works.insert(id, work).is_none());
                if header.op == Op::Fence {
                    // The session itself waits for those before it.
                    self.finish(id);
                }
            }
            Step::Cancel(id) => self.fail(id, ErrorCode::Cancelled),
        }
    }

    fn fail(&mut self, id: u32, code: ErrorCode) {
        self.works.remove(&id);
        self.done.push(id);
        let text = "as it should".to_owned();
        let status = code.into();
        let outcome = Err(Failure { status, text });
        self.server.complete(id, outcome, self.now);
    }

    /// The executor works on a request: takes data, or completes it.
    fn work(&mut self, portion: usize) -> bool {
        let ids: Vec<u32> = self.works.keys().copied().collect();
        if ids.is_empty() {
            return false;
        }
        let first = self.random.below(ids.len());
        (0..ids.len()).any(|i| self.work_for(ids[(first + i) % ids.len()], portion))
    }

    fn work_for(&mut self, id: u32, portion: usize) -> bool {
        let work = self.works.get_mut(&id).expect("known");
        if work.over {
            return false;
        }
        if let Fate::Fails(after) = work.fate
            && work.input.len() as u64 >= after
        {
            self.fail(id, ErrorCode::QuotaMemory);
            return true;
        }
        let n = work.held.len().min(portion);
        if n > 0 {
            work.input.extend(work.held.drain(..n));
            let upto = work.input.len().min(work.request.data().1 as usize);
            let from = work.output.len();
            work.output.extend_from_slice(&work.input[from..upto]);
            self.server.grant(id, n as u64, self.now);
        } else if work.input.len() as u64 == work.request.data().0 {
            self.finish(id);
        } else {
            return false;
        }
        true
    }

    pub(super) fn finish(&mut self, id: u32) {
        let work = self.works.get_mut(&id).expect("known");
        let body = match &work.request {
            Request::Ping(ping) => PingReply {
                payload: ping.payload.clone(),
            }
            .encode(),
            Request::Fence(_) => FenceReply::default().encode(),
            Request::Info(_) => info().encode(),
            Request::Exchange(_) => ExchangeReply {}.encode(),
            other => panic!("{other:?} does not come here"),
        };
        work.over = true;
        if work.header.op != Op::Exchange {
            self.works.remove(&id);
        }
        self.done.push(id);
        self.server.complete(id, Ok(body), self.now);
    }

    pub(super) fn server_sends(&mut self, portion: usize) -> bool {
        if self.server.outbox().data().is_none() {
            let downs: Vec<_> = self.server.downs().collect();
            let ready = downs.iter().filter_map(|&(id, left)| {
                let work = &self.works[&id];
                let ready = (work.output.len() - work.sent) as u64;
                (ready > 0).then(|| (id, ready.min(left).min(MAX_DATA.into())))
            });
            let ready: Vec<_> = ready.collect();
            match ready.len() {
                0 => self.server.tell_credit(self.now),
                n => {
                    let (id, most) = ready[self.random.below(n)];
                    let len = most.min(portion as u64) as u32;
                    self.server.begin_down(id, len, self.now);
                }
            }
        }
        let portion = portion.min(PIPE - self.down.len());
        let head = self.server.outbox().unsent();
        let mut bytes = head[..head.len().min(portion)].to_vec();
        if let Some((id, left)) = self.server.outbox().data() {
            let n = left.min(portion - bytes.len());
            match self.works.get(&id) {
                Some(work) => bytes.extend_from_slice(&work.output[work.sent..work.sent + n]),
                // It failed meanwhile.
                None => bytes.resize(bytes.len() + n, 0),
            }
        }
        if let Some((id, n)) = self.server.sent(bytes.len(), self.now)
            && let Some(work) = self.works.get_mut(&id)
        {
            work.sent += n;
            if work.over && work.sent == work.output.len() {
                self.works.remove(&id);
            }
        }
        self.down.extend(&bytes);
        !bytes.is_empty()
    }

    fn client_receives(&mut self, portion: usize) -> bool {
        if self.client.inbox().data_left() > 0 && self.client.inbox().has_unread() {
            let mut piece = vec![0; portion];
            let n = self.client.inbox().take(&mut piece);
            self.client_got(&piece[..n]);
            return true;
        }
        match self.client.next().expect("the mediator is honest") {
            Some(Event::Reply {
                id,
                status,
                failures,
                ..
            }) => {
                self.replies.push((id, failures));
                let body = self.client.body().to_vec();
                if let Some(call) = self.calls.get_mut(&id) {
                    assert!(call.reply.replace((status, body)).is_none());
                }
                return true;
            }
            Some(Event::Data(id)) => {
                self.receiving = id;
                return true;
            }
            Some(Event::Credit(..) | Event::Working) => return true,
            Some(Event::Closing(status, text)) => panic!("closing: {status} {text}"),
            None => {}
        }
        let direct = self.client.inbox().direct();
        if direct > 0 {
            let n = direct.min(portion).min(self.down.len());
            let piece: Vec<u8> = self.down.drain(..n).collect();
            self.client.inbox().took(n);
            self.client_got(&piece);
            return n > 0;
        }
        let space = self.client.inbox().space();
        let n = space.len().min(portion).min(self.down.len());
        self.down.drain(..n).zip(space).for_each(|(b, to)| *to = b);
        self.client.inbox().received(n);
        n > 0
    }

    fn client_got(&mut self, piece: &[u8]) {
        let call = self.calls.get_mut(&self.receiving).expect("known");
        call.down.extend_from_slice(piece);
    }
}
