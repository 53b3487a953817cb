//! A mediator that keeps to the protocol, made of the protocol's own half: it exchanges at once, or
//! holds everything but pings and fences until it is let go.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vgpu_guest::{Client, Options};
use vgpu_protocol::op::{Body, ExchangeReply, FenceReply, PingReply, Request};
use vgpu_protocol::session::Server;
use vgpu_protocol::session::server::{Failure, Step, Terms, Timeouts};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::{Interest, Transport, TransportError};

use super::{WATCHDOG, info_reply};

/// Bytes that it takes at once: no multiple of a frame of the guest's, so that it answers one chunk while a frame
/// with the next one is under way.
const CHUNK: usize = 500_000;

/// A ping that is answered only when the mediator is let go.
pub(crate) const HELD: &[u8] = b"held";

/// A test's side of the scripted mediator.
#[derive(Debug, Default)]
pub(crate) struct Control {
    hold: AtomicBool,
    /// Requests that have been started and not been answered.
    pub(crate) under_way: AtomicUsize,
}

impl Control {
    /// Takes no data, and answers no ping of [`HELD`].
    pub(crate) fn hold(&self) {
        self.hold.store(true, Ordering::SeqCst);
    }

    pub(crate) fn let_go(&self) {
        self.hold.store(false, Ordering::SeqCst);
    }

    /// Until this many requests are under way.
    pub(crate) fn wait_for(&self, requests: usize) {
        let deadline = Instant::now() + WATCHDOG;
        while self.under_way.load(Ordering::SeqCst) != requests {
            assert!(Instant::now() < deadline, "{requests} requests under way");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Record of a request.
#[derive(Debug)]
struct Work {
    request: Request,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of input that have not been used, and of output not sent.
    left: (u64, u64),
}

/// One session of it.
struct Peer {
    end: Box<dyn Transport>,
    server: Server,
    control: Arc<Control>,
    work: HashMap<u32, Work>,
}

/// The rest of a frame whose request was given up after the frame had begun.
const ZEROS: [u8; 4096] = [0; 4096];

/// Starts a mediator that offers `terms` at the other end of `transports`, and a client of it.
pub(crate) fn connect(
    transports: (Box<dyn Transport>, Box<dyn Transport>),
    terms: Terms,
    options: &Options,
) -> (Client, Arc<Control>, JoinHandle<()>) {
    let (guest, end) = transports;
    let control = Arc::new(Control::default());
    let timeouts = Timeouts {
        hello: WATCHDOG,
        idle: WATCHDOG,
        stall: WATCHDOG,
        request: None,
    };
    let server = Server::new(terms, timeouts, super::EPOCH, None, Instant::now());
    let mut peer = Peer {
        end,
        server,
        control: Arc::clone(&control),
        work: HashMap::new(),
    };
    let thread = std::thread::spawn(move || match peer.run(terms) {
        Ok(()) | Err(TransportError::Closed) => {}
        Err(error) => panic!("{error}"),
    });
    let client = Client::over(guest, options).expect("a session");
    (client, control, thread)
}

impl Peer {
    fn run(&mut self, terms: Terms) -> Result<(), TransportError> {
        loop {
            let mut moved = false;
            match self.end.try_read(self.server.inbox().space())? {
                Some(0) => return Ok(()),
                Some(n) => {
                    self.server.inbox().received(n);
                    self.server.received(Instant::now());
                    moved = true;
                }
                None => {}
            }
            let over = self.take_in(terms);
            self.work_on();
            moved |= self.send()?;
            if over {
                while !self.server.outbox().is_empty() {
                    self.end.wait(Interest::Write, Instant::now() + WATCHDOG)?;
                    self.send()?;
                }
                return self.end.close(Instant::now() + WATCHDOG);
            }
            if !moved {
                self.end.flush(Instant::now() + WATCHDOG)?;
                let interest = match self.server.outbox().is_empty() {
                    true => Interest::Read,
                    false => Interest::ReadOrWrite,
                };
                // The control is looked at in between.
                match self
                    .end
                    .wait(interest, Instant::now() + Duration::from_millis(2))
                {
                    Ok(()) | Err(TransportError::TimedOut(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Uses what has come; returns whether the session is over.
    fn take_in(&mut self, terms: Terms) -> bool {
        let now = Instant::now();
        loop {
            match self.server.next(now) {
                Ok(Some(Step::Admit)) => self.server.admit(terms, now),
                Ok(Some(Step::Start(header, request))) => {
                    self.control.under_way.fetch_add(1, Ordering::SeqCst);
                    let left = request.data();
                    self.work.insert(
                        header.request_id,
                        Work {
                            request,
                            input: Vec::new(),
                            output: Vec::new(),
                            left,
                        },
                    );
                }
                Ok(Some(Step::Cancel(id))) => {
                    let failure = Failure {
                        status: ErrorCode::Cancelled.into(),
                        text: "given up".to_owned(),
                    };
                    self.complete(id, Err(failure));
                }
                Ok(None) => {
                    let Some((id, wanted)) = self.server.data() else {
                        return false;
                    };
                    let mut bytes = [0; 4096];
                    let n = self.server.inbox().take(&mut bytes);
                    if n == 0 {
                        return false;
                    }
                    self.server.data_received(n, now);
                    if let Some(work) = self.work.get_mut(&id).filter(|_| wanted) {
                        work.input.extend(&bytes[..n]);
                    }
                }
                Err(_) => return true,
            }
        }
    }

    fn complete(&mut self, id: u32, outcome: Result<Vec<u8>, Failure>) {
        if self.work.remove(&id).is_some() {
            self.control.under_way.fetch_sub(1, Ordering::SeqCst);
        }
        self.server.complete(id, outcome, Instant::now());
    }

    fn work_on(&mut self) {
        let hold = self.control.hold.load(Ordering::SeqCst);
        let now = Instant::now();
        let mut over = Vec::new();
        for (&id, work) in &mut self.work {
            let reply = match &work.request {
                Request::Ping(ping) if hold && ping.payload.as_slice() == HELD => continue,
                Request::Ping(ping) => {
                    let payload = ping.payload.clone();
                    PingReply { payload }.encode()
                }
                Request::Fence(_) => FenceReply::default().encode(),
                Request::Info(_) => info_reply().encode(),
                Request::Exchange(exchange) => {
                    if hold {
                        continue;
                    }
                    let whole = CHUNK.min(usize::try_from(work.left.0).expect("small"));
                    if whole > 0 && work.input.len() >= whole {
                        let came = exchange.up - work.left.0;
                        let back = exchange.down.saturating_sub(came).min(whole as u64);
                        let chunk: Vec<u8> = work.input.drain(..whole).collect();
                        let back = usize::try_from(back).expect("within the chunk");
                        work.output.extend(&chunk[..back]);
                        work.left.0 -= whole as u64;
                    }
                    // Room for the next chunk and the one after it.
                    let room = 2 * CHUNK as u64;
                    if work.input.len() < CHUNK {
                        self.server.grant(id, room, now);
                    }
                    if work.left != (0, 0) {
                        continue;
                    }
                    ExchangeReply {}.encode()
                }
                other => panic!("{other:?} is the server's own to answer"),
            };
            over.push((id, reply));
        }
        for (id, reply) in over {
            self.complete(id, Ok(reply));
        }
        self.server.tell_credit(now);
    }

    /// Sends what there is; returns whether any of it was taken.
    fn send(&mut self) -> Result<bool, TransportError> {
        let now = Instant::now();
        let ready = self.server.downs().find_map(|(id, left)| {
            let here = self.work.get(&id)?.output.len();
            let len = u32::try_from(here.min(30_000).min(usize::try_from(left).ok()?)).ok()?;
            (len > 0).then_some((id, len))
        });
        if let Some((id, len)) = ready {
            self.server.begin_down(id, len, now);
        }
        let outbox = self.server.outbox();
        let mut parts = [outbox.unsent(), &[]];
        if let Some((id, left)) = outbox.data() {
            parts[1] = match self.work.get(&id) {
                Some(work) => &work.output[..left],
                None => &ZEROS[..left.min(ZEROS.len())],
            };
        }
        let offered = parts[0].len() + parts[1].len();
        if offered == 0 {
            return Ok(false);
        }
        let n = self.end.try_write_parts(&parts)?;
        if n > 0
            && let Some((id, n)) = self.server.sent(n, now)
            && let Some(work) = self.work.get_mut(&id)
        {
            work.output.drain(..n);
            work.left.1 -= n as u64;
        }
        Ok(n > 0)
    }
}
